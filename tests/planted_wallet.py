"""A wallet service that is killed by SIGKILL right after the write of one's choice, for `tests/recovery`.

with running_world(PlantedWallet, fresh_database, tmp_path) as world:
    world.plant(3)            # the third write from now on is its last
    ...                       # a request; ServiceUnreachable
    world.start()             # again, without a plant

A write is a database transaction that wrote something, once it is committed, and a request to a ledger that may change
something, once it was answered: so between two of them the outside world does not change, and to kill after each of
them in turn is to kill between any two writing lines. The workers' own writes (webhooks, bulk files, due schedules) do
not count: they come when they like.

`python -m tests.planted_wallet` imports the service once, and forks a new process of it for each line on its input.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from kernel.clock import system_clock
from tests.wallet_processes import WalletWorld

PLANT = "JIAOZI_TEST_PLANT"
WORKERS = {"events", "bulk", "schedules", "programs"}


@dataclass
class PlantedWallet(WalletWorld):
    """`WalletWorld` with a plant. Its `process` is the forking one; `pid` is the service's."""

    pid: int | None = None

    @property
    def plant_path(self) -> Path:
        return self.directory / "plant.json"

    @property
    def written_path(self) -> Path:
        return self.directory / "written"

    def start(self, *, ahead: timedelta = timedelta(0)) -> None:
        """`ahead`: how far the service's clock, not its ledger's, is ahead."""
        if self.process is None:
            with (self.directory / "wallet.log").open("ab") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "tests.planted_wallet"],
                    env=self.environment | {PLANT: str(self.plant_path), "JIAOZI_WALLET_LOG_LEVEL": "warning"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{ahead.total_seconds()}\n".encode())
        self.process.stdin.flush()
        self.pid = int(self.process.stdout.readline())
        if not self.plant_path.exists():
            self.wait_until_healthy()

    def is_dead(self) -> bool:
        if self.pid is None:
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        return False

    def kill_service(self) -> None:
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait_until_dead()
            self.pid = None

    def wait_until_dead(self, seconds: float = 10) -> None:
        deadline = time.monotonic() + seconds
        while not self.is_dead():
            if time.monotonic() > deadline:
                raise AssertionError("it lives")
            time.sleep(0.005)

    def kill(self) -> None:
        self.kill_service()
        super().kill()

    def plant(self, last: int) -> None:
        """The `last` write from now on, counted from 1, is followed by SIGKILL; 0 counts and does not kill."""
        self.written_path.write_text("")
        fresh = self.plant_path.with_suffix(".new")
        fresh.write_text(json.dumps({"plant": str(uuid4()), "last": last, "written": str(self.written_path)}))
        fresh.replace(self.plant_path)

    def writes(self) -> list[str]:
        """What was written since the plant, by where in the use cases; and there is no plant any more."""
        self.plant_path.unlink(missing_ok=True)
        return self.written_path.read_text().splitlines()


class _Counter:
    """Counts this process's writes while there is a plant, and kills it after the chosen one."""

    def __init__(self, plant: Path) -> None:
        self._plant = plant
        self._name: str | None = None
        self._count = 0
        self._lock = threading.Lock()

    def written(self, what: str) -> None:
        if threading.current_thread().name in WORKERS:
            return
        with self._lock:
            try:
                plant: dict[str, Any] = json.loads(self._plant.read_text())
            except FileNotFoundError:
                return
            if plant["plant"] != self._name:
                self._name, self._count = plant["plant"], 0
            self._count += 1
            with Path(plant["written"]).open("a") as file:
                file.write(f"{what} {_where()}\n")
            if self._count == plant["last"]:
                os.kill(os.getpid(), signal.SIGKILL)


def _where() -> str:
    """The use case's lines that wrote, outermost first."""
    found = []
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name == "usecases":
            found.append(f"{path.stem}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " > ".join(reversed(found))


def _watch(counter: _Counter) -> None:
    import psycopg
    from psycopg import pq

    from kernel.client import ServiceClient
    from kernel.database import CheckedConnection

    commit, request = CheckedConnection.commit, ServiceClient.request

    def counted_commit(self: CheckedConnection) -> None:
        wrote = False
        if self.info.transaction_status == pq.TransactionStatus.INTRANS:
            result = self.pgconn.exec_(b"SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
            wrote = result.status == pq.ExecStatus.TUPLES_OK and result.get_value(0, 0) == b"t"
        commit(self)
        if wrote:
            counter.written("commit")

    def counted_request(self: ServiceClient, method: str, path: str, **rest: Any) -> Any:
        try:
            return request(self, method, path, **rest)
        finally:
            if method != "GET":
                counter.written(f"{method} {path}")

    execute = psycopg.Cursor.execute

    def counted_execute(self: psycopg.Cursor[Any], query: Any, params: Any = None, **rest: Any) -> Any:
        """A session that commits each statement by itself."""
        found = execute(self, query, params, **rest)
        is_write = isinstance(query, str) and any(word in query for word in ("INSERT ", "UPDATE ", "DELETE "))
        if self.connection.autocommit and is_write and self.rowcount and _where():
            counter.written("statement")
        return found

    psycopg.Cursor.execute = counted_execute  # type: ignore[method-assign]
    CheckedConnection.commit = counted_commit  # type: ignore[method-assign]
    ServiceClient.request = counted_request  # type: ignore[method-assign]


def main() -> None:
    from kernel.server import serve
    from wallet.api.app import create
    from wallet.settings import WalletSettings

    _watch(_Counter(Path(os.environ[PLANT])))
    ahead = timedelta(0)
    settings = WalletSettings.load()
    # Opens nothing before it is served, so one is made for all the processes.
    app = create(settings, clock=lambda: system_clock() + ahead)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            os.dup2(2, 1)
            ahead = timedelta(seconds=float(line))
            try:
                serve(app, host=settings.host, port=settings.port, log_level="warning")
            finally:
                os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    main()

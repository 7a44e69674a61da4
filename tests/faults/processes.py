"""Ledgers as real processes, for tests that kill, stop, delay and mislead them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
import pytest

from kernel.client import ProblemResponse, ServiceUnreachable
from tests.ledger_world import LedgerWorld, free_port

BACK_SECONDS_MAX = 30.0
NO_SKIP = "JIAOZI_NO_SKIP"
T = TypeVar("T")

FORKER = """
import os, signal, sys
import alembic.ddl.postgresql, kernel.migrate, kernel.server, ledger.api.app, ledger.settings, uvicorn.lifespan.on
import uvicorn.loops.auto, uvicorn.protocols.http.auto, uvicorn.protocols.websockets.auto
import ledger.engine.snapshots as snapshots
from ledger.__main__ import main
snapshots.SNAPSHOT_BLOCKS = 25  # so that the short run has many snapshots, written and interrupted
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = ["jiaozi-ledger", "serve"]
        main()
        os._exit(0)
    print(pid, flush=True)
"""


def cannot(reason: str) -> None:
    """What this machine cannot do is skipped, in one clear line; with JIAOZI_NO_SKIP=1 it fails."""
    if os.environ.get(NO_SKIP):
        pytest.fail(reason)
    pytest.skip(reason)


def environment_of(world: LedgerWorld, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    settings = world.settings
    return {
        **os.environ,
        "JIAOZI_LEDGER_PORT": str(settings.port),
        "JIAOZI_LEDGER_DATABASE_URL": str(settings.database_url),
        "JIAOZI_LEDGER_GENESIS_PATH": str(settings.genesis_path),
        "JIAOZI_LEDGER_NODE": settings.node,
        "JIAOZI_LEDGER_DATA_DIR": str(settings.data_dir),
        "JIAOZI_LEDGER_LEASE_SECONDS": str(settings.lease_seconds),
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def another(world: LedgerWorld, node: str, **changes: object) -> LedgerWorld:
    """The same ledger served by another process: same database, keys and participants, an address of its own."""
    port = free_port()
    settings = world.settings.model_copy(update={"port": port, "node": node, **changes})
    return replace(world, url=f"http://127.0.0.1:{port}", settings=settings)


class LedgerProcess:
    """`jiaozi-ledger serve`, as an operator starts it."""

    def __init__(self, world: LedgerWorld, log: Path, *, extra: Mapping[str, str] | None = None) -> None:
        self.world, self.log = world, log
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ledger", "serve"],
            env=environment_of(world, extra),
            stdout=self._log,
            stderr=self._log,
        )

    def __enter__(self) -> LedgerProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def signal(self, what: signal.Signals) -> None:
        self._process.send_signal(what)

    def ended(self, seconds: float) -> int:
        """The exit code."""
        return self._process.wait(seconds)

    def await_health(self, status: int, seconds: float = BACK_SECONDS_MAX) -> str:
        """Until /healthz answers with this status; returns its detail."""

        def ask() -> str | None:
            if not self.is_running:
                raise AssertionError(f"the ledger ended: {self.log.read_text()[-3000:]}")
            with suppress(httpx.HTTPError):
                answer = httpx.get(f"{self.world.url}/healthz", timeout=2, trust_env=False)
                if answer.status_code == status:
                    return str(answer.json().get("detail", "ok"))
            return None

        return wait_for(ask, seconds, f"/healthz of {self.world.settings.node} does not answer {status}")

    def close(self) -> None:
        if self.is_running:
            self._process.kill()
        self._process.wait()
        self._log.close()


class ForkedLedger:
    """A ledger forked, anew after each kill, from a process that has done its imports: a restart costs recovery."""

    def __init__(self, world: LedgerWorld, log: Path) -> None:
        self._log = log.open("ab")
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            env=environment_of(world),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = 0

    def start(self) -> None:
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write("fork\n")
        self._forker.stdin.flush()
        self.pid = int(self._forker.stdout.readline())

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        wait_for(lambda: not self.is_running, 10, "the ledger's process does not end")

    @property
    def is_running(self) -> bool:
        return bool(psutil.pid_exists(self.pid))

    def close(self) -> None:
        if self.pid:
            self.kill()
        self._forker.kill()
        self._forker.wait()
        self._log.close()


def wait_for(found: Callable[[], T | None], seconds: float, what: str) -> T:
    """The first true answer. Raises AssertionError with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} within {seconds:.0f} s")
        time.sleep(0.02)


def wait_until_serving(world: LedgerWorld) -> float:
    """Seconds until the ledger answers a question that needs its state."""
    began = time.monotonic()
    with world.anonymous() as client:
        while True:
            try:
                client.supply()
                return time.monotonic() - began
            except (ServiceUnreachable, ProblemResponse):
                if time.monotonic() - began > BACK_SECONDS_MAX:
                    raise
                time.sleep(0.03)

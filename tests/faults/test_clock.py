"""R4. Goal: whatever the clocks do, no seq is given twice, booking time never runs back, and no hold expires early.

Method: a real ledger process whose clock libfaketime moves (Debian's package `faketime`); PostgreSQL keeps the true
time, or has its clock moved too, as when a whole machine's clock is set. Only the wall clock moves: monotonic time
cannot be set on a real machine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import psycopg
import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import TransferOutcome
from ledger.verifier import verify_database
from tests.faults.campaign import BANK
from tests.faults.processes import LedgerProcess, cannot, wait_for
from tests.ledger_world import LedgerWorld, make_world
from tests.roles import dsn

LIBRARIES = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/local/lib/faketime/libfaketimeMT.so.1",
)
SLEEP = "import threading, time\ntime.sleep = lambda seconds: threading.Event().wait(seconds) and None\n"
"""libfaketime 0.9 makes Python's own `sleep` (clock_nanosleep to an absolute moment) fail when the clock has moved."""


class MovedClock:
    """The wall clock of the processes that are started with `environment`."""

    def __init__(self, directory: Path) -> None:
        library = next((path for path in LIBRARIES if Path(path).exists()), None)
        if library is None:
            cannot("libfaketime is not installed (Debian: apt-get install faketime)")
        directory.mkdir()
        directory.chmod(0o755)
        self._file = directory / "moved"
        self.move(0)
        (directory / "sitecustomize.py").write_text(SLEEP)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "PYTHONPATH": str(directory),
            "TZ": "UTC",
        }
        self.seconds = 0.0

    def move(self, seconds: float) -> None:
        """To so many seconds ahead of the true time."""
        self.seconds = seconds
        self._write(f"{seconds:+.3f}s")

    def freeze(self) -> None:
        self._write(f"{system_clock():%Y-%m-%d %H:%M:%S}")

    def __call__(self) -> datetime:
        return system_clock() + timedelta(seconds=self.seconds)

    def _write(self, text: str) -> None:
        growing = self._file.with_suffix(".new")
        growing.write_text(text + "\n")
        growing.replace(self._file)  # never read half written


class Scene:
    """A ledger with a moved clock, a bank with money, and a client whose own clock is whatever it says."""

    def __init__(self, url: str, world: LedgerWorld, clock: MovedClock) -> None:
        self.url, self.world, self.clock = url, world, clock
        world.register(BANK)
        self.payer, self.payee = world.open_vault(BANK), world.open_vault(BANK)
        world.issue(self.payer, 10**6)
        self.booked: dict[UUID, int] = {}

    def submit(self, kind: str = "payment", **more: object) -> UUID:
        """Signed and numbered by the ledger's clock, so that nothing at the door is in the way."""
        now = self.clock()
        own = ids.uuid7_at(int(now.timestamp() * 1000) - 1000)
        named: dict[str, object] = {"id": own} | more
        debit, credit, amount = (None, None, None) if "hold" in more else (self.payer, self.payee, 5)
        signer = RequestSigner(self.world.participants[BANK], clock=self.clock)
        with LedgerClient(self.world.url, signer=signer) as client:
            result = client.transfer(self.world.terms(kind, debit, credit, amount, **named))
        assert result.outcome is TransferOutcome.BOOKED, result
        self.booked[own] = int(result.seq or 0)
        return own

    def refuses(self) -> str:
        """The detail with which a payment is refused for the clock's sake."""
        with pytest.raises(ProblemResponse) as refused:
            self.submit()
        assert (refused.value.status, refused.value.transient) == (503, True)
        return refused.value.detail

    def rows(self) -> list[tuple[UUID, int, int, datetime]]:
        with psycopg.connect(dsn(self.url)) as connection:
            return connection.execute("SELECT id, seq, kind, booked_at FROM transfer ORDER BY seq").fetchall()

    def check(self) -> None:
        rows = self.rows()
        assert [row[1] for row in rows] == list(range(1, len(rows) + 1))
        times = [row[3] for row in rows]
        assert times == sorted(times), "booking time ran back"
        seqs = {row[0]: row[1] for row in rows}
        assert {own: seqs.get(own) for own in self.booked} == self.booked
        assert verify_database(self.url).findings == []


@contextmanager
def scene(url: str, clock: MovedClock, directory: Path) -> Iterator[Scene]:
    world = make_world(url, directory)
    with LedgerProcess(world, directory / "ledger.log", extra=clock.environment) as ledger:
        ledger.await_health(200)
        yield Scene(url, world, clock)
        assert ledger.await_health(200) == "ok"


EXPIRE = 10


@pytest.mark.extended
def test_clock_of_the_ledger_alone_is_not_booked_by_when_it_leaves_the_databases(
    fresh_database: object, tmp_path: Path
) -> None:
    clock = MovedClock(tmp_path / "clock")
    with scene(fresh_database("ledger"), clock, tmp_path) as world:  # type: ignore[operator]
        world.submit()
        hold = world.submit("hold", expires_at=system_clock() + timedelta(minutes=20))
        for seconds in (25 * 60, -25 * 60):
            clock.move(seconds)
            assert world.refuses() == "retry with the same ids: they book once"
            time.sleep(1.2)  # the ledger looks at its expiries once a second
            assert EXPIRE not in [row[2] for row in world.rows()], "a hold expired before its time"
            clock.move(0)
            world.submit()
        world.submit("post", hold=hold)
        for seconds in (20, -20, 0):  # clocks that NTP is still pulling together
            clock.move(seconds)
            world.submit()
        clock.freeze()
        before = len(world.rows())
        for _ in range(3):
            world.submit()
            time.sleep(0.5)
        assert len(world.rows()) == before + 3
        clock.move(0)
        world.submit()
        world.check()


@pytest.mark.slow
def test_clock_of_the_whole_machine_jumps_and_the_writer_stays_and_books_in_order(
    server_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = MovedClock(server_dir / "clock")
    server = EmbeddedPostgres(server_dir / "server", settings={"shared_buffers": "32MB"})
    with monkeypatch.context() as patch:
        for name in ("LD_PRELOAD", "FAKETIME_TIMESTAMP_FILE", "FAKETIME_NO_CACHE", "FAKETIME_DONT_FAKE_MONOTONIC"):
            patch.setenv(name, clock.environment[name])
        server.start()
    try:
        server.ensure_database("ledger")
        with scene(server.url("ledger"), clock, tmp_path) as world:
            world.submit()
            first = world.submit("hold", expires_at=clock() + timedelta(minutes=20))
            second = world.submit("hold", expires_at=clock() + timedelta(minutes=50))
            for minutes in (25, -25, 0):
                clock.move(minutes * 60)
                until_believed(world)
                for _ in range(3):
                    world.submit()
            ended = [row for row in world.rows() if row[2] == EXPIRE]
            assert len(ended) == 1, "by the clock of both, the first hold's time had come, and the second's not"
            with pytest.raises(AssertionError, match="hold-expired"):
                world.submit("post", hold=first)
            world.submit("post", hold=second)
            world.check()
    finally:
        server.stop(mode="immediate")


def until_believed(world: Scene) -> None:
    """A jump is believed when the database's clock says so too: at the next renewal of the lease, within a second."""

    def believed() -> bool:
        try:
            world.submit()
        except ProblemResponse as problem:
            if problem.status != 503:
                raise
            return False
        return True

    wait_for(believed, 10, "the clock of both was not believed")

"""R3. Goal: the lease goes to one at a time: to whoever comes when it is free, never from a holder that is heard.

Method: `Lease` objects on a real database, each with its thread; holders that fall silent are played by rows that
nobody renews, with marks of processes of this machine and of others.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures import TimeoutError as FutureTimeout

import psycopg
import pytest

from kernel.clock import system_clock, to_micros
from kernel.database import Database
from ledger.engine import lease as lease_module
from ledger.engine.lease import Lease, _process_mark
from ledger.store.leases import LEASE_KEEPER, WRITER
from tests.roles import as_service, dsn

SECONDS = 1.3
RENEW_SECONDS, LOOK_SECONDS = 0.3, 0.1
"""Of the leases here: with a second for a thread that a busy machine holds up."""


@pytest.fixture(autouse=True)
def in_shorter_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", RENEW_SECONDS)
    monkeypatch.setattr(lease_module, "LOOK_SECONDS", LOOK_SECONDS)


class Place:
    """A database with its lease, and whoever asked for it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.made: list[tuple[Lease, Database]] = []
        self.lost: list[str] = []

    def lease(self, node: str, *, seconds: float = SECONDS) -> Lease:
        database = Database(as_service(self.url), application_name=f"test {node}")
        lease = Lease(database, node=node, lost=lambda reason: self.lost.append(f"{node}: {reason}"), seconds=seconds)
        self.made.append((lease, database))
        return lease

    def execute(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        with psycopg.connect(dsn(self.url), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), values)
            return cursor.fetchall() if cursor.description else []

    def held_by(self, holder: str, *, age: float = 0.0) -> None:
        """A holder that renewed the lease `age` seconds ago and does so no more."""
        self.execute(
            "INSERT INTO lease VALUES (1, 7, %s, clock_timestamp() - make_interval(secs => %s))"
            " ON CONFLICT (id) DO UPDATE SET node = EXCLUDED.node, renewed_at = EXCLUDED.renewed_at",
            holder,
            age,
        )


@pytest.fixture
def place(fresh_database: Callable[[str], str]) -> Iterator[Place]:
    place = Place(fresh_database("ledger"))
    yield place
    for lease, database in place.made:
        lease.stop(release=False)
        database.close()


def seconds_to_take(lease: Lease) -> float:
    began = time.monotonic()
    lease.take().result(30)
    return time.monotonic() - began


def test_first_takes_it_keeps_it_and_leaves_it_to_the_next(place: Place) -> None:
    first, second = place.lease("first"), place.lease("second")
    assert first.take().result(20) == 1
    waiting = second.take()
    assert second.standing_by.result(20) == "first"
    with pytest.raises(FutureTimeout):
        waiting.result(3 * SECONDS)
    assert first.confirm()
    assert not second.confirm()
    first.stop(release=True)
    assert waiting.result(20) == 2
    assert second.confirm()
    assert place.lost == []


def test_silent_holder_of_another_machine_is_waited_for(place: Place) -> None:
    place.held_by("far 1b2c ffffffffffffffff:1:1")
    assert SECONDS * 0.8 < seconds_to_take(place.lease("near")) < SECONDS + 15
    place.held_by("far 1b2c ?", age=SECONDS)
    assert seconds_to_take(place.lease("next")) > SECONDS * 0.8, "what it has not seen itself does not count"


def test_dead_process_of_this_machine_is_succeeded_at_once(place: Place) -> None:
    machine, pid, started = _process_mark().split(":")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for mark in (f"{machine}:{dead.pid}:{started}", f"{machine}:{pid}:{int(started) - 1}"):  # its pid may be reused
        place.held_by(f"before 1b2c {mark}")
        lease = place.lease("after", seconds=60)
        assert seconds_to_take(lease) < 30
        lease.stop(release=False)
    place.held_by(f"before 1b2c {machine}:{pid}:{started}")
    waiting = place.lease("after", seconds=60).take()
    with pytest.raises(FutureTimeout):
        waiting.result(1)


def test_clock_of_the_database_set_back_does_not_keep_a_dead_holder(place: Place) -> None:
    place.held_by("far 1b2c ffffffffffffffff:1:1", age=-3600)
    assert seconds_to_take(place.lease("near")) < SECONDS + 15


@pytest.mark.extended
def test_clock_of_the_database_set_ahead_deposes_nobody_who_is_heard(place: Place) -> None:
    """As a standby sees it just after the step: the last renewal is an hour old."""
    first, second = place.lease("first"), place.lease("second")
    first.take().result(20)
    waiting = second.take()
    second.standing_by.result(20)
    for _ in range(3):
        place.execute("UPDATE lease SET renewed_at = renewed_at - interval '1 hour'")
        with pytest.raises(FutureTimeout):
            waiting.result(SECONDS)
    assert first.confirm()
    assert place.lost == []


def test_one_of_many_that_wait_takes_it(place: Place) -> None:
    place.held_by("far 1b2c ffffffffffffffff:1:1")
    asked = [place.lease(f"node-{number}").take() for number in range(5)]
    wait(asked, timeout=30, return_when=FIRST_COMPLETED)
    time.sleep(1.5 * SECONDS)
    assert sum(future.done() for future in asked) == 1
    assert place.execute("SELECT epoch FROM lease") == [(8,)]


def test_holder_that_lost_it_hears_of_it_and_confirms_nothing(place: Place) -> None:
    first = place.lease("first")
    first.take().result(20)
    assert first.confirm()
    place.execute("UPDATE lease SET node = 'rival 1 ?', epoch = epoch + 1")
    deadline = time.monotonic() + 20
    while not place.lost and time.monotonic() < deadline:
        time.sleep(0.02)
    assert place.lost == ["first: the lease went to rival"]
    assert not first.confirm()


def test_confirm_asks_the_database_when_time_has_passed_unseen(place: Place) -> None:
    """As after SIGCONT: the first question is not answered from what was known before."""
    first = place.lease("first")
    first.take().result(20)
    first._certain_until = 0.0
    assert first.confirm(), "the lease is still its own, and it asked"
    place.execute("UPDATE lease SET node = 'rival 1 ?'")
    first._certain_until = 0.0
    assert not first.confirm()


def test_lost_connection_keeps_the_lease(place: Place) -> None:
    first = place.lease("first")
    first.take().result(20)
    for _ in range(3):
        place.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = %s",
            LEASE_KEEPER,
        )
        time.sleep(SECONDS / 2)
    assert first.confirm()
    assert place.lost == []


@pytest.mark.parametrize(
    ("session", "statement"),
    [
        (f"{WRITER} 1b2c", "UPDATE lease SET renewed_at = now()"),
        pytest.param(
            "jiaozi-ledger far",
            "INSERT INTO history_run (first_seq, last_seq) VALUES (1, 4)",
            marks=pytest.mark.extended,
        ),
        pytest.param(
            "jiaozi-ledger closing",
            "INSERT INTO closing_page (closing, page, leaves) VALUES (1, 0, 'x')",
            marks=pytest.mark.extended,
        ),
        pytest.param("jiaozi-log far 1b2c", "UPDATE lease SET renewed_at = renewed_at", marks=pytest.mark.extended),
    ],
)
def test_earlier_writers_sessions_are_ended_before_the_lease_is_taken(
    place: Place, session: str, statement: str
) -> None:
    """One that stopped inside a transaction would keep what it has half written locked for ever."""
    place.held_by("far 1b2c ffffffffffffffff:1:1", age=60)
    url = dsn(as_service(place.url))
    with (
        psycopg.connect(url, application_name=session) as writer,
        psycopg.connect(url, application_name=LEASE_KEEPER) as standby,
        psycopg.connect(dsn(place.url)) as bystander,
    ):
        writer.execute(statement.encode())  # uncommitted
        assert seconds_to_take(place.lease("near")) < SECONDS + 15
        with pytest.raises(psycopg.OperationalError):
            writer.execute("SELECT 1")
        standby.execute("SELECT 1")
        bystander.execute("SELECT 1")


@pytest.mark.parametrize("error", [OSError("no memory"), subprocess.TimeoutExpired("pg_ctl", 1)], ids=repr)
def test_server_that_does_not_come_back_at_once_is_asked_again(error: Exception) -> None:
    called: list[float] = []

    def revive() -> None:
        called.append(time.monotonic())
        raise error

    database = Database("postgresql://nobody@127.0.0.1:1/none", application_name="test")
    lease = Lease(database, node="near", lost=lambda reason: None, seconds=SECONDS, revive=revive)
    waiting = lease.take()
    deadline = time.monotonic() + 30
    while len(called) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    lease.stop(release=False)
    assert len(called) >= 3
    assert waiting.cancelled()


def test_clock_error_is_measured_against_the_database(place: Place) -> None:
    first = place.lease("first")
    first.take().result(20)
    now = to_micros(system_clock())
    assert abs(first.clock_error(now)) < 1_000_000
    assert 3_599_000_000 < first.clock_error(now + 3_600_000_000) < 3_601_000_000


def test_stop_ends_a_wait(place: Place) -> None:
    place.held_by("far 1b2c ffffffffffffffff:1:1", age=-3600)
    lease = place.lease("near", seconds=60)
    waiting = lease.take()
    lease.standing_by.result(20)
    lease.stop(release=False)
    assert waiting.cancelled()

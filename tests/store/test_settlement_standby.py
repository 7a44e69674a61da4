"""Goal: an engine that stands still (SIGSTOP, a paused machine) keeps nothing locked, and does not push in afterwards.

Method: two logs on one real database, the first with its transaction open; and the worker with an engine that fails as
one does whose session the database has ended meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from kernel.clock import system_clock
from kernel.database import Database
from settlement.store import tables as t
from settlement.store.decision_log import DecisionLog
from settlement.usecases.settle import Engine
from settlement.usecases.worker import Worker

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    return fresh_database("settlement")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    found = Database(url, application_name="engine", pool_size=2, idle_transaction_timeout_ms=200)
    yield found
    found.close()


def test_a_writer_that_stands_still_keeps_nobody_from_the_lease(url: str, database: Database) -> None:
    others = Database(url, application_name="other", pool_size=2)
    assert DecisionLog(database).take_lease(holder="first", now=NOW) == 1
    epochs: list[int] = []

    def stand_still() -> None:
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(t.lease.update().values(renewed_at=NOW))  # as every write of an engine begins
            epochs.append(DecisionLog(others).take_lease(holder="second", now=NOW))
            connection.execute(sa.select(t.lease.c.epoch))

    began = time.monotonic()
    with pytest.raises(DBAPIError):
        stand_still()
    others.close()
    assert epochs == [2]
    assert 0.1 < time.monotonic() - began < 20


class FailingEngine:
    """Works for a while, then meets the error of a session that was ended."""

    def __init__(self, log: DecisionLog, other: DecisionLog | None) -> None:
        self.starts, self.epoch, self.holder = 0, 0, "mine"
        self._log, self._other = log, other

    def start(self) -> None:
        self.starts += 1
        self.epoch = self._log.take_lease(holder=self.holder, now=system_clock())

    def tick(self) -> bool:
        if self._other is not None:
            self._other.take_lease(holder="another", now=system_clock())
            self._other = None
        raise OSError("terminating connection due to idle-in-transaction timeout")


@pytest.mark.parametrize("is_taken", [True, False])
def test_after_an_error_an_engine_leaves_the_lease_to_whoever_took_it(database: Database, is_taken: bool) -> None:
    log = DecisionLog(database)
    engine = FailingEngine(log, log if is_taken else None)
    worker = Worker(cast(Engine, engine), log, clock=system_clock, standby=timedelta(seconds=60))
    worker.start()
    deadline = time.monotonic() + 30
    while (worker.status != "standby" if is_taken else engine.starts < 2) and time.monotonic() < deadline:
        time.sleep(0.01)
    status, starts = worker.status, engine.starts
    worker.stop()

    found = log.lease()
    assert found is not None
    assert (status == "standby", starts >= 2, found[1]) == (is_taken, not is_taken, "another" if is_taken else "mine")

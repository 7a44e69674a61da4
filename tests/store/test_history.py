"""The history of an account: whatever is sealed, in memory, or on the border, it is what the journal says."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.database import CheckedConnection, Database
from kernel.errors import ProblemError
from ledger.store import history as history_module
from ledger.store.history import History
from tests.roles import as_service, dsn
from tests.sequencer_world import Item, SequencerWorld

RUN = 200


class Scene:
    """A ledger with a hot account, some others, tombstones, and many sealed runs."""

    def __init__(self, url: str) -> None:
        self.world = SequencerWorld(url)
        self.database = Database(as_service(url), application_name="test")
        self.history = self.follow()
        self.accounts = [self.world.vault(100_000) for _ in range(5)]
        self.quiet = self.world.vault(10)

    def follow(self) -> History:
        history = History(self.database, run_transfers=RUN)
        self.world.sequencer._followers.append(lambda block: history.follow(block.transfers))
        history.start()
        return history

    def book(self, count: int, seed: int) -> None:
        choice = random.Random(seed)
        hot = self.accounts[0]
        while count > 0:
            size = min(count, choice.choice([1, 7, 90, 260]))
            items = []
            for _ in range(size):
                debit, credit = choice.sample(self.accounts, 2)
                items.append(Item("payment", *((debit, hot) if debit != hot else (hot, credit)), 1))
            self.world.submit(*items)
            if choice.random() < 0.2:
                self.world.submit(Item("void", hold=UUID(int=choice.getrandbits(128))))
                count -= 1
            count -= size

    def wanted(self, account: int, after: int, through: int, limit: int, newest_first: bool) -> list[tuple[int, UUID]]:
        order = "DESC" if newest_first else "ASC"
        with psycopg.connect(dsn(self.world.url)) as connection:
            return connection.execute(
                "SELECT seq, id FROM transfer WHERE %s IN (debit_account, credit_account) AND seq > %s AND seq <= %s"
                f" ORDER BY seq {order} LIMIT %s",
                (account, after, through, limit),
            ).fetchall()

    def found(self, account: int, after: int, through: int, limit: int, newest_first: bool) -> list[tuple[int, UUID]]:
        with self.database.session(is_lazy=True) as connection:
            entries = self.history.find(
                connection, account, after_seq=after, through_seq=through, limit=limit, newest_first=newest_first
            )
        return [(entry.seq, entry.id) for entry in entries]

    def runs(self) -> list[tuple[int, int]]:
        with psycopg.connect(dsn(self.world.url)) as connection:
            return connection.execute("SELECT first_seq, last_seq FROM history_run ORDER BY first_seq").fetchall()

    def wait_for_runs(self, count: int) -> None:
        deadline = time.monotonic() + 20
        while len(self.runs()) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.runs())} runs, not {count}")
            time.sleep(0.01)

    def close(self) -> None:
        self.history.stop()
        self.world.close()
        self.database.close()


@pytest.fixture
def scene(fresh_database: Callable[[str], str]) -> Iterator[Scene]:
    scene = Scene(fresh_database("ledger"))
    yield scene
    scene.close()


def test_any_page_of_any_account_is_what_the_journal_says(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "RUNS_AT_ONCE", 3)
    scene.book(2_500, seed=1)
    scene.world.submit(Item("payment", scene.accounts[1], scene.quiet, 1))
    scene.book(700, seed=2)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    scene.wait_for_runs(last // RUN)

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        account=st.sampled_from([*scene.accounts, scene.quiet, 1, 999]),
        span=st.tuples(st.integers(0, last), st.integers(0, last)),
        limit=st.integers(1, 400),
        newest_first=st.booleans(),
    )
    def compare(account: int, span: tuple[int, int], limit: int, newest_first: bool) -> None:
        after, through = sorted(span)
        asked = (account, after, through, limit, newest_first)
        assert scene.found(*asked) == scene.wanted(*asked)

    compare()
    runs = scene.runs()
    assert [first for first, _ in runs] == list(range(1, len(runs) * RUN + 1, RUN))
    assert all(end - first == RUN - 1 for first, end in runs)


def test_a_restart_reads_what_is_not_sealed_and_a_second_indexer_does_no_harm(scene: Scene) -> None:
    scene.book(900, seed=3)
    scene.history.stop()
    scene.world.sequencer._followers.clear()
    scene.book(1_100, seed=4)  # nobody follows
    first, second = scene.follow(), scene.follow()
    scene.history = first
    scene.book(500, seed=5)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    scene.wait_for_runs(last // RUN)
    for account in scene.accounts:
        for newest_first in (False, True):
            assert scene.found(account, 0, last, 5_000, newest_first) == scene.wanted(
                account, 0, last, 5_000, newest_first
            )
    second.stop()


def test_sealing_goes_on_after_the_database_refused(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "RETRY_SECONDS", 0.05)
    original, refused = history_module._write_run, []

    def write(*arguments: object) -> None:
        if len(refused) < 3:
            refused.append(1)
            raise psycopg.OperationalError("no space left on device")
        original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(history_module, "_write_run", write)
    scene.book(1_000, seed=6)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    assert scene.found(scene.accounts[0], 0, last, 9_000, False) == scene.wanted(
        scene.accounts[0], 0, last, 9_000, False
    )
    scene.wait_for_runs(last // RUN)
    assert len(refused) == 3


def test_a_missed_block_is_read_from_the_journal(scene: Scene) -> None:
    """A reader is told to come back, never shown a history with a hole."""
    scene.book(300, seed=7)
    scene.history._current_tail()
    followers, scene.world.sequencer._followers = scene.world.sequencer._followers, []
    scene.book(50, seed=8)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    hot = scene.accounts[0]
    with pytest.raises(ProblemError, match="retry"):
        scene.found(hot, 0, last, 9_000, False)
    scene.world.sequencer._followers = followers
    scene.book(50, seed=9)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    assert scene.found(hot, 0, last, 9_000, False) == scene.wanted(hot, 0, last, 9_000, False)
    assert scene.found(hot, 0, last, 9_000, True) == scene.wanted(hot, 0, last, 9_000, True)


def test_what_waits_while_the_tail_cannot_be_read_is_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "PENDING_TRANSFERS_MAX", 100)
    monkeypatch.setattr(history_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(history_module, "READ_SECONDS_MAX", 0.2)
    scene.history.stop()
    scene.world.sequencer._followers.clear()
    with monkeypatch.context() as patch:
        patch.setattr(History, "_read_tail", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))
        scene.history = scene.follow()
        scene.book(1_000, seed=10)
        assert sum(len(each) for each in scene.history._pending) <= 100
        with pytest.raises(ProblemError, match="still being read"):
            scene.found(scene.quiet, 0, 1, 10, False)
    monkeypatch.setattr(history_module, "READ_SECONDS_MAX", 10.0)  # now it is read
    last = scene.world.sequencer.account_now(scene.quiet).seq
    hot = scene.accounts[0]
    assert scene.found(hot, 0, last, 9_000, True) == scene.wanted(hot, 0, last, 9_000, True)


@pytest.mark.parametrize(
    ("error", "patience", "said"),
    [
        (ValueError("a bug"), 30.0, "histories are not indexed: ValueError: a bug"),
        (psycopg.OperationalError("the disk is full"), 0.3, "OperationalError: the disk is full"),
        (psycopg.OperationalError("a restart"), 30.0, None),
    ],
)
def test_an_index_that_cannot_be_written_is_said_until_it_can(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, error: Exception, patience: float, said: str | None
) -> None:
    """At once for a bug; for the database only when it is away for long. Nothing is lost meanwhile."""
    write_run = history_module._write_run
    broken = True
    tried = threading.Event()

    def write(connection: CheckedConnection, tail: history_module._Tail, size: int) -> None:
        if broken:
            tried.set()
            raise error
        write_run(connection, tail, size)

    monkeypatch.setattr(history_module, "_write_run", write)
    monkeypatch.setattr(history_module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(history_module, "FAILING_SECONDS_MAX", patience)
    assert scene.history.failure is None
    scene.book(RUN + 50, seed=9)
    assert tried.wait(10)
    time.sleep(0.6)
    failure = scene.history.failure
    assert (failure is None) if said is None else (failure is not None and said in failure)
    broken = False
    scene.wait_for_runs(1)
    deadline = time.monotonic() + 10
    while scene.history.failure is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)

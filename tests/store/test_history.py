"""The history of an account: whatever is sealed, in memory, or on the border, it is what the journal says."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.database import CheckedConnection, Database
from kernel.errors import ProblemError
from ledger.domain.records import JOURNAL
from ledger.store import history as history_module
from ledger.store.copying import CopyLayout, copy_in
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


@pytest.mark.parametrize(
    "slots", [3, *(pytest.param(slots, marks=pytest.mark.extended) for slots in (history_module.MARK_SLOTS, 1))]
)
def test_any_page_of_any_account_is_what_the_journal_says(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    """Also where several accounts, or all, share a place of the marks."""
    monkeypatch.setattr(history_module, "RUNS_AT_ONCE", 3)
    monkeypatch.setattr(history_module, "GROUP_RUNS", 4)
    if slots < history_module.MARK_SLOTS:
        monkeypatch.setattr(history_module, "MARK_SLOTS", 8 * slots)
        monkeypatch.setattr(history_module, "MARKS_A_ROW", 8)
    scene.book(1_500, seed=1)
    scene.world.submit(Item("payment", scene.accounts[1], scene.quiet, 1))
    scene.book(1_000, seed=2)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    scene.wait_for_runs(last // RUN)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
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
    original = history_module._write_run
    refused: list[int] = []

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

    def write(connection: CheckedConnection, *run: Any) -> None:
        if broken:
            tried.set()
            raise error
        write_run(connection, *run)

    monkeypatch.setattr(history_module, "_write_run", write)
    monkeypatch.setattr(history_module, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(history_module, "FAILING_SECONDS_MAX", patience)
    assert scene.history.failure is None
    scene.book(RUN + 50, seed=9)
    assert tried.wait(20)
    time.sleep(0.4)
    deadline = time.monotonic() + 20
    while said is not None and scene.history.failure is None and time.monotonic() < deadline:
        time.sleep(0.02)
    failure = scene.history.failure
    assert (failure is None) if said is None else (failure is not None and said in failure)
    broken = False
    scene.wait_for_runs(1)
    deadline = time.monotonic() + 20
    while scene.history.failure is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def records_of(first_seq: int, sides: Sequence[tuple[int, int]]) -> np.ndarray[Any, Any]:
    records = np.zeros(len(sides), JOURNAL)
    records["seq"] = np.arange(first_seq, first_seq + len(sides))
    records["id_low"] = records["seq"] + 1_000
    for place, (debit, credit) in enumerate(sides):
        records["debit"][place], records["credit"][place] = debit, credit
    return records


@settings(max_examples=200, deadline=None)
@given(data=st.data(), chunk=st.integers(1, 7), first_seq=st.integers(1, 50))
def test_the_tail_finds_what_was_appended(data: st.DataObject, chunk: int, first_seq: int) -> None:
    """Whatever the sizes of blocks; also after whole chunks were sealed, by who has the old tail too."""
    account = st.integers(1, 5)
    transfer = st.one_of(st.permutations(range(1, 6)).map(lambda order: (order[0], order[1])), st.just((0, 0)))
    blocks = data.draw(st.lists(st.lists(transfer, max_size=12), max_size=6))
    tail = history_module._Tail(first_seq, chunk)
    model: list[tuple[int, int, int]] = []
    for block in blocks:
        tail.append(records_of(tail.next_seq, block))
        model.extend((first_seq + len(model), debit, credit) for debit, credit in block)
    assert (tail.count, tail.next_seq) == (len(model), first_seq + len(model))
    sealed = data.draw(st.integers(0, len(model) // chunk)) * chunk
    shorter = tail.without(sealed)
    assert shorter.first_seq == first_seq + sealed
    assert sum(part.count for part in tail.run(sealed)) == sealed
    for which, begins in ((tail, first_seq), (shorter, first_seq + sealed)):
        wanted, newest_first = data.draw(account), data.draw(st.booleans())
        after, through = data.draw(st.integers(0, 120)), data.draw(st.integers(0, 120))
        limit = data.draw(st.integers(1, 10))
        seqs = [seq for seq, *sides in model if wanted in sides and begins <= seq <= through and seq > after]
        found = which.find(wanted, after_seq=after, through_seq=through, limit=limit, newest_first=newest_first)
        assert [entry.seq for entry in found] == (seqs[::-1] if newest_first else seqs)[:limit]
        assert all(entry.id.int == entry.seq + 1_000 for entry in found)


def test_a_chunk_that_grows_while_it_is_read_is_read_at_one_length() -> None:
    class Growing(history_module._Chunk):
        """Two more at every look."""

        grown = 0

        @property
        def count(self) -> int:  # type: ignore[override]
            self.grown += 2
            return self.grown

        @count.setter
        def count(self, count: int) -> None:
            self.grown = count

    chunk = Growing(1, 100)
    assert chunk.sides is not None
    chunk.sides[0][:], chunk.sides[1][:] = 5, 6
    assert chunk.find(5) == [0, 1]


@settings(max_examples=30, deadline=None)
@given(runs=st.lists(st.sets(st.integers(1, 10**12), max_size=40), min_size=1, max_size=8))
def test_each_account_of_each_run_is_marked(runs: list[set[int]]) -> None:
    """A row without a mark is not written."""
    marks = history_module._Marks(0)
    for bit, accounts in enumerate(runs):
        half = np.array_split(np.array(sorted(accounts), ">i8"), 2)
        marks.add(100 + bit, bit, half)
    assert [marks.has(100 + bit) for bit in range(9)] == [bit < len(runs) for bit in range(9)]
    assert all(marks.may_have(100 + bit, bit, account) for bit, accounts in enumerate(runs) for account in accounts)
    assert marks.may_have(999, 0, 5)  # a run that was not marked yet
    width = history_module.MARKS_A_ROW
    layout = CopyLayout([("place", "int8"), ("run", "int8"), ("body", f"bytes:{width}")])
    rows = np.frombuffer(marks.rows(77), layout.dtype)
    assert set(rows["run"].tolist()) <= {77}
    found = {
        int(row["place"]) * width + slot: value
        for row in rows
        for slot, value in enumerate(bytes(row["body"]))
        if value
    }
    wanted: dict[int, int] = {}
    for bit, accounts in enumerate(runs):
        for account in accounts:
            slot = account % history_module.MARK_SLOTS
            wanted[slot] = wanted.get(slot, 0) | 1 << bit
    assert found == wanted
    assert len(rows) == len({slot // width for slot in wanted})


@pytest.mark.parametrize("broken", ["history_page", "history_mark"])
def test_a_run_is_written_whole_or_not_at_all(scene: Scene, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Killed before its pages, or between its pages and its group's marks: it is not there, and is written again."""
    killed = threading.Event()

    def die(cursor: psycopg.Cursor[Any], target: str, rows: bytes) -> None:
        if target.startswith(broken) and not killed.is_set():
            killed.set()
            with psycopg.connect(dsn(scene.world.url), autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_class ON pg_class.oid = relation"
                    " WHERE relname = 'history_run' AND mode = 'RowExclusiveLock'"
                )
                for table in ("history_run", "history_page", "history_mark"):
                    assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        copy_in(cursor, target, rows)

    monkeypatch.setattr(history_module, "copy_in", die)
    monkeypatch.setattr(history_module, "GROUP_RUNS", 1)
    monkeypatch.setattr(history_module, "RETRY_SECONDS", 0.05)
    scene.book(RUN + 30, seed=11)
    last = scene.world.sequencer.account_now(scene.quiet).seq
    scene.wait_for_runs(1)
    assert killed.is_set()
    with psycopg.connect(dsn(scene.world.url)) as connection:
        entries = connection.execute("SELECT sum(length(body)) / 32 FROM history_page").fetchone()
        marked = connection.execute("SELECT sum(bit_count(body)) FROM history_mark").fetchone()
    accounts = {account for account in (1, *scene.accounts, scene.quiet) if scene.wanted(account, 0, RUN, 1, True)}
    assert (entries, marked) == ((sides(scene, RUN),), (len(accounts),))
    for account in accounts:
        assert scene.found(account, 0, last, 900, True) == scene.wanted(account, 0, last, 900, True)


def sides(scene: Scene, through: int) -> int:
    """How many sides of transfers are an account's."""
    with psycopg.connect(dsn(scene.world.url)) as connection:
        row = connection.execute(
            "SELECT count(*) FILTER (WHERE debit_account > 0) + count(*) FILTER (WHERE credit_account > 0)"
            " FROM transfer WHERE seq <= %s",
            (through,),
        ).fetchone()
    return int(row[0]) if row is not None else 0


def test_reading_while_runs_are_sealed(scene: Scene) -> None:
    """Every answer is exact, whichever part of it is in memory, on pages, or on its way there."""

    def book() -> None:
        for seed in range(20, 34):
            scene.book(200, seed=seed)

    booking = threading.Thread(target=book)
    booking.start()
    hot, read = scene.accounts[0], 0
    while booking.is_alive() or read < 20:
        last = scene.world.sequencer.account_now(hot).seq
        for newest_first in (True, False):
            found = scene.found(hot, 0, last, 120, newest_first)
            assert found == scene.wanted(hot, 0, last, 120, newest_first)
        read += 1
    booking.join()
    assert len(scene.runs()) >= 5

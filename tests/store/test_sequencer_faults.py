"""R2, R3. Goal: an unknown commit is read back and never guessed; an id books once; a deposed sequencer writes nothing;
the database's own rules stop an engine that is wrong.

Method: real sequencers on real PostgreSQL; connections are cut at the instant under test by a commit that dies just
before or just after it has done its work. The independent verifier has the last word.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kernel.postgres import EmbeddedPostgresError
from ledger.domain.decide import decide
from ledger.domain.state import LedgerState
from ledger.engine import sequencer as sequencer_module
from ledger.engine import snapshots as snapshots_module
from ledger.engine.sequencer import SequencerUnavailable, SignerRotated
from ledger.store.journal import Journal
from tests.sequencer_world import Item, SequencerWorld, batch_of, names_of


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[SequencerWorld]:
    world = SequencerWorld(fresh_database("ledger"))
    yield world
    world.close()


class DyingCommits:
    """Cuts a connection at COMMIT: `plan` says for each of the next commits whether it lives, or dies `before` it was
    sent or `after` it was done."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.plan: list[str] = []
        self.deaths = 0
        original = psycopg.Connection.commit

        def commit(connection: psycopg.Connection[Any]) -> None:
            fate = self.plan.pop(0) if self.plan and self._is_ours(connection) else "lives"
            if fate != "before":
                original(connection)
            if fate != "lives":
                self.deaths += 1
                connection.close()
                raise psycopg.OperationalError("the connection was cut")

        patch.setattr(psycopg.Connection, "commit", commit)

    @staticmethod
    def _is_ours(connection: psycopg.Connection[Any]) -> bool:
        return threading.current_thread().name.startswith(("sequencer", "journal", "snapshot"))


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> DyingCommits:
    return DyingCommits(monkeypatch)


def rows_of(world: SequencerWorld, *items: Item) -> list[int]:
    """How often each id is in the journal."""
    with psycopg.connect(world.url.replace("+psycopg", "")) as connection:
        return [
            int(row[0])
            for item in items
            for row in connection.execute("SELECT count(*) FROM transfer WHERE id = %s", [item.id])
        ]


# A commit of the block; then of the lease that is taken again; then of the reading back.
FATES = [
    ["after"],
    ["before"],
    ["after", "after"],
    ["after", "before"],
    ["before", "after", "after", "before"],
    ["after", "lives", "after"],
    ["after", "lives", "before", "after", "lives", "after"],
    ["before", "lives", "after", "lives", "after", "lives", "after"],
]


@pytest.mark.parametrize("fates", FATES, ids=" ".join)
def test_lost_answer_of_a_commit_is_read_back_and_booked_once(
    world: SequencerWorld, commits: DyingCommits, fates: list[str]
) -> None:
    payer, payee = world.vault(1_000), world.vault()
    items = [Item("payment", payer, payee, 10) for _ in range(5)]
    commits.plan = list(fates)
    outcome = world.submit(*items)
    assert commits.plan == []
    assert commits.deaths == len([fate for fate in fates if fate != "lives"])
    assert names_of(outcome) == ["booked"] * 5
    assert rows_of(world, *items) == [1] * 5
    assert (world.balance(payer), world.balance(payee)) == (950, 50)
    again = world.submit(*items)
    assert names_of(again) == ["already"] * 5
    assert again.seqs.tolist() == outcome.seqs.tolist()
    assert world.names(Item("payment", payer, payee, 950)) == ["booked"]
    assert world.sequencer.failure is None
    assert world.findings() == []


def _await_snapshot(world: SequencerWorld) -> None:
    """Until none is under way: one begins after the answer, and is written beside the next blocks."""
    deadline = time.monotonic() + 30
    time.sleep(0.2)
    while world.sequencer.is_writing_snapshot:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("fate", ["after", "before"])
def test_lost_answer_of_a_snapshot_leaves_no_hold_behind(
    world: SequencerWorld, commits: DyingCommits, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    payer, payee = world.vault(1_000), world.vault()
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BLOCKS", 1)
    hold = Item("hold", payer, payee, 100, expires_at=world.clock().replace(year=2027))
    original = Journal.write_snapshot

    def doomed(journal: Journal, *arguments: Any, **named: Any) -> None:
        commits.plan = [fate]
        original(journal, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write_snapshot", doomed)
        assert world.names(hold) == ["booked"]
        _await_snapshot(world)
        assert world.picture()["holds"]
    assert commits.deaths == 1
    assert world.names(Item("post", hold=hold.id)) == ["booked"]
    assert world.names(Item("payment", payer, payee, 1)) == ["booked"]
    before = world.picture()
    world.restart(graceful=False)
    assert world.picture() == before
    assert before["holds"] == {}
    assert world.findings() == []


def test_retry_is_answered_with_the_first_booking_though_the_money_is_gone(world: SequencerWorld) -> None:
    payer, payee = world.vault(100), world.vault()
    items = [Item("payment", payer, payee, 60), Item("payment", payer, payee, 40)]
    first = world.submit(*items)
    assert world.names(Item("payment", payer, payee, 1)) == ["insufficient-funds"]
    fresh = Item("payment", payee, payer, 5)
    mixed = world.submit(items[1], fresh, items[0])
    assert names_of(mixed) == ["already", "booked", "already"]
    assert mixed.seqs.tolist() == [first.seqs[1], first.seqs[1] + 1, first.seqs[0]]
    world.restart(graceful=False)
    again = world.submit(*items, fresh)
    assert names_of(again) == ["already"] * 3
    assert again.seqs.tolist() == [*first.seqs.tolist(), mixed.seqs[1]]
    assert world.findings() == []


@pytest.mark.parametrize("change", ["amount", "credit", "kind"])
def test_id_used_again_with_other_content_is_refused(world: SequencerWorld, change: str) -> None:
    payer, payee, third = world.vault(100), world.vault(), world.vault()
    item = Item("payment", payer, payee, 10)
    assert world.names(item) == ["booked"]
    other = {
        "amount": Item("payment", payer, payee, 11, id=item.id),
        "credit": Item("payment", payer, third, 10, id=item.id),
        "kind": Item("refund", payer, payee, 10, id=item.id),
    }[change]
    good = Item("payment", payer, payee, 1)
    assert world.names(other, good) == ["id-already-used", "booked"]
    assert world.names(other) == ["id-already-used"]
    assert rows_of(world, item, good) == [1, 1]
    assert world.balance(payee) == 11


def test_the_same_batch_from_many_threads_at_once_books_once(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    items = [Item("payment", payer, payee, 1) for _ in range(50)]
    futures = [world.sequencer.submit(batch_of(*items)) for _ in range(20)]
    answers = [future.result(20) for future in futures]
    assert {tuple(answer.seqs.tolist()) for answer in answers} == {tuple(answers[0].seqs.tolist())}
    booked = [name for answer in answers for name in names_of(answer)]
    assert booked.count("booked") == 50
    assert booked.count("already") == 50 * 19
    assert world.balance(payee) == 50
    assert world.findings() == []


# --- two sequencers --------------------------------------------------------------------------------------------------


def test_old_sequencer_is_fenced_and_its_unbooked_batch_books_once_at_the_new_one(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    assert world.names(Item("payment", payer, payee, 1)) == ["booked"]
    old = world.sequencer
    began = time.monotonic()
    new = world.start("two")
    assert time.monotonic() - began < 2, "a restart waits for nobody's lease to run out"
    item = Item("payment", payer, payee, 7)
    with pytest.raises(SequencerUnavailable, match="Deposed"):
        world.submit(item, sequencer=old)
    assert rows_of(world, item) == [0]
    assert (old.failure or "").startswith("Deposed")
    with pytest.raises(SequencerUnavailable):
        old.submit(batch_of(Item("payment", payer, payee, 1)))
    assert names_of(world.submit(item, sequencer=new)) == ["booked"]
    assert rows_of(world, item) == [1]
    assert world.findings() == []


def test_old_sequencer_cannot_overwrite_the_snapshot_of_the_new_one(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = world.vault(1_000), world.vault()
    assert world.names(Item("payment", payer, payee, 1)) == ["booked"]
    old = world.sequencer
    new = world.start("two")
    assert names_of(world.submit(Item("payment", payer, payee, 7), sequencer=new)) == ["booked"]
    new.stop()
    old.stop()  # would write the state before the payment of 7
    world.start("three")
    assert world.balance(payee) == 8
    assert world.findings() == []


def test_old_sequencer_whose_connection_dies_is_not_let_back(world: SequencerWorld, commits: DyingCommits) -> None:
    payer, payee = world.vault(1_000), world.vault()
    old = world.sequencer
    world.start("two")
    old._connection.close()
    with pytest.raises(SequencerUnavailable, match="Deposed"):
        world.submit(Item("payment", payer, payee, 7), sequencer=old)
    assert names_of(world.submit(Item("payment", payer, payee, 7))) == ["booked"]
    assert world.findings() == []


def test_sequencer_with_the_same_name_is_a_rival_all_the_same(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    old = world.sequencer
    world.start("one")
    old._connection.close()
    with pytest.raises(SequencerUnavailable, match="Deposed"):
        world.submit(Item("payment", payer, payee, 7), sequencer=old)


# --- the second lock -------------------------------------------------------------------------------------------------


def _overdraw(world: SequencerWorld, account: int, other: int) -> None:
    """Corrupt the engine's memory: money that the account does not have has left it."""

    def corrupt(state: LedgerState) -> None:
        state.debits_posted[account] += 5_000
        state.credits_posted[other] += 5_000

    world.sequencer.read(corrupt).result(10)


@pytest.mark.parametrize("engine_notices", [True, False])
def test_corrupt_balance_stops_the_writes_at_the_snapshot(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch, engine_notices: bool
) -> None:
    """By the engine's own sums, or, if those were blind, by the CHECK on the balance tables."""
    payer, payee, third = world.vault(1_000), world.vault(), world.vault(500)
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BLOCKS", 2)
    if not engine_notices:
        monkeypatch.setattr(LedgerState, "broken_invariant", lambda self: None)
    _overdraw(world, payer, payee)
    answers = []
    for _ in range(4):
        try:
            answers.append(world.names(Item("payment", third, payee, 1))[0])
        except SequencerUnavailable:
            answers.append("stopped")
        _await_snapshot(world)
    assert answers in (["booked", "stopped", "stopped", "stopped"], ["stopped"] * 4)
    wanted = "InvariantBroken: I3" if engine_notices else "InvariantBroken: balance_page_i3"
    assert (world.sequencer.failure or "").startswith(wanted)
    monkeypatch.undo()
    world.start()
    assert world.balance(payer) == 1_000, "the journal was right, and so is the ledger after a restart"
    assert world.findings() == []


def test_journal_refuses_a_transfer_that_breaks_i1_and_the_writes_stop(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = world.vault(1_000), world.vault()
    real = decide

    def broken(*arguments: Any, **named: Any) -> Any:
        decision = real(*arguments, **named)
        decision.journal["credit"] = decision.journal["debit"]
        return decision

    monkeypatch.setattr(sequencer_module, "decide", broken)
    item = Item("payment", payer, payee, 7)
    with pytest.raises(SequencerUnavailable, match="transfer_i1"):
        world.submit(item)
    monkeypatch.undo()
    with pytest.raises(SequencerUnavailable):
        world.submit(item)
    assert rows_of(world, item) == [0]
    world.start()
    assert world.names(item) == ["booked"]


def test_storage_that_refuses_to_write_refuses_the_batch_and_goes_on(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk: an error with the connection alive. Nothing was written, and the ledger does not stop."""
    payer, payee = world.vault(1_000), world.vault()
    monkeypatch.setattr(sequencer_module, "STORAGE_ATTEMPTS_MAX", 2)
    monkeypatch.setattr(sequencer_module, "STORAGE_REST_SECONDS", 1.0)
    tries: list[float] = []

    def full(journal: Journal, cursor: Any, header: Any) -> None:
        tries.append(time.monotonic())
        raise psycopg.errors.DiskFull("could not extend file")

    item = Item("payment", payer, payee, 7)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_insert_header", full)
        with pytest.raises(SequencerUnavailable, match="storage"):
            world.submit(item)
        assert len(tries) == 2
        with pytest.raises(SequencerUnavailable, match="storage"):
            world.submit(item)
        assert len(tries) == 2  # refused without a try, so that reads do not wait behind writes
    time.sleep(sequencer_module.STORAGE_REST_SECONDS)
    assert rows_of(world, item) == [0]
    assert world.names(item) == ["booked"]
    assert world.findings() == []


def test_server_that_cannot_be_brought_back_at_first_leaves_no_outcome_unread(
    world: SequencerWorld, commits: DyingCommits
) -> None:
    """COMMIT's answer is lost, the lease's renewal too, and the embedded server does not start at the first try."""
    payer, payee = world.vault(1_000), world.vault()
    tries: list[int] = []

    def revive() -> None:
        tries.append(1)
        if len(tries) == 1:
            raise EmbeddedPostgresError("not yet")

    world.sequencer._revive = revive
    item = Item("payment", payer, payee, 7)
    commits.plan = ["after", "before", "before"]
    assert world.names(item) == ["booked"]
    assert len(tries) >= 1
    assert rows_of(world, item) == [1]
    assert world.names(Item("payment", payer, payee, 8)) == ["booked"]
    assert world.sequencer.failure is None
    assert world.findings() == []


def test_request_signed_with_a_replaced_key_is_not_decided(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    item = Item("payment", payer, payee, 7)
    current = int(world.sequencer._state.participant_key_version[1])
    with pytest.raises(SignerRotated):
        world.sequencer.submit(batch_of(item), signer=(1, current + 1)).result(10)
    assert rows_of(world, item) == [0]
    outcome = world.sequencer.submit(batch_of(item), signer=(1, current)).result(10)
    assert outcome.codes.tolist() == [0]


def test_block_that_memory_cannot_follow_stops_the_writes(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I4: what the journal has and memory has not must not be built upon."""
    payer, payee = world.vault(1_000), world.vault()

    def broken(self: LedgerState, *arguments: Any, **more: Any) -> None:
        raise KeyError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(LedgerState, "absorb", broken)
        with pytest.raises(SequencerUnavailable, match="I4"):
            world.submit(Item("payment", payer, payee, 7))
    assert "cannot follow" in (world.sequencer.failure or "")
    with pytest.raises(SequencerUnavailable):
        world.submit(Item("payment", payer, payee, 8))
    world.restart(graceful=False)
    assert world.names(Item("payment", payer, payee, 9)) == ["booked"]
    assert world.findings() == []

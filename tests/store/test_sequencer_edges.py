"""Edges that a review found: a day that begins with a refusal, an outcome whose reading fails oddly, huge amounts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta

import numpy as np
import psycopg
import pytest

from kernel.database import OutcomeUnknown
from ledger.domain.records import JOURNAL
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from ledger.engine import sequencer as sequencer_module
from ledger.engine.recovery import effects_of
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.store.journal import Block, Journal
from tests.sequencer_world import Item, SequencerWorld


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[SequencerWorld]:
    world = SequencerWorld(fresh_database("ledger"))
    yield world
    world.close()


@pytest.mark.parametrize("kind", ["payment", "hold"])
def test_a_day_that_began_with_a_refusal_is_not_in_the_snapshot(world: SequencerWorld, kind: str) -> None:
    """I9: then the clock is set back 25 s, to before midnight, and the ledger starts again."""
    payer, payee = world.vault(1_000, "daily"), world.vault()  # 100 a day
    expires_at = world.clock() + timedelta(days=3) if kind == "hold" else None
    spent = Item(kind, payer, payee, 100, expires_at=expires_at)
    assert world.names(spent) == ["booked"]
    world.clock.advance(timedelta(hours=12, seconds=10))
    assert world.names(Item("payment", payee, payer, 10**6)) == ["insufficient-funds"]
    world.sequencer.stop()
    assert world.findings() == []
    world.clock.advance(timedelta(seconds=-25))
    world.start()
    assert world.names(Item("payment", payer, payee, 1)) == ["day-limit-exceeded"]
    if kind == "hold":
        assert world.names(Item("void", hold=spent.id)) == ["booked"]
        assert world.sequencer.account_now(payer).spent_day == 0
        assert world.names(Item("payment", payer, payee, 101)) == ["day-limit-exceeded"]
    assert world.findings() == []


@pytest.mark.parametrize("oddity", [OSError(28, "No space left on device"), KeyError("a bug")])
def test_an_outcome_that_cannot_be_read_is_never_taken_for_not_written(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch, oddity: Exception
) -> None:
    """The commit was done and its answer lost; bringing the server back fails first, or what reads it is broken."""
    payer, payee = world.vault(1_000), world.vault()
    append, connect = Journal.append, Sequencer._connect
    deaths, refusals, oddities = [1], [1], [oddity]

    def dying(journal: Journal, block: Block) -> None:
        append(journal, block)
        if deaths:
            deaths.clear()
            journal._connection.close()
            raise OutcomeUnknown("the connection died during COMMIT")

    def refusing(sequencer: Sequencer) -> None:
        if refusals:
            refusals.clear()
            raise psycopg.OperationalError("connection refused")
        connect(sequencer)

    def revive() -> None:
        if oddities:
            raise oddities.pop()

    monkeypatch.setattr(Journal, "append", dying)
    monkeypatch.setattr(Sequencer, "_connect", refusing)
    world.sequencer._revive = revive
    item = Item("payment", payer, payee, 300)
    if isinstance(oddity, OSError):
        assert world.names(item) == ["booked"]
        assert world.sequencer.account_now(payer).balance == 700
    else:
        with pytest.raises(SequencerUnavailable, match="could not be read"):
            world.submit(item)
        assert (world.sequencer.failure or "").startswith("InvariantBroken")
    world.start()
    assert world.names(item) == ["already"]


def test_huge_amounts_replay_in_unbounded_integers(world: SequencerWorld) -> None:
    """Sums of a block in 63 bits would wrap: the decision leaves such amounts to the ordered part, so does replay."""
    journal = np.zeros(7, JOURNAL)
    journal["kind"], journal["amount"] = KIND_CODE[TransferKind.PAYMENT], 2**61
    journal["debit"], journal["credit"] = world.vault(), world.vault()
    effects = world.sequencer.read(lambda state: effects_of(state, journal, {})).result(10)
    assert len(effects.amount) == 0
    assert effects.running[int(journal["credit"][0])] == [0, 7 * 2**61, 0, 0, 0, 0]
    assert effects.running[int(journal["debit"][0])] == [7 * 2**61, 0, 0, 0, 7 * 2**61, 7 * 2**61]


def test_expiries_of_ended_holds_are_forgotten(world: SequencerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer_module, "EXPIRIES_SPARE", 10)
    payer, payee = world.vault(1_000), world.vault()
    for _ in range(40):
        hold = Item("hold", payer, payee, 5, expires_at=world.clock() + timedelta(days=300_000))
        assert world.names(hold) == ["booked"]
        assert world.names(Item("void", hold=hold.id)) == ["booked"]
    assert len(world.sequencer._expiries) <= 12
    assert world.findings() == []

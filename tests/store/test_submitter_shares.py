"""What one signer may have in the sequencer's queue.

Goal: a share is taken for as long as its transfers wait, not for as long as somebody waits for them; else a ledger
whose database is stalled collects without bound what impatient clients send again.
Method: a real sequencer whose thread a read keeps busy, so that the queue stands still.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from kernel.errors import ProblemError, RequestRefusal
from ledger.domain.vocabulary import LedgerRefusal
from ledger.usecases import submit
from ledger.usecases.keyring import Keyring
from ledger.usecases.submit import Submitter
from tests.sequencer_world import Item, SequencerWorld, batch_of

SHARE = 3


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[SequencerWorld]:
    world = SequencerWorld(fresh_database("ledger"))
    yield world
    world.close()


def test_share_is_given_back_when_the_sequencer_has_answered(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submit, "IN_FLIGHT_TRANSFERS_MAX", SHARE)
    debit, credit = world.vault(100), world.vault()
    state = world.sequencer.read(lambda state: state).result(10)
    submitter = Submitter(
        world.sequencer,
        Keyring(state),
        world.running[0][1],
        ledger=state.ledger,
        currency=state.currency,
        clock=world.clock,
        verifier_threads=1,
        answer_seconds_max=0.2,
    )
    goes_on = threading.Event()
    stalled = world.sequencer.read(lambda state: goes_on.wait(30))

    async def refusal_of_two() -> object:
        try:
            items = [Item("payment", debit, credit, 1) for _ in range(2)]
            await submitter.book(batch_of(*items), caller=None)
        except ProblemError as error:
            return error.refusal
        return None

    async def scenario() -> None:
        assert await refusal_of_two() is LedgerRefusal.OUTCOME_UNKNOWN
        assert await refusal_of_two() is RequestRefusal.TOO_MANY_REQUESTS, "the first two still wait"
        goes_on.set()
        while submitter._in_flight:
            await asyncio.sleep(0.01)
        submitter._answer_seconds_max = 10
        assert await refusal_of_two() is None
        await asyncio.sleep(0)
        assert submitter._in_flight == {}

    try:
        asyncio.run(asyncio.wait_for(scenario(), 20))
    finally:
        goes_on.set()
        submitter.close()
    assert stalled.result(10)
    assert world.sequencer.account_now(credit).balance == 4, "what nobody waited for was booked"

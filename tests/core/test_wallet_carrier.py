"""Goal: what waits while a batch is under way forms the next one; a second leaves beside it only if it is no smaller;
whoever asked is answered, whatever becomes of his batch.
Method: the carrier with a `pay` that returns when the test says so.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import LedgerRefusal
from wallet.usecases import carrier
from wallet.usecases.carrier import CARRIED_TOGETHER_MAX, WAITING_MAX, Carrier
from wallet.usecases.pay import Declined


class Till:
    """`pay`, a batch at a time and only when let."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.let: list[threading.Event] = []
        self.changed = threading.Condition()

    def pay(self, context: Any, tokens: Sequence[str]) -> list[Declined]:
        done = threading.Event()
        with self.changed:
            self.batches.append(list(tokens))
            self.let.append(done)
            self.changed.notify_all()
        done.wait(10)
        if "broken" in tokens:
            raise RuntimeError("broken")
        return [Declined(None, LedgerRefusal.INSTRUCTION_INVALID, token) for token in tokens]

    def wait_for(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.batches) >= count, 10)


@pytest.fixture
def till(monkeypatch: pytest.MonkeyPatch) -> Till:
    till = Till()
    monkeypatch.setattr(carrier, "pay", till.pay)
    return till


async def _ask(carrier: Carrier, *tokens: str) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.create_task(carrier.carry(token)) for token in tokens]
    await asyncio.sleep(0)  # each has joined the line
    return tasks


def test_a_second_batch_leaves_only_if_it_is_no_smaller_or_the_first_is_back(till: Till) -> None:
    async def scenario() -> None:
        subject = Carrier(None)  # type: ignore[arg-type]
        first = await _ask(subject, "a", "b", "c")
        subject.start()
        await asyncio.to_thread(till.wait_for, 1)
        second = await _ask(subject, "d", "e")
        await asyncio.sleep(0.05)
        assert till.batches == [["a", "b", "c"]]  # two wait: fewer than are under way
        second += await _ask(subject, "f")
        await asyncio.to_thread(till.wait_for, 2)
        assert till.batches[1] == ["d", "e", "f"]
        third = await _ask(subject, "g")
        await asyncio.sleep(0.05)
        assert len(till.batches) == 2
        till.let[0].set()
        assert [outcome.detail for outcome in await asyncio.gather(*first)] == ["a", "b", "c"]
        till.let[1].set()
        await asyncio.gather(*second)
        await asyncio.to_thread(till.wait_for, 3)
        till.let[2].set()
        assert [outcome.detail for outcome in await asyncio.gather(*third)] == ["g"]
        await asyncio.to_thread(subject.stop)

    asyncio.run(scenario())


def test_a_failing_batch_answers_all_of_its_own_and_the_next_goes_on(till: Till) -> None:
    async def scenario() -> None:
        subject = Carrier(None)  # type: ignore[arg-type]
        broken = await _ask(subject, "broken", "beside")
        subject.start()
        await asyncio.to_thread(till.wait_for, 1)
        till.let[0].set()
        assert [type(error) for error in await asyncio.gather(*broken, return_exceptions=True)] == [RuntimeError] * 2
        well = await _ask(subject, "well")
        await asyncio.to_thread(till.wait_for, 2)
        till.let[1].set()
        assert [outcome.detail for outcome in await asyncio.gather(*well)] == ["well"]
        await asyncio.to_thread(subject.stop)

    asyncio.run(scenario())


def test_the_line_is_bounded_and_what_waits_at_the_end_is_carried(till: Till) -> None:
    async def scenario() -> None:
        subject = Carrier(None)  # type: ignore[arg-type]
        tasks = await _ask(subject, *(str(number) for number in range(WAITING_MAX)))
        with pytest.raises(ProblemError) as refused:
            await subject.carry("one more")
        assert refused.value.refusal is RequestRefusal.SERVICE_UNAVAILABLE
        subject.start()
        stopping = asyncio.create_task(asyncio.to_thread(subject.stop))
        done = 0
        while done < WAITING_MAX // CARRIED_TOGETHER_MAX:
            await asyncio.to_thread(till.wait_for, done + 1)
            till.let[done].set()
            done += 1
        assert len(await asyncio.gather(*tasks)) == WAITING_MAX
        await stopping
        with pytest.raises(ProblemError):
            await subject.carry("too late")

    asyncio.run(scenario())

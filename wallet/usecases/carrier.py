"""Single payments of many holders, carried together: what waits while one batch is under way forms the next.

A payment alone would cost two transactions and a request to the ledger, signed and checked; a hundred cost the same.
An idle service carries a lone payment at once. Only after a batch of several does the next wait a moment: whoever was
answered comes back.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from kernel.errors import ProblemError, RequestRefusal
from wallet.usecases.context import Context
from wallet.usecases.pay import Outcome, pay

CARRIED_TOGETHER_MAX = 256
"""Bounds how long a payment waits for its batch's commit."""
WAITING_MAX = 4_096
"""Payments that may wait; beyond it they are refused at once."""
CARRIERS = 2
"""Batches under way at once: one is recorded here while the ledger books the other."""
COME_BACK_SECONDS = 0.003
"""After a batch of several, the next waits so long at most until it is as large, if nothing else is under way."""

log = logging.getLogger("jiaozi.wallet.carrier")


@dataclass(frozen=True, slots=True)
class _Waiting:
    token: str
    future: asyncio.Future[Outcome]


class Carrier:
    """Threads that carry waiting payments. Its callers share one event loop; `start` and `stop` are anybody's."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_stopping = False
        self._waiting: deque[_Waiting] = deque()
        self._under_way: list[int] = []
        """Sizes of the batches under way."""
        self._changed = threading.Condition()
        """Guards the three above; told when a batch may leave."""
        self._threads = [
            threading.Thread(target=self._run, name=f"carrier-{number}", daemon=True) for number in range(CARRIERS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Carry what waits, then end. Nothing is taken in any more. Blocks."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    async def carry(self, token: str) -> Outcome:
        """The outcome of one signed instruction. Raises: ProblemError(SERVICE_UNAVAILABLE) when too many wait or
        the service is ending."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        with self._changed:
            if self._is_stopping:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the service is ending; retry")
            if len(self._waiting) >= WAITING_MAX:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "too many payments wait; retry")
            self._waiting.append(_Waiting(token, future))
            if self._may_leave():
                self._changed.notify_all()
        return await future

    def _may_leave(self) -> bool:
        """What a batch costs whatever its size (two transactions, a signed request, a block) is most of what a small
        one costs. So a batch leaves beside another only if it is no smaller; else it waits for that one's return."""
        if not self._waiting:
            return False
        return self._is_stopping or not self._under_way or len(self._waiting) >= max(self._under_way)

    def _run(self) -> None:
        carried = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._may_leave() or (self._is_stopping and not self._waiting))
                if carried > 1 and not self._under_way:
                    self._await(carried)
                    if not self._may_leave() and not self._is_stopping:
                        continue  # the other thread has taken them
                batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), CARRIED_TOGETHER_MAX))]
                if not batch:
                    return
                self._under_way.append(len(batch))
                carried = len(batch)
            try:
                self._carry(batch)
            finally:
                with self._changed:
                    self._under_way.remove(len(batch))
                    if self._may_leave():
                        self._changed.notify_all()

    def _await(self, size: int) -> None:
        """Until so many wait, another batch has left, or the moment has passed."""
        self._changed.wait_for(
            lambda: len(self._waiting) >= size or self._under_way or self._is_stopping, COME_BACK_SECONDS
        )

    def _carry(self, batch: list[_Waiting]) -> None:
        """One call into the event loop a batch: each would wake it by itself otherwise."""
        outcomes: Sequence[Outcome | Exception]
        try:
            outcomes = pay(self._context, [item.token for item in batch])
        except Exception as error:  # each waiting request answers for itself; the thread goes on
            if not isinstance(error, ProblemError):
                log.warning("a batch of %d payments failed: %s", len(batch), type(error).__name__)
            outcomes = [error] * len(batch)
        try:
            batch[0].future.get_loop().call_soon_threadsafe(_answer, batch, outcomes)
        except RuntimeError:
            log.warning("%d payments ended after the requests that brought them", len(batch))


def _answer(batch: Sequence[_Waiting], outcomes: Sequence[Outcome | Exception]) -> None:
    for item, outcome in zip(batch, outcomes, strict=True):
        if item.future.done():  # whoever asked has gone
            continue
        if isinstance(outcome, Exception):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)

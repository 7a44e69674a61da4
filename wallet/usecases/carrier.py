"""Single payments of many holders, carried together: what waits while one batch is under way forms the next.

A payment alone would cost two transactions and a request to the ledger, signed and checked; a hundred cost the same.
Nobody waits for a timer: an idle service carries a lone payment at once.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from kernel.errors import ProblemError, RequestRefusal
from wallet.usecases.context import Context
from wallet.usecases.pay import Outcome, pay

CARRIED_TOGETHER_MAX = 256
"""Bounds how long a payment waits for its batch's commit."""
WAITING_MAX = 4_096
"""Payments that may wait; beyond it they are refused at once."""
CARRIER_THREADS = 1
"""The next batch gathers while one is under way. With two threads batches are half as large, and what a batch costs
whatever its size (two transactions, a signed request, a block) was 100 us more a payment; more gained nothing."""

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
        self._closing = threading.Lock()
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"carrier-{number}", daemon=True)
            for number in range(CARRIER_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Carry what waits, then end. Nothing is taken in any more. Blocks."""
        with self._closing:
            self._is_stopping = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    async def carry(self, token: str) -> Outcome:
        """The outcome of one signed instruction. Raises: ProblemError(SERVICE_UNAVAILABLE) when too many wait or
        the service is ending."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        with self._closing:  # or a payment might slip in behind the marks that end the threads, and wait for ever
            if self._is_stopping:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the service is ending; retry")
            if self._waiting.qsize() >= WAITING_MAX:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "too many payments wait; retry")
            self._waiting.put(_Waiting(token, future))
        return await future

    def _run(self) -> None:
        is_ending = False
        while not is_ending:
            first = self._waiting.get()
            if first is None:
                return
            batch = [first]
            while len(batch) < CARRIED_TOGETHER_MAX:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    is_ending = True
                    break
                batch.append(following)
            self._carry(batch)

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

"""Single payments of many holders, carried together: what waits while one batch is under way forms the next.

A payment alone would cost two transactions and a request to the ledger, signed and checked; a hundred cost the same.
Nobody waits for a timer: an idle service carries a lone payment at once.
"""

from __future__ import annotations

import logging
import queue
import threading
from concurrent.futures import Future

from kernel.errors import ProblemError, RequestRefusal
from wallet.usecases.context import Context
from wallet.usecases.pay import Outcome, pay

CARRIED_TOGETHER_MAX = 256
"""Bounds how long a payment waits for its batch's commit."""
WAITING_MAX = 4_096
"""Payments that may wait; beyond it they are refused at once."""
CARRIER_THREADS = 2
"""One batch is with the ledger while the next is checked."""

log = logging.getLogger("jiaozi.wallet.carrier")


class Carrier:
    """Threads that carry waiting payments. Thread-safe."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._is_stopping = False
        self._closing = threading.Lock()
        self._waiting: queue.Queue[tuple[str, Future[Outcome]] | None] = queue.Queue(WAITING_MAX)
        self._threads = [
            threading.Thread(target=self._run, name=f"carrier-{number}", daemon=True)
            for number in range(CARRIER_THREADS)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Carry what waits, then end. Nothing is taken in any more."""
        with self._closing:
            self._is_stopping = True
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, token: str) -> Future[Outcome]:
        """The outcome of one signed instruction. Raises: ProblemError(SERVICE_UNAVAILABLE) when too many wait or
        the service is ending."""
        future: Future[Outcome] = Future()
        with self._closing:  # or a payment might slip in behind the marks that end the threads, and wait for ever
            if self._is_stopping:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the service is ending; retry")
            try:
                self._waiting.put_nowait((token, future))
            except queue.Full:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "too many payments wait; retry") from None
        return future

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

    def _carry(self, batch: list[tuple[str, Future[Outcome]]]) -> None:
        live = [(token, future) for token, future in batch if future.set_running_or_notify_cancel()]
        if not live:
            return
        try:
            outcomes = pay(self._context, [token for token, _ in live])
            for (_, future), outcome in zip(live, outcomes, strict=True):
                future.set_result(outcome)
        except Exception as error:  # each waiting request answers for itself; the thread goes on
            if not isinstance(error, ProblemError):
                log.warning("a batch of %d payments failed: %s", len(live), type(error).__name__)
            for _, future in live:
                if not future.done():
                    future.set_exception(error)

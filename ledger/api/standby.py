"""A ledger that may have to wait for its turn: the service, begun in a thread of its own, while HTTP answers already.

As a standby every operation but /healthz, /docs and /openapi.json is refused with a transient 503 that names the
writer, and /healthz is a 503 with the same words, so that a load balancer sends nothing here. When the writer is gone,
this one recovers from the journal and serves. A writer that is deposed answers 503 and is to be stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent import futures
from concurrent.futures import Future
from typing import Any

from kernel.clock import Clock, system_clock
from kernel.errors import ProblemError, RequestRefusal
from ledger.api.service import Service, start_service
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.settings import LedgerSettings

STEP_DOWN_SECONDS = 1.0
"""A deposed ledger answers 503 for so long, so that whoever waits for an answer gets one, and then ends."""

log = logging.getLogger("jiaozi.ledger")


class Starting:
    """One ledger's start. `begin` it, then ask for `service`; `close` it whatever became of it."""

    def __init__(self, settings: LedgerSettings, *, clock: Clock = system_clock) -> None:
        self._settings, self._clock = settings, clock
        self._ready: Future[Service] = Future()
        self._waiting: Future[tuple[Sequencer, str]] = Future()
        self._thread = threading.Thread(target=self._run, name="start", daemon=True)
        self._deposed_at: float | None = None

    def begin(self) -> None:
        """Return when the ledger serves or stands by. Raises what `start_service` raises."""
        self._thread.start()
        either: list[Future[Any]] = [self._ready, self._waiting]
        futures.wait(either, return_when=futures.FIRST_COMPLETED)
        if self._ready.done():
            self._ready.result()

    @property
    def service(self) -> Service:
        """Raises ProblemError(SERVICE_UNAVAILABLE) while it stands by."""
        failure = self._why_not_serving()
        if failure is not None:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, failure)
        return self._ready.result()

    def failure(self) -> str | None:
        """Why it does not do its work, for /healthz."""
        return self._why_not_serving() or self._ready.result().failure

    def is_over(self) -> bool:
        """Should the process end: deposed a while ago, or its turn came and it could not start?"""
        if not self._ready.done():
            return False
        if self._ready.exception() is not None:
            return True
        if not self._ready.result().sequencer.is_deposed:
            return False
        self._deposed_at = self._deposed_at or time.monotonic()
        return time.monotonic() - self._deposed_at > STEP_DOWN_SECONDS

    def close(self) -> None:
        """Stop the service, or its waiting. After a clean stop a standby takes over at once."""
        if not self._ready.done() and self._waiting.done():
            self._waiting.result()[0].stop()
        self._thread.join()
        if self._ready.exception() is None:
            self._ready.result().close()

    def outcome(self) -> None:
        """After `close`: raises what ended the ledger, if it was not the wish to stop it."""
        error = self._ready.exception()
        if error is not None and not isinstance(error, SequencerUnavailable):
            raise error
        if error is None and self._ready.result().sequencer.is_deposed:
            raise SequencerUnavailable(f"stepped down: {self._ready.result().sequencer.failure}")

    def _why_not_serving(self) -> str | None:
        if not self._ready.done():
            writer = self._waiting.result()[1] if self._waiting.done() else "another ledger"
            return f"standing by: {writer} is the writer; this ledger takes over when it is gone"
        error = self._ready.exception()
        return None if error is None else f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        try:
            service = start_service(
                self._settings,
                clock=self._clock,
                standing_by=lambda sequencer, writer: self._waiting.set_result((sequencer, writer)),
            )
            if self._waiting.done():
                log.warning("took over: serving as the writer")
            self._ready.set_result(service)
        except BaseException as error:
            self._ready.set_exception(error)

"""The thread that runs the engine: rounds while there is work, recovery after any failure, standby when deposed."""

from __future__ import annotations

import logging
import threading
from datetime import datetime, timedelta
from typing import Protocol

from kernel.clock import Clock
from kernel.errors import InvariantBroken
from settlement.store.decision_log import Deposed
from settlement.usecases.settle import Engine

log = logging.getLogger("jiaozi.settlement")

IDLE_SECONDS = 0.2
RENEW_EVERY = timedelta(seconds=1)
RESTART_SECONDS_FIRST = 0.2
RESTART_SECONDS_MAX = 5.0


class Lease(Protocol):
    def lease(self) -> tuple[int, str, datetime] | None: ...
    def renew_lease(self, *, epoch: int, now: datetime) -> None: ...


class Worker:
    """`start()` it with the service, `wake()` it when a batch is in, `stop()` it in the end."""

    def __init__(self, engine: Engine, lease: Lease, *, clock: Clock, standby: timedelta) -> None:
        self._engine = engine
        self._lease = lease
        self._clock = clock
        self._standby = standby
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settlement-engine", daemon=True)
        self.status = "starting"
        """For people: running, standby, restarting, halted."""

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Let the round under way end. A longer round is abandoned, as a crash would: recovery knows how."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        pause = RESTART_SECONDS_FIRST
        while not self._stop.is_set():
            try:
                self._engine.start()
                self.status = "running"
                pause = RESTART_SECONDS_FIRST
                self._rounds()
            except Deposed:
                self._stand_by()
            except InvariantBroken:
                # The service stops deciding and a person is paged; the log and the in-doubt list stay readable.
                self.status = "halted"
                log.critical("an invariant is broken: the engine is halted", exc_info=True)
                return
            except Exception:
                self.status = "restarting"
                log.exception("the engine's epoch ended; recovering from the log in %.1f s", pause)
                self._stop.wait(pause)
                pause = min(RESTART_SECONDS_MAX, pause * 2)
                if self._is_taken_by_another():
                    self._stand_by()

    def _rounds(self) -> None:
        renewed = self._clock()
        while not self._stop.is_set():
            self._wake.clear()
            if not self._engine.tick():
                self._wake.wait(self._pause_seconds())
            if self._clock() - renewed >= RENEW_EVERY:
                renewed = self._clock()
                self._lease.renew_lease(epoch=self._engine.epoch, now=renewed)

    def _pause_seconds(self) -> float:
        due = self._engine.next_due()
        if due is None:
            return IDLE_SECONDS
        return min(IDLE_SECONDS, max(0.01, (due - self._clock()).total_seconds()))

    def _is_taken_by_another(self) -> bool:
        """After an error: an engine that stood still for long is told by its database that its session is gone, not
        that it is deposed. It must not take the lease back from an engine that works."""
        try:
            found = self._lease.lease()
        except Exception:
            return False  # `start` will meet the same trouble
        return self._engine.epoch > 0 and found is not None and found[1] != self._engine.holder

    def _stand_by(self) -> None:
        self.status = "standby"
        log.warning("deposed: another engine has the lease; standing by")
        self._wait_for_lease()

    def _wait_for_lease(self) -> None:
        """Until the other engine has not renewed its lease for `standby`. A wrong guess costs a delay, never money."""
        last: tuple[int, datetime] | None = None
        since = self._clock()
        while not self._stop.wait(0.5):
            try:
                found = self._lease.lease()
            except Exception:
                log.warning("standby: the lease cannot be read", exc_info=True)
                continue
            seen = None if found is None else (found[0], found[2])
            if seen != last:  # measured by our clock alone: the other's may be wrong
                last, since = seen, self._clock()
            if self._clock() - since >= self._standby:
                return

"""A thread for what is due by time or by another's doing: gates of the calendar, ends of compliance, quotas given back.

Each pass is one short transaction, bounded, and harmless to repeat or to lose; what fails is tried again. It decides
nothing about money: the engine does, once a gate is open.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime

import sqlalchemy as sa

from kernel.clock import Clock
from kernel.database import Database

log = logging.getLogger("jiaozi.settlement")

EVERY_SECONDS = 0.5
PAUSE_SECONDS_MAX = 5.0
ROUNDS_MAX = 200
"""Passes in a row over one backlog, so that one kind of work does not keep the others waiting."""

Pass = Callable[[sa.Connection, datetime], int]
"""How many things it moved; it is repeated at once while it moves something."""


class Keeper:
    """`start()` it with the service, `wake()` it when something came in, `stop()` it in the end."""

    def __init__(self, passes: Sequence[Pass], *, database: Database, clock: Clock, moved: Callable[[], None]) -> None:
        """`moved` is called after a round that moved something: the engine may have work then."""
        self._passes = tuple(passes)
        self._database = database
        self._clock = clock
        self._moved = moved
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settlement-keeper", daemon=True)

    def start(self) -> None:
        if self._passes:
            self._thread.start()

    def wake(self) -> None:
        self._wake.set()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def round(self) -> int:
        """Every pass until it finds nothing more; how many things moved."""
        total = 0
        for one in self._passes:
            for _ in range(ROUNDS_MAX):
                with self._database.transaction(isolation="READ COMMITTED") as connection:
                    moved = one(connection, self._clock())
                total += moved
                if not moved or self._stop.is_set():
                    break
        return total

    def _run(self) -> None:
        pause = EVERY_SECONDS
        while not self._stop.is_set():
            self._wake.clear()
            try:
                if self.round():
                    self._moved()
                pause = EVERY_SECONDS
            except Exception:
                pause = min(PAUSE_SECONDS_MAX, pause * 2)
                log.exception("a round of the keeper failed; again in %.1f s", pause)
            self._wake.wait(pause)

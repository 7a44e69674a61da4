"""A thread that does periodic work until stopped: at once again while there is some, else after a rest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("jiaozi.wallet.worker")

STOP_SECONDS_MAX = 60.0


class Worker:
    """`work(at_start)` does a bounded piece and says how many items it did; a failure is logged and tried again."""

    def __init__(self, name: str, work: Callable[[bool], int], *, every_seconds: float) -> None:
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends after the piece under way. Blocks."""
        self._stopping.set()
        self._thread.join(timeout=STOP_SECONDS_MAX)

    def _run(self) -> None:
        at_start = True
        while not self._stopping.is_set():
            done = 0
            try:
                done = self._work(at_start)
                at_start = False
            except Exception:
                log.exception("%s failed; it is tried again", self._name)
            if not done and self._stopping.wait(self._every_seconds):
                return

"""A thread that does periodic work until stopped: again while there is some, else after a rest."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger("jiaozi.wallet.worker")

STOP_SECONDS_MAX = 60.0


class Worker:
    """`work(at_start)` does a bounded piece and says how many items it did; a failure is logged and tried again.

    A gentle one rests after each piece for as long as the piece took: payments go on beside it, and none of them waits
    for many pieces in a row.
    """

    def __init__(
        self, name: str, work: Callable[[bool], int], *, every_seconds: float, is_gentle: bool = False
    ) -> None:
        self._name = name
        self._work = work
        self._every_seconds = every_seconds
        self._is_gentle = is_gentle
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
            done, began = 0, time.monotonic()
            try:
                done = self._work(at_start)
                at_start = False
            except Exception:
                log.exception("%s failed; it is tried again", self._name)
            pause = 0.0 if done else self._every_seconds
            if done and self._is_gentle:
                pause = min(self._every_seconds, time.monotonic() - began)
            if pause and self._stopping.wait(pause):
                return

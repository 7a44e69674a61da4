"""The market's clockwork: released sizes go back to their quotes, expired locks are quoted anew or given up."""

from __future__ import annotations

import logging
import threading

from settlement.usecases.market import Market, end_expired_locks, return_released

log = logging.getLogger("jiaozi.settlement.market")

EVERY_SECONDS = 0.5


class MarketWatch:
    """`start()` it with the service, `stop()` it in the end. Several at once do no harm: rows are locked."""

    def __init__(self, market: Market, *, every_seconds: float = EVERY_SECONDS) -> None:
        self._market = market
        self._every_seconds = every_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="settlement-market", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, timeout_seconds: float = 5.0) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def round(self) -> int:
        """Once; how many fills and executions moved."""
        return end_expired_locks(self._market) + return_released(self._market)

    def _run(self) -> None:
        while not self._stop.wait(self._every_seconds):
            try:
                self.round()
            except Exception:
                # The next round does it: nothing is kept in memory.
                log.warning("a round of the market's clockwork failed", exc_info=True)

"""Finish what a crash, a lost answer or an unreachable ledger left behind: at start, and every few seconds."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta

from wallet.usecases import balance_caps
from wallet.usecases.change_recovery import resume_changes
from wallet.usecases.context import Context
from wallet.usecases.exchange import resume_exchanges, resume_payments
from wallet.usecases.interest import resume_interest
from wallet.usecases.offline import resume_offline
from wallet.usecases.request_pass import resume_requests
from wallet.usecases.rule_adoption import adopt_pack
from wallet.usecases.wallets import resume_openings

log = logging.getLogger("jiaozi.wallet.recovery")

_OLD_ENOUGH = timedelta(seconds=10)
"""Younger ones are probably still being worked on by their request. Touching them would be safe, only wasteful."""


@dataclass(frozen=True, slots=True)
class Recovered:
    openings: int
    exchanges: int
    payments: int
    changes: int = 0
    requests: int = 0
    offline: int = 0
    interest: int = 0
    pack: int = 0
    caps: int = 0

    def __bool__(self) -> bool:
        done = (self.openings, self.exchanges, self.payments, self.changes, self.requests, self.offline)
        return any(done) or bool(self.interest or self.pack or self.caps)


def recover(context: Context, *, at_start: bool = False) -> Recovered:
    """One pass. At start nobody else is at work, so nothing is left for its age or claim."""
    older_than = timedelta(0) if at_start else _OLD_ENOUGH
    return Recovered(
        openings=resume_openings(context, older_than=older_than),
        exchanges=resume_exchanges(context, ignore_claims=at_start),
        payments=resume_payments(context, older_than=older_than),
        changes=resume_changes(context, older_than=older_than),
        requests=resume_requests(context, older_than=older_than),
        offline=resume_offline(context, older_than=older_than),
        interest=resume_interest(context),
        pack=adopt_pack(context),
        caps=balance_caps.tell_all(context),
    )


class RecoveryThread:
    """Runs `recover` now and then until stopped; a failing pass is logged and the next one tries again."""

    def __init__(self, context: Context, *, every_seconds: float) -> None:
        self._context = context
        self._every_seconds = every_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wallet-recovery", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        at_start = True
        while True:
            try:
                found = recover(self._context, at_start=at_start)
                at_start = False
                if found:
                    log.info("recovered %s", found)
            except Exception:
                log.exception("a recovery pass failed; the next one tries again")
            if self._stopping.wait(self._every_seconds):
                return

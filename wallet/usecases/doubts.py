"""Whose instructions this service checks by itself before it counts them.

A signature is checked once, in tier 1. But a payment on its way counts towards its payer's limits (I9) until the ledger
has answered, and to send one takes nothing but an account number: whoever floods a holder with forged payments would
use up his allowance for as long as they are on their way. So only an instruction that is alone is taken unchecked. This
service checks the signature itself where

- another of the same account is on its way here, or comes in the same request;
- the ledger has lately refused a signature for that account;
- the ledger does not answer: what is counted then stays counted;
- the payment is known already, so that a forged copy could touch it (`wallet.usecases.pay`).

What is left to a forger is one payment an account that counts for some milliseconds, once in `SUSPECT_SECONDS`.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence

SUSPECT_SECONDS = 600.0
SUSPECTS_MAX = 100_000
"""Accounts remembered; beyond it the longest suspected is forgotten."""


class Doubts:
    """Thread-safe; of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_their_way: Counter[int] = Counter()
        self._suspected: OrderedDict[int, float] = OrderedDict()
        self._is_ledger_silent = False

    def enter(self, accounts: Sequence[int]) -> set[int]:
        """Instructions for these accounts (one each, repeated ones included) are on their way, until `leave`.

        Returns the accounts whose instructions must be checked here.
        """
        with self._lock:
            for account in accounts:
                self._on_their_way[account] += 1
            if self._is_ledger_silent:
                return set(accounts)
            return {account for account in accounts if self._on_their_way[account] > 1 or self._is_suspect(account)}

    def leave(self, accounts: Sequence[int]) -> None:
        with self._lock:
            for account in accounts:
                self._on_their_way[account] -= 1
                if not self._on_their_way[account]:
                    del self._on_their_way[account]

    def suspect(self, accounts: Collection[int]) -> None:
        """The ledger has refused a signature for these accounts."""
        with self._lock:
            for account in accounts:
                self._suspected[account] = time.monotonic() + SUSPECT_SECONDS
                self._suspected.move_to_end(account)
                if len(self._suspected) > SUSPECTS_MAX:
                    self._suspected.popitem(last=False)

    def ledger_answers(self, does: bool) -> None:
        self._is_ledger_silent = not does

    def _is_suspect(self, account: int) -> bool:
        until = self._suspected.get(account)
        if until is None:
            return False
        if until < time.monotonic():
            del self._suspected[account]
            return False
        return True

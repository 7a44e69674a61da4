"""Every account's running totals, kept anew by the verifier: arrays by account number, 92 bytes an account."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ledger.verifier.layout import ISSUANCE, WALLET

TOTALS = ("debits_posted", "credits_posted", "debits_pending", "credits_pending", "spent_day", "spent_year")
DEBITS_POSTED, CREDITS_POSTED, DEBITS_PENDING, CREDITS_PENDING, SPENT_DAY, SPENT_YEAR = range(6)
NOBODY = 4
"""The kind of an account number that was never opened."""
TOTAL_MAX = 2**63 - 1
KEY_BYTES = 34


class TotalOverflow(ValueError):
    """A running total would leave 63 bits: no engine books that."""


class Accounts:
    """`totals[column][account]`, minor units. A balance is credits_posted - debits_posted; available leaves out
    debits_pending."""

    def __init__(self) -> None:
        self.size = 1
        """Accounts are 1 to size - 1; number 0 is nobody."""
        self.totals: list[npt.NDArray[np.int64]] = [np.zeros(1024, np.int64) for _ in TOTALS]
        self.kind: npt.NDArray[np.uint8] = np.full(1024, NOBODY, np.uint8)
        self.participant: npt.NDArray[np.int32] = np.zeros(1024, np.int32)
        self.rule_class: npt.NDArray[np.uint16] = np.zeros(1024, np.uint16)
        self.frozen: npt.NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self.suspended: npt.NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self.capped: npt.NDArray[np.bool_] = np.zeros(1024, np.bool_)
        """Has a cap of its own on its balance."""
        self.closed: npt.NDArray[np.bool_] = np.zeros(1024, np.bool_)
        self.more_keys: dict[int, list[bytes]] = {}
        """Account -> its keys but the first, where a wallet has several."""
        self.announced: dict[int, tuple[bytes, int]] = {}
        """Account -> the key that may replace lost ones, and when it was announced (microseconds)."""
        self.balance_caps: dict[int, tuple[int, int | None]] = {}
        """Account -> (version, what it may hold beside its class's cap; None = no cap of its own)."""
        self.key: npt.NDArray[np.void] = np.zeros(1024, f"V{KEY_BYTES}")
        self.paid: npt.NDArray[np.int64] = np.zeros(1024, np.int64)
        self.received: npt.NDArray[np.int64] = np.zeros(1024, np.int64)
        """Scratch: zero between runs."""

    def open(self, *, kind: int, participant: int, rule_class: int, key: bytes | None = None) -> int:
        """Adds an account; returns its number."""
        if self.size == len(self.kind):
            self._grow()
        number = self.size
        self.kind[number], self.participant[number], self.rule_class[number] = kind, participant, rule_class
        if key is not None:
            self.key[number] = np.void(key.ljust(KEY_BYTES, b"\0"))
        self.size += 1
        return number

    def open_page(self, kinds: npt.NDArray[Any], participants: npt.NDArray[Any], code: int, keys: Any | None) -> None:
        """Adds accounts of one class; `keys` are rows of bytes."""
        count = len(kinds)
        while self.size + count > len(self.kind):
            self._grow()
        new = slice(self.size, self.size + count)
        self.kind[new], self.participant[new], self.rule_class[new] = kinds, participants, code
        if keys is not None:
            padded = np.zeros((count, KEY_BYTES), np.uint8)
            padded[:, : keys.shape[1]] = keys
            self.key[new] = padded.view(f"V{KEY_BYTES}").ravel()
        self.size += count

    def _grow(self) -> None:
        def grown(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([column, np.zeros_like(column)])

        self.totals = [grown(column) for column in self.totals]
        self.kind, self.participant, self.rule_class = (
            grown(self.kind),
            grown(self.participant),
            grown(self.rule_class),
        )
        self.frozen, self.key = grown(self.frozen), grown(self.key)
        self.suspended, self.closed = grown(self.suspended), grown(self.closed)
        self.capped = grown(self.capped)
        self.paid, self.received = grown(self.paid), grown(self.received)
        self.kind[self.size :] = NOBODY

    def exists(self, account: int) -> bool:
        return 0 < account < self.size

    def total(self, column: int, account: int) -> int:
        return int(self.totals[column][account])

    def add(self, column: int, account: int, delta: int) -> None:
        """Raises TotalOverflow."""
        value = int(self.totals[column][account]) + delta
        if not -TOTAL_MAX <= value <= TOTAL_MAX:
            raise TotalOverflow(f"a total of account {account} leaves 63 bits")
        self.totals[column][account] = value

    def balance(self, account: int) -> int:
        return self.total(CREDITS_POSTED, account) - self.total(DEBITS_POSTED, account)

    def available(self, account: int) -> int:
        return self.balance(account) - self.total(DEBITS_PENDING, account)

    def holder_key(self, account: int) -> bytes:
        """Suite byte and key: the first, where there are several."""
        raw = bytes(self.key[account].tobytes())
        return raw[:33] if raw[:1] == b"\x01" else raw

    def holder_keys(self, account: int) -> list[bytes]:
        """All of a wallet's keys."""
        if self.kind[account] != WALLET:
            return []
        return [self.holder_key(account), *self.more_keys.get(account, ())]

    def set_keys(self, account: int, keys: list[bytes]) -> None:
        """At least one."""
        self.key[account] = np.void(keys[0].ljust(KEY_BYTES, b"\0"))
        if len(keys) > 1:
            self.more_keys[account] = keys[1:]
        else:
            self.more_keys.pop(account, None)

    def own_cap(self, account: int) -> int | None:
        return self.balance_caps.get(account, (0, None))[1]

    def sums(self) -> tuple[dict[int, int], int]:
        """(balances by kind of account, pending debits), added up anew."""
        used = slice(1, self.size)
        balances = self.totals[CREDITS_POSTED][used] - self.totals[DEBITS_POSTED][used]
        kinds = self.kind[used]
        by_kind = {kind: int(balances[kinds == kind].sum()) for kind in range(ISSUANCE, NOBODY)}
        return by_kind, int(self.totals[DEBITS_PENDING][used].sum())

    def start_day(self) -> None:
        self.totals[SPENT_DAY][: self.size] = 0

    def start_year(self) -> None:
        self.totals[SPENT_YEAR][: self.size] = 0

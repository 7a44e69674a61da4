"""Refunds, purely: of a payment received, whole or in parts, never more than it, only to whoever paid it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from kernel.ids import AccountNumber

RefundStateName = Literal["reserved", "final", "released"]
"""Reserved: counted against the original, the ledger's answer is not known yet. Released: it was not booked."""


@dataclass(frozen=True, slots=True)
class Original:
    """A payment that one of our wallets has received. `refunded_minor` counts what is reserved too."""

    transfer_id: UUID
    wallet_id: UUID
    account: AccountNumber
    """Ours: it was credited, and refunds debit it."""
    payer_account: AccountNumber
    """Whom refunds credit."""
    amount_minor: int
    currency: str
    refunded_minor: int
    seq: int
    booked_at: datetime

    @property
    def refundable_minor(self) -> int:
        return self.amount_minor - self.refunded_minor


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund by its transfer's id. `tries`: how often it was sent since it was last reserved."""

    id: UUID
    original_id: UUID
    amount_minor: int
    state: RefundStateName
    tries: int
    valid_until: datetime
    """No copy that was sent can be booked after it."""
    seq: int | None
    booked_at: datetime | None
    created_at: datetime


def reserve(original: Original, amount_minor: int) -> Original | None:
    """The original with this refund counted; None if the refunds would exceed it (I7: every fen goes back once)."""
    if not 0 < amount_minor <= original.refundable_minor:
        return None
    return replace(original, refunded_minor=original.refunded_minor + amount_minor)


def release(original: Original, amount_minor: int) -> Original:
    """The original after a refund that was counted turned out not to be booked."""
    return replace(original, refunded_minor=original.refunded_minor - amount_minor)

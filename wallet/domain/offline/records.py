"""Rows of the offline purses as values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Literal
from uuid import UUID

RevokedFor = Literal["lost", "expired", "double-spend"]
FundingState = Literal["initiated", "final", "refused"]
PayoutKind = Literal["redeem", "loss", "recovery"]


@dataclass(frozen=True, slots=True)
class PurseRow:
    id: UUID
    wallet_id: UUID
    account: int
    certificate: bytes
    certificate_hash: bytes
    device_thumbprint: str
    balance_max_minor: int
    not_after: datetime
    closes_at: datetime
    loss_minor: int
    recovered_minor: int
    spends: int
    revoked_for: RevokedFor | None
    revoked_at: datetime | None
    closed_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class FundingRow:
    id: UUID
    """Of the ledger's transfer too."""
    purse_id: UUID
    debit_account: int
    amount_minor: int
    instruction: str
    valid_until: datetime
    state: FundingState
    attempt: int
    counted_on: date
    refusal: str | None
    detail: str | None
    seq: int | None
    booked_at: datetime | None
    message: bytes | None
    tried_at: datetime
    created_at: datetime


@dataclass(frozen=True, slots=True)
class PayoutRow:
    id: UUID
    purse_id: UUID
    kind: PayoutKind
    event: bytes
    account: int | None
    amount_minor: int
    seq: int | None
    booked_at: datetime | None
    refusal: str | None
    tried_at: datetime | None
    created_at: datetime

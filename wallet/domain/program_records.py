"""Programs, their holds, vouchers, purchases and merchants, as the service keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

ProgramStateName = Literal["proposed", "funding", "active", "finished", "refusing", "refused"]
HoldStateName = Literal["proposed", "held", "released", "returned"]
SpendStateName = Literal["initiated", "final", "refused"]


@dataclass(frozen=True, slots=True)
class Program:
    """`terms` is the canonical content that the parties sign; `sealed_seed` yields every secret of the program."""

    id: UUID
    request_sha256: bytes
    template_sha256: bytes
    wallet_id: UUID
    payer_account: int
    terms: Mapping[str, Any]
    terms_sha256: bytes
    sealed_seed: bytes
    shown_secret: bytes | None
    state: ProgramStateName
    funded_minor: int
    held_minor: int
    released_minor: int
    returned_minor: int
    change_minor: int
    """Of what was returned: purchases' change. Their holds were released, so it is spent, as in the ledger (I9)."""
    deadline: datetime
    expires_at: datetime
    created_at: datetime
    funded_at: datetime | None
    evaluated_at: datetime | None
    wake_at: datetime | None
    counted_on: date | None
    refusal: str | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Part:
    """One hold of a program, with its decision if there is one."""

    id: UUID
    program_id: UUID
    number: int
    voucher_id: UUID | None
    amount_minor: int
    state: HoldStateName
    spend_id: UUID | None
    instruction: str | None
    ended_at: datetime | None
    outcome: Literal["release", "return"] | None = None
    because: str | None = None
    decided_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Statement:
    id: UUID
    program_id: UUID
    role: str
    event: str
    ordinal: int
    token: str
    taken_at: datetime


@dataclass(frozen=True, slots=True)
class Voucher:
    id: UUID
    program_id: UUID
    recipient_account: int
    recipient_key: Mapping[str, str]
    value_minor: int
    spent_minor: int
    change_minor: int


@dataclass(frozen=True, slots=True)
class Spend:
    """A purchase with a voucher. `unknown_until`: until then an unanswered copy of it may still be booked."""

    id: UUID
    voucher_id: UUID
    program_id: UUID
    merchant_account: int
    amount_minor: int
    change_minor: int
    change_to: Literal["issuer", "recipient"]
    payment_id: UUID
    token: str
    state: SpendStateName
    attempt: int
    unknown_until: datetime | None
    seq: int | None
    booked_at: datetime | None
    refusal: str | None
    detail: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Merchant:
    """`statement`, `key`, `valid_until`: of another institution's merchant, whose word it is."""

    account: int
    name: str
    category: str
    place: str
    participant: str
    statement: str | None
    key: Mapping[str, str] | None
    valid_until: datetime | None
    updated_at: datetime

"""Who sees what of a customer, and what may still become of an unmask order. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from uuid import UUID

from wallet.contract import WalletRefusal
from wallet.contract.privacy import APPROVALS_NEEDED, ORDER_LIFE_MAX, ErasureReason, UnmaskState

Sight = Literal["plain", "masked"]


@dataclass(frozen=True, slots=True)
class Erasure:
    """The tombstone."""

    id: UUID
    customer_id: UUID
    reason: ErasureReason
    erased_by: str
    erased_at: datetime


@dataclass(frozen=True, slots=True)
class Officer:
    """A compliance officer: a registered client with a key of his own."""

    thumbprint: str
    name: str
    key: dict[str, str]


@dataclass(frozen=True, slots=True)
class Approval:
    officer: Officer
    token: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Case:
    """An unmask order with its approvals, in the order in which they came."""

    id: UUID
    token: str
    wallet_id: UUID
    customer_id: UUID
    officer: Officer
    valid_until: datetime
    created_at: datetime
    approvals: tuple[Approval, ...] = ()
    entry_index: int | None = None
    """Of the disclosure; None while there is none."""


def state_of(case: Case, *, now: datetime) -> UnmaskState:
    if case.entry_index is not None:
        return UnmaskState.DISCLOSED
    if now >= case.valid_until:
        return UnmaskState.EXPIRED
    return UnmaskState.APPROVED if len(case.approvals) >= APPROVALS_NEEDED else UnmaskState.REQUESTED


def refuse_life(valid_until: datetime, *, now: datetime) -> WalletRefusal | None:
    """An order is valid for a while: not past, and not for ever."""
    return None if now < valid_until <= now + ORDER_LIFE_MAX else WalletRefusal.UNMASK_EXPIRED


def refuse_approval(case: Case, officer: Officer, *, now: datetime) -> WalletRefusal | None:
    """Neither the one who gave the order, under whatever key, nor one name with two keys."""
    if officer.thumbprint == case.officer.thumbprint or officer.name == case.officer.name:
        return WalletRefusal.UNMASK_OWN_ORDER
    if any(item.officer.name == officer.name for item in case.approvals):
        return WalletRefusal.UNMASK_APPROVED_BEFORE
    return _refuse_ended(case, now=now)


def refuse_disclosure(case: Case, officer: Officer, *, now: datetime) -> WalletRefusal | None:
    if officer.thumbprint != case.officer.thumbprint:
        return WalletRefusal.UNMASK_NOT_YOURS
    ended = _refuse_ended(case, now=now)
    if ended is not None:
        return ended
    others = {item.officer.thumbprint for item in case.approvals} - {case.officer.thumbprint}
    return None if len(others) >= APPROVALS_NEEDED else WalletRefusal.UNMASK_NOT_APPROVED


def _refuse_ended(case: Case, *, now: datetime) -> WalletRefusal | None:
    match state_of(case, now=now):
        case UnmaskState.DISCLOSED:
            return WalletRefusal.UNMASK_ANSWERED
        case UnmaskState.EXPIRED:
            return WalletRefusal.UNMASK_EXPIRED
        case _:
            return None


def mask_phone(phone: str) -> str:
    """The last two digits: "+8613912345678" -> "***78"; a number that is too short to hide in is hidden whole."""
    return "" if not phone else "***" + phone[-2:] if len(phone) >= 8 else "***"

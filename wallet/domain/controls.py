"""Dual control of corporate wallets (maker and checker), decided purely.

What one signature alone may pay is bounded at once and in a day, so that many small payments are no way around. Above
it the maker's instruction needs a checker's approval of exactly its content: another person, in time, not withdrawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from uuid import UUID

from kernel.errors import Refusal
from wallet.contract import WalletRefusal


@dataclass(frozen=True, slots=True)
class Control:
    """A wallet's rules, and what it has paid under them on one signature on `alone_on`."""

    wallet_id: UUID
    account: int
    version: int
    is_in_force: bool
    alone_max_minor: int
    alone_day_max_minor: int
    alone_on: date
    alone_minor: int
    """More than `alone_day_max_minor` if that was lowered since."""
    time_zone: str
    """IANA's name: where the days begin and end."""
    changed_at: datetime
    persons: Mapping[str, str]
    """Whose key is it: by thumbprint."""


@dataclass(frozen=True, slots=True)
class Approval:
    payment_id: UUID
    wallet_id: UUID
    digest: bytes
    checker: str
    """The person."""
    valid_until: datetime
    token: str
    version: int
    """Of the rules that the checker signed under; new rules make it void."""
    maker: str | None = None
    """Whose payment it was used for."""
    withdrawn_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Allowed:
    """`control` counts the payment if one signature was enough; else `approval` is used, with its maker."""

    control: Control
    approval: Approval | None


def alone_today(control: Control, today: date) -> int:
    """A clock that has gone back grants no second allowance."""
    return control.alone_minor if today <= control.alone_on else 0


def decide_instruction(
    control: Control,
    *,
    signer: str,
    digest: bytes,
    amount_minor: int,
    approval: Approval | None,
    today: date,
    now: datetime,
) -> Allowed | Refusal:
    """Refuses: signatory-unknown, approved-another, checker-is-maker, approval-needed (none, withdrawn, expired, or
    of earlier rules)."""
    if not control.is_in_force:
        return Allowed(control, None)
    maker = control.persons.get(signer)
    if maker is None:
        return WalletRefusal.SIGNATORY_UNKNOWN
    used = alone_today(control, today) + amount_minor
    if amount_minor <= control.alone_max_minor and used <= control.alone_day_max_minor:
        return Allowed(replace(control, alone_on=max(today, control.alone_on), alone_minor=used), None)
    if approval is None or approval.withdrawn_at is not None or approval.version != control.version:
        return WalletRefusal.APPROVAL_NEEDED
    if now >= approval.valid_until:
        return WalletRefusal.APPROVAL_NEEDED
    if approval.digest != digest:
        return WalletRefusal.APPROVED_ANOTHER
    if approval.checker == maker:
        return WalletRefusal.CHECKER_IS_MAKER
    return Allowed(control, replace(approval, maker=maker))

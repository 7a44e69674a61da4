"""Parent and child wallets, decided purely: a child's own caps, its one merchant, and what it has used.

A child is an account of its own with a key of its own. Its caps come on top of its class's, which the ledger enforces
(I9); a child bound to a merchant pays that merchant and its parent, nobody else. Money that goes back to the parent
counts towards no cap of the child's own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from typing import Literal
from uuid import UUID

from kernel.errors import Refusal
from kernel.ids import AccountNumber
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal
from wallet.domain.limits import Caps

ChildState = Literal["open", "revoked", "closed"]


@dataclass(frozen=True, slots=True)
class ChildCaps:
    """In minor units; None = only the class's cap. `total_max_minor`: of all payments the child ever makes."""

    balance_max_minor: int | None = None
    single_max_minor: int | None = None
    day_max_minor: int | None = None
    total_max_minor: int | None = None

    @property
    def bounds_spending(self) -> bool:
        return (self.single_max_minor, self.day_max_minor, self.total_max_minor) != (None, None, None)


@dataclass(frozen=True, slots=True)
class ChildUsage:
    """What the child has spent, booked or on its way: on `day` and ever.

    The floors are usages that stood above a cap when it was lowered, or that the ledger booked although they had been
    given up: facts, which no cap undoes. The tables hold usage <= max(cap, floor).
    """

    day: date
    day_minor: int = 0
    total_minor: int = 0
    day_floor_minor: int = 0
    total_floor_minor: int = 0


@dataclass(frozen=True, slots=True)
class Child:
    wallet_id: UUID
    parent_id: UUID
    account: AccountNumber | None
    parent_account: AccountNumber
    merchant: AccountNumber | None
    """The only account that it may pay, besides its parent's. None = any."""
    caps: ChildCaps
    usage: ChildUsage
    state: ChildState
    version: int


def refuse_caps(caps: ChildCaps, *, parent_class: Caps) -> str | None:
    """Why a child may not have these caps: each must be at most its parent's class's. None = it may."""
    for name, own, of_parent in (
        ("balance", caps.balance_max_minor, parent_class.balance_max_minor),
        ("single", caps.single_max_minor, parent_class.single_max_minor),
        ("daily", caps.day_max_minor, parent_class.day_max_minor),
    ):
        if own is not None and of_parent is not None and own > of_parent:
            return f"the {name} cap is above the parent's class's, {of_parent}"
    return None


def counts(child: Child, *, kind: str, credit: int) -> bool:
    """Whether a transfer counts towards the child's own caps."""
    return kind == "payment" and credit != child.parent_account


def decide_transfer(child: Child, *, kind: str, credit: int, amount_minor: int, today: date) -> ChildUsage | Refusal:
    """The child's usage with this transfer counted, or the first refusal in order of precedence.

    Refuses: child-closed, push-revoked, payee-not-allowed, kind-not-allowed, single-limit-exceeded,
    day-limit-exceeded, child-limit-exceeded.
    """
    now = usage_on(child.usage, today)
    if kind == "payment" and credit == child.parent_account:  # also what reaches a closed child late finds its way back
        return now
    if child.state == "closed":
        return WalletRefusal.CHILD_CLOSED
    if child.state == "revoked":
        return WalletRefusal.PUSH_REVOKED
    if child.merchant is not None and (kind != "payment" or credit != child.merchant):
        return WalletRefusal.PAYEE_NOT_ALLOWED
    if kind == "exchange-out" and child.caps.bounds_spending:
        return TransferRefusal.KIND_NOT_ALLOWED  # from the deposit it could be spent past every cap
    if kind != "payment":
        return now
    used = replace(now, day_minor=now.day_minor + amount_minor, total_minor=now.total_minor + amount_minor)
    if _exceeds(amount_minor, child.caps.single_max_minor):
        return TransferRefusal.SINGLE_LIMIT_EXCEEDED
    if _exceeds(used.day_minor, child.caps.day_max_minor):
        return TransferRefusal.DAY_LIMIT_EXCEEDED
    if _exceeds(used.total_minor, child.caps.total_max_minor):
        return WalletRefusal.CHILD_LIMIT_EXCEEDED
    return used


def with_usage(child: Child, usage: ChildUsage) -> Child:
    return child if usage is child.usage else replace(child, usage=usage)


def usage_on(usage: ChildUsage, today: date) -> ChildUsage:
    """As it stands today; a clock that has gone back grants no second allowance."""
    return usage if today <= usage.day else replace(usage, day=today, day_minor=0, day_floor_minor=0)


def release(usage: ChildUsage, amount_minor: int, *, counted_on: date) -> ChildUsage:
    """After a transfer that was counted on `counted_on` turned out refused."""
    day_minor = usage.day_minor - amount_minor if counted_on == usage.day else usage.day_minor
    return replace(usage, day_minor=day_minor, total_minor=usage.total_minor - amount_minor)


def force(usage: ChildUsage, amount_minor: int, *, today: date) -> ChildUsage:
    """After the ledger booked what had been given up as refused: it is spent, whatever the caps say."""
    now = usage_on(usage, today)
    day_minor, total_minor = now.day_minor + amount_minor, now.total_minor + amount_minor
    return ChildUsage(
        now.day, day_minor, total_minor, max(now.day_floor_minor, day_minor), max(now.total_floor_minor, total_minor)
    )


def lower_to(usage: ChildUsage, caps: ChildCaps, *, today: date) -> ChildUsage:
    """The usage under new caps. What is used already beyond them stays used, and nothing is left."""
    now = usage_on(usage, today)
    return replace(
        now,
        day_floor_minor=now.day_minor if _exceeds(now.day_minor, caps.day_max_minor) else 0,
        total_floor_minor=now.total_minor if _exceeds(now.total_minor, caps.total_max_minor) else 0,
    )


def decide_credit(child: Child, amount_minor: int, *, balance_minor: int, incoming_minor: int) -> Refusal | None:
    """Whether the child may be paid this. `incoming_minor`: payments to it on their way. Refuses:
    balance-limit-exceeded, child-closed."""
    if child.state == "closed":
        return WalletRefusal.CHILD_CLOSED
    if _exceeds(balance_minor + incoming_minor + amount_minor, child.caps.balance_max_minor):
        return TransferRefusal.BALANCE_LIMIT_EXCEEDED
    return None


def _exceeds(value: int, cap: int | None) -> bool:
    return cap is not None and value > cap

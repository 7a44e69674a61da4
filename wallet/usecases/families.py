"""Parent and child wallets: open, look at, change, push to a merchant, charge, pool, end (docs/decisions/0012).

What a child may pay is decided where every payment is recorded (`wallet.usecases.own_rules`). A parent's view names its
children one by one; a child has no view of its parent.

Each wallet is suspended by itself: a suspended parent's children pay on within their caps, a pushed merchant charges
on, and money still goes back to the parent; the parent revokes and closes as before, and opens no other child. A parent
is closed only after its children.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.errors import ProblemError
from kernel.ids import AccountNumber
from ledger.contract import (
    AccountView,
    InvalidInstruction,
    LedgerRefusal,
    StatementResponse,
    TransferKind,
    TransferRefusal,
    TransferTerms,
    read_instruction,
    sign_instruction,
)
from wallet.contract import WalletRefusal
from wallet.contract.families import CHILDREN_MAX
from wallet.domain import families as rules
from wallet.domain.families import Child, ChildCaps, ChildUsage
from wallet.domain.limits import scheme_day
from wallet.domain.records import Payment, Wallet
from wallet.domain.rules import WalletClass
from wallet.sealed_keys import WrongSecret, unseal
from wallet.store import balance_caps as cap_store
from wallet.store import families as store
from wallet.store import wallets as wallet_store
from wallet.usecases import balance_caps, controls, wallets
from wallet.usecases.context import Context
from wallet.usecases.pay import Declined, Outcome, pay, pay_one

log = logging.getLogger("jiaozi.wallet.families")

CHARGE_LIFE = timedelta(minutes=10)
"""How long the signature under a charge stands."""
_CLASSES = list(WalletClass)
"""Strongest first."""


@dataclass(frozen=True, slots=True)
class Push:
    merchant: AccountNumber
    sealed_key: bytes


@dataclass(frozen=True, slots=True)
class KnownChild:
    """A child as its parent sees it; `account` is None while it is not open, or in a listing without balances."""

    child: Child
    label: str
    wallet: Wallet
    account: AccountView | None


def open_child(
    context: Context,
    parent_id: UUID,
    child_id: UUID,
    *,
    customer_id: UUID,
    wallet_class: WalletClass,
    device_key: dict[str, str],
    label: str,
    caps: ChildCaps,
    push: Push | None,
) -> KnownChild:
    """Idempotent by the child's id. The rules are durable with the wallet's row, before it has an account.

    Raises: ProblemError(wallet-not-found, wallet-not-open, parent-is-child, child-class-too-strong,
    child-caps-too-high, children-too-many, child-exists, and what opening a wallet refuses).
    """
    parent = wallets.find_wallet(context, parent_id)
    if parent.account is None or parent.state != "open":
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN, "the parent is not open")
    if _CLASSES.index(wallet_class) < _CLASSES.index(parent.wallet_class):
        raise ProblemError(WalletRefusal.CHILD_CLASS_TOO_STRONG, f"the parent has class {parent.wallet_class.value}")
    why_not = rules.refuse_caps(caps, parent_class=context.pack.caps(parent.wallet_class))
    if push is not None and caps.total_max_minor is None:
        why_not = why_not or "a child that is pushed to a merchant needs a cap on its total"
    if why_not is not None:
        raise ProblemError(WalletRefusal.CHILD_CAPS_TOO_HIGH, why_not)
    if push is not None and push.merchant == parent.account:
        raise ProblemError(WalletRefusal.PAYEE_NOT_ALLOWED, "the merchant is the parent itself")
    now = context.clock()
    child = Child(
        wallet_id=child_id,
        parent_id=parent_id,
        account=None,
        parent_account=parent.account,
        merchant=None if push is None else push.merchant,
        caps=caps,
        usage=ChildUsage(scheme_day(now, context.time_zone)),
        state="open",
        version=1,
    )

    def join(connection: sa.Connection) -> None:
        locked = wallet_store.lock_wallet(connection, parent_id)
        if locked is None or locked.state != "open":  # a closure that has begun meanwhile has seen no child
            raise ProblemError(WalletRefusal.WALLET_NOT_OPEN, "the parent is not open")
        if store.join_family(connection, parent_id, "parent") != "parent":
            raise ProblemError(WalletRefusal.PARENT_IS_CHILD)
        if len(store.list_children(connection, parent_id)) >= CHILDREN_MAX:
            raise ProblemError(WalletRefusal.CHILDREN_TOO_MANY, f"at most {CHILDREN_MAX}")
        store.join_family(connection, child_id, "child")
        sealed_key = None if push is None else push.sealed_key
        store.insert_child(connection, child, label=label, sealed_key=sealed_key, created_at=now)
        if caps.balance_max_minor is not None:
            cap_store.note_change(connection, child_id, at=now)

    wallets.open_wallet(
        context,
        child_id,
        customer_id=customer_id,
        wallet_class=wallet_class,
        device_key=device_key,
        beside=join,
    )
    balance_caps.tell(context, child_id)
    known = find_child(context, parent_id, child_id, refusal=WalletRefusal.CHILD_EXISTS)
    asked = (caps, child.merchant, label)
    if known.child.version == 1 and (known.child.caps, known.child.merchant, known.label) != asked:
        raise ProblemError(WalletRefusal.CHILD_EXISTS)
    return known


def find_child(
    context: Context, parent_id: UUID, child_id: UUID, *, refusal: WalletRefusal = WalletRefusal.CHILD_NOT_FOUND
) -> KnownChild:
    """With its balance. Raises: ProblemError(child-not-found), also for a wallet that is another's child."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        child = store.find_child(connection, child_id)
        if child is None or child.parent_id != parent_id:
            raise ProblemError(refusal)
        label, _ = store.label_and_key(connection, child_id)
    wallet = wallets.find_wallet(context, child_id)
    return KnownChild(_as_of_today(context, child), label, wallet, wallets.account_of(context, wallet))


def list_children(context: Context, parent_id: UUID) -> list[KnownChild]:
    """With balances. Raises: ProblemError(wallet-not-found)."""
    wallets.find_wallet(context, parent_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        children = store.list_children(connection, parent_id)
        labels = store.labels(connection, parent_id)
    found = []
    for child in children:
        wallet = wallets.find_wallet(context, child.wallet_id)
        account = wallets.account_of(context, wallet)
        found.append(KnownChild(_as_of_today(context, child), labels[child.wallet_id], wallet, account))
    return found


def child_history(
    context: Context, parent_id: UUID, child_id: UUID, *, cursor: str | None, limit: int, newest_first: bool
) -> tuple[KnownChild, StatementResponse]:
    """Raises: ProblemError(child-not-found, wallet-not-open)."""
    known = find_child(context, parent_id, child_id)
    return known, wallets.history(context, child_id, cursor=cursor, limit=limit, newest_first=newest_first)


def set_caps(context: Context, parent_id: UUID, child_id: UUID, caps: ChildCaps, *, version: int) -> KnownChild:
    """Under the wallet's lock, so that no payment is decided on the caps before. A retry finds it done.

    Raises: ProblemError(child-not-found, child-caps-too-high, child-changed, child-closed), as `balance_caps.tell`.
    """
    find_child(context, parent_id, child_id)
    parent = wallets.find_wallet(context, parent_id)
    why_not = rules.refuse_caps(caps, parent_class=context.pack.caps(parent.wallet_class))
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        child = _lock(connection, child_id)
        if child.version == version + 1 and child.caps == caps:
            why_not = None
        elif child.version != version:
            raise ProblemError(WalletRefusal.CHILD_CHANGED, f"its version is {child.version}")
        elif child.state == "closed":
            raise ProblemError(WalletRefusal.CHILD_CLOSED)
        else:
            if child.merchant is not None and caps.total_max_minor is None:
                why_not = "a child that was pushed to a merchant keeps a cap on its total"
            if why_not is not None:
                raise ProblemError(WalletRefusal.CHILD_CAPS_TOO_HIGH, why_not)
            today = scheme_day(context.clock(), context.time_zone)
            store.save_caps(connection, child, caps, rules.lower_to(child.usage, caps, today=today))
            if caps.balance_max_minor != child.caps.balance_max_minor:
                cap_store.note_change(connection, child_id, at=context.clock())
    balance_caps.tell(context, child_id)
    return find_child(context, parent_id, child_id)


def revoke(context: Context, parent_id: UUID, child_id: UUID) -> KnownChild:
    """From now on the child pays its parent alone; a pushed key is destroyed. Idempotent.

    Raises: ProblemError(child-not-found, child-closed).
    """
    find_child(context, parent_id, child_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        child = _lock(connection, child_id)
        if child.state == "closed":
            raise ProblemError(WalletRefusal.CHILD_CLOSED)
        if child.state == "open":
            store.end(connection, child, "revoked", ended_at=context.clock())
    return find_child(context, parent_id, child_id)


def close_child(context: Context, parent_id: UUID, child_id: UUID) -> KnownChild:
    """Once it is empty, for good. What reaches it late can still be pooled. Idempotent.

    Raises: ProblemError(child-not-found, wallet-not-open, child-not-empty).
    """
    known = find_child(context, parent_id, child_id)
    if known.child.state == "closed":
        return known
    if known.child.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    # The ledger is asked before the lock; under it, nothing may be on its way that its answer does not have.
    account = wallets.account_of(context, known.wallet)
    if account is None or account.balance_minor != 0:
        raise ProblemError(WalletRefusal.CHILD_NOT_EMPTY)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        child = _lock(connection, child_id)
        if store.incoming_minor(connection, child_id, after=account.as_of_seq):
            raise ProblemError(WalletRefusal.CHILD_NOT_EMPTY, "a payment to it is on its way, or has just arrived")
        if child.state != "closed":
            store.end(connection, child, "closed", ended_at=context.clock())
    return find_child(context, parent_id, child_id)


def pool(context: Context, parent_id: UUID, tokens: Sequence[str]) -> list[Outcome]:
    """Money of children goes back to their parent: each instruction is signed with the child's key (I8). An outcome
    an instruction, in order; each stands alone. Raises: ProblemError(wallet-not-found)."""
    wallets.find_wallet(context, parent_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        children = {child.account: child for child in store.list_children(connection, parent_id)}
    outcomes: list[Outcome | None] = []
    for token in tokens:
        try:
            item = read_instruction(token)
        except InvalidInstruction as error:
            outcomes.append(Declined(None, LedgerRefusal.INSTRUCTION_INVALID, error.reason))
            continue
        child = None if item.debit is None else children.get(AccountNumber(item.debit))
        is_pooling = child is not None and item.kind is TransferKind.PAYMENT and item.credit == child.parent_account
        outcomes.append(None if is_pooling else Declined(item.id, WalletRefusal.NOT_A_POOLING))
    carried = iter(pay(context, [token for token, outcome in zip(tokens, outcomes, strict=True) if outcome is None]))
    return [next(carried) if outcome is None else outcome for outcome in outcomes]


def charge(
    context: Context, charge_id: UUID, child_id: UUID, *, amount_minor: int, currency: str, secret: bytes
) -> Payment:
    """The merchant charges the child pushed to it: the sealed key and the merchant's secret meet for one signature.

    The payment's id is the charge's: a repetition is carried once (I7). Raises: ProblemError(child-not-found,
    charge-not-authorised, push-revoked, and what a payment refuses). What is signed only as it is charged nobody can
    approve before: above what one signature may pay (docs/dual-control.md), that is a limit like another.
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        child = store.find_child(connection, child_id)
        if child is None or child.merchant is None or child.account is None:
            raise ProblemError(WalletRefusal.CHILD_NOT_FOUND)
        _, sealed_key = store.label_and_key(connection, child_id)
    if sealed_key is None:
        raise ProblemError(WalletRefusal.PUSH_REVOKED)
    try:
        key = unseal(sealed_key, secret, child_id=child_id, merchant=child.merchant)
    except WrongSecret:
        raise ProblemError(WalletRefusal.CHARGE_NOT_AUTHORISED) from None
    terms = TransferTerms(
        id=charge_id,
        kind=TransferKind.PAYMENT,
        debit=child.account,
        credit=child.merchant,
        amount_minor=amount_minor,
        currency=currency,
    )
    until = context.clock() + CHARGE_LIFE
    token = sign_instruction(terms, ledger=context.ledgers.home.name, valid_until=until, key=key)
    try:
        return pay_one(context, token)
    except ProblemError as error:
        if error.refusal is not WalletRefusal.APPROVAL_NEEDED:
            raise
    control = controls.find_control(context, child_id).control
    is_above = amount_minor > control.alone_max_minor
    raise ProblemError(
        TransferRefusal.SINGLE_LIMIT_EXCEEDED if is_above else TransferRefusal.DAY_LIMIT_EXCEEDED,
        "the wallet is under dual control, and nobody can approve a charge: it is above what one signature may pay",
    )


def _lock(connection: sa.Connection, child_id: UUID) -> Child:
    """The wallet's row first, as payments do."""
    if wallet_store.lock_wallet(connection, child_id) is None:
        raise ProblemError(WalletRefusal.CHILD_NOT_FOUND)
    child = store.lock_child(connection, child_id)
    if child is None:
        raise ProblemError(WalletRefusal.CHILD_NOT_FOUND)
    return child


def _as_of_today(context: Context, child: Child) -> Child:
    return rules.with_usage(child, rules.usage_on(child.usage, scheme_day(context.clock(), context.time_zone)))

"""Customers and wallets: register, open, look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError
from ledger.contract import AccountKind, AccountOpening, AccountView, StatementResponse
from wallet.contract import WalletRefusal
from wallet.domain.events import EventType
from wallet.domain.lifecycle import Device
from wallet.domain.limits import Usage, scheme_day
from wallet.domain.records import Customer, Wallet
from wallet.domain.rules import Evidence, WalletClass, rule_class_name
from wallet.store import customers, events, families, lifecycle, wallets
from wallet.usecases.context import Context, is_definite, ledger_unavailable, refusal_of


@dataclass(frozen=True, slots=True)
class KnownCustomer:
    """A customer with the personal data in clear."""

    customer: Customer
    name: str
    phone: str


def register_customer(
    context: Context, customer_id: UUID, *, name: str, phone: str, evidence: frozenset[Evidence]
) -> KnownCustomer:
    """Idempotent by id. Raises: ProblemError(customer-exists)."""
    wrapped_key, personal_data = context.personal_data.seal(customer_id, name=name, phone=phone)
    row = Customer(customer_id, evidence, wrapped_key, personal_data, context.clock())
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        if customers.insert_customer(connection, row):
            return KnownCustomer(row, name, phone)
    known = find_customer(context, customer_id)
    if (known.name, known.phone, known.customer.evidence) != (name, phone, evidence):
        raise ProblemError(WalletRefusal.CUSTOMER_EXISTS)
    return known


def find_customer(context: Context, customer_id: UUID) -> KnownCustomer:
    """Raises: ProblemError(customer-not-found, customer-erased)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = customers.find_customer(connection, customer_id)
    if row is None:
        raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
    if row.is_erased:
        raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
    name, phone = context.personal_data.open(row.id, row.wrapped_key, row.personal_data)
    return KnownCustomer(row, name, phone)


def open_wallet(
    context: Context,
    wallet_id: UUID,
    *,
    customer_id: UUID,
    wallet_class: WalletClass,
    device_key: dict[str, str],
    beside: Callable[[sa.Connection], None] = lambda connection: None,
) -> Wallet:
    """Idempotent by id. The opening is durable before the ledger hears of it, so that a crash resumes it.

    `beside` writes what belongs to a new wallet, in the transaction that records it.

    Raises: ProblemError(device-key-refused, customer-not-found, customer-erased, evidence-insufficient, wallet-exists,
    device-key-in-use, wallet-opening-refused).
    """
    try:
        key = PublicKey.from_jwk(device_key)
    except KeyRefused as error:
        raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, str(error)) from None
    now = context.clock()
    row = Wallet(
        id=wallet_id,
        customer_id=customer_id,
        wallet_class=wallet_class,
        rule_pack=context.pack.name,
        device_key=key.to_jwk(),
        device_thumbprint=key.thumbprint,
        state="opening",
        opening_id=ids.derive_uuid7(wallet_id, "opening"),
        account=None,
        refusal=None,
        detail=None,
        usage=Usage(scheme_day(now, context.time_zone)),
        created_at=now,
        opened_at=None,
        opened_in_class=wallet_class,
        opened_with=key.thumbprint,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        customer = customers.find_customer(connection, customer_id, lock="evidence")
        if customer is None:
            raise ProblemError(WalletRefusal.CUSTOMER_NOT_FOUND)
        if customer.is_erased:
            raise ProblemError(WalletRefusal.CUSTOMER_ERASED)
        known = wallets.find_wallet(connection, wallet_id)
        if known is None:
            if not context.pack.allows(wallet_class, customer.evidence):
                needed = ", ".join(sorted(context.pack.classes[wallet_class].evidence))
                raise ProblemError(WalletRefusal.EVIDENCE_INSUFFICIENT, f"class {wallet_class.value} needs: {needed}")
            is_new = wallets.insert_wallet(connection, row)
            known = row if is_new else wallets.find_wallet(connection, wallet_id)
            device = Device(key.thumbprint, wallet_id, key.to_jwk(), "active", added_at=now, ended_at=None)
            if is_new and not lifecycle.insert_device(connection, device):
                raise ProblemError(WalletRefusal.DEVICE_KEY_IN_USE)  # and the wallet's row goes with it
            if is_new:
                beside(connection)
    if known is None:
        raise ProblemError(WalletRefusal.DEVICE_KEY_IN_USE)
    asked = (customer_id, wallet_class, key.thumbprint)
    if (known.customer_id, known.opened_in_class, known.opened_with) != asked:
        raise ProblemError(WalletRefusal.WALLET_EXISTS)
    return finish_opening(context, known)


def finish_opening(context: Context, row: Wallet) -> Wallet:
    """Ask the ledger for the account, under the opening's id. Raises: ProblemError when it says no or nothing."""
    if row.state == "opening":
        opening = AccountOpening(
            opening=row.opening_id,
            kind=AccountKind.WALLET,
            rule_class=rule_class_name(context.pack, row.wallet_class),
            holder_key=dict(row.device_key),
        )
        try:
            result = context.ledgers.home.client.open_accounts([opening])[0]
        except (ProblemResponse, ServiceUnreachable) as error:
            if not (isinstance(error, ProblemResponse) and is_definite(error)):
                raise ledger_unavailable(error) from error
            # The request as a whole was refused, which a set-up mistake of ours can cause: leave it to be resumed.
            raise ProblemError(refusal_of(error.refusal), error.detail) from error
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            if result.account is not None:
                wallets.mark_open(connection, row.id, result.account, opened_at=context.clock())
                subject = f"wlt_{row.id}"
                at = context.clock()
                events.emit(connection, EventType.WALLET_OPENED, subject, at=at, wallet_id=row.id, once=row.id)
                families.note_account(connection, row.id, result.account)
            elif not result.transient:
                wallets.mark_opening_refused(connection, row.id, refusal=result.refusal or "", detail=result.detail)
        if result.account is None and result.transient:
            raise ProblemError(refusal_of(result.refusal), result.detail or "")
        row = find_wallet(context, row.id)
    if row.state == "refused":
        raise ProblemError(WalletRefusal.WALLET_OPENING_REFUSED, f"{row.refusal}: {row.detail or ''}")
    return row


def resume_openings(context: Context, *, older_than: timedelta, limit: int = 1_000) -> int:
    """Openings that a crash or an unreachable ledger left behind; how many were finished."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        rows = wallets.wallets_opening(connection, before=context.clock() - older_than, limit=limit)
    finished = 0
    for row in rows:
        try:
            finish_opening(context, row)
        except ProblemError:
            continue
        finished += 1
    return finished


def find_wallet(context: Context, wallet_id: UUID) -> Wallet:
    """Raises: ProblemError(wallet-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = wallets.find_wallet(connection, wallet_id)
    if row is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
    return row


def account_of(context: Context, row: Wallet) -> AccountView | None:
    """The account as the ledger has it; None while it is not open."""
    if row.account is None:
        return None
    try:
        return context.ledgers.home.client.get_account(row.account)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error


def history(
    context: Context, wallet_id: UUID, *, cursor: str | None, limit: int, newest_first: bool
) -> StatementResponse:
    """Booked lines from the ledger; its cursor is ours. Raises: ProblemError(wallet-not-open)."""
    row = find_wallet(context, wallet_id)
    if row.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    try:
        return context.ledgers.home.client.statement(row.account, cursor=cursor, limit=limit, newest_first=newest_first)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error

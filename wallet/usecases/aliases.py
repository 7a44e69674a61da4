"""Aliases: ask for a code, verify it, look a payee up, change, remove. The alias itself is never stored."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.clock import Clock
from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import AccountNumber
from wallet.contract import WalletRefusal
from wallet.domain.aliases import (
    CODE_SECONDS_MAX,
    CODE_TRIES_MAX,
    CODES_PER_HOUR_MAX,
    LOOKUPS_PER_HOUR_MAX,
    PAYROLL_LOOKUPS_PER_HOUR_MAX,
    Alias,
    AliasKindName,
    kind_of,
    mask_name,
    normalise,
)
from wallet.domain.records import Customer, Wallet
from wallet.store import aliases as store
from wallet.store import customers, families
from wallet.store import wallets as wallet_store
from wallet.usecases import wallets
from wallet.usecases.context import Context

LISTED_MAX = 200
ASKED_TOGETHER_MAX = 1_000
SANDBOX_CODES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Sent:
    kind: AliasKindName
    to: str
    code: str
    sent_at: datetime


class SandboxCodeSender:
    """Keeps the newest codes in memory, for whoever plays the telephone. No database ever sees them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[Sent] = deque(maxlen=SANDBOX_CODES_MAX)

    def send(self, kind: AliasKindName, to: str, code: str) -> None:
        with self._lock:
            self._sent.append(Sent(kind, to, code, self._clock()))

    def sent(self) -> list[Sent]:
        """The newest first."""
        with self._lock:
            return list(reversed(self._sent))


@dataclass(frozen=True, slots=True)
class Payee:
    account: AccountNumber
    masked_name: str


def ask(context: Context, alias_id: UUID, *, kind: AliasKindName, alias: str, wallet_id: UUID) -> Alias:
    """Record the wish and send a code to the alias; the same request again sends nothing.

    Raises: ProblemError(alias-invalid, wallet-not-found, wallet-not-open, alias-codes-too-many, alias-exists,
    service-unavailable: ask again under a new id).
    """
    spelt = _spelt(kind, alias)
    wallet = wallets.find_wallet(context, wallet_id)
    if wallet.state != "open":
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    now = context.clock()
    code = f"{secrets.randbelow(10**6):06d}"
    row = Alias(
        id=alias_id,
        alias_hash=_hash(context, kind, spelt),
        kind=kind,
        wallet_id=wallet_id,
        currency=context.pack.currency,
        state="pending",
        is_default=False,
        code_hash=_code_hash(context, alias_id, code),
        code_until=now + timedelta(seconds=CODE_SECONDS_MAX),
        tries_left=CODE_TRIES_MAX,
        created_at=now,
        verified_at=None,
        ended_at=None,
    )
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_alias_name(connection, row.alias_hash)
        known = store.find_alias(connection, alias_id)
        if known is None:
            if store.count_sent(connection, row.alias_hash, since=now - timedelta(hours=1)) >= CODES_PER_HOUR_MAX:
                raise ProblemError(WalletRefusal.ALIAS_CODES_TOO_MANY)
            if not store.insert_alias(connection, row):
                raise ProblemError(WalletRefusal.ALIAS_EXISTS)
    if known is not None:
        if (known.alias_hash, known.kind, known.wallet_id) != (row.alias_hash, kind, wallet_id):
            raise ProblemError(WalletRefusal.ALIAS_EXISTS)
        return known
    try:
        context.codes.send(kind, spelt, code)
    except OSError:
        detail = "the code could not be sent; ask again under a new id"
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, detail) from None
    return row


def verify(context: Context, alias_id: UUID, code: str) -> Alias:
    """The try is spent durably whatever comes of it. Whoever proves an alias that another customer had, takes it over:
    numbers are handed on. The first of an alias in a currency becomes its default. Idempotent once verified.

    Raises: ProblemError(alias-not-found, alias-code-spent, alias-code-wrong).
    """
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_alias(connection, alias_id)
        if row is None:
            raise ProblemError(WalletRefusal.ALIAS_NOT_FOUND)
        store.lock_alias_name(connection, row.alias_hash)
        row = store.find_alias(connection, alias_id, locked=True)
        if row is None:
            raise ProblemError(WalletRefusal.ALIAS_NOT_FOUND)
        if row.state != "pending" or row.code_until is None:
            is_wrong = row.state != "verified"
        elif now >= row.code_until or row.tries_left == 0:
            store.mark_ended(connection, alias_id, "refused", ended_at=now)
            is_wrong, row = True, replace(row, state="refused")
        else:
            store.spend_try(connection, row)
            is_wrong = row.code_hash is None or not hmac.compare_digest(
                row.code_hash, _code_hash(context, alias_id, code)
            )
            if not is_wrong:
                _take_over(connection, row, now=now)
    if is_wrong:
        refusal = WalletRefusal.ALIAS_CODE_WRONG if row.state == "pending" else WalletRefusal.ALIAS_CODE_SPENT
        raise ProblemError(refusal)
    return find(context, alias_id)


def _take_over(connection: sa.Connection, row: Alias, *, now: datetime) -> None:
    wallet = wallet_store.find_wallet(connection, row.wallet_id)
    if wallet is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
    has_default = False
    for other in store.lock_same(connection, row.alias_hash):
        theirs = wallet_store.find_wallet(connection, other.wallet_id)
        is_same_customer = theirs is not None and theirs.customer_id == wallet.customer_id
        if other.wallet_id == row.wallet_id or not is_same_customer:
            store.mark_ended(connection, other.id, "removed", ended_at=now)
        elif other.is_default and other.currency == row.currency:
            has_default = True
    store.mark_verified(connection, row.id, verified_at=now, is_default=not has_default)


def make_default(context: Context, alias_id: UUID) -> Alias:
    """Payments to the alias in its currency reach this wallet from now on. Raises: ProblemError(alias-not-found)."""
    row = find(context, alias_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_alias_name(connection, row.alias_hash)
        current = store.find_alias(connection, alias_id, locked=True)
        if current is None or current.state != "verified":
            raise ProblemError(WalletRefusal.ALIAS_NOT_FOUND, "the alias is not verified")
        store.set_default(connection, current)
    return find(context, alias_id)


def remove(context: Context, alias_id: UUID) -> Alias:
    """The alias leads to this wallet no more; another wallet does not become the default by itself. Idempotent."""
    row = find(context, alias_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_alias_name(connection, row.alias_hash)
        current = store.find_alias(connection, alias_id, locked=True)
        if current is not None and current.state in ("pending", "verified"):
            store.mark_ended(connection, alias_id, "removed", ended_at=context.clock())
    return find(context, alias_id)


def find(context: Context, alias_id: UUID) -> Alias:
    """Raises: ProblemError(alias-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_alias(connection, alias_id)
    if row is None:
        raise ProblemError(WalletRefusal.ALIAS_NOT_FOUND)
    return row


def list_aliases(context: Context, wallet_id: UUID) -> list[Alias]:
    """The newest first, at most `LISTED_MAX`. Raises: ProblemError(wallet-not-found)."""
    wallets.find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return store.list_of_wallet(connection, wallet_id, limit=LISTED_MAX)


def look_up(context: Context, payer_id: UUID, *, kind: AliasKindName, alias: str, currency: str) -> Payee:
    """Where a payment to the alias would go. Every look counts, found or not.

    Raises: ProblemError(alias-invalid, wallet-not-found, wallet-not-open, alias-lookups-too-many, alias-not-found).
    """
    spelt = _spelt(kind, alias)
    payer = wallets.find_wallet(context, payer_id)
    if payer.state != "open":
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    hour = context.clock().replace(minute=0, second=0, microsecond=0)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        is_within = store.count_lookups(connection, payer_id, hour=hour, most=LOOKUPS_PER_HOUR_MAX)
        row = store.default_alias(connection, _hash(context, kind, spelt), currency) if is_within else None
        payee = None if row is None else wallet_store.find_wallet(connection, row.wallet_id)
    if not is_within:
        raise ProblemError(WalletRefusal.ALIAS_LOOKUPS_TOO_MANY, f"at most {LOOKUPS_PER_HOUR_MAX} an hour")
    if payee is None or payee.account is None or payee.state != "open":
        raise ProblemError(WalletRefusal.ALIAS_NOT_FOUND)
    return Payee(payee.account, mask_name(wallets.find_customer(context, payee.customer_id).name))


def look_up_many(context: Context, payer: Wallet, texts: Collection[str], *, currency: str) -> dict[str, Payee]:
    """Where payments to aliases would go, as a payroll names them: each by its text, without those that lead nowhere.

    Every one counts, found or not; a registered company may look up as many as a payroll has lines.
    Raises: ProblemError(alias-lookups-too-many), and then none was looked up.
    """
    hashes: dict[str, bytes] = {}
    for text in texts:
        kind = kind_of(text)
        spelt = None if kind is None else normalise(kind, text)
        if kind is not None and spelt is not None:
            hashes[text] = _hash(context, kind, spelt)
    if not hashes:
        return {}
    hour = context.clock().replace(minute=0, second=0, microsecond=0)
    asked = sorted(set(hashes.values()))
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        is_company = families.find_corporate(connection, payer.customer_id) is not None
        most = PAYROLL_LOOKUPS_PER_HOUR_MAX if is_company else LOOKUPS_PER_HOUR_MAX
        is_within = store.count_lookups(
            connection, payer.id, hour=hour, most=most, lookups=len(asked), in_files=is_company
        )
        found: dict[bytes, tuple[UUID, int]] = {}
        people: dict[UUID, Customer] = {}
        for first in range(0, len(asked) if is_within else 0, ASKED_TOGETHER_MAX):
            page = store.default_wallets(connection, asked[first : first + ASKED_TOGETHER_MAX], currency)
            found |= page
            owners = sorted({customer_id for customer_id, _ in page.values()})
            people |= {row.id: row for row in customers.find_customers(connection, owners)}
    if not is_within:
        more = "" if is_company else ", more for a registered company"
        detail = f"{len(asked)} aliases in the file; at most {most} an hour{more}"
        raise ProblemError(WalletRefusal.ALIAS_LOOKUPS_TOO_MANY, detail)
    payees: dict[str, Payee] = {}
    for text, alias_hash in hashes.items():
        if alias_hash in found:
            customer_id, account = found[alias_hash]
            payees[text] = Payee(AccountNumber(account), _masked_name(context, people.get(customer_id)))
    return payees


def _masked_name(context: Context, row: Customer | None) -> str:
    if row is None or row.is_erased:
        return mask_name("")
    return mask_name(context.personal_data.open(row.id, row.wrapped_key, row.personal_data)[0])


def _spelt(kind: AliasKindName, alias: str) -> str:
    spelt = normalise(kind, alias)
    if spelt is None:
        raise ProblemError(WalletRefusal.ALIAS_INVALID)
    return spelt


def _hash(context: Context, kind: AliasKindName, spelt: str) -> bytes:
    return context.personal_data.blind_index(f"alias-{kind}", spelt)


def _code_hash(context: Context, alias_id: UUID, code: str) -> bytes:
    """Bound to the request, under the service's key: six digits alone would be found by trying."""
    return context.personal_data.blind_index("alias-code", f"{alias_id}:{code}")

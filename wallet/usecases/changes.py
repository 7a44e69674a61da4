"""How a change of a wallet is recorded, brought to the ledger and finished; one way for all kinds.

`begin` decides under the wallet's row lock and records the change together with its stricter side; `ask_ledger` makes
one step there; `finish` writes the rest. A crash anywhere between leaves the change open, and the recovery pass goes on
with it (`wallet.usecases.change_recovery`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError, RequestRefusal
from ledger.contract import (
    AccountChange,
    AccountChangeDocument,
    AccountView,
    LedgerRefusal,
    countersign_account_change,
    sign_account_change,
)
from wallet.contract import WalletRefusal
from wallet.contract.lifecycle import HOLDER_ORDER_LIFE_MAX
from wallet.domain.lifecycle import Change, ChangeKindName, Notice, refuse_unless_open
from wallet.domain.records import Wallet
from wallet.domain.rules import Evidence
from wallet.store import customers, hardware, lifecycle, wallets
from wallet.usecases.context import Context, is_definite, ledger_unavailable
from wallet.usecases.wallets import find_wallet

STEP_LIFE = timedelta(days=1)
"""How long one signed step may be repeated; then it is signed anew under another id, derived as well."""


def notify(connection: sa.Connection, wallet_id: UUID, kind: str, *, at: datetime, data: Mapping[str, object]) -> None:
    """Something that the holder is to be told, written in the transaction that makes it true. No personal data."""
    lifecycle.insert_notice(connection, Notice(ids.new_uuid7(), wallet_id, kind, at, data))


# --- record ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decision:
    """What `begin` records: `done` at once, or `pending` until the ledger has it too."""

    is_done: bool = False
    token: str | None = None
    progress: Mapping[str, object] | None = None


Decide = Callable[[sa.Connection, Wallet, Sequence[Change]], Decision]
"""(connection, the locked wallet, its open changes) -> decision, with the writes that hold at once made.
Raises: ProblemError; then nothing is recorded."""


def begin(
    context: Context,
    change_id: UUID,
    wallet_id: UUID,
    kind: ChangeKindName,
    content: Mapping[str, object],
    decide: Decide,
    *,
    lock_customer: bool = False,
) -> Change:
    """Record the change, or find it recorded. Raises: ProblemError(wallet-not-found, wallet-change-exists,
    id-from-future, change-in-progress) and what `decide` raises."""
    now = context.clock()
    if ids.is_from_future(change_id, now=now):
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)

    def work(connection: sa.Connection) -> Change:
        row = wallets.find_wallet(connection, wallet_id)
        if row is not None and lock_customer:
            customers.find_customer(connection, row.customer_id, lock="evidence")
        row = wallets.lock_wallet(connection, wallet_id)
        if row is None:
            raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
        known = lifecycle.find_change(connection, change_id)
        if known is not None:
            if (known.wallet_id, known.kind, known.content) != (wallet_id, kind, content):
                raise ProblemError(WalletRefusal.CHANGE_EXISTS)
            return known
        changes = lifecycle.open_changes(connection, wallet_id)
        decision = decide(connection, row, changes)
        change = Change(
            id=change_id,
            wallet_id=wallet_id,
            kind=kind,
            content=content,
            token=decision.token,
            state="done" if decision.is_done else "pending",
            progress=decision.progress or {},
            refusal=None,
            detail=None,
            due_at=None,
            created_at=now,
            ended_at=now if decision.is_done else None,
        )
        lifecycle.insert_change(connection, change)
        return change

    return context.database.run(work, isolation="READ COMMITTED")


def refuse_if_open(changes: Sequence[Change], kinds: Collection[ChangeKindName]) -> None:
    """Raises: ProblemError(change-in-progress) if one of these kinds is not finished."""
    for change in changes:
        if change.kind in kinds:
            raise ProblemError(WalletRefusal.CHANGE_IN_PROGRESS, f"chg_{change.id} ({change.kind}) is {change.state}")


def refuse_unless(row: Wallet) -> None:
    """Raises: ProblemError unless the wallet is open."""
    refusal = refuse_unless_open(row.state)
    if refusal is not None:
        raise ProblemError(refusal, ", ".join(sorted(row.suspensions)))


def find_change(context: Context, change_id: UUID) -> Change:
    """Raises: ProblemError(wallet-change-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = lifecycle.find_change(connection, change_id)
    if row is None:
        raise ProblemError(WalletRefusal.CHANGE_NOT_FOUND)
    return row


def list_changes(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Change]:
    """Newest first. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return lifecycle.list_changes(connection, wallet_id=wallet_id, before=before, limit=limit)


def list_notices(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Notice]:
    """Newest first. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return lifecycle.list_notices(connection, wallet_id=wallet_id, before=before, limit=limit)


# --- the ledger's side -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LedgerSaidNo:
    """Nothing of the step was booked, under any of its ids."""

    refusal: str
    detail: str


def ask_ledger(
    context: Context,
    change: Change,
    body: AccountChange,
    *,
    step: str,
    is_achieved: Callable[[AccountView], bool],
    consent: str | None = None,
) -> LedgerSaidNo | None:
    """One step at the ledger. None: it is as wanted there. Raises: ProblemError(service-unavailable) if nobody knows.

    With a consent the holder's document is countersigned, else one of our own is signed: the same one for `STEP_LIFE`.
    A refusal is believed only if the account is not as wanted: an earlier copy may have made it so.
    """
    if consent is not None:
        token = countersign_account_change(consent, key=context.key)
    else:
        since = max(timedelta(0), context.clock() - change.created_at)
        attempt = since // STEP_LIFE
        token = signed_by_us(
            context,
            body,
            id=ids.derive_uuid7(change.id, f"{step}-{attempt}"),
            valid_until=change.created_at + (attempt + 2) * STEP_LIFE,
        )
    refused = send(context, token, consent=consent)
    if refused is None or is_achieved(ledger_account(context, body.account)):
        return None
    return refused


def send(context: Context, token: str | None, *, consent: str | None = None) -> LedgerSaidNo | None:
    """Raises: ProblemError(service-unavailable) if the outcome is not known."""
    try:
        context.ledgers.home.client.change_account(token, consent=consent)
    except ServiceUnreachable as error:
        raise ledger_unavailable(error) from error
    except ProblemResponse as error:
        # A refusal that may pass (a waiting time, a balance) is a refusal too: nothing was booked.
        if is_definite(error) or (error.transient and 400 <= error.status < 500 and error.refusal != _REPLAYED):
            return LedgerSaidNo(error.refusal, error.detail)
        raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the ledger did not say; repeat the request") from error
    return None


_REPLAYED = RequestRefusal.SIGNATURE_REPLAYED.value


def ledger_account(context: Context, account: int) -> AccountView:
    """Raises: ProblemError(service-unavailable)."""
    try:
        return context.ledgers.home.client.get_account(account)
    except (ProblemResponse, ServiceUnreachable) as error:
        raise ledger_unavailable(error) from error


def signed_by_us(context: Context, body: AccountChange, *, id: UUID, valid_until: datetime) -> str:
    document = AccountChangeDocument(id=id, ledger=context.ledgers.home.name, change=body, valid_until=valid_until)
    return sign_account_change(document, key=context.key)


def finish(
    context: Context,
    change: Change,
    apply: Callable[[sa.Connection, Wallet, Change, datetime], Mapping[str, object]],
) -> Change:
    """The finishing transaction: `apply` makes the wallet's writes under its lock and returns the change's, unless the
    change has ended meanwhile."""
    now = context.clock()

    def work(connection: sa.Connection) -> Change:
        row = wallets.lock_wallet(connection, change.wallet_id)
        current = lifecycle.find_change(connection, change.id)
        if row is None or current is None:
            raise ProblemError(WalletRefusal.CHANGE_NOT_FOUND)
        if not current.is_open:
            return current
        values = dict(apply(connection, row, current, now))
        if values.get("state", current.state) not in ("pending", "waiting"):
            values["ended_at"] = now
        lifecycle.update_change(connection, change.id, **values)
        return lifecycle.find_change(connection, change.id) or current

    return context.database.run(work, isolation="READ COMMITTED")


def refused(said: LedgerSaidNo) -> dict[str, object]:
    """The values of a change that the ledger has refused."""
    return {"state": "refused", "refusal": said.refusal, "detail": said.detail[:500]}


# --- the holder ------------------------------------------------------------------------------------------------------


def check_holder(connection: sa.Connection, row: Wallet, token: str, *, typ: str) -> bytes:
    """The payload, if an active device of the wallet has signed it, which is no card: a card signs payments alone, so
    whatever else its key has signed comes from a broken chip. Raises: ProblemError(holder-order-invalid)."""
    try:
        kid = jws.peek_header(token).get("kid")
        key = row.devices.get(str(kid))
        if key is None:
            raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "signed by no active device of the wallet")
        if any(record.card.thumbprint == kid for record in hardware.cards_of(connection, row.id)):
            raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, "a card signs payments, and nothing else")
        return jws.verify(token, PublicKey.from_jwk(dict(key)), typ=typ)
    except jws.InvalidJws as error:
        raise ProblemError(WalletRefusal.HOLDER_ORDER_INVALID, error.reason) from None


def check_validity(context: Context, valid_until: datetime) -> None:
    """Raises: ProblemError(holder-order-expired)."""
    now = context.clock()
    if not now < valid_until <= now + HOLDER_ORDER_LIFE_MAX:
        hours = int(HOLDER_ORDER_LIFE_MAX.total_seconds()) // 3600
        raise ProblemError(WalletRefusal.HOLDER_ORDER_EXPIRED, f"valid_until lies at most {hours} hours ahead")


def account_of(row: Wallet) -> ids.AccountNumber:
    """Raises: ProblemError(wallet-not-open)."""
    if row.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    return row.account


def refuse_identification(context: Context, row: Wallet, identified_by: frozenset[Evidence]) -> None:
    """Raises: ProblemError(evidence-insufficient) unless it opens the wallet's class."""
    if not context.pack.allows(row.wallet_class, identified_by):
        needed = ", ".join(sorted(context.pack.classes[row.wallet_class].evidence))
        raise ProblemError(WalletRefusal.EVIDENCE_INSUFFICIENT, f"identify the holder again by: {needed}")

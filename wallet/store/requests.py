"""Payment requests on both sides, the accounts that are watched for them, and payers' codes that were redeemed."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import AccountNumber
from wallet.domain.limits import Usage
from wallet.domain.requests import Received, Request, Terms
from wallet.store.requests_tables import account_watch, incoming_request, payment_request, redemption, request_payment
from wallet.store.tables import wallet

_TERMS = ("amount_minor", "amount_min_minor", "amount_max_minor", "is_many")
IncomingStateName = Literal["open", "paid", "declined", "ended"]


# --- the payee's side ------------------------------------------------------------------------------------------------


def insert_request(connection: sa.Connection, row: Request) -> bool:
    """False if the id is taken."""
    values: dict[str, Any] = {name: getattr(row.terms, name) for name in _TERMS}
    for column in payment_request.c:
        if column.name not in values:
            values[column.name] = getattr(row, column.name)
    statement = insert(payment_request).values(values).on_conflict_do_nothing().returning(payment_request.c.id)
    return connection.execute(statement).first() is not None


def find_request(connection: sa.Connection, request_id: UUID, *, lock: bool = False) -> Request | None:
    query = sa.select(payment_request).where(payment_request.c.id == request_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else _request(row)


def save_progress(connection: sa.Connection, row: Request) -> None:
    """The members that change; the row must be locked."""
    connection.execute(
        sa.update(payment_request)
        .where(payment_request.c.id == row.id)
        .values(
            state=row.state,
            paid_minor=row.paid_minor,
            payments=row.payments,
            surplus_minor=row.surplus_minor,
            ended_at=row.ended_at,
        )
    )


def list_requests(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Request]:
    """Newest first."""
    query = sa.select(payment_request).where(payment_request.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(payment_request.c.created_at, payment_request.c.id) < sa.tuple_(*before))
    query = query.order_by(payment_request.c.created_at.desc(), payment_request.c.id.desc()).limit(limit)
    return [_request(row) for row in connection.execute(query).mappings()]


def requests_addressed_to(connection: sa.Connection, account: int, *, now: datetime, limit: int) -> list[Request]:
    """Open requests of wallets here that name this account as the payer, and that its wallet has not been shown."""
    is_shown = sa.exists().where(
        incoming_request.c.request_id == payment_request.c.id,
        incoming_request.c.wallet_id.in_(sa.select(wallet.c.id).where(wallet.c.account == account)),
    )
    query = (
        sa.select(payment_request)
        .where(
            payment_request.c.payer_account == account,
            payment_request.c.state.in_(("open", "part-paid")),
            payment_request.c.expires_at > now,
            ~is_shown,
        )
        .order_by(payment_request.c.created_at)
        .limit(limit)
    )
    return [_request(row) for row in connection.execute(query).mappings()]


def requests_expired(connection: sa.Connection, *, before: datetime, limit: int) -> list[Request]:
    query = (
        sa.select(payment_request)
        .where(payment_request.c.state.in_(("open", "part-paid")), payment_request.c.expires_at <= before)
        .order_by(payment_request.c.expires_at)
        .limit(limit)
    )
    return [_request(row) for row in connection.execute(query).mappings()]


def insert_payment(
    connection: sa.Connection, request_id: UUID, received: Received, *, is_surplus: bool, refund_account: int | None
) -> None:
    connection.execute(
        sa.insert(request_payment).values(
            transfer_id=received.transfer_id,
            request_id=request_id,
            payer_account=received.payer_account,
            refund_account=refund_account,
            amount_minor=received.amount_minor,
            is_surplus=is_surplus,
            seq=received.seq,
            booked_at=received.booked_at,
        )
    )


@dataclass(frozen=True, slots=True)
class RequestPayment:
    transfer_id: UUID
    request_id: UUID
    payer_account: AccountNumber | None
    refund_account: AccountNumber | None
    amount_minor: int
    is_surplus: bool
    seq: int
    booked_at: datetime


def find_payment(connection: sa.Connection, transfer_id: UUID) -> RequestPayment | None:
    query = sa.select(request_payment).where(request_payment.c.transfer_id == transfer_id)
    row = connection.execute(query).mappings().first()
    return None if row is None else RequestPayment(**row)


def save_refund_account(connection: sa.Connection, transfer_id: UUID, account: int) -> None:
    connection.execute(
        sa.update(request_payment)
        .where(request_payment.c.transfer_id == transfer_id, request_payment.c.refund_account.is_(None))
        .values(refund_account=account)
    )


def list_payments(connection: sa.Connection, *, request_id: UUID, after_seq: int, limit: int) -> list[RequestPayment]:
    """In order of booking."""
    query = (
        sa.select(request_payment)
        .where(request_payment.c.request_id == request_id, request_payment.c.seq > after_seq)
        .order_by(request_payment.c.seq)
        .limit(limit)
    )
    return [RequestPayment(**row) for row in connection.execute(query).mappings()]


def _request(row: sa.RowMapping) -> Request:
    values = dict(row)
    terms = Terms(**{name: values.pop(name) for name in _TERMS})
    return Request(terms=terms, **values)


# --- watched accounts ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Watch:
    """How far an account's statement has been read. `gap_cursor` goes on below `gap_seq`, down to `seen_seq`."""

    account: AccountNumber
    watched_until: datetime
    looked_at: datetime
    seen_seq: int
    gap_seq: int | None = None
    gap_cursor: str | None = None


def watch(connection: sa.Connection, row: Watch) -> None:
    """Watch an account from `seen_seq` on; one that is watched already is watched at least as long."""
    values = {column.name: getattr(row, column.name) for column in account_watch.c}
    statement = insert(account_watch).values(values)
    connection.execute(
        statement.on_conflict_do_update(
            constraint="account_watch_pk",
            set_={"watched_until": sa.func.greatest(account_watch.c.watched_until, statement.excluded.watched_until)},
        )
    )


def find_watch(connection: sa.Connection, account: int) -> Watch | None:
    query = sa.select(account_watch).where(account_watch.c.account == account)
    row = connection.execute(query).mappings().first()
    return None if row is None else Watch(**row)


def watches_due(connection: sa.Connection, *, looked_before: datetime, limit: int) -> list[Watch]:
    query = (
        sa.select(account_watch)
        .where(account_watch.c.looked_at <= looked_before)
        .order_by(account_watch.c.looked_at)
        .limit(limit)
    )
    return [Watch(**row) for row in connection.execute(query).mappings()]


def save_watch(connection: sa.Connection, before: Watch, after: Watch) -> None:
    """Only if nobody has looked meanwhile: his place stands then, and what was read twice was recorded once."""
    connection.execute(
        sa.update(account_watch)
        .where(
            account_watch.c.account == before.account,
            account_watch.c.looked_at == before.looked_at,
            account_watch.c.seen_seq == before.seen_seq,
        )
        .values(looked_at=after.looked_at, seen_seq=after.seen_seq, gap_seq=after.gap_seq, gap_cursor=after.gap_cursor)
    )


def end_watches(connection: sa.Connection, *, before: datetime) -> None:
    """Accounts whose time is over and that have been read to their end since."""
    connection.execute(
        sa.delete(account_watch).where(
            account_watch.c.watched_until < before,
            account_watch.c.looked_at >= account_watch.c.watched_until,
            account_watch.c.gap_cursor.is_(None),
        )
    )


# --- the payer's side ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request that a wallet has been shown."""

    wallet_id: UUID
    request_id: UUID
    document: str
    state: IncomingStateName
    needs_approval: bool
    paid_minor: int
    payment_id: UUID | None
    decline: str | None
    received_at: datetime
    expires_at: datetime


def insert_incoming(connection: sa.Connection, row: Incoming) -> None:
    """One that is known stays as it is, except that it may need an approval now."""
    values = {column.name: getattr(row, column.name) for column in incoming_request.c}
    statement = insert(incoming_request).values(values)
    connection.execute(
        statement.on_conflict_do_update(
            constraint="incoming_request_pk",
            set_={"needs_approval": sa.or_(incoming_request.c.needs_approval, statement.excluded.needs_approval)},
        )
    )


def find_incoming(
    connection: sa.Connection, wallet_id: UUID, request_id: UUID, *, lock: bool = False
) -> Incoming | None:
    query = sa.select(incoming_request).where(
        incoming_request.c.wallet_id == wallet_id, incoming_request.c.request_id == request_id
    )
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else Incoming(**row)


def save_incoming(connection: sa.Connection, wallet_id: UUID, request_id: UUID, **values: Any) -> None:
    connection.execute(
        sa.update(incoming_request)
        .where(incoming_request.c.wallet_id == wallet_id, incoming_request.c.request_id == request_id)
        .values(**values)
    )


def end_incoming(connection: sa.Connection, wallet_id: UUID, request_id: UUID) -> None:
    """Nobody will pay it any more; what this wallet has paid or declined stays so."""
    connection.execute(
        sa.update(incoming_request)
        .where(
            incoming_request.c.wallet_id == wallet_id,
            incoming_request.c.request_id == request_id,
            incoming_request.c.state == "open",
        )
        .values(state="ended")
    )


def list_incoming(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Incoming]:
    """Newest first."""
    place = (incoming_request.c.received_at, incoming_request.c.request_id)
    query = sa.select(incoming_request).where(incoming_request.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(*place) < sa.tuple_(*before))
    query = query.order_by(*(column.desc() for column in place)).limit(limit)
    return [Incoming(**row) for row in connection.execute(query).mappings()]


def declines_untold(connection: sa.Connection, *, after: datetime, limit: int) -> list[Incoming]:
    """Of requests that have not expired by `after`."""
    query = (
        sa.select(incoming_request)
        .where(incoming_request.c.decline.is_not(None), incoming_request.c.expires_at > after)
        .order_by(incoming_request.c.expires_at)
        .limit(limit)
    )
    return [Incoming(**row) for row in connection.execute(query).mappings()]


# --- payers' codes ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redemption:
    """A payer's code and the request that it pays."""

    hold_id: UUID
    wallet_id: UUID
    request_id: UUID
    payment_id: UUID
    credit_account: AccountNumber
    amount_minor: int
    cap_minor: int
    instruction: str
    valid_until: datetime
    state: Literal["initiated", "final", "refused"]
    tries: int
    counted_on: date | None
    refusal: str | None
    seq: int | None
    booked_at: datetime | None
    created_at: datetime


def insert_redemption(connection: sa.Connection, row: Redemption) -> bool:
    """False if the code was redeemed before."""
    values = {column.name: getattr(row, column.name) for column in redemption.c}
    statement = insert(redemption).values(values).on_conflict_do_nothing().returning(redemption.c.hold_id)
    return connection.execute(statement).first() is not None


def find_redemption(connection: sa.Connection, hold_id: UUID, *, lock: bool = False) -> Redemption | None:
    query = sa.select(redemption).where(redemption.c.hold_id == hold_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else Redemption(**row)


def save_redemption(connection: sa.Connection, hold_id: UUID, **values: Any) -> None:
    connection.execute(sa.update(redemption).where(redemption.c.hold_id == hold_id).values(**values))


def redemptions_unfinished(connection: sa.Connection, *, before: datetime, limit: int) -> list[Redemption]:
    query = (
        sa.select(redemption)
        .where(redemption.c.state == "initiated", redemption.c.created_at <= before)
        .order_by(redemption.c.created_at)
        .limit(limit)
    )
    return [Redemption(**row) for row in connection.execute(query).mappings()]


def save_usage(connection: sa.Connection, wallet_id: UUID, usage: Usage) -> None:
    """The wallet's row must be locked."""
    connection.execute(
        sa.update(wallet)
        .where(wallet.c.id == wallet_id)
        .values(usage_day=usage.day, usage_day_minor=usage.day_minor, usage_year_minor=usage.year_minor)
    )

"""Payment records."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa

from wallet.domain.records import Payment
from wallet.store.tables import payment


@dataclass(frozen=True, slots=True)
class Booked:
    payment_id: UUID
    seq: int | None
    booked_at: datetime


def insert_payments(connection: sa.Connection, rows: Sequence[Payment]) -> None:
    """Raises sqlalchemy.exc.IntegrityError if an id was taken meanwhile."""
    if rows:
        connection.execute(sa.insert(payment), [asdict(row) for row in rows])


def find_payment(connection: sa.Connection, payment_id: UUID) -> Payment | None:
    return find_payments(connection, [payment_id]).get(payment_id)


def find_payments(
    connection: sa.Connection, payment_ids: Collection[UUID], *, lock: bool = False
) -> dict[UUID, Payment]:
    ids = sa.bindparam(None, list(payment_ids), sa.ARRAY(payment.c.id.type))
    query = sa.select(payment).where(payment.c.id == sa.func.any(ids)).order_by(payment.c.id)
    found = connection.execute(query.with_for_update() if lock else query).mappings()
    return {row["id"]: Payment(**row) for row in found}


def finish_initiated(connection: sa.Connection, booked: Sequence[Booked]) -> int:
    """Marks initiated payments final; returns how many were still initiated."""
    if not booked:
        return 0
    statement = (
        sa.update(payment)
        .where(payment.c.id == sa.bindparam("b_id"), payment.c.state == "initiated")
        .values(state="final", seq=sa.bindparam("b_seq"), booked_at=sa.bindparam("b_booked_at"))
    )
    ordered = sorted(booked, key=lambda item: item.payment_id)
    return connection.execute(
        statement, [{"b_id": item.payment_id, "b_seq": item.seq, "b_booked_at": item.booked_at} for item in ordered]
    ).rowcount


def mark_final(connection: sa.Connection, booked: Booked, *, counted_on: date | None) -> None:
    connection.execute(
        sa.update(payment)
        .where(payment.c.id == booked.payment_id)
        .values(
            state="final",
            seq=booked.seq,
            booked_at=booked.booked_at,
            counted_on=counted_on,
            refusal=None,
            is_transient=None,
            detail=None,
        )
    )


def mark_refused(
    connection: sa.Connection, payment_id: UUID, *, refusal: str, is_transient: bool, detail: str | None
) -> None:
    connection.execute(
        sa.update(payment)
        .where(payment.c.id == payment_id, payment.c.state != "final")
        .values(state="refused", refusal=refusal, is_transient=is_transient, detail=detail, counted_on=None)
    )


def mark_tried_again(
    connection: sa.Connection, row: Payment, *, instruction: str, valid_until: datetime, tried_at: datetime
) -> None:
    """Back to initiated, with the newest signature. `row.counted_on` must be the day its usage is counted on."""
    connection.execute(
        sa.update(payment)
        .where(payment.c.id == row.id)
        .values(
            state="initiated",
            refusal=None,
            is_transient=None,
            detail=None,
            instruction=instruction,
            valid_until=valid_until,
            counted_on=row.counted_on,
            tried_at=tried_at,
        )
    )


def mark_answered(connection: sa.Connection, answered: Sequence[tuple[Payment, datetime]]) -> None:
    """Of each attempt that was answered but decides nothing: `tried_at` goes back to the earlier attempt's, unless a
    newer one has begun since."""
    for row, earlier in sorted(answered, key=lambda pair: pair[0].id):
        connection.execute(
            sa.update(payment)
            .where(payment.c.id == row.id, payment.c.state == "initiated", payment.c.tried_at == row.tried_at)
            .values(tried_at=earlier)
        )


def mark_deposit_credited(connection: sa.Connection, payment_id: UUID, *, credited_at: datetime) -> None:
    connection.execute(
        sa.update(payment)
        .where(payment.c.id == payment_id, payment.c.deposit_credited_at.is_(None))
        .values(deposit_credited_at=credited_at)
    )


def payments_unfinished(connection: sa.Connection, *, before: datetime, limit: int) -> list[Payment]:
    """Initiated ones, and exchanges out whose deposit is not credited yet."""
    is_uncredited = sa.and_(
        payment.c.kind == "exchange-out", payment.c.state == "final", payment.c.deposit_credited_at.is_(None)
    )
    query = (
        sa.select(payment)
        .where(sa.or_(payment.c.state == "initiated", is_uncredited), payment.c.tried_at <= before)
        .order_by(payment.c.tried_at)
        .limit(limit)
    )
    return [Payment(**row) for row in connection.execute(query).mappings()]


def list_payments(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Payment]:
    """Newest first."""
    query = sa.select(payment).where(payment.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(payment.c.created_at, payment.c.id) < sa.tuple_(*before))
    query = query.order_by(payment.c.created_at.desc(), payment.c.id.desc()).limit(limit)
    return [Payment(**row) for row in connection.execute(query).mappings()]

"""Payment records. What carrying them needs is in `wallet.store.carriage`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from wallet.domain.records import Payment
from wallet.store.tables import payment


def find_payment(connection: sa.Connection, payment_id: UUID) -> Payment | None:
    row = connection.execute(sa.select(payment).where(payment.c.id == payment_id)).mappings().first()
    return None if row is None else Payment(**row)


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

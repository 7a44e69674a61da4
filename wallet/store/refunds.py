"""Payments received that something was given back of, and the refunds. Originals are locked before their refunds."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.refunds import Original, Refund
from wallet.store.requests_tables import refund, refund_original


def lock_original(connection: sa.Connection, row: Original) -> Original:
    """The original as it stands, its row locked; this one if there was none yet."""
    values = {column.name: getattr(row, column.name) for column in refund_original.c}
    connection.execute(insert(refund_original).values(values).on_conflict_do_nothing())
    query = sa.select(refund_original).where(refund_original.c.transfer_id == row.transfer_id).with_for_update()
    return Original(**connection.execute(query).mappings().one())


def find_original(connection: sa.Connection, transfer_id: UUID, *, lock: bool = False) -> Original | None:
    query = sa.select(refund_original).where(refund_original.c.transfer_id == transfer_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else Original(**row)


def save_refunded(connection: sa.Connection, row: Original) -> None:
    connection.execute(
        sa.update(refund_original)
        .where(refund_original.c.transfer_id == row.transfer_id)
        .values(refunded_minor=row.refunded_minor)
    )


def insert_refund(connection: sa.Connection, row: Refund) -> bool:
    """False if the id is taken, by a refund of another original."""
    values = {column.name: getattr(row, column.name) for column in refund.c}
    statement = insert(refund).values(values).on_conflict_do_nothing().returning(refund.c.id)
    return connection.execute(statement).first() is not None


def find_refund(connection: sa.Connection, refund_id: UUID) -> Refund | None:
    row = connection.execute(sa.select(refund).where(refund.c.id == refund_id)).mappings().first()
    return None if row is None else Refund(**row)


def save_refund(connection: sa.Connection, refund_id: UUID, **values: Any) -> None:
    connection.execute(sa.update(refund).where(refund.c.id == refund_id).values(**values))


def list_refunds(connection: sa.Connection, original_id: UUID, *, limit: int) -> list[Refund]:
    """Oldest first."""
    query = (
        sa.select(refund).where(refund.c.original_id == original_id).order_by(refund.c.created_at, refund.c.id)
    ).limit(limit)
    return [Refund(**row) for row in connection.execute(query).mappings()]


def refunds_reserved(connection: sa.Connection, *, before: datetime, limit: int) -> list[Refund]:
    query = (
        sa.select(refund)
        .where(refund.c.state == "reserved", refund.c.created_at <= before)
        .order_by(refund.c.created_at)
        .limit(limit)
    )
    return [Refund(**row) for row in connection.execute(query).mappings()]

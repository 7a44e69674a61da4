"""Exchange-in sagas. Every write of an outcome is fenced by the attempt that made it."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.records import ExchangeIn
from wallet.store.tables import exchange_in

_UNFINISHED = ("initiated", "debited", "compensating")


def insert_exchange(connection: sa.Connection, row: ExchangeIn) -> bool:
    """False if the id is taken."""
    statement = insert(exchange_in).values(asdict(row)).on_conflict_do_nothing().returning(exchange_in.c.id)
    return connection.execute(statement).first() is not None


def find_exchange(connection: sa.Connection, exchange_id: UUID) -> ExchangeIn | None:
    row = connection.execute(sa.select(exchange_in).where(exchange_in.c.id == exchange_id)).mappings().first()
    return None if row is None else ExchangeIn(**row)


def claim_exchange(
    connection: sa.Connection,
    exchange_id: UUID,
    *,
    now: datetime,
    claimed_until: datetime,
    ignore_claim: bool,
) -> ExchangeIn | None:
    """A new attempt at an unfinished exchange.

    None if it is finished or somebody else is at it. A claim only saves work: what keeps the saga right is the
    fence of the attempt's number and the idempotent ids, so a dead process's claim may be ignored.
    """
    query = (
        sa.select(exchange_in)
        .where(exchange_in.c.id == exchange_id, exchange_in.c.state.in_(_UNFINISHED))
        .with_for_update()
    )
    found = connection.execute(query).mappings().first()
    if found is None or (found["claimed_until"] > now and not ignore_claim):
        return None
    row = ExchangeIn(**found)
    changes: dict[str, Any] = {"attempt": row.attempt + 1, "claimed_until": claimed_until}
    connection.execute(sa.update(exchange_in).where(exchange_in.c.id == exchange_id).values(changes))
    return replace(row, **changes)


def advance_exchange(connection: sa.Connection, row: ExchangeIn, **changes: Any) -> ExchangeIn | None:
    """`row` with the changes, written if its attempt is still the newest and its state unchanged; else None."""
    statement = (
        sa.update(exchange_in)
        .where(
            exchange_in.c.id == row.id,
            exchange_in.c.attempt == row.attempt,
            exchange_in.c.state == row.state,
        )
        .values(changes)
    )
    return replace(row, **changes) if connection.execute(statement).rowcount == 1 else None


def exchanges_unfinished(
    connection: sa.Connection, *, now: datetime, ignore_claims: bool, limit: int
) -> list[ExchangeIn]:
    query = sa.select(exchange_in).where(exchange_in.c.state.in_(_UNFINISHED))
    if not ignore_claims:
        query = query.where(exchange_in.c.claimed_until <= now)
    found = connection.execute(query.order_by(exchange_in.c.claimed_until).limit(limit)).mappings()
    return [ExchangeIn(**row) for row in found]

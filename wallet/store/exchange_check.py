"""Exchanges of a time, and those behind a derived id: what reconciliation compares."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from wallet.domain.records import ExchangeIn, Payment
from wallet.store.tables import exchange_in, payment

_RANDOM_BITS = 80
"""Of a UUIDv7; what is above them is its millisecond, which derived ids share."""


def exchanges_in(connection: sa.Connection, *, since: datetime, until: datetime) -> list[ExchangeIn]:
    """Begun in the time, or unfinished since before."""
    columns = exchange_in.c
    unfinished = columns.state.in_(("initiated", "debited", "compensating"))
    query = sa.select(exchange_in).where(columns.created_at < until, (columns.created_at >= since) | unfinished)
    return [ExchangeIn(**row) for row in connection.execute(query).mappings()]


def exchanges_out(connection: sa.Connection, *, since: datetime, until: datetime) -> list[Payment]:
    """As `exchanges_in`."""
    columns = payment.c
    unfinished = (columns.state == "initiated") | ((columns.state == "final") & columns.deposit_credited_at.is_(None))
    query = sa.select(payment).where(
        columns.kind == "exchange-out",
        columns.created_at < until,
        (columns.created_at >= since) | unfinished,
    )
    return [Payment(**row) for row in connection.execute(query).mappings()]


def exchanges_near(connection: sa.Connection, derived: Iterable[UUID]) -> tuple[list[ExchangeIn], list[Payment]]:
    """The exchanges from whose ids these may be derived: those of the same milliseconds."""
    came_in: list[ExchangeIn] = []
    went_out: list[Payment] = []
    for millisecond in {id.int >> _RANDOM_BITS for id in derived}:
        first = UUID(int=millisecond << _RANDOM_BITS)
        last = UUID(int=(millisecond + 1 << _RANDOM_BITS) - 1)
        query = sa.select(exchange_in).where(exchange_in.c.id.between(first, last))
        came_in += [ExchangeIn(**row) for row in connection.execute(query).mappings()]
        out = sa.select(payment).where(payment.c.id.between(first, last), payment.c.kind == "exchange-out")
        went_out += [Payment(**row) for row in connection.execute(out).mappings()]
    return came_in, went_out

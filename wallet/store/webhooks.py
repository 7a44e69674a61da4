"""Webhook endpoints and deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.events import Event
from wallet.store.event_tables import event, webhook_delivery, webhook_endpoint, webhook_replay

DeliveryStateName = Literal["pending", "delivered", "dead"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    id: UUID
    client: str
    url: str
    types: list[str]
    """Empty = all."""
    state: Literal["enabled", "disabled"]
    disabled_for: str | None
    failing_since: datetime | None
    position: int
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Delivery:
    endpoint_id: UUID
    event_id: UUID
    position: int
    state: DeliveryStateName
    attempts: int
    next_at: datetime
    last_status: int | None
    last_error: str | None
    ended_at: datetime | None


def insert_endpoint(connection: sa.Connection, row: Endpoint) -> bool:
    """False if the id is taken."""
    values = {item.name: getattr(row, item.name) for item in fields(row)}
    statement = insert(webhook_endpoint).values(values).on_conflict_do_nothing().returning(webhook_endpoint.c.id)
    return connection.execute(statement).first() is not None


def find_endpoint(connection: sa.Connection, endpoint_id: UUID, *, lock: bool = False) -> Endpoint | None:
    query = sa.select(webhook_endpoint).where(webhook_endpoint.c.id == endpoint_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else Endpoint(**row)


def endpoints_of(connection: sa.Connection, client: str) -> list[Endpoint]:
    query = sa.select(webhook_endpoint).where(webhook_endpoint.c.client == client).order_by(webhook_endpoint.c.id)
    return [Endpoint(**row) for row in connection.execute(query).mappings()]


def update_endpoint(connection: sa.Connection, endpoint_id: UUID, **values: object) -> None:
    connection.execute(sa.update(webhook_endpoint).where(webhook_endpoint.c.id == endpoint_id).values(**values))


def endpoints_behind(connection: sa.Connection, *, position: int, limit: int) -> list[Endpoint]:
    """Enabled endpoints that have not been told all; locked, those of another process left out."""
    query = (
        sa.select(webhook_endpoint)
        .where(webhook_endpoint.c.state == "enabled", webhook_endpoint.c.position < position)
        .order_by(webhook_endpoint.c.position)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [Endpoint(**row) for row in connection.execute(query).mappings()]


def add_deliveries(connection: sa.Connection, endpoint_id: UUID, events: Sequence[Event], *, now: datetime) -> int:
    """Due now. Those that there were already are begun anew."""
    if not events:
        return 0
    statement = insert(webhook_delivery)
    fresh = {"state": "pending", "attempts": 0, "next_at": statement.excluded.next_at, "ended_at": None}
    statement = statement.on_conflict_do_update(constraint="webhook_delivery_pk", set_=fresh)
    rows = [
        {
            "endpoint_id": endpoint_id,
            "event_id": item.id,
            "position": item.position,
            "state": "pending",
            "attempts": 0,
            "next_at": now,
        }
        for item in events
    ]
    connection.execute(statement, rows)
    return len(rows)


def claim_due(
    connection: sa.Connection, *, now: datetime, claimed_until: datetime, each: int, limit: int
) -> list[tuple[Delivery, Endpoint, Event]]:
    """Deliveries to be tried now, at most `each` of one endpoint, oldest events first; the caller's until then."""
    place = sa.func.row_number().over(partition_by=webhook_delivery.c.endpoint_id, order_by=webhook_delivery.c.position)
    due = (
        sa.select(webhook_delivery.c.endpoint_id, webhook_delivery.c.event_id, place.label("place"))
        .join(webhook_endpoint, webhook_endpoint.c.id == webhook_delivery.c.endpoint_id)
        .where(
            webhook_delivery.c.state == "pending",
            webhook_delivery.c.next_at <= now,
            webhook_endpoint.c.state == "enabled",
        )
        .subquery()
    )
    query = (
        sa.select(webhook_delivery)
        .join(
            due,
            sa.and_(due.c.endpoint_id == webhook_delivery.c.endpoint_id, due.c.event_id == webhook_delivery.c.event_id),
        )
        .where(due.c.place <= each)
        .order_by(due.c.place, webhook_delivery.c.next_at)
        .limit(limit)
        .with_for_update(of=webhook_delivery, skip_locked=True)
    )
    claimed = [Delivery(**row) for row in connection.execute(query).mappings()]
    found = []
    for row in claimed:
        connection.execute(_one(row).values(next_at=claimed_until))
        endpoint = find_endpoint(connection, row.endpoint_id)
        item = connection.execute(sa.select(event).where(event.c.id == row.event_id)).mappings().first()
        if endpoint is not None and item is not None:
            found.append((row, endpoint, Event(**item)))
    return found


def conclude(connection: sa.Connection, row: Delivery, **values: object) -> None:
    connection.execute(_one(row).where(webhook_delivery.c.state == "pending").values(**values))


def page_of_deliveries(
    connection: sa.Connection, endpoint_id: UUID, *, state: str | None, after: int, limit: int
) -> list[Delivery]:
    """In order of position."""
    query = sa.select(webhook_delivery).where(
        webhook_delivery.c.endpoint_id == endpoint_id, webhook_delivery.c.position > after
    )
    if state is not None:
        query = query.where(webhook_delivery.c.state == state)
    found = connection.execute(query.order_by(webhook_delivery.c.position).limit(limit)).mappings()
    return [Delivery(**row) for row in found]


def insert_replay(
    connection: sa.Connection, replay_id: UUID, endpoint_id: UUID, *, request: object, deliveries: int, now: datetime
) -> None:
    connection.execute(
        sa.insert(webhook_replay).values(
            id=replay_id, endpoint_id=endpoint_id, request=request, deliveries=deliveries, created_at=now
        )
    )


def find_replay(connection: sa.Connection, replay_id: UUID) -> tuple[UUID, object, int] | None:
    """(endpoint, request, deliveries)."""
    row = connection.execute(sa.select(webhook_replay).where(webhook_replay.c.id == replay_id)).first()
    return None if row is None else (row.endpoint_id, row.request, row.deliveries)


def _one(row: Delivery) -> sa.Update:
    return sa.update(webhook_delivery).where(
        webhook_delivery.c.endpoint_id == row.endpoint_id, webhook_delivery.c.event_id == row.event_id
    )

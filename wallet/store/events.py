"""Events: written where something happens, in its transaction; numbered after the commit; read in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import derive_uuid7, new_uuid7
from wallet.domain.events import Event, EventType
from wallet.store.event_tables import event, event_counter, received_cursor
from wallet.store.tables import payment, wallet

COUNTER = "event"


def emit(
    connection: sa.Connection,
    type: EventType,
    subject: str,
    *,
    at: datetime,
    wallet_id: UUID | None = None,
    data: Mapping[str, object] | None = None,
    once: UUID | None = None,
) -> None:
    """An event, in the transaction of what it tells of. `once`: the subject's id, if it happens only once."""
    values = {
        "id": new_uuid7() if once is None else event_id(once, type),
        "type": type.value,
        "subject": subject,
        "wallet_id": wallet_id,
        "created_at": at,
        "data": dict(data or {}),
    }
    connection.execute(insert(event).values(values).on_conflict_do_nothing())


def emit_raw(
    connection: psycopg.Connection[Any],
    type: EventType,
    subject: str,
    *,
    at: datetime,
    wallet_id: UUID,
    data: Mapping[str, object],
) -> None:
    """`emit`, where the transaction is psycopg's and the caller's lock lets the fact come about once."""
    connection.execute(
        "INSERT INTO event (id, type, subject, wallet_id, created_at, data) VALUES (%s, %s, %s, %s, %s, %s)",
        (new_uuid7(), type.value, subject, wallet_id, at, Jsonb(dict(data))),
    )


def event_id(subject: UUID, type: EventType) -> UUID:
    """The id of what happens to a subject once: told twice, it is one event."""
    return derive_uuid7(subject, f"event/{type.value}")


EMIT_FINAL = (
    "INSERT INTO event (id, type, subject, wallet_id, created_at, data) SELECT event_id, 'payment.final',"
    " 'trf_' || id, wallet_id, booked_at, '{}' FROM done ON CONFLICT (id) DO NOTHING"
)
"""After `WITH done AS (UPDATE payment ... RETURNING payment.id, wallet_id, booked_at, event_id)`."""


def emit_final(connection: psycopg.Connection[Any], payment_id: UUID) -> None:
    """In the transaction that has made the payment final."""
    connection.execute(
        "WITH done AS (SELECT id, wallet_id, booked_at, %s::uuid AS event_id FROM payment"
        f" WHERE id = %s AND state = 'final') {EMIT_FINAL}",
        (event_id(payment_id, EventType.PAYMENT_FINAL), payment_id),
    )


def emit_refused(connection: psycopg.Connection[Any], payment_id: UUID, *, refusal: str) -> None:
    """In the transaction that has refused the payment."""
    connection.execute(
        "INSERT INTO event (id, type, subject, wallet_id, created_at, data) SELECT %s, 'payment.refused', 'trf_' || id,"
        " wallet_id, now(), jsonb_build_object('refusal', %s::text) FROM payment WHERE id = %s AND state = 'refused'",
        (new_uuid7(), refusal, payment_id),
    )


def number(connection: sa.Connection, *, limit: int) -> int:
    """Give the next positions to events that have none; how many. One caller at a time: the counter's row is locked.

    So whoever has read up to a position has missed nothing before it: positions become visible in their own order.
    """
    connection.execute(insert(event_counter).values(name=COUNTER, position=0).on_conflict_do_nothing())
    counter = sa.select(event_counter.c.position).where(event_counter.c.name == COUNTER).with_for_update()
    last: int = connection.execute(counter).scalar_one()
    waiting = sa.select(event.c.id, event.c.type).where(event.c.position.is_(None))
    rows = connection.execute(waiting.order_by(event.c.created_at, event.c.id).limit(limit)).all()
    if not rows:
        return 0
    order = (
        sa.func.unnest(sa.cast([row.id for row in rows], sa.ARRAY(sa.Uuid)))
        .table_valued("id", with_ordinality="place", name="new")
        .render_derived()
    )
    connection.execute(
        sa.update(event).where(event.c.id == order.c.id).values(position=last + sa.cast(order.c.place, sa.BigInteger))
    )
    connection.execute(
        sa.update(event_counter).where(event_counter.c.name == COUNTER).values(position=last + len(rows))
    )
    _tell_our_payees(connection, [row.id for row in rows if row.type == EventType.PAYMENT_FINAL.value])
    return len(rows)


def _tell_our_payees(connection: sa.Connection, finals: Collection[UUID]) -> None:
    """`money.received` of payments between two wallets of this institution: no need to ask the ledger."""
    if not finals:
        return
    query = (
        sa.select(payment.c.id, payment.c.amount_minor, payment.c.booked_at, payment.c.kind, payment.c.seq)
        .add_columns(wallet.c.id.label("payee"))
        .join(event, sa.literal("trf_").concat(sa.cast(payment.c.id, sa.Text)) == event.c.subject)
        .join(wallet, wallet.c.account == payment.c.credit_account)
        .where(event.c.id.in_(finals), payment.c.id == sa.cast(sa.func.substr(event.c.subject, 5), sa.Uuid))
    )
    rows = [
        received(row.id, row.payee, kind=row.kind, amount_minor=row.amount_minor, seq=row.seq, at=row.booked_at)
        for row in connection.execute(query)
    ]
    add_received(connection, rows)


def received(
    transfer_id: UUID, wallet_id: UUID, *, kind: str, amount_minor: int, seq: int | None, at: datetime
) -> dict[str, object]:
    """A `money.received`: the same id whichever way it was learnt."""
    return {
        "id": event_id(transfer_id, EventType.MONEY_RECEIVED),
        "type": EventType.MONEY_RECEIVED.value,
        "subject": f"trf_{transfer_id}",
        "wallet_id": wallet_id,
        "created_at": at,
        "data": {"kind": kind, "amount_minor": str(amount_minor), "seq": seq},
    }


def add_received(connection: sa.Connection, rows: Sequence[Mapping[str, object]]) -> None:
    if rows:
        connection.execute(insert(event).on_conflict_do_nothing(), [dict(row) for row in rows])


def page(connection: sa.Connection, *, after: int, types: Collection[str] = (), limit: int) -> list[Event]:
    """In order of position."""
    query = sa.select(event).where(event.c.position > after)
    if types:
        query = query.where(event.c.type.in_(types))
    return [Event(**row) for row in connection.execute(query.order_by(event.c.position).limit(limit)).mappings()]


def last_position(connection: sa.Connection) -> int:
    query = sa.select(event_counter.c.position).where(event_counter.c.name == COUNTER)
    return connection.execute(query).scalar() or 0


def find_events(connection: sa.Connection, ids: Collection[UUID]) -> list[Event]:
    query = sa.select(event).where(event.c.id.in_(ids), event.c.position.is_not(None)).order_by(event.c.position)
    return [Event(**row) for row in connection.execute(query).mappings()]


def events_between(
    connection: sa.Connection, *, since: datetime, until: datetime, types: Collection[str], limit: int
) -> list[Event]:
    query = sa.select(event).where(
        event.c.created_at >= since, event.c.created_at < until, event.c.position.is_not(None)
    )
    if types:
        query = query.where(event.c.type.in_(types))
    return [Event(**row) for row in connection.execute(query.order_by(event.c.position).limit(limit)).mappings()]


# --- statements looked at --------------------------------------------------------------------------------------------


def wallets_to_look_at(
    connection: sa.Connection, *, before: datetime, limit: int
) -> list[tuple[UUID, int, int, str | None]]:
    """(wallet, account, last seq seen, cursor) of open wallets, the one longest not looked at first."""
    query = (
        sa.select(wallet.c.id, wallet.c.account, received_cursor.c.seq, received_cursor.c.cursor)
        .outerjoin(received_cursor, received_cursor.c.wallet_id == wallet.c.id)
        .where(
            wallet.c.account.is_not(None),
            sa.or_(received_cursor.c.looked_at.is_(None), received_cursor.c.looked_at < before),
        )
        .order_by(received_cursor.c.looked_at.asc().nulls_first(), wallet.c.id)
        .limit(limit)
    )
    return [(row.id, row.account, row.seq or 0, row.cursor) for row in connection.execute(query)]


def save_looked(
    connection: sa.Connection, wallet_id: UUID, *, seq: int, cursor: str | None, looked_at: datetime
) -> None:
    values = {"seq": seq, "cursor": cursor, "looked_at": looked_at}
    statement = insert(received_cursor).values(wallet_id=wallet_id, **values)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=[received_cursor.c.wallet_id],
            set_=values,
            where=received_cursor.c.seq <= seq,
        )
    )

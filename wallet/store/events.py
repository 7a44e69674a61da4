"""Events: written where something happens, in its transaction, and numbered after the commit; or made, numbered, from
what the ledger has booked. Read in order."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.types.json import Jsonb
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import derive_uuid7, new_uuid7
from ledger.contract import Booking
from wallet.domain.events import Event, EventType
from wallet.store.event_tables import event, event_counter, told_booking
from wallet.store.rows import array_literal

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


def emit_final(connection: psycopg.Connection[Any], payment_id: UUID) -> None:
    """In the transaction that has made the payment final."""
    connection.execute(
        "INSERT INTO event (id, type, subject, wallet_id, created_at, data) SELECT %s, 'payment.final', 'trf_' || id,"
        " wallet_id, booked_at, '{}' FROM payment WHERE id = %s AND state = 'final'"
        " ON CONFLICT ON CONSTRAINT event_pk DO NOTHING",
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
    return len(rows)


# --- from the ledger's bookings --------------------------------------------------------------------------------------


def told_through(connection: sa.Connection, ledger: str) -> int:
    """The seq up to which a ledger's bookings have become events."""
    return connection.execute(sa.select(told_booking.c.seq).where(told_booking.c.ledger == ledger)).scalar() or 0


@dataclass(frozen=True, slots=True)
class _Told:
    """A booking as it is told to a wallet: to its payer that it is final, to its payee what came."""

    booking: Booking
    type: EventType
    wallet_id: UUID


def tell_bookings(
    connection: psycopg.Connection[Any],
    ledger: str,
    bookings: Sequence[Booking],
    *,
    after_seq: int,
    through_seq: int,
    under_way_since: datetime,
) -> int:
    """Bookings with after_seq < seq <= through_seq become numbered events: of the payments carried here that they are
    final, of wallets that they were credited. How far it went; not through if a booking belongs to a payment tried
    since `under_way_since` whose request has not recorded it yet: the rest is for the next time.

    Raises: psycopg.errors.UniqueViolation if one is being told elsewhere at this moment: for the next time too.
    """
    connection.execute(
        "INSERT INTO event_counter (name, position) VALUES (%s, 0) ON CONFLICT DO NOTHING", (COUNTER,), prepare=True
    )
    row = connection.execute(
        "SELECT position, (SELECT seq FROM told_booking WHERE ledger = %s) FROM event_counter WHERE name = %s"
        " FOR UPDATE OF event_counter",
        (ledger, COUNTER),
        prepare=True,
    ).fetchone()
    position, told = row or (0, None)
    if (told or 0) != after_seq:
        return 0  # another process was quicker
    wallets = _wallets_of(connection, {account for item in bookings for account in (item.debit, item.credit)})
    payments = _carried(connection, [item.transfer for item in bookings if item.debit in wallets])
    made: list[_Told] = []
    lost: list[tuple[UUID, int, datetime]] = []
    for item in bookings:
        payer, state, tried_at = payments.get(item.transfer, (None, None, None))
        if state == "initiated" and tried_at is not None and tried_at > under_way_since:
            through_seq = item.seq - 1
            break
        if payer is not None and state in ("initiated", "final"):
            if state == "initiated":
                lost.append((item.transfer, item.seq, item.booked_at))
            made.append(_Told(item, EventType.PAYMENT_FINAL, payer))
        payee = wallets.get(item.credit)
        if payee is not None and item.amount_minor:
            made.append(_Told(item, EventType.MONEY_RECEIVED, payee))
    _finish_lost(connection, lost)
    count = _add_numbered(connection, made, after=position)
    connection.execute(
        "UPDATE event_counter SET position = %s WHERE name = %s", (position + count, COUNTER), prepare=True
    )
    connection.execute(_SAVE_TOLD, (ledger, through_seq, through_seq, ledger), prepare=True)
    return through_seq - after_seq


_SAVE_TOLD = (
    "WITH known AS (INSERT INTO told_booking (ledger, seq) VALUES (%s, %s) ON CONFLICT DO NOTHING RETURNING 1)"
    " UPDATE told_booking SET seq = %s WHERE ledger = %s AND NOT EXISTS (SELECT 1 FROM known)"
)


def _wallets_of(connection: psycopg.Connection[Any], accounts: Collection[int | None]) -> dict[int | None, UUID]:
    wanted = array_literal(account for account in accounts if account)
    rows = connection.execute(
        "SELECT account, id FROM wallet WHERE account = ANY(%s::bigint[])", (wanted,), prepare=True
    )
    return dict(rows.fetchall())


def _carried(connection: psycopg.Connection[Any], transfers: Sequence[UUID]) -> dict[UUID, tuple[UUID, str, datetime]]:
    rows = connection.execute(
        "SELECT id, wallet_id, state, tried_at FROM payment WHERE id = ANY(%s::uuid[])",
        (array_literal(transfers),),
        prepare=True,
    )
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def _finish_lost(connection: psycopg.Connection[Any], booked: Sequence[tuple[UUID, int, datetime]]) -> None:
    """Payments whose booking was never recorded: their answer was lost, or its record in a crash."""
    for payment_id, seq, booked_at in booked:
        connection.execute(
            "UPDATE payment SET state = 'final', seq = %s, booked_at = %s WHERE id = %s AND state = 'initiated'",
            (seq, booked_at, payment_id),
        )


def _add_numbered(connection: psycopg.Connection[Any], made: Sequence[_Told], *, after: int) -> int:
    """Those that are not told yet, under the next positions; how many. The counter's row must be locked."""
    by_id = {event_id(told.booking.transfer, told.type): told for told in made}
    known = connection.execute("SELECT id FROM event WHERE id = ANY(%s::uuid[])", (array_literal(by_id),), prepare=True)
    for (told_already,) in known:
        del by_id[told_already]
    if by_id:
        new = by_id.values()
        connection.execute(
            "INSERT INTO event (position, id, type, subject, wallet_id, created_at, data)"
            " SELECT %s + place, id, type, 'trf_' || transfer, wallet_id, created_at,"
            " CASE WHEN type = %s THEN jsonb_build_object('kind', kind, 'amount_minor', amount, 'seq', seq)"
            " ELSE '{}'::jsonb END FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::uuid[], %s::timestamptz[],"
            " %s::text[], %s::text[], %s::bigint[]) WITH ORDINALITY"
            " AS new (id, type, transfer, wallet_id, created_at, kind, amount, seq, place)",
            (
                after,
                EventType.MONEY_RECEIVED.value,
                array_literal(by_id),
                array_literal(told.type.value for told in new),
                array_literal(told.booking.transfer for told in new),
                array_literal(told.wallet_id for told in new),
                array_literal(told.booking.booked_at.isoformat() for told in new),
                array_literal(told.booking.kind.value for told in new),
                array_literal(told.booking.amount_minor for told in new),
                array_literal(told.booking.seq for told in new),
            ),
            prepare=True,
        )
    return len(by_id)


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

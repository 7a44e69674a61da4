"""Schedules and their payments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from typing import Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.calendars import BusinessDayRule, Frequency, Recurrence
from wallet.store.bulk_tables import schedule, schedule_payment

PaymentStateName = Literal["waiting", "executing", "executed", "refused", "cancelled"]


@dataclass(frozen=True, slots=True)
class Schedule:
    id: UUID
    wallet_id: UUID
    debit_account: int
    recurrence: Recurrence
    calendar: str
    is_cancelled: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ScheduledPayment:
    schedule_id: UUID
    number: int
    payment_id: UUID
    credit_account: int
    amount_minor: int
    instruction: str | None
    valid_until: datetime
    due_on: date
    is_provisional: bool
    not_before: datetime
    give_up_at: datetime
    state: PaymentStateName
    attempts: int
    next_try_at: datetime
    refusal: str | None
    detail: str | None
    seq: int | None
    booked_at: datetime | None


def insert_schedule(connection: sa.Connection, row: Schedule) -> bool:
    """False if the id is taken."""
    values = {
        "id": row.id,
        "wallet_id": row.wallet_id,
        "debit_account": row.debit_account,
        "frequency": row.recurrence.frequency.value,
        "first_on": row.recurrence.first_on,
        "every": row.recurrence.every,
        "day_of_month": row.recurrence.day_of_month,
        "rule": row.recurrence.rule.value,
        "calendar": row.calendar,
        "is_cancelled": row.is_cancelled,
        "created_at": row.created_at,
    }
    statement = insert(schedule).values(values).on_conflict_do_nothing().returning(schedule.c.id)
    return connection.execute(statement).first() is not None


def find_schedule(connection: sa.Connection, schedule_id: UUID, *, lock: bool = False) -> Schedule | None:
    query = sa.select(schedule).where(schedule.c.id == schedule_id)
    row = connection.execute(query.with_for_update() if lock else query).mappings().first()
    return None if row is None else _schedule(row)


def list_schedules(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Schedule]:
    """Newest first."""
    query = sa.select(schedule).where(schedule.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(schedule.c.created_at, schedule.c.id) < sa.tuple_(*before))
    query = query.order_by(schedule.c.created_at.desc(), schedule.c.id.desc()).limit(limit)
    return [_schedule(row) for row in connection.execute(query).mappings()]


def mark_cancelled(connection: sa.Connection, schedule_id: UUID) -> None:
    connection.execute(sa.update(schedule).where(schedule.c.id == schedule_id).values(is_cancelled=True))


def insert_payments(connection: sa.Connection, rows: Sequence[ScheduledPayment]) -> None:
    if rows:
        connection.execute(
            sa.insert(schedule_payment),
            [{item.name: getattr(row, item.name) for item in fields(row)} for row in rows],
        )


def payments_of(
    connection: sa.Connection, schedule_id: UUID, *, after: int = -1, limit: int = 20_000
) -> list[ScheduledPayment]:
    """In order."""
    query = (
        sa.select(schedule_payment)
        .where(schedule_payment.c.schedule_id == schedule_id, schedule_payment.c.number > after)
        .order_by(schedule_payment.c.number)
        .limit(limit)
    )
    return [ScheduledPayment(**row) for row in connection.execute(query).mappings()]


def lock_payment(connection: sa.Connection, schedule_id: UUID, number: int) -> ScheduledPayment | None:
    query = (
        sa.select(schedule_payment)
        .where(schedule_payment.c.schedule_id == schedule_id, schedule_payment.c.number == number)
        .with_for_update()
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else ScheduledPayment(**row)


def cancel_waiting(connection: sa.Connection, schedule_id: UUID, number: int | None = None) -> int:
    """One that waits, or all; their signatures are destroyed. How many."""
    statement = sa.update(schedule_payment).where(
        schedule_payment.c.schedule_id == schedule_id, schedule_payment.c.state == "waiting"
    )
    if number is not None:
        statement = statement.where(schedule_payment.c.number == number)
    return connection.execute(statement.values(state="cancelled", instruction=None)).rowcount


def claim_due(
    connection: sa.Connection, *, now: datetime, claimed_until: datetime, limit: int
) -> list[ScheduledPayment]:
    """Payments to be made now, as they were before; they are the caller's until `claimed_until`."""
    query = (
        sa.select(schedule_payment)
        .where(schedule_payment.c.state.in_(("waiting", "executing")), schedule_payment.c.next_try_at <= now)
        .order_by(schedule_payment.c.next_try_at, schedule_payment.c.schedule_id, schedule_payment.c.number)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    rows = [ScheduledPayment(**row) for row in connection.execute(query).mappings()]
    for row in rows:
        connection.execute(_update(row).values(state="executing", attempts=row.attempts + 1, next_try_at=claimed_until))
    return rows


def release_claims(connection: sa.Connection, *, now: datetime) -> None:
    """At start nobody else is at work: what a dead process was executing is taken up at once."""
    connection.execute(
        sa.update(schedule_payment)
        .where(schedule_payment.c.state == "executing", schedule_payment.c.next_try_at > now)
        .values(next_try_at=sa.func.greatest(schedule_payment.c.not_before, now))
    )


def conclude(connection: sa.Connection, row: ScheduledPayment, **values: object) -> bool:
    """False if another attempt has begun since `row` was claimed: then that one has the last word."""
    statement = _update(row).where(
        schedule_payment.c.state == "executing", schedule_payment.c.attempts == row.attempts + 1
    )
    return connection.execute(statement.values(**values)).rowcount == 1


def provisional(connection: sa.Connection, *, limit: int) -> list[ScheduledPayment]:
    query = (
        sa.select(schedule_payment)
        .where(schedule_payment.c.state == "waiting", schedule_payment.c.is_provisional)
        .order_by(schedule_payment.c.next_try_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return [ScheduledPayment(**row) for row in connection.execute(query).mappings()]


def move(connection: sa.Connection, row: ScheduledPayment, **values: object) -> None:
    connection.execute(_update(row).values(**values))


def _update(row: ScheduledPayment) -> sa.Update:
    return sa.update(schedule_payment).where(
        schedule_payment.c.schedule_id == row.schedule_id, schedule_payment.c.number == row.number
    )


def _schedule(row: sa.RowMapping) -> Schedule:
    return Schedule(
        id=row["id"],
        wallet_id=row["wallet_id"],
        debit_account=row["debit_account"],
        recurrence=Recurrence(
            frequency=Frequency(row["frequency"]),
            first_on=row["first_on"],
            every=row["every"],
            day_of_month=row["day_of_month"],
            rule=BusinessDayRule(row["rule"]),
        ),
        calendar=row["calendar"],
        is_cancelled=row["is_cancelled"],
        created_at=row["created_at"],
    )

"""Statement files, and what was settled: by batch, participant, currency, value date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa

from kernel.ids import ParticipantId
from settlement.domain.escrow import LegState
from settlement.store import tables as t
from settlement.store.calendar_tables import calendar_plan


@dataclass(frozen=True, slots=True)
class StatementFileRow:
    id: UUID
    batch_id: UUID
    participant: ParticipantId
    currency: str
    sequence_number: int
    entry_count: int
    file_name: str
    sha256: bytes
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ReportRow:
    """Posted legs of one batch, participant, currency and value date. Gross amounts: paid and received are not netted;
    `net_minor` is received minus paid."""

    batch: UUID
    participant: ParticipantId
    currency: str
    value_date: date
    paid_legs: int
    paid_minor: int
    received_legs: int
    received_minor: int

    @property
    def net_minor(self) -> int:
        return self.received_minor - self.paid_minor

    @property
    def position(self) -> tuple[str, str, str, str]:
        return (self.value_date.isoformat(), str(self.batch), self.participant, self.currency)


def settlement_report(
    connection: sa.Connection,
    *,
    batch: UUID | None,
    participant: ParticipantId | None,
    currency: str | None,
    value_date_from: date | None,
    value_date_to: date | None,
    after: tuple[str, str, str, str] | None,
    limit: int,
) -> list[ReportRow]:
    """In the order of value date, batch, participant, currency. Everything is of posted legs: of what is final."""
    # Of what a calendar moved, the day for which it was carried out; the instruction's own date is what was asked for.
    day = sa.func.coalesce(calendar_plan.c.value_date, t.settlement.c.value_date)
    sides = []
    for party, is_paid in ((t.leg.c.payer, True), (t.leg.c.payee, False)):
        side = (
            sa.select(
                t.settlement.c.batch_id.label("batch"),
                party.label("participant"),
                t.leg.c.currency.label("currency"),
                day.label("value_date"),
                (t.leg.c.amount_minor if is_paid else sa.literal(0)).label("paid"),
                (sa.literal(0) if is_paid else t.leg.c.amount_minor).label("received"),
                sa.literal(1 if is_paid else 0).label("paid_legs"),
                sa.literal(0 if is_paid else 1).label("received_legs"),
            )
            .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
            .outerjoin(calendar_plan, calendar_plan.c.settlement_id == t.settlement.c.id)
            .where(t.leg.c.state == LegState.POSTED.value)
        )
        if batch is not None:
            side = side.where(t.settlement.c.batch_id == batch)
        if participant is not None:
            side = side.where(party == participant)
        if currency is not None:
            side = side.where(t.leg.c.currency == currency)
        if value_date_from is not None:
            side = side.where(day >= value_date_from)
        if value_date_to is not None:
            side = side.where(day <= value_date_to)
        sides.append(side)
    both = sa.union_all(*sides).subquery()
    key = (both.c.value_date, both.c.batch, both.c.participant, both.c.currency)
    statement = sa.select(
        *key,
        sa.func.sum(both.c.paid_legs).label("paid_legs"),
        sa.func.sum(both.c.paid).label("paid_minor"),
        sa.func.sum(both.c.received_legs).label("received_legs"),
        sa.func.sum(both.c.received).label("received_minor"),
    )
    if after is not None:
        place = (date.fromisoformat(after[0]), UUID(after[1]), after[2], after[3])
        statement = statement.where(sa.tuple_(*key) > sa.tuple_(*(sa.literal(value) for value in place)))
    rows = connection.execute(statement.group_by(*key).order_by(*key).limit(limit))
    return [
        ReportRow(
            row.batch,
            ParticipantId(row.participant),
            row.currency,
            row.value_date,
            int(row.paid_legs),
            int(row.paid_minor),
            int(row.received_legs),
            int(row.received_minor),
        )
        for row in rows
    ]


def next_sequence_number(connection: sa.Connection, participant: ParticipantId, currency: str) -> int:
    """One more than the last; the caller's transaction holds the right to it until it ends."""
    lock = sa.func.hashtextextended(f"statement {participant} {currency}", 0)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))
    last = sa.select(sa.func.max(t.statement_file.c.sequence_number)).where(
        t.statement_file.c.participant == participant, t.statement_file.c.currency == currency
    )
    return int(connection.execute(last).scalar() or 0) + 1


def insert_statement_file(connection: sa.Connection, row: StatementFileRow) -> None:
    connection.execute(t.statement_file.insert().values({name: getattr(row, name) for name in _STATEMENT_COLUMNS}))


def find_statement_file(connection: sa.Connection, statement: UUID) -> StatementFileRow | None:
    row = connection.execute(sa.select(t.statement_file).where(t.statement_file.c.id == statement)).one_or_none()
    return None if row is None else _statement_file(row)


def find_same_statement(
    connection: sa.Connection, batch: UUID, participant: ParticipantId, currency: str, entry_count: int
) -> StatementFileRow | None:
    """The batch's posted legs only grow: as many entries are the same entries."""
    table = t.statement_file
    where = (table.c.batch_id == batch) & (table.c.participant == participant) & (table.c.currency == currency)
    row = connection.execute(sa.select(table).where(where, table.c.entry_count == entry_count)).first()
    return None if row is None else _statement_file(row)


def _statement_file(row: sa.Row[tuple[object, ...]]) -> StatementFileRow:
    values = {name: getattr(row, name) for name in _STATEMENT_COLUMNS}
    return StatementFileRow(**(values | {"sha256": bytes(row.sha256)}))


_STATEMENT_COLUMNS: Sequence[str] = StatementFileRow.__slots__

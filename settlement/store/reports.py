"""Statement files and reconciliation runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa

from kernel.ids import ParticipantId
from settlement.domain.reconciliation import Break
from settlement.store import tables as t


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
class BreakRow:
    number: int
    type: str
    side: str | None
    our_references: list[str]
    their_references: list[str]
    our_amount_minor: int | None
    their_amount_minor: int | None
    difference_minor: int | None
    age_days: int
    bucket: str
    sentence: str


@dataclass(frozen=True, slots=True)
class ReconciliationRow:
    id: UUID
    batch_id: UUID
    participant: ParticipantId
    currency: str
    file_sha256: bytes
    as_of: date
    lines_ours: int
    lines_theirs: int
    matched: int
    run_by: ParticipantId
    created_at: datetime
    breaks: tuple[BreakRow, ...] = ()


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


def insert_reconciliation(connection: sa.Connection, row: ReconciliationRow, breaks: Sequence[Break]) -> None:
    values = {name: getattr(row, name) for name in _RUN_COLUMNS}
    connection.execute(t.reconciliation_run.insert().values(**values, break_count=len(breaks)))
    if breaks:
        connection.execute(
            t.reconciliation_break.insert(),
            [
                {
                    "run_id": row.id,
                    "number": number,
                    "type": item.type.value,
                    "side": None if item.side is None else item.side.value,
                    "our_references": list(item.our_references),
                    "their_references": list(item.their_references),
                    "our_amount_minor": None if item.ours is None else item.ours.amount_minor,
                    "their_amount_minor": None if item.theirs is None else item.theirs.amount_minor,
                    "difference_minor": item.difference_minor,
                    "age_days": item.age_days,
                    "bucket": item.bucket.value,
                    "sentence": item.sentence,
                }
                for number, item in enumerate(breaks, start=1)
            ],
        )


def find_reconciliation(connection: sa.Connection, reconciliation: UUID) -> ReconciliationRow | None:
    run = t.reconciliation_run
    row = connection.execute(sa.select(run).where(run.c.id == reconciliation)).one_or_none()
    if row is None:
        return None
    found = t.reconciliation_break
    items = connection.execute(sa.select(found).where(found.c.run_id == reconciliation).order_by(found.c.number))
    breaks = tuple(BreakRow(**{name: getattr(item, name) for name in _BREAK_COLUMNS}) for item in items)
    values = {name: getattr(row, name) for name in _RUN_COLUMNS}
    return ReconciliationRow(**(values | {"file_sha256": bytes(row.file_sha256)}), breaks=breaks)


def _statement_file(row: sa.Row[tuple[object, ...]]) -> StatementFileRow:
    values = {name: getattr(row, name) for name in _STATEMENT_COLUMNS}
    return StatementFileRow(**(values | {"sha256": bytes(row.sha256)}))


_STATEMENT_COLUMNS = StatementFileRow.__slots__
_BREAK_COLUMNS = BreakRow.__slots__
_RUN_COLUMNS = tuple(name for name in ReconciliationRow.__slots__ if name != "breaks")

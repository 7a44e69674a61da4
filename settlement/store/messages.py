"""Streams and recalls: rows in and out. What a step of a stream writes moves its cursor in the same transaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import msgspec
import sqlalchemy as sa

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.compliance import ComplianceData
from settlement.domain.instructions import Instruction, Priority
from settlement.store import messages_tables as m
from settlement.store import tables as t
from settlement.store.copying import copy_rows, copy_tuples

LONG_STATEMENT_SECONDS = 600
"""Duplicates among a million lines are found, and their staged rows deleted, in one statement each."""
_STAGED_COLUMNS = ("stream_id", "number", "line", "instruction_id", "uetr", "terms")
_OPEN = ("receiving", "reading", "booking")


@dataclass(frozen=True, slots=True)
class StreamRow:
    id: UUID
    submitter: ParticipantId
    is_operator: bool
    format: str
    content_sha256: bytes
    byte_count: int
    received_bytes: int
    state: str
    message: str
    message_id: str
    read_bytes: int
    read_line: int
    line_count: int
    totals: dict[str, Any]
    refused_count: int
    booked_count: int
    booked_number: int
    refusal: str | None
    reason: str
    created_at: datetime
    received_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class StreamRefusalRow:
    number: int
    line: int
    refusal: str
    reason: str
    instruction_id: str | None = None
    uetr: UUID | None = None


@dataclass(slots=True)
class StagedRow:
    number: int
    line: int
    instruction: Instruction


@dataclass(frozen=True, slots=True)
class StreamBatchRow:
    batch: UUID
    first_number: int
    last_number: int


@dataclass(frozen=True, slots=True)
class RecallItemRow:
    number: int
    cancellation_id: str | None
    original_message_id: str | None
    original_message: str | None
    instruction_id: str | None
    end_to_end_id: str | None
    uetr: UUID | None
    settlement_id: UUID | None
    was_open: bool
    fault: str = ""
    stream_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class RecallRow:
    id: UUID
    submitter: ParticipantId
    message: str
    assignment_id: str
    case_id: str | None
    assigner: ParticipantId
    content_sha256: bytes
    received_at: datetime


# --- streams


def insert_stream(connection: sa.Connection, row: StreamRow) -> None:
    connection.execute(m.stream.insert().values(**asdict(row)))


def find_stream(connection: sa.Connection, stream: UUID, *, lock: bool = False) -> StreamRow | None:
    statement = sa.select(m.stream).where(m.stream.c.id == stream)
    row = connection.execute(statement.with_for_update() if lock else statement).one_or_none()
    return None if row is None else _stream(row)


def find_stream_of_file(connection: sa.Connection, submitter: ParticipantId, sha256: bytes) -> StreamRow | None:
    where = (m.stream.c.submitter == submitter) & (m.stream.c.content_sha256 == sha256)
    row = connection.execute(sa.select(m.stream).where(where, m.stream.c.state != "withdrawn")).one_or_none()
    return None if row is None else _stream(row)


def find_stream_of_message(connection: sa.Connection, submitter: ParticipantId, message_id: str) -> StreamRow | None:
    """The stream that books, or has booked, the file of this message id."""
    where = (m.stream.c.submitter == submitter) & (m.stream.c.message_id == message_id)
    row = connection.execute(sa.select(m.stream).where(where, m.stream.c.state.in_(("booking", "done")))).one_or_none()
    return None if row is None else _stream(row)


def lock_submitter(connection: sa.Connection, submitter: ParticipantId) -> None:
    """Until the transaction ends, no other opens a stream for this submitter."""
    lock = sa.func.hashtextextended(f"stream {submitter}", 0)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock)))


def open_streams(connection: sa.Connection, submitter: ParticipantId) -> tuple[int, int]:
    """How many streams of a submitter are not ended, and their bytes."""
    statement = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(m.stream.c.byte_count), 0)).where(
        m.stream.c.submitter == submitter, m.stream.c.state.in_(_OPEN)
    )
    count, size = connection.execute(statement).one()
    return int(count), int(size)


def streams_at_work(connection: sa.Connection, *, limit: int = 100) -> list[UUID]:
    """What there is to read and to book, oldest first."""
    statement = (
        sa.select(m.stream.c.id)
        .where(m.stream.c.state.in_(("reading", "booking")))
        .order_by(m.stream.c.created_at, m.stream.c.id)
        .limit(limit)
    )
    return list(connection.execute(statement).scalars())


def streams_page(
    connection: sa.Connection, *, submitter: ParticipantId | None, after: UUID | None, limit: int
) -> list[StreamRow]:
    """Newest first, before a stream; of one submitter only, if given."""
    statement = sa.select(m.stream).order_by(m.stream.c.id.desc()).limit(limit)
    if submitter is not None:
        statement = statement.where(m.stream.c.submitter == submitter)
    if after is not None:
        statement = statement.where(m.stream.c.id < after)
    return [_stream(row) for row in connection.execute(statement)]


def update_stream(connection: sa.Connection, stream: UUID, **values: Any) -> None:
    connection.execute(m.stream.update().where(m.stream.c.id == stream).values(**values))


def find_part(connection: sa.Connection, stream: UUID, start: int) -> tuple[int, bytes] | None:
    """(length, digest) of the part stored at a place."""
    row = connection.execute(
        sa.select(m.stream_part.c.length, m.stream_part.c.sha256).where(
            m.stream_part.c.stream_id == stream, m.stream_part.c.start == start
        )
    ).one_or_none()
    return None if row is None else (row.length, bytes(row.sha256))


def insert_part(connection: sa.Connection, stream: UUID, *, start: int, length: int, sha256: bytes) -> None:
    connection.execute(m.stream_part.insert().values(stream_id=stream, start=start, length=length, sha256=sha256))


def stage(connection: sa.Connection, stream: UUID, rows: Sequence[StagedRow]) -> None:
    copy_tuples(
        connection,
        m.stream_staged,
        _STAGED_COLUMNS,
        (
            (
                stream,
                row.number,
                row.line,
                row.instruction.instruction_id,
                row.instruction.uetr,
                _terms(row.instruction),
            )
            for row in rows
        ),
    )


_STAGED_PAGE = sa.text("""
    SELECT json_agg(json_build_array(number, line, instruction_id, uetr, terms::json) ORDER BY number)::text
    FROM (
        SELECT number, line, instruction_id, uetr, terms FROM stream_staged
        WHERE stream_id = :stream AND number > :after ORDER BY number LIMIT :limit
    ) page
""")


def staged(connection: sa.Connection, stream: UUID, *, after: int, limit: int) -> list[StagedRow]:
    """In the order of the file. As one value: rows one by one take the driver four times as long."""
    page = connection.execute(_STAGED_PAGE, {"stream": stream, "after": after, "limit": limit}).scalar_one()
    return [] if page is None else [StagedRow(row.number, row.line, _instruction(row)) for row in _PAGE.decode(page)]


def drop_staged(connection: sa.Connection, stream: UUID, *, up_to: int | None = None) -> None:
    """Forget staged lines: those up to a number, or all."""
    where = m.stream_staged.c.stream_id == stream
    if up_to is None:
        _allow_long(connection)
    else:
        where = where & (m.stream_staged.c.number <= up_to)
    connection.execute(m.stream_staged.delete().where(where))


def refuse_lines(connection: sa.Connection, stream: UUID, rows: Sequence[StreamRefusalRow]) -> None:
    copy_rows(connection, m.stream_refusal, [{"stream_id": stream, **asdict(row)} for row in rows])


_DUPLICATES = """
    WITH numbered AS (
        SELECT number, first_value(number) OVER (PARTITION BY COLUMN ORDER BY number) AS first
        FROM stream_staged WHERE stream_id = :stream
    ), gone AS (
        DELETE FROM stream_staged s USING numbered n
        WHERE s.stream_id = :stream AND s.number = n.number AND n.first < n.number
        RETURNING s.number, s.line, s.instruction_id, s.uetr, n.first
    )
    INSERT INTO stream_refusal (stream_id, number, line, refusal, reason, instruction_id, uetr)
    SELECT :stream, number, line, :refusal, COLUMN || ' was already in instruction ' || first, instruction_id, uetr
    FROM gone
"""


def refuse_duplicates(
    connection: sa.Connection, stream: UUID, *, column: Literal["instruction_id", "uetr"], refusal: str
) -> int:
    """Of staged lines with the same instruction id or UETR the first stays, the others are refused; how many were.

    PostgreSQL sorts them, on its disk if need be: the service's memory does not grow with the file.
    """
    _allow_long(connection)
    statement = sa.text(_DUPLICATES.replace("COLUMN", column))
    return connection.execute(statement, {"stream": stream, "refusal": refusal}).rowcount


def refusals_page(connection: sa.Connection, stream: UUID, *, after: int, limit: int) -> list[StreamRefusalRow]:
    rows = connection.execute(
        sa.select(m.stream_refusal)
        .where(m.stream_refusal.c.stream_id == stream, m.stream_refusal.c.number > after)
        .order_by(m.stream_refusal.c.number)
        .limit(limit)
    )
    return [
        StreamRefusalRow(row.number, row.line, row.refusal, row.reason, row.instruction_id, row.uetr) for row in rows
    ]


def insert_stream_batch(
    connection: sa.Connection, stream: UUID, *, batch: UUID, first_number: int, last_number: int
) -> None:
    values = {"stream_id": stream, "batch_id": batch, "first_number": first_number, "last_number": last_number}
    connection.execute(m.stream_batch.insert().values(values))


def stream_batches(connection: sa.Connection, stream: UUID) -> list[StreamBatchRow]:
    rows = connection.execute(
        sa.select(m.stream_batch).where(m.stream_batch.c.stream_id == stream).order_by(m.stream_batch.c.first_number)
    )
    return [StreamBatchRow(row.batch_id, row.first_number, row.last_number) for row in rows]


def stream_of_batch(connection: sa.Connection, batch: UUID) -> StreamRow | None:
    row = connection.execute(
        sa.select(m.stream).join(m.stream_batch).where(m.stream_batch.c.batch_id == batch)
    ).one_or_none()
    return None if row is None else _stream(row)


def states_of_stream(connection: sa.Connection, stream: UUID) -> dict[str, int]:
    """Its settlements counted by state."""
    rows = connection.execute(
        sa.select(t.settlement.c.state, sa.func.count())
        .join(m.stream_batch, m.stream_batch.c.batch_id == t.settlement.c.batch_id)
        .where(m.stream_batch.c.stream_id == stream)
        .group_by(t.settlement.c.state)
    )
    return {row[0]: row[1] for row in rows}


def _allow_long(connection: sa.Connection) -> None:
    connection.execute(sa.text(f"SET LOCAL statement_timeout = '{LONG_STATEMENT_SECONDS}s'"))


def _stream(row: sa.Row[Any]) -> StreamRow:
    values = {name: getattr(row, name) for name in StreamRow.__slots__}
    return StreamRow(**(values | {"content_sha256": bytes(row.content_sha256)}))


class _Terms(msgspec.Struct, array_like=True):
    """An instruction but for what has a column of its own."""

    end_to_end_id: str
    debtor: str
    creditor: str
    currency: str
    amount_minor: int
    counter_currency: str | None
    counter_minor: int | None
    value_date: date
    priority: Priority
    compliance: ComplianceData | None


class _StagedItem(msgspec.Struct, array_like=True):
    number: int
    line: int
    instruction_id: str
    uetr: UUID
    terms: _Terms


_PAGE = msgspec.json.Decoder(list[_StagedItem])
_ENCODER = msgspec.json.Encoder()


def _terms(item: Instruction) -> str:
    counter = item.counter_amount
    terms = _Terms(
        item.end_to_end_id,
        item.debtor,
        item.creditor,
        item.amount.currency.code,
        item.amount.amount_minor,
        None if item.counter_currency is None else item.counter_currency.code,
        None if counter is None else counter.amount_minor,
        item.value_date,
        item.priority,
        item.compliance,
    )
    return _ENCODER.encode(terms).decode()


def _instruction(row: _StagedItem) -> Instruction:
    """Raises ValueError for a currency that `_terms` did not write."""
    terms = row.terms
    against = None if terms.counter_currency is None else Currency.of(terms.counter_currency)
    counter_minor = terms.counter_minor
    return Instruction(
        row.instruction_id,
        terms.end_to_end_id,
        row.uetr,
        ParticipantId(terms.debtor),
        ParticipantId(terms.creditor),
        Money(terms.amount_minor, Currency.of(terms.currency)),
        against,
        None if counter_minor is None or against is None else Money(counter_minor, against),
        terms.value_date,
        terms.priority,
        terms.compliance,
    )


# --- recalls


def insert_recall(connection: sa.Connection, row: RecallRow, items: Sequence[RecallItemRow]) -> None:
    connection.execute(m.recall.insert().values(**asdict(row)))
    connection.execute(m.recall_item.insert(), [{"recall_id": row.id, **asdict(item)} for item in items])


def find_recall(connection: sa.Connection, recall: UUID) -> RecallRow | None:
    row = connection.execute(sa.select(m.recall).where(m.recall.c.id == recall)).one_or_none()
    return None if row is None else _recall(row)


def find_recall_of(connection: sa.Connection, submitter: ParticipantId, assignment_id: str) -> RecallRow | None:
    where = (m.recall.c.submitter == submitter) & (m.recall.c.assignment_id == assignment_id)
    row = connection.execute(sa.select(m.recall).where(where)).one_or_none()
    return None if row is None else _recall(row)


def recall_items(connection: sa.Connection, recall: UUID) -> list[RecallItemRow]:
    rows = connection.execute(
        sa.select(m.recall_item).where(m.recall_item.c.recall_id == recall).order_by(m.recall_item.c.number)
    )
    return [RecallItemRow(**{name: getattr(row, name) for name in RecallItemRow.__slots__}) for row in rows]


def settlements_by_uetr(connection: sa.Connection, uetrs: Sequence[UUID]) -> dict[UUID, UUID]:
    rows = connection.execute(
        sa.select(t.settlement.c.uetr, t.settlement.c.id).where(
            t.settlement.c.uetr == sa.func.any(sa.cast(list(uetrs), sa.ARRAY(sa.Uuid)))
        )
    )
    return {row.uetr: row.id for row in rows}


_STAGED_OF = sa.text("""
    SELECT json_agg(
        json_build_array(number, line, instruction_id, uetr, terms::json, stream_id) ORDER BY stream_id, number
    )::text
    FROM stream_staged WHERE uetr = ANY(:uetrs)
""")


class _StagedElsewhere(_StagedItem, array_like=True):
    stream: UUID


_ELSEWHERE = msgspec.json.Decoder(list[_StagedElsewhere])


def lock_staged(connection: sa.Connection, uetrs: Sequence[UUID]) -> list[tuple[StreamRow, Instruction]]:
    """Lines of these UETRs that wait to be booked, and their streams, which until the transaction ends book nothing."""
    wanted = list(uetrs)
    if not connection.execute(sa.select(m.stream_staged.c.number).limit(1)).first():
        return []
    staged = m.stream_staged.c
    streams = connection.execute(
        sa.select(staged.stream_id)
        .where(staged.uetr == sa.func.any(sa.cast(wanted, sa.ARRAY(sa.Uuid))))
        .distinct()
        .order_by(staged.stream_id)
    ).scalars()
    locked = {key: find_stream(connection, key, lock=True) for key in list(streams)}
    # Looked at again: until it was locked, a stream may have booked what was seen of it.
    lines = connection.execute(_STAGED_OF, {"uetrs": wanted}).scalar_one() if locked else None
    found = [] if lines is None else _ELSEWHERE.decode(lines)
    return [(stream, _instruction(row)) for row in found if (stream := locked.get(row.stream)) is not None]


def is_file_unread(connection: sa.Connection, submitter: ParticipantId | None) -> bool:
    """Whether a file, of this submitter's if one is named, is not read to its end yet."""
    where: list[sa.ColumnElement[bool]] = [m.stream.c.state.in_(("receiving", "reading"))]
    if submitter is not None:
        where.append(m.stream.c.submitter == submitter)
    return connection.execute(sa.select(m.stream.c.id).where(*where).limit(1)).first() is not None


def recalled_of_stream(connection: sa.Connection, stream: UUID) -> set[UUID]:
    """UETRs of its lines that were asked back before they were booked."""
    return set(connection.execute(sa.select(m.recall_item.c.uetr).where(m.recall_item.c.stream_id == stream)).scalars())


def refusal_of_uetr(connection: sa.Connection, stream: UUID, uetr: UUID) -> str | None:
    """Why the stream's line of this UETR was refused."""
    refusal = m.stream_refusal.c
    found = connection.execute(
        sa.select(refusal.refusal).where(refusal.stream_id == stream, refusal.uetr == uetr).order_by(refusal.number)
    ).scalars()
    return next(iter(found), None)


def _recall(row: sa.Row[Any]) -> RecallRow:
    values = {name: getattr(row, name) for name in RecallRow.__slots__}
    return RecallRow(**(values | {"content_sha256": bytes(row.content_sha256)}))


# --- what moved on an account


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A posted leg as one of its parties' accounts saw it."""

    settlement: UUID
    number: int
    end_to_end_id: str
    uetr: UUID
    payer: ParticipantId
    payee: ParticipantId
    debit: int
    credit: int
    amount_minor: int
    ended_at: datetime


EntryPlace = tuple[datetime, UUID, int]
"""Where an entry stands in the order of an account: time of posting, settlement, leg."""


def _of_account(participant: ParticipantId, currency: str) -> sa.ColumnElement[bool]:
    is_party = (t.leg.c.payer == participant) | (t.leg.c.payee == participant)
    return (t.leg.c.state == "posted") & (t.leg.c.currency == currency) & is_party


def entries_page(
    connection: sa.Connection,
    *,
    participant: ParticipantId,
    currency: str,
    since: datetime | None,
    until: datetime,
    after: EntryPlace | None,
    limit: int,
) -> list[EntryRow]:
    """Posted legs of an account in [since, until), in the order of their posting, behind a place."""
    order = (t.leg.c.ended_at, t.leg.c.settlement_id, t.leg.c.number)
    where = _of_account(participant, currency) & (t.leg.c.ended_at < until)
    if since is not None:
        where = where & (t.leg.c.ended_at >= since)
    if after is not None:
        where = where & (sa.tuple_(*order) > sa.tuple_(*after))
    rows = connection.execute(
        sa.select(t.leg, t.settlement.c.end_to_end_id, t.settlement.c.uetr)
        .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
        .where(where)
        .order_by(*order)
        .limit(limit)
    )
    return [
        EntryRow(
            row.settlement_id,
            row.number,
            row.end_to_end_id,
            row.uetr,
            ParticipantId(row.payer),
            ParticipantId(row.payee),
            row.debit,
            row.credit,
            row.amount_minor,
            row.ended_at,
        )
        for row in rows
    ]


def net_before(
    connection: sa.Connection, *, participant: ParticipantId, currency: str, before: datetime, up_to: EntryPlace | None
) -> int:
    """Signed sum of an account's posted legs before a time, or (with `up_to`) up to a place and it included."""
    order = (t.leg.c.ended_at, t.leg.c.settlement_id, t.leg.c.number)
    where = _of_account(participant, currency)
    where = where & (t.leg.c.ended_at < before if up_to is None else sa.tuple_(*order) <= sa.tuple_(*up_to))
    signed = sa.case((t.leg.c.payee == participant, t.leg.c.amount_minor), else_=-t.leg.c.amount_minor)
    found = connection.execute(sa.select(sa.func.coalesce(sa.func.sum(signed), 0)).where(where)).scalar_one()
    return int(found)


def is_posting_before(connection: sa.Connection, *, participant: ParticipantId, until: datetime) -> bool:
    """A settlement of the participant was committed before a time and has a leg that is not known as posted."""
    committed = (
        sa.select(t.decision.c.settlement_id)
        .join(t.settlement, t.settlement.c.id == t.decision.c.settlement_id)
        .where(t.settlement.c.state == "committed", t.decision.c.decided_at < until)
    )
    is_party = (t.leg.c.payer == participant) | (t.leg.c.payee == participant)
    statement = sa.select(sa.exists().where(t.leg.c.settlement_id.in_(committed), is_party))
    return bool(connection.execute(statement).scalar_one())

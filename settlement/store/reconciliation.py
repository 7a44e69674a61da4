"""SQL of reconciliation: sources, runs and their results, breaks with their histories, repairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import distinct_on

from kernel.ids import ParticipantId
from settlement.domain.reconciliation.lifecycle import BreakState, Event, EventKind
from settlement.store import reconciliation_tables as t

PAIRS_IN_ROW = 65_536
_OPEN = [state.value for state in BreakState if state is not BreakState.CLOSED]
_BUCKET_DAYS = {"0-1": (None, 1), "2-5": (2, 5), "6-30": (6, 30), ">30": (31, None)}


@dataclass(frozen=True, slots=True)
class MappingRow:
    participant: ParticipantId
    counterparty: str
    version: int
    content: dict[str, Any]
    sha256: bytes
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SourceRow:
    id: UUID
    participant: ParticipantId
    counterparty: str
    format: str
    mapping_version: int
    sha256: bytes
    byte_count: int
    line_count: int
    account: str | None
    currency: str | None
    statement_id: str | None
    sequence_number: int | None
    opening_minor: int | None
    closing_minor: int | None
    to_at: datetime | None
    message: str | None
    created_by: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Relation:
    """Whose books against whose, of which account: breaks live within one relation from run to run."""

    participant: ParticipantId
    counterparty: str
    currency: str
    account: str
    view: str


@dataclass(frozen=True, slots=True)
class RunRow:
    id: UUID
    request_sha256: bytes
    batch_id: UUID | None
    participant: ParticipantId
    counterparty: str
    currency: str
    account: str
    view: str
    our_source: UUID
    their_source: UUID
    selection: dict[str, Any]
    rules: dict[str, Any]
    as_of: date
    lines_ours: int
    lines_theirs: int
    carried_ours: int
    carried_theirs: int
    matched: int
    finding_count: int
    closed_count: int
    result_sha256: bytes
    run_by: str
    created_at: datetime

    @property
    def relation(self) -> Relation:
        return Relation(self.participant, self.counterparty, self.currency, self.account, self.view)


@dataclass(frozen=True, slots=True)
class PairsRow:
    number: int
    rule: str
    count: int
    positions: bytes


@dataclass(frozen=True, slots=True)
class MatchRow:
    number: int
    rule: str
    our_positions: list[int]
    their_positions: list[int]
    our_references: list[str]
    their_references: list[str]
    difference_minor: int


@dataclass(frozen=True, slots=True)
class NewBreak:
    id: UUID
    run_id: UUID | None
    relation: Relation
    key: bytes
    type: str
    side: str | None
    also: list[str]
    our_references: list[str]
    their_references: list[str]
    our_positions: list[int]
    their_positions: list[int]
    our_amount_minor: int | None
    their_amount_minor: int | None
    difference_minor: int | None
    gross: dict[str, str]
    gross_minor: int
    """The largest of `gross`, for severity by amount: no sum over currencies is made."""
    oldest: date
    sentence: str
    lines: list[dict[str, Any]] | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BreakRow:
    """A break and where it stands."""

    id: UUID
    run_id: UUID | None
    participant: ParticipantId
    counterparty: str
    currency: str
    account: str
    view: str
    key: bytes
    type: str
    side: str | None
    also: list[str]
    our_references: list[str]
    their_references: list[str]
    our_positions: list[int]
    their_positions: list[int]
    our_amount_minor: int | None
    their_amount_minor: int | None
    difference_minor: int | None
    gross: dict[str, str]
    oldest: date
    sentence: str
    lines: list[dict[str, Any]] | None
    created_at: datetime
    state: BreakState
    sequence: int
    assignee: str | None

    @property
    def relation(self) -> Relation:
        return Relation(self.participant, self.counterparty, self.currency, self.account, self.view)


@dataclass(frozen=True, slots=True)
class RepairRow:
    id: UUID
    break_id: UUID
    kind: str
    payer: ParticipantId
    payee: ParticipantId
    amount_minor: int
    currency: str
    maker: str
    maker_key: str
    proposed_at: datetime
    checker: str | None
    settlement_id: UUID | None
    approved_at: datetime | None
    booked_at: datetime | None


@dataclass(frozen=True, slots=True)
class BreakFilter:
    """Which breaks; None = whatever. `today` turns age into dates."""

    today: date
    participant: ParticipantId | None = None
    counterparty: str | None = None
    currency: str | None = None
    run: UUID | None = None
    states: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    bucket: str | None = None
    assignee: str | None = None


# --- mappings and sources


def add_mapping(connection: sa.Connection, row: MappingRow) -> None:
    connection.execute(t.mapping.insert().values(_values(row)))


def find_mapping(
    connection: sa.Connection, participant: ParticipantId, counterparty: str, version: int | None = None
) -> MappingRow | None:
    """A version, or the newest."""
    where = (t.mapping.c.participant == participant) & (t.mapping.c.counterparty == counterparty)
    if version is not None:
        where &= t.mapping.c.version == version
    statement = sa.select(t.mapping).where(where).order_by(t.mapping.c.version.desc()).limit(1)
    row = connection.execute(statement).one_or_none()
    return None if row is None else _row(MappingRow, row)


def mappings(connection: sa.Connection, participant: ParticipantId | None, *, limit: int) -> list[MappingRow]:
    """The newest of each counterparty."""
    statement = sa.select(t.mapping).ext(distinct_on(t.mapping.c.participant, t.mapping.c.counterparty))
    if participant is not None:
        statement = statement.where(t.mapping.c.participant == participant)
    order = (t.mapping.c.participant, t.mapping.c.counterparty, t.mapping.c.version.desc())
    return [_row(MappingRow, row) for row in connection.execute(statement.order_by(*order).limit(limit))]


def lock_name(connection: sa.Connection, name: str) -> None:
    """Held to the end of the transaction: one at a time of a relation, a counterparty's mapping, a break."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"reconciliation {name}", 0))))


def insert_source(connection: sa.Connection, row: SourceRow) -> None:
    connection.execute(t.source.insert().values(_values(row)))


def find_source(connection: sa.Connection, source: UUID) -> SourceRow | None:
    row = connection.execute(sa.select(t.source).where(t.source.c.id == source)).one_or_none()
    return None if row is None else _row(SourceRow, row)


def find_same_source(
    connection: sa.Connection,
    participant: ParticipantId,
    counterparty: str,
    source_format: str,
    mapping_version: int,
    sha256: bytes,
    *,
    accounts: Sequence[str | None] | None = None,
) -> SourceRow | None:
    """The source of this file, of one of these accounts. Of any, if the file has been taken for one only."""
    where = sa.and_(
        t.source.c.participant == participant,
        t.source.c.counterparty == counterparty,
        t.source.c.format == source_format,
        t.source.c.mapping_version == mapping_version,
        t.source.c.sha256 == sha256,
    )
    if accounts is not None:
        where &= sa.or_(*(t.source.c.account.is_not_distinct_from(account) for account in accounts))
    rows = connection.execute(sa.select(t.source).where(where).limit(2)).all()
    return _row(SourceRow, rows[0]) if len(rows) == 1 else None


def source_before(connection: sa.Connection, source: SourceRow) -> SourceRow | None:
    """The statement of the same account that ends last before this one does; of several that end together, the one with
    the highest lower number. (Numbers alone would not do: many servicers begin anew with every year.)"""
    if source.statement_id is None:
        return None
    where = sa.and_(
        t.source.c.participant == source.participant,
        t.source.c.counterparty == source.counterparty,
        t.source.c.account == source.account,
        t.source.c.currency == source.currency,
    )
    numbered = t.source.c.sequence_number
    ends_before = t.source.c.to_at < source.to_at
    is_other = t.source.c.statement_id != source.statement_id  # not the same one again, with another end
    if source.sequence_number is None:
        where &= numbered.is_(None) & ends_before & is_other
    else:
        where &= is_other | (numbered != source.sequence_number)  # some give all their statements one id
        where &= numbered.is_not(None) & (
            ends_before | ((t.source.c.to_at == source.to_at) & (numbered < source.sequence_number))
        )
    order = (t.source.c.to_at.desc(), numbered.desc(), t.source.c.id.desc())
    row = connection.execute(sa.select(t.source).where(where).order_by(*order).limit(1)).one_or_none()
    return None if row is None else _row(SourceRow, row)


# --- runs


def insert_run(
    connection: sa.Connection,
    row: RunRow,
    *,
    pairs: Sequence[PairsRow],
    matches: Sequence[MatchRow],
    new: Sequence[NewBreak],
    findings: Sequence[UUID],
) -> None:
    """A run with all that it found; every new break with the first event of its history."""
    connection.execute(t.run.insert().values(_values(row)))
    if pairs:
        connection.execute(t.pairs.insert(), [{"run_id": row.id} | _values(item) for item in pairs])
    _copy(
        connection,
        t.match,
        (
            (
                row.id,
                m.number,
                m.rule,
                m.our_positions,
                m.their_positions,
                m.our_references,
                m.their_references,
                m.difference_minor,
            )
            for m in matches
        ),
    )
    insert_breaks(connection, new)
    _copy(connection, t.finding, ((row.id, number, key) for number, key in enumerate(findings, start=1)))


def insert_breaks(
    connection: sa.Connection, new: Sequence[NewBreak], *, opened_by: Event | None = None, key: str | None = None
) -> None:
    """Breaks with the event that opens them: of the bridge's own finding, or of an officer's decision."""
    _copy(
        connection,
        t.brk,
        (
            (
                x.id,
                x.run_id,
                *(x.relation.participant, x.relation.counterparty, x.relation.currency),
                *(x.relation.account, x.relation.view),
                x.key,
                x.type,
                x.side,
                x.also,
                x.our_references,
                x.their_references,
                x.our_positions,
                x.their_positions,
                x.our_amount_minor,
                x.their_amount_minor,
                x.difference_minor,
                json.dumps(x.gross),
                x.gross_minor,
                x.oldest,
                x.sentence,
                None if x.lines is None else json.dumps(x.lines),
                x.created_at,
            )
            for x in new
        ),
    )
    opened = EventKind.OPENED.value
    by = opened_by
    _copy(
        connection,
        t.event,
        (
            (
                *(x.id, 1, opened, "open"),
                *(("bridge", None, x.created_at, "") if by is None else (by.actor, key, by.at, by.reason)),
                *((None, None, None) if by is None else (None, by.decision, by.token)),
                *(x.run_id, None, None),
            )
            for x in new
        ),
    )
    _copy(connection, t.status, ((x.id, x.key, x.relation.participant, "open", 1, None) for x in new))


def find_run(connection: sa.Connection, run: UUID) -> RunRow | None:
    row = connection.execute(sa.select(t.run).where(t.run.c.id == run)).one_or_none()
    return None if row is None else _row(RunRow, row)


def runs_page(
    connection: sa.Connection,
    *,
    participant: ParticipantId | None,
    currency: str | None,
    batch: UUID | None,
    before: UUID | None,
    limit: int,
) -> list[RunRow]:
    """Newest first."""
    statement = sa.select(t.run)
    for column, value in ((t.run.c.participant, participant), (t.run.c.currency, currency), (t.run.c.batch_id, batch)):
        if value is not None:
            statement = statement.where(column == value)
    if before is not None:
        statement = statement.where(t.run.c.id < before)
    return [_row(RunRow, row) for row in connection.execute(statement.order_by(t.run.c.id.desc()).limit(limit))]


def pairs_of(connection: sa.Connection, run: UUID) -> list[PairsRow]:
    statement = sa.select(t.pairs).where(t.pairs.c.run_id == run).order_by(t.pairs.c.number)
    return [_row(PairsRow, row) for row in connection.execute(statement)]


def matches_of(
    connection: sa.Connection, run: UUID, *, after: int = 0, limit: int | None = None, rule: str | None = None
) -> list[MatchRow]:
    statement = sa.select(t.match).where(t.match.c.run_id == run, t.match.c.number > after)
    if rule is not None:
        statement = statement.where(t.match.c.rule == rule)
    return [_row(MatchRow, row) for row in connection.execute(statement.order_by(t.match.c.number).limit(limit))]


def add_match(connection: sa.Connection, run: UUID, row: MatchRow) -> int:
    """Beside the run's own matches, with the next number, which is returned."""
    last = connection.execute(sa.select(sa.func.max(t.match.c.number)).where(t.match.c.run_id == run)).scalar()
    number = int(last or 0) + 1
    connection.execute(t.match.insert().values(_values(row) | {"run_id": run, "number": number}))
    return number


def add_unmatch(connection: sa.Connection, run: UUID, positions: tuple[int, int], break_id: UUID) -> None:
    """Once: the key refuses a second time."""
    values = {"run_id": run, "our_position": positions[0], "their_position": positions[1], "break_id": break_id}
    connection.execute(t.unmatch.insert().values(values))


def unmatched(connection: sa.Connection, run: UUID) -> set[tuple[int, int]]:
    statement = sa.select(t.unmatch.c.our_position, t.unmatch.c.their_position).where(t.unmatch.c.run_id == run)
    return {(row.our_position, row.their_position) for row in connection.execute(statement)}


# --- breaks


def open_breaks(
    connection: sa.Connection, relation: Relation, *, record: str, of_record: bool, limit: int
) -> list[BreakRow]:
    """Of one relation, the oldest first: those found against the bridge's own record (the source of the counterparty
    `record`), or those found against files that the participant handed in as its own."""
    own_file = (
        sa.select(t.run.c.id)
        .join(t.source, t.source.c.id == t.run.c.our_source)
        .where(t.run.c.id == t.brk.c.run_id, t.source.c.counterparty != record)
        .exists()
    )
    where = sa.and_(
        ~own_file if of_record else own_file,
        t.brk.c.participant == relation.participant,
        t.brk.c.counterparty == relation.counterparty,
        t.brk.c.currency == relation.currency,
        t.brk.c.account == relation.account,
        t.brk.c.view == relation.view,
        t.status.c.participant == relation.participant,
        t.status.c.state.in_(_OPEN),
    )
    return _breaks(connection, where, order=(t.brk.c.id,), limit=limit)


def find_break(connection: sa.Connection, break_id: UUID) -> BreakRow | None:
    found = _breaks(connection, t.brk.c.id == break_id, order=(t.brk.c.id,), limit=1)
    return found[0] if found else None


def find_open_keys(connection: sa.Connection, keys: Sequence[bytes]) -> dict[bytes, UUID]:
    if not keys:
        return {}
    statement = sa.select(t.status.c.key, t.status.c.break_id).where(
        t.status.c.key == sa.func.any(sa.cast(list(keys), sa.ARRAY(sa.LargeBinary))), t.status.c.state.in_(_OPEN)
    )
    return {bytes(row.key): row.break_id for row in connection.execute(statement)}


def find_decided_keys(connection: sa.Connection, keys: Sequence[bytes]) -> dict[bytes, BreakRow]:
    """The newest closed break of each key, if officers' word or a booking closed it."""
    if not keys:
        return {}
    last = (t.event.c.break_id == t.status.c.break_id) & (t.event.c.sequence == t.status.c.sequence)
    decided = (
        sa.select(t.status.c.break_id)
        .join(t.event, last)
        .where(
            t.status.c.key == sa.func.any(sa.cast(list(keys), sa.ARRAY(sa.LargeBinary))),
            t.status.c.state == BreakState.CLOSED.value,
            t.event.c.kind.in_([kind.value for kind in _DECIDED]),
        )
    )
    rows = _breaks(connection, t.brk.c.id.in_(decided), order=(t.brk.c.id,), limit=None)
    return {row.key: row for row in rows}


_DECIDED = (EventKind.BOOKED, EventKind.EXPLAINED, EventKind.REMATCHED)


def opened_by_officers(connection: sa.Connection, breaks: Sequence[UUID]) -> set[UUID]:
    """Of these breaks, those that are a match taken back, and those whose late side an officer has refused."""
    if not breaks:
        return set()
    rows = connection.execute(
        sa.select(t.event.c.break_id, t.event.c.kind, t.event.c.token)
        .where(t.event.c.break_id == sa.func.any(sa.cast(list(breaks), sa.ARRAY(sa.Uuid))))
        .where(t.event.c.kind.in_([kind.value for kind in (EventKind.OPENED, EventKind.LATE_SIDE, EventKind.REOPENED)]))
        .order_by(t.event.c.break_id, t.event.c.sequence)
    )
    found: set[UUID] = set()
    before: tuple[UUID, str] | None = None
    for row in rows:
        is_taken_back = row.kind == EventKind.OPENED.value and row.token is not None
        is_refused = row.kind == EventKind.REOPENED.value and before == (row.break_id, EventKind.LATE_SIDE.value)
        if is_taken_back or is_refused:
            found.add(row.break_id)
        before = (row.break_id, row.kind)
    return found


def breaks_page(connection: sa.Connection, wanted: BreakFilter, *, after: UUID | None, limit: int) -> list[BreakRow]:
    """In the order in which they were opened."""
    where: sa.ColumnElement[bool] = sa.true()
    for column, value in (
        (t.brk.c.participant, wanted.participant),
        (t.brk.c.counterparty, wanted.counterparty),
        (t.brk.c.currency, wanted.currency),
        (t.status.c.assignee, wanted.assignee),
    ):
        if value is not None:
            where &= column == value
    if wanted.states:
        where &= t.status.c.state.in_(wanted.states)
    if wanted.types:
        where &= t.brk.c.type.in_(wanted.types)
    if wanted.bucket is not None:
        least, most = _BUCKET_DAYS[wanted.bucket]
        if least is not None:
            where &= t.brk.c.oldest <= wanted.today - timedelta(days=least)
        if most is not None:
            where &= t.brk.c.oldest >= wanted.today - timedelta(days=most)
    if wanted.run is not None:
        where &= t.brk.c.id.in_(sa.select(t.finding.c.break_id).where(t.finding.c.run_id == wanted.run))
    if after is not None:
        where &= t.brk.c.id > after
    return _breaks(connection, where, order=(t.brk.c.id,), limit=limit)


def findings_of(connection: sa.Connection, run: UUID, *, after: int = 0, limit: int = 500) -> list[BreakRow]:
    """What a run found, in the order of its report."""
    numbers = (
        sa.select(t.finding.c.break_id)
        .where(t.finding.c.run_id == run, t.finding.c.number > after)
        .order_by(t.finding.c.number)
        .limit(limit)
    )
    keys = list(connection.execute(numbers).scalars())
    found = {row.id: row for row in _breaks(connection, t.brk.c.id.in_(keys), order=(t.brk.c.id,), limit=None)}
    return [found[key] for key in keys]


def history(connection: sa.Connection, break_id: UUID) -> list[Event]:
    rows = connection.execute(sa.select(t.event).where(t.event.c.break_id == break_id).order_by(t.event.c.sequence))
    return [_event(row) for row in rows]


def find_decision(connection: sa.Connection, decision: UUID) -> tuple[UUID, str] | None:
    """The break (the first, if several) and the token of a decision that was taken before."""
    statement = (
        sa.select(t.event.c.break_id, t.event.c.token)
        .where(t.event.c.decision_id == decision)
        .order_by(t.event.c.break_id)
        .limit(1)
    )
    row = connection.execute(statement).one_or_none()
    return None if row is None else (row.break_id, row.token)


def append_events(
    connection: sa.Connection,
    events: Sequence[tuple[BreakRow, Event]],
    *,
    key: str | None = None,
    match_number: int | None = None,
) -> None:
    """The next event of each break. The caller holds the relation's or the break's lock."""
    if not events:
        return
    connection.execute(
        t.event.insert(),
        [
            {
                "break_id": row.id,
                "sequence": event.sequence,
                "kind": event.kind.value,
                "state": event.kind.state.value,
                "actor": event.actor,
                "actor_key": key,
                "at": event.at,
                "reason": event.reason,
                "assignee": event.assignee,
                "decision_id": event.decision,
                "token": event.token,
                "run_id": event.run,
                "match_number": match_number,
                "repair_id": event.repair,
            }
            for row, event in events
        ],
    )
    changed = t.status.update().where(
        t.status.c.break_id == sa.bindparam("b_id"), t.status.c.sequence == sa.bindparam("b_before")
    )
    connection.execute(
        changed.values(
            state=sa.bindparam("b_state"), sequence=sa.bindparam("b_sequence"), assignee=sa.bindparam("b_assignee")
        ),
        [
            {
                "b_id": row.id,
                "b_before": row.sequence,
                "b_state": event.kind.state.value,
                "b_sequence": event.sequence,
                "b_assignee": event.assignee,
            }
            for row, event in events
        ],
    )


# --- repairs


def insert_repair(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(t.repair.insert().values(**values))


def insert_approval(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(t.approval.insert().values(**values))


def insert_booking(connection: sa.Connection, values: Mapping[str, Any]) -> None:
    connection.execute(t.booking.insert().values(**values))


def repairs_of(connection: sa.Connection, break_id: UUID) -> list[RepairRow]:
    return _repairs(connection, t.repair.c.break_id == break_id, limit=None)


def find_repair(connection: sa.Connection, repair: UUID) -> RepairRow | None:
    found = _repairs(connection, t.repair.c.id == repair, limit=1)
    return found[0] if found else None


def repairs_under_way(connection: sa.Connection, *, limit: int) -> list[RepairRow]:
    """Approved instructions of breaks that wait for them."""
    where = t.repair.c.break_id.in_(
        sa.select(t.status.c.break_id).where(t.status.c.state == BreakState.APPROVED.value)
    ) & t.approval.c.repair_id.is_not(None)
    return _repairs(connection, where & t.booking.c.repair_id.is_(None), limit=limit)


def _repairs(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int | None) -> list[RepairRow]:
    statement = (
        sa.select(
            t.repair, t.approval.c.checker, t.approval.c.settlement_id, t.approval.c.approved_at, t.booking.c.booked_at
        )
        .outerjoin(t.approval, t.approval.c.repair_id == t.repair.c.id)
        .outerjoin(t.booking, t.booking.c.repair_id == t.repair.c.id)
        .where(where)
        .order_by(t.repair.c.id)
        .limit(limit)
    )
    return [_row(RepairRow, row) for row in connection.execute(statement)]


# --- rows


def _breaks(
    connection: sa.Connection,
    where: sa.ColumnElement[bool],
    *,
    order: tuple[sa.ColumnElement[object], ...],
    limit: int | None,
) -> list[BreakRow]:
    statement = (
        sa.select(t.brk, t.status.c.state, t.status.c.sequence, t.status.c.assignee)
        .join(t.status, t.status.c.break_id == t.brk.c.id)
        .where(where)
        .order_by(*order)
        .limit(limit)
    )
    return [_break(row) for row in connection.execute(statement)]


def _break(row: sa.Row[Any]) -> BreakRow:
    found: BreakRow = _row(BreakRow, row)
    return found


def _event(row: sa.Row[Any]) -> Event:
    return Event(
        sequence=row.sequence,
        kind=EventKind(row.kind),
        actor=row.actor,
        at=row.at,
        reason=row.reason,
        assignee=row.assignee,
        decision=row.decision_id,
        token=row.token,
        run=row.run_id,
        repair=row.repair_id,
    )


def _values(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in type(row).__slots__}


def _row(kind: Any, row: sa.Row[Any]) -> Any:
    values: dict[str, Any] = {}
    for name in kind.__slots__:
        value = row._mapping[name]
        if isinstance(value, memoryview):
            value = bytes(value)
        elif isinstance(value, Decimal):
            value = int(value)
        values[name] = BreakState(value) if name == "state" and kind is BreakRow else value
    return kind(**values)


def _copy(connection: sa.Connection, table: sa.Table, rows: Iterable[tuple[Any, ...]]) -> None:
    """Rows in the order of the table's columns, lists and all: a hundred thousand breaks in a second or two."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError("COPY needs a psycopg connection")
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    )
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.IntegrityError as error:
        raise sa.exc.IntegrityError(f"COPY {table.name}", None, error) from error

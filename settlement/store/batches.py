"""Batches and settlements: how they come in, and how people and clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa

from kernel.arrays import is_one_of
from kernel.ids import ParticipantId
from settlement.domain.escrow import IN_DOUBT, Decision, Leg, LegState, LegTerms, SettlementState
from settlement.domain.multileg import parties
from settlement.store import tables as t
from settlement.store.copying import copy_tuples
from settlement.store.decision_log import leg_of

PRIORITY_RANK = {"URGT": 0, "HIGH": 1, "NORM": 2}
_SETTLEMENT_COLUMNS = (
    "id",
    "batch_id",
    "position",
    "instruction_id",
    "end_to_end_id",
    "uetr",
    "debtor",
    "creditor",
    "value_date",
    "priority",
    "rate",
    "rate_provider",
    "remainder_minor",
    "state",
)
_LEG_COLUMNS = (
    "settlement_id",
    "number",
    "ledger",
    "payer",
    "payee",
    "debit",
    "credit",
    "amount_minor",
    "currency",
    "state",
)


@dataclass(slots=True)
class NewSettlement:
    """What is stored of an instruction. Not frozen: it is made once a line, and a frozen one takes much longer."""

    id: UUID
    position: int
    instruction_id: str
    end_to_end_id: str
    uetr: UUID
    debtor: ParticipantId
    creditor: ParticipantId
    value_date: date
    priority: str
    rate: str | None
    rate_provider: ParticipantId | None
    remainder_minor: str | None
    legs: tuple[LegTerms, ...]


@dataclass(frozen=True, slots=True)
class BatchRow:
    id: UUID
    submitter: ParticipantId
    message_id: str
    format: str
    content_sha256: bytes
    settlement_count: int
    received_at: datetime
    started_at: datetime | None
    counts: dict[SettlementState, int]


@dataclass(frozen=True, slots=True)
class LegRow:
    leg: Leg
    detail: str
    ended_at: datetime | None
    is_signed: bool
    """The payer's institution has authorised it."""


@dataclass(frozen=True, slots=True)
class SettlementRow:
    id: UUID
    batch: UUID
    position: int
    instruction_id: str
    end_to_end_id: str
    uetr: UUID
    debtor: ParticipantId
    creditor: ParticipantId
    value_date: date
    state: SettlementState
    rate: str | None
    rate_provider: ParticipantId | None
    remainder_minor: str | None
    waits_for: str
    prepared_at: datetime | None
    ended_at: datetime | None
    decision: Decision | None
    decided_at: datetime | None
    reason: str | None
    detail: str
    legs: tuple[LegRow, ...]
    epoch: int | None
    received_at: datetime
    is_started: bool
    abort_requested_by: ParticipantId | None
    nets: bool
    """It settles the net of a run: its legs are positions of several institutions."""

    @property
    def parties(self) -> frozenset[ParticipantId]:
        """Everybody who pays or is paid: they may see it."""
        return parties([found.leg.terms for found in self.legs])


def find_by_message(connection: sa.Connection, submitter: ParticipantId, message_id: str) -> BatchRow | None:
    where = (t.batch.c.submitter == submitter) & (t.batch.c.message_id == message_id)
    return _batch(connection, where)


def find(connection: sa.Connection, batch: UUID) -> BatchRow | None:
    return _batch(connection, t.batch.c.id == batch)


def used_uetrs(connection: sa.Connection, uetrs: Sequence[UUID]) -> set[UUID]:
    statement = sa.select(t.settlement.c.uetr).where(is_one_of(t.settlement.c.uetr, uetrs))
    return set(connection.execute(statement).scalars())


def lock_in_order(connection: sa.Connection, settlements: Sequence[UUID]) -> None:
    """Lock these settlements by id: whoever locks several does so in this order (`DecisionLog.persist`)."""
    ids = sa.literal(list(settlements), sa.ARRAY(sa.Uuid()))
    statement = sa.select(t.settlement.c.id).where(t.settlement.c.id == sa.func.any(ids)).order_by(t.settlement.c.id)
    connection.execute(statement.with_for_update()).all()


def uetrs_of_other_batches(connection: sa.Connection, uetrs: Sequence[UUID], *, batch: UUID) -> set[UUID]:
    """Which of these are settlements that another batch brought."""
    statement = sa.select(t.settlement.c.uetr).where(
        t.settlement.c.uetr == sa.func.any(sa.cast(list(uetrs), sa.ARRAY(sa.Uuid))), t.settlement.c.batch_id != batch
    )
    return set(connection.execute(statement).scalars())


def insert_batch(
    connection: sa.Connection,
    *,
    batch: UUID,
    submitter: ParticipantId,
    message_id: str,
    batch_format: str,
    content_sha256: bytes,
    received_at: datetime,
    started_at: datetime | None,
    settlements: Sequence[NewSettlement],
) -> None:
    connection.execute(
        t.batch.insert().values(
            id=batch,
            submitter=submitter,
            message_id=message_id,
            format=batch_format,
            content_sha256=content_sha256,
            settlement_count=len(settlements),
            received_at=received_at,
            started_at=started_at,
        )
    )
    received, pending = SettlementState.RECEIVED.value, LegState.PENDING.value
    copy_tuples(
        connection,
        t.settlement,
        _SETTLEMENT_COLUMNS,
        (
            (
                item.id,
                batch,
                item.position,
                item.instruction_id,
                item.end_to_end_id,
                item.uetr,
                item.debtor,
                item.creditor,
                item.value_date,
                PRIORITY_RANK[item.priority],
                item.rate,
                item.rate_provider,
                item.remainder_minor,
                received,
            )
            for item in settlements
        ),
    )
    copy_tuples(
        connection,
        t.leg,
        _LEG_COLUMNS,
        (
            (
                item.id,
                number,
                terms.ledger,
                terms.payer,
                terms.payee,
                terms.debit,
                terms.credit,
                terms.amount.amount_minor,
                terms.amount.currency.code,
                pending,
            )
            for item in settlements
            for number, terms in enumerate(item.legs)
        ),
    )


def start(connection: sa.Connection, batch: UUID, *, now: datetime) -> None:
    """Let the engine have it; the first start's time stays."""
    connection.execute(
        t.batch.update().where(t.batch.c.id == batch, t.batch.c.started_at.is_(None)).values(started_at=now)
    )


def settlements_page(
    connection: sa.Connection, batch: UUID, *, after: int, limit: int, states: Sequence[SettlementState] = ()
) -> list[SettlementRow]:
    """In the order of the file, after a position."""
    where = (t.settlement.c.batch_id == batch) & (t.settlement.c.position > after)
    if states:
        where = where & t.settlement.c.state.in_([state.value for state in states])
    return _settlements(connection, where, order=(t.settlement.c.position,), limit=limit)


def find_settlement(connection: sa.Connection, settlement: UUID) -> SettlementRow | None:
    found = _settlements(connection, t.settlement.c.id == settlement, order=(t.settlement.c.id,), limit=1)
    return found[0] if found else None


def in_doubt(
    connection: sa.Connection,
    *,
    after: UUID | None,
    limit: int,
    party: ParticipantId | None,
    with_received: bool = False,
) -> list[SettlementRow]:
    """Oldest first; of one party only, if given; with those that wait to begin, if asked."""
    states = (SettlementState.RECEIVED, *IN_DOUBT) if with_received else IN_DOUBT
    where: sa.ColumnElement[bool] = t.settlement.c.state.in_([state.value for state in states])
    if after is not None:
        where = where & (t.settlement.c.id > after)
    if party is not None:
        where = where & sa.exists().where(
            t.leg.c.settlement_id == t.settlement.c.id, sa.or_(t.leg.c.payer == party, t.leg.c.payee == party)
        )
    return _settlements(connection, where, order=(t.settlement.c.id,), limit=limit)


def request_abort(connection: sa.Connection, settlement: UUID, *, by: ParticipantId, now: datetime) -> bool:
    """Note that the operator gives it up, for whatever engine has the lease then; False if it is decided already.

    The first request stays. The engine writes ABORT unless a decision comes first.
    """
    undecided = t.settlement.c.state.in_([SettlementState.RECEIVED.value, SettlementState.PREPARED.value])
    noted = connection.execute(
        t.settlement.update()
        .where(t.settlement.c.id == settlement, undecided)
        .values(
            abort_requested_at=sa.func.coalesce(t.settlement.c.abort_requested_at, now),
            abort_requested_by=sa.func.coalesce(t.settlement.c.abort_requested_by, by),
        )
    )
    return noted.rowcount == 1


def posted_legs(
    connection: sa.Connection, batch: UUID, *, participant: ParticipantId, currency: str
) -> list[tuple[SettlementRow, LegRow]]:
    """Posted legs that the participant paid or received, in the order of their finality."""
    concerned = (
        sa.select(t.leg.c.settlement_id)
        .where(t.leg.c.currency == currency, t.leg.c.state == LegState.POSTED.value)
        .where(sa.or_(t.leg.c.payer == participant, t.leg.c.payee == participant))
    )
    where = (t.settlement.c.batch_id == batch) & t.settlement.c.id.in_(concerned)
    rows = _settlements(connection, where, order=(t.settlement.c.position,), limit=None)
    return [
        (row, found)
        for row in rows
        for found in row.legs
        if found.leg.terms.amount.currency.code == currency
        and found.leg.state is LegState.POSTED
        and participant in (found.leg.terms.payer, found.leg.terms.payee)
    ]


def posted_legs_between(
    connection: sa.Connection,
    *,
    participant: ParticipantId,
    currency: str,
    booked_from: datetime | None,
    booked_to: datetime | None,
) -> list[tuple[SettlementRow, LegRow]]:
    """`posted_legs` of whatever batch, by when their ledger booked them; `booked_to` is exclusive."""
    concerned = (
        sa.select(t.leg.c.settlement_id)
        .where(t.leg.c.currency == currency, t.leg.c.state == LegState.POSTED.value)
        .where(sa.or_(t.leg.c.payer == participant, t.leg.c.payee == participant))
    )
    if booked_from is not None:
        concerned = concerned.where(t.leg.c.ended_at >= booked_from)
    if booked_to is not None:
        concerned = concerned.where(t.leg.c.ended_at < booked_to)
    rows = _settlements(connection, t.settlement.c.id.in_(concerned), order=(t.settlement.c.id,), limit=None)
    return [
        (row, found)
        for row in rows
        for found in row.legs
        if found.leg.terms.amount.currency.code == currency
        and found.leg.state is LegState.POSTED
        and participant in (found.leg.terms.payer, found.leg.terms.payee)
        and found.ended_at is not None
        and (booked_from is None or found.ended_at >= booked_from)
        and (booked_to is None or found.ended_at < booked_to)
    ]


def _batch(connection: sa.Connection, where: sa.ColumnElement[bool]) -> BatchRow | None:
    row = connection.execute(sa.select(t.batch).where(where)).one_or_none()
    if row is None:
        return None
    counted = connection.execute(
        sa.select(t.settlement.c.state, sa.func.count())
        .where(t.settlement.c.batch_id == row.id)
        .group_by(t.settlement.c.state)
    )
    counts = dict.fromkeys(SettlementState, 0) | {SettlementState(state): count for state, count in counted}
    return BatchRow(
        row.id,
        ParticipantId(row.submitter),
        row.message_id,
        row.format,
        bytes(row.content_sha256),
        row.settlement_count,
        row.received_at,
        row.started_at,
        counts,
    )


def _settlements(
    connection: sa.Connection,
    where: sa.ColumnElement[bool],
    *,
    order: tuple[sa.ColumnElement[object], ...],
    limit: int | None,
) -> list[SettlementRow]:
    statement = (
        sa.select(
            t.settlement,
            t.decision.c.decision,
            t.decision.c.decided_at,
            t.decision.c.reason,
            t.decision.c.detail,
            t.batch.c.received_at,
            t.batch.c.started_at,
        )
        .join(t.batch, t.batch.c.id == t.settlement.c.batch_id)
        .outerjoin(t.decision, t.decision.c.settlement_id == t.settlement.c.id)
        .where(where)
        .order_by(*order)
        .limit(limit)
    )
    rows = connection.execute(statement).all()
    legs: dict[UUID, list[LegRow]] = {row.id: [] for row in rows}
    if rows:
        found = connection.execute(
            sa.select(t.leg)
            .where(t.leg.c.settlement_id == sa.func.any(sa.cast(list(legs), sa.ARRAY(sa.Uuid))))
            .order_by(t.leg.c.settlement_id, t.leg.c.number)
        )
        for item in found:
            legs[item.settlement_id].append(
                LegRow(leg_of(item), item.detail, item.ended_at, item.authorisation is not None)
            )
    return [
        SettlementRow(
            id=row.id,
            batch=row.batch_id,
            position=row.position,
            instruction_id=row.instruction_id,
            end_to_end_id=row.end_to_end_id,
            uetr=row.uetr,
            debtor=ParticipantId(row.debtor),
            creditor=ParticipantId(row.creditor),
            value_date=row.value_date,
            state=SettlementState(row.state),
            rate=row.rate,
            rate_provider=None if row.rate_provider is None else ParticipantId(row.rate_provider),
            remainder_minor=row.remainder_minor,
            waits_for=row.waits_for,
            prepared_at=row.prepared_at,
            ended_at=row.ended_at,
            decision=None if row.decision is None else Decision(row.decision),
            decided_at=row.decided_at,
            reason=row.reason,
            detail=row.detail or "",
            legs=tuple(legs[row.id]),
            epoch=row.epoch,
            received_at=row.received_at,
            is_started=row.started_at is not None,
            abort_requested_by=None if row.abort_requested_by is None else ParticipantId(row.abort_requested_by),
            nets=row.nets,
        )
        for row in rows
    ]

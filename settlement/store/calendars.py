"""Plans of the calendar: which settlement is to be carried out in which window, and what became of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import ParticipantId, new_uuid7
from settlement.domain.calendars import MissedCutOff, PaymentKind
from settlement.domain.escrow import LegState, SettlementState
from settlement.store import calendar_tables as c
from settlement.store import tables as t
from settlement.store.gates import GateKind

DETAIL_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class PlanRow:
    settlement: UUID
    kind: PaymentKind
    missed: MissedCutOff
    currencies: tuple[str, ...]
    asked_value_date: date
    value_date: date
    window_from: datetime
    window_until: datetime
    calendars_sha256: bytes
    is_assumed: bool


@dataclass(frozen=True, slots=True)
class PlanEvent:
    settlement: UUID
    event: str
    """opened, rolled or refused."""
    value_date: date
    detail: str
    happened_at: datetime


@dataclass(frozen=True, slots=True)
class DuePlan:
    """A plan whose settlement is still received, with where its calendar gate stands (None: it has none)."""

    plan: PlanRow
    is_gate_open: bool | None


def insert_plans(connection: sa.Connection, plans: Sequence[PlanRow], *, now: datetime) -> None:
    if plans:
        connection.execute(
            c.calendar_plan.insert(),
            [
                {
                    "settlement_id": item.settlement,
                    "kind": item.kind.value,
                    "missed": item.missed.value,
                    "currencies": list(item.currencies),
                    "asked_value_date": item.asked_value_date,
                    "value_date": item.value_date,
                    "window_from": item.window_from,
                    "window_until": item.window_until,
                    "calendars_sha256": item.calendars_sha256,
                    "is_assumed": item.is_assumed,
                    "is_done": False,
                    "planned_at": now,
                }
                for item in plans
            ],
        )


def find_plan(connection: sa.Connection, settlement: UUID) -> PlanRow | None:
    row = connection.execute(
        sa.select(c.calendar_plan).where(c.calendar_plan.c.settlement_id == settlement)
    ).one_or_none()
    return None if row is None else _plan(row)


def find_plans(connection: sa.Connection, settlements: Collection[UUID]) -> list[PlanRow]:
    """In the order of their settlements' ids; a settlement of before the calendars has none."""
    wanted = sa.cast(list(settlements), sa.ARRAY(sa.Uuid))
    rows = connection.execute(
        sa.select(c.calendar_plan)
        .where(c.calendar_plan.c.settlement_id == sa.any_(wanted))
        .order_by(c.calendar_plan.c.settlement_id)
    )
    return [_plan(row) for row in rows]


def events(connection: sa.Connection, settlement: UUID, *, limit: int) -> list[PlanEvent]:
    """Oldest first."""
    rows = connection.execute(
        sa.select(c.calendar_event)
        .where(c.calendar_event.c.settlement_id == settlement)
        .order_by(c.calendar_event.c.id)
        .limit(limit)
    )
    return [PlanEvent(row.settlement_id, row.event, row.value_date, row.detail, row.happened_at) for row in rows]


def close_done(connection: sa.Connection, *, now: datetime, limit: int) -> int:
    """Mark the plans of settlements that the engine has taken or that have ended: their hours matter no more.

    Only those whose window has begun are looked at: the rest of a long queue is left alone.
    """
    done = (
        sa.select(c.calendar_plan.c.settlement_id)
        .join(t.settlement, t.settlement.c.id == c.calendar_plan.c.settlement_id)
        .where(~c.calendar_plan.c.is_done, c.calendar_plan.c.window_from <= now)
        .where(t.settlement.c.state != SettlementState.RECEIVED.value)
        .limit(limit)
    )
    changed = connection.execute(
        c.calendar_plan.update().where(c.calendar_plan.c.settlement_id.in_(done)).values(is_done=True)
    )
    return changed.rowcount


def due(connection: sa.Connection, *, now: datetime, limit: int) -> list[DuePlan]:
    """Received settlements whose gate may open, or whose window is over; locked, those that others lock left out.

    A settlement that compliance holds is not opened before that: else it might be let go out of hours.
    """
    gate, held = t.gate.alias("calendar_gate"), t.gate.alias("compliance_gate")
    is_held = sa.exists().where(
        held.c.settlement_id == c.calendar_plan.c.settlement_id,
        held.c.kind == GateKind.COMPLIANCE.value,
        held.c.opened_at.is_(None),
    )
    is_closed = gate.c.settlement_id.is_not(None) & gate.c.opened_at.is_(None)
    may_open = is_closed & ~is_held
    joined = c.calendar_plan.join(t.settlement, t.settlement.c.id == c.calendar_plan.c.settlement_id).outerjoin(
        gate,
        (gate.c.settlement_id == c.calendar_plan.c.settlement_id) & (gate.c.kind == GateKind.CALENDAR.value),
    )
    statement = (
        sa.select(c.calendar_plan, gate.c.settlement_id.label("gated"), gate.c.opened_at)
        .select_from(joined)
        .where(~c.calendar_plan.c.is_done, c.calendar_plan.c.window_from <= now)
        .where(t.settlement.c.state == SettlementState.RECEIVED.value)
        .where(t.settlement.c.netted_by.is_(None))  # else the engine has it, in its netting settlement
        .where(may_open | (c.calendar_plan.c.window_until <= now))
        .order_by(c.calendar_plan.c.settlement_id)
        .limit(limit)
        .with_for_update(of=[t.settlement, c.calendar_plan], skip_locked=True)
    )
    return [
        DuePlan(_plan(row), None if row.gated is None else row.opened_at is not None)
        for row in connection.execute(statement)
    ]


def move_plans(connection: sa.Connection, plans: Sequence[PlanRow], *, reason: dict[UUID, str], now: datetime) -> None:
    """Settlements roll to another window: the plan says so, and their gate is closed again, or closed now."""
    if not plans:
        return
    connection.execute(
        c.calendar_plan.update()
        .where(c.calendar_plan.c.settlement_id == sa.bindparam("key"))
        .values(
            value_date=sa.bindparam("new_value_date"),
            window_from=sa.bindparam("new_from"),
            window_until=sa.bindparam("new_until"),
            is_assumed=sa.bindparam("new_assumed"),
            calendars_sha256=sa.bindparam("new_digest"),
            planned_at=now,
        ),
        [
            {
                "key": item.settlement,
                "new_value_date": item.value_date,
                "new_from": item.window_from,
                "new_until": item.window_until,
                "new_assumed": item.is_assumed,
                "new_digest": item.calendars_sha256,
            }
            for item in plans
        ],
    )
    made = insert(t.gate)
    connection.execute(
        made.on_conflict_do_update(
            index_elements=["settlement_id", "kind"],
            set_={
                "reason": made.excluded.reason,
                "not_before": made.excluded.not_before,
                "closed_at": made.excluded.closed_at,
                "opened_at": None,
                "opened_by": None,
            },
        ),
        [
            {
                "settlement_id": item.settlement,
                "kind": GateKind.CALENDAR.value,
                "reason": reason[item.settlement][:DETAIL_LENGTH_MAX],
                "not_before": item.window_from,
                "closed_at": now,
            }
            for item in plans
        ],
    )


def record_events(connection: sa.Connection, found: Sequence[PlanEvent]) -> None:
    if found:
        connection.execute(
            c.calendar_event.insert(),
            [
                {
                    "id": new_uuid7(),
                    "settlement_id": item.settlement,
                    "event": item.event,
                    "value_date": item.value_date,
                    "detail": item.detail[:DETAIL_LENGTH_MAX],
                    "happened_at": item.happened_at,
                }
                for item in found
            ],
        )


# --- clear-out


@dataclass(frozen=True, slots=True)
class Position:
    """What a participant holds of a currency from this bridge's settlements, in minor units."""

    participant: ParticipantId
    net_minor: int
    """Received less paid, of posted legs. Negative: it paid with money that came another way."""
    outgoing_minor: int
    """What is surely on its way out by the day: settlements under way, those that wait for nothing but their hours, and
    returns. Not what waits for a later day, in a queue or for officers: else it would keep a balance from being
    returned for as long as its holder likes."""


@dataclass(frozen=True, slots=True)
class ClearOutLine:
    number: int
    participant: ParticipantId
    returns_to: ParticipantId
    against: str
    amount_minor: int
    uetr: UUID


@dataclass(frozen=True, slots=True)
class ClearOutRow:
    id: UUID
    currency: str
    business_day: date
    made_by: str
    made_at: datetime
    lines: tuple[ClearOutLine, ...]
    batch: UUID | None
    """The batch of returns, once approved."""
    approved_by: str | None
    approved_at: datetime | None


def positions(connection: sa.Connection, *, currency: str, through: date) -> list[Position]:
    """Every participant that a posted or pending leg of the currency names, in the order of their codes; of what is
    still to come, what is paid `through` that day."""
    amount, is_posted = t.leg.c.amount_minor, t.leg.c.state == LegState.POSTED.value
    state = t.settlement.c.state
    is_under_way = state.in_([SettlementState.PREPARED.value, SettlementState.COMMITTED.value])
    is_due = sa.func.coalesce(c.calendar_plan.c.value_date, t.settlement.c.value_date) <= through
    waits_for_more = sa.exists().where(
        t.gate.c.settlement_id == t.settlement.c.id,
        t.gate.c.kind != GateKind.CALENDAR.value,
        t.gate.c.opened_at.is_(None),
    )
    is_return = sa.exists().where(c.clear_out_line.c.uetr == t.settlement.c.uetr)
    is_sure = is_return | (is_due & t.batch.c.started_at.is_not(None) & ~waits_for_more)
    # What a netting under way stands for is in that netting's own legs.
    is_next = (state == SettlementState.RECEIVED.value) & t.settlement.c.netted_by.is_(None) & is_sure
    is_coming = ~is_posted & (is_under_way | is_next)
    nothing = sa.cast(0, sa.Numeric)

    def side(who: sa.ColumnElement[str], net: int, outgoing: int) -> sa.Select[tuple[str, int, int]]:
        return (
            sa.select(
                who.label("participant"),
                sa.case((is_posted, amount * net), else_=0).label("net"),
                sa.case((is_coming, amount * outgoing), else_=0).label("outgoing"),
            )
            .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
            .join(t.batch, t.batch.c.id == t.settlement.c.batch_id)
            .outerjoin(c.calendar_plan, c.calendar_plan.c.settlement_id == t.settlement.c.id)
            .where(t.leg.c.currency == currency)
        )

    both = sa.union_all(side(t.leg.c.payee, 1, 0), side(t.leg.c.payer, -1, 1)).subquery()
    rows = connection.execute(
        sa.select(
            both.c.participant,
            sa.func.coalesce(sa.func.sum(both.c.net), nothing).label("net"),
            sa.func.coalesce(sa.func.sum(both.c.outgoing), nothing).label("outgoing"),
        )
        .group_by(both.c.participant)
        .order_by(both.c.participant)
    )
    return [Position(ParticipantId(row.participant), int(row.net), int(row.outgoing)) for row in rows]


def insert_clear_out(connection: sa.Connection, row: ClearOutRow) -> None:
    connection.execute(
        c.clear_out.insert().values(
            id=row.id, currency=row.currency, business_day=row.business_day, made_by=row.made_by, made_at=row.made_at
        )
    )
    if row.lines:
        connection.execute(
            c.clear_out_line.insert(),
            [
                {
                    "clear_out_id": row.id,
                    "number": line.number,
                    "participant": line.participant,
                    "returns_to": line.returns_to,
                    "against": line.against,
                    "amount_minor": line.amount_minor,
                    "uetr": line.uetr,
                }
                for line in row.lines
            ],
        )


def find_clear_out(connection: sa.Connection, key: UUID) -> ClearOutRow | None:
    row = connection.execute(
        sa.select(c.clear_out, c.clear_out_approval)
        .outerjoin(c.clear_out_approval, c.clear_out_approval.c.clear_out_id == c.clear_out.c.id)
        .where(c.clear_out.c.id == key)
    ).one_or_none()
    if row is None:
        return None
    lines = connection.execute(
        sa.select(c.clear_out_line).where(c.clear_out_line.c.clear_out_id == key).order_by(c.clear_out_line.c.number)
    )
    return ClearOutRow(
        row.id,
        row.currency,
        row.business_day,
        row.made_by,
        row.made_at,
        tuple(
            ClearOutLine(
                line.number,
                ParticipantId(line.participant),
                ParticipantId(line.returns_to),
                line.against,
                line.amount_minor,
                line.uetr,
            )
            for line in lines
        ),
        row.batch_id,
        row.approved_by,
        row.approved_at,
    )


def approve_clear_out(connection: sa.Connection, key: UUID, *, batch: UUID, by: str, now: datetime) -> None:
    """The first approval stays; a repeated one finds it."""
    made = insert(c.clear_out_approval).values(clear_out_id=key, approved_by=by, approved_at=now, batch_id=batch)
    connection.execute(made.on_conflict_do_nothing())


def _plan(row: sa.Row[tuple[object, ...]]) -> PlanRow:
    return PlanRow(
        row.settlement_id,
        PaymentKind(row.kind),
        MissedCutOff(row.missed),
        tuple(row.currencies),
        row.asked_value_date,
        row.value_date,
        row.window_from,
        row.window_until,
        bytes(row.calendars_sha256),
        row.is_assumed,
    )

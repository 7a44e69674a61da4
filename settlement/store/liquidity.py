"""The queue, limits, and runs: how they are stored and read. The queue itself is the settlements behind a closed gate.

Order of the queue: priority, then submission, as the engine's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel.arrays import array_of
from kernel.ids import ParticipantId
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.liquidity.limits import Limit
from settlement.domain.liquidity.model import Flow, LimitKind, Queued
from settlement.store import gates
from settlement.store import liquidity_tables as lt
from settlement.store import market_tables as market
from settlement.store import tables as t

_KIND = gates.GateKind.LIQUIDITY


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queued settlement. `other_gates`: what else keeps it waiting; a run leaves it alone until those are open."""

    id: UUID
    batch: UUID
    position: int
    uetr: UUID
    debtor: ParticipantId
    creditor: ParticipantId
    priority: int
    is_started: bool
    queued_at: datetime
    reason: str
    netted_by: UUID | None
    other_gates: tuple[str, ...]
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class RunItem:
    place: int
    settlement: UUID
    stage: str | None
    round: int | None
    sentence: str
    needs: Sequence[Mapping[str, Any]]
    is_worked_out: bool


@dataclass(frozen=True, slots=True)
class RunRow:
    id: UUID
    state: str
    method: str
    settle_as: str
    needs_approval: bool
    queue_count: int
    taken_count: int
    taken_sha256: bytes
    positions_read_at: datetime
    summary: Mapping[str, Any]
    created_by: str
    created_at: datetime
    started_by: str | None
    started_at: datetime | None
    ended_at: datetime | None
    reason: str
    netting_id: UUID | None
    round: int | None
    approved_by: tuple[str, ...]


# --- the queue


def _other_gate() -> sa.Exists:
    other = t.gate.alias("other_gate")
    return sa.exists().where(
        other.c.settlement_id == t.settlement.c.id, other.c.kind != _KIND.value, other.c.opened_at.is_(None)
    )


def _queued() -> sa.ColumnElement[bool]:
    return (
        (t.gate.c.kind == _KIND.value)
        & t.gate.c.opened_at.is_(None)
        & (t.settlement.c.state == SettlementState.RECEIVED.value)
    )


def read_queue(connection: sa.Connection, *, limit: int) -> list[Queued]:
    """What a run may take, in order: nothing else holds it up, no run has it, nobody has given it up, and no lock on
    the quotes that it uses is over."""
    picked = (
        sa.select(
            t.settlement.c.id,
            t.settlement.c.priority,
            sa.func.row_number()
            .over(order_by=(t.settlement.c.priority, t.settlement.c.batch_id, t.settlement.c.position))
            .label("place"),
        )
        .join(t.gate, t.gate.c.settlement_id == t.settlement.c.id)
        .join(t.batch, t.batch.c.id == t.settlement.c.batch_id)
        .where(_queued(), ~_other_gate(), t.settlement.c.netted_by.is_(None))
        .where(t.batch.c.started_at.is_not(None), t.settlement.c.abort_requested_at.is_(None))
        .where(~market.is_lock_expired(t.settlement.c.id))
        .order_by("place")
        .limit(limit)
        .subquery()
    )
    rows = connection.execute(
        sa.select(picked.c.id, picked.c.priority, t.leg.c.payer, t.leg.c.payee, t.leg.c.currency, t.leg.c.amount_minor)
        .join(t.leg, t.leg.c.settlement_id == picked.c.id)
        .order_by(picked.c.place, t.leg.c.number)
    )
    flows: dict[tuple[UUID, int], list[Flow]] = {}
    for key, priority, payer, payee, currency, amount in rows:
        flows.setdefault((key, priority), []).append(Flow(payer, payee, currency, amount))
    return [Queued(key, tuple(found), priority) for (key, priority), found in flows.items()]


def queue_page(
    connection: sa.Connection,
    *,
    after: tuple[int, UUID, int] | None,
    limit: int,
    party: ParticipantId | None,
    settlement: UUID | None = None,
) -> list[QueueRow]:
    """In queue order, after (priority, batch, position); of one party, or of one settlement, only, if given."""
    order = (t.settlement.c.priority, t.settlement.c.batch_id, t.settlement.c.position)
    statement = (
        sa.select(t.settlement, t.batch.c.started_at, t.gate.c.closed_at, t.gate.c.reason.label("gate_reason"))
        .join(t.gate, t.gate.c.settlement_id == t.settlement.c.id)
        .join(t.batch, t.batch.c.id == t.settlement.c.batch_id)
        .where(_queued())
        .order_by(*order)
        .limit(limit)
    )
    if after is not None:
        statement = statement.where(sa.tuple_(*order) > sa.tuple_(*(sa.literal(value) for value in after)))
    if settlement is not None:
        statement = statement.where(t.settlement.c.id == settlement)
    if party is not None:
        concerned = sa.exists().where(
            t.leg.c.settlement_id == t.settlement.c.id, sa.or_(t.leg.c.payer == party, t.leg.c.payee == party)
        )
        statement = statement.where(concerned)
    rows = connection.execute(statement).all()
    keys = [row.id for row in rows]
    flows: dict[UUID, list[Flow]] = {key: [] for key in keys}
    for leg in connection.execute(
        sa.select(t.leg).where(t.leg.c.settlement_id.in_(keys)).order_by(t.leg.c.settlement_id, t.leg.c.number)
    ):
        flows[leg.settlement_id].append(Flow(leg.payer, leg.payee, leg.currency, leg.amount_minor))
    closed = gates.closed(connection, keys)
    return [
        QueueRow(
            row.id,
            row.batch_id,
            row.position,
            row.uetr,
            ParticipantId(row.debtor),
            ParticipantId(row.creditor),
            row.priority,
            row.started_at is not None,
            row.closed_at,
            row.gate_reason,
            row.netted_by,
            tuple(f"{gate.kind.value}: {gate.reason}" for gate in closed.get(row.id, ()) if gate.kind is not _KIND),
            tuple(flows[row.id]),
        )
        for row in rows
    ]


def lock_received(connection: sa.Connection, settlements: Collection[UUID]) -> dict[UUID, bool]:
    """Lock these settlements that are received, in id order; whether each waits in the queue and no run has it."""
    is_received = t.settlement.c.state == SettlementState.RECEIVED.value
    locked = list(
        connection.execute(
            sa.select(t.settlement.c.id)
            .where(t.settlement.c.id == sa.any_(_array(settlements)), is_received)
            .order_by(t.settlement.c.id)
            .with_for_update()
        ).scalars()
    )
    # Asked under the locks, by a statement of its own: one that waited for a lock sees gates as they were before.
    is_queued = sa.exists().where(
        t.gate.c.settlement_id == t.settlement.c.id, t.gate.c.kind == _KIND.value, t.gate.c.opened_at.is_(None)
    )
    rows = connection.execute(
        sa.select(
            t.settlement.c.id,
            (
                is_queued
                & ~_other_gate()
                & t.settlement.c.netted_by.is_(None)
                & t.settlement.c.abort_requested_at.is_(None)
                & ~market.is_lock_expired(t.settlement.c.id)
            ).label("is_queued"),
        ).where(t.settlement.c.id == sa.any_(_array(locked)))
    )
    return {row.id: bool(row.is_queued) for row in rows}


def received_of_batch(connection: sa.Connection, batch: UUID) -> list[UUID]:
    statement = sa.select(t.settlement.c.id).where(
        t.settlement.c.batch_id == batch, t.settlement.c.state == SettlementState.RECEIVED.value
    )
    return list(connection.execute(statement.order_by(t.settlement.c.position)).scalars())


def hold_back(connection: sa.Connection, settlements: Collection[UUID], *, reason: str, now: datetime) -> int:
    """Put received settlements into the queue; how many were not in it. One that left it stays out."""
    known = set(
        connection.execute(
            sa.select(t.gate.c.settlement_id).where(
                t.gate.c.settlement_id == sa.any_(_array(settlements)), t.gate.c.kind == _KIND.value
            )
        ).scalars()
    )
    new = [gates.Gate(key, _KIND, reason) for key in settlements if key not in known]
    gates.close(connection, new, now=now)
    return len(new)


# --- limits


def insert_limit(connection: sa.Connection, limit: Limit) -> None:
    connection.execute(
        lt.liquidity_limit.insert().values(
            id=limit.id,
            participant=limit.participant,
            currency=limit.currency,
            kind=limit.kind.value,
            counterparty=limit.counterparty,
            amount_minor=limit.amount_minor,
            valid_from=limit.valid_from,
            is_operator=limit.is_operator,
            set_by=limit.set_by,
            set_at=limit.set_at,
        )
    )


def lock_limits(connection: sa.Connection, participant: ParticipantId, currency: str) -> None:
    """One change of a position's limits at a time."""
    connection.execute(
        sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(f"limit {participant} {currency}", 7)))
    )


def limits(connection: sa.Connection, *, participant: ParticipantId | None = None) -> list[Limit]:
    """Every row, lifted and past ones too, of one participant or of all."""
    statement = sa.select(lt.liquidity_limit).order_by(
        lt.liquidity_limit.c.participant,
        lt.liquidity_limit.c.currency,
        lt.liquidity_limit.c.valid_from,
        lt.liquidity_limit.c.set_at,
        lt.liquidity_limit.c.id,
    )
    if participant is not None:
        statement = statement.where(lt.liquidity_limit.c.participant == participant)
    return [
        Limit(
            row.id,
            LimitKind(row.kind),
            ParticipantId(row.participant),
            row.currency,
            None if row.counterparty is None else ParticipantId(row.counterparty),
            row.amount_minor,
            row.valid_from,
            row.is_operator,
            ParticipantId(row.set_by),
            row.set_at,
        )
        for row in connection.execute(statement)
    ]


def paid_since(
    connection: sa.Connection, since: datetime, *, participants: Collection[ParticipantId]
) -> dict[tuple[ParticipantId, ParticipantId, str], int]:
    """What one paid another gross by settlements final since then, by currency, where one of both is concerned.

    Netted instructions count with their own amounts, so the net legs that paid them do not count again.
    """
    if not participants:
        return {}
    concerned = sorted(participants)
    statement = (
        sa.select(t.leg.c.payer, t.leg.c.payee, t.leg.c.currency, sa.func.sum(t.leg.c.amount_minor))
        .join(t.decision, t.decision.c.settlement_id == t.leg.c.settlement_id)
        .join(t.settlement, t.settlement.c.id == t.leg.c.settlement_id)
        .where(t.decision.c.decided_at >= since, t.decision.c.decision == Decision.COMMIT.value)
        .where(~t.settlement.c.nets)
        .where(sa.or_(t.leg.c.payer.in_(concerned), t.leg.c.payee.in_(concerned)))
        .group_by(t.leg.c.payer, t.leg.c.payee, t.leg.c.currency)
    )
    return {
        (ParticipantId(payer), ParticipantId(payee), currency): int(amount)
        for payer, payee, currency, amount in connection.execute(statement)
    }


# --- runs


def insert_run(connection: sa.Connection, values: Mapping[str, Any], items: Sequence[RunItem]) -> None:
    connection.execute(lt.liquidity_run.insert().values(**values))
    if items:
        connection.execute(
            lt.liquidity_run_item.insert(),
            [
                {
                    "run_id": values["id"],
                    "place": item.place,
                    "settlement_id": item.settlement,
                    "stage": item.stage,
                    "round": item.round,
                    "sentence": item.sentence,
                    "needs": list(item.needs),
                    "is_worked_out": item.is_worked_out,
                }
                for item in items
            ],
        )


def find_run(connection: sa.Connection, run: UUID, *, lock: bool = False) -> RunRow | None:
    found = _runs(connection, lt.liquidity_run.c.id == run, limit=1, lock=lock)
    return found[0] if found else None


def runs_page(connection: sa.Connection, *, before: UUID | None, limit: int) -> list[RunRow]:
    """The newest first."""
    where = sa.true() if before is None else lt.liquidity_run.c.id < before
    return _runs(connection, where, limit=limit)


def running(connection: sa.Connection, *, limit: int = 100) -> list[RunRow]:
    return _runs(connection, lt.liquidity_run.c.state == "running", limit=limit)


def _runs(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int, lock: bool = False) -> list[RunRow]:
    statement = sa.select(lt.liquidity_run).where(where).order_by(lt.liquidity_run.c.id.desc()).limit(limit)
    rows = connection.execute(statement.with_for_update() if lock else statement).mappings().all()
    approvals: dict[UUID, list[str]] = {row["id"]: [] for row in rows}
    for found in connection.execute(
        sa.select(lt.liquidity_approval.c.run_id, lt.liquidity_approval.c.person)
        .where(lt.liquidity_approval.c.run_id.in_(list(approvals)))
        .order_by(lt.liquidity_approval.c.approved_at)
    ):
        approvals[found.run_id].append(found.person)
    return [
        RunRow(**(dict(row) | {"taken_sha256": bytes(row["taken_sha256"])}), approved_by=tuple(approvals[row["id"]]))
        for row in rows
    ]


def run_items(
    connection: sa.Connection,
    run: UUID,
    *,
    after: int,
    limit: int | None,
    party: ParticipantId | None = None,
    is_taken: bool | None = None,
) -> list[RunItem]:
    item = lt.liquidity_run_item
    statement = sa.select(item).where(item.c.run_id == run, item.c.place > after).order_by(item.c.place).limit(limit)
    if party is not None:
        statement = statement.where(
            sa.exists().where(
                t.leg.c.settlement_id == item.c.settlement_id, sa.or_(t.leg.c.payer == party, t.leg.c.payee == party)
            )
        )
    if is_taken is not None:
        statement = statement.where(item.c.stage.is_not(None) if is_taken else item.c.stage.is_(None))
    return [
        RunItem(row.place, row.settlement_id, row.stage, row.round, row.sentence, row.needs, row.is_worked_out)
        for row in connection.execute(statement)
    ]


def lock_runs(connection: sa.Connection) -> None:
    """One run starts at a time: whoever comes second sees what the first has started."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended("liquidity run", 7))))


def insert_approval(connection: sa.Connection, run: UUID, *, person: str, token: str, now: datetime) -> None:
    connection.execute(lt.liquidity_approval.insert().values(run_id=run, person=person, token=token, approved_at=now))


def start_run(
    connection: sa.Connection, run: UUID, *, by: str, netting: UUID | None, round_: int | None, now: datetime
) -> None:
    connection.execute(
        lt.liquidity_run.update()
        .where(lt.liquidity_run.c.id == run)
        .values(state="running", started_by=by, started_at=now, netting_id=netting, round=round_)
    )


def set_round(connection: sa.Connection, run: UUID, number: int) -> None:
    connection.execute(lt.liquidity_run.update().where(lt.liquidity_run.c.id == run).values(round=number))


def end_run(connection: sa.Connection, run: UUID, *, state: str, reason: str, now: datetime) -> None:
    connection.execute(
        lt.liquidity_run.update()
        .where(lt.liquidity_run.c.id == run)
        .values(state=state, reason=reason[:500], ended_at=now)
    )


def states_of(connection: sa.Connection, settlements: Collection[UUID]) -> dict[UUID, SettlementState]:
    rows = connection.execute(
        sa.select(t.settlement.c.id, t.settlement.c.state).where(t.settlement.c.id == sa.any_(_array(settlements)))
    )
    return {row.id: SettlementState(row.state) for row in rows}


def first_decided(connection: sa.Connection, settlements: Collection[UUID]) -> tuple[UUID, datetime]:
    """Which of these, all decided, was decided first, and when."""
    row = connection.execute(
        sa.select(t.decision.c.settlement_id, t.decision.c.decided_at)
        .where(t.decision.c.settlement_id == sa.any_(_array(settlements)))
        .order_by(t.decision.c.decided_at, t.decision.c.settlement_id)
        .limit(1)
    ).one()
    return row.settlement_id, row.decided_at


# --- netting settlements


def attach(connection: sa.Connection, netting: UUID, settlements: Collection[UUID]) -> int:
    """Make `netting` stand for these locked, queued settlements; how many it stands for."""
    connection.execute(t.settlement.update().where(t.settlement.c.id == netting).values(nets=True))
    return connection.execute(
        t.settlement.update()
        .where(t.settlement.c.id == sa.any_(_array(settlements)), t.settlement.c.netted_by.is_(None))
        .where(t.settlement.c.state == SettlementState.RECEIVED.value)
        .values(netted_by=netting)
    ).rowcount


def netted_of(
    connection: sa.Connection, uetrs: Collection[UUID], participant: ParticipantId
) -> dict[UUID, list[tuple[UUID, tuple[Flow, ...]]]]:
    """Of those UETRs that are netting settlements': each instruction of `participant` (its UETR) and its flows."""
    keys = connection.execute(
        sa.select(t.settlement.c.uetr).where(t.settlement.c.uetr == sa.any_(_array(uetrs)), t.settlement.c.nets)
    ).scalars()
    found: dict[UUID, dict[UUID, list[Flow]]] = {key: {} for key in keys}
    if not found:
        return {}
    netting = t.settlement.alias("netting")
    own = t.settlement.alias("own")
    concerned = sa.exists().where(
        t.leg.c.settlement_id == own.c.id, sa.or_(t.leg.c.payer == participant, t.leg.c.payee == participant)
    )
    legs = t.leg.alias("gross")
    rows = connection.execute(
        sa.select(
            netting.c.uetr, own.c.uetr.label("own"), legs.c.payer, legs.c.payee, legs.c.currency, legs.c.amount_minor
        )
        .join(own, own.c.netted_by == netting.c.id)
        .join(legs, legs.c.settlement_id == own.c.id)
        .where(netting.c.uetr == sa.any_(_array(found)), concerned)
        .order_by(netting.c.uetr, own.c.uetr, legs.c.number)
    )
    for row in rows:
        flow = Flow(ParticipantId(row.payer), ParticipantId(row.payee), row.currency, row.amount_minor)
        found[row.uetr].setdefault(row.own, []).append(flow)
    return {key: [(own, tuple(flows)) for own, flows in instructions.items()] for key, instructions in found.items()}


def follow_decisions(connection: sa.Connection, decided: Mapping[UUID, Decision], *, epoch: int, now: datetime) -> None:
    """I5: what a netting settlement stands for follows its decision, in the decision's own transaction.

    COMMIT: each instruction has its own decision row with the same time of finality, and is settled. ABORT: each goes
    back to the queue. The triggers of migration 0007 refuse a transaction that does less.
    """
    rows = connection.execute(
        sa.select(t.settlement.c.id).where(t.settlement.c.id == sa.any_(_array(decided)), t.settlement.c.nets)
    ).scalars()
    for netting in sorted(rows):
        # Locked by id, as everybody locks settlements.
        netted = sa.select(t.settlement.c.id).where(t.settlement.c.netted_by == netting).order_by(t.settlement.c.id)
        keys = list(connection.execute(netted.with_for_update()).scalars())
        if decided[netting] is Decision.COMMIT:
            _settle_netted(connection, netting, keys, epoch=epoch, now=now)
            _end_netting_run(connection, netting, "settled", "", now=now)
        else:
            connection.execute(
                t.settlement.update().where(t.settlement.c.id == sa.any_(_array(keys))).values(netted_by=None)
            )
            reason = connection.execute(
                sa.select(t.decision.c.reason, t.decision.c.detail).where(t.decision.c.settlement_id == netting)
            ).one()
            _end_netting_run(connection, netting, "aborted", f"{reason.reason}: {reason.detail}", now=now)


def _settle_netted(connection: sa.Connection, netting: UUID, keys: list[UUID], *, epoch: int, now: datetime) -> None:
    of_netting = t.settlement.c.id == sa.any_(_array(keys))
    connection.execute(
        t.decision.insert().from_select(
            ["settlement_id", "decision", "epoch", "decided_at", "detail"],
            sa.select(
                t.settlement.c.id,
                sa.literal(Decision.COMMIT.value),
                sa.literal(epoch, sa.BigInteger()),
                sa.literal(now, sa.DateTime(timezone=True)),
                sa.literal(f"netted in stl_{netting}"),
            ).where(of_netting),
        )
    )
    connection.execute(
        t.leg.update()
        .where(t.leg.c.settlement_id == sa.any_(_array(keys)))
        .values(state=LegState.NETTED.value, decision=Decision.COMMIT.value, ended_at=now)
    )
    connection.execute(
        t.settlement.update().where(of_netting).values(state=SettlementState.SETTLED.value, ended_at=now, waits_for="")
    )
    connection.execute(
        t.gate.update()
        .where(t.gate.c.settlement_id == sa.any_(_array(keys)), t.gate.c.kind == _KIND.value)
        .where(t.gate.c.opened_at.is_(None))
        .values(opened_at=now, opened_by="netting")
    )


def _end_netting_run(connection: sa.Connection, netting: UUID, state: str, reason: str, *, now: datetime) -> None:
    connection.execute(
        lt.liquidity_run.update()
        .where(lt.liquidity_run.c.netting_id == netting, lt.liquidity_run.c.state == "running")
        .values(state=state, reason=reason[:500], ended_at=now)
    )


def _array(keys: Collection[UUID]) -> sa.BindParameter[Any]:
    return array_of(sa.Uuid(), keys)


def flows_of(connection: sa.Connection, settlements: Collection[UUID]) -> dict[UUID, tuple[Flow, ...]]:
    rows = connection.execute(
        sa.select(t.leg)
        .where(t.leg.c.settlement_id == sa.any_(_array(settlements)))
        .order_by(t.leg.c.settlement_id, t.leg.c.number)
    )
    found: dict[UUID, list[Flow]] = {key: [] for key in settlements}
    for leg in rows:
        found[leg.settlement_id].append(Flow(leg.payer, leg.payee, leg.currency, leg.amount_minor))
    return {key: tuple(flows) for key, flows in found.items()}

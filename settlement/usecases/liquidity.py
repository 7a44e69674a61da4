"""The liquidity desk: the queue, limits, previews and runs.

A run is previewed first: the queue and today's payments are read in one snapshot of the database, positions from the
ledgers right after it, and everything else is computed from those values alone. What is started later is exactly the
set that was previewed, or nothing: if an instruction of it is no longer queued the start is refused, and if the money
is gone by then a ledger refuses its hold and the netting settlement aborts as a whole (I5).

Before a set is stored and again before it books, `settlement.domain.netting_check` checks it by its own arithmetic.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Literal
from uuid import UUID, uuid4

import psycopg
import sqlalchemy as sa

from kernel import ids, strict_json
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.database import Database
from kernel.errors import InvariantBroken, ProblemError
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.calendars import Declined
from settlement.domain.escrow import LegTerms, SettlementState
from settlement.domain.instructions import INSTRUCTION_ID_LENGTH_MAX, Priority
from settlement.domain.liquidity import explain as explaining
from settlement.domain.liquidity import gross, limits, netting, optimise
from settlement.domain.liquidity.gridlock import run as run_queue
from settlement.domain.liquidity.model import Flow, LimitKind, Need, NeedKind, Outcome, Position, Queued, Room, Snapshot
from settlement.domain.netting_check import find_faults
from settlement.domain.refusals import SettlementRefusal as R
from settlement.islands.balances import read_available
from settlement.islands.port import Island
from settlement.settings import Directory, SettlementSettings
from settlement.store import batches, gates
from settlement.store import calendars as calendar_store
from settlement.store import liquidity as store
from settlement.store.gates import Gate, GateKind
from settlement.usecases.calendars import CalendarRules, netting_plan, open_together
from settlement.usecases.intake import Candidate
from settlement.usecases.multileg import NewMultileg, store_settlement

QUEUE_RUN_MAX = 10_000
"""Instructions one run looks at, the first in the queue; what is behind them waits for the next run."""
NET_LEGS_MAX = 500
"""Legs of one netting settlement: 50 participants in 5 currencies need 245 at most. CHECK `leg_number` keeps it too."""
LIMIT_MINOR_MAX = 10**18 - 1
ENDLESS_MINOR = 10**24
"""More than any queue can ask for: what others are taken to have where nobody is told of it."""
APPROVAL_TYP = "jiaozi-liquidity-approval+jws"
APPROVALS_MIN = 2
UNPOSTED_MAX = timedelta(minutes=10)
"""How long the next round of a gross run waits for legs that are committed and not posted; as long as the engine waits
with a decision."""
_APPROVAL_BYTES_MAX = 4_096
NOBODY_BEGINS = "Nobody can begin; a net run settles it with what pays for it."

Method = Literal["strict", "overtaking", "optimise"]
SettleAs = Literal["net", "gross"]


@dataclass(frozen=True, slots=True)
class Desk:
    """What every use case here needs. `officers`: who approves order-breaking runs, by key thumbprint."""

    database: Database
    directory: Directory
    islands: Mapping[str, Island]
    bridge: ParticipantId
    officers: Mapping[str, tuple[str, PublicKey]]
    clock: Clock
    may_overtake: bool = False
    """The scheme's rules let instructions overtake others to other institutions: such runs need no approval then."""
    calendars: CalendarRules | None = None
    """A run starts while all its ledgers are open. None: at all hours."""


# --- the queue


class QueueCheck:
    """The intake check: closes the liquidity gate of instructions of these priorities, so that they wait for a run."""

    def __init__(self, priorities: frozenset[Priority]) -> None:
        self._priorities = {priority.value for priority in priorities}

    def __call__(self, connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime) -> list[Gate]:
        return [
            Gate(item.settlement.id, GateKind.LIQUIDITY, "queued for a liquidity run")
            for item in candidates
            if item.settlement.priority in self._priorities
        ]


def queue_checks(settings: SettlementSettings) -> tuple[QueueCheck, ...]:
    """None without the setting: then nothing is queued but by request."""
    if settings.queued_priorities is None:
        return ()
    return (QueueCheck(frozenset(Priority(name) for name in settings.queued_priorities.split(","))),)


def queue_batch(desk: Desk, batch: UUID, *, by: ParticipantId, is_operator: bool) -> int:
    """Put what is still received of a batch into the queue; how many were not in it before. Raises: batch-not-found."""
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find(connection, batch)
        if row is None or not (is_operator or row.submitter == by):
            raise ProblemError(R.BATCH_NOT_FOUND)
        locked = store.lock_received(connection, store.received_of_batch(connection, batch))
        return store.hold_back(connection, list(locked), reason=f"queued by {by}", now=desk.clock())


def release(desk: Desk, settlement: UUID, *, by: ParticipantId, is_operator: bool) -> None:
    """Take one instruction out of the queue: the engine settles it by itself. For its debtor and the operator; once.

    Raises: ProblemError(settlement-not-found, liquidity-not-queued, liquidity-not-received).
    """
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find_settlement(connection, settlement)
        if row is None or not (is_operator or by in row.parties):
            raise ProblemError(R.SETTLEMENT_NOT_FOUND)
        if not (is_operator or by == row.debtor):
            raise ProblemError(R.LIQUIDITY_NOT_QUEUED, f"it is {row.debtor}'s instruction")
        locked = store.lock_received(connection, [settlement])
        waiting = store.queue_page(connection, after=None, limit=1, party=None, settlement=settlement)
        if not locked or (waiting and waiting[0].netted_by is not None):
            raise ProblemError(R.LIQUIDITY_NOT_RECEIVED)
        if not gates.open_gates(connection, GateKind.LIQUIDITY, [settlement], by=by, now=desk.clock()):
            raise ProblemError(R.LIQUIDITY_NOT_QUEUED)


# --- limits


@dataclass(frozen=True, slots=True)
class LimitChange:
    kind: LimitKind
    participant: ParticipantId
    currency: str
    counterparty: ParticipantId | None
    amount_minor: int | None
    valid_from: date


def set_limit(desk: Desk, change: LimitChange, *, by: ParticipantId, is_operator: bool) -> tuple[limits.Limit, bool]:
    """Record a limit from a day on; (the limit, whether it is new). The same again is the same.

    A participant sets its own, within the operator's cap; the operator sets caps. Raises: ProblemError(not-permitted
    is the caller's to raise; liquidity-limit-invalid, liquidity-limit-above-cap).
    """
    _check_limit(desk, change, is_operator=is_operator)
    now = desk.clock()
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_limits(connection, change.participant, change.currency)
        known = store.limits(connection, participant=change.participant)
        name = (change.participant, change.currency, change.kind, change.counterparty, is_operator)
        same = [item for item in known if item.name == name and item.valid_from == change.valid_from]
        if same and same[-1].amount_minor == change.amount_minor:
            return same[-1], False
        cap = limits.operator_cap(known, change.participant, change.currency, on=change.valid_from)
        if not is_operator and cap is not None and change.amount_minor is not None and change.amount_minor > cap:
            raise ProblemError(R.LIQUIDITY_LIMIT_ABOVE_CAP, f"the operator's cap is {cap} {change.currency}")
        made = limits.Limit(
            new_uuid7(),
            change.kind,
            change.participant,
            change.currency,
            change.counterparty,
            change.amount_minor,
            change.valid_from,
            is_operator,
            by,
            now,
        )
        store.insert_limit(connection, made)
    return made, True


def _check_limit(desk: Desk, change: LimitChange, *, is_operator: bool) -> None:
    def refuse(detail: str) -> ProblemError:
        return ProblemError(R.LIQUIDITY_LIMIT_INVALID, detail)

    for party in (change.participant, change.counterparty):
        if party is not None and party not in desk.directory.institutions:
            raise refuse(f"{party} is not registered with this bridge")
    if change.currency not in {currency.code for currency in desk.directory.ledger_of_currency}:
        raise refuse(f"no ledger of {change.currency} here")
    if (change.kind is LimitKind.BILATERAL) != (change.counterparty is not None):
        raise refuse("a bilateral limit names its counterparty, another one none")
    if change.counterparty == change.participant:
        raise refuse("a limit is towards another participant")
    if change.amount_minor is not None and not 0 <= change.amount_minor <= LIMIT_MINOR_MAX:
        raise refuse("the amount is out of range")
    if is_operator and change.kind is not LimitKind.CAP:
        raise refuse("the operator sets caps; the other limits are the participant's own")
    if change.valid_from < desk.clock().astimezone(UTC).date():
        raise refuse("a limit begins today at the earliest")


# --- preview


@dataclass(frozen=True, slots=True)
class RunRequest:
    """Of an optimising run, `seconds` is the solver's time and `weights` what a minor unit of each currency counts."""

    method: Method = "strict"
    settle_as: SettleAs = "net"
    seconds: float = 20.0
    weights: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class _Read:
    snapshot: Snapshot
    read_at: datetime


def preview(desk: Desk, request: RunRequest, *, by: str) -> store.RunRow:
    """What would settle now, who would have what, and why the rest would not; stored, so that it can be started.

    Raises: ProblemError(liquidity-positions-unknown, liquidity-solver-missing).
    """
    found = _read(desk)
    snapshot = found.snapshot
    began = time.perf_counter()
    rounds: list[list[UUID]] = []
    extra: dict[str, object] = {}
    if request.settle_as == "gross":
        rounds = gross.rounds(snapshot)
        outcome = _gross_outcome(snapshot, rounds)
    elif request.method == "optimise":
        try:
            optimum = optimise.optimise(snapshot, weights=request.weights or {}, seconds=request.seconds)
        except optimise.SolverMissing as error:
            raise ProblemError(R.LIQUIDITY_SOLVER_MISSING, str(error)) from None
        outcome = optimum.outcome
        extra = {"value": str(optimum.value), "bound": str(optimum.bound), "is_proven": optimum.is_proven}
    else:
        outcome = run_queue(snapshot, may_overtake=request.method == "overtaking")
    stage_of = {taken.id: taken.stage.value for taken in outcome.taken}
    chosen = [item for item in snapshot.queue if item.id in stage_of]
    positions = netting.net_positions(chosen)
    flows = netting.net_flows(positions) if request.settle_as == "net" else ()
    seconds = time.perf_counter() - began
    is_strict = request.settle_as == "gross" or request.method == "strict"
    _check(snapshot, [item.id for item in chosen], flows if request.settle_as == "net" else None, is_strict=is_strict)

    why_of = {item.id: item for item in _explained(snapshot, outcome)}
    round_of = {key: number for number, keys in enumerate(rounds) for key in keys}
    items = [
        store.RunItem(
            place,
            item.id,
            stage_of.get(item.id),
            round_of.get(item.id),
            "" if item.id in stage_of else why_of[item.id].sentence,
            [] if item.id in stage_of else [need_json(need) for need in why_of[item.id].needs],
            item.id in stage_of or why_of[item.id].is_worked_out,
        )
        for place, item in enumerate(snapshot.queue, start=1)
    ]
    run = new_uuid7()
    queued = {item.id: item.flows for item in snapshot.queue}
    summary = _summary(snapshot, outcome, chosen, flows) | extra
    summary |= {"seconds": f"{seconds:.3f}", "uetr": str(uuid4()), "flows_sha256": _flows_digest(queued).hex()}
    values: dict[str, Any] = {
        "id": run,
        "state": "previewed",
        "method": request.method,
        "settle_as": request.settle_as,
        "needs_approval": request.method == "optimise" or (request.method == "overtaking" and not desk.may_overtake),
        "queue_count": len(snapshot.queue),
        "taken_count": len(chosen),
        "taken_sha256": taken_digest([item.id for item in chosen], flows),
        "positions_read_at": found.read_at,
        "summary": summary,
        "created_by": by,
        "created_at": desk.clock(),
    }
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        store.insert_run(connection, values, items)
        return _found(store.find_run(connection, run))


def _read(desk: Desk, *, only: ParticipantId | None = None) -> _Read:
    """The queue, positions and limits. With `only`, of the positions and limits that participant's alone, and everybody
    else can pay whatever is asked: no answer worked out from it says anything of what others have."""
    now = desk.clock()
    with desk.database.transaction(isolation="REPEATABLE READ") as connection:
        queue = tuple(store.read_queue(connection, limit=QUEUE_RUN_MAX))
        rooms = _rooms(connection, now)
    wanted: defaultdict[str, dict[AccountNumber, Position]] = defaultdict(dict)
    balances: dict[Position, int] = {}
    for item in queue:
        for flow in item.flows:
            for participant in (flow.payer, flow.payee):
                ledger, account = _account(desk, participant, flow.currency)
                if only in (None, participant):
                    wanted[ledger][account] = (participant, flow.currency)
                else:
                    balances[participant, flow.currency] = ENDLESS_MINOR
    read_at = desk.clock()
    available = read_available(desk.islands, {ledger: sorted(accounts) for ledger, accounts in wanted.items()})
    unknown = sorted({ledger for (ledger, _), amount in available.items() if amount is None})
    if unknown:
        raise ProblemError(R.LIQUIDITY_POSITIONS_UNKNOWN, f"ledger {', '.join(unknown)}")
    balances |= {
        wanted[ledger][account]: max(0, amount or 0) for (ledger, account), amount in sorted(available.items())
    }
    seen = tuple(room for room in rooms if only in (None, room.participant))
    return _Read(Snapshot(queue, balances, seen), read_at)


def _rooms(connection: sa.Connection, now: datetime) -> tuple[Room, ...]:
    """A limit's day is the UTC day of finality."""
    day = now.astimezone(UTC).date()
    known = limits.in_force(store.limits(connection), on=day)
    since = datetime(day.year, day.month, day.day, tzinfo=UTC)
    paid = store.paid_since(connection, since, participants={limit.participant for limit in known})
    return limits.rooms(known, on=day, paid=paid)


def _account(desk: Desk, participant: ParticipantId, currency: str) -> tuple[str, AccountNumber]:
    wanted = Currency.of(currency)
    ledger, account = desk.directory.ledger_of_currency.get(wanted), desk.directory.account(participant, wanted)
    if ledger is None or account is None:
        raise ProblemError(R.LIQUIDITY_POSITIONS_UNKNOWN, f"{participant} has no account in {currency} any more")
    return ledger, account


def _gross_outcome(snapshot: Snapshot, rounds: list[list[UUID]]) -> Outcome:
    released = {key for keys in rounds for key in keys}
    taken = Snapshot(tuple(item for item in snapshot.queue if item.id in released), snapshot.balances, snapshot.rooms)
    found = run_queue(taken, may_overtake=False)
    return Outcome(
        found.taken, tuple(item.id for item in snapshot.queue if item.id not in released), found.balances, found.rooms
    )


def _explained(snapshot: Snapshot, outcome: Outcome) -> list[explaining.Why]:
    """Why each that is left is left. In a gross run some need no money, only somebody to begin."""
    waiting = explaining.waiting_after(snapshot, outcome)
    free = {taken.id for taken in run_queue(waiting, may_overtake=False).taken}
    rest = Snapshot(waiting.queue, waiting.balances, waiting.rooms)
    return [
        explaining.Why(item.id, NOBODY_BEGINS, ()) if item.id in free else item for item in explaining.explain(rest)
    ]


def _check(snapshot: Snapshot, chosen: Sequence[UUID], net: Sequence[Flow] | None, *, is_strict: bool) -> None:
    """Raises: InvariantBroken if the independent check finds a fault. Nothing is stored or booked then."""
    faults = _faults(snapshot, chosen, net, is_strict=is_strict)
    if faults:
        raise InvariantBroken("I3", f"a liquidity run failed its check: {'; '.join(faults[:3])}")


def _faults(snapshot: Snapshot, chosen: Sequence[UUID], net: Sequence[Flow] | None, *, is_strict: bool) -> list[str]:
    return find_faults(
        queue=[(str(item.id), [_plain(flow) for flow in item.flows]) for item in snapshot.queue],
        balances={(str(who), currency): amount for (who, currency), amount in snapshot.balances.items()},
        limits=[
            (room.kind.value, room.participant, room.currency, room.counterparty, room.room_minor)
            for room in snapshot.rooms
        ],
        chosen=[str(key) for key in chosen],
        net=None if net is None else [_plain(flow) for flow in net],
        in_queue_order=is_strict,
    )


def _plain(flow: Flow) -> tuple[str, str, str, int]:
    return (flow.payer, flow.payee, flow.currency, flow.amount_minor)


def taken_digest(chosen: Sequence[UUID], net: Sequence[Flow]) -> bytes:
    """What approvals are of: the chosen instructions in queue order and the net payments."""
    document = {"taken": [str(key) for key in chosen], "net": [_flow_json(flow) for flow in net]}
    return hashlib.sha256(jws.canonical_json(document)).digest()


def _flows_digest(flows: Mapping[UUID, Sequence[Flow]]) -> bytes:
    """What a preview was worked out from: an execution in the queue may be quoted anew, and then has other legs."""
    document = {str(key): [_flow_json(flow) for flow in found] for key, found in flows.items()}
    return hashlib.sha256(jws.canonical_json(document)).digest()


def _summary(snapshot: Snapshot, outcome: Outcome, chosen: Sequence[Queued], net: Sequence[Flow]) -> dict[str, object]:
    value: Counter[str] = Counter()
    for item in chosen:
        for flow in item.flows:
            value[flow.currency] += flow.amount_minor
    used: Counter[str] = Counter()
    positions = []
    for position in sorted(outcome.balances):
        who, currency = position
        before, after = snapshot.balances.get(position, 0), outcome.balances[position]
        used[currency] += max(0, before - after)
        positions.append(
            {"participant": who, "currency": currency, "before_minor": str(before), "after_minor": str(after)}
        )
    stages = Counter(taken.stage.value for taken in outcome.taken)
    return {
        "stages": dict(sorted(stages.items())),
        "positions": positions,
        "value_minor": {currency: str(amount) for currency, amount in sorted(value.items())},
        "liquidity_used_minor": {currency: str(amount) for currency, amount in sorted(used.items())},
        "net": [_flow_json(flow) for flow in net],
        "rooms": [
            {
                "kind": room.kind.value,
                "participant": room.participant,
                "currency": room.currency,
                "counterparty": room.counterparty,
                "room_minor": str(room.room_minor),
            }
            for room in snapshot.rooms
        ],
    }


def need_json(need: Need) -> dict[str, object]:
    return {
        "kind": need.kind.value,
        "participant": need.participant,
        "currency": need.currency,
        "amount_minor": str(need.amount_minor),
        "counterparty": need.counterparty,
    }


def _need(found: Mapping[str, Any]) -> Need:
    other = found["counterparty"]
    return Need(
        NeedKind(found["kind"]),
        ParticipantId(found["participant"]),
        found["currency"],
        int(found["amount_minor"]),
        None if other is None else ParticipantId(other),
    )


def _flow_json(flow: Flow) -> dict[str, str]:
    return {
        "payer": flow.payer,
        "payee": flow.payee,
        "currency": flow.currency,
        "amount_minor": str(flow.amount_minor),
    }


def net_of(run: store.RunRow) -> tuple[Flow, ...]:
    return tuple(
        Flow(ParticipantId(item["payer"]), ParticipantId(item["payee"]), item["currency"], int(item["amount_minor"]))
        for item in run.summary["net"]
    )


# --- approvals


def approve(desk: Desk, run: UUID, token: str) -> store.RunRow:
    """One officer's signed approval of exactly what the preview chose. The same officer again changes nothing.

    `token`: compact JWS of type APPROVAL_TYP over {"run": "lqr_...", "taken_sha256": hex}, by a registered officer.
    Raises: ProblemError(liquidity-run-not-found, liquidity-approval-invalid, liquidity-run-started).
    """
    name, claims = _verified(desk, token)
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        row = _found(store.find_run(connection, run, lock=True))
        if not row.needs_approval:
            raise ProblemError(R.LIQUIDITY_APPROVAL_INVALID, "this run needs no approval")
        if claims != {"run": ids.show("lqr", run), "taken_sha256": row.taken_sha256.hex()}:
            raise ProblemError(R.LIQUIDITY_APPROVAL_INVALID, "it approves another run or another choice")
        if name in row.approved_by:
            return row
        if row.state != "previewed":
            raise ProblemError(R.LIQUIDITY_RUN_STARTED)
        store.insert_approval(connection, run, person=name, token=token, now=desk.clock())
        return _found(store.find_run(connection, run))


def _verified(desk: Desk, token: str) -> tuple[str, object]:
    try:
        header = jws.peek_header(token, bytes_max=_APPROVAL_BYTES_MAX)
        officer = desk.officers.get(str(header.get("kid")))
        if officer is None:
            raise ProblemError(R.LIQUIDITY_APPROVAL_INVALID, "it is not signed by a registered officer")
        payload = jws.verify(token, officer[1], typ=APPROVAL_TYP, bytes_max=_APPROVAL_BYTES_MAX)
        return officer[0], strict_json.loads(payload)
    except jws.InvalidJws as error:
        raise ProblemError(R.LIQUIDITY_APPROVAL_INVALID, str(error)[:200]) from None


# --- start


def start(desk: Desk, run: UUID, *, by: str) -> store.RunRow:
    """Book what was previewed, all of it or nothing. Started before: the run as it is. Wake the engine afterwards.

    One run at a time: limits count what is decided, so what an undecided run takes must not be taken again. They are
    counted once more here, since another run may have been decided after the preview.
    Raises: ProblemError(liquidity-run-not-found, liquidity-approvals-missing, liquidity-run-empty,
    liquidity-run-under-way, liquidity-run-stale, liquidity-run-out-of-hours).
    """
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_runs(connection)
        now = desk.clock()
        row = _found(store.find_run(connection, run, lock=True))
        if row.state != "previewed":
            return row
        if row.needs_approval and len(row.approved_by) < APPROVALS_MIN:
            have = ", ".join(row.approved_by) or "nobody"
            raise ProblemError(
                R.LIQUIDITY_APPROVALS_MISSING, f"approved by {have}; {APPROVALS_MIN} officers are needed"
            )
        items = store.run_items(connection, run, after=0, limit=None)
        chosen = [item.settlement for item in items if item.stage is not None]
        net = net_of(row)
        if not chosen or (row.settle_as == "net" and not net):
            raise ProblemError(
                R.LIQUIDITY_RUN_EMPTY, "nothing can settle" if not chosen else "the chosen instructions net to nothing"
            )
        under_way = store.running(connection)
        if under_way:
            raise ProblemError(R.LIQUIDITY_RUN_UNDER_WAY, f"{ids.show('lqr', under_way[0].id)} is not decided yet")
        locked = store.lock_received(connection, chosen)
        gone = [key for key in chosen if not locked.get(key, False)]
        if gone:
            raise ProblemError(
                R.LIQUIDITY_RUN_STALE, f"{len(gone)} are not queued any more, {ids.show('stl', gone[0])} first"
            )
        _check_stored(connection, row, items, net, rooms=_rooms(connection, now))
        hours = _hours(desk, connection, chosen, now=now)
        if row.settle_as == "net":
            settlement = _store_netting(desk, connection, row, net, now=now)
            if hours is not None:
                calendar_store.insert_plans(connection, [hours(settlement)], now=now)
            if store.attach(connection, settlement, chosen) != len(chosen):
                raise InvariantBroken("I5", f"netting {settlement} does not stand for all that was chosen")
            with _database_refusals():
                store.start_run(connection, run, by=by, netting=settlement, round_=None, now=now)
        else:
            first = [item.settlement for item in items if item.round == 0]
            gates.open_gates(connection, GateKind.LIQUIDITY, first, by=f"run lqr_{run}", now=now)
            with _database_refusals():
                store.start_run(connection, run, by=by, netting=None, round_=0, now=now)
        return _found(store.find_run(connection, run))


_REFUSED_BY: dict[str | None, tuple[R, str]] = {
    "run_within_hours": (R.LIQUIDITY_RUN_OUT_OF_HOURS, "an instruction is not within its window"),
    "run_within_limits": (R.LIQUIDITY_RUN_STALE, "a limit that was set meanwhile leaves less"),
    "liquidity_run_one_at_a_time": (R.LIQUIDITY_RUN_UNDER_WAY, "another run has just begun"),
}
"""What the database's own checks of a start (migration 0007) find, which may be later than what was read before."""


@contextmanager
def _database_refusals() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError as error:
        name = error.orig.diag.constraint_name if isinstance(error.orig, psycopg.Error) else None
        if name not in _REFUSED_BY:
            raise
        refusal, detail = _REFUSED_BY[name]
        raise ProblemError(refusal, detail) from error


def _hours(
    desk: Desk, connection: sa.Connection, chosen: Sequence[UUID], *, now: datetime
) -> Callable[[UUID], calendar_store.PlanRow] | None:
    """How a netting settlement of these is planned; None without calendars, but windows that were planned with them
    stand. Raises: liquidity-run-out-of-hours, or a calendar's own refusal."""
    plans = calendar_store.find_plans(connection, chosen)
    if desk.calendars is None:
        _check_windows(plans, now=now)
        return None
    flows = store.flows_of(connection, chosen)
    currencies = sorted({flow.currency for found in flows.values() for flow in found})
    joint = open_together(desk.calendars, currencies, now=now)
    if isinstance(joint, Declined):
        raise ProblemError(joint.refusal, joint.reason)
    _check_windows(plans, now=now)
    return partial(netting_plan, desk.calendars, joint, currencies=currencies, of=plans)


def _check_windows(plans: Sequence[calendar_store.PlanRow], *, now: datetime) -> None:
    for plan in plans:
        if not plan.window_from <= now < plan.window_until:
            detail = f"{ids.show('stl', plan.settlement)} is to go by {plan.window_until:%Y-%m-%d %H:%MZ}"
            raise ProblemError(R.LIQUIDITY_RUN_OUT_OF_HOURS, f"{detail}, on {plan.value_date}")


def _check_stored(
    connection: sa.Connection,
    row: store.RunRow,
    items: Sequence[store.RunItem],
    net: tuple[Flow, ...],
    *,
    rooms: tuple[Room, ...],
) -> None:
    """The independent check once more, of what the database says now and what was stored with the preview; and
    whether the limits leave room for it now (`rooms`). Raises: liquidity-run-stale if not."""
    flows = store.flows_of(connection, [item.settlement for item in items])
    summary = row.summary
    if _flows_digest(flows).hex() != summary["flows_sha256"]:
        raise ProblemError(R.LIQUIDITY_RUN_STALE, "an instruction was quoted anew since it was previewed")
    balances = {
        (ParticipantId(item["participant"]), item["currency"]): int(item["before_minor"])
        for item in summary["positions"]
    }
    previewed = tuple(
        Room(
            LimitKind(item["kind"]),
            ParticipantId(item["participant"]),
            item["currency"],
            None if item["counterparty"] is None else ParticipantId(item["counterparty"]),
            int(item["room_minor"]),
        )
        for item in summary["rooms"]
    )
    queue = tuple(Queued(item.settlement, flows[item.settlement]) for item in items)
    chosen = [item.settlement for item in items if item.stage is not None]
    if taken_digest(chosen, net) != row.taken_sha256:
        raise InvariantBroken("I5", "what a run chose is not what was stored of it")
    is_strict = row.settle_as == "gross" or row.method == "strict"
    _check(Snapshot(queue, balances, previewed), chosen, net if row.settle_as == "net" else None, is_strict=is_strict)
    passed = _faults(Snapshot(queue, balances, rooms), chosen, None, is_strict=False)
    if passed:
        raise ProblemError(R.LIQUIDITY_RUN_STALE, f"the limits leave less than when it was previewed: {passed[0]}")


def _store_netting(
    desk: Desk, connection: sa.Connection, row: store.RunRow, net: Sequence[Flow], *, now: datetime
) -> UUID:
    legs = []
    for flow in net:
        ledger, debit = _account(desk, flow.payer, flow.currency)
        _, credit = _account(desk, flow.payee, flow.currency)
        amount = Money(flow.amount_minor, Currency.of(flow.currency))
        legs.append(LegTerms(ledger, flow.payer, flow.payee, debit, credit, amount))
    new = NewMultileg(
        UUID(row.summary["uetr"]),
        tuple(legs),
        now.astimezone(UTC).date(),
        Priority.URGENT,
        instruction_id=row.id.hex[-INSTRUCTION_ID_LENGTH_MAX:],
        end_to_end_id=row.id.hex,
    )
    stored = store_settlement(
        connection, new, submitter=desk.bridge, now=now, origin="netting", leg_bounds=(1, NET_LEGS_MAX)
    )
    return stored.row.id


# --- gross runs go round by round


def advance(connection: sa.Connection, now: datetime) -> int:
    """A pass of the keeper: the next round of each gross run whose round has ended. Returns how many moved.

    An instruction of a round that was aborted, that is held back by another gate, or whose ledger has not posted it
    UNPOSTED_MAX after its decision, ends the run: what came after counted on it, and stays queued. What is undecided
    the engine decides within its own bound, and after the last round the decisions are enough, since limits count
    them. So a run never waits for another day, nor for a ledger that stays away, and none keeps the next from starting.
    """
    waiting = [row.id for row in store.running(connection) if row.settle_as == "gross"]
    return sum(_advance(connection, run, now) for run in sorted(waiting))


def _advance(connection: sa.Connection, run: UUID, now: datetime) -> bool:
    row = _found(store.find_run(connection, run, lock=True))
    if row.state != "running" or row.round is None:
        return False
    items = [item for item in store.run_items(connection, run, after=0, limit=None) if item.round is not None]
    states = store.states_of(connection, [item.settlement for item in items if item.round == row.round])
    received = [key for key, state in states.items() if state is SettlementState.RECEIVED]
    held_back = gates.closed(connection, received) if received else {}
    if any(
        state is SettlementState.PREPARED or (state is SettlementState.RECEIVED and key not in held_back)
        for key, state in states.items()
    ):
        return False  # undecided: the limits of another run would not count it
    of_round = f"of round {row.round + 1}"
    left = "what came after stays queued"
    if held_back:
        key, reason = next((key, found[0].reason) for key, found in sorted(held_back.items()))
        reason = f"{ids.show('stl', key)} {of_round} is held back: {reason}; {left}"
        store.end_run(connection, run, state="aborted", reason=reason, now=now)
        return True
    aborted = [key for key, state in states.items() if state in (SettlementState.ABORTED, SettlementState.CANCELLED)]
    if aborted:
        reason = f"{ids.show('stl', aborted[0])} {of_round} was cancelled; {left}"
        store.end_run(connection, run, state="aborted", reason=reason, now=now)
        return True
    following = [item.settlement for item in items if item.round == row.round + 1]
    if not following:
        store.end_run(connection, run, state="settled", reason="", now=now)
        return True
    unposted = [key for key, state in states.items() if state is SettlementState.COMMITTED]
    if unposted:
        key, decided_at = store.first_decided(connection, unposted)
        if now - decided_at < UNPOSTED_MAX:
            return False
        reason = f"{ids.show('stl', key)} {of_round} is committed, and a ledger has not posted it yet; {left}"
        store.end_run(connection, run, state="aborted", reason=reason, now=now)
        return True
    queued = [key for key, is_queued in store.lock_received(connection, following).items() if is_queued]
    gates.open_gates(connection, GateKind.LIQUIDITY, queued, by=f"run lqr_{run}", now=now)
    store.set_round(connection, run, row.round + 1)
    return True


# --- why


def why(desk: Desk, settlement: UUID, *, may_overtake: bool, viewer: ParticipantId | None = None) -> explaining.Why:
    """Why one instruction waits now, and the smallest amount that frees it. None as viewer: the operator.

    A viewer's answer is worked out from its own positions and limits alone: with the others' in it, amounts tried one
    after another would find what the others have.
    Raises: ProblemError(liquidity-not-queued, liquidity-positions-unknown).
    """
    with desk.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.queue_page(connection, after=None, limit=1, party=None, settlement=settlement)
    if not found:
        raise ProblemError(R.LIQUIDITY_NOT_QUEUED)
    row = found[0]
    if row.netted_by is not None:
        return explaining.Why(settlement, f"A run has it: it settles or returns with stl_{row.netted_by}.", ())
    if row.other_gates:
        return explaining.Why(settlement, f"It waits for more than liquidity: {'; '.join(row.other_gates)}.", ())
    if not row.is_started:
        return explaining.Why(settlement, "Its batch has not been started.", ())
    try:
        snapshot = _read(desk, only=viewer).snapshot
    except ProblemError as error:
        if viewer is None:
            raise
        raise ProblemError(error.refusal) from None  # the detail names a participant
    if settlement not in {item.id for item in snapshot.queue}:
        return explaining.Why(settlement, f"More than {QUEUE_RUN_MAX} instructions are before it.", (), False)
    answer = explaining.why(snapshot, settlement, may_overtake=may_overtake)
    if viewer is not None:
        return explaining.own_side(settlement, answer, viewer)
    return answer or explaining.Why(settlement, "Nothing: a run would settle it now.", ())


def item_seen_by(item: store.RunItem, viewer: ParticipantId) -> store.RunItem:
    """A stored item as a participant may read it."""
    if item.sentence in ("", NOBODY_BEGINS):
        return item
    needs = tuple(_need(found) for found in item.needs)
    seen = explaining.seen_by(explaining.Why(item.settlement, item.sentence, needs, item.is_worked_out), viewer)
    return replace(item, sentence=seen.sentence, needs=[need_json(need) for need in seen.needs])


def _found(row: store.RunRow | None) -> store.RunRow:
    if row is None:
        raise ProblemError(R.LIQUIDITY_RUN_NOT_FOUND)
    return row

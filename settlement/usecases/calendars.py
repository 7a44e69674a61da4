"""The calendar at work: it holds a settlement back until its window, lets it go then, and rolls what was held up.

Without calendars there is nothing to wait for: whoever asks for another day than today is told so (`only_today`).

Three doors: an intake check plans every settlement and closes its gate if its time has not come; `open_due_gates` runs
every moment; and `when` answers without storing anything. All three use the one pure function `plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.errors import ProblemError
from settlement.domain.calendars import (
    CalendarSet,
    DayRule,
    Declined,
    JointDay,
    MissedCutOff,
    PaymentKind,
    Plan,
    Terms,
    next_window,
    plan,
)
from settlement.domain.refusals import AbortReason, SettlementRefusal
from settlement.store import calendars as store
from settlement.store import gates
from settlement.store.gates import Gate, GateKind
from settlement.store.withdrawals import withdraw
from settlement.usecases.intake import Candidate, Fault

TIME_ZONE_DAYS = 1
"""How far a date may be from today's in UTC and still be somebody's today."""
PASS_MAX = 500
"""Settlements in one transaction of `open_due_gates`; the caller repeats while it returns as many."""
OPENED_BY = "calendar"


@dataclass(frozen=True, slots=True)
class CalendarRules:
    """The bridge's calendars and how it uses them."""

    calendars: CalendarSet
    rule: DayRule = DayRule.FOLLOWING
    missed: MissedCutOff = MissedCutOff.ROLL

    def terms(self, kind: PaymentKind, *, lag_days: int = 0) -> Terms:
        return Terms(self.rule, self.missed, kind, lag_days)


def only_today(connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime) -> Sequence[Fault | Gate]:
    """The intake check of a bridge without calendars: it settles at once, so a value date that is over, or is to come,
    is refused and not passed over."""
    today = now.astimezone(UTC).date()
    faults: list[Fault] = []
    for candidate in candidates:
        day = candidate.settlement.value_date
        if abs((day - today).days) > TIME_ZONE_DAYS:
            refusal = SettlementRefusal.VALUE_DATE_PAST if day < today else SettlementRefusal.VALUE_DATE_TOO_FAR
            reason = f"value date {day}, today is {today}: this bridge has no calendars and settles at once"
            faults.append(Fault(refusal.value, candidate.index, f"instruction {candidate.index}: {reason}"))
    return faults


class CalendarCheck:
    """The intake check. Refuses what can never settle; gates what settles later; records the plan of everything."""

    def __init__(self, rules: CalendarRules) -> None:
        self._rules = rules

    def __call__(
        self, connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime
    ) -> Sequence[Fault | Gate]:
        known: dict[tuple[tuple[str, ...], date, PaymentKind], Plan | Declined] = {}
        faults: list[Fault] = []
        closed: list[Gate] = []
        rows: list[store.PlanRow] = []
        for candidate in candidates:
            new = candidate.settlement
            currencies = tuple(sorted({leg.amount.currency.code for leg in new.legs}))
            kind = PaymentKind.BANK if candidate.instruction.compliance is None else PaymentKind.CUSTOMER
            key = (currencies, new.value_date, kind)
            found = known.get(key)
            if found is None:
                found = known[key] = self._plan(currencies, new.value_date, kind, now)
            if isinstance(found, Declined):
                reason = f"instruction {candidate.index}: {found.reason}"
                faults.append(Fault(found.refusal.value, candidate.index, reason))
                continue
            rows.append(self._row(new.id, currencies, kind, new.value_date, found))
            if found.settles_at > now:
                closed.append(Gate(new.id, GateKind.CALENDAR, _why(found), found.window_from))
        if faults:
            return faults
        store.insert_plans(connection, rows, now=now)
        return closed

    def _plan(self, currencies: Sequence[str], value_date: date, kind: PaymentKind, now: datetime) -> Plan | Declined:
        calendars = self._rules.calendars.of(currencies)
        if isinstance(calendars, Declined):
            return calendars
        return plan(calendars, at=now, value_date=value_date, terms=self._rules.terms(kind))

    def _row(
        self, settlement: UUID, currencies: tuple[str, ...], kind: PaymentKind, asked: date, found: Plan
    ) -> store.PlanRow:
        return store.PlanRow(
            settlement,
            kind,
            self._rules.missed,
            currencies,
            asked,
            found.value_date,
            found.window_from,
            found.window_until,
            bytes.fromhex(self._rules.calendars.sha256),
            found.is_assumed,
        )


def open_due_gates(connection: sa.Connection, rules: CalendarRules, *, now: datetime) -> int:
    """Let go what may go now; roll or end what was held up past its window. Returns how many plans it touched.

    One transaction of at most PASS_MAX settlements. Safe to run at once in several processes, and to lose at any point:
    a settlement moves with its record or not at all.
    """
    closed = store.close_done(connection, now=now, limit=PASS_MAX)
    found = store.due(connection, now=now, limit=PASS_MAX)
    opened = [each.plan for each in found if now < each.plan.window_until]
    over = [each for each in found if now >= each.plan.window_until]
    gates.open_gates(connection, GateKind.CALENDAR, [item.settlement for item in opened], by=OPENED_BY, now=now)
    events = [
        store.PlanEvent(
            item.settlement, "opened", item.value_date, f"its window is open until {item.window_until}", now
        )
        for item in opened
    ]
    rolled: list[store.PlanRow] = []
    reasons: dict[UUID, str] = {}
    ended: dict[UUID, str] = {}
    for late in over:
        held = late.plan
        why = f"it was held up past {held.value_date}, whose window closed at {held.window_until}"
        calendars = rules.calendars.of(held.currencies)
        later = calendars if isinstance(calendars, Declined) else next_window(calendars, after=held.value_date, at=now)
        if held.missed is MissedCutOff.REFUSE or isinstance(later, Declined):
            ended[held.settlement] = why if not isinstance(later, Declined) else f"{why}; {later.reason}"
            continue
        reasons[held.settlement] = f"{why}: rolled to {later.day}, from {later.window_from}"
        rolled.append(
            replace(
                held,
                value_date=later.day,
                window_from=later.window_from,
                window_until=later.window_until,
                is_assumed=later.is_assumed,
                calendars_sha256=bytes.fromhex(rules.calendars.sha256),
            )
        )
    store.move_plans(connection, rolled, reason=reasons, now=now)
    events += [
        store.PlanEvent(item.settlement, "rolled", item.value_date, reasons[item.settlement], now) for item in rolled
    ]
    dates = {late.plan.settlement: late.plan.value_date for late in over}
    for key in sorted(withdraw(connection, ended, reason=AbortReason.CALENDAR, now=now)):
        events.append(store.PlanEvent(key, "refused", dates[key], ended[key], now))
    store.record_events(connection, events)
    return closed + len(events)


def open_together(rules: CalendarRules, currencies: Sequence[str], *, now: datetime) -> JointDay | Declined:
    """The joint day whose window is open now, or why there is none, and when the next one opens."""
    calendars = rules.calendars.of(currencies)
    if isinstance(calendars, Declined):
        return calendars
    before = min(calendar.local_day(now) for calendar in calendars) - timedelta(days=1)
    found = next_window(calendars, after=before, at=now)
    if isinstance(found, Declined) or found.window_from <= now:
        return found
    codes = ", ".join(calendar.currency for calendar in calendars)
    reason = f"{codes} are not open together now; next from {found.window_from:%Y-%m-%d %H:%MZ}"
    return Declined(SettlementRefusal.LIQUIDITY_RUN_OUT_OF_HOURS, reason)


def netting_plan(
    rules: CalendarRules, joint: JointDay, settlement: UUID, currencies: Sequence[str], of: Sequence[store.PlanRow]
) -> store.PlanRow:
    """A netting settlement goes while all that it stands for may go, or ends, and its instructions are queued again."""
    return store.PlanRow(
        settlement,
        PaymentKind.BANK,
        MissedCutOff.REFUSE,
        tuple(sorted(set(currencies))),
        joint.day,
        joint.day,
        max([joint.window_from, *(plan.window_from for plan in of)]),
        min([joint.window_until, *(plan.window_until for plan in of)]),
        bytes.fromhex(rules.calendars.sha256),
        joint.is_assumed or any(plan.is_assumed for plan in of),
    )


def when(
    rules: CalendarRules,
    currencies: Sequence[str],
    *,
    at: datetime,
    value_date: date | None,
    kind: PaymentKind,
    lag_days: int = 0,
    rule: DayRule | None = None,
    missed: MissedCutOff | None = None,
) -> Plan:
    """When would a settlement of these currencies, submitted at `at`, be carried out? Stores nothing.

    Raises: ProblemError of each refusal of `settlement.domain.calendars.plan`, and calendar-unknown.
    """
    calendars = rules.calendars.of(currencies)
    if isinstance(calendars, Declined):
        raise ProblemError(calendars.refusal, calendars.reason)
    terms = Terms(rule or rules.rule, missed or rules.missed, kind, lag_days)
    found = plan(calendars, at=at, value_date=value_date, terms=terms)
    if isinstance(found, Declined):
        raise ProblemError(found.refusal, found.reason)
    return found


def _why(found: Plan) -> str:
    notes = f" ({'; '.join(found.notes)})" if found.notes else ""
    return f"its window on {found.value_date} opens at {found.window_from:%Y-%m-%d %H:%MZ}{notes}"

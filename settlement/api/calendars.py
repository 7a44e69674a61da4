"""The calendars' operations. What a calendar says is public, as prices are; plans and clear-outs are not."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import Path, Query

from kernel import ids
from kernel.errors import ProblemError
from kernel.http import problems, strict_router
from ledger.contract import CurrencyCode, Moment
from settlement.api.auth import SIGNED, Operator, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.calendars import (
    CLEAR_OUT_PREFIX,
    EVENTS_MAX,
    OVERLAP_DAYS_MAX,
    CalendarEventView,
    CalendarsView,
    CalendarView,
    ClearOutLineView,
    ClearOutRequest,
    ClearOutView,
    OverlapView,
    SessionView,
    SettlementPlanView,
    UnclearedReport,
    UnclearedView,
    WhenView,
)
from settlement.contract.multileg import Day
from settlement.domain.calendars import (
    CURRENCIES_MAX,
    LAG_DAYS_MAX,
    Calendar,
    DayRule,
    Declined,
    MissedCutOff,
    PaymentKind,
    overlaps,
)
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import batches
from settlement.store import calendars as store
from settlement.usecases.calendars import CalendarRules, when
from settlement.usecases.clear_out import ClearOuts, Report

router = strict_router(tags=["calendars"])


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


SettlementPath = Annotated[str, _ref("stl")]
ClearOutPath = Annotated[str, _ref(CLEAR_OUT_PREFIX)]
Currencies = Annotated[
    str, Query(pattern=f"^[A-Z]{{3}}(,[A-Z]{{3}}){{0,{CURRENCIES_MAX - 1}}}$", examples=["CNY,AED"], max_length=80)
]
"""ISO 4217 codes with commas between."""
_QUESTION = (R.CALENDARS_OFF, R.CALENDAR_UNKNOWN, R.CALENDAR_NOT_COVERED)


@router.get(
    "/v1/calendars",
    operation_id="list_calendars",
    summary="Every calendar of the bridge, what it covers and where it comes from",
    responses=problems(R.CALENDARS_OFF, statuses=STATUS_BY_REFUSAL),
)
def list_calendars(service: Services) -> CalendarsView:
    found = _rules(service).calendars
    return CalendarsView(
        sha256=found.sha256,
        calendars=[
            CalendarView(
                currency=calendar.currency,
                title=calendar.title,
                time_zone=calendar.time_zone,
                home_countries=sorted(calendar.home_countries),
                covers_from=calendar.covers_from,
                covers_to=calendar.covers_to,
                source=calendar.source,
            )
            for _, calendar in sorted(found.calendars.items())
        ],
    )


@router.get(
    "/v1/calendars/hours",
    operation_id="get_hours",
    summary="One ledger's openings, day by day, from a business day on",
    responses=problems(*_QUESTION, statuses=STATUS_BY_REFUSAL),
)
def get_hours(
    service: Services,
    currency: CurrencyCode,
    first: Annotated[Day | None, Query()] = None,
    days: Annotated[int, Query(ge=1, le=OVERLAP_DAYS_MAX)] = 7,
) -> list[SessionView]:
    (calendar,) = _calendars(service, [currency])
    start = first or calendar.local_day(service.clock())
    found = []
    try:
        for number in range(days):
            day = start + timedelta(days=number)
            session = calendar.session(day)
            found.append(
                SessionView(
                    currency=currency,
                    day=day,
                    is_open=session is not None,
                    why_closed=calendar.why_closed(day) if session is None else "",
                    opens_at=None if session is None else session.opens_at,
                    closes_at=None if session is None else session.closes_at,
                    customer_cut_off_at=None if session is None else session.customer_cut_off_at,
                    bank_cut_off_at=None if session is None else session.bank_cut_off_at,
                    is_assumed=calendar.is_assumed(day),
                )
            )
    except (LookupError, OverflowError) as error:
        raise ProblemError(R.CALENDAR_NOT_COVERED, str(error)) from None
    return found


@router.get(
    "/v1/calendars/overlap",
    operation_id="get_overlap",
    summary="When a set of ledgers is open at once, day by day",
    responses=problems(*_QUESTION, statuses=STATUS_BY_REFUSAL),
)
def get_overlap(
    service: Services,
    currencies: Currencies,
    first: Annotated[Day | None, Query()] = None,
    days: Annotated[int, Query(ge=1, le=OVERLAP_DAYS_MAX)] = 7,
) -> list[OverlapView]:
    calendars = _calendars(service, currencies.split(","))
    now = service.clock()
    start = first or min(calendar.local_day(now) for calendar in calendars)
    try:
        return [
            OverlapView(
                day=day,
                is_joint_day=joint is not None,
                why_not=why,
                window_from=None if joint is None else joint.window_from,
                window_until=None if joint is None else joint.window_until,
                customer_cut_off_at=None if joint is None else joint.customer_cut_off_at,
                bank_cut_off_at=None if joint is None else joint.bank_cut_off_at,
                is_assumed=any(calendar.is_assumed(day) for calendar in calendars),
            )
            for day, joint, why in overlaps(calendars, first=start, days=days)
        ]
    except (LookupError, OverflowError) as error:
        raise ProblemError(R.CALENDAR_NOT_COVERED, str(error)) from None


@router.get(
    "/v1/calendars/when",
    operation_id="when_would_it_settle",
    summary="When would a settlement of these currencies be carried out? Nothing is stored",
    responses=problems(
        *_QUESTION,
        R.VALUE_DATE_PAST,
        R.VALUE_DATE_TOO_FAR,
        R.VALUE_DATE_NOT_BUSINESS_DAY,
        R.CUT_OFF_MISSED,
        R.NO_JOINT_BUSINESS_DAY,
        statuses=STATUS_BY_REFUSAL,
    ),
)
def when_would_it_settle(
    service: Services,
    currencies: Currencies,
    at: Annotated[Moment | None, Query()] = None,
    value_date: Annotated[Day | None, Query()] = None,
    kind: PaymentKind = PaymentKind.BANK,
    lag_days: Annotated[int, Query(ge=0, le=LAG_DAYS_MAX)] = 0,
    rule: DayRule | None = None,
    missed_cut_off: MissedCutOff | None = None,
) -> WhenView:
    """`lag_days` is the n of T+n where no value date is asked for; the bridge's own rules are the default."""
    rules = _rules(service)
    asked_at: datetime = at or service.clock()
    try:
        found = when(
            rules,
            currencies.split(","),
            at=asked_at,
            value_date=value_date,
            kind=kind,
            lag_days=lag_days,
            rule=rule,
            missed=missed_cut_off,
        )
    except OverflowError:
        raise ProblemError(R.CALENDAR_NOT_COVERED, "that is beyond any calendar") from None
    return WhenView(
        currencies=sorted(set(currencies.split(","))),
        at=asked_at,
        value_date=found.value_date,
        settles_at=found.settles_at,
        window_from=found.window_from,
        window_until=found.window_until,
        cut_off_at=found.cut_off_at,
        is_assumed=found.is_assumed,
        notes=list(found.notes),
        calendars_sha256=rules.calendars.sha256,
    )


@router.get(
    "/v1/settlements/{settlement}/calendar",
    operation_id="get_settlement_plan",
    summary="When a settlement is to be carried out, and what the calendar did with it",
    responses=problems(*SIGNED, R.CALENDARS_OFF, R.SETTLEMENT_NOT_FOUND, statuses=STATUS_BY_REFUSAL),
)
def get_settlement_plan(settlement: SettlementPath, service: Services, caller: Signed) -> SettlementPlanView:
    _rules(service)
    key = parse_ref("stl", settlement, R.SETTLEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find_settlement(connection, key)
        plan = store.find_plan(connection, key)
        events = store.events(connection, key, limit=EVENTS_MAX)
    if row is None or plan is None or not caller.may_see(*row.parties):
        not_found(R.SETTLEMENT_NOT_FOUND)
    return SettlementPlanView(
        settlement=plan.settlement,
        kind=plan.kind,
        missed_cut_off=plan.missed,
        currencies=list(plan.currencies),
        asked_value_date=plan.asked_value_date,
        value_date=plan.value_date,
        window_from=plan.window_from,
        window_until=plan.window_until,
        is_assumed=plan.is_assumed,
        calendars_sha256=plan.calendars_sha256.hex(),
        events=[
            CalendarEventView(
                event=item.event, value_date=item.value_date, detail=item.detail, happened_at=item.happened_at
            )
            for item in events
        ],
    )


# --- clear-out


@router.get(
    "/v1/uncleared",
    operation_id="get_uncleared",
    summary="What foreign institutions still hold of a currency, to be returned by the day's end",
    responses=problems(*SIGNED, *_QUESTION, R.NO_JOINT_BUSINESS_DAY, R.CLEAR_OUT_NOT_FOUND, statuses=STATUS_BY_REFUSAL),
)
def get_uncleared(service: Services, caller: Operator, currency: CurrencyCode) -> UnclearedReport:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        return _report(_clear_outs(service).report(connection, currency, now=service.clock()))


@router.post(
    "/v1/clear-outs",
    operation_id="propose_clear_out",
    status_code=201,
    summary="Propose the returns that would clear a currency out; nothing moves before it is approved",
    responses=problems(*SIGNED, *_QUESTION, R.NO_JOINT_BUSINESS_DAY, R.CLEAR_OUT_NOT_FOUND, statuses=STATUS_BY_REFUSAL),
)
def propose_clear_out(body: ClearOutRequest, service: Services, caller: Operator) -> ClearOutView:
    """Repeating it makes another proposal: harmless, since of two over one balance only one can be approved."""
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = _clear_outs(service).propose(connection, body.currency, by=caller.participant, now=service.clock())
    return _view(found)


@router.get(
    "/v1/clear-outs/{clear_out}",
    operation_id="get_clear_out",
    summary="A proposed clear-out, and the batch it became",
    responses=problems(*SIGNED, R.CLEAR_OUT_NOT_FOUND, statuses=STATUS_BY_REFUSAL),
)
def get_clear_out(clear_out: ClearOutPath, service: Services, caller: Operator) -> ClearOutView:
    return _view(_find(service, clear_out))


@router.post(
    "/v1/clear-outs/{clear_out}/approve",
    operation_id="approve_clear_out",
    summary="Submit a proposed clear-out as a batch of PvP instructions; once, however often it is asked for",
    responses=problems(
        *SIGNED,
        *_QUESTION,
        R.NO_JOINT_BUSINESS_DAY,
        R.CLEAR_OUT_NOT_FOUND,
        R.CLEAR_OUT_STALE,
        R.BATCH_INVALID,
        R.UETR_ALREADY_USED,
        statuses=STATUS_BY_REFUSAL,
    ),
)
def approve_clear_out(clear_out: ClearOutPath, service: Services, caller: Operator) -> ClearOutView:
    found = _clear_outs(service).approve(
        _find(service, clear_out),
        by=caller.participant,
        database=service.database,
        directory=service.directory,
        clock=service.clock,
        checks=service.intake_checks,
    )
    service.worker.wake()
    return _view(found)


# --- lookups


def _rules(service: Service) -> CalendarRules:
    if service.oversight.calendars is None:
        raise ProblemError(R.CALENDARS_OFF)
    return service.oversight.calendars


def _calendars(service: Service, currencies: list[str]) -> list[Calendar]:
    found = _rules(service).calendars.of(currencies)
    if isinstance(found, Declined):
        raise ProblemError(found.refusal, found.reason)
    return found


def _clear_outs(service: Service) -> ClearOuts:
    return ClearOuts(_rules(service), service.oversight.clear_out)


def _find(service: Service, text: str) -> store.ClearOutRow:
    key = parse_ref(CLEAR_OUT_PREFIX, text, R.CLEAR_OUT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_clear_out(connection, key)
    if row is None:
        not_found(R.CLEAR_OUT_NOT_FOUND)
    return row


def _report(report: Report) -> UnclearedReport:
    return UnclearedReport(
        currency=report.entry.currency,
        business_day=report.business_day,
        due_at=report.due_at,
        returns_to=report.entry.returns_to,
        against=report.entry.against,
        items=[
            UnclearedView(
                participant=item.position.participant,
                net_minor=item.position.net_minor,
                outgoing_minor=item.position.outgoing_minor,
                uncleared_minor=item.uncleared_minor,
            )
            for item in report.items
        ],
    )


def _view(row: store.ClearOutRow) -> ClearOutView:
    return ClearOutView(
        clear_out=row.id,
        currency=row.currency,
        business_day=row.business_day,
        made_by=row.made_by,
        made_at=row.made_at,
        lines=[
            ClearOutLineView(
                number=line.number,
                participant=line.participant,
                returns_to=line.returns_to,
                amount_minor=line.amount_minor,
                against=line.against,
                uetr=line.uetr,
            )
            for line in row.lines
        ],
        batch=row.batch,
        approved_by=row.approved_by,
        approved_at=row.approved_at,
    )

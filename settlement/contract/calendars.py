"""Calendars on the wire: hours, overlaps, "when would this settle?", a settlement's plan, clear-outs (`clr_`)."""

from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import Field

from ledger.contract import Amount, CurrencyCode, Model, Moment, ParticipantRef, SignedAmount
from settlement.contract import BatchRef, SettlementRef, _parsed, _schema, _shown
from settlement.contract.multileg import Day
from settlement.domain.calendars import DayRule as DayRule
from settlement.domain.calendars import MissedCutOff as MissedCutOff
from settlement.domain.calendars import PaymentKind as PaymentKind

OVERLAP_DAYS_MAX = 62
CLEAR_OUT_PREFIX = "clr"
EVENTS_MAX = 500

ClearOutRef = Annotated[UUID, _parsed(CLEAR_OUT_PREFIX), _shown(CLEAR_OUT_PREFIX), _schema(CLEAR_OUT_PREFIX)]


class CalendarView(Model):
    currency: CurrencyCode
    title: str
    time_zone: str
    home_countries: list[str]
    covers_from: Day
    covers_to: Day
    source: str


class CalendarsView(Model):
    """Every calendar of the bridge. `sha256` is the digest of the whole set's data."""

    sha256: str
    calendars: list[CalendarView]


class SessionView(Model):
    """One ledger's opening for one business day; times are UTC, [opens_at, closes_at)."""

    currency: CurrencyCode
    day: Day
    is_open: bool
    why_closed: str
    opens_at: Moment | None
    closes_at: Moment | None
    customer_cut_off_at: Moment | None
    bank_cut_off_at: Moment | None
    is_assumed: bool
    """Rests on data that nobody has published."""


class OverlapView(Model):
    """The time in which all these ledgers are open for one business day."""

    day: Day
    is_joint_day: bool
    why_not: str
    window_from: Moment | None
    window_until: Moment | None
    customer_cut_off_at: Moment | None
    bank_cut_off_at: Moment | None
    is_assumed: bool


class WhenView(Model):
    """The answer to "when would this settle?"."""

    currencies: list[CurrencyCode]
    at: Moment
    value_date: Day
    settles_at: Moment
    window_from: Moment
    window_until: Moment
    cut_off_at: Moment
    is_assumed: bool
    notes: list[str]
    calendars_sha256: str


class CalendarEventView(Model):
    event: Annotated[str, Field(pattern="^(opened|rolled|refused)$")]
    value_date: Day
    detail: str
    happened_at: Moment


class SettlementPlanView(Model):
    settlement: SettlementRef
    kind: PaymentKind
    missed_cut_off: MissedCutOff
    currencies: list[CurrencyCode]
    asked_value_date: Day
    value_date: Day
    window_from: Moment
    window_until: Moment
    is_assumed: bool
    calendars_sha256: str
    events: list[CalendarEventView]


class UnclearedView(Model):
    """A foreign institution's balance of the currency, made by this bridge's settlements."""

    participant: ParticipantRef
    net_minor: SignedAmount
    """Received less paid, of posted legs."""
    outgoing_minor: Amount
    """What settlements under way or waiting will still pay of it."""
    uncleared_minor: Amount
    """What is left to be returned by the end of the day."""


class UnclearedReport(Model):
    currency: CurrencyCode
    business_day: Day
    """The day by whose end it has to be zero: the present one, or the next if the ledger is closed."""
    due_at: Moment
    """When that day's bank-to-bank cut-off falls."""
    returns_to: ParticipantRef
    against: CurrencyCode
    items: list[UnclearedView]


class ClearOutRequest(Model):
    currency: CurrencyCode


class ClearOutLineView(Model):
    """A proposed return: `participant` pays `amount_minor` to `returns_to`, which pays `against` at the quoted rate."""

    number: int
    participant: ParticipantRef
    returns_to: ParticipantRef
    amount_minor: Amount
    against: CurrencyCode
    uetr: UUID


class ClearOutView(Model):
    clear_out: ClearOutRef
    currency: CurrencyCode
    business_day: Day
    made_by: ParticipantRef
    made_at: Moment
    lines: list[ClearOutLineView]
    batch: BatchRef | None
    """The batch of returns, once the operator has approved."""
    approved_by: ParticipantRef | None
    approved_at: Moment | None

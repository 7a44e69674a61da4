"""Operating calendars of ledgers: when each is open, and which days and hours a settlement's ledgers share.

A calendar is dated data (`settlement/calendars/*.toml`): hours by weekday, days off, early closes, cut-offs, in the
ledger's own time zone. From it come *sessions*: the opening of one ledger for one business day, in UTC. A *joint day*
of several currencies is a date that is a business day of all of them and on which their sessions overlap; the overlap
is the only time in which a settlement of these currencies may be carried out. Pure: the clock is a parameter.

Conventions, each held by a test:

- every interval is half open: at 17:00:00 of a cut-off or a close at 17:00 the door is shut;
- a local time that a clock change skips or repeats is read both ways; a ledger opens at the later reading and closes
  at the earlier, so a session is what every reading agrees to;
- a business day may open on its eve (Fedwire: 21:00 the evening before); it is named by the day it ends on;
- business-day rules as in ISDA's 2006 definitions, section 4.12: following, modified following, preceding.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from settlement.domain.refusals import SettlementRefusal

DAYS_OFF_IN_A_ROW_MAX = 31
"""A run of days off longer than this is a mistake in the data; no country closes for a month."""
JOINT_SEARCH_DAYS_MAX = 62
"""How far a next or previous joint day is looked for: two such runs."""
DAYS_AHEAD_MAX = 400
"""A value date further away than a year and a month is a mistake."""
LAG_DAYS_MAX = 10
CURRENCIES_MAX = 16
"""In one question; a settlement has at most 32 legs and rarely more than three currencies."""
COVER_DAYS_MAX = 3_700
"""Ten years in one file."""
MINUTES_OF_DAY = 24 * 60

_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
_SATURDAY = _WEEKDAYS.index("saturday")
_CLOCK = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])|24:00", re.ASCII)


def parse_clock(text: str) -> int:
    """`HH:MM` as minutes after midnight; `24:00` is the midnight that ends the day. Raises: ValueError."""
    if _CLOCK.fullmatch(text) is None:
        raise ValueError(f"{text[:10]!r} is not a time of day HH:MM, 00:00 to 24:00")
    return int(text[:2]) * 60 + int(text[3:])


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DayOff(_Data):
    """`first` and `last` are both off."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    first: date
    last: date
    assumed: bool = False
    """Expected, not published yet: by the moon, or by the rule of earlier years."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        if self.last < self.first:
            raise ValueError(f"{self.name} ends before it begins")
        return self


class Times(_Data):
    """One business day's times, local, as minutes after midnight."""

    opens: int
    opens_on_eve: bool = False
    closes: int
    customer_cut_off: int
    """Payments for customers are taken until then."""
    bank_cut_off: int
    """Payments between institutions on their own account are taken until then."""

    @field_validator("opens", "closes", "customer_cut_off", "bank_cut_off", mode="before")
    @classmethod
    def _minutes(cls, value: object) -> object:
        return parse_clock(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _are_in_order(self) -> Self:
        opens = self.opens - MINUTES_OF_DAY if self.opens_on_eve else self.opens
        if not opens < self.customer_cut_off <= self.bank_cut_off <= self.closes:
            raise ValueError("opens < customer_cut_off <= bank_cut_off <= closes does not hold")
        if self.customer_cut_off <= 0 or self.closes > MINUTES_OF_DAY:
            raise ValueError("a business day's cut-offs and close lie on that day")
        if self.closes - opens > MINUTES_OF_DAY:
            raise ValueError("a business day is open for at most 24 hours")
        return self


class Hours(Times):
    """The times of some weekdays, from a day on."""

    valid_from: date
    days: Annotated[frozenset[Weekday], Field(min_length=1)]
    source: Annotated[str, Field(min_length=1)]
    assumed: bool = False


class SpecialDay(Times):
    """A business day with times of its own: an early close."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    day: date
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Session:
    """One ledger's opening for one business day; [opens_at, closes_at) in UTC."""

    day: date
    opens_at: datetime
    closes_at: datetime
    customer_cut_off_at: datetime
    bank_cut_off_at: datetime
    is_assumed: bool
    """Rests on data that nobody has published."""


class Calendar(_Data):
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    title: Annotated[str, Field(min_length=1, max_length=200)]
    time_zone: str
    home_countries: Annotated[frozenset[str], Field(min_length=1)]
    """ISO 3166-1: institutions of other countries are foreign on this ledger, which matters to the clear-out."""
    covers_from: date
    covers_to: date
    """The last day whose days off are listed; beyond it the calendar has no answer."""
    source: Annotated[str, Field(min_length=1)]
    hours: Annotated[tuple[Hours, ...], Field(min_length=1)]
    days_off: tuple[DayOff, ...] = ()
    working_days: tuple[date, ...] = ()
    """Days that are worked although their weekday is not, with the times of the first entry of `hours` in force."""
    working_days_assumed: bool = False
    early_closes: tuple[SpecialDay, ...] = ()
    _zone: ZoneInfo = PrivateAttr()
    _sessions: dict[date, Session | None] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        try:
            self._zone = ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{self.time_zone!r} is no time zone of the tz database") from None
        if not 0 <= (self.covers_to - self.covers_from).days <= COVER_DAYS_MAX:
            raise ValueError(f"the calendar covers no day, or more than {COVER_DAYS_MAX}")
        if not any(entry.valid_from <= self.covers_from for entry in self.hours):
            raise ValueError("no hours are valid on the first day that the calendar covers")
        named = [(entry.valid_from, day) for entry in self.hours for day in entry.days]
        if len(named) != len(set(named)):
            raise ValueError("two entries of hours name one weekday from one day on")
        for off in self.days_off:
            if not self.covers_from <= off.first <= off.last <= self.covers_to:
                raise ValueError(f"{off.name} {off.first} is outside what the calendar covers")
        for day in self.working_days:
            if self._day_off(day) is not None or not self.covers(day) or self._weekly(day) is not None:
                raise ValueError(f"{day} is worked anyway, or is a day off too, or is not covered")
        for special in self.early_closes:
            if self._day_off(special.day) is not None or not self.covers(special.day):
                raise ValueError(f"the early close of {special.day} is on a day off, or is not covered")
        if len({special.day for special in self.early_closes}) != len(self.early_closes):
            raise ValueError("a day has two early closes")
        run = 0
        for day in days_between(self.covers_from, self.covers_to):
            run = 0 if self._times(day) is not None else run + 1
            if run > DAYS_OFF_IN_A_ROW_MAX:
                raise ValueError(f"more than {DAYS_OFF_IN_A_ROW_MAX} days off in a row until {day}")
        return self

    @property
    def zone(self) -> ZoneInfo:
        return self._zone

    def covers(self, day: date) -> bool:
        return self.covers_from <= day <= self.covers_to

    def local_day(self, at: datetime) -> date:
        return at.astimezone(self._zone).date()

    def session(self, day: date) -> Session | None:
        """The opening for a business day; None of a day off. Raises: LookupError for a day that is not covered."""
        if not self.covers(day):
            known = f"the days off of {self.currency} are known from {self.covers_from} to {self.covers_to}"
            raise LookupError(f"{known}; {day} is not among them")
        if day not in self._sessions:  # a memo: what is worked out is a pure function of the data
            self._sessions[day] = self._work_out(day)
        return self._sessions[day]

    def is_assumed(self, day: date) -> bool:
        """Whether what is said of this day rests on data that nobody has published."""
        off = self._day_off(day)
        if off is not None:
            return off.assumed
        found = self._times(day)
        return found is not None and found[1]

    def why_closed(self, day: date) -> str:
        """A sentence for a day without a session."""
        off = self._day_off(day)
        if off is not None:
            return f"{self.currency}: {off.name}{' (assumed)' if off.assumed else ''}"
        return f"{self.currency}: closed on {_WEEKDAYS[day.weekday()].capitalize()}s"

    def beside_weekends(self) -> tuple[frozenset[date], frozenset[date]]:
        """Of all days that are covered: those off that are no Saturday or Sunday, and Saturdays and Sundays that are
        worked."""
        off: set[date] = set()
        worked: set[date] = set()
        for day in days_between(self.covers_from, self.covers_to):
            is_weekend, is_open = day.weekday() >= _SATURDAY, self.session(day) is not None
            if is_weekend and is_open:
                worked.add(day)
            elif not is_weekend and not is_open:
                off.add(day)
        return frozenset(off), frozenset(worked)

    def _work_out(self, day: date) -> Session | None:
        found = self._times(day)
        if found is None:
            return None
        times, is_assumed = found
        eve = day - timedelta(days=1) if times.opens_on_eve else day
        opens_at = max(_readings(eve, times.opens, self._zone))
        closes_at = min(_readings(day, times.closes, self._zone))
        if opens_at >= closes_at:  # a clock change swallowed the session
            return None
        customer, bank = (
            min(_readings(day, minutes, self._zone)) for minutes in (times.customer_cut_off, times.bank_cut_off)
        )
        return Session(day, opens_at, closes_at, customer, bank, is_assumed)

    def _times(self, day: date) -> tuple[Times, bool] | None:
        if self._day_off(day) is not None:
            return None
        for special in self.early_closes:
            if special.day == day:
                return special, special.assumed
        weekly = self._weekly(day)
        if weekly is not None:
            return weekly, weekly.assumed
        if day in self.working_days:
            first = self._in_force(day)[0]
            return first, first.assumed or self.working_days_assumed
        return None

    def _weekly(self, day: date) -> Hours | None:
        weekday = _WEEKDAYS[day.weekday()]
        return next((entry for entry in self._in_force(day) if weekday in entry.days), None)

    def _in_force(self, day: date) -> list[Hours]:
        newest = max((entry.valid_from for entry in self.hours if entry.valid_from <= day), default=None)
        return [entry for entry in self.hours if entry.valid_from == newest]

    def _day_off(self, day: date) -> DayOff | None:
        return next((off for off in self.days_off if off.first <= day <= off.last), None)


@dataclass(frozen=True, slots=True)
class CalendarSet:
    """Every calendar of a bridge. `sha256` is the digest of the data, so that an answer can be repeated years later."""

    calendars: Mapping[str, Calendar]
    sha256: str = field(default="")

    def of(self, currencies: Sequence[str]) -> list[Calendar] | Declined:
        """The calendars of these currencies, each once. Refuses: calendar-unknown."""
        unique = sorted(set(currencies))
        missing = [code for code in unique if code not in self.calendars]
        if missing or not unique or len(unique) > CURRENCIES_MAX:
            none_of = f"no calendar of {', '.join(missing)[:100]}"
            many = f"name 1 to {CURRENCIES_MAX} currencies"
            return Declined(SettlementRefusal.CALENDAR_UNKNOWN, none_of if missing else many)
        return [self.calendars[code] for code in unique]


# --- joint days


class PaymentKind(StrEnum):
    """Whose cut-off counts."""

    BANK = "bank"
    """Between institutions on their own account."""
    CUSTOMER = "customer"
    """For a customer: its ultimate parties are named."""


@dataclass(frozen=True, slots=True)
class JointDay:
    """A business day shared by several ledgers; [window_from, window_until) is the overlap of their sessions."""

    day: date
    window_from: datetime
    window_until: datetime
    customer_cut_off_at: datetime
    bank_cut_off_at: datetime
    """The earliest of the ledgers', and never after the window."""
    is_assumed: bool

    def cut_off_at(self, kind: PaymentKind) -> datetime:
        return self.customer_cut_off_at if kind is PaymentKind.CUSTOMER else self.bank_cut_off_at


def joint_day(calendars: Sequence[Calendar], day: date) -> JointDay | None:
    """The overlap on one date; None if a ledger is closed or they do not overlap. Raises: LookupError (not covered)."""
    sessions = [calendar.session(day) for calendar in calendars]
    opened = [session for session in sessions if session is not None]
    if len(opened) < len(sessions):
        return None
    window_from = max(session.opens_at for session in opened)
    window_until = min(session.closes_at for session in opened)
    if window_from >= window_until:
        return None
    return JointDay(
        day,
        window_from,
        window_until,
        min(window_until, *(session.customer_cut_off_at for session in opened)),
        min(window_until, *(session.bank_cut_off_at for session in opened)),
        any(session.is_assumed for session in opened),
    )


def why_not_joint(calendars: Sequence[Calendar], day: date) -> str:
    """A sentence for a date that is no joint day."""
    closed = [calendar.why_closed(day) for calendar in calendars if calendar.session(day) is None]
    return "; ".join(closed) if closed else "their opening hours do not overlap on this day"


# --- value dates


class DayRule(StrEnum):
    """What becomes of a value date that is no joint day."""

    NONE = "none"
    """It is refused."""
    FOLLOWING = "following"
    MODIFIED_FOLLOWING = "modified-following"
    """The next joint day, unless that is in another month: then the one before."""
    PRECEDING = "preceding"


class MissedCutOff(StrEnum):
    """What becomes of a settlement that comes, or is held up, past its day."""

    ROLL = "roll"
    """It takes the next joint day."""
    REFUSE = "refuse"


@dataclass(frozen=True, slots=True)
class Terms:
    """How a bridge plans. `lag_days` is the n of T+n, in joint days, where no value date is asked for."""

    rule: DayRule = DayRule.FOLLOWING
    missed: MissedCutOff = MissedCutOff.ROLL
    kind: PaymentKind = PaymentKind.BANK
    lag_days: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """When a settlement is carried out: at `settles_at`, in [window_from, window_until) of the day `value_date`."""

    value_date: date
    settles_at: datetime
    window_from: datetime
    window_until: datetime
    cut_off_at: datetime
    """Of the kind of payment asked about: until then it had to be submitted."""
    is_assumed: bool
    notes: tuple[str, ...]
    """Why it is not the date that was asked for, in sentences."""


@dataclass(frozen=True, slots=True)
class Declined:
    refusal: SettlementRefusal
    reason: str


def plan(calendars: Sequence[Calendar], *, at: datetime, value_date: date | None, terms: Terms) -> Plan | Declined:
    """When would a settlement of these ledgers, submitted at `at` (aware), be carried out?

    A later `at` never gives an earlier answer, and every answer lies in its window.
    Refuses: calendar-not-covered, no-joint-business-day, value-date-past, value-date-too-far,
    value-date-not-business-day, cut-off-missed. Raises: ValueError for a naive `at`, no calendars, a lag out of range.
    """
    if at.tzinfo is None or not calendars or not 0 <= terms.lag_days <= LAG_DAYS_MAX:
        raise ValueError("plan takes an aware time, at least one calendar and a lag of 0 to 10 days")
    try:
        return _plan(calendars, at, value_date, terms)
    except LookupError as error:
        return Declined(SettlementRefusal.CALENDAR_NOT_COVERED, str(error))


def _plan(calendars: Sequence[Calendar], at: datetime, value_date: date | None, terms: Terms) -> Plan | Declined:
    today = min(calendar.local_day(at) for calendar in calendars)
    notes: list[str] = []
    if value_date is None:
        joint = _first_open(calendars, today, at, terms.kind)
        for _ in range(terms.lag_days):
            joint = None if joint is None else _next(calendars, joint.day + timedelta(days=1), 1)
        return _planned(joint, at, terms, notes) if joint is not None else _none(calendars, today)
    if abs((value_date - today).days) > DAYS_AHEAD_MAX:
        refusal = SettlementRefusal.VALUE_DATE_PAST if value_date < today else SettlementRefusal.VALUE_DATE_TOO_FAR
        return Declined(refusal, f"value date {value_date}, today is {today}")
    if value_date < today and any(not calendar.covers(value_date) for calendar in calendars):
        return Declined(SettlementRefusal.VALUE_DATE_PAST, f"value date {value_date}, today is {today}")
    joint = joint_day(calendars, value_date)
    if joint is None:
        why = f"{value_date} is no joint business day ({why_not_joint(calendars, value_date)})"
        if terms.rule is DayRule.NONE:
            return Declined(SettlementRefusal.VALUE_DATE_NOT_BUSINESS_DAY, why)
        joint = _adjusted(calendars, value_date, terms.rule)
        if joint is None:
            return _none(calendars, value_date)
        notes.append(f"{why}: {joint.day} by the rule {terms.rule.value}")
    if max(value_date, joint.day) < today:
        return Declined(SettlementRefusal.VALUE_DATE_PAST, f"value date {value_date}, today is {today}")
    if at >= joint.cut_off_at(terms.kind):
        missed = f"the {terms.kind.value} cut-off of {joint.day}, {_utc(joint.cut_off_at(terms.kind))}, is missed"
        if terms.missed is MissedCutOff.REFUSE:
            return Declined(SettlementRefusal.CUT_OFF_MISSED, missed)
        joint = _first_open(calendars, joint.day + timedelta(days=1), at, terms.kind)
        if joint is None:
            return _none(calendars, value_date)
        notes.append(f"{missed}: rolled to {joint.day}")
    return _planned(joint, at, terms, notes)


def next_window(calendars: Sequence[Calendar], *, after: date, at: datetime) -> JointDay | Declined:
    """The first joint day after `after` whose window has not closed at `at`: where a held-up settlement goes."""
    try:
        day, joint = after, None
        for _ in range(JOINT_SEARCH_DAYS_MAX):
            joint = _next(calendars, day + timedelta(days=1), 1)
            if joint is None or joint.window_until > at:
                break
            day = joint.day
    except LookupError as error:
        return Declined(SettlementRefusal.CALENDAR_NOT_COVERED, str(error))
    return joint if joint is not None and joint.window_until > at else _none(calendars, after)


def overlaps(calendars: Sequence[Calendar], *, first: date, days: int) -> Iterator[tuple[date, JointDay | None, str]]:
    """For each of `days` dates: the overlap, or None and why. Raises: LookupError for a date that is not covered."""
    for day in days_between(first, first + timedelta(days=days - 1)):
        joint = joint_day(calendars, day)
        yield day, joint, "" if joint is not None else why_not_joint(calendars, day)


def days_between(first: date, last: date) -> Iterator[date]:
    """Both included."""
    day = first
    while day <= last:
        yield day
        day += timedelta(days=1)


def _planned(joint: JointDay, at: datetime, terms: Terms, notes: Sequence[str]) -> Plan:
    return Plan(
        value_date=joint.day,
        settles_at=max(at, joint.window_from).astimezone(UTC),
        window_from=joint.window_from,
        window_until=joint.window_until,
        cut_off_at=joint.cut_off_at(terms.kind),
        is_assumed=joint.is_assumed,
        notes=tuple(notes),
    )


def _adjusted(calendars: Sequence[Calendar], day: date, rule: DayRule) -> JointDay | None:
    if rule is DayRule.PRECEDING:
        return _next(calendars, day, -1)
    later = _next(calendars, day, 1)
    if rule is DayRule.MODIFIED_FOLLOWING and (later is None or later.day.month != day.month):
        return _next(calendars, day, -1)
    return later


def _first_open(calendars: Sequence[Calendar], day: date, at: datetime, kind: PaymentKind) -> JointDay | None:
    return _search(calendars, day, 1, lambda joint: at < joint.cut_off_at(kind))


def _next(calendars: Sequence[Calendar], day: date, step: Literal[1, -1]) -> JointDay | None:
    return _search(calendars, day, step, lambda joint: True)


def _search(
    calendars: Sequence[Calendar], day: date, step: Literal[1, -1], fits: Callable[[JointDay], bool]
) -> JointDay | None:
    for _ in range(JOINT_SEARCH_DAYS_MAX):
        joint = joint_day(calendars, day)
        if joint is not None and fits(joint):
            return joint
        day += timedelta(days=step)
    return None


def _none(calendars: Sequence[Calendar], day: date) -> Declined:
    codes = ", ".join(calendar.currency for calendar in calendars)
    reason = f"{codes} share no business day within {JOINT_SEARCH_DAYS_MAX} days of {day}"
    return Declined(SettlementRefusal.NO_JOINT_BUSINESS_DAY, reason)


def _readings(day: date, minutes: int, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """A local time in UTC, as it is read before and after a clock change; equal on all other days."""
    naive = datetime.combine(day, time.min) + timedelta(minutes=minutes)
    before, after = (naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return before, after


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")

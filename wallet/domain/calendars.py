"""Dates of standing payments: recurrences, the business-day rules, and calendars of business days. Pure.

A calendar is a dated data file (`wallet/calendars/*.toml`). Beyond the dates it covers (nobody has published those
holidays yet) only its weekends are known: such a date is provisional, and is worked out again once the file is.
Business-day rules as in ISDA's 2006 definitions, section 4.12: following, modified following, preceding.
"""

from __future__ import annotations

import calendar as months
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

DAYS_OFF_IN_A_ROW_MAX = 31
"""A run of days off longer than this is a mistake in the data; no country closes for a month."""
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Holiday(_Data):
    name: str
    first: date
    last: date


class BusinessCalendar(_Data):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,28}$")]
    title: str
    time_zone: str
    covers_from: date
    covers_to: date
    """The last day whose holidays are published."""
    source: Annotated[str, Field(min_length=1)]
    assumed: str = ""
    weekend: frozenset[Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]]
    working_weekend_days: frozenset[date] = frozenset()
    """Weekend days that are worked to make up for a holiday."""
    holidays: tuple[Holiday, ...]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.covers_from > self.covers_to or len(self.weekend) > 6:
            raise ValueError("the calendar covers no day, or has no working weekday")
        for holiday in self.holidays:
            if not self.covers_from <= holiday.first <= holiday.last <= self.covers_to:
                raise ValueError(f"{holiday.name} {holiday.first} is outside what the calendar covers, or ends early")
        for day in self.working_weekend_days:
            if _WEEKDAYS[day.weekday()] not in self.weekend or self._holiday(day):
                raise ValueError(f"{day} is no weekend day that is worked")
        day, run = self.covers_from, 0
        while day <= self.covers_to:
            run = 0 if self.is_business_day(day) else run + 1
            if run > DAYS_OFF_IN_A_ROW_MAX:
                raise ValueError(f"more than {DAYS_OFF_IN_A_ROW_MAX} days off in a row until {day}")
            day += timedelta(days=1)
        return self

    def covers(self, day: date) -> bool:
        return self.covers_from <= day <= self.covers_to

    def is_business_day(self, day: date) -> bool:
        if day in self.working_weekend_days:
            return True
        return _WEEKDAYS[day.weekday()] not in self.weekend and not self._holiday(day)

    def _holiday(self, day: date) -> bool:
        return any(holiday.first <= day <= holiday.last for holiday in self.holidays)


class BusinessDayRule(StrEnum):
    """What becomes of a date that is no business day."""

    NONE = "none"
    """It stands: the ledger settles every day."""
    FOLLOWING = "following"
    MODIFIED_FOLLOWING = "modified-following"
    """The next business day, unless that is in another month: then the one before."""
    PRECEDING = "preceding"


class Frequency(StrEnum):
    ONCE = "once"
    DAILY = "daily"
    """With a business-day rule: each business day."""
    WEEKLY = "weekly"
    MONTHLY = "monthly"


def adjusted(day: date, rule: BusinessDayRule, calendar: BusinessCalendar) -> date:
    """The date on which a payment for `day` is made."""
    match rule:
        case BusinessDayRule.NONE:
            return day
        case BusinessDayRule.FOLLOWING:
            return _step(day, 1, calendar)
        case BusinessDayRule.PRECEDING:
            return _step(day, -1, calendar)
        case BusinessDayRule.MODIFIED_FOLLOWING:
            later = _step(day, 1, calendar)
            return later if (later.year, later.month) == (day.year, day.month) else _step(day, -1, calendar)


def _step(day: date, direction: int, calendar: BusinessCalendar) -> date:
    for _ in range(2 * DAYS_OFF_IN_A_ROW_MAX + 1):
        if calendar.is_business_day(day):
            return day
        day += timedelta(days=direction)
    raise ValueError(f"{calendar.name} has no business day near {day}")


def month_day(year: int, month: int, day: int) -> date:
    """`day` of the month, or its last day if it is shorter: 31 always means the last."""
    return date(year, month, min(day, months.monthrange(year, month)[1]))


class Recurrence(_Data):
    """When a standing payment falls due, before and after the business-day rule."""

    frequency: Frequency
    first_on: date
    every: Annotated[int, Field(ge=1, le=12)] = 1
    """Every so many days, weeks or months."""
    day_of_month: Annotated[int, Field(ge=1, le=31)] | None = None
    """Of a monthly one: 31 = the last day. Unset = the day of `first_on`."""
    rule: BusinessDayRule = BusinessDayRule.NONE

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.frequency is not Frequency.MONTHLY and self.day_of_month is not None:
            raise ValueError("day_of_month is for monthly payments")
        if self.frequency is Frequency.ONCE and self.every != 1:
            raise ValueError("a single payment has no `every`")
        if self.day_of_month is not None and self.first_on != month_day(
            self.first_on.year, self.first_on.month, self.day_of_month
        ):
            raise ValueError("first_on must be the day_of_month of its month")
        return self

    def nominal(self, number: int, calendar: BusinessCalendar) -> date:
        """The date of occurrence `number` (from 0) before the rule. Raises: ValueError past what it can have."""
        if number < 0 or (self.frequency is Frequency.ONCE and number > 0):
            raise ValueError(f"there is no occurrence {number}")
        steps = number * self.every
        match self.frequency:
            case Frequency.ONCE:
                return self.first_on
            case Frequency.DAILY if self.rule is not BusinessDayRule.NONE:
                day = adjusted(self.first_on, self.rule, calendar)
                for _ in range(steps):
                    day = _step(day + timedelta(days=1), 1, calendar)
                return day
            case Frequency.DAILY:
                return self.first_on + timedelta(days=steps)
            case Frequency.WEEKLY:
                return self.first_on + timedelta(weeks=steps)
            case Frequency.MONTHLY:
                month = self.first_on.year * 12 + self.first_on.month - 1 + steps
                day_of_month = self.day_of_month or self.first_on.day
                return month_day(month // 12, month % 12 + 1, day_of_month)

    def due(self, number: int, calendar: BusinessCalendar) -> date:
        """The date on which occurrence `number` is paid."""
        return adjusted(self.nominal(number, calendar), self.rule, calendar)

    def is_provisional(self, number: int, calendar: BusinessCalendar) -> bool:
        """Whether a later calendar file may move it."""
        if self.rule is BusinessDayRule.NONE:
            return False
        return not (calendar.covers(self.nominal(number, calendar)) and calendar.covers(self.due(number, calendar)))

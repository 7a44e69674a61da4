"""Goal: every payment of a standing order falls on the day that the words say, business days and month ends included.
Method: tables against the State Council's published 2026 calendar; Hypothesis for what must hold of any recurrence,
with a naive day-by-day model beside it.
"""

from __future__ import annotations

import calendar as months
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wallet.calendar_files import calendar_names, load_calendar
from wallet.domain.calendars import BusinessCalendar, BusinessDayRule, Frequency, Recurrence, adjusted, month_day
from wallet.domain.schedules import ATTEMPTS_MAX, day_bounds, next_try, payment_day, schedule_transfer_id

CN = load_calendar("cn")
RULES = list(BusinessDayRule)


@pytest.mark.parametrize(
    ("day", "is_business_day"),
    [
        ("2026-01-01", False),  # holiday
        ("2026-01-04", True),  # a Sunday worked in exchange
        ("2026-02-14", True),  # a Saturday worked in exchange
        ("2026-02-15", False),
        ("2026-02-23", False),  # last day of Spring Festival, a Monday
        ("2026-02-24", True),
        ("2026-06-19", False),  # a Friday
        ("2026-09-20", True),
        ("2026-10-07", False),
        ("2026-10-08", True),
        ("2026-10-10", True),
        ("2026-11-21", False),  # an ordinary Saturday
        ("2027-01-01", True),  # not published: only weekends are known
    ],
)
def test_business_days_of_the_published_calendar(day: str, is_business_day: bool) -> None:
    assert CN.is_business_day(date.fromisoformat(day)) is is_business_day


RULE_TABLE = """
# day         none        following   modified-following preceding
  2026-06-15  2026-06-15  2026-06-15  2026-06-15         2026-06-15
  2026-06-20  2026-06-20  2026-06-22  2026-06-22         2026-06-18
  2026-02-18  2026-02-18  2026-02-24  2026-02-24         2026-02-14
  2026-05-31  2026-05-31  2026-06-01  2026-05-29         2026-05-29
  2026-10-31  2026-10-31  2026-11-02  2026-10-30         2026-10-30
  2026-01-01  2026-01-01  2026-01-04  2026-01-04         2025-12-31
"""


@pytest.mark.parametrize("row", [row for row in RULE_TABLE.splitlines() if row.strip() and not row.startswith("#")])
def test_business_day_rules(row: str) -> None:
    day, *expected = (date.fromisoformat(text) for text in row.split())
    assert [adjusted(day, rule, CN) for rule in RULES] == expected


SERIES = """
# frequency every first_on    day rule               | dates
  once      1     2026-06-20  -   following          | 2026-06-22
  daily     1     2026-06-18  -   none               | 2026-06-18 2026-06-19 2026-06-20 2026-06-21
  daily     1     2026-06-18  -   following          | 2026-06-18 2026-06-22 2026-06-23 2026-06-24
  daily     2     2026-06-18  -   following          | 2026-06-18 2026-06-23 2026-06-25
  daily     1     2026-06-20  -   preceding          | 2026-06-18 2026-06-22 2026-06-23
  weekly    1     2026-09-24  -   modified-following | 2026-09-24 2026-10-08 2026-10-08 2026-10-15
  weekly    2     2026-06-05  -   none               | 2026-06-05 2026-06-19 2026-07-03
  monthly   1     2026-01-31  31  none               | 2026-01-31 2026-02-28 2026-03-31 2026-04-30
  monthly   1     2026-01-31  -   none               | 2026-01-31 2026-02-28 2026-03-31 2026-04-30
  monthly   1     2026-02-28  31  none               | 2026-02-28 2026-03-31 2026-04-30
  monthly   1     2026-02-28  28  none               | 2026-02-28 2026-03-28 2026-04-28
  monthly   1     2026-01-31  31  preceding          | 2026-01-30 2026-02-28 2026-03-31 2026-04-30 2026-05-29
  monthly   3     2025-11-30  30  none               | 2025-11-30 2026-02-28 2026-05-30
  monthly   12    2024-02-29  29  none               | 2024-02-29 2025-02-28 2026-02-28 2027-02-28 2028-02-29
"""


@pytest.mark.parametrize("row", [row for row in SERIES.splitlines() if row.strip() and not row.startswith("#")])
def test_series_of_dates(row: str) -> None:
    words, dates = row.split("|")
    frequency, every, first_on, day, rule = words.split()
    recurrence = Recurrence(
        frequency=Frequency(frequency),
        first_on=date.fromisoformat(first_on),
        every=int(every),
        day_of_month=None if day == "-" else int(day),
        rule=BusinessDayRule(rule),
    )
    assert [recurrence.due(number, CN).isoformat() for number in range(len(dates.split()))] == dates.split()


def test_what_is_not_published_yet_is_provisional() -> None:
    monthly = Recurrence(frequency=Frequency.MONTHLY, first_on=date(2026, 11, 30), rule=BusinessDayRule.FOLLOWING)
    assert [monthly.is_provisional(number, CN) for number in range(3)] == [False, False, True]
    last = Recurrence(frequency=Frequency.ONCE, first_on=date(2026, 12, 31), rule=BusinessDayRule.NONE)
    assert not last.is_provisional(0, CN)
    assert not Recurrence(frequency=Frequency.ONCE, first_on=date(2030, 1, 1)).is_provisional(0, CN)


@pytest.mark.parametrize(
    "values",
    [
        {"frequency": "weekly", "first_on": "2026-06-01", "day_of_month": 1},
        {"frequency": "once", "first_on": "2026-06-01", "every": 2},
        {"frequency": "monthly", "first_on": "2026-06-01", "day_of_month": 2},
        {"frequency": "monthly", "first_on": "2026-06-30", "day_of_month": 29},
        {"frequency": "monthly", "first_on": "2026-06-01", "every": 13},
        {"frequency": "yearly", "first_on": "2026-06-01"},
    ],
)
def test_recurrence_that_contradicts_itself_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Recurrence.model_validate(values)


def test_every_calendar_file_is_well_formed_and_a_broken_one_is_refused() -> None:
    for name in calendar_names():
        load_calendar(name)
    good = CN.model_dump()
    for change in (
        {"covers_to": date(2025, 1, 1)},
        {"working_weekend_days": [date(2026, 6, 15)]},
        {"weekend": ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]},
        {"holidays": [{"name": "long", "first": date(2026, 3, 1), "last": date(2026, 4, 30)}]},
        {"holidays": [{"name": "outside", "first": date(2027, 3, 1), "last": date(2027, 3, 1)}]},
    ):
        with pytest.raises(ValidationError):
            BusinessCalendar.model_validate(good | change)


DAYS = st.dates(date(2025, 6, 1), date(2028, 12, 31))
RECURRENCES = st.builds(
    Recurrence,
    frequency=st.sampled_from([Frequency.DAILY, Frequency.WEEKLY, Frequency.MONTHLY]),
    first_on=DAYS,
    every=st.integers(1, 12),
    rule=st.sampled_from(RULES),
)


@given(DAYS, st.sampled_from(RULES))
def test_adjusted_day_is_the_nearest_business_day_on_its_side(day: date, rule: BusinessDayRule) -> None:
    found = adjusted(day, rule, CN)
    if rule is BusinessDayRule.NONE:
        assert found == day
        return
    assert CN.is_business_day(found)
    first, last = min(day, found), max(day, found)
    between = [first + timedelta(days=step) for step in range((last - first).days + 1)]
    assert sum(CN.is_business_day(item) for item in between) == 1
    if rule is BusinessDayRule.FOLLOWING:
        assert found >= day
    elif rule is BusinessDayRule.PRECEDING:
        assert found <= day
    elif found < day:
        assert adjusted(day, BusinessDayRule.FOLLOWING, CN).month != day.month


@given(RECURRENCES, st.integers(0, 60))
def test_nominal_dates_grow_and_due_dates_never_go_back(recurrence: Recurrence, number: int) -> None:
    assert recurrence.nominal(number, CN) < recurrence.nominal(number + 1, CN)
    assert recurrence.due(number, CN) <= recurrence.due(number + 1, CN)
    if recurrence.rule is not BusinessDayRule.NONE:
        assert CN.is_business_day(recurrence.due(number, CN))


@given(DAYS, st.integers(0, 60))
def test_monthly_dates_are_those_of_a_naive_walk_over_the_months(first_on: date, number: int) -> None:
    recurrence = Recurrence(frequency=Frequency.MONTHLY, first_on=first_on)
    year, month = first_on.year, first_on.month
    for _ in range(number):
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
    last = months.monthrange(year, month)[1]
    assert recurrence.nominal(number, CN) == date(year, month, min(first_on.day, last))
    assert month_day(year, month, 31).day == last


@given(RECURRENCES, st.integers(0, 60))
def test_payment_day_is_a_whole_local_day_and_its_signature_reaches_the_end(
    recurrence: Recurrence, number: int
) -> None:
    day = payment_day(recurrence, number, CN)
    zone = ZoneInfo(CN.time_zone)
    assert day.not_before.astimezone(zone).date() == day.due_on
    assert (day.give_up_at - timedelta(microseconds=1)).astimezone(zone).date() == day.due_on
    assert day.sign_until >= day.give_up_at


def test_a_day_with_a_clock_change_is_23_hours_long() -> None:
    first, last = day_bounds(date(2026, 3, 29), ZoneInfo("Europe/Berlin"))
    assert last - first == timedelta(hours=23)


def test_date_beyond_the_calendar_of_python_is_refused() -> None:
    recurrence = Recurrence(frequency=Frequency.MONTHLY, first_on=date(9999, 6, 1), every=12)
    with pytest.raises(ValueError, match=r"year|far"):
        payment_day(recurrence, 1, CN)


@given(st.integers(0, 86_399))
def test_tries_of_a_day_are_bounded_and_end_with_it(seconds: int) -> None:
    give_up_at = datetime(2026, 6, 16, tzinfo=UTC)
    now = give_up_at - timedelta(days=1) + timedelta(seconds=seconds)
    tries, at = 1, next_try(now, attempts=1, give_up_at=give_up_at)
    while at is not None:
        assert now < at < give_up_at
        now, tries = at, tries + 1
        at = next_try(now, attempts=tries, give_up_at=give_up_at)
    assert tries <= ATTEMPTS_MAX


def test_I7_each_payment_has_one_id_for_ever() -> None:
    from kernel.ids import new_uuid7

    schedule = new_uuid7()
    found = [schedule_transfer_id(schedule, number) for number in range(100)]
    assert len(set(found)) == 100
    assert found == [schedule_transfer_id(schedule, number) for number in range(100)]

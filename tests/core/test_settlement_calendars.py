"""Goal: a settlement is planned into hours that all its ledgers share, on the right day, in every odd corner of time.

Method: tables over hand-made calendars whose answers are worked out by hand (both clock changes, weekends of Friday and
of Sunday, the closing minute, leap day, year's end), properties over generated ones, and an independent scan of every
minute as the oracle. The data files are held to their pins and to facts that any calendar on a wall shows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from settlement.calendar_files import DIRECTORY, CalendarInvalid, load_calendars, pin_calendars
from settlement.domain.calendars import (
    DAYS_AHEAD_MAX,
    Calendar,
    DayRule,
    Declined,
    MissedCutOff,
    PaymentKind,
    Plan,
    Terms,
    days_between,
    joint_day,
    next_window,
    parse_clock,
    plan,
)
from settlement.domain.refusals import SettlementRefusal as R

WEEK = ["monday", "tuesday", "wednesday", "thursday", "friday"]


def calendar(currency: str = "CNY", zone: str = "Asia/Shanghai", **changes: object) -> Calendar:
    times = {
        "opens": changes.pop("opens", "08:30"),
        "closes": changes.pop("closes", "17:00"),
        "customer_cut_off": changes.pop("customer_cut_off", "16:00"),
        "bank_cut_off": changes.pop("bank_cut_off", "17:00"),
        "opens_on_eve": changes.pop("opens_on_eve", False),
    }
    hours = {"valid_from": "2020-01-01", "days": changes.pop("days", WEEK), "source": "test"} | times
    data = {
        "currency": currency,
        "title": "test",
        "time_zone": zone,
        "home_countries": ["CN"],
        "covers_from": "2024-01-01",
        "covers_to": "2028-12-31",
        "source": "test",
        "hours": [hours],
    }
    return Calendar.model_validate(data | changes)


def off(first: str, last: str = "", **more: object) -> dict[str, object]:
    return {"name": "day off", "first": first, "last": last or first} | more


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def planned(found: Plan | Declined) -> Plan:
    assert isinstance(found, Plan), found
    return found


def declined(found: Plan | Declined) -> R:
    assert isinstance(found, Declined), found
    return found.refusal


ROLL = Terms()


# --- one ledger's day


@pytest.mark.parametrize(
    ("at", "settles_at"),
    [
        ("2026-11-23T00:29:59", "2026-11-23T00:30:00"),  # a second before it opens at 08:30 in Shanghai
        ("2026-11-23T00:30:00", "2026-11-23T00:30:00"),
        ("2026-11-23T08:59:59.999999", "2026-11-23T08:59:59.999999"),  # the last microsecond before 17:00
        ("2026-11-23T09:00:00", "2026-11-24T00:30:00"),  # at the closing minute the door is shut
        ("2026-11-27T09:00:00", "2026-11-30T00:30:00"),  # Friday's close: Monday
        ("2026-11-28T12:00:00", "2026-11-30T00:30:00"),
    ],
)
def test_a_ledger_takes_what_comes_before_its_cut_off(at: str, settles_at: str) -> None:
    assert planned(plan([calendar()], at=utc(at), value_date=None, terms=ROLL)).settles_at == utc(settles_at)


def test_customers_and_banks_have_their_own_cut_off() -> None:
    at = utc("2026-11-23T08:00:00")  # 16:00 in Shanghai: the customers' cut-off
    bank = planned(plan([calendar()], at=at, value_date=None, terms=Terms(kind=PaymentKind.BANK)))
    customer = planned(plan([calendar()], at=at, value_date=None, terms=Terms(kind=PaymentKind.CUSTOMER)))
    assert (bank.value_date, customer.value_date) == (date(2026, 11, 23), date(2026, 11, 24))


@pytest.mark.parametrize(
    ("day", "opens_at", "closes_at"),
    [
        # New York springs forward on 8 March 2026 at 02:00 and falls back on 1 November at 02:00.
        ("2026-03-06", "2026-03-06T02:00:00", "2026-03-07T00:00:00"),  # Friday, EST: UTC-5
        ("2026-03-09", "2026-03-09T01:00:00", "2026-03-09T23:00:00"),  # Monday opens on Sunday evening, EDT already
        ("2026-10-30", "2026-10-30T01:00:00", "2026-10-30T23:00:00"),
        ("2026-11-02", "2026-11-02T02:00:00", "2026-11-03T00:00:00"),
    ],
)
def test_a_day_that_opens_on_its_eve_follows_both_clock_changes(day: str, opens_at: str, closes_at: str) -> None:
    dollar = calendar("USD", "America/New_York", opens="21:00", opens_on_eve=True, closes="19:00",
                      customer_cut_off="18:45", bank_cut_off="19:00")  # fmt: skip
    session = dollar.session(date.fromisoformat(day))
    assert session is not None
    assert (session.opens_at, session.closes_at) == (utc(opens_at), utc(closes_at))


@pytest.mark.parametrize(
    ("day", "opens", "closes", "opens_at", "closes_at"),
    [
        # Berlin, 29 March 2026: 02:00 to 03:00 is skipped. Both readings of 02:30: 00:30Z and 01:30Z.
        ("2026-03-29", "02:30", "18:00", "2026-03-29T01:30:00", "2026-03-29T16:00:00"),
        ("2026-03-29", "00:30", "02:30", "2026-03-28T23:30:00", "2026-03-29T00:30:00"),
        # Berlin, 25 October 2026: 02:00 to 03:00 comes twice. 02:30 is 00:30Z and 01:30Z.
        ("2026-10-25", "02:30", "18:00", "2026-10-25T01:30:00", "2026-10-25T17:00:00"),
        ("2026-10-25", "00:30", "02:30", "2026-10-24T22:30:00", "2026-10-25T00:30:00"),
        # A working day of 23 and one of 25 hours.
        ("2026-03-29", "00:00", "24:00", "2026-03-28T23:00:00", "2026-03-29T22:00:00"),
        ("2026-10-25", "00:00", "24:00", "2026-10-24T22:00:00", "2026-10-25T23:00:00"),
    ],
)
def test_a_local_time_that_is_skipped_or_repeated_is_read_to_the_narrower_session(
    day: str, opens: str, closes: str, opens_at: str, closes_at: str
) -> None:
    euro = calendar("EUR", "Europe/Berlin", opens=opens, closes=closes, customer_cut_off=closes, bank_cut_off=closes,
                    days=[*WEEK, "sunday"])  # fmt: skip
    session = euro.session(date.fromisoformat(day))
    assert session is not None
    assert (session.opens_at, session.closes_at) == (utc(opens_at), utc(closes_at))


def test_a_session_that_a_clock_change_swallows_is_none() -> None:
    euro = calendar("EUR", "Europe/Berlin", opens="02:10", closes="02:50", customer_cut_off="02:50",
                    bank_cut_off="02:50", days=[*WEEK, "sunday"])  # fmt: skip
    assert euro.session(date(2026, 3, 29)) is None
    assert euro.session(date(2026, 3, 22)) is not None


# --- joint days


RIYADH = calendar("SAR", "Asia/Riyadh", days=["sunday", "monday", "tuesday", "wednesday", "thursday"])
SHANGHAI = calendar()
FRIDAY_HALF = calendar("AED", "Asia/Dubai")


def test_friday_and_sunday_weekends_leave_four_joint_days_a_week() -> None:
    week = days_between(date(2026, 11, 22), date(2026, 11, 28))
    joint = [day.strftime("%a") for day in week if joint_day([RIYADH, SHANGHAI], day) is not None]
    assert joint == ["Mon", "Tue", "Wed", "Thu"]
    thursday_night = plan([RIYADH, SHANGHAI], at=utc("2026-11-26T20:00:00"), value_date=None, terms=ROLL)
    assert planned(thursday_night).value_date == date(2026, 11, 30)


def test_the_window_is_the_overlap_and_the_cut_off_the_earliest() -> None:
    joint = joint_day([RIYADH, SHANGHAI], date(2026, 11, 23))
    assert joint is not None
    # Riyadh (UTC+3) opens 08:30 = 05:30Z; Shanghai closes 17:00 = 09:00Z, its customers' cut-off 16:00 = 08:00Z.
    assert (joint.window_from, joint.window_until) == (utc("2026-11-23T05:30:00"), utc("2026-11-23T09:00:00"))
    assert (joint.customer_cut_off_at, joint.bank_cut_off_at) == (
        utc("2026-11-23T08:00:00"),
        utc("2026-11-23T09:00:00"),
    )


def test_ledgers_that_are_never_open_at_once_share_no_day() -> None:
    early = calendar("NZD", "Pacific/Auckland", opens="08:00", closes="12:00", customer_cut_off="12:00",
                     bank_cut_off="12:00")  # fmt: skip
    late = calendar("USD", "America/New_York", opens="08:00", closes="15:00", customer_cut_off="15:00",
                    bank_cut_off="15:00")  # fmt: skip
    assert declined(plan([early, late], at=utc("2026-11-23T00:00:00"), value_date=None, terms=ROLL)) is (
        R.NO_JOINT_BUSINESS_DAY
    )


# --- value dates


@pytest.mark.parametrize(
    ("asked", "rule", "answer"),
    [
        ("2026-11-24", DayRule.NONE, "2026-11-24"),
        ("2026-11-28", DayRule.NONE, R.VALUE_DATE_NOT_BUSINESS_DAY),
        ("2026-11-28", DayRule.FOLLOWING, "2026-11-30"),
        ("2026-11-28", DayRule.PRECEDING, "2026-11-27"),
        ("2026-11-28", DayRule.MODIFIED_FOLLOWING, "2026-11-30"),
        ("2027-01-30", DayRule.FOLLOWING, "2027-02-01"),  # a Saturday, the next business day is in February
        ("2027-01-30", DayRule.MODIFIED_FOLLOWING, "2027-01-29"),
        ("2027-01-02", DayRule.PRECEDING, "2026-12-31"),  # over the year's end; 1 January is off below
        ("2026-12-31", DayRule.FOLLOWING, "2026-12-31"),
        ("2027-01-01", DayRule.FOLLOWING, "2027-01-04"),
        ("2026-11-22", DayRule.FOLLOWING, "2026-11-23"),  # a Sunday that is over, and rolls to today
        ("2026-11-20", DayRule.FOLLOWING, R.VALUE_DATE_PAST),
        ("2026-11-22", DayRule.PRECEDING, R.VALUE_DATE_PAST),
    ],
)
def test_business_day_rules(asked: str, rule: DayRule, answer: str | R) -> None:
    found = plan([calendar(days_off=[off("2027-01-01")])], at=utc("2026-11-23T03:00:00"),
                 value_date=date.fromisoformat(asked), terms=Terms(rule=rule))  # fmt: skip
    if isinstance(answer, R):
        assert declined(found) is answer
    else:
        assert planned(found).value_date == date.fromisoformat(answer)


@pytest.mark.parametrize(("lag", "day"), [(0, "2026-09-30"), (1, "2026-10-08"), (2, "2026-10-09"), (3, "2026-10-12")])
def test_the_lag_counts_joint_days(lag: int, day: str) -> None:
    golden_week = calendar(days_off=[off("2026-10-01", "2026-10-07")])
    found = plan([golden_week], at=utc("2026-09-30T01:00:00"), value_date=None, terms=Terms(lag_days=lag))
    assert planned(found).value_date == date.fromisoformat(day)


def test_a_missed_cut_off_rolls_or_is_refused_as_the_bridge_says() -> None:
    at, today = utc("2026-11-23T10:00:00"), date(2026, 11, 23)  # 18:00 in Shanghai
    rolled = planned(plan([calendar()], at=at, value_date=today, terms=ROLL))
    assert rolled.value_date == date(2026, 11, 24)
    assert "cut-off of 2026-11-23" in rolled.notes[0]
    refused = plan([calendar()], at=at, value_date=today, terms=Terms(missed=MissedCutOff.REFUSE))
    assert declined(refused) is R.CUT_OFF_MISSED


@pytest.mark.parametrize(("at", "day"), [("08:59:59.999999", 23), ("09:00:00", 24)])
def test_a_value_date_asked_for_is_met_until_its_cut_off_and_not_at_it(at: str, day: int) -> None:
    found = plan([calendar()], at=utc(f"2026-11-23T{at}"), value_date=date(2026, 11, 23), terms=ROLL)
    assert planned(found).value_date == date(2026, 11, day)


def test_today_is_the_day_of_the_ledger_that_is_furthest_behind() -> None:
    # 2026-11-24 02:00 in Shanghai is still the 23rd in New York, so the 23rd is not past but its cut-off may be missed.
    york = calendar("USD", "America/New_York", opens="00:00", closes="24:00", customer_cut_off="24:00",
                    bank_cut_off="24:00")  # fmt: skip
    found = plan([calendar(), york], at=utc("2026-11-23T18:00:00"), value_date=date(2026, 11, 23),
                 terms=Terms(missed=MissedCutOff.REFUSE))  # fmt: skip
    assert declined(found) is R.CUT_OFF_MISSED
    alone = plan([calendar()], at=utc("2026-11-23T18:00:00"), value_date=date(2026, 11, 23), terms=ROLL)
    assert declined(alone) is R.VALUE_DATE_PAST


def test_leap_day_and_the_day_after() -> None:
    assert planned(plan([calendar()], at=utc("2028-02-28T12:00:00"), value_date=None, terms=ROLL)).value_date == date(
        2028, 2, 29
    )
    friday = planned(plan([calendar()], at=utc("2024-02-29T12:00:00"), value_date=None, terms=ROLL))
    assert friday.value_date == date(2024, 3, 1)


@pytest.mark.parametrize(
    ("value_date", "refusal"),
    [
        (date(2026, 11, 23) + timedelta(days=DAYS_AHEAD_MAX + 1), R.VALUE_DATE_TOO_FAR),
        (date(2026, 11, 23) - timedelta(days=DAYS_AHEAD_MAX + 1), R.VALUE_DATE_PAST),
        (date.max, R.VALUE_DATE_TOO_FAR),
        (date.min, R.VALUE_DATE_PAST),
        (date(2027, 1, 4), R.CALENDAR_NOT_COVERED),
        (date(2025, 12, 31), R.VALUE_DATE_PAST),
    ],
)
def test_what_no_calendar_can_answer_is_declined(value_date: date, refusal: R) -> None:
    short = calendar(covers_from="2026-01-01", covers_to="2026-12-31")
    assert declined(plan([short], at=utc("2026-11-23T03:00:00"), value_date=value_date, terms=ROLL)) is refusal


def test_a_held_up_settlement_goes_to_the_next_window_that_is_not_over() -> None:
    found = next_window([calendar()], after=date(2026, 11, 23), at=utc("2026-11-25T10:00:00"))
    assert not isinstance(found, Declined)
    assert found.day == date(2026, 11, 26)  # the 24th and the 25th closed meanwhile
    at_the_close = next_window([calendar()], after=date(2026, 11, 23), at=utc("2026-11-24T09:00:00"))
    assert not isinstance(at_the_close, Declined)
    assert at_the_close.day == date(2026, 11, 25)
    late = next_window([calendar(covers_to="2026-12-31")], after=date(2026, 12, 31), at=utc("2026-12-31T10:00:00"))
    assert isinstance(late, Declined)
    assert late.refusal is R.CALENDAR_NOT_COVERED


def test_what_is_assumed_is_said() -> None:
    unsure = calendar(
        days_off=[off("2026-11-25", assumed=True)], working_days=["2026-11-28"], working_days_assumed=True
    )
    assert unsure.is_assumed(date(2026, 11, 25))
    assert planned(plan([unsure], at=utc("2026-11-27T12:00:00"), value_date=None, terms=ROLL)).is_assumed
    assert not planned(plan([unsure], at=utc("2026-11-26T01:00:00"), value_date=None, terms=ROLL)).is_assumed
    wednesday = planned(plan([unsure], at=utc("2026-11-24T12:00:00"), value_date=date(2026, 11, 25), terms=ROLL))
    assert "(assumed)" in wednesday.notes[0]


def test_hours_are_dated_and_early_closes_count() -> None:
    old = {"valid_from": "2020-01-01", "days": WEEK, "source": "t", "opens": "08:00", "closes": "17:00",
           "customer_cut_off": "16:00", "bank_cut_off": "17:00"}  # fmt: skip
    new = old | {"valid_from": "2026-12-01", "closes": "20:00", "bank_cut_off": "20:00"}
    early = {"name": "eve", "day": "2026-12-24", "opens": "08:00", "closes": "12:00", "customer_cut_off": "11:00",
             "bank_cut_off": "12:00"}  # fmt: skip
    changed = calendar("HKD", "Asia/Hong_Kong", hours=[old, new], early_closes=[early])
    closes = {day: changed.session(date(2026, month, day)) for month, day in ((11, 30), (12, 1), (12, 24))}
    assert [session.closes_at.hour for session in closes.values() if session] == [9, 12, 4]


@pytest.mark.parametrize(
    "changes",
    [
        {"time_zone": "Mars/Olympus"},
        {"time_zone": "../../etc/passwd"},
        {"covers_to": "2020-01-01"},
        {"closes": "08:30"},
        {"bank_cut_off": "18:00"},
        {"customer_cut_off": "16:60"},
        {"days_off": [off("2026-05-05", "2026-05-01")]},
        {"days_off": [off("2031-05-05")]},
        {"days_off": [off("2026-05-05", "2026-06-30")]},
        {"working_days": ["2026-11-23"]},
        {"unknown": 1},
        {"home_countries": []},
    ],
)
def test_a_calendar_with_a_mistake_is_not_taken(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        calendar(**changes)


@pytest.mark.parametrize("text", ["24:01", "7:00", "17:00 ", "", "１７:00", "17.00"])
def test_times_of_day_are_strict(text: str) -> None:
    with pytest.raises(ValueError):
        parse_clock(text)


# --- properties

ZONES = ("Asia/Shanghai", "America/New_York", "Europe/Berlin", "Asia/Dubai", "Pacific/Auckland", "Australia/Lord_Howe")
FROM, TO = date(2026, 1, 1), date(2027, 3, 31)


@st.composite
def calendars(draw: st.DrawFn) -> Calendar:
    opens = draw(st.integers(0, 20 * 60))
    closes = draw(st.integers(opens + 30, 24 * 60))
    bank = draw(st.integers(max(1, opens + 1), closes))
    customer = draw(st.integers(max(1, opens + 1), bank))
    days = draw(st.lists(st.sampled_from([*WEEK, "saturday", "sunday"]), min_size=4, max_size=7, unique=True))
    firsts = draw(st.lists(st.dates(FROM, TO - timedelta(days=8)), max_size=6))
    return calendar(
        draw(st.sampled_from(["CNY", "USD", "EUR"])),
        draw(st.sampled_from(ZONES)),
        opens=opens,
        closes=closes,
        customer_cut_off=customer,
        bank_cut_off=bank,
        days=days,
        covers_from=FROM,
        covers_to=TO,
        days_off=[off(str(first), str(first + timedelta(days=draw(st.integers(0, 7))))) for first in firsts],
    )


TERMS = st.builds(
    Terms,
    rule=st.sampled_from(DayRule),
    missed=st.sampled_from(MissedCutOff),
    kind=st.sampled_from(PaymentKind),
    lag_days=st.integers(0, 3),
)
MOMENTS = st.timedeltas(timedelta(0), timedelta(days=349)).map(lambda found: utc("2026-01-05T00:00:00") + found)


@settings(max_examples=60, deadline=None)
@given(st.lists(calendars(), min_size=1, max_size=3), MOMENTS, st.data(), TERMS)
def test_a_later_submission_never_settles_earlier_and_every_answer_is_in_its_window(
    ledgers: list[Calendar], at: datetime, data: st.DataObject, terms: Terms
) -> None:
    later = at + data.draw(st.timedeltas(timedelta(0), timedelta(days=9)))
    asked = data.draw(st.none() | st.dates(at.date() - timedelta(days=3), at.date() + timedelta(days=12)))
    first = plan(ledgers, at=at, value_date=asked, terms=terms)
    second = plan(ledgers, at=later, value_date=asked, terms=terms)
    for found, submitted in ((first, at), (second, later)):
        if isinstance(found, Plan):
            assert found.window_from <= found.settles_at < found.window_until
            assert found.settles_at >= submitted
            assert submitted < found.cut_off_at <= found.window_until
            for ledger in ledgers:  # in the window, in the ledger's own words
                session = ledger.session(found.value_date)
                assert session is not None
                assert session.opens_at <= found.settles_at < session.closes_at
    if isinstance(first, Plan) and isinstance(second, Plan):
        assert first.settles_at <= second.settles_at
        assert first.value_date <= second.value_date


def is_open_by_the_clock_on_the_wall(ledger: Calendar, day: date, at: datetime) -> bool:
    """Oracle: the local date is the business day, its weekday is worked, it is not off, and both readings of every
    local time lie on the right side of `at`. Only for ledgers that do not open on their eve."""
    (hours,) = ledger.hours
    zone = ZoneInfo(ledger.time_zone)
    weekday = day.strftime("%A").lower()
    if weekday not in hours.days or any(found.first <= day <= found.last for found in ledger.days_off):
        return False

    def readings(minutes: int) -> list[datetime]:
        days, rest = divmod(minutes, 24 * 60)
        naive = datetime.combine(day, time.min) + timedelta(days=days, minutes=rest)
        return [naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]

    return all(found <= at for found in readings(hours.opens)) and all(at < found for found in readings(hours.closes))


@settings(max_examples=30, deadline=None)
@given(st.lists(calendars(), min_size=1, max_size=2), MOMENTS)
def test_the_first_answer_is_what_a_scan_of_every_minute_finds(ledgers: list[Calendar], at: datetime) -> None:
    start = at.replace(second=0, microsecond=0)
    terms = Terms()
    found = plan(ledgers, at=start, value_date=None, terms=terms)
    scanned = first_open_minute(ledgers, start, minutes=6 * 24 * 60)
    if isinstance(found, Declined) or found.settles_at - start >= timedelta(days=6):
        assert scanned is None
        return
    assert scanned == (found.settles_at, found.value_date)


def first_open_minute(ledgers: Sequence[Calendar], start: datetime, *, minutes: int) -> tuple[datetime, date] | None:
    """The first minute in which all are open for one date whose bank cut-offs had not passed at `start`.

    Hours of the scan are left out fast: a minute matters only if it is one at which something opens, or the first.
    """
    for number in range(minutes):
        at = start + timedelta(minutes=number)
        if number and at.minute % 30 and not any(_opens_at(ledger, at) for ledger in ledgers):
            continue
        for day in {ledger.local_day(at) for ledger in ledgers}:
            if not all(is_open_by_the_clock_on_the_wall(ledger, day, at) for ledger in ledgers):
                continue
            cut_offs = [_bank_cut_off(ledger, day) for ledger in ledgers]
            if all(start < cut_off for cut_off in cut_offs):
                return at, day
    return None


def _opens_at(ledger: Calendar, at: datetime) -> bool:
    local = at.astimezone(ZoneInfo(ledger.time_zone))
    before = (at - timedelta(hours=1)).astimezone(ZoneInfo(ledger.time_zone))
    is_change_near = local.utcoffset() != before.utcoffset()
    return is_change_near or local.hour * 60 + local.minute == ledger.hours[0].opens


def _bank_cut_off(ledger: Calendar, day: date) -> datetime:
    naive = datetime.combine(day, time.min) + timedelta(minutes=ledger.hours[0].bank_cut_off)
    zone = ZoneInfo(ledger.time_zone)
    return min(naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))


# --- the data


def test_the_packaged_calendars_are_as_pinned_and_say_what_a_wall_calendar_says() -> None:
    found = load_calendars()
    assert sorted(found.calendars) == ["AED", "CNY", "EUR", "HKD", "THB", "USD"]
    closed = {
        ("CNY", "2026-02-17"), ("CNY", "2026-10-07"), ("HKD", "2026-04-07"), ("HKD", "2026-07-01"),
        ("THB", "2026-04-13"), ("AED", "2026-12-02"), ("USD", "2026-11-26"), ("USD", "2027-07-05"),
        ("EUR", "2026-04-03"), ("EUR", "2026-12-25"), ("EUR", "2026-11-22"), ("CNY", "2027-01-01"),
    }  # fmt: skip
    opened = {
        ("CNY", "2026-10-10"), ("USD", "2026-07-03"), ("USD", "2027-12-31"), ("EUR", "2026-12-24"),
        ("HKD", "2026-10-02"), ("AED", "2026-11-27"), ("THB", "2026-04-16"), ("CNY", "2026-02-28"),
    }  # fmt: skip
    for currency, day in closed | opened:
        session = found.calendars[currency].session(date.fromisoformat(day))
        assert (session is not None) == ((currency, day) in opened), (currency, day)


def test_a_changed_unpinned_or_missing_file_is_not_loaded(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    shutil.copytree(DIRECTORY, mine)
    digest = load_calendars(mine).sha256
    assert load_calendars(mine, sha256=digest).sha256 == digest
    with pytest.raises(CalendarInvalid, match="demand"):
        load_calendars(mine, sha256="0" * 64)
    text = (mine / "EUR.toml").read_text()
    (mine / "EUR.toml").write_text(text.replace("2026-12-26", "2026-12-27"))
    with pytest.raises(CalendarInvalid, match=r"EUR\.toml: changed"):
        load_calendars(mine)
    assert pin_calendars(mine) != digest
    load_calendars(mine)
    (mine / "EUR.toml").rename(mine / "GBP.toml")
    with pytest.raises(CalendarInvalid, match=r"EUR\.toml, GBP\.toml"):
        load_calendars(mine)
    with pytest.raises(CalendarInvalid, match="name the file after it"):
        pin_calendars(mine)
    (mine / "GBP.toml").write_text("currency = ")
    with pytest.raises(CalendarInvalid, match="no TOML"):
        pin_calendars(mine)

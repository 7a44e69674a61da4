"""Goal: a counterparty's table is read in one way or refused with its faults named; every type of break has its name.

Method: tables in several conventions against the lines that they mean; a table of faults; Hypothesis for the round
trip; the break types that ids alone do not show.
"""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.calendars import Calendar
from settlement.domain.reconciliation import BreakType, MatchRule, Rules, Severity, reconcile, severity
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.mapping import TableMapping
from settlement.domain.reconciliation.model import AgeBucket
from settlement.domain.reconciliation.session import rules_of_json, rules_to_json
from settlement.domain.statements import Direction, EntryStatus, StatementEntry
from settlement.sources import tables
from settlement.sources.tables import read_csv, read_parquet, write_csv
from settlement.usecases.reconcile import Wanted

CNY, JPY, KWD, AED = (Currency.of(code) for code in ("CNY", "JPY", "KWD", "AED"))
DAY = date(2026, 11, 2)
U = uuid.UUID("11111111-1111-4111-8111-111111111111")
B = BreakType

ENTRY = st.builds(
    StatementEntry,
    reference=st.text("abcXYZ 0-9,;\"'", min_size=1, max_size=12).map(str.strip).filter(bool),
    end_to_end_id=st.sampled_from([None, "E1", "a,b"]),
    uetr=st.sampled_from([None, U]),
    amount=st.one_of(
        st.builds(Money, st.integers(0, 10**17), st.just(CNY)),
        st.builds(Money, st.integers(0, 10**17), st.just(JPY)),
        st.builds(Money, st.integers(0, 10**17), st.just(KWD)),
    ),
    direction=st.sampled_from(Direction),
    booked_at=st.datetimes(timezones=st.just(UTC)).map(lambda at: at.replace(year=2000 + at.year % 100, day=1)),
    value_date=st.dates(date(2000, 1, 1), date(2100, 1, 1)),
    status=st.sampled_from([EntryStatus.BOOKED, EntryStatus.PENDING]),
    group_reference=st.sampled_from([None, "G"]),
    account=st.sampled_from([None, "acc_1"]),
    instructed=st.sampled_from([None, Money(5, AED)]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ENTRY, max_size=6))
def test_our_own_table_gives_every_line_back(entries: list[StatementEntry]) -> None:
    lines, problems = read_csv(write_csv(LineTable.of_entries(entries)))
    assert problems == ()
    assert lines is not None and lines.entries() == entries


def test_parquet_of_our_columns_needs_no_mapping() -> None:
    lines = LineTable.of_entries([line(1), line(2)])
    out = pa.BufferOutputStream()
    pq.write_table(lines.table, out)
    read, problems = read_parquet(out.getvalue().to_pybytes())
    assert problems == () and read is not None and read.entries() == lines.entries()
    assert read_parquet(b"PAR1 no")[1][0].refusal == "parquet-malformed"


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\r", "\x0b", "\x1f", " "])
def test_a_reference_does_not_depend_on_what_other_lines_have(blank: str) -> None:
    head = "reference,currency,amount,direction,value_date\n"
    rest = ",CNY,1.00,CRDT,2026-11-02\n"
    row = f'"R1{blank}"' + rest
    for other in ("R2", '"R 2"', "\u00fc", ""):
        lines, problems = read_csv((head + row + (other + rest if other else "")).encode())
        assert problems == () and lines is not None
        assert lines.entries()[0].reference == "R1", other


@pytest.mark.parametrize("text", ["\nE", "E\n", "\r\nE", "E\r", "\n", 'q""\n', '\n""q'])
@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_a_quoted_line_break_is_seen_wherever_its_field_stands(
    text: str, place: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, fields = '"a";"b";"c"' + (end or "\n"), ['"x"', '""', '"z"']
    plain = (head + ";".join(fields) + end).encode()
    fields[place] = f'"{text}"'
    quoted = (head + ";".join(fields) + end).encode()
    mapping = TableMapping.of_json(GERMAN)
    for size in (1, 5, 1024):
        monkeypatch.setattr(tables, "BLOCK_BYTES", size)
        assert tables._may_have_blanks(quoted, mapping)
        assert not tables._may_have_blanks(plain, mapping)


GERMAN: dict[str, Any] = {
    "columns": {"reference": "Ref", "amount": "Betrag", "value_date": "Valuta", "booked_at": "Gebucht"},
    "sign": "positive-is-credit",
    "delimiter": ";",
    "decimal": ",",
    "grouping": ".",
    "date_format": "DD.MM.YYYY",
    "zone": "Asia/Shanghai",
    "currency": "CNY",
}


def test_a_table_in_another_convention_is_read_as_it_is_meant() -> None:
    content = b"Ref;Betrag;Valuta;Gebucht\na;-1.234,50;02.11.2026;2026-11-02 09:00:00\nb;7;03.11.2026;\n"
    lines, problems = read_csv(content, TableMapping.of_json(GERMAN))
    assert problems == () and lines is not None
    first, second = lines.entries()
    assert (first.amount, first.direction, first.value_date) == (Money(123_450, CNY), Direction.DEBIT, DAY)
    assert first.booked_at == datetime(2026, 11, 2, 1, tzinfo=UTC)
    assert (second.amount, second.direction) == (Money(700, CNY), Direction.CREDIT)
    assert second.booked_at == datetime(2026, 11, 3, tzinfo=UTC)


def test_two_columns_and_minor_units() -> None:
    mapping = TableMapping.of_json(
        {
            "columns": {"reference": "r", "credit": "in", "debit": "out", "value_date": "d", "currency": "c"},
            "sign": "two-columns",
            "is_minor": True,
            "date_format": "YYYYMMDD",
        }
    )
    lines, problems = read_csv(b"r,in,out,d,c\na,5,,20261102,CNY\nb,,7,20261102,JPY\n", mapping)
    assert problems == () and lines is not None
    assert [(x.amount, x.direction) for x in lines.entries()] == [
        (Money(5, CNY), Direction.CREDIT),
        (Money(7, JPY), Direction.DEBIT),
    ]


GOOD = "reference,uetr,currency,amount,direction,value_date,status\n{}\n"


@pytest.mark.parametrize(
    ("row", "refusal"),
    [
        ("a,,CNY,1.234,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,CNY,1e3,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,CNY,-1,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,CNY,NaN,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,CNY,99999999999999999999,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,JPY,1.5,CRDT,2026-11-02,BOOK", "amount-invalid"),
        ("a,,XYZ,1,CRDT,2026-11-02,BOOK", "currency-unknown"),
        ("a,,CNY,1,up,2026-11-02,BOOK", "direction-unknown"),
        ("a,,CNY,1,CRDT,2026-02-30,BOOK", "date-invalid"),
        ("a,,CNY,1,CRDT,02.11.2026,BOOK", "date-invalid"),
        ("a,,CNY,1,CRDT,2026-11-02,MAYBE", "status-unknown"),
        ("a,nonsense,CNY,1,CRDT,2026-11-02,BOOK", "uetr-invalid"),
        (",,CNY,1,CRDT,2026-11-02,BOOK", "field-missing"),
        ("a,,CNY,1,CRDT,2026-11-02", "csv-malformed"),
        ("a" * 141 + ",,CNY,1,CRDT,2026-11-02,BOOK", "field-too-long"),
        ("a\x00,,CNY,1,CRDT,2026-11-02,BOOK", "nul-character"),
    ],
)
def test_a_line_that_does_not_fit_refuses_the_file_and_is_named(row: str, refusal: str) -> None:
    good = "z,,CNY,1.50,CRDT,2026-11-02,BOOK"
    lines, problems = read_csv(GOOD.format(f"{good}\n{row}").encode())
    assert lines is None
    assert problems[0].refusal == refusal
    assert problems[0].index in (0, 2)


def test_a_file_of_many_blocks_is_read_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [line(number, instructed=Money(5, AED) if number % 7 == 0 else None) for number in range(1, 200)]
    content = write_csv(LineTable.of_entries(entries))
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1_500)
    assert tables._csv_by_blocks(content, TableMapping()).entries() == entries
    # A text with a line break is one field, wherever a block ends.
    spread = content.replace(b'"E5"', b'"E\n5"').replace(b'"E77"', b'"E\n\n77"')
    read, problems = read_csv(spread)
    assert problems == () and read is not None
    assert [entry.end_to_end_id for entry in read.entries([4, 76])] == ["E\n5", "E\n\n77"]
    # A fault is named with its line of the whole file, and so is an instructed amount that is none.
    for right, wrong, refusal in ((b"CRDT", b"UP", "direction-unknown"), (b'"0.05"', b'"x"', "amount-invalid")):
        rows = content.split(b"\n")
        assert right in rows[189]
        rows[189] = rows[189].replace(right, wrong)
        read, problems = read_csv(b"\n".join(rows))
        assert read is None
        assert [(problem.refusal, problem.index) for problem in problems] == [(refusal, 189)]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_whatever_bytes_are_an_answer(content: bytes) -> None:
    for read in (read_csv, read_parquet):
        lines, problems = read(content)
        assert (lines is None) == bool(problems)


@pytest.mark.parametrize(
    "change",
    [
        {"columns": {"reference": "a", "amount": "a", "value_date": "d"}},
        {"columns": {"reference": "a", "value_date": "d"}},
        {"columns": {"reference": "a", "amount": "b", "value_date": "d", "colour": "e"}},
        {"columns": {"reference": "a", "amount": "b", "value_date": "d", "direction": "e"}},
        {"decimal": ".", "grouping": "."},
        {"currency": None},
        {"currency": "XYZ"},
        {"zone": "Mars/Olympus"},
        {"credit_words": ["x"], "debit_words": ["X"]},
        {"delimiter": "x"},
        {"sign": "two-columns"},
    ],
)
def test_a_mapping_that_could_be_read_in_two_ways_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        TableMapping.of_json(GERMAN | change)
    assert (
        TableMapping.of_json(TableMapping.of_json(GERMAN).to_json()).to_json() == TableMapping.of_json(GERMAN).to_json()
    )


# --- types of breaks and rules of matching beyond ids


def line(number: int, **changes: Any) -> StatementEntry:
    made = StatementEntry(
        f"R{number}",
        f"E{number}",
        uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
        Money(10_000 + number, CNY),
        Direction.CREDIT,
        datetime(2026, 11, 2, 9, tzinfo=UTC),
        DAY,
    )
    return replace(made, **changes)


BARE: dict[str, Any] = {"uetr": None, "end_to_end_id": None}


def outcome(ours: list[StatementEntry], theirs: list[StatementEntry], **rules: Any) -> list[Any]:
    found = reconcile(ours, theirs, as_of=DAY, rules=Rules(**rules), accounts=["here"])
    return [match.rule for match in found.matched] + [item.type for item in found.breaks]


def test_each_type_beyond_ids_has_its_name() -> None:
    one = line(1)
    less = replace(one, amount=Money(9_951, CNY))
    assert outcome([one], [less]) == [B.AMOUNT]
    assert outcome([one], [less], fee_minor_max=50) == [B.FEE]
    assert outcome([one], [less], fee_bps_max=50) == [B.FEE]
    assert outcome([one], [less], fee_minor_max=49) == [B.AMOUNT]
    assert outcome([one], [replace(one, amount=Money(10_051, CNY))], fee_minor_max=50) == [B.AMOUNT]
    dollars = {"instructed": Money(1_400, Currency.of("USD"))}
    assert outcome([replace(one, **dollars)], [replace(less, **dollars)]) == [B.FX_RATE]
    undone = replace(one, reference="V", direction=Direction.DEBIT)
    assert outcome([one], [one, undone]) == [MatchRule.UETR, B.REVERSED]
    assert outcome([one], [one, line(2, account="there")]) == [MatchRule.UETR, B.UNKNOWN_ACCOUNT]


def test_groups_add_up_or_are_incomplete() -> None:
    whole = line(9, **BARE, reference="BULK", amount=Money(300, CNY))
    parts = [line(n, **BARE, reference=f"P{n}", amount=Money(100, CNY), group_reference="BULK") for n in (1, 2, 3)]
    assert outcome([whole], parts) == [MatchRule.GROUP]
    assert outcome(parts, [whole]) == [MatchRule.GROUP]
    assert outcome(parts, [whole, line(5)]) == [MatchRule.GROUP, B.MISSING_HERE]
    assert outcome([whole], parts[:2]) == [B.SPLIT_INCOMPLETE]


def test_tolerances_cut_offs_and_subsets() -> None:
    one = line(1)
    assert outcome([one], [replace(one, amount=Money(10_003, CNY))], amount_minor_max=2) == [MatchRule.UETR]
    assert outcome([one], [replace(one, amount=Money(10_004, CNY))], amount_minor_max=2) == [B.AMOUNT]
    late = replace(one, booked_at=datetime(2026, 11, 2, 9, 30, tzinfo=UTC))
    theirs = replace(one, value_date=DAY + timedelta(days=1))
    assert outcome([late], [theirs]) == [B.VALUE_DATE]
    assert outcome([late], [theirs], zone="Asia/Shanghai", cut_off=time(17)) == [MatchRule.UETR]
    assert outcome([late], [theirs], zone="Asia/Shanghai", cut_off=time(18)) == [B.VALUE_DATE]
    bare = line(1, **BARE)
    near = replace(bare, reference="x", amount=Money(10_002, CNY), value_date=DAY + timedelta(days=1))
    assert outcome([bare], [near]) == [B.MISSING_THERE, B.MISSING_HERE]
    assert outcome([bare], [near], amount_minor_max=1, value_days_max=1) == [MatchRule.COMPOSITE_TOLERANCE]
    parts = [line(n, **BARE, reference=f"P{n}", amount=Money(amount, CNY)) for n, amount in ((2, 4_000), (3, 6_001))]
    assert outcome([bare], parts) == [B.MISSING_THERE, B.MISSING_HERE, B.MISSING_HERE]
    assert outcome([bare], parts, subset_lines_max=3) == [MatchRule.SUBSET]
    assert outcome(parts, [bare], subset_lines_max=3) == [MatchRule.SUBSET]
    twice = [*parts, *(replace(part, reference=f"Q{part.reference}") for part in parts)]
    assert MatchRule.SUBSET not in outcome([bare], twice, subset_lines_max=3)


@pytest.mark.parametrize(
    ("booked", "value_date", "is_met"),
    [
        # 9.30 UTC is 17.30 in Shanghai, after its cut-off: the next day's value, or the next that is open.
        ("2026-09-30", "2026-10-01", True),  # the holiday itself: it is what the clock says
        ("2026-09-30", "2026-10-08", True),  # the first day after the National Day holiday
        ("2026-09-30", "2026-10-07", False),
        ("2026-09-30", "2026-10-09", False),
        ("2026-10-09", "2026-10-10", True),  # a Saturday that is worked
        ("2026-10-09", "2026-10-12", False),
        ("2026-10-16", "2026-10-19", True),  # a Friday evening's is Monday's
        ("2026-10-16", "2026-10-20", False),
    ],
)
def test_what_is_booked_after_the_cut_off_carries_the_next_day_on_which_they_are_open(
    booked: str, value_date: str, is_met: bool
) -> None:
    calendar = Calendar.model_validate(
        {
            "currency": "CNY", "title": "test", "time_zone": "Asia/Shanghai", "home_countries": ["CN"],
            "source": "test",
            "covers_from": date(2026, 1, 1), "covers_to": date(2026, 12, 31), "working_days": [date(2026, 10, 10)],
            "days_off": [{"name": "National Day", "first": date(2026, 10, 1), "last": date(2026, 10, 7)}],
            "hours": [
                {
                    "valid_from": date(2026, 1, 1), "opens": "08:30", "closes": "17:00", "source": "test",
                    "days": ["monday", "tuesday", "wednesday", "thursday", "friday"],
                    "customer_cut_off": "17:00", "bank_cut_off": "17:00",
                }
            ],
        }
    )  # fmt: skip
    day = date.fromisoformat(booked)
    ours = replace(line(1), booked_at=datetime.combine(day, time(9, 30), tzinfo=UTC), value_date=day)
    theirs = replace(ours, value_date=date.fromisoformat(value_date))
    asked = Rules(zone="Asia/Shanghai", cut_off=time(17))
    wanted = Wanted(
        uuid.UUID(int=1), ParticipantId("AAAACNBJ"), "B", CNY, uuid.UUID(int=2), rules=asked, calendar=calendar
    )
    assert wanted.rules_and_days.value_dates_agree(ours, theirs) is is_met
    assert rules_of_json(json.loads(json.dumps(rules_to_json(wanted.rules_and_days)))) == wanted.rules_and_days
    # A request that comes again is the same request, whatever the calendar says by then.
    assert replace(wanted, calendar=None).request_sha256 == wanted.request_sha256
    own = replace(asked, days_off=frozenset({date(2026, 12, 24)}))
    assert replace(wanted, rules=own).rules_and_days == own
    assert replace(wanted, rules=Rules()).rules_and_days == Rules()


def test_severity_is_the_worse_of_value_and_age() -> None:
    assert severity(((CNY, 99_999),), AgeBucket.DAYS_0_1) is Severity.LOW
    assert severity(((CNY, 100_000),), AgeBucket.DAYS_0_1) is Severity.MEDIUM
    assert severity(((JPY, 100_000),), AgeBucket.DAYS_0_1) is Severity.CRITICAL
    assert severity((), AgeBucket.DAYS_6_30) is Severity.HIGH
    assert severity((), AgeBucket.DAYS_OVER_30) is Severity.CRITICAL

"""Goal: a statement survives the way through camt.053 unchanged, is XSD-valid, and one that lies about its sums is
found.

Method: round trips over random statements (Hypothesis), single faults in a written file, memory and time of a
large one.
"""

from __future__ import annotations

import io
import time
import tracemalloc
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from kernel.ids import ParticipantId, show_account
from kernel.money import Currency, Money
from settlement.domain.reconciliation import BreakType
from settlement.domain.statements import (
    Direction,
    EntryStatus,
    Statement,
    StatementEntry,
    StatementRefusal,
    reference_of,
    summarise,
    transfer_id_of,
)
from settlement.iso20022.camt053 import MESSAGE, StatementReadResult, read_camt053, write_camt053
from settlement.iso20022.xml_reader import schema_of

START = datetime(2026, 11, 2, tzinfo=UTC)
CURRENCIES = [Currency.of(code) for code in ("CNY", "AED", "JPY", "KWD")]
R = StatementRefusal
text35 = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Zs")), min_size=1, max_size=35)
identifiers = st.text("ABCxyz089/?:().,'+ -", min_size=1, max_size=35).filter(lambda text: text == text.strip())


@st.composite
def statements(draw: st.DrawFn) -> Statement:
    currency = draw(st.sampled_from(CURRENCIES))
    entries = draw(
        st.lists(
            st.builds(
                StatementEntry,
                reference=text35,
                end_to_end_id=st.none() | identifiers,
                uetr=st.none() | st.uuids(version=4),
                amount=st.integers(0, 10**15).map(lambda minor: Money(minor, currency)),
                direction=st.sampled_from(Direction),
                booked_at=st.datetimes(datetime(2000, 1, 1), datetime(2099, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
                value_date=st.dates(date(2000, 1, 1), date(2099, 1, 1)),
                status=st.sampled_from(EntryStatus),
                counterparty=st.none() | st.just(ParticipantId("BKAACNBJXXX")),
                counterparty_account=st.none() | st.integers(1, 2**62).map(show_account),
                instructed=st.none() | st.integers(0, 10**15).map(lambda minor: Money(minor, Currency.of("THB"))),
                is_reversal=st.booleans(),
            ),
            max_size=6,
        )
    )
    empty = Statement(
        draw(identifiers),
        draw(st.integers(1, 10**9)),
        show_account(draw(st.integers(1, 2**62))),
        currency,
        START + timedelta(days=1),
        START,
        START + timedelta(microseconds=draw(st.integers(1, 86_400_000_000))),
        draw(st.integers(-(10**15), 10**15)),
        0,
        (),
        draw(st.none() | st.just(ParticipantId("PBOCCNBJ"))),
    )
    return empty.with_entries(entries)


def statement(count: int = 3, currency: str = "CNY") -> Statement:
    money = Currency.of(currency)
    entries = [
        StatementEntry(
            reference_of(uuid.UUID(int=number)),
            f"E{number}",
            uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
            Money(100 + number, money),
            Direction.CREDIT if number % 2 else Direction.DEBIT,
            START + timedelta(seconds=number),
            START.date(),
            counterparty=ParticipantId("BKCCAEAD"),
            counterparty_account=show_account(number),
        )
        for number in range(1, count + 1)
    ]
    base = Statement("S7", 7, show_account(42), money, START, START, START + timedelta(days=1), 5, 0, ())
    return base.with_entries(entries)


def written(made: Statement, *, allow_inconsistent: bool = False) -> bytes:
    file = io.BytesIO()
    write_camt053(made, file, allow_inconsistent=allow_inconsistent)
    return file.getvalue()


def read(data: bytes, **limits: int) -> StatementReadResult:
    return read_camt053(io.BytesIO(data), **limits)


@settings(max_examples=60, deadline=None)
@given(statements())
def test_statement_round_trips_and_is_xsd_valid(made: Statement) -> None:
    data = written(made)
    schema_of(MESSAGE).assertValid(etree.fromstring(data))
    result = read(data)
    assert result.problems == ()
    assert result.findings == ()
    assert result.statement == replace(made, summary=summarise(made.entries))


@pytest.mark.parametrize(("currency", "text"), [("JPY", b"101"), ("CNY", b"1.01"), ("KWD", b"0.101")])
def test_amount_has_the_decimals_of_its_currency(currency: str, text: bytes) -> None:
    assert b'<Amt Ccy="' + currency.encode() + b'">' + text + b"</Amt>" in written(statement(1, currency))


def test_transfer_id_fits_the_reference_and_comes_back() -> None:
    transfer_id = uuid.UUID("01928d3e-0000-7000-8000-000000000001")
    assert len(reference_of(transfer_id)) == 32
    assert transfer_id_of(reference_of(transfer_id)) == transfer_id
    with pytest.raises(ValueError):
        transfer_id_of(str(transfer_id))


def test_writer_refuses_a_statement_that_does_not_add_up_unless_told() -> None:
    wrong = replace(statement(), closing_minor=0)
    with pytest.raises(ValueError, match="add up"):
        written(wrong)
    result = read(written(wrong, allow_inconsistent=True))
    assert [found.type for found in result.findings] == [BreakType.CLOSING_NOT_OPENING_PLUS_ENTRIES]
    assert result.statement is not None


def test_writer_refuses_what_the_message_cannot_carry() -> None:
    good = statement(1)
    entry = good.entries[0]
    for wrong in (
        replace(entry, uetr=uuid.UUID("01928d3e-0000-1000-8000-000000000001")),
        replace(entry, reference="x" * 36),
        replace(entry, end_to_end_id=""),
        replace(entry, amount=Money(10**18, good.currency)),
        replace(entry, amount=Money(1, Currency.of("AED"))),
        replace(entry, booked_at=datetime(2026, 1, 1)),  # noqa: DTZ001
    ):
        with pytest.raises(ValueError):
            written(good.with_entries([wrong]))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"<TtlNtries><NbOfNtries>3", b"<TtlNtries><NbOfNtries>4"),
        (b"<TtlCdtNtries><NbOfNtries>2", b"<TtlCdtNtries><NbOfNtries>1"),
        (b"<Sum>1.02</Sum>", b"<Sum>1.03</Sum>"),
    ],
)
def test_declared_totals_that_are_wrong_are_found(old: bytes, new: bytes) -> None:
    data = written(statement())
    assert old in data
    result = read(data.replace(old, new, 1))
    assert [found.type for found in result.findings] == [BreakType.ENTRY_COUNT]


@pytest.mark.parametrize(
    ("old", "new", "refusal", "index"),
    [
        (b"<Dt>2026-11-02</Dt></ValDt>", b"<Dt>2026-13-02</Dt></ValDt>", R.SCHEMA_INVALID, 3),
        (b"<Dt>2026-11-02</Dt></ValDt>", b"<Dt>2206-11-02+08:00</Dt></ValDt>", R.DATE_INVALID, 3),
        (b"00:00:03Z", b"24:00:03Z", R.SCHEMA_INVALID, 3),
        (b"<Cd>BOOK</Cd>", b"<Cd>SEEN</Cd>", R.STATUS_UNKNOWN, 3),
        (b'<Amt Ccy="CNY">1.03', b'<Amt Ccy="CNY">1.033', R.AMOUNT_INVALID, 3),
        (b'<Amt Ccy="CNY">1.03', b'<Amt Ccy="ZZZ">1.03', R.CURRENCY_UNKNOWN, 3),
        (b"<LastPgInd>true", b"<LastPgInd>false", R.PAGES_INCOMPLETE, 0),
        (b"<Cd>CLBD</Cd>", b"<Cd>CLAV</Cd>", R.FIELD_MISSING, 0),
    ],
)
def test_fault_refuses_the_whole_statement(old: bytes, new: bytes, refusal: R, index: int) -> None:  # type: ignore[valid-type]
    head, found, tail = written(statement()).rpartition(old)
    assert found
    result = read(head + new + tail)
    assert result.statement is None
    assert (result.problems[0].refusal, result.problems[0].index) == (refusal, index)


def test_second_statement_doctype_and_bounds_are_refused() -> None:
    data = written(statement())
    body = data[data.index(b"<Stmt>") : data.index(b"</BkToCstmrStmt>")].replace(b"<Stmt><Id>", b"<Stmt><Id>X", 1)
    for spoiled, limits, refusal in (
        (data.replace(b"</BkToCstmrStmt>", body + b"</BkToCstmrStmt>"), {}, R.TOO_MANY_STATEMENTS),
        (data.replace(b"<Document", b"<!DOCTYPE x><Document"), {}, R.DOCTYPE_FORBIDDEN),
        (data.replace(b"camt.053.001.08", b"camt.053.001.99"), {}, R.WRONG_NAMESPACE),
        (data, {"entries_max": 2}, R.TOO_MANY_ENTRIES),
        (data, {"bytes_max": len(data) - 1}, R.FILE_TOO_LARGE),
    ):
        result = read(spoiled, **limits)
        assert result.statement is None
        assert [problem.refusal for problem in result.problems] == [refusal]


def test_foreign_bank_style_is_understood() -> None:
    """Dates without time, AcctSvcrRef only, trailing zeros, an offset instead of Z."""
    data = written(statement(1))
    data = data.replace(b"<NtryRef>" + b"0" * 31 + b"1</NtryRef>", b"")
    data = data.replace(b"<BookgDt><DtTm>2026-11-02T00:00:01Z</DtTm>", b"<BookgDt><Dt>2026-11-02</Dt>")
    data = data.replace(b'"CNY">1.01<', b'"CNY">1.01000<')
    data = data.replace(b"<CreDtTm>2026-11-02T00:00:00Z", b"<CreDtTm>2026-11-02T08:00:00.0+08:00")
    made = read(data).statement
    assert made is not None
    assert made.created_at == START
    assert made.entries[0] == replace(statement(1).entries[0], booked_at=START)


@pytest.mark.extended
def test_large_statement_is_written_in_flat_memory_and_seconds(tmp_path: Path) -> None:
    made = statement(4_000)
    file = tmp_path / "statement.xml"
    started = time.perf_counter()
    tracemalloc.start()
    with file.open("wb") as out:
        write_camt053(made, out)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000  # the file has some 3.6 MB
    result = read_camt053(file)
    assert result.statement is not None
    assert result.statement.entries == made.entries
    assert time.perf_counter() - started < 60  # far above what it takes: catches a quadratic step only

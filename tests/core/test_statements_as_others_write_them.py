"""Goal: statements and tables as other banks really send them are read as they are meant, and typed as what they are.

Method: messages and tables written by hand, not by our writer; lines of both sides against the matches and breaks that
a person would find.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from kernel.money import Currency, Money
from settlement.domain.reconciliation import Rules, reconcile
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.mapping import TableMapping
from settlement.domain.reconciliation.model import View
from settlement.domain.reconciliation.session import Selection, run_session, selection_of_json, selection_to_json
from settlement.domain.statements import Direction, EntryStatus, StatementEntry
from settlement.sources import SourceFormat, SourceRead, read_source
from settlement.sources.tables import read_csv, read_parquet

CNY, AED = Currency.of("CNY"), Currency.of("AED")
U1, U2 = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
SHAPES = {
    "052": ("BkToCstmrAcctRpt", "Rpt"),
    "053": ("BkToCstmrStmt", "Stmt"),
    "054": ("BkToCstmrDbtCdtNtfctn", "Ntfctn"),
}


def balance(code: str, amount: str, more: str = "") -> str:
    return (
        f"<Bal><Tp><CdOrPrtry><Cd>{code}</Cd></CdOrPrtry>{more}</Tp><Amt Ccy='CNY'>{amount}</Amt>"
        "<CdtDbtInd>CRDT</CdtDbtInd><Dt><Dt>2026-11-02</Dt></Dt></Bal>"
    )


def part(kind: str, entries: str, *, name: str = "S1", account: str = "DE89", balances: str | None = None) -> str:
    said = balance("OPBD", "0") + balance("CLBD", "100.00") if balances is None else balances
    tag = SHAPES[kind][1]
    return (
        f"<{tag}><Id>{name}</Id><CreDtTm>2026-11-03T06:00:00</CreDtTm><Acct><Id><Othr><Id>{account}</Id></Othr></Id>"
        f"<Ccy>CNY</Ccy></Acct>{'' if kind == '054' else said}{entries}</{tag}>"
    )


def message(parts: str, kind: str = "053") -> bytes:
    root = SHAPES[kind][0]
    return (
        f"<Document xmlns='urn:iso:std:iso:20022:tech:xsd:camt.{kind}.001.08'><{root}><GrpHdr><MsgId>M</MsgId>"
        f"<CreDtTm>2026-11-03T06:00:00</CreDtTm></GrpHdr>{parts}</{root}></Document>"
    ).encode()


def entry(
    amount: str = "100.00",
    *,
    number: str = "<NtryRef>1</NtryRef>",
    status: str = "BOOK",
    booked: str = "<BookgDt><Dt>2026-11-02</Dt></BookgDt>",
    value: str = "<ValDt><Dt>2026-11-02</Dt></ValDt>",
    more: str = "",
    details: str = "",
    mark: str = "",
) -> str:
    return (
        f"<Ntry>{number}<Amt Ccy='CNY'>{amount}</Amt><CdtDbtInd>CRDT</CdtDbtInd>{mark}<Sts><Cd>{status}</Cd></Sts>"
        f"{booked}{value}{more}<BkTxCd><Prtry><Cd>X</Cd></Prtry></BkTxCd>{details}</Ntry>"
    )


def payment(amount: str, uetr: str, more: str = "") -> str:
    said = f"<Amt Ccy='CNY'>{amount}</Amt><CdtDbtInd>CRDT</CdtDbtInd>"
    return f"<TxDtls><Refs><UETR>{uetr}</UETR></Refs>{said}{more}</TxDtls>"


def lines(content: bytes, kind: str = "053", **how: Any) -> list[StatementEntry]:
    read = read_source(content, SourceFormat(f"camt.{kind}"), **how)
    assert read.lines is not None, read.problems
    return read.lines.entries()


def one(made: str, **how: Any) -> StatementEntry:
    (found,) = lines(message(part("053", made)), **how)
    return found


@pytest.mark.parametrize("total", ["150.00", "140.00"])
def test_an_entry_that_books_several_payments_is_read_as_them_and_must_be_their_sum(total: str) -> None:
    bulk = f"<NtryDtls><Btch><PmtInfId>P1</PmtInfId></Btch>{payment('100.00', U1)}{payment('40.00', U2)}</NtryDtls>"
    content = message(part("053", entry(total, details=bulk), balances=balance("OPBD", "0") + balance("CLBD", total)))
    read = read_source(content, SourceFormat.CAMT_053)
    assert read.lines is not None
    found = [
        (line.reference, str(line.uetr), line.amount.amount_minor, line.group_reference)
        for line in read.lines.entries()
    ]
    assert found == [("S1/1/1", U1, 10_000, "P1"), ("S1/1/2", U2, 4_000, "P1")]
    wanted = [] if total == "140.00" else [("split-incomplete", ("S1/1",), 1_000)]
    assert [(x.type.value, x.their_references, x.difference_minor) for x in read.findings] == wanted


def test_details_without_amounts_or_ids_leave_the_entry_whole() -> None:
    bare = "<NtryDtls><Btch><MsgId>B1</MsgId></Btch><TxDtls/><TxDtls/></NtryDtls>"
    assert (one(entry(details=bare)).amount, one(entry(details=bare)).group_reference) == (Money(10_000, CNY), "B1")


def test_a_number_within_the_statement_is_no_name_beyond_it() -> None:
    assert one(entry()).reference == "S1/1"
    assert one(entry(number="")).reference == "S1/1.1"
    assert one(entry(more="<AcctSvcrRef>SV9</AcctSvcrRef>")).reference == "SV9"


def test_days_are_as_written_and_moments_without_an_offset_are_the_counterpartys() -> None:
    late = one(
        entry(
            booked="<BookgDt><DtTm>2026-11-03T00:30:00</DtTm></BookgDt>",
            value="<ValDt><DtTm>2026-11-03T00:30:00+08:00</DtTm></ValDt>",
        ),
        mapping=TableMapping(zone="Asia/Shanghai"),
    )
    assert (late.value_date, late.booked_at) == (date(2026, 11, 3), datetime(2026, 11, 2, 16, 30, tzinfo=UTC))
    assert one(entry(value="<ValDt><Dt>2026-11-03+08:00</Dt></ValDt>")).value_date == date(2026, 11, 3)
    assert one(entry(value="")).value_date == date(2026, 11, 2)
    ends = one(entry(booked="<BookgDt><DtTm>2026-11-02T24:00:00Z</DtTm></BookgDt>"))
    assert ends.booked_at == datetime(2026, 11, 3, tzinfo=UTC)


def test_information_is_no_line_and_what_is_to_come_is_pending() -> None:
    more = entry(status="INFO", number="") + entry(status="FUTR", booked="", number="")
    found = lines(message(part("053", entry() + more)))
    assert [item.status for item in found] == [EntryStatus.BOOKED, EntryStatus.PENDING]


def test_an_exchange_and_a_reversal_are_seen() -> None:
    exchange = "<AmtDtls><InstdAmt><Amt Ccy='AED'>51.00</Amt></InstdAmt></AmtDtls>"
    found = one(
        entry(details=f"<NtryDtls>{payment('100.00', U1, exchange)}</NtryDtls>", mark="<RvslInd>true</RvslInd>")
    )
    assert (found.instructed, found.is_reversal) == (Money(5_100, AED), True)


def test_an_intermediate_balance_does_not_close_a_statement() -> None:
    balances = (
        balance("OPBD", "0") + balance("CLBD", "100.00") + balance("CLBD", "70.00", "<SubTp><Cd>INTM</Cd></SubTp>")
    )
    assert read_source(message(part("053", entry(), balances=balances)), SourceFormat.CAMT_053).findings == ()


def test_of_several_accounts_the_one_that_is_named_is_read_and_notifications_are_one_list() -> None:
    both = message(part("053", entry(), account="A1") + part("053", entry("7.00"), account="A2", name="S2"))
    read = read_source(both, SourceFormat.CAMT_053)
    assert (read.lines, read.problems[0].refusal) == (None, "too-many-statements")
    assert read_source(both, SourceFormat.CAMT_053, account="A9").lines is None
    (found,) = lines(both, account="A2")
    assert found.amount == Money(700, CNY)
    several = message(part("054", entry()) + part("054", entry("7.00"), name="S2"), "054")
    assert [item.reference for item in lines(several, "054")] == ["S1/1", "S2/1"]
    report = read_source(message(part("052", entry()), "052"), SourceFormat.CAMT_052)
    assert (report.account, report.currency, report.statement) == ("DE89", "CNY", None)


HEADER = (
    "<AppHdr xmlns='urn:iso:std:iso:20022:tech:xsd:head.001.001.02'><Fr><FIId><FinInstnId><BICFI>BBBBAEAD</BICFI>"
    "</FinInstnId></FIId></Fr><To><FIId><FinInstnId><BICFI>AAAACNBJ</BICFI></FinInstnId></FIId></To><BizMsgIdr>M"
    "</BizMsgIdr><MsgDefIdr>camt.053.001.{}</MsgDefIdr><CreDt>2026-11-03T06:00:00Z</CreDt></AppHdr>"
)


@pytest.mark.parametrize(
    ("before", "behind", "refusal"),
    [
        ("<?xml version='1.0'?><!-- x --><E>" + HEADER.format("08"), "</E>", None),
        ("<E>" + HEADER.format("10"), "</E>", "wrong-namespace"),
        ("<E>" + HEADER.format("08"), "<Other/></E>", "wrong-namespace"),
        ("<E>" + HEADER.format("08").replace("BBBBAEAD", "?"), "</E>", "schema-invalid"),
        ("<E>" + HEADER.format("08"), "</F>", "not-xml"),
        ("<E>", "</E>", "wrong-namespace"),
        ("<!DOCTYPE E><E>" + HEADER.format("08"), "</E>", "doctype-forbidden"),
    ],
)
def test_a_statement_may_come_in_an_envelope_with_its_header(before: str, behind: str, refusal: str | None) -> None:
    content = before.encode() + message(part("053", entry())) + behind.encode()
    read = read_source(content, SourceFormat.CAMT_053)
    assert [item.refusal for item in read.problems[:1]] == ([] if refusal is None else [refusal])
    assert (read.lines is None) is (refusal is not None)


# --- tables


def table(amount: str, *, value: str = "2026-11-02", booked: str = "", **more: Any) -> SourceRead:
    columns = {"reference": "Ref", "amount": "Amt", "value_date": "Val", "booked_at": "Bk"}
    mapping = TableMapping.of_json({"columns": columns, "sign": "positive-is-credit", "currency": "CNY", **more})
    read, problems = read_csv(f'Ref,Amt,Val,Bk\nR,"{amount}",{value},{booked}\n'.encode(), mapping)
    return SourceRead(read, problems)


@pytest.mark.parametrize(
    ("amount", "decimal", "grouping", "minor"),
    [
        ("1,234.50", ".", ",", 123_450),
        ("12,34,567.00", ".", ",", 123_456_700),
        ("1,23", ".", ",", None),  # a comma of another convention, which would be a hundredfold
        ("1.200", ",", "", None),  # a thousand, or one and two tenths
        ("1.234,50", ",", ".", 123_450),
        ("1.23", ",", ".", None),
        ("1\u202f234,50", ",", " ", 123_450),
        ("(1,234.50)", ".", ",", -123_450),
        ("1,234.50-", ".", ",", -123_450),
        ("\u22125", ".", "", -500),
        ("(-5)", ".", "", None),
    ],
)
def test_amounts_are_read_in_their_convention_or_refused(
    amount: str, decimal: str, grouping: str, minor: int | None
) -> None:
    read = table(amount, decimal=decimal, grouping=grouping)
    found = None if read.lines is None else read.lines.entries()[0].signed_minor
    assert found == minor
    assert read.problems == () if minor is not None else read.problems[0].refusal == "amount-invalid"


@pytest.mark.parametrize(
    ("form", "value", "booked", "moment"),
    [
        ("DD.MM.YYYY", "02.11.2026", "02.11.2026 09:15", "2026-11-02T01:15:00+00:00"),
        ("DD.MM.YYYY", "02.11.2026", "02.11.2026", "2026-11-02T00:00:00+00:00"),
        ("YYYY/MM/DD", "2026/11/02", "2026-11-02T09:15+04:00", "2026-11-02T05:15:00+00:00"),
        ("DD-MMM-YYYY", "02-NOV-2026", "", "2026-11-02T00:00:00+00:00"),
        ("YYYY-MM-DD", "2026-11-02T23:30:00-05:00", "", "2026-11-02T00:00:00+00:00"),
        ("DD/MM/YYYY", "02/11/2026 00:00", "31/02/2026", None),
    ],
)
def test_dates_and_booking_times_come_in_their_form(form: str, value: str, booked: str, moment: str | None) -> None:
    read = table("1", value=value, booked=booked, date_format=form, zone="Asia/Shanghai")
    if moment is None:
        assert read.problems[0].refusal == "date-invalid"
        return
    assert read.lines is not None, read.problems
    (found,) = read.lines.entries()
    assert (found.value_date, found.booked_at.isoformat()) == (date(2026, 11, 2), moment)


def test_a_spreadsheets_unicode_text_and_lines_before_the_header_are_read() -> None:
    columns = {"reference": "Ref", "amount": "Amt", "value_date": "Val", "reversal": "Rv"}
    mapping = TableMapping.of_json(
        {"columns": columns, "sign": "positive-is-credit", "currency": "CNY", "skip_lines": 1, "delimiter": "\t"}
    )
    text = 'Account\t7\n"No\nte"\tRef\tAmt\tVal\tRv\nn\tR\t-1.00\t2026-11-02\tY\n'
    read, problems = read_csv(text.encode("utf-16"), mapping)
    assert read is not None, problems
    assert (read.entries()[0].signed_minor, read.entries()[0].is_reversal) == (-100, True)
    assert read_csv(text.encode("utf-16")[:-1], mapping)[1][0].refusal == "csv-malformed"
    assert read_csv(b"x", mapping)[0] is None


def test_parquet_types_mean_the_same_in_any_convention() -> None:
    columns = {"reference": "Ref", "amount": "Amt", "value_date": "Val", "booked_at": "Bk"}
    mapping = TableMapping.of_json(
        {"columns": columns, "sign": "positive-is-credit", "currency": "CNY", "decimal": ",", "grouping": "."}
        | {"date_format": "DD.MM.YYYY", "zone": "Asia/Shanghai"}
    )
    midnight = pa.array([datetime(2026, 11, 1, 16, tzinfo=UTC)], pa.timestamp("ns", tz="UTC"))
    amounts = pa.array(["1234.5"]).cast(pa.decimal128(12, 2))
    out = pa.BufferOutputStream()
    pq.write_table(
        pa.table({"Ref": pa.array(["R"]).dictionary_encode(), "Amt": amounts, "Val": midnight, "Bk": midnight}), out
    )
    read, problems = read_parquet(out.getvalue().to_pybytes(), mapping)
    assert read is not None, problems
    (found,) = read.entries()
    assert (found.amount.amount_minor, found.value_date) == (123_450, date(2026, 11, 2))
    assert found.booked_at == datetime(2026, 11, 1, 16, tzinfo=UTC)


# --- what they are


def line(
    reference: str, minor: int, *, uetr: int = 0, end: str | None = None, debit: bool = False, **more: Any
) -> StatementEntry:
    values: dict[str, Any] = {"booked_at": datetime(2026, 11, 2, 9, tzinfo=UTC), "value_date": date(2026, 11, 2)} | more
    return StatementEntry(
        reference=reference,
        end_to_end_id=end,
        uetr=UUID(int=uetr << 80 | 4 << 76 | 2 << 62) if uetr else None,
        amount=Money(minor, CNY),
        direction=Direction.DEBIT if debit else Direction.CREDIT,
        **values,
    )


FRIDAY = {"booked_at": datetime(2026, 11, 6, 10, tzinfo=UTC), "value_date": date(2026, 11, 6)}
MONDAY = {"value_date": date(2026, 11, 9)}
CUT_OFF = Rules(zone="Asia/Shanghai", cut_off=time(17))


@pytest.mark.parametrize(
    ("ours", "theirs", "rules", "breaks"),
    [
        ([line("a", 100, uetr=1)], [line("x", 60, uetr=1), line("y", 40, uetr=1)], Rules(), []),
        ([line("a", 100, uetr=1)], [line("x", 50, uetr=1), line("y", 50, uetr=1)], Rules(), []),
        ([line("a", 60, uetr=1), line("b", 40, uetr=1)], [line("x", 100, uetr=1)], Rules(), []),
        ([line("a", 100, uetr=1)], [line("x", 60, uetr=1), line("y", 30, uetr=1)], Rules(), ["split-incomplete"]),
        ([line("a", 100, uetr=1)], [line("x", 100, uetr=1), line("y", 100, uetr=1)], Rules(), ["duplicate"]),
        (
            [line("a", 5, uetr=1), line("b", 6, uetr=2)],
            [line("x", 5, end="NONREF"), line("y", 6, end="nonref")],
            Rules(),
            [],
        ),
        ([line("a", 5, uetr=1), line("b", 5, uetr=2)], [line("x", 5, uetr=1), line("x", 5, uetr=2)], Rules(), []),
        ([line("a", 5, uetr=1)], [line("x", 5, uetr=1), line("x", 5, uetr=1, debit=True)], Rules(), ["reversed"]),
        ([], [line("x", 5, uetr=1, debit=True, is_reversal=True)], Rules(), ["reversed"]),
        (
            [line("a", 5, uetr=1)],
            [line("x", 5, uetr=1, debit=True, is_reversal=True)],
            Rules(),
            ["reversed", "missing-there"],
        ),
        (
            [line("a", 100, uetr=1, debit=True)],
            [line("x", 100, uetr=1, debit=True), line("x", 2, uetr=1, debit=True)],
            Rules(fee_minor_max=5),
            ["fee"],
        ),
        ([line("a", 5, uetr=1, **FRIDAY)], [line("x", 5, uetr=1, **MONDAY)], CUT_OFF, []),
        ([line("a", 5, uetr=1)], [line("x", 5, uetr=1, **MONDAY)], CUT_OFF, ["value-date"]),
    ],
)
def test_lines_are_typed_as_what_they_are(
    ours: list[StatementEntry], theirs: list[StatementEntry], rules: Rules, breaks: list[str]
) -> None:
    found = reconcile(ours, theirs, as_of=date(2026, 11, 9), rules=rules)
    assert sorted(item.type.value for item in found.breaks) == sorted(breaks)


@pytest.mark.parametrize("is_of_batch", [True, False])
def test_a_line_that_says_a_day_and_no_time_belongs_to_a_run_that_begins_within_it(is_of_batch: bool) -> None:
    midnight = {"booked_at": datetime(2026, 11, 2, tzinfo=UTC)}
    theirs = [
        line("x", 5, uetr=1, **midnight),
        line("y", 7, uetr=9, **midnight),  # somebody else's
        line("z", 6, **midnight),  # nobody knows whose
    ]
    ours = [line("a", 5, uetr=1), line("b", 6, uetr=2)]
    selection = Selection(booked_from=datetime(2026, 11, 2, 8, tzinfo=UTC), is_of_batch=is_of_batch)
    assert selection_of_json(selection_to_json(selection)) == selection
    found = run_session(
        LineTable.of_entries(ours),
        LineTable.of_entries(theirs),
        selection=selection,
        rules=Rules(),
        view=View.SAME_ACCOUNT,
        as_of=date(2026, 11, 2),
    )
    assert [item.type.value for item in found.breaks] == ([] if is_of_batch else ["missing-there"])
    assert found.lines_theirs == (2 if is_of_batch else 1)

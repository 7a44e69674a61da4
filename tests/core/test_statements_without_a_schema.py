"""Goal: camt.053 of the versions before .08, whose schemas are not here, is read as it is meant or refused whole.

Method: messages written by hand as .02, .04 and .06 have them; then each rule that a schema would have kept is broken,
one at a time, and the message must be refused.
"""

from __future__ import annotations

import random
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.money import Currency, Money
from settlement.domain.statements import Direction, EntryStatus
from settlement.iso20022 import camt053
from settlement.iso20022.versions import UNVALIDATED, VERSIONS
from settlement.sources import SourceFormat, SourceRead, is_validated, read_source, zip_of_pages
from tests.messages_world import spoiled

EUR = Currency.of("EUR")
UETR = "11111111-1111-4111-8111-111111111111"
V02 = """<?xml version="1.0" encoding="UTF-8"?>
<Document xmlns="urn:iso:std:iso:20022:tech:xsd:camt.053.001.02" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
 <BkToCstmrStmt>
  <GrpHdr><MsgId>MSG-1</MsgId><CreDtTm>2026-11-03T06:00:00+01:00</CreDtTm>
   <MsgPgntn><PgNb>1</PgNb><LastPgInd>true</LastPgInd></MsgPgntn></GrpHdr>
  <Stmt><Id>STMT-7</Id><ElctrncSeqNb>7</ElctrncSeqNb><CreDtTm>2026-11-03T06:00:00+01:00</CreDtTm>
   <Acct><Id><IBAN>DE89370400440532013000</IBAN></Id><Ccy>EUR</Ccy><Ownr><Nm>Trader</Nm></Ownr>
    <Svcr><FinInstnId><BIC>AAAADEFFXXX</BIC></FinInstnId></Svcr></Acct>
   <Bal><Tp><CdOrPrtry><Cd>PRCD</Cd></CdOrPrtry></Tp><Amt Ccy="EUR">100.00</Amt><CdtDbtInd>CRDT</CdtDbtInd>
    <Dt><Dt>2026-11-01</Dt></Dt></Bal>
   <Bal><Tp><CdOrPrtry><Cd>CLBD</Cd></CdOrPrtry></Tp><Amt Ccy="EUR">150.00</Amt><CdtDbtInd>CRDT</CdtDbtInd>
    <Dt><Dt>2026-11-02</Dt></Dt></Bal>
   <TxsSummry><TtlNtries><NbOfNtries>3</NbOfNtries><Sum>150.00</Sum><TtlNetNtryAmt>50.00</TtlNetNtryAmt>
    <CdtDbtInd>CRDT</CdtDbtInd></TtlNtries></TxsSummry>
   <Ntry><Amt Ccy="EUR">75.00</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts>BOOK</Sts><BookgDt><Dt>2026-11-02</Dt></BookgDt>
    <ValDt><Dt>2026-11-02</Dt></ValDt><AcctSvcrRef>REF-1</AcctSvcrRef><BkTxCd><Prtry><Cd>166</Cd></Prtry></BkTxCd>
    <NtryDtls><TxDtls><Refs><EndToEndId>E2E-1</EndToEndId></Refs>
     <AmtDtls><InstdAmt><Amt Ccy="USD">80.00</Amt></InstdAmt><TxAmt><Amt Ccy="EUR">75.00</Amt></TxAmt></AmtDtls>
     <RltdPties><Dbtr><Nm>Payer</Nm></Dbtr><DbtrAcct><Id><IBAN>FR7630006000011234567890189</IBAN></Id></DbtrAcct>
     </RltdPties><RltdAgts><DbtrAgt><FinInstnId><BIC>BBBBFRPP</BIC></FinInstnId></DbtrAgt></RltdAgts>
     <RmtInf><Ustrd>invoice 7</Ustrd></RmtInf></TxDtls></NtryDtls></Ntry>
   <Ntry><Amt Ccy="EUR">25.00</Amt><CdtDbtInd>DBIT</CdtDbtInd><RvslInd>true</RvslInd><Sts>BOOK</Sts>
    <BookgDt><DtTm>2026-11-02T10:00:00+01:00</DtTm></BookgDt><ValDt><Dt>2026-11-03</Dt></ValDt>
    <AcctSvcrRef>REF-2</AcctSvcrRef><BkTxCd/><NtryDtls><Btch><PmtInfId>BULK</PmtInfId><NbOfTxs>2</NbOfTxs></Btch>
     <TxDtls><Refs><EndToEndId>E2E-2</EndToEndId></Refs>
      <AmtDtls><TxAmt><Amt Ccy="EUR">10.00</Amt></TxAmt></AmtDtls></TxDtls>
     <TxDtls><Refs><EndToEndId>E2E-3</EndToEndId></Refs>
      <AmtDtls><TxAmt><Amt Ccy="EUR">15.00</Amt></TxAmt></AmtDtls></TxDtls></NtryDtls></Ntry>
   <Ntry><Amt Ccy="EUR">50.00</Amt><CdtDbtInd>CRDT</CdtDbtInd><Sts>PDNG</Sts><ValDt><Dt>2026-11-04</Dt></ValDt>
    <AcctSvcrRef>REF-3</AcctSvcrRef><BkTxCd/></Ntry>
  </Stmt>
 </BkToCstmrStmt>
</Document>"""
LATER = {
    "<BIC>": "<BICFI>",
    "</BIC>": "</BICFI>",
    "<AmtDtls><TxAmt><Amt Ccy=\"EUR\">10.00</Amt></TxAmt></AmtDtls>": "<Amt Ccy=\"EUR\">10.00</Amt>"
    "<CdtDbtInd>DBIT</CdtDbtInd>",
    "<AmtDtls><TxAmt><Amt Ccy=\"EUR\">15.00</Amt></TxAmt></AmtDtls>": "<Amt Ccy=\"EUR\">15.00</Amt>"
    "<CdtDbtInd>DBIT</CdtDbtInd>",
    "<TtlNetNtryAmt>50.00</TtlNetNtryAmt>\n    <CdtDbtInd>CRDT</CdtDbtInd>": "<TtlNetNtry><Amt>50.00</Amt>"
    "<CdtDbtInd>CRDT</CdtDbtInd></TtlNetNtry>",
    "<MsgPgntn><PgNb>1</PgNb><LastPgInd>true</LastPgInd></MsgPgntn>": "",
    "<Id>STMT-7</Id>": "<Id>STMT-7</Id><StmtPgntn><PgNb>1</PgNb><LastPgInd>true</LastPgInd></StmtPgntn>",
}  # fmt: skip


def as_version(number: str) -> str:
    text = V02
    for old, new in LATER.items() if number != "02" else ():
        assert old in text
        text = text.replace(old, new)
    return text.replace("camt.053.001.02", f"camt.053.001.{number}")


def read(text: str) -> SourceRead:
    return read_source(text.encode(), SourceFormat.CAMT_053)


@pytest.mark.parametrize("number", ["02", "04", "06"])
def test_a_statement_of_an_older_version_says_the_same(number: str) -> None:
    found = read(as_version(number))
    assert found.problems == ()
    statement, lines = found.statement, found.lines
    assert statement is not None and lines is not None
    assert (found.message, is_validated(found.message)) == (f"camt.053.001.{number}", False)
    assert (statement.statement_id, statement.sequence_number, statement.servicer) == ("STMT-7", 7, "AAAADEFFXXX")
    assert (statement.opening_minor, statement.closing_minor) == (10_000, 15_000)
    assert (found.account, found.currency, found.findings) == ("DE89370400440532013000", "EUR", ())
    credit, one, two, pending = lines.entries()
    assert (credit.reference, credit.end_to_end_id, credit.amount) == ("REF-1", "E2E-1", Money(7_500, EUR))
    assert (credit.direction, credit.status, credit.value_date) == (
        Direction.CREDIT,
        EntryStatus.BOOKED,
        date(2026, 11, 2),
    )
    assert (credit.counterparty, credit.counterparty_account) == ("BBBBFRPP", "FR7630006000011234567890189")
    assert credit.instructed == Money(8_000, Currency.of("USD"))
    assert [(part.end_to_end_id, part.amount.amount_minor, part.is_reversal) for part in (one, two)] == [
        ("E2E-2", 1_000, True),
        ("E2E-3", 1_500, True),
    ]
    assert one.group_reference == "BULK" and one.booked_at == datetime(2026, 11, 2, 9, tzinfo=UTC)
    assert (pending.reference, pending.status) == ("REF-3", EntryStatus.PENDING)


def test_versions_are_read_without_a_schema_or_with_one_and_never_both() -> None:
    assert not set(UNVALIDATED["camt.053"]) & set(VERSIONS["camt.053"])
    assert is_validated("camt.053.001.08") and is_validated(None) is None
    # Pages of two versions are of the older one.
    first, second = as_version("06"), as_version("04")
    first = first.replace("<LastPgInd>true", "<LastPgInd>false")
    second = second.replace("<PgNb>1", "<PgNb>2").replace("<AcctSvcrRef>REF", "<AcctSvcrRef>NEXT")
    second = second.replace(">150.00</Amt>", ">200.00</Amt>").replace(">100.00</Amt>", ">150.00</Amt>")
    found = read_source(zip_of_pages([second.encode(), first.encode()]), SourceFormat.CAMT_053_PAGES)
    assert (found.problems, found.findings, found.message) == ((), (), "camt.053.001.04")
    assert found.lines is not None and len(found.lines) == 8
    (refused,) = read(as_version("02").replace("001.02", "001.01")).problems
    assert refused.refusal == "wrong-namespace"
    assert "camt.053.001.02" in refused.reason and "camt.053.001.12" in refused.reason


def test_a_uetr_is_read_where_it_stands_and_must_be_one() -> None:
    def with_uetr(text: str) -> SourceRead:
        return read(V02.replace("<EndToEndId>E2E-1", f"<UETR>{text}</UETR><EndToEndId>E2E-1"))

    lines = with_uetr(UETR).lines
    assert lines is not None and lines.entries([0])[0].uetr == UUID(UETR)
    assert [item.refusal for item in with_uetr("no uuid").problems] == ["schema-invalid"]


SECOND = "<AcctSvcrRef>REF-1</AcctSvcrRef>"
AMOUNT = '<Amt Ccy="EUR">75.00</Amt>'


@pytest.mark.parametrize(
    ("old", "new", "place"),
    [
        (AMOUNT, AMOUNT * 2, 1),
        (AMOUNT, "", 1),
        (AMOUNT, "<Amt>75.00</Amt>", 1),
        (AMOUNT, '<Amt Ccy="EUR" x="1">75.00</Amt>', 1),
        (AMOUNT, '<Amt Ccy="EUR">-75.00</Amt>', 1),
        (AMOUNT, '<Amt Ccy="EUR">75<b/>.00</Amt>', 1),
        (AMOUNT, '<Amt xmlns="urn:x" Ccy="EUR">1.00</Amt>' + AMOUNT, 1),
        (SECOND, SECOND * 2, 1),
        (SECOND, f"<AcctSvcrRef>{'R' * 36}</AcctSvcrRef>", 1),
        ("<Sts>PDNG</Sts>", "", 3),
        ("<Sts>PDNG</Sts>", "<Sts>PDNG</Sts><Sts>BOOK</Sts>", 3),
        ("<CdtDbtInd>DBIT</CdtDbtInd><RvslInd>", "<CdtDbtInd>DEBT</CdtDbtInd><RvslInd>", 2),
        ("<RvslInd>true", "<RvslInd>yes", 2),
        ("<BookgDt><Dt>2026-11-02</Dt>", "<BookgDt><Dt>2026-11-02</Dt><DtTm>2026-11-05T00:00:00</DtTm>", 1),
        ("<NbOfNtries>3", "<NbOfNtries>three", 0),
        ("<ElctrncSeqNb>7", "<ElctrncSeqNb>-7", 0),
        ("<IBAN>DE89370400440532013000</IBAN>", "<IBAN>DE89370400440532013000</IBAN><Othr><Id>X</Id></Othr>", 0),
        ("<BIC>AAAADEFFXXX</BIC>", "<BIC>not a bic</BIC>", 0),
        ("<Dt><Dt>2026-11-02</Dt></Dt></Bal>", "</Bal>", 0),
        ("<Id>STMT-7</Id>", "", 0),
        ("<Id>STMT-7</Id>", "<Id>STMT-7</Id>and so on", 0),
        ("<LastPgInd>true</LastPgInd></MsgPgntn>", "</MsgPgntn>", 0),
        ("<RmtInf>", "<Ntry/><RmtInf>", 1),
        ("<RmtInf>", "<Stmt/><RmtInf>", 0),
        ("<GrpHdr>", "<Other/><GrpHdr>", 0),
        (" </BkToCstmrStmt>", " </BkToCstmrStmt><BkToCstmrStmt><GrpHdr/></BkToCstmrStmt>", 0),
        ("   <Ntry>", '   <Ntry x="1">', 1),
    ],
)
def test_what_a_schema_would_have_kept_out_of_what_is_read_is_refused(old: str, new: str, place: int) -> None:
    assert old in V02
    found = read(V02.replace(old, new, 1))
    assert found.lines is None
    assert [(item.refusal, item.index) for item in found.problems] == [("schema-invalid", place)], found.problems


@pytest.mark.parametrize("body", ["", "<GrpHdr><MsgId>M</MsgId></GrpHdr>", "<Stmt/>"])
def test_a_message_without_a_head_or_a_statement_is_none(body: str) -> None:
    start, end = V02.index("  <GrpHdr>"), V02.index(" </BkToCstmrStmt>")
    found = read(V02[:start] + body + V02[end:])
    assert [item.refusal for item in found.problems] == ["schema-invalid"]


def test_a_status_that_is_none_is_refused_by_name() -> None:
    assert [item.refusal for item in read(V02.replace("PDNG", "GONE")).problems] == ["status-unknown"]


@pytest.mark.parametrize("text", ["<Ustrd>{}</Ustrd>" * 3, "<Other/>"])
def test_an_entry_and_what_is_beside_the_entries_are_bounded(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema, or none: an entry is held in memory whole."""
    monkeypatch.setattr(camt053, "ENTRY_BYTES_MAX", 4_000)
    filler = text.replace("{}", "x" * 1_400)
    if text == "<Other/>":
        made, place = V02.replace("<Ownr>", filler * 600 + "<Ownr>"), 0
    else:
        made, place = V02.replace("<Ustrd>invoice 7</Ustrd>", filler), 1
    found = read(made)
    assert [(item.refusal, item.index) for item in found.problems] == [("part-too-large", place)]
    assert "4,000 bytes" in found.problems[0].reason


def test_tags_and_blanks_between_many_entries_are_nothing_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camt053, "ENTRY_BYTES_MAX", 4_000)
    start, end = V02.rindex("   <Ntry>"), V02.index("  </Stmt>")
    found = read(V02[:start] + (V02[start:end] + " " * 40) * 300 + V02[end:])
    assert found.problems == ()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["02", "04"]), st.randoms(use_true_random=False))
def test_a_spoiled_statement_is_read_or_refused(number: str, random_: random.Random) -> None:
    found = read_source(spoiled(as_version(number).encode(), random_), SourceFormat.CAMT_053)
    assert (found.lines is None) is bool(found.problems)

"""Goal: every message is valid in every version served, and what is written is read back with equal values.

Method: each writer in each version, validated against the published schema; then the reader. Values are drawn by
Hypothesis within what the messages can carry.
"""

from __future__ import annotations

import io
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.compliance import ComplianceData, PartyKind
from settlement.domain.escrow import SettlementState
from settlement.domain.instructions import Instruction, InstructionRefusal, is_lei
from settlement.domain.refusals import AbortReason, SettlementRefusal
from settlement.domain.statements import Direction, EntryStatus, Statement, StatementEntry, booked_net_minor
from settlement.domain.statuses import (
    CODE_BY_ABORT,
    CODE_BY_INSTRUCTION_REFUSAL,
    CODE_BY_REFUSAL,
    STATUS_BY_STATE,
    CancellationStatus,
    Confirmation,
    PaymentStatus,
    StatusReport,
    TransactionStatus,
    cancellation_of,
    code_of_abort,
    confirmation_of,
    texts_of,
)
from settlement.iso20022 import segments
from settlement.iso20022.camt053 import read_camt053, write_camt053
from settlement.iso20022.credit_transfer import read_chunks, read_credit_transfer
from settlement.iso20022.head001 import envelope
from settlement.iso20022.pacs002 import read_pacs002, write_pacs002
from settlement.iso20022.pacs008 import write_pacs008
from settlement.iso20022.pacs009 import write_pacs009
from settlement.iso20022.recalls import (
    Recall,
    RecallItem,
    Resolution,
    ResolvedItem,
    read_recall,
    read_resolution,
    write_recall,
    write_resolution,
)
from settlement.iso20022.small_messages import MessageRefused, read_message
from settlement.iso20022.versions import ALL, VERSIONS, kind_of
from settlement.iso20022.xml_reader import schema_of
from settlement.sources import SourceFormat, read_source

NOW = datetime(2026, 11, 2, 8, 0, 0, 123456, tzinfo=UTC)
BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEADXXX"))
CNY, AED, JPY, KWD = (Currency.of(code) for code in ("CNY", "AED", "JPY", "KWD"))
LEI = "5493001KJTIIGC8Y1R12"

references = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.,+ -]{0,33}[A-Za-z0-9])?", fullmatch=True)
short_references = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9.,+ -]{0,14}[A-Za-z0-9])?", fullmatch=True)
texts = st.from_regex(r"[A-Za-z0-9 .,()/-]{1,105}", fullmatch=True).map(str.strip).filter(bool)
uetrs = st.uuids(version=4)
names = st.text(st.sampled_from("abcXYZ 019-&<>'\"#=%@[]{}!"), min_size=1, max_size=140)
moments = st.timedeltas(timedelta(0), timedelta(days=20_000)).map(lambda since: NOW + since)


def optional(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str | None]:
    return st.none() | strategy


def valid(content: bytes, version: str) -> bytes:
    """The content, if the published schema of this version accepts its Document."""
    document = etree.fromstring(content)
    if document.tag != f"{{urn:iso:std:iso:20022:tech:xsd:{version}}}Document":
        (document,) = document.iterfind(f"{{urn:iso:std:iso:20022:tech:xsd:{version}}}Document")
    schema = schema_of(version)
    assert schema.validate(document), schema.error_log
    return content


def test_the_table_of_versions_and_the_schemas_beside_it_are_the_same() -> None:
    folder = files("settlement.iso20022").joinpath("xsd")
    assert {item.name.removesuffix(".xsd") for item in folder.iterdir() if item.name.endswith(".xsd")} == set(ALL)


# --- instructions


@st.composite
def customers(draw: st.DrawFn) -> ComplianceData:
    kind = draw(st.sampled_from(PartyKind))
    creditor_kind = draw(st.sampled_from(PartyKind))
    return ComplianceData(
        debtor_kind=kind,
        debtor_name=draw(st.just("") | names),
        debtor_country=draw(st.sampled_from(["", "CN", "AE"])),
        debtor_resident_id=draw(st.sampled_from(["", "110101199003070"])) if kind is PartyKind.PERSON else "",
        debtor_lei=draw(st.sampled_from(["", LEI])) if kind is PartyKind.ORGANISATION else "",
        creditor_kind=creditor_kind,
        creditor_name=draw(names),
        creditor_country=draw(st.sampled_from(["", "AE"])),
        creditor_lei=draw(st.sampled_from(["", LEI])) if creditor_kind is PartyKind.ORGANISATION else "",
        purpose=draw(st.sampled_from(["", "GDDS", "TRAD"])),
    )


@st.composite
def batches(draw: st.DrawFn, *, of_customers: bool) -> list[Instruction]:
    found = []
    for number, text in enumerate(draw(st.lists(short_references, min_size=1, max_size=4, unique=True)), start=1):
        amount = Money(draw(st.integers(1, 10**14)), draw(st.sampled_from([CNY, JPY, KWD])))
        counter = draw(st.none() | st.integers(1, 10**15))
        found.append(
            Instruction(
                text,
                draw(references),
                draw(uetrs.map(lambda value, n=number: uuid.UUID(int=value.int ^ n))),  # type: ignore[misc]
                BANK_A,
                BANK_B,
                amount,
                AED,
                None if counter is None else Money(counter, AED),
                draw(st.dates(date(2000, 1, 1), date(2099, 12, 31))),
                compliance=draw(customers()) if of_customers else None,
            )
        )
    return found


@pytest.mark.parametrize("version", VERSIONS["pacs.008"] + VERSIONS["pacs.009"])
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_instructions_go_out_valid_and_come_in_equal(version: str, data: st.DataObject) -> None:
    is_customers = kind_of(version) == "pacs.008"
    items = data.draw(batches(of_customers=is_customers))
    write = write_pacs008 if is_customers else write_pacs009
    content = valid(write(items, message_id="M1", created_at=NOW, version=version), version)
    read = read_credit_transfer(io.BytesIO(content))
    assert read.problems == ()
    assert (list(read.instructions), read.message, read.message_id) == (items, version, "M1")


# --- the application header


@pytest.mark.parametrize("head", VERSIONS["head.001"])
@pytest.mark.parametrize("version", ["pacs.009.001.08", "pacs.009.001.12"])
def test_an_enveloped_file_is_read_with_its_header_checked(head: str, version: str) -> None:
    item = Instruction("I1", "E1", uuid.uuid4(), BANK_A, BANK_B, Money(5, CNY), AED, None, date(2026, 11, 2))
    content = write_pacs009([item], message_id="M1", created_at=NOW, version=version)
    made = envelope(content, sender=BANK_A, receiver=BRIDGE, business_message_id="M1", created_at=NOW, version=head)
    read = read_credit_transfer(io.BytesIO(made))
    assert (read.problems, read.sender, read.receiver) == ((), BANK_A, BRIDGE)
    assert read.instructions == (item,)
    for old, new in (
        (b"<BizMsgIdr>M1<", b"<BizMsgIdr>M2<"),
        (version.encode() + b"</MsgDefIdr>", b"pacs.008.001.08</MsgDefIdr>"),
        (b"<BICFI>" + BANK_A.encode() + b"</BICFI>", b"<Nm>Bank</Nm>"),
        (b"<CreDt>2026", b"<CreDt>x026"),
        (head.encode(), b"head.001.001.09"),
        (b"</CreDt>", b"</CreDt><CpyDplct>COPY</CpyDplct>"),
        (b"</CreDt>", b"</CreDt><CpyDplct>CODU</CpyDplct>"),
    ):
        assert old in made.partition(b"<Document")[0], old
        spoiled = read_credit_transfer(io.BytesIO(made.replace(old, new, 1)))
        assert [found.refusal for found in spoiled.problems] == [InstructionRefusal.APPLICATION_HEADER_INVALID]
    again = made.replace(b"</CreDt>", b"</CreDt><CpyDplct>DUPL</CpyDplct>", 1)
    assert read_credit_transfer(io.BytesIO(again)).instructions == (item,)
    for wrong in (
        made.replace(b"</Envelope>", b"<x/></Envelope>"),
        made.replace(b"<AppHdr", b"<y/><AppHdr", 1),
        made.replace(b"</Document>", b"</Document>" + content[content.index(b"<Document") :]),
    ):
        assert read_credit_transfer(io.BytesIO(wrong)).problems


# --- pacs.002


def report() -> StatusReport:
    rejected = PaymentStatus(
        TransactionStatus.REJECTED, "I2", "E2", uuid.uuid4(), "AM04", ("leg 0: insufficient-funds", "again")
    )
    settled = PaymentStatus(TransactionStatus.COMPLETED, "I1", "E1", uuid.uuid4(), settled_on=date(2026, 11, 2))
    counts = {TransactionStatus.COMPLETED: 1, TransactionStatus.REJECTED: 1}
    return StatusReport("R1", NOW, "M1", "pacs.009.001.08", 2, counts, (settled, rejected))


@st.composite
def reports(draw: st.DrawFn) -> StatusReport:
    items = []
    for _ in range(draw(st.integers(0, 4))):
        status = draw(st.sampled_from(TransactionStatus))
        is_rejected = status is TransactionStatus.REJECTED
        items.append(
            PaymentStatus(
                status,
                draw(optional(references)),
                draw(optional(references)),
                draw(st.none() | uetrs),
                draw(st.sampled_from(sorted(set(CODE_BY_REFUSAL.values())))) if is_rejected else None,
                tuple(draw(st.lists(texts, max_size=3))) if is_rejected else (),
                draw(st.none() | st.dates(date(2000, 1, 1))) if status is TransactionStatus.COMPLETED else None,
            )
        )
    reason = draw(st.none() | st.just("FF01"))
    return StatusReport(
        draw(references),
        draw(moments),
        draw(references),
        draw(st.sampled_from(["csv", "pacs.008.001.13"])),
        draw(st.none() | st.integers(0, 10**6)),
        {status: draw(st.integers(1, 10**6)) for status in draw(st.sets(st.sampled_from(TransactionStatus)))},
        tuple(items),
        reason,
        () if reason is None else tuple(draw(st.lists(texts, max_size=2))),
    )


@pytest.mark.parametrize("version", VERSIONS["pacs.002"])
@settings(max_examples=20, deadline=None)
@given(reports())
def test_status_reports_go_out_valid_and_come_in_equal(version: str, made: StatusReport) -> None:
    assert read_pacs002(valid(write_pacs002(made, version), version)) == made


def test_a_uetr_of_version_7_is_left_out_of_a_status_report_and_kept_in_a_statement() -> None:
    item = PaymentStatus(TransactionStatus.PENDING, "I1", "E1", uuid.UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"))
    made = replace(report(), items=(item,))
    for version in VERSIONS["pacs.002"]:
        assert read_pacs002(valid(write_pacs002(made, version), version)).items == (replace(item, uetr=None),)
    entry = replace(statement().entries[0], uetr=item.uetr)
    for version in VERSIONS["camt.053"]:
        content = valid(statement_bytes(version, statement().with_entries([entry])), version)
        found = read_camt053(io.BytesIO(content)).statement
        assert found is not None and found.entries[0].uetr == item.uetr


# --- camt.052, 053, 054


def statement() -> Statement:
    entries = tuple(
        StatementEntry(
            reference=uuid.UUID(int=number).hex,
            end_to_end_id=f"E{number}",
            uetr=uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
            amount=Money(100 + number, CNY),
            direction=Direction.CREDIT if number % 2 else Direction.DEBIT,
            booked_at=NOW + timedelta(seconds=number),
            value_date=NOW.date(),
            status=EntryStatus.BOOKED,
            counterparty=BANK_B,
            counterparty_account="acc_00000000001134",
        )
        for number in range(1, 6)
    )
    net = booked_net_minor(entries)
    return Statement("S1", 7, "acc_00000000001134", CNY, NOW, NOW, NOW + timedelta(days=1), 0, net, entries, BANK_A)


def statement_bytes(version: str, made: Statement | None = None) -> bytes:
    file = io.BytesIO()
    write_camt053(statement() if made is None else made, file, version=version)
    return file.getvalue()


@pytest.mark.parametrize("version", [*VERSIONS["camt.052"], *VERSIONS["camt.053"], *VERSIONS["camt.054"]])
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 10**12), st.sampled_from(Direction), uetrs, moments, references), max_size=6),
    st.integers(-(10**12), 10**12),
)
def test_account_messages_go_out_valid_and_come_in_equal(
    version: str, lines: list[tuple[int, Direction, uuid.UUID, datetime, str]], opening: int
) -> None:
    entries = [
        StatementEntry(f"{number}", text, uetr, Money(minor, CNY), direction, at, at.date(), counterparty=BANK_B)
        for number, (minor, direction, uetr, at, text) in enumerate(lines)
    ]
    made = replace(statement(), opening_minor=0 if version.startswith("camt.054") else opening).with_entries(entries)
    content = valid(statement_bytes(version, made), version)
    found = read_camt053(io.BytesIO(content), messages=VERSIONS[kind_of(version)])
    assert found.problems == () and found.statement is not None
    assert replace(found.statement, summary=None) == made


@pytest.mark.parametrize("version", [*VERSIONS["camt.052"], *VERSIONS["camt.053"], *VERSIONS["camt.054"]])
def test_pages_are_valid_and_a_page_alone_is_not_taken_for_a_statement(version: str) -> None:
    for page, is_last in ((1, False), (2, False), (3, True)):
        content = valid(statement_bytes(version, replace(statement(), page=page, is_last_page=is_last)), version)
        found = read_camt053(io.BytesIO(content), messages=VERSIONS[kind_of(version)])
        assert [problem.refusal.value for problem in found.problems] == ["pages-incomplete"]


@pytest.mark.parametrize("version", [*VERSIONS["camt.053"], *VERSIONS["camt.054"]])
def test_account_messages_are_sources_of_a_reconciliation(version: str) -> None:
    entry = StatementEntry(
        "1", "E-1", uuid.uuid4(), Money(5, CNY), Direction.DEBIT, NOW, NOW.date(), counterparty=BANK_B
    )
    made = replace(statement(), opening_minor=0).with_entries([entry])
    found = read_source(statement_bytes(version, made), SourceFormat(version[:8]))
    assert found.problems == () and found.lines is not None and len(found.lines) == 1
    assert (found.statement is None) == version.startswith("camt.054")
    other = read_source(statement_bytes(version, made), SourceFormat("camt.054" if found.statement else "camt.053"))
    assert other.lines is None and other.problems


def test_another_kind_of_account_message_is_refused() -> None:
    assert read_camt053(io.BytesIO(statement_bytes("camt.054.001.08"))).statement is None
    for wrong in ("pacs.009.001.08", "camt.053.001.99", "x"):
        with pytest.raises(ValueError):
            statement_bytes(wrong)


# --- recalls


@st.composite
def recalls(draw: st.DrawFn) -> Recall:
    items = [
        RecallItem(
            uetr,
            draw(optional(references)),
            original := draw(optional(references)),
            None if original is None else "pacs.009.001.08",
            draw(optional(references)),
            draw(optional(references)),
            draw(optional(st.sampled_from(["DUPL", "CUST", "FRAD"]))),
        )
        for uetr in draw(st.lists(uetrs, min_size=1, max_size=4, unique=True))
    ]
    return Recall("", draw(references), BANK_A, BRIDGE, draw(moments), draw(optional(references)), tuple(items))


@pytest.mark.parametrize("version", VERSIONS["camt.056"])
@settings(max_examples=20, deadline=None)
@given(recalls())
def test_recalls_go_out_valid_and_come_in_equal(version: str, made: Recall) -> None:
    assert read_recall(valid(write_recall(made, version), version)) == replace(made, message=version)


def resolution() -> Resolution:
    items = (
        ResolvedItem(
            CancellationStatus.REJECTED, uuid.uuid4(), "C1", "M1", "pacs.009.001.08", "I1", "E1", "AGNT", ("no",)
        ),
        ResolvedItem(CancellationStatus.ACCEPTED, uuid.uuid4()),
        ResolvedItem(CancellationStatus.PENDING, None, texts=("ask again",)),
    )
    return Resolution("A1", BRIDGE, BANK_A, NOW, "CASE1", Confirmation.PENDING, items)


@pytest.mark.parametrize("version", VERSIONS["camt.029"])
@pytest.mark.parametrize("confirmation", Confirmation)
def test_resolutions_go_out_valid_and_come_in_equal(version: str, confirmation: Confirmation) -> None:
    made = replace(
        resolution(), confirmation=confirmation, case_id=None if confirmation is Confirmation.PARTLY else "X"
    )
    assert read_resolution(valid(write_resolution(made, version), version)) == made


RECALL = Recall("", "A1", BANK_A, BRIDGE, NOW, "CASE1", (RecallItem(uuid.UUID(int=4 << 76 | 2 << 62)),))


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        (b"<OrgnlUETR>00000000-0000-4000-8000-000000000000</OrgnlUETR>", b"", "UETR"),
        (b"<NbOfTxs>1", b"<NbOfTxs>2", "NbOfTxs"),
        (
            b"<TxInf>",
            b"<OrgnlGrpInfAndCxl><OrgnlMsgId>M</OrgnlMsgId><OrgnlMsgNmId>p</OrgnlMsgNmId><GrpCxl>true</GrpCxl>"
            b"</OrgnlGrpInfAndCxl><TxInf>",
            "whole file",
        ),
        (b"<BICFI>AAAACNBJ</BICFI>", b"<Nm>A bank</Nm>", "Assgnr"),
        (b"camt.056.001.08", b"camt.056.001.09", "expected one of"),
        (b"<Assgnmt>", b"<!DOCTYPE a><Assgnmt>", "document type"),
        (b"</Document>", b"", "not-xml"),
        (b"<CreDtTm>2026", b"<CreDtTm>x", "schema-invalid"),
    ],
)
def test_a_recall_that_cannot_be_read_says_why(old: bytes, new: bytes, part: str) -> None:
    content = write_recall(RECALL)
    assert old in content
    with pytest.raises(MessageRefused, match=part):
        read_recall(content.replace(old, new, 1))


def test_a_recall_names_no_payment_twice() -> None:
    with pytest.raises(MessageRefused, match="twice"):
        read_recall(write_recall(replace(RECALL, items=RECALL.items * 2)))


def test_small_messages_are_bounded() -> None:
    with pytest.raises(MessageRefused, match="more than"):
        read_message(b" " * 101, ["camt.056.001.08"], bytes_max=100)


# --- the tables


def test_the_tables_are_total() -> None:
    assert STATUS_BY_STATE.keys() == set(SettlementState)
    assert CODE_BY_ABORT.keys() == set(AbortReason)
    assert CODE_BY_INSTRUCTION_REFUSAL.keys() == set(InstructionRefusal)
    known = {found.value for found in InstructionRefusal} | {found.value for found in SettlementRefusal}
    assert CODE_BY_REFUSAL.keys() <= known
    assert all(len(code) == 4 for code in [*CODE_BY_REFUSAL.values(), *CODE_BY_ABORT.values()])
    assert code_of_abort(AbortReason.LEG_REFUSED, "leg 0: cny: insufficient-funds") == "AM04"
    assert code_of_abort(AbortReason.LEG_REFUSED, "leg 0: cny: something else") == "ED05"


@pytest.mark.parametrize("was_open", [True, False])
@pytest.mark.parametrize("state", SettlementState)
def test_a_recall_is_accepted_only_if_nothing_will_be_posted(state: SettlementState, was_open: bool) -> None:
    found = cancellation_of(state, was_open=was_open)
    assert (found is CancellationStatus.ACCEPTED) == (state in (SettlementState.CANCELLED, SettlementState.ABORTED))
    assert found is not CancellationStatus.PENDING or (
        was_open and state in (SettlementState.RECEIVED, SettlementState.PREPARED)
    )


def test_the_answer_as_a_whole() -> None:
    accepted, rejected, pending = (
        CancellationStatus.ACCEPTED,
        CancellationStatus.REJECTED,
        CancellationStatus.PENDING,
    )
    for items, expected in (
        ([accepted, accepted], Confirmation.CANCELLED),
        ([accepted, rejected], Confirmation.PARTLY),
        ([rejected], Confirmation.REJECTED),
        ([accepted, rejected, pending], Confirmation.PENDING),
    ):
        assert confirmation_of(items) is expected


@given(st.text(max_size=500))
def test_texts_are_lines_of_plain_characters(text: str) -> None:
    lines = texts_of(text)
    assert len(lines) <= 3
    assert all(0 < len(line) <= 105 and line.isascii() and line == line.strip() for line in lines)


# --- field rules


def test_lei_check_digits() -> None:
    assert is_lei(LEI)
    assert not any(is_lei(wrong) for wrong in (LEI[:-1] + "3", LEI[1:], LEI.lower(), "", "5493001KJTIIGC8Y1R1٢"))


AGENT = f"<FinInstnId><BICFI>ZZZZUS33</BICFI><LEI>{LEI}</LEI></FinInstnId>"
WRONG_LEI = LEI[:-1] + "3"


def customer_file(**changes: str) -> bytes:
    data = replace(
        ComplianceData(PartyKind.ORGANISATION, "A Trading Co", "CN", "", LEI, PartyKind.PERSON, "B Shop", "AE"),
        **changes,  # type: ignore[arg-type]
    )
    item = Instruction(
        "I1", "E1", uuid.UUID(int=4 << 76 | 2 << 62), BANK_A, BANK_B, Money(5, CNY), AED, None, NOW.date()
    )
    return write_pacs008([replace(item, compliance=data)], message_id="M1", created_at=NOW)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (LEI.encode(), LEI[:-1].encode() + b"3", "lei-invalid"),
        (b"A Trading Co", "Ä Trading Co".encode(), "character-not-allowed"),
        (b"A Trading Co", "交子".encode(), "character-not-allowed"),
        (b">SLEV<", b">CRED<", "charge-bearer-invalid"),
        (b">SLEV<", b">FREE<", "schema-invalid"),
        (b"<BICFI>AAAACNBJ</BICFI>", b"<Nm>A bank</Nm>", "field-missing"),
        (b">I1<", b">I//1<", "reference-invalid"),
        (b">I1<", b">I1/<", "reference-invalid"),
        (b"CLRG", b"COVE", "settlement-method-unsupported"),
        (b"<CtryOfRes>CN<", b"<CtryOfRes>C1<", "schema-invalid"),
        (b"<UETR>00000000-0000-4000-8000-000000000000</UETR>", b"", "field-missing"),
        (b"</SttlmInf>", f"</SttlmInf><InstgAgt>{AGENT}</InstgAgt>".replace(LEI, WRONG_LEI).encode(), "lei-invalid"),
        (b"</BICFI>", f"</BICFI><LEI>{WRONG_LEI}</LEI>".encode(), "lei-invalid"),
        (b"</ChrgBr>", f"</ChrgBr><IntrmyAgt1>{AGENT}</IntrmyAgt1>".encode(), "agent-unsupported"),
        (b"Co</Nm>", "Co</Nm><PstlAdr><TwnNm>Zürich</TwnNm></PstlAdr>".encode(), "character-not-allowed"),
        (
            b"</CdtTrfTxInf>",
            "<RmtInf><Strd><AddtlRmtInf>é</AddtlRmtInf></Strd></RmtInf></CdtTrfTxInf>".encode(),
            "character-not-allowed",
        ),
    ],
)
def test_a_customer_transfer_with_a_fault_is_refused_for_it(old: bytes, new: bytes, refusal: str) -> None:
    content = customer_file()
    assert read_credit_transfer(io.BytesIO(content)).problems == ()
    assert old in content
    found = read_credit_transfer(io.BytesIO(content.replace(old, new, 1))).problems
    assert [problem.refusal.value for problem in found] == [refusal]


def test_a_cover_payment_is_its_customers_and_not_of_the_institutions_alone() -> None:
    """Else whoever wants no screening would send the cover and never the payment."""
    item = Instruction("I1", "E1", uuid.uuid4(), BANK_A, BANK_B, Money(5, CNY), AED, None, NOW.date())
    plain = write_pacs009([item], message_id="M1", created_at=NOW)
    agents = "<DbtrAgt><FinInstnId/></DbtrAgt><CdtrAgt><FinInstnId/></CdtrAgt>"
    customers = f"<Dbtr><Nm>A Co</Nm></Dbtr>{agents}<Cdtr><Nm>B Co</Nm></Cdtr>"
    covered = f"<UndrlygCstmrCdtTrf>{customers}</UndrlygCstmrCdtTrf></CdtTrfTxInf>".encode()
    (found,) = read_credit_transfer(io.BytesIO(plain.replace(b"</CdtTrfTxInf>", covered))).instructions
    assert found.compliance is not None
    assert (found.compliance.debtor_name, found.compliance.creditor_name) == ("A Co", "B Co")
    other = b"<CdtrAgt><FinInstnId><BICFI>%s</BICFI></FinInstnId></CdtrAgt><Cdtr>"
    for bic, refusals in (("ZZZZUS33", ["agent-unsupported"]), (BANK_B[:8], []), (BANK_B, [])):
        read = read_credit_transfer(io.BytesIO(plain.replace(b"<Cdtr>", other % bic.encode())))
        assert [problem.refusal.value for problem in read.problems] == refusals


@pytest.mark.parametrize("text", ['!#$%&*=^_`{|}~";<>@[\\]', "plain (text) 'x' +1, a/b:c?"])
def test_the_cbpr_extension_is_allowed_in_names(text: str) -> None:
    read = read_credit_transfer(io.BytesIO(customer_file(debtor_name=text)))
    assert read.problems == ()
    assert read.instructions[0].compliance is not None and read.instructions[0].compliance.debtor_name == text


# --- reading from any place


@pytest.mark.parametrize("prefix", ["", "p:"])
def test_reading_goes_on_from_any_cursor_with_equal_results(prefix: str) -> None:
    items = [
        Instruction(f"I{n}", f"E{n}", uuid.uuid4(), BANK_A, BANK_B, Money(n, CNY), AED, None, NOW.date())
        for n in range(1, 13)
    ]
    content = write_pacs009(items, message_id="M1", created_at=NOW).replace(b"<CdtTrfTxInf>", b"\n<CdtTrfTxInf>")
    if prefix:
        content = content.replace(b"<", b"<p:").replace(b"<p:/", b"</p:").replace(b"<p:?", b"<?")
        content = content.replace(b"xmlns=", b"xmlns:p=")
    reader = segments.SegmentReader(
        io.BytesIO(content), messages=VERSIONS["pacs.009"], repeated="CdtTrfTxInf", bytes_max=10**6, segment_bytes=700
    )
    whole = list(reader.segments())
    assert len(whole) > 5
    assert [part.line for found in whole for part in found.parts] == list(range(3, 15))
    for number, found in enumerate(whole[:-1]):
        rest = list(reader.segments(found.after))
        assert [part.index for after in rest for part in after.parts] == [
            part.index for after in whole[number + 1 :] for part in after.parts
        ]
        assert [part.line for after in rest for part in after.parts] == [
            part.line for after in whole[number + 1 :] for part in after.parts
        ]
        assert rest[-1].is_last and rest[-1].after == whole[-1].after
    assert sum(len(chunk.lines) for chunk in read_chunks(io.BytesIO(content))) == 12

"""Goal: a batch of instructions is read whole or refused with its reasons, whatever a sender does to the file.

Method: batches made by our own writers, each spoiled in one place; XML attacks; round trips over random batches
(Hypothesis). No network, no clock, no database.
"""

from __future__ import annotations

import csv
import hashlib
import io
import time
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.instructions import (
    PROBLEMS_MAX,
    Instruction,
    InstructionRefusal,
    Priority,
    ReadResult,
)
from settlement.domain.statements import StatementRefusal
from settlement.iso20022.credit_transfer import read_credit_transfer
from settlement.iso20022.csv_batch import COLUMNS, neutral, read_csv, write_csv
from settlement.iso20022.pacs009 import write_pacs009
from settlement.iso20022.xml_reader import XmlRefusal, schema_of
from settlement.iso20022.xml_writer import document_writer

CREATED_AT = datetime(2026, 11, 2, 8, 0, tzinfo=UTC)
R = InstructionRefusal
BANKS = [ParticipantId(code) for code in ("BKAACNBJ", "BKBBCNSH", "BKCCAEAD", "BKDDAEADXXX")]
CNY, AED, JPY, KWD = (Currency.of(code) for code in ("CNY", "AED", "JPY", "KWD"))


def instruction(number: int, **changes: object) -> Instruction:
    made = Instruction(
        f"I{number}",
        f"E2E-{number}",
        uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
        BANKS[0],
        BANKS[2],
        Money(100_000 + number, CNY),
        AED,
        None,
        date(2026, 11, 2),
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["MsgId", "BizMsgIdr", "InstrId", "EndToEndId", "TxId", "OrgnlMsgId", "OrgnlInstrId"])
@pytest.mark.parametrize("text", ["", "A" * 36, "A_1", "A\u00e9", "A\n", "A;B"])
def test_no_message_of_ours_leaves_with_an_identifier_that_breaks_the_rule(name: str, text: str) -> None:
    with document_writer(io.BytesIO(), "pacs.009.001.08") as document, pytest.raises(ValueError, match=name):
        document.text(name, text)


def batch(count: int = 3) -> list[Instruction]:
    return [instruction(number) for number in range(1, count + 1)]


def xml(items: list[Instruction] | None = None) -> bytes:
    return write_pacs009(batch() if items is None else items, message_id="M1", created_at=CREATED_AT)


def read_xml(data: bytes, **limits: int) -> ReadResult:
    return read_credit_transfer(io.BytesIO(data), **limits)


def refusals(result: ReadResult) -> list[tuple[InstructionRefusal, int]]:
    assert result.instructions == () or not result.problems
    return [(problem.refusal, problem.index) for problem in result.problems]


@st.composite
def instructions(draw: st.DrawFn) -> list[Instruction]:
    shape = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9/?:().,'+ -]{0,33}[A-Za-z0-9])?", fullmatch=True)
    reference = shape.filter(lambda text: "//" not in text)
    short = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9/?:().,'+ -]{0,14}[A-Za-z0-9])?", fullmatch=True)
    ids = draw(st.lists(short.filter(lambda text: "//" not in text), min_size=1, max_size=8, unique=True))
    found = []
    for number, text in enumerate(ids, start=1):
        first, second = draw(st.permutations([CNY, AED, JPY, KWD]))[:2]
        debtor, creditor = draw(st.permutations(BANKS))[:2]
        counter = draw(st.sampled_from([None, second]))
        minor = st.integers(1, 10**18 - 1)
        found.append(
            Instruction(
                text,
                draw(reference),
                instruction(number).uetr,
                debtor,
                creditor,
                # 16 digits, so that eight of them with three decimals still fit a control sum of 18.
                Money(draw(st.integers(1, 10**13)), first),
                counter,
                Money(draw(minor), counter) if counter is not None and draw(st.booleans()) else None,
                draw(st.dates(date(2000, 1, 1), date(2099, 12, 31))),
                draw(st.sampled_from(Priority)),
            )
        )
    return found


def test_schemas_are_the_published_bytes() -> None:
    folder = files("settlement.iso20022").joinpath("xsd")
    sums = dict(reversed(line.split()) for line in folder.joinpath("SHA256SUMS").read_text().splitlines())
    present = {item.name for item in folder.iterdir() if item.name.endswith(".xsd")}
    assert sums.keys() == present
    for name in present:
        assert hashlib.sha256(folder.joinpath(name).read_bytes()).hexdigest() == sums[name]
        schema_of(name.removesuffix(".xsd"))


def test_every_xml_refusal_is_a_refusal_of_batches_and_statements() -> None:
    codes = {refusal.value: refusal.title for refusal in XmlRefusal}
    for enum in (InstructionRefusal, StatementRefusal):
        assert codes.items() <= {refusal.value: refusal.title for refusal in enum}.items()


@settings(max_examples=40, deadline=None)
@given(instructions())
def test_both_formats_round_trip(items: list[Instruction]) -> None:
    for result in (read_xml(xml(items)), read_csv(io.BytesIO(write_csv(items)))):
        assert result.problems == ()
        assert list(result.instructions) == items


def test_amounts_carry_the_decimals_of_their_currency() -> None:
    data = xml(
        [
            instruction(1, amount=Money(5, CNY)),
            instruction(2, amount=Money(1234, JPY)),
            instruction(3, amount=Money(5, KWD)),
        ]
    )
    for text in (b'"CNY">0.05<', b'"JPY">1234<', b'"KWD">0.005<', b"<CtrlSum>1234.055<"):
        assert text in data


@pytest.mark.parametrize(
    ("old", "new", "refusal", "index"),
    [
        (b">1000.02<", b">1000.023<", R.AMOUNT_TOO_MANY_DECIMALS, 2),
        (b">1000.02<", b">0.00<", R.AMOUNT_ZERO, 2),
        (b">1000.02<", b">-1<", R.SCHEMA_INVALID, 2),
        (b">1000.02<", b">NaN<", R.SCHEMA_INVALID, 2),
        (b">1000.02<", b">1e3<", R.SCHEMA_INVALID, 2),
        (b">1000.02<", b">+1000.02<", R.AMOUNT_INVALID, 2),
        (b">1000.02<", b">01000.02<", R.AMOUNT_INVALID, 2),
        (b">1000.02<", b">" + b"9" * 17 + b"<", R.AMOUNT_TOO_LARGE, 2),
        (b">1000.02<", b">1000.03<", R.CONTROL_SUM_MISMATCH, 0),
        (b"<NbOfTxs>3", b"<NbOfTxs>4", R.NUMBER_OF_TRANSACTIONS_MISMATCH, 0),
        (b"<NbOfTxs>3", b"<NbOfTxs>999999", R.TOO_MANY_INSTRUCTIONS, 0),
        (
            b"</CtrlSum>",
            b'</CtrlSum><TtlIntrBkSttlmAmt Ccy="AED">3000.06</TtlIntrBkSttlmAmt>',
            R.TOTAL_AMOUNT_MISMATCH,
            0,
        ),
        (b'Ccy="CNY">1000.02', b'Ccy="ZZZ">1000.02', R.CURRENCY_UNKNOWN, 2),
        (b'Ccy="CNY">1000.02', b'Ccy="XAU">1000.02', R.CURRENCY_UNKNOWN, 2),
        (b">I2<", b">I1<", R.DUPLICATE_INSTRUCTION_ID, 2),
        *(
            (b">M1<", f">{text}<".encode(), R.REFERENCE_INVALID, 0)
            for text in ("M_1", "M\u00e91", " M1", "M1 ", "M\n1", "=1+1", "\uff2d1", "M;1")
        ),
        *(
            (b">E2E-2<", f">{text}<".encode(), R.REFERENCE_INVALID, 2)
            for text in ("E_2", "\u00e92", " E2", "E2 ", "@E2", "E\t2")
        ),
        (b">I2<", b"> I2<", R.REFERENCE_INVALID, 2),
        (b">I2<", b">=1+1<", R.REFERENCE_INVALID, 2),
        (b">I2<", b">" + b"I" * 36 + b"<", R.SCHEMA_INVALID, 2),
        (b">I2<", b">" + b"I" * 17 + b"<", R.REFERENCE_INVALID, 2),
        (b">I2<", b">I2/<", R.REFERENCE_INVALID, 2),
        (b">E2E-2</EndToEndId>", b">E2E-2</EndToEndId><TxId>T_2</TxId>", R.REFERENCE_INVALID, 2),
        (b">E2E-2</EndToEndId>", b">E2E-2</EndToEndId><TxId> T2</TxId>", R.REFERENCE_INVALID, 2),
        (b"</UETR></PmtId>", b"</UETR><ClrSysRef>=C1</ClrSysRef></PmtId>", R.REFERENCE_INVALID, 1),
        (b"<InstrId>I2</InstrId>", b"", R.FIELD_MISSING, 2),
        (str(instruction(2).uetr).encode(), str(instruction(1).uetr).encode(), R.DUPLICATE_UETR, 2),
        (str(instruction(2).uetr).encode(), b"019abcde-0000-7000-8000-000000000000", R.SCHEMA_INVALID, 2),
    ],
)
def test_pacs009_fault_is_refused_at_its_place(old: bytes, new: bytes, refusal: InstructionRefusal, index: int) -> None:
    data = xml()
    assert old in data
    assert refusals(read_xml(data.replace(old, new, 1)))[0] == (refusal, index)


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        (b"2026-11-02</IntrBkSttlmDt>", b"2026-02-30</IntrBkSttlmDt>", R.SCHEMA_INVALID),
        (b"2026-11-02</IntrBkSttlmDt>", b"2026-11-02Z</IntrBkSttlmDt>", R.VALUE_DATE_INVALID),
        (b"BKCCAEAD", b"BKAACNBJ", R.PARTICIPANTS_MUST_DIFFER),
        (b"<BICFI>BKCCAEAD</BICFI>", b"<Nm>A bank</Nm>", R.FIELD_MISSING),
        (b"/PVP/AED", b"/PVP/aed", R.COUNTER_TERMS_INVALID),
        (b"/PVP/AED", b"/PVP/CNY", R.COUNTER_CURRENCY_SAME),
        (b"/PVP/AED", b"/PVP/ZZZ", R.CURRENCY_UNKNOWN),
        (b"/PVP/AED", b"/PVP/AED/0.001", R.AMOUNT_TOO_MANY_DECIMALS),
    ],
)
def test_pacs009_fault_in_the_last_transaction_accepts_nothing(
    old: bytes, new: bytes, refusal: InstructionRefusal
) -> None:
    head, _, tail = xml(batch(500)).rpartition(old)
    assert refusals(read_xml(head + new + tail)) == [(refusal, 500)]


def test_what_banks_write_around_a_value_is_no_part_of_it() -> None:
    """Comments, instructions to processors and CDATA, references to characters: the text is what a parser sees."""
    for number, written in enumerate((b"I<!-- x -->2", b"I<?x y?>2", b"<![CDATA[I2]]>", b"I&#50;", b"<![CDATA[I]]>2")):
        found = read_xml(xml().replace(b">I2<", b">" + written + b"<").replace(b"1000.02", b"10<!---->00.02"))
        assert list(found.instructions) == batch(), number


def test_a_schema_reason_quotes_the_pattern_as_it_is() -> None:
    (problem,) = read_xml(xml(batch(1)).replace(b"-4000-8000-", b"-7000-8000-")).problems
    assert "[a-f0-9]{8}-[a-f0-9]{4}" in problem.reason and "urn:" not in problem.reason


def test_other_texts_for_the_next_agent_are_let_be() -> None:
    data = xml(batch(1)).replace(b"/PVP/AED", b"/ACC/say hello")
    assert read_xml(data).instructions[0].counter_currency is None


def test_value_date_may_stand_in_the_group_header() -> None:
    data = xml(batch(1)).replace(b"<IntrBkSttlmDt>2026-11-02</IntrBkSttlmDt>", b"")
    assert refusals(read_xml(data)) == [(R.FIELD_MISSING, 1)]
    data = data.replace(b"</CtrlSum>", b"</CtrlSum><IntrBkSttlmDt>2026-11-03</IntrBkSttlmDt>")
    assert read_xml(data).instructions[0].value_date == date(2026, 11, 3)


DECLARATION = b"<?xml version='1.0' encoding='utf-8'?>"
BOMB = b'<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", R.NOT_XML),
        (b"not xml", R.NOT_XML),
        (xml()[:-20], R.NOT_XML),
        (xml() + b"<x/>", R.NOT_XML),
        (xml().replace(DECLARATION, DECLARATION + BOMB), R.DOCTYPE_FORBIDDEN),
        (
            xml().replace(DECLARATION, DECLARATION + b'<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/hostname">]>'),
            R.DOCTYPE_FORBIDDEN,
        ),
        (
            xml().replace(DECLARATION, DECLARATION + b'<!doctype x SYSTEM "http://127.0.0.1:9/x.dtd">'),
            R.DOCTYPE_FORBIDDEN,
        ),
        (xml().replace(DECLARATION, b"<!--" + b"x" * 65_525 + b"--><!DOCTYPE x>"), R.DOCTYPE_FORBIDDEN),
        ((BOMB + b"<x/>").decode().encode("utf-16"), R.ENCODING_NOT_UTF8),
        ((BOMB + b"<x/>").decode().encode("utf-16-be"), R.ENCODING_NOT_UTF8),
        ((BOMB + b"<x/>").decode().encode("utf-32"), R.ENCODING_NOT_UTF8),
        (b'<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-DOCTYPE x+AD4-<x/>', R.ENCODING_NOT_UTF8),
        (xml().replace(b"E2E-1", b"E2E-\xff"), R.NOT_XML),
        (xml().replace(b"E2E-1", b"E2E-\x00"), R.NOT_XML),
        (xml().replace(b"E2E-1", b"&undeclared;"), R.NOT_XML),
        (xml().replace(b"pacs.009.001.08", b"pacs.009.001.99"), R.WRONG_NAMESPACE),
        (xml().replace(b' xmlns="urn:iso:std:iso:20022:tech:xsd:pacs.009.001.08"', b""), R.WRONG_NAMESPACE),
        (b"<a>" * 5_000 + b"</a>" * 5_000, R.WRONG_NAMESPACE),
        (xml().replace(b"<FICdtTrf>", b"<FICdtTrf>" + b"<a>" * 400 + b"</a>" * 400), R.NOT_XML),
        (xml().replace(b"E2E-1", b"x" * 11_000_000), R.PART_TOO_LARGE),
        (xml().replace(b"<FICdtTrf>", b"<FICdtTrf>" + b"<a/>" * 100_000), R.SCHEMA_INVALID),
    ],
)
def test_hostile_or_broken_xml_is_refused(data: bytes, refusal: InstructionRefusal) -> None:
    result = read_xml(data)
    assert result.instructions == ()
    assert refusal in {problem.refusal for problem in result.problems}
    assert len(result.problems) <= PROBLEMS_MAX
    assert all(len(problem.reason) <= 300 for problem in result.problems)


def test_mark_split_across_chunks_is_seen() -> None:
    for shift in range(12):
        data = DECLARATION + b" " * (65_536 - len(DECLARATION) - shift) + BOMB + b"<x/>"
        assert {problem.refusal for problem in read_xml(data).problems} & {R.DOCTYPE_FORBIDDEN, R.NOT_XML}
        late = xml(batch(200))
        cut = late[: 65_536 - shift] + b"<!DOCTYPE x>" + late[65_536 - shift :]
        assert (R.DOCTYPE_FORBIDDEN, 0) in refusals(read_xml(cut))


def test_bounds_on_bytes_and_instructions_hold_in_both_formats(tmp_path: Path) -> None:
    for data, read in ((xml(), read_credit_transfer), (write_csv(batch()), read_csv)):
        file = tmp_path / "batch"
        file.write_bytes(data)
        assert len(read(file).instructions) == 3
        assert len(read(file, bytes_max=len(data), instructions_max=3).instructions) == 3
        assert refusals(read(file, bytes_max=len(data) - 1)) == [(R.FILE_TOO_LARGE, 0)]
        assert refusals(read(file, instructions_max=2))[0] == (R.TOO_MANY_INSTRUCTIONS, 0)
    understated = xml().replace(b"<NbOfTxs>3", b"<NbOfTxs>2")
    assert refusals(read_xml(understated, instructions_max=2)) == [(R.TOO_MANY_INSTRUCTIONS, 0)]


def test_all_problems_are_collected_up_to_the_bound() -> None:
    bad = [instruction(number, creditor=BANKS[0]) for number in range(1, 301)]
    for result in (read_xml(xml(bad)), read_csv(io.BytesIO(write_csv(bad)))):
        assert len(result.problems) == PROBLEMS_MAX
        assert result.problems_truncated
        assert [problem.index for problem in result.problems] == list(range(1, PROBLEMS_MAX + 1))


def test_schema_error_names_transaction_and_line() -> None:
    data = xml(batch(300)).replace(b"<CdtTrfTxInf>", b"\n<CdtTrfTxInf>")
    bad = data.replace(b">1001.77<", b">x<").replace(b">1002.50<", b">y<")
    result = read_xml(bad)
    assert {(problem.index, problem.line) for problem in result.problems} == {(177, 179), (250, 252)}


@pytest.mark.parametrize(
    ("old", "new", "refusal"),
    [
        ("creditor,", "", R.CSV_COLUMN_MISSING),
        ("creditor,", "creditor,creditor,", R.CSV_COLUMN_DUPLICATE),
        ("creditor,", "creditor,colour,", R.CSV_COLUMN_UNKNOWN),
        ("creditor,", "Creditor,", R.CSV_COLUMN_UNKNOWN),
        ("I2,", "=HYPERLINK(1),", R.FORMULA_TEXT),
        ("I2,", "+I2,", R.FORMULA_TEXT),
        ("I2,", "@I2,", R.FORMULA_TEXT),
        ("I2,", "I2,,", R.CSV_MALFORMED),
        ("I2,", '"I2,', R.CSV_MALFORMED),
        ("I2,", '"I2"x,', R.CSV_MALFORMED),
        ("I2,", '"I\n2",', R.CSV_MALFORMED),
        ("I2,", "I\x002,", R.NUL_CHARACTER),
        ("I2,", "I1,", R.DUPLICATE_INSTRUCTION_ID),
        ("I2,", ",", R.FIELD_MISSING),
        ("I2,", "I" * 17 + ",", R.REFERENCE_INVALID),
        ("I2,", "X" * 200 + ",", R.FIELD_TOO_LONG),
        ("I2,", "X" * 5000 + ",", R.FIELD_TOO_LONG),
        ("1000.02", "-1000.02", R.FORMULA_TEXT),
        ("1000.02", "1e3", R.AMOUNT_INVALID),
        ("1000.02", "NaN", R.AMOUNT_INVALID),
        ("1000.02", '"1,000.02"', R.AMOUNT_INVALID),
        ("1000.02", "١٠٠٠", R.AMOUNT_INVALID),
        ("1000.02", "9" * 41, R.AMOUNT_TOO_LARGE),
        ("1000.02", "1000.020", R.AMOUNT_TOO_MANY_DECIMALS),
        ("NORM", "norm", R.PRIORITY_UNKNOWN),
        ("2026-11-02", "20261102", R.VALUE_DATE_INVALID),
        ("2026-11-02", "2026-02-30", R.VALUE_DATE_INVALID),
        ("BKAACNBJ", "bkaacnbj", R.PARTICIPANT_INVALID),
        (str(instruction(2).uetr), str(instruction(2).uetr).upper() + "F", R.UETR_INVALID),
    ],
)
def test_csv_fault_is_refused(old: str, new: str, refusal: InstructionRefusal) -> None:
    text = write_csv(batch()).decode()
    assert old in text
    result = read_csv(io.BytesIO(text.replace(old, new, 1).encode()))
    assert result.instructions == ()
    assert result.problems[0].refusal is refusal


def test_csv_line_that_is_too_long_is_named_with_the_bound() -> None:
    head, *rows = write_csv(batch()).splitlines(keepends=True)
    for number, lines in ((3, [head, rows[0], b"I2" + b"X" * 2_048 + rows[1], *rows[2:]]), (1, [b"x" * 2_049, *rows])):
        (problem,) = read_csv(io.BytesIO(b"".join(lines))).problems
        assert (problem.refusal, problem.line) == (R.FIELD_TOO_LONG, number)
        assert problem.reason == f"line {number} has more than 2,048 bytes"


def test_csv_takes_any_column_order_and_a_byte_order_mark_and_lf() -> None:
    rows = list(csv.reader(io.StringIO(write_csv(batch()).decode(), newline="")))
    text = "\n".join(",".join(reversed(row)) for row in rows)
    assert list(read_csv(io.BytesIO(b"\xef\xbb\xbf" + text.encode())).instructions) == batch()


def test_csv_without_optional_columns_or_without_lines() -> None:
    rows = list(csv.reader(io.StringIO(write_csv(batch()).decode(), newline="")))
    text = "\r\n".join(",".join(row[: len(COLUMNS) - 2]) for row in rows)
    assert list(read_csv(io.BytesIO(text.encode())).instructions) == batch()
    assert refusals(read_csv(io.BytesIO(",".join(COLUMNS).encode()))) == [(R.NO_INSTRUCTIONS, 0)]
    assert refusals(read_csv(io.BytesIO(b""))) == [(R.NO_INSTRUCTIONS, 0)]
    assert refusals(read_csv(io.BytesIO("id".encode("utf-16"))))[0][0] in {R.NUL_CHARACTER, R.ENCODING_NOT_UTF8}


def test_formula_is_neutral_in_written_csv_and_never_read_back_as_another_id() -> None:
    for start in "=+-@\t\r":
        assert neutral(f"{start}1+1") == f"'{start}1+1"
    result = read_csv(io.BytesIO(write_csv([instruction(1, instruction_id="=1+1")])))
    assert refusals(result) == [(R.REFERENCE_INVALID, 1)]


def test_writer_refuses_what_the_message_cannot_carry() -> None:
    for wrong in (
        instruction(1, instruction_id="I" * 36),
        instruction(1, instruction_id=""),
        instruction(1, instruction_id="I\x00"),
        instruction(1, amount=Money(10**18, CNY)),
        instruction(1, counter_currency=None, counter_amount=Money(1, AED)),
    ):
        with pytest.raises(ValueError):
            xml([wrong])
    with pytest.raises(ValueError):
        xml([])


@pytest.mark.extended
def test_ten_thousand_instructions_are_read_in_seconds() -> None:
    items = batch(10_000)
    started = time.perf_counter()
    assert len(read_xml(xml(items)).instructions) == 10_000
    assert len(read_csv(io.BytesIO(write_csv(items))).instructions) == 10_000
    assert time.perf_counter() - started < 30  # far above what it takes (under 2 s): catches a quadratic step only


@pytest.mark.parametrize("extra", [b"<a>" * 400 + b"</a>" * 400, b"<a>" + b"x" * 11_000_000 + b"</a>"])
@pytest.mark.parametrize("last", [True, False])
def test_parser_limit_hit_where_the_schema_allows_anything_accepts_nothing(extra: bytes, last: bool) -> None:
    """SplmtryData/Envlp takes any element, so only the parser's own limits stand there."""
    wrapped = b"<SplmtryData><Envlp>" + extra + b"</Envlp></SplmtryData></CdtTrfTxInf>"
    head, _, tail = xml().rpartition(b"</CdtTrfTxInf>") if last else xml().partition(b"</CdtTrfTxInf>")
    result = read_xml(head + wrapped + tail)
    assert result.instructions == ()
    assert result.problems
    harmless = b"<SplmtryData><Envlp><a>x</a></Envlp></SplmtryData></CdtTrfTxInf>"
    assert read_xml(head + harmless + tail).problems == ()


@pytest.mark.parametrize("missing", [1, 5, 20, 40])
def test_truncated_file_is_refused_although_all_transactions_are_there(missing: int) -> None:
    data = xml()[:-missing]
    result = read_xml(data)
    assert result.instructions == ()
    assert result.problems[0].refusal is R.NOT_XML

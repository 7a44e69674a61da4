"""Goal: a payroll file is read exactly as documented, line by line, and nothing written of it is a formula.
Method: tables of files, good and bad; Hypothesis writes with Python's csv and reads with ours, in pieces of any size;
arbitrary bytes never raise anything but FileUnreadable.
"""

from __future__ import annotations

import csv
import io
from datetime import date
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.money import Currency
from wallet.domain import bulk
from wallet.domain.bulk import (
    BadLine,
    FileUnreadable,
    LineResult,
    Payer,
    PayrollLine,
    check_lines,
    csv_cell,
    line_transfer_id,
    read_payroll,
    result_lines,
)
from wallet.domain.limits import Caps, Usage

CNY = Currency.of("CNY")
HEADER = b"line_id,payee,amount,description\r\n"
FILE = UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28")


def read(content: bytes) -> list[PayrollLine | BadLine]:
    return list(read_payroll([content], CNY))


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"a1,acc_00000000001746,12.50,June\r\n",
        b"\xef\xbb\xbf" + HEADER + b"a1,acc_00000000001746,12.50,June\r\n",
        HEADER.replace(b"\r", b"") + b"a1,acc_00000000001746,12.5,June\n",
        HEADER + b'"a1","acc_00000000001746","12.50","June"',
    ],
    ids=["crlf", "byte-order-mark", "lf-and-one-digit", "all-quoted-no-last-end"],
)
def test_same_line_in_every_allowed_spelling(content: bytes) -> None:
    assert read(content) == [PayrollLine(2, "a1", "acc_00000000001746", 1250, "June")]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a1,p,12.505,x", "amount"),
        (b"a1,p,-1,x", "amount"),
        (b"a1,p,1e3,x", "amount"),
        (b'a1,p,"1,000.00",x', "amount"),
        (b"a1,p,0,x", "above zero"),
        (b"a1,p,92233720368547758.08,x", "amount"),
        ("a1,p,１２,x".encode(), "amount"),
        (b"a1,p,1", "3 fields"),
        (b"a1,p,1,x,y", "5 fields"),
        (b"", "1 fields"),
        (b"=1+1,p,1,x", "line_id"),
        (b" a1,p,1,x", "line_id"),
        (b"a1,,1,x", "payee"),
        (b'a1,p,1,un"quoted', "quotation"),
        (b'a1,p,1,"open', "quotation"),
        (b'a1,p,1,"closed" ', "quotation"),
        (b"a1,p,1,\x00", "control"),
        (b"a1,p,1,a\rb", "control"),
        (b'a1,p,1,"a\tb"', "control"),
        ("a1,p,1,\u202e7102 enuJ".encode(), "direction"),
        ("a1,\u2066acc_1\u2069,1,x".encode(), "direction"),
        (b"a1,p,1,\xff", "UTF-8"),
        (b"line_id,payee,amount,description", "amount"),
        (b"\xef\xbb\xbfa1,p,1,x", "line_id"),
        (b"a1,p,1,\xed\xa0\x80", "UTF-8"),
        (b"a1,p,1," + b"x" * 141, "140"),
    ],
)
def test_bad_line_is_named_and_the_others_are_read(line: bytes, reason: str) -> None:
    found = read(HEADER + line + b"\r\nb2,p,1,\r\n")
    assert isinstance(found[0], BadLine)
    assert reason in found[0].reason
    assert found[1] == PayrollLine(3, "b2", "p", 100, "")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER,
        b"payee,line_id,amount,description\r\na,b,1,c\r\n",
        b"line_id,payee,amount\r\na,b,1\r\n",
        b"\xff\xfe" + HEADER,
        HEADER + b"x" * 3000 + b"\r\n",
        HEADER + b"x" * 3000,
        HEADER + b"".join(b"l%d,p,1,\n" % number for number in range(bulk.LINES_MAX + 1)),
    ],
    ids=["empty", "no-lines", "order", "missing-column", "utf-16", "long-line", "long-last-line", "too-many"],
)
def test_file_that_is_no_payroll_is_refused_whole(content: bytes) -> None:
    with pytest.raises(FileUnreadable):
        read(content)


def test_too_large_file_is_refused_before_it_is_read() -> None:
    taken = []

    def endless() -> object:
        yield HEADER
        while True:
            taken.append(1)
            yield (b"a,p,1,x\n" * 128)

    with pytest.raises(FileUnreadable):
        list(read_payroll(endless(), CNY))  # type: ignore[arg-type]
    assert len(taken) * 1024 <= bulk.FILE_BYTES_MAX + 1024


def test_repeated_line_id_is_found_wherever_it_is() -> None:
    found = read(HEADER + b"a,p,1,\nb,p,1,\na,p,2,\n")
    assert found[2] == BadLine(4, "a", "the line id was used above", is_repeated=True)


TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=100)
LINES = st.lists(
    st.tuples(
        st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,20}", fullmatch=True),
        TEXT.filter(bool),
        st.integers(1, 10**14),
        TEXT,
    ),
    min_size=1,
    max_size=20,
    unique_by=lambda line: line[0],
)


@given(LINES, st.integers(1, 64), st.booleans())
def test_whatever_a_csv_writer_writes_is_read_back_in_pieces_of_any_size(
    lines: list[tuple[str, str, int, str]], piece: int, quotes_all: bool
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL)
    writer.writerow(bulk.HEADER)
    writer.writerows((name, payee, f"{fen // 100}.{fen % 100:02}", text) for name, payee, fen, text in lines)
    content = out.getvalue().encode()
    chunks = [content[start : start + piece] for start in range(0, len(content), piece)]
    assert list(read_payroll(chunks, CNY)) == [
        PayrollLine(number, name, payee, fen, text) for number, (name, payee, fen, text) in enumerate(lines, 2)
    ]


@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_a_payroll_or_refused(content: bytes) -> None:
    for prefix in (b"", HEADER):
        try:
            read(prefix + content)
        except FileUnreadable:
            continue


@given(st.text(max_size=60))
def test_no_cell_of_a_result_is_a_formula_and_it_reads_back(text: str) -> None:
    line = next(csv.reader([f"{csv_cell(text)},end"], strict=True))
    assert len(line) == 2
    assert line[0][:1] not in tuple("=+-@\t\r\n＝＋－＠")
    harmless = all(character.isprintable() for character in text)
    if harmless and text[:1] not in tuple("=+-@＝＋－＠"):
        assert line[0] == text


def test_result_file_has_the_documented_header() -> None:
    item = LineResult("a", "acc_00000000001746", 5, "=cmd()", "refused", "payee-unknown", "", "trf_x", None)
    assert list(result_lines([item], CNY)) == [
        "line_id,payee,amount,description,state,refusal,detail,payment,booked_at\r\n",
        'a,acc_00000000001746,0.05,"\'=cmd()",refused,payee-unknown,,trf_x,\r\n',
    ]


def test_I7_transfer_id_of_a_line_is_the_same_every_time_and_no_other_lines() -> None:
    first = line_transfer_id(FILE, "a")
    assert first == line_transfer_id(FILE, "a")
    assert first.version == 7
    assert len({first, line_transfer_id(FILE, "b"), line_transfer_id(UUID(int=FILE.int + 1), "a")}) == 3


DRY = """
# amounts     | single day year available | outcomes
  10 20 30    | -      -   -    60        | - - -
  10 20 31    | -      -   -    60        | - - insufficient-funds
  10 90 20    | -      -   -    60        | - insufficient-funds -
  10 51 20    | 50     -   -    600       | - single-limit-exceeded -
  40 40 20    | -      60  -    600       | - day-limit-exceeded -
  40 40 21    | -      60  -    600       | - day-limit-exceeded day-limit-exceeded
  40 40       | -      -   79   600       | - year-limit-exceeded
"""


@pytest.mark.parametrize("row", [row for row in DRY.splitlines() if row.strip() and not row.startswith("#")])
def test_dry_run_says_what_would_become_of_each_line_in_order(row: str) -> None:
    amounts, held, outcomes = (part.split() for part in row.split("|"))
    single, day, year, available = (None if cap == "-" else int(cap) for cap in held)
    today = date(2026, 6, 15)
    payer = Payer(1, Caps(None, single, day, year), Usage(today), available or 0)
    lines = [PayrollLine(number, str(number), "p", int(amount), "") for number, amount in enumerate(amounts)]
    checked = list(check_lines(lines, accounts={"p": 2}, payer=payer, today=today))
    assert [line.refusal or "-" for line in checked] == outcomes


def test_dry_run_refuses_unknown_payees_and_oneself() -> None:
    payer = Payer(1, Caps(), Usage(date(2026, 6, 15)), 100)
    lines = [PayrollLine(2, "a", "nobody", 1, ""), PayrollLine(3, "b", "me", 1, "")]
    checked = list(check_lines(lines, accounts={"me": 1}, payer=payer, today=date(2026, 6, 15)))
    assert [line.refusal for line in checked] == ["payee-unknown", "accounts-must-differ"]

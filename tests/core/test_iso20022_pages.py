"""Goal: a statement is read as the camt.053 schemas permit it, and booked once: without a number or a period, with the
previous closing balance for an opening one, and in pages, of one message or of several, in any order.

Method: statements of our own writer, cut and joined by plain text; a table of page sets that are no statement.
"""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from settlement.domain.reconciliation import BreakType
from settlement.domain.statements import Statement
from settlement.iso20022.camt053 import read_camt053, read_pages
from settlement.iso20022.versions import VERSIONS
from settlement.sources import PAGES_MAX, SourceFormat, read_source, zip_of_pages
from tests.core.test_iso20022_statements import statement, written

WHOLE = statement(6)


def page(number: int, *, first: int, end: int, is_last: bool = False, **changes: object) -> bytes:
    """Entries `first` to `end` of WHOLE as one page, with its own balances."""
    before = replace(WHOLE, closing_minor=0).with_entries(WHOLE.entries[:first]).closing_minor
    made = replace(WHOLE, page=number, is_last_page=is_last, opening_minor=before, **changes)  # type: ignore[arg-type]
    return written(made.with_entries(WHOLE.entries[first:end]))


THREE = (page(1, first=0, end=2), page(2, first=2, end=4), page(3, first=4, end=6, is_last=True))


def read_all(pages: Sequence[bytes]) -> Statement | str:
    """The statement, or the refusal; the zip of the pages says the same."""
    result = read_pages([io.BytesIO(content) for content in pages])
    zipped = read_source(zip_of_pages(pages), SourceFormat.CAMT_053_PAGES)
    assert zipped.statement == result.statement
    assert [x.refusal for x in zipped.problems] == [x.refusal.value for x in result.problems]
    return result.statement if result.statement is not None else result.problems[0].refusal.value


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0, 1, 1)])
def test_pages_in_any_order_and_sent_again_are_the_statement_once(order: Sequence[int]) -> None:
    found = read_all([THREE[place] for place in order])
    assert isinstance(found, Statement)
    assert (found.entries, found.opening_minor, found.closing_minor) == (
        WHOLE.entries, WHOLE.opening_minor, WHOLE.closing_minor,
    )  # fmt: skip
    assert found.sequence_number == WHOLE.sequence_number and found.summary is None


def test_a_page_that_lacks_a_line_is_found_by_the_balances() -> None:
    short = page(2, first=2, end=3)
    found = read_pages([io.BytesIO(content) for content in (THREE[0], short, THREE[2])])
    assert [item.type for item in found.findings] == [BreakType.CLOSING_NOT_OPENING_PLUS_ENTRIES]


@pytest.mark.parametrize(
    ("pages", "refusal"),
    [
        ([THREE[0]], "pages-incomplete"),
        ([THREE[0], THREE[1]], "pages-incomplete"),
        ([THREE[0], THREE[2]], "pages-incomplete"),
        ([THREE[1], THREE[2]], "pages-incomplete"),
        ([*THREE, page(2, first=2, end=3)], "pages-incomplete"),
        ([*THREE, page(4, first=6, end=6, is_last=True)], "pages-incomplete"),
        ([THREE[0], page(2, first=2, end=6, is_last=True, statement_id="OTHER")], "too-many-statements"),
        ([THREE[0], page(2, first=2, end=6, is_last=True, sequence_number=8)], "too-many-statements"),
        ([THREE[0], b"<x/>"], "not-xml"),
    ],
)
def test_what_is_not_one_whole_statement_is_refused(pages: list[bytes], refusal: str) -> None:
    assert read_all(pages) == refusal


def test_pages_of_one_message_and_pages_by_the_message_alone_are_joined() -> None:
    parts = [content[content.index(b"<Stmt>") : content.index(b"</BkToCstmrStmt>")] for content in THREE]
    head, tail = THREE[0].split(parts[0])
    found = read_camt053(io.BytesIO(head + b"".join(parts) + tail)).statement
    assert found is not None and found.entries == WHOLE.entries
    # The page number in the header (MsgPgntn) instead of in the statement.
    moved = []
    for content in THREE:
        pagination = re.search(rb"<StmtPgntn>(.*?)</StmtPgntn>", content, re.DOTALL)
        assert pagination is not None
        bare = content.replace(pagination[0], b"")
        moved.append(bare.replace(b"</GrpHdr>", b"<MsgPgntn>" + pagination[1] + b"</MsgPgntn></GrpHdr>"))
    assert read_all(moved[::-1]) == read_all(THREE)


@pytest.mark.parametrize("version", VERSIONS["camt.053"])
def test_number_period_creation_and_opening_balance_are_optional_as_the_schema_has_them(version: str) -> None:
    data = written(WHOLE).replace(b"camt.053.001.08", version.encode())
    stripped = re.sub(rb"<ElctrncSeqNb>.*?</ElctrncSeqNb>|<FrToDt>.*?</FrToDt>", b"", data, flags=re.DOTALL)
    head, statement_part = stripped.split(b"<Stmt>")
    statement_part = re.sub(rb"<CreDtTm>.*?</CreDtTm>", b"", statement_part, count=1, flags=re.DOTALL)
    bare = (head + b"<Stmt>" + statement_part).replace(b"<Cd>OPBD</Cd>", b"<Cd>PRCD</Cd>")
    bare = re.sub(rb"(<Bal>.*?<Dt>)<DtTm>([0-9-]{10})T[^<]*</DtTm>", rb"\1<Dt>\2</Dt>", bare, flags=re.DOTALL)
    result = read_camt053(io.BytesIO(bare))
    assert result.problems == () and result.findings == ()
    found = result.statement
    assert found is not None and found.sequence_number is None and found.entries == WHOLE.entries
    day = WHOLE.to_at.date()
    assert found.from_at == datetime(WHOLE.from_at.year, WHOLE.from_at.month, WHOLE.from_at.day, tzinfo=UTC)
    assert found.to_at == datetime(day.year, day.month, day.day, 23, 59, 59, tzinfo=UTC) == found.created_at


def test_a_zip_that_is_none_or_too_large_is_refused() -> None:
    def refusal(content: bytes) -> str:
        return read_source(content, SourceFormat.CAMT_053_PAGES).problems[0].refusal

    assert refusal(b"") == refusal(b"PK\x03\x04 nonsense") == "zip-malformed"
    assert refusal(zip_of_pages([])) == refusal(zip_of_pages([b""] * (PAGES_MAX + 1))) == "pages-incomplete"
    good = zip_of_pages(THREE)
    assert refusal(good[:-30]) == "zip-malformed"
    spoiled = bytearray(good)
    spoiled[60] ^= 0xFF
    assert refusal(bytes(spoiled)) == "zip-malformed"
    with_password = bytearray(good)
    for at in (match.start() for match in re.finditer(b"PK\x01\x02", good)):
        with_password[at + 8] |= 1
    for at in (match.start() for match in re.finditer(b"PK\x03\x04", good)):
        with_password[at + 6] |= 1
    assert refusal(bytes(with_password)) == "zip-malformed"
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert refusal(zip_by(method)) == "zip-malformed"
    assert zip_of_pages(THREE) == good and zipfile.ZipFile(io.BytesIO(good)).namelist()[0] == "0001.xml"


def zip_by(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name in ("1.xml", "2.xml"):
            archive.writestr(zipfile.ZipInfo(name), b"<page/>" * 20, method)
    return file.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_with_wrong_bytes_is_refused_and_never_falls_over(method: int) -> None:
    good, choose = zip_by(method), random.Random(method)
    refusals = set()
    for _ in range(400):
        spoiled = bytearray(good)
        for _ in range(choose.randint(1, 2)):
            spoiled[choose.randrange(len(spoiled))] = choose.choice((0, 1, 0xFF, choose.randrange(256)))
        refusals.add(read_source(bytes(spoiled), SourceFormat.CAMT_053_PAGES).problems[0].refusal)
    assert "zip-malformed" in refusals


@pytest.mark.parametrize("is_zip64", [False, True])
def test_a_directory_is_not_read_when_it_is_longer_than_that_of_a_thousand_pages(
    is_zip64: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of 47 bytes, each of which would become an object of 400, whatever count the end of the zip states."""
    record = struct.pack("<4s4B4HL2L5H2L", b"PK\x01\x02", *[20, 0, 20, 0], *[0] * 4, *[0] * 3, 1, *[0] * 6) + b"a"
    directory = record * 30_000
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(directory), 0, 0)
    if is_zip64:
        wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(directory), 0)
        locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(directory), 1)
        end = wide + locator + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    content = directory + end
    assert len(zipfile.ZipFile(io.BytesIO(content)).infolist()) == 30_000
    made: list[object] = []
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *args: made.append(args))
    (problem,) = read_source(content, SourceFormat.CAMT_053_PAGES).problems
    assert problem.refusal == "pages-incomplete" and made == []

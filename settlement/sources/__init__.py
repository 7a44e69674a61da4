"""Any counterparty's file as lines: camt.052, camt.053, camt.054, CSV and Parquet, with every fault named.
A statement in several messages is a zip of them.

A file is read whole or refused whole: half a statement would turn the other half into breaks.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from settlement.domain.reconciliation import Break
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.mapping import CANONICAL, TableMapping
from settlement.domain.reconciliation.session import StatementPapers
from settlement.domain.statements import Statement
from settlement.sources import tables
from settlement.sources.tables import SourceProblem

SOURCE_BYTES_MAX = 512 * 1024 * 1024
PAGES_MAX = 1_000
"""Messages in one zip."""
DIRECTORY_BYTES_MAX = PAGES_MAX * 1024
"""Of a zip's directory: it is read before its entries can be counted, and takes eight times its bytes."""
_ZIP_FAULTS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,  # of a password; a method or a version that is not known
    ValueError,
    LookupError,
    OverflowError,
)
"""What the reader raises for bytes that are no zip, or a broken one."""


class SourceFormat(StrEnum):
    CAMT_052 = "camt.052"
    CAMT_053 = "camt.053"
    CAMT_053_PAGES = "camt.053-pages"
    """A zip of camt.053 messages that are the pages of one statement, in any order."""
    CAMT_054 = "camt.054"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def is_table(self) -> bool:
        return self in (SourceFormat.CSV, SourceFormat.PARQUET)


@dataclass(frozen=True, slots=True)
class SourceRead:
    """`lines` is None if there is any problem. `statement` has what is said beside the lines; `findings` are breaks
    within it."""

    lines: LineTable | None
    problems: tuple[SourceProblem, ...] = ()
    statement: Statement | None = None
    """Of camt.053. A report of a day that is not over, or a notification, follows on no other: its lines are all it
    says, and its account."""
    account: str | None = None
    """As a camt file names it."""
    currency: str | None = None
    message: str | None = None
    """The version that a camt file is of."""
    findings: tuple[Break, ...] = ()


def read_source(
    content: bytes, source_format: SourceFormat, *, mapping: TableMapping = CANONICAL, account: str | None = None
) -> SourceRead:
    """The lines of a file. Refuses by `problems`; raises nothing for whatever bytes.

    Of a camt file, `mapping` gives the time zone of moments that name none; `account` says which statement is meant
    if the file has several.
    """
    if len(content) > SOURCE_BYTES_MAX:
        reason = f"a source has at most {SOURCE_BYTES_MAX:,} bytes"
        return SourceRead(None, (SourceProblem("file-too-large", 0, reason),))
    match source_format:
        case SourceFormat.CSV:
            lines, problems = tables.read_csv(content, mapping)
            return SourceRead(lines, problems)
        case SourceFormat.PARQUET:
            lines, problems = tables.read_parquet(content, mapping)
            return SourceRead(lines, problems)
        case SourceFormat.CAMT_052 | SourceFormat.CAMT_053 | SourceFormat.CAMT_054:
            return _read_camt([content], source_format, mapping.zone, account)
        case SourceFormat.CAMT_053_PAGES:
            pages = _pages_of(content)
            if isinstance(pages, SourceProblem):
                return SourceRead(None, (pages,))
            return _read_camt(pages, source_format, mapping.zone, account)


def zip_of_pages(pages: Sequence[bytes]) -> bytes:
    """The source of a statement in several messages; the same pages in the same order give the same bytes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, content in enumerate(pages, start=1):
            archive.writestr(zipfile.ZipInfo(f"{number:04}.xml"), content, zipfile.ZIP_DEFLATED)
    return file.getvalue()


class _Archive(io.BytesIO):
    """A zip of whose directory no more than DIRECTORY_BYTES_MAX are read, wherever and however long it says it is."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._length = len(content)
        self.is_open = False

    def read(self, size: int | None = -1, /) -> bytes:
        wanted = self._length - self.tell() if size is None or size < 0 else size
        if not self.is_open and wanted > DIRECTORY_BYTES_MAX:
            raise _DirectoryTooLarge
        return super().read(size)


class _DirectoryTooLarge(Exception):
    pass


def _pages_of(content: bytes) -> list[bytes] | SourceProblem:
    """The messages in a zip, which may be hostile: so many, and so many bytes unpacked, whatever it declares."""
    found: list[bytes] = []
    left = SOURCE_BYTES_MAX
    try:
        with _Archive(content) as packed, zipfile.ZipFile(packed) as archive:
            packed.is_open = True
            members = [member for member in archive.infolist() if not member.is_dir()]
            if not 0 < len(members) <= PAGES_MAX:
                return SourceProblem("pages-incomplete", 0, f"a zip of 1 to {PAGES_MAX:,} messages")
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    return SourceProblem("zip-malformed", 0, "its members are to be stored or deflated")
                with archive.open(member) as file:
                    found.append(file.read(left + 1))
                left -= len(found[-1])
                if left < 0:
                    return SourceProblem("file-too-large", 0, f"more than {SOURCE_BYTES_MAX:,} bytes unpacked")
    except _DirectoryTooLarge:
        return SourceProblem("pages-incomplete", 0, f"a zip of 1 to {PAGES_MAX:,} messages")
    except _ZIP_FAULTS as error:
        return SourceProblem("zip-malformed", 0, f"not a zip of plain files: {error}"[:300])
    return found


def _read_camt(contents: Sequence[bytes], source_format: SourceFormat, zone: str, account: str | None) -> SourceRead:
    # Here, for the readers need schemas of megabytes that a reader of tables does not.
    from settlement.iso20022.camt053 import read_pages
    from settlement.iso20022.versions import UNVALIDATED, VERSIONS

    kind = "camt.053" if source_format is SourceFormat.CAMT_053_PAGES else source_format.value
    read = read_pages(
        [io.BytesIO(content) for content in contents],
        bytes_max=SOURCE_BYTES_MAX,
        messages=VERSIONS[kind] + UNVALIDATED.get(kind, ()),
        zone=zone,
        account=account,
    )
    statement = read.statement
    if statement is None:
        problems = tuple(SourceProblem(item.refusal.value, item.index, item.reason) for item in read.problems)
        return SourceRead(None, problems or (SourceProblem("schema-invalid", 0, "no statement"),))
    lines = LineTable.of_entries(statement.entries)
    has_papers = kind == "camt.053"
    return SourceRead(
        lines,
        statement=statement if has_papers else None,
        account=statement.account,
        currency=statement.currency.code,
        message=read.message,
        findings=read.findings if has_papers else (),
    )


def is_validated(message: str | None) -> bool | None:
    """Whether a file of this message was held against its published schema; None of a table."""
    from settlement.iso20022.versions import UNVALIDATED

    return None if message is None else message not in UNVALIDATED.get(message[:8], ())


def papers_of(read: SourceRead) -> StatementPapers | None:
    """What a camt statement says beside its lines; None of tables."""
    statement = read.statement
    if statement is None:
        return None
    return StatementPapers(
        statement.statement_id,
        statement.sequence_number,
        statement.opening_minor,
        statement.currency,
        statement.to_at.date(),
        read.findings,
    )

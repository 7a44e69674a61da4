"""Batches of instructions as CSV (RFC 4180): the form for whoever has a spreadsheet and no ISO 20022 software.

UTF-8, with or without a byte order mark; commas; a header line names the columns in any order:

    instruction_id, end_to_end_id, uetr, debtor, creditor, currency, amount, counter_currency, value_date
    and optionally counter_amount, priority

Amounts are major units with a decimal point and without grouping (`1234.50`). No field of an instruction can hold a
line break, so a quoted one is refused although RFC 4180 knows it; thus every line stands for itself, and reading can go
on at any. A field that begins like a spreadsheet formula is refused on reading and made harmless on writing, since such
files are opened in spreadsheets.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from settlement.domain.instructions import (
    Instruction,
    InstructionProblem,
    InstructionRefusal,
    Intake,
    RawInstruction,
    ReadResult,
    decide_instruction,
)
from settlement.iso20022.chunks import Chunk, FileProblem, Line
from settlement.iso20022.segments import START, Cursor

INSTRUCTIONS_MAX = 100_000
BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 2_048
"""A full line has some 200 characters."""
CHUNK_LINES = 1_000
FIELD_LENGTH_MAX = 140
"""Longer than any valid field, short enough to quote."""

COLUMNS_REQUIRED = (
    "instruction_id",
    "end_to_end_id",
    "uetr",
    "debtor",
    "creditor",
    "currency",
    "amount",
    "counter_currency",
    "value_date",
)
COLUMNS_OPTIONAL = ("counter_amount", "priority")
COLUMNS = COLUMNS_REQUIRED + COLUMNS_OPTIONAL

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def read_csv(
    source: BinaryIO | Path, *, instructions_max: int = INSTRUCTIONS_MAX, bytes_max: int = BYTES_MAX
) -> ReadResult:
    """Read a batch whole or refuse it with every problem found, up to PROBLEMS_MAX. Raises OSError."""
    intake = Intake(instructions_max=instructions_max)
    with ExitStack() as stack:
        file = stack.enter_context(source.open("rb")) if isinstance(source, Path) else source
        try:
            for chunk in read_csv_chunks(file, bytes_max=bytes_max):
                for line in chunk.lines:
                    intake.add(line.decided, amount=line.amount, currency=line.currency, line=line.line)
                    if intake.is_full:
                        return intake.finish()
        except FileProblem as refused:
            intake.refuse(refused.problem.refusal, refused.problem.reason, line=refused.problem.line)
    return intake.finish()


def read_csv_chunks(
    source: BinaryIO, *, cursor: Cursor = START, bytes_max: int = BYTES_MAX, lines_max: int = CHUNK_LINES
) -> Iterator[Chunk]:
    """A file's lines in order from a cursor on, each decided by itself, in bounded memory.

    `source` must be seekable. Duplicates are the caller's. Raises FileProblem, OSError.
    """
    source.seek(0)
    columns = _header(source)
    if cursor == START:
        cursor = Cursor(source.tell(), 0, 2)
    source.seek(cursor.offset)
    offset, index, number = cursor.offset, cursor.index, cursor.line
    lines: list[Line] = []
    while text := source.readline(LINE_BYTES_MAX + 1):
        offset += len(text)
        if offset > bytes_max:
            raise _refused(InstructionRefusal.FILE_TOO_LARGE, f"more than {bytes_max:,} bytes", number)
        if len(text) > LINE_BYTES_MAX:
            raise _refused(
                InstructionRefusal.FIELD_TOO_LONG, f"line {number} has more than {LINE_BYTES_MAX:,} bytes", number
            )
        if text.strip(b"\r\n"):  # a wholly empty line says nothing
            index += 1
            lines.append(_line(text, columns, index, number))
        number += 1
        if len(lines) == lines_max:
            yield Chunk(None, lines, Cursor(offset, index, number), is_last=False)
            lines = []
    yield Chunk(None, lines, Cursor(offset, index, number), is_last=True)


def write_csv(instructions: Sequence[Instruction]) -> bytes:
    """The batch with all columns, CRLF line ends, and no field that a spreadsheet would run."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for item in instructions:
        fields = (
            item.instruction_id,
            item.end_to_end_id,
            str(item.uetr),
            item.debtor,
            item.creditor,
            item.amount.currency.code,
            item.amount.format_major(grouping=False),
            item.counter_currency.code if item.counter_currency else "",
            item.value_date.isoformat(),
            item.counter_amount.format_major(grouping=False) if item.counter_amount else "",
            item.priority.value,
        )
        writer.writerow([neutral(field) for field in fields])
    return text.getvalue().encode()


def neutral(field: str) -> str:
    """The field, with an apostrophe before it if a spreadsheet would take it for a formula (OWASP, "CSV injection")."""
    return "'" + field if field.startswith(_FORMULA_STARTS) else field


def _refused(refusal: InstructionRefusal, reason: str, line: int) -> FileProblem:
    return FileProblem(InstructionProblem(refusal, 0, line, reason))


def _header(source: BinaryIO) -> list[str]:
    """The names of the columns. Raises FileProblem."""
    text = source.readline(LINE_BYTES_MAX + 1)
    if not text:
        raise _refused(InstructionRefusal.NO_INSTRUCTIONS, "the file is empty", 1)
    if len(text) > LINE_BYTES_MAX:
        raise _refused(InstructionRefusal.FIELD_TOO_LONG, f"line 1 has more than {LINE_BYTES_MAX:,} bytes", 1)
    columns = _fields(text.removeprefix(b"\xef\xbb\xbf"))
    if not isinstance(columns, list):
        raise _refused(*columns, 1)
    for refusal, names in (
        (InstructionRefusal.CSV_COLUMN_DUPLICATE, sorted({name for name in columns if columns.count(name) > 1})),
        (InstructionRefusal.CSV_COLUMN_UNKNOWN, sorted(set(columns) - set(COLUMNS))),
        (InstructionRefusal.CSV_COLUMN_MISSING, [name for name in COLUMNS_REQUIRED if name not in columns]),
    ):
        if names:
            raise _refused(refusal, ", ".join(repr(name[:40]) for name in names), 1)
    return columns


def _fields(text: bytes) -> list[str] | tuple[InstructionRefusal, str]:
    """One line's fields, or why it has none."""
    if b"\x00" in text:
        return InstructionRefusal.NUL_CHARACTER, "the line holds a NUL character (or is UTF-16)"
    try:
        rows = list(csv.reader([text.decode("utf-8")], strict=True))
    except UnicodeDecodeError as error:
        return InstructionRefusal.ENCODING_NOT_UTF8, f"byte {error.start + 1} of the line"
    except csv.Error as error:
        return InstructionRefusal.CSV_MALFORMED, f"{error} (a field may not hold a line break)"
    return rows[0] if len(rows) == 1 else (InstructionRefusal.CSV_MALFORMED, "a line break within the line")


def _line(text: bytes, columns: list[str], index: int, number: int) -> Line:
    row = _fields(text)
    if isinstance(row, list) and len(row) != len(columns):
        row = InstructionRefusal.CSV_MALFORMED, f"the header has {len(columns)} fields, the line {len(row)}"
    if not isinstance(row, list):
        return Line(index, number, InstructionProblem(row[0], index, number, row[1]), "", "")
    fields = dict(zip(columns, row, strict=True))
    amount, currency = fields["amount"], fields["currency"]
    for name, field in fields.items():
        if len(field) > FIELD_LENGTH_MAX:
            fault = InstructionRefusal.FIELD_TOO_LONG, f"{name} has {len(field)} characters"
        elif field.startswith(_FORMULA_STARTS):
            fault = InstructionRefusal.FORMULA_TEXT, f"{name} is {field[:40]!r}"
        else:
            continue
        return Line(index, number, InstructionProblem(fault[0], index, number, fault[1]), amount, currency)
    raw = RawInstruction(
        line=number,
        instruction_id=fields["instruction_id"],
        end_to_end_id=fields["end_to_end_id"],
        uetr=fields["uetr"],
        debtor=fields["debtor"],
        creditor=fields["creditor"],
        currency=currency,
        amount=amount,
        counter_currency=fields["counter_currency"],
        counter_amount=fields.get("counter_amount", ""),
        value_date=fields["value_date"],
        priority=fields.get("priority", ""),
    )
    return Line(index, number, decide_instruction(raw, index=index), amount, currency)

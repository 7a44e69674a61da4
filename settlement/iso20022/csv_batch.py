"""Batches of instructions as CSV (RFC 4180): the form for whoever has a spreadsheet and no ISO 20022 software.

UTF-8, with or without a byte order mark; commas; a header line names the columns in any order:

    instruction_id, end_to_end_id, uetr, debtor, creditor, currency, amount, counter_currency, value_date
    and optionally counter_amount, priority

Amounts are major units with a decimal point and without grouping (`1234.50`). No field of an instruction can hold
a line
break, so a quoted one is refused although RFC 4180 knows it. A field that begins like a spreadsheet formula is refused
on reading and made harmless on writing, since such files are opened in spreadsheets.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from settlement.domain.instructions import Instruction, InstructionRefusal, Intake, RawInstruction, ReadResult

INSTRUCTIONS_MAX = 100_000
BYTES_MAX = 64 * 1024 * 1024
LINE_BYTES_MAX = 2_048
"""A full line has some 200 characters."""
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
        _read(_Lines(file, intake, bytes_max=bytes_max), intake)
    return intake.finish()


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


class _Lines:
    """The file's lines as text, within bounds. After a fault that ends the reading, `is_broken` is set."""

    def __init__(self, file: BinaryIO, intake: Intake, *, bytes_max: int) -> None:
        self.number = 0
        self.is_broken = False
        self._file = file
        self._intake = intake
        self._bytes_max = bytes_max

    def __iter__(self) -> Iterator[str]:
        bytes_read = 0
        while line := self._file.readline(LINE_BYTES_MAX + 1):
            self.number += 1
            bytes_read += len(line)
            if bytes_read > self._bytes_max:
                return self._break(InstructionRefusal.FILE_TOO_LARGE, f"more than {self._bytes_max:,} bytes")
            if len(line) > LINE_BYTES_MAX:
                return self._break(InstructionRefusal.FIELD_TOO_LONG, f"a line has more than {LINE_BYTES_MAX:,} bytes")
            if b"\x00" in line:
                return self._break(InstructionRefusal.NUL_CHARACTER, "the line holds a NUL character (or is UTF-16)")
            try:
                text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                return self._break(InstructionRefusal.ENCODING_NOT_UTF8, f"byte {error.start + 1} of the line")
            yield text

    def _break(self, refusal: InstructionRefusal, reason: str) -> None:
        self.is_broken = True
        self._intake.refuse(refusal, reason, line=self.number)


def _read(lines: _Lines, intake: Intake) -> None:
    rows = csv.reader(iter(lines), strict=True)
    columns: list[str] | None = None
    line_before = 0
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            intake.refuse(InstructionRefusal.CSV_MALFORMED, str(error), line=lines.number)
            return
        if row is None or lines.is_broken or intake.is_full:
            return
        if lines.number > line_before + 1:
            intake.refuse(InstructionRefusal.CSV_MALFORMED, "a field holds a line break", line=lines.number)
            return
        line_before = lines.number
        if columns is None:
            columns = row
            if not _check_header(columns, intake):
                return
        elif row:  # a wholly empty line says nothing
            _take(row, columns, lines.number, intake)


def _check_header(columns: list[str], intake: Intake) -> bool:
    faults = (
        (InstructionRefusal.CSV_COLUMN_DUPLICATE, sorted({name for name in columns if columns.count(name) > 1})),
        (InstructionRefusal.CSV_COLUMN_UNKNOWN, sorted(set(columns) - set(COLUMNS))),
        (InstructionRefusal.CSV_COLUMN_MISSING, [name for name in COLUMNS_REQUIRED if name not in columns]),
    )
    for refusal, names in faults:
        if names:
            intake.refuse(refusal, ", ".join(repr(name[:40]) for name in names), line=1)
    return not any(names for _, names in faults)


def _take(row: list[str], columns: list[str], line: int, intake: Intake) -> None:
    if len(row) != len(columns):
        reason = f"the header has {len(columns)} fields, the line {len(row)}"
        intake.refuse_raw(InstructionRefusal.CSV_MALFORMED, reason, line=line)
        return
    for name, field in zip(columns, row, strict=True):
        if len(field) > FIELD_LENGTH_MAX:
            intake.refuse_raw(InstructionRefusal.FIELD_TOO_LONG, f"{name} has {len(field)} characters", line=line)
            return
        if field.startswith(_FORMULA_STARTS):
            intake.refuse_raw(InstructionRefusal.FORMULA_TEXT, f"{name} is {field[:40]!r}", line=line)
            return
    fields = dict(zip(columns, row, strict=True))
    intake.add(
        RawInstruction(
            line=line,
            instruction_id=fields["instruction_id"],
            end_to_end_id=fields["end_to_end_id"],
            uetr=fields["uetr"],
            debtor=fields["debtor"],
            creditor=fields["creditor"],
            currency=fields["currency"],
            amount=fields["amount"],
            counter_currency=fields["counter_currency"],
            counter_amount=fields.get("counter_amount", ""),
            value_date=fields["value_date"],
            priority=fields.get("priority", ""),
        )
    )

"""Any counterparty's file as lines: camt.053, camt.054, CSV and Parquet, with every fault named.

A file is read whole or refused whole: half a statement would turn the other half into breaks.
"""

from __future__ import annotations

import io
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


class SourceFormat(StrEnum):
    CAMT_053 = "camt.053"
    CAMT_054 = "camt.054"
    CSV = "csv"
    PARQUET = "parquet"

    @property
    def is_table(self) -> bool:
        return self in (SourceFormat.CSV, SourceFormat.PARQUET)


@dataclass(frozen=True, slots=True)
class SourceRead:
    """`lines` is None if there is any problem. `statement`, of camt files, has what is said beside the lines (its
    entries are the lines); `findings` are breaks within it."""

    lines: LineTable | None
    problems: tuple[SourceProblem, ...] = ()
    statement: Statement | None = None
    findings: tuple[Break, ...] = ()


def read_source(content: bytes, source_format: SourceFormat, *, mapping: TableMapping = CANONICAL) -> SourceRead:
    """The lines of a file. Refuses by `problems`; raises nothing for whatever bytes."""
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
        case SourceFormat.CAMT_053 | SourceFormat.CAMT_054:
            return _read_camt(content, source_format)


def _read_camt(content: bytes, source_format: SourceFormat) -> SourceRead:
    # Here, for the readers need schemas of megabytes that a reader of tables does not.
    from settlement.iso20022.camt053 import read_camt053
    from settlement.iso20022.versions import VERSIONS

    is_notification = source_format is SourceFormat.CAMT_054
    messages = VERSIONS["camt.054" if is_notification else "camt.053"]
    read = read_camt053(io.BytesIO(content), bytes_max=SOURCE_BYTES_MAX, messages=messages)
    if read.statement is None:
        problems = tuple(SourceProblem(item.refusal.value, item.index, item.reason) for item in read.problems)
        return SourceRead(None, problems or (SourceProblem("schema-invalid", 0, "no statement"),))
    lines = LineTable.of_entries(read.statement.entries)
    if is_notification:  # it has no balances and follows on no other: its lines are all it says
        return SourceRead(lines, ())
    return SourceRead(lines, (), read.statement, read.findings)


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

"""A side's lines as columns, for files of millions: what `StatementEntry` is for one line.

The columns and their types are `SCHEMA`; a Parquet file that has them needs no mapping. Amounts are minor units.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.statements import Direction, EntryStatus, StatementEntry, lines_of

LINES_MAX = 5_000_000
"""Of one side of a reconciliation: 100 bytes a line in memory."""

SCHEMA = pa.schema(
    [
        pa.field("reference", pa.string(), nullable=False),
        pa.field("uetr", pa.string()),
        pa.field("end_to_end_id", pa.string()),
        pa.field("currency", pa.string(), nullable=False),
        pa.field("amount_minor", pa.int64(), nullable=False),
        pa.field("is_credit", pa.bool_(), nullable=False),
        pa.field("is_booked", pa.bool_(), nullable=False),
        pa.field("value_date", pa.date32(), nullable=False),
        pa.field("booked_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("group_reference", pa.string()),
        pa.field("account", pa.string()),
        pa.field("counterparty", pa.string()),
        pa.field("counterparty_account", pa.string()),
        pa.field("instructed_minor", pa.int64()),
        pa.field("instructed_currency", pa.string()),
        pa.field("is_reversal", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class LineTable:
    """Lines in the order of their file. `table` has `SCHEMA`, one chunk a column; UETRs are lower-case."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @staticmethod
    def of_table(table: pa.Table) -> LineTable:
        """Raises ValueError (pyarrow.ArrowInvalid) for columns that are not those of `SCHEMA`."""
        return LineTable(table.select(SCHEMA.names).cast(SCHEMA).combine_chunks())

    @staticmethod
    def of_entries(entries: Iterable[StatementEntry]) -> LineTable:
        """The lines that these entries are: `lines_of`."""
        rows = [_row(entry) for entry in lines_of(entries)]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(SCHEMA)
        arrays = [pa.array(values, type=field.type) for values, field in zip(columns, SCHEMA, strict=True)]
        return LineTable(pa.Table.from_arrays(arrays, schema=SCHEMA))

    def entries(self, positions: Sequence[int] | np.ndarray[Any, Any] | None = None) -> list[StatementEntry]:
        """The lines at these positions, or all."""
        table = self.table if positions is None else self.table.take(pa.array(positions, type=pa.int64()))
        return [_entry(row) for row in zip(*(table.column(name).to_pylist() for name in SCHEMA.names), strict=True)]

    def strings(self, name: str) -> pa.Array:
        column = self.table.column(name)
        # Combining copies, even a single chunk.
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()

    def numbers(self, name: str) -> np.ndarray[Any, Any]:
        """A column of integers, booleans, dates (days) or times (microseconds), without nulls."""
        column = self.strings(name)
        if pa.types.is_date32(column.type):
            column = column.cast(pa.int32())
        elif pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        found: np.ndarray[Any, Any] = column.to_numpy(zero_copy_only=False)
        return found


def entry_to_json(entry: StatementEntry) -> dict[str, Any]:
    """A line as it is kept beside a break, to be carried to later runs. Only what is there is named."""
    found = dict(zip(SCHEMA.names, _row(entry), strict=True))
    found |= {"value_date": entry.value_date.isoformat(), "booked_at": entry.booked_at.astimezone(UTC).isoformat()}
    found |= {name: str(found[name]) for name in ("amount_minor", "instructed_minor") if found[name] is not None}
    return {name: value for name, value in found.items() if value is not None}


def entry_of_json(value: Mapping[str, Any]) -> StatementEntry:
    row = {name: value.get(name) for name in SCHEMA.names}
    row["value_date"] = date.fromisoformat(value["value_date"])
    row["booked_at"] = datetime.fromisoformat(value["booked_at"])
    for name in ("amount_minor", "instructed_minor"):
        row[name] = None if name not in value else int(value[name])
    return _entry(tuple(row.values()))


def _row(entry: StatementEntry) -> tuple[Any, ...]:
    instructed = entry.instructed
    return (
        entry.reference,
        None if entry.uetr is None else str(entry.uetr),
        entry.end_to_end_id,
        entry.amount.currency.code,
        entry.amount.amount_minor,
        entry.direction is Direction.CREDIT,
        entry.status is EntryStatus.BOOKED,
        entry.value_date,
        entry.booked_at.astimezone(UTC),
        entry.group_reference,
        entry.account,
        entry.counterparty,
        entry.counterparty_account,
        None if instructed is None else instructed.amount_minor,
        None if instructed is None else instructed.currency.code,
        entry.is_reversal or None,
    )


def _entry(row: tuple[Any, ...]) -> StatementEntry:
    (
        reference,
        uetr,
        end_to_end_id,
        currency,
        amount_minor,
        is_credit,
        is_booked,
        value_date,
        booked_at,
        group_reference,
        account,
        counterparty,
        counterparty_account,
        instructed_minor,
        instructed_currency,
        is_reversal,
    ) = row
    return StatementEntry(
        reference=reference,
        end_to_end_id=end_to_end_id,
        uetr=None if uetr is None else UUID(uetr),
        amount=Money(amount_minor, Currency.of(currency)),
        direction=Direction.CREDIT if is_credit else Direction.DEBIT,
        booked_at=booked_at.astimezone(UTC),
        value_date=value_date,
        status=EntryStatus.BOOKED if is_booked else EntryStatus.PENDING,
        counterparty=None if counterparty is None else ParticipantId(counterparty),
        counterparty_account=counterparty_account,
        group_reference=group_reference,
        account=account,
        instructed=None if instructed_minor is None else Money(instructed_minor, Currency.of(instructed_currency)),
        is_reversal=bool(is_reversal),
    )

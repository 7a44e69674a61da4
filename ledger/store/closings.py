"""Closings in PostgreSQL: rows are only ever inserted, all of one closing in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

import numpy as np
import psycopg
import sqlalchemy as sa
from psycopg import sql

from ledger.store.closing_tables import closing, closing_page
from ledger.store.copying import PackedLayout
from ledger.store.tables import block

_MOVED = PackedLayout(
    [
        ("seq", "int8", "seq"),
        ("kind", "int2", "kind"),
        ("debit", "int8", "debit_account"),
        ("credit", "int8", "credit_account"),
        ("amount", "int8", "amount_minor"),
    ]
)


@dataclass(frozen=True, slots=True)
class ClosingRecord:
    number: int
    kind: str
    day: date
    block: int
    statement: str
    """A signed note."""


_RECORD = sa.select(closing.c.number, closing.c.kind, closing.c.day, closing.c.block, closing.c.statement)


def last_closing(connection: sa.Connection, *, kind: str | None = None) -> ClosingRecord | None:
    query = _RECORD if kind is None else _RECORD.where(closing.c.kind == kind)
    return _record(connection.execute(query.order_by(closing.c.number.desc()).limit(1)).first())


def find_closing(connection: sa.Connection, number: int) -> ClosingRecord | None:
    return _record(connection.execute(_RECORD.where(closing.c.number == number)).first())


def newest_closings(connection: sa.Connection, *, before: int | None, limit: int) -> Sequence[ClosingRecord]:
    """Descending numbers below `before`."""
    query = _RECORD if before is None else _RECORD.where(closing.c.number < before)
    rows = connection.execute(query.order_by(closing.c.number.desc()).limit(limit))
    return [ClosingRecord(**row._mapping) for row in rows]


def directory(connection: sa.Connection, number: int) -> bytes | None:
    return connection.execute(sa.select(closing.c.directory).where(closing.c.number == number)).scalar()


def page(connection: sa.Connection, number: int, position: int) -> bytes | None:
    query = sa.select(closing_page.c.leaves).where(closing_page.c.closing == number, closing_page.c.page == position)
    return connection.execute(query).scalar()


def last_block_before(connection: sa.Connection, moment: datetime, *, low: int, high: int) -> int:
    """The last block booked before `moment`. Block `low` is known to be, `high` known not to be: booking time never
    runs backwards, so the numbers between are halved instead of scanned."""
    while high - low > 1:
        middle = (low + high) // 2
        booked_at = connection.execute(sa.select(block.c.booked_at).where(block.c.number == middle)).scalar_one()
        low, high = (middle, high) if booked_at < moment else (low, middle)
    return low


def moved(cursor: psycopg.Cursor[Any], first_seq: int, last_seq: int) -> np.ndarray[Any, Any]:
    """seq, kind, debit, credit and amount of a range of transfers, in any order."""
    return _MOVED.read(cursor, sql.SQL("transfer WHERE seq BETWEEN {} AND {}").format(first_seq, last_seq))


def copy_pages(cursor: psycopg.Cursor[Any], number: int, first_page: int, pages: Iterable[bytes]) -> None:
    with cursor.copy("COPY closing_page (closing, page, leaves) FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(["int8", "int4", "bytea"])
        for position, leaves in enumerate(pages, start=first_page):
            copy.write_row((number, position, leaves))


def insert_closing(cursor: psycopg.Cursor[Any], record: ClosingRecord, pages: bytes) -> None:
    """Raises a psycopg.Error that `is_duplicate_key` when another process has made this closing, or this day's."""
    cursor.execute(
        "INSERT INTO closing (number, kind, day, block, statement, directory) VALUES (%s, %s, %s, %s, %s, %s)",
        (record.number, record.kind, record.day, record.block, record.statement, pages),
    )


def _record(row: Any) -> ClosingRecord | None:
    return ClosingRecord(**row._mapping) if row is not None else None

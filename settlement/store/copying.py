"""COPY for many rows at once: several times what one INSERT a row does, in the same transaction.

Rows are put into COPY's text format here: psycopg's own writer, without its C part, was a fifth of a profile of storing
a file of instructions. Source of the format: PostgreSQL's manual, COPY, "Text Format".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg import sql

_BLOCK_ROWS = 1_000
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\v": "\\v"})


def copy_rows(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows that all have the same columns. Raises sqlalchemy.exc.IntegrityError, as an INSERT would."""
    if rows:
        columns = list(rows[0])
        copy_tuples(connection, table, columns, ([row[name] for name in columns] for row in rows))


def copy_tuples(
    connection: sa.Connection, table: sa.Table, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """The same of rows as sequences in the order of `columns`. Raises TypeError for a kind of value not known here."""
    driver = connection.connection.driver_connection
    if not isinstance(driver, psycopg.Connection):
        raise TypeError("COPY needs a psycopg connection")
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    remaining = iter(rows)
    try:
        with driver.cursor() as cursor, cursor.copy(statement) as copy:
            while block := list(islice(remaining, _BLOCK_ROWS)):
                copy.write("".join(["\t".join(map(_field, row)) + "\n" for row in block]))
    except psycopg.IntegrityError as error:
        raise sa.exc.IntegrityError(f"COPY {table.name}", None, error) from error


def _escaped(text: str) -> str:
    return text.translate(_ESCAPES)


def _field(value: Any) -> str:
    kind = type(value)
    if kind is str:
        # Looking is ten times faster than translating, and nearly every text is plain.
        text: str = value
        return text if text.isprintable() and "\\" not in text else _escaped(text)
    if kind is int:
        return str(value)
    if kind is UUID:
        digits: str = value.hex
        return digits
    if value is None:
        return "\\N"
    if kind is bool:
        return "t" if value else "f"
    if kind is bytes:
        return f"\\\\x{value.hex()}"
    if isinstance(value, str):  # a StrEnum
        return _escaped(str(value))
    if isinstance(value, date):  # or a datetime
        return value.isoformat()
    if isinstance(value, int | Decimal):
        return str(value)
    raise TypeError(f"COPY of {kind.__name__}")

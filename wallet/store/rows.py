"""How rows come from PostgreSQL and go to it: `SELECT *` as dictionaries without the column that no code here names
(`kernel.row_security`), and columns as array literals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from psycopg import Cursor, rows

from kernel.row_security import COLUMN


def dict_row(cursor: Cursor[Any]) -> rows.RowMaker[dict[str, Any]]:
    """A row factory, as psycopg's of the same name."""
    make = rows.dict_row(cursor)

    def without_tenant(values: Sequence[Any]) -> dict[str, Any]:
        row = make(values)
        row.pop(COLUMN, None)
        return row

    return without_tenant


def array_literal(values: Iterable[object]) -> str:
    """`{1,2}`, which the server unnests: a tenth of the cost of a list as a parameter. For numbers, UUIDs, times and
    words that need no quoting: nothing with a comma, a quote, a brace, a backslash or a blank."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"

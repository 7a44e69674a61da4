"""Rows of `SELECT *` as dictionaries, without the column that no code here names (`kernel.row_security`)."""

from __future__ import annotations

from collections.abc import Sequence
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

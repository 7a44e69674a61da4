"""Arrays as parameters of a statement: one statement for a thousand rows instead of one a row.

An array is sent as one text in PostgreSQL's own form and cast there. The driver would ask each element how it is
written, which takes ten times as long and was a sixth of a settlement's cost.
Source of the form: PostgreSQL's manual, 8.15.6, "Array Input and Output Syntax".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa


def array_text(values: Iterable[object]) -> str:
    """`{a,b}`, of UUIDs, texts, bytes, integers, moments and None. Raises TypeError for any other kind of value."""
    return "{" + ",".join([_element(value) for value in values]) + "}"


def array_of(kind: sa.types.TypeEngine[Any], values: Iterable[object]) -> sa.BindParameter[Any]:
    return sa.literal(list(values), _TextArray(kind))


class _TextArray(sa.types.TypeDecorator[Any]):
    """An array whose value is its text. The parameter itself is of the array's type (`$1::UUID[]`): a cast from a text
    would be done again for every row that is compared with it."""

    impl = sa.ARRAY
    cache_ok = True

    def bind_processor(self, dialect: sa.Dialect) -> Callable[[Any], str]:
        return array_text


def is_one_of(column: sa.ColumnElement[UUID], ids: Iterable[UUID]) -> sa.ColumnElement[bool]:
    """Whether the column is one of these ids, however many they are."""
    return column == sa.any_(array_of(sa.Uuid(), ids))


def rows_of(**columns: tuple[sa.types.TypeEngine[Any], Sequence[object]]) -> sa.TableValuedAlias:
    """Rows as a table `given`, an array for each column; all of one length."""
    arrays = [array_of(kind, values) for kind, values in columns.values()]
    names = [sa.column(name, kind) for name, (kind, _) in columns.items()]
    return sa.func.unnest(*arrays).table_valued(*names).render_derived(name="given")


def _element(value: object) -> str:
    kind = type(value)
    if kind is UUID and isinstance(value, UUID):
        return value.hex
    if value is None:
        return "NULL"
    if isinstance(value, str):
        # Always quoted: what is quoted means only itself, once these two are escaped.
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bytes):
        return f'"\\\\x{value.hex()}"'
    if kind is int:
        return str(value)
    if isinstance(value, datetime):
        return f'"{value.isoformat()}"'
    raise TypeError(f"an array of {kind.__name__}")

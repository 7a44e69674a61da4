"""Rows of fixed width between numpy and PostgreSQL, without a Python object per value: in by COPY, out packed.

A row of COPY is a field count (2 bytes), then length (4) and value of each field; NULL has length -1 and no value.
Integers and uuids are big-endian; a timestamptz is microseconds since 2000-01-01T00:00Z.
Source: PostgreSQL documentation, COPY, "Binary Format".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql

PG_EPOCH_MICROS = 946_684_800_000_000
"""2000-01-01T00:00Z in microseconds since 1970."""
HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = b"\xff\xff"
_KINDS = {
    "int8": (">i8",),
    "int4": (">i4",),
    "int2": (">i2",),
    "timestamptz": (">i8",),
    "uuid": (">u8", ">u8"),
    "null": (),
}
_SENDS = {
    "int8": "int8send",
    "int4": "int4send",
    "int2": "int2send",
    "timestamptz": "timestamptz_send",
    "uuid": "uuid_send",
}
"""PostgreSQL's functions from a value to its binary form."""


class CopyLayout:
    """The layout of one kind of row: columns of int8, int4, int2, uuid (`name_high`, `name_low`), null, or so many
    bytes ("bytes:34")."""

    def __init__(self, columns: Sequence[tuple[str, str]]) -> None:
        fields: list[tuple[str, str]] = [("field_count", ">i2")]
        lengths: dict[str, int] = {}
        for name, kind in columns:
            parts = (f"V{kind[6:]}",) if kind.startswith("bytes:") else _KINDS[kind]
            fields.append((f"{name}_length", ">i4"))
            names = (f"{name}_high", f"{name}_low") if kind == "uuid" else (name,)
            fields.extend(zip(names, parts, strict=False))
            lengths[f"{name}_length"] = sum(np.dtype(part).itemsize for part in parts) if parts else -1
        self.dtype = np.dtype(fields)
        self._blank = np.zeros((), self.dtype)
        self._blank["field_count"] = len(columns)
        for name, length in lengths.items():
            self._blank[name] = length

    def rows(self, count: int) -> npt.NDArray[Any]:
        """So many rows with every length in its place; the values are the caller's to set."""
        rows = np.empty(count, self.dtype)
        rows[:] = self._blank
        return rows


class PackedLayout:
    """Rows as one packed value: PostgreSQL puts the columns' binary forms in a row and the rows in a column, so that a
    million of them are read in a second, where COPY hands over row by row. Columns: (name, kind, SQL expression)."""

    def __init__(self, columns: Sequence[tuple[str, str, str]]) -> None:
        fields: list[tuple[str, str]] = []
        parts: list[str] = []
        for name, kind, expression in columns:
            if kind.startswith("bytes:"):
                fields.append((name, f"V{kind[6:]}"))
                parts.append(f"({expression})")
                continue
            names = (f"{name}_high", f"{name}_low") if kind == "uuid" else (name,)
            fields.extend(zip(names, _KINDS[kind], strict=True))
            parts.append(f"{_SENDS[kind]}({expression})")
        self.dtype = np.dtype(fields)
        self._row = sql.SQL(" || ".join(parts))

    def read(self, cursor: psycopg.Cursor[Any], source: sql.Composable) -> npt.NDArray[Any]:
        """The rows of `source` (what follows FROM), in any order. Raises ValueError if a value has another width."""
        cursor.execute(sql.SQL("SELECT string_agg({}, ''::bytea) FROM {}").format(self._row, source), binary=True)
        result = cursor.pgresult
        data = result.get_value(0, 0) if result is not None else None
        if data is None:
            return np.zeros(0, self.dtype)
        if len(data) % self.dtype.itemsize:
            raise ValueError("a value has another width")
        return np.frombuffer(data, self.dtype)


def copy_in(cursor: psycopg.Cursor[Any], target: str, *rows: bytes) -> None:
    """COPY rows that are laid out already. `target`: table and columns, in the layout's order."""
    with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(HEADER)
        for part in rows:
            copy.write(part)
        copy.write(TRAILER)

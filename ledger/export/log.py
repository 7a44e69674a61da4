"""What an auditor needs of the transparency log: signed checkpoints, and the keys of the leaves' salts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

_PAGE = 10_000

RangeKeys = Callable[[int], bytes | None]
"""Number of a range of 2^20 transfers -> the key of its salts; None if this process was not given the master."""


def no_range_keys(number: int) -> bytes | None:
    return None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    block: int
    """The last one under it, by which it is ordered: several may be of one size."""
    size: int
    """Transfers in the tree: seq 1 to `size`."""
    note: bytes
    """The signed note, with the cosignatures of witnesses that had come by now."""
    supply: bytes = b""
    """The supply statement that the note names by its SHA-256; empty if it was not kept."""


class LogSource(Protocol):
    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        """Those with after < block <= through, by block."""

    def range_key(self, number: int) -> bytes | None:
        """See `RangeKeys`."""


class NoLog:
    """A ledger without a log, or whose log is not asked for."""

    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        return iter(())

    def range_key(self, number: int) -> bytes | None:
        return None


class DatabaseLog:
    """The log's tables, if the database has them."""

    def __init__(self, connection: psycopg.Connection[Any], range_keys: RangeKeys = no_range_keys) -> None:
        self._connection = connection
        self._range_keys = range_keys

    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        if self._all("SELECT to_regclass('log_checkpoint') IS NULL", ())[0][0]:
            return
        while True:
            rows = self._all(_CHECKPOINTS, (after, through, _PAGE))
            for block, size, note, supply, lines in rows:
                after = int(block)
                yield Checkpoint(after, int(size), (note + "".join(lines or ())).encode(), bytes(supply))
            if len(rows) < _PAGE:
                return

    def range_key(self, number: int) -> bytes | None:
        return self._range_keys(number)

    def _all(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            return cursor.execute(sql.SQL(query), parameters).fetchall()


_CHECKPOINTS = (
    "SELECT c.block, c.size, c.note, c.supply,"
    " (SELECT array_agg(line ORDER BY witness) FROM log_cosignature s WHERE s.block = c.block)"
    " FROM log_checkpoint c WHERE c.block > %s AND c.block <= %s ORDER BY c.block LIMIT %s"
)

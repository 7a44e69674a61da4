"""What an auditor needs of the transparency log: signed checkpoints and closings, and what opens their commitments.

The master of the log's salts never leaves the ledger. An export has keys made from it: of the leaves' salts by ranges
of transfers, of each block's commitment, of each closing's leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import psycopg
from psycopg import sql

_PAGE = 10_000
_CLOSING_PAGES = 256
"""Pages of leaves read at a time: 4 MB."""


class LogSalts(Protocol):
    """What opens the log's commitments (`ledger.log.leaves.MasterSalts`); None where this process cannot know."""

    def range_key(self, number: int) -> bytes | None:
        """Key of the salts of a range of 2^20 transfers."""

    def block_salt(self, number: int) -> bytes | None:
        """Of the commitment to a block's hash."""

    def closing_key(self, number: int) -> bytes | None:
        """What order, salts and shares of a closing's leaves follow from."""


class NoSalts:
    """Of a process that was not given the master."""

    def range_key(self, number: int) -> bytes | None:
        return None

    def block_salt(self, number: int) -> bytes | None:
        return None

    def closing_key(self, number: int) -> bytes | None:
        return None


NO_SALTS = NoSalts()


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


@dataclass(frozen=True, slots=True)
class Closing:
    number: int
    note: bytes
    """The signed statement."""
    key: bytes | None
    leaves: Callable[[], Iterator[bytes]]
    """The leaves as kept, some at a time, in tree order."""


class LogSource(Protocol):
    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        """Those with after < block <= through, by block."""

    def closings(self, *, after: int, through: int) -> Iterator[Closing]:
        """Those with a number above `after` of a block up to `through`, by number."""

    def range_key(self, number: int) -> bytes | None:
        """See `LogSalts`."""

    def block_salt(self, number: int) -> bytes | None:
        """See `LogSalts`."""


class NoLog:
    """A ledger without a log, or whose log is not asked for."""

    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        return iter(())

    def closings(self, *, after: int, through: int) -> Iterator[Closing]:
        return iter(())

    def range_key(self, number: int) -> bytes | None:
        return None

    def block_salt(self, number: int) -> bytes | None:
        return None


class DatabaseLog:
    """The log's tables and those of the closings, if the database has them."""

    def __init__(
        self, connection: psycopg.Connection[Any], salts: LogSalts = NO_SALTS, *, has_closings: bool = True
    ) -> None:
        """Not `has_closings`: they are left out, for who reads them in another way."""
        self._connection = connection
        self._salts = salts
        self._has_closings = has_closings

    def checkpoints(self, *, after: int, through: int) -> Iterator[Checkpoint]:
        if self._is_missing("log_checkpoint"):
            return
        while True:
            rows = self._all(_CHECKPOINTS, (after, through, _PAGE))
            for block, size, note, supply, lines in rows:
                after = int(block)
                yield Checkpoint(after, int(size), (note + "".join(lines or ())).encode(), bytes(supply))
            if len(rows) < _PAGE:
                return

    def closings(self, *, after: int, through: int) -> Iterator[Closing]:
        if not self._has_closings or self._is_missing("closing"):
            return
        while rows := self._all(_CLOSINGS, (after, through)):
            for row in rows:
                after = int(row[0])
                yield Closing(after, row[1].encode(), self._salts.closing_key(after), self._leaves_of(after))

    def range_key(self, number: int) -> bytes | None:
        return self._salts.range_key(number)

    def block_salt(self, number: int) -> bytes | None:
        return self._salts.block_salt(number)

    def _leaves_of(self, closing: int) -> Callable[[], Iterator[bytes]]:
        def read() -> Iterator[bytes]:
            after = -1
            while rows := self._all(_CLOSING_LEAVES, (closing, after, _CLOSING_PAGES)):
                after = int(rows[-1][0])
                yield b"".join(bytes(row[1]) for row in rows)

        return read

    def _is_missing(self, table: str) -> bool:
        return bool(self._all("SELECT to_regclass(%s) IS NULL", (table,))[0][0])

    def _all(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            return cursor.execute(sql.SQL(query), parameters).fetchall()


_CHECKPOINTS = (
    "SELECT c.block, c.size, c.note, c.supply,"
    " (SELECT array_agg(line ORDER BY witness) FROM log_cosignature s WHERE s.block = c.block)"
    " FROM log_checkpoint c WHERE c.block > %s AND c.block <= %s ORDER BY c.block LIMIT %s"
)
_CLOSINGS = "SELECT number, statement FROM closing WHERE number > %s AND block <= %s ORDER BY number LIMIT 100"
_CLOSING_LEAVES = "SELECT page, leaves FROM closing_page WHERE closing = %s AND page > %s ORDER BY page LIMIT %s"

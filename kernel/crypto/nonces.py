"""Request nonces taken once: what a signature alone cannot say is whether it was seen before."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.clock import Clock, system_clock
from kernel.limits import NONCES_IN_MEMORY_MAX


class NonceStore(Protocol):
    def take(self, key_id: str, nonce: str, expires_at: datetime) -> bool:
        """True the first time; False if it was taken already (or cannot be remembered). Forgotten after expires_at."""
        ...


class MemoryNonceStore:
    """For one process whose restart is longer than a signature's life, or for tests. Bounded; full means refusal."""

    def __init__(self, *, clock: Clock = system_clock, nonces_max: int = NONCES_IN_MEMORY_MAX) -> None:
        self._clock = clock
        self._nonces_max = nonces_max
        self._taken: set[tuple[str, str]] = set()
        self._by_expiry: list[tuple[datetime, tuple[str, str]]] = []
        self._lock = threading.Lock()

    def take(self, key_id: str, nonce: str, expires_at: datetime) -> bool:
        entry = (key_id, nonce)
        with self._lock:
            now = self._clock()
            while self._by_expiry and self._by_expiry[0][0] < now:
                self._taken.discard(heapq.heappop(self._by_expiry)[1])
            if entry in self._taken or len(self._taken) >= self._nonces_max:
                return False
            self._taken.add(entry)
            heapq.heappush(self._by_expiry, (expires_at, entry))
            return True


def nonce_table(metadata: sa.MetaData, schema: str | None = None) -> sa.Table:
    """The table `request_nonce` (the same object on later calls with one metadata)."""
    name = "request_nonce" if schema is None else f"{schema}.request_nonce"
    if name in metadata.tables:
        return metadata.tables[name]
    return sa.Table(
        "request_nonce",
        metadata,
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("nonce", sa.Text, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="request_nonce_pk"),
        sa.Index("request_nonce_expires_at", "expires_at"),
        schema=schema,
    )


class PostgresNonceStore:
    """Remembers across restarts and processes; each nonce in a short transaction of its own.

    `transaction` opens one: `lambda: database.transaction(isolation="READ COMMITTED")`.
    Where the effect is one transaction too, `take_in` takes the nonce inside it.
    """

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[sa.Connection]],
        *,
        clock: Clock = system_clock,
        table: sa.Table | None = None,
        purge_every: int = 1_000,
    ) -> None:
        self._transaction = transaction
        self._clock = clock
        self._table = nonce_table(sa.MetaData()) if table is None else table
        self._purge_every = purge_every
        self._taken_since_purge = 0

    def take(self, key_id: str, nonce: str, expires_at: datetime) -> bool:
        with self._transaction() as connection:
            self._taken_since_purge += 1
            if self._taken_since_purge >= self._purge_every:
                self._taken_since_purge = 0
                purge(connection, now=self._clock(), table=self._table)
            return take_in(connection, key_id, nonce, expires_at, table=self._table)


def take_in(
    connection: sa.Connection, key_id: str, nonce: str, expires_at: datetime, *, table: sa.Table | None = None
) -> bool:
    """Take a nonce in the caller's transaction; if that rolls back, the nonce is free again with its effects undone."""
    table = nonce_table(sa.MetaData()) if table is None else table
    statement = insert(table).values(key_id=key_id, nonce=nonce, expires_at=expires_at)
    # RETURNING, because SQLAlchemy does not report how many rows an INSERT made.
    return connection.execute(statement.on_conflict_do_nothing().returning(table.c.nonce)).first() is not None


def purge(connection: sa.Connection, *, now: datetime, table: sa.Table | None = None) -> int:
    """Forget expired nonces; returns how many."""
    table = nonce_table(sa.MetaData()) if table is None else table
    return connection.execute(table.delete().where(table.c.expires_at < now)).rowcount

"""Request nonces taken once: what a signature alone cannot say is whether it was seen before."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any, Protocol

import psycopg
import sqlalchemy as sa

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
    """Remembers across restarts and processes.

    `session` opens a connection whose statements commit by themselves, without waiting for the disk:
    `lambda: database.session(is_lazy=True)`. A crash of the database server (not of the service) may forget the nonces
    of the last second; whoever then replays such a request repeats a write under the same ids, which books nothing new
    (I7), or reads again what he has intercepted. To wait for the disk in every signed request would be too dear.
    """

    def __init__(
        self,
        session: Callable[[], AbstractContextManager[psycopg.Connection[Any]]],
        *,
        clock: Clock = system_clock,
        table: sa.Table | None = None,
        purge_every: int = 1_000,
    ) -> None:
        self._session = session
        self._clock = clock
        self._table = (nonce_table(sa.MetaData()) if table is None else table).fullname
        self._purge_every = purge_every
        self._taken_since_purge = 0

    def take(self, key_id: str, nonce: str, expires_at: datetime) -> bool:
        with self._session() as connection:
            self._taken_since_purge += 1
            if self._taken_since_purge >= self._purge_every:
                self._taken_since_purge = 0
                connection.execute(f"DELETE FROM {self._table} WHERE expires_at < %s", (self._clock(),))
            taken = connection.execute(
                f"INSERT INTO {self._table} (key_id, nonce, expires_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (key_id, nonce, expires_at),
                prepare=True,
            )
            return taken.rowcount == 1

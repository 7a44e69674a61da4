"""Idempotency-Key: the answer is stored in the same transaction as the work, so both happen once or neither does.

Codes follow draft-ietf-httpapi-idempotency-key-header-07 (missing, other payload, in flight). Scope is (client, key).
This repeats answers; what makes money move once is the transfer id, which is unique for ever.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from kernel.clock import Clock, system_clock
from kernel.errors import ProblemError, RequestRefusal

REPLAYED_HEADER = "Idempotency-Replayed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What to answer. `replayed` says it is a stored answer: send `Idempotency-Replayed: true`."""

    status: int
    body: dict[str, Any]
    replayed: bool

    @property
    def headers(self) -> dict[str, str]:
        return {REPLAYED_HEADER: "true"} if self.replayed else {}


def idempotency_table(metadata: sa.MetaData, schema: str | None = None) -> sa.Table:
    """The table `idempotency` (created once per metadata; the same object on later calls)."""
    name = "idempotency" if schema is None else f"{schema}.idempotency"
    if name in metadata.tables:
        return metadata.tables[name]
    return sa.Table(
        "idempotency",
        metadata,
        sa.Column("client", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.LargeBinary, nullable=False),
        sa.Column("status", sa.SmallInteger, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("client", "key", name="idempotency_pk"),
        sa.CheckConstraint("length(key) between 1 and 255", name="idempotency_key_length"),
        sa.CheckConstraint("octet_length(fingerprint) = 32", name="idempotency_fingerprint_length"),
        sa.CheckConstraint("status between 200 and 499", name="idempotency_status_range"),
        sa.Index("idempotency_created_at", "created_at"),
        schema=schema,
    )


def fingerprint(method: str, path: str, body: bytes) -> bytes:
    """32 bytes that differ when method, path or body differ."""
    digest = hashlib.sha256()
    for part in (method.encode(), path.encode(), body):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def run_once(
    connection: sa.Connection,
    *,
    client: str,
    key: str,
    fingerprint: bytes,
    work: Callable[[], tuple[int, dict[str, Any]]],
    table: sa.Table | None = None,
    clock: Clock = system_clock,
) -> Outcome:
    """Do `work` once for (client, key) and store its answer, all in the caller's open READ COMMITTED transaction.

    `work` returns (status 200-499, JSON body) and runs at most once per key that commits; business refusals it
    returns are stored, exceptions it raises roll everything back and nothing is stored. The first committed answer is
    repeated for ever (until purged). `table` is a table made by `idempotency_table`, if it lives in a schema.
    Raises: ProblemError(IDEMPOTENCY_KEY_REUSED | IDEMPOTENCY_IN_PROGRESS).
    """
    table = idempotency_table(sa.MetaData()) if table is None else table
    # 1. The key's lock, held to the end of the transaction. A second request does not wait: it is told to come back.
    if not connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(_lock_number(client, key)))).scalar_one():
        raise ProblemError(RequestRefusal.IDEMPOTENCY_IN_PROGRESS, "repeat the same request in a moment")
    # 2. Under the lock, what an earlier transaction committed is visible (each statement of READ COMMITTED sees it).
    stored = connection.execute(
        sa.select(table.c.fingerprint, table.c.status, table.c.body).where(table.c.client == client, table.c.key == key)
    ).one_or_none()
    if stored is not None:
        if bytes(stored.fingerprint) != fingerprint:
            raise ProblemError(RequestRefusal.IDEMPOTENCY_KEY_REUSED, "use a new key for another request")
        return Outcome(stored.status, stored.body, replayed=True)
    # 3. Do it, and store the answer. The primary key is the second guard: under REPEATABLE READ, where step 2 may read
    #    an older snapshot, a duplicate fails here and takes its work with it.
    status, body = work()
    connection.execute(
        table.insert().values(
            client=client, key=key, fingerprint=fingerprint, status=status, body=body, created_at=clock()
        )
    )
    return Outcome(status, body, replayed=False)


def purge(connection: sa.Connection, *, before: datetime, table: sa.Table | None = None) -> int:
    """Delete answers stored before a time; returns how many. Keys may then be used anew."""
    table = idempotency_table(sa.MetaData()) if table is None else table
    return connection.execute(table.delete().where(table.c.created_at < before)).rowcount


def _lock_number(client: str, key: str) -> int:
    # 64 bits: two different keys in flight share one with chance 2^-64 and then only wait for a retry.
    digest = hashlib.sha256(f"idempotency\0{len(client)}\0{client}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)

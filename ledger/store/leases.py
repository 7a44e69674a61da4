"""The lease's one row, for whoever waits for it or keeps it (`ledger.engine.lease`). Writing blocks is fenced by the
row's epoch, in `ledger.store.journal`; who the holder is, is a matter of its column `node`, unique to one process.

Every function is one statement on a connection that `prepare` put into autocommit mode: a process that is stopped
between two of them leaves no lock behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import psycopg
from psycopg.rows import TupleRow

from kernel.clock import to_micros

NOBODY = ""
"""The lease's holder after a clean stop."""
WRITER = "jiaozi-ledger writer"
"""How a session that writes blocks calls itself, followed by its holder's unique part."""
LEASE_KEEPER = "jiaozi-ledger-lease"
"""How the session that waits for the lease or keeps it calls itself: the only one that a standby has."""
WRITERS = ("jiaozi-ledger ", "jiaozi-log ")
"""How all other sessions of a ledger (blocks, history, closings, requests) and of its transparency log begin their
names: only a writer has any."""
LOCK_WAIT = "2s"
"""A block's transaction holds the row for milliseconds; one that holds it longer belongs to a stopped process."""


@dataclass(frozen=True, slots=True)
class Held:
    """The lease as it stands. `renewed_at` tells one renewal from the next; it is no measure of time, because the
    database's clock can be set."""

    holder: str
    renewed_at: datetime


def prepare(connection: psycopg.Connection[TupleRow]) -> None:
    """Once a connection: what waits for the row longer than LOCK_WAIT raises psycopg.errors.LockNotAvailable."""
    connection.autocommit = True
    connection.execute(f"SET lock_timeout = '{LOCK_WAIT}'")
    connection.execute(f"SET application_name = '{LEASE_KEEPER}'")


def look(connection: psycopg.Connection[TupleRow]) -> Held | None:
    """Who has the lease; None before the first."""
    row = connection.execute("SELECT node, renewed_at FROM lease WHERE id = 1").fetchone()
    return Held(*row) if row is not None else None


def take(connection: psycopg.Connection[TupleRow], *, holder: str, before: Held | None) -> int | None:
    """Become the writer unless the row has moved since it was looked at. Returns the new epoch, which fences off every
    earlier one; a commit under way has ended before this returns, because it holds the row's lock.
    """
    row = connection.execute(
        "INSERT INTO lease (id, epoch, node, renewed_at) VALUES (1, 1, %(holder)s, clock_timestamp())"
        " ON CONFLICT (id) DO UPDATE SET epoch = lease.epoch + 1, node = %(holder)s, renewed_at = clock_timestamp()"
        " WHERE lease.node = %(node)s AND lease.renewed_at = %(renewed_at)s RETURNING epoch",
        {
            "holder": holder,
            "node": before.holder if before is not None else None,
            "renewed_at": before.renewed_at if before is not None else None,
        },
    ).fetchone()
    return int(row[0]) if row is not None else None


def renew(connection: psycopg.Connection[TupleRow], *, holder: str) -> int | None:
    """Say that the holder lives. Returns the database's time (microseconds since 1970); None: another has the lease."""
    row = connection.execute(
        "UPDATE lease SET renewed_at = clock_timestamp() WHERE id = 1 AND node = %s RETURNING renewed_at", (holder,)
    ).fetchone()
    return to_micros(row[0]) if row is not None else None


def release(connection: psycopg.Connection[TupleRow], *, holder: str) -> None:
    """Let a standby take over at once."""
    connection.execute("UPDATE lease SET node = %s WHERE id = 1 AND node = %s", (NOBODY, holder))


def end_other_writers(connection: psycopg.Connection[TupleRow], *, own: str) -> None:
    """Before the lease changes hands: end all sessions of earlier writers. One that belongs to a stopped process may
    be inside a transaction, and its half-written ids, runs of history or pages of a closing would keep everybody who
    writes the same waiting until it goes on.

    Needs no privilege: a role may end its own sessions. Of our own, none but `own` and the lease's is there yet.
    """
    connection.execute(
        "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = current_database()"
        " AND usename = current_user AND application_name <> %s"
        " AND (starts_with(application_name, %s) OR starts_with(application_name, %s))",
        (own, *WRITERS),
    )

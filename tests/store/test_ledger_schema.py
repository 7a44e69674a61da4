"""The ledger's migrations make exactly the declared tables, and the tables refuse what the engine never writes.

Goal: I1, I3, I6 and I7 have their second lock in the database.
Method: a migrated database; compare with the metadata; try to insert what must not be there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel import migrate
from kernel.database import Database
from ledger.log import tables as _log_tables  # noqa: F401  its tables are in the same metadata
from ledger.store import closing_tables as _closing_tables  # noqa: F401  the same
from ledger.store.tables import metadata


def test_migrations_make_the_declared_tables(fresh_database: Callable[[str], str]) -> None:
    assert migrate.differences(fresh_database("ledger"), metadata) == []


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("INSERT INTO transfer VALUES ('{a}', 1, 5, 5, 10, now(), 1, 4)", "transfer_i1"),
        ("INSERT INTO transfer VALUES ('{a}', 1, 5, 6, 0, now(), 1, 4)", "transfer_i1"),
        ("INSERT INTO transfer VALUES ('{a}', 1, 5, 6, -3, now(), 1, 4)", "transfer_i1"),
        ("INSERT INTO transfer VALUES ('{a}', 1, 0, 6, 3, now(), 1, 4)", "transfer_i1"),
        ("INSERT INTO transfer VALUES ('{a}', 1, 5, 6, 3, now(), 1, 12)", "transfer_i1"),
        ("INSERT INTO balance_page VALUES (7, -1, decode(repeat('00', 1536), 'hex'))", "balance_page_i3"),
        ("INSERT INTO balance_page VALUES (7, 0, decode(repeat('00', 1535), 'hex'))", "balance_page_size"),
        ("INSERT INTO account VALUES (7, '{a}', 2, 1, 'none', NULL, now())", "account_i8"),
        ("INSERT INTO lease VALUES (2, 1, 'x', now())", "lease_is_single"),
        ("INSERT INTO hold_event VALUES ('{a}', 2, 1, '{b}', 8, NULL, NULL, NULL)", "hold_event_phase"),
    ],
)
def test_the_database_refuses_what_breaks_an_invariant(
    fresh_database: Callable[[str], str], statement: str, constraint: str
) -> None:
    database = Database(fresh_database("ledger"), application_name="test")
    with (
        pytest.raises(IntegrityError, match=constraint),
        database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.execute(sa.text(statement.format(a=uuid4(), b=uuid4())))
    database.close()


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("INSERT INTO transfer VALUES ('{a}', 1, 5, 6, 3, now(), 1, 4)", "transfer_pkey"),
        ("INSERT INTO hold_event VALUES ('{a}', 1, 1, '{b}', 8, NULL, NULL, NULL)", "hold_event_i6"),
    ],
)
def test_the_database_takes_an_id_and_a_holds_end_once(
    fresh_database: Callable[[str], str], statement: str, constraint: str
) -> None:
    database = Database(fresh_database("ledger"), application_name="test")
    text = sa.text(statement.format(a=uuid4(), b=uuid4()))
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(text)
    with (
        pytest.raises(IntegrityError, match=constraint),
        database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.execute(text)
    database.close()


def test_the_balance_view_adds_the_tail_to_the_snapshot(fresh_database: Callable[[str], str]) -> None:
    database = Database(fresh_database("ledger"), application_name="test")
    with database.transaction(isolation="READ COMMITTED") as connection:
        for statement in (
            "INSERT INTO snapshot VALUES (1, 1, 10)",
            f"INSERT INTO balance_page VALUES (0, 0, decode('{_page_of({5: (30, 100)})}', 'hex'))",
            f"INSERT INTO transfer VALUES ('{uuid4()}', 10, 5, 6, 30, now(), 1, 4)",
            f"INSERT INTO transfer VALUES ('{uuid4()}', 11, 5, 6, 7, now(), 1, 4)",
            f"INSERT INTO transfer VALUES ('{uuid4()}', 12, 5, 6, 9, now(), 1, 7)",
        ):
            connection.execute(sa.text(statement))
        rows = connection.execute(
            sa.text("SELECT account, credits_posted - debits_posted FROM account_balance_now ORDER BY account")
        ).all()
    database.close()
    assert [(row[0], int(row[1])) for row in rows] == [(5, 63), (6, 7)]


def _page_of(totals: dict[int, tuple[int, int]]) -> str:
    """The body of page 0 with these debits and credits, in hexadecimal."""
    rows = [(*totals.get(account, (0, 0)), 0, 0, 0, 0) for account in range(32)]
    return b"".join(struct.pack(">6q", *row) for row in rows).hex()


def test_autovacuum_comes_to_the_journal_after_a_fixed_number_of_rows(fresh_database: Callable[[str], str]) -> None:
    """Not after a share of them: at a billion rows a run must be as short as at ten million."""
    database = Database(fresh_database("ledger"), application_name="test")
    query = "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND reloptions IS NOT NULL"
    with database.transaction(isolation="READ COMMITTED") as connection:
        found = {name: dict(item.split("=") for item in given) for name, given in connection.execute(sa.text(query))}
    database.close()
    assert found.keys() == {"transfer", "evidence", "history_page", "account", "balance_page"}
    rewritten = found.pop("balance_page")
    assert float(rewritten["autovacuum_vacuum_scale_factor"]) < 0.2
    assert rewritten["autovacuum_vacuum_insert_threshold"] == "-1"
    for options in found.values():
        assert float(options["autovacuum_vacuum_insert_scale_factor"]) == 0
        assert int(options["autovacuum_vacuum_insert_threshold"]) >= 100_000
        assert int(options["autovacuum_freeze_min_age"]) == 0

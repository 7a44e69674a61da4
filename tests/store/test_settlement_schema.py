"""Goal: the database refuses what the settlement core refuses, by means of its own (pair assertions for I5).

Method: migrate a real PostgreSQL, compare it with the declared tables, then try each forbidden row by plain SQL.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import psycopg
import pytest

from kernel import migrate
from settlement.store.schema import metadata

BATCH = "00000000-0000-7000-8000-0000000000b1"
ONE = "00000000-0000-7000-8000-000000000001"


@pytest.fixture
def connection(fresh_database: Callable[[str], str]):
    url = fresh_database("settlement").replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as found:
        found.execute("INSERT INTO batch VALUES (%s, 'BRDGAEAD', 'm', 'csv', %s, 1, now(), now())", [BATCH, bytes(32)])
        found.execute(
            "INSERT INTO settlement (id, batch_id, position, instruction_id, end_to_end_id, uetr, debtor, creditor,"
            " value_date, priority, state) VALUES (%s, %s, 1, 'i', 'e', %s, 'A', 'B', now(), 2, 'received')",
            [ONE, BATCH, ONE],
        )
        found.execute(
            "INSERT INTO leg"
            " (settlement_id, number, ledger, payer, payee, debit, credit, amount_minor, currency, state)"
            " VALUES (%s, 0, 'cny', 'A', 'B', 1, 2, 5, 'CNY', 'held')",
            [ONE],
        )
        yield found


def decide(connection: psycopg.Connection, kind: str) -> None:
    reason = None if kind == "commit" else "leg-refused"
    connection.execute(
        "INSERT INTO decision (settlement_id, decision, epoch, decided_at, reason) VALUES (%s, %s, 1, now(), %s)",
        [ONE, kind, reason],
    )


def test_migrations_make_exactly_the_declared_tables(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("settlement")
    assert migrate.is_current("settlement", url)
    assert migrate.differences(url, metadata) == []


@pytest.mark.parametrize(("first", "second"), [("commit", "abort"), ("abort", "commit"), ("commit", "commit")])
def test_i5_a_second_decision_is_refused(connection: psycopg.Connection, first: str, second: str) -> None:
    decide(connection, first)
    with pytest.raises(psycopg.errors.UniqueViolation):
        decide(connection, second)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE decision SET decision = 'abort', reason = 'operator'",
        "UPDATE decision SET decided_at = now()",
        "DELETE FROM decision",
        "TRUNCATE decision CASCADE",
    ],
)
def test_i5_a_decision_cannot_be_changed_or_removed(connection: psycopg.Connection, change: str) -> None:
    decide(connection, "commit")
    with pytest.raises(psycopg.errors.RestrictViolation, match="I5"):
        connection.execute(change)


@pytest.mark.parametrize(
    ("decided", "leg_decision", "leg_state"),
    [
        (None, None, "posted"),
        (None, None, "voided"),
        (None, "commit", "posted"),
        ("abort", "abort", "posted"),
        ("abort", "commit", "posted"),
        ("commit", "commit", "voided"),
    ],
)
def test_i5_a_leg_ends_only_as_decided(
    connection: psycopg.Connection, decided: str | None, leg_decision: str | None, leg_state: str
) -> None:
    if decided is not None:
        decide(connection, decided)
    with pytest.raises((psycopg.errors.CheckViolation, psycopg.errors.ForeignKeyViolation), match=re.compile("i5")):
        connection.execute("UPDATE leg SET decision = %s, state = %s", [leg_decision, leg_state])


@pytest.mark.parametrize("amount", [0, -1])
def test_a_leg_moves_a_positive_amount(connection: psycopg.Connection, amount: int) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match="leg_amount_positive"):
        connection.execute("UPDATE leg SET amount_minor = %s", [amount])


def test_a_settlement_leaves_received_only_with_two_different_hashes(connection: psycopg.Connection) -> None:
    same = bytes(32)
    with pytest.raises(psycopg.errors.CheckViolation, match="settlement_hashes"):
        connection.execute(
            "UPDATE settlement SET state = 'prepared', epoch = 1, commit_hash = %s, abort_hash = %s", [same, same]
        )

"""Goal: the database itself refuses what an officer must never do: close a break for nothing, approve alone, rewrite.

Method: a real PostgreSQL as the tables' owner; each forbidden row by plain SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg import errors

from kernel.database import Database
from kernel.ids import ParticipantId, new_uuid7
from settlement.store import reconciliation as store
from settlement.store.reconciliation import SourceRow

BREAK = "00000000-0000-7000-8000-0000000000b1"
REPAIR = "00000000-0000-7000-8000-0000000000a1"
SIGNED = {"decision_id": "00000000-0000-7000-8000-0000000000d1", "token": "t", "actor_key": "k"}


@pytest.fixture
def connection(fresh_database: Callable[[str], str]) -> Iterator[psycopg.Connection[Any]]:
    url = fresh_database("settlement").replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(url, autocommit=True) as found:
        found.execute(
            "INSERT INTO reconciliation_break (id, participant, counterparty, currency, account, view, key, type, also,"
            " our_references, their_references, our_positions, their_positions, gross, gross_minor, oldest, sentence,"
            " created_at) VALUES (%s, 'A', 'B', 'CNY', 'acc', 'mirror', %s, 'amount', '{}', '{}', '{}', '{}', '{}',"
            " '{}', 5, now(), 's', now())",
            [BREAK, bytes(32)],
        )
        found.execute(
            "INSERT INTO reconciliation_repair VALUES (%s, %s, 'claim', 'A', 'B', 5, 'CNY', 'ann', 'ka', now())",
            [REPAIR, BREAK],
        )
        event(found, 1, "opened", "open")
        yield found


def event(connection: psycopg.Connection[Any], sequence: int, kind: str, state: str, **more: Any) -> None:
    values = {
        "break_id": BREAK,
        "sequence": sequence,
        "kind": kind,
        "state": state,
        "actor": "ann",
        "at": "2026-11-02T00:00:00Z",
        "reason": "",
    } | more
    names = ", ".join(values)
    places = ", ".join(["%s"] * len(values))
    connection.execute(f"INSERT INTO reconciliation_event ({names}) VALUES ({places})".encode(), list(values.values()))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("explained", SIGNED | {"reason": "         x "}),
        ("explained", {"reason": "long enough, and signed by nobody"}),
        ("late-side", {}),
        ("rematched", SIGNED),
        ("booked", {}),
        ("booked", {"repair_id": REPAIR}),
        ("approved", SIGNED | {"repair_id": REPAIR}),
        ("reopened", SIGNED),
        ("opened", {}),
    ],
)
def test_nothing_closes_a_break_without_a_reason_a_booking_or_the_late_side(
    connection: psycopg.Connection[Any], kind: str, more: dict[str, Any]
) -> None:
    state = {"approved": "approved", "reopened": "open", "opened": "open"}.get(kind, "closed")
    with pytest.raises((errors.CheckViolation, errors.RestrictViolation)):
        event(connection, 2, kind, state, **more)


def test_a_state_is_that_of_its_event_and_a_history_has_no_gap(connection: psycopg.Connection[Any]) -> None:
    with pytest.raises(errors.CheckViolation, match="reconciliation_event_state"):
        event(connection, 2, "assigned", "closed", **SIGNED, assignee="x")
    with pytest.raises(errors.RestrictViolation):
        event(connection, 3, "explained", "closed", **SIGNED, reason="long enough to be read")
    event(connection, 2, "explained", "closed", **SIGNED, reason="long enough to be read")
    with pytest.raises(errors.RestrictViolation):
        event(connection, 3, "assigned", "assigned", **SIGNED, assignee="x")


@pytest.mark.parametrize(("checker", "key"), [("ann", "kb"), ("ben", "ka")])
def test_four_eyes_are_two_persons_and_two_keys(connection: psycopg.Connection[Any], checker: str, key: str) -> None:
    insert = "INSERT INTO reconciliation_approval VALUES (%s, %s, %s, %s, %s, NULL, now())"
    with pytest.raises(errors.CheckViolation, match="reconciliation_four_eyes"):
        connection.execute(insert, [REPAIR, "ann", "ka", checker, key])
    with pytest.raises(errors.ForeignKeyViolation):
        connection.execute(insert, [REPAIR, "eve", "ke", "ben", "kb"])


def test_what_is_booked_is_what_two_officers_have_approved(connection: psycopg.Connection[Any]) -> None:
    book = "INSERT INTO reconciliation_booking VALUES (%s, %s, %s, %s, %s, 'CNY', NULL, now())"
    with pytest.raises(errors.RestrictViolation):
        connection.execute(book, [REPAIR, BREAK, "A", "B", 5])
    approve = "INSERT INTO reconciliation_approval VALUES (%s, 'ann', 'ka', 'ben', 'kb', NULL, now())"
    connection.execute(approve, [REPAIR])
    for debtor, creditor, amount in (("B", "A", 5), ("A", "B", 6)):
        with pytest.raises(errors.RestrictViolation):
            connection.execute(book, [REPAIR, BREAK, debtor, creditor, amount])
    connection.execute(book, [REPAIR, BREAK, "A", "B", 5])


@pytest.mark.parametrize("table", ["reconciliation_event", "reconciliation_break", "reconciliation_repair"])
def test_history_is_never_changed(connection: psycopg.Connection[Any], table: str) -> None:
    for change in (f"DELETE FROM {table}", f"TRUNCATE {table} CASCADE"):
        with pytest.raises(errors.RestrictViolation):
            connection.execute(change.encode())


@pytest.mark.parametrize(
    ("rule", "ours", "theirs", "is_kept"),
    [
        ("uetr", 1, 1, True),
        ("uetr", 0, 1, False),
        ("subset", 1, 0, False),
        ("reversed", 0, 2, True),
        ("reversed", 2, 0, True),
        ("reversed", 1, 1, False),
        ("reversed", 0, 3, False),
        ("replaced", 0, 1, True),
        ("replaced", 1, 1, False),
        ("replaced", 0, 0, False),
    ],
)
def test_only_what_one_side_settles_with_itself_is_a_match_of_one_side(
    connection: psycopg.Connection[Any], rule: str, ours: int, theirs: int, is_kept: bool
) -> None:
    connection.execute("ALTER TABLE reconciliation_match DROP CONSTRAINT reconciliation_match_run_id_fkey")
    insert = "INSERT INTO reconciliation_match VALUES (gen_random_uuid(), 1, %s, '{}', '{}', %s, %s, 0)"
    with nullcontext() if is_kept else pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(insert, [rule, ["r"] * ours, ["r"] * theirs])


def statement(number: int | None, minor: int, *, day: int, name: str = "STMT") -> SourceRow:
    moment = datetime(2026, 11, day, tzinfo=UTC)
    return SourceRow(
        new_uuid7(), ParticipantId("BANKAEAD"), "BANKB", "camt.053", 0, bytes([minor]) * 32, 1, 1, "acc_1", "AED",
        name, number, 0, minor, moment, None, "BANKAEAD", moment,
    )  # fmt: skip


def test_a_statement_follows_on_the_one_before_though_all_have_one_id(fresh_database: Callable[[str], str]) -> None:
    """Among numbered ones the number says which is before; the id only tells a statement without one from itself."""
    with (
        closing(Database(fresh_database("settlement"), application_name="test")) as database,
        database.transaction(isolation="READ COMMITTED") as connection,
    ):
        numbered = [statement(number, number, day=number) for number in (1, 2, 4)]
        bare = [statement(None, 5, day=5), statement(None, 6, day=6, name="B"), statement(None, 7, day=7, name="B")]
        for row in (*numbered, *bare):
            store.insert_source(connection, row)
        found = [store.source_before(connection, row) for row in (*numbered, *bare)]
    closings = [None if row is None else row.closing_minor for row in found]
    assert closings == [None, 1, 2, None, 5, 5]

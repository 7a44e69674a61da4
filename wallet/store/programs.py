"""The SQL of programmable money: psycopg, because it shares transactions with the payers' locks (`store.carriage`).

Whoever changes a program locks its row first; then, if need be, the payer's wallet. Payments lock wallets and no
program, so the two orders cannot meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.types.json import Jsonb

from wallet.domain.program_records import Merchant, Part, Program, Spend, Statement, Voucher
from wallet.store.carriage import Connection
from wallet.store.rows import dict_row

_JSON = {"terms", "body", "recipient_key", "key"}


def insert_template(connection: Connection, sha256: bytes, *, name: str, version: int, body: dict[str, Any]) -> None:
    connection.execute(
        "INSERT INTO program_template (sha256, name, version, body) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING",
        (sha256, name, version, Jsonb(body)),
    )


def find_template(connection: Connection, sha256: bytes) -> dict[str, Any] | None:
    row = connection.execute("SELECT body FROM program_template WHERE sha256 = %s", (sha256,)).fetchone()
    return None if row is None else dict(row[0])


# --- programs --------------------------------------------------------------------------------------------------------


def insert_program(
    connection: Connection, program: Program, parts: Sequence[Part], vouchers: Sequence[Voucher]
) -> None:
    """Raises: psycopg.errors.UniqueViolation if the id, or one of a voucher's, is taken."""
    _insert(connection, "program", [program])
    _insert(connection, "program_voucher", vouchers)
    _insert(connection, "program_hold", parts, without=("outcome", "because", "decided_at"))


def find_program(connection: Connection, program_id: UUID, *, lock: bool = False) -> Program | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(f"SELECT * FROM program WHERE id = %s{' FOR UPDATE' if lock else ''}", (program_id,))
        row = cursor.fetchone()
    return None if row is None else _program(row)


def list_programs(connection: Connection, wallet_id: UUID, *, after: UUID | None, limit: int) -> list[Program]:
    """In order of id, which is order of creation on the client's clock."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM program WHERE wallet_id = %s AND (%s::uuid IS NULL OR id > %s) ORDER BY id LIMIT %s",
            (wallet_id, after, after, limit),
        )
        return [_program(row) for row in cursor]


def programs_due(connection: Connection, *, now: datetime, limit: int, but: Sequence[UUID] = ()) -> list[UUID]:
    """Programs that the periodic pass is to look at, but those, the longest due first."""
    rows = connection.execute(
        "SELECT id FROM program WHERE wake_at <= %s AND NOT id = ANY(%s::uuid[]) ORDER BY wake_at, id LIMIT %s",
        (now, list(but), limit),
    ).fetchall()
    return [row[0] for row in rows]


def still_due(connection: Connection, programs: Sequence[UUID], *, now: datetime) -> list[UUID]:
    """Those among them that would be looked at again at once."""
    rows = connection.execute(
        "SELECT id FROM program WHERE id = ANY(%s::uuid[]) AND wake_at <= %s", (list(programs), now)
    ).fetchall()
    return [row[0] for row in rows]


def save_program(connection: Connection, program: Program) -> None:
    """Everything that changes; its row must be locked."""
    connection.execute(
        "UPDATE program SET shown_secret = %s, state = %s, held_minor = %s, released_minor = %s, returned_minor = %s,"
        " change_minor = %s, funded_at = %s, evaluated_at = %s, wake_at = %s, counted_on = %s, refusal = %s,"
        " detail = %s WHERE id = %s",
        (
            program.shown_secret,
            program.state,
            program.held_minor,
            program.released_minor,
            program.returned_minor,
            program.change_minor,
            program.funded_at,
            program.evaluated_at,
            program.wake_at,
            program.counted_on,
            program.refusal,
            program.detail,
            program.id,
        ),
    )


# --- holds and decisions ---------------------------------------------------------------------------------------------


def parts_of(connection: Connection, program_id: UUID) -> list[Part]:
    """In order of number, each with its decision."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT program_hold.*, outcome, because, decided_at FROM program_hold"
            " LEFT JOIN program_decision ON hold_id = program_hold.id WHERE program_id = %s ORDER BY number",
            (program_id,),
        )
        return [Part(**row) for row in cursor]


def save_instructions(connection: Connection, instructions: Sequence[tuple[UUID, str]]) -> None:
    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE program_hold SET instruction = %s WHERE id = %s AND state = 'proposed'",
            [(token, hold_id) for hold_id, token in instructions],
        )


def mark_held(connection: Connection, program_id: UUID) -> None:
    connection.execute(
        "UPDATE program_hold SET state = 'held' WHERE program_id = %s AND state = 'proposed'", (program_id,)
    )


def end_part(connection: Connection, hold_id: UUID, *, state: str, ended_at: datetime) -> bool:
    """False if it has ended before (I6)."""
    ended = connection.execute(
        "UPDATE program_hold SET state = %s, ended_at = %s WHERE id = %s AND state IN ('proposed', 'held')",
        (state, ended_at, hold_id),
    )
    return ended.rowcount == 1


def insert_decision(connection: Connection, hold_id: UUID, *, outcome: str, because: str, decided_at: datetime) -> None:
    """Raises: psycopg.errors.UniqueViolation if there is one: a decision is never changed."""
    connection.execute(
        "INSERT INTO program_decision (hold_id, outcome, because, decided_at) VALUES (%s, %s, %s, %s)",
        (hold_id, outcome, because, decided_at),
    )


# --- statements ------------------------------------------------------------------------------------------------------


def insert_statement(connection: Connection, statement: Statement) -> None:
    _insert(connection, "program_statement", [statement])


def find_statement(connection: Connection, statement_id: UUID) -> Statement | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_statement WHERE id = %s", (statement_id,))
        row = cursor.fetchone()
    return None if row is None else Statement(**row)


def statements_of(connection: Connection, program_id: UUID) -> list[Statement]:
    """In the order in which they were taken."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_statement WHERE program_id = %s ORDER BY taken_at, id", (program_id,))
        return [Statement(**row) for row in cursor]


# --- vouchers and purchases ------------------------------------------------------------------------------------------


def find_voucher(connection: Connection, voucher_id: UUID) -> Voucher | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_voucher WHERE id = %s", (voucher_id,))
        row = cursor.fetchone()
    return None if row is None else Voucher(**row)


def add_to_voucher(connection: Connection, voucher_id: UUID, *, spent_minor: int, change_minor: int) -> None:
    connection.execute(
        "UPDATE program_voucher SET spent_minor = spent_minor + %s, change_minor = change_minor + %s WHERE id = %s",
        (spent_minor, change_minor, voucher_id),
    )


def insert_spend(connection: Connection, spend: Spend, parts: Sequence[UUID]) -> None:
    """A new purchase, with the holds that pay it."""
    _insert(connection, "program_spend", [spend])
    connection.execute(
        "UPDATE program_hold SET spend_id = %s WHERE id = ANY(%s::uuid[]) AND spend_id IS NULL AND state = 'held'",
        (spend.id, list(parts)),
    )


def find_spend(connection: Connection, spend_id: UUID) -> Spend | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_spend WHERE id = %s", (spend_id,))
        row = cursor.fetchone()
    return None if row is None else Spend(**row)


def find_spend_of(connection: Connection, payment_id: UUID) -> Spend | None:
    """The purchase that this transfer to the merchant belongs to."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_spend WHERE payment_id = %s", (payment_id,))
        row = cursor.fetchone()
    return None if row is None else Spend(**row)


def open_spends(connection: Connection, program_id: UUID) -> list[Spend]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM program_spend WHERE program_id = %s AND state = 'initiated' ORDER BY id", (program_id,)
        )
        return [Spend(**row) for row in cursor]


def parts_of_spend(connection: Connection, spend_id: UUID) -> list[Part]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM program_hold WHERE spend_id = %s ORDER BY number", (spend_id,))
        return [Part(**row) for row in cursor]


def save_spend(connection: Connection, spend: Spend) -> None:
    """Its program's row must be locked."""
    connection.execute(
        "UPDATE program_spend SET state = %s, attempt = %s, unknown_until = %s, seq = %s, booked_at = %s, refusal = %s,"
        " detail = %s WHERE id = %s",
        (
            spend.state,
            spend.attempt,
            spend.unknown_until,
            spend.seq,
            spend.booked_at,
            spend.refusal,
            spend.detail,
            spend.id,
        ),
    )


def free_parts(connection: Connection, spend_id: UUID) -> None:
    """Of a refused purchase: its holds can pay another."""
    connection.execute("UPDATE program_hold SET spend_id = NULL WHERE spend_id = %s AND state = 'held'", (spend_id,))


# --- merchants -------------------------------------------------------------------------------------------------------


def find_merchant(connection: Connection, account: int) -> Merchant | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute("SELECT * FROM merchant WHERE account = %s", (account,))
        row = cursor.fetchone()
    return None if row is None else Merchant(**row)


def save_merchant(connection: Connection, merchant: Merchant) -> None:
    columns = [field.name for field in fields(Merchant)]
    connection.execute(
        sql.SQL("INSERT INTO merchant ({}) VALUES ({}) ON CONFLICT ON CONSTRAINT merchant_pk DO UPDATE SET {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
            sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in columns),
        ),
        [_written(name, getattr(merchant, name)) for name in columns],
    )


# --- helpers ---------------------------------------------------------------------------------------------------------


def _insert(connection: Connection, table: str, rows: Sequence[Any], *, without: Sequence[str] = ()) -> None:
    if not rows:
        return
    columns = [field.name for field in fields(rows[0]) if field.name not in without]
    statement = sql.SQL("INSERT INTO {} ({}) VALUES ({})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, columns)),
        sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
    )
    with connection.cursor() as cursor:
        cursor.executemany(statement, [[_written(name, getattr(row, name)) for name in columns] for row in rows])


def _written(column: str, value: Any) -> Any:
    return Jsonb(dict(value)) if column in _JSON and value is not None else value


def _program(row: dict[str, Any]) -> Program:
    return Program(**row)

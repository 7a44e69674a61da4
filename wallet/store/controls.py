"""The SQL of dual control, by psycopg: on the way of a payment and off it. Whoever changes a wallet's rules or
approvals has locked the wallet's row first, as payments do, then its rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from wallet.domain.controls import Approval, Control
from wallet.store.carriage import Connection
from wallet.store.rows import dict_row


@dataclass(frozen=True, slots=True)
class Signatory:
    thumbprint: str
    person: str
    key: dict[str, str]


def lock_controls(connection: Connection, accounts: Collection[int]) -> dict[int, Control]:
    """By account, locked in order of wallet. For nearly every batch: none."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(
            "SELECT * FROM payment_control WHERE account = ANY(%s::bigint[]) ORDER BY wallet_id FOR UPDATE",
            (_array(accounts),),
            prepare=True,
        ).fetchall()
    return {row["account"]: _control(connection, row) for row in rows}


def find_control(connection: Connection, wallet_id: UUID) -> Control | None:
    with connection.cursor(row_factory=dict_row) as cursor:
        row = cursor.execute("SELECT * FROM payment_control WHERE wallet_id = %s", (wallet_id,)).fetchone()
    return None if row is None else _control(connection, row)


def _control(connection: Connection, row: dict[str, Any]) -> Control:
    persons = {item.thumbprint: item.person for item in signatories(connection, row["wallet_id"], row["version"])}
    return Control(**row, persons=persons)


def signatories(connection: Connection, wallet_id: UUID, version: int) -> list[Signatory]:
    rows = connection.execute(
        "SELECT thumbprint, person, key FROM payment_signatory WHERE wallet_id = %s AND version = %s"
        " ORDER BY thumbprint",
        (wallet_id, version),
    ).fetchall()
    return [Signatory(*row) for row in rows]


def lock_wallet(connection: Connection, wallet_id: UUID) -> tuple[UUID, int | None, set[str]] | None:
    """(customer, account, thumbprints of its devices), the wallet's row locked."""
    row = connection.execute(
        "SELECT customer_id, account, device_thumbprint, other_device_keys FROM wallet WHERE id = %s FOR NO KEY UPDATE",
        (wallet_id,),
    ).fetchone()
    return None if row is None else (row[0], row[1], {row[2], *(row[3] or {})})


def is_corporate(connection: Connection, customer_id: UUID) -> bool:
    row = connection.execute("SELECT 1 FROM corporate_customer WHERE customer_id = %s", (customer_id,)).fetchone()
    return row is not None


def save_control(
    connection: Connection, control: Control, who: Sequence[Signatory], signed: Sequence[tuple[str, str]]
) -> None:
    """New rules, with the (person, token) of both who signed them; the signatories before stay to be read."""
    connection.execute(
        "INSERT INTO payment_control (wallet_id, account, version, is_in_force, alone_max_minor, alone_day_max_minor,"
        " alone_on, alone_minor, time_zone, changed_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT ON CONSTRAINT payment_control_pk DO UPDATE SET version = excluded.version,"
        " is_in_force = excluded.is_in_force,"
        " alone_max_minor = excluded.alone_max_minor, alone_day_max_minor = excluded.alone_day_max_minor,"
        " alone_on = excluded.alone_on, alone_minor = excluded.alone_minor, time_zone = excluded.time_zone,"
        " changed_at = excluded.changed_at",
        (
            control.wallet_id,
            control.account,
            control.version,
            control.is_in_force,
            control.alone_max_minor,
            control.alone_day_max_minor,
            control.alone_on,
            control.alone_minor,
            control.time_zone,
            control.changed_at,
        ),
    )
    for item in who:
        connection.execute(
            "INSERT INTO payment_signatory (wallet_id, version, thumbprint, person, key) VALUES (%s, %s, %s, %s, %s)",
            (control.wallet_id, control.version, item.thumbprint, item.person, Jsonb(item.key)),
        )
    (first, first_token), (second, second_token) = signed
    connection.execute(
        "INSERT INTO payment_control_change (wallet_id, version, first_person, first_token, second_person,"
        " second_token, changed_at) VALUES (%s, %s, %s, %s, %s, %s, %s)",
        (control.wallet_id, control.version, first, first_token, second, second_token, control.changed_at),
    )


def save_alone(connection: Connection, control: Control) -> None:
    connection.execute(
        "UPDATE payment_control SET alone_on = %s, alone_minor = %s WHERE wallet_id = %s",
        (control.alone_on, control.alone_minor, control.wallet_id),
    )


def approvals_of(connection: Connection, payment_ids: Collection[UUID]) -> dict[UUID, Approval]:
    """Those of these payments; their wallets' rows must be locked."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT payment_id, wallet_id, digest, checker, valid_until, token, version, maker, withdrawn_at"
            " FROM payment_approval WHERE payment_id = ANY(%s::uuid[])",
            (_array(payment_ids),),
        )
        return {row["payment_id"]: Approval(**row) for row in cursor}


def save_approval(connection: Connection, row: Approval, *, at: datetime) -> None:
    """In the place of one for the same payment that was not used."""
    connection.execute(
        "INSERT INTO payment_approval"
        " (payment_id, wallet_id, digest, checker, valid_until, token, version, approved_at)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s, %s) ON CONFLICT ON CONSTRAINT payment_approval_pk"
        " DO UPDATE SET digest = excluded.digest,"
        " checker = excluded.checker, valid_until = excluded.valid_until, token = excluded.token,"
        " version = excluded.version, approved_at = excluded.approved_at, withdrawn_at = NULL"
        " WHERE payment_approval.maker IS NULL AND payment_approval.wallet_id = excluded.wallet_id",
        (row.payment_id, row.wallet_id, row.digest, row.checker, row.valid_until, row.token, row.version, at),
    )


def withdraw(connection: Connection, payment_ids: Collection[UUID], *, at: datetime) -> None:
    connection.execute(
        "UPDATE payment_approval SET withdrawn_at = %s"
        " WHERE payment_id = ANY(%s::uuid[]) AND maker IS NULL AND withdrawn_at IS NULL",
        (at, _array(payment_ids)),
    )


def mark_used(connection: Connection, row: Approval) -> None:
    connection.execute("UPDATE payment_approval SET maker = %s WHERE payment_id = %s", (row.maker, row.payment_id))


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(str(value) for value in values) + "}"

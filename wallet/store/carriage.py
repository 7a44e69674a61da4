"""The SQL of carrying payments, the service's hot path: psycopg, and one statement for any number of rows.

Columns travel as array literals (`{1,2}`), which the server unnests: a tenth of the cost of a parameter a value. Only
numbers, UUIDs, times and the characters of a JWS go in, none of which needs quoting.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from wallet.domain.limits import Usage
from wallet.domain.records import Payment
from wallet.domain.rules import WalletClass

Connection = psycopg.Connection[Any]


@dataclass(frozen=True, slots=True)
class Payer:
    """What carrying asks of an open wallet; its row is locked until the transaction's end."""

    wallet_id: UUID
    wallet_class: WalletClass
    device_key: str
    """JWK as JSON."""
    device_thumbprint: str
    usage: Usage


@dataclass(frozen=True, slots=True)
class Booked:
    payment_id: UUID
    seq: int | None
    booked_at: datetime


def lock_payers(connection: Connection, accounts: Collection[int]) -> dict[int, Payer]:
    """Open wallets by account number, their rows locked in order of id."""
    rows = connection.execute(
        "SELECT account, id, wallet_class, device_key::text, device_thumbprint,"
        " usage_day, usage_day_minor, usage_year_minor FROM wallet"
        " WHERE account = ANY(%s::bigint[]) ORDER BY id FOR NO KEY UPDATE",
        (_array(set(accounts)),),
        prepare=True,
    )
    return {
        account: Payer(wallet_id, _CLASSES[wallet_class], key, thumbprint, Usage(day, day_minor, year_minor))
        for account, wallet_id, wallet_class, key, thumbprint, day, day_minor, year_minor in rows
    }


def lock_payments(connection: Connection, payment_ids: Collection[UUID]) -> dict[UUID, Payment]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM payment WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE",
            (_array(payment_ids),),
            prepare=True,
        )
        return {row["id"]: Payment(**row) for row in cursor}


def insert_initiated(connection: Connection, rows: Sequence[Payment]) -> None:
    """New payments. Raises: psycopg.errors.UniqueViolation if an id was taken meanwhile."""
    if not rows:
        return
    connection.execute(
        "INSERT INTO payment (id, wallet_id, kind, debit_account, credit_account, amount_minor, currency, reference,"
        " instruction, valid_until, state, counted_on, created_at, tried_at)"
        " SELECT id, wallet_id, kind, debit, credit, amount, currency, reference, instruction, valid_until,"
        " 'initiated', counted_on, created_at, tried_at FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::bigint[],"
        " %s::bigint[], %s::bigint[], %s::text[], %s::uuid[], %s::text[], %s::timestamptz[], %s::date[],"
        " %s::timestamptz[], %s::timestamptz[]) AS new (id, wallet_id, kind, debit, credit, amount, currency,"
        " reference, instruction, valid_until, counted_on, created_at, tried_at)",
        (
            _array([row.id for row in rows]),
            _array([row.wallet_id for row in rows]),
            _array([row.kind for row in rows]),
            _array([row.debit_account for row in rows]),
            _array([row.credit_account for row in rows]),
            _array([row.amount_minor for row in rows]),
            _array([row.currency for row in rows]),
            _array([row.reference for row in rows]),
            _array([row.instruction for row in rows]),
            _array([row.valid_until.isoformat() for row in rows]),
            _array([row.counted_on for row in rows]),
            _array([row.created_at.isoformat() for row in rows]),
            _array([row.tried_at.isoformat() for row in rows]),
        ),
        prepare=True,
    )


def save_usages(connection: Connection, usages: Mapping[int, Usage]) -> None:
    """By account number; the rows must be locked by `lock_payers`."""
    if not usages:
        return
    connection.execute(
        "UPDATE wallet SET usage_day = new.day, usage_day_minor = new.day_minor, usage_year_minor = new.year_minor"
        " FROM unnest(%s::bigint[], %s::date[], %s::bigint[], %s::bigint[]) AS new (account, day, day_minor,"
        " year_minor) WHERE wallet.account = new.account",
        (
            _array(usages),
            _array([usage.day for usage in usages.values()]),
            _array([usage.day_minor for usage in usages.values()]),
            _array([usage.year_minor for usage in usages.values()]),
        ),
        prepare=True,
    )


def finish_initiated(connection: Connection, booked: Sequence[Booked]) -> int:
    """Marks initiated payments final; returns how many were still initiated."""
    if not booked:
        return 0
    finished = connection.execute(
        "UPDATE payment SET state = 'final', seq = new.seq, booked_at = new.booked_at"
        " FROM unnest(%s::uuid[], %s::bigint[], %s::timestamptz[]) AS new (id, seq, booked_at)"
        " WHERE payment.id = new.id AND payment.state = 'initiated'",
        (
            _array([item.payment_id for item in booked]),
            _array([item.seq for item in booked]),
            _array([item.booked_at.isoformat() for item in booked]),
        ),
        prepare=True,
    )
    return finished.rowcount


def mark_final(connection: Connection, booked: Booked, *, counted_on: date | None) -> None:
    connection.execute(
        "UPDATE payment SET state = 'final', seq = %s, booked_at = %s, counted_on = %s, refusal = NULL,"
        " is_transient = NULL, detail = NULL WHERE id = %s",
        (booked.seq, booked.booked_at, counted_on, booked.payment_id),
    )


def mark_refused(
    connection: Connection, payment_id: UUID, *, refusal: str, is_transient: bool, detail: str | None
) -> None:
    connection.execute(
        "UPDATE payment SET state = 'refused', refusal = %s, is_transient = %s, detail = %s, counted_on = NULL"
        " WHERE id = %s AND state <> 'final'",
        (refusal, is_transient, detail, payment_id),
    )


def forget(connection: Connection, payment_id: UUID) -> None:
    """Of an instruction that its holder never signed nothing is kept."""
    connection.execute("DELETE FROM payment WHERE id = %s AND state <> 'final'", (payment_id,))


def mark_tried_again(connection: Connection, row: Payment) -> None:
    """Back to initiated, with the newest signature. `row.counted_on` must be the day its usage is counted on."""
    connection.execute(
        "UPDATE payment SET state = 'initiated', refusal = NULL, is_transient = NULL, detail = NULL, instruction = %s,"
        " valid_until = %s, counted_on = %s, tried_at = %s WHERE id = %s",
        (row.instruction, row.valid_until, row.counted_on, row.tried_at, row.id),
    )


def mark_answered(connection: Connection, answered: Sequence[tuple[Payment, datetime]]) -> None:
    """Of each attempt that was answered but decides nothing: `tried_at` goes back to the earlier attempt's, unless a
    newer one has begun since."""
    for row, earlier in sorted(answered, key=lambda pair: pair[0].id):
        connection.execute(
            "UPDATE payment SET tried_at = %s WHERE id = %s AND state = 'initiated' AND tried_at = %s",
            (earlier, row.id, row.tried_at),
        )


_CLASSES = {item.value: item for item in WalletClass}


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"

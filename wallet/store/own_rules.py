"""The SQL of children and cards on the way of a payment: psycopg, under the payers' locks (`wallet.store.carriage`).

Every change of a child or card takes its wallet's row first, then its own; so what is read here under those locks
stays as it is until the transaction's end.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from kernel.ids import AccountNumber
from wallet.domain.cards import Card
from wallet.domain.families import Child, ChildCaps, ChildUsage
from wallet.store.carriage import Connection
from wallet.store.rows import dict_row


def accounts_with_rules(connection: Connection | sa.Connection, accounts: Collection[int]) -> tuple[set[int], set[int]]:
    """Which of the accounts are a child's, and which have a card or dual control. For nearly every batch: none."""
    asked = (_array(accounts),) * 3
    if isinstance(connection, sa.Connection):
        rows = [tuple(row) for row in connection.exec_driver_sql(_WITH_RULES, asked)]
    else:
        rows = connection.execute(_WITH_RULES, asked, prepare=True).fetchall()
    of_children = {account for account, is_child in rows if is_child}
    return of_children, {account for account, is_child in rows if not is_child}


_WITH_RULES = (
    "SELECT account, true FROM child_wallet WHERE account = ANY(%s::bigint[])"
    " UNION ALL SELECT account, false FROM hardware_card WHERE account = ANY(%s::bigint[])"
    " UNION ALL SELECT account, false FROM payment_control WHERE account = ANY(%s::bigint[]) AND is_in_force"
)


def lock_children(connection: Connection, accounts: Collection[int]) -> dict[int, Child]:
    """By account, locked in order of wallet."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM child_wallet WHERE account = ANY(%s::bigint[]) ORDER BY wallet_id FOR UPDATE",
            (_array(accounts),),
        )
        return {row["account"]: child_of(row) for row in cursor}


def child_of(row: Any) -> Child:
    return Child(
        wallet_id=row["wallet_id"],
        parent_id=row["parent_id"],
        account=None if row["account"] is None else AccountNumber(row["account"]),
        parent_account=AccountNumber(row["parent_account"]),
        merchant=None if row["merchant_account"] is None else AccountNumber(row["merchant_account"]),
        caps=ChildCaps(
            balance_max_minor=row["balance_max_minor"],
            single_max_minor=row["single_max_minor"],
            day_max_minor=row["day_max_minor"],
            total_max_minor=row["total_max_minor"],
        ),
        usage=ChildUsage(
            day=row["used_on"],
            day_minor=row["used_day_minor"],
            total_minor=row["used_total_minor"],
            day_floor_minor=row["day_floor_minor"],
            total_floor_minor=row["total_floor_minor"],
        ),
        state=row["state"],
        version=row["version"],
    )


def save_child_usage(connection: Connection, wallet_id: UUID, usage: ChildUsage) -> None:
    connection.execute(
        "UPDATE child_wallet SET used_on = %s, used_day_minor = %s, used_total_minor = %s, day_floor_minor = %s,"
        " total_floor_minor = %s WHERE wallet_id = %s",
        (
            usage.day,
            usage.day_minor,
            usage.total_minor,
            usage.day_floor_minor,
            usage.total_floor_minor,
            wallet_id,
        ),
    )


def incoming_minor(connection: Connection, wallet_id: UUID, *, after: int) -> int:
    """Payments towards a child that are not in what the ledger said as of `after`, or not known to be: on their way,
    or booked later. The child's row must be locked."""
    row = connection.execute(
        "SELECT coalesce(sum(payment.amount_minor), 0)::bigint FROM child_credit"
        " JOIN payment ON payment.id = child_credit.payment_id"
        " WHERE child_credit.wallet_id = %s"
        " AND (payment.state = 'initiated' OR (payment.state = 'final' AND payment.seq > %s))",
        (wallet_id, after),
    ).fetchone()
    return int(row[0]) if row is not None else 0


def insert_child_credit(connection: Connection, payment_id: UUID, wallet_id: UUID) -> None:
    connection.execute(
        "INSERT INTO child_credit (payment_id, wallet_id) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        (payment_id, wallet_id),
    )


def lock_cards(connection: Connection, accounts: Collection[int]) -> dict[tuple[int, str], Card]:
    """By account and key, locked in order of key."""
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT thumbprint, wallet_id, account, counter_last, pin_free_single_max_minor, pin_free_total_max_minor,"
            " pin_free_minor, state, expires_at FROM hardware_card WHERE account = ANY(%s::bigint[])"
            " ORDER BY thumbprint FOR UPDATE",
            (_array(accounts),),
        )
        return {(row["account"], row["thumbprint"]): Card(**row) for row in cursor}


def counters_seen(connection: Connection, used: Sequence[tuple[str, int]]) -> dict[tuple[str, int], tuple[UUID, str]]:
    """(card, counter) -> the payment that has it, and its instruction."""
    rows = connection.execute(
        "SELECT thumbprint, counter, payment_id, instruction FROM card_counter"
        " JOIN unnest(%s::text[], %s::bigint[]) AS asked (thumbprint, counter) USING (thumbprint, counter)",
        ([thumbprint for thumbprint, _ in used], [counter for _, counter in used]),
    )
    return {(thumbprint, counter): (payment_id, token) for thumbprint, counter, payment_id, token in rows}


def save_card(connection: Connection, card: Card) -> None:
    connection.execute(
        "UPDATE hardware_card SET counter_last = %s, pin_free_minor = %s WHERE thumbprint = %s",
        (card.counter_last, card.pin_free_minor, card.thumbprint),
    )


def insert_counter(
    connection: Connection, thumbprint: str, counter: int, *, payment_id: UUID, instruction: str
) -> None:
    """Raises: psycopg.errors.UniqueViolation if the counter was taken meanwhile."""
    connection.execute(
        "INSERT INTO card_counter (thumbprint, counter, payment_id, instruction) VALUES (%s, %s, %s, %s)",
        (thumbprint, counter, payment_id, instruction),
    )


def suspend_cloned(connection: Connection, thumbprint: str, *, first: str, second: str, suspended_at: datetime) -> None:
    connection.execute(
        "UPDATE hardware_card SET state = 'suspended', suspended_why = 'cloned', suspended_at = %s,"
        " evidence_first = %s, evidence_second = %s WHERE thumbprint = %s AND state = 'active'",
        (suspended_at, first, second, thumbprint),
    )


def _array(values: Iterable[object]) -> str:
    return "{" + ",".join(str(value) for value in values) + "}"

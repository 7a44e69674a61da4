"""The SQL of carrying payments, the service's hot path: psycopg, and one statement for any number of rows.

Columns travel as array literals (`{1,2}`), which the server unnests: a tenth of the cost of a parameter a value. Only
numbers, UUIDs, times and the characters of a JWS go in, none of which needs quoting.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import lru_cache
from typing import Any
from uuid import UUID

import psycopg

from wallet.domain.limits import NO_CAPS, Caps, Usage
from wallet.domain.records import Payment, WalletStateName
from wallet.domain.rules import WalletClass
from wallet.store import events
from wallet.store.rows import array_literal, dict_row

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
    state: WalletStateName = "open"
    other_devices: str | None = None
    """Active devices besides the first: JSON, keys by thumbprint. None = there is none."""
    changing_to: WalletClass | None = None
    own_caps: Caps = NO_CAPS


@dataclass(frozen=True, slots=True)
class Booked:
    payment_id: UUID
    seq: int | None
    booked_at: datetime


def lock_payers(connection: Connection, accounts: Collection[int]) -> dict[int, Payer]:
    """Wallets that have an account, by its number, their rows locked in order of id."""
    return lock_payers_and_rules(connection, accounts, ()).payers


@dataclass(frozen=True, slots=True)
class Locked:
    payers: dict[int, Payer]
    of_children: set[int]
    """Which of the accounts that were asked about are a child's, have a card, are under dual control. Nearly always
    none."""
    of_cards: set[int]
    of_controls: set[int]


def lock_payers_and_rules(connection: Connection, accounts: Collection[int], asked: Collection[int]) -> Locked:
    """`lock_payers`, and in the same statement which of the accounts `asked` have rules of their own. One that is made
    in this very moment may be missed: nothing that a new card or child has signed is on its way yet, and a payment
    that comes while a wallet is put under dual control is one that came before."""
    wanted = array_literal(set(asked))
    rows = connection.execute(
        "SELECT account, id, wallet_class, device_key::text, device_thumbprint,"
        " usage_day, usage_day_minor, usage_year_minor, state, other_device_keys::text, changing_to,"
        " single_max_minor, day_max_minor, year_max_minor,"
        " (SELECT array_agg(account) FROM child_wallet WHERE account = ANY(%s::bigint[])),"
        " (SELECT array_agg(account) FROM hardware_card WHERE account = ANY(%s::bigint[])),"
        " (SELECT array_agg(account) FROM payment_control WHERE account = ANY(%s::bigint[])) FROM wallet"
        " WHERE account = ANY(%s::bigint[]) ORDER BY id FOR NO KEY UPDATE",
        (wanted, wanted, wanted, array_literal(set(accounts))),
        prepare=True,
    ).fetchall()
    payers = {
        account: Payer(
            wallet_id,
            _CLASSES[wallet_class],
            key,
            thumbprint,
            Usage(day, day_minor, year_minor),
            state,
            others,
            None if changing_to is None else _CLASSES[changing_to],
            NO_CAPS if single is day_max is year_max is None else Caps(None, single, day_max, year_max),
        )
        for account, wallet_id, wallet_class, key, thumbprint, day, day_minor, year_minor, *special in rows
        for state, others, changing_to, single, day_max, year_max, *_ in (special,)
    }
    of_children, of_cards, of_controls = rows[0][-3:] if rows else (None, None, None)
    return Locked(payers, set(of_children or ()), set(of_cards or ()), set(of_controls or ()))


def lock_payments(connection: Connection, payment_ids: Collection[UUID]) -> dict[UUID, Payment]:
    with connection.cursor(row_factory=dict_row) as cursor:
        cursor.execute(
            "SELECT * FROM payment WHERE id = ANY(%s::uuid[]) ORDER BY id FOR UPDATE",
            (array_literal(payment_ids),),
            prepare=True,
        )
        return {row["id"]: Payment(**row) for row in cursor}


def insert_initiated(connection: Connection, rows: Sequence[Payment], *, usages: Mapping[int, Usage]) -> None:
    """New payments, and what their wallets have used with them: one statement.

    Raises: psycopg.errors.UniqueViolation if a payment is known.
    """
    if not rows:
        save_usages(connection, usages)
        return
    connection.execute(
        f"WITH counted AS ({_SAVE_USAGES}) "
        "INSERT INTO payment (id, wallet_id, kind, debit_account, credit_account, amount_minor, currency, reference,"
        " instruction, valid_until, state, counted_on, created_at, tried_at)"
        " SELECT id, wallet_id, kind, debit, credit, amount, currency, reference, instruction, valid_until,"
        " 'initiated', counted_on, created_at, tried_at FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::bigint[],"
        " %s::bigint[], %s::bigint[], %s::text[], %s::uuid[], %s::text[], %s::timestamptz[], %s::date[],"
        " %s::timestamptz[], %s::timestamptz[]) AS new (id, wallet_id, kind, debit, credit, amount, currency,"
        " reference, instruction, valid_until, counted_on, created_at, tried_at)",
        (
            *_usage_arrays(usages),
            array_literal([row.id for row in rows]),
            array_literal([row.wallet_id for row in rows]),
            array_literal([row.kind for row in rows]),
            array_literal([row.debit_account for row in rows]),
            array_literal([row.credit_account for row in rows]),
            array_literal([row.amount_minor for row in rows]),
            array_literal([row.currency for row in rows]),
            array_literal([row.reference for row in rows]),
            array_literal([row.instruction for row in rows]),
            array_literal([_shown(row.valid_until) for row in rows]),
            array_literal([row.counted_on for row in rows]),
            array_literal([_shown(row.created_at) for row in rows]),
            array_literal([_shown(row.tried_at) for row in rows]),
        ),
        prepare=True,
    )


def save_usages(connection: Connection, usages: Mapping[int, Usage]) -> None:
    """By account number; the rows must be locked by `lock_payers`."""
    if usages:
        connection.execute(_SAVE_USAGES, _usage_arrays(usages), prepare=True)


_SAVE_USAGES = (
    "UPDATE wallet SET usage_day = used.day, usage_day_minor = used.day_minor, usage_year_minor = used.year_minor"
    " FROM unnest(%s::bigint[], %s::date[], %s::bigint[], %s::bigint[]) AS used (account, day, day_minor,"
    " year_minor) WHERE wallet.account = used.account"
)


def _usage_arrays(usages: Mapping[int, Usage]) -> tuple[str, str, str, str]:
    return (
        array_literal(usages),
        array_literal([usage.day for usage in usages.values()]),
        array_literal([usage.day_minor for usage in usages.values()]),
        array_literal([usage.year_minor for usage in usages.values()]),
    )


def finish_initiated(connection: Connection, booked: Sequence[Booked]) -> int:
    """Marks initiated payments final; returns how many were still initiated. It is told from the ledger's bookings
    (`wallet.usecases.events.follow_ledger`), away from the payments' path."""
    if not booked:
        return 0
    return connection.execute(
        "UPDATE payment SET state = 'final', seq = new.seq, booked_at = new.booked_at"
        " FROM unnest(%s::uuid[], %s::bigint[], %s::timestamptz[]) AS new (id, seq, booked_at)"
        " WHERE payment.id = new.id AND payment.state = 'initiated'",
        (
            array_literal([item.payment_id for item in booked]),
            array_literal([item.seq for item in booked]),
            array_literal([_shown(item.booked_at) for item in booked]),
        ),
        prepare=True,
    ).rowcount


def mark_final(connection: Connection, booked: Booked, *, counted_on: date | None) -> None:
    connection.execute(
        "UPDATE payment SET state = 'final', seq = %s, booked_at = %s, counted_on = %s, refusal = NULL,"
        " is_transient = NULL, detail = NULL WHERE id = %s",
        (booked.seq, booked.booked_at, counted_on, booked.payment_id),
    )
    events.emit_final(connection, booked.payment_id)


def mark_refused(
    connection: Connection, payment_id: UUID, *, refusal: str, is_transient: bool, detail: str | None
) -> None:
    connection.execute(
        "UPDATE payment SET state = 'refused', refusal = %s, is_transient = %s, detail = %s, counted_on = NULL"
        " WHERE id = %s AND state <> 'final'",
        (refusal, is_transient, detail, payment_id),
    )
    events.emit_refused(connection, payment_id, refusal=refusal)


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


@lru_cache(maxsize=1024)
def _shown(moment: datetime) -> str:
    """Cached: the payments of a batch were made and booked at the same moment."""
    return moment.isoformat()

"""Everything booked here and every change of class, in the ledger's order, as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from wallet.domain.rule_replay import Movement
from wallet.domain.rules import WalletClass
from wallet.store.interest_tables import interest_settlement
from wallet.store.lifecycle_tables import wallet_change
from wallet.store.offline_tables import purse_funding
from wallet.store.tables import exchange_in, payment, wallet

ROWS_AT_ONCE = 2_000

_payer = wallet.alias("payer")
_payee = wallet.alias("payee")


def movements(connection: sa.Connection, *, until: datetime) -> Iterator[Movement]:
    """What was booked before `until`. The rows stay with the server; `ROWS_AT_ONCE` are here at a time."""
    streaming = connection.execution_options(stream_results=True, max_row_buffer=ROWS_AT_ONCE)
    for row in streaming.execute(_query(until)):
        yield Movement(
            kind=row.kind,
            id=row.id,
            at=row.at,
            amount_minor=row.amount_minor,
            debit=row.debit,
            debit_opened_in=None if row.debit_class is None else WalletClass(row.debit_class),
            credit=row.credit,
            credit_opened_in=None if row.credit_class is None else WalletClass(row.credit_class),
            becomes=None if row.becomes is None else WalletClass(row.becomes),
        )


def count_payments(connection: sa.Connection, *, until: datetime) -> int:
    """How many the stream will decide: the length of a progress bar."""
    paid = sa.select(sa.func.count()).where(
        payment.c.kind == "payment", payment.c.state == "final", payment.c.booked_at < until
    )
    return int(connection.execute(paid).scalar_one())


def _query(until: datetime) -> sa.CompoundSelect[Any]:
    parts = [
        _select(
            sa.case((payment.c.kind == "payment", "payment"), else_="other"),
            payment,
            debit=payment.c.debit_account,
            credit=payment.c.credit_account,
            until=until,
            where=payment.c.state == "final",
        ),
        _select(
            sa.literal("purse-fund"),
            purse_funding,
            debit=purse_funding.c.debit_account,
            credit=sa.null(),
            until=until,
            where=purse_funding.c.booked_at.is_not(None),
        ),
    ]
    came = exchange_in.c
    parts.append(
        _shape(sa.literal("other"), came.id, came.booked_at, came.seq, came.amount_minor)
        .add_columns(*_nobody(), came.wallet_id, _payee.c.opened_in_class, sa.null())
        .select_from(exchange_in.join(_payee, _payee.c.id == came.wallet_id))
        .where(came.state == "final", came.booked_at < until)
    )
    earned = interest_settlement.c
    parts.append(
        _shape(sa.literal("other"), earned.transfer_id, earned.booked_at, earned.seq, earned.credited_minor)
        .add_columns(*_nobody(), earned.wallet_id, _payee.c.opened_in_class, sa.null())
        .select_from(interest_settlement.join(_payee, _payee.c.id == earned.wallet_id))
        .where(earned.state == "credited", earned.booked_at < until)
    )
    changed = wallet_change.c
    parts.append(
        _shape(sa.literal("class"), changed.id, changed.ended_at, sa.null(), sa.literal(0))
        .add_columns(
            changed.wallet_id, sa.null(), sa.cast(sa.null(), sa.Uuid), sa.null(), changed.content["wallet_class"].astext
        )
        .where(changed.kind == "class", changed.state == "done", changed.ended_at < until)
    )
    union = sa.union_all(*parts)
    # A change of class at the moment of a payment comes first: it has no seq.
    return union.order_by(sa.column("at"), sa.column("seq").nulls_first(), sa.column("id"))


def _shape(kind: Any, id: Any, at: Any, seq: Any, amount: Any) -> sa.Select[Any]:
    """The first columns of every part, which name them."""
    return sa.select(
        sa.cast(kind, sa.Text).label("kind"),
        id.label("id"),
        at.label("at"),
        sa.cast(seq, sa.BigInteger).label("seq"),
        sa.cast(amount, sa.BigInteger).label("amount_minor"),
    )


def _nobody() -> tuple[Any, Any]:
    return sa.cast(sa.null(), sa.Uuid), sa.cast(sa.null(), sa.Text)


def _select(
    kind: Any, table: sa.Table, *, debit: Any, credit: Any, until: datetime, where: sa.ColumnElement[bool]
) -> sa.Select[Any]:
    columns = table.c
    return (
        _shape(kind, columns.id, columns.booked_at, columns.seq, columns.amount_minor)
        .add_columns(
            _payer.c.id.label("debit"),
            _payer.c.opened_in_class.label("debit_class"),
            _payee.c.id.label("credit"),
            _payee.c.opened_in_class.label("credit_class"),
            sa.cast(sa.null(), sa.Text).label("becomes"),
        )
        .select_from(
            table.outerjoin(_payer, _payer.c.account == debit).outerjoin(
                _payee, _payee.c.account == sa.cast(credit, sa.BigInteger)
            )
        )
        .where(where, columns.booked_at < until)
    )

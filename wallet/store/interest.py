"""Interest settlements, the days behind them, and runs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import AccountNumber
from wallet.domain.interest import Accrual, Segment
from wallet.domain.records import Wallet
from wallet.domain.rules import DayCount, WalletClass
from wallet.store.interest_tables import interest_run, interest_segment, interest_settlement
from wallet.store.lifecycle_tables import wallet_change
from wallet.store.offline_tables import purse_escrow
from wallet.store.tables import wallet
from wallet.store.wallets import find_wallet

SettlementKind = Literal["quarter", "closure"]
SettlementState = Literal["due", "credited", "nothing"]
_HELD = ("open", "suspended")
"""Of whom a quarter is settled; a closing wallet's interest is its closure's."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """A period of a wallet, settled. Both days are included; units as `wallet.domain.interest` counts them."""

    wallet_id: UUID
    first_on: date
    last_on: date
    kind: SettlementKind
    transfer_id: UUID
    account: AccountNumber
    accrued_units: int
    credited_minor: int
    remainder_units: int
    credit_on: date
    state: SettlementState
    refusal: str | None
    seq: int | None
    booked_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Total:
    """Of every settlement that ends on one day: the remainder account's page."""

    last_on: date
    settlements: int
    accrued_units: int
    credited_minor: int
    remainder_units: int
    due: int
    """How many wait for the ledger."""
    due_minor: int


def settled_until(connection: sa.Connection, wallet_id: UUID) -> date | None:
    """The last day that is settled for a wallet; None = none is."""
    query = sa.select(sa.func.max(interest_settlement.c.last_on)).where(interest_settlement.c.wallet_id == wallet_id)
    return connection.execute(query).scalar()


def due_on(connection: sa.Connection, wallet_id: UUID) -> date | None:
    """From when on interest that is settled but not credited may be credited to a wallet; None = there is none."""
    columns = interest_settlement.c
    query = sa.select(sa.func.min(columns.credit_on)).where(columns.wallet_id == wallet_id, columns.state == "due")
    return connection.execute(query).scalar()


def class_changes(connection: sa.Connection, wallet_id: UUID) -> list[tuple[datetime, WalletClass]]:
    """When a wallet's class became which, in order."""
    query = (
        sa.select(wallet_change.c.ended_at, wallet_change.c.content["wallet_class"].astext)
        .where(wallet_change.c.wallet_id == wallet_id, wallet_change.c.kind == "class", wallet_change.c.state == "done")
        .order_by(wallet_change.c.ended_at, wallet_change.c.id)
    )
    return [(moment, WalletClass(name)) for moment, name in connection.execute(query)]


def insert_settlement(
    connection: sa.Connection,
    row: Wallet,
    accrual: Accrual,
    *,
    kind: SettlementKind,
    transfer_id: UUID,
    credit_on: date,
    now: datetime,
) -> None:
    """The caller holds the wallet's lock and has seen that the days follow upon the settled ones."""
    connection.execute(
        sa.insert(interest_settlement).values(
            wallet_id=row.id,
            first_on=accrual.first_on,
            last_on=accrual.last_on,
            kind=kind,
            transfer_id=transfer_id,
            account=row.account,
            accrued_units=accrual.units,
            credited_minor=accrual.credited_minor,
            remainder_units=accrual.remainder_units,
            credit_on=credit_on,
            state="due" if accrual.credited_minor else "nothing",
            created_at=now,
            tried_at=now,
        )
    )
    values = [
        {
            "wallet_id": row.id,
            "settled_on": accrual.last_on,
            "first_on": segment.first_on,
            "last_on": segment.last_on,
            "wallet_class": segment.wallet_class.value,
            "balance_minor": segment.balance_minor,
            "rate_ppm": segment.rate_ppm,
            "day_count": segment.day_count.value,
            "pack": segment.pack,
            "units": segment.units,
        }
        for segment in accrual.segments
    ]
    if values:
        connection.execute(sa.insert(interest_segment), values)


def mark_credited(connection: sa.Connection, transfer_id: UUID, *, seq: int | None, booked_at: datetime) -> None:
    connection.execute(
        sa.update(interest_settlement)
        .where(interest_settlement.c.transfer_id == transfer_id, interest_settlement.c.state == "due")
        .values(state="credited", seq=seq, booked_at=booked_at, refusal=None)
    )


def change_transfer(connection: sa.Connection, transfer_id: UUID, other_id: UUID) -> None:
    """Another id for a transfer that was not booked."""
    connection.execute(
        sa.update(interest_settlement)
        .where(interest_settlement.c.transfer_id == transfer_id, interest_settlement.c.state == "due")
        .values(transfer_id=other_id)
    )


def mark_tried(connection: sa.Connection, transfer_id: UUID, *, refusal: str, now: datetime) -> None:
    connection.execute(
        sa.update(interest_settlement)
        .where(interest_settlement.c.transfer_id == transfer_id, interest_settlement.c.state == "due")
        .values(refusal=refusal, tried_at=now)
    )


def settlements_due(
    connection: sa.Connection, *, today: date, refused_before: datetime, limit: int
) -> list[Settlement]:
    """To be credited by now, and not refused since `refused_before`; the longest untried first."""
    columns = interest_settlement.c
    query = (
        _settlements()
        .where(columns.state == "due", columns.credit_on <= today)
        .where(columns.refusal.is_(None) | (columns.tried_at <= refused_before))
        .order_by(interest_settlement.c.tried_at)
        .limit(limit)
    )
    return [_settlement(row) for row in connection.execute(query).mappings()]


def list_settlements(
    connection: sa.Connection, wallet_id: UUID, *, before: date | None, limit: int
) -> list[tuple[Settlement, list[Segment]]]:
    """The newest first, each with its days."""
    query = _settlements().where(interest_settlement.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(interest_settlement.c.last_on < before)
    rows = connection.execute(query.order_by(interest_settlement.c.last_on.desc()).limit(limit)).mappings()
    found = [_settlement(row) for row in rows]
    days: dict[date, list[Segment]] = {row.last_on: [] for row in found}
    behind = sa.select(interest_segment).where(
        interest_segment.c.wallet_id == wallet_id, interest_segment.c.settled_on.in_(list(days))
    )
    for row in connection.execute(behind.order_by(interest_segment.c.first_on)).mappings():
        days[row["settled_on"]].append(_segment(row))
    return [(row, days[row.last_on]) for row in found]


def wallets_to_settle(
    connection: sa.Connection, *, settled_on: date, opened_before: datetime, after: UUID | None, limit: int
) -> list[Wallet]:
    """Wallets that had a day in the period and have no settlement of it, in order of id."""
    settled = sa.select(sa.literal(1)).where(
        interest_settlement.c.wallet_id == wallet.c.id, interest_settlement.c.last_on >= settled_on
    )
    query = (
        sa.select(wallet.c.id)
        .where(wallet.c.state.in_(_HELD), wallet.c.opened_at < opened_before, ~settled.exists())
        .order_by(wallet.c.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(wallet.c.id > after)
    found = (find_wallet(connection, wallet_id) for wallet_id in connection.execute(query).scalars().all())
    return [row for row in found if row is not None]


def has_closing(connection: sa.Connection) -> bool:
    """Whether a closure is open that its holder may still cancel."""
    query = sa.select(sa.literal(1)).where(wallet.c.state == "closing").limit(1)
    return connection.execute(query).first() is not None


def find_run(connection: sa.Connection, settled_on: date) -> tuple[datetime | None, datetime | None] | None:
    """(scanned at, finished at); None = it never began."""
    row = connection.execute(sa.select(interest_run).where(interest_run.c.settled_on == settled_on)).first()
    return None if row is None else (row.scanned_at, row.finished_at)


def mark_scanned(connection: sa.Connection, settled_on: date, *, now: datetime, is_finished: bool) -> None:
    values: dict[str, Any] = {"scanned_at": now, "finished_at": now if is_finished else None}
    statement = insert(interest_run).values(settled_on=settled_on, **values)
    connection.execute(statement.on_conflict_do_update(constraint="interest_run_pk", set_=values))


def total_of(connection: sa.Connection, last_on: date) -> Total:
    return _total(connection, interest_settlement.c.last_on == last_on, last_on)


def totals(connection: sa.Connection, *, limit: int) -> list[Total]:
    """The newest days on which periods ended, newest first."""
    days = sa.select(interest_settlement.c.last_on).distinct().order_by(interest_settlement.c.last_on.desc())
    return [total_of(connection, day) for day in connection.execute(days.limit(limit)).scalars().all()]


def _total(connection: sa.Connection, which: sa.ColumnElement[bool], last_on: date) -> Total:
    columns = interest_settlement.c
    is_due = columns.state == "due"
    row = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(columns.accrued_units), 0),
            sa.func.coalesce(sa.func.sum(columns.credited_minor), 0),
            sa.func.coalesce(sa.func.sum(columns.remainder_units), 0),
            sa.func.count().filter(is_due),
            sa.func.coalesce(sa.func.sum(columns.credited_minor).filter(is_due), 0),
        ).where(which)
    ).one()
    return Total(last_on, *(int(value) for value in row))


def _settlements() -> sa.Select[Any]:
    return sa.select(*(column for column in interest_settlement.c if column.name != "tried_at"))


def _settlement(row: sa.RowMapping) -> Settlement:
    values = dict(row)
    return Settlement(
        **values | {"accrued_units": int(values["accrued_units"]), "remainder_units": int(values["remainder_units"])}
    )


def _segment(row: sa.RowMapping) -> Segment:
    return Segment(
        first_on=row["first_on"],
        last_on=row["last_on"],
        wallet_class=WalletClass(row["wallet_class"]),
        balance_minor=row["balance_minor"],
        rate_ppm=row["rate_ppm"],
        day_count=DayCount(row["day_count"]),
        pack=row["pack"],
    )


def purse_escrow_account(connection: sa.Connection, ledger: str) -> AccountNumber | None:
    """Where the institution holds what offline purses are loaded with."""
    query = sa.select(purse_escrow.c.account).where(purse_escrow.c.ledger == ledger)
    account = connection.execute(query).scalar()
    return None if account is None else AccountNumber(account)

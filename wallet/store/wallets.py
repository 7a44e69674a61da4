"""Wallets. Their usage is written by `wallet.store.carriage`."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import AccountNumber
from wallet.domain.limits import Caps, Usage
from wallet.domain.records import Wallet
from wallet.domain.rules import WalletClass
from wallet.store.tables import institution_account, wallet


def insert_wallet(connection: sa.Connection, row: Wallet) -> bool:
    """False if the id, the opening or the device key is taken."""
    values = {
        "id": row.id,
        "customer_id": row.customer_id,
        "wallet_class": row.wallet_class.value,
        "rule_pack": row.rule_pack,
        "device_key": dict(row.device_key),
        "device_thumbprint": row.device_thumbprint,
        "state": row.state,
        "opening_id": row.opening_id,
        "account": row.account,
        "usage_day": row.usage.day,
        "usage_day_minor": row.usage.day_minor,
        "usage_year_minor": row.usage.year_minor,
        "created_at": row.created_at,
        "opened_at": row.opened_at,
        "suspensions": sorted(row.suspensions),
        "opened_in_class": row.wallet_class.value,
        "opened_with": row.device_thumbprint,
    }
    statement = insert(wallet).values(values).on_conflict_do_nothing().returning(wallet.c.id)
    return connection.execute(statement).first() is not None


def find_wallet(connection: sa.Connection, wallet_id: UUID) -> Wallet | None:
    return _first(connection, sa.select(wallet).where(wallet.c.id == wallet_id))


def lock_wallet(connection: sa.Connection, wallet_id: UUID) -> Wallet | None:
    """With its row locked to the transaction's end, as `wallet.store.carriage` locks it: no payment is counted
    meanwhile."""
    return _first(connection, sa.select(wallet).where(wallet.c.id == wallet_id).with_for_update(key_share=True))


def find_wallet_of_device(connection: sa.Connection, thumbprint: str) -> Wallet | None:
    return _first(connection, sa.select(wallet).where(wallet.c.device_thumbprint == thumbprint))


def find_wallet_of_account(connection: sa.Connection, account: int) -> Wallet | None:
    return _first(connection, sa.select(wallet).where(wallet.c.account == account))


def mark_open(connection: sa.Connection, wallet_id: UUID, account: AccountNumber, *, opened_at: datetime) -> None:
    connection.execute(
        sa.update(wallet)
        .where(wallet.c.id == wallet_id, wallet.c.state == "opening")
        .values(state="open", account=account, opened_at=opened_at)
    )


def mark_opening_refused(connection: sa.Connection, wallet_id: UUID, *, refusal: str, detail: str | None) -> None:
    connection.execute(
        sa.update(wallet)
        .where(wallet.c.id == wallet_id, wallet.c.state == "opening")
        .values(state="refused", refusal=refusal, detail=detail)
    )


def wallets_opening(connection: sa.Connection, *, before: datetime, limit: int) -> list[Wallet]:
    query = (
        sa.select(wallet)
        .where(wallet.c.state == "opening", wallet.c.created_at <= before)
        .order_by(wallet.c.created_at)
        .limit(limit)
    )
    return [_wallet(row) for row in connection.execute(query).mappings()]


def list_wallets(
    connection: sa.Connection, *, customer_id: UUID | None, after: UUID | None, limit: int
) -> list[Wallet]:
    """In order of id, which is order of creation on the client's clock."""
    query = sa.select(wallet).order_by(wallet.c.id).limit(limit)
    if customer_id is not None:
        query = query.where(wallet.c.customer_id == customer_id)
    if after is not None:
        query = query.where(wallet.c.id > after)
    return [_wallet(row) for row in connection.execute(query).mappings()]


def prepare_institution_account(connection: sa.Connection, ledger: str, opening_id: UUID) -> tuple[UUID, int | None]:
    """The vault's opening id on a ledger (the one given only if there was none yet) and its account, once open."""
    statement = insert(institution_account).values(ledger=ledger, opening_id=opening_id)
    connection.execute(statement.on_conflict_do_nothing())
    row = connection.execute(sa.select(institution_account).where(institution_account.c.ledger == ledger)).one()
    return row.opening_id, row.account


def save_institution_account(connection: sa.Connection, ledger: str, account: AccountNumber) -> None:
    connection.execute(
        sa.update(institution_account).where(institution_account.c.ledger == ledger).values(account=account)
    )


def _first(connection: sa.Connection, query: sa.Select[Any]) -> Wallet | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else _wallet(row)


def _wallet(row: sa.RowMapping) -> Wallet:
    return Wallet(
        id=row["id"],
        customer_id=row["customer_id"],
        wallet_class=WalletClass(row["wallet_class"]),
        rule_pack=row["rule_pack"],
        device_key=row["device_key"],
        device_thumbprint=row["device_thumbprint"],
        state=row["state"],
        opening_id=row["opening_id"],
        account=row["account"],
        refusal=row["refusal"],
        detail=row["detail"],
        usage=Usage(row["usage_day"], row["usage_day_minor"], row["usage_year_minor"]),
        created_at=row["created_at"],
        opened_at=row["opened_at"],
        other_device_keys=row["other_device_keys"],
        changing_to=None if row["changing_to"] is None else WalletClass(row["changing_to"]),
        own_caps=Caps(
            balance_max_minor=row["balance_max_minor"],
            single_max_minor=row["single_max_minor"],
            day_max_minor=row["day_max_minor"],
            year_max_minor=row["year_max_minor"],
        ),
        suspensions=frozenset(row["suspensions"]),
        closed_at=row["closed_at"],
        opened_in_class=WalletClass(row["opened_in_class"]),
        opened_with=row["opened_with"],
    )

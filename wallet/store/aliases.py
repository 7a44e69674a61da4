"""Aliases, as hashes; their codes, and how often a payer has looked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.aliases import Alias
from wallet.store.families_tables import alias_lookup_count, wallet_alias
from wallet.store.tables import wallet


def insert_alias(connection: sa.Connection, row: Alias) -> bool:
    """False if the id is taken."""
    values = {name: getattr(row, name) for name in Alias.__dataclass_fields__}
    statement = insert(wallet_alias).values(values).on_conflict_do_nothing(constraint="wallet_alias_pk")
    return connection.execute(statement.returning(wallet_alias.c.id)).first() is not None


def find_alias(connection: sa.Connection, alias_id: UUID, *, locked: bool = False) -> Alias | None:
    query = sa.select(wallet_alias).where(wallet_alias.c.id == alias_id)
    return _first(connection, query.with_for_update() if locked else query)


def default_alias(connection: sa.Connection, alias_hash: bytes, currency: str) -> Alias | None:
    query = sa.select(wallet_alias).where(
        wallet_alias.c.alias_hash == alias_hash, wallet_alias.c.currency == currency, wallet_alias.c.is_default
    )
    return _first(connection, query)


def default_wallets(
    connection: sa.Connection, alias_hashes: Sequence[bytes], currency: str
) -> dict[bytes, tuple[UUID, int]]:
    """Alias -> (customer, account) of the open wallet that it leads to in a currency."""
    query = (
        sa.select(wallet_alias.c.alias_hash, wallet.c.customer_id, wallet.c.account)
        .join(wallet, wallet.c.id == wallet_alias.c.wallet_id)
        .where(
            wallet_alias.c.alias_hash.in_(alias_hashes),
            wallet_alias.c.currency == currency,
            wallet_alias.c.is_default,
            wallet.c.state == "open",
            wallet.c.account.is_not(None),
        )
    )
    return {row.alias_hash: (row.customer_id, row.account) for row in connection.execute(query)}


def lock_same(connection: sa.Connection, alias_hash: bytes) -> list[Alias]:
    """Everybody's verified rows of one alias, locked in order of id."""
    query = (
        sa.select(wallet_alias)
        .where(wallet_alias.c.alias_hash == alias_hash, wallet_alias.c.state == "verified")
        .order_by(wallet_alias.c.id)
        .with_for_update()
    )
    return [Alias(**row) for row in connection.execute(query).mappings()]


def lock_alias_name(connection: sa.Connection, alias_hash: bytes) -> None:
    """One verification or change of default at a time for one alias; until the transaction's end."""
    key = int.from_bytes(alias_hash[:8], "big", signed=True)
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))


def list_of_wallet(connection: sa.Connection, wallet_id: UUID, *, limit: int) -> list[Alias]:
    """The newest first."""
    query = (
        sa.select(wallet_alias)
        .where(wallet_alias.c.wallet_id == wallet_id)
        .order_by(wallet_alias.c.id.desc())
        .limit(limit)
    )
    return [Alias(**row) for row in connection.execute(query).mappings()]


def count_sent(connection: sa.Connection, alias_hash: bytes, *, since: datetime) -> int:
    query = sa.select(sa.func.count()).where(wallet_alias.c.alias_hash == alias_hash, wallet_alias.c.created_at > since)
    return int(connection.execute(query).scalar_one())


def spend_try(connection: sa.Connection, row: Alias) -> None:
    connection.execute(sa.update(wallet_alias).where(wallet_alias.c.id == row.id).values(tries_left=row.tries_left - 1))


def mark_verified(connection: sa.Connection, alias_id: UUID, *, verified_at: datetime, is_default: bool) -> None:
    connection.execute(
        sa.update(wallet_alias)
        .where(wallet_alias.c.id == alias_id)
        .values(state="verified", verified_at=verified_at, is_default=is_default, code_hash=None, code_until=None)
    )


def mark_ended(connection: sa.Connection, alias_id: UUID, state: str, *, ended_at: datetime) -> None:
    connection.execute(
        sa.update(wallet_alias)
        .where(wallet_alias.c.id == alias_id)
        .values(state=state, ended_at=ended_at, is_default=False, code_hash=None, code_until=None)
    )


def set_default(connection: sa.Connection, row: Alias) -> None:
    """Moves the default of the alias in its currency to this row."""
    of_alias = sa.and_(wallet_alias.c.alias_hash == row.alias_hash, wallet_alias.c.currency == row.currency)
    connection.execute(sa.update(wallet_alias).where(of_alias, wallet_alias.c.is_default).values(is_default=False))
    connection.execute(sa.update(wallet_alias).where(wallet_alias.c.id == row.id).values(is_default=True))


def count_lookups(
    connection: sa.Connection, wallet_id: UUID, *, hour: datetime, most: int, lookups: int = 1, in_files: bool = False
) -> bool:
    """Counts so many more in this hour; False, and none, if that is more than allowed. Hours gone by are forgotten.

    `in_files`: those of a company's payrolls, which are counted apart.
    """
    if not 0 < lookups <= most:
        return False
    connection.execute(
        sa.delete(alias_lookup_count).where(
            alias_lookup_count.c.wallet_id == wallet_id, alias_lookup_count.c.hour < hour
        )
    )
    counted = alias_lookup_count.c.in_files if in_files else alias_lookup_count.c.lookups
    none: dict[str, Any] = {"wallet_id": wallet_id, "hour": hour, "lookups": 0, "in_files": 0}
    statement = insert(alias_lookup_count).values(none | {counted.name: lookups})
    statement = statement.on_conflict_do_update(
        constraint="alias_lookup_count_pk",
        set_={counted.name: counted + lookups},
        where=counted <= most - lookups,
    )
    return connection.execute(statement.returning(counted)).first() is not None


def _first(connection: sa.Connection, query: sa.Select[Any]) -> Alias | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else Alias(**row)

"""Aliases, as hashes; their codes, and how often a payer has looked."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.aliases import Alias
from wallet.store.families_tables import alias_lookup_count, wallet_alias


def insert_alias(connection: sa.Connection, row: Alias) -> bool:
    """False if the id is taken."""
    values = {name: getattr(row, name) for name in Alias.__dataclass_fields__}
    statement = insert(wallet_alias).values(values).on_conflict_do_nothing(index_elements=["id"])
    return connection.execute(statement.returning(wallet_alias.c.id)).first() is not None


def find_alias(connection: sa.Connection, alias_id: UUID, *, locked: bool = False) -> Alias | None:
    query = sa.select(wallet_alias).where(wallet_alias.c.id == alias_id)
    return _first(connection, query.with_for_update() if locked else query)


def default_alias(connection: sa.Connection, alias_hash: bytes, currency: str) -> Alias | None:
    query = sa.select(wallet_alias).where(
        wallet_alias.c.alias_hash == alias_hash, wallet_alias.c.currency == currency, wallet_alias.c.is_default
    )
    return _first(connection, query)


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


def count_lookup(connection: sa.Connection, wallet_id: UUID, *, hour: datetime, most: int) -> bool:
    """Counts one more in this hour; False if there are as many as allowed. Hours gone by are forgotten."""
    connection.execute(
        sa.delete(alias_lookup_count).where(
            alias_lookup_count.c.wallet_id == wallet_id, alias_lookup_count.c.hour < hour
        )
    )
    statement = insert(alias_lookup_count).values(wallet_id=wallet_id, hour=hour, lookups=1)
    statement = statement.on_conflict_do_update(
        index_elements=["wallet_id", "hour"],
        set_={"lookups": alias_lookup_count.c.lookups + 1},
        where=alias_lookup_count.c.lookups < most,
    )
    return connection.execute(statement.returning(alias_lookup_count.c.lookups)).first() is not None


def _first(connection: sa.Connection, query: sa.Select[Any]) -> Alias | None:
    row = connection.execute(query).mappings().first()
    return None if row is None else Alias(**row)

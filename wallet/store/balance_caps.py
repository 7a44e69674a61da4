"""Caps on what a wallet may hold, a parent's or the holder's own, and whether the ledger has the one in force."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import AccountNumber
from wallet.store.families_tables import child_wallet
from wallet.store.spending_tables import balance_cap
from wallet.store.tables import wallet

_UNTOLD = balance_cap.c.told_version < balance_cap.c.version


@dataclass(frozen=True, slots=True)
class Untold:
    """A cap that the ledger may not have."""

    account: AccountNumber
    version: int
    balance_max_minor: int | None
    """The stricter of the parent's and the holder's; None = neither has one any more."""
    changed_at: datetime


def note_change(connection: sa.Connection, wallet_id: UUID, *, at: datetime) -> None:
    """One of the wallet's caps on its balance is another from now on. The wallet's row must be locked, or be new."""
    first = insert(balance_cap).values(wallet_id=wallet_id, version=1, told_version=0, changed_at=at)
    again = {"version": balance_cap.c.version + 1, "changed_at": at}
    connection.execute(first.on_conflict_do_update(constraint="balance_cap_pk", set_=again))


def untold(connection: sa.Connection, *, limit: int) -> list[UUID]:
    """Some wallets with an account whose cap the ledger may not have: others each time, so that those it refuses for
    good keep nobody waiting."""
    query = (
        sa.select(balance_cap.c.wallet_id)
        .join(wallet, wallet.c.id == balance_cap.c.wallet_id)
        .where(_UNTOLD, wallet.c.account.is_not(None))
        .order_by(sa.func.random())
        .limit(limit)
    )
    return list(connection.execute(query).scalars())


def find_untold(connection: sa.Connection, wallet_id: UUID) -> Untold | None:
    """None if the ledger has the wallet's cap, or there is no account yet."""
    query = (
        sa.select(
            wallet.c.account,
            balance_cap.c.version,
            sa.func.least(wallet.c.balance_max_minor, child_wallet.c.balance_max_minor),
            balance_cap.c.changed_at,
        )
        .select_from(balance_cap)
        .join(wallet, wallet.c.id == balance_cap.c.wallet_id)
        .join(child_wallet, child_wallet.c.wallet_id == wallet.c.id, isouter=True)
        .where(balance_cap.c.wallet_id == wallet_id, _UNTOLD, wallet.c.account.is_not(None))
    )
    row = connection.execute(query).first()
    return None if row is None else Untold(*row)


def mark_told(connection: sa.Connection, wallet_id: UUID, version: int) -> None:
    connection.execute(
        sa.update(balance_cap)
        .where(balance_cap.c.wallet_id == wallet_id, balance_cap.c.told_version < version)
        .values(told_version=version)
    )

"""Which wallets are still under another rule pack than the one in force."""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from wallet.domain.records import Wallet
from wallet.store.tables import wallet
from wallet.store.wallets import find_wallet


def wallets_of_other_packs(connection: sa.Connection, pack: str, *, limit: int) -> list[Wallet]:
    """In order of id; those that are open or suspended and whose class is not just changing."""
    query = (
        sa.select(wallet.c.id)
        .where(wallet.c.rule_pack != pack, wallet.c.state.in_(("open", "suspended")), wallet.c.changing_to.is_(None))
        .order_by(wallet.c.id)
        .limit(limit)
    )
    found = (find_wallet(connection, wallet_id) for wallet_id in connection.execute(query).scalars().all())
    return [row for row in found if row is not None]


def set_pack(connection: sa.Connection, wallet_id: UUID, pack: str) -> None:
    connection.execute(sa.update(wallet).where(wallet.c.id == wallet_id).values(rule_pack=pack))

"""A wallet's own caps, kept a second time. Its cap on the balance by the ledger: `balance_cap` says whether it has it.

What is spent under its caps, counted by the database: triggers of migration 0014 write these tables, from
the rows of payments, purse fundings, programs and codes, and refuse what passes a cap (I9). The service can only read
them, and does not: it counts by itself (`wallet.domain.limits`, `wallet.domain.families`).
"""

from __future__ import annotations

import sqlalchemy as sa

from wallet.store.tables import metadata

balance_cap = sa.Table(
    "balance_cap",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), primary_key=True),
    # Of the parent's or the holder's cap on the balance; the ledger goes by it.
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("told_version", sa.Integer, nullable=False),
    sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("0 <= told_version AND told_version <= version", name="told"),
    sa.Index("balance_cap_untold", "wallet_id", postgresql_where=sa.text("told_version < version")),
)

capped_wallet = sa.Table(
    "capped_wallet",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), primary_key=True),
)
"""Children, and wallets whose holder has lowered a cap on spending at any time."""

spent_day = sa.Table(
    "spent_day",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("capped_wallet.wallet_id"), nullable=False),
    # The scheme's.
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("spent_minor", sa.BigInteger, nullable=False),
    # Of it, what counts towards a child's caps: not what goes to its parent.
    sa.Column("child_minor", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("wallet_id", "day", name="spent_day_pk"),
    sa.CheckConstraint("0 <= child_minor AND child_minor <= spent_minor", name="minor"),
)

"""What is remembered of chains between two runs of the service."""

from __future__ import annotations

import sqlalchemy as sa

from settlement.store.tables import metadata

island_block = sa.Table(
    "island_block",
    metadata,
    sa.Column("ledger", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
    sa.CheckConstraint("number >= 0", name="island_block_number"),
    sa.CheckConstraint("hash ~ '^0x[0-9a-f]{64}$'", name="island_block_hash"),
)
"""The last block of each chain that was final: a node that shows another one at its height answers from a fork. A
trigger (migration 0004) refuses to go back."""

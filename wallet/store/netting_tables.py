"""Netting settlements that the institution has signed, and which of its orders each stands for.

An order is signed for once: by itself (`leg_authorisation`) or in one netting. Triggers of migration 0013 keep both
tables apart, under the order's row lock.
"""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

netting = sa.Table(
    "netting",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("terms", JSONB, nullable=False),
    sa.Column("abort_hash", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("octet_length(abort_hash) = 32", name="abort_hash_length"),
)
"""`terms`: the legs and the list that were signed for, as shown."""

netting_leg = sa.Table(
    "netting_leg",
    metadata,
    sa.Column("hold_id", sa.Uuid, primary_key=True),
    sa.Column("netting_id", sa.Text, sa.ForeignKey("netting.id"), nullable=False),
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
)

netting_order = sa.Table(
    "netting_order",
    metadata,
    sa.Column("instruction_id", sa.Text, sa.ForeignKey("settlement_instruction.id"), primary_key=True),
    sa.Column("netting_id", sa.Text, sa.ForeignKey("netting.id"), nullable=False),
)
"""Deleted when every leg signed in the netting is void on its ledger: then the order is free again."""

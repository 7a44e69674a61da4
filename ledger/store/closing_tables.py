"""The tables of closings: INSERT only, like the journal that they speak of."""

from __future__ import annotations

import sqlalchemy as sa

from ledger.store.tables import metadata

closing = sa.Table(
    "closing",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("block", sa.BigInteger, nullable=False),
    sa.Column("statement", sa.Text, nullable=False),
    sa.Column("directory", sa.LargeBinary, nullable=False),
    sa.CheckConstraint("kind IN ('day', 'order')", name="closing_kind"),
    sa.Index("closing_day", "day", unique=True, postgresql_where=sa.text("kind = 'day'")),
)
"""`statement`: the signed note. `directory`: of each page its first order tag (8 bytes) and its node (40)."""

closing_page = sa.Table(
    "closing_page",
    metadata,
    sa.Column("closing", sa.BigInteger, nullable=False),
    sa.Column("page", sa.Integer, nullable=False),
    sa.Column("leaves", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("closing", "page", name="closing_page_pkey"),
)
"""Packed leaves (17 bytes each) in tree order, from which any account's proof can be made later."""

"""What is kept of islands: signed checkpoints, block headers, and what contradicted them. Rows are only ever added."""

from __future__ import annotations

import sqlalchemy as sa

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)

relay_checkpoint = sa.Table(
    "relay_checkpoint",
    metadata,
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("kept_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("ledger", "size", name="relay_checkpoint_one_root_a_size"),
    sa.CheckConstraint("size >= 0", name="relay_checkpoint_size"),
    sa.CheckConstraint("octet_length(root) = 32", name="relay_checkpoint_root"),
)

relay_header = sa.Table(
    "relay_header",
    metadata,
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("parent_number", sa.BigInteger),
    sa.Column("parent_hash", sa.LargeBinary),
    sa.Column("timestamp", sa.BigInteger, nullable=False),
    sa.Column("rlp", sa.LargeBinary, nullable=False),
    sa.Column("kept_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("ledger", "number", name="relay_header_one_a_height"),
    sa.UniqueConstraint("ledger", "number", "hash", name="relay_header_named"),
    sa.ForeignKeyConstraint(
        ["ledger", "parent_number", "parent_hash"],
        ["relay_header.ledger", "relay_header.number", "relay_header.hash"],
        name="relay_header_child_of_its_parent",
    ),
    sa.CheckConstraint("number >= 0 AND octet_length(hash) = 32", name="relay_header_shape"),
    sa.CheckConstraint("octet_length(rlp) BETWEEN 500 AND 2048", name="relay_header_rlp"),
    sa.CheckConstraint(
        "(parent_number IS NULL) = (parent_hash IS NULL) AND (parent_number IS NULL OR parent_number = number - 1)",
        name="relay_header_parent",
    ),
    sa.Index("relay_header_first", "ledger", unique=True, postgresql_where=sa.text("parent_number IS NULL")),
)
"""Final blocks without a gap: each but the chain's first (the trusted one) refers to its parent, by number and hash."""

relay_alarm = sa.Table(
    "relay_alarm",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("first", sa.LargeBinary, nullable=False),
    sa.Column("second", sa.LargeBinary, nullable=False),
    sa.Column("evidence_sha256", sa.LargeBinary, nullable=False),
    sa.Column("raised_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("ledger", "evidence_sha256", name="relay_alarm_once"),
    sa.CheckConstraint("kind IN ('fork', 'inconsistent', 'rolled-back', 'contradiction')", name="relay_alarm_kind"),
    sa.CheckConstraint("octet_length(evidence_sha256) = 32", name="relay_alarm_digest"),
)
"""The evidence itself, both sides as they were signed or hashed. The same pair again is the same alarm."""

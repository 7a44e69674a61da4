"""Tables of a wallet's life: its devices, the changes made to it, what its holder was told, and verified evidence."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

wallet_device = sa.Table(
    "wallet_device",
    metadata,
    # A key belongs to one wallet for ever, removed or not.
    sa.Column("thumbprint", sa.Text, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("key", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("added_at", _Moment, nullable=False),
    sa.Column("ended_at", _Moment),
    sa.CheckConstraint("state IN ('adding', 'announced', 'active', 'removed', 'refused')", name="state"),
    sa.CheckConstraint("(state IN ('removed', 'refused')) = (ended_at IS NOT NULL)", name="ended"),
    sa.Index("wallet_device_wallet_id", "wallet_id"),
)

wallet_change = sa.Table(
    "wallet_change",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    # What was asked, without personal data: the same id with other content is refused.
    sa.Column("content", JSONB, nullable=False),
    # What the holder signed for it, if that was needed.
    sa.Column("token", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    # How far a change of several steps has come, without personal data.
    sa.Column("progress", JSONB, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("due_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("ended_at", _Moment),
    sa.CheckConstraint(
        "kind IN ('caps', 'class', 'add-device', 'remove-device', 'replace-device', 'suspend', 'resume', 'recover',"
        " 'close')",
        name="kind",
    ),
    sa.CheckConstraint("state IN ('pending', 'waiting', 'done', 'refused', 'objected', 'cancelled')", name="state"),
    sa.CheckConstraint("(state IN ('pending', 'waiting')) = (ended_at IS NULL)", name="ended"),
    sa.CheckConstraint("(state = 'refused') <= (refusal IS NOT NULL)", name="refused_says_why"),
    sa.CheckConstraint("(state = 'waiting') <= (due_at IS NOT NULL)", name="waits_for_a_time"),
    sa.Index("wallet_change_wallet_created", "wallet_id", "created_at", "id"),
    # One of a kind at a time: what is under way is not overtaken by the next.
    sa.Index(
        "wallet_change_one_of_a_kind",
        "wallet_id",
        "kind",
        unique=True,
        postgresql_where=sa.text("state IN ('pending', 'waiting')"),
    ),
    sa.Index(
        "wallet_change_unfinished",
        "created_at",
        postgresql_where=sa.text("state IN ('pending', 'waiting')"),
    ),
)

customer_evidence_change = sa.Table(
    "customer_evidence_change",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey("customer.id"), nullable=False),
    sa.Column("added", ARRAY(sa.Text), nullable=False),
    sa.Column("withdrawn", ARRAY(sa.Text), nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    # Whether every wallet of the customer has been brought to a class that the evidence opens.
    sa.Column("is_enforced", sa.Boolean, nullable=False),
    sa.CheckConstraint("NOT added && withdrawn", name="adds_or_withdraws"),
    sa.Index("customer_evidence_change_customer_id", "customer_id"),
    sa.Index("customer_evidence_change_unenforced", "created_at", postgresql_where=sa.text("NOT is_enforced")),
)

notice = sa.Table(
    "notice",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("at", _Moment, nullable=False),
    sa.Column("data", JSONB, nullable=False),
    sa.Index("notice_wallet_at", "wallet_id", "at", "id"),
)

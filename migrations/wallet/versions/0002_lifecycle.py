"""A wallet's life: devices, own caps, changes, suspension and closure, notices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"

_OPEN_OLD = "(state = 'open') = (account IS NOT NULL AND opened_at IS NOT NULL)"
_OPEN_NEW = "(state IN ('open', 'suspended', 'closing', 'closed')) = (account IS NOT NULL AND opened_at IS NOT NULL)"
_UNFINISHED = sa.text("state IN ('pending', 'waiting')")


def upgrade() -> None:
    op.add_column("wallet", sa.Column("opened_in_class", sa.Text(), nullable=True))
    op.add_column("wallet", sa.Column("opened_with", sa.Text(), nullable=True))
    op.execute("UPDATE wallet SET opened_in_class = wallet_class, opened_with = device_thumbprint")
    op.alter_column("wallet", "opened_in_class", nullable=False)
    op.alter_column("wallet", "opened_with", nullable=False)
    op.add_column("wallet", sa.Column("other_device_keys", postgresql.JSONB(), nullable=True))
    op.add_column("wallet", sa.Column("changing_to", sa.Text(), nullable=True))
    op.add_column("wallet", sa.Column("balance_max_minor", sa.BigInteger(), nullable=True))
    op.add_column("wallet", sa.Column("single_max_minor", sa.BigInteger(), nullable=True))
    op.add_column("wallet", sa.Column("day_max_minor", sa.BigInteger(), nullable=True))
    op.add_column("wallet", sa.Column("year_max_minor", sa.BigInteger(), nullable=True))
    op.add_column(
        "wallet", sa.Column("suspensions", postgresql.ARRAY(sa.Text()), nullable=False, server_default=sa.text("'{}'"))
    )
    op.alter_column("wallet", "suspensions", server_default=None)
    op.add_column("wallet", sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True))
    op.drop_constraint(op.f("wallet_state_ck"), "wallet")
    op.drop_constraint(op.f("wallet_open_has_account_ck"), "wallet")
    for name, condition in (
        ("state", "state IN ('opening', 'open', 'refused', 'suspended', 'closing', 'closed')"),
        ("open_has_account", _OPEN_NEW),
        ("closed_at", "(state = 'closed') = (closed_at IS NOT NULL)"),
        ("changing_to", "changing_to IN ('I', 'II', 'III', 'IV') AND changing_to <> wallet_class"),
        (
            "own_caps_i9",
            "balance_max_minor >= 0 AND single_max_minor >= 0 AND day_max_minor >= 0 AND year_max_minor >= 0",
        ),
        ("suspensions", "suspensions <@ ARRAY['loss', 'evidence', 'institution']"),
        ("suspended", "(state = 'suspended') <= (cardinality(suspensions) > 0)"),
        ("open_is_not_suspended", "(state IN ('open', 'closing')) <= (cardinality(suspensions) = 0)"),
    ):
        op.create_check_constraint(op.f(f"wallet_{name}_ck"), "wallet", condition)
    op.create_table(
        "wallet_device",
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("key", postgresql.JSONB(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('adding', 'announced', 'active', 'removed', 'refused')", name=op.f("wallet_device_state_ck")
        ),
        sa.CheckConstraint(
            "(state IN ('removed', 'refused')) = (ended_at IS NOT NULL)", name=op.f("wallet_device_ended_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("wallet_device_wallet_id_fk")),
        sa.PrimaryKeyConstraint("thumbprint", name=op.f("wallet_device_pk")),
    )
    op.create_index("wallet_device_wallet_id", "wallet_device", ["wallet_id"], unique=False)
    op.execute(
        "INSERT INTO wallet_device (thumbprint, wallet_id, key, state, added_at)"
        " SELECT device_thumbprint, id, device_key, 'active', created_at FROM wallet"
    )
    op.create_table(
        "wallet_change",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("content", postgresql.JSONB(), nullable=False),
        sa.Column("token", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("progress", postgresql.JSONB(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "kind IN ('caps', 'class', 'add-device', 'remove-device', 'replace-device', 'suspend', 'resume',"
            " 'recover', 'close')",
            name=op.f("wallet_change_kind_ck"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'waiting', 'done', 'refused', 'objected', 'cancelled')",
            name=op.f("wallet_change_state_ck"),
        ),
        sa.CheckConstraint(
            "(state IN ('pending', 'waiting')) = (ended_at IS NULL)", name=op.f("wallet_change_ended_ck")
        ),
        sa.CheckConstraint(
            "(state = 'refused') <= (refusal IS NOT NULL)", name=op.f("wallet_change_refused_says_why_ck")
        ),
        sa.CheckConstraint(
            "(state = 'waiting') <= (due_at IS NOT NULL)", name=op.f("wallet_change_waits_for_a_time_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("wallet_change_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("wallet_change_pk")),
    )
    op.create_index("wallet_change_wallet_created", "wallet_change", ["wallet_id", "created_at", "id"], unique=False)
    op.create_index(
        "wallet_change_one_of_a_kind",
        "wallet_change",
        ["wallet_id", "kind"],
        unique=True,
        postgresql_where=_UNFINISHED,
    )
    op.create_index(
        "wallet_change_unfinished", "wallet_change", ["created_at"], unique=False, postgresql_where=_UNFINISHED
    )
    op.create_table(
        "customer_evidence_change",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("added", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("withdrawn", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("is_enforced", sa.Boolean(), nullable=False),
        sa.CheckConstraint("NOT added && withdrawn", name=op.f("customer_evidence_change_adds_or_withdraws_ck")),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"], name=op.f("customer_evidence_change_customer_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("customer_evidence_change_pk")),
    )
    op.create_index("customer_evidence_change_customer_id", "customer_evidence_change", ["customer_id"], unique=False)
    op.create_index(
        "customer_evidence_change_unenforced",
        "customer_evidence_change",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("NOT is_enforced"),
    )
    op.create_table(
        "notice",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("data", postgresql.JSONB(), nullable=False),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("notice_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("notice_pk")),
    )
    op.create_index("notice_wallet_at", "notice", ["wallet_id", "at", "id"], unique=False)


def downgrade() -> None:
    op.drop_table("notice")
    op.drop_table("customer_evidence_change")
    op.drop_table("wallet_change")
    op.drop_table("wallet_device")
    for name in (
        "open_is_not_suspended",
        "suspended",
        "suspensions",
        "own_caps_i9",
        "changing_to",
        "closed_at",
        "open_has_account",
        "state",
    ):
        op.drop_constraint(op.f(f"wallet_{name}_ck"), "wallet")
    op.create_check_constraint(op.f("wallet_state_ck"), "wallet", "state IN ('opening', 'open', 'refused')")
    op.create_check_constraint(op.f("wallet_open_has_account_ck"), "wallet", _OPEN_OLD)
    for column in (
        "closed_at",
        "suspensions",
        "year_max_minor",
        "day_max_minor",
        "single_max_minor",
        "balance_max_minor",
        "changing_to",
        "other_device_keys",
        "opened_with",
        "opened_in_class",
    ):
        op.drop_column("wallet", column)

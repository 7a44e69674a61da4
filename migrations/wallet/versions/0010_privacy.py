"""Erasure, unmasking, the privacy log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_check_constraint(
        op.f("customer_erased_whole_ck"),
        "customer",
        "(octet_length(wrapped_key) = 0) = (octet_length(personal_data) = 0)",
    )
    op.create_table(
        "customer_erasure",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("erased_by", sa.Text(), nullable=False),
        sa.Column("erased_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "reason IN ('requested', 'retention-ended', 'registered-in-error')", name=op.f("customer_erasure_reason_ck")
        ),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"], name=op.f("customer_erasure_customer_id_fk")),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("customer_erasure_pk")),
        sa.UniqueConstraint("id", name=op.f("customer_erasure_id_uq")),
    )
    op.create_table(
        "unmask_case",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("officer", sa.Text(), nullable=False),
        sa.Column("officer_name", sa.Text(), nullable=False),
        sa.Column("officer_key", postgresql.JSONB(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "valid_until > created_at AND valid_until <= created_at + interval '7 days'",
            name=op.f("unmask_case_valid_for_a_while_ck"),
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("unmask_case_wallet_id_fk")),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"], name=op.f("unmask_case_customer_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("unmask_case_pk")),
        sa.UniqueConstraint("id", "officer", name="unmask_case_officer_uq"),
    )
    op.create_index("unmask_case_customer", "unmask_case", ["customer_id"], unique=False)
    op.create_table(
        "unmask_approval",
        sa.Column("case_id", sa.Uuid(), nullable=False),
        sa.Column("officer", sa.Text(), nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("officer_name", sa.Text(), nullable=False),
        sa.Column("officer_key", postgresql.JSONB(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("officer <> requested_by", name=op.f("unmask_approval_not_his_own_ck")),
        sa.ForeignKeyConstraint(
            ["case_id", "requested_by"], ["unmask_case.id", "unmask_case.officer"], name="unmask_approval_case_fk"
        ),
        sa.PrimaryKeyConstraint("case_id", "officer", name="unmask_approval_pk"),
        sa.UniqueConstraint("case_id", "officer_name", name="unmask_approval_name_uq"),
    )
    op.create_table(
        "privacy_entry",
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("commitment", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("index >= 0", name=op.f("privacy_entry_index_ck")),
        sa.CheckConstraint("octet_length(commitment) = 32", name=op.f("privacy_entry_commitment_ck")),
        sa.PrimaryKeyConstraint("index", name=op.f("privacy_entry_pk")),
        sa.UniqueConstraint("commitment", name=op.f("privacy_entry_commitment_uq")),
    )
    op.create_table(
        "privacy_checkpoint",
        sa.Column("size", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_index", sa.BigInteger(), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.CheckConstraint("size = last_index + 1", name=op.f("privacy_checkpoint_covers_its_entries_ck")),
        sa.ForeignKeyConstraint(["last_index"], ["privacy_entry.index"], name=op.f("privacy_checkpoint_last_index_fk")),
        sa.PrimaryKeyConstraint("size", name=op.f("privacy_checkpoint_pk")),
    )
    op.create_table(
        "unmask_disclosure",
        sa.Column("case_id", sa.Uuid(), nullable=False),
        sa.Column("first_approver", sa.Text(), nullable=False),
        sa.Column("second_approver", sa.Text(), nullable=False),
        sa.Column("entry_index", sa.BigInteger(), nullable=False),
        sa.Column("salt", sa.LargeBinary(), nullable=False),
        sa.Column("entry", sa.Text(), nullable=False),
        sa.Column("disclosed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("first_approver <> second_approver", name=op.f("unmask_disclosure_two_approvers_ck")),
        sa.CheckConstraint("octet_length(salt) = 32", name=op.f("unmask_disclosure_salt_ck")),
        sa.ForeignKeyConstraint(["case_id"], ["unmask_case.id"], name=op.f("unmask_disclosure_case_id_fk")),
        sa.ForeignKeyConstraint(
            ["entry_index"], ["privacy_entry.index"], name=op.f("unmask_disclosure_entry_index_fk")
        ),
        sa.ForeignKeyConstraint(
            ["case_id", "first_approver"],
            ["unmask_approval.case_id", "unmask_approval.officer"],
            name="unmask_disclosure_first_fk",
        ),
        sa.ForeignKeyConstraint(
            ["case_id", "second_approver"],
            ["unmask_approval.case_id", "unmask_approval.officer"],
            name="unmask_disclosure_second_fk",
        ),
        sa.PrimaryKeyConstraint("case_id", name=op.f("unmask_disclosure_pk")),
        sa.UniqueConstraint("entry_index", name=op.f("unmask_disclosure_entry_index_uq")),
    )


def downgrade() -> None:
    op.drop_table("unmask_disclosure")
    op.drop_table("privacy_checkpoint")
    op.drop_table("privacy_entry")
    op.drop_table("unmask_approval")
    op.drop_table("unmask_case")
    op.drop_table("customer_erasure")
    op.drop_constraint(op.f("customer_erased_whole_ck"), "customer")

"""Payment requests, payers' codes, refunds."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "payment_request",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=True),
        sa.Column("amount_min_minor", sa.BigInteger(), nullable=True),
        sa.Column("amount_max_minor", sa.BigInteger(), nullable=True),
        sa.Column("is_many", sa.Boolean(), nullable=False),
        sa.Column("payer_account", sa.BigInteger(), nullable=True),
        sa.Column("payer_institution", sa.Text(), nullable=True),
        sa.Column("payee_name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("payee_reference", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("paid_minor", sa.BigInteger(), nullable=False),
        sa.Column("payments", sa.BigInteger(), nullable=False),
        sa.Column("surplus_minor", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('open', 'part-paid')) = (ended_at IS NULL)", name=op.f("payment_request_ended_ck")
        ),
        sa.CheckConstraint(
            "state <> 'paid' OR amount_minor IS NULL OR paid_minor = amount_minor",
            name=op.f("payment_request_paid_in_full_ck"),
        ),
        sa.CheckConstraint(
            "state IN ('open', 'part-paid', 'paid', 'declined', 'cancelled', 'expired')",
            name=op.f("payment_request_state_ck"),
        ),
        sa.CheckConstraint("(paid_minor > 0) = (payments > 0)", name=op.f("payment_request_payments_counted_ck")),
        sa.CheckConstraint(
            "amount_minor > 0 AND amount_min_minor > 0 AND amount_max_minor > 0",
            name=op.f("payment_request_amounts_positive_ck"),
        ),
        sa.CheckConstraint(
            "amount_minor IS NULL OR amount_max_minor IS NULL", name=op.f("payment_request_total_or_range_ck")
        ),
        sa.CheckConstraint("is_many OR payments <= 1", name=op.f("payment_request_paid_once_i7_ck")),
        sa.CheckConstraint("paid_minor <= amount_minor", name=op.f("payment_request_paid_at_most_i7_ck")),
        sa.CheckConstraint("paid_minor >= 0 AND surplus_minor >= 0", name=op.f("payment_request_paid_positive_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("payment_request_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("payment_request_pk")),
    )
    op.create_index(
        "payment_request_open",
        "payment_request",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("state IN ('open', 'part-paid')"),
    )
    op.create_index(
        "payment_request_payer",
        "payment_request",
        ["payer_account"],
        unique=False,
        postgresql_where=sa.text("payer_account IS NOT NULL"),
    )
    op.create_index("payment_request_wallet", "payment_request", ["wallet_id", "created_at", "id"], unique=False)
    op.create_table(
        "request_payment",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("payer_account", sa.BigInteger(), nullable=True),
        sa.Column("refund_account", sa.BigInteger(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("is_surplus", sa.Boolean(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("amount_minor > 0", name=op.f("request_payment_amount_positive_ck")),
        sa.ForeignKeyConstraint(["request_id"], ["payment_request.id"], name=op.f("request_payment_request_id_fk")),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("request_payment_pk")),
        sa.UniqueConstraint("seq", name=op.f("request_payment_seq_uq")),
    )
    op.create_index("request_payment_request", "request_payment", ["request_id", "seq"], unique=False)
    op.create_table(
        "account_watch",
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("watched_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seen_seq", sa.BigInteger(), nullable=False),
        sa.Column("gap_seq", sa.BigInteger(), nullable=True),
        sa.Column("gap_cursor", sa.Text(), nullable=True),
        sa.CheckConstraint("(gap_seq IS NULL) = (gap_cursor IS NULL)", name=op.f("account_watch_gap_is_whole_ck")),
        sa.PrimaryKeyConstraint("account", name=op.f("account_watch_pk")),
    )
    op.create_index("account_watch_looked", "account_watch", ["looked_at"], unique=False)
    op.create_table(
        "incoming_request",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("needs_approval", sa.Boolean(), nullable=False),
        sa.Column("paid_minor", sa.BigInteger(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=True),
        sa.Column("decline", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "decline IS NULL OR state = 'declined'", name=op.f("incoming_request_decline_is_declined_ck")
        ),
        sa.CheckConstraint("state IN ('open', 'paid', 'declined', 'ended')", name=op.f("incoming_request_state_ck")),
        sa.CheckConstraint("paid_minor >= 0", name=op.f("incoming_request_paid_positive_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("incoming_request_wallet_id_fk")),
        sa.PrimaryKeyConstraint("wallet_id", "request_id", name="incoming_request_pk"),
    )
    op.create_index(
        "incoming_request_received", "incoming_request", ["wallet_id", "received_at", "request_id"], unique=False
    )
    op.create_index(
        "incoming_request_untold",
        "incoming_request",
        ["expires_at"],
        unique=False,
        postgresql_where=sa.text("decline IS NOT NULL"),
    )
    op.create_table(
        "redemption",
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("request_id", sa.Uuid(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("credit_account", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("cap_minor", sa.BigInteger(), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("counted_on", sa.Date(), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name=op.f("redemption_final_is_booked_ck")),
        sa.CheckConstraint("(state = 'refused') = (counted_on IS NULL)", name=op.f("redemption_counted_i9_ck")),
        sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name=op.f("redemption_refused_says_why_ck")),
        sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name=op.f("redemption_state_ck")),
        sa.CheckConstraint(
            "0 < amount_minor AND amount_minor <= cap_minor", name=op.f("redemption_amount_within_cap_i8_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("redemption_wallet_id_fk")),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("redemption_pk")),
    )
    op.create_index(
        "redemption_payment_i7",
        "redemption",
        ["payment_id"],
        unique=True,
        postgresql_where=sa.text("state <> 'refused'"),
    )
    op.create_index(
        "redemption_unfinished",
        "redemption",
        ["created_at"],
        unique=False,
        postgresql_where=sa.text("state = 'initiated'"),
    )
    op.create_index("redemption_wallet", "redemption", ["wallet_id"], unique=False)
    op.create_table(
        "refund_original",
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("payer_account", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("refunded_minor", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "0 <= refunded_minor AND refunded_minor <= amount_minor",
            name=op.f("refund_original_refunded_at_most_i7_ck"),
        ),
        sa.CheckConstraint("account <> payer_account", name=op.f("refund_original_accounts_differ_i1_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("refund_original_wallet_id_fk")),
        sa.PrimaryKeyConstraint("transfer_id", name=op.f("refund_original_pk")),
    )
    op.create_table(
        "refund",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("original_id", sa.Uuid(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("tries", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name=op.f("refund_final_is_booked_ck")),
        sa.CheckConstraint("state IN ('reserved', 'final', 'released')", name=op.f("refund_state_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("refund_amount_positive_ck")),
        sa.ForeignKeyConstraint(["original_id"], ["refund_original.transfer_id"], name=op.f("refund_original_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("refund_pk")),
    )
    op.create_index("refund_original_id", "refund", ["original_id", "created_at"], unique=False)
    op.create_index(
        "refund_reserved", "refund", ["created_at"], unique=False, postgresql_where=sa.text("state = 'reserved'")
    )


def downgrade() -> None:
    op.drop_table("refund")
    op.drop_table("refund_original")
    op.drop_table("redemption")
    op.drop_table("incoming_request")
    op.drop_table("account_watch")
    op.drop_table("request_payment")
    op.drop_table("payment_request")

"""The wallet service's tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "customer",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("phone_verified", sa.Boolean(), nullable=False),
        sa.Column("id_verified", sa.Boolean(), nullable=False),
        sa.Column("seen_in_person", sa.Boolean(), nullable=False),
        sa.Column("bank_account_verified", sa.Boolean(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=False),
        sa.Column("personal_data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("customer_pk")),
    )
    op.create_table(
        "institution_account",
        sa.Column("ledger", sa.Text(), nullable=False),
        sa.Column("opening_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("ledger", name=op.f("institution_account_pk")),
        sa.UniqueConstraint("opening_id", name=op.f("institution_account_opening_id_uq")),
    )
    op.create_table(
        "request_nonce",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("nonce", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "nonce", name="request_nonce_pk"),
    )
    op.create_index("request_nonce_expires_at", "request_nonce", ["expires_at"], unique=False)
    op.create_table(
        "sandbox_deposit",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("balance_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("balance_minor >= 0", name=op.f("sandbox_deposit_not_overdrawn_ck")),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("sandbox_deposit_pk")),
    )
    op.create_table(
        "sandbox_posting",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("direction", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("is_booked", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("direction IN ('debit', 'credit')", name=op.f("sandbox_posting_direction_ck")),
        sa.CheckConstraint("is_booked OR direction = 'debit'", name=op.f("sandbox_posting_credits_are_booked_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("sandbox_posting_amount_positive_ck")),
        sa.PrimaryKeyConstraint("id", name=op.f("sandbox_posting_pk")),
    )
    op.create_index("sandbox_posting_customer_id", "sandbox_posting", ["customer_id"], unique=False)
    op.create_table(
        "settlement_instruction",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("ledger", sa.Text(), nullable=False),
        sa.Column("pay_currency", sa.Text(), nullable=False),
        sa.Column("pay_amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("receive_currency", sa.Text(), nullable=False),
        sa.Column("receive_amount_minor_min", sa.BigInteger(), nullable=False),
        sa.Column("credit_account", sa.BigInteger(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "pay_amount_minor > 0 AND receive_amount_minor_min > 0",
            name=op.f("settlement_instruction_amounts_positive_ck"),
        ),
        sa.CheckConstraint(
            "pay_currency <> receive_currency", name=op.f("settlement_instruction_currencies_differ_ck")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("settlement_instruction_pk")),
    )
    op.create_table(
        "leg_authorisation",
        sa.Column("instruction_id", sa.Text(), nullable=False),
        sa.Column("ledger", sa.Text(), nullable=False),
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.Column("terms", postgresql.JSONB(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["instruction_id"], ["settlement_instruction.id"], name=op.f("leg_authorisation_instruction_id_fk")
        ),
        sa.PrimaryKeyConstraint("instruction_id", "ledger", name="leg_authorisation_pk"),
        sa.UniqueConstraint("hold_id", name=op.f("leg_authorisation_hold_id_uq")),
    )
    op.create_table(
        "wallet",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("wallet_class", sa.Text(), nullable=False),
        sa.Column("rule_pack", sa.Text(), nullable=False),
        sa.Column("device_key", postgresql.JSONB(), nullable=False),
        sa.Column("device_thumbprint", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("opening_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("usage_day", sa.Date(), nullable=False),
        sa.Column("usage_day_minor", sa.BigInteger(), nullable=False),
        sa.Column("usage_year_minor", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("opened_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'open') = (account IS NOT NULL AND opened_at IS NOT NULL)",
            name=op.f("wallet_open_has_account_ck"),
        ),
        sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name=op.f("wallet_refused_says_why_ck")),
        sa.CheckConstraint("state IN ('opening', 'open', 'refused')", name=op.f("wallet_state_ck")),
        sa.CheckConstraint("wallet_class IN ('I', 'II', 'III', 'IV')", name=op.f("wallet_class_ck")),
        sa.CheckConstraint(
            "0 <= usage_day_minor AND usage_day_minor <= usage_year_minor", name=op.f("wallet_usage_i9_ck")
        ),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"], name=op.f("wallet_customer_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("wallet_pk")),
        sa.UniqueConstraint("account", name=op.f("wallet_account_uq")),
        sa.UniqueConstraint("device_thumbprint", name=op.f("wallet_device_thumbprint_uq")),
        sa.UniqueConstraint("opening_id", name=op.f("wallet_opening_id_uq")),
    )
    op.create_index("wallet_customer_id", "wallet", ["customer_id"], unique=False)
    op.create_index(
        "wallet_opening", "wallet", ["created_at"], unique=False, postgresql_where=sa.text("state = 'opening'")
    )
    op.create_table(
        "exchange_in",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("claimed_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("unknown_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name=op.f("exchange_in_final_is_booked_ck")),
        sa.CheckConstraint(
            "(state IN ('compensating', 'refused', 'compensated')) = (refusal IS NOT NULL)",
            name=op.f("exchange_in_refused_says_why_ck"),
        ),
        sa.CheckConstraint(
            "state IN ('initiated', 'debited', 'compensating', 'final', 'refused', 'compensated')",
            name=op.f("exchange_in_state_ck"),
        ),
        sa.CheckConstraint("amount_minor > 0", name=op.f("exchange_in_amount_positive_ck")),
        sa.CheckConstraint("attempt > 0", name=op.f("exchange_in_attempt_positive_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("exchange_in_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("exchange_in_pk")),
    )
    op.create_index(
        "exchange_in_unfinished",
        "exchange_in",
        ["claimed_until"],
        unique=False,
        postgresql_where=sa.text("state IN ('initiated', 'debited', 'compensating')"),
    )
    op.create_index("exchange_in_wallet_created", "exchange_in", ["wallet_id", "created_at", "id"], unique=False)
    op.create_table(
        "payment",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("debit_account", sa.BigInteger(), nullable=False),
        sa.Column("credit_account", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("reference", sa.Uuid(), nullable=True),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("is_transient", sa.Boolean(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counted_on", sa.Date(), nullable=True),
        sa.Column("deposit_credited_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(kind = 'payment' AND state <> 'refused') = (counted_on IS NOT NULL)", name=op.f("payment_counted_i9_ck")
        ),
        sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name=op.f("payment_final_is_booked_ck")),
        sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name=op.f("payment_refused_says_why_ck")),
        sa.CheckConstraint(
            "deposit_credited_at IS NULL OR (kind = 'exchange-out' AND state = 'final')",
            name=op.f("payment_credited_after_final_ck"),
        ),
        sa.CheckConstraint("kind = 'payment' OR counted_on IS NULL", name=op.f("payment_counted_kind_i9_ck")),
        sa.CheckConstraint("kind IN ('payment', 'refund', 'exchange-out')", name=op.f("payment_kind_ck")),
        sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name=op.f("payment_state_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("payment_amount_positive_ck")),
        sa.CheckConstraint("debit_account <> credit_account", name=op.f("payment_accounts_differ_i1_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("payment_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("payment_pk")),
    )
    op.create_index(
        "payment_unfinished",
        "payment",
        ["tried_at"],
        unique=False,
        postgresql_where=sa.text(
            "state = 'initiated' OR (kind = 'exchange-out' AND state = 'final' AND deposit_credited_at IS NULL)"
        ),
    )
    op.create_index("payment_wallet_created", "payment", ["wallet_id", "created_at", "id"], unique=False)


def downgrade() -> None:
    op.drop_index("payment_wallet_created", table_name="payment")
    op.drop_index(
        "payment_unfinished",
        table_name="payment",
        postgresql_where=sa.text(
            "state = 'initiated' OR (kind = 'exchange-out' AND state = 'final' AND deposit_credited_at IS NULL)"
        ),
    )
    op.drop_table("payment")
    op.drop_index("exchange_in_wallet_created", table_name="exchange_in")
    op.drop_index(
        "exchange_in_unfinished",
        table_name="exchange_in",
        postgresql_where=sa.text("state IN ('initiated', 'debited', 'compensating')"),
    )
    op.drop_table("exchange_in")
    op.drop_index("wallet_opening", table_name="wallet", postgresql_where=sa.text("state = 'opening'"))
    op.drop_index("wallet_customer_id", table_name="wallet")
    op.drop_table("wallet")
    op.drop_table("leg_authorisation")
    op.drop_table("settlement_instruction")
    op.drop_index("sandbox_posting_customer_id", table_name="sandbox_posting")
    op.drop_table("sandbox_posting")
    op.drop_table("sandbox_deposit")
    op.drop_index("request_nonce_expires_at", table_name="request_nonce")
    op.drop_table("request_nonce")
    op.drop_table("institution_account")
    op.drop_table("customer")

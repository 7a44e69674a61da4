"""Programmable money: templates, programs, their holds and decisions, statements, vouchers, merchants."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.create_table(
        "program_template",
        sa.Column("sha256", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", postgresql.JSONB(), nullable=False),
        sa.CheckConstraint("length(sha256) = 32", name=op.f("program_template_sha256_ck")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("program_template_pk")),
    )
    op.create_table(
        "program",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("request_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("template_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("payer_account", sa.BigInteger(), nullable=False),
        sa.Column("terms", postgresql.JSONB(), nullable=False),
        sa.Column("terms_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("sealed_seed", sa.LargeBinary(), nullable=False),
        sa.Column("shown_secret", sa.LargeBinary(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("funded_minor", sa.BigInteger(), nullable=False),
        sa.Column("held_minor", sa.BigInteger(), nullable=False),
        sa.Column("released_minor", sa.BigInteger(), nullable=False),
        sa.Column("returned_minor", sa.BigInteger(), nullable=False),
        sa.Column("change_minor", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("funded_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("evaluated_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("wake_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("counted_on", sa.Date(), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "(state IN ('active', 'finished')) = (funded_at IS NOT NULL)", name=op.f("program_funded_at_ck")
        ),
        sa.CheckConstraint(
            "(state IN ('refusing', 'refused')) = (refusal IS NOT NULL)", name=op.f("program_refused_says_why_ck")
        ),
        sa.CheckConstraint(
            "held_minor + released_minor + returned_minor ="
            " CASE WHEN state IN ('active', 'finished') THEN funded_minor ELSE 0 END",
            name=op.f("program_conserved_i6_ck"),
        ),
        sa.CheckConstraint("state <> 'active' OR held_minor > 0", name=op.f("program_active_holds_something_ck")),
        sa.CheckConstraint("state <> 'finished' OR held_minor = 0", name=op.f("program_finished_holds_nothing_ck")),
        sa.CheckConstraint(
            "state IN ('proposed', 'funding', 'active', 'finished', 'refusing', 'refused')",
            name=op.f("program_state_ck"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('funding', 'active', 'finished') OR counted_on IS NOT NULL",
            name=op.f("program_counted_i9_ck"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('funding', 'active', 'refusing') OR wake_at IS NOT NULL",
            name=op.f("program_not_forgotten_ck"),
        ),
        sa.CheckConstraint("deadline <= expires_at", name=op.f("program_deadline_ck")),
        sa.CheckConstraint("funded_minor > 0", name=op.f("program_funded_positive_ck")),
        sa.CheckConstraint(
            "held_minor >= 0 AND released_minor >= 0 AND returned_minor >= 0", name=op.f("program_not_negative_ck")
        ),
        sa.CheckConstraint(
            "0 <= change_minor AND change_minor <= returned_minor", name=op.f("program_change_is_returned_ck")
        ),
        sa.CheckConstraint("length(terms_sha256) = 32", name=op.f("program_terms_sha256_ck")),
        sa.ForeignKeyConstraint(
            ["template_sha256"], ["program_template.sha256"], name=op.f("program_template_sha256_fk")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("program_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("program_pk")),
    )
    op.create_index(
        "program_wake", "program", ["wake_at"], unique=False, postgresql_where=sa.text("wake_at IS NOT NULL")
    )
    op.create_index("program_wallet", "program", ["wallet_id", "id"], unique=False)
    op.create_table(
        "program_voucher",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("program_id", sa.Uuid(), nullable=False),
        sa.Column("recipient_account", sa.BigInteger(), nullable=False),
        sa.Column("recipient_key", postgresql.JSONB(), nullable=False),
        sa.Column("value_minor", sa.BigInteger(), nullable=False),
        sa.Column("spent_minor", sa.BigInteger(), nullable=False),
        sa.Column("change_minor", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("spent_minor + change_minor <= value_minor", name=op.f("program_voucher_not_overspent_ck")),
        sa.CheckConstraint("spent_minor >= 0 AND change_minor >= 0", name=op.f("program_voucher_not_negative_ck")),
        sa.ForeignKeyConstraint(["program_id"], ["program.id"], name=op.f("program_voucher_program_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("program_voucher_pk")),
    )
    op.create_index("program_voucher_program", "program_voucher", ["program_id"], unique=False)
    op.create_table(
        "program_spend",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("voucher_id", sa.Uuid(), nullable=False),
        sa.Column("program_id", sa.Uuid(), nullable=False),
        sa.Column("merchant_account", sa.BigInteger(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("change_minor", sa.BigInteger(), nullable=False),
        sa.Column("change_to", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("unknown_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("detail", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "(state = 'final') = (booked_at IS NOT NULL)", name=op.f("program_spend_final_is_booked_ck")
        ),
        sa.CheckConstraint(
            "(state = 'refused') = (refusal IS NOT NULL)", name=op.f("program_spend_refused_says_why_ck")
        ),
        sa.CheckConstraint("change_to IN ('issuer', 'recipient')", name=op.f("program_spend_change_to_ck")),
        sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name=op.f("program_spend_state_ck")),
        sa.CheckConstraint("amount_minor > 0 AND change_minor >= 0", name=op.f("program_spend_amount_positive_ck")),
        sa.ForeignKeyConstraint(["program_id"], ["program.id"], name=op.f("program_spend_program_id_fk")),
        sa.ForeignKeyConstraint(["voucher_id"], ["program_voucher.id"], name=op.f("program_spend_voucher_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("program_spend_pk")),
        sa.UniqueConstraint("payment_id", name=op.f("program_spend_payment_id_uq")),
    )
    op.create_index(
        "program_spend_open",
        "program_spend",
        ["program_id"],
        unique=False,
        postgresql_where=sa.text("state = 'initiated'"),
    )
    op.create_index("program_spend_voucher", "program_spend", ["voucher_id", "id"], unique=False)
    op.create_table(
        "program_hold",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("program_id", sa.Uuid(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("voucher_id", sa.Uuid(), nullable=True),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("spend_id", sa.Uuid(), nullable=True),
        sa.Column("instruction", sa.Text(), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state IN ('released', 'returned')) = (ended_at IS NOT NULL)", name=op.f("program_hold_ends_once_i6_ck")
        ),
        sa.CheckConstraint(
            "spend_id IS NULL OR (voucher_id IS NOT NULL AND state <> 'returned')",
            name=op.f("program_hold_spent_i6_ck"),
        ),
        sa.CheckConstraint("state = 'proposed' OR instruction IS NOT NULL", name=op.f("program_hold_signed_i8_ck")),
        sa.CheckConstraint("state IN ('proposed', 'held', 'released', 'returned')", name=op.f("program_hold_state_ck")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("program_hold_amount_positive_ck")),
        sa.ForeignKeyConstraint(["program_id"], ["program.id"], name=op.f("program_hold_program_id_fk")),
        sa.ForeignKeyConstraint(["spend_id"], ["program_spend.id"], name=op.f("program_hold_spend_id_fk")),
        sa.ForeignKeyConstraint(["voucher_id"], ["program_voucher.id"], name=op.f("program_hold_voucher_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("program_hold_pk")),
        sa.UniqueConstraint("program_id", "number", name=op.f("program_hold_program_id_uq")),
    )
    op.create_index(
        "program_hold_spend",
        "program_hold",
        ["spend_id"],
        unique=False,
        postgresql_where=sa.text("spend_id IS NOT NULL"),
    )
    op.create_index(
        "program_hold_voucher",
        "program_hold",
        ["voucher_id"],
        unique=False,
        postgresql_where=sa.text("voucher_id IS NOT NULL"),
    )
    op.create_table(
        "program_decision",
        sa.Column("hold_id", sa.Uuid(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("because", sa.Text(), nullable=False),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("outcome IN ('release', 'return')", name=op.f("program_decision_outcome_ck")),
        sa.ForeignKeyConstraint(["hold_id"], ["program_hold.id"], name=op.f("program_decision_hold_id_fk")),
        sa.PrimaryKeyConstraint("hold_id", name=op.f("program_decision_pk")),
    )
    op.create_table(
        "program_statement",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("program_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("event", sa.Text(), nullable=False),
        sa.Column("ordinal", sa.Integer(), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("ordinal > 0", name=op.f("program_statement_ordinal_positive_ck")),
        sa.ForeignKeyConstraint(["program_id"], ["program.id"], name=op.f("program_statement_program_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("program_statement_pk")),
        sa.UniqueConstraint("program_id", "role", "event", "ordinal", name=op.f("program_statement_program_id_uq")),
    )
    op.create_table(
        "merchant",
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("category", sa.Text(), nullable=False),
        sa.Column("place", sa.Text(), nullable=False),
        sa.Column("participant", sa.Text(), nullable=False),
        sa.Column("statement", sa.Text(), nullable=True),
        sa.Column("key", postgresql.JSONB(), nullable=True),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("category ~ '^[0-9]{4}$'", name=op.f("merchant_category_ck")),
        sa.CheckConstraint("place ~ '^[0-9]{6}$'", name=op.f("merchant_place_ck")),
        sa.CheckConstraint(
            "(statement IS NULL) = (valid_until IS NULL) AND (statement IS NULL) = (key IS NULL)",
            name=op.f("merchant_vouched_ck"),
        ),
        sa.PrimaryKeyConstraint("account", name=op.f("merchant_pk")),
    )

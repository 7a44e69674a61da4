"""Interest: settlements, the days behind them, runs. And which of the sandbox's postings are exchanges."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

_UNITS_PER_MINOR = 26_280_000_000


def upgrade() -> None:
    op.create_table(
        "interest_run",
        sa.Column("settled_on", sa.Date(), nullable=False),
        sa.Column("scanned_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("settled_on", name=op.f("interest_run_pk")),
    )
    op.create_table(
        "interest_settlement",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("first_on", sa.Date(), nullable=False),
        sa.Column("last_on", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("transfer_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("accrued_units", sa.Numeric(40, 0), nullable=False),
        sa.Column("credited_minor", sa.BigInteger(), nullable=False),
        sa.Column("remainder_units", sa.Numeric(40, 0), nullable=False),
        sa.Column("credit_on", sa.Date(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("refusal", sa.Text(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("tried_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("first_on <= last_on AND last_on < credit_on", name=op.f("interest_settlement_days_ck")),
        sa.CheckConstraint("kind IN ('quarter', 'closure')", name=op.f("interest_settlement_kind_ck")),
        sa.CheckConstraint("state IN ('due', 'credited', 'nothing')", name=op.f("interest_settlement_state_ck")),
        sa.CheckConstraint(
            "accrued_units >= 0 AND credited_minor >= 0", name=op.f("interest_settlement_not_negative_ck")
        ),
        sa.CheckConstraint(
            f"accrued_units = credited_minor::numeric * {_UNITS_PER_MINOR} + remainder_units",
            name=op.f("interest_settlement_sums_exactly_ck"),
        ),
        sa.CheckConstraint(
            f"abs(remainder_units) * 2 <= {_UNITS_PER_MINOR}", name=op.f("interest_settlement_rounded_once_ck")
        ),
        sa.CheckConstraint("(state = 'nothing') = (credited_minor = 0)", name=op.f("interest_settlement_nothing_ck")),
        sa.CheckConstraint(
            "(state = 'credited') = (booked_at IS NOT NULL)", name=op.f("interest_settlement_credited_is_booked_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("interest_settlement_wallet_id_fk")),
        sa.PrimaryKeyConstraint("wallet_id", "last_on", name=op.f("interest_settlement_pk")),
        sa.UniqueConstraint("transfer_id", name=op.f("interest_settlement_transfer_id_uq")),
        sa.UniqueConstraint("wallet_id", "first_on", name=op.f("interest_settlement_first_on_uq")),
    )
    op.create_index(
        "interest_settlement_due",
        "interest_settlement",
        ["tried_at"],
        unique=False,
        postgresql_where=sa.text("state = 'due'"),
    )
    op.create_table(
        "interest_segment",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("settled_on", sa.Date(), nullable=False),
        sa.Column("first_on", sa.Date(), nullable=False),
        sa.Column("last_on", sa.Date(), nullable=False),
        sa.Column("wallet_class", sa.Text(), nullable=False),
        sa.Column("balance_minor", sa.BigInteger(), nullable=False),
        sa.Column("rate_ppm", sa.Integer(), nullable=False),
        sa.Column("day_count", sa.Text(), nullable=False),
        sa.Column("pack", sa.Text(), nullable=False),
        sa.Column("units", sa.Numeric(40, 0), nullable=False),
        sa.CheckConstraint("first_on <= last_on AND last_on <= settled_on", name=op.f("interest_segment_days_ck")),
        sa.CheckConstraint("wallet_class IN ('I', 'II', 'III')", name=op.f("interest_segment_class_bears_interest_ck")),
        sa.CheckConstraint("balance_minor > 0 AND rate_ppm >= 0", name=op.f("interest_segment_amounts_ck")),
        sa.CheckConstraint("day_count IN ('actual/360', 'actual/365')", name=op.f("interest_segment_day_count_ck")),
        sa.CheckConstraint(
            "units = balance_minor::numeric * rate_ppm * (last_on - first_on + 1)"
            " * (26280 / CASE day_count WHEN 'actual/360' THEN 360 ELSE 365 END)",
            name=op.f("interest_segment_exact_ck"),
        ),
        sa.ForeignKeyConstraint(
            ["wallet_id", "settled_on"],
            ["interest_settlement.wallet_id", "interest_settlement.last_on"],
            name=op.f("interest_segment_settlement_fk"),
        ),
        sa.PrimaryKeyConstraint("wallet_id", "first_on", name=op.f("interest_segment_pk")),
    )
    op.add_column("sandbox_posting", sa.Column("purpose", sa.Text(), nullable=False, server_default="exchange"))
    op.alter_column("sandbox_posting", "purpose", server_default=None)
    op.create_check_constraint(
        op.f("sandbox_posting_purpose_ck"), "sandbox_posting", "purpose IN ('exchange', 'other')"
    )
    op.create_index("sandbox_posting_created", "sandbox_posting", ["created_at", "id"], unique=False)

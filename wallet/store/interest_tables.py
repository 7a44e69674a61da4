"""Interest as it was settled: one row a wallet and period, and the days behind it. Neither is ever taken back."""

from __future__ import annotations

import sqlalchemy as sa

from wallet.domain.interest import DAYS_COMMON, UNITS_PER_MINOR
from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)
_Units = sa.Numeric(40, 0)

interest_settlement = sa.Table(
    "interest_settlement",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    # The period's first and last day, both included; each day of a wallet is in at most one.
    sa.Column("first_on", sa.Date, nullable=False),
    sa.Column("last_on", sa.Date, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("transfer_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("account", sa.BigInteger, nullable=False),
    sa.Column("accrued_units", _Units, nullable=False),
    sa.Column("credited_minor", sa.BigInteger, nullable=False),
    sa.Column("remainder_units", _Units, nullable=False),
    sa.Column("credit_on", sa.Date, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # Why the ledger did not take it yet.
    sa.Column("refusal", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("tried_at", _Moment, nullable=False),
    sa.PrimaryKeyConstraint("wallet_id", "last_on", name="interest_settlement_pk"),
    sa.UniqueConstraint("wallet_id", "first_on", name="interest_settlement_first_on_uq"),
    sa.CheckConstraint("first_on <= last_on AND last_on < credit_on", name="days"),
    sa.CheckConstraint("kind IN ('quarter', 'closure')", name="kind"),
    sa.CheckConstraint("state IN ('due', 'credited', 'nothing')", name="state"),
    sa.CheckConstraint("accrued_units >= 0 AND credited_minor >= 0", name="not_negative"),
    # The remainder account: exact, and what half-even leaves.
    sa.CheckConstraint(
        f"accrued_units = credited_minor::numeric * {UNITS_PER_MINOR} + remainder_units", name="sums_exactly"
    ),
    sa.CheckConstraint(f"abs(remainder_units) * 2 <= {UNITS_PER_MINOR}", name="rounded_once"),
    sa.CheckConstraint("(state = 'nothing') = (credited_minor = 0)", name="nothing"),
    sa.CheckConstraint("(state = 'credited') = (booked_at IS NOT NULL)", name="credited_is_booked"),
    sa.Index("interest_settlement_due", "tried_at", postgresql_where=sa.text("state = 'due'")),
)

interest_segment = sa.Table(
    "interest_segment",
    metadata,
    sa.Column("wallet_id", sa.Uuid, nullable=False),
    sa.Column("settled_on", sa.Date, nullable=False),
    sa.Column("first_on", sa.Date, nullable=False),
    sa.Column("last_on", sa.Date, nullable=False),
    sa.Column("wallet_class", sa.Text, nullable=False),
    sa.Column("balance_minor", sa.BigInteger, nullable=False),
    sa.Column("rate_ppm", sa.Integer, nullable=False),
    sa.Column("day_count", sa.Text, nullable=False),
    sa.Column("pack", sa.Text, nullable=False),
    sa.Column("units", _Units, nullable=False),
    sa.PrimaryKeyConstraint("wallet_id", "first_on", name="interest_segment_pk"),
    sa.ForeignKeyConstraint(
        ["wallet_id", "settled_on"],
        ["interest_settlement.wallet_id", "interest_settlement.last_on"],
        name="interest_segment_settlement_fk",
    ),
    sa.CheckConstraint("first_on <= last_on AND last_on <= settled_on", name="days"),
    sa.CheckConstraint("wallet_class IN ('I', 'II', 'III')", name="class_bears_interest"),
    sa.CheckConstraint("balance_minor > 0 AND rate_ppm >= 0", name="amounts"),
    sa.CheckConstraint("day_count IN ('actual/360', 'actual/365')", name="day_count"),
    sa.CheckConstraint(
        "units = balance_minor::numeric * rate_ppm * (last_on - first_on + 1)"
        f" * ({DAYS_COMMON} / CASE day_count WHEN 'actual/360' THEN 360 ELSE 365 END)",
        name="exact",
    ),
)

interest_run = sa.Table(
    "interest_run",
    metadata,
    sa.Column("settled_on", sa.Date, primary_key=True),
    sa.Column("scanned_at", _Moment),
    # Every wallet has its settlement; NULL = some are left, closing ones for instance.
    sa.Column("finished_at", _Moment),
)

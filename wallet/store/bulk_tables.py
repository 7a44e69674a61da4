"""Payroll files and their lines; schedules and their payments. CHECKs repeat the core's rules."""

from __future__ import annotations

import sqlalchemy as sa

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

bulk_file = sa.Table(
    "bulk_file",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    # SHA-256 of the file: the same content twice is refused unless it is said to be meant.
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),
    # Number of lines and control sum, as announced (pain.001 NbOfTxs and CtrlSum).
    sa.Column("lines_total", sa.Integer, nullable=False),
    sa.Column("total_minor", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("claimed_until", _Moment, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("started_at", _Moment),
    sa.Column("finished_at", _Moment),
    sa.CheckConstraint("lines_total BETWEEN 1 AND 20000", name="lines_bounded"),
    sa.CheckConstraint("total_minor > 0", name="total_positive"),
    sa.CheckConstraint("octet_length(content_sha256) = 32", name="content_hashed"),
    sa.CheckConstraint("state IN ('uploading', 'running', 'finished', 'cancelled')", name="state"),
    sa.CheckConstraint("(state IN ('running', 'finished')) = (started_at IS NOT NULL)", name="runs_once_started"),
    sa.CheckConstraint("(state = 'finished') = (finished_at IS NOT NULL)", name="finished_says_when"),
    sa.Index("bulk_file_wallet_created", "wallet_id", "created_at", "id"),
    sa.Index("bulk_file_content", "wallet_id", "content_sha256"),
    sa.Index("bulk_file_running", "claimed_until", postgresql_where=sa.text("state = 'running'")),
)

bulk_line = sa.Table(
    "bulk_line",
    metadata,
    sa.Column("file_id", sa.Uuid, sa.ForeignKey("bulk_file.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("line_id", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("instruction", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("is_transient", sa.Boolean),
    sa.Column("detail", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.PrimaryKeyConstraint("file_id", "number", name="bulk_line_pk"),
    sa.UniqueConstraint("file_id", "line_id", name="bulk_line_line_id_uq"),
    sa.UniqueConstraint("payment_id", name="bulk_line_payment_i7"),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("state IN ('received', 'booked', 'refused')", name="state"),
    sa.CheckConstraint("(state = 'booked') = (booked_at IS NOT NULL)", name="booked_says_when"),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL AND is_transient IS NOT NULL)", name="says_why"),
    sa.Index("bulk_line_received", "file_id", "number", postgresql_where=sa.text("state = 'received'")),
)

schedule = sa.Table(
    "schedule",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("frequency", sa.Text, nullable=False),
    sa.Column("first_on", sa.Date, nullable=False),
    sa.Column("every", sa.Integer, nullable=False),
    sa.Column("day_of_month", sa.Integer),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("calendar", sa.Text, nullable=False),
    sa.Column("is_cancelled", sa.Boolean, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("frequency IN ('once', 'daily', 'weekly', 'monthly')", name="frequency"),
    sa.CheckConstraint("every BETWEEN 1 AND 12", name="every_bounded"),
    sa.CheckConstraint("day_of_month BETWEEN 1 AND 31", name="day_of_month_bounded"),
    sa.CheckConstraint("rule IN ('none', 'following', 'modified-following', 'preceding')", name="rule"),
    sa.Index("schedule_wallet_created", "wallet_id", "created_at", "id"),
)

schedule_payment = sa.Table(
    "schedule_payment",
    metadata,
    sa.Column("schedule_id", sa.Uuid, sa.ForeignKey("schedule.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    # The holder's signature; destroyed when the payment is cancelled, so that nobody can use it any more.
    sa.Column("instruction", sa.Text),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("due_on", sa.Date, nullable=False),
    sa.Column("is_provisional", sa.Boolean, nullable=False),
    sa.Column("not_before", _Moment, nullable=False),
    # Midnight after the due day: what has not been paid by then is given up.
    sa.Column("give_up_at", _Moment, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_try_at", _Moment, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.PrimaryKeyConstraint("schedule_id", "number", name="schedule_payment_pk"),
    sa.UniqueConstraint("payment_id", name="schedule_payment_payment_i7"),
    sa.CheckConstraint("number >= 0", name="number_counts"),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("not_before < give_up_at AND give_up_at <= valid_until", name="signed_for_its_day"),
    sa.CheckConstraint("next_try_at >= not_before", name="never_early"),
    sa.CheckConstraint("attempts >= 0", name="attempts_counted"),
    sa.CheckConstraint("state IN ('waiting', 'executing', 'executed', 'refused', 'cancelled')", name="state"),
    sa.CheckConstraint("(state = 'executed') = (booked_at IS NOT NULL)", name="executed_says_when"),
    sa.CheckConstraint("state <> 'refused' OR refusal IS NOT NULL", name="refused_says_why"),
    sa.CheckConstraint("(state = 'cancelled') = (instruction IS NULL)", name="cancelled_is_forgotten_i8"),
    sa.Index("schedule_payment_due", "next_try_at", postgresql_where=sa.text("state IN ('waiting', 'executing')")),
)

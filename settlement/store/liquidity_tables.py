"""Limits, runs of the queue, their approvals and what each run found. Which instructions a netting settlement stands
for is in `settlement.netted_by` (migration 0007 says what the database keeps of it: I5)."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)

liquidity_limit = sa.Table(
    "liquidity_limit",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("counterparty", sa.Text),
    sa.Column("amount_minor", sa.BigInteger),
    sa.Column("valid_from", sa.Date, nullable=False),
    sa.Column("is_operator", sa.Boolean, nullable=False),
    sa.Column("set_by", sa.Text, nullable=False),
    sa.Column("set_at", _MOMENT, nullable=False),
    sa.CheckConstraint("kind IN ('bilateral', 'multilateral', 'cap')", name="liquidity_limit_kind"),
    sa.CheckConstraint("(kind = 'bilateral') = (counterparty IS NOT NULL)", name="liquidity_limit_counterparty"),
    sa.CheckConstraint("counterparty <> participant", name="liquidity_limit_parties_differ"),
    sa.CheckConstraint("amount_minor >= 0", name="liquidity_limit_amount"),
    sa.CheckConstraint("NOT is_operator OR kind = 'cap'", name="liquidity_limit_operator_caps"),
    sa.Index("liquidity_limit_of", "participant", "currency", "valid_from"),
)
"""Append-only: of the rows of one limit the one with the latest `valid_from` that has come, then the latest set, is in
force. No amount = the limit is lifted. A trigger keeps a participant's limit within the operator's cap."""

liquidity_run = sa.Table(
    "liquidity_run",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("method", sa.Text, nullable=False),
    sa.Column("settle_as", sa.Text, nullable=False),
    sa.Column("needs_approval", sa.Boolean, nullable=False),
    sa.Column("queue_count", sa.Integer, nullable=False),
    sa.Column("taken_count", sa.Integer, nullable=False),
    sa.Column("taken_sha256", sa.LargeBinary, nullable=False),
    sa.Column("positions_read_at", _MOMENT, nullable=False),
    sa.Column("summary", JSONB, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.Column("started_by", sa.Text),
    sa.Column("started_at", _MOMENT),
    sa.Column("ended_at", _MOMENT),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("netting_id", sa.Uuid, sa.ForeignKey("settlement.id"), unique=True),
    sa.Column("round", sa.SmallInteger),
    sa.CheckConstraint("state IN ('previewed', 'running', 'settled', 'aborted')", name="liquidity_run_state"),
    sa.CheckConstraint("method IN ('strict', 'overtaking', 'optimise')", name="liquidity_run_method"),
    sa.CheckConstraint("settle_as IN ('net', 'gross')", name="liquidity_run_settle_as"),
    sa.CheckConstraint("needs_approval OR method <> 'optimise'", name="liquidity_run_optimise_is_approved"),
    sa.CheckConstraint("octet_length(taken_sha256) = 32", name="liquidity_run_digest"),
    sa.CheckConstraint("taken_count BETWEEN 0 AND queue_count", name="liquidity_run_counts"),
    sa.CheckConstraint(
        "(state = 'previewed') = (started_at IS NULL) AND (started_at IS NULL) = (started_by IS NULL)"
        " AND (state IN ('settled', 'aborted')) = (ended_at IS NOT NULL)",
        name="liquidity_run_times",
    ),
    sa.CheckConstraint(
        "state = 'previewed' OR (settle_as = 'net') = (netting_id IS NOT NULL)", name="liquidity_run_netting"
    ),
    sa.Index("liquidity_run_one_at_a_time", "state", unique=True, postgresql_where=sa.text("state = 'running'")),
)

liquidity_run_item = sa.Table(
    "liquidity_run_item",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("liquidity_run.id"), nullable=False),
    sa.Column("place", sa.Integer, nullable=False),
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), nullable=False),
    sa.Column("stage", sa.Text),
    sa.Column("round", sa.SmallInteger),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("needs", JSONB, nullable=False),
    sa.Column("is_worked_out", sa.Boolean, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "place", name="liquidity_run_item_pk"),
    sa.UniqueConstraint("run_id", "settlement_id", name="liquidity_run_item_once"),
)
"""Every queued instruction that a run saw: taken by a stage, or left, and why. Never changed."""

liquidity_approval = sa.Table(
    "liquidity_approval",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("liquidity_run.id"), nullable=False),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("approved_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "person", name="liquidity_approval_pk"),
)
"""Signed by a person, of exactly one chosen set. A trigger starts no run that needs them with fewer than two."""

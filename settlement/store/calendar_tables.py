"""Tables of the calendars: when each settlement is to be carried out, what became of that, and clear-outs."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)


def _settlement() -> sa.ForeignKey:
    """Deferred: an intake check writes before the settlement is stored, in the same transaction."""
    return sa.ForeignKey("settlement.id", deferrable=True, initially="DEFERRED")


calendar_plan = sa.Table(
    "calendar_plan",
    metadata,
    sa.Column("settlement_id", sa.Uuid, _settlement(), primary_key=True),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("missed", sa.Text, nullable=False),
    sa.Column("currencies", sa.ARRAY(sa.Text), nullable=False),
    sa.Column("asked_value_date", sa.Date, nullable=False),
    sa.Column("value_date", sa.Date, nullable=False),
    sa.Column("window_from", _MOMENT, nullable=False),
    sa.Column("window_until", _MOMENT, nullable=False),
    sa.Column("calendars_sha256", sa.LargeBinary, nullable=False),
    sa.Column("is_assumed", sa.Boolean, nullable=False),
    sa.Column("is_done", sa.Boolean, nullable=False),
    sa.Column("planned_at", _MOMENT, nullable=False),
    sa.CheckConstraint("kind IN ('bank', 'customer')", name="calendar_plan_kind"),
    sa.CheckConstraint("missed IN ('roll', 'refuse')", name="calendar_plan_missed"),
    sa.CheckConstraint("window_from < window_until", name="calendar_plan_window"),
    sa.CheckConstraint("cardinality(currencies) > 0", name="calendar_plan_currencies"),
    sa.CheckConstraint("octet_length(calendars_sha256) = 32", name="calendar_plan_digest"),
    sa.Index("calendar_plan_due", "window_from", postgresql_where=sa.text("NOT is_done")),
)
"""`is_done`: the settlement has left the state received, so its hours matter no more."""


def is_window_over(settlement: sa.ColumnElement[UUID], now: datetime) -> sa.ColumnElement[bool]:
    """Whether a settlement was to be carried out in a window that has closed. Without a plan: never."""
    plan = calendar_plan.c
    return sa.exists().where(plan.settlement_id == settlement, plan.window_until <= now)


calendar_event = sa.Table(
    "calendar_event",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("settlement_id", sa.Uuid, _settlement(), nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("value_date", sa.Date, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("happened_at", _MOMENT, nullable=False),
    sa.CheckConstraint("event IN ('opened', 'rolled', 'refused')", name="calendar_event_kind"),
    sa.Index("calendar_event_of_settlement", "settlement_id", "id"),
)
"""Append-only: what the calendar did with a settlement after it came in."""

clear_out = sa.Table(
    "clear_out",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("business_day", sa.Date, nullable=False),
    sa.Column("made_by", sa.Text, nullable=False),
    sa.Column("made_at", _MOMENT, nullable=False),
    sa.CheckConstraint("currency ~ '^[A-Z]{3}$'", name="clear_out_currency"),
)

clear_out_line = sa.Table(
    "clear_out_line",
    metadata,
    sa.Column("clear_out_id", sa.Uuid, sa.ForeignKey("clear_out.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("returns_to", sa.Text, nullable=False),
    sa.Column("against", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("uetr", sa.Uuid, nullable=False),
    sa.PrimaryKeyConstraint("clear_out_id", "number", name="clear_out_line_pk"),
    sa.UniqueConstraint("clear_out_id", "participant", name="clear_out_line_once"),
    sa.CheckConstraint("amount_minor > 0", name="clear_out_line_amount"),
    sa.CheckConstraint("participant <> returns_to", name="clear_out_line_parties"),
)
"""A proposed return of one foreign balance. Append-only, as is its approval."""

clear_out_approval = sa.Table(
    "clear_out_approval",
    metadata,
    sa.Column("clear_out_id", sa.Uuid, sa.ForeignKey("clear_out.id"), primary_key=True),
    sa.Column("approved_by", sa.Text, nullable=False),
    sa.Column("approved_at", _MOMENT, nullable=False),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batch.id"), nullable=False),
)

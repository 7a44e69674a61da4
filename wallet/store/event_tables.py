"""What happened, in order; and to whom it is told. Events are only ever added, their position is set once."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

event = sa.Table(
    "event",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    # Given after the commit, one after the other (`store.events.number`): commits do not come in the order of inserts.
    sa.Column("position", sa.BigInteger),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("wallet_id", sa.Uuid),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("data", JSONB, nullable=False),
    sa.CheckConstraint("position > 0", name="position_counts"),
    sa.Index("event_position", "position", unique=True),
    sa.Index("event_unnumbered", "created_at", "id", postgresql_where=sa.text("position IS NULL")),
    sa.Index("event_created", "created_at"),
)

event_counter = sa.Table(
    "event_counter",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.CheckConstraint("position >= 0", name="position_counts"),
)

told_booking = sa.Table(
    "told_booking",
    metadata,
    sa.Column("ledger", sa.Text, primary_key=True),
    # Its bookings on our accounts up to here have become events.
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.CheckConstraint("seq >= 0", name="seq_counts"),
)

webhook_endpoint = sa.Table(
    "webhook_endpoint",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("client", sa.Text, nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("types", JSONB, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("disabled_for", sa.Text),
    sa.Column("failing_since", _Moment),
    # Events up to here have become deliveries.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("state IN ('enabled', 'disabled')", name="state"),
    sa.CheckConstraint("(state = 'disabled') = (disabled_for IS NOT NULL)", name="disabled_says_why"),
    sa.Index("webhook_endpoint_client", "client", "id"),
)

webhook_delivery = sa.Table(
    "webhook_delivery",
    metadata,
    sa.Column("endpoint_id", sa.Uuid, sa.ForeignKey("webhook_endpoint.id"), nullable=False),
    sa.Column("event_id", sa.Uuid, sa.ForeignKey("event.id"), nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("next_at", _Moment, nullable=False),
    sa.Column("last_status", sa.Integer),
    sa.Column("last_error", sa.Text),
    sa.Column("ended_at", _Moment),
    sa.PrimaryKeyConstraint("endpoint_id", "event_id", name="webhook_delivery_pk"),
    sa.CheckConstraint("state IN ('pending', 'delivered', 'dead')", name="state"),
    sa.CheckConstraint("(state = 'pending') = (ended_at IS NULL)", name="ended_says_when"),
    sa.CheckConstraint("attempts BETWEEN 0 AND 10", name="attempts_bounded"),
    sa.Index("webhook_delivery_position", "endpoint_id", "position"),
    sa.Index("webhook_delivery_due", "next_at", postgresql_where=sa.text("state = 'pending'")),
)

webhook_replay = sa.Table(
    "webhook_replay",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("endpoint_id", sa.Uuid, sa.ForeignKey("webhook_endpoint.id"), nullable=False),
    sa.Column("request", JSONB, nullable=False),
    sa.Column("deliveries", sa.Integer, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
)

"""The FX market's tables: firm quotes, what is locked of them, executions and their evidence.

That no quote is used beyond its size is kept twice: `settlement.domain.market` fills no more than is left, and the
triggers of migration 0005 add every locked amount to its quote's row, whose CHECK refuses more than the size.
"""

from __future__ import annotations

from uuid import UUID

import sqlalchemy as sa

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)

fx_quote = sa.Table(
    "fx_quote",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("base", sa.Text, nullable=False),
    sa.Column("counter", sa.Text, nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("bid", sa.Text),
    sa.Column("bid_size_minor", sa.BigInteger, nullable=False),
    sa.Column("bid_used_minor", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("offer", sa.Text),
    sa.Column("offer_size_minor", sa.BigInteger, nullable=False),
    sa.Column("offer_used_minor", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("fee_ppm", sa.Integer, nullable=False),
    sa.Column("priority", sa.BigInteger, nullable=False),
    sa.Column("issued_at", _MOMENT, nullable=False),
    sa.Column("valid_until", _MOMENT, nullable=False),
    sa.Column("posted_at", _MOMENT, nullable=False),
    sa.Column("withdrawn_at", _MOMENT),
    sa.CheckConstraint("base <> counter", name="fx_quote_pair"),
    sa.CheckConstraint("revision > 0 AND fee_ppm BETWEEN 0 AND 50000", name="fx_quote_bounds"),
    sa.CheckConstraint("(bid IS NULL) = (bid_size_minor = 0)", name="fx_quote_bid"),
    sa.CheckConstraint("(offer IS NULL) = (offer_size_minor = 0)", name="fx_quote_offer"),
    sa.CheckConstraint("bid IS NOT NULL OR offer IS NOT NULL", name="fx_quote_one_side"),
    sa.CheckConstraint("bid_used_minor BETWEEN 0 AND bid_size_minor", name="fx_quote_bid_not_overused"),
    sa.CheckConstraint("offer_used_minor BETWEEN 0 AND offer_size_minor", name="fx_quote_offer_not_overused"),
    sa.CheckConstraint(
        "issued_at < valid_until AND valid_until <= issued_at + interval '1 hour'", name="fx_quote_lifetime"
    ),
    sa.Index("fx_quote_live", "valid_until", postgresql_where=sa.text("withdrawn_at IS NULL")),
    sa.Index("fx_quote_provider", "provider", "id"),
)

fx_quote_revision = sa.Table(
    "fx_quote_revision",
    metadata,
    sa.Column("quote_id", sa.Uuid, sa.ForeignKey("fx_quote.id"), nullable=False),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("place", sa.BigInteger, sa.Identity(always=True), nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("posted_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("quote_id", "revision", name="fx_quote_revision_pk"),
)
"""What each provider signed, for ever. `place` is the order of arrival: time priority."""

fx_execution = sa.Table(
    "fx_execution",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), primary_key=True),
    sa.Column("uetr", sa.Uuid, nullable=False),
    sa.Column("submitter", sa.Text, nullable=False),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("sell", sa.Text, nullable=False),
    sa.Column("buy", sa.Text, nullable=False),
    sa.Column("is_sale", sa.Boolean, nullable=False),
    sa.Column("given_minor", sa.BigInteger, nullable=False),
    sa.Column("received_minor", sa.BigInteger, nullable=False),
    sa.Column("least_received_minor", sa.BigInteger),
    sa.Column("most_given_minor", sa.BigInteger),
    sa.Column("on_expiry", sa.Text, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("lock_expires_at", _MOMENT, nullable=False),
    sa.Column("is_locked", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("uetr", name="fx_execution_uetr_once"),
    sa.CheckConstraint("given_minor > 0 AND received_minor > 0", name="fx_execution_positive"),
    sa.CheckConstraint(
        "(least_received_minor IS NULL OR received_minor >= least_received_minor)"
        " AND (most_given_minor IS NULL OR given_minor <= most_given_minor)",
        name="fx_execution_within_limit",
    ),
    sa.CheckConstraint("on_expiry IN ('abort', 'requote')", name="fx_execution_on_expiry"),
    sa.CheckConstraint("attempt > 0", name="fx_execution_attempt"),
    sa.CheckConstraint("octet_length(request_sha256) = 32", name="fx_execution_digest"),
    sa.Index("fx_execution_lock", "lock_expires_at", postgresql_where=sa.text("is_locked")),
)
"""An execution is its settlement: a payer sells, a payee receives. A re-quote changes amounts, never beyond a limit.

`is_locked` until the settlement is decided (trigger), whatever `lock_expires_at`."""

fx_execution_report = sa.Table(
    "fx_execution_report",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("fx_execution.settlement_id"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    sa.Column("made_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("settlement_id", "attempt", name="fx_execution_report_pk"),
)
"""Best-execution evidence: the live quotes, every way considered with its costs, the choice and why."""

fx_fill = sa.Table(
    "fx_fill",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("fx_execution.settlement_id"), nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("number", sa.SmallInteger, nullable=False),
    sa.Column("hop", sa.SmallInteger, nullable=False),
    sa.Column("quote_id", sa.Uuid, sa.ForeignKey("fx_quote.id")),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("side", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("source", sa.Text, nullable=False),
    sa.Column("given_minor", sa.BigInteger, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("received_minor", sa.BigInteger, nullable=False),
    sa.Column("base_minor", sa.BigInteger, nullable=False),
    sa.Column("price", sa.Text, nullable=False),
    sa.Column("fee_ppm", sa.Integer, nullable=False),
    sa.Column("fee_minor", sa.Text, nullable=False),
    sa.Column("rounding_minor", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("decision", sa.Text),
    sa.Column("is_returned", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.PrimaryKeyConstraint("settlement_id", "attempt", "number", name="fx_fill_pk"),
    sa.ForeignKeyConstraint(
        ["settlement_id", "decision"], ["decision.settlement_id", "decision.decision"], name="fx_fill_follows_decision"
    ),
    sa.CheckConstraint("given_minor > 0 AND received_minor >= 0 AND base_minor > 0", name="fx_fill_positive"),
    sa.CheckConstraint("side IN ('bid', 'offer')", name="fx_fill_side"),
    sa.CheckConstraint("state IN ('reserved', 'consumed', 'released')", name="fx_fill_state"),
    sa.CheckConstraint(
        "state <> 'consumed' OR decision IS NOT DISTINCT FROM 'commit'", name="fx_fill_consumed_by_commit"
    ),
    sa.CheckConstraint("NOT is_returned OR state = 'released'", name="fx_fill_returned_if_released"),
    sa.Index("fx_fill_quote", "quote_id"),
    sa.Index("fx_fill_provider", "provider", "target"),
    sa.Index("fx_fill_to_return", "settlement_id", postgresql_where=sa.text("state = 'released' AND NOT is_returned")),
)
"""A use of a quote (or, without one, of a fixed rate). `rounding_minor` is accounted to the provider, in `target`."""


def is_lock_expired(settlement: sa.ColumnElement[UUID]) -> sa.ColumnElement[bool]:
    """Whether a settlement is an execution whose lock is over, by the database's clock."""
    found = fx_execution.c
    return sa.exists().where(found.settlement_id == settlement, found.is_locked, found.lock_expires_at <= sa.func.now())

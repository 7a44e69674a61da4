"""Tables of the offline purses. Which message claims what is kept for ever: it is the proof behind each payout."""

from __future__ import annotations

import sqlalchemy as sa

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

purse_escrow = sa.Table(
    "purse_escrow",
    metadata,
    sa.Column("ledger", sa.Text, primary_key=True),
    sa.Column("opening_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("account", sa.BigInteger),
)

purse = sa.Table(
    "purse",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("account", sa.BigInteger, nullable=False),
    sa.Column("certificate", sa.LargeBinary, nullable=False),
    sa.Column("certificate_hash", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("device_thumbprint", sa.Text, nullable=False, unique=True),
    sa.Column("balance_max_minor", sa.BigInteger, nullable=False),
    sa.Column("not_after", _Moment, nullable=False),
    sa.Column("closes_at", _Moment, nullable=False),
    sa.Column("loss_minor", sa.BigInteger, nullable=False),
    sa.Column("recovered_minor", sa.BigInteger, nullable=False),
    sa.Column("spends", sa.Integer, nullable=False),
    sa.Column("revoked_for", sa.Text),
    sa.Column("revoked_at", _Moment),
    sa.Column("closed_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("0 <= loss_minor AND loss_minor <= balance_max_minor", name="loss_is_bounded"),
    sa.CheckConstraint("0 <= recovered_minor AND recovered_minor <= loss_minor", name="recovered_is_lost"),
    sa.CheckConstraint("revoked_for IN ('lost', 'expired', 'double-spend')", name="revoked_for"),
    sa.CheckConstraint("(revoked_for IS NULL) = (revoked_at IS NULL)", name="revoked_at"),
    sa.CheckConstraint("not_after <= closes_at AND (closed_at IS NULL OR closes_at <= closed_at)", name="closes"),
    sa.Index("purse_wallet_id", "wallet_id"),
    # One that can pay, a wallet: else one holder's caps would multiply.
    sa.Index(
        "purse_active",
        "wallet_id",
        unique=True,
        postgresql_where=sa.text("revoked_for IS NULL AND closed_at IS NULL"),
    ),
    sa.Index("purse_open", "closes_at", postgresql_where=sa.text("closed_at IS NULL")),
)

purse_funding = sa.Table(
    "purse_funding",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("purse_id", sa.Uuid, sa.ForeignKey("purse.id"), nullable=False),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("instruction", sa.Text, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The fencing token: only the newest attempt may write an outcome.
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("counted_on", sa.Date, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("message", sa.LargeBinary),
    sa.Column("tried_at", _Moment, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name="state"),
    sa.CheckConstraint(
        "(state = 'final') = (booked_at IS NOT NULL AND message IS NOT NULL)", name="message_after_final"
    ),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.Index("purse_funding_purse_id", "purse_id"),
    sa.Index("purse_funding_unfinished", "tried_at", postgresql_where=sa.text("state = 'initiated'")),
)

purse_source = sa.Table(
    "purse_source",
    metadata,
    sa.Column("hash", sa.LargeBinary, primary_key=True),
    sa.Column("purse_id", sa.Uuid, sa.ForeignKey("purse.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("backed_minor", sa.BigInteger, nullable=False),
    sa.Column("covered_minor", sa.BigInteger, nullable=False),
    # The purse of the same account that paid this one, if its device should be caught.
    sa.Column("answers_for", sa.Uuid, sa.ForeignKey("purse.id")),
    sa.CheckConstraint("0 <= covered_minor AND covered_minor <= backed_minor", name="covered_once"),
    sa.CheckConstraint("backed_minor <= amount_minor AND amount_minor > 0", name="backed_within_amount"),
    sa.Index("purse_source_purse_id", "purse_id"),
)

purse_spend = sa.Table(
    "purse_spend",
    metadata,
    sa.Column("hash", sa.LargeBinary, primary_key=True),
    sa.Column("payer_id", sa.Uuid, sa.ForeignKey("purse.id"), nullable=False),
    sa.Column("payee_id", sa.Uuid, sa.ForeignKey("purse.id"), nullable=False),
    sa.Column("counter", sa.Integer, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("borne_minor", sa.BigInteger, nullable=False),
    sa.Column("short_minor", sa.BigInteger, nullable=False),
    sa.Column("is_paid_out", sa.Boolean, nullable=False),
    sa.Column("message", sa.LargeBinary, nullable=False),
    sa.Column("arrived_at", _Moment, nullable=False),
    sa.CheckConstraint("borne_minor >= 0 AND short_minor >= 0", name="parts_not_negative"),
    sa.CheckConstraint("borne_minor + short_minor <= amount_minor AND amount_minor > 0", name="parts_within_amount"),
    sa.Index("purse_spend_payer", "payer_id", "counter"),
    sa.Index("purse_spend_payee", "payee_id"),
)

purse_part = sa.Table(
    "purse_part",
    metadata,
    sa.Column("spend_hash", sa.LargeBinary, sa.ForeignKey("purse_spend.hash"), nullable=False),
    sa.Column("position", sa.SmallInteger, nullable=False),
    sa.Column("source_hash", sa.LargeBinary, sa.ForeignKey("purse_source.hash"), nullable=False),
    sa.Column("lower_minor", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("spend_hash", "position", name="purse_part_pk"),
    sa.CheckConstraint("lower_minor >= 0 AND amount_minor > 0", name="interval"),
    sa.Index("purse_part_source", "source_hash"),
)

purse_proof = sa.Table(
    "purse_proof",
    metadata,
    # The first proof against a purse is enough.
    sa.Column("purse_id", sa.Uuid, sa.ForeignKey("purse.id"), primary_key=True),
    sa.Column("proof", sa.LargeBinary, nullable=False),
    sa.Column("found_at", _Moment, nullable=False),
)

purse_payout = sa.Table(
    "purse_payout",
    metadata,
    # The transfer's id, derived from the event: it books at most once (I7).
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("purse_id", sa.Uuid, sa.ForeignKey("purse.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("event", sa.LargeBinary, nullable=False),
    sa.Column("account", sa.BigInteger),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("refusal", sa.Text),
    sa.Column("tried_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.UniqueConstraint("purse_id", "kind", "event", name="purse_payout_event_i7"),
    sa.CheckConstraint("kind IN ('redeem', 'loss', 'recovery')", name="kind"),
    sa.CheckConstraint("(kind = 'redeem') = (account IS NOT NULL)", name="redeem_names_a_wallet"),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.Index("purse_payout_event", "event"),
    sa.Index("purse_payout_pending", "created_at", postgresql_where=sa.text("booked_at IS NULL")),
)

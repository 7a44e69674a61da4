"""Tables of payment requests, payers' codes and refunds. CHECKs repeat the core's rules about money."""

from __future__ import annotations

import sqlalchemy as sa

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

payment_request = sa.Table(
    "payment_request",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("account", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger),
    sa.Column("amount_min_minor", sa.BigInteger),
    sa.Column("amount_max_minor", sa.BigInteger),
    sa.Column("is_many", sa.Boolean, nullable=False),
    sa.Column("payer_account", sa.BigInteger),
    sa.Column("payer_institution", sa.Text),
    sa.Column("payee_name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("payee_reference", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("paid_minor", sa.BigInteger, nullable=False),
    sa.Column("payments", sa.BigInteger, nullable=False),
    sa.Column("surplus_minor", sa.BigInteger, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("expires_at", _Moment, nullable=False),
    sa.Column("ended_at", _Moment),
    sa.CheckConstraint("amount_minor > 0 AND amount_min_minor > 0 AND amount_max_minor > 0", name="amounts_positive"),
    sa.CheckConstraint("amount_minor IS NULL OR amount_max_minor IS NULL", name="total_or_range"),
    sa.CheckConstraint("paid_minor >= 0 AND surplus_minor >= 0", name="paid_positive"),
    # Never paid too often: the ledger's ids see to it, and this does once more.
    sa.CheckConstraint("paid_minor <= amount_minor", name="paid_at_most_i7"),
    sa.CheckConstraint("is_many OR payments <= 1", name="paid_once_i7"),
    sa.CheckConstraint(
        "state IN ('open', 'part-paid', 'paid', 'declined', 'cancelled', 'expired')",
        name="state",
    ),
    sa.CheckConstraint("(state IN ('open', 'part-paid')) = (ended_at IS NULL)", name="ended"),
    sa.CheckConstraint("state <> 'paid' OR amount_minor IS NULL OR paid_minor = amount_minor", name="paid_in_full"),
    sa.CheckConstraint("(paid_minor > 0) = (payments > 0)", name="payments_counted"),
    sa.Index("payment_request_wallet", "wallet_id", "created_at", "id"),
    sa.Index("payment_request_open", "expires_at", postgresql_where=sa.text("state IN ('open', 'part-paid')")),
    sa.Index("payment_request_payer", "payer_account", postgresql_where=sa.text("payer_account IS NOT NULL")),
)

request_payment = sa.Table(
    "request_payment",
    metadata,
    sa.Column("transfer_id", sa.Uuid, primary_key=True),
    sa.Column("request_id", sa.Uuid, sa.ForeignKey("payment_request.id"), nullable=False),
    sa.Column("payer_account", sa.BigInteger),
    # Whom a refund credits, where the payer's institution stands in between.
    sa.Column("refund_account", sa.BigInteger),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("is_surplus", sa.Boolean, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False, unique=True),
    sa.Column("booked_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.Index("request_payment_request", "request_id", "seq"),
)

account_watch = sa.Table(
    "account_watch",
    metadata,
    sa.Column("account", sa.BigInteger, primary_key=True),
    sa.Column("watched_until", _Moment, nullable=False),
    sa.Column("looked_at", _Moment, nullable=False),
    # Every line up to it has been looked at ...
    sa.Column("seen_seq", sa.BigInteger, nullable=False),
    # ... and, if a look was too long for one pass, those after `gap_seq` too: the cursor goes on in between.
    sa.Column("gap_seq", sa.BigInteger),
    sa.Column("gap_cursor", sa.Text),
    sa.CheckConstraint("(gap_seq IS NULL) = (gap_cursor IS NULL)", name="gap_is_whole"),
    sa.Index("account_watch_looked", "looked_at"),
)

incoming_request = sa.Table(
    "incoming_request",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("request_id", sa.Uuid, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("needs_approval", sa.Boolean, nullable=False),
    sa.Column("paid_minor", sa.BigInteger, nullable=False),
    sa.Column("payment_id", sa.Uuid),
    # A refusal of which the payee's institution has not heard yet.
    sa.Column("decline", sa.Text),
    sa.Column("received_at", _Moment, nullable=False),
    sa.Column("expires_at", _Moment, nullable=False),
    sa.CheckConstraint("state IN ('open', 'paid', 'declined', 'ended')", name="state"),
    sa.CheckConstraint("paid_minor >= 0", name="paid_positive"),
    sa.CheckConstraint("decline IS NULL OR state = 'declined'", name="decline_is_declined"),
    sa.PrimaryKeyConstraint("wallet_id", "request_id", name="incoming_request_pk"),
    sa.Index("incoming_request_received", "wallet_id", "received_at", "request_id"),
    sa.Index("incoming_request_untold", "expires_at", postgresql_where=sa.text("decline IS NOT NULL")),
)

redemption = sa.Table(
    "redemption",
    metadata,
    # The code's hold: a code is redeemed once.
    sa.Column("hold_id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("request_id", sa.Uuid, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("cap_minor", sa.BigInteger, nullable=False),
    sa.Column("instruction", sa.Text, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.BigInteger, nullable=False),
    sa.Column("counted_on", sa.Date),
    sa.Column("refusal", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("0 < amount_minor AND amount_minor <= cap_minor", name="amount_within_cap_i8"),
    sa.CheckConstraint("state IN ('initiated', 'final', 'refused')", name="state"),
    sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name="final_is_booked"),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.CheckConstraint("(state = 'refused') = (counted_on IS NULL)", name="counted_i9"),
    # Two codes for one request would make one and the same payment of the vault, which the ledger takes for a retry,
    # and two holds be posted: so one live code a payment. (The ledger refuses the second by the id of its post.)
    sa.Index("redemption_payment_i7", "payment_id", unique=True, postgresql_where=sa.text("state <> 'refused'")),
    sa.Index("redemption_unfinished", "created_at", postgresql_where=sa.text("state = 'initiated'")),
    # A wallet's first own cap adds up what it has spent.
    sa.Index("redemption_wallet", "wallet_id"),
)

refund_original = sa.Table(
    "refund_original",
    metadata,
    sa.Column("transfer_id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("account", sa.BigInteger, nullable=False),
    sa.Column("payer_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("refunded_minor", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("booked_at", _Moment, nullable=False),
    sa.CheckConstraint("0 <= refunded_minor AND refunded_minor <= amount_minor", name="refunded_at_most_i7"),
    sa.CheckConstraint("account <> payer_account", name="accounts_differ_i1"),
)

refund = sa.Table(
    "refund",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("original_id", sa.Uuid, sa.ForeignKey("refund_original.transfer_id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("tries", sa.BigInteger, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("state IN ('reserved', 'final', 'released')", name="state"),
    sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name="final_is_booked"),
    sa.Index("refund_original_id", "original_id", "created_at"),
    sa.Index("refund_reserved", "created_at", postgresql_where=sa.text("state = 'reserved'")),
)

"""The wallet service's tables. CHECKs repeat the core's rules; a test holds the migrations equal to this file."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from kernel.crypto.nonces import nonce_table

metadata = sa.MetaData(
    naming_convention={
        "pk": "%(table_name)s_pk",
        "fk": "%(table_name)s_%(column_0_name)s_fk",
        "uq": "%(table_name)s_%(column_0_name)s_uq",
        "ck": "%(table_name)s_%(constraint_name)s_ck",
    }
)

_Moment = sa.DateTime(timezone=True)


def _one_of(column: str, *values: str) -> str:
    return f"{column} IN ({', '.join(repr(value) for value in values)})"


customer = sa.Table(
    "customer",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("phone_verified", sa.Boolean, nullable=False),
    sa.Column("id_verified", sa.Boolean, nullable=False),
    sa.Column("seen_in_person", sa.Boolean, nullable=False),
    sa.Column("bank_account_verified", sa.Boolean, nullable=False),
    # AES-256-GCM: the customer's data key under the service's key, the personal data under the data key.
    sa.Column("wrapped_key", sa.LargeBinary, nullable=False),
    sa.Column("personal_data", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    # Both empty once the customer is erased.
    sa.CheckConstraint("(octet_length(wrapped_key) = 0) = (octet_length(personal_data) = 0)", name="erased_whole"),
)

wallet = sa.Table(
    "wallet",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey("customer.id"), nullable=False),
    sa.Column("wallet_class", sa.Text, nullable=False),
    sa.Column("rule_pack", sa.Text, nullable=False),
    sa.Column("device_key", JSONB, nullable=False),
    sa.Column("device_thumbprint", sa.Text, nullable=False, unique=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("opening_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("account", sa.BigInteger, unique=True),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("usage_day", sa.Date, nullable=False),
    sa.Column("usage_day_minor", sa.BigInteger, nullable=False),
    sa.Column("usage_year_minor", sa.BigInteger, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("opened_at", _Moment),
    # As it was asked for, whatever it has become: the same opening again is answered the same.
    sa.Column("opened_in_class", sa.Text, nullable=False),
    sa.Column("opened_with", sa.Text, nullable=False),
    # Of `wallet_device`, whose active rows are the truth: the active devices besides the first; NULL = none.
    sa.Column("other_device_keys", JSONB),
    # A class change on its way: until both sides have it, the stricter of the two classes' caps is in force.
    sa.Column("changing_to", sa.Text),
    # The holder's own caps; NULL = the class's alone.
    sa.Column("balance_max_minor", sa.BigInteger),
    sa.Column("single_max_minor", sa.BigInteger),
    sa.Column("day_max_minor", sa.BigInteger),
    sa.Column("year_max_minor", sa.BigInteger),
    # Every reason for which it is suspended; it is open again when none is left.
    sa.Column("suspensions", ARRAY(sa.Text), nullable=False),
    sa.Column("closed_at", _Moment),
    sa.CheckConstraint(_one_of("wallet_class", "I", "II", "III", "IV"), name="class"),
    sa.CheckConstraint(_one_of("state", "opening", "open", "refused", "suspended", "closing", "closed"), name="state"),
    sa.CheckConstraint(
        "(state IN ('open', 'suspended', 'closing', 'closed')) = (account IS NOT NULL AND opened_at IS NOT NULL)",
        name="open_has_account",
    ),
    sa.CheckConstraint("(state = 'closed') = (closed_at IS NOT NULL)", name="closed_at"),
    sa.CheckConstraint("changing_to IN ('I', 'II', 'III', 'IV') AND changing_to <> wallet_class", name="changing_to"),
    sa.CheckConstraint(
        "balance_max_minor >= 0 AND single_max_minor >= 0 AND day_max_minor >= 0 AND year_max_minor >= 0",
        name="own_caps_i9",
    ),
    sa.CheckConstraint("suspensions <@ ARRAY['loss', 'evidence', 'institution']", name="suspensions"),
    sa.CheckConstraint("(state = 'suspended') <= (cardinality(suspensions) > 0)", name="suspended"),
    sa.CheckConstraint(
        "(state IN ('open', 'closing')) <= (cardinality(suspensions) = 0)", name="open_is_not_suspended"
    ),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.CheckConstraint("0 <= usage_day_minor AND usage_day_minor <= usage_year_minor", name="usage_i9"),
    sa.Index("wallet_customer_id", "customer_id"),
    sa.Index("wallet_opening", "created_at", postgresql_where=sa.text("state = 'opening'")),
)

payment = sa.Table(
    "payment",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("debit_account", sa.BigInteger, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("reference", sa.Uuid),
    sa.Column("instruction", sa.Text, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("refusal", sa.Text),
    sa.Column("is_transient", sa.Boolean),
    sa.Column("detail", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    # The scheme day on which the amount is counted in the wallet's usage; NULL = not counted (refused, or no payment).
    sa.Column("counted_on", sa.Date),
    sa.Column("deposit_credited_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("tried_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("debit_account <> credit_account", name="accounts_differ_i1"),
    sa.CheckConstraint(_one_of("kind", "payment", "refund", "exchange-out"), name="kind"),
    sa.CheckConstraint(_one_of("state", "initiated", "final", "refused"), name="state"),
    sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name="final_is_booked"),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.CheckConstraint("kind = 'payment' OR counted_on IS NULL", name="counted_kind_i9"),
    sa.CheckConstraint("(kind = 'payment' AND state <> 'refused') = (counted_on IS NOT NULL)", name="counted_i9"),
    sa.CheckConstraint(
        "deposit_credited_at IS NULL OR (kind = 'exchange-out' AND state = 'final')", name="credited_after_final"
    ),
    sa.Index("payment_wallet_created", "wallet_id", "created_at", "id"),
    sa.Index(
        "payment_unfinished",
        "tried_at",
        postgresql_where=sa.text(
            "state = 'initiated' OR (kind = 'exchange-out' AND state = 'final' AND deposit_credited_at IS NULL)"
        ),
    ),
)

exchange_in = sa.Table(
    "exchange_in",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The fencing token: only the newest attempt may write an outcome.
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("claimed_until", _Moment, nullable=False),
    # Until then an earlier submission whose answer was lost may still be booked.
    sa.Column("unknown_until", _Moment),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint("attempt > 0", name="attempt_positive"),
    sa.CheckConstraint(
        _one_of("state", "initiated", "debited", "compensating", "final", "refused", "compensated"), name="state"
    ),
    sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name="final_is_booked"),
    sa.CheckConstraint(
        "(state IN ('compensating', 'refused', 'compensated')) = (refusal IS NOT NULL)", name="refused_says_why"
    ),
    sa.Index("exchange_in_wallet_created", "wallet_id", "created_at", "id"),
    sa.Index(
        "exchange_in_unfinished",
        "claimed_until",
        postgresql_where=sa.text("state IN ('initiated', 'debited', 'compensating')"),
    ),
)

institution_account = sa.Table(
    "institution_account",
    metadata,
    sa.Column("ledger", sa.Text, primary_key=True),
    sa.Column("opening_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("account", sa.BigInteger),
)

settlement_instruction = sa.Table(
    "settlement_instruction",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("pay_currency", sa.Text, nullable=False),
    sa.Column("pay_amount_minor", sa.BigInteger, nullable=False),
    sa.Column("receive_currency", sa.Text),
    sa.Column("receive_amount_minor_min", sa.BigInteger),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    # Of a settlement of more legs than a PvP's two: lists of wallet.domain.records.OrderedPayment and OrderedReceipt.
    sa.Column("further_payments", JSONB, nullable=False),
    sa.Column("further_receipts", JSONB, nullable=False),
    sa.CheckConstraint("(receive_currency IS NULL) = (receive_amount_minor_min IS NULL)", name="receipt_whole"),
    sa.CheckConstraint("pay_amount_minor > 0 AND receive_amount_minor_min > 0", name="amounts_positive"),
    sa.CheckConstraint("pay_currency <> receive_currency", name="currencies_differ"),
)

leg_authorisation = sa.Table(
    "leg_authorisation",
    metadata,
    sa.Column("instruction_id", sa.Text, sa.ForeignKey("settlement_instruction.id"), nullable=False),
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("hold_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("terms", JSONB, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("credit_account", sa.BigInteger, nullable=False),
    # Once per instruction and ordered payment, whatever the bridge asks for.
    sa.PrimaryKeyConstraint("instruction_id", "ledger", "credit_account", name="leg_authorisation_pk"),
)

sandbox_deposit = sa.Table(
    "sandbox_deposit",
    metadata,
    sa.Column("customer_id", sa.Uuid, primary_key=True),
    sa.Column("balance_minor", sa.BigInteger, nullable=False),
    sa.CheckConstraint("balance_minor >= 0", name="not_overdrawn"),
)

sandbox_posting = sa.Table(
    "sandbox_posting",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("customer_id", sa.Uuid, nullable=False),
    sa.Column("direction", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("is_booked", sa.Boolean, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    # Of an exchange, or of anything else that happens to a deposit.
    sa.Column("purpose", sa.Text, nullable=False),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint(_one_of("purpose", "exchange", "other"), name="purpose"),
    sa.CheckConstraint(_one_of("direction", "debit", "credit"), name="direction"),
    sa.CheckConstraint("is_booked OR direction = 'debit'", name="credits_are_booked"),
    sa.Index("sandbox_posting_customer_id", "customer_id"),
    sa.Index("sandbox_posting_created", "created_at", "id"),
)

request_nonce = nonce_table(metadata)

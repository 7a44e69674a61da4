"""Tables of families (parent and child wallets), hardware wallets, corporate owners and aliases."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from wallet.store.tables import metadata

_Moment = sa.DateTime(timezone=True)

family_member = sa.Table(
    "family_member",
    metadata,
    # A wallet is a parent or a child, never both: so a child of a child cannot be written (depth 1).
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.CheckConstraint("role IN ('parent', 'child')", name="role"),
    sa.UniqueConstraint("wallet_id", "role", name="family_member_one_role_uq"),
)

child_wallet = sa.Table(
    "child_wallet",
    metadata,
    sa.Column("wallet_id", sa.Uuid, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("parent_id", sa.Uuid, nullable=False),
    sa.Column("parent_role", sa.Text, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    # NULL until the ledger has opened it.
    sa.Column("account", sa.BigInteger, sa.ForeignKey("wallet.account"), unique=True),
    sa.Column("parent_account", sa.BigInteger, sa.ForeignKey("wallet.account"), nullable=False),
    # The one account that it may pay besides its parent's; at any intermediary.
    sa.Column("merchant_account", sa.BigInteger),
    # The child's signing key under a secret that only the merchant has (docs/decisions/0012).
    sa.Column("sealed_key", sa.LargeBinary),
    sa.Column("balance_max_minor", sa.BigInteger),
    sa.Column("single_max_minor", sa.BigInteger),
    sa.Column("day_max_minor", sa.BigInteger),
    sa.Column("total_max_minor", sa.BigInteger),
    sa.Column("used_on", sa.Date, nullable=False),
    sa.Column("used_day_minor", sa.BigInteger, nullable=False),
    sa.Column("used_total_minor", sa.BigInteger, nullable=False),
    # What was used already when a cap was lowered beneath it.
    sa.Column("day_floor_minor", sa.BigInteger, nullable=False),
    sa.Column("total_floor_minor", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("ended_at", _Moment),
    sa.ForeignKeyConstraint(
        ["wallet_id", "role"], ["family_member.wallet_id", "family_member.role"], name="child_wallet_is_child_fk"
    ),
    sa.ForeignKeyConstraint(
        ["parent_id", "parent_role"],
        ["family_member.wallet_id", "family_member.role"],
        name="child_wallet_has_parent_fk",
    ),
    sa.CheckConstraint("role = 'child' AND parent_role = 'parent'", name="depth_one"),
    sa.CheckConstraint("wallet_id <> parent_id", name="not_its_own_parent"),
    sa.CheckConstraint("merchant_account <> parent_account AND merchant_account <> account", name="merchant"),
    sa.CheckConstraint("sealed_key IS NULL OR (merchant_account IS NOT NULL AND state = 'open')", name="sealed_key"),
    sa.CheckConstraint("merchant_account IS NULL OR total_max_minor IS NOT NULL", name="push_has_a_cap"),
    sa.CheckConstraint(
        "balance_max_minor >= 0 AND single_max_minor >= 0 AND day_max_minor >= 0 AND total_max_minor >= 0",
        name="caps",
    ),
    sa.CheckConstraint("0 <= used_day_minor AND used_day_minor <= used_total_minor", name="used"),
    sa.CheckConstraint(
        "day_max_minor IS NULL OR used_day_minor <= GREATEST(day_max_minor, day_floor_minor)", name="day_i9"
    ),
    sa.CheckConstraint(
        "total_max_minor IS NULL OR used_total_minor <= GREATEST(total_max_minor, total_floor_minor)",
        name="total_i9",
    ),
    sa.CheckConstraint("state IN ('open', 'revoked', 'closed')", name="state"),
    sa.CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended"),
    sa.Index("child_wallet_parent", "parent_id", "wallet_id"),
)

child_credit = sa.Table(
    "child_credit",
    metadata,
    # A payment towards a child: until a reading of the ledger's balance has it, it counts towards the balance.
    sa.Column("payment_id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("child_wallet.wallet_id"), nullable=False),
    sa.Index("child_credit_wallet", "wallet_id"),
)

hardware_card = sa.Table(
    "hardware_card",
    metadata,
    # Of the key in the card. A wallet may have other devices too, and another card after this one.
    sa.Column("thumbprint", sa.Text, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("account", sa.BigInteger, sa.ForeignKey("wallet.account"), nullable=False),
    sa.Column("counter_last", sa.BigInteger, nullable=False),
    sa.Column("pin_free_single_max_minor", sa.BigInteger, nullable=False),
    sa.Column("pin_free_total_max_minor", sa.BigInteger, nullable=False),
    # What the issuer's attestation says of the card.
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("attested_single_max_minor", sa.BigInteger, nullable=False),
    sa.Column("attested_total_max_minor", sa.BigInteger, nullable=False),
    sa.Column("expires_at", _Moment, nullable=False),
    sa.Column("attestation", sa.Text, nullable=False),
    # Carried without PIN since the last payment with one.
    sa.Column("pin_free_minor", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("suspended_why", sa.Text),
    sa.Column("suspended_at", _Moment),
    # Two instructions with one counter, both signed by the card's key.
    sa.Column("evidence_first", sa.Text),
    sa.Column("evidence_second", sa.Text),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("counter_last BETWEEN 0 AND 4294967295", name="counter"),
    sa.CheckConstraint("0 <= pin_free_single_max_minor", name="pin_free_single"),
    sa.CheckConstraint(
        "pin_free_single_max_minor <= attested_single_max_minor"
        " AND pin_free_total_max_minor <= attested_total_max_minor",
        name="attested_i9",
    ),
    sa.UniqueConstraint("issuer", "serial", name="hardware_card_serial"),
    sa.CheckConstraint("0 <= pin_free_minor AND pin_free_minor <= pin_free_total_max_minor", name="pin_free_i9"),
    sa.CheckConstraint("state IN ('active', 'suspended')", name="state"),
    sa.CheckConstraint(
        "num_nonnulls(suspended_why, suspended_at) = CASE state WHEN 'suspended' THEN 2 ELSE 0 END",
        name="suspended_says_why",
    ),
    sa.CheckConstraint("suspended_why IN ('reported', 'cloned', 'revoked')", name="suspended_why"),
    sa.CheckConstraint(
        "num_nonnulls(evidence_first, evidence_second) = CASE suspended_why WHEN 'cloned' THEN 2 ELSE 0 END",
        name="clone_is_proved",
    ),
    sa.Index("hardware_card_wallet", "wallet_id", "thumbprint"),
    sa.Index("hardware_card_account", "account"),
)

card_counter = sa.Table(
    "card_counter",
    metadata,
    sa.Column("thumbprint", sa.Text, sa.ForeignKey("hardware_card.thumbprint"), nullable=False),
    sa.Column("counter", sa.BigInteger, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("instruction", sa.Text, nullable=False),
    # One instruction a counter, for ever.
    sa.PrimaryKeyConstraint("thumbprint", "counter", name="card_counter_pk"),
    sa.CheckConstraint("counter BETWEEN 1 AND 4294967295", name="counter"),
)

corporate_customer = sa.Table(
    "corporate_customer",
    metadata,
    sa.Column("customer_id", sa.Uuid, sa.ForeignKey("customer.id"), primary_key=True),
    # Legal name, LEI and social credit code under the customer's own data key.
    sa.Column("legal_data", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
)

card_revocation = sa.Table(
    "card_revocation",
    metadata,
    # By the issuer; for ever.
    sa.Column("issuer", sa.Text, nullable=False),
    sa.Column("serial", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("revoked_at", _Moment, nullable=False),
    sa.PrimaryKeyConstraint("issuer", "serial", name="card_revocation_pk"),
)

payment_control = sa.Table(
    "payment_control",
    metadata,
    # What one signature alone may pay for a corporate wallet; above it a payment needs an approval.
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), primary_key=True),
    sa.Column("account", sa.BigInteger, nullable=False, unique=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("is_in_force", sa.Boolean, nullable=False),
    sa.Column("alone_max_minor", sa.BigInteger, nullable=False),
    sa.Column("alone_day_max_minor", sa.BigInteger, nullable=False),
    # Carried on one signature on that scheme day.
    sa.Column("alone_on", sa.Date, nullable=False),
    sa.Column("alone_minor", sa.BigInteger, nullable=False),
    # Where those days begin and end: IANA's name.
    sa.Column("time_zone", sa.Text, nullable=False),
    sa.Column("changed_at", _Moment, nullable=False),
    sa.CheckConstraint("version >= 1", name="version"),
    sa.CheckConstraint("alone_max_minor >= 0", name="alone_max"),
    sa.CheckConstraint("alone_minor >= 0", name="alone"),
)

payment_signatory = sa.Table(
    "payment_signatory",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("payment_control.wallet_id"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("thumbprint", sa.Text, nullable=False),
    sa.Column("person", sa.Text, nullable=False),
    sa.Column("key", postgresql.JSONB, nullable=False),
    # One key is one person's.
    sa.PrimaryKeyConstraint("wallet_id", "version", "thumbprint", name="payment_signatory_pk"),
)

payment_control_change = sa.Table(
    "payment_control_change",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("payment_control.wallet_id"), nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("first_person", sa.Text, nullable=False),
    sa.Column("first_token", sa.Text, nullable=False),
    sa.Column("second_person", sa.Text, nullable=False),
    sa.Column("second_token", sa.Text, nullable=False),
    sa.Column("changed_at", _Moment, nullable=False),
    sa.PrimaryKeyConstraint("wallet_id", "version", name="payment_control_change_pk"),
    sa.CheckConstraint("first_person <> second_person", name="two_persons_i8"),
)

payment_approval = sa.Table(
    "payment_approval",
    metadata,
    sa.Column("payment_id", sa.Uuid, primary_key=True),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("payment_control.wallet_id"), nullable=False),
    # Of what the maker signs.
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("checker", sa.Text, nullable=False),
    sa.Column("valid_until", _Moment, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    # Whose payment it was used for.
    sa.Column("maker", sa.Text),
    sa.Column("withdrawn_at", _Moment),
    sa.Column("approved_at", _Moment, nullable=False),
    sa.CheckConstraint("maker <> checker", name="two_persons_i8"),
    sa.CheckConstraint("maker IS NULL OR withdrawn_at IS NULL", name="used_or_withdrawn"),
    sa.CheckConstraint("octet_length(digest) = 32", name="digest"),
    sa.Index("payment_approval_wallet", "wallet_id"),
)

payment_alone = sa.Table(
    "payment_alone",
    metadata,
    # Payments that passed on one signature, by the scheme day: the triggers of `payment` write it, and hold the sums to
    # the rules' bound. Nothing here reads it, or can write it. It goes with its payment: an instruction that turns out
    # not to be signed is forgotten, and then nothing was paid on one signature.
    sa.Column("payment_id", sa.Uuid, sa.ForeignKey("payment.id", ondelete="CASCADE"), nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("payment_control.wallet_id"), nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("payment_id", "day", name="payment_alone_pk"),
    sa.Index("payment_alone_wallet_day", "wallet_id", "day"),
)

wallet_alias = sa.Table(
    "wallet_alias",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    # HMAC-SHA-256 under a key of the service: a dump shows no phone number and no address.
    sa.Column("alias_hash", sa.LargeBinary, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("is_default", sa.Boolean, nullable=False),
    sa.Column("code_hash", sa.LargeBinary),
    sa.Column("code_until", _Moment),
    sa.Column("tries_left", sa.Integer, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("verified_at", _Moment),
    sa.Column("ended_at", _Moment),
    sa.CheckConstraint("octet_length(alias_hash) = 32", name="hash"),
    sa.CheckConstraint("kind IN ('phone', 'email')", name="kind"),
    sa.CheckConstraint("state IN ('pending', 'verified', 'refused', 'removed')", name="state"),
    sa.CheckConstraint(
        "(state = 'pending') = (code_hash IS NOT NULL) AND (state = 'pending') = (code_until IS NOT NULL)",
        name="pending_has_code",
    ),
    sa.CheckConstraint("state <> 'verified' OR verified_at IS NOT NULL", name="verified"),
    sa.CheckConstraint("(state IN ('refused', 'removed')) = (ended_at IS NOT NULL)", name="ended"),
    sa.CheckConstraint("NOT is_default OR state = 'verified'", name="default_is_verified"),
    sa.CheckConstraint("tries_left BETWEEN 0 AND 5", name="tries"),
    sa.Index("wallet_alias_default", "alias_hash", "currency", unique=True, postgresql_where=sa.text("is_default")),
    sa.Index(
        "wallet_alias_once", "alias_hash", "wallet_id", unique=True, postgresql_where=sa.text("state = 'verified'")
    ),
    sa.Index("wallet_alias_wallet", "wallet_id", "id"),
    sa.Index("wallet_alias_sent", "alias_hash", "created_at"),
)

alias_lookup_count = sa.Table(
    "alias_lookup_count",
    metadata,
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("hour", _Moment, nullable=False),
    sa.Column("lookups", sa.Integer, nullable=False),
    sa.Column("in_files", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("wallet_id", "hour", name="alias_lookup_count_pk"),
    sa.CheckConstraint("lookups BETWEEN 0 AND 30 AND in_files BETWEEN 0 AND 40000", name="bounded"),
)

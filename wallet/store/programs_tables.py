"""Tables of programmable money. The totals of a program are CHECKs: released + returned + held = funded."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from wallet.store.tables import _Moment, _one_of, metadata

program_template = sa.Table(
    "program_template",
    metadata,
    # The very text that a program was agreed under, whatever becomes of the file.
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("body", JSONB, nullable=False),
    sa.CheckConstraint("length(sha256) = 32", name="sha256"),
)

program = sa.Table(
    "program",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("template_sha256", sa.LargeBinary, sa.ForeignKey("program_template.sha256"), nullable=False),
    sa.Column("wallet_id", sa.Uuid, sa.ForeignKey("wallet.id"), nullable=False),
    sa.Column("payer_account", sa.BigInteger, nullable=False),
    sa.Column("terms", JSONB, nullable=False),
    sa.Column("terms_sha256", sa.LargeBinary, nullable=False),
    # AES-256-GCM under the service's key: the seed of every secret of the program, on disk before a hash is shown.
    sa.Column("sealed_seed", sa.LargeBinary, nullable=False),
    # The counterpart's secret, once somebody has shown it.
    sa.Column("shown_secret", sa.LargeBinary),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("funded_minor", sa.BigInteger, nullable=False),
    sa.Column("held_minor", sa.BigInteger, nullable=False),
    sa.Column("released_minor", sa.BigInteger, nullable=False),
    sa.Column("returned_minor", sa.BigInteger, nullable=False),
    # Of what was returned: the change of purchases.
    sa.Column("change_minor", sa.BigInteger, nullable=False),
    sa.Column("deadline", _Moment, nullable=False),
    sa.Column("expires_at", _Moment, nullable=False),
    sa.Column("created_at", _Moment, nullable=False),
    sa.Column("funded_at", _Moment),
    # Up to when the conditions have been decided.
    sa.Column("evaluated_at", _Moment),
    # When the periodic pass looks next; NULL = never again.
    sa.Column("wake_at", _Moment),
    # The scheme day on which the holds count in the wallet's usage.
    sa.Column("counted_on", sa.Date),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.CheckConstraint(
        _one_of("state", "proposed", "funding", "active", "finished", "refusing", "refused"), name="state"
    ),
    sa.CheckConstraint("length(terms_sha256) = 32", name="terms_sha256"),
    sa.CheckConstraint("funded_minor > 0", name="funded_positive"),
    sa.CheckConstraint("held_minor >= 0 AND released_minor >= 0 AND returned_minor >= 0", name="not_negative"),
    sa.CheckConstraint("0 <= change_minor AND change_minor <= returned_minor", name="change_is_returned"),
    sa.CheckConstraint(
        "held_minor + released_minor + returned_minor ="
        " CASE WHEN state IN ('active', 'finished') THEN funded_minor ELSE 0 END",
        name="conserved_i6",
    ),
    sa.CheckConstraint("state <> 'finished' OR held_minor = 0", name="finished_holds_nothing"),
    sa.CheckConstraint("state <> 'active' OR held_minor > 0", name="active_holds_something"),
    sa.CheckConstraint("(state IN ('refusing', 'refused')) = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.CheckConstraint("(state IN ('active', 'finished')) = (funded_at IS NOT NULL)", name="funded_at"),
    sa.CheckConstraint("state NOT IN ('funding', 'active', 'finished') OR counted_on IS NOT NULL", name="counted_i9"),
    sa.CheckConstraint("deadline <= expires_at", name="deadline"),
    sa.CheckConstraint("state NOT IN ('funding', 'active', 'refusing') OR wake_at IS NOT NULL", name="not_forgotten"),
    sa.Index("program_wallet", "wallet_id", "id"),
    sa.Index("program_wake", "wake_at", postgresql_where=sa.text("wake_at IS NOT NULL")),
)

program_voucher = sa.Table(
    "program_voucher",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("program_id", sa.Uuid, sa.ForeignKey("program.id"), nullable=False),
    sa.Column("recipient_account", sa.BigInteger, nullable=False),
    sa.Column("recipient_key", JSONB, nullable=False),
    sa.Column("value_minor", sa.BigInteger, nullable=False),
    sa.Column("spent_minor", sa.BigInteger, nullable=False),
    sa.Column("change_minor", sa.BigInteger, nullable=False),
    sa.CheckConstraint("spent_minor >= 0 AND change_minor >= 0", name="not_negative"),
    sa.CheckConstraint("spent_minor + change_minor <= value_minor", name="not_overspent"),
    sa.Index("program_voucher_program", "program_id"),
)

program_spend = sa.Table(
    "program_spend",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("voucher_id", sa.Uuid, sa.ForeignKey("program_voucher.id"), nullable=False),
    sa.Column("program_id", sa.Uuid, sa.ForeignKey("program.id"), nullable=False),
    sa.Column("merchant_account", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("change_minor", sa.BigInteger, nullable=False),
    sa.Column("change_to", sa.Text, nullable=False),
    sa.Column("payment_id", sa.Uuid, nullable=False, unique=True),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The fencing token: only the newest attempt may write a refusal.
    sa.Column("attempt", sa.Integer, nullable=False),
    # Until then a copy whose answer is not known may still be booked; NULL = there is none.
    sa.Column("unknown_until", _Moment),
    sa.Column("seq", sa.BigInteger),
    sa.Column("booked_at", _Moment),
    sa.Column("refusal", sa.Text),
    sa.Column("detail", sa.Text),
    sa.Column("created_at", _Moment, nullable=False),
    sa.CheckConstraint("amount_minor > 0 AND change_minor >= 0", name="amount_positive"),
    sa.CheckConstraint(_one_of("change_to", "issuer", "recipient"), name="change_to"),
    sa.CheckConstraint(_one_of("state", "initiated", "final", "refused"), name="state"),
    sa.CheckConstraint("(state = 'final') = (booked_at IS NOT NULL)", name="final_is_booked"),
    sa.CheckConstraint("(state = 'refused') = (refusal IS NOT NULL)", name="refused_says_why"),
    sa.Index("program_spend_voucher", "voucher_id", "id"),
    sa.Index("program_spend_open", "program_id", postgresql_where=sa.text("state = 'initiated'")),
)

program_hold = sa.Table(
    "program_hold",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("program_id", sa.Uuid, sa.ForeignKey("program.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("voucher_id", sa.Uuid, sa.ForeignKey("program_voucher.id")),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    # The purchase that this part of a voucher pays, under way or booked.
    sa.Column("spend_id", sa.Uuid, sa.ForeignKey("program_spend.id")),
    sa.Column("instruction", sa.Text),
    sa.Column("ended_at", _Moment),
    sa.UniqueConstraint("program_id", "number"),
    sa.CheckConstraint("amount_minor > 0", name="amount_positive"),
    sa.CheckConstraint(_one_of("state", "proposed", "held", "released", "returned"), name="state"),
    sa.CheckConstraint("(state IN ('released', 'returned')) = (ended_at IS NOT NULL)", name="ends_once_i6"),
    sa.CheckConstraint("state = 'proposed' OR instruction IS NOT NULL", name="signed_i8"),
    sa.CheckConstraint("spend_id IS NULL OR (voucher_id IS NOT NULL AND state <> 'returned')", name="spent_i6"),
    sa.Index("program_hold_spend", "spend_id", postgresql_where=sa.text("spend_id IS NOT NULL")),
    sa.Index("program_hold_voucher", "voucher_id", postgresql_where=sa.text("voucher_id IS NOT NULL")),
)

program_decision = sa.Table(
    "program_decision",
    metadata,
    # One a hold, never changed: of its two secrets only the decided one is ever shown.
    sa.Column("hold_id", sa.Uuid, sa.ForeignKey("program_hold.id"), primary_key=True),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("because", sa.Text, nullable=False),
    sa.Column("decided_at", _Moment, nullable=False),
    sa.CheckConstraint(_one_of("outcome", "release", "return"), name="outcome"),
)

program_statement = sa.Table(
    "program_statement",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("program_id", sa.Uuid, sa.ForeignKey("program.id"), nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("event", sa.Text, nullable=False),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("token", sa.Text, nullable=False),
    sa.Column("taken_at", _Moment, nullable=False),
    sa.UniqueConstraint("program_id", "role", "event", "ordinal"),
    sa.CheckConstraint("ordinal > 0", name="ordinal_positive"),
)

merchant = sa.Table(
    "merchant",
    metadata,
    sa.Column("account", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("category", sa.Text, nullable=False),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("participant", sa.Text, nullable=False),
    # Of another institution's merchant: its signed word, the key that signed it, and how long it stands.
    sa.Column("statement", sa.Text),
    sa.Column("key", JSONB),
    sa.Column("valid_until", _Moment),
    sa.Column("updated_at", _Moment, nullable=False),
    sa.CheckConstraint("category ~ '^[0-9]{4}$'", name="category"),
    sa.CheckConstraint("place ~ '^[0-9]{6}$'", name="place"),
    sa.CheckConstraint(
        "(statement IS NULL) = (valid_until IS NULL) AND (statement IS NULL) = (key IS NULL)", name="vouched"
    ),
)

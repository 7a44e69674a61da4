"""The settlement service's tables. CHECKs and keys repeat the core's rules by other means; names cite invariants."""

from __future__ import annotations

import sqlalchemy as sa

from kernel.crypto.nonces import nonce_table
from kernel.idempotency import idempotency_table

metadata = sa.MetaData()

idempotency = idempotency_table(metadata)
request_nonce = nonce_table(metadata)

_STATES = "'received', 'prepared', 'committed', 'aborted', 'settled', 'cancelled'"
_MOMENT = sa.DateTime(timezone=True)

batch = sa.Table(
    "batch",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("submitter", sa.Text, nullable=False),
    sa.Column("message_id", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),
    sa.Column("settlement_count", sa.Integer, nullable=False),
    sa.Column("received_at", _MOMENT, nullable=False),
    sa.Column("started_at", _MOMENT),
    sa.UniqueConstraint("submitter", "message_id", name="batch_message_once"),
    sa.CheckConstraint("format ~ '^[a-z0-9.]{2,16}$'", name="batch_format"),
    sa.CheckConstraint("settlement_count > 0", name="batch_not_empty"),
    sa.CheckConstraint("octet_length(content_sha256) = 32", name="batch_digest"),
)

settlement = sa.Table(
    "settlement",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batch.id"), nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("instruction_id", sa.Text, nullable=False),
    sa.Column("end_to_end_id", sa.Text, nullable=False),
    sa.Column("uetr", sa.Uuid, nullable=False),
    sa.Column("debtor", sa.Text, nullable=False),
    sa.Column("creditor", sa.Text, nullable=False),
    sa.Column("value_date", sa.Date, nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("rate", sa.Text),
    sa.Column("rate_provider", sa.Text),
    sa.Column("remainder_minor", sa.Text),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger),
    sa.Column("commit_hash", sa.LargeBinary),
    sa.Column("abort_hash", sa.LargeBinary),
    sa.Column("waits_for", sa.Text, nullable=False, server_default=""),
    sa.Column("prepared_at", _MOMENT),
    sa.Column("ended_at", _MOMENT),
    sa.Column("abort_requested_at", _MOMENT),
    sa.Column("abort_requested_by", sa.Text),
    sa.Column("nets", sa.Boolean, nullable=False, server_default="false"),
    sa.Column("netted_by", sa.Uuid, sa.ForeignKey("settlement.id")),
    sa.UniqueConstraint("uetr", name="settlement_uetr_once"),
    sa.UniqueConstraint("batch_id", "position", name="settlement_position"),
    sa.CheckConstraint(f"state IN ({_STATES})", name="settlement_state"),
    sa.CheckConstraint("debtor <> creditor", name="settlement_parties_differ"),
    sa.CheckConstraint(
        "(abort_requested_at IS NULL) = (abort_requested_by IS NULL)", name="settlement_abort_requested_by_somebody"
    ),
    sa.CheckConstraint(
        "state = 'received' OR (state = 'cancelled' AND epoch IS NULL AND commit_hash IS NULL AND abort_hash IS NULL)"
        " OR (state = 'settled' AND netted_by IS NOT NULL AND epoch IS NULL AND commit_hash IS NULL"
        " AND abort_hash IS NULL)"
        " OR (epoch IS NOT NULL AND octet_length(commit_hash) = 32 AND octet_length(abort_hash) = 32"
        " AND commit_hash <> abort_hash)",
        name="settlement_hashes",
    ),
    sa.CheckConstraint(
        "netted_by IS NULL OR state IN ('received', 'settled') AND NOT nets", name="settlement_netted_i5"
    ),
    sa.Index("settlement_netted", "netted_by", postgresql_where=sa.text("netted_by IS NOT NULL")),
    sa.Index("settlement_queue", "priority", "batch_id", "position", postgresql_where=sa.text("state = 'received'")),
    sa.Index("settlement_ended", "ended_at", "id", postgresql_where=sa.text("ended_at IS NOT NULL")),
    sa.Index("settlement_open", "state", postgresql_where=sa.text("state IN ('prepared', 'committed', 'aborted')")),
    sa.Index(
        "settlement_abort_requested",
        "id",
        postgresql_where=sa.text("abort_requested_at IS NOT NULL AND state IN ('received', 'prepared')"),
    ),
)

secret = sa.Table(
    "secret",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), primary_key=True),
    sa.Column("commit_secret", sa.LargeBinary),
    sa.Column("abort_secret", sa.LargeBinary),
    sa.CheckConstraint("commit_secret IS NOT NULL OR abort_secret IS NOT NULL", name="secret_i5"),
)
"""Apart from `settlement`, so that no reader of settlements meets a secret. A decision erases the undecided one."""

decision = sa.Table(
    "decision",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), primary_key=True),
    sa.Column("decision", sa.Text, nullable=False),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("decided_at", _MOMENT, nullable=False),
    sa.Column("reason", sa.Text),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.UniqueConstraint("settlement_id", "decision", name="decision_i5"),
    sa.CheckConstraint("decision IN ('commit', 'abort')", name="decision_kind"),
    sa.CheckConstraint("(decision = 'abort') = (reason IS NOT NULL)", name="decision_abort_has_reason"),
    sa.Index("decision_decided_at", "decided_at", postgresql_using="brin"),
)
"""The decision log. Its key lets in one decision a settlement; a trigger (migration 0001) refuses change (I5)."""

leg = sa.Table(
    "leg",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), nullable=False),
    sa.Column("number", sa.SmallInteger, nullable=False),
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("debit", sa.BigInteger, nullable=False),
    sa.Column("credit", sa.BigInteger, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("detail", sa.Text, nullable=False, server_default=""),
    sa.Column("authorisation", sa.Text),
    sa.Column("decision", sa.Text),
    sa.Column("ended_at", _MOMENT),
    sa.PrimaryKeyConstraint("settlement_id", "number", name="leg_pk"),
    sa.ForeignKeyConstraint(
        ["settlement_id", "decision"], ["decision.settlement_id", "decision.decision"], name="leg_follows_decision_i5"
    ),
    sa.CheckConstraint("amount_minor > 0", name="leg_amount_positive"),
    sa.CheckConstraint("debit <> credit", name="leg_i1"),
    sa.CheckConstraint("number BETWEEN 0 AND 499", name="leg_number"),
    sa.CheckConstraint("payer <> payee", name="leg_parties_differ"),
    sa.CheckConstraint("state IN ('pending', 'held', 'refused', 'posted', 'voided', 'netted')", name="leg_state"),
    sa.CheckConstraint(
        "(state NOT IN ('posted', 'netted') OR decision IS NOT DISTINCT FROM 'commit')"
        " AND (state <> 'voided' OR decision IS NOT DISTINCT FROM 'abort')",
        name="leg_ends_as_decided_i5",
    ),
    sa.Index("leg_posted", "currency", "ended_at", postgresql_where=sa.text("state = 'posted'")),
)

gate = sa.Table(
    "gate",
    metadata,
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("not_before", _MOMENT),
    sa.Column("closed_at", _MOMENT, nullable=False),
    sa.Column("opened_at", _MOMENT),
    sa.Column("opened_by", sa.Text),
    sa.PrimaryKeyConstraint("settlement_id", "kind", name="gate_pk"),
    sa.CheckConstraint("kind IN ('compliance', 'calendar', 'liquidity')", name="gate_kind"),
    sa.CheckConstraint("(opened_at IS NULL) = (opened_by IS NULL)", name="gate_opened_by_somebody"),
    sa.Index("gate_closed", "kind", "not_before", postgresql_where=sa.text("opened_at IS NULL")),
)
"""What keeps a received settlement from the engine. It is taken only when every gate of it is open; each says why."""

lease = sa.Table(
    "lease",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("renewed_at", _MOMENT, nullable=False),
)
"""One row. Every write of an engine compares its epoch here, in the same transaction."""

statement_file = sa.Table(
    "statement_file",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batch.id"), nullable=False),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("sequence_number", sa.Integer, nullable=False),
    sa.Column("entry_count", sa.Integer, nullable=False),
    sa.Column("file_name", sa.Text, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("participant", "currency", "sequence_number", name="statement_file_sequence"),
)

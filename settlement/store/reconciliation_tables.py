"""Tables of reconciliation. What was read, found, decided and booked is only ever added; one table points at the last
event of each break. CHECKs, keys and a trigger (migration 0009) repeat `settlement.domain.reconciliation.lifecycle`."""

from __future__ import annotations

import sqlalchemy as sa

from settlement.store.tables import metadata

_MOMENT = sa.DateTime(timezone=True)
_INTS = sa.ARRAY(sa.Integer)
_TEXTS = sa.ARRAY(sa.Text)

STATE_OF_EVENT = (
    "state = CASE WHEN kind IN ('opened', 'released', 'rejected', 'failed', 'reopened') THEN 'open'"
    " WHEN kind IN ('booked', 'explained', 'late-side', 'rematched') THEN 'closed'"
    " WHEN kind IN ('assigned', 'proposed', 'approved') THEN kind END"
)

mapping = sa.Table(
    "reconciliation_mapping",
    metadata,
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("counterparty", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("content", sa.JSON, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.PrimaryKeyConstraint("participant", "counterparty", "version", name="reconciliation_mapping_pk"),
    sa.CheckConstraint("version > 0", name="reconciliation_mapping_version"),
    sa.CheckConstraint("octet_length(sha256) = 32", name="reconciliation_mapping_digest"),
)

source = sa.Table(
    "reconciliation_source",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("counterparty", sa.Text, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("mapping_version", sa.Integer, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("byte_count", sa.BigInteger, nullable=False),
    sa.Column("line_count", sa.Integer, nullable=False),
    sa.Column("account", sa.Text),
    sa.Column("currency", sa.Text),
    sa.Column("statement_id", sa.Text),
    sa.Column("sequence_number", sa.BigInteger),
    sa.Column("opening_minor", sa.BigInteger),
    sa.Column("closing_minor", sa.BigInteger),
    sa.Column("to_at", _MOMENT),
    sa.Column("message", sa.Text),
    sa.Column("created_by", sa.Text, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.UniqueConstraint(
        *("participant", "counterparty", "format", "mapping_version", "sha256", "account"),
        name="reconciliation_source_once",
        postgresql_nulls_not_distinct=True,
    ),
    sa.CheckConstraint("octet_length(sha256) = 32", name="reconciliation_source_digest"),
    sa.CheckConstraint(
        "format IN ('camt.052', 'camt.053', 'camt.053-pages', 'camt.054', 'csv', 'parquet')",
        name="reconciliation_source_format",
    ),
    sa.CheckConstraint("mapping_version >= 0", name="reconciliation_source_mapping"),
)
"""A file that was taken, by its digest; its bytes are in the files directory. Version 0 of a mapping is our own."""

run = sa.Table(
    "reconciliation_run",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("request_sha256", sa.LargeBinary, nullable=False),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batch.id")),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("counterparty", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.Column("our_source", sa.Uuid, sa.ForeignKey("reconciliation_source.id"), nullable=False),
    sa.Column("their_source", sa.Uuid, sa.ForeignKey("reconciliation_source.id"), nullable=False),
    sa.Column("selection", sa.JSON, nullable=False),
    sa.Column("rules", sa.JSON, nullable=False),
    sa.Column("as_of", sa.Date, nullable=False),
    sa.Column("lines_ours", sa.Integer, nullable=False),
    sa.Column("lines_theirs", sa.Integer, nullable=False),
    sa.Column("carried_ours", sa.Integer, nullable=False),
    sa.Column("carried_theirs", sa.Integer, nullable=False),
    sa.Column("matched", sa.Integer, nullable=False),
    sa.Column("finding_count", sa.Integer, nullable=False),
    sa.Column("closed_count", sa.Integer, nullable=False),
    sa.Column("result_sha256", sa.LargeBinary, nullable=False),
    sa.Column("run_by", sa.Text, nullable=False),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.CheckConstraint("view IN ('same-account', 'mirror')", name="reconciliation_run_view"),
    sa.CheckConstraint(
        "matched >= 0 AND finding_count >= 0 AND lines_ours >= 0 AND lines_theirs >= 0",
        name="reconciliation_run_counts",
    ),
    sa.CheckConstraint(
        "octet_length(result_sha256) = 32 AND octet_length(request_sha256) = 32", name="reconciliation_run_digests"
    ),
    sa.Index("reconciliation_run_relation", "participant", "currency", "counterparty", "id"),
)

pairs = sa.Table(
    "reconciliation_pairs",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("positions", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "number", name="reconciliation_pairs_pk"),
    sa.CheckConstraint("count > 0 AND octet_length(positions) = 8 * count", name="reconciliation_pairs_size"),
    sa.CheckConstraint("rule IN ('uetr', 'end-to-end-id', 'reference')", name="reconciliation_pairs_rule"),
)
"""Matches by an id, one line on either side, up to 65,536 in a row: positions in the sources as little-endian int32,
first ours, then theirs."""

match = sa.Table(
    "reconciliation_match",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("rule", sa.Text, nullable=False),
    sa.Column("our_positions", _INTS, nullable=False),
    sa.Column("their_positions", _INTS, nullable=False),
    sa.Column("our_references", _TEXTS, nullable=False),
    sa.Column("their_references", _TEXTS, nullable=False),
    sa.Column("difference_minor", sa.BigInteger, nullable=False),
    sa.PrimaryKeyConstraint("run_id", "number", name="reconciliation_match_pk"),
    sa.CheckConstraint(
        "CASE rule WHEN 'reversed' THEN abs(cardinality(our_references) - cardinality(their_references)) = 2 AND "
        "cardinality(our_references || their_references) = 2 AND difference_minor = 0 "
        "WHEN 'replaced' THEN cardinality(our_references || their_references) = 1 AND difference_minor = 0 "
        "ELSE cardinality(our_references) > 0 AND cardinality(their_references) > 0 END",
        name="reconciliation_match_sides",
    ),
)
"""The other matches, and those that an officer made (rule `manual`)."""

brk = sa.Table(
    "reconciliation_break",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id")),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("counterparty", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("account", sa.Text, nullable=False),
    sa.Column("view", sa.Text, nullable=False),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("side", sa.Text),
    sa.Column("also", _TEXTS, nullable=False),
    sa.Column("our_references", _TEXTS, nullable=False),
    sa.Column("their_references", _TEXTS, nullable=False),
    sa.Column("our_positions", _INTS, nullable=False),
    sa.Column("their_positions", _INTS, nullable=False),
    sa.Column("our_amount_minor", sa.BigInteger),
    sa.Column("their_amount_minor", sa.BigInteger),
    sa.Column("difference_minor", sa.Numeric(38, 0)),
    sa.Column("gross", sa.JSON, nullable=False),
    sa.Column("gross_minor", sa.Numeric(38, 0), nullable=False),
    sa.Column("oldest", sa.Date, nullable=False),
    sa.Column("sentence", sa.Text, nullable=False),
    sa.Column("lines", sa.JSON),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.CheckConstraint("octet_length(key) = 32", name="reconciliation_break_key"),
    sa.CheckConstraint("side IN ('ours', 'theirs')", name="reconciliation_break_side"),
    sa.CheckConstraint("gross_minor >= 0", name="reconciliation_break_gross"),
)
"""`lines` are those of a missing line, to be carried to later runs. A break of the control has no run."""

finding = sa.Table(
    "reconciliation_finding",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("break_id", sa.Uuid, sa.ForeignKey("reconciliation_break.id"), nullable=False),
    sa.PrimaryKeyConstraint("run_id", "number", name="reconciliation_finding_pk"),
    sa.Index("reconciliation_finding_break", "break_id"),
)
"""Which breaks a run found: new ones, and those that were open already."""

repair = sa.Table(
    "reconciliation_repair",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("break_id", sa.Uuid, sa.ForeignKey("reconciliation_break.id"), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("payer", sa.Text, nullable=False),
    sa.Column("payee", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("maker", sa.Text, nullable=False),
    sa.Column("maker_key", sa.Text, nullable=False),
    sa.Column("proposed_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("id", "maker", "maker_key", name="reconciliation_repair_maker"),
    sa.UniqueConstraint("id", "break_id", name="reconciliation_repair_break"),
    sa.CheckConstraint("kind IN ('claim', 'instruction')", name="reconciliation_repair_kind"),
    sa.CheckConstraint("amount_minor > 0 AND payer <> payee", name="reconciliation_repair_terms"),
)
"""A proposal; its id is that of the decision that made it."""

approval = sa.Table(
    "reconciliation_approval",
    metadata,
    sa.Column("repair_id", sa.Uuid, primary_key=True),
    sa.Column("maker", sa.Text, nullable=False),
    sa.Column("maker_key", sa.Text, nullable=False),
    sa.Column("checker", sa.Text, nullable=False),
    sa.Column("checker_key", sa.Text, nullable=False),
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id", deferrable=True, initially="DEFERRED")),
    sa.Column("approved_at", _MOMENT, nullable=False),
    sa.ForeignKeyConstraint(
        ["repair_id", "maker", "maker_key"],
        ["reconciliation_repair.id", "reconciliation_repair.maker", "reconciliation_repair.maker_key"],
        name="reconciliation_approval_of_repair",
    ),
    sa.CheckConstraint("checker <> maker AND checker_key <> maker_key", name="reconciliation_four_eyes"),
)
"""The second officer's word, and the settlement that carries out an instruction."""

booking = sa.Table(
    "reconciliation_booking",
    metadata,
    sa.Column("repair_id", sa.Uuid, sa.ForeignKey("reconciliation_approval.repair_id"), primary_key=True),
    sa.Column("break_id", sa.Uuid, nullable=False),
    sa.Column("debtor", sa.Text, nullable=False),
    sa.Column("creditor", sa.Text, nullable=False),
    sa.Column("amount_minor", sa.BigInteger, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("settlement_id", sa.Uuid),
    sa.Column("booked_at", _MOMENT, nullable=False),
    sa.ForeignKeyConstraint(
        ["repair_id", "break_id"],
        ["reconciliation_repair.id", "reconciliation_repair.break_id"],
        name="reconciliation_booking_of_repair",
    ),
    sa.UniqueConstraint("repair_id", "break_id", name="reconciliation_booking_break"),
    sa.CheckConstraint("amount_minor > 0 AND debtor <> creditor", name="reconciliation_booking_i1"),
)
"""The adjustment as booked: the debtor owes the creditor (a claim), or has paid it (`settlement_id`)."""

event = sa.Table(
    "reconciliation_event",
    metadata,
    sa.Column("break_id", sa.Uuid, sa.ForeignKey("reconciliation_break.id"), nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("actor_key", sa.Text),
    sa.Column("at", _MOMENT, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("assignee", sa.Text),
    sa.Column("decision_id", sa.Uuid),
    sa.Column("token", sa.Text),
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id")),
    sa.Column("match_number", sa.Integer),
    sa.Column("repair_id", sa.Uuid),
    sa.PrimaryKeyConstraint("break_id", "sequence", name="reconciliation_event_pk"),
    sa.UniqueConstraint("break_id", "sequence", "state", name="reconciliation_event_state_once"),
    sa.UniqueConstraint("decision_id", "break_id", name="reconciliation_event_decision_once"),
    sa.ForeignKeyConstraint(
        ["run_id", "match_number"],
        ["reconciliation_match.run_id", "reconciliation_match.number"],
        name="reconciliation_event_match",
    ),
    sa.ForeignKeyConstraint(
        ["repair_id", "break_id"],
        ["reconciliation_repair.id", "reconciliation_repair.break_id"],
        name="reconciliation_event_repair",
    ),
    sa.CheckConstraint(STATE_OF_EVENT, name="reconciliation_event_state"),
    sa.CheckConstraint("(kind = 'assigned') = (assignee IS NOT NULL)", name="reconciliation_event_assignee"),
    sa.CheckConstraint(
        "kind IN ('opened', 'booked', 'failed', 'late-side')"
        " OR (decision_id IS NOT NULL AND token IS NOT NULL AND actor_key IS NOT NULL)",
        name="reconciliation_event_is_signed",
    ),
    sa.CheckConstraint(
        "kind <> 'explained' OR length(btrim(reason)) >= 10", name="reconciliation_closed_with_explanation"
    ),
    sa.CheckConstraint(
        "kind NOT IN ('proposed', 'approved', 'booked', 'failed') OR repair_id IS NOT NULL",
        name="reconciliation_closed_with_booking",
    ),
    sa.CheckConstraint("kind <> 'late-side' OR run_id IS NOT NULL", name="reconciliation_closed_by_late_side"),
    sa.CheckConstraint(
        "kind <> 'rematched' OR (run_id IS NOT NULL AND match_number IS NOT NULL)",
        name="reconciliation_closed_by_match",
    ),
)
"""The history of each break."""

status = sa.Table(
    "reconciliation_status",
    metadata,
    sa.Column("break_id", sa.Uuid, sa.ForeignKey("reconciliation_break.id"), primary_key=True),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("assignee", sa.Text),
    sa.ForeignKeyConstraint(
        ["break_id", "sequence", "state"],
        ["reconciliation_event.break_id", "reconciliation_event.sequence", "reconciliation_event.state"],
        name="reconciliation_status_is_an_event",
    ),
    sa.Index("reconciliation_status_open", "key", unique=True, postgresql_where=sa.text("state <> 'closed'")),
    sa.Index("reconciliation_status_closed", "key", postgresql_where=sa.text("state = 'closed'")),
    sa.Index("reconciliation_status_work", "participant", "break_id", postgresql_where=sa.text("state <> 'closed'")),
)
"""Where each break stands: its last event. One open break of one key."""

unmatch = sa.Table(
    "reconciliation_unmatch",
    metadata,
    sa.Column("run_id", sa.Uuid, sa.ForeignKey("reconciliation_run.id"), nullable=False),
    sa.Column("our_position", sa.Integer, nullable=False),
    sa.Column("their_position", sa.Integer, nullable=False),
    sa.Column("break_id", sa.Uuid, sa.ForeignKey("reconciliation_break.id"), nullable=False),
    sa.PrimaryKeyConstraint("run_id", "our_position", "their_position", name="reconciliation_unmatch_pk"),
)
"""A match that an officer has undone, by its first line on either side, and the break that came of it."""

control = sa.Table(
    "control_point",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("through_ended_at", _MOMENT, nullable=False),
    sa.Column("through_settlement", sa.Uuid, nullable=False),
    sa.Column("settlements", sa.Integer, nullable=False),
    sa.Column("legs", sa.Integer, nullable=False),
    sa.Column("alarms", sa.Integer, nullable=False),
    sa.Column("checked_at", _MOMENT, nullable=False),
    sa.CheckConstraint("number > 0 AND settlements >= 0 AND legs >= 0 AND alarms >= 0", name="control_point_counts"),
)
"""How far the control has come; each row goes on where the one before ended."""

control_balance = sa.Table(
    "control_balance",
    metadata,
    sa.Column("ledger", sa.Text, nullable=False),
    sa.Column("account", sa.BigInteger, nullable=False),
    sa.Column("participant", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("bridge_minor", sa.Numeric(38, 0), nullable=False),
    sa.Column("island_minor", sa.Numeric(38, 0), nullable=False),
    sa.Column("legs", sa.BigInteger, nullable=False),
    sa.Column("debits_minor", sa.Numeric(38, 0), nullable=False),
    sa.Column("credits_minor", sa.Numeric(38, 0), nullable=False),
    sa.PrimaryKeyConstraint("ledger", "account", "participant", "currency", name="control_balance_pk"),
)
"""Nostro and vostro: what the bridge's posted legs add up to on each account, and what the islands say of the same.
`debits_minor` and `credits_minor` are the bridge's own, gross: no island may ever have moved less."""

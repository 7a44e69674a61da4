"""Batches, settlements and their legs, secrets, the decision log and its lease, statements and reconciliations."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = (
    """CREATE TABLE batch (
    id UUID NOT NULL,
    submitter TEXT NOT NULL,
    message_id TEXT NOT NULL,
    format TEXT NOT NULL,
    content_sha256 BYTEA NOT NULL,
    settlement_count INTEGER NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT batch_message_once UNIQUE (submitter, message_id),
    CONSTRAINT batch_format CHECK (format IN ('pacs.009', 'csv')),
    CONSTRAINT batch_not_empty CHECK (settlement_count > 0),
    CONSTRAINT batch_digest CHECK (octet_length(content_sha256) = 32)
)""",
    """CREATE TABLE idempotency (
    client TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BYTEA NOT NULL,
    status SMALLINT NOT NULL,
    body JSON NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT idempotency_pk PRIMARY KEY (client, key),
    CONSTRAINT idempotency_key_length CHECK (length(key) between 1 and 255),
    CONSTRAINT idempotency_fingerprint_length CHECK (octet_length(fingerprint) = 32),
    CONSTRAINT idempotency_status_range CHECK (status between 200 and 499)
)""",
    """CREATE INDEX idempotency_created_at ON idempotency (created_at)""",
    """CREATE TABLE lease (
    name TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    holder TEXT NOT NULL,
    renewed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (name)
)""",
    """CREATE TABLE request_nonce (
    key_id TEXT NOT NULL,
    nonce TEXT NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT request_nonce_pk PRIMARY KEY (key_id, nonce)
)""",
    """CREATE INDEX request_nonce_expires_at ON request_nonce (expires_at)""",
    """CREATE TABLE reconciliation_run (
    id UUID NOT NULL,
    batch_id UUID NOT NULL,
    participant TEXT NOT NULL,
    currency TEXT NOT NULL,
    file_sha256 BYTEA NOT NULL,
    as_of DATE NOT NULL,
    lines_ours INTEGER NOT NULL,
    lines_theirs INTEGER NOT NULL,
    matched INTEGER NOT NULL,
    break_count INTEGER NOT NULL,
    run_by TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    FOREIGN KEY(batch_id) REFERENCES batch (id)
)""",
    """CREATE TABLE settlement (
    id UUID NOT NULL,
    batch_id UUID NOT NULL,
    position INTEGER NOT NULL,
    instruction_id TEXT NOT NULL,
    end_to_end_id TEXT NOT NULL,
    uetr UUID NOT NULL,
    debtor TEXT NOT NULL,
    creditor TEXT NOT NULL,
    value_date DATE NOT NULL,
    priority SMALLINT NOT NULL,
    rate TEXT,
    rate_provider TEXT,
    remainder_minor TEXT,
    state TEXT NOT NULL,
    epoch BIGINT,
    commit_hash BYTEA,
    abort_hash BYTEA,
    waits_for TEXT DEFAULT '' NOT NULL,
    prepared_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT settlement_uetr_once UNIQUE (uetr),
    CONSTRAINT settlement_position UNIQUE (batch_id, position),
    CONSTRAINT settlement_state CHECK (state IN
        ('received', 'prepared', 'committed', 'aborted', 'settled', 'cancelled')),
    CONSTRAINT settlement_parties_differ CHECK (debtor <> creditor),
    CONSTRAINT settlement_hashes CHECK (state = 'received' OR (epoch IS NOT NULL
        AND octet_length(commit_hash) = 32 AND octet_length(abort_hash) = 32 AND commit_hash <> abort_hash)),
    FOREIGN KEY(batch_id) REFERENCES batch (id)
)""",
    """CREATE INDEX settlement_open ON settlement (state) WHERE state IN ('prepared', 'committed', 'aborted')""",
    """CREATE INDEX settlement_queue ON settlement (priority, batch_id, position) WHERE state = 'received'""",
    """CREATE TABLE statement_file (
    id UUID NOT NULL,
    batch_id UUID NOT NULL,
    participant TEXT NOT NULL,
    currency TEXT NOT NULL,
    sequence_number INTEGER NOT NULL,
    entry_count INTEGER NOT NULL,
    file_name TEXT NOT NULL,
    sha256 BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT statement_file_sequence UNIQUE (participant, currency, sequence_number),
    FOREIGN KEY(batch_id) REFERENCES batch (id)
)""",
    """CREATE TABLE decision (
    settlement_id UUID NOT NULL,
    decision TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    decided_at TIMESTAMP WITH TIME ZONE NOT NULL,
    reason TEXT,
    detail TEXT DEFAULT '' NOT NULL,
    PRIMARY KEY (settlement_id),
    CONSTRAINT decision_i5 UNIQUE (settlement_id, decision),
    CONSTRAINT decision_kind CHECK (decision IN ('commit', 'abort')),
    CONSTRAINT decision_abort_has_reason CHECK ((decision = 'abort') = (reason IS NOT NULL)),
    FOREIGN KEY(settlement_id) REFERENCES settlement (id)
)""",
    """CREATE TABLE reconciliation_break (
    run_id UUID NOT NULL,
    number INTEGER NOT NULL,
    type TEXT NOT NULL,
    side TEXT,
    our_references JSON NOT NULL,
    their_references JSON NOT NULL,
    our_amount_minor BIGINT,
    their_amount_minor BIGINT,
    difference_minor BIGINT,
    age_days INTEGER NOT NULL,
    bucket TEXT NOT NULL,
    sentence TEXT NOT NULL,
    CONSTRAINT reconciliation_break_pk PRIMARY KEY (run_id, number),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id)
)""",
    """CREATE TABLE secret (
    settlement_id UUID NOT NULL,
    commit_secret BYTEA,
    abort_secret BYTEA,
    PRIMARY KEY (settlement_id),
    CONSTRAINT secret_i5 CHECK (commit_secret IS NOT NULL OR abort_secret IS NOT NULL),
    FOREIGN KEY(settlement_id) REFERENCES settlement (id)
)""",
    """CREATE TABLE leg (
    settlement_id UUID NOT NULL,
    number SMALLINT NOT NULL,
    ledger TEXT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    debit BIGINT NOT NULL,
    credit BIGINT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    state TEXT NOT NULL,
    detail TEXT DEFAULT '' NOT NULL,
    authorisation TEXT,
    decision TEXT,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT leg_pk PRIMARY KEY (settlement_id, number),
    CONSTRAINT leg_follows_decision_i5 FOREIGN KEY(settlement_id, decision) REFERENCES decision
        (settlement_id, decision),
    CONSTRAINT leg_amount_positive CHECK (amount_minor > 0),
    CONSTRAINT leg_i1 CHECK (debit <> credit),
    CONSTRAINT leg_state CHECK (state IN ('pending', 'held', 'refused', 'posted', 'voided')),
    CONSTRAINT leg_ends_as_decided_i5 CHECK ((state <> 'posted' OR decision IS NOT DISTINCT FROM 'commit') AND
        (state <> 'voided' OR decision IS NOT DISTINCT FROM 'abort')),
    FOREIGN KEY(settlement_id) REFERENCES settlement (id)
)""",
    """CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'I5: a decision is for ever' USING ERRCODE = 'restrict_violation';
END
$$""",
    """CREATE TRIGGER decision_is_for_ever_i5 BEFORE UPDATE OR DELETE OR TRUNCATE ON decision
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    raise NotImplementedError("the decision log is append-only: restore a backup instead")

"""Reconciliation: sources, mappings, runs, matches, breaks with their histories, repairs by two officers, control."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

STATEMENTS: tuple[str, ...] = (
    "DROP TABLE reconciliation_break",
    "DROP TABLE reconciliation_run",
    """CREATE TABLE reconciliation_mapping (
    participant TEXT NOT NULL,
    counterparty TEXT NOT NULL,
    version INTEGER NOT NULL,
    content JSON NOT NULL,
    sha256 BYTEA NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT reconciliation_mapping_pk PRIMARY KEY (participant, counterparty, version),
    CONSTRAINT reconciliation_mapping_version CHECK (version > 0),
    CONSTRAINT reconciliation_mapping_digest CHECK (octet_length(sha256) = 32)
)""",
    """CREATE TABLE reconciliation_source (
    id UUID NOT NULL,
    participant TEXT NOT NULL,
    counterparty TEXT NOT NULL,
    format TEXT NOT NULL,
    mapping_version INTEGER NOT NULL,
    sha256 BYTEA NOT NULL,
    byte_count BIGINT NOT NULL,
    line_count INTEGER NOT NULL,
    account TEXT,
    currency TEXT,
    statement_id TEXT,
    sequence_number BIGINT,
    opening_minor BIGINT,
    closing_minor BIGINT,
    to_at TIMESTAMP WITH TIME ZONE,
    message TEXT,
    created_by TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT reconciliation_source_once
        UNIQUE NULLS NOT DISTINCT (participant, counterparty, format, mapping_version, sha256, account),
    CONSTRAINT reconciliation_source_digest CHECK (octet_length(sha256) = 32),
    CONSTRAINT reconciliation_source_format CHECK
        (format IN ('camt.052', 'camt.053', 'camt.053-pages', 'camt.054', 'csv', 'parquet')),
    CONSTRAINT reconciliation_source_mapping CHECK (mapping_version >= 0)
)""",
    """CREATE TABLE reconciliation_run (
    id UUID NOT NULL,
    request_sha256 BYTEA NOT NULL,
    batch_id UUID,
    participant TEXT NOT NULL,
    counterparty TEXT NOT NULL,
    currency TEXT NOT NULL,
    account TEXT NOT NULL,
    view TEXT NOT NULL,
    our_source UUID NOT NULL,
    their_source UUID NOT NULL,
    selection JSON NOT NULL,
    rules JSON NOT NULL,
    as_of DATE NOT NULL,
    lines_ours INTEGER NOT NULL,
    lines_theirs INTEGER NOT NULL,
    carried_ours INTEGER NOT NULL,
    carried_theirs INTEGER NOT NULL,
    matched INTEGER NOT NULL,
    finding_count INTEGER NOT NULL,
    closed_count INTEGER NOT NULL,
    result_sha256 BYTEA NOT NULL,
    run_by TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT reconciliation_run_view CHECK (view IN ('same-account', 'mirror')),
    CONSTRAINT reconciliation_run_counts CHECK (matched >= 0 AND finding_count >= 0 AND lines_ours >= 0 AND
        lines_theirs >= 0),
    CONSTRAINT reconciliation_run_digests CHECK (octet_length(result_sha256) = 32 AND
        octet_length(request_sha256) = 32),
    FOREIGN KEY(batch_id) REFERENCES batch (id),
    FOREIGN KEY(our_source) REFERENCES reconciliation_source (id),
    FOREIGN KEY(their_source) REFERENCES reconciliation_source (id)
)""",
    """CREATE INDEX reconciliation_run_relation ON reconciliation_run (participant, currency, counterparty, id)""",
    """CREATE TABLE reconciliation_pairs (
    run_id UUID NOT NULL,
    number INTEGER NOT NULL,
    rule TEXT NOT NULL,
    count INTEGER NOT NULL,
    positions BYTEA NOT NULL,
    CONSTRAINT reconciliation_pairs_pk PRIMARY KEY (run_id, number),
    CONSTRAINT reconciliation_pairs_size CHECK (count > 0 AND octet_length(positions) = 8 * count),
    CONSTRAINT reconciliation_pairs_rule CHECK (rule IN ('uetr', 'end-to-end-id', 'reference')),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id)
)""",
    """CREATE TABLE reconciliation_match (
    run_id UUID NOT NULL,
    number INTEGER NOT NULL,
    rule TEXT NOT NULL,
    our_positions INTEGER[] NOT NULL,
    their_positions INTEGER[] NOT NULL,
    our_references TEXT[] NOT NULL,
    their_references TEXT[] NOT NULL,
    difference_minor BIGINT NOT NULL,
    CONSTRAINT reconciliation_match_pk PRIMARY KEY (run_id, number),
    CONSTRAINT reconciliation_match_sides CHECK (CASE rule
        WHEN 'reversed' THEN abs(cardinality(our_references) - cardinality(their_references)) = 2 AND
            cardinality(our_references || their_references) = 2 AND difference_minor = 0
        WHEN 'replaced' THEN cardinality(our_references || their_references) = 1 AND difference_minor = 0
        ELSE cardinality(our_references) > 0 AND cardinality(their_references) > 0 END),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id)
)""",
    """CREATE TABLE reconciliation_break (
    id UUID NOT NULL,
    run_id UUID,
    participant TEXT NOT NULL,
    counterparty TEXT NOT NULL,
    currency TEXT NOT NULL,
    account TEXT NOT NULL,
    view TEXT NOT NULL,
    key BYTEA NOT NULL,
    type TEXT NOT NULL,
    side TEXT,
    also TEXT[] NOT NULL,
    our_references TEXT[] NOT NULL,
    their_references TEXT[] NOT NULL,
    our_positions INTEGER[] NOT NULL,
    their_positions INTEGER[] NOT NULL,
    our_amount_minor BIGINT,
    their_amount_minor BIGINT,
    difference_minor NUMERIC(38, 0),
    gross JSON NOT NULL,
    gross_minor NUMERIC(38, 0) NOT NULL,
    oldest DATE NOT NULL,
    sentence TEXT NOT NULL,
    lines JSON,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT reconciliation_break_key CHECK (octet_length(key) = 32),
    CONSTRAINT reconciliation_break_side CHECK (side IN ('ours', 'theirs')),
    CONSTRAINT reconciliation_break_gross CHECK (gross_minor >= 0),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id)
)""",
    """CREATE TABLE reconciliation_finding (
    run_id UUID NOT NULL,
    number INTEGER NOT NULL,
    break_id UUID NOT NULL,
    CONSTRAINT reconciliation_finding_pk PRIMARY KEY (run_id, number),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id),
    FOREIGN KEY(break_id) REFERENCES reconciliation_break (id)
)""",
    """CREATE INDEX reconciliation_finding_break ON reconciliation_finding (break_id)""",
    """CREATE TABLE reconciliation_repair (
    id UUID NOT NULL,
    break_id UUID NOT NULL,
    kind TEXT NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    maker TEXT NOT NULL,
    maker_key TEXT NOT NULL,
    proposed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT reconciliation_repair_maker UNIQUE (id, maker, maker_key),
    CONSTRAINT reconciliation_repair_break UNIQUE (id, break_id),
    CONSTRAINT reconciliation_repair_kind CHECK (kind IN ('claim', 'instruction')),
    CONSTRAINT reconciliation_repair_terms CHECK (amount_minor > 0 AND payer <> payee),
    FOREIGN KEY(break_id) REFERENCES reconciliation_break (id)
)""",
    """CREATE TABLE reconciliation_approval (
    repair_id UUID NOT NULL,
    maker TEXT NOT NULL,
    maker_key TEXT NOT NULL,
    checker TEXT NOT NULL,
    checker_key TEXT NOT NULL,
    settlement_id UUID,
    approved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (repair_id),
    CONSTRAINT reconciliation_approval_of_repair FOREIGN KEY(repair_id, maker, maker_key) REFERENCES
        reconciliation_repair (id, maker, maker_key),
    CONSTRAINT reconciliation_four_eyes CHECK (checker <> maker AND checker_key <> maker_key),
    FOREIGN KEY(settlement_id) REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED
)""",
    """CREATE TABLE reconciliation_booking (
    repair_id UUID NOT NULL,
    break_id UUID NOT NULL,
    debtor TEXT NOT NULL,
    creditor TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    currency TEXT NOT NULL,
    settlement_id UUID,
    booked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (repair_id),
    CONSTRAINT reconciliation_booking_of_repair FOREIGN KEY(repair_id, break_id) REFERENCES
        reconciliation_repair (id, break_id),
    CONSTRAINT reconciliation_booking_break UNIQUE (repair_id, break_id),
    CONSTRAINT reconciliation_booking_i1 CHECK (amount_minor > 0 AND debtor <> creditor),
    FOREIGN KEY(repair_id) REFERENCES reconciliation_approval (repair_id)
)""",
    """CREATE TABLE reconciliation_event (
    break_id UUID NOT NULL,
    sequence INTEGER NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    actor TEXT NOT NULL,
    actor_key TEXT,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    reason TEXT NOT NULL,
    assignee TEXT,
    decision_id UUID,
    token TEXT,
    run_id UUID,
    match_number INTEGER,
    repair_id UUID,
    CONSTRAINT reconciliation_event_pk PRIMARY KEY (break_id, sequence),
    CONSTRAINT reconciliation_event_state_once UNIQUE (break_id, sequence, state),
    CONSTRAINT reconciliation_event_decision_once UNIQUE (decision_id, break_id),
    CONSTRAINT reconciliation_event_match FOREIGN KEY(run_id, match_number) REFERENCES reconciliation_match
        (run_id, number),
    CONSTRAINT reconciliation_event_repair FOREIGN KEY(repair_id, break_id) REFERENCES reconciliation_repair
        (id, break_id),
    CONSTRAINT reconciliation_event_state CHECK (state = CASE WHEN kind IN ('opened', 'released',
        'rejected', 'failed', 'reopened') THEN 'open' WHEN kind IN ('booked', 'explained', 'late-side',
        'rematched') THEN 'closed' WHEN kind IN ('assigned', 'proposed', 'approved') THEN kind END),
    CONSTRAINT reconciliation_event_assignee CHECK ((kind = 'assigned') = (assignee IS NOT NULL)),
    CONSTRAINT reconciliation_event_is_signed CHECK (kind IN ('opened', 'booked', 'failed', 'late-side') OR
        (decision_id IS NOT NULL AND token IS NOT NULL AND actor_key IS NOT NULL)),
    CONSTRAINT reconciliation_closed_with_explanation CHECK (kind <> 'explained' OR length(btrim(reason)) >=
        10),
    CONSTRAINT reconciliation_closed_with_booking CHECK (kind NOT IN ('proposed', 'approved', 'booked',
        'failed') OR repair_id IS NOT NULL),
    CONSTRAINT reconciliation_closed_by_late_side CHECK (kind <> 'late-side' OR run_id IS NOT NULL),
    CONSTRAINT reconciliation_closed_by_match CHECK (kind <> 'rematched' OR (run_id IS NOT NULL AND
        match_number IS NOT NULL)),
    FOREIGN KEY(break_id) REFERENCES reconciliation_break (id),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id)
)""",
    """CREATE TABLE reconciliation_status (
    break_id UUID NOT NULL,
    key BYTEA NOT NULL,
    participant TEXT NOT NULL,
    state TEXT NOT NULL,
    sequence INTEGER NOT NULL,
    assignee TEXT,
    PRIMARY KEY (break_id),
    CONSTRAINT reconciliation_status_is_an_event FOREIGN KEY(break_id, sequence, state) REFERENCES
        reconciliation_event (break_id, sequence, state),
    FOREIGN KEY(break_id) REFERENCES reconciliation_break (id)
)""",
    """CREATE UNIQUE INDEX reconciliation_status_open ON reconciliation_status (key) WHERE state <> 'closed'""",
    """CREATE INDEX reconciliation_status_closed ON reconciliation_status (key) WHERE state = 'closed'""",
    """CREATE INDEX reconciliation_status_work ON reconciliation_status (participant, break_id) WHERE state <>
    'closed'""",
    """CREATE TABLE reconciliation_unmatch (
    run_id UUID NOT NULL,
    our_position INTEGER NOT NULL,
    their_position INTEGER NOT NULL,
    break_id UUID NOT NULL,
    CONSTRAINT reconciliation_unmatch_pk PRIMARY KEY (run_id, our_position, their_position),
    FOREIGN KEY(run_id) REFERENCES reconciliation_run (id),
    FOREIGN KEY(break_id) REFERENCES reconciliation_break (id)
)""",
    "CREATE INDEX settlement_ended ON settlement (ended_at, id) WHERE ended_at IS NOT NULL",
    """CREATE TABLE control_point (
    number BIGINT NOT NULL,
    through_ended_at TIMESTAMP WITH TIME ZONE NOT NULL,
    through_settlement UUID NOT NULL,
    settlements INTEGER NOT NULL,
    legs INTEGER NOT NULL,
    alarms INTEGER NOT NULL,
    checked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (number),
    CONSTRAINT control_point_counts CHECK (number > 0 AND settlements >= 0 AND legs >= 0 AND alarms >= 0)
)""",
    """CREATE TABLE control_balance (
    ledger TEXT NOT NULL,
    account BIGINT NOT NULL,
    participant TEXT NOT NULL,
    currency TEXT NOT NULL,
    bridge_minor NUMERIC(38, 0) NOT NULL,
    island_minor NUMERIC(38, 0) NOT NULL,
    legs BIGINT NOT NULL,
    debits_minor NUMERIC(38, 0) NOT NULL,
    credits_minor NUMERIC(38, 0) NOT NULL,
    CONSTRAINT control_balance_pk PRIMARY KEY (ledger, account, participant, currency)
)""",
    # A history has no gaps, a closed break moves only by being reopened, and an adjustment is booked before a break is
    # closed by it. The states are those of settlement.domain.reconciliation.lifecycle.ALLOWED_FROM.
    """CREATE FUNCTION reconciliation_event_follows() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last reconciliation_event;
BEGIN
    SELECT * INTO last FROM reconciliation_event WHERE break_id = NEW.break_id ORDER BY sequence DESC LIMIT 1;
    IF NEW.sequence <> coalesce(last.sequence, 0) + 1 OR (NEW.kind = 'opened') <> (NEW.sequence = 1) THEN
        RAISE EXCEPTION 'reconciliation: an event does not follow the last one' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.kind <> 'opened' AND NOT (CASE last.state
        WHEN 'open' THEN NEW.kind IN ('assigned', 'proposed', 'explained', 'late-side', 'rematched')
        WHEN 'assigned' THEN NEW.kind IN ('assigned', 'released', 'proposed', 'explained', 'late-side', 'rematched')
        WHEN 'proposed' THEN NEW.kind IN ('approved', 'rejected')
        WHEN 'approved' THEN NEW.kind IN ('booked', 'failed')
        WHEN 'closed' THEN NEW.kind = 'reopened' AND last.kind <> 'booked'
        ELSE false END) THEN
        RAISE EXCEPTION 'reconciliation: this event cannot follow the last one' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.kind = 'approved' AND NOT EXISTS (SELECT FROM reconciliation_approval WHERE repair_id = NEW.repair_id) THEN
        RAISE EXCEPTION 'reconciliation: no second officer has approved' USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.kind = 'booked' AND NOT EXISTS (
        SELECT FROM reconciliation_booking b WHERE b.repair_id = NEW.repair_id AND b.break_id = NEW.break_id
    ) THEN
        RAISE EXCEPTION 'reconciliation: nothing is booked' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER reconciliation_event_follows BEFORE INSERT ON reconciliation_event
    FOR EACH ROW EXECUTE FUNCTION reconciliation_event_follows()""",
    # A booking is what was proposed and approved; one by an instruction stands only once its settlement is settled.
    """CREATE FUNCTION reconciliation_booking_follows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM reconciliation_repair r JOIN reconciliation_approval a ON a.repair_id = r.id
        WHERE r.id = NEW.repair_id AND r.payer = NEW.debtor AND r.payee = NEW.creditor
            AND r.amount_minor = NEW.amount_minor AND r.currency = NEW.currency
            AND a.settlement_id IS NOT DISTINCT FROM NEW.settlement_id
            AND (r.kind = 'instruction') = (NEW.settlement_id IS NOT NULL)
            AND (NEW.settlement_id IS NULL OR EXISTS (
                SELECT FROM settlement s JOIN leg l ON l.settlement_id = s.id
                WHERE s.id = NEW.settlement_id AND s.state = 'settled' AND l.payer = r.payer AND l.payee = r.payee
                    AND l.amount_minor = r.amount_minor AND l.currency = r.currency))
    ) THEN
        RAISE EXCEPTION 'reconciliation: the booking is not what was approved' USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER reconciliation_booking_follows BEFORE INSERT ON reconciliation_booking
    FOR EACH ROW EXECUTE FUNCTION reconciliation_booking_follows()""",
    """CREATE FUNCTION refuse_reconciliation_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'reconciliation: history is added to, never changed' USING ERRCODE = 'restrict_violation';
END
$$""",
    *(
        f"""CREATE TRIGGER {table}_is_for_ever BEFORE UPDATE OR DELETE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_reconciliation_change()"""
        for table in (
            "reconciliation_event",
            "reconciliation_break",
            "reconciliation_repair",
            "reconciliation_approval",
            "reconciliation_booking",
        )
    ),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

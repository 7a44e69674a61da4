"""Calendars and compliance: plans, clear-outs, cases, decisions, quotas; a received settlement may end unprepared."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS: tuple[str, ...] = (
    # A settlement that ends before any engine took it never had secrets, so there is nothing to commit with (I5).
    "ALTER TABLE settlement DROP CONSTRAINT settlement_hashes",
    """ALTER TABLE settlement ADD CONSTRAINT settlement_hashes CHECK (state = 'received'
        OR (state = 'cancelled' AND epoch IS NULL AND commit_hash IS NULL AND abort_hash IS NULL)
        OR (epoch IS NOT NULL AND octet_length(commit_hash) = 32 AND octet_length(abort_hash) = 32
            AND commit_hash <> abort_hash))""",
    """CREATE TABLE calendar_plan (
    settlement_id UUID PRIMARY KEY REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED,
    kind TEXT NOT NULL,
    missed TEXT NOT NULL,
    currencies TEXT[] NOT NULL,
    asked_value_date DATE NOT NULL,
    value_date DATE NOT NULL,
    window_from TIMESTAMP WITH TIME ZONE NOT NULL,
    window_until TIMESTAMP WITH TIME ZONE NOT NULL,
    calendars_sha256 BYTEA NOT NULL,
    is_assumed BOOLEAN NOT NULL,
    is_done BOOLEAN NOT NULL,
    planned_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT calendar_plan_kind CHECK (kind IN ('bank', 'customer')),
    CONSTRAINT calendar_plan_missed CHECK (missed IN ('roll', 'refuse')),
    CONSTRAINT calendar_plan_window CHECK (window_from < window_until),
    CONSTRAINT calendar_plan_currencies CHECK (cardinality(currencies) > 0),
    CONSTRAINT calendar_plan_digest CHECK (octet_length(calendars_sha256) = 32)
)""",
    "CREATE INDEX calendar_plan_due ON calendar_plan (window_from) WHERE NOT is_done",
    """CREATE TABLE calendar_event (
    id UUID PRIMARY KEY,
    settlement_id UUID NOT NULL REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED,
    event TEXT NOT NULL,
    value_date DATE NOT NULL,
    detail TEXT NOT NULL,
    happened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT calendar_event_kind CHECK (event IN ('opened', 'rolled', 'refused'))
)""",
    "CREATE INDEX calendar_event_of_settlement ON calendar_event (settlement_id, id)",
    """CREATE TABLE clear_out (
    id UUID PRIMARY KEY,
    currency TEXT NOT NULL,
    business_day DATE NOT NULL,
    made_by TEXT NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT clear_out_currency CHECK (currency ~ '^[A-Z]{3}$')
)""",
    """CREATE TABLE clear_out_line (
    clear_out_id UUID NOT NULL REFERENCES clear_out (id),
    number INTEGER NOT NULL,
    participant TEXT NOT NULL,
    returns_to TEXT NOT NULL,
    against TEXT NOT NULL,
    amount_minor BIGINT NOT NULL,
    uetr UUID NOT NULL,
    CONSTRAINT clear_out_line_pk PRIMARY KEY (clear_out_id, number),
    CONSTRAINT clear_out_line_once UNIQUE (clear_out_id, participant),
    CONSTRAINT clear_out_line_amount CHECK (amount_minor > 0),
    CONSTRAINT clear_out_line_parties CHECK (participant <> returns_to)
)""",
    """CREATE TABLE clear_out_approval (
    clear_out_id UUID PRIMARY KEY REFERENCES clear_out (id),
    approved_by TEXT NOT NULL,
    approved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    batch_id UUID NOT NULL REFERENCES batch (id)
)""",
    """CREATE TABLE compliance_case (
    settlement_id UUID PRIMARY KEY REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    parties JSON NOT NULL,
    opened_at TIMESTAMP WITH TIME ZONE NOT NULL,
    closed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT compliance_case_state CHECK (state IN ('review', 'refused', 'approved', 'rejected', 'lapsed')),
    CONSTRAINT compliance_case_closed CHECK
        ((state IN ('approved', 'rejected', 'lapsed')) = (closed_at IS NOT NULL) OR state = 'refused')
)""",
    "CREATE INDEX compliance_case_open ON compliance_case (settlement_id) WHERE closed_at IS NULL",
    """CREATE TABLE compliance_decision (
    id UUID PRIMARY KEY,
    settlement_id UUID NOT NULL REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED,
    verdict TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    is_officer BOOLEAN NOT NULL,
    key_thumbprint TEXT,
    versions TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at TIMESTAMP WITH TIME ZONE NOT NULL,
    institutions JSONB,
    CONSTRAINT compliance_decision_institutions CHECK (is_officer = (institutions IS NULL)),
    CONSTRAINT compliance_decision_verdict CHECK
        (verdict IN ('pass', 'review', 'refuse') AND NOT is_officer OR verdict IN ('approve', 'reject') AND is_officer),
    CONSTRAINT compliance_decision_signed CHECK (is_officer = (key_thumbprint IS NOT NULL)),
    CONSTRAINT compliance_decision_has_reason CHECK (NOT is_officer OR length(reason) > 0)
)""",
    """CREATE UNIQUE INDEX compliance_decision_officer_once ON compliance_decision (settlement_id, decided_by)
    WHERE is_officer""",
    """CREATE UNIQUE INDEX compliance_decision_key_once ON compliance_decision (settlement_id, key_thumbprint)
    WHERE is_officer""",
    "CREATE INDEX compliance_decision_of_settlement ON compliance_decision (settlement_id, id)",
    """CREATE TABLE quota_year (
    rule TEXT NOT NULL,
    direction TEXT NOT NULL,
    resident BYTEA NOT NULL,
    year SMALLINT NOT NULL,
    limit_minor BIGINT NOT NULL,
    used_numerator NUMERIC NOT NULL,
    used_denominator NUMERIC NOT NULL,
    CONSTRAINT quota_year_pk PRIMARY KEY (rule, direction, resident, year),
    CONSTRAINT quota_year_resident_hashed CHECK (octet_length(resident) = 32),
    CONSTRAINT quota_year_fraction CHECK (used_denominator > 0 AND used_numerator >= 0),
    CONSTRAINT quota_year_within_limit CHECK (used_numerator <= limit_minor * used_denominator)
)""",
    """CREATE TABLE quota_use (
    settlement_id UUID PRIMARY KEY REFERENCES settlement (id) DEFERRABLE INITIALLY DEFERRED,
    rule TEXT NOT NULL,
    direction TEXT NOT NULL,
    resident BYTEA NOT NULL,
    year SMALLINT NOT NULL,
    numerator NUMERIC NOT NULL,
    denominator NUMERIC NOT NULL,
    state TEXT NOT NULL,
    reserved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    ended_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT quota_use_of_year FOREIGN KEY (rule, direction, resident, year)
        REFERENCES quota_year (rule, direction, resident, year),
    CONSTRAINT quota_use_fraction CHECK (denominator > 0 AND numerator > 0),
    CONSTRAINT quota_use_state CHECK (state IN ('reserved', 'used', 'released')),
    CONSTRAINT quota_use_ended CHECK ((state = 'reserved') = (ended_at IS NULL))
)""",
    "CREATE INDEX quota_use_reserved ON quota_use (settlement_id) WHERE state = 'reserved'",
    # The gates' own rules, whatever program writes: four eyes for compliance, the window for the calendar.
    """CREATE FUNCTION refuse_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.kind = 'compliance' AND (
        (SELECT count(DISTINCT decided_by) FROM compliance_decision
            WHERE settlement_id = NEW.settlement_id AND verdict = 'approve') < 2
        OR EXISTS (SELECT FROM compliance_decision
            WHERE settlement_id = NEW.settlement_id AND verdict IN ('reject', 'refuse'))) THEN
        RAISE EXCEPTION 'four eyes: a compliance gate opens on the approval of two officers and no rejection'
            USING ERRCODE = 'restrict_violation';
    END IF;
    IF NEW.kind = 'calendar' AND NOT EXISTS (SELECT FROM calendar_plan WHERE settlement_id = NEW.settlement_id
        AND window_from <= NEW.opened_at AND NEW.opened_at < window_until) THEN
        RAISE EXCEPTION 'hours: a calendar gate opens within the window of its plan'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER gate_opens_by_its_rule BEFORE UPDATE ON gate FOR EACH ROW
    WHEN (NEW.opened_at IS NOT NULL AND OLD.opened_at IS NULL) EXECUTE FUNCTION refuse_gate()""",
    # What is quoted anew has nobody in its legs whom the screens did not pass, or officers do not judge.
    """CREATE FUNCTION check_institutions_screened() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM compliance_decision WHERE settlement_id = NEW.settlement_id AND NOT is_officer)
        AND EXISTS (
            SELECT FROM leg CROSS JOIN LATERAL (VALUES (payer), (payee)) AS of_leg (party)
            WHERE leg.settlement_id = NEW.settlement_id AND NOT EXISTS (
                SELECT FROM compliance_decision AS d WHERE d.settlement_id = NEW.settlement_id AND NOT d.is_officer
                AND (d.institutions ->> party = 'pass' OR d.verdict <> 'pass' AND d.institutions ? party))
        ) THEN
        RAISE EXCEPTION 'compliance: settlement % was quoted anew with an institution that was not screened',
            NEW.settlement_id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$""",
    """CREATE CONSTRAINT TRIGGER fx_institutions_are_screened AFTER UPDATE OF attempt ON fx_execution
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION check_institutions_screened()""",
    # No program takes a settlement past a closed gate, or when its window is over, except to abort it.
    """CREATE FUNCTION refuse_gated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM gate WHERE settlement_id = NEW.id AND opened_at IS NULL) THEN
        RAISE EXCEPTION 'a gate of settlement % is closed', NEW.id USING ERRCODE = 'restrict_violation';
    END IF;
    IF EXISTS (SELECT FROM calendar_plan WHERE settlement_id = NEW.id AND window_until <= NEW.prepared_at) THEN
        RAISE EXCEPTION 'hours: the window of settlement % is over', NEW.id USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER settlement_waits_at_gates BEFORE UPDATE OF state ON settlement FOR EACH ROW
    WHEN (OLD.state = 'received' AND NEW.state = 'prepared' AND NEW.abort_requested_at IS NULL)
    EXECUTE FUNCTION refuse_gated()""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

"""Liquidity: limits, runs of the queue, and netting settlements with the instructions they stand for.

What the database keeps by itself, beside the code (I5): a netted instruction is settled if and only if its netting
settlement is committed, with the same time of finality; an aborted netting settlement keeps none; its legs are what
the netted instructions add up to, participant by participant and currency by currency. A run that needs approval
does not start without two persons, one run is under way at a time, it starts within its instructions' hours and the
limits of its payers (sums of its own over today's payments), and nobody's limit is above the operator's cap.
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE settlement ADD COLUMN nets BOOLEAN DEFAULT false NOT NULL,"
    " ADD COLUMN netted_by UUID REFERENCES settlement (id),"
    " ADD CONSTRAINT settlement_netted_i5 CHECK (netted_by IS NULL OR state IN ('received', 'settled') AND NOT nets),"
    " DROP CONSTRAINT settlement_hashes,"
    " ADD CONSTRAINT settlement_hashes CHECK (state = 'received'"
    " OR (state = 'cancelled' AND epoch IS NULL AND commit_hash IS NULL AND abort_hash IS NULL)"
    " OR (state = 'settled' AND netted_by IS NOT NULL AND epoch IS NULL AND commit_hash IS NULL"
    " AND abort_hash IS NULL)"
    " OR (epoch IS NOT NULL AND octet_length(commit_hash) = 32 AND octet_length(abort_hash) = 32"
    " AND commit_hash <> abort_hash))",
    "CREATE INDEX settlement_netted ON settlement (netted_by) WHERE netted_by IS NOT NULL",
    "CREATE INDEX decision_decided_at ON decision USING brin (decided_at)",
    "ALTER TABLE leg DROP CONSTRAINT leg_state, DROP CONSTRAINT leg_number, DROP CONSTRAINT leg_ends_as_decided_i5,"
    " ADD CONSTRAINT leg_state CHECK (state IN ('pending', 'held', 'refused', 'posted', 'voided', 'netted')),"
    " ADD CONSTRAINT leg_number CHECK (number BETWEEN 0 AND 499),"
    " ADD CONSTRAINT leg_ends_as_decided_i5 CHECK ((state NOT IN ('posted', 'netted')"
    " OR decision IS NOT DISTINCT FROM 'commit') AND (state <> 'voided' OR decision IS NOT DISTINCT FROM 'abort'))",
    """CREATE TABLE liquidity_limit (
    id UUID NOT NULL PRIMARY KEY,
    participant TEXT NOT NULL,
    currency TEXT NOT NULL,
    kind TEXT NOT NULL,
    counterparty TEXT,
    amount_minor BIGINT,
    valid_from DATE NOT NULL,
    is_operator BOOLEAN NOT NULL,
    set_by TEXT NOT NULL,
    set_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT liquidity_limit_kind CHECK (kind IN ('bilateral', 'multilateral', 'cap')),
    CONSTRAINT liquidity_limit_counterparty CHECK ((kind = 'bilateral') = (counterparty IS NOT NULL)),
    CONSTRAINT liquidity_limit_parties_differ CHECK (counterparty <> participant),
    CONSTRAINT liquidity_limit_amount CHECK (amount_minor >= 0),
    CONSTRAINT liquidity_limit_operator_caps CHECK (NOT is_operator OR kind = 'cap')
)""",
    "CREATE INDEX liquidity_limit_of ON liquidity_limit (participant, currency, valid_from)",
    """CREATE TABLE liquidity_run (
    id UUID NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    method TEXT NOT NULL,
    settle_as TEXT NOT NULL,
    needs_approval BOOLEAN NOT NULL,
    queue_count INTEGER NOT NULL,
    taken_count INTEGER NOT NULL,
    taken_sha256 BYTEA NOT NULL,
    positions_read_at TIMESTAMP WITH TIME ZONE NOT NULL,
    summary JSONB NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    started_by TEXT,
    started_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    reason TEXT DEFAULT '' NOT NULL,
    netting_id UUID REFERENCES settlement (id) UNIQUE,
    round SMALLINT,
    CONSTRAINT liquidity_run_state CHECK (state IN ('previewed', 'running', 'settled', 'aborted')),
    CONSTRAINT liquidity_run_method CHECK (method IN ('strict', 'overtaking', 'optimise')),
    CONSTRAINT liquidity_run_settle_as CHECK (settle_as IN ('net', 'gross')),
    CONSTRAINT liquidity_run_optimise_is_approved CHECK (needs_approval OR method <> 'optimise'),
    CONSTRAINT liquidity_run_digest CHECK (octet_length(taken_sha256) = 32),
    CONSTRAINT liquidity_run_counts CHECK (taken_count BETWEEN 0 AND queue_count),
    CONSTRAINT liquidity_run_times CHECK ((state = 'previewed') = (started_at IS NULL)
        AND (started_at IS NULL) = (started_by IS NULL)
        AND (state IN ('settled', 'aborted')) = (ended_at IS NOT NULL)),
    CONSTRAINT liquidity_run_netting CHECK (state = 'previewed' OR (settle_as = 'net') = (netting_id IS NOT NULL))
)""",
    "CREATE UNIQUE INDEX liquidity_run_one_at_a_time ON liquidity_run (state) WHERE state = 'running'",
    """CREATE TABLE liquidity_run_item (
    run_id UUID NOT NULL REFERENCES liquidity_run (id),
    place INTEGER NOT NULL,
    settlement_id UUID NOT NULL REFERENCES settlement (id),
    stage TEXT,
    round SMALLINT,
    sentence TEXT NOT NULL,
    needs JSONB NOT NULL,
    is_worked_out BOOLEAN NOT NULL,
    CONSTRAINT liquidity_run_item_pk PRIMARY KEY (run_id, place),
    CONSTRAINT liquidity_run_item_once UNIQUE (run_id, settlement_id)
)""",
    """CREATE TABLE liquidity_approval (
    run_id UUID NOT NULL REFERENCES liquidity_run (id),
    person TEXT NOT NULL,
    token TEXT NOT NULL,
    approved_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT liquidity_approval_pk PRIMARY KEY (run_id, person)
)""",
    # A netting settlement, when it is decided: looked at when the transaction ends, whatever the order of its writes.
    """CREATE FUNCTION check_netting_i5() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.state = 'committed' THEN
        IF NOT EXISTS (SELECT FROM settlement WHERE netted_by = NEW.id)
           OR EXISTS (SELECT FROM settlement WHERE netted_by = NEW.id AND state <> 'settled') THEN
            RAISE EXCEPTION 'I5: netting % is committed and its instructions are not settled', NEW.id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        IF EXISTS (
            SELECT party, currency FROM (
                SELECT payer AS party, currency, -amount_minor::numeric AS amount FROM leg
                    JOIN settlement ON settlement.id = settlement_id WHERE netted_by = NEW.id
                UNION ALL SELECT payee, currency, amount_minor FROM leg
                    JOIN settlement ON settlement.id = settlement_id WHERE netted_by = NEW.id
                UNION ALL SELECT payer, currency, amount_minor FROM leg WHERE settlement_id = NEW.id
                UNION ALL SELECT payee, currency, -amount_minor::numeric FROM leg WHERE settlement_id = NEW.id
            ) AS moved GROUP BY party, currency HAVING sum(amount) <> 0
        ) THEN
            RAISE EXCEPTION 'netting % does not pay what its instructions add up to', NEW.id
                USING ERRCODE = 'integrity_constraint_violation';
        END IF;
    ELSIF NEW.state IN ('aborted', 'cancelled') AND EXISTS (SELECT FROM settlement WHERE netted_by = NEW.id) THEN
        RAISE EXCEPTION 'I5: netting % is aborted and keeps instructions', NEW.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$""",
    """CREATE CONSTRAINT TRIGGER netting_is_whole_i5 AFTER UPDATE OF state ON settlement
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.nets) EXECUTE FUNCTION check_netting_i5()""",
    """CREATE FUNCTION check_netted_i5() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (
        SELECT FROM decision AS own JOIN decision AS netting ON netting.settlement_id = NEW.netted_by
        WHERE own.settlement_id = NEW.id AND own.decision = 'commit' AND netting.decision = 'commit'
        AND own.decided_at = netting.decided_at
    ) THEN
        RAISE EXCEPTION 'I5: instruction % is settled and its netting is not committed with it', NEW.id
            USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NULL;
END
$$""",
    """CREATE CONSTRAINT TRIGGER netted_follows_i5 AFTER UPDATE OF state ON settlement
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.netted_by IS NOT NULL AND NEW.state = 'settled')
    EXECUTE FUNCTION check_netted_i5()""",
    """CREATE FUNCTION refuse_other_netting_i5() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF OLD.state = 'settled' OR EXISTS (
        SELECT FROM settlement AS netting WHERE netting.id IN (OLD.netted_by, NEW.netted_by)
        AND netting.state IN ('committed', 'settled')
    ) OR (NEW.netted_by IS NOT NULL
          AND NOT EXISTS (SELECT FROM settlement AS netting WHERE netting.id = NEW.netted_by AND netting.nets)) THEN
        RAISE EXCEPTION 'I5: what a netting settlement stands for is fixed when it is committed'
            USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER netting_is_fixed_i5 BEFORE UPDATE OF netted_by ON settlement
    FOR EACH ROW WHEN (OLD.netted_by IS DISTINCT FROM NEW.netted_by) EXECUTE FUNCTION refuse_other_netting_i5()""",
    """CREATE FUNCTION check_limit_within_cap() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE cap BIGINT;
BEGIN
    SELECT amount_minor INTO cap FROM liquidity_limit
    WHERE is_operator AND participant = NEW.participant AND currency = NEW.currency AND valid_from <= NEW.valid_from
    ORDER BY valid_from DESC, set_at DESC, id DESC LIMIT 1;
    IF cap < NEW.amount_minor THEN
        RAISE EXCEPTION 'a limit of % is above the operator''s cap of %', NEW.amount_minor, cap
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER limit_within_cap BEFORE INSERT ON liquidity_limit
    FOR EACH ROW WHEN (NOT NEW.is_operator) EXECUTE FUNCTION check_limit_within_cap()""",
    """CREATE FUNCTION check_two_persons() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (SELECT count(*) FROM liquidity_approval WHERE run_id = NEW.id) < 2 THEN
        RAISE EXCEPTION 'run % breaks the queue''s order and has not been approved by two persons', NEW.id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER run_out_of_order_has_two_persons BEFORE UPDATE OF state ON liquidity_run
    FOR EACH ROW WHEN (NEW.needs_approval AND NEW.state = 'running') EXECUTE FUNCTION check_two_persons()""",
    # Limits count what is final today. Only one run is under way, so what a run takes is all that comes on top.
    """CREATE FUNCTION check_run_start() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    broken RECORD;
BEGIN
    IF EXISTS (
        SELECT FROM liquidity_run_item AS item JOIN calendar_plan AS plan USING (settlement_id)
        WHERE item.run_id = NEW.id AND item.stage IS NOT NULL
        AND NOT (plan.window_from <= NEW.started_at AND NEW.started_at < plan.window_until)
    ) THEN
        RAISE EXCEPTION 'hours: run % starts outside the window of an instruction', NEW.id
            USING ERRCODE = 'restrict_violation', CONSTRAINT = 'run_within_hours';
    END IF;
    IF NOT EXISTS (SELECT FROM liquidity_limit) THEN
        RETURN NEW;
    END IF;
    WITH in_force AS (
        SELECT participant, currency, kind, counterparty, min(amount_minor) AS amount_minor FROM (
            SELECT DISTINCT ON (participant, currency, kind, counterparty, is_operator) * FROM liquidity_limit
            WHERE valid_from <= (NEW.started_at AT TIME ZONE 'UTC')::date
            ORDER BY participant, currency, kind, counterparty, is_operator, valid_from DESC, set_at DESC, id DESC
        ) AS latest WHERE amount_minor IS NOT NULL GROUP BY participant, currency, kind, counterparty
    ), moved AS (
        SELECT leg.payer, leg.payee, leg.currency, leg.amount_minor::numeric, true AS is_chosen
        FROM liquidity_run_item AS item JOIN leg USING (settlement_id)
        WHERE item.run_id = NEW.id AND item.stage IS NOT NULL
        UNION ALL
        SELECT leg.payer, leg.payee, leg.currency, leg.amount_minor, false
        FROM decision JOIN settlement ON settlement.id = decision.settlement_id JOIN leg USING (settlement_id)
        WHERE decision.decision = 'commit' AND NOT settlement.nets
        AND decision.decided_at >= date_trunc('day', NEW.started_at, 'UTC')
        AND ((leg.payer, leg.currency) IN (SELECT participant, currency FROM in_force)
            OR (leg.payee, leg.currency) IN (SELECT participant, currency FROM in_force))
    ), signed AS (
        SELECT payer AS who, payee AS other, currency, amount_minor, is_chosen FROM moved
        UNION ALL SELECT payee, payer, currency, -amount_minor, is_chosen FROM moved
    )
    SELECT l.participant, l.currency, l.kind INTO broken FROM in_force AS l
        JOIN signed AS m ON m.who = l.participant AND m.currency = l.currency AND (
            l.kind = 'cap' OR l.kind = 'bilateral' AND m.other = l.counterparty
            OR l.kind = 'multilateral' AND NOT EXISTS (SELECT FROM in_force AS own WHERE own.kind = 'bilateral'
                AND own.participant = m.who AND own.currency = m.currency AND own.counterparty = m.other))
        GROUP BY l.participant, l.currency, l.kind, l.counterparty, l.amount_minor
        HAVING sum(m.amount_minor) > l.amount_minor AND sum(m.amount_minor) FILTER (WHERE m.is_chosen) > 0
        LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'run % would pass the % limit of % in %',
            NEW.id, broken.kind, broken.participant, broken.currency
            USING ERRCODE = 'check_violation', CONSTRAINT = 'run_within_limits';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER run_starts_within_hours_and_limits BEFORE UPDATE OF state ON liquidity_run
    FOR EACH ROW WHEN (OLD.state = 'previewed' AND NEW.state = 'running') EXECUTE FUNCTION check_run_start()""",
    # A netting under way stands for an execution's legs as they are: nothing replaces them then (I5).
    """CREATE OR REPLACE FUNCTION fx_remove_legs(execution UUID) RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT AS $$
DECLARE
    removed INTEGER;
BEGIN
    PERFORM 1 FROM settlement s JOIN fx_execution e ON e.settlement_id = s.id
        WHERE s.id = execution AND s.state = 'received' AND s.abort_requested_at IS NULL AND s.netted_by IS NULL
        FOR UPDATE OF s;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'legs are replaced only before the engine takes them' USING ERRCODE = 'restrict_violation';
    END IF;
    DELETE FROM leg WHERE settlement_id = execution;
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END
$$""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

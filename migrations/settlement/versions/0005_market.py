"""The FX market: quotes and what each provider signed, locks that never exceed a quote's size, executions, evidence."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS: tuple[str, ...] = (
    """CREATE TABLE fx_quote (
    id UUID NOT NULL,
    provider TEXT NOT NULL,
    base TEXT NOT NULL,
    counter TEXT NOT NULL,
    revision INTEGER NOT NULL,
    bid TEXT,
    bid_size_minor BIGINT NOT NULL,
    bid_used_minor BIGINT DEFAULT '0' NOT NULL,
    offer TEXT,
    offer_size_minor BIGINT NOT NULL,
    offer_used_minor BIGINT DEFAULT '0' NOT NULL,
    fee_ppm INTEGER NOT NULL,
    priority BIGINT NOT NULL,
    issued_at TIMESTAMP WITH TIME ZONE NOT NULL,
    valid_until TIMESTAMP WITH TIME ZONE NOT NULL,
    posted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    withdrawn_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT fx_quote_pair CHECK (base <> counter),
    CONSTRAINT fx_quote_bounds CHECK (revision > 0 AND fee_ppm BETWEEN 0 AND 50000),
    CONSTRAINT fx_quote_bid CHECK ((bid IS NULL) = (bid_size_minor = 0)),
    CONSTRAINT fx_quote_offer CHECK ((offer IS NULL) = (offer_size_minor = 0)),
    CONSTRAINT fx_quote_one_side CHECK (bid IS NOT NULL OR offer IS NOT NULL),
    CONSTRAINT fx_quote_bid_not_overused CHECK (bid_used_minor BETWEEN 0 AND bid_size_minor),
    CONSTRAINT fx_quote_offer_not_overused CHECK (offer_used_minor BETWEEN 0 AND offer_size_minor),
    CONSTRAINT fx_quote_lifetime CHECK (issued_at < valid_until AND valid_until <= issued_at + interval '1 hour')
)""",
    "CREATE INDEX fx_quote_live ON fx_quote (valid_until) WHERE withdrawn_at IS NULL",
    "CREATE INDEX fx_quote_provider ON fx_quote (provider, id)",
    """CREATE TABLE fx_quote_revision (
    quote_id UUID NOT NULL REFERENCES fx_quote (id),
    revision INTEGER NOT NULL,
    place BIGINT GENERATED ALWAYS AS IDENTITY NOT NULL,
    token TEXT NOT NULL,
    posted_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT fx_quote_revision_pk PRIMARY KEY (quote_id, revision)
)""",
    """CREATE TABLE fx_execution (
    settlement_id UUID NOT NULL REFERENCES settlement (id),
    uetr UUID NOT NULL,
    submitter TEXT NOT NULL,
    request_sha256 BYTEA NOT NULL,
    payer TEXT NOT NULL,
    payee TEXT NOT NULL,
    sell TEXT NOT NULL,
    buy TEXT NOT NULL,
    is_sale BOOLEAN NOT NULL,
    given_minor BIGINT NOT NULL,
    received_minor BIGINT NOT NULL,
    least_received_minor BIGINT,
    most_given_minor BIGINT,
    on_expiry TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    lock_expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    is_locked BOOLEAN DEFAULT true NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (settlement_id),
    CONSTRAINT fx_execution_uetr_once UNIQUE (uetr),
    CONSTRAINT fx_execution_positive CHECK (given_minor > 0 AND received_minor > 0),
    CONSTRAINT fx_execution_within_limit CHECK (
        (least_received_minor IS NULL OR received_minor >= least_received_minor)
        AND (most_given_minor IS NULL OR given_minor <= most_given_minor)),
    CONSTRAINT fx_execution_on_expiry CHECK (on_expiry IN ('abort', 'requote')),
    CONSTRAINT fx_execution_attempt CHECK (attempt > 0),
    CONSTRAINT fx_execution_digest CHECK (octet_length(request_sha256) = 32)
)""",
    "CREATE INDEX fx_execution_lock ON fx_execution (lock_expires_at) WHERE is_locked",
    """CREATE TABLE fx_execution_report (
    settlement_id UUID NOT NULL REFERENCES fx_execution (settlement_id),
    attempt INTEGER NOT NULL,
    report JSON NOT NULL,
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT fx_execution_report_pk PRIMARY KEY (settlement_id, attempt)
)""",
    """CREATE TABLE fx_fill (
    settlement_id UUID NOT NULL REFERENCES fx_execution (settlement_id),
    attempt INTEGER NOT NULL,
    number SMALLINT NOT NULL,
    hop SMALLINT NOT NULL,
    quote_id UUID REFERENCES fx_quote (id),
    revision INTEGER NOT NULL,
    side TEXT NOT NULL,
    provider TEXT NOT NULL,
    source TEXT NOT NULL,
    given_minor BIGINT NOT NULL,
    target TEXT NOT NULL,
    received_minor BIGINT NOT NULL,
    base_minor BIGINT NOT NULL,
    price TEXT NOT NULL,
    fee_ppm INTEGER NOT NULL,
    fee_minor TEXT NOT NULL,
    rounding_minor TEXT NOT NULL,
    state TEXT NOT NULL,
    decision TEXT,
    is_returned BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT fx_fill_pk PRIMARY KEY (settlement_id, attempt, number),
    CONSTRAINT fx_fill_follows_decision FOREIGN KEY (settlement_id, decision)
        REFERENCES decision (settlement_id, decision),
    CONSTRAINT fx_fill_positive CHECK (given_minor > 0 AND received_minor >= 0 AND base_minor > 0),
    CONSTRAINT fx_fill_side CHECK (side IN ('bid', 'offer')),
    CONSTRAINT fx_fill_state CHECK (state IN ('reserved', 'consumed', 'released')),
    CONSTRAINT fx_fill_consumed_by_commit CHECK (state <> 'consumed' OR decision IS NOT DISTINCT FROM 'commit'),
    CONSTRAINT fx_fill_returned_if_released CHECK (NOT is_returned OR state = 'released')
)""",
    "CREATE INDEX fx_fill_quote ON fx_fill (quote_id)",
    "CREATE INDEX fx_fill_provider ON fx_fill (provider, target)",
    "CREATE INDEX fx_fill_to_return ON fx_fill (settlement_id) WHERE state = 'released' AND NOT is_returned",
    # Every locked amount is added to its quote's row, whatever wrote the fill; the row's CHECK refuses too much. It is
    # a use of what the provider has signed and not withdrawn, for a settlement that is not decided. What was locked
    # stays what it was, and ends once: consumed or released, then returned to the quote once.
    """CREATE FUNCTION fx_fill_counts() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    change BIGINT;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NEW.state <> 'reserved' OR NEW.is_returned THEN
            RAISE EXCEPTION 'a fill begins reserved' USING ERRCODE = 'check_violation';
        END IF;
        IF EXISTS (SELECT FROM decision WHERE settlement_id = NEW.settlement_id) THEN
            RAISE EXCEPTION 'settlement % is decided: nothing is locked for it', NEW.settlement_id
                USING ERRCODE = 'restrict_violation';
        END IF;
        IF NEW.quote_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM fx_quote AS q WHERE q.id = NEW.quote_id AND q.withdrawn_at IS NULL
            AND (q.provider, q.revision, q.fee_ppm) = (NEW.provider, NEW.revision, NEW.fee_ppm)
            AND CASE NEW.side
                WHEN 'bid' THEN q.bid IS NOT NULL AND (q.base, q.counter) = (NEW.source, NEW.target)
                    AND NEW.base_minor = NEW.given_minor
                ELSE q.offer IS NOT NULL AND (q.counter, q.base) = (NEW.source, NEW.target)
                    AND NEW.base_minor >= NEW.received_minor END
        ) THEN
            RAISE EXCEPTION 'fx_fill_as_quoted: a fill of quote % is not what its provider signed', NEW.quote_id
                USING ERRCODE = 'check_violation';
        END IF;
        change := NEW.base_minor;
    ELSE
        IF (NEW.settlement_id, NEW.attempt, NEW.number, NEW.quote_id, NEW.side, NEW.base_minor, NEW.given_minor,
                NEW.received_minor, NEW.rounding_minor)
            IS DISTINCT FROM (OLD.settlement_id, OLD.attempt, OLD.number, OLD.quote_id, OLD.side, OLD.base_minor,
                OLD.given_minor, OLD.received_minor, OLD.rounding_minor)
            OR (OLD.state <> 'reserved' AND NEW.state <> OLD.state) OR (OLD.is_returned AND NOT NEW.is_returned)
        THEN
            RAISE EXCEPTION 'a fill stays what it is and ends once' USING ERRCODE = 'restrict_violation';
        END IF;
        change := CASE WHEN NEW.is_returned AND NOT OLD.is_returned THEN -NEW.base_minor ELSE 0 END;
    END IF;
    IF NEW.quote_id IS NOT NULL AND change <> 0 THEN
        UPDATE fx_quote SET
            bid_used_minor = bid_used_minor + CASE WHEN NEW.side = 'bid' THEN change ELSE 0 END,
            offer_used_minor = offer_used_minor + CASE WHEN NEW.side = 'offer' THEN change ELSE 0 END
        WHERE id = NEW.quote_id;
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER fx_fill_counts BEFORE INSERT OR UPDATE ON fx_fill
    FOR EACH ROW EXECUTE FUNCTION fx_fill_counts()""",
    # In the decision's own transaction, whoever writes it: COMMIT consumes what was locked, ABORT releases it. Quotes'
    # rows are not touched here, so that a decision waits for nobody in the market; released size returns afterwards.
    """CREATE FUNCTION fx_fill_follows_decision() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE fx_fill SET
        state = CASE made.decision WHEN 'commit' THEN 'consumed' ELSE 'released' END,
        decision = made.decision
    FROM made
    WHERE fx_fill.settlement_id = made.settlement_id AND fx_fill.state = 'reserved';
    UPDATE fx_execution SET is_locked = false FROM made WHERE fx_execution.settlement_id = made.settlement_id;
    RETURN NULL;
END
$$""",
    """CREATE TRIGGER fx_fill_follows_decision AFTER INSERT ON decision REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION fx_fill_follows_decision()""",
    # Conserved to the minor unit, checked at the transaction's end: the legs move exactly what the fills and the
    # execution say, for every party in every currency.
    """CREATE FUNCTION fx_execution_conserved() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM (
        SELECT payee AS party, currency, amount_minor AS change FROM leg WHERE settlement_id = NEW.settlement_id
        UNION ALL SELECT payer, currency, -amount_minor FROM leg WHERE settlement_id = NEW.settlement_id
        UNION ALL SELECT provider, source, -given_minor FROM fx_fill
            WHERE settlement_id = NEW.settlement_id AND attempt = NEW.attempt
        UNION ALL SELECT provider, target, received_minor FROM fx_fill
            WHERE settlement_id = NEW.settlement_id AND attempt = NEW.attempt
        UNION ALL SELECT NEW.payer, NEW.sell, NEW.given_minor
        UNION ALL SELECT NEW.payee, NEW.buy, -NEW.received_minor
    ) moved GROUP BY party, currency HAVING sum(change) <> 0;
    IF FOUND THEN
        RAISE EXCEPTION 'fx_execution_conserved: the legs of % are not its fills', NEW.settlement_id
            USING ERRCODE = 'check_violation';
    END IF;
    RETURN NULL;
END
$$""",
    """CREATE CONSTRAINT TRIGGER fx_execution_conserved AFTER INSERT OR UPDATE OF attempt, given_minor, received_minor
    ON fx_execution DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fx_execution_conserved()""",
    # A re-quote replaces the legs of an execution that nobody has been asked about yet. The service's role may delete
    # no leg itself; this function, which runs as the tables' owner, does it for nothing else.
    """CREATE FUNCTION fx_remove_legs(execution UUID) RETURNS INTEGER LANGUAGE plpgsql SECURITY DEFINER
    SET search_path FROM CURRENT AS $$
DECLARE
    removed INTEGER;
BEGIN
    PERFORM 1 FROM settlement s JOIN fx_execution e ON e.settlement_id = s.id
        WHERE s.id = execution AND s.state = 'received' AND s.abort_requested_at IS NULL FOR UPDATE OF s;
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

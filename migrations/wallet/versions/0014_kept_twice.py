"""Rules of the service's own, kept a second time by the database alone: what children spend and what is spent under a
holder's own caps, added up anew; no way out but payments for a wallet whose rules are decided payment by payment; and
what a program says it holds, has released and returned, against its parts and what the payer has signed for each.

The functions run as the tables' owner, whom row security may not bind: every statement names the tenant. The service's
role can read what they write and change none of it.
"""

from __future__ import annotations

from alembic import op

from kernel.row_security import CURRENT, protect

revision = "0014"
down_revision = "0013"

TABLES = ("balance_cap", "capped_wallet", "spent_day")
_TENANT = f"tenant TEXT NOT NULL DEFAULT {CURRENT}"
_FUNCTIONS = (
    "spending_take_payments",
    "spending_follow",
    "spending_begin",
    "refuse_round_own_rules",
    "refuse_program_begun",
    "refuse_hold_unsigned",
    "refuse_hold_changed",
    "program_count_holds",
)
_AS_OWNER = "LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp"

STATEMENTS = (
    # The cap on the balance is the ledger's to keep: what of it the ledger has been told.
    f"""CREATE TABLE balance_cap (
    wallet_id UUID NOT NULL,
    version INTEGER NOT NULL,
    told_version INTEGER NOT NULL,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    {_TENANT},
    CONSTRAINT balance_cap_pk PRIMARY KEY (wallet_id, tenant),
    CONSTRAINT balance_cap_wallet_id_fk FOREIGN KEY (wallet_id, tenant) REFERENCES wallet (id, tenant),
    CONSTRAINT balance_cap_told_ck CHECK (0 <= told_version AND told_version <= version),
    CONSTRAINT balance_cap_tenant_ck CHECK (tenant <> '')
)""",
    """CREATE INDEX balance_cap_untold ON balance_cap (wallet_id) WHERE told_version < version""",
    f"""CREATE TABLE capped_wallet (
    wallet_id UUID NOT NULL,
    {_TENANT},
    CONSTRAINT capped_wallet_pk PRIMARY KEY (wallet_id, tenant),
    CONSTRAINT capped_wallet_wallet_id_fk FOREIGN KEY (wallet_id, tenant) REFERENCES wallet (id, tenant),
    CONSTRAINT capped_wallet_tenant_ck CHECK (tenant <> '')
)""",
    f"""CREATE TABLE spent_day (
    wallet_id UUID NOT NULL,
    day DATE NOT NULL,
    spent_minor BIGINT NOT NULL,
    child_minor BIGINT NOT NULL,
    {_TENANT},
    CONSTRAINT spent_day_pk PRIMARY KEY (wallet_id, day, tenant),
    CONSTRAINT spent_day_wallet_id_fk FOREIGN KEY (wallet_id, tenant) REFERENCES capped_wallet (wallet_id, tenant),
    CONSTRAINT spent_day_minor_ck CHECK (0 <= child_minor AND child_minor <= spent_minor),
    CONSTRAINT spent_day_tenant_ck CHECK (tenant <> '')
)""",
    # What one row of a table counts towards, and how much: nothing without a day. A program's single payments are its
    # holds; their change is spent. What a child pays to its parent counts towards no cap of the child's own. `tried` is
    # when the row says that it was sent; of a program, when it is looked at again, seconds later.
    """CREATE FUNCTION spending_of(source text, item jsonb, OUT tenant text, OUT wallet_id uuid, OUT day date,
    OUT minor bigint, OUT child_minor bigint, OUT largest_minor bigint, OUT tried timestamptz)
LANGUAGE plpgsql STABLE AS $$
BEGIN
    tenant := item ->> 'tenant';
    wallet_id := item ->> 'wallet_id';
    day := item ->> 'counted_on';
    minor := coalesce(item ->> 'amount_minor', item ->> 'funded_minor')::bigint;
    largest_minor := minor;
    tried := coalesce(item ->> 'tried_at', item ->> 'wake_at', item ->> 'created_at')::timestamptz;
    IF source = 'purse_funding' THEN
        SELECT purse.wallet_id INTO spending_of.wallet_id FROM purse
        WHERE purse.id = (item ->> 'purse_id')::uuid AND purse.tenant = spending_of.tenant;
        IF item ->> 'state' = 'refused' THEN
            day := NULL;
        END IF;
    ELSIF source = 'program' THEN
        minor := minor - (item ->> 'returned_minor')::bigint + (item ->> 'change_minor')::bigint;
        SELECT max(amount_minor) INTO largest_minor FROM program_hold AS part
        WHERE part.program_id = (item ->> 'id')::uuid AND part.tenant = spending_of.tenant;
    END IF;
    child_minor := CASE WHEN EXISTS (
        SELECT FROM child_wallet AS child WHERE child.wallet_id = spending_of.wallet_id
        AND child.tenant = spending_of.tenant AND child.parent_account = (item ->> 'credit_account')::bigint
    ) THEN 0 ELSE minor END;
END
$$""",
    # A capped wallet's row is the lock: the sums below are of what is committed, and of this.
    """CREATE FUNCTION spending_count(item record, takes boolean, is_new boolean) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    own record;
    child record;
    spent record;
    broken text;
    is_known boolean;
BEGIN
    IF item.day IS NULL THEN
        RETURN;
    END IF;
    PERFORM FROM capped_wallet AS capped
    WHERE capped.wallet_id = item.wallet_id AND capped.tenant = item.tenant FOR UPDATE;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    is_known := EXISTS (SELECT FROM spent_day AS known WHERE known.wallet_id = item.wallet_id AND known.day = item.day
        AND known.tenant = item.tenant);
    IF takes THEN
        INSERT INTO spent_day AS before (wallet_id, day, spent_minor, child_minor, tenant)
        VALUES (item.wallet_id, item.day, item.minor, item.child_minor, item.tenant)
        ON CONFLICT ON CONSTRAINT spent_day_pk DO UPDATE SET spent_minor = before.spent_minor + excluded.spent_minor,
            child_minor = before.child_minor + excluded.child_minor;
    ELSE
        UPDATE spent_day AS before SET spent_minor = before.spent_minor - item.minor,
            child_minor = before.child_minor - item.child_minor
        WHERE before.wallet_id = item.wallet_id AND before.day = item.day AND before.tenant = item.tenant;
    END IF;
    IF NOT is_new THEN
        RETURN;  -- it is given back, or the ledger has booked it already: no cap undoes that
    END IF;
    SELECT single_max_minor, day_max_minor, year_max_minor INTO own FROM wallet
    WHERE wallet.id = item.wallet_id AND wallet.tenant = item.tenant;
    SELECT single_max_minor, day_max_minor, total_max_minor INTO child FROM child_wallet
    WHERE child_wallet.wallet_id = item.wallet_id AND child_wallet.tenant = item.tenant;
    SELECT sum(spent_minor) FILTER (WHERE day = item.day) AS day_minor,
        sum(spent_minor) FILTER (WHERE date_trunc('year', day) = date_trunc('year', item.day)) AS year_minor,
        sum(child_minor) FILTER (WHERE day = item.day) AS child_day_minor, sum(child_minor) AS child_total_minor,
        max(day) AS last_day
    INTO spent FROM spent_day WHERE spent_day.wallet_id = item.wallet_id AND spent_day.tenant = item.tenant;
    broken := CASE
        WHEN spent.last_day > item.day THEN 'spent_forward_i9'
        -- In whatever time zone: dated otherwise, each payment would find a new day's allowance.
        WHEN NOT is_known AND abs(item.day - (item.tried AT TIME ZONE 'UTC')::date) > 1 THEN 'spent_dated_i9'
        WHEN item.largest_minor > own.single_max_minor THEN 'spent_single_i9'
        WHEN spent.day_minor > own.day_max_minor THEN 'spent_day_i9'
        WHEN spent.year_minor > own.year_max_minor THEN 'spent_year_i9'
        WHEN item.child_minor = 0 THEN NULL
        WHEN item.largest_minor > child.single_max_minor THEN 'spent_single_i9'
        WHEN spent.child_day_minor > child.day_max_minor THEN 'spent_day_i9'
        WHEN spent.child_total_minor > child.total_max_minor THEN 'spent_total_i9'
    END;
    IF broken IS NOT NULL THEN
        RAISE EXCEPTION 'a cap of the wallet''s own is passed' USING ERRCODE = 'check_violation', CONSTRAINT = broken;
    END IF;
END
$$""",
    # Payments come many to a statement, and hardly any are of a capped wallet.
    f"""CREATE FUNCTION spending_take_payments() RETURNS trigger {_AS_OWNER} AS $$
DECLARE
    item record;
BEGIN
    FOR item IN
        SELECT said.* FROM fresh, LATERAL (  -- LIMIT: looked up one by one, however the plan was once made
            SELECT FROM capped_wallet AS capped
            WHERE capped.wallet_id = fresh.wallet_id AND capped.tenant = fresh.tenant LIMIT 1
        ) AS capped, LATERAL spending_of('payment', to_jsonb(fresh)) AS said
        ORDER BY said.wallet_id, fresh.id
    LOOP
        PERFORM spending_count(item, true, true);
    END LOOP;
    RETURN NULL;
END
$$""",
    f"""CREATE FUNCTION spending_follow() RETURNS trigger {_AS_OWNER} AS $$
DECLARE
    before record;
    after record;
    is_new boolean := TG_OP = 'INSERT';
BEGIN
    IF TG_OP <> 'INSERT' THEN
        SELECT * INTO before FROM spending_of(TG_TABLE_NAME, to_jsonb(OLD));
        PERFORM spending_count(before, false, false);
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT * INTO after FROM spending_of(TG_TABLE_NAME, to_jsonb(NEW));
        IF TG_OP = 'UPDATE' THEN
            -- Sent for the first time, or once more after a refusal; not: found booked. What is moved to another day,
            -- wallet or payee has to fit there, whatever has become of it.
            is_new := (NEW.state IN ('initiated', 'funding') AND (before.day IS NULL OR after.minor > before.minor))
                OR (before.day IS NOT NULL AND (before.day, before.wallet_id) <> (after.day, after.wallet_id))
                OR after.child_minor - before.child_minor > after.minor - before.minor;
        END IF;
        PERFORM spending_count(after, true, is_new);
    END IF;
    RETURN NULL;
END
$$""",
    # From its first own cap on a wallet is counted, for ever; what it has spent until then is added up once.
    f"""CREATE FUNCTION spending_begin() RETURNS trigger {_AS_OWNER} AS $$
DECLARE
    capped uuid := coalesce(to_jsonb(NEW) ->> 'wallet_id', to_jsonb(NEW) ->> 'id');
BEGIN
    INSERT INTO capped_wallet (wallet_id, tenant) VALUES (capped, NEW.tenant) ON CONFLICT DO NOTHING;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    INSERT INTO spent_day (wallet_id, day, spent_minor, child_minor, tenant)
    SELECT capped, said.day, sum(said.minor), sum(said.child_minor), NEW.tenant FROM (
        SELECT 'payment' AS source, to_jsonb(payment) AS item FROM payment
        WHERE payment.wallet_id = capped AND payment.tenant = NEW.tenant
        UNION ALL SELECT 'program', to_jsonb(program) FROM program
        WHERE program.wallet_id = capped AND program.tenant = NEW.tenant
        UNION ALL SELECT 'redemption', to_jsonb(redemption) FROM redemption
        WHERE redemption.wallet_id = capped AND redemption.tenant = NEW.tenant
        UNION ALL SELECT 'purse_funding', to_jsonb(loaded) FROM purse_funding AS loaded
        WHERE loaded.tenant = NEW.tenant AND loaded.purse_id IN (
            SELECT purse.id FROM purse WHERE purse.wallet_id = capped AND purse.tenant = NEW.tenant
        )
    ) AS every, LATERAL spending_of(every.source, every.item) AS said
    WHERE said.day IS NOT NULL GROUP BY said.day;
    RETURN NULL;
END
$$""",
    # Counted from its funding on, which is an UPDATE; it has its parts by then.
    """CREATE FUNCTION refuse_program_begun() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a program begins as a proposal'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'program_begins_proposed_i9';
END
$$""",
    # Read from what was signed, not from what the service has made of it.
    f"""CREATE FUNCTION refuse_round_own_rules() RETURNS trigger {_AS_OWNER} AS $$
DECLARE
    said text := convert_from(jws_part(NEW.instruction, 2), 'UTF8')::jsonb -> 'terms' ->> 'debit';
    debit bigint := substring(said FROM '^acc_([0-9]+)[0-9]{{2}}$');
BEGIN
    IF debit IS NULL
        OR EXISTS (SELECT FROM payment_control WHERE account = debit AND tenant = NEW.tenant AND is_in_force)
        OR EXISTS (SELECT FROM child_wallet WHERE account = debit AND tenant = NEW.tenant)
        OR EXISTS (SELECT FROM hardware_card WHERE account = debit AND tenant = NEW.tenant)
    THEN
        RAISE EXCEPTION 'a wallet with rules of its own pays by payments alone'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'pays_by_payments_i8';
    END IF;
    RETURN NEW;
END
$$""",
    # A program's money is what its payer has signed, part by part: read from the instruction, as the ledger reads it.
    """CREATE FUNCTION refuse_hold_unsigned() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    said jsonb := convert_from(jws_part(NEW.instruction, 2), 'UTF8')::jsonb -> 'terms';
BEGIN
    IF (said ->> 'kind', said ->> 'id', said ->> 'amount_minor')
        IS DISTINCT FROM ('hold', 'trf_' || NEW.id, NEW.amount_minor::text)
    THEN
        RAISE EXCEPTION 'a part of a program is not the hold that was signed'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'program_hold_as_signed_i8';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE FUNCTION refuse_hold_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a part of a program stays what it was, and ends once'
        USING ERRCODE = 'check_violation', CONSTRAINT = 'program_hold_stays_i6';
END
$$""",
    # At the transaction's end, when both sides are written. The program's row is the lock.
    f"""CREATE FUNCTION program_count_holds() RETURNS trigger {_AS_OWNER} AS $$
DECLARE
    counted uuid := coalesce(to_jsonb(NEW) ->> 'program_id', to_jsonb(NEW) ->> 'id');
    said record;
    parts record;
    change numeric;
BEGIN
    SELECT * INTO said FROM program WHERE program.id = counted AND program.tenant = NEW.tenant FOR UPDATE;
    SELECT sum(amount_minor) AS all_minor, coalesce(sum(amount_minor) FILTER (WHERE state = 'held'), 0) AS held_minor,
        coalesce(sum(amount_minor) FILTER (WHERE state = 'released'), 0) AS released_minor
    INTO parts FROM program_hold AS part WHERE part.program_id = counted AND part.tenant = NEW.tenant;
    SELECT coalesce(sum(spend.change_minor), 0) INTO change FROM program_spend AS spend
    WHERE spend.program_id = counted AND spend.tenant = NEW.tenant AND spend.state = 'final'
    AND spend.change_to = 'issuer';
    IF said.funded_minor IS DISTINCT FROM parts.all_minor OR said.state IN ('active', 'finished')
        AND (said.held_minor, said.released_minor + said.change_minor, said.change_minor)
            <> (parts.held_minor, parts.released_minor, change)
    THEN
        RAISE EXCEPTION 'a program does not say what its parts say'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'program_is_its_parts_i3';
    END IF;
    RETURN NULL;
END
$$""",
    """CREATE TRIGGER spending_begins AFTER INSERT ON child_wallet FOR EACH ROW EXECUTE FUNCTION spending_begin()""",
    """CREATE TRIGGER spending_begins AFTER INSERT OR UPDATE OF single_max_minor, day_max_minor, year_max_minor
    ON wallet FOR EACH ROW WHEN (num_nonnulls(NEW.single_max_minor, NEW.day_max_minor, NEW.year_max_minor) > 0)
    EXECUTE FUNCTION spending_begin()""",
    """CREATE TRIGGER spending_new_i9 AFTER INSERT ON payment REFERENCING NEW TABLE AS fresh
    FOR EACH STATEMENT EXECUTE FUNCTION spending_take_payments()""",
    """CREATE TRIGGER spending_changed_i9 AFTER UPDATE ON payment FOR EACH ROW
    WHEN (OLD.counted_on IS DISTINCT FROM NEW.counted_on OR OLD.amount_minor <> NEW.amount_minor
        OR OLD.wallet_id <> NEW.wallet_id OR OLD.credit_account <> NEW.credit_account)
    EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_forgotten_i9 AFTER DELETE ON payment FOR EACH ROW
    WHEN (OLD.counted_on IS NOT NULL) EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_new_i9 AFTER INSERT ON redemption FOR EACH ROW EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_changed_i9 AFTER UPDATE ON redemption FOR EACH ROW
    WHEN (OLD.counted_on IS DISTINCT FROM NEW.counted_on OR OLD.amount_minor <> NEW.amount_minor
        OR OLD.wallet_id <> NEW.wallet_id)
    EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_new_i9 AFTER INSERT ON purse_funding FOR EACH ROW EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_changed_i9 AFTER UPDATE ON purse_funding FOR EACH ROW
    WHEN ((OLD.state = 'refused') <> (NEW.state = 'refused') OR OLD.amount_minor <> NEW.amount_minor
        OR OLD.counted_on IS DISTINCT FROM NEW.counted_on OR OLD.purse_id <> NEW.purse_id)
    EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER spending_changed_i9 AFTER UPDATE ON program FOR EACH ROW
    WHEN (OLD.counted_on IS DISTINCT FROM NEW.counted_on OR OLD.funded_minor <> NEW.funded_minor
        OR OLD.returned_minor - OLD.change_minor <> NEW.returned_minor - NEW.change_minor
        OR OLD.wallet_id <> NEW.wallet_id)
    EXECUTE FUNCTION spending_follow()""",
    """CREATE TRIGGER program_begins_proposed_i9 BEFORE INSERT ON program FOR EACH ROW
    WHEN (NEW.state <> 'proposed' OR NEW.counted_on IS NOT NULL) EXECUTE FUNCTION refuse_program_begun()""",
    """CREATE TRIGGER program_hold_as_signed_i8 BEFORE INSERT OR UPDATE OF instruction ON program_hold FOR EACH ROW
    WHEN (NEW.instruction IS NOT NULL) EXECUTE FUNCTION refuse_hold_unsigned()""",
    """CREATE TRIGGER program_hold_stays_i6 BEFORE UPDATE ON program_hold FOR EACH ROW
    WHEN (OLD.id <> NEW.id OR OLD.program_id <> NEW.program_id OR OLD.amount_minor <> NEW.amount_minor
        OR OLD.instruction <> NEW.instruction OR OLD.state <> NEW.state AND OLD.state IN ('released', 'returned'))
    EXECUTE FUNCTION refuse_hold_changed()""",
    *(
        f"""CREATE CONSTRAINT TRIGGER program_is_its_parts_i3 AFTER INSERT OR UPDATE OF {columns} ON {table}
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION program_count_holds()"""
        for table, columns in (
            ("program", "state, funded_minor, held_minor, released_minor, returned_minor, change_minor"),
            ("program_hold", "state"),
        )
    ),
    *(
        f"""CREATE TRIGGER pays_by_payments_i8 BEFORE INSERT OR UPDATE OF instruction ON {table} FOR EACH ROW
    WHEN (NEW.instruction IS NOT NULL) EXECUTE FUNCTION refuse_round_own_rules()"""
        for table in ("program_hold", "purse_funding", "redemption")
    ),
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    protect(op.get_bind(), TABLES)
    # These act as their owner. The right to execute is asked for when a trigger is made, not when it fires: without it
    # the service cannot hang them on a table of its own.
    for function in (*_FUNCTIONS, "payment_refuse_unapproved"):
        op.execute(f"REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC")


def downgrade() -> None:
    for function in _FUNCTIONS:
        op.execute(f"DROP FUNCTION {function} CASCADE")
    op.execute("DROP FUNCTION spending_count")
    op.execute("DROP FUNCTION spending_of")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")

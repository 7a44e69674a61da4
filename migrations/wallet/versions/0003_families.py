"""Parent and child wallets, hardware wallets, corporate owners, aliases."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"

# Above what one signature alone may pay, at once and in a day, a corporate wallet pays nothing without another person's
# approval of exactly that. The database counts the day by itself, payment by payment; what the service has counted in
# `payment_control` is not asked. What an instruction says and by which key is read here; that it verifies, elsewhere.
SAYS = """CREATE FUNCTION jws_part(token text, part integer) RETURNS bytea LANGUAGE sql IMMUTABLE STRICT AS $$
    SELECT decode(rpad(said, (length(said) + 3) / 4 * 4, '='), 'base64')
    FROM translate(split_part(token, '.', part), '-_', '+/') AS said
$$"""
CONTROLLED = """CREATE FUNCTION payment_hold_to_control(ids uuid[], institution text) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    counted_ids uuid[];
    counted_days date[];
BEGIN
    WITH counted AS (INSERT INTO payment_alone (payment_id, day, wallet_id, amount_minor, tenant)
    SELECT paid.id, GREATEST(
        coalesce(paid.counted_on, (paid.tried_at AT TIME ZONE rules.time_zone)::date),
        (SELECT max(day) FROM payment_alone before
            WHERE before.wallet_id = paid.wallet_id AND before.tenant = paid.tenant)
    ), paid.wallet_id, GREATEST(paid.amount_minor, (
        convert_from(jws_part(paid.instruction, 2), 'UTF8')::jsonb -> 'terms' ->> 'amount_minor')::bigint
    ), paid.tenant
    FROM payment paid JOIN payment_control rules USING (wallet_id, tenant)
    WHERE paid.id = ANY (ids) AND paid.tenant = institution AND rules.is_in_force AND NOT EXISTS (
        SELECT FROM payment_approval approved JOIN payment_signatory maker USING (wallet_id, version, tenant)
        WHERE approved.payment_id = paid.id AND approved.wallet_id = paid.wallet_id AND approved.tenant = institution
        AND approved.version = rules.version AND approved.withdrawn_at IS NULL AND approved.valid_until > paid.tried_at
        AND approved.digest = sha256(jws_part(paid.instruction, 2))
        AND maker.thumbprint = convert_from(jws_part(paid.instruction, 1), 'UTF8')::jsonb ->> 'kid'
        AND maker.person <> approved.checker
    )
    ON CONFLICT DO NOTHING RETURNING payment_id, day)
    SELECT array_agg(payment_id), array_agg(day) INTO counted_ids, counted_days FROM counted;
    -- What was counted before, under other rules perhaps, is not judged again.
    IF EXISTS (
        SELECT FROM unnest(counted_ids, counted_days) AS new (payment_id, day)
        JOIN payment_alone USING (payment_id, day) JOIN payment_control USING (wallet_id, tenant)
        WHERE tenant = institution AND is_in_force AND amount_minor > alone_max_minor
    ) THEN
        RAISE EXCEPTION 'a payment above what one signature may pay has no approval'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_approved_i8';
    END IF;
    IF EXISTS (
        SELECT FROM payment_alone counted JOIN payment_control USING (wallet_id, tenant)
        WHERE tenant = institution AND is_in_force AND (wallet_id, day) IN (
            SELECT wallet_id, day FROM payment_alone JOIN unnest(counted_ids, counted_days) AS new (payment_id, day)
            USING (payment_id, day) WHERE tenant = institution
        )
        GROUP BY wallet_id, day, alone_day_max_minor HAVING sum(counted.amount_minor) > alone_day_max_minor
    ) THEN
        RAISE EXCEPTION 'one signature has paid all that it may in a day'
            USING ERRCODE = 'check_violation', CONSTRAINT = 'payment_alone_day_i9';
    END IF;
END
$$"""
# As the tables' owner, whom row security may not bind, so every statement names the tenant (a column of migration
# 0011): the service's role reads `payment_alone` and can write nothing into it.
APPROVED = """CREATE FUNCTION payment_refuse_unapproved() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        PERFORM payment_hold_to_control(ARRAY[NEW.id], NEW.tenant);
    ELSIF EXISTS (SELECT FROM fresh JOIN payment_control USING (wallet_id, tenant) WHERE is_in_force) THEN
        PERFORM payment_hold_to_control(array_agg(id), tenant) FROM fresh GROUP BY tenant;
    END IF;
    RETURN NULL;
END
$$"""


def upgrade() -> None:
    op.create_table(
        "family_member",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.CheckConstraint("role IN ('parent', 'child')", name=op.f("family_member_role_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("family_member_wallet_id_fk")),
        sa.PrimaryKeyConstraint("wallet_id", name=op.f("family_member_pk")),
        sa.UniqueConstraint("wallet_id", "role", name="family_member_one_role_uq"),
    )
    op.create_table(
        "child_wallet",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=False),
        sa.Column("parent_role", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=True),
        sa.Column("parent_account", sa.BigInteger(), nullable=False),
        sa.Column("merchant_account", sa.BigInteger(), nullable=True),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=True),
        sa.Column("balance_max_minor", sa.BigInteger(), nullable=True),
        sa.Column("single_max_minor", sa.BigInteger(), nullable=True),
        sa.Column("day_max_minor", sa.BigInteger(), nullable=True),
        sa.Column("total_max_minor", sa.BigInteger(), nullable=True),
        sa.Column("used_on", sa.Date(), nullable=False),
        sa.Column("used_day_minor", sa.BigInteger(), nullable=False),
        sa.Column("used_total_minor", sa.BigInteger(), nullable=False),
        sa.Column("day_floor_minor", sa.BigInteger(), nullable=False),
        sa.Column("total_floor_minor", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'open') = (ended_at IS NULL)", name=op.f("child_wallet_ended_ck")),
        sa.CheckConstraint("role = 'child' AND parent_role = 'parent'", name=op.f("child_wallet_depth_one_ck")),
        sa.CheckConstraint(
            "sealed_key IS NULL OR (merchant_account IS NOT NULL AND state = 'open')",
            name=op.f("child_wallet_sealed_key_ck"),
        ),
        sa.CheckConstraint("state IN ('open', 'revoked', 'closed')", name=op.f("child_wallet_state_ck")),
        sa.CheckConstraint(
            "0 <= used_day_minor AND used_day_minor <= used_total_minor", name=op.f("child_wallet_used_ck")
        ),
        sa.CheckConstraint(
            "balance_max_minor >= 0 AND single_max_minor >= 0 AND day_max_minor >= 0 AND total_max_minor >= 0",
            name=op.f("child_wallet_caps_ck"),
        ),
        sa.CheckConstraint(
            "day_max_minor IS NULL OR used_day_minor <= GREATEST(day_max_minor, day_floor_minor)",
            name=op.f("child_wallet_day_i9_ck"),
        ),
        sa.CheckConstraint(
            "merchant_account <> parent_account AND merchant_account <> account", name=op.f("child_wallet_merchant_ck")
        ),
        sa.CheckConstraint(
            "merchant_account IS NULL OR total_max_minor IS NOT NULL", name=op.f("child_wallet_push_has_a_cap_ck")
        ),
        sa.CheckConstraint(
            "total_max_minor IS NULL OR used_total_minor <= GREATEST(total_max_minor, total_floor_minor)",
            name=op.f("child_wallet_total_i9_ck"),
        ),
        sa.CheckConstraint("wallet_id <> parent_id", name=op.f("child_wallet_not_its_own_parent_ck")),
        sa.ForeignKeyConstraint(["account"], ["wallet.account"], name=op.f("child_wallet_account_fk")),
        sa.ForeignKeyConstraint(["parent_account"], ["wallet.account"], name=op.f("child_wallet_parent_account_fk")),
        sa.ForeignKeyConstraint(
            ["parent_id", "parent_role"],
            ["family_member.wallet_id", "family_member.role"],
            name="child_wallet_has_parent_fk",
        ),
        sa.ForeignKeyConstraint(
            ["wallet_id", "role"], ["family_member.wallet_id", "family_member.role"], name="child_wallet_is_child_fk"
        ),
        sa.PrimaryKeyConstraint("wallet_id", name=op.f("child_wallet_pk")),
        sa.UniqueConstraint("account", name=op.f("child_wallet_account_uq")),
    )
    op.create_index("child_wallet_parent", "child_wallet", ["parent_id", "wallet_id"], unique=False)
    op.create_table(
        "child_credit",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.ForeignKeyConstraint(["wallet_id"], ["child_wallet.wallet_id"], name=op.f("child_credit_wallet_id_fk")),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("child_credit_pk")),
    )
    op.create_index("child_credit_wallet", "child_credit", ["wallet_id"], unique=False)
    op.create_table(
        "hardware_card",
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("counter_last", sa.BigInteger(), nullable=False),
        sa.Column("pin_free_single_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("pin_free_total_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("attested_single_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("attested_total_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("attestation", sa.Text(), nullable=False),
        sa.Column("pin_free_minor", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("suspended_why", sa.Text(), nullable=True),
        sa.Column("suspended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("evidence_first", sa.Text(), nullable=True),
        sa.Column("evidence_second", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "pin_free_single_max_minor <= attested_single_max_minor"
            " AND pin_free_total_max_minor <= attested_total_max_minor",
            name=op.f("hardware_card_attested_i9_ck"),
        ),
        sa.UniqueConstraint("issuer", "serial", name="hardware_card_serial"),
        sa.CheckConstraint(
            "num_nonnulls(evidence_first, evidence_second) = CASE suspended_why WHEN 'cloned' THEN 2 ELSE 0 END",
            name=op.f("hardware_card_clone_is_proved_ck"),
        ),
        sa.CheckConstraint(
            "num_nonnulls(suspended_why, suspended_at) = CASE state WHEN 'suspended' THEN 2 ELSE 0 END",
            name=op.f("hardware_card_suspended_says_why_ck"),
        ),
        sa.CheckConstraint("state IN ('active', 'suspended')", name=op.f("hardware_card_state_ck")),
        sa.CheckConstraint(
            "suspended_why IN ('reported', 'cloned', 'revoked')", name=op.f("hardware_card_suspended_why_ck")
        ),
        sa.CheckConstraint(
            "0 <= pin_free_minor AND pin_free_minor <= pin_free_total_max_minor",
            name=op.f("hardware_card_pin_free_i9_ck"),
        ),
        sa.CheckConstraint("0 <= pin_free_single_max_minor", name=op.f("hardware_card_pin_free_single_ck")),
        sa.CheckConstraint("counter_last BETWEEN 0 AND 4294967295", name=op.f("hardware_card_counter_ck")),
        sa.ForeignKeyConstraint(["account"], ["wallet.account"], name=op.f("hardware_card_account_fk")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("hardware_card_wallet_id_fk")),
        sa.PrimaryKeyConstraint("thumbprint", name=op.f("hardware_card_pk")),
    )
    op.create_index("hardware_card_account", "hardware_card", ["account"], unique=False)
    op.create_index("hardware_card_wallet", "hardware_card", ["wallet_id", "thumbprint"], unique=False)
    op.create_table(
        "card_counter",
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("instruction", sa.Text(), nullable=False),
        sa.CheckConstraint("counter BETWEEN 1 AND 4294967295", name=op.f("card_counter_counter_ck")),
        sa.ForeignKeyConstraint(["thumbprint"], ["hardware_card.thumbprint"], name=op.f("card_counter_thumbprint_fk")),
        sa.PrimaryKeyConstraint("thumbprint", "counter", name="card_counter_pk"),
        sa.UniqueConstraint("payment_id", name=op.f("card_counter_payment_id_uq")),
    )
    op.create_table(
        "corporate_customer",
        sa.Column("customer_id", sa.Uuid(), nullable=False),
        sa.Column("legal_data", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["customer_id"], ["customer.id"], name=op.f("corporate_customer_customer_id_fk")),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("corporate_customer_pk")),
    )
    op.create_table(
        "wallet_alias",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("alias_hash", sa.LargeBinary(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("code_hash", sa.LargeBinary(), nullable=True),
        sa.Column("code_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("tries_left", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(state = 'pending') = (code_hash IS NOT NULL) AND (state = 'pending') = (code_until IS NOT NULL)",
            name=op.f("wallet_alias_pending_has_code_ck"),
        ),
        sa.CheckConstraint(
            "(state IN ('refused', 'removed')) = (ended_at IS NOT NULL)", name=op.f("wallet_alias_ended_ck")
        ),
        sa.CheckConstraint("NOT is_default OR state = 'verified'", name=op.f("wallet_alias_default_is_verified_ck")),
        sa.CheckConstraint("kind IN ('phone', 'email')", name=op.f("wallet_alias_kind_ck")),
        sa.CheckConstraint("state <> 'verified' OR verified_at IS NOT NULL", name=op.f("wallet_alias_verified_ck")),
        sa.CheckConstraint(
            "state IN ('pending', 'verified', 'refused', 'removed')", name=op.f("wallet_alias_state_ck")
        ),
        sa.CheckConstraint("octet_length(alias_hash) = 32", name=op.f("wallet_alias_hash_ck")),
        sa.CheckConstraint("tries_left BETWEEN 0 AND 5", name=op.f("wallet_alias_tries_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("wallet_alias_wallet_id_fk")),
        sa.PrimaryKeyConstraint("id", name=op.f("wallet_alias_pk")),
    )
    op.create_index(
        "wallet_alias_default",
        "wallet_alias",
        ["alias_hash", "currency"],
        unique=True,
        postgresql_where=sa.text("is_default"),
    )
    op.create_index(
        "wallet_alias_once",
        "wallet_alias",
        ["alias_hash", "wallet_id"],
        unique=True,
        postgresql_where=sa.text("state = 'verified'"),
    )
    op.create_index("wallet_alias_sent", "wallet_alias", ["alias_hash", "created_at"], unique=False)
    op.create_index("wallet_alias_wallet", "wallet_alias", ["wallet_id", "id"], unique=False)
    op.create_table(
        "alias_lookup_count",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("hour", sa.DateTime(timezone=True), nullable=False),
        sa.Column("lookups", sa.Integer(), nullable=False),
        sa.Column("in_files", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "lookups BETWEEN 0 AND 30 AND in_files BETWEEN 0 AND 40000", name=op.f("alias_lookup_count_bounded_ck")
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("alias_lookup_count_wallet_id_fk")),
        sa.PrimaryKeyConstraint("wallet_id", "hour", name="alias_lookup_count_pk"),
    )
    _controls()


def _controls() -> None:
    op.create_table(
        "card_revocation",
        sa.Column("issuer", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("issuer", "serial", name="card_revocation_pk"),
    )
    op.create_table(
        "payment_control",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("account", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("is_in_force", sa.Boolean(), nullable=False),
        sa.Column("alone_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("alone_day_max_minor", sa.BigInteger(), nullable=False),
        sa.Column("alone_on", sa.Date(), nullable=False),
        sa.Column("alone_minor", sa.BigInteger(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("version >= 1", name=op.f("payment_control_version_ck")),
        sa.CheckConstraint("alone_max_minor >= 0", name=op.f("payment_control_alone_max_ck")),
        sa.CheckConstraint("alone_minor >= 0", name=op.f("payment_control_alone_ck")),
        sa.ForeignKeyConstraint(["wallet_id"], ["wallet.id"], name=op.f("payment_control_wallet_id_fk")),
        sa.PrimaryKeyConstraint("wallet_id", name=op.f("payment_control_pk")),
        sa.UniqueConstraint("account", name=op.f("payment_control_account_uq")),
    )
    op.create_table(
        "payment_signatory",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("key", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.ForeignKeyConstraint(
            ["wallet_id"], ["payment_control.wallet_id"], name=op.f("payment_signatory_wallet_id_fk")
        ),
        sa.PrimaryKeyConstraint("wallet_id", "version", "thumbprint", name="payment_signatory_pk"),
    )
    op.create_table(
        "payment_control_change",
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("first_person", sa.Text(), nullable=False),
        sa.Column("first_token", sa.Text(), nullable=False),
        sa.Column("second_person", sa.Text(), nullable=False),
        sa.Column("second_token", sa.Text(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("first_person <> second_person", name=op.f("payment_control_change_two_persons_i8_ck")),
        sa.ForeignKeyConstraint(
            ["wallet_id"], ["payment_control.wallet_id"], name=op.f("payment_control_change_wallet_id_fk")
        ),
        sa.PrimaryKeyConstraint("wallet_id", "version", name="payment_control_change_pk"),
    )
    op.create_table(
        "payment_approval",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("checker", sa.Text(), nullable=False),
        sa.Column("valid_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("token", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("maker", sa.Text(), nullable=True),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("maker <> checker", name=op.f("payment_approval_two_persons_i8_ck")),
        sa.CheckConstraint("maker IS NULL OR withdrawn_at IS NULL", name=op.f("payment_approval_used_or_withdrawn_ck")),
        sa.CheckConstraint("octet_length(digest) = 32", name=op.f("payment_approval_digest_ck")),
        sa.ForeignKeyConstraint(
            ["wallet_id"], ["payment_control.wallet_id"], name=op.f("payment_approval_wallet_id_fk")
        ),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("payment_approval_pk")),
    )
    op.create_index("payment_approval_wallet", "payment_approval", ["wallet_id"], unique=False)
    op.create_table(
        "payment_alone",
        sa.Column("payment_id", sa.Uuid(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("wallet_id", sa.Uuid(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["payment_id"], ["payment.id"], name=op.f("payment_alone_payment_id_fk"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["wallet_id"], ["payment_control.wallet_id"], name=op.f("payment_alone_wallet_id_fk")),
        sa.PrimaryKeyConstraint("payment_id", "day", name="payment_alone_pk"),
    )
    op.create_index("payment_alone_wallet_day", "payment_alone", ["wallet_id", "day"], unique=False)
    for function in (SAYS, CONTROLLED, APPROVED):
        op.execute(function)
    op.execute(
        "CREATE TRIGGER payment_approved_i8 AFTER INSERT ON payment REFERENCING NEW TABLE AS fresh"
        " FOR EACH STATEMENT EXECUTE FUNCTION payment_refuse_unapproved()"
    )
    op.execute(
        "CREATE TRIGGER payment_approved_again_i8 AFTER UPDATE ON payment FOR EACH ROW"
        " WHEN (OLD.state = 'refused' AND NEW.state = 'initiated') EXECUTE FUNCTION payment_refuse_unapproved()"
    )


def downgrade() -> None:
    op.execute("DROP TRIGGER payment_approved_again_i8 ON payment")
    op.execute("DROP TRIGGER payment_approved_i8 ON payment")
    for function in ("payment_refuse_unapproved", "payment_hold_to_control", "jws_part"):
        op.execute(f"DROP FUNCTION {function}")
    op.drop_table("payment_alone")
    op.drop_table("payment_approval")
    op.drop_table("payment_control_change")
    op.drop_table("payment_signatory")
    op.drop_table("payment_control")
    op.drop_table("card_revocation")
    op.drop_table("alias_lookup_count")
    op.drop_table("wallet_alias")
    op.drop_table("corporate_customer")
    op.drop_table("card_counter")
    op.drop_table("hardware_card")
    op.drop_table("child_credit")
    op.drop_table("child_wallet")
    op.drop_table("family_member")

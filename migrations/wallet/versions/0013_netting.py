"""Netting settlements that the institution signs: an order is signed for once, by itself or in one netting."""

from __future__ import annotations

from alembic import op

from kernel.row_security import CURRENT, protect

revision = "0013"
down_revision = "0012"

TABLES = ("netting", "netting_leg", "netting_order")
_TENANT = f"tenant TEXT NOT NULL DEFAULT {CURRENT}"

STATEMENTS = (
    f"""CREATE TABLE netting (
    id TEXT NOT NULL,
    terms JSONB NOT NULL,
    abort_hash BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    {_TENANT},
    CONSTRAINT netting_pk PRIMARY KEY (id, tenant),
    CONSTRAINT netting_abort_hash_length_ck CHECK (octet_length(abort_hash) = 32),
    CONSTRAINT netting_tenant_ck CHECK (tenant <> '')
)""",
    f"""CREATE TABLE netting_leg (
    hold_id UUID NOT NULL,
    netting_id TEXT NOT NULL,
    ledger TEXT NOT NULL,
    token TEXT NOT NULL,
    {_TENANT},
    CONSTRAINT netting_leg_pk PRIMARY KEY (hold_id, tenant),
    CONSTRAINT netting_leg_netting_id_fk FOREIGN KEY (netting_id, tenant) REFERENCES netting (id, tenant),
    CONSTRAINT netting_leg_tenant_ck CHECK (tenant <> '')
)""",
    f"""CREATE TABLE netting_order (
    instruction_id TEXT NOT NULL,
    netting_id TEXT NOT NULL,
    {_TENANT},
    CONSTRAINT netting_order_pk PRIMARY KEY (instruction_id, tenant),
    CONSTRAINT netting_order_instruction_id_fk FOREIGN KEY (instruction_id, tenant)
        REFERENCES settlement_instruction (id, tenant),
    CONSTRAINT netting_order_netting_id_fk FOREIGN KEY (netting_id, tenant) REFERENCES netting (id, tenant),
    CONSTRAINT netting_order_tenant_ck CHECK (tenant <> '')
)""",
    """CREATE FUNCTION refuse_order_signed_twice() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM settlement_instruction WHERE id = NEW.instruction_id AND tenant = NEW.tenant FOR UPDATE;
    IF (TG_TABLE_NAME = 'leg_authorisation' AND EXISTS (
            SELECT FROM netting_order WHERE instruction_id = NEW.instruction_id AND tenant = NEW.tenant))
       OR (TG_TABLE_NAME = 'netting_order' AND EXISTS (
            SELECT FROM leg_authorisation WHERE instruction_id = NEW.instruction_id AND tenant = NEW.tenant)) THEN
        RAISE EXCEPTION 'order % is signed for already', NEW.instruction_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'order_signed_once';
    END IF;
    RETURN NEW;
END
$$""",
    """CREATE TRIGGER order_signed_once BEFORE INSERT ON leg_authorisation
    FOR EACH ROW EXECUTE FUNCTION refuse_order_signed_twice()""",
    """CREATE TRIGGER order_signed_once BEFORE INSERT ON netting_order
    FOR EACH ROW EXECUTE FUNCTION refuse_order_signed_twice()""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)
    protect(op.get_bind(), TABLES)


def downgrade() -> None:
    op.execute("DROP TRIGGER order_signed_once ON leg_authorisation")
    for table in reversed(TABLES):
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP FUNCTION refuse_order_signed_twice()")

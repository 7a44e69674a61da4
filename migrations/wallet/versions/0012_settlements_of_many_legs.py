"""Orders of settlements with more legs than two: several payments and receipts, each payment signed once."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"

STATEMENTS = (
    "ALTER TABLE settlement_instruction ALTER COLUMN receive_currency DROP NOT NULL,"
    " ALTER COLUMN receive_amount_minor_min DROP NOT NULL,"
    " ADD COLUMN further_payments JSONB NOT NULL DEFAULT '[]',"
    " ADD COLUMN further_receipts JSONB NOT NULL DEFAULT '[]',"
    " ADD CONSTRAINT settlement_instruction_receipt_whole_ck"
    " CHECK ((receive_currency IS NULL) = (receive_amount_minor_min IS NULL))",
    "ALTER TABLE settlement_instruction ALTER COLUMN further_payments DROP DEFAULT,"
    " ALTER COLUMN further_receipts DROP DEFAULT",
    "ALTER TABLE leg_authorisation ADD COLUMN credit_account BIGINT",
    "UPDATE leg_authorisation SET credit_account = ordered.credit_account FROM settlement_instruction AS ordered"
    " WHERE ordered.id = instruction_id AND ordered.tenant = leg_authorisation.tenant",
    "ALTER TABLE leg_authorisation ALTER COLUMN credit_account SET NOT NULL,"
    " DROP CONSTRAINT leg_authorisation_pk,"
    " ADD CONSTRAINT leg_authorisation_pk PRIMARY KEY (instruction_id, ledger, credit_account, tenant)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    """Refused by the keys and columns where an order has more legs than a PvP's."""
    op.execute(
        "ALTER TABLE leg_authorisation DROP CONSTRAINT leg_authorisation_pk, DROP COLUMN credit_account,"
        " ADD CONSTRAINT leg_authorisation_pk PRIMARY KEY (instruction_id, ledger, tenant)"
    )
    op.execute(
        "ALTER TABLE settlement_instruction ALTER COLUMN receive_currency SET NOT NULL,"
        " ALTER COLUMN receive_amount_minor_min SET NOT NULL, DROP COLUMN further_payments,"
        " DROP COLUMN further_receipts, DROP CONSTRAINT settlement_instruction_receipt_whole_ck"
    )

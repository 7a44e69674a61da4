"""Engine: n legs are bounded and between two participants; an operator's wish to give up outlives the process."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS: tuple[str, ...] = (
    "ALTER TABLE leg ADD CONSTRAINT leg_number CHECK (number BETWEEN 0 AND 31)",
    "ALTER TABLE leg ADD CONSTRAINT leg_parties_differ CHECK (payer <> payee)",
    "ALTER TABLE settlement ADD COLUMN abort_requested_at TIMESTAMP WITH TIME ZONE",
    "ALTER TABLE settlement ADD COLUMN abort_requested_by TEXT",
    "ALTER TABLE settlement ADD CONSTRAINT settlement_abort_requested_by_somebody"
    " CHECK ((abort_requested_at IS NULL) = (abort_requested_by IS NULL))",
    "CREATE INDEX settlement_abort_requested ON settlement (id)"
    " WHERE abort_requested_at IS NOT NULL AND state IN ('received', 'prepared')",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

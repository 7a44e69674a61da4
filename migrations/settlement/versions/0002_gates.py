"""Gates: what keeps a received settlement from the engine. Batches of more formats."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    "ALTER TABLE batch DROP CONSTRAINT batch_format",
    "ALTER TABLE batch ADD CONSTRAINT batch_format CHECK (format ~ '^[a-z0-9.]{2,16}$')",
    """CREATE TABLE gate (
    settlement_id UUID NOT NULL REFERENCES settlement (id),
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    not_before TIMESTAMP WITH TIME ZONE,
    closed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    opened_at TIMESTAMP WITH TIME ZONE,
    opened_by TEXT,
    CONSTRAINT gate_pk PRIMARY KEY (settlement_id, kind),
    CONSTRAINT gate_kind CHECK (kind IN ('compliance', 'calendar', 'liquidity')),
    CONSTRAINT gate_opened_by_somebody CHECK ((opened_at IS NULL) = (opened_by IS NULL))
)""",
    "CREATE INDEX gate_closed ON gate (kind, not_before) WHERE opened_at IS NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

"""Islands: the last final block of each chain, which a node must not contradict."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS: tuple[str, ...] = (
    """CREATE TABLE island_block (
    ledger TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL,
    hash TEXT NOT NULL,
    seen_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT island_block_number CHECK (number >= 0),
    CONSTRAINT island_block_hash CHECK (hash ~ '^0x[0-9a-f]{64}$')
)""",
    """CREATE FUNCTION island_block_only_forward() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a block that was final stays final' USING CONSTRAINT = 'island_block_only_forward';
END
$$""",
    """CREATE TRIGGER island_block_only_forward BEFORE UPDATE ON island_block
FOR EACH ROW WHEN (NEW.ledger <> OLD.ledger OR NEW.number <= OLD.number)
EXECUTE FUNCTION island_block_only_forward()""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

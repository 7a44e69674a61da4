"""The relay: checkpoints and headers of islands that are kept for proofs, and what contradicted them."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"

STATEMENTS: tuple[str, ...] = (
    """CREATE TABLE relay_checkpoint (
    ledger TEXT NOT NULL,
    size BIGINT NOT NULL,
    root BYTEA NOT NULL,
    note TEXT NOT NULL,
    kept_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT relay_checkpoint_one_root_a_size PRIMARY KEY (ledger, size),
    CONSTRAINT relay_checkpoint_size CHECK (size >= 0),
    CONSTRAINT relay_checkpoint_root CHECK (octet_length(root) = 32)
)""",
    """CREATE TABLE relay_header (
    ledger TEXT NOT NULL,
    number BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    parent_number BIGINT,
    parent_hash BYTEA,
    timestamp BIGINT NOT NULL,
    rlp BYTEA NOT NULL,
    kept_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT relay_header_one_a_height PRIMARY KEY (ledger, number),
    CONSTRAINT relay_header_named UNIQUE (ledger, number, hash),
    CONSTRAINT relay_header_child_of_its_parent FOREIGN KEY(ledger, parent_number, parent_hash)
        REFERENCES relay_header (ledger, number, hash),
    CONSTRAINT relay_header_shape CHECK (number >= 0 AND octet_length(hash) = 32),
    CONSTRAINT relay_header_rlp CHECK (octet_length(rlp) BETWEEN 500 AND 2048),
    CONSTRAINT relay_header_parent CHECK ((parent_number IS NULL) = (parent_hash IS NULL)
        AND (parent_number IS NULL OR parent_number = number - 1))
)""",
    "CREATE UNIQUE INDEX relay_header_first ON relay_header (ledger) WHERE parent_number IS NULL",
    """CREATE TABLE relay_alarm (
    id UUID NOT NULL,
    ledger TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    first BYTEA NOT NULL,
    second BYTEA NOT NULL,
    evidence_sha256 BYTEA NOT NULL,
    raised_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT relay_alarm_once UNIQUE (ledger, evidence_sha256),
    CONSTRAINT relay_alarm_kind CHECK (kind IN ('fork', 'inconsistent', 'rolled-back', 'contradiction')),
    CONSTRAINT relay_alarm_digest CHECK (octet_length(evidence_sha256) = 32)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

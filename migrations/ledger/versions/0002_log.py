"""The transparency log: identity, tiles, checkpoints, cosignatures, incidents and what was said of them."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = (
    """CREATE TABLE log_identity (
    id SMALLINT NOT NULL,
    origin TEXT NOT NULL,
    vkey TEXT NOT NULL,
    salt_check BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT log_identity_is_single CHECK (id = 1)
)""",
    """CREATE TABLE log_tile (
    level SMALLINT NOT NULL,
    index BIGINT NOT NULL,
    hashes BYTEA NOT NULL,
    root BYTEA NOT NULL,
    CONSTRAINT log_tile_pkey PRIMARY KEY (level, index),
    CONSTRAINT log_tile_is_full CHECK (octet_length(hashes) = 8192 AND octet_length(root) = 32)
)""",
    # Hashes do not compress; trying would cost more than storing them.
    """ALTER TABLE log_tile ALTER COLUMN hashes SET STORAGE EXTERNAL""",
    """CREATE TABLE log_checkpoint (
    block BIGINT NOT NULL,
    previous_block BIGINT NOT NULL,
    size BIGINT NOT NULL,
    previous_size BIGINT NOT NULL,
    root BYTEA NOT NULL,
    block_commitment BYTEA NOT NULL,
    tail BYTEA NOT NULL,
    supply BYTEA NOT NULL,
    note TEXT NOT NULL,
    sealed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (block),
    CONSTRAINT log_checkpoint_follows_one UNIQUE (previous_block),
    CONSTRAINT log_checkpoint_comes_after CHECK (previous_block >= 0 AND block > previous_block),
    CONSTRAINT log_checkpoint_never_shrinks CHECK (previous_size >= -1 AND size >= previous_size)
)""",
    """CREATE INDEX log_checkpoint_of_size ON log_checkpoint (size, block)""",
    """CREATE UNIQUE INDEX log_checkpoint_grown ON log_checkpoint (size) WHERE size > previous_size""",
    """ALTER TABLE log_checkpoint ALTER COLUMN tail SET STORAGE EXTERNAL""",
    """CREATE TABLE log_cosignature (
    block BIGINT NOT NULL,
    witness TEXT NOT NULL,
    line TEXT NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT log_cosignature_pkey PRIMARY KEY (block, witness)
)""",
    """CREATE TABLE log_incident (
    witness TEXT NOT NULL,
    block BIGINT NOT NULL,
    size BIGINT NOT NULL,
    detail TEXT NOT NULL,
    noticed_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT log_incident_pkey PRIMARY KEY (witness, block)
)""",
    """CREATE TABLE log_acknowledgement (
    witness TEXT NOT NULL,
    block BIGINT NOT NULL,
    operator TEXT NOT NULL,
    reason TEXT NOT NULL,
    acknowledged_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT log_acknowledgement_pkey PRIMARY KEY (witness, block),
    CONSTRAINT log_acknowledgement_says_why CHECK (length(reason) BETWEEN 1 AND 1000)
)""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

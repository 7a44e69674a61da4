"""Closings: signed statements and the packed leaves behind them."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = (
    """CREATE TABLE closing (
    number BIGINT NOT NULL,
    kind TEXT NOT NULL,
    day DATE NOT NULL,
    block BIGINT NOT NULL,
    statement TEXT NOT NULL,
    directory BYTEA NOT NULL,
    PRIMARY KEY (number),
    CONSTRAINT closing_kind CHECK (kind IN ('day', 'order'))
)""",
    """CREATE UNIQUE INDEX closing_day ON closing (day) WHERE kind = 'day'""",
    """CREATE TABLE closing_page (
    closing BIGINT NOT NULL,
    page INTEGER NOT NULL,
    leaves BYTEA NOT NULL,
    CONSTRAINT closing_page_pkey PRIMARY KEY (closing, page)
)""",
    # leaves in random order hardly compress: compressing them took longer than all the hashing
    """ALTER TABLE closing_page ALTER COLUMN leaves SET STORAGE EXTERNAL""",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

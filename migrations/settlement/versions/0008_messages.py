"""Messages: files that stream in, and recalls."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

STATEMENTS: tuple[str, ...] = (
    "CREATE INDEX leg_posted ON leg (currency, ended_at) WHERE state = 'posted'",
    """CREATE TABLE stream (
    id UUID NOT NULL,
    submitter TEXT NOT NULL,
    is_operator BOOLEAN NOT NULL,
    format TEXT NOT NULL,
    content_sha256 BYTEA NOT NULL,
    byte_count BIGINT NOT NULL,
    received_bytes BIGINT DEFAULT '0' NOT NULL,
    state TEXT NOT NULL,
    message TEXT DEFAULT '' NOT NULL,
    message_id TEXT DEFAULT '' NOT NULL,
    read_bytes BIGINT DEFAULT '0' NOT NULL,
    read_line BIGINT DEFAULT '1' NOT NULL,
    line_count INTEGER DEFAULT '0' NOT NULL,
    totals JSON NOT NULL,
    refused_count INTEGER DEFAULT '0' NOT NULL,
    booked_count INTEGER DEFAULT '0' NOT NULL,
    booked_number INTEGER DEFAULT '0' NOT NULL,
    refusal TEXT,
    reason TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE,
    ended_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (id),
    CONSTRAINT stream_state CHECK (state IN ('receiving', 'reading', 'booking', 'done', 'refused', 'withdrawn')),
    CONSTRAINT stream_format CHECK (format IN ('xml', 'csv')),
    CONSTRAINT stream_digest CHECK (octet_length(content_sha256) = 32),
    CONSTRAINT stream_received_within_size CHECK (received_bytes BETWEEN 0 AND byte_count),
    CONSTRAINT stream_read_within_size CHECK (read_bytes BETWEEN 0 AND byte_count),
    CONSTRAINT stream_whole_before_read CHECK (state NOT IN ('reading', 'booking', 'done')
        OR (received_at IS NOT NULL AND received_bytes = byte_count)),
    CONSTRAINT stream_booked_within_read CHECK (booked_number <= line_count),
    CONSTRAINT stream_lines_end_once CHECK (booked_count + refused_count <= line_count),
    CONSTRAINT stream_every_line_ended CHECK (state <> 'done' OR booked_count + refused_count = line_count),
    CONSTRAINT stream_refused_with_reason CHECK (CASE state WHEN 'refused' THEN refusal IS NOT NULL
        WHEN 'withdrawn' THEN true ELSE refusal IS NULL END),
    CONSTRAINT stream_ended CHECK ((state IN ('done', 'refused', 'withdrawn')) = (ended_at IS NOT NULL))
)""",
    """CREATE UNIQUE INDEX stream_file_once_i7 ON stream (submitter, content_sha256) WHERE state <> 'withdrawn'""",
    """CREATE UNIQUE INDEX stream_message_once_i7 ON stream (submitter, message_id)
    WHERE state IN ('booking', 'done')""",
    """CREATE INDEX stream_open ON stream (created_at) WHERE state IN ('receiving', 'reading', 'booking')""",
    """CREATE TABLE stream_part (
    stream_id UUID NOT NULL,
    start BIGINT NOT NULL,
    length INTEGER NOT NULL,
    sha256 BYTEA NOT NULL,
    CONSTRAINT stream_part_pk PRIMARY KEY (stream_id, start),
    CONSTRAINT stream_part_place CHECK (length > 0 AND start >= 0),
    FOREIGN KEY(stream_id) REFERENCES stream (id)
)""",
    """CREATE TABLE stream_staged (
    stream_id UUID NOT NULL,
    number INTEGER NOT NULL,
    line BIGINT NOT NULL,
    instruction_id TEXT NOT NULL,
    uetr UUID NOT NULL,
    terms TEXT NOT NULL,
    CONSTRAINT stream_staged_pk PRIMARY KEY (stream_id, number),
    FOREIGN KEY(stream_id) REFERENCES stream (id)
)""",
    """CREATE TABLE stream_refusal (
    stream_id UUID NOT NULL,
    number INTEGER NOT NULL,
    line BIGINT NOT NULL,
    refusal TEXT NOT NULL,
    reason TEXT NOT NULL,
    instruction_id TEXT,
    uetr UUID,
    CONSTRAINT stream_refusal_pk PRIMARY KEY (stream_id, number),
    FOREIGN KEY(stream_id) REFERENCES stream (id)
)""",
    """CREATE TABLE stream_batch (
    stream_id UUID NOT NULL,
    batch_id UUID NOT NULL,
    first_number INTEGER NOT NULL,
    last_number INTEGER NOT NULL,
    PRIMARY KEY (batch_id),
    CONSTRAINT stream_batch_once UNIQUE (stream_id, first_number),
    CONSTRAINT stream_batch_range CHECK (first_number > 0 AND first_number <= last_number),
    FOREIGN KEY(stream_id) REFERENCES stream (id),
    FOREIGN KEY(batch_id) REFERENCES batch (id)
)""",
    """CREATE TABLE recall (
    id UUID NOT NULL,
    submitter TEXT NOT NULL,
    message TEXT NOT NULL,
    assignment_id TEXT NOT NULL,
    case_id TEXT,
    assigner TEXT NOT NULL,
    content_sha256 BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT recall_once UNIQUE (submitter, assignment_id),
    CONSTRAINT recall_digest CHECK (octet_length(content_sha256) = 32)
)""",
    """CREATE TABLE recall_item (
    recall_id UUID NOT NULL,
    number INTEGER NOT NULL,
    cancellation_id TEXT,
    original_message_id TEXT,
    original_message TEXT,
    instruction_id TEXT,
    end_to_end_id TEXT,
    uetr UUID,
    settlement_id UUID,
    was_open BOOLEAN NOT NULL,
    fault TEXT NOT NULL,
    stream_id UUID,
    CONSTRAINT recall_item_pk PRIMARY KEY (recall_id, number),
    CONSTRAINT recall_item_open_one_exists CHECK (settlement_id IS NOT NULL OR NOT was_open),
    CONSTRAINT recall_item_unlike_is_not_given_up CHECK (fault = '' OR settlement_id IS NULL),
    CONSTRAINT recall_item_staged_is_not_settled CHECK (stream_id IS NULL OR
        (settlement_id IS NULL AND uetr IS NOT NULL AND fault = '')),
    FOREIGN KEY(recall_id) REFERENCES recall (id),
    FOREIGN KEY(settlement_id) REFERENCES settlement (id),
    FOREIGN KEY(stream_id) REFERENCES stream (id)
)""",
    "CREATE INDEX recall_item_staged ON recall_item (stream_id) WHERE stream_id IS NOT NULL",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)

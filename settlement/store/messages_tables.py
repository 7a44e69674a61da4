"""Tables of streamed files: where each stands, what is staged of it, which of its lines were refused, what was booked.

A stream's row is its cursor: what a step writes and how far the stream is are one transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from settlement.store.tables import metadata

_STATES = "'receiving', 'reading', 'booking', 'done', 'refused', 'withdrawn'"
_MOMENT = sa.DateTime(timezone=True)

stream = sa.Table(
    "stream",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("submitter", sa.Text, nullable=False),
    sa.Column("is_operator", sa.Boolean, nullable=False),
    sa.Column("format", sa.Text, nullable=False),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),
    sa.Column("byte_count", sa.BigInteger, nullable=False),
    sa.Column("received_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False, server_default=""),
    sa.Column("message_id", sa.Text, nullable=False, server_default=""),
    sa.Column("read_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("read_line", sa.BigInteger, nullable=False, server_default="1"),
    sa.Column("line_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("totals", sa.JSON, nullable=False),
    sa.Column("refused_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("booked_count", sa.Integer, nullable=False, server_default="0"),
    sa.Column("booked_number", sa.Integer, nullable=False, server_default="0"),
    sa.Column("refusal", sa.Text),
    sa.Column("reason", sa.Text, nullable=False, server_default=""),
    sa.Column("created_at", _MOMENT, nullable=False),
    sa.Column("received_at", _MOMENT),
    sa.Column("ended_at", _MOMENT),
    sa.CheckConstraint(f"state IN ({_STATES})", name="stream_state"),
    sa.CheckConstraint("format IN ('xml', 'csv')", name="stream_format"),
    sa.CheckConstraint("octet_length(content_sha256) = 32", name="stream_digest"),
    sa.CheckConstraint("received_bytes BETWEEN 0 AND byte_count", name="stream_received_within_size"),
    sa.CheckConstraint("read_bytes BETWEEN 0 AND byte_count", name="stream_read_within_size"),
    sa.CheckConstraint(
        "state NOT IN ('reading', 'booking', 'done') OR (received_at IS NOT NULL AND received_bytes = byte_count)",
        name="stream_whole_before_read",
    ),
    sa.CheckConstraint("booked_number <= line_count", name="stream_booked_within_read"),
    sa.CheckConstraint("booked_count + refused_count <= line_count", name="stream_lines_end_once"),
    sa.CheckConstraint("state <> 'done' OR booked_count + refused_count = line_count", name="stream_every_line_ended"),
    sa.CheckConstraint(
        "CASE state WHEN 'refused' THEN refusal IS NOT NULL WHEN 'withdrawn' THEN true ELSE refusal IS NULL END",
        name="stream_refused_with_reason",
    ),
    sa.CheckConstraint("(state IN ('done', 'refused', 'withdrawn')) = (ended_at IS NOT NULL)", name="stream_ended"),
    # I7: one file, one stream, however often it is sent; one message id, one booked file.
    sa.Index(
        "stream_file_once_i7",
        "submitter",
        "content_sha256",
        unique=True,
        postgresql_where=sa.text("state <> 'withdrawn'"),
    ),
    sa.Index(
        "stream_message_once_i7",
        "submitter",
        "message_id",
        unique=True,
        postgresql_where=sa.text("state IN ('booking', 'done')"),
    ),
    sa.Index("stream_open", "created_at", postgresql_where=sa.text("state IN ('receiving', 'reading', 'booking')")),
)

stream_part = sa.Table(
    "stream_part",
    metadata,
    sa.Column("stream_id", sa.Uuid, sa.ForeignKey("stream.id"), nullable=False),
    sa.Column("start", sa.BigInteger, nullable=False),
    sa.Column("length", sa.Integer, nullable=False),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("stream_id", "start", name="stream_part_pk"),
    sa.CheckConstraint("length > 0 AND start >= 0", name="stream_part_place"),
)
"""What was stored of the file, in order and without gaps."""

stream_staged = sa.Table(
    "stream_staged",
    metadata,
    sa.Column("stream_id", sa.Uuid, sa.ForeignKey("stream.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("instruction_id", sa.Text, nullable=False),
    sa.Column("uetr", sa.Uuid, nullable=False),
    sa.Column("terms", sa.Text, nullable=False),
    sa.PrimaryKeyConstraint("stream_id", "number", name="stream_staged_pk"),
)
"""Lines read and not yet booked. `terms` may hold personal data: a row goes when its line is booked or refused."""

stream_refusal = sa.Table(
    "stream_refusal",
    metadata,
    sa.Column("stream_id", sa.Uuid, sa.ForeignKey("stream.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("refusal", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("instruction_id", sa.Text),
    sa.Column("uetr", sa.Uuid),
    sa.PrimaryKeyConstraint("stream_id", "number", name="stream_refusal_pk"),
)

stream_batch = sa.Table(
    "stream_batch",
    metadata,
    sa.Column("stream_id", sa.Uuid, sa.ForeignKey("stream.id"), nullable=False),
    sa.Column("batch_id", sa.Uuid, sa.ForeignKey("batch.id"), primary_key=True),
    sa.Column("first_number", sa.Integer, nullable=False),
    sa.Column("last_number", sa.Integer, nullable=False),
    sa.UniqueConstraint("stream_id", "first_number", name="stream_batch_once"),
    sa.CheckConstraint("first_number > 0 AND first_number <= last_number", name="stream_batch_range"),
)
"""The batches that a stream was cut into. A settlement's line is its batch's first number - 1 + its position."""

recall = sa.Table(
    "recall",
    metadata,
    sa.Column("id", sa.Uuid, primary_key=True),
    sa.Column("submitter", sa.Text, nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("assignment_id", sa.Text, nullable=False),
    sa.Column("case_id", sa.Text),
    sa.Column("assigner", sa.Text, nullable=False),
    sa.Column("content_sha256", sa.LargeBinary, nullable=False),
    sa.Column("received_at", _MOMENT, nullable=False),
    sa.UniqueConstraint("submitter", "assignment_id", name="recall_once"),
    sa.CheckConstraint("octet_length(content_sha256) = 32", name="recall_digest"),
)
"""A camt.056 that was taken in."""

recall_item = sa.Table(
    "recall_item",
    metadata,
    sa.Column("recall_id", sa.Uuid, sa.ForeignKey("recall.id"), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("cancellation_id", sa.Text),
    sa.Column("original_message_id", sa.Text),
    sa.Column("original_message", sa.Text),
    sa.Column("instruction_id", sa.Text),
    sa.Column("end_to_end_id", sa.Text),
    sa.Column("uetr", sa.Uuid),
    sa.Column("settlement_id", sa.Uuid, sa.ForeignKey("settlement.id")),
    sa.Column("was_open", sa.Boolean, nullable=False),
    sa.Column("fault", sa.Text, nullable=False),
    sa.Column("stream_id", sa.Uuid, sa.ForeignKey("stream.id")),
    sa.PrimaryKeyConstraint("recall_id", "number", name="recall_item_pk"),
    sa.CheckConstraint("settlement_id IS NOT NULL OR NOT was_open", name="recall_item_open_one_exists"),
    sa.CheckConstraint("fault = '' OR settlement_id IS NULL", name="recall_item_unlike_is_not_given_up"),
    sa.CheckConstraint(
        "stream_id IS NULL OR (settlement_id IS NULL AND uetr IS NOT NULL AND fault = '')",
        name="recall_item_staged_is_not_settled",
    ),
    sa.Index("recall_item_staged", "stream_id", postgresql_where=sa.text("stream_id IS NOT NULL")),
)
"""One payment asked back. `was_open`: it was undecided when asked, so the engine was told to give it up; whether it
did, the settlement says. `fault`: what the recall says of the payment that is not so; it is none of its payments
then. `stream_id`: the payment was a line of this file and not booked yet when it was asked back; it is refused when its
turn comes."""

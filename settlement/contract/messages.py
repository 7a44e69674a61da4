"""Streams, recalls and messages on the wire. Streams wear `str_`, recalls `rcl_`; byte counts are plain numbers."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from ledger.contract import Model, Moment, ParticipantRef
from settlement.contract import BatchRef, SettlementRef, SettlementState, _parsed, _schema, _shown
from settlement.domain.statuses import CancellationStatus, Confirmation
from settlement.domain.streams import PART_BYTES_MAX, STREAM_BYTES_MAX, StreamState

__all__ = [
    "PART_BYTES_MAX",
    "RECALL_PREFIX",
    "STREAM_PREFIX",
    "CancellationStatus",
    "Confirmation",
    "RecallItemView",
    "RecallView",
    "StreamBatchView",
    "StreamRefusalView",
    "StreamRequest",
    "StreamState",
    "StreamView",
]

STREAM_PREFIX = "str"
RECALL_PREFIX = "rcl"

StreamRef = Annotated[UUID, _parsed(STREAM_PREFIX), _shown(STREAM_PREFIX), _schema(STREAM_PREFIX)]
RecallRef = Annotated[UUID, _parsed(RECALL_PREFIX), _shown(RECALL_PREFIX), _schema(RECALL_PREFIX)]


class StreamRequest(Model):
    """A file to come: its digest names it, so the same file again is the same stream."""

    format: Literal["xml", "csv"]
    byte_count: Annotated[int, Field(ge=1, le=STREAM_BYTES_MAX)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class StreamView(Model):
    stream: StreamRef
    submitter: ParticipantRef
    format: Literal["xml", "csv"]
    sha256: str
    state: StreamState
    byte_count: int
    received_bytes: int
    """Send the next part from here."""
    read_bytes: int
    message: str
    """Name and version of the message, once it is read; "" for CSV."""
    message_id: str
    line_count: int
    """Lines read so far; of a file that was read, all."""
    refused_count: int
    booked_count: int
    counts: dict[SettlementState, int]
    """Its settlements by state."""
    refusal: str | None
    """Why the whole file was refused."""
    reason: str
    created_at: Moment
    received_at: Moment | None
    ended_at: Moment | None


class StreamRefusalView(Model):
    number: int
    """Of the instruction in the file, from 1."""
    line: int
    refusal: str
    reason: str
    instruction_id: str | None
    uetr: UUID | None


class StreamBatchView(Model):
    batch: BatchRef
    first_number: int
    last_number: int


class RecallItemView(Model):
    uetr: UUID
    settlement: SettlementRef | None
    """None if there is no payment of this UETR that the sender may recall."""
    state: SettlementState | None
    status: CancellationStatus
    reason: str | None
    detail: str


class RecallView(Model):
    recall: RecallRef
    assignment_id: str
    message: str
    confirmation: Confirmation
    items: list[RecallItemView]
    received_at: Moment

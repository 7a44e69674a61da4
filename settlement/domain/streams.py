"""A streamed file's life: received part by part, read, booked; or refused whole; or withdrawn before it was whole."""

from __future__ import annotations

from enum import StrEnum

STREAM_BYTES_MAX = 2 * 1024**3
"""A million instructions at up to 2,000 bytes; those our writers make have 500 to 800."""
STREAM_INSTRUCTIONS_MAX = 1_000_000
PART_BYTES_MAX = 8 * 1024 * 1024
"""What one request carries: small enough to be sent again after a lost connection, large enough for a fast line."""
OPEN_STREAMS_MAX = 8
OPEN_BYTES_MAX = 4 * 1024**3
"""Of one submitter at once: what a hostile one can make the service keep."""


class StreamState(StrEnum):
    RECEIVING = "receiving"
    """Parts are missing."""
    READING = "reading"
    """Whole here; its lines are being read and staged. Nothing is booked yet."""
    BOOKING = "booking"
    """Read to its end and found whole: its lines become settlements."""
    DONE = "done"
    """Every line is a settlement or refused."""
    REFUSED = "refused"
    """The file as a whole was refused; nothing of it was booked."""
    WITHDRAWN = "withdrawn"
    """Its submitter gave it up before it was whole."""

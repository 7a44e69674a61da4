"""Fixed binary records: what a bulk client sends, and what the journal's hashes are made of.

Both are packed big-endian, so that a verifier in any language can read them from this page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[Any]
"""A structured array of one of the record types below."""

SUBMISSION = np.dtype(
    [
        ("id_high", ">u8"),
        ("id_low", ">u8"),
        ("debit", ">i8"),
        ("credit", ">i8"),
        ("amount", ">i8"),
        ("hold_high", ">u8"),
        ("hold_low", ">u8"),
        ("reference_high", ">u8"),
        ("reference_low", ">u8"),
        ("expires_at", ">i8"),  # microseconds since 1970, 0 = none
        ("kind", "u1"),
        ("flags", "u1"),
        ("reserved", "V6"),
    ]
)
"""One transfer as submitted: 88 bytes. Nil uuid = none."""

JOURNAL = np.dtype(
    [
        ("seq", ">i8"),
        ("id_high", ">u8"),
        ("id_low", ">u8"),
        ("kind", "u1"),
        ("debit", ">i8"),
        ("credit", ">i8"),
        ("amount", ">i8"),
        ("hold_high", ">u8"),
        ("hold_low", ">u8"),
        ("reference_high", ">u8"),
        ("reference_low", ">u8"),
        ("submitter", ">i4"),
        ("booked_at", ">i8"),
    ]
)
"""One transfer as booked, 93 bytes: the bytes that a block's `transfers_digest` covers, in seq order."""

RESULT = np.dtype([("code", ">i2"), ("seq", ">i8"), ("booked_at", ">i8")])
"""One answer to a binary submission, 18 bytes: 0 booked, -1 booked before, else 1 + the refusal's position in
`TransferRefusal`; `booked_at` in microseconds since 1970."""

FLAG_LINKED = 1


class Authority(IntEnum):
    """Who vouches for a submitted transfer; checked by the gateway, held to the owner by the state machine."""

    INSTITUTION = 0
    """The request's RFC 9421 signature, of participant `submitter`."""
    OWNER = 1
    """A signed instruction, verified with the debit account's owner key of version `key_version`."""
    SECRET = 2
    """A pre-image (post, void), or nothing: then only what anyone may do is allowed."""
    MANDATE = 3
    """M of N operators, by a directive of the same block."""
    ENGINE = 4
    """The ledger itself: expiry."""


class EvidenceKind(IntEnum):
    """What is kept beside a transfer so that its authority can be checked afterwards (I8)."""

    INSTRUCTION = 1
    """Compact JWS signed by the debit account's owner."""
    SECRET = 2
    """Pre-image that ended a conditional hold, 32 bytes."""
    MANDATE = 3
    """Number of the directive that carries the approvals, 8 bytes big-endian."""


@dataclass(frozen=True, slots=True)
class Extra:
    """The parts of a submitted transfer that have no place in the fixed record."""

    commit_hash: bytes | None = None
    abort_hash: bytes | None = None
    secret: bytes | None = None
    instruction: bytes | None = None
    directive: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Transfers to decide, in order. Arrays are parallel to `records`; `extras` is sparse, by position."""

    records: Records
    authority: npt.NDArray[np.uint8]
    submitter: npt.NDArray[np.int32]
    """Participant number of whoever sent it; 0 = nobody known."""
    key_version: npt.NDArray[np.int32]
    extras: Mapping[int, Extra] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.records)

    @staticmethod
    def of_institution(records: Records, *, submitter: int) -> Batch:
        """Plain transfers of one institution's own accounts, authorised once by its request's signature."""
        size = len(records)
        return Batch(
            records=records,
            authority=np.zeros(size, np.uint8),
            submitter=np.full(size, submitter, np.int32),
            key_version=np.zeros(size, np.int32),
        )

    @staticmethod
    def concatenate(batches: list[Batch]) -> Batch:
        if len(batches) == 1:
            return batches[0]
        extras: dict[int, Extra] = {}
        offset = 0
        for batch in batches:
            extras.update((offset + position, extra) for position, extra in batch.extras.items())
            offset += len(batch)
        return Batch(
            # By itself numpy would change the fields to this machine's byte order.
            records=np.concatenate([batch.records for batch in batches], dtype=SUBMISSION),
            authority=np.concatenate([batch.authority for batch in batches]),
            submitter=np.concatenate([batch.submitter for batch in batches]),
            key_version=np.concatenate([batch.key_version for batch in batches]),
            extras=extras,
        )


def uuids(records: Records, name: str) -> list[bytes]:
    """The 16 bytes of each record's `name` ("id", "hold", "reference")."""
    raw = np.empty((len(records), 2), ">u8")
    raw[:, 0], raw[:, 1] = records[f"{name}_high"], records[f"{name}_low"]
    packed = raw.tobytes()
    return [packed[start : start + 16] for start in range(0, len(packed), 16)]


def uuid_bytes(high: int, low: int) -> bytes:
    return high.to_bytes(8, "big") + low.to_bytes(8, "big")

"""The log's tree over an export, hashed anew: RFC 6962 over salted leaves, in spans that processes share.

    leaf      = salt (16) || record (93) || evidence digest (32, only if the transfer has evidence)
    leaf hash = SHA-256(0x00 || leaf), node = SHA-256(0x01 || left || right)
    salt(seq) = AES-256-ECB(range key, seq as 16 bytes big-endian); a range key covers 2^20 transfers

A span is 2^16 leaves at a multiple of 2^16, so its root is a node of every larger tree. A tree of any size is the roots
of complete spans and, inside its last span, of complete subtrees of falling size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ledger.export.layout import TRANSFER
from ledger.verifier import layout
from ledger.verifier.source import Segment, Source

SPAN_BITS = 16
SPAN = 1 << SPAN_BITS
RANGE_BITS = 20
EMPTY_ROOT = sha256(b"").digest()
_SALT_BYTES = 16
_HASH_BYTES = 32
_PLAIN_BYTES = 1 + _SALT_BYTES + TRANSFER.itemsize

Bytes2 = npt.NDArray[np.uint8]
Peaks = list[tuple[int, bytes]]
"""(height, root) of complete subtrees, from the left, of falling height: together a tree."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a segment's transfers."""

    segment: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpanTask:
    """Leaves `first` (from 0) on, as pieces lie in the files. `sizes`: trees that end in this span, to be rooted."""

    first: int
    key: bytes
    pieces: tuple[Piece, ...]
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class SpanResult:
    first: int
    leaves: int
    root: bytes | None
    """Of a complete span."""
    peaks: Mapping[int, Peaks] = field(default_factory=dict)
    """Tree size -> the subtrees of this span that belong to it."""


def hash_span(source: Source, task: SpanTask) -> SpanResult:
    """Raises ExportUnreadable."""
    leaves: list[bytes] = []
    for piece in task.pieces:
        leaves += _leaf_hashes(source, piece, task.key, task.first + len(leaves) + 1)
    levels = [leaves]
    while len(levels[-1]) > 1:
        levels.append(_parents(levels[-1]))
    complete = levels[-1][0] if len(leaves) == SPAN else None
    return SpanResult(
        task.first, len(leaves), complete, {size: _peaks(levels, size - task.first) for size in task.sizes}
    )


def root_of(peaks: Sequence[tuple[int, bytes]]) -> bytes:
    """The root of a tree: its subtrees folded from the right."""
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1][1]
    for _, left in reversed(peaks[:-1]):
        root = sha256(b"\x01" + left + root).digest()
    return root


def add_span(peaks: Peaks, root: bytes) -> None:
    """Grow a tree of complete spans by one."""
    height = SPAN_BITS
    while peaks and peaks[-1][0] == height:
        root = sha256(b"\x01" + peaks.pop()[1] + root).digest()
        height += 1
    peaks.append((height, root))


def _peaks(levels: Sequence[Sequence[bytes]], count: int) -> Peaks:
    found: Peaks = []
    taken = 0
    for height in range(count.bit_length() - 1, -1, -1):
        if count >> height & 1:
            found.append((height, levels[height][taken >> height]))
            taken += 1 << height
    return found


def _parents(hashes: Sequence[bytes]) -> list[bytes]:
    """Nodes over complete pairs; an odd last one has no parent here."""
    pairs = len(hashes) // 2
    rows = np.empty((pairs, 1 + 2 * _HASH_BYTES), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:] = np.frombuffer(b"".join(hashes[: 2 * pairs]), np.uint8).reshape(pairs, 2 * _HASH_BYTES)
    return _hash_rows(rows)


def _hash_rows(rows: Bytes2) -> list[bytes]:
    """SHA-256 of each row. `tolist` of a void array makes bytes of them in one go."""
    inputs = np.ascontiguousarray(rows).view(f"V{rows.shape[1]}").ravel().tolist()
    return [digest.digest() for digest in map(sha256, inputs)]


def _leaf_hashes(source: Source, piece: Piece, key: bytes, first_seq: int) -> list[bytes]:
    segment = _segment(source, piece.segment)  # type: ignore[arg-type]  # sources are hashed by identity
    count = piece.end - piece.start
    rows = np.empty((count, _PLAIN_BYTES), np.uint8)
    rows[:, 0] = 0
    rows[:, 1 : 1 + _SALT_BYTES] = _salts(key, first_seq, count)
    records = segment.transfers[piece.start : piece.end]
    rows[:, 1 + _SALT_BYTES :] = np.frombuffer(records.view(np.uint8), np.uint8).reshape(count, TRANSFER.itemsize)
    hashes = _hash_rows(rows)
    for row, digest in _evidence_digests(segment, records["seq"].astype(np.int64)).items():
        hashes[row] = sha256(rows[row].tobytes() + digest).digest()
    return hashes


def _salts(key: bytes, first_seq: int, count: int) -> Bytes2:
    plain = np.zeros((count, 2), ">u8")
    plain[:, 1] = np.arange(first_seq, first_seq + count)
    # each block of plaintext occurs once under a key: a pseudorandom function is what is wanted
    cipher = Cipher(algorithms.AES(key), modes.ECB())  # noqa: S305
    return np.frombuffer(cipher.encryptor().update(plain.tobytes()), np.uint8).reshape(count, _SALT_BYTES)


def _evidence_digests(segment: Segment, seqs: npt.NDArray[np.int64]) -> dict[int, bytes]:
    """Row of `seqs` -> digest of what belongs to that transfer."""
    if not len(seqs):
        return {}
    first, last = int(seqs[0]), int(seqs[-1])

    def part(numbers: npt.NDArray[np.int64]) -> tuple[int, int]:
        return int(np.searchsorted(numbers, first)), int(np.searchsorted(numbers, last, side="right"))

    start, end = part(segment.evidence["seq"].astype(np.int64))
    events = segment.hold_events[slice(*part(segment.hold_events["seq"].astype(np.int64)))]
    stones = segment.tombstones[slice(*part(segment.tombstones["seq"].astype(np.int64)))]
    if start == end and not len(events) and not len(stones):
        return {}
    items = layout.evidence_items(segment.evidence[start:end], segment.bodies(start, end), events, stones)
    by_seq: dict[int, list[layout.EvidenceItem]] = {}
    for item in items:
        by_seq.setdefault(item[0], []).append(item)
    found: dict[int, bytes] = {}
    for seq, mine in by_seq.items():
        row = int(np.searchsorted(seqs, seq))
        if row < len(seqs) and seqs[row] == seq:
            found[row] = layout.digest_evidence(mine)
    return found


@lru_cache(maxsize=2)
def _segment(source: Source, number: int) -> Segment:
    return Segment(source, number)

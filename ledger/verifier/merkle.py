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
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from kernel.crypto.hashes import HASH_BYTES, Bytes2, sha256_rows
from ledger.export.layout import TRANSFER
from ledger.verifier import layout
from ledger.verifier.source import Segment, Source

SPAN_BITS = 16
SPAN = 1 << SPAN_BITS
RANGE_BITS = 20
EMPTY_ROOT = sha256(b"").digest()
_SALT_BYTES = 16
_PLAIN_BYTES = 1 + _SALT_BYTES + TRANSFER.itemsize

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
    parts: list[Bytes2] = []
    count = 0
    for piece in task.pieces:
        parts.append(_leaf_hashes(source, piece, task.key, task.first + count + 1))
        count += piece.end - piece.start
    levels = [np.concatenate(parts)]
    while len(levels[-1]) > 1:
        levels.append(_parents(levels[-1]))
    complete = levels[-1][0].tobytes() if count == SPAN else None
    return SpanResult(task.first, count, complete, {size: _peaks(levels, size - task.first) for size in task.sizes})


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


def _peaks(levels: Sequence[Bytes2], count: int) -> Peaks:
    found: Peaks = []
    taken = 0
    for height in range(count.bit_length() - 1, -1, -1):
        if count >> height & 1:
            found.append((height, levels[height][taken >> height].tobytes()))
            taken += 1 << height
    return found


def _parents(hashes: Bytes2) -> Bytes2:
    """Nodes over complete pairs; an odd last one has no parent here."""
    pairs = len(hashes) // 2
    rows = np.empty((pairs, 1 + 2 * HASH_BYTES), np.uint8)
    rows[:, 0] = 1
    rows[:, 1:] = hashes[: 2 * pairs].reshape(pairs, 2 * HASH_BYTES)
    return sha256_rows(rows)


def _leaf_hashes(source: Source, piece: Piece, key: bytes, first_seq: int) -> Bytes2:
    segment = _segment(source, piece.segment)  # type: ignore[arg-type]  # sources are hashed by identity
    count = piece.end - piece.start
    rows = np.empty((count, _PLAIN_BYTES), np.uint8)
    rows[:, 0] = 0
    rows[:, 1 : 1 + _SALT_BYTES] = _salts(key, first_seq, count)
    records = segment.transfers[piece.start : piece.end]
    rows[:, 1 + _SALT_BYTES :] = np.frombuffer(records.view(np.uint8), np.uint8).reshape(count, TRANSFER.itemsize)
    hashes = sha256_rows(rows)
    digests = _evidence_digests(segment, records["seq"].astype(np.int64))
    if digests:
        places = list(digests)
        evidence = np.frombuffer(b"".join(digests.values()), np.uint8).reshape(-1, HASH_BYTES)
        hashes[places] = sha256_rows(np.concatenate([rows[places], evidence], axis=1))
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
    digests = {seq: layout.digest_evidence(mine) for seq, mine in groupby(items, key=itemgetter(0))}
    rows = np.flatnonzero(np.isin(seqs, list(digests))).tolist()
    return {row: digests[int(seqs[row])] for row in rows}


@lru_cache(maxsize=2)
def _segment(source: Source, number: int) -> Segment:
    return Segment(source, number)

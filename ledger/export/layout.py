"""The files of an export: fixed big-endian records, so that each file is one `np.frombuffer` in any language.

Whatever has no fixed length (bodies of evidence, documents, names, keys, notes) lies end to end in a second file, in
the order of its records, which say how long each is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = "jiaozi-export-v1"
MANIFEST = "manifest.json"
MANIFEST_BYTES_MAX = 256 * 2**20
"""Some 100,000 segments of a million transfers."""

SEGMENT_TRANSFERS_MAX = 2_000_000
FILE_BYTES_MAX = 4 * 2**30
"""Of a segment: twice and eight times what is written. A reader's memory is bounded by what it takes, not by what a
file of unknown origin says."""

Records = npt.NDArray[Any]

DIGEST_BYTES = 32
_DIGEST = f"V{DIGEST_BYTES}"

BLOCK = np.dtype(
    [
        ("number", ">i8"),
        ("epoch", ">i8"),
        ("booked_at", ">i8"),
        ("first_seq", ">i8"),
        ("transfer_count", ">i8"),
        ("first_directive", ">i8"),
        ("directive_count", ">i8"),
        ("first_account", ">i8"),
        ("account_count", ">i8"),
        ("issued", ">i8"),
        ("redeemed", ">i8"),
        ("vaults", ">i8"),
        ("wallets", ">i8"),
        ("offline", ">i8"),
        ("held", ">i8"),
        ("transfers_digest", _DIGEST),
        ("evidence_digest", _DIGEST),
        ("directives_digest", _DIGEST),
        ("accounts_digest", _DIGEST),
        ("previous_hash", _DIGEST),
        ("hash", _DIGEST),
    ]
)
"""A block's header, 312 bytes: `hash` is SHA-256 of `jiaozi-block-v1` and the 280 bytes before it."""
BLOCK_HASHED_BYTES = BLOCK.itemsize - DIGEST_BYTES

TRANSFER = np.dtype(
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
"""93 bytes: what `transfers_digest` and the log's leaves cover. Nil uuid = none."""

EVIDENCE = np.dtype([("seq", ">i8"), ("kind", "u1"), ("transfer", "V16"), ("length", ">u4")])

HOLD_EVENT = np.dtype(
    [
        ("seq", ">i8"),
        ("phase", "u1"),
        ("hold", "V16"),
        ("transfer", "V16"),
        ("kind", "u1"),
        ("given", "u1"),
        ("commit_hash", _DIGEST),
        ("abort_hash", _DIGEST),
        ("expires_at", ">i8"),
    ]
)
"""`given`: bit 0 commit hash, bit 1 abort hash, bit 2 expiry; what is not given is zero."""
GIVEN_COMMIT, GIVEN_ABORT, GIVEN_EXPIRY = 1, 2, 4

TOMBSTONE = np.dtype([("seq", ">i8"), ("hold", "V16"), ("transfer", "V16"), ("length", "u1"), ("guard", _DIGEST)])
"""`guard` is a hash (32 bytes) or a participant's number (4 bytes, the rest zero): `length` says which."""

ACCOUNT = np.dtype(
    [
        ("number", ">i8"),
        ("opening", "V16"),
        ("kind", "u1"),
        ("participant", ">i4"),
        ("opened_at", ">i8"),
        ("class_length", ">u4"),
        ("key_length", ">i4"),
    ]
)
"""In `account-texts`: the class's name (UTF-8), then the holder's key; `key_length` -1 = no key."""

DIRECTIVE = np.dtype(
    [
        ("number", ">i8"),
        ("has_mandate", "u1"),
        ("mandate", "V16"),
        ("booked_at", ">i8"),
        ("kind_length", ">u4"),
        ("body_length", ">u4"),
    ]
)
"""In `directive-texts`: the kind (UTF-8), then the body."""

CHECKPOINT = np.dtype([("size", ">i8"), ("note_length", ">u4"), ("supply_length", ">u4")])
"""In `checkpoint-texts`: the signed note, then the supply statement that it names (empty if none was kept)."""

RANGE_KEY = np.dtype([("range", ">u8"), ("key", _DIGEST)])
"""The key of the salts of transfers seq = range * 2^20 + 1 to (range + 1) * 2^20."""

BLOCK_SALT = np.dtype([("number", ">i8"), ("salt", _DIGEST)])
"""What opens the commitment to a block's hash in checkpoints and closing statements: one for each block, or none."""

CLOSING = np.dtype([("number", ">i8"), ("has_key", "u1"), ("key", _DIGEST), ("note_length", ">u4"), ("leaves", ">i8")])
"""In `closing-texts`: the signed statement. In `closing-leaves`: the leaves of the tree as the ledger keeps them, 17
bytes each, in tree order. `key`: what order, salts and shares of this closing's leaves follow from; zero if the
exporter had no salt file."""
CLOSING_LEAF_BYTES = 17

SECTIONS: dict[str, np.dtype[Any] | None] = {
    "blocks": BLOCK,
    "transfers": TRANSFER,
    "evidence": EVIDENCE,
    "evidence-bodies": None,
    "hold-events": HOLD_EVENT,
    "tombstones": TOMBSTONE,
    "accounts": ACCOUNT,
    "account-texts": None,
    "directives": DIRECTIVE,
    "directive-texts": None,
    "checkpoints": CHECKPOINT,
    "checkpoint-texts": None,
    "range-keys": RANGE_KEY,
    "block-salts": BLOCK_SALT,
    "closings": CLOSING,
    "closing-texts": None,
    "closing-leaves": None,
}
"""The files of a segment; one that would be empty is not there. None = bytes whose lengths another file has."""


class ExportUnreadable(ValueError):
    """The files, or the rows they are made of, do not have the documented form; the message says where."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """A run of whole blocks. All counts may be 0: a segment may bring nothing but checkpoints."""

    name: str
    last_block: int
    last_seq: int
    last_directive: int
    last_account: int
    last_checkpoint: int
    """The last block under a checkpoint so far; 0 = none."""
    last_closing: int
    """Number of the last closing so far; 0 = none."""
    blocks: int
    transfers: int
    head_hash: str
    """Of `last_block`, in hexadecimal."""
    files: dict[str, FileEntry]


@dataclass(slots=True)
class Manifest:
    segments: list[SegmentEntry] = field(default_factory=list)

    def to_json(self) -> bytes:
        segments = []
        for entry in self.segments:
            files = {name: {"bytes": file.bytes, "sha256": file.sha256} for name, file in sorted(entry.files.items())}
            numbers = {name: getattr(entry, name) for name in _ENTRY_INTEGERS}
            segments.append({"name": entry.name, **numbers, "head_hash": entry.head_hash, "files": files})
        return json.dumps({"format": FORMAT, "segments": segments}, indent=1).encode() + b"\n"

    @staticmethod
    def from_json(text: bytes) -> Manifest:
        """Raises ExportUnreadable."""
        try:
            document = json.loads(text)
            if document["format"] != FORMAT:
                raise ExportUnreadable(f"the manifest is of format {document['format']!r}, this program reads {FORMAT}")
            segments = [_entry(item, position) for position, item in enumerate(document["segments"], start=1)]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ExportUnreadable(f"{MANIFEST} cannot be read: {error}") from None
        return Manifest(segments)


_ENTRY_INTEGERS = (
    *("last_block", "last_seq", "last_directive", "last_account", "last_checkpoint", "last_closing"),
    *("blocks", "transfers"),
)


def segment_name(position: int) -> str:
    """Of the n-th segment, from 1."""
    return f"{position:06d}"


def _entry(item: Any, position: int) -> SegmentEntry:
    if item["name"] != segment_name(position):  # also keeps a name from leading out of the directory
        raise ExportUnreadable(f"segment {position} is named {item['name']!r}")
    numbers = {name: item[name] for name in _ENTRY_INTEGERS}
    if not all(type(value) is int and -1 <= value < 2**63 for value in numbers.values()):
        raise ExportUnreadable(f"segment {position}: its numbers are not numbers")
    files = {name: FileEntry(file["bytes"], file["sha256"]) for name, file in item["files"].items()}
    if not files.keys() <= SECTIONS.keys():
        raise ExportUnreadable(f"segment {position} lists unknown files: {sorted(files.keys() - SECTIONS.keys())}")
    if not all(type(file.bytes) is int and 0 < file.bytes <= FILE_BYTES_MAX for file in files.values()):
        raise ExportUnreadable(f"segment {position}: a file's size is not a size, or above {FILE_BYTES_MAX} bytes")
    if "transfers" in files and files["transfers"].bytes > SEGMENT_TRANSFERS_MAX * TRANSFER.itemsize:
        raise ExportUnreadable(f"segment {position} has more than {SEGMENT_TRANSFERS_MAX} transfers")
    return SegmentEntry(name=item["name"], **numbers, head_hash=str(item["head_hash"]), files=files)

"""Where a verification reads from: an export's directory, the same in memory, or a database behind the same door.

Nothing read here is believed: sizes are checked against each other, and what does not fit is ExportUnreadable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ledger.export import layout
from ledger.export.layout import (
    MANIFEST,
    MANIFEST_BYTES_MAX,
    SECTIONS,
    ExportUnreadable,
    Manifest,
    Records,
    SegmentEntry,
)

Bytes2 = npt.NDArray[np.uint8]
"""A matrix of bytes."""


@dataclass(frozen=True, slots=True)
class KeptClosing:
    """A closing as the ledger keeps it; nothing of it is believed."""

    number: int
    note: bytes
    """The signed statement."""
    key: bytes | None
    """What its leaves' order, salts and shares follow from; None if the exporter was not given it."""
    leaves: Callable[[], bytes]
    """`sum_tree.LEAF` records in tree order. Raises ExportUnreadable."""


class Source(Protocol):
    """Segments of whole blocks, in order. A source that can be pickled can be read by other processes too."""

    @property
    def segments(self) -> list[SegmentEntry]:
        """As the manifest has them."""

    def entry(self, segment: int) -> SegmentEntry:
        """One of them, also of a source that has grown meanwhile."""

    def read(self, segment: int, section: str) -> memoryview:
        """A section's bytes, empty if it is not there. Raises ExportUnreadable."""

    def closings(self) -> list[KeptClosing]:
        """All that there are, known before the first segment is read: the replay stops at their blocks."""


class DirectorySource:
    """An export's directory. Files are mapped, not read, so that their size is no matter of memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._segments: list[SegmentEntry] | None = None

    def __reduce__(self) -> tuple[type[DirectorySource], tuple[Path]]:
        return DirectorySource, (self.path,)

    @property
    def segments(self) -> list[SegmentEntry]:
        if self._segments is None:
            try:
                with (self.path / MANIFEST).open("rb") as file:
                    self._segments = Manifest.from_json(file.read(MANIFEST_BYTES_MAX)).segments
            except OSError as error:
                raise ExportUnreadable(f"{self.path} is no export: {error.strerror}: {MANIFEST}") from None
        return self._segments

    def entry(self, segment: int) -> SegmentEntry:
        if segment >= len(self.segments):
            self._segments = None  # it has grown
        return self.segments[segment]

    def read(self, segment: int, section: str) -> memoryview:
        entry = self.entry(segment)
        listed = entry.files.get(section)
        if listed is None:
            return memoryview(b"")
        try:
            found = np.memmap(self.path / entry.name / section, np.uint8, "r")
        except (OSError, ValueError) as error:
            raise ExportUnreadable(f"segment {entry.name}: {section} cannot be read: {error}") from None
        if len(found) != listed.bytes:
            raise ExportUnreadable(f"segment {entry.name}: {section} has {len(found)} bytes, not {listed.bytes}")
        return found.data

    def closings(self) -> list[KeptClosing]:
        return closings_in(self)


@dataclass(frozen=True, eq=False)
class MemorySource:
    """The same, held in memory: what `directory` would have, file by file."""

    manifest: Manifest
    files: Mapping[tuple[int, str], bytes]

    @property
    def segments(self) -> list[SegmentEntry]:
        return self.manifest.segments

    def entry(self, segment: int) -> SegmentEntry:
        return self.segments[segment]

    def read(self, segment: int, section: str) -> memoryview:
        listed = self.segments[segment].files.get(section)
        data = self.files.get((segment, section), b"")
        if len(data) != (listed.bytes if listed is not None else 0):
            raise ExportUnreadable(f"segment {segment + 1}: {section} has {len(data)} bytes, not as listed")
        return memoryview(data)

    def closings(self) -> list[KeptClosing]:
        return closings_in(self)


def records(source: Source, segment: int, section: str) -> Records:
    """A section's records, without a copy. Raises ExportUnreadable."""
    dtype = SECTIONS[section]
    data = source.read(segment, section)
    if dtype is None or len(data) % dtype.itemsize:
        raise ExportUnreadable(f"segment {source.entry(segment).name}: {section} is cut in the middle of a record")
    return np.frombuffer(data, dtype)


def closings_in(source: Source) -> list[KeptClosing]:
    """Of all segments' files. Raises ExportUnreadable."""
    found: list[KeptClosing] = []
    for segment in range(len(source.segments)):
        kept = records(source, segment, "closings")
        notes, leaves = source.read(segment, "closing-texts"), len(source.read(segment, "closing-leaves"))
        note_at = leaf_at = 0
        for record in kept:
            count = int(record["leaves"]) * layout.CLOSING_LEAF_BYTES
            note_end, leaf_end = note_at + int(record["note_length"]), leaf_at + count
            if count < 0 or note_end > len(notes) or leaf_end > leaves:
                raise ExportUnreadable(f"segment {source.entry(segment).name}: a closing is longer than its files")
            read = partial(_part, source, segment, leaf_at, leaf_end)
            key = record["key"].tobytes() if record["has_key"] else None
            found.append(KeptClosing(int(record["number"]), bytes(notes[note_at:note_end]), key, read))
            note_at, leaf_at = note_end, leaf_end
        if (note_at, leaf_at) != (len(notes), leaves):
            raise ExportUnreadable(f"segment {source.entry(segment).name}: the closings' files are longer than listed")
    return found


def _part(source: Source, segment: int, start: int, end: int) -> bytes:
    return bytes(source.read(segment, "closing-leaves")[start:end])


def file_problem(source: Source, segment: int) -> str | None:
    """Why a segment's files are not those that the manifest lists, or None."""
    entry = source.entry(segment)
    for name, file in entry.files.items():
        if hashlib.sha256(source.read(segment, name)).hexdigest() != file.sha256:
            return f"segment {entry.name}: {name} is not the file that the manifest lists (SHA-256)"
    return None


class Segment:
    """One segment's records, and the texts that go with them."""

    def __init__(self, source: Source, number: int) -> None:
        """`number` counts from 0. Raises ExportUnreadable."""
        self.number = number
        self.name = source.entry(number).name
        found: dict[str, Records] = {
            name: records(source, number, name) for name, dtype in SECTIONS.items() if dtype is not None
        }
        self.blocks, self.transfers = found["blocks"], found["transfers"]
        self.hold_events, self.tombstones = found["hold-events"], found["tombstones"]
        self.evidence, self.accounts = found["evidence"], found["accounts"]
        self.directives, self.checkpoints = found["directives"], found["checkpoints"]
        self.range_keys = found["range-keys"]
        self.block_salts = found["block-salts"]
        if len(self.block_salts) and self.block_salts["number"].tolist() != self.blocks["number"].tolist():
            raise ExportUnreadable(f"segment {self.name}: its block salts are not those of its blocks")
        if (self.tombstones["length"] > layout.DIGEST_BYTES).any():
            raise ExportUnreadable(f"segment {self.name}: a tombstone's guard is too long")
        self._bodies = source.read(number, "evidence-bodies")
        self._body_ends = self._ends("evidence-bodies", self._bodies, self.evidence["length"])
        self._account_texts = source.read(number, "account-texts")
        self._account_ends = self._ends("account-texts", self._account_texts, self._account_lengths())
        self._directive_texts = source.read(number, "directive-texts")
        lengths = self.directives["kind_length"].astype(np.int64) + self.directives["body_length"]
        self._directive_ends = self._ends("directive-texts", self._directive_texts, lengths)
        self._notes = source.read(number, "checkpoint-texts")
        lengths = self.checkpoints["note_length"].astype(np.int64) + self.checkpoints["supply_length"]
        self._note_ends = self._ends("checkpoint-texts", self._notes, lengths)

    def check_listed(self, entry: SegmentEntry) -> None:
        """Is this what the manifest says of it? Raises ExportUnreadable."""
        found = (len(self.blocks), len(self.transfers))
        head = self.blocks[-1]["hash"].tobytes().hex() if len(self.blocks) else entry.head_hash
        if found != (entry.blocks, entry.transfers) or head != entry.head_hash:
            raise ExportUnreadable(
                f"segment {self.name} has {found[0]} blocks, {found[1]} transfers and the head {head}, but the manifest"
                f" says {entry.blocks}, {entry.transfers} and {entry.head_hash}"
            )

    def bodies(self, start: int, end: int) -> list[bytes]:
        """Of the evidence records start to end."""
        ends = self._body_ends
        return [bytes(self._bodies[ends[row] : ends[row + 1]]) for row in range(start, end)]

    def account_texts(self, start: int, end: int) -> list[tuple[bytes, bytes | None]]:
        """(class, holder's key) of accounts start to end."""
        found: list[tuple[bytes, bytes | None]] = []
        names = self.accounts["class_length"][start:end].tolist()
        keys = self.accounts["key_length"][start:end].tolist()
        for row, (name, key) in enumerate(zip(names, keys, strict=True), start=start):
            text = bytes(self._account_texts[self._account_ends[row] : self._account_ends[row + 1]])
            found.append((text[:name], text[name:] if key >= 0 else None))
        return found

    def account_page(self, start: int, end: int) -> tuple[bytes, Bytes2, bool] | None:
        """(class, keys as rows, whether there are keys) of accounts start to end, if they are all of one class and one
        length of key, as those opened together mostly are."""
        names, keys = self.accounts["class_length"][start:end], self.accounts["key_length"][start:end]
        if start == end or (names != names[0]).any() or (keys != keys[0]).any():
            return None
        name, key = int(names[0]), int(keys[0])
        rows = np.frombuffer(
            self._account_texts[self._account_ends[start] : self._account_ends[end]], np.uint8
        ).reshape(end - start, name + max(key, 0))
        if (rows[:, :name] != rows[0, :name]).any():
            return None
        return rows[0, :name].tobytes(), rows[:, name:], key >= 0

    def directive_texts(self, start: int, end: int) -> list[tuple[bytes, bytes]]:
        """(kind, body) of directives start to end."""
        found = []
        for row in range(start, end):
            text = bytes(self._directive_texts[self._directive_ends[row] : self._directive_ends[row + 1]])
            length = int(self.directives["kind_length"][row])
            found.append((text[:length], text[length:]))
        return found

    def notes(self) -> list[tuple[int, bytes, bytes]]:
        """(size, signed note, supply statement) of every checkpoint."""
        found = []
        for row, size in enumerate(self.checkpoints["size"].tolist()):
            text = bytes(self._notes[self._note_ends[row] : self._note_ends[row + 1]])
            length = int(self.checkpoints["note_length"][row])
            found.append((size, text[:length], text[length:]))
        return found

    def _account_lengths(self) -> Any:
        key = self.accounts["key_length"].astype(np.int64)
        if (key < -1).any():
            raise ExportUnreadable(f"segment {self.name}: an account's key has a negative length")
        return self.accounts["class_length"].astype(np.int64) + np.maximum(key, 0)

    def _ends(self, section: str, data: memoryview, lengths: Any) -> list[int]:
        ends = np.zeros(len(lengths) + 1, np.int64)
        np.cumsum(lengths.astype(np.int64), out=ends[1:])
        if int(ends[-1]) != len(data):
            raise ExportUnreadable(f"segment {self.name}: {section} has {len(data)} bytes, its records say {ends[-1]}")
        found: list[int] = ends.tolist()
        return found

"""An export's directory: segments that are there whole or not at all.

1. A segment is written under a name that ends in `.partial`, each file fsynced, then renamed, then listed in the
   manifest, which is replaced by a rename too. A directory that the manifest does not list is left from a killed run:
   it is removed.
2. A later run goes on after the last block of the last listed segment, if that block is still the database's.
3. Memory holds one group of blocks; a database transaction lasts for one segment.

Files can be read by their owner alone: they say who paid whom, and the salts that hide it in the public log.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import psycopg

from ledger.export import layout
from ledger.export.layout import MANIFEST, ExportUnreadable, FileEntry, Manifest, SegmentEntry, segment_name
from ledger.export.log import LogSource, NoLog
from ledger.export.source import GROUP_TRANSFERS, Group, JournalSource, Position

SEGMENT_TRANSFERS = 1_000_000
SEGMENT_BYTES = 512 * 2**20
"""A segment ends with the block that reaches either."""
_PARTIAL = ".partial"

Progress = Callable[[int, int], None]
"""(transfers exported by this run, transfers there are to export)"""


class ExportRefused(ValueError):
    """The directory is no export, or not one of this database; or the database has rows that belong to no block."""


def export_journal(
    connection: psycopg.Connection[Any],
    directory: Path,
    *,
    log: LogSource | None = None,
    progress: Progress | None = None,
    segment_transfers: int = SEGMENT_TRANSFERS,
) -> Manifest:
    """Write, or go on with, an export. `connection` must not be in a transaction; each segment takes its own.

    Raises: ExportRefused, ExportUnreadable, psycopg.Error, OSError. What was complete stays, and a later run goes on.
    """
    log = log if log is not None else NoLog()
    source = JournalSource(connection)
    target = ExportDirectory(directory)
    with _snapshot(connection):
        _check_same_history(target, source)
        total = source.transfers_after(target.position)
    done = 0
    while True:
        with _snapshot(connection):
            entry = target.add_segment(source, log, segment_transfers=segment_transfers)
            done += entry.transfers if entry is not None else 0
            if progress is not None:
                progress(done, max(done, total))
            # one that is not full has come to the end of what there was: a busy ledger is not run after for ever
            if entry is None or (entry.transfers < segment_transfers and _bytes(entry) < SEGMENT_BYTES):
                _check_strays(source, target.position)
                return target.manifest


@contextmanager
def _snapshot(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """One transaction that sees one moment; nothing is written in it."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        yield


def _check_same_history(target: ExportDirectory, source: JournalSource) -> None:
    position = target.position
    if not position.is_start and source.block_hash(position.block) != position.block_hash:
        raise ExportRefused(
            f"block {position.block} of the export is not the database's: another ledger, or history was rewritten"
        )


def _check_strays(source: JournalSource, position: Position) -> None:
    for table, first, count in source.strays(position):
        raise ExportRefused(
            f"{count} row(s) of {table} from {first} on belong to no block: run `verify` on the database"
        )


class ExportDirectory:
    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Opens an export, or begins one in an empty or new directory. Not `durable`: for files of a moment, which need
        no fsync. Raises ExportRefused, ExportUnreadable."""
        self.path = path
        self._durable = durable
        self.manifest = Manifest()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        listed = path / MANIFEST
        if listed.exists():
            self.manifest = Manifest.from_json(listed.read_bytes())
        elif any(entry.suffix != _PARTIAL and not _is_segment(entry) for entry in path.iterdir()):
            raise ExportRefused(f"{path} holds something else: give an empty directory or an export")
        self._remove_unlisted()
        for entry in self.manifest.segments:
            for name, file in entry.files.items():
                found = path / entry.name / name
                if not found.is_file() or found.stat().st_size != file.bytes:
                    raise ExportRefused(f"{found} is missing or has another size: remove the export and begin anew")

    @property
    def position(self) -> Position:
        if not self.manifest.segments:
            return Position()
        last = self.manifest.segments[-1]
        return Position(
            last.last_block,
            bytes.fromhex(last.head_hash),
            last.last_seq,
            last.last_directive,
            last.last_account,
            last.last_checkpoint,
            last.last_closing,
        )

    def add_segment(
        self, source: JournalSource, log: LogSource, *, segment_transfers: int = SEGMENT_TRANSFERS
    ) -> SegmentEntry | None:
        """Write the next segment; None if there is nothing new."""
        name = segment_name(len(self.manifest.segments) + 1)
        partial = self.path / (name + _PARTIAL)
        before = self.position
        with _Segment(partial, self._durable) as segment:
            is_end = True
            for group in source.groups(before, transfers_max=min(segment_transfers, GROUP_TRANSFERS)):
                segment.add(group)
                if segment.transfers >= segment_transfers or segment.size >= SEGMENT_BYTES:
                    is_end = False
                    break
            after = segment.position or before
            checkpoint = segment.add_log(log, before, after, is_end=is_end)
            closing = segment.add_closings(log, before, after, is_end=is_end)
        if not segment.files:
            shutil.rmtree(partial)
            return None
        entry = SegmentEntry(
            name=name,
            last_block=after.block,
            last_seq=after.seq,
            last_directive=after.directive,
            last_account=after.account,
            last_checkpoint=checkpoint,
            last_closing=closing,
            blocks=segment.blocks,
            transfers=segment.transfers,
            head_hash=after.block_hash.hex(),
            files=segment.files,
        )
        self._sync(partial)
        partial.rename(self.path / name)
        self._sync(self.path)
        self.manifest.segments.append(entry)
        self._write_manifest()
        return entry

    def _write_manifest(self) -> None:
        partial = self.path / (MANIFEST + _PARTIAL)
        with _create(partial) as file:
            file.write(self.manifest.to_json())
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        partial.replace(self.path / MANIFEST)
        self._sync(self.path)

    def _sync(self, directory: Path) -> None:
        """Make names durable."""
        if not self._durable:
            return
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _remove_unlisted(self) -> None:
        known = {entry.name for entry in self.manifest.segments}
        for entry in self.path.iterdir():
            if entry.name == MANIFEST + _PARTIAL:
                entry.unlink()
            elif entry.is_dir() and entry.name.removesuffix(_PARTIAL) not in known and _is_segment(entry):
                shutil.rmtree(entry)


@dataclass
class _Segment:
    """The files of one segment while they are written."""

    path: Path
    durable: bool
    blocks: int = 0
    transfers: int = 0
    size: int = 0
    """Bytes of all files so far."""
    position: Position | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    _open: dict[str, tuple[BinaryIO, Any]] = field(default_factory=dict)

    def __enter__(self) -> _Segment:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(mode=0o700)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for name, (file, digest) in self._open.items():
            if kind is None:
                file.flush()
                if self.durable:
                    os.fsync(file.fileno())
                self.files[name] = FileEntry(file.tell(), digest.hexdigest())
            file.close()
        if kind is not None:
            shutil.rmtree(self.path, ignore_errors=True)

    def add(self, group: Group) -> None:
        for name, data in group.sections.items():
            self.append(name, data)
        self.blocks += group.blocks
        self.transfers += group.transfers
        self.position = group.position

    def add_log(self, log: LogSource, before: Position, after: Position, *, is_end: bool) -> int:
        """Checkpoints of trees that this export has whole, and the salts of its transfers. Returns the last block.

        At the journal's end all that there are: one of a block that the journal does not have is the proof of a cut.
        """
        block = before.checkpoint
        for checkpoint in log.checkpoints(after=block, through=INT64_MAX if is_end else after.block):
            block = checkpoint.block
            record = (checkpoint.size, len(checkpoint.note), len(checkpoint.supply))
            self.append("checkpoints", _pack(layout.CHECKPOINT, record))
            self.append("checkpoint-texts", checkpoint.note + checkpoint.supply)
        for number in range((before.seq + RANGE_MASK) >> RANGE_BITS, (after.seq + RANGE_MASK) >> RANGE_BITS):
            key = log.range_key(number)
            if key is None:
                break
            self.append("range-keys", _pack(layout.RANGE_KEY, (number, key)))
        self._add_block_salts(log, before, after)
        return block

    def _add_block_salts(self, log: LogSource, before: Position, after: Position) -> None:
        salts = [(number, log.block_salt(number)) for number in range(before.block + 1, after.block + 1)]
        if salts and salts[0][1] is not None:
            self.append("block-salts", np.array(salts, layout.BLOCK_SALT).tobytes())

    def add_closings(self, log: LogSource, before: Position, after: Position, *, is_end: bool) -> int:
        """Closings of blocks that this export has; at the journal's end all that there are. Returns the last number.

        When the segment is full the rest go into the next ones: leaves are many, and a file's size is bounded.
        """
        number = before.closing
        for closing in log.closings(after=number, through=INT64_MAX if is_end else after.block):
            number = closing.number
            count = 0
            for leaves in closing.leaves():
                self.append("closing-leaves", leaves)
                count += len(leaves)
            if count % layout.CLOSING_LEAF_BYTES:
                raise ExportUnreadable(f"closing {number} keeps {count} bytes of leaves: the last one is cut")
            key = (closing.key is not None, closing.key or bytes(layout.DIGEST_BYTES))
            record = (number, *key, len(closing.note), count // layout.CLOSING_LEAF_BYTES)
            self.append("closings", _pack(layout.CLOSING, record))
            self.append("closing-texts", closing.note)
            if self.size >= SEGMENT_BYTES:
                break
        return number

    def append(self, name: str, data: bytes) -> None:
        if not data:
            return
        if name not in self._open:
            self._open[name] = (_create(self.path / name), hashlib.sha256())
        file, digest = self._open[name]
        file.write(data)
        digest.update(data)
        self.size += len(data)


INT64_MAX = 2**63 - 1
RANGE_BITS = 20
RANGE_MASK = (1 << RANGE_BITS) - 1
"""Transfers seq = r * 2^20 + 1 to (r + 1) * 2^20 share a salt key."""


def _bytes(entry: SegmentEntry) -> int:
    return sum(file.bytes for file in entry.files.values())


def _pack(dtype: Any, values: tuple[object, ...]) -> bytes:
    return np.array([values], dtype).tobytes()


def _create(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", buffering=1 << 20)


def _is_segment(path: Path) -> bool:
    name = path.name.removesuffix(_PARTIAL)
    return path.is_dir() and len(name) == 6 and name.isdecimal()

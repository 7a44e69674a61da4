"""The transparency log's checkpoints against the replay: signature, tree, block and supply statement.

A checkpoint is what a rewriter of history cannot make: whoever changes anything, digests and hashes of all later blocks
included, needs the log's key to sign the tree and the block hash that come of it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.transparency.checkpoints import Checkpoint, open_checkpoint
from kernel.transparency.notes import Note, NoteRefused, VerifierKey, from_base64
from ledger.export.layout import Records
from ledger.verifier import merkle
from ledger.verifier.merkle import Peaks, Piece, SpanResult, SpanTask, add_span, root_of
from ledger.verifier.report import Finding, Report
from ledger.verifier.source import Segment, Source, records

Submit = Callable[[SpanTask], "Future[SpanResult]"]


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a checkpoint says of its tree."""

    size: int
    root: bytes


class LogCheck:
    """Fed with segments in order; findings are returned by `finish`, in order of tree size."""

    def __init__(self, source: Source, report: Report, submit: Submit, *, log_key: VerifierKey | None) -> None:
        self._source, self._report, self._submit = source, report, submit
        self._log_key = log_key
        self._findings: list[Finding] = []
        self._keys: dict[int, bytes] = {}
        self._claims: dict[int, _Claim] = {}
        self._last: _Claim | None = None
        self._last_block = 0
        """The last block that a checkpoint has named."""
        self._head_block = 0
        self._leaves = 0
        """Transfers taken in so far."""
        self._pieces: list[Piece] = []
        self._span_first = 0
        self._running: deque[Future[SpanResult]] = deque()
        self._span_roots: list[bytes] = []
        self._peaks: Peaks = []
        self._late: list[int] = []
        self._good = 0
        """The largest tree found as signed: what is wrong comes after it."""
        self._last_named = 0
        """The largest tree whose block is there as named."""
        self._is_rewritten = False
        self._is_hashed = True
        self._first_closed: int | None = None
        """The first block named by a checkpoint whose commitment cannot be opened."""
        self._is_wrong = False

    def segment(self, segment: Segment) -> None:
        for number, key in zip(segment.range_keys["range"].tolist(), segment.range_keys["key"].tolist(), strict=True):
            self._keys.setdefault(number, bytes(key))
        if len(segment.blocks):
            self._head_block = int(segment.blocks[-1]["number"])
        for size, note, supply in segment.notes():
            self._take(size, note, supply)
        self._add_leaves(segment.number, len(segment.transfers))
        while len(self._running) > 1 and self._running[0].done():
            self._gather()

    def finish(self, *, is_whole: bool) -> list[Finding]:
        """Not `is_whole`: the reader stopped before the end, so what is missing says nothing."""
        self._close_span()
        while self._running:
            self._gather()
        for size in self._late:
            self._check_late(size)
        if not is_whole:
            return self._findings
        report = self._report
        if self._last is None:
            if self._log_key is not None:
                self._findings.append(Finding("log", None, None, "there is no checkpoint of the log"))
            else:
                report.unproved.append("the transparency log: there are no checkpoints")
        else:
            if self._log_key is None:
                report.unproved.append("the checkpoints' signatures: give the log's public key (--log-key)")
            if self._first_closed is not None:
                report.unproved.append(
                    f"which blocks the checkpoints name: the salts from block {self._first_closed} on are not in the"
                    " export"
                )
            if not self._is_hashed:
                report.unproved.append("the log's roots: the keys of the leaves' salts are not in the export")
            if self._leaves > self._last.size:
                report.unproved.append(f"transfers from seq {self._last.size + 1} on are under no checkpoint yet")
            elif self._head_block > self._last_block:
                report.unproved.append(f"blocks from {self._last_block + 1} on are under no checkpoint yet")
        for claim in self._claims.values():
            if claim.size <= self._leaves:
                continue  # its tree was not hashed
            message = f"the log had signed {claim.size} transfers, {self._leaves} are there: the tail was cut"
            self._findings.append(Finding("log", None, self._leaves + 1, message))
        return self._findings

    # --- notes

    def _take(self, size: int, note: bytes, supply: bytes) -> None:
        try:
            if self._log_key is not None:
                checkpoint = open_checkpoint(note, log_key=self._log_key).checkpoint
                self._report.proved["signatures of checkpoints"] += 1
            else:
                checkpoint = Checkpoint.parse(Note.parse(note).text)
            if checkpoint.size != size:
                raise NoteRefused(f"it is of size {checkpoint.size}")
            last = self._last
            if last is not None and size < last.size:
                raise NoteRefused(f"it comes after the one of {last.size}")
            if last is not None and size == last.size and checkpoint.root != last.root:
                raise NoteRefused("there is another one of this size, with another root")
        except NoteRefused as error:
            self._complain(size, f"the checkpoint of {size} transfers: {error}")
            return
        self._check_lines(checkpoint, supply)
        claim = _Claim(size, checkpoint.root)
        if claim == last:
            return  # a later block with the same tree
        self._last = claim
        if size == 0:
            if claim.root != merkle.EMPTY_ROOT:
                self._complain(0, "the checkpoint of the empty tree has another root")
        else:
            self._claims[size] = claim
            if size <= self._span_first:
                self._late.append(size)

    def _check_lines(self, checkpoint: Checkpoint, supply: bytes) -> None:
        """What it says beside its tree."""
        try:
            header = self._named_block(checkpoint)
        except NoteRefused as error:
            if not self._is_rewritten:  # nothing after it can be right: one finding says it
                self._is_rewritten = True
                message = f"the checkpoint of {checkpoint.size} transfers: {error}"
                self._complain(checkpoint.size, message, first=self._last_named + 1)
            return
        self._last_named = checkpoint.size
        try:
            self._check_supply(checkpoint, header, supply)
        except NoteRefused as error:
            self._complain(checkpoint.size, f"the checkpoint of {checkpoint.size} transfers: {error}")

    def _named_block(self, checkpoint: Checkpoint) -> Any:
        """Raises NoteRefused."""
        words = checkpoint.extension("block")
        if words is None or len(words) != 2 or not words[0].isascii() or not words[0].isdecimal():
            raise NoteRefused("it names no block")
        number, commitment = int(words[0]), from_base64(words[1])
        if number <= self._last_block:
            raise NoteRefused(f"it names block {number}, and one before it block {self._last_block}")
        self._last_block = number
        found = self.find_block(number)
        if found is None:
            raise NoteRefused(f"block {number}, which it names, is not there")
        header, salt = found
        last_seq = int(header["first_seq"]) + int(header["transfer_count"]) - 1
        if salt is None:
            self._first_closed = self._first_closed or number
        elif block_commitment(salt, header["hash"].tobytes()) != commitment:
            raise NoteRefused(f"block {number} is not the one that it names: history was rewritten")
        if last_seq != checkpoint.size:
            raise NoteRefused(f"block {number} does not end with transfer {checkpoint.size}: history was rewritten")
        self._report.proved["blocks named by checkpoints"] += salt is not None
        return header

    def _check_supply(self, checkpoint: Checkpoint, header: Any, supply: bytes) -> None:
        """Raises NoteRefused."""
        words = checkpoint.extension("supply")
        if words is None or len(words) != 1:
            raise NoteRefused("it names no supply statement")
        statement = supply_statement(header, ledger=self._report.ledger, currency=self._report.currency)
        if from_base64(words[0]) != sha256(statement).digest():
            raise NoteRefused("the supply statement that it names is not what its block says")
        if supply and supply != statement:
            raise NoteRefused("the supply statement kept with it is another than it names")
        self._report.proved["supply statements"] += 1

    def find_block(self, number: int) -> tuple[Any, bytes | None] | None:
        """The block, wherever it lies, and the salt of its commitment if that is there; None if the block is not."""
        first = 1
        for position, entry in enumerate(self._source.segments):
            if entry.last_block >= number:
                blocks: Records = records(self._source, position, "blocks")
                index = number - first
                if not 0 <= index < len(blocks) or int(blocks[index]["number"]) != number:
                    return None
                salts = records(self._source, position, "block-salts")
                return blocks[index], salts[index]["salt"].tobytes() if len(salts) == len(blocks) else None
            first = entry.last_block + 1
        return None

    # --- leaves

    def _add_leaves(self, segment: int, count: int) -> None:
        taken = 0
        while taken < count:
            step = min(count - taken, merkle.SPAN - (self._leaves - self._span_first))
            self._pieces.append(Piece(segment, taken, taken + step))
            taken, self._leaves = taken + step, self._leaves + step
            if self._leaves - self._span_first == merkle.SPAN:
                self._close_span()

    def _close_span(self) -> None:
        first, end = self._span_first, self._leaves
        key = self._keys.get(first >> merkle.RANGE_BITS)
        if end > first and self._is_hashed:
            if key is None:
                self._is_hashed = False
            else:
                sizes = tuple(size for size in self._claims if first < size <= end)
                self._running.append(self._submit(SpanTask(first, key, tuple(self._pieces), sizes)))
        self._span_first, self._pieces = end, []

    def _gather(self) -> None:
        result = self._running.popleft().result()
        for size, peaks in sorted(result.peaks.items()):
            self._compare(size, root_of([*self._peaks, *peaks]))
        if result.root is not None:
            self._span_roots.append(result.root)
            add_span(self._peaks, result.root)
        self._report.proved["leaves of the log"] += result.leaves

    def _check_late(self, size: int) -> None:
        """A checkpoint that was sealed after its leaves had been exported: its span is hashed once more."""
        if size not in self._claims or not self._is_hashed:
            return
        first = (size - 1) // merkle.SPAN * merkle.SPAN
        pieces, begin = [], 0
        for position, entry in enumerate(self._source.segments):
            low, high = max(first - begin, 0), min(size - begin, entry.transfers)
            if low < high:
                pieces.append(Piece(position, low, high))
            begin += entry.transfers
        task = SpanTask(first, self._keys[first >> merkle.RANGE_BITS], tuple(pieces), (size,))
        peaks: Peaks = []
        for root in self._span_roots[: first // merkle.SPAN]:
            add_span(peaks, root)
        self._compare(size, root_of([*peaks, *self._submit(task).result().peaks[size]]))

    def _compare(self, size: int, root: bytes) -> None:
        claim = self._claims.pop(size)
        if claim.root == root:
            self._good = max(self._good, size) if not self._is_wrong else self._good
            self._report.proved["roots of checkpoints"] += 1
        elif not self._is_wrong:
            self._is_wrong = True  # every later tree holds the same wrong leaf: one finding says it
            self._complain(
                size,
                f"the tree of {size} transfers is not the one that was signed: one of seq {self._good + 1} to {size}"
                " is not what it was",
                first=self._good + 1,
            )

    def _complain(self, size: int, message: str, *, first: int | None = None) -> None:
        """`first`: the first seq that may be what is wrong. It comes at the block of the checkpoint of `size`: what the
        replay has found before that is nearer to it."""
        self._findings.append(Finding("log", self._block_of(size), first or size or None, message))

    def _block_of(self, seq: int) -> int | None:
        for position, entry in enumerate(self._source.segments):
            if entry.last_seq >= seq and entry.blocks:
                blocks = records(self._source, position, "blocks")
                last = blocks["first_seq"].astype(np.int64) + blocks["transfer_count"].astype(np.int64) - 1
                row = int(np.searchsorted(last, seq))
                return int(blocks[min(row, len(blocks) - 1)]["number"])
        return None


def block_commitment(salt: bytes, block_hash: bytes) -> bytes:
    """What checkpoints and closing statements say of a block."""
    return sha256(b"jiaozi-block-commitment-v1" + salt + block_hash).digest()


def supply_statement(header: Any, *, ledger: str, currency: str) -> bytes:
    """The document whose hash a checkpoint's `supply` line has, of a block's header."""
    issued, redeemed = int(header["issued"]), int(header["redeemed"])
    try:
        booked_at = from_micros(int(header["booked_at"])).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    except OverflowError:
        raise NoteRefused("the block that it names has a time that is none") from None
    return jws.canonical_json(
        {
            "ledger": ledger,
            "currency": currency,
            "block": int(header["number"]),
            "seq": int(header["first_seq"]) + int(header["transfer_count"]) - 1,
            "booked_at": booked_at,
            "issued_minor": str(issued),
            "redeemed_minor": str(redeemed),
            "circulation_minor": str(issued - redeemed),
            "vaults_minor": str(int(header["vaults"])),
            "wallets_minor": str(int(header["wallets"])),
            "held_minor": str(int(header["held"])),
            "offline_minor": str(int(header["offline"])),
        }
    )

"""From an export to a report, in one pass.

1. Segment by segment: its blocks, documents and transfers are replayed in order (`replay`, `book`).
2. Beside that, in other processes: the files' SHA-256, the signatures of instructions, the ids (I7), the log's tree.
3. The log's checkpoints against both (`log`), the closings against the books at their blocks (`closings`).
4. At the end: ids that occur twice, the supply in full, and all findings in the journal's order.

Memory holds the accounts' totals, open holds, tombstones, and one segment, never the journal.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import UUID

import numpy as np

from kernel.ids import show
from kernel.transparency.notes import VerifierKey
from ledger.export.layout import EVIDENCE, ExportUnreadable
from ledger.verifier import identifiers
from ledger.verifier.book import Book
from ledger.verifier.closings import ClosingCheck
from ledger.verifier.crew import Crew, Problems
from ledger.verifier.documents import InstructionCheck
from ledger.verifier.log import LogCheck
from ledger.verifier.replay import FINDINGS_MAX, Enough, Replay
from ledger.verifier.report import Finding, Report
from ledger.verifier.source import DirectorySource, Segment, Source, records

_ALONE_SECONDS = 1.0
"""Journals of less work are verified by this process alone: others would take longer to start."""
_TRANSFER_SECONDS = 1e-6
_EVIDENCE_SECONDS = 100e-6
"""An instruction, with its signature. Both roughly: to tell a journal that is worth several processes."""
_SIGNATURES = 256
"""Handed over at a time."""
_LAST = 2**63

Progress = Callable[[int, int], None]
"""(transfers verified, transfers there are)"""


@dataclass(frozen=True, slots=True)
class Known:
    """What the reader knows from elsewhere. Without it is proved that a journal is sound, not which journal it is."""

    anchor: tuple[int, bytes] | None = None
    """Number and hash of a block: nobody else can tell a journal whose tail was cut off from a younger one."""
    log_key: VerifierKey | None = None
    """The key that signs the log's checkpoints."""
    genesis_sha256: str | None = None
    """Of genesis, which names the operators."""


NOTHING_KNOWN = Known()


def verify_export(
    path: Path, *, known: Known = NOTHING_KNOWN, progress: Progress | None = None, processes: int | None = None
) -> Report:
    """Verify an export's directory. `processes` 0 = this one alone; None = by the work, at most one a core.

    Raises ExportUnreadable if there is no export at all.
    """
    source = DirectorySource(path)
    if processes is None:
        work = sum(entry.transfers for entry in source.segments) * _TRANSFER_SECONDS
        listed = [entry.files["evidence"].bytes for entry in source.segments if "evidence" in entry.files]
        work += sum(listed) // EVIDENCE.itemsize * _EVIDENCE_SECONDS
        processes = 0 if work < _ALONE_SECONDS else None
    return verify_source(source, known=known, progress=progress, processes=processes)


def verify_source(
    source: Source, *, known: Known = NOTHING_KNOWN, progress: Progress | None = None, processes: int | None = 0
) -> Report:
    """The same of any source that is complete."""
    total = sum(entry.transfers for entry in source.segments)
    with Verification(source, known=known, processes=processes) as verification:
        for number in range(len(source.segments)):
            if not verification.segment(number):
                break
            if progress is not None:
                progress(verification.report.head_seq, total)
        return verification.finish()


class Verification:
    """One verification: `segment` for each, then `finish`."""

    def __init__(
        self,
        source: Source,
        *,
        known: Known = NOTHING_KNOWN,
        processes: int | None = 0,
        pause_after: int | None = None,
        on_pause: Callable[[Book], None] | None = None,
    ) -> None:
        """`on_pause` is called with the books after block `pause_after`."""
        self.report = Report()
        self._source, self._known = source, known
        self._crew = Crew(source, processes=processes)
        self._log = LogCheck(source, self.report, self._crew.hash_span, log_key=known.log_key)
        self._closings = ClosingCheck(
            source, self.report, self._crew.make_tree, log_key=known.log_key, find_block=self._log.find_block
        )
        self._pause_after, self._on_pause = pause_after, on_pause
        pauses = self._closings.blocks | ({pause_after} if pause_after is not None else set())
        self._replay = Replay(
            self.report, verify=self._take, anchor=known.anchor, pause_after=pauses, on_pause=self._pause
        )
        self._beside: list[Finding] = []
        """Findings of what runs beside the replay."""
        self._files: list[tuple[int, Future[str | None]]] = []
        self._broken_files: list[Finding] = []
        self._ids: list[Future[None] | None] = []
        self._mixes: list[identifiers.Mixes] = []
        self._checks: list[tuple[InstructionCheck, int]] = []
        self._verifying: deque[tuple[list[tuple[InstructionCheck, int]], Future[Problems]]] = deque()
        self._directory = TemporaryDirectory(prefix="jiaozi-verify-")

    def __enter__(self) -> Verification:
        return self

    def __exit__(self, *arguments: object) -> None:
        self._crew.__exit__(*arguments)
        self._directory.cleanup()

    def segment(self, number: int) -> bool:
        """Verify the next segment. False: enough is wrong, or it cannot be read."""
        try:
            # the replay waits for none of these
            self._files.append((number, self._crew.check_files(number)))
            if self._crew.is_alone:
                self._mixes.append(identifiers.sorted_mixes(self._source, number))
            else:
                self._ids.append(self._crew.spill_ids(number, self._spilled(number)))
            segment = Segment(self._source, number)
            segment.check_listed(self._source.segments[number])
            try:
                self._replay.segment(segment)
                self._closings.follow(segment.blocks, self._replay.book)
            finally:  # however much the replay has found, the log may name an earlier place
                self._log.segment(segment)
            self._flush()
            self._gather_signatures(everything=False)
        except Enough:
            self.report.is_complete = False
        except ExportUnreadable as error:
            self._unreadable(number, str(error))
        except (ValueError, OverflowError, IndexError, KeyError, TypeError) as error:
            # records that no ledger has written, in a way that no check above has foreseen
            self._unreadable(number, f"{type(error).__name__}: {error}")
        return self.report.is_complete

    def _pause(self, book: Book) -> None:
        if self.report.head_block == self._pause_after and self._on_pause is not None:
            self._on_pause(book)
        self._closings.at(book)

    def settle(self) -> None:
        """Wait until no process reads any segment."""
        self._crew.drain()

    def finish(self) -> Report:
        report = self.report
        self._flush()
        try:
            if report.is_complete:
                self._check_ids()
                self._check_genesis()
                self._replay.finish()
        except Enough:
            report.is_complete = False
        except ExportUnreadable as error:
            self._unreadable(len(self._source.segments) - 1, str(error))
        self._gather_signatures(everything=True)
        self._gather_files()
        try:
            self._beside += self._closings.finish(is_whole=report.is_complete)
            self._beside += self._log.finish(is_whole=report.is_complete)
        except (ExportUnreadable, ValueError, IndexError, KeyError, TypeError) as error:
            self._beside.append(Finding("log", None, None, f"its trees cannot be read: {error}"))
            report.is_complete = False
        merged = _in_order(self._broken_files, report.findings, self._beside)
        if len(merged) > FINDINGS_MAX:
            report.is_complete = False
        report.findings = merged[:FINDINGS_MAX]
        return report

    # --- beside the replay

    def _take(self, check: InstructionCheck, block: int) -> None:
        self._checks.append((check, block))
        if len(self._checks) >= _SIGNATURES:
            self._flush()

    def _flush(self) -> None:
        if self._checks:
            batch, self._checks = self._checks, []
            future = self._crew.verify(self.report.ledger, self.report.currency, [check for check, _ in batch])
            self._verifying.append((batch, future))
        self._gather_signatures(everything=False)

    def _gather_signatures(self, *, everything: bool) -> None:
        while self._verifying and (everything or self._verifying[0][1].done()):
            batch, future = self._verifying.popleft()
            problems = future.result()
            self.report.proved["instructions signed by the owner"] += len(batch) - len(problems)
            for place, problem in problems:
                check, block = batch[place]
                self._beside.append(Finding("I8", block, check.seq, problem))

    def _gather_files(self) -> None:
        for number, future in self._files:
            try:
                problem = future.result()
            except ExportUnreadable as error:
                problem = str(error)
            if problem is not None:
                self._broken_files.append(Finding("I4", self._first_block(number), None, problem))
            else:
                self.report.proved["files"] += len(self._source.segments[number].files)

    def _first_block(self, number: int) -> int:
        return self._source.segments[number - 1].last_block + 1 if number else 1

    def _unreadable(self, number: int, message: str) -> None:
        block = self._replay.report.head_block + 1
        self.report.findings.append(Finding("I4", block, None, f"cannot be read: {message}"))
        self.report.is_complete = False

    def _spilled(self, number: int) -> Path:
        return Path(self._directory.name) / f"ids-{number}"

    # --- at the end

    def _check_ids(self) -> None:
        mixes = self._mixes
        for number, future in enumerate(self._ids):
            if future is not None:
                future.result()
            mixes.append(identifiers.mapped(self._spilled(number)))
        for seq, first, own in identifiers.find_twice(self._source, mixes):
            text = show("trf", UUID(bytes=own))
            self._beside.append(
                Finding("I7", self._block_of(seq), seq, f"the id {text} was booked before, at seq {first}")
            )
        self.report.proved["ids that occur once"] += sum(len(part) for part in mixes)
        openings = np.concatenate([np.zeros(0, "V16"), *self._replay.book.openings])
        # S16 drops trailing zeros, so different ids may seem equal: then look again
        is_twice = len(np.unique(openings.view("S16"))) != len(openings)
        if is_twice and len(set(openings.tolist())) != len(openings):
            self._beside.append(Finding("I7", None, None, "an opening id has opened two accounts"))

    def _block_of(self, seq: int) -> int | None:
        for position, entry in enumerate(self._source.segments):
            if entry.last_seq >= seq:
                blocks = records(self._source, position, "blocks")
                row = int(np.searchsorted(blocks["first_seq"].astype(np.int64), seq, side="right")) - 1
                return int(blocks[row]["number"]) if row >= 0 else None
        return None

    def _check_genesis(self) -> None:
        wanted, found = self._known.genesis_sha256, self.report.genesis_sha256
        if wanted is None:
            self.report.unproved.append("who the operators are: compare genesis with what you know of it")
        elif found.lower() != wanted.lower():
            self._beside.append(Finding("genesis", 1, None, f"genesis is {found or 'missing'}, not {wanted}"))


def _in_order(files: list[Finding], replayed: list[Finding], beside: list[Finding]) -> list[Finding]:
    """The replay's findings stay in their order, even if a block gives itself another number; others go to their
    blocks."""
    placed: list[tuple[int, int, Finding]] = []
    place = 0
    for finding in replayed:
        place = max(place, _LAST if finding.block is None else finding.block)
        placed.append((place, 1, finding))
    for rank, findings in ((0, files), (2, beside)):
        placed += [(_LAST if finding.block is None else finding.block, rank, finding) for finding in findings]
    return [finding for *_, finding in sorted(placed, key=lambda item: item[:2])]

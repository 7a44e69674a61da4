"""A live database through the same door: exported, segment by segment, to files that are verified and removed.

Beside the journal it has tables that the journal implies (balances as of a block, open holds): they are compared with
the replay.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

import numpy as np
import psycopg
from psycopg import IsolationLevel, sql

from kernel.ids import show
from ledger.export.layout import ExportUnreadable, SegmentEntry
from ledger.export.log import NO_SALTS, DatabaseLog, LogSalts
from ledger.export.source import JournalSource, conninfo
from ledger.export.writer import SEGMENT_TRANSFERS, ExportDirectory
from ledger.verifier.accounts import TOTALS
from ledger.verifier.book import Book
from ledger.verifier.report import Finding, Report
from ledger.verifier.source import DirectorySource, KeptClosing
from ledger.verifier.verify import NOTHING_KNOWN, Known, Progress, Verification

_PAGE_ACCOUNTS = 32
_ALONE_TRANSFERS = 100_000
"""Smaller journals are verified by this process alone. More may all be signed, and that is work for several."""


def verify_database(
    url: str,
    *,
    progress: Progress | None = None,
    anchor: tuple[int, bytes] | None = None,
    known: Known | None = None,
    salts: LogSalts = NO_SALTS,
    processes: int | None = None,
) -> Report:
    """Verify a ledger's journal as of now. The ledger may be running; nothing is written.

    `anchor` (or `known`) is what is known from outside the database. Raises psycopg.Error if it cannot be read.
    """
    with psycopg.connect(conninfo(url), application_name="jiaozi-verify", options="-c timezone=UTC") as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        return verify_transaction(
            connection, progress=progress, anchor=anchor, known=known, salts=salts, processes=processes
        )


def verify_transaction(
    connection: psycopg.Connection[Any],
    *,
    progress: Progress | None = None,
    anchor: tuple[int, bytes] | None = None,
    known: Known | None = None,
    salts: LogSalts = NO_SALTS,
    processes: int | None = None,
    segment_transfers: int = SEGMENT_TRANSFERS,
) -> Report:
    """The same, of what one transaction sees, which must be REPEATABLE READ or stricter."""
    if known is None:
        known = Known(anchor=anchor) if anchor is not None else NOTHING_KNOWN
    with TemporaryDirectory(prefix="jiaozi-verify-") as directory:
        source = DatabaseSource(connection, Path(directory) / "export", salts, segment_transfers=segment_transfers)
        if processes is None and source.total < _ALONE_TRANSFERS:
            processes = 0
        beside = _Beside(connection)
        with Verification(
            source, known=known, processes=processes, pause_after=beside.block, on_pause=beside.check
        ) as verification:
            beside.report = verification.report
            try:
                for number in source.grow():
                    goes_on = verification.segment(number)
                    verification.settle()
                    source.forget(number - 1)
                    if not goes_on:
                        break
                    if progress is not None:
                        progress(verification.report.head_seq, source.total)
            except (ExportUnreadable, psycopg.DataError) as error:
                # a value outside of what the program can write at all, such as an infinite time
                _append(verification.report, "I4", f"cannot be read: {error}", verification.report.head_block + 1)
                verification.report.is_complete = False
            if verification.report.is_complete:
                beside.check_rest(source)
            return verification.finish()


class DatabaseSource:
    """A source that grows: segments are written as they are asked for."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        path: Path,
        salts: LogSalts = NO_SALTS,
        *,
        segment_transfers: int = SEGMENT_TRANSFERS,
    ) -> None:
        self._segment_transfers = segment_transfers
        self._journal = JournalSource(connection)
        self._target = ExportDirectory(path, durable=False)
        self._log = DatabaseLog(connection, salts, has_closings=False)
        self._kept = DatabaseLog(connection, salts)
        self._files = DirectorySource(path)
        self.total = self._journal.transfers_after(self._target.position)

    def __reduce__(self) -> tuple[type[DirectorySource], tuple[Path]]:
        return DirectorySource, (self._target.path,)

    @property
    def segments(self) -> list[SegmentEntry]:
        return self._target.manifest.segments

    def grow(self) -> Iterator[int]:
        """Numbers of segments, each written when its turn comes."""
        size = self._segment_transfers
        while self._target.add_segment(self._journal, self._log, segment_transfers=size) is not None:
            yield len(self.segments) - 1

    def forget(self, number: int) -> None:
        if number >= 0:
            shutil.rmtree(self._target.path / self.segments[number].name, ignore_errors=True)

    def entry(self, segment: int) -> SegmentEntry:
        return self.segments[segment]

    def read(self, segment: int, section: str) -> memoryview:
        entry = self.segments[segment]
        if section == "transfers" and not os.path.exists(self._target.path / entry.name):
            after = self.segments[segment - 1].last_seq if segment else -(2**63)
            return memoryview(self._journal.transfers(after, entry.last_seq).tobytes())
        return self._files.read(segment, section)

    def closings(self) -> list[KeptClosing]:
        """Straight from their tables: their leaves are read when their turn comes."""
        return [
            KeptClosing(item.number, item.note, item.key, lambda item=item: b"".join(item.leaves()))  # type: ignore[misc]
            for item in self._kept.closings(after=-(2**63), through=2**63 - 1)
        ]

    def strays(self) -> list[tuple[str, int, int]]:
        return self._journal.strays(self._target.position)


def _append(report: Report, rule: str, message: str, block: int | None = None, seq: int | None = None) -> None:
    report.findings.append(Finding(rule, block, seq, message))


class _Beside:
    """The tables beside the journal: `balance_page`, `participant_balance`, `open_hold` as of the snapshot's block."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self.report = Report()
        rows = self._all("SELECT block, seq FROM snapshot")
        self.block: int | None = int(rows[0][0]) if rows else None
        self._seq = int(rows[0][1]) if rows else 0
        self._was_checked = False

    def check(self, book: Book) -> None:
        """At the snapshot's block."""
        self._was_checked = True
        if self._seq != self.report.head_seq and self._last_seq() != self._seq:
            self._complain("its seq is not that of its block")
        self._check_balances(book)
        outstanding = dict(self._all("SELECT participant, outstanding FROM participant_balance"))
        for participant in book.participants.values():
            if outstanding.pop(participant.number, 0) != participant.outstanding:
                self._complain(f"participant_balance differs for {participant.code}")
        if outstanding:
            self._complain(f"participant_balance has participants {sorted(outstanding)}")
        self._check_open_holds(book)

    def _last_seq(self) -> int:
        rows = self._all("SELECT first_seq + transfer_count - 1 FROM block WHERE number = " + str(self.block))
        return int(rows[0][0]) if rows else -1

    def check_rest(self, source: DatabaseSource) -> None:
        """When all segments are read: what should be there and is not, what is there and should not."""
        for table, first, count in source.strays():
            seq = None if table in ("account", "directive") else first
            _append(self.report, "I4", f"{count} row(s) of {table} from {first} on belong to no block", None, seq)
        if self.block is not None and not self._was_checked:
            if self.block > self.report.head_block:
                message = f"the balance tables speak of block {self.block}, which is not there"
                _append(self.report, "I4", message)
            else:
                self._complain(f"it speaks of block {self.block}, which the replay did not meet")

    def _check_balances(self, book: Book) -> None:
        accounts, seen = book.accounts, 0
        moved = np.zeros(accounts.size, np.bool_)
        for column in accounts.totals[:4]:
            moved |= column[: accounts.size] != 0
        with self._connection.cursor(name="verify_balances", binary=True) as cursor:
            cursor.itersize = 2_000
            cursor.execute(sql.SQL("SELECT page, least_available, body FROM balance_page ORDER BY page"))
            for page, least, body in cursor:
                seen += self._check_page(book, int(page), int(least), bytes(body), moved)
        for number in np.flatnonzero(moved)[:3].tolist():
            self._complain(f"account {number} has moved and is not in balance_page")
        self.report.proved["balances in the snapshot"] = seen

    def _check_page(self, book: Book, page: int, least: int, body: bytes, moved: Any) -> int:
        accounts, first = book.accounts, page * _PAGE_ACCOUNTS
        if len(body) != _PAGE_ACCOUNTS * len(TOTALS) * 8 or not 0 <= first < accounts.size:
            self._complain(f"balance_page has a page {page} that cannot be")
            return 0
        found = np.frombuffer(body, ">i8").reshape(_PAGE_ACCOUNTS, len(TOTALS)).astype(np.int64)
        last = min(first + _PAGE_ACCOUNTS, accounts.size)
        replayed = np.zeros_like(found)
        for column, values in enumerate(accounts.totals):
            replayed[: last - first, column] = values[first:last]
        for row in np.flatnonzero((found != replayed).any(axis=1)).tolist():
            self._complain(
                f"account {first + row}: balance_page {found[row].tolist()}, replay {replayed[row].tolist()}"
            )
        available = replayed[:, 1] - replayed[:, 0] - replayed[:, 2]
        available[np.arange(first, first + _PAGE_ACCOUNTS) == 1] = 2**63 - 1  # the issuance account may be overdrawn
        if least != int(available.min()):
            self._complain(f"balance_page says that page {page} has {least} at least, replay {int(available.min())}")
        here = int(moved[first:last].sum())
        moved[first:last] = False
        return here

    def _check_open_holds(self, book: Book) -> None:
        query = (
            "SELECT uuid_send(hold_id), debit_account, credit_account, amount_minor, commit_hash, abort_hash,"
            " expires_at, day, year, counted FROM open_hold"
        )
        rows = self._all(query)
        for hold, *terms, counted in rows:
            if book.holds.get(hold) != tuple(terms) or not counted:
                self._complain(f"open_hold {show('trf', UUID(bytes=hold))} is not an open hold so")
        if len(rows) != len(book.holds):
            self._complain(f"open_hold has {len(rows)} holds, {len(book.holds)} are open")

    def _complain(self, message: str) -> None:
        _append(self.report, "snapshot", message, self.block)

    def _all(self, query: str) -> list[Any]:
        return self._connection.cursor(binary=True).execute(sql.SQL(query)).fetchall()

"""From a database to a report, in one pass over one snapshot.

1. Every table of the journal is read once, in order, by a server-side cursor: memory holds a block, the accounts'
   totals, open holds and tombstones, never the journal.
2. Block by block: its chain (number, previous hash, own hash, time, dense seq and counts), then its four digests.
3. Its directives (signatures of M of N), its accounts, then its transfers, replayed in order (`book`).
4. Signatures of instructions, by threads; then I2.
5. At the block of the engine's balance snapshot: the tables beside the journal against the replay.
6. At the end: rows that belong to no block, ids that occur twice, the supply in full.
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import psycopg
from psycopg import IsolationLevel, sql

from kernel.clock import to_micros
from kernel.ids import show
from ledger.verifier import layout
from ledger.verifier.book import Attached, Book, Complain
from ledger.verifier.documents import InstructionCheck
from ledger.verifier.layout import (
    GENESIS_HASH,
    HOLD,
    ISSUANCE_ACCOUNT,
    AccountRow,
    BlockRow,
    DirectiveRow,
    EvidenceRow,
    HoldEventRow,
    TombstoneRow,
    TransferRow,
)
from ledger.verifier.report import Finding, Report

FINDINGS_MAX = 20
"""One tampered row can make thousands of later ones wrong: the first few say where to look."""
PAGE_ROWS = 5_000
_INLINE_SIGNATURES_MAX = 16
"""Fewer are verified without threads."""

Progress = Callable[[int, int], None]
"""(transfers verified, transfers there are)"""


class _Enough(Exception):
    """FINDINGS_MAX is reached."""


def verify_database(url: str, *, progress: Progress | None = None, anchor: tuple[int, bytes] | None = None) -> Report:
    """Verify a ledger's journal as of now. The ledger may be running; nothing is written.

    `anchor` is a block's number and hash known from outside the database: without one, nobody can tell a journal
    whose newest blocks were all cut off from a younger journal. Raises psycopg.Error if the database cannot be read.
    """
    with psycopg.connect(_conninfo(url), application_name="jiaozi-verify", options="-c timezone=UTC") as connection:
        connection.isolation_level = IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        return verify_transaction(connection, progress=progress, anchor=anchor)


def verify_transaction(
    connection: psycopg.Connection[Any], *, progress: Progress | None = None, anchor: tuple[int, bytes] | None = None
) -> Report:
    """The same, of what one transaction sees, which must be REPEATABLE READ or stricter."""
    with ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="verify") as pool:
        return _Verification(connection, pool, progress, anchor).run()


def _conninfo(url: str) -> str:
    """A libpq URL; SQLAlchemy's form with a driver is taken too."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql{separator}{rest}" if separator and scheme.startswith("postgres") else url


class _Lane:
    """The rows of one table, in order; `through` hands out those up to a number."""

    def __init__(self, connection: psycopg.Connection[Any], kind: type[NamedTuple]) -> None:
        self._kind = kind
        # one cursor a table, all in one transaction; binary, because uuids and times are then read without parsing
        self._cursor = connection.cursor(name=f"verify_{kind.__name__.lower()}", binary=True)
        self._cursor.itersize = PAGE_ROWS
        self._cursor.execute(sql.SQL(layout.COLUMNS[kind]))
        self._rows: Iterator[tuple[Any, ...]] = iter(self._cursor)
        self._next: tuple[Any, ...] | None = next(self._rows, None)

    def through(self, last: int) -> Iterator[Any]:
        while self._next is not None and self._next[0] <= last:
            yield self._kind(*self._next)
            self._next = next(self._rows, None)

    def rest(self) -> tuple[int, int] | None:
        """(first number, count) of what was never handed out."""
        if self._next is None:
            return None
        return int(self._next[0]), 1 + sum(1 for _ in self._rows)

    def close(self) -> None:
        self._cursor.close()


class _Verification:
    def __init__(
        self,
        connection: psycopg.Connection[Any],
        pool: ThreadPoolExecutor,
        progress: Progress | None,
        anchor: tuple[int, bytes] | None,
    ) -> None:
        self._connection = connection
        self._pool = pool
        self._progress = progress
        self._anchor = anchor
        self._report = Report()
        self._block: int | None = None
        self._book = Book(self._report, self._complain)
        self._head: BlockRow | None = None
        self._next_seq = 1
        self._next_directive = 1
        self._next_account = ISSUANCE_ACCOUNT
        self._snapshot: tuple[Any, ...] | None = None

    def _complain(self, rule: str, seq: int | None, message: str) -> None:
        self._report.findings.append(Finding(rule, self._block, seq, message))
        if len(self._report.findings) >= FINDINGS_MAX:
            raise _Enough

    def run(self) -> Report:
        try:
            self._verify()
        except _Enough:
            self._report.is_complete = False
        except psycopg.DataError as error:
            # a value outside of what the program can write at all, such as an infinite time
            self._report.findings.append(Finding("I4", self._block, None, f"unreadable: {error}"))
            self._report.is_complete = False
        return self._report

    def _verify(self) -> None:
        self._snapshot = self._row("SELECT block, seq, booked_at, issued, redeemed FROM snapshot")
        total = int((self._row("SELECT coalesce(sum(transfer_count), 0)::bigint FROM block") or (0,))[0])
        with ExitStack() as stack:
            lanes = {kind: stack.enter_context(closing(_Lane(self._connection, kind))) for kind in layout.COLUMNS}
            self._read_blocks(lanes, total)
        self._check_ids()
        self._book.check_supply(in_full=True)
        report = self._report
        report.proved["accounts"] = len(self._book.accounts)
        if self._snapshot is not None and self._snapshot[0] > report.head_block:
            self._complain("I4", None, f"the balance tables speak of block {self._snapshot[0]}, which is not there")
        if self._anchor is not None and self._anchor[0] > report.head_block:
            self._complain("I4", None, f"block {self._anchor[0]}, known from outside, is not there: the tail was cut")

    def _read_blocks(self, lanes: dict[type[Any], _Lane], total: int) -> None:
        for block in lanes[BlockRow].through(2**63 - 1):
            self._block = block.number
            self._verify_block(block, lanes)
            if self._progress is not None:
                self._progress(self._next_seq - 1, total)
        self._block = None
        self._check_rest(lanes)

    # --- one block

    def _verify_block(self, block: BlockRow, lanes: dict[type[Any], _Lane]) -> None:
        self._check_chain(block)
        last = block.first_seq + block.transfer_count - 1
        transfers: list[TransferRow] = list(lanes[TransferRow].through(last))
        evidence: list[EvidenceRow] = list(lanes[EvidenceRow].through(last))
        events: list[HoldEventRow] = list(lanes[HoldEventRow].through(last))
        tombstones: list[TombstoneRow] = list(lanes[TombstoneRow].through(last))
        directives: list[DirectiveRow] = list(
            lanes[DirectiveRow].through(block.first_directive + block.directive_count - 1)
        )
        accounts: list[AccountRow] = list(lanes[AccountRow].through(block.first_account + block.account_count - 1))

        self._check_dense("transfer", [row.seq for row in transfers], block.first_seq, block.transfer_count)
        self._check_dense("directive", [row.number for row in directives], block.first_directive, block.directive_count)
        self._check_dense("account", [row.number for row in accounts], block.first_account, block.account_count)
        placed = [event for event in events if event.phase == 0]
        for name, wanted, compute in (
            ("transfers", block.transfers_digest, lambda: layout.transfers_digest(transfers)),
            ("evidence", block.evidence_digest, lambda: layout.evidence_digest(evidence, placed, tombstones)),
            ("directives", block.directives_digest, lambda: layout.directives_digest(directives)),
            ("accounts", block.accounts_digest, lambda: layout.accounts_digest(accounts)),
        ):
            self._check_digest(name, wanted, compute, block)
        self._check_times(block, transfers, directives, accounts)

        self._book.begin(block.booked_at)
        ordered = [order for order in map(self._book.order, directives) if order is not None]
        for account in accounts:
            self._book.open(account)
        attached = _attach(evidence, events, tombstones, self._complain)
        for transfer in transfers:
            mine = attached.pop(transfer.seq, None) or Attached()
            self._book.book(transfer, mine, ordered[0] if len(ordered) == 1 else None)
            if mine.placed is not None or mine.ended is not None or mine.tombstone is not None:
                self._complain("I6", transfer.seq, "a hold event or tombstone that this transfer did not cause")
        for seq in attached:
            self._complain("I4", seq, "evidence or hold events of a transfer that is not in the block")
        mandated = sum(transfer.kind in layout.MANDATED for transfer in transfers)
        if mandated != len(ordered):
            self._complain("I8", None, f"{len(ordered)} mandates to move money, {mandated} transfers by mandate")
        for row in evidence:
            if not block.first_seq <= row.seq <= last or row.transfer != _id_at(transfers, row.seq):
                self._complain("I8", row.seq, "evidence that names another transfer than the one at its seq")
        self._verify_signatures()
        self._book.check_supply()

        self._head = block
        self._next_seq = last + 1
        self._next_directive = block.first_directive + block.directive_count
        self._next_account = block.first_account + block.account_count
        if block.number == 1:
            self._next_account = ISSUANCE_ACCOUNT + 1  # genesis makes the issuance account, which has no row
        report = self._report
        report.proved["blocks"] += 1
        report.proved["directives"] += len(directives)
        report.head_block, report.head_seq, report.head_hash = block.number, last, block.hash
        if self._snapshot is not None and block.number == self._snapshot[0]:
            self._check_snapshot(*self._snapshot[1:])

    def _check_chain(self, block: BlockRow) -> None:
        """I4: dense numbers, each block names its predecessor's hash, time and epoch never run backwards."""
        head = self._head
        number, previous = (head.number + 1, head.hash) if head is not None else (1, GENESIS_HASH)
        if block.number != number:
            self._complain("I4", None, f"block {number} is missing")
        if block.previous_hash != previous:
            self._complain("I4", None, "its previous hash is not the hash of the block before it")
        if layout.block_hash(block) != block.hash:
            self._complain("I4", None, "its hash is not that of its content")
        if head is not None and (block.booked_at < head.booked_at or block.epoch < head.epoch):
            self._complain("I4", None, "its time or epoch is before that of the block before it")
        wanted = (self._next_seq, self._next_directive, self._next_account)
        if (block.first_seq, block.first_directive, block.first_account) != wanted:
            self._complain("I4", None, f"it does not begin at seq, directive and account {wanted}")
        if self._anchor is not None and block.number == self._anchor[0] and block.hash != self._anchor[1]:
            self._complain("I4", None, "its hash is not the one known from outside: history was rewritten")

    def _check_dense(self, name: str, numbers: list[int], first: int, count: int) -> None:
        if len(numbers) == count and all(found == first + place for place, found in enumerate(numbers)):
            return
        wanted = first
        for found in numbers:
            if found != wanted:
                break
            wanted += 1
        is_strange = (len(numbers) > wanted - first and numbers[wanted - first] < wanted) or wanted >= first + count
        wrong, problem = (numbers[wanted - first], "should not be there") if is_strange else (wanted, "is missing")
        seq = wrong if name == "transfer" else None
        self._complain("I4", seq, f"{name} {wrong} {problem}: the block has {count}, {len(numbers)} found")

    def _check_digest(self, name: str, wanted: bytes, compute: Callable[[], bytes], block: BlockRow) -> None:
        try:
            found = compute()
        except (struct.error, ValueError, OverflowError) as error:
            self._complain("I4", None, f"its {name} cannot be hashed: {error}")
            return
        if found != wanted:
            last = block.first_seq + block.transfer_count - 1
            where = f" (seq {block.first_seq} to {last})" if block.transfer_count else ""
            self._complain("I4", None, f"its {name}{where} are not those it was sealed with")
        self._report.proved["digests"] += 1

    def _check_times(
        self, block: BlockRow, transfers: list[TransferRow], directives: list[DirectiveRow], accounts: list[AccountRow]
    ) -> None:
        for transfer in transfers:
            if transfer.booked_at != block.booked_at:
                self._complain("I4", transfer.seq, "its booking time is not its block's")
        for directive in directives:
            if directive.booked_at != block.booked_at:
                self._complain("I4", None, f"directive {directive.number}: its booking time is not its block's")
        for account in accounts:
            if account.opened_at != block.booked_at:
                self._complain("I4", None, f"account {account.number}: its opening time is not its block's")

    def _verify_signatures(self) -> None:
        checks, self._book.instructions = self._book.instructions, []
        verify = map if len(checks) <= _INLINE_SIGNATURES_MAX else self._pool.map
        problems: Iterable[str | None] = verify(InstructionCheck.problem, checks)
        for check, problem in zip(checks, problems, strict=True):
            if problem is not None:
                self._complain("I8", check.transfer.seq, problem)
            else:
                self._report.proved["instructions signed by the owner"] += 1

    # --- the tables beside the journal

    def _check_snapshot(self, seq: int, booked_at: datetime, issued: int, redeemed: int) -> None:
        """`account_balance`, `participant_balance` and `open_hold` are the replay at the snapshot's block."""
        book, supply = self._book, self._report.supply
        if (seq, issued, redeemed) != (self._report.head_seq, supply.issued, supply.redeemed):
            self._complain("snapshot", None, "its seq or supply is not that of its block")
        if to_micros(booked_at) < book.booked_at:
            self._complain("snapshot", None, "its time is before its block's")
        local = booked_at.astimezone(book.zone)
        day, year = local.date().toordinal(), local.year
        seen: set[int] = set()
        query = (
            "SELECT account, debits_posted, credits_posted, debits_pending, credits_pending, spent_day, spent_year"
            " FROM account_balance ORDER BY account"
        )
        for number, *totals in self._stream("balance", query):
            seen.add(number)
            account = book.accounts.get(number)
            if account is None:
                self._complain("snapshot", None, f"account_balance has account {number}, which was never opened")
                continue
            replayed = [
                *(account.debits_posted, account.credits_posted, account.debits_pending, account.credits_pending),
                account.spent_day if account.day == day else 0,
                account.spent_year if account.year == year else 0,
            ]
            if totals != replayed:
                self._complain("snapshot", None, f"account {number}: account_balance {totals}, replay {replayed}")
        for number, account in book.accounts.items():
            moved = account.debits_posted or account.credits_posted or account.debits_pending or account.credits_pending
            if moved and number not in seen:
                self._complain("snapshot", None, f"account {number} has moved and is not in account_balance")
        outstanding = dict(self._all("SELECT participant, outstanding FROM participant_balance"))
        for participant in book.participants.values():
            if outstanding.pop(participant.number, 0) != participant.outstanding:
                self._complain("snapshot", None, f"participant_balance differs for {participant.code}")
        if outstanding:
            self._complain("snapshot", None, f"participant_balance has participants {sorted(outstanding)}")
        self._check_open_holds()
        self._report.proved["balances in the snapshot"] = len(seen)

    def _check_open_holds(self) -> None:
        query = (
            "SELECT uuid_send(hold_id), debit_account, credit_account, amount_minor, commit_hash, abort_hash,"
            " expires_at, day, year FROM open_hold WHERE counted"
        )
        found = 0
        for hold, *terms in self._stream("open_hold", query):
            found += 1
            if self._book.holds.get(hold) != tuple(terms):
                self._complain("snapshot", None, f"open_hold {show('trf', UUID(bytes=hold))} is not an open hold so")
        if found != len(self._book.holds):
            self._complain("snapshot", None, f"open_hold has {found} holds, {len(self._book.holds)} are open")

    # --- the end

    def _check_rest(self, lanes: dict[type[Any], _Lane]) -> None:
        for kind, lane in lanes.items():
            rest = lane.rest()
            if rest is not None:
                first, count = rest
                name = kind.__name__.removesuffix("Row").lower()
                seq = None if kind in (AccountRow, DirectiveRow) else first
                self._complain("I4", seq, f"{count} {name} row(s) from {first} on belong to no block")

    def _check_ids(self) -> None:
        """I7, not trusting the primary key to be there."""
        twice = self._row("SELECT id, min(seq) FROM transfer GROUP BY id HAVING count(*) > 1 ORDER BY 2 LIMIT 1")
        if twice is not None:
            self._complain("I7", int(twice[1]), f"the id {show('trf', twice[0])} was booked more than once")

    def _row(self, query: str) -> tuple[Any, ...] | None:
        rows = self._all(query)
        return rows[0] if rows else None

    def _all(self, query: str) -> list[Any]:
        return self._connection.execute(sql.SQL(query)).fetchall()

    def _stream(self, name: str, query: str) -> Iterator[tuple[Any, ...]]:
        with self._connection.cursor(name=f"verify_{name}", binary=True) as cursor:
            cursor.itersize = PAGE_ROWS
            cursor.execute(sql.SQL(query))
            yield from cursor


def _id_at(transfers: list[TransferRow], seq: int) -> bytes | None:
    """The id of the transfer at a seq of a block whose seqs are dense."""
    position = seq - transfers[0].seq if transfers else -1
    return transfers[position].id if 0 <= position < len(transfers) else None


def _attach(
    evidence: list[EvidenceRow], events: list[HoldEventRow], tombstones: list[TombstoneRow], complain: Complain
) -> dict[int, Attached]:
    """What is kept beside each transfer, by seq."""
    attached: dict[int, Attached] = defaultdict(Attached)
    for row in evidence:
        attached[row.seq].evidence[row.kind] = row.body
    for event in events:
        mine = attached[event.seq]
        if event.phase == 0 and event.kind == HOLD and mine.placed is None:
            mine.placed = event
        elif event.phase == 1 and mine.ended is None:
            mine.ended = event
        else:
            complain("I6", event.seq, "hold events that contradict each other")
    for stone in tombstones:
        if attached[stone.seq].tombstone is not None:
            complain("I6", stone.seq, "two tombstones of one transfer")
        attached[stone.seq].tombstone = stone
    return attached

"""Closings held against the replayed books: what an auditor with the export and the closings' keys can ask.

A holder's proof shows that his own balance is counted. Only a replay shows that everybody's is.

1. Statements are read before the replay: signature, form, and that they are one chain.
2. The replay stops at each closing's block. The statement must say what the books say there, to the last member.
3. The tree is made anew of the replayed balances and the closing's key: its root must be the one that was signed.
4. The leaves that the ledger keeps say which account was left out, understated or made negative.
5. At the end: every local day that was closed was closed at its last block, and no day before it was passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import numpy.typing as npt

from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.ids import AccountNumber, show_account
from kernel.transparency.notes import Note, NoteRefused, VerifierKey, open_note
from kernel.transparency.sum_tree import LEAF, SHARES, InvalidSumTree, joined, lay_out, raised, root_of
from ledger.export.layout import ExportUnreadable, Records
from ledger.verifier.accounts import CREDITS_POSTED, DEBITS_POSTED
from ledger.verifier.book import Book
from ledger.verifier.log import block_commitment
from ledger.verifier.report import Finding, Report
from ledger.verifier.source import KeptClosing, Source

FIRST_HOLDER_ACCOUNT = 2
"""Account 1 issues; holders' numbers follow without a gap."""
TOTALS = ("issued", "redeemed", "vaults", "wallets", "offline")
FORMAT = "jiaozi-closing/v1"
RUNNING_MAX = 2
"""Trees under way at a time: each has a copy of all balances."""
_RUN_HEIGHT = 10
"""Levels hashed at a time: bounds the scratch memory."""
_QUARTER_MICROS = 900_000_000

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TreeTask:
    """One closing's tree, for any process to make."""

    key: bytes | None
    balances: Int64s
    """Of all holders' accounts by replay, dense from account 2, minor units."""
    leaves: bytes | None
    """As the ledger keeps them; None if they are not looked at."""
    root: object
    root_total: object
    """As signed."""


Submit = Callable[[TreeTask], "Future[list[str]]"]


def audit_closing(
    text: str,
    *,
    key: bytes,
    balances: Int64s,
    block: int,
    commitment: bytes,
    seq: int,
    totals: Mapping[str, int],
    leaves: bytes | None = None,
) -> list[str]:
    """What is wrong with a closing statement; empty = its root counts every balance, in full, and nothing else.

    `text`: the note's text, its signature checked. `key`: the closing's, from the export. `balances`: of all holders'
    accounts by replay through the last transfer `seq` of `block`, in minor units, dense from account 2; `totals`:
    issued, redeemed, vaults, wallets and offline by the same replay; `leaves`: as the ledger keeps them, to name
    accounts. 2.5 s a million accounts.
    """
    said = json.loads(text)
    expected = {
        "block": block,
        "block_commitment": commitment.hex(),
        "seq": seq,
        **_amounts(totals),
        "accounts": len(balances),
    }
    task = TreeTask(key, balances, leaves, said.get("root"), said.get("root_total_minor"))
    return [*_differences(said, expected), *tree_problems(task)]


def tree_problems(task: TreeTask) -> list[str]:
    """Steps 3 and 4. Without a key only what the kept leaves say."""
    wrong = _leaf_problems(task) if task.leaves is not None else []
    if task.key is None:
        return wrong
    try:
        _, leaves = lay_out(task.balances, first_account=FIRST_HOLDER_ACCOUNT, key=task.key)
        root = root_of(joined([nodes for _, nodes in raised(leaves, key=task.key, height=_RUN_HEIGHT)]))
    except InvalidSumTree as error:
        return [*wrong, f"the replayed balances make no tree: {error}"]
    if task.root_total != str(root.sum):
        wrong.append(f"root_total_minor is {root.sum} by replay")
    if task.root != root.hash.hex():
        wrong.append(f"root is {root.hash.hex()} by replay: a balance is left out, or is not what was booked")
    if task.leaves is not None and not wrong and leaves.tobytes() != task.leaves:
        wrong.append("the leaves that are kept are not those under its root: no proof can be made from them")
    return wrong


def _leaf_problems(task: TreeTask) -> list[str]:
    """The first account that the kept leaves count otherwise than the replay, by name."""
    data = task.leaves or b""
    if len(data) % LEAF.itemsize:
        return ["the last leaf that is kept is cut"]
    leaves, count = np.frombuffer(data, LEAF), len(task.balances)
    place = leaves["account"].astype(np.uint64) - np.uint64(FIRST_HOLDER_ACCOUNT)  # what is too low wraps to the top
    is_known = place < count
    if not is_known.all():
        stranger = int(leaves["account"][~is_known][0])
        return [f"it counts account {stranger}, which there is not"]
    places, amounts = place.astype(np.int64), leaves["sum"].astype(np.uint64).view(np.int64)
    shares = np.bincount(places, minlength=count)
    sums = np.zeros(count, np.int64)
    np.add.at(sums, places, amounts)
    negative = np.zeros(count, np.bool_)
    negative[places[amounts < 0]] = True
    wrong = np.flatnonzero((shares != SHARES) | (sums != task.balances) | negative)
    if not len(wrong):
        return []
    first = int(wrong[0])
    name, balance, counted = _name(first), int(task.balances[first]), int(sums[first])
    if shares[first] == 0:
        what = f"{name} is left out: it had {balance}"
    elif negative[first]:
        what = f"{name} has a negative part, and counts for {counted} in all: it had {balance}"
    elif shares[first] != SHARES:
        what = f"{name} has {int(shares[first])} leaves instead of {SHARES}"
    else:
        what = f"{name} counts for {counted}: it had {balance}"
    more = f" ({len(wrong) - 1} more accounts are wrong)" if len(wrong) > 1 else ""
    return [what + more]


def _name(place: int) -> str:
    number = FIRST_HOLDER_ACCOUNT + place
    return f"account {number} ({show_account(AccountNumber(number))})"


def _amounts(totals: Mapping[str, int]) -> dict[str, str]:
    amounts = {f"{name}_minor": str(totals[name]) for name in TOTALS}
    return amounts | {"circulation_minor": str(totals["issued"] - totals["redeemed"])}


def _differences(said: Mapping[str, Any], expected: Mapping[str, object]) -> list[str]:
    return [f"{name} is {value} by replay" for name, value in expected.items() if said.get(name) != value]


# --- all closings of an export ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Statement:
    kept: KeptClosing
    said: dict[str, Any]

    @property
    def block(self) -> int:
        block: int = self.said["block"]
        return block


class ClosingCheck:
    """Every closing of a source. `at` is called by the replay at each of `blocks`; findings come with `finish`."""

    def __init__(
        self,
        source: Source,
        report: Report,
        submit: Submit,
        *,
        log_key: VerifierKey | None,
        find_block: Callable[[int], tuple[Any, bytes | None] | None],
    ) -> None:
        """`find_block`: a block's header and the salt of its commitment. Raises ExportUnreadable."""
        self._report, self._submit, self._find_block = report, submit, find_block
        self._findings: list[Finding] = []
        self._running: deque[tuple[_Statement, Future[list[str]]]] = deque()
        self._days: dict[date, int] = {}
        """Each local day with blocks -> its last block."""
        self._is_signed = log_key is not None
        try:
            self._statements = self._read(source.closings(), log_key)
        except ExportUnreadable as error:
            self._statements = []
            self._findings.append(Finding("closing", None, None, f"the closings cannot be read: {error}"))
        self._waiting: dict[int, list[_Statement]] = {}
        for statement in self._statements:
            self._waiting.setdefault(statement.block, []).append(statement)
        self.blocks = set(self._waiting)

    # --- 1.

    def _read(self, kept: list[KeptClosing], log_key: VerifierKey | None) -> list[_Statement]:
        found: list[_Statement] = []
        previous, wanted = bytes(32), 1
        for closing in kept:
            try:
                text = _opened(closing, log_key)
                said = json.loads(text)
                if not isinstance(said, dict) or jws.canonical_json(said).decode() + "\n" != text:
                    raise NoteRefused("its text is not canonical JSON")
                if type(said.get("block")) is not int:
                    raise NoteRefused("it names no block")
            except (NoteRefused, ValueError, TypeError, RecursionError) as error:
                self._complain(None, closing.number, str(error))
                wanted = closing.number + 1
                continue
            statement = _Statement(closing, said)
            if closing.number != wanted:
                self._complain(statement.block, closing.number, f"closing {wanted} comes next, and is not there")
            if said.get("closing") != closing.number:
                self._complain(statement.block, closing.number, f"its statement is of closing {said.get('closing')}")
            if said.get("previous") != previous.hex() and (closing.number == wanted):
                self._complain(statement.block, closing.number, "previous is not the hash of the one before it")
            if found and statement.block < found[-1].block:
                self._complain(statement.block, closing.number, f"the one before it is of block {found[-1].block}")
            found.append(statement)
            previous, wanted = hashlib.sha256(text.encode()).digest(), closing.number + 1
            self._report.proved["signatures of closings"] += self._is_signed
        return found

    # --- 2.

    def at(self, book: Book) -> None:
        """The books are as they were after the report's head."""
        report = self._report
        statements = self._waiting.pop(report.head_block, [])
        if not statements:
            return
        found = self._find_block(report.head_block)
        if found is None:
            return  # the replay has said so
        header, salt = found
        accounts = book.accounts
        used = slice(FIRST_HOLDER_ACCOUNT, max(accounts.size, FIRST_HOLDER_ACCOUNT))
        balances = accounts.totals[CREDITS_POSTED][used] - accounts.totals[DEBITS_POSTED][used]
        supply = {name: int(getattr(book.supply, name)) for name in TOTALS}
        booked_at = from_micros(int(header["booked_at"]))
        expected: dict[str, object] = {
            "format": FORMAT,
            "ledger": report.ledger,
            "currency": report.currency,
            "seq": report.head_seq,
            "booked_at": booked_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "day": booked_at.astimezone(book.zone).date().isoformat(),
            "accounts": len(balances),
            "shares_per_account": SHARES,
            "leaves": len(balances) * SHARES,
            **_amounts(supply),
        }
        if salt is not None:
            expected["block_commitment"] = block_commitment(salt, report.head_hash).hex()
        beside = {"closing", "kind", "block", "block_commitment", "root", "root_total_minor", "previous"}
        for statement in statements:
            number = statement.kept.number
            wrong = _differences(statement.said, expected)
            wrong += [f"{name} is no member" for name in sorted(statement.said.keys() - expected.keys() - beside)]
            for message in wrong:
                self._complain(statement.block, number, message)
            try:
                leaves = statement.kept.leaves()
            except ExportUnreadable as error:
                self._complain(statement.block, number, str(error))
                continue
            said = statement.said
            task = TreeTask(statement.kept.key, balances, leaves, said.get("root"), said.get("root_total_minor"))
            self._running.append((statement, self._submit(task)))
            while len(self._running) > RUNNING_MAX:
                self._gather()

    def _gather(self) -> None:
        statement, future = self._running.popleft()
        problems = future.result()
        for problem in problems:
            self._complain(statement.block, statement.kept.number, problem)
        if not problems and statement.kept.key is not None:
            self._report.proved["closings"] += 1
            self._report.proved["balances in closings"] += int(statement.said["accounts"])

    # --- 5.

    def follow(self, blocks: Records, book: Book) -> None:
        """A segment's headers, after its replay: which block was a day's last."""
        if not self._statements or not len(blocks):
            return
        times = blocks["booked_at"].astype(np.int64)
        quarters = times // _QUARTER_MICROS  # no zone changes its offset within a quarter of an hour
        lasts = np.flatnonzero(np.append(quarters[1:] != quarters[:-1], True))
        for row in lasts.tolist():
            day = from_micros(int(times[row])).astimezone(book.zone).date()
            self._days[day] = int(blocks[row]["number"])

    def finish(self, *, is_whole: bool) -> list[Finding]:
        """Not `is_whole`: the reader stopped before the end, so what is missing says nothing."""
        while self._running:
            self._gather()
        if not is_whole or not self._statements:
            return self._findings
        for statements in self._waiting.values():
            for statement in statements:
                message = f"block {statement.block}, which it names, is not there"
                self._complain(None, statement.kept.number, message)
        self._check_days()
        if not self._is_signed:
            self._report.unproved.append("the closings' signatures: give the log's public key (--log-key)")
        if any(statement.kept.key is None for statement in self._statements):
            self._report.unproved.append("the closings' roots: the keys of their leaves are not in the export")
        return self._findings

    def _check_days(self) -> None:
        closed: set[date] = set()
        for statement in self._statements:
            kind, number = statement.said.get("kind"), statement.kept.number
            if kind != "day":
                if kind != "order":
                    self._complain(statement.block, number, f"it is of kind {kind!r}, which there is not")
                continue
            try:
                day = date.fromisoformat(str(statement.said.get("day")))
            except ValueError:
                continue  # said already: it is not the block's
            if day in closed:
                self._complain(statement.block, number, f"{day} was closed before")
            if self._days.get(day) != statement.block:
                self._complain(statement.block, number, f"block {statement.block} is not the last of {day}")
            closed.add(day)
            passed = [other for other in sorted(self._days) if other < day and other not in closed]
            if passed:
                self._complain(statement.block, number, f"{passed[0]} comes before it, and was not closed")
                closed.update(passed)  # said once

    def _complain(self, block: int | None, number: int, message: str) -> None:
        self._findings.append(Finding("closing", block, None, f"closing {number}: {message}"))


def _opened(closing: KeptClosing, log_key: VerifierKey | None) -> str:
    """The statement's text. Raises NoteRefused."""
    note = Note.parse(closing.note)
    if log_key is not None:
        open_note(note, [log_key])
    return note.text

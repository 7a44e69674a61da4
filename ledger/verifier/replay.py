"""The journal replayed, segment by segment, in runs of whole blocks.

1. A *run* ends before a block with directives or accounts, before another quarter of an hour (the caps' day may turn)
   and after `RUN_TRANSFERS`: inside a run nobody's rights change.
2. Of each block: its place in the chain (number, previous hash, own hash, time, dense seq and counts), its digests.
3. Plain transfers of a run by arrays. A payer is safe if the balance before the run covers all its debits of the run,
   no credit counted (I3), and its caps do too (I9); a payee is safe if its class lets it hold all its credits of the
   run, no debit counted. What joins safe accounts is right at every seq, whatever the order. Sums are exact: a run
   whose amounts could leave 63 bits is not done this way.
4. All that touches an account which is not safe, and every hold, mandate, oddity or error, goes through `book`, in
   order.
5. After each block: the supply in its header is the supply by replay (I2).
"""

from __future__ import annotations

import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ledger.verifier import layout
from ledger.verifier.accounts import (
    CREDITS_PENDING,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    NOBODY,
    SPENT_DAY,
    SPENT_YEAR,
)
from ledger.verifier.book import Attached, Book, HoldEvent, Order, Tombstone, TransferRow
from ledger.verifier.documents import InstructionCheck
from ledger.verifier.layout import (
    ENDS,
    GENESIS_HASH,
    HOLD,
    INSTRUCTION,
    ISSUANCE_ACCOUNT,
    JOINS,
    KINDS,
    MANDATED,
    OFFLINE,
    PLAIN,
    SAME_OWNER,
    SPENDING,
    TRANSFER,
    VAULT,
    WALLET,
)
from ledger.verifier.report import Finding, Report
from ledger.verifier.source import Segment

RUN_TRANSFERS = 65_536
"""Long enough that arrays pay, short enough that their bound stays close to the truth."""
IN_ORDER_MAX = 500
"""A run of several blocks that leaves more for plain Python is halved."""
FINDINGS_MAX = 20
"""One tampered row can make thousands of later ones wrong: the first few say where to look."""
SUM_MAX = 2**62
_NUMBER_MAX = 2**62

_PLAIN, _SPENDING = layout.table(PLAIN), layout.table(SPENDING)
_SAME_OWNER = layout.table(SAME_OWNER)
_ENDS = layout.table(ENDS)
_JOINED = np.zeros((256, NOBODY + 1, NOBODY + 1), np.bool_)
for _kind, _pairs in JOINS.items():
    for _debit, _credit in _pairs:
        _JOINED[_kind, _debit, _credit] = True

Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


class Enough(Exception):
    """FINDINGS_MAX is reached."""


class Replay:
    """One pass over a journal. `report.findings` grow in the journal's order."""

    def __init__(
        self,
        report: Report,
        *,
        verify: Callable[[InstructionCheck, int], None],
        anchor: tuple[int, bytes] | None = None,
        pause_after: Collection[int] = (),
        on_pause: Callable[[Book], None] | None = None,
    ) -> None:
        """`verify` takes an instruction and its block's number. `on_pause` is called with the books as they are after
        each block in `pause_after`."""
        self.report = report
        self.book = Book(report, self.complain, self._verify)
        self._take = verify
        self._anchor = anchor
        self._pause_after = pause_after
        self._on_pause = on_pause
        self._block: int | None = None
        self._head: dict[str, Any] | None = None
        self._next_seq = 1
        self._next_directive = 1
        self._next_account = ISSUANCE_ACCOUNT
        self._supply_offset = [0, 0, 0, 0, 0, 0]
        """What earlier headers were wrong by: each difference is told once."""

    def complain(self, rule: str, seq: int | None, message: str) -> None:
        self.report.findings.append(Finding(rule, self._block, seq, message))
        if len(self.report.findings) >= FINDINGS_MAX:
            raise Enough

    def _verify(self, check: InstructionCheck) -> None:
        self._take(check, self._block or 0)

    def segment(self, segment: Segment) -> None:
        """The next segment. Raises Enough."""
        _Pass(self, segment).run()

    def finish(self) -> None:
        """After the last segment: the supply in full."""
        self._block = None
        self.book.check_supply()
        self.report.proved["accounts"] = self.book.accounts.size - 1
        if self._anchor is not None and self._anchor[0] > self.report.head_block:
            number = self._anchor[0]
            self.complain("I4", None, f"block {number}, known from outside, is not there: the tail was cut")


class _Plain(NamedTuple):
    """The rows of a run that are left for `book`; and what vaults, wallets and the escrow behind purses had got from
    the others before each row, and at the end."""

    exact: list[int]
    vaults: Int64s
    wallets: Int64s
    offline: Int64s


class _Columns:
    """A segment's block headers as plain lists."""

    def __init__(self, segment: Segment) -> None:
        blocks = segment.blocks
        self.names = [name for name in blocks.dtype.names or () if blocks.dtype[name] == np.dtype(">i8")]
        self.integers = {name: blocks[name].tolist() for name in self.names}
        self.digests = {
            name: [bytes(value) for value in blocks[name].tolist()]
            for name in (blocks.dtype.names or ())
            if name not in self.integers
        }
        self.computed = layout.block_hashes(blocks)
        self.count = len(blocks)

    def row(self, block: int) -> dict[str, Any]:
        found: dict[str, Any] = {name: values[block] for name, values in self.integers.items()}
        found |= {name: values[block] for name, values in self.digests.items()}
        return found


class _Pass:
    """One segment of a replay."""

    def __init__(self, replay: Replay, segment: Segment) -> None:
        self.replay, self.book, self.report = replay, replay.book, replay.report
        self.segment = segment
        self.columns = _Columns(segment)
        self.raw = segment.transfers.view(np.uint8).data if len(segment.transfers) else memoryview(b"")
        self.seqs = segment.transfers["seq"].astype(np.int64)
        self.rows = self._bounds("first_seq", "transfer_count", self.seqs)
        self.evidence = self._bounds("first_seq", "transfer_count", segment.evidence["seq"])
        self.events = self._bounds("first_seq", "transfer_count", segment.hold_events["seq"])
        self.stones = self._bounds("first_seq", "transfer_count", segment.tombstones["seq"])
        self.directives = self._bounds("first_directive", "directive_count", segment.directives["number"])
        self.accounts = self._bounds("first_account", "account_count", segment.accounts["number"])
        self._wrong_times = self._find_wrong_times()
        self._unchecked = 0
        """The first block whose header has not been checked."""

    def _bounds(self, first: str, count: str, numbers: Any) -> list[int]:
        """Of rows in the order of `numbers`: bounds[i] to bounds[i + 1] are those up to the last that block i has."""
        integers = self.columns.integers
        lasts = [
            min(max(start + size - 1, -_NUMBER_MAX), _NUMBER_MAX)
            for start, size in zip(integers[first], integers[count], strict=True)
        ]
        highest = np.maximum.accumulate(np.array(lasts, np.int64)) if lasts else np.zeros(0, np.int64)
        found = np.searchsorted(np.asarray(numbers).astype(np.int64), highest, side="right")
        return [0, *np.maximum.accumulate(found).tolist()] if lasts else [0]

    def run(self) -> None:
        replay, count = self.replay, self.columns.count
        self._check_order()
        start = 0
        while start < count:
            end = self._end_of_run(start)
            self._run(start, end)
            start = end
        replay._block = None
        self._check_rest()

    def _end_of_run(self, start: int) -> int:
        """The first block that cannot go with `start` in one run."""
        times, numbers = self.columns.integers["booked_at"], self.columns.integers["number"]
        self._begin(start)
        end = start + 1
        while (
            end < self.columns.count
            and self.directives[end] == self.directives[end + 1]
            and self.accounts[end] == self.accounts[end + 1]
            and not self.book.is_next_day(times[end])
            and times[end] >= times[start]
            and self.rows[end + 1] - self.rows[start] <= RUN_TRANSFERS
            and numbers[end - 1] not in self.replay._pause_after
        ):
            end += 1
        return end

    def _begin(self, block: int) -> None:
        self.replay._block = self.columns.integers["number"][block]
        booked_at = self.columns.integers["booked_at"][block]
        try:
            self.book.begin(booked_at)
        except (ValueError, OverflowError):
            self.replay.complain("I4", None, f"its time, {booked_at} microseconds since 1970, is no time")
            self.book.booked_at = booked_at

    def _run(self, start: int, end: int) -> None:
        replay, integers = self.replay, self.columns.integers
        self.check_header(start)
        ordered = self._directives(start)
        self._accounts(start)
        _Transfers(self, start, end, ordered).run()

        self.report.proved["blocks"] += end - start
        self.report.head_block, self.report.head_seq = integers["number"][end - 1], replay._next_seq - 1
        self.report.head_hash = self.columns.digests["hash"][end - 1]
        if integers["number"][end - 1] in replay._pause_after and replay._on_pause is not None:
            replay._on_pause(self.book)

    # --- chain and digests

    def check_header(self, block: int) -> None:
        """Everything but the meaning of a block; once."""
        if block < self._unchecked:
            return
        self._unchecked = block + 1
        self.replay._block = self.columns.integers["number"][block]
        self._check_chain(block)
        self._check_rows(block)
        self._check_digests(block)
        for number in self._wrong_times.pop(block, []):
            self.replay.complain("I4", number, "its time is not its block's")

    def _check_chain(self, block: int) -> None:
        """I4: dense numbers, each block names its predecessor's hash, time and epoch never run backwards."""
        replay, row = self.replay, self.columns.row(block)
        head = replay._head
        number, previous = (head["number"] + 1, head["hash"]) if head is not None else (1, GENESIS_HASH)
        if row["number"] != number:
            replay.complain("I4", None, f"block {number} is missing")
        if row["previous_hash"] != previous:
            replay.complain("I4", None, "its previous hash is not the hash of the block before it")
        if self.columns.computed[block] != row["hash"]:
            replay.complain("I4", None, "its hash is not that of its content")
        if head is not None and (row["booked_at"] < head["booked_at"] or row["epoch"] < head["epoch"]):
            replay.complain("I4", None, "its time or epoch is before that of the block before it")
        if row["epoch"] < 1 or min(row["transfer_count"], row["directive_count"], row["account_count"]) < 0:
            replay.complain("I4", None, "its epoch or a count is no such thing")
        if row["transfer_count"] + row["directive_count"] + row["account_count"] == 0:
            replay.complain("I4", None, "it is empty: no ledger seals such a block")
        wanted = (replay._next_seq, replay._next_directive, replay._next_account)
        if (row["first_seq"], row["first_directive"], row["first_account"]) != wanted:
            replay.complain("I4", None, f"it does not begin at seq, directive and account {wanted}")
        anchor = replay._anchor
        if anchor is not None and row["number"] == anchor[0] and row["hash"] != anchor[1]:
            replay.complain("I4", None, "its hash is not the one known from outside: history was rewritten")
        replay._head = row
        replay._next_seq = row["first_seq"] + row["transfer_count"]
        replay._next_directive = row["first_directive"] + row["directive_count"]
        replay._next_account = row["first_account"] + row["account_count"]
        if row["number"] == 1:
            replay._next_account = ISSUANCE_ACCOUNT + 1  # genesis makes the issuance account, which has no row

    def _check_rows(self, block: int) -> None:
        integers = self.columns.integers
        for name, first, bounds, numbers in (
            ("transfer", "first_seq", self.rows, self.seqs),
            ("directive", "first_directive", self.directives, self.segment.directives["number"]),
            ("account", "first_account", self.accounts, self.segment.accounts["number"]),
        ):
            begin, count = integers[first][block], integers[f"{name}_count"][block]
            start, end = bounds[block], bounds[block + 1]
            if end - start != count or (
                count and (numbers[start] != begin or bool((np.diff(numbers[start:end].astype(np.int64)) != 1).any()))
            ):
                self._name_missing(name, numbers[start:end].tolist(), begin, count)

    def _name_missing(self, name: str, numbers: list[int], first: int, count: int) -> None:
        wanted = first
        for found in numbers:
            if found != wanted:
                break
            wanted += 1
        is_strange = (len(numbers) > wanted - first and numbers[wanted - first] < wanted) or wanted >= first + count
        if is_strange and wanted - first < len(numbers):
            wrong, problem = numbers[wanted - first], "should not be there"
        else:
            wrong, problem = wanted, "is missing"
        seq = wrong if name == "transfer" else None
        self.replay.complain("I4", seq, f"{name} {wrong} {problem}: the block has {count}, {len(numbers)} found")

    def _check_digests(self, block: int) -> None:
        segment, digests, integers = self.segment, self.columns.digests, self.columns.integers
        size = TRANSFER.itemsize
        first = integers["first_seq"][block]
        found = hashlib.sha256(self.raw[self.rows[block] * size : self.rows[block + 1] * size]).digest()
        if found != digests["transfers_digest"][block]:
            last = first + integers["transfer_count"][block] - 1
            self._sealed_otherwise(f"transfers (seq {first} to {last})")
        start, end = self.evidence[block], self.evidence[block + 1]
        events = segment.hold_events[self.events[block] : self.events[block + 1]]
        stones = segment.tombstones[self.stones[block] : self.stones[block + 1]]
        found = layout.EMPTY_DIGEST
        if start != end or len(events) or len(stones):
            evidence = segment.evidence[start:end]
            items = layout.evidence_items(evidence, segment.bodies(start, end), events, stones)
            found = layout.digest_evidence(items)
        if found != digests["evidence_digest"][block]:
            self._sealed_otherwise("evidence")
        for name, bounds in (("directives", self.directives), ("accounts", self.accounts)):
            start, end = bounds[block], bounds[block + 1]
            try:
                found = layout.EMPTY_DIGEST
                if start != end and name == "directives":
                    found = layout.digest_directives(segment.directives[start:end], segment.directive_texts(start, end))
                elif start != end and (alike := segment.account_page(start, end)) is not None:
                    found = layout.digest_account_page(segment.accounts[start:end], alike[0], alike[1])
                elif start != end:
                    found = layout.digest_accounts(segment.accounts[start:end], segment.account_texts(start, end))
            except (struct.error, ValueError, OverflowError) as error:
                self.replay.complain("I4", None, f"its {name} cannot be hashed: {error}")
                continue
            if found != digests[f"{name}_digest"][block]:
                self._sealed_otherwise(name)
        self.report.proved["digests"] += 4

    def _sealed_otherwise(self, what: str) -> None:
        self.replay.complain("I4", None, f"its {what} are not those it was sealed with")

    def _find_wrong_times(self) -> dict[int, list[int | None]]:
        """Block -> seqs of transfers (None for others) whose time is not the block's."""
        segment, found = self.segment, dict[int, list[int | None]]()
        times = np.array(self.columns.integers["booked_at"], np.int64)
        for stamped, bounds in (
            (segment.transfers["booked_at"], self.rows),
            (segment.directives["booked_at"], self.directives),
            (segment.accounts["opened_at"], self.accounts),
        ):
            wanted = np.repeat(times, [end - start for start, end in pairwise(bounds)])
            for row in np.flatnonzero(stamped[: bounds[-1]] != wanted)[:FINDINGS_MAX].tolist():
                seq = int(self.seqs[row]) if bounds is self.rows else None
                found.setdefault(bisect_right(bounds, row) - 1, []).append(seq)
        return found

    def _check_order(self) -> None:
        """Files hold their records in order; bounds are found by it."""
        segment = self.segment
        for name, numbers in (
            ("transfers", self.seqs),
            ("evidence", segment.evidence["seq"].astype(np.int64)),
            ("hold-events", segment.hold_events["seq"].astype(np.int64)),
            ("tombstones", segment.tombstones["seq"].astype(np.int64)),
            ("accounts", segment.accounts["number"].astype(np.int64)),
            ("directives", segment.directives["number"].astype(np.int64)),
        ):
            wrong = np.flatnonzero(numbers[1:] < numbers[:-1])
            if len(wrong):
                row = int(wrong[0])
                place = int(numbers[row + 1])
                block = bisect_right(self.rows, row + 1) - 1 if name == "transfers" else 0
                if self.columns.count:
                    self.replay._block = self.columns.integers["number"][min(block, self.columns.count - 1)]
                seq = place if name not in ("accounts", "directives") else None
                self.replay.complain("I4", seq, f"{name}: number {place} comes after {int(numbers[row])}")

    def _check_rest(self) -> None:
        segment = self.segment
        for name, bounds, numbers in (
            ("transfer", self.rows, segment.transfers["seq"]),
            ("evidence", self.evidence, segment.evidence["seq"]),
            ("hold event", self.events, segment.hold_events["seq"]),
            ("tombstone", self.stones, segment.tombstones["seq"]),
            ("account", self.accounts, segment.accounts["number"]),
            ("directive", self.directives, segment.directives["number"]),
        ):
            left = len(numbers) - bounds[-1]
            if left:
                first = int(numbers[bounds[-1]])
                seq = None if name in ("account", "directive") else first
                self.replay.complain("I4", seq, f"{left} {name} row(s) from {first} on belong to no block")

    # --- directives and accounts

    def _directives(self, block: int) -> Order | None:
        """Those of one block; returns what a mandate among them wants booked."""
        segment = self.segment
        start, end = self.directives[block], self.directives[block + 1]
        orders: list[Order] = []
        for row, (kind, body) in enumerate(segment.directive_texts(start, end), start=start):
            record = segment.directives[row]
            mandate = record["mandate"].tobytes() if record["has_mandate"] else None
            if (record["has_mandate"] > 1) or (mandate is None and record["mandate"].tobytes() != layout.NIL):
                self.replay.complain("I4", None, "a directive's mandate is neither there nor not")
            order = self.book.order(int(record["number"]), kind.decode("utf-8", "replace"), mandate, body)
            if order is not None:
                orders.append(order)
        self.report.proved["directives"] += end - start
        rows = self.segment.transfers["kind"][self.rows[block] : self.rows[block + 1]]
        mandated = int(np.isin(rows, list(MANDATED)).sum()) if start != end else 0
        if mandated != len(orders):
            self.replay.complain("I8", None, f"{len(orders)} mandates to move money, {mandated} transfers by mandate")
        return orders[0] if len(orders) == 1 else None

    def _accounts(self, block: int) -> None:
        segment = self.segment
        start, end = self.accounts[block], self.accounts[block + 1]
        if start == end:
            return
        page = segment.accounts[start:end]
        self.book.openings.append(np.ascontiguousarray(page["opening"]))
        alike = segment.account_page(start, end)
        if alike is not None and self.book.open_page(
            page["kind"], page["participant"], alike[0], alike[1] if alike[2] else None
        ):
            return
        kinds, participants = page["kind"].tolist(), page["participant"].tolist()
        texts = segment.account_texts(start, end)
        for number, kind, participant, (name, key) in zip(
            page["number"].tolist(), kinds, participants, texts, strict=True
        ):
            self.book.open(number, kind, participant, name, key)


class _Transfers:
    """The transfers of one run."""

    def __init__(self, owner: _Pass, start: int, end: int, ordered: Order | None) -> None:
        self.owner, self.replay, self.book = owner, owner.replay, owner.book
        self.start, self.end, self.ordered = start, end, ordered
        self.first, self.last = owner.rows[start], owner.rows[end]
        self.rows = owner.segment.transfers[self.first : self.last]
        self.count = len(self.rows)
        self.numbers = owner.columns.integers["number"]
        self.pending: dict[int, list[tuple[str, int | None, str]]] = {}
        """Findings of blocks of the run, told when the block's turn comes."""
        self.row_of: dict[int, int] = {}
        """Seq -> position in the run, of all that have something beside them."""
        self.attached = self._attach()

    def run(self) -> None:
        supply = self.book.supply
        plain = self._plain() if self.count else _Plain([], *[np.zeros(1, np.int64)] * 3)
        if plain is None:
            middle = (self.start + self.end) // 2
            _Transfers(self.owner, self.start, middle, self.ordered).run()
            _Transfers(self.owner, middle, self.end, None).run()
            return
        exact, vaults, wallets, offline = plain
        self.owner.report.proved["transfers"] += self.count
        position = 0
        for block in range(self.start, self.end):
            self.owner.check_header(block)
            self.replay._block = self.numbers[block]
            for finding in self.pending.pop(block, []):
                self.replay.complain(*finding)
            bound = self.owner.rows[block + 1] - self.first
            if position < len(exact) and exact[position] < bound:
                self.book.booked_at = self.owner.columns.integers["booked_at"][block]
                until = bisect_right(exact, bound - 1)
                for row in exact[position:until]:
                    self._book(row, self.ordered if block == self.start else None)
                position = until
            self._check_header(block, int(vaults[bound]), int(wallets[bound]), int(offline[bound]))
        supply.vaults += int(vaults[-1])
        supply.wallets += int(wallets[-1])
        supply.offline += int(offline[-1])

    def _check_header(self, block: int, vaults: int, wallets: int, offline: int) -> None:
        """I2 at the block's end. `vaults`, `wallets`, `offline`: what the run's plain transfers have changed so far."""
        supply, integers, offset = self.book.supply, self.owner.columns.integers, self.replay._supply_offset
        found = (
            supply.issued,
            supply.redeemed,
            supply.vaults + vaults,
            supply.wallets + wallets,
            supply.offline + offline,
            supply.held,
        )
        for place, (name, value) in enumerate(
            zip(("issued", "redeemed", "vaults", "wallets", "offline", "held"), found, strict=True)
        ):
            stated = integers[name][block]
            if stated - offset[place] != value:
                self.replay.complain("I2", None, f"its header says {name} {stated}, replay {value}")
                offset[place] = stated - value
        circulation, held_by_all = found[0] - found[1], found[2] + found[3] + found[4]
        if circulation != held_by_all:
            self.replay.complain("I2", None, f"issued - redeemed is {circulation}, not {held_by_all}")
        self.owner.report.proved["supplies in headers"] += 1

    # --- what lies beside the transfers

    def _attach(self) -> dict[int, Attached]:
        """By seq. Evidence that names another transfer than the one at its seq is reported."""
        owner, segment = self.owner, self.owner.segment
        attached: dict[int, Attached] = {}

        def at(seq: int) -> Attached:
            found = attached.get(seq)
            if found is None:
                found = attached[seq] = Attached()
            return found

        start, end = owner.evidence[self.start], owner.evidence[self.end]
        if start != end:
            page = segment.evidence[start:end]
            seqs, kinds = page["seq"].tolist(), page["kind"].tolist()
            names, rows = page["transfer"].tolist(), self._rows_of(page["seq"].astype(np.int64))
            for seq, kind, name, row, body in zip(seqs, kinds, names, rows, segment.bodies(start, end), strict=True):
                mine = at(seq)
                if kind in mine.evidence or not 1 <= kind <= 3:
                    self._at(seq, "I8", f"evidence of kind {kind} that cannot be")
                mine.evidence[kind] = body
                if row >= 0 and name != self._id_at(row):
                    self._at(seq, "I8", "evidence that names another transfer than the one at its seq")
        for event in segment.hold_events[owner.events[self.start] : owner.events[self.end]]:
            self._attach_event(int(event["seq"]), event, at(int(event["seq"])))
        for stone in segment.tombstones[owner.stones[self.start] : owner.stones[self.end]]:
            seq, length = int(stone["seq"]), int(stone["length"])
            guard = stone["guard"].tobytes()
            mine = at(seq)
            if mine.tombstone is not None or any(guard[length:]):
                self._at(seq, "I6", "two tombstones of one transfer, or one of no form")
            mine.tombstone = Tombstone(stone["hold"].tobytes(), stone["transfer"].tobytes(), guard[:length])
        for seq, row in zip(list(attached), self._rows_of(np.array(list(attached), np.int64)), strict=True):
            self.row_of[seq] = row
            if row < 0:
                del attached[seq]
                self._at(seq, "I4", "evidence or hold events of a transfer that is not in the block")
        return attached

    def _attach_event(self, seq: int, event: Any, mine: Attached) -> None:
        given = int(event["given"])
        commit, abort, expires_at = event["commit_hash"].tobytes(), event["abort_hash"].tobytes(), event["expires_at"]
        found = HoldEvent(
            int(event["phase"]),
            event["hold"].tobytes(),
            event["transfer"].tobytes(),
            int(event["kind"]),
            commit if given & 1 else None,
            abort if given & 2 else None,
            int(expires_at) if given & 4 else None,
        )
        absent = (given & 1 == 0 and any(commit)) or (given & 2 == 0 and any(abort)) or (given & 4 == 0 and expires_at)
        if found.phase == 0 and found.kind == HOLD and mine.placed is None:
            mine.placed = found
        elif found.phase == 1 and mine.ended is None:
            mine.ended = found
        else:
            self._at(seq, "I6", "hold events that contradict each other")
        if absent or given > 7:
            self._at(seq, "I6", "a hold event that has and has not a hash or expiry")

    def _at(self, seq: int, rule: str, message: str) -> None:
        firsts = self.owner.columns.integers["first_seq"]
        block = max(bisect_right(firsts, seq, self.start, self.end) - 1, self.start)
        self.pending.setdefault(block, []).append((rule, seq, message))

    def _rows_of(self, seqs: Int64s) -> list[int]:
        """Positions in the run; -1 where there is no such transfer."""
        mine = self.owner.seqs[self.first : self.last]
        rows = np.searchsorted(mine, seqs)
        is_there = rows < self.count
        is_there[is_there] = mine[rows[is_there]] == seqs[is_there]
        found: list[int] = np.where(is_there, rows, -1).tolist()
        return found

    def _id_at(self, row: int) -> bytes:
        place = (self.first + row) * TRANSFER.itemsize
        return bytes(self.owner.raw[place + 8 : place + 24])

    # --- by arrays

    def _plain(self) -> _Plain | None:
        """Book what is clear. None, with nothing booked, if so many rows are left for `book` that two shorter runs are
        better: what the first brings in, the second may spend."""
        rows, accounts, book = self.rows, self.book.accounts, self.book
        kind = rows["kind"].astype(np.intp)
        debit, credit = rows["debit"].astype(np.int64), rows["credit"].astype(np.int64)
        amount, submitter = rows["amount"].astype(np.int64), rows["submitter"].astype(np.int64)
        size = accounts.size
        there = (debit > 0) & (debit < size) & (credit > 0) & (credit < size) & (debit != credit) & (amount > 0)
        # no sum of any account can be larger than this; a float is near enough, the limit being half of what fits
        if float(np.maximum(amount, 0).sum(dtype=np.float64)) > SUM_MAX or not there.any():
            if self.end - self.start > 1:
                return None
            return _Plain(list(range(self.count)), *[np.zeros(self.count + 1, np.int64)] * 3)
        if there.all():
            payer, payee, value = debit, credit, amount
        else:
            payer, payee, value = np.where(there, debit, 0), np.where(there, credit, 0), np.where(there, amount, 0)

        # what the order cannot change
        payer_kind, payee_kind = accounts.kind[payer], accounts.kind[payee]
        owner = accounts.participant[payer]
        signed, odd = self._signed()
        joined = _JOINED[kind, payer_kind, payee_kind]
        same = ~_SAME_OWNER[kind] | (owner == accounts.participant[payee])
        authorised = signed | ((payer_kind != WALLET) & (submitter == owner))  # none joins the issuance account
        known = (submitter >= 0) & (submitter <= len(book.participants))
        frozen = accounts.frozen[payer] | accounts.frozen[payee] | accounts.suspended[payer]
        frozen |= accounts.closed[payer] | accounts.closed[payee]
        spends = _SPENDING[kind]
        clear = there & _PLAIN[kind] & joined & same & authorised & known & ~frozen & ~odd

        # what every account would pay and receive, the other way not counted
        totals = accounts.totals
        np.add.at(accounts.paid, payer, value)
        np.add.at(accounts.received, payee, value)
        paid, received = accounts.paid[payer], accounts.received[payee]
        accounts.paid[payer] = 0
        accounts.received[payee] = 0
        balance = totals[CREDITS_POSTED][payer] - totals[DEBITS_POSTED][payer]
        payer_unsafe = paid > balance - totals[DEBITS_PENDING][payer]
        payee_unsafe: Bools = received > SUM_MAX - totals[CREDITS_POSTED][payee]
        if len(book.caps) > 1 or book.caps[0] != type(book.caps[0])():
            balance_max, single_max, day_max, year_max = np.array(book.caps, np.int64).T.copy()
            payer_class, payee_class = accounts.rule_class[payer], accounts.rule_class[payee]
            clear &= ~spends | (value <= single_max[payer_class])
            payer_unsafe |= (paid > day_max[payer_class] - totals[SPENT_DAY][payer]) | (
                paid > year_max[payer_class] - totals[SPENT_YEAR][payer]
            )
            holding = totals[CREDITS_POSTED][payee] - totals[DEBITS_POSTED][payee] + totals[CREDITS_PENDING][payee]
            payee_unsafe |= received > balance_max[payee_class] - holding

        payee_unsafe |= accounts.capped[payee]
        # in order: whatever touches an account that is not safe
        exact: list[int] = []
        if not clear.all() or payer_unsafe.any() or payee_unsafe.any():
            near = np.zeros(size, np.bool_)
            near[payer[payer_unsafe | ~clear]] = True
            near[payee[payee_unsafe | ~clear]] = True
            for hold in self._holds_ended(kind):
                near[[hold.debit, hold.credit]] = True
            in_order = ~clear | near[payer] | near[payee]
            exact = np.flatnonzero(in_order).tolist()
            if len(exact) > IN_ORDER_MAX and self.end - self.start > 1:
                return None
            value = np.where(in_order, 0, value)
        else:
            in_order = np.zeros(self.count, np.bool_)

        np.add.at(totals[DEBITS_POSTED], payer, value)
        np.add.at(totals[CREDITS_POSTED], payee, value)
        spent = np.where(spends, value, 0)
        np.add.at(totals[SPENT_DAY], payer, spent)
        np.add.at(totals[SPENT_YEAR], payer, spent)
        self._count_plain(kind, value, in_order, signed, spends)
        self._verify_plain(signed & ~in_order, payer)
        kinds = (VAULT, WALLET, OFFLINE)
        return _Plain(exact, *(_running(value, payee_kind == of, payer_kind == of) for of in kinds))

    def _signed(self) -> tuple[Bools, Bools]:
        """Which rows have an instruction and nothing else beside them; which have anything else."""
        signed, odd = np.zeros(self.count, np.bool_), np.zeros(self.count, np.bool_)
        for seq, mine in self.attached.items():
            row = self.row_of[seq]
            simple = mine.placed is None and mine.ended is None and mine.tombstone is None
            if simple and mine.evidence.keys() == {INSTRUCTION}:
                signed[row] = True
            else:
                odd[row] = True
        return signed, odd

    def _holds_ended(self, kind: npt.NDArray[np.intp]) -> list[Any]:
        found = []
        for row in np.flatnonzero(_ENDS[kind]).tolist():
            record = self.rows[row]
            hold = self.book.holds.get(layout.uuid_bytes(int(record["hold_high"]), int(record["hold_low"])))
            if hold is not None:
                found.append(hold)
        return found

    def _count_plain(
        self, kind: npt.NDArray[np.intp], value: Int64s, in_order: Bools, signed: Bools, spends: Bools
    ) -> None:
        report, done = self.owner.report, ~in_order
        for code in PLAIN:
            total = int(value[kind == code].sum())
            if total:
                report.booked[KINDS[code]] += total
        report.proved["caps of payments"] += int((spends & done).sum())
        report.proved["vault debits by their institution"] += int((done & ~signed).sum())

    def _verify_plain(self, rows: Bools, payer: Int64s) -> None:
        """Hand over the instructions of plain transfers; forget what was beside them."""
        for row in np.flatnonzero(rows).tolist():
            seq = int(self.owner.seqs[self.first + row])
            mine = self.attached.pop(seq)
            key = self.book.owner_key(int(payer[row]), mine.evidence[INSTRUCTION])
            self._at_row(row)
            if key is None:
                self._at(seq, "I8", "its payer has no key that could have signed")
                continue
            self.replay._verify(InstructionCheck(seq, self._record(row), mine.evidence[INSTRUCTION], key))

    def _at_row(self, row: int) -> None:
        block = bisect_right(self.owner.rows, self.first + row, self.start, self.end) - 1
        self.replay._block = self.numbers[min(max(block, self.start), self.end - 1)]

    # --- in order

    def _book(self, row: int, ordered: Order | None) -> None:
        record = self.rows[row]
        seq = int(record["seq"])
        mine = self.attached.pop(seq, None) or Attached()
        raw = self._record(row)
        transfer = TransferRow(
            seq,
            raw[8:24],
            int(record["kind"]),
            int(record["debit"]),
            int(record["credit"]),
            int(record["amount"]),
            raw[49:65],
            int(record["submitter"]),
            raw,
        )
        if not 0 <= transfer.submitter <= len(self.book.participants):
            self.replay.complain("I8", seq, f"it was sent by participant {transfer.submitter}, who is not there")
        self.book.book(transfer, mine, ordered)
        if mine.placed is not None or mine.ended is not None or mine.tombstone is not None:
            self.replay.complain("I6", seq, "a hold event or tombstone that this transfer did not cause")

    def _record(self, row: int) -> bytes:
        place = (self.first + row) * TRANSFER.itemsize
        return bytes(self.owner.raw[place : place + TRANSFER.itemsize])


def _running(value: Int64s, plus: Bools, minus: Bools) -> Int64s:
    """What has come in before each row, and at the end: length n + 1."""
    found = np.zeros(len(value) + 1, np.int64)
    np.cumsum(value * (plus.astype(np.int64) - minus), out=found[1:])
    return found

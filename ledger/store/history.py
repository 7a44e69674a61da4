"""The history of an account: sorted pages for sealed runs of the journal, memory for the tail that is not sealed yet.

Two live B-trees by account would cost more than everything else that a transfer costs. Instead every RUN_TRANSFERS
transfers a *run* is sealed in the background: its (account, seq, id) entries, two a transfer, are sorted and written as
pages of up to PAGE_ENTRIES entries, keyed by the first entry. The entries of an account are then next to each other,
at one descent of the primary key a run. Every GROUP_RUNS runs leave *marks*: for each account a byte, of which each
bit says whether one of the runs may have it (two accounts may share a byte, MARK_SLOTS apart). A reader looks at the
marks of his account in all groups first, which lie side by side in the primary key, and descends only into runs whose
bit is set: a journal is larger than memory, and each descent waits for the disk. What is newer than the last run lies
in memory in chunks, each sorted when it is full, and is found by bisection.

Nothing here is believed about money: entries name transfers, which are read from `transfer` by id. A run can be
written twice by nobody (primary key), and by anybody who has the journal: its content follows from it.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from sqlalchemy.exc import SQLAlchemyError

from kernel.database import CheckedConnection, Database, OutcomeUnknown, is_duplicate_key
from kernel.errors import ProblemError, RequestRefusal
from ledger.domain.records import Records
from ledger.store.copying import CopyLayout, copy_in
from ledger.store.journal import TAIL_PAGE, Journal

RUN_TRANSFERS = 2**19
PLACE_BITS = 13
PLACE_MASK = 2**PLACE_BITS - 1
CHUNK_TRANSFERS = 2**PLACE_BITS
"""Of the tail; a run is so many whole ones."""
PAGE_ENTRIES = 250
"""8,000 bytes: a row that fills a page of PostgreSQL's own. The table is told to keep such rows in line."""
PAGES_AT_ONCE = 500
"""Laid out and sent together: four megabytes."""
GROUP_RUNS = 8
"""Runs that share a byte of marks."""
MARKS_A_ROW = 1_920
"""Bytes: a row that PostgreSQL keeps in line by itself."""
MARK_SLOTS = 8_192 * MARKS_A_ROW
"""Bytes of marks of a group in the largest ledger, in memory until the group is full and then on disk. A run has a
million entries at most, so one in fifteen of the runs that a reader descends into there has another's account only."""
RUNS_AT_ONCE = 32
"""Looked into by one statement."""
RETRY_SECONDS = 1.0
FAILING_SECONDS_MAX = 30.0
"""A database that is away for less is no failure of the history: it goes on by itself."""
READ_SECONDS_MAX = 5.0
"""A reader waits so long for the tail after a start."""
PENDING_TRANSFERS_MAX = 2**21
"""Booked while the tail is being read: 200 MB; what is more is read from the journal again."""
ACCOUNT_MAX = 2**43
"""An account and a place in a run fit one sortable integer (2**63), and so in a chunk."""

ENTRY = np.dtype([("account", ">i8"), ("seq", ">i8"), ("id_high", ">u8"), ("id_low", ">u8")])
"""32 bytes, by (account, seq) within a run."""
_PAGE_COLUMNS = "history_page (run, first_account, first_seq, body)"
_MARK_COLUMNS = "history_mark (place, run, body)"

log = logging.getLogger("jiaozi.ledger.history")
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer that debits or credits the account."""

    seq: int
    id: UUID


class _Chunk:
    """Some transfers in a row: appended to until it is full, then sorted by account. Readers need no lock: they look at
    `count` first and at no more than that."""

    __slots__ = ("count", "first_seq", "id_high", "id_low", "keys", "sides")

    def __init__(self, first_seq: int, size: int) -> None:
        self.first_seq = first_seq
        self.count = 0
        self.id_high: UInt64s = np.zeros(size, np.uint64)
        self.id_low: UInt64s = np.zeros(size, np.uint64)
        self.sides: tuple[Int64s, Int64s] | None = np.zeros(size, np.int64), np.zeros(size, np.int64)
        """Debited and credited accounts, until `keys` has them."""
        self.keys: Int64s | None = None
        """Sorted: `account << PLACE_BITS | place`, two for each transfer."""

    @property
    def is_full(self) -> bool:
        return self.count == len(self.id_high)

    def append(self, transfers: Records) -> None:
        """As many as fit, one at least."""
        sides = self.sides
        if sides is None:
            raise RuntimeError("the chunk is full")
        debit, credit = sides
        end = self.count + len(transfers)
        debit[self.count : end], credit[self.count : end] = transfers["debit"], transfers["credit"]
        self.id_high[self.count : end], self.id_low[self.count : end] = transfers["id_high"], transfers["id_low"]
        self.count = end
        if self.is_full:
            places = np.arange(end, dtype=np.int64)
            keys = np.concatenate([debit << PLACE_BITS | places, credit << PLACE_BITS | places])
            keys.sort()
            self.keys = keys
            self.sides = None  # after `keys`: a reader finds the one or the other

    def find(self, account: int) -> list[int]:
        """Places of the account's transfers, in order."""
        sides = self.sides
        if sides is not None:
            count = self.count  # read once: it grows meanwhile
            debit, credit = sides[0][:count], sides[1][:count]
            return np.flatnonzero((debit == account) | (credit == account)).tolist()
        if self.keys is None:
            return []
        # Bisection in Python keeps Python's lock; numpy's would give it away and wait for it again, 5 ms at worst.
        keys = self.keys.data
        first = bisect_left(keys, account << PLACE_BITS)
        last = bisect_left(keys, (account + 1) << PLACE_BITS, first)
        return [key & PLACE_MASK for key in keys[first:last].tolist()]

    def entry(self, place: int) -> Entry:
        id_ = int(self.id_high[place]) << 64 | int(self.id_low[place])
        return Entry(self.first_seq + place, UUID(int=id_))


class _Tail:
    """Transfers from `first_seq` on, in chunks of CHUNK_TRANSFERS; only the last one is not full. Chunks are only
    added: whoever has the tail reads it without a lock."""

    def __init__(self, first_seq: int, chunk_size: int, chunks: Sequence[_Chunk] = ()) -> None:
        self.first_seq = first_seq
        self._chunk_size = chunk_size
        self._chunks = list(chunks) or [_Chunk(first_seq, chunk_size)]

    @property
    def next_seq(self) -> int:
        last = self._chunks[-1]
        return last.first_seq + last.count

    @property
    def count(self) -> int:
        return self.next_seq - self.first_seq

    def append(self, transfers: Records) -> None:
        while len(transfers):
            last = self._chunks[-1]
            fitting = self._chunk_size - last.count
            last.append(transfers[:fitting])
            transfers = transfers[fitting:]
            if last.is_full:
                self._chunks.append(_Chunk(self.next_seq, self._chunk_size))

    def run(self, size: int) -> Sequence[_Chunk]:
        """The first `size` transfers, which are so many whole chunks."""
        return self._chunks[: size // self._chunk_size]

    def without(self, size: int) -> _Tail:
        """The tail that begins `size` transfers, so many whole chunks, later. What is appended to this one from now on
        may be missing in it."""
        return _Tail(self.first_seq + size, self._chunk_size, self._chunks[size // self._chunk_size :])

    def find(
        self, account: int, *, after_seq: int, through_seq: int, limit: int, newest_first: bool = False
    ) -> list[Entry]:
        """At most `limit`, in order of seq or newest first."""
        found: list[Entry] = []
        chunks = self._chunks[:]
        for chunk in reversed(chunks) if newest_first else chunks:
            if chunk.first_seq > through_seq or chunk.first_seq + chunk.count <= after_seq + 1:
                continue
            first, last = after_seq + 1 - chunk.first_seq, through_seq - chunk.first_seq
            places = [place for place in chunk.find(account) if first <= place <= last]
            wanted = places[: -1 - limit + len(found) : -1] if newest_first else places[: limit - len(found)]
            found.extend(map(chunk.entry, wanted))
            if len(found) >= limit:
                break
        return found


class _Marks:
    """Which accounts occur in which runs of a group that is not full. The sealing thread adds to it, readers look."""

    def __init__(self, group: int) -> None:
        self.group = group
        """So many groups are full."""
        self._slots: npt.NDArray[np.uint8] = np.zeros(MARK_SLOTS, np.uint8)
        self._runs: set[int] = set()

    def add(self, run: int, bit: int, accounts: Iterable[npt.NDArray[Any]]) -> None:
        for some in accounts:
            self._slots[some.astype(np.int64) % MARK_SLOTS] |= np.uint8(1 << bit)
        self._runs.add(run)  # last: readers believe that a run which is here is marked whole

    def has(self, run: int) -> bool:
        return run in self._runs

    def may_have(self, run: int, bit: int, account: int) -> bool:
        return run not in self._runs or bool(self._slots[account % MARK_SLOTS] >> bit & 1)

    def rows(self, run: int) -> bytes:
        """Rows of `history_mark` as COPY takes them: those with a bit set. `run` is the group's first."""
        by_row = self._slots.reshape(-1, MARKS_A_ROW)
        places = np.flatnonzero(by_row.any(axis=1))
        layout = CopyLayout([("place", "int8"), ("run", "int8"), ("body", f"bytes:{MARKS_A_ROW}")])
        rows = layout.rows(len(places))
        rows["place"], rows["run"] = places, run
        rows["body"] = by_row[places].view(f"V{MARKS_A_ROW}")[:, 0]
        return rows.tobytes()


class History:
    """Follows the sequencer. `start` once its state is recovered; `stop` before the database goes."""

    def __init__(self, database: Database, *, run_transfers: int = RUN_TRANSFERS) -> None:
        self._database = database
        self._run_transfers = run_transfers
        self._chunk_size = math.gcd(run_transfers, CHUNK_TRANSFERS)
        self._tail: _Tail | None = None
        """None while the journal is being read; what is booked meanwhile waits in `_pending`."""
        self._runs: list[int] = []
        """First seqs of the sealed runs, in order; only added to, and before the tail lets them go."""
        self._marks = _Marks(0)
        self._has_workers: bool | None = None
        self._pending: list[Records] = []
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="history", daemon=True)
        self._failing_since: float | None = None
        self._trouble = ""
        self._is_usual = True

    def start(self) -> None:
        """In the background: read what is booked and not sealed, then seal. `find` waits for the reading."""
        self._thread.start()

    @property
    def failure(self) -> str | None:
        """Why accounts' histories do not go on, for /healthz; None = they do, or the database is away for a moment."""
        if self._thread.ident is not None and not self._thread.is_alive() and not self._stopping:
            return "histories have stopped: restart the ledger"
        since = self._failing_since
        if since is None or (self._is_usual and time.monotonic() - since < FAILING_SECONDS_MAX):
            return None
        return f"histories are not indexed: {self._trouble}"

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def follow(self, transfers: Records) -> None:
        """A committed block's transfers, in the sequencer's thread."""
        if not len(transfers):
            return
        with self._changed:
            tail = self._tail
            if tail is not None and int(transfers["seq"][0]) <= tail.next_seq:
                self._append(tail, transfers)
                return
            # Being read, or something was missed: the journal has it, and this waits until it is read.
            self._tail = None
            self._pending.append(transfers)
            while sum(len(each) for each in self._pending) > PENDING_TRANSFERS_MAX:
                self._pending.pop(0)
            self._changed.notify_all()

    def _append(self, tail: _Tail, transfers: Records) -> None:
        tail.append(transfers[tail.next_seq - int(transfers["seq"][0]) :])
        if tail.count >= self._run_transfers:
            self._changed.notify_all()

    # --- reading

    def find(
        self,
        connection: psycopg.Connection[Any],
        account: int,
        *,
        after_seq: int,
        through_seq: int,
        limit: int,
        newest_first: bool = False,
    ) -> list[Entry]:
        """The account's transfers with after_seq < seq <= through_seq, at most `limit`, in order or newest first."""
        tail = self._current_tail()
        if tail.next_seq <= through_seq:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the history is being read anew; retry")
        unsealed = partial(tail.find, account, after_seq=after_seq, through_seq=through_seq, newest_first=newest_first)
        found = unsealed(limit=limit) if newest_first else []
        sealed_through = min(through_seq, tail.first_seq - 1)
        if len(found) < limit and sealed_through > after_seq:
            wanted = _Wanted(account, after_seq, sealed_through, limit - len(found), newest_first)
            runs = _marked(connection, account, self._runs[:], self._marks)
            found += _find_sealed(connection, wanted, runs, is_distributed=self._is_distributed(connection))
        if len(found) < limit and not newest_first:
            found += unsealed(limit=limit - len(found))
        return found

    def _is_distributed(self, connection: psycopg.Connection[Any]) -> bool:
        """Asked once: `jiaozi-ledger distribute` is for a ledger that is not running."""
        if self._has_workers is None:
            self._has_workers = _is_distributed(connection)
        return self._has_workers

    def _current_tail(self) -> _Tail:
        with self._changed:
            self._changed.wait_for(lambda: self._tail is not None or self._stopping, READ_SECONDS_MAX)
            if self._tail is None:
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "the history is still being read; retry")
            return self._tail

    def _read_tail(self, connection: CheckedConnection) -> _Tail:
        """What the journal has beyond the last sealed run. A backlog of whole runs is sealed on the way."""
        journal = Journal(connection)
        self._runs, sealed_through = _sealed_runs(connection)
        tail = _Tail(sealed_through + 1, self._chunk_size)
        last_seq = journal.last_seq()
        while tail.next_seq <= last_seq:
            tail.append(journal.tail(tail.next_seq, min(last_seq, tail.next_seq + TAIL_PAGE - 1)).transfers)
            while tail.count >= self._run_transfers:
                self._write(connection, tail)
                tail = tail.without(self._run_transfers)
        return tail

    # --- sealing

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or self._tail is None or self._is_due())
                if self._stopping:
                    return
            try:
                with self._database.raw(isolation="READ COMMITTED") as connection:
                    if self._tail is None:
                        self._begin(self._read_tail(connection))
                    while not self._stopping and self._is_due():
                        self._seal(connection)
                self._failing_since = None
            except Exception as error:  # the ledger books all the same, and what is not sealed stays in memory
                is_usual = isinstance(error, (psycopg.Error, SQLAlchemyError, OutcomeUnknown))
                self._is_usual, self._trouble = is_usual, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                if self._failing_since is None:
                    self._failing_since = time.monotonic()
                log.warning("history is indexed later: %s", error, exc_info=None if is_usual else error)
                with self._changed:
                    self._changed.wait_for(lambda: self._stopping, timeout=RETRY_SECONDS)

    def _begin(self, tail: _Tail) -> None:
        with self._changed:
            pending, self._pending = self._pending, []
            for transfers in pending:
                if int(transfers["seq"][0]) > tail.next_seq:
                    return  # more was booked than may wait: read again
                self._append(tail, transfers)
            self._tail = tail
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return self._tail is not None and self._tail.count >= self._run_transfers

    def _seal(self, connection: CheckedConnection) -> None:
        tail = self._tail
        if tail is None:
            return
        self._write(connection, tail)
        with self._changed:
            if self._tail is not None:  # it has grown meanwhile
                self._tail = self._tail.without(self._run_transfers)

    def _write(self, connection: CheckedConnection, tail: _Tail) -> None:
        """Seal the tail's first run."""
        run, bit = tail.first_seq, len(self._runs) % GROUP_RUNS
        entries = entries_of_run(tail.run(self._run_transfers))
        group = len(self._runs) // GROUP_RUNS
        if self._marks.group != group:
            self._marks = _Marks(group)
        self._marks.add(run, bit, [entries["account"]])
        marks = b""
        if bit == GROUP_RUNS - 1:
            self._mark_earlier(connection, self._runs[len(self._runs) - bit :])
            marks = self._marks.rows(self._runs[-bit] if bit else run)
        _write_run(connection, run, tail.first_seq + self._run_transfers - 1, entries, marks)
        self._runs.append(run)

    def _mark_earlier(self, connection: CheckedConnection, runs: Sequence[int]) -> None:
        """Mark those of the group's runs that were sealed before a restart."""
        for bit, run in enumerate(runs):
            if not self._marks.has(run):
                self._marks.add(run, bit, _accounts_of(connection, run))


def entries_of_run(chunks: Sequence[_Chunk]) -> npt.NDArray[Any]:
    """What a run of these full chunks has: entries by (account, seq)."""
    first = chunks[0].first_seq
    bits = (chunks[-1].first_seq + chunks[-1].count - first).bit_length()
    keys = np.concatenate(
        [
            (part >> PLACE_BITS << bits) + (part & PLACE_MASK) + (chunk.first_seq - first)
            for chunk in chunks
            if (part := chunk.keys) is not None
        ]
    )
    keys.sort()
    keys = keys[np.searchsorted(keys, 1 << bits) :]  # account 0 is nobody: a tombstone's sides
    place = keys & ((1 << bits) - 1)
    entries = np.empty(len(keys), ENTRY)
    entries["account"] = keys >> bits
    entries["seq"] = place + first
    for name in ("id_high", "id_low"):
        entries[name] = np.concatenate([getattr(chunk, name) for chunk in chunks])[place]
    return entries


def page_rows(run: int, entries: npt.NDArray[Any]) -> Iterator[bytes]:
    """Rows of `history_page` as COPY takes them, PAGES_AT_ONCE together."""
    whole = len(entries) // PAGE_ENTRIES * PAGE_ENTRIES
    for start in range(0, whole, PAGES_AT_ONCE * PAGE_ENTRIES):
        yield _page_rows(run, entries[start : min(whole, start + PAGES_AT_ONCE * PAGE_ENTRIES)])
    if whole < len(entries):
        yield _page_rows(run, entries[whole:])


def _page_rows(run: int, entries: npt.NDArray[Any]) -> bytes:
    size = min(PAGE_ENTRIES, len(entries))
    layout = CopyLayout(
        [("run", "int8"), ("first_account", "int8"), ("first_seq", "int8"), ("body", f"bytes:{size * ENTRY.itemsize}")]
    )
    rows = layout.rows(len(entries) // size)
    rows["run"] = run
    rows["first_account"], rows["first_seq"] = entries["account"][::size], entries["seq"][::size]
    rows["body"] = entries.view(f"V{size * ENTRY.itemsize}")
    return rows.tobytes()


def _write_run(
    connection: CheckedConnection, first_seq: int, last_seq: int, entries: npt.NDArray[Any], marks: bytes
) -> None:
    """Write a run and, if it fills its group, the group's marks; unless it is there: then somebody else with the same
    journal has written the same."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO history_run (first_seq, last_seq) VALUES (%s, %s)", (first_seq, last_seq))
            for rows in page_rows(first_seq, entries):
                copy_in(cursor, _PAGE_COLUMNS, rows)
            if marks:
                copy_in(cursor, _MARK_COLUMNS, marks)
        connection.commit()
    except BaseException as error:
        if not connection.closed:
            connection.rollback()
        if not (isinstance(error, psycopg.Error) and is_duplicate_key(error)):  # else it is written already
            raise


def _sealed_runs(connection: CheckedConnection) -> tuple[list[int], int]:
    """First seqs of the runs, in order, and the last seq that they have."""
    with connection.cursor() as cursor:
        rows = cursor.execute("SELECT first_seq, last_seq FROM history_run ORDER BY first_seq").fetchall()
    connection.commit()
    return [int(first) for first, _ in rows], int(rows[-1][1]) if rows else 0


def _accounts_of(connection: CheckedConnection, run: int) -> Iterator[npt.NDArray[Any]]:
    """The accounts of a run, some pages at a time."""
    with connection.cursor("pages_of_run", binary=True) as cursor:
        cursor.execute("SELECT body FROM history_page WHERE run = %s", (run,))
        while pages := cursor.fetchmany(PAGES_AT_ONCE):
            yield np.frombuffer(b"".join(body for (body,) in pages), ENTRY)["account"]
    connection.commit()


# --- sealed runs


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Entries of an account with after_seq < seq <= through_seq."""

    account: int
    after_seq: int
    through_seq: int
    limit: int
    newest_first: bool

    def parameters(self) -> dict[str, int]:
        return {"account": self.account, "through": self.through_seq, "from": self.after_seq + 1}

    def entries(self, body: bytes) -> list[Entry]:
        """Those on a page, in the order that is asked for."""
        page = np.frombuffer(body, ENTRY)
        seq = page["seq"]
        mine = page[(page["account"] == self.account) & (seq > self.after_seq) & (seq <= self.through_seq)].tolist()
        found = [Entry(item[1], UUID(int=item[2] << 64 | item[3])) for item in mine]
        return found[::-1] if self.newest_first else found

    def is_whole(self, body: bytes | None) -> bool:
        """Whether a run has no more of it than stands on its page that is looked at first."""
        if body is None:
            return self.newest_first
        if self.newest_first:  # else there may be more on the page before
            return int.from_bytes(body[:8], "big", signed=True) != self.account
        last = len(body) - ENTRY.itemsize
        return int.from_bytes(body[last : last + 8], "big", signed=True) > self.account


_MARKS = "SELECT run, get_byte(body, %s) FROM history_mark WHERE place = %s"
_FIRST_PAGE = (
    "SELECT {run} AS run, body FROM history_page WHERE run = {run} AND (first_account, first_seq) <="
    " (%(account)s, {seq}) ORDER BY first_account DESC, first_seq DESC LIMIT 1"
)
_FIRST_SEQ = {True: "%(through)s", False: "%(from)s"}
"""By newest first or not."""
_FIRST_PAGES = {
    newest_first: f"SELECT p.run, p.body FROM unnest(%(runs)s::bigint[]) r CROSS JOIN LATERAL"
    f" ({_FIRST_PAGE.format(run='r', seq=seq)}) p"
    for newest_first, seq in _FIRST_SEQ.items()
}
_PAGES_OF_RUN = {
    True: "SELECT first_account, first_seq, body FROM history_page WHERE run = %(run)s"
    " AND (first_account, first_seq) <= (%(account)s, %(through)s)"
    " ORDER BY first_account DESC, first_seq DESC LIMIT %(pages)s",
    False: "(SELECT first_account, first_seq, body FROM history_page WHERE run = %(run)s"
    " AND (first_account, first_seq) <= (%(account)s, %(from)s)"
    " ORDER BY first_account DESC, first_seq DESC LIMIT 1)"
    " UNION ALL (SELECT first_account, first_seq, body FROM history_page WHERE run = %(run)s"
    " AND (first_account, first_seq) > (%(account)s, %(from)s) AND first_account <= %(account)s"
    " ORDER BY first_account, first_seq LIMIT %(pages)s) ORDER BY 1, 2",
}
_HAS_CITUS = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"
_DISTRIBUTED = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'history_page'::regclass)"


def _marked(connection: psycopg.Connection[Any], account: int, runs: Sequence[int], loose: _Marks) -> list[int]:
    """The runs, of these, that may have the account: those whose bit is set or whose group is not full yet. A full one
    has marks: its last run was written with them."""
    full = len(runs) // GROUP_RUNS * GROUP_RUNS
    last = [run for bit, run in enumerate(runs[full:]) if loose.may_have(run, bit, account)]
    if not full:
        return last
    place, slot = divmod(account % MARK_SLOTS, MARKS_A_ROW)
    marks = dict(connection.execute(_MARKS, (slot, place), prepare=True, binary=True).fetchall())
    found = [
        run
        for start in range(0, full, GROUP_RUNS)
        if (bits := marks.get(runs[start], 0))
        for bit, run in enumerate(runs[start : start + GROUP_RUNS])
        if bits >> bit & 1
    ]
    return found + last


def _find_sealed(
    connection: psycopg.Connection[Any], wanted: _Wanted, runs: Sequence[int], *, is_distributed: bool
) -> list[Entry]:
    """From these runs, in order, which are all that may have the account."""
    first = max(0, bisect_right(runs, wanted.after_seq + 1) - 1)
    runs = runs[first : bisect_right(runs, wanted.through_seq)]
    if wanted.newest_first:
        runs = runs[::-1]
    found: list[Entry] = []
    parameters = wanted.parameters()
    for start in range(0, len(runs), RUNS_AT_ONCE):
        some = runs[start : start + RUNS_AT_ONCE]
        pages = _first_pages(connection, wanted, some, parameters, is_distributed=is_distributed)
        for run in some:
            body = pages.get(run)
            bodies: Sequence[bytes] = [body] if body is not None else []
            if not wanted.is_whole(body):
                count = (wanted.limit - len(found)) // PAGE_ENTRIES + 2
                deeper = {**parameters, "run": run, "pages": count}
                query = _PAGES_OF_RUN[wanted.newest_first]
                bodies = [page[2] for page in connection.execute(query, deeper, prepare=True, binary=True)]
            for page in bodies:
                found.extend(wanted.entries(page))
            if len(found) >= wanted.limit:
                return found[: wanted.limit]
    return found


def _first_pages(
    connection: psycopg.Connection[Any],
    wanted: _Wanted,
    runs: Sequence[int],
    parameters: Mapping[str, int],
    *,
    is_distributed: bool,
) -> dict[int, bytes]:
    """By run the page on which the account's newest (oldest) entry stands if the run has one, found by the page's first
    entry. The oldest may also stand first on the page after."""
    if not is_distributed:
        query = _FIRST_PAGES[wanted.newest_first]
        return dict(connection.execute(query, {**parameters, "runs": list(runs)}, prepare=True, binary=True).fetchall())
    seq = _FIRST_SEQ[wanted.newest_first]  # Citus plans no LATERAL over what is spread over its workers
    pages = " UNION ALL ".join(f"({_FIRST_PAGE.format(run=run, seq=seq)})" for run in runs)
    return dict(connection.execute(pages, parameters, binary=True).fetchall())


def _is_distributed(connection: psycopg.Connection[Any]) -> bool:
    """Whether `history_page` is spread over the workers of a Citus cluster, which plans no LATERAL over it."""
    has_citus = connection.execute(_HAS_CITUS).fetchone()
    if has_citus is None or not has_citus[0]:
        return False
    found = connection.execute(_DISTRIBUTED).fetchone()
    return found is not None and bool(found[0])

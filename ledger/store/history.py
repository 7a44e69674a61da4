"""The history of an account: sorted pages for sealed runs of the journal, memory for the tail that is not sealed yet.

Two live B-trees by account would cost more than everything else that a transfer costs. Instead every RUN_TRANSFERS
transfers a *run* is sealed in the background: its (account, seq, id) entries, two a transfer, are sorted and written as
pages of up to PAGE_ENTRIES entries, keyed by the first entry. The entries of an account are then next to each other,
at one descent of the primary key a run. What is newer than the last run is searched in memory, about a millisecond.

Nothing here is believed about money: entries name transfers, which are read from `transfer` by id. A run can be
written twice by nobody (primary key), and by anybody who has the journal: its content follows from it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
PAGE_ENTRIES = 60
"""1,920 bytes: a row that PostgreSQL keeps in line, four to a page of its own."""
RUNS_AT_ONCE = 32
RETRY_SECONDS = 1.0
FAILING_SECONDS_MAX = 30.0
"""A database that is away for less is no failure of the history: it goes on by itself."""
READ_SECONDS_MAX = 5.0
"""A reader waits so long for the tail after a start."""
PENDING_TRANSFERS_MAX = 2**21
"""Booked while the tail is being read: 200 MB; what is more is read from the journal again."""
ACCOUNT_MAX = 2**43
"""An account and a place in a run fit one sortable integer."""

ENTRY = np.dtype([("account", ">i8"), ("seq", ">i8"), ("id_high", ">u8"), ("id_low", ">u8")])
"""32 bytes, by (account, seq) within a run."""
_PAGE_COLUMNS = "history_page (run, first_account, first_seq, body)"

log = logging.getLogger("jiaozi.ledger.history")
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Entry:
    """A transfer that debits or credits the account."""

    seq: int
    id: UUID


class _Tail:
    """Transfers from `first_seq` on, in arrays that only grow: readers look at `count` first and at no more."""

    def __init__(self, first_seq: int, capacity: int) -> None:
        self.first_seq = first_seq
        self.count = 0
        self.debit: Int64s = np.zeros(capacity, np.int64)
        self.credit: Int64s = np.zeros(capacity, np.int64)
        self.id_high: UInt64s = np.zeros(capacity, np.uint64)
        self.id_low: UInt64s = np.zeros(capacity, np.uint64)

    @property
    def next_seq(self) -> int:
        return self.first_seq + self.count

    def has_room(self, size: int) -> bool:
        return self.count + size <= len(self.debit)

    def append(self, transfers: Records) -> None:
        end = self.count + len(transfers)
        for name in ("debit", "credit", "id_high", "id_low"):
            getattr(self, name)[self.count : end] = transfers[name]
        self.count = end

    def without(self, dropped: int, capacity: int) -> _Tail:
        """A copy that begins `dropped` transfers later."""
        kept = self.count - dropped
        left = _Tail(self.first_seq + dropped, max(capacity, kept))
        left.count = kept
        for name in ("debit", "credit", "id_high", "id_low"):
            getattr(left, name)[: left.count] = getattr(self, name)[dropped : self.count]
        return left

    def find(self, account: int, *, after_seq: int, through_seq: int) -> list[Entry]:
        """In seq order."""
        start = max(0, after_seq + 1 - self.first_seq)
        end = min(self.count, through_seq + 1 - self.first_seq)
        if end <= start:
            return []
        found = np.flatnonzero((self.debit[start:end] == account) | (self.credit[start:end] == account)) + start
        ids = zip(self.id_high[found].tolist(), self.id_low[found].tolist(), strict=True)
        return [
            Entry(self.first_seq + place, UUID(int=high << 64 | low))
            for place, (high, low) in zip(found.tolist(), ids, strict=True)
        ]


class History:
    """Follows the sequencer. `start` once its state is recovered; `stop` before the database goes."""

    def __init__(self, database: Database, *, run_transfers: int = RUN_TRANSFERS) -> None:
        self._database = database
        self._run_transfers = run_transfers
        self._tail: _Tail | None = None
        """None while the journal is being read; what is booked meanwhile waits in `_pending`."""
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
        new = transfers[tail.next_seq - int(transfers["seq"][0]) :]
        if not tail.has_room(len(new)):
            tail = self._tail = tail.without(0, 2 * (tail.count + len(new)))
        tail.append(new)
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
        sealed_through = min(through_seq, tail.first_seq - 1)
        newest = tail.find(account, after_seq=after_seq, through_seq=through_seq)
        if newest_first:
            found = newest[: -limit - 1 : -1]
            if len(found) < limit and sealed_through > after_seq:
                found += _newest_sealed(
                    connection,
                    account,
                    after_seq,
                    sealed_through,
                    limit - len(found),
                    is_distributed=self._is_distributed(connection),
                )
            return found
        found = (
            _oldest_sealed(connection, account, after_seq, sealed_through, limit) if sealed_through > after_seq else []
        )
        return found + newest[: limit - len(found)]

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
        tail = _Tail(_sealed_through(connection) + 1, 2 * self._run_transfers)
        last_seq = journal.last_seq()
        while tail.next_seq <= last_seq:
            rows = journal.tail(tail.next_seq, min(last_seq, tail.next_seq + TAIL_PAGE - 1)).transfers
            if not tail.has_room(len(rows)):
                tail = tail.without(0, 2 * (tail.count + len(rows)))
            tail.append(rows)
            while tail.count >= self._run_transfers:
                _write_run(connection, tail, self._run_transfers)
                tail = tail.without(self._run_transfers, 2 * self._run_transfers)
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
                tail = self._tail or tail
            self._tail = tail
            self._changed.notify_all()

    def _is_due(self) -> bool:
        return self._tail is not None and self._tail.count >= self._run_transfers

    def _seal(self, connection: CheckedConnection) -> None:
        tail = self._tail
        if tail is None:
            return
        _write_run(connection, tail, self._run_transfers)
        with self._changed:
            if self._tail is not None:  # it has grown meanwhile, perhaps into larger arrays
                self._tail = self._tail.without(self._run_transfers, max(2 * self._run_transfers, self._tail.count))


def pages_of_run(tail: _Tail, size: int) -> bytes:
    """Rows of `history_page` for the first `size` transfers, as COPY takes them."""
    places = np.arange(size, dtype=np.int64)
    bits = max(1, (size - 1).bit_length())
    keys = np.concatenate([tail.debit[:size] << bits | places, tail.credit[:size] << bits | places])
    keys.sort()
    keys = keys[np.searchsorted(keys, 1 << bits) :]  # account 0 is nobody: a tombstone's sides
    place = keys & ((1 << bits) - 1)
    entries = np.empty(len(keys), ENTRY)
    entries["account"] = keys >> bits
    entries["seq"] = place + tail.first_seq
    entries["id_high"], entries["id_low"] = tail.id_high[place], tail.id_low[place]
    whole = len(entries) // PAGE_ENTRIES * PAGE_ENTRIES
    return b"".join(_page_rows(tail.first_seq, part) for part in (entries[:whole], entries[whole:]) if len(part))


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


def _write_run(connection: CheckedConnection, tail: _Tail, size: int) -> None:
    """Write a run, unless it is there: then somebody else with the same journal has written the same."""
    first, last = tail.first_seq, tail.first_seq + size - 1
    rows = pages_of_run(tail, size)
    try:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO history_run (first_seq, last_seq) VALUES (%s, %s)", (first, last))
            copy_in(cursor, _PAGE_COLUMNS, rows)
        connection.commit()
    except BaseException as error:
        if not connection.closed:
            connection.rollback()
        if not (isinstance(error, psycopg.Error) and is_duplicate_key(error)):  # else it is written already
            raise


def _sealed_through(connection: CheckedConnection) -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT coalesce(max(last_seq), 0) FROM history_run")
        row = cursor.fetchone()
    connection.commit()
    return int(row[0]) if row is not None else 0


# --- sealed runs


_NEWEST = (
    "SELECT r.first_seq, p.body FROM"
    " (SELECT first_seq FROM history_run WHERE first_seq <= %(before)s ORDER BY first_seq DESC LIMIT %(runs)s) r"
    " LEFT JOIN LATERAL (SELECT body FROM history_page WHERE run = r.first_seq"
    " AND (first_account, first_seq) <= (%(account)s, %(through)s)"
    " ORDER BY first_account DESC, first_seq DESC LIMIT 1) p"
    " ON true ORDER BY r.first_seq DESC"
)
_RUNS_BEFORE = "SELECT first_seq FROM history_run WHERE first_seq <= %(before)s ORDER BY first_seq DESC LIMIT %(runs)s"
_NEWEST_PAGE = (
    "(SELECT run, body FROM history_page WHERE run = {}"
    " AND (first_account, first_seq) <= (%(account)s, %(through)s)"
    " ORDER BY first_account DESC, first_seq DESC LIMIT 1)"
)
_HAS_CITUS = "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL"
_DISTRIBUTED = "SELECT EXISTS (SELECT FROM pg_dist_partition WHERE logicalrelid = 'history_page'::regclass)"
_NEWEST_OF_RUN = (
    "SELECT body FROM history_page WHERE run = %(run)s AND (first_account, first_seq) <= (%(account)s, %(through)s)"
    " ORDER BY first_account DESC, first_seq DESC LIMIT %(pages)s"
)
_RUNS_FROM = "SELECT first_seq, last_seq FROM history_run WHERE last_seq > %(after)s ORDER BY first_seq LIMIT %(runs)s"
_OLDEST_OF_RUN = (
    "(SELECT first_account, first_seq, body FROM history_page WHERE run = %(run)s"
    " AND (first_account, first_seq) <= (%(account)s, %(after)s) ORDER BY first_account DESC, first_seq DESC LIMIT 1)"
    " UNION ALL (SELECT first_account, first_seq, body FROM history_page WHERE run = %(run)s"
    " AND (first_account, first_seq) > (%(account)s, %(after)s) AND first_account <= %(account)s"
    " ORDER BY first_account, first_seq LIMIT %(pages)s) ORDER BY 1, 2"
)


def _newest_sealed(
    connection: psycopg.Connection[Any],
    account: int,
    after_seq: int,
    through_seq: int,
    limit: int,
    *,
    is_distributed: bool,
) -> list[Entry]:
    found: list[Entry] = []
    before = through_seq
    while len(found) < limit and before > after_seq:
        parameters = {"before": before, "runs": RUNS_AT_ONCE, "account": account, "through": through_seq}
        runs = _newest_pages(connection, parameters, is_distributed=is_distributed)
        for run, body in runs:
            bodies: Sequence[bytes] = [body] if body is not None else []
            if body is not None and _first_account(body) == account:  # there may be more of it on the page before
                pages = (limit - len(found)) // PAGE_ENTRIES + 2
                deeper = {"run": run, "account": account, "through": through_seq, "pages": pages}
                bodies = [page for (page,) in connection.execute(_NEWEST_OF_RUN, deeper, prepare=True, binary=True)]
            for page in bodies:
                found.extend(reversed(list(_entries(page, account, after_seq, through_seq))))
            if len(found) >= limit:
                break
        if not runs:
            break
        before = int(runs[-1][0]) - 1
    return found[:limit]


def _newest_pages(
    connection: psycopg.Connection[Any], parameters: Mapping[str, int], *, is_distributed: bool
) -> Sequence[tuple[int, bytes | None]]:
    """Of each run, the newest first, the page on which the account's newest entry stands if it has one."""
    if not is_distributed:
        return list(connection.execute(_NEWEST, parameters, prepare=True, binary=True))
    runs = [int(run) for (run,) in connection.execute(_RUNS_BEFORE, parameters)]
    if not runs:
        return []
    pages = " UNION ALL ".join(_NEWEST_PAGE.format(run) for run in runs)
    found = {int(run): bytes(body) for run, body in connection.execute(pages, parameters, binary=True)}
    return [(run, found.get(run)) for run in runs]


def _is_distributed(connection: psycopg.Connection[Any]) -> bool:
    """Whether `history_page` is spread over the workers of a Citus cluster, which plans no LATERAL over it."""
    has_citus = connection.execute(_HAS_CITUS).fetchone()
    if has_citus is None or not has_citus[0]:
        return False
    found = connection.execute(_DISTRIBUTED).fetchone()
    return found is not None and bool(found[0])


def _oldest_sealed(
    connection: psycopg.Connection[Any], account: int, after_seq: int, through_seq: int, limit: int
) -> list[Entry]:
    found: list[Entry] = []
    after = after_seq
    while len(found) < limit:
        runs = connection.execute(_RUNS_FROM, {"after": after, "runs": RUNS_AT_ONCE}, prepare=True).fetchall()
        for run, _ in runs:
            if len(found) >= limit or run > through_seq:
                return found[:limit]
            pages = (limit - len(found)) // PAGE_ENTRIES + 2
            parameters = {"run": run, "account": account, "after": after_seq + 1, "pages": pages}
            for _, _, body in connection.execute(_OLDEST_OF_RUN, parameters, prepare=True, binary=True):
                found.extend(_entries(body, account, after_seq, through_seq))
        if not runs:
            break
        after = int(runs[-1][1])
    return found[:limit]


def _first_account(body: bytes) -> int:
    return int.from_bytes(body[:8], "big", signed=True)


def _entries(body: bytes, account: int, after_seq: int, through_seq: int) -> Iterator[Entry]:
    entries = np.frombuffer(body, ENTRY)
    seq = entries["seq"]
    mine = entries[(entries["account"] == account) & (seq > after_seq) & (seq <= through_seq)]
    for item in mine.tolist():
        yield Entry(item[1], UUID(int=item[2] << 64 | item[3]))

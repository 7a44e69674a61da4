"""Closings: at each day's end, and when an operator asks, every balance under one signed root.

One thread decides when; the tree is made in a process of its own (`closing_process`), so the ledger goes on meanwhile:
1. copy all balances between two blocks (`Sequencer.read`): they are those after the newest block;
2. take back from the copy what was booked after the block to close at: the journal says what;
3. the balances must add up to what that block's header says (I2), or nothing is signed;
4. the process makes the tree, the ledger signs root and totals, the process commits.
A day is closed at its last block, once the first block of a later day is there; so no day is closed twice or while it
runs, and days that ended while the ledger was down, or in the middle of a crash, are closed at the next start.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta

import numpy as np
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from kernel import pagination
from kernel.clock import from_micros
from kernel.database import Database, OutcomeUnknown
from kernel.errors import InvariantBroken, ProblemError, RequestRefusal
from kernel.pagination import Page
from kernel.transparency import sum_tree
from ledger.balance_proofs import (
    FIRST_HOLDER_ACCOUNT,
    NO_STATEMENT,
    BalanceProof,
    ClosingKind,
    ClosingStatement,
    ProofNode,
    ProofShare,
    sign_statement,
    unverified_statement,
)
from ledger.contract import ClosingView
from ledger.domain.blocks import BlockHeader
from ledger.domain.state import LedgerState
from ledger.domain.vocabulary import KIND_CODE, LedgerRefusal, TransferKind
from ledger.engine.sequencer import Sequencer, SequencerUnavailable
from ledger.log.keys import LogKeys
from ledger.log.leaves import block_commitment
from ledger.store import closings as store
from ledger.store import queries
from ledger.store.closings import ClosingRecord
from ledger.usecases.closing_process import DIRECTORY, PAGE_HEIGHT, Task, record_message, send
from ledger.usecases.keyring import Caller

LOOK_SECONDS = 1.0
"""How often the thread looks whether a new day has begun."""
RETRY_SECONDS = 15.0
"""After a closing that failed."""
READ_SECONDS_MAX = 60.0
PROCESS_SECONDS_MAX = 3_600.0
"""For one tree: eighty times what ten million accounts take. A process that hangs is killed, its closing made anew."""
UNDO_PAGE = 200_000
"""Transfers taken back at a time: 8 MB."""
DIRECTORIES_KEPT = 4
"""Closings whose directory stays in memory: 100 bytes for a page of 512 accounts, 2 MB for 10 million."""
_UNPOSTED = [
    KIND_CODE[kind] for kind in (TransferKind.HOLD, TransferKind.VOID, TransferKind.EXPIRE, TransferKind.TOMBSTONE)
]
"""Kinds that do not move the posted balance."""

log = logging.getLogger("jiaozi.ledger.closings")


class ClosingFailed(RuntimeError):
    """No closing was made; it is tried again."""


@dataclass(frozen=True, slots=True)
class _Directory:
    statement: ClosingStatement
    tags: sum_tree.UInt64s
    levels: Sequence[sum_tree.Nodes]
    """From the pages' nodes to the root."""


class Closings:
    def __init__(
        self,
        sequencer: Sequencer,
        database: Database,
        *,
        database_url: str,
        state: LedgerState,
        keys: LogKeys | None,
        answer_seconds_max: float,
    ) -> None:
        """`keys`: None for a ledger without a log key, which makes no closings."""
        self._sequencer = sequencer
        self._database = database
        self._database_url = database_url
        self._state = state
        self._keys = keys
        self._answer_seconds_max = answer_seconds_max
        self._orders: list[Future[ClosingRecord]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="closings", daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._nothing_due_on: date | None = None
        """The day on which every day before it was found closed."""
        self._directories: OrderedDict[int, _Directory] = OrderedDict()
        self.failure: str | None = None
        """Why no more closings are made: a person must look."""

    def start(self) -> None:
        if self._keys is not None:
            self._thread.start()

    def stop(self) -> None:
        """A closing under way is given up; it is made again at the next start."""
        self._stopping.set()
        self._wake.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_orders(ClosingFailed("the ledger is stopping"))

    # --- asking

    def order(self, *, caller: Caller) -> ClosingView:
        """A closing at the newest block, for an operator; the last closing again if nothing was booked since."""
        if not caller.is_operator:
            raise ProblemError(RequestRefusal.NOT_PERMITTED, "closings are ordered by operators")
        future: Future[ClosingRecord] = Future()
        with self._lock:
            if self._keys is None or self._stopping.is_set():
                raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "this ledger makes no closings now")
            self._orders.append(future)
        self._wake.set()
        try:
            return _view(future.result(self._answer_seconds_max))
        except FutureTimeout:
            detail = "the closing is being made: look at the list of closings"
            raise ProblemError(LedgerRefusal.OUTCOME_UNKNOWN, detail) from None
        except ClosingFailed as error:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, str(error)) from error

    def view(self, number: int) -> ClosingView:
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            found = store.find_closing(connection, number)
        if found is None:
            raise ProblemError(LedgerRefusal.CLOSING_NOT_FOUND)
        return _view(found)

    def newest(self, *, cursor: str | None, limit: int) -> Page[ClosingView]:
        """The newest first."""
        before = int(pagination.decode(cursor, {}, shape=(int,))[0]) if cursor is not None else None
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            rows = store.newest_closings(connection, before=before, limit=limit + 1)
        shown = [_view(row) for row in rows[:limit]]
        return Page(items=shown, next_cursor=pagination.encode([shown[-1].closing], {}) if len(rows) > limit else None)

    def balance_proof(self, number: int, account: int, *, caller: Caller) -> BalanceProof:
        """An account's balance in a closing, for its participant and for operators."""
        if not self._state.exists(account) or not (
            caller.is_operator or int(self._state.participant[account]) == caller.participant
        ):
            raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            record = store.find_closing(connection, number)
            if record is None or self._keys is None:
                raise ProblemError(LedgerRefusal.CLOSING_NOT_FOUND)
            found = self._directory(connection, record)
            if not FIRST_HOLDER_ACCOUNT <= account < FIRST_HOLDER_ACCOUNT + found.statement.accounts:
                raise ProblemError(LedgerRefusal.ACCOUNT_NOT_FOUND, "the closing was before the account was opened")
            key = sum_tree.closing_key(self._keys.master, number)
            shares = [_share(connection, found, key, number, account, share) for share in range(sum_tree.SHARES)]
        return BalanceProof(
            statement=record.statement,
            account=account,
            balance_minor=sum(share.sum_minor for share in shares),
            shares=shares,
        )

    def _directory(self, connection: Connection, record: ClosingRecord) -> _Directory:
        with self._lock:
            known = self._directories.get(record.number)
            if known is not None:
                self._directories.move_to_end(record.number)
                return known
        entries = np.frombuffer(store.directory(connection, record.number) or b"", DIRECTORY)
        nodes = np.ascontiguousarray(entries["node"])
        made = _Directory(
            unverified_statement(record.statement), entries["tag"].astype(np.uint64), sum_tree.levels(nodes)
        )
        with self._lock:
            self._directories[record.number] = made
            while len(self._directories) > DIRECTORIES_KEPT:
                self._directories.popitem(last=False)
        return made

    # --- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = LOOK_SECONDS
            try:
                while not self._stopping.is_set() and self._close_next_day():
                    pass
                self._serve_orders()
            except (ClosingFailed, SequencerUnavailable, FutureTimeout, SQLAlchemyError, OutcomeUnknown, OSError) as e:
                log.warning("closing put off: %s: %s", type(e).__name__, str(e).partition("\n")[0])
                self._fail_orders(ClosingFailed("the closing could not be made now; retry"))
                pause = RETRY_SECONDS
            except Exception as error:  # an invariant, or a bug: said aloud, and never a wrong statement
                self.failure = f"closings have stopped: {type(error).__name__}: {error}"
                log.critical("%s", self.failure, exc_info=error)
                self._stopping.set()
                self._fail_orders(ClosingFailed("closings have stopped; see the ledger's log"))
                return
            self._wake.wait(pause)
            self._wake.clear()

    def _close_next_day(self) -> bool:
        """Close the oldest day that has ended and is not closed. False when there is none."""
        head = self._sequencer.head
        if head is None or self._local_day(head) == self._nothing_due_on:
            return False
        today = self._local_day(head)
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            last = store.last_closing(connection, kind=ClosingKind.DAY)
            first = queries.find_block(connection, last.block + 1 if last is not None else 1)
            if first is None or self._local_day(first) >= today:
                self._nothing_due_on = today
                return False
            day_after = self._local_day(first) + timedelta(days=1)
            midnight = datetime.combine(day_after, time(), self._state.time_zone).astimezone(UTC)
            target = store.last_block_before(connection, midnight, low=first.number, high=head.number)
        self._close(target, ClosingKind.DAY)
        return True

    def _serve_orders(self) -> None:
        with self._lock:
            orders = list(self._orders)
        head = self._sequencer.head
        if not orders or head is None or self._local_day(head) != self._nothing_due_on:
            return  # a day ended in this moment: it is closed first, so that no closing is of an earlier block
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            last = store.last_closing(connection)
        is_current = last is not None and last.block == head.number
        record = last if last is not None and is_current else self._close(head.number, ClosingKind.ORDER)
        with self._lock:
            self._orders = self._orders[len(orders) :]
        for order in orders:
            order.set_result(record)

    def _fail_orders(self, error: ClosingFailed) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for order in orders:
            order.set_exception(error)

    def _local_day(self, header: BlockHeader) -> date:
        return from_micros(header.booked_at).astimezone(self._state.time_zone).date()

    # --- one closing

    def _close(self, target: int, kind: ClosingKind) -> ClosingRecord:
        """Make and store the closing at block `target`. Raises ClosingFailed, InvariantBroken."""
        if self._keys is None:
            raise ClosingFailed("this ledger has no log key")
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            header = queries.find_block(connection, target)
            last = store.last_closing(connection)
        if header is None:
            raise ClosingFailed(f"block {target} is not there")
        through, balances = self._sequencer.read(_holders).result(READ_SECONDS_MAX)
        last_seq = header.first_seq + header.transfer_count - 1
        self._take_back(balances, last_seq, through)
        holders = header.first_account + header.account_count - FIRST_HOLDER_ACCOUNT
        balances, younger = balances[: max(holders, 0)], balances[max(holders, 0) :]
        held_by_all = header.vaults + header.wallets + header.offline
        is_whole = int(balances.sum()) == held_by_all == header.issued - header.redeemed
        if not is_whole or bool(younger.any()) or int(balances.min(initial=0)) < 0:
            raise InvariantBroken("I2", f"the balances at block {target} are not what its header says")
        number = last.number + 1 if last is not None else 1
        previous = unverified_statement(last.statement).digest if last is not None else NO_STATEMENT

        def signed(root: bytes, total: int) -> ClosingRecord:
            statement = ClosingStatement(
                ledger=self._state.ledger,
                currency=self._state.currency,
                closing=number,
                kind=kind,
                day=self._local_day(header),
                block=header.number,
                block_commitment=block_commitment(keys.master, header.number, header.hash),
                seq=last_seq,
                booked_at=from_micros(header.booked_at),
                accounts=len(balances),
                leaves=len(balances) * sum_tree.SHARES,
                root=root,
                root_total_minor=total,
                issued_minor=header.issued,
                redeemed_minor=header.redeemed,
                circulation_minor=header.issued - header.redeemed,
                vaults_minor=header.vaults,
                wallets_minor=header.wallets,
                offline_minor=header.offline,
                previous=previous,
            )
            note = sign_statement(statement, name=keys.origin, key=keys.signing)
            return ClosingRecord(number, kind.value, statement.day, header.number, note)

        keys = self._keys
        task = Task(
            database_url=self._database_url,
            key=sum_tree.closing_key(keys.master, number).hex(),
            closing=number,
            first_account=FIRST_HOLDER_ACCOUNT,
            accounts=len(balances),
        )
        record = self._run_process(task, balances, signed)
        log.info("closing %d (%s): %d accounts at block %d", number, kind.value, len(balances), header.number)
        return record

    def _take_back(self, balances: sum_tree.Int64s, last_seq: int, through: int) -> None:
        """Undo the transfers last_seq + 1 ... through in the copy of the balances."""
        with self._database.raw(isolation="READ COMMITTED") as connection, connection.cursor() as cursor:
            for first in range(last_seq + 1, through + 1, UNDO_PAGE):
                last = min(through, first + UNDO_PAGE - 1)
                rows = store.moved(cursor, first, last)
                if len(rows) != last - first + 1:
                    raise ClosingFailed(f"the journal does not have all of seq {first} to {last}")
                rows = rows[~np.isin(rows["kind"], _UNPOSTED)]
                for side, sign in (("debit", 1), ("credit", -1)):
                    ours = rows[rows[side] >= FIRST_HOLDER_ACCOUNT]
                    accounts = ours[side].astype(np.int64) - FIRST_HOLDER_ACCOUNT
                    np.add.at(balances, accounts, sign * ours["amount"].astype(np.int64))

    def _run_process(
        self, task: Task, balances: sum_tree.Int64s, signed: Callable[[bytes, int], ClosingRecord]
    ) -> ClosingRecord:
        """Steps 1 to 4 of `closing_process`, seen from the ledger."""
        with self._lock:
            if self._stopping.is_set():
                raise ClosingFailed("the ledger is stopping")
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ledger.usecases.closing_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        process = self._process
        watch = threading.Timer(PROCESS_SECONDS_MAX, process.kill)
        watch.daemon = True
        watch.start()
        try:
            if process.stdin is None or process.stdout is None:
                raise ClosingFailed("the process has no pipes")
            send(process.stdin, asdict(task))
            process.stdin.write(balances.astype("<i8").tobytes())
            process.stdin.flush()
            made = json.loads(process.stdout.readline() or "{}")
            if "root" not in made:
                raise ClosingFailed("the process ended without a root")
            record = signed(bytes.fromhex(made["root"]), int(made["total"]))
            send(process.stdin, record_message(record))
            if not json.loads(process.stdout.readline() or "{}").get("stored"):
                raise ClosingFailed("the closing was not stored")
            return record
        finally:
            watch.cancel()
            with self._lock:
                self._process = None
            process.kill()
            process.communicate()


def _holders(state: LedgerState) -> tuple[int, sum_tree.Int64s]:
    """The newest seq and a copy of the holders' balances after it, dense from FIRST_HOLDER_ACCOUNT."""
    used = slice(FIRST_HOLDER_ACCOUNT, max(state.size, FIRST_HOLDER_ACCOUNT))
    return state.next_seq - 1, state.credits_posted[used] - state.debits_posted[used]


def _share(connection: Connection, found: _Directory, key: bytes, number: int, account: int, share: int) -> ProofShare:
    """Raises InvariantBroken if the closing's pages do not have the account that its statement counts."""
    tag = sum_tree.order_tag(key, account, share)
    position = int(np.searchsorted(found.tags, np.uint64(tag), side="right")) - 1
    while position >= 0:
        leaves = np.frombuffer(store.page(connection, number, position) or b"", sum_tree.LEAF)
        at = np.flatnonzero((leaves["account"] == account) & (leaves["share"] == share))
        if len(at):
            break
        if int(found.tags[position]) != tag:  # else leaves of one tag may stand on both sides of a page's edge
            raise InvariantBroken("I4", f"closing {number} has lost an account")
        position -= 1
    else:
        raise InvariantBroken("I4", f"closing {number} has lost an account")
    within = int(at[0])
    lowest = sum_tree.leaf_nodes(key, leaves)
    path = sum_tree.path_in(sum_tree.levels(lowest), within) + sum_tree.path_in(found.levels, position)
    return ProofShare(
        index=(position << PAGE_HEIGHT) + within,
        salt=sum_tree.salts(key, leaves[within : within + 1]),
        sum_minor=int(leaves[within]["sum"]),
        path=[ProofNode(hash=node.hash, sum_minor=node.sum) for node in path],
    )


def _view(record: ClosingRecord) -> ClosingView:
    return ClosingView(
        closing=record.number, kind=record.kind, day=record.day, block=record.block, statement=record.statement
    )

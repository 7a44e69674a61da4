"""The sequencer: one thread that decides batches and appends them. Nothing is acknowledged before it is durable.

1. Take what waits in the queue, merged up to `BLOCK_TRANSFERS_MAX`.
2. Decide it against the state (pure, `ledger.domain.decide`).
3. Append the block in one fenced transaction (`ledger.store.journal`).
4. Apply it to the state, answer the waiting requests.

Blocks of plain transfers overlap: while one commits (in the journal's thread), the next is decided on the state with
the first one's sums already in it. That is safe because such sums can be taken back (`LedgerState.retract`) and because
the second block is neither sent nor answered before the first is durable; anything else waits until nothing commits.

If an id turns out to be in the journal already, the block was not written: the ids are read back and the batch is
decided again with them known (I7). If a connection dies, the outcome is read back, never guessed: the lease is taken
again (which waits for the old transaction's end) and the block is looked for by number and hash.
Nobody is shown what is not durable: `account_now` leaves out the sums of blocks that are still being committed.
"""

from __future__ import annotations

import hashlib
import heapq
import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import errors
from sqlalchemy.exc import SQLAlchemyError

from kernel.clock import Clock, to_micros
from kernel.database import Database, OutcomeUnknown
from kernel.errors import InvariantBroken, ProblemError, RequestRefusal
from kernel.ids import derive_uuid8
from kernel.postgres import EmbeddedPostgresError
from ledger.domain import account_changes, directives
from ledger.domain.blocks import (
    EVIDENCE_HOLD_TERMS,
    EVIDENCE_TOMBSTONE,
    GENESIS_HASH,
    BlockHeader,
    Directive,
    Evidence,
    OpenedAccount,
    digest_accounts,
    digest_directives,
    digest_evidence,
    hold_terms_body,
)
from ledger.domain.decide import PLAIN, Decision, Known, decide
from ledger.domain.records import JOURNAL, SUBMISSION, Authority, Batch, EvidenceKind, Extra, uuids
from ledger.domain.state import COLUMNS, Effects, LedgerState
from ledger.domain.vocabulary import (
    ACCOUNT_KINDS,
    KIND_CODE,
    LedgerRefusal,
    TransferKind,
    TransferRefusal,
)
from ledger.engine.followers import CommittedBlock, Follower
from ledger.engine.lease import LEASE_SECONDS, Lease
from ledger.engine.recovery import recover
from ledger.engine.snapshots import Snapshots
from ledger.store.journal import Block, BlockMismatch, Deposed, DuplicateId, Journal, transfer_rows

BLOCK_TRANSFERS_MAX = 8192
"""One fsync for so many; also the largest request."""
QUEUE_OPERATIONS_MAX = 10_000
"""Requests that may wait; beyond it a request is refused at once instead of waiting for ever."""
RECONNECT_PAUSE_SECONDS_MAX = 0.5
EXPIRY_RETRY_MICROS = 1_000_000
"""A due hold whose expiry could not be booked waits so long for the next try."""
EXPIRIES_SPARE = 10_000
"""Expiries of holds that have ended are dropped when there are so many more than open holds."""
STORAGE_ATTEMPTS_MAX = 2
STORAGE_REST_SECONDS = 1.0
"""A full disk refuses the batch (nothing was written), and for a second every other at once: reads go on meanwhile."""
CLOCK_ERROR_MICROS_MAX = 30_000_000
"""A clock that differs by more from the database's is not booked by: booking time never runs back, so one wrong step
would hold it in the future, and holds would expire before their time."""

log = logging.getLogger("jiaozi.ledger.sequencer")
T = TypeVar("T")


class SequencerUnavailable(RuntimeError):
    """Nothing was written: not started, stepped down, halted, storage refused, or the queue is full."""


class SignerRotated(RuntimeError):
    """The request was signed with a key that has been replaced since. Nothing was written."""


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A submitted batch's answer, parallel to it. See `Decision` for codes."""

    codes: npt.NDArray[np.int16]
    seqs: npt.NDArray[np.int64]
    booked_at: int
    known: Mapping[int, Known] = field(default_factory=dict)


@dataclass(slots=True)
class _Transfers:
    batch: Batch
    future: Future[BatchOutcome]
    signer: tuple[int, int] | None = None
    """Participant and version of the key that signed the request."""


@dataclass(slots=True)
class _Openings:
    accounts: Sequence[OpenedAccount]
    future: Future[list[OpenedAccount | None]]


Check = Callable[[LedgerState, int], LedgerRefusal | TransferRefusal | None]
"""Would it be refused, booked at this time (microseconds)?"""


@dataclass(slots=True)
class _Order:
    """A directive to carry out; `transfer` is what it books, if it moves money."""

    kind: str
    mandate_id: bytes | None
    body: bytes
    action: Mapping[str, Any] | None
    future: Future[tuple[int, LedgerRefusal | TransferRefusal | None]]
    check: Check | None = None
    """Of an account's change, which is no action."""


@dataclass(slots=True)
class _Read:
    read: Callable[[LedgerState], Any]
    future: Future[Any]


_Operation = _Transfers | _Openings | _Order | _Read


@dataclass(slots=True)
class _Flight:
    """A block of plain transfers that is decided, absorbed and not known to be durable."""

    group: list[_Transfers]
    batch: Batch
    decision: Decision
    block: Block
    landing: Future[None] | None = None
    """The commit, once it is under way."""


@dataclass(frozen=True, slots=True)
class AccountNow:
    """An account's totals as of the last durable block."""

    debits_posted: int
    credits_posted: int
    debits_pending: int
    credits_pending: int
    spent_day: int
    spent_year: int
    seq: int
    booked_at: int

    @property
    def balance(self) -> int:
        return self.credits_posted - self.debits_posted


class Sequencer:
    """Owns the state and the journal's only writing connection. Thread-safe: every method may be called from any."""

    def __init__(
        self,
        database: Database,
        *,
        node: str,
        clock: Clock,
        revive: Callable[[], object] | None = None,
        check_clock: bool = False,
        lease_seconds: float = LEASE_SECONDS,
        followers: Sequence[Follower] = (),
    ) -> None:
        """`check_clock`: hold `clock` against the database's (not for clocks that tests move).
        `revive` brings the database server back when it is gone: the embedded server's `start`."""
        self._lease = Lease(database, node=node, lost=self._depose, seconds=lease_seconds, revive=revive)
        self._database = database
        self._revive = revive
        self._check_clock = check_clock
        self._refusing_until = 0.0
        self._clock = clock
        self._queue: queue.Queue[_Operation | None] = queue.Queue(QUEUE_OPERATIONS_MAX)
        self._thread = threading.Thread(target=self._run, name="sequencer", daemon=True)
        self._started: Future[None] = Future()
        self._stopping = threading.Event()
        self._connections = ExitStack()
        self._journal: Journal
        self._followers = list(followers)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._flight: _Flight | None = None
        """Whose commit is under way; nobody but `_writer` uses the journal meanwhile."""
        self._ahead: list[Effects] = []
        """What the state has and the journal perhaps not: of the block being committed and of the one after it."""
        self._lock = threading.Lock()
        """Held while the state, `_ahead` and the head move together, so that `account_now` sees them together."""
        self._state: LedgerState
        self._head: BlockHeader | None = None
        self._next_directive = 1
        self._mandates: dict[bytes, int] = {}
        self._snapshots = Snapshots(self._journal_for_snapshots)
        self._expiries: list[tuple[int, bytes]] = []
        self._deposed = threading.Event()
        self.failure: str | None = None
        """Why it no longer writes, if so."""

    # --- from other threads

    def start(self) -> None:
        """Take the lease, recover, serve. A ledger that cannot prove its past stays down: recovery raises."""
        self.ask_to_start()
        self.await_start()

    def ask_to_start(self) -> str | None:
        """Begin to start. None: it is this one's turn, `await_start` returns when it has recovered. A name: that ledger
        is the writer, and `await_start` returns when this one has taken over."""
        self._thread.start()
        either: list[Future[Any]] = [self._started, self._lease.standing_by]
        futures.wait(either, return_when=futures.FIRST_COMPLETED)
        return None if self._started.done() else self._lease.standing_by.result()

    def await_start(self) -> None:
        """Return when it serves. Raises what recovery raises; SequencerUnavailable if stopped before its turn."""
        self._started.result()

    def stop(self, *, keep_lease: bool = False) -> None:
        """Finish what was taken, write a snapshot, end. Waiting operations are refused. `keep_lease`: somebody else of
        this process still needs it, and `release` follows."""
        self._stopping.set()
        with suppress(queue.Full):
            self._queue.put_nowait(None)
        if not self._started.done():  # it may wait for its turn
            self._lease.stop(release=False)
        self._thread.join()
        if not keep_lease:
            self.release()

    def release(self) -> None:
        """A standby may take over now. Not after a failure: then it waits for the lease to run out."""
        self._lease.stop(release=self.failure is None)

    def submit(self, batch: Batch, *, signer: tuple[int, int] | None = None) -> Future[BatchOutcome]:
        """Book transfers. At most BLOCK_TRANSFERS_MAX; chains must close within the batch. `signer`: whose request, by
        which version of the participant's key; if that was replaced before the batch is decided, SignerRotated."""
        if not 0 < len(batch) <= BLOCK_TRANSFERS_MAX:
            raise ValueError("a batch holds 1 to BLOCK_TRANSFERS_MAX transfers")
        future: Future[BatchOutcome] = Future()
        self._put(_Transfers(batch, future, signer))
        return future

    def open_accounts(self, accounts: Sequence[OpenedAccount]) -> Future[list[OpenedAccount | None]]:
        """Open accounts (numbers are given here). The account an opening id has already opened is returned again;
        None where the id opened an account with other content."""
        future: Future[list[OpenedAccount | None]] = Future()
        self._put(_Openings(accounts, future))
        return future

    def carry_out(
        self, *, kind: str, mandate_id: bytes | None, body: bytes, action: Mapping[str, Any] | None
    ) -> Future[tuple[int, LedgerRefusal | TransferRefusal | None]]:
        """Carry out a directive, with the transfer it implies, in one block. Returns its number, or the refusal."""
        future: Future[tuple[int, LedgerRefusal | TransferRefusal | None]] = Future()
        self._put(_Order(kind, mandate_id, body, action, future))
        return future

    def change_account(
        self, *, change_id: bytes, body: bytes, check: Check
    ) -> Future[tuple[int, LedgerRefusal | TransferRefusal | None]]:
        """Journal an account's change, unless `check` refuses it. Returns its directive's number, or the refusal; for
        an id that the journal has, the number of what it did, whatever the body."""
        future: Future[tuple[int, LedgerRefusal | TransferRefusal | None]] = Future()
        self._put(_Order(account_changes.KIND, change_id, body, None, future, check))
        return future

    def read(self, read: Callable[[LedgerState], T]) -> Future[T]:
        """Run a function on the state between two blocks. It must be quick and return plain values."""
        future: Future[T] = Future()
        self._put(_Read(read, future))
        return future

    def account_now(self, account: int) -> AccountNow:
        """An account's totals as of the last durable block, without waiting for the queue. It must exist.

        Raises ProblemError(SERVICE_UNAVAILABLE) when it is not certain that this ledger is still the writer.
        """
        self._check_is_writer()
        with self._lock:
            state, head = self._state, self._head
            totals = [int(getattr(state, column)[account]) for column in COLUMNS]
            ahead = tuple(self._ahead)
        for effects in ahead:  # a block's effects never change: the sequencer does not wait for this
            totals = [total - added for total, added in zip(totals, effects.on(account), strict=True)]
        seq = head.first_seq + head.transfer_count - 1 if head is not None else 0
        named = dict(zip(COLUMNS, totals, strict=True))
        return AccountNow(**named, seq=seq, booked_at=head.booked_at if head is not None else 0)

    def current_head(self) -> BlockHeader | None:
        """The last durable block, for those who are told of it. Raises as `account_now` does."""
        self._check_is_writer()
        return self._head

    def _check_is_writer(self) -> None:
        """Stopped for a while, perhaps: then what this ledger remembers may be history."""
        if self.failure is not None or not self._lease.confirm():
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE, "this ledger is not the writer for certain; retry")

    @property
    def holder(self) -> str:
        """The name under which this sequencer holds the lease, the same from its start to its end."""
        return self._lease.holder

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_writing_snapshot(self) -> bool:
        return self._snapshots.is_under_way

    @property
    def is_deposed(self) -> bool:
        """Another ledger has the lease: this process has no further use."""
        return self._deposed.is_set()

    @property
    def head(self) -> BlockHeader | None:
        return self._head

    def _put(self, operation: _Operation) -> None:
        if self.failure is not None or self._stopping.is_set():
            raise SequencerUnavailable(self.failure or "the ledger is stopping")
        try:
            self._queue.put_nowait(operation)
        except queue.Full:
            raise SequencerUnavailable("the ledger's queue is full") from None

    # --- the thread

    def _run(self) -> None:
        try:
            epoch = self._lease.take().result()
            self._connect()
            self._journal.become_writer(self._lease.holder, epoch)
            self._recover()
        except futures.CancelledError:
            self._started.set_exception(SequencerUnavailable("stopped before its turn as the writer"))
            return
        except BaseException as error:
            self._connections.close()
            self._lease.stop(release=True)
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        carried: _Operation | None = None
        try:
            while not self._stopping.is_set():
                if self._flight is not None and self._flight.landing is not None and self._flight.landing.done():
                    self._settle()
                self._expire_due_holds()  # also under load, when the queue is never empty
                if self.failure is not None:
                    break
                operation, carried = (carried or self._next()), None
                if operation is None:
                    self._look_after_snapshots()
                    continue
                group: list[_Operation] = [operation]
                if isinstance(operation, _Transfers):
                    carried = self._merge(group)
                self._serve(group)
                self._look_after_snapshots()
                if self.failure is not None:
                    break
        except BaseException as error:
            self.failure = f"the sequencer ended: {type(error).__name__}: {error}"
            log.critical("%s", self.failure, exc_info=error)
        finally:
            self._leave(carried)

    def _next(self) -> _Operation | None:
        """The next operation, or None when it is time to look at the expiries."""
        timeout = 1.0
        if self._expiries:
            due_in = (self._expiries[0][0] - to_micros(self._clock())) / 1e6
            timeout = min(timeout, max(0.0, due_in))
        try:
            return self._queue.get(timeout=timeout) if timeout > 0 else self._queue.get_nowait()
        except queue.Empty:
            return None

    def _merge(self, group: list[_Operation]) -> _Operation | None:
        """Add waiting transfers to the group while they fit; returns the first operation that does not."""
        count = sum(len(item.batch) for item in group if isinstance(item, _Transfers))
        while True:
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                return None
            if operation is None:
                return None
            if not isinstance(operation, _Transfers) or count + len(operation.batch) > BLOCK_TRANSFERS_MAX:
                return operation
            group.append(operation)
            count += len(operation.batch)

    def _serve(self, group: list[_Operation]) -> None:
        with self._failures_answered(group):
            first = group[0]
            if not isinstance(first, _Transfers):
                self._settle()
                if self.failure is not None:
                    raise SequencerUnavailable(self.failure)
            if isinstance(first, _Read):
                if not self._lease.confirm():  # stopped for a while, perhaps: what it remembers may be history
                    raise SequencerUnavailable("the lease cannot be confirmed")
                _answer(first.future, first.read(self._state))
                return
            self._check_may_write()
            if isinstance(first, _Transfers):
                self._serve_transfers([item for item in group if isinstance(item, _Transfers)])
            elif isinstance(first, _Openings):
                _answer(first.future, self._open(first.accounts))
            else:
                _answer(first.future, self._carry_out(first))

    @contextmanager
    def _failures_answered(self, group: Sequence[_Operation]) -> Iterator[None]:
        """Whatever goes wrong with a group's operations, their callers hear of it; what must stop the ledger does."""
        try:
            yield
        except (Deposed, InvariantBroken, BlockMismatch) as error:
            self._halt(error)
            _fail(group, SequencerUnavailable(self.failure or ""))
        except ProblemError as error:  # a read that was refused
            _fail(group, error)
        except SequencerUnavailable as error:
            log.warning("not done: %s", error)
            _fail(group, error)
        except Exception as error:
            log.exception("an operation failed")
            _fail(group, SequencerUnavailable(type(error).__name__))

    def _check_may_write(self) -> None:
        """Fail fast while storage refuses, and never book by a clock that has jumped away from the database's."""
        if time.monotonic() < self._refusing_until:
            raise SequencerUnavailable("storage refuses to write")
        if self._check_clock:
            error = self._lease.clock_error(to_micros(self._clock()))
            if abs(error) > CLOCK_ERROR_MICROS_MAX:
                seconds = error // 1_000_000
                raise SequencerUnavailable(f"this clock is {seconds} s ahead of the database's: set both by NTP")

    def _leave(self, carried: _Operation | None) -> None:
        reason = SequencerUnavailable(self.failure or "the ledger is stopping")
        waiting: list[_Operation] = [carried] if carried is not None else []
        self._stopping.set()
        while True:
            try:
                operation = self._queue.get_nowait()
            except queue.Empty:
                break
            if operation is not None:
                waiting.append(operation)
        _fail(waiting, reason)
        try:
            self._settle()
            if self.failure is None and self._head is not None:
                self._write_snapshot()
        except (Deposed, InvariantBroken, SequencerUnavailable, OutcomeUnknown, psycopg.Error) as error:
            log.warning("no snapshot on the way out: %s", error)
        self._snapshots.close()
        self._writer.shutdown()
        self._connections.close()
        if self.failure is not None:
            self._lease.stop(release=False)  # a standby that can prove the past goes on when the lease has run out

    # --- operations

    def _serve_transfers(self, group: list[_Transfers]) -> None:
        stale = [item for item in group if not self._is_current(item.signer)]
        _fail(stale, SignerRotated("the request's key was replaced"))
        group = [item for item in group if self._is_current(item.signer)]
        if not group:
            return
        batch = Batch.concatenate([item.batch for item in group])
        flight = self._decide_ahead(group, batch)
        if flight is not None and (flight.decision.codes > 0).any() and not self._is_final(flight):
            flight = None
        self._settle(flight)
        if flight is None:
            if self.failure is not None:
                raise SequencerUnavailable(self.failure)
            self._answer_transfers(group, self._book(batch))

    def _answer_transfers(self, group: Sequence[_Transfers], decision: Decision) -> None:
        offset = 0
        for item in group:
            end = offset + len(item.batch)
            known = {p - offset: k for p, k in decision.known.items() if offset <= p < end} if decision.known else {}
            outcome = BatchOutcome(decision.codes[offset:end], decision.seqs[offset:end], decision.booked_at, known)
            offset = end
            _answer(item.future, outcome)

    # --- blocks that overlap

    def _decide_ahead(self, group: list[_Transfers], batch: Batch) -> _Flight | None:
        """Decide on the state as it will be once the commit under way has landed. None unless every transfer is plain:
        what a block does besides adding sums cannot be taken back."""
        state, records = self._state, batch.records
        if records["flags"].any() or not PLAIN[np.minimum(records["kind"], len(PLAIN) - 1)].all():
            return None
        booked_at = self._now()
        if state.local_date(booked_at) != (state.day, state.year):
            return None  # a new day clears what was spent: not while something may still be taken back
        with self._lock:
            state.roll_to(booked_at)
        decision = decide(state, batch, booked_at=booked_at)
        if not decision.effects.is_plain or not len(decision.positions):
            return None
        block = self._seal(booked_at, decision=decision, evidence=_evidence(batch, decision))
        with self._memory_follows(block):
            state.absorb(decision.effects, transfer_count=len(decision.positions), booked_at=booked_at)
            self._ahead.append(decision.effects)
        return _Flight(group, batch, decision, block)

    def _is_final(self, flight: _Flight) -> bool:
        """Whether what a decided block refuses stays refused; else the block is taken back. A retry of a booked
        transfer may look refused (the money is gone): nothing is refused before the commit under way has landed and the
        journal has none of the ids."""
        before = self._flight
        if before is not None and before.landing is not None and before.landing.exception() is not None:
            self._take_back(flight)  # before the block it follows is booked again
            return False
        try:
            self._settle()
            suspects = _ids(flight.batch, np.flatnonzero(flight.decision.codes > 0))
            found = self._journal_call(lambda journal: journal.known(suspects))
        except BaseException:
            self._take_back(flight)
            raise
        if found:
            self._take_back(flight)
        return not found

    def _settle(self, following: _Flight | None = None) -> None:
        """Wait for the commit under way, send the following block, and only then answer for the first: the database
        must not wait for us. If the commit failed, both are taken back and booked one after the other."""
        flight, self._flight = self._flight, None
        error = flight.landing.exception() if flight is not None and flight.landing is not None else None
        if error is not None:
            for taken in (following, flight):
                if taken is not None:
                    self._take_back(taken)
            for again, cause in ((flight, error), (following, None)):
                if again is not None:
                    self._book_again(again, cause)
            return
        if following is not None:
            following.landing = self._writer.submit(self._append, following.block)
            self._flight = following
        if flight is not None:
            self._tell_followers(flight.block)
            with self._lock:
                self._forget_ahead(flight)
                self._after_block(flight.block, len(flight.decision.positions))
            self._answer_transfers(flight.group, flight.decision)
        if following is not None and following.landing is not None:
            following.landing.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        with suppress(queue.Full):  # then it is awake
            self._queue.put_nowait(None)

    def _take_back(self, flight: _Flight) -> None:
        with self._lock:
            self._state.retract(flight.decision.effects, transfer_count=len(flight.decision.positions))
            self._forget_ahead(flight)

    def _forget_ahead(self, flight: _Flight) -> None:
        self._ahead = [effects for effects in self._ahead if effects is not flight.decision.effects]

    def _book_again(self, flight: _Flight, cause: BaseException | None) -> None:
        with self._failures_answered(flight.group):
            if self.failure is not None:
                raise SequencerUnavailable(self.failure)
            if cause is not None and not isinstance(cause, DuplicateId):
                raise cause
            self._check_may_write()
            self._answer_transfers(flight.group, self._book(flight.batch))

    def _is_current(self, signer: tuple[int, int] | None) -> bool:
        return signer is None or int(self._state.participant_key_version[signer[0]]) == signer[1]

    def _book(self, batch: Batch, order: Directive | None = None) -> Decision:
        """Decide and append until the journal agrees about every id. Refused whole orders write nothing."""
        state = self._state
        known: dict[bytes, Known] = {}
        asked: set[bytes] = set()
        self._fetch_hold_fates(batch)
        while True:
            booked_at = self._now()
            with self._lock:
                state.roll_to(booked_at)
            decision = decide(state, batch, booked_at=booked_at, known=known)
            # A retry of a booked transfer may now look refused (the money is gone): ask before saying so.
            suspects = [item for item in _ids(batch, np.flatnonzero(decision.codes > 0)) if item not in asked]
            if suspects:
                asked.update(suspects)
                found = self._journal_call(lambda journal, ids=suspects: journal.known(ids))  # type: ignore[misc]
                if found:
                    known |= found
                    continue
            if not len(decision.positions):
                return decision
            evidence = _evidence(batch, decision)
            block = self._seal(booked_at, decision=decision, evidence=evidence, orders=[order] if order else [])
            try:
                self._append(block)
            except DuplicateId:
                ids = [item for item in _ids(batch, np.arange(len(batch))) if item not in known]
                found = self._journal_call(lambda journal, ids=ids: journal.known(ids))  # type: ignore[misc]
                asked.update(ids)
                if not found:
                    self._journal_call(lambda journal: journal.renew_lease())  # Deposed, if it collided with a rival
                    raise InvariantBroken("I7", "the journal refused an id that it does not have") from None
                known |= found
                continue
            self._tell_followers(block)
            with self._memory_follows(block):
                state.absorb(decision.effects, transfer_count=len(decision.positions), booked_at=booked_at)
                self._after_block(block, len(decision.positions))
                for hold in decision.hold_terms.values():
                    if hold.expires_at:
                        heapq.heappush(self._expiries, (hold.expires_at, hold.id))
            return decision

    @contextmanager
    def _memory_follows(self, block: Block) -> Iterator[None]:
        """The journal has the block, or soon will. If memory cannot follow, they differ: stop before anything else."""
        try:
            with self._lock:
                yield
        except Exception as error:
            raise InvariantBroken("I4", f"memory cannot follow block {block.header.number}: {error!r}") from error

    def _open(self, accounts: Sequence[OpenedAccount]) -> list[OpenedAccount | None]:
        state = self._state
        existing = self._journal_call(lambda journal: journal.openings([item.opening_id for item in accounts]))
        opened: dict[bytes, OpenedAccount] = {}
        number = state.size
        for item in accounts:
            if item.opening_id not in existing and item.opening_id not in opened:
                opened[item.opening_id] = OpenedAccount(
                    number, item.opening_id, item.kind, item.participant, item.rule_class, item.holder_key
                )
                number += 1
        if opened:
            booked_at = self._now()
            with self._lock:
                state.roll_to(booked_at)
            block = self._seal(booked_at, accounts=list(opened.values()))
            self._append(block)
            self._tell_followers(block)
            with self._memory_follows(block):
                for item in opened.values():
                    state.open_account(
                        kind=ACCOUNT_KINDS[item.kind],
                        participant=item.participant,
                        rule_class=state.class_by_name[item.rule_class],
                        holder_key=item.holder_key,
                    )
                self._after_block(block, 0)
        results: list[OpenedAccount | None] = []
        for item in accounts:
            found = existing.get(item.opening_id) or opened[item.opening_id]
            results.append(found if _same_opening(found, item) else None)
        return results

    def _carry_out(self, order: _Order) -> tuple[int, LedgerRefusal | TransferRefusal | None]:
        state = self._state
        directive = Directive(self._next_directive, order.kind, order.mandate_id, order.body)
        booked_at = self._now()
        done = self._mandates.get(order.mandate_id or b"")
        if done is not None:  # it was carried out, and the answer lost
            return done, None
        if order.check is not None:
            refused = order.check(state, booked_at)
            if refused is not None:
                return 0, refused
        if order.action is not None:
            refusal = directives.check(state, order.action)
            if refusal is not None:
                return 0, refusal
            if order.action["action"] in directives.TRANSFER_ACTIONS:
                decision = self._book(_mandated_batch(order.action, directive.number), directive)
                if decision.refusal(0) is not None:
                    return 0, decision.refusal(0)
                if not len(decision.positions):
                    return 0, TransferRefusal.ID_ALREADY_USED  # another mandate has issued under this transfer id
                self._next_directive += 1
                return directive.number, None
        with self._lock:
            state.roll_to(booked_at)
        block = self._seal(booked_at, orders=[directive])
        self._append(block)
        self._tell_followers(block)
        if order.kind == "genesis":  # brings its time zone, currency and operators: recover it as any restart would
            self._recover()
            return directive.number, None
        with self._memory_follows(block):
            directives.apply(state, order.body, number=directive.number, booked_at=booked_at)
            self._next_directive += 1
            self._after_block(block, 0)
        return directive.number, None

    def _expire_due_holds(self) -> None:
        now = to_micros(self._clock())
        due: list[bytes] = []
        if len(self._expiries) > 2 * len(self._state.holds) + EXPIRIES_SPARE:  # most have ended long before they expire
            self._expiries = [(hold.expires_at, hold.id) for hold in self._state.holds.values() if hold.expires_at]
            heapq.heapify(self._expiries)
        while self._expiries and self._expiries[0][0] <= now and len(due) < BLOCK_TRANSFERS_MAX:
            hold = heapq.heappop(self._expiries)[1]
            if hold in self._state.holds:
                due.append(hold)
        if not due:
            return
        records = np.zeros(len(due), SUBMISSION)
        for row, hold in zip(records, due, strict=True):
            own = derive_uuid8(UUID(bytes=hold), "expire")  # an id that no client can take first
            row["id_high"], row["id_low"] = own.int >> 64, own.int & (2**64 - 1)
            row["hold_high"], row["hold_low"] = (int.from_bytes(hold[:8], "big"), int.from_bytes(hold[8:], "big"))
            row["kind"] = KIND_CODE[TransferKind.EXPIRE]
        batch = Batch.of_institution(records, submitter=0)
        batch.authority[:] = Authority.ENGINE
        future: Future[BatchOutcome] = Future()
        self._serve([_Transfers(batch, future)])
        for hold in due:  # storage refused, or the clock went back just then: again in a while
            if hold in self._state.holds:
                heapq.heappush(self._expiries, (now + EXPIRY_RETRY_MICROS, hold))

    # --- blocks

    def _now(self) -> int:
        """Booking time never runs backwards, whatever the clock does."""
        return max(to_micros(self._clock()), self._state.booked_at)

    def _seal(
        self,
        booked_at: int,
        *,
        decision: Decision | None = None,
        evidence: Sequence[Evidence] = (),
        orders: Sequence[Directive] = (),
        accounts: Sequence[OpenedAccount] = (),
    ) -> Block:
        head, state = (self._flight.block.header if self._flight is not None else self._head), self._state
        journal = decision.journal.tobytes() if decision is not None else b""
        totals = state.totals_after(decision.effects) if decision is not None else state.totals
        terms = _terms_evidence(decision) if decision is not None else []
        header = BlockHeader(
            number=head.number + 1 if head is not None else 1,
            epoch=self._journal.epoch,
            booked_at=booked_at,
            first_seq=state.next_seq,
            transfer_count=len(decision.positions) if decision is not None else 0,
            transfers_digest=hashlib.sha256(journal).digest(),
            evidence_digest=digest_evidence([*evidence, *terms]),
            first_directive=self._next_directive,
            directive_count=len(orders),
            directives_digest=digest_directives(orders),
            first_account=state.size,
            account_count=len(accounts),
            **totals._asdict(),
            accounts_digest=digest_accounts(accounts),
            previous_hash=head.hash if head is not None else GENESIS_HASH,
        )
        rows = transfer_rows(decision.journal) if decision is not None else b""
        return Block(header, decision, evidence, orders, accounts, terms, rows)

    def _append(self, block: Block) -> None:
        """Append until the outcome is known. Raises DuplicateId, Deposed, InvariantBroken, SequencerUnavailable."""
        attempts = 0
        while True:
            try:
                self._journal.append(block)
                return
            except errors.CheckViolation as error:
                # The database's own copy of a money rule disagrees with the engine: stop, do not argue.
                raise InvariantBroken(str(error.diag.constraint_name), "a CHECK refused what was decided") from error
            except (OutcomeUnknown, psycopg.OperationalError, psycopg.InterfaceError) as error:
                connection_lost = self._connection_is_lost() or isinstance(error, OutcomeUnknown)
                log.warning("block %d: %s", block.header.number, error)
                if not connection_lost:
                    attempts += 1
                    if attempts >= STORAGE_ATTEMPTS_MAX:
                        self._refusing_until = time.monotonic() + STORAGE_REST_SECONDS
                        raise SequencerUnavailable(f"storage refuses to write: {error}") from error
                    time.sleep(0.05)
                    continue
                try:
                    written = self._read_back(block.header.number)
                except (Deposed, BlockMismatch, SequencerUnavailable):
                    raise
                except Exception as unexpected:  # memory would go on without a block that may be there
                    message = f"whether block {block.header.number} was written could not be read: {unexpected!r}"
                    raise InvariantBroken("I4", message) from unexpected
                if written is not None:
                    if written.hash == block.header.hash:
                        return
                    raise Deposed(f"block {block.header.number} was written by another sequencer") from error

    def _read_back(self, number: int) -> BlockHeader | None:
        """The block as the journal has it, however often the connection dies while asking: an outcome that is unknown
        stays unknown until it is read."""
        while True:
            self._reconnect()
            try:
                return self._journal.block(number)
            except (OutcomeUnknown, psycopg.OperationalError, psycopg.InterfaceError) as error:
                log.warning("block %d is still to be read back: %s", number, error)

    def _connection_is_lost(self) -> bool:
        return self._connection.closed

    def _connect(self) -> None:
        self._connections.close()
        self._connection = self._connections.enter_context(self._database.raw(isolation="READ COMMITTED"))
        before = getattr(self, "_journal", None)
        holder, epoch = (before.holder, before.epoch) if before is not None else ("", 0)
        self._journal = Journal(self._connection, holder=holder, epoch=epoch)
        self._journal.name_session(self._lease.session_name)

    def _reconnect(self) -> None:
        """A new connection and the lease again, unless another sequencer has it. Waits while the database is down."""
        pause = 0.02
        while True:
            try:
                self._connect()
                self._journal.renew_lease()
                return
            except Deposed:
                raise
            except (psycopg.Error, SQLAlchemyError, OutcomeUnknown) as error:
                if self._stopping.is_set():
                    raise SequencerUnavailable("stopping while the database is away") from error
                log.warning("waiting for the database: %s", str(error).splitlines()[0] if str(error) else error)
                time.sleep(pause)
                pause = min(pause * 2, RECONNECT_PAUSE_SECONDS_MAX)
                self._try_to_revive()

    def _try_to_revive(self) -> None:
        if self._revive is not None:
            try:
                self._revive()
            except (
                EmbeddedPostgresError,
                OSError,
                subprocess.SubprocessError,
            ) as error:  # not yet; the loop comes back
                log.warning("the embedded server does not start: %s", error)

    def _journal_call(self, call: Callable[[Journal], T]) -> T:
        """A read that survives a lost connection."""
        while True:
            try:
                return call(self._journal)
            except (OutcomeUnknown, psycopg.OperationalError, psycopg.InterfaceError) as error:
                if not self._connection_is_lost():
                    raise SequencerUnavailable(str(error)) from error
                self._reconnect()

    def _after_block(self, block: Block, transfer_count: int) -> None:
        self._head = block.header
        for directive in block.directives:
            if directive.mandate_id is not None:
                self._mandates[directive.mandate_id] = directive.number
        self._snapshots.booked(transfer_count)

    def _tell_followers(self, block: Block) -> None:
        """Before the head moves: who asks for the history through the head must find it."""
        if not self._followers:
            return
        if block.decision is not None:
            committed = CommittedBlock(block.header, block.decision.journal, [*block.evidence, *block.terms])
        else:
            committed = CommittedBlock(block.header, np.zeros(0, JOURNAL), ())
        for follower in self._followers:
            try:
                follower(committed)
            except Exception:  # it finds what it missed in the journal
                log.exception("a follower failed at block %d", block.header.number)

    def _look_after_snapshots(self) -> None:
        """After the answers are out: what a snapshot meets must not be told to a client whose transfers are booked."""
        is_due = self._snapshots.is_due(self._state)
        if self.failure is not None or not (is_due or self._snapshots.is_written):
            return
        if is_due:
            self._settle()  # copied between two blocks, the last of which is durable
        if self.failure is None:
            self._snapshot(wait=not is_due)

    def _snapshot(self, *, wait: bool) -> None:
        """Begin one, or wait for the one under way. It only shortens recovery: the blocks stand without it."""
        try:
            if wait:
                self._snapshots.settle(self._state)
            elif self._head is not None:
                self._snapshots.begin(self._state, self._head, self._journal)
        except (Deposed, InvariantBroken) as error:
            self._halt(error)
        except (OutcomeUnknown, SequencerUnavailable, psycopg.Error) as error:
            log.warning("snapshot put off: %s", error)

    @contextmanager
    def _journal_for_snapshots(self) -> Iterator[Journal]:
        """A connection of its own, under the same lease."""
        with self._database.raw(isolation="READ COMMITTED") as connection:
            journal = Journal(connection, holder=self._journal.holder, epoch=self._journal.epoch)
            journal.name_session(self._lease.session_name)
            yield journal

    def _depose(self, reason: str) -> None:
        """From the lease's thread, also while nothing is to be done."""
        self._halt(Deposed(reason))
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _halt(self, error: Exception) -> None:
        """Another writer, or a rule that does not hold: no write may follow. A person is needed."""
        if isinstance(error, Deposed):
            self._deposed.set()
        if self.failure is not None:
            return
        self.failure = f"{type(error).__name__}: {error}"
        log.critical("the ledger stopped writing: %s", self.failure)

    def _write_snapshot(self) -> None:
        """On the way out: the one under way, and then the last."""
        self._snapshot(wait=True)
        if self.failure is None:
            self._snapshot(wait=False)
            self._snapshot(wait=True)

    def _recover(self) -> None:
        began = time.monotonic()
        state, head = recover(self._journal)
        with self._lock:
            self._state, self._head = state, head
        found = self._journal.directives()
        self._next_directive = len(found) + 1
        self._mandates = {item.mandate_id: item.number for item in found if item.mandate_id is not None}
        self._snapshots.recovered(state, head, self._journal)
        self._expiries = [(hold.expires_at, hold.id) for hold in self._state.holds.values() if hold.expires_at]
        heapq.heapify(self._expiries)
        log.info(
            "recovered %d accounts, seq %d, block %d in %.2f s",
            self._state.size - 1,
            self._state.next_seq - 1,
            self._head.number if self._head else 0,
            time.monotonic() - began,
        )

    def _fetch_hold_fates(self, batch: Batch) -> None:
        """Bring to memory what the journal knows of a batch's holds: ended long ago, or voided before they came."""
        state, records = self._state, batch.records
        is_end = (records["hold_high"] != 0) | (records["hold_low"] != 0)
        held = uuids(records[is_end], "hold")
        ended = {hold for hold in held if hold not in state.holds and hold not in state.ended_holds}
        placed = uuids(records[records["kind"] == _HOLD], "id")
        if ended or placed:
            ends, tombstones = self._journal_call(lambda journal: journal.hold_fates(ended, {*ended, *placed}))
            state.ended_holds.update(ends)
            state.tombstones |= tombstones


def _answer(future: Future[T], result: T) -> None:
    """Unless whoever asked has gone: a cancelled future takes no result, and must not stop the thread."""
    with suppress(InvalidStateError):
        future.set_result(result)


def _fail(operations: Sequence[_Operation], error: Exception) -> None:
    for operation in operations:
        with suppress(InvalidStateError):
            operation.future.set_exception(error)


_HOLD = KIND_CODE[TransferKind.HOLD]


def _ids(batch: Batch, positions: npt.NDArray[np.intp]) -> list[bytes]:
    return uuids(batch.records[positions], "id")


def _evidence(batch: Batch, decision: Decision) -> list[Evidence]:
    """What is kept beside the booked transfers of a batch (I8)."""
    positions = [position for position in batch.extras if decision.codes[position] == 0]
    chosen = np.array(positions, np.intp)
    seqs = decision.seqs[chosen].tolist()
    found: list[Evidence] = []
    for position, seq, transfer in zip(positions, seqs, _ids(batch, chosen), strict=True):
        extra = batch.extras[position]
        if extra.instruction is not None:
            found.append(Evidence(seq, transfer, EvidenceKind.INSTRUCTION, extra.instruction))
        if extra.secret is not None:
            found.append(Evidence(seq, transfer, EvidenceKind.SECRET, extra.secret))
        if extra.directive is not None:
            found.append(Evidence(seq, transfer, EvidenceKind.MANDATE, extra.directive.to_bytes(8, "big")))
    return found


def _terms_evidence(decision: Decision) -> list[Evidence]:
    """Hold terms and tombstones have tables of their own, and are hashed with the evidence."""
    seqs = decision.seqs[np.array(list(decision.hold_terms), np.intp)].tolist()
    terms = [
        Evidence(seq, hold.id, EVIDENCE_HOLD_TERMS, hold_terms_body(hold))
        for seq, hold in zip(seqs, decision.hold_terms.values(), strict=True)
    ]
    buried = [
        Evidence(int(decision.seqs[position]), hold, EVIDENCE_TOMBSTONE, hold + guard)
        for position, (hold, guard) in decision.tombstones.items()
    ]
    return terms + buried


def _mandated_batch(action: Mapping[str, Any], directive: int) -> Batch:
    transfer, debit, credit, amount = directives.transfer_of(action)
    records = np.zeros(1, SUBMISSION)
    row = records[0]
    row["id_high"], row["id_low"] = transfer.int >> 64, transfer.int & (2**64 - 1)
    row["debit"], row["credit"], row["amount"] = debit, credit, amount
    row["kind"] = KIND_CODE[TransferKind(action["action"])]
    batch = Batch.of_institution(records, submitter=0)
    batch.authority[:] = Authority.MANDATE
    return Batch(batch.records, batch.authority, batch.submitter, batch.key_version, {0: Extra(directive=directive)})


def _same_opening(found: OpenedAccount, wanted: OpenedAccount) -> bool:
    return (found.kind, found.participant, found.rule_class, found.holder_key) == (
        wanted.kind,
        wanted.participant,
        wanted.rule_class,
        wanted.holder_key,
    )

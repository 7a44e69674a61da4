"""Snapshots: the state is copied between two blocks and written while the next ones are booked.

They only shorten recovery, which replays the journal after the last one; so a snapshot that fails is put off, and its
pages stay marked as changed. The copy takes 48 bytes for each account that changed, until it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import psycopg
from psycopg import errors
from sqlalchemy.exc import SQLAlchemyError

from kernel.database import OutcomeUnknown
from kernel.errors import InvariantBroken
from ledger.domain.blocks import BlockHeader
from ledger.domain.state import LedgerState
from ledger.store.journal import Deposed, Journal, Snapshot, take_snapshot

SNAPSHOT_BLOCKS = 5_000
SNAPSHOT_TRANSFERS = 1_000_000
"""Replay after a crash is bounded by both; a ledger of more accounts than that replays as many transfers as it has
accounts, or its snapshots would cost more than its transfers. And by what is booked while one is written."""

log = logging.getLogger("jiaozi.ledger.snapshots")

Connect = Callable[[], AbstractContextManager[Journal]]


class Snapshots:
    """All methods are called by the sequencer's thread."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._under_way: tuple[Snapshot, Future[None]] | None = None
        self._holds_written: set[bytes] | None = set()
        """Holds in the table `open_hold`; None = to be read, because a snapshot's outcome is unknown."""
        self._blocks_since = 0
        self._transfers_since = 0

    def recovered(self, state: LedgerState, head: BlockHeader | None, journal: Journal) -> None:
        """What the tables hold now, after recovery read them."""
        self._holds_written = {hold.id for hold in journal.open_holds()}
        found = journal.snapshot()
        self._blocks_since = (head.number if head is not None else 0) - (found[0] if found is not None else 0)
        self._transfers_since = state.next_seq - 1 - (found[1] if found is not None else 0)

    def booked(self, transfers: int) -> None:
        """A block more."""
        self._blocks_since += 1
        self._transfers_since += transfers

    def is_due(self, state: LedgerState) -> bool:
        if self._under_way is not None:
            return False
        return self._blocks_since >= SNAPSHOT_BLOCKS or self._transfers_since >= max(SNAPSHOT_TRANSFERS, state.size)

    def begin(self, state: LedgerState, head: BlockHeader, journal: Journal) -> None:
        """Copy the state, which must be that of the durable `head`, and write it in the background.

        Raises: InvariantBroken if it breaks a rule; what reading the journal raises.
        """
        if self._under_way is not None:
            raise RuntimeError("one snapshot at a time")
        if state.local_date(head.booked_at) != (state.day, state.year):
            return  # a new day has begun with a refusal: what was spent the day before is the journal's, not memory's
        broken = state.broken_invariant()
        if broken is not None:
            raise InvariantBroken(broken[:2], broken)
        if self._holds_written is None:
            self._holds_written = {hold.id for hold in journal.open_holds()}
        snapshot = take_snapshot(state, block=head.number, holds_written=self._holds_written)
        self._blocks_since = self._transfers_since = 0
        self._under_way = snapshot, self._writer.submit(self._write, snapshot)

    def _write(self, snapshot: Snapshot) -> None:
        with self._connect() as journal:
            journal.write_snapshot(snapshot)

    @property
    def is_under_way(self) -> bool:
        return self._under_way is not None

    @property
    def is_written(self) -> bool:
        """Whether one was under way that has ended: `settle` says how."""
        return self._under_way is not None and self._under_way[1].done()

    def settle(self, state: LedgerState) -> None:
        """Wait for the one under way. Raises: Deposed; InvariantBroken if the database's rules disagree with ours."""
        if self._under_way is None:
            return
        (snapshot, writing), self._under_way = self._under_way, None
        try:
            writing.result()
        except Exception as error:
            for numbers, _ in snapshot.pages:
                state.changed_page[numbers] = True
            self._holds_written = None  # it may be there all the same
            if isinstance(error, errors.CheckViolation):
                # The database's own copy of a money rule disagrees with the engine: stop, do not argue.
                rule = str(error.diag.constraint_name)
                raise InvariantBroken(rule, "a CHECK refused the balances") from error
            if isinstance(error, Deposed):
                raise
            is_usual = isinstance(error, (OutcomeUnknown, psycopg.Error, SQLAlchemyError))
            log.warning("snapshot put off: %s", error, exc_info=None if is_usual else error)
        else:
            self._holds_written = snapshot.holds_now

    def close(self) -> None:
        self._writer.shutdown()

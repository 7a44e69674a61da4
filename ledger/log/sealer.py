"""Grows the tree by committed blocks and seals checkpoints. One at a time writes, and never two for one block.

1. `open`: rebuild the tree's right edge from the tables and hold it against the last checkpoint, our signature, the
   journal's block and the last leaves hashed anew. Whatever differs is `LogBroken`: no checkpoint may follow.
2. `take` a block as the ledger hands it over, or `catch_up` from the journal: blocks in their chain, digests checked.
3. `seal`: tiles and checkpoint in one transaction, which does nothing unless the lease is still our ledger's and the
   previous checkpoint still the last. A block without transfers (directives, accounts) is sealed too: the same tree,
   another block.

After any database error the caller opens it again: what was committed is read, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psycopg
from psycopg import errors, sql

from kernel.clock import Clock
from kernel.database import CheckedConnection, Database
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.merkle import HASH_BYTES
from kernel.transparency.notes import Note, NoteRefused, open_note, sign_text
from kernel.transparency.tiles import TILE_WIDTH, FullTile, GrowingTree, split_hashes
from ledger.domain.blocks import (
    EVIDENCE_HOLD_TERMS,
    EVIDENCE_TOMBSTONE,
    GENESIS_HASH,
    BlockHeader,
    Evidence,
    digest_evidence,
    hold_terms_body,
)
from ledger.domain.records import Records
from ledger.domain.state import Hold
from ledger.engine.followers import CommittedBlock
from ledger.log import queries
from ledger.log.keys import LogKeys
from ledger.log.leaves import block_commitment, evidence_digests, leaf_hashes, transfers_digest
from ledger.log.queries import SealedCheckpoint
from ledger.log.supply import checkpoint_of, supply_statement
from ledger.store.journal import BLOCK_COLUMNS, BlockMismatch, Deposed, Journal, header_of

START_CHECK_LEAVES = 65_536
"""Leaves that a start hashes anew from the journal: a tenth of a second. `jiaozi-ledger check-log` hashes all."""
CATCH_UP_BLOCKS = 512
CATCH_UP_TRANSFERS = 262_144
"""Read at a time from the journal, about 50 MB."""

SEAL_LIMITS = "SET LOCAL lock_timeout = '2s'; SET LOCAL idle_in_transaction_session_timeout = '2s'"
"""The transaction that seals locks the lease's row, which every block of the ledger waits for: a process that is
stopped in the middle loses its session, and the lock with it."""


class LogBroken(RuntimeError):
    """Journal, tiles and checkpoint disagree: tampering, a partly restored database, or a bug. Nothing is sealed."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """A checkpoint that is durable."""

    size: int
    block: int
    note: str


class Sealer:
    """Not thread-safe: one thread owns it."""

    def __init__(
        self, database: Database, keys: LogKeys, *, ledger: str, currency: str, holder: str, clock: Clock
    ) -> None:
        """`holder`: the name in the lease under which our ledger writes."""
        self._database = database
        self._keys = keys
        self._ledger = ledger
        self._currency = currency
        self._holder = holder
        self._clock = clock
        self._tree = GrowingTree()
        self._head: BlockHeader | None = None
        """The last block that was taken: its transfers are in the tree."""
        self._tiles: list[FullTile] = []
        """Full tiles that are not stored yet."""
        self._sealed_size, self._sealed_block = -1, 0
        self._connections = ExitStack()
        self._connection: CheckedConnection | None = None

    def close(self) -> None:
        """Whatever was begun and not committed is undone."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.closed:
            with suppress(psycopg.Error):  # it is given up all the same
                connection.rollback()
        self._connections.close()

    def _opened(self) -> CheckedConnection:
        if self._connection is None:
            raise RuntimeError("open() comes first")
        return self._connection

    @property
    def size(self) -> int:
        return self._tree.size

    @property
    def sealed_size(self) -> int:
        """Of the last checkpoint; -1 before the first."""
        return self._sealed_size

    @property
    def has_unsealed(self) -> bool:
        return self._head is not None and self._head.number > self._sealed_block

    # --- 1.

    def open(self) -> Sealed | None:
        """Forget what was not sealed and go on from the last checkpoint. Raises LogBroken, or a database error."""
        self._tiles = []
        self.close()
        self._connection = self._connections.enter_context(self._database.raw(isolation="READ COMMITTED"))
        with self._database.transaction(isolation="REPEATABLE READ") as connection:
            last = queries.latest_checkpoint(connection)
            if last is None:
                self._tree, self._head = GrowingTree(), None
                self._sealed_size, self._sealed_block = -1, 0
                return None
            try:
                self._tree = GrowingTree(last.size, queries.right_edge(connection, last.size))
            except (LookupError, ValueError) as error:
                raise LogBroken(f"tiles of the checkpoint of size {last.size} are missing: {error}") from None
        self._head = self._check_checkpoint(last)
        self._sealed_size, self._sealed_block = last.size, last.block
        self._check_leaves(max(0, last.size - START_CHECK_LEAVES))
        return Sealed(last.size, last.block, last.note)

    def _check_checkpoint(self, last: SealedCheckpoint) -> BlockHeader:
        where = f"the checkpoint of size {last.size}"
        try:
            note = Note.parse(last.note)
            open_note(note, [self._keys.verifier_key])
            sealed = Checkpoint.parse(note.text)
        except NoteRefused as error:
            raise LogBroken(f"{where}: {error}") from None
        if self._tree.root() != sealed.root:
            raise LogBroken(f"{where} has another root than the stored tiles")
        try:
            header = Journal(self._opened()).block(last.block)
        except BlockMismatch as error:
            raise LogBroken(f"{where}: {error}") from None
        if header is None:
            raise LogBroken(f"{where} names block {last.block}, which the journal does not have")
        statement = supply_statement(header, ledger=self._ledger, currency=self._currency)
        due = self._checkpoint(header, sealed.root, statement)
        if due != sealed or statement != last.supply or last.size != sealed.size:
            raise LogBroken(f"{where} does not say what the journal says: block {last.block} is another one")
        return header

    def _check_leaves(self, first: int) -> None:
        """Hash the leaves from index `first` (of a tile's begin) on from the journal, against the stored tiles."""
        for start, hashes, count in self.recomputed(first // TILE_WIDTH * TILE_WIDTH):
            with self._database.transaction(isolation="READ COMMITTED") as connection:
                read = queries.tile_reader(connection)
                for offset in range(0, count, TILE_WIDTH):
                    width = min(TILE_WIDTH, count - offset)
                    index = (start + offset) // TILE_WIDTH
                    try:
                        stored = read(0, index, width)
                    except LookupError as error:
                        raise LogBroken(str(error)) from None
                    fresh = hashes[offset * HASH_BYTES : (offset + width) * HASH_BYTES]
                    if stored != fresh:
                        pairs = zip(split_hashes(stored), split_hashes(fresh), strict=True)
                        place = next(place for place, (old, new) in enumerate(pairs) if old != new)
                        raise LogBroken(f"seq {index * TILE_WIDTH + place + 1} is not what was sealed")

    def recomputed(self, first: int) -> Iterator[tuple[int, bytes, int]]:
        """Leaf hashes of the sealed transfers from index `first` on, straight from the journal: (index, hashes, count).

        Raises LogBroken if rows are missing.
        """
        for start in range(first, self._sealed_size, CATCH_UP_TRANSFERS):
            end = min(self._sealed_size, start + CATCH_UP_TRANSFERS)
            transfers, evidence = read_range(self._opened(), start + 1, end)
            yield start, leaf_hashes(self._keys.master, transfers, evidence_digests(evidence)), end - start

    def check_all(self) -> Checkpoint:
        """The whole log anew from the journal, every tile and the root. Raises LogBroken."""
        last = self.open()
        if last is None:
            raise LogBroken("nothing has been sealed yet")
        self._check_leaves(0)
        tree = GrowingTree()
        with self._database.transaction(isolation="REPEATABLE READ") as connection:
            read = queries.tile_reader(connection)
            for index in range(last.size // TILE_WIDTH):
                for tile in tree.append(read(0, index, TILE_WIDTH)):
                    if read(tile.level, tile.index, TILE_WIDTH) != tile.hashes:
                        raise LogBroken(f"tile {tile.level}/{tile.index} is not what its leaves make")
            if last.size % TILE_WIDTH:
                tree.append(read(0, last.size // TILE_WIDTH, last.size % TILE_WIDTH))
        sealed = Checkpoint.parse(Note.parse(last.note).text)
        if tree.root() != sealed.root:
            raise LogBroken("the leaves make another root")
        return sealed

    # --- 2.

    def take(self, block: CommittedBlock) -> bool:
        """Append a block's leaves. False if it is not the one that comes next: then the journal has what is missing.

        Raises LogBroken if the block is not what its header says.
        """
        header = block.header
        number, previous = (self._head.number, self._head.hash) if self._head is not None else (0, GENESIS_HASH)
        if header.number <= number:
            return True  # seen already, in the journal
        if header.number != number + 1:
            return False
        if header.previous_hash != previous or header.first_seq != self._tree.size + 1:
            raise LogBroken(f"block {header.number} does not follow block {number}")
        if (
            len(block.transfers) != header.transfer_count
            or transfers_digest(block.transfers) != header.transfers_digest
        ):
            raise LogBroken(f"block {header.number}: its transfers are not those it was sealed with")
        if digest_evidence(block.evidence) != header.evidence_digest:
            raise LogBroken(f"block {header.number}: its evidence is not that it was sealed with")
        hashes = leaf_hashes(self._keys.master, block.transfers, evidence_digests(block.evidence))
        self._tiles += self._tree.append(hashes)
        self._head = header
        return True

    def catch_up(self) -> bool:
        """Append the next blocks from the journal. False if there were none. Raises LogBroken, or a database error."""
        blocks = list(_read_blocks(self._opened(), self._head.number if self._head is not None else 0))
        for block in blocks:
            if not self.take(block):
                raise LogBroken(f"the journal has no block before block {block.header.number}")
        return bool(blocks)

    # --- 3.

    def seal(self) -> Sealed | None:
        """Make a checkpoint of the tree as it is. None if the last one is of this block.

        Raises Deposed if another ledger writes now; a database error: then `open` says what was committed.
        """
        header = self._head
        if header is None or not self.has_unsealed:
            return None
        size, root = self._tree.size, self._tree.root()
        statement = supply_statement(header, ledger=self._ledger, currency=self._currency)
        commitment = block_commitment(self._keys.master, header.number, header.hash)
        text = self._checkpoint(header, root, statement).text
        note = str(Note(text, (sign_text(text, name=self._keys.origin, key=self._keys.signing),)))
        fresh = size - max(self._sealed_size, size // TILE_WIDTH * TILE_WIDTH, 0)
        partial = self._tree.partial(0)
        tail = partial[len(partial) - fresh * HASH_BYTES :]
        connection = self._opened()
        with connection.cursor() as cursor:
            cursor.execute(SEAL_LIMITS)
            self._copy_tiles(cursor)
            cursor.execute(
                "WITH fenced AS (UPDATE lease SET renewed_at = renewed_at WHERE id = 1 AND node = %s RETURNING 1)"
                " INSERT INTO log_checkpoint (block, previous_block, size, previous_size, root,"
                " block_commitment, tail, supply, note, sealed_at)"
                " SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM fenced",
                (
                    self._holder,
                    *(header.number, self._sealed_block, size, self._sealed_size),
                    *(root, commitment, tail, statement, note, self._clock()),
                ),
            )
            if cursor.rowcount != 1:
                connection.rollback()
                raise Deposed("another ledger holds the lease")
            connection.commit()
        self._tiles, self._sealed_size, self._sealed_block = [], size, header.number
        return Sealed(size, header.number, note)

    def _checkpoint(self, header: BlockHeader, root: bytes, statement: bytes) -> Checkpoint:
        keys = self._keys
        return checkpoint_of(header, origin=keys.origin, root=root, statement=statement, master=keys.master)

    def _copy_tiles(self, cursor: psycopg.Cursor[Any]) -> None:
        if not self._tiles:
            return
        with cursor.copy("COPY log_tile (level, index, hashes, root) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(("int2", "int8", "bytea", "bytea"))
            for tile in self._tiles:
                copy.write_row((tile.level, tile.index, tile.hashes, tile.root))


WasSealedElsewhere = errors.UniqueViolation
"""What `seal` raises when another process has sealed meanwhile: open again."""


# --- the journal -----------------------------------------------------------------------------------------------------


def _read_blocks(connection: CheckedConnection, after: int) -> Iterator[CommittedBlock]:
    """The next blocks, with their transfers and evidence: at most CATCH_UP_BLOCKS and about CATCH_UP_TRANSFERS."""
    with connection.cursor() as cursor:
        cursor.execute(
            sql.SQL(f"SELECT {BLOCK_COLUMNS} FROM block WHERE number > %s ORDER BY number LIMIT %s"),
            (after, CATCH_UP_BLOCKS),
        )
        rows = cursor.fetchall()
    connection.commit()
    headers: list[BlockHeader] = []
    count = 0
    for row in rows:
        try:
            header = header_of(row)
        except BlockMismatch as error:
            raise LogBroken(str(error)) from None
        if headers and count + header.transfer_count > CATCH_UP_TRANSFERS:
            break
        headers.append(header)
        count += header.transfer_count
    if not headers:
        return
    first = headers[0].first_seq
    transfers, evidence = read_range(connection, first, first + count - 1)
    by_seq = sorted(evidence, key=lambda item: item.seq)
    seqs = np.array([item.seq for item in by_seq], np.int64)
    for header in headers:
        start, end = header.first_seq, header.first_seq + header.transfer_count
        low, high = np.searchsorted(seqs, [start, end]).tolist()
        yield CommittedBlock(header, transfers[start - first : end - first], by_seq[low:high])


def read_range(connection: CheckedConnection, first_seq: int, last_seq: int) -> tuple[Records, list[Evidence]]:
    """Transfers of a seq range in order, and all that their blocks' evidence digests cover."""
    try:
        tail = Journal(connection).tail(first_seq, last_seq)
    except BlockMismatch as error:
        raise LogBroken(str(error)) from None
    found: list[Evidence] = []
    if last_seq < first_seq:
        return tail.transfers, found
    within = "seq BETWEEN %s AND %s"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT seq, transfer_id, kind, body FROM evidence WHERE {within}", (first_seq, last_seq))
        found += [Evidence(row[0], row[1].bytes, row[2], row[3]) for row in cursor]
        cursor.execute(
            f"SELECT seq, hold_id FROM hold_event WHERE phase = 0 AND {within}",
            (first_seq, last_seq),
        )
        for seq, hold_id in cursor:
            commit_hash, abort_hash, expires_at = tail.holds[hold_id.bytes]
            hold = Hold(hold_id.bytes, 0, 0, 0, commit_hash, abort_hash, expires_at, True, 0, 0)
            found.append(Evidence(seq, hold_id.bytes, EVIDENCE_HOLD_TERMS, hold_terms_body(hold)))
        cursor.execute(
            f"SELECT seq, transfer_id, hold_id, guard FROM hold_tombstone WHERE {within}",
            (first_seq, last_seq),
        )
        found += [Evidence(row[0], row[1].bytes, EVIDENCE_TOMBSTONE, row[2].bytes + row[3]) for row in cursor]
    connection.commit()
    return tail.transfers, found

"""The journal in PostgreSQL: one transaction a block, one fenced writer. Nothing else in the project writes to it.

`append` is the only door: COPY of the rows, then one statement that inserts the block's header if and only if the
lease's epoch is still the writer's. What it raises says what to do: `Deposed` (stop), `DuplicateId` (read the ids
back and decide again), `kernel.database.OutcomeUnknown` (take the lease and read the block back), any other database
error (nothing was written).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg import sql

from kernel.clock import from_micros, to_micros
from kernel.database import CheckedConnection, is_duplicate_key
from ledger.domain.blocks import BlockHeader, Directive, Evidence, OpenedAccount
from ledger.domain.decide import Decision, Known
from ledger.domain.records import JOURNAL, Records, uuids
from ledger.domain.state import (
    COLUMNS,
    CREDITS_POSTED,
    DEBITS_PENDING,
    DEBITS_POSTED,
    HOLDER_KEY_BYTES,
    ISSUANCE_ACCOUNT,
    PAGE_ACCOUNTS,
    Hold,
    HoldEnd,
    LedgerState,
)
from ledger.domain.vocabulary import KIND_CODE, TRANSFER_KINDS, TransferKind
from ledger.store.copying import PG_EPOCH_MICROS, CopyLayout, PackedLayout, copy_in

TAIL_PAGE = 200_000
"""Rows a recovery reads at a time."""
SNAPSHOT_PAGES = 4_000
"""Pages a statement: six megabytes, written long before the statement's time is up."""
"""Pages of balances written or read at a time: 31 MB."""


class Deposed(RuntimeError):
    """Another sequencer holds the lease: this one must not write again."""


class DuplicateId(RuntimeError):
    """An id of the block is in the journal already: I7's second lock."""


class BlockMismatch(RuntimeError):
    """The journal's chain of blocks is broken: rows were changed, lost or added behind the ledger's back."""


@dataclass(frozen=True, slots=True)
class Block:
    """Everything one block's transaction writes."""

    header: BlockHeader
    decision: Decision | None = None
    evidence: Sequence[Evidence] = ()
    directives: Sequence[Directive] = ()
    accounts: Sequence[OpenedAccount] = ()
    terms: Sequence[Evidence] = ()
    """Terms of holds and guards of tombstones, which have tables of their own and are hashed with the evidence."""
    rows: bytes = b""
    """The transfers as COPY takes them (`transfer_rows`), laid out ahead so that the database never waits for it."""


@dataclass(slots=True)
class Tail:
    """The journal after a snapshot: what recovery applies."""

    transfers: Records
    holds: dict[bytes, tuple[bytes | None, bytes | None, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A copy of what changed in the state up to a block, and what of it is to be written."""

    block: int
    seq: int
    pages: Sequence[tuple[npt.NDArray[np.intp], bytes]]
    """Page numbers and their rows of `balance_page`."""
    outstanding: Sequence[tuple[int, int]]
    holds_new: Sequence[Hold]
    holds_gone: set[bytes]
    holds_now: set[bytes]


def take_snapshot(state: LedgerState, *, block: int, holds_written: set[bytes]) -> Snapshot:
    """Copy the pages that changed since the last snapshot, which are then no longer marked. `state` is that after
    `block`; `holds_written` are the open holds that the last snapshot has written."""
    changed = np.flatnonzero(state.changed_page[: -(-state.size // PAGE_ACCOUNTS)])
    parts = [changed[start : start + SNAPSHOT_PAGES] for start in range(0, len(changed), SNAPSHOT_PAGES)]
    now = set(state.holds)
    snapshot = Snapshot(
        block=block,
        seq=state.next_seq - 1,
        pages=[(part, _page_rows(state, part)) for part in parts],
        outstanding=[(each.number, each.outstanding) for each in state.participants if each is not None],
        holds_new=[state.holds[hold] for hold in now - holds_written],
        holds_gone=holds_written - now,
        holds_now=now,
    )
    state.changed_page[:] = False
    return snapshot


class Journal:
    """One database connection, owned by the sequencer's thread."""

    def __init__(self, connection: CheckedConnection, *, holder: str = "", epoch: int = 0) -> None:
        self._connection = connection
        self.holder = holder
        """Unique to one process's time as the writer; the lease names it."""
        self.epoch = epoch

    # --- the lease

    def become_writer(self, holder: str, epoch: int) -> None:
        """The lease was taken (`ledger.engine.lease`): blocks of this epoch count, those of earlier ones do not."""
        self.holder, self.epoch = holder, epoch

    def name_session(self, name: str) -> None:
        """Whoever takes the lease next ends sessions of this kind first."""
        self._connection.execute("SELECT set_config('application_name', %s, false)", (name,))
        self._connection.commit()

    def renew_lease(self) -> int:
        """Take the lease again after a lost connection, unless somebody else has taken it since. Waits, by the row's
        lock, until a transaction of the lost connection has ended. Raises Deposed.

        It asks for the holder, not for the epoch: this commit's own answer may be lost too, and then the epoch in the
        table is one that this process was never told.
        """
        with self._connection.cursor() as cursor:
            cursor.execute(
                "UPDATE lease SET epoch = epoch + 1, renewed_at = clock_timestamp()"
                " WHERE id = 1 AND node = %s RETURNING epoch",
                (self.holder,),
            )
            row = cursor.fetchone()
        if row is None:
            self._connection.rollback()
            raise Deposed(f"epoch {self.epoch} lost the lease")
        self._connection.commit()
        self.epoch = int(row[0])
        return self.epoch

    # --- writing

    def append(self, block: Block) -> None:
        """Make a block durable. Returns only after COMMIT."""
        connection = self._connection
        try:
            with connection.cursor() as cursor:
                if block.decision is not None:
                    if block.rows:
                        copy_in(cursor, _TRANSFER_COLUMNS, block.rows)
                    self._copy_holds(cursor, block.decision)
                if block.evidence:
                    copy_in(cursor, "evidence (transfer_id, kind, seq, body)", _evidence_rows(block.evidence))
                moment = from_micros(block.header.booked_at)
                _copy_rows(
                    cursor,
                    "directive (number, kind, mandate_id, body, booked_at)",
                    ("int8", "text", "uuid", "bytea", "timestamptz"),
                    ((d.number, d.kind, _uuid(d.mandate_id), d.body, moment) for d in block.directives),
                )
                _copy_rows(
                    cursor,
                    "account (number, opening_id, kind, participant, rule_class, holder_key, opened_at)",
                    ("int8", "uuid", "int2", "int4", "text", "bytea", "timestamptz"),
                    (
                        (a.number, _uuid(a.opening_id), a.kind, a.participant, a.rule_class, a.holder_key, moment)
                        for a in block.accounts
                    ),
                )
                self._insert_header(cursor, block.header)
            connection.commit()
        except BaseException as error:
            if not connection.closed:
                connection.rollback()
            if isinstance(error, psycopg.Error) and is_duplicate_key(error):
                raise DuplicateId(error.diag.constraint_name or "unknown constraint") from error
            raise

    def _insert_header(self, cursor: psycopg.Cursor[Any], header: BlockHeader) -> None:
        """The compare-and-set: no row of the lease with our epoch, no header, no block."""
        cursor.execute(
            "WITH fenced AS (UPDATE lease SET renewed_at = clock_timestamp() WHERE id = 1 AND epoch = %s RETURNING 1)"
            " INSERT INTO block (number, epoch, booked_at, first_seq, transfer_count, transfers_digest,"
            " evidence_digest, first_directive, directive_count, directives_digest, first_account, account_count,"
            " issued, redeemed, vaults, wallets, offline, held, accounts_digest, previous_hash, hash)"
            " SELECT %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM fenced",
            (
                self.epoch,
                header.number,
                header.epoch,
                from_micros(header.booked_at),
                header.first_seq,
                header.transfer_count,
                header.transfers_digest,
                header.evidence_digest,
                header.first_directive,
                header.directive_count,
                header.directives_digest,
                header.first_account,
                header.account_count,
                header.issued,
                header.redeemed,
                header.vaults,
                header.wallets,
                header.offline,
                header.held,
                header.accounts_digest,
                header.previous_hash,
                header.hash,
            ),
        )
        if cursor.rowcount != 1:
            raise Deposed(f"epoch {self.epoch} lost the lease")

    def _copy_holds(self, cursor: psycopg.Cursor[Any], decision: Decision) -> None:
        if decision.hold_terms or decision.hold_ends:
            copy_in(
                cursor,
                "hold_event (hold_id, phase, seq, transfer_id, kind, commit_hash, abort_hash, expires_at)",
                _hold_rows(decision),
            )
        if decision.tombstones:
            seqs, ids, _ = _booked(decision, list(decision.tombstones))
            _copy_rows(
                cursor,
                "hold_tombstone (hold_id, guard, seq, transfer_id)",
                ("uuid", "bytea", "int8", "uuid"),
                (
                    (_uuid(hold), guard, seq, _uuid(transfer))
                    for (hold, guard), seq, transfer in zip(decision.tombstones.values(), seqs, ids, strict=True)
                ),
            )

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Bring the balance tables to the state that was copied, in one transaction. Raises Deposed."""
        connection = self._connection
        try:
            with connection.cursor() as cursor:
                for numbers, rows in snapshot.pages:
                    # The range, too: for a long list alone the planner reads the whole table.
                    cursor.execute(
                        "DELETE FROM balance_page WHERE page BETWEEN %s AND %s AND page = ANY(%s)",
                        (int(numbers[0]), int(numbers[-1]), numbers.tolist()),
                    )
                    copy_in(cursor, "balance_page (page, least_available, body)", rows)
                cursor.executemany(
                    "INSERT INTO participant_balance VALUES (%s, %s)"
                    " ON CONFLICT (participant) DO UPDATE SET outstanding = EXCLUDED.outstanding",
                    snapshot.outstanding,
                )
                gone = [UUID(bytes=hold) for hold in snapshot.holds_gone]
                if gone:
                    cursor.execute("DELETE FROM open_hold WHERE hold_id = ANY(%s)", (gone,))
                _copy_rows(
                    cursor,
                    "open_hold (hold_id, debit_account, credit_account, amount_minor, commit_hash, abort_hash,"
                    " expires_at, counted, day, year)",
                    ("uuid", "int8", "int8", "int8", "bytea", "bytea", "int8", "bool", "int4", "int4"),
                    (_hold_row(hold) for hold in snapshot.holds_new),
                )
                cursor.execute(
                    "WITH fenced AS (UPDATE lease SET renewed_at = clock_timestamp() WHERE id = 1 AND epoch = %s"
                    " RETURNING 1) INSERT INTO snapshot (id, block, seq) SELECT 1, %s, %s FROM fenced"
                    " ON CONFLICT (id) DO UPDATE SET block = EXCLUDED.block, seq = EXCLUDED.seq",
                    (self.epoch, snapshot.block, snapshot.seq),
                )
                if cursor.rowcount != 1:
                    raise Deposed(f"epoch {self.epoch} lost the lease")
            connection.commit()
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise

    # --- reading back

    def last_block(self) -> BlockHeader | None:
        return self.block(None)

    def last_seq(self) -> int:
        """The newest transfer's number, 0 before the first."""
        head = self.last_block()
        return head.first_seq + head.transfer_count - 1 if head is not None else 0

    def block(self, number: int | None) -> BlockHeader | None:
        """A header as written, the last one for None. Raises BlockMismatch if its hash is not its content's."""
        where = "ORDER BY number DESC LIMIT 1" if number is None else "WHERE number = %s"
        rows = self._all(f"SELECT {BLOCK_COLUMNS} FROM block {where}", None if number is None else (number,))
        if not rows:
            return None
        return header_of(rows[0])

    def known(self, ids: Iterable[bytes]) -> dict[bytes, Known]:
        """Which of these transfer ids the journal has, with their content (I7)."""
        wanted = [UUID(bytes=item) for item in ids]
        rows = self._all(
            "SELECT t.id, t.seq, t.booked_at, t.kind, t.debit_account, t.credit_account, t.amount_minor, t.hold_id,"
            " t.reference, h.commit_hash, h.abort_hash, h.expires_at, b.guard FROM transfer t"
            " LEFT JOIN hold_event h ON h.hold_id = t.id AND h.phase = 0"
            " LEFT JOIN hold_tombstone b ON b.hold_id = t.hold_id AND b.transfer_id = t.id WHERE t.id = ANY(%s)",
            (wanted,),
        )
        nil = UUID(int=0)
        return {
            row[0].bytes: Known(
                seq=row[1],
                booked_at=to_micros(row[2]),
                kind=row[3],
                debit=row[4],
                credit=row[5],
                amount=row[6],
                hold=(row[7] or nil).bytes,
                reference=(row[8] or nil).bytes,
                terms=(row[9], row[10], to_micros(row[11]) if row[11] else 0),
                guard=row[12] or b"",
            )
            for row in rows
        }

    def hold_fates(
        self, holds: Iterable[bytes], ids: Iterable[bytes]
    ) -> tuple[dict[bytes, HoldEnd], set[tuple[bytes, bytes]]]:
        """Which of `holds` have ended, and which of `ids` have tombstones."""
        ends: dict[bytes, HoldEnd] = {}
        if wanted := _uuid_array(holds):
            ended = "SELECT hold_id, kind FROM hold_event WHERE phase = 1 AND hold_id = ANY(%s::uuid[])"
            ends = {row[0].bytes: _END_OF_KIND[row[1]] for row in self._all(ended, (wanted,))}
        buried = "SELECT hold_id, guard FROM hold_tombstone WHERE hold_id = ANY(%s::uuid[])"
        return ends, {(row[0].bytes, row[1]) for row in self._all(buried, (_uuid_array(ids) or "{}",))}

    def openings(self, opening_ids: Iterable[bytes]) -> dict[bytes, OpenedAccount]:
        rows = self._all(
            "SELECT number, opening_id, kind, participant, rule_class, holder_key FROM account"
            " WHERE opening_id = ANY(%s)",
            ([UUID(bytes=item) for item in opening_ids],),
        )
        return {row[1].bytes: OpenedAccount(row[0], row[1].bytes, *row[2:]) for row in rows}

    def directives(self) -> list[Directive]:
        rows = self._all("SELECT number, kind, mandate_id, body, booked_at FROM directive ORDER BY number", None)
        return [
            Directive(number, kind, mandate.bytes if mandate else None, body, to_micros(booked_at))
            for number, kind, mandate, body, booked_at in rows
        ]

    def last_account(self) -> int:
        """The newest account's number, 0 before the first."""
        return int(self._all("SELECT coalesce(max(number), 0) FROM account", None)[0][0])

    def accounts(self, classes: Sequence[str]) -> Iterator[Records]:
        """All opened accounts in number order, in pages of records (number, kind, participant, rule_class, key_size,
        key): `rule_class` is a position in `classes`, `key` the holder's key padded with zeros."""
        last = self.last_account()
        codes = sql.Literal(list(classes))
        for first in range(1, last + 1, TAIL_PAGE):
            source = sql.SQL("account, (SELECT {}::text[] AS classes) c WHERE number BETWEEN {} AND {}")
            rows = self._rows(_ACCOUNT, source.format(codes, first, first + TAIL_PAGE - 1))
            if not bool((np.diff(rows["number"].astype(np.int64)) > 0).all()):
                rows = rows[np.argsort(rows["number"].astype(np.int64))]
            yield rows

    def snapshot(self) -> tuple[int, int] | None:
        """(block, seq) of the balance tables."""
        rows = self._all("SELECT block, seq FROM snapshot", None)
        return (rows[0][0], rows[0][1]) if rows else None

    def balances(self) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Pages of totals: page numbers, and for each page PAGE_ACCOUNTS x 6 totals in the order of `COLUMNS`."""
        after = -1
        while True:
            source = "(SELECT page, body FROM balance_page WHERE page > {} ORDER BY page LIMIT {}) p"
            rows = self._rows(_PAGE_OUT, sql.SQL(source).format(after, SNAPSHOT_PAGES))
            rows = rows[np.argsort(rows["page"].astype(np.int64))]
            if not len(rows):
                return
            after = int(rows["page"][-1])
            bodies = np.frombuffer(rows["body"].tobytes(), ">i8").reshape(len(rows), PAGE_ACCOUNTS, len(COLUMNS))
            yield rows["page"].astype(np.int64), bodies.astype(np.int64)

    def outstanding(self) -> dict[int, int]:
        return dict(self._all("SELECT participant, outstanding FROM participant_balance", None))

    def open_holds(self) -> list[Hold]:
        rows = self._all(
            "SELECT hold_id, debit_account, credit_account, amount_minor, commit_hash, abort_hash, expires_at, counted,"
            " day, year FROM open_hold",
            None,
        )
        return [Hold(row[0].bytes, *row[1:]) for row in rows]

    def blocks_after(self, number: int) -> list[BlockHeader]:
        rows = self._all(f"SELECT {BLOCK_COLUMNS} FROM block WHERE number > %s ORDER BY number", (number,))
        return [header_of(row) for row in rows]

    def tail(self, first_seq: int, last_seq: int) -> Tail:
        """Booked transfers of a seq range, in order, with the terms of the holds among them."""
        rows = self._rows(_TRANSFER_OUT, sql.SQL("transfer WHERE seq BETWEEN {} AND {}").format(first_seq, last_seq))
        if len(rows) != last_seq - first_seq + 1:
            raise BlockMismatch(f"seq {first_seq}..{last_seq}: {len(rows)} transfers found")
        journal = np.zeros(len(rows), JOURNAL)
        for name in JOURNAL.names or ():
            journal[name] = rows[name]
        journal["booked_at"] = rows["booked_at"].astype(np.int64) + PG_EPOCH_MICROS
        if bool((np.diff(journal["seq"].astype(np.int64)) < 0).any()):
            journal = journal[np.argsort(journal["seq"].astype(np.int64))]
        terms = self._all(
            "SELECT hold_id, commit_hash, abort_hash, expires_at FROM hold_event"
            " WHERE phase = 0 AND seq BETWEEN %s AND %s",
            (first_seq, last_seq),
        )
        holds = {row[0].bytes: (row[1], row[2], to_micros(row[3]) if row[3] else 0) for row in terms}
        return Tail(journal, holds)

    def _rows(self, layout: PackedLayout, source: sql.Composable) -> npt.NDArray[Any]:
        with self._connection.cursor() as cursor:
            rows = layout.read(cursor, source)
        self._connection.commit()
        return rows

    def _all(self, query: str, parameters: tuple[object, ...] | None) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql.SQL(query), parameters)
            rows = cursor.fetchall()
        self._connection.commit()
        return rows


BLOCK_COLUMNS = (
    "number, epoch, booked_at, first_seq, transfer_count, transfers_digest, evidence_digest, first_directive, "
    "directive_count, directives_digest, first_account, account_count, issued, redeemed, vaults, wallets, offline, "
    "held, accounts_digest, previous_hash, hash"
)


_BLOCK_FIELDS = BLOCK_COLUMNS.split(", ")


def header_of(row: Sequence[Any]) -> BlockHeader:
    """A block header from its row. Raises BlockMismatch if the stored hash is not its content's."""
    values = dict(zip(_BLOCK_FIELDS, row, strict=True))
    stored = values.pop("hash")
    header = BlockHeader(**{**values, "booked_at": to_micros(values["booked_at"])})
    if header.hash != stored:
        raise BlockMismatch(f"block {header.number}: its hash is not that of its content")
    return header


_KIND_OF_END = {
    HoldEnd.POSTED: KIND_CODE[TransferKind.POST],
    HoldEnd.VOIDED: KIND_CODE[TransferKind.VOID],
    HoldEnd.EXPIRED: KIND_CODE[TransferKind.EXPIRE],
}
_END_OF_KIND = {kind: end for end, kind in _KIND_OF_END.items()}
END_OF_TRANSFER = {TRANSFER_KINDS[kind]: end for kind, end in _END_OF_KIND.items()}


def _uuid_array(ids: Iterable[bytes]) -> str | None:
    """The text of an array parameter, a tenth of the driver's work for a list of UUIDs; None for an empty one."""
    text = ",".join([item.hex() for item in ids])
    return f"{{{text}}}" if text else None


def _uuid(value: bytes | None) -> UUID | None:
    return UUID(bytes=value) if value is not None else None


def _hold_row(hold: Hold) -> tuple[object, ...]:
    return (
        UUID(bytes=hold.id),
        *(hold.debit, hold.credit, hold.amount, hold.commit_hash, hold.abort_hash, hold.expires_at),
        *(hold.counted, hold.day, hold.year),
    )


def _copy_rows(
    cursor: psycopg.Cursor[Any],
    target: str,
    types: tuple[str, ...],
    rows: Iterable[tuple[object, ...]],
) -> None:
    """COPY a few rows, if there are any."""
    iterator = iter(rows)
    first = next(iterator, None)
    if first is None:
        return
    with cursor.copy(f"COPY {target} FROM STDIN (FORMAT BINARY)") as copy:
        copy.set_types(types)
        copy.write_row(first)
        for row in iterator:
            copy.write_row(row)


def _transfer_layout(*, hold: bool, reference: bool) -> CopyLayout:
    return CopyLayout(
        [
            ("id", "uuid"),
            ("seq", "int8"),
            ("debit", "int8"),
            ("credit", "int8"),
            ("amount", "int8"),
            ("booked_at", "int8"),
            ("submitter", "int4"),
            ("kind", "int2"),
            ("hold", "uuid" if hold else "null"),
            ("reference", "uuid" if reference else "null"),
        ]
    )


_TRANSFER_IN = {
    (hold, reference): _transfer_layout(hold=hold, reference=reference)
    for hold in (False, True)
    for reference in (False, True)
}
_TRANSFER_COLUMNS = (
    "transfer (id, seq, debit_account, credit_account, amount_minor, booked_at, submitter, kind, hold_id, reference)"
)
_NIL = "'00000000-0000-0000-0000-000000000000'"
_TRANSFER_OUT = PackedLayout(
    [
        ("id", "uuid", "id"),
        ("seq", "int8", "seq"),
        ("debit", "int8", "debit_account"),
        ("credit", "int8", "credit_account"),
        ("amount", "int8", "amount_minor"),
        ("booked_at", "timestamptz", "booked_at"),
        ("submitter", "int4", "submitter"),
        ("kind", "int2", "kind"),
        ("hold", "uuid", f"coalesce(hold_id, {_NIL})"),
        ("reference", "uuid", f"coalesce(reference, {_NIL})"),
    ]
)
_ACCOUNT = PackedLayout(
    [
        ("number", "int8", "number"),
        ("kind", "int2", "kind"),
        ("participant", "int4", "participant"),
        ("rule_class", "int4", "coalesce(array_position(classes, rule_class) - 1, -1)"),
        ("key_size", "int4", "coalesce(length(holder_key), 0)"),
        (
            "key",
            f"bytes:{HOLDER_KEY_BYTES}",
            f"substring(coalesce(holder_key, '') || decode(repeat('00', {HOLDER_KEY_BYTES}), 'hex')"
            f" FROM 1 FOR {HOLDER_KEY_BYTES})",
        ),
    ]
)
_PAGE_BYTES = PAGE_ACCOUNTS * len(COLUMNS) * 8
_BALANCE_PAGE = CopyLayout([("page", "int8"), ("least_available", "int8"), ("body", f"bytes:{_PAGE_BYTES}")])
_PAGE_OUT = PackedLayout([("page", "int8", "page"), ("body", f"bytes:{_PAGE_BYTES}", "body")])


def transfer_rows(journal: Records) -> bytes:
    """The journal's records as rows of `transfer`, as COPY takes them; the order of rows does not matter."""
    has_hold = (journal["hold_high"] != 0) | (journal["hold_low"] != 0)
    has_reference = (journal["reference_high"] != 0) | (journal["reference_low"] != 0)
    parts: list[bytes] = []
    for (hold, reference), layout in _TRANSFER_IN.items():
        chosen = (has_hold == hold) & (has_reference == reference)
        if not chosen.any():
            continue
        part = journal if chosen.all() else journal[chosen]
        rows = layout.rows(len(part))
        for name in ("id_high", "id_low", "seq", "debit", "credit", "amount", "submitter", "kind"):
            rows[name] = part[name]
        rows["booked_at"] = part["booked_at"].astype(np.int64) - PG_EPOCH_MICROS
        for name in ("hold_high", "hold_low") * hold + ("reference_high", "reference_low") * reference:
            rows[name] = part[name]
        parts.append(rows.tobytes())
    return b"".join(parts)


_EVIDENCE_ROW = struct.Struct(">h i16s ih iq i")
_HOLD_ROW = struct.Struct(">h i16s ih iq i16s ih")
"""Field count; length and value of each field up to the first of variable length."""
_HOLD = KIND_CODE[TransferKind.HOLD]


def _evidence_rows(items: Sequence[Evidence]) -> bytes:
    """Rows of `evidence`, as COPY takes them."""
    return b"".join(
        [
            _EVIDENCE_ROW.pack(4, 16, item.transfer_id, 2, item.kind, 8, item.seq, len(item.body)) + item.body
            for item in items
        ]
    )


def _hold_rows(decision: Decision) -> bytes:
    """Rows of `hold_event`, as COPY takes them: of holds placed (phase 0) and ended (phase 1)."""
    rows: list[bytes] = []
    placed = decision.seqs[np.array(list(decision.hold_terms), np.intp)].tolist()
    for seq, hold in zip(placed, decision.hold_terms.values(), strict=True):
        rows.append(_HOLD_ROW.pack(8, 16, hold.id, 2, 0, 8, seq, 16, hold.id, 2, _HOLD))
        rows.append(_bytes_field(hold.commit_hash))
        rows.append(_bytes_field(hold.abort_hash))
        expires = struct.pack(">q", hold.expires_at - PG_EPOCH_MICROS) if hold.expires_at else None
        rows.append(_bytes_field(expires))
    seqs, ids, holds = _booked(decision, list(decision.hold_ends))
    for end, seq, transfer, ended in zip(decision.hold_ends.values(), seqs, ids, holds, strict=True):
        rows.append(_HOLD_ROW.pack(8, 16, ended, 2, 1, 8, seq, 16, transfer, 2, _KIND_OF_END[end]))
        rows.append(_NULL * 3)
    return b"".join(rows)


def _booked(decision: Decision, positions: Sequence[int]) -> tuple[list[int], list[bytes], list[bytes]]:
    """Seqs, ids and holds of booked transfers of the batch."""
    seqs = decision.seqs[np.array(positions, np.intp)]
    records = decision.journal[seqs - decision.seqs[decision.positions[0]]] if len(seqs) else decision.journal[:0]
    return seqs.tolist(), uuids(records, "id"), uuids(records, "hold")


_NULL = b"\xff\xff\xff\xff"


def _bytes_field(value: bytes | None) -> bytes:
    return _NULL if value is None else len(value).to_bytes(4, "big") + value


def _page_rows(state: LedgerState, pages: npt.NDArray[np.intp]) -> bytes:
    """Rows of `balance_page`."""
    rows = _BALANCE_PAGE.rows(len(pages))
    bodies = np.zeros((len(pages), PAGE_ACCOUNTS, len(COLUMNS)), ">i8")
    for place, name in enumerate(COLUMNS):
        bodies[:, :, place] = getattr(state, name).reshape(-1, PAGE_ACCOUNTS)[pages]
    available = bodies[:, :, CREDITS_POSTED] - bodies[:, :, DEBITS_POSTED] - bodies[:, :, DEBITS_PENDING]
    if len(pages) and pages[0] == 0:
        available[0, ISSUANCE_ACCOUNT] = 0  # alone it may be overdrawn: by the circulation
    rows["page"] = pages
    rows["least_available"] = available.min(axis=1)
    rows["body"] = bodies.reshape(len(pages), -1).view(f"V{_PAGE_BYTES}")[:, 0]
    return rows.tobytes()

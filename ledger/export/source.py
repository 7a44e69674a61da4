"""Rows of the journal as the records of an export, read in ranges, whatever they say: a tampered journal is exported as
it is, so that the verifier can name what is wrong. Only a value that has no place in a record is refused.

Transfers come by binary COPY of a range of seqs (their index on seq is BRIN: long ranges are cheap, single rows are
not) and are parsed by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import psycopg
from psycopg import sql

from kernel.clock import to_micros
from ledger.export import layout
from ledger.export.layout import ExportUnreadable, Records

GROUP_TRANSFERS = 131_072
"""Transfers read at a time: some 30 MB while they are parsed."""
GROUP_BLOCKS = 4_096
_PG_EPOCH_MICROS = 946_684_800_000_000
_COPY_HEADER_BYTES = 19
_COPY_TRAILER = b"\xff\xff"
_KIND_UNPACKABLE = 255

_COPIED = np.dtype(
    [
        *(("fields", ">i2"), ("id_length", ">i4"), ("id_high", ">u8"), ("id_low", ">u8")),
        *(("seq_length", ">i4"), ("seq", ">i8"), ("kind_length", ">i4"), ("kind", ">i2")),
        *(("debit_length", ">i4"), ("debit", ">i8"), ("credit_length", ">i4"), ("credit", ">i8")),
        *(("amount_length", ">i4"), ("amount", ">i8")),
        *(("hold_length", ">i4"), ("hold_high", ">u8"), ("hold_low", ">u8")),
        *(("reference_length", ">i4"), ("reference_high", ">u8"), ("reference_low", ">u8")),
        *(("submitter_length", ">i4"), ("submitter", ">i4"), ("booked_at_length", ">i4"), ("booked_at", ">i8")),
    ]
)
"""A row in PostgreSQL's binary COPY format: a field count, then length and value of each."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far an export has come: everything up to and including these has been read."""

    block: int = 0
    block_hash: bytes = bytes(32)
    seq: int = 0
    directive: int = 0
    account: int = 0
    checkpoint: int = 0
    """Block of the last one."""
    closing: int = 0

    @property
    def is_start(self) -> bool:
        return self.block == 0


@dataclass(slots=True)
class Group:
    """Some whole blocks: bytes to append to each section, and where that leads."""

    position: Position
    sections: dict[str, bytes] = field(default_factory=dict)
    blocks: int = 0
    transfers: int = 0


class JournalSource:
    """Reads one database's journal. What is seen is what the connection's transaction sees."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def transfers_after(self, position: Position) -> int:
        """How many transfers the blocks after a position have, by their headers."""
        rows = self._rows(
            "SELECT coalesce(sum(transfer_count), 0)::bigint FROM block WHERE number > %s", (position.block,)
        )
        return int(rows[0][0])

    def block_hash(self, number: int) -> bytes | None:
        rows = self._rows("SELECT hash FROM block WHERE number = %s", (number,))
        return bytes(rows[0][0]) if rows else None

    def groups(self, position: Position, *, transfers_max: int = GROUP_TRANSFERS) -> Iterator[Group]:
        """Every block after a position, in groups of whole blocks: of so many transfers at most, or of one block."""
        while True:
            headers = self._rows(_BLOCKS, (position.block if not position.is_start else -(2**63), GROUP_BLOCKS))
            if not headers:
                return
            while headers:
                taken = _whole_blocks(headers, transfers_max)
                group = self._group(position, headers[:taken])
                headers = headers[taken:]
                position = group.position
                yield group

    def strays(self, position: Position) -> list[tuple[str, int, int]]:
        """(table, first number, count) of rows after the last block: they belong to none."""
        found = []
        for table, column, last in (
            ("transfer", "seq", position.seq),
            ("evidence", "seq", position.seq),
            ("hold_event", "seq", position.seq),
            ("hold_tombstone", "seq", position.seq),
            ("account", "number", position.account),
            ("directive", "number", position.directive),
        ):
            query = f"SELECT min({column}), count(*) FROM {table} WHERE {column} > %s"
            first, count = self._rows(query, (last,))[0]
            if count:
                found.append((table, int(first), int(count)))
        return found

    # --- one group

    def _group(self, position: Position, headers: Sequence[Sequence[Any]]) -> Group:
        blocks = _block_records(headers)
        last = blocks[-1]
        seqs = _range(position.is_start, position.seq, _last(blocks, "first_seq", "transfer_count"))
        directives = _range(position.is_start, position.directive, _last(blocks, "first_directive", "directive_count"))
        accounts = _range(position.is_start, position.account, _last(blocks, "first_account", "account_count"))
        after = replace(
            position,
            block=int(last["number"]),
            block_hash=last["hash"].tobytes(),
            seq=seqs[1],
            directive=directives[1],
            account=accounts[1],
        )
        transfers = self.transfers(*seqs)
        group = Group(after, {"blocks": blocks.tobytes()}, len(blocks), len(transfers))
        group.sections["transfers"] = transfers.tobytes()
        self._add_evidence(group, seqs)
        self._add_hold_events(group, seqs)
        self._add_tombstones(group, seqs)
        self._add_accounts(group, accounts)
        self._add_directives(group, directives)
        return group

    def transfers(self, after: int, through: int) -> Records:
        """The rows with after < seq <= through, in seq order."""
        query = sql.SQL(_TRANSFERS).format(sql.Literal(str(after)), sql.Literal(str(through)))
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            data = b"".join(copy)
        body = memoryview(data)[_COPY_HEADER_BYTES : len(data) - len(_COPY_TRAILER)]
        if len(body) % _COPIED.itemsize:
            raise ExportUnreadable(f"transfers from seq {after + 1} on have columns that are empty")
        rows = np.frombuffer(body, _COPIED)
        records = np.zeros(len(rows), layout.TRANSFER)
        for name in layout.TRANSFER.names or ():
            if name != "kind":
                records[name] = rows[name]
        kind = rows["kind"].astype(np.int64)
        records["kind"] = np.where((kind >= 0) & (kind < _KIND_UNPACKABLE), kind, _KIND_UNPACKABLE)
        # an infinite time wraps around, to one that is no block's
        records["booked_at"] = rows["booked_at"].astype(np.int64) + _PG_EPOCH_MICROS
        seq = records["seq"].astype(np.int64)
        if len(seq) > 1 and not bool((seq[1:] > seq[:-1]).all()):
            records = records[np.argsort(seq, kind="stable")]
        return records

    def _add_evidence(self, group: Group, seqs: tuple[int, int]) -> None:
        rows = self._rows(_EVIDENCE, seqs)
        records = np.zeros(len(rows), layout.EVIDENCE)
        for record, (seq, kind, transfer, body) in zip(records, rows, strict=True):
            record["seq"], record["kind"] = seq, _code(kind)
            record["transfer"], record["length"] = transfer, len(body)
        group.sections["evidence"] = records.tobytes()
        group.sections["evidence-bodies"] = b"".join(row[3] for row in rows)

    def _add_hold_events(self, group: Group, seqs: tuple[int, int]) -> None:
        rows = self._rows(_HOLD_EVENTS, seqs)
        records = np.zeros(len(rows), layout.HOLD_EVENT)
        for record, (seq, phase, hold, transfer, kind, commit, abort, expires_at) in zip(records, rows, strict=True):
            record["seq"], record["phase"], record["kind"] = seq, _code(phase), _code(kind)
            record["hold"], record["transfer"] = hold, transfer
            given = 0
            for bit, name, value in (
                (layout.GIVEN_COMMIT, "commit_hash", commit),
                (layout.GIVEN_ABORT, "abort_hash", abort),
            ):
                if value is not None:
                    record[name] = _digest(value, f"the hold event of seq {seq}")
                    given |= bit
            if expires_at is not None:
                record["expires_at"] = to_micros(expires_at)
                given |= layout.GIVEN_EXPIRY
            record["given"] = given
        group.sections["hold-events"] = records.tobytes()

    def _add_tombstones(self, group: Group, seqs: tuple[int, int]) -> None:
        rows = self._rows(_TOMBSTONES, seqs)
        records = np.zeros(len(rows), layout.TOMBSTONE)
        for record, (seq, hold, transfer, guard) in zip(records, rows, strict=True):
            if len(guard) > layout.DIGEST_BYTES:
                raise ExportUnreadable(f"the tombstone of seq {seq} has a guard of {len(guard)} bytes")
            record["seq"], record["hold"], record["transfer"] = seq, hold, transfer
            record["length"], record["guard"] = len(guard), guard.ljust(layout.DIGEST_BYTES, b"\0")
        group.sections["tombstones"] = records.tobytes()

    def _add_accounts(self, group: Group, numbers: tuple[int, int]) -> None:
        rows = self._rows(_ACCOUNTS, numbers)
        records = np.zeros(len(rows), layout.ACCOUNT)
        texts: list[bytes] = []
        for record, (number, opening, kind, participant, name, key, opened_at) in zip(records, rows, strict=True):
            encoded = name.encode()
            record["number"], record["opening"], record["kind"] = number, opening, _code(kind)
            record["participant"], record["opened_at"] = participant, to_micros(opened_at)
            record["class_length"], record["key_length"] = len(encoded), -1 if key is None else len(key)
            texts += [encoded, key or b""]
        group.sections["accounts"] = records.tobytes()
        group.sections["account-texts"] = b"".join(texts)

    def _add_directives(self, group: Group, numbers: tuple[int, int]) -> None:
        rows = self._rows(_DIRECTIVES, numbers)
        records = np.zeros(len(rows), layout.DIRECTIVE)
        texts: list[bytes] = []
        for record, (number, kind, mandate, body, booked_at) in zip(records, rows, strict=True):
            encoded = kind.encode()
            record["number"], record["booked_at"] = number, to_micros(booked_at)
            record["has_mandate"] = mandate is not None
            record["mandate"] = mandate if mandate is not None else bytes(16)
            record["kind_length"], record["body_length"] = len(encoded), len(body)
            texts += [encoded, body]
        group.sections["directives"] = records.tobytes()
        group.sections["directive-texts"] = b"".join(texts)

    def _rows(self, query: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._connection.cursor(binary=True) as cursor:  # binary: uuids and times need no parsing
                return cursor.execute(sql.SQL(query), parameters).fetchall()
        except psycopg.DataError as error:
            raise ExportUnreadable(f"a value that the program cannot have written: {error}") from None


def conninfo(url: str) -> str:
    """A libpq URL; SQLAlchemy's form with a driver is taken too."""
    scheme, separator, rest = url.partition("://")
    return f"postgresql{separator}{rest}" if separator and scheme.startswith("postgres") else url


def _whole_blocks(headers: Sequence[Sequence[Any]], transfers_max: int) -> int:
    """How many of these blocks are read together: at least one."""
    total, taken = 0, 0
    for header in headers:
        total += int(header[4])
        if taken and total > transfers_max:
            break
        taken += 1
    return taken


def _block_records(headers: Sequence[Sequence[Any]]) -> Records:
    records = np.zeros(len(headers), layout.BLOCK)
    names = layout.BLOCK.names or ()
    for record, row in zip(records, headers, strict=True):
        for name, value in zip(names, row, strict=True):
            if isinstance(value, bytes):
                record[name] = _digest(value, f"block {row[0]}")
            else:
                record[name] = to_micros(value) if name == "booked_at" else value
    return records


def _last(blocks: Records, first: str, count: str) -> int:
    """The greatest number that these headers speak of."""
    return max(int(block[first]) + int(block[count]) - 1 for block in blocks)


def _range(is_start: bool, after: int, last: int) -> tuple[int, int]:
    """After the first position everything is read from the very beginning: also what should not be there."""
    through = min(max(after, last), 2**63 - 1)
    return (-(2**63) if is_start else after), through


def _digest(value: bytes, where: str) -> bytes:
    if len(value) != layout.DIGEST_BYTES:
        raise ExportUnreadable(f"{where}: a hash of {len(value)} bytes")
    return value


def _code(value: int) -> int:
    return value if 0 <= value < _KIND_UNPACKABLE else _KIND_UNPACKABLE


_BLOCKS = (
    "SELECT number, epoch, booked_at, first_seq, transfer_count, first_directive, directive_count, first_account,"
    " account_count, issued, redeemed, vaults, wallets, offline, held, transfers_digest, evidence_digest,"
    " directives_digest, accounts_digest, previous_hash, hash FROM block WHERE number > %s ORDER BY number LIMIT %s"
)
_TRANSFERS = (
    "COPY (SELECT id, seq, kind, debit_account, credit_account, amount_minor,"
    " coalesce(hold_id, '00000000-0000-0000-0000-000000000000'::uuid),"
    " coalesce(reference, '00000000-0000-0000-0000-000000000000'::uuid), submitter, booked_at"
    " FROM transfer WHERE seq > {}::bigint AND seq <= {}::bigint) TO STDOUT (FORMAT BINARY)"
)
_EVIDENCE = (
    "SELECT seq, kind, uuid_send(transfer_id), body FROM evidence WHERE seq > %s AND seq <= %s ORDER BY seq, kind"
)
_HOLD_EVENTS = (
    "SELECT seq, phase, uuid_send(hold_id), uuid_send(transfer_id), kind, commit_hash, abort_hash, expires_at"
    " FROM hold_event WHERE seq > %s AND seq <= %s ORDER BY seq, phase, hold_id"
)
_TOMBSTONES = (
    "SELECT seq, uuid_send(hold_id), uuid_send(transfer_id), guard FROM hold_tombstone"
    " WHERE seq > %s AND seq <= %s ORDER BY seq, hold_id"
)
_ACCOUNTS = (
    "SELECT number, uuid_send(opening_id), kind, participant, rule_class, holder_key, opened_at FROM account"
    " WHERE number > %s AND number <= %s ORDER BY number"
)
_DIRECTIVES = (
    "SELECT number, kind, uuid_send(mandate_id), body, booked_at FROM directive"
    " WHERE number > %s AND number <= %s ORDER BY number"
)

"""Read models over the journal, for the API. Each query names an id, an account with a seq range, or a block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
import numpy.typing as npt
import psycopg
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.dialects.postgresql import distinct_on

from kernel.arrays import is_one_of
from ledger.domain.blocks import BlockHeader
from ledger.store.copying import PackedLayout
from ledger.store.history import Entry
from ledger.store.journal import BLOCK_COLUMNS, BlockMismatch, header_of
from ledger.store.tables import block, evidence, hold_event, hold_tombstone, transfer


@dataclass(frozen=True, slots=True)
class BookedTransfer:
    id: UUID
    seq: int
    kind: int
    debit: int
    credit: int
    amount: int
    hold: UUID | None
    reference: UUID | None
    submitter: int
    booked_at: datetime


class HoldRecord(NamedTuple):
    """A hold as placed and ended, or (`is_tombstoned`) an id that is kept out by a tombstone; `debit` to `submitter`
    are 0 of the latter. Of `ended_kind` None the hold stands."""

    hold: UUID
    debit: int
    credit: int
    amount: int
    submitter: int
    commit_hash: bytes | None
    abort_hash: bytes | None
    expires_at: datetime | None
    ended_kind: int | None
    ended_by: UUID | None
    secret: bytes | None
    is_tombstoned: bool


_TRANSFERS = (
    "SELECT id, seq, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter, booked_at"
    " FROM transfer WHERE id = ANY(%s::uuid[])"
)
_TRANSFERS_AT = (
    "SELECT id, seq, kind, debit_account, credit_account, amount_minor, hold_id, reference, submitter, booked_at"
    " FROM transfer WHERE seq = ANY(%s::bigint[]) ORDER BY seq"
)
_TRANSFER = sa.select(  # in the order of BookedTransfer
    transfer.c.id,
    transfer.c.seq,
    transfer.c.kind,
    transfer.c.debit_account.label("debit"),
    transfer.c.credit_account.label("credit"),
    transfer.c.amount_minor.label("amount"),
    transfer.c.hold_id.label("hold"),
    transfer.c.reference,
    transfer.c.submitter,
    transfer.c.booked_at,
)


def find_transfer(connection: sa.Connection, transfer_id: UUID) -> BookedTransfer | None:
    row = connection.execute(_TRANSFER.where(transfer.c.id == transfer_id)).first()
    return BookedTransfer(**row._mapping) if row is not None else None


def kept_instructions(connection: sa.Connection, transfer_ids: Sequence[UUID]) -> Sequence[Any]:
    """(id, seq, booked_at, token) of booked transfers that came as signed instructions."""
    query = (
        sa.select(transfer.c.id, transfer.c.seq, transfer.c.booked_at, evidence.c.body.label("token"))
        .join(evidence, sa.and_(evidence.c.transfer_id == transfer.c.id, evidence.c.kind == 1))
        .where(transfer.c.id.in_(transfer_ids))
    )
    return connection.execute(query).all()


_PLACED, _ENDED, _SECRET = hold_event.alias("placed"), hold_event.alias("ended"), evidence.alias("secret")
_HOLDS = (  # in the order of HoldRecord
    sa.select(
        _PLACED.c.hold_id,
        transfer.c.debit_account,
        transfer.c.credit_account,
        transfer.c.amount_minor,
        transfer.c.submitter,
        _PLACED.c.commit_hash,
        _PLACED.c.abort_hash,
        _PLACED.c.expires_at,
        _ENDED.c.kind,
        _ENDED.c.transfer_id,
        _SECRET.c.body,
        sa.literal_column("false"),
    )
    .join_from(_PLACED, transfer, transfer.c.id == _PLACED.c.hold_id)
    .outerjoin(_ENDED, sa.and_(_ENDED.c.hold_id == _PLACED.c.hold_id, _ENDED.c.phase == 1))
    .outerjoin(_SECRET, sa.and_(_SECRET.c.transfer_id == _ENDED.c.transfer_id, _SECRET.c.kind == 2))
    .where(_PLACED.c.phase == 0)
)


def find_holds(connection: sa.Connection, hold_ids: Sequence[UUID]) -> dict[UUID, HoldRecord]:
    """Holds with their terms and ends; also ids that only have a tombstone. An id that is neither is left out."""
    rows = connection.execute(_HOLDS.where(is_one_of(_PLACED.c.hold_id, hold_ids)))
    found = {row[0]: HoldRecord._make(row) for row in rows}
    others = [hold_id for hold_id in hold_ids if hold_id not in found]
    if others:
        # One tombstone of each: anybody may leave many under one id.
        statement = (
            sa.select(hold_tombstone.c.hold_id, hold_tombstone.c.transfer_id, evidence.c.body)
            .outerjoin(evidence, sa.and_(evidence.c.transfer_id == hold_tombstone.c.transfer_id, evidence.c.kind == 2))
            .where(is_one_of(hold_tombstone.c.hold_id, others))
            .ext(distinct_on(hold_tombstone.c.hold_id))
            .order_by(hold_tombstone.c.hold_id, hold_tombstone.c.guard)
        )
        for hold_id, ended_by, secret in connection.execute(statement):
            found[hold_id] = HoldRecord(hold_id, 0, 0, 0, 0, None, None, None, None, ended_by, secret, True)
    return found


def find_transfers(connection: psycopg.Connection[Any], entries: Sequence[Entry]) -> list[BookedTransfer]:
    """The transfers that a history names, in its order. Raises BlockMismatch if the journal has one no more."""
    wanted = "{" + ",".join([str(entry.id) for entry in entries]) + "}"
    found = {row[0]: BookedTransfer(*row) for row in connection.execute(_TRANSFERS, (wanted,), prepare=True)}
    missing = next((entry for entry in entries if entry.id not in found), None)
    if missing is not None:
        raise BlockMismatch(f"seq {missing.seq} is in the history of an account and not in the journal")
    return [found[entry.id] for entry in entries]


_BOOKED = PackedLayout(
    [
        ("seq", "int8", "seq"),
        ("debit", "int8", "debit_account"),
        ("credit", "int8", "credit_account"),
    ]
)


def seqs_of_owner(
    connection: psycopg.Connection[Any], owners: npt.NDArray[np.int32], owner: int, *, first_seq: int, last_seq: int
) -> list[int]:
    """Seqs, in order, of the booked transfers of a range that debit or credit an account of `owner`; `owners` has the
    participant of each account, by its number."""
    with connection.cursor() as cursor:
        source = sql.SQL("transfer WHERE seq BETWEEN {} AND {}").format(first_seq, last_seq)
        rows = _BOOKED.read(cursor, source)
    if len(rows) != last_seq - first_seq + 1:
        raise BlockMismatch(f"seq {first_seq}..{last_seq}: {len(rows)} transfers found")
    is_theirs = (owners[rows["debit"]] == owner) | (owners[rows["credit"]] == owner)
    return sorted(rows["seq"][is_theirs].tolist())


def transfers_at(connection: psycopg.Connection[Any], seqs: Sequence[int]) -> list[BookedTransfer]:
    """In order of seq."""
    rows = connection.execute(_TRANSFERS_AT, (list(seqs),), prepare=True)
    return [BookedTransfer(*row) for row in rows]


def find_block(connection: sa.Connection, number: int) -> BlockHeader | None:
    row = connection.execute(
        sa.select(*(block.c[name] for name in BLOCK_COLUMNS.split(", "))).where(block.c.number == number)
    ).first()
    return header_of(row) if row is not None else None

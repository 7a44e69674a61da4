"""The relay's rows: what is kept of islands, and what of a settlement a proof needs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import new_uuid7
from settlement.relay.evm import Header, read_header
from settlement.relay.keeping import Alarm, AlarmKind, Kept
from settlement.store import tables as t
from settlement.store.relay_tables import relay_alarm, relay_checkpoint, relay_header


@dataclass(frozen=True, slots=True)
class AlarmRow:
    id: UUID
    ledger: str
    kind: AlarmKind
    detail: str
    first: bytes
    second: bytes
    raised_at: datetime


@dataclass(frozen=True, slots=True)
class ProofTerms:
    """What a settlement's legs were signed and held under."""

    commit_hash: bytes
    abort_hash: bytes
    abort_secret: bytes | None
    """Of a settlement that was decided to be aborted: published by that."""
    authorisations: dict[int, str]
    """By the leg's number."""


# --- checkpoints


def last_checkpoint(connection: sa.Connection, ledger: str) -> Kept | None:
    c = relay_checkpoint.c
    return _kept(connection, sa.select(relay_checkpoint).where(c.ledger == ledger).order_by(c.size.desc()).limit(1))


def nearest_checkpoint(connection: sa.Connection, ledger: str, size: int) -> Kept | None:
    """The kept one of this size, else the next larger, else the next smaller."""
    c = relay_checkpoint.c
    mine = sa.select(relay_checkpoint).where(c.ledger == ledger)
    return _kept(connection, mine.where(c.size >= size).order_by(c.size).limit(1)) or last_checkpoint(
        connection, ledger
    )


def count_checkpoints(connection: sa.Connection, ledger: str) -> int:
    wanted = sa.select(sa.func.count()).select_from(relay_checkpoint).where(relay_checkpoint.c.ledger == ledger)
    return int(connection.execute(wanted).scalar_one())


def keep_checkpoint(connection: sa.Connection, ledger: str, kept: Kept, *, now: datetime) -> bool:
    """False if one of this size is kept already, whatever its root."""
    statement = insert(relay_checkpoint).values(
        ledger=ledger, size=kept.size, root=kept.root, note=kept.note, kept_at=now
    )
    return connection.execute(statement.on_conflict_do_nothing()).rowcount == 1


def _kept(connection: sa.Connection, wanted: sa.Select[tuple[object, ...]]) -> Kept | None:
    row = connection.execute(wanted).one_or_none()
    return None if row is None else Kept(row.size, bytes(row.root), row.note)


# --- headers


def first_header(connection: sa.Connection, ledger: str) -> Header | None:
    return _one(connection, relay_header.c.ledger == ledger, relay_header.c.number)


def last_header(connection: sa.Connection, ledger: str) -> Header | None:
    return _one(connection, relay_header.c.ledger == ledger, relay_header.c.number.desc())


def first_header_since(connection: sa.Connection, ledger: str, timestamp: int) -> Header | None:
    c = relay_header.c
    return _one(connection, (c.ledger == ledger) & (c.timestamp >= timestamp), c.number)


def headers_between(connection: sa.Connection, ledger: str, first: int, last: int) -> list[Header]:
    c = relay_header.c
    wanted = sa.select(c.rlp).where(c.ledger == ledger, c.number.between(first, last)).order_by(c.number)
    return [read_header(bytes(raw)) for raw in connection.execute(wanted).scalars()]


def keep_headers(
    connection: sa.Connection, ledger: str, headers: Sequence[Header], *, is_first: bool, now: datetime
) -> None:
    """Raises sqlalchemy.exc.IntegrityError for a header whose parent is not kept."""
    rows = [
        {
            "ledger": ledger,
            "number": header.number,
            "hash": header.hash,
            "parent_number": None if is_first else header.number - 1,
            "parent_hash": None if is_first else header.parent,
            "timestamp": header.timestamp,
            "rlp": header.raw,
            "kept_at": now,
        }
        for header in headers
    ]
    if rows:
        connection.execute(insert(relay_header).on_conflict_do_nothing(), rows)


def _one(connection: sa.Connection, where: sa.ColumnElement[bool], order: sa.ColumnElement[object]) -> Header | None:
    wanted = sa.select(relay_header.c.rlp).where(where).order_by(order).limit(1)
    raw = connection.execute(wanted).scalar_one_or_none()
    return None if raw is None else read_header(bytes(raw))


# --- alarms


def raise_alarm(connection: sa.Connection, ledger: str, alarm: Alarm, *, now: datetime) -> bool:
    """False if this evidence is there already."""
    pair = sorted((hashlib.sha256(alarm.first).digest(), hashlib.sha256(alarm.second).digest()))
    statement = insert(relay_alarm).values(
        id=new_uuid7(),
        ledger=ledger,
        kind=alarm.kind.value,
        detail=alarm.detail,
        first=alarm.first,
        second=alarm.second,
        evidence_sha256=hashlib.sha256(alarm.kind.value.encode() + b"".join(pair)).digest(),
        raised_at=now,
    )
    return connection.execute(statement.on_conflict_do_nothing()).rowcount == 1


def alarms(connection: sa.Connection, *, limit: int) -> list[AlarmRow]:
    """The newest first."""
    wanted = sa.select(relay_alarm).order_by(relay_alarm.c.raised_at.desc(), relay_alarm.c.id.desc()).limit(limit)
    return [
        AlarmRow(
            row.id, row.ledger, AlarmKind(row.kind), row.detail, bytes(row.first), bytes(row.second), row.raised_at
        )
        for row in connection.execute(wanted)
    ]


# --- settlements


def proof_terms(connection: sa.Connection, settlement: UUID) -> ProofTerms | None:
    """None of a settlement that was never prepared: nobody holds anything for it."""
    s = t.settlement.c
    row = connection.execute(
        sa.select(s.commit_hash, s.abort_hash, t.secret.c.abort_secret)
        .join(t.decision, (t.decision.c.settlement_id == s.id) & (t.decision.c.decision == "abort"), isouter=True)
        .join(
            t.secret,
            (t.secret.c.settlement_id == t.decision.c.settlement_id),
            isouter=True,
        )
        .where(s.id == settlement, s.commit_hash.is_not(None))
    ).one_or_none()
    if row is None:
        return None
    legs = connection.execute(
        sa.select(t.leg.c.number, t.leg.c.authorisation).where(
            t.leg.c.settlement_id == settlement, t.leg.c.authorisation.is_not(None)
        )
    )
    return ProofTerms(
        bytes(row.commit_hash),
        bytes(row.abort_hash),
        None if row.abort_secret is None else bytes(row.abort_secret),
        {row.number: row.authorisation for row in legs},
    )

"""Reading the log: identity, checkpoints, tiles, cosignatures. For the API, for the sealer's start, for witnesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from kernel.transparency.merkle import HASH_BYTES
from kernel.transparency.tiles import TILE_WIDTH, ReadTile, entries
from ledger.log.tables import log_checkpoint, log_cosignature, log_identity, log_tile

COSIGNATURES_LOOKED_AT = 10_000
"""For the newest checkpoint of a quorum: some ten minutes of sixteen witnesses. Older ones are no better."""


@dataclass(frozen=True, slots=True)
class Identity:
    origin: str
    vkey: str
    salt_check: bytes


@dataclass(frozen=True, slots=True)
class SealedCheckpoint:
    """A row of `log_checkpoint` without its tail."""

    block: int
    size: int
    root: bytes
    block_commitment: bytes
    supply: bytes
    note: str
    sealed_at: datetime


_CHECKPOINT = sa.select(*(log_checkpoint.c[name] for name in SealedCheckpoint.__slots__))


def find_identity(connection: sa.Connection) -> Identity | None:
    row = connection.execute(sa.select(log_identity)).first()
    return Identity(row.origin, row.vkey, row.salt_check) if row is not None else None


def latest_checkpoint(connection: sa.Connection) -> SealedCheckpoint | None:
    row = connection.execute(_CHECKPOINT.order_by(log_checkpoint.c.block.desc()).limit(1)).first()
    return SealedCheckpoint(**row._mapping) if row is not None else None


def find_checkpoint(connection: sa.Connection, size: int) -> SealedCheckpoint | None:
    """The newest of a size: of a tree that stood still while blocks without transfers came, the last word."""
    of_size = _CHECKPOINT.where(log_checkpoint.c.size == size)
    row = connection.execute(of_size.order_by(log_checkpoint.c.block.desc()).limit(1)).first()
    return SealedCheckpoint(**row._mapping) if row is not None else None


def checkpoints_page(connection: sa.Connection, *, before: int | None, limit: int) -> list[SealedCheckpoint]:
    """The newest first, from below the block `before`."""
    query = _CHECKPOINT.order_by(log_checkpoint.c.block.desc()).limit(limit)
    if before is not None:
        query = query.where(log_checkpoint.c.block < before)
    return [SealedCheckpoint(**row._mapping) for row in connection.execute(query)]


def best_checkpoint(connection: sa.Connection, *, seq: int, quorum: int) -> SealedCheckpoint | None:
    """The newest checkpoint that covers `seq` and that at least `quorum` witnesses have cosigned."""
    query = _CHECKPOINT.order_by(log_checkpoint.c.block.desc()).limit(1)
    if quorum > 0:
        newest = (
            sa.select(log_cosignature.c.block)
            .order_by(log_cosignature.c.block.desc())
            .limit(COSIGNATURES_LOOKED_AT)
            .subquery()
        )
        cosigned = (
            sa.select(newest.c.block)
            .group_by(newest.c.block)
            .having(sa.func.count() >= quorum)
            .order_by(newest.c.block.desc())
            .limit(1)
        )
        query = query.where(log_checkpoint.c.block == cosigned.scalar_subquery())
    row = connection.execute(query).first()
    return SealedCheckpoint(**row._mapping) if row is not None and row.size >= seq else None


def cosigned_notes(connection: sa.Connection, checkpoints: Sequence[SealedCheckpoint]) -> list[str]:
    """Each checkpoint's note with all cosignatures that have come in, by witness."""
    query = (
        sa.select(log_cosignature.c.block, log_cosignature.c.line)
        .where(log_cosignature.c.block.in_([item.block for item in checkpoints]))
        .order_by(log_cosignature.c.witness)
    )
    lines: dict[int, str] = {}
    for block, line in connection.execute(query):
        lines[block] = lines.get(block, "") + line
    return [item.note + lines.get(item.block, "") for item in checkpoints]


def last_cosigned(connection: sa.Connection, witness: str) -> int:
    """The largest size that a witness (its vkey) has cosigned, as far as we know; 0 if none."""
    block = sa.select(sa.func.max(log_cosignature.c.block)).where(log_cosignature.c.witness == witness)
    query = sa.select(log_checkpoint.c.size).where(log_checkpoint.c.block == block.scalar_subquery())
    return int(connection.execute(query).scalar() or 0)


def tile_reader(connection: sa.Connection) -> ReadTile:
    """Tiles from the tables, full or partial, of any size up to the last checkpoint's."""

    def read(level: int, index: int, width: int) -> bytes:
        found = _read_tile(connection, level, index, width)
        if len(found) < width * HASH_BYTES:
            raise LookupError(f"tile {level}/{index} is not so wide yet")
        return found[: width * HASH_BYTES]

    return read


def _read_tile(connection: sa.Connection, level: int, index: int, width: int) -> bytes:
    if width == TILE_WIDTH:
        query = sa.select(log_tile.c.hashes).where(log_tile.c.level == level, log_tile.c.index == index)
        return bytes(connection.execute(query).scalar() or b"")
    first = index * TILE_WIDTH
    if level > 0:
        below = sa.select(log_tile.c.root).where(
            log_tile.c.level == level - 1, log_tile.c.index >= first, log_tile.c.index < first + width
        )
        rows: Sequence[Any] = connection.execute(below.order_by(log_tile.c.index)).scalars().all()
        return b"".join(rows)
    full = sa.select(log_tile.c.hashes).where(log_tile.c.level == 0, log_tile.c.index == index)
    hashes = connection.execute(full).scalar()
    if hashes is not None:
        return bytes(hashes)
    # No tile yet: what the checkpoints have brought into it. At most 255 of them grew within it (there is an index).
    tails = sa.select(log_checkpoint.c.tail).where(
        log_checkpoint.c.size > first,
        log_checkpoint.c.size < first + TILE_WIDTH,
        log_checkpoint.c.size > log_checkpoint.c.previous_size,
    )
    return b"".join(connection.execute(tails.order_by(log_checkpoint.c.size)).scalars())


def right_edge(connection: sa.Connection, size: int) -> list[bytes]:
    """For each level the hashes of the partial tile of a tree of `size` leaves: what a growing tree goes on from."""
    read, level, edge = tile_reader(connection), 0, []
    while entries(size, level):
        index, width = divmod(entries(size, level), TILE_WIDTH)
        edge.append(read(level, index, width) if width else b"")
        level += 1
    return edge

"""A Merkle tree cut into tiles as C2SP tlog-tiles has it: height 8, so 256 hashes of 32 bytes in a full tile.

Tile `index` of level `l` holds the hashes number 256*index to 256*index+255 among those of the complete subtrees of
256**l leaves. So a full tile's root is one hash of the level above, and a tile never changes once it is full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from kernel.crypto.hashes import sha256_rows
from kernel.transparency.merkle import EMPTY_ROOT, HASH_BYTES, SIZE_MAX, node_hash, root_of

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
TILE_BYTES = TILE_WIDTH * HASH_BYTES
LEVEL_MAX = 7
"""Levels 0 to 7 hold every tree of up to SIZE_MAX leaves."""

_PATH = re.compile(r"(?:x[0-9]{3}/){0,6}[0-9]{3}", re.ASCII)
_WIDTH = re.compile(r"[1-9][0-9]{0,2}", re.ASCII)


@dataclass(frozen=True, slots=True)
class FullTile:
    level: int
    index: int
    hashes: bytes
    """256 hashes, 8,192 bytes."""
    root: bytes


class ReadTile(Protocol):
    """Returns the first `width` hashes of a tile, 32 bytes each. Raises LookupError where there are fewer."""

    def __call__(self, level: int, index: int, width: int) -> bytes: ...


def entries(size: int, level: int) -> int:
    """How many hashes a tree of `size` leaves has at a tile level: its complete subtrees of 256**level leaves."""
    return size >> (TILE_HEIGHT * level)


def split_hashes(data: bytes) -> list[bytes]:
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


# --- paths -----------------------------------------------------------------------------------------------------------


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """`<L>/<N>[.p/<W>]`, e.g. `0/x001/x234/067.p/8`."""
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    return f"{level}/{'/'.join(groups)}" + (f".p/{width}" if width < TILE_WIDTH else "")


def parse_tile_index(text: str) -> tuple[int, int]:
    """(index, width) of `<N>[.p/<W>]`. Raises ValueError for anything that `tile_path` would not write."""
    number, partial, suffix = text.partition(".p/")
    if _PATH.fullmatch(number) is None or (partial and _WIDTH.fullmatch(suffix) is None):
        raise ValueError("a tile's address is groups of three digits, all but the last with an x, and .p/<width>")
    index = int(number.replace("x", "").replace("/", ""))
    width = int(suffix) if partial else TILE_WIDTH
    if tile_path(0, index, width) != f"0/{text}" or index > SIZE_MAX >> TILE_HEIGHT:
        raise ValueError("a tile's address has no needless zeros and a width of 1 to 255")
    return index, width


# --- growing ---------------------------------------------------------------------------------------------------------


class GrowingTree:
    """The right edge of a tree: takes leaf hashes, gives away full tiles. 8 KiB a level, whatever the size."""

    def __init__(self, size: int = 0, partial: Sequence[bytes] = ()) -> None:
        """`partial`: for each level from 0 the hashes of its last, partial tile. Raises ValueError if they are not as
        many as a tree of this size has."""
        self.size = size
        self._partial = [bytes(item) for item in partial] + [b""] * (LEVEL_MAX + 1 - len(partial))
        for level, hashes in enumerate(self._partial):
            if len(hashes) != entries(size, level) % TILE_WIDTH * HASH_BYTES:
                raise ValueError(f"level {level} of a tree of {size} leaves has another number of hashes")

    def append(self, hashes: bytes) -> list[FullTile]:
        """Append leaves by their hashes, concatenated. Returns the tiles that became full, of all levels."""
        made: list[FullTile] = []
        level, size = 0, self.size
        self.size += len(hashes) // HASH_BYTES
        while hashes:
            index = entries(size, level) // TILE_WIDTH
            pending = self._partial[level] + hashes
            cut = len(pending) // TILE_BYTES * TILE_BYTES
            self._partial[level] = pending[cut:]
            hashes = tile_roots(pending[:cut])
            for number in range(cut // TILE_BYTES):
                tile = pending[number * TILE_BYTES : (number + 1) * TILE_BYTES]
                root = hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]
                made.append(FullTile(level, index + number, tile, root))
            level += 1
        return made

    def partial(self, level: int) -> bytes:
        """The hashes of the level's last, partial tile."""
        return self._partial[level]

    def root(self) -> bytes:
        rest: list[bytes] = []
        for hashes in self._partial:
            items = split_hashes(hashes) + rest
            rest = [root_of(items)] if items else []
        return rest[0] if rest else EMPTY_ROOT


def tile_roots(hashes: bytes) -> bytes:
    """The roots of full tiles, concatenated. About 0.1 us a hash."""
    for _ in range(TILE_HEIGHT):
        pairs = np.frombuffer(hashes, np.uint8).reshape(-1, 2 * HASH_BYTES)
        nodes = np.empty((len(pairs), 1 + 2 * HASH_BYTES), np.uint8)
        nodes[:, 0] = 1
        nodes[:, 1:] = pairs
        hashes = sha256_rows(nodes).tobytes()
    return hashes


# --- proving ---------------------------------------------------------------------------------------------------------


class TiledTree:
    """A tree of a known size whose tiles can be read: its root and every proof. Reads each tile once."""

    def __init__(self, size: int, read: ReadTile) -> None:
        if not 0 <= size <= SIZE_MAX:
            raise ValueError("no such tree size")
        self.size = size
        self._read = read
        self._tiles: dict[tuple[int, int], bytes] = {}

    def root(self) -> bytes:
        return self._hash(0, self.size) if self.size else EMPTY_ROOT

    def leaf(self, index: int) -> bytes:
        """The hash of a leaf."""
        if not 0 <= index < self.size:
            raise ValueError("there is no such leaf")
        return self._hash(index, index + 1)

    def inclusion_proof(self, index: int) -> list[bytes]:
        """PATH of RFC 6962 section 2.1.1, from the leaf upwards."""
        if not 0 <= index < self.size:
            raise ValueError("there is no such leaf")
        start, end, proof = 0, self.size, []
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                proof.append(self._hash(middle, end))
                end = middle
            else:
                proof.append(self._hash(start, middle))
                start = middle
        return proof[::-1]

    def consistency_proof(self, old_size: int) -> list[bytes]:
        """PROOF of RFC 6962 section 2.1.2; empty for the empty and for the same tree."""
        if not 0 <= old_size <= self.size:
            raise ValueError("the older tree is not smaller")
        if old_size == 0:
            return []
        start, end, proof, is_whole = 0, self.size, [], True
        while end > old_size:
            middle = start + _split(end - start)
            if old_size <= middle:
                proof.append(self._hash(middle, end))
                end = middle
            else:
                proof.append(self._hash(start, middle))
                start, is_whole = middle, False
        if not is_whole:
            proof.append(self._hash(start, end))
        return proof[::-1]

    def _hash(self, start: int, end: int) -> bytes:
        """MTH(D[start:end]) of a range that the RFC's splits produce: complete, or at the right edge."""
        count = end - start
        if count & (count - 1) == 0:
            return self._complete(count.bit_length() - 1, start)
        middle = start + _split(count)
        return node_hash(self._hash(start, middle), self._hash(middle, end))

    def _complete(self, height: int, start: int) -> bytes:
        """The complete subtree of 2**height leaves from `start`, from one tile."""
        level, inner = divmod(height, TILE_HEIGHT)
        first = start >> (TILE_HEIGHT * level)
        index, offset = divmod(first, TILE_WIDTH)
        tile = self._tiles.get((level, index))
        if tile is None:
            width = min(TILE_WIDTH, entries(self.size, level) - index * TILE_WIDTH)
            tile = self._tiles[level, index] = self._read(level, index, width)
            if len(tile) != width * HASH_BYTES:
                raise LookupError(f"tile {tile_path(level, index, width)} has another length")
        return root_of(split_hashes(tile[offset * HASH_BYTES : (offset + (1 << inner)) * HASH_BYTES]))


def _split(count: int) -> int:
    """The largest power of two smaller than `count`."""
    return 1 << ((count - 1).bit_length() - 1)

"""Which lines of two sides share an id, for millions of lines: hashed and sorted, without a dictionary of texts.

Each id becomes one integer, a hash of its text above its line's number; sorting these brings the lines of one id
together. A hash decides nothing in favour of a pair: lines that meet by chance are CROWDED, or a pair that is no pair
until its texts are compared (`are_equal`). Either way they are left to the specification, which knows no hashes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

Positions = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
_Hashes = np.ndarray[Any, np.dtype[np.uint64]]

NONE, ALONE, CROWDED = -1, -2, -3
"""In place of a mate: the line has no id; nobody else has it; more than one other line may have it."""

BLOCK_LINES = 32_768
"""What is in between stays in the processor's cache, and its memory is had again for the next block."""
_WORD = 8
_ODD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)


@dataclass(frozen=True, slots=True)
class Mates:
    """Of each line the one line of the other side with its id (0 or more), or NONE, ALONE, CROWDED. Two lines of one
    side with an id are CROWDED. `texts_*` are the ids."""

    texts_ours: pa.StringArray
    texts_theirs: pa.StringArray
    ours: Positions
    theirs: Positions

    def are_equal(self, ours: Positions, theirs: Positions) -> Mask:
        """Whether the ids of these lines, none of them null, are the same texts."""
        a, b = self.texts_ours.take(pa.array(ours)), self.texts_theirs.take(pa.array(theirs))
        found: Mask = pc.equal(a, b).to_numpy(zero_copy_only=False)
        return found


def find_mates(ours: pa.StringArray, theirs: pa.StringArray, *, likely: Positions | None = None) -> Mates:
    """Lines that share an id; a null is no id.

    `likely` says nothing about the result, only where to look first: of each of our lines a line of theirs, no line
    twice, or a negative number. Two that have one hash are sorted as one.
    """
    count = len(ours) + len(theirs)
    with ThreadPoolExecutor(2) as pool:
        keys = np.concatenate(list(pool.map(_hashes, (ours, theirs))))
    is_sorted = np.concatenate([texts.is_valid().to_numpy(zero_copy_only=False) for texts in (ours, theirs)])
    partner = np.full(len(ours), NONE, np.int64)
    if likely is not None:
        a = np.flatnonzero((likely >= 0) & is_sorted[: len(ours)])
        b = len(ours) + likely[a]
        is_one = (keys[a] == keys[b]) & is_sorted[b]
        a, b = a[is_one], b[is_one]
        partner[a] = b
        is_sorted[b] = False
    bits = np.uint64(max(1, count.bit_length()))
    keys <<= bits
    keys |= np.arange(count, dtype=np.uint64)
    if not is_sorted.all():
        keys = keys[is_sorted]
    keys = _sorted(keys)
    places = (keys & ((np.uint64(1) << bits) - np.uint64(1))).view(np.int64)
    keys >>= bits
    is_first = np.ones(len(keys) + 1, bool)
    np.not_equal(keys[1:], keys[:-1], out=is_first[1:-1])
    is_last = is_first[1:]
    mates = np.full(count, NONE, np.int64)
    mates[places] = CROWDED
    mates[places[is_first[:-1] & is_last]] = ALONE
    # Groups of two: the first of a group, and its next line the last.
    two = np.flatnonzero(is_first[:-2] & ~is_last[:-1] & is_last[1:])
    a, b = places[two], places[two + 1]  # in ascending order, so ours before theirs
    across = (a < len(ours)) & (b >= len(ours))
    a, b = a[across], b[across]
    across = partner[a] == NONE
    a, b = a[across], b[across]
    mates[a] = b - len(ours)
    mates[b] = a
    # Those sorted as one: alone together, or both in a crowd.
    a = np.flatnonzero(partner >= 0)
    b = partner[a]
    is_alone = mates[a] == ALONE
    mates[a] = np.where(is_alone, b - len(ours), CROWDED)
    mates[b] = np.where(is_alone, a, CROWDED)
    return Mates(ours, theirs, mates[: len(ours)], mates[len(ours) :])


def _sorted(keys: _Hashes) -> _Hashes:
    """In two threads, the lower half of all numbers and the upper."""
    is_upper = keys >= np.uint64(1 << 63)
    halves = [keys[~is_upper], keys[is_upper]]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(np.ndarray.sort, halves))
    return np.concatenate(halves, out=keys)


def _hashes(texts: pa.StringArray) -> _Hashes:
    """A hash of each text; the same on every machine."""
    found = np.empty(len(texts), np.uint64)
    for start in range(0, len(texts), BLOCK_LINES):
        found[start : start + BLOCK_LINES] = _block_hashes(texts.slice(start, BLOCK_LINES))
    return found


def _block_hashes(texts: pa.StringArray) -> _Hashes:
    """By multiplying in the bytes eight at a time."""
    _, offsets_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offsets_buffer, "<i4")[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    starts, lengths = offsets[:-1], np.diff(offsets)
    found = lengths.astype(np.uint64)
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest >= _WORD:
        data = np.frombuffer(data_buffer, np.uint8)
        # Every run of eight bytes as a number; they overlap and stand at any place.
        words = np.ndarray((len(data) - _WORD + 1,), "<u8", buffer=data, strides=(1,))
        for at in range(0, longest - _WORD + 1, _WORD):
            _stir(found, words, starts + at, None if shortest >= at + _WORD else lengths >= at + _WORD)
        # What is left over, as the text's last eight bytes.
        _stir(found, words, offsets[1:] - _WORD, None if shortest >= _WORD else lengths >= _WORD)
    if shortest < _WORD and longest:
        data = np.frombuffer(data_buffer, np.uint8)
        for at in range(min(longest, _WORD - 1)):
            _stir(found, data, starts + at, (lengths > at) & (lengths < _WORD))
    found ^= found >> _HALF
    found *= _ODD
    return found ^ (found >> _HALF)


def _stir(found: _Hashes, values: np.ndarray[Any, Any], places: Positions, mask: Mask | None) -> None:
    """Multiply values at places into the hashes; where the mask says so, if there is one."""
    if mask is None:
        found ^= values[places]
        found *= _ODD
        found ^= found >> _HALF
        return
    some = np.flatnonzero(mask)
    part = found[some] ^ values[places[some]].astype(np.uint64)
    part *= _ODD
    found[some] = part ^ (part >> _HALF)

"""I7 over a whole journal, in bounded memory: does any transfer id occur twice?

Each id is mixed to 64 bits; the mixes of a segment are sorted and kept in a file of 8 bytes each. At the end slices of
all files with the same leading bits are sorted together: equal mixes stand side by side. Two ids may share a mix by
chance or by an attacker's work, so equal mixes are only suspects: their ids are read again and compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ledger.export.layout import Records
from ledger.verifier.source import Source, records

PARTITION_IDS = 8_000_000
"""64 MB sorted at a time."""
SUSPECTS_MAX = 100_000
_MIXED = 16_384
"""At a time: what lies between stays in the processor's cache."""

Mixes = npt.NDArray[np.uint64]


def mixes_of(transfers: Records) -> Mixes:
    """A 64-bit mix of each id, well spread over its leading bits. Multiplication wraps, as it should."""
    found: Mixes = np.empty(len(transfers), np.uint64)
    for start in range(0, len(transfers), _MIXED):
        part = transfers[start : start + _MIXED]
        high, low = part["id_high"].astype(np.uint64), part["id_low"].astype(np.uint64)
        mixed = (high * np.uint64(0x9E3779B97F4A7C15)) ^ (low * np.uint64(0xC2B2AE3D27D4EB4F))
        mixed ^= mixed >> np.uint64(29)
        found[start : start + _MIXED] = mixed * np.uint64(0xBF58476D1CE4E5B9)
    return found


def sorted_mixes(source: Source, segment: int) -> Mixes:
    found = mixes_of(records(source, segment, "transfers"))
    found.sort()
    return found


def spill(source: Source, segment: int, path: Path) -> None:
    """To a file of native 64-bit integers."""
    sorted_mixes(source, segment).tofile(path)


def mapped(path: Path) -> Mixes:
    if not path.stat().st_size:
        return np.zeros(0, np.uint64)
    return np.memmap(path, np.uint64, "r")


def find_twice(source: Source, kept: Sequence[Mixes]) -> list[tuple[int, int, bytes]]:
    """(seq, seq of the first, id) of transfers whose id was booked before, by seq. `kept` are sorted, by segment."""
    suspects = np.unique(np.concatenate([np.zeros(0, np.uint64), *_equal(kept)]))[:SUSPECTS_MAX]
    if not len(suspects):
        return []
    found: list[tuple[int, int, int]] = []
    for segment in range(len(kept)):
        transfers = records(source, segment, "transfers")
        for row in transfers[np.isin(mixes_of(transfers), suspects)]:
            found.append((int(row["id_high"]), int(row["id_low"]), int(row["seq"])))
    first: dict[tuple[int, int], int] = {}
    twice = []
    for high, low, seq in sorted(found, key=lambda item: item[2]):
        if (high, low) in first:
            twice.append((high, low, seq))
        else:
            first[high, low] = seq
    return [(seq, first[high, low], high.to_bytes(8, "big") + low.to_bytes(8, "big")) for high, low, seq in twice]


def _equal(kept: Sequence[Mixes]) -> Iterator[Mixes]:
    """Mixes that occur more than once, partition by partition."""
    total = sum(len(mixes) for mixes in kept)
    partitions = max(1, -(-total // PARTITION_IDS))
    bounds = [(2**64 // partitions) * part for part in range(partitions)]
    edges = [[*np.searchsorted(mixes, np.array(bounds, np.uint64)).tolist(), len(mixes)] for mixes in kept]
    for part in range(partitions):
        slices = [mixes[edge[part] : edge[part + 1]] for mixes, edge in zip(kept, edges, strict=True)]
        together = np.concatenate([np.zeros(0, np.uint64), *slices])
        together.sort(kind="stable")  # merges runs that are sorted already, several times as fast
        yield together[1:][together[1:] == together[:-1]]

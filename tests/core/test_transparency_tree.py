"""Goal: the tree is RFC 6962's, its tiles are C2SP's, every honest proof verifies and no forged one does.

Method: a naive recursive reference straight from the RFC's definitions; Certificate Transparency's own test vectors;
Hypothesis over sizes, batches and forgeries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.transparency.merkle import (
    EMPTY_ROOT,
    leaf_hash,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from kernel.transparency.tiles import (
    TILE_BYTES,
    TILE_WIDTH,
    GrowingTree,
    TiledTree,
    entries,
    parse_tile_index,
    split_hashes,
    tile_path,
)

VECTOR_LEAVES = [
    bytes.fromhex(text)
    for text in (
        *("", "00", "10", "2021", "3031", "40414243", "5051525354555657"),
        "606162636465666768696a6b6c6d6e6f",
    )
]
_ROOTS = """
6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d
fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77
d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4
76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c
5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328
"""
VECTOR_ROOTS = _ROOTS.split()
"""Certificate Transparency's Merkle tree test vectors: the roots of the first 1 to 8 leaves."""


# --- the reference: RFC 6962 section 2.1, word by word ---------------------------------------------------------------


def largest_power_below(count: int) -> int:
    power = 1
    while power * 2 < count:
        power *= 2
    return power


def mth(leaves: Sequence[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = largest_power_below(len(leaves))
    return hashlib.sha256(b"\x01" + mth(leaves[:k]) + mth(leaves[k:])).digest()


def path(m: int, leaves: Sequence[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = largest_power_below(len(leaves))
    if m < k:
        return [*path(m, leaves[:k]), mth(leaves[k:])]
    return [*path(m - k, leaves[k:]), mth(leaves[:k])]


def subproof(m: int, leaves: Sequence[bytes], is_whole: bool) -> list[bytes]:
    if m == len(leaves):
        return [] if is_whole else [mth(leaves)]
    k = largest_power_below(len(leaves))
    if m <= k:
        return [*subproof(m, leaves[:k], is_whole), mth(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), mth(leaves[:k])]


def some_leaves(count: int) -> list[bytes]:
    """Leaf hashes."""
    return [hashlib.sha256(f"leaf {number}".encode()).digest() for number in range(count)]


class Tiles:
    """What a log keeps: full tiles as they come, partial ones from the growing tree."""

    def __init__(self) -> None:
        self.tree = GrowingTree()
        self.full: dict[tuple[int, int], bytes] = {}
        self.roots: dict[tuple[int, int], bytes] = {}

    def append(self, leaves: Sequence[bytes]) -> None:
        for tile in self.tree.append(b"".join(leaves)):
            assert (tile.level, tile.index) not in self.full
            assert len(tile.hashes) == TILE_BYTES
            self.full[tile.level, tile.index] = tile.hashes
            self.roots[tile.level, tile.index] = tile.root

    def read(self, level: int, index: int, width: int) -> bytes:
        tile = self.full.get((level, index))
        if tile is None and index == entries(self.tree.size, level) // TILE_WIDTH:
            tile = self.tree.partial(level)
        if tile is None or len(tile) < width * 32:
            raise LookupError
        return tile[: width * 32]


def grown(leaves: Sequence[bytes], batches: Sequence[int] = ()) -> Tiles:
    tiles = Tiles()
    rest = list(leaves)
    for batch in batches:
        tiles.append(rest[:batch])
        rest = rest[batch:]
    tiles.append(rest)
    return tiles


LARGE = some_leaves(70_000)
LARGE_TILES = grown(LARGE, [1, 255, 256, 8192, 3])


# --- hashing ---------------------------------------------------------------------------------------------------------


def test_roots_are_those_of_certificate_transparency() -> None:
    hashes = [leaf_hash(leaf) for leaf in VECTOR_LEAVES]
    for count, root in enumerate(VECTOR_ROOTS, start=1):
        assert root_of(hashes[:count]).hex() == root
        assert grown(hashes[:count]).tree.root().hex() == root
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert GrowingTree().root() == EMPTY_ROOT


@settings(max_examples=60, deadline=None)
@given(size=st.integers(0, 1500), batches=st.lists(st.integers(0, 700), max_size=6))
def test_however_leaves_arrive_the_tree_is_the_references(size: int, batches: list[int]) -> None:
    tiles = grown(LARGE[:size], batches)
    assert tiles.tree.size == size
    assert tiles.tree.root() == mth(LARGE[:size])
    assert TiledTree(size, tiles.read).root() == mth(LARGE[:size])
    for (level, index), hashes in tiles.full.items():
        whole = TILE_WIDTH**level
        first = index * TILE_WIDTH
        for offset, value in enumerate(split_hashes(hashes)):
            if level == 0 or offset % 16 == 0:
                assert value == mth(LARGE[(first + offset) * whole : (first + offset + 1) * whole])
        assert tiles.roots[level, index] == root_of(split_hashes(hashes))


def test_a_tree_of_70000_leaves_has_the_tiles_that_the_specification_counts() -> None:
    by_level = {level: sum(1 for key in LARGE_TILES.full if key[0] == level) for level in range(3)}
    assert by_level == {0: 273, 1: 1, 2: 0}
    assert [len(LARGE_TILES.tree.partial(level)) // 32 for level in range(4)] == [112, 17, 1, 0]
    assert LARGE_TILES.tree.root() == mth(LARGE)


@given(size=st.integers(0, 70_000))
@settings(max_examples=30, deadline=None)
def test_a_tree_goes_on_from_its_right_edge(size: int) -> None:
    before = grown(LARGE[:size])
    again = GrowingTree(size, [before.tree.partial(level) for level in range(4)])
    again.append(b"".join(LARGE[size:]))
    assert again.root() == LARGE_TILES.tree.root()


@pytest.mark.parametrize("partial", [[b"x" * 32], [b"x" * 96], [b"x" * 64, b"y" * 32], [b"x" * 63]])
def test_an_edge_of_another_size_is_refused(partial: list[bytes]) -> None:
    with pytest.raises(ValueError, match="another number of hashes"):
        GrowingTree(2, partial)


# --- proofs ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(data=st.data(), size=st.integers(1, 1300))
def test_inclusion_proofs_are_the_references_and_verify(data: st.DataObject, size: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    proof = TiledTree(size, LARGE_TILES.read).inclusion_proof(index)
    assert proof == path(index, LARGE[:size])
    assert verify_inclusion(LARGE[index], index=index, size=size, proof=proof, root=mth(LARGE[:size]))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), new=st.integers(0, 1300))
def test_consistency_proofs_are_the_references_and_verify(data: st.DataObject, new: int) -> None:
    old = data.draw(st.integers(0, new))
    proof = TiledTree(new, LARGE_TILES.read).consistency_proof(old)
    assert proof == (subproof(old, LARGE[:new], True) if old else [])
    assert verify_consistency(
        old_size=old, old_root=mth(LARGE[:old]), new_size=new, new_root=mth(LARGE[:new]), proof=proof
    )


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 69_999, 70_000])
def test_proofs_across_the_edges_of_tiles(size: int) -> None:
    tree = TiledTree(size, LARGE_TILES.read)
    root = mth(LARGE[:size])
    assert tree.root() == root
    for index in {0, 1, size // 2, size - 1, min(size - 1, 255), min(size - 1, 256), min(size - 1, 65_536)} - {size}:
        proof = tree.inclusion_proof(index)
        assert tree.leaf(index) == LARGE[index]
        assert verify_inclusion(LARGE[index], index=index, size=size, proof=proof, root=root)
        old = index + 1
        proof = tree.consistency_proof(old)
        assert verify_consistency(old_size=old, old_root=mth(LARGE[:old]), new_size=size, new_root=root, proof=proof)


def damaged(proof: list[bytes], random: Random) -> list[list[bytes]]:
    """Every way to spoil a proof a little."""
    spoiled = [[*proof, random.randbytes(32)], [random.randbytes(32), *proof], [*proof, proof[-1]] if proof else [b""]]
    for place in range(len(proof)):
        flipped = bytearray(proof[place])
        flipped[random.randrange(32)] ^= 1 << random.randrange(8)
        spoiled.append([*proof[:place], bytes(flipped), *proof[place + 1 :]])
        spoiled.append(proof[:place] + proof[place + 1 :])
        spoiled.append([*proof[:place], proof[place][:31], *proof[place + 1 :]])
    for place in range(len(proof) - 1):
        spoiled.append([*proof[:place], proof[place + 1], proof[place], *proof[place + 2 :]])
    return spoiled


@settings(max_examples=60, deadline=None)
@given(data=st.data(), size=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_forged_inclusion_proofs_are_refused(data: st.DataObject, size: int, seed: int) -> None:
    index = data.draw(st.integers(0, size - 1))
    root, proof, random = mth(LARGE[:size]), path(index, LARGE[:size]), Random(seed)

    def verifies(**changed: object) -> bool:
        arguments = {"leaf": LARGE[index], "index": index, "size": size, "proof": proof, "root": root, **changed}
        leaf = arguments.pop("leaf")
        return verify_inclusion(leaf, **arguments)  # type: ignore[arg-type]

    assert verifies()
    assert not any(verifies(proof=forged) for forged in damaged(proof, random) if forged != proof)
    others = {index - 1, index + 1, size, -1, random.randrange(size)} - {index}
    assert not any(verifies(index=other) for other in others)
    assert not verifies(leaf=LARGE[index + 1])
    assert not verifies(root=mth(LARGE[: size + 1]))
    assert not verifies(leaf=root, size=1, index=0, root=root[:31])
    # an inner node passed off as a leaf proves nothing: leaves and nodes are hashed differently
    if size > 1:
        assert not verify_inclusion(leaf_hash(LARGE[0] + LARGE[1]), index=0, size=1, proof=[], root=root)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), new=st.integers(1, 600), seed=st.integers(0, 2**32))
def test_forged_consistency_proofs_are_refused(data: st.DataObject, new: int, seed: int) -> None:
    old = data.draw(st.integers(1, new))
    old_root, new_root = mth(LARGE[:old]), mth(LARGE[:new])
    proof, random = subproof(old, LARGE[:new], True), Random(seed)

    def verifies(**changed: object) -> bool:
        arguments = {
            **{"old_size": old, "old_root": old_root, "new_size": new, "new_root": new_root, "proof": proof},
            **changed,
        }
        return verify_consistency(**arguments)  # type: ignore[arg-type]

    assert verifies()
    assert not any(verifies(proof=forged) for forged in damaged(proof, random) if forged != proof)
    assert not verifies(old_size=new + 1)
    assert not verifies(old_root=random.randbytes(32))
    assert not verifies(new_root=random.randbytes(32))
    rewritten = [*LARGE[: old - 1], random.randbytes(32), *LARGE[old:new]]
    honest_of_rewritten = subproof(old, rewritten, True)
    assert not verifies(new_root=mth(rewritten), proof=honest_of_rewritten)
    if old < new:
        assert not verifies(old_size=new, old_root=new_root)
        assert not verifies(old_size=0, old_root=EMPTY_ROOT)


def test_the_empty_tree_begins_every_tree_and_needs_no_proof() -> None:
    root = mth(LARGE[:5])
    arguments = {"old_size": 0, "old_root": EMPTY_ROOT, "new_size": 5, "new_root": root}
    assert verify_consistency(**arguments, proof=[])  # type: ignore[arg-type]
    assert not verify_consistency(**arguments, proof=[root])  # type: ignore[arg-type]
    assert not verify_consistency(**{**arguments, "old_root": root}, proof=[])  # type: ignore[arg-type]


def test_a_proof_longer_than_any_tree_is_refused_before_it_is_hashed() -> None:
    assert not verify_inclusion(LARGE[0], index=0, size=2**62, proof=[LARGE[0]] * 10_000, root=LARGE[0])


@pytest.mark.parametrize(
    "ask",
    [
        lambda tree: tree.inclusion_proof(10),
        lambda tree: tree.inclusion_proof(-1),
        lambda tree: tree.leaf(10),
        lambda tree: tree.consistency_proof(11),
        lambda tree: TiledTree(-1, tree),
    ],
)
def test_what_the_tree_does_not_have_is_not_proved(ask: Callable[[TiledTree], object]) -> None:
    with pytest.raises(ValueError):
        ask(TiledTree(10, LARGE_TILES.read))


def test_an_altered_tile_gives_proofs_that_do_not_verify() -> None:
    size, index = 70_000, 12_345
    root = mth(LARGE)
    honest = TiledTree(size, LARGE_TILES.read).inclusion_proof(index)
    read: set[tuple[int, int]] = set()

    def noting(level: int, tile: int, width: int) -> bytes:
        read.add((level, tile))
        return LARGE_TILES.read(level, tile, width)

    TiledTree(size, noting).inclusion_proof(index)
    for place in sorted(read):

        def altered(level: int, tile: int, width: int, place: tuple[int, int] = place) -> bytes:
            found = bytearray(LARGE_TILES.read(level, tile, width))
            if (level, tile) == place:
                found = bytearray(bytes(value ^ 0xFF for value in found))
            return bytes(found)

        forged = TiledTree(size, altered).inclusion_proof(index)
        assert forged != honest
        assert not verify_inclusion(LARGE[index], index=index, size=size, proof=forged, root=root)
    with pytest.raises(LookupError):
        TiledTree(size, lambda level, tile, width: b"short").root()


# --- addresses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "width", "text"),
    [
        (0, 256, "000"),
        (67, 256, "067"),
        (1_234_067, 256, "x001/x234/067"),
        (1_000, 3, "x001/000.p/3"),
        (999, 255, "999.p/255"),
    ],
)
def test_tile_addresses(index: int, width: int, text: str) -> None:
    assert tile_path(3, index, width) == f"3/{text}"
    assert parse_tile_index(text) == (index, width)


@given(index=st.integers(0, 2**55 - 1), width=st.integers(1, 256))
def test_tile_addresses_round_trip(index: int, width: int) -> None:
    assert parse_tile_index(tile_path(0, index, width).partition("/")[2]) == (index, width)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "00", "0000", "x000/001", "001/002", "x001", "x001/x002", "-01", "001.p/0", "001.p/256", "001.p/01"),
        *("001.p/", "001.p", "001.p/3/4", "../001", "٠٠١", "001\n", "x001/001 ", "x999/x999/x999/x999/x999/x999/999"),
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_tile_index(text)

"""The Merkle tree of RFC 6962 section 2.1: hashing, and the check of inclusion and consistency proofs.

A leaf's hash is SHA-256(0x00 || leaf), an inner node's SHA-256(0x01 || left || right), the empty tree's SHA-256("").
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()
SIZE_MAX = 2**63 - 1
"""The largest tree size taken (RFC 6962 has 64 bits; a signed one is what databases and Go programs hold)."""
PROOF_HASHES_MAX = 63
"""No proof in a tree of up to SIZE_MAX leaves is longer than this (and one more for consistency is never needed)."""


def leaf_hash(leaf: bytes) -> bytes:
    return sha256(b"\x00" + leaf).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def root_of(hashes: Sequence[bytes]) -> bytes:
    """The root over hashes of equally large, complete subtrees, of which only the last may be smaller.

    Pairing level by level and carrying the odd last one up gives RFC 6962's split at the largest power of two.
    """
    if not hashes:
        return EMPTY_ROOT
    level = list(hashes)
    while len(level) > 1:
        odd = [level[-1]] if len(level) % 2 else []
        level = [node_hash(left, right) for left, right in zip(level[0::2], level[1::2], strict=False)] + odd
    return level[0]


def verify_inclusion(leaf: bytes, *, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Is the leaf of hash `leaf` number `index` (from 0) of the tree? Source: RFC 9162 section 2.1.3.2."""
    if not 0 <= index < size <= SIZE_MAX or not _are_hashes([leaf, root, *proof]):
        return False
    position, last, computed = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while position & 1 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and computed == root


def verify_consistency(
    *, old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Is the tree of `old_size` leaves the beginning of the one of `new_size`? Source: RFC 9162 section 2.1.4.2.

    Equal sizes need equal roots and no proof; the empty tree is the beginning of every tree and needs none either.
    """
    if not 0 <= old_size <= new_size <= SIZE_MAX or not _are_hashes([old_root, new_root, *proof]):
        return False
    if old_size == 0 and old_root != EMPTY_ROOT:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof
    path = list(proof)
    if old_size & (old_size - 1) == 0:
        path.insert(0, old_root)
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position, last = position >> 1, last >> 1
    old_computed = new_computed = path[0]
    for node in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_computed, new_computed = node_hash(node, old_computed), node_hash(node, new_computed)
            while position & 1 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            new_computed = node_hash(new_computed, node)
        position, last = position >> 1, last >> 1
    return last == 0 and old_computed == old_root and new_computed == new_root


def _are_hashes(values: Sequence[bytes]) -> bool:
    return len(values) <= PROOF_HASHES_MAX + 2 and all(len(value) == HASH_BYTES for value in values)

"""A Merkle sum tree over salted, split balances: its root commits to every balance and to their total.

Rules (byte by byte in docs/balance-proofs.md):
1. A balance is split into `SHARES` leaves of pseudorandom size, and all leaves of a tree stand in pseudorandom order.
   So what a proof shows of a neighbour is a random part of an unknown balance, new at each closing.
2. leaf = SHA-256(0x00 || salt 16 || account u64 || share u8 || sum u64), integers big-endian.
3. node = SHA-256(0x01 || left hash || left sum u64 || right hash || right sum u64); its sum is left + right. Both sums
   are hashed: with only their total under the hash (the first published scheme) a balance can be left out unseen.
4. No sum, on any path, may exceed `SUM_MAX`; a negative one cannot be written.
5. Shape as RFC 6962: a node without a right neighbour moves up unchanged. The empty tree is SHA-256 of nothing.

Hence for everyone whose balance verifies against one root: the root's total is at least the sum of their balances.
Sources: Maxwell and Todd's summation tree (2013); Hu, Zhang, Guo, "Breaking the binding: Attacks on the Merkle
approach to prove liabilities" (2019); Chalkias, Lewi, Mohassel, Nikolaenko, "Distributed auditing proofs of
liabilities" (2020). Pure: no I/O, no clock.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SUM_MAX = 2**63 - 1
"""Minor units: amounts are 63-bit everywhere in the project."""
SHARES: Final = 2
SALT_BYTES = 16
HASH_BYTES = 32
PATH_MAX = 63
"""Nodes of a path at most: a tree has fewer than 2^63 leaves."""
EMPTY_HASH = hashlib.sha256().digest()
_KEY_PREFIX = b"jiaozi-closing-v1"
_LEAF_INPUT = struct.Struct(">c16sQBQ")
_NODE_INPUT = struct.Struct(">c32sQ32sQ")
_DERIVE_ACCOUNTS = 1 << 18
"""Accounts whose pseudorandom blocks are made at a time: bounds the scratch memory at 32 MB."""

_RUN_HEIGHT = 18
"""2^18 leaves are hashed at a time: 50 MB of scratch memory."""

NODE = np.dtype([("hash", f"V{HASH_BYTES}"), ("sum", ">u8")])
"""40 bytes; two of them after 0x01 are what a parent hashes."""
LEAF = np.dtype([("account", ">u8"), ("share", "u1"), ("sum", ">u8")])
"""17 bytes; after 0x00 and the salt they are what a leaf hashes."""

Nodes = npt.NDArray[np.void]
Leaves = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]


class InvalidSumTree(ValueError):
    """A sum out of range, or a path that does not fit its tree; the message says which."""


class _Purpose(IntEnum):
    """What a pseudorandom block is for."""

    ORDER = 1
    SALT = 2
    SPLIT = 3


@dataclass(frozen=True, slots=True)
class Node:
    hash: bytes
    sum: int


# --- one leaf, one path: what a holder's verifier needs --------------------------------------------------------------


def leaf_node(*, salt: bytes, account: int, share: int, sum_minor: int) -> Node:
    """Raises InvalidSumTree when a member does not fit its field."""
    if len(salt) != SALT_BYTES or not 0 < account < 2**63 or not 0 <= share < SHARES:
        raise InvalidSumTree("the leaf's salt, account or share is out of range")
    _check_sum(sum_minor)
    return Node(hashlib.sha256(_LEAF_INPUT.pack(b"\0", salt, account, share, sum_minor)).digest(), sum_minor)


def parent(left: Node, right: Node) -> Node:
    """Raises InvalidSumTree when a sum, or their total, is negative or above SUM_MAX."""
    for child in (left, right):
        _check_sum(child.sum)
        if len(child.hash) != HASH_BYTES:
            raise InvalidSumTree(f"a hash has {HASH_BYTES} bytes")
    total = left.sum + right.sum
    _check_sum(total)
    return Node(hashlib.sha256(_NODE_INPUT.pack(b"\1", left.hash, left.sum, right.hash, right.sum)).digest(), total)


def root_of_path(leaf: Node, *, index: int, leaf_count: int, path: Sequence[Node]) -> Node:
    """The root that `leaf` at `index` (from 0) and its siblings, lowest first, lead to in a tree of `leaf_count`.

    Raises InvalidSumTree when the path is not as long as such a tree asks, or a sum is out of range.
    """
    if not 0 <= index < leaf_count < 2**63:
        raise InvalidSumTree("the leaf's index is outside the tree")
    node, last, used = leaf, leaf_count - 1, 0
    while last:
        if index % 2 or index != last:  # else it has no sibling on this level and moves up unchanged
            if used == len(path):
                raise InvalidSumTree("the path is too short for this tree")
            sibling, used = path[used], used + 1
            node = parent(sibling, node) if index % 2 else parent(node, sibling)
        index, last = index // 2, last // 2
    if used != len(path):
        raise InvalidSumTree("the path is too long for this tree")
    return node


def _check_sum(value: int) -> None:
    if not 0 <= value <= SUM_MAX:
        raise InvalidSumTree("a sum is negative or beyond 63 bits")


# --- derivation from the closing's key -------------------------------------------------------------------------------


def closing_key(master: bytes, closing: int) -> bytes:
    """32 bytes, from which one closing's order, salts and shares follow. An auditor gets this, never the master."""
    return hmac.new(master, _KEY_PREFIX + struct.pack(">Q", closing), hashlib.sha256).digest()


def order_tag(key: bytes, account: int, share: int) -> int:
    """Leaves stand in ascending order of this 63-bit number (ties: account, then share)."""
    return int(_order_tags(key, np.array([account], np.uint64), share)[0])


def lay_out(balances: Int64s, *, first_account: int, key: bytes) -> tuple[UInt64s, Leaves]:
    """Order tags and leaves, in tree order, of the dense accounts `first_account`, `first_account` + 1, ...

    `balances` in minor units, none negative (InvalidSumTree). Memory: about 100 bytes an account at the peak.
    """
    if len(balances) and int(balances.min()) < 0:
        raise InvalidSumTree("a balance is negative")
    count = len(balances)
    tags, sums = np.empty((count, SHARES), np.uint64), np.empty((count, SHARES), np.uint64)
    for start in range(0, count, _DERIVE_ACCOUNTS):
        part = balances[start : start + _DERIVE_ACCOUNTS].astype(np.uint64)
        accounts = np.arange(start, start + len(part), dtype=np.uint64) + np.uint64(first_account)
        here = slice(start, start + len(part))
        for share in range(SHARES):
            tags[here, share] = _order_tags(key, accounts, share)
        sums[here, 0] = _first_words(key, accounts, _Purpose.SPLIT, 0) % (part + np.uint64(1))
        sums[here, 1] = part - sums[here, 0]
    order = np.argsort(tags.reshape(-1), kind="stable")  # stable: ties stay in the order of account and share
    leaves = np.empty(len(order), LEAF)
    leaves["account"] = order // SHARES + first_account
    leaves["share"] = order % SHARES
    leaves["sum"] = sums.reshape(-1)[order]
    return tags.reshape(-1)[order], leaves


def salts(key: bytes, leaves: Leaves) -> bytes:
    """The salts of leaves, 16 bytes each, one after the other."""
    return _blocks(key, leaves["account"].astype(np.uint64), _Purpose.SALT, leaves["share"].astype(np.uint32))


def _order_tags(key: bytes, accounts: UInt64s, share: int) -> UInt64s:
    return _first_words(key, accounts, _Purpose.ORDER, share) >> np.uint64(1)


def _first_words(key: bytes, accounts: UInt64s, purpose: _Purpose, share: int) -> UInt64s:
    made = np.frombuffer(_blocks(key, accounts, purpose, np.uint32(share)), ">u8")
    return made[::2].astype(np.uint64)


def _blocks(key: bytes, accounts: UInt64s, purpose: _Purpose, shares: npt.NDArray[np.uint32] | np.uint32) -> bytes:
    """AES-256 of account u64 || purpose u32 || share u32: a pseudorandom block for each, never the same twice.

    ECB is what it looks like and right here: each plaintext block occurs once, and the output is used as a PRF's.
    """
    plain = np.empty(len(accounts), [("account", ">u8"), ("purpose", ">u4"), ("share", ">u4")])
    plain["account"], plain["purpose"], plain["share"] = accounts, purpose, shares
    encryptor = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - see above
    return encryptor.update(plain.tobytes()) + encryptor.finalize()


# --- whole trees -----------------------------------------------------------------------------------------------------


def leaf_nodes(key: bytes, leaves: Leaves) -> Nodes:
    """The lowest level of (a part of) the tree."""
    packed = np.empty(len(leaves), [("prefix", "u1"), ("salt", f"V{SALT_BYTES}"), ("leaf", LEAF)])
    packed["prefix"], packed["leaf"] = 0, leaves
    packed["salt"] = np.frombuffer(salts(key, leaves), f"V{SALT_BYTES}")
    return _hashed(packed, leaves["sum"])


def next_level(nodes: Nodes) -> Nodes:
    """Parents of neighbours; the last of an odd number moves up unchanged. Raises InvalidSumTree on overflow."""
    pairs = len(nodes) // 2
    if int(nodes["sum"].max(initial=0)) > SUM_MAX:
        raise InvalidSumTree("a sum is beyond 63 bits")
    sums = nodes["sum"][: 2 * pairs].astype(np.uint64).reshape(pairs, 2).sum(axis=1, dtype=np.uint64)
    if int(sums.max(initial=0)) > SUM_MAX:  # two sums of 63 bits cannot wrap around 64
        raise InvalidSumTree("a total is beyond 63 bits")
    packed = np.empty(pairs, [("prefix", "u1"), ("children", NODE, 2)])
    packed["prefix"], packed["children"] = 1, nodes[: 2 * pairs].reshape(pairs, 2)
    return joined([_hashed(packed, sums), nodes[2 * pairs :]])


def joined(parts: Sequence[Nodes]) -> Nodes:
    """One array of nodes; `np.concatenate` would change the byte order of the sums."""
    made = np.empty(sum(len(part) for part in parts), NODE)
    if parts:
        np.concatenate(parts, out=made, casting="equiv")
    return made


def levels(nodes: Nodes) -> list[Nodes]:
    """All levels from `nodes` up to the root (one node)."""
    found = [nodes]
    while len(found[-1]) > 1:
        found.append(next_level(found[-1]))
    return found


def root_of(nodes: Nodes) -> Node:
    """The root over a level; the empty tree's for none."""
    while len(nodes) > 1:
        nodes = next_level(nodes)
    return node_at(nodes, 0) if len(nodes) else Node(EMPTY_HASH, 0)


def path_in(all_levels: Sequence[Nodes], index: int) -> list[Node]:
    """The siblings of the node `index` of the lowest level, lowest first."""
    found = []
    for level in all_levels[:-1]:
        sibling = index ^ 1
        if sibling < len(level):
            found.append(node_at(level, sibling))
        index //= 2
    return found


def closing_root(balances: Int64s, *, first_account: int, key: bytes) -> Node:
    """The root over dense accounts, for an auditor who has replayed their balances. 2.5 s a million accounts."""
    _, leaves = lay_out(balances, first_account=first_account, key=key)
    return root_of(joined([nodes for _, nodes in raised(leaves, key=key, height=10)]))


def raised(leaves: Leaves, *, key: bytes, height: int) -> Iterator[tuple[Leaves, Nodes]]:
    """The tree's nodes `height` levels above the leaves, a run of leaves at a time: (run, nodes above it)."""
    step = 1 << max(height, _RUN_HEIGHT)  # whole subtrees, so that only the last run has a ragged edge
    for start in range(0, len(leaves), step):
        run = leaves[start : start + step]
        nodes = leaf_nodes(key, run)
        for _ in range(height):
            nodes = next_level(nodes)
        yield run, nodes


def node_at(nodes: Nodes, index: int) -> Node:
    row = nodes[index]
    return Node(row["hash"].tobytes(), int(row["sum"]))


def _hashed(packed: npt.NDArray[np.void], sums: npt.NDArray[np.uint64]) -> Nodes:
    """Nodes of the SHA-256 of each packed row and the given sums. hashlib's call is all of the cost: 0.5 us."""
    raw, width, sha256 = packed.tobytes(), packed.dtype.itemsize, hashlib.sha256
    digests = b"".join([sha256(raw[at : at + width]).digest() for at in range(0, len(raw), width)])
    made = np.empty(len(packed), NODE)
    made["hash"], made["sum"] = np.frombuffer(digests, f"V{HASH_BYTES}"), sums
    return made

"""The Merkle-Patricia trie of Ethereum's receipts: proofs checked and, from all of a block's receipts, made.

Source: Ethereum yellow paper, appendix D. Node = rlp([path, value or child]) or rlp([16 children, value]); a child of
32 bytes or more is named by its keccak-256, a smaller one stands in its parent itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eth_utils.crypto import keccak
from rlp import decode as rlp_decode  # type: ignore[import-untyped]
from rlp import encode as rlp_encode

EMPTY_ROOT = bytes(keccak(b"\x80"))


class ProofRefused(ValueError):
    """It proves nothing; the message says which part does not hold."""


def read_rlp(data: bytes) -> Any:
    """Nested lists of bytes, in their one spelling. Raises ProofRefused."""
    try:
        found = rlp_decode(data)
        is_canonical = bytes(rlp_encode(found)) == data
    except Exception as error:  # the library raises many kinds of its own for bytes that are none
        raise ProofRefused(f"not RLP: {type(error).__name__}") from None
    if not is_canonical:
        raise ProofRefused("RLP in another than its one spelling")
    return found


def nibbles_of(key: bytes) -> list[int]:
    return [half for byte in key for half in (byte >> 4, byte & 15)]


def read_proved(root: bytes, key: bytes, nodes: Sequence[bytes]) -> bytes:
    """The value under `key` in the trie of `root`, by the nodes from the root down. Raises ProofRefused."""
    path, wanted, used = nibbles_of(key), root, 0
    inner: Any = None
    while True:
        if inner is None:
            if used >= len(nodes):
                raise ProofRefused("the trie's proof ends before its leaf")
            if bytes(keccak(nodes[used])) != wanted:
                raise ProofRefused("a node of the trie's proof is not the one that its parent names")
            node = read_rlp(nodes[used])
            used += 1
        else:
            node, inner = inner, None
        value, child, path = _step(node, path)
        if value is not None:
            if used != len(nodes):
                raise ProofRefused("the trie's proof has nodes too many")
            return value
        if isinstance(child, list):
            inner = child
        elif isinstance(child, bytes) and len(child) == 32:
            wanted = child
        else:
            raise ProofRefused("the trie has nothing under this key")


def _step(node: Any, path: list[int]) -> tuple[bytes | None, Any, list[int]]:
    """(value, child, rest of the path): a value, or a child to go on at."""
    if not isinstance(node, list) or len(node) not in (2, 17):
        raise ProofRefused("not a node of a trie")
    if len(node) == 17:
        if path:
            return None, node[path[0]], path[1:]
        value = node[16]
    else:
        own, is_leaf = _read_path(node[0])
        if path[: len(own)] != own:
            raise ProofRefused("the trie has nothing under this key")
        if not is_leaf:
            return None, node[1], path[len(own) :]
        if len(path) != len(own):
            raise ProofRefused("the trie has nothing under this key")
        value = node[1]
    if not isinstance(value, bytes) or not value:
        raise ProofRefused("the trie has nothing under this key")
    return value, None, []


def _read_path(packed: Any) -> tuple[list[int], bool]:
    if not isinstance(packed, bytes) or not packed:
        raise ProofRefused("not a node of a trie")
    flag, *rest = nibbles_of(packed)
    if flag > 3 or (flag % 2 == 0 and rest[0] != 0):
        raise ProofRefused("not a path of a trie")
    return (rest if flag % 2 else rest[1:]), flag >= 2


def prove(values: Mapping[bytes, bytes], key: bytes) -> tuple[bytes, list[bytes]]:
    """(root, nodes from the root to the leaf of `key`) of a trie of `values`. Raises KeyError."""
    if key not in values:
        raise KeyError(key)
    tree = _build([(nibbles_of(name), value) for name, value in sorted(values.items())])
    root, nodes, path, node = bytes(keccak(rlp_encode(tree))), [bytes(rlp_encode(tree))], nibbles_of(key), tree
    while True:
        if len(node) == 17:
            if not path:
                return root, nodes
            child, path = node[path[0]], path[1:]
        else:
            own, is_leaf = _read_path(node[0])
            if is_leaf:
                return root, nodes
            child, path = node[1], path[len(own) :]
        node = child.tree if isinstance(child, _Named) else child
        if isinstance(child, _Named):
            nodes.append(bytes(rlp_encode(node)))


class _Named(bytes):
    """A child's hash, with the child that it names."""

    tree: Any


def _build(items: Sequence[tuple[list[int], bytes]]) -> Any:
    if len(items) == 1:
        return [_packed(items[0][0], is_leaf=True), items[0][1]]
    first, last = items[0][0], items[-1][0]
    shared = next(
        (at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last))
    )
    if shared:
        return [_packed(first[:shared], is_leaf=False), _child([(path[shared:], value) for path, value in items])]
    branch: list[Any] = [b""] * 17
    for half in range(16):
        under = [(path[1:], value) for path, value in items if path and path[0] == half]
        if under:
            branch[half] = _child(under)
    branch[16] = next((value for path, value in items if not path), b"")
    return branch


def _child(items: Sequence[tuple[list[int], bytes]]) -> Any:
    tree = _build(items)
    encoded = bytes(rlp_encode(tree))
    if len(encoded) < 32:
        return tree
    named = _Named(keccak(encoded))
    named.tree = tree
    return named


def _packed(path: list[int], *, is_leaf: bool) -> bytes:
    flag = 2 * is_leaf + len(path) % 2
    halves = [flag, *path] if len(path) % 2 else [flag, 0, *path]
    return bytes(high << 4 | low for high, low in zip(halves[0::2], halves[1::2], strict=True))

"""The Merkle sum tree: whatever is proved is true, and whatever is altered is refused.

Goal: a path leads to the root for every leaf of a tree of any size; no altered byte, sum, place or length does; no sum
leaves 63 bits. The bulk code (numpy) and the holder's code (one node at a time) agree.
Method: Hypothesis; a third, recursive formulation of the shape as oracle.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.transparency import sum_tree
from kernel.transparency.sum_tree import (
    EMPTY_HASH,
    LEAF,
    NODE,
    SHARES,
    SUM_MAX,
    InvalidSumTree,
    Node,
    closing_key,
    closing_root,
    lay_out,
    leaf_node,
    leaf_nodes,
    levels,
    node_at,
    parent,
    path_in,
    root_of,
    root_of_path,
    salts,
)

KEY = closing_key(b"master secret of 32 bytes, at least", 1)
BALANCES = st.lists(st.integers(0, 10**12) | st.just(0), max_size=70).map(lambda values: np.array(values, np.int64))
SOME = st.lists(st.integers(0, 10**12), min_size=1, max_size=40).map(lambda values: np.array(values, np.int64))


def recursive_root(nodes: Sequence[Node]) -> Node:
    """RFC 6962 section 2.1, with sums, written with struct alone."""
    if len(nodes) == 1:
        return nodes[0]
    split = 1 << (len(nodes) - 1).bit_length() - 1
    left, right = recursive_root(nodes[:split]), recursive_root(nodes[split:])
    data = b"\1" + left.hash + struct.pack(">Q", left.sum) + right.hash + struct.pack(">Q", right.sum)
    return Node(hashlib.sha256(data).digest(), left.sum + right.sum)


@given(BALANCES)
def test_every_leaf_of_any_tree_leads_to_the_root_whose_sum_is_the_total(balances: np.ndarray) -> None:
    _, leaves = lay_out(balances, first_account=2, key=KEY)
    every = levels(leaf_nodes(KEY, leaves))
    root = root_of(every[0])
    assert root.sum == sum(int(balance) for balance in balances)
    assert root == closing_root(balances, first_account=2, key=KEY)
    if not len(balances):
        assert root == Node(EMPTY_HASH, 0)
        return
    made, salted = [], salts(KEY, leaves)
    for index, row in enumerate(leaves):
        salt = salted[16 * index : 16 * index + 16]
        leaf = leaf_node(salt=salt, account=int(row["account"]), share=int(row["share"]), sum_minor=int(row["sum"]))
        assert leaf == node_at(every[0], index)
        assert root_of_path(leaf, index=index, leaf_count=len(leaves), path=path_in(every, index)) == root
        made.append(leaf)
    assert recursive_root(made) == root


@given(BALANCES)
def test_every_account_has_exactly_its_shares_and_they_add_up_to_its_balance(balances: np.ndarray) -> None:
    tags, leaves = lay_out(balances, first_account=2, key=KEY)
    found: dict[int, dict[int, int]] = {}
    for row in leaves:
        shares = found.setdefault(int(row["account"]), {})
        assert int(row["share"]) not in shares
        shares[int(row["share"])] = int(row["sum"])
    assert sorted(found) == list(range(2, 2 + len(balances)))
    for account, shares in found.items():
        assert sorted(shares) == list(range(SHARES))
        assert sum(shares.values()) == balances[account - 2]
    assert list(tags) == sorted(tags)
    for position in range(len(leaves)):
        account, share = int(leaves[position]["account"]), int(leaves[position]["share"])
        assert sum_tree.order_tag(KEY, account, share) == tags[position]


@given(SOME, st.data())
def test_an_altered_byte_place_or_length_never_leads_to_the_root(balances: np.ndarray, data: st.DataObject) -> None:
    _, leaves = lay_out(balances, first_account=2, key=KEY)
    every = levels(leaf_nodes(KEY, leaves))
    root, count = root_of(every[0]), len(leaves)
    index = data.draw(st.integers(0, count - 1))
    path = path_in(every, index)
    row, salt = leaves[index], salts(KEY, leaves[index : index + 1])
    members = {"salt": salt, "account": int(row["account"]), "share": int(row["share"]), "sum_minor": int(row["sum"])}
    place = {"index": index, "leaf_count": count}
    what = data.draw(
        st.sampled_from(["salt", "account", "share", "sum", "index", "count", "hash", "side", "cut", "more"])
    )
    if what == "salt":
        at, bit = data.draw(st.integers(0, 15)), data.draw(st.integers(0, 7))
        members["salt"] = salt[:at] + bytes([salt[at] ^ 1 << bit]) + salt[at + 1 :]
    elif what == "account":
        members["account"] = data.draw(st.integers(1, 10**6).filter(lambda value: value != members["account"]))
    elif what == "share":
        members["share"] = 1 - members["share"]
    elif what == "sum":
        members["sum_minor"] = data.draw(st.integers(0, SUM_MAX).filter(lambda value: value != members["sum_minor"]))
    elif what == "index":
        place["index"] = data.draw(st.integers(0, count + 3).filter(lambda value: value != index))
    elif what == "count":  # a count that asks for another path; a count of the same shape is bound by the signature
        place["leaf_count"] = count * data.draw(st.sampled_from([2, 4, 1024]))
    elif what in ("hash", "side"):
        at = data.draw(st.integers(0, len(path) - 1))
        node = path[at]
        if what == "hash":
            byte, bit = data.draw(st.integers(0, 31)), data.draw(st.integers(0, 7))
            broken = node.hash[:byte] + bytes([node.hash[byte] ^ 1 << bit]) + node.hash[byte + 1 :]
            path[at] = Node(broken, node.sum)
        else:
            path[at] = Node(node.hash, data.draw(st.integers(-5, 2**64).filter(lambda value: value != node.sum)))
    elif what == "cut":
        path = path[:-1]
    else:
        path = [*path, Node(root.hash, 0)]
    try:
        reached = root_of_path(leaf_node(**members), **place, path=path)  # type: ignore[arg-type]
    except InvalidSumTree:
        return
    assert reached != root


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63, 2**64 - 5, 2**64])
def test_no_sum_is_negative_or_beyond_63_bits(value: int) -> None:
    zero = Node(bytes(32), 0)
    with pytest.raises(InvalidSumTree):
        leaf_node(salt=bytes(16), account=2, share=0, sum_minor=value)
    for children in ((Node(bytes(32), value), zero), (zero, Node(bytes(32), value))):
        with pytest.raises(InvalidSumTree):
            parent(*children)


def test_two_sums_that_overflow_are_refused_by_both_codes() -> None:
    half = Node(bytes(32), 2**62)
    with pytest.raises(InvalidSumTree):
        parent(half, half)
    assert parent(half, Node(bytes(32), 2**62 - 1)).sum == SUM_MAX
    nodes = np.zeros(2, NODE)
    nodes["sum"] = 2**62
    with pytest.raises(InvalidSumTree):
        sum_tree.next_level(nodes)
    nodes["sum"] = [2**64 - 5, 5]
    with pytest.raises(InvalidSumTree):
        sum_tree.next_level(nodes)
    with pytest.raises(InvalidSumTree):
        lay_out(np.array([5, -5], np.int64), first_account=2, key=KEY)


def test_the_largest_balance_splits() -> None:
    _, leaves = lay_out(np.array([SUM_MAX, 0], np.int64), first_account=2, key=KEY)
    assert int(leaves["sum"].sum()) == SUM_MAX
    assert root_of(leaf_nodes(KEY, leaves)).sum == SUM_MAX


def test_the_documented_bytes() -> None:
    """One account, by hand from docs/balance-proofs.md, with nothing of the module but its key derivation."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    def block(purpose: int, share: int) -> bytes:
        encryptor = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
        return encryptor.update(struct.pack(">QII", 2, purpose, share)) + encryptor.finalize()

    balance = 1_000
    first = int.from_bytes(block(3, 0)[:8], "big") % (balance + 1)
    shares = [first, balance - first]
    hashes = [
        hashlib.sha256(b"\0" + block(2, share) + struct.pack(">QBQ", 2, share, shares[share])).digest()
        for share in (0, 1)
    ]
    order = sorted((0, 1), key=lambda share: int.from_bytes(block(1, share)[:8], "big") >> 1)
    data = b"\1" + b"".join(hashes[share] + struct.pack(">Q", shares[share]) for share in order)
    expected = Node(hashlib.sha256(data).digest(), balance)
    assert closing_root(np.array([balance], np.int64), first_account=2, key=KEY) == expected
    assert LEAF.itemsize == 17
    assert NODE.itemsize == 40


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(0, 3))
def test_nodes_above_the_leaves_are_a_level_of_the_tree(accounts: int, height: int) -> None:
    balances = np.arange(accounts, dtype=np.int64)
    _, leaves = lay_out(balances, first_account=2, key=KEY)
    every = levels(leaf_nodes(KEY, leaves))
    above = sum_tree.joined([nodes for _, nodes in sum_tree.raised(leaves, key=KEY, height=height)])
    assert above.tobytes() == every[min(height, len(every) - 1)].tobytes()


def test_another_closing_has_another_order_other_salts_and_other_shares() -> None:
    balances = np.full(500, 10**6, np.int64)
    one = lay_out(balances, first_account=2, key=closing_key(b"m" * 32, 1))[1]
    two = lay_out(balances, first_account=2, key=closing_key(b"m" * 32, 2))[1]
    assert int((one["account"] == two["account"]).sum()) < 20  # 2 expected of 1,000 by chance
    assert (
        not set(one["sum"].tolist()) & set(two["sum"].tolist())
        or len(set(one["sum"].tolist()) & set(two["sum"].tolist())) < 10
    )
    neighbours = one["account"].reshape(-1, 2)
    assert int((neighbours[:, 0] == neighbours[:, 1]).sum()) < 10  # an account's shares stand apart

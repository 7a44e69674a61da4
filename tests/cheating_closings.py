"""A ledger that closes as it likes, for tests: any leaves, any claims, a good signature on everything.

closing = CheatingClosing.of(book)                  an honest one
closing = CheatingClosing.of(book, leave_out=7)     and so on
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import numpy as np

from kernel.crypto.keys import PrivateKey
from kernel.ids import show_account
from kernel.transparency import sum_tree
from kernel.transparency.notes import KeyKind, VerifierKey
from kernel.transparency.sum_tree import Node
from ledger.balance_proofs import (
    NO_STATEMENT,
    BalanceProof,
    ClosingKind,
    ClosingStatement,
    sign_statement,
)

ORIGIN = "ledger.example/test-cny"
SIGNING = PrivateKey.generate()
LOG_KEY = VerifierKey(ORIGIN, KeyKind.ED25519, SIGNING.public)
MASTER = b"a master secret of thirty-two by"
ISSUED = 2**63 - 1
WORD = 2**64


@dataclass(frozen=True)
class Leaf:
    account: int
    share: int
    sum: int
    """Hashed modulo 2^64, so that a cheat can write a negative one."""
    salt: bytes


def unchecked_leaf(leaf: Leaf) -> Node:
    data = b"\0" + leaf.salt + struct.pack(">QBQ", leaf.account, leaf.share, leaf.sum % WORD)
    return Node(hashlib.sha256(data).digest(), leaf.sum)


def unchecked_parent(left: Node, right: Node) -> Node:
    words = (left.hash, left.sum % WORD, right.hash, right.sum % WORD)
    return Node(hashlib.sha256(struct.pack(">c32sQ32sQ", b"\1", *words)).digest(), left.sum + right.sum)


@dataclass(frozen=True)
class CheatingClosing:
    leaves: Sequence[Leaf]
    levels: Sequence[Sequence[Node]]
    statement: ClosingStatement
    note: str
    key: bytes

    @staticmethod
    def of(
        balances: Mapping[int, int],
        *,
        claim: Mapping[int, int] | None = None,
        closing: int = 1,
        previous: bytes = NO_STATEMENT,
        accounts: int | None = None,
        leave_out: int | None = None,
        commitment: bytes = b"\7" * 32,
    ) -> CheatingClosing:
        """`claim`: balances that the tree has instead. `accounts`: what the statement says. `leave_out`: an account
        whose leaves are filled with nobody's (account 10**9) zeros, so that their number is right."""
        held = {**balances, **(claim or {})}
        key = sum_tree.closing_key(MASTER, closing)
        positive = np.array([max(held[account], 0) for account in sorted(held)], np.int64)
        _, packed = sum_tree.lay_out(positive, first_account=min(held, default=2), key=key)
        salts = sum_tree.salts(key, packed)
        leaves = []
        for position, row in enumerate(packed):
            account, share, amount = int(row["account"]), int(row["share"]), int(row["sum"])
            if account == leave_out:
                account, amount = 10**9, 0
            elif held[account] < 0:
                amount = held[account] if share == 0 else 0
            leaves.append(Leaf(account, share, amount, salts[16 * position : 16 * position + 16]))
        levels = [[unchecked_leaf(leaf) for leaf in leaves]]
        while len(levels[-1]) > 1:
            level = levels[-1]
            pairs = [unchecked_parent(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
            levels.append(pairs + level[len(level) & ~1 :])
        root = levels[-1][0]
        counted = accounts if accounts is not None else len(balances)
        statement = ClosingStatement(
            ledger="test-cny",
            currency="CNY",
            closing=closing,
            kind=ClosingKind.DAY,
            day=date(2026, 11, 22),
            block=9,
            block_commitment=commitment,
            seq=100,
            booked_at=datetime(2026, 11, 22, 15, tzinfo=UTC),
            accounts=counted,
            leaves=counted * sum_tree.SHARES,
            root=root.hash,
            root_total_minor=root.sum,
            issued_minor=ISSUED,
            redeemed_minor=ISSUED - root.sum,
            circulation_minor=root.sum,
            vaults_minor=0,
            wallets_minor=root.sum,
            offline_minor=0,
            previous=previous,
        )
        return CheatingClosing(leaves, levels, statement, sign_statement(statement, name=ORIGIN, key=SIGNING), key)

    def path(self, index: int) -> list[Node]:
        found = []
        for level in self.levels[:-1]:
            if index ^ 1 < len(level):
                found.append(level[index ^ 1])
            index //= 2
        return found

    def share_at(self, index: int) -> dict[str, Any]:
        leaf = self.leaves[index]
        return {
            "index": index,
            "salt": leaf.salt.hex(),
            "sum_minor": str(leaf.sum),
            "path": [{"hash": node.hash.hex(), "sum_minor": str(node.sum)} for node in self.path(index)],
        }

    def document(
        self, account: int, *, indexes: Sequence[int] | None = None, balance: int | None = None
    ) -> dict[str, object]:
        """A proof as JSON, whether it holds or not. `indexes`: whose leaves to show; by default the account's."""
        places = indexes or [
            index
            for share in range(sum_tree.SHARES)
            for index, leaf in enumerate(self.leaves)
            if (leaf.account, leaf.share) == (account, share)
        ]
        total = sum(self.leaves[index].sum for index in places)
        return {
            "format": "jiaozi-balance-proof/v1",
            "statement": self.note,
            "account": show_account(account),
            "balance_minor": str(total if balance is None else balance),
            "shares": [self.share_at(index) for index in places],
        }

    def proof(self, account: int) -> BalanceProof:
        return BalanceProof.model_validate(self.document(account))

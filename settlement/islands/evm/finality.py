"""What of a chain is final, as its configured nodes show it together.

A leg counts only in a final block: one with `confirmations` blocks (itself included) on it, or one that the node calls
`finalized`. The last final block seen is remembered: a node that is behind it, or shows another block at its height,
lags or answers from a fork (or the chain was reorganised deeper than its finality), and nothing it says counts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, quantity

FINALIZED = "finalized"
CONFIRMATIONS_MAX = 10_000


class NodeAstray(Exception):
    """The nodes' view cannot be used now; the text says why."""


@dataclass(frozen=True, slots=True)
class Block:
    """`timestamp` in UNIX seconds."""

    number: int
    hash: str
    timestamp: int


class FinalBlocks(Protocol):
    """Where the last final block of each ledger is remembered."""

    def last(self, ledger: str) -> tuple[int, str] | None: ...
    def remember(self, ledger: str, number: int, block_hash: str) -> None: ...


class FinalBlocksInMemory:
    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def last(self, ledger: str) -> tuple[int, str] | None:
        return self._found.get(ledger)

    def remember(self, ledger: str, number: int, block_hash: str) -> None:
        self._found[ledger] = (number, block_hash)


class ChainView:
    """The first node is asked for states; the others only witness that it shows the same final block."""

    def __init__(
        self,
        ledger: str,
        nodes: Sequence[Node],
        *,
        chain_id: int,
        confirmations: int | None,
        memory: FinalBlocks,
    ) -> None:
        """`confirmations` from 1; None = the node's `finalized`."""
        if not nodes or (confirmations is not None and not 1 <= confirmations <= CONFIRMATIONS_MAX):
            raise ValueError("at least one node, and 1 or more confirmations")
        self._ledger = ledger
        self._nodes = list(nodes)
        self._chain_id = chain_id
        self._confirmations = confirmations
        self._memory = memory
        self._lock = threading.Lock()

    def final(self) -> Block:
        """The newest final block that all nodes agree on. Raises NodeUnreachable, NodeAstray."""
        remembered = self._memory.last(self._ledger)
        known = hex(remembered[0]) if remembered else "0x0"
        newest: list[int] = []
        for node in self._nodes:
            tag = FINALIZED if self._confirmations is None else "latest"
            chain, head, old = node.batch(
                [("eth_chainId", []), ("eth_getBlockByNumber", [tag, False]), ("eth_getBlockByNumber", [known, False])]
            )
            if isinstance(chain, NodeRefused) or quantity(chain) != self._chain_id:
                raise NodeAstray(f"{node.name} is a node of another chain")
            top = _block(head)
            if top is None:
                raise NodeAstray(f"{node.name} has no final block yet")
            if remembered is not None:
                self._compare(node, remembered, _block(old))
            newest.append(top.number if self._confirmations is None else top.number - self._confirmations + 1)
        return self._agreed(max(0, min(newest)), remembered)

    def _compare(self, node: Node, remembered: tuple[int, str], shown: Block | None) -> None:
        number, wanted = remembered
        if shown is None:
            raise NodeAstray(f"{node.name} lags: it does not have block {number}, which was final")
        if shown.hash != wanted:
            raise NodeAstray(
                f"{node.name} answers from a fork: its block {number} is {shown.hash[:18]}, the final one {wanted[:18]}"
            )

    def _agreed(self, number: int, remembered: tuple[int, str] | None) -> Block:
        if remembered is not None and number < remembered[0]:
            raise NodeAstray(f"the newest final block is {number}; {remembered[0]} was final already")
        found: Block | None = None
        for node in self._nodes:
            block = _block(node.batch([("eth_getBlockByNumber", [hex(number), False])])[0])
            if block is None:
                raise NodeAstray(f"{node.name} does not have block {number}")
            if found is not None and block.hash != found.hash:
                raise NodeAstray(f"the nodes show different blocks {number}: one answers from a fork")
            found = found or block
        if found is None:
            raise NodeAstray("no node is configured")
        with self._lock:  # two threads may be here: the later block stays remembered
            last = self._memory.last(self._ledger)
            if last is None or last[0] < found.number:
                self._memory.remember(self._ledger, found.number, found.hash)
        return found


def _block(value: Any) -> Block | None:
    if value is None or isinstance(value, NodeRefused):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("hash"), str):
        raise NodeUnreachable("a node answered no block where one was due")
    return Block(quantity(value.get("number")), value["hash"], quantity(value.get("timestamp")))

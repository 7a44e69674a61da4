"""One party of a hash-time-lock swap between two EVM chains: its own keys, its own view of both, no common log.

    party = HtlcParty(Role.FOLLOWER, swap, a=ChainSide(...), b=ChainSide(...), secret=None)
    while party.advance() not in (Step.DONE, Step.LOST): wait a little

`advance` reads both chains' final blocks, decides by `settlement.domain.htlc` and sends at most one transaction. It
keeps nothing but the secret: after a crash the next `advance` goes on from the chains. The contract is the decision
escrow's (`escrow.sol`), in its hash-time-lock mode: no abort hash, a deadline.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from eth_utils.address import to_checksum_address

from settlement.domain.htlc import LockState, Role, Step, TimeLocks, View, next_step
from settlement.islands.evm.contracts import ESCROW, AbiMismatch, chain_id_of_hold
from settlement.islands.evm.finality import ChainView
from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, data_bytes
from settlement.islands.evm.sender import Sender

_NO_ABORT_HASH = bytes(32)


@dataclass(frozen=True, slots=True)
class LockTerms:
    """One side: `amount_units` of `token` from `payer` to `payee` (checksummed addresses) on one chain's escrow."""

    escrow: str
    token: str
    payer: str
    payee: str
    amount_units: int
    first_block: int = 0


@dataclass(frozen=True, slots=True)
class Swap:
    """Agreed by both before anything is locked. The initiator is A's payer, the follower B's."""

    id: UUID
    hash: bytes
    """SHA-256 of the secret (32 bytes)."""
    a: LockTerms
    b: LockTerms
    locks: TimeLocks


@dataclass(frozen=True, slots=True)
class ChainSide:
    """A party's own access to a chain."""

    node: Node
    view: ChainView
    sender: Sender


class HtlcParty:
    def __init__(self, role: Role, swap: Swap, *, a: ChainSide, b: ChainSide, secret: bytes | None = None) -> None:
        """`secret` is the initiator's. Raises ValueError if it is not the hash's, or the follower is given one."""
        if (secret is not None) != (role is Role.INITIATOR):
            raise ValueError("the initiator has the secret, the follower learns it from chain B")
        if secret is not None and hashlib.sha256(secret).digest() != swap.hash:
            raise ValueError("the secret is not the hash's")
        self._role = role
        self._swap = swap
        self._a = a
        self._b = b
        self._secret = secret

    def look(self) -> View:
        """Raises NodeUnreachable, NodeAstray, NodeRefused: then nothing is known, and nothing is done."""
        state_a, now_a = self._state(self._a, self._swap.a, self._swap.locks.t1)
        state_b, now_b = self._state(self._b, self._swap.b, self._swap.locks.t2)
        if self._secret is None and state_b is LockState.CLAIMED:
            self._secret = self._revealed()
        return View(state_a, state_b, now_a, now_b, self._secret is not None)

    def advance(self) -> Step:
        """One look, one decision, at most one transaction. Raises as `look` does, and GasTooDear."""
        step = next_step(self._role, self._swap.locks, self.look())
        is_initiator = self._role is Role.INITIATOR
        own, own_terms = (self._a, self._swap.a) if is_initiator else (self._b, self._swap.b)
        other, other_terms = (self._b, self._swap.b) if is_initiator else (self._a, self._swap.a)
        deadline = self._swap.locks.t1 if is_initiator else self._swap.locks.t2
        key = chain_id_of_hold(self._swap.id)
        match step:
            case Step.LOCK:
                call = ESCROW.call(
                    "lock",
                    key,
                    own_terms.token,
                    own_terms.payee,
                    own_terms.amount_units,
                    self._swap.hash,
                    _NO_ABORT_HASH,
                    deadline,
                    key,
                )
                self._send(own, own_terms, "lock", call)
            case Step.CLAIM if self._secret is not None:
                call = ESCROW.call("commit", other_terms.payer, key, self._secret)
                self._send(other, other_terms, "claim", call)
            case Step.TAKE_BACK:
                self._send(own, own_terms, "take back", ESCROW.call("expire", own_terms.payer, key))
            case _:
                pass
        return step

    def _send(self, side: ChainSide, terms: LockTerms, what: str, call: bytes) -> None:
        side.sender.refresh()
        name = f"{what} {self._swap.id}"
        if name in side.sender.under_way():
            return
        asked = {"from": side.sender.address, "to": terms.escrow, "data": "0x" + call.hex()}
        try:
            side.node.call("eth_call", asked, "latest")
        except NodeRefused:
            return  # done already in a block that is not final yet, or not to be done: the next look shows
        side.sender.send(terms.escrow, call, keys=frozenset({name}), ends=2)

    def _state(self, side: ChainSide, terms: LockTerms, deadline: int) -> tuple[LockState, int]:
        """The lock in the newest final block; the chain's clock is that of its newest block."""
        block = side.view.final()
        key = chain_id_of_hold(self._swap.id)
        data = ESCROW.call("lookUp", [terms.payer], [key], [_NO_ABORT_HASH])
        asked = {"to": terms.escrow, "data": "0x" + data.hex()}
        answer = data_bytes(side.node.call("eth_call", asked, {"blockHash": block.hash}))
        try:
            ((hold,), _) = ESCROW.result("lookUp", answer)
        except AbiMismatch:
            raise NodeUnreachable(f"no escrow answers at {terms.escrow}") from None
        newest = side.node.call("eth_getBlockByNumber", "latest", False)
        return _lock_state(hold, terms, self._swap.hash, deadline), int(newest["timestamp"], 16)

    def _revealed(self) -> bytes | None:
        """The secret that a final claim on B has shown."""
        block = self._b.view.final()
        asked = {
            "address": self._swap.b.escrow,
            "topics": [
                "0x" + ESCROW.topic("Posted").hex(),
                _word(self._swap.b.payer),
                None,
                "0x" + chain_id_of_hold(self._swap.id).hex(),
            ],
            "fromBlock": hex(self._swap.b.first_block),
            "toBlock": hex(block.number),
        }
        for item in self._b.node.call("eth_getLogs", asked):
            _, fields = ESCROW.event([data_bytes(topic) for topic in item["topics"]], data_bytes(item["data"]))
            secret = bytes(fields["secret"])
            if hashlib.sha256(secret).digest() == self._swap.hash:
                return secret
        return None


def _lock_state(hold: Any, terms: LockTerms, wanted_hash: bytes, deadline: int) -> LockState:
    payee, found_deadline, _, standing, token, amount, commit_hash, abort_hash = hold
    if standing == 0:
        return LockState.ABSENT
    is_agreed = (
        to_checksum_address(payee) == terms.payee
        and to_checksum_address(token) == terms.token
        and (amount, found_deadline) == (terms.amount_units, deadline)
        and (commit_hash, abort_hash) == (wanted_hash, _NO_ABORT_HASH)
    )
    if not is_agreed:
        return LockState.OTHER
    return (LockState.HELD, LockState.CLAIMED, LockState.RETURNED)[standing - 1]


def _word(address: str) -> str:
    return "0x" + "00" * 12 + address[2:].lower()

"""The payer's side of an EVM leg: its institution signs the lock, in its own house, with its own key and nonces.

Every lock it signs uses up one nonce of the payer's address, so every one of them must reach the chain, or the later
ones wait for ever: `pump` sends again what is not in a block yet. That is safe for a leg that was aborted meanwhile:
its lock is refused by the tombstone (and fills the gap), or its hold is voided with the published secret.

    signer = PayerSigner(terms, node, load_account(path), journal=Path("locks.jsonl"), gas=GasPolicy())
    token = signer.sign(order)      # durable before it is given away; the same order gets the same answer
    signer.pump()                   # at start, and every few seconds
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from eth_account.signers.local import LocalAccount

from kernel.ids import ParticipantId
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import AuthorisationOutcome, Authoriser, LegOrder
from settlement.islands.evm.contracts import TOKEN
from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, data_bytes, quantity
from settlement.islands.evm.sender import GasPolicy, GasTooDear
from settlement.islands.evm.terms import EvmTerms, check_lock
from settlement.islands.port import Refused, Unknown

LOCK_GAS = 350_000
"""A lock of a plain ERC-20 takes about 190,000."""
ALLOWANCE_MAX = 2**256 - 1


@dataclass(frozen=True, slots=True)
class _Signed:
    nonce: int
    raw: str
    terms: str
    """The calldata: the same id with other terms is refused."""


class PayerSigner:
    """One for each payer's address; the journal is locked, so a second one does not start. Thread-safe."""

    def __init__(self, terms: EvmTerms, node: Node, account: LocalAccount, *, journal: Path, gas: GasPolicy) -> None:
        """Raises BlockingIOError if another process has the journal, ValueError if it is of another address."""
        self._terms = terms
        self._node = node
        self._account = account
        self._gas = gas
        self._lock = threading.Lock()
        self._file = os.fdopen(os.open(journal, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "r+b")
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._signed: dict[UUID, _Signed] = {}
        self._read()

    def close(self) -> None:
        self._file.close()

    @property
    def address(self) -> str:
        return str(self._account.address)

    def sign(self, order: HoldOrder) -> AuthorisationOutcome:
        """The signed lock of this order, written to the journal (fsync) before it is given away. Idempotent."""
        if self._terms.address(order.terms.debit) != self.address:
            return Refused(AbortReason.AUTHORISATION_REFUSED.value, "not this payer's account")
        try:
            call = self._terms.lock_call(order)
        except KeyError:
            return Refused(AbortReason.AUTHORISATION_REFUSED.value, "the payee has no address on the chain")
        with self._lock:
            known = self._signed.get(order.hold_id)
            if known is not None:
                if known.terms != call.hex():
                    return Refused(AbortReason.AUTHORISATION_REFUSED.value, "leg-already-authorised")
                return check_lock(self._terms, order, known.raw)
            try:
                token = self._sign(order.hold_id, call)
            except (NodeUnreachable, NodeRefused, GasTooDear) as error:
                return Unknown(str(error)[:200])
        return check_lock(self._terms, order, token)

    def pump(self) -> int:
        """Send every signed lock that is not in a block; how many were sent. Raises NodeUnreachable, NodeRefused."""
        mined = quantity(self._node.call("eth_getTransactionCount", self.address, "latest"))
        with self._lock:
            waiting = sorted((item for item in self._signed.values() if item.nonce >= mined), key=lambda it: it.nonce)
        if waiting:
            self._node.batch([("eth_sendRawTransaction", [item.raw]) for item in waiting])
        return len(waiting)

    def allowance(self) -> int:
        """What the escrow may take of the payer's tokens in locks that the payer sends. Raises as `pump` does."""
        data = TOKEN.call("allowance", self.address, self._terms.escrow)
        asked = {"to": self._terms.token, "data": "0x" + data.hex()}
        return int(TOKEN.result("allowance", data_bytes(self._node.call("eth_call", asked, "latest")))[0])

    def _sign(self, hold_id: UUID, call: bytes) -> str:
        used = max((item.nonce + 1 for item in self._signed.values()), default=0)
        # The account may have sent other transactions; what it signed and never sent is in the journal alone.
        nonce = max(used, quantity(self._node.call("eth_getTransactionCount", self.address, "pending")))
        base_fee = asked = None
        if self._gas.price_wei is None:
            block = self._node.call("eth_getBlockByNumber", "latest", False)
            if isinstance(block, dict) and block.get("baseFeePerGas") is not None:
                base_fee = quantity(block["baseFeePerGas"])
            else:
                asked = quantity(self._node.call("eth_gasPrice"))
        document: dict[str, Any] = {
            "chainId": self._terms.chain_id,
            "to": self._terms.escrow,
            "value": 0,
            "data": call,
            "gas": LOCK_GAS,
            "nonce": nonce,
            **self._gas.fees(base_fee, asked, bumps=0),
        }
        raw = "0x" + bytes(self._account.sign_transaction(document).raw_transaction).hex()
        line = {"hold": str(hold_id), "nonce": nonce, "raw": raw, "call": call.hex(), "payer": self.address}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._signed[hold_id] = _Signed(nonce, raw, call.hex())
        return raw

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # died while writing: that line was never given away
            self._file.truncate(whole)
        for text in content[:whole].splitlines():
            line = json.loads(text)
            if line["payer"] != self.address:
                raise ValueError("the journal is of another address")
            self._signed[UUID(line["hold"])] = _Signed(line["nonce"], line["raw"], line["call"])
        self._file.seek(0, os.SEEK_END)


class EvmAuthoriser:
    """Payers' signers in this process: for tests, demonstrations and institutions that run a bridge of their own."""

    def __init__(self, signers: Mapping[ParticipantId, PayerSigner]) -> None:
        self._signers = signers

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        signer = self._signers.get(payer)
        if signer is None:
            return [Refused("institution-unknown", f"{payer} has no address on this chain")] * len(orders)
        return [signer.sign(order.hold) for order in orders]


class AuthoriserByLedger:
    """Each leg to the authoriser of its ledger, the rest to `default`."""

    def __init__(self, default: Authoriser, by_ledger: Mapping[str, Authoriser]) -> None:
        self._default = default
        self._by_ledger = by_ledger

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        answers: dict[int, AuthorisationOutcome] = {}
        ledgers = {order.hold.terms.ledger for order in orders}
        for ledger in ledgers:
            places = [place for place, order in enumerate(orders) if order.hold.terms.ledger == ledger]
            found = self._by_ledger.get(ledger, self._default).authorise(payer, [orders[place] for place in places])
            answers |= dict(zip(places, found, strict=True))
        return [answers[place] for place in range(len(orders))]

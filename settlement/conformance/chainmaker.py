"""The suite over a ChainMaker chain: a node by its address, with the escrow and a token installed on it.

    jiaozi-settlement conformance --adapter settlement.conformance.chainmaker:on_node --config chain.json

The configuration is in docs/chainmaker.md. Contracts are installed by the chain's administrators, not from here; the
payer must have tokens. It approves the escrow by itself. Time cannot be moved on a node: the cases about it do not run.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from settlement.conformance.subject import Line, NotOffered, Subject
from settlement.domain.escrow import HoldOrder
from settlement.islands.authorisers import AuthorisationOutcome, Authorised
from settlement.islands.chainmaker import wire_pb2 as wire
from settlement.islands.chainmaker.client import (
    Node,
    NodeUnreachable,
    Signer,
    Tls,
    address_of_certificate,
    evm_call,
    load_signer,
    transaction_id,
)
from settlement.islands.chainmaker.config import tls_from
from settlement.islands.chainmaker.entry import ContractName
from settlement.islands.chainmaker.island import ChainMakerIsland
from settlement.islands.chainmaker.payer import PayerSigner
from settlement.islands.chainmaker.terms import VALID_SECONDS, ChainMakerTerms, check_lock
from settlement.islands.evm.contracts import ESCROW, TOKEN, chain_id_of_hold
from settlement.islands.port import Island

ALLOWANCE_MAX = 2**256 - 1


class FaultyNode(Node):
    """The node's client with faults on order for transactions."""

    lose_answers = lose_requests = duplicate = delay = False
    kept: list[wire.TxRequest]

    def send(self, requests: Sequence[wire.TxRequest]) -> list[wire.TxResponse | NodeUnreachable]:
        away: list[wire.TxResponse | NodeUnreachable] = [NodeUnreachable("lost on its way")] * len(requests)
        if self.delay:
            self.kept += requests
            return away
        if self.lose_requests:
            return away
        if self.duplicate:
            super().send(requests)
        answers = super().send(requests)
        return away if self.lose_answers else answers

    def deliver_reversed(self) -> None:
        kept, self.kept = self.kept, []
        for request in reversed(kept):
            super().send([request])


class ChainMakerSubject(Subject):
    ledger = "chainmaker-cny"
    payer, payee = ParticipantId("BKCHCNBJ"), ParticipantId("ICBKCNBJ")
    debit, credit = AccountNumber(11), AccountNumber(12)

    def __init__(
        self,
        url: str,
        *,
        chain_id: str,
        escrow: str,
        token: str,
        token_decimals: int,
        install_tx_id: str,
        bridge: Signer,
        payer: Signer,
        payee: Signer,
        currency: Currency,
        addr_type: str = "chainmaker",
        gas_limit: int | None = None,
        first_block: int = 0,
        wait_seconds: float = 2.0,
        resend_seconds: float = 5.0,
        tls: Tls | None = None,
        clock: Callable[[], float] = time.time,
        move_clock: Callable[[int], None] | None = None,
    ) -> None:
        self.currency = currency
        self._install_tx_id = install_tx_id
        self._first_block = first_block
        self._wait_seconds = wait_seconds
        self._resend_seconds = resend_seconds
        self._move_clock = move_clock
        self._bridge = bridge
        addresses = {
            self.debit: address_of_certificate(payer.certificate, addr_type),
            self.credit: address_of_certificate(payee.certificate, addr_type),
        }
        unit = 10 ** (token_decimals - currency.exponent)
        self.terms = ChainMakerTerms(self.ledger, chain_id, escrow, token, unit, addresses, addr_type, gas_limit)
        self.signer = PayerSigner(self.terms, payer, clock=clock)
        self.faulty = FaultyNode(url, bridge, chain_id=chain_id, tls=tls, clock=clock)
        self.faulty.kept = []
        self._asking, self._payer, self._payee = (
            Node(url, signer, chain_id=chain_id, tls=tls, clock=clock) for signer in (bridge, payer, payee)
        )
        self._island = self._made(self.faulty)
        approve = TOKEN.call("approve", self.terms.escrow_address, ALLOWANCE_MAX)
        self.transact(self._payer, token, approve)

    def close(self) -> None:
        for node in (self.faulty, self._asking, self._payer, self._payee):
            node.close()

    # --- what must be there

    @property
    def island(self) -> Island:
        return self._island

    def authorise(self, order: HoldOrder) -> str:
        outcome = self.signer.sign(order)
        if not isinstance(outcome, Authorised):
            raise ValueError(f"the payer does not sign: {outcome}")
        return outcome.token

    def available(self, account: AccountNumber) -> int:
        call = TOKEN.call("balanceOf", self.terms.addresses[account])
        answer = self._asking.query_evm(self.terms.token, [call])[0]
        return int(TOKEN.result("balanceOf", answer)[0]) // self.terms.unit

    def lines(self, account: AccountNumber) -> Sequence[Line]:
        own = self.terms.addresses[account]
        found = self._island.statement(account)
        return [Line(it.hold_id, (-1 if it.debit == own else 1) * it.amount_units // self.terms.unit) for it in found]

    # --- what may be there

    def check(self, order: HoldOrder, authorisation: str) -> AuthorisationOutcome:
        return check_lock(self.terms, order, authorisation)

    def reopened(self) -> Island:
        return self._made(self.faulty)

    def unreachable(self) -> Island:
        return self._made(Node("grpc://127.0.0.1:9", self._bridge, chain_id=self.terms.chain_id, timeout_seconds=1.0))

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        self.faulty.lose_answers = True
        yield
        self.faulty.lose_answers = False

    @contextmanager
    def losing_requests(self) -> Iterator[None]:
        self.faulty.lose_requests = True
        yield
        self.faulty.lose_requests = False

    @contextmanager
    def duplicating(self) -> Iterator[None]:
        self.faulty.duplicate = True
        yield
        self.faulty.duplicate = False

    @contextmanager
    def delaying(self) -> Iterator[None]:
        self.faulty.delay = True
        yield
        self.faulty.delay = False
        self.faulty.deliver_reversed()

    def pass_time(self, seconds: int) -> None:
        if self._move_clock is None:
            raise NotOffered("the chain's clock cannot be moved")
        self._move_clock(seconds)

    def place_as_payer(self, order: HoldOrder, *, expires_in_seconds: int | None = None) -> None:
        deadline = 0 if expires_in_seconds is None else self._payer.now() + expires_in_seconds
        self.transact(self._payer, self.terms.escrow, self.terms.lock_call(order, deadline=deadline))

    def post_as_payee(self, order: HoldOrder, secret: bytes) -> None:
        payer = self.terms.addresses[order.terms.debit]
        call = ESCROW.call("commit", payer, chain_id_of_hold(order.hold_id), secret)
        self.transact(self._payee, self.terms.escrow, call)

    def reorganising(self) -> Any:
        raise NotOffered("the chain's consensus makes blocks final: nothing may be reorganised")

    # --- the chain

    def transact(self, node: Node, contract: str, data: bytes) -> wire.TransactionInfo:
        """A transaction of somebody else's than the bridge, in a block. Raises RuntimeError if it failed."""
        now = node.now()
        payload = evm_call(
            self.terms.chain_id,
            contract,
            data,
            tx_id=transaction_id("conformance", str(uuid4())),
            timestamp=now,
            expiration_time=now + VALID_SECONDS,
            gas_limit=self.terms.gas_limit,
        )
        answer = node.send([node.signer.signed(payload)])[0]
        if isinstance(answer, NodeUnreachable):
            raise answer
        if answer.code != 0:
            raise RuntimeError(f"a transaction of the test's own was not taken: {answer.message}")
        until = time.monotonic() + self.patience_seconds
        while (info := node.transactions([payload.tx_id])[0]) is None:
            if time.monotonic() > until:
                raise NodeUnreachable("a transaction came into no block in time")
            time.sleep(0.01)
        if info.transaction.result.code != 0:
            raise RuntimeError(f"a transaction of the test's own failed: {info.transaction.result.contract_result}")
        return info

    def _made(self, node: Node) -> ChainMakerIsland:
        return ChainMakerIsland(
            self.terms,
            node,
            install_tx_id=self._install_tx_id,
            first_block=self._first_block,
            wait_seconds=self._wait_seconds,
            poll_seconds=0.01,
            resend_seconds=self._resend_seconds,
        )


class Identity(BaseModel):
    model_config = ConfigDict(extra="forbid")

    org_id: str
    key_path: Path
    certificate_path: Path

    def load(self) -> Signer:
        return load_signer(self.org_id, self.key_path, self.certificate_path)


class NodeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str
    chain_id: str
    escrow: ContractName
    install_tx_id: str
    token: ContractName
    token_decimals: int = Field(ge=0, le=36)
    currency: str = "CNY"
    bridge: Identity
    payer: Identity
    payee: Identity
    addr_type: str = Field(default="chainmaker", pattern="^(chainmaker|ethereum)$")
    gas_limit: int | None = Field(default=None, ge=1)
    first_block: int = Field(default=0, ge=0)
    patience_seconds: float = Field(default=30.0, gt=0, le=3_600)
    wait_seconds: float = Field(default=2.0, gt=0, le=60)
    tls_ca_path: Path | None = None
    tls_key_path: Path | None = None
    tls_certificate_path: Path | None = None
    tls_server_name: str | None = None


@contextmanager
def on_node(config: Mapping[str, Any]) -> Iterator[Subject]:
    """The factory. Raises ValueError for a configuration that is none, NodeUnreachable if nothing answers."""
    found = NodeConfig.model_validate_json(json.dumps(dict(config)))
    subject = ChainMakerSubject(
        found.url,
        chain_id=found.chain_id,
        escrow=found.escrow,
        token=found.token,
        token_decimals=found.token_decimals,
        install_tx_id=found.install_tx_id,
        bridge=found.bridge.load(),
        payer=found.payer.load(),
        payee=found.payee.load(),
        currency=Currency.of(found.currency),
        addr_type=found.addr_type,
        gas_limit=found.gas_limit,
        first_block=found.first_block,
        wait_seconds=found.wait_seconds,
        tls=tls_from(found.tls_ca_path, found.tls_key_path, found.tls_certificate_path, found.tls_server_name),
    )
    subject.patience_seconds = found.patience_seconds
    try:
        yield subject
    finally:
        subject.close()

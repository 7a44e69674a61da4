"""The suite over an EVM chain: a real node by its URL, with contracts deployed for the occasion.

    jiaozi-settlement conformance --adapter settlement.conformance.evm:on_node --config besu.json

    {"url": "http://127.0.0.1:8545", "key_path": "funded.key", "confirmations": 1, "patience_seconds": 60}

`key_path` (32 bytes in hex, mode 0600) is an account with gas money: it deploys the escrow and a test token, and pays
for the payer's and the payee's own accounts. `"confirmations": null` means the node's `finalized`. On anvil, and on any
node that speaks its `evm_*` and `anvil_*` methods, the cases about time and reorganisations run too.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from pydantic import BaseModel, ConfigDict, Field

from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from settlement.conformance.subject import Line, NotOffered, Subject
from settlement.domain.escrow import HoldOrder
from settlement.islands.authorisers import AuthorisationOutcome, Authorised
from settlement.islands.evm.contracts import ESCROW, TOKEN, chain_id_of_hold
from settlement.islands.evm.finality import ChainView, FinalBlocksInMemory
from settlement.islands.evm.island import EvmIsland
from settlement.islands.evm.payer import ALLOWANCE_MAX, PayerSigner
from settlement.islands.evm.rpc import Node, NodeRefused, NodeUnreachable, data_bytes, quantity
from settlement.islands.evm.sender import GasPolicy, load_account
from settlement.islands.evm.sender import Sender as EvmSender
from settlement.islands.evm.terms import EvmTerms, check_lock
from settlement.islands.port import Island

FUNDS_MINOR = 1_000_000
UNIT = 100
"""The test token has four decimals, the currency two: so that a forgotten scale shows."""
_ETHER = 10**18


class FaultyTransport(httpx.BaseTransport):
    """Another transport, with faults on order for requests that send transactions."""

    def __init__(self, inner: httpx.BaseTransport) -> None:
        self._inner = inner
        self.lose_answers = False
        self.lose_requests = False
        self.duplicate = False
        self.delay = False
        self._kept: list[bytes] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        content = request.read()
        if b"eth_sendRawTransaction" not in content:
            return self._inner.handle_request(request)
        if self.delay:
            self._kept.append(content)
            raise httpx.ReadTimeout("kept back", request=request)
        if self.lose_requests:
            raise httpx.ConnectError("lost on its way", request=request)
        if self.duplicate:
            self._inner.handle_request(request).read()
        response = self._inner.handle_request(request)
        if self.lose_answers:
            response.read()
            raise httpx.ReadTimeout("its answer was lost", request=request)
        return response

    def deliver_reversed(self, url: str) -> None:
        kept, self._kept = self._kept, []
        for content in reversed(kept):
            headers = {"content-type": "application/json"}
            self._inner.handle_request(httpx.Request("POST", url, content=content, headers=headers)).read()

    def close(self) -> None:
        self._inner.close()


class EvmSubject(Subject):
    """Contracts, accounts and an adapter on one chain. `chain_commands` are those of anvil, where they exist."""

    ledger = "evm-cny"
    currency = Currency.of("CNY")
    payer, payee = ParticipantId("BKCHCNBJ"), ParticipantId("ICBKCNBJ")
    debit, credit = AccountNumber(11), AccountNumber(12)

    def __init__(
        self,
        url: str,
        funder: LocalAccount,
        directory: Path,
        *,
        confirmations: int | None,
        gas: GasPolicy,
        transport: httpx.BaseTransport | None = None,
        wait_seconds: float = 2.0,
        resend_seconds: float = 5.0,
    ) -> None:
        self.url = url
        self._gas = gas
        self._confirmations = confirmations
        self._wait_seconds = wait_seconds
        self._resend_seconds = resend_seconds
        self.transport = FaultyTransport(transport or httpx.HTTPTransport(retries=0))
        self.node = Node(url, transport=transport)
        self._faulty_node = Node(url, transport=self.transport)
        self.chain_id = quantity(self.node.call("eth_chainId"))
        self._funder = funder
        self.bridge, self.payer_account, self.payee_account = (_fresh() for _ in range(3))
        escrow = self.deploy(ESCROW.deployment())
        token = self.deploy(TOKEN.deployment(["Test yuan", "CNYT", 4]))
        addresses = {self.debit: self.payer_account.address, self.credit: self.payee_account.address}
        self.terms = EvmTerms(self.ledger, self.chain_id, escrow, token, UNIT, addresses)
        if gas.price_wei != 0:
            for account in (self.bridge, self.payer_account, self.payee_account):
                self.transact(self._funder, account.address, b"", value=_ETHER, gas=21_000)
        self.transact(self._funder, token, TOKEN.call("mint", self.payer_account.address, FUNDS_MINOR * UNIT))
        self.transact(self.payer_account, token, TOKEN.call("approve", escrow, ALLOWANCE_MAX))
        self.signer = PayerSigner(
            self.terms, self.node, self.payer_account, journal=directory / f"{secrets.token_hex(8)}.jsonl", gas=gas
        )
        self._island = self._made(self._faulty_node)

    def close(self) -> None:
        self.signer.close()
        self.node.close()
        self._faulty_node.close()

    # --- what must be there

    @property
    def island(self) -> Island:
        return self._island

    def authorise(self, order: HoldOrder) -> str:
        """As the payer's institution would: raises ValueError where it refuses."""
        outcome = self.signer.sign(order)
        if not isinstance(outcome, Authorised):
            raise ValueError(f"the payer does not sign: {outcome}")
        return outcome.token

    def available(self, account: AccountNumber) -> int:
        asked = {"to": self.terms.token, "data": _hex(TOKEN.call("balanceOf", self.terms.addresses[account]))}
        units = int(TOKEN.result("balanceOf", data_bytes(self.node.call("eth_call", asked, "latest")))[0])
        return units // UNIT

    def lines(self, account: AccountNumber) -> Sequence[Line]:
        own = self.terms.addresses[account]
        found = self._island.statement(account)
        return [Line(it.hold_id, (-1 if it.debit == own else 1) * it.amount_units // UNIT) for it in found]

    # --- what may be there

    def check(self, order: HoldOrder, authorisation: str) -> AuthorisationOutcome:
        return check_lock(self.terms, order, authorisation)

    def reopened(self) -> Island:
        return self._made(self._faulty_node)

    def unreachable(self) -> Island:
        return self._made(Node("http://127.0.0.1:9", timeout_seconds=1.0))

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        self.transport.lose_answers = True
        yield
        self.transport.lose_answers = False

    @contextmanager
    def losing_requests(self) -> Iterator[None]:
        self.transport.lose_requests = True
        yield
        self.transport.lose_requests = False

    @contextmanager
    def duplicating(self) -> Iterator[None]:
        self.transport.duplicate = True
        yield
        self.transport.duplicate = False

    @contextmanager
    def delaying(self) -> Iterator[None]:
        self.transport.delay = True
        yield
        self.transport.delay = False
        self.transport.deliver_reversed(self.url)

    def pass_time(self, seconds: int) -> None:
        self.command("evm_increaseTime", seconds)
        self.command("evm_mine")

    def place_as_payer(self, order: HoldOrder, *, expires_in_seconds: int | None = None) -> None:
        deadline = 0
        if expires_in_seconds is not None:
            deadline = quantity(self.node.call("eth_getBlockByNumber", "latest", False)["timestamp"])
            deadline += expires_in_seconds
        data = ESCROW.call(
            "lock",
            chain_id_of_hold(order.hold_id),
            self.terms.token,
            self.terms.addresses[order.terms.credit],
            order.terms.amount.amount_minor * UNIT,
            order.commit_hash,
            order.abort_hash,
            deadline,
            chain_id_of_hold(order.reference),
        )
        self.transact(self.payer_account, self.terms.escrow, data)
        self.finalise()

    def post_as_payee(self, order: HoldOrder, secret: bytes) -> None:
        payer = self.terms.addresses[order.terms.debit]
        data = ESCROW.call("commit", payer, chain_id_of_hold(order.hold_id), secret)
        self.transact(self.payee_account, self.terms.escrow, data)

    @contextmanager
    def reorganising(self) -> Iterator[None]:
        if self._confirmations is None or self._confirmations < 2:
            raise NotOffered("with one confirmation every block is final: nothing may be reorganised")
        taken = self.command("evm_snapshot")
        yield
        self.command("evm_revert", taken)
        self.command("evm_increaseTime", 1)  # so that the new branch's blocks are other ones
        self.command("evm_mine")

    def finalise(self) -> None:
        """The payer's institution sends what it signed; where blocks come with transactions alone, some more come."""
        self.signer.pump()
        for _ in range((self._confirmations or 1) - 1):
            try:
                self.command("evm_mine")
            except NotOffered:
                time.sleep(0.1)

    # --- the chain

    def command(self, method: str, *params: Any) -> Any:
        try:
            return self.node.call(method, *params)
        except NodeRefused as error:
            raise NotOffered(f"the node has no {method}: {error.message}") from None

    def deploy(self, code: bytes) -> str:
        receipt = self.transact(self._funder, None, code, gas=6_000_000)
        return _checksum(str(receipt["contractAddress"]))

    def transact(
        self, account: LocalAccount, to: str | None, data: bytes, *, value: int = 0, gas: int = 500_000
    ) -> dict[str, Any]:
        """A transaction of somebody else's than the bridge, mined. Raises RuntimeError if it was reverted."""
        block = self.node.call("eth_getBlockByNumber", "latest", False)
        base_fee = quantity(block["baseFeePerGas"]) if block.get("baseFeePerGas") else None
        asked = None if base_fee is not None else quantity(self.node.call("eth_gasPrice"))
        document: dict[str, Any] = {
            "chainId": self.chain_id,
            "value": value,
            "data": data,
            "gas": gas,
            "nonce": quantity(self.node.call("eth_getTransactionCount", account.address, "pending")),
            **self._gas.fees(base_fee, asked, bumps=0),
        }
        if to is not None:
            document["to"] = to
        raw = account.sign_transaction(document).raw_transaction
        key = self.node.call("eth_sendRawTransaction", _hex(bytes(raw)))
        until = time.monotonic() + self.patience_seconds
        while (receipt := self.node.call("eth_getTransactionReceipt", key)) is None:
            if time.monotonic() > until:
                raise NodeUnreachable("a transaction was not mined in time")
            time.sleep(0.05)
        if quantity(receipt["status"]) != 1:
            raise RuntimeError("a transaction of the test's own was reverted")
        return dict(receipt)

    def _made(self, node: Node) -> EvmIsland:
        confirmations = self._confirmations
        view = ChainView(
            self.ledger, [node], chain_id=self.chain_id, confirmations=confirmations, memory=FinalBlocksInMemory()
        )
        resend = self._resend_seconds
        sender = EvmSender(node, self.bridge, chain_id=self.chain_id, gas=self._gas, resend_seconds=resend)
        return EvmIsland(
            self.terms,
            node,
            view,
            sender,
            wait_seconds=self._wait_seconds,
            poll_seconds=0.02,
            resend_seconds=resend,
        )


class NodeConfig(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str
    key_path: Path
    confirmations: int | None = Field(default=1, ge=1, le=10_000)
    patience_seconds: float = Field(default=30.0, gt=0, le=3_600)
    wait_seconds: float = Field(default=2.0, gt=0, le=60)
    gas_price_wei: int | None = Field(default=None, ge=0)
    gas_price_max_wei: int = Field(default=500 * 10**9, ge=0)


@contextmanager
def on_node(config: Mapping[str, Any]) -> Iterator[Subject]:
    """The factory. Raises ValueError for a configuration that is none, NodeUnreachable if nothing answers."""
    found = NodeConfig.model_validate_json(json.dumps(dict(config)))
    gas = GasPolicy(max_wei=found.gas_price_max_wei, price_wei=found.gas_price_wei)
    with tempfile.TemporaryDirectory() as directory:
        subject = EvmSubject(
            found.url,
            load_account(found.key_path),
            Path(directory),
            confirmations=found.confirmations,
            gas=gas,
            wait_seconds=found.wait_seconds,
        )
        subject.patience_seconds = found.patience_seconds
        try:
            yield subject
        finally:
            subject.close()


def _fresh() -> LocalAccount:
    made: LocalAccount = Account.create()
    return made


def _checksum(address: str) -> str:
    return str(to_checksum_address(address))


def _hex(data: bytes) -> str:
    return "0x" + data.hex()

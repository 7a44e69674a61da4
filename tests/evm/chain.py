"""An EVM chain in process, on py-evm: for unit tests of the contracts and, behind JSON-RPC, of the island's adapter.

    chain = Chain()
    alice = chain.account()
    token = chain.deploy(contracts.TOKEN, ["Yuan", "CNY", 2])
    chain.send(alice, token, contracts.TOKEN.call("approve", escrow, 100))

A transaction is in a block of its own at once. It speaks just enough JSON-RPC for the adapter (`rpc`).
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from eth import constants
from eth.chains.base import MiningChain
from eth.consensus.noproof import NoProofConsensus
from eth.db.atomic import AtomicDB
from eth.db.backends.memory import MemoryDB
from eth.vm.forks.london import LondonVM
from eth.vm.spoof import SpoofTransaction
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from settlement.islands.evm.contracts import ESCROW, TOKEN, Contract

logging.getLogger("eth").setLevel(logging.WARNING)

CHAIN_ID = 61_337
GAS_LIMIT = 30_000_000
_ETHER = 10**18


class Reverted(Exception):
    """A call that was reverted; `name` is the contract's error, or empty."""

    def __init__(self, output: bytes) -> None:
        self.output = output
        self.name = ESCROW.error_name(output) or TOKEN.error_name(output) or ""
        super().__init__(self.name or "reverted")


@dataclass(frozen=True)
class Mined:
    """A transaction's receipt: gas, and logs as (address, topics, data)."""

    status: int
    gas_used: int
    logs: tuple[tuple[str, list[bytes], bytes], ...]
    contract: str
    output: bytes


class _Rejected(Exception):
    pass


class Chain:
    def __init__(self, *, chain_id: int = CHAIN_ID) -> None:
        self.chain_id = chain_id
        self.issuer: LocalAccount = Account.create()
        vm = LondonVM.configure(consensus_class=NoProofConsensus)
        maker = MiningChain.configure("TestChain", vm_configuration=((constants.GENESIS_BLOCK_NUMBER, vm),))
        self._maker = maker.configure(chain_id=chain_id)
        self._store: dict[bytes, bytes] = {}
        genesis: Any = {
            "difficulty": 1,
            "gas_limit": GAS_LIMIT,
            "timestamp": 1_800_000_000,
            "coinbase": constants.ZERO_ADDRESS,
            "extra_data": b"jiaozi",
            "mix_hash": constants.ZERO_HASH32,
            "nonce": b"\0" * 8,
        }
        rich: Any = {
            self.issuer_bytes: {"balance": 10**9 * _ETHER, "nonce": 0, "code": b"", "storage": {}},
        }
        self._db = AtomicDB(MemoryDB(self._store))
        self._chain: Any = self._maker.from_genesis(self._db, genesis, rich)
        self._head = 0
        self._hashes: dict[bytes, tuple[int, int]] = {}
        self._raw: dict[bytes, bytes] = {}
        self._created: dict[bytes, str] = {}
        self._seconds_waiting = 0
        self._branch = 0
        self._taken: list[Any] = []
        self._lock = threading.RLock()
        self.is_mining = True
        self.queue: list[bytes] = []
        """Raw transactions that wait for `mine()` while `is_mining` is False."""

    @property
    def issuer_bytes(self) -> bytes:
        return bytes.fromhex(self.issuer.address[2:])

    # --- what tests do

    def account(self, *, ether: int = 1_000) -> LocalAccount:
        """A fresh account with gas money."""
        made: LocalAccount = Account.create()
        if ether:
            self._apply(self._signed(self.issuer, made.address, b"", value=ether * _ETHER))
        return made

    def deploy(self, contract: Contract, arguments: Sequence[object] = (), *, by: LocalAccount | None = None) -> str:
        raw = self._signed(by or self.issuer, None, contract.deployment(arguments), gas=6_000_000)
        mined = self._apply(raw)
        if mined.status != 1:
            raise RuntimeError("the deployment failed")
        return mined.contract

    def send(self, account: LocalAccount, to: str, data: bytes, *, gas: int = 3_000_000) -> Mined:
        """Mine a transaction. Raises Reverted with the name of the contract's error."""
        mined = self._apply(self._signed(account, to, data, gas=gas))
        if mined.status != 1:
            raise Reverted(mined.output)
        return mined

    def call(self, to: str, data: bytes, *, sender: str | None = None, at: int | None = None, gas: int = 0) -> bytes:
        """eth_call at a block's state. Raises Reverted."""
        header = self._chain.get_canonical_block_header_by_number(self._head if at is None else at)
        vm = self._chain.get_vm(header)
        builder = vm.get_transaction_builder()
        caller = _bytes(sender) if sender else b"\x01" * 20
        nonce = vm.state.get_nonce(caller)
        unsigned = builder.create_unsigned_transaction(
            nonce=nonce, gas_price=0, gas=gas or GAS_LIMIT, to=_bytes(to), value=0, data=data
        )
        spoofed = SpoofTransaction(unsigned, from_=caller)
        # On top of the block: its state, and the time of the next.
        ahead = header.copy(
            gas_used=0, base_fee_per_gas=0, block_number=header.block_number + 1, timestamp=self._next_timestamp(header)
        )
        state = self._chain.get_vm_class_for_block_number(ahead.block_number).build_state(
            self._chain.chaindb.db, ahead, self._chain, header.state_root
        )
        computation = state.costless_execute_transaction(spoofed)
        if computation.is_error:
            raise Reverted(bytes(computation.output))
        return bytes(computation.output)

    def mine(self, count: int = 1, *, seconds: int = 0) -> None:
        """Blocks: first the queued transactions, one each, then empty ones; the clock goes on by `seconds`."""
        self._seconds_waiting += seconds
        queued, self.queue = self.queue, []
        for raw in queued:
            try:
                self._apply(raw)
            except _Rejected:
                self.queue.append(raw)
        for _ in range(count):
            self._set_time()
            self._chain.mine_block()
            self._head += 1

    def snapshot(self) -> Any:
        return (dict(self._store), self._head, dict(self._hashes))

    def revert(self, taken: Any) -> list[bytes]:
        """A reorganisation: everything after the snapshot is gone. Returns the raw transactions that were undone."""
        store, head, hashes = taken
        gone = [self._raw[key] for key in self._hashes if key not in hashes]
        self._store.clear()
        self._store.update(store)
        self._chain = self._maker(self._db)
        self._head, self._hashes = head, dict(hashes)
        self._branch += 1
        self._seconds_waiting = self._branch  # so that no block of the new branch is one of the old
        return gone

    # --- inside

    def _signed(
        self, account: LocalAccount, to: str | None, data: bytes, *, value: int = 0, gas: int = 100_000
    ) -> bytes:
        document: dict[str, Any] = {
            "nonce": self._nonce(account.address),
            "gas": gas,
            "gasPrice": 10**10,
            "value": value,
            "data": data,
            "chainId": self.chain_id,
        }
        if to is not None:
            document["to"] = to
        return bytes(account.sign_transaction(document).raw_transaction)

    def _nonce(self, address: str) -> int:
        return int(self._chain.get_vm().state.get_nonce(_bytes(address)))

    def _next_timestamp(self, parent: Any) -> int:
        return int(parent.timestamp) + 1 + self._seconds_waiting

    def _set_time(self) -> None:
        parent = self._chain.get_canonical_head()
        self._chain.header = self._chain.header.copy(timestamp=self._next_timestamp(parent))
        self._seconds_waiting = 0

    def _apply(self, raw: bytes) -> Mined:
        self._set_time()
        transaction = self._chain.get_vm().get_transaction_builder().decode(raw)
        nonce = self._nonce(to_checksum_address(transaction.sender))
        if transaction.nonce != nonce:
            raise _Rejected("nonce too low" if transaction.nonce < nonce else "nonce too high")
        _, receipt, computation = self._chain.apply_transaction(transaction)
        self._chain.mine_block()
        self._head += 1
        key = keccak(raw)
        self._hashes[key] = (self._head, receipt.gas_used)
        self._raw[key] = raw
        if transaction.to == b"":
            self._created[key] = to_checksum_address(computation.msg.storage_address)
        created = computation.msg.storage_address if transaction.to == b"" else b""
        return Mined(
            status=0 if computation.is_error else 1,
            gas_used=receipt.gas_used,
            logs=tuple(_log(item) for item in receipt.logs),
            contract=to_checksum_address(created) if created else "",
            output=bytes(computation.output),
        )

    # --- JSON-RPC

    def transport(self, before: Callable[[str], None] | None = None) -> httpx.MockTransport:
        """For httpx: the chain as a node. `before(method)` may raise to lose a request."""

        def handle(request: httpx.Request) -> httpx.Response:
            asked = json.loads(request.content)
            many = asked if isinstance(asked, list) else [asked]
            for item in many:
                if before is not None:
                    before(item["method"])
            answers = [self._answer(item) for item in many]
            return httpx.Response(200, json=answers if isinstance(asked, list) else answers[0])

        return httpx.MockTransport(handle)

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        base = {"jsonrpc": "2.0", "id": asked["id"]}
        try:
            return {**base, "result": self.rpc(asked["method"], asked["params"])}
        except _Rejected as error:
            return {**base, "error": {"code": -32_000, "message": str(error)}}
        except Reverted as error:
            return {**base, "error": {"code": 3, "message": "execution reverted", "data": "0x" + error.output.hex()}}

    def rpc(self, method: str, params: list[Any]) -> Any:
        with self._lock:
            return self._rpc(method, params)

    def _rpc(self, method: str, params: list[Any]) -> Any:
        match method:
            case "eth_chainId":
                return hex(self.chain_id)
            case "eth_blockNumber":
                return hex(self._head)
            case "eth_getBlockByNumber":
                number = self._number(params[0])
                return None if number is None or number > self._head else self._block(number)
            case "eth_call":
                at = self._at(params[1])
                asked = params[0]
                return "0x" + self.call(asked["to"], _hex(asked["data"]), sender=asked.get("from"), at=at).hex()
            case "eth_getTransactionCount":
                return hex(self._nonce(params[0]))
            case "eth_getBalance":
                return hex(self._chain.get_vm().state.get_balance(_bytes(params[0])))
            case "eth_sendRawTransaction":
                return self._take(_hex(params[0]))
            case "eth_getTransactionReceipt":
                return self._receipt(_hex(params[0]))
            case "eth_getTransactionByHash":
                key = _hex(params[0])
                is_queued = any(keccak(raw) == key for raw in self.queue)
                return {"hash": params[0]} if is_queued or key in self._hashes else None
            case "eth_getLogs":
                return self._logs(params[0])
            case "eth_getCode":
                code = self._chain.get_vm().state.get_code(_bytes(params[0]))
                return "0x" + code.hex()
            case "eth_gasPrice":
                return hex(10**10)
            case "evm_mine":
                self.mine()
                return "0x0"
            case "evm_increaseTime":
                self._seconds_waiting += int(params[0])
                return hex(self._seconds_waiting)
            case "evm_snapshot":
                self._taken.append(self.snapshot())
                return hex(len(self._taken) - 1)
            case "evm_revert":
                self.revert(self._taken[int(params[0], 16)])
                return True
        raise _Rejected(f"the method {method} does not exist")

    def _take(self, raw: bytes) -> str:
        key = keccak(raw)
        if key in self._hashes or raw in self.queue:
            raise _Rejected("already known")
        if self.is_mining:
            self._apply(raw)
        else:
            self.queue.append(raw)
        return "0x" + key.hex()

    def _number(self, tag: str) -> int | None:
        if tag in ("latest", "pending"):
            return self._head
        if tag in ("finalized", "safe"):
            return max(0, self._head - 2)
        return int(tag, 16)

    def _at(self, tag: Any) -> int:
        if not isinstance(tag, dict):
            number = self._number(tag)
            if number is None or number > self._head:
                raise _Rejected("header not found")
            return number
        wanted = _hex(tag["blockHash"])
        for number in range(self._head, max(-1, self._head - 300), -1):
            if self._chain.get_canonical_block_header_by_number(number).hash == wanted:
                return number
        raise _Rejected("header not found")

    def _block(self, number: int) -> dict[str, Any]:
        header = self._chain.get_canonical_block_header_by_number(number)
        return {
            "number": hex(number),
            "hash": "0x" + header.hash.hex(),
            "parentHash": "0x" + header.parent_hash.hex(),
            "timestamp": hex(header.timestamp),
            "baseFeePerGas": hex(header.base_fee_per_gas),
        }

    def _receipt(self, key: bytes) -> dict[str, Any] | None:
        found = self._hashes.get(key)
        if found is None:
            return None
        number, _ = found
        block = self._chain.get_canonical_block_by_number(number)
        receipt = block.get_receipts(self._chain.chaindb)[0]
        return {
            "transactionHash": "0x" + key.hex(),
            "blockNumber": hex(number),
            "blockHash": "0x" + block.hash.hex(),
            "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
            "gasUsed": hex(receipt.gas_used),
            "contractAddress": self._created.get(key),
        }

    def _logs(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        first = self._number(asked.get("fromBlock", "0x0")) or 0
        last = self._number(asked.get("toBlock", "latest"))
        found = []
        by_block = {number: key for key, (number, _) in self._hashes.items()}
        for number in range(first, min(self._head, last if last is not None else self._head) + 1):
            key = by_block.get(number)
            if key is None:
                continue
            block = self._chain.get_canonical_block_by_number(number)
            for index, item in enumerate(block.get_receipts(self._chain.chaindb)[0].logs):
                address, topics, data = _log(item)
                if address.lower() != asked["address"].lower() or not _matches(topics, asked.get("topics", [])):
                    continue
                found.append(
                    {
                        "address": address,
                        "topics": ["0x" + topic.hex() for topic in topics],
                        "data": "0x" + data.hex(),
                        "blockNumber": hex(number),
                        "blockHash": "0x" + block.hash.hex(),
                        "transactionHash": "0x" + key.hex(),
                        "logIndex": hex(index),
                        "removed": False,
                    }
                )
        return found


def _log(item: Any) -> tuple[str, list[bytes], bytes]:
    topics = [int(topic).to_bytes(32, "big") for topic in item.topics]
    return to_checksum_address(item.address), topics, bytes(item.data)


def _matches(topics: list[bytes], wanted: list[Any]) -> bool:
    for position, want in enumerate(wanted):
        if want is None:
            continue
        allowed = want if isinstance(want, list) else [want]
        if position >= len(topics) or "0x" + topics[position].hex() not in allowed:
            return False
    return True


def _bytes(address: str) -> bytes:
    return bytes.fromhex(address[2:])


def _hex(text: str) -> bytes:
    return bytes.fromhex(text[2:])

"""A bridge between a real ledger (CNY) and a chain in process (AED, py-evm behind JSON-RPC), for proofs of its legs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from rlp import encode as rlp_encode  # type: ignore[import-untyped]

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from kernel.server import make_server
from ledger.contract import sign_instruction
from settlement.api.app import Outside, create
from settlement.client import SettlementClient
from settlement.conformance.evm import EvmSubject
from settlement.domain.instructions import Instruction, Priority
from settlement.islands.authorisers import AuthorisationOutcome, Authorised, LegOrder
from settlement.islands.evm.sender import GasPolicy
from settlement.islands.native import NativeIsland, hold_terms
from settlement.islands.port import Refused
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import SettlementSettings
from tests.evm.chain import Chain
from tests.ledger_world import LedgerWorld, free_port, running_ledger

CNY, AED = Currency.of("CNY"), Currency.of("AED")
BRIDGE, BANK_A, BANK_B, STRANGER = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD", "CCCCUS33"))
LEDGER, CHAIN = "cny-ledger", "evm-cny"
CONFIRMATIONS = 3
_HEADER_FIELDS = (
    *("parentHash", "sha3Uncles", "miner", "stateRoot", "transactionsRoot", "receiptsRoot", "logsBloom"),
    *("difficulty", "number", "gasLimit", "gasUsed", "timestamp", "extraData", "mixHash", "nonce", "baseFeePerGas"),
)
_NUMBERS = {"difficulty", "number", "gasLimit", "gasUsed", "timestamp", "baseFeePerGas"}


class RelayChain(Chain):
    """The chain in process with whole headers and receipts, as real nodes show them."""

    def header_rlp(self, number: int) -> bytes:
        return bytes(rlp_encode(self._chain.get_canonical_block_header_by_number(number)))

    def _block(self, number: int) -> dict[str, Any]:
        header = self._chain.get_canonical_block_header_by_number(number)
        fields = header.as_dict().values()
        shown = {
            name: hex(value) if name in _NUMBERS else "0x" + _bytes_of(name, value).hex()
            for name, value in zip(_HEADER_FIELDS, fields, strict=True)
        }
        return shown | {"hash": "0x" + header.hash.hex()}

    def _rpc(self, method: str, params: list[Any]) -> Any:
        if method == "eth_getBlockReceipts":
            return self.block_receipts(int(params[0], 16))
        return super()._rpc(method, params)

    def block_receipts(self, number: int) -> list[dict[str, Any]]:
        block = self._chain.get_canonical_block_by_number(number)
        shown: list[dict[str, Any]] = []
        position = 0
        for transaction, receipt in zip(block.transactions, block.get_receipts(self._chain.chaindb), strict=True):
            logs = []
            for item in receipt.logs:
                topics = ["0x" + int(topic).to_bytes(32, "big").hex() for topic in item.topics]
                logs.append(
                    {
                        "address": "0x" + item.address.hex(),
                        "topics": topics,
                        "data": "0x" + item.data.hex(),
                        "logIndex": hex(position),
                    }
                )
                position += 1
            encoded = receipt.encode()
            shown.append(
                {
                    "transactionHash": self._hash_shown(number, len(shown)) or "0x" + transaction.hash.hex(),
                    "type": hex(encoded[0]) if encoded[0] < 0x80 else "0x0",
                    "status": "0x1" if receipt.state_root == b"\x01" else "0x0",
                    "cumulativeGasUsed": hex(receipt.gas_used),
                    "logsBloom": "0x" + int(receipt.bloom).to_bytes(256, "big").hex(),
                    "logs": logs,
                }
            )
        return shown

    def _hash_shown(self, number: int, place: int) -> str | None:
        found = [key for key, (block, _) in self._hashes.items() if block == number]
        return "0x" + found[place].hex() if place < len(found) else None


def _bytes_of(name: str, value: Any) -> bytes:
    return int(value).to_bytes(256, "big") if name == "logsBloom" else bytes(value)


@contextmanager
def served(chain: Chain) -> Iterator[str]:
    """The chain as a node on a loopback port; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            many = asked if isinstance(asked, list) else [asked]
            answers = [chain._answer(item) for item in many]
            content = json.dumps(answers if isinstance(asked, list) else answers[0]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Signers:
    """Both institutions: on the ledger an instruction, on the chain the payer's own lock."""

    def __init__(self, keys: dict[ParticipantId, PrivateKey], chain: EvmSubject) -> None:
        self._keys = keys
        self._chain = chain
        self.refuse: set[str] = set()
        """Ledgers whose legs are not signed."""

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        return [self._sign(payer, order) for order in orders]

    def _sign(self, payer: ParticipantId, order: LegOrder) -> AuthorisationOutcome:
        ledger = order.hold.terms.ledger
        if ledger in self.refuse:
            return Refused("authorisation-refused")
        if ledger == CHAIN:
            return self._chain.signer.sign(order.hold)
        until = system_clock() + timedelta(hours=1)
        return Authorised(
            sign_instruction(hold_terms(order.hold), ledger=ledger, valid_until=until, key=self._keys[payer])
        )


@dataclass
class RelayWorld:
    url: str
    keys: dict[ParticipantId, PrivateKey]
    ledger: LedgerWorld
    chain: RelayChain
    subject: EvmSubject
    signers: Signers
    trust_path: Path
    trust: dict[str, Any]
    accounts: dict[ParticipantId, tuple[AccountNumber, AccountNumber]]

    def client(self, participant: ParticipantId = BANK_A) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.keys[participant]), timeout_seconds=20)

    def settle(self, amount: int = 10_000) -> UUID:
        """BANK_A pays CNY to BANK_B against AED; the settlement's id, once it has ended."""
        number = uuid4().hex[:12]
        order = Instruction(
            f"I{number}", f"E{number}", uuid4(), BANK_A, BANK_B, Money(amount, CNY), AED, None,
            datetime.now(UTC).date(), priority=Priority.NORMAL,
        )  # fmt: skip
        content = write_pacs009([order], message_id=uuid4().hex, created_at=datetime.now(UTC))
        with self.client() as client:
            batch = client.submit_batch(content, file_format="pacs.009").batch
            client.wait_for_batch(batch, timeout_seconds=30)
            return next(iter(client.settlements(batch))).settlement

    def await_proofs(self, settlement: UUID, is_good: Callable[[bytes], bool]) -> bytes:
        until = time.monotonic() + 15
        while True:
            with self.client() as client:
                content = client.settlement_proofs(settlement)
            if is_good(content) or time.monotonic() > until:
                return content
            time.sleep(0.1)


@contextmanager
def relay_world(fresh_database: Callable[[str], str], directory: Path) -> Iterator[RelayWorld]:
    keys = {code: PrivateKey.generate() for code in (BRIDGE, BANK_A, BANK_B, STRANGER)}
    keys[BRIDGE].save(directory / "bridge.pem")
    with ExitStack() as stack:
        chain = RelayChain()
        node_url = stack.enter_context(served(chain))
        subject = EvmSubject(
            node_url,
            chain.issuer,
            directory,
            confirmations=CONFIRMATIONS,
            gas=GasPolicy(),
            transport=chain.transport(),
            wait_seconds=0.2,
            resend_seconds=0.1,
        )
        stack.callback(subject.close)
        world = stack.enter_context(
            running_ledger(fresh_database("ledger"), directory, ledger=LEDGER, log_enabled=True, log_seal_seconds=0.05)
        )
        world.register(BRIDGE, role="bridge", key=keys[BRIDGE])
        world.register(BANK_A, key=keys[BANK_A])
        world.register(BANK_B, role="foreign", key=keys[BANK_B])
        vaults = {bank: AccountNumber(world.open_vault(bank)) for bank in (BANK_A, BANK_B)}
        world.issue(vaults[BANK_A], 10**9)
        accounts = {BANK_A: (vaults[BANK_A], subject.credit), BANK_B: (vaults[BANK_B], subject.debit)}
        with world.anonymous() as client:
            log_key = client.log().vkey
        addresses = {
            ids.show_account(subject.debit): subject.payer_account.address,
            ids.show_account(subject.credit): subject.payee_account.address,
        }
        anchor = chain._block(1)
        trust: dict[str, Any] = {
            "format": "jiaozi-relay-trust/v1",
            "islands": [
                {"kind": "native", "ledger": LEDGER, "currency": "CNY", "log_key": log_key},
                {
                    "kind": "evm",
                    "ledger": CHAIN,
                    "currency": "AED",
                    "escrow": subject.terms.escrow,
                    "token": subject.terms.token,
                    "unit": str(subject.terms.unit),
                    "accounts": addresses,
                    "anchor": {"number": 1, "hash": anchor["hash"][2:]},
                    "confirmations": CONFIRMATIONS,
                    "quorum": 0,
                },
            ],
        }
        trust_path = directory / "trust.json"
        trust_path.write_text(json.dumps(trust))
        chain_key = directory / "bridge-chain.key"
        chain_key.write_text(subject.bridge.key.hex())
        chain_key.chmod(0o600)
        entry = {
            "chain_id": chain.chain_id,
            "escrow": subject.terms.escrow,
            "token": subject.terms.token,
            "token_decimals": 4,
            "accounts": addresses,
            "key_path": str(chain_key),
            "confirmations": CONFIRMATIONS,
        }
        files = {
            "ledgers": [
                {"ledger": LEDGER, "url": world.url, "currency": "CNY"},
                {"ledger": CHAIN, "url": node_url, "currency": "AED", "kind": "evm", "evm": entry},
            ],
            "institutions": [
                {
                    "participant": bank,
                    "authorisation_url": "http://127.0.0.1:1",
                    "key": keys[bank].public.to_jwk(),
                    "accounts": {
                        "CNY": ids.show_account(accounts.get(bank, (AccountNumber(98), AccountNumber(99)))[0]),
                        "AED": ids.show_account(accounts.get(bank, (AccountNumber(98), AccountNumber(99)))[1]),
                    },
                }
                for bank in (BANK_A, BANK_B, STRANGER)
            ],
            "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5", "provider": BANK_B}],
        }
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
        port = free_port()
        settings = SettlementSettings(
            host="127.0.0.1",
            port=port,
            public_url=f"http://127.0.0.1:{port}",
            database_url=fresh_database("settlement"),
            data_dir=directory / "data",
            participant=BRIDGE,
            signing_key_path=directory / "bridge.pem",
            ledgers_path=directory / "ledgers.json",
            institutions_path=directory / "institutions.json",
            rates_path=directory / "rates.json",
            relay_path=trust_path,
            relay_seconds=0.1,
        )
        signers = Signers(keys, subject)
        islands = {LEDGER: NativeIsland(LEDGER, world.client(BRIDGE)), CHAIN: subject.island}
        app = create(settings, connect=lambda *_: Outside(islands, signers, lambda: None))
        server = make_server(app, host="127.0.0.1", port=port, log_level="warning")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        stop = threading.Event()

        def mine() -> None:
            while not stop.wait(0.1):
                subject.node.call("evm_mine")

        miner = threading.Thread(target=mine, daemon=True)
        miner.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        try:
            yield RelayWorld(settings.public_url, keys, world, chain, subject, signers, trust_path, trust, accounts)
        finally:
            server.should_exit = True
            thread.join(15)
            stop.set()
            miner.join(10)

"""Goal: the EVM adapter inside the real service: payment versus payment between a real ledger and a real chain, with
the service killed in between, splits nothing and loses nothing.

Method: CNY on a native ledger over a socket, AED as a token on anvil, the settlement service as a process of its own
that is ended with SIGKILL between the steps and started again; both institutions sign over HTTP, on the chain with the
payer's own key. At the end the ledger and the chain are asked, not the service.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import HoldId, ParticipantId
from kernel.money import Currency, Money
from ledger.contract import TransferTerms, sign_instruction
from settlement.client import SettlementClient
from settlement.conformance.evm import FUNDS_MINOR, EvmSubject
from settlement.contract import Decision
from settlement.domain.escrow import HoldOrder, LegTerms
from settlement.domain.instructions import Instruction, Priority
from settlement.islands.authorisers import Authorised
from settlement.islands.evm.config import evm_terms
from settlement.islands.evm.entry import EvmEntry
from settlement.islands.evm.payer import PayerSigner
from settlement.islands.evm.sender import GasPolicy
from settlement.iso20022.pacs009 import write_pacs009
from tests.islands_world import evm_on_anvil
from tests.ledger_world import LedgerWorld, free_port, running_ledger

CNY, AED = Currency.of("CNY"), Currency.of("AED")
BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
FUNDS = 100_000_000
LEGS_A_BATCH = 6
CHAIN = "aed-chain"


class Institution:
    """Signs the legs that its bank ordered (here: all): on the ledger an instruction, on the chain its own lock."""

    def __init__(self, key: PrivateKey, bank: ParticipantId, chain: PayerSigner | None) -> None:
        def signed(leg: dict[str, object]) -> str:
            terms = TransferTerms.model_validate(leg["terms"])
            if leg["ledger"] != CHAIN:
                until = system_clock() + timedelta(hours=1)
                return sign_instruction(terms, ledger=str(leg["ledger"]), valid_until=until, key=key)
            if chain is None:
                raise RuntimeError(f"{bank} has no key on the chain")
            outcome = chain.sign(order_of(terms, bank))
            if not isinstance(outcome, Authorised):
                raise RuntimeError(f"{bank} does not sign: {outcome}")
            return outcome.token

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                results = [{"instruction_id": leg["instruction_id"], "token": signed(leg)} for leg in body["legs"]]
                answer = json.dumps({"results": results}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def order_of(terms: TransferTerms, payer: ParticipantId) -> HoldOrder:
    """The wire's terms as the order they came from; the payee is of no account on a chain."""
    found = (terms.debit, terms.credit, terms.amount_minor, terms.reference, terms.commit_hash, terms.abort_hash)
    debit, credit, amount, reference, commit_hash, abort_hash = found
    if debit is None or credit is None or amount is None or reference is None:
        raise ValueError("not a hold")
    if commit_hash is None or abort_hash is None:
        raise ValueError("not a conditional hold")
    leg = LegTerms(CHAIN, payer, BANK_A, debit, credit, Money(amount, AED))
    return HoldOrder(terms.id, leg, UUID(str(reference)), commit_hash, abort_hash)


@dataclass
class Scheme:
    cny: LedgerWorld
    chain: EvmSubject
    vaults: dict[ParticipantId, int]
    environment: dict[str, str]
    url: str
    log: Path

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "settlement", "serve"], env=self.environment, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)

    def client(self) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.cny.participants[BANK_A]), timeout_seconds=10)


@pytest.fixture
def scheme(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Scheme]:
    keys = {code: PrivateKey.generate() for code in (BRIDGE, BANK_A, BANK_B)}
    keys[BRIDGE].save(tmp_path / "bridge.pem")
    with ExitStack() as stack:
        chain = stack.enter_context(evm_on_anvil(tmp_path, confirmations=2))
        world = stack.enter_context(running_ledger(fresh_database("ledger"), tmp_path, ledger="cny-ledger"))
        world.register(BRIDGE, role="bridge", key=keys[BRIDGE])
        world.register(BANK_A, key=keys[BANK_A])
        world.register(BANK_B, role="foreign", key=keys[BANK_B])
        vaults = {bank: world.open_vault(bank) for bank in (BANK_A, BANK_B)}
        world.issue(vaults[BANK_A], FUNDS)
        chain_key = tmp_path / "bridge-chain.key"
        chain_key.write_text(chain.bridge.key.hex())
        chain_key.chmod(0o600)
        entry = {
            "chain_id": chain.chain_id,
            "escrow": chain.terms.escrow,
            "token": chain.terms.token,
            "token_decimals": 4,
            "accounts": {
                ids.show_account(chain.debit): chain.payer_account.address,
                ids.show_account(chain.credit): chain.payee_account.address,
            },
            "key_path": str(chain_key),
            "confirmations": 2,
            "wait_seconds": 0.3,
        }
        terms = evm_terms(EvmEntry.model_validate(entry), ledger=CHAIN, currency=AED)
        signer = PayerSigner(terms, chain.node, chain.payer_account, journal=tmp_path / "bank-b.jsonl", gas=GasPolicy())
        stack.callback(signer.close)
        institutions = {
            BANK_A: Institution(keys[BANK_A], BANK_A, None),
            BANK_B: Institution(keys[BANK_B], BANK_B, signer),
        }
        for institution in institutions.values():
            stack.callback(institution.close)
        on_chain = {BANK_A: chain.credit, BANK_B: chain.debit}
        files = {
            "ledgers": [
                {"ledger": world.ledger, "url": world.url, "currency": "CNY"},
                {"ledger": CHAIN, "url": chain.url, "currency": "AED", "kind": "evm", "evm": entry},
            ],
            "institutions": [
                {
                    "participant": bank,
                    "authorisation_url": institutions[bank].url,
                    "key": keys[bank].public.to_jwk(),
                    "accounts": {"CNY": ids.show_account(vaults[bank]), "AED": ids.show_account(on_chain[bank])},
                }
                for bank in (BANK_A, BANK_B)
            ],
            "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5", "provider": BANK_B}],
        }
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        port = free_port()
        settings = {
            "PORT": str(port),
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "DATABASE_URL": fresh_database("settlement"),
            "DATA_DIR": str(tmp_path / "data"),
            "PARTICIPANT": BRIDGE,
            "SIGNING_KEY_PATH": str(tmp_path / "bridge.pem"),
            "LEDGERS_PATH": str(tmp_path / "ledgers.json"),
            "INSTITUTIONS_PATH": str(tmp_path / "institutions.json"),
            "RATES_PATH": str(tmp_path / "rates.json"),
            "STANDBY_SECONDS": "1",
        }
        environment = os.environ | {f"JIAOZI_SETTLEMENT_{name}": value for name, value in settings.items()}
        stop = threading.Event()

        def mine() -> None:
            while not stop.wait(0.1):
                chain.node.call("evm_mine")
                signer.pump()

        miner = threading.Thread(target=mine, daemon=True)
        miner.start()
        stack.callback(miner.join, 10)
        stack.callback(stop.set)
        yield Scheme(world, chain, vaults, environment, settings["PUBLIC_URL"], tmp_path / "settlement.log")


@pytest.mark.extended
@pytest.mark.timeout(180)
@pytest.mark.parametrize("pauses", [(0.6,), pytest.param((0.1, 0.3, 0.6, 0.9, 1.2), marks=pytest.mark.medium)])
def test_i5_ledger_against_chain_with_the_service_killed_in_between(scheme: Scheme, pauses: tuple[float, ...]) -> None:
    batches: list[UUID] = []
    seconds: list[float] = []
    with scheme.client() as client:
        for number, pause in enumerate(pauses):
            with scheme.running() as process:
                batches.append(submitted(client, number))
                time.sleep(pause)  # somewhere between its signatures, locks, decision, posts and their finality
                process.send_signal(signal.SIGKILL)
        with scheme.running():
            batches.append(submitted(client, 9))
            started = time.monotonic()
            client.wait_for_batch(batches[-1], timeout_seconds=90)
            seconds.append(time.monotonic() - started)
            for batch in batches:
                client.wait_for_batch(batch, timeout_seconds=90)
            assert not list(client.in_doubt())
            settlements = [item for batch in batches for item in client.settlements(batch)]
    assert len(settlements) == LEGS_A_BATCH * len(batches)
    committed = [item for item in settlements if item.decision is Decision.COMMIT]
    assert len(committed) >= LEGS_A_BATCH, "the last batch was not disturbed"
    with scheme.cny.client(BRIDGE) as ledger:
        for item in settlements:
            is_posted = item.decision is Decision.COMMIT
            try:
                on_ledger = ledger.get_hold(HoldId(item.legs[0].hold)).status.value
            except ProblemResponse:
                on_ledger = "absent"
            assert (on_ledger == "posted") is is_posted
            assert (on_ledger == "held") is False
    posted = {line.hold_id: line.amount_minor for line in scheme.chain.lines(scheme.chain.credit)}
    assert posted == {item.legs[1].hold: item.legs[1].amount_minor for item in committed}
    moved = (
        sum(item.legs[0].amount_minor for item in committed),
        sum(item.legs[1].amount_minor for item in committed),
    )
    with scheme.cny.client(BANK_A) as payer:
        account = payer.get_account(scheme.vaults[BANK_A])
        assert (account.balance_minor, account.debits_pending_minor) == (FUNDS - moved[0], 0)
    assert scheme.chain.available(scheme.chain.debit) == FUNDS_MINOR - moved[1]
    assert scheme.chain.available(scheme.chain.credit) == moved[1]
    held = scheme.chain.node.call("eth_getBalance", scheme.chain.terms.escrow, "latest")
    assert int(held, 16) == 0
    sys.stdout.write(f"\n{len(committed)} of {len(settlements)} settled; {LEGS_A_BATCH} in {seconds[0]:.1f} s\n")


def submitted(client: SettlementClient, number: int) -> UUID:
    today = datetime.now(UTC).date()
    instructions = [
        Instruction(
            f"I{number}-{line}", f"E{number}-{line}", uuid4(), BANK_A, BANK_B,
            Money(1_000 + 2 * line, CNY), AED, None, today, Priority.NORMAL,
        )
        for line in range(LEGS_A_BATCH)
    ]  # fmt: skip
    content = write_pacs009(instructions, message_id=f"M{number}", created_at=datetime.now(UTC))
    deadline = time.monotonic() + 40
    while True:
        try:
            return client.submit_batch(content, file_format="pacs.009").batch
        except (ServiceUnreachable, ProblemResponse):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)

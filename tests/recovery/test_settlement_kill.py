"""R9. Goal: SIGKILL of the settlement service at any moment, over two real ledgers: every pair both posted or neither.

Method: two ledgers on real sockets, two institutions that sign what they are asked to, and the settlement service as a
real process that a seeded killer ends with SIGKILL at random moments while batches run, and starts again. At the end
nobody is asked but the ledgers: both holds of every settlement, and both supply identities.

JIAOZI_KILLS=100 JIAOZI_SEED=7 pytest tests/recovery/test_settlement_kill.py   # a campaign
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import HoldId, ParticipantId
from kernel.money import Currency, Money
from ledger.client import LedgerClient
from ledger.contract import TransferTerms, sign_instruction
from settlement.client import SettlementClient
from settlement.contract import Decision, SettlementState
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.pacs009 import write_pacs009
from tests.ledger_world import LedgerWorld, free_port, running_ledger

BRIDGE, BANK_A, BANK_B = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD"))
KILLS = int(os.environ.get("JIAOZI_KILLS", "5"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
BATCH = 120
FUNDS = 100_000_000


class Institution:
    """A wallet service's one duty to the bridge: it signs the legs that its bank ordered (here: all)."""

    def __init__(self, key: PrivateKey) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                valid_until = system_clock() + timedelta(hours=1)
                results = [
                    {
                        "instruction_id": leg["instruction_id"],
                        "token": sign_instruction(
                            TransferTerms.model_validate(leg["terms"]),
                            ledger=leg["ledger"],
                            valid_until=valid_until,
                            key=key,
                        ),
                    }
                    for leg in body["legs"]
                ]
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


@dataclass
class Scheme:
    cny: LedgerWorld
    aed: LedgerWorld
    url: str
    environment: dict[str, str]
    log: Path

    def start(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "settlement", "serve"], env=self.environment, stdout=log, stderr=log
            )

    def client(self, participant: ParticipantId) -> SettlementClient:
        return SettlementClient(self.url, signer=RequestSigner(self.cny.participants[participant]), timeout_seconds=10)


@pytest.fixture
def scheme(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Scheme]:
    keys = {code: PrivateKey.generate() for code in (BRIDGE, BANK_A, BANK_B)}
    keys[BRIDGE].save(tmp_path / "bridge.pem")
    with ExitStack() as stack:
        worlds: dict[str, LedgerWorld] = {}
        accounts: dict[str, dict[str, str]] = {BANK_A: {}, BANK_B: {}}
        for currency, funded in (("CNY", BANK_A), ("AED", BANK_B)):
            world = stack.enter_context(
                running_ledger(
                    fresh_database("ledger"), tmp_path, ledger=f"{currency.lower()}-ledger", currency=currency
                )
            )
            worlds[currency] = world
            world.register(BRIDGE, role="bridge", key=keys[BRIDGE])
            for bank in (BANK_A, BANK_B):
                world.register(bank, role="intermediary" if bank == funded else "foreign", key=keys[bank])
                vault = world.open_vault(bank)
                accounts[bank][currency] = ids.show_account(vault)
                if bank == funded:
                    world.issue(vault, FUNDS)
        institutions = {bank: Institution(keys[bank]) for bank in (BANK_A, BANK_B)}
        for institution in institutions.values():
            stack.callback(institution.close)
        files = {
            "ledgers": [
                {"ledger": world.ledger, "url": world.url, "currency": currency} for currency, world in worlds.items()
            ],
            "institutions": [
                {
                    "participant": bank,
                    "authorisation_url": institutions[bank].url,
                    "key": keys[bank].public.to_jwk(),
                    "accounts": accounts[bank],
                }
                for bank in (BANK_A, BANK_B)
            ],
            "rates": [{"base": "CNY", "counter": "AED", "rate": "0.5123", "provider": BANK_B}],
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
            "WAVE_SETTLEMENTS": "25",
        }
        environment = os.environ | {f"JIAOZI_SETTLEMENT_{name}": value for name, value in settings.items()}
        yield Scheme(worlds["CNY"], worlds["AED"], settings["PUBLIC_URL"], environment, tmp_path / "settlement.log")


@pytest.mark.campaign
@pytest.mark.timeout(120 + 30 * KILLS)
def test_i5_sigkill_of_the_settlement_service_splits_nothing(scheme: Scheme) -> None:
    random = Random(SEED)
    batches: list[UUID] = []
    kills_in_work = 0
    with scheme.client(BANK_A) as client:
        for number in range(KILLS + 1):
            process = scheme.start()
            try:
                batches.append(_submitted(client, number))
                if number == KILLS:
                    break
                deadline = time.monotonic() + random.uniform(0.0, 0.8)
                while time.monotonic() < deadline:
                    time.sleep(0.005)
                kills_in_work += not client.batch(batches[-1]).is_finished
            finally:
                if number < KILLS:
                    process.send_signal(signal.SIGKILL)
                    process.wait(10)
        try:
            views = [client.wait_for_batch(batch, timeout_seconds=60) for batch in batches]
            assert not list(client.in_doubt())
            settlements = [item for batch in batches for item in client.settlements(batch)]
        finally:
            process.terminate()
            process.wait(20)

    assert len(settlements) == BATCH * (KILLS + 1)
    ends: Counter[str] = Counter()
    with scheme.cny.client(BRIDGE) as cny, scheme.aed.client(BRIDGE) as aed:
        for item in settlements:
            pair = tuple(_standing(ledger, item.legs[number].hold) for number, ledger in ((0, cny), (1, aed)))
            if item.decision is Decision.COMMIT:
                assert pair == ("posted", "posted")
            else:
                assert set(pair) <= {"voided", "tombstoned", "absent"}
            ends[item.decision.value if item.decision else "none"] += 1
        committed = [item for item in settlements if item.decision is Decision.COMMIT]
        paid = sum(item.legs[0].amount_minor for item in committed)
        for world, currency_leg in ((scheme.cny, 0), (scheme.aed, 1)):
            with world.client(BANK_A if currency_leg == 0 else BANK_B) as payer:
                account = payer.get_account(committed[0].legs[currency_leg].debit)
                moved = sum(item.legs[currency_leg].amount_minor for item in committed)
                assert (account.balance_minor, account.debits_pending_minor) == (FUNDS - moved, 0)
                supply = payer.supply()
            assert supply.identity_holds
            assert supply.circulation_minor == FUNDS
    assert paid > 0
    assert kills_in_work >= KILLS // 2, "the killer came too late to test anything: seed or batch size"
    assert views[-1].counts[SettlementState.SETTLED] == BATCH  # the last run was not killed
    sys.stdout.write(f"\n{KILLS} kills, {kills_in_work} in mid-batch: {dict(ends)}\n")


def _submitted(client: SettlementClient, number: int) -> UUID:
    today = datetime.now(UTC).date()
    cny, aed = Currency.of("CNY"), Currency.of("AED")
    instructions = [
        Instruction(
            f"I{number}-{line}", f"E{number}-{line}", uuid4(), BANK_A, BANK_B,
            Money(1_000 + line, cny), aed, None, today, Priority.NORMAL,
        )
        for line in range(BATCH)
    ]  # fmt: skip
    content = write_pacs009(instructions, message_id=f"M{number}", created_at=datetime.now(UTC))
    deadline = time.monotonic() + 30
    while True:
        try:
            return client.submit_batch(content, file_format="pacs.009").batch
        except (ServiceUnreachable, ProblemResponse):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def _standing(client: LedgerClient, hold: UUID) -> str:
    try:
        return client.get_hold(HoldId(hold)).status.value
    except ProblemResponse as problem:
        if problem.refusal != "hold-not-found":
            raise
        return "absent"

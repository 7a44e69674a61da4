"""A real ledger in a thread and the wallet service as a process of its own, which a test may kill.

with running_wallet(fresh_database, tmp_path) as world:
    wallet = world.open(WalletClass.I, deposit_minor=1_000_00)
    world.kill(); world.start()
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import httpx

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.server import make_server
from ledger.api.app import create as create_ledger
from ledger.client import LedgerClient
from ledger.contract import (
    Approval,
    Genesis,
    GenesisOperator,
    IssueAction,
    ParticipantRole,
    Proposal,
    RegisterParticipantAction,
    sign_approval,
    sign_proposal,
)
from ledger.settings import LedgerSettings
from tests.commands import Done, run_here
from tests.ledger_world import free_port
from wallet.client import WalletClient
from wallet.contract import WalletView
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack

PACK = "ecny-2021-06"
BANK = "BKCHCNBJ"


@dataclass
class Opened:
    view: WalletView
    key: PrivateKey
    key_path: Path

    @property
    def account(self) -> int:
        if self.view.account is None:
            raise RuntimeError("the wallet is not open")
        return self.view.account


@dataclass
class WalletWorld:
    directory: Path
    ledger_url: str
    wallet_url: str
    operators: list[PrivateKey]
    bank_key: PrivateKey
    channel_path: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    opened: list[Opened] = field(default_factory=list)

    def client(self, role: str = "channel") -> WalletClient:
        """`operator` is the other role that is registered."""
        path = self.channel_path.with_name(f"{role}.pem")
        return WalletClient(self.wallet_url, signer=RequestSigner(PrivateKey.load(path)))

    def ledger(self) -> LedgerClient:
        return LedgerClient(self.ledger_url, signer=RequestSigner(self.bank_key))

    def start(self) -> None:
        with (self.directory / "wallet.log").open("ab") as log:
            command = [sys.executable, "-m", "wallet", "serve"]
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        self.wait_until_healthy()

    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_until_healthy(self) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.wallet_url}/healthz", timeout=1).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            if self.is_dead():
                break
            time.sleep(0.02)
        raise RuntimeError((self.directory / "wallet.log").read_text()[-2000:])

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def command(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """`jiaozi-wallet ...` with the channel's key."""
        environment = {**os.environ, "JIAOZI_CLIENT_KEY": str(self.channel_path), "COLUMNS": "120"}
        environment["JIAOZI_WALLET_PUBLIC_URL"] = self.wallet_url
        return subprocess.Popen(
            [sys.executable, "-m", "wallet", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run_here(self, *arguments: str | Path) -> Done:
        """The same command in this process."""
        settings = {"JIAOZI_CLIENT_KEY": str(self.channel_path), "JIAOZI_WALLET_PUBLIC_URL": self.wallet_url}
        return run_here("wallet", *map(str, arguments), **settings)

    def mandate(self, client: LedgerClient, action: object) -> None:
        proposal = Proposal.model_validate(
            {
                "ledger": "cny",
                "mandate": ids.new_uuid7(),
                "action": action,
                "valid_until": system_clock() + timedelta(hours=1),
            }
        )
        view = client.propose(sign_proposal(proposal, key=self.operators[0]))
        for operator in self.operators[1:]:
            approval = Approval(ledger="cny", mandate=proposal.mandate, proposal_sha256=view.proposal_sha256)
            client.approve(proposal.mandate, sign_approval(approval, key=operator))
        with LedgerClient(self.ledger_url, signer=RequestSigner(self.operators[0])) as operator_client:
            operator_client.execute(proposal.mandate)

    def issue(self, amount_minor: int) -> None:
        with self.client() as client, self.ledger() as ledger:
            vault = client.institution().ledgers[0].vault
            action = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=amount_minor, currency="CNY")
            self.mandate(ledger, action)

    def open(self, wallet_class: WalletClass = WalletClass.II, *, deposit_minor: int = 0) -> Opened:
        key = PrivateKey.generate()
        path = self.directory / f"device-{len(self.opened)}.pem"
        key.save(path)
        with self.client() as client:
            customer = client.create_customer(evidence=list(Evidence)).customer
            view = client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
            if deposit_minor:
                client.simulate_deposit(customer=customer, amount_minor=deposit_minor)
                client.exchange_in(wallet=view.wallet, amount_minor=deposit_minor, currency="CNY")
        self.opened.append(Opened(view, key, path))
        return self.opened[-1]

    def balance(self, wallet: Opened) -> int:
        with self.ledger() as ledger:
            return ledger.get_account(wallet.account).balance_minor


World = TypeVar("World", bound=WalletWorld)


@contextmanager
def running_wallet(
    fresh_database: Callable[[str], str], directory: Path, *, settings: Mapping[str, str] | None = None
) -> Iterator[WalletWorld]:
    """`running_world` of the usual kind."""
    with running_world(WalletWorld, fresh_database, directory, settings=settings) as world:
        yield world


@contextmanager
def running_world(
    kind: type[World],
    fresh_database: Callable[[str], str],
    directory: Path,
    *,
    settings: Mapping[str, str] | None = None,
    pack: str = PACK,
) -> Iterator[World]:
    """Both services, the bank registered; the wallet service is the block's to kill and start again."""
    operators = [PrivateKey.generate() for _ in range(3)]
    bank_key, channel = PrivateKey.generate(), PrivateKey.generate()
    bank_key.save(directory / "bank.pem")
    channel.save(directory / "channel.pem")
    operator = PrivateKey.generate()
    operator.save(directory / "operator.pem")
    genesis = Genesis(
        ledger="cny",
        currency="CNY",
        time_zone="Asia/Shanghai",
        operators=[GenesisOperator(name=f"op{n}", key=key.public.to_jwk()) for n, key in enumerate(operators)],
        approvals_needed=2,
        rule_classes=ledger_rule_classes(load_rule_pack(pack)),
    )
    (directory / "genesis.json").write_text(genesis.model_dump_json(exclude_none=True))
    clients = [
        {"name": role, "key": key.public.to_jwk(), "role": role}
        for role, key in (("channel", channel), ("operator", operator))
    ]
    (directory / "clients.json").write_text(json.dumps(clients))
    port, wallet_port = free_port(), free_port()
    url = f"http://127.0.0.1:{port}"
    ledger_settings = LedgerSettings(
        database_url=fresh_database("ledger"),
        genesis_path=directory / "genesis.json",
        data_dir=directory / "ledger",
        port=port,
        public_url=url,
        log_enabled=False,  # its process takes a second to start, and nobody here asks for receipts
    )
    server = make_server(create_ledger(ledger_settings), port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if time.monotonic() > deadline:
            raise RuntimeError("the ledger did not start")
        time.sleep(0.02)
    wallet_url = f"http://127.0.0.1:{wallet_port}"
    given = {
        "PORT": str(wallet_port),
        "PUBLIC_URL": wallet_url,
        "DATABASE_URL": fresh_database("wallet"),
        "DATA_DIR": str(directory / "wallet"),
        "PARTICIPANT": BANK,
        "SIGNING_KEY_PATH": str(directory / "bank.pem"),
        "CLIENTS_PATH": str(directory / "clients.json"),
        "LEDGER_URL": url,
        "RULE_PACK": pack,
        "SANDBOX": "true",
        "RECOVERY_SECONDS": "1",
        "WORKER_SECONDS": "0.1",
        **(settings or {}),
    }
    environment = {**os.environ, **{f"JIAOZI_WALLET_{name}": value for name, value in given.items()}}
    world = kind(directory, url, wallet_url, operators, bank_key, directory / "channel.pem", environment)
    try:
        with world.ledger() as ledger:
            action = RegisterParticipantAction(
                participant=ids.parse_participant(BANK),
                name="Bank",
                role=ParticipantRole.INTERMEDIARY,
                key=bank_key.public.to_jwk(),
                quota_minor=10**15,
            )
            world.mandate(ledger, action)
        world.start()
        yield world
    finally:
        world.kill()
        server.should_exit = True
        thread.join(30)

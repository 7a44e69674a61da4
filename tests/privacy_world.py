"""A bank's wallet service with four compliance officers and an auditor, over a fake ledger and a real PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi.testclient import TestClient

from kernel.client import ProblemResponse
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from tests.fakes import FakeLedger
from tests.roles import as_service
from wallet.api.app import create
from wallet.client import WalletClient
from wallet.contract import WalletView
from wallet.contract.privacy import UnmaskField, UnmaskView
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.settings import WalletSettings

ORIGIN = "http://wallet.test"
BANK = "BKCHCNBJ"
NAME, PHONE = "Wilhelmina Quarterstaff", "+8613912345678"
OFFICERS = ("ada", "ben", "cai", "dov")
ROLES = {
    "channel": "channel",
    "bridge": "bridge",
    "operator": "operator",
    "auditor": "auditor",
    **dict.fromkeys(OFFICERS, "compliance"),
}


@dataclass
class PrivacyWorld:
    http: TestClient
    keys: dict[str, PrivateKey]
    owner_url: str
    """Of the wallet's database, as the tables' owner: for whoever tampers."""
    key_path: Path

    def client(self, name: str | None) -> WalletClient:
        signer = RequestSigner(self.keys[name]) if name else None
        return WalletClient(ORIGIN, signer=signer, transport=self.http._transport)

    def refusal(self, call: Callable[[], object]) -> str:
        try:
            call()
        except ProblemResponse as error:
            return error.refusal
        raise AssertionError("it was not refused")

    def customer(self, name: str = NAME, phone: str = PHONE) -> tuple[UUID, WalletView, PrivateKey]:
        client, key = self.client("channel"), PrivateKey.generate()
        customer = client.create_customer(evidence=list(Evidence), name=name, phone=phone).customer
        return customer, client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=key.public), key

    def order(self, officer: str, wallet: UUID | None, *fields: UnmaskField, **more: Any) -> UnmaskView:
        terms: dict[str, Any] = {"institution": BANK, "case_number": "2026-0815", "legal_basis": "Order 7, art. 3"}
        return self.client(officer).order_unmask(
            fields=fields or [UnmaskField.NAME], key=self.keys[officer], **{"wallet": wallet, **terms, **more}
        )

    def approve(self, officer: str, view: UnmaskView) -> UnmaskView:
        return self.client(officer).approve_unmask(view, institution=BANK, key=self.keys[officer])

    def unmask(self, wallet: UUID, *fields: UnmaskField) -> UnmaskView:
        """Ordered, approved by two, disclosed."""
        view = self.order("ada", wallet, *fields)
        for officer in ("ben", "cai"):
            self.approve(officer, view)
        self.client("ada").disclose(view.request)
        return view


@contextmanager
def privacy_world(
    fresh_database: Callable[[str], str], directory: Path, *, clock: Clock = system_clock
) -> Iterator[PrivacyWorld]:
    keys = {name: PrivateKey.generate() for name in (*ROLES, "bank", "stranger", "ada-too")}
    keys["bank"].save(directory / "bank.pem")
    clients = [{"name": name, "key": keys[name].public.to_jwk(), "role": role} for name, role in ROLES.items()]
    # One officer with a second key.
    clients.append({"name": "ada", "key": keys["ada-too"].public.to_jwk(), "role": "compliance"})
    (directory / "clients.json").write_text(json.dumps(clients))
    ledgers = [{"ledger": "cny", "url": "http://ledger.test", "currency": "CNY"}]
    (directory / "ledgers.json").write_text(json.dumps(ledgers))
    url = fresh_database("wallet")
    settings = WalletSettings(
        public_url=ORIGIN,
        database_url=as_service(url, "wallet"),
        data_dir=directory / "data",
        participant=BANK,
        signing_key_path=directory / "bank.pem",
        clients_path=directory / "clients.json",
        ledgers_path=directory / "ledgers.json",
        sandbox=True,
        recovery_seconds=3600,
        worker_seconds=3600,
    )
    ledger = FakeLedger(clock=clock, rule_classes=ledger_rule_classes(load_rule_pack("ecny-2021-06")))
    app = create(settings, connect=lambda url, signer: ledger, clock=clock)
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as http:
        yield PrivacyWorld(http, keys, url, directory / "data" / "customer-data.key")

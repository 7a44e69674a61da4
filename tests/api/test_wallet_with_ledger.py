"""Goal: the wallet service against the real ledger: what the fake promises, the ledger keeps.
Method: both services with their own PostgreSQL databases, the ledger behind a real socket; one whole story.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from fastapi.testclient import TestClient

from kernel import ids
from kernel.client import ProblemResponse
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
    TransferKind,
    TransferTerms,
    sign_approval,
    sign_proposal,
)
from ledger.settings import LedgerSettings
from tests.card_world import issuers_file
from tests.ledger_world import free_port
from wallet.api.app import create as create_wallet
from wallet.client import WalletClient
from wallet.contract import LegAuthorisation, SettlementLeg, SettlementOrder
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.settings import WalletSettings

ORIGIN = "http://wallet.test"


@dataclass
class Scheme:
    ledger_url: str
    operators: list[PrivateKey]
    keys: dict[str, PrivateKey]
    wallet_http: TestClient

    def wallet(self, role: str) -> WalletClient:
        return WalletClient(ORIGIN, signer=RequestSigner(self.keys[role]), transport=self.wallet_http._transport)


def order_by_operators(client: LedgerClient, operators: list[PrivateKey], action: object) -> None:
    """A mandate: proposed by one operator, approved by two others, executed."""
    proposal = Proposal.model_validate(
        {
            "ledger": client.ledger().ledger,
            "mandate": ids.new_uuid7(),
            "action": action,
            "valid_until": system_clock() + timedelta(hours=1),
        }
    )
    view = client.propose(sign_proposal(proposal, key=operators[0]))
    for operator in operators[1:3]:
        approval = Approval(ledger=proposal.ledger, mandate=proposal.mandate, proposal_sha256=view.proposal_sha256)
        client.approve(proposal.mandate, sign_approval(approval, key=operator))
    assert client.execute(proposal.mandate).status == "executed"


@pytest.fixture
def scheme(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Scheme]:
    with running_scheme(fresh_database, tmp_path) as made:
        yield made


@contextmanager
def running_scheme(
    fresh_database: Callable[[str], str], tmp_path: Path, *, wallet_database: str | None = None, **wallet: object
) -> Iterator[Scheme]:
    """`wallet_database` is the URL that the wallet service is given; `wallet` are more settings of it."""
    operators = [PrivateKey.generate() for _ in range(3)]
    keys = {name: PrivateKey.generate() for name in ("channel", "bridge", "operator", "bank")}
    genesis = Genesis(
        ledger="cny",
        currency="CNY",
        time_zone="Asia/Shanghai",
        operators=[GenesisOperator(name=f"op{n}", key=key.public.to_jwk()) for n, key in enumerate(operators)],
        approvals_needed=2,
        rule_classes=ledger_rule_classes(load_rule_pack("ecny-2021-06")),
    )
    (tmp_path / "genesis.json").write_text(genesis.model_dump_json(exclude_none=True))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    ledger_settings = LedgerSettings(
        database_url=fresh_database("ledger"),
        genesis_path=tmp_path / "genesis.json",
        port=port,
        public_url=url,
        log_enabled=False,  # its process takes a second to start, and nobody here asks for receipts
    )
    server = make_server(create_ledger(ledger_settings), port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.05)
    with LedgerClient(url, signer=RequestSigner(operators[0])) as client:
        action = RegisterParticipantAction(
            participant="BKCHCNBJ",
            name="Bank",
            role=ParticipantRole.INTERMEDIARY,
            key=keys["bank"].public.to_jwk(),
            quota_minor=10**12,
        )
        order_by_operators(client, operators, action)
    keys["bank"].save(tmp_path / "bank.pem")
    clients = [
        {"name": role, "key": keys[role].public.to_jwk(), "role": role} for role in ("channel", "bridge", "operator")
    ]
    (tmp_path / "clients.json").write_text(json.dumps(clients))
    # The ledger abroad is only asked for our vault there: the same process serves for that.
    ledgers = [{"ledger": name, "url": url, "currency": name.upper()} for name in ("cny", "aed")]
    (tmp_path / "ledgers.json").write_text(json.dumps(ledgers))
    settings = WalletSettings(
        public_url=ORIGIN,
        database_url=wallet_database or fresh_database("wallet"),
        data_dir=tmp_path / "data",
        participant="BKCHCNBJ",
        signing_key_path=tmp_path / "bank.pem",
        clients_path=tmp_path / "clients.json",
        ledgers_path=tmp_path / "ledgers.json",
        card_issuers_path=issuers_file(tmp_path),
        sandbox=True,
        recovery_seconds=3600,
        **wallet,  # type: ignore[arg-type]
    )
    with TestClient(create_wallet(settings), base_url=ORIGIN, raise_server_exceptions=False) as http:
        yield Scheme(url, operators, keys, http)
    server.should_exit = True
    thread.join(timeout=20)


def test_one_story_over_both_services(scheme: Scheme) -> None:
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    vault = client.institution().ledgers[0].vault
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=10_000_000, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)

    # deposit -> currency
    device = PrivateKey.generate("ecdsa-p256-sha256")
    customer = client.create_customer(evidence=list(Evidence)).customer
    payer = client.open_wallet(customer=customer, wallet_class=WalletClass.IV, device_key=device.public)
    other = PrivateKey.generate()
    payee = client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=other.public)
    assert payer.account is not None
    assert payee.account is not None
    client.simulate_deposit(customer=customer, amount_minor=900_000)
    exchange = client.exchange_in(wallet=payer.wallet, amount_minor=800_000, currency="CNY")
    assert exchange.state == "final"
    assert client.simulated_deposit(customer).balance_minor == 100_000

    # pay; again; forged; too much; beyond the funds
    def pay(amount: int, key: PrivateKey = device) -> str:
        try:
            view = client.pay(
                key=key, ledger="cny", debit=payer.account, credit=payee.account, amount_minor=amount, currency="CNY"
            )
        except ProblemResponse as error:
            return error.refusal
        return view.state.value

    assert pay(150_000) == "final"
    assert pay(1, key=other) == "instruction-invalid"
    assert pay(200_001) == "single-limit-exceeded"
    assert pay(200_000) == "final"
    assert pay(150_001) == "day-limit-exceeded"

    # one operation, two ways in: whoever names the charset goes by the framework, and gets the same answer
    token = client.instruct(
        TransferKind.PAYMENT,
        key=other,
        ledger="cny",
        debit=payee.account,
        credit=payer.account,
        amount_minor=1,
        currency="CNY",
        reference=uuid4(),
    )
    body = json.dumps({"instruction": token})
    quick, slow, odd = (
        scheme.wallet_http.post("/v1/payments", content=content, headers={"content-type": media_type})
        for content, media_type in (
            (body, "application/json"),
            (body, "application/json; charset=utf-8"),
            (body.replace("instruction", "\\u0069nstruction"), "application/json"),
        )
    )
    assert quick.status_code == slow.status_code == odd.status_code == 201
    assert quick.json() == slow.json() == odd.json()
    twice = body[:-1] + "," + body[1:]
    answer = scheme.wallet_http.post("/v1/payments", content=twice, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["refusal"]) == (400, "malformed-json")
    assert bank.submit_instruction(token).outcome == "already-booked"

    # I9 is enforced by the ledger too, for whoever goes there directly
    token = client.instruct(
        TransferKind.PAYMENT,
        key=device,
        ledger="cny",
        debit=payer.account,
        credit=payee.account,
        amount_minor=150_001,
        currency="CNY",
    )
    assert bank.submit_instruction(token).refusal == "day-limit-exceeded"

    view = client.get_wallet(payer.wallet)
    assert view.balance is not None
    assert view.limits is not None
    assert (view.balance.balance_minor, view.limits.daily.left_minor) == (450_001, 150_000)
    kinds = [line.kind.value for line in client.history(payer.wallet)]
    assert kinds == ["exchange-in", "payment", "payment", "payment"]

    # batch of signed payments, one refused by the ledger
    def signed(amount: int) -> str:
        return client.instruct(
            TransferKind.PAYMENT,
            key=other,
            ledger="cny",
            debit=payee.account,
            credit=payer.account,
            amount_minor=amount,
            currency="CNY",
        )

    tokens = [signed(1) for _ in range(50)]
    results = client.submit_payments([*tokens, signed(900_000)])
    assert [item.state.value for item in results[:50]] == ["final"] * 50
    assert results[50].refusal == "insufficient-funds"
    assert [item.seq for item in client.submit_payments(tokens)] == [item.seq for item in results[:50]]

    # refund and currency -> deposit
    lines = client.history(payer.wallet)
    paid = next(line for line in lines if line.kind.value == "payment" and line.direction == "debit")
    refund = client.instruct(
        TransferKind.REFUND,
        key=other,
        ledger="cny",
        debit=payee.account,
        credit=payer.account,
        amount_minor=1_000,
        currency="CNY",
        reference=paid.transfer,
    )
    assert client.submit_refund(refund).state == "final"
    out = client.instruct(
        TransferKind.EXCHANGE_OUT,
        key=device,
        ledger="cny",
        debit=payer.account,
        credit=vault,
        amount_minor=451_050,
        currency="CNY",
    )
    assert client.exchange_out(out).deposit_credited_at is not None
    assert client.exchange_out(out).state == "final"
    assert client.simulated_deposit(customer).balance_minor == 551_050
    assert bank.supply().identity_holds

    # the vault has too little: the deposit comes back
    client.simulate_deposit(customer=customer, amount_minor=20_000_000)
    with pytest.raises(ProblemResponse, match="insufficient-funds"):
        client.exchange_in(wallet=payee.wallet, amount_minor=15_000_000, currency="CNY")
    assert client.simulated_deposit(customer).balance_minor == 20_551_050

    # a leg that the bridge fetches is one that the ledger holds
    uetr = uuid4()
    order = SettlementOrder(
        instruction_id=str(uetr),
        ledger="cny",
        pay_currency="CNY",
        pay_amount_minor=5_000,
        credit_account=vault,
        receive_currency="AED",
        receive_amount_minor_min=2_500,
        valid_until=system_clock() + timedelta(hours=1),
    )
    terms = TransferTerms(
        id=ids.new_uuid7(),
        kind=TransferKind.HOLD,
        debit=vault,
        credit=bank.open_accounts([opening()])[0].account,
        amount_minor=5_000,
        currency="CNY",
        reference=uetr,
        commit_hash=b"c" * 32,
        abort_hash=b"a" * 32,
    )
    order = order.model_copy(update={"credit_account": terms.credit})
    assert scheme.wallet("operator").register_settlements([order])[0].refusal is None
    abroad = client.institution().ledgers[1].vault
    pays_us = {"debit": ids.AccountNumber(77), "credit": abroad, "amount_minor": 2_500, "currency": "AED"}
    pays_us["id"] = ids.new_uuid7()
    counter = SettlementLeg(ledger="aed", terms=terms.model_copy(update=pays_us))
    asked = LegAuthorisation(instruction_id=str(uetr), ledger="cny", terms=terms, other_legs=[counter])
    leg = scheme.wallet("bridge").authorise_legs([asked])
    assert leg[0].token is not None
    held = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"])).submit_instruction(leg[0].token)
    assert held.outcome == "booked"


def opening() -> object:
    from ledger.contract import AccountKind, AccountOpening

    return AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT)

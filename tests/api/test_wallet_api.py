"""Goal: the wallet service over HTTP: who may call what, what each refusal looks like, and that its client speaks it.
Method: the real app (edge, signatures, PostgreSQL, migrations) in process, a fake ledger behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from fastapi.testclient import TestClient

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.errors import RequestRefusal
from ledger.contract import LedgerRefusal, TransferKind, TransferRefusal, TransferTerms
from tests.fakes import FakeLedger
from wallet.api.app import create
from wallet.api.dependencies import STATUSES
from wallet.client import WalletClient
from wallet.contract import (
    BATCH_ITEMS_MAX,
    STATUS_BY_WALLET_REFUSAL,
    LegAuthorisation,
    PaymentState,
    SettlementLeg,
    SettlementOrder,
    WalletRefusal,
)
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.settings import WalletSettings

ORIGIN = "http://wallet.test"


@dataclass
class Service:
    http: TestClient
    ledger: FakeLedger
    keys: dict[str, PrivateKey]
    settings: WalletSettings

    def client(self, role: str | None) -> WalletClient:
        signer = RequestSigner(self.keys[role]) if role else None
        return WalletClient(ORIGIN, signer=signer, transport=self.http._transport)

    def refusal(self, call: Callable[[], object]) -> tuple[int, str]:
        with pytest.raises(ProblemResponse) as caught:
            call()
        return caught.value.status, caught.value.refusal


@pytest.fixture
def service(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Service]:
    keys = {role: PrivateKey.generate() for role in ("channel", "bridge", "operator", "bank", "stranger")}
    keys["bank"].save(tmp_path / "bank.pem")
    clients = [
        {"name": role, "key": keys[role].public.to_jwk(), "role": role} for role in ("channel", "bridge", "operator")
    ]
    (tmp_path / "clients.json").write_text(json.dumps(clients))
    ledgers = [
        {"ledger": "cny", "url": "http://ledger.test", "currency": "CNY"},
        {"ledger": "aed", "url": "http://abroad.test", "currency": "AED"},
    ]
    (tmp_path / "ledgers.json").write_text(json.dumps(ledgers))
    settings = WalletSettings(
        public_url=ORIGIN,
        database_url=fresh_database("wallet"),
        data_dir=tmp_path / "data",
        participant="BKCHCNBJ",
        signing_key_path=tmp_path / "bank.pem",
        clients_path=tmp_path / "clients.json",
        ledgers_path=tmp_path / "ledgers.json",
        sandbox=True,
        recovery_seconds=3600,
    )
    ledger = FakeLedger(clock=system_clock, rule_classes=ledger_rule_classes(load_rule_pack("ecny-2021-06")))
    abroad = FakeLedger(clock=system_clock, name="aed", currency="AED")
    app = create(settings, connect=lambda url, signer: abroad if "abroad" in url else ledger)
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as http:
        yield Service(http, ledger, keys, settings)


def open_wallet(service: Service, wallet_class: WalletClass = WalletClass.II, *, deposit: int = 0) -> tuple:  # type: ignore[type-arg]
    key = PrivateKey.generate("ecdsa-p256-sha256")
    with service.client("channel") as client:
        customer = client.create_customer(evidence=list(Evidence), name="N", phone="+8613800000000").customer
        wallet = client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
        if deposit:
            client.simulate_deposit(customer=customer, amount_minor=deposit)
            vault = client.institution().ledgers[0].vault
            service.ledger.fund(vault, deposit)
            exchange = client.exchange_in(wallet=wallet.wallet, amount_minor=deposit, currency="CNY")
            assert exchange.state == "final"
    return wallet, key, customer


def test_whole_way_from_customer_to_history(service: Service) -> None:
    payer, key, customer = open_wallet(service, deposit=100_000)
    payee, _, _ = open_wallet(service, WalletClass.IV)
    with service.client("channel") as client:
        assert client.simulated_deposit(customer).balance_minor == 0
        values = {"key": key, "ledger": "cny", "debit": payer.account, "currency": "CNY"}
        payment = client.pay(credit=payee.account, amount_minor=2_500, **values)
        assert payment.state is PaymentState.FINAL
        view = client.get_wallet(payer.wallet)
        assert view.balance is not None
        assert view.limits is not None
        assert view.balance.balance_minor == 97_500
        assert (view.limits.daily.max_minor, view.limits.daily.left_minor) == (10_000_000, 9_997_500)
        assert view.limits.annual.max_minor is None
        token = client.instruct(
            TransferKind.EXCHANGE_OUT, credit=client.institution().ledgers[0].vault, amount_minor=500, **values
        )
        assert client.exchange_out(token).deposit_credited_at is not None
        assert client.simulated_deposit(customer).balance_minor == 500
        assert client.get_payment(payment.payment).payment == payment.payment
        lines = list(client.history(payer.wallet))
        assert [line.kind.value for line in lines] == ["exchange-in", "payment", "exchange-out"]
        page = client.history_page(payer.wallet, limit=2)
        assert [line.seq for line in page.items] == [line.seq for line in lines[:2]]
        rest = client.history_page(payer.wallet, limit=2, cursor=page.next_cursor)
        assert [line.seq for line in rest.items] == [lines[2].seq]
        newest = client.history_page(payer.wallet, limit=1, newest_first=True)
        assert [line.seq for line in newest.items] == [lines[2].seq]
        assert [item.kind for item in client.payments(payer.wallet)] == ["exchange-out", "payment"]
        assert [item.wallet for item in client.wallets(customer=customer)] == [payer.wallet]


def test_assumed_caps_are_marked_where_they_are_shown(service: Service) -> None:
    wallet, _, _ = open_wallet(service, WalletClass.III)
    limits = service.client("channel").get_wallet(wallet.wallet).limits
    assert limits is not None
    assert (limits.single.assumed, limits.daily.assumed, limits.balance.assumed) == (True, True, False)


def test_payment_refusals_arrive_with_their_own_status(service: Service) -> None:
    payer, key, _ = open_wallet(service, WalletClass.IV)
    payee, _, _ = open_wallet(service)
    client = service.client(None)
    values = {"ledger": "cny", "debit": payer.account, "credit": payee.account, "currency": "CNY"}
    thief = PrivateKey.generate()
    assert service.refusal(lambda: client.pay(key=key, amount_minor=1, **values)) == (422, "insufficient-funds")
    assert service.refusal(lambda: client.pay(key=key, amount_minor=200_001, **values)) == (
        422,
        "single-limit-exceeded",
    )
    assert service.refusal(lambda: client.pay(key=thief, amount_minor=1, **values)) == (401, "instruction-invalid")
    past = system_clock() - timedelta(seconds=1)
    assert service.refusal(lambda: client.pay(key=key, amount_minor=1, valid_until=past, **values)) == (
        401,
        "instruction-expired",
    )


def test_unreachable_ledger_is_an_unknown_outcome_not_a_failure(service: Service) -> None:
    payer, key, _ = open_wallet(service, deposit=1000)
    payee, _, _ = open_wallet(service)
    client = service.client(None)
    client._http._sleep = lambda seconds: None
    token = client.instruct(
        TransferKind.PAYMENT,
        key=key,
        ledger="cny",
        debit=payer.account,
        credit=payee.account,
        amount_minor=10,
        currency="CNY",
    )
    service.ledger.unreachable = True
    assert service.refusal(lambda: client.submit_payment(token)) == (503, "outcome-unknown")
    service.ledger.unreachable = False
    assert client.submit_payment(token).state is PaymentState.FINAL


def test_batch_has_a_result_an_item_and_a_bound(service: Service) -> None:
    payer, key, _ = open_wallet(service, deposit=1000)
    payee, _, _ = open_wallet(service)
    client = service.client(None)
    tokens = [
        client.instruct(
            TransferKind.PAYMENT,
            key=key,
            ledger="cny",
            debit=payer.account,
            credit=payee.account,
            amount_minor=1,
            currency="CNY",
        )
        for _ in range(3)
    ]
    results = client.submit_payments([*tokens, "garbage" * 5, tokens[0]])
    assert [item.state.value for item in results] == ["final", "final", "final", "refused", "final"]
    assert (results[3].payment, results[3].refusal) == (None, "instruction-invalid")
    too_many = {"instructions": ["x" * 20] * (BATCH_ITEMS_MAX + 1)}
    answer = service.http.post("/v1/payment-batches", json=too_many)
    assert (answer.status_code, answer.json()["refusal"]) == (422, "validation-failed")
    assert service.http.post("/v1/payment-batches", json={"instructions": []}).status_code == 422


# --- who may call ----------------------------------------------------------------------------------------------------

WALLET = "wlt_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
CUSTOMER = "cus_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
SIGNED = [
    ("POST", "/v1/customers", {"channel"}),
    ("GET", f"/v1/customers/{CUSTOMER}", {"channel", "operator"}),
    ("POST", "/v1/wallets", {"channel"}),
    ("GET", "/v1/wallets", {"channel", "operator"}),
    ("GET", f"/v1/wallets/{WALLET}", {"channel", "operator"}),
    ("GET", f"/v1/wallets/{WALLET}/history", {"channel", "operator"}),
    ("GET", f"/v1/wallets/{WALLET}/payments", {"channel", "operator"}),
    ("GET", f"/v1/payments/{WALLET.replace('wlt', 'trf')}", {"channel", "operator"}),
    ("POST", "/v1/exchanges-in", {"channel"}),
    ("GET", f"/v1/exchanges-in/{WALLET.replace('wlt', 'exc')}", {"channel", "operator"}),
    ("POST", "/v1/settlement-instructions", {"operator"}),
    ("POST", "/v1/leg-authorisations", {"bridge"}),
    ("POST", "/v1/simulate/deposits", {"channel"}),
    ("GET", f"/v1/simulate/deposits/{CUSTOMER}", {"channel", "operator"}),
]


@pytest.mark.parametrize(("method", "path", "roles"), SIGNED)
def test_operation_is_for_its_roles_only(service: Service, method: str, path: str, roles: set[str]) -> None:
    body = {"content": b"{}", "headers": {"content-type": "application/json"}} if method == "POST" else {}
    unsigned = service.http.request(method, path, **body)  # type: ignore[arg-type]
    assert (unsigned.status_code, unsigned.json()["refusal"]) == (401, "signature-missing")
    for role in ("channel", "bridge", "operator", "stranger"):
        signed = service.http.request(method, path, auth=RequestSigner(service.keys[role]), **body)  # type: ignore[arg-type]
        said = signed.json().get("refusal")
        if role == "stranger":
            assert said == "signature-invalid"
        elif role in roles:
            assert said not in {"not-permitted", "signature-invalid", "signature-missing"}, said
        else:
            assert (signed.status_code, said) == (403, "not-permitted")


def test_every_operation_but_the_holders_own_asks_for_a_signature(service: Service) -> None:
    """A route added without authentication shows here."""
    open_to_all = {"health", "create_payment", "create_payment_batch", "create_exchange_out", "get_institution"}
    documented = service.http.get("/openapi.json").json()["paths"]
    signed = set()
    for operations in documented.values():
        for operation in operations.values():
            if "401" in operation["responses"] and "signature-missing" in json.dumps(operation["responses"]["401"]):
                signed.add(operation["operationId"])
    every = {operation["operationId"] for operations in documented.values() for operation in operations.values()}
    assert every - signed == open_to_all
    assert len(signed) == len(SIGNED)


def test_replayed_request_is_refused(service: Service) -> None:
    request = httpx.Request("GET", f"{ORIGIN}/v1/wallets")
    RequestSigner(service.keys["channel"]).sign(request)
    headers = dict(request.headers)
    assert service.http.get("/v1/wallets", headers=headers).status_code == 200
    again = service.http.get("/v1/wallets", headers=headers)
    assert (again.status_code, again.json()["refusal"]) == (409, "signature-replayed")


def test_signature_for_one_target_opens_no_other(service: Service) -> None:
    request = httpx.Request("GET", f"{ORIGIN}/v1/wallets?limit=1")
    RequestSigner(service.keys["channel"]).sign(request)
    answer = service.http.get("/v1/wallets?limit=2", headers=dict(request.headers))
    assert (answer.status_code, answer.json()["refusal"]) == (401, "signature-invalid")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b'{"instruction": "' + b"x" * 20 + b'", "tip": "1"}', "validation-failed"),
        (b'{"instruction": 5}', "validation-failed"),
        (b'{"instruction": "' + b"x" * 20_000 + b'"}', "validation-failed"),
        (b'{"instruction": NaN}', "malformed-json"),
        (b'{"instruction": "a", "instruction": "b"}', "malformed-json"),
        (b'{"instruction": "\x00"}', "nul-character"),
        (b"[" * 100, "malformed-json"),
        (b'{"instruction": "' + b"x" * 70_000 + b'"}', "body-too-large"),
    ],
)
def test_malformed_body_has_its_own_refusal(service: Service, body: bytes, refusal: str) -> None:
    answer = service.http.post("/v1/payments", content=body, headers={"content-type": "application/json"})
    assert answer.json()["refusal"] == refusal
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("amount", ["-1", "1.5", "1e3", "01", "9223372036854775808", " 1", "١", -5, 2**63, None, ""])
def test_amount_that_is_no_string_of_digits_is_refused(service: Service, amount: object) -> None:
    body = {"exchange": ids.show("exc", ids.new_uuid7()), "wallet": WALLET, "amount_minor": amount, "currency": "CNY"}
    answer = service.http.post("/v1/exchanges-in", json=body, auth=RequestSigner(service.keys["channel"]))
    assert answer.status_code == 422, answer.text
    assert answer.json()["refusal"] == "validation-failed"


def test_cursor_of_another_listing_is_refused(service: Service) -> None:
    for _ in range(2):
        open_wallet(service)
    signer = RequestSigner(service.keys["channel"])
    cursor = service.http.get("/v1/wallets?limit=1", auth=signer).json()["next_cursor"]
    assert cursor
    other = service.http.get(f"/v1/wallets?limit=1&customer={CUSTOMER}&cursor={cursor}", auth=signer)
    assert (other.status_code, other.json()["refusal"]) == (422, "validation-failed")


# --- cross-border ----------------------------------------------------------------------------------------------------


def test_bridge_fetches_what_the_desk_ordered(service: Service) -> None:
    home, abroad = service.client(None).institution().ledgers
    uetr = uuid4()
    until = system_clock() + timedelta(hours=1)
    order = SettlementOrder.model_validate(
        {
            "instruction_id": str(uetr),
            "ledger": "cny",
            "pay_currency": "CNY",
            "pay_amount_minor": "5000",
            "credit_account": ids.show_account(99),
            "receive_currency": "AED",
            "receive_amount_minor_min": "2500",
            "valid_until": until,
        }
    )
    assert service.client("operator").register_settlements([order])[0].refusal is None
    terms = TransferTerms(
        id=ids.new_uuid7(),
        kind=TransferKind.HOLD,
        debit=home.vault,
        credit=order.credit_account,
        amount_minor=5000,
        currency="CNY",
        reference=uetr,
        commit_hash=b"c" * 32,
        abort_hash=b"a" * 32,
    )
    pays_us = {"debit": ids.AccountNumber(77), "credit": abroad.vault, "amount_minor": 2500, "currency": "AED"}
    counter = SettlementLeg(ledger="aed", terms=terms.model_copy(update=pays_us))
    leg = LegAuthorisation(instruction_id=str(uetr), ledger="cny", terms=terms, other_legs=[counter])
    poor = SettlementLeg(ledger="aed", terms=counter.terms.model_copy(update={"amount_minor": 1}))
    robbed = leg.model_copy(update={"other_legs": [poor]})
    more = leg.model_copy(update={"terms": terms.model_copy(update={"amount_minor": 5001})})
    unknown = leg.model_copy(update={"instruction_id": str(uuid4())})
    results = service.client("bridge").authorise_legs([unknown, robbed, leg, more, robbed])
    assert [item.refusal for item in results] == [
        "settlement-not-found",
        "counter-leg-mismatch",
        None,
        "leg-already-authorised",
        "leg-already-authorised",
    ]
    assert results[2].token


# --- the tables ------------------------------------------------------------------------------------------------------


def test_every_refusal_has_exactly_one_status() -> None:
    assert set(STATUS_BY_WALLET_REFUSAL) == set(WalletRefusal)
    assert set(STATUSES) == set(WalletRefusal) | set(TransferRefusal) | set(LedgerRefusal)
    every = (WalletRefusal, TransferRefusal, LedgerRefusal, RequestRefusal)
    codes = [refusal.value for table in every for refusal in table]
    assert len(codes) == len(set(codes))


def test_simulation_is_mounted_in_the_sandbox_only(service: Service) -> None:
    plain = create(service.settings.model_copy(update={"sandbox": False}))
    assert not [path for path in plain.openapi()["paths"] if "simulate" in path]
    assert [path for path in create(service.settings).openapi()["paths"] if "simulate" in path]

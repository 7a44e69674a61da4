"""Goal: the wallet service over HTTP: who may call what, what each refusal looks like, and that its client speaks it.
Method: the real app (edge, signatures, PostgreSQL, migrations) in process, a fake ledger behind it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
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
from tests.card_world import issuers_file
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


@contextmanager
def running(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Service]:
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
        card_issuers_path=issuers_file(tmp_path),
        sandbox=True,
        recovery_seconds=3600,
    )
    ledger = FakeLedger(clock=system_clock, rule_classes=ledger_rule_classes(load_rule_pack("ecny-2021-06")))
    abroad = FakeLedger(clock=system_clock, name="aed", currency="AED")
    app = create(settings, connect=lambda url, signer: abroad if "abroad" in url else ledger)
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as http:
        yield Service(http, ledger, keys, settings)


@pytest.fixture
def service(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[Service]:
    with running(fresh_database, tmp_path) as found:
        yield found


@pytest.fixture(scope="module")
def shared(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all tests of a module that change nothing: what they send is refused."""
    with running(fresh_databases, tmp_path_factory.mktemp("shared")) as found:
        yield found


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


def names(text: str) -> set[str]:
    return set(text.split())


WALLET = "wlt_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
CUSTOMER = "cus_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
FOR_CHANNELS = names(
    """
    add_bulk_lines cancel_bulk_file cancel_payment_request cancel_schedule cancel_scheduled_payment
    cancel_wallet_closure change_customer_evidence change_wallet_class change_wallet_device check_bulk_file
    close_child_wallet close_wallet create_alias create_bulk_file create_customer create_exchange_in
    create_payment_request
    create_program create_purse create_schedule decline_request list_simulated_codes look_up_alias make_alias_default
    open_child_wallet open_wallet pool_children prolong_schedule recover_wallet_key redeem_payer_code register_card
    register_corporate remove_alias report_card report_purse_lost revoke_child_wallet set_child_caps set_wallet_caps
    show_request simulate_deposit start_bulk_file verify_alias
    """
)
"""What is done for a customer whom the channel has identified."""
FOR_CHANNELS_AND_THE_DESK = names(
    """
    create_webhook_endpoint disable_webhook_endpoint enable_webhook_endpoint get_bulk_file get_bulk_result
    get_child_wallet get_child_wallet_history get_corporate get_customer get_double_spend_proof get_exchange_in
    get_incoming_request get_interest get_merchant get_payment get_payment_control get_payment_request get_program
    get_purse get_purse_escrow get_purse_funding get_request_qr get_schedule get_simulated_deposit get_voucher
    get_voucher_spend get_wallet get_wallet_balance_proof get_wallet_change get_wallet_history get_wallet_qr
    get_wallet_receipt list_aliases list_bulk_files list_bulk_lines list_cards list_child_wallets list_events
    list_incoming_requests list_interest_settlements list_payment_requests list_programs list_refunds
    list_request_payments list_schedule_dates list_scheduled_payments list_schedules list_wallet_changes
    list_wallet_devices list_wallet_notices list_wallet_payments list_wallets list_webhook_deliveries
    list_webhook_endpoints preview_program read_code replay_webhooks resume_wallet suspend_wallet
    take_merchant_statement
    """
)
FOR_THE_DESK = names(
    """
    check_exchanges list_interest_previews list_interest_totals list_reserve_balances register_merchant
    register_settlement_instructions run_interest
    """
)
FOR_THE_BRIDGE = {"authorise_legs"}
FOR_OFFICERS = names(
    "approve_unmask disclose_unmasked erase_customer get_erasure get_unmask_request list_unmask_requests order_unmask"
)
FOR_OFFICERS_AND_AUDITORS = {"list_unmask_evidence"}
ROLES = {
    **dict.fromkeys(FOR_CHANNELS, frozenset({"channel"})),
    **dict.fromkeys(FOR_CHANNELS_AND_THE_DESK, frozenset({"channel", "operator"})),
    **dict.fromkeys(FOR_THE_DESK, frozenset({"operator"})),
    **dict.fromkeys(FOR_THE_BRIDGE, frozenset({"bridge"})),
    **dict.fromkeys(FOR_OFFICERS, frozenset({"compliance"})),
    **dict.fromkeys(FOR_OFFICERS_AND_AUDITORS, frozenset({"compliance", "auditor"})),
}
OPEN_TO_ALL = {
    # Public by nature: no wallet's data.
    "health": "says that the service runs",
    "get_institution": "this institution's name, key and vaults",
    "list_webhook_keys": "public keys",
    "get_privacy_log_key": "a public key",
    "get_privacy_log_checkpoint": "signed for everybody; size and root of the privacy log",
    "list_privacy_log_entries": "salted commitments, which say nothing; a page each",
    "get_privacy_log_proof": "hashes of commitments; reads 32 bytes an entry",
    "list_program_templates": "texts that anybody may check",
    "get_program_template": "the same, one",
    "get_purse_revocations": "a signed list that every device needs; purse ids alone",
    # The body is a document that a holder's device has signed, which binds account, ledger, id and expiry.
    "create_payment": "the holder's instruction",
    "create_payment_batch": "the same, many",
    "create_exchange_out": "the holder's instruction",
    "create_refund": "the payee's instruction, checked before anything is looked up or reserved",
    "approve_request": "the payer's instruction, checked before the payee's institution is asked",
    "create_purse_funding": "the holder's instruction",
    "object_to_announced_key": "a current device's consent: whoever lost the channel to an impostor must be heard",
    "fund_program": "the payer's agreement and holds",
    "create_program_statement": "a party's statement, bound to the hash of the terms",
    "set_payment_control": "two signatories' signatures on the same rules, bound to wallet, version and expiry",
    "approve_payments": "a signatory's approval, bound to wallet and digests",
    "withdraw_approvals": "the same signatory's withdrawal",
    "take_card_revocations": "a list that a registered card issuer has signed",
    "get_purchase_origin": "for who knows the purchase's transfer id; says the account that a refund credits, signed",
    "spend_voucher": "the recipient's order, bound to voucher, merchant, amount and expiry",
    # The body proves itself.
    "create_charge": "a child's id and the merchant's 256-bit secret, without which nothing can be signed",
    "show_program_secret": "to know the secret is the authority, here as at the ledger",
    "sync_purses": "offline payments are proof in themselves, whoever brings them; at most 100, each bounded",
    # Institution to institution: documents that the other one has signed with its key on the ledger.
    "deliver_request": "the payee's institution's request",
    "take_request_decline": "the payer's institution's decline",
    "accept_payer_code": "the merchant's institution's request, and a code that the holder's device has signed",
    "get_request_offer": "for who knows the request's id; a statement is read once in seconds, however many ask",
}
"""Each was examined: what it shows to a stranger, what it lets him do, and how much work he can cause."""


def documented_operations(service: Service) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(method, path with its parameters filled in, operation)."""
    for path, operations in service.http.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            filled = path
            for parameter in operation.get("parameters", []):
                example = str((parameter["schema"].get("examples") or ["1"])[0])
                filled = filled.replace("{" + parameter["name"] + "}", example)
            yield method.upper(), filled, operation


def test_operation_is_for_its_roles_only(service: Service) -> None:
    for method, path, operation in documented_operations(service):
        name = operation["operationId"]
        roles = ROLES.get(name)
        if roles is None:
            continue
        media_type = next(iter(operation.get("requestBody", {"content": {}})["content"]), None)
        body = {"content": b"{}", "headers": {"content-type": media_type}} if media_type else {}
        unsigned = service.http.request(method, path, **body)  # type: ignore[arg-type]
        assert (unsigned.status_code, unsigned.json()["refusal"]) == (401, "signature-missing"), name
        for role in ("channel", "bridge", "operator", "stranger"):
            signed = service.http.request(method, path, auth=RequestSigner(service.keys[role]), **body)  # type: ignore[arg-type]
            is_json = "json" in signed.headers["content-type"]
            said = signed.json().get("refusal") if is_json else None
            if role == "stranger":
                assert said == "signature-invalid", name
            elif role in roles:
                assert said not in {"not-permitted", "signature-invalid", "signature-missing"}, (name, role, said)
            else:
                assert (signed.status_code, said) == (403, "not-permitted"), (name, role)


def test_every_operation_but_the_holders_own_asks_for_a_signature(service: Service) -> None:
    """A route added without authentication, or without saying whose it is, shows here."""
    every, signed = set(), set()
    for _, _, operation in documented_operations(service):
        every.add(operation["operationId"])
        if "signature-missing" in json.dumps(operation["responses"].get("401", {})):
            signed.add(operation["operationId"])
    assert every - signed == set(OPEN_TO_ALL)
    assert signed == set(ROLES)


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
def test_malformed_body_has_its_own_refusal(shared: Service, body: bytes, refusal: str) -> None:
    answer = shared.http.post("/v1/payments", content=body, headers={"content-type": "application/json"})
    assert answer.json()["refusal"] == refusal
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("amount", ["-1", "1.5", "1e3", "01", "9223372036854775808", " 1", "١", -5, 2**63, None, ""])
def test_amount_that_is_no_string_of_digits_is_refused(shared: Service, amount: object) -> None:
    body = {"exchange": ids.show("exc", ids.new_uuid7()), "wallet": WALLET, "amount_minor": amount, "currency": "CNY"}
    answer = shared.http.post("/v1/exchanges-in", json=body, auth=RequestSigner(shared.keys["channel"]))
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
    pays_us = {
        "id": ids.new_uuid7(),
        "debit": ids.AccountNumber(77),
        "credit": abroad.vault,
        "amount_minor": 2500,
        "currency": "AED",
    }
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


@pytest.mark.extended
def test_simulation_is_mounted_in_the_sandbox_only(service: Service) -> None:
    plain = create(service.settings.model_copy(update={"sandbox": False}))
    assert not [path for path in plain.openapi()["paths"] if "simulate" in path]
    assert [path for path in create(service.settings).openapi()["paths"] if "simulate" in path]

"""Goal: requests, payers' codes, refunds, receipts across two institutions, as their customers would meet them.
Method: a real ledger and two real wallet services, each behind its own socket, that know each other by a directory.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.server import make_server
from kernel.transparency.notes import VerifierKey
from ledger.client import (
    ProofRefused,
    ReceiptRefused,
    parse_proof,
    verify_balance_proof,
    verify_receipt,
)
from ledger.contract import TransferKind
from tests import ledger_world
from tests.ledger_world import LedgerWorld, free_port, running_ledger
from tests.qr_reader import read_png
from wallet.api.app import create
from wallet.client import WalletClient
from wallet.client.programs import program_request
from wallet.contract import WalletView
from wallet.contract.programs import MerchantStatement, Party, VoucherRequest, reference_of, sign_merchant
from wallet.domain import qr
from wallet.domain.requests import payment_id
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.settings import WalletSettings

BANKS = ("BKCHCNBJ", "ICBKCNBJ")


@dataclass
class Customer:
    bank: WalletClient
    wallet: WalletView
    key: PrivateKey

    @property
    def account(self) -> int:
        assert self.wallet.account is not None
        return self.wallet.account

    @property
    def balance(self) -> int:
        view = self.bank.get_wallet(self.wallet.wallet)
        assert view.balance is not None
        return view.balance.balance_minor

    @property
    def left_today(self) -> int | None:
        view = self.bank.get_wallet(self.wallet.wallet)
        assert view.limits is not None
        return view.limits.daily.left_minor


@dataclass
class Scheme:
    ledger: LedgerWorld
    banks: dict[str, WalletClient]
    urls: dict[str, str]
    directory: Path
    clients: dict[str, PrivateKey]

    def customer(self, bank: str, *, funds: int = 0, suite: str = "ed25519") -> Customer:
        client = self.banks[bank]
        key = PrivateKey.generate(suite)
        customer = client.create_customer(evidence=list(Evidence)).customer
        wallet = client.open_wallet(customer=customer, wallet_class=WalletClass.III, device_key=key.public)
        if funds:
            client.simulate_deposit(customer=customer, amount_minor=funds)
            exchange = client.exchange_in(wallet=wallet.wallet, amount_minor=funds, currency="CNY")
            assert exchange.state == "final"
        return Customer(client, wallet, key)


@contextmanager
def served(app: FastAPI, port: int) -> Iterator[None]:
    server = make_server(app, port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the service did not start")
        time.sleep(0.01)
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="module")
def scheme(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scheme]:
    """Of all tests here: each has customers of its own."""
    tmp_path = tmp_path_factory.mktemp("scheme")
    classes = ledger_rule_classes(load_rule_pack("ecny-2021-06"))
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        ledger_world, "RULE_CLASSES", [item.model_dump(mode="json", exclude_none=True) for item in classes]
    )
    ports = {name: free_port() for name in BANKS}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    (tmp_path / "peers.json").write_text(json.dumps([{"participant": n, "url": url} for n, url in urls.items()]))
    with ExitStack() as stack:
        stack.callback(monkeypatch.undo)
        world = stack.enter_context(running_ledger(fresh_databases("ledger"), tmp_path, log_enabled=True))
        clients: dict[str, WalletClient] = {}
        keys: dict[str, PrivateKey] = {}
        for name in BANKS:
            world.register(name)
            home = tmp_path / name
            home.mkdir()
            world.participants[name].save(home / "bank.pem")
            keys[name] = PrivateKey.generate()
            keys[name].save(home / "channel.pem")
            (home / "clients.json").write_text(
                json.dumps([{"name": "app", "key": keys[name].public.to_jwk(), "role": "channel"}])
            )
            settings = WalletSettings(
                public_url=urls[name],
                database_url=fresh_databases("wallet"),
                data_dir=home,
                participant=name,
                signing_key_path=home / "bank.pem",
                clients_path=home / "clients.json",
                ledger_url=world.url,
                peers_path=tmp_path / "peers.json",
                sandbox=True,
                recovery_seconds=0.5,
            )
            stack.enter_context(served(create(settings), ports[name]))
            clients[name] = WalletClient(urls[name], signer=RequestSigner(keys[name]))
            stack.callback(clients[name].close)
            world.issue(clients[name].institution().ledgers[0].vault, 100_000_000)
        yield Scheme(world, clients, urls, tmp_path, keys)


def said(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemResponse) as caught:
        call()
    assert caught.value.status < 500 or caught.value.transient
    return caught.value.refusal


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_a_voucher_of_another_institution_is_refunded_to_its_issuer(scheme: Scheme) -> None:
    """The merchant's institution sees only the issuer's institution's vault; it asks, and believes a signed answer."""
    city, worker = scheme.customer(BANKS[0], funds=50_000), scheme.customer(BANKS[0])
    canteen, friend = scheme.customer(BANKS[1]), scheme.customer(BANKS[0], funds=300)
    home = city.bank
    soon = system_clock() + timedelta(days=1)
    statement = MerchantStatement(
        participant=ParticipantId(BANKS[1]),
        account=canteen.account,
        name="职工食堂",
        category="5812",
        place="330106",
        valid_until=soon,
    )
    home.take_merchant_statement(sign_merchant(statement, scheme.ledger.participants[BANKS[1]]))
    voucher = VoucherRequest(
        voucher=ids.new_uuid7(), account=worker.account, recipient=worker.key.public.to_jwk(), value_minor=2_000
    )
    request = program_request(
        template="voucher-multi",
        version=1,
        parameters={
            "deadline": soon.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "categories": ["5811-5814"],
            "places": ["3301"],
            "step": "500",
        },
        parties=[Party(role="payer", account=city.account, key=city.key.public.to_jwk())],
        vouchers=[voucher],
    )
    program = home.fund_program(home.create_program(request).terms, key=city.key)
    terms = {"merchant": canteen.account, "amount_minor": 2_000, "currency": "CNY", "key": worker.key}
    spent = home.spend_voucher(voucher.voucher, **terms)
    assert (spent.state, canteen.balance, city.balance) == ("final", 2_000, 48_000)

    def vaults() -> list[int]:
        vault = [bank.institution().ledgers[0].vault for bank in scheme.banks.values()]
        clients = [scheme.ledger.client(name) for name in scheme.banks]
        return [client.get_account(number).balance_minor for client, number in zip(clients, vault, strict=True)]

    before, between = vaults(), scheme.banks[BANKS[0]].institution().ledgers[0].vault
    asked = canteen.bank.refunds(spent.payment)
    assert (asked.debit, asked.refund_to, asked.refundable_minor) == (between, city.account, 2_000)
    values = {
        "key": canteen.key,
        "ledger": scheme.ledger.ledger,
        "debit": canteen.account,
        "currency": "CNY",
        "original": spent.payment,
    }
    for wrong in (between, worker.account):
        assert said(lambda to=wrong: canteen.bank.refund(amount_minor=500, credit=to, **values)) == "refund-mismatch"
    assert canteen.bank.refund(amount_minor=500, credit=city.account, **values).state == "final"
    assert (canteen.balance, city.balance, worker.balance) == (1_500, 48_500, 0)
    assert vaults() == before
    seen = home.refunds(spent.payment)
    assert (seen.refund_to, seen.refunded_minor, seen.is_complete) == (city.account, 500, True)

    # An ordinary payment under such a reference is its payer's: the other institution says it is no voucher.
    plain = friend.bank.pay(
        key=friend.key,
        ledger=scheme.ledger.ledger,
        debit=friend.account,
        credit=canteen.account,
        amount_minor=300,
        currency="CNY",
        reference=program.reference,
    )
    assert canteen.bank.refunds(plain.payment).refund_to == friend.account


def test_what_a_holder_of_an_unlisted_institution_has_paid_is_refunded_to_him(scheme: Scheme) -> None:
    """Its reference looks like a program's, and nobody can be asked. A vault's payment under it could be a voucher's:
    not to be given back while nobody says whose it was."""
    stranger, unlisted, reference = PrivateKey.generate(), "CITIHKHX", reference_of(sha256(b"terms").digest())
    scheme.ledger.register(unlisted)
    account, vault = scheme.ledger.open_wallet(unlisted, stranger), scheme.ledger.open_vault(unlisted)
    scheme.ledger.issue(vault, 900)
    friend, canteen = scheme.customer(BANKS[0], funds=500), scheme.customer(BANKS[1])
    values = {"ledger": scheme.ledger.ledger, "currency": "CNY"}
    friend.bank.pay(key=friend.key, debit=friend.account, credit=account, amount_minor=500, **values)

    def pays(debit: int, key: PrivateKey, amount: int) -> UUID:
        terms = scheme.ledger.terms("payment", debit, canteen.account, amount, reference=reference)
        with scheme.ledger.client(unlisted) as client:
            assert client.submit_instruction(scheme.ledger.instruction(terms, key)).outcome == "booked"
        return terms.id

    holders, institutions = pays(account, stranger, 500), pays(vault, scheme.ledger.participants[unlisted], 900)
    back = {"key": canteen.key, "debit": canteen.account, **values}
    assert canteen.bank.refunds(holders).refund_to == account
    assert canteen.bank.refund(credit=account, amount_minor=200, original=holders, **back).state == "final"
    refused = said(lambda: canteen.bank.refund(credit=vault, amount_minor=200, original=institutions, **back))
    assert refused == "institution-unknown"
    assert canteen.balance == 500 + 900 - 200


@pytest.mark.extended
def test_request_by_qr_code_across_institutions_refund_and_receipt(scheme: Scheme) -> None:
    merchant, payer = scheme.customer(BANKS[0]), scheme.customer(BANKS[1], funds=50_000, suite="ecdsa-p256-sha256")
    asked = merchant.bank.request_payment(
        wallet=merchant.wallet.wallet,
        payee_name="桥边茶馆",
        currency="CNY",
        amount_minor=12_50,
        payee_reference="ORDER-7",
    )
    picture = merchant.bank.request_qr(asked.request, name="Teahouse", city="Beijing", form="png")
    text = merchant.bank.request_qr(asked.request, name="Teahouse", city="Beijing").decode()
    assert read_png(picture, scale=4) == text
    assert b"<svg" in merchant.bank.request_qr(asked.request, name="Teahouse", city="Beijing", form="svg")

    # the payer's wallet: read, show, approve
    code = payer.bank.read_code(text)
    assert (code.kind, code.amount_minor, code.name, code.is_signed) == ("payee-dynamic", 12_50, "Teahouse", True)
    forged = qr.encode_merchant(qr.parse_merchant(text), key=PrivateKey.generate())
    assert payer.bank.read_code(forged).is_signed is False
    shown = payer.bank.show_request(payer.wallet.wallet, request=code.request, institution=code.institution)
    assert (shown.asked.payee_name, shown.remaining_minor) == ("桥边茶馆", 12_50)
    paid = payer.bank.approve_request(payer.wallet.wallet, shown, key=payer.key, debit=payer.account)
    assert (paid.state, paid.payment) == ("final", payment_id(asked.request, 0))
    after = merchant.bank.get_payment_request(asked.request)
    assert (after.state, after.paid_minor) == ("paid", 12_50)
    assert [item.payment for item in merchant.bank.request_payments(asked.request)] == [paid.payment]
    assert [item.state for item in payer.bank.incoming_requests(payer.wallet.wallet)] == ["paid"]
    assert [item.request for item in merchant.bank.payment_requests(merchant.wallet.wallet)] == [asked.request]

    # refund in parts, by the merchant's device, seen on both sides
    values = {
        "key": merchant.key,
        "ledger": scheme.ledger.ledger,
        "debit": merchant.account,
        "credit": payer.account,
        "currency": "CNY",
        "original": paid.payment,
    }
    assert merchant.bank.refund(amount_minor=5_00, **values).state == "final"
    assert said(lambda: merchant.bank.refund(amount_minor=8_00, **values)) == "refund-exceeds-original"
    assert said(lambda: merchant.bank.refund(amount_minor=1, **values | {"credit": merchant.account + 5})) in (
        "refund-mismatch",
        "accounts-must-differ",
    )
    for bank in (merchant.bank, payer.bank):
        view = bank.refunds(paid.payment)
        assert (view.refunded_minor, view.refundable_minor, view.refund_to) == (5_00, 7_50, payer.account)
    assert payer.balance == 50_000 - 12_50 + 5_00

    # a receipt for the payer, verified with nothing but the ledger's public log key
    log_key = VerifierKey.parse(scheme.ledger.anonymous().log().vkey)

    def receipt() -> bytes:
        return payer.bank.receipt(payer.wallet.wallet, paid.payment)

    def is_sealed() -> bool:
        try:
            return bool(receipt())
        except ProblemResponse as error:
            if error.refusal != "not-sealed":
                raise
            return False

    eventually(is_sealed)
    proved = verify_receipt(receipt(), log_key=log_key)
    assert (proved.receipt.transfer.id, proved.receipt.transfer.amount_minor) == (paid.payment, 12_50)
    with pytest.raises(ReceiptRefused):
        verify_receipt(receipt().replace(b'"1250"', b'"1251"'), log_key=log_key)
    stranger = scheme.customer(BANKS[1])
    assert said(lambda: stranger.bank.receipt(stranger.wallet.wallet, paid.payment)) == "transfer-not-of-wallet"
    with scheme.ledger.operator() as operator:
        closing = operator.close_now().closing
    document = payer.bank.balance_proof(payer.wallet.wallet)
    balance = verify_balance_proof(parse_proof(document), log_key=log_key, account=payer.account)
    assert balance.balance_minor == payer.balance
    with pytest.raises(ProofRefused):
        verify_balance_proof(parse_proof(document), log_key=log_key, account=merchant.account)
    assert said(lambda: payer.bank.balance_proof(payer.wallet.wallet, closing=closing + 1)) == "closing-not-found"

    # the same at a terminal
    from wallet.__main__ import app

    (scheme.directory / "receipt.json").write_bytes(receipt())
    (scheme.directory / "proof.json").write_bytes(document)
    for command, name in (("verify-receipt", "receipt.json"), ("verify-balance-proof", "proof.json")):
        done = CliRunner().invoke(app, [command, str(scheme.directory / name), "--log-key", str(log_key)])
        assert done.exit_code == 0, done.output
    (scheme.directory / "bad.json").write_bytes(receipt().replace(b'"1250"', b'"1251"'))
    done = CliRunner().invoke(app, ["verify-receipt", str(scheme.directory / "bad.json"), "--log-key", str(log_key)])
    assert done.exit_code == 1
    with scheme.ledger.anonymous() as client:
        assert client.supply().identity_holds


@pytest.mark.extended
def test_payers_at_two_institutions_race_for_one_request_on_the_real_ledger(scheme: Scheme) -> None:
    merchant = scheme.customer(BANKS[0])
    payers = [scheme.customer(BANKS[n % 2], funds=10_000) for n in range(6)]
    asked = merchant.bank.request_payment(
        wallet=merchant.wallet.wallet, payee_name="Shop", currency="CNY", amount_minor=100
    )
    shown = [
        payer.bank.show_request(payer.wallet.wallet, request=asked.request, institution=BANKS[0]) for payer in payers
    ]

    def approve(number: int) -> str:
        payer = payers[number]
        try:
            done = payer.bank.approve_request(payer.wallet.wallet, shown[number], key=payer.key, debit=payer.account)
        except ProblemResponse as error:
            return error.refusal
        return done.state.value

    with ThreadPoolExecutor(len(payers)) as pool:
        outcomes = Counter(pool.map(approve, range(len(payers))))
    assert outcomes["final"] == 1, outcomes
    assert set(outcomes) <= {"final", "request-already-paid", "request-payment-under-way"}
    assert merchant.balance == 100
    assert sum(payer.balance for payer in payers) == 6 * 10_000 - 100
    assert merchant.bank.get_payment_request(asked.request).state == "paid"


@pytest.mark.extended
def test_payee_learns_of_a_payment_that_never_went_through_a_wallet_service(scheme: Scheme) -> None:
    merchant, payer = scheme.customer(BANKS[0]), scheme.customer(BANKS[1], funds=10_000)
    asked = merchant.bank.request_payment(
        wallet=merchant.wallet.wallet, payee_name="Shop", currency="CNY", payments="many"
    )
    token = payer.bank.instruct(
        TransferKind.PAYMENT,
        key=payer.key,
        ledger=scheme.ledger.ledger,
        debit=payer.account,
        credit=merchant.account,
        amount_minor=77,
        currency="CNY",
        reference=asked.request,
    )
    with scheme.ledger.client(BANKS[1]) as ledger:
        assert ledger.submit_instruction(token).outcome == "booked"
    listed = lambda: next(iter(merchant.bank.payment_requests(merchant.wallet.wallet)))  # noqa: E731
    eventually(lambda: listed().paid_minor == 77)


@pytest.mark.extended
def test_payers_code_pays_once_and_no_more_than_it_may(scheme: Scheme) -> None:
    merchant, payer = scheme.customer(BANKS[0]), scheme.customer(BANKS[1], funds=200_000)
    institution = payer.bank.institution()
    left = payer.left_today
    assert left is not None

    def ask(amount: int) -> object:
        return merchant.bank.request_payment(
            wallet=merchant.wallet.wallet, payee_name="Kiosk", currency="CNY", amount_minor=amount
        ).request

    def code(cap: int, **more: object) -> str:
        values = {"key": payer.key, "account": payer.account, "cap_minor": cap}
        return payer.bank.payer_code(institution, **values | more)

    # paid by the code alone, across institutions, all or nothing
    first, text = ask(30_00), code(50_00)
    assert merchant.bank.read_code(text).kind == "payer"
    done = merchant.bank.redeem_payer_code(first, text)
    assert done.state == "paid"
    assert merchant.bank.redeem_payer_code(first, text) == done
    assert (merchant.balance, payer.balance) == (30_00, 200_000 - 30_00)
    assert payer.left_today == left - 30_00
    assert merchant.bank.get_payment_request(first).state == "paid"
    # once only
    assert said(lambda: merchant.bank.redeem_payer_code(ask(10_00), text)) == "code-already-redeemed"
    assert said(lambda: merchant.bank.redeem_payer_code(first, code(50_00))) == "request-already-paid"
    assert (merchant.balance, payer.balance) == (30_00, 200_000 - 30_00)
    # not by another's signature, not after its minutes, not for long
    assert said(lambda: merchant.bank.redeem_payer_code(ask(1), code(5, key=merchant.key))) == "code-signature-invalid"
    old = code(5, valid_until=system_clock() - timedelta(seconds=1))
    assert said(lambda: merchant.bank.redeem_payer_code(ask(1), old)) == "code-expired"
    long = code(5, valid_until=system_clock() + timedelta(hours=1))
    assert said(lambda: merchant.bank.redeem_payer_code(ask(1), long)) == "code-invalid"
    assert said(lambda: merchant.bank.redeem_payer_code(ask(1), "JZP1" + "A" * 181)) == "code-invalid"
    assert said(lambda: merchant.bank.redeem_payer_code(ask(1), code(900_000))) == "single-limit-exceeded"
    # above its cap the payer is asked, and signs the payment itself
    dear = ask(60_00)
    assert merchant.bank.redeem_payer_code(dear, code(50_00)).state == "needs-approval"
    waiting = next(iter(payer.bank.incoming_requests(payer.wallet.wallet)))
    assert (waiting.asked.request, waiting.needs_approval) == (dear, True)
    shown = payer.bank.get_incoming_request(payer.wallet.wallet, dear)
    paid = payer.bank.approve_request(payer.wallet.wallet, shown, key=payer.key, debit=payer.account)
    assert paid.state == "final"
    assert (merchant.balance, payer.balance) == (90_00, 200_000 - 90_00)
    # above the institution's own cap too, whatever the code says
    assert merchant.bank.redeem_payer_code(ask(1_500_00), code(1_900_00)).state == "needs-approval"
    # what a code paid goes back to its holder, not to the vault in between
    values = {
        "key": merchant.key,
        "ledger": scheme.ledger.ledger,
        "debit": merchant.account,
        "amount_minor": 30_00,
        "currency": "CNY",
        "original": done.payment,
    }
    vault = institution.ledgers[0].vault
    assert said(lambda: merchant.bank.refund(credit=vault, **values)) == "refund-mismatch"
    assert merchant.bank.refund(credit=payer.account, **values).state == "final"
    assert payer.balance == 200_000 - 60_00
    with scheme.ledger.anonymous() as client:
        assert client.supply().identity_holds


def test_one_code_shown_to_many_tills_pays_one_of_them(scheme: Scheme) -> None:
    merchants = [scheme.customer(BANKS[n % 2]) for n in range(4)]
    payer = scheme.customer(BANKS[1], funds=50_000)
    text = payer.bank.payer_code(payer.bank.institution(), key=payer.key, account=payer.account, cap_minor=50_00)
    asked = [
        merchant.bank.request_payment(
            wallet=merchant.wallet.wallet, payee_name="Till", currency="CNY", amount_minor=10_00
        ).request
        for merchant in merchants
    ]

    def redeem(number: int) -> str:
        try:
            return merchants[number].bank.redeem_payer_code(asked[number], text).state.value
        except ProblemResponse as error:
            return error.refusal

    with ThreadPoolExecutor(4) as pool:
        outcomes = Counter(pool.map(redeem, range(4)))
    assert outcomes == {"paid": 1, "code-already-redeemed": 3}
    assert sum(merchant.balance for merchant in merchants) == 10_00
    assert payer.balance == 50_000 - 10_00
    assert ids.show_account(payer.account)

"""Goal: programs over the API against the real ledger: what the fake promises, the ledger keeps.
Method: both services over their own PostgreSQL databases (the scheme of `test_wallet_with_ledger`), the typed client.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from fastapi import FastAPI

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.ids import AccountNumber
from ledger.client import LedgerClient
from ledger.contract import IssueAction, TransferItem, TransferKind, TransferTerms
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, running_scheme
from wallet.client import WalletClient
from wallet.client.programs import TermsDiffer, check_terms, program_request, statement_token
from wallet.contract import WalletView
from wallet.contract.programs import (
    Party,
    ProgramRequest,
    ProgramView,
    SupposedStatement,
    VoucherRequest,
)
from wallet.domain.rules import Evidence, WalletClass
from wallet.program_template_files import TEMPLATE_TYP
from wallet.usecases.program_pass import resume_programs


@dataclass
class Person:
    wallet: WalletView
    key: PrivateKey

    @property
    def account(self) -> AccountNumber:
        assert self.wallet.account is not None
        return self.wallet.account

    def party(self, role: str) -> Party:
        return Party(role=role, key=self.key.public.to_jwk(), account=self.account)


class World:
    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.client = scheme.wallet("channel")
        self.bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
        self.vault = self.client.institution().ledgers[0].vault
        issue = IssueAction(transfer=ids.new_uuid7(), vault=self.vault, amount_minor=10_000_000, currency="CNY")
        with LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.operators[0])) as operator:
            order_by_operators(operator, scheme.operators, issue)

    def person(self, wallet_class: WalletClass = WalletClass.II, *, funds: int = 0) -> Person:
        key = PrivateKey.generate()
        customer = self.client.create_customer(evidence=list(Evidence)).customer
        wallet = self.client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
        if funds:
            self.client.simulate_deposit(customer=customer, amount_minor=funds)
            self.client.exchange_in(wallet=wallet.wallet, amount_minor=funds, currency="CNY")
        return Person(wallet, key)

    def balance(self, person: Person) -> tuple[int, int]:
        """(balance, available) as the ledger has them."""
        view = self.bank.get_account(person.account)
        return view.balance_minor, view.available_minor

    def tidy(self) -> int:
        app = cast("FastAPI", self.scheme.wallet_http.app)
        return resume_programs(app.state.context)


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Of all tests here: each has persons and programs of its own."""
    with running_scheme(fresh_databases, tmp_path_factory.mktemp("scheme")) as scheme:
        yield World(scheme)


def ahead(step: timedelta) -> str:
    return (datetime.now(UTC) + step).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def refused(work: Callable[..., object], *arguments: object, **named: object) -> str:
    with pytest.raises(ProblemResponse) as caught:
        work(*arguments, **named)
    return caught.value.refusal


def drip(payer: Person, payee: Person, courier: PrivateKey, amounts: list[int]) -> ProgramRequest:
    return program_request(
        template="prepaid-drip",
        version=1,
        parameters={"deadline": ahead(timedelta(days=30)), "quiet_days": 14, "subject": "milk, every morning"},
        parties=[payer.party("payer"), payee.party("payee"), Party(role="courier", key=courier.public.to_jwk())],
        amounts_minor=amounts,
    )


def test_prepaid_milk_is_released_bottle_by_bottle(world: World) -> None:
    client, courier = world.client, PrivateKey.generate("ecdsa-p256-sha256")
    payer, dairy = world.person(funds=100_000), world.person()
    request = drip(payer, dairy, courier, [1_000, 1_000, 1_000])

    said = [SupposedStatement(role="courier", event="delivered", ordinal=1, at=system_clock() + timedelta(days=1))]
    forecast = client.preview_program(request, statements=said)
    assert [step.outcome for step in forecast.schedule] == ["release", "return", "return"]
    by_role = {party.role: party for party in forecast.parties}
    assert (by_role["payer"].worst_minor, by_role["payee"].best_minor, by_role["payee"].worst_minor) == (0, 3_000, 0)

    view = client.create_program(request)
    assert view.awaited == ["payee"]
    assert {trigger.event: trigger.by for trigger in view.triggers}["delivered"] == ["payer", "courier"]
    anonymous = WalletClient("http://wallet.test", transport=world.scheme.wallet_http._transport)
    anonymous.say(view.terms, role="payee", event="accept", key=dairy.key)
    view = anonymous.fund_program(view.terms, key=payer.key)
    # The money is reserved, and still the payer's: in the ledger nothing has left his balance.
    assert world.balance(payer) == (100_000, 97_000)
    hold = world.bank.get_hold(view.holds[0].hold)
    assert (hold.status.value, hold.credit) == ("held", dairy.account)
    assert view.holds[1].why_not_yet is not None
    assert "0 of 2" in view.holds[1].why_not_yet

    view = anonymous.say(view.terms, role="courier", event="delivered", key=courier)
    assert [hold.state.value for hold in view.holds] == ["released", "held", "held"]
    assert view.holds[0].secret is not None
    assert hashlib.sha256(view.holds[0].secret).digest() == view.terms.holds[0].commit_hash
    assert world.bank.get_hold(view.holds[0].hold).secret == view.holds[0].secret
    view = anonymous.say(view.terms, role="payer", event="stop", key=payer.key)
    assert (view.state.value, view.released_minor, view.returned_minor) == ("finished", 1_000, 2_000)
    assert world.balance(payer) == (99_000, 99_000)
    assert world.balance(dairy) == (1_000, 1_000)

    # every trigger is kept, signed, and shown
    shown = client.get_program(view.program)
    assert [(item.role, item.event) for item in shown.statements] == [
        ("payee", "accept"),
        ("payer", "agree"),
        ("courier", "delivered"),
        ("payer", "stop"),
    ]
    jws.verify(shown.statements[2].token, courier.public, typ="jiaozi-program-statement+jws")
    assert [item.program for item in client.programs(payer.wallet.wallet)] == [view.program]
    lines = {line.kind.value: line.amount_minor for line in world.bank.statement(dairy.account).lines}
    assert world.bank.get_transfer(view.holds[0].hold).reference == view.reference
    assert lines == {"hold": 0, "post": 1_000, "void": 0}
    assert world.bank.supply().identity_holds


def test_funding_beyond_the_balance_reserves_nothing_for_ever(world: World) -> None:
    payer, dairy = world.person(funds=2_500), world.person()
    view = world.client.create_program(drip(payer, dairy, PrivateKey.generate(), [1_000, 1_000, 1_000]))
    world.client.say(view.terms, role="payee", event="accept", key=dairy.key)
    holds = world.client.sign_program_holds(view.terms, key=payer.key)
    assert refused(world.client.fund_program, view.terms, key=payer.key) == "insufficient-funds"
    assert world.balance(payer) == (2_500, 2_500)
    late = world.bank.submit([TransferItem(instruction=token) for token in holds])
    assert [item.refusal for item in late] == ["hold-already-voided"] * 3
    assert world.client.get_program(view.program).state.value == "refused"


def test_a_voucher_is_spent_and_the_rest_returns_by_the_ledgers_own_expiry(world: World) -> None:
    client = world.client
    issuer, worker, canteen = world.person(WalletClass.I, funds=50_000), world.person(), world.person()
    desk = world.scheme.wallet("operator")
    desk.register_merchant(canteen.account, name="Canteen", category="5812", place="330106")
    voucher = VoucherRequest(
        voucher=ids.new_uuid7(), recipient=worker.key.public.to_jwk(), account=worker.account, value_minor=5_000
    )
    deadline = system_clock() + timedelta(seconds=6)
    request = program_request(
        template="voucher-multi",
        version=1,
        parameters={
            "deadline": deadline.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "categories": ["5811-5814"],
            "places": ["3301"],
            "step": "500",
        },
        parties=[issuer.party("payer")],
        vouchers=[voucher],
    )
    view = client.create_program(request)
    view = client.fund_program(view.terms, key=issuer.key)
    assert (view.state.value, world.balance(issuer)) == ("active", (50_000, 45_000))
    vault = world.bank.get_account(world.vault).balance_minor
    spent = client.spend_voucher(
        voucher.voucher, merchant=canteen.account, amount_minor=1_300, currency="CNY", key=worker.key
    )
    assert (spent.state.value, spent.change_minor) == ("final", 200)
    assert world.balance(canteen) == (1_300, 1_300)
    assert world.balance(issuer) == (48_700, 45_200)
    assert world.bank.get_account(world.vault).balance_minor == vault
    # Posts, payment and change are in one block: the vault held the money at no moment in between.
    payment = world.bank.get_transfer(spent.payment)
    assert payment.reference == view.reference
    posts = [line for line in world.bank.statement(world.vault, limit=1_000).lines if line.kind.value == "post"]
    assert {line.booked_at for line in posts} == {payment.booked_at}
    assert client.get_voucher(voucher.voucher).left_minor == 3_500
    assert client.get_voucher_spend(spent.spend) == spent
    assert (
        refused(
            client.spend_voucher,
            voucher.voucher,
            merchant=worker.account,
            amount_minor=1,
            currency="CNY",
            key=worker.key,
        )
        == "merchant-not-fitting"
    )

    # The clock passes the deadline; nobody does anything, and the ledger gives the rest back.
    until = time.monotonic() + 30
    while world.balance(issuer) != (48_700, 48_700) and time.monotonic() < until:
        time.sleep(0.3)
        world.tidy()
    assert world.balance(issuer) == (48_700, 48_700)
    world.tidy()
    view = client.get_program(view.program)
    assert (view.state.value, view.released_minor, view.returned_minor) == ("finished", 1_300, 3_700)
    assert world.bank.supply().identity_holds


def test_delivery_versus_payment_through_the_ledger_alone(world: World) -> None:
    payer, seller = world.person(funds=10_000), world.person()
    secret = b"\x07" * 32
    request = program_request(
        template="delivery-versus-payment",
        version=1,
        parameters={"deadline": ahead(timedelta(days=1)), "secret_hash": hashlib.sha256(secret).hexdigest()},
        parties=[payer.party("payer"), seller.party("payee")],
        amounts_minor=[4_000],
    )
    view = world.client.create_program(request)
    world.client.say(view.terms, role="payee", event="accept", key=seller.key)
    view = world.client.fund_program(view.terms, key=payer.key)
    assert refused(world.client.show_program_secret, view.program, b"\x08" * 32) == "hold-secret-wrong"
    # The seller shows the secret to the ledger; this service is not asked.
    post = TransferTerms(
        id=ids.new_uuid7(), kind=TransferKind.POST, currency="CNY", hold=view.holds[0].hold, secret=secret
    )
    with LedgerClient(world.scheme.ledger_url) as anybody:
        assert anybody.submit([TransferItem(terms=post)])[0].outcome.value == "booked"
    assert world.balance(seller) == (4_000, 4_000)
    view = world.client.show_program_secret(view.program, secret)
    assert (view.state.value, view.released_minor) == ("finished", 4_000)


def test_a_client_signs_no_terms_but_those_it_asked_for(world: World) -> None:
    payer, dairy, courier = world.person(), world.person(), PrivateKey.generate()
    request = drip(payer, dairy, courier, [1_000])
    view = world.client.create_program(request)
    check_terms(view, request)

    def with_terms(**changes: object) -> ProgramView:
        return view.model_copy(update={"terms": view.terms.model_copy(update=changes)})

    hold = view.terms.holds[0]
    for changed in (
        with_terms(template="time-locked-gift"),
        with_terms(parameters={**view.terms.parameters, "quiet_days": 1}),
        with_terms(parties=view.terms.parties[:2]),
        with_terms(holds=[hold.model_copy(update={"amount_minor": 2_000})]),
        with_terms(holds=[hold.model_copy(update={"credit": payer.account})]),
        with_terms(template_sha256=b"\0" * 32),
    ):
        with pytest.raises(TermsDiffer):
            check_terms(changed, request)


def test_templates_are_shown_with_the_institutions_signature(world: World) -> None:
    key = PublicKey.from_jwk(world.client.institution().key)
    templates = world.client.program_templates()
    assert {item.kind for item in templates} == {"release", "voucher"}
    for item in templates:
        assert hashlib.sha256(jws.canonical_json(item.template)).digest() == item.sha256
        assert item.sha256.hex().encode() in jws.verify(item.signature, key, typ=TEMPLATE_TYP)
    assert world.client.program_template("prepaid-drip", 1) in templates
    assert refused(world.client.program_template, "prepaid-drip", 99) == "template-not-found"


def test_bad_input_has_one_clear_answer(world: World) -> None:
    client, http = world.client, world.scheme.wallet_http
    payer, dairy, courier = world.person(funds=1_000), world.person(), PrivateKey.generate()
    request = drip(payer, dairy, courier, [1_000])
    view = client.create_program(request)
    bridge = world.scheme.wallet("bridge")
    assert refused(bridge.create_program, request) == "not-permitted"
    assert (
        refused(client.register_merchant, payer.account, name="x", category="5411", place="330106") == "not-permitted"
    )
    assert refused(client.get_program, ids.new_uuid7()) == "program-not-found"
    assert refused(client.get_voucher, ids.new_uuid7()) == "voucher-not-found"
    assert refused(client.get_voucher_spend, ids.new_uuid7()) == "spend-not-found"
    assert refused(client.get_merchant, payer.account) == "merchant-not-found"
    token = statement_token(view.terms, role="courier", event="delivered", key=courier)
    assert refused(client.submit_statement, token) == "program-state-mismatch"
    assert refused(client.submit_statement, token[:-4] + "AAAA") == "statement-invalid"
    assert refused(client.submit_statement, "x" * 40) == "statement-invalid"
    loose = jws.sign(b'{"statement": 1}', courier, typ="jiaozi-program-statement+jws")
    assert refused(client.submit_statement, loose) == "statement-invalid"
    for path, body in (
        ("/v1/program-statements", {"statement": 5}),
        ("/v1/program-fundings", {"program": "prg_x", "agreement": "", "instructions": []}),
        ("/v1/voucher-spends", {}),
        (f"/v1/programs/{ids.show('prg', view.program)}/secret", {"secret": "00"}),
    ):
        answer = http.post(path, json=body)
        assert (answer.status_code, answer.json()["refusal"]) == (422, "validation-failed")
    deep: object = {"signed": {"event": "x", "by": ["payer"]}}
    for _ in range(40):
        deep = {"not": deep}
    answer = http.post("/v1/program-statements", json={"statement": deep})
    assert answer.status_code in (400, 422)

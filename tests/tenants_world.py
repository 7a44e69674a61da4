"""Two institutions in one wallet service over one database, under the service's own role; a fake ledger for both.

with two_tenants(fresh_database, tmp_path) as world:
    owned = world.furnish(A)                    # a customer with one of everything
    world.client(B, "channel").get_wallet(owned.wallet)       # refused
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psycopg
from fastapi.testclient import TestClient
from psycopg import sql

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto import jws
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from tests.card_world import attest, issuers_file
from tests.fakes import FakeLedger
from tests.programs_world import HoldingLedger
from tests.roles import as_service, dsn
from wallet.api.tenants import Tenants
from wallet.client import WalletClient
from wallet.client.controls import payment_control
from wallet.client.programs import program_request
from wallet.contract import SettlementOrder
from wallet.contract.controls import sign_control
from wallet.contract.families import AliasKind, ChildCapsBody
from wallet.contract.privacy import ErasureReason, UnmaskField, UnmaskView
from wallet.contract.programs import Party, ProgramTerms, VoucherRequest
from wallet.contract.requests import REQUEST_TYP
from wallet.domain.calendars import Frequency, Recurrence
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.sealed_keys import PushedKey
from wallet.sealed_keys import make as make_pushed
from wallet.tenant_settings import TenantsSettings

ORIGIN = "http://wallet.test"
A, B = "BKCHCNBJ", "ICBKCNBJ"
OFFICERS = ("ada", "ben", "cai")
ROLES = {
    "channel": "channel",
    "bridge": "bridge",
    "operator": "operator",
    "auditor": "auditor",
    **dict.fromkeys(OFFICERS, "compliance"),
}


@dataclass(frozen=True)
class Owned:
    """One of everything that an institution has; `shadow()` is the same of nobody's."""

    name: str
    customer: UUID
    company: UUID
    erased: UUID
    wallet: UUID
    account: int
    key: PrivateKey
    payee: UUID
    payee_account: int
    company_wallet: UUID
    company_account: int
    company_key: PrivateKey
    exchange: UUID
    payment: UUID
    request: UUID
    file: UUID
    schedule: UUID
    endpoint: UUID
    child: UUID
    pushed: PushedKey
    card_wallet: UUID
    thumbprint: str
    alias: UUID
    change: UUID
    closure: UUID
    program: UUID
    terms: ProgramTerms
    voucher: UUID
    voucher_key: PrivateKey
    spend: UUID
    purchase: UUID
    purse: UUID
    escrow: int
    funding: UUID
    unmask: UnmaskView
    disclosed: UUID
    settlement: str
    vault: int
    document: str
    """Its institution's signed payment request."""

    def shadow(self) -> Owned:
        """As many ids, accounts and keys that nobody has."""
        values: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, UUID):
                values[name] = ids.new_uuid7()
            elif isinstance(value, PrivateKey):
                values[name] = PrivateKey.generate()
        program = values["program"]
        return replace(
            self,
            **values,
            name="Nobody",
            account=self.account + 10**9,
            payee_account=self.payee_account + 10**9,
            company_account=self.company_account + 10**9,
            vault=self.vault + 10**9,
            escrow=self.escrow + 10**9,
            pushed=make_pushed(values["child"], self.payee_account + 10**9),
            thumbprint=PrivateKey.generate().public.thumbprint,
            terms=self.terms.model_copy(update={"program": program}),
            unmask=self.unmask.model_copy(update={"request": ids.new_uuid7()}),
            settlement=str(ids.new_uuid7()),
            document=jws.sign(_payload(self.document), PrivateKey.generate(), typ=REQUEST_TYP),
        )

    def secrets(self) -> list[str]:
        """What nobody else may see: names, and every id but those that the ledger shows too."""
        found = [self.name, self.thumbprint, str(self.unmask.request), self.settlement]
        return found + [str(value) for value in vars(self).values() if isinstance(value, UUID)]


@dataclass
class TenantsWorld:
    http: TestClient
    ledger: HoldingLedger
    keys: dict[tuple[str, str], PrivateKey]
    owner_url: str
    directory: Path
    answers: list[httpx.Response] = field(default_factory=list)
    """What was answered, newest last."""

    def client(self, tenant: str, role: str | None, *, key: PrivateKey | None = None) -> WalletClient:
        signing = key or (self.keys[tenant, role] if role else None)
        signer = RequestSigner(signing) if signing else None
        client = WalletClient(f"{ORIGIN}/t/{tenant}", signer=signer, transport=_Recorder(self))
        client._http._retries_max = 0  # "not found" is asked again otherwise, and each such pause costs a second
        return client

    def digest(self, tenant: str) -> dict[str, str]:
        """Table -> digest of a tenant's rows, as the owner sees them."""
        one = "SELECT {name}, md5(string_agg(t::text, chr(10) ORDER BY t::text)) FROM {table} t WHERE tenant = {tenant}"
        with psycopg.connect(dsn(self.owner_url), autocommit=True) as owner:
            tables = owner.execute(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
                " AND relname <> 'alembic_version'"
            ).fetchall()
            parts = [
                sql.SQL(one).format(name=sql.Literal(name), table=sql.Identifier(name), tenant=sql.Literal(tenant))
                for (name,) in tables
            ]
            return {str(name): str(value) for name, value in owner.execute(sql.SQL(" UNION ALL ").join(parts))}

    def furnish(self, tenant: str) -> Owned:
        """A customer with one of everything that the service keeps."""
        name = f"Wilhelmina of {tenant}"
        app, desk = self.client(tenant, "channel"), self.client(tenant, "operator")
        home = app.institution().ledgers[0]
        now = system_clock()

        def opened(wallet_class: WalletClass, funds: int, customer: UUID) -> tuple[UUID, int, PrivateKey]:
            key = PrivateKey.generate()
            view = app.open_wallet(customer=customer, wallet_class=wallet_class, device_key=key.public)
            assert view.account is not None
            self.ledger.fund(view.account, funds)
            return view.wallet, view.account, key

        customer = app.create_customer(evidence=list(Evidence), name=name, phone="+8613912345678").customer
        company = app.create_customer(evidence=list(Evidence), name=f"{name}, Works").customer
        erased = app.create_customer(evidence=[Evidence.PHONE], name="Gone").customer
        wallet, account, key = opened(WalletClass.I, 1_000_000, customer)
        payee, payee_account, payee_key = opened(WalletClass.II, 0, customer)
        app.register_corporate(company, legal_name=f"{name}, Works", lei="529900T8BM49AURSDO55")
        company_wallet, company_account, company_key = opened(WalletClass.I, 100_000, company)
        checker = PrivateKey.generate()
        control = payment_control(
            company_wallet,
            [("maker", company_key.public), ("checker", checker.public)],
            alone_max_minor=10,
            alone_day_max_minor=100,
            version=1,
            valid_until=now + timedelta(hours=1),
        )
        app.set_payment_control(company_wallet, [sign_control(control, key) for key in (company_key, checker)])
        app.simulate_deposit(customer=customer, amount_minor=9_000)
        self.ledger.fund(home.vault, 100_000)
        exchange = app.exchange_in(wallet=wallet, amount_minor=5_000, currency="CNY").exchange
        money = {"key": key, "ledger": home.ledger, "debit": account, "currency": "CNY"}
        payment = app.pay(credit=payee_account, amount_minor=500, **money).payment
        back = {"key": payee_key, "ledger": home.ledger, "debit": payee_account, "currency": "CNY"}
        app.refund(credit=account, amount_minor=5, original=payment, **back)
        request = app.request_payment(wallet=payee, payee_name=name, currency="CNY", amount_minor=10).request
        app.show_request(wallet, request=request, institution=tenant)
        alias = app.create_alias(payee, kind=AliasKind.EMAIL, alias="li@example.test").alias_id
        code = next(item.code for item in app.simulated_codes() if item.to == "li@example.test")
        app.verify_alias(alias, code)
        app.look_up_alias(payer=wallet, kind=AliasKind.EMAIL, alias="li@example.test", currency="CNY")
        endpoint = app.create_webhook_endpoint("http://127.0.0.1:9/hook").endpoint
        recurrence = Recurrence(frequency=Frequency.ONCE, first_on=now.date() + timedelta(days=3))
        schedule = ids.new_uuid7()
        dates = app.schedule_dates(recurrence, count=1)
        tokens = app.sign_schedule(dates, schedule=schedule, amount_minor=1, credit=payee_account, **money)
        app.create_schedule(schedule=schedule, wallet=wallet, recurrence=recurrence, instructions=tokens)
        file = ids.new_uuid7()
        app.create_bulk_file(file=file, wallet=wallet, content_sha256=b"f" * 32, lines=1, total_minor=1)
        child = ids.new_uuid7()
        pushed = make_pushed(child, payee_account)
        app.push_child(
            wallet,
            customer=customer,
            wallet_class=WalletClass.III,
            merchant=payee_account,
            key=pushed,
            child=child,
            caps=ChildCapsBody(total_max_minor=500),
        )
        card = PrivateKey.generate("ecdsa-p256-sha256")
        card_wallet, card_account, card_key = opened(WalletClass.II, 0, customer)
        device = {"account": card_account, "ledger": home.ledger, "device_key": card.public, "key": card_key}
        app.change_device("add-holder-key", wallet=card_wallet, **device)
        app.register_card(
            card_wallet,
            key=card.public,
            attestation=attest(card.public, single=100, total=300, now=now),
            pin_free_single_max_minor=100,
            pin_free_total_max_minor=300,
        )
        change = desk.suspend_wallet(wallet=payee, reason="institution").change
        desk.resume_wallet(wallet=payee, reason="institution")
        closing, _, _ = opened(WalletClass.II, 10, customer)
        closure = app.close_wallet(wallet=closing).change
        desk.register_merchant(company_account, name="Canteen", category="5812", place="330106")
        voucher = VoucherRequest(
            voucher=ids.new_uuid7(), recipient=payee_key.public.to_jwk(), account=payee_account, value_minor=5_000
        )
        deadline = (now + timedelta(days=20)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        view = app.create_program(
            program_request(
                template="voucher-multi",
                version=1,
                parameters={"deadline": deadline, "categories": ["5811-5814"], "places": ["3301"], "step": "500"},
                parties=[Party(role="payer", key=key.public.to_jwk(), account=ids.AccountNumber(account))],
                vouchers=[voucher],
            )
        )
        app.fund_program(view.terms, key=key)
        spent = app.spend_voucher(
            voucher.voucher, merchant=company_account, amount_minor=1_300, currency="CNY", key=payee_key
        )
        purse = app.create_purse(wallet=wallet, device_key=PrivateKey.generate("ecdsa-p256-sha256").public).purse
        escrow = app.purse_escrow()
        funding = app.fund_purse(
            escrow=escrow.account, purse=purse, amount_minor=50, valid_until=now + timedelta(minutes=9), **money
        ).funding
        ada = self.client(tenant, "ada")
        ada.erase_customer(erased, reason=ErasureReason.REQUESTED)
        order = {"institution": tenant, "case_number": "2026-0815", "legal_basis": "Order 7", "wallet": wallet}
        disclosed, unmask = (
            ada.order_unmask(fields=[UnmaskField.NAME], key=self.keys[tenant, "ada"], **order) for _ in range(2)
        )
        for officer in ("ben", "cai"):
            self.client(tenant, officer).approve_unmask(disclosed, institution=tenant, key=self.keys[tenant, officer])
        ada.disclose(disclosed.request)
        settlement = str(ids.new_uuid7())
        desk.register_settlements(
            [
                SettlementOrder(
                    instruction_id=settlement,
                    ledger=home.ledger,
                    pay_currency="CNY",
                    pay_amount_minor=10,
                    credit_account=ids.AccountNumber(payee_account),
                    receive_currency="AED",
                    receive_amount_minor_min=5,
                    valid_until=now + timedelta(hours=1),
                )
            ]
        )
        return Owned(
            name=name,
            customer=customer,
            company=company,
            erased=erased,
            wallet=wallet,
            account=account,
            key=key,
            payee=payee,
            payee_account=payee_account,
            company_wallet=company_wallet,
            company_account=company_account,
            company_key=company_key,
            exchange=exchange,
            payment=payment,
            request=request,
            file=file,
            schedule=schedule,
            endpoint=endpoint,
            child=child,
            pushed=pushed,
            card_wallet=card_wallet,
            thumbprint=card.public.thumbprint,
            alias=alias,
            change=change,
            closure=closure,
            program=view.program,
            terms=view.terms,
            voucher=voucher.voucher,
            voucher_key=payee_key,
            spend=spent.spend,
            purchase=spent.payment,
            purse=purse,
            escrow=escrow.account,
            funding=funding,
            unmask=unmask,
            disclosed=disclosed.request,
            settlement=settlement,
            vault=home.vault,
            document=app.request_offer(request).document,
        )


def _payload(token: str) -> bytes:
    part = token.split(".")[1]
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


class _Recorder(httpx.BaseTransport):
    def __init__(self, world: TenantsWorld) -> None:
        self._world = world

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._world.http._transport.handle_request(request)
        response.read()
        response.request = request
        self._world.answers.append(response)
        return response


def unset_default(owner_url: str) -> None:
    """The test session's databases have a tenant by default, for tests of one institution. Not here."""
    with psycopg.connect(dsn(owner_url), autocommit=True) as owner:
        name = sql.Identifier(owner.info.dbname)
        owner.execute(sql.SQL("ALTER DATABASE {} RESET jiaozi.tenant").format(name))


def tenants_settings(
    fresh_database: Callable[[str], str], directory: Path
) -> tuple[TenantsSettings, dict[tuple[str, str], PrivateKey], str]:
    """(settings, clients' keys by tenant and role, the owner's URL)."""
    keys = {(tenant, role): PrivateKey.generate() for tenant in (A, B) for role in (*ROLES, "institution")}
    listed = []
    issuers = issuers_file(directory)
    (directory / "ledgers.json").write_text(
        json.dumps([{"ledger": "cny", "url": "http://ledger.test", "currency": "CNY"}])
    )
    for tenant in (A, B):
        home = directory / tenant
        home.mkdir()
        keys[tenant, "institution"].save(home / "bank.pem")
        clients = [{"name": n, "key": keys[tenant, n].public.to_jwk(), "role": role} for n, role in ROLES.items()]
        (home / "clients.json").write_text(json.dumps(clients))
        listed.append(
            {
                "participant": tenant,
                "signing_key_path": f"{tenant}/bank.pem",
                "clients_path": f"{tenant}/clients.json",
                "ledgers_path": "ledgers.json",
                "card_issuers_path": issuers.name,
            }
        )
    (directory / "tenants.json").write_text(json.dumps(listed))
    owner_url = fresh_database("wallet")
    unset_default(owner_url)
    settings = TenantsSettings(
        public_url=ORIGIN,
        database_url=as_service(owner_url, "wallet"),
        data_dir=directory / "data",
        tenants_path=directory / "tenants.json",
        sandbox=True,
        recovery_seconds=3600,
        worker_seconds=3600,
    )
    return settings, keys, owner_url


@contextmanager
def two_tenants(fresh_database: Callable[[str], str], directory: Path) -> Iterator[TenantsWorld]:
    settings, keys, owner_url = tenants_settings(fresh_database, directory)
    classes = ledger_rule_classes(load_rule_pack("ecny-2021-06"))
    ledger = HoldingLedger.of(FakeLedger(clock=system_clock, rule_classes=classes))
    app = Tenants(settings, connect=lambda url, signer: ledger)
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as http:
        yield TenantsWorld(http, ledger, keys, owner_url, directory)

"""Goal: of two institutions in one wallet service neither sees, uses or changes anything of the other's.

Method: the real app of both over one PostgreSQL database, under the service's own role. One institution has one of
everything (tests/tenants_world.py); the other asks every operation of the OpenAPI document for it, and then for the
same of nobody's: the answers must not differ. A digest of all the first one's rows stands guard, and every question is
asked by the owner as well, whose answer must be another one, so that no row of the table asks for nothing. An operation
without a row fails the test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from fastapi.testclient import TestClient

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from kernel.settings import InvalidSettings, MisspeltSetting
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from tests.card_world import ISSUER, ROOT, attest
from tests.commands import run_here
from tests.sizes import some
from tests.tenants_world import ORIGIN, A, B, Owned, TenantsWorld, tenants_settings, two_tenants
from wallet.api.app import NotIsolated, create
from wallet.api.tenants import Tenants
from wallet.client import WalletClient
from wallet.client.controls import payment_control
from wallet.client.programs import program_request
from wallet.contract import LegAuthorisation, SettlementLeg, SettlementOrder
from wallet.contract.bulk import SignedLineRequest
from wallet.contract.controls import sign_control
from wallet.contract.families import AliasKind, ChildCapsBody
from wallet.contract.lifecycle import CapsView
from wallet.contract.privacy import ErasureReason, UnmaskField
from wallet.contract.programs import Party
from wallet.contract.requests import CodeRedemption
from wallet.domain.calendars import Frequency, Recurrence
from wallet.domain.rules import Evidence, WalletClass
from wallet.hardware.issuer import CardIssuer
from wallet.tenant_settings import TenantsSettings, check_keys, load_institution


@dataclass(frozen=True)
class Asked:
    """By whom a row is asked: an institution's client `c`, for what `i` names, with `o` the asker's own."""

    c: WalletClient
    i: Owned
    o: Owned
    tenant: str
    key: PrivateKey


Row = tuple[str, Callable[[Asked], object]]
_R = Recurrence(frequency=Frequency.ONCE, first_on=system_clock().date() + timedelta(days=3))
_DEADLINE = (system_clock() + timedelta(days=20)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
_DAY = system_clock().date() - timedelta(days=2)


def _device() -> Any:
    return PrivateKey.generate().public


def _soon() -> Any:
    return system_clock() + timedelta(minutes=5)


def _token(a: Asked, kind: TransferKind, credit: int, *, id: UUID | None = None, reference: UUID | None = None) -> str:
    """What the holder in question signs; so an answer that tells him apart would be about the account alone."""
    terms = TransferTerms(
        id=id or ids.new_uuid7(),
        kind=kind,
        debit=AccountNumber(a.i.account),
        credit=AccountNumber(credit),
        amount_minor=5,
        currency="CNY",
        reference=reference,
    )
    return sign_instruction(terms, ledger="cny", valid_until=_soon(), key=a.i.key)


def _control(a: Asked) -> list[str]:
    other = PrivateKey.generate()
    document = payment_control(
        a.i.company_wallet,
        [("one", a.i.company_key.public), ("two", other.public)],
        alone_max_minor=1,
        alone_day_max_minor=1,
        version=2,
        valid_until=_soon(),
    )
    return [sign_control(document, key) for key in (a.i.company_key, other)]


def _program(a: Asked, account: int | None = None, key: PrivateKey | None = None) -> Any:
    return program_request(
        template="prepaid-drip",
        version=1,
        parameters={"deadline": _DEADLINE, "quiet_days": 14, "subject": "milk"},
        parties=[
            Party(role="payer", key=(key or a.i.key).public.to_jwk(), account=AccountNumber(account or a.i.account)),
            Party(role="payee", key=a.o.voucher_key.public.to_jwk(), account=AccountNumber(a.o.payee_account)),
            Party(role="courier", key=_device().to_jwk()),
        ],
        amounts_minor=[10, 10],
    )


def _leg(a: Asked) -> LegAuthorisation:
    terms = TransferTerms(
        id=ids.new_uuid7(),
        kind=TransferKind.HOLD,
        debit=AccountNumber(a.i.vault),
        credit=AccountNumber(a.i.payee_account),
        amount_minor=10,
        currency="CNY",
        commit_hash=bytes(32),
        abort_hash=b"a" * 32,
    )
    other = terms.model_copy(update={"id": ids.new_uuid7(), "currency": "AED", "amount_minor": 5})
    return LegAuthorisation(
        instruction_id=a.i.settlement,
        ledger="cny",
        terms=terms,
        other_legs=[SettlementLeg(ledger="aed", terms=other)],
    )


def _code(a: Asked) -> str:
    home = a.c.institution()
    return a.c.payer_code(home, key=a.i.key, account=a.i.account, cap_minor=10)


FOR_ANOTHERS: dict[str, Row] = {
    "get_customer": ("channel", lambda a: a.c.get_customer(a.i.customer)),
    "open_wallet": (
        "channel",
        lambda a: a.c.open_wallet(customer=a.i.customer, wallet_class=WalletClass.IV, device_key=_device()),
    ),
    "list_wallets": ("channel", lambda a: list(a.c.wallets(customer=a.i.customer))),
    "get_wallet": ("channel", lambda a: a.c.get_wallet(a.i.wallet)),
    "get_wallet_history": ("channel", lambda a: list(a.c.history(a.i.wallet))),
    "list_wallet_payments": ("channel", lambda a: list(a.c.payments(a.i.wallet))),
    "create_payment": ("", lambda a: a.c.submit_payment(_token(a, TransferKind.PAYMENT, a.o.payee_account))),
    "create_payment_batch": ("", lambda a: a.c.submit_payments([_token(a, TransferKind.PAYMENT, a.o.payee_account)])),
    "get_payment": ("channel", lambda a: a.c.get_payment(a.i.payment)),
    "create_exchange_out": ("", lambda a: a.c.exchange_out(_token(a, TransferKind.EXCHANGE_OUT, a.o.vault))),
    "create_exchange_in": (
        "channel",
        lambda a: a.c.exchange_in(wallet=a.i.wallet, amount_minor=1, currency="CNY"),
    ),
    "get_exchange_in": ("channel", lambda a: a.c.get_exchange_in(a.i.exchange)),
    "authorise_legs": ("bridge", lambda a: a.c.authorise_legs([_leg(a)])),
    "check_bulk_file": (
        "channel",
        lambda a: a.c.check_payroll(a.i.wallet, b"line_id,account,amount,currency,reference\n"),
    ),
    "create_bulk_file": (
        "channel",
        lambda a: a.c.create_bulk_file(
            file=ids.new_uuid7(), wallet=a.i.wallet, content_sha256=b"g" * 32, lines=1, total_minor=1
        ),
    ),
    "add_bulk_lines": (
        "channel",
        lambda a: a.c.add_bulk_lines(
            a.i.file,
            [SignedLineRequest(number=2, line_id="1", instruction=_token(a, TransferKind.PAYMENT, a.o.payee_account))],
        ),
    ),
    "list_bulk_lines": ("channel", lambda a: list(a.c.bulk_lines(a.i.file))),
    "start_bulk_file": ("channel", lambda a: a.c.start_bulk_file(a.i.file)),
    "cancel_bulk_file": ("channel", lambda a: a.c.cancel_bulk_file(a.i.file)),
    "get_bulk_file": ("channel", lambda a: a.c.get_bulk_file(a.i.file)),
    "get_bulk_result": ("channel", lambda a: a.c.bulk_result_csv(a.i.file)),
    "list_bulk_files": ("channel", lambda a: list(a.c.bulk_files(a.i.wallet))),
    "create_schedule": (
        "channel",
        lambda a: a.c.create_schedule(
            schedule=ids.new_uuid7(),
            wallet=a.i.wallet,
            recurrence=_R,
            instructions=[_token(a, TransferKind.PAYMENT, a.o.payee_account)],
        ),
    ),
    "prolong_schedule": (
        "channel",
        lambda a: a.c.prolong_schedule(
            a.i.schedule, first=1, instructions=[_token(a, TransferKind.PAYMENT, a.o.payee_account)]
        ),
    ),
    "list_scheduled_payments": ("channel", lambda a: list(a.c.scheduled_payments(a.i.schedule))),
    "cancel_schedule": ("channel", lambda a: a.c.cancel_schedule(a.i.schedule)),
    "cancel_scheduled_payment": ("channel", lambda a: a.c.cancel_scheduled_payment(a.i.schedule, 0)),
    "get_schedule": ("channel", lambda a: a.c.get_schedule(a.i.schedule)),
    "list_schedules": ("channel", lambda a: list(a.c.schedules(a.i.wallet))),
    "enable_webhook_endpoint": ("channel", lambda a: a.c.enable_webhook_endpoint(a.i.endpoint)),
    "disable_webhook_endpoint": ("channel", lambda a: a.c.disable_webhook_endpoint(a.i.endpoint)),
    "list_webhook_deliveries": ("channel", lambda a: list(a.c.webhook_deliveries(a.i.endpoint))),
    "replay_webhooks": (
        "channel",
        lambda a: a.c.replay_webhooks(
            a.i.endpoint, since=system_clock() - timedelta(hours=1), until=system_clock() - timedelta(minutes=30)
        ),
    ),
    "open_child_wallet": (
        "channel",
        lambda a: a.c.open_child(a.i.wallet, customer=a.o.customer, wallet_class=WalletClass.III, device_key=_device()),
    ),
    "list_child_wallets": ("channel", lambda a: a.c.children(a.i.wallet)),
    "get_child_wallet": ("channel", lambda a: a.c.get_child(a.i.wallet, a.i.child)),
    "get_child_wallet_history": ("channel", lambda a: a.c.child_history(a.i.wallet, a.i.child)),
    "set_child_caps": (
        "channel",
        lambda a: a.c.set_child_caps(a.i.wallet, a.i.child, ChildCapsBody(total_max_minor=9), version=1),
    ),
    "revoke_child_wallet": ("channel", lambda a: a.c.revoke_child(a.i.wallet, a.i.child)),
    "close_child_wallet": ("channel", lambda a: a.c.close_child(a.i.wallet, a.i.child)),
    "pool_children": (
        "channel",
        lambda a: a.c.submit_poolings(a.i.wallet, [_token(a, TransferKind.PAYMENT, a.o.payee_account)]),
    ),
    "create_charge": (
        "",
        lambda a: a.c.charge(a.i.child, secret=a.i.pushed.secret, amount_minor=1, currency="CNY"),
    ),
    "register_corporate": (
        "channel",
        lambda a: a.c.register_corporate(a.i.customer, legal_name="X", lei="529900T8BM49AURSDO55"),
    ),
    "get_corporate": ("channel", lambda a: a.c.get_corporate(a.i.company)),
    "register_card": (
        "channel",
        lambda a: _register_card(a),
    ),
    "list_cards": ("channel", lambda a: a.c.cards(a.i.card_wallet)),
    "report_card": ("channel", lambda a: a.c.report_card(a.i.card_wallet, a.i.thumbprint)),
    "set_payment_control": ("", lambda a: a.c.set_payment_control(a.i.company_wallet, _control(a))),
    "get_payment_control": ("channel", lambda a: a.c.payment_control(a.i.company_wallet)),
    "approve_payments": (
        "",
        lambda a: a.c.approve_payments(
            a.i.company_wallet,
            {a.i.payment: _token(a, TransferKind.PAYMENT, 1)},
            key=a.i.company_key,
            valid_until=_soon(),
        ),
    ),
    "withdraw_approvals": (
        "",
        lambda a: a.c.withdraw_approvals(a.i.company_wallet, [a.i.payment], key=a.i.company_key),
    ),
    "create_alias": ("channel", lambda a: a.c.create_alias(a.i.wallet, kind=AliasKind.PHONE, alias="+8613811112222")),
    "verify_alias": ("channel", lambda a: a.c.verify_alias(a.i.alias, "000000")),
    "make_alias_default": ("channel", lambda a: a.c.make_alias_default(a.i.alias)),
    "remove_alias": ("channel", lambda a: a.c.remove_alias(a.i.alias)),
    "list_aliases": ("channel", lambda a: a.c.aliases(a.i.payee)),
    "look_up_alias": (
        "channel",
        lambda a: a.c.look_up_alias(payer=a.i.wallet, kind=AliasKind.EMAIL, alias="li@example.test", currency="CNY"),
    ),
    "set_wallet_caps": ("channel", lambda a: a.c.set_caps(wallet=a.i.wallet, caps=CapsView(single_max_minor=9))),
    "change_wallet_class": (
        "channel",
        lambda a: a.c.change_class(wallet=a.i.wallet, wallet_class=WalletClass.II),
    ),
    "change_customer_evidence": (
        "channel",
        lambda a: a.c.change_evidence(customer=a.i.customer, withdrawn=[Evidence.BANK_ACCOUNT]),
    ),
    "list_wallet_devices": ("channel", lambda a: a.c.devices(a.i.wallet)),
    "change_wallet_device": (
        "channel",
        lambda a: a.c.change_device(
            "add-holder-key",
            wallet=a.i.wallet,
            account=a.i.account,
            ledger="cny",
            device_key=_device(),
            key=a.i.key,
        ),
    ),
    "recover_wallet_key": (
        "channel",
        lambda a: a.c.recover_key(wallet=a.i.wallet, device_key=_device(), identified_by=list(Evidence)),
    ),
    "object_to_announced_key": (
        "",
        lambda a: a.c.object_to_key(wallet=a.i.wallet, account=a.i.account, ledger="cny", key=a.i.key),
    ),
    "suspend_wallet": ("operator", lambda a: a.c.suspend_wallet(wallet=a.i.payee, reason="institution")),
    "resume_wallet": ("operator", lambda a: a.c.resume_wallet(wallet=a.i.payee, reason="institution")),
    "close_wallet": ("channel", lambda a: a.c.close_wallet(wallet=a.i.wallet)),
    "cancel_wallet_closure": ("channel", lambda a: a.c.cancel_closure(a.i.closure)),
    "get_wallet_change": ("channel", lambda a: a.c.get_wallet_change(a.i.change)),
    "list_wallet_changes": ("channel", lambda a: list(a.c.wallet_changes(a.i.payee))),
    "list_wallet_notices": ("channel", lambda a: list(a.c.notices(a.i.payee))),
    "create_program": ("channel", lambda a: a.c.create_program(_program(a))),
    "list_programs": ("channel", lambda a: list(a.c.programs(a.i.wallet))),
    "get_program": ("channel", lambda a: a.c.get_program(a.i.program)),
    "fund_program": ("", lambda a: a.c.fund_program(a.i.terms, key=a.i.key)),
    "create_program_statement": ("", lambda a: a.c.say(a.i.terms, role="payer", event="stop", key=a.i.key)),
    "show_program_secret": ("", lambda a: a.c.show_program_secret(a.i.program, b"s" * 32)),
    "get_voucher": ("channel", lambda a: a.c.get_voucher(a.i.voucher)),
    "spend_voucher": (
        "",
        lambda a: a.c.spend_voucher(
            a.i.voucher, merchant=a.o.company_account, amount_minor=10, currency="CNY", key=a.i.voucher_key
        ),
    ),
    "get_voucher_spend": ("channel", lambda a: a.c.get_voucher_spend(a.i.spend)),
    "get_purchase_origin": ("", lambda a: a.c.purchase_origin(a.i.purchase)),
    "register_merchant": (
        "operator",
        lambda a: a.c.register_merchant(a.i.payee_account, name="Tea", category="5812", place="330106"),
    ),
    "get_merchant": ("channel", lambda a: a.c.get_merchant(a.i.company_account)),
    "create_payment_request": (
        "channel",
        lambda a: a.c.request_payment(wallet=a.i.payee, payee_name="X", currency="CNY", amount_minor=1),
    ),
    "get_payment_request": ("channel", lambda a: a.c.get_payment_request(a.i.request)),
    "list_payment_requests": ("channel", lambda a: list(a.c.payment_requests(a.i.payee))),
    "list_request_payments": ("channel", lambda a: list(a.c.request_payments(a.i.request))),
    "cancel_payment_request": ("channel", lambda a: a.c.cancel_payment_request(a.i.request)),
    "redeem_payer_code": ("channel", lambda a: a.c.redeem_payer_code(a.i.request, _code(replace(a, i=a.o)))),
    "get_request_qr": ("channel", lambda a: a.c.request_qr(a.i.request, name="X", city="HANGZHOU")),
    "get_wallet_qr": ("channel", lambda a: a.c.wallet_qr(a.i.wallet, name="X", city="HANGZHOU")),
    "show_request": (
        "channel",
        lambda a: a.c.show_request(a.i.wallet, request=a.o.request, institution=a.tenant),
    ),
    "list_incoming_requests": ("channel", lambda a: list(a.c.incoming_requests(a.i.wallet))),
    "get_incoming_request": ("channel", lambda a: a.c.get_incoming_request(a.i.wallet, a.i.request)),
    "approve_request": (
        "",
        lambda a: a.c.submit_approval(
            a.i.wallet, a.i.request, _token(a, TransferKind.PAYMENT, a.o.payee_account, reference=a.i.request)
        ),
    ),
    "decline_request": ("channel", lambda a: a.c.decline_request(a.i.wallet, a.i.request)),
    "get_request_offer": ("", lambda a: a.c.request_offer(a.i.request)),
    "deliver_request": ("", lambda a: a.c.deliver_request(a.i.document)),
    "take_request_decline": ("", lambda a: a.c.tell_decline(a.i.request, a.i.document)),
    "accept_payer_code": (
        "",
        lambda a: a.c.redeem_code(CodeRedemption(code=_code(a), document=a.i.document)),
    ),
    "create_refund": (
        "",
        lambda a: a.c.submit_refund(_token(a, TransferKind.REFUND, a.o.payee_account, reference=a.i.payment)),
    ),
    "list_refunds": ("channel", lambda a: a.c.refunds(a.i.payment)),
    "get_wallet_receipt": ("channel", lambda a: a.c.receipt(a.i.wallet, a.i.payment)),
    "get_wallet_balance_proof": ("channel", lambda a: a.c.balance_proof(a.i.wallet)),
    "create_purse": (
        "channel",
        lambda a: a.c.create_purse(
            wallet=a.i.company_wallet, device_key=PrivateKey.generate("ecdsa-p256-sha256").public
        ),
    ),
    "get_purse": ("channel", lambda a: a.c.get_purse(a.i.purse)),
    "report_purse_lost": ("channel", lambda a: a.c.report_purse_lost(a.i.purse)),
    "get_double_spend_proof": ("channel", lambda a: a.c.double_spend_proof(a.i.purse)),
    "create_purse_funding": (
        "",
        lambda a: a.c.fund_purse(
            key=a.i.key,
            ledger="cny",
            debit=a.i.account,
            escrow=a.o.escrow,
            purse=a.i.purse,
            amount_minor=1,
            currency="CNY",
            valid_until=_soon(),
        ),
    ),
    "get_purse_funding": ("channel", lambda a: a.c.get_purse_funding(a.i.funding)),
    "erase_customer": ("ada", lambda a: a.c.erase_customer(a.i.company, reason=ErasureReason.REQUESTED)),
    "get_erasure": ("ada", lambda a: a.c.get_erasure(a.i.erased)),
    "order_unmask": (
        "ada",
        lambda a: a.c.order_unmask(
            institution=a.tenant,
            case_number="1",
            legal_basis="2",
            wallet=a.i.wallet,
            fields=[UnmaskField.NAME],
            key=a.key,
        ),
    ),
    "get_unmask_request": ("ada", lambda a: a.c.get_unmask_request(a.i.unmask.request)),
    "approve_unmask": ("ben", lambda a: a.c.approve_unmask(a.i.unmask, institution=a.tenant, key=a.key)),
    "disclose_unmasked": ("ada", lambda a: a.c.disclose(a.i.unmask.request)),
    "list_unmask_evidence": ("auditor", lambda a: list(a.c.unmask_evidence(a.i.wallet))),
    "get_interest": ("channel", lambda a: a.c.get_interest(a.i.wallet)),
    "list_interest_settlements": ("channel", lambda a: list(a.c.interest_settlements(a.i.wallet))),
    "get_simulated_deposit": ("channel", lambda a: a.c.simulated_deposit(a.i.customer)),
    "simulate_deposit": ("channel", lambda a: a.c.simulate_deposit(customer=a.i.customer, amount_minor=1)),
}
"""Operation -> who asks it ("" = nobody signs), and how it is asked for what is another's."""

ABOUT_THE_ASKER: dict[str, Row] = {
    "health": ("", lambda a: a.c._http.get("/healthz")),
    "create_customer": ("channel", lambda a: a.c.create_customer(evidence=[], name="Own", phone="+8613912345678")),
    "get_institution": ("", lambda a: a.c.institution()),
    "list_schedule_dates": ("channel", lambda a: a.c.schedule_dates(_R, count=1)),
    "register_settlement_instructions": ("operator", lambda a: a.c.register_settlements([_order(a, a.o.settlement)])),
    "list_events": ("channel", lambda a: a.c.events()),
    "list_webhook_keys": ("", lambda a: a.c.webhook_keys()),
    "list_webhook_endpoints": ("channel", lambda a: a.c.webhook_endpoints()),
    "create_webhook_endpoint": ("channel", lambda a: a.c.create_webhook_endpoint("http://127.0.0.1:9/mine")),
    "take_card_revocations": (
        "",
        lambda a: a.c.take_card_revocations(CardIssuer(ISSUER, ROOT, now=system_clock()).revoke(1, ["CW-0"])),
    ),
    "list_program_templates": ("", lambda a: a.c.program_templates()),
    "get_program_template": ("", lambda a: a.c.program_template("prepaid-drip", 1)),
    "preview_program": ("channel", lambda a: a.c.preview_program(_program(a))),
    "take_merchant_statement": ("operator", lambda a: a.c.take_merchant_statement(a.i.document)),
    "read_code": ("channel", lambda a: a.c.read_code(a.c.wallet_qr(a.o.wallet, name="X", city="Y").decode())),
    "sync_purses": ("", lambda a: a.c.sync_purses([b"no message"])),
    "get_purse_revocations": ("", lambda a: a.c.purse_revocations()),
    "get_purse_escrow": ("channel", lambda a: a.c.purse_escrow()),
    "list_unmask_requests": ("ada", lambda a: list(a.c.unmask_requests())),
    "get_privacy_log_key": ("", lambda a: a.c.privacy_log_key()),
    "get_privacy_log_checkpoint": ("", lambda a: a.c.privacy_log_checkpoint()),
    "list_privacy_log_entries": ("", lambda a: a.c.privacy_log_entries()),
    "get_privacy_log_proof": ("", lambda a: a.c.privacy_log_proof(index=0)),
    "list_interest_previews": ("operator", lambda a: list(a.c.interest_previews())),
    "run_interest": ("operator", lambda a: a.c.run_interest()),
    "list_interest_totals": ("operator", lambda a: a.c.interest_totals()),
    "list_reserve_balances": ("operator", lambda a: a.c.reserve_report(_DAY)),
    "check_exchanges": ("operator", lambda a: a.c.check_exchanges(_DAY)),
    "list_simulated_codes": ("channel", lambda a: a.c.simulated_codes()),
}
"""Operations that name nothing of anybody's: what they answer or do is about the asker alone."""


def _register_card(a: Asked) -> object:
    key = PrivateKey.generate("ecdsa-p256-sha256").public
    return a.c.register_card(
        a.i.card_wallet,
        key=key,
        attestation=attest(key, single=100, total=300, now=system_clock()),
        pin_free_single_max_minor=100,
        pin_free_total_max_minor=300,
    )


def _order(a: Asked, id: str) -> SettlementOrder:
    return SettlementOrder(
        instruction_id=id,
        ledger="cny",
        pay_currency="CNY",
        pay_amount_minor=77,
        credit_account=AccountNumber(a.o.payee_account),
        receive_currency="AED",
        receive_amount_minor_min=5,
        valid_until=_soon(),
    )


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[TenantsWorld]:
    with two_tenants(fresh_databases, tmp_path_factory.mktemp("tenants")) as made:
        yield made


@pytest.fixture(scope="module")
def both(world: TenantsWorld) -> tuple[Owned, Owned]:
    """Both have one of everything: the same e-mail address, telephone number, file and day in the same database."""
    return world.furnish(A), world.furnish(B)


# --- every operation -------------------------------------------------------------------------------------------------

_VACUOUS = {
    *("validation-failed", "malformed-json", "not-found", "method-not-allowed", "not-permitted", "internal-error"),
    *("signature-missing", "signature-invalid", "signature-stale", "signature-replayed", "service-unavailable"),
}
"""Refusals that say nothing of the thing that was asked for."""
_MADE_UP = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|acc_\w+|[\w-]{43}|eyJ[\w.-]+"
    r"|\d{4}-\d\d-\d\dT[\d:.]+Z"
)


@dataclass(frozen=True)
class Answer:
    operation: str
    status: int
    refusal: str
    told: str
    """The answer without what differs between any two: ids, keys, accounts, times."""
    text: str
    asked: str

    @property
    def said(self) -> tuple[int, str, str]:
        return self.status, self.refusal, self.told


def ask(world: TenantsWorld, row: Row, tenant: str, about: Owned, own: Owned) -> Answer:
    role, call = row
    key = world.keys[tenant, role or "channel"]
    with world.client(tenant, role or None) as client, suppress(ProblemResponse):
        call(Asked(client, about, own, tenant, key))
    response = world.answers[-1]
    request = response.request
    document = response.json() if "json" in response.headers.get("content-type", "") else {}
    refusal = document.get("refusal", "") if isinstance(document, dict) else ""
    if refusal:
        document = {name: value for name, value in document.items() if name not in ("request_id", "instance")}
    return Answer(
        _operation(request.method, request.url.path.removeprefix(f"/t/{tenant}")),
        response.status_code,
        refusal,
        _MADE_UP.sub("...", json.dumps(document) if document else response.text),
        response.text,
        f"{request.url} {request.content.decode('utf-8', 'replace')}",
    )


def _document() -> dict[str, Any]:
    from wallet.settings import WalletSettings

    return create(WalletSettings.model_construct(sandbox=True)).openapi()


@cache
def _operations() -> list[tuple[str, re.Pattern[str], str]]:
    return [
        (method.upper(), re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), str(operation["operationId"]))
        for path, operations in _document()["paths"].items()
        for method, operation in operations.items()
    ]


def _operation(method: str, path: str) -> str:
    found = {name for verb, pattern, name in _operations() if verb == method and pattern.fullmatch(path)}
    assert len(found) == 1, (method, path, found)
    return found.pop()


def test_every_operation_is_asked() -> None:
    assert FOR_ANOTHERS.keys() | ABOUT_THE_ASKER.keys() == {name for _, _, name in _operations()}
    assert not FOR_ANOTHERS.keys() & ABOUT_THE_ASKER.keys()


@pytest.mark.extended
def test_what_is_anothers_is_answered_as_what_is_nobodys_by_every_operation(
    world: TenantsWorld, both: tuple[Owned, Owned]
) -> None:
    theirs, own = both
    before = world.digest(A)
    wrong: list[str] = []
    answers: dict[str, Answer] = {}
    for name, row in FOR_ANOTHERS.items():
        answer = answers[name] = ask(world, row, B, theirs, own)
        nobodys = ask(world, row, B, theirs.shadow(), own)
        if answer.operation != name:
            wrong.append(f"{name}: asks {answer.operation}")
        if answer.said != nobodys.said:
            wrong.append(f"{name}: another's {answer.said}, nobody's {nobodys.said}")
        if answer.refusal in _VACUOUS or answer.status >= 500:
            wrong.append(f"{name}: {answer.said}")
        if shown := [secret for secret in theirs.secrets() if secret in answer.text and secret not in answer.asked]:
            wrong.append(f"{name}: shows {shown}")
    if world.digest(A) != before:
        wrong.append("a question changes what is another's")
    for name, row in ABOUT_THE_ASKER.items():
        answer = ask(world, row, B, theirs, own)
        if answer.operation != name:
            wrong.append(f"{name}: asks {answer.operation}")
        if shown := [secret for secret in theirs.secrets() if secret in answer.text]:
            wrong.append(f"{name}: shows {shown}")
        if answer.status >= 300 and name != "take_merchant_statement":
            wrong.append(f"{name}: {answer.said}")
    if world.digest(A) != before:
        wrong.append("something changes what is another's")
    # The same questions by whom it belongs to: had a row asked for nothing, he would hear the same. (Of receipts and
    # proofs of balance he hears that the fake ledger has none.)
    wrong += [
        f"{name}: the owner hears the same, {answers[name].said}"
        for name, row in FOR_ANOTHERS.items()
        if ask(world, row, A, theirs, theirs).said == answers[name].said
    ]
    assert not wrong, "\n".join(wrong)


# --- ids of one's own making -----------------------------------------------------------------------------------------


def _pay(a: Asked, id: UUID) -> object:
    return a.c.submit_payment(_token(replace(a, i=a.o), TransferKind.PAYMENT, a.o.payee_account, id=id))


def _bulk(a: Asked, id: UUID) -> object:
    return a.c.create_bulk_file(
        file=id, wallet=a.o.wallet, content_sha256=sha256(id.bytes).digest(), lines=1, total_minor=1
    )


def _schedule(a: Asked, id: UUID) -> object:
    tokens = a.c.sign_schedule(
        a.c.schedule_dates(_R, count=1),
        schedule=id,
        key=a.o.key,
        ledger="cny",
        debit=a.o.account,
        credit=a.o.payee_account,
        amount_minor=1,
        currency="CNY",
    )
    return a.c.create_schedule(schedule=id, wallet=a.o.wallet, recurrence=_R, instructions=tokens)


def _own_program(a: Asked, id: UUID) -> object:
    request = _program(a, a.o.account, a.o.key)
    return a.c.create_program(request.model_copy(update={"program": id}))


def _unmask(a: Asked, id: UUID) -> object:
    return a.c.order_unmask(
        institution=a.tenant,
        case_number="1",
        legal_basis="2",
        wallet=a.o.wallet,
        fields=[UnmaskField.NAME],
        key=a.key,
        request=id,
    )


def _fund(a: Asked, id: UUID) -> object:
    return a.c.fund_purse(
        key=a.o.key,
        ledger="cny",
        debit=a.o.account,
        escrow=a.o.escrow,
        purse=a.o.purse,
        amount_minor=1,
        currency="CNY",
        valid_until=_soon(),
        funding=id,
    )


MADE: dict[str, tuple[str, Callable[[Owned], UUID], Callable[[Asked, UUID], object]]] = {
    "customer": (
        "channel",
        lambda i: i.customer,
        lambda a, id: a.c.create_customer(evidence=[], customer=id),
    ),
    "wallet": (
        "channel",
        lambda i: i.wallet,
        lambda a, id: a.c.open_wallet(
            customer=a.o.customer, wallet_class=WalletClass.IV, device_key=_device(), wallet=id
        ),
    ),
    "exchange": (
        "channel",
        lambda i: i.exchange,
        lambda a, id: a.c.exchange_in(wallet=a.o.wallet, amount_minor=1, currency="CNY", exchange=id),
    ),
    "request": (
        "channel",
        lambda i: i.request,
        lambda a, id: a.c.request_payment(wallet=a.o.payee, payee_name="X", currency="CNY", amount_minor=1, request=id),
    ),
    "file": ("channel", lambda i: i.file, _bulk),
    "schedule": ("channel", lambda i: i.schedule, _schedule),
    "endpoint": (
        "channel",
        lambda i: i.endpoint,
        lambda a, id: a.c.create_webhook_endpoint("http://127.0.0.1:9/mine", endpoint=id),
    ),
    "child": (
        "channel",
        lambda i: i.child,
        lambda a, id: a.c.open_child(
            a.o.wallet, customer=a.o.customer, wallet_class=WalletClass.III, device_key=_device(), child=id
        ),
    ),
    "alias": (
        "channel",
        lambda i: i.alias,
        lambda a, id: a.c.create_alias(
            a.o.wallet, kind=AliasKind.EMAIL, alias=f"{id.hex[-12:]}@example.test", alias_id=id
        ),
    ),
    "change": (
        "channel",
        lambda i: i.change,
        lambda a, id: a.c.set_caps(wallet=a.o.wallet, caps=CapsView(single_max_minor=10**6), change=id),
    ),
    "program": ("channel", lambda i: i.program, _own_program),
    "unmask": ("ada", lambda i: i.unmask.request, _unmask),
    "settlement": (
        "operator",
        lambda i: UUID(i.settlement),
        lambda a, id: a.c.register_settlements([_order(a, str(id))]),
    ),
    "payment": ("", lambda i: i.payment, _pay),
    "funding": ("", lambda i: i.funding, _fund),
}
"""What is made under an id of the client's choice."""
AT_THE_LEDGER = {"exchange", "payment", "funding"}
"""They are transfers' ids, of which a ledger books each once, whosoever (I7)."""


@pytest.mark.parametrize("what", some(MADE, each=3))
def test_an_id_that_another_has_used_is_ones_own_all_the_same(
    world: TenantsWorld, both: tuple[Owned, Owned], what: str
) -> None:
    theirs, own = both
    role, id_of, make = MADE[what]
    before = world.digest(A)
    same = ask(world, (role, lambda a: make(a, id_of(theirs))), B, own, own)
    fresh = ask(world, (role, lambda a: make(a, ids.new_uuid7())), B, own, own)
    again = ask(world, (role, lambda a: make(a, id_of(theirs))), B, own, own)
    assert fresh.status in (200, 201), fresh
    if what in AT_THE_LEDGER:
        assert (same.status, same.refusal) == (again.status, again.refusal) == (409, "id-already-used")
    else:
        assert same.status == fresh.status, same
        assert again.status < 500
    assert world.digest(A) == before


# --- whose door it is ------------------------------------------------------------------------------------------------


def test_a_key_opens_the_door_of_its_own_institution_alone(world: TenantsWorld, both: tuple[Owned, Owned]) -> None:
    theirs, own = both

    def said(tenant: str, key: PrivateKey, wallet: UUID) -> str:
        with world.client(tenant, None, key=key) as client:
            try:
                return client.get_wallet(wallet).state.value
            except ProblemResponse as error:
                return error.refusal

    assert said(A, world.keys[A, "channel"], theirs.wallet) == "open"
    stranger = said(A, PrivateKey.generate(), theirs.wallet)
    assert said(A, world.keys[B, "channel"], theirs.wallet) == stranger == "signature-invalid"
    assert said(B, world.keys[A, "channel"], own.wallet) == stranger
    # What is signed for one address is of no use at another.
    with world.client(A, "channel") as client:
        client.get_customer(theirs.customer)
    signed = world.answers[-1].request
    moved = world.http.get(signed.url.path.replace(A, B), headers=signed.headers)
    assert (moved.status_code, moved.json()["refusal"]) == (401, "signature-invalid")


def test_open_operations_answer_for_the_institution_of_the_address(world: TenantsWorld) -> None:
    for tenant in (A, B):
        view = world.http.get(f"/t/{tenant}/v1/institution").json()
        assert view["participant"] == tenant
        assert world.http.get(f"/t/{tenant}/healthz").json() == {"status": "ok"}
    keys = {world.http.get(f"/t/{tenant}/v1/webhook-keys").text for tenant in (A, B)}
    logs = {world.http.get(f"/t/{tenant}/v1/privacy-log/key").text for tenant in (A, B)}
    assert len(keys) == len(logs) == 2
    assert world.http.get("/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    "path",
    [
        "/v1/institution",
        f"/t/{A}",
        f"/t/{A.lower()}/v1/institution",
        "/t/HSBCHKHH/v1/institution",
        f"/t/%42{A[1:]}/v1/institution",
        f"/t/{A}/t/{B}/v1/institution",
        f"//t/{A}/v1/institution",
        "/t//v1/institution",
    ],
)
def test_what_is_addressed_to_nobody_is_not_found(world: TenantsWorld, path: str) -> None:
    answer = world.http.get(f"{ORIGIN}{path}")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(fresh_database: Callable[[str], str], tmp_path: Path) -> TenantsSettings:
    return tenants_settings(fresh_database, tmp_path)[0]


def test_each_institution_has_its_own_files_and_its_share(settings: TenantsSettings) -> None:
    first, second = settings.institutions()
    assert (first.participant, second.participant) == (A, B)
    assert first.public_url == f"{ORIGIN}/t/{A}"
    assert first.signing_key_path == settings.tenants_path.parent / A / "bank.pem"
    assert first.data_dir != second.data_dir
    assert first.database_pool_size + second.database_pool_size == settings.database_pool_size
    shown = settings.describe()
    assert shown["JIAOZI_WALLET_TENANTS_PATH"] == str(settings.tenants_path)
    assert shown[f"{B}.JIAOZI_WALLET_CLIENTS_PATH"] == str(second.clients_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"participant": A}, "each institution once"),
        ({"signing_key_path": f"{A}/bank.pem"}, "the same file"),
        ({"clients_path": f"{A}/clients.json"}, "the same file"),
        ({"public_url": f"{ORIGIN}/t/{A}/"}, "the same public_url"),
        ({"data_key_path": f"{A}/bank.pem"}, "the same file"),
        ({"databse_url": "postgresql://x"}, "Extra inputs"),
        ({"database_url": "postgresql://x"}, "Extra inputs"),
        ({"participant": "bank"}, "participant"),
    ],
)
def test_what_two_institutions_cannot_share_is_refused(
    settings: TenantsSettings, change: dict[str, str], message: str
) -> None:
    first, second = json.loads(settings.tenants_path.read_text())
    settings.tenants_path.write_text(json.dumps([first, {**second, **change}]))
    with pytest.raises(InvalidSettings, match=message):
        settings.institutions()


def test_a_clients_key_belongs_to_one_institution(settings: TenantsSettings) -> None:
    first, second = settings.institutions()
    check_keys([first, second])
    shared = json.loads(first.clients_path.read_text())[0]
    clients = json.loads(second.clients_path.read_text())
    second.clients_path.write_text(json.dumps([*clients, {**shared, "name": "shared"}]))
    with pytest.raises(InvalidSettings, match="the same client's key"):
        check_keys([first, second])


def test_too_few_connections_for_all_are_refused(settings: TenantsSettings) -> None:
    with pytest.raises(InvalidSettings, match="2 institutions need 8 connections"):
        settings.model_copy(update={"database_pool_size": 7}).institutions()


def test_an_institutions_own_setting_in_the_environment_is_refused() -> None:
    with pytest.raises(MisspeltSetting, match="each institution's own"):
        TenantsSettings.check_environment({"JIAOZI_WALLET_PARTICIPANT": A})


@pytest.mark.parametrize("sandbox", [True, False])
def test_a_role_that_row_security_does_not_bind_serves_no_two_institutions(
    fresh_database: Callable[[str], str], tmp_path: Path, sandbox: bool
) -> None:
    settings, _, owner_url = tenants_settings(fresh_database, tmp_path)
    mighty = settings.model_copy(update={"database_url": owner_url, "sandbox": sandbox})
    with pytest.raises(NotIsolated, match="is a superuser"), TestClient(Tenants(mighty)):
        pass


def test_outside_of_the_sandbox_one_institution_is_not_served_either(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    settings, _, owner_url = tenants_settings(fresh_database, tmp_path)
    own = settings.institutions()[0].model_copy(update={"database_url": owner_url, "sandbox": False})
    with pytest.raises(NotIsolated, match="is a superuser"), TestClient(create(own)):
        pass


def test_config_prints_what_each_institution_has(settings: TenantsSettings) -> None:
    done = run_here("wallet", "config", JIAOZI_WALLET_TENANTS_PATH=str(settings.tenants_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"JIAOZI_WALLET_TENANTS_PATH={settings.tenants_path}" in lines
    for tenant in (A, B):
        assert f"{tenant}.JIAOZI_WALLET_PUBLIC_URL=http://127.0.0.1:8200/t/{tenant}" in lines
    settings.tenants_path.write_text("[]")
    wrong = run_here("wallet", "config", JIAOZI_WALLET_TENANTS_PATH=str(settings.tenants_path))
    assert wrong.returncode == 1
    assert "1 to 25 institutions" in wrong.stderr


def test_a_command_that_reads_the_database_is_told_whose_part(
    settings: TenantsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JIAOZI_WALLET_TENANTS_PATH", str(settings.tenants_path))
    assert load_institution(B).participant == B
    for unknown in (None, "HSBCHKHH"):
        with pytest.raises(InvalidSettings, match="name the institution"):
            load_institution(unknown)

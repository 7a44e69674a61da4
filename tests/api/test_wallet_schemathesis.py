"""Goal: no request that the wallet service's OpenAPI document allows or forbids gets a 5xx or an unlisted answer.
Method: tests/openapi_fuzz.py over every operation of the real app (real PostgreSQL, a real ledger, both on loopback),
signed by registered clients of every role, over a bank that has one of most things.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import httpx
import pytest

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferKind
from sandbox.openapi import APPS
from tests.bank_world import ROLES, BankWorld, running_bank
from tests.openapi_fuzz import OpenApiFuzz, examples_wanted
from wallet.contract.families import AliasKind
from wallet.domain.calendars import Frequency, Recurrence
from wallet.domain.rules import Evidence, WalletClass


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.extended
def test_every_answer_of_the_wallet_service_is_documented(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    with running_bank(fresh_database, tmp_path) as world:
        known, instruction = _seeded(world)
        with httpx.Client(base_url=world.url, trust_env=False, timeout=30) as client:
            fuzz = OpenApiFuzz(
                APPS["wallet"]().openapi(),
                client,
                signers=[RequestSigner(world.keys[role]) for role in ROLES],
                known=known,
                # Nobody's address: a webhook would be sent there.
                made={"instruction": instruction, "url": lambda: "http://127.0.0.1:9/hook"},
                examples=examples_wanted(1),
            )
            fuzz.run()
        with world.ledger.anonymous() as ledger:
            assert ledger.supply().identity_holds
    assert not fuzz.findings, fuzz.report()
    assert fuzz.answers
    assert fuzz.reached() == set(fuzz.answers), set(fuzz.answers) - fuzz.reached()
    print(fuzz.report())


def _seeded(world: BankWorld) -> tuple[dict[str, list[str]], Callable[[], str]]:
    """Ids that exist, by prefix; and a holder's new payment, signed."""
    client = world.client()
    home = client.institution().ledgers[0]
    key = PrivateKey.generate()
    customer = client.create_customer(evidence=list(Evidence)).customer
    payer, payee = (
        client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=device.public)
        for device in (key, PrivateKey.generate())
    )
    assert payer.account is not None and payee.account is not None
    deposit = client.simulate_deposit(customer=customer, amount_minor=900_000)
    assert deposit.balance_minor == 900_000
    exchange = client.exchange_in(wallet=payer.wallet, amount_minor=500_000, currency="CNY").exchange
    terms = {"key": key, "ledger": home.ledger, "debit": payer.account, "credit": payee.account, "currency": "CNY"}

    def instruction() -> str:
        return client.instruct(TransferKind.PAYMENT, amount_minor=1, **terms)

    payment = client.submit_payment(instruction()).payment
    request = client.request_payment(
        wallet=payee.wallet, payee_name="Teahouse", currency="CNY", amount_minor=10
    ).request
    alias = ids.new_uuid7()
    client.create_alias(payee.wallet, kind=AliasKind.EMAIL, alias="li@example.test", alias_id=alias)
    endpoint = client.create_webhook_endpoint("http://127.0.0.1:9/hook").endpoint
    recurrence = Recurrence(frequency=Frequency.ONCE, first_on=system_clock().date() + timedelta(days=3))
    schedule = ids.new_uuid7()
    tokens = client.sign_schedule(
        client.schedule_dates(recurrence, count=1), schedule=schedule, amount_minor=1, **terms
    )
    client.create_schedule(schedule=schedule, wallet=payer.wallet, recurrence=recurrence, instructions=tokens)
    file = ids.new_uuid7()
    client.create_bulk_file(file=file, wallet=payer.wallet, content_sha256=b"f" * 32, lines=1, total_minor=1)
    child = client.open_child(
        payer.wallet, customer=customer, wallet_class=WalletClass.III, device_key=PrivateKey.generate().public
    ).child
    purse = client.create_purse(wallet=payer.wallet, device_key=PrivateKey.generate("ecdsa-p256-sha256").public).purse
    change = client.suspend_wallet(wallet=payee.wallet, reason="institution").change
    world.client("operator").resume_wallet(wallet=payee.wallet, reason="institution")

    def shown(prefix: str, *values: UUID) -> list[str]:
        return [ids.show(prefix, value) for value in values]

    known = {
        "cus": shown("cus", customer),
        "wlt": shown("wlt", payer.wallet, payee.wallet, child),
        "child": shown("wlt", child),
        "acc": [ids.show_account(number) for number in (payer.account, payee.account, home.vault)],
        "exc": shown("exc", exchange),
        "trf": shown("trf", payment),
        "req": shown("req", request),
        "als": shown("als", alias),
        "whe": shown("whe", endpoint),
        "sch": shown("sch", schedule),
        "blk": shown("blk", file),
        "pur": shown("pur", purse),
        "chg": shown("chg", change),
    }
    return known, instruction

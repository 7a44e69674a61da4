"""Goal: families, cards and aliases over HTTP, by the client and the command line: who may call what, what is refused.
Method: the real app in process with a fake ledger behind it (the fixture of test_wallet_api).
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from tests.api.test_wallet_api import Service, open_wallet, service
from tests.card_world import attest
from wallet import sealed_keys
from wallet.contract.families import AliasKind, ChildCapsBody
from wallet.domain.rules import Evidence, WalletClass
from wallet.hardware.card import Card, FolderDisk
from wallet.hardware.element import Presented

__all__ = ["service"]


def test_family_from_pocket_money_to_closing(service: Service) -> None:
    parent, parent_key, customer = open_wallet(service, deposit=100_000)
    merchant, _, _ = open_wallet(service)
    with service.client("channel") as client:
        key = PrivateKey.generate()
        child = client.open_child(
            parent.wallet,
            customer=customer,
            wallet_class=WalletClass.IV,
            device_key=key.public,
            caps=ChildCapsBody(single_max_minor=500, balance_max_minor=5_000),
            label="pocket money",
        )
        money: Any = {"ledger": "cny", "currency": "CNY"}
        assert child.account and parent.account and merchant.account
        assert (
            client.pay(key=parent_key, debit=parent.account, credit=child.account, amount_minor=5_000, **money).state
            == "final"
        )
        full = service.refusal(
            lambda: client.pay(key=parent_key, debit=parent.account, credit=child.account, amount_minor=1, **money)
        )
        assert full == (422, "balance-limit-exceeded")
        assert (
            client.pay(key=key, debit=child.account, credit=merchant.account, amount_minor=500, **money).state
            == "final"
        )
        [view] = client.children(parent.wallet)
        assert (view.balance_minor, view.spent_total_minor, view.label) == (4_500, 500, "pocket money")
        assert [line.amount_minor for line in client.child_history(parent.wallet, child.child)] == [500, 5_000]
        assert service.refusal(lambda: client.get_child(child.child, parent.wallet)) == (404, "child-not-found")
        changed = client.set_child_caps(parent.wallet, child.child, ChildCapsBody(), version=view.version)
        assert changed.version == 2
        assert service.refusal(
            lambda: client.set_child_caps(parent.wallet, child.child, ChildCapsBody(single_max_minor=1), version=1)
        ) == (409, "child-changed")
        assert service.refusal(lambda: client.close_child(parent.wallet, child.child)) == (409, "child-not-empty")
        # Class IV pays 2,000.00 at once: the whole comes back.
        assert [item.state for item in client.pool(parent.wallet, keys={child.child: key}, ledger="cny")] == ["final"]
        assert client.close_child(parent.wallet, child.child).state == "closed"
        assert client.pool(parent.wallet, keys={child.child: key}, ledger="cny") == []
    for role, status in ((None, 401), ("bridge", 403)):
        with service.client(role) as client:
            assert service.refusal(lambda client=client: client.children(parent.wallet))[0] == status  # type: ignore[misc]
            assert service.refusal(lambda client=client: client.revoke_child(parent.wallet, child.child))[0] == status  # type: ignore[misc]
    with service.client("operator") as client:
        assert len(client.children(parent.wallet)) == 1
        assert service.refusal(lambda: client.close_child(parent.wallet, child.child)) == (403, "not-permitted")


def test_merchant_charges_without_being_a_registered_client(service: Service) -> None:
    parent, parent_key, customer = open_wallet(service, deposit=100_000)
    merchant, _, _ = open_wallet(service)
    child_id = ids.new_uuid7()
    made = sealed_keys.make(child_id, merchant.account)
    with service.client("channel") as client:
        child = client.push_child(
            parent.wallet,
            customer=customer,
            wallet_class=WalletClass.IV,
            merchant=merchant.account,
            key=made,
            child=child_id,
            caps=ChildCapsBody(total_max_minor=1_000),
        )
        client.pay(
            key=parent_key,
            ledger="cny",
            debit=parent.account,
            credit=child.account or 0,
            amount_minor=3_000,
            currency="CNY",
        )
    with service.client(None) as shop:
        charge = ids.new_uuid7()
        assert shop.charge(child_id, secret=made.secret, amount_minor=600, currency="CNY", charge=charge).seq
        again = shop.charge(child_id, secret=made.secret, amount_minor=600, currency="CNY", charge=charge)
        assert again.payment == charge

        def charged(amount: int, secret: bytes = made.secret) -> tuple[int, str]:
            return service.refusal(lambda: shop.charge(child_id, secret=secret, amount_minor=amount, currency="CNY"))

        assert charged(401) == (422, "child-limit-exceeded")
        assert charged(1, bytes(32)) == (403, "charge-not-authorised")
        assert charged(0)[0] == 422
        with service.client("channel") as client:
            client.revoke_child(parent.wallet, child_id)
        assert charged(1) == (409, "push-revoked")
    assert service.ledger.accounts[merchant.account].balance == 600


def test_card_over_http(service: Service, tmp_path: Path) -> None:
    shop, _, _ = open_wallet(service)
    with (
        service.client("channel") as client,
        Card.make(
            FolderDisk.make(tmp_path / "card"), pin="1357", pin_free_single_max_minor=100, pin_free_total_max_minor=200
        ) as card,
    ):
        customer = client.create_customer(evidence=list(Evidence)).customer
        wallet = client.open_wallet(customer=customer, wallet_class=WalletClass.IV, device_key=card.public_key)
        assert wallet.account is not None and shop.account is not None
        card.bind(AccountNumber(wallet.account))
        view = client.register_card(
            wallet.wallet,
            key=card.public_key,
            attestation=attest(card.public_key, single=100, total=200, now=system_clock()),
            pin_free_single_max_minor=100,
            pin_free_total_max_minor=200,
        )
        assert (view.state, view.counter_last, view.evidence) == ("active", 0, [])
        service.ledger.fund(wallet.account, 1_000)
        now = system_clock()
        token = card.sign(Presented("cny", AccountNumber(shop.account), 90, "CNY", now, now + timedelta(minutes=5)))
        with service.client(None) as terminal:
            assert terminal.submit_payment(token).state == "final"
        assert client.cards(wallet.wallet)[0].counter_last == 1
        assert client.report_card(wallet.wallet, card.public_key.thumbprint).suspended_why == "reported"
        assert service.refusal(lambda: client.report_card(shop.wallet, card.public_key.thumbprint)) == (
            404,
            "card-not-found",
        )


def test_alias_and_corporate_over_http(service: Service) -> None:
    payee, _, customer = open_wallet(service)
    payer, _, _ = open_wallet(service)
    with service.client("channel") as client:
        asked = client.create_alias(payee.wallet, kind=AliasKind.EMAIL, alias="Shop@Example.com")
        assert (asked.state, asked.tries_left, asked.is_default) == ("pending", 5, False)
        sent = client.simulated_codes()[0]
        assert (sent.to, sent.kind) == ("shop@example.com", "email")
        wrong = f"{(int(sent.code) + 1) % 10**6:06d}"
        assert service.refusal(lambda: client.verify_alias(asked.alias_id, wrong)) == (422, "alias-code-wrong")
        assert client.verify_alias(asked.alias_id, sent.code).is_default
        found = client.look_up_alias(payer=payer.wallet, kind=AliasKind.EMAIL, alias=sent.to, currency="CNY")
        assert (found.account, found.masked_name) == (payee.account, "*")
        assert [view.state for view in client.aliases(payee.wallet)] == ["verified"]
        assert client.make_alias_default(asked.alias_id).is_default
        assert client.remove_alias(asked.alias_id).state == "removed"
        assert service.refusal(
            lambda: client.look_up_alias(payer=payer.wallet, kind=AliasKind.EMAIL, alias=sent.to, currency="CNY")
        ) == (404, "alias-not-found")
        legal = {"legal_name": "示例贸易有限公司", "lei": "5493001KJTIIGC8Y1R12"}
        assert client.register_corporate(customer, **legal) == client.get_corporate(customer)
        assert service.refusal(
            lambda: client.register_corporate(customer, legal_name="N", lei="5493001KJTIIGC8Y1R13")
        ) == (422, "corporate-data-invalid")


@pytest.mark.parametrize(
    "body",
    [
        {"code": "12345"},
        {"code": "１２３４５６"},
        {"code": 123456},
        {},
    ],
)
def test_bad_code_is_a_problem(service: Service, body: dict[str, object]) -> None:
    with service.client("channel") as client:
        path = f"/v1/aliases/{ids.show('als', ids.new_uuid7())}/verification"
        assert service.refusal(lambda: client._http.post(path, body)) == (422, "validation-failed")

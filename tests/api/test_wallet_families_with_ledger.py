"""Goal: what children, merchants and cards sign is what the real ledger books: nothing of it is the fake's goodwill.
Method: the two services of test_wallet_with_ledger, one story; the card's and the family's commands on a terminal.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from ledger.client import LedgerClient
from ledger.contract import (
    AccountKind,
    AccountOpening,
    IssueAction,
    ParticipantRole,
    RegisterParticipantAction,
    TransferKind,
    TransferTerms,
)
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, scheme
from tests.card_world import attest
from wallet import sealed_keys
from wallet.__main__ import app
from wallet.client import WalletClient
from wallet.contract.families import ChildCapsBody
from wallet.domain.rules import Evidence, WalletClass
from wallet.hardware.card import Card, FolderDisk
from wallet.hardware.element import Presented

__all__ = ["scheme"]


def test_push_charge_pool_and_card_over_both_services(scheme: Scheme, tmp_path: Path) -> None:
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    vault = client.institution().ledgers[0].vault
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=1_000_000, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)
    customer = client.create_customer(evidence=list(Evidence)).customer
    parent_key, shop_key = sealed_keys.make(ids.new_uuid7(), 1).key, sealed_keys.make(ids.new_uuid7(), 1).key
    parent = client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=parent_key.public)
    shop = client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=shop_key.public)
    assert parent.account is not None and shop.account is not None
    client.simulate_deposit(customer=customer, amount_minor=100_000)
    client.exchange_in(wallet=parent.wallet, amount_minor=100_000, currency="CNY")

    child_id = ids.new_uuid7()
    made = sealed_keys.make(child_id, shop.account)
    child = client.push_child(
        parent.wallet,
        customer=customer,
        wallet_class=WalletClass.IV,
        merchant=shop.account,
        key=made,
        child=child_id,
        caps=ChildCapsBody(total_max_minor=1_000, balance_max_minor=5_000),
    )
    assert child.account is not None
    client.pay(
        key=parent_key, debit=parent.account, credit=child.account, amount_minor=5_000, ledger="cny", currency="CNY"
    )
    merchant = WalletClient("http://wallet.test", transport=scheme.wallet_http._transport)
    charged = merchant.charge(child_id, secret=made.secret, amount_minor=1_000, currency="CNY")
    assert bank.get_transfer(charged.payment).amount_minor == 1_000
    # I8: the ledger asks for the child's own key, whoever pools.
    results = client.pool(parent.wallet, keys={child_id: parent_key}, ledger="cny")
    assert [item.refusal for item in results] == ["instruction-invalid"]
    results = client.pool(parent.wallet, keys={child_id: made.key}, ledger="cny")
    assert [item.state.value for item in results] == ["final"]
    assert client.close_child(parent.wallet, child_id).balance_minor == 0

    with Card.make(
        FolderDisk.make(tmp_path / "card"), pin="1357", pin_free_single_max_minor=100, pin_free_total_max_minor=200
    ) as card:
        wallet = client.open_wallet(customer=customer, wallet_class=WalletClass.IV, device_key=card.public_key)
        assert wallet.account is not None
        card.bind(AccountNumber(wallet.account))
        client.register_card(
            wallet.wallet,
            key=card.public_key,
            attestation=attest(card.public_key, single=100, total=200, now=system_clock()),
            pin_free_single_max_minor=100,
            pin_free_total_max_minor=200,
        )
        client.pay(
            key=parent_key, debit=parent.account, credit=wallet.account, amount_minor=500, ledger="cny", currency="CNY"
        )
        now = system_clock()
        presented = Presented("cny", AccountNumber(shop.account), 90, "CNY", now, now + timedelta(minutes=5))
        token = card.sign(presented)
        view = merchant.submit_payment(token)
        assert merchant.submit_payment(str(card.sign(presented))).seq == view.seq
        assert bank.submit_instruction(token).outcome == "already-booked"
    assert bank.get_account(shop.account).balance_minor == 1_090
    assert bank.supply().identity_holds


def test_a_childs_balance_cap_binds_credits_of_other_institutions(scheme: Scheme) -> None:
    client, stranger = scheme.wallet("channel"), PrivateKey.generate()
    operator = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.operators[0]))
    other = LedgerClient(scheme.ledger_url, signer=RequestSigner(stranger))
    action = RegisterParticipantAction(
        participant=ids.parse_participant("ICBKCNBJ"),
        name="Other",
        role=ParticipantRole.INTERMEDIARY,
        key=stranger.public.to_jwk(),
        quota_minor=10**9,
    )
    order_by_operators(operator, scheme.operators, action)
    opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT, rule_class="none")
    vault = other.open_accounts([opening])[0].account
    assert vault is not None
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=10_000, currency="CNY")
    order_by_operators(operator, scheme.operators, issue)
    customer = client.create_customer(evidence=list(Evidence)).customer
    parent = client.open_wallet(customer=customer, wallet_class=WalletClass.II, device_key=PrivateKey.generate().public)
    child = client.open_child(
        parent.wallet,
        customer=customer,
        wallet_class=WalletClass.IV,
        device_key=PrivateKey.generate().public,
        label="pocket money",
        caps=ChildCapsBody(balance_max_minor=500),
    )

    def send(amount: int) -> str | None:
        terms = TransferTerms(
            id=ids.new_uuid7(),
            kind=TransferKind.PAYMENT,
            debit=vault,
            credit=child.account,
            amount_minor=amount,
            currency="CNY",
        )
        return other.transfer(terms).refusal

    assert (send(501), send(500), send(1)) == ("balance-limit-exceeded", None, "balance-limit-exceeded")
    client.set_child_caps(parent.wallet, child.child, caps=ChildCapsBody(balance_max_minor=501), version=1)
    assert (send(1), send(1)) == (None, "balance-limit-exceeded")
    client.set_child_caps(parent.wallet, child.child, caps=ChildCapsBody(), version=2)
    assert send(1) is None


def test_card_on_the_command_line(tmp_path: Path) -> None:
    run, folder = CliRunner(), str(tmp_path / "card")
    made = run.invoke(app, ["card", "init", folder, "--pin-free-single", "100"], input="135790\n135790\n")
    assert made.exit_code == 0, made.output
    assert '"crv": "Ed25519"' in made.output and "135790" not in made.output
    status = run.invoke(app, ["card", "status", folder])
    assert "counter   0" in status.output and "5 tries left" in status.output and "100 at once" in status.output
    again = run.invoke(app, ["card", "init", folder], input="135790\n135790\n")
    assert (again.exit_code, "never overwritten" in again.output) == (1, True)
    bad = run.invoke(app, ["card", "init", folder + "2"], input="12\n12\n")
    assert (bad.exit_code, "4 to 12 digits" in bad.output) == (1, True)
    assert not Path(folder + "2").exists()
    nothing = run.invoke(app, ["card", "status", folder + "3"])
    assert (nothing.exit_code, "card init" in nothing.output) == (1, True)


@pytest.mark.parametrize("command", ["family", "alias", "card"])
def test_help_names_every_command(command: str) -> None:
    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0 and "Commands" in shown.output

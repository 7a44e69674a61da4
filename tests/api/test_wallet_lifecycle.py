"""Goal: a wallet's life over HTTP: one client call an operation, every answer a documented one.
Method: the app with a fake ledger and a real PostgreSQL; then once with the real ledger on a socket.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.client import LedgerClient
from ledger.contract import AccountStatus, IssueAction, TransferKind
from tests.api.test_wallet_api import Service, open_wallet, service, shared
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, scheme
from wallet.__main__ import app as cli
from wallet.cli import lifecycle as life
from wallet.client import WalletClient
from wallet.contract.lifecycle import CapsView, ChangeState
from wallet.domain.rules import Evidence, WalletClass

__all__ = ["scheme", "service", "shared"]


def test_caps_are_lowered_shown_and_raised_only_with_the_holders_signature(service: Service) -> None:
    wallet, key, _ = open_wallet(service, WalletClass.III)
    with service.client("channel") as client:
        low = CapsView(day_max_minor=5_000, single_max_minor=100)
        change = ids.new_uuid7()
        first = client.set_caps(wallet=wallet.wallet, caps=low, change=change)
        assert first == client.set_caps(wallet=wallet.wallet, caps=low, change=change)
        limits = client.get_wallet(wallet.wallet).limits
        assert limits is not None
        shown = limits.daily
        assert (shown.max_minor, shown.class_max_minor, shown.holder_max_minor) == (5_000, 1_000_000, 5_000)
        assert (limits.annual.max_minor, limits.annual.holder_max_minor) == (None, None)
        high = CapsView(day_max_minor=5_001)
        assert service.refusal(lambda: client.set_caps(wallet=wallet.wallet, caps=high)) == (
            403,
            "holder-order-missing",
        )
        assert client.set_caps(wallet=wallet.wallet, caps=high, key=key).state is ChangeState.DONE
        beyond = CapsView(day_max_minor=1_000_001)
        assert service.refusal(lambda: client.set_caps(wallet=wallet.wallet, caps=beyond, key=key)) == (
            422,
            "cap-above-class",
        )
        assert [item.kind for item in client.notices(wallet.wallet)] == ["caps-changed", "caps-changed"]
        assert [item.kind.value for item in client.wallet_changes(wallet.wallet)] == ["caps", "caps"]


@pytest.mark.parametrize(
    ("part", "body", "refusal"),
    [
        ("caps", {"change": "chg_x", "caps": {}}, "validation-failed"),
        ("caps", {"change": "@", "caps": {"day_max_minor": "-1"}}, "validation-failed"),
        ("caps", {"change": "@", "caps": {"day_max_minor": "1", "hour_max_minor": "1"}}, "validation-failed"),
        ("class-changes", {"change": "@", "wallet_class": "V"}, "validation-failed"),
        ("device-changes", {"consent": "x" * 30}, "holder-order-invalid"),
        ("device-changes", {"consent": "x"}, "validation-failed"),
        ("objections", {"consent": "e30.e30." + "A" * 40}, "holder-order-invalid"),
        ("suspensions", {"change": "@", "reason": "evidence"}, "validation-failed"),
        ("resumptions", {"change": "@", "reason": "loss"}, "wallet-not-suspended"),
        ("key-recoveries", {"change": "@", "device_key": {"kty": "OKP"}, "identified_by": []}, "device-key-refused"),
        ("closures", {"change": "@", "instruction": "x"}, "validation-failed"),
    ],
)
def test_bad_input_is_one_clear_problem(shared: Service, part: str, body: dict[str, object], refusal: str) -> None:
    wallet, _, _ = open_wallet(shared)
    if body.get("change") == "@":
        body = {**body, "change": ids.show("chg", ids.new_uuid7())}
    with shared.client("channel") as client:
        path = f"/v1/wallets/{ids.show('wlt', wallet.wallet)}/{part}"
        with pytest.raises(ProblemResponse) as caught:
            client._http.post(path, body, idempotent=True)
    assert caught.value.refusal == refusal


def test_only_the_banks_own_clients_may_change_a_wallet(service: Service) -> None:
    wallet, _, _ = open_wallet(service)
    with service.client("bridge") as client:
        assert service.refusal(lambda: client.report_loss(wallet=wallet.wallet)) == (403, "not-permitted")
        assert service.refusal(lambda: client.close_wallet(wallet=wallet.wallet)) == (403, "not-permitted")
    with service.client("channel") as client:
        missing = service.refusal(lambda: client.report_loss(wallet=ids.new_uuid7()))
        assert missing == (404, "wallet-not-found")
        assert service.refusal(lambda: client.get_wallet_change(ids.new_uuid7())) == (404, "wallet-change-not-found")


@pytest.mark.extended
def test_commands_of_a_wallets_life(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wallet, key, customer = open_wallet(service, deposit=1_000)
    key.save(tmp_path / "device.pem")
    PrivateKey.generate().save(tmp_path / "second.pem")
    service.keys["channel"].save(tmp_path / "channel.pem")
    monkeypatch.setattr(life, "connect", lambda url, client_key: service.client("channel"))
    shown = ids.show("wlt", wallet.wallet)
    keys = ["--client-key", str(tmp_path / "channel.pem")]
    device = ["--device-key", str(tmp_path / "device.pem")]

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(cli, ["life", *arguments, *keys])
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        return result.stdout

    assert "caps  done" in run("caps", shown, "--daily", "5.00")
    assert "class  done" in run("class", shown, "III")
    assert "opens class" not in run("evidence", ids.show("cus", customer), "--withdraw", "bank-account")
    assert "add-device  done" in run("add-device", shown, str(tmp_path / "second.pem"), *device)
    assert len(json.loads(run("devices", shown, "--json"))) == 2
    second = PrivateKey.load(tmp_path / "second.pem").public.thumbprint
    assert "remove-device  done" in run("remove-device", shown, second, *device)
    assert "suspend  done" in run("report-loss", shown)
    PrivateKey.generate().save(tmp_path / "third.pem")
    identified = ["--identified-by", "phone", "--identified-by", "id"]
    assert "waiting" in run("recover", shown, str(tmp_path / "third.pem"), *identified)
    assert "objected" in run("object", shown, *device)
    assert "resume  done" in run("resume", shown, *identified)
    assert "paid out CNY 10.00" in run("close", shown, *device)
    assert "closed" in run("notices", shown)
    assert len(run("show", shown).splitlines()) == 8


@pytest.mark.extended
def test_whole_life_against_the_real_ledger(scheme: Scheme) -> None:
    """Class, devices, loss and closure: what the fake promises, the ledger keeps."""
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    vault = client.institution().ledgers[0].vault
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=10_000_000, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)
    first, second = PrivateKey.generate("ecdsa-p256-sha256"), PrivateKey.generate()
    customer = client.create_customer(evidence=[Evidence.PHONE]).customer
    opened = client.open_wallet(customer=customer, wallet_class=WalletClass.IV, device_key=first.public)
    wallet, account = opened.wallet, opened.account
    assert account is not None
    client.simulate_deposit(customer=customer, amount_minor=900_000)
    assert client.exchange_in(wallet=wallet, amount_minor=600_000, currency="CNY").state == "final"
    shop_customer = client.create_customer(evidence=list(Evidence)).customer
    shop = client.open_wallet(
        customer=shop_customer, wallet_class=WalletClass.I, device_key=PrivateKey.generate().public
    )

    payee = shop.account
    assert payee is not None

    def pay(amount: int, key: PrivateKey) -> str:
        try:
            view = client.pay(key=key, ledger="cny", debit=account, credit=payee, amount_minor=amount, currency="CNY")
        except ProblemResponse as error:
            return error.refusal
        return view.state.value

    # up with new evidence: both sides let the larger payment pass
    assert pay(200_001, first) == "single-limit-exceeded"
    client.change_evidence(customer=customer, added=[Evidence.ID, Evidence.BANK_ACCOUNT])
    assert client.change_class(wallet=wallet, wallet_class=WalletClass.II).state is ChangeState.DONE
    assert bank.get_account(account).rule_class == "ecny-2021-06/II"
    assert pay(200_001, first) == "final"
    made = client.change_evidence(customer=customer, withdrawn=[Evidence.BANK_ACCOUNT])
    assert [item.state for item in made.changes] == [ChangeState.DONE]
    assert bank.get_account(account).rule_class == "ecny-2021-06/III"

    # a second device, with the first one's consent
    assert pay(1, second) == "instruction-invalid"
    terms: dict[str, Any] = {"wallet": wallet, "account": account, "ledger": "cny"}
    added = client.change_device("add-holder-key", device_key=second.public, key=first, **terms)
    assert added.state is ChangeState.DONE
    assert bank.get_account(account).holder_keys == [first.thumbprint, second.thumbprint]
    assert [pay(1, key) for key in (first, second)] == ["final", "final"]
    removed = client.change_device("remove-holder-key", device_key=first.public, key=second, **terms)
    assert removed.state is ChangeState.DONE
    assert [pay(1, key) for key in (first, second)] == ["instruction-invalid", "final"]

    # loss; an impostor is objected to; the holder comes back
    assert client.report_loss(wallet=wallet).state is ChangeState.DONE
    assert bank.get_account(account).status is AccountStatus.SUSPENDED
    assert pay(1, second) == "debit-account-suspended"
    token = client.instruct(
        TransferKind.PAYMENT,
        key=second,
        ledger="cny",
        debit=account,
        credit=payee,
        amount_minor=1,
        currency="CNY",
    )
    assert bank.submit_instruction(token).refusal == "debit-account-suspended"
    impostor = PrivateKey.generate()
    identified = [Evidence.ID, Evidence.PHONE]
    announced = client.recover_key(wallet=wallet, device_key=impostor.public, identified_by=identified)
    assert announced.state is ChangeState.WAITING
    view = bank.get_account(account)
    assert view.announced_key is not None
    assert (view.announced_key.key, view.announced_key.effective_at) == (impostor.thumbprint, announced.due_at)
    holder = WalletClient("http://wallet.test", transport=scheme.wallet_http._transport)  # no registered client
    assert holder.object_to_key(key=second, **terms).state is ChangeState.OBJECTED
    assert bank.get_account(account).announced_key is None
    resumed = client.resume_wallet(wallet=wallet, reason="loss", identified_by=identified)
    assert resumed.state is ChangeState.DONE
    assert pay(1, second) == "final"

    # the end
    change = ids.new_uuid7()
    due = client.close_wallet(wallet=wallet, change=change)
    assert due.closure is not None
    assert due.closure.amount_due_minor == 600_000 - 200_001 - 4
    payout = client.instruct(
        TransferKind.EXCHANGE_OUT,
        key=second,
        ledger="cny",
        debit=account,
        credit=vault,
        amount_minor=due.closure.amount_due_minor,
        currency="CNY",
    )
    assert client.close_wallet(wallet=wallet, change=change, instruction=payout).state is ChangeState.DONE
    assert bank.get_account(account).status is AccountStatus.CLOSED
    assert client.simulated_deposit(customer).balance_minor == 300_000 + due.closure.amount_due_minor
    assert pay(1, second) == "account-closed"
    assert client.get_wallet(wallet).state == "closed"
    bank.close()

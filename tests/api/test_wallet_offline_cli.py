"""Goal: `jiaozi-wallet purse` from certificate to proof, as two people with two devices would use it.
Method: the real commands over directories in a temporary place, the real app in process, a fake ledger behind it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_api import Service, open_wallet
from tests.api.test_wallet_api import service as service
from wallet import __main__ as command
from wallet.cli import offline as commands


class Person:
    def __init__(self, service: Service, directory: Path, *, deposit: int = 0) -> None:
        self.directory = directory
        self.device = str(directory / "device")
        directory.mkdir()
        wallet, key, _ = open_wallet(service, deposit=deposit)
        key.save(directory / "wallet.pem")
        service.keys["channel"].save(directory / "client.pem")
        self.client = ["--client-key", str(directory / "client.pem")]
        run("purse", "new", self.device)
        run("purse", "issue", self.device, ids.show("wlt", wallet.wallet), *self.client)

    def load(self, amount: str) -> None:
        run("purse", "load", self.device, amount, *self.client, "--device-key", str(self.directory / "wallet.pem"))

    def show(self) -> dict[str, Any]:
        return json.loads(run("purse", "show", self.device, "--json"))  # type: ignore[no-any-return]


def run(*words: str, fails: bool = False) -> str:
    result = CliRunner().invoke(command.app, list(words))
    assert (result.exit_code != 0) == fails, result.output
    return result.output if fails else result.stdout


@pytest.fixture
def people(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Person, Person, Person]:
    monkeypatch.setattr(commands, "connect", lambda url, key: service.client("channel"))
    monkeypatch.setattr(commands, "WalletClient", lambda url: service.client(None))
    payer = Person(service, tmp_path / "payer", deposit=100_000)
    payer.load("300.00")
    return payer, Person(service, tmp_path / "payee"), Person(service, tmp_path / "third")


def pay(payer: Person, payee: Person, amount: str, *options: str, name: str = "a") -> Path:
    invoice, transfer = payee.directory / f"{name}.ask", payer.directory / f"{name}.pay"
    run("purse", "ask", payee.device, amount, "--out", str(invoice), *options)
    run("purse", "pay", payer.device, str(invoice), "--out", str(transfer))
    run("purse", "receive", payee.device, str(transfer))
    return transfer


def test_two_devices_pay_and_the_payee_syncs(people: tuple[Person, Person, Person], tmp_path: Path) -> None:
    payer, payee, third = people
    pay(payer, payee, "120.00")
    pay(payee, third, "20.50", "--to-account", name="b")
    assert [person.show()["balance_minor"] for person in people] == ["18000", "9950", "0"]
    assert "CNY 20.50 to the wallet" in run("purse", "sync", third.device)
    assert third.show()["to_sync"] == 0
    first = json.loads(run("purse", "sync", payee.device, "--json"))
    again = json.loads(run("purse", "sync", payee.device, "--json"))
    assert [item for item in first if item["is_paid_out"]] == again  # what was sent is kept a while, and known by then
    assert sorted(item["credited_minor"] for item in first) == ["12000", "2050"]
    run("purse", "redeem", payee.device, "99.50")
    assert "99.50 to the wallet" in run("purse", "sync", payee.device)
    assert payee.show()["balance_minor"] == "0"


@pytest.mark.extended
def test_messages_travel_as_frames_and_as_pictures(people: tuple[Person, Person, Person]) -> None:
    payer, payee, _ = people
    invoice = payee.directory / "invoice.txt"
    invoice.write_text(run("purse", "ask", payee.device, "5.00"))
    assert invoice.read_text().startswith("JZP1/")
    shown = run("purse", "pay", payer.device, str(invoice), "--qr", "--svg", str(payer.directory / "pay.svg"))
    assert "▀" in shown or "█" in shown
    assert (payer.directory / "pay.svg").read_bytes().startswith(b"<?xml")
    frames = payer.directory / "frames.txt"
    frames.write_text(run("purse", "pay", payer.device, str(invoice)))
    run("purse", "receive", payee.device, str(frames))
    assert (payer.show()["balance_minor"], payer.show()["payments"], payee.show()["balance_minor"]) == (
        "29500",
        1,
        "500",
    )


@pytest.mark.extended
def test_hacked_device_is_proven_to_a_stranger(people: tuple[Person, Person, Person], service: Service) -> None:
    payer, payee, third = people
    shutil.copytree(payer.device, payer.directory / "copy")
    pay(payer, payee, "200.00", "--to-account")
    shutil.rmtree(payer.device)
    shutil.copytree(payer.directory / "copy", payer.device)
    pay(payer, third, "200.00", "--to-account", name="again")
    for person in (payee, third):
        vault = next(iter(service.ledger.accounts.values()))
        service.ledger.fund(vault.number, 20_000)
        assert "CNY 200.00 to the wallet" in run("purse", "sync", person.device)
    proof, key, other = (payer.directory / name for name in ("proof", "key.json", "other.json"))
    run("purse", "proof", payer.show()["purse"], str(proof), *payer.client)
    key.write_text(json.dumps(service.keys["bank"].public.to_jwk()))
    other.write_text(json.dumps(PrivateKey.generate().public.to_jwk()))
    assert "PROVEN" in run("verify-double-spend", str(proof), "--institution-key", str(key))
    found = json.loads(run("verify-double-spend", str(proof), "--institution-key", str(key), "--json"))
    assert (found["purse"], found["account"]) == (payer.show()["purse"], payer.show()["account"])
    assert "certificate-invalid" in run("verify-double-spend", str(proof), "--institution-key", str(other), fails=True)
    proof.write_bytes(proof.read_bytes()[:-1])
    assert "no proof" in run("verify-double-spend", str(proof), "--institution-key", str(key), fails=True)
    # The next payee, who has synced since, takes nothing from it.
    run("purse", "ask", third.device, "1.00", "--out", str(third.directory / "last.ask"))
    last = payer.directory / "last.pay"
    run("purse", "pay", payer.device, str(third.directory / "last.ask"), "--out", str(last))
    assert "device-revoked" in run("purse", "receive", third.device, str(last), fails=True)


@pytest.mark.extended
def test_errors_say_what_to_do(tmp_path: Path, people: tuple[Person, Person, Person]) -> None:
    payer, payee, _ = people
    assert "purse new" in run("purse", "show", str(tmp_path / "nothing"), fails=True)
    assert "cannot read" in run("purse", "pay", payer.device, str(tmp_path / "nothing"), fails=True)
    (tmp_path / "junk").write_bytes(b"junk")
    assert "message-invalid" in run("purse", "pay", payer.device, str(tmp_path / "junk"), fails=True)
    (tmp_path / "junk").write_text("JZP1/00000000/1/2/ABC\n")
    assert "1 of 2 frames" in run("purse", "pay", payer.device, str(tmp_path / "junk"), fails=True)
    assert "does not exist yet" in run("purse", "new", payer.device, fails=True)
    run("purse", "new", str(tmp_path / "blank"))
    assert "certificate first" in run("purse", "show", str(tmp_path / "blank"), fails=True)
    assert "purse-full" in run("purse", "ask", payer.device, "900.00", fails=True)
    assert "lost" in run("purse", "lost", payee.show()["purse"], *payee.client)

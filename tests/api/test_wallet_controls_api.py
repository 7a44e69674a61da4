"""Goal: dual control as a company meets it, over HTTP and from the command line: single payments, batches at once, and
what an outsider may send.
Method: the app with its PostgreSQL and a fake ledger; the commands run in this process.
"""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferKind
from tests.api.test_wallet_api import Service, open_wallet, service
from wallet.__main__ import app
from wallet.cli import controls as control_commands
from wallet.cli import payments as payment_commands
from wallet.cli import schedules as schedule_commands
from wallet.client.controls import payment_control
from wallet.contract import WalletView
from wallet.contract.controls import sign_control
from wallet.domain.rules import WalletClass

__all__ = ["service"]
ALONE, ALONE_DAY = 1_000, 2_500


@dataclass
class Company:
    """A wallet whose treasurer has its device; the director's key is no device's."""

    service: Service
    wallet: WalletView
    treasurer: PrivateKey
    payee: int
    director: PrivateKey = field(default_factory=PrivateKey.generate)

    @classmethod
    def of(cls, service: Service) -> Company:
        wallet, key, customer = open_wallet(service, WalletClass.I, deposit=100_000)
        payee, _, _ = open_wallet(service)
        with service.client("channel") as client:
            client.register_corporate(customer, legal_name="Teahouse", social_credit_code="91350100M000100Y43")
        return cls(service, wallet, key, payee.account)

    def set_rules(self) -> None:
        document = payment_control(
            self.wallet.wallet,
            [("treasurer", self.treasurer.public), ("director", self.director.public)],
            alone_max_minor=ALONE,
            alone_day_max_minor=ALONE_DAY,
            version=1,
            valid_until=system_clock() + timedelta(hours=1),
        )
        tokens = [sign_control(document, key) for key in (self.treasurer, self.director)]
        self.service.client(None).set_payment_control(self.wallet.wallet, tokens)

    def signed(self, amount_minor: int) -> tuple[UUID, str]:
        payment = ids.new_uuid7()
        token = self.service.client(None).instruct(
            TransferKind.PAYMENT,
            key=self.treasurer,
            ledger="cny",
            debit=ids.AccountNumber(self.wallet.account or 0),
            credit=self.payee,
            amount_minor=amount_minor,
            currency="CNY",
            transfer=payment,
        )
        return payment, token

    def pay(self, token: str) -> str:
        try:
            return self.service.client(None).submit_payment(token).state.value
        except ProblemResponse as error:
            return f"{error.status} {error.refusal}"

    @property
    def paid(self) -> int:
        return self.service.ledger.accounts[ids.AccountNumber(self.payee)].balance


@pytest.fixture
def company(service: Service) -> Company:
    return Company.of(service)


@pytest.mark.extended
def test_the_days_bound_over_http_one_by_one_and_at_once(company: Company) -> None:
    company.set_rules()
    reader, anybody = company.service.client("channel"), company.service.client(None)
    assert company.pay(company.signed(ALONE + 1)[1]) == "409 approval-needed"
    made = [company.signed(400) for _ in range(12)]
    groups = [[token for _, token in made[first : first + 3]] for first in range(0, 12, 3)]
    with ThreadPoolExecutor(4) as threads:
        answers = [item for group in threads.map(anybody.submit_payments, groups) for item in group]
    assert Counter(item.refusal or item.state.value for item in answers) == {"final": 6, "approval-needed": 6}
    assert company.paid == reader.payment_control(company.wallet.wallet).alone_today_minor == 2_400
    assert company.pay(company.signed(101)[1]) == "409 approval-needed"
    assert company.pay(company.signed(100)[1]) == "final"
    left = {payment: token for payment, token in made if company.pay(token) != "final"}
    assert len(left) == 6
    until = system_clock() + timedelta(hours=1)
    anybody.approve_payments(company.wallet.wallet, left, key=company.director, valid_until=until)
    assert [company.pay(token) for token in left.values()] == ["final"] * 6
    assert company.paid == ALONE_DAY + 6 * 400
    assert reader.payment_control(company.wallet.wallet).alone_today_minor == ALONE_DAY


def test_from_the_command_line(company: Company, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, wallet = company.service, ids.show("wlt", company.wallet.wallet)
    for module in (control_commands, payment_commands, schedule_commands):
        monkeypatch.setattr(module, "connect", lambda url, client_key: service.client("channel"))
        monkeypatch.setattr(module, "WalletClient", lambda url: service.client(None))
    service.keys["channel"].save(tmp_path / "channel.pem")
    monkeypatch.setenv("JIAOZI_CLIENT_KEY", str(tmp_path / "channel.pem"))
    persons = {"treasurer": company.treasurer, "director": company.director}
    for person, key in persons.items():
        key.save(tmp_path / f"{person}.pem")
        (tmp_path / f"{person}.json").write_text(json.dumps(key.public.to_jwk()))

    def run(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code == code, done.stderr
        return done.stdout

    named = [word for person in persons for word in ("--signatory", f"{person}={tmp_path / person}.json")]
    until = f"{system_clock() + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"
    rules = ("--alone", ALONE, "--alone-day", ALONE_DAY, "--valid-until", until, *named)
    tokens = [
        run("control", "sign", wallet, *rules, "--device-key", tmp_path / f"{person}.pem").strip() for person in persons
    ]
    assert f"{ALONE_DAY} a day" in run("control", "set", wallet, *tokens)
    for name, text in (("list", "[1]"), ("broken", "{"), ("key", '{"kty": []}')):
        (tmp_path / name).write_text(text)
        odd = ("--signatory", f"a={tmp_path / name}", "--device-key", tmp_path / "director.pem")
        run("control", "sign", wallet, *rules[:-4], *odd, code=1)
    run("control", "sign", wallet, *rules[:-4], *named[:2], "--device-key", tmp_path / "director.pem", code=1)
    device = ("--device-key", tmp_path / "treasurer.pem")
    lines = [run("payment", "sign", wallet, ids.show_account(company.payee), "9.00", *device).strip() for _ in range(4)]
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines))
    sent = json.loads(run("payment", "send", file, "--json", code=payment_commands.REFUSED))
    assert [item["refusal"] for item in sent] == [None, None, "approval-needed", "approval-needed"]
    assert "today so far 1800" in run("control", "show", wallet)
    third = tmp_path / "third"
    third.write_text(lines[2])
    assert "1 approved by treasurer" in run("control", "approve", wallet, third, "--yes", *device)
    sent = json.loads(run("payment", "send", file, "--json", code=payment_commands.REFUSED))
    assert [item["refusal"] for item in sent] == [None, None, "checker-is-maker", "approval-needed"]
    checker = ("--device-key", tmp_path / "director.pem")
    assert "4 approved by director" in run("control", "approve", wallet, file, "--yes", *checker)
    assert {item["state"] for item in json.loads(run("payment", "send", file, "--json"))} == {"final"}
    assert company.paid == 3_600
    standing = tmp_path / "standing"
    later = f"{system_clock() + timedelta(days=40):%Y-%m-%d}"
    monthly = ("--on", later, "--frequency", "monthly", "--count", 3, "--for-approval", standing)
    run("schedule", "create", wallet, ids.show_account(company.payee), "20.00", *monthly, *device)
    said = run("control", "approve", wallet, standing, "--yes", "--valid-hours", 5_000, *checker)
    assert "3 approved by director" in said
    file.write_text("")
    run("control", "approve", wallet, file, "--yes", *checker, code=1)
    file.write_text("nonsense")
    run("control", "approve", wallet, file, "--yes", *checker, code=1)

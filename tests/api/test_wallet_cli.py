"""Goal: the commands for events, webhooks, customers, wallets, payments and exchanges do and print what they say.
Method: the app with a fake ledger; the commands run in this process, their HTTP goes to the app.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.client import ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_api import Service, open_wallet, service
from tests.commands import run_here
from wallet.__main__ import app
from wallet.cli import customers, events, lifecycle, payments
from wallet.client import WalletClient
from wallet.contract.events import EventPage
from wallet.domain.rules import WalletClass

__all__ = ["service"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    service.keys["channel"].save(tmp_path / "channel.pem")
    monkeypatch.setenv("JIAOZI_CLIENT_KEY", str(tmp_path / "channel.pem"))
    roles = ["channel"]
    for module in (customers, events, lifecycle, payments):
        monkeypatch.setattr(module, "connect", lambda url, client_key: service.client(roles[0]))
    for module in (events, payments):
        monkeypatch.setattr(module, "WalletClient", lambda url: service.client(None))

    def invoke(*words: object, role: str = "channel") -> tuple[int, str, str]:
        roles[0] = role
        done = CliRunner().invoke(app, [str(word) for word in words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout, done.stderr

    return invoke


def test_customer_and_wallet(service: Service, run: Run, tmp_path: Path) -> None:
    PrivateKey.generate().save(tmp_path / "device.pem")
    code, out, _ = run("customer", "add", "--name", "Li Si", "--evidence", "phone", "--evidence", "id", "--json")
    customer = json.loads(out)["customer"]
    assert code == 0
    assert "Li Si" in run("customer", "show", customer)[1]
    company = ("--legal-name", "Teahouse", "--social-credit-code", "91350100M000100Y43")
    assert run("customer", "make-corporate", customer, *company)[0] == 0
    assert json.loads(run("customer", "corporate", customer, "--json")[1])["legal_name"] == "Teahouse"
    device = ("--device-key", tmp_path / "device.pem")
    code, out, error = run("wallet", "add", customer, "--class", "IV", *device, "--json")
    wallet = json.loads(out)["wallet"]
    assert (code, error.strip()) == (0, f"wallet {wallet}")
    assert wallet in run("wallet", "list", "--customer", customer)[1]
    assert [item["wallet"] for item in json.loads(run("wallet", "list", "--json")[1])] == [wallet]
    assert json.loads(run("wallet", "list", "--customer", ids.show("cus", ids.new_uuid7()), "--json")[1]) == []
    code, _, error = run("wallet", "show", "wlt_nonsense")
    assert (code, error.startswith("wlt_nonsense: ")) == (1, True)
    assert json.loads(run("life", "suspend", wallet, "--json")[1])["state"] == "done"
    assert "suspended" in run("wallet", "show", wallet)[1]
    assert json.loads(run("life", "lift", wallet, "--json", role="operator")[1])["state"] == "done"


def test_payments_signed_here_and_sent_together(service: Service, run: Run, tmp_path: Path) -> None:
    payer, key, _ = open_wallet(service, deposit=100_000)
    payee, _, _ = open_wallet(service, WalletClass.II)
    key.save(tmp_path / "device.pem")
    wallet, device = ids.show("wlt", payer.wallet), ("--device-key", tmp_path / "device.pem")
    tokens = [
        run("payment", "sign", wallet, ids.show_account(payee.account), amount, *device)[1].strip()
        for amount in ("1.00", "2.50", "5000.00")
    ]
    file = tmp_path / "tokens"
    file.write_text("\n".join(tokens) + "\n")
    for _ in range(2):  # lost answer: the same file again
        code, out, _ = run("payment", "send", file, "--json")
        assert code == payments.REFUSED
        assert [item["state"] for item in json.loads(out)] == ["final", "final", "refused"]
    assert service.ledger.accounts[payee.account].balance == 350
    first = json.loads(out)[0]["payment"]
    assert "1.00" in run("payment", "show", first)[1]
    assert json.loads(run("payment", "refunds", first, "--json")[1])["refundable_minor"] == "100"
    assert len(json.loads(run("payment", "list", wallet, "--json")[1])) == 3
    assert json.loads(run("exchange-out", wallet, "3.00", *device, "--json")[1])["state"] == "final"
    file.write_text("")
    assert "0 payments" in run("payment", "send", file)[2]
    assert json.loads(run("institution", "--json")[1])["participant"] == "BKCHCNBJ"


def test_orders_to_the_bridge_from_a_file(service: Service, run: Run, tmp_path: Path) -> None:
    order = {
        "instruction_id": "6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28",
        "ledger": "cny",
        "pay_currency": "CNY",
        "pay_amount_minor": "100",
        "credit_account": ids.show_account(12),
        "receive_currency": "AED",
        "receive_amount_minor_min": "50",
        "valid_until": "2099-01-01T00:00:00Z",
    }
    file = tmp_path / "orders.json"
    file.write_text(json.dumps([order]))
    code, out, error = run("settlement", "order", file, "--json", role="operator")
    assert (code, [item["refusal"] for item in json.loads(out)]) == (0, [None]), error
    file.write_text(json.dumps([order | {"ledger": 5}]))
    code, _, error = run("settlement", "order", file)
    assert (code, "0.ledger" in error) == (1, True)
    file.write_text("[" * 100_000)
    assert run("settlement", "order", file)[0] == 1


def test_events_are_read_on_from_a_bookmark(service: Service, run: Run, tmp_path: Path) -> None:
    open_wallet(service, deposit=100_000)
    wait_for_events(service, "money.received")
    bookmark = tmp_path / "bookmark"
    seen: list[dict[str, Any]] = []
    for _ in range(50):
        code, out, error = run("events", "--json", "--limit", "1", "--bookmark", bookmark)
        assert code == 0, error
        if not out:
            break
        seen += map(json.loads, out.splitlines())
    assert len(seen) == len({event["event"] for event in seen}) >= 2
    sequences = [event["sequence"] for event in seen]
    assert sequences == sorted(sequences)
    code, out, _ = run("events")
    assert len(out.splitlines()) == len(seen)
    assert run("events", "--bookmark", bookmark, "--after", "x")[0] == 1


@pytest.mark.extended
def test_following_waits_and_survives_a_restart(
    service: Service, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_wallet(service, deposit=100_000)
    wait_for_events(service, "money.received")
    asked, read = [0], WalletClient.events

    def then_stop(self: WalletClient, **query: Any) -> EventPage:
        asked[0] += 1
        if asked[0] == 2:
            raise ServiceUnreachable("restarting")
        if asked[0] == 4:
            raise KeyboardInterrupt
        return read(self, **query)

    monkeypatch.setattr(WalletClient, "events", then_stop)
    done = CliRunner().invoke(app, ["events", "--follow", "--every", "0.1", "--json"])
    assert asked[0] == 4
    found = [json.loads(line)["event"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == len(set(found)) >= 2
    assert "asking again" in done.stderr


@pytest.mark.extended
def test_webhooks_and_their_dead_letters(service: Service, run: Run) -> None:
    code, out, error = run("webhook", "add", "http://127.0.0.1:9/hook", "--type", "wallet.opened", "--json")
    assert code == 0, error
    endpoint = json.loads(out)["endpoint"]
    assert endpoint in error
    assert endpoint in run("webhook", "list")[1]
    assert json.loads(run("webhook", "disable", endpoint, "--json")[1])["state"] == "disabled"
    open_wallet(service)
    events_seen = wait_for_events(service)
    opened = [event for event in events_seen if event["type"] == "wallet.opened"]
    assert json.loads(run("webhook", "enable", endpoint, "--json")[1])["state"] == "enabled"
    code, out, error = run("webhook", "replay", endpoint, "--event", opened[0]["event"], "--json")
    assert (code, json.loads(out)["deliveries"]) == (0, 1), error
    assert run("webhook", "deliveries", endpoint)[0] == 0
    assert json.loads(run("webhook", "deliveries", endpoint, "--state", "dead", "--json")[1]) == []
    assert "no dead letters" in run("webhook", "replay", endpoint, "--dead")[2]
    assert "say which events" in run("webhook", "replay", endpoint)[2]
    assert run("webhook", "replay", endpoint, "--since", "2020-01-01", "--until", "2020-01-02")[0] == 0
    [key] = json.loads(run("webhook", "keys")[1])
    assert key["crv"] == "Ed25519"


def wait_for_events(service: Service, awaited: str = "wallet.opened") -> list[dict[str, Any]]:
    """Events have their place in the feed once the worker has given it to them."""
    deadline = time.monotonic() + 20
    with service.client("channel") as client:
        while time.monotonic() < deadline:
            page = client.events()
            if awaited in {item.type.value for item in page.items}:
                return [item.model_dump(mode="json") for item in page.items]
            time.sleep(0.05)
    raise AssertionError("no events")


def test_what_fits_no_request_is_said_in_one_line(tmp_path: Path) -> None:
    PrivateKey.generate().save(tmp_path / "key.pem")
    words = ("customer", "add", "--phone", "x", "--client-key", str(tmp_path / "key.pem"))
    done = run_here("wallet", *words, JIAOZI_WALLET_PUBLIC_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("phone: ")
    assert "Traceback" not in done.stderr

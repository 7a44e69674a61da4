"""Goal: interest, reserves and the exchange check over HTTP and from a terminal; the real ledger takes interest.
Method: the app with a fake ledger and a clock moved by hand; then one quarter against the real ledger on a socket.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from uuid import UUID

import pytest
from fastapi import FastAPI
from typer.testing import CliRunner

from kernel import ids
from kernel.clock import ManualClock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from ledger.client import LedgerClient
from ledger.contract import IssueAction, TransferKind
from tests.api.test_wallet_api import Service, open_wallet, service
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, scheme
from wallet.__main__ import app as cli
from wallet.cli import interest as commands
from wallet.domain.reserves import OperatorKind
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.usecases.context import Context

__all__ = ["scheme", "service"]
Run = Callable[..., tuple[int, str]]


def wind(service: Service, *, operator_kind: OperatorKind = OperatorKind.BANK) -> ManualClock:
    """The app under the pack of 2026, on a clock of the test's, noon of 15 June 2026 in Shanghai."""
    pack, clock = load_rule_pack("ecny-2026-01"), ManualClock(datetime(2026, 6, 15, 4, tzinfo=UTC))
    app = service.http.app
    assert isinstance(app, FastAPI)
    app.state.context = replace(app.state.context, pack=pack, packs=(), clock=clock, operator_kind=operator_kind)
    app.state.sandbox_bank._clock = clock
    service.ledger._clock = clock
    service.ledger.classes |= {rule_class.name: rule_class for rule_class in ledger_rule_classes(pack)}
    return clock


@pytest.fixture
def run(service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    service.keys["operator"].save(tmp_path / "operator.pem")
    monkeypatch.setattr(commands, "connect", lambda url, client_key: service.client("operator"))

    def invoke(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, [*arguments, "--client-key", str(tmp_path / "operator.pem")])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.stdout

    return invoke


def open_at_noon(service: Service, wallet_class: WalletClass, deposit: int) -> UUID:
    wallet, _, _ = open_wallet(service, wallet_class, deposit=deposit)
    found: UUID = wallet.wallet
    return found


@pytest.mark.extended
def test_a_quarter_over_http_and_in_the_terminal(service: Service, run: Run) -> None:
    clock = wind(service)
    rich = open_at_noon(service, WalletClass.I, 3_650_000_00)
    poor = open_at_noon(service, WalletClass.III, 73_00)
    anonymous = open_at_noon(service, WalletClass.IV, 73_00)
    clock.advance(timedelta(days=2))
    with service.client("channel") as client:
        now = client.get_interest(rich)
        assert (now.first_on, now.last_on, now.exact_minor, now.accrued_minor) == (
            date(2026, 6, 15),
            date(2026, 6, 16),
            "1000",
            1000,
        )
        assert (now.next_settled_on, now.next_credited_on) == (date(2026, 6, 20), date(2026, 6, 21))
        assert (now.rate_ppm_per_year, now.rate_assumed) == (500, True)
        assert client.get_interest(poor).exact_minor == "1/50"
        assert (client.get_interest(anonymous).rate_ppm_per_year, client.get_interest(anonymous).days) == (0, [])
        assert service.refusal(lambda: client.get_interest(ids.new_uuid7())) == (404, "wallet-not-found")
        assert service.refusal(lambda: client.run_interest()) == (403, "not-permitted")
    code, shown = run("interest", "preview", "--json")
    assert (code, json.loads(shown.splitlines()[-1])) == (
        0,
        {"wallets": 3, "exact_minor": "50001/50", "accrued_minor": "1000", "remainder_minor": "1/50"},
    )
    code, shown = run("interest", "run", "--json")
    assert (code, json.loads(shown)["settled"]) == (0, 0)
    clock.advance(timedelta(days=4))
    with service.client("channel") as client:
        service.ledger.fund(client.institution().ledgers[0].vault, 3000)
    assert run("interest", "run") == (0, "quarter to 2026-06-20: 3 wallets settled, 1 credits booked\n")
    assert run("interest", "run") == (0, "quarter to 2026-06-20: 0 wallets settled, 0 credits booked\n")
    with service.client("operator") as client:
        [settled] = client.interest_settlements(rich)
        assert (settled.credited_minor, settled.state.value, settled.remainder_minor) == (3000, "credited", "0")
        [small] = client.interest_settlements(poor)
        assert (small.credited_minor, small.state.value, small.remainder_minor) == (0, "nothing", "3/50")
        [total] = client.interest_totals()
        assert Fraction(total.exact_minor) == total.credited_minor + Fraction(total.remainder_minor)
        assert (total.settlements, total.credited_minor, total.remainder_minor) == (3, 3000, "3/50")
        lines = [line for line in client.history(rich) if line.kind is TransferKind.INTEREST]
        assert [line.amount_minor for line in lines] == [3000]
    assert "0.060000 minor units" in run("interest", "totals")[1]
    code, shown = run("interest", "statement", ids.show("wlt", rich))
    assert "credited" in shown
    assert "[day count and rounding assumed]" in shown


def test_reserve_base_of_a_bank_and_margin_of_another_operator(service: Service, run: Run) -> None:
    clock = wind(service)
    open_at_noon(service, WalletClass.I, 1_000_00)
    open_at_noon(service, WalletClass.IV, 1_01)
    clock.advance(timedelta(days=1))
    open_at_noon(service, WalletClass.I, 5_00)  # after the day
    code, shown = run("reserve", "report", "--day", "2026-06-15", "--output", "json")
    found = json.loads(shown)
    assert (code, found["total_minor"], found["reserve_base_minor"], found["margin_required_minor"]) == (
        0,
        "100101",
        "100101",
        "0",
    )
    assert (found["class_I_minor"], found["class_IV_minor"]) == ("100000", "101")
    app = service.http.app
    assert isinstance(app, FastAPI)
    app.state.context = replace(app.state.context, operator_kind=OperatorKind.NON_BANK)
    code, shown = run("reserve", "report", "--day", "2026-06-15", "--margin-held", "1001.00", "--output", "csv")
    heading, values = (line.split(",") for line in shown.splitlines())
    row = dict(zip(heading, values, strict=True))
    assert (code, row["margin_required_minor"], row["shortfall_minor"], row["reserve_base_minor"]) == (
        commands.SHORTFALL,
        "100101",
        "1",
        "0",
    )
    assert run("reserve", "report", "--day", "2026-06-15", "--margin-held", "1001.01")[0] == 0
    with service.client("operator") as client:
        assert service.refusal(lambda: client.reserve_report(date(2026, 6, 16))) == (422, "validation-failed")


def test_exchange_check_over_http_says_what_to_do_next(service: Service, run: Run) -> None:
    clock = wind(service)
    open_at_noon(service, WalletClass.II, 1_000)
    code, shown = run("exchange-check", "--day", "2026-06-15")
    assert (code, shown) == (0, "2026-06-15: 1 exchanges, 1 postings, 1 vault lines, 0 breaks\n")
    [transfer] = service.ledger.booked
    del service.ledger.booked[transfer]
    clock.advance(timedelta(hours=1))
    code, shown = run("exchange-check", "--day", "2026-06-15", "--json")
    [found] = json.loads(shown)["breaks"]
    assert (code, found["kind"], found["side"], found["age_seconds"]) == (
        commands.BREAKS,
        "missing-in-ledger",
        "ledger",
        3600,
    )
    assert found["next_step"].startswith("give the deposit back")
    with service.client("channel") as client:
        assert service.refusal(lambda: client.check_exchanges(date(2026, 6, 15))) == (403, "not-permitted")


def test_the_real_ledger_books_the_interest_once(scheme: Scheme) -> None:
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    vault = client.institution().ledgers[0].vault
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=100_000_000, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)
    customer = client.create_customer(evidence=list(Evidence)).customer
    wallet = client.open_wallet(
        customer=customer, wallet_class=WalletClass.II, device_key=scheme.keys["bank"].public
    ).wallet
    client.simulate_deposit(customer=customer, amount_minor=36_500_000)
    assert client.exchange_in(wallet=wallet, amount_minor=36_500_000, currency="CNY").state == "final"
    app = scheme.wallet_http.app
    assert isinstance(app, FastAPI)
    context: Context = app.state.context
    pack = load_rule_pack("ecny-2026-01")
    today = system_clock().astimezone(context.time_zone).date()
    year, month = (today.year, -(-today.month // 3) * 3)
    settled_on = date(year, month, 20)
    if settled_on < today:
        month += 3
        settled_on = date(year + (month > 12), month - 12 if month > 12 else month, 20)
    late = datetime(settled_on.year, settled_on.month, 21, 1, tzinfo=context.time_zone)
    app.state.context = replace(context, pack=pack, packs=(), clock=ManualClock(late))
    desk = scheme.wallet("operator")
    days = (settled_on - today).days + 1
    assert desk.run_interest().credited == 1
    assert desk.run_interest().is_finished
    [settled] = desk.interest_settlements(wallet)
    assert (settled.exact_minor, settled.credited_minor, settled.state.value) == (str(50 * days), 50 * days, "credited")
    lines = [line for line in client.history(wallet) if line.kind is TransferKind.INTEREST]
    assert [(line.amount_minor, line.transfer) for line in lines] == [(50 * days, settled.transfer)]
    app.state.context = context
    checked = desk.check_exchanges(today)
    assert (checked.exchanges, checked.vault_lines, checked.breaks) == (1, 1, [])

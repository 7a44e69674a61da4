"""Goal: the replay reads the service's real past: payments, classes, families of movements, in the ledger's order.
Method: payments made through the use cases on a real PostgreSQL, then replayed under a stricter pack.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kernel import ids
from kernel.clock import to_micros
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from tests.wallet_bank import Bank
from wallet.cli.rules import WOULD_REFUSE, app
from wallet.domain.rule_replay import Refused
from wallet.domain.rules import WalletClass
from wallet.rulepack_files import load_rule_pack
from wallet.usecases import lifecycle
from wallet.usecases.pay import pay_one
from wallet.usecases.rule_replay import replay_payments


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    return fresh_database("wallet")


@pytest.fixture
def bank(url: str) -> Iterator[Bank]:
    database = Database(url, application_name="test")
    yield Bank(database)
    database.close()


def history(bank: Bank) -> list[str]:
    """Under 2021-06: all of it is booked. Returns the ids of what 2020-08 would have refused."""
    payer, payee = bank.holder(WalletClass.III, funds=50_000_00), bank.holder(WalletClass.II)
    would_refuse = []
    for amount, is_refused in ((2_000_00, False), (1, True), (3_000_00, True)):
        payment = pay_one(bank.context, bank.instruction(payer, payee.account, amount))
        assert payment.state == "final"
        would_refuse += [ids.show("trf", payment.id)] if is_refused else []
    bank.clock.advance(timedelta(days=1))
    lifecycle.change_class(bank.context, bank.new_id(), payer.wallet.id, WalletClass.II)
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 5_000_00)).state == "final"  # II: single 5,000
    full = pay_one(bank.context, bank.instruction(payer, payee.account, 4_000_00))  # 7,000 and 4,000 are above 10,000
    return [*would_refuse, ids.show("trf", full.id)]


def test_replay_names_the_payments_that_the_pack_would_have_refused(bank: Bank) -> None:
    expected = history(bank)
    found: list[Refused] = []
    seen: list[tuple[int, int]] = []
    totals = replay_payments(
        bank.database,
        load_rule_pack("ecny-2020-08"),
        until=bank.clock() + timedelta(seconds=1),
        refused=found.append,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert [ids.show("trf", item.payment) for item in found] == expected
    assert [item.refusal.value for item in found] == [
        "day-limit-exceeded",
        "single-limit-exceeded",
        "balance-limit-exceeded",
    ]
    assert dict(totals.payments) == {WalletClass.III: 3, WalletClass.II: 2}
    assert seen[-1] == (5, 5)


def test_what_came_after_is_not_replayed(bank: Bank) -> None:
    before = bank.clock()
    bank.clock.advance(timedelta(minutes=1))
    history(bank)
    totals = replay_payments(bank.database, load_rule_pack("ecny-2020-08"), until=before, refused=lambda item: None)
    assert (totals.payments.total(), totals.refused.total()) == (0, 0)
    assert to_micros(before) < to_micros(bank.clock())


def test_command_prints_json_lines_with_totals_and_its_own_exit_code(bank: Bank, url: str, tmp_path: Path) -> None:
    expected = history(bank)
    key = tmp_path / "bank.pem"
    PrivateKey.generate().save(key)
    (tmp_path / "clients.json").write_text("[]")
    settings = {
        "JIAOZI_WALLET_DATABASE_URL": url,
        "JIAOZI_WALLET_PARTICIPANT": "BKCHCNBJ",
        "JIAOZI_WALLET_SIGNING_KEY_PATH": str(key),
        "JIAOZI_WALLET_CLIENTS_PATH": str(tmp_path / "clients.json"),
    }
    arguments = ["diff", "ecny-2021-06", "ecny-2020-08", "--replay", "--output", "json"]
    done = CliRunner().invoke(app, arguments, env=settings)
    assert done.exit_code == WOULD_REFUSE, done.output
    *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["payment"] for line in lines] == expected
    of_class = {item["class"]: item for item in last["totals"]}
    assert of_class["III"]["refused"]["day-limit-exceeded"] == {"count": 1, "amount_minor": "1"}
    assert of_class["IV"] == {"class": "IV", "payments": 0, "refused": {}}
    table = CliRunner().invoke(app, [*arguments[:4], "--output", "csv"], env=settings)
    assert table.stdout.splitlines()[0] == "payment,wallet,class,amount_minor,booked_at,refusal"
    assert len(table.stdout.splitlines()) == 4

"""Goal: a payroll of many lines reaches a real ledger from the command line, and neither a killed client nor a killed
service makes it pay a line twice or forget one.
Method: ledger and service over loopback, `jiaozi-wallet payroll` as a process (in this one where it only looks);
SIGKILL to either at random moments. The lines are more than go together at once (500), sent and carried.
JIAOZI_TEST_PAYROLL_LINES sets the size (10,000 for the measurement); the time it took is printed.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import show, show_account
from tests.wallet_processes import Opened, WalletWorld, running_wallet
from wallet.client.controls import payment_control
from wallet.contract.controls import sign_control
from wallet.contract.families import AliasKind
from wallet.domain.rules import WalletClass

LINES = int(os.environ.get("JIAOZI_TEST_PAYROLL_LINES", "600"))


def write_payroll(path: Path, payees: list[Opened], *, lines: int, amount: str = "1.25") -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["line_id", "payee", "amount", "description"])
        for number in range(lines):
            payee = show_account(payees[number % len(payees)].account)
            writer.writerow([f"2026-06/{number:05}", payee, amount, f"工资, 六月 {number}"])


def scene(world: WalletWorld, *, payees: int = 8, lines: int = LINES) -> tuple[Opened, list[Opened]]:
    world.issue(10**9)
    payer = world.open(WalletClass.I, deposit_minor=lines * 125 + 10_000)
    return payer, [world.open(WalletClass.I) for _ in range(payees)]


def run_payroll(world: WalletWorld, path: Path, payer: Opened, *flags: str, status: int = 0) -> tuple[str, str]:
    process = start_payroll(world, path, payer, *flags)
    out, error = process.communicate(timeout=300)
    assert process.returncode == status, error
    return out, error


def ask_payroll(world: WalletWorld, path: Path, payer: Opened, *flags: str, status: int = 0) -> tuple[str, str]:
    """The same in this process."""
    done = world.run_here("payroll", "run", path, *_arguments(payer), *flags)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def _arguments(payer: Opened) -> tuple[str | Path, ...]:
    return ("--wallet", show("wlt", payer.view.wallet), "--device-key", payer.key_path)


def start_payroll(world: WalletWorld, path: Path, payer: Opened, *flags: str):  # type: ignore[no-untyped-def]
    return world.command("payroll", "run", path, *_arguments(payer), *flags)


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[WalletWorld]:
    """For tests that kill nobody; each has wallets of its own."""
    with running_wallet(fresh_databases, tmp_path_factory.mktemp("services")) as world:
        yield world


@pytest.mark.extended
def test_payroll_from_the_command_line(world: WalletWorld, tmp_path: Path) -> None:
    payer, payees = scene(world)
    path = tmp_path / "june.csv"
    write_payroll(path, payees, lines=LINES)
    began = time.monotonic()
    out, _ = ask_payroll(world, path, payer, "--dry-run", "--json")
    dry_seconds = time.monotonic() - began
    assert json.loads(out)["payable"] == LINES
    assert world.balance(payer) == LINES * 125 + 10_000
    began = time.monotonic()
    out, error = run_payroll(world, path, payer)
    seconds = time.monotonic() - began
    print(f"\n{LINES} lines: dry run {dry_seconds:.1f} s, paid and reported {seconds:.1f} s")
    assert f"{LINES} booked" in out
    assert world.balance(payer) == 10_000
    assert sum(world.balance(payee) for payee in payees) == LINES * 125
    with (tmp_path / "june.csv.result.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["state"] for row in rows} == {"booked"}
    assert [row["description"] for row in rows] == [f"工资, 六月 {number}" for number in range(LINES)]
    # Again, by mistake: refused on this side; and with the job file lost, by the service.
    _, error = ask_payroll(world, path, payer, status=1)
    assert "--resume" in error
    (tmp_path / "june.csv.job").unlink()
    world_balance = world.balance(payer)
    _, error = ask_payroll(world, path, payer, "--partial", status=1)
    assert "--again" in error
    assert world.balance(payer) == world_balance
    with world.client() as client:
        files = list(client.bulk_files(payer.view.wallet))
        assert [item.state.value for item in files] == ["finished"]
        served = client.bulk_result_csv(files[0].file).decode()
        assert served.count("\r\n") == LINES + 1
    assert f"{LINES} booked" in world.run_here("payroll", "status", show("blk", files[0].file)).stdout


def test_file_that_cannot_be_paid_whole_is_not_begun(world: WalletWorld, tmp_path: Path) -> None:
    payer, payees = scene(world, payees=1, lines=10)
    path = tmp_path / "bad.csv"
    write_payroll(path, payees, lines=3)
    path.write_text(path.read_text(encoding="utf-8") + f"x,{show_account(987_654_321)},1.00,\r\n", encoding="utf-8")
    _, error = ask_payroll(world, path, payer, status=1)
    assert "payee-unknown" in error
    assert not (tmp_path / "bad.csv.job").exists()
    path.write_text(path.read_text(encoding="utf-8").replace("1.00", "1.001"), encoding="utf-8")
    _, error = ask_payroll(world, path, payer, status=1)
    assert "line 5 x: amount" in error
    assert world.balance(payees[0]) == 0


@pytest.mark.slow
def test_I7_killed_client_and_killed_service_pay_each_line_once(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    chance = random.Random(7)
    lines = 1_200
    with running_wallet(fresh_database, tmp_path) as world:
        payer, payees = scene(world, payees=3, lines=lines)
        path = tmp_path / "killed.csv"
        write_payroll(path, payees, lines=lines)
        process = start_payroll(world, path, payer)
        kills = 0
        while kills < 6:
            time.sleep(chance.uniform(0.4, 1.6))
            if process.poll() is not None:
                break
            if kills % 2:
                world.kill()
                world.start()
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            resumed = ("--resume",) if (tmp_path / "killed.csv.job").exists() else ()
            process = start_payroll(world, path, payer, *resumed)
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        assert kills >= 1
        print(f"\n{kills} kills; {error[-80:]!r}")
        assert world.balance(payer) == 10_000
        assert [world.balance(payee) for payee in payees] == [lines // 3 * 125] * 3
        with world.client() as client:
            [file] = client.bulk_files(payer.view.wallet)
            done = client.get_bulk_file(file.file)
            assert (done.booked, done.refused) == (lines, 0)


def test_payees_by_alias_are_confirmed_by_name_and_paid(world: WalletWorld, tmp_path: Path) -> None:
    payer, payees = scene(world, payees=2, lines=3)
    with world.client() as client:
        for payee, alias in zip(payees, ("+8613912345678", "wang.wu@example.com"), strict=True):
            kind = AliasKind.EMAIL if "@" in alias else AliasKind.PHONE
            row = client.create_alias(payee.view.wallet, kind=kind, alias=alias)
            client.verify_alias(row.alias_id, client.simulated_codes()[0].code)
    path = tmp_path / "aliases.csv"
    lines = ["a,+86 139 1234 5678,1.25,", "b,Wang.Wu@example.com,1.25,", f"c,{show_account(payees[0].account)},1.25,"]
    path.write_text("\r\n".join(["line_id,payee,amount,description", *lines]) + "\r\n", encoding="utf-8")
    out, _ = ask_payroll(world, path, payer, "--dry-run", "--json")
    shown = [(line["account"], line["payee_name"], line["refusal"]) for line in json.loads(out)["lines"]]
    assert shown == [
        (show_account(payees[0].account), "*", None),  # its customer gave no name
        (show_account(payees[1].account), "*", None),
        (show_account(payees[0].account), None, None),
    ]
    _, error = ask_payroll(world, path, payer, status=1)  # nobody says yes
    assert "Wang.Wu@example.com is *" in error
    assert not path.with_name("aliases.csv.job").exists()
    ask_payroll(world, path, payer, "--yes")
    assert [world.balance(payee) for payee in payees] == [250, 125]
    path.write_text(path.read_text(encoding="utf-8").replace("Wang.Wu", "nobody"), encoding="utf-8")
    path.with_name("aliases.csv.job").unlink()
    _, error = ask_payroll(world, path, payer, "--yes", "--partial", status=1)
    assert "no alias that leads to one" in error


@pytest.mark.extended
def test_payroll_above_what_one_signature_may_pay_in_a_day_waits_for_a_second_person(
    world: WalletWorld, tmp_path: Path
) -> None:
    """Refused and approved afterwards; approved beforehand; and what the checker has seen is what is paid."""
    payer, payees = scene(world, payees=2, lines=20)
    treasurer, director = payer.key, PrivateKey.generate()
    director.save(tmp_path / "director.pem")
    with world.client() as client:
        client.register_corporate(payer.view.customer, legal_name="Teahouse", social_credit_code="91350100M000100Y43")
        document = payment_control(
            payer.view.wallet,
            [("treasurer", treasurer.public), ("director", director.public)],
            alone_max_minor=200,
            alone_day_max_minor=300,
            version=1,
            valid_until=system_clock() + timedelta(hours=1),
        )
        client.set_payment_control(payer.view.wallet, [sign_control(document, key) for key in (treasurer, director)])
    path, tokens = tmp_path / "controlled.csv", tmp_path / "tokens"

    def approve() -> None:
        wallet = show("wlt", payer.view.wallet)
        done = world.run_here("control", "approve", wallet, tokens, "--yes", "--device-key", tmp_path / "director.pem")
        assert done.returncode == 0, done.stderr

    def paid() -> list[int]:
        return [world.balance(payee) for payee in payees]

    write_payroll(path, payees, lines=6)
    out, _ = ask_payroll(world, path, payer, status=3)
    assert "2 booked" in out
    assert path.with_name("controlled.csv.result.csv").read_text(encoding="utf-8").count("approval-needed") == 4
    ask_payroll(world, path, payer, "--resume", "--retry", status=3)
    _, error = ask_payroll(world, path, payer, "--resume", "--retry", "--for-approval", str(tokens))
    assert "4 signed lines" in error
    assert paid() == [125, 125]
    approve()
    out, _ = ask_payroll(world, path, payer, "--resume", "--retry")
    assert "6 booked" in out
    assert paid() == [3 * 125, 3 * 125]

    path = tmp_path / "beforehand.csv"
    write_payroll(path, payees, lines=4, amount="2.50")
    ask_payroll(world, path, payer, "--for-approval", str(tokens))
    assert paid() == [3 * 125, 3 * 125]
    approve()
    out, _ = ask_payroll(world, path, payer, "--resume")
    assert "4 booked" in out
    assert paid() == [3 * 125 + 500] * 2

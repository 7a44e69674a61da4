"""Closings and balance proofs over HTTP and at the prompt.

Goal: an operator orders a closing, a bank fetches its holder's proof, and the holder verifies it with one command, the
file and the ledger's public key, while nothing runs; strangers get nothing.
Method: one real ledger on real PostgreSQL, the product's own client; the command in a process of its own, as typed,
and its variations in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.keys import PrivateKey
from kernel.transparency.notes import KeyKind, Note, VerifierKey
from ledger.client import ProofRefused, open_statement, verify_balance_proof
from ledger.log.keys import load_master
from ledger.log.leaves import block_commitment
from ledger.log.service import key_paths
from tests.commands import Done, run_here
from tests.ledger_world import LedgerWorld, running_ledger
from tests.sizes import some

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    with running_ledger(fresh_databases("ledger"), tmp_path_factory.mktemp("ledger"), log_enabled=True) as world:
        world.register(BANK)
        world.register(OTHER)
        yield world


@pytest.fixture(scope="module")
def log_key(world: LedgerWorld) -> VerifierKey:
    """What the ledger publishes about itself."""
    key_path, _ = key_paths(world.settings, world.ledger)
    return VerifierKey(world.ledger, KeyKind.ED25519, PrivateKey.load(key_path).public)


def refusal_of(call: object, *arguments: object) -> str:
    with pytest.raises(ProblemResponse) as caught:
        call(*arguments)  # type: ignore[operator]
    return caught.value.refusal


def as_typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JIAOZI_LEDGER_")}
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, "COLUMNS": "200"},
    )


def command(*arguments: str) -> Done:
    return run_here("ledger", *arguments)


def test_a_holder_verifies_his_balance_offline(world: LedgerWorld, log_key: VerifierKey, tmp_path: Path) -> None:
    vault = world.open_vault(BANK)
    world.issue(vault, 10_000)
    wallet = world.open_wallet(BANK, PrivateKey.generate())
    with world.client(BANK) as client:
        client.transfer(world.terms("exchange-in", vault, wallet, 1_250))
    with world.operator() as client:
        view = client.close_now()
    with world.client(BANK) as client:
        proof = client.balance_proof(view.closing, wallet)
    proved = verify_balance_proof(proof, log_key=log_key, account=wallet, balance_minor=1_250)
    with world.anonymous() as client:
        supply = client.supply()
        assert client.closing(view.closing) == view
        assert client.closings()[0] == view
    with world.operator() as client:
        head = client.block(proved.statement.block)
    assert proved.statement.circulation_minor == supply.circulation_minor
    assert head.hash is not None
    assert head.first_account is not None
    assert head.account_count is not None
    master = load_master(key_paths(world.settings, world.ledger)[1])
    assert proved.statement.block_commitment == block_commitment(master, head.number, head.hash)
    assert proved.statement.accounts == head.first_account + head.account_count - 2

    file = tmp_path / "proof.json"
    file.write_text(proof.model_dump_json())
    arguments = ("verify-balance", str(file), "--log-key", str(log_key), "--account", ids.show_account(wallet))
    done = as_typed(*arguments, "--balance", "12.50")
    assert done.returncode == 0, done.stderr
    assert "The balance is counted in full." in done.stdout
    assert "CNY 12.50" in done.stdout
    wrong = command(*arguments, "--balance", "12.51")
    assert (wrong.returncode, "proves a balance of 1250, not of 1251" in wrong.stderr) == (1, True)
    unknown = command("verify-balance", str(file), "--log-key", str(log_key))
    assert (unknown.returncode, "Compare account and balance" in unknown.stdout) == (0, True)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    some(
        [
            ('"sum_minor":"', '"sum_minor":"1', "error"),
            ('"salt":"', '"salt":"00', "hexadecimal"),
            ("{", "", "not a balance proof"),
            ('"balance_minor":"', '"balance_minor":"-', "amount"),
        ],
        each=4,
    ),
)
def test_the_command_says_in_one_line_what_is_wrong(
    world: LedgerWorld, log_key: VerifierKey, tmp_path: Path, old: str, new: str, said: str
) -> None:
    vault = world.open_vault(BANK)
    with world.operator() as client:
        closing = client.close_now().closing
    with world.client(BANK) as client:
        text = client.balance_proof(closing, vault).model_dump_json()
    file = tmp_path / "proof.json"
    file.write_text(text.replace(old, new, 1))
    done = command("verify-balance", str(file), "--log-key", str(log_key))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    missing = command("verify-balance", str(tmp_path / "none.json"), "--log-key", str(log_key))
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)
    file.write_text(text)
    no_key = command("verify-balance", str(file), "--log-key", "not a key")
    assert (no_key.returncode, "verifier key" in no_key.stderr) == (1, True)


def test_an_operator_closes_at_the_prompt(world: LedgerWorld, log_key: VerifierKey, tmp_path: Path) -> None:
    world.open_vault(BANK)
    key = tmp_path / "operator.pem"
    world.operators[0].save(key)
    done = command("close", "--key", str(key), "--url", world.url)
    assert done.returncode == 0, done.stderr
    assert Note.parse(done.stdout).text
    assert open_statement(done.stdout, log_key=log_key).kind == "order"
    participant = tmp_path / "bank.pem"
    world.participants[BANK].save(participant)
    refused = command("close", "--key", str(participant), "--url", world.url)
    assert (refused.returncode, "not-permitted" in refused.stderr) == (1, True)


def test_who_gets_what(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    with world.operator() as client:
        closing = client.close_now().closing
        assert client.balance_proof(closing, vault).account == vault
    later = world.open_vault(BANK)
    with world.client(OTHER) as client:
        assert refusal_of(client.balance_proof, closing, vault) == "account-not-found"
        assert refusal_of(client.close_now) == "not-permitted"
    with world.client(BANK) as client:
        assert refusal_of(client.balance_proof, closing, later) == "account-not-found"
        assert refusal_of(client.balance_proof, closing, 1) == "account-not-found"
        assert refusal_of(client.balance_proof, closing + 50, vault) == "closing-not-found"
        assert refusal_of(client.balance_proof, 2**70, vault) == "validation-failed"
    with world.anonymous() as client:
        assert refusal_of(client.balance_proof, closing, vault) == "signature-missing"
        assert refusal_of(client.close_now) == "signature-missing"
        assert refusal_of(client.closing, closing + 50) == "closing-not-found"
        assert refusal_of(client.closing, 0) == "validation-failed"


def test_a_proof_of_another_ledger_is_no_proof(world: LedgerWorld) -> None:
    vault = world.open_vault(BANK)
    with world.operator() as client:
        proof = client.balance_proof(client.close_now().closing, vault)
    stranger = VerifierKey(world.ledger, KeyKind.ED25519, PrivateKey.generate().public)
    with pytest.raises(ProofRefused, match="not signed by"):
        verify_balance_proof(proof, log_key=stranger)

"""Goal: a person with a receipt and public keys finds out by one command, offline, whether it stands.

Method: the commands against a real ledger with two witnesses, then without it; the decisive one in a process of its
own, as typed, the others in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.transparency.notes import KeyKind, VerifierKey
from tests.commands import Done, run_here
from tests.log_world import BANK, scene_on
from tests.roles import as_service


def as_typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JIAOZI_LEDGER_")}
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**clean, "COLUMNS": "200", **environment},
    )


def run(*arguments: str, **environment: str) -> Done:
    return run_here("ledger", *arguments, **environment)


@pytest.mark.extended
@pytest.mark.timeout(300)
def test_a_receipt_by_command(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    file, key_file = tmp_path / "receipt.json", tmp_path / "bank.pem"
    with scene_on(fresh_database("ledger"), tmp_path, witnesses=2) as scene:
        scene.world.participants[BANK].save(key_file)
        result = scene.pay()[0]
        assert result.id is not None
        scene.receipt(result, quorum=2)
        shown = run("log-key", "--url", scene.world.url)
        assert shown.stdout.strip() == str(scene.log_key), shown.stderr
        fetched = run(
            *("receipt", ids.show("trf", result.id), str(file), "--key", str(key_file)),
            *("--quorum", "2", "--url", scene.world.url),
        )
        assert fetched.returncode == 0, fetched.stderr
        again = run("receipt", ids.show("trf", result.id), str(file), "--key", str(key_file), "--url", scene.world.url)
        assert again.returncode == 1  # a receipt is not overwritten
    # the ledger and its witnesses are gone: what is left is the file and public keys
    trusted = ["--log-key", str(scene.log_key)]
    for witness in scene.witnesses:
        trusted += ["--witness", str(witness.key)]
    good = as_typed("verify-receipt", str(file), *trusted, "--quorum", "2")
    assert good.returncode == 0, good.stderr
    assert "The transfer is in the log." in good.stdout
    assert "CNY 0.03" in good.stdout
    assert "w0.example" in good.stdout

    other = VerifierKey("test-cny", KeyKind.ED25519, PrivateKey.generate().public)
    document = file.read_text()
    file.write_text(document.replace('"amount_minor":"3"', '"amount_minor":"4"'))
    for bad, message in (
        (run("verify-receipt", str(file), *trusted), "not in the log"),
        (run("verify-receipt", str(file), "--log-key", str(other)), "no signature of a known key"),
        (run("verify-receipt", str(file), "--log-key", "nonsense"), "name+id+key"),
    ):
        assert bad.returncode == 1
        assert message in bad.stderr
        assert "Traceback" not in bad.stderr

    database = {"JIAOZI_LEDGER_DATABASE_URL": as_service(scene.database_url), "JIAOZI_LEDGER_DATA_DIR": str(tmp_path)}
    checked = run("check-log", **database)
    assert checked.returncode == 0, checked.stderr
    assert "every tile and the root are right" in checked.stdout
    with scene.owner() as connection:
        connection.execute("UPDATE transfer SET reference = gen_random_uuid() WHERE seq = 1")
    altered = run("check-log", **database)
    assert altered.returncode == 1
    assert "seq 1 is not what was sealed" in altered.stderr

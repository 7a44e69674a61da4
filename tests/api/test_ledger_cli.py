"""`jiaozi-ledger` at the prompt: what is missing is one line that says what to do, and nothing is left behind.

Goal: a person who starts it wrong is helped, not shown a traceback.
Method: the command in a process of its own, as typed, where processes are the point; else in this one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.postgres import EmbeddedPostgres
from tests.commands import run_here


def as_typed(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("JIAOZI_LEDGER_")}
    return subprocess.run(
        [sys.executable, "-m", "ledger", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**clean, "COLUMNS": "200", **environment},
    )


@pytest.mark.extended
def test_serve_without_genesis_says_what_to_set_and_leaves_no_server(server_dir: Path) -> None:
    done = as_typed("serve", JIAOZI_LEDGER_DATA_DIR=str(server_dir))
    assert done.returncode == 1
    assert "JIAOZI_LEDGER_GENESIS_PATH" in done.stderr
    assert "Traceback" not in done.stderr
    assert not EmbeddedPostgres(server_dir).is_running()


def test_verify_makes_no_database_to_find_nothing_wrong_in(server_dir: Path) -> None:
    done = run_here("ledger", "verify", JIAOZI_LEDGER_DATA_DIR=str(server_dir / "none"))
    assert done.returncode == 1
    assert "there is no ledger" in done.stderr
    assert not (server_dir / "none" / "cluster").exists()


def test_verify_of_an_empty_journal_is_no_success(fresh_database: object) -> None:
    url = fresh_database("ledger")  # type: ignore[operator]
    done = run_here("ledger", "verify", "--database-url", url)
    assert done.returncode == 1
    assert "empty" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("JIAOZI_LEDGER_PROT", "1", "did you mean JIAOZI_LEDGER_PORT"),
        ("JIAOZI_LEDGER_PORT", "99999", "JIAOZI_LEDGER_PORT"),
        ("JIAOZI_LEDGER_DATABASE_URL", "mysql://x", "postgresql://"),
    ],
)
def test_settings_that_cannot_be_are_named(name: str, value: str, said: str) -> None:
    done = run_here("ledger", "serve", **{name: value})
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr

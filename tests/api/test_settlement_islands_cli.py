"""Goal: a third party runs the conformance suite on its own adapter by one command, and puts an escrow on a chain.

Method: the command itself, over the packaged example, over adapters that are wrong or are none, and over anvil.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from settlement.__main__ import app
from settlement.conformance import CASES, Subject
from settlement.conformance.example import FakeSubject
from settlement.islands.evm.contracts import ESCROW
from settlement.islands.evm.rpc import Node
from settlement.islands.port import HoldStanding, Island
from tests.islands_world import ANVIL_KEY, anvil

FAKE = "settlement.conformance.example:fake"


@contextmanager
def broken(config: Mapping[str, Any]) -> Iterator[Subject]:
    """A third party's factory: its island says that everything stands held."""

    class Broken(FakeSubject):
        patience_seconds = config["patience_seconds"]

        @property
        def island(self) -> Island:
            found = super().island
            found.look_up = lambda orders: [HoldStanding.HELD] * len(orders)  # type: ignore[method-assign]
            return found

    yield Broken()


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["conformance", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_an_adapter_that_passes() -> None:
    code, text, _ = run("--adapter", FAKE, "--json")
    document = json.loads(text)
    assert code == 0
    assert document["counts"] == {"passed": len(CASES) - 5, "failed": 0, "not run": 5}
    not_run = [item for item in document["cases"] if item["result"] == "not run"]
    assert all(item["detail"] for item in not_run)
    code, text, _ = run("--adapter", FAKE, "--case", "hold", "--case", "void")
    assert code == 0
    assert "2 passed" in text


def test_an_adapter_that_fails(tmp_path: Path) -> None:
    config = tmp_path / "mine.json"
    config.write_text('{"patience_seconds": 0.05}')
    name = f"{__name__}:broken"
    code, text, _ = run("--adapter", name, "--config", str(config), "--json", "--case", "hold", "--case", "look-up")
    assert code == 1
    found = {item["case"]: item["result"] for item in json.loads(text)["cases"]}
    assert found == {"hold": "failed", "look-up": "failed"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--adapter", "nothing"], "module:factory"),
        (["--adapter", "settlement.conformance.example:nothing"], "module:factory"),
        (["--adapter", FAKE, "--case", "nothing"], "no such case"),
        (["--adapter", "settlement.conformance.evm:on_node"], "url"),
    ],
)
def test_what_cannot_start_says_why(arguments: list[str], said: str) -> None:
    code, _, errors = run(*arguments)
    assert code == 2
    assert said in errors


def test_a_node_of_ones_own(tmp_path: Path) -> None:
    key = tmp_path / "funded.key"
    key.write_text(ANVIL_KEY)
    key.chmod(0o600)
    with anvil() as url:
        deploy = ["islands", "deploy-escrow", "--node", url, "--key", str(key), "--json"]
        result = CliRunner().invoke(app, deploy)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)
        node = Node(url)
        assert node.call("eth_getCode", found["escrow"], "latest") == "0x" + ESCROW.runtime.hex()
        assert found["chain_id"] == 61_338
        config = tmp_path / "node.json"
        config.write_text(json.dumps({"url": url, "key_path": str(key), "confirmations": 1}))
        code, text, _ = run(
            *("--adapter", "settlement.conformance.evm:on_node", "--config", str(config), "--json"),
            *("--case", "post", "--case", "void-before-hold"),
        )
        assert (code, json.loads(text)["counts"]["passed"]) == (0, 2)
        key.chmod(0o644)
        assert CliRunner().invoke(app, deploy).exit_code == 2
        node.close()

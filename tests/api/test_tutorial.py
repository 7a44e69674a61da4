"""Goal: the tutorial works as it is printed.
Method: its code blocks, in their order, against a real ledger and a real wallet service: Python in one session, each
shell block by bash; what a block prints is compared with the `text` block after it (`…` stands for anything).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.bank_world import BankWorld, running_bank

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
_FENCE = re.compile(r"^```(\w+)( sandbox)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    kind: str
    is_sandbox: bool
    """What brings the services up; the test has services of its own."""
    code: str
    line: int
    expected: str | None


def blocks() -> list[Block]:
    text = TUTORIAL.read_text(encoding="utf-8")
    found = [(match, text.count("\n", 0, match.start()) + 2) for match in _FENCE.finditer(text)]
    made = []
    for index, (match, line) in enumerate(found):
        following = found[index + 1][0] if index + 1 < len(found) else None
        expected = following[3] if following is not None and following[1] == "text" else None
        if match[1] != "text":
            made.append(Block(match[1], bool(match[2]), match[3], line, expected))
    return made


@pytest.mark.extended
def test_every_block_of_the_tutorial_does_what_it_says(
    fresh_database: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_bank(fresh_database, tmp_path) as world:
        for name, value in _environment(world).items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)
        session: dict[str, object] = {"__name__": "tutorial"}
        compared = 0
        for block in blocks():
            if block.is_sandbox:
                continue
            printed = _python(block, session) if block.kind == "python" else _shell(block)
            if block.expected is not None:
                assert _matches(printed, block.expected), f"line {block.line} of the tutorial printed: {printed}"
                compared += 1
        assert compared >= 10
        with world.ledger.anonymous() as ledger:
            assert ledger.supply().identity_holds


def test_its_variables_are_those_of_the_sandbox() -> None:
    source = (ROOT / "sandbox" / "__main__.py").read_text(encoding="utf-8")
    used = set(re.findall(r"JIAOZI_[A-Z_]+", TUTORIAL.read_text(encoding="utf-8")))
    assert used >= {"JIAOZI_WALLET_PUBLIC_URL", "JIAOZI_CLIENT_KEY"}
    assert {name for name in used if f'"{name}":' not in source} == set()


def test_a_difference_is_noticed() -> None:
    assert _matches("final True\n", "final …\n")
    assert not _matches("final False\n", "final True\n")
    assert not _matches("", "…wlt_…\n")


def _environment(world: BankWorld) -> dict[str, str]:
    """What `jiaozi env` prints."""
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "JIAOZI_WALLET_PUBLIC_URL": world.url,
        "JIAOZI_LEDGER_PUBLIC_URL": world.ledger.url,
        "JIAOZI_CLIENT_KEY": str(world.home / "channel.pem"),
    }


def _python(block: Block, session: dict[str, object]) -> str:
    printed = io.StringIO()
    # Compiled with its place in the file, so that a traceback names the tutorial's line.
    code = compile("\n" * (block.line - 1) + block.code, str(TUTORIAL), "exec")
    with contextlib.redirect_stdout(printed):
        exec(code, session)
    return printed.getvalue()


def _shell(block: Block) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"line {block.line} of the tutorial: {done.stderr}{done.stdout}"
    return done.stdout


def _matches(printed: str, expected: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("…"))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None

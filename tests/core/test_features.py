"""Goal: what `docs/features.md` names exists: each operation, each command, each test.
Method: its tables are read; operations are looked up in the OpenAPI document, commands in the program, tests in their
files. That the tests pass is the other tests' affair.
"""

from __future__ import annotations

import re
from pathlib import Path

import typer
import yaml

from wallet.__main__ import app

ROOT = Path(__file__).parents[2]
SECTIONS = ("Interest and reserves", "Wallets", "Payments", "Offline", "Programmability", "Privacy")
"""In the order of the feature table."""
_TOKEN = re.compile(r"`([^`]+)`")
Row = tuple[str, list[str], list[str], list[str], str]
"""Requirement; operations, commands and tests; the mark."""


def sections() -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for line in (ROOT / "docs/features.md").read_text("utf-8").splitlines():
        if line.startswith("## "):
            rows = found.setdefault(line.removeprefix("## "), [])
        elif line.startswith("|") and not line.startswith(("|---", "| requirement")):
            requirement, *names, mark = (cell.strip() for cell in line.split("|")[1:-1])
            operations, commands, tests = map(_TOKEN.findall, names)
            rows.append((requirement, operations, commands, tests, mark))
    return found


ROWS = [row for rows in sections().values() for row in rows]


def test_it_has_the_feature_tables_sections_in_order() -> None:
    assert tuple(sections())[: len(SECTIONS)] == SECTIONS
    assert all(sections().values())


def test_each_requirement_says_whether_it_is_kept_and_what_shows_it() -> None:
    for requirement, _, _, tests, mark in ROWS:
        assert tests, requirement
        assert mark.startswith(("kept", "in part: ")), requirement


def test_every_operation_exists() -> None:
    paths = yaml.load((ROOT / "openapi/wallet.v1.yaml").read_text(), Loader=yaml.CSafeLoader)["paths"]
    known = {operation["operationId"] for verbs in paths.values() for operation in verbs.values()}
    assert {name for _, operations, *_ in ROWS for name in operations} <= known


def test_every_command_exists() -> None:
    for words in sorted({command for _, _, commands, *_ in ROWS for command in commands}):
        command = typer.main.get_command(app)
        for word in words.split():
            command = getattr(command, "commands", {}).get(word)
            assert command is not None, words


def test_every_test_exists() -> None:
    for named in sorted({test for *_, tests, _ in ROWS for test in tests}):
        path, _, test = named.partition("::")
        text = (ROOT / path).read_text("utf-8")
        assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), named

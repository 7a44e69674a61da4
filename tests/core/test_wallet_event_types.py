"""Goal: every type of event that the service promises is told somewhere, and explained to its readers.
Method: the sources' syntax trees are searched for the types that they emit; docs/events.md for the types it lists.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from wallet.domain.events import EventType

ROOT = Path(__file__).parents[2]
EMITTERS = [*(ROOT / "wallet" / "usecases").glob("*.py"), *(ROOT / "wallet" / "store").glob("*.py")]


@cache
def emitted() -> set[EventType]:
    """The members that are named in code outside comparisons and filters, and the types written in SQL."""
    found: set[EventType] = set()
    for path in EMITTERS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        compared = {id(part) for node in ast.walk(tree) if isinstance(node, ast.Compare) for part in ast.walk(node)}
        for node in ast.walk(tree):
            is_member = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if is_member and node.value.id == "EventType" and id(node) not in compared:  # type: ignore[attr-defined]
                found.add(EventType[node.attr])  # type: ignore[attr-defined]
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "INSERT INTO event" in node.value:
                found |= {type for type in EventType if f"'{type.value}'" in node.value}
    return found


@pytest.mark.parametrize("type", EventType)
def test_type_is_emitted_somewhere(type: EventType) -> None:
    assert type in emitted()


def test_documentation_lists_every_type_and_no_other() -> None:
    table = (ROOT / "docs" / "events.md").read_text(encoding="utf-8")
    listed = re.findall(r"\b[a-z]+\.[a-z-]+\b", " ".join(re.findall(r"^\| ([a-z][^|]*) \|", table, re.MULTILINE)))
    assert sorted(listed) == sorted(type.value for type in EventType)

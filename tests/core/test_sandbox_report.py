"""What the demo holds itself to.

Goal: an expectation that does not hold is shown, counted and remembered, so that `jiaozi demo` cannot end well by luck.
Method: the report on a console in memory, with calls that are accepted, refused, or refused for another reason.
"""

from __future__ import annotations

import io

from rich.console import Console

from kernel.client import ProblemResponse
from sandbox.report import Report


def report() -> tuple[Report, io.StringIO]:
    shown = io.StringIO()
    return Report(Console(file=shown, width=60)), shown


def refuse(code: str) -> None:
    raise ProblemResponse(status=422, refusal=code, transient=False, detail="Because.", request_id="r")


def test_expectation_that_fails_is_shown_and_kept_with_both_sides() -> None:
    held, shown = report()
    assert held.expect("one is one", expected=1, seen=1)
    assert not held.expect("one is two", expected=2, seen=1, quiet=True)
    assert held.checked == 2
    assert [(item.what, item.expected, item.seen) for item in held.failures] == [("one is two", 2, 1)]
    assert "✓ one is one" in shown.getvalue()
    assert "✗ one is two: expected 2, saw 1" in shown.getvalue()


def test_quiet_expectation_that_holds_is_counted_and_not_shown() -> None:
    held, shown = report()
    held.expect("one is one", expected=1, seen=1, quiet=True)
    assert (held.checked, held.failures, shown.getvalue()) == (1, [], "")


def test_only_the_named_refusal_will_do() -> None:
    held, shown = report()
    assert held.refused("too much", "quota-exceeded", lambda: refuse("quota-exceeded"))
    assert not held.refused("too much", "quota-exceeded", lambda: refuse("not-authorised"))
    assert not held.refused("too much", "quota-exceeded", lambda: None)
    assert [item.seen for item in held.failures] == ["not-authorised", "accepted"]
    assert "refused quota-exceeded: Because" in shown.getvalue()


def test_services_words_are_not_taken_for_markup() -> None:
    held, shown = report()
    held.expect("said", expected="[/]", seen="[bold]x")
    assert "expected [/], saw [bold]x" in shown.getvalue()


def test_long_lines_wrap_under_themselves_without_trailing_space() -> None:
    held, shown = report()
    held.expect("word " * 30, expected=1, seen=1)
    lines = shown.getvalue().splitlines()
    assert len(lines) > 2
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(line == line.rstrip() for line in lines)

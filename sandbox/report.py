"""What the demo says, and what it holds everything to: each expectation is checked, shown, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from kernel.client import ProblemResponse

ACCEPTED = "accepted"
"""What `refusal_of` answers for a request that should have been refused."""


@dataclass(frozen=True, slots=True)
class Failure:
    what: str
    expected: object
    seen: object


@dataclass(slots=True)
class Report:
    console: Console
    failures: list[Failure] = field(default_factory=list)
    checked: int = 0

    def step(self, number: int, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{number}  {escape(title)}[/]", align="left", style="dim")

    def say(self, text: str) -> None:
        """A sentence; markup is taken."""
        self._line(" ", text)

    def table(self, table: Table, title: str = "") -> None:
        self.console.print()
        if title:
            self.console.print(f"  [bold]{title}[/]")
        self.console.print(table)
        self.console.print()

    def expect(self, what: str, *, expected: object, seen: object, quiet: bool = False) -> bool:
        """Hold `seen` to `expected`. `quiet`: shown only if it fails (for things said elsewhere already)."""
        self.checked += 1
        if seen == expected:
            if not quiet:
                self._line("[green]✓[/]", what)
            return True
        self.failures.append(Failure(what, expected, seen))
        self._line("[bold red]✗[/]", f"[red]{what}[/]: expected {escape(str(expected))}, saw {escape(str(seen))}")
        return False

    def refused(self, what: str, code: str, call: Callable[[], Any]) -> bool:
        """The call must be refused with exactly this code; both the code and the service's own words are shown."""
        seen, detail = refusal_of(call)
        self.checked += 1
        if seen == code:
            words = f": [dim]{escape(detail.rstrip('.'))}[/]" if detail and detail != code else ""
            self._line("[green]✓[/]", f"{what}: [yellow]refused[/] [bold]{code}[/]{words}")
            return True
        self.failures.append(Failure(what, f"refused: {code}", seen))
        self._line("[bold red]✗[/]", f"[red]{what}[/]: expected refusal {code}, saw {escape(seen)} {escape(detail)}")
        return False

    def _line(self, mark: str, text: str) -> None:
        """Marked text that wraps under itself, not under the mark."""
        lines = Text.from_markup(text).wrap(self.console, self.console.width - 4)
        for number, line in enumerate(lines):
            line.rstrip()
            self.console.print(Text.assemble("  ", Text.from_markup(mark if number == 0 else " "), " ", line))

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar; the function given takes how far it is and what to call it."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        # In a log file a bar that moves is noise.
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done, description: bar.update(task, completed=done, description=description)


def refusal_of(call: Callable[[], Any]) -> tuple[str, str]:
    """(code, the service's words) of a refused call, or (ACCEPTED, "")."""
    try:
        call()
    except ProblemResponse as problem:
        return problem.refusal or f"HTTP {problem.status}", problem.detail
    return ACCEPTED, ""


def make_table(*columns: str, right: tuple[str, ...] = (), whole: tuple[str, ...] = ()) -> Table:
    """A table in the demo's one style. Columns in `right` hold amounts; these and those in `whole` are never broken."""
    table = Table(box=None, pad_edge=True, padding=(0, 0, 0, 2))
    for column in columns:
        is_right = column in right
        table.add_column(
            column,
            justify="right" if is_right else "left",
            header_style="dim",
            no_wrap=is_right or column in whole,
            overflow="fold",
        )
    return table

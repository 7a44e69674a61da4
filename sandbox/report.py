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

    def table(self, table: Table) -> None:
        self.console.print(table)

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
            words = f" [dim]{escape(detail.rstrip('.'))}[/]" if detail and detail != code else ""
            self._line("[green]✓[/]", f"{what}: [yellow]refused[/] [bold]{code}[/]{words}")
            return True
        self.failures.append(Failure(what, f"refused: {code}", seen))
        self._line("[bold red]✗[/]", f"[red]{what}[/]: expected refusal {code}, saw {escape(seen)} {escape(detail)}")
        return False

    def _line(self, mark: str, text: str) -> None:
        """Two columns, so that a long text wraps under itself and not under the mark."""
        grid = Table.grid(padding=(0, 1))
        grid.add_row(" ", mark, text)
        self.console.print(grid)

    @contextmanager
    def progress(self, text: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar; the function given takes how far it is and what to call it."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done, description: bar.update(task, completed=done, description=description)


def refusal_of(call: Callable[[], Any]) -> tuple[str, str]:
    """(code, the service's words) of a refused call, or (ACCEPTED, "")."""
    try:
        call()
    except ProblemResponse as problem:
        return problem.refusal or f"HTTP {problem.status}", problem.detail
    return ACCEPTED, ""


def money_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """A table in the demo's one style; columns named in `right` hold amounts."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=True, padding=(0, 2))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", header_style="dim")
    return table

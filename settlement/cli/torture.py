"""`jiaozi-settlement torture`: the crash-anywhere proof, for whoever does not want to believe it."""

from __future__ import annotations

import json
import logging
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from settlement.cli.options import console, errors, fail

if TYPE_CHECKING:
    from settlement.torture.campaign import Campaign, Case, Outcome, Report

ROUNDS_DEFAULT = 20
LINE_EVERY = 50
"""Where there is no terminal to draw a bar on, a line after so many cases."""
VIOLATIONS_SHOWN_MAX = 20


def torture(
    rounds: Annotated[int, typer.Option(min=0, max=1_000_000, help="Random rounds after the enumeration.")] = (
        ROUNDS_DEFAULT
    ),
    seed: Annotated[int | None, typer.Option(min=0, help="Repeats a run's choices; by default a fresh one.")] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="Begin no case after so long. By default all are run.")
    ] = None,
    part: Annotated[
        str, typer.Option(help="Of the enumerated cases: 2/7 is every seventh from the second on, 1/1 all of them.")
    ] = "1/1",
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="Run only this case, as a report names it; may be given again."),
    ] = None,
    islands: Annotated[int, typer.Option(min=2, max=3, help="Ledgers: CNY, AED, and THB with 3.")] = 2,
    report: Annotated[Path | None, typer.Option("--report", help="Write the whole result as JSON here.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--dir", help="Where the temporary world is made; by default in memory if it can be.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the world's files and logs behind.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
) -> None:
    """Kill, stop, partition, delay, duplicate and reorder at every step of the protocol; then look for split money.

    Builds a world of its own in a temporary directory: two or three real ledgers and the settlement service as real
    processes, each on a real PostgreSQL server of its own, institutions that sign, accounts funded by issuance. A run
    without faults shows the steps; then each step, each of its moments, is run with each fault: SIGKILL, SIGSTOP while
    a second engine takes over, two live engines, databases killed, stopped and cut, partitions, messages lost, late,
    doubled and out of order. Random rounds with several faults at once follow.

    After each case everything comes back and the ledgers themselves are asked: every settlement posted on all islands
    or on none, no hold left, every fen still there. Exit code 1 if anything is wrong, with the case to replay.
    """
    from settlement.torture.campaign import Campaign
    from settlement.torture.world import HOME_BANK, World, WorldFailed, temporary_place

    chosen = seed if seed is not None else secrets.randbelow(2**32)
    try:
        wanted = [_wanted(text) for text in case] if case else None
        share_of = _part(part)
    except ValueError as error:
        fail(error)
    # The campaign's own sessions die with the databases; nobody needs a traceback of each.
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what was found until then is told
    deadline = None if seconds is None else time.monotonic() + seconds
    if not as_json:
        console.print(f"seed {chosen}; making {islands} ledgers, their databases and the settlement service ...")
    with temporary_place(directory, keep=keep) as place:
        if keep:
            errors.print(f"The world's files and logs are in {place}", markup=False)
        try:
            with World(place, currencies=tuple(HOME_BANK)[:islands]) as world:
                campaign = Campaign(world, seed=chosen)
                try:
                    with suppress(KeyboardInterrupt):
                        _run(campaign, wanted, rounds=rounds, part=share_of, deadline=deadline, is_quiet=as_json)
                    world.repair()
                    found = campaign.finish()
                finally:
                    campaign.close()
        except WorldFailed as error:
            errors.print(f"The world broke: {error}", markup=False)
            raise typer.Exit(1) from None
    if report is not None:
        report.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    if as_json:
        sys.stdout.write(json.dumps(found.to_json()) + "\n")
    else:
        show(found)
    if not found.is_clean:
        raise typer.Exit(1)


def _run(
    campaign: Campaign,
    wanted: Sequence[Case | int] | None,
    *,
    rounds: int,
    part: tuple[int, int],
    deadline: float | None,
    is_quiet: bool,
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, disable=is_quiet) as progress:

        def tell(outcome: Outcome) -> None:
            for violation in outcome.findings.violations:
                progress.console.print(f"[red]VIOLATION[/] {outcome.id}: {violation}", highlight=False)

        if wanted is not None:
            unknown = {item.fault for item in wanted if not isinstance(item, int)} - set(campaign.faults)
            if unknown:
                fail(ValueError(f"no such fault here: {', '.join(sorted(unknown))}; of {', '.join(campaign.faults)}"))
            task = progress.add_task("chosen cases", total=len(wanted))
            for item in wanted:
                tell(campaign.run_round(item) if isinstance(item, int) else campaign.run_case(item))
                progress.advance(task)
            return
        cases = campaign.all_cases(part)
        task = progress.add_task("enumerated cases", total=len(cases))
        for number, item in enumerate(cases, start=1):
            if deadline is not None and time.monotonic() > deadline:
                break
            tell(campaign.run_case(item))
            progress.advance(task)
            if not console.is_terminal and number % LINE_EVERY == 0:
                progress.console.print(f"{number} of {len(cases)} cases")
        task = progress.add_task("random rounds", total=rounds)
        for number in count(1):
            if number > rounds or (deadline is not None and time.monotonic() > deadline):
                break
            tell(campaign.run_round(number))
            progress.advance(task)


def _wanted(text: str) -> Case | int:
    """A case, or the number of a random round. Raises ValueError."""
    from settlement.torture.campaign import parse_case

    kind, _, number = text.partition("/")
    return int(number) if kind == "random" and number.isdecimal() else parse_case(text)


def _part(text: str) -> tuple[int, int]:
    """Raises ValueError."""
    first, _, of = text.partition("/")
    if not (first.isdecimal() and of.isdecimal() and 1 <= int(first) <= int(of)):
        raise ValueError(f"{text!r} is no part: write 2/7 for every seventh case from the second on")
    return int(first), int(of)


def show(report: Report) -> None:
    """The result as tables."""
    _show_coverage(report)
    _show_recovery(report)
    console.print(
        f"{report.cases} cases and {report.rounds} random rounds in {report.seconds:.0f} s (seed {report.seed}); "
        f"{len(report.not_reached)} did not reach their point"
    )
    console.print(f"{report.settlements} settlements: {report.committed} committed, {report.aborted} aborted")
    for name, books in report.islands.items():
        word = "conserved" if books["is_conserved"] else "NOT CONSERVED"
        console.print(f"{name}: {books['circulation_minor']} in circulation, {books['held_minor']} held: money {word}")
    console.print(f"splits: {report.splits}", style="bold red" if report.splits else "bold green")
    for item in report.violations[:VIOLATIONS_SHOWN_MAX]:
        console.print(f"[red]VIOLATION[/] {item['case']}: {item['what']}", highlight=False)
        if "#" in item["case"] or item["case"].startswith("random/"):
            again = f"--seed {report.seed} --islands {len(report.currencies)} --case '{item['case']}'"
            console.print(f"  again: jiaozi-settlement torture {again}", highlight=False)


def _show_coverage(report: Report) -> None:
    """Rows: steps, the islands of one step together. Columns: actors."""
    counts: Counter[tuple[str, str]] = Counter()
    for step, row in report.coverage.items():
        for fault, number in row.items():
            counts[step.partition("@")[0], _actor(fault)] += number
    table = Table("step", *ACTORS, title="Cases that reached their point")
    table.columns[0].no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    for step in dict.fromkeys(step for step, _ in counts):
        table.add_row(step, *(str(counts[step, actor] or "") for actor in ACTORS))
    if counts:
        console.print(table)


def _show_recovery(report: Report) -> None:
    table = Table("fault", "times", "median", "p99", "max", title="Seconds to recovery, from the fault's end")
    for column in table.columns[1:]:
        column.justify = "right"
    for fault, values in report.recovery_by_fault.items():
        if values:
            times = str(report.faults_done.get(fault, 0))
            table.add_row(fault, times, *(f"{values[name]:.2f}" for name in ("median", "p99", "max")))
    if report.recovery_seconds:
        table.add_row("all", "", *(f"{report.recovery_seconds[name]:.2f}" for name in ("median", "p99", "max")))
        console.print(table)


ACTORS = ("engine", "engine db", "ledger", "ledger db", "signer", "message")


def _actor(fault: str) -> str:
    actor = fault.rpartition("-")[0]
    if actor in ("request", "answer"):
        return "message"
    if actor.endswith("-postgres"):
        return "engine db" if actor.startswith("engine") else "ledger db"
    if actor == "engine":
        return actor
    return "ledger" if actor.endswith("-ledger") else "signer"

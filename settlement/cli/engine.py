"""Commands about the engine: what is in doubt and why, giving a settlement up, n legs at once, and the simulation."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from kernel import ids, strict_json
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.errors import ProblemError
from kernel.money import Currency, format_minor
from settlement.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, console, errors, fail, parse_ref
from settlement.contract import SettlementView
from settlement.contract.multileg import SettlementRequest
from settlement.simulation.explore import (
    Failure,
    Report,
    explore,
    parse_schedule,
    quiet_engine,
    run_schedule,
)
from settlement.simulation.scenarios import BY_NAME

SettlementId = Annotated[str, typer.Argument(help="Settlement, as stl_...")]
SCHEDULES_MAX = 100_000_000
_SHOWN_EVERY_SECONDS = 0.1
_FAILED = 1


def register(app: typer.Typer) -> None:
    app.command(name="in-doubt")(in_doubt)
    app.command()(explain)
    app.command()(abort)
    app.command()(settle)
    app.command()(simulate)


def in_doubt(
    client_key: ClientKey,
    received: Annotated[bool, typer.Option("--received", help="Also those that wait to begin (gates, turn).")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Settlements that have not ended: why, what each waits for, and what will resolve it. Oldest first.

    Exit code 1 if one of them needs a person (a broken invariant, or no engine alive).
    """
    with connect(url, client_key) as client:
        try:
            found = list(client.in_doubt(received=received))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], indent=2))
    elif not found:
        console.print("Nothing is in doubt.")
    else:
        table = Table("settlement", "state", "age", "waits for", "what resolves it", title="In doubt", show_lines=True)
        for item in found:
            said = item.explanation
            table.add_row(
                ids.show("stl", item.settlement),
                item.state.value,
                f"{item.age_seconds:,} s",
                Text("\n".join(said.waits_for)),
                Text(said.resolution, style="bold red" if said.needs_person else ""),
            )
        console.print(table)
    if any(item.explanation.needs_person for item in found):
        raise typer.Exit(_FAILED)


def explain(settlement: SettlementId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """One settlement: its legs, and why it stands where it stands."""
    with connect(url, client_key) as client:
        try:
            view = client.settlement(parse_ref("stl", settlement))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _show(view, as_json=as_json)


def abort(settlement: SettlementId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Give an undecided settlement up, as the bridge's operator. A decision that came first stands.

    The wish is kept in the database: whatever engine runs next writes ABORT.
    """
    with connect(url, client_key) as client:
        try:
            client.abort_settlement(parse_ref("stl", settlement))
            view = client.settlement(parse_ref("stl", settlement))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _show(view, as_json=as_json)


def settle(
    file: Annotated[Path, typer.Argument(help="JSON: uetr, value_date, priority, legs (see POST /v1/settlements).")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit one settlement of 2 to 32 legs on any ledgers: all post, or none does. The same file again is the same.

    A leg: ledger, payer, payee, amount_minor (a string of digits), currency.
    """
    try:
        request = SettlementRequest.model_validate(strict_json.loads(file.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        fail(ValueError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}"))
    except (OSError, ProblemError) as error:
        fail(error)
    with connect(url, client_key) as client:
        try:
            view = client.submit_settlement(
                request.legs, uetr=request.uetr, value_date=request.value_date, priority=request.priority
            )
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _show(view, as_json=as_json)


def _show(view: SettlementView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json(indent=2))
        return
    shown = ids.show("stl", view.settlement)
    table = Table("leg", "ledger", "payer", "payee", "amount", "state", title=f"{shown}: {view.state.value}")
    table.columns[4].justify = "right"
    for leg in view.legs:
        amount = f"{leg.currency} {format_minor(leg.amount_minor, Currency.of(leg.currency))}"
        table.add_row(str(leg.number), leg.ledger, leg.payer, leg.payee, amount, leg.state.value)
    console.print(table)
    said = view.explanation
    if view.finality_at is not None:
        console.print(f"Final since {view.finality_at:%Y-%m-%d %H:%M:%S.%f}Z.")
    if view.reason is not None:
        console.print(f"Aborted: {view.reason.value}: {view.detail}", markup=False)
    if said is not None:
        console.print(said.why, markup=False)
        for item in said.waits_for:
            console.print(f"  waits for {item}", markup=False)
        console.print(said.resolution, style="bold red" if said.needs_person else "bold", markup=False)


def simulate(
    schedules: Annotated[int, typer.Option(min=1, max=SCHEDULES_MAX, help="How many schedules to run.")] = 100_000,
    seed: Annotated[int | None, typer.Option(help="Of the random ones; unset = a fresh one, which is printed.")] = None,
    replay: Annotated[
        str | None, typer.Option(help="Run one schedule, e.g. 'pvp 4=crash-after 9=late', and list its steps.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the engine itself through schedules of crashes, lost messages and rival engines, in a simulated world.

    First every fault at every step of each scenario, then pairs of faults and random ones in turn. Nothing is started
    or touched outside this process. Exit code 1 if a promise was broken: then the schedule to replay is printed.
    """
    if replay is not None:
        _replay(replay, as_json=as_json)
        return
    chosen = secrets.randbits(32) if seed is None else seed
    began, shown_at = time.monotonic(), 0.0
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    report = Report()
    with quiet_engine(), Progress(*columns, console=errors, disable=as_json, transient=True) as progress:
        task = progress.add_task("schedules", total=schedules)
        for report in explore(schedules=schedules, seed=chosen):
            if time.monotonic() - shown_at > _SHOWN_EVERY_SECONDS:
                shown_at = time.monotonic()
                progress.update(task, completed=report.schedules)
    result = _summary(report, chosen, time.monotonic() - began)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print_summary(result, report)
    if report.failures:
        raise typer.Exit(_FAILED)


def _summary(report: Report, seed: int, seconds: float) -> dict[str, Any]:
    failures = [
        {
            "kind": failure.kind,
            "message": failure.message,
            "replay": str(failure.schedule),
            "steps": list(failure.labels),
        }
        for failure in report.failures
    ]
    return {
        "schedules": report.schedules,
        "enumerated": report.enumerated,
        "random": report.schedules - report.enumerated,
        "seed": seed,
        "seconds": round(seconds, 3),
        "steps": report.steps,
        "writes": report.writes,
        "sends": report.sends,
        "engines": report.engines,
        "settlements": report.settlements,
        "committed": report.commits,
        "faults": sum(report.covered.values()),
        "kinds_of_step": len({label for label, _ in report.covered}),
        "kinds_of_step_and_fault": len(report.covered),
        "splits": report.splits,
        "conserved": report.is_conserved,
        "failures": failures,
    }


def _print_summary(result: dict[str, Any], report: Report) -> None:
    by_step: dict[str, dict[str, int]] = {}
    for (label, fault), count in report.covered.items():
        by_step.setdefault(label, {})[fault] = count
    table = Table("step", "faults there", "kinds", title="Covered")
    table.columns[1].justify = table.columns[2].justify = "right"
    for label in sorted(by_step):
        table.add_row(label, f"{sum(by_step[label].values()):,}", str(len(by_step[label])))
    console.print(table)
    console.print(
        f"{result['schedules']:,} schedules ({result['enumerated']:,} enumerated, {result['random']:,} random with "
        f"seed {result['seed']}) in {result['seconds']:.1f} s: {result['steps']:,} steps, of them "
        f"{result['writes']:,} writes; {result['faults']:,} faults; {result['engines']:,} engines; "
        f"{result['settlements']:,} settlements, {result['committed']:,} committed."
    )
    conserved = "conserved" if result["conserved"] else "NOT CONSERVED"
    console.print(f"Splits: {result['splits']}. Money on every island: {conserved}.")
    for failure in report.failures:
        _print_failure(failure)
    if not report.failures:
        console.print("Every settlement came to its end, as decided.")


def _replay(text: str, *, as_json: bool) -> None:
    try:
        schedule = parse_schedule(text)
    except ValueError as error:
        fail(ValueError(f"{error}. Scenarios: {', '.join(BY_NAME)}"))
    with quiet_engine():
        found = run_schedule(schedule)
    if as_json:
        failed = {"kind": found.kind, "message": found.message} if isinstance(found, Failure) else None
        typer.echo(json.dumps({"replay": str(schedule), "steps": list(found.labels), "failure": failed}, indent=2))
    elif isinstance(found, Failure):
        _print_failure(found)
    else:
        _print_steps(found.labels, {step: fault.value for step, fault in found.injected.items()})
        ends = ", ".join(f"{ids.show('stl', key)}: {decision.value}" for key, decision in found.outcomes.items())
        console.print(f"All promises held. {ends}")
    if isinstance(found, Failure):
        raise typer.Exit(_FAILED)


def _print_failure(failure: Failure) -> None:
    console.print(f"BROKEN: {failure.message}", style="bold red", markup=False)
    _print_steps(failure.labels, {step: fault.value for step, fault in failure.schedule.plan})
    console.print(f"Replay: jiaozi-settlement simulate --replay '{failure.schedule}'", markup=False)


def _print_steps(labels: Any, faults: dict[int, str]) -> None:
    for step, label in enumerate(labels):
        fault = f"  <- {faults[step]}" if step in faults else ""
        console.print(f"{step:5} {label}{fault}", markup=False, highlight=False)

"""`jiaozi-settlement liquidity`: the queue, limits, previews and runs from a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PrivateKey
from kernel.money import Currency, Money, format_minor
from settlement.cli.options import DEFAULT_URL, BatchId, ClientKey, Json, Url, connect, console, fail, parse_ref
from settlement.contract.liquidity import FlowView, NeedView, RunView
from settlement.domain.liquidity.model import LimitKind

APPROVAL_TYP = "jiaozi-liquidity-approval+jws"
_BAR = 30

app = typer.Typer(
    name="liquidity",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="The queue of instructions that wait for money, limits, and runs that let many settle with little of it. "
    "Preview a run first (nothing moves), then start exactly what was previewed. See docs/liquidity.md.",
)

RunId = Annotated[str, typer.Argument(help="Run, as lqr_...")]
SettlementId = Annotated[str, typer.Argument(help="Settlement, as stl_...")]
_ERRORS = (ProblemResponse, ServiceUnreachable, TimeoutError, ValueError, ValidationError)


@app.command()
def queue(client_key: ClientKey, url: Url = DEFAULT_URL, json: Json = False) -> None:
    """What waits for a run, in queue order. An institution sees its own instructions."""
    with connect(url, client_key) as client:
        try:
            found = list(client.queue())
        except _ERRORS as error:
            fail(error)
    if json:
        return _print_json([item.model_dump(mode="json") for item in found])
    table = Table("settlement", "priority", "flows", "since", "besides", title="Queue")
    for item in found:
        flows = "\n".join(_flow(flow) for flow in item.flows)
        besides = (
            "a run has it" if item.run else "; ".join(item.other_gates) or ("" if item.is_started else "not started")
        )
        shown = ids.show("stl", item.settlement)
        table.add_row(shown, item.priority, flows, f"{item.queued_at:%Y-%m-%d %H:%M:%S}", besides)
    console.print(table if found else "Nothing is queued.")


@app.command()
def hold(batch: BatchId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Put what has not begun of a batch into the queue."""
    with connect(url, client_key) as client:
        try:
            view = client.queue_batch(parse_ref("bat", batch))
        except _ERRORS as error:
            fail(error)
    console.print(f"{view.queued:,} instructions queued.")


@app.command()
def release(settlement: SettlementId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Take one instruction out of the queue: it settles by itself, at once, or is cancelled for want of money."""
    with connect(url, client_key) as client:
        try:
            client.release_from_queue(parse_ref("stl", settlement))
        except _ERRORS as error:
            fail(error)
    console.print("Released.")


@app.command()
def limits(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    participant: Annotated[str | None, typer.Option(help="Of this participant only (the operator sees all).")] = None,
    every: Annotated[bool, typer.Option("--all", help="Past, future and lifted ones too.")] = False,
    json: Json = False,
) -> None:
    """Limits in force: bilateral, multilateral, and caps (the operator's are marked)."""
    with connect(url, client_key) as client:
        try:
            found = [item for item in client.limits(participant=participant) if every or item.is_in_force]
        except _ERRORS as error:
            fail(error)
    if json:
        return _print_json([item.model_dump(mode="json") for item in found])
    table = Table("participant", "limit", "towards", "amount", "from", "set by", title="Limits")
    for item in found:
        amount = "lifted" if item.amount_minor is None else _money(item.amount_minor, item.currency)
        kind = "operator's cap" if item.is_operator else item.kind.value
        table.add_row(item.participant, kind, item.counterparty or "", amount, str(item.valid_from), item.set_by)
    console.print(table if found else "No limit is in force.")


@app.command(name="set-limit")
def set_limit(
    kind: Annotated[LimitKind, typer.Argument(help="bilateral, multilateral or cap.")],
    participant: Annotated[str, typer.Argument(help="Whose limit. The operator sets caps for anybody.")],
    amount: Annotated[str, typer.Argument(help='In major units, e.g. 50000.00, or "none" to lift it.')],
    client_key: ClientKey,
    currency: Annotated[str, typer.Option(help="e.g. CNY")],
    url: Url = DEFAULT_URL,
    towards: Annotated[str | None, typer.Option(help="The counterparty of a bilateral limit.")] = None,
    valid_from: Annotated[str | None, typer.Option(help="YYYY-MM-DD; today (UTC) if not given.")] = None,
) -> None:
    """Set what a participant is willing to pay net in a day, from a day on."""
    try:
        minor = None if amount == "none" else Money.parse_major(amount, Currency.of(currency)).amount_minor
        begins = date.fromisoformat(valid_from) if valid_from else datetime.now(UTC).date()
    except ValueError as error:
        fail(error)
    with connect(url, client_key) as client:
        try:
            view = client.set_limit(
                kind,
                participant=participant,
                currency=currency,
                amount_minor=minor,
                valid_from=begins,
                counterparty=towards,
            )
        except _ERRORS as error:
            fail(error)
    console.print(f"{ids.show('lim', view.limit)}: from {view.valid_from}")


@app.command()
def preview(
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    method: Annotated[
        str,
        typer.Option(help="strict: queue order; overtaking: order between two; optimise: most value."),
    ] = "strict",
    settle_as: Annotated[
        str, typer.Option(help="net: one settlement of net legs; gross: one by one (strict).")
    ] = "net",
    seconds: Annotated[float, typer.Option(help="The solver's time, of --method optimise.")] = 20.0,
    picture: Annotated[Path | None, typer.Option(help="Write positions before and after to this SVG file.")] = None,
    json: Json = False,
) -> None:
    """What a run would settle now and why the rest would wait. Nothing moves; start it with `liquidity run`."""
    with connect(url, client_key) as client:
        try:
            view = client.preview_run(method=method, settle_as=settle_as, seconds=seconds)  # type: ignore[arg-type]
            left = [] if json else list(client.run_instructions(view.run, is_taken=False))[:20]
            if picture is not None:
                picture.write_text(client.run_picture(view.run))
        except _ERRORS as error:
            fail(error)
    if json:
        return _print_json(view.model_dump(mode="json"))
    _print_run(view)
    if left:
        table = Table("settlement", "why", "what frees it", title="Left (the first of them)")
        for item in left:
            needs = _needs(item.needs) if item.is_worked_out else "liquidity why ..."
            table.add_row(ids.show("stl", item.settlement), item.sentence, needs)
        console.print(table)
    console.print(f"Start it: jiaozi-settlement liquidity run {ids.show('lqr', view.run)}", soft_wrap=True)


@app.command()
def run(
    run_id: RunId,
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    wait: Annotated[bool, typer.Option(help="Wait until it has settled or was aborted.")] = True,
    json: Json = False,
) -> None:
    """Start exactly what was previewed: all of it settles or nothing. Exit code 1 if it was aborted."""
    key = parse_ref("lqr", run_id)
    with connect(url, client_key) as client:
        try:
            view = client.start_run(key)
            if wait:
                view = client.wait_for_run(key, timeout_seconds=600)
        except _ERRORS as error:
            fail(error)
    if json:
        _print_json(view.model_dump(mode="json"))
    else:
        netting = f", netted in {ids.show('stl', view.netting)}" if view.netting else ""
        console.print(f"{run_id}: {view.state}, {view.taken_count:,} instructions{netting}", soft_wrap=True)
        if view.reason:
            console.print(view.reason, markup=False)
    if view.state == "aborted":
        raise typer.Exit(1)


@app.command()
def runs(client_key: ClientKey, url: Url = DEFAULT_URL, json: Json = False) -> None:
    """Previews and runs, the newest first."""
    with connect(url, client_key) as client:
        try:
            found = [view for _, view in zip(range(50), client.runs(), strict=False)]
        except _ERRORS as error:
            fail(error)
    if json:
        return _print_json([view.model_dump(mode="json") for view in found])
    table = Table("run", "state", "method", "as", "taken", "of", "created", "reason")
    for view in found:
        counts = (f"{view.taken_count:,}", f"{view.queue_count:,}")
        created = f"{view.created_at:%Y-%m-%d %H:%M:%S}"
        table.add_row(ids.show("lqr", view.run), view.state, view.method, view.settle_as, *counts, created, view.reason)
    console.print(table if found else "There was no run.")


@app.command()
def why(
    settlement: SettlementId,
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    method: Annotated[str, typer.Option(help="strict or overtaking (operator): the run that frees it.")] = "strict",
    json: Json = False,
) -> None:
    """Why an instruction waits now, and the smallest amount that would free it."""
    with connect(url, client_key) as client:
        try:
            view = client.why_queued(parse_ref("stl", settlement), method=method)
        except _ERRORS as error:
            fail(error)
    if json:
        return _print_json(view.model_dump(mode="json"))
    console.print(view.sentence, markup=False)
    if view.needs:
        exact = "exactly" if view.is_worked_out else "at most"
        console.print(f"It takes {exact}: {_needs(view.needs)}", markup=False)


@app.command()
def sign_approval(
    run_id: RunId,
    digest: Annotated[str, typer.Option(help="taken_sha256 of the preview that you have looked at.")],
    officer_key: Annotated[Path, typer.Option(help="Your own private key (PEM, mode 0600).")],
) -> None:
    """As an officer: sign your approval of exactly one optimising run's choice. Prints the token for `approve`."""
    try:
        key = PrivateKey.load(officer_key)
    except KeyRefused as error:
        fail(error)
    claims = {"run": ids.show("lqr", parse_ref("lqr", run_id)), "taken_sha256": digest}
    typer.echo(jws.sign(jws.canonical_json(claims), key, typ=APPROVAL_TYP))


@app.command()
def approve(
    run_id: RunId,
    token: Annotated[str, typer.Argument(help="What `liquidity sign-approval` printed for the officer.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Hand in an officer's approval of an optimising run. It can be started with two."""
    with connect(url, client_key) as client:
        try:
            view = client.approve_run(parse_ref("lqr", run_id), token)
        except _ERRORS as error:
            fail(error)
    console.print(f"Approved by {', '.join(view.approved_by)}.")


# --- output


def _print_run(view: RunView) -> None:
    read_at = f"{view.positions_read_at:%Y-%m-%d %H:%M:%S} UTC"
    console.print(
        f"{ids.show('lqr', view.run)}: {view.taken_count:,} of {view.queue_count:,} would settle "
        f"({', '.join(f'{count:,} {stage.value}' for stage, count in view.stages.items()) or 'none'}), "
        f"positions as of {read_at}",
        soft_wrap=True,
    )
    for currency, amount in view.value_minor.items():
        used = view.liquidity_used_minor.get(currency, 0)
        console.print(f"  {_money(amount, currency)} settle with {_money(used, currency)} of liquidity")
    if view.method == "optimise":
        proven = "the most there can be" if view.is_proven else f"at most {view.bound} were possible"
        console.print(f"  weighted value {view.value}, {proven}", soft_wrap=True)
    if view.needs_approval:
        approved = ", ".join(view.approved_by) or "nobody yet"
        console.print(f"  two officers have to approve {view.taken_sha256} (so far: {approved})", soft_wrap=True)
    largest: dict[str, int] = {}
    for item in view.positions:
        largest[item.currency] = max(largest.get(item.currency, 1), item.before_minor, item.after_minor)
    table = Table("position", "before", "after", "", title="Positions")
    for column in (1, 2):
        table.columns[column].justify = "right"
    for item in view.positions[:60]:
        bars = "\n".join(
            f"[{colour}]{'█' * max(1, amount * _BAR // largest[item.currency])}[/]"
            for colour, amount in (("bright_black", item.before_minor), ("blue", item.after_minor))
        )
        before, after = (
            format_minor(minor, Currency.of(item.currency)) for minor in (item.before_minor, item.after_minor)
        )
        table.add_row(f"{item.participant} {item.currency}", before, after, bars)
    console.print(table)
    if view.net:
        net = Table("payer", "payee", "amount", title=f"{len(view.net)} net payments")
        for flow in view.net[:60]:
            net.add_row(flow.payer, flow.payee, _money(flow.amount_minor, flow.currency))
        console.print(net)


def _money(amount: int, currency: str) -> str:
    return f"{format_minor(amount, Currency.of(currency))} {currency}"


def _flow(flow: FlowView) -> str:
    return f"{flow.payer} pays {flow.payee} {_money(flow.amount_minor, flow.currency)}"


def _needs(needs: Sequence[NeedView]) -> str:
    parts = []
    for need in needs:
        what = "" if need.kind.value == "liquidity" else f" under its {need.kind.value} limit"
        towards = f" towards {need.counterparty}" if need.counterparty else ""
        parts.append(f"{_money(need.amount_minor, need.currency)} more for {need.participant}{what}{towards}")
    return "; ".join(parts)


def _print_json(document: Any) -> None:
    console.print_json(data=document)

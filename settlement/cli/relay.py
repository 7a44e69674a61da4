"""`jiaozi-settlement relay`: fetch the proofs of a settlement, check them offline, see what is kept of the islands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from settlement.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, console, errors, fail, parse_ref

app = typer.Typer(
    no_args_is_help=True,
    help="Proofs of what each island did: `proofs` fetches those of a settlement, `verify` checks them with public "
    "keys alone, `status` shows what is kept of the islands. Format of the trust file: docs/relay.md.",
)


@app.command()
def proofs(
    settlement: Annotated[str, typer.Argument(help="Settlement, as stl_...")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the bundle (JSON).")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch each leg's statement with its proof, and the headers they stand under.

    Nothing is checked here: `jiaozi-settlement relay verify` does that, with no need of the service.
    """
    with connect(url, client_key) as client:
        try:
            content = client.settlement_proofs(parse_ref("stl", settlement))
            output.write_bytes(content)
        except (ProblemResponse, ServiceUnreachable, OSError) as error:
            fail(error)
    console.print(f"{output}: {len(content):,} bytes. Check it: jiaozi-settlement relay verify {output} --trust ...")


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="A bundle that `relay proofs` wrote.", exists=True)],
    trust: Annotated[Path, typer.Option(help="What you believe beforehand: keys of logs, blocks.", exists=True)],
    legs: Annotated[
        int | None,
        typer.Option(
            "--legs",
            min=1,
            max=500,
            metavar="N",
            help="How many legs you know the settlement to have (from your own order or contract). Nothing that an "
            "island signs says it: without --legs, that no leg was left out is the bundle's word.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a bundle offline, with public keys and trusted headers only: no network, no database.

    Exit code 0 if every leg is PROVEN in the same direction and, with --legs, there are N of them; 1 if not (a split
    settlement is a PROVEN VIOLATION), 2 if a file cannot be read.
    """
    from settlement.relay.bundle import BUNDLE_BYTES_MAX
    from settlement.relay.trie import ProofRefused
    from settlement.relay.trust import read_trust
    from settlement.relay.verdict import Outcome, judge, read_bundle

    try:
        with open(file, "rb") as opened:
            bundle = read_bundle(opened.read(BUNDLE_BYTES_MAX + 1))
        verdict = judge(bundle, read_trust(trust), legs_expected=legs)
    except ProofRefused as error:
        fail(ValueError(f"{file}: {error}"))
    except (OSError, ValueError) as error:
        fail(error)
    if as_json:
        document = {
            "settlement": ids.show("stl", bundle.settlement),
            "outcome": verdict.outcome.value,
            "why": verdict.why,
            "legs": [
                {
                    "number": leg.number,
                    "ledger": leg.ledger,
                    "proven": leg.is_proven,
                    "state": None if leg.standing is None else leg.standing.value,
                    "why": leg.why,
                }
                for leg in verdict.legs
            ],
        }
        print(json.dumps(document, indent=1))  # noqa: T201
    else:
        table = Table(
            "leg", "island", "amount", "verdict", "under, or why not", title=ids.show("stl", bundle.settlement)
        )
        for leg, shown in zip(verdict.legs, bundle.legs, strict=False):
            said = shown.statement
            result = f"PROVEN {leg.standing.value}" if leg.is_proven and leg.standing is not None else "NOT PROVEN"
            table.add_row(str(leg.number), leg.ledger, f"{said.amount_minor:,} {said.currency}", result, leg.why)
        console.print(table)
        console.print(
            f"{ids.show('stl', bundle.settlement)}: {verdict.outcome.value.replace('-', ' ').upper()}: {verdict.why}",
            markup=False,
        )
    if verdict.outcome not in (Outcome.POSTED, Outcome.VOIDED):
        raise typer.Exit(1)


@app.command()
def status(client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """What is kept of each island, and every alarm: two things that it has signed, or shown, that cannot both be true.

    Exit code 1 while there is an alarm. For the bridge's operator.
    """
    with connect(url, client_key) as client:
        try:
            view = client.relay()
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        typer.echo(view.model_dump_json())
    else:
        table = Table("island", "kind", "kept up to", "head", "last look")
        for item in view.islands:
            head = "" if item.head is None else item.head.hex()[:16]
            height = "nothing yet" if item.height is None else f"{item.height:,}"
            table.add_row(item.ledger, item.kind, height, head, item.failure or "good")
        console.print(table)
        console.print(f"keeper {view.keeper}", markup=False, soft_wrap=True)
        for alarm in view.alarms:
            errors.print(f"ALARM {alarm.kind.value} of {alarm.ledger}, {alarm.raised_at}: {alarm.detail}", markup=False)
    if view.alarms:
        raise typer.Exit(1)

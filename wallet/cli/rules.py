"""`jiaozi-wallet rules`: look at rule packs, sign and verify them, and see what another one would change."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PublicKey
from kernel.database import Database, resolve_url
from kernel.money import Currency, Money, format_minor
from kernel.settings import InvalidSettings
from ledger.contract import show_moment
from wallet.cli.options import Json, fail, load_key
from wallet.domain.rule_replay import Difference, Refused, Replay, differences
from wallet.domain.rules import Evidence, RulePack, WalletClass, in_force, rule_class_name
from wallet.rulepack_files import (
    DIRECTORY,
    RulePackInvalid,
    load_rule_pack,
    read_authority,
    read_rule_pack,
    rule_pack_names,
    sign_rule_pack,
    verify_rule_pack,
)
from wallet.settings import SERVICE
from wallet.store.tenancy import tenant_url
from wallet.tenant_settings import load_institution, load_settings
from wallet.usecases.rule_replay import replay_payments

app = typer.Typer(no_args_is_help=True, help="The dated rule packs: wallet classes, evidence, caps, interest.")

DIFFERENT, WOULD_REFUSE = 3, 4
"""Exit codes of `diff`: the packs differ; payments would have been refused. 0 = no difference, 1 = a mistake."""
Authority = Annotated[
    Path | None,
    typer.Option(
        "--authority",
        envvar="JIAOZI_WALLET_RULE_AUTHORITY_PATH",
        help="The rule-pack authority's public key, a JWK file; by default the demonstration's.",
    ),
]
PackName = Annotated[str, typer.Argument(metavar="PACK", help="A name from `rules list`, or a .toml file.")]


class ReplayFormat(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


@app.command("list")
def list_rules(authority: Authority = None, as_json: Json = False) -> None:
    """Name the rule packs that come with the program, and which is in force today."""
    key = _authority(authority)
    packs = [_load(name, key) for name in rule_pack_names()]
    today = system_clock().date()
    rows = []
    for pack in packs:
        of_currency = [other for other in packs if other.currency == pack.currency]
        state = "pending" if pack.in_force_from > today else "past"
        state = "in force" if in_force(of_currency, today) is pack else state
        rows.append((pack, state))
    if as_json:
        shown = [
            {
                "name": pack.name,
                "currency": pack.currency,
                "in_force_from": pack.in_force_from.isoformat(),
                "state": state,
                "demonstration": pack.demonstration,
            }
            for pack, state in rows
        ]
        typer.echo(json.dumps(shown))
        return
    for pack, state in rows:
        mark = "   DEMONSTRATION, invented caps" if pack.demonstration else ""
        typer.echo(f"{pack.name}   {pack.currency}   in force from {pack.in_force_from}   {state}{mark}")


@app.command("show")
def show_rules(pack_name: PackName, authority: Authority = None, as_json: Json = False) -> None:
    """Show a pack: each class with the evidence that opens it and its caps. [x] = assumed, published by no source."""
    pack = _load(pack_name, _authority(authority))
    if as_json:
        typer.echo(json.dumps(pack.model_dump(mode="json"), sort_keys=True, default=sorted))
        return
    currency = Currency.of(pack.currency)
    table = Table(title=f"{pack.name}: {pack.title} ({pack.currency}), in force from {pack.in_force_from}")
    table.add_column("class")
    table.add_column("opened with")
    for heading in ("balance", "single", "daily", "annual"):
        table.add_column(heading, justify="right")
    table.add_column("at the ledger")
    for wallet_class in WalletClass:
        rules = pack.classes[wallet_class]
        evidence = ", ".join(item.value for item in Evidence if item in rules.evidence)
        cells = []
        for cap in (rules.balance, rules.single, rules.daily, rules.annual):
            text = "none" if cap.max == "none" else Money.parse_major(cap.max, currency).format_major()
            # rich reads [x] as markup
            cells.append(f"\\[{text}]" if cap.assumed else text)
        evidence = f"\\[{evidence}]" if pack.evidence_assumed else evidence
        table.add_row(wallet_class.value, evidence, *cells, rule_class_name(pack, wallet_class))
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)
    console.print(f"Source: {pack.source}. Days end at midnight in {pack.time_zone}. \\[x] = assumed.")
    if pack.demonstration:
        console.print("DEMONSTRATION ONLY: these caps are invented.")
    if pack.interest is not None:
        rate = pack.interest.rate_ppm_per_year
        classes = ", ".join(sorted(pack.interest.classes))
        how = f"{pack.interest.day_count.value}, rounded {pack.interest.rounding} when settled"
        how = f"\\[{how}]" if pack.interest.assumed else how
        console.print(
            f"Interest: {rate // 10_000}.{rate % 10_000:04d} % a year on classes {classes}; settled on the "
            f"{pack.interest.settled_on_day}th of a quarter's last month, credited on the "
            f"{pack.interest.credited_on_day}st; {how}."
        )


@app.command("verify")
def verify_rules(
    pack_names: Annotated[
        list[str] | None, typer.Argument(metavar="[PACK]...", help="Packs or files; none = all.")
    ] = None,
    authority: Authority = None,
) -> None:
    """Check that packs are well-formed and signed by the authority. One line a fault; exit code 1 if there is one."""
    key = _authority(authority)
    faults = 0
    for name in pack_names or rule_pack_names():
        try:
            pack = _find(name, key)
        except (LookupError, RulePackInvalid) as error:
            faults += 1
            typer.echo(str(error), err=True)
        else:
            typer.echo(f"{pack.name}   signed by {key.thumbprint}")
    if faults:
        raise typer.Exit(1)


@app.command("sign")
def sign_rules(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The pack, a .toml file named after it.")],
    key: Annotated[Path, typer.Option("--key", help="The authority's private key (PEM, mode 0600), Ed25519.")],
) -> None:
    """Sign a pack as the rule-pack authority: writes the .jws file beside it. Whoever changes the pack signs anew."""
    try:
        typer.echo(f"wrote {sign_rule_pack(file, load_key(key))}")
    except (RulePackInvalid, OSError) as error:
        fail(str(error))


@app.command("diff")
def diff_rules(
    before: Annotated[str, typer.Argument(metavar="A", help="The pack in force, a name or a file.")],
    after: Annotated[str, typer.Argument(metavar="B", help="The other pack, a name or a file; it may be unsigned.")],
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Decide this service's past payments again under B, on the database of JIAOZI_WALLET_*. Reads only.",
        ),
    ] = False,
    output: Annotated[ReplayFormat, typer.Option("--output", help="Of the refused payments.")] = ReplayFormat.TABLE,
    authority: Authority = None,
    institution: Annotated[
        str | None, typer.Option(help="Whose payments, by its code, where the service has several institutions.")
    ] = None,
) -> None:
    """Compare two packs class by class and cap by cap; with --replay, name the past payments that B would have refused.

    Day and year roll over in B's time zone and count only what B accepts. A payee's balance is what this service
    knows of it. Exit codes: 0 no difference, 3 the packs differ, 4 B would have refused payments, 1 a mistake.
    """
    key = _authority(authority)
    first, second = _load(before, key), _draft(after)
    if first.currency != second.currency:
        fail(f"{first.name} is of {first.currency}, {second.name} of {second.currency}: caps cannot be compared")
    found = list(differences(first, second))
    if not replay:
        _show_differences(first, second, found, output)
        raise typer.Exit(DIFFERENT if found else 0)
    totals = _replay(first, second, found, output, institution)
    raise typer.Exit(WOULD_REFUSE if totals.refused else DIFFERENT if found else 0)


# --- the replay ------------------------------------------------------------------------------------------------------


def _replay(
    first: RulePack, second: RulePack, found: list[Difference], output: ReplayFormat, institution: str | None
) -> Replay:
    currency = Currency.of(second.currency)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("payments"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with _database(institution) as database, bar:
        task = bar.add_task("payments", total=None)
        if output is ReplayFormat.TABLE:
            _show_differences(first, second, found, output)
        if output is ReplayFormat.CSV:
            writer.writerow(("payment", "wallet", "class", "amount_minor", "booked_at", "refusal"))

        def refused(item: Refused) -> None:
            row = _row(item)
            if output is ReplayFormat.CSV:
                writer.writerow(row.values())
            elif output is ReplayFormat.JSON:
                typer.echo(json.dumps(row))
            else:
                amount = format_minor(item.amount_minor, currency)
                typer.echo(
                    f"{row['booked_at']}  {amount:>16}  {item.wallet_class.value:<3} {row['refusal']}  {row['payment']}"
                )

        totals = replay_payments(
            database,
            second,
            until=system_clock(),
            refused=refused,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    summary = [
        {
            "class": wallet_class.value,
            "payments": totals.payments[wallet_class],
            "refused": {
                refusal.value: {"count": count, "amount_minor": str(totals.refused_minor[name, refusal])}
                for (name, refusal), count in sorted(totals.refused.items())
                if name is wallet_class
            },
        }
        for wallet_class in WalletClass
    ]
    if output is ReplayFormat.JSON:
        typer.echo(json.dumps({"totals": summary, "differences": [_difference(item) for item in found]}))
        return totals
    for wallet_class in WalletClass:
        reasons = [
            f"{count} {refusal.value}"
            for (name, refusal), count in sorted(totals.refused.items())
            if name is wallet_class
        ]
        line = f"class {wallet_class.value:<3} {totals.payments[wallet_class]} payments, refused: "
        typer.echo(line + (", ".join(reasons) or "none"), err=output is ReplayFormat.CSV)
    return totals


def _row(item: Refused) -> dict[str, str]:
    return {
        "payment": ids.show("trf", item.payment),
        "wallet": ids.show("wlt", item.wallet),
        "class": item.wallet_class.value,
        "amount_minor": str(item.amount_minor),
        "booked_at": show_moment(item.at),
        "refusal": item.refusal.value,
    }


@contextmanager
def _database(institution: str | None) -> Iterator[Database]:
    try:
        settings = load_institution(institution)
    except (OSError, ValueError, InvalidSettings) as error:
        fail(f"{error}; --replay reads the service's database: set JIAOZI_WALLET_* as for `jiaozi-wallet serve`")
    # The embedded server is the process's, not the institution's.
    process = load_settings()
    url, server = resolve_url(process.database_url, data_dir=process.data_dir, service=SERVICE)
    url = tenant_url(url, settings.participant)
    database = Database(url, application_name="jiaozi-wallet-rules", pool_size=2)
    try:
        yield database
    finally:
        database.close()
        if server is not None:
            server.stop()


# --- helpers ---------------------------------------------------------------------------------------------------------


def _show_differences(first: RulePack, second: RulePack, found: list[Difference], output: ReplayFormat) -> None:
    if output is ReplayFormat.JSON:
        typer.echo(json.dumps({"differences": [_difference(item) for item in found]}))
        return
    if output is ReplayFormat.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(("place", first.name, second.name))
        writer.writerows((item.place, item.before, item.after) for item in found)
        return
    if not found:
        typer.echo(f"{first.name} and {second.name} do not differ")
        return
    table = Table(title=f"{first.name} -> {second.name}   \\[x] = assumed")
    table.add_column("what")
    table.add_column(first.name, justify="right")
    table.add_column(second.name, justify="right")
    for item in found:
        table.add_row(item.place, item.before.replace("[", "\\["), item.after.replace("[", "\\["))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _difference(item: Difference) -> dict[str, Any]:
    return {"place": item.place, "before": item.before, "after": item.after}


def _authority(path: Path | None) -> PublicKey:
    try:
        return read_authority(path)
    except RulePackInvalid as error:
        fail(str(error))


def _find(name: str, key: PublicKey) -> RulePack:
    path = Path(name)
    if path.suffix != ".toml":
        return load_rule_pack(name, authority=key)
    pack = read_rule_pack(path)
    verify_rule_pack(path, pack, key)
    return pack


def _load(name: str, key: PublicKey) -> RulePack:
    try:
        return _find(name, key)
    except (LookupError, RulePackInvalid) as error:
        fail(str(error))


def _draft(name: str) -> RulePack:
    """A pack to compare with: what it says is enough, whoever has signed it."""
    path = Path(name) if name.endswith(".toml") else DIRECTORY / f"{name}.toml"
    if path.parent == DIRECTORY and path.stem not in rule_pack_names():
        fail(f"there is no rule pack {name!r}; known: {', '.join(rule_pack_names())}")
    try:
        return read_rule_pack(path)
    except RulePackInvalid as error:
        fail(str(error))

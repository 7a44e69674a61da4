"""`jiaozi-wallet interest`, `jiaozi-wallet reserve`, `jiaozi-wallet exchange-check`."""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import asdict
from datetime import date, datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from typing import Annotated
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.table import Table

from kernel import ids
from kernel.clock import system_clock
from kernel.money import Currency, Money, format_minor
from wallet.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, fail, parse_id
from wallet.client import WalletClient
from wallet.domain.reserves import OperatorKind

app = typer.Typer(
    no_args_is_help=True,
    help="Interest on wallets (rule pack 2026-01). It accrues daily in exact fractions on the closing balance, is "
    "rounded once when the quarter is settled on the 20th of its last month, and is credited on the 21st. The service "
    "does both by itself.",
)
reserve_app = typer.Typer(
    no_args_is_help=True, help="What the rules ask of the operator for the wallets it keeps: reserve base, or margin."
)
PASSES_MAX = 10_000
SCHEME_ZONE = ZoneInfo("Asia/Shanghai")
SHORTFALL, BREAKS = 5, 6
"""Exit codes: the margin falls short; the books do not agree."""


class Output(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSON = "json"


Day = Annotated[
    datetime | None, typer.Option("--day", formats=["%Y-%m-%d"], help="A day of the scheme; by default yesterday.")
]


@app.command("preview")
def preview(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show what has accrued on every wallet to yesterday, and the sum. Nothing is settled."""
    count, exact, accrued = 0, Fraction(0), 0
    with connect(url, client_key) as client:
        currency = _currency(client)
        for item in client.interest_previews():
            count, exact, accrued = count + 1, exact + Fraction(item.exact_minor), accrued + item.accrued_minor
            if as_json:
                typer.echo(item.model_dump_json())
            elif item.last_on is not None:
                amount = format_minor(item.accrued_minor, currency)
                wallet = ids.show("wlt", item.wallet)
                typer.echo(f"{wallet}  {item.wallet_class.value:<3} {item.first_on} - {item.last_on} {amount:>16}")
    remainder = exact - accrued
    if as_json:
        total = {"wallets": count, "exact_minor": str(exact), "accrued_minor": str(accrued)}
        typer.echo(json.dumps(total | {"remainder_minor": str(remainder)}))
        return
    typer.echo(f"{count} wallets: {format_minor(accrued, currency)}, rounding leaves {_decimal(remainder)} minor units")


@app.command("run")
def run(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Settle and credit all that is due now. May be repeated: nobody is paid twice. Exit code 1 if any is left."""
    settled = credited = 0
    with connect(url, client_key) as client:
        for _ in range(PASSES_MAX):
            done = client.run_interest()
            settled, credited = settled + done.settled, credited + done.credited
            if done.is_finished or not (done.settled or done.credited):
                break
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "settled_on": done.settled_on and done.settled_on.isoformat(),
                    "settled": settled,
                    "credited": credited,
                    "is_finished": done.is_finished,
                }
            )
        )
    elif done.settled_on is None:
        typer.echo("no quarter has ended under a rule pack with interest")
    else:
        typer.echo(f"quarter to {done.settled_on}: {settled} wallets settled, {credited} credits booked")
    if not done.is_finished:
        fail(
            "some is left: closing wallets, a full wallet, or a silent ledger; see `interest totals`, and run it again"
        )


@app.command("totals")
def totals(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show the remainder account: accrued = credited + remainder, a line a settlement day, newest first."""
    with connect(url, client_key) as client:
        currency = _currency(client)
        rows = client.interest_totals()
    if as_json:
        typer.echo(json.dumps([row.model_dump(mode="json") for row in rows]))
        return
    for row in rows:
        typer.echo(
            f"{row.last_on}  {row.settlements} wallets  {format_minor(row.credited_minor, currency):>16}  remainder "
            f"{_decimal(Fraction(row.remainder_minor))} minor units  {row.due} not credited yet"
        )


@app.command("statement")
def statement(
    wallet: Annotated[str, typer.Argument(metavar="WALLET", help="wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a wallet's interest: what accrues now, and every settlement with the days behind it."""
    wallet_id = parse_id("wlt", wallet)
    with connect(url, client_key) as client:
        currency = _currency(client)
        now = client.get_interest(wallet_id)
        past = list(client.interest_settlements(wallet_id))
    if as_json:
        settlements = [item.model_dump(mode="json") for item in past]
        typer.echo(json.dumps({"now": now.model_dump(mode="json"), "settlements": settlements}))
        return
    mark = " [day count and rounding assumed]" if now.rate_assumed and now.rate_ppm_per_year else ""
    percent = Fraction(now.rate_ppm_per_year, 10_000)
    typer.echo(f"class {now.wallet_class.value}, {_decimal(percent)} % a year by {now.rule_pack}{mark}")
    if now.last_on is not None:
        typer.echo(f"{now.first_on} - {now.last_on}  accrued {format_minor(now.accrued_minor, currency):>16}")
    if now.next_settled_on is not None:
        typer.echo(f"next settled on {now.next_settled_on}, credited on {now.next_credited_on}")
    for item in past:
        typer.echo(
            f"{item.first_on} - {item.last_on}  {item.kind:<8} {format_minor(item.credited_minor, currency):>16}"
            f"  {item.state.value}  {item.refusal or ''}"
        )
        for days in item.days:
            balance = format_minor(days.balance_minor, currency)
            typer.echo(f"    {days.first_on} - {days.last_on}  {days.wallet_class.value:<3} {balance:>16}")


@reserve_app.command("report")
def reserve_report(
    client_key: ClientKey,
    day: Day = None,
    margin_held: Annotated[
        str, typer.Option(help="Of an operator that is no bank: its margin with the central bank, major units.")
    ] = "",
    output: Annotated[Output, typer.Option("--output")] = Output.TABLE,
    url: Url = DEFAULT_URL,
) -> None:
    """Report the wallet balances at the end of a day: a bank's reserve base, another operator's margin and shortfall.

    Exit code 5 if the margin falls short.
    """
    with connect(url, client_key) as client:
        currency = _currency(client)
        held = None
        if margin_held:
            try:
                held = Money.parse_major(margin_held, currency).amount_minor
            except ValueError as error:
                fail(f"--margin-held: {error}")
        found = client.reserve_report(_day(day), margin_held_minor=held)
    values = asdict(found) | {"day": found.day.isoformat(), "operator_kind": found.operator_kind.value}
    balances = values.pop("balances_minor")
    flat = values | {f"class_{name.value}_minor": minor for name, minor in balances.items()}
    shown = {
        name: str(value) if name.endswith("_minor") and value is not None else value for name, value in flat.items()
    }
    if output is Output.JSON:
        typer.echo(json.dumps(shown))
    elif output is Output.CSV:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(shown)
        writer.writerow(shown.values())
    else:
        typer.echo(f"{found.participant} ({found.operator_kind.value}), end of {found.day}, {found.rule_pack}")
        for name, minor in balances.items():
            typer.echo(f"  class {name.value:<14} {format_minor(minor, currency):>20}")
        typer.echo(f"  offline escrow       {format_minor(found.escrow_minor, currency):>20}")
        typer.echo(f"  in all               {format_minor(found.total_minor, currency):>20}")
        if found.operator_kind is OperatorKind.BANK:
            typer.echo(f"  in the reserve base  {format_minor(found.reserve_base_minor, currency):>20}")
        else:
            typer.echo(f"  margin required      {format_minor(found.margin_required_minor, currency):>20}")
            if found.shortfall_minor is None:
                typer.echo("  margin held          not stated: give --margin-held")
            else:
                typer.echo(f"  shortfall            {format_minor(found.shortfall_minor, currency):>20}")
    if found.shortfall_minor:
        raise typer.Exit(SHORTFALL)


def exchange_check(client_key: ClientKey, day: Day = None, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Compare a day's exchanges with the bank's postings and the ledger's vault. Exit code 6 if they do not agree."""
    with connect(url, client_key) as client:
        found = client.check_exchanges(_day(day))
    if as_json:
        typer.echo(found.model_dump_json())
    else:
        typer.echo(
            f"{found.day}: {found.exchanges} exchanges, {found.bank_postings} postings, "
            f"{found.vault_lines} vault lines, {found.break_count} breaks"
        )
        if found.breaks:
            table = Table()
            for heading in ("break", "where", "exchange", "expected", "found", "age", "next step"):
                table.add_column(heading)
            for item in found.breaks:
                table.add_row(
                    item.kind.value,
                    item.side or "-",
                    str(item.exchange or item.entry),
                    "-" if item.expected_minor is None else str(item.expected_minor),
                    "-" if item.found_minor is None else str(item.found_minor),
                    str(timedelta(seconds=item.age_seconds)),
                    item.next_step,
                )
            Console(width=None if sys.stdout.isatty() else 200).print(table)
    if found.break_count:
        raise typer.Exit(BREAKS)


def _day(day: datetime | None) -> date:
    if day is not None:
        return day.date()
    return system_clock().astimezone(SCHEME_ZONE).date() - timedelta(days=1)


def _currency(client: WalletClient) -> Currency:
    return Currency.of(client.institution().ledgers[0].currency)


def _decimal(value: Fraction) -> str:
    """Six decimals, for the eye; JSON has the fraction."""
    micros = round(value * 1_000_000)
    return f"{'-' if micros < 0 else ''}{abs(micros) // 1_000_000}.{abs(micros) % 1_000_000:06d}"

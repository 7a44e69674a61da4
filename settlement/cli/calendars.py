"""`jiaozi-settlement calendar`: hours, overlaps, "when would this settle?", the day's clear-out; checks of files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.money import Currency, format_minor
from settlement.calendar_files import DIRECTORY, CalendarInvalid, load_calendars, pin_calendars
from settlement.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, console, fail, parse_ref
from settlement.client import SettlementClient
from settlement.contract.calendars import CLEAR_OUT_PREFIX, ClearOutView
from settlement.domain.calendars import CalendarSet, DayRule, MissedCutOff, PaymentKind, days_between

app = typer.Typer(
    no_args_is_help=True,
    help="When ledgers are open and when a settlement would be carried out. Days are business days of the ledgers' own "
    "time zones; times are shown in UTC. What rests on unpublished data is marked `assumed`.",
)
Currencies = Annotated[list[str], typer.Argument(help="ISO 4217 codes, e.g. CNY AED.", metavar="CURRENCY...")]
First = Annotated[str, typer.Option("--from", help="First business day, YYYY-MM-DD; by default today.")]
Days = Annotated[int, typer.Option(min=1, max=62, help="How many days.")]


@app.command()
def when(
    currencies: Currencies,
    url: Url = DEFAULT_URL,
    at: Annotated[str, typer.Option(help="Submitted at, RFC 3339 (2026-11-23T09:00:00Z); by default now.")] = "",
    value_date: Annotated[str, typer.Option(help="The value date asked for; by default the first that is met.")] = "",
    kind: Annotated[PaymentKind, typer.Option(help="Whose cut-off counts.")] = PaymentKind.BANK,
    lag_days: Annotated[int, typer.Option("--lag", min=0, max=10, help="T+n, in joint days, without a date.")] = 0,
    rule: Annotated[DayRule | None, typer.Option(help="By default the bridge's.")] = None,
    missed: Annotated[MissedCutOff | None, typer.Option(help="After the cut-off; by default the bridge's.")] = None,
    as_json: Json = False,
) -> None:
    """When would a settlement of these currencies be carried out? Stores nothing."""
    with SettlementClient(url) as client:
        try:
            found = client.when(
                currencies,
                at=_moment(at),
                value_date=_day(value_date),
                kind=kind,
                lag_days=lag_days,
                rule=rule,
                missed_cut_off=missed,
            )
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    assumed = " (assumed)" if found.is_assumed else ""
    console.print(f"{' '.join(found.currencies)}: {_time(found.settles_at)}, value date {found.value_date}{assumed}")
    window = f"{_time(found.window_from)} to {_time(found.window_until)}"
    console.print(f"  window {window}, cut-off {_time(found.cut_off_at)}")
    for note in found.notes:
        console.print(f"  {note}", markup=False)


@app.command()
def hours(
    currency: Annotated[str, typer.Argument(help="ISO 4217 code.")],
    url: Url = DEFAULT_URL,
    first: First = "",
    days: Days = 7,
    as_json: Json = False,
) -> None:
    """One ledger's openings, day by day."""
    with SettlementClient(url) as client:
        try:
            found = client.hours(currency, first=_day(first), days=days)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("day", "opens", "customers until", "banks until", "closes", "", title=f"{currency}, UTC")
    for item in found:
        times = (item.opens_at, item.customer_cut_off_at, item.bank_cut_off_at, item.closes_at)
        shown = ["" if time is None else _time(time) for time in times]
        table.add_row(f"{item.day:%a} {item.day}", *shown, _marks(item.why_closed, is_assumed=item.is_assumed))
    console.print(table)


@app.command()
def overlap(
    currencies: Currencies, url: Url = DEFAULT_URL, first: First = "", days: Days = 7, as_json: Json = False
) -> None:
    """When all these ledgers are open at once."""
    with SettlementClient(url) as client:
        try:
            found = client.overlap(currencies, first=_day(first), days=days)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        _print_json(found)
        return
    table = Table("day", "from", "until", "", title=f"{' '.join(currencies)}, UTC")
    for item in found:
        shown = ["" if time is None else _time(time) for time in (item.window_from, item.window_until)]
        table.add_row(f"{item.day:%a} {item.day}", *shown, _marks(item.why_not, is_assumed=item.is_assumed))
    console.print(table)


@app.command()
def check(
    directory: Annotated[Path, typer.Argument(help="A directory of calendars; by default this program's.")] = DIRECTORY,
    as_json: Json = False,
) -> None:
    """Check calendar files and their pins, without a service: what they cover, and what in them is assumed."""
    found = _load(directory)
    today = datetime.now(UTC).date()
    rows = []
    for code, calendar in sorted(found.calendars.items()):
        covered = list(days_between(calendar.covers_from, calendar.covers_to))
        open_days = sum(calendar.session(day) is not None for day in covered)
        assumed = sum(calendar.is_assumed(day) for day in covered)
        left = (calendar.covers_to - today).days
        rows.append((code, calendar.time_zone, calendar.covers_from, calendar.covers_to, open_days, assumed, left))
    if as_json:
        names = ("currency", "time_zone", "covers_from", "covers_to", "business_days", "assumed_days", "days_left")
        items = [dict(zip(names, row, strict=True)) for row in rows]
        print(json.dumps({"sha256": found.sha256, "calendars": items}, indent=2, default=str))  # noqa: T201
        return
    table = Table("currency", "time zone", "from", "to", "business days", "assumed days", "days left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.print(table)
    console.print(f"JIAOZI_SETTLEMENT_CALENDARS_SHA256={found.sha256}", soft_wrap=True)


@app.command()
def pin(
    directory: Annotated[Path, typer.Argument(help="A directory of your own calendars (CUR.toml).", exists=True)],
) -> None:
    """Check a directory's calendars and write their digests to SHA256SUMS: do it after every change that you mean."""
    try:
        digest = pin_calendars(directory)
    except (CalendarInvalid, OSError) as error:
        fail(error)
    console.print(f"JIAOZI_SETTLEMENT_CALENDARS_SHA256={digest}", soft_wrap=True)


@app.command()
def uncleared(
    currency: Annotated[str, typer.Argument(help="ISO 4217 code.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """What foreign institutions still hold of a currency. Exit code 1 if something is to be returned."""
    with connect(url, client_key) as client:
        try:
            found = client.uncleared(currency)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    owing = [item for item in found.items if item.uncleared_minor]
    if as_json:
        _print_json(found)
    else:
        table = Table("participant", "net", "outgoing", "uncleared", title=f"{currency} by {_time(found.due_at)}")
        for item in found.items:
            amounts = (item.net_minor, item.outgoing_minor, item.uncleared_minor)
            table.add_row(item.participant, *(format_minor(amount, Currency.of(currency)) for amount in amounts))
        console.print(table)
        if owing:
            console.print(f"Next: jiaozi-settlement calendar clear-out {currency}")
    raise typer.Exit(1 if owing else 0)


@app.command(name="clear-out")
def clear_out(
    currency: Annotated[str, typer.Argument(help="ISO 4217 code.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Propose the returns that clear a currency out. Nothing moves before `calendar approve`."""
    with connect(url, client_key) as client:
        try:
            found = client.propose_clear_out(currency)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _print_clear_out(found, as_json=as_json)


@app.command()
def approve(
    clear_out: Annotated[str, typer.Argument(help="Clear-out, as clr_...")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Submit a proposed clear-out as a batch. Repeating it is harmless."""
    with connect(url, client_key) as client:
        try:
            found = client.approve_clear_out(parse_ref(CLEAR_OUT_PREFIX, clear_out))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _print_clear_out(found, as_json=as_json)


def _print_clear_out(found: ClearOutView, *, as_json: bool) -> None:
    if as_json:
        _print_json(found)
        return
    shown = ids.show(CLEAR_OUT_PREFIX, found.clear_out)
    currency = Currency.of(found.currency)
    table = Table("participant", "returns", "to", "against", title=f"{shown}, {found.currency} of {found.business_day}")
    for line in found.lines:
        table.add_row(line.participant, format_minor(line.amount_minor, currency), line.returns_to, line.against)
    console.print(table if found.lines else "There is nothing to return.")
    if found.batch is not None:
        console.print(f"Approved by {found.approved_by}: {ids.show('bat', found.batch)}")
    elif found.lines:
        console.print(f"Next: jiaozi-settlement calendar approve {shown}")


def _load(directory: Path) -> CalendarSet:
    try:
        return load_calendars(directory)
    except CalendarInvalid as error:
        fail(error)


def _moment(text: str) -> datetime | None:
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            raise ValueError("it has no offset: add Z")
    except ValueError as error:
        fail(ValueError(f"--at {text!r}: {error}"))
    return found.astimezone(UTC)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        fail(ValueError(f"{text!r} is no date YYYY-MM-DD"))


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%MZ")


def _marks(why: str, *, is_assumed: bool) -> str:
    return "; ".join([part for part in (why, "assumed" if is_assumed and "assumed" not in why else "") if part])


def _print_json(found: BaseModel | Sequence[BaseModel]) -> None:
    many = [found] if isinstance(found, BaseModel) else found
    items = [item.model_dump(mode="json") for item in many]
    print(json.dumps(items[0] if isinstance(found, BaseModel) else items, indent=2))  # noqa: T201

"""`jiaozi-wallet schedule`: payments signed now and made on their day."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError

from kernel import ids
from kernel.money import Currency, Money, format_minor
from wallet.cli import output
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.client import WalletClient
from wallet.contract.schedules import WAITING_MAX, BusinessDayRule, Frequency, Recurrence, ScheduleDateView

app = typer.Typer(
    no_args_is_help=True,
    help="Pay later, once or again and again. You sign every payment now, on this machine; the service keeps it and "
    "makes it on its day, tries again until that day ends if the money is not there, and never makes it twice.",
)
ForApproval = Annotated[
    Path | None,
    typer.Option("--for-approval", help="Dual control: write the signed payments here too, for control approve."),
]
ScheduleArgument = Annotated[str, typer.Argument(metavar="SCH", help="The schedule's id, sch_...")]


@app.command()
def create(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, wlt_...")],
    payee: Annotated[str, typer.Argument(help="The payee's account, acc_...")],
    amount: Annotated[str, typer.Argument(help="Major units of each payment, e.g. 1200.00")],
    first_on: Annotated[datetime, typer.Option("--on", formats=["%Y-%m-%d"], help="The first day.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    frequency: Annotated[Frequency, typer.Option(help="How often.")] = Frequency.ONCE,
    every: Annotated[int, typer.Option(min=1, max=12, help="Every so many days, weeks or months.")] = 1,
    day_of_month: Annotated[
        int | None, typer.Option(min=1, max=31, help="Of a monthly one; 31 = the last day.")
    ] = None,
    rule: Annotated[
        BusinessDayRule, typer.Option(help="If the day is no business day of the calendar.")
    ] = BusinessDayRule.NONE,
    count: Annotated[int, typer.Option(min=1, max=WAITING_MAX, help="Payments to sign now.")] = 12,
    calendar: Annotated[str, typer.Option(help="Calendar of business days.")] = "cn",
    schedule: Annotated[str, typer.Option(help="Its id, sch_...: after an unknown outcome give the same.")] = "",
    for_approval: ForApproval = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the days; sign and send nothing.")] = False,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Sign payments in advance. Prints the schedule's id and the day of each payment."""
    recurrence = _recurrence(frequency, first_on.date(), every, day_of_month, rule)
    schedule_id = parse_id("sch", schedule) if schedule else ids.new_uuid7()
    with connect(url, client_key) as client:
        days = client.schedule_dates(recurrence, calendar=calendar, count=1 if frequency is Frequency.ONCE else count)
        if not dry_run:
            typer.echo(f"schedule {ids.show('sch', schedule_id)}", err=True)
            wallet_id = parse_id("wlt", wallet)
            tokens = _sign(client, wallet_id, schedule_id, days, device_key=device_key, payee=payee, amount=amount)
            if for_approval is not None:
                output.write_tokens(for_approval, tokens)
            client.create_schedule(
                schedule=schedule_id,
                wallet=wallet_id,
                recurrence=recurrence,
                calendar=calendar,
                instructions=tokens,
            )
    _show_days(days, schedule="" if dry_run else ids.show("sch", schedule_id), as_json=as_json)


@app.command()
def prolong(
    schedule: ScheduleArgument,
    payee: Annotated[str, typer.Argument(help="The payee's account, acc_...")],
    amount: Annotated[str, typer.Argument(help="Major units of each payment.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    count: Annotated[int, typer.Option(min=1, max=WAITING_MAX, help="Payments to sign now.")] = 12,
    for_approval: ForApproval = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Sign more payments of a schedule, after the last one there is."""
    schedule_id = parse_id("sch", schedule)
    with connect(url, client_key) as client:
        view = client.get_schedule(schedule_id)
        first = sum(1 for _ in client.scheduled_payments(schedule_id))
        days = client.schedule_dates(view.recurrence, calendar=view.calendar, first=first, count=count)
        if not days:
            fail("the schedule has no more payments")
        tokens = _sign(client, view.wallet, schedule_id, days, device_key=device_key, payee=payee, amount=amount)
        if for_approval is not None:
            output.write_tokens(for_approval, tokens)
        client.prolong_schedule(schedule_id, first=first, instructions=tokens)
    _show_days(days, schedule=schedule, as_json=as_json)


@app.command()
def show(schedule: ScheduleArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """List a schedule's payments: day, amount, state, and why one was refused."""
    with connect(url, client_key) as client:
        payments = list(client.scheduled_payments(parse_id("sch", schedule)))
        currency = Currency.of(client.institution().ledgers[0].currency)
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in payments]))
        return
    for item in payments:
        provisional = "?" if item.provisional else " "
        typer.echo(
            f"{item.number:>4}  {item.due_on}{provisional} {format_minor(item.amount_minor, currency):>16}"
            f"  {item.state.value:<9}  {item.refusal or ''}"
        )


@app.command("list")
def list_schedules(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List a wallet's schedules, newest first."""
    with connect(url, client_key) as client:
        views = list(client.schedules(parse_id("wlt", wallet)))
    if as_json:
        typer.echo(json.dumps([view.model_dump(mode="json") for view in views]))
        return
    for view in views:
        mark = "  cancelled" if view.cancelled else ""
        recurrence = view.recurrence
        typer.echo(f"{ids.show('sch', view.schedule)}  {recurrence.frequency.value} from {recurrence.first_on}{mark}")


@app.command()
def cancel(
    schedule: ScheduleArgument,
    client_key: ClientKey,
    number: Annotated[int | None, typer.Option(min=0, help="Only this payment; unset = all that wait.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Cancel one payment or all before they are made; the service destroys their signatures."""
    with connect(url, client_key) as client:
        if number is None:
            client.cancel_schedule(parse_id("sch", schedule))
        else:
            client.cancel_scheduled_payment(parse_id("sch", schedule), number)
    typer.echo("cancelled")


def _recurrence(
    frequency: Frequency, first_on: date, every: int, day_of_month: int | None, rule: BusinessDayRule
) -> Recurrence:
    try:
        return Recurrence(frequency=frequency, first_on=first_on, every=every, day_of_month=day_of_month, rule=rule)
    except ValidationError as error:
        fail("; ".join(item["msg"] for item in error.errors()))


def _sign(
    client: WalletClient,
    wallet: UUID,
    schedule: UUID,
    days: list[ScheduleDateView],
    *,
    device_key: Path,
    payee: str,
    amount: str,
) -> list[str]:
    home = client.institution().ledgers[0]
    account = client.get_wallet(wallet).account
    if account is None:
        fail("the wallet is not open yet")
    try:
        money = Money.parse_major(amount, Currency.of(home.currency))
        credit = ids.parse_account(payee)
    except ValueError as error:
        fail(str(error))
    return client.sign_schedule(
        days,
        schedule=schedule,
        key=load_key(device_key),
        ledger=home.ledger,
        debit=account,
        credit=credit,
        amount_minor=money.amount_minor,
        currency=home.currency,
    )


def _show_days(days: list[ScheduleDateView], *, schedule: str, as_json: bool) -> None:
    if as_json:
        dates = [day.model_dump(mode="json") for day in days]
        typer.echo(json.dumps({"schedule": schedule or None, "dates": dates}))
        return
    for day in days:
        mark = "  (the holidays are not published yet: it may move)" if day.provisional else ""
        typer.echo(f"{day.number:>4}  {day.due_on}{mark}")

"""`jiaozi-wallet payment`, `exchange-out`, `exchange`, `institution` and `settlement`: money, looked at or sent."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from pydantic import TypeAdapter, ValidationError

from kernel import ids
from kernel.clock import system_clock
from kernel.limits import BULK_BODY_BYTES_MAX
from kernel.money import Currency, Money
from ledger.contract import TransferKind
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.cli.output import show, show_rows
from wallet.client import WalletClient
from wallet.contract import BATCH_ITEMS_MAX, LedgerMembership, PaymentState, SettlementOrder

app = typer.Typer(
    no_args_is_help=True,
    help="Payments sent: look at them, or sign many on one machine (`sign`) and send them from another (`send`). "
    "`jiaozi-wallet pay` signs and sends one.",
)
exchange_app = typer.Typer(no_args_is_help=True, help="Exchanges of bank deposit for currency: how far one has come.")
settlement_app = typer.Typer(
    no_args_is_help=True, help="The payments desk's orders to a bridge: the most that this bank will sign away for it."
)
WalletArgument = Annotated[str, typer.Argument(metavar="WLT", help="The paying wallet, as wlt_...")]
Amount = Annotated[str, typer.Argument(help="Major units, e.g. 12.50")]
ValidMinutes = Annotated[int, typer.Option(min=1, max=1440, help="How long the signature stands.")]
PaymentId = Annotated[str, typer.Option("--payment", help="Its id, trf_...: after an unknown outcome give the same.")]
REFUSED = 1
"""Exit code when the service refused any of them."""


@app.command("show")
def show_payment(
    payment: Annotated[str, typer.Argument(metavar="TRF", help="The payment, as trf_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a payment, a refund or an exchange-out: final, refused and why, or not known yet."""
    with connect(url, client_key) as client:
        show(client.get_payment(parse_id("trf", payment)), as_json=as_json)


@app.command("list")
def list_payments(wallet: WalletArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """List what a wallet sent, refused payments included, newest first."""
    columns = ("payment", "kind", "state", "amount_minor", "credit", "refusal")
    with connect(url, client_key) as client:
        show_rows(client.payments(parse_id("wlt", wallet)), columns, as_json=as_json)


@app.command("refunds")
def list_refunds(
    payment: Annotated[str, typer.Argument(metavar="TRF", help="The payment, as trf_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what of a received payment was given back, and how much may still be."""
    with connect(url, client_key) as client:
        show(client.refunds(parse_id("trf", payment)), as_json=as_json)


@app.command("sign")
def sign_payment(
    wallet: WalletArgument,
    payee: Annotated[str, typer.Argument(help="The payee's account, as acc_..., at any intermediary.")],
    amount: Amount,
    client_key: ClientKey,
    device_key: DeviceKey,
    valid_minutes: ValidMinutes = 60,
    payment: PaymentId = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Sign a payment and print it, one line, for `payment send`. Nothing is paid yet."""
    with connect(url, client_key) as client:
        home = client.institution().ledgers[0]
        token = _sign(
            client,
            TransferKind.PAYMENT,
            home=home,
            wallet=wallet,
            credit=_account(payee),
            amount=amount,
            device_key=device_key,
            transfer=parse_id("trf", payment) if payment else ids.new_uuid7(),
            valid_minutes=valid_minutes,
        )
    typer.echo(token)


@app.command("send")
def send_payments(
    file: Annotated[Path, typer.Argument(help=f"Signed payments, one a line, at most {BATCH_ITEMS_MAX}.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send signed payments together. Send the same file again after an unknown outcome: each is paid once.

    A line an item, in order. Exit code 1 if any was refused.
    """
    tokens = [line.strip() for line in _read(file).splitlines() if line.strip()]
    if not 0 < len(tokens) <= BATCH_ITEMS_MAX:
        fail(f"{file} has {len(tokens)} payments: send from 1 to {BATCH_ITEMS_MAX} at once")
    with connect(url, client_key) as client:
        results = client.submit_payments(tokens)
    show_rows(results, ("payment", "state", "booked_at", "refusal", "detail"), as_json=as_json)
    if any(item.state is PaymentState.REFUSED for item in results):
        raise typer.Exit(REFUSED)


def exchange_out(
    wallet: WalletArgument,
    amount: Amount,
    client_key: ClientKey,
    device_key: DeviceKey,
    valid_minutes: ValidMinutes = 10,
    payment: PaymentId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Exchange currency in the wallet for bank deposit, signed by the device."""
    transfer = parse_id("trf", payment) if payment else ids.new_uuid7()
    typer.echo(f"payment {ids.show('trf', transfer)}", err=True)
    with connect(url, client_key) as client:
        home = client.institution().ledgers[0]
        token = _sign(
            client,
            TransferKind.EXCHANGE_OUT,
            home=home,
            wallet=wallet,
            credit=home.vault,
            amount=amount,
            device_key=device_key,
            transfer=transfer,
            valid_minutes=valid_minutes,
        )
        show(client.exchange_out(token), as_json=as_json)


@exchange_app.command("show")
def show_exchange(
    exchange: Annotated[str, typer.Argument(metavar="EXC", help="The exchange, as exc_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show an exchange-in. (An exchange-out is shown by `payment show`.)"""
    with connect(url, client_key) as client:
        show(client.get_exchange_in(parse_id("exc", exchange)), as_json=as_json)


def institution(as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show whose service it is, its rule pack, its public key, and its vault on each ledger. For everybody."""
    with WalletClient(url) as client:
        show(client.institution(), as_json=as_json)


@settlement_app.command("order")
def order_settlements(
    file: Annotated[Path, typer.Argument(help="JSON: an array of orders, or {'instructions': [...]}.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Register what the bank sent to a bridge, before the bridge asks for its signatures.

    An order: instruction_id (UETR), ledger, pay_currency, pay_amount_minor, credit_account, receive_currency,
    receive_amount_minor_min, valid_until. Send the same file again after an unknown outcome. Exit code 1 if any is
    refused.
    """
    try:
        found: Any = json.loads(_read(file))
        orders = TypeAdapter(list[SettlementOrder]).validate_python(
            found["instructions"] if isinstance(found, dict) and "instructions" in found else found
        )
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    except (ValueError, RecursionError) as error:
        fail(f"{file} is no JSON: {error}")
    if not 0 < len(orders) <= BATCH_ITEMS_MAX:
        fail(f"{file} has {len(orders)} orders: send from 1 to {BATCH_ITEMS_MAX} at once")
    with connect(url, client_key) as client:
        results = client.register_settlements(orders)
    show_rows(results, ("instruction_id", "refusal", "detail"), as_json=as_json)
    if any(item.refusal for item in results):
        raise typer.Exit(REFUSED)


def _sign(
    client: WalletClient,
    kind: TransferKind,
    *,
    home: LedgerMembership,
    wallet: str,
    credit: int,
    amount: str,
    device_key: Path,
    transfer: UUID,
    valid_minutes: int,
) -> str:
    account = client.get_wallet(parse_id("wlt", wallet)).account
    if account is None:
        fail("the wallet is not open yet: repeat in a moment")
    try:
        money = Money.parse_major(amount, Currency.of(home.currency))
    except ValueError as error:
        fail(str(error))
    return client.instruct(
        kind,
        key=load_key(device_key),
        ledger=home.ledger,
        debit=account,
        credit=credit,
        amount_minor=money.amount_minor,
        currency=home.currency,
        transfer=transfer,
        valid_until=system_clock() + timedelta(minutes=valid_minutes),
    )


def _account(text: str) -> int:
    try:
        return ids.parse_account(text)
    except ValueError as error:
        fail(f"{text}: {error}")


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > BULK_BODY_BYTES_MAX:
            fail(f"{path} is larger than {BULK_BODY_BYTES_MAX} bytes: split it")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{path} is no UTF-8 text")

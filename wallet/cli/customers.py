"""`jiaozi-wallet customer` and `jiaozi-wallet wallet`: who keeps wallets here, and which."""

from __future__ import annotations

from typing import Annotated

import typer

from kernel import ids
from kernel.crypto.keys import PrivateKey
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, load_key, parse_id
from wallet.cli.output import show, show_rows
from wallet.domain.rules import Evidence, WalletClass

app = typer.Typer(
    no_args_is_help=True,
    help="Customers: register and look at them. Their names and telephone numbers rest encrypted at the bank and "
    "never reach the ledger; `privacy erase` destroys them.",
)
wallet_app = typer.Typer(
    no_args_is_help=True,
    help="Wallets of customers who are registered already. `jiaozi-wallet open` does both at once; `life` changes a "
    "wallet that is open.",
)
CustomerArgument = Annotated[str, typer.Argument(metavar="CUS", help="Customer, as cus_...")]


@app.command("add")
def add_customer(
    client_key: ClientKey,
    name: Annotated[str, typer.Option(help="The customer's name; asked for by no class below II.")] = "",
    phone: Annotated[str, typer.Option(help="+ and digits.")] = "",
    evidence: Annotated[
        list[Evidence] | None, typer.Option(help="What was verified; may be given again. It decides the class.")
    ] = None,
    customer: Annotated[str, typer.Option(help="Its id, cus_...: after an unknown outcome give the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Register a customer with the evidence that was verified."""
    customer_id = parse_id("cus", customer) if customer else ids.new_uuid7()
    typer.echo(f"customer {ids.show('cus', customer_id)}", err=True)
    with connect(url, client_key) as client:
        view = client.create_customer(name=name, phone=phone, evidence=evidence or [], customer=customer_id)
    show(view, as_json=as_json)


@app.command("show")
def show_customer(
    customer: CustomerArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Show what is known about a customer, as far as your role may see it."""
    with connect(url, client_key) as client:
        show(client.get_customer(parse_id("cus", customer)), as_json=as_json)


@app.command("make-corporate")
def make_corporate(
    customer: CustomerArgument,
    client_key: ClientKey,
    legal_name: Annotated[str, typer.Option(help="As registered.")],
    lei: Annotated[str, typer.Option(help="Legal entity identifier, ISO 17442; its check digits are verified.")] = "",
    social_credit_code: Annotated[str, typer.Option(help="GB 32100-2015; its check character is verified.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Record that a customer is a company, by at least one of its identifiers."""
    with connect(url, client_key) as client:
        view = client.register_corporate(
            parse_id("cus", customer), legal_name=legal_name, lei=lei, social_credit_code=social_credit_code
        )
    show(view, as_json=as_json)


@app.command("corporate")
def show_corporate(
    customer: CustomerArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Show the company behind a customer."""
    with connect(url, client_key) as client:
        show(client.get_corporate(parse_id("cus", customer)), as_json=as_json)


@app.command("erasure")
def show_erasure(
    customer: CustomerArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Show when and why a customer's personal data were destroyed."""
    with connect(url, client_key) as client:
        show(client.get_erasure(parse_id("cus", customer)), as_json=as_json)


@wallet_app.command("add")
def add_wallet(
    customer: CustomerArgument,
    client_key: ClientKey,
    device_key: DeviceKey,
    wallet_class: Annotated[WalletClass, typer.Option("--class", help="I, II, III or IV.")] = WalletClass.IV,
    wallet: Annotated[str, typer.Option(help="Its id, wlt_...: after an unknown outcome give the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Open one more wallet for a customer, on the device's key."""
    wallet_id = parse_id("wlt", wallet) if wallet else ids.new_uuid7()
    key: PrivateKey = load_key(device_key)
    typer.echo(f"wallet {ids.show('wlt', wallet_id)}", err=True)
    with connect(url, client_key) as client:
        view = client.open_wallet(
            customer=parse_id("cus", customer), wallet_class=wallet_class, device_key=key.public, wallet=wallet_id
        )
    show(view, as_json=as_json)


@wallet_app.command("show")
def show_wallet(
    wallet: Annotated[str, typer.Argument(metavar="WLT", help="The wallet, as wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show everything about a wallet. `jiaozi-wallet balance` is the short form."""
    with connect(url, client_key) as client:
        show(client.get_wallet(parse_id("wlt", wallet)), as_json=as_json)


@wallet_app.command("list")
def list_wallets(
    client_key: ClientKey,
    customer: Annotated[str, typer.Option(help="Only this customer's, cus_...")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List wallets: id, class, state, account. Without balances."""
    with connect(url, client_key) as client:
        found = client.wallets(customer=parse_id("cus", customer) if customer else None)
        show_rows(found, ("wallet", "wallet_class", "state", "account"), as_json=as_json)

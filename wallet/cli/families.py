"""`jiaozi-wallet family` and `jiaozi-wallet alias`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from kernel import ids
from kernel.crypto.keys import PrivateKey, from_base64url, to_base64url
from kernel.money import Currency, Money, format_minor
from wallet import sealed_keys
from wallet.cli import output
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.client import WalletClient
from wallet.contract.families import AliasKind, AliasView, ChildCapsBody, ChildView
from wallet.domain.rules import WalletClass

app = typer.Typer(
    no_args_is_help=True,
    help="Child wallets: pocket money, a department, what a merchant may charge. A child has its own account, key and "
    "caps; its parent sees it and takes its money back with the child's key.",
)
alias_app = typer.Typer(
    no_args_is_help=True,
    help="Telephone numbers and e-mail addresses that lead to wallets. The service keeps no alias, only a hash of it.",
)
Parent = Annotated[str, typer.Argument(metavar="PARENT", help="The parent wallet, as wlt_...")]
ChildId = Annotated[str, typer.Argument(metavar="CHILD", help="The child wallet, as wlt_...")]
Wallet = Annotated[str, typer.Argument(metavar="WALLET", help="wlt_...")]
AliasId = Annotated[str, typer.Argument(metavar="ALIAS_ID", help="als_..., from `alias add`")]
Major = Annotated[str, typer.Option(help="Major units; empty = only the class's cap.")]


# --- families --------------------------------------------------------------------------------------------------------


@app.command("add")
def add_child(
    parent: Parent,
    client_key: ClientKey,
    device_key: DeviceKey,
    wallet_class: Annotated[WalletClass, typer.Option("--class", help="No stronger than the parent's.")] = (
        WalletClass.IV
    ),
    balance: Major = "",
    single: Major = "",
    daily: Major = "",
    total: Major = "",
    label: Annotated[str, typer.Option(help="At most 40 characters.")] = "",
    customer: Annotated[str, typer.Option(help="Another owner, as cus_...; empty = the parent's.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Open a child wallet for the key in --device-key, with caps of its own."""
    with connect(url, client_key) as client:
        owner = client.get_wallet(parse_id("wlt", parent))
        view = client.open_child(
            owner.wallet,
            customer=parse_id("cus", customer) if customer else owner.customer,
            wallet_class=wallet_class,
            device_key=load_key(device_key).public,
            caps=_caps(owner.currency, balance, single, daily, total),
            label=label,
        )
        _show(view, as_json=as_json)


@app.command("push")
def push_child(
    parent: Parent,
    merchant: Annotated[str, typer.Argument(help="The merchant's account, as acc_...")],
    total: Annotated[str, typer.Argument(help="Major units that it may charge in all.")],
    client_key: ClientKey,
    key_file: Annotated[Path, typer.Option(help="Where to keep the child's key (PEM, mode 0600).")],
    secret_file: Annotated[Path, typer.Option(help="Where to write the secret for the merchant (mode 0600).")],
    single: Major = "",
    daily: Major = "",
    label: Annotated[str, typer.Option(help="At most 40 characters.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Push a child wallet to a merchant: it may charge it for itself, up to the total, until you revoke it.

    The child's key is made here. It is sealed under the secret, and the service gets only the sealed one.
    """
    with connect(url, client_key) as client:
        owner = client.get_wallet(parse_id("wlt", parent))
        try:
            account = ids.parse_account(merchant)
        except ValueError as error:
            fail(f"{merchant}: {error}")
        child = ids.new_uuid7()
        made = sealed_keys.make(child, account)
        _write_secret(secret_file, to_base64url(made.secret))
        try:
            made.key.save(key_file)
        except OSError as error:
            fail(f"cannot write {key_file}: {error.strerror}")
        view = client.push_child(
            owner.wallet,
            customer=owner.customer,
            wallet_class=WalletClass.IV,
            merchant=account,
            key=made,
            child=child,
            caps=_caps(owner.currency, "", single, daily, total),
            label=label,
        )
        _show(view, as_json=as_json)


@app.command("charge")
def charge_child(
    child: ChildId,
    amount: Annotated[str, typer.Argument(help="Major units.")],
    secret_file: Annotated[Path, typer.Option(help="The secret that the parent handed over.")],
    charge: Annotated[str, typer.Option(help="trf_...: after an unknown outcome give the same.")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """The merchant charges what was pushed to it."""
    charge_id = parse_id("trf", charge) if charge else ids.new_uuid7()
    typer.echo(f"charge {ids.show('trf', charge_id)}", err=True)
    try:
        secret = from_base64url(secret_file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        fail(f"{secret_file}: {error}")
    with WalletClient(url) as client:
        money = _money(amount, client.institution().ledgers[0].currency)
        view = client.charge(
            parse_id("wlt", child),
            secret=secret,
            amount_minor=money.amount_minor,
            currency=money.currency.code,
            charge=charge_id,
        )
        typer.echo(f"{view.state.value} {money} {ids.show('trf', view.payment)} at {view.booked_at}")


@app.command("list")
def list_children(parent: Parent, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """The children with their balances, caps and what they spent."""
    with connect(url, client_key) as client:
        for view in client.children(parse_id("wlt", parent)):
            _show(view, as_json=as_json)


@app.command("pool")
def pool_children(
    parent: Parent,
    client_key: ClientKey,
    child_key: Annotated[list[str], typer.Option("--key", metavar="CHILD=FILE", help="A child and its key's file.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Take the children's money back, each with the child's own key."""
    with connect(url, client_key) as client:
        keys: dict[UUID, PrivateKey] = {}
        for pair in child_key:
            name, _, path = pair.partition("=")
            keys[parse_id("wlt", name)] = load_key(Path(path))
        ledger = client.institution().ledgers[0].ledger
        for result in client.pool(parse_id("wlt", parent), keys=keys, ledger=ledger):
            shown = ids.show("trf", result.payment) if result.payment else "-"
            typer.echo(f"{result.state.value} {shown} {result.refusal or ''}".rstrip())


@app.command("revoke")
def revoke_child(parent: Parent, child: ChildId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """From now on the child pays its parent alone; a merchant's secret is worth nothing."""
    with connect(url, client_key) as client:
        _show(client.revoke_child(parse_id("wlt", parent), parse_id("wlt", child)), as_json=False)


@app.command("close")
def close_child(parent: Parent, child: ChildId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Close an empty child for good."""
    with connect(url, client_key) as client:
        _show(client.close_child(parse_id("wlt", parent), parse_id("wlt", child)), as_json=False)


@app.command("show")
def show_child(
    parent: Parent, child: ChildId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Show one child: balance, caps, what it spent, the version that `caps` asks for."""
    with connect(url, client_key) as client:
        output.show(client.get_child(parse_id("wlt", parent), parse_id("wlt", child)), as_json=as_json)


@app.command("history")
def child_history(
    parent: Parent,
    child: ChildId,
    client_key: ClientKey,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many lines.")] = 50,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List what was booked on a child's account, newest first."""
    columns = ("booked_at", "kind", "direction", "amount_minor", "balance_minor", "transfer")
    with connect(url, client_key) as client:
        found = client.child_history(parse_id("wlt", parent), parse_id("wlt", child), limit=limit)
        currency = Currency.of(client.institution().ledgers[0].currency)
    output.show_rows(found, columns, as_json=as_json, currency=currency)


@app.command("caps")
def set_caps(
    parent: Parent,
    child: ChildId,
    client_key: ClientKey,
    balance: Annotated[str, typer.Option(help="Balance at most; major units. Unset: the class's.")] = "",
    single: Annotated[str, typer.Option(help="One payment at most.")] = "",
    daily: Annotated[str, typer.Option(help="Payments a day at most.")] = "",
    total: Annotated[str, typer.Option(help="All payments ever at most.")] = "",
    version: Annotated[
        int | None, typer.Option(help="As `show` gave it: refused if somebody changed the caps since. Unset: now.")
    ] = None,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Set a child's caps, all four as they shall be; what is not given is the class's alone."""
    parent_id, child_id = parse_id("wlt", parent), parse_id("wlt", child)
    with connect(url, client_key) as client:
        known = client.get_child(parent_id, child_id)
        caps = _caps(known.currency, balance, single, daily, total)
        at = known.version if version is None else version
        output.show(client.set_child_caps(parent_id, child_id, caps, version=at), as_json=as_json)


# --- aliases ---------------------------------------------------------------------------------------------------------


@alias_app.command("add")
def add_alias(
    wallet: Wallet,
    kind: Annotated[AliasKind, typer.Argument(help="phone or email")],
    alias: Annotated[str, typer.Argument(help="+8613800138000, or name@example.com")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Have a code sent to the alias; give it back with `alias verify`."""
    with connect(url, client_key) as client:
        _show_alias(client.create_alias(parse_id("wlt", wallet), kind=kind, alias=alias))


@alias_app.command("verify")
def verify_alias(alias_id: AliasId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Give the code back; it is asked for."""
    code = typer.prompt("code")
    with connect(url, client_key) as client:
        _show_alias(client.verify_alias(parse_id("als", alias_id), code.strip()))


@alias_app.command("default")
def default_alias(alias_id: AliasId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Let this wallet be the one that payments to the alias reach."""
    with connect(url, client_key) as client:
        _show_alias(client.make_alias_default(parse_id("als", alias_id)))


@alias_app.command("remove")
def remove_alias(alias_id: AliasId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """The alias leads to the wallet no more."""
    with connect(url, client_key) as client:
        _show_alias(client.remove_alias(parse_id("als", alias_id)))


@alias_app.command("list")
def list_aliases(wallet: Wallet, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """A wallet's aliases, the newest first."""
    with connect(url, client_key) as client:
        for view in client.aliases(parse_id("wlt", wallet)):
            _show_alias(view)


@alias_app.command("find")
def find_payee(
    payer: Annotated[str, typer.Argument(help="The paying wallet, as wlt_...")],
    kind: Annotated[AliasKind, typer.Argument(help="phone or email")],
    alias: Annotated[str, typer.Argument(help="The payee's alias.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Whose account it is, by masked name: pay only if you know it."""
    with connect(url, client_key) as client:
        currency = client.institution().ledgers[0].currency
        found = client.look_up_alias(payer=parse_id("wlt", payer), kind=kind, alias=alias, currency=currency)
        typer.echo(f"{ids.show_account(found.account)}  {found.masked_name}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _caps(currency: str, balance: str, single: str, daily: str, total: str) -> ChildCapsBody:
    def minor(text: str) -> int | None:
        return _money(text, currency).amount_minor if text else None

    return ChildCapsBody(
        balance_max_minor=minor(balance),
        single_max_minor=minor(single),
        day_max_minor=minor(daily),
        total_max_minor=minor(total),
    )


def _money(text: str, currency: str) -> Money:
    try:
        return Money.parse_major(text, Currency.of(currency))
    except ValueError as error:
        fail(str(error))


def _write_secret(path: Path, text: str) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)


def _show(view: ChildView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    currency = Currency.of(view.currency)
    account = ids.show_account(view.account) if view.account else "opening"
    balance = "-" if view.balance_minor is None else format_minor(view.balance_minor, currency)
    total = "" if view.caps.total_max_minor is None else f" of {format_minor(view.caps.total_max_minor, currency)}"
    spent = f"spent {format_minor(view.spent_total_minor, currency)}{total}"
    typer.echo(f"{ids.show('wlt', view.child)}  {account}  {view.state.value}  {balance}  {spent}  {view.label}")


def _show_alias(view: AliasView) -> None:
    mark = "  default" if view.is_default else ""
    typer.echo(f"{ids.show('als', view.alias_id)}  {view.kind.value}  {view.state.value}{mark}")

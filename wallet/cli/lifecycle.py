"""`jiaozi-wallet life`: caps, class, devices, loss and closure of a wallet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer

from kernel import ids
from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.money import Currency, Money, format_minor
from ledger.contract import TransferKind
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.client import WalletClient
from wallet.contract.lifecycle import CapsView, ChangeState, WalletChangeView
from wallet.domain.rules import Evidence, WalletClass

app = typer.Typer(
    no_args_is_help=True,
    help="A wallet's life: its holder's own caps, its class, its devices, a lost device, its end. A change that says "
    "`pending` is recorded and finished by the service; `show` says how far it is.",
)
WalletId = Annotated[str, typer.Argument(help="Wallet, as wlt_...")]
ChangeId = Annotated[
    str, typer.Option("--change", help="The change's id, chg_...: after an unknown outcome give the same.")
]
Identified = Annotated[
    list[Evidence], typer.Option("--identified-by", help="What the holder was identified by now; repeat the option.")
]


@app.command("caps")
def set_caps(
    wallet: WalletId,
    client_key: ClientKey,
    balance: Annotated[str, typer.Option(help="Major units; empty = no cap of the holder's own.")] = "",
    single: Annotated[str, typer.Option(help="The same for one payment.")] = "",
    daily: Annotated[str, typer.Option(help="The same for a day.")] = "",
    annual: Annotated[str, typer.Option(help="The same for a year.")] = "",
    device_key: Annotated[
        Path | None,
        typer.Option(envvar="JIAOZI_DEVICE_KEY", help="A device's private key: needed as soon as a cap is raised."),
    ] = None,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Set the holder's own caps, all four as they shall be. Never above the class's."""
    with connect(url, client_key) as client:
        currency = Currency.of(client.institution().ledgers[0].currency)

        def minor(text: str) -> int | None:
            try:
                return Money.parse_major(text, currency).amount_minor if text else None
            except ValueError as error:
                fail(f"{text}: {error}; give major units, e.g. 250.00")

        caps = CapsView(
            balance_max_minor=minor(balance),
            single_max_minor=minor(single),
            day_max_minor=minor(daily),
            year_max_minor=minor(annual),
        )
        key = load_key(device_key) if device_key is not None else None
        _print(client.set_caps(wallet=parse_id("wlt", wallet), caps=caps, key=key, change=_change(change)), as_json)


@app.command("class")
def change_class(
    wallet: WalletId,
    wallet_class: Annotated[WalletClass, typer.Argument(metavar="CLASS", help="I, II, III or IV.")],
    client_key: ClientKey,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Bring the wallet to another class. The customer's evidence must open it: see `evidence`."""
    with connect(url, client_key) as client:
        view = client.change_class(wallet=parse_id("wlt", wallet), wallet_class=wallet_class, change=_change(change))
        _print(view, as_json)


@app.command("evidence")
def change_evidence(
    customer: Annotated[str, typer.Argument(help="Customer, as cus_...")],
    client_key: ClientKey,
    add: Annotated[list[Evidence], typer.Option(help="Verified now; repeat the option.")] = [],  # noqa: B006
    withdraw: Annotated[list[Evidence], typer.Option(help="No longer good; repeat the option.")] = [],  # noqa: B006
    change: Annotated[str, typer.Option("--change", help="The id, evc_...: after an unknown outcome the same.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Record evidence verified anew or withdrawn. Wallets that it no longer opens go down, or are suspended."""
    with connect(url, client_key) as client:
        view = client.change_evidence(
            customer=parse_id("cus", customer),
            added=add,
            withdrawn=withdraw,
            change=parse_id("evc", change) if change else None,
        )
    if as_json:
        typer.echo(view.model_dump_json())
        return
    opens = view.customer.highest_class
    typer.echo(f"evidence {', '.join(view.customer.evidence) or 'none'}   opens {opens.value if opens else 'no class'}")
    for made in view.changes:
        _print(made, as_json)


@app.command("devices")
def list_devices(wallet: WalletId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """List the wallet's devices by the thumbprint of their keys, the oldest first."""
    with connect(url, client_key) as client:
        found = client.devices(parse_id("wlt", wallet))
    if as_json:
        typer.echo("[" + ",".join(item.model_dump_json() for item in found) + "]")
        return
    for item in found:
        typer.echo(f"{item.thumbprint}  {item.state.value:<9}  since {item.added_at:%Y-%m-%d %H:%M:%S}")


@app.command("add-device")
def add_device(
    wallet: WalletId,
    new_key: Annotated[Path, typer.Argument(help="The new device's private key (PEM), made by `new-key`.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    replace: Annotated[bool, typer.Option("--replace", help="Make it the wallet's only device.")] = False,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Add a device, or make it the only one, with the consent of an active one (--device-key)."""
    with connect(url, client_key) as client:
        wallet_id = parse_id("wlt", wallet)
        view = client.change_device(
            "replace-holder-key" if replace else "add-holder-key",
            wallet=wallet_id,
            account=_account(client, wallet_id),
            ledger=client.institution().ledgers[0].ledger,
            device_key=load_key(new_key).public,
            key=load_key(device_key),
            change=_change(change),
        )
        _print(view, as_json)


@app.command("remove-device")
def remove_device(
    wallet: WalletId,
    thumbprint: Annotated[str, typer.Argument(help="Of the device to remove: see `devices`.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Remove a device with the consent of an active one. The last one is replaced, not removed."""
    with connect(url, client_key) as client:
        wallet_id = parse_id("wlt", wallet)
        found = next((item for item in client.devices(wallet_id) if item.thumbprint == thumbprint), None)
        if found is None:
            fail(f"{thumbprint}: no device of this wallet; `jiaozi-wallet life devices` lists them")
        try:
            removed = PublicKey.from_jwk(found.key)
        except KeyRefused as error:
            fail(str(error))
        view = client.change_device(
            "remove-holder-key",
            wallet=wallet_id,
            account=_account(client, wallet_id),
            ledger=client.institution().ledgers[0].ledger,
            device_key=removed,
            key=load_key(device_key),
            change=_change(change),
        )
        _print(view, as_json)


@app.command("report-loss")
def report_loss(
    wallet: WalletId, client_key: ClientKey, change: ChangeId = "", as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """A device is lost: nothing is debited any more, at once."""
    with connect(url, client_key) as client:
        _print(client.report_loss(wallet=parse_id("wlt", wallet), change=_change(change)), as_json)


@app.command("suspend")
def suspend_wallet(
    wallet: WalletId, client_key: ClientKey, change: ChangeId = "", as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Nothing is debited any more, for the institution's own reason (operators). `report-loss` is the holder's."""
    with connect(url, client_key) as client:
        view = client.suspend_wallet(wallet=parse_id("wlt", wallet), reason="institution", change=_change(change))
        _print(view, as_json)


@app.command("recover")
def recover_key(
    wallet: WalletId,
    new_key: Annotated[Path, typer.Argument(help="The new device's private key (PEM), made by `new-key`.")],
    client_key: ClientKey,
    identified_by: Identified,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """After a loss and a new identification: announce a new device. It is the only one after the waiting time."""
    with connect(url, client_key) as client:
        view = client.recover_key(
            wallet=parse_id("wlt", wallet),
            device_key=load_key(new_key).public,
            identified_by=identified_by,
            change=_change(change),
        )
        _print(view, as_json)


@app.command("object")
def object_to_key(
    wallet: WalletId, client_key: ClientKey, device_key: DeviceKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """With a current device: object to the announced one. The wallet stays suspended."""
    with connect(url, client_key) as client:
        wallet_id = parse_id("wlt", wallet)
        view = client.object_to_key(
            wallet=wallet_id,
            account=_account(client, wallet_id),
            ledger=client.institution().ledgers[0].ledger,
            key=load_key(device_key),
        )
        _print(view, as_json)


@app.command("resume")
def resume_wallet(
    wallet: WalletId,
    client_key: ClientKey,
    identified_by: Identified,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """The lost device is found, and the holder identified again: debits again."""
    with connect(url, client_key) as client:
        view = client.resume_wallet(
            wallet=parse_id("wlt", wallet), reason="loss", identified_by=identified_by, change=_change(change)
        )
        _print(view, as_json)


@app.command("lift")
def lift_suspension(
    wallet: WalletId, client_key: ClientKey, change: ChangeId = "", as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Take the institution's own reason away (operators); the wallet is open again when no other is left."""
    with connect(url, client_key) as client:
        view = client.resume_wallet(wallet=parse_id("wlt", wallet), reason="institution", change=_change(change))
        _print(view, as_json)


@app.command("close")
def close_wallet(
    wallet: WalletId,
    client_key: ClientKey,
    device_key: DeviceKey,
    change: ChangeId = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Close the wallet: what is in it, interest included, goes to the bank deposit, signed by the device."""
    change_id = _change(change) or ids.new_uuid7()
    typer.echo(f"change {ids.show('chg', change_id)}", err=True)
    with connect(url, client_key) as client:
        wallet_id, home = parse_id("wlt", wallet), client.institution().ledgers[0]
        view = client.close_wallet(wallet=wallet_id, change=change_id)
        due = view.closure.amount_due_minor if view.closure is not None else None
        if due:
            instruction = client.instruct(
                TransferKind.EXCHANGE_OUT,
                key=load_key(device_key),
                ledger=home.ledger,
                debit=_account(client, wallet_id),
                credit=home.vault,
                amount_minor=due,
                currency=home.currency,
            )
            view = client.close_wallet(wallet=wallet_id, change=change_id, instruction=instruction)
        _print(view, as_json)
        if due and not as_json and view.state is ChangeState.DONE:
            typer.echo(f"paid out {home.currency} {format_minor(due, Currency.of(home.currency))}")


@app.command("cancel-close")
def cancel_closure(
    change: Annotated[str, typer.Argument(metavar="CHG", help="The closure, chg_..., which `close` printed.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Close the wallet after all not: possible until its pay-out was sent."""
    with connect(url, client_key) as client:
        _print(client.cancel_closure(parse_id("chg", change)), as_json)


@app.command("change")
def show_change(
    change: Annotated[str, typer.Argument(metavar="CHG", help="The change, chg_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show one change and how far it has come."""
    with connect(url, client_key) as client:
        _print(client.get_wallet_change(parse_id("chg", change)), as_json)


@app.command("show")
def show_changes(wallet: WalletId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """The wallet's changes, newest first, and how far each has come."""
    with connect(url, client_key) as client:
        found = list(client.wallet_changes(parse_id("wlt", wallet)))
    if as_json:
        typer.echo("[" + ",".join(item.model_dump_json() for item in found) + "]")
        return
    for item in found:
        _print(item, as_json)


@app.command("notices")
def show_notices(wallet: WalletId, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """What the holder is to be told, newest first."""
    with connect(url, client_key) as client:
        found = list(client.notices(parse_id("wlt", wallet)))
    if as_json:
        typer.echo("[" + ",".join(item.model_dump_json() for item in found) + "]")
        return
    for item in found:
        said = ", ".join(f"{name} {value}" for name, value in item.data.items())
        typer.echo(f"{item.at:%Y-%m-%d %H:%M:%S}  {item.kind:<20}  {said}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _account(client: WalletClient, wallet: UUID) -> int:
    account = client.get_wallet(wallet).account
    if account is None:
        fail("the wallet is not open yet: repeat in a moment")
    return account


def _change(text: str) -> UUID | None:
    return parse_id("chg", text) if text else None


def _print(view: WalletChangeView, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    parts = [ids.show("chg", view.change), view.kind.value, view.state.value]
    if view.due_at is not None:
        parts.append(f"due {view.due_at:%Y-%m-%d %H:%M:%S}")
    if view.refusal:
        parts.append(f"({view.refusal}: {view.detail or ''})")
    typer.echo("  ".join(parts))

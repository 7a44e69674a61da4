"""`jiaozi-wallet card`: an emulated IC card, and the terminal that it is put into."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from uuid import uuid4

import typer

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from kernel.money import Currency, Money
from wallet.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, fail, parse_id
from wallet.client import WalletClient
from wallet.contract.families import CardView
from wallet.domain.rules import WalletClass
from wallet.hardware.card import Card, CardUnusable, FolderDisk
from wallet.hardware.element import CardRefusal, Presented
from wallet.hardware.issuer import CardIssuer

app = typer.Typer(
    no_args_is_help=True,
    help="An emulated IC card: a secure element whose key never leaves it, in a folder (mode 0700). It pays small "
    "amounts without PIN, works while the phone is off, and survives a power cut at any moment. Copying the folder "
    "clones the card: the service finds that by its counter and suspends it.",
)
_ATTESTATION = "attestation.json"
Folder = Annotated[Path, typer.Argument(metavar="CARD", help="The card's folder.")]


@app.command("init")
def init_card(
    card: Folder,
    pin_free_single: Annotated[int, typer.Option(min=0, help="Minor units payable at once without PIN.")] = 10_000,
    pin_free_total: Annotated[int, typer.Option(min=0, help="Minor units payable in all without PIN.")] = 50_000,
    issuer: Annotated[str, typer.Option(help="The card issuer's name, as institutions have it registered.")] = "",
    issuer_key: Annotated[Path | None, typer.Option(help="Its root key (PEM): attests the card. Emulation.")] = None,
) -> None:
    """Make a card with a key of its own, asking for its PIN (4 to 12 digits). Prints its public key. With an issuer's
    key the card is attested; institutions take no other."""
    try:
        root = None if issuer_key is None else PrivateKey.load(issuer_key)
        maker = None if root is None else CardIssuer(issuer, root, now=system_clock())
    except (OSError, ValueError) as error:
        fail(f"the issuer's key or name cannot be used: {error}")
    pin = typer.prompt("PIN", hide_input=True, confirmation_prompt=True)
    with _usable():
        try:
            made = Card.make(
                FolderDisk.make(card),
                pin=pin,
                pin_free_single_max_minor=pin_free_single,
                pin_free_total_max_minor=pin_free_total,
            )
        except ValueError as error:
            card.rmdir()
            fail(str(error))
        with made:
            if maker is not None:
                chain = maker.attest(
                    made.public_key,
                    serial=f"{uuid4()}",
                    pin_free_single_max_minor=pin_free_single,
                    pin_free_total_max_minor=pin_free_total,
                )
                (card / _ATTESTATION).write_text(json.dumps(chain))
            typer.echo(str(made.public_key.to_jwk()).replace("'", '"'))


@app.command("open")
def open_card_wallet(
    card: Folder,
    customer: Annotated[str, typer.Argument(help="Whose wallet it will be, as cus_...")],
    client_key: ClientKey,
    wallet_class: Annotated[WalletClass, typer.Option("--class", help="I, II, III or IV.")] = WalletClass.IV,
    url: Url = DEFAULT_URL,
) -> None:
    """At the branch: open a wallet for the card's key, tell the card its account, register it with its attestation."""
    try:
        attestation = [str(token) for token in json.loads((card / _ATTESTATION).read_text())]
    except (OSError, ValueError):
        fail(f"{card} is not attested: make it with `card init --issuer NAME --issuer-key ROOT.pem`")
    with _usable(), Card(FolderDisk(card)) as chip, connect(url, client_key) as client:
        owner = parse_id("cus", customer)
        view = client.open_wallet(
            customer=owner,
            wallet_class=wallet_class,
            device_key=chip.public_key,
            wallet=ids.derive_uuid7(owner, f"card:{chip.public_key.thumbprint}"),  # repeated, it is the same wallet
        )
        if view.account is None:
            fail("the wallet is not open yet; repeat this")
        _answer(chip.bind(AccountNumber(view.account)))
        client.register_card(
            view.wallet,
            key=chip.public_key,
            attestation=attestation,
            pin_free_single_max_minor=chip.memory.pin_free_single_max_minor,
            pin_free_total_max_minor=chip.memory.pin_free_total_max_minor,
        )
        typer.echo(f"wallet   {ids.show('wlt', view.wallet)}")
        typer.echo(f"account  {ids.show_account(view.account)}")


@app.command("status")
def card_status(card: Folder) -> None:
    """What the card says of itself."""
    with _usable(), Card(FolderDisk(card)) as chip:
        memory = chip.memory
        typer.echo(f"key       {chip.public_key.thumbprint}")
        typer.echo(f"account   {ids.show_account(memory.account) if memory.account else 'none yet'}")
        typer.echo(f"counter   {memory.counter}")
        typer.echo(f"PIN       {memory.pin_tries_left} tries left" if memory.pin_tries_left else "PIN       blocked")
        left = memory.pin_free_total_max_minor - memory.pin_free_minor
        typer.echo(f"PIN-free  {memory.pin_free_single_max_minor} at once, {left} left, in minor units")


@app.command("pay")
def pay_with_card(
    card: Folder,
    payee: Annotated[str, typer.Argument(help="The payee's account, as acc_...")],
    amount: Annotated[str, typer.Argument(help="Major units, e.g. 12.50")],
    with_pin: Annotated[bool, typer.Option("--pin", help="Ask for the PIN first.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """The terminal presents the payment, the card signs, the terminal carries it. Prints its finality."""
    with _usable(), Card(FolderDisk(card)) as chip, WalletClient(url) as client:
        home = client.institution().ledgers[0]
        try:
            money = Money.parse_major(amount, Currency.of(home.currency))
            credit = ids.parse_account(payee)
        except ValueError as error:
            fail(str(error))
        if with_pin:
            _answer(chip.give_pin(typer.prompt("PIN", hide_input=True)))
        now = system_clock()
        presented = Presented(home.ledger, credit, money.amount_minor, home.currency, now, now + timedelta(minutes=5))
        token = chip.sign(presented)
        if isinstance(token, CardRefusal):
            hint = ": repeat with --pin" if token is CardRefusal.PIN_NEEDED else ""
            fail(f"the card refused: {token.value}: {token.title}{hint}")
        view = client.submit_payment(token)
        typer.echo(f"{view.state.value} {money} {ids.show('trf', view.payment)} at {view.booked_at}")


@app.command("list")
def list_cards(
    wallet: Annotated[str, typer.Argument(help="wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """The wallet's cards at the service; of a cloned one also the proof (with --json)."""
    with connect(url, client_key) as client:
        for view in client.cards(parse_id("wlt", wallet)):
            _show(view, as_json=as_json)


@app.command("report")
def report_card(
    wallet: Annotated[str, typer.Argument(help="wlt_...")],
    thumbprint: Annotated[str, typer.Argument(help="The card's key, from `card list`.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Lost or stolen: nothing that the card signs is carried any more."""
    with connect(url, client_key) as client:
        _show(client.report_card(parse_id("wlt", wallet), thumbprint), as_json=as_json)


@app.command("revocations")
def take_revocations(
    revocations: Annotated[Path, typer.Argument(help="The list that the card issuer has signed (one token).")],
    url: Url = DEFAULT_URL,
) -> None:
    """Hand in a card issuer's list: its cards are suspended here and never registered again."""
    try:
        token = revocations.read_text("ascii").strip()
    except (OSError, UnicodeError) as error:
        fail(f"cannot read {revocations}: {error}")
    with WalletClient(url) as client:
        view = client.take_card_revocations(token)
    typer.echo(f"{view.issuer} list {view.number}: {view.suspended} cards suspended here")


@contextmanager
def _usable() -> Iterator[None]:
    try:
        yield
    except CardUnusable as error:
        fail(str(error))


def _answer(refusal: CardRefusal | None) -> None:
    if refusal is not None:
        fail(f"the card refused: {refusal.value}: {refusal.title}")


def _show(view: CardView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    why = f" ({view.suspended_why} {view.suspended_at})" if view.suspended_why else ""
    typer.echo(f"{view.thumbprint}  {view.state}{why}  counter {view.counter_last}")

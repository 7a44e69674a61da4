"""`jiaozi-wallet control`: two signatures for a corporate wallet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Annotated
from uuid import UUID

import typer
from pydantic import ValidationError

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PublicKey
from ledger.contract import InvalidInstruction, read_instruction
from wallet.cli.options import (
    DEFAULT_URL,
    ClientKey,
    DeviceKey,
    Json,
    Url,
    connect,
    fail,
    load_key,
    load_public_key,
    parse_id,
)
from wallet.client import WalletClient
from wallet.client.controls import payment_control
from wallet.contract.controls import APPROVED_TOGETHER_MAX, ControlView, sign_control

app = typer.Typer(
    no_args_is_help=True,
    help="Two signatures for a corporate wallet: above what one may pay alone, the maker signs and the checker "
    "approves the same instruction. Typical order: sign (each of two persons), set, approve; then the maker pays. See "
    "docs/dual-control.md.",
)
Wallet = Annotated[str, typer.Argument(metavar="WALLET", help="wlt_...")]


@app.command("sign")
def sign_rules(
    wallet: Wallet,
    device_key: DeviceKey,
    signatory: Annotated[list[str], typer.Option(help="PERSON=FILE with the person's public JWK; two or more.")],
    alone: Annotated[int, typer.Option(min=0, help="Minor units that one signature may pay at once.")],
    alone_day: Annotated[int, typer.Option(min=0, help="Minor units that one signature may pay in a day, in all.")],
    valid_until: Annotated[datetime, typer.Option(formats=["%Y-%m-%dT%H:%M:%SZ"], help="UTC; both give the same.")],
    version: Annotated[int, typer.Option(min=1, help="1 at first, then one more each time.")] = 1,
    off: Annotated[bool, typer.Option("--off", help="One signature is enough again.")] = False,
) -> None:
    """Sign the rules with --device-key and print the token. Two persons sign the same; nothing is sent."""
    named = [item.partition("=") for item in signatory]
    who = [(person, load_public_key(Path(file))) for person, _, file in named]
    try:
        document = payment_control(
            parse_id("wlt", wallet),
            who,
            alone_max_minor=alone,
            alone_day_max_minor=alone_day,
            version=version,
            valid_until=valid_until.replace(tzinfo=UTC),
            is_in_force=not off,
        )
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"give --signatory PERSON=FILE.json twice or more: {'.'.join(map(str, first['loc']))}: {first['msg']}")
    typer.echo(sign_control(document, load_key(device_key)))


@app.command("set")
def set_rules(
    wallet: Wallet,
    first: Annotated[str, typer.Argument(help="The token that one person has signed.")],
    second: Annotated[str, typer.Argument(help="And the other's, of the same rules.")],
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Put rules in force that two persons have signed (`control sign`)."""
    with WalletClient(url) as client:
        _show(client.set_payment_control(parse_id("wlt", wallet), [first, second]), as_json=as_json)


@app.command("show")
def show_rules(wallet: Wallet, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Who signs, what one signature may pay, and what it has paid today."""
    with connect(url, client_key) as client:
        _show(client.payment_control(parse_id("wlt", wallet)), as_json=as_json)


@app.command("approve")
def approve(
    wallet: Wallet,
    device_key: DeviceKey,
    instructions: Annotated[Path, typer.Argument(help="The maker's signed instructions, one token a line.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    valid_hours: Annotated[
        int, typer.Option(min=1, max=24 * 400, help="How long the approval stands; a standing payment's day is far.")
    ] = 8,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what the maker wants to pay, ask, and sign an approval of exactly that with the checker's key."""
    tokens = {}
    try:
        for line in instructions.read_text("ascii").split():
            item = read_instruction(line)
            tokens[item.id] = line
            typer.echo(f"{ids.show_account(item.credit or 0)}  {item.amount_minor} {item.currency} (minor units)")
    except (OSError, UnicodeError, InvalidInstruction) as error:
        fail(f"{instructions} is no list of signed instructions: {error}")
    if not tokens:
        fail(f"{instructions} is empty")
    if not yes:
        typer.confirm("Approve?", abort=True)
    key, until = load_key(device_key), system_clock() + timedelta(hours=valid_hours)
    with WalletClient(url) as client:
        for group in batched(tokens.items(), APPROVED_TOGETHER_MAX):
            view = client.approve_payments(parse_id("wlt", wallet), dict(group), key=key, valid_until=until)
            typer.echo(f"{len(view.payments)} approved by {view.checker}")


@app.command("withdraw")
def withdraw(
    wallet: Wallet,
    device_key: DeviceKey,
    payments: Annotated[list[str], typer.Argument(help="Payments, as trf_...")],
    url: Url = DEFAULT_URL,
) -> None:
    """Take back approvals that were not used yet, signed with the checker's key."""
    found = [parse_id("trf", payment) for payment in payments]
    with WalletClient(url) as client:
        view = client.withdraw_approvals(parse_id("wlt", wallet), found, key=load_key(device_key))
    typer.echo(f"{len(view.payments)} taken back by {view.checker}")


def batched(items: Iterable[tuple[UUID, str]], size: int) -> Iterator[list[tuple[UUID, str]]]:
    """In groups of `size`, the last one smaller."""
    rest = iter(items)
    while group := list(islice(rest, size)):
        yield group


def _show(view: ControlView, *, as_json: bool) -> None:
    if as_json:
        typer.echo(view.model_dump_json())
        return
    typer.echo(f"version {view.version}, {'in force' if view.is_in_force else 'off'}")
    typer.echo(f"one signature pays {view.alone_max_minor} at once, {view.alone_day_max_minor} a day (minor units)")
    typer.echo(f"today so far {view.alone_today_minor}")
    for item in view.signatories:
        typer.echo(f"signs: {item.person}  {PublicKey.from_jwk(item.key).thumbprint}")

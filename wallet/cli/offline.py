"""`jiaozi-wallet purse`: emulated offline devices, what they say to each other and to the service."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, NoReturn

import segno
import typer

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import KeyRefused, PublicKey, Suite
from kernel.money import Currency, Money, format_minor
from wallet.cli import output
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
from wallet.contract.offline import MESSAGE_BYTES_MAX, SYNCED_TOGETHER_MAX
from wallet.domain.offline import element, messages
from wallet.domain.offline.carriers import FRAME_CHARACTERS_MAX, FRAMES_MAX, BadFrames, from_frames, to_frames
from wallet.domain.offline.cose import Unreadable
from wallet.domain.offline.element import Step
from wallet.domain.offline.messages import Certificate
from wallet.domain.offline.verify import verify_proof
from wallet.domain.offline.vocabulary import Disposition, Refused
from wallet.purse_device import DeviceBroken, PurseDevice

app = typer.Typer(
    no_args_is_help=True,
    help="Pay without a network. Each DEVICE is a directory that stands for a secure element: `new` makes it, `issue` "
    "gets its certificate, `load` moves money from the wallet into it. Then two devices pay each other with no service "
    "in reach: the payee runs `ask`, the payer `pay`, the payee `receive`; the messages are files, or QR codes with "
    "--qr. Later `sync` hands in what a device holds, on either side, as often as you like.",
)

DeviceArgument = Annotated[Path, typer.Argument(metavar="DEVICE", help="Directory of the device.")]
Message = Annotated[
    Path, typer.Argument(metavar="MESSAGE", help="File with the other device's message: its bytes, or its QR frames.")
]
Out = Annotated[Path | None, typer.Option("--out", help="Write the message to this file.")]
Qr = Annotated[bool, typer.Option("--qr", help="Show the message as QR codes in the terminal.")]
QrFiles = Annotated[
    Path | None, typer.Option("--svg", help="Write the QR codes to files of this name, e.g. pay.svg (pay-2.svg, ...).")
]
_FILE_BYTES_MAX = max(FRAMES_MAX * (FRAME_CHARACTERS_MAX + 2), MESSAGE_BYTES_MAX)


@app.command("new")
def new_device(
    device: DeviceArgument,
    suite: Annotated[Suite, typer.Option(help="Of its key.")] = Suite.ECDSA_P256_SHA256,
) -> None:
    """Make an emulated device with a key of its own. Prints the public JWK."""
    try:
        made = PurseDevice.make(device, suite=suite)
    except OSError as error:
        fail(f"cannot make {device}: {error.strerror}; name a directory that does not exist yet")
    typer.echo(json.dumps(made.key.to_jwk()))


@app.command()
def issue(
    device: DeviceArgument,
    wallet: Annotated[str, typer.Argument(help="The holder's wallet, as wlt_...")],
    client_key: ClientKey,
    purse: Annotated[str, typer.Option(help="The purse's id, pur_...: after an unknown outcome give the same.")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Get the device's certificate from the institution: its caps, its expiry, the institution's key."""
    opened = _open(device)
    purse_id = parse_id("pur", purse) if purse else ids.new_uuid7()
    typer.echo(f"purse {ids.show('pur', purse_id)}", err=True)
    with connect(url, client_key) as client:
        view = client.create_purse(wallet=parse_id("wlt", wallet), device_key=opened.key, purse=purse_id)
        institution_key = PublicKey.from_jwk(client.institution().key)
    try:
        refused = opened.start(view.certificate, institution_key)
    except FileExistsError as error:
        fail(str(error))
    if refused is not None:
        _refuse(refused)
    currency = Currency.of(view.currency)
    typer.echo(f"purse {ids.show('pur', view.purse)} holds at most {format_minor(view.balance_max_minor, currency)}")
    typer.echo(f"pays until {view.not_after:%Y-%m-%d %H:%M} UTC; sync before {view.settled_from:%Y-%m-%d %H:%M} UTC")


@app.command()
def load(
    device: DeviceArgument,
    amount: Annotated[str, typer.Argument(help="Major units, e.g. 100.00")],
    client_key: ClientKey,
    device_key: DeviceKey,
    funding: Annotated[
        str, typer.Option(help="The loading's id, trf_...: after an unknown outcome give the same.")
    ] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Move money from the wallet into the device: signed by the wallet's key, held in escrow on the ledger."""
    opened = _open(device)
    own = _certificate(opened)
    money = _money(amount, own.currency)
    funding_id = parse_id("trf", funding) if funding else ids.new_uuid7()
    typer.echo(f"funding {ids.show('trf', funding_id)}", err=True)
    with connect(url, client_key) as client:
        done = client.fund_purse(
            key=load_key(device_key),
            ledger=own.ledger,
            debit=own.account,
            escrow=client.get_purse(own.purse).escrow,
            purse=own.purse,
            amount_minor=money.amount_minor,
            currency=own.currency,
            valid_until=system_clock() + timedelta(minutes=10),
            funding=funding_id,
        )
    if done.message is None:
        fail("the funding is not final yet: repeat the command with --funding")
    message = done.message
    _do(opened, lambda state: element.load(state, message))
    typer.echo(f"loaded {money}; the device holds {_show(opened.state().balance_minor, own)}")


@app.command()
def ask(
    device: DeviceArgument,
    amount: Annotated[str, typer.Argument(help="Major units.")],
    to_account: Annotated[
        bool, typer.Option("--to-account", help="Into the wallet at the next sync, instead of into this purse.")
    ] = False,
    out: Out = None,
    qr: Qr = False,
    svg: QrFiles = None,
) -> None:
    """As payee: make an invoice for the payer's device. No network is used."""
    opened = _open(device)
    money = _money(amount, _certificate(opened).currency)
    invoice = _do(
        opened,
        lambda state: element.ask(
            state,
            amount_minor=money.amount_minor,
            disposition=Disposition.ACCOUNT if to_account else Disposition.PURSE,
            nonce=secrets.token_bytes(messages.NONCE_BYTES),
            now=_now(),
            device=opened.device,
        ),
    )
    _hand_over(invoice, out=out, qr=qr, svg=svg)


@app.command()
def pay(device: DeviceArgument, message: Message, out: Out = None, qr: Qr = False, svg: QrFiles = None) -> None:
    """As payer: pay an invoice. Repeated for the same invoice it is the same payment. No network is used."""
    opened = _open(device)
    invoice = _read(message)
    transfer = _do(opened, lambda state: element.pay(state, invoice, now=_now(), device=opened.device))
    payment = messages.read_transfer(transfer).payment
    own = _certificate(opened)
    typer.echo(
        f"paid {_show(payment.amount_minor, own)}; payment {payment.counter} of this purse; "
        f"it holds {_show(opened.state().balance_minor, own)}",
        err=True,
    )
    _hand_over(transfer, out=out, qr=qr, svg=svg)


@app.command()
def receive(device: DeviceArgument, message: Message, out: Out = None) -> None:
    """As payee: check the payment, offline and to its origin, and keep it. --out writes a receipt for the payer."""
    opened = _open(device)
    transfer = _read(message)
    receipt = _do(opened, lambda state: element.receive(state, transfer, now=_now(), device=opened.device))
    read, own = messages.read_transfer(transfer), _certificate(opened)
    sync_by = min(item.closes_at for item in read.certificates)
    typer.echo(
        f"received {_show(read.payment.amount_minor, own)}; {len(read.certificates)} purse(s) in its chain; "
        f"sync before {datetime.fromtimestamp(sync_by, UTC):%Y-%m-%d %H:%M} UTC"
    )
    if out is not None:
        _write(out, receipt)


@app.command()
def redeem(
    device: DeviceArgument,
    amount: Annotated[str, typer.Argument(help="Major units.")],
) -> None:
    """Take money out of the device; `sync` brings it to the wallet."""
    opened = _open(device)
    money = _money(amount, _certificate(opened).currency)
    _do(opened, lambda state: element.redeem(state, money.amount_minor, now=_now(), device=opened.device))
    typer.echo(f"redeemed {money}: run `jiaozi-wallet purse sync {device}`")


@app.command()
def sync(device: DeviceArgument, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Hand in all payments that the device has made or received, and fetch the revocation list. Safe to repeat."""
    opened = _open(device)
    own, state = _certificate(opened), opened.state()
    held = [*state.sent, *state.received]
    taken, shown = set(), []
    with WalletClient(url) as client:
        for start in range(0, len(held), SYNCED_TOGETHER_MAX):
            for result in client.sync_purses(held[start : start + SYNCED_TOGETHER_MAX]):
                shown.append(result.model_dump(mode="json", exclude_none=True))
                if result.payment is not None and result.refusal is None:
                    taken.add(result.payment)
        revocations = client.purse_revocations()
    _do(opened, lambda current: element.synced(current, taken=frozenset(taken), now=_now()))
    _do(opened, lambda current: element.carry_revocations(current, revocations))
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for item in shown:
        if "refusal" in item:
            typer.echo(f"refused  {item['refusal']}: {item['detail']}")
            continue
        where = "to the wallet" if item["is_paid_out"] else "in the payee's purse"
        short = f", {_show(int(item['short_minor']), own)} fell short" if item["short_minor"] != "0" else ""
        typer.echo(f"settled  {_show(int(item['credited_minor']), own)} {where}{short}")
    typer.echo(f"{len(taken)} of {len(held)} settled")


@app.command()
def show(device: DeviceArgument, as_json: Json = False) -> None:
    """What the device holds and keeps for the next sync."""
    opened = _open(device)
    own, state = _certificate(opened), opened.state()
    shown: dict[str, Any] = {
        "purse": ids.show("pur", own.purse),
        "account": ids.show_account(own.account),
        "balance_minor": str(state.balance_minor),
        "currency": own.currency,
        "payments": state.counter,
        "to_sync": len(state.sent) + len(state.received),
        "sync_before": _moment(min((item.sync_by for item in state.holdings), default=own.closes_at)),
        "pays_until": _moment(own.not_after),
        "single_max_minor": str(own.single_max_minor),
        "balance_max_minor": str(own.balance_max_minor),
    }
    if as_json:
        typer.echo(json.dumps(shown))
        return
    for name, value in shown.items():
        typer.echo(f"{name.removesuffix('_minor'):<12} {_show(int(value), own) if name.endswith('_minor') else value}")


@app.command()
def lost(
    purse: Annotated[str, typer.Argument(help="The purse, as pur_...")], client_key: ClientKey, url: Url = DEFAULT_URL
) -> None:
    """Report a device lost: it is revoked now, and what nobody was paid comes back when the purse is settled."""
    with connect(url, client_key) as client:
        view = client.report_purse_lost(parse_id("pur", purse))
    typer.echo(f"{view.state.value}; the rest comes back after {view.settled_from:%Y-%m-%d %H:%M} UTC")


@app.command()
def funding(
    funding: Annotated[str, typer.Argument(help="The funding, as trf_..., which `load` printed.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show how far a funding of a purse has come; when it is booked, with the message that loads the purse."""
    with connect(url, client_key) as client:
        output.show(client.get_purse_funding(parse_id("trf", funding)), as_json=as_json)


@app.command()
def escrow(client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Show the offline escrow: what the ledger holds for all purses, and what it is made of (for operators)."""
    with connect(url, client_key) as client:
        output.show(client.purse_escrow(), as_json=as_json)


@app.command()
def proof(
    purse: Annotated[str, typer.Argument(help="The purse, as pur_...")],
    out: Annotated[Path, typer.Argument(help="Where to write it.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch the proof against a purse that was caught double spending; `verify-double-spend` checks it."""
    with connect(url, client_key) as client:
        _write(out, client.double_spend_proof(parse_id("pur", purse)))


def verify_double_spend(
    proof: Annotated[Path, typer.Argument(metavar="PROOF", help="File with the proof.")],
    institution_key: Annotated[
        Path, typer.Option("--institution-key", help="File with the institution's public JWK (/v1/institution: key).")
    ],
    as_json: Json = False,
) -> None:
    """Check, with nothing but the institution's public key, that a device has signed two payments of the same money.

    Prints which purse and account, and both payments. Exit 1 if the file proves nothing.
    """
    key = load_public_key(institution_key)
    try:
        read = messages.read_proof(_read(proof))
    except Unreadable as error:
        fail(f"{proof} is no proof: {error}")
    refused = verify_proof(read, key)
    if refused is not None:
        _refuse(refused)
    own = read.certificate
    shown = {
        "proven": True,
        "purse": ids.show("pur", own.purse),
        "account": ids.show_account(own.account),
        "issuer": own.issuer,
        "payments": [
            {
                "spend": spend.hash.hex(),
                "counter": spend.counter,
                "amount_minor": str(spend.amount_minor),
                "payee_certificate": spend.payee.hex(),
                "parts": [
                    {"of": part.source.hex(), "from_minor": str(part.offset), "to_minor": str(part.end)}
                    for part in spend.parts
                ],
            }
            for spend in (read.first, read.second)
        ],
    }
    if as_json:
        typer.echo(json.dumps(shown))
        return
    typer.echo(f"PROVEN: the device of purse {shown['purse']} (account {shown['account']}) has spent the same twice:")
    for spend in (read.first, read.second):
        parts = ", ".join(
            f"from {_show(part.offset, own)} to {_show(part.end, own)} of {part.source.hex()[:12]}"
            for part in spend.parts
        )
        typer.echo(f"  payment {spend.counter}: {_show(spend.amount_minor, own)} to {spend.payee.hex()[:12]}: {parts}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _open(device: Path) -> PurseDevice:
    try:
        return PurseDevice(device)
    except KeyRefused as error:
        fail(f"{error}: make a device with `jiaozi-wallet purse new`")


def _certificate(device: PurseDevice) -> Certificate:
    try:
        return messages.read_certificate(device.state().certificate)
    except DeviceBroken as error:
        fail(str(error))


def _do(device: PurseDevice, step: Callable[[element.PurseState], Step | Refused]) -> bytes:
    try:
        outcome = device.do(step)
    except DeviceBroken as error:
        fail(str(error))
    if isinstance(outcome, Refused):
        _refuse(outcome)
    return outcome


def _refuse(refused: Refused) -> NoReturn:
    detail = f" ({refused.detail})" if refused.detail else ""
    fail(f"refused: {refused.refusal.value}: {refused.refusal.title}{detail}")


def _read(path: Path) -> bytes:
    """A message from a file: its bytes, or the text of its frames, one a line."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        fail(f"cannot read {path}: {error.strerror}")
    if not data.startswith(b"JZP1/"):
        return data
    try:
        return from_frames(data.decode("ascii").splitlines())
    except (BadFrames, UnicodeDecodeError) as error:
        fail(f"{path}: {error}")


def _hand_over(message: bytes, *, out: Path | None, qr: bool, svg: Path | None) -> None:
    frames = to_frames(message)
    if out is not None:
        _write(out, message)
    for number, frame in enumerate(frames, 1):
        symbol = segno.make_qr(frame, error="m")
        if qr:
            typer.echo(f"{number} of {len(frames)}, {len(message)} bytes in all", err=True)
            symbol.terminal(sys.stdout, compact=True)
        if svg is not None:
            path = svg if number == 1 else svg.with_stem(f"{svg.stem}-{number}")
            symbol.save(str(path), kind="svg", border=4, scale=4)
    if out is None and svg is None and not qr:
        for frame in frames:
            typer.echo(frame)


def _write(path: Path, message: bytes) -> None:
    try:
        path.write_bytes(message)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")


def _money(text: str, currency: str) -> Money:
    try:
        return Money.parse_major(text, Currency.of(currency))
    except ValueError as error:
        fail(str(error))


def _show(amount_minor: int, own: Certificate) -> str:
    return f"{own.currency} {format_minor(amount_minor, Currency.of(own.currency))}"


def _moment(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _now() -> int:
    return int(system_clock().timestamp())

"""`jiaozi-wallet request|code|refund|receipt`: ask for money, pay what is asked, show and read codes, give back."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from kernel import ids
from kernel.clock import system_clock
from kernel.money import Currency, Money, format_minor
from kernel.transparency.checkpoints import witness_keys
from kernel.transparency.notes import NoteRefused, VerifierKey
from ledger.client import (
    ProofRefused,
    ReceiptRefused,
    parse_proof,
    verify_balance_proof,
    verify_receipt,
)
from ledger.contract import Model
from wallet.cli import output
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id
from wallet.contract.requests import IncomingRequestView, PaymentRequestView

app = typer.Typer(
    no_args_is_help=True,
    help="Payment requests: ask for money and see it come; look at what others ask for, pay it or decline it.",
)
codes_app = typer.Typer(
    no_args_is_help=True, help="QR codes: show them as text, PNG or SVG; read one that was scanned."
)
_DOCUMENT_BYTES_MAX = 128 * 1024

WalletOption = Annotated[str, typer.Option("--wallet", help="The wallet, as wlt_...")]
RequestArgument = Annotated[str, typer.Argument(metavar="REQ", help="The request's id, req_...")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="A new file ending in .png or .svg; without it the text is printed.")
]
LogKey = Annotated[
    str, typer.Option("--log-key", help="The ledger's public log key NAME+ID+KEY, from a source you trust.")
]


# --- requests --------------------------------------------------------------------------------------------------------


@app.command("new")
def new_request(
    wallet: Annotated[str, typer.Argument(help="The wallet that is to be paid, as wlt_...")],
    name: Annotated[str, typer.Argument(help="Your name as the payer will see it.")],
    client_key: ClientKey,
    amount: Annotated[str, typer.Option(help="Major units, e.g. 12.50; without it the payer chooses.")] = "",
    parts: Annotated[bool, typer.Option("--parts", help="May be paid in parts, or, without an amount, often.")] = False,
    payer: Annotated[str, typer.Option(help="Ask this account alone, acc_...")] = "",
    payer_institution: Annotated[str, typer.Option(help="Where its wallet is, if not here, e.g. ICBKCNBJ.")] = "",
    description: Annotated[str, typer.Option(help="What it is for, up to 140 characters.")] = "",
    reference: Annotated[str, typer.Option(help="Your own reference, up to 35 characters.")] = "",
    minutes: Annotated[int, typer.Option(min=1, max=525_600, help="How long it stays open.")] = 1440,
    request: Annotated[
        str, typer.Option(help="The request's id, req_...: after an unknown outcome give the same.")
    ] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Ask for a payment. Prints the request's id; show it with `code request`, follow it with `request show`."""
    request_id = parse_id("req", request) if request else ids.new_uuid7()
    typer.echo(f"request {ids.show('req', request_id)}", err=True)
    with connect(url, client_key) as client:
        currency = client.institution().ledgers[0].currency
        view = client.request_payment(
            wallet=parse_id("wlt", wallet),
            payee_name=name,
            currency=currency,
            amount_minor=_minor(amount, currency) if amount else None,
            payments="many" if parts else "one",
            payer=_account(payer) if payer else None,
            payer_institution=payer_institution or None,
            description=description,
            payee_reference=reference,
            expires_at=system_clock() + timedelta(minutes=minutes),
            request=request_id,
        )
    _print(view, as_json, _asked(view))


@app.command("show")
def show_own(request: RequestArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Look whether a request of yours is paid: the service asks the ledger."""
    with connect(url, client_key) as client:
        view = client.get_payment_request(parse_id("req", request))
    _print(view, as_json, _asked(view))


@app.command("list")
def list_own(
    wallet: Annotated[str, typer.Argument(help="The wallet that asks, as wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List what a wallet has asked for, newest first."""
    columns = ("request", "state", "amount_minor", "paid_minor", "description")
    with connect(url, client_key) as client:
        output.show_rows(client.payment_requests(parse_id("wlt", wallet)), columns, as_json=as_json)


@app.command("payments")
def list_payments(
    request: RequestArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """List the payments that came for a request, surplus included: refund that."""
    columns = ("payment", "amount_minor", "is_surplus", "payer", "booked_at")
    with connect(url, client_key) as client:
        currency = Currency.of(client.institution().ledgers[0].currency)
        found = client.request_payments(parse_id("req", request))
        output.show_rows(found, columns, as_json=as_json, currency=currency)


@app.command("cancel")
def cancel(request: RequestArgument, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL) -> None:
    """Ask for it no longer. What was booked before stands."""
    with connect(url, client_key) as client:
        view = client.cancel_payment_request(parse_id("req", request))
    _print(view, as_json, _asked(view))


@app.command("incoming")
def list_incoming(
    wallet: Annotated[str, typer.Argument(help="The wallet, as wlt_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List what others ask this wallet for, newest first, as known last."""
    with connect(url, client_key) as client:
        found = list(client.incoming_requests(parse_id("wlt", wallet)))
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found]))
        return
    for item in found:
        typer.echo(_shown(item))


@app.command("look")
def look(
    code: Annotated[str, typer.Argument(help="The text of the payee's QR code, or the request's id, req_...")],
    wallet: WalletOption,
    client_key: ClientKey,
    institution: Annotated[str, typer.Option(help="With an id: the payee's institution, e.g. BKCHCNBJ.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Put a request before a wallet and show what is asked; its institution's signature has been checked."""
    with connect(url, client_key) as client:
        if code.startswith("req_"):
            request_id, at = parse_id("req", code), institution or client.institution().participant
        else:
            read = client.read_code(code)
            if read.request is None:
                fail("this code names no request: pay its account with `jiaozi-wallet pay`")
            request_id, at = read.request, read.institution
        view = client.show_request(parse_id("wlt", wallet), request=request_id, institution=at)
    _print(view, as_json, _shown(view))


@app.command("approve")
def approve(
    request: RequestArgument,
    wallet: WalletOption,
    client_key: ClientKey,
    device_key: DeviceKey,
    amount: Annotated[str, typer.Option(help="Major units, where the payer chooses or pays a part.")] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Sign the payment that a request asks for, and have it carried. Repeat it freely: it pays once."""
    with connect(url, client_key) as client:
        wallet_id = parse_id("wlt", wallet)
        account = client.get_wallet(wallet_id).account
        if account is None:
            fail("the wallet is not open yet")
        shown = client.get_incoming_request(wallet_id, parse_id("req", request))
        minor = _minor(amount, shown.asked.currency) if amount else None
        if minor is None and shown.remaining_minor is None:
            fail("the request leaves the amount to you: give --amount")
        view = client.approve_request(wallet_id, shown, key=load_key(device_key), debit=account, amount_minor=minor)
    paid = f"{view.currency} {format_minor(view.amount_minor, Currency.of(view.currency))}"
    _print(view, as_json, f"{view.state.value} {paid} {ids.show('trf', view.payment)} at {view.booked_at}")


@app.command("decline")
def decline(
    request: RequestArgument, wallet: WalletOption, client_key: ClientKey, as_json: Json = False, url: Url = DEFAULT_URL
) -> None:
    """Do not pay a request. A payee who asked this wallet alone is told."""
    with connect(url, client_key) as client:
        view = client.decline_request(parse_id("wlt", wallet), parse_id("req", request))
    _print(view, as_json, _shown(view))


# --- codes -----------------------------------------------------------------------------------------------------------

ShopOption = Annotated[str, typer.Option("--name", help="The payee's name in the code: 25 ASCII characters.")]
CityOption = Annotated[str, typer.Option("--city", help="The payee's city: 15 ASCII characters.")]


@codes_app.command("request")
def request_code(
    request: RequestArgument,
    client_key: ClientKey,
    name: ShopOption,
    city: CityOption,
    out: OutOption = None,
    url: Url = DEFAULT_URL,
) -> None:
    """A request's dynamic code (EMVCo, signed by the institution)."""
    with connect(url, client_key) as client:
        found = client.request_qr(parse_id("req", request), name=name, city=city, form=_form(out))
    _write(found, out)


@codes_app.command("wallet")
def wallet_code(
    wallet: Annotated[str, typer.Argument(help="The wallet to be paid, as wlt_...")],
    client_key: ClientKey,
    name: ShopOption,
    city: CityOption,
    out: OutOption = None,
    url: Url = DEFAULT_URL,
) -> None:
    """A wallet's static code, to print: whoever scans it pays this wallet an amount of his choice."""
    with connect(url, client_key) as client:
        found = client.wallet_qr(parse_id("wlt", wallet), name=name, city=city, form=_form(out))
    _write(found, out)


@codes_app.command("payer")
def payer_code(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, as wlt_...")],
    cap: Annotated[str, typer.Argument(help="The most that a merchant may take, major units.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    seconds: Annotated[int, typer.Option(min=5, max=300, help="How long it stands.")] = 90,
    url: Url = DEFAULT_URL,
) -> None:
    """A payer's code, signed by the device: a merchant who scans it is paid at once, once, up to the cap."""
    with connect(url, client_key) as client:
        institution = client.institution()
        account = client.get_wallet(parse_id("wlt", wallet)).account
        if account is None:
            fail("the wallet is not open yet")
        text = client.payer_code(
            institution,
            key=load_key(device_key),
            account=account,
            cap_minor=_minor(cap, institution.ledgers[0].currency),
            valid_until=system_clock() + timedelta(seconds=seconds),
        )
    typer.echo(text)


@codes_app.command("redeem")
def redeem(
    request: RequestArgument,
    code: Annotated[str, typer.Argument(help="The text of the payer's code.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Have a request of yours paid by the code that a payer shows. After an unknown outcome: the same again."""
    with connect(url, client_key) as client:
        view = client.redeem_payer_code(parse_id("req", request), code)
    shown = "" if view.payment is None else f" {ids.show('trf', view.payment)} at {view.booked_at}"
    _print(view, as_json, view.state.value + shown)


@codes_app.command("read")
def read_code(
    code: Annotated[str, typer.Argument(help="The text of a scanned code.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """What a code says (JSON), and whether its institution has signed it."""
    with connect(url, client_key) as client:
        typer.echo(client.read_code(code).model_dump_json())


# --- after a payment -------------------------------------------------------------------------------------------------


def refund(
    payment: Annotated[str, typer.Argument(help="The payment to give back, trf_...")],
    amount: Annotated[str, typer.Argument(help="Major units; all refunds together never exceed the payment.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    refund_id: Annotated[
        str, typer.Option("--refund", help="The refund's id, trf_...: after an unknown outcome give the same.")
    ] = "",
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Give back a payment that your wallet has received, whole or in part, to whoever paid it."""
    transfer = parse_id("trf", refund_id) if refund_id else ids.new_uuid7()
    typer.echo(f"refund {ids.show('trf', transfer)}", err=True)
    with connect(url, client_key) as client:
        original = client.refunds(parse_id("trf", payment))
        view = client.refund(
            key=load_key(device_key),
            ledger=client.institution().ledgers[0].ledger,
            debit=original.credit,
            credit=original.refund_to,
            amount_minor=_minor(amount, original.currency),
            currency=original.currency,
            original=original.payment,
            refund=transfer,
        )
    given = format_minor(view.amount_minor, Currency.of(view.currency))
    _print(view, as_json, f"{view.state.value} {view.currency} {given} back at {view.booked_at}")


def receipt(
    wallet: Annotated[str, typer.Argument(help="The wallet, as wlt_...")],
    transfer: Annotated[str, typer.Argument(help="A line of its history, trf_...")],
    file: Annotated[Path, typer.Argument(help="Where to write it; an existing file is not overwritten.")],
    client_key: ClientKey,
    quorum: Annotated[int, typer.Option(min=0, max=16, help="So many witnesses must have cosigned.")] = 0,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch the ledger's receipt of a transfer, to keep and to verify offline with `verify-receipt`."""
    with connect(url, client_key) as client:
        document = client.receipt(parse_id("wlt", wallet), parse_id("trf", transfer), quorum=quorum)
    _write_new(file, document)


def balance_proof(
    wallet: Annotated[str, typer.Argument(help="The wallet, as wlt_...")],
    file: Annotated[Path, typer.Argument(help="Where to write it; an existing file is not overwritten.")],
    client_key: ClientKey,
    closing: Annotated[int | None, typer.Option(min=1, help="The closing's number; the newest by default.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch the ledger's proof that a closing counts the wallet's balance; verify it with `verify-balance-proof`."""
    with connect(url, client_key) as client:
        document = client.balance_proof(parse_id("wlt", wallet), closing=closing)
    _write_new(file, document)


def verify_receipt_file(
    file: Annotated[Path, typer.Argument(help="The receipt (JSON).")],
    log_key: LogKey,
    witness: Annotated[
        list[str] | None, typer.Option("--witness", help="A witness's public key that you trust; give each.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=0, help="How many of them must have cosigned.")] = 0,
) -> None:
    """Verify, offline, that a transfer is in the ledger's log exactly as its receipt says. Exit 1 if it is not."""
    try:
        found = verify_receipt(
            _read_file(file), log_key=VerifierKey.parse(log_key), witnesses=witness_keys(witness or ()), quorum=quorum
        )
    except (ReceiptRefused, NoteRefused) as error:
        fail(f"the receipt proves nothing: {error}")
    transfer, currency = found.receipt.transfer, Currency.of(found.receipt.currency)
    typer.echo(f"transfer   {ids.show('trf', transfer.id)}, {transfer.kind.value}, seq {transfer.seq}")
    typer.echo(f"amount     {currency} {format_minor(transfer.amount_minor, currency)}")
    typer.echo(f"debit      {'-' if transfer.debit is None else ids.show_account(transfer.debit)}")
    typer.echo(f"credit     {'-' if transfer.credit is None else ids.show_account(transfer.credit)}")
    typer.echo(f"booked at  {transfer.booked_at.isoformat()}")
    for item in found.tree_cosigned:
        typer.echo(f"witnessed  by {item.witness} at {item.timestamp}")
    typer.echo("The transfer is in the log.")


def verify_balance_proof_file(
    file: Annotated[Path, typer.Argument(help="The balance proof (JSON).")],
    log_key: LogKey,
    account: Annotated[str, typer.Option(help="Your account, acc_...: a proof of another is refused.")] = "",
) -> None:
    """Verify, offline, that a signed closing counts this balance in full. Exit 1 if it does not."""
    try:
        found = verify_balance_proof(
            parse_proof(_read_file(file)),
            log_key=VerifierKey.parse(log_key),
            account=_account(account) if account else None,
        )
    except (ProofRefused, NoteRefused) as error:
        fail(f"the proof proves nothing: {error}")
    statement = found.statement
    shown = format_minor(found.balance_minor, Currency.of(statement.currency))
    typer.echo(f"account    {ids.show_account(found.account)}")
    typer.echo(f"balance    {statement.currency} {shown}")
    typer.echo(f"closing    {statement.closing} of {statement.day}, at seq {statement.seq}")
    typer.echo("The closing counts this balance in full.")


# --- helpers ---------------------------------------------------------------------------------------------------------


def register(root: typer.Typer) -> None:
    """Put these commands under the program's."""
    root.add_typer(app, name="request")
    root.add_typer(codes_app, name="code")
    root.command("refund")(refund)
    root.command("receipt")(receipt)
    root.command("balance-proof")(balance_proof)
    root.command("verify-receipt")(verify_receipt_file)
    root.command("verify-balance-proof")(verify_balance_proof_file)


def _print(view: Model, as_json: bool, text: str) -> None:
    typer.echo(view.model_dump_json() if as_json else text)


def _asked(view: PaymentRequestView) -> str:
    currency = Currency.of(view.currency)
    total = "any amount" if view.amount_minor is None else format_minor(view.amount_minor, currency)
    lines = [
        f"{ids.show('req', view.request)}  {view.state.value}",
        f"asked      {view.currency} {total}, until {view.expires_at.isoformat()}",
        f"paid       {view.currency} {format_minor(view.paid_minor, currency)}",
    ]
    if view.surplus_minor:
        surplus = format_minor(view.surplus_minor, currency)
        lines.append(f"surplus    {view.currency} {surplus}: came unasked, give it back with `jiaozi-wallet refund`")
    return "\n".join(lines)


def _shown(view: IncomingRequestView) -> str:
    asked = view.asked
    currency = Currency.of(asked.currency)
    amount = "an amount of your choice" if asked.amount_minor is None else format_minor(asked.amount_minor, currency)
    left = "" if view.remaining_minor is None else f", {format_minor(view.remaining_minor, currency)} left to pay"
    return (
        f"{ids.show('req', asked.request)}  {view.state.value}  {asked.payee_name} at {asked.institution}"
        f"  {asked.currency} {amount}{left}  {asked.description}"
    )


def _minor(text: str, currency: str) -> int:
    try:
        return Money.parse_major(text, Currency.of(currency)).amount_minor
    except ValueError as error:
        fail(str(error))


def _account(text: str) -> int:
    try:
        return ids.parse_account(text)
    except ValueError as error:
        fail(f"{text}: {error}")


def _form(out: Path | None) -> str:
    if out is None:
        return "text"
    form = out.suffix.removeprefix(".").lower()
    if form not in ("png", "svg"):
        fail(f"{out}: name a file ending in .png or .svg")
    return form


def _write(data: bytes, out: Path | None) -> None:
    if out is None:
        typer.echo(data.decode())
    else:
        _write_new(out, data)


def _write_new(file: Path, data: bytes) -> None:
    try:
        with file.open("xb") as opened:
            opened.write(data)
    except OSError as error:
        fail(f"cannot write {file}: {error.strerror}")


def _read_file(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_DOCUMENT_BYTES_MAX + 1)
    except OSError as error:
        fail(f"cannot read {file}: {error.strerror}")

"""`jiaozi-wallet program`: programmable money from a terminal. Keys sign on this machine and never leave it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from kernel import ids
from kernel.ids import AccountNumber
from kernel.money import Currency, Money, format_minor
from ledger.contract import Model
from wallet.cli import output
from wallet.cli.options import DEFAULT_URL, ClientKey, DeviceKey, Json, Url, connect, fail, load_key, parse_id, reason
from wallet.client import WalletClient
from wallet.client.programs import TermsDiffer, check_terms
from wallet.contract.programs import (
    MerchantStatement,
    ProgramRequest,
    ProgramView,
    SupposedStatement,
    sign_merchant,
)
from wallet.program_template_files import read_template, sign_template, verify_template

app = typer.Typer(
    no_args_is_help=True,
    help="Programmable money by templates: conditional payments, escrow released per delivery, vouchers. "
    "See docs/programs.md. Typical order: templates, preview, propose, say accept, fund, say, show.",
)
template_app = typer.Typer(no_args_is_help=True, help="An institution's own templates: check, sign, verify.")
app.add_typer(template_app, name="template")

RequestFile = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="TOML: template, version, amounts_minor, [parameters], [[parties]], [[vouchers]]; see docs/programs.md.",
    ),
]
ProgramArgument = Annotated[str, typer.Argument(metavar="PRG", help="The program, prg_...")]


@app.command()
def templates(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List the templates that the institution offers, with who may say what in each."""
    with WalletClient(url) as client:
        found = client.program_templates()
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found], ensure_ascii=False))
        return
    for item in found:
        typer.echo(
            f"{item.name} v{item.version}  {item.title}  [{item.kind}{'' if item.in_force else ', not in force'}]"
        )
        for name, rule in item.template.get("events", {}).items():
            typer.echo(f"    {name:<16} by {', '.join(rule['by']):<28} {rule['title']}")


@app.command()
def preview(
    file: RequestFile,
    client_key: ClientKey,
    suppose: Annotated[
        list[str] | None,
        typer.Option(help="A supposed statement, role:event:ordinal@2026-07-01T00:00:00Z; repeatable."),
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """What happens if exactly these statements are made: the schedule, and the worst case of each party."""
    request = _read_request(file)
    with connect(url, client_key) as client:
        view = client.preview_program(request, statements=[_supposed(item) for item in suppose or []])
        currency = Currency.of(client.institution().ledgers[0].currency)
    if as_json:
        return _print(view)
    for step in view.schedule:
        amount = format_minor(step.amount_minor, currency)
        typer.echo(f"{step.at:%Y-%m-%d %H:%M}Z  part {step.number:<4} {step.outcome:<8} {amount:>14}  {step.because}")
    for party in view.parties:
        worst, best = format_minor(party.worst_minor, currency), format_minor(party.best_minor, currency)
        typer.echo(f"{party.role:<12} worst {worst:>14}  best {best:>14}  {party.meaning}")
    typer.echo(f"reserved until {view.reserved_until:%Y-%m-%d %H:%M}Z at the latest")


@app.command()
def propose(file: RequestFile, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Have the terms made, check that they are those of the file, and show who must accept. Nothing is reserved."""
    request = _read_request(file)
    with connect(url, client_key) as client:
        try:
            view = client.create_program(request)
        except TermsDiffer as error:
            fail(f"{error}: sign nothing, and ask the institution why")
    _show(view, as_json=as_json)


@app.command()
def show(program: ProgramArgument, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show a program: each part and why it is not released yet, who may say what, and what was said."""
    with connect(url, client_key) as client:
        view = client.get_program(parse_id("prg", program))
    _show(view, as_json=as_json)


@app.command()
def fund(
    program: ProgramArgument,
    client_key: ClientKey,
    device_key: DeviceKey,
    file: Annotated[Path, typer.Option("--terms", help="The file that was proposed: what you agree to.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Agree to the terms and place all holds, all or none, signed with the payer's device key.

    The terms are compared with your own file first. After "outcome-unknown" repeat the command: it cannot pay twice.
    """
    key = load_key(device_key)
    with connect(url, client_key) as client:
        view = client.get_program(parse_id("prg", program))
        try:
            check_terms(view, _read_request(file, program=program))
        except TermsDiffer as error:
            fail(f"{error}: nothing was signed")
        view = client.fund_program(view.terms, key=key)
    _show(view, as_json=as_json)


@app.command()
def say(
    program: ProgramArgument,
    role: Annotated[str, typer.Argument(help="In which role you speak, e.g. courier.")],
    event: Annotated[str, typer.Argument(help="What you state, e.g. delivered; or accept.")],
    client_key: ClientKey,
    device_key: DeviceKey,
    ordinal: Annotated[int, typer.Option(min=1, help="Which delivery, where they are counted.")] = 1,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Sign a statement about a program and hand it in: it is kept for ever, shown to all parties, and acted on."""
    key = load_key(device_key)
    with connect(url, client_key) as client:
        view = client.get_program(parse_id("prg", program))
        view = client.say(view.terms, role=role, event=event, key=key, ordinal=ordinal)
    _show(view, as_json=as_json)


@app.command()
def secret(
    program: ProgramArgument,
    file: Annotated[Path, typer.Option("--secret-file", help="A file with the secret, 64 hexadecimal digits.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Show the counterpart's secret, which releases a delivery-versus-payment program."""
    try:
        value = bytes.fromhex(file.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        fail(f"{file}: {reason(error)}")
    with WalletClient(url) as client:
        view = client.show_program_secret(parse_id("prg", program), value)
    _show(view, as_json=as_json)


@app.command("list")
def list_programs(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, wlt_...")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List a wallet's programs: state, held, released, returned."""
    with connect(url, client_key) as client:
        found = list(client.programs(parse_id("wlt", wallet)))
    if as_json:
        typer.echo(json.dumps([item.model_dump(mode="json") for item in found]))
        return
    for item in found:
        numbers = f"held {item.held_minor} released {item.released_minor} returned {item.returned_minor}"
        typer.echo(f"{ids.show('prg', item.program)}  {item.state.value:<9} {item.template} v{item.version}  {numbers}")


# --- vouchers and merchants ------------------------------------------------------------------------------------------


@app.command()
def voucher(
    voucher: Annotated[str, typer.Argument(metavar="VCH", help="The voucher, vch_...")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a voucher: what it was worth, what is left, when it expires (JSON)."""
    with connect(url, client_key) as client:
        _print(client.get_voucher(parse_id("vch", voucher)))


@app.command()
def spend(
    voucher: Annotated[str, typer.Argument(metavar="VCH", help="The voucher, vch_...")],
    merchant: Annotated[str, typer.Argument(help="The merchant's account, acc_...")],
    amount: Annotated[str, typer.Argument(help="In major units, e.g. 12.50")],
    device_key: DeviceKey,
    currency: Annotated[str, typer.Option(help="Currency of the voucher.")] = "CNY",
    url: Url = DEFAULT_URL,
) -> None:
    """Pay a merchant with a voucher, signed with the recipient's key (answers JSON)."""
    try:
        account, money = ids.parse_account(merchant), Money.parse_major(amount, Currency.of(currency))
    except ValueError as error:
        fail(error)
    with WalletClient(url) as client:
        view = client.spend_voucher(
            parse_id("vch", voucher),
            merchant=account,
            amount_minor=money.amount_minor,
            currency=currency,
            key=load_key(device_key),
        )
    _print(view)


@app.command("voucher-spend")
def voucher_spend(
    spend: Annotated[str, typer.Argument(metavar="SPD", help="The purchase, spd_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show a purchase with a voucher: paid, refused and why, or not known yet."""
    with connect(url, client_key) as client:
        output.show(client.get_voucher_spend(parse_id("spd", spend)), as_json=as_json)


@app.command("merchant-show")
def show_merchant(
    account: Annotated[str, typer.Argument(help="The merchant's account, acc_...")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what is known about a merchant, and who vouches for it."""
    try:
        number = ids.parse_account(account)
    except ValueError as error:
        fail(f"{account}: {reason(error)}")
    with connect(url, client_key) as client:
        output.show(client.get_merchant(number), as_json=as_json)


@app.command("merchant-accept")
def accept_merchant(
    statement: Annotated[str, typer.Argument(help="The token that another institution's `vouch` printed.")],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Let vouchers of this institution be spent at another institution's merchant, on that institution's word."""
    with connect(url, client_key) as client:
        output.show(client.take_merchant_statement(statement.strip()), as_json=as_json)


@app.command()
def merchant(
    account: Annotated[str, typer.Argument(help="The merchant's account, acc_...")],
    name: Annotated[str, typer.Argument(help="As customers know it.")],
    category: Annotated[str, typer.Argument(help="Merchant category code, ISO 18245, e.g. 5812.")],
    place: Annotated[str, typer.Argument(help="Place, GB/T 2260, e.g. 330106.")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Register a merchant of this institution (the desk's key). Another institution's comes with `vouch`."""
    try:
        number = ids.parse_account(account)
        with connect(url, client_key) as client:
            _print(client.register_merchant(number, name=name, category=category, place=place))
    except ValueError as error:
        fail(error)


@app.command()
def vouch(
    account: Annotated[str, typer.Argument(help="The merchant's account, acc_...")],
    name: Annotated[str, typer.Argument(help="As customers know it.")],
    category: Annotated[str, typer.Argument(help="Merchant category code, ISO 18245.")],
    place: Annotated[str, typer.Argument(help="Place, GB/T 2260.")],
    participant: Annotated[str, typer.Option(help="This institution's code, e.g. ICBKCNBJ.")],
    valid_until: Annotated[str, typer.Option(help="How long the word stands, 2027-01-01T00:00:00Z.")],
    institution_key: Annotated[Path, typer.Option(help="The institution's private key (PEM, mode 0600).")],
) -> None:
    """Sign a statement about a merchant of ours, for another institution's vouchers. Prints the token alone."""
    try:
        statement = MerchantStatement.model_validate(
            {
                "participant": participant,
                "account": AccountNumber(ids.parse_account(account)),
                "name": name,
                "category": category,
                "place": place,
                "valid_until": valid_until,
            }
        )
    except ValueError as error:
        fail(error)
    typer.echo(sign_merchant(statement, load_key(institution_key)))


# --- templates in files ----------------------------------------------------------------------------------------------


@template_app.command("show")
def show_template(
    name: Annotated[str, typer.Argument(help="As `program templates` lists it.")],
    version: Annotated[int, typer.Argument(min=1)],
    client_key: ClientKey,
    as_json: Json = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show one version of a template as the institution signed it: its states, triggers, who may trigger what."""
    with connect(url, client_key) as client:
        output.show(client.program_template(name, version), as_json=as_json)


@template_app.command("sign")
def sign(
    file: Annotated[Path, typer.Argument(metavar="TOML", help="NAME-vVERSION.toml")],
    publisher_key: Annotated[Path, typer.Option(help="The publisher's private key (PEM, mode 0600).")],
) -> None:
    """Check a template and sign it: writes NAME-vVERSION.jws beside it."""
    try:
        template = read_template(file)
        file.with_suffix(".jws").write_text(sign_template(template, load_key(publisher_key)) + "\n", encoding="ascii")
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{file.with_suffix('.jws')}  sha256 {template.sha256.hex()}")


@template_app.command("verify")
def verify(
    file: Annotated[Path, typer.Argument(metavar="TOML", help="NAME-vVERSION.toml")],
    publisher_key: Annotated[Path, typer.Option(help="The publisher's private key, whose public half is used.")],
) -> None:
    """Check a template, and that the publisher has signed exactly this text."""
    try:
        template = read_template(file)
        token = file.with_suffix(".jws").read_text(encoding="ascii").strip()
        verify_template(template, token, [load_key(publisher_key).public])
    except (ValueError, OSError) as error:
        fail(error)
    typer.echo(f"{template.name} version {template.version}: signed, sha256 {template.sha256.hex()}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _read_request(file: Path, *, program: str | None = None) -> ProgramRequest:
    """The request in a file. Its program id is kept in it (`program = "prg_..."`): made and written at first use."""
    try:
        text = file.read_text(encoding="utf-8")
        data: dict[str, Any] = tomllib.loads(text)
        if program is not None and data.get("program") != program:
            fail(f"{file} is of {data.get('program')}, not of {program}")
        if "program" not in data:
            data["program"] = ids.show("prg", ids.new_uuid7())
            file.write_text(f'program = "{data["program"]}"\n{text}', encoding="utf-8")
        return ProgramRequest.model_validate(data)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        fail(f"{file}: {reason(error)}")
    except ValidationError as error:
        first = error.errors()[0]
        fail(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}")


def _supposed(text: str) -> SupposedStatement:
    said, _, at = text.partition("@")
    role, event, ordinal = [*said.split(":"), "1", "1"][:3]
    try:
        return SupposedStatement.model_validate({"role": role, "event": event, "ordinal": int(ordinal), "at": at})
    except ValueError:
        fail(f"{text!r}: write role:event:ordinal@2026-07-01T00:00:00Z")


def _show(view: ProgramView, *, as_json: bool) -> None:
    if as_json:
        return _print(view)
    currency = Currency.of(view.terms.currency)

    def money(amount_minor: int) -> str:
        return format_minor(amount_minor, currency)

    typer.echo(f"{ids.show('prg', view.program)}  {view.state.value}  {view.template} v{view.version}")
    typer.echo(f"terms sha256 {view.terms_sha256.hex()}")
    typer.echo(
        f"funded {money(view.funded_minor)}  held {money(view.held_minor)}"
        f"  released {money(view.released_minor)}  returned {money(view.returned_minor)}"
    )
    if view.awaited:
        typer.echo(f"awaited: {', '.join(view.awaited)} (`program say ... ROLE accept`)")
    for hold in view.holds:
        why = hold.why_not_yet or hold.because or ""
        typer.echo(f"  part {hold.number:<4} {money(hold.amount_minor):>14}  {hold.state.value:<10} {why}")
    for trigger in view.triggers:
        typer.echo(f"  {trigger.event:<16} may be said by {', '.join(trigger.by)}: {trigger.title}")
    for said in view.statements:
        typer.echo(f"  {said.taken_at:%Y-%m-%d %H:%M:%S}Z  {said.role} said {said.event} {said.ordinal}")


def _print(view: Model) -> None:
    typer.echo(view.model_dump_json(indent=2))

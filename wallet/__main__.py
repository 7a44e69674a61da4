"""`jiaozi-wallet`: run the wallet service, and use it from a terminal."""

from __future__ import annotations

import logging
import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated
from uuid import UUID

import httpx
import typer
from pydantic import ValidationError

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey, Suite
from kernel.database import resolve_url
from kernel.money import Currency, Money, format_minor
from kernel.server import serve as serve_app
from kernel.settings import InvalidSettings
from wallet.cli import bulk as bulk_commands
from wallet.cli import controls as control_commands
from wallet.cli import customers as customer_commands
from wallet.cli import events as event_commands
from wallet.cli import families as family_commands
from wallet.cli import hardware as card_commands
from wallet.cli import interest as interest_commands
from wallet.cli import lifecycle as lifecycle_commands
from wallet.cli import offline as offline_commands
from wallet.cli import payments as payment_commands
from wallet.cli import privacy as privacy_commands
from wallet.cli import programs as program_commands
from wallet.cli import requests as request_commands
from wallet.cli import rules as rule_commands
from wallet.cli import schedules as schedule_commands
from wallet.cli.options import fail, one_line, reason
from wallet.client import WalletClient
from wallet.domain.rules import WalletClass
from wallet.rulepack_files import load_rule_pack
from wallet.settings import SERVICE, WalletSettings
from wallet.store.tenancy import tenant_url
from wallet.tenant_settings import TenantsSettings, load_settings

app = typer.Typer(
    name="jiaozi-wallet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The wallet service of an intermediary: run it, or use a running one. "
    "The service is configured by JIAOZI_WALLET_* variables; see `jiaozi-wallet config`.",
)
app.add_typer(customer_commands.app, name="customer")
app.add_typer(customer_commands.wallet_app, name="wallet")
app.add_typer(payment_commands.app, name="payment")
app.add_typer(payment_commands.exchange_app, name="exchange")
app.add_typer(payment_commands.settlement_app, name="settlement")
app.command("exchange-out")(payment_commands.exchange_out)
app.command("institution")(payment_commands.institution)
app.command("events")(event_commands.events)
app.add_typer(event_commands.webhook_app, name="webhook")
app.add_typer(rule_commands.app, name="rules")
app.add_typer(interest_commands.app, name="interest")
app.add_typer(interest_commands.reserve_app, name="reserve")
app.command("exchange-check")(interest_commands.exchange_check)
app.add_typer(bulk_commands.app, name="payroll")
request_commands.register(app)
app.add_typer(family_commands.app, name="family")
app.add_typer(family_commands.alias_app, name="alias")
app.add_typer(card_commands.app, name="card")
app.add_typer(control_commands.app, name="control")
app.add_typer(schedule_commands.app, name="schedule")
app.add_typer(offline_commands.app, name="purse")
app.command("verify-double-spend")(offline_commands.verify_double_spend)
app.add_typer(lifecycle_commands.app, name="life")
app.add_typer(program_commands.app, name="program")
app.add_typer(privacy_commands.app, name="privacy")
app.command("verify-unmask")(privacy_commands.verify_unmask_file)

Url = Annotated[
    str,
    typer.Option("--url", envvar="JIAOZI_WALLET_PUBLIC_URL", help="Origin of the wallet service."),
]
ClientKey = Annotated[
    Path,
    typer.Option(
        "--client-key",
        envvar="JIAOZI_CLIENT_KEY",
        help="Private key (PEM, mode 0600) of a client that the service has registered: signs the request.",
    ),
]
DeviceKey = Annotated[
    Path,
    typer.Option(
        "--device-key", envvar="JIAOZI_DEVICE_KEY", help="Private key (PEM, mode 0600) of the wallet's device."
    ),
]
WalletId = Annotated[str, typer.Argument(help="Wallet, as wlt_...")]
DEFAULT_URL = "http://127.0.0.1:8200"
SWITCH_SECONDS = 0.0005
"""How soon a thread that waits for Python's lock is let in."""


# --- run the service -------------------------------------------------------------------------------------------------


@app.command()
def serve() -> None:
    """Serve the API until SIGTERM. Without JIAOZI_WALLET_DATABASE_URL an embedded PostgreSQL is started."""
    from wallet.api.app import create
    from wallet.api.tenants import Tenants

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = _settings()
    # A carrier that comes back from the database waits this long for a busy event loop: 5 ms, the default, is a sixth
    # of a payment's whole time (7 % more payments a second and shorter worst waits, with
    # both services set so; the ledger keeps the default, for its bulk path).
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        served = Tenants(settings) if isinstance(settings, TenantsSettings) else create(settings)
    except (OSError, InvalidSettings) as error:
        fail(str(error))
    serve_app(served, host=settings.host, port=settings.port, log_level=settings.log_level)


@app.command("migrate")
def migrate_database() -> None:
    """Bring the service's database to this program's tables. Safe to repeat.

    Rows from before there were tenants become those of JIAOZI_WALLET_PARTICIPANT: such a database is migrated with the
    settings of its one institution first, and with a file of tenants only then.
    """
    settings = _settings()
    url, server = resolve_url(settings.database_url, data_dir=settings.data_dir, service=SERVICE)
    owner = server.url(SERVICE) if server is not None else settings.migration_url or url
    if isinstance(settings, WalletSettings):
        owner = tenant_url(owner, settings.participant)
    migrate.upgrade(SERVICE, owner, service_url=url)
    if server is not None:
        server.stop()
    typer.echo(f"the database is at migration {migrate.head(SERVICE)}")


@app.command()
def config() -> None:
    """Print the effective settings, one variable a line; secrets are masked.

    With JIAOZI_WALLET_TENANTS_PATH (a JSON file of several institutions) each one's own follow, after its code.
    """
    try:
        found = _settings().describe()
    except (OSError, InvalidSettings) as error:
        fail(str(error))
    for name, value in found.items():
        typer.echo(f"{name}={value}")


@app.command()
def witness(
    show_key: Annotated[bool, typer.Option("--show-key", help="Print its public key (vkey) and end.")] = False,
) -> None:
    """Run a witness (C2SP tlog-witness): it cosigns the ledgers' checkpoints as long as their logs only grow.

    Settings come from JIAOZI_WITNESS_*: NAME, KEY_PATH, DATA_DIR, LOGS_PATH, HOST, PORT.
    """
    from kernel.transparency.notes import NoteRefused
    from kernel.transparency.witness import WitnessSettings, load_witness
    from kernel.transparency.witness import create as create_witness

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = WitnessSettings.load()
        found = load_witness(settings)
    except (InvalidSettings, KeyRefused, NoteRefused, OSError) as error:
        fail(str(error))
    if show_key:
        typer.echo(str(found.verifier_key))
        return
    serve_app(create_witness(found), host=settings.host, port=settings.port)


# --- use a running service -------------------------------------------------------------------------------------------


@app.command("new-key")
def new_key(
    path: Annotated[Path, typer.Argument(help="Where to write it; an existing file is never overwritten.")],
    suite: Annotated[Suite, typer.Option(help="ecdsa-p256-sha256 is what phones and WebCrypto make.")] = Suite.ED25519,
) -> None:
    """Make a key (PEM, mode 0600) for a device or a client, and print its public JWK."""
    key = PrivateKey.generate(suite)
    try:
        key.save(path)
    except OSError as error:
        fail(f"cannot write {path}: {error.strerror}")
    typer.echo(str(key.public.to_jwk()).replace("'", '"'))


@app.command("open")
def open_wallet(
    client_key: ClientKey,
    device_key: DeviceKey,
    wallet_class: Annotated[WalletClass, typer.Option("--class", help="I, II, III or IV.")] = WalletClass.IV,
    name: Annotated[str, typer.Option(help="The customer's name; rests encrypted at the bank.")] = "",
    phone: Annotated[str, typer.Option(help="+ and digits.")] = "",
    deposit: Annotated[
        str, typer.Option(help="Sandbox only: major units to pay into the customer's bank deposit from nowhere.")
    ] = "",
    exchange: Annotated[str, typer.Option(help="Major units of the deposit to exchange for currency at once.")] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Register a customer with just the evidence that the class needs, and open a wallet for the device's key.

    Prints the wallet's id and its account number, which is what others pay to.
    """
    with _client(url, client_key) as client:
        device = _key(device_key)
        institution = client.institution()
        pack = load_rule_pack(institution.rule_pack)
        customer = client.create_customer(
            name=name, phone=phone, evidence=sorted(pack.classes[wallet_class].evidence)
        ).customer
        view = client.open_wallet(customer=customer, wallet_class=wallet_class, device_key=device.public)
        typer.echo(f"customer {ids.show('cus', customer)}")
        typer.echo(f"wallet   {ids.show('wlt', view.wallet)}")
        typer.echo(f"account  {ids.show_account(view.account) if view.account else 'opening'}")
        if deposit:
            amount = _amount(deposit, pack.currency)
            client.simulate_deposit(customer=customer, amount_minor=amount.amount_minor)
            typer.echo(f"deposit  {amount}")
        if exchange:
            money = _amount(exchange, pack.currency)
            done = client.exchange_in(wallet=view.wallet, amount_minor=money.amount_minor, currency=pack.currency)
            typer.echo(f"balance  {money} ({done.state.value})")


@app.command("exchange-in")
def exchange_in(
    wallet: WalletId,
    amount: Annotated[str, typer.Argument(help="Major units, e.g. 250.00")],
    client_key: ClientKey,
    exchange: Annotated[
        str, typer.Option(help="The exchange's id, exc_...: after an unknown outcome give the same.")
    ] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Exchange bank deposit for currency in the wallet."""
    exchange_id = _id("exc", exchange) if exchange else ids.new_uuid7()
    typer.echo(f"exchange {ids.show('exc', exchange_id)}", err=True)
    with _client(url, client_key) as client:
        money = _amount(amount, client.institution().ledgers[0].currency)
        view = client.exchange_in(
            wallet=_id("wlt", wallet),
            amount_minor=money.amount_minor,
            currency=money.currency.code,
            exchange=exchange_id,
        )
        typer.echo(f"{view.state.value} {money} {ids.show('trf', view.transfer)}")


@app.command()
def pay(
    wallet: Annotated[str, typer.Argument(help="The paying wallet, as wlt_...")],
    payee: Annotated[str, typer.Argument(help="The payee's account, as acc_..., at any intermediary.")],
    amount: Annotated[str, typer.Argument(help="Major units, e.g. 12.50")],
    client_key: ClientKey,
    device_key: DeviceKey,
    valid_minutes: Annotated[int, typer.Option(min=1, max=1440, help="How long the signature stands.")] = 10,
    payment: Annotated[
        str, typer.Option(help="The payment's id, trf_...: after an unknown outcome give the same, and it pays once.")
    ] = "",
    url: Url = DEFAULT_URL,
) -> None:
    """Sign a payment with the device's key and have it carried to the ledger. Prints its finality."""
    with _client(url, client_key) as client:
        home = client.institution().ledgers[0]
        account = client.get_wallet(_id("wlt", wallet)).account
        if account is None:
            fail("the wallet is not open yet")
        money = _amount(amount, home.currency)
        payment_id = _id("trf", payment) if payment else ids.new_uuid7()
        typer.echo(f"payment {ids.show('trf', payment_id)}", err=True)
        view = client.pay(
            key=_key(device_key),
            ledger=home.ledger,
            debit=account,
            credit=_account(payee),
            amount_minor=money.amount_minor,
            currency=home.currency,
            payment=payment_id,
            valid_until=system_clock() + timedelta(minutes=valid_minutes),
        )
        typer.echo(f"{view.state.value} {money} {ids.show('trf', view.payment)} at {view.booked_at}")


@app.command()
def balance(wallet: WalletId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Show the wallet's balance as the ledger has it, and what its limits leave. An `x` marks an assumed cap."""
    with _client(url, client_key) as client:
        view = client.get_wallet(_id("wlt", wallet))
    if view.balance is None or view.limits is None:
        fail(f"the wallet is {view.state.value}")
    currency = Currency.of(view.currency)

    def show(amount_minor: int | None) -> str:
        return "none" if amount_minor is None else format_minor(amount_minor, currency)

    typer.echo(f"balance    {view.currency} {show(view.balance.balance_minor)}")
    typer.echo(f"available  {view.currency} {show(view.balance.available_minor)}")
    typer.echo(f"class      {view.wallet_class.value} of {view.limits.rule_pack}")
    for name in ("balance", "single", "daily", "annual"):
        limit = getattr(view.limits, name)
        cap = f"[{show(limit.max_minor)}]" if limit.assumed else show(limit.max_minor)
        typer.echo(f"{name:<10} cap {cap:>16}   left {show(limit.left_minor):>16}")


@app.command()
def history(
    wallet: WalletId,
    client_key: ClientKey,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Lines a page.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="`next` of the page before.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """List what was booked on the wallet's account, oldest first: time, kind, amount, balance after it."""
    with _client(url, client_key) as client:
        page = client.history_page(_id("wlt", wallet), cursor=cursor, limit=limit)
    currency = Currency.of(page.currency)
    for line in page.items:
        moved = ("-" if line.direction == "debit" else "+") + format_minor(line.amount_minor, currency)
        other = "" if line.counterparty is None else ids.show_account(line.counterparty)
        typer.echo(
            f"{line.booked_at:%Y-%m-%d %H:%M:%S}  {line.kind.value:<13} {moved:>16}"
            f"  {format_minor(line.balance_minor, currency):>16}  {other}  {ids.show('trf', line.transfer)}"
        )
    if page.next_cursor:
        typer.echo(f"next {page.next_cursor}")


# --- helpers ---------------------------------------------------------------------------------------------------------


def _settings() -> WalletSettings | TenantsSettings:
    try:
        return load_settings()
    except (ValidationError, InvalidSettings) as error:
        fail(str(error))


def _client(url: str, client_key: Path) -> WalletClient:
    return WalletClient(url, signer=RequestSigner(_key(client_key)))


def _key(path: Path) -> PrivateKey:
    try:
        return PrivateKey.load(path)
    except KeyRefused as error:
        fail(str(error))


def _amount(text: str, currency: str) -> Money:
    try:
        return Money.parse_major(text, Currency.of(currency))
    except ValueError as error:
        fail(str(error))


def _id(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        fail(f"{text}: {error}")


def _account(text: str) -> int:
    try:
        return ids.parse_account(text)
    except ValueError as error:
        fail(f"{text}: {error}")


def main() -> None:
    """Entry point. A refusal ends with its code and reason on stderr and status 1; an unknown outcome with 2."""
    try:
        app()
    except ProblemResponse as error:
        typer.echo(one_line(f"refused: {error.refusal or error.status}: {error.detail}"), err=True)
        sys.exit(1)
    except ServiceUnreachable as error:
        typer.echo(one_line(f"no answer, so the outcome is unknown: {error}"), err=True)
        sys.exit(2)
    except (ValidationError, httpx.InvalidURL, UnicodeEncodeError) as error:  # it fits no request: nothing was sent
        typer.echo(one_line(reason(error)), err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

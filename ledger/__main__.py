"""`jiaozi-ledger`: run a central bank's ledger, issue, look, verify."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.table import Table

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.money import Currency, Money, format_minor
from ledger import audit, log_commands
from ledger.log_commands import connect

if TYPE_CHECKING:  # what takes long to load is loaded by the commands that need it
    from ledger.client import LedgerClient
    from ledger.contract import MandateView

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="A central bank's issuance ledger. Settings come from JIAOZI_LEDGER_* (see `config`).",
)
console = Console()
errors = Console(stderr=True)

UrlOption = Annotated[str, typer.Option("--url", envvar="JIAOZI_LEDGER_PUBLIC_URL", help="The ledger's address.")]
KeyOption = Annotated[Path, typer.Option("--key", help="Private key file (PEM, mode 0600) to sign with.")]
DEFAULT_URL = "http://127.0.0.1:8100"


@app.command()
def serve() -> None:
    """Run the ledger until SIGTERM: migrate, recover from the journal, then serve.

    While another ledger is the writer of the same database, this one stands by and takes over when that one is gone.
    """
    from kernel.server import serve as run
    from ledger.api.app import create
    from ledger.api.standby import Starting
    from ledger.settings import LedgerSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = LedgerSettings.load()
    starting = Starting(settings)
    starting.begin()  # before the server, so that what is missing is one line and not a traceback
    run(create(settings, started=starting), host=settings.host, port=settings.port, stop_when=starting.is_over)
    starting.outcome()


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the ledger's database to the newest schema."""
    from kernel import migrate
    from kernel.database import resolve_url
    from ledger.settings import LedgerSettings

    settings = LedgerSettings.load()
    url, server = resolve_url(settings.database_url, settings.data_dir, "ledger")
    owner = server.url("ledger") if server is not None else settings.migration_url or url
    migrate.upgrade("ledger", owner, service_url=url)
    console.print(f"The database is at migration {migrate.head('ledger')}.")
    if server is not None:
        server.stop()


@app.command()
def distribute(
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="Citus coordinator, as the tables' owner; by default as set.")
    ] = None,
    shards: Annotated[int, typer.Option("--shards", help="Shards of each distributed table.")] = 32,
    apply: Annotated[bool, typer.Option("--apply", help="Do it. Without this the plan is printed.")] = False,
) -> None:
    """Spread the journal's tables over the workers of a Citus cluster. The ledger must be stopped."""
    from kernel.database import Database
    from ledger.settings import LedgerSettings
    from ledger.store import distribute as spread

    settings = LedgerSettings.load() if database_url is None else None
    url = database_url or (settings and (settings.migration_url or settings.database_url))
    if not url:
        raise ValueError("the embedded PostgreSQL has no Citus: give --database-url of a Citus coordinator")
    if not apply:
        for statement in spread.statements(shards=shards):
            console.print(f"{statement};", markup=False, highlight=False, soft_wrap=True)
    database = Database(url, application_name="jiaozi-distribute", statement_timeout_ms=0)
    try:
        with database.transaction(isolation="READ COMMITTED") as connection:
            if apply:
                to_do = spread.distribute(connection, shards=shards)
            else:
                to_do = spread.is_to_do(spread.inspect(connection))
    finally:
        database.close()
    if not to_do:
        console.print("The tables are distributed already: nothing to do.")
    elif apply:
        console.print("The tables are distributed.")
    else:
        console.print("Nothing was changed. Give --apply to do this, with the ledger stopped and a backup made.")


@app.command()
def config() -> None:
    """Print every setting with its effective value."""
    from ledger.settings import LedgerSettings

    table = Table("setting", "value")
    for name, value in LedgerSettings.load().describe().items():
        table.add_row(name, value)
    console.print(table)


@app.command()
def keygen(path: Annotated[Path, typer.Argument(help="Where to write the private key (mode 0600).")]) -> None:
    """Make an Ed25519 key; prints the public key (JWK) to give to others."""
    key = PrivateKey.generate()
    key.save(path)
    console.print_json(json.dumps(key.public.to_jwk()))


@app.command()
def issue(
    vault: Annotated[str, typer.Argument(help="The intermediary's vault account (acc_...).")],
    amount: Annotated[str, typer.Argument(help="Amount in major units, e.g. 1000000.00.")],
    maker: Annotated[Path, typer.Option(help="Private key of the maker: the asking institution, or an operator.")],
    approver: Annotated[list[Path], typer.Option(help="Private key of an approving operator; give it M times.")],
    url: UrlOption = DEFAULT_URL,
    redeem: Annotated[bool, typer.Option("--redeem", help="Take currency back instead of issuing it.")] = False,
) -> None:
    """Issue currency (or redeem it): propose, approve with M operators' keys, execute.

    In life each key is with another person, who uses `propose`, `approve` and `execute`.
    """
    own = PrivateKey.load(maker)
    with connect(url, own) as client:
        view = _propose(client, vault, amount, own, redeem=redeem)
        for path in approver:
            view = _approve(client, view, PrivateKey.load(path))
        view = client.execute(view.mandate)
    _print_mandate(view)


@app.command()
def propose(
    vault: Annotated[str, typer.Argument(help="The intermediary's vault account (acc_...).")],
    amount: Annotated[str, typer.Argument(help="Amount in major units.")],
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
    redeem: Annotated[bool, typer.Option("--redeem", help="Propose a redemption.")] = False,
) -> None:
    """Propose an issue or a redemption; prints the mandate that operators approve."""
    with connect(url) as client:
        _print_mandate(_propose(client, vault, amount, PrivateKey.load(key), redeem=redeem))


@app.command()
def approve(
    mandate: Annotated[str, typer.Argument(help="mdt_...")], key: KeyOption, url: UrlOption = DEFAULT_URL
) -> None:
    """Approve a mandate as an operator: signs the hash of exactly what was proposed."""
    operator = PrivateKey.load(key)
    with connect(url, operator) as client:
        view = client.get_mandate(ids.parse("mdt", mandate))
        _print_mandate(_approve(client, view, operator))


@app.command()
def execute(
    mandate: Annotated[str, typer.Argument(help="mdt_...")], key: KeyOption, url: UrlOption = DEFAULT_URL
) -> None:
    """Carry out an approved mandate, as an operator or the participant concerned; it acts once."""
    with connect(url, PrivateKey.load(key)) as client:
        _print_mandate(client.execute(ids.parse("mdt", mandate)))


@app.command()
def balance(
    account: Annotated[str, typer.Argument(help="acc_...")], key: KeyOption, url: UrlOption = DEFAULT_URL
) -> None:
    """Show an account of the key's institution (operators see all)."""
    with connect(url, PrivateKey.load(key)) as client:
        view = client.get_account(ids.parse_account(account))
    currency = Currency.of(view.currency)
    for name, value in (
        ("account", account),
        ("kind", f"{view.kind.value}, class {view.rule_class}, {view.status.value}"),
        ("balance", f"{currency} {format_minor(view.balance_minor, currency)}"),
        ("available", f"{currency} {format_minor(view.available_minor, currency)}"),
        ("as of seq", str(view.as_of_seq)),
    ):
        console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)


@app.command()
def supply(url: UrlOption = DEFAULT_URL) -> None:
    """The supply identity (I2): issued - redeemed = vaults + wallets + offline."""
    with connect(url) as client:
        view = client.supply()
    currency = Currency.of(view.currency)
    table = Table(f"supply of {currency}, at seq {view.as_of_seq}", "amount")
    for name in ("issued", "redeemed", "circulation", "vaults", "wallets", "offline", "held"):
        value = format_minor(getattr(view, f"{name}_minor"), currency)
        table.add_row(name, value)
    console.print(table)
    console.print("[green]The identity holds.[/]" if view.identity_holds else "[red]The identity does NOT hold.[/]")
    if not view.identity_holds:
        raise typer.Exit(1)


@app.command()
def close(key: KeyOption, url: UrlOption = DEFAULT_URL) -> None:
    """Order a closing at the newest block, as an operator; prints the signed statement. Days close by themselves."""
    with connect(url, PrivateKey.load(key)) as client:
        view = client.close_now()
    console.print(view.statement, end="", markup=False, highlight=False, soft_wrap=True)


@app.command(name="balance-proof")
def balance_proof(
    account: Annotated[str, typer.Argument(help="acc_...")],
    file: Annotated[Path, typer.Argument(help="Where to write it; an existing file is not overwritten.")],
    key: KeyOption,
    closing: Annotated[int | None, typer.Option("--closing", min=1, help="Number; by default the newest.")] = None,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Fetch the proof of an account's balance in a closing, as its institution, for the holder (verify-balance)."""
    with connect(url, PrivateKey.load(key)) as client:
        newest = client.closings(limit=1)
        if closing is None and not newest:
            raise ValueError(
                "nothing has been closed yet: a day closes at its end, an operator orders one with `close`"
            )
        number = closing if closing is not None else newest[0].closing
        proof = client.balance_proof(number, ids.parse_account(account))
    with file.open("x", encoding="utf-8") as opened:
        opened.write(proof.model_dump_json(exclude_none=True) + "\n")
    console.print(f"closing {number}: the proof is in {file}", highlight=False, soft_wrap=True)


@app.command(name="verify-balance")
def verify_balance(
    file: Annotated[Path, typer.Argument(help="The balance proof (JSON), as the wallet or bank hands it out.")],
    log_key: Annotated[str, typer.Option("--log-key", help="The ledger's public log key: NAME+ID+KEY.")],
    account: Annotated[str | None, typer.Option("--account", help="Your account (acc_...).")] = None,
    balance: Annotated[str | None, typer.Option("--balance", help="What you own, in major units, e.g. 12.50.")] = None,
) -> None:
    """Verify, offline, that a balance is counted in full in a signed closing. Exit 1 if it is not.

    Give --account and --balance as you know them: a ledger that understates a balance makes a valid proof of less.
    """
    from kernel.transparency.notes import VerifierKey
    from ledger.balance_proofs import PROOF_BYTES_MAX, parse_proof, verify_balance_proof

    with file.open("rb") as opened:
        proof = parse_proof(opened.read(PROOF_BYTES_MAX + 1))
    proved = verify_balance_proof(
        proof,
        log_key=VerifierKey.parse(log_key),
        account=ids.parse_account(account) if account is not None else None,
    )
    statement = proved.statement
    currency = Currency.of(statement.currency)
    if balance is not None:
        owned = Money.parse_major(balance, currency).amount_minor
        verify_balance_proof(proof, log_key=VerifierKey.parse(log_key), balance_minor=owned)
    for name, value in (
        ("account", ids.show_account(proved.account)),
        ("balance", f"{currency} {format_minor(proved.balance_minor, currency)}"),
        ("of", f"{currency} {format_minor(statement.circulation_minor, currency)} in circulation"),
        ("closing", f"{statement.closing} of {statement.ledger}, {statement.day}"),
        ("block", f"{statement.block}, commitment {statement.block_commitment.hex()}"),
        ("root", statement.root.hex()),
    ):
        console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
    if account is None or balance is None:
        console.print("Compare account and balance with your own.")
    else:
        console.print("[green]The balance is counted in full.[/]")


app.command()(audit.export)
app.command()(audit.verify)
app.command(name="log-key")(log_commands.log_key)
app.command()(log_commands.receipt)
app.command(name="verify-receipt")(log_commands.verify_receipt)
app.command(name="check-log")(log_commands.check_log)
app.command()(log_commands.incidents)
app.command(name="acknowledge-incident")(log_commands.acknowledge_incident)


def _propose(client: LedgerClient, vault: str, amount: str, key: PrivateKey, *, redeem: bool) -> MandateView:
    from ledger.contract import IssueAction, Proposal, RedeemAction, sign_proposal

    ledger = client.ledger()
    money = Money.parse_major(amount, Currency.of(ledger.currency))
    kind = RedeemAction if redeem else IssueAction
    action = kind(
        transfer=ids.new_uuid7(),
        vault=ids.parse_account(vault),
        amount_minor=money.amount_minor,
        currency=ledger.currency,
    )
    proposal = Proposal(
        ledger=ledger.ledger,
        mandate=ids.new_uuid7(),
        action=action,
        valid_until=system_clock() + timedelta(days=1),
    )
    return client.propose(sign_proposal(proposal, key=key))


def _approve(client: LedgerClient, view: MandateView, key: PrivateKey) -> MandateView:
    from ledger.contract import Approval, sign_approval

    approval = Approval(ledger=client.ledger().ledger, mandate=view.mandate, proposal_sha256=view.proposal_sha256)
    return client.approve(view.mandate, sign_approval(approval, key=key))


def _print_mandate(view: MandateView) -> None:
    action = view.action
    console.print(f"mandate    {ids.show('mdt', UUID(str(view.mandate)))}", soft_wrap=True, highlight=False)
    if hasattr(action, "amount_minor") and hasattr(action, "currency"):
        amount = Money(action.amount_minor, Currency.of(action.currency))
        console.print(f"action     {action.action} {amount}", highlight=False)
    else:
        console.print(f"action     {action.action}", highlight=False)
    console.print(f"approvals  {len(view.approvers)} of {view.approvals_needed}", highlight=False)
    console.print(f"status     {view.status.value}", highlight=False)


def main() -> None:
    """Entry point: what goes wrong is one line that says what to do next."""
    try:
        app()
    except Exception as error:
        line = _line_of(error)
        if line is None:
            raise
        errors.print(line)
        raise SystemExit(1) from None


def _line_of(error: Exception) -> str | None:
    """What to tell the user; None for what only a traceback explains."""
    import psycopg
    from sqlalchemy.exc import OperationalError

    from kernel.client import ProblemResponse, ServiceUnreachable

    match error:
        case ProblemResponse():
            return f"[red]refused ({error.refusal}):[/] {error.detail}"
        case OperationalError():
            return f"[red]error:[/] the database does not answer: {str(error.orig).splitlines()[0]}"
        case psycopg.Error():
            return f"[red]error:[/] the database: {str(error).splitlines()[0]}"
        case ServiceUnreachable() | RuntimeError() | ValueError() | OSError():
            return f"[red]error:[/] {error}"
        case _:
            return None


if __name__ == "__main__":
    main()

"""`jiaozi-ledger`: run a central bank's ledger, issue, look, verify."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text
from sqlalchemy.exc import OperationalError

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey
from kernel.database import resolve_url
from kernel.money import Currency, Money, format_minor
from kernel.postgres import default_data_dir
from kernel.settings import InvalidSettings
from ledger.client import LedgerClient
from ledger.contract import (
    Approval,
    IssueAction,
    MandateView,
    Proposal,
    RedeemAction,
    sign_approval,
    sign_proposal,
)

if TYPE_CHECKING:
    from ledger.verifier import Report

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
    """Run the ledger until SIGTERM: migrate, recover from the journal, then serve."""
    from kernel.server import serve as run
    from ledger.api.app import create
    from ledger.api.service import start_service
    from ledger.settings import LedgerSettings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings = LedgerSettings.load()
    service = start_service(settings)  # before the server, so that what is missing is one line and not a traceback
    run(create(settings, started=service), host=settings.host, port=settings.port)


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the ledger's database to the newest schema."""
    from ledger.settings import LedgerSettings

    settings = LedgerSettings.load()
    url, server = resolve_url(settings.database_url, settings.data_dir, "ledger")
    migrate.upgrade("ledger", url)
    console.print(f"The database is at migration {migrate.head('ledger')}.")
    if server is not None:
        server.stop()


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
    with LedgerClient(url) as client:
        view = _propose(client, vault, amount, PrivateKey.load(maker), redeem=redeem)
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
    with LedgerClient(url) as client:
        _print_mandate(_propose(client, vault, amount, PrivateKey.load(key), redeem=redeem))


@app.command()
def approve(
    mandate: Annotated[str, typer.Argument(help="mdt_...")], key: KeyOption, url: UrlOption = DEFAULT_URL
) -> None:
    """Approve a mandate as an operator: signs the hash of exactly what was proposed."""
    with LedgerClient(url) as client:
        view = client.get_mandate(ids.parse("mdt", mandate))
        _print_mandate(_approve(client, view, PrivateKey.load(key)))


@app.command()
def execute(mandate: Annotated[str, typer.Argument(help="mdt_...")], url: UrlOption = DEFAULT_URL) -> None:
    """Carry out an approved mandate; it acts once."""
    with LedgerClient(url) as client:
        _print_mandate(client.execute(ids.parse("mdt", mandate)))


@app.command()
def balance(
    account: Annotated[str, typer.Argument(help="acc_...")], key: KeyOption, url: UrlOption = DEFAULT_URL
) -> None:
    """Show an account of the key's institution (operators see all)."""
    with LedgerClient(url, signer=RequestSigner(PrivateKey.load(key))) as client:
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
    """The supply identity (I2): issued - redeemed = vaults + wallets."""
    with LedgerClient(url) as client:
        view = client.supply()
    currency = Currency.of(view.currency)
    table = Table(f"supply of {currency}, at seq {view.as_of_seq}", "amount")
    for name in ("issued", "redeemed", "circulation", "vaults", "wallets", "held"):
        value = format_minor(getattr(view, f"{name}_minor"), currency)
        table.add_row(name, value)
    console.print(table)
    console.print("[green]The identity holds.[/]" if view.identity_holds else "[red]The identity does NOT hold.[/]")
    if not view.identity_holds:
        raise typer.Exit(1)


@app.command()
def verify(
    database_url: Annotated[
        str | None, typer.Option("--database-url", help="postgresql://...; by default the configured database.")
    ] = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="NUMBER:HASH of a block, known from outside the database.")
    ] = None,
) -> None:
    """Replay the journal with code of its own and check every invariant, signature and hash. Exit 1 if any is broken.

    Without an anchor nobody can tell a journal whose newest blocks were cut off from a younger one: keep the head.
    """
    from ledger.verifier import verify_database

    number, _, digest = (anchor or "").partition(":")
    known = (int(number), bytes.fromhex(digest)) if anchor else None
    with ExitStack() as stack:
        url = database_url or stack.enter_context(_configured_database())
        progress = stack.enter_context(
            Progress(TextColumn("replaying"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=errors)
        )
        task = progress.add_task("replaying", total=None)
        report = verify_database(
            url, progress=lambda done, total: progress.update(task, completed=done, total=total), anchor=known
        )
    if report.head_block == 0:
        raise ValueError("the journal is empty: there is nothing to verify. Is this the ledger's database?")
    _print_report(report)
    if not report.is_whole:
        raise typer.Exit(1)


@contextmanager
def _configured_database() -> Iterator[str]:
    """The ledger's own database; an embedded server that was down is stopped again."""
    from ledger.settings import LedgerSettings

    settings = LedgerSettings.load()
    data_dir = settings.data_dir or default_data_dir("ledger")
    if settings.database_url is None and not (data_dir / "cluster").exists():
        raise ValueError(f"there is no ledger in {data_dir}: set JIAOZI_LEDGER_DATABASE_URL or give --database-url")
    url, server = resolve_url(settings.database_url, data_dir, "ledger")
    with server or nullcontext():  # as a context manager it stops only what it started
        yield url


def _print_report(report: Report) -> None:
    currency = Currency.of(report.currency) if report.currency else None

    def money(amount: int) -> str:
        return format_minor(amount, currency) if currency is not None else str(amount)

    proved = Table(f"proved for {report.ledger or 'an empty journal'}", Column("count", justify="right"))
    for name, count in sorted(report.proved.items()):
        proved.add_row(name, f"{count:,}")
    console.print(proved)
    supply = Table(f"supply of {report.currency}, at seq {report.head_seq}", Column("amount", justify="right"))
    for name in ("issued", "redeemed", "circulation", "vaults", "wallets", "held"):
        supply.add_row(name, money(getattr(report.supply, name)))
    console.print(supply)
    for name, thumbprint in report.operators:
        console.print(f"operator {name}: {thumbprint}")
    console.print(f"head: {report.head_block}:{report.head_hash.hex()}", soft_wrap=True)
    for finding in report.findings:
        console.print(Text(f"WRONG  {finding}", style="red"), soft_wrap=True)
    if report.is_whole:
        console.print("[green]Nothing is wrong.[/]")
    else:
        more = "" if report.is_complete else " (stopped here: there may be more)"
        console.print(f"[red]{len(report.findings)} finding(s){more}.[/] The first is the first wrong place.")


def _propose(client: LedgerClient, vault: str, amount: str, key: PrivateKey, *, redeem: bool) -> MandateView:
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
    except ProblemResponse as error:
        errors.print(f"[red]refused ({error.refusal}):[/] {error.detail}")
        raise SystemExit(1) from None
    except OperationalError as error:
        errors.print(f"[red]error:[/] the database does not answer: {str(error.orig).splitlines()[0]}")
        raise SystemExit(1) from None
    except (ServiceUnreachable, InvalidSettings, KeyRefused, RuntimeError, ValueError, OSError) as error:
        errors.print(f"[red]error:[/] {error}")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

"""`jiaozi-settlement`: run the bridge's settlement service, and use it from a terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey
from kernel.database import resolve_url
from kernel.money import Currency, format_minor
from kernel.server import serve as serve_app
from kernel.settings import InvalidSettings
from settlement.client import SettlementClient
from settlement.contract import BatchView, ReconciliationView, SettlementState
from settlement.settings import SERVICE, SettlementSettings

app = typer.Typer(
    name="jiaozi-settlement",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The bridge's settlement service: run it, or use a running one. "
    "The service is configured by JIAOZI_SETTLEMENT_* variables; see `jiaozi-settlement config`.",
)
console = Console()
errors = Console(stderr=True)

Url = Annotated[str, typer.Option("--url", envvar="JIAOZI_SETTLEMENT_PUBLIC_URL", help="Origin of the service.")]
ClientKey = Annotated[
    Path,
    typer.Option(
        "--client-key",
        envvar="JIAOZI_CLIENT_KEY",
        help="Private key (PEM, mode 0600) of a registered institution or of the bridge: signs the request.",
    ),
]
BatchId = Annotated[str, typer.Argument(help="Batch, as bat_...")]
Participant = Annotated[str, typer.Option(help="Whose account, in the shape of a BIC.")]
CurrencyOption = Annotated[str, typer.Option("--currency", help="Of the account, e.g. CNY.")]
DEFAULT_URL = "http://127.0.0.1:8300"


@app.command()
def serve() -> None:
    """Run the service until SIGTERM: recover from the decision log, then settle and serve."""
    from settlement.api.app import create

    settings = _settings()
    logging.basicConfig(level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    serve_app(create(settings), host=settings.host, port=settings.port, log_level=settings.log_level)


@app.command(name="migrate")
def migrate_command() -> None:
    """Bring the database to the newest schema."""
    settings = _settings()
    url, server = resolve_url(settings.database_url, settings.data_dir, SERVICE)
    owner = server.url(SERVICE) if server is not None else settings.migration_url or url
    migrate.upgrade(SERVICE, owner, service_url=url)
    console.print(f"The database is at migration {migrate.head(SERVICE)}.")
    if server is not None:
        server.stop()


@app.command()
def config() -> None:
    """Print every setting with its effective value."""
    table = Table("setting", "value")
    for name, value in _settings().describe().items():
        table.add_row(name, value)
    console.print(table)


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(help="A pacs.009.001.08 (.xml) or CSV (.csv) file.", exists=True)],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    wait: Annotated[bool, typer.Option(help="Wait until every settlement has ended.")] = False,
) -> None:
    """Submit a batch of PvP instructions. The same file again is the same batch."""
    file_format = "csv" if file.suffix.lower() == ".csv" else "pacs.009"
    with _client(url, client_key) as client:
        try:
            view = client.submit_batch(file.read_bytes(), file_format=file_format)  # type: ignore[arg-type]
            if wait:
                view = client.wait_for_batch(view.batch, timeout_seconds=600)
        except (ProblemResponse, ServiceUnreachable, TimeoutError) as error:
            _fail(error)
    _print_batch(view)


@app.command()
def status(batch: BatchId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """A batch: its settlements by state, and why some were cancelled."""
    with _client(url, client_key) as client:
        try:
            view = client.batch(_ref("bat", batch))
            _print_batch(view)
            cancelled = list(client.settlements(view.batch, states=(SettlementState.CANCELLED,)))
        except (ProblemResponse, ServiceUnreachable) as error:
            _fail(error)
    if cancelled:
        table = Table("instruction", "reason", "detail", title="Cancelled")
        for item in cancelled[:50]:
            table.add_row(item.instruction_id, item.reason.value if item.reason else "", item.detail)
        console.print(table)


@app.command(name="in-doubt")
def in_doubt(client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """Every settlement in which money may be reserved, and what it waits for."""
    table = Table("settlement", "state", "age", "waits for", title="In doubt")
    with _client(url, client_key) as client:
        try:
            for item in client.in_doubt():
                shown = ids.show("stl", item.settlement)
                table.add_row(shown, item.state.value, f"{item.age_seconds} s", item.waits_for)
        except (ProblemResponse, ServiceUnreachable) as error:
            _fail(error)
    console.print(table if table.row_count else "Nothing is in doubt.")


@app.command()
def statement(
    batch: BatchId,
    participant: Participant,
    currency: CurrencyOption,
    client_key: ClientKey,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the file.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Fetch a camt.053.001.08 of what a batch moved on a participant's account."""
    with _client(url, client_key) as client:
        try:
            view = client.write_statement(_ref("bat", batch), participant=participant, currency=currency)
            output.write_bytes(client.statement_file(view.statement))
        except (ProblemResponse, ServiceUnreachable) as error:
            _fail(error)
    console.print(
        f"{output}: {view.entry_count:,} entries, statement {view.sequence_number} of {participant} {currency}"
    )


@app.command()
def reconcile(
    file: Annotated[Path, typer.Argument(help="The counterparty's camt.053.001.08.", exists=True)],
    batch: Annotated[str, typer.Option(help="Batch, as bat_...")],
    participant: Participant,
    currency: CurrencyOption,
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
) -> None:
    """Compare the bridge's record of a batch with a counterparty's statement. Exit code 1 if there are breaks."""
    with _client(url, client_key) as client:
        try:
            content, key = file.read_bytes(), _ref("bat", batch)
            view = client.reconcile(content, batch=key, participant=participant, currency=currency)
        except (ProblemResponse, ServiceUnreachable) as error:
            _fail(error)
    console.print(
        f"{view.matched:,} of {view.lines_ours:,} of our lines match; they have {view.lines_theirs:,}; "
        f"{len(view.breaks)} breaks"
    )
    if view.breaks:
        console.print(breaks_table(view))
        raise typer.Exit(1)


def breaks_table(view: ReconciliationView) -> Table:
    """The breaks of a reconciliation, amounts in major units."""
    currency = Currency.of(view.currency)
    table = Table("break", "ours", "theirs", "difference", "what", title=f"Breaks: {view.participant} {view.currency}")
    for column in (1, 2, 3):
        table.columns[column].justify = "right"
    for item in view.breaks:
        amounts = (item.our_amount_minor, item.their_amount_minor, item.difference_minor)
        shown = ["" if amount is None else format_minor(amount, currency) for amount in amounts]
        table.add_row(item.type, *shown, item.sentence)
    return table


def _print_batch(view: BatchView) -> None:
    counts = ", ".join(f"{count:,} {state.value}" for state, count in view.counts.items() if count)
    console.print(f"{ids.show('bat', view.batch)}: {view.settlement_count:,} settlements: {counts}")


def _client(url: str, key: Path) -> SettlementClient:
    try:
        return SettlementClient(url, signer=RequestSigner(PrivateKey.load(key)))
    except KeyRefused as error:
        _fail(error)


def _settings() -> SettlementSettings:
    try:
        return SettlementSettings.load()
    except (InvalidSettings, ValidationError) as error:
        _fail(error)


def _ref(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    errors.print(_problem(error) if isinstance(error, ProblemResponse) else str(error), markup=False)
    raise typer.Exit(2)


def _problem(error: ProblemResponse) -> str:
    lines = [str(error)]
    lines += [f"  {item.get('reason', item)}" for item in error.extra.get("problems", [])[:20]]
    return "\n".join(lines)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

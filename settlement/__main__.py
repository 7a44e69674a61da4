"""`jiaozi-settlement`: run the bridge's settlement service, and use it from a terminal."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.table import Table

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.database import resolve_url
from kernel.server import serve as serve_app
from kernel.settings import InvalidSettings
from settlement.cli.calendars import app as calendar_app
from settlement.cli.compliance import app as compliance_app
from settlement.cli.engine import register as register_engine
from settlement.cli.islands import app as islands_app
from settlement.cli.islands import conformance
from settlement.cli.liquidity import app as liquidity_app
from settlement.cli.market import app as fx_app
from settlement.cli.messages import app as message_app
from settlement.cli.messages import stream_file
from settlement.cli.options import (
    DEFAULT_URL,
    BatchId,
    ClientKey,
    CurrencyOption,
    Json,
    Participant,
    Url,
    connect,
    console,
    fail,
    parse_ref,
)
from settlement.cli.reconciliation import register as register_reconciliation
from settlement.cli.relay import app as relay_app
from settlement.cli.torture import torture
from settlement.contract import BatchView, SettlementState
from settlement.settings import SERVICE, SettlementSettings

app = typer.Typer(
    name="jiaozi-settlement",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="The bridge's settlement service: run it, or use a running one. "
    "The service is configured by JIAOZI_SETTLEMENT_* variables; see `jiaozi-settlement config`.",
)
app.command()(torture)
app.command()(conformance)
app.add_typer(islands_app, name="islands")
register_engine(app)
app.add_typer(fx_app, name="fx")
app.add_typer(message_app, name="message")
app.add_typer(liquidity_app, name="liquidity")
app.add_typer(calendar_app, name="calendar")
app.add_typer(compliance_app, name="compliance")
register_reconciliation(app)
app.add_typer(relay_app, name="relay")


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
    file: Annotated[Path, typer.Argument(help="A pacs.008, pacs.009 (.xml) or CSV (.csv) file.", exists=True)],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    wait: Annotated[bool, typer.Option(help="Wait until every settlement has ended (a stream: is booked).")] = False,
    stream: Annotated[
        bool, typer.Option("--stream", help="Send it in parts, up to a million instructions, each taken or refused.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Submit PvP instructions: a batch, taken whole or refused whole, or with --stream line by line.

    The same file again is the same batch or stream; an interrupted stream goes on where it was.
    """
    if stream:
        stream_file(file, client_key, url, wait=wait, as_json=as_json)
        return
    file_format = "csv" if file.suffix.lower() == ".csv" else "pacs.009"
    with connect(url, client_key) as client:
        try:
            view = client.submit_batch(file.read_bytes(), file_format=file_format)  # type: ignore[arg-type]
            if wait:
                view = client.wait_for_batch(view.batch, timeout_seconds=600)
        except (ProblemResponse, ServiceUnreachable, TimeoutError) as error:
            fail(error)
    if as_json:
        typer.echo(view.model_dump_json())
    else:
        _print_batch(view)


@app.command()
def status(batch: BatchId, client_key: ClientKey, url: Url = DEFAULT_URL) -> None:
    """A batch: its settlements by state, and why some were cancelled."""
    with connect(url, client_key) as client:
        try:
            view = client.batch(parse_ref("bat", batch))
            _print_batch(view)
            cancelled = list(client.settlements(view.batch, states=(SettlementState.CANCELLED,)))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if cancelled:
        table = Table("instruction", "reason", "detail", title="Cancelled")
        for item in cancelled[:50]:
            table.add_row(item.instruction_id, item.reason.value if item.reason else "", item.detail)
        console.print(table)


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
    with connect(url, client_key) as client:
        try:
            view = client.write_statement(parse_ref("bat", batch), participant=participant, currency=currency)
            output.write_bytes(client.statement_file(view.statement))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    console.print(
        f"{output}: {view.entry_count:,} entries, statement {view.sequence_number} of {participant} {currency}"
    )


def _print_batch(view: BatchView) -> None:
    counts = ", ".join(f"{count:,} {state.value}" for state, count in view.counts.items() if count)
    console.print(f"{ids.show('bat', view.batch)}: {view.settlement_count:,} settlements: {counts}")


def _settings() -> SettlementSettings:
    try:
        return SettlementSettings.load()
    except (InvalidSettings, ValidationError) as error:
        fail(error)


def main() -> None:
    app()


if __name__ == "__main__":
    main()

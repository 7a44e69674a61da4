"""The commands of an auditor: `jiaozi-ledger export` and `jiaozi-ledger verify`."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from kernel.money import Currency, format_minor

if TYPE_CHECKING:
    import psycopg

    from ledger.export.log import LogSalts
    from ledger.verifier import Known, Report

console = Console()
errors = Console(stderr=True)

UrlOption = Annotated[
    str | None, typer.Option("--database-url", help="postgresql://...; by default the configured database.")
]
SaltsOption = Annotated[
    Path | None,
    typer.Option("--log-salts", help="The log's salt file (mode 0600); by default the configured one, if it is there."),
]


def export(
    directory: Annotated[Path, typer.Argument(help="A new or empty directory, or an earlier export to go on with.")],
    database_url: UrlOption = None,
    log_salts: SaltsOption = None,
) -> None:
    """Write the journal to files that anybody can verify offline; a later run adds what is new.

    It may be stopped at any time: run it again and it goes on. The files say who paid whom: give them to auditors only.
    """
    import psycopg

    from ledger.export import export_journal
    from ledger.export.log import DatabaseLog
    from ledger.export.source import conninfo

    with ExitStack() as stack:
        url = database_url or stack.enter_context(configured_database())
        connection = stack.enter_context(psycopg.connect(conninfo(url), autocommit=True, options="-c timezone=UTC"))
        salts = _log_salts(connection, log_salts)
        report = stack.enter_context(_progress("exporting"))
        manifest = export_journal(connection, directory, log=DatabaseLog(connection, salts), progress=report)
    if not manifest.segments:
        raise ValueError("the journal is empty: there is nothing to export. Is this the ledger's database?")
    last = manifest.segments[-1]
    size = sum(file.bytes for entry in manifest.segments for file in entry.files.values())
    console.print(f"{directory}: {len(manifest.segments)} segment(s), {size:,} bytes, seq 1 to {last.last_seq}")
    console.print(f"head: {last.last_block}:{last.head_hash}", soft_wrap=True)
    if not any("range-keys" in entry.files for entry in manifest.segments):
        console.print(
            "Without the log's salts (--log-salts): its roots, the blocks that it names and the closings' roots cannot"
            " be checked from these files."
        )


def verify(
    directory: Annotated[
        Path | None, typer.Option("--export", help="An export's directory, instead of a database.")
    ] = None,
    database_url: UrlOption = None,
    anchor: Annotated[
        str | None, typer.Option("--anchor", help="NUMBER:HASH of a block, known from outside the journal.")
    ] = None,
    log_key: Annotated[str | None, typer.Option("--log-key", help="The ledger's public log key: NAME+ID+KEY.")] = None,
    operators_genesis: Annotated[
        str | None, typer.Option("--operators-genesis", help="SHA-256 of genesis (hex), which names the operators.")
    ] = None,
    log_salts: SaltsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")] = False,
) -> None:
    """Replay the journal with code of its own and check every invariant, signature and hash. Exit 1 if any is broken.

    Without an anchor nobody can tell a journal whose newest blocks were cut off from a younger one: keep the head.
    Without the log's key the ledger itself could have rewritten what no customer has signed: ask a witness for it.
    """
    from ledger.verifier import verify_export

    if directory is not None and (database_url is not None or log_salts is not None):
        raise ValueError("--export goes alone: it brings all that --database-url and --log-salts are for")
    known = _known(anchor, log_key, operators_genesis)
    gc.freeze()  # the modules stay: the garbage collector need not look at them again and again
    if directory is not None:
        with _progress("replaying") as progress:
            report = verify_export(directory, known=known, progress=progress)
    else:
        report = _verify_database(database_url, known, log_salts)
    if report.head_block == 0 and report.is_whole:
        raise ValueError("the journal is empty: there is nothing to verify. Is this the ledger's database?")
    if as_json:
        console.print_json(json.dumps(report.to_dict()))
    else:
        _print_report(report)
    if not report.is_whole:
        raise typer.Exit(1)


def _verify_database(database_url: str | None, known: Known, log_salts: Path | None) -> Report:
    import psycopg

    from ledger.export.source import conninfo
    from ledger.verifier import verify_database

    with ExitStack() as stack:
        url = database_url or stack.enter_context(configured_database())
        with psycopg.connect(conninfo(url), autocommit=True) as connection:
            salts = _log_salts(connection, log_salts)
        progress = stack.enter_context(_progress("replaying"))
        return verify_database(url, progress=progress, known=known, salts=salts)


def _known(anchor: str | None, log_key: str | None, genesis: str | None) -> Known:
    """Raises ValueError for what is mistyped."""
    from kernel.transparency.notes import VerifierKey
    from ledger.verifier import Known

    block: tuple[int, bytes] | None = None
    if anchor is not None:
        number, _, digest = anchor.partition(":")
        if not number.isdecimal() or len(digest) != 64:
            raise ValueError("--anchor has the form NUMBER:HASH, the hash of 64 hexadecimal digits")
        block = (int(number), bytes.fromhex(digest))
    if genesis is not None and len(bytes.fromhex(genesis)) != 32:
        raise ValueError("--operators-genesis is a SHA-256: 64 hexadecimal digits")
    return Known(block, VerifierKey.parse(log_key) if log_key is not None else None, genesis)


def _log_salts(connection: psycopg.Connection[Any], path: Path | None) -> LogSalts:
    """The log's salts, of a file given or of the configured one if it is there."""
    from ledger.export.log import NO_SALTS
    from ledger.log import leaves
    from ledger.log.keys import LogKeyRefused, load_master
    from ledger.log.service import key_paths
    from ledger.settings import LedgerSettings

    if connection.execute("SELECT to_regclass('log_identity') IS NULL").fetchone() == (True,):
        return NO_SALTS
    genesis = connection.execute("SELECT body FROM directive WHERE number = 1").fetchone()
    identity = connection.execute("SELECT salt_check FROM log_identity").fetchone()
    if genesis is None or identity is None:
        return NO_SALTS
    is_given = path is not None
    if path is None:
        try:
            path = key_paths(LedgerSettings.load(), str(json.loads(genesis[0])["ledger"]))[1]
        except (ValueError, KeyError, TypeError):  # a tampered genesis: the verifier will say so
            return NO_SALTS
        if not path.exists():
            return NO_SALTS
    master = load_master(path)
    if leaves.salt_check(master) != bytes(identity[0]):
        if not is_given:  # the configured ledger is another one
            return NO_SALTS
        raise LogKeyRefused(f"{path} is not the salt file of this ledger's log")
    return leaves.MasterSalts(master)


@contextmanager
def configured_database() -> Iterator[str]:
    """The ledger's own database; an embedded server that was down is stopped again."""
    from kernel.database import resolve_url
    from kernel.postgres import default_data_dir
    from ledger.settings import LedgerSettings

    settings = LedgerSettings.load()
    data_dir = settings.data_dir or default_data_dir("ledger")
    if settings.database_url is None and not (data_dir / "cluster").exists():
        raise ValueError(f"there is no ledger in {data_dir}: set JIAOZI_LEDGER_DATABASE_URL or give --database-url")
    url, server = resolve_url(settings.database_url, data_dir, "ledger")
    with server or nullcontext():  # as a context manager it stops only what it started
        yield url


@contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None]]:
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _print_report(report: Report) -> None:
    try:
        currency = Currency.of(report.currency) if report.currency else None
    except ValueError:  # as a tampered genesis may have it
        currency = None

    def money(amount: int) -> str:
        return format_minor(amount, currency) if currency is not None else str(amount)

    # what the journal says is printed as text: no markup, no links
    proved = Table(Column(Text(f"proved for {report.ledger or 'an empty journal'}")), Column("count", justify="right"))
    for name, count in sorted(report.proved.items()):
        proved.add_row(name, f"{count:,}")
    console.print(proved)
    supply = Table(
        Column(Text(f"supply of {report.currency}, at seq {report.head_seq}")), Column("amount", justify="right")
    )
    for name in ("issued", "redeemed", "circulation", "vaults", "wallets", "offline", "held"):
        supply.add_row(name, money(getattr(report.supply, name)))
    console.print(supply)
    for name, thumbprint in report.operators:
        console.print(Text(f"operator {name}: {thumbprint}"), soft_wrap=True)
    console.print(f"genesis: {report.genesis_sha256}", soft_wrap=True)
    console.print(f"head: {report.head_block}:{report.head_hash.hex()}", soft_wrap=True)
    for sentence in report.unproved:
        console.print(Text(f"not proved: {sentence}", style="yellow"), soft_wrap=True)
    for finding in report.findings:
        console.print(Text(f"WRONG  {finding}", style="red"), soft_wrap=True)
    if report.is_whole:
        console.print("[green]Nothing is wrong.[/]")
    else:
        more = "" if report.is_complete else " (stopped here: there may be more)"
        console.print(f"[red]{len(report.findings)} finding(s){more}.[/] The first is the first wrong place.")

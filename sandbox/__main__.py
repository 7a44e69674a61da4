"""`jiaozi`: the whole scheme on one machine. Two central banks, four intermediaries, a bridge between them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import KeyRefused
from kernel.postgres import EmbeddedPostgresError
from sandbox.processes import Processes, SandboxBusy, ServiceFailed, locked
from sandbox.topology import DIRECTORY_VARIABLE, Home

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""The whole Jiaozi scheme on this machine, as real processes on loopback and an embedded PostgreSQL.

Two central banks run a ledger each (CNY, AED), two banks of each country run a wallet service each, and a bridge
settles between them, payment against payment.

Start with `jiaozi demo`: it runs the main job from end to end, checks every step, and says what it saw.
`jiaozi up` leaves the same scheme running for you; `jiaozi down` stops it; `jiaozi reset` removes its data.
""",
)
WIDTH_IN_FILES = 112
"""Columns of what is written to a file or a pipe; a terminal has its own."""
console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH_IN_FILES)
errors = Console(stderr=True, highlight=False)

DirOption = Annotated[
    Path | None,
    typer.Option(
        "--dir",
        envvar=DIRECTORY_VARIABLE,
        help="Where keys, databases, logs and files are kept. Default: the user's data directory.",
        show_default=False,
    ),
]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--port",
        min=1024,
        max=65_500,
        help="First of nine consecutive ports. Default: those of last time, or 8100, 8200 ... on, or free ones.",
        show_default=False,
    ),
]


@app.command()
def demo(
    directory: DirOption = None,
    port: PortOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the services running afterwards.")] = False,
    instructions: Annotated[
        int, typer.Option(min=400, max=8_000, help="Cross-border instructions in the batches of step 4.")
    ] = 1_200,
) -> None:
    """Run the main job: issue, open, pay, settle across a border through a crash, reconcile, prove the supply.

    Each step is checked; the exit code is 0 only if everything held. May be repeated: it adds to what is there.
    """
    from sandbox.demo import Demo
    from sandbox.scheme import Scheme

    home = _home(directory)
    _end_on_sigterm()
    with locked(home):
        scheme = Scheme(home, port_first=port)
        was_up = scheme.is_up()
        try:
            failures = Demo(scheme, console, instructions=instructions).run(keep=keep or was_up)
        finally:
            if not keep and not was_up:
                scheme.down()
    if failures:
        raise typer.Exit(1)


@app.command()
def up(directory: DirOption = None, port: PortOption = None) -> None:
    """Bring the scheme up and leave it running. Twice is fine: what runs is left alone, what died is started again."""
    from sandbox.scheme import Scheme

    home = _home(directory)
    _end_on_sigterm()
    with locked(home):
        scheme = Scheme(home, port_first=port)
        was_running = bool(scheme.processes.pids())
        try:
            with console.status("starting") as status:
                started = scheme.up(lambda text: status.update(text))
        except BaseException:
            if not was_running:  # no half of a scheme is left behind
                scheme.down()
            raise
    console.print("The scheme is up." if started else "The scheme was up already.")
    _print_status(home)
    where = "" if directory is None else f" --dir {escape(str(directory))}"
    console.print(
        f'Try it by hand: eval "$({Path(sys.argv[0])} env{where})" sets the keys and addresses;'
        " the README has the first lines to type.\n"
        f"Stop it with [bold]jiaozi down{where}[/]; its data stays. `jiaozi reset{where}` removes the data."
    )


@app.command()
def env(directory: DirOption = None) -> None:
    """Print shell exports for the running scheme: keys, addresses, a bank's vault. Use: eval "$(jiaozi env)"."""
    from kernel.crypto.keys import PrivateKey
    from kernel.ids import show_account
    from sandbox import witnesses
    from sandbox.scheme import Scheme
    from sandbox.topology import CENTRAL_BANKS, INSTITUTIONS, ledger_service

    home = _home(directory)
    scheme = Scheme(home)
    if not scheme.is_up():
        raise ValueError("the scheme is not up: run `jiaozi up` first")
    bank, central = INSTITUTIONS[0], CENTRAL_BANKS[0]
    device, shop = home.keys / "device.pem", home.keys / "shop.pem"
    for path in (device, shop):  # a device has one wallet: one key to pay with, one to be paid
        if not path.exists():
            PrivateKey.generate().save(path)
    exports = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "KEYS": home.keys,
        "VAULT": show_account(scheme.vaults()[bank.participant][central.ledger]),
        "JIAOZI_LEDGER_DATABASE_URL": scheme.database_url(ledger_service(central.ledger)),
        "JIAOZI_LEDGER_LOG_SALT_PATH": witnesses.log_salts(home, central.ledger),
        "JIAOZI_LEDGER_PUBLIC_URL": scheme.url(ledger_service(central.ledger)),
        "JIAOZI_WALLET_PUBLIC_URL": scheme.url(bank.service),
        "JIAOZI_CLIENT_KEY": home.keys / f"{bank.participant}-channel.pem",
        "JIAOZI_DEVICE_KEY": device,
    }
    for name, value in exports.items():
        sys.stdout.write(f'export {name}="{value}"\n')


@app.command()
def down(directory: DirOption = None) -> None:
    """Stop every process of the scheme, the database server too. The data stays."""
    home = Home.at(directory)
    if not home.path.is_dir():
        console.print(f"There is no sandbox in {home.path}: nothing to stop.")
        return
    with locked(home):
        was_running = home.postgres.postmaster_pid() is not None
        stopped = Processes(home).stop_all()
        home.postgres.stop()
    server = " and PostgreSQL" if was_running else ""
    console.print(f"Stopped {len(stopped)} services{server}." if stopped or was_running else "Nothing was running.")


@app.command()
def reset(
    directory: DirOption = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Stop the scheme and remove its data: keys, databases, logs, files. Says what, and asks first."""
    from sandbox.scheme import removable, remove

    home = Home.at(directory)
    found = removable(home)
    if not found:
        console.print(f"There is no sandbox in {home.path}: nothing to remove.")
        return
    console.print(f"This removes from [bold]{home.path}[/]: {', '.join(path.name for path in found)}.")
    if not yes and not typer.confirm("Remove it?"):
        raise typer.Exit(1)
    with locked(home):
        Processes(home).stop_all()
        home.postgres.stop()
        remove(home)
    console.print("Removed.")


@app.command()
def status(directory: DirOption = None) -> None:
    """Show the services: address, process, log. Exit code 1 unless all of them run."""
    home = Home.at(directory)
    if not _print_status(home):
        raise typer.Exit(1)


def _home(directory: Path | None) -> Home:
    """A directory that can be locked. Raises DirectoryRefused if it holds other things."""
    home = Home.at(directory)
    home.claim()
    return home


def _end_on_sigterm() -> None:
    """SIGTERM ends a command like Ctrl-C: what it started is stopped on the way out."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)


def _print_status(home: Home) -> bool:
    from sandbox.scheme import Scheme

    scheme = Scheme(home)
    if not scheme.services:
        console.print(f"There is no sandbox in {home.path} yet: `jiaozi up` makes one.")
        return False
    pids = scheme.processes.pids()
    table = Table("service", "pid", "API docs", "log", box=None, pad_edge=False)
    for service in scheme.services:
        pid = pids.get(service.name)
        shown = f"[green]{pid}[/]" if pid is not None else "[red]down[/]"
        log = service.log_file.relative_to(home.path)
        table.add_row(service.name, shown, f"{service.url}/docs", str(log))
    server = home.postgres.postmaster_pid()
    table.add_row("PostgreSQL", f"[green]{server}[/]" if server else "[red]down[/]", "", "postgres/postgres.log")
    console.print(table)
    console.print(f"Everything lies in {home.path}", soft_wrap=True)
    return len(pids) == len(scheme.services) and server is not None


def main() -> None:
    """Entry point: what goes wrong is one clear line."""
    try:
        app()
    except ProblemResponse as error:
        errors.print(f"[red]refused ({error.refusal or error.status}):[/] {escape(error.detail)}")
        raise SystemExit(1) from None
    except (
        ServiceUnreachable,
        ServiceFailed,
        SandboxBusy,
        EmbeddedPostgresError,
        KeyRefused,
        ValueError,
        OSError,
    ) as error:
        errors.print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

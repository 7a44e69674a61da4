"""The commands around the transparency log: its key, receipts, and a check of the whole log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.money import Currency, format_minor

if TYPE_CHECKING:
    from kernel.database import Database
    from ledger.client import LedgerClient

console = Console()

UrlOption = Annotated[str, typer.Option("--url", envvar="JIAOZI_LEDGER_PUBLIC_URL", help="The ledger's address.")]
KeyOption = Annotated[Path, typer.Option("--key", help="Private key file (PEM, mode 0600) to sign with.")]
DEFAULT_URL = "http://127.0.0.1:8100"


def connect(url: str, key: PrivateKey | None = None) -> LedgerClient:
    """A client of the ledger, signing with `key`. It takes half a second to load: no command without it waits."""
    from kernel.crypto.http_signatures import RequestSigner
    from ledger.client import LedgerClient

    return LedgerClient(url, signer=RequestSigner(key) if key is not None else None)


def log_key(url: UrlOption = DEFAULT_URL) -> None:
    """Print the public key of the ledger's transparency log (vkey). Compare it with one from another source."""
    with connect(url) as client:
        console.print(client.log().vkey, highlight=False, soft_wrap=True)


def incidents(
    url: UrlOption = DEFAULT_URL,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")] = False,
) -> None:
    """Show which checkpoints witnesses have refused, and what operators have said of it. Exit 1 if one is not settled.

    A witness refuses a checkpoint that does not contain what it has seen: this ledger is not the one that it was, or
    the witness is not. Find out which (docs/transparency.md), repair it, and say so with `acknowledge-incident`.
    """
    with connect(url) as client:
        found = client.incidents()
    if as_json:
        console.print_json(json.dumps([item.model_dump(mode="json") for item in found]))
    for item in () if as_json else found:
        state = "acknowledged" if item.reason is not None else "OPEN" if item.is_open else "over"
        lines = [
            ("incident", f"{state}, noticed {item.noticed_at:%Y-%m-%dT%H:%M:%SZ}"),
            ("witness", item.witness),
            ("checkpoint", f"block {item.block}, size {item.size}"),
            ("detail", item.detail),
        ]
        if item.reason is not None:
            lines += [("reason", item.reason), ("operator", item.operator or "")]
            lines += [("witness now", "still refuses" if item.is_open else "has cosigned again")]
        for name, value in lines:
            console.print(f"{name:<12} {value}", highlight=False, markup=False, soft_wrap=True)
        console.print()
    if not found and not as_json:
        console.print("No witness has ever refused a checkpoint.")
    if any(item.is_open and item.reason is None for item in found):
        raise typer.Exit(1)


def acknowledge_incident(
    witness: Annotated[str, typer.Argument(help="The witness's key (vkey), as `incidents` shows it.")],
    block: Annotated[int, typer.Argument(help="The block of the refused checkpoint.")],
    reason: Annotated[str, typer.Option("--reason", help="What was found out and done. Public, and kept for ever.")],
    key: KeyOption,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Say, as an operator, what an incident was, once it is handled; then /healthz is good again within some seconds.

    It cannot be taken back or changed. The witness goes on refusing until its own operator has looked into it.
    """
    with connect(url, PrivateKey.load(key)) as client:
        client.acknowledge_incident(witness, block, reason=reason)
    console.print("The incident is acknowledged; the reason is kept and public.")


def receipt(
    transfer: Annotated[str, typer.Argument(help="trf_...")],
    file: Annotated[Path, typer.Argument(help="Where to write it; an existing file is not overwritten.")],
    key: KeyOption,
    quorum: Annotated[int, typer.Option(min=0, help="So many witnesses must have cosigned its checkpoint.")] = 0,
    url: UrlOption = DEFAULT_URL,
) -> None:
    """Fetch the receipt of a transfer, to keep and to verify offline (`verify-receipt`)."""
    with connect(url, PrivateKey.load(key)) as client:
        document = client.receipt(ids.parse("trf", transfer), quorum=quorum)
    with file.open("xb") as opened:
        opened.write(document)


def verify_receipt(
    file: Annotated[Path, typer.Argument(help="The receipt (JSON).")],
    log_key: Annotated[str, typer.Option("--log-key", help="The ledger's public log key: NAME+ID+KEY.")],
    witness: Annotated[
        list[str] | None, typer.Option("--witness", help="A witness's public key that you trust; give each.")
    ] = None,
    quorum: Annotated[int, typer.Option(min=0, help="How many of them must have cosigned.")] = 0,
) -> None:
    """Verify, offline, that a transfer is in the ledger's log exactly as the receipt says. Exit 1 if it is not."""
    from kernel.transparency.checkpoints import witness_keys
    from kernel.transparency.notes import VerifierKey
    from ledger import receipts

    with file.open("rb") as opened:
        document = opened.read(receipts.RECEIPT_BYTES_MAX + 1)
    found = receipts.verify_receipt(
        document, log_key=VerifierKey.parse(log_key), witnesses=witness_keys(witness or ()), quorum=quorum
    )
    transfer, currency = found.receipt.transfer, Currency.of(found.receipt.currency)
    lines = [
        ("transfer", f"{ids.show('trf', transfer.id)}, {transfer.kind.value}, seq {transfer.seq}"),
        ("amount", f"{currency} {format_minor(transfer.amount_minor, currency)}"),
        ("debit", ids.show_account(transfer.debit) if transfer.debit is not None else "-"),
        ("credit", ids.show_account(transfer.credit) if transfer.credit is not None else "-"),
        ("booked at", f"{transfer.booked_at:%Y-%m-%dT%H:%M:%S.%fZ}"),
        ("log", f"{found.checkpoint.origin}, {found.checkpoint.size} transfers"),
        *(("witnessed", f"the tree, by {item.witness} at {item.timestamp}") for item in found.tree_cosigned),
    ]
    for name, value in lines:
        console.print(f"{name:<10} {value}", highlight=False, soft_wrap=True)
    console.print("[green]The transfer is in the log.[/]")


def check_log() -> None:
    """Hash the whole log anew from the journal, with the log's keys; compare tiles and root. Exit 1 if they differ."""
    from kernel.database import Database
    from ledger.audit import configured_database
    from ledger.log.sealer import Sealer
    from ledger.log.service import load_keys
    from ledger.settings import LedgerSettings

    settings = LedgerSettings.load()
    with configured_database() as url:
        database = Database(url, application_name="jiaozi-check-log")
        try:
            name, currency = _ledger_of(database)
            keys = load_keys(settings, database, ledger=name, clock=system_clock)
            sealer = Sealer(database, keys, ledger=name, currency=currency, holder="", clock=system_clock)
            try:
                found = sealer.check_all()
            finally:
                sealer.close()
        finally:
            database.close()
    console.print(f"{found.origin}: {found.size:,} transfers hashed anew; every tile and the root are right.")


def _ledger_of(database: Database) -> tuple[str, str]:
    """(ledger, currency) of a journal. Raises ValueError for an empty one."""
    from ledger.store.journal import Journal

    with database.raw(isolation="READ COMMITTED") as connection:
        found = Journal(connection).directives()
    if not found:
        raise ValueError("the journal is empty: there is nothing to check. Is this the ledger's database?")
    genesis = json.loads(found[0].body)
    return genesis["ledger"], genesis["currency"]

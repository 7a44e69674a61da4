"""Options and helpers that the commands share: where the service is, which key signs, how failures read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from rich.console import Console

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey
from settlement.client import SettlementClient

DEFAULT_URL = "http://127.0.0.1:8300"
Url = Annotated[str, typer.Option("--url", envvar="JIAOZI_SETTLEMENT_PUBLIC_URL", help="Origin of the service.")]
ClientKey = Annotated[
    Path,
    typer.Option(
        "--client-key",
        envvar="JIAOZI_CLIENT_KEY",
        help="Private key (PEM, mode 0600) of a registered institution or of the bridge: signs the request.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document, and nothing else on stdout.")]
BatchId = Annotated[str, typer.Argument(help="Batch, as bat_...")]
Participant = Annotated[str, typer.Option(help="Whose account, in the shape of a BIC.")]
CurrencyOption = Annotated[str, typer.Option("--currency", help="Of the account, e.g. CNY.")]
console = Console(width=None if sys.stdout.isatty() else 200)
"""A pipe or a file gets whole words in wide lines: whoever reads them there searches or cuts them."""
errors = Console(stderr=True)


def connect(url: str, key: Path) -> SettlementClient:
    try:
        return SettlementClient(url, signer=RequestSigner(PrivateKey.load(key)))
    except KeyRefused as error:
        fail(error)


def parse_ref(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        fail(error)


def fail(error: Exception) -> NoReturn:
    errors.print(_problem(error) if isinstance(error, ProblemResponse) else str(error), markup=False)
    raise typer.Exit(2)


def _problem(error: ProblemResponse) -> str:
    lines = [str(error)]
    lines += [f"  {item.get('reason', item)}" for item in error.extra.get("problems", [])[:20]]
    return "\n".join(lines)

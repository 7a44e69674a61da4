"""Options and helpers that the sub-commands share: where the service is, which keys sign, how failures read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer

from kernel import ids
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey
from wallet.client import WalletClient

DEFAULT_URL = "http://127.0.0.1:8200"
Url = Annotated[str, typer.Option("--url", envvar="JIAOZI_WALLET_PUBLIC_URL", help="Origin of the wallet service.")]
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
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one document, and nothing else on stdout.")]


def connect(url: str, client_key: Path) -> WalletClient:
    return WalletClient(url, signer=RequestSigner(load_key(client_key)))


def load_key(path: Path) -> PrivateKey:
    try:
        return PrivateKey.load(path)
    except KeyRefused as error:
        fail(f"{error}: name a private key made by `jiaozi-wallet new-key`")


def parse_id(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        fail(f"{text}: {error}")


def fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(1)

"""Options and helpers that the sub-commands share: where the service is, which keys sign, how failures read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn
from uuid import UUID

import typer
from pydantic import ValidationError

from kernel import ids, strict_json
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey
from kernel.errors import ProblemError
from wallet.client import WalletClient

LINE_CHARACTERS_MAX = 600
"""The longest reason of the project's own has 200; what is quoted in it may be a whole file's first line."""
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


def load_public_key(path: Path) -> PublicKey:
    """From a file with a public JWK."""
    try:
        jwk = strict_json.loads(path.read_bytes()[:4096])
        return PublicKey.from_jwk(jwk if isinstance(jwk, dict) else {})
    except (OSError, ProblemError, KeyRefused) as error:
        fail(f"{path} is no public JWK: {error}")


def parse_id(prefix: str, text: str) -> UUID:
    try:
        return ids.parse(prefix, text)
    except ValueError as error:
        fail(f"{text}: {error}")


def reason(error: Exception) -> str:
    """Why something was not taken, of many reasons the first: without what was given, which may be anything."""
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']} ({error.title})"
    return str(error)


def fail(message: str | Exception) -> NoReturn:
    """End with status 1 and this on stderr, as one line whatever was typed is in it."""
    typer.echo(one_line(message if isinstance(message, str) else reason(message)), err=True)
    raise typer.Exit(1)


def one_line(text: str) -> str:
    """Characters that end a line or steer a terminal are shown as escapes; what is very long is cut."""
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    half = LINE_CHARACTERS_MAX // 2
    return shown if len(shown) <= LINE_CHARACTERS_MAX else f"{shown[:half]} ... {shown[-half:]}"

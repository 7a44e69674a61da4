"""The island made of a ChainMaker ledger's entry in the bridge's directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eth_utils.address import is_checksum_address

from kernel.money import Currency
from settlement.islands.authorisers import Check
from settlement.islands.chainmaker.client import Node, Tls, load_signer
from settlement.islands.chainmaker.entry import ChainMakerEntry
from settlement.islands.chainmaker.island import ChainMakerIsland
from settlement.islands.chainmaker.terms import ChainMakerTerms, check_lock


@dataclass(frozen=True, slots=True)
class ChainMakerConnection:
    island: ChainMakerIsland
    terms: ChainMakerTerms
    check: Check
    close: Callable[[], None]


def chainmaker_terms(entry: ChainMakerEntry, *, ledger: str, currency: Currency) -> ChainMakerTerms:
    """Raises ValueError if the token has fewer decimals than the currency, an address has a wrong checksum (EIP-55), or
    belongs to two accounts."""
    for address in entry.accounts.values():
        if not is_checksum_address(address):
            raise ValueError(f"{ledger}: {address} is not an address with its checksum (EIP-55)")
    if entry.token_decimals < currency.exponent:
        raise ValueError(f"{ledger}: the token has fewer decimals than {currency.code}")
    unit = 10 ** (entry.token_decimals - currency.exponent)
    return ChainMakerTerms(
        ledger, entry.chain_id, entry.escrow, entry.token, unit, entry.accounts, entry.addr_type, entry.gas_limit
    )


def tls_from(ca: Path | None, key: Path | None, certificate: Path | None, server_name: str | None) -> Tls | None:
    """Raises ValueError for files that cannot be read, and for a key that others can read."""
    if ca is None:
        return None
    if (key is None) != (certificate is None):
        raise ValueError("tls_key_path and tls_certificate_path go together")
    if key is not None and key.exists() and key.stat().st_mode & 0o077:
        raise ValueError(f"{key} must not be readable by others (mode 0600)")
    return Tls(
        ca=_content(ca),
        certificate=_content(certificate) if certificate else None,
        key=_content(key) if key else None,
        server_name=server_name,
    )


def connect_chainmaker(
    entry: ChainMakerEntry, *, ledger: str, url: str, currency: Currency, timeout_seconds: float
) -> ChainMakerConnection:
    """Nothing is dialled yet. Raises ValueError for a key that cannot be read and for terms that do not fit."""
    terms = chainmaker_terms(entry, ledger=ledger, currency=currency)
    signer = load_signer(entry.org_id, entry.key_path, entry.certificate_path)
    tls = tls_from(entry.tls_ca_path, entry.tls_key_path, entry.tls_certificate_path, entry.tls_server_name)
    node = Node(url, signer, chain_id=entry.chain_id, tls=tls, timeout_seconds=timeout_seconds)
    island = ChainMakerIsland(
        terms,
        node,
        install_tx_id=entry.install_tx_id,
        first_block=entry.first_block,
        wait_seconds=entry.wait_seconds,
    )
    return ChainMakerConnection(island, terms, partial(check_lock, terms), node.close)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None

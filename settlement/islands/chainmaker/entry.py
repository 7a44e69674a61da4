"""A ChainMaker ledger's entry in the bridge's directory, without the libraries that speak to chains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ledger.contract import AccountRef, Model
from settlement.islands.evm.entry import Address

ContractName = Annotated[str, Field(pattern="^[A-Za-z0-9_.-]{1,128}$")]


class ChainMakerEntry(Model):
    """`url` of the ledger's entry is grpc://host:port, or grpcs://host:port with `tls_ca_path`."""

    chain_id: Annotated[str, Field(min_length=1, max_length=30)]
    escrow: ContractName
    """The name under which the escrow contract was installed."""
    install_tx_id: Annotated[str, Field(pattern="^[0-9a-zA-Z]{1,64}$")]
    """The transaction that installed it: its bytecode is compared with this program's."""
    token: ContractName
    token_decimals: Annotated[int, Field(ge=0, le=36)]
    accounts: dict[AccountRef, Address]
    """Whose address is whose: each account of the institutions on this ledger."""
    addr_type: Literal["chainmaker", "ethereum"] = "chainmaker"
    """How the chain makes an address of a certificate (`vm.addr_type` of its configuration)."""
    org_id: Annotated[str, Field(min_length=1, max_length=100)]
    key_path: Path
    """The bridge's own key on this chain: PEM, P-256, mode 0600. It sends posts and voids and asks; it has no money."""
    certificate_path: Path
    tls_ca_path: Path | None = None
    tls_key_path: Path | None = None
    tls_certificate_path: Path | None = None
    tls_server_name: str | None = None
    first_block: Annotated[int, Field(ge=0)] = 0
    """The escrow's, where statements begin."""
    wait_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    gas_limit: Annotated[int, Field(ge=1)] | None = None
    """Of each transaction, on a chain that counts gas."""

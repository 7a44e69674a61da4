"""An EVM ledger's entry in the bridge's directory, without the libraries that speak to chains."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from ledger.contract import AccountRef, Model

Address = Annotated[str, Field(pattern="^0x[0-9a-fA-F]{40}$", description="With its checksum (EIP-55).")]


class EvmEntry(Model):
    """`url` of the ledger's entry is the node that is asked; `witnesses` must show the same final blocks."""

    chain_id: Annotated[int, Field(ge=1)]
    escrow: Address
    token: Address
    token_decimals: Annotated[int, Field(ge=0, le=36)]
    accounts: dict[AccountRef, Address]
    """Whose address is whose: each account of the institutions on this ledger."""
    key_path: Path
    """The bridge's own key on this chain, which pays for posts and voids: 32 bytes in hex, mode 0600."""
    confirmations: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """A block is final when so many stand on it, itself included; unset = when the node calls it `finalized`."""
    witnesses: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    first_block: Annotated[int, Field(ge=0)] = 0
    """The escrow's, where statements begin."""
    wait_seconds: Annotated[float, Field(gt=0, le=60)] = 2.0
    gas_price_wei: Annotated[int, Field(ge=0)] | None = None
    """A fixed price (0 where the chain has no fees); unset = the chain's own."""
    gas_price_max_wei: Annotated[int, Field(ge=1)] = 500 * 10**9
    ends_per_transaction: Annotated[int, Field(ge=1, le=100)] = 50

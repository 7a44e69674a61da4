"""The island made of an EVM ledger's entry in the bridge's directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eth_utils.address import is_checksum_address

from kernel.money import Currency
from settlement.islands.evm.entry import EvmEntry
from settlement.islands.evm.finality import ChainView, FinalBlocks, FinalBlocksInMemory
from settlement.islands.evm.island import EvmIsland, Recall
from settlement.islands.evm.rpc import Node
from settlement.islands.evm.sender import GasPolicy, Sender, load_account
from settlement.islands.evm.terms import EvmTerms


@dataclass(frozen=True, slots=True)
class EvmConnection:
    island: EvmIsland
    terms: EvmTerms
    view: ChainView
    close: Callable[[], None]


def evm_terms(entry: EvmEntry, *, ledger: str, currency: Currency) -> EvmTerms:
    """Raises ValueError if the token has fewer decimals than the currency, an address has a wrong checksum (EIP-55), or
    belongs to two accounts."""
    for address in (entry.escrow, entry.token, *entry.accounts.values()):
        if not is_checksum_address(address):
            raise ValueError(f"{ledger}: {address} is not an address with its checksum (EIP-55)")
    if entry.token_decimals < currency.exponent:
        raise ValueError(f"{ledger}: the token has fewer decimals than {currency.code}")
    unit = 10 ** (entry.token_decimals - currency.exponent)
    return EvmTerms(ledger, entry.chain_id, entry.escrow, entry.token, unit, entry.accounts)


def connect_evm(
    entry: EvmEntry,
    *,
    ledger: str,
    url: str,
    currency: Currency,
    timeout_seconds: float,
    memory: FinalBlocks | None = None,
    recall: Recall | None = None,
) -> EvmConnection:
    """Nothing is dialled yet. Raises ValueError for a key that cannot be read and for terms that do not fit."""
    terms = evm_terms(entry, ledger=ledger, currency=currency)
    account = load_account(entry.key_path)
    nodes = [Node(address, timeout_seconds=timeout_seconds) for address in (url, *entry.witnesses)]
    view = ChainView(
        ledger,
        nodes,
        chain_id=entry.chain_id,
        confirmations=entry.confirmations,
        memory=memory or FinalBlocksInMemory(),
    )
    gas = GasPolicy(max_wei=entry.gas_price_max_wei, price_wei=entry.gas_price_wei)
    sender = Sender(nodes[0], account, chain_id=entry.chain_id, gas=gas)
    island = EvmIsland(
        terms,
        nodes[0],
        view,
        sender,
        first_block=entry.first_block,
        wait_seconds=entry.wait_seconds,
        ends_per_transaction=entry.ends_per_transaction,
        recall=recall,
    )

    def close() -> None:
        for node in nodes:
            node.close()

    return EvmConnection(island, terms, view, close)

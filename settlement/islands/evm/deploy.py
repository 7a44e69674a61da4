"""Put the escrow on a chain, once, by hand."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from eth_utils.address import to_checksum_address

from settlement.islands.evm.contracts import ESCROW
from settlement.islands.evm.rpc import Node, NodeUnreachable, quantity
from settlement.islands.evm.sender import GasPolicy, load_account

GAS = 3_000_000
_WAIT_SECONDS = 180.0


def deploy(url: str, key_path: Path, *, gas_price_wei: int | None = None) -> dict[str, Any]:
    """{"escrow", "chain_id", "first_block"}. Raises ValueError, NodeUnreachable, NodeRefused, GasTooDear."""
    account, node = load_account(key_path), Node(url)
    try:
        chain_id = quantity(node.call("eth_chainId"))
        block = node.call("eth_getBlockByNumber", "latest", False)
        base_fee = quantity(block["baseFeePerGas"]) if block.get("baseFeePerGas") else None
        asked = quantity(node.call("eth_gasPrice")) if gas_price_wei is None and base_fee is None else None
        document: dict[str, Any] = {
            "chainId": chain_id,
            "value": 0,
            "data": ESCROW.deployment(),
            "gas": GAS,
            "nonce": quantity(node.call("eth_getTransactionCount", account.address, "pending")),
            **GasPolicy(price_wei=gas_price_wei).fees(base_fee, asked, bumps=0),
        }
        raw = bytes(account.sign_transaction(document).raw_transaction)
        key = node.call("eth_sendRawTransaction", "0x" + raw.hex())
        until = time.monotonic() + _WAIT_SECONDS
        while (receipt := node.call("eth_getTransactionReceipt", key)) is None:
            if time.monotonic() > until:
                raise NodeUnreachable(f"transaction {key} is in no block after {_WAIT_SECONDS:.0f} s")
            time.sleep(0.5)
        if quantity(receipt["status"]) != 1:
            raise ValueError(f"transaction {key} was reverted")
        address = str(to_checksum_address(receipt["contractAddress"]))
        return {"escrow": address, "chain_id": chain_id, "first_block": quantity(receipt["blockNumber"])}
    finally:
        node.close()

"""The supply statement: what the whole ledger adds up to at a checkpoint, as a document that the checkpoint signs.

Canonical JSON (RFC 8785), amounts as strings of digits in minor units. A checkpoint's `supply` line holds its SHA-256.
"""

from __future__ import annotations

from hashlib import sha256

from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.transparency.checkpoints import Checkpoint
from kernel.transparency.notes import to_base64
from ledger.domain.blocks import BlockHeader
from ledger.log.leaves import block_commitment


def supply_statement(header: BlockHeader, *, ledger: str, currency: str) -> bytes:
    """The statement after a block, from its header's totals. `held` is part of vaults and wallets."""
    return jws.canonical_json(
        {
            "ledger": ledger,
            "currency": currency,
            "block": header.number,
            "seq": header.first_seq + header.transfer_count - 1,
            "booked_at": from_micros(header.booked_at).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "issued_minor": str(header.issued),
            "redeemed_minor": str(header.redeemed),
            "circulation_minor": str(header.issued - header.redeemed),
            "vaults_minor": str(header.vaults),
            "wallets_minor": str(header.wallets),
            "held_minor": str(header.held),
            "offline_minor": str(header.offline),
        }
    )


def checkpoint_of(header: BlockHeader, *, origin: str, root: bytes, statement: bytes, master: bytes) -> Checkpoint:
    """The checkpoint of the tree after a block: its size is the block's last seq. `master`: of the log's salts."""
    extensions = (
        f"block {header.number} {to_base64(block_commitment(master, header.number, header.hash))}",
        f"supply {to_base64(sha256(statement).digest())}",
    )
    return Checkpoint(origin, header.first_seq + header.transfer_count - 1, root, extensions)

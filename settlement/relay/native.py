"""A leg on a ledger of this system, by receipts of its transparency log."""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Any
from uuid import UUID

from kernel.crypto import jws
from kernel.transparency.checkpoints import witness_keys
from kernel.transparency.notes import VerifierKey
from ledger.client import ReceiptRefused, VerifiedReceipt, verify_receipt
from ledger.contract import TransferKind
from settlement.relay.bundle import LegStanding, NativeProof, Statement
from settlement.relay.trie import ProofRefused
from settlement.relay.trust import NativeTrust

_INSTRUCTION, _SECRET, _HOLD_TERMS, _TOMBSTONE = 1, 2, 4, 5
"""Kinds of evidence (docs/transparency.md)."""


def evidence_digest(seq: int, items: list[tuple[int, bytes]]) -> bytes:
    """SHA-256 over each item by kind: seq (8), kind (1), length (4), body."""
    digest = sha256()
    for kind, body in sorted(items):
        digest.update(struct.pack(">qBI", seq, kind, len(body)) + body)
    return digest.digest()


def open_receipt(trust: NativeTrust, document: dict[str, Any]) -> VerifiedReceipt:
    """Raises ProofRefused."""
    try:
        found = verify_receipt(
            jws.canonical_json(document),
            log_key=VerifierKey.parse(trust.log_key),
            witnesses=witness_keys(trust.witnesses),
            quorum=trust.quorum,
        )
    except (ReceiptRefused, ValueError, RecursionError) as error:
        raise ProofRefused(str(error)) from None
    if (found.receipt.ledger, found.receipt.currency) != (trust.ledger, trust.currency):
        raise ProofRefused("the receipt is of another ledger or currency")
    return found


def check_leg(
    trust: NativeTrust,
    statement: Statement,
    proof: NativeProof,
    *,
    uetr: UUID,
    commit_hash: bytes,
    abort_hash: bytes,
) -> tuple[LegStanding, str]:
    """(what the leg is proved to be, what the proof stands under). Raises ProofRefused."""
    sizes: list[int] = []
    if proof.hold_receipt is not None:
        found = open_receipt(trust, proof.hold_receipt)
        placed = found.receipt.transfer
        sizes.append(found.checkpoint.size)
        is_it = (placed.kind, placed.id, placed.reference) == (TransferKind.HOLD, statement.hold, uetr)
        if not is_it or not _has_terms(statement, placed):
            raise ProofRefused("the hold is not of this leg's terms")
        # The hashes are the settlement's: this ties the legs to one another, and no expiry can end one alone (I5).
        items = [(_HOLD_TERMS, commit_hash + abort_hash + bytes(8))]
        if proof.instruction is not None:
            items.append((_INSTRUCTION, proof.instruction.encode()))
        if found.receipt.evidence_digest != evidence_digest(placed.seq, items):
            raise ProofRefused("the hold is not under the settlement's two hashes, or the instruction is not its own")
    if proof.end_receipt is None:
        if proof.hold_receipt is None:
            raise ProofRefused("nothing is shown")
        return LegStanding.HELD, _under(trust, sizes)
    found = open_receipt(trust, proof.end_receipt)
    ended = found.receipt.transfer
    sizes.append(found.checkpoint.size)
    if ended.hold != statement.hold:
        raise ProofRefused("the end is of another hold")
    if proof.hold_receipt is None:
        items = [(_TOMBSTONE, statement.hold.bytes + abort_hash)]
        if proof.end_secret is not None:
            items.append((_SECRET, proof.end_secret))
        if ended.kind is not TransferKind.TOMBSTONE:
            raise ProofRefused("without its hold only a tombstone proves anything")
        if found.receipt.evidence_digest != evidence_digest(ended.seq, items):
            raise ProofRefused("the tombstone is not under the abort hash")
        return LegStanding.VOIDED, _under(trust, sizes)
    if not _has_terms(statement, ended):
        raise ProofRefused("the end is not of this leg's terms")
    if ended.kind is TransferKind.POST:
        return LegStanding.POSTED, _under(trust, sizes)
    if ended.kind is TransferKind.VOID:
        return LegStanding.VOIDED, _under(trust, sizes)
    raise ProofRefused(f"a transfer of kind {ended.kind.value} ends no hold of a settlement")


def _has_terms(statement: Statement, transfer: Any) -> bool:
    wanted = (statement.debit, statement.credit, statement.amount_minor)
    return bool((transfer.debit, transfer.credit, transfer.amount_minor) == wanted)


def _under(trust: NativeTrust, sizes: list[int]) -> str:
    return "checkpoint " + " and ".join(f"{size:,}" for size in dict.fromkeys(sizes)) + f" of {trust.ledger}"

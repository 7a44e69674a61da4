"""What a reader of proofs is given: for each leg the statement and the proof, and the headers they stand under."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from ledger.contract import AccountRef, Amount, CurrencyCode, Hash32, HoldRef, Model, ParticipantRef
from settlement.contract import SettlementRef, SettlementState

BUNDLE_BYTES_MAX = 64 * 1024 * 1024
LEGS_MAX = 500
HEADERS_MAX = 4_096
"""Of one chain in one bundle: some 2.5 MB."""
NODES_MAX = 64
HEADER_BYTES_MAX = 2_048
NODE_BYTES_MAX = 1_048_576
"""A trie's leaf holds a whole receipt."""

Blob = Annotated[str, Field(pattern="^([0-9a-f]{2})*$", max_length=2 * NODE_BYTES_MAX)]
"""Bytes in lower-case hexadecimal."""


class LegStanding(StrEnum):
    HELD = "held"
    """It was placed. That nothing ended it since is not shown: a proof of presence proves no absence."""
    POSTED = "posted"
    VOIDED = "voided"
    """Returned, or kept out for ever by a tombstone."""


class Statement(Model):
    """What is claimed of a leg."""

    number: Annotated[int, Field(ge=0, lt=LEGS_MAX)]
    ledger: Annotated[str, Field(min_length=1, max_length=64)]
    hold: HoldRef
    payer: ParticipantRef
    payee: ParticipantRef
    debit: AccountRef
    credit: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    state: LegStanding


class NativeProof(Model):
    """Receipts of a ledger's transparency log (docs/transparency.md)."""

    kind: Literal["native"] = "native"
    hold_receipt: dict[str, Any] | None
    """Of the transfer that placed the hold; None of a tombstone."""
    instruction: Annotated[str, Field(max_length=16_384)] | None
    """The payer's signed order of the hold, which the receipt's evidence digest covers."""
    end_receipt: dict[str, Any] | None
    """Of the post, void or tombstone; None while there is none."""
    end_secret: Hash32 | None
    """The published secret that is in the end's evidence; needed of a tombstone alone."""


class EventProof(Model):
    """A log in a receipt, and the receipt in a block's receipts trie."""

    block: Annotated[int, Field(ge=0, lt=2**63)]
    transaction_index: Annotated[int, Field(ge=0, lt=2**32)]
    log_position: Annotated[int, Field(ge=0, lt=2**20)]
    """Within the receipt, from 0."""
    nodes: Annotated[list[Blob], Field(min_length=1, max_length=NODES_MAX)]
    """The trie's nodes from the root to the leaf, whose value is the receipt."""


class EvmProof(Model):
    kind: Literal["evm"] = "evm"
    locked: EventProof | None
    """None of a tombstone."""
    ended: EventProof | None


class LegProof(Model):
    statement: Statement
    proof: Annotated[NativeProof | EvmProof, Field(discriminator="kind")] | None
    why_not: Annotated[str, Field(max_length=500)] = ""
    """Why there is no proof, or only one of the hold."""


class HeaderChain(Model):
    ledger: Annotated[str, Field(min_length=1, max_length=64)]
    headers: Annotated[list[Blob], Field(min_length=1, max_length=HEADERS_MAX)]
    """RLP, each the child of the one before."""
    note: Annotated[str, Field(max_length=16_384)]
    """The last header's number and hash, signed by the keeper that shows them."""


class ProofBundle(Model):
    format: Literal["jiaozi-settlement-proofs/v1"] = "jiaozi-settlement-proofs/v1"
    settlement: SettlementRef
    uetr: UUID
    state: SettlementState
    commit_hash: Hash32
    abort_hash: Hash32
    legs: Annotated[list[LegProof], Field(min_length=1, max_length=LEGS_MAX)]
    chains: Annotated[list[HeaderChain], Field(max_length=64)]

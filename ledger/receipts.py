"""Receipts and supply statements: documents of the transparency log that anybody can check offline.

A receipt proves that a transfer, exactly as it stands there, is leaf `seq - 1` of the log whose checkpoint it carries:
nothing is needed but the file, the ledger's public log key and the witnesses' public keys. Every member is bound: the
transfer, salt and evidence digest by the leaf's hash, the rest by the checkpoint's signature.

What witnesses vouch for is the tree, and so the transfer in it. The supply statement is the ledger's own signed word:
no witness has checked it. Format: docs/transparency.md.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, PlainSerializer, ValidationError, WithJsonSchema

from kernel import strict_json
from kernel.clock import to_micros
from kernel.crypto import jws
from kernel.errors import ProblemError
from kernel.transparency.checkpoints import Checkpoint, Cosigned, open_checkpoint
from kernel.transparency.merkle import PROOF_HASHES_MAX, leaf_hash, verify_inclusion
from kernel.transparency.notes import NoteRefused, VerifierKey, from_base64
from ledger.contract import (
    AccountRef,
    Amount,
    CurrencyCode,
    Hash32,
    HoldRef,
    Model,
    Moment,
    Reference,
    SignedAmount,
    TransferRef,
)
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from ledger.log.leaves import SALT_BYTES, leaf_input

RECEIPT_BYTES_MAX = 128 * 1024
"""A checkpoint with 16 cosignatures is 3 KB, a proof 63 lines: far below."""
_RECORD = struct.Struct(">qQQBqqqQQQQiq")
_LOW = 2**64 - 1
M = TypeVar("M", bound=BaseModel)


class ReceiptRefused(ValueError):
    """The receipt or statement proves nothing; the message says which part does not hold."""


def _salt(value: Any) -> bytes:
    if isinstance(value, bytes) and len(value) == SALT_BYTES:
        return value
    if not isinstance(value, str) or len(value) != 2 * SALT_BYTES:
        raise ValueError("expected 32 lower-case hexadecimal digits")
    return bytes.fromhex(value)


Salt = Annotated[
    bytes,
    BeforeValidator(_salt),
    PlainSerializer(lambda value: value.hex(), return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{32}$"}),
]


class ReceiptTransfer(Model):
    """A booked transfer with all that its record holds. `submitter` is the participant's number, 0 = nobody known."""

    seq: Annotated[int, Field(ge=1)]
    id: TransferRef
    kind: TransferKind
    debit: AccountRef | None
    credit: AccountRef | None
    amount_minor: Amount
    hold: HoldRef | None
    reference: Reference | None
    submitter: Annotated[int, Field(ge=0, lt=2**31)]
    booked_at: Moment

    @property
    def record(self) -> bytes:
        """The 93 bytes that the journal's digests and the log's leaf cover (`ledger.domain.records.JOURNAL`)."""
        hold = self.hold.int if self.hold is not None else 0
        reference = self.reference.int if self.reference is not None else 0
        return _RECORD.pack(
            self.seq,
            *(self.id.int >> 64, self.id.int & _LOW),
            KIND_CODE[self.kind],
            *(self.debit or 0, self.credit or 0, self.amount_minor),
            *(hold >> 64, hold & _LOW, reference >> 64, reference & _LOW),
            *(self.submitter, to_micros(self.booked_at)),
        )


class SupplyStatement(Model):
    """What the ledger adds up to after a block, in minor units. `held` is part of vaults and wallets."""

    ledger: str
    currency: CurrencyCode
    block: Annotated[int, Field(ge=1)]
    seq: Annotated[int, Field(ge=0)]
    booked_at: Moment
    issued_minor: Amount
    redeemed_minor: Amount
    circulation_minor: Amount
    vaults_minor: SignedAmount
    wallets_minor: SignedAmount
    held_minor: Amount
    offline_minor: Amount

    @property
    def canonical(self) -> bytes:
        """The bytes whose SHA-256 the checkpoint's `supply` line holds (RFC 8785)."""
        return jws.canonical_json(self.model_dump(mode="json"))


class Receipt(Model):
    format: Literal["jiaozi-receipt/v1"]
    ledger: str
    currency: CurrencyCode
    transfer: ReceiptTransfer
    salt: Salt
    evidence_digest: Hash32 | None
    """Of the instruction, secret, mandate or hold terms kept beside the transfer, if there are any."""
    leaf_index: Annotated[int, Field(ge=0)]
    tree_size: Annotated[int, Field(ge=1)]
    inclusion_proof: Annotated[list[Hash32], Field(max_length=PROOF_HASHES_MAX)]
    checkpoint: Annotated[str, Field(max_length=64 * 1024)]
    """The signed note, with the witnesses' cosignatures."""
    supply: SupplyStatement


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt has proved."""

    receipt: Receipt
    checkpoint: Checkpoint
    tree_cosigned: tuple[Cosigned, ...]
    """Who vouches that the tree, which the transfer is in, contains every tree that he was shown before."""


@dataclass(frozen=True, slots=True)
class VerifiedSupply:
    """A statement of the ledger alone, whoever has cosigned the checkpoint that names it."""

    statement: SupplyStatement
    checkpoint: Checkpoint
    tree_cosigned: tuple[Cosigned, ...]
    """Who vouches for the checkpoint's tree; of the statement that says nothing."""


def verify_receipt(
    document: bytes, *, log_key: VerifierKey, witnesses: Sequence[VerifierKey] = (), quorum: int = 0
) -> VerifiedReceipt:
    """What a receipt (its JSON) proves to a reader who trusts `log_key` and `quorum` of the `witnesses`.

    Raises ReceiptRefused.
    """
    receipt = _read(document, Receipt)
    supply = verify_supply(
        receipt.supply.canonical, receipt.checkpoint, log_key=log_key, witnesses=witnesses, quorum=quorum
    )
    checkpoint = supply.checkpoint
    if (receipt.ledger, receipt.currency) != (receipt.supply.ledger, receipt.supply.currency):
        raise ReceiptRefused("the receipt names another ledger or currency than its supply statement")
    if receipt.tree_size != checkpoint.size:
        raise ReceiptRefused("the receipt's tree is not of the checkpoint's size")
    if receipt.leaf_index != receipt.transfer.seq - 1:
        raise ReceiptRefused("the leaf is not that of the transfer's seq")
    leaf = leaf_hash(leaf_input(receipt.salt, receipt.transfer.record, receipt.evidence_digest))
    is_included = verify_inclusion(
        leaf,
        index=receipt.leaf_index,
        size=checkpoint.size,
        proof=receipt.inclusion_proof,
        root=checkpoint.root,
    )
    if not is_included:
        raise ReceiptRefused("the transfer is not in the log: the inclusion proof does not lead to the root")
    return VerifiedReceipt(receipt, checkpoint, supply.tree_cosigned)


def verify_supply(
    statement: bytes,
    checkpoint: str | bytes,
    *,
    log_key: VerifierKey,
    witnesses: Sequence[VerifierKey] = (),
    quorum: int = 0,
) -> VerifiedSupply:
    """A supply statement that a checkpoint (a note) signs, and whose sums are right (I2). Raises ReceiptRefused."""
    try:
        opened = open_checkpoint(checkpoint, log_key=log_key, witnesses=witnesses, quorum=quorum)
        block, supply = opened.checkpoint.extension("block"), opened.checkpoint.extension("supply")
        if block is None or supply is None or len(block) != 2 or len(supply) != 1:
            raise NoteRefused("the checkpoint has no block line or no supply line")
        commitment, digest = from_base64(block[1]), from_base64(supply[0])
    except NoteRefused as error:
        raise ReceiptRefused(str(error)) from None
    if digest != sha256(statement).digest():
        raise ReceiptRefused("the supply statement is not the one that the checkpoint signs")
    read = _read(statement, SupplyStatement)
    if read.seq != opened.checkpoint.size or str(read.block) != block[0] or len(commitment) != 32:
        raise ReceiptRefused("the supply statement speaks of another block than the checkpoint")
    held_by_all = read.vaults_minor + read.wallets_minor + read.offline_minor
    if not read.issued_minor - read.redeemed_minor == read.circulation_minor == held_by_all:
        raise ReceiptRefused("the supply does not add up (I2): issued - redeemed is not vaults + wallets + offline")
    if min(read.vaults_minor, read.wallets_minor, read.offline_minor) < 0:
        raise ReceiptRefused("vaults, wallets or purses hold less than nothing")
    if read.held_minor > read.vaults_minor + read.wallets_minor:
        raise ReceiptRefused("more is held than there is")
    return VerifiedSupply(read, opened.checkpoint, opened.cosigned)


def _read(document: bytes, model: type[M]) -> M:
    """Strict: no member more or less, and every value spelt in its one way, so that no bit is without meaning."""
    if len(document) > RECEIPT_BYTES_MAX:
        raise ReceiptRefused(f"the document is longer than {RECEIPT_BYTES_MAX} bytes")
    try:
        value: Any = strict_json.loads(document)
        read = model.model_validate(value)
        is_canonical = jws.canonical_json(read.model_dump(mode="json")) == jws.canonical_json(value)
    except ProblemError as error:
        raise ReceiptRefused(f"not JSON as it must be: {error.detail}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = "/".join(str(part)[:64] for part in first["loc"])
        raise ReceiptRefused(f"{place}: {first['msg']}") from None
    except (ValueError, OverflowError) as error:
        raise ReceiptRefused(str(error)) from None
    if not is_canonical:
        raise ReceiptRefused("a value is not spelt as the ledger spells it")
    return read

"""Privacy: erasure of a customer's data, lawful access (unmask), and the institution's own privacy log.

An unmask is ordered by one compliance officer and approved by two others, each with a signed statement. What it shows
is bounded by the order. In the same transaction the privacy log gets an entry: a salted commitment, which says nothing
to the public and everything to whoever is given the salt and the text. Formats, byte by byte: docs/privacy.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any, Self, TypeVar
from uuid import UUID

from pydantic import Field, ValidationError, model_validator

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.jws import InvalidJws
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey
from kernel.transparency.checkpoints import OpenedCheckpoint, open_checkpoint
from kernel.transparency.merkle import PROOF_HASHES_MAX, leaf_hash, verify_consistency, verify_inclusion
from kernel.transparency.notes import NOTE_BYTES_MAX, NoteRefused, VerifierKey
from ledger.contract import AccountRef, Jwk, Model, Moment, ParticipantRef, Token
from wallet.contract import CustomerRef, WalletRef, id_type

ORDER_TYP = "jiaozi-unmask-order+jws"
APPROVAL_TYP = "jiaozi-unmask-approval+jws"
APPROVALS_NEEDED = 2
ORDER_LIFE_MAX = timedelta(days=7)
"""An order that nobody carried out in a week is asked for anew."""
SALT_BYTES = 32
_Document = TypeVar("_Document", bound=Model)
_COMMITMENT_DOMAIN = b"jiaozi-privacy-entry-v1\n"

UnmaskRef = Annotated[UUID, *id_type("unm")]
ErasureRef = Annotated[UUID, *id_type("ers")]
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LogSize = Annotated[int, Field(ge=0, lt=2**53)]


# --- erasure ---------------------------------------------------------------------------------------------------------


class ErasureReason(StrEnum):
    REQUESTED = "requested"
    """By the customer."""
    RETENTION_ENDED = "retention-ended"
    """The time for which the law has the institution keep the data is over."""
    REGISTERED_IN_ERROR = "registered-in-error"


class ErasureRequest(Model):
    erasure: ErasureRef
    reason: ErasureReason


class ErasureView(Model):
    """What is left of a customer's personal data: when and why it went."""

    erasure: ErasureRef
    customer: CustomerRef
    reason: ErasureReason
    erased_at: Moment


# --- unmask ----------------------------------------------------------------------------------------------------------


class UnmaskField(StrEnum):
    """What can be asked for, each by its name; nothing comes along with another."""

    CUSTOMER = "customer"
    """The customer's id."""
    NAME = "name"
    PHONE = "phone"
    EVIDENCE = "evidence"
    WALLETS = "wallets"
    """The ids of all wallets of the same customer."""
    CORPORATE = "corporate"
    """A legal entity's name and identifiers; null for a person."""


class UnmaskOrder(Model):
    """What an officer signs (typ `jiaozi-unmask-order+jws`): whose data, which of it, on what ground, until when."""

    institution: ParticipantRef
    request: UnmaskRef
    case_number: Annotated[str, Field(min_length=1, max_length=80)]
    legal_basis: Annotated[str, Field(min_length=1, max_length=200)]
    wallet: WalletRef | None = None
    account: AccountRef | None = None
    fields: Annotated[list[UnmaskField], Field(min_length=1, max_length=len(UnmaskField))]
    valid_until: Moment

    @model_validator(mode="after")
    def _one_subject(self) -> Self:
        if (self.wallet is None) == (self.account is None):
            raise ValueError("name a wallet or an account, one of them")
        if len(set(self.fields)) != len(self.fields):
            raise ValueError("each field once")
        return self

    @property
    def subject(self) -> str:
        return ids.show("wlt", self.wallet) if self.wallet is not None else ids.show_account(self.account or 0)


class UnmaskApproval(Model):
    """What another officer signs (typ `jiaozi-unmask-approval+jws`): this order, letter by letter."""

    institution: ParticipantRef
    request: UnmaskRef
    order_sha256: Hex32
    """Of the order's token."""


class UnmaskOrderRequest(Model):
    order: Token


class UnmaskApprovalRequest(Model):
    approval: Token


class UnmaskState(StrEnum):
    REQUESTED = "requested"
    APPROVED = "approved"
    DISCLOSED = "disclosed"
    EXPIRED = "expired"


class ApprovalView(Model):
    officer: str
    approved_at: Moment


class UnmaskView(Model):
    request: UnmaskRef
    state: UnmaskState
    order: Token
    order_sha256: Hex32
    """What an approval names."""
    case_number: str
    legal_basis: str
    subject: str
    fields: list[UnmaskField]
    requested_by: str
    approvals: list[ApprovalView]
    valid_until: Moment
    created_at: Moment
    entry_index: LogSize | None


class DisclosureView(Model):
    """`values` has exactly the members that the order names. It is given once and kept nowhere."""

    request: UnmaskRef
    values: dict[str, Any]
    entry_index: LogSize
    checkpoint: str
    """The privacy log's signed note that covers the entry."""


def sign_order(order: UnmaskOrder, *, key: PrivateKey) -> str:
    return jws.sign(_canonical(order), key, typ=ORDER_TYP)


def sign_approval(approval: UnmaskApproval, *, key: PrivateKey) -> str:
    return jws.sign(_canonical(approval), key, typ=APPROVAL_TYP)


def read_order(token: str, key: PublicKey) -> UnmaskOrder:
    """The order that `key` has signed. Raises: StatementRefused."""
    return _read(token, key, typ=ORDER_TYP, model=UnmaskOrder)


def read_approval(token: str, key: PublicKey) -> UnmaskApproval:
    """The approval that `key` has signed. Raises: StatementRefused."""
    return _read(token, key, typ=APPROVAL_TYP, model=UnmaskApproval)


def sha256_of(token: str) -> str:
    return sha256(token.encode()).hexdigest()


class StatementRefused(ValueError):
    """The statement is not signed by that key, or is not in the documented form."""


def _read(token: str, key: PublicKey, *, typ: str, model: type[_Document]) -> _Document:
    try:
        payload = jws.verify(token, key, typ=typ)
        document = model.model_validate_json(payload)
    except InvalidJws as error:
        raise StatementRefused(str(error)) from None
    except ValidationError as error:
        raise StatementRefused(str(error.errors()[0]["msg"])) from None
    if _canonical(document) != payload:
        raise StatementRefused("the payload must be canonical JSON")
    return document


def _canonical(document: Model) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True))


# --- the privacy log -------------------------------------------------------------------------------------------------


class SignedStatement(Model):
    officer: str
    key: Jwk
    token: Token


class PrivacyEntry(Model):
    """What an entry commits to: the unmask with the three signed statements. It has no personal data."""

    institution: ParticipantRef
    request: UnmaskRef
    case_number: str
    legal_basis: str
    subject: str
    """The wallet or account that was asked about."""
    wallet: WalletRef
    fields: list[UnmaskField]
    """What was shown."""
    disclosed_at: Moment
    order: SignedStatement
    approvals: Annotated[list[SignedStatement], Field(min_length=APPROVALS_NEEDED, max_length=APPROVALS_NEEDED)]


class LogEntriesView(Model):
    """Commitments (SHA-256, hex) from `start` on. A leaf's hash is SHA-256(0x00 || commitment)."""

    start: LogSize
    commitments: list[Hex32]
    size: LogSize


class LogProofView(Model):
    """`hashes`: of inclusion from the leaf upwards, or of consistency (RFC 6962 sections 2.1.1 and 2.1.2)."""

    size: LogSize
    root: Hex32
    hashes: Annotated[list[Hex32], Field(max_length=PROOF_HASHES_MAX + 1)]


class LogKeyView(Model):
    key: str
    """The log's verifier key (C2SP signed-note): to be had once, from somebody else than the log, and kept."""


class UnmaskEvidence(Model):
    """For the data subject's auditor: opens one commitment and shows that the log has it."""

    entry: PrivacyEntry
    salt: Hex32
    index: LogSize
    hashes: Annotated[list[Hex32], Field(max_length=PROOF_HASHES_MAX)]
    checkpoint: Annotated[str, Field(max_length=NOTE_BYTES_MAX)]


class EvidenceRefused(ValueError):
    """What was shown proves nothing; the message says why."""


@dataclass(frozen=True, slots=True)
class VerifiedUnmask:
    entry: PrivacyEntry
    index: int
    size: int
    officers: tuple[str, ...]
    """Thumbprints of the keys that signed: who ordered, then who approved."""


def commitment_of(entry: PrivacyEntry, salt: bytes) -> bytes:
    """SHA-256("jiaozi-privacy-entry-v1\\n" || salt || the entry as canonical JSON): 32 bytes, the log's leaf."""
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return sha256(_COMMITMENT_DOMAIN + salt + _canonical(entry)).digest()


def verify_unmask(evidence: UnmaskEvidence, *, log_key: VerifierKey) -> VerifiedUnmask:
    """Raises: EvidenceRefused.

    1. The checkpoint is signed by the log. 2. The commitment to entry and salt is leaf `index` of its tree.
    3. The order is signed, and the entry shows what it asks for and no more. 4. Two others have signed that very order.
    """
    opened = _opened(evidence.checkpoint, log_key)  # 1
    tree = opened.checkpoint
    leaf = leaf_hash(commitment_of(evidence.entry, bytes.fromhex(evidence.salt)))
    proof = [bytes.fromhex(item) for item in evidence.hashes]
    if not verify_inclusion(leaf, index=evidence.index, size=tree.size, proof=proof, root=tree.root):  # 2
        raise EvidenceRefused("the log's tree does not contain this entry")
    entry = evidence.entry
    try:
        keys = [PublicKey.from_jwk(item.key) for item in (entry.order, *entry.approvals)]
        order = read_order(entry.order.token, keys[0])
        approvals = [read_approval(item.token, key) for item, key in zip(entry.approvals, keys[1:], strict=True)]
    except (KeyRefused, StatementRefused) as error:
        raise EvidenceRefused(f"a statement in the entry: {error}") from None
    said = (entry.institution, entry.request, entry.case_number, entry.legal_basis, entry.subject, entry.fields)
    if said != (order.institution, order.request, order.case_number, order.legal_basis, order.subject, order.fields):
        raise EvidenceRefused("the entry is not what the order asks for")  # 3
    if entry.disclosed_at >= order.valid_until:
        raise EvidenceRefused("the order had expired when it was carried out")
    asked = (order.institution, order.request, sha256_of(entry.order.token))
    if any((item.institution, item.request, item.order_sha256) != asked for item in approvals):  # 4
        raise EvidenceRefused("an approval is of another order")
    officers = tuple(key.thumbprint for key in keys)
    names = {item.officer for item in (entry.order, *entry.approvals)}
    if len(set(officers)) != 1 + APPROVALS_NEEDED or len(names) != 1 + APPROVALS_NEEDED:
        raise EvidenceRefused("the order and its approvals are not of different officers")
    return VerifiedUnmask(entry, evidence.index, tree.size, officers)


def verify_growth(seen: str, new: str, proof: LogProofView | None, *, log_key: VerifierKey) -> int:
    """The new checkpoint's size, if its tree contains the one of the checkpoint seen before. Raises: EvidenceRefused.

    `proof`: of consistency between the two; None where the sizes are equal, or nothing was in the older tree.
    """
    old, newer = _opened(seen, log_key).checkpoint, _opened(new, log_key).checkpoint
    if newer.size < old.size:
        raise EvidenceRefused(f"the log had {old.size} entries and now has {newer.size}: entries were deleted")
    hashes = [bytes.fromhex(item) for item in proof.hashes] if proof is not None else []
    if not verify_consistency(
        old_size=old.size, old_root=old.root, new_size=newer.size, new_root=newer.root, proof=hashes
    ):
        raise EvidenceRefused("the log does not contain what it contained before: entries were rewritten")
    return newer.size


def _opened(note: str, log_key: VerifierKey) -> OpenedCheckpoint:
    try:
        return open_checkpoint(note, log_key=log_key)
    except NoteRefused as error:
        raise EvidenceRefused(f"the checkpoint: {error}") from None


_ORIGIN = re.compile(r"[A-Z0-9]{8,11}", re.ASCII)


def origin_of(institution: str) -> str:
    """The log's name, in its checkpoints and its key."""
    if _ORIGIN.fullmatch(institution) is None:
        raise ValueError("an institution's code has 8 to 11 characters")
    return f"{institution}/jiaozi-privacy"

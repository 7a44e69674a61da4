"""Signed documents of the journal: is what was booked what somebody entitled to it signed (I8)?

Times of validity are not checked again: a document is valid when it is accepted, which may be before it is booked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kernel.clock import to_micros
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.ids import parse, show, show_account
from ledger.verifier.layout import HOLD, KINDS, TransferRow

INSTRUCTION_TYP = "jiaozi-instruction+jws"
MANDATE_TYP = "jiaozi-mandate+jws"
APPROVAL_TYP = "jiaozi-approval+jws"


class Unproven(ValueError):
    """The document does not prove what it should; the message says why."""


def holder_key(stored: bytes) -> PublicKey:
    """A holder's key as an account has it: suite byte 1 and Ed25519 key, or 2 and compressed P-256 point."""
    if stored[:1] == b"\x01" and len(stored) == 33:
        return PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(stored[1:]))
    if stored[:1] == b"\x02" and len(stored) == 34:
        return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), stored[1:]))
    raise Unproven("the holder's key has an unknown form")


# --- instructions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InstructionCheck:
    """One instruction to verify: the transfer it must stand for, and by whose key."""

    transfer: TransferRow
    token: bytes
    key: PublicKey
    ledger: str
    currency: str
    terms: tuple[bytes | None, bytes | None, int] | None
    """Of a hold: commit hash, abort hash, expiry in microseconds (0 = none)."""
    is_end: bool = False
    """An instruction to end a hold: accounts and amount come from the hold, its authority from its secret."""

    def problem(self) -> str | None:
        """Why it proves nothing, or None."""
        try:
            payload = jws.verify(self.token.decode("ascii"), self.key, typ=INSTRUCTION_TYP)
            document = canonical(payload)
            return self._difference(document)
        except (jws.InvalidJws, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"its instruction does not verify: {error}"

    def _difference(self, document: Mapping[str, Any]) -> str | None:
        row, signed = self.transfer, document["terms"]
        if document["ledger"] != self.ledger:
            return f"its instruction was signed for {document['ledger']}"
        booked: dict[str, object] = {
            "id": show("trf", UUID(bytes=row.id)),
            "currency": self.currency,
            "reference": _text(row.reference),
            "hold": show("trf", UUID(bytes=row.hold)) if row.hold is not None else None,
        }
        if not self.is_end:
            booked |= {
                "kind": KINDS[row.kind],
                "debit": show_account(row.debit),
                "credit": show_account(row.credit),
                "amount_minor": str(row.amount),
            }
        found = {name: signed.get(name) for name in booked}
        if row.kind == HOLD and self.terms is not None:
            commit, abort, expires_at = self.terms
            booked |= {"commit_hash": _hex(commit), "abort_hash": _hex(abort), "expires_at": expires_at}
            text = signed.get("expires_at")
            found["expires_at"] = to_micros(datetime.fromisoformat(text)) if text is not None else 0
            found |= {name: signed.get(name) for name in ("commit_hash", "abort_hash")}
        for name, value in booked.items():
            if found[name] != value:
                return f"signed {name} {found[name]}, booked {value}"
        return None


def debit_of_instruction(token: bytes) -> str:
    """The debit account named in an instruction, unverified. Raises Unproven."""
    try:
        return str(json.loads(jws.peek_payload(token.decode("ascii")))["terms"]["debit"])
    except (ValueError, KeyError, TypeError) as error:
        raise Unproven(f"its instruction cannot be read: {error}") from None


# --- mandates --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mandate:
    """A directive's proposal whose signatures have been verified."""

    id: UUID
    action: Mapping[str, Any]
    maker: str
    """Thumbprint."""
    approvals: int


def verify_mandate(
    body: bytes,
    *,
    ledger: str,
    operators: Mapping[str, PublicKey],
    makers: Mapping[str, PublicKey],
    approvals_needed: int,
) -> Mandate:
    """The proposal in a directive's body, if it is signed by a maker and approved by enough distinct operators, none
    of whom made it. `operators` and `makers` map thumbprints to keys. Raises Unproven."""
    try:
        document = canonical(body)
        proposal_token, tokens = str(document["proposal"]), list(document["approvals"])
        maker = _signer(proposal_token, makers, "the proposal's maker is nobody who may propose")
        payload = jws.verify(proposal_token, makers[maker], typ=MANDATE_TYP)
        proposal = canonical(payload)
        if proposal["ledger"] != ledger:
            raise Unproven(f"the proposal was signed for {proposal['ledger']}")
        action, mandate = proposal["action"], parse("mdt", proposal["mandate"])
        if document["kind"] != action["action"]:
            raise Unproven(f"the directive says {document['kind']}, its proposal {action['action']}")
        approvers: set[str] = set()
        for token in tokens:
            approver = _signer(token, operators, "an approval is of nobody who may approve")
            approval = canonical(jws.verify(token, operators[approver], typ=APPROVAL_TYP))
            if (approval["ledger"], approval["mandate"]) != (ledger, proposal["mandate"]):
                raise Unproven("an approval is for another mandate")
            if approval["proposal_sha256"] != hashlib.sha256(payload).hexdigest():
                raise Unproven("an approval is for another proposal text")
            if approver == maker:
                raise Unproven("the maker approved the own proposal")
            approvers.add(approver)
    except Unproven:
        raise
    except (jws.InvalidJws, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unproven(f"{type(error).__name__}: {error}") from None
    if len(approvers) < approvals_needed:
        raise Unproven(f"{len(approvers)} distinct approvals where {approvals_needed} are needed")
    return Mandate(mandate, action, maker, len(approvers))


def _signer(token: str, keys: Mapping[str, PublicKey], otherwise: str) -> str:
    signer = str(jws.peek_header(token).get("kid"))
    if signer not in keys:
        raise Unproven(otherwise)
    return signer


def canonical(payload: bytes) -> Mapping[str, Any]:
    """The JSON object of signed bytes, which must be the only way to write it. Raises Unproven, ValueError."""
    document = json.loads(payload)
    if not isinstance(document, dict) or jws.canonical_json(document) != payload:
        raise Unproven("the document is not a canonical JSON object")
    return document


def _text(value: bytes | None) -> str | None:
    return str(UUID(bytes=value)) if value is not None else None


def _hex(value: bytes | None) -> str | None:
    return value.hex() if value is not None else None

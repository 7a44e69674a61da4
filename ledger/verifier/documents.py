"""Signed documents of the journal: is what was booked what somebody entitled to it signed (I8)?

Times of validity are not checked again: a document is valid when it is accepted, which may be before it is booked.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kernel.clock import to_micros
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.ids import parse, show, show_account
from ledger.verifier.layout import HOLD, KINDS, NIL, TOMBSTONE_KIND

INSTRUCTION_TYP = "jiaozi-instruction+jws"
MANDATE_TYP = "jiaozi-mandate+jws"
APPROVAL_TYP = "jiaozi-approval+jws"


class Unproven(ValueError):
    """The document does not prove what it should; the message says why."""


def encode_key(key: PublicKey) -> bytes:
    """The form in which an account keeps its holder's key: see `holder_key`."""
    point = key.cryptography_key
    if isinstance(point, ed25519.Ed25519PublicKey):
        return b"\x01" + point.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return b"\x02" + point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)


@lru_cache(maxsize=100_000)
def _key_of(stored: bytes) -> PublicKey:
    return holder_key(stored)


def holder_key(stored: bytes) -> PublicKey:
    """A holder's key as an account has it: suite byte 1 and Ed25519 key, or 2 and compressed P-256 point."""
    if stored[:1] == b"\x01" and len(stored) == 33:
        return PublicKey(ed25519.Ed25519PublicKey.from_public_bytes(stored[1:]))
    if stored[:1] == b"\x02" and len(stored) == 34:
        return PublicKey(ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), stored[1:]))
    raise Unproven("the holder's key has an unknown form")


def named_key(token: str, keys: list[bytes]) -> bytes | None:
    """Which of an account's keys a token names in its header. Raises InvalidJws."""
    kid = jws.peek_header(token).get("kid")
    return next((key for key in keys if _key_of(key).thumbprint == kid), None)


# --- instructions ----------------------------------------------------------------------------------------------------

Terms = tuple[bytes | None, bytes | None, int]
"""Of a hold: commit hash, abort hash, expiry in microseconds (0 = none)."""


class InstructionCheck(NamedTuple):
    """One instruction to verify: the transfer it must stand for, and by whose key."""

    seq: int
    record: bytes
    """The 93 bytes of the journal."""
    token: bytes
    key: bytes
    """As `encode_key` has it."""
    terms: Terms | None = None
    is_end: bool = False
    """An instruction to end a hold: accounts and amount come from the hold, its authority from its secret."""


_RECORD = struct.Struct(">q16sBqqq16s16siq")
_TIME = re.compile(rb"[0-9TZ:.+-]{1,40}", re.ASCII)


class InstructionVerifier:
    """Verifies instructions of one ledger, at little more than the signature's own cost."""

    def __init__(self, ledger: str, currency: str) -> None:
        self._ledger, self._currency = ledger, currency
        self._head = b'{"ledger":' + jws.canonical_json(ledger) + b',"terms":{"amount_minor":"'
        self._currency_text = jws.canonical_json(currency)

    def problem(self, check: InstructionCheck) -> str | None:
        """Why it proves nothing, or None."""
        try:
            key = _key_of(check.key)
            payload = jws.verify(check.token.decode("ascii"), key, typ=INSTRUCTION_TYP)
            if self._is_usual(check, payload):
                return None
            return self._difference(check, canonical(payload))
        except (jws.InvalidJws, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"its instruction does not verify: {error}"

    def _is_usual(self, check: InstructionCheck, payload: bytes) -> bool:
        """Is it, byte for byte, the canonical instruction of exactly this transfer? Then nothing has to be parsed."""
        _, own, kind, debit, credit, amount, hold, reference, _, _ = _RECORD.unpack(check.record)
        if check.is_end or kind == HOLD or kind >= len(KINDS) or hold != NIL:
            return False
        more = f',"reference":"{UUID(bytes=reference)}"' if reference != NIL else ""
        start = (
            self._head
            + f'{amount}","credit":"{show_account(credit)}","currency":'.encode()
            + self._currency_text
            + f',"debit":"{show_account(debit)}","id":"{show("trf", UUID(bytes=own))}"'.encode()
            + f',"kind":"{KINDS[kind]}"{more}}},"valid_until":"'.encode()
        )
        return (
            payload.startswith(start)
            and payload.endswith(b'"}')
            and _TIME.fullmatch(payload, len(start), len(payload) - 2) is not None
        )

    def _difference(self, check: InstructionCheck, document: Mapping[str, Any]) -> str | None:
        _, own, kind, debit, credit, amount, hold, reference, _, _ = _RECORD.unpack(check.record)
        signed = document["terms"]
        if document["ledger"] != self._ledger:
            return f"its instruction was signed for {document['ledger']}"
        booked: dict[str, object] = {
            "id": show("trf", UUID(bytes=own)),
            "kind": "void" if kind == TOMBSTONE_KIND else KINDS[kind] if kind < len(KINDS) else None,
            "currency": self._currency,
            "reference": _text(reference),
            "hold": show("trf", UUID(bytes=hold)) if hold != NIL else None,
        }
        if not check.is_end:
            booked |= {"debit": show_account(debit), "credit": show_account(credit), "amount_minor": str(amount)}
        found = {name: signed.get(name) for name in booked}
        if kind == HOLD and check.terms is not None:
            commit, abort, expires_at = check.terms
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


def _text(value: bytes) -> str | None:
    return str(UUID(bytes=value)) if value != NIL else None


def _hex(value: bytes | None) -> str | None:
    return value.hex() if value is not None else None

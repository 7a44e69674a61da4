"""Signed documents: COSE_Sign1 (RFC 9052) with deterministic CBOR, the type in `typ` (RFC 9596).

Nothing in the header chooses key or algorithm: the verifier knows both, and compares the header with the one it would
have written. A document is known by the hash of what was signed, not of its signature: of an ECDSA signature anybody
can make a second valid one, and that must not look like a second payment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from kernel.crypto.keys import PublicKey, Suite
from wallet.domain.offline import cbor
from wallet.domain.offline.cbor import NotCbor, Value

Sign = Callable[[bytes], bytes]
"""Bytes to 64 bytes of signature: a device's, which may hold its key in hardware."""
SIGNATURE_BYTES = 64
_ALGORITHM = {Suite.ED25519: b"\x27", Suite.ECDSA_P256_SHA256: b"\x26"}
"""EdDSA is -8, ES256 -7 (RFC 9053 section 2)."""


class Unreadable(ValueError):
    """Not a document of that type; the message says why."""


@dataclass(frozen=True, slots=True)
class Signed:
    """A document taken apart. Its payload is a claim until `is_signed_by` says otherwise."""

    message: bytes
    protected: bytes
    payload: bytes
    signature: bytes

    @property
    def signing_input(self) -> bytes:
        return _signing_input(self.protected, self.payload)

    @property
    def hash(self) -> bytes:
        """32 bytes by which others refer to the document."""
        return hashlib.sha256(self.signing_input).digest()

    def is_signed_by(self, key: PublicKey, typ: str) -> bool:
        return self.protected == _protected(key.suite, typ) and key.verify(self.signing_input, self.signature)


def sign(typ: str, payload: list[Value], *, suite: Suite, sign: Sign) -> bytes:
    """The signed document."""
    protected, content = _protected(suite, typ), cbor.encode(payload)
    return cbor.encode([protected, {}, content, sign(_signing_input(protected, content))])


def read(message: bytes, typ: str) -> tuple[Signed, list[Value]]:
    """The document and its payload's members, if it says it is of type `typ`. Raises: Unreadable."""
    try:
        outer = cbor.decode(message)
        if not isinstance(outer, list) or len(outer) != 4:
            raise Unreadable("expected a COSE_Sign1 array")
        protected, unprotected, payload, signature = outer
        if not (isinstance(protected, bytes) and isinstance(payload, bytes) and isinstance(signature, bytes)):
            raise Unreadable("expected byte strings in COSE_Sign1")
        if unprotected != {} or len(signature) != SIGNATURE_BYTES:
            raise Unreadable("expected no unprotected header and 64 bytes of signature")
        if protected not in [_protected(suite, typ) for suite in Suite]:
            raise Unreadable(f"not a document of type {typ}")
        members = cbor.decode(payload)
    except NotCbor as error:
        raise Unreadable(str(error)) from None
    if not isinstance(members, list):
        raise Unreadable("expected an array as payload")
    return Signed(message, protected, payload, signature), members


def _protected(suite: Suite, typ: str) -> bytes:
    # {1: algorithm, 16: typ}; the keys stand in the order of their encodings.
    return b"\xa2\x01" + _ALGORITHM[suite] + b"\x10" + cbor.encode(typ)


def _signing_input(protected: bytes, payload: bytes) -> bytes:
    # Sig_structure of RFC 9052 section 4.4, without external data.
    return cbor.encode(["Signature1", protected, b"", payload])

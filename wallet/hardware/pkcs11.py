"""The port to an institution's hardware security module: a signer whose key stays inside.

What the services need of a key is its public half and signatures; this Protocol says so, in the terms of PKCS#11 v3.1
(OASIS). No PKCS#11 library is part of this project, so there is no adapter here and nothing was tried on a module. An
adapter opens a session (C_OpenSession, C_Login), finds the private key by CKA_LABEL with CKA_SENSITIVE true and
CKA_EXTRACTABLE false, and signs with

- Ed25519: mechanism CKM_EDDSA without parameters, over the data itself (64 bytes: R || S, RFC 8032);
- ECDSA P-256: CKM_ECDSA over the data's SHA-256 (64 bytes: r || s, as `kernel.crypto.keys` has it);

and takes the public key from CKA_EC_POINT. One session a thread; CKR_SESSION_HANDLE_INVALID means: log in again.
"""

from __future__ import annotations

from typing import Protocol

from kernel.crypto.keys import PublicKey, Suite


class HardwareSigner(Protocol):
    """A key in a module. `kernel.crypto.keys.PrivateKey` has the same members, so either can sign where it is asked
    for no more than this."""

    @property
    def public(self) -> PublicKey: ...

    @property
    def suite(self) -> Suite: ...

    @property
    def thumbprint(self) -> str:
        """RFC 7638."""

    def sign(self, data: bytes) -> bytes:
        """64 bytes over `data`. Raises: OSError if the module does not answer: nothing was signed that can be used."""

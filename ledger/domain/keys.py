"""A holder's public key as the ledger keeps it."""

from __future__ import annotations

import base64
from collections.abc import Mapping


def key_bytes(jwk: Mapping[str, str]) -> bytes:
    """A holder's public key as stored with its account: suite byte, then Ed25519 key or compressed P-256 point."""
    if jwk["kty"] == "OKP":
        return b"\x01" + _decode(jwk["x"])
    x, y = _decode(jwk["x"]), _decode(jwk["y"])
    return b"\x02" + bytes([2 + (y[-1] & 1)]) + x


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

"""A child's signing key, sealed for the two who must meet to charge it: the bank keeps it, the merchant can open it.

The parent's device makes the key, seals its seed under a fresh secret (AES-256-GCM, NIST SP 800-38D), gives the sealed
seed to the bank and the secret to the merchant. A copy of the bank's database signs nothing, and neither does the
merchant by himself; the service has the key in memory for the length of one charge (docs/decisions/0012).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kernel.crypto.keys import PrivateKey

_NONCE_BYTES = 12
_SEED_BYTES = 32


class WrongSecret(Exception):
    """The secret does not open the key, or it was sealed for another child or merchant."""


@dataclass(frozen=True, slots=True, repr=False)
class PushedKey:
    """Of a child to be pushed. `key` stays with the parent, `secret` goes to the merchant, `sealed` to the bank."""

    key: PrivateKey
    secret: bytes
    sealed: bytes


def make(child_id: UUID, merchant: int) -> PushedKey:
    seed, secret, nonce = (secrets.token_bytes(size) for size in (_SEED_BYTES, 32, _NONCE_BYTES))
    sealed = nonce + AESGCM(secret).encrypt(nonce, seed, _bound_to(child_id, merchant))
    return PushedKey(PrivateKey(Ed25519PrivateKey.from_private_bytes(seed)), secret, sealed)


def unseal(sealed: bytes, secret: bytes, *, child_id: UUID, merchant: int) -> PrivateKey:
    """Raises: WrongSecret."""
    try:
        seed = AESGCM(secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], _bound_to(child_id, merchant))
    except InvalidTag:
        raise WrongSecret from None
    return PrivateKey(Ed25519PrivateKey.from_private_bytes(seed))


def _bound_to(child_id: UUID, merchant: int) -> bytes:
    return b"jiaozi-child-key:" + child_id.bytes + merchant.to_bytes(8, "big")

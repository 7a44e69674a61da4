"""An emulated card issuer: a root key, a factory key under it, and attestations of the cards that it makes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from kernel.crypto.keys import PrivateKey, PublicKey
from wallet.contract.cards import (
    CardAttestation,
    CardIssuerCertificate,
    CardRevocations,
    sign_attestation,
    sign_issuer,
    sign_revocations,
)

FACTORY_LIFE = timedelta(days=365)
CARD_LIFE = timedelta(days=5 * 365)
MODEL = "JZ emulated 1"


class CardIssuer:
    """`root` is what institutions register; a new factory key is made at each start."""

    def __init__(self, name: str, root: PrivateKey, *, now: datetime) -> None:
        self.name, self._root, self._now = name, root, now.replace(microsecond=0)
        self._factory = PrivateKey.generate()
        self._certificate = sign_issuer(
            CardIssuerCertificate(issuer=name, key=self._factory.public.to_jwk(), not_after=self._now + FACTORY_LIFE),
            root,
        )

    @property
    def public_key(self) -> PublicKey:
        return self._root.public

    def attest(
        self,
        key: PublicKey,
        *,
        serial: str,
        pin_free_single_max_minor: int,
        pin_free_total_max_minor: int,
        not_after: datetime | None = None,
    ) -> list[str]:
        """The chain: factory certificate, attestation."""
        attestation = CardAttestation(
            issuer=self.name,
            serial=serial,
            model=MODEL,
            key=key.to_jwk(),
            pin_free_single_max_minor=pin_free_single_max_minor,
            pin_free_total_max_minor=pin_free_total_max_minor,
            not_after=not_after or self._now + CARD_LIFE,
        )
        return [self._certificate, sign_attestation(attestation, self._factory)]

    def revoke(self, number: int, serials: Sequence[str]) -> str:
        return sign_revocations(CardRevocations(issuer=self.name, number=number, serials=list(serials)), self._root)

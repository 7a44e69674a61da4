"""Attestation of cards: by whom a card was made, and that its key is inside. All are compact JWS over canonical JSON.

registered root key of a card issuer
  -> `CardIssuerCertificate` (typ jiaozi-card-issuer+jws): a key of the issuer's factory, for a time
    -> `CardAttestation` (typ jiaozi-card-attestation+jws): this key was made in this card, with these caps
root key -> `CardRevocations` (typ jiaozi-card-revocations+jws): cards that are not to be trusted any more
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from ledger.contract import Amount, Jwk, Model, Moment, Token

ISSUER_TYP = "jiaozi-card-issuer+jws"
ATTESTATION_TYP = "jiaozi-card-attestation+jws"
REVOCATIONS_TYP = "jiaozi-card-revocations+jws"
REVOKED_MAX = 10_000

IssuerName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,31}$", examples=["chip-works"])]
CardSerial = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,40}$", examples=["CW-000017"])]


class CardIssuerCertificate(Model):
    issuer: IssuerName
    key: Jwk
    """Of the factory: it signs attestations."""
    not_after: Moment


class CardAttestation(Model):
    issuer: IssuerName
    serial: CardSerial
    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9 ._-]{1,64}$", examples=["JZ-SE 1"])]
    key: Jwk
    """Made in the card; no command gives its private half out."""
    pin_free_single_max_minor: Amount
    """The caps that the chip itself keeps."""
    pin_free_total_max_minor: Amount
    not_after: Moment
    """Of the card: nothing that it signs later is carried."""


class CardRevocations(Model):
    """The whole list; a newer one (a higher number) takes nothing back."""

    issuer: IssuerName
    number: Annotated[int, Field(ge=1, le=2**31 - 1)]
    serials: Annotated[list[CardSerial], Field(max_length=REVOKED_MAX)]


class CardRevocationsRequest(Model):
    revocations: Token


class CardRevocationsView(Model):
    issuer: IssuerName
    number: int
    suspended: int
    """Cards registered here that are suspended by it now."""


def sign_issuer(certificate: CardIssuerCertificate, root: PrivateKey) -> str:
    return _sign(certificate, root, ISSUER_TYP)


def sign_attestation(attestation: CardAttestation, factory: PrivateKey) -> str:
    return _sign(attestation, factory, ATTESTATION_TYP)


def sign_revocations(revocations: CardRevocations, root: PrivateKey) -> str:
    return _sign(revocations, root, REVOCATIONS_TYP)


def _sign(document: Model, key: PrivateKey, typ: str) -> str:
    return jws.sign(jws.canonical_json(document.model_dump(mode="json", exclude_none=True)), key, typ=typ)

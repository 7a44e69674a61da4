"""Checks that need nothing but the institution's public key: of certificates, chains of spends, proofs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from kernel.crypto.keys import PublicKey
from wallet.domain.offline.messages import (
    CERTIFICATE,
    FUNDING,
    SPEND,
    Certificate,
    Funding,
    Proof,
    Spend,
    Transfer,
)
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal, Refused


@dataclass(frozen=True, slots=True)
class Chain:
    """A transfer whose every signature, amount and link was checked. Only time and double spending elsewhere remain."""

    transfer: Transfer
    certificates: Mapping[bytes, Certificate]
    """By hash: of every payer in the chain."""
    hops: int
    """Purses that the money has passed through to the payee, at most."""
    not_before: int
    not_after: int
    """When all certificates of the chain are valid."""
    sync_by: int
    """When the first purse of the chain is settled: the payment must be synced before."""

    @property
    def payment(self) -> Spend:
        return self.transfer.payment

    @property
    def payer(self) -> Certificate:
        return self.certificates[self.payment.payer]


def verify_chain(transfer: Transfer, institution_key: PublicKey, *, takes_conflicts: bool = False) -> Chain | Refused:
    """Everything about a transfer that does not depend on when and where it is shown.

    `takes_conflicts` is for the institution, which books whatever was signed and names who should not have.

    Refuses, in this order: certificate-invalid, chain-broken (evidence missing, foreign or superfluous),
    purse-signature-invalid, purse-cap-exceeded, hops-exceeded, double-spend (both spends inside).
    """
    certificates = {certificate.hash: certificate for certificate in transfer.certificates}
    by_purse = {certificate.purse: certificate for certificate in transfer.certificates}
    if len(by_purse) != len(transfer.certificates):
        return Refused(PurseRefusal.CHAIN_BROKEN, "a purse's certificate is there twice")
    for certificate in transfer.certificates:
        if not certificate.signed.is_signed_by(institution_key, CERTIFICATE):
            return Refused(PurseRefusal.CERTIFICATE_INVALID, f"purse {certificate.purse}")
    if len({(item.issuer, item.ledger, item.currency) for item in transfer.certificates}) != 1:
        return Refused(PurseRefusal.CHAIN_BROKEN, "certificates of more than one issuer, ledger or currency")
    sources: dict[bytes, Funding | Spend] = {}
    hops: dict[bytes, int] = {}
    used: set[bytes] = set()
    for funding in transfer.fundings:
        owner = by_purse.get(funding.purse)
        if owner is None or funding.hash in sources:
            return Refused(PurseRefusal.CHAIN_BROKEN, "a funding of no purse in the chain, or twice")
        if not funding.signed.is_signed_by(institution_key, FUNDING):
            return Refused(PurseRefusal.SIGNATURE_INVALID, "a funding that the institution has not signed")
        if funding.amount_minor > owner.balance_max_minor:
            return Refused(PurseRefusal.CAP_EXCEEDED, "a funding above its purse's cap")
        sources[funding.hash], hops[funding.hash] = funding, 0
    for spend in transfer.spends:
        payer = certificates.get(spend.payer)
        if payer is None or spend.hash in sources:
            return Refused(PurseRefusal.CHAIN_BROKEN, "a payer without a certificate, or a spend twice")
        for part in spend.parts:
            if not _owns(payer, sources.get(part.source)):
                return Refused(PurseRefusal.CHAIN_BROKEN, "a part of what is not the payer's to spend")
            if part.end > sources[part.source].amount_minor:
                return Refused(PurseRefusal.CHAIN_BROKEN, "a part beyond the end of its value object")
        if any(one.overlaps(other) for one, other in combinations(spend.parts, 2)):
            return Refused(PurseRefusal.CHAIN_BROKEN, "a spend takes the same twice")
        if spend.is_redemption and spend.disposition is not Disposition.ACCOUNT:
            return Refused(PurseRefusal.CHAIN_BROKEN, "a payment to oneself")
        if not spend.signed.is_signed_by(payer.key, SPEND):
            return Refused(PurseRefusal.SIGNATURE_INVALID, f"payment {spend.counter} of purse {payer.purse}")
        if not spend.is_redemption and spend.amount_minor > payer.single_max_minor:
            return Refused(PurseRefusal.CAP_EXCEEDED, f"payment {spend.counter} is above the cap for one payment")
        used.update(part.source for part in spend.parts)
        sources[spend.hash] = spend
        hops[spend.hash] = max(hops[part.source] for part in spend.parts) + (not spend.is_redemption)
    is_lean = used == sources.keys() - {transfer.payment.hash}
    if not is_lean or {spend.payer for spend in transfer.spends} != certificates.keys():
        return Refused(PurseRefusal.CHAIN_BROKEN, "evidence that the payment does not need")
    if hops[transfer.payment.hash] > min(item.hops_max for item in transfer.certificates):
        return Refused(PurseRefusal.HOPS_EXCEEDED)
    for one, other in combinations(transfer.spends, 2):
        if not takes_conflicts and one.conflicts_with(other):
            return Refused(PurseRefusal.DOUBLE_SPEND, f"purse {certificates[one.payer].purse}")
    return Chain(
        transfer=transfer,
        certificates=certificates,
        hops=hops[transfer.payment.hash],
        not_before=max(item.not_before for item in transfer.certificates),
        not_after=min(item.not_after for item in transfer.certificates),
        sync_by=min(item.closes_at for item in transfer.certificates),
    )


def verify_proof(proof: Proof, institution_key: PublicKey) -> Refused | None:
    """None: the device of the certificate has signed two spends that exclude each other; it is proven."""
    if not proof.certificate.signed.is_signed_by(institution_key, CERTIFICATE):
        return Refused(PurseRefusal.CERTIFICATE_INVALID, "not signed by this institution")
    for spend in (proof.first, proof.second):
        if spend.payer != proof.certificate.hash:
            return Refused(PurseRefusal.CHAIN_BROKEN, "a spend by another purse")
        if not spend.signed.is_signed_by(proof.certificate.key, SPEND):
            return Refused(PurseRefusal.SIGNATURE_INVALID, "a spend that the device has not signed")
    if not proof.first.conflicts_with(proof.second):
        return Refused(PurseRefusal.CHAIN_BROKEN, "the two spends do not exclude each other")
    return None


def _owns(payer: Certificate, source: Funding | Spend | None) -> bool:
    if isinstance(source, Funding):
        return source.purse == payer.purse
    return source is not None and source.payee == payer.hash and source.disposition is Disposition.PURSE

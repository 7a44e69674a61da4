"""Hardware wallets: register a card, look at it, report it lost. What it may pay is in `wallet.usecases.own_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError
from wallet.contract import WalletRefusal
from wallet.contract.cards import (
    ATTESTATION_TYP,
    ISSUER_TYP,
    REVOCATIONS_TYP,
    CardAttestation,
    CardIssuerCertificate,
    CardRevocations,
)
from wallet.domain.cards import Card, CardRecord
from wallet.store import hardware as store
from wallet.store import wallets as wallet_store
from wallet.usecases import wallets
from wallet.usecases.context import Context
from wallet.usecases.program_documents import check_signed, read_document


def register_card(
    context: Context,
    wallet_id: UUID,
    *,
    key: dict[str, str],
    attestation: Sequence[str],
    pin_free_single_max_minor: int,
    pin_free_total_max_minor: int,
) -> CardRecord:
    """One of the wallet's device keys is in a card, by its issuer's word: its ids are read as stamps from now on.
    Idempotent. The caps are at most what the chip itself keeps by the attestation.

    Raises: ProblemError(wallet-not-found, wallet-not-open, device-key-refused, card-not-attested, card-revoked,
    card-expired, card-exists).
    """
    try:
        thumbprint = PublicKey.from_jwk(key).thumbprint
    except KeyRefused as error:
        raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, str(error)) from None
    attested = check_attestation(context, attestation)
    if PublicKey.from_jwk(attested.key).thumbprint != thumbprint:
        raise ProblemError(WalletRefusal.CARD_NOT_ATTESTED, "the attestation is of another key")
    caps = (pin_free_single_max_minor, pin_free_total_max_minor)
    if caps[0] > attested.pin_free_single_max_minor or caps[1] > attested.pin_free_total_max_minor:
        raise ProblemError(WalletRefusal.CARD_NOT_ATTESTED, "the caps are above those that the chip keeps")
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet = wallet_store.lock_wallet(connection, wallet_id)
        if wallet is None:
            raise ProblemError(WalletRefusal.WALLET_NOT_FOUND)
        if wallet.account is None:
            raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
        if thumbprint not in wallet.devices:
            raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, "the key is none of the wallet's device keys")
        card = Card(
            thumbprint=thumbprint,
            wallet_id=wallet_id,
            account=wallet.account,
            counter_last=0,
            pin_free_single_max_minor=pin_free_single_max_minor,
            pin_free_total_max_minor=pin_free_total_max_minor,
            pin_free_minor=0,
            state="active",
            expires_at=attested.not_after,
        )
        if store.is_revoked(connection, attested.issuer, attested.serial):
            raise ProblemError(WalletRefusal.CARD_REVOKED)
        store.insert_card(connection, card, attested, token=attestation[-1], created_at=context.clock())
        mine = {record.card.thumbprint for record in store.cards_of(connection, wallet_id)}
        if thumbprint not in mine:
            raise ProblemError(WalletRefusal.CARD_EXISTS, "a card with this serial is registered with another key")
    known = find_card(context, wallet_id, thumbprint)
    asked = (pin_free_single_max_minor, pin_free_total_max_minor)
    if (known.card.pin_free_single_max_minor, known.card.pin_free_total_max_minor) != asked:
        raise ProblemError(WalletRefusal.CARD_EXISTS)
    return known


def check_attestation(context: Context, chain: Sequence[str]) -> CardAttestation:
    """Root (registered here) -> factory -> card; each signature, name and time. Raises: ProblemError
    (card-not-attested, card-expired)."""
    refusal = WalletRefusal.CARD_NOT_ATTESTED
    if len(chain) != 2:
        raise ProblemError(refusal, "give the factory's certificate and the card's attestation")
    certificate = read_document(chain[0], CardIssuerCertificate, refusal=refusal)
    root = context.card_issuers.get(certificate.issuer)
    if root is None:
        raise ProblemError(refusal, f"{certificate.issuer} is no card issuer that is registered here")
    check_signed(chain[0], [root], typ=ISSUER_TYP, refusal=refusal)
    attested = read_document(chain[1], CardAttestation, refusal=refusal)
    try:
        factory = PublicKey.from_jwk(certificate.key)
        PublicKey.from_jwk(attested.key)
    except KeyRefused as error:
        raise ProblemError(refusal, str(error)) from None
    check_signed(chain[1], [factory], typ=ATTESTATION_TYP, refusal=refusal)
    if attested.issuer != certificate.issuer:
        raise ProblemError(refusal, "the factory's certificate is of another issuer")
    now = context.clock()
    if now >= certificate.not_after:
        raise ProblemError(refusal, "the factory's certificate has expired")
    if now >= attested.not_after:
        raise ProblemError(WalletRefusal.CARD_EXPIRED)
    return attested


def take_revocations(context: Context, token: str) -> tuple[CardRevocations, int]:
    """An issuer's list, and how many cards it suspends here now. Nothing that was revoked is taken back: old lists and
    repetitions change nothing. Raises: ProblemError(card-not-attested)."""
    refusal = WalletRefusal.CARD_NOT_ATTESTED
    listed = read_document(token, CardRevocations, refusal=refusal)
    root = context.card_issuers.get(listed.issuer)
    if root is None:
        raise ProblemError(refusal, f"{listed.issuer} is no card issuer that is registered here")
    check_signed(token, [root], typ=REVOCATIONS_TYP, refusal=refusal)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        store.insert_revocations(connection, listed, revoked_at=context.clock())
        for wallet_id in store.wallets_of_serials(connection, listed):
            wallet_store.lock_wallet(connection, wallet_id)
        return listed, store.suspend_revoked(connection, listed, suspended_at=context.clock())


def list_cards(context: Context, wallet_id: UUID) -> list[CardRecord]:
    """Raises: ProblemError(wallet-not-found)."""
    wallets.find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return store.cards_of(connection, wallet_id)


def find_card(context: Context, wallet_id: UUID, thumbprint: str) -> CardRecord:
    """Raises: ProblemError(wallet-not-found, card-not-found)."""
    for record in list_cards(context, wallet_id):
        if record.card.thumbprint == thumbprint:
            return record
    raise ProblemError(WalletRefusal.CARD_NOT_FOUND)


def report_card(context: Context, wallet_id: UUID, thumbprint: str) -> CardRecord:
    """Lost or stolen: nothing that it signs is carried from now on. Idempotent.

    Raises: ProblemError(wallet-not-found, card-not-found).
    """
    find_card(context, wallet_id, thumbprint)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        wallet_store.lock_wallet(connection, wallet_id)
        store.suspend_reported(connection, thumbprint, suspended_at=context.clock())
    return find_card(context, wallet_id, thumbprint)

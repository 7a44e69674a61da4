"""Hardware wallets: register a card, look at it, report it lost. What it may pay is in `wallet.usecases.own_rules`."""

from __future__ import annotations

from uuid import UUID

from kernel.crypto.keys import KeyRefused, PublicKey
from kernel.errors import ProblemError
from wallet.contract import WalletRefusal
from wallet.domain.cards import Card, CardRecord
from wallet.store import hardware as store
from wallet.store import wallets as wallet_store
from wallet.usecases import wallets
from wallet.usecases.context import Context


def register_card(
    context: Context,
    wallet_id: UUID,
    *,
    key: dict[str, str],
    pin_free_single_max_minor: int,
    pin_free_total_max_minor: int,
) -> CardRecord:
    """One of the wallet's device keys is in a card: its ids are read as stamps from now on. Idempotent.

    Raises: ProblemError(wallet-not-found, wallet-not-open, device-key-refused, card-exists).
    """
    try:
        thumbprint = PublicKey.from_jwk(key).thumbprint
    except KeyRefused as error:
        raise ProblemError(WalletRefusal.DEVICE_KEY_REFUSED, str(error)) from None
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
        )
        store.insert_card(connection, card, created_at=context.clock())
    known = find_card(context, wallet_id, thumbprint)
    asked = (pin_free_single_max_minor, pin_free_total_max_minor)
    if (known.card.pin_free_single_max_minor, known.card.pin_free_total_max_minor) != asked:
        raise ProblemError(WalletRefusal.CARD_EXISTS)
    return known


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

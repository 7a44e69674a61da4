"""Read models with keyset positions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from kernel.clock import from_micros, to_micros
from kernel.errors import ProblemError, RequestRefusal
from wallet.contract import WalletRefusal
from wallet.domain.records import Payment, Wallet
from wallet.store import payments, wallets
from wallet.usecases.context import Context
from wallet.usecases.wallets import find_wallet


def list_wallets(context: Context, *, customer_id: UUID | None, after: UUID | None, limit: int) -> list[Wallet]:
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return wallets.list_wallets(connection, customer_id=customer_id, after=after, limit=limit)


def list_payments(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Payment]:
    """Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return payments.list_payments(connection, wallet_id=wallet_id, before=before, limit=limit)


def find_payment(context: Context, payment_id: UUID) -> Payment:
    """Raises: ProblemError(payment-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = payments.find_payment(connection, payment_id)
    if row is None:
        raise ProblemError(WalletRefusal.PAYMENT_NOT_FOUND)
    return row


def moment_position(row: Payment) -> tuple[int, str]:
    return to_micros(row.created_at), str(row.id)


def position_of_moment(position: Sequence[int | str]) -> tuple[datetime, UUID]:
    micros, text = position
    try:
        return from_micros(int(micros)), UUID(str(text))
    except (ValueError, OverflowError):
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the cursor is damaged") from None


def position_of_id(position: Sequence[int | str]) -> UUID:
    try:
        return UUID(str(position[0]))
    except ValueError:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the cursor is damaged") from None

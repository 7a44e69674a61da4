"""Whether the institution signs a cross-border leg: only what it has itself ordered, to the letter."""

from __future__ import annotations

from datetime import datetime

from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferTerms
from wallet.contract import WalletRefusal
from wallet.domain.records import SettlementOrder


def decide_leg(
    terms: TransferTerms, *, ledger: str, order: SettlementOrder | None, vault: AccountNumber, now: datetime
) -> WalletRefusal | None:
    """None = sign it; otherwise the first refusal in order of precedence.

    Refuses: not-our-vault, settlement-not-found, settlement-expired, leg-terms-mismatch.
    """
    if terms.debit != vault:
        return WalletRefusal.NOT_OUR_VAULT
    if order is None:
        return WalletRefusal.SETTLEMENT_NOT_FOUND
    if now >= order.valid_until:
        return WalletRefusal.SETTLEMENT_EXPIRED
    is_conditional_hold = (
        terms.kind is TransferKind.HOLD
        and terms.commit_hash is not None
        and terms.abort_hash is not None
        # With one secret for both, whoever may post could also void.
        and terms.commit_hash != terms.abort_hash
        and terms.secret is None
        and terms.hold is None
    )
    is_as_ordered = (
        order.ledger == ledger
        and terms.credit == order.credit_account
        and terms.currency == order.pay_currency
        and terms.amount_minor == order.pay_amount_minor
    )
    # A deadline that passes before the order does would let the payer's side lapse while the other is posted.
    outlives_order = terms.expires_at is None or terms.expires_at > order.valid_until
    return None if is_conditional_hold and is_as_ordered and outlives_order else WalletRefusal.LEG_TERMS_MISMATCH

"""Whether the institution signs a cross-border leg: only what it has itself ordered, and only for what it is to get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferTerms
from wallet.contract import WalletRefusal
from wallet.domain.records import SettlementOrder


@dataclass(frozen=True, slots=True)
class Vault:
    """Our account on a ledger, and the one currency of that ledger."""

    account: AccountNumber
    currency: str


@dataclass(frozen=True, slots=True)
class LedgerLeg:
    """A leg as the bridge shows it: terms, and the ledger they are for."""

    ledger: str
    terms: TransferTerms


def decide_leg(
    leg: LedgerLeg,
    *,
    others: Sequence[LedgerLeg],
    order: SettlementOrder | None,
    vaults: Mapping[str, Vault],
    now: datetime,
) -> WalletRefusal | None:
    """None = sign `leg`; otherwise the first refusal in order of precedence.

    `others` are all the other legs of the settlement, `vaults` ours by ledger. Refuses: not-our-vault,
    settlement-not-found, settlement-expired, leg-terms-mismatch, counter-leg-mismatch.
    """
    terms = leg.terms
    vault = vaults.get(leg.ledger)
    if vault is None or terms.debit != vault.account:
        return WalletRefusal.NOT_OUR_VAULT
    if order is None:
        return WalletRefusal.SETTLEMENT_NOT_FOUND
    if now >= order.valid_until:
        return WalletRefusal.SETTLEMENT_EXPIRED
    is_as_ordered = (
        order.ledger == leg.ledger
        and terms.credit == order.credit_account
        and terms.currency == order.pay_currency
        and terms.amount_minor == order.pay_amount_minor
        # The order is known by the payment's UETR. Without this, one order would serve another payment's legs.
        and str(terms.reference) == order.id
    )
    # A deadline that passes before the order does would let the payer's side lapse while the other is posted.
    outlives_order = terms.expires_at is None or terms.expires_at > order.valid_until
    if not (_is_conditional_hold(terms) and is_as_ordered and outlives_order):
        return WalletRefusal.LEG_TERMS_MISMATCH
    if not all(_ends_with(other.terms, terms) and not _debits_us(other, vaults) for other in others):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    if sum(_brings(other, order, vaults) for other in others) != 1:
        return WalletRefusal.COUNTER_LEG_MISMATCH
    return None


def _is_conditional_hold(terms: TransferTerms) -> bool:
    return (
        terms.kind is TransferKind.HOLD
        and terms.commit_hash is not None
        and terms.abort_hash is not None
        # With one secret for both, whoever may post could also void.
        and terms.commit_hash != terms.abort_hash
        and terms.secret is None
        and terms.hold is None
    )


def _ends_with(other: TransferTerms, terms: TransferTerms) -> bool:
    """Whether the same two secrets end both holds, for the same payment, and neither lapses before the other."""
    return _is_conditional_hold(other) and (
        (other.commit_hash, other.abort_hash, other.reference, other.expires_at)
        == (terms.commit_hash, terms.abort_hash, terms.reference, terms.expires_at)
    )


def _debits_us(other: LedgerLeg, vaults: Mapping[str, Vault]) -> bool:
    """An order has one paying leg, and a UETR one order: a second leg out of a vault of ours is never ordered."""
    vault = vaults.get(other.ledger)
    return vault is not None and other.terms.debit == vault.account


def _brings(other: LedgerLeg, order: SettlementOrder, vaults: Mapping[str, Vault]) -> bool:
    """Whether this leg pays us at least what the order wants: into our vault, on a ledger of that currency."""
    vault = vaults.get(other.ledger)
    return (
        vault is not None
        and other.terms.credit == vault.account
        and other.terms.currency == vault.currency == order.receive_currency
        and other.terms.amount_minor is not None
        and other.terms.amount_minor >= order.receive_amount_minor_min
    )

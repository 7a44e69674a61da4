"""Whether the institution signs a cross-border leg: only what it has itself ordered, and only for what it is to get."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferTerms
from wallet.contract import WalletRefusal
from wallet.domain.records import OrderedPayment, SettlementOrder


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
    # The order is known by the payment's UETR. Without this, one order would serve another payment's legs.
    is_as_ordered = _payment(leg) in order.payments and str(terms.reference) == order.id
    # A deadline that passes before the order does would let the payer's side lapse while the other is posted.
    outlives_order = terms.expires_at is None or terms.expires_at > order.valid_until
    if not (_is_conditional_hold(terms) and is_as_ordered and outlives_order):
        return WalletRefusal.LEG_TERMS_MISMATCH
    if not all(_ends_with(other.terms, terms) for other in others):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    # One hold shown twice would count twice here and be held once.
    if len({terms.id, *(other.terms.id for other in others)}) != 1 + len(others):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    # Out of our vaults go exactly the ordered payments, each once: no other leg takes anything away again.
    paying = [leg, *(other for other in others if _debits_us(other, vaults))]
    if Counter(_payment(item) for item in paying) != Counter(order.payments):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    brought = Counter[str]()
    for other in others:
        brought.update(_brings(other, vaults))
    if any(brought[receipt.currency] < receipt.amount_minor_min for receipt in order.receipts):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    return None


def is_sensible(order: SettlementOrder) -> bool:
    """Whether it can be the order of one settlement: amounts above zero, one payment to an account, one receipt of a
    currency, and no currency both paid and received."""
    payments, receipts = order.payments, order.receipts
    paid, received = {item.currency for item in payments}, {item.currency for item in receipts}
    return (
        all(item.amount_minor > 0 for item in payments)
        and all(item.amount_minor_min > 0 for item in receipts)
        and len({(item.ledger, item.credit_account) for item in payments}) == len(payments)
        and len(received) == len(receipts)
        and not paid & received
        and (order.receive_currency is None) == (order.receive_amount_minor_min is None)
        and (order.receive_currency is not None or not order.further_receipts)
    )


def _payment(leg: LedgerLeg) -> OrderedPayment | None:
    """The leg as an order would name it; None if it is not a whole payment."""
    terms = leg.terms
    if terms.amount_minor is None or terms.credit is None:
        return None
    return OrderedPayment(leg.ledger, terms.currency, terms.amount_minor, terms.credit)


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
    vault = vaults.get(other.ledger)
    return vault is not None and other.terms.debit == vault.account


def _brings(other: LedgerLeg, vaults: Mapping[str, Vault]) -> dict[str, int]:
    """What this leg pays us: into our vault, on a ledger of that currency."""
    vault, terms = vaults.get(other.ledger), other.terms
    if vault is None or terms.credit != vault.account or terms.currency != vault.currency or not terms.amount_minor:
        return {}
    return {vault.currency: terms.amount_minor}

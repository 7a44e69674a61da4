"""Whether the institution signs its legs of a netting settlement: only if its own orders add up to exactly that.

The bridge nets many of the institution's ordered settlements with those of others and asks for the net. It shows the
list of the institution's own instructions that it nets, each with what it pays and gets, and all legs that touch the
institution (docs/decisions/0023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ledger.contract import TransferKind
from wallet.contract import WalletRefusal
from wallet.domain.records import SettlementOrder
from wallet.domain.settlements import LedgerLeg, Vault


@dataclass(frozen=True, slots=True)
class NettedOrder:
    """One of our orders as the bridge nets it: minor units paid and received, by currency."""

    order_id: str
    paid: Mapping[str, int]
    received: Mapping[str, int]


def decide_netting(
    netting_id: str,
    *,
    legs: Sequence[LedgerLeg],
    netted: Sequence[NettedOrder],
    orders: Mapping[str, SettlementOrder],
    vaults: Mapping[str, Vault],
    now: datetime,
) -> WalletRefusal | None:
    """None = sign every leg that debits us; otherwise the first refusal in order of precedence.

    `legs` are all that touch us, `orders` ours by id, `vaults` ours by ledger. Refuses: settlement-not-found,
    settlement-expired, leg-terms-mismatch (an instruction is not what we ordered), counter-leg-mismatch (the legs are
    not conditional holds under the same hashes for this netting, or not what the instructions add up to in some
    currency, or in and out in one currency). So nothing is signed that is worse, in any currency, than the sum of our
    own orders, and never more is paid than they say.
    """
    if not netted or any(item.order_id not in orders for item in netted):
        return WalletRefusal.SETTLEMENT_NOT_FOUND
    if any(now >= orders[item.order_id].valid_until for item in netted):
        return WalletRefusal.SETTLEMENT_EXPIRED
    is_listed_once = len({item.order_id for item in netted}) == len(netted)
    if not is_listed_once or not all(_is_as_ordered(item, orders[item.order_id]) for item in netted):
        return WalletRefusal.LEG_TERMS_MISMATCH
    if not legs or not all(_is_whole(leg, legs[0], netting_id) for leg in legs):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    if len({leg.terms.id for leg in legs}) != len(legs):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    moved, expected = Counter[str](), Counter[str]()
    directions: dict[str, bool] = {}
    for leg in legs:
        vault, amount = vaults.get(leg.ledger), leg.terms.amount_minor
        if vault is None or amount is None or amount <= 0 or leg.terms.currency != vault.currency:
            return WalletRefusal.COUNTER_LEG_MISMATCH
        if (leg.terms.debit == vault.account) == (leg.terms.credit == vault.account):
            return WalletRefusal.COUNTER_LEG_MISMATCH  # of others only, or from us to us
        # In a currency all legs go one way, as net legs do. Were they to go both ways, a bridge that posts only those
        # out of our vault could take far more than was ordered: what comes in would be promised alone.
        is_receipt = leg.terms.credit == vault.account
        if directions.setdefault(vault.currency, is_receipt) is not is_receipt:
            return WalletRefusal.COUNTER_LEG_MISMATCH
        moved[vault.currency] += amount if is_receipt else -amount
    for item in netted:
        expected.update(item.received)
        expected.subtract(item.paid)
    currencies = moved.keys() | expected.keys()
    if any(moved[currency] != expected[currency] for currency in currencies):
        return WalletRefusal.COUNTER_LEG_MISMATCH
    return None


def _is_as_ordered(item: NettedOrder, order: SettlementOrder) -> bool:
    """It pays exactly what was ordered, and brings at least what was."""
    paid = Counter[str]()
    for payment in order.payments:
        paid[payment.currency] += payment.amount_minor
    return Counter(item.paid) == paid and all(
        item.received.get(receipt.currency, 0) >= receipt.amount_minor_min for receipt in order.receipts
    )


def _is_whole(leg: LedgerLeg, first: LedgerLeg, netting_id: str) -> bool:
    """A conditional hold without a deadline, for this netting, that the same two secrets end as all the others."""
    terms = leg.terms
    return (
        terms.kind is TransferKind.HOLD
        and terms.commit_hash is not None
        and terms.abort_hash is not None
        and terms.commit_hash != terms.abort_hash
        and terms.secret is None
        and terms.hold is None
        and terms.expires_at is None
        and str(terms.reference) == netting_id
        and (terms.commit_hash, terms.abort_hash) == (first.terms.commit_hash, first.terms.abort_hash)
    )

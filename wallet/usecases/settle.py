"""The bank's side of cross-border settlement: it orders, and later signs exactly the legs it ordered, once.

The bridge asks for signatures; it can never obtain one for money that the bank's own desk did not order.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernel.crypto import jws
from kernel.errors import Refusal
from kernel.ids import AccountNumber
from ledger.contract import TransferTerms, sign_instruction
from wallet.contract import WalletRefusal
from wallet.domain.records import SettlementOrder, SignedLeg
from wallet.domain.settlements import decide_leg
from wallet.store import settlements
from wallet.usecases.context import Context, LedgerAccess


def register_orders(context: Context, orders: Sequence[SettlementOrder]) -> list[Refusal | None]:
    """One answer an order, in order; None = recorded (now or before, the same). Refuses: ledger-unknown,
    leg-terms-mismatch (the ledger has another currency), settlement-exists."""
    answers: list[Refusal | None] = []
    for order in orders:
        entry = context.ledgers.find(order.ledger)
        if entry is None:
            answers.append(WalletRefusal.LEDGER_UNKNOWN)
        elif order.pay_currency != entry.currency or not _is_exchange(order):
            answers.append(WalletRefusal.LEG_TERMS_MISMATCH)
        else:
            answers.append(None)
    good = [order for order, answer in zip(orders, answers, strict=True) if answer is None]
    first = {order.id: order for order in reversed(good)}
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        settlements.insert_orders(connection, list(first.values()))
        known = settlements.find_orders(connection, list(first))
    return [
        WalletRefusal.SETTLEMENT_EXISTS if answer is None and not order.orders_the_same_as(known[order.id]) else answer
        for order, answer in zip(orders, answers, strict=True)
    ]


def authorise_legs(
    context: Context, legs: Sequence[tuple[str, str, TransferTerms]]
) -> list[tuple[str | None, Refusal | None]]:
    """(token, refusal) for each (instruction id, ledger, terms). The same leg again gets the same token.

    Refuses: ledger-unknown, leg-already-authorised, and as `decide_leg` does.
    """
    now = context.clock()
    entries = {name: context.ledgers.find(name) for _, name, _ in legs}
    vaults: dict[str, AccountNumber] = {
        name: context.ledgers.vault(entry) for name, entry in entries.items() if entry is not None
    }
    order_ids = {order_id for order_id, _, _ in legs}
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        orders = settlements.find_orders(connection, order_ids)
        signed = settlements.find_legs(connection, order_ids)
    new: dict[tuple[str, str], SignedLeg] = {}
    refusals: list[Refusal | None] = []
    for order_id, name, terms in legs:
        order = orders.get(order_id)
        refusal: Refusal | None = None
        entry: LedgerAccess | None = entries[name]
        if entry is None:
            refusal = WalletRefusal.LEDGER_UNKNOWN
        elif (order_id, name) not in signed and (order_id, name) not in new:
            refusal = decide_leg(terms, ledger=name, order=order, vault=vaults[name], now=now)
            if refusal is None and order is not None:
                token = sign_instruction(terms, ledger=name, valid_until=order.valid_until, key=context.key)
                new[order_id, name] = SignedLeg(order_id, name, terms.id, _plain(terms), token, now)
        refusals.append(refusal)
    if new:
        # Two requests at once: the table's primary key lets one in, and both read back what stands.
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            settlements.insert_legs(connection, list(new.values()))
            signed = settlements.find_legs(connection, order_ids)
    answers: list[tuple[str | None, Refusal | None]] = []
    for (order_id, name, terms), refusal in zip(legs, refusals, strict=True):
        stands = signed.get((order_id, name))
        if refusal is not None:
            answers.append((None, refusal))
        elif stands is None or jws.canonical_json(dict(stands.terms)) != jws.canonical_json(_plain(terms)):
            answers.append((None, WalletRefusal.LEG_ALREADY_AUTHORISED))
        else:
            answers.append((stands.token, None))
    return answers


def _is_exchange(order: SettlementOrder) -> bool:
    is_positive = order.pay_amount_minor > 0 and order.receive_amount_minor_min > 0
    return is_positive and order.pay_currency != order.receive_currency


def _plain(terms: TransferTerms) -> dict[str, object]:
    return terms.model_dump(mode="json", exclude_none=True)

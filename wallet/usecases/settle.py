"""The bank's side of cross-border settlement: it orders, and later signs exactly the legs it ordered, once.

The bridge asks for signatures. It obtains none for money that the bank's own desk did not order, and none where the
other legs that it shows do not bring what the desk ordered to receive (docs/decisions/0007).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernel.crypto import jws
from kernel.errors import Refusal
from ledger.contract import TransferTerms, sign_instruction
from wallet.contract import WalletRefusal
from wallet.domain.records import SettlementOrder, SignedLeg
from wallet.domain.settlements import LedgerLeg, Vault, decide_leg
from wallet.store import settlements
from wallet.usecases.context import Context


@dataclass(frozen=True, slots=True)
class LegRequest:
    """The bridge asks for a signature on `leg`, which is settled together with `others` under one order."""

    order_id: str
    leg: LedgerLeg
    others: Sequence[LedgerLeg]


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


def authorise_legs(context: Context, requests: Sequence[LegRequest]) -> list[tuple[str | None, Refusal | None]]:
    """(token, refusal) for each request, in order. The same leg with the same other legs gets the same token again.

    Refuses: ledger-unknown, leg-already-authorised, and as `decide_leg` does. Raises: ProblemError when a vault is not
    open yet and its ledger cannot be reached.
    """
    now = context.clock()
    vaults = _our_vaults(context, requests)
    order_ids = {request.order_id for request in requests}
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        orders = settlements.find_orders(connection, order_ids)
        signed = settlements.find_legs(connection, order_ids)
    new: dict[tuple[str, str], SignedLeg] = {}
    refusals: list[Refusal | None] = []
    for request in requests:
        leg, key = request.leg, (request.order_id, request.leg.ledger)
        refusal: Refusal | None = None
        if leg.ledger not in vaults:
            refusal = WalletRefusal.LEDGER_UNKNOWN
        elif key not in signed and key not in new:
            order = orders.get(request.order_id)
            refusal = decide_leg(leg, others=request.others, order=order, vaults=vaults, now=now)
            if refusal is None and order is not None:
                token = sign_instruction(leg.terms, ledger=leg.ledger, valid_until=order.valid_until, key=context.key)
                new[key] = SignedLeg(*key, leg.terms.id, _settlement_terms(request), token, now)
        refusals.append(refusal)
    if new:
        # Two requests at once: the table's primary key lets one in, and both read back what stands.
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            settlements.insert_legs(connection, list(new.values()))
            signed = settlements.find_legs(connection, order_ids)
    answers: list[tuple[str | None, Refusal | None]] = []
    for request, refusal in zip(requests, refusals, strict=True):
        stands = signed.get((request.order_id, request.leg.ledger))
        if refusal is not None:
            answers.append((None, refusal))
        elif stands is None or _differ(stands.terms, _settlement_terms(request)):
            answers.append((None, WalletRefusal.LEG_ALREADY_AUTHORISED))
        else:
            answers.append((stands.token, None))
    return answers


def _our_vaults(context: Context, requests: Sequence[LegRequest]) -> dict[str, Vault]:
    """Ours on those ledgers of the requests that we are on; what is on no ledger of ours cannot pay us."""
    names = {leg.ledger for request in requests for leg in (request.leg, *request.others)}
    entries = [entry for entry in map(context.ledgers.find, sorted(names)) if entry is not None]
    return {entry.name: Vault(context.ledgers.vault(entry), entry.currency) for entry in entries}


def _is_exchange(order: SettlementOrder) -> bool:
    is_positive = order.pay_amount_minor > 0 and order.receive_amount_minor_min > 0
    return is_positive and order.pay_currency != order.receive_currency


def _settlement_terms(request: LegRequest) -> dict[str, object]:
    """What an authorisation was given for: the leg, and the other legs in an order of our own."""
    others = sorted(request.others, key=lambda other: (other.ledger, other.terms.id))
    return {
        "signed": _plain(request.leg.terms),
        "others": [{"ledger": other.ledger, "terms": _plain(other.terms)} for other in others],
    }


def _differ(stands: Mapping[str, object], asked: Mapping[str, object]) -> bool:
    return jws.canonical_json(dict(stands)) != jws.canonical_json(dict(asked))


def _plain(terms: TransferTerms) -> dict[str, object]:
    return terms.model_dump(mode="json", exclude_none=True)

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
from wallet.domain.settlements import LedgerLeg, Vault, decide_leg, is_sensible
from wallet.store import settlements
from wallet.usecases.context import Context
from wallet.usecases.kept_twice import KeptByDatabase


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
        entries = [(context.ledgers.find(payment.ledger), payment) for payment in order.payments]
        if any(entry is None for entry, _ in entries):
            answers.append(WalletRefusal.LEDGER_UNKNOWN)
        elif any(entry and entry.currency != payment.currency for entry, payment in entries) or not is_sensible(order):
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
    vaults = our_vaults(context, requests)
    order_ids = {request.order_id for request in requests}
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        orders = settlements.find_orders(connection, order_ids)
        signed = settlements.find_legs(connection, order_ids)
    new: dict[str, list[SignedLeg]] = {}
    refusals: list[Refusal | None] = []
    for request in requests:
        leg, key = request.leg, request.order_id
        refusal: Refusal | None = None
        if leg.ledger not in vaults:
            refusal = WalletRefusal.LEDGER_UNKNOWN
        elif key not in signed and key not in new:
            order = orders.get(key)
            refusal = decide_leg(leg, others=request.others, order=order, vaults=vaults, now=now)
            if refusal is None and order is not None:
                new[key] = _sign_all(context, request, order, vaults)
        refusals.append(refusal)
    if new:
        # Two requests at once: the table's primary key lets one in, and both read back what stands.
        _insert(context, list(new.values()))
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            signed = settlements.find_legs(connection, order_ids)
    answers: list[tuple[str | None, Refusal | None]] = []
    for request, refusal in zip(requests, refusals, strict=True):
        stands = signed.get(request.order_id, {}).get(request.leg.terms.id)
        if refusal is not None:
            answers.append((None, refusal))
        elif stands is None or _differ(stands.terms, _settlement_terms(request.leg, request.others)):
            answers.append((None, WalletRefusal.LEG_ALREADY_AUTHORISED))
        else:
            answers.append((stands.token, None))
    return answers


def _insert(context: Context, by_order: Sequence[Sequence[SignedLeg]]) -> None:
    """But those of orders that were signed for in a netting settlement meanwhile: they hold up no other order."""
    try:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            settlements.insert_legs(connection, [row for rows in by_order for row in rows])
    except KeptByDatabase as kept:
        if kept.constraint != "order_signed_once":
            raise
        if len(by_order) > 1:
            for rows in by_order:
                _insert(context, [rows])


def _sign_all(
    context: Context, request: LegRequest, order: SettlementOrder, vaults: Mapping[str, Vault]
) -> list[SignedLeg]:
    """Every paying leg of ours in this settlement at once, though one is asked for: an order serves one settlement."""
    signed: list[SignedLeg] = []
    every = (request.leg, *request.others)
    for number, leg in enumerate(every):
        if leg.ledger in vaults and leg.terms.debit == vaults[leg.ledger].account and leg.terms.credit is not None:
            token = sign_instruction(leg.terms, ledger=leg.ledger, valid_until=order.valid_until, key=context.key)
            terms = _settlement_terms(leg, (*every[:number], *every[number + 1 :]))
            row = SignedLeg(order.id, leg.ledger, leg.terms.credit, leg.terms.id, terms, token, context.clock())
            signed.append(row)
    return signed


def our_vaults(context: Context, requests: Sequence[LegRequest]) -> dict[str, Vault]:
    """Ours on those ledgers of the requests that we are on; what is on no ledger of ours cannot pay us."""
    names = {leg.ledger for request in requests for leg in (request.leg, *request.others)}
    entries = [entry for entry in map(context.ledgers.find, sorted(names)) if entry is not None]
    return {entry.name: Vault(context.ledgers.vault(entry), entry.currency) for entry in entries}


def _settlement_terms(leg: LedgerLeg, others: Sequence[LedgerLeg]) -> dict[str, object]:
    """What an authorisation was given for: the leg, and the other legs in an order of our own."""
    ordered = sorted(others, key=lambda other: (other.ledger, other.terms.id))
    return {
        "signed": _plain(leg.terms),
        "others": [{"ledger": other.ledger, "terms": _plain(other.terms)} for other in ordered],
    }


def _differ(stands: Mapping[str, object], asked: Mapping[str, object]) -> bool:
    return jws.canonical_json(dict(stands)) != jws.canonical_json(dict(asked))


def _plain(terms: TransferTerms) -> dict[str, object]:
    return terms.model_dump(mode="json", exclude_none=True)

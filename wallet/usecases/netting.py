"""The bank signs its net legs, each against the list of its own orders that it pays (docs/decisions/0023).

An order is signed for once: by itself or in one netting. When a netting was aborted, its orders are free again, but not
on the bridge's word: only when each ledger shows that the hold which we signed is void, or can never be placed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto import jws
from kernel.errors import Refusal
from kernel.ids import HoldId
from ledger.contract import HoldStatus, TransferTerms, sign_instruction
from wallet.contract import WalletRefusal
from wallet.domain.netting import NettedOrder, decide_netting
from wallet.domain.settlements import LedgerLeg, Vault
from wallet.store import netting as store
from wallet.store import settlements
from wallet.usecases import settle
from wallet.usecases.context import Context
from wallet.usecases.kept_twice import KeptByDatabase

Answer = tuple[str | None, Refusal | None]


def authorise(
    context: Context, requests: Sequence[settle.LegRequest], nettings: Mapping[str, Sequence[NettedOrder]]
) -> list[Answer]:
    """(token, refusal) for each request, in order: of net legs by their lists in `nettings`, of others as ordered.

    The same again gets the same answer. Refuses: as `settle.authorise_legs` and `decide_netting` do, and
    leg-already-authorised for an order that is signed for otherwise. Raises as `settle.authorise_legs`.
    """
    alone = [number for number, request in enumerate(requests) if request.order_id not in nettings]
    answers: dict[int, Answer] = {}
    if alone:
        taken = free_void_orders(context, {requests[number].order_id for number in alone})
        answers.update(dict.fromkeys(alone, (None, WalletRefusal.LEG_ALREADY_AUTHORISED)))
        free = [number for number in alone if requests[number].order_id not in taken]
        found = settle.authorise_legs(context, [requests[number] for number in free])
        answers.update(zip(free, found, strict=True))
    for netting_id, netted in nettings.items():
        places = [number for number, request in enumerate(requests) if request.order_id == netting_id]
        if places:
            found = _authorise_netting(context, netting_id, netted, [requests[number] for number in places])
            answers.update(zip(places, found, strict=True))
    return [answers[number] for number in range(len(requests))]


def _authorise_netting(
    context: Context, netting_id: str, netted: Sequence[NettedOrder], requests: Sequence[settle.LegRequest]
) -> list[Answer]:
    vaults = settle.our_vaults(context, requests)
    legs = _legs(requests[0])
    terms = _plain(legs, netted)
    order_ids = {item.order_id for item in netted}
    if any(_plain(_legs(request), netted) != terms for request in requests):
        return _all(requests, WalletRefusal.COUNTER_LEG_MISMATCH)
    free_void_orders(context, order_ids, but=netting_id)
    try:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            known = store.find(connection, [netting_id])
            if not known:
                refusal = _sign(context, connection, netting_id, legs, netted, vaults, terms)
                if refusal is not None:
                    return _all(requests, refusal)
                known = store.find(connection, [netting_id])
            stands, signed = known[netting_id]
    except KeptByDatabase as kept:
        return _all(requests, kept.refusal)
    if jws.canonical_json(dict(stands.terms)) != jws.canonical_json(terms):
        return _all(requests, WalletRefusal.LEG_ALREADY_AUTHORISED)
    answers: list[Answer] = []
    for request in requests:
        leg = signed.get(request.leg.terms.id)
        answers.append((None, WalletRefusal.NOT_OUR_VAULT) if leg is None else (leg.token, None))
    return answers


def _sign(
    context: Context,
    connection: sa.Connection,
    netting_id: str,
    legs: Sequence[LedgerLeg],
    netted: Sequence[NettedOrder],
    vaults: Mapping[str, Vault],
    terms: Mapping[str, object],
) -> Refusal | None:
    """Sign every leg that debits us, with the orders locked; or say why not."""
    order_ids = {item.order_id for item in netted}
    store.lock_orders(connection, order_ids)
    orders = settlements.find_orders(connection, order_ids)
    refusal = decide_netting(netting_id, legs=legs, netted=netted, orders=orders, vaults=vaults, now=context.clock())
    if refusal is not None:
        return refusal
    if store.signed_alone(connection, order_ids) or store.claims(connection, order_ids):
        return WalletRefusal.LEG_ALREADY_AUTHORISED
    valid_until = min(order.valid_until for order in orders.values())
    paying = [leg for leg in legs if leg.terms.debit == vaults[leg.ledger].account]
    signed = [
        store.NettingLeg(
            leg.terms.id,
            netting_id,
            leg.ledger,
            sign_instruction(leg.terms, ledger=leg.ledger, valid_until=valid_until, key=context.key),
        )
        for leg in paying
    ]
    if not signed:
        return WalletRefusal.NOT_OUR_VAULT
    abort_hash = legs[0].terms.abort_hash or b""
    row = store.Netting(netting_id, terms, abort_hash, context.clock())
    store.insert_netting(connection, row, signed, order_ids)
    return None


def free_void_orders(context: Context, order_ids: Collection[str], *, but: str | None = None) -> set[str]:
    """Free these orders where the netting they were signed for in can never pay: asked of the ledgers, one by one.

    Returns those that stay signed for in another netting than `but`.
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        claims = {order: key for order, key in store.claims(connection, order_ids).items() if key != but}
        found = store.find(connection, set(claims.values())) if claims else {}
    void = [
        key
        for key, (netting, legs) in found.items()
        if all(_is_void(context, leg, netting.abort_hash) for leg in legs.values())
    ]
    if void:
        with context.database.transaction(isolation="READ COMMITTED") as connection:
            store.free_orders(connection, void)
    return {order for order, key in claims.items() if key not in void}


def _is_void(context: Context, leg: store.NettingLeg, abort_hash: bytes) -> bool:
    """Whether the signed hold is voided, or its ledger keeps it out for ever: a tombstone by the pre-image of its own
    abort hash (anybody can leave one by another secret, which keeps nothing out)."""
    entry = context.ledgers.find(leg.ledger)
    if entry is None:
        return False
    try:
        view = entry.client.get_hold(HoldId(leg.hold_id))
    except (ProblemResponse, ServiceUnreachable):
        return False
    if view.status is HoldStatus.VOIDED:
        return view.abort_hash == abort_hash
    return (
        view.status is HoldStatus.TOMBSTONED
        and view.secret is not None
        and hashlib.sha256(view.secret).digest() == abort_hash
    )


def _legs(request: settle.LegRequest) -> list[LedgerLeg]:
    return sorted((request.leg, *request.others), key=lambda leg: (leg.ledger, leg.terms.id))


def _plain(legs: Sequence[LedgerLeg], netted: Sequence[NettedOrder]) -> dict[str, object]:
    return {
        "legs": [{"ledger": leg.ledger, "terms": _terms(leg.terms)} for leg in legs],
        "netted": [
            {
                "instruction_id": item.order_id,
                "paid": {currency: str(amount) for currency, amount in item.paid.items()},
                "received": {currency: str(amount) for currency, amount in item.received.items()},
            }
            for item in sorted(netted, key=lambda item: item.order_id)
        ],
    }


def _terms(terms: TransferTerms) -> dict[str, object]:
    return terms.model_dump(mode="json", exclude_none=True)


def _all(requests: Sequence[settle.LegRequest], refusal: Refusal) -> list[Answer]:
    return [(None, refusal)] * len(requests)

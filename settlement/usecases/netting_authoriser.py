"""Asking for net legs: each institution gets the list of its own instructions that they pay, and only its own legs.

An institution signs a net leg because its own orders add up to it (decision 0023); so with the leg goes the list, and
of the other legs those that pay it or that it pays. What others net is nobody else's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from kernel.database import Database
from kernel.ids import ParticipantId
from settlement.domain.liquidity.model import Flow
from settlement.islands.authorisers import AuthorisationOutcome, Authoriser, LegOrder, NettedInstruction
from settlement.store.liquidity import netted_of


class NettingAuthoriser:
    """An authoriser that adds to each leg of a netting settlement what it stands for. Others go through unchanged."""

    def __init__(self, inner: Authoriser, database: Database) -> None:
        self._inner = inner
        self._database = database

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        references = {order.hold.reference for order in orders}
        with self._database.transaction(isolation="READ COMMITTED") as connection:
            found = netted_of(connection, references, payer)
        if not found:
            return self._inner.authorise(payer, orders)
        lists = {key: _instructions(netted, payer) for key, netted in found.items()}
        asked = [
            _with_list(order, lists[order.hold.reference], payer) if order.hold.reference in lists else order
            for order in orders
        ]
        return self._inner.authorise(payer, asked)


def _with_list(order: LegOrder, netted: tuple[NettedInstruction, ...], payer: ParticipantId) -> LegOrder:
    own = tuple(other for other in order.others if payer in (other.terms.payer, other.terms.payee))
    return replace(order, others=own, netted=netted)


def _instructions(
    found: Sequence[tuple[UUID, Sequence[Flow]]], participant: ParticipantId
) -> tuple[NettedInstruction, ...]:
    made: list[NettedInstruction] = []
    for uetr, flows in found:
        paid, received = Counter[str](), Counter[str]()
        for flow in flows:
            if flow.payer == participant:
                paid[flow.currency] += flow.amount_minor
            if flow.payee == participant:
                received[flow.currency] += flow.amount_minor
        made.append(NettedInstruction(uetr, tuple(sorted(paid.items())), tuple(sorted(received.items()))))
    return tuple(made)

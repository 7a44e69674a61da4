"""Settlements of n legs: payment versus payment over several ledgers (PvPvP), or a netted cycle of net legs.

Nothing in the engine counts legs; the bounds here are for requests, rows and signatures. What each payer signs against
is all the other legs, so n legs make n * n terms on their way to the institutions.
"""

from __future__ import annotations

from collections.abc import Sequence

from kernel.ids import ParticipantId
from settlement.domain.escrow import LegTerms
from settlement.domain.instructions import AMOUNT_DIGITS_MAX

LEGS_MIN = 2
LEGS_MAX = 32
"""The institutions' side takes as many (`wallet.contract.OTHER_LEGS_MAX` + 1). A netting settlement has a bound of its
own (`store_settlement`'s `leg_bounds`); CHECK `leg_number` is the larger."""


def find_fault(legs: Sequence[LegTerms], *, legs_min: int = LEGS_MIN, legs_max: int = LEGS_MAX) -> str | None:
    """Why these cannot be the legs of one settlement, as a sentence, or None.

    2 to 32 legs (or other bounds, of netting settlements), each between two participants and two accounts, of 1 to
    10^18 - 1 minor units; one leg for each (ledger, debit, credit), since two of them are one of the sum; one
    participant for each account.
    """
    if not legs_min <= len(legs) <= legs_max:
        return f"a settlement has {legs_min} to {legs_max} legs, not {len(legs)}"
    owners: dict[tuple[str, int], ParticipantId] = {}
    pairs: set[tuple[str, int, int]] = set()
    for number, leg in enumerate(legs):
        if leg.payer == leg.payee or leg.debit == leg.credit:
            return f"leg {number}: payer and payee are the same"
        if not 0 < leg.amount.amount_minor < 10**AMOUNT_DIGITS_MAX:
            return f"leg {number}: the amount is nothing or has more than {AMOUNT_DIGITS_MAX} digits"
        if (pair := (leg.ledger, leg.debit, leg.credit)) in pairs:
            return f"leg {number}: {leg.payer} pays {leg.payee} on {leg.ledger} twice; make it one leg of the sum"
        pairs.add(pair)
        for account, owner in ((leg.debit, leg.payer), (leg.credit, leg.payee)):
            if owners.setdefault((leg.ledger, account), owner) != owner:
                return f"leg {number}: an account on {leg.ledger} belongs to two participants"
    return None


def parties(legs: Sequence[LegTerms]) -> frozenset[ParticipantId]:
    """Everybody who pays or is paid: they may submit the settlement and see it."""
    return frozenset(party for leg in legs for party in (leg.payer, leg.payee))

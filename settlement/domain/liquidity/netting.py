"""A chosen set as few payments: what everybody owes net in each currency, and who pays whom.

The fewest payments that settle the net positions of k participants are k less the largest number of groups whose
positions cancel out. Finding those groups is NP-hard, so up to EXACT_MAX participants a currency they are found exactly
(by a table over all subsets); above it pairs that cancel out are taken first and the rest is paid from the largest to
the largest, which takes at most k - 1 payments.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kernel.ids import ParticipantId
from settlement.domain.liquidity.model import Flow, Position, Queued

EXACT_MAX = 12
"""4,096 subsets: some milliseconds a currency."""


def net_positions(chosen: Iterable[Queued]) -> dict[Position, int]:
    """What each position gains (positive) or pays (negative); positions that come out even are left out."""
    found: defaultdict[Position, int] = defaultdict(int)
    for item in chosen:
        for flow in item.flows:
            found[flow.payer, flow.currency] -= flow.amount_minor
            found[flow.payee, flow.currency] += flow.amount_minor
    return {position: amount for position, amount in sorted(found.items()) if amount}


def net_flows(positions: Mapping[Position, int]) -> tuple[Flow, ...]:
    """Payments that make exactly these positions, by currency. Raises ValueError if a currency does not add up to 0."""
    by_currency: defaultdict[str, list[tuple[ParticipantId, int]]] = defaultdict(list)
    for (participant, currency), amount in sorted(positions.items()):
        if amount:
            by_currency[currency].append((participant, amount))
    flows: list[Flow] = []
    for currency, parties in sorted(by_currency.items()):
        if sum(amount for _, amount in parties) != 0:
            raise ValueError(f"the net positions in {currency} do not add up to nothing")
        groups = _groups(parties) if len(parties) <= EXACT_MAX else _pairs(parties)
        for group in groups:
            flows += _pay(group, currency)
    return tuple(flows)


def _groups(parties: Sequence[tuple[ParticipantId, int]]) -> list[list[tuple[ParticipantId, int]]]:
    """As many groups that cancel out as there can be. `most[s]`: the most that the subset s contains in one order of
    adding its members, of which a group ends wherever the sum is nothing."""
    count = len(parties)
    sums, most, last = [0] * (1 << count), [0] * (1 << count), [0] * (1 << count)
    for subset in range(1, 1 << count):
        low = subset & -subset
        sums[subset] = sums[subset ^ low] + parties[low.bit_length() - 1][1]
        best = -1
        for place in range(count):
            if subset >> place & 1 and most[subset ^ (1 << place)] > best:
                best, last[subset] = most[subset ^ (1 << place)], place
        most[subset] = best + (sums[subset] == 0)
    groups: list[list[tuple[ParticipantId, int]]] = []
    subset, members = (1 << count) - 1, list[int]()
    while subset:
        if sums[subset] == 0 and members:
            groups.append([parties[place] for place in sorted(members)])
            members = []
        members.append(last[subset])
        subset ^= 1 << last[subset]
    if members:
        groups.append([parties[place] for place in sorted(members)])
    return groups


def _pairs(parties: Sequence[tuple[ParticipantId, int]]) -> list[list[tuple[ParticipantId, int]]]:
    waiting: defaultdict[int, list[tuple[ParticipantId, int]]] = defaultdict(list)
    groups: list[list[tuple[ParticipantId, int]]] = []
    rest: list[tuple[ParticipantId, int]] = []
    for party in parties:
        if waiting[-party[1]]:
            groups.append([waiting[-party[1]].pop(0), party])
        else:
            waiting[party[1]].append(party)
    rest = sorted(party for found in waiting.values() for party in found)
    return [*groups, rest] if rest else groups


def _pay(group: Sequence[tuple[ParticipantId, int]], currency: str) -> list[Flow]:
    """Largest payer to largest payee: each payment ends one of the two, the last both."""
    paying = sorted(((-amount, payer) for payer, amount in group if amount < 0), key=lambda item: (-item[0], item[1]))
    paid = sorted(((amount, payee) for payee, amount in group if amount > 0), key=lambda item: (-item[0], item[1]))
    flows: list[Flow] = []
    while paying and paid:
        (owed, payer), (due, payee) = paying[0], paid[0]
        amount = min(owed, due)
        flows.append(Flow(payer, payee, currency, amount))
        paying[:1] = [(owed - amount, payer)] if owed > amount else []
        paid[:1] = [(due - amount, payee)] if due > amount else []
    return flows

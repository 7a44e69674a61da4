"""The queue settled one by one, where institutions have not agreed to net: who goes in which round.

An instruction in a round is held in full: what it brings its payers counts from the next round on, as on the ledgers.
So a ring that nobody can begin stays where it is; only netting frees it.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from settlement.domain.liquidity.model import Position, Snapshot
from settlement.domain.liquidity.problem import Problem

ROUNDS_MAX = 50


def rounds(snapshot: Snapshot) -> list[list[UUID]]:
    """Instructions to be released together, round after round, in queue order at every position.

    Limits are kept with what earlier rounds brought; a round's own receipts do not count yet.
    """
    problem = Problem(snapshot)
    balances: defaultdict[Position, int] = defaultdict(int, snapshot.balances)
    rooms = list(problem.rooms)
    waiting = list(range(len(problem)))
    found: list[list[UUID]] = []
    while waiting and len(found) < ROUNDS_MAX:
        blocked: set[int] = set()
        released: list[int] = []
        held: defaultdict[Position, int] = defaultdict(int)
        taken = list(rooms)
        for number in waiting:
            debits: defaultdict[Position, int] = defaultdict(int)
            for flow in snapshot.queue[number].flows:
                debits[flow.payer, flow.currency] += flow.amount_minor
            is_paid = all(held[position] + amount <= balances[position] for position, amount in debits.items())
            is_within = all(
                delta > 0 or problem.constraints[constraint].limit is None or taken[constraint] + delta >= 0
                for constraint, delta in problem.effects[number]
            )
            if not (is_paid and is_within and blocked.isdisjoint(problem.payers[number])):
                blocked.update(problem.payers[number])
                continue
            released.append(number)
            for position, amount in debits.items():
                held[position] += amount
            for constraint, delta in problem.effects[number]:
                taken[constraint] += min(delta, 0)
        if not released:
            break
        for number in released:
            for flow in snapshot.queue[number].flows:
                balances[flow.payer, flow.currency] -= flow.amount_minor
                balances[flow.payee, flow.currency] += flow.amount_minor
            for constraint, delta in problem.effects[number]:
                rooms[constraint] += delta
        gone = set(released)
        waiting = [number for number in waiting if number not in gone]
        found.append([problem.ids[number] for number in released])
    return found

"""A run over a queue: which instructions settle together, deterministic, never more than balances and limits allow.

1. gross: in queue order, whatever its payers can pay at its turn; again, until nothing moves;
2. offset: every two institutions' instructions against each other, in queue order;
3. gridlock: all institutions' at once: the largest set that keeps the queue's order, which includes 1 and 2;
4. overtaking, if allowed: as 2, but an instruction may pass one of the same priority to another institution. Between
   two institutions the order stands, and nothing passes a higher priority. Then 3 again, as long as something moves.

1 to 3 find exactly the largest set of settlement.domain.liquidity.problem (tested against brute force). What 4 adds can
never take from it: it comes after. But it uses money that an instruction at the head of a queue may be waiting to have
enough of, so a large one can wait long: known as FIFO by-passing in settlement systems, and the operator's choice here.
"""

from __future__ import annotations

from collections import defaultdict

from settlement.domain.liquidity.model import Outcome, Snapshot, Stage, Taken
from settlement.domain.liquidity.problem import Problem, largest_set, settle


def run(snapshot: Snapshot, *, may_overtake: bool = True) -> Outcome:
    """Which instructions settle, by stage. Raises ValueError as `Problem` does."""
    return solve(Problem(snapshot), may_overtake=may_overtake)


def gross_only(snapshot: Snapshot) -> Outcome:
    """First in, first out, each by itself: what happens without a run. For comparison."""
    state = _State(Problem(snapshot))
    state.gross()
    return state.outcome()


def solve(problem: Problem, *, may_overtake: bool) -> Outcome:
    state = _State(problem)
    state.gross()
    state.offset(may_overtake=False)
    state.gridlock()
    while may_overtake and state.offset(may_overtake=True):
        state.gridlock()
    return state.outcome()


class _State:
    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rooms = list(problem.rooms)
        self._waiting = dict.fromkeys(range(len(problem)))
        """In queue order; a dict, since a set has none."""
        self._taken: list[Taken] = []

    def outcome(self) -> Outcome:
        problem = self._problem
        left = tuple(problem.ids[number] for number in self._waiting)
        return Outcome(tuple(self._taken), left, problem.balances_after(self._rooms), problem.rooms_after(self._rooms))

    def _take(self, numbers: list[int], stage: Stage) -> bool:
        settle(self._problem, numbers, self._rooms)
        for number in numbers:
            del self._waiting[number]
            self._taken.append(Taken(self._problem.ids[number], stage))
        return bool(numbers)

    def gross(self) -> bool:
        """1. A position whose turn cannot be paid keeps its later instructions waiting."""
        moved = False
        while self._gross_once():
            moved = True
        return moved

    def _gross_once(self) -> bool:
        payers, effects, rooms = self._problem.payers, self._problem.effects, self._rooms
        blocked: set[int] = set()
        found: list[int] = []
        for number in self._waiting:
            is_paid = blocked.isdisjoint(payers[number]) and all(
                delta > 0 or rooms[constraint] + delta >= 0 for constraint, delta in effects[number]
            )
            if is_paid:
                found.append(number)
                settle(self._problem, [number], rooms)
            else:
                blocked.update(payers[number])
        for number in found:
            del self._waiting[number]
            self._taken.append(Taken(self._problem.ids[number], Stage.GROSS))
        return bool(found)

    def offset(self, *, may_overtake: bool) -> bool:
        """2 and 4. Pairs in the order of their first waiting instruction."""
        pairs: dict[frozenset[str], list[int]] = {}
        highest: dict[int, int] = {}
        for number in self._waiting:
            parties, priority = self._problem.parties[number], self._problem.priorities[number]
            # Every position is noted, whatever an earlier one says.
            is_highest = {highest.setdefault(one, priority) for one in self._problem.payers[number]} == {priority}
            if len(parties) == 2 and (is_highest or not may_overtake):
                pairs.setdefault(frozenset(parties), []).append(number)
        queues: defaultdict[int, list[int]] = defaultdict(list)
        if not may_overtake:
            for number in self._waiting:
                for position in self._problem.payers[number]:
                    queues[position].append(number)
        heads: defaultdict[int, int] = defaultdict(int)
        moved = False
        for members in pairs.values():
            if not may_overtake:
                members = self._in_front(members, queues, heads)
            if len(members) > 1 or may_overtake:
                stage = Stage.OVERTAKING if may_overtake else Stage.OFFSET
                moved = self._take(largest_set(self._problem, members, self._rooms), stage) or moved
        return moved

    def _in_front(
        self, members: list[int], queues: defaultdict[int, list[int]], heads: defaultdict[int, int]
    ) -> list[int]:
        """Those of the pair that have nothing but the pair's instructions before them in the queues they pay from."""
        found: set[int] = set()
        places: dict[int, int] = {}
        for number in members:
            is_in_front = True
            for position in self._problem.payers[number]:
                queue, place = queues[position], places.get(position, heads[position])
                while queue[place] not in self._waiting:
                    place += 1
                    heads[position] = place
                while queue[place] in found:
                    place += 1
                places[position] = place
                is_in_front = is_in_front and queue[place] == number
            if is_in_front:
                found.add(number)
        return sorted(found)

    def gridlock(self) -> bool:
        """3."""
        return self._take(largest_set(self._problem, self._waiting, self._rooms), Stage.GRIDLOCK)

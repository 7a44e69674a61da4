"""Balances and limits as constraints of one form, and the largest set of instructions that keeps them in queue order.

Each constraint belongs to one position and says: room + what the set adds - what it takes >= 0. A balance and the three
limits are all of this form, and only instructions that pay from the position take from it. Call a set *closed* when it
holds a first part of every position's queue. The union of two closed sets that keep every constraint is another one:
take at each position the longer part; it was paid for in its own set, and the other set only adds. Hence there is one
largest set. And whatever set contains it: where a constraint is broken, the last instruction that takes from it is not
in the largest set, and neither is what stands behind that instruction in any queue it pays from. So it is found by
giving up instructions until nothing is broken, in whatever order.

Source of the idea, for one currency: M. L. Bech, K. Soramaki, "Gridlock resolution in interbank payment systems",
Bank of Finland Discussion Papers 9/2001. Added here: instructions of several flows in several currencies that go whole
or not at all, and limits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from uuid import UUID

from kernel.ids import ParticipantId
from settlement.domain.liquidity.model import LimitKind, Position, Queued, Room, Snapshot


@dataclass(frozen=True, slots=True)
class Constraint:
    """`limit` is None for the balance of the position."""

    position: Position
    limit: Room | None


class Problem:
    """A snapshot, numbered: instructions by their place in the queue, positions and constraints by first use."""

    def __init__(self, snapshot: Snapshot) -> None:
        """Raises ValueError for an id twice, flows that are none, a negative balance, a limit twice."""
        self.ids: tuple[UUID, ...] = tuple(item.id for item in snapshot.queue)
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("an instruction is in the queue twice")
        if any(later.priority < item.priority for item, later in pairwise(snapshot.queue)):
            raise ValueError("the queue is not in the order of its priorities")
        if any(balance < 0 for balance in snapshot.balances.values()):
            raise ValueError("a balance is below zero")
        self.constraints: list[Constraint] = []
        self.rooms: list[int] = []
        """Of each constraint, before the run."""
        self.positions: list[Position] = []
        self.payers: list[tuple[int, ...]] = []
        """Of each instruction, the positions that pay in it."""
        self.effects: list[tuple[tuple[int, int], ...]] = []
        """Of each instruction, (constraint, what it adds), negative for what it takes."""
        self.parties: list[frozenset[ParticipantId]] = []
        self.priorities: list[int] = [item.priority for item in snapshot.queue]
        self._balances = snapshot.balances
        self._balance_numbers: dict[Position, int] = {}
        self._position_numbers: dict[Position, int] = {}
        self._towards: dict[tuple[ParticipantId, ParticipantId, str], tuple[int, ...]] = {}
        self._limits: dict[tuple[LimitKind, ParticipantId, str, ParticipantId | None], Room] = {}
        self._limit_numbers: dict[tuple[LimitKind, ParticipantId, str, ParticipantId | None], int] = {}
        for room in snapshot.rooms:
            key = (room.kind, room.participant, room.currency, room.counterparty)
            if key in self._limits or (room.kind is LimitKind.BILATERAL) != (room.counterparty is not None):
                raise ValueError(f"a limit twice, or a counterparty where none belongs: {room}")
            self._limits[key] = room
        for item in snapshot.queue:
            self._add(item)
        self.queues: list[list[int]] = [[] for _ in self.positions]
        """Of each position, the instructions that pay from it, in order."""
        for number, payers in enumerate(self.payers):
            for position in payers:
                self.queues[position].append(number)

    def __len__(self) -> int:
        return len(self.ids)

    def rooms_after(self, rooms: Sequence[int]) -> tuple[Room, ...]:
        """The snapshot's limits with these rooms; those that nothing touches as they were."""
        return tuple(
            replace(room, room_minor=rooms[number]) if (number := self._limit_numbers.get(key)) is not None else room
            for key, room in self._limits.items()
        )

    def balances_after(self, rooms: Sequence[int]) -> dict[Position, int]:
        found = dict(self._balances)
        found.update({position: rooms[number] for position, number in self._balance_numbers.items()})
        return found

    def _add(self, item: Queued) -> None:
        if not item.flows or any(flow.amount_minor <= 0 or flow.payer == flow.payee for flow in item.flows):
            raise ValueError(f"instruction {item.id}: no flows, nothing to pay, or a payer that pays itself")
        effects: defaultdict[int, int] = defaultdict(int)
        payers: dict[int, None] = {}
        for flow in item.flows:
            payers[self._position((flow.payer, flow.currency))] = None
            for constraint in self._touched(flow.payer, flow.payee, flow.currency):
                effects[constraint] -= flow.amount_minor
            for constraint in self._touched(flow.payee, flow.payer, flow.currency):
                effects[constraint] += flow.amount_minor
        self.payers.append(tuple(payers))
        self.effects.append(tuple((constraint, delta) for constraint, delta in effects.items() if delta))
        self.parties.append(frozenset(party for flow in item.flows for party in (flow.payer, flow.payee)))

    def _position(self, position: Position) -> int:
        number = self._position_numbers.get(position)
        if number is None:
            number = self._position_numbers[position] = len(self.positions)
            self.positions.append(position)
        return number

    def _touched(self, participant: ParticipantId, other: ParticipantId, currency: str) -> tuple[int, ...]:
        """The constraints of `participant` that money to or from `other` touches."""
        key = (participant, other, currency)
        found = self._towards.get(key)
        if found is None:
            position = (participant, currency)
            if position not in self._balance_numbers:
                self._balance_numbers[position] = self._constraint(position, None, self._balances.get(position, 0))
            bilateral = (LimitKind.BILATERAL, participant, currency, other)
            towards = bilateral if bilateral in self._limits else (LimitKind.MULTILATERAL, participant, currency, None)
            numbers = [self._balance_numbers[position]]
            for limit in (towards, (LimitKind.CAP, participant, currency, None)):
                if limit in self._limits:
                    if limit not in self._limit_numbers:
                        room = self._limits[limit]
                        self._limit_numbers[limit] = self._constraint(position, room, room.room_minor)
                    numbers.append(self._limit_numbers[limit])
            found = self._towards[key] = tuple(numbers)
        return found

    def _constraint(self, position: Position, limit: Room | None, room: int) -> int:
        self.constraints.append(Constraint(position, limit))
        self.rooms.append(room)
        return len(self.constraints) - 1


class Trimmed:
    """A closed set of instructions that shrinks until it keeps every constraint that is enforced.

    Cost: every instruction is given up at most once; a copy costs what is left.
    """

    def __init__(self, problem: Problem, members: Iterable[int], rooms: Sequence[int]) -> None:
        """`members` in queue order; queues are kept among them alone. `rooms`: of every constraint, before them."""
        self._problem = problem
        self.members: set[int] = set()
        self.slack: dict[int, int] = {}
        """Of the constraints that members touch: what is left with all of them settled."""
        self._queues: dict[int, list[int]] = {}
        self._takers: dict[int, list[int]] = {}
        effects, payers, slack = problem.effects, problem.payers, self.slack
        for member in members:
            self.members.add(member)
            for constraint, delta in effects[member]:
                slack[constraint] = (slack[constraint] if constraint in slack else rooms[constraint]) + delta
                if delta < 0:
                    self._takers.setdefault(constraint, []).append(member)
            for position in payers[member]:
                self._queues.setdefault(position, []).append(member)

    def copy(self) -> Trimmed:
        other = object.__new__(Trimmed)
        other._problem = self._problem
        other.members = set(self.members)
        other.slack = dict(self.slack)
        other._queues = {position: list(queue) for position, queue in self._queues.items() if queue}
        other._takers = {constraint: list(takers) for constraint, takers in self._takers.items() if takers}
        return other

    def enforce(self, relaxed: Collection[int] = ()) -> set[int]:
        """Give up what must be given up so that all constraints but the relaxed are kept; returns what was."""
        given_up: set[int] = set()
        broken = [number for number, slack in self.slack.items() if slack < 0 and number not in relaxed]
        self._repair(broken, given_up, relaxed)
        return given_up

    def lower(self, constraint: int, need: int) -> set[int]:
        """What must be given up when `constraint` gets one minor unit less than `need` more, and all others are kept.

        Call it on a set that keeps all others. Source of the smallest amounts: see `explain`.
        """
        given_up: set[int] = set()
        while self.slack[constraint] + need <= 0 and (last := self._last_taker(constraint)) is not None:
            broken: list[int] = []
            self._give_up(last, given_up, broken, (constraint,))
            self._repair(broken, given_up, (constraint,))
        return given_up

    def has_taker(self, constraint: int) -> bool:
        return self._last_taker(constraint) is not None

    def _repair(self, broken: list[int], given_up: set[int], relaxed: Collection[int]) -> None:
        while broken:
            constraint = broken.pop()
            while self.slack[constraint] < 0 and (last := self._last_taker(constraint)) is not None:
                self._give_up(last, given_up, broken, relaxed)

    def _give_up(self, first: int, given_up: set[int], broken: list[int], relaxed: Collection[int]) -> None:
        """Take `first` out, and everything behind it in the queues it pays from, and so on."""
        members, slack, queues = self.members, self.slack, self._queues
        waiting = [first]
        while waiting:
            number = waiting.pop()
            if number not in members:
                continue
            members.discard(number)
            given_up.add(number)
            for constraint, delta in self._problem.effects[number]:
                left = slack[constraint] = slack[constraint] - delta
                if left < 0 and delta > 0 and constraint not in relaxed:
                    broken.append(constraint)
            for position in self._problem.payers[number]:
                queue = queues[position]
                while queue and queue[-1] >= number:
                    behind = queue.pop()
                    if behind != number:
                        waiting.append(behind)

    def _last_taker(self, constraint: int) -> int | None:
        takers = self._takers.get(constraint)
        while takers:
            if takers[-1] in self.members:
                return takers[-1]
            takers.pop()
        return None


def largest_set(problem: Problem, members: Iterable[int], rooms: Sequence[int]) -> list[int]:
    """The largest closed set among `members` (in queue order) that keeps every constraint; in queue order."""
    trimmed = Trimmed(problem, members, rooms)
    trimmed.enforce()
    return sorted(trimmed.members)


def settle(problem: Problem, members: Iterable[int], rooms: list[int]) -> None:
    """Book `members` in `rooms`."""
    for member in members:
        for constraint, delta in problem.effects[member]:
            rooms[constraint] += delta

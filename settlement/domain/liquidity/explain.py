"""Why an instruction did not settle, and the smallest amount that would free it.

With more room for one constraint the largest set only grows. So for each instruction and constraint there is one
smallest amount, found for all instructions in one pass: give the constraint endless room, trim to all others, then
take room away and note when each instruction has to go (`Trimmed.lower`). That is one pass a constraint; they share
their work by halves (`_amounts`): what has to go while half of the constraints are relaxed has to go for each of them.

Where no single constraint frees an instruction, several are short at once: then `needs` has one amount for each, so
that none of them can be a minor unit smaller.

These amounts are of a run in queue order. Where overtaking is allowed they are enough, and less may do;
`why` looks for less and says whether no amount can be one smaller.

A sentence tells what participants have and how much room their limits leave: it is the operator's. Anybody else gets
what `seen_by` leaves of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from kernel.ids import ParticipantId
from kernel.money import Currency, format_minor
from settlement.domain.liquidity.gridlock import run
from settlement.domain.liquidity.model import (
    LimitKind,
    Need,
    NeedKind,
    Outcome,
    Position,
    Room,
    Snapshot,
)
from settlement.domain.liquidity.problem import Problem, Trimmed

SEVERAL_WORK_MAX = 200_000
"""Steps (instructions looked at) that one list may take for amounts at several positions, about a second; of the
instructions beyond it `why` is asked."""
NEEDS_SAID_MAX = 3
"""Amounts in a sentence; `needs` has them all."""
RUNS_MAX = 80
"""Runs that one question about one instruction may take where overtaking is allowed."""


@dataclass(frozen=True, slots=True)
class Why:
    """`needs` is empty where the run settles it, or where it was not worked out (`is_worked_out`)."""

    id: UUID
    sentence: str
    needs: tuple[Need, ...]
    is_worked_out: bool = True
    behind: int = 0
    """Earlier instructions that wait in the queues it pays from."""
    behind_of: tuple[tuple[ParticipantId, int], ...] = ()
    """The same by the participant whose queue it is."""


def seen_by(found: Why, viewer: ParticipantId) -> Why:
    """What of it a participant may read: its own lacks and queue. Of the others only that somebody lacks something.

    The words are made anew, so that nothing of the operator's sentence can slip through.
    """
    own = tuple(need for need in found.needs if need.participant == viewer)
    behind = sum(count for participant, count in found.behind_of if participant == viewer)
    sentences: list[str] = []
    if behind:
        sentences.append(f"{behind} earlier of the payments of {viewer} wait before it")
    if len(own) < len(found.needs):
        sentences.append("it waits for liquidity of another participant")
    if own:
        start = "it settles, with all before it, when" if len(own) == len(found.needs) else "it takes too that"
        sentences.append(f"{start} {_wanted_all(own)}")
    if not found.needs:
        sentences.append("it waits for liquidity, and what it lacks was not worked out")
    return Why(found.id, _sentence(sentences), own, found.is_worked_out, behind)


def own_side(settlement: UUID, found: Why | None, viewer: ParticipantId) -> Why:
    """The answer to a participant of what was worked out as if all others could pay (None: nothing is lacking)."""
    others = "whether the others can pay is not shown"
    if found is None:
        return Why(settlement, _sentence([f"nothing is lacking on the side of {viewer}; {others}"]), ())
    seen = seen_by(found, viewer)
    return replace(seen, sentence=_sentence([seen.sentence[:-1], others]))


def waiting_after(snapshot: Snapshot, outcome: Outcome) -> Snapshot:
    """What is queued, and what everybody has, once the run's instructions have settled."""
    left = set(outcome.left)
    queue = tuple(item for item in snapshot.queue if item.id in left)
    return Snapshot(queue, outcome.balances, outcome.rooms)


def explain(snapshot: Snapshot, *, work_max: int = SEVERAL_WORK_MAX) -> list[Why]:
    """Why each instruction of the queue waits, in queue order. `snapshot` as `waiting_after` gives it."""
    problem = Problem(snapshot)
    best = _single_amounts(problem)
    found: list[Why] = []
    left = work_max
    for number in range(len(problem)):
        is_worked_out = True
        needs: dict[int, int] = {}
        if number in best:
            constraint, amount = best[number]
            needs = {constraint: amount}
        elif left > 0:
            short = _short_closure(problem, number)
            left -= len(problem) * (1 + len(short))
            needs = _several_amounts(problem, number, short) if left >= 0 else {}
            is_worked_out = left >= 0
        else:
            is_worked_out = False
        found.append(_why(problem, number, needs, is_worked_out=is_worked_out))
    return found


def why(snapshot: Snapshot, instruction: UUID, *, may_overtake: bool) -> Why | None:
    """Of one instruction, all worked out; None if a run would settle it as things are, or it is not queued."""
    waiting = waiting_after(snapshot, run(snapshot, may_overtake=may_overtake))
    problem = Problem(waiting)
    if instruction not in problem.ids:
        return None
    number = problem.ids.index(instruction)
    single = _single_amounts(problem).get(number)
    if single is not None:
        needs = {single[0]: single[1]}
    else:
        needs = _several_amounts(problem, number, _short_closure(problem, number))
    is_smallest = True
    if may_overtake:
        needs, is_smallest = _with_overtaking(waiting, problem, number, needs)
    return _why(problem, number, needs, is_worked_out=is_smallest)


def with_needs(snapshot: Snapshot, needs: Iterable[Need]) -> Snapshot:
    """The snapshot with so much more money and room."""
    balances: dict[Position, int] = dict(snapshot.balances)
    rooms = list(snapshot.rooms)
    for need in needs:
        if need.kind is NeedKind.LIQUIDITY:
            position = (need.participant, need.currency)
            balances[position] = balances.get(position, 0) + need.amount_minor
        else:
            wanted = (need.kind.value, need.participant, need.currency, need.counterparty)
            rooms = [
                replace(room, room_minor=room.room_minor + need.amount_minor) if _key(room) == wanted else room
                for room in rooms
            ]
    return Snapshot(snapshot.queue, balances, tuple(rooms))


# --- amounts


def _single_amounts(problem: Problem) -> dict[int, tuple[int, int]]:
    """Of each instruction that one constraint alone can free: (constraint, smallest amount), the smallest of all."""
    best: dict[int, tuple[int, int]] = {}
    everything = Trimmed(problem, range(len(problem)), problem.rooms)
    constraints = [number for number in range(len(problem.constraints)) if everything.has_taker(number)]
    _amounts(everything, constraints, best)
    return best


def _amounts(state: Trimmed, relaxed: Sequence[int], best: dict[int, tuple[int, int]]) -> None:
    """`state` keeps all constraints but `relaxed`; it is used up."""
    if not state.members:
        return
    if len(relaxed) == 1:
        _chain(state, relaxed[0], best)
        return
    middle = len(relaxed) // 2
    for half in (relaxed[:middle], relaxed[middle:]):
        smaller = state.copy()
        smaller.enforce(frozenset(half))
        _amounts(smaller, half, best)


def _chain(state: Trimmed, constraint: int, best: dict[int, tuple[int, int]]) -> None:
    while state.members and state.has_taker(constraint) and (need := -state.slack[constraint]) > 0:
        for number in state.lower(constraint, need):
            known = best.get(number)
            if known is None or (need, constraint) < (known[1], known[0]):
                best[number] = (constraint, need)


def _short_closure(problem: Problem, number: int) -> dict[int, int]:
    """What the instruction and all that has to go before it lack, by constraint: enough, though less may do."""
    closure = Trimmed(problem, _closure(problem, number), problem.rooms)
    short = {constraint: -slack for constraint, slack in closure.slack.items() if slack < 0}
    return {constraint: need for constraint, need in short.items() if closure.has_taker(constraint)}


def _several_amounts(problem: Problem, number: int, enough: Mapping[int, int]) -> dict[int, int]:
    """Amounts by constraint, none of which can be smaller with the others as they are."""
    needs = dict(enough)
    for constraint in sorted(needs):
        rooms = list(problem.rooms)
        for other, need in needs.items():
            rooms[other] += need if other != constraint else 0
        state = Trimmed(problem, range(len(problem)), rooms)
        state.enforce((constraint,))
        needed = 0
        while number in state.members and state.has_taker(constraint) and state.slack[constraint] < 0:
            needed = -state.slack[constraint]
            state.lower(constraint, needed)
        needs[constraint] = 0 if number in state.members else needed
    return {constraint: need for constraint, need in needs.items() if need}


def _closure(problem: Problem, number: int) -> list[int]:
    """The instruction, all that is before it in the queues it pays from, and so on; in queue order."""
    found: set[int] = set()
    reached: dict[int, int] = {}
    waiting = [number]
    while waiting:
        item = waiting.pop()
        if item in found:
            continue
        found.add(item)
        for position in problem.payers[item]:
            queue, place = problem.queues[position], reached.get(position, 0)
            while place < len(queue) and queue[place] < item:
                waiting.append(queue[place])
                place += 1
            reached[position] = place
    return sorted(found)


def _with_overtaking(
    waiting: Snapshot, problem: Problem, number: int, needs: Mapping[int, int]
) -> tuple[dict[int, int], bool]:
    """Amounts that free the instruction in a run with overtaking, each checked with a minor unit less.

    More money can make such a run choose otherwise, so there is no order in which to search; what is returned frees it
    for sure, and the flag says that no amount of it can be one smaller.
    """
    left = RUNS_MAX
    instruction = problem.ids[number]

    def is_free(amounts: Mapping[int, int]) -> bool:
        nonlocal left
        left -= 1
        more = with_needs(waiting, _needs(problem, amounts))
        return any(taken.id == instruction for taken in run(more, may_overtake=True).taken)

    def is_smallest(amounts: Mapping[int, int]) -> bool:
        less = ({**amounts, constraint: amount - 1} for constraint, amount in amounts.items())
        return not any(is_free(candidate) for candidate in less)

    # First guess: what its two institutions lack for it among their own instructions alone.
    pair = [item for item in range(len(problem)) if problem.parties[item] == problem.parties[number]]
    local = Problem(Snapshot(tuple(waiting.queue[item] for item in pair), waiting.balances, waiting.rooms))
    place = pair.index(number)
    guesses = [_translated(local, problem, _several_amounts(local, place, _short_closure(local, place)))]
    if (single := _single_amounts(local).get(place)) is not None:
        guesses.append(_translated(local, problem, {single[0]: single[1]}))
    best = dict(needs)
    for guess in guesses:
        if len(problem.parties[number]) == 2 and sum(guess.values()) < sum(best.values()) and is_free(guess):
            best = guess
    for constraint in list(best):
        low, high = -1, best[constraint]
        if not is_free({**best, constraint: high - 1}):
            continue
        while high - low > 1 and left > len(best):
            middle = (low + high) // 2
            if is_free({**best, constraint: middle}):
                high = middle
            else:
                low = middle
        best[constraint] = high
    best = {constraint: amount for constraint, amount in best.items() if amount}
    return best, left >= len(best) and is_smallest(best)


def _translated(local: Problem, problem: Problem, amounts: Mapping[int, int]) -> dict[int, int]:
    numbers = {constraint: number for number, constraint in enumerate(problem.constraints)}
    return {numbers[local.constraints[constraint]]: amount for constraint, amount in amounts.items()}


# --- words


def _why(problem: Problem, number: int, amounts: Mapping[int, int], *, is_worked_out: bool) -> Why:
    needs = _needs(problem, amounts)
    ahead = {
        position: [item for item in problem.queues[position] if item < number] for position in problem.payers[number]
    }
    behind = len({item for items in ahead.values() for item in items})
    queues: dict[ParticipantId, set[int]] = {}
    for position, items in ahead.items():
        queues.setdefault(problem.positions[position][0], set()).update(items)
    parts = [_short(problem, constraint, delta) for constraint, delta in problem.effects[number] if delta < 0]
    sentences = [part for part in parts if part]
    if behind:
        first = max(ahead.items(), key=lambda entry: len(entry[1]))[0]
        participant, currency = problem.positions[first]
        sentences.append(f"{behind} earlier of its payers wait before it, most of {participant} in {currency}")
    if not sentences:
        sentences.append("what it needs is used by instructions before it")
    if needs:
        sentences.append(f"it settles, with all before it, when {_wanted_all(needs)}")
    behind_of = tuple((participant, len(items)) for participant, items in queues.items() if items)
    return Why(problem.ids[number], _sentence(sentences), needs, is_worked_out, behind, behind_of)


def _sentence(parts: Sequence[str]) -> str:
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _short(problem: Problem, constraint: int, delta: int) -> str:
    found = problem.constraints[constraint]
    participant, currency = found.position
    room, shown = problem.rooms[constraint], _shown(-delta, currency)
    if room + delta >= 0:
        return ""
    if found.limit is None:
        return f"{participant} pays {shown} {currency} and has {_shown(room, currency)}"
    limit = _limit_name(found.limit)
    return f"{participant} pays {shown} {currency} and its {limit} leaves {_shown(max(0, room), currency)}"


def _wanted_all(needs: Sequence[Need]) -> str:
    wanted = " and ".join(_wanted(need) for need in needs[:NEEDS_SAID_MAX])
    return wanted + (f" and {len(needs) - NEEDS_SAID_MAX} more of its kind" if len(needs) > NEEDS_SAID_MAX else "")


def _wanted(need: Need) -> str:
    amount = f"{_shown(need.amount_minor, need.currency)} {need.currency}"
    if need.kind is NeedKind.LIQUIDITY:
        return f"{need.participant} has {amount} more"
    towards = f" towards {need.counterparty}" if need.counterparty else ""
    return f"the {need.kind.value} limit of {need.participant}{towards} is {amount} higher"


def _limit_name(room: Room) -> str:
    return f"bilateral limit towards {room.counterparty}" if room.kind is LimitKind.BILATERAL else f"{room.kind} limit"


def _shown(amount: int, currency: str) -> str:
    return format_minor(amount, Currency.of(currency))


def _needs(problem: Problem, amounts: Mapping[int, int]) -> tuple[Need, ...]:
    found: list[Need] = []
    for number in sorted(amounts):
        constraint = problem.constraints[number]
        participant, currency = constraint.position
        limit = constraint.limit
        kind = NeedKind.LIQUIDITY if limit is None else NeedKind(limit.kind.value)
        counterparty = None if limit is None else limit.counterparty
        found.append(Need(kind, participant, currency, amounts[number], counterparty))
    return tuple(found)


def _key(room: Room) -> tuple[str, str, str, str | None]:
    return (room.kind.value, room.participant, room.currency, room.counterparty)

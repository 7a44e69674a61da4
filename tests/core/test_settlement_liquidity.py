"""Goal: a run settles exactly the largest set that keeps the queue's order, balances and limits; and says exactly what
would have freed the rest.
Method: hundreds of small random queues of one to three flows in up to three currencies, with limits, against brute
force over all subsets written from the definition alone; amounts checked by running again with them and with one less.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from settlement.domain.liquidity.explain import Why, explain, seen_by, waiting_after, why, with_needs
from settlement.domain.liquidity.gridlock import gross_only, run
from settlement.domain.liquidity.model import (
    Flow,
    LimitKind,
    Need,
    NeedKind,
    Outcome,
    Queued,
    Room,
    Snapshot,
    Stage,
)

A, B, C, D = (ParticipantId(code) for code in ("AAAACNBJ", "BBBBAEAD", "CCCCHKHH", "DDDDTHBK"))
BANKS = (A, B, C, D)
CURRENCIES = ("CNY", "AED", "HKD")


def flow(payer: ParticipantId, payee: ParticipantId, amount: int, currency: str = "CNY") -> Flow:
    return Flow(payer, payee, currency, amount)


def queued(number: int, *flows: Flow) -> Queued:
    return Queued(UUID(int=number), flows)


def small_case(seed: int, *, size: int = 7) -> Snapshot:
    """Tight enough that runs are neither empty nor everything; amounts so small that equalities happen."""
    dice = random.Random(seed)
    queue = []
    served = CURRENCIES[: dice.randint(1, 3)]
    for number in range(dice.randint(2, size)):
        payer, payee, third = dice.sample(BANKS[: dice.randint(3, 4)], 3)
        flows = [flow(payer, payee, dice.randint(1, 9), dice.choice(served))]
        if dice.random() < 0.4:
            flows.append(flow(payee, payer, dice.randint(1, 9), dice.choice(served)))
            if dice.random() < 0.3:
                flows.append(flow(third, payer, dice.randint(1, 9), dice.choice(served)))
        queue.append(queued(number, *flows))
    wealth = dice.choice(((0, 0, 1, 3, 6), (0, 2, 5, 9), (0, 0, 0, 2)))
    balances = {(bank, currency): dice.choice(wealth) for bank in BANKS for currency in CURRENCIES}
    rooms: dict[tuple[object, ...], Room] = {}
    for _ in range(dice.choice((0, 0, 2, 5))):
        kind = dice.choice(list(LimitKind))
        bank, other = dice.sample(BANKS, 2)
        towards = other if kind is LimitKind.BILATERAL else None
        room = Room(kind, bank, dice.choice(CURRENCIES), towards, dice.choice((-2, 0, 2, 5, 8)))
        rooms[room.kind, room.participant, room.currency, room.counterparty] = room
    return Snapshot(tuple(queue), balances, tuple(rooms.values()))


# --- the definition, written out


def is_closed(snapshot: Snapshot, chosen: frozenset[int]) -> bool:
    """Nothing is chosen while an earlier instruction that pays from one of the same positions is not."""
    for later in chosen:
        pays = {(item.payer, item.currency) for item in snapshot.queue[later].flows}
        for earlier in range(later):
            before = {(item.payer, item.currency) for item in snapshot.queue[earlier].flows}
            if earlier not in chosen and pays & before:
                return False
    return True


def is_kept(snapshot: Snapshot, chosen: frozenset[int]) -> bool:
    """No position below zero and no limit passed, unless nothing chosen takes from it."""
    flows = [(number, item) for number in chosen for item in snapshot.queue[number].flows]
    own_towards = {
        (room.participant, room.currency, room.counterparty)
        for room in snapshot.rooms
        if room.kind is LimitKind.BILATERAL
    }

    def net(participant: str, currency: str, counts: object) -> tuple[int, bool]:
        """What the chosen bring in sum, and whether one of them takes something (its own sum is below zero)."""
        by_instruction: dict[int, int] = {}
        for number, item in flows:
            if item.currency != currency:
                continue
            if item.payer == participant and counts(item.payee):  # type: ignore[operator]
                by_instruction[number] = by_instruction.get(number, 0) - item.amount_minor
            elif item.payee == participant and counts(item.payer):  # type: ignore[operator]
                by_instruction[number] = by_instruction.get(number, 0) + item.amount_minor
        return sum(by_instruction.values()), any(value < 0 for value in by_instruction.values())

    for bank in BANKS:
        for currency in CURRENCIES:
            brought, _ = net(bank, currency, lambda other: True)
            if snapshot.balances.get((bank, currency), 0) + brought < 0:
                return False
    for room in snapshot.rooms:

        def counts(other: str, room: Room = room) -> bool:
            if room.kind is LimitKind.BILATERAL:
                return other == room.counterparty
            return room.kind is LimitKind.CAP or (room.participant, room.currency, other) not in own_towards

        brought, takes = net(room.participant, room.currency, counts)
        if takes and room.room_minor + brought < 0:
            return False
    return True


def brute_force(snapshot: Snapshot) -> frozenset[int]:
    """The largest closed set that is kept; it must hold every other one, or the promise of uniqueness is wrong."""
    numbers = range(len(snapshot.queue))
    good = [
        frozenset(chosen)
        for size in range(len(snapshot.queue) + 1)
        for chosen in combinations(numbers, size)
        if is_closed(snapshot, frozenset(chosen)) and is_kept(snapshot, frozenset(chosen))
    ]
    largest = max(good, key=len)
    assert all(other <= largest for other in good)
    return largest


def numbers_of(outcome: Outcome) -> frozenset[int]:
    return frozenset(taken.id.int for taken in outcome.taken)


# --- exactness


def test_a_run_in_queue_order_finds_exactly_the_largest_set() -> None:
    sizes = []
    for seed in range(600):
        snapshot = small_case(seed)
        outcome = run(snapshot, may_overtake=False)
        assert numbers_of(outcome) == brute_force(snapshot), seed
        sizes.append((len(outcome.taken), len(snapshot.queue), len(gross_only(snapshot).taken)))
    # The cases are worth something: some settle nothing, some all, and netting often finds more than turn by turn.
    assert any(taken == 0 for taken, _, _ in sizes) and any(taken == queue for taken, queue, _ in sizes)
    assert sum(taken > gross for taken, _, gross in sizes) >= 30


def test_overtaking_only_adds_and_keeps_balances_and_limits_and_the_order_between_two() -> None:
    added = 0
    for seed in range(400):
        snapshot = small_case(seed, size=9)
        strict, free = run(snapshot, may_overtake=False), run(snapshot)
        assert numbers_of(strict) <= numbers_of(free)
        assert is_kept(snapshot, numbers_of(free)), seed
        added += len(free.taken) - len(strict.taken)
        chosen = numbers_of(free)
        for later in chosen:
            one = snapshot.queue[later]
            for earlier in range(later):
                other = snapshot.queue[earlier]
                same_pair = {f.payer for f in one.flows} | {f.payee for f in one.flows} == {
                    f.payer for f in other.flows
                } | {f.payee for f in other.flows}
                pays = {(f.payer, f.currency) for f in one.flows} & {(f.payer, f.currency) for f in other.flows}
                assert earlier in chosen or not (same_pair and pays), seed
    assert added > 20


def test_the_outcome_says_what_everybody_has_afterwards() -> None:
    for seed in range(50):
        snapshot = small_case(seed)
        outcome = run(snapshot)
        expected = dict(snapshot.balances)
        for number in numbers_of(outcome):
            for item in snapshot.queue[number].flows:
                payer, payee = (item.payer, item.currency), (item.payee, item.currency)
                expected[payer] -= item.amount_minor
                expected[payee] += item.amount_minor
        assert outcome.balances == expected
        assert {taken.id for taken in outcome.taken} | set(outcome.left) == {item.id for item in snapshot.queue}


# --- stages by example


def test_a_ring_that_nobody_can_begin_settles_at_once() -> None:
    ring = Snapshot(
        (queued(1, flow(A, B, 10)), queued(2, flow(B, C, 10)), queued(3, flow(C, A, 10))),
        {},
    )
    assert gross_only(ring).taken == ()
    assert [taken.stage for taken in run(ring).taken] == [Stage.GRIDLOCK] * 3


def test_two_that_owe_each_other_are_offset_and_a_linked_flow_goes_along_or_stops_both() -> None:
    pvp = queued(1, flow(A, B, 100), flow(B, A, 50, "AED"))
    back = queued(2, flow(B, A, 100))
    with_money = Snapshot((pvp, back), {(B, "AED"): 50})
    assert [taken.stage for taken in run(with_money).taken] == [Stage.OFFSET] * 2
    assert run(Snapshot((pvp, back), {(B, "AED"): 49})).taken == ()


def test_overtaking_passes_only_what_goes_to_somebody_else() -> None:
    snapshot = Snapshot((queued(1, flow(A, C, 100)), queued(2, flow(A, B, 10)), queued(3, flow(B, A, 10))), {})
    assert run(snapshot, may_overtake=False).taken == ()
    assert [taken.stage for taken in run(snapshot).taken] == [Stage.OVERTAKING] * 2
    to_the_same = Snapshot((queued(1, flow(A, B, 100)), *snapshot.queue[1:]), {})
    assert run(to_the_same).taken == ()


def test_nothing_overtakes_a_higher_priority() -> None:
    urgent, normal = queued(1, flow(A, C, 100)), replace(queued(2, flow(A, B, 10)), priority=1)
    assert run(Snapshot((urgent, normal), {(A, "CNY"): 50})).taken == ()
    same = replace(urgent, priority=1)
    assert [taken.id.int for taken in run(Snapshot((same, normal), {(A, "CNY"): 50})).taken] == [2]
    with pytest.raises(ValueError, match="priorities"):
        run(Snapshot((normal, urgent), {}))


@pytest.mark.parametrize(
    ("room", "settles"),
    [
        (Room(LimitKind.BILATERAL, A, "CNY", B, 10), True),
        (Room(LimitKind.BILATERAL, A, "CNY", B, 9), False),
        (Room(LimitKind.BILATERAL, A, "CNY", C, 0), True),
        (Room(LimitKind.BILATERAL, A, "AED", B, 0), True),
        (Room(LimitKind.MULTILATERAL, A, "CNY", None, 9), False),
        (Room(LimitKind.CAP, A, "CNY", None, 9), False),
        (Room(LimitKind.CAP, A, "CNY", None, 10), True),
        (Room(LimitKind.CAP, B, "CNY", None, -5), True),
    ],
)
def test_a_limit_holds_to_the_minor_unit(room: Room, settles: bool) -> None:
    snapshot = Snapshot((queued(1, flow(A, B, 10)),), {(A, "CNY"): 100}, (room,))
    assert bool(run(snapshot).taken) is settles


def test_a_multilateral_limit_does_not_count_those_with_a_limit_of_their_own() -> None:
    rooms = (Room(LimitKind.MULTILATERAL, A, "CNY", None, 5), Room(LimitKind.BILATERAL, A, "CNY", B, 50))
    snapshot = Snapshot((queued(1, flow(A, B, 50)), queued(2, flow(A, C, 5))), {(A, "CNY"): 100}, rooms)
    assert len(run(snapshot).taken) == 2


def test_the_same_snapshot_gives_the_same_run() -> None:
    for seed in range(30):
        assert run(small_case(seed, size=12)) == run(small_case(seed, size=12))


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot((queued(1, flow(A, B, 1)), queued(1, flow(A, B, 1))), {}),
        Snapshot((queued(1),), {}),
        Snapshot((queued(1, flow(A, B, 0)),), {}),
        Snapshot((queued(1, flow(A, A, 1)),), {}),
        Snapshot((), {(A, "CNY"): -1}),
        Snapshot((), {}, (Room(LimitKind.BILATERAL, A, "CNY", None, 1),)),
        Snapshot((), {}, (Room(LimitKind.CAP, A, "CNY", B, 1),)),
        Snapshot((), {}, (Room(LimitKind.CAP, A, "CNY", None, 1), Room(LimitKind.CAP, A, "CNY", None, 2))),
    ],
)
def test_a_snapshot_that_cannot_be_is_refused(snapshot: Snapshot) -> None:
    with pytest.raises(ValueError):
        run(snapshot)


# --- why, and what would free it


def one_less(needs: tuple[Need, ...]) -> Iterator[tuple[Need, ...]]:
    for place, need in enumerate(needs):
        yield (*needs[:place], replace(need, amount_minor=need.amount_minor - 1), *needs[place + 1 :])


def frees(snapshot: Snapshot, needs: tuple[Need, ...], instruction: UUID, *, may_overtake: bool) -> bool:
    outcome = run(with_needs(snapshot, needs), may_overtake=may_overtake)
    return instruction in {taken.id for taken in outcome.taken}


def test_every_waiting_instruction_is_freed_by_exactly_what_is_said_and_not_by_one_less() -> None:
    kinds: set[NeedKind] = set()
    several = 0
    for seed in range(250):
        snapshot = small_case(seed)
        outcome = run(snapshot, may_overtake=False)
        found = explain(waiting_after(snapshot, outcome))
        assert [item.id for item in found] == list(outcome.left)
        for item in found:
            assert item.needs and item.is_worked_out, (seed, item)
            # Said of what is left after the run; it is as true of the run itself.
            for base in (snapshot, waiting_after(snapshot, outcome)):
                assert frees(base, item.needs, item.id, may_overtake=False), (seed, item)
                for less in one_less(item.needs):
                    assert not frees(base, less, item.id, may_overtake=False), (seed, item)
            kinds |= {need.kind for need in item.needs}
            several += len(item.needs) > 1
    assert kinds == set(NeedKind) and several > 20


def test_one_amount_is_the_smallest_of_all_single_amounts() -> None:
    checked = 0
    for seed in range(120):
        snapshot = small_case(seed, size=5)
        waiting = waiting_after(snapshot, run(snapshot, may_overtake=False))
        for item in explain(waiting):
            if len(item.needs) != 1:
                continue
            checked += 1
            for bank in BANKS:
                for currency in CURRENCIES:
                    other = Need(NeedKind.LIQUIDITY, bank, currency, item.needs[0].amount_minor - 1)
                    assert not frees(waiting, (other,), item.id, may_overtake=False), (seed, item)
    assert checked > 60


def test_why_of_one_holds_with_overtaking_too() -> None:
    checked = 0
    for seed in range(120):
        snapshot = small_case(seed)
        for instruction in run(snapshot).left:
            item = why(snapshot, instruction, may_overtake=True)
            assert item is not None and item.needs
            assert frees(waiting_after(snapshot, run(snapshot)), item.needs, instruction, may_overtake=True), seed
            if item.is_worked_out:
                checked += 1
                for less in one_less(item.needs):
                    base = waiting_after(snapshot, run(snapshot))
                    assert not frees(base, less, instruction, may_overtake=True), (seed, item)
    assert checked > 100


def test_what_a_participant_reads_of_it_names_nobody_else_and_keeps_its_own_needs() -> None:
    cut = 0
    for seed in range(120):
        snapshot = small_case(seed)
        for item in explain(waiting_after(snapshot, run(snapshot, may_overtake=False))):
            for viewer in BANKS:
                seen = seen_by(item, viewer)
                assert seen.needs == tuple(need for need in item.needs if need.participant == viewer)
                assert seen.behind <= item.behind
                towards = {need.counterparty for need in seen.needs}
                named = {bank for bank in BANKS if bank in seen.sentence}
                assert named <= {viewer, *towards}, (seed, seen)
                if not seen.needs and not seen.behind:
                    cut += 1
                    assert seen.sentence == "It waits for liquidity of another participant."
    assert cut > 100


def test_why_says_it_in_words() -> None:
    snapshot = Snapshot((queued(1, flow(A, B, 1_000)), queued(2, flow(A, C, 50))), {(A, "CNY"): 400})
    first, second = explain(snapshot)
    assert first.sentence == (
        "AAAACNBJ pays 10.00 CNY and has 4.00; it settles, with all before it, when AAAACNBJ has 6.00 CNY more."
    )
    assert second.needs == (Need(NeedKind.LIQUIDITY, A, "CNY", 650),)
    assert (first.behind, second.behind) == (0, 1) and "1 earlier" in second.sentence
    capped = Snapshot(snapshot.queue[:1], {(A, "CNY"): 1_000}, (Room(LimitKind.CAP, A, "CNY", None, 0),))
    (item,) = explain(capped)
    assert item.needs == (Need(NeedKind.CAP, A, "CNY", 1_000),)
    assert "cap limit of AAAACNBJ is 10.00 CNY higher" in item.sentence
    assert why(Snapshot(snapshot.queue, {(A, "CNY"): 9_999}), UUID(int=1), may_overtake=True) is None


def test_a_long_list_leaves_the_costly_amounts_to_the_question_about_one() -> None:
    both_short = [queued(n, flow(A, B, 10), flow(B, A, 10, "AED")) for n in range(4)]
    found = explain(Snapshot(tuple(both_short), {}), work_max=13)
    assert [item.is_worked_out for item in found] == [True, False, False, False]
    asked = why(Snapshot(tuple(both_short), {}), UUID(int=3), may_overtake=False)
    assert isinstance(asked, Why) and [need.amount_minor for need in asked.needs] == [40, 40]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_more_money_never_settles_less_in_queue_order(seed: int) -> None:
    snapshot = small_case(seed, size=10)
    more = {position: balance + seed % 4 for position, balance in snapshot.balances.items()}
    richer = run(Snapshot(snapshot.queue, more, snapshot.rooms), may_overtake=False)
    assert numbers_of(run(snapshot, may_overtake=False)) <= numbers_of(richer)

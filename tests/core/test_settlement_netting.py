"""Goal: what a run chose is paid by few net payments that add up to it; gross rounds can be held one after another; the
optimum is one; and the checker finds every fault that is planted.
Method: random cases against brute force; each fault planted alone in a run that passes; the checker's imports are read.
"""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from kernel.ids import ParticipantId
from settlement.domain import netting_check
from settlement.domain.liquidity.gross import rounds
from settlement.domain.liquidity.limits import Limit, in_force, rooms
from settlement.domain.liquidity.model import Flow, LimitKind, Queued, Room, Snapshot
from settlement.domain.liquidity.netting import EXACT_MAX, net_flows, net_positions
from settlement.domain.liquidity.optimise import SECONDS_MAX, optimise
from settlement.domain.liquidity.picture import positions_svg
from settlement.domain.netting_check import find_faults

BANKS = tuple(ParticipantId(f"{letter * 4}CNBJ") for letter in "ABCDEFGHIJKLMNOPQRST")
A, B, C = BANKS[:3]


def positions(*amounts: int) -> dict[tuple[ParticipantId, str], int]:
    return {(BANKS[place], "CNY"): amount for place, amount in enumerate(amounts)}


# --- netting


def groups_max(amounts: list[int]) -> int:
    """The most groups that cancel out, by trying every first group."""
    if not amounts:
        return 0
    best = 1
    for size in range(1, len(amounts)):
        for chosen in combinations(range(1, len(amounts)), size - 1):
            group = [amounts[0], *(amounts[place] for place in chosen)]
            if sum(group) == 0:
                rest = [amount for place, amount in enumerate(amounts) if place and place not in chosen]
                best = max(best, 1 + groups_max(rest))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_net_payments_are_the_fewest_there_can_be(seed: int) -> None:
    dice = random.Random(seed)
    amounts = [dice.choice((-5, -3, -2, -1, 1, 2, 3, 4)) for _ in range(dice.randint(1, 6))]
    if sum(amounts):
        amounts.append(-sum(amounts))
    flows = net_flows(positions(*amounts))
    assert net_positions([Queued(UUID(int=1), flows)]) == positions(*amounts) if flows else not any(amounts)
    assert len(flows) == len(amounts) - groups_max(amounts)


def test_many_participants_take_at_most_one_payment_less_and_pairs_cancel_out() -> None:
    dice = random.Random(7)
    amounts = [dice.randint(1, 10**12) for _ in range(EXACT_MAX)]
    paired = [amount for number in amounts[:5] for amount in (number, -number)]
    rest = [*amounts[5:], -sum(amounts[5:])]
    flows = net_flows(positions(*paired, *rest))
    assert len(flows) == 5 + len(rest) - 1
    assert net_positions([Queued(UUID(int=1), flows)]) == positions(*paired, *rest)


def test_net_positions_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match="add up"):
        net_flows(positions(1, 1))


# --- gross rounds


def test_every_round_can_be_held_with_what_earlier_rounds_left() -> None:
    released = 0
    for seed in range(150):
        dice = random.Random(seed)
        queue = []
        for number in range(dice.randint(3, 12)):
            payer, payee = dice.sample(BANKS[:4], 2)
            flows = [Flow(payer, payee, "CNY", dice.randint(1, 9))]
            if dice.random() < 0.4:
                flows.append(Flow(payee, payer, "AED", dice.randint(1, 9)))
            queue.append(Queued(UUID(int=number), tuple(flows)))
        balances = {(bank, currency): dice.randint(0, 12) for bank in BANKS[:4] for currency in ("CNY", "AED")}
        cap = Room(LimitKind.CAP, BANKS[0], "CNY", None, 10)
        found = rounds(Snapshot(tuple(queue), balances, (cap,)))
        by_id = {item.id: item for item in queue}
        have, paid = defaultdict(int, balances), 0
        for keys in found:
            incoming: defaultdict[tuple[str, str], int] = defaultdict(int)
            for key in keys:
                for flow in by_id[key].flows:
                    have[flow.payer, flow.currency] -= flow.amount_minor
                    assert have[flow.payer, flow.currency] >= 0, seed
                    incoming[flow.payee, flow.currency] += flow.amount_minor
                    paid += (
                        flow.amount_minor
                        * ((flow.payer == BANKS[0]) - (flow.payee == BANKS[0]))
                        * (flow.currency == "CNY")
                    )
            for position, amount in incoming.items():
                have[position] += amount  # type: ignore[index]
            assert paid <= 10
        order = [key for keys in found for key in keys]
        assert len(set(order)) == len(order)
        released += len(found) > 1
    assert released > 20


# --- the checker

GOOD: dict[str, Any] = {
    "queue": [("1", [(A, B, "CNY", 5), (B, A, "AED", 3)]), ("2", [(B, C, "CNY", 5)]), ("3", [(A, C, "CNY", 1)])],
    "balances": {(A, "CNY"): 5, (B, "AED"): 3},
    "limits": [("cap", A, "CNY", None, 5), ("bilateral", A, "CNY", B, 5), ("multilateral", A, "CNY", None, 0)],
    "chosen": ["1", "2"],
    "net": [(A, C, "CNY", 5), (B, A, "AED", 3)],
    "in_queue_order": True,
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"chosen": ["1", "2", "9"]}, "not in the queue"),
        ({"chosen": ["1", "1", "2"]}, "chosen twice"),
        ({"queue": [*GOOD["queue"], GOOD["queue"][0]]}, "in the queue twice"),
        ({"balances": {(A, "CNY"): 4, (B, "AED"): 3}}, "1 CNY below zero"),
        ({"limits": [("cap", A, "CNY", None, 4)]}, "cap limit that leaves 4"),
        ({"limits": [("bilateral", A, "CNY", B, 4)]}, "bilateral limit that leaves 4"),
        ({"limits": [("multilateral", A, "CNY", None, 4)]}, "multilateral limit that leaves 4"),
        ({"net": [(A, C, "CNY", 4), (B, A, "AED", 3)]}, "nets"),
        ({"net": [(A, C, "CNY", 5)]}, "nets"),
        ({"net": [*GOOD["net"], (A, A, "CNY", 1)]}, "a net payment of 1"),
        ({"net": [*GOOD["net"], (A, B, "HKD", 0)]}, "a net payment of 0"),
        ({"chosen": ["2", "3"], "balances": {(A, "CNY"): 9, (B, "CNY"): 9}, "limits": [], "net": None}, "passes"),
        ({"queue": [("1", [(A, B, "CNY", 0)])], "chosen": ["1"], "net": []}, "pays"),
    ],
)
def test_the_checker_finds_what_is_planted(change: dict[str, Any], said: str) -> None:
    assert find_faults(**GOOD) == []
    faults = find_faults(**(GOOD | change))
    assert any(said in fault for fault in faults), faults


def test_the_checker_shares_no_code_with_what_it_checks() -> None:
    tree = ast.parse(Path(netting_check.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"__future__", "collections.abc", "typing"}


# --- the optimum


def test_the_optimum_is_the_most_value_whatever_the_order() -> None:
    pytest.importorskip("ortools", reason="the optional solver is not installed")
    for seed in range(8):
        dice = random.Random(seed)
        queue = []
        for number in range(8):
            payer, payee = dice.sample(BANKS[:3], 2)
            flows = [Flow(payer, payee, "CNY", dice.randint(1, 9))]
            if dice.random() < 0.4:
                flows.append(Flow(payee, payer, "AED", dice.randint(1, 9)))
            queue.append(Queued(UUID(int=number), tuple(flows)))
        balances = {(bank, currency): dice.randint(0, 5) for bank in BANKS[:3] for currency in ("CNY", "AED")}
        room = Room(LimitKind.CAP, A, "CNY", None, dice.choice((-1, 2, 6)))
        weights = {"CNY": 2}
        best = 0
        for size in range(9):
            for chosen in combinations(queue, size):
                plain = [
                    (str(item.id), [(f.payer, f.payee, f.currency, f.amount_minor) for f in item.flows])
                    for item in queue
                ]
                limit = ("cap", A, "CNY", None, room.room_minor)
                faults = find_faults(
                    queue=plain, balances=balances, limits=[limit], chosen=[str(item.id) for item in chosen],
                    net=None, in_queue_order=False,
                )  # fmt: skip
                if not faults:
                    value = sum(f.amount_minor * weights.get(f.currency, 1) for item in chosen for f in item.flows)
                    best = max(best, value)
        found = optimise(Snapshot(tuple(queue), balances, (room,)), weights=weights, seconds=10)
        assert found.is_proven and found.value == best == found.bound, seed


def test_amounts_beyond_the_solvers_sums_never_choose_too_much() -> None:
    pytest.importorskip("ortools", reason="the optional solver is not installed")
    large = 10**18 - 1
    queue = tuple(Queued(UUID(int=number), (Flow(A, B, "CNY", large),)) for number in range(6))
    found = optimise(Snapshot(queue, {(A, "CNY"): 3 * large}), weights={}, seconds=10)
    assert 2 <= len(found.outcome.taken) <= 3 and min(found.outcome.balances.values()) >= 0
    with pytest.raises(ValueError, match="seconds"):
        optimise(Snapshot((), {}), weights={}, seconds=SECONDS_MAX + 1)


# --- limits in force, and the picture


def test_the_latest_date_that_has_come_counts_and_the_smaller_of_both_caps() -> None:
    from datetime import UTC, date, datetime

    def limit(number: int, amount: int | None, day: int, *, is_operator: bool = False, kind: LimitKind = LimitKind.CAP,
              towards: ParticipantId | None = None) -> Limit:  # fmt: skip
        return Limit(UUID(int=number), kind, A, "CNY", towards, amount, date(2026, 6, day), is_operator, A,
                     datetime(2026, 6, 1, tzinfo=UTC))  # fmt: skip

    known = [
        limit(1, 50, 1), limit(2, 80, 10), limit(3, None, 20),
        limit(4, 60, 5, is_operator=True),
        limit(5, 30, 1, kind=LimitKind.BILATERAL, towards=B), limit(6, 40, 1, kind=LimitKind.MULTILATERAL),
    ]  # fmt: skip
    paid = {(A, B, "CNY"): 7, (C, A, "CNY"): 5, (A, C, "AED"): 100}

    def at(day: int) -> dict[LimitKind, int]:
        return {room.kind: room.room_minor for room in rooms(known, on=date(2026, 6, day), paid=paid)}

    assert at(1) == {LimitKind.CAP: 48, LimitKind.BILATERAL: 23, LimitKind.MULTILATERAL: 45}
    assert (at(6)[LimitKind.CAP], at(11)[LimitKind.CAP], at(21)[LimitKind.CAP]) == (48, 58, 58)
    assert len(in_force(known, on=date(2026, 5, 31))) == 0


def test_the_picture_says_what_it_shows() -> None:
    drawn = positions_svg([("A<&B", "CNY", 0, 12_345), ("C", "CNY", 10, 0)] + [("D", "AED", 1, 1)] * 400, title="T")
    assert "A&lt;&amp;B CNY" in drawn and "0.00 to 123.45" in drawn and "and 102 more" in drawn

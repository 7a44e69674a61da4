"""S4: netting and gridlock resolution over generated days, beside first-in-first-out and a solver's optimum.

python -m tests.bench.liquidity            the table for 10k instructions
python -m tests.bench.liquidity --quick    a tenth of it, two seconds for the solver

A day: payments between banks whose sizes and amounts are heavy-tailed (Pareto), a part of them PvP in two currencies,
against as much liquidity as the day names, as a part of what each position pays in all. All methods see the same
snapshot in the same process, one after another, and the independent checker passes what each chose.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table

from kernel.ids import ParticipantId
from settlement.domain.liquidity.explain import explain, waiting_after
from settlement.domain.liquidity.gridlock import gross_only, run
from settlement.domain.liquidity.model import Flow, Outcome, Queued, Snapshot
from settlement.domain.liquidity.netting import net_flows, net_positions
from settlement.domain.liquidity.optimise import SolverMissing, optimise
from settlement.domain.netting_check import find_faults

CURRENCIES = ("CNY", "AED", "HKD", "THB", "EUR")
DAYS = ((0.02, 0.3), (0.10, 0.3), (0.10, 1.0), (0.30, 0.3))
"""(liquidity as a part of gross payments, part of the instructions that are PvP)."""
HEADLINE = (0.10, 0.3)


def generated_day(
    *, instructions: int, participants: int, currencies: int, liquidity: float, pvp: float, seed: int
) -> Snapshot:
    dice = random.Random(seed)
    banks = [ParticipantId(f"B{number:03d}CNBJ") for number in range(participants)]
    sizes = [dice.paretovariate(1.2) for _ in banks]
    served = CURRENCIES[:currencies]
    queue: list[Queued] = []
    paid: dict[tuple[ParticipantId, str], int] = {}
    while len(queue) < instructions:
        payer, payee = dice.choices(banks, sizes, k=2)
        if payer == payee:
            continue
        amount, currency = int(10_000 * dice.paretovariate(1.3)), dice.choice(served)
        flows = [Flow(payer, payee, currency, amount)]
        if dice.random() < pvp:
            other = dice.choice([item for item in served if item != currency])
            flows.append(Flow(payee, payer, other, max(1, int(amount * dice.uniform(0.5, 2)))))
        for flow in flows:
            paid[flow.payer, flow.currency] = paid.get((flow.payer, flow.currency), 0) + flow.amount_minor
        queue.append(Queued(UUID(int=len(queue) + 1), tuple(flows)))
    balances = {position: int(amount * liquidity * 2 * dice.random()) for position, amount in sorted(paid.items())}
    return Snapshot(tuple(queue), balances)


@dataclass(frozen=True)
class Found:
    taken: int
    value_part: float
    """Of the day's gross value."""
    used: int
    """Minor units that positions lose in all."""
    seconds: float
    legs: int


def measure(snapshot: Snapshot, find: Callable[[Snapshot], Outcome], *, in_queue_order: bool) -> Found:
    began = time.perf_counter()
    outcome = find(snapshot)
    taken = {item.id for item in outcome.taken}
    chosen = [item for item in snapshot.queue if item.id in taken]
    net = net_flows(net_positions(chosen))
    seconds = time.perf_counter() - began
    faults = find_faults(
        queue=[(str(item.id), [_plain(flow) for flow in item.flows]) for item in snapshot.queue],
        balances={(str(who), currency): amount for (who, currency), amount in snapshot.balances.items()},
        limits=[],
        chosen=[str(item.id) for item in chosen],
        net=[_plain(flow) for flow in net],
        in_queue_order=in_queue_order,
    )
    if faults:
        raise RuntimeError(f"the checker found: {faults[:3]}")
    value = sum(flow.amount_minor for item in chosen for flow in item.flows)
    total = sum(flow.amount_minor for item in snapshot.queue for flow in item.flows)
    used = sum(max(0, snapshot.balances.get(position, 0) - after) for position, after in outcome.balances.items())
    return Found(len(taken), value / total, used, seconds, len(net))


def _plain(flow: Flow) -> tuple[str, str, str, int]:
    return (flow.payer, flow.payee, flow.currency, flow.amount_minor)


def run_liquidity(
    *, instructions: int = 10_000, participants: int = 50, currencies: int = 5, solver_seconds: float = 20.0
) -> dict[str, Any]:
    """The headline's `seconds` (a run with overtaking, netting included), and every method on every day."""
    days: list[dict[str, Any]] = []
    for number, (liquidity, pvp) in enumerate(DAYS):
        snapshot = generated_day(
            instructions=instructions,
            participants=participants,
            currencies=currencies,
            liquidity=liquidity,
            pvp=pvp,
            seed=number + 1,
        )
        found = {
            "fifo": measure(snapshot, gross_only, in_queue_order=True),
            "strict": measure(snapshot, lambda day: run(day, may_overtake=False), in_queue_order=True),
            "overtaking": measure(snapshot, run, in_queue_order=False),
        }
        bound: float | None = None
        try:
            optimum = optimise(snapshot, weights={}, seconds=solver_seconds, workers=2)
            found["optimum"] = measure(snapshot, lambda _, kept=optimum: kept.outcome, in_queue_order=False)  # type: ignore[misc]
            total = sum(flow.amount_minor for item in snapshot.queue for flow in item.flows)
            bound = optimum.bound / total
        except SolverMissing:
            pass
        began = time.perf_counter()
        explained = explain(waiting_after(snapshot, run(snapshot, may_overtake=False)))
        days.append(
            {
                "liquidity": liquidity,
                "pvp": pvp,
                "methods": {name: vars(item) for name, item in found.items()},
                "bound": bound,
                "solver_seconds": solver_seconds,
                "explained": len(explained),
                "explained_with_amount": sum(item.is_worked_out for item in explained),
                "explain_seconds": time.perf_counter() - began,
            }
        )
    head = next(day for day in days if (day["liquidity"], day["pvp"]) == HEADLINE)
    methods = head["methods"]
    best = methods.get("optimum")
    return {
        "seconds": methods["overtaking"]["seconds"],
        "seconds_strict": methods["strict"]["seconds"],
        "value_x_fifo": methods["overtaking"]["value_part"] / max(1e-9, methods["fifo"]["value_part"]),
        "value_of_optimum": None if best is None else methods["overtaking"]["value_part"] / best["value_part"],
        "days": days,
    }


def table(found: dict[str, Any]) -> Table:
    shown = Table("liquidity", "PvP", "method", "settled", "value", "x FIFO", "liquidity used", "net legs", "seconds")
    for day in found["days"]:
        fifo = day["methods"]["fifo"]
        for name, item in day["methods"].items():
            shown.add_row(
                f"{day['liquidity']:.0%}",
                f"{day['pvp']:.0%}",
                name,
                f"{item['taken']:,}",
                f"{item['value_part']:.1%}",
                f"{item['value_part'] / max(1e-9, fifo['value_part']):.1f}",
                f"{item['used']:,}",
                f"{item['legs']}",
                f"{day['solver_seconds']:.0f} (limit)" if name == "optimum" else f"{item['seconds']:.2f}",
            )
        bound = "" if day["bound"] is None else f"no choice exceeds {day['bound']:.1%}; "
        amounts = f"{day['explained_with_amount']:,} of {day['explained']:,} left explained with amounts"
        shown.add_row(
            "", "", f"{bound}{amounts} in {day['explain_seconds']:.2f} s", "", "", "", "", "", end_section=True
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    found = run_liquidity(instructions=1_000, solver_seconds=2.0) if arguments.quick else run_liquidity()
    Console(width=150).print(table(found))


if __name__ == "__main__":
    main()

"""The most value that can settle at once, whatever the queue's order: a question for a solver.

Needs the optional package `ortools` (CP-SAT); nothing else of the service does. The answer is the best found within the
time, with the solver's own bound on what could be better. Amounts too large for the solver's 64-bit sums are rounded
against the set (what is paid up, what is there down), so that what fits rounded fits exactly.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from settlement.domain.liquidity.gridlock import solve
from settlement.domain.liquidity.model import Outcome, Snapshot, Stage, Taken
from settlement.domain.liquidity.problem import Problem, settle

SECONDS_MAX = 120
_SUM_MAX = 2**52


class SolverMissing(RuntimeError):
    """The optional package is not installed."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """Values are sums of weighted amounts. `is_proven`: nothing better exists."""

    outcome: Outcome
    value: int
    bound: int
    is_proven: bool


def optimise(
    snapshot: Snapshot, *, weights: Mapping[str, int], seconds: float, workers: int = 1, seed: int = 1
) -> Optimum:
    """The set of the most value: the sum of all flows' amounts, each times its currency's weight (1 if not given).

    With one worker and the same seed the search is the same; that it ends at the same point takes the same time, so a
    run books the set that was previewed, not a second search. Raises: SolverMissing; ValueError as `Problem` does and
    for seconds above SECONDS_MAX.
    """
    if not 0 < seconds <= SECONDS_MAX:
        raise ValueError(f"the solver may take up to {SECONDS_MAX} seconds")
    cp_model = _solver()
    problem = Problem(snapshot)
    values = [sum(flow.amount_minor * weights.get(flow.currency, 1) for flow in item.flows) for item in snapshot.queue]
    by_constraint: dict[int, list[tuple[int, int]]] = {}
    for number, effects in enumerate(problem.effects):
        for constraint, delta in effects:
            by_constraint.setdefault(constraint, []).append((number, delta))
    model = cp_model.CpModel()
    chosen = [model.new_bool_var(f"i{number}") for number in range(len(problem))]
    for constraint, terms in by_constraint.items():
        room = problem.rooms[constraint]
        takers = [number for number, delta in terms if delta < 0]
        if not takers:
            continue
        scale = max(1, (abs(room) + sum(abs(delta) for _, delta in terms)) // _SUM_MAX)
        # Floor division rounds both what is added and what is taken (negative) against the set.
        kept = model.add(sum((delta // scale) * chosen[number] for number, delta in terms) + room // scale >= 0)
        if room < 0:
            # A limit that is passed already stops only what takes more from it.
            uses = model.new_bool_var(f"c{constraint}")
            kept.only_enforce_if(uses)
            for number in takers:
                model.add_implication(chosen[number], uses)
    scale = max(1, sum(values) // _SUM_MAX)
    model.maximize(sum((value // scale) * chosen[number] for number, value in enumerate(values)))
    # Where to begin: what a run finds, so that no time limit makes it worse.
    started = {taken.id for taken in solve(problem, may_overtake=True).taken}
    for number, key in enumerate(problem.ids):
        model.add_hint(chosen[number], int(key in started))
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = seconds
    solver.parameters.num_workers = workers
    solver.parameters.random_seed = seed
    status = solver.solve(model)
    found = (
        [number for number in range(len(problem)) if solver.boolean_value(chosen[number])]
        if status
        in (
            cp_model.OPTIMAL,
            cp_model.FEASIBLE,
        )
        else [number for number, key in enumerate(problem.ids) if key in started]
    )
    bound = int(solver.best_objective_bound) * scale if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else sum(values)
    value = sum(values[number] for number in found)
    return Optimum(_outcome(problem, found), value, max(bound, value), status == cp_model.OPTIMAL and scale == 1)


def _outcome(problem: Problem, found: list[int]) -> Outcome:
    rooms = list(problem.rooms)
    settle(problem, found, rooms)
    taken = tuple(Taken(problem.ids[number], Stage.OPTIMISED) for number in found)
    chosen: set[UUID] = {item.id for item in taken}
    left = tuple(key for key in problem.ids if key not in chosen)
    return Outcome(taken, left, problem.balances_after(rooms), problem.rooms_after(rooms))


def _solver() -> Any:
    try:
        return importlib.import_module("ortools.sat.python.cp_model")
    except ImportError as error:
        raise SolverMissing("an optimising run needs the package ortools: pip install 'jiaozi[optimise]'") from error

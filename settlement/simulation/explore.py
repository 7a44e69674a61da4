"""Schedules by the thousand: first every fault and every pair of faults of the small cases, then seeded random ones.

A schedule is a scenario and a plan (step -> fault), so a failure is replayed exactly. Enumeration follows the steps
that really come: the pairs of a first fault are made of the steps of the run that had this fault alone.
"""

from __future__ import annotations

import gc
import logging
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from settlement.domain.escrow import Decision
from settlement.simulation.scenarios import ALL, BY_NAME, SMALL
from settlement.simulation.world import Broken, Fault, Parts, Plan, Ran, Scenario, World, faults_at

RANDOM_FAULTS = (0.02, 0.06, 0.15, 0.35)
"""Chances of a fault at a step, one chosen for each random schedule."""

_GARBAGE_MAX = 50_000
SWITCH_CHANCE = 0.2
"""That of two living engines the other goes on, at a step of a random schedule."""


@dataclass(frozen=True, slots=True)
class Schedule:
    scenario: Scenario
    plan: tuple[tuple[int, Fault], ...]

    def __str__(self) -> str:
        """`pvp 4=crash-after 9=late`: what `replay` reads."""
        return " ".join((self.scenario.name, *(f"{step}={fault.value}" for step, fault in self.plan)))


@dataclass(frozen=True, slots=True)
class Failure:
    schedule: Schedule
    kind: str
    message: str
    labels: tuple[str, ...]
    """The steps until it failed; the last is where."""
    rivalled: tuple[bool, ...]


@dataclass(slots=True)
class Report:
    """What was explored. `covered` counts runs by (step label, fault)."""

    schedules: int = 0
    enumerated: int = 0
    steps: int = 0
    settlements: int = 0
    commits: int = 0
    engines: int = 0
    writes: int = 0
    sends: int = 0
    covered: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    @property
    def splits(self) -> int:
        return sum(failure.kind == "split" for failure in self.failures)

    @property
    def is_conserved(self) -> bool:
        return not any(failure.kind == "conserved" for failure in self.failures)

    def note(self, ran: Ran) -> None:
        self.schedules += 1
        self.steps += len(ran.labels)
        writes = sum(label.startswith("log") for label in ran.labels)
        self.writes += writes
        self.sends += len(ran.labels) - writes
        self.settlements += len(ran.outcomes)
        self.commits += sum(decision is Decision.COMMIT for decision in ran.outcomes.values())
        self.engines += ran.epochs
        for step, fault in ran.injected.items():
            self.covered[ran.labels[step], fault.value] += 1


def parse_schedule(text: str) -> Schedule:
    """The other way round of `str(schedule)`. Raises: ValueError."""
    name, *faults = text.split()
    if name not in BY_NAME:
        raise ValueError(f"{name!r} is no scenario; there are {', '.join(BY_NAME)}")
    plan = []
    for item in faults:
        step, _, fault = item.partition("=")
        if not step.isdecimal():
            raise ValueError(f"{item!r} is not STEP=FAULT")
        plan.append((int(step), Fault(fault)))
    return Schedule(BY_NAME[name], tuple(sorted(plan)))


def run_schedule(schedule: Schedule, parts: Parts = Parts()) -> Ran | Failure:
    plan: Plan = dict(schedule.plan)

    def choose(step: int, label: str, has_rival: bool) -> Fault | None:
        fault = plan.get(step)
        # A plan made for another run may ask for what cannot happen here: then nothing does.
        return fault if fault is None or fault in faults_at(label, has_rival) else None

    return _run(World(schedule.scenario, choose, parts))


def random_schedule(scenario: Scenario, seed: str, parts: Parts = Parts()) -> Ran | Failure:
    """A run whose faults are drawn as it goes. Its plan is in the answer, so it can be replayed without the seed."""
    source = random.Random(seed)  # noqa: S311  # not for secrets: schedules are to be repeated
    chance, draw = source.choice(RANDOM_FAULTS), source.random

    def choose(step: int, label: str, has_rival: bool) -> Fault | None:
        if has_rival and draw() < SWITCH_CHANCE:
            return Fault.SWITCH
        if draw() >= chance:
            return None
        return source.choice(faults_at(label, has_rival))

    return _run(World(scenario, choose, parts))


def _run(world: World) -> Ran | Failure:
    try:
        return world.run()
    except Broken as broken:
        schedule = Schedule(world.scenario, tuple(world.injected.items()))
        return Failure(schedule, broken.kind, str(broken), tuple(world.labels), tuple(world.rivalled))


def enumerate_schedules(
    scenarios: Sequence[Scenario], *, faults_max: int, parts: Parts = Parts()
) -> Iterator[Ran | Failure]:
    """No fault; every single fault at every step; and, for `faults_max` 2, every second fault at every later step."""
    for scenario in scenarios:
        yield from _extend(Schedule(scenario, ()), faults_max, parts)


def _extend(schedule: Schedule, faults_left: int, parts: Parts) -> Iterator[Ran | Failure]:
    found = run_schedule(schedule, parts)
    yield found
    if faults_left == 0:
        return
    first = schedule.plan[-1][0] + 1 if schedule.plan else 0
    for step in range(first, len(found.labels)):
        for fault in faults_at(found.labels[step], found.rivalled[step]):
            yield from _extend(Schedule(schedule.scenario, (*schedule.plan, (step, fault))), faults_left - 1, parts)


def explore(*, schedules: int, seed: int, parts: Parts = Parts(), failures_max: int = 1) -> Iterator[Report]:
    """Up to `schedules` of them: the enumerated ones first, then random ones over all scenarios.

    Yields the same growing report after each; ends early at `failures_max` failures.
    """
    report = Report()
    for found, is_enumerated in _all(seed, parts):
        report.enumerated += is_enumerated
        if isinstance(found, Failure):
            report.schedules += 1
            report.failures.append(found)
        else:
            report.note(found)
        yield report
        if report.schedules >= schedules or len(report.failures) >= failures_max:
            return


def explore_all(*, schedules: int, seed: int, parts: Parts = Parts(), failures_max: int = 1) -> Report:
    """`explore` to its end. `schedules` is at least 1."""
    return deque(explore(schedules=schedules, seed=seed, parts=parts, failures_max=failures_max), maxlen=1).pop()


def _all(seed: int, parts: Parts) -> Iterator[tuple[Ran | Failure, bool]]:
    for found in enumerate_schedules(ALL, faults_max=1, parts=parts):
        yield found, True
    pairs = enumerate_schedules(SMALL, faults_max=2, parts=parts)
    number = 0
    while True:
        # Alternately, so that a short exploration has both.
        pair = next(pairs, None)
        if pair is not None:
            yield pair, True
        yield random_schedule(ALL[number % len(ALL)], f"{seed}/{number}", parts), False
        number += 1


@contextmanager
def quiet_engine() -> Iterator[None]:
    """The engine warns of every recovery; here there are a hundred thousand. And each world is rubbish soon: to look
    for it less often makes a tenth more schedules a second."""
    logger = logging.getLogger("jiaozi.settlement")
    before, thresholds = logger.level, gc.get_threshold()
    logger.setLevel(logging.CRITICAL + 1)
    gc.set_threshold(_GARBAGE_MAX, *thresholds[1:])
    try:
        yield
    finally:
        logger.setLevel(before)
        gc.set_threshold(*thresholds)

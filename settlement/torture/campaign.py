"""The campaign: every step, every write and every message of the protocol, times every fault; then seeded rounds.

The steps are not listed anywhere: a run without a fault shows which points it passes (`points`), and each of them is a
case with each fault that applies. Recovery's own steps are learned the same way, from an engine that was killed before
or after its decisions and is started again. A case is known by `SCENARIO/POINT#NTH/FAULT` and can be run alone.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.exc import DBAPIError

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.database import OutcomeUnknown
from kernel.money import Money
from settlement.contract.multileg import LegRequest
from settlement.domain.escrow import SettlementState
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.csv_batch import write_csv
from settlement.store import batches
from settlement.store.batches import SettlementRow
from settlement.torture.checks import Checker, Findings, Sent, SentLeg
from settlement.torture.faults import Fault, faults_of
from settlement.torture.points import GATE, HALTED, Plan
from settlement.torture.world import BACK_SECONDS_MAX, BEYOND_FUNDS_MINOR, World, WorldFailed, patiently, until

RUN, PRESUMED, DECIDED = "run", "presumed", "decided"
SCENARIOS = (RUN, PRESUMED, DECIDED)
KILLED_AT = {PRESUMED: "decide:commit", DECIDED: "fulfil@cny-ledger:before"}
"""Where the first engine of a recovery scenario is killed: legs held and undecided, or committed and not posted."""
LINES_GOOD = 4
CYCLES = 3
"""Settlements of three legs, with three ledgers; the first is refused by one of them."""
NTH_MAX = 3
"""A point that is passed more often in one run is tortured these many times."""
HIT_SECONDS_MAX = 8.0
LAST_POINT_SECONDS = 0.3
"""After all has ended, so long for the points that come just after the last write."""
LOOK_SECONDS = 0.02
"""Between two questions whether all has ended: a question costs the machine as much as a settlement."""
NOT_STEPS = ("renew_lease:", ":deposed", ":failed", GATE, HALTED)
"""Points that come with time, or after a fault, not with a step."""
RANDOM_FAULTS_MAX = 3
RANDOM_LINES_MAX = 24


@dataclass(frozen=True, slots=True)
class Case:
    scenario: str
    point: str
    nth: int
    fault: str

    @property
    def id(self) -> str:
        return f"{self.scenario}/{self.point}#{self.nth}/{self.fault}"

    @property
    def step(self) -> str:
        """The point without its moment: a row of the table."""
        return f"{self.scenario} {self.point.rpartition(':')[0]}"


def parse_case(text: str) -> Case:
    """Raises ValueError for what is no case's id."""
    scenario, _, rest = text.partition("/")
    place, _, fault = rest.rpartition("/")
    point, _, nth = place.rpartition("#")
    if scenario not in SCENARIOS or not point or not fault or not nth.isdecimal():
        raise ValueError(f"{text!r} is no case: SCENARIO/POINT#NTH/FAULT with a scenario of {', '.join(SCENARIOS)}")
    return Case(scenario, point, int(nth), fault)


@dataclass(slots=True)
class Outcome:
    """What a case or a random round came to."""

    id: str
    is_reached: bool
    findings: Findings
    recovery_seconds: float | None
    settlements: int


@dataclass(slots=True)
class Report:
    """Everything that is shown at the end, as plain values."""

    seed: int
    currencies: tuple[str, ...]
    cases: int = 0
    rounds: int = 0
    not_reached: list[str] = field(default_factory=list)
    settlements: int = 0
    committed: int = 0
    aborted: int = 0
    splits: int = 0
    violations: list[dict[str, str]] = field(default_factory=list)
    coverage: dict[str, dict[str, int]] = field(default_factory=dict)
    """Step -> fault -> cases that reached it."""
    faults_done: dict[str, int] = field(default_factory=dict)
    islands: dict[str, dict[str, object]] = field(default_factory=dict)
    recovery_seconds: dict[str, float] = field(default_factory=dict)
    recovery_by_fault: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"is_clean": self.is_clean}


@dataclass(slots=True)
class _Orders:
    """What one case submits: a file of two-leg settlements, and settlements of more legs one by one."""

    sent: list[Sent] = field(default_factory=list)
    content: bytes = b""
    cycles: list[Sent] = field(default_factory=list)


class Campaign:
    """Runs cases in a world that is up. Not thread-safe."""

    def __init__(self, world: World, *, seed: int) -> None:
        self._world = world
        self._seed = seed
        self._faults = faults_of(world)
        self._checker = Checker(world)
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="torture-look")
        self._points: dict[str, list[tuple[str, int]]] = {}
        self._batches = 0
        self._recoveries: defaultdict[str, list[float]] = defaultdict(list)
        self._began = time.monotonic()
        self.report = Report(seed, world.currencies)

    @property
    def faults(self) -> Sequence[str]:
        return list(self._faults)

    def close(self) -> None:
        self._pool.shutdown(wait=False)
        self._checker.close()

    # --- which cases there are

    def points(self, scenario: str) -> list[tuple[str, int]]:
        """What a run of the scenario without a fault passes, in order. Raises WorldFailed if even that fails."""
        if scenario in self._points:
            return self._points[scenario]
        random = Random(f"{self._seed}/points/{scenario}")  # noqa: S311 - chooses cases, guards nothing
        if not self._world.engines:
            self._count(self._run("warm-up", RUN, [], random, lines=1))  # so that its start is not taken for a step
        outcome = self._run(f"{scenario}/no-fault", scenario, [], random, lines=LINES_GOOD)
        self._count(outcome)
        trace = self._world.switchboard.disarm()
        under_test = self._world.engines[0].name
        found = dict.fromkeys((hit.point, hit.nth) for hit in trace if hit.engine in ("", under_test))
        points: list[tuple[str, int]] = []
        for point, nth in found:
            if nth <= NTH_MAX and not any(word in point for word in NOT_STEPS):
                points.append((point, nth))
                if point.endswith(":commit"):
                    points.append((point.removesuffix(":commit") + ":sent", nth))
        self._points[scenario] = points
        return points

    def cases(self, scenario: str) -> list[Case]:
        return [
            Case(scenario, point, nth, name)
            for point, nth in self.points(scenario)
            for name, fault in self._faults.items()
            if fault.applies_to(point)
        ]

    def all_cases(self, part: tuple[int, int] = (1, 1)) -> list[Case]:
        """Of every scenario; of part (2, 7) every 7th from the second on. Runs each scenario once without a fault."""
        return [case for scenario in SCENARIOS for case in self.cases(scenario)][part[0] - 1 :: part[1]]

    # --- running them

    def run_case(self, case: Case) -> Outcome:
        """Raises KeyError for an unknown fault."""
        random = Random(f"{self._seed}/{case.id}")  # noqa: S311
        fault = self._faults[case.fault]
        outcome = self._run(case.id, case.scenario, [(case.point, case.nth, fault)], random, lines=LINES_GOOD)
        self.report.cases += 1
        if outcome.is_reached:
            row = self.report.coverage.setdefault(case.step, {})
            row[case.fault] = row.get(case.fault, 0) + 1
        self._count(outcome, case.fault)
        return outcome

    def run_cases(self, cases: Sequence[Case], *, name: str) -> Outcome:
        """Several cases of one scenario at once, in one batch of settlements. It is not counted as a case."""
        random = Random(f"{self._seed}/{name}")  # noqa: S311
        harm = [(case.point, case.nth, self._faults[case.fault]) for case in cases]
        outcome = self._run(name, cases[0].scenario, harm, random, lines=LINES_GOOD)
        self._count(outcome, " with ".join(sorted(case.fault for case in cases)))
        return outcome

    def run_round(self, number: int) -> Outcome:
        """A random round: more settlements, up to three faults at once, each on another actor, at seeded points."""
        random = Random(f"{self._seed}/round/{number}")  # noqa: S311
        scenario = random.choice(SCENARIOS)
        points = sorted(self.points(scenario))  # by name: the order of parallel calls differs from run to run
        chosen: dict[str, tuple[str, int, Fault]] = {}
        for _ in range(random.randint(1, RANDOM_FAULTS_MAX)):
            point, nth = random.choice(points)
            fault = random.choice([fault for fault in self._faults.values() if fault.applies_to(point)])
            # One fault an actor: what is killed cannot also be stopped.
            chosen.setdefault("message" if fault.is_of_message else fault.actor, (point, nth, fault))
        harm = list(chosen.values())
        lines = random.randint(LINES_GOOD, RANDOM_LINES_MAX)
        outcome = self._run(f"random/{number}", scenario, harm, random, lines=lines)
        self.report.rounds += 1
        self._count(outcome, "random round")
        return outcome

    def _run(
        self, name: str, scenario: str, harm: Sequence[tuple[str, int, Fault]], random: Random, *, lines: int
    ) -> Outcome:
        orders = self._orders(random, lines)
        self._checker.expect(orders.sent)
        try:
            return self._run_through(name, scenario, harm, orders)
        except (WorldFailed, ServiceUnreachable, ProblemResponse, DBAPIError) as error:
            self._world.switchboard.gate.set()
            self._world.repair()
            findings = self._checker.check(orders.sent)  # by the ledgers alone: is money split, or only late?
            findings.violations.insert(0, str(error))
            return Outcome(name, True, findings, None, len(orders.sent))

    def _run_through(
        self, name: str, scenario: str, harm: Sequence[tuple[str, int, Fault]], orders: _Orders
    ) -> Outcome:
        world, board = self._world, self._world.switchboard
        if not world.engines:
            world.start_engine()
        world.await_engine(world.engines[0])
        board.gate.clear()  # so that all of it is one wave, run after run
        ids = self._submit(orders)
        plans = [(Plan(point, nth, fault.strike), fault) for point, nth, fault in harm]
        if scenario == RUN:
            board.arm(*(plan for plan, _ in plans))
            board.gate.set()
        else:
            first = Plan(KILLED_AT[scenario], 1, lambda _: world.kill_engine(world.engines[0]))
            board.arm(first)
            board.gate.set()
            if not first.hit.wait(BACK_SECONDS_MAX):
                raise WorldFailed(f"the engine never came to {first.point}")
            board.arm(*(plan for plan, _ in plans))
            world.start_engine()
        back_at = self._mend(plans, ids)
        self._converge(ids)
        recovery = time.monotonic() - back_at
        for plan, fault in plans:
            if plan.hit.is_set():
                fault.aftermath()
        if len(world.engines) > 1:
            raise WorldFailed("a deposed engine was left over")
        findings = self._checker.check(orders.sent, self._rows(ids))
        is_reached = all(plan.hit.is_set() for plan, _ in plans)
        return Outcome(name, is_reached, findings, recovery if is_reached and plans else None, len(orders.sent))

    def _mend(self, plans: Sequence[tuple[Plan, Fault]], ids: Sequence[UUID]) -> float:
        """Mend each fault once it has struck; those that are never reached are given up when all has ended.

        Returns when the last mending began: from then on everything was there again or coming.
        """
        back_at = look_at = time.monotonic()
        waiting = list(plans)
        deadline = back_at + HIT_SECONDS_MAX
        is_last = False
        asked: Future[bool] | None = None  # in a thread: a database that is stopped answers only when it is mended
        while waiting:
            for item in [item for item in waiting if item[0].hit.is_set()]:
                waiting.remove(item)
                began = time.monotonic()
                item[1].mend()
                back_at = time.monotonic() if item[1].is_lifted_when_mended else began
                deadline = time.monotonic() + HIT_SECONDS_MAX
            if is_last:
                break
            if asked is None and time.monotonic() > look_at:
                asked = self._pool.submit(self._is_over, ids)
                look_at = time.monotonic() + LOOK_SECONDS
            if asked is not None and asked.done():
                if asked.result():
                    deadline = min(deadline, time.monotonic() + LAST_POINT_SECONDS)
                asked = None
            if waiting and time.monotonic() > deadline:
                self._world.switchboard.disarm()
                # Somebody may have reached a point a moment ago: then the harm is done, and is mended.
                waiting = [item for item in waiting if item[0].is_taken and item[0].hit.wait(HIT_SECONDS_MAX)]
                is_last = True
            time.sleep(0.003)
        return back_at

    # --- settlements

    def _orders(self, random: Random, lines: int) -> _Orders:
        """Good payments, one that an institution refuses, and one that a ledger refuses (beyond its payer's funds);
        with three ledgers also settlements of three legs, one of which a ledger refuses."""
        world = self._world
        ledgers = list(world.ledgers.values())
        self._batches += 1
        orders = _Orders()
        instructions: list[Instruction] = []
        for number in range(lines + 2):
            base, counter = random.sample(ledgers, 2)
            uetr = uuid4()  # a payment is settled once, a case may be run twice
            amounts = [random.randint(1, 5_000), random.randint(1, 5_000)]
            if number == lines:
                world.institutions[base.home_bank].refused.add(uetr)
            elif number == lines + 1:
                amounts[random.randrange(2)] = BEYOND_FUNDS_MINOR
            debtor, creditor = base.home_bank, counter.home_bank
            legs = (
                SentLeg(base.name, debtor, creditor, amounts[0]),
                SentLeg(counter.name, creditor, debtor, amounts[1]),
            )
            orders.sent.append(Sent(uetr, legs, may_commit=number < lines))
            instructions.append(
                Instruction(
                    instruction_id=f"B{self._batches}-{number}",
                    end_to_end_id=f"E{self._batches}-{number}",
                    uetr=uetr,
                    debtor=debtor,
                    creditor=creditor,
                    amount=Money(amounts[0], base.currency),
                    counter_currency=counter.currency,
                    counter_amount=Money(amounts[1], counter.currency),
                    value_date=datetime.now(UTC).date(),
                    priority=random.choice(list(Priority)),
                )
            )
        orders.content = write_csv(instructions)
        for number in range(CYCLES if len(ledgers) > 2 else 0):
            orders.cycles.append(self._cycle(random, may_commit=number > 0))
        orders.sent += orders.cycles
        return orders

    def _cycle(self, random: Random, *, may_commit: bool) -> Sent:
        """Each bank pays the next one in its home currency: as many legs as ledgers, all or none."""
        ledgers = list(self._world.ledgers.values())
        random.shuffle(ledgers)
        amounts = [random.randint(1, 5_000) for _ in ledgers]
        if not may_commit:
            amounts[random.randrange(len(amounts))] = BEYOND_FUNDS_MINOR
        payees = [*ledgers[1:], ledgers[0]]
        return Sent(
            uuid4(),
            tuple(
                SentLeg(ledger.name, ledger.home_bank, payee.home_bank, amount)
                for ledger, payee, amount in zip(ledgers, payees, amounts, strict=True)
            ),
            may_commit,
        )

    def _submit(self, orders: _Orders) -> list[UUID]:
        """As the bridge's operator, with the same keys again and again. Returns the batches."""

        def submit() -> list[UUID]:
            client = self._world.client()
            found = [client.submit_batch(orders.content, file_format="csv").batch]
            for cycle in orders.cycles:
                legs = [
                    LegRequest(
                        ledger=leg.ledger,
                        payer=leg.payer,
                        payee=leg.payee,
                        amount_minor=leg.amount_minor,
                        currency=self._world.ledgers[leg.ledger].currency.code,
                    )
                    for leg in cycle.legs
                ]
                today = datetime.now(UTC).date()
                found.append(client.submit_settlement(legs, uetr=cycle.uetr, value_date=today).batch)
            return found

        return patiently(submit)

    def _is_over(self, ids: Sequence[UUID]) -> bool:
        """Has every settlement ended? While the database is away, nobody can tell."""
        try:
            with self._world.database.transaction(isolation="READ COMMITTED") as connection:
                rows = [batches.find(connection, batch) for batch in ids]
        except (DBAPIError, OutcomeUnknown):
            return False
        ended = (SettlementState.SETTLED, SettlementState.CANCELLED)
        return all(
            row is not None and all(not count or state in ended for state, count in row.counts.items()) for row in rows
        )

    def _converge(self, ids: Sequence[UUID]) -> None:
        world = self._world

        def is_over() -> bool:
            if not any(engine.is_alive for engine in world.engines):
                raise WorldFailed("the settlement service ended by itself")
            if any(world.switchboard.seen(engine.name, HALTED) for engine in world.engines):
                raise WorldFailed("an engine has found an invariant broken and halted")
            return self._is_over(ids)

        try:
            until(is_over, BACK_SECONDS_MAX, "the settlements do not end", every_seconds=LOOK_SECONDS)
        except WorldFailed as error:
            standing = Counter(f"{row.state.value}: {row.waits_for}" for row in self._rows(ids))
            raise WorldFailed(f"{error}: {dict(standing)}") from None

    def _rows(self, ids: Sequence[UUID]) -> list[SettlementRow]:
        with self._world.database.transaction(isolation="READ COMMITTED") as connection:
            return [row for batch in ids for row in batches.settlements_page(connection, batch, after=0, limit=1_000)]

    # --- counting

    def _count(self, outcome: Outcome, fault: str = "none") -> None:
        report, findings = self.report, outcome.findings
        report.settlements += outcome.settlements
        report.committed += findings.committed
        report.aborted += findings.aborted
        report.splits += findings.splits
        report.violations += [{"case": outcome.id, "what": what} for what in findings.violations]
        if not outcome.is_reached:
            report.not_reached.append(outcome.id)
        else:
            report.faults_done[fault] = report.faults_done.get(fault, 0) + 1
        if outcome.recovery_seconds is not None:
            self._recoveries[fault].append(outcome.recovery_seconds)

    def finish(self) -> Report:
        """Every settlement of the campaign once more, and the figures."""
        report = self.report
        last = self._checker.check_again()
        report.splits = max(report.splits, last.splits)
        report.violations += [{"case": "the end", "what": what} for what in last.violations]
        for name, books in self._checker.books.items():
            report.islands[name] = {
                "circulation_minor": str(books.circulation_minor),
                "balances_minor": str(books.balances_minor),
                "held_minor": str(books.held_minor),
                "is_conserved": books.is_conserved,
            }
        report.recovery_seconds = quantiles([value for found in self._recoveries.values() for value in found])
        report.recovery_by_fault = {name: quantiles(found) for name, found in sorted(self._recoveries.items())}
        report.seconds = round(time.monotonic() - self._began, 1)
        return report


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum, in seconds; empty of nothing."""
    if not values:
        return {}
    ordered = sorted(values)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    found = {"median": statistics.median(ordered), "p99": p99, "max": ordered[-1]}
    return {name: round(value, 3) for name, value in found.items()}

"""Goal: in no schedule of crashes, lost messages and rival engines does a settlement split (I5), and all come to rest.

Method: the real engine in a deterministic world (settlement/simulation): every fault and pair of faults at every step
of small cases, then seeded random schedules. Known bugs are planted to see that the simulation finds each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from typer.testing import CliRunner

from settlement.__main__ import app
from settlement.cli import engine as engine_commands
from settlement.domain.escrow import Decision
from settlement.simulation.explore import Failure, explore, explore_all, parse_schedule, quiet_engine, run_schedule
from settlement.simulation.scenarios import ALL, EXPECTED_COMMITS
from settlement.simulation.world import FAULTS_AT, Fault, Parts, Ran, Scenario
from tests.simulation.planted_engine import PLANTED

SHORT, LONG = 3_000, 100_000


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet_engine():
        yield


@pytest.mark.parametrize("scenario", ALL, ids=lambda scenario: scenario.name)
def test_without_a_fault_each_scenario_ends_as_it_should(scenario: Scenario) -> None:
    found = run_schedule(parse_schedule(scenario.name))
    assert isinstance(found, Ran)
    commits = sum(decision is Decision.COMMIT for decision in found.outcomes.values())
    assert commits == EXPECTED_COMMITS.get(scenario.name, 0)
    assert len(found.outcomes) == len(scenario.scenes)


def explored(schedules: int, seed: int) -> None:
    report = explore_all(schedules=schedules, seed=seed)
    assert report.failures == [], f"replay: jiaozi-settlement simulate --replay '{report.failures[0].schedule}'"
    assert report.schedules == schedules
    assert (report.splits, report.is_conserved) == (0, True)
    # It was no idle walk: both decisions, many engines, every fault where it can happen.
    assert 0 < report.commits < report.settlements
    assert report.engines > 2 * report.schedules
    tried = {(label.split()[0], Fault(fault)) for label, fault in report.covered}
    both = (Fault.RIVAL, Fault.SWITCH)
    assert tried == {(kind, fault) for kind, faults in FAULTS_AT.items() for fault in (*faults, *both)}


def test_i5_no_fault_and_no_pair_of_faults_splits_a_settlement_in_short() -> None:
    explored(SHORT, seed=1)


@pytest.mark.extended
@pytest.mark.timeout(600)  # 50 seconds of one core that it has for itself
def test_i5_a_hundred_thousand_schedules_split_nothing() -> None:
    explored(LONG, seed=time.time_ns() % 2**32)  # other random ones every time: a failure prints its own replay


@pytest.mark.parametrize(("make", "kinds"), [item[1:] for item in PLANTED], ids=[item[0] for item in PLANTED])
def test_a_planted_bug_is_found_and_its_replay_shows_it_again(make: Callable[[], Parts], kinds: set[str]) -> None:
    parts = make()
    report = explore_all(schedules=SHORT, seed=1, parts=parts)
    assert report.failures, "the simulation did not see it"
    failure = report.failures[0]
    assert failure.kind in kinds, failure.message
    again = run_schedule(parse_schedule(str(failure.schedule)), parts)
    assert isinstance(again, Failure)
    assert (again.kind, again.labels) == (failure.kind, failure.labels)
    assert isinstance(run_schedule(failure.schedule), Ran), "the honest parts do not fail there"


@pytest.mark.parametrize("text", ["nothing 1=late", "pvp x=late", "pvp 1=flood", "pvp 1"])
def test_a_replay_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_schedule(text)


def test_the_command_explores_reports_and_replays() -> None:
    runner = CliRunner()
    done = runner.invoke(app, ["simulate", "--schedules", "60", "--seed", "4", "--json"])
    report = json.loads(done.stdout)
    assert (done.exit_code, report["schedules"], report["splits"], report["conserved"]) == (0, 60, 0, True)
    assert report["writes"] + report["sends"] == report["steps"]
    shown = runner.invoke(app, ["simulate", "--schedules", "60", "--seed", "4"])
    assert "Splits: 0. Money on every island: conserved." in shown.stdout
    replayed = runner.invoke(app, ["simulate", "--replay", "pvp 4=crash-after"])
    assert replayed.exit_code == 0
    assert "4 prepare cny  <- crash-after" in replayed.stdout
    assert runner.invoke(app, ["simulate", "--replay", "pvp 4=flood"]).exit_code == 2


def test_the_command_fails_with_the_schedule_that_shows_a_broken_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = PLANTED[0][1]()
    monkeypatch.setattr(engine_commands, "explore", lambda **options: explore(**options, parts=planted, failures_max=1))
    done = CliRunner().invoke(app, ["simulate", "--schedules", "3000", "--seed", "1"])
    assert done.exit_code == 1
    assert "BROKEN" in done.stdout and "simulate --replay 'pvp" in done.stdout

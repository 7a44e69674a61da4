"""I5. Goal: a crash, a stop, a cut or a lost message at any step of the protocol splits nothing, and torture would see.

Method: `settlement.torture` in short: its own world of real processes, a seeded choice among all enumerated cases and a
random round, for a few seconds; the full run is `make torture-settlement`. Then the same world with a planted fault,
an engine whose decisions are not durable when it publishes them: the torture must find the split.

JIAOZI_TORTURE_SECONDS=600 JIAOZI_SEED=7 pytest tests/recovery/test_settlement_torture.py   # a campaign
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import psycopg
import pytest

from settlement.torture.campaign import DECIDED, PRESUMED, RUN, Campaign, Case, parse_case, quantiles
from settlement.torture.faults import Fault
from settlement.torture.proxy import Message, operation_of
from settlement.torture.world import World, temporary_place
from tests import hasty_settlement

SECONDS = float(os.environ.get("JIAOZI_TORTURE_SECONDS", "2"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
HASTY_ATTEMPTS = 6


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with temporary_place() as place, World(place) as found:
        yield found


@pytest.mark.extended  # the same steps and crashes in memory: test_settlement_engine.py
@pytest.mark.timeout(120 + 4 * SECONDS)
def test_i5_no_fault_at_any_step_splits_a_settlement(world: World) -> None:
    campaign = Campaign(world, seed=SEED)
    try:
        cases = campaign.all_cases()
        Random(SEED).shuffle(cases)
        began = time.monotonic()
        for case in cases:
            if time.monotonic() - began > SECONDS:
                break
            campaign.run_case(case)
        campaign.run_round(1)
        report = campaign.finish()
    finally:
        campaign.close()

    assert not report.violations
    assert report.splits == 0
    assert all(books["is_conserved"] for books in report.islands.values())
    assert report.committed > 0
    assert report.aborted > 0
    assert report.cases > len(report.not_reached)  # how many the time allows is the machine's
    steps = {case.step for case in cases}
    for scenario, needed in STEPS.items():
        assert {f"{scenario} {step}" for step in needed} <= steps
    print(f"\n{report.cases} of {len(cases)} cases, {report.settlements} settlements, {report.recovery_seconds}")


STEPS = {
    RUN: (
        "persist", "authorise@AAAACNBJ", "authorise@BBBBAEAD", "prepare@cny-ledger",
        "prepare@aed-ledger", "decide", "fulfil@cny-ledger", "fulfil@aed-ledger", "cancel@cny-ledger",
        "cancel@aed-ledger", "record_ends",
    ),
    PRESUMED: ("take_lease", "undecided_of_others", "decide", "cancel@cny-ledger", "cancel@aed-ledger", "record_ends"),
    DECIDED: ("take_lease", "fulfil@cny-ledger", "fulfil@aed-ledger", "record_ends"),
}  # fmt: skip
"""The protocol's steps as of today: the enumeration finds them by itself, and must not lose one."""


@pytest.mark.medium
@pytest.mark.campaign
@pytest.mark.timeout(120)
def test_torture_finds_an_engine_that_publishes_before_its_decision_is_durable(world: World) -> None:
    """Last in this file: afterwards its world's money is split for good.

    The database dies right after one leg was posted while the other ledger is down; the decision was never on disk, so
    recovery presumes abort.
    """
    with psycopg.connect(world.engine_server.postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")  # or it may come to the disk just in time
        connection.execute("SELECT pg_reload_conf()")
    for engine in list(world.engines):
        world.kill_engine(engine)
    world.service = hasty_settlement.__name__
    campaign = Campaign(world, seed=SEED)
    try:
        for attempt in range(HASTY_ATTEMPTS):
            outcome = campaign.run_cases(
                [
                    Case(RUN, "fulfil@aed-ledger:request", 1, "aed-ledger-kill"),
                    Case(RUN, "fulfil@cny-ledger:answer", 1, "engine-postgres-kill"),
                ],
                name=f"hasty/{attempt}",
            )
            if outcome.findings.violations:
                break  # else the decision came to the disk just in time
    finally:
        campaign.close()

    assert outcome.findings.splits > 0
    assert any("SPLIT" in what for what in outcome.findings.violations)


def test_a_case_is_known_by_its_name() -> None:
    case = Case(RUN, "prepare@cny-ledger:answer", 2, "engine-stop")
    assert parse_case(case.id) == case
    for wrong in ("", "run", "run/persist:commit/engine-kill", "walk/persist:commit#1/engine-kill", "run/#1/"):
        with pytest.raises(ValueError, match="is no case"):
            parse_case(wrong)


def test_the_actors_are_hurt_where_it_makes_a_difference() -> None:
    def hits(actor: str, kind: str, point: str) -> bool:
        return Fault(actor, kind, lambda _: None, lambda: None, lambda: None).applies_to(point)

    points = ["persist:commit", "persist:sent", "persist:after"]
    points += [f"prepare@cny-ledger:{moment}" for moment in ("before", "request", "answer", "after")]
    found = {
        (actor, kind): [point for point in points if hits(actor, kind, point)]
        for actor, kind in (
            ("engine", "kill"),
            ("engine-postgres", "kill"),
            ("cny-ledger", "stop"),
            ("aed-ledger", "stop"),
            ("cny-ledger-postgres", "kill"),
            ("AAAACNBJ", "partition"),
            ("request", "drop"),
            ("answer", "drop"),
        )
    }
    assert found == {
        ("engine", "kill"): points,
        ("engine-postgres", "kill"): [*points[:3], "prepare@cny-ledger:request"],
        ("cny-ledger", "stop"): ["persist:after", "prepare@cny-ledger:request", "prepare@cny-ledger:answer"],
        ("aed-ledger", "stop"): ["persist:after"],
        ("cny-ledger-postgres", "kill"): ["persist:after", "prepare@cny-ledger:request", "prepare@cny-ledger:answer"],
        ("AAAACNBJ", "partition"): [],
        ("request", "drop"): ["prepare@cny-ledger:request"],
        ("answer", "drop"): ["prepare@cny-ledger:answer"],
    }


def test_messages_are_told_apart_by_what_they_ask() -> None:
    def operation(path: str, body: bytes, method: str = "POST") -> str | None:
        return operation_of(Message(method, path, {}, body))

    batch = "/v1/transfer-batches"
    assert operation(batch, b'{"transfers": [{"instruction": "x"}]}') == "prepare"
    assert operation(batch, b'{"transfers": [{"terms": {"kind": "post"}}]}') == "fulfil"
    assert operation(batch, b'{"transfers": [{"terms": {"kind": "void"}}]}') == "cancel"
    assert operation("/v1/leg-authorisations", b"{}") == "authorise"
    for body in (b"", b"[]", b"{}", b'{"transfers": []}', b'{"transfers": [{"terms": {"kind": "plain"}}]}'):
        assert operation(batch, body) is None
    assert operation("/v1/supply", b"", "GET") is None


def test_quantiles_are_of_what_was_measured() -> None:
    assert quantiles([]) == {}
    assert quantiles([float(number) for number in range(1, 201)]) == {"median": 100.5, "p99": 199.0, "max": 200.0}


def test_a_world_needs_an_empty_place(tmp_path: Path) -> None:
    (tmp_path / "points").touch()
    with pytest.raises(OSError, match="in use"):
        World(tmp_path)

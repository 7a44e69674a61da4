"""Goal: what the database refuses of a batch or a settlement is told by the rule that refused it, and by no other.

Method: an intake check is called between the look for used ids and the write, in the request's own transaction; there
another request commits first. And every constraint that is given a meaning is one that the database has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from uuid import uuid4

import pytest
import sqlalchemy as sa

from kernel.errors import STATUS_BY_REQUEST_REFUSAL, ProblemError
from kernel.money import Money
from settlement.contract import STATUS_BY_REFUSAL
from settlement.domain.instructions import Priority
from settlement.iso20022.pacs009 import write_pacs009
from settlement.store.gates import Gate
from settlement.usecases.intake import Candidate, Fault, IntakeCheck
from settlement.usecases.kept_twice import REFUSALS
from settlement.usecases.multileg import MultilegSubmission, NewLeg, submit_settlement
from settlement.usecases.submit import Submission, submit_batch
from tests.messages_world import AED, BANK_A, BANK_B, BRIDGE, CNY, CREATED_AT, World, instruction


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[World]:
    made = World(fresh_database("settlement"), tmp_path)
    yield made
    made.close()


def send(world: World, number: int, *, message_id: str, checks: Sequence[IntakeCheck] = ()) -> int:
    content = write_pacs009([instruction(number)], message_id=message_id, created_at=CREATED_AT)
    return submit_batch(
        Submission(content, "pacs.009", BANK_A, False, uuid4().hex, "/v1/batches"),
        database=world.database,
        directory=world.context.directory,
        clock=world.context.clock,
        bridge=BRIDGE,
        run_on_submit=False,
        checks=checks,
        render=lambda row: {"batch": str(row.id)},
    ).status


def send_legs(world: World, *, number: int = 1, minor: int = 5, checks: Sequence[IntakeCheck] = ()) -> int:
    legs = (
        NewLeg("cny-ledger", BANK_A, BANK_B, Money(minor, CNY)),
        NewLeg("aed-ledger", BANK_B, BANK_A, Money(2, AED)),
    )
    key = uuid4().hex
    return submit_settlement(
        MultilegSubmission(
            instruction(number).uetr, legs, CREATED_AT.date(), Priority.NORMAL, BANK_A, False, key, "/v1", key.encode()
        ),
        database=world.database,
        directory=world.context.directory,
        clock=world.context.clock,
        run_on_submit=False,
        checks=checks,
        render=lambda row: {"settlement": str(row.id)},
    ).status


def meanwhile(other: Callable[[], int]) -> IntakeCheck:
    def check(_: sa.Connection, __: Sequence[Candidate], *, now: datetime) -> list[Fault | Gate]:
        assert other() == 201
        return []

    return check


Send = Callable[[World, Sequence[IntakeCheck]], int]
BATCH: Send = lambda world, checks: send(world, 1, message_id="M1", checks=checks)  # noqa: E731
LEGS: Send = lambda world, checks: send_legs(world, checks=checks)  # noqa: E731


@pytest.mark.parametrize(
    ("first", "other", "refusal"),
    [
        (BATCH, lambda world: send(world, 1, message_id="M2"), "uetr-already-used"),
        (BATCH, lambda world: send(world, 2, message_id="M1"), "service-unavailable"),
        (LEGS, lambda world: send(world, 1, message_id="M1"), "uetr-already-used"),
        (LEGS, lambda world: send_legs(world, minor=6), "service-unavailable"),
    ],
    ids=["a UETR", "a message id", "a UETR of a batch", "the same settlement"],
)
def test_whoever_comes_second_is_told_what_was_taken(
    world: World, first: Send, other: Callable[[World], int], refusal: str
) -> None:
    with pytest.raises(ProblemError) as refused:
        first(world, [meanwhile(lambda: other(world))])
    assert refused.value.refusal.value == refusal
    assert world.counts()["settlement"] == world.counts()["batch"] == 1
    if refusal == "service-unavailable":  # repeated, it is seen what was there
        with pytest.raises(ProblemError) as again:
            first(world, [])
        assert again.value.refusal.value == "batch-id-reused"


@pytest.mark.parametrize("first", [BATCH, LEGS], ids=["batch", "settlement"])
def test_another_rule_of_the_database_is_no_used_uetr(world: World, first: Send) -> None:
    def planted(check: str, name: str) -> None:
        with world.database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(sa.text(f"ALTER TABLE leg DROP CONSTRAINT IF EXISTS {name}"))
            connection.execute(sa.text(f"ALTER TABLE leg ADD CONSTRAINT {name} CHECK ({check})"))

    planted("amount_minor < 0", "of_somebody")
    with pytest.raises(sa.exc.IntegrityError, match="of_somebody"):
        first(world, [])
    planted("true", "of_somebody")
    planted("amount_minor < 0", "leg_amount_positive")
    with pytest.raises(ProblemError) as refused:
        first(world, [])
    assert refused.value.refusal.value == "legs-invalid"
    assert world.counts()["settlement"] == 0


def test_each_constraint_with_a_meaning_is_the_databases_and_each_meaning_has_a_status(world: World) -> None:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        declared = set(connection.execute(sa.text("SELECT conname FROM pg_constraint")).scalars())
    assert REFUSALS.keys() <= declared
    assert all(refusal in STATUS_BY_REFUSAL or refusal in STATUS_BY_REQUEST_REFUSAL for refusal, _ in REFUSALS.values())

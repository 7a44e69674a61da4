"""Goal: the programs worker does a bounded piece a round, and a program that cannot go on keeps no other waiting.
Method: the use cases on a real PostgreSQL and a fake ledger, a bound of two, programs that are made to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from uuid import UUID

import pytest

from kernel.database import Database
from kernel.errors import ProblemError, RequestRefusal
from tests.programs_world import ProgramBank
from wallet.usecases import program_books, program_pass, program_steps
from wallet.usecases.context import Context
from wallet.usecases.program_pass import TRIED_AGAIN_AFTER, ProgramPass


@pytest.fixture
def bank(fresh_database: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> Iterator[ProgramBank]:
    monkeypatch.setattr(program_pass, "PASS_MAX", 2)
    database = Database(fresh_database("wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


def stopped_at_deadline(bank: ProgramBank, count: int) -> list[UUID]:
    """Programs whose money returns when their time is up."""
    made = []
    for _ in range(count):
        actors = bank.actors(bank.holder(funds=1000), bank.holder(), "courier")
        request = bank.request("prepaid-drip", actors, [100], days=10, quiet_days=30, subject="lessons")
        made.append(bank.funded(request, actors).program.id)
        bank.clock.advance(timedelta(seconds=1))
    bank.clock.advance(timedelta(days=11))
    return made


def states(bank: ProgramBank, made: list[UUID]) -> list[str]:
    return [program_books.find(bank.context, program).program.state for program in made]


def test_a_round_is_bounded_and_the_next_goes_on(bank: ProgramBank) -> None:
    made, worker = stopped_at_deadline(bank, 5), ProgramPass(bank.context)
    assert [worker() for _ in range(4)] == [2, 2, 1, 0]
    assert states(bank, made) == ["finished"] * 5


def test_programs_that_fail_are_left_alone_for_a_while(bank: ProgramBank, monkeypatch: pytest.MonkeyPatch) -> None:
    made, worker = stopped_at_deadline(bank, 4), ProgramPass(bank.context)
    tried: list[UUID] = []

    def step(context: Context, program_id: UUID) -> object:
        tried.append(program_id)
        if program_id in made[:2]:
            raise ProblemError(RequestRefusal.SERVICE_UNAVAILABLE)
        return program_steps.step(context, program_id)

    monkeypatch.setattr(program_pass, "step", step)
    assert [worker() for _ in range(3)] == [0, 2, 0]
    assert tried == made
    assert states(bank, made) == ["active", "active", "finished", "finished"]
    bank.clock.advance(TRIED_AGAIN_AFTER)
    monkeypatch.setattr(program_pass, "step", program_steps.step)
    assert [worker(), worker()] == [2, 0]
    assert states(bank, made) == ["finished"] * 4

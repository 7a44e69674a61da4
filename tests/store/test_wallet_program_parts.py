"""I3, I6, I8. Goal: by the database alone, what a program says was funded, is held, released and returned is the sum of
its parts, and each part what its payer has signed.
Method: SQL under the service's own role, round its code; its own rule taken out, so that only the triggers are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from kernel.database import CheckedConnection, Database
from kernel.errors import InvariantBroken, ProblemError
from tests.programs_world import ProgramBank
from wallet.contract import programs as contract
from wallet.contract.programs import ProgramTerms, terms_sha256
from wallet.usecases import program_books, program_funding, program_steps
from wallet.usecases.program_books import Known

DRIP = {"quiet_days": 14, "subject": "lessons"}


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


def program_of(bank: ProgramBank, *, until: str) -> Known:
    """A program of parts of 100 and 200, the first of which is released."""
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    if until != "proposed":
        known = bank.fund(known, actors)
        known = bank.say(known, actors, "courier", "delivered", 1)
    if until == "finished":
        known = bank.say(known, actors, "payer", "stop")
    assert known.program.state == until
    return known


ANOTHER = (
    "INSERT INTO program_hold (id, program_id, number, amount_minor, state) SELECT gen_random_uuid(), id, 3, 50,"
    " 'proposed' FROM program"
)
SWAPPED = (
    "UPDATE program_hold SET state = CASE number WHEN 1 THEN 'held' ELSE 'released' END,"
    " ended_at = CASE number WHEN 2 THEN now() END"
)
RETURNED = "UPDATE program_hold SET state = 'returned', ended_at = now() WHERE state = 'held'"


def written(connection: CheckedConnection, statements: list[str]) -> None:
    for statement in statements:
        assert connection.execute(statement).rowcount
    connection.commit()


@pytest.mark.parametrize(
    ("until", "statements", "constraint"),
    [
        ("proposed", ["UPDATE program SET funded_minor = 301"], "program_is_its_parts_i3"),
        ("proposed", ["UPDATE program SET funded_minor = 299"], "program_is_its_parts_i3"),
        ("proposed", [ANOTHER], "program_is_its_parts_i3"),
        ("proposed", ["UPDATE program_hold SET amount_minor = 200 WHERE number = 1"], "program_hold_stays_i6"),
        ("active", ["UPDATE program SET held_minor = held_minor - 50, returned_minor = 50"], "program_is_its_parts_i3"),
        ("active", ["UPDATE program SET held_minor = 150, released_minor = 150"], "program_is_its_parts_i3"),
        ("active", ["UPDATE program SET funded_minor = 400, held_minor = 300"], "program_is_its_parts_i3"),
        ("active", [ANOTHER, "UPDATE program SET funded_minor = 350, held_minor = 250"], "program_is_its_parts_i3"),
        ("active", [RETURNED], "program_is_its_parts_i3"),
        ("active", [SWAPPED, "UPDATE program SET held_minor = 100, released_minor = 200"], "program_hold_stays_i6"),
        ("active", ["UPDATE program_hold SET number = number + 2, id = gen_random_uuid()"], "program_hold_stays_i6"),
        ("finished", ["UPDATE program SET released_minor = 0, returned_minor = 300"], "program_is_its_parts_i3"),
        ("finished", ["UPDATE program_hold SET state = 'held', ended_at = NULL"], "program_hold_stays_i6"),
        (
            "finished",
            ["UPDATE program SET state = 'active', held_minor = 200, returned_minor = 0, wake_at = now()"],
            "program_is_its_parts_i3",
        ),
    ],
)
def test_no_sql_of_the_services_makes_a_program_say_what_its_parts_do_not(
    bank: ProgramBank, until: str, statements: list[str], constraint: str
) -> None:
    known = program_of(bank, until=until)
    with bank.context.database.raw(isolation="READ COMMITTED") as connection:
        with pytest.raises(psycopg.errors.CheckViolation) as refused:
            written(connection, statements)
        connection.rollback()
    assert refused.value.diag.constraint_name == constraint
    assert program_books.find(bank.context, known.program.id) == known, "nothing was written"


def test_a_part_is_the_hold_that_was_signed_for_it(bank: ProgramBank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's own comparison is taken out: signed are the holds of another program, with other amounts."""
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    other = bank.propose(bank.request("prepaid-drip", actors, [100, 900], **DRIP), actors)
    holds = bank.holds(known, payer.key)
    monkeypatch.setattr("wallet.usecases.program_funding._check_instructions", lambda *given, **named: None)
    for instructions in (bank.holds(other, payer.key), holds[::-1], [holds[0], bank.instruction(payer, 1, 200)]):
        agreement = bank.statement(known, actors, "payer", "agree")
        with pytest.raises(ProblemError, match="program-terms-mismatch"):
            program_funding.fund(bank.context, known.program.id, agreement=agreement, instructions=instructions)
    assert program_books.find(bank.context, known.program.id) == known
    assert bank.ledger.held() == 0
    assert bank.fund(known, actors).program.state == "active"


def test_totals_that_are_counted_wrongly_are_a_broken_invariant_and_nothing_is_written(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    count = program_steps.save_totals

    def wrongly(*given: Any, released: int, returned: int, **named: Any) -> None:
        count(*given, released=returned, returned=released, **named)

    monkeypatch.setattr("wallet.usecases.program_steps.save_totals", wrongly)
    with pytest.raises(InvariantBroken, match="program_is_its_parts_i3"):
        bank.say(known, actors, "courier", "delivered", 1)
    monkeypatch.undo()
    found = program_steps.step(bank.context, known.program.id)
    assert (found.program.released_minor, found.program.held_minor) == (100, 200)
    assert [part.state for part in found.parts] == ["released", "held"]


def test_the_terms_are_hashed_once_however_many_parts_they_have(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashed for each part of a thousand, they would hold the payer's lock for a minute."""
    payer, recipient = bank.holder(funds=5000), bank.holder()
    actors = bank.actors(payer, None)
    stamps = {"categories": ["5411"], "places": ["3301"], "step": "1"}
    request = bank.request("voucher-multi", actors, vouchers=[bank.voucher(recipient, 50)], **stamps)
    known = bank.propose(request, actors)
    agreement, holds = bank.statement(known, actors, "payer", "agree"), bank.holds(known, payer.key)
    hashed: list[ProgramTerms] = []
    monkeypatch.setattr(contract, "terms_sha256", lambda terms: hashed.append(terms) or terms_sha256(terms))
    known = program_funding.fund(bank.context, known.program.id, agreement=agreement, instructions=holds)
    assert (known.program.state, len(known.parts), len(hashed)) == ("active", 50, 1)

"""I2, I7. Goal: the loading of a purse that dies or hears nothing between the ledger's booking and ours is finished by
whoever comes next, the holder or the recovery pass: nothing is loaded twice, nothing is lost.
Method: the use cases over PostgreSQL and a fake ledger; a death is injected at every step, and at every step of the
retry; real threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from kernel.database import Database
from kernel.errors import ProblemError
from tests.purse_world import Purse, fund_instruction, new_purse
from tests.wallet_bank import Bank
from wallet.domain.offline import element
from wallet.store import offline as store
from wallet.usecases import offline
from wallet.usecases.context import SUBMISSION_GRACE
from wallet.usecases.offline import resume_offline

FUNDS, AMOUNT = 1000, 600
AT_ONCE = timedelta(0)


class Died(BaseException):
    """The process is gone: nothing after this line runs."""


# (function, before or after it): after each the money stands where the ledger says.
DEATHS = [
    ("_advance", "before"),  # recorded and counted, not sent
    ("submit_signed", "after"),  # booked, the answer never read
    ("_finish", "before"),  # the answer read, not written
    ("finish_funding", "after"),  # written, not committed
    ("_finish", "after"),  # committed, not told
]
RETRY_DEATHS = [
    None,
    ("claim_funding", "after"),  # claimed, not committed
    ("_look_up", "after"),  # claimed; found or not found
    ("submit_signed", "after"),  # sent once more
    ("_finish", "before"),
    ("_finish", "after"),
]


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


@pytest.fixture
def dies(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any], str, str], None]:
    """Calls the work, which is to die there if it comes there at all."""
    places: dict[str, Any] = {"submit_signed": bank.ledger, "finish_funding": store, "claim_funding": store}

    def run(work: Callable[[], Any], where: str, when: str) -> None:
        place = places.get(where, offline)
        step = getattr(place, where)

        def dying(*arguments: Any, **more: Any) -> Any:
            if when == "after":
                step(*arguments, **more)
            raise Died

        with monkeypatch.context() as patch:
            patch.setattr(place, where, dying)
            with suppress(Died):
                work()

    return run


def loaded(bank: Bank, purse: Purse, token: str) -> None:
    """Once, on both sides, in the holder's counts and on his device."""
    first = offline.fund(bank.context, token)
    assert (first.state, offline.fund(bank.context, token)) == ("final", first)
    assert resume_offline(bank.context, older_than=AT_ONCE) == 0
    report = offline.escrow_report(bank.context)
    assert (report.escrow_minor, report.claims_minor) == (AMOUNT, AMOUNT)
    assert purse.holder is not None and first.message is not None
    assert bank.balance(purse.holder) == FUNDS - AMOUNT
    assert counts(bank) == (1, 1, AMOUNT)
    for _ in range(2):
        purse.step(element.load(purse.state, first.message))
    assert purse.state.balance_minor == AMOUNT


def counts(bank: Bank) -> tuple[int, int, int]:
    """(fundings, value objects, what counts as spent today)."""
    query = (
        "SELECT (SELECT count(*) FROM purse_funding), (SELECT count(*) FROM purse_source), usage_day_minor FROM wallet"
    )
    with bank.database.engine.connect() as connection:
        fundings, sources, spent = connection.execute(sa.text(query)).one()
    return int(fundings), int(sources), int(spent)


@pytest.mark.parametrize("by", ["holder", "recovery"])
@pytest.mark.parametrize("first", DEATHS, ids=" ".join)
def test_a_death_at_any_step_and_at_any_step_of_the_retry_loads_once(
    bank: Bank, dies: Callable[[Callable[[], Any], str, str], None], first: tuple[str, str], by: str
) -> None:
    """One purse a death of the retry; each retry after it is another process's."""
    for second in RETRY_DEATHS:
        with bank.database.engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE customer, wallet CASCADE"))
        purse = new_purse(bank, bank.holder(funds=FUNDS))
        token = fund_instruction(bank, purse, AMOUNT)
        escrow = bank.ledger.accounts[offline.escrow_account(bank.context)]
        escrow.balance = 0

        def retry(token: str = token) -> None:
            if by == "recovery":
                resume_offline(bank.context, older_than=AT_ONCE)
            else:
                with suppress(ProblemError):
                    offline.fund(bank.context, token)

        dies(lambda token=token: offline.fund(bank.context, token), *first)
        assert (escrow.balance == AMOUNT) == (first != ("_advance", "before"))
        if second is not None:
            dies(retry, *second)
        retry()
        loaded(bank, purse, token)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_answers_that_are_lost_are_asked_for_again(bank: Bank, lost: int) -> None:
    purse = new_purse(bank, bank.holder(funds=FUNDS))
    token = fund_instruction(bank, purse, AMOUNT)
    bank.ledger.lose_answers = lost
    with pytest.raises(ProblemError, match="outcome-unknown"):
        offline.fund(bank.context, token)
    bank.ledger.lose_answers = 0
    loaded(bank, purse, token)


def test_holder_and_recovery_who_retry_at_once_load_once(bank: Bank) -> None:
    purse = new_purse(bank, bank.holder(funds=FUNDS))
    token = fund_instruction(bank, purse, AMOUNT)
    bank.ledger.lose_answers = 1
    with pytest.raises(ProblemError, match="outcome-unknown"):
        offline.fund(bank.context, token)

    def retry(number: int) -> None:
        if number % 2:
            resume_offline(bank.context, older_than=AT_ONCE)
        else:
            with suppress(ProblemError):
                offline.fund(bank.context, token)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(retry, range(8)))
    loaded(bank, purse, token)


def test_a_refusal_of_the_retry_is_not_believed_while_the_first_copy_may_be_booked(bank: Bank) -> None:
    """The first copy is on its way, the second is refused for want of money; then the first one arrives."""
    holder = bank.holder(funds=0)
    purse = new_purse(bank, holder)
    token = fund_instruction(bank, purse, AMOUNT)
    bank.ledger.unreachable = True
    with pytest.raises(ProblemError, match="outcome-unknown"):
        offline.fund(bank.context, token)
    bank.ledger.unreachable = False
    with pytest.raises(ProblemError, match="outcome-unknown"):
        offline.fund(bank.context, token)
    assert counts(bank) == (1, 0, AMOUNT)
    bank.ledger.fund(holder.account, FUNDS)
    bank.ledger.submit_signed([token])
    loaded(bank, purse, token)


def test_what_was_never_booked_is_given_back_once_no_copy_can_be(bank: Bank) -> None:
    holder = bank.holder(funds=0)
    purse = new_purse(bank, holder)
    token = fund_instruction(bank, purse, AMOUNT)
    bank.ledger.unreachable = True
    with pytest.raises(ProblemError, match="outcome-unknown"):
        offline.fund(bank.context, token)
    bank.ledger.unreachable = False
    bank.clock.advance(timedelta(minutes=10) + SUBMISSION_GRACE)
    resume_offline(bank.context, older_than=AT_ONCE)
    assert counts(bank) == (1, 0, AMOUNT), "the last moment of a copy"
    bank.clock.advance(timedelta(seconds=1))
    assert resume_offline(bank.context, older_than=AT_ONCE) == 1
    assert counts(bank) == (1, 0, 0)
    for _ in range(2):
        with pytest.raises(ProblemError, match="instruction-expired"):
            offline.fund(bank.context, token)
    assert counts(bank) == (1, 0, 0)

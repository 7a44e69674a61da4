"""Goal: what the database refuses, the service says as a refusal; on no path does it become an internal error.
Method: the list of meanings against the database's own catalogue; each path with its own rule taken out, so that only
the database's is left; two requests that meet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from kernel.database import Database
from kernel.edge import merged_statuses
from kernel.errors import STATUS_BY_REQUEST_REFUSAL, InvariantBroken, ProblemError
from ledger.contract import TransferKind
from tests.programs_world import ProgramBank
from tests.purse_world import funded_purse, seconds
from tests.wallet_bank import Bank
from wallet.api.dependencies import STATUSES
from wallet.domain.limits import Caps
from wallet.domain.offline.books import Books
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal
from wallet.usecases import lifecycle, offline, refunds
from wallet.usecases.kept_twice import BROKEN, REFUSALS, KeptByDatabase
from wallet.usecases.pay import pay_one


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


# --- the list ---------------------------------------------------------------------------------------------------------


def test_every_rule_that_the_database_keeps_has_a_meaning_and_the_list_names_no_other(bank: Bank) -> None:
    with bank.database.engine.connect() as connection:
        declared = set(
            connection.execute(
                sa.text(
                    "SELECT conname FROM pg_constraint WHERE connamespace = 'public'::regnamespace"
                    " UNION SELECT indexname FROM pg_indexes WHERE schemaname = 'public'"
                )
            ).scalars()
        )
        bodies = connection.execute(
            sa.text("SELECT prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosrc LIKE '%RAISE%'")
        ).scalars()
        raised = {name for body in bodies for name in re.findall(r"'([a-z]+(?:_[a-z]+)+(?:_i\d)?)'", body)}
    raised -= {"check_violation", "integrity_constraint_violation", "leg_authorisation", "netting_order"}
    raised -= {"amount_minor", "program_id"}
    assert len(raised) == 15
    kept = {name for name in declared if re.search(r"_i\d(_ck)?$", name)} | raised
    assert kept <= REFUSALS.keys() | BROKEN.keys()
    assert REFUSALS.keys() | BROKEN.keys() <= declared | raised
    assert not REFUSALS.keys() & BROKEN.keys()


def test_each_meaning_has_a_status() -> None:
    statuses = merged_statuses([STATUSES, STATUS_BY_REQUEST_REFUSAL])
    assert {statuses[refusal.value] // 100 for refusal, _ in REFUSALS.values()} == {4}


@pytest.mark.parametrize("by", ["transaction", "run", "session", "run_session", "lazy session"])
@pytest.mark.parametrize(
    ("change", "meaning"),
    [
        ("usage_day_minor = usage_year_minor + 1", InvariantBroken("I9", "wallet_usage_i9_ck")),
        ("usage_day_minor = usage_day_minor + 9223372036854775807 + 1", "amount-overflow"),
        ("day_max_minor = -1", "validation-failed"),
        ("id = '019ec9f5-0000-7000-8000-000000000000'", "service-unavailable"),
        ("state = 'of another kind'", None),
    ],
    ids=["broken", "overflow", "refused", "taken", "a fault of the program"],
)
def test_whatever_way_a_statement_goes_it_means_the_same(bank: Bank, by: str, change: str, meaning: object) -> None:
    bank.holder()
    bank.holder()
    database, statement = bank.context.database, f"UPDATE wallet SET {change}"
    ways: dict[str, Callable[[], object]] = {
        "run": lambda: database.run(lambda found: found.execute(sa.text(statement)), isolation="READ COMMITTED"),
        "run_session": lambda: database.run_session(lambda found: found.execute(statement)),
    }

    def transaction() -> None:
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(sa.text(statement))

    def session() -> None:
        with database.session(is_lazy=by.startswith("lazy")) as connection:
            connection.execute(statement)

    with pytest.raises(Exception) as caught:
        ways.get(by, transaction if by == "transaction" else session)()
    if meaning is None:
        assert isinstance(caught.value, sa.exc.IntegrityError | psycopg.errors.CheckViolation)
    elif isinstance(meaning, str):
        assert isinstance(caught.value, KeptByDatabase)
        assert caught.value.refusal.value == meaning
        assert caught.value.is_taken == (meaning == "service-unavailable")
    else:
        assert isinstance(caught.value, InvariantBroken)
        assert str(caught.value).startswith(str(meaning))
    assert bank.holder().wallet.state == "open", "the connection is in order"


# --- on the paths -----------------------------------------------------------------------------------------------------


def test_a_refund_above_the_payment(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    merchant, customer = bank.holder(), bank.holder(funds=100)
    paid = pay_one(bank.context, bank.instruction(customer, merchant.account, 100))
    monkeypatch.setattr(
        "wallet.usecases.refunds.reserve",
        lambda original, amount: replace(original, refunded_minor=original.refunded_minor + amount),
    )
    more: dict[str, Any] = {"kind": TransferKind.REFUND, "reference": paid.id}
    with pytest.raises(ProblemError, match="refund-exceeds-original"):
        refunds.refund(bank.context, bank.instruction(merchant, customer.account, 101, **more))
    assert refunds.find_refunds(bank.context, paid.id).refunds == []
    assert bank.balance(merchant) == 100


def test_what_is_held_of_a_double_spenders_purse_holds_up_no_other_message(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, one, two, shop, second, now = *(funded_purse(bank, amount) for amount in (1000, 0, 0, 0, 200)), seconds(bank)
    before = payer.state
    payer.pays(one, 400, now, Disposition.ACCOUNT)
    copy = replace(payer, state=before)
    copy.pays(two, 400, now, Disposition.ACCOUNT)
    for purse in (one, two):
        offline.sync(bank.context, purse.state.received)
    home, fair = copy.redeem(50, now), second.pays(shop, 30, now, Disposition.ACCOUNT)
    monkeypatch.setattr(Books, "_is_held", lambda *arguments: False)
    held, paid = offline.sync(bank.context, [home, fair])
    assert held.refused is not None and held.refused.refusal is PurseRefusal.PURSE_HELD
    assert paid.booked is not None and paid.payout is not None


def test_two_who_first_say_the_same_at_once_both_hear_of_it(bank: ProgramBank) -> None:
    """Repeated, whoever came second finds what the first has written."""
    holder = bank.holder()
    change = bank.new_id()
    gate = Barrier(2)

    def lower(number: int) -> str:
        gate.wait(10)
        try:
            lifecycle.set_caps(bank.context, change, holder.wallet.id, Caps(day_max_minor=100), order=None)
        except ProblemError as error:
            return error.refusal.value
        return "done"

    with ThreadPoolExecutor(2) as threads:
        outcomes = sorted(threads.map(lower, range(2)))
    assert outcomes in (["done", "done"], ["done", "service-unavailable"])
    lifecycle.set_caps(bank.context, change, holder.wallet.id, Caps(day_max_minor=100), order=None)

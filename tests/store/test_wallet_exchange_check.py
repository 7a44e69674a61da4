"""Goal: whatever differs between bank, service and ledger is found, named, and nothing else is.
Method: real exchanges over a real PostgreSQL and a fake ledger; then one break planted in one of the three books.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa

from kernel.client import ServiceUnreachable
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import derive_uuid7
from ledger.contract import TransferKind, TransferTerms
from tests.wallet_bank import Bank, Holder
from wallet.domain.core_banking import Posting
from wallet.domain.exchange_check import BreakKind
from wallet.store.tables import exchange_in as exchange_in_table
from wallet.store.tables import payment, sandbox_posting
from wallet.usecases.exchange import exchange_in, exchange_out
from wallet.usecases.exchange_check import Checked, check_day

TODAY = date(2026, 6, 15)


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


@pytest.fixture
def holder(bank: Bank) -> Holder:
    made = bank.holder()
    bank.core_banking.pay_in(bank.new_id(), made.wallet.customer_id, 10_000)
    return made


def come_in(bank: Bank, holder: Holder, amount: int = 1_000) -> UUID:
    id = bank.new_id()
    exchange_in(bank.context, id, wallet_id=holder.wallet.id, amount_minor=amount, currency="CNY")
    return id


def go_out(bank: Bank, holder: Holder, amount: int = 300) -> UUID:
    id = bank.new_id()
    token = bank.instruction(holder, bank.vault, amount, kind=TransferKind.EXCHANGE_OUT, id=id)
    exchange_out(bank.context, token)
    return id


def found(bank: Bank, day: date = TODAY) -> list[tuple[str, str | None, UUID | None]]:
    return [(item.kind.value, item.side, item.exchange) for item in check_day(bank.context, day).breaks]


def execute(bank: Bank, statement: sa.Executable) -> None:
    with bank.database.engine.begin() as connection:
        connection.execute(statement)


def test_a_day_that_agrees_has_no_breaks(bank: Bank, holder: Holder) -> None:
    come_in(bank, holder)
    go_out(bank, holder)
    come_in(bank, holder, 100_000)  # more than the deposit: refused
    checked = check_day(bank.context, TODAY)
    assert checked == Checked(TODAY, exchanges=3, bank_postings=2, vault_lines=2, breaks=[])
    assert check_day(bank.context, date(2026, 6, 14)) == Checked(date(2026, 6, 14), 0, 0, 0, [])


def test_legs_on_both_sides_of_midnight_belong_together(bank: Bank, holder: Holder) -> None:
    bank.clock.advance(timedelta(hours=11, minutes=59, seconds=59))
    before_call = bank.ledger.before_call
    bank.ledger.before_call = lambda method: bank.clock.advance(timedelta(seconds=2)) if method == "submit" else None
    come_in(bank, holder)
    bank.ledger.before_call = before_call
    assert (found(bank), found(bank, date(2026, 6, 16))) == ([], [])


def test_posting_that_the_bank_lost_is_missing_in_bank(bank: Bank, holder: Holder) -> None:
    came, went = come_in(bank, holder), go_out(bank, holder)
    execute(bank, sa.delete(sandbox_posting).where(sandbox_posting.c.id == derive_uuid7(came, "deposit-debit")))
    execute(bank, sa.delete(sandbox_posting).where(sandbox_posting.c.id == derive_uuid7(went, "deposit-credit")))
    assert found(bank) == [("missing-in-bank", "bank", id) for id in (came, went)]


def test_line_that_the_ledger_does_not_have_is_missing_in_ledger(bank: Bank, holder: Holder) -> None:
    came = come_in(bank, holder)
    del bank.ledger.booked[derive_uuid7(came, "exchange-in")]
    assert found(bank) == [("missing-in-ledger", "ledger", came)]
    assert "give the deposit back" in check_day(bank.context, TODAY).breaks[0].next_step


def test_other_amounts_are_found_on_either_side(bank: Bank, holder: Holder) -> None:
    came, other = come_in(bank, holder), come_in(bank, holder)
    execute(
        bank,
        sa.update(sandbox_posting)
        .where(sandbox_posting.c.id == derive_uuid7(came, "deposit-debit"))
        .values(amount_minor=999),
    )
    execute(bank, sa.update(exchange_in_table).where(exchange_in_table.c.id == other).values(amount_minor=1_001))
    assert sorted(found(bank), key=str) == sorted(
        [
            ("amount-differs", "bank", came),
            ("amount-differs", "bank", other),
            ("amount-differs", "ledger", other),
        ],
        key=str,
    )
    at_bank = next(item for item in check_day(bank.context, TODAY).breaks if item.exchange == came)
    assert (at_bank.expected_minor, at_bank.found_minor) == (1_000, 999)


def test_posting_the_wrong_way_round_is_a_break_of_direction(bank: Bank, holder: Holder) -> None:
    came = come_in(bank, holder)
    posting = sandbox_posting.c.id == derive_uuid7(came, "deposit-debit")
    execute(bank, sa.update(sandbox_posting).where(posting).values(direction="credit"))
    assert found(bank) == [("direction", "bank", came)]


def test_posting_made_twice_is_found(bank: Bank, holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    came = come_in(bank, holder)
    real = bank.core_banking.statement

    def doubled(
        *, since: datetime, until: datetime, after: tuple[datetime, UUID] | None, limit: int
    ) -> Sequence[Posting]:
        return [line for line in real(since=since, until=until, after=after, limit=limit) for _ in range(2)]

    monkeypatch.setattr(bank.core_banking, "statement", doubled)
    assert found(bank) == [("twice", "bank", came)]


def test_exchange_in_doubt_is_stuck_after_a_while_with_its_age(bank: Bank, holder: Holder) -> None:
    def silent(method: str) -> None:
        if method == "submit":
            raise ServiceUnreachable("planted")

    bank.ledger.before_call = silent
    came = come_in(bank, holder)
    bank.ledger.before_call = lambda method: None
    assert found(bank) == []  # a moment is no break
    bank.clock.advance(timedelta(days=2))
    later = bank.clock().astimezone(bank.context.time_zone).date()
    stuck = check_day(bank.context, later).breaks
    assert [(item.kind, item.exchange, item.age) for item in stuck] == [
        (BreakKind.STUCK_IN_DOUBT, came, timedelta(days=2))
    ]


def test_currency_given_back_whose_deposit_credit_waits_is_stuck(bank: Bank, holder: Holder) -> None:
    come_in(bank, holder)
    went = go_out(bank, holder)
    execute(bank, sa.update(payment).where(payment.c.id == went).values(deposit_credited_at=None))
    bank.clock.advance(timedelta(minutes=20))
    assert found(bank) == [("stuck-in-doubt", None, went)]


def test_what_nobody_here_knows_is_named(bank: Bank, holder: Holder) -> None:
    bank.core_banking.credit_deposit(bank.new_id(), holder.wallet.customer_id, 77)
    terms = TransferTerms(
        id=bank.new_id(),
        kind=TransferKind.EXCHANGE_IN,
        debit=bank.vault,
        credit=holder.account,
        amount_minor=5,
        currency="CNY",
    )
    bank.ledger.transfer(terms)
    assert found(bank) == [("unknown", "bank", None), ("unknown", "ledger", None)] or found(bank) == [
        ("unknown", "ledger", None),
        ("unknown", "bank", None),
    ]


def test_refused_exchange_that_is_booked_after_all_is_unexpected_even_days_later(bank: Bank, holder: Holder) -> None:
    refused = come_in(bank, holder, 100_000)
    bank.clock.advance(timedelta(days=3))
    terms = TransferTerms(
        id=derive_uuid7(refused, "exchange-in"),
        kind=TransferKind.EXCHANGE_IN,
        debit=bank.vault,
        credit=holder.account,
        amount_minor=100_000,
        currency="CNY",
    )
    bank.ledger.transfer(terms)
    assert found(bank) == []
    assert found(bank, date(2026, 6, 18)) == [("unexpected", "ledger", refused)]


def test_silent_systems_give_no_result_at_all(bank: Bank, holder: Holder, monkeypatch: pytest.MonkeyPatch) -> None:
    come_in(bank, holder)
    bank.ledger.unreachable = True
    with pytest.raises(ProblemError, match=r"service-unavailable|cannot be reached"):
        check_day(bank.context, TODAY)
    bank.ledger.unreachable = False

    def silent(**_: object) -> Sequence[Posting]:
        raise OSError("planted")

    monkeypatch.setattr(bank.core_banking, "statement", silent)
    with pytest.raises(ProblemError, match=r"service-unavailable|core banking"):
        check_day(bank.context, TODAY)

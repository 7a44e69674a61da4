"""Goal: each holder gets his interest once, on the right day, whatever crashes; what is settled sums exactly.
Method: the use cases on a real PostgreSQL and a fake ledger, the clock moved by hand, faults planted at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
import sqlalchemy as sa

from kernel import ids
from kernel.client import ServiceUnreachable
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import TransferKind, TransferTerms
from tests.wallet_bank import Bank, Holder
from wallet.domain.interest import UNITS_PER_MINOR
from wallet.domain.rules import WalletClass
from wallet.usecases import closing, interest, lifecycle
from wallet.usecases.recover import recover
from wallet.usecases.wallets import find_wallet


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    return fresh_database("wallet")


@pytest.fixture
def bank(url: str) -> Iterator[Bank]:
    database = Database(url, application_name="test")
    made = Bank(database, pack="ecny-2026-01")
    made.ledger.fund(made.vault, 10**12)
    yield made
    database.close()


def give(bank: Bank, holder: Holder, amount_minor: int) -> None:
    """From the vault, as a booked line."""
    terms = TransferTerms(
        id=bank.new_id(),
        kind=TransferKind.EXCHANGE_IN,
        debit=bank.vault,
        credit=holder.account,
        amount_minor=amount_minor,
        currency="CNY",
    )
    assert bank.ledger.transfer(terms).refusal is None


def at(bank: Bank, day: date, hour: int = 12) -> None:
    """Moves the clock to an hour of a day in Shanghai."""
    bank.clock.advance(datetime(day.year, day.month, day.day, hour, 0, tzinfo=UTC) - timedelta(hours=8) - bank.clock())


def credits(bank: Bank, holder: Holder) -> list[int]:
    lines = bank.ledger.statement(holder.account).lines
    return [line.amount_minor for line in lines if line.kind is TransferKind.INTEREST]


def settled(bank: Bank, holder: Holder) -> list[tuple[date, date, str, int, str]]:
    rows = interest.history(bank.context, holder.wallet.id, before=None, limit=50)
    return [(row.first_on, row.last_on, row.kind, row.credited_minor, row.state) for row, _ in rows]


JUNE = (date(2026, 6, 15), date(2026, 6, 20))


def test_interest_is_settled_when_the_20th_is_over_and_credited_on_the_21st(bank: Bank) -> None:
    holder = bank.holder(WalletClass.I)
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 20), 23)
    assert interest.resume_interest(bank.context) == 0
    at(bank, date(2026, 6, 21), 0)
    assert interest.resume_interest(bank.context) == 0  # a booking of the 20th may still be on its way
    bank.clock.advance(timedelta(minutes=10))
    assert interest.resume_interest(bank.context) == 2
    # 365,000,000 fen * 0.0005 / 365 = 500 fen a day, six days with the 15th's and the 20th's closing balance
    assert settled(bank, holder) == [(*JUNE, "quarter", 3000, "credited")]
    assert credits(bank, holder) == [3000]
    for _ in range(3):
        bank.clock.advance(timedelta(hours=2))
        assert interest.resume_interest(bank.context) == 0
    assert credits(bank, holder) == [3000]


def test_every_day_counts_its_closing_balance_and_class(bank: Bank) -> None:
    holder, other = bank.holder(WalletClass.II), bank.holder(WalletClass.IV)
    give(bank, holder, 73_00)
    give(bank, other, 73_00)
    at(bank, date(2026, 6, 17), 23)
    give(bank, holder, 73_00)  # counts from the 17th
    at(bank, date(2026, 6, 19))
    lifecycle.change_class(bank.context, bank.new_id(), holder.wallet.id, WalletClass.IV)
    lifecycle.change_class(bank.context, bank.new_id(), other.wallet.id, WalletClass.II)
    at(bank, date(2026, 6, 21))
    recover(bank.context)
    found = interest.history(bank.context, holder.wallet.id, before=None, limit=5)
    assert [(s.first_on.day, s.last_on.day, s.balance_minor, s.wallet_class) for s in found[0][1]] == [
        (15, 16, 7300, "II"),
        (17, 18, 14600, "II"),
    ]
    assert (found[0][0].accrued_units, found[0][0].credited_minor) == (6 * UNITS_PER_MINOR // 100, 0)
    upgraded = interest.history(bank.context, other.wallet.id, before=None, limit=5)[0][1]
    assert [(s.first_on.day, s.last_on.day, s.wallet_class) for s in upgraded] == [(19, 20, "II")]


def test_missed_quarters_are_settled_one_by_one(bank: Bank) -> None:
    holder = bank.holder(WalletClass.I)
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 12, 25))
    assert recover(bank.context).interest == 6
    assert [row[:4] for row in settled(bank, holder)] == [
        (date(2026, 9, 21), date(2026, 12, 20), "quarter", 91 * 500),
        (date(2026, 6, 21), date(2026, 9, 20), "quarter", 92 * 500),
        (*JUNE, "quarter", 3000),
    ]
    total = interest.remainder_account(bank.context, limit=10)
    assert [(page.settlements, page.due) for page in total] == [(1, 0)] * 3


def test_sum_of_credits_and_remainders_is_the_accrual(bank: Bank) -> None:
    for number in range(1, 8):
        give(bank, bank.holder(WalletClass.II), number * 12_345_67)
    at(bank, date(2026, 6, 21))
    recover(bank.context)
    page = interest.remainder_account(bank.context, limit=1)[0]
    assert page.settlements == 7
    assert page.accrued_units == page.credited_minor * UNITS_PER_MINOR + page.remainder_units
    assert page.accrued_units == sum(number * 12_345_67 for number in range(1, 8)) * 500 * 72 * 6
    with (
        pytest.raises(sa.exc.IntegrityError, match="sums_exactly"),
        bank.database.engine.begin() as connection,
    ):
        connection.exec_driver_sql("UPDATE interest_settlement SET accrued_units = accrued_units + 1")


# --- whatever crashes ------------------------------------------------------------------------------------------------


def test_lost_answers_and_silence_credit_once(bank: Bank) -> None:
    holder = bank.holder(WalletClass.I)
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 21))
    bank.ledger.unreachable = True
    assert interest.resume_interest(bank.context) == 0
    bank.ledger.unreachable, bank.ledger.lose_answers = False, 1
    bank.clock.advance(timedelta(hours=2))
    assert interest.resume_interest(bank.context) == 1  # settled; the credit's answer is lost
    assert settled(bank, holder)[0][-1] == "due"
    bank.clock.advance(timedelta(minutes=6))
    assert interest.resume_interest(bank.context) == 1
    assert (credits(bank, holder), settled(bank, holder)[0][-1]) == ([3000], "credited")


class Killed(BaseException):
    """Ends a process's work where it stands."""


def test_a_process_that_dies_anywhere_leaves_one_settlement_and_one_credit(bank: Bank) -> None:
    holders = [bank.holder(WalletClass.I) for _ in range(3)]
    for holder in holders:
        give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 21))
    survived = False
    for nth in range(40):
        calls = 0

        def die_at_nth(connection: object, *_: object, nth: int = nth) -> None:
            nonlocal calls
            calls += 1
            if calls == nth + 1:
                raise Killed

        sa.event.listen(bank.database.engine, "before_cursor_execute", die_at_nth)
        try:
            interest.resume_interest(bank.context)
            survived = True
        except Killed:
            bank.clock.advance(timedelta(seconds=30))
        finally:
            sa.event.remove(bank.database.engine, "before_cursor_execute", die_at_nth)
    assert survived
    bank.clock.advance(timedelta(hours=2))
    interest.resume_interest(bank.context)
    for holder in holders:
        assert (credits(bank, holder), settled(bank, holder)) == ([3000], [(*JUNE, "quarter", 3000, "credited")])


def test_an_id_that_somebody_has_taken_is_left_to_him(bank: Bank) -> None:
    holder, payee = bank.holder(WalletClass.I), bank.holder()
    give(bank, holder, 3_650_000_00)
    taken = ids.derive_uuid7(holder.wallet.id, "interest/2026-06-20")
    bank.ledger.submit_signed([bank.instruction(holder, payee.account, 1, id=taken)])
    at(bank, date(2026, 6, 21))
    for _ in range(3):
        interest.resume_interest(bank.context)
        bank.clock.advance(timedelta(minutes=6))
    assert credits(bank, holder) == [3000]


def test_two_processes_settle_a_wallet_once(bank: Bank) -> None:
    holder = bank.holder(WalletClass.I)
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 21))
    row = find_wallet(bank.context, holder.wallet.id)
    inner: list[int] = []

    def settle_meanwhile(method: str) -> None:
        if method == "statement" and not inner:
            inner.append(0)
            inner[0] = interest.settle_wallet(bank.context, row, until=JUNE[1])

    bank.ledger.before_call = settle_meanwhile
    assert interest.settle_wallet(bank.context, row, until=JUNE[1]) == 0
    assert inner == [1]
    assert len(settled(bank, holder)) == 1


# --- closure ---------------------------------------------------------------------------------------------------------


def test_closure_pays_to_the_day_before_and_the_quarter_pays_none_of_it_again(bank: Bank) -> None:
    holder, change = bank.holder(WalletClass.I), bank.new_id()
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 18))
    assert interest.accrued_interest(bank.context, find_wallet(bank.context, holder.wallet.id)) == 1500
    pending = closing.close_wallet(bank.context, change, holder.wallet.id, instruction=None)
    assert (pending.interest_minor, pending.amount_due_minor) == (1500, 3_650_000_00 + 1500)
    at(bank, date(2026, 6, 21))
    recover(bank.context)
    assert settled(bank, holder) == [(date(2026, 6, 15), date(2026, 6, 17), "closure", 1500, "credited")]
    out = bank.instruction(holder, bank.vault, 3_650_000_00 + 1500, kind=TransferKind.EXCHANGE_OUT)
    assert closing.close_wallet(bank.context, change, holder.wallet.id, instruction=out).change.state == "done"
    at(bank, date(2026, 9, 21))
    recover(bank.context)
    assert credits(bank, holder) == [1500]


def test_cancelled_closure_keeps_what_it_fixed_and_the_rest_of_the_quarter_follows(bank: Bank) -> None:
    holder, change = bank.holder(WalletClass.I), bank.new_id()
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 18))
    bank.ledger.before_call = lambda method: unreachable_for(method, "submit")
    with pytest.raises(ProblemError):
        closing.close_wallet(bank.context, change, holder.wallet.id, instruction=None)
    bank.ledger.before_call = lambda method: None
    closing.cancel_closure(bank.context, change)
    at(bank, date(2026, 6, 21))
    for _ in range(2):
        recover(bank.context)
        bank.clock.advance(timedelta(hours=2))
    assert [row[2:] for row in settled(bank, holder)] == [("quarter", 1500, "credited"), ("closure", 1500, "credited")]
    assert sorted(credits(bank, holder)) == [1500, 1500]


def unreachable_for(method: str, refused: str) -> None:
    if method == refused:
        raise ServiceUnreachable("planted")


def test_a_wallet_with_interest_to_be_credited_is_not_closed_over_it(bank: Bank) -> None:
    holder = bank.holder(WalletClass.I)
    give(bank, holder, 3_650_000_00)
    at(bank, date(2026, 6, 21))
    interest.settle_some(bank.context)
    with pytest.raises(ProblemError) as caught:
        closing.close_wallet(bank.context, bank.new_id(), holder.wallet.id, instruction=None)
    assert caught.value.refusal.value == "money-on-its-way"
    interest.credit_some(bank.context)
    assert closing.close_wallet(bank.context, bank.new_id(), holder.wallet.id, instruction=None).interest_minor == 0


def test_a_full_wallet_gets_its_interest_when_there_is_room(bank: Bank) -> None:
    holder, payee = bank.holder(WalletClass.II), bank.holder()
    give(bank, holder, 500_000_00)
    at(bank, date(2026, 6, 21))
    recover(bank.context)
    assert settled(bank, holder)[0][3:] == (411, "due")
    assert interest.remainder_account(bank.context, limit=1)[0].due_minor == 411
    bank.ledger.submit_signed([bank.instruction(holder, payee.account, 500)])
    bank.clock.advance(timedelta(minutes=6))
    recover(bank.context)
    assert settled(bank, holder)[0][3:] == (411, "credited")

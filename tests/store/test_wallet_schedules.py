"""Goal: a scheduled payment is made on its day, once, if its holder signed it and has not cancelled it; never early,
never twice, never after its day; and what became of it is written.
Method: the use cases on a real PostgreSQL and a fake ledger, a clock that the test moves, deaths between steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import Bank, Holder
from wallet.domain.calendars import BusinessDayRule, Frequency, Recurrence
from wallet.domain.schedules import schedule_transfer_id
from wallet.store.schedules import ScheduledPayment
from wallet.usecases import schedules

SHANGHAI = ZoneInfo("Asia/Shanghai")
TODAY = date(2026, 6, 15)
MONTHLY = Recurrence(frequency=Frequency.MONTHLY, first_on=date(2026, 6, 30), day_of_month=31)


class Killed(BaseException):
    """Nothing may catch it, as nothing catches SIGKILL."""


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


class Standing:
    """A standing order of one holder to another."""

    def __init__(self, bank: Bank, recurrence: Recurrence, *, funds: int = 10_000, amount: int = 100) -> None:
        self.bank, self.recurrence, self.amount = bank, recurrence, amount
        self.payer: Holder = bank.holder(funds=funds)
        self.payee: Holder = bank.holder()
        self.id: UUID = bank.new_id()

    def sign(
        self, first: int = 0, count: int = 3, *, key: PrivateKey | None = None, later: timedelta = timedelta(0)
    ) -> list[str]:
        return [
            self.bank.instruction(
                self.payer,
                self.payee.account,
                self.amount,
                id=schedule_transfer_id(self.id, day.number),
                key=key,
                valid_for=day.sign_until + later - self.bank.clock(),
            )
            for day in schedules.dates(self.recurrence, "cn", first=first, count=count)
        ]

    def create(self, count: int = 3, **signing: object) -> Standing:
        self.send(self.sign(count=count, **signing))  # type: ignore[arg-type]
        return self

    def send(self, tokens: list[str]) -> None:
        schedules.create_schedule(
            self.bank.context,
            self.id,
            wallet_id=self.payer.wallet.id,
            recurrence=self.recurrence,
            calendar="cn",
            instructions=tokens,
        )

    def payments(self) -> list[ScheduledPayment]:
        return schedules.payments_of(self.bank.context, self.id, after=-1, limit=100)

    def states(self) -> list[str]:
        return [row.state for row in self.payments()]


def once(bank: Bank, on: date = TODAY, **values: int) -> Standing:
    return Standing(bank, Recurrence(frequency=Frequency.ONCE, first_on=on), **values).create(1)


def at(bank: Bank, day: date, hour: int = 0, minute: int = 0) -> None:
    moment = datetime(day.year, day.month, day.day, hour, minute, tzinfo=SHANGHAI)
    bank.clock.advance(moment - bank.clock())


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def test_standing_order_pays_each_month_on_its_last_day(bank: Bank) -> None:
    order = Standing(bank, MONTHLY).create()
    seen = []
    for day in [date(2026, 6, 15) + timedelta(days=step) for step in range(80)]:
        at(bank, day, 12)
        if schedules.execute_due(bank.context):
            seen.append(day.isoformat())
    assert seen == ["2026-06-30", "2026-07-31", "2026-08-31"]
    assert order.states() == ["executed"] * 3
    assert bank.balance(order.payee) == 300
    assert all(row.seq and row.booked_at for row in order.payments())


def test_never_before_midnight_of_the_day_in_the_schemes_time_zone(bank: Bank) -> None:
    order = once(bank, date(2026, 6, 16))
    at(bank, date(2026, 6, 15), 23, 59)
    assert schedules.execute_due(bank.context) == 0
    at(bank, date(2026, 6, 16))
    assert schedules.execute_due(bank.context) == 1
    assert order.states() == ["executed"]


def test_payment_due_today_is_made_at_once(bank: Bank) -> None:
    order = once(bank)
    assert schedules.execute_due(bank.context) == 1
    assert schedules.execute_due(bank.context) == 0
    assert bank.balance(order.payee) == 100


def test_business_day_rule_moves_the_payment(bank: Bank) -> None:
    recurrence = Recurrence(
        frequency=Frequency.ONCE, first_on=date(2026, 6, 20), rule=BusinessDayRule.MODIFIED_FOLLOWING
    )
    order = Standing(bank, recurrence).create(1)
    at(bank, date(2026, 6, 21), 23)
    assert schedules.execute_due(bank.context) == 0
    at(bank, date(2026, 6, 22), 1)
    assert schedules.execute_due(bank.context) == 1
    assert order.payments()[0].due_on == date(2026, 6, 22)


def test_too_little_money_is_tried_again_until_it_is_there(bank: Bank) -> None:
    order = once(bank, funds=50)
    assert schedules.execute_due(bank.context) == 0
    [row] = order.payments()
    assert (row.state, row.refusal, row.attempts) == ("waiting", "insufficient-funds", 1)
    bank.clock.advance(timedelta(minutes=14))
    assert schedules.execute_due(bank.context) == 0
    assert order.payments()[0].attempts == 1
    bank.ledger.fund(order.payer.account, 50)
    bank.clock.advance(timedelta(minutes=2))
    assert schedules.execute_due(bank.context) == 1
    assert order.states() == ["executed"]
    assert order.payments()[0].refusal is None


@pytest.mark.extended
def test_tries_end_with_the_day_and_the_last_reason_is_kept(bank: Bank) -> None:
    order = once(bank, funds=50)
    at(bank, TODAY, 12)
    for _ in range(60 * 24):
        bank.clock.advance(timedelta(minutes=1))
        schedules.execute_due(bank.context)
    [row] = order.payments()
    assert (row.state, row.refusal) == ("refused", "insufficient-funds")
    assert 5 <= row.attempts <= 16
    bank.ledger.fund(order.payer.account, 500)
    bank.clock.advance(timedelta(days=1))
    assert schedules.execute_due(bank.context) == 0
    assert bank.balance(order.payee) == 0


def test_service_that_was_down_all_day_does_not_pay_late(bank: Bank) -> None:
    order = Standing(bank, MONTHLY).create(2)
    at(bank, date(2026, 7, 1), 0, 1)
    assert schedules.execute_due(bank.context, at_start=True) == 1
    assert [row.refusal for row in order.payments()] == ["not-executed-in-time", None]
    at(bank, date(2026, 7, 31), 1)
    assert schedules.execute_due(bank.context) == 1
    assert order.states() == ["refused", "executed"]


def test_permanent_refusal_is_not_tried_again(bank: Bank) -> None:
    order = once(bank, amount=100_000_00 + 1, funds=100_000_00 * 2)
    assert schedules.execute_due(bank.context) == 1
    assert order.payments()[0].refusal == "single-limit-exceeded"
    assert order.states() == ["refused"]


def test_I8_instruction_signed_by_another_key_moves_nothing(bank: Bank) -> None:
    order = Standing(bank, Recurrence(frequency=Frequency.ONCE, first_on=TODAY))
    order.create(1, key=order.payee.key)
    assert schedules.execute_due(bank.context) == 1
    assert order.payments()[0].refusal == "instruction-invalid"
    assert bank.balance(order.payee) == 0


def test_cancelled_payment_is_never_made_and_its_signature_is_gone(bank: Bank) -> None:
    order = Standing(bank, MONTHLY).create()
    for _ in range(2):
        schedules.cancel(bank.context, order.id, number=1)
    assert [row.instruction is None for row in order.payments()] == [False, True, False]
    for day in (date(2026, 6, 30), date(2026, 7, 31), date(2026, 8, 31)):
        at(bank, day, 9)
        schedules.execute_due(bank.context)
    assert order.states() == ["executed", "cancelled", "executed"]
    assert refusal(lambda: schedules.cancel(bank.context, order.id, number=0)) == "schedule-ended"
    assert refusal(lambda: schedules.cancel(bank.context, order.id, number=9)) == "schedule-not-found"
    assert refusal(lambda: schedules.cancel(bank.context, bank.new_id())) == "schedule-not-found"


def test_cancelled_schedule_makes_nothing_and_takes_nothing(bank: Bank) -> None:
    order = Standing(bank, MONTHLY).create()
    for _ in range(2):
        assert schedules.cancel(bank.context, order.id).is_cancelled
    assert order.states() == ["cancelled"] * 3
    more = order.sign(3, 1)
    assert refusal(lambda: schedules.prolong(bank.context, order.id, first=3, instructions=more)) == "schedule-ended"
    at(bank, date(2026, 6, 30), 9)
    assert schedules.execute_due(bank.context) == 0


def test_payment_being_executed_cannot_be_cancelled(bank: Bank) -> None:
    order = once(bank)
    bank.ledger.lose_answers = 1
    assert schedules.execute_due(bank.context) == 0
    assert order.states() == ["executing"]
    assert refusal(lambda: schedules.cancel(bank.context, order.id, number=0)) == "schedule-executing"
    bank.clock.advance(timedelta(seconds=6))
    assert schedules.execute_due(bank.context) == 1
    assert order.states() == ["executed"]
    assert bank.balance(order.payee) == 100


def test_prolonged_by_the_holder_and_repeating_changes_nothing(bank: Bank) -> None:
    order = Standing(bank, MONTHLY)
    order.create()
    order.create()
    more = order.sign(3, 2)
    for _ in range(2):
        schedules.prolong(bank.context, order.id, first=3, instructions=more)
    assert order.states() == ["waiting"] * 5
    gap = order.sign(6, 1)
    assert refusal(lambda: schedules.prolong(bank.context, order.id, first=6, instructions=gap)) == (
        "schedule-dates-refused"
    )
    order.amount = 101
    other = order.sign(0, 1)
    assert refusal(lambda: schedules.prolong(bank.context, order.id, first=0, instructions=other)) == "schedule-exists"


def test_at_most_sixty_signed_payments_wait(bank: Bank) -> None:
    order = Standing(bank, Recurrence(frequency=Frequency.DAILY, first_on=TODAY)).create(60)
    more = order.sign(60, 1)
    assert refusal(lambda: schedules.prolong(bank.context, order.id, first=60, instructions=more)) == (
        "schedule-too-long"
    )
    schedules.execute_due(bank.context)
    schedules.prolong(bank.context, order.id, first=60, instructions=more)
    assert len(order.payments()) == 61


@pytest.mark.parametrize("fault", ["other-id", "too-short", "too-long", "past", "self", "other-payer"])
def test_instruction_that_does_not_fit_its_day_is_refused(bank: Bank, fault: str) -> None:
    order = Standing(bank, MONTHLY)
    expected = "schedule-instruction-mismatch"
    if fault == "other-id":
        tokens = [bank.instruction(order.payer, order.payee.account, 100, valid_for=timedelta(days=16))]
    elif fault == "too-short":
        tokens = order.sign(count=1, later=-timedelta(seconds=1))
    elif fault == "too-long":
        tokens = order.sign(count=1, later=timedelta(days=31, seconds=1))
    elif fault == "past":
        order.recurrence = Recurrence(frequency=Frequency.ONCE, first_on=date(2026, 6, 14))
        tokens, expected = order.sign(count=1), "schedule-dates-refused"
    elif fault == "self":
        order.payee = order.payer
        tokens = order.sign(count=1)
    else:
        order.payer, order.payee = order.payee, order.payer
        tokens = order.sign(count=1)
        order.payer, order.payee = order.payee, order.payer
    assert refusal(lambda: order.send(tokens)) == expected
    assert refusal(lambda: schedules.find_schedule(bank.context, order.id)) == "schedule-not-found"


def test_other_schedule_under_the_same_id_is_refused(bank: Bank) -> None:
    order = Standing(bank, MONTHLY).create()
    order.recurrence = Recurrence(frequency=Frequency.WEEKLY, first_on=date(2026, 6, 30))
    assert refusal(lambda: order.create()) == "schedule-exists"
    assert refusal(lambda: schedules.dates(MONTHLY, "nowhere", first=0, count=1)) == "calendar-unknown"


@pytest.mark.parametrize("moment", ["before-the-ledger", "after-the-ledger", "before-the-outcome"])
def test_I7_death_at_any_moment_is_resumed_and_pays_once(
    bank: Bank, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = [once(bank) for _ in range(3)]
    with monkeypatch.context() as dying:
        if moment == "before-the-ledger":
            dying.setattr(bank.ledger, "submit", _kill)
        elif moment == "after-the-ledger":
            dying.setattr(bank.ledger, "_answer", _kill)
        else:
            dying.setattr(schedules.schedules, "conclude", _kill)
        with pytest.raises(Killed):
            schedules.execute_due(bank.context)
    assert [order.states() for order in orders] == [["executing"]] * 3
    bank.clock.advance(timedelta(days=2))  # even after its day: it was begun on it
    assert schedules.execute_due(bank.context, at_start=True) == 3
    expected = 100 if moment != "before-the-ledger" else 0
    states = {state for order in orders for state in order.states()}
    if moment == "before-the-ledger":  # recorded and perhaps sent: the ledger had the last word, or the signature ended
        assert states <= {"executed", "refused"}
    else:
        assert states == {"executed"}
        assert [bank.balance(order.payee) for order in orders] == [expected] * 3
    assert all(bank.balance(order.payee) in (0, 100) for order in orders)
    assert schedules.execute_due(bank.context) == 0


def _kill(*_: object, **__: object) -> None:
    raise Killed


def test_I7_many_passes_at_once_make_each_payment_once(bank: Bank) -> None:
    orders = [once(bank) for _ in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: schedules.execute_due(bank.context, at_start=number % 3 == 0), range(24)))
    bank.clock.advance(timedelta(minutes=2))
    schedules.execute_due(bank.context)
    assert [order.states() for order in orders] == [["executed"]] * 12
    assert [bank.balance(order.payee) for order in orders] == [100] * 12


def test_day_that_a_newer_calendar_moves_is_followed(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    recurrence = Recurrence(frequency=Frequency.ONCE, first_on=date(2027, 1, 1), rule=BusinessDayRule.FOLLOWING)
    order = Standing(bank, recurrence).create(1)
    assert [(row.due_on, row.is_provisional) for row in order.payments()] == [(date(2027, 1, 1), True)]
    published = schedules.calendar_of("cn").model_dump() | {"covers_to": date(2027, 12, 31)}
    published["holidays"] += ({"name": "New Year's Day", "first": date(2027, 1, 1), "last": date(2027, 1, 3)},)
    newer = type(schedules.calendar_of("cn")).model_validate(published)
    monkeypatch.setattr(schedules, "load_calendar", lambda name: newer)
    schedules.execute_due(bank.context, at_start=True)
    assert [(row.due_on, row.is_provisional) for row in order.payments()] == [(date(2027, 1, 4), False)]
    at(bank, date(2027, 1, 3), 23)
    assert schedules.execute_due(bank.context) == 0
    at(bank, date(2027, 1, 4), 1)
    assert schedules.execute_due(bank.context) == 1


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE schedule_payment SET next_try_at = not_before - interval '1 s'", "never_early_ck"),
        ("UPDATE schedule_payment SET valid_until = not_before", "signed_for_its_day_ck"),
        ("UPDATE schedule_payment SET instruction = NULL", "cancelled_is_forgotten_i8_ck"),
        ("UPDATE schedule_payment SET state = 'cancelled'", "cancelled_is_forgotten_i8_ck"),
        ("UPDATE schedule_payment SET state = 'executed'", "executed_says_when_ck"),
        ("UPDATE schedule_payment SET amount_minor = 0", "amount_positive_ck"),
        ("UPDATE schedule SET every = 13", "schedule_every_bounded_ck"),
    ],
)
def test_tables_refuse_what_the_core_refuses(bank: Bank, statement: str, constraint: str) -> None:
    Standing(bank, MONTHLY).create(1)
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))

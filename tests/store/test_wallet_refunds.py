"""Goal: of a payment received never more goes back than came, only to whoever paid, whatever races, repeats or crashes.
Method: the use case on a real PostgreSQL and a fake ledger; real threads; answers lost at every step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import TransferKind
from tests.store.test_wallet_requests import OneAtATime
from tests.wallet_bank import Bank
from wallet.domain.records import Payment
from wallet.usecases import refunds
from wallet.usecases.context import SUBMISSION_GRACE, LedgerAccess, Ledgers
from wallet.usecases.pay import pay_one
from wallet.usecases.recover import recover
from wallet.usecases.refunds import find_refunds, refund


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    made = Bank(database)
    ledger = OneAtATime(clock=made.clock, rule_classes=list(made.ledger.classes.values()))
    made.ledger = ledger
    made.context = replace(made.context, ledgers=Ledgers([LedgerAccess("cny", "CNY", ledger)], database=database))
    yield made
    database.close()


class Sale:
    """A payment of `amount` from a customer to a merchant."""

    def __init__(self, bank: Bank, amount: int = 1000) -> None:
        self.bank, self.amount = bank, amount
        self.merchant, self.customer = bank.holder(), bank.holder(funds=amount)
        self.payment: Payment = pay_one(bank.context, bank.instruction(self.customer, self.merchant.account, amount))

    def token(self, amount: int, **more: Any) -> str:
        values: dict[str, Any] = {
            "kind": TransferKind.REFUND,
            "reference": self.payment.id,
            "credit": self.customer.account,
        }
        return self.bank.instruction(more.pop("payer", self.merchant), amount_minor=amount, **values | more)

    def give_back(self, amount: int, **more: Any) -> str:
        return outcome(self.bank, self.token(amount, **more))

    @property
    def refunded(self) -> int:
        return find_refunds(self.bank.context, self.payment.id).original.refunded_minor


def outcome(bank: Bank, token: str) -> str:
    try:
        return refund(bank.context, token).state
    except ProblemError as error:
        return error.refusal.value


def test_whole_and_in_parts_but_never_more(bank: Bank) -> None:
    sale = Sale(bank)
    assert sale.give_back(400) == "final"
    assert sale.give_back(601) == "refund-exceeds-original"
    assert sale.give_back(600) == "final"
    assert sale.give_back(1) == "refund-exceeds-original"
    assert (bank.balance(sale.customer), bank.balance(sale.merchant), sale.refunded) == (1000, 0, 1000)
    view = find_refunds(bank.context, sale.payment.id)
    assert [(row.amount_minor, row.state) for row in view.refunds] == [(400, "final"), (600, "final")]
    whole = Sale(bank)
    assert whole.give_back(1000) == "final"


def test_the_same_refund_again_gives_back_once(bank: Bank) -> None:
    sale = Sale(bank)
    token = sale.token(400)
    assert [outcome(bank, token) for _ in range(3)] == ["final"] * 3
    assert (bank.balance(sale.customer), sale.refunded) == (400, 400)


def test_refunds_that_race_never_exceed_the_payment(bank: Bank) -> None:
    sale = Sale(bank)
    bank.ledger.fund(sale.merchant.account, 100_000)  # the ledger alone would let all of them through
    tokens = [sale.token(130) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        outcomes = Counter(pool.map(lambda token: outcome(bank, token), tokens + tokens))
    assert set(outcomes) == {"final", "refund-exceeds-original"}
    assert bank.balance(sale.customer) == 7 * 130
    assert sale.refunded == 7 * 130


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reference": UUID(int=5)}, "original-not-found"),
        ({"reference": None}, "original-not-found"),
        ({"credit": 2}, "refund-mismatch"),
        ({"key": PrivateKey.generate()}, "instruction-invalid"),
        ({"kind": TransferKind.PAYMENT}, "kind-not-allowed"),
        ({"currency": "AED"}, "wrong-currency"),
        ({"ledger": "aed"}, "wrong-ledger"),
        ({"valid_for": timedelta(seconds=-1)}, "instruction-expired"),
    ],
)
def test_what_is_no_refund_of_a_payment_received_is_refused_and_reserves_nothing(
    bank: Bank, change: dict[str, Any], said: str
) -> None:
    sale = Sale(bank)
    assert sale.give_back(100, **change) == said
    assert (bank.balance(sale.merchant), sale.refunded) == (1000, 0)
    assert sale.give_back(1000) == "final"


def test_only_who_was_paid_gives_back(bank: Bank) -> None:
    sale, other = Sale(bank), bank.holder(funds=1000)
    assert sale.give_back(100, payer=other) == "original-not-found"
    # nor can the customer call his own payment a refund of itself
    token = sale.token(100, payer=sale.customer, credit=sale.merchant.account)
    assert outcome(bank, token) == "original-not-found"
    # and a refund is no payment: it cannot be refunded
    given = sale.token(100)
    first = refund(bank.context, given)
    back = bank.instruction(sale.customer, sale.merchant.account, 100, kind=TransferKind.REFUND, reference=first.id)
    assert outcome(bank, back) == "original-not-found"


def test_payments_address_carries_no_refund_past_the_check(bank: Bank) -> None:
    sale = Sale(bank)
    with pytest.raises(ProblemError, match="kind-not-allowed"):
        pay_one(bank.context, sale.token(5000))
    assert bank.balance(sale.merchant) == 1000


def test_merchant_without_funds_may_try_again(bank: Bank) -> None:
    sale = Sale(bank)
    pay_one(bank.context, bank.instruction(sale.merchant, sale.customer.account, 1000))
    token = sale.token(700)
    assert outcome(bank, token) == "insufficient-funds"
    assert sale.refunded == 0
    bank.ledger.fund(sale.merchant.account, 1000)
    assert outcome(bank, token) == "final"
    assert sale.refunded == 700


def test_lost_answer_keeps_the_amount_reserved_until_the_ledger_has_spoken(bank: Bank) -> None:
    sale = Sale(bank)
    bank.ledger.fund(sale.merchant.account, 5000)
    bank.ledger.lose_answers = 1
    assert sale.give_back(700) == "outcome-unknown"
    assert sale.give_back(400) == "refund-exceeds-original"
    bank.clock.advance(timedelta(seconds=11))
    recover(bank.context)
    assert [row.state for row in find_refunds(bank.context, sale.payment.id).refunds] == ["final"]
    assert bank.balance(sale.customer) == 700


def test_a_signature_that_stands_for_ever_stops_no_pass(bank: Bank) -> None:
    """The end of the calendar is a merchant's to sign; what is reckoned from it must not fail for all the others."""
    for_ever, sale = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC) - bank.clock(), Sale(bank)
    bank.ledger.fund(sale.merchant.account, 5000)
    for amount in (700, 200):
        bank.ledger.lose_answers = 1
        assert sale.give_back(amount, valid_for=for_ever) == "outcome-unknown"
    bank.clock.advance(timedelta(seconds=11))
    recover(bank.context)
    assert [row.state for row in find_refunds(bank.context, sale.payment.id).refunds] == ["final", "final"]
    assert bank.balance(sale.customer) == 900


def test_crash_after_reserving_gives_the_amount_free_when_nothing_can_be_booked(bank: Bank) -> None:
    sale = Sale(bank)
    token = sale.token(700)
    refunds._reserve(
        bank.context, refunds._read(token), refunds._original(bank.context, refunds._read(token), sale.merchant.wallet)
    )
    bank.clock.advance(timedelta(minutes=5))
    recover(bank.context)
    assert sale.refunded == 700
    bank.clock.advance(timedelta(minutes=5) + SUBMISSION_GRACE + timedelta(seconds=1))
    recover(bank.context)
    assert sale.refunded == 0
    assert sale.give_back(1000) == "final"


def test_payer_at_another_bank_sees_what_came_back(bank: Bank, fresh_database: Callable[[str], str]) -> None:
    other = Bank(Database(fresh_database("wallet"), application_name="test"))
    other.ledger, other.clock = bank.ledger, bank.clock
    ledgers = Ledgers([LedgerAccess("cny", "CNY", bank.ledger)], database=other.database)
    other.context = replace(other.context, ledgers=ledgers, clock=bank.clock)
    merchant, customer = bank.holder(), other.holder(funds=1000)
    payment = pay_one(other.context, other.instruction(customer, merchant.account, 1000))
    token = bank.instruction(merchant, customer.account, 250, kind=TransferKind.REFUND, reference=payment.id)
    assert refund(bank.context, token).state == "final"
    seen = find_refunds(other.context, payment.id)
    assert (seen.original.refunded_minor, seen.is_complete) == (250, True)
    assert [row.id for row in seen.refunds] == [refund(bank.context, token).id]
    other.database.close()


def test_table_refuses_more_than_the_payment(bank: Bank) -> None:
    sale = Sale(bank)
    assert sale.give_back(400) == "final"
    for value in (1001, -1):
        with (
            pytest.raises(IntegrityError, match="refund_original_refunded_at_most_i7_ck"),
            bank.database.engine.begin() as connection,
        ):
            connection.execute(sa.text(f"UPDATE refund_original SET refunded_minor = {value}"))

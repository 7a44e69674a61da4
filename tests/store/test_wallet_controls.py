"""Goal: above what one signature alone may pay, a corporate wallet pays nothing that two persons have not signed.
Method: the use cases over PostgreSQL and a fake ledger; every way around that an insider might try; real threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import TransferKind
from tests.wallet_bank import Bank, Holder
from wallet.client.controls import payment_control
from wallet.contract.controls import (
    ApprovalWithdrawal,
    PaymentApproval,
    approved_payment,
    sign_approval,
    sign_control,
    sign_withdrawal,
)
from wallet.store import carriage
from wallet.usecases import controls, corporate
from wallet.usecases.corporate import LegalData
from wallet.usecases.pay import EXCHANGES_OUT, Declined, pay

ALONE, ALONE_DAY = 1_000, 2_500


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


class Company:
    """A wallet whose device the treasurer has; the director has a key that is no device and can pay nothing."""

    def __init__(self, bank: Bank, *, is_set: bool = True) -> None:
        self.bank = bank
        self.wallet: Holder = bank.holder(funds=100_000)
        self.payee = bank.holder()
        data = LegalData("甲乙贸易有限公司", "", "91350100M000100Y43")
        corporate.register(bank.context, self.wallet.wallet.customer_id, data)
        self.treasurer, self.director = self.wallet.key, PrivateKey.generate("ecdsa-p256-sha256")
        self.persons = [("treasurer", self.treasurer.public), ("director", self.director.public)]
        if is_set:
            self.set(self.treasurer, self.director)

    @property
    def soon(self) -> datetime:
        return self.bank.clock() + timedelta(hours=1)

    def set(
        self,
        *keys: PrivateKey,
        version: int = 1,
        alone: int = ALONE,
        day: int = ALONE_DAY,
        in_force: bool = True,
    ) -> None:
        document = payment_control(
            self.wallet.wallet.id,
            self.persons,
            alone_max_minor=alone,
            alone_day_max_minor=max(day, alone),
            version=version,
            valid_until=self.soon,
            is_in_force=in_force,
        )
        first, second = (sign_control(document, key) for key in keys)
        controls.set_control(self.bank.context, self.wallet.wallet.id, (first, second))

    def token(self, amount: int, *, id: UUID | None = None) -> tuple[UUID, str]:
        payment = id or self.bank.new_id()
        return payment, self.bank.instruction(self.wallet, self.payee.account, amount, id=payment)

    def approve(self, payment: UUID, token: str, key: PrivateKey, *, until: datetime | None = None) -> None:
        document = PaymentApproval(
            wallet=self.wallet.wallet.id,
            payments=[approved_payment(payment, token)],
            valid_until=until or self.soon,
        )
        controls.approve(self.bank.context, self.wallet.wallet.id, sign_approval(document, key))

    def withdraw(self, payment: UUID, key: PrivateKey) -> None:
        document = ApprovalWithdrawal(wallet=self.wallet.wallet.id, payments=[payment])
        controls.withdraw(self.bank.context, self.wallet.wallet.id, sign_withdrawal(document, key))

    def pay(self, token: str) -> str:
        outcome = pay(self.bank.context, [token])[0]
        return outcome.refusal.value if isinstance(outcome, Declined) else outcome.state

    def held(self, token: str) -> str:
        """What is said of a payment that is not carried."""
        outcome = pay(self.bank.context, [token])[0]
        return outcome.detail if isinstance(outcome, Declined) else outcome.state


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def test_above_the_threshold_two_persons_sign(bank: Bank) -> None:
    company = Company(bank)
    assert company.pay(company.token(ALONE)[1]) == "final"
    payment, token = company.token(ALONE + 1)
    assert company.pay(token) == "approval-needed"
    company.approve(payment, token, company.director)
    company.approve(payment, token, company.director)
    assert company.pay(token) == "final"
    assert company.pay(token) == "final"
    assert bank.balance(company.payee) == 2 * ALONE + 1
    assert refused(lambda: company.withdraw(payment, company.director)) == "approval-used"


def test_what_the_maker_cannot_do_alone(bank: Bank) -> None:
    company = Company(bank)
    payment, token = company.token(50_000)
    company.approve(payment, token, company.treasurer)
    assert company.pay(token) == "checker-is-maker"
    company.approve(payment, company.token(40_000, id=payment)[1], company.director)
    assert company.pay(token) == "approved-another"
    assert refused(lambda: company.approve(payment, token, PrivateKey.generate())) == "approval-invalid"
    expired = bank.clock() - timedelta(seconds=1)
    assert refused(lambda: company.approve(payment, token, company.director, until=expired)) == "approval-invalid"
    company.approve(payment, token, company.director, until=bank.clock() + timedelta(seconds=30))
    bank.clock.advance(timedelta(seconds=31))
    assert company.pay(token) == "approval-needed"
    company.approve(payment, token, company.director)
    company.withdraw(payment, company.director)
    assert company.pay(token) == "approval-needed"
    assert bank.balance(company.payee) == 0


def test_small_pieces_are_no_way_around(bank: Bank) -> None:
    """A payroll is many small payments: what is above the day's allowance needs approvals, one for a thousand."""
    company = Company(bank)
    made = [company.token(500) for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        states = list(threads.map(lambda item: company.pay(item[1]), made))
    assert sorted(set(states)) == ["approval-needed", "final"]
    assert states.count("final") == ALONE_DAY // 500
    left = [item for item, state in zip(made, states, strict=True) if state != "final"]
    document = PaymentApproval(
        wallet=company.wallet.wallet.id, payments=[approved_payment(*item) for item in left], valid_until=company.soon
    )
    controls.approve(bank.context, company.wallet.wallet.id, sign_approval(document, company.director))
    assert [company.pay(token) for _, token in left] == ["final"] * len(left)
    assert bank.balance(company.payee) == 8 * 500
    bank.clock.advance(timedelta(days=1))
    assert company.pay(company.token(500)[1]) == "final"


def test_rules_change_by_two_persons_of_the_old_ones(bank: Bank) -> None:
    company = Company(bank)
    payment, token = company.token(5_000)
    company.approve(payment, token, company.director)
    t, d, stranger = company.treasurer, company.director, PrivateKey.generate()
    assert refused(lambda: company.set(t, t, version=2, alone=90_000)) == "control-invalid"
    assert refused(lambda: company.set(t, stranger, version=2, alone=90_000)) == "control-invalid"
    assert refused(lambda: company.set(t, d, version=3, alone=90_000)) == "control-changed"
    persons = company.persons
    company.persons = [("treasurer", t.public), ("friend", stranger.public)]
    assert refused(lambda: company.set(t, stranger, version=2, alone=90_000)) == "control-invalid"
    company.persons = persons
    company.set(t, d, version=2, alone=2_000)
    company.set(t, d, version=2, alone=2_000)
    assert company.pay(token) == "approval-needed", "an approval under other rules is void"
    assert company.pay(company.token(2_000)[1]) == "final"
    company.set(t, d, version=3, in_force=False)
    assert company.pay(token) == "final"


def test_who_may_have_rules_and_who_must_sign_them_first(bank: Bank) -> None:
    company = Company(bank, is_set=False)
    other, third = PrivateKey.generate(), PrivateKey.generate()
    company.persons = [("a", other.public), ("b", third.public)]
    assert refused(lambda: company.set(other, third)) == "control-invalid"
    company.persons = [("a", company.treasurer.public), ("a", other.public)]
    assert refused(lambda: company.set(company.treasurer, other)) == "control-invalid"
    person = bank.holder(funds=10)
    company.wallet = person
    company.persons = [("a", person.key.public), ("b", other.public)]
    assert refused(lambda: company.set(person.key, other)) == "owner-not-corporate"


def test_a_device_that_is_no_signatorys_pays_nothing(bank: Bank) -> None:
    company = Company(bank, is_set=False)
    company.set(company.treasurer, company.director)
    with bank.database.engine.begin() as connection:
        connection.execute(sa.text("UPDATE payment_signatory SET thumbprint = 'gone' WHERE person = 'treasurer'"))
    assert company.pay(company.token(1)[1]) == "signatory-unknown"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE payment_approval SET maker = checker", "payment_approval_two_persons_i8_ck"),
        ("UPDATE payment_approval SET maker = 'x', withdrawn_at = now()", "payment_approval_used_or_withdrawn_ck"),
        (
            "UPDATE payment_control_change SET first_person = second_person",
            "payment_control_change_two_persons_i8_ck",
        ),
    ],
)
def test_table_refuses_what_the_rules_refuse(bank: Bank, statement: str, constraint: str) -> None:
    company = Company(bank)
    company.approve(*company.token(5_000), company.director)
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))


def no_rules(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's rule is gone: only the database's is left."""
    monkeypatch.setattr("wallet.usecases.own_rules.controls_store.lock_controls", lambda connection, accounts: {})


def test_table_has_no_large_payment_without_an_approval(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    company = Company(bank)
    no_rules(bank, monkeypatch)
    assert company.pay(company.token(ALONE)[1]) == "final"
    assert company.held(company.token(ALONE + 1)[1]) == "it is above what one signature may pay"
    assert bank.balance(company.payee) == ALONE


def test_table_has_no_more_on_one_signature_than_the_days_bound(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once and one by one, by several threads; tomorrow there is a new day, and what is approved passes."""
    company = Company(bank)
    no_rules(bank, monkeypatch)

    made = [company.token(500) for _ in range(8)]
    with ThreadPoolExecutor(4) as threads:
        states = list(threads.map(company.pay, [token for _, token in made]))
    held = "approval-needed"
    assert (states.count("final"), states.count(held)) == (ALONE_DAY // 500, 3)
    left = next(item for item, state in zip(made, states, strict=True) if state == held)
    company.approve(*left, company.director)
    assert company.pay(left[1]) == "final"
    assert bank.balance(company.payee) == ALONE_DAY + 500
    bank.clock.advance(timedelta(days=1))
    stranger = bank.holder(funds=10)
    batch = [company.token(900)[1] for _ in range(3)] + [bank.instruction(stranger, company.payee.account, 10)]
    outcomes = pay(bank.context, batch)  # one statement: then each by itself, and the stranger's is paid
    assert [isinstance(item, Declined) for item in outcomes] == [False, False, True, False]
    assert company.held(company.token(900)[1]) == "one signature has paid all that it may in a day"
    assert company.pay(company.token(700)[1]) == "final"


def test_table_holds_exchanges_out_and_refunds_to_the_days_bound_too(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count towards no class's day, so their day is taken from the clock, in the scheme's zone."""
    company = Company(bank)
    no_rules(bank, monkeypatch)
    out = [
        bank.instruction(company.wallet, bank.vault, 900, kind=TransferKind.EXCHANGE_OUT, valid_for=timedelta(days=2))
        for _ in range(4)
    ]
    bank.clock.advance(timedelta(hours=11, minutes=59))  # 23:59 in Shanghai, 15:59 in UTC
    pay(bank.context, out[:2], kinds=EXCHANGES_OUT)
    held = pay(bank.context, out[2:3], kinds=EXCHANGES_OUT)[0]
    assert isinstance(held, Declined) and held.detail == "one signature has paid all that it may in a day"
    bank.clock.advance(timedelta(minutes=2))
    pay(bank.context, out[2:], kinds=EXCHANGES_OUT)


@pytest.mark.parametrize(
    "spoil",
    [
        "digest = sha256('another')",
        "withdrawn_at = now()",
        "valid_until = '2026-06-01'",
        "version = 7",
        "checker = 'treasurer'",
    ],
)
def test_table_takes_no_approval_but_of_exactly_this_by_another_person(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    company = Company(bank)
    payment, token = company.token(5_000)
    company.approve(payment, token, company.director)
    no_rules(bank, monkeypatch)
    with bank.database.engine.begin() as connection:
        connection.execute(sa.text(f"UPDATE payment_approval SET {spoil}"))
    assert company.held(token) == "it is above what one signature may pay"
    assert bank.balance(company.payee) == 0


def test_a_payment_that_was_refused_is_held_again_when_it_comes_again(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    company = Company(bank, is_set=False)
    bank.ledger.fund(company.wallet.account, -100_000)
    refused_before = company.token(ALONE + 1)[1]
    assert company.pay(refused_before) != "final"
    bank.ledger.fund(company.wallet.account, 100_000)
    company.set(company.treasurer, company.director)
    no_rules(bank, monkeypatch)
    assert company.held(refused_before) == "it is above what one signature may pay"


def test_what_was_counted_under_other_rules_is_not_judged_again(bank: Bank) -> None:
    """Refused when one signature was enough, approved when it is not any more: it is paid."""
    company = Company(bank)
    bank.ledger.fund(company.wallet.account, -100_000)
    payment, token = company.token(ALONE)
    assert company.pay(token) == "refused"
    bank.ledger.fund(company.wallet.account, 100_000)
    company.set(company.treasurer, company.director, version=2, alone=100, day=100)
    assert company.pay(token) == "approval-needed"
    company.approve(payment, token, company.director)
    assert company.pay(token) == "final"


def test_an_approval_of_another_wallets_signatories_is_none(bank: Bank) -> None:
    company, other = Company(bank), Company(bank)
    payment, token = company.token(ALONE + 1)
    document = PaymentApproval(
        wallet=other.wallet.wallet.id, payments=[approved_payment(payment, token)], valid_until=other.soon
    )
    controls.approve(bank.context, other.wallet.wallet.id, sign_approval(document, other.director))
    assert company.pay(token) == "approval-needed"


def test_rules_that_are_set_in_this_very_moment_hold(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch's first look has missed them: the database refuses, and the second look is a plain refusal."""
    company = Company(bank)
    looks: list[int] = []
    real = carriage.lock_payers_and_rules

    def late(*arguments: Any) -> carriage.Locked:
        looks.append(1)
        found = real(*arguments)
        return replace(found, of_controls=set()) if len(looks) == 1 else found

    monkeypatch.setattr("wallet.usecases.pay.carriage.lock_payers_and_rules", late)
    assert company.pay(company.token(ALONE + 1)[1]) == "approval-needed"
    assert len(looks) == 2


def test_lower_rules_leave_nothing_and_higher_ones_count_what_was_paid(bank: Bank) -> None:
    company = Company(bank)
    t, d = company.treasurer, company.director
    for _ in range(2):
        assert company.pay(company.token(ALONE)[1]) == "final"
    company.set(t, d, version=2, alone=100, day=500)
    assert controls.find_control(bank.context, company.wallet.wallet.id).control.alone_minor == 2 * ALONE
    assert company.pay(company.token(1)[1]) == "approval-needed"
    company.set(t, d, version=3)
    assert company.pay(company.token(501)[1]) == "approval-needed"
    assert company.pay(company.token(500)[1]) == "final"
    assert company.pay(company.token(1)[1]) == "approval-needed"


def test_a_forgotten_payment_leaves_no_row_and_uses_nothing_up(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ledger finds it not to be signed by the account's key (it was replaced): nothing is kept of it."""
    company = Company(bank)
    no_rules(bank, monkeypatch)  # the day's bound is the database's alone then
    account = bank.ledger.accounts[company.wallet.account]
    account.key, key = PrivateKey.generate().public, account.key
    assert company.pay(company.token(900)[1]) == "instruction-invalid"
    account.key = key
    with bank.database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM payment_alone")).scalar() == 0
        assert connection.execute(sa.text("SELECT count(*) FROM payment")).scalar() == 0
    for _ in range(3):
        assert company.pay(company.token(800)[1]) == "final"
    assert company.pay(company.token(101)[1]) == "approval-needed"
    with bank.database.engine.connect() as connection:
        kept = connection.execute(sa.text("SELECT sum(amount_minor), count(*) FROM payment_alone")).one()
    assert tuple(kept) == (2_400, 3)


def test_what_was_signed_is_counted_whatever_the_row_says(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row with less in it than its instruction is no way past the bound: the ledger books the instruction."""
    company = Company(bank)
    no_rules(bank, monkeypatch)
    real = carriage.insert_initiated

    def smaller(connection: Any, rows: Any, **named: Any) -> None:
        real(connection, [replace(row, amount_minor=1) for row in rows], **named)

    monkeypatch.setattr("wallet.usecases.pay.carriage.insert_initiated", smaller)
    assert company.held(company.token(ALONE + 1)[1]) == "it is above what one signature may pay"

"""Goal: above what one signature alone may pay, a corporate wallet pays nothing that two persons have not signed.
Method: the use cases over PostgreSQL and a fake ledger; every way around that an insider might try; real threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
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
from wallet.usecases import controls, corporate
from wallet.usecases.corporate import LegalData
from wallet.usecases.pay import Declined, pay

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

    def set(self, *keys: PrivateKey, version: int = 1, alone: int = ALONE, in_force: bool = True) -> None:
        document = payment_control(
            self.wallet.wallet.id,
            self.persons,
            alone_max_minor=alone,
            alone_day_max_minor=max(ALONE_DAY, alone),
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
        ("UPDATE payment_control SET alone_minor = alone_day_max_minor + 1", "payment_control_alone_i9_ck"),
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


def test_table_has_no_large_payment_without_an_approval(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service's rule is gone: the database still says no."""
    company = Company(bank)
    monkeypatch.setattr("wallet.usecases.own_rules.controls_store.lock_controls", lambda connection, accounts: {})
    assert company.pay(company.token(ALONE)[1]) == "final"
    with pytest.raises(Exception, match="what one signature may pay"):
        company.pay(company.token(ALONE + 1)[1])
    assert bank.balance(company.payee) == ALONE

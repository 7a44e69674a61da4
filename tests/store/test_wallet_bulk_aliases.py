"""Goal: a payroll may name payees by alias: each is shown by masked name with the account that will be signed to, and a
payroll is no way to try out numbers.
Method: the use cases on a real PostgreSQL and a fake ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kernel import ids
from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import ALL_EVIDENCE, Bank, Holder
from wallet.domain.aliases import LOOKUPS_PER_HOUR_MAX, kind_of
from wallet.domain.bulk import CheckedLine
from wallet.domain.rules import WalletClass
from wallet.usecases import aliases, bulk, corporate
from wallet.usecases.aliases import SandboxCodeSender
from wallet.usecases.corporate import LegalData
from wallet.usecases.wallets import open_wallet, register_customer

PHONE, EMAIL = "+8613800138000", "zhang.san@example.com"


class Desk:
    """A bank with a gateway for codes, and a payer with money."""

    def __init__(self, database: Database) -> None:
        self.bank = Bank(database)
        self.sender = SandboxCodeSender(self.bank.clock)
        self.bank.context = replace(self.bank.context, codes=self.sender)
        self.payer = self.bank.holder(funds=100_000)

    def named(self, name: str, alias: str) -> Holder:
        customer = register_customer(self.bank.context, self.bank.new_id(), name=name, phone="", evidence=ALL_EVIDENCE)
        key = self.payer.key.generate()
        wallet = open_wallet(
            self.bank.context,
            self.bank.new_id(),
            customer_id=customer.customer.id,
            wallet_class=WalletClass.II,
            device_key=key.public.to_jwk(),
        )
        kind = kind_of(alias)
        assert kind is not None
        row = aliases.ask(self.bank.context, self.bank.new_id(), kind=kind, alias=alias, wallet_id=wallet.id)
        aliases.verify(self.bank.context, row.id, self.sender.sent()[0].code)
        return Holder(wallet, key)

    def check(self, *payees: str) -> list[CheckedLine]:
        lines = [f"l{number},{payee},1.00," for number, payee in enumerate(payees)]
        content = "\r\n".join(["line_id,payee,amount,description", *lines]) + "\r\n"
        return bulk.check_file(self.bank.context, self.payer.wallet.id, content.encode()).lines


@pytest.fixture
def desk(fresh_database: Callable[[str], str]) -> Iterator[Desk]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Desk(database)
    database.close()


def test_aliases_are_shown_by_masked_name_with_their_account(desk: Desk) -> None:
    zhang, jane = desk.named("张三", PHONE), desk.named("Jane Smith", EMAIL)
    plain = ids.show_account(zhang.account)
    found = desk.check("+86 138-0013-8000", "Zhang.San@Example.com", plain, "+8613800138001", "no alias at all")
    assert [(line.account, line.payee_name, line.refusal) for line in found] == [
        (zhang.account, "张*", None),
        (jane.account, "J*** S***", None),
        (zhang.account, None, None),
        (None, None, "payee-unknown"),
        (None, None, "payee-unknown"),
    ]


def test_own_alias_and_a_suspended_payee_are_not_paid(desk: Desk) -> None:
    jane = desk.named("Jane Smith", EMAIL)
    kind = kind_of(PHONE)
    assert kind == "phone"
    row = aliases.ask(desk.bank.context, desk.bank.new_id(), kind=kind, alias=PHONE, wallet_id=desk.payer.wallet.id)
    aliases.verify(desk.bank.context, row.id, desk.sender.sent()[0].code)
    with desk.bank.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE wallet SET state = 'closing' WHERE id = %s", (jane.wallet.id,))
    assert [line.refusal for line in desk.check(PHONE, EMAIL)] == ["accounts-must-differ", "payee-unknown"]


def test_a_payroll_is_no_way_to_try_numbers_out(desk: Desk) -> None:
    numbers = [f"+86138{number:08}" for number in range(LOOKUPS_PER_HOUR_MAX + 1)]
    assert refusal(lambda: desk.check(*numbers)) == "alias-lookups-too-many"
    desk.check(*numbers[:-1])
    desk.check(numbers[0].replace("+86138", "acc_"))  # no alias, no lookup
    assert refusal(lambda: desk.check(numbers[0])) == "alias-lookups-too-many"
    corporate.register(
        desk.bank.context,
        desk.payer.wallet.customer_id,
        LegalData("Teahouse", lei="", social_credit_code="91350100M000100Y43"),
    )
    assert {line.refusal for line in desk.check(*numbers)} == {"payee-unknown"}


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        work()
    return caught.value.refusal.value

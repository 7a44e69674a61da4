"""Goal: the migrations make exactly the declared tables, and the tables themselves refuse what the core refuses.
Method: Alembic compares; rows that break a rule are written past the core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, ProgrammingError

from kernel import migrate
from kernel.database import Database
from kernel.postgres import service_role
from tests.wallet_bank import Bank
from wallet.personal_data import PersonalDataUnreadable
from wallet.store.customers import find_customer
from wallet.store.payments import find_payment
from wallet.store.schema import metadata
from wallet.store.tables import payment
from wallet.usecases.pay import pay_one
from wallet.usecases.wallets import find_customer as read_customer
from wallet.usecases.wallets import register_customer


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def test_migrations_make_the_declared_tables(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("wallet")
    assert migrate.is_current("wallet", url)
    assert migrate.differences(url, metadata) == []


def test_use_cases_of_the_tests_run_under_the_services_role(bank: Bank) -> None:
    database = bank.context.database
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert connection.exec_driver_sql("SELECT current_user").scalar_one() == service_role("wallet")
    with (
        pytest.raises(ProgrammingError, match="permission denied"),
        database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.exec_driver_sql("DELETE FROM wallet")


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE payment SET amount_minor = 0", "payment_amount_positive_ck"),
        ("UPDATE payment SET credit_account = debit_account", "payment_accounts_differ_i1_ck"),
        ("UPDATE payment SET booked_at = NULL", "payment_final_is_booked_ck"),
        ("UPDATE payment SET counted_on = NULL", "payment_counted_i9_ck"),
        ("UPDATE payment SET deposit_credited_at = now()", "payment_credited_after_final_ck"),
        ("UPDATE payment SET state = 'lost', booked_at = NULL", "payment_state_ck"),
        ("UPDATE wallet SET usage_day_minor = -1", "wallet_usage_i9_ck"),
        ("UPDATE wallet SET usage_day_minor = usage_year_minor + 1", "wallet_usage_i9_ck"),
        ("UPDATE wallet SET account = NULL", "wallet_open_has_account_ck"),
        ("UPDATE wallet SET wallet_class = 'V'", "wallet_class_ck"),
        ("UPDATE sandbox_deposit SET balance_minor = -1", "sandbox_deposit_not_overdrawn_ck"),
    ],
)
def test_table_refuses_what_the_core_refuses(bank: Bank, statement: str, constraint: str) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    bank.core_banking.credit_deposit(uuid4(), uuid4(), 5)
    pay_one(bank.context, bank.instruction(payer, payee.account, 10))
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_personal_data_rests_encrypted(bank: Bank) -> None:
    first, second = bank.new_id(), bank.new_id()
    for customer_id in (first, second):
        register_customer(bank.context, customer_id, name="Example Name", phone="+8613800000000", evidence=frozenset())
    known = read_customer(bank.context, first)
    assert (known.name, known.phone) == ("Example Name", "+8613800000000")
    with bank.database.engine.connect() as connection:
        dump = str(connection.execute(sa.text("SELECT c::text FROM customer c")).all())
        row = find_customer(connection, first)
    assert b"Example".hex() not in dump and b"13800000000".hex() not in dump
    assert row is not None
    with pytest.raises(PersonalDataUnreadable):
        bank.context.personal_data.open(second, row.wrapped_key, row.personal_data)


def test_payment_rows_keep_every_member(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    reference = uuid4()
    final = pay_one(bank.context, bank.instruction(payer, payee.account, 10, reference=reference))
    with bank.database.engine.connect() as connection:
        stored = find_payment(connection, final.id)
        assert connection.execute(sa.select(sa.func.count()).select_from(payment)).scalar() == 1
    assert stored == final
    assert final.reference == reference

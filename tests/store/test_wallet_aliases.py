"""Goal: an alias leads to a wallet only after its owner proved it; a dump shows no number; nobody can try many.
Method: the use cases on a real PostgreSQL; a sandbox sender; everything that the database holds is searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import ALL_EVIDENCE, Bank, Holder
from wallet.domain.aliases import CODE_SECONDS_MAX, CODE_TRIES_MAX, CODES_PER_HOUR_MAX, LOOKUPS_PER_HOUR_MAX, Alias
from wallet.domain.rules import WalletClass
from wallet.personal_data import PersonalDataVault
from wallet.usecases import aliases, corporate
from wallet.usecases.aliases import SandboxCodeSender
from wallet.usecases.context import Context
from wallet.usecases.corporate import LegalData
from wallet.usecases.wallets import open_wallet, register_customer

PHONE, EMAIL = "+8613800138000", "zhang.san@example.com"


class Desk:
    """A bank with a sandbox gateway for codes."""

    def __init__(self, database: Database) -> None:
        self.bank = Bank(database)
        self.sender = SandboxCodeSender(self.bank.clock)
        self.context: Context = replace(self.bank.context, codes=self.sender)

    def holder(self, name: str = "张三", *, customer: UUID | None = None) -> Holder:
        if customer is None:
            customer = register_customer(
                self.context, self.bank.new_id(), name=name, phone="", evidence=ALL_EVIDENCE
            ).customer.id
        key = PrivateKey.generate()
        wallet = open_wallet(
            self.context,
            self.bank.new_id(),
            customer_id=customer,
            wallet_class=WalletClass.II,
            device_key=key.public.to_jwk(),
        )
        return Holder(wallet, key)

    def ask(self, holder: Holder, alias: str = PHONE, *, id: UUID | None = None) -> Alias:
        kind: Any = "email" if "@" in alias else "phone"
        return aliases.ask(self.context, id or self.bank.new_id(), kind=kind, alias=alias, wallet_id=holder.wallet.id)

    def verified(self, holder: Holder, alias: str = PHONE) -> Alias:
        row = self.ask(holder, alias)
        return aliases.verify(self.context, row.id, self.sender.sent()[0].code)

    def look_up(self, payer: Holder, alias: str = PHONE) -> str:
        kind: Any = "email" if "@" in alias else "phone"
        try:
            found = aliases.look_up(self.context, payer.wallet.id, kind=kind, alias=alias, currency="CNY")
        except ProblemError as error:
            return error.refusal.value
        return f"{found.account} {found.masked_name}"


@pytest.fixture
def desk(fresh_database: Callable[[str], str]) -> Iterator[Desk]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Desk(database)
    database.close()


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06d}"


def test_verified_alias_leads_to_the_wallet_by_masked_name(desk: Desk) -> None:
    payee, payer = desk.holder("欧阳娜娜"), desk.holder("Jane Smith")
    assert desk.look_up(payer) == "alias-not-found"
    row = desk.ask(payee, "+86 138 0013 8000")
    assert desk.look_up(payer) == "alias-not-found"
    assert aliases.verify(desk.context, row.id, desk.sender.sent()[0].code).is_default
    assert desk.look_up(payer, "0086-138-0013-8000") == f"{payee.account} 欧*"
    desk.verified(payer, EMAIL.upper())
    assert desk.look_up(payee, EMAIL) == f"{payer.account} J*** S***"
    assert desk.sender.sent()[0].to == EMAIL


def test_asking_again_sends_no_second_code(desk: Desk) -> None:
    holder, alias_id = desk.holder(), desk.bank.new_id()
    assert desk.ask(holder, id=alias_id) == desk.ask(holder, id=alias_id)
    assert len(desk.sender.sent()) == 1
    assert refused(lambda: desk.ask(holder, EMAIL, id=alias_id)) == "alias-exists"
    assert refused(lambda: desk.ask(holder, "13800138000")) == "alias-invalid"


def test_code_has_few_tries_even_at_once(desk: Desk) -> None:
    row = desk.ask(desk.holder())
    code = desk.sender.sent()[0].code

    def try_code(_: int) -> str:
        return refused(lambda: aliases.verify(desk.context, row.id, wrong(code)))

    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(try_code, range(20)))
    assert said.count("alias-code-wrong") == CODE_TRIES_MAX
    assert said.count("alias-code-spent") == 20 - CODE_TRIES_MAX
    assert refused(lambda: aliases.verify(desk.context, row.id, code)) == "alias-code-spent"
    assert aliases.find(desk.context, row.id).state == "refused"


def test_code_expires_and_is_bound_to_its_request(desk: Desk) -> None:
    first = desk.ask(desk.holder())
    code = desk.sender.sent()[0].code
    second = desk.ask(desk.holder())
    other = desk.sender.sent()[0].code
    if code != other:
        assert refused(lambda: aliases.verify(desk.context, second.id, code)) == "alias-code-wrong"
    desk.bank.clock.advance(timedelta(seconds=CODE_SECONDS_MAX))
    assert refused(lambda: aliases.verify(desk.context, first.id, code)) == "alias-code-spent"


def test_codes_to_one_alias_are_bounded(desk: Desk) -> None:
    for _ in range(CODES_PER_HOUR_MAX):
        desk.ask(desk.holder())
    assert refused(lambda: desk.ask(desk.holder())) == "alias-codes-too-many"
    desk.ask(desk.holder(), EMAIL)
    desk.bank.clock.advance(timedelta(hours=1, seconds=1))
    desk.ask(desk.holder())


def test_gateway_that_is_away_is_said(desk: Desk) -> None:
    holder = desk.holder()
    call = lambda: aliases.ask(  # noqa: E731
        desk.bank.context, desk.bank.new_id(), kind="phone", alias=PHONE, wallet_id=holder.wallet.id
    )
    assert refused(call) == "service-unavailable"


def test_number_that_is_handed_on_leaves_its_old_owner(desk: Desk) -> None:
    before, after, payer = desk.holder("王一"), desk.holder("李二"), desk.holder()
    old = desk.verified(before)
    desk.verified(after)
    assert aliases.find(desk.context, old.id).state == "removed"
    assert desk.look_up(payer) == f"{after.account} 李*"


def test_one_customers_wallets_share_an_alias_with_one_default(desk: Desk) -> None:
    first = desk.holder()
    second, payer = desk.holder(customer=first.wallet.customer_id), desk.holder()
    one, two = desk.verified(first), desk.verified(second)
    assert (one.is_default, two.is_default) == (True, False)
    assert desk.look_up(payer).startswith(f"{first.account} ")
    assert aliases.make_default(desk.context, two.id).is_default
    assert not aliases.find(desk.context, one.id).is_default
    assert desk.look_up(payer).startswith(f"{second.account} ")
    for _ in range(2):
        assert aliases.remove(desk.context, two.id).state == "removed"
    assert desk.look_up(payer) == "alias-not-found"
    assert refused(lambda: aliases.make_default(desk.context, two.id)) == "alias-not-found"
    assert [row.state for row in aliases.list_aliases(desk.context, second.wallet.id)] == ["removed"]


def test_lookups_are_bounded_for_each_payer(desk: Desk) -> None:
    desk.verified(desk.holder())
    scanner, other = desk.holder(), desk.holder()
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda n: desk.look_up(scanner, f"+86138001380{n:02d}"), range(60)))
    assert said.count("alias-lookups-too-many") == 60 - LOOKUPS_PER_HOUR_MAX
    assert desk.look_up(other).endswith("张*")
    desk.bank.clock.advance(timedelta(hours=1))
    assert desk.look_up(scanner).endswith("张*")


def test_dump_shows_no_number_no_address_and_no_code(desk: Desk) -> None:
    holder = desk.holder()
    desk.verified(holder)
    desk.ask(holder, EMAIL)
    code = desk.sender.sent()[0].code
    customer = holder.wallet.customer_id
    legal = LegalData("示例贸易有限公司", "5493001KJTIIGC8Y1R12", "91350100M000100Y43")
    assert corporate.register(desk.context, customer, legal) == legal
    dump = ""
    with desk.bank.database.engine.connect() as connection:
        for table in connection.execute(
            sa.text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).scalars():
            dump += str(connection.execute(sa.text(f'SELECT t::text FROM "{table}" t')).scalars().all())
    for secret in (PHONE, PHONE[1:], EMAIL, f'"{code}"', legal.legal_name, legal.lei, legal.social_credit_code, "张三"):
        assert secret not in dump and secret.encode().hex() not in dump
    other_key = PersonalDataVault(bytes([1]) * 32)
    assert other_key.blind_index("alias-phone", PHONE) != desk.context.personal_data.blind_index("alias-phone", PHONE)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (LegalData("N", "", ""), "corporate-data-invalid"),
        (LegalData("N", "5493001KJTIIGC8Y1R13", ""), "corporate-data-invalid"),
        (LegalData("N", "", "91350100M000100Y44"), "corporate-data-invalid"),
        (LegalData("Other", "5493001KJTIIGC8Y1R12", ""), "customer-exists"),
    ],
)
def test_corporate_data_is_checked_and_kept_once(desk: Desk, data: LegalData, refusal: str) -> None:
    customer = desk.holder().wallet.customer_id
    legal = LegalData("N", "5493001KJTIIGC8Y1R12", "")
    for _ in range(2):
        assert corporate.register(desk.context, customer, legal) == legal
    assert refused(lambda: corporate.register(desk.context, customer, data)) == refusal
    assert corporate.find(desk.context, customer) == legal
    assert refused(lambda: corporate.find(desk.context, desk.holder().wallet.customer_id)) == "customer-not-found"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE wallet_alias SET tries_left = 6", "wallet_alias_tries_ck"),
        ("UPDATE wallet_alias SET alias_hash = '+8613800138000'", "wallet_alias_hash_ck"),
        ("UPDATE wallet_alias SET state = 'pending', is_default = false", "wallet_alias_pending_has_code_ck"),
        ("UPDATE wallet_alias SET state = 'pending', code_hash = '', code_until = now()", "wallet_alias_default"),
        ("UPDATE wallet_alias SET verified_at = NULL", "wallet_alias_verified_ck"),
        ("UPDATE wallet_alias SET state = 'removed', is_default = false", "wallet_alias_ended_ck"),
        ("UPDATE alias_lookup_count SET lookups = 31", "alias_lookup_count_bounded_ck"),
        (
            "INSERT INTO wallet_alias SELECT gen_random_uuid(), alias_hash, kind, wallet_id, currency, state,"
            " is_default, code_hash, code_until, tries_left, created_at, verified_at, ended_at FROM wallet_alias",
            "wallet_alias_(default|once)",
        ),
    ],
)
def test_table_refuses_what_the_core_refuses(desk: Desk, statement: str, constraint: str) -> None:
    holder = desk.holder()
    desk.verified(holder)
    desk.look_up(holder)
    with pytest.raises(IntegrityError, match=constraint), desk.bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))

"""Goal: a pending pack takes effect at midnight of its day, here at once and at the ledger wallet by wallet.
Method: the recovery pass on a real PostgreSQL and a fake ledger that knows, or does not know, the new classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import Bank
from wallet.domain.rules import WalletClass, ledger_rule_classes
from wallet.usecases.context import Context
from wallet.usecases.pay import pay_one
from wallet.usecases.rule_adoption import adopt_pack
from wallet.usecases.wallets import find_wallet

MIDNIGHT = datetime(2026, 6, 30, 16, tzinfo=UTC)
"""Of 1 July in Shanghai."""


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def with_pending(bank: Bank) -> Context:
    stricter = bank.pack.classes[WalletClass.IV].model_copy(
        update={"single": bank.pack.classes[WalletClass.IV].single.model_copy(update={"max": "10"})}
    )
    pending = bank.pack.model_copy(
        update={
            "name": "ecny-2026-07",
            "in_force_from": date(2026, 7, 1),
            "classes": {**bank.pack.classes, WalletClass.IV: stricter},
        }
    )
    return replace(bank.context, packs=(bank.pack, pending))


def test_a_pending_pack_decides_from_its_midnight_on_and_the_ledger_follows(bank: Bank) -> None:
    context = with_pending(bank)
    payer, payee = bank.holder(WalletClass.IV, funds=100_00), bank.holder()
    bank.clock.advance(MIDNIGHT - bank.clock() - timedelta(seconds=1))
    assert (adopt_pack(context), context.pack.name) == (0, "ecny-2021-06")
    assert pay_one(context, bank.instruction(payer, payee.account, 10_01)).state == "final"
    bank.clock.advance(timedelta(seconds=1))
    assert (adopt_pack(context), context.pack.name) == (0, "ecny-2026-07")  # the ledger does not know its classes yet
    with pytest.raises(ProblemError) as caught:
        pay_one(context, bank.instruction(payer, payee.account, 10_01))
    assert caught.value.refusal.value == "single-limit-exceeded"
    assert find_wallet(context, payer.wallet.id).rule_pack == "ecny-2021-06"
    bank.ledger.classes |= {item.name: item for item in ledger_rule_classes(context.pack)}
    assert adopt_pack(context) == 2
    assert adopt_pack(context) == 0
    assert find_wallet(context, payer.wallet.id).rule_pack == "ecny-2026-07"
    assert bank.ledger.get_account(payer.account).rule_class == "ecny-2026-07/IV"


def test_a_silent_ledger_is_asked_again_and_nothing_is_half_done(bank: Bank) -> None:
    context = with_pending(bank)
    payer = bank.holder(WalletClass.IV)
    bank.clock.advance(MIDNIGHT - bank.clock())
    bank.ledger.classes |= {item.name: item for item in ledger_rule_classes(context.packs[1])}
    bank.ledger.unreachable = True
    assert adopt_pack(context) == 0
    bank.ledger.unreachable, bank.ledger.lose_answers = False, 1
    adopt_pack(context)
    adopt_pack(context)
    assert find_wallet(context, payer.wallet.id).rule_pack == "ecny-2026-07"

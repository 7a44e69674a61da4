"""Goal: the bridge obtains the bank's signature on exactly the legs the bank ordered, once, and on nothing else.
Method: one good leg, then each member of it changed alone; repeated, raced and repeated with other content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from kernel.crypto import jws
from kernel.database import Database
from kernel.ids import AccountNumber
from ledger.contract import INSTRUCTION_TYP, SignedInstruction, TransferKind, TransferTerms
from tests.wallet_bank import NOON, Bank
from wallet.domain.records import SettlementOrder
from wallet.usecases.settle import authorise_legs, register_orders

PAYEE = AccountNumber(99)


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def order(**changes: Any) -> SettlementOrder:
    values: dict[str, Any] = {
        "id": "ins-1",
        "ledger": "cny",
        "pay_currency": "CNY",
        "pay_amount_minor": 5000,
        "receive_currency": "AED",
        "receive_amount_minor_min": 2500,
        "credit_account": PAYEE,
        "valid_until": NOON + timedelta(hours=1),
        "created_at": NOON,
    }
    return SettlementOrder(**(values | changes))


def leg(bank: Bank, **changes: Any) -> TransferTerms:
    values: dict[str, Any] = {
        "id": bank.new_id(),
        "kind": TransferKind.HOLD,
        "debit": bank.vault,
        "credit": PAYEE,
        "amount_minor": 5000,
        "currency": "CNY",
        "commit_hash": b"c" * 32,
        "abort_hash": b"a" * 32,
    }
    # Changes go past the contract's own checks of shape: the bank's decision must not lean on them.
    return TransferTerms(**values).model_copy(update=changes)


def ask(bank: Bank, terms: TransferTerms, *, id: str = "ins-1", ledger: str = "cny") -> str:
    token, refusal = authorise_legs(bank.context, [(id, ledger, terms)])[0]
    return refusal.value if refusal is not None else token or ""


def test_ordered_leg_is_signed_to_the_letter_and_the_same_again(bank: Bank) -> None:
    assert register_orders(bank.context, [order()]) == [None]
    terms = leg(bank)
    token = ask(bank, terms)
    document = SignedInstruction.model_validate_json(jws.verify(token, bank.context.key.public, typ=INSTRUCTION_TYP))
    assert (document.terms, document.ledger) == (terms, "cny")
    assert document.valid_until == NOON + timedelta(hours=1)
    bank.clock.advance(timedelta(hours=2))
    assert ask(bank, terms) == token


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"amount_minor": 5001}, "leg-terms-mismatch"),
        ({"amount_minor": 4999}, "leg-terms-mismatch"),
        ({"credit": AccountNumber(98)}, "leg-terms-mismatch"),
        ({"currency": "AED"}, "leg-terms-mismatch"),
        ({"kind": TransferKind.PAYMENT}, "leg-terms-mismatch"),
        ({"kind": TransferKind.EXCHANGE_IN}, "leg-terms-mismatch"),
        ({"commit_hash": None}, "leg-terms-mismatch"),
        ({"abort_hash": None}, "leg-terms-mismatch"),
        ({"abort_hash": b"c" * 32}, "leg-terms-mismatch"),
        ({"secret": b"s" * 32}, "leg-terms-mismatch"),
        ({"expires_at": NOON + timedelta(minutes=5)}, "leg-terms-mismatch"),
        ({"debit": AccountNumber(97)}, "not-our-vault"),
        ({"debit": None}, "not-our-vault"),
    ],
)
def test_leg_that_differs_from_the_order_is_not_signed(bank: Bank, change: dict[str, Any], refusal: str) -> None:
    register_orders(bank.context, [order()])
    assert ask(bank, leg(bank, **change)) == refusal


def test_leg_without_an_order_or_past_it_or_elsewhere_is_not_signed(bank: Bank) -> None:
    assert ask(bank, leg(bank)) == "settlement-not-found"
    register_orders(bank.context, [order()])
    assert ask(bank, leg(bank), ledger="usd") == "ledger-unknown"
    abroad = bank.context.ledgers.vault(bank.context.ledgers.all()[1])
    assert ask(bank, leg(bank, debit=abroad), ledger="aed") == "leg-terms-mismatch"
    bank.clock.advance(timedelta(hours=1))
    assert ask(bank, leg(bank)) == "settlement-expired"


def test_customers_wallet_is_never_pledged_by_the_bank(bank: Bank) -> None:
    holder = bank.holder(funds=10_000)
    register_orders(bank.context, [order()])
    assert ask(bank, leg(bank, debit=holder.account)) == "not-our-vault"


def test_second_leg_under_one_order_is_refused(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    ask(bank, terms)
    assert ask(bank, leg(bank)) == "leg-already-authorised"
    assert ask(bank, terms.model_copy(update={"commit_hash": b"d" * 32})) == "leg-already-authorised"


def test_one_hold_id_cannot_serve_two_orders(bank: Bank) -> None:
    register_orders(bank.context, [order(), order(id="ins-2")])
    terms = leg(bank)
    ask(bank, terms)
    assert ask(bank, terms, id="ins-2") == "leg-already-authorised"


def test_two_legs_of_one_order_in_one_request_get_one_signature(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    first, second = leg(bank), leg(bank)
    answers = authorise_legs(bank.context, [("ins-1", "cny", first), ("ins-1", "cny", second)])
    assert answers[0][0] is not None
    assert (answers[1][0], answers[1][1]) == (None, "leg-already-authorised")


def test_race_of_two_legs_gets_one_signature(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    legs = [leg(bank) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda terms: ask(bank, terms), legs))
    assert sum(answer != "leg-already-authorised" for answer in answers) == 1


def test_order_again_is_the_same_and_with_other_content_refused(bank: Bank) -> None:
    assert register_orders(bank.context, [order()]) == [None]
    bank.clock.advance(timedelta(minutes=1))
    again = order(created_at=bank.clock())
    assert register_orders(bank.context, [again, order(pay_amount_minor=6000)]) == [None, "settlement-exists"]
    assert register_orders(bank.context, [order(id="x"), order(id="x", credit_account=AccountNumber(1))]) == [
        None,
        "settlement-exists",
    ]


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"ledger": "usd"}, "ledger-unknown"),
        ({"pay_currency": "AED", "receive_currency": "CNY"}, "leg-terms-mismatch"),
        ({"receive_currency": "CNY"}, "leg-terms-mismatch"),
        ({"pay_amount_minor": 0}, "leg-terms-mismatch"),
        ({"receive_amount_minor_min": 0}, "leg-terms-mismatch"),
    ],
)
def test_impossible_order_is_not_recorded(bank: Bank, change: dict[str, Any], refusal: str) -> None:
    assert register_orders(bank.context, [order(**change)]) == [refusal]
    assert ask(bank, leg(bank)) == "settlement-not-found"


def test_bank_pays_from_its_vault_abroad_too(bank: Bank) -> None:
    abroad = bank.context.ledgers.vault(bank.context.ledgers.all()[1])
    given = order(ledger="aed", pay_currency="AED", receive_currency="CNY")
    assert register_orders(bank.context, [given]) == [None]
    token = ask(bank, leg(bank, debit=abroad, currency="AED"), ledger="aed")
    assert jws.verify(token, bank.context.key.public, typ=INSTRUCTION_TYP)


def test_thousand_orders_and_legs_at_once(bank: Bank) -> None:
    assert set(register_orders(bank.context, [order(id=f"ins-{n}") for n in range(1000)])) == {None}
    legs = [(f"ins-{n}", "cny", leg(bank)) for n in range(1000)]
    answers = authorise_legs(bank.context, legs)
    assert all(token is not None for token, _ in answers)
    assert authorise_legs(bank.context, legs) == answers

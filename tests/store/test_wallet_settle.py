"""Goal: the bridge obtains the bank's signature on exactly the legs the bank ordered, once, against what it is to get.
Method: one good PvP, then each member of either leg changed alone; repeated, raced and repeated with other content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from kernel import strict_json
from kernel.client import ServiceClient
from kernel.crypto import jws
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId, show_account
from kernel.money import Currency, Money
from ledger.contract import INSTRUCTION_TYP, SignedInstruction, TransferKind, TransferTerms
from settlement.domain.escrow import HoldOrder, LegTerms
from settlement.islands.authorisers import Authorised, HttpAuthoriser, leg_order
from settlement.islands.port import Refused
from tests.sizes import some
from tests.wallet_bank import NOON, Bank
from wallet.api.settlements import authorise_legs as api_authorise_legs
from wallet.api.settlements import register_settlement_instructions
from wallet.contract import LegAuthorisationsRequest, SettlementOrdersRequest
from wallet.domain.records import OrderedPayment, OrderedReceipt, SettlementOrder
from wallet.domain.settlements import LedgerLeg
from wallet.usecases.settle import LegRequest, authorise_legs, register_orders

PAYEE = AccountNumber(99)
PAYER_ABROAD = AccountNumber(77)
UETR, UETR_2 = UUID("8f0a6d1e-3b7c-4f52-9a51-0c6c8f0e7a11"), UUID("2d7b9c40-51e8-4c0b-8f3e-6a9d1e2f3b22")


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def order(**changes: Any) -> SettlementOrder:
    values: dict[str, Any] = {
        "id": str(UETR),
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
        "reference": UETR,
        "commit_hash": b"c" * 32,
        "abort_hash": b"a" * 32,
    }
    # Changes go past the contract's own checks of shape: the bank's decision must not lean on them.
    return TransferTerms(**values).model_copy(update=changes)


def counter(bank: Bank, signed: TransferTerms, *, ledger: str = "aed", **changes: Any) -> LedgerLeg:
    """The leg that pays the bank what it ordered to receive, under the hashes and reference of the signed one."""
    values: dict[str, Any] = {
        "id": bank.new_id(),
        "kind": TransferKind.HOLD,
        "debit": PAYER_ABROAD,
        "credit": bank.vault_abroad,
        "amount_minor": 2500,
        "currency": "AED",
    }
    copied = {name: getattr(signed, name) for name in ("reference", "commit_hash", "abort_hash", "expires_at")}
    return LedgerLeg(ledger, TransferTerms(**values).model_copy(update=copied | changes))


def request(
    bank: Bank,
    terms: TransferTerms,
    *,
    uetr: UUID = UETR,
    ledger: str = "cny",
    others: Sequence[LedgerLeg] | None = None,
) -> LegRequest:
    found = [counter(bank, terms)] if others is None else others
    return LegRequest(str(uetr), LedgerLeg(ledger, terms), found)


def ask(bank: Bank, terms: TransferTerms, **options: Any) -> str:
    token, refusal = authorise_legs(bank.context, [request(bank, terms, **options)])[0]
    return refusal.value if refusal is not None else token or ""


def test_ordered_leg_is_signed_to_the_letter_and_the_same_again(bank: Bank) -> None:
    assert register_orders(bank.context, [order()]) == [None]
    terms = leg(bank)
    others = [counter(bank, terms)]
    token = ask(bank, terms, others=others)
    document = SignedInstruction.model_validate_json(jws.verify(token, bank.context.key.public, typ=INSTRUCTION_TYP))
    assert (document.terms, document.ledger) == (terms, "cny")
    assert document.valid_until == NOON + timedelta(hours=1)
    bank.clock.advance(timedelta(hours=2))
    assert ask(bank, terms, others=others) == token


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
        ({"reference": UETR_2}, "leg-terms-mismatch"),
        ({"reference": None}, "leg-terms-mismatch"),
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
    assert ask(bank, leg(bank, debit=bank.vault_abroad), ledger="aed") == "leg-terms-mismatch"
    bank.clock.advance(timedelta(hours=1))
    assert ask(bank, leg(bank)) == "settlement-expired"


def test_customers_wallet_is_never_pledged_by_the_bank(bank: Bank) -> None:
    holder = bank.holder(funds=10_000)
    register_orders(bank.context, [order()])
    assert ask(bank, leg(bank, debit=holder.account)) == "not-our-vault"


def test_second_leg_under_one_order_is_refused(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    assert len(ask(bank, terms)) > 100
    assert ask(bank, leg(bank)) == "leg-already-authorised"
    assert ask(bank, terms.model_copy(update={"commit_hash": b"d" * 32})) == "leg-already-authorised"


def test_one_hold_id_cannot_serve_two_orders(bank: Bank) -> None:
    register_orders(bank.context, [order(), order(id=str(UETR_2))])
    terms = leg(bank)
    assert len(ask(bank, terms)) > 100
    assert ask(bank, terms.model_copy(update={"reference": UETR_2}), uetr=UETR_2) == "leg-already-authorised"


def test_two_legs_of_one_order_in_one_request_get_one_signature(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    first, second = leg(bank), leg(bank)
    answers = authorise_legs(bank.context, [request(bank, first), request(bank, second)])
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
    given = order(ledger="aed", pay_currency="AED", receive_currency="CNY")
    assert register_orders(bank.context, [given]) == [None]
    terms = leg(bank, debit=bank.vault_abroad, currency="AED")
    home = counter(bank, terms, ledger="cny", credit=bank.vault, currency="CNY")
    token = ask(bank, terms, ledger="aed", others=[home])
    assert jws.verify(token, bank.context.key.public, typ=INSTRUCTION_TYP)


def test_thousand_orders_and_legs_at_once(bank: Bank) -> None:
    uetrs = [uuid4() for _ in range(1000)]
    assert set(register_orders(bank.context, [order(id=str(uetr)) for uetr in uetrs])) == {None}
    requests = [request(bank, leg(bank, reference=uetr), uetr=uetr) for uetr in uetrs]
    answers = authorise_legs(bank.context, requests)
    assert all(token is not None for token, _ in answers)
    assert authorise_legs(bank.context, requests) == answers


# --- what the bank is to get


@pytest.mark.parametrize(
    "change",
    some(
        [
            {"amount_minor": 1},
            {"amount_minor": 2499},
            {"amount_minor": None},
            {"currency": "USD"},
            {"currency": "CNY"},
            {"credit": AccountNumber(98)},
            {"credit": None},
            {"ledger": "cny"},
            {"ledger": "usd"},
            {"commit_hash": b"d" * 32},
            {"abort_hash": b"d" * 32},
            {"commit_hash": b"a" * 32, "abort_hash": b"c" * 32},
            {"commit_hash": None, "abort_hash": None},
            {"reference": UETR_2},
            {"reference": None},
            {"kind": TransferKind.PAYMENT},
            {"expires_at": NOON + timedelta(hours=2)},
        ],
        each=2,
    ),
    ids=str,
)
def test_nothing_is_signed_against_a_leg_that_brings_less_or_otherwise(bank: Bank, change: dict[str, Any]) -> None:
    """Attack: the counterparty submits the instruction itself, with a counter amount of its own choice."""
    register_orders(bank.context, [order()])
    terms = leg(bank)
    assert ask(bank, terms, others=[counter(bank, terms, **change)]) == "counter-leg-mismatch"
    # The refusal used nothing up: the leg that was ordered is signed afterwards.
    assert len(ask(bank, terms)) > 100


def test_a_leg_in_the_ordered_currency_on_a_ledger_of_another_pays_nobody(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    others = [counter(bank, terms, ledger="cny", credit=bank.vault)]
    assert ask(bank, terms, others=others) == "counter-leg-mismatch"


def test_more_than_the_minimum_is_welcome(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    assert len(ask(bank, terms, others=[counter(bank, terms, amount_minor=2501)])) > 100


def test_a_settlement_with_no_leg_for_us_or_two_is_not_signed(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    assert ask(bank, terms, others=[]) == "counter-leg-mismatch"
    assert ask(bank, terms, others=[counter(bank, terms)] * 2) == "counter-leg-mismatch"


def test_two_legs_that_bring_the_minimum_together_are_signed_and_one_shown_twice_is_not(bank: Bank) -> None:
    """Both post or none does, so their sum is what counts; but a hold stands once, however often it is shown."""
    register_orders(bank.context, [order()])
    terms = leg(bank)
    half = counter(bank, terms, amount_minor=1250)
    assert ask(bank, terms, others=[half, half]) == "counter-leg-mismatch"
    assert ask(bank, terms, others=[half, counter(bank, terms, amount_minor=1249)]) == "counter-leg-mismatch"
    as_own_id = counter(bank, terms, id=terms.id)
    assert ask(bank, terms, others=[as_own_id]) == "counter-leg-mismatch"
    assert len(ask(bank, terms, others=[half, counter(bank, terms, amount_minor=1250)])) > 100


def test_a_leg_between_others_is_allowed_and_one_out_of_our_vault_is_not(bank: Bank) -> None:
    """Attack: beside the ordered pair, a third leg that takes the received money away again."""
    register_orders(bank.context, [order()])
    terms = leg(bank)
    pays_us = counter(bank, terms)
    takes_back = counter(bank, terms, debit=bank.vault_abroad, credit=PAYER_ABROAD)
    from_home = counter(bank, terms, ledger="cny", debit=bank.vault, credit=PAYEE, currency="CNY")
    assert ask(bank, terms, others=[pays_us, takes_back]) == "counter-leg-mismatch"
    assert ask(bank, terms, others=[pays_us, from_home]) == "counter-leg-mismatch"
    assert ask(bank, terms, others=[counter(bank, terms, debit=bank.vault_abroad)]) == "counter-leg-mismatch"
    stranger = counter(bank, terms, ledger="usd", credit=AccountNumber(5), currency="USD")
    assert len(ask(bank, terms, others=[pays_us, stranger])) > 100


def test_asked_again_with_other_legs_is_refused_and_in_another_order_is_the_same(bank: Bank) -> None:
    register_orders(bank.context, [order()])
    terms = leg(bank)
    pays_us = counter(bank, terms)
    stranger = counter(bank, terms, ledger="usd", credit=AccountNumber(5), currency="USD")
    token = ask(bank, terms, others=[pays_us, stranger])
    assert ask(bank, terms, others=[stranger, pays_us]) == token
    assert ask(bank, terms, others=[pays_us]) == "leg-already-authorised"
    assert ask(bank, terms, others=[]) == "leg-already-authorised"
    more = counter(bank, terms, id=pays_us.terms.id, amount_minor=2501)
    assert ask(bank, terms, others=[more, stranger]) == "leg-already-authorised"


# --- settlements of more than two legs

PAYEE_2 = AccountNumber(98)


def cycle_order(bank: Bank, **changes: Any) -> SettlementOrder:
    """Two payments at home against money abroad."""
    second = OrderedPayment("cny", "CNY", 700, PAYEE_2)
    return order(**({"further_payments": (second,)} | changes))


def cycle_legs(bank: Bank, **changes: Any) -> tuple[TransferTerms, TransferTerms, LedgerLeg, LedgerLeg]:
    first = leg(bank, **changes)
    second = leg(bank, credit=PAYEE_2, amount_minor=700, **changes)
    pays_us = counter(bank, first)
    stranger = counter(bank, first, ledger="usd", credit=AccountNumber(5), currency="USD")
    return first, second, pays_us, stranger


def test_a_netted_cycle_is_signed_payment_by_payment_against_all_its_legs(bank: Bank) -> None:
    assert register_orders(bank.context, [cycle_order(bank)]) == [None]
    first, second, pays_us, stranger = cycle_legs(bank)
    one = request(bank, first, others=[LedgerLeg("cny", second), pays_us, stranger])
    two = request(bank, second, others=[stranger, LedgerLeg("cny", first), pays_us])
    answers = authorise_legs(bank.context, [one, two])
    assert [refusal for _, refusal in answers] == [None, None]
    read = [jws.verify(token or "", bank.context.key.public, typ=INSTRUCTION_TYP) for token, _ in answers]
    assert [SignedInstruction.model_validate_json(item).terms for item in read] == [first, second]
    assert authorise_legs(bank.context, [two, one]) == answers[::-1]


def test_one_order_serves_one_settlement_however_many_payments_it_has(bank: Bank) -> None:
    """Attack: one payment is signed in one settlement and the other in a second, of other secrets."""
    register_orders(bank.context, [cycle_order(bank)])
    first, second, pays_us, _ = cycle_legs(bank)
    assert len(ask(bank, first, others=[LedgerLeg("cny", second), pays_us])) > 100
    other_first, other_second, other_pays, _ = cycle_legs(bank, commit_hash=b"d" * 32)
    others = [LedgerLeg("cny", other_first), other_pays]
    assert ask(bank, other_second, others=others) == "leg-already-authorised"
    assert ask(bank, second, others=[LedgerLeg("cny", first), other_pays]) == "leg-already-authorised"


def test_a_cycle_that_pays_more_less_or_otherwise_than_ordered_is_not_signed(bank: Bank) -> None:
    register_orders(bank.context, [cycle_order(bank)])
    first, second, pays_us, stranger = cycle_legs(bank)
    more = LedgerLeg("cny", second.model_copy(update={"amount_minor": 701}))
    elsewhere = LedgerLeg("cny", second.model_copy(update={"credit": AccountNumber(55)}))
    third = LedgerLeg("cny", leg(bank, credit=AccountNumber(55), amount_minor=1))
    again = LedgerLeg("cny", leg(bank, credit=PAYEE_2, amount_minor=700))
    good = LedgerLeg("cny", second)
    for others in ([pays_us], [more, pays_us], [elsewhere, pays_us], [good, third, pays_us], [good, again, pays_us]):
        assert ask(bank, first, others=[*others, stranger]) == "counter-leg-mismatch"
    assert ask(bank, first, others=[good, stranger]) == "counter-leg-mismatch"  # nothing for us
    assert len(ask(bank, first, others=[good, pays_us, stranger])) > 100


def test_a_bank_that_only_pays_its_net_position_signs_that_and_no_more(bank: Bank) -> None:
    register_orders(bank.context, [order(receive_currency=None, receive_amount_minor_min=None)])
    terms = leg(bank)
    stranger = counter(bank, terms, ledger="usd", credit=AccountNumber(5), currency="USD")
    too_much = LedgerLeg("cny", leg(bank, credit=PAYEE_2, amount_minor=1))
    assert ask(bank, terms, others=[stranger, too_much]) == "counter-leg-mismatch"
    assert len(ask(bank, terms, others=[stranger])) > 100


def test_every_receipt_of_an_order_is_wanted(bank: Bank) -> None:
    usd = OrderedReceipt("USD", 10)
    register_orders(bank.context, [order(further_receipts=(usd,))])
    terms = leg(bank)
    pays_us = counter(bank, terms)
    dollars = counter(bank, terms, ledger="usd", credit=bank.vault_abroad, currency="USD", amount_minor=10)
    # The bank is on no ledger of that currency: nothing there pays it.
    assert ask(bank, terms, others=[pays_us]) == "counter-leg-mismatch"
    assert ask(bank, terms, others=[pays_us, dollars]) == "counter-leg-mismatch"


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"further_payments": (OrderedPayment("usd", "USD", 1, PAYEE_2),)}, "ledger-unknown"),
        ({"further_payments": (OrderedPayment("cny", "AED", 1, PAYEE_2),)}, "leg-terms-mismatch"),
        ({"further_payments": (OrderedPayment("cny", "CNY", 0, PAYEE_2),)}, "leg-terms-mismatch"),
        ({"further_payments": (OrderedPayment("cny", "CNY", 1, PAYEE),)}, "leg-terms-mismatch"),
        ({"further_payments": (OrderedPayment("aed", "AED", 1, PAYEE_2),)}, "leg-terms-mismatch"),
        ({"further_receipts": (OrderedReceipt("CNY", 1),)}, "leg-terms-mismatch"),
        ({"further_receipts": (OrderedReceipt("AED", 1),)}, "leg-terms-mismatch"),
        ({"further_receipts": (OrderedReceipt("USD", 0),)}, "leg-terms-mismatch"),
        ({"receive_currency": None}, "leg-terms-mismatch"),
        ({"receive_amount_minor_min": None}, "leg-terms-mismatch"),
    ],
)
def test_an_impossible_order_of_many_legs_is_not_recorded(bank: Bank, change: dict[str, Any], refusal: str) -> None:
    assert register_orders(bank.context, [order(**change)]) == [refusal]


def test_an_order_of_many_legs_again_is_the_same_and_with_other_content_refused(bank: Bank) -> None:
    given = cycle_order(bank, further_receipts=(OrderedReceipt("USD", 10),))
    assert register_orders(bank.context, [given]) == [None]
    assert register_orders(bank.context, [given]) == [None]
    fewer = cycle_order(bank)
    assert register_orders(bank.context, [fewer]) == ["settlement-exists"]


def test_what_the_bridge_sends_is_what_the_institution_reads(bank: Bank) -> None:
    """The bridge's adapter over the real decision: an honest pair is signed, one with a poor counter leg refused."""
    register_orders(bank.context, [order(), order(id=str(UETR_2))])
    payer, payee = bank.context.participant, ParticipantId("ICBKAEAD")

    def holds(uetr: UUID, aed: int) -> list[HoldOrder]:
        legs = (
            LegTerms("cny", payer, payee, bank.vault, PAYEE, Money(5000, Currency.of("CNY"))),
            LegTerms("aed", payee, payer, PAYER_ABROAD, bank.vault_abroad, Money(aed, Currency.of("AED"))),
        )
        return [HoldOrder(bank.new_id(), terms, uetr, b"c" * 32, b"a" * 32) for terms in legs]

    authoriser = HttpAuthoriser({payer: cast("ServiceClient", WalletStub(bank))})
    orders = [leg_order(holds(UETR, 2500), 0), leg_order(holds(UETR_2, 1), 0)]
    honest, robbed = authoriser.authorise(payer, orders)
    assert isinstance(honest, Authorised)
    assert robbed == Refused("authorisation-refused", "counter-leg-mismatch")
    assert authoriser.authorise(payer, orders)[0] == honest


def test_a_cycle_that_the_bridge_sends_is_read_and_signed_leg_by_leg(bank: Bank) -> None:
    """As on the wire, both ways: the desk's order with two payments, and five legs of which two are the bank's."""
    body = {
        "instruction_id": str(UETR),
        "ledger": "cny",
        "pay_currency": "CNY",
        "pay_amount_minor": "5000",
        "credit_account": show_account(PAYEE),
        "receive_currency": "AED",
        "receive_amount_minor_min": "2500",
        "valid_until": (NOON + timedelta(hours=1)).isoformat(),
        "further_payments": [
            {"ledger": "cny", "currency": "CNY", "amount_minor": "700", "credit_account": show_account(PAYEE_2)}
        ],
    }
    request_body = SettlementOrdersRequest.model_validate({"instructions": [body]})
    recorded = register_settlement_instructions(request_body, bank.context, cast("Any", None))
    assert recorded.results[0].refusal is None
    payer, second, third = bank.context.participant, ParticipantId("ICBKAEAD"), ParticipantId("CCCCUSNY")
    cny, aed, usd = (Currency.of(code) for code in ("CNY", "AED", "USD"))
    legs = (
        LegTerms("cny", payer, second, bank.vault, PAYEE, Money(5000, cny)),
        LegTerms("cny", payer, third, bank.vault, PAYEE_2, Money(700, cny)),
        LegTerms("aed", second, payer, PAYER_ABROAD, bank.vault_abroad, Money(1000, aed)),
        LegTerms("aed", third, payer, AccountNumber(76), bank.vault_abroad, Money(1500, aed)),
        LegTerms("usd", third, second, AccountNumber(5), AccountNumber(6), Money(10, usd)),
    )
    holds = [HoldOrder(bank.new_id(), terms, UETR, b"c" * 32, b"a" * 32) for terms in legs]
    authoriser = HttpAuthoriser({payer: cast("ServiceClient", WalletStub(bank))})
    # One leg at a time, as after a lost answer, and both at once.
    one = authoriser.authorise(payer, [leg_order(holds, 1)])
    both = authoriser.authorise(payer, [leg_order(holds, 0), leg_order(holds, 1)])
    assert all(isinstance(answer, Authorised) for answer in both)
    assert both[1:] == one


class WalletStub:
    """POST /v1/leg-authorisations without the socket and the request signature."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def post(self, path: str, body: bytes, *, idempotent: bool) -> object:
        assert (path, idempotent) == ("/v1/leg-authorisations", True)
        parsed = LegAuthorisationsRequest.model_validate(strict_json.loads(body, wire=True))
        answer = api_authorise_legs(parsed, self._bank.context, cast("Any", None))
        return answer.model_dump(mode="json", exclude_none=True)

"""Goal: the bridge obtains the bank's signature on net legs only where the bank's own orders add up to exactly them,
and an order is signed for once: by itself, or in one netting that is not void.
Method: one good netting of two orders, then each member of it changed alone; then the same orders asked for otherwise,
before and after the ledger shows the signed holds void. The request of the settlement service is parsed as it is sent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from kernel import strict_json
from kernel.client import ServiceClient, ServiceUnreachable
from kernel.crypto import jws
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from ledger.contract import INSTRUCTION_TYP, HoldStatus, HoldView, SignedInstruction, TransferKind, TransferTerms
from settlement.domain.escrow import HoldOrder, LegTerms
from settlement.islands.authorisers import Authorised, HttpAuthoriser, LegOrder, NettedInstruction
from tests.sizes import some
from tests.wallet_bank import NOON, Bank
from wallet.api.settlements import authorise_legs as api_authorise_legs
from wallet.contract import LegAuthorisationsRequest
from wallet.domain.netting import NettedOrder
from wallet.domain.records import SettlementOrder
from wallet.domain.settlements import LedgerLeg
from wallet.usecases.netting import authorise
from wallet.usecases.settle import LegRequest, authorise_legs, register_orders

OTHER, OTHER_ABROAD = AccountNumber(99), AccountNumber(77)
NETTING = UUID("5b1f0f2e-8a6c-4a7f-8f1e-0d7b7c1a2b33")
FIRST, SECOND, THIRD = (str(UUID(int=number, version=4)) for number in (1, 2, 3))
COMMIT, ABORT = b"c" * 32, b"a" * 32


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    found = Bank(database)
    # Pays 5000 CNY for 2500 AED or more, and 1000 AED for 2100 CNY or more: net 2900 CNY out, 1500 AED in.
    orders = [order(FIRST, "cny", "CNY", 5_000, "AED", 2_500), order(SECOND, "aed", "AED", 1_000, "CNY", 2_100)]
    assert register_orders(found.context, orders) == [None, None]
    yield found
    database.close()


def order(key: str, ledger: str, pays: str, amount: int, receives: str, least: int) -> SettlementOrder:
    return SettlementOrder(
        id=key,
        ledger=ledger,
        pay_currency=pays,
        pay_amount_minor=amount,
        receive_currency=receives,
        receive_amount_minor_min=least,
        credit_account=OTHER,
        valid_until=NOON + timedelta(hours=1 if key == FIRST else 2),
        created_at=NOON,
    )


LIST = [NettedOrder(FIRST, {"CNY": 5_000}, {"AED": 2_500}), NettedOrder(SECOND, {"AED": 1_000}, {"CNY": 2_100})]


def out(bank: Bank, amount: int = 2_900, **changes: Any) -> LedgerLeg:
    return _leg("cny", bank, bank.vault, OTHER, amount, "CNY", changes)


def into(bank: Bank, amount: int = 1_500, **changes: Any) -> LedgerLeg:
    return _leg("aed", bank, OTHER_ABROAD, bank.vault_abroad, amount, "AED", changes)


def _leg(
    ledger: str, bank: Bank, debit: AccountNumber, credit: AccountNumber, amount: int, currency: str, changes: Any
) -> LedgerLeg:
    values: dict[str, Any] = {
        "id": bank.new_id(),
        "kind": TransferKind.HOLD,
        "debit": debit,
        "credit": credit,
        "amount_minor": amount,
        "currency": currency,
        "reference": NETTING,
        "commit_hash": COMMIT,
        "abort_hash": ABORT,
    }
    return LedgerLeg(ledger, TransferTerms(**values).model_copy(update=changes))


def ask(
    bank: Bank, legs: Sequence[LedgerLeg], netted: Sequence[NettedOrder] = LIST, *, netting: str = str(NETTING)
) -> list[str]:
    """One answer a leg that debits us: the token or the refusal."""
    paying = [leg for leg in legs if leg.terms.debit in (bank.vault, bank.vault_abroad)] or legs[:1]
    requests = [LegRequest(netting, leg, [other for other in legs if other is not leg]) for leg in paying]
    answers = authorise(bank.context, requests, {netting: netted})
    return [token or (refusal.value if refusal else "") for token, refusal in answers]


def test_exactly_the_sum_of_its_orders_is_signed_and_the_same_again(bank: Bank) -> None:
    legs = [out(bank), into(bank)]
    (token,) = ask(bank, legs)
    document = SignedInstruction.model_validate_json(jws.verify(token, bank.context.key.public, typ=INSTRUCTION_TYP))
    assert (document.terms, document.ledger) == (legs[0].terms, "cny")
    assert document.valid_until == NOON + timedelta(hours=1)  # the first of its orders to expire
    assert ask(bank, [into(bank), legs[0]]) == ["leg-already-authorised"]  # another leg that pays us
    assert ask(bank, list(reversed(legs)), list(reversed(LIST))) == [token]


def test_more_is_received_than_ordered_and_it_counts(bank: Bank) -> None:
    better = [replace(LIST[0], received={"AED": 2_600}), LIST[1]]
    assert ask(bank, [out(bank), into(bank)], better) == ["counter-leg-mismatch"]
    assert len(ask(bank, [out(bank), into(bank, 1_600)], better)[0]) > 100


def test_several_legs_out_and_in_are_signed_together(bank: Bank) -> None:
    legs = [out(bank, 2_000), out(bank, 900, credit=AccountNumber(98)), into(bank, 1_499), into(bank, 1)]
    tokens = ask(bank, legs)
    assert len(tokens) == 2 and all(len(token) > 100 for token in tokens)


def test_money_that_comes_back_in_the_same_currency_is_no_reason_to_pay_more_than_was_ordered(bank: Bank) -> None:
    """Attack: a bridge shows 50,000 out and all but the ordered net back in, to post only the leg that goes out."""
    back = _leg("cny", bank, OTHER, bank.vault, 47_100, "CNY", {})
    assert set(ask(bank, [out(bank, 50_000), back, into(bank)])) == {"counter-leg-mismatch"}


@pytest.mark.parametrize(
    ("legs", "refusal"),
    some(
        [
            (lambda bank: [out(bank, 2_901), into(bank)], "counter-leg-mismatch"),
            (lambda bank: [out(bank, 2_899), into(bank)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, 1_499)], "counter-leg-mismatch"),
            (lambda bank: [out(bank)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank), out(bank, 1)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, reference=uuid4())], "counter-leg-mismatch"),
            (lambda bank: [out(bank, reference=uuid4()), into(bank)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, commit_hash=b"x" * 32)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, abort_hash=b"x" * 32)], "counter-leg-mismatch"),
            (lambda bank: [out(bank, abort_hash=COMMIT), into(bank, abort_hash=COMMIT)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, kind=TransferKind.PAYMENT)], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, credit=AccountNumber(5))], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, currency="HKD")], "counter-leg-mismatch"),
            (lambda bank: [out(bank), into(bank, expires_at=NOON + timedelta(days=1))], "counter-leg-mismatch"),
            (lambda bank: [out(bank), replace(into(bank), ledger="hkd")], "counter-leg-mismatch"),
            (lambda bank: [out(bank, credit=bank.vault), into(bank)], "counter-leg-mismatch"),
            (lambda bank: (lambda leg: [out(bank), leg, leg])(into(bank, 750)), "counter-leg-mismatch"),
        ],
        each=2,
    ),
)
def test_legs_that_are_not_the_sum_are_not_signed(
    bank: Bank, legs: Callable[[Bank], list[LedgerLeg]], refusal: str
) -> None:
    assert set(ask(bank, legs(bank))) == {refusal}


@pytest.mark.parametrize(
    ("netted", "refusal"),
    [
        ([], "settlement-not-found"),
        ([*LIST, NettedOrder(THIRD, {"CNY": 1}, {"AED": 1})], "settlement-not-found"),
        ([replace(LIST[0], paid={"CNY": 4_999}), LIST[1]], "leg-terms-mismatch"),
        ([replace(LIST[0], paid={"CNY": 5_000, "AED": 1}), LIST[1]], "leg-terms-mismatch"),
        ([replace(LIST[0], received={"AED": 2_499}), LIST[1]], "leg-terms-mismatch"),
        ([replace(LIST[0], received={}), LIST[1]], "leg-terms-mismatch"),
        ([LIST[0], LIST[0], LIST[1]], "leg-terms-mismatch"),
        ([LIST[0]], "counter-leg-mismatch"),
    ],
)
def test_a_list_that_is_not_its_orders_is_refused(bank: Bank, netted: list[NettedOrder], refusal: str) -> None:
    assert ask(bank, [out(bank), into(bank)], netted) == [refusal]


def test_an_expired_order_is_not_netted(bank: Bank) -> None:
    bank.clock.advance(timedelta(hours=1))
    assert ask(bank, [out(bank), into(bank)]) == ["settlement-expired"]


# --- once


def alone(bank: Bank, key: str = FIRST) -> LegRequest:
    """One order by itself, as a PvP."""
    terms = out(bank, 5_000, reference=UUID(key)).terms
    return LegRequest(key, LedgerLeg("cny", terms), [into(bank, 2_500, reference=UUID(key))])


def test_an_order_signed_by_itself_is_not_netted_and_a_netted_one_not_netted_again(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(hold: UUID) -> HoldView:
        raise ServiceUnreachable("no answer")

    monkeypatch.setattr(bank.ledger, "get_hold", silent)
    monkeypatch.setattr(bank.abroad, "get_hold", silent)
    (first,) = authorise(bank.context, [alone(bank)], {})
    assert first[0] is not None
    assert ask(bank, [out(bank), into(bank)]) == ["leg-already-authorised"]
    other = [replace(LIST[1])]
    assert len(ask(bank, [_leg("aed", bank, bank.vault_abroad, OTHER, 1_000, "AED", {}),
                          _leg("cny", bank, OTHER, bank.vault, 2_100, "CNY", {})], other)[0]) > 100  # fmt: skip
    second = str(uuid4())
    legs = [out(bank, reference=UUID(second)), into(bank, reference=UUID(second))]
    assert ask(bank, legs, netting=second) == ["leg-already-authorised"]


def test_the_database_keeps_an_order_from_being_signed_for_twice(bank: Bank) -> None:
    ask(bank, [out(bank), into(bank)])
    free = str(uuid4())
    assert register_orders(bank.context, [order(free, "cny", "CNY", 5_000, "AED", 2_500)]) == [None]
    # Past the use case that looks first. The other order of the same request is not held up.
    taken, signed = authorise_legs(bank.context, [alone(bank), alone(bank, free)])
    assert taken == (None, "leg-already-authorised")
    assert signed[0] is not None and signed[1] is None


@pytest.mark.parametrize(
    ("status", "secret", "is_free"),
    [
        (HoldStatus.VOIDED, None, True),
        (HoldStatus.TOMBSTONED, b"the right secret", True),
        (HoldStatus.TOMBSTONED, b"another's secret", False),
        (HoldStatus.HELD, None, False),
        (HoldStatus.POSTED, None, False),
        (None, None, False),
    ],
)
def test_orders_of_an_aborted_netting_are_free_when_the_ledger_shows_it(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, status: HoldStatus | None, secret: bytes | None, is_free: bool
) -> None:
    abort = hashlib.sha256(b"the right secret".ljust(32)).digest()
    legs = [out(bank, abort_hash=abort), into(bank, abort_hash=abort)]
    (token,) = ask(bank, legs)

    def get_hold(hold: UUID) -> HoldView:
        assert hold == legs[0].terms.id
        if status is None:
            raise ServiceUnreachable("no answer")
        return HoldView(
            hold=hold, status=status, debit=bank.vault, credit=OTHER, amount_minor=2_900, currency="CNY",
            commit_hash=COMMIT, abort_hash=abort, expires_at=None, ended_by=None,
            secret=None if secret is None else secret.ljust(32),
        )  # fmt: skip

    monkeypatch.setattr(bank.ledger, "get_hold", get_hold)
    second = str(uuid4())
    again = [out(bank, reference=UUID(second)), into(bank, reference=UUID(second))]
    found = ask(bank, again, netting=second)
    assert (len(found[0]) > 100) is is_free
    if not is_free:
        assert found == ["leg-already-authorised"] and ask(bank, legs) == [token]
        assert authorise_legs_refusal(bank) == "leg-already-authorised"


def authorise_legs_refusal(bank: Bank) -> str:
    ((token, refusal),) = authorise(bank.context, [alone(bank)], {})
    assert token is None and refusal is not None
    return refusal.value


# --- as the bridge sends it


class _Direct:
    """POST /v1/leg-authorisations without the socket and the request signature."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def post(self, path: str, body: bytes, *, idempotent: bool) -> Any:
        assert (path, idempotent) == ("/v1/leg-authorisations", True)
        parsed = LegAuthorisationsRequest.model_validate(strict_json.loads(body, wire=True))
        return api_authorise_legs(parsed, self._bank.context, cast("Any", None)).model_dump(mode="json")


def test_what_the_settlement_service_sends_is_understood(bank: Bank) -> None:
    me, other = ParticipantId("BKCHCNBJ"), ParticipantId("BBBBAEAD")
    cny, aed = Currency.of("CNY"), Currency.of("AED")
    pays = LegTerms("cny", me, other, bank.vault, OTHER, Money(2_900, cny))
    gets = LegTerms("aed", other, me, OTHER_ABROAD, bank.vault_abroad, Money(1_500, aed))
    hold, counter = (HoldOrder(bank.new_id(), terms, NETTING, COMMIT, ABORT) for terms in (pays, gets))
    netted = (
        NettedInstruction(UUID(FIRST), (("CNY", 5_000),), (("AED", 2_500),)),
        NettedInstruction(UUID(SECOND), (("AED", 1_000),), (("CNY", 2_100),)),
    )
    authoriser = HttpAuthoriser({me: cast(ServiceClient, _Direct(bank))})
    (answer,) = authoriser.authorise(me, [LegOrder(hold, (counter,), netted)])
    assert isinstance(answer, Authorised)


def test_without_a_list_the_other_legs_are_bounded_as_ever(bank: Bank) -> None:
    leg = {"ledger": "cny", "terms": out(bank).terms.model_dump(mode="json", exclude_none=True)}
    for others in (0, 32):
        body = {"legs": [leg | {"instruction_id": FIRST, "other_legs": [leg] * others}]}
        with pytest.raises(ValueError, match="signed against 1 to 31 others"):
            LegAuthorisationsRequest.model_validate(body)

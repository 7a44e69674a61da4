"""Goal: a payer's code moves its money exactly once or not at all, whatever dies or is lost on the way, and a request
is debited once even when two codes race for it or one of the two guards is gone.
Method: the use cases of two banks, each with its own PostgreSQL, on a fake ledger with holds and linked chains; a death
is injected at every call; real threads where codes race.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from ledger.contract import (
    HoldStatus,
    TransferItem,
    TransferKind,
    TransferRefusal,
    TransferResult,
    TransferTerms,
    TransferView,
)
from tests.programs_world import HoldingLedger
from tests.store.test_wallet_requests import OTHER, TwoBanks, refusal
from tests.wallet_bank import Bank, Holder
from wallet.contract.requests import CodeRedemption
from wallet.domain.events import Event
from wallet.domain.payer_holds import make_payer_code
from wallet.domain.qr import parse_payer
from wallet.domain.requests import Request, payment_id
from wallet.store import requests as store
from wallet.usecases import events, payer_codes
from wallet.usecases.context import SUBMISSION_GRACE
from wallet.usecases.payer_codes import accept, redeem, resume_redemptions

CODE_LIFE = timedelta(seconds=60)


class Died(BaseException):
    """The process is gone: nothing after this line runs."""


class CodeLedger(HoldingLedger):
    """Holds without secrets, as the ledger keeps them for an institution: it posts a part itself, the rest returns."""

    one_at_a_time: threading.Lock

    @staticmethod
    def of(ledger: Any) -> CodeLedger:
        found = CodeLedger.__new__(CodeLedger)
        found.__dict__ = ledger.__dict__
        found.holds, found.tombstones, found.peers = {}, set(), ledger.institutions
        found.one_at_a_time = threading.Lock()
        return found

    def submit(self, items: Sequence[TransferItem], *, expires_at: datetime | None = None) -> list[TransferResult]:
        with self.one_at_a_time:
            return super().submit(items, expires_at=expires_at)

    def get_transfer(self, transfer: UUID) -> TransferView:
        return super().get_transfer(transfer).model_copy(update={"hold": self.booked[transfer].terms.hold})

    def _end(self, terms: TransferTerms) -> TransferResult:
        if terms.id in self.booked or terms.secret is not None:
            return super()._end(terms)
        hold = self.holds.get(terms.hold or UUID(int=0))
        if hold is None:
            return self._no(terms.id, TransferRefusal.HOLD_NOT_FOUND)
        if hold.status is not HoldStatus.HELD:
            return self._no(terms.id, TransferRefusal.HOLD_ALREADY_POSTED)
        amount, held = terms.amount_minor, hold.terms
        if amount is None or held.amount_minor is None or held.debit is None or held.credit is None:
            raise TypeError("a post of a part names its amount")
        rest = held.amount_minor - amount
        hold.status = HoldStatus.POSTED
        self.accounts[held.credit].balance += amount
        payer = self.accounts[held.debit]
        payer.balance, payer.spent_day = payer.balance + rest, payer.spent_day - rest
        return self._book(terms)


@pytest.fixture
def banks(fresh_database: Callable[[str], str]) -> Iterator[TwoBanks]:
    databases = [Database(fresh_database("wallet"), application_name="test") for _ in range(2)]
    made = TwoBanks(*databases)
    ledger = CodeLedger.of(made.ledger)
    for bank in (made.payee, made.payer):
        bank.ledger = bank.context.ledgers.home.client = ledger
        ledger.fund(bank.vault, 1_000_000)
    yield made
    for database in databases:
        database.close()


def code_of(bank: Bank, payer: Holder, *, cap: int = 1000, valid_for: timedelta = CODE_LIFE) -> str:
    return make_payer_code(
        key=payer.key,
        institution=bank.context.participant,
        vault=bank.vault,
        ledger="cny",
        currency="CNY",
        account=payer.account,
        cap_minor=cap,
        valid_until=bank.clock().replace(microsecond=0) + valid_for,
        hold=bank.new_id(),
    )


def state_of(bank: Bank, code: str) -> str | None:
    with bank.database.engine.connect() as connection:
        row = store.find_redemption(connection, parse_payer(code).hold)
    return None if row is None else row.state


def used_today(bank: Bank, payer: Holder) -> int:
    with bank.database.engine.connect() as connection:
        query = sa.text("SELECT usage_day_minor FROM wallet WHERE id = :id")
        return int(connection.execute(query, {"id": payer.wallet.id}).scalar_one())


def said(banks: TwoBanks, request: Request, code: str) -> str:
    """What the merchant is told: the state, or the refusal."""
    try:
        return redeem(banks.payee.context, request.id, code).state.value
    except ProblemError as error:
        return error.refusal.value


def told(bank: Bank, type: str) -> list[Event]:
    return events.page(bank.context, after=0, types=(type,), limit=100)


def everything(banks: TwoBanks) -> int:
    return banks.ledger.total()


def test_code_pays_its_request_once_and_only_the_amount_is_counted(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request, before = banks.ask(payee), everything(banks)
    code = code_of(banks.payer, payer)
    assert [said(banks, request, code) for _ in range(3)] == ["paid"] * 3
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (500, 4500)
    assert (used_today(banks.payer, payer), banks.known(request).state) == (500, "paid")
    assert said(banks, banks.ask(payee), code) == "code-already-redeemed"
    assert everything(banks) == before
    (event,) = told(banks.payer, "code.redeemed")
    assert (event.subject, event.wallet_id) == (f"trf_{parse_payer(code).hold}", payer.wallet.id)
    assert event.data == {"payment": f"trf_{payment_id(request.id, 0)}", "amount_minor": "500"}


# Where the payer's service dies: (function of the payer_codes module, before or after it, does the chain reach the
# ledger). After each the money must stand where the ledger says, once.
DEATHS = [
    ("_count", "before"),  # nothing is recorded
    ("_count", "after"),  # recorded and counted, not sent
    ("chain_of", "before"),  # the try is recorded, nothing was sent
    ("submit", "after"),  # booked, the answer never read
    ("_write", "before"),  # the answer read, not written
    ("_write", "after"),  # written, not told
]


@pytest.mark.parametrize(
    "comes_back",
    [
        timedelta(seconds=15),
        pytest.param(CODE_LIFE + timedelta(seconds=1), marks=pytest.mark.extended),
        pytest.param(timedelta(hours=1), marks=pytest.mark.extended),
    ],
)
@pytest.mark.parametrize(("where", "when"), DEATHS)
def test_death_at_every_step_leaves_one_payment_or_none(
    banks: TwoBanks, monkeypatch: pytest.MonkeyPatch, where: str, when: str, comes_back: timedelta
) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request, before = banks.ask(payee), everything(banks)
    code = code_of(banks.payer, payer)
    place: Any = banks.ledger if where == "submit" else payer_codes
    work = getattr(place, where)

    def dies(*arguments: Any, **more: Any) -> Any:
        if when == "after":
            work(*arguments, **more)
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(place, where, dies)
        with pytest.raises(Died):
            accept(banks.payer.context, CodeRedemption(code=code, document=request.document))
    is_booked = payment_id(request.id, 0) in banks.ledger.booked
    assert is_booked == (where in ("submit", "_write"))

    banks.payee.clock.advance(comes_back)
    resume_redemptions(banks.payer.context)
    is_recorded, is_alive = (where, when) != ("_count", "before"), comes_back < CODE_LIFE
    is_paid = is_booked or (is_recorded and is_alive)
    if not is_recorded:
        assert state_of(banks.payer, code) is None
    elif is_paid:
        assert state_of(banks.payer, code) == "final"
    else:
        # one that was sent once, by the pass, is refused at once; one that may have been sent before, once it cannot be
        # booked any more
        is_sent_once = where == "_count"
        is_over = comes_back > CODE_LIFE + SUBMISSION_GRACE
        assert state_of(banks.payer, code) == ("refused" if is_sent_once or is_over else "initiated")
        banks.payee.clock.advance(CODE_LIFE + SUBMISSION_GRACE)
        resume_redemptions(banks.payer.context)
        assert state_of(banks.payer, code) == "refused"
    moved = 500 if is_paid else 0
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (moved, 5000 - moved)
    assert used_today(banks.payer, payer) == moved
    assert everything(banks) == before
    resume_redemptions(banks.payer.context, older_than=timedelta(0))
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (moved, 5000 - moved)
    if is_paid:  # and the merchant who asks again is told so, however late
        assert said(banks, request, code) == "paid"


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_lost_answers_are_asked_for_again(banks: TwoBanks, lost: int) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request, code = banks.ask(payee), code_of(banks.payer, payer)
    banks.ledger.lose_answers = lost
    assert [said(banks, request, code) for _ in range(lost)] == ["service-unavailable"] * lost
    assert said(banks, request, code) == "paid"
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (500, 4500)


def test_refusal_of_one_copy_says_nothing_while_another_is_on_its_way(
    banks: TwoBanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is refused for want of money while a second one, sent meanwhile, is booked: the payer has paid."""
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=10)
    request, code = banks.ask(payee), code_of(banks.payer, payer)
    redemption = CodeRedemption(code=code, document=request.document)
    submit, is_first = banks.ledger.submit, True

    def late(*arguments: Any, **more: Any) -> Any:
        nonlocal is_first
        results = submit(*arguments, **more)
        if is_first:
            is_first = False
            banks.ledger.fund(payer.account, 5000)
            banks.ledger.lose_answers = 1  # the second copy is booked, its answer lost
            assert refusal(lambda: accept(banks.payer.context, redemption)) == "outcome-unknown"
        return results

    monkeypatch.setattr(banks.ledger, "submit", late)
    accept(banks.payer.context, redemption)
    assert state_of(banks.payer, code) == "final"
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (500, 4510)


def test_unreachable_ledger_leaves_it_open_and_never_refused_by_guess(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request, code = banks.ask(payee), code_of(banks.payer, payer)
    banks.ledger.lose_answers = 1
    assert said(banks, request, code) == "service-unavailable"
    banks.ledger.unreachable = True
    banks.payee.clock.advance(timedelta(days=1))
    assert resume_redemptions(banks.payer.context) == 0
    assert (state_of(banks.payer, code), used_today(banks.payer, payer)) == ("initiated", 500)
    banks.ledger.unreachable = False
    assert resume_redemptions(banks.payer.context) == 1
    assert state_of(banks.payer, code) == "final"


def test_refused_code_gives_its_usage_back_and_another_code_pays(banks: TwoBanks) -> None:
    payee, poor, rich = banks.payee.holder(), banks.payer.holder(funds=10), banks.payer.holder(funds=5000)
    request = banks.ask(payee)
    first, second = code_of(banks.payer, poor), code_of(banks.payer, rich)
    assert said(banks, request, first) == "insufficient-funds"
    assert (state_of(banks.payer, first), used_today(banks.payer, poor)) == ("refused", 0)
    assert said(banks, request, second) == "paid"
    assert said(banks, request, first) == "insufficient-funds"
    assert (banks.payer.balance(poor), banks.payer.balance(rich)) == (10, 4500)


# --- two codes, one request ------------------------------------------------------------------------------------------


def race(banks: TwoBanks, request: Request, codes: Sequence[str]) -> list[str]:
    start = threading.Barrier(len(codes))

    def scan(code: str) -> str:
        start.wait()
        return said(banks, request, code)

    with ThreadPoolExecutor(len(codes)) as pool:
        return list(pool.map(scan, codes))


@pytest.mark.parametrize("round_", [0, *(pytest.param(n, marks=pytest.mark.extended) for n in (1, 2))])
@pytest.mark.parametrize("is_guarded_here", [True, False])
def test_codes_that_race_for_a_request_debit_one_payer(banks: TwoBanks, is_guarded_here: bool, round_: int) -> None:
    """With the index and without it: the ledger alone also lets one through."""
    if not is_guarded_here:
        for bank in (banks.payee, banks.payer):
            with bank.database.engine.begin() as connection:
                connection.execute(sa.text("DROP INDEX redemption_payment_i7"))
    payee = banks.payee.holder()
    request = banks.ask(payee)
    both = (banks.payee, banks.payer)
    payers = [(both[n % 2], both[n % 2].holder(funds=1000)) for n in range(6)]
    before = everything(banks)
    codes = [code_of(bank, payer) for bank, payer in payers]
    outcomes = race(banks, request, codes)
    assert outcomes.count("paid") == 1, outcomes
    assert set(outcomes) <= {"paid", "request-already-paid"}
    paid = [1000 - bank.balance(payer) for bank, payer in payers]
    assert sorted(paid) == [0] * 5 + [500]
    assert paid[outcomes.index("paid")] == 500
    assert [used_today(bank, payer) for bank, payer in payers] == paid
    assert banks.payee.balance(payee) == 500
    assert everything(banks) == before
    assert banks.look(request).surplus_minor == 0
    assert HoldingLedger.held(banks.ledger) == 0  # type: ignore[arg-type]


def test_two_codes_of_one_payer_are_one_payment(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request = banks.ask(payee)
    outcomes = race(banks, request, [code_of(banks.payer, payer) for _ in range(4)])
    assert sorted(outcomes) == ["paid"] + ["request-already-paid"] * 3
    assert (banks.payer.balance(payer), used_today(banks.payer, payer)) == (4500, 500)


def test_index_alone_forbids_a_second_live_code(banks: TwoBanks) -> None:
    payee, payers = banks.payee.holder(), [banks.payer.holder(funds=1000) for _ in range(2)]
    request = banks.ask(payee)
    assert said(banks, request, code_of(banks.payer, payers[0])) == "paid"
    with pytest.raises(IntegrityError, match="payment_i7"), banks.payer.database.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO redemption SELECT :hold, wallet_id, request_id, payment_id, credit_account, amount_minor,"
                " cap_minor, instruction, valid_until, 'initiated', 0, counted_on, NULL, NULL, NULL, created_at"
                " FROM redemption"
            ),
            {"hold": banks.payer.new_id()},
        )


def test_loser_without_the_index_whose_answer_was_lost_is_not_taken_for_the_payer(
    banks: TwoBanks,
) -> None:
    """The second look goes by the hold behind the post: the request's payment alone does not tell whose code paid."""
    with banks.payer.database.engine.begin() as connection:
        connection.execute(sa.text("DROP INDEX redemption_payment_i7"))
    payee, winner, loser = banks.payee.holder(), banks.payer.holder(funds=1000), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    assert said(banks, request, code_of(banks.payer, winner)) == "paid"
    code = code_of(banks.payer, loser)
    banks.ledger.lose_answers = 1
    assert (
        refusal(lambda: accept(banks.payer.context, CodeRedemption(code=code, document=request.document)))
        == "outcome-unknown"
    )
    banks.payee.clock.advance(timedelta(seconds=20))
    assert resume_redemptions(banks.payer.context) == 1
    assert (state_of(banks.payer, code), banks.payer.balance(loser), used_today(banks.payer, loser)) == (
        "refused",
        1000,
        0,
    )


def test_approved_payment_and_code_race_and_one_is_booked(banks: TwoBanks) -> None:
    payee, by_code, by_hand = banks.payee.holder(), banks.payer.holder(funds=1000), banks.payee.holder(funds=1000)
    request = banks.ask(payee)
    banks.shown(banks.payee, by_hand, request)
    code, start = code_of(banks.payer, by_code), threading.Barrier(2)

    def scan() -> str:
        start.wait()
        return said(banks, request, code)

    def approve() -> str:
        start.wait()
        return banks.approve(banks.payee, by_hand, request)

    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(scan), pool.submit(approve)]
        told = [item.result() for item in outcomes]
    assert told in (["paid", "request-already-paid"], ["request-already-paid", "final"]), told
    assert banks.payer.balance(by_code) + banks.payee.balance(by_hand) == 1500
    assert banks.payee.balance(payee) == 500


def test_the_institution_that_answers_is_the_codes(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    assert parse_payer(code_of(banks.payer, payer)).institution == OTHER == ParticipantId("ICBKCNBJ")
    forged = code_of(banks.payer, Holder(payer.wallet, banks.payer.holder().key))
    assert said(banks, request, forged) == "code-signature-invalid"
    assert [booked.terms.kind for booked in banks.ledger.booked.values()].count(TransferKind.HOLD) == 0

"""Goal: a request is paid exactly once, whoever races, and the payee learns of it from the ledger alone.
Method: the use cases of two banks on one fake ledger, each with its own PostgreSQL; real threads where they race.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from ledger.contract import TransferKind
from tests.fakes import FakeLedger
from tests.wallet_bank import Bank, Holder
from wallet.api.dependencies import STATUSES
from wallet.contract import WalletRefusal
from wallet.contract.requests import CodeRedemption, CodeRedemptionAnswer, RequestOffer
from wallet.domain.requests import Request, Terms, payment_id
from wallet.usecases import incoming, requests
from wallet.usecases.context import SUBMISSION_GRACE, Context, LedgerAccess, Ledgers
from wallet.usecases.pay import pay, pay_one
from wallet.usecases.payer_codes import accept
from wallet.usecases.peers import Peers
from wallet.usecases.recover import recover

OTHER = ParticipantId("ICBKCNBJ")


class OneAtATime(FakeLedger):
    """The fake for threads: a submission is decided alone, as in the ledger's one sequencer."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._one_at_a_time = threading.Lock()

    def submit_signed(self, *arguments: Any, **more: Any) -> Any:
        with self._one_at_a_time:
            return super().submit_signed(*arguments, **more)


class DirectPeer:
    """Another institution's wallet service without HTTP: its refusals arrive as they would over it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.is_down = False

    def _call(self, work: Callable[[], Any]) -> Any:
        if self.is_down:
            raise ServiceUnreachable("the other bank is down")
        try:
            return work()
        except ProblemError as error:
            raise ProblemResponse(
                status=STATUSES.get(error.refusal, 503),
                refusal=error.refusal.value,
                transient=error.refusal.transient,
                detail=error.detail,
                request_id="direct",
            ) from error

    def request_offer(self, request: UUID) -> RequestOffer:
        return self._call(lambda: incoming.get_offer(self.context, request))

    def deliver_request(self, document: str) -> None:
        self._call(lambda: incoming.deliver_request(self.context, document))

    def tell_decline(self, request: UUID, decline: str) -> None:
        self._call(lambda: requests.take_decline(self.context, request, decline))

    def redeem_code(self, redemption: CodeRedemption) -> CodeRedemptionAnswer:
        return self._call(lambda: accept(self.context, redemption))


class TwoBanks:
    """`payee` and `payer`: two banks on one ledger that know each other."""

    def __init__(self, first: Database, second: Database) -> None:
        self.payee, self.payer = Bank(first), Bank(second)
        ledger = OneAtATime(clock=self.payee.clock, rule_classes=list(self.payee.ledger.classes.values()))
        key = PrivateKey.generate()
        for bank, participant, own in (
            (self.payee, self.payee.context.participant, self.payee.context.key),
            (self.payer, OTHER, key),
        ):
            bank.clock, bank.ledger = self.payee.clock, ledger
            ledger.institutions[participant] = own.public
            ledgers = Ledgers([LedgerAccess("cny", "CNY", ledger)], database=bank.database)
            bank.context = replace(
                bank.context, ledgers=ledgers, participant=participant, key=own, clock=bank.clock, peers=Peers()
            )
            with bank.database.engine.begin() as connection:
                connection.execute(sa.text("DELETE FROM institution_account"))
            bank.vault = ledgers.vault(ledgers.home)
        self.to_payer, self.to_payee = DirectPeer(self.payer.context), DirectPeer(self.payee.context)
        self.payee.context.peers._directory[OTHER] = self.to_payer
        self.payer.context.peers._directory[self.payee.context.participant] = self.to_payee

    @property
    def ledger(self) -> FakeLedger:
        return self.payee.ledger

    def ask(self, payee: Holder, amount: int | None = 500, **more: Any) -> Request:
        terms = Terms(amount, more.pop("least", None), more.pop("most", None), more.pop("is_many", False))
        values: dict[str, Any] = {
            "wallet_id": payee.wallet.id,
            "currency": "CNY",
            "terms": terms,
            "payer_account": None,
            "payer_institution": None,
            "payee_name": "茶馆 Teahouse",
            "description": "",
            "payee_reference": "",
            "expires_at": self.payee.clock() + timedelta(hours=1),
        }
        return requests.create_request(self.payee.context, more.pop("id", self.payee.new_id()), **values | more)

    def shown(self, bank: Bank, payer: Holder, request: Request) -> incoming.Shown:
        return incoming.show_request(
            bank.context, payer.wallet.id, request_id=request.id, institution=self.payee.context.participant
        )

    def answer(self, bank: Bank, payer: Holder, request: Request, amount: int = 500, **more: Any) -> str:
        number = more.pop("number", 0)
        values: dict[str, Any] = {"id": payment_id(request.id, number), "reference": request.id}
        return bank.instruction(payer, request.account, amount, **values | more)

    def approve(self, bank: Bank, payer: Holder, request: Request, amount: int = 500, **more: Any) -> str:
        """The state, or the refusal."""
        token = self.answer(bank, payer, request, amount, **more)
        try:
            self.shown(bank, payer, request)
            return incoming.approve(bank.context, payer.wallet.id, request.id, token).state
        except ProblemError as error:
            return error.refusal.value

    def look(self, request: Request) -> Request:
        return requests.look(self.payee.context, requests.find_request(self.payee.context, request.id))

    def known(self, request: Request) -> Request:
        return requests.find_request(self.payee.context, request.id)


@pytest.fixture
def banks(fresh_database: Callable[[str], str]) -> Iterator[TwoBanks]:
    databases = [Database(fresh_database("wallet"), application_name="test") for _ in range(2)]
    yield TwoBanks(*databases)
    for database in databases:
        database.close()


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


# --- paid -----------------------------------------------------------------------------------------------------------


def test_request_of_another_bank_is_shown_approved_and_known_paid_to_the_payee(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    shown = banks.shown(banks.payer, payer, request)
    assert (shown.document.payee_name, shown.document.amount_minor) == ("茶馆 Teahouse", 500)
    assert shown.offer is not None
    assert shown.offer.next_payment == payment_id(request.id, 0)
    token = banks.answer(banks.payer, payer, request)
    first = incoming.approve(banks.payer.context, payer.wallet.id, request.id, token)
    again = incoming.approve(banks.payer.context, payer.wallet.id, request.id, token)
    assert first.seq == again.seq
    assert banks.payee.balance(payee) == 500
    after = banks.look(request)
    assert (after.state, after.paid_minor, after.ended_at) == ("paid", 500, first.booked_at)
    row = incoming.find_incoming(banks.payer.context, payer.wallet.id, request.id).row
    assert (row.state, row.paid_minor, row.payment_id) == ("paid", 500, first.id)


@pytest.mark.parametrize("round_", [0, *(pytest.param(n, marks=pytest.mark.extended) for n in (1, 2))])
def test_of_many_payers_at_two_banks_who_race_one_pays(banks: TwoBanks, round_: int) -> None:
    payee = banks.payee.holder()
    request = banks.ask(payee)
    both = (banks.payee, banks.payer)
    payers = [(both[n % 2], both[n % 2].holder(funds=1000)) for n in range(8)]
    for bank, payer in payers:
        banks.shown(bank, payer, request)
    start = threading.Barrier(len(payers))

    def approve(pair: tuple[Bank, Holder]) -> str:
        start.wait()
        return banks.approve(pair[0], pair[1], request)

    with ThreadPoolExecutor(len(payers)) as pool:
        outcomes = Counter(pool.map(approve, payers))
    assert outcomes["final"] == 1, outcomes
    assert set(outcomes) <= {"final", "request-already-paid", "request-payment-under-way"}
    assert banks.payee.balance(payee) == 500
    assert sum(bank.balance(payer) for bank, payer in payers) == 8 * 1000 - 500
    assert banks.look(request).surplus_minor == 0
    # whoever was told that another payment is on its way is told the rest now
    assert {banks.approve(bank, payer, request) for bank, payer in payers} == {"final", "request-already-paid"}
    assert banks.payee.balance(payee) == 500


def test_payee_learns_from_his_statement_though_nobody_calls(banks: TwoBanks) -> None:
    """The payer's wallet service never speaks to the payee's: it sends the signed payment to the ledger, no more."""
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request, box = banks.ask(payee), banks.ask(payee, None, is_many=True)
    banks.to_payee.is_down = True
    pay_one(banks.payer.context, banks.answer(banks.payer, payer, request))
    pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, 70, reference=box.id))
    pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, 30, reference=box.id))
    assert banks.known(request).state == "open"
    banks.payee.clock.advance(timedelta(seconds=5))
    recover(banks.payee.context)
    assert banks.known(request).state == "paid"
    assert (banks.known(box).state, banks.known(box).paid_minor, banks.known(box).payments) == ("part-paid", 100, 2)
    found = requests.list_payments(banks.payee.context, box.id, after_seq=0, limit=10)
    assert [row.amount_minor for row in found] == [70, 30]


def test_statement_is_read_to_its_end_in_bounded_looks(banks: TwoBanks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "PAGES_A_LOOK_MAX", 2)
    monkeypatch.setattr(requests, "LINES_A_PAGE", 3)
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=10_000)
    box = banks.ask(payee, None, is_many=True)
    for number in range(1, 21):
        pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, number, reference=box.id))
    for late in range(1, 12):
        banks.payee.clock.advance(timedelta(seconds=5))
        requests.watch_accounts(banks.payee.context)
        if late == 2:  # meanwhile more comes, above the gap
            pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, 1000, reference=box.id))
    assert (banks.known(box).payments, banks.known(box).paid_minor) == (21, 210 + 1000)


def test_parts_are_paid_up_to_the_total_and_no_further(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee, 500, is_many=True, least=100)
    assert banks.approve(banks.payer, payer, request, 99) == "request-terms-mismatch"
    assert banks.approve(banks.payer, payer, request, 450) == "final"
    assert (banks.look(request).state, banks.look(request).remaining_minor) == ("part-paid", 50)
    assert banks.approve(banks.payer, payer, request, 60, number=1) == "request-terms-mismatch"
    assert banks.approve(banks.payer, payer, request, 100, number=0) == "request-already-paid"
    assert banks.approve(banks.payer, payer, request, 50, number=2) == "request-already-paid"
    assert banks.approve(banks.payer, payer, request, 50, number=1) == "final"
    assert banks.look(request).state == "paid"
    assert banks.approve(banks.payer, payer, request, 50, number=2) == "request-already-paid"
    assert banks.payee.balance(payee) == 500


def test_parts_that_race_never_add_up_to_more(banks: TwoBanks) -> None:
    payee = banks.payee.holder()
    request = banks.ask(payee, 500, is_many=True)
    payers = [banks.payer.holder(funds=1000) for _ in range(6)]
    for payer in payers:
        banks.shown(banks.payer, payer, request)

    def keep_paying(payer: Holder) -> None:
        for _ in range(12):
            shown = incoming.find_incoming(banks.payer.context, payer.wallet.id, request.id)
            if shown.offer is None or not shown.offer.remaining_minor or shown.offer.next_payment is None:
                return
            token = banks.answer(
                banks.payer, payer, request, min(120, shown.offer.remaining_minor), id=shown.offer.next_payment
            )
            try:
                incoming.approve(banks.payer.context, payer.wallet.id, request.id, token)
            except ProblemError:
                continue

    with ThreadPoolExecutor(len(payers)) as pool:
        list(pool.map(keep_paying, payers))
    after = banks.look(request)
    assert (after.state, after.paid_minor, after.surplus_minor) == ("paid", 500, 0)
    assert banks.payee.balance(payee) == 500


def test_open_amount_is_chosen_between_its_bounds(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee, None, least=10, most=20)
    assert banks.approve(banks.payer, payer, request, 9) == "request-terms-mismatch"
    assert banks.approve(banks.payer, payer, request, 21) == "request-terms-mismatch"
    assert banks.approve(banks.payer, payer, request, 20) == "final"
    assert (banks.look(request).state, banks.look(request).paid_minor) == ("paid", 20)


def test_what_comes_by_itself_is_a_surplus_and_the_request_can_still_be_paid_once(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request = banks.ask(payee)
    stray = banks.payer.instruction(payer, payee.account, 500, reference=request.id)
    pay_one(banks.payer.context, stray)
    banks.payee.clock.advance(timedelta(seconds=5))
    requests.watch_accounts(banks.payee.context)
    assert (banks.known(request).state, banks.known(request).surplus_minor) == ("open", 500)
    assert banks.approve(banks.payer, payer, request) == "final"
    pay_one(banks.payer.context, banks.payer.instruction(payer, payee.account, 7, reference=request.id))
    banks.payee.clock.advance(timedelta(seconds=5))
    requests.watch_accounts(banks.payee.context)
    after = banks.known(request)
    assert (after.state, after.paid_minor, after.surplus_minor) == ("paid", 500, 507)
    found = requests.list_payments(banks.payee.context, request.id, after_seq=0, limit=10)
    assert [(row.amount_minor, row.is_surplus) for row in found] == [(500, True), (500, False), (7, True)]


def test_payer_who_cannot_pay_does_not_stand_in_anothers_way(banks: TwoBanks) -> None:
    payee, poor, rich = banks.payee.holder(), banks.payer.holder(funds=1), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    assert banks.approve(banks.payer, poor, request) == "insufficient-funds"
    assert banks.approve(banks.payer, rich, request) == "final"
    assert banks.approve(banks.payer, poor, request) == "request-already-paid"
    assert banks.payer.balance(poor) == 1
    # and whoever had too little may try again once he has enough
    second = banks.ask(payee)
    assert banks.approve(banks.payer, poor, second) == "insufficient-funds"
    banks.ledger.fund(poor.account, 999)
    assert banks.approve(banks.payer, poor, second) == "final"


def test_lost_answer_is_on_its_way_until_it_is_known(banks: TwoBanks) -> None:
    payee, payer, other = banks.payee.holder(), banks.payer.holder(funds=1000), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    banks.ledger.lose_answers = 1
    assert banks.approve(banks.payer, payer, request) == "outcome-unknown"
    assert banks.approve(banks.payer, other, request) == "request-already-paid"  # the ledger has it: the payee says so
    assert banks.approve(banks.payer, payer, request) == "final"
    assert banks.payee.balance(payee) == 500


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"amount": 499}, "request-terms-mismatch"),
        ({"reference": UUID(int=7)}, "request-terms-mismatch"),
        ({"id": payment_id(UUID(int=1), 0)}, "request-terms-mismatch"),
        ({"kind": TransferKind.REFUND}, "request-terms-mismatch"),
        ({"valid_for": timedelta(hours=2)}, "request-terms-mismatch"),
        ({"key": PrivateKey.generate()}, "instruction-invalid"),
    ],
)
def test_instruction_that_does_not_answer_moves_nothing(banks: TwoBanks, change: dict[str, Any], said: str) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    assert banks.approve(banks.payer, payer, request, **change) == said
    assert banks.payer.balance(payer) == 1000
    assert banks.approve(banks.payer, payer, request) == "final"


# --- ended ----------------------------------------------------------------------------------------------------------


def test_request_to_a_named_payer_is_before_him_and_only_he_declines(banks: TwoBanks) -> None:
    payee, payer, other = banks.payee.holder(), banks.payer.holder(funds=1000), banks.payer.holder(funds=1000)
    request = banks.ask(payee, payer_account=payer.account, payer_institution=OTHER)
    listed = incoming.list_incoming(banks.payer.context, payer.wallet.id, before=None, limit=10)
    assert [item.row.request_id for item in listed] == [request.id]
    assert refusal(lambda: banks.shown(banks.payer, other, request)) == "request-not-for-wallet"
    banks.to_payee.is_down = True
    assert incoming.decline(banks.payer.context, payer.wallet.id, request.id).row.state == "declined"
    assert banks.known(request).state == "open"
    banks.to_payee.is_down = False
    recover(banks.payer.context)
    assert banks.known(request).state == "declined"
    incoming.decline(banks.payer.context, payer.wallet.id, request.id)
    assert banks.approve(banks.payer, payer, request) == "request-ended"
    # of a request to whoever is shown it, a payer puts away only his own copy
    anyone = banks.ask(payee)
    banks.shown(banks.payer, payer, anyone)
    incoming.decline(banks.payer.context, payer.wallet.id, anyone.id)
    assert banks.known(anyone).state == "open"
    assert banks.approve(banks.payer, other, anyone) == "final"


def test_request_within_one_bank_appears_by_itself(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payee.holder(funds=1000)
    request = banks.ask(payee, payer_account=payer.account)
    for _ in range(2):
        listed = incoming.list_incoming(banks.payee.context, payer.wallet.id, before=None, limit=10)
        assert [item.row.request_id for item in listed] == [request.id]
    incoming.decline(banks.payee.context, payer.wallet.id, request.id)
    assert banks.known(request).state == "declined"


def test_forged_decline_and_forged_request_are_refused(banks: TwoBanks) -> None:
    from kernel.crypto import jws
    from wallet.contract.requests import DECLINE_TYP, REQUEST_TYP, DeclineDocument
    from wallet.usecases.peers import canonical

    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee, payer_account=payer.account, payer_institution=OTHER)
    document = DeclineDocument(
        request=request.id, institution=OTHER, payer=payer.account, declined_at=banks.payee.clock()
    )
    for key, typ in ((PrivateKey.generate(), DECLINE_TYP), (banks.payer.context.key, REQUEST_TYP)):
        token = jws.sign(canonical(document), key, typ=typ)
        said = refusal(lambda token=token: requests.take_decline(banks.payee.context, request.id, token))
        assert said == "request-document-invalid"
    # another institution's true signature is no better: it is not the payer's
    token = jws.sign(
        canonical(document.model_copy(update={"payer": payee.account})), banks.payer.context.key, typ=DECLINE_TYP
    )
    assert refusal(lambda: requests.take_decline(banks.payee.context, request.id, token)) == "request-not-for-wallet"
    asked = incoming._read(request.document)
    forged = jws.sign(
        canonical(asked.model_copy(update={"account": payer.account})), banks.payer.context.key, typ=REQUEST_TYP
    )
    said = refusal(lambda: incoming.show_request(banks.payer.context, payer.wallet.id, document=forged))
    assert said == "request-document-invalid"
    assert banks.known(request).state == "open"


def test_cancelled_request_is_not_paid_and_what_was_first_stands(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request = banks.ask(payee)
    assert requests.cancel_request(banks.payee.context, request.id).state == "cancelled"
    assert requests.cancel_request(banks.payee.context, request.id).state == "cancelled"
    assert banks.approve(banks.payer, payer, request) == "request-ended"
    paid = banks.ask(payee)
    pay_one(banks.payer.context, banks.answer(banks.payer, payer, paid))
    said = refusal(lambda: requests.cancel_request(banks.payee.context, paid.id))
    assert said == "request-already-paid"
    # one that overtakes the cancellation by its own road is a surplus
    banks.payee.clock.advance(timedelta(seconds=5))
    pay_one(banks.payer.context, banks.answer(banks.payer, payer, request))
    requests.watch_accounts(banks.payee.context)
    after = banks.known(request)
    assert (after.state, after.paid_minor, after.surplus_minor) == ("cancelled", 0, 500)


def test_request_expires_once_no_payment_in_time_can_be_booked(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request, other = banks.ask(payee), banks.ask(payee)
    banks.payee.clock.advance(timedelta(minutes=59))
    pay_one(banks.payer.context, banks.answer(banks.payer, payer, other))
    banks.payee.clock.advance(timedelta(minutes=1))
    assert banks.known(request).state_at(banks.payee.clock()) == "expired"
    assert banks.approve(banks.payer, payer, request, valid_for=timedelta(0)) == "request-ended"
    requests.expire_requests(banks.payee.context)
    assert banks.known(request).state == "open"
    banks.payee.clock.advance(SUBMISSION_GRACE + timedelta(seconds=1))
    requests.expire_requests(banks.payee.context)
    assert (banks.known(request).state, banks.known(request).ended_at) == ("expired", request.expires_at)
    assert banks.known(other).state == "paid"


# --- made -----------------------------------------------------------------------------------------------------------


def test_request_is_made_once_and_its_contradictions_are_refused(banks: TwoBanks) -> None:
    payee = banks.payee.holder()
    request = banks.ask(payee)
    assert banks.ask(payee, id=request.id).document == request.document
    assert refusal(lambda: banks.ask(payee, 501, id=request.id)) == "request-exists"
    now = banks.payee.clock()
    for amount, more in (
        (0, {}),
        (500, {"most": 600}),
        (500, {"least": 5}),
        (None, {"least": 5, "most": 4}),
        (500, {"payer_account": payee.account}),
        (500, {"payer_institution": OTHER}),
        (500, {"expires_at": now}),
        (500, {"expires_at": now + timedelta(days=367)}),
    ):
        assert refusal(lambda amount=amount, more=more: banks.ask(payee, amount, **more)) == "request-terms-invalid"
    assert refusal(lambda: banks.ask(payee, currency="AED")) == "wrong-currency"
    assert refusal(lambda: requests.find_request(banks.payee.context, UUID(int=1))) == "request-not-found"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE payment_request SET paid_minor = 501", "payment_request_paid_at_most_i7_ck"),
        ("UPDATE payment_request SET payments = 2", "payment_request_paid_once_i7_ck"),
        ("UPDATE payment_request SET state = 'open'", "payment_request_ended_ck"),
        ("UPDATE payment_request SET paid_minor = 499", "payment_request_paid_in_full_ck"),
        ("INSERT INTO request_payment SELECT * FROM request_payment", "request_payment_pk"),
    ],
)
def test_table_refuses_what_the_core_refuses(banks: TwoBanks, statement: str, constraint: str) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=1000)
    request = banks.ask(payee)
    assert banks.approve(banks.payer, payer, request) == "final"
    assert banks.look(request).state == "paid"
    with pytest.raises(IntegrityError, match=constraint), banks.payee.database.engine.begin() as connection:
        connection.execute(sa.text(statement))


def test_a_plain_payment_with_the_requests_id_pays_it_too(banks: TwoBanks) -> None:
    payee, payers = banks.payee.holder(), [banks.payer.holder(funds=1000) for _ in range(2)]
    request = banks.ask(payee)
    tokens = [banks.answer(banks.payer, payer, request) for payer in payers]
    outcomes = pay(banks.payer.context, tokens)
    assert len({getattr(outcome, "state", "refused") for outcome in outcomes}) == 2
    assert banks.look(request).state == "paid"
    assert WalletRefusal.REQUEST_ALREADY_PAID.transient is False

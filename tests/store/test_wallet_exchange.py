"""Goal: deposit and currency change together, once on both sides, wherever the service is killed.
Method: every database transaction and every call to the ledger and to core banking is a point before and after which
the process can die (a BaseException that nothing catches); the exchange is run again and again, dying one point later
each time, then recovered at start as a new process would, until a run has no point left. Money is added up after each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Connection

from kernel.client import ProblemResponse, ServiceClient, ServiceUnreachable
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import CheckedConnection, Database, Isolation
from kernel.errors import ProblemError
from ledger.client import LedgerClient
from ledger.contract import TransferItem, TransferKind
from tests.wallet_bank import Bank, Holder
from wallet.domain.core_banking import CoreBanking, Posting, PostingConflict, PostingOutcome
from wallet.domain.rules import Evidence, WalletClass
from wallet.store.wallets import find_wallet
from wallet.usecases import exchange
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE, Context
from wallet.usecases.listings import find_payment
from wallet.usecases.recover import recover
from wallet.usecases.wallets import open_wallet, register_customer

DEPOSIT = 5_000_00
AMOUNT = 1_200_00


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


class Fuse:
    """Dies at the n-th point passed. None = never."""

    def __init__(self) -> None:
        self.left: int | None = None

    def __call__(self, where: str = "") -> None:
        if self.left is not None:
            if self.left == 0:
                raise Killed(where)
            self.left -= 1


class MortalDatabase:
    """A database of a process that can die before a transaction, before its commit, and after it."""

    def __init__(self, database: Database, fuse: Fuse) -> None:
        self._database, self._fuse = database, fuse

    @contextmanager
    def transaction(self, *, isolation: Isolation) -> Iterator[Connection]:
        self._fuse("before a transaction")
        with self._database.transaction(isolation=isolation) as connection:
            yield connection
            self._fuse("before a commit")
        self._fuse("after a commit")

    def run(self, work: Callable[[Connection], Any], *, isolation: Isolation) -> Any:
        with self.transaction(isolation=isolation) as connection:
            return work(connection)

    @contextmanager
    def session(self, *, is_lazy: bool = False) -> Iterator[CheckedConnection]:
        self._fuse("before a transaction")
        with self._database.session(is_lazy=is_lazy) as connection:
            yield connection
        self._fuse("after a commit")

    def run_session(self, work: Callable[[CheckedConnection], Any]) -> Any:
        with self.session() as connection:
            result = work(connection)
            self._fuse("before a commit")
            connection.commit()
        return result


class MortalCoreBanking:
    def __init__(self, inner: CoreBanking, fuse: Fuse) -> None:
        self._inner, self._fuse = inner, fuse
        self.is_down = False

    def debit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        return self._around(lambda: self._inner.debit_deposit(posting_id, customer_id, amount_minor))

    def credit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        return self._around(lambda: self._inner.credit_deposit(posting_id, customer_id, amount_minor))

    def look_up(self, posting_id: UUID) -> PostingOutcome | None:
        return self._inner.look_up(posting_id)

    def statement(self, **asked: Any) -> Sequence[Posting]:
        return self._inner.statement(**asked)

    def _around(self, call: Callable[[], PostingOutcome]) -> PostingOutcome:
        self._fuse("before core banking")
        if self.is_down:
            raise ConnectionError("core banking is down")
        outcome = call()
        self._fuse("after core banking")
        return outcome


class Scene:
    def __init__(self, bank: Bank) -> None:
        self.bank = bank
        self.fuse = Fuse()
        self.core_banking = MortalCoreBanking(bank.core_banking, self.fuse)
        self.context: Context = replace(
            bank.context,
            database=cast(Database, MortalDatabase(bank.context.database, self.fuse)),
            core_banking=self.core_banking,
        )
        submit = bank.ledger.submit

        def mortal_submit(items: Any, **deadline: Any) -> Any:
            results = submit(items, **deadline)
            self.fuse("after the ledger's answer")
            return results

        bank.ledger.submit = mortal_submit  # type: ignore[method-assign]
        bank.ledger.before_call = lambda method: self.fuse(f"before {method}")
        self.holder: Holder = bank.holder(WalletClass.II)
        self.customer = self.holder.wallet.customer_id
        bank.core_banking.credit_deposit(bank.new_id(), self.customer, DEPOSIT)

    def dies_at(self, point: int, work: Callable[[], object]) -> bool:
        """Whether the work died; False = it came to its end before that point."""
        self.fuse.left = point
        try:
            work()
        except Killed:
            return True
        except ProblemError:
            return False
        finally:
            self.fuse.left = None
        return False

    def recover(self) -> None:
        """As a new process does at its start, then once more when no straggler can be under way."""
        recover(self.context, at_start=True)
        self.bank.clock.advance(timedelta(minutes=6))
        recover(self.context)

    def start(self, exchange_id: UUID, amount: int = AMOUNT) -> Any:
        return exchange.exchange_in(
            self.context, exchange_id, wallet_id=self.holder.wallet.id, amount_minor=amount, currency="CNY"
        )

    @property
    def deposit(self) -> int:
        return self.bank.core_banking.balance(self.customer)

    @property
    def currency(self) -> int:
        return self.bank.balance(self.holder)


@pytest.fixture
def scene(fresh_database: Callable[[str], str]) -> Iterator[Scene]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Scene(Bank(database))
    database.close()


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


# --- in --------------------------------------------------------------------------------------------------------------


def test_exchange_in_moves_deposit_to_currency_once_however_often_it_is_asked(scene: Scene) -> None:
    exchange_id = scene.bank.new_id()
    for _ in range(3):
        assert scene.start(exchange_id).state == "final"
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_exchange_in_killed_at_every_point_ends_once_on_both_sides(scene: Scene) -> None:
    deposit, currency, died = DEPOSIT, 0, 0
    for point in range(200):
        exchange_id = scene.bank.new_id()
        died_here = scene.dies_at(point, lambda wanted=exchange_id: scene.start(wanted, 100))  # type: ignore[misc]
        scene.recover()
        assert scene.start(exchange_id, 100).state == "final"
        deposit, currency = deposit - 100, currency + 100
        assert (scene.deposit, scene.currency) == (deposit, currency), f"killed at point {point}"
        if not died_here:
            break
        died += 1
    else:
        pytest.fail("the exchange never came to its end")
    assert died >= 15  # before and after each of four transactions, the debit and the transfer


def test_exchange_in_refused_by_the_ledger_and_killed_at_every_point_gives_the_deposit_back_once(scene: Scene) -> None:
    scene.bank.ledger.accounts[scene.bank.vault].balance = 0
    died = 0
    for point in range(200):
        exchange_id = scene.bank.new_id()
        died_here = scene.dies_at(point, lambda wanted=exchange_id: scene.start(wanted, 100))  # type: ignore[misc]
        scene.recover()
        assert scene.start(exchange_id, 100).state == "compensated"
        assert (scene.deposit, scene.currency) == (DEPOSIT, 0), f"killed at point {point}"
        if not died_here:
            break
        died += 1
    else:
        pytest.fail("the exchange never came to its end")
    assert died >= 20


def test_deposit_that_is_too_small_is_refused_for_ever_under_that_id(scene: Scene) -> None:
    exchange_id = scene.bank.new_id()
    assert scene.start(exchange_id, DEPOSIT + 1).state == "refused"
    scene.bank.core_banking.credit_deposit(scene.bank.new_id(), scene.customer, DEPOSIT)
    assert scene.start(exchange_id, DEPOSIT + 1).state == "refused"
    assert (scene.deposit, scene.currency) == (2 * DEPOSIT, 0)


def test_lost_answer_is_resolved_by_the_same_ids(scene: Scene) -> None:
    exchange_id = scene.bank.new_id()
    scene.bank.ledger.lose_answers = 1
    assert scene.start(exchange_id).state == "debited"
    scene.recover()
    assert scene.start(exchange_id).state == "final"
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_deposit_is_not_given_back_while_an_earlier_transfer_may_still_be_booked(scene: Scene) -> None:
    """Attack of the network: the first request is delayed, the second refused, then the first arrives."""
    exchange_id = scene.bank.new_id()
    ledger = scene.bank.ledger
    delayed: list[Any] = []
    honest_submit = ledger.submit

    def delaying_submit(items: Any, **deadline: Any) -> Any:
        delayed.append(lambda: honest_submit(items, **deadline))
        raise ServiceUnreachable("no answer yet")

    ledger.submit = delaying_submit  # type: ignore[method-assign]
    assert scene.start(exchange_id).state == "debited"
    ledger.submit = honest_submit  # type: ignore[method-assign]
    funds = ledger.accounts[scene.bank.vault].balance
    ledger.accounts[scene.bank.vault].balance = 0
    recover(scene.context, at_start=True)
    assert exchange.find_exchange(scene.context, exchange_id).state == "debited"
    ledger.accounts[scene.bank.vault].balance = funds
    assert delayed[0]()[0].outcome == "booked"
    scene.recover()
    assert exchange.find_exchange(scene.context, exchange_id).state == "final"
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_deposit_comes_back_only_once_a_delayed_transfer_can_no_longer_be_booked(scene: Scene) -> None:
    """The same, but the first request arrives after its deadline: the ledger refuses it, and the look-up stays true."""
    exchange_id = scene.bank.new_id()
    ledger, clock = scene.bank.ledger, scene.bank.clock
    delayed: list[Any] = []
    honest_submit = ledger.submit

    def delaying_submit(items: Any, **deadline: Any) -> Any:
        delayed.append(lambda: honest_submit(items, **deadline))
        raise ServiceUnreachable("no answer yet")

    ledger.submit = delaying_submit  # type: ignore[method-assign]
    assert scene.start(exchange_id).state == "debited"
    ledger.submit = honest_submit  # type: ignore[method-assign]
    funds, ledger.accounts[scene.bank.vault].balance = ledger.accounts[scene.bank.vault].balance, 0
    clock.advance(SUBMISSION_LIFE)
    recover(scene.context)
    assert scene.start(exchange_id).state == "debited"
    clock.advance(SUBMISSION_GRACE)
    recover(scene.context)
    assert scene.deposit == DEPOSIT - AMOUNT  # the very last moment still counts
    clock.advance(timedelta(seconds=1))
    recover(scene.context)
    assert exchange.find_exchange(scene.context, exchange_id).state == "compensated"
    ledger.accounts[scene.bank.vault].balance = funds
    with pytest.raises(ProblemResponse, match="signature-stale"):
        delayed[0]()
    assert (scene.deposit, scene.currency) == (DEPOSIT, 0)


def test_all_copies_of_one_exchange_expire_together_however_late_they_are_sent(scene: Scene) -> None:
    deadlines: list[Any] = []

    def losing_submit(items: Any, **deadline: Any) -> Any:
        deadlines.append(deadline["expires_at"])
        raise ServiceUnreachable("no answer")

    decided_at = scene.bank.clock()
    scene.bank.ledger.submit = losing_submit  # type: ignore[method-assign]
    exchange_id = scene.bank.new_id()
    for _ in range(8):
        scene.start(exchange_id)
        recover(scene.context)
        scene.bank.clock.advance(timedelta(seconds=10))
    assert len(deadlines) == 12  # two at each of six moments; none once the deadline has come
    assert set(deadlines) == {decided_at + SUBMISSION_LIFE}


def test_process_that_stood_still_before_the_send_cannot_book_after_the_deposit_came_back(scene: Scene) -> None:
    """SIGSTOP between the durable `debited` and the send: the signature is made only when the process goes on."""
    ledger = scene.bank.ledger
    honest_submit = ledger.submit

    def stopped_submit(items: Any, **deadline: Any) -> Any:
        ledger.submit = honest_submit  # type: ignore[method-assign]
        for _ in range(4):
            scene.bank.clock.advance(timedelta(minutes=6))
            recover(scene.context)
        return honest_submit(items, **deadline)

    ledger.submit = stopped_submit  # type: ignore[method-assign]
    assert scene.start(scene.bank.new_id()).state == "compensated"
    assert (scene.deposit, scene.currency) == (DEPOSIT, 0)


@pytest.mark.parametrize("fault", ["timeout", "overloaded"])
def test_ledger_client_sends_a_transfer_with_a_deadline_once(fault: str) -> None:
    """Or a refusal would speak of the last copy only, while the first is still under way."""
    deadline = datetime(2026, 6, 15, 4, 1, tzinfo=UTC)
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["signature-input"])
        if fault == "timeout":
            raise httpx.ReadTimeout("no answer yet")
        return httpx.Response(503)

    client = LedgerClient("http://ledger.example")
    client._http = ServiceClient(
        "http://ledger.example",
        auth=RequestSigner(PrivateKey.generate()),
        transport=httpx.MockTransport(answer),
        sleep=lambda _: None,
    )
    item = TransferItem(instruction="a" * 20)
    with pytest.raises((ServiceUnreachable, ProblemResponse)):
        client.submit([item], expires_at=deadline)
    assert len(seen) == 1
    assert f"expires={int(deadline.timestamp())}" in seen[0]
    with pytest.raises((ServiceUnreachable, ProblemResponse)):
        client.submit([item])
    assert len(seen) > 2
    assert not any("expires=" in line for line in seen[1:])


def test_only_copy_refused_gives_the_deposit_back_at_once(scene: Scene) -> None:
    scene.bank.ledger.accounts[scene.bank.vault].balance = 0
    row = scene.start(scene.bank.new_id())
    assert (row.state, row.refusal) == ("compensated", "insufficient-funds")
    assert (scene.deposit, scene.currency) == (DEPOSIT, 0)


def test_doubled_request_is_no_refusal(scene: Scene) -> None:
    """Attack of the network: our one request is doubled; the answer that comes back is the second copy's."""
    ledger = scene.bank.ledger
    honest_submit = ledger.submit

    def doubling_submit(items: Any, **deadline: Any) -> Any:
        honest_submit(items, **deadline)
        raise ProblemResponse(
            status=401, refusal="signature-replayed", transient=False, detail="taken", request_id="fake"
        )

    ledger.submit = doubling_submit  # type: ignore[method-assign]
    exchange_id = scene.bank.new_id()
    assert scene.start(exchange_id).state == "debited"
    ledger.submit = honest_submit  # type: ignore[method-assign]
    assert scene.start(exchange_id).state == "final"
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_deposed_attempt_cannot_write_its_outcome(scene: Scene) -> None:
    """Two workers at one exchange: the older one's refusal comes late and must not give the deposit back."""
    exchange_id = scene.bank.new_id()
    ledger = scene.bank.ledger
    honest_submit = ledger.submit

    def slow_refusal(items: Any, **deadline: Any) -> Any:
        funds, ledger.accounts[scene.bank.vault].balance = ledger.accounts[scene.bank.vault].balance, 0
        refused = honest_submit(items, **deadline)
        ledger.accounts[scene.bank.vault].balance = funds
        ledger.submit = honest_submit  # type: ignore[method-assign]
        recover(scene.context, at_start=True)  # a second worker takes over and is booked
        return refused

    ledger.submit = slow_refusal  # type: ignore[method-assign]
    assert scene.start(exchange_id).state == "final"
    scene.recover()
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_exchange_in_while_core_banking_is_down_goes_on_later(scene: Scene) -> None:
    exchange_id = scene.bank.new_id()
    scene.core_banking.is_down = True
    assert scene.start(exchange_id).state == "initiated"
    scene.core_banking.is_down = False
    scene.recover()
    assert scene.start(exchange_id).state == "final"
    assert (scene.deposit, scene.currency) == (DEPOSIT - AMOUNT, AMOUNT)


def test_our_own_standing_at_the_ledger_is_not_blamed_on_the_client(scene: Scene) -> None:
    """A ledger that refuses our signature must not read as if the channel's own were wrong."""

    def distrust(method: str) -> None:
        raise ProblemResponse(
            status=401, refusal="signature-invalid", transient=False, detail="unknown key", request_id="fake"
        )

    scene.bank.ledger.before_call = distrust
    assert refusal(lambda: scene.start(scene.bank.new_id())) == "service-unavailable"
    assert (scene.deposit, scene.currency) == (DEPOSIT, 0)


def test_exchange_in_refusals_before_anything_is_touched(scene: Scene) -> None:
    bank, new_id = scene.bank, scene.bank.new_id
    poor = bank.holder(WalletClass.IV, funds=1_000_000)

    def start(wallet_id: UUID, amount: int, currency: str = "CNY") -> object:
        return exchange.exchange_in(
            scene.context, new_id(), wallet_id=wallet_id, amount_minor=amount, currency=currency
        )

    assert refusal(lambda: start(new_id(), 1)) == "wallet-not-found"
    assert refusal(lambda: start(scene.holder.wallet.id, 1, "AED")) == "wrong-currency"
    assert refusal(lambda: start(scene.holder.wallet.id, 0)) == "amount-invalid"
    assert refusal(lambda: start(poor.wallet.id, 1)) == "balance-limit-exceeded"
    exchange_id = new_id()
    scene.start(exchange_id)
    assert refusal(lambda: scene.start(exchange_id, AMOUNT + 1)) == "exchange-exists"


# --- out -------------------------------------------------------------------------------------------------------------


def out_instruction(scene: Scene, amount: int, **changes: Any) -> str:
    credit = changes.pop("credit", scene.bank.vault)
    return scene.bank.instruction(scene.holder, credit, amount, kind=TransferKind.EXCHANGE_OUT, **changes)


def test_exchange_out_credits_the_deposit_once_however_often_it_is_asked(scene: Scene) -> None:
    scene.bank.ledger.fund(scene.holder.account, 1000)
    token = out_instruction(scene, 400)
    for _ in range(3):
        assert exchange.exchange_out(scene.context, token).deposit_credited_at is not None
    assert (scene.deposit, scene.currency) == (DEPOSIT + 400, 600)


def test_exchange_out_killed_at_every_point_ends_once_on_both_sides(scene: Scene) -> None:
    scene.bank.ledger.fund(scene.holder.account, 100_000)
    deposit, currency, died = DEPOSIT, 100_000, 0
    for point in range(200):
        payment_id = scene.bank.new_id()
        token = out_instruction(scene, 100, id=payment_id, valid_for=timedelta(days=1))
        died_here = scene.dies_at(
            point,
            lambda wanted=token: exchange.exchange_out(scene.context, wanted),  # type: ignore[misc]
        )
        scene.recover()
        assert exchange.exchange_out(scene.context, token).deposit_credited_at is not None
        deposit, currency = deposit + 100, currency - 100
        assert (scene.deposit, scene.currency) == (deposit, currency), f"killed at point {point}"
        if not died_here:
            break
        died += 1
    else:
        pytest.fail("the exchange never came to its end")
    assert died >= 15


def test_exchange_out_while_core_banking_is_down_is_credited_later(scene: Scene) -> None:
    scene.bank.ledger.fund(scene.holder.account, 1000)
    scene.core_banking.is_down = True
    payment = exchange.exchange_out(scene.context, out_instruction(scene, 400))
    assert (payment.state, payment.deposit_credited_at) == ("final", None)
    scene.core_banking.is_down = False
    scene.recover()
    assert find_payment(scene.context, payment.id).deposit_credited_at is not None
    assert scene.deposit == DEPOSIT + 400


def test_exchange_out_goes_to_our_vault_only(scene: Scene) -> None:
    scene.bank.ledger.fund(scene.holder.account, 1000)
    other = scene.bank.holder()
    token = out_instruction(scene, 400, credit=other.account)
    assert refusal(lambda: exchange.exchange_out(scene.context, token)) == "not-our-vault"
    payment = scene.bank.instruction(scene.holder, scene.bank.vault, 1)
    assert refusal(lambda: exchange.exchange_out(scene.context, payment)) == "kind-not-allowed"
    assert scene.currency == 1000


# --- openings --------------------------------------------------------------------------------------------------------


def test_opening_killed_at_every_point_opens_one_account(scene: Scene) -> None:
    bank = scene.bank
    for point in range(50):
        customer = register_customer(bank.context, bank.new_id(), name="", phone="", evidence=frozenset(Evidence))
        key, wallet_id = PrivateKey.generate(), bank.new_id()
        accounts = len(bank.ledger.accounts)

        def start(wallet_id: UUID = wallet_id, customer_id: UUID = customer.customer.id, key: Any = key) -> object:
            return open_wallet(
                scene.context,
                wallet_id,
                customer_id=customer_id,
                wallet_class=WalletClass.I,
                device_key=key.public.to_jwk(),
            )

        died_here = scene.dies_at(point, start)
        recover(scene.context, at_start=True)
        start()
        with bank.database.engine.connect() as connection:
            wallet = find_wallet(connection, wallet_id)
        assert wallet is not None
        assert wallet.state == "open"
        assert len(bank.ledger.accounts) == accounts + 1
        if not died_here:
            return
    pytest.fail("the opening never came to its end")


def test_opening_refusals(scene: Scene) -> None:
    bank, new_id = scene.bank, scene.bank.new_id
    phone_only = register_customer(bank.context, new_id(), name="", phone="", evidence=frozenset({Evidence.PHONE}))
    customer_id, key = phone_only.customer.id, PrivateKey.generate()

    def start(wallet_class: WalletClass, **changes: Any) -> object:
        values: dict[str, Any] = {"customer_id": customer_id, "device_key": key.public.to_jwk()}
        values |= {"wallet_class": wallet_class}
        wallet_id = changes.pop("wallet_id", new_id())
        return open_wallet(bank.context, wallet_id, **(values | changes))

    assert refusal(lambda: start(WalletClass.III)) == "evidence-insufficient"
    assert refusal(lambda: start(WalletClass.IV, customer_id=new_id())) == "customer-not-found"
    assert refusal(lambda: start(WalletClass.IV, device_key={"kty": "OKP"})) == "device-key-refused"
    wallet_id = new_id()
    start(WalletClass.IV, wallet_id=wallet_id)
    start(WalletClass.IV, wallet_id=wallet_id)
    assert refusal(lambda: start(WalletClass.IV)) == "device-key-in-use"
    other = PrivateKey.generate().public.to_jwk()
    assert refusal(lambda: start(WalletClass.IV, wallet_id=wallet_id, device_key=other)) == "wallet-exists"
    evidence = frozenset({Evidence.PHONE, Evidence.ID})
    assert (
        refusal(lambda: register_customer(bank.context, customer_id, name="", phone="", evidence=evidence))
        == "customer-exists"
    )


# --- the core-banking double -----------------------------------------------------------------------------------------


def test_core_banking_double_answers_an_id_once_and_for_ever(scene: Scene) -> None:
    double, new_id = scene.bank.core_banking, scene.bank.new_id
    customer, posting = new_id(), new_id()
    assert double.look_up(posting) is None
    assert double.debit_deposit(posting, customer, 10) is PostingOutcome.REFUSED
    double.credit_deposit(new_id(), customer, 100)
    assert double.debit_deposit(posting, customer, 10) is PostingOutcome.REFUSED
    assert double.look_up(posting) is PostingOutcome.REFUSED
    assert double.balance(customer) == 100
    with pytest.raises(PostingConflict):
        double.debit_deposit(posting, customer, 11)
    with pytest.raises(PostingConflict):
        double.credit_deposit(posting, customer, 10)

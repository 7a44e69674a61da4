"""Goal: a holder's signed instruction pays at most once, and only what he signed; every refusal names its reason.
Method: the use case on a real PostgreSQL and a fake ledger that verifies, books and refuses; faults injected between.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.jws import peek_payload, sign
from kernel.crypto.keys import PrivateKey, to_base64url
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import INSTRUCTION_TYP, TransferKind
from tests.wallet_bank import Bank, Holder
from wallet.domain.records import Payment
from wallet.domain.rules import WalletClass
from wallet.store.wallets import find_wallet
from wallet.usecases.carrier import Carrier
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE
from wallet.usecases.exchange import resume_payments
from wallet.usecases.listings import find_payment
from wallet.usecases.pay import REFUNDS, Declined, pay, pay_one
from wallet.usecases.recover import recover


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def refused(bank: Bank, token: str) -> str:
    with pytest.raises(ProblemError) as caught:
        pay_one(bank.context, token)
    return caught.value.refusal.value


def used_today(bank: Bank, holder: Holder) -> int:
    with bank.database.engine.connect() as connection:
        wallet = find_wallet(connection, holder.wallet.id)
    assert wallet is not None
    return wallet.usage.day_minor


@pytest.mark.parametrize("suite", ["ed25519", "ecdsa-p256-sha256"])
def test_signed_payment_is_final_and_repeating_it_pays_once(bank: Bank, suite: str) -> None:
    payer, payee = bank.holder(funds=1000, suite=suite), bank.holder()
    token = bank.instruction(payer, payee.account, 300)
    first = pay_one(bank.context, token)
    again = pay_one(bank.context, token)
    assert first.state == again.state == "final"
    assert (first.seq, first.booked_at) == (again.seq, again.booked_at)
    assert (bank.balance(payer), bank.balance(payee)) == (700, 300)
    assert used_today(bank, payer) == 300


def test_same_terms_signed_again_are_the_same_payment(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000, suite="ecdsa-p256-sha256"), bank.holder()
    payment_id = bank.new_id()
    for _ in range(2):
        pay_one(bank.context, bank.instruction(payer, payee.account, 300, id=payment_id))
    assert bank.balance(payee) == 300


def test_payee_at_another_intermediary_is_just_an_account(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    with bank.database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM wallet_device WHERE wallet_id = %s", (payee.wallet.id,))
        connection.exec_driver_sql("DELETE FROM wallet WHERE id = %s", (payee.wallet.id,))
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 1)).state == "final"


# --- attacks ---------------------------------------------------------------------------------------------------------


def test_forged_signature_is_refused_and_leaves_no_trace(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    forged = bank.instruction(payer, payee.account, 300, key=PrivateKey.generate())
    assert refused(bank, forged) == "instruction-invalid"
    assert bank.balance(payer) == 1000
    assert used_today(bank, payer) == 0


def test_another_wallets_key_cannot_debit_this_wallet(bank: Bank) -> None:
    payer, thief = bank.holder(funds=1000), bank.holder()
    assert refused(bank, bank.instruction(payer, thief.account, 300, key=thief.key)) == "instruction-invalid"


def test_payload_exchanged_under_a_genuine_signature_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    small = bank.instruction(payer, payee.account, 1)
    large = bank.instruction(payer, payee.account, 900, key=PrivateKey.generate())
    header, _, signature = small.split(".")
    assert refused(bank, f"{header}.{large.split('.')[1]}.{signature}") == "instruction-invalid"


def test_document_of_another_type_is_no_instruction(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payload = peek_payload(bank.instruction(payer, payee.account, 1))
    assert refused(bank, sign(payload, payer.key, typ="jiaozi-approval+jws")) == "instruction-invalid"
    assert pay_one(bank.context, sign(payload, payer.key, typ=INSTRUCTION_TYP)).state == "final"


def test_unknown_member_in_the_instruction_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payload = peek_payload(bank.instruction(payer, payee.account, 1))
    extended = payload[:-1] + b',"bonus":"1"}'
    assert refused(bank, sign(extended, payer.key, typ=INSTRUCTION_TYP)) == "instruction-invalid"


@pytest.mark.parametrize("token", ["x" * 20, "a.b.c" * 5, "e30.e30.e30" + "A" * 10])
def test_garbage_is_no_instruction(bank: Bank, token: str) -> None:
    assert refused(bank, token) == "instruction-invalid"


def test_instruction_for_another_ledger_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    assert refused(bank, bank.instruction(payer, payee.account, 1, ledger="aed")) == "wrong-ledger"


def test_instruction_in_another_currency_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    assert refused(bank, bank.instruction(payer, payee.account, 1, currency="AED")) == "wrong-currency"


def test_expired_instruction_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    token = bank.instruction(payer, payee.account, 1, valid_for=timedelta(seconds=5))
    bank.clock.advance(timedelta(seconds=5))
    assert refused(bank, token) == "instruction-expired"


def test_id_reused_with_other_content_is_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id = bank.new_id()
    pay_one(bank.context, bank.instruction(payer, payee.account, 1, id=payment_id))
    assert refused(bank, bank.instruction(payer, payee.account, 2, id=payment_id)) == "id-already-used"
    # nor by another payer
    other = bank.holder(funds=1000)
    assert refused(bank, bank.instruction(other, payee.account, 1, id=payment_id)) == "id-already-used"


def test_wallet_of_another_institution_is_not_ours_to_carry(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    token = bank.instruction(payer, payee.account, 1)
    with bank.database.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM wallet_device WHERE wallet_id = %s", (payer.wallet.id,))
        connection.exec_driver_sql("DELETE FROM wallet WHERE id = %s", (payer.wallet.id,))
    assert refused(bank, token) == "not-our-wallet"


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (TransferKind.EXCHANGE_OUT, "kind-not-allowed"),
        (TransferKind.ADJUSTMENT, "kind-not-allowed"),
        (TransferKind.HOLD, "kind-not-allowed"),
    ],
)
def test_only_payments_and_refunds_have_this_address(bank: Bank, kind: TransferKind, refusal: str) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    assert refused(bank, bank.instruction(payer, payee.account, 1, kind=kind)) == refusal


def test_zero_amount_and_paying_oneself_are_refused(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    assert refused(bank, bank.instruction(payer, payee.account, 0)) == "amount-invalid"
    assert refused(bank, bank.instruction(payer, payer.account, 1)) == "accounts-must-differ"


@pytest.mark.parametrize("amount", [-5, 2**63])
def test_amount_beyond_its_bounds_spelt_as_a_number_is_refused(bank: Bank, amount: int) -> None:
    """A negative debit would raise the payer's balance and lower his usage."""
    payer, payee = bank.holder(funds=1000), bank.holder()
    payload = json.loads(peek_payload(bank.instruction(payer, payee.account, 1)))
    payload["terms"]["amount_minor"] = amount
    assert refused(bank, sign(json.dumps(payload).encode(), payer.key, typ=INSTRUCTION_TYP)) == "instruction-invalid"
    assert used_today(bank, payer) == 0


# --- whose signature is checked here (wallet.usecases.doubts) --------------------------------------------------------


def payment_rows(bank: Bank) -> int:
    with bank.database.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM payment").scalar_one())


def sent(bank: Bank) -> list[str]:
    """Tokens that reach the ledger from now on."""
    tokens: list[str] = []
    honest = bank.ledger.submit

    def watched(items: Any, **deadline: Any) -> Any:
        tokens.extend(item.instruction for item in items)
        return honest(items, **deadline)

    bank.ledger.submit = watched  # type: ignore[method-assign]
    return tokens


def test_forged_payment_is_found_by_the_ledger_and_forgotten_here(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id, tokens = bank.new_id(), sent(bank)
    forged = bank.instruction(payer, payee.account, 300, id=payment_id, key=forger_of(payer))
    assert refused(bank, forged) == "instruction-invalid"
    assert tokens == [forged]  # alone, so it was not checked here
    assert (payment_rows(bank), used_today(bank, payer)) == (0, 0)
    # nor has the forger taken the id away from the holder
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 5, id=payment_id)).state == "final"


def forger_of(payer: Holder) -> Any:
    """A key that signs as if it were the payer's: with his key's id in the header."""

    class Forger:
        suite, thumbprint = payer.key.suite, payer.key.thumbprint

        @staticmethod
        def sign(data: bytes) -> bytes:
            return PrivateKey.generate(payer.key.suite).sign(data)

    return Forger()


def test_after_one_forged_payment_the_others_are_found_here(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    refused(bank, bank.instruction(payer, payee.account, 300, key=forger_of(payer)))
    tokens = sent(bank)
    for _ in range(3):
        assert refused(bank, bank.instruction(payer, payee.account, 300, key=forger_of(payer))) == "instruction-invalid"
    assert tokens == []
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 300)).state == "final"


def test_flood_of_forged_payments_uses_up_nobodys_allowance(bank: Bank) -> None:
    """While one payment of the account is on its way, every other is checked before it counts."""
    payer, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder()
    honest = bank.ledger.submit
    seen: list[str] = []

    def slow(items: Any, **deadline: Any) -> Any:
        bank.ledger.submit = honest  # type: ignore[method-assign]
        flood = [bank.instruction(payer, payee.account, 200_000, key=forger_of(payer)) for _ in range(5)]
        genuine = bank.instruction(payer, payee.account, 200_000)
        for outcome in pay(bank.context, [*flood, genuine]):
            seen.append(outcome.refusal.value if isinstance(outcome, Declined) else outcome.state)
        return honest(items, **deadline)

    bank.ledger.submit = slow  # type: ignore[method-assign]
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 200_000)).state == "final"
    assert seen == ["instruction-invalid"] * 5 + ["final"]
    assert used_today(bank, payer) == 400_000


def test_forged_payments_count_for_nothing_while_the_ledger_is_silent(bank: Bank) -> None:
    payer, other, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder(funds=1000), bank.holder()
    bank.ledger.unreachable = True
    refused(bank, bank.instruction(other, payee.account, 1))  # now it is known to be silent
    forged = bank.instruction(payer, payee.account, 200_000, key=forger_of(payer))
    assert refused(bank, forged) == "instruction-invalid"
    assert used_today(bank, payer) == 0


def test_forged_copy_does_not_replace_what_its_holder_signed(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id = bank.new_id()
    bank.ledger.lose_answers = 1
    assert refused(bank, bank.instruction(payer, payee.account, 300, id=payment_id)) == "outcome-unknown"
    longer = timedelta(hours=1)
    forged = bank.instruction(payer, payee.account, 300, id=payment_id, key=forger_of(payer), valid_for=longer)
    assert refused(bank, forged) == "instruction-invalid"
    recover(bank.context, at_start=True)
    assert find_payment(bank.context, payment_id).state == "final"


def test_forged_copy_that_came_first_is_replaced_by_what_the_holder_signed(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id = bank.new_id()
    longer = timedelta(hours=1)
    forged = bank.instruction(payer, payee.account, 300, id=payment_id, key=forger_of(payer), valid_for=longer)
    bank.ledger.unreachable = True
    assert refused(bank, forged) == "outcome-unknown"
    bank.ledger.unreachable = False
    assert pay_one(bank.context, bank.instruction(payer, payee.account, 300, id=payment_id)).state == "final"
    assert bank.balance(payee) == used_today(bank, payer) == 300


def test_header_spelt_otherwise_is_checked_here(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    token = bank.instruction(payer, payee.account, 300)
    tokens = sent(bank)
    for header in ("", "AA", 'x"},{', to_base64url(b'{"alg":"none"}')):
        assert refused(bank, f"{header}.{token.split('.', 1)[1]}") == "instruction-invalid"
    assert tokens == []


# --- the ledger's answers --------------------------------------------------------------------------------------------


def test_refused_payment_is_recorded_uncounted_and_may_succeed_later(bank: Bank) -> None:
    payer, payee = bank.holder(), bank.holder()
    payment_id = bank.new_id()
    token = bank.instruction(payer, payee.account, 300, id=payment_id)
    assert refused(bank, token) == "insufficient-funds"
    stored = find_payment(bank.context, payment_id)
    assert (stored.state, stored.refusal, stored.is_transient) == ("refused", "insufficient-funds", True)
    assert used_today(bank, payer) == 0
    bank.ledger.fund(payer.account, 300)
    assert pay_one(bank.context, token).state == "final"
    assert used_today(bank, payer) == 300


def test_limit_is_refused_here_before_the_ledger_is_asked(bank: Bank) -> None:
    payer, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder()
    bank.ledger.unreachable = True
    assert refused(bank, bank.instruction(payer, payee.account, 200_001)) == "single-limit-exceeded"


def test_day_limit_counts_what_is_on_its_way(bank: Bank) -> None:
    payer, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder()
    bank.ledger.unreachable = True
    for _ in range(2):
        assert refused(bank, bank.instruction(payer, payee.account, 200_000)) == "outcome-unknown"
    assert refused(bank, bank.instruction(payer, payee.account, 100_001)) == "day-limit-exceeded"
    bank.clock.advance(timedelta(days=1))
    assert refused(bank, bank.instruction(payer, payee.account, 100_001)) == "outcome-unknown"


def test_concurrent_payments_never_exceed_the_day_limit_together(bank: Bank) -> None:
    """I9 here, whatever the ledger says: its own limits are switched off."""
    payer, payee = bank.holder(WalletClass.IV, funds=10_000_000), bank.holder()
    bank.ledger.classes.clear()
    tokens = [bank.instruction(payer, payee.account, 100_000) for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        outcomes = [outcome[0] for outcome in pool.map(lambda token: pay(bank.context, [token]), tokens)]
    assert sum(not isinstance(outcome, Declined) for outcome in outcomes) == 5
    assert bank.balance(payee) == used_today(bank, payer) == 500_000


def test_same_instruction_sent_by_many_at_once_pays_once(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    token = bank.instruction(payer, payee.account, 300)
    with ThreadPoolExecutor(6) as pool:
        states = list(pool.map(lambda _: pay_one(bank.context, token).state, range(12)))
    assert set(states) == {"final"}
    assert bank.balance(payee) == used_today(bank, payer) == 300


# --- lost answers and crashes ----------------------------------------------------------------------------------------


def test_lost_answer_is_resolved_by_the_same_request(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    token = bank.instruction(payer, payee.account, 300)
    bank.ledger.lose_answers = 1
    assert refused(bank, token) == "outcome-unknown"
    assert pay_one(bank.context, token).state == "final"
    assert bank.balance(payee) == used_today(bank, payer) == 300


def test_lost_answer_is_resolved_by_recovery_even_after_the_instruction_expired(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id = bank.new_id()
    bank.ledger.lose_answers = 1
    refused(bank, bank.instruction(payer, payee.account, 300, id=payment_id))
    bank.clock.advance(timedelta(hours=1))
    assert recover(bank.context).payments == 1
    assert find_payment(bank.context, payment_id).state == "final"
    assert bank.balance(payee) == 300


def test_payment_that_never_arrived_is_refused_once_no_straggler_can_book_it(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    payment_id = bank.new_id()
    bank.ledger.unreachable = True
    refused(bank, bank.instruction(payer, payee.account, 300, id=payment_id, valid_for=timedelta(seconds=5)))
    bank.ledger.unreachable = False
    bank.clock.advance(timedelta(seconds=6))
    assert resume_payments(bank.context, older_than=timedelta(0)) == 0
    assert find_payment(bank.context, payment_id).state == "initiated"
    bank.clock.advance(SUBMISSION_GRACE)
    assert resume_payments(bank.context, older_than=timedelta(0)) == 1
    assert find_payment(bank.context, payment_id).refusal == "instruction-expired"
    assert used_today(bank, payer) == 0
    assert bank.balance(payer) == 1000


class Delayed:
    """A network that keeps the copies sent while it is on, to deliver them later."""

    def __init__(self, bank: Bank) -> None:
        self.copies: list[Callable[[], Any]] = []
        self._ledger, self._honest = bank.ledger, bank.ledger.submit

    def __enter__(self) -> Delayed:
        def keep(items: Any, **deadline: Any) -> Any:
            self.copies.append(lambda: self._honest(items, **deadline))
            raise ServiceUnreachable("no answer yet")

        self._ledger.submit = keep  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        self._ledger.submit = self._honest  # type: ignore[method-assign]


def test_refusal_of_a_repetition_is_not_believed_while_an_earlier_copy_may_be_booked(bank: Bank) -> None:
    """Attack of the network: copy 1 is delayed, copy 2 refused for want of funds, then copy 1 arrives."""
    payer, payee = bank.holder(), bank.holder()
    payment_id = bank.new_id()
    token = bank.instruction(payer, payee.account, 300, id=payment_id)
    with Delayed(bank) as delayed:
        assert refused(bank, token) == "outcome-unknown"
    assert refused(bank, token) == "outcome-unknown"
    assert used_today(bank, payer) == 300
    bank.ledger.fund(payer.account, 300)
    assert delayed.copies[0]()[0].outcome == "booked"
    bank.clock.advance(timedelta(seconds=11))
    assert recover(bank.context).payments == 1
    assert find_payment(bank.context, payment_id).state == "final"
    assert bank.balance(payee) == used_today(bank, payer) == 300


def test_refusal_of_a_repetition_is_believed_once_the_earlier_copies_are_dead(bank: Bank) -> None:
    """However often it is repeated meanwhile: only copies that were not answered put the end off."""
    payer, payee = bank.holder(), bank.holder()
    payment_id = bank.new_id()
    token = bank.instruction(payer, payee.account, 300, id=payment_id, valid_for=timedelta(days=1))
    with Delayed(bank) as delayed:
        refused(bank, token)
    wait = SUBMISSION_LIFE + SUBMISSION_GRACE
    for _ in range(4):
        assert refused(bank, token) == "outcome-unknown"
        assert recover(bank.context, at_start=True).payments == 0
        bank.clock.advance(wait / 4)
    assert refused(bank, token) == "outcome-unknown"  # the very last moment still counts
    bank.clock.advance(timedelta(seconds=1))
    assert recover(bank.context, at_start=True).payments == 1
    assert find_payment(bank.context, payment_id).refusal == "insufficient-funds"
    assert used_today(bank, payer) == 0
    bank.ledger.fund(payer.account, 300)
    with pytest.raises(ProblemResponse, match="signature-stale"):
        delayed.copies[0]()
    assert bank.balance(payee) == 0


def test_refusal_of_an_older_attempt_is_not_believed_while_a_newer_one_is_under_way(bank: Bank) -> None:
    """The older attempt waits for its answer; the newer one is sent, and its answer lost."""
    payer, payee = bank.holder(), bank.holder()
    payment_id = bank.new_id()
    token = bank.instruction(payer, payee.account, 300, id=payment_id)
    honest_submit = bank.ledger.submit
    delayed = Delayed(bank)

    def slow_refusal(items: Any, **deadline: Any) -> Any:
        results = honest_submit(items, **deadline)
        bank.clock.advance(timedelta(seconds=1))
        with delayed:
            assert refused(bank, token) == "outcome-unknown"
        return results

    bank.ledger.submit = slow_refusal  # type: ignore[method-assign]
    assert refused(bank, token) == "outcome-unknown"
    bank.ledger.submit = honest_submit  # type: ignore[method-assign]
    assert find_payment(bank.context, payment_id).state == "initiated"
    bank.ledger.fund(payer.account, 300)
    assert delayed.copies[0]()[0].outcome == "booked"
    recover(bank.context, at_start=True)
    assert find_payment(bank.context, payment_id).state == "final"
    assert bank.balance(payee) == used_today(bank, payer) == 300


def test_process_that_stood_still_before_the_send_cannot_pay_what_was_refused_meanwhile(bank: Bank) -> None:
    payer, payee = bank.holder(), bank.holder()
    payment_id = bank.new_id()
    token = bank.instruction(payer, payee.account, 300, id=payment_id, valid_for=timedelta(days=1))
    honest_submit = bank.ledger.submit

    def stopped_submit(items: Any, **deadline: Any) -> Any:
        bank.ledger.submit = honest_submit  # type: ignore[method-assign]
        bank.clock.advance(SUBMISSION_LIFE + SUBMISSION_GRACE + timedelta(seconds=1))
        assert recover(bank.context).payments == 1
        bank.ledger.fund(payer.account, 300)
        return honest_submit(items, **deadline)

    bank.ledger.submit = stopped_submit  # type: ignore[method-assign]
    pay(bank.context, [token])
    assert find_payment(bank.context, payment_id).refusal == "insufficient-funds"
    assert bank.balance(payee) == used_today(bank, payer) == 0


def test_carrier_that_has_stopped_takes_nothing_in(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    carrier = Carrier(bank.context)
    carrier.start()

    async def carry_while_it_stops() -> None:
        carried = asyncio.ensure_future(carrier.carry(bank.instruction(payer, payee.account, 300)))
        await asyncio.sleep(0)
        await asyncio.to_thread(carrier.stop)
        assert isinstance(await carried, Payment)
        with pytest.raises(ProblemError, match="service-unavailable"):
            await carrier.carry(bank.instruction(payer, payee.account, 300))

    asyncio.run(carry_while_it_stops())
    assert bank.balance(payee) == 300


class Killed(BaseException):
    """Not an Exception: nothing may catch it, as nothing catches SIGKILL."""


def test_crash_before_or_after_the_ledgers_answer_pays_once(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()

    def kill(method: str) -> None:
        raise Killed

    bank.ledger.before_call = kill
    with pytest.raises(Killed):
        pay_one(bank.context, bank.instruction(payer, payee.account, 300))
    bank.ledger.before_call = lambda method: None
    recover(bank.context, at_start=True)
    assert bank.balance(payee) == 300
    assert used_today(bank, payer) == 300


def test_final_mark_lost_with_the_database_is_found_again(bank: Bank) -> None:
    """It does not wait for the disk: a crash of the database server may take it back, never the payment."""
    payer, payee = bank.holder(funds=1000), bank.holder()
    final = pay_one(bank.context, bank.instruction(payer, payee.account, 300))
    with bank.database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE payment SET state = 'initiated', seq = NULL, booked_at = NULL")
    assert recover(bank.context, at_start=True).payments == 1
    found = find_payment(bank.context, final.id)
    assert (found.state, found.seq, found.booked_at) == ("final", final.seq, final.booked_at)
    assert bank.balance(payee) == used_today(bank, payer) == 300


# --- batches ---------------------------------------------------------------------------------------------------------


def test_batch_gives_each_item_its_own_result_in_order(bank: Bank) -> None:
    payer, poor, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder(), bank.holder()
    payment_id = bank.new_id()
    first = bank.instruction(payer, payee.account, 100, id=payment_id)
    tokens = [
        first,
        "garbage" * 10,
        bank.instruction(payer, payee.account, 200_001),
        bank.instruction(poor, payee.account, 1),
        first,
        bank.instruction(payer, payee.account, 7, id=payment_id),
        bank.instruction(payer, payee.account, 200_000),
        bank.instruction(payer, payee.account, 200_000),
        bank.instruction(payer, payee.account, 200_000),
        bank.instruction(payer, payee.account, 5, key=poor.key),
    ]
    outcomes = pay(bank.context, tokens)
    said = [item.refusal.value if isinstance(item, Declined) else item.refusal or item.state for item in outcomes]
    assert said == [
        "final",
        "instruction-invalid",
        "single-limit-exceeded",
        "insufficient-funds",
        "final",
        "id-already-used",
        "final",
        "final",
        "day-limit-exceeded",
        "instruction-invalid",
    ]
    assert bank.balance(payee) == used_today(bank, payer) == 400_100


def test_refund_is_signed_by_the_payee_and_counts_against_no_limit(bank: Bank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder(WalletClass.IV)
    original = pay_one(bank.context, bank.instruction(payer, payee.account, 300))
    token = bank.instruction(payee, payer.account, 300, kind=TransferKind.REFUND, reference=original.id)
    refund = pay_one(bank.context, token, kinds=REFUNDS)
    assert (refund.kind, refund.reference) == ("refund", original.id)
    assert bank.balance(payer) == 1000
    assert used_today(bank, payee) == 0
    stolen = bank.instruction(payee, payer.account, 1, kind=TransferKind.REFUND, key=payer.key)
    with pytest.raises(ProblemError, match="instruction-invalid"):
        pay_one(bank.context, stolen, kinds=REFUNDS)


def test_unknown_payment_is_not_found(bank: Bank) -> None:
    with pytest.raises(ProblemError, match="payment-not-found"):
        find_payment(bank.context, UUID("0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"))

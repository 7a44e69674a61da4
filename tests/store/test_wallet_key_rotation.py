"""I7, I8. Goal: what a holder's old key has signed and was carried is answered as before once the key is replaced, and
pays once; what was never carried is not carried any more.
Method: use cases of two banks over PostgreSQL and a fake ledger with holds; answers lost before the key is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from kernel.client import ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from tests.programs_world import ProgramBank, refusal_of
from tests.store.test_wallet_lifecycle import device_change
from tests.store.test_wallet_redemptions import CodeLedger, code_of, used_today
from tests.store.test_wallet_requests import TwoBanks
from wallet.contract.requests import CodeRedemption
from wallet.usecases import incoming, program_funding, program_statements, vouchers
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE
from wallet.usecases.payer_codes import CODE_SECONDS_MAX, accept, resume_redemptions

CODE_DEAD = timedelta(seconds=CODE_SECONDS_MAX) + SUBMISSION_LIFE + SUBMISSION_GRACE
"""Then no copy of a code can be booked any more."""


@pytest.fixture
def databases(fresh_database: Callable[[str], str]) -> Iterator[list[Database]]:
    made = [Database(fresh_database("wallet"), application_name="test") for _ in range(2)]
    yield made
    for database in made:
        database.close()


@pytest.fixture
def banks(databases: list[Database]) -> TwoBanks:
    made = TwoBanks(*databases)
    ledger = CodeLedger.of(made.ledger)
    for bank in (made.payee, made.payer):
        bank.ledger = bank.context.ledgers.home.client = ledger
        ledger.fund(bank.vault, 1_000_000)
    return made


def silent(method: str) -> None:
    if method == "submit":
        raise ServiceUnreachable("no answer")


def state(call: Callable[[], Any]) -> str:
    try:
        return str(call().state)
    except ProblemError as error:
        return error.refusal.value


@pytest.mark.parametrize("before", ["final", "lost", "never sent"])
def test_an_approved_request(banks: TwoBanks, before: str) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request = banks.ask(payee)
    banks.shown(banks.payer, payer, request)
    token = banks.answer(banks.payer, payer, request)

    def approve(said: str) -> str:
        return state(lambda: incoming.approve(banks.payer.context, payer.wallet.id, request.id, said))

    if before != "never sent":
        banks.ledger.lose_answers = 1 if before == "lost" else 0
        assert approve(token) == ("final" if before == "final" else "outcome-unknown")
    new = PrivateKey.generate()
    device_change(banks.payer, payer, "replace-holder-key", new)
    wanted = "instruction-invalid" if before == "never sent" else "final"
    assert [approve(token) for _ in range(2)] == [wanted] * 2
    anew = banks.answer(banks.payer, payer, request, key=new)
    assert approve(anew) == "final", "the same payment, signed by the key of today"
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (500, 4500)
    assert used_today(banks.payer, payer) == 500


@pytest.mark.parametrize("before", ["final", "lost", "never sent", "never shown"])
def test_a_payers_code(banks: TwoBanks, before: str) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    request, other = banks.ask(payee), banks.ask(payee)
    code = code_of(banks.payer, payer)

    def shown(document: str = request.document) -> str:
        return state(lambda: accept(banks.payer.context, CodeRedemption(code=code, document=document)))

    if before != "never shown":
        banks.ledger.lose_answers = 1 if before == "lost" else 0
        banks.ledger.before_call = silent if before == "never sent" else lambda method: None
        assert shown() == ("paid" if before == "final" else "outcome-unknown")
        banks.ledger.before_call = lambda method: None
    device_change(banks.payer, payer, "replace-holder-key", PrivateKey.generate())
    is_booked = before in ("final", "lost")
    if is_booked:
        assert [shown() for _ in range(2)] == ["paid"] * 2
        assert shown(other.document) == "code-already-redeemed"
    else:
        assert shown() != "paid"
        banks.payer.clock.advance(CODE_DEAD)
        resume_redemptions(banks.payer.context)
        assert shown() not in ("paid", "outcome-unknown")
    amount = 500 if is_booked else 0
    assert (banks.payee.balance(payee), banks.payer.balance(payer)) == (amount, 5000 - amount)
    assert used_today(banks.payer, payer) == amount


def test_a_program_its_statements_and_a_purchase_with_its_voucher(databases: list[Database]) -> None:
    bank = ProgramBank(databases[0])
    payer, payee, shop = bank.holder(funds=10_000), bank.holder(), bank.merchant()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], quiet_days=9, subject="x"), actors)
    agreement, holds = bank.statement(known, actors, "payer", "agree"), bank.holds(known, payer.key)

    def fund() -> str:
        return program_funding.fund(
            bank.context, known.program.id, agreement=agreement, instructions=holds
        ).program.state

    delivered = bank.statement(known, actors, "payer", "delivered")
    voucher = bank.voucher(payee, 500)
    of_issuer = bank.actors(payer, None)
    stamps: dict[str, Any] = {"categories": ["5411"], "places": ["3301"], "step": "500"}
    bank.funded(bank.request("voucher-multi", of_issuer, vouchers=[voucher], **stamps), of_issuer)
    purchase = bank.purchase(voucher.voucher, shop.account, 500, payee.key)
    bank.ledger.lose_answers = 1
    assert refusal_of(fund) == "outcome-unknown"
    assert fund() == "active"
    program_statements.take_statement(bank.context, delivered)
    bank.ledger.lose_answers = 1
    assert refusal_of(vouchers.spend, bank.context, purchase) == "outcome-unknown"
    for holder in (payer, payee):
        device_change(bank, holder, "replace-holder-key", PrivateKey.generate())
    assert [fund() for _ in range(2)] == ["active"] * 2
    assert program_statements.take_statement(bank.context, delivered).program.released_minor == 100
    assert [vouchers.spend(bank.context, purchase).state for _ in range(2)] == ["final"] * 2
    assert (bank.balance(shop), bank.balance(payee), bank.ledger.held()) == (500, 100, 200)
    late = bank.statement(known, actors, "payer", "delivered", 2)
    assert refusal_of(program_statements.take_statement, bank.context, late) == "statement-invalid"

"""Goal: requests, refunds, programs and purses tell what happens to them: once, of the right wallet, with the fact.
Method: the use cases on a real PostgreSQL; each story is run, some with lost answers, and the events are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from kernel.database import Database
from tests.programs_world import ProgramBank, refusal_of
from tests.purse_world import funded_purse, seconds
from tests.store.test_wallet_refunds import Sale
from tests.store.test_wallet_requests import OTHER, TwoBanks
from tests.store.test_wallet_requests import banks as banks
from tests.wallet_bank import Bank
from wallet.domain.events import Event
from wallet.domain.offline.policy import POLICY
from wallet.domain.offline.vocabulary import Disposition
from wallet.usecases import events, incoming, offline, requests
from wallet.usecases.context import SUBMISSION_GRACE
from wallet.usecases.pay import pay_one
from wallet.usecases.program_pass import resume_programs
from wallet.usecases.recover import recover
from wallet.usecases.refunds import refund

LESSONS: Any = {"quiet_days": 14, "subject": "ten lessons"}


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


def told(bank: Bank, about: str, subject: UUID | None = None) -> list[Event]:
    found = events.page(bank.context, after=0, types=(), limit=1_000)
    return [
        event
        for event in found
        if event.type.startswith(about) and (subject is None or event.subject.endswith(str(subject)))
    ]


def types(bank: Bank, about: str, subject: UUID | None = None) -> list[str]:
    return [event.type for event in told(bank, about, subject)]


def test_request_tells_its_payee_how_it_ended(banks: TwoBanks) -> None:
    payee, payer = banks.payee.holder(), banks.payer.holder(funds=5000)
    paid, expired, still_open = banks.ask(payee), banks.ask(payee), banks.ask(payee)
    declined = banks.ask(payee, payer_account=payer.account, payer_institution=OTHER)
    cancelled = banks.ask(payee)
    assert banks.approve(banks.payer, payer, paid) == "final"
    for _ in range(3):
        banks.look(paid)
    stray = banks.payer.instruction(payer, payee.account, 7, reference=still_open.id)
    pay_one(banks.payer.context, stray)
    incoming.decline(banks.payer.context, payer.wallet.id, declined.id)
    requests.cancel_request(banks.payee.context, cancelled.id)
    banks.payee.clock.advance(timedelta(seconds=5))
    for _ in range(2):
        requests.watch_accounts(banks.payee.context)
    (event,) = told(banks.payee, "request.paid")
    assert (event.subject, event.wallet_id) == (f"req_{paid.id}", payee.wallet.id)
    (event,) = told(banks.payee, "request.surplus")
    assert event.subject == f"req_{still_open.id}"
    assert str(event.data["transfer"]).startswith("trf_")
    assert types(banks.payee, "request.", declined.id) == ["request.declined"]
    assert types(banks.payee, "request.", cancelled.id) == []
    banks.payee.clock.advance(timedelta(hours=1) + SUBMISSION_GRACE)
    for _ in range(2):
        recover(banks.payee.context)
    assert types(banks.payee, "request.", expired.id) == ["request.expired"]
    assert types(banks.payer, "request.") == []


def test_refund_tells_whether_it_was_booked(bank: ProgramBank) -> None:
    sale = Sale(bank)
    good, poor = sale.token(400), sale.token(600)
    assert sale.give_back(1001) == "refund-exceeds-original"
    assert refund(bank.context, good).state == refund(bank.context, good).state == "final"
    (event,) = told(bank, "refund.")
    assert (event.type, event.wallet_id) == ("refund.final", sale.merchant.wallet.id)
    assert event.data == {"original": f"trf_{sale.payment.id}"}
    bank.ledger.accounts[sale.merchant.account].balance = 0
    assert refusal_of(refund, bank.context, poor) == "insufficient-funds"
    assert types(bank, "refund.") == ["refund.final", "refund.released"]


def test_refund_whose_answer_was_lost_is_told_by_the_pass(bank: ProgramBank) -> None:
    sale = Sale(bank)
    bank.ledger.lose_answers = 1
    assert sale.give_back(400) == "outcome-unknown"
    assert types(bank, "refund.") == []
    bank.clock.advance(timedelta(minutes=1))
    for _ in range(3):
        recover(bank.context)
    assert types(bank, "refund.") == ["refund.final"]


def test_program_tells_each_step_with_its_amount(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], **LESSONS), actors)
    assert told(bank, "program.") == []
    known = bank.fund(known, actors)
    bank.say(known, actors, "courier", "delivered", 1)
    bank.say(known, actors, "payee", "give_up")
    resume_programs(bank.context)
    found = told(bank, "program.")
    assert [(event.type, event.data.get("amount_minor")) for event in found] == [
        ("program.funded", "300"),
        ("program.released", "100"),
        ("program.returned", "200"),
        ("program.finished", None),
    ]
    assert {(event.subject, event.wallet_id) for event in found} == {(f"prg_{known.program.id}", payer.wallet.id)}


def test_program_whose_funding_is_refused_tells_so_once(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=50), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100], **LESSONS), actors)
    assert refusal_of(bank.fund, known, actors) == "insufficient-funds"
    resume_programs(bank.context)
    assert types(bank, "program.") == ["program.refused"]


def test_purses_tell_what_arrives_and_name_the_double_spender_once(bank: ProgramBank) -> None:
    payer, one, two = funded_purse(bank, 1000), funded_purse(bank, 0), funded_purse(bank, 0)
    assert types(bank, "purse.", payer.id) == ["purse.loaded"]
    hacked = replace(payer)
    transfer = payer.pays(one, 400, seconds(bank), Disposition.ACCOUNT)
    for _ in range(2):
        offline.sync(bank.context, [transfer])
    (event,) = told(bank, "purse.synced")
    assert one.holder is not None
    assert (event.subject, event.wallet_id) == (f"pur_{one.id}", one.holder.wallet.id)
    assert (event.data["payer"], event.data["amount_minor"]) == (f"pur_{payer.id}", "400")
    assert told(bank, "purse.double-spent") == []
    conflicting = hacked.pays(two, 300, seconds(bank), Disposition.ACCOUNT)
    for _ in range(2):
        offline.sync(bank.context, [conflicting, transfer])
    (event,) = told(bank, "purse.double-spent")
    assert payer.holder is not None
    assert (event.subject, event.wallet_id) == (f"pur_{payer.id}", payer.holder.wallet.id)
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds))
    for _ in range(2):
        offline.resume_offline(bank.context, older_than=timedelta(0))
    assert types(bank, "purse.settled", payer.id) == ["purse.settled"]

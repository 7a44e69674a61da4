"""Goal: a program's money is the payer's until its condition holds, and then moves once, whoever asks or repeats.
Method: the use cases on a real PostgreSQL and a fake ledger with holds and linked chains; faults injected between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest
from sqlalchemy import text

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import InvariantBroken, ProblemError
from ledger.contract import HoldStatus, TransferItem, TransferKind, TransferTerms
from tests.programs_world import ProgramBank, refusal_of
from tests.roles import as_service, dsn
from wallet.contract.programs import MerchantRequest, MerchantStatement, sign_merchant
from wallet.domain.rules import WalletClass
from wallet.store.wallets import find_wallet
from wallet.usecases import program_books, program_funding, program_statements, programs, vouchers
from wallet.usecases.context import SUBMISSION_GRACE, SUBMISSION_LIFE
from wallet.usecases.program_pass import resume_programs

DAY = timedelta(days=1)
DRIP = {"quiet_days": 14, "subject": "ten lessons"}


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(as_service(fresh_database("wallet"), "wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


# --- prepaid, released drip by drip ----------------------------------------------------------------------------------


def test_each_confirmed_delivery_releases_the_next_instalment(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200, 300], **DRIP), actors)
    assert (known.program.state, bank.ledger.held(), bank.balance(payee)) == ("active", 600, 0)
    known = bank.say(known, actors, "courier", "delivered", 1)
    assert (bank.balance(payee), known.program.held_minor) == (100, 500)
    known = bank.say(known, actors, "payer", "delivered", 1)  # the same delivery once more releases nothing
    assert bank.balance(payee) == 100
    bank.say(known, actors, "payer", "delivered", 2)
    known = bank.say(known, actors, "courier", "delivered", 3)
    assert (known.program.state, bank.balance(payee), bank.balance(payer)) == ("finished", 600, 400)
    assert bank.check(known.program.id)["released"] == 600


@pytest.mark.parametrize("how", ["payee gives up", "payer stops", "quiet", "deadline"])
def test_what_is_not_earned_returns(bank: ProgramBank, how: str) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200, 300], days=10, **DRIP), actors)
    if how == "quiet":
        known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], days=60, **DRIP), actors)
    bank.say(known, actors, "courier", "delivered", 1)
    if how == "payee gives up":
        bank.say(known, actors, "payee", "give_up")
    elif how == "payer stops":
        bank.say(known, actors, "payer", "stop")
    else:
        bank.clock.advance(15 * DAY if how == "quiet" else 10 * DAY)
        resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, found.program.released_minor) == ("finished", 100)
    assert found.program.returned_minor == found.program.funded_minor - 100
    assert bank.ledger.total() == 1000 + bank.ledger.accounts[bank.vault].balance


def test_who_may_say_what_is_closed(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)

    def say(role: str, event: str, ordinal: int = 1, key: str | None = None) -> str:
        token = bank.statement(known, actors, role, event, ordinal)
        if key is not None:
            actors.keys[role], kept = actors.keys[key], actors.keys[role]
            token = bank.statement(known, actors, role, event, ordinal)
            actors.keys[role] = kept
        return refusal_of(program_statements.take_statement, bank.context, token)

    assert say("payee", "delivered") == "statement-not-allowed"
    assert say("payer", "give_up") == "statement-not-allowed"
    assert say("payer", "no_such_event") == "statement-not-allowed"
    assert say("payer", "delivered", 3) == "statement-not-allowed"
    assert say("payer", "delivered", 1, key="payee") == "statement-invalid"
    other = bank.propose(bank.request("prepaid-drip", actors, [100], **DRIP), actors)
    swapped = replace(known, program=replace(known.program, terms_sha256=other.program.terms_sha256))
    token = bank.statement(swapped, actors, "courier", "delivered")
    assert refusal_of(program_statements.take_statement, bank.context, token) == "program-terms-mismatch"
    token = bank.statement(known, actors, "courier", "delivered")
    program_statements.take_statement(bank.context, token)
    program_statements.take_statement(bank.context, token)
    assert say("courier", "delivered") == "statement-exists"
    assert bank.balance(payee) == 100


def test_the_payer_signs_exactly_the_terms_or_nothing_is_reserved(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    request = bank.request("prepaid-drip", actors, [100, 200], **DRIP)
    known = programs.propose(bank.context, request)

    def fund(**changes: object) -> str:
        given = {
            "agreement": bank.statement(known, actors, "payer", "agree"),
            "instructions": bank.holds(known, payer.key),
        } | changes
        return refusal_of(program_funding.fund, bank.context, known.program.id, **given)

    assert fund() == "program-not-accepted"
    for role in known.awaited:
        bank.say(known, actors, role, "accept")
    holds = bank.holds(known, payer.key)
    other = bank.holds(bank.propose(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors), payer.key)
    assert fund(instructions=holds[:1]) == "program-terms-mismatch"
    assert fund(instructions=holds[::-1]) == "program-terms-mismatch"
    assert fund(instructions=other) == "program-terms-mismatch"
    assert fund(instructions=bank.holds(known, payee.key)) == "instruction-invalid"
    assert fund(agreement=bank.statement(known, actors, "payee", "agree")) == "statement-invalid"
    assert fund(instructions=bank.holds(known, payer.key, valid_for=timedelta(0))) == "instruction-expired"
    assert bank.ledger.held() == 0
    funded = bank.fund(known, actors)
    assert funded.program.state == "active"
    assert {hold.terms.reference for hold in bank.ledger.holds.values()} == {program_books.reference(known)}


def test_funding_is_all_or_nothing_and_a_late_copy_is_kept_out(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=250), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    assert refusal_of(bank.fund, known, actors) == "insufficient-funds"
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, bank.ledger.held(), bank.balance(payer)) == ("refused", 0, 250)
    bank.ledger.fund(payer.account, 1000)
    # The signed holds are still valid; whoever kept them cannot place them any more.
    late = bank.ledger.submit([TransferItem(instruction=part.instruction) for part in found.parts])
    assert [item.refusal for item in late] == ["hold-already-voided"] * 2
    with bank.database.engine.connect() as connection:
        wallet = find_wallet(connection, payer.wallet.id)
    assert wallet is not None
    assert wallet.usage.day_minor == 0


def test_a_lost_answer_to_the_funding_is_found_again(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    bank.ledger.lose_answers = 1
    assert refusal_of(bank.fund, known, actors) == "outcome-unknown"
    assert program_books.find(bank.context, known.program.id).program.state == "funding"
    bank.clock.advance(timedelta(seconds=11))
    resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, bank.ledger.held()) == ("active", 300)


def test_a_lost_trigger_or_answer_neither_loses_nor_doubles(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    bank.ledger.unreachable = True
    stuck = bank.say(known, actors, "courier", "delivered", 1)
    assert (stuck.parts[0].state, stuck.parts[0].outcome) == ("held", "release")
    bank.ledger.unreachable = False
    # The decided secret is shown: the payee's bank, or anybody, can post the hold without this service.
    secret = program_books.decided_secret(bank.context, stuck, stuck.parts[0])
    post = TransferTerms(
        id=bank.new_id(), kind=TransferKind.POST, currency="CNY", hold=stuck.parts[0].id, secret=secret
    )
    assert bank.ledger.submit([TransferItem(terms=post)])[0].outcome == "booked"
    bank.clock.advance(timedelta(seconds=11))
    resume_programs(bank.context)
    resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.parts[0].state, bank.balance(payee), found.program.held_minor) == ("released", 100, 200)
    bank.ledger.lose_answers = 1
    bank.say(found, actors, "payer", "delivered", 2)
    bank.clock.advance(timedelta(seconds=11))
    resume_programs(bank.context)
    assert program_books.find(bank.context, known.program.id).program.state == "finished"
    assert bank.balance(payee) == 300


def test_the_ledger_itself_returns_the_money_when_the_service_is_gone(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], days=5, **DRIP), actors)
    bank.clock.advance(5 * DAY + timedelta(hours=72))
    assert bank.ledger.held() == 0
    assert bank.balance(payer) == 1000
    resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, found.program.returned_minor) == ("finished", 300)


# --- the other templates ---------------------------------------------------------------------------------------------


def test_a_gift_opens_by_itself_even_if_the_service_slept_over_day_and_deadline(bank: ProgramBank) -> None:
    giver, child = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(giver, child)
    request = bank.request("time-locked-gift", actors, [500], days=10, opens_on="2026-06-20")
    known = bank.funded(request, actors)
    bank.clock.advance(4 * DAY)
    resume_programs(bank.context)
    assert bank.balance(child) == 0
    assert refusal_of(bank.say, known, actors, "payer", "decline") == "statement-not-allowed"
    bank.clock.advance(7 * DAY)  # the day is past, and so is the deadline
    resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, bank.balance(child)) == ("finished", 500)
    assert found.parts[0].decided_at is not None
    assert found.parts[0].decided_at.isoformat() == "2026-06-19T16:00:00+00:00"  # midnight in Shanghai


def test_delivery_versus_payment_by_a_secret_shown_here_or_at_the_ledger(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee)
    for place in ("here", "at the ledger"):
        secret = hashlib.sha256(place.encode()).digest()
        lock = hashlib.sha256(secret).hexdigest()
        known = bank.funded(bank.request("delivery-versus-payment", actors, [100], secret_hash=lock), actors)
        wrong = refusal_of(program_statements.show_secret, bank.context, known.program.id, b"x" * 32)
        assert wrong == "hold-secret-wrong"
        if place == "here":
            program_statements.show_secret(bank.context, known.program.id, secret)
        else:
            post = TransferTerms(
                id=bank.new_id(), kind=TransferKind.POST, currency="CNY", hold=known.parts[0].id, secret=secret
            )
            bank.ledger.submit([TransferItem(terms=post)])
            bank.clock.advance(timedelta(seconds=31))
            resume_programs(bank.context)
        found = program_books.find(bank.context, known.program.id)
        assert (found.program.state, found.program.released_minor) == ("finished", 100)
    assert bank.balance(payee) == 200


def test_a_guardian_approves_what_is_above_the_free_amount(bank: ProgramBank) -> None:
    minor, shop = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(minor, shop, "guardian_a", "guardian_b")
    small = bank.funded(bank.request("guardian-approval", actors, [50], free_up_to="50"), actors)
    assert (small.program.state, bank.balance(shop)) == ("finished", 50)
    large = bank.funded(bank.request("guardian-approval", actors, [51], free_up_to="50"), actors)
    assert (large.program.state, bank.balance(shop)) == ("active", 50)
    bank.say(large, actors, "guardian_b", "approve")
    assert bank.balance(shop) == 101
    refused = bank.funded(bank.request("guardian-approval", actors, [60], free_up_to="50"), actors)
    done = bank.say(refused, actors, "guardian_a", "refuse")
    assert (done.program.state, bank.balance(minor)) == ("finished", 899)


def test_two_of_three_witnesses_release(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "witness_a", "witness_b", "witness_c")
    known = bank.funded(bank.request("named-release", actors, [300], subject="title transferred"), actors)
    known = bank.say(known, actors, "witness_a", "fulfilled")
    known = bank.say(known, actors, "witness_b", "failed")
    assert known.program.state == "active"
    known = bank.say(known, actors, "witness_c", "fulfilled")
    assert (known.program.state, bank.balance(payee)) == ("finished", 300)
    same = bank.actors(payer, payee, "witness_a", "witness_b")
    same.keys["witness_c"] = same.keys["witness_a"]
    request = bank.request("named-release", same, [300], subject="one key in two roles")
    assert refusal_of(programs.propose, bank.context, request) == "program-invalid"


def test_a_dispute_stops_the_clock_and_the_arbiter_decides(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "arbiter")
    terms = {"complaint_days": 7, "subject": "a bicycle"}
    silent = bank.funded(bank.request("escrow-arbitrated", actors, [100], **terms), actors)
    disputed = bank.funded(bank.request("escrow-arbitrated", actors, [200], **terms), actors)
    bank.say(disputed, actors, "payer", "dispute")
    bank.clock.advance(7 * DAY)
    resume_programs(bank.context)
    assert program_books.find(bank.context, silent.program.id).program.released_minor == 100
    assert program_books.find(bank.context, disputed.program.id).program.held_minor == 200
    done = bank.say(disputed, actors, "arbiter", "for_buyer")
    assert (done.program.returned_minor, bank.balance(payer), bank.balance(payee)) == (200, 900, 100)


def test_a_merchant_of_another_kind_or_place_gets_no_terms(bank: ProgramBank) -> None:
    payer, grocer = bank.holder(funds=1000), bank.merchant(category="5411", place="330106")
    actors = bank.actors(payer, grocer, "courier")

    def terms(categories: list[str], places: list[str]) -> str:
        request = bank.request("merchant-payment", actors, [100], categories=categories, places=places)
        return refusal_of(programs.propose, bank.context, request)

    assert terms(["5812"], ["33"]) == "merchant-not-fitting"
    assert terms(["5411"], ["11"]) == "merchant-not-fitting"
    stranger = bank.actors(payer, bank.holder(), "courier")
    request = bank.request("merchant-payment", stranger, [100], categories=["5411"], places=["33"])
    assert refusal_of(programs.propose, bank.context, request) == "merchant-not-found"
    good = bank.request("merchant-payment", actors, [100], categories=["5400-5499"], places=["3301"])
    known = bank.funded(good, actors)
    bank.say(known, actors, "courier", "delivered")
    assert bank.balance(grocer) == 100


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"template": "no-such-template"}, "template-not-found"),
        ({"version": 2}, "template-not-found"),
        ({"amounts_minor": []}, "program-invalid"),
        ({"amounts_minor": [0]}, "program-invalid"),
        ({"amounts_minor": [2**63 - 1, 1]}, "program-invalid"),
        ({"amounts_minor": [1] * 121}, "program-invalid"),
        ({"parameters": {}}, "program-invalid"),
        ({"parameters": {"deadline": "2020-01-01T00:00:00Z", "quiet_days": 1, "subject": "x"}}, "program-invalid"),
        ({"parameters": {"deadline": "2199-01-01T00:00:00Z", "quiet_days": 1, "subject": "x"}}, "program-invalid"),
        ({"parameters": {"deadline": "2026-07-01", "quiet_days": 1, "subject": "x"}}, "program-invalid"),
        ({"parties": []}, "program-invalid"),
    ],
)
def test_terms_that_do_not_fit_are_refused(bank: ProgramBank, change: dict[str, object], refusal: str) -> None:
    actors = bank.actors(bank.holder(funds=10), bank.holder(), "courier")
    request = bank.request("prepaid-drip", actors, [1], **DRIP).model_copy(update=change)
    assert refusal_of(programs.propose, bank.context, request) == refusal


def test_the_same_terms_again_are_the_same_and_others_under_that_id_are_refused(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=10), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    request = bank.request("prepaid-drip", actors, [1], **DRIP)
    first = programs.propose(bank.context, request)
    assert programs.propose(bank.context, request).terms == first.terms
    other = request.model_copy(update={"amounts_minor": [2]})
    assert refusal_of(programs.propose, bank.context, other) == "program-exists"
    strange = bank.request("prepaid-drip", bank.actors(payee, payer, "courier"), [1], **DRIP)
    forged = [party.model_copy(update={"key": PrivateKey.generate().public.to_jwk()}) for party in strange.parties]
    strange = strange.model_copy(update={"parties": forged})
    assert refusal_of(programs.propose, bank.context, strange) == "program-invalid"


def test_holds_count_towards_the_class_limits_and_give_back_what_returns(bank: ProgramBank) -> None:
    """I9: class IV may spend 5,000 yuan a day; a returned hold is not spent."""
    payer, payee = bank.holder(WalletClass.IV, funds=1_000_000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [200_000, 200_000], **DRIP), actors)
    second = bank.propose(bank.request("prepaid-drip", actors, [100_001], **DRIP), actors)
    assert refusal_of(bank.fund, second, actors) == "day-limit-exceeded"
    assert program_books.find(bank.context, second.program.id).program.state == "proposed"
    bank.say(known, actors, "payer", "stop")
    assert bank.fund(second, actors).program.state == "active"


# --- secrets and decisions -------------------------------------------------------------------------------------------


def test_secrets_are_sealed_at_rest_and_only_the_decided_one_is_shown(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    seed = program_books.seed_of(bank.context, known.program)
    with bank.database.engine.connect() as connection:
        rows = [
            str(row)
            for table in ("program", "program_hold", "program_decision", "program_statement")
            for row in connection.execute(text(f"SELECT to_jsonb({table}) FROM {table}"))
        ]
    for number in (1, 2):
        for kind in ("commit", "abort"):
            secret = seed.secret(kind, number)
            assert not any(secret.hex() in row for row in rows)
            part = known.parts[number - 1]
            hashed = getattr(known.terms.holds[number - 1], f"{kind}_hash")
            assert hashlib.sha256(secret).digest() == hashed
            assert program_books.decided_secret(bank.context, known, part) is None
    known = bank.say(known, actors, "courier", "delivered", 1)
    assert program_books.decided_secret(bank.context, known, known.parts[0]) == seed.secret("commit", 1)
    assert program_books.decided_secret(bank.context, known, known.parts[1]) is None


def test_the_database_refuses_what_the_code_never_does(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100, 200], **DRIP), actors)
    bank.say(known, actors, "courier", "delivered", 1)
    url = bank.database.engine.url.render_as_string(hide_password=False)
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        for statement, wanted in (
            ("UPDATE program SET released_minor = released_minor + 1", "program_conserved_i6_ck"),
            ("UPDATE program SET held_minor = held_minor - 1", "program_conserved_i6_ck"),
            ("UPDATE program SET state = 'finished'", "program_finished_holds_nothing_ck"),
            ("UPDATE program SET wake_at = NULL", "program_not_forgotten_ck"),
            ("UPDATE program_hold SET ended_at = NULL", "program_hold_ends_once_i6_ck"),
            ("UPDATE program_hold SET instruction = NULL", "program_hold_signed_i8_ck"),
        ):
            with pytest.raises(psycopg.errors.CheckViolation) as caught:
                connection.execute(statement)
            assert caught.value.diag.constraint_name == wanted
        for statement in (
            "UPDATE program_decision SET outcome = 'return'",
            "DELETE FROM program_decision",
            "DELETE FROM program_statement",
            "UPDATE program_template SET body = '{}'",
            "DELETE FROM program_hold",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
        decided = "INSERT INTO program_decision SELECT hold_id, 'return', 'again', now() FROM program_decision"
        with pytest.raises(psycopg.errors.UniqueViolation):
            connection.execute(decided)


def test_a_changed_template_or_term_in_the_database_stops_the_program(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.funded(bank.request("prepaid-drip", actors, [100], **DRIP), actors)
    url = bank.database.engine.url.render_as_string(hide_password=False)
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        connection.execute("UPDATE program SET terms = jsonb_set(terms, '{parameters,quiet_days}', '1')")
    with pytest.raises(InvariantBroken, match="I8"):
        program_books.find(bank.context, known.program.id)
    # It stands still; the others go on.
    other = bank.funded(bank.request("prepaid-drip", actors, [100], days=2, **DRIP), actors)
    bank.clock.advance(34 * DAY)
    resume_programs(bank.context)
    assert program_books.find(bank.context, other.program.id).program.state == "finished"
    assert (bank.ledger.held(), bank.balance(payer)) == (0, 1000)  # the ledger's own expiry returned the first


# --- vouchers --------------------------------------------------------------------------------------------------------

MEALS = {"categories": ["5411", "5811-5814"], "places": ["3301"], "step": "500"}


def test_a_voucher_is_spent_in_steps_at_fitting_merchants_and_the_rest_returns(bank: ProgramBank) -> None:
    issuer, worker = bank.holder(WalletClass.I, funds=100_000), bank.holder()
    shop = bank.merchant(category="5812", place="330106")
    actors = bank.actors(issuer, None)
    voucher, other = bank.voucher(worker, 5_000), bank.voucher(bank.holder(), 2_000)
    known = bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher, other], **MEALS), actors)
    assert (bank.ledger.held(), bank.balance(issuer)) == (7_000, 93_000)
    vault = bank.ledger.accounts[bank.vault].balance
    first = bank.spend(voucher.voucher, shop, 1_200, worker)
    assert (first.state, first.change_minor, bank.balance(shop)) == ("final", 300, 1_200)
    assert (bank.balance(issuer), bank.ledger.accounts[bank.vault].balance) == (93_300, vault)
    assert bank.spend(voucher.voucher, shop, 3_500, worker).change_minor == 0
    _, _, left = vouchers.find_voucher(bank.context, voucher.voucher)
    assert left == 0
    token = bank.purchase(voucher.voucher, shop.account, 1, worker.key)
    assert refusal_of(vouchers.spend, bank.context, token) == "voucher-too-small"
    assert bank.check(known.program.id)["held"] == 2_000
    bank.clock.advance(30 * DAY)
    resume_programs(bank.context)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, found.program.released_minor, found.program.returned_minor) == (
        "finished",
        4_700,
        2_300,
    )
    assert (bank.balance(issuer), bank.balance(shop), bank.ledger.held()) == (95_300, 4_700, 0)


def test_where_and_by_whom_a_voucher_is_not_spent(bank: ProgramBank) -> None:
    issuer, worker, thief = bank.holder(WalletClass.I, funds=100_000), bank.holder(), bank.holder()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(worker, 5_000)
    request = bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS)
    known = bank.propose(request, actors)
    shop = bank.merchant(category="5812", place="330106")

    def buy(merchant: int, amount: int = 100, key: PrivateKey = worker.key) -> str:
        token = bank.purchase(voucher.voucher, merchant, amount, key)
        return refusal_of(vouchers.spend, bank.context, token)

    assert buy(shop.account) == "voucher-not-spendable"  # not funded yet
    bank.fund(known, actors)
    assert buy(bank.merchant(category="5993").account) == "merchant-not-fitting"
    assert buy(bank.merchant(place="110101").account) == "merchant-not-fitting"
    assert buy(bank.holder().account) == "merchant-not-found"
    assert buy(issuer.account) == "merchant-not-fitting"
    assert buy(worker.account) == "merchant-not-fitting"
    assert buy(shop.account, key=thief.key) == "spend-invalid"
    assert buy(shop.account, 0) == "amount-invalid"
    assert buy(shop.account, 5_001) == "voucher-too-small"
    bank.clock.advance(30 * DAY)
    assert buy(shop.account) == "voucher-not-spendable"
    again = bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS)
    assert refusal_of(programs.propose, bank.context, again) == "voucher-exists"
    uneven = bank.request("voucher-multi", actors, vouchers=[bank.voucher(worker, 501)], **MEALS)
    assert refusal_of(programs.propose, bank.context, uneven) == "program-invalid"


def test_a_single_voucher_gives_its_change_to_the_recipient(bank: ProgramBank) -> None:
    issuer, guest, shop = bank.holder(WalletClass.I, funds=10_000), bank.holder(), bank.merchant()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(guest, 3_000)
    merchants = [ids.show_account(shop.account)]
    known = bank.funded(
        bank.request("voucher-single", actors, vouchers=[voucher], merchants=merchants, barred=["5993"]), actors
    )
    bank.spend(voucher.voucher, shop, 2_999, guest)
    assert (bank.balance(shop), bank.balance(guest), bank.balance(issuer)) == (2_999, 1, 7_000)
    found = program_books.find(bank.context, known.program.id)
    assert (found.program.state, found.program.released_minor) == ("finished", 3_000)


def test_a_purchase_whose_answer_is_lost_is_paid_once(bank: ProgramBank) -> None:
    issuer, worker, shop = bank.holder(WalletClass.I, funds=100_000), bank.holder(), bank.merchant()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(worker, 5_000)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    token = bank.purchase(voucher.voucher, shop.account, 700, worker.key)
    bank.ledger.lose_answers = 1
    assert refusal_of(vouchers.spend, bank.context, token) == "outcome-unknown"
    assert bank.balance(shop) == 700
    _, _, left = vouchers.find_voucher(bank.context, voucher.voucher)
    assert left == 4_000
    assert vouchers.spend(bank.context, token).state == "final"
    assert vouchers.spend(bank.context, token).state == "final"
    assert bank.balance(shop) == 700
    spend_id = vouchers.spend(bank.context, token).id
    same_id = bank.purchase(voucher.voucher, shop.account, 701, worker.key, spend=spend_id)
    assert refusal_of(vouchers.spend, bank.context, same_id) == "spend-exists"


def test_a_refusal_is_believed_only_when_no_earlier_copy_can_be_booked(bank: ProgramBank) -> None:
    """The first copy is delayed in the network, the second refused: until the first is dead the purchase stays open."""
    issuer, worker, shop = bank.holder(WalletClass.I, funds=100_000), bank.holder(), bank.merchant()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(worker, 5_000)
    known = bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    token = bank.purchase(voucher.voucher, shop.account, 700, worker.key)
    bank.ledger.unreachable = True
    assert refusal_of(vouchers.spend, bank.context, token) == "outcome-unknown"
    bank.ledger.unreachable = False
    cap = bank.ledger.classes[bank.ledger.accounts[shop.account].rule_class].balance_max_minor
    bank.ledger.accounts[shop.account].balance = cap
    assert refusal_of(vouchers.spend, bank.context, token) == "outcome-unknown"
    bank.clock.advance(SUBMISSION_LIFE + SUBMISSION_GRACE + timedelta(seconds=1))
    assert refusal_of(vouchers.spend, bank.context, token) == "balance-limit-exceeded"
    _, _, left = vouchers.find_voucher(bank.context, voucher.voucher)
    assert left == 5_000
    assert bank.check(known.program.id)["held"] == 5_000


def test_another_institutions_merchant_comes_with_its_signed_word(bank: ProgramBank) -> None:
    key = PrivateKey.generate()
    bank.ledger.peers = {"ICBKCNBJ": key.public, "ABOCCNBJ": PrivateKey.generate().public}
    said = MerchantStatement(
        participant="ICBKCNBJ",
        account=ids.AccountNumber(9_001),
        name="Noodles",
        category="5812",
        place="330106",
        valid_until=bank.clock() + 30 * DAY,
    )
    found = vouchers.take_merchant_statement(bank.context, sign_merchant(said, key))
    assert (found.category, found.participant) == ("5812", "ICBKCNBJ")

    def refused(key: PrivateKey, **changes: object) -> str:
        token = sign_merchant(said.model_copy(update=changes), key)
        return refusal_of(vouchers.take_merchant_statement, bank.context, token)

    wrong = "merchant-statement-invalid"
    assert refused(PrivateKey.generate()) == wrong
    assert refused(key, participant="ABOCCNBJ") == wrong
    assert refused(key, participant="NOSUCHXX") == wrong
    assert refused(key, valid_until=bank.clock()) == wrong
    assert refused(key, account=bank.holder().account) == wrong
    shorter = said.model_copy(update={"category": "5993", "valid_until": bank.clock() + DAY})
    assert vouchers.take_merchant_statement(bank.context, sign_merchant(shorter, key)).category == "5812"
    request = MerchantRequest(account=ids.AccountNumber(9_001), name="x", category="5812", place="330106")
    assert refusal_of(vouchers.register_merchant, bank.context, request) == "not-our-wallet"


def test_an_expired_word_about_a_merchant_no_longer_counts(bank: ProgramBank) -> None:
    key = PrivateKey.generate()
    bank.ledger.peers = {"ICBKCNBJ": key.public}
    issuer, worker = bank.holder(WalletClass.I, funds=100_000), bank.holder()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(worker, 5_000)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    stranger = PrivateKey.generate()
    from ledger.contract import AccountKind, AccountOpening

    opening = AccountOpening(
        opening=bank.new_id(),
        kind=AccountKind.WALLET,
        rule_class="ecny-2021-06/II",
        holder_key=stranger.public.to_jwk(),
    )
    account = bank.ledger.open_accounts([opening])[0].account
    assert account is not None
    said = MerchantStatement(
        participant="ICBKCNBJ",
        account=account,
        name="Noodles",
        category="5812",
        place="330106",
        valid_until=bank.clock() + DAY,
    )
    vouchers.take_merchant_statement(bank.context, sign_merchant(said, key))
    token = bank.purchase(voucher.voucher, account, 100, worker.key)
    assert vouchers.spend(bank.context, token).state == "final"
    bank.clock.advance(DAY)
    token = bank.purchase(voucher.voucher, account, 100, worker.key)
    assert refusal_of(vouchers.spend, bank.context, token) == "merchant-not-found"


def test_holds_are_never_in_two_purchases(bank: ProgramBank) -> None:
    issuer, worker, shop = bank.holder(WalletClass.I, funds=100_000), bank.holder(), bank.merchant()
    actors = bank.actors(issuer, None)
    voucher = bank.voucher(worker, 1_000)
    bank.funded(bank.request("voucher-multi", actors, vouchers=[voucher], **MEALS), actors)
    bank.ledger.unreachable = True
    first = bank.purchase(voucher.voucher, shop.account, 600, worker.key)
    assert refusal_of(vouchers.spend, bank.context, first) == "outcome-unknown"
    bank.ledger.unreachable = False
    second = bank.purchase(voucher.voucher, shop.account, 600, worker.key)
    assert refusal_of(vouchers.spend, bank.context, second) == "voucher-too-small"
    bank.clock.advance(timedelta(seconds=11))
    resume_programs(bank.context)
    assert bank.balance(shop) == 600
    assert all(hold.status is HoldStatus.POSTED for hold in bank.ledger.holds.values())
    with pytest.raises(ProblemError):
        vouchers.spend(bank.context, second)

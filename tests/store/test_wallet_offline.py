"""Goal: offline money arrives once, whoever syncs what, when and how often; a double spender is named and his loss
bounded; the escrow on the ledger is what the books owe.
Method: purses in memory against the real use cases over PostgreSQL and a fake ledger with faults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import LedgerRefusal, TransferRefusal
from tests.purse_world import Purse, fund_instruction, funded_purse, institution_key, load, new_purse, seconds
from tests.wallet_bank import Bank
from wallet.contract import WalletRefusal
from wallet.domain.offline import element, messages
from wallet.domain.offline.policy import POLICY
from wallet.domain.offline.verify import verify_proof
from wallet.domain.offline.vocabulary import Disposition, PurseRefusal
from wallet.usecases import offline
from wallet.usecases.offline import resume_offline


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


def balance(bank: Bank, purse: Purse) -> int:
    assert purse.holder is not None
    return bank.balance(purse.holder)


def escrow_holds_what_is_owed(bank: Bank) -> int:
    report = offline.escrow_report(bank.context)
    assert report.escrow_minor == report.claims_minor
    return report.escrow_minor


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(ProblemError) as caught:
        call()
    return caught.value.refusal.value


def test_loading_moves_money_into_the_escrow_once(bank: Bank) -> None:
    purse = new_purse(bank, bank.holder(funds=1000))
    token = fund_instruction(bank, purse, 600)
    first = offline.fund(bank.context, token)
    assert offline.fund(bank.context, token) == first
    assert (balance(bank, purse), escrow_holds_what_is_owed(bank)) == (400, 600)
    assert first.message is not None
    purse.step(element.load(purse.state, first.message))
    purse.step(element.load(purse.state, first.message))
    assert purse.state.balance_minor == 600


def test_lost_answer_of_a_funding_is_found_by_recovery(bank: Bank) -> None:
    purse = new_purse(bank, bank.holder(funds=1000))
    token = fund_instruction(bank, purse, 600)
    bank.ledger.lose_answers = 1
    assert refused(lambda: offline.fund(bank.context, token)) == LedgerRefusal.OUTCOME_UNKNOWN.value
    assert resume_offline(bank.context, older_than=timedelta(0)) == 1
    assert offline.fund(bank.context, token).state == "final"
    assert (balance(bank, purse), escrow_holds_what_is_owed(bank)) == (400, 600)


def test_refused_funding_gives_the_usage_back(bank: Bank) -> None:
    purse = new_purse(bank, bank.holder(funds=100))
    assert refused(lambda: offline.fund(bank.context, fund_instruction(bank, purse, 600))) == "insufficient-funds"
    with bank.database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT usage_day_minor, usage_year_minor FROM wallet")).one() == (0, 0)
    bank.ledger.unreachable = True
    token = fund_instruction(bank, purse, 50)
    assert refused(lambda: offline.fund(bank.context, token)) == LedgerRefusal.OUTCOME_UNKNOWN.value
    bank.ledger.unreachable = False
    bank.clock.advance(timedelta(hours=1))
    assert resume_offline(bank.context, older_than=timedelta(0)) == 1
    assert refused(lambda: offline.fund(bank.context, token)) == LedgerRefusal.INSTRUCTION_EXPIRED.value
    with bank.database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT usage_day_minor FROM wallet")).scalar() == 0


def test_funding_is_refused_before_anything_is_recorded(bank: Bank) -> None:
    purse, other = new_purse(bank, bank.holder(funds=900_000)), new_purse(bank, bank.holder(funds=10))
    assert purse.holder is not None
    fund = offline.fund
    over = POLICY.balance_max_minor + 1
    assert refused(lambda: fund(bank.context, fund_instruction(bank, purse, over))) == "purse-limit-exceeded"
    load(bank, purse, POLICY.balance_max_minor)
    assert refused(lambda: fund(bank.context, fund_instruction(bank, purse, 1))) == "purse-limit-exceeded"
    foreign = replace(purse, id=other.id)
    assert refused(lambda: fund(bank.context, fund_instruction(bank, foreign, 1))) == "purse-not-found"
    forged = replace(other, holder=replace(purse.holder, key=other.key))
    assert refused(lambda: fund(bank.context, fund_instruction(bank, forged, 1))) == "instruction-invalid"
    wrong = bank.instruction(purse.holder, bank.vault, 1, kind=_FUND, reference=purse.id)
    assert refused(lambda: fund(bank.context, wrong)) == WalletRefusal.NOT_OUR_ESCROW.value
    payment = bank.instruction(purse.holder, bank.vault, 1)
    assert refused(lambda: fund(bank.context, payment)) == TransferRefusal.KIND_NOT_ALLOWED.value
    with bank.database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM purse_funding")).scalar() == 1


def test_either_side_syncs_and_the_payee_is_credited_once(bank: Bank) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    transfer = payer.pays(payee, 300, seconds(bank), Disposition.ACCOUNT)
    for _ in range(3):
        (result,) = offline.sync(bank.context, [transfer])
        assert result.booked is not None and result.payout is not None and result.payout.booked_at is not None
        assert (result.booked.credited_minor, result.booked.short_minor) == (300, 0)
    assert (balance(bank, payee), escrow_holds_what_is_owed(bank)) == (300, 700)


def test_three_hops_and_only_the_last_one_syncs(bank: Bank) -> None:
    first, second, third, fourth = (funded_purse(bank, amount) for amount in (1000, 200, 0, 0))
    now = seconds(bank)
    first.pays(second, 500, now)
    second.pays(third, 600, now)
    third.pays(fourth, 450, now)
    transfer = fourth.redeem(450, now)
    (result,) = offline.sync(bank.context, [transfer])
    assert result.booked is not None and result.booked.is_paid_out
    assert (balance(bank, fourth), escrow_holds_what_is_owed(bank)) == (450, 750)
    # The others bring what they have, some of it known already; nothing is paid twice.
    for purse in (third, second, first):
        offline.sync(bank.context, [*purse.state.sent, *purse.state.received])
        offline.sync(bank.context, [purse.redeem(purse.state.balance_minor, now)])
    assert [balance(bank, purse) for purse in (first, second, third)] == [500, 100, 150]
    assert escrow_holds_what_is_owed(bank) == 0


def test_full_wallet_keeps_its_money_in_the_escrow_until_there_is_room(bank: Bank) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    transfer = payer.pays(payee, 300, seconds(bank), Disposition.ACCOUNT)
    caps = bank.ledger.classes
    kept = dict(caps)
    caps.update({name: rules.model_copy(update={"balance_max_minor": 0}) for name, rules in kept.items()})
    (result,) = offline.sync(bank.context, [transfer])
    assert result.payout is not None and result.payout.refusal == "balance-limit-exceeded"
    assert (balance(bank, payee), escrow_holds_what_is_owed(bank)) == (0, 1000)
    caps.update(kept)
    bank.clock.advance(timedelta(minutes=2))
    assert resume_offline(bank.context, older_than=timedelta(0)) == 1
    assert (balance(bank, payee), escrow_holds_what_is_owed(bank)) == (300, 700)


@pytest.mark.parametrize("fault", ["lost", "unreachable"])
def test_lost_answers_and_crashes_pay_once(bank: Bank, fault: str) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    transfer = payer.pays(payee, 300, seconds(bank), Disposition.ACCOUNT)
    bank.ledger.lose_answers = int(fault == "lost")
    bank.ledger.unreachable = fault == "unreachable"
    (result,) = offline.sync(bank.context, [transfer])
    assert result.booked is not None and result.payout is not None and result.payout.booked_at is None
    bank.ledger.unreachable = False
    assert resume_offline(bank.context, older_than=timedelta(0)) == 1
    assert resume_offline(bank.context, older_than=timedelta(0)) == 0
    assert (balance(bank, payee), escrow_holds_what_is_owed(bank)) == (300, 700)


def test_double_spender_is_named_and_both_payees_are_paid(bank: Bank) -> None:
    payer, one, two = funded_purse(bank, 1000), funded_purse(bank, 0), funded_purse(bank, 0)
    hacked, before = replace(payer), payer.state  # the same key, the state before the payment
    now = seconds(bank)
    payer.pays(one, 400, now, Disposition.ACCOUNT)
    hacked.pays(two, 400, now, Disposition.ACCOUNT)
    vault = bank.ledger.accounts[bank.vault].balance
    for purse in (one, two):
        (result,) = offline.sync(bank.context, purse.state.received)
        assert result.booked is not None and result.booked.credited_minor == 400
    assert [balance(bank, purse) for purse in (one, two)] == [400, 400]
    # What the double spender has left pays first; the institution is not touched while that lasts.
    assert bank.ledger.accounts[bank.vault].balance == vault
    assert escrow_holds_what_is_owed(bank) == 200
    proof = messages.read_proof(offline.proof_against(bank.context, payer.id))
    assert verify_proof(proof, institution_key(bank)) is None
    assert verify_proof(proof, one.key.public) is not None
    listed = messages.read_revocations(offline.revocations(bank.context))
    assert listed.purses == (payer.id,)
    # A device that carries the list takes nothing from it any more.
    three = funded_purse(bank, 0)
    three.step(element.carry_revocations(three.state, offline.revocations(bank.context)))
    transfer = payer.pay(three.ask(10, now), now)
    outcome = element.receive(three.state, transfer, now=now, device=three.device)
    assert three.refusal(outcome) is PurseRefusal.DEVICE_REVOKED
    # What it has left is held: it cannot be taken home, not even by the state before everything.
    for amount, purse in ((200, payer), (1, hacked), (1000, replace(payer, state=before))):
        (result,) = offline.sync(bank.context, [purse.redeem(amount, now)])
        assert result.refused is not None and result.refused.refusal is PurseRefusal.PURSE_HELD
    assert (balance(bank, payer), escrow_holds_what_is_owed(bank)) == (0, 200)
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds))
    resume_offline(bank.context, older_than=timedelta(0))
    assert bank.ledger.accounts[bank.vault].balance == vault
    assert (balance(bank, payer), escrow_holds_what_is_owed(bank)) == (200, 0)


def test_loss_ends_at_the_cap_whoever_is_paid(bank: Bank) -> None:
    payer = funded_purse(bank, 1000, policy=replace(POLICY, balance_max_minor=1000))
    before, now = replace(payer), seconds(bank)
    payees = [funded_purse(bank, 0) for _ in range(6)]
    vault = bank.ledger.accounts[bank.vault].balance
    for payee in payees:
        replace(before).pays(payee, 400, now, Disposition.ACCOUNT)
        (result,) = offline.sync(bank.context, payee.state.received)
        assert result.booked is not None
    # 1000 are the payer's own: 400 and, though spent twice, 400 + 200; the institution bears 200 + 400 + 400.
    assert [balance(bank, payee) for payee in payees] == [400, 400, 400, 400, 400, 0]
    assert vault - bank.ledger.accounts[bank.vault].balance == 1000
    assert escrow_holds_what_is_owed(bank) == 0


def test_rest_that_went_to_one_payee_is_borne_for_the_next(bank: Bank) -> None:
    """A part that nobody has spent was used for a double spend; whoever brings it later is whole all the same."""
    payer, one, two, three = (funded_purse(bank, amount) for amount in (1000, 0, 0, 0))
    before, now = payer.state, seconds(bank)
    payer.pays(one, 400, now, Disposition.ACCOUNT)
    payer.pays(three, 500, now, Disposition.ACCOUNT)  # an honest payment of what the purse really had
    replace(payer, state=before).pays(two, 400, now, Disposition.ACCOUNT)
    vault = bank.ledger.accounts[bank.vault].balance
    for purse in (one, two, three):
        offline.sync(bank.context, purse.state.received)
    assert [balance(bank, purse) for purse in (one, two, three)] == [400, 400, 500]
    assert vault - bank.ledger.accounts[bank.vault].balance == offline.find_purse(bank.context, payer.id).loss_minor
    assert vault - bank.ledger.accounts[bank.vault].balance == 300
    assert escrow_holds_what_is_owed(bank) == 0


def test_money_for_a_caught_purse_pays_its_debt_first(bank: Bank) -> None:
    payer, one, two, friend = (funded_purse(bank, amount) for amount in (500, 0, 0, 500))
    before, now = payer.state, seconds(bank)
    payer.pays(one, 500, now, Disposition.ACCOUNT)
    replace(payer, state=before).pays(two, 500, now, Disposition.ACCOUNT)
    gift = friend.pays(payer, 300, now)
    vault = bank.ledger.accounts[bank.vault].balance
    for purse in (one, two):
        offline.sync(bank.context, purse.state.received)
    assert bank.ledger.accounts[bank.vault].balance == vault - 500
    offline.sync(bank.context, [gift])
    (result,) = offline.sync(bank.context, [payer.redeem(300, now)])
    assert result.refused is not None and result.refused.refusal is PurseRefusal.PURSE_HELD
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds))
    resume_offline(bank.context, older_than=timedelta(0))
    assert bank.ledger.accounts[bank.vault].balance == vault - 200
    assert offline.find_purse(bank.context, payer.id).recovered_minor == 300
    assert (balance(bank, payer), escrow_holds_what_is_owed(bank)) == (0, 0)


def test_a_second_purse_of_the_holder_is_no_way_out(bank: Bank) -> None:
    """What a caught device paid to its holder's other purse is held there: for whom that one pays, then the debt."""
    payer, one, two, shop = (funded_purse(bank, amount) for amount in (1000, 0, 0, 0))
    assert payer.holder is not None
    before, now = payer.state, seconds(bank)
    offline.report_lost(bank.context, payer.id)
    second = new_purse(bank, payer.holder)
    payer.pays(one, 500, now, Disposition.ACCOUNT)
    hacked = replace(payer, state=before)
    hacked.pays(two, 500, now, Disposition.ACCOUNT)
    hacked.pays(second, 450, now)
    vault = bank.ledger.accounts[bank.vault].balance
    offline.sync(bank.context, second.state.received)
    for purse in (one, two):
        offline.sync(bank.context, purse.state.received)
    assert bank.ledger.accounts[bank.vault].balance == vault - 450
    to_shop = second.pays(shop, 100, now, Disposition.ACCOUNT)
    home = second.redeem(50, now)
    results = offline.sync(bank.context, [home, to_shop, home])
    assert [item.refused and item.refused.refusal for item in results] == [PurseRefusal.PURSE_HELD, None, "purse-held"]
    assert (balance(bank, shop), balance(bank, payer), escrow_holds_what_is_owed(bank)) == (100, 0, 350)
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds + 1))
    resume_offline(bank.context, older_than=timedelta(0))
    resume_offline(bank.context, older_than=timedelta(0))
    assert bank.ledger.accounts[bank.vault].balance == vault - 100
    assert (balance(bank, payer), escrow_holds_what_is_owed(bank)) == (0, 0)
    assert offline.find_purse(bank.context, payer.id).recovered_minor == 350


def test_table_refuses_to_pay_out_what_is_held(bank: Bank) -> None:
    payer, one, two = funded_purse(bank, 1000), funded_purse(bank, 0), funded_purse(bank, 0)
    before, now = payer.state, seconds(bank)
    payer.pays(one, 400, now, Disposition.ACCOUNT)
    replace(payer, state=before).pays(two, 400, now, Disposition.ACCOUNT)
    for purse in (one, two):
        offline.sync(bank.context, purse.state.received)
    statement = sa.text(
        "INSERT INTO purse_payout (id, purse_id, kind, event, account, amount_minor, created_at)"
        " SELECT gen_random_uuid(), id, 'redeem', 'x', account, 1, now() FROM purse WHERE id = :id"
    )
    with pytest.raises(IntegrityError, match="held"), bank.database.engine.begin() as connection:
        connection.execute(statement, {"id": payer.id})


def test_nothing_is_borne_for_the_double_spender_himself(bank: Bank) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    before, now = replace(payer), seconds(bank)
    payer.pays(payee, 500, now, Disposition.ACCOUNT)
    offline.sync(bank.context, payer.state.sent)
    vault = bank.ledger.accounts[bank.vault].balance
    (result,) = offline.sync(bank.context, [before.redeem(1000, now)])
    # The redemption itself is the evidence: he gets nothing by it, and what he has left is held from now on.
    assert result.refused is not None and result.refused.refusal is PurseRefusal.PURSE_HELD
    assert offline.proof_against(bank.context, payer.id)
    assert bank.ledger.accounts[bank.vault].balance == vault
    assert (balance(bank, payer), balance(bank, payee), escrow_holds_what_is_owed(bank)) == (0, 500, 500)
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds))
    resume_offline(bank.context, older_than=timedelta(0))
    assert (balance(bank, payer), balance(bank, payee), escrow_holds_what_is_owed(bank)) == (500, 500, 0)


def test_lost_device_gets_the_rest_back_after_expiry_and_grace(bank: Bank) -> None:
    payer, payee, late = funded_purse(bank, 1000), funded_purse(bank, 0), funded_purse(bank, 0)
    now = seconds(bank)
    in_time = payer.pays(payee, 300, now, Disposition.ACCOUNT)
    too_late = payer.pays(late, 200, now, Disposition.ACCOUNT)
    offline.report_lost(bank.context, payer.id)
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds))
    assert resume_offline(bank.context, older_than=timedelta(0)) == 0
    assert offline.sync(bank.context, [in_time])[0].booked is not None
    bank.clock.advance(timedelta(seconds=POLICY.grace_seconds))
    assert resume_offline(bank.context, older_than=timedelta(0)) > 0
    assert (balance(bank, payer), balance(bank, payee), escrow_holds_what_is_owed(bank)) == (700, 300, 0)
    (result,) = offline.sync(bank.context, [too_late])
    assert result.refused is not None and result.refused.refusal is PurseRefusal.PURSE_CLOSED
    (result,) = offline.sync(bank.context, [in_time])
    assert result.booked is not None and result.booked.credited_minor == 300
    assert balance(bank, late) == 0


def test_one_active_purse_a_wallet(bank: Bank) -> None:
    holder = bank.holder(funds=10)
    purse = new_purse(bank, holder)
    assert refused(lambda: new_purse(bank, holder)) == WalletRefusal.PURSES_TOO_MANY.value
    offline.report_lost(bank.context, purse.id)
    second = new_purse(bank, holder)
    jwk = second.key.public.to_jwk()
    again = offline.issue_purse(bank.context, second.id, wallet_id=holder.wallet.id, device_key=jwk)
    assert again.certificate == second.state.certificate
    assert (
        refused(
            lambda: offline.issue_purse(
                bank.context, second.id, wallet_id=holder.wallet.id, device_key=purse.key.public.to_jwk()
            )
        )
        == WalletRefusal.PURSE_EXISTS.value
    )
    other = bank.holder()
    assert (
        refused(lambda: offline.issue_purse(bank.context, bank.new_id(), wallet_id=other.wallet.id, device_key=jwk))
        == WalletRefusal.DEVICE_KEY_IN_USE.value
    )
    offline.report_lost(bank.context, second.id)
    third = new_purse(bank, holder)
    offline.report_lost(bank.context, third.id)
    assert refused(lambda: new_purse(bank, holder)) == WalletRefusal.PURSES_TOO_MANY.value
    assert refused(lambda: load(bank, third, 5)) == WalletRefusal.PURSE_NOT_ACTIVE.value


def test_messages_of_strangers_are_refused(bank: Bank, fresh_database: Callable[[str], str]) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    transfer = payer.pays(payee, 300, seconds(bank), Disposition.ACCOUNT)
    other = Bank(Database(fresh_database("wallet"), application_name="other"))
    results = offline.sync(other.context, [transfer, b"", transfer[:-1], b"\xff" * 20])
    assert [result.refused.refusal for result in results if result.refused] == [
        PurseRefusal.CERTIFICATE_INVALID,
        *[PurseRefusal.MESSAGE_INVALID] * 3,
    ]
    other.database.close()


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE purse SET loss_minor = balance_max_minor + 1", "purse_loss_is_bounded_ck"),
        ("UPDATE purse SET recovered_minor = loss_minor + 1", "purse_recovered_is_lost_ck"),
        ("UPDATE purse SET closed_at = closes_at - interval '1 second'", "purse_closes_ck"),
        ("UPDATE purse_source SET covered_minor = backed_minor + 1", "purse_source_covered_once_ck"),
        ("UPDATE purse_source SET backed_minor = amount_minor + 1", "purse_source_backed_within_amount_ck"),
        ("UPDATE purse_spend SET short_minor = amount_minor + 1", "purse_spend_parts_within_amount_ck"),
        ("UPDATE purse_part SET lower_minor = -1", "purse_part_interval_ck"),
        ("UPDATE purse_payout SET amount_minor = 0", "purse_payout_amount_positive_ck"),
        ("UPDATE purse_payout SET account = NULL", "purse_payout_redeem_names_a_wallet_ck"),
        ("UPDATE purse_funding SET message = NULL", "purse_funding_message_after_final_ck"),
    ],
)
def test_table_refuses_what_the_books_refuse(bank: Bank, statement: str, constraint: str) -> None:
    payer, payee = funded_purse(bank, 1000), funded_purse(bank, 0)
    offline.sync(bank.context, [payer.pays(payee, 300, seconds(bank), Disposition.ACCOUNT)])
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))


_FUND = offline.TransferKind.PURSE_FUND

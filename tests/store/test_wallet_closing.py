"""Goal: a wallet is not closed over anything that is owed to it or by it, and each refusal says what it is.
Method: the use cases on a real PostgreSQL and a fake ledger with holds; every obligation made, refused, ended, closed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import show_account
from tests.programs_world import ProgramBank
from tests.purse_world import load, new_purse, seconds
from tests.store.test_wallet_families import child_of, pushed, said
from tests.wallet_bank import Bank, Holder
from wallet.domain.families import ChildCaps
from wallet.domain.offline.policy import POLICY
from wallet.domain.offline.vocabulary import Disposition
from wallet.store import families as family_store
from wallet.usecases import closing, families, lifecycle, offline, program_books
from wallet.usecases import wallets as wallet_usecases

LESSONS: Any = {"quiet_days": 14, "subject": "ten lessons"}


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[ProgramBank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield ProgramBank(database)
    database.close()


def close(bank: Bank, holder: Holder) -> str:
    """The change's state, or the refusal."""
    try:
        return closing.close_wallet(bank.context, bank.new_id(), holder.wallet.id, instruction=None).change.state
    except ProblemError as error:
        return error.refusal.value


def state(bank: Bank, holder: Holder) -> str:
    return wallet_usecases.find_wallet(bank.context, holder.wallet.id).state


def test_unsettled_purse_keeps_the_wallet_open_until_its_money_has_come(bank: ProgramBank) -> None:
    payer, payee = bank.holder(funds=1000), bank.holder()
    one, two = new_purse(bank, payer), new_purse(bank, payee)
    load(bank, one, 1000)
    transfer = one.pays(two, 300, seconds(bank), Disposition.ACCOUNT)
    assert (close(bank, payer), close(bank, payee)) == ("purse-not-settled", "purse-not-settled")
    assert (state(bank, payer), state(bank, payee)) == ("open", "open")
    offline.report_lost(bank.context, one.id)  # lost is not settled: what it has spent may still arrive
    assert close(bank, payer) == "purse-not-settled"
    with pytest.raises(ProblemError) as caught:
        closing.close_wallet(bank.context, bank.new_id(), payee.wallet.id, instruction=None)
    assert "settled at 2026-" in caught.value.detail
    bank.clock.advance(timedelta(seconds=POLICY.life_seconds + POLICY.grace_seconds) - timedelta(seconds=1))
    offline.sync(bank.context, [transfer])
    assert bank.balance(payee) == 300
    bank.clock.advance(timedelta(seconds=1))
    assert offline.resume_offline(bank.context, older_than=timedelta(0)) > 0
    assert (bank.balance(payer), bank.balance(payee)) == (700, 300)
    assert (close(bank, payer), close(bank, payee)) == ("waiting", "waiting")  # for the holders' pay-outs


def test_no_purse_is_issued_to_a_wallet_whose_closure_began_meanwhile(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The closure comes between the look at the wallet and the purse's row: the lock decides, not the look."""
    holder = bank.holder()
    make = offline._new_purse

    def slow(*arguments: object) -> object:
        assert close(bank, holder) == "done"
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(offline, "_new_purse", slow)
    with pytest.raises(ProblemError, match="wallet-not-open"):
        new_purse(bank, holder)
    with bank.database.engine.connect() as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM purse")).scalar_one() == 0


@pytest.mark.parametrize("end", ["released", "returned"])
def test_active_program_keeps_payer_and_payee_open(bank: ProgramBank, end: str) -> None:
    payer, payee, stranger = bank.holder(funds=100), bank.holder(), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100], **LESSONS), actors)
    proposed_only = bank.holder(funds=50)
    bank.propose(bank.request("prepaid-drip", bank.actors(proposed_only, payee, "courier"), [50], **LESSONS), actors)
    known = bank.fund(known, actors)
    assert [close(bank, holder) for holder in (payer, payee)] == ["program-not-finished"] * 2
    assert close(bank, stranger) == "done"
    assert close(bank, proposed_only) == "waiting"  # terms alone bind nobody
    if end == "released":
        bank.say(known, actors, "courier", "delivered", 1)
    else:
        bank.say(known, actors, "payee", "give_up")
    assert program_books.find(bank.context, known.program.id).program.state == "finished"
    closed, paid_out = (payer, payee) if end == "released" else (payee, payer)
    assert (close(bank, closed), close(bank, paid_out)) == ("done", "waiting")


def test_closed_payers_proposal_is_never_funded(bank: ProgramBank) -> None:
    payer, payee = bank.holder(), bank.holder()
    actors = bank.actors(payer, payee, "courier")
    known = bank.propose(bank.request("prepaid-drip", actors, [100], **LESSONS), actors)
    assert close(bank, payer) == "done"
    with pytest.raises(ProblemError, match=r"wallet-closed|account-closed"):
        bank.fund(known, actors)
    assert bank.ledger.held() == 0


def test_parent_with_an_open_child_stays_and_no_child_joins_a_closing_parent(
    bank: ProgramBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = bank.holder()
    child = child_of(bank, parent)
    assert (close(bank, parent), state(bank, parent)) == ("children-not-closed", "open")
    families.close_child(bank.context, parent.wallet.id, child.wallet.id)
    open_wallet = wallet_usecases.open_wallet

    def slow(*arguments: object, **more: object) -> object:
        assert close(bank, parent) == "done"
        return open_wallet(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(wallet_usecases, "open_wallet", slow)
    with pytest.raises(ProblemError, match="wallet-not-open"):
        child_of(bank, parent)
    with bank.database.engine.connect() as connection:
        assert len(family_store.list_children(connection, parent.wallet.id)) == 1


def test_suspended_parents_children_go_on_within_their_caps(bank: ProgramBank) -> None:
    """A child is a wallet of its own, with its own key and money: a parent's lost phone does not stop a child's lunch,
    nor a pushed merchant's charges up to the cap; revoking and suspending a child are separate. No child is added."""
    parent, shop = bank.holder(funds=100), bank.holder()
    child = child_of(bank, parent, ChildCaps(total_max_minor=150), funds=500)
    merchants, key = pushed(bank, parent, shop.account, total=80, funds=500)
    lifecycle.suspend(bank.context, bank.new_id(), parent.wallet.id, "loss")
    assert said(bank, parent, child.account, 1) == "debit-account-suspended"
    assert (said(bank, child, shop.account, 100), said(bank, child, shop.account, 51)) == (
        "final",
        "child-limit-exceeded",
    )
    charged = families.charge(
        bank.context, bank.new_id(), merchants.wallet.id, amount_minor=80, currency="CNY", secret=key.secret
    )
    assert charged.state == "final"
    assert said(bank, child, parent.account, 10) == "final"  # money comes back to the parent all the same
    with pytest.raises(ProblemError, match="wallet-not-open"):
        child_of(bank, parent)
    families.revoke(bank.context, parent.wallet.id, merchants.wallet.id)
    assert said(bank, merchants, shop.account, 1) == "push-revoked"
    lifecycle.suspend(bank.context, bank.new_id(), child.wallet.id, "loss")
    assert said(bank, child, shop.account, 1) == "debit-account-suspended"
    assert close(bank, parent) in ("wallet-suspended", "children-not-closed")


def test_code_and_refund_on_their_way_keep_the_wallet_open(bank: ProgramBank) -> None:
    holder = bank.holder()
    row = {"wallet": holder.wallet.id, "id": bank.new_id(), "now": bank.clock(), "account": holder.account}
    said_debit = json.dumps({"terms": {"debit": show_account(holder.account)}}).encode()
    row["token"] = f"x.{base64.urlsafe_b64encode(said_debit).decode().rstrip('=')}.x"
    code = (
        "INSERT INTO redemption VALUES (:id, :wallet, :id, :id, 1, 5, 5, :token, :now, 'initiated', 0, CURRENT_DATE,"
        " NULL, NULL, NULL, :now)"
    )
    original = "INSERT INTO refund_original VALUES (:id, :wallet, :account, 1, 5, 'CNY', 5, 1, :now)"
    refund = "INSERT INTO refund VALUES (:id, :id, 5, 'reserved', 1, :now, NULL, NULL, :now)"
    for made, ended in (
        ([code], "UPDATE redemption SET state = 'refused', refusal = 'x', counted_on = NULL"),
        ([original, refund], "UPDATE refund SET state = 'released'"),
    ):
        with bank.database.engine.begin() as connection:
            for statement in made:
                connection.execute(sa.text(statement), row)
        assert close(bank, holder) == "money-on-its-way"
        with bank.database.engine.begin() as connection:
            connection.execute(sa.text(ended))
    assert close(bank, holder) == "done"

"""Goal: in any order of deliveries, stops, purchases, lost answers, repeats, passes, expiries: a program's money is
conserved, nothing is released twice, and what is released and returned is what the ledger has done (I2, I6, I7).
Method: a Hypothesis state machine over the use cases, a real PostgreSQL and the fake ledger with holds.

JIAOZI_EXAMPLES=200 pytest tests/machines/test_wallet_programs.py --timeout 3600   # a campaign
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kernel.client import ServiceUnreachable
from kernel.database import Database
from kernel.errors import ProblemError
from ledger.contract import HoldStatus, TransferItem, TransferKind, TransferTerms
from tests.programs_world import ProgramBank
from tests.roles import as_service
from wallet.domain.rules import WalletClass
from wallet.usecases import program_books, program_statements, vouchers
from wallet.usecases.program_pass import resume_programs

EXAMPLES = int(os.environ.get("JIAOZI_EXAMPLES", "8"))
FUNDS = 100_000
AMOUNTS = [100, 200, 300, 400]


class Machine(RuleBasedStateMachine):
    """One bank over all runs; each run has its own people and programs, and looks at its own money."""

    bank: ProgramBank

    @initialize()
    def start(self) -> None:
        bank = self.bank
        bank.ledger.unreachable, bank.ledger.lose_answers = False, 0
        self.payer, self.payee = bank.holder(WalletClass.I, funds=FUNDS), bank.holder()
        self.worker, self.shop = bank.holder(), bank.merchant()
        self.vault = bank.ledger.accounts[bank.vault].balance
        self.actors = bank.actors(self.payer, self.payee, "courier")
        self.issuer = bank.actors(self.payer, None)
        self.drips: list[program_books.Known] = []
        self.campaigns: list[program_books.Known] = []
        self.said: list[str] = []
        self.bought: list[str] = []

    # --- what people do; any of it may be refused, and any answer may be lost

    @rule(days=st.integers(1, 20))
    def prepay(self, days: int) -> None:
        if len(self.drips) < 3:
            request = self.bank.request(
                "prepaid-drip", self.actors, AMOUNTS, days=days, quiet_days=3, subject="lessons"
            )
            known = self.bank.propose(request, self.actors)
            self.drips.append(known)
            self._may_fail(lambda: self.bank.fund(known, self.actors))

    @rule(days=st.integers(1, 20), value=st.integers(1, 8))
    def issue_voucher(self, days: int, value: int) -> None:
        if len(self.campaigns) < 3:
            voucher = self.bank.voucher(self.worker, value * 100)
            request = self.bank.request(
                "voucher-multi",
                self.issuer,
                vouchers=[voucher],
                days=days,
                categories=["5411"],
                places=["33"],
                step="100",
            )
            known = self.bank.propose(request, self.issuer)
            self.campaigns.append(known)
            self._may_fail(lambda: self.bank.fund(known, self.issuer))

    @rule(
        data=st.data(),
        what=st.sampled_from(
            [("courier", "delivered"), ("payer", "delivered"), ("payer", "stop"), ("payee", "give_up")]
        ),
        ordinal=st.integers(1, 4),
    )
    def say(self, data: st.DataObject, what: tuple[str, str], ordinal: int) -> None:
        if self.drips:
            known = data.draw(st.sampled_from(self.drips))
            token = self.bank.statement(known, self.actors, *what, ordinal if what[1] == "delivered" else 1)
            self.said.append(token)
            self._may_fail(lambda: program_statements.take_statement(self.bank.context, token))

    @rule(data=st.data(), amount=st.integers(1, 500))
    def buy(self, data: st.DataObject, amount: int) -> None:
        if self.campaigns:
            known = data.draw(st.sampled_from(self.campaigns))
            voucher = known.terms.vouchers[0].voucher
            token = self.bank.purchase(voucher, self.shop.account, amount, self.worker.key)
            self.bought.append(token)
            self._may_fail(lambda: vouchers.spend(self.bank.context, token))

    @rule(data=st.data())
    def repeat(self, data: st.DataObject) -> None:
        if self.said:
            token = data.draw(st.sampled_from(self.said))
            self._may_fail(lambda: program_statements.take_statement(self.bank.context, token))
        if self.bought:
            bought = data.draw(st.sampled_from(self.bought))
            self._may_fail(lambda: vouchers.spend(self.bank.context, bought))

    @rule(data=st.data())
    def somebody_posts_with_a_shown_secret(self, data: st.DataObject) -> None:
        """Whoever reads a decided secret may end the hold himself."""
        if not self.drips:
            return
        known = program_books.find(self.bank.context, data.draw(st.sampled_from(self.drips)).program.id)
        for part in known.parts:
            secret = program_books.decided_secret(self.bank.context, known, part)
            if secret is not None:
                terms = TransferTerms(
                    id=self.bank.new_id(),
                    kind=TransferKind.POST if part.outcome == "release" else TransferKind.VOID,
                    currency="CNY",
                    hold=part.id,
                    secret=secret,
                )
                self._may_fail(lambda terms=terms: self.bank.ledger.submit([TransferItem(terms=terms)]))

    # --- what happens to them

    @rule(unreachable=st.booleans(), lost=st.integers(0, 2))
    def network(self, unreachable: bool, lost: int) -> None:
        self.bank.ledger.unreachable, self.bank.ledger.lose_answers = unreachable, lost

    @rule(hours=st.integers(0, 72))
    def time_passes(self, hours: int) -> None:
        self.bank.clock.advance(timedelta(hours=hours, seconds=31))

    @rule()
    def periodic_pass(self) -> None:
        resume_programs(self.bank.context)

    # --- what must be so

    @invariant()
    def I6_released_returned_and_held_are_what_was_funded(self) -> None:
        for known in (*self.drips, *self.campaigns):
            self.bank.check(known.program.id)

    @invariant()
    def I2_no_money_appears_or_vanishes(self) -> None:
        if hasattr(self, "payer"):
            assert self._balances() == FUNDS
            assert self.bank.ledger.accounts[self.bank.vault].balance == self.vault

    def teardown(self) -> None:
        """At the end of time everything has ended, and both sides agree on every part."""
        if not hasattr(self, "payer"):
            return
        bank = self.bank
        bank.ledger.unreachable, bank.ledger.lose_answers = False, 0
        for _ in range(4):
            bank.clock.advance(timedelta(days=10))
            resume_programs(bank.context)
        released = 0
        for known in (*self.drips, *self.campaigns):
            found = program_books.find(bank.context, known.program.id)
            assert found.program.state in ("finished", "refused", "proposed")
            released += found.program.released_minor
            for part in found.parts:
                hold = bank.ledger.holds.get(part.id)
                if part.state == "released":
                    assert hold is not None
                    assert hold.status is HoldStatus.POSTED
                else:
                    assert hold is None or hold.status in (HoldStatus.VOIDED, HoldStatus.EXPIRED)
        assert bank.balance(self.payee) + bank.balance(self.shop) == released
        assert bank.balance(self.payer) == FUNDS - released

    def _balances(self) -> int:
        bank = self.bank
        people = (self.payer, self.payee, self.worker, self.shop)
        held = sum(
            hold.terms.amount_minor or 0
            for hold in bank.ledger.holds.values()
            if hold.status is HoldStatus.HELD and hold.terms.debit == self.payer.account
        )
        return sum(bank.balance(person) for person in people) + held

    @staticmethod
    def _may_fail(work: Callable[[], object]) -> None:
        with suppress(ProblemError, ServiceUnreachable):
            work()


@pytest.mark.timeout(500)
def test_money_is_conserved_in_every_program(fresh_database: Callable[[str], str]) -> None:
    database = Database(as_service(fresh_database("wallet"), "wallet"), application_name="test")
    Machine.bank = ProgramBank(database)
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(
                max_examples=EXAMPLES, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        database.close()

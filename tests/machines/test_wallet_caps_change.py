"""Goal: no interleaving of payments with changes of the caps (lowered by the holder, raised again, the class changed
mid-way, a change half made) and of midnights in Asia/Shanghai lets a wallet exceed what was in force (I9).
Method: a Hypothesis state machine over the use cases on a real PostgreSQL and a fake ledger that may be silent, against
a model that keeps each payment with its local day and the caps in force when it was counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import ClassVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kernel.database import Database
from kernel.errors import ProblemError
from tests.wallet_bank import Bank, Holder
from wallet.contract.lifecycle import CapsOrder, CapsView, sign_caps_order
from wallet.domain.limits import Caps
from wallet.domain.rules import WalletClass
from wallet.usecases import lifecycle
from wallet.usecases.change_recovery import resume_changes
from wallet.usecases.exchange import resume_payments
from wallet.usecases.pay import Declined, pay
from wallet.usecases.wallets import find_wallet

SHANGHAI = ZoneInfo("Asia/Shanghai")
# Caps of ecny-2021-06 in fen, written here again so that the model owes nothing to the code: (single, day, year).
CLASS_CAPS: dict[WalletClass, tuple[float, float, float]] = {
    WalletClass.II: (5_000_000, 10_000_000, float("inf")),
    WalletClass.III: (500_000, 1_000_000, float("inf")),
    WalletClass.IV: (200_000, 500_000, 5_000_000),
}
caps = st.one_of(st.none(), st.integers(0, 600_000))


@dataclass(frozen=True)
class Counted:
    amount: int
    day: date
    caps: tuple[float, float, float]


class CapsMachine(RuleBasedStateMachine):
    bank: ClassVar[Bank]

    @initialize(hours=st.integers(0, 47))
    def begin(self, hours: int) -> None:
        now = self.bank.clock()
        year_end = datetime(now.year + 1, 12, 30, tzinfo=UTC) + timedelta(hours=hours)
        self.bank.clock.advance(year_end - now)
        self.bank.ledger.unreachable = False
        self.payer: Holder = self.bank.holder(WalletClass.III, funds=100_000_000)
        self.shop = self.bank.holder(WalletClass.I)
        self.own: tuple[float, float, float] = (float("inf"),) * 3
        self.classes = {WalletClass.III}
        self.counted: dict[UUID, Counted] = {}

    def in_force(self) -> tuple[float, float, float]:
        every = [self.own, *(CLASS_CAPS[item] for item in self.classes)]
        return tuple(min(column) for column in zip(*every, strict=True))

    def today(self) -> date:
        return self.bank.clock().astimezone(SHANGHAI).date()

    def spent(self, day: date) -> tuple[int, int]:
        """On the day, and in its year."""
        rows = self.counted.values()
        return (
            sum(row.amount for row in rows if row.day == day),
            sum(row.amount for row in rows if row.day.year == day.year),
        )

    @rule(amount=st.one_of(st.integers(1, 600_000), st.sampled_from([200_000, 500_000])))
    def pays(self, amount: int) -> None:
        payment = self.bank.new_id()
        token = self.bank.instruction(self.payer, self.shop.account, amount, id=payment)
        outcome = pay(self.bank.context, [token])[0]
        single, in_day, in_year = self.in_force()
        day_minor, year_minor = self.spent(self.today())
        expected = None
        if amount > single:
            expected = "single-limit-exceeded"
        elif day_minor + amount > in_day:
            expected = "day-limit-exceeded"
        elif year_minor + amount > in_year:
            expected = "year-limit-exceeded"
        refusal = outcome.refusal.value if isinstance(outcome, Declined) else outcome.refusal
        if expected is not None:
            assert refusal == expected
        elif refusal is None:
            self.counted[payment] = Counted(amount, self.today(), (single, in_day, in_year))
        else:  # only what the ledger alone keeps: the scheme's caps, by its own count
            assert isinstance(outcome, Declined) is False
            assert refusal.endswith("limit-exceeded") or refusal == "insufficient-funds"

    @rule(single=caps, day=caps, year=caps)
    def sets_own_caps(self, single: int | None, day: int | None, year: int | None) -> None:
        change = self.bank.new_id()
        view = CapsView(single_max_minor=single, day_max_minor=day, year_max_minor=year)
        order = sign_caps_order(
            CapsOrder(
                wallet=self.payer.wallet.id,
                change=change,
                caps=view,
                valid_until=self.bank.clock() + timedelta(minutes=1),
            ),
            key=self.payer.key,
        )
        asked = Caps(single_max_minor=single, day_max_minor=day, year_max_minor=year)
        row = find_wallet(self.bank.context, self.payer.wallet.id)
        given = (float("inf") if cap is None else cap for cap in (single, day, year))
        wanted: tuple[float, float, float] = tuple(given)  # type: ignore[assignment]
        limits = CLASS_CAPS[row.wallet_class]
        is_above = any(cap != float("inf") and cap > limit for cap, limit in zip(wanted, limits, strict=True))
        try:
            lifecycle.set_caps(self.bank.context, change, self.payer.wallet.id, asked, order=order)
        except ProblemError as error:
            assert error.refusal.value == "cap-above-class"  # noqa: PT017 - the model says when
            assert is_above
        else:
            assert not is_above
            self.own = wanted

    @rule(to=st.sampled_from([WalletClass.II, WalletClass.III, WalletClass.IV]))
    def changes_class(self, to: WalletClass) -> None:
        before = find_wallet(self.bank.context, self.payer.wallet.id).wallet_class
        try:
            lifecycle.change_class(self.bank.context, self.bank.new_id(), self.payer.wallet.id, to)
            self.classes = {to}
        except ProblemError as error:
            if error.refusal.value == "service-unavailable":
                self.classes = {before, to}
            else:
                assert error.refusal.value == "change-in-progress"  # noqa: PT017
                assert len(self.classes) == 2

    @rule(silent=st.booleans())
    def ledger_falls_silent_or_speaks(self, silent: bool) -> None:
        self.bank.ledger.unreachable = silent

    @rule()
    def recovery_passes(self) -> None:
        self.bank.clock.advance(timedelta(seconds=31))
        resume_changes(self.bank.context)
        resume_payments(self.bank.context, older_than=timedelta(0))
        if not self.bank.ledger.unreachable:
            self.classes = {find_wallet(self.bank.context, self.payer.wallet.id).wallet_class}
        self.forget_refused()

    def forget_refused(self) -> None:
        """What the ledger has refused after all, by its own caps, is given back."""
        with self.bank.database.engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT id FROM payment WHERE state = 'refused'")
            for (payment,) in found:
                self.counted.pop(payment, None)

    @rule(hours=st.sampled_from([1, 5, 8, 24, 24 * 200]))
    def time_passes(self, hours: int) -> None:
        self.bank.clock.advance(timedelta(hours=hours))

    @invariant()
    def I9_what_was_counted_kept_every_cap_then_in_force(self) -> None:
        seen: list[Counted] = []
        for row in getattr(self, "counted", {}).values():
            seen.append(row)
            in_day = sum(other.amount for other in seen if other.day == row.day)
            in_year = sum(other.amount for other in seen if other.day.year == row.day.year)
            assert row.amount <= row.caps[0]
            assert in_day <= row.caps[1]
            assert in_year <= row.caps[2]

    @invariant()
    def usage_is_what_the_payments_add_up_to(self) -> None:
        if hasattr(self, "counted"):
            usage = find_wallet(self.bank.context, self.payer.wallet.id).usage
            assert (usage.day_minor, usage.year_minor) == self.spent(usage.day)


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    # Durability is not the question here, and a step is several commits.
    url = fresh_database("wallet") + "&options=-c%20synchronous_commit%3Doff"
    database = Database(url, application_name="test")
    yield Bank(database)
    database.close()


@pytest.mark.timeout(300)
def test_I9_caps_changed_at_any_moment_hold(bank: Bank) -> None:
    CapsMachine.bank = bank
    run_state_machine_as_test(
        CapsMachine,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )

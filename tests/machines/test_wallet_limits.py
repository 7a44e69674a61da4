"""Goal: no interleaving of payments, refusals, late bookings and midnights lets a wallet exceed its class's caps (I9).
Method: a Hypothesis state machine over the pure limits, against a model that keeps every payment with its day and adds
them up afresh; the clock steps over days, years and back.
"""

from __future__ import annotations

import os
from datetime import date, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from ledger.contract import TransferRefusal
from wallet.domain import limits
from wallet.domain.limits import Caps, Usage

cap = st.one_of(st.none(), st.integers(0, 300))


class LimitsMachine(RuleBasedStateMachine):
    """`counted` are the payments on their way or booked: amount and the day they count on."""

    on_their_way = Bundle("on_their_way")

    @initialize(single=cap, day=cap, year=cap, start=st.dates(date(2025, 12, 20), date(2026, 1, 5)))
    def begin(self, single: int | None, day: int | None, year: int | None, start: date) -> None:
        self.caps = Caps(single_max_minor=single, day_max_minor=day, year_max_minor=year)
        self.today = start
        self.usage = Usage(start)
        self.counted: dict[int, tuple[int, date]] = {}
        self.next_id = 0

    def spent(self, day: date) -> tuple[int, int]:
        same_day = sum(amount for amount, counted_on in self.counted.values() if counted_on == day)
        same_year = sum(amount for amount, counted_on in self.counted.values() if counted_on.year == day.year)
        return same_day, same_year

    @rule(target=on_their_way, amount=st.integers(1, 200))
    def pay(self, amount: int) -> object:
        decided = limits.decide_payment(amount, caps=self.caps, usage=self.usage, today=self.today)
        day = max(self.today, self.usage.day)
        in_day, in_year = self.spent(day)
        expected: TransferRefusal | None = None
        if self.caps.single_max_minor is not None and amount > self.caps.single_max_minor:
            expected = TransferRefusal.SINGLE_LIMIT_EXCEEDED
        elif self.caps.day_max_minor is not None and in_day + amount > self.caps.day_max_minor:
            expected = TransferRefusal.DAY_LIMIT_EXCEEDED
        elif self.caps.year_max_minor is not None and in_year + amount > self.caps.year_max_minor:
            expected = TransferRefusal.YEAR_LIMIT_EXCEEDED
        if expected is not None:
            assert decided is expected
            return multiple()
        assert isinstance(decided, Usage)
        self.usage = decided
        self.next_id += 1
        self.counted[self.next_id] = (amount, decided.day)
        return self.next_id

    @rule(payment=consumes(on_their_way))
    def refused_by_the_ledger(self, payment: int) -> None:
        amount, counted_on = self.counted.pop(payment)
        self.usage = limits.release(self.usage, amount, counted_on=counted_on)

    @rule(payment=consumes(on_their_way))
    def booked(self, payment: int) -> None:
        assert payment in self.counted  # it stays counted for ever

    @rule(days=st.sampled_from([1, 1, 2, 30, 365, -1]))
    def time_passes(self, days: int) -> None:
        self.today += timedelta(days=days)

    @invariant()
    def I9_no_cap_is_exceeded_on_any_day_or_in_any_year(self) -> None:
        for _, day in self.counted.values():
            in_day, in_year = self.spent(day)
            assert self.caps.day_max_minor is None or in_day <= self.caps.day_max_minor
            assert self.caps.year_max_minor is None or in_year <= self.caps.year_max_minor

    @invariant()
    def usage_is_what_the_payments_add_up_to(self) -> None:
        if hasattr(self, "usage"):
            assert (self.usage.day_minor, self.usage.year_minor) == self.spent(self.usage.day)
            assert 0 <= self.usage.day_minor <= self.usage.year_minor


TestLimits = pytest.mark.campaign(LimitsMachine.TestCase)
EXAMPLES = int(os.environ.get("JIAOZI_HYPOTHESIS_EXAMPLES", "60"))
TestLimits.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)

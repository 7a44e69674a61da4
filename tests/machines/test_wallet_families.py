"""Goal: no interleaving of payments, refusals, late bookings, midnights and new caps lets a child spend beyond its own
caps, and no cap takes back what was spent.
Method: a Hypothesis state machine over the pure rules, against a model that keeps every payment and adds them up
afresh; the invariant is word for word the tables' CHECK.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import date, timedelta
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from kernel.errors import Refusal
from kernel.ids import AccountNumber
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal
from wallet.domain import families
from wallet.domain.families import Child, ChildCaps, ChildUsage

CHILD, PARENT, MERCHANT, STRANGER = (AccountNumber(number) for number in (11, 12, 13, 14))
cap = st.one_of(st.none(), st.integers(0, 300))


class ChildMachine(RuleBasedStateMachine):
    on_their_way = Bundle("on_their_way")
    refused_ones = Bundle("refused_ones")

    @initialize(single=cap, day=cap, total=cap, is_pushed=st.booleans(), start=st.dates(date(2025, 12, 30)))
    def begin(self, single: int | None, day: int | None, total: int | None, is_pushed: bool, start: date) -> None:
        self.today = min(start, date(2100, 1, 1))
        self.child = Child(
            wallet_id=UUID(int=1),
            parent_id=UUID(int=2),
            account=CHILD,
            parent_account=PARENT,
            merchant=MERCHANT if is_pushed else None,
            caps=ChildCaps(None, single, day, total),
            usage=ChildUsage(self.today),
            state="open",
            version=1,
        )
        self.counted: dict[int, tuple[int, date]] = {}
        self.next_id = 0

    def spent(self, day: date) -> tuple[int, int]:
        in_day = sum(amount for amount, counted_on in self.counted.values() if counted_on == day)
        return in_day, sum(amount for amount, _ in self.counted.values())

    @rule(target=on_their_way, amount=st.integers(1, 200), credit=st.sampled_from([PARENT, MERCHANT, STRANGER]))
    def pay(self, amount: int, credit: AccountNumber) -> object:
        child, caps = self.child, self.child.caps
        decided = families.decide_transfer(child, kind="payment", credit=credit, amount_minor=amount, today=self.today)
        day = max(self.today, child.usage.day)
        in_day, in_all = self.spent(day)
        expected: Refusal | None = None
        if credit == PARENT:
            expected = None
        elif child.state == "closed":
            expected = WalletRefusal.CHILD_CLOSED
        elif child.state == "revoked":
            expected = WalletRefusal.PUSH_REVOKED
        elif child.merchant not in (None, credit):
            expected = WalletRefusal.PAYEE_NOT_ALLOWED
        elif caps.single_max_minor is not None and amount > caps.single_max_minor:
            expected = TransferRefusal.SINGLE_LIMIT_EXCEEDED
        elif caps.day_max_minor is not None and in_day + amount > caps.day_max_minor:
            expected = TransferRefusal.DAY_LIMIT_EXCEEDED
        elif caps.total_max_minor is not None and in_all + amount > caps.total_max_minor:
            expected = WalletRefusal.CHILD_LIMIT_EXCEEDED
        if expected is not None:
            assert decided is expected
            return multiple()
        assert isinstance(decided, ChildUsage)
        self.child = families.with_usage(child, decided)
        if not families.counts(child, kind="payment", credit=credit):
            return multiple()
        self.next_id += 1
        self.counted[self.next_id] = (amount, decided.day)
        return self.next_id

    @rule(kind=st.sampled_from(["refund", "exchange-out"]), credit=st.sampled_from([MERCHANT, STRANGER, PARENT]))
    def other_kinds_do_not_lead_round_the_merchant(self, kind: str, credit: AccountNumber) -> None:
        decided = families.decide_transfer(self.child, kind=kind, credit=credit, amount_minor=1, today=self.today)
        is_capped = self.child.caps != ChildCaps()
        if self.child.merchant is not None or self.child.state != "open":
            assert isinstance(decided, Refusal)
        elif kind == "exchange-out" and is_capped:
            assert decided is TransferRefusal.KIND_NOT_ALLOWED
        else:
            assert isinstance(decided, ChildUsage)

    @rule(target=refused_ones, payment=consumes(on_their_way))
    def refused_by_the_ledger(self, payment: int) -> object:
        amount, counted_on = self.counted.pop(payment)
        self.child = families.with_usage(self.child, families.release(self.child.usage, amount, counted_on=counted_on))
        return amount

    @rule(amount=consumes(refused_ones))
    def booked_after_all(self, amount: int) -> None:
        usage = families.force(self.child.usage, amount, today=self.today)
        self.child = families.with_usage(self.child, usage)
        self.next_id += 1
        self.counted[self.next_id] = (amount, usage.day)

    @rule(payment=consumes(on_their_way))
    def booked(self, payment: int) -> None:
        assert payment in self.counted

    @rule(single=cap, day=cap, total=cap)
    def caps_change(self, single: int | None, day: int | None, total: int | None) -> None:
        caps = ChildCaps(None, single, day, total)
        usage = families.lower_to(self.child.usage, caps, today=self.today)
        self.child = replace(self.child, caps=caps, usage=usage)

    @rule(state=st.sampled_from(["open", "open", "open", "revoked", "closed"]))
    def ends(self, state: families.ChildState) -> None:
        if self.child.state == "open":
            self.child = replace(self.child, state=state)

    @rule(days=st.sampled_from([1, 1, 2, 30, 365, -1]))
    def time_passes(self, days: int) -> None:
        self.today += timedelta(days=days)

    @invariant()
    def usage_is_what_the_payments_add_up_to(self) -> None:
        if hasattr(self, "child"):
            usage = self.child.usage
            assert (usage.day_minor, usage.total_minor) == self.spent(usage.day)

    @invariant()
    def I9_the_tables_would_take_it(self) -> None:
        if hasattr(self, "child"):
            caps, usage = self.child.caps, self.child.usage
            assert 0 <= usage.day_minor <= usage.total_minor
            assert caps.day_max_minor is None or usage.day_minor <= max(caps.day_max_minor, usage.day_floor_minor)
            assert caps.total_max_minor is None or usage.total_minor <= max(
                caps.total_max_minor, usage.total_floor_minor
            )


TestChild = pytest.mark.campaign(ChildMachine.TestCase)
EXAMPLES = int(os.environ.get("JIAOZI_HYPOTHESIS_EXAMPLES", "60"))
TestChild.settings = settings(max_examples=EXAMPLES, stateful_step_count=40, deadline=None)

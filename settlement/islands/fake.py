"""An island in memory, with the ledger's hold, post, void and tombstone semantics, and with faults on order.

For tests and simulations. It is deterministic: a fault happens because it was asked for, never by chance or by a clock.

    island = FakeIsland("CNY-1", balances={11: 1_000, 12: 0})
    island.faults.lose_answer.add("prepare")          # the next prepare is done, its answer is lost
    island.faults.delayed = True                      # requests are queued; `deliver()` runs them, in any order asked
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from kernel.errors import InvariantBroken
from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder
from settlement.domain.refusals import AbortReason
from settlement.islands.balances import Totals
from settlement.islands.port import (
    Contradiction,
    Ended,
    EndOrder,
    EndOutcome,
    Held,
    HoldStanding,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)


class IslandCrashed(BaseException):
    """Plays the caller's death at this very point. Not an Exception: nothing may catch it and go on."""


@dataclass(slots=True)
class Faults:
    """What is to go wrong. Operation names are `prepare`, `fulfil`, `cancel`, `look_up`."""

    refuse_holds: set[UUID] = field(default_factory=set)
    """Hold ids that are refused."""
    lose_request: set[str] = field(default_factory=set)
    """The next call of the operation never arrives."""
    lose_answer: set[str] = field(default_factory=set)
    """The next call of the operation is done, its answer is lost."""
    duplicate: bool = False
    """Every request arrives twice."""
    down: bool = False
    """Nothing arrives."""
    delayed: bool = False
    """Requests do not arrive until `deliver()`; the caller sees an unknown outcome."""


@dataclass(slots=True)
class _Hold:
    order: HoldOrder
    standing: HoldStanding


class FakeIsland:
    def __init__(
        self,
        name: str,
        *,
        balances: dict[int, int],
        is_authorised: Callable[[SignedHold], bool] = lambda _: True,
    ) -> None:
        """`is_authorised` plays the ledger's check of the payer's signature."""
        self._name = name
        self._is_authorised = is_authorised
        self._balances = dict(balances)
        self._issued = sum(balances.values())
        self._holds: dict[UUID, _Hold] = {}
        self._tombstones: set[tuple[UUID, bytes]] = set()
        self._lines: list[tuple[int, int, int, UUID]] = []
        self._queue: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self.faults = Faults()
        self.calls: list[str] = []

    @property
    def name(self) -> str:
        return self._name

    # --- the port

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        return self._call("prepare", lambda: [self._prepare(hold) for hold in holds], len(holds))

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._call("fulfil", lambda: [self._fulfil(order) for order in orders], len(orders))

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._call("cancel", lambda: [self._cancel(order) for order in orders], len(orders))

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        found = self._call("look_up", lambda: [self._look_up(order) for order in orders], len(orders))
        return [HoldStanding.UNKNOWN if isinstance(item, Unknown) else item for item in found]

    def statement(self, account: AccountNumber) -> list[Any]:
        """(debit, credit, amount, hold id) of each posted leg of the account, oldest first."""
        return [line for line in self._lines if account in line[:2]]

    # --- what tests ask and do

    def deliver(self, *, reverse: bool = False) -> int:
        """Let the delayed requests arrive, in order or the last first. Returns how many."""
        queue, self._queue = self._queue, []
        for request in reversed(queue) if reverse else queue:
            with self._lock:
                request()
        return len(queue)

    def standing(self, hold_id: UUID) -> HoldStanding:
        hold = self._holds.get(hold_id)
        return HoldStanding.ABSENT if hold is None else hold.standing

    def balance(self, account: int) -> int:
        return self._balances[account]

    def available_of(self, accounts: Sequence[AccountNumber]) -> list[int | None]:
        """What each account has available; None where that is unknown (see islands.balances)."""
        if self.faults.down:
            return [None] * len(accounts)
        return [self.available(account) if account in self._balances else None for account in accounts]

    def totals_of(self, accounts: Sequence[AccountNumber]) -> list[Totals | None]:
        if self.faults.down:
            return [None] * len(accounts)
        return [
            Totals(
                self._balances[account] - self.available(account),
                sum(amount for debit, _, amount, _ in self._lines if debit == account),
                sum(amount for _, credit, amount, _ in self._lines if credit == account),
            )
            if account in self._balances
            else None
            for account in accounts
        ]

    def available(self, account: int) -> int:
        reserved = sum(
            hold.order.terms.amount.amount_minor
            for hold in self._holds.values()
            if hold.standing is HoldStanding.HELD and hold.order.terms.debit == account
        )
        return self._balances[account] - reserved

    def check(self) -> None:
        """Raises InvariantBroken unless money is conserved (I2) and nothing is below zero, holds counted (I3)."""
        if sum(self._balances.values()) != self._issued:
            raise InvariantBroken("I2", f"{self._name}: balances no longer add up to what was issued")
        short = [account for account in self._balances if self.available(account) < 0]
        if short:
            raise InvariantBroken("I3", f"{self._name}: account {short[0]} is below zero")

    # --- transport

    def _call(self, name: str, work: Callable[[], list[Any]], count: int) -> list[Any]:
        with self._lock:
            self.calls.append(name)
            lost: list[Any] = [Unknown(f"{self._name} did not answer")] * count
            if self.faults.down or self._take(self.faults.lose_request, name):
                return lost
            if self.faults.delayed:
                self._queue.append(work)
                return lost
            if self.faults.duplicate:
                work()
            answer = work()
            return lost if self._take(self.faults.lose_answer, name) else answer

    @staticmethod
    def _take(names: set[str], name: str) -> bool:
        if name not in names:
            return False
        names.discard(name)
        return True

    # --- the ledger's rules

    def _prepare(self, asked: SignedHold) -> PrepareOutcome:
        order = asked.order
        hold = self._holds.get(order.hold_id)
        if hold is not None:
            if hold.order == order and hold.standing is HoldStanding.HELD:
                return Held()
            return Refused(AbortReason.HOLD_DIFFERS.value, hold.standing.value)
        if (order.hold_id, order.abort_hash) in self._tombstones:
            return Refused("hold-already-voided")
        if not self._is_authorised(asked):
            return Refused("signature-invalid")
        if order.hold_id in self.faults.refuse_holds:
            return Refused("debit-account-frozen")
        if self._balances.get(order.terms.debit) is None:
            return Refused("debit-account-unknown")
        if order.terms.credit not in self._balances:
            return Refused("credit-account-unknown")
        if self.available(order.terms.debit) < order.terms.amount.amount_minor:
            return Refused("insufficient-funds")
        self._holds[order.hold_id] = _Hold(order, HoldStanding.HELD)
        return Held()

    def _fulfil(self, end: EndOrder) -> EndOutcome:
        hold = self._holds.get(end.order.hold_id)
        if hold is None:
            return Unknown("hold-not-found")
        if hold.standing is HoldStanding.POSTED:
            return Ended()
        if hold.standing is HoldStanding.VOIDED:
            return Contradiction("a committed leg stands voided")
        if hashlib.sha256(end.secret).digest() != hold.order.commit_hash:
            return Contradiction("hold-secret-wrong")
        hold.standing = HoldStanding.POSTED
        terms = hold.order.terms
        self._balances[terms.debit] -= terms.amount.amount_minor
        self._balances[terms.credit] += terms.amount.amount_minor
        self._lines.append((terms.debit, terms.credit, terms.amount.amount_minor, end.order.hold_id))
        return Ended()

    def _cancel(self, end: EndOrder) -> EndOutcome:
        hold = self._holds.get(end.order.hold_id)
        abort_hash = hashlib.sha256(end.secret).digest()
        if hold is None:
            self._tombstones.add((end.order.hold_id, abort_hash))
            return Ended()
        if hold.order.abort_hash != abort_hash:
            return Ended()  # another's hold took the id
        if hold.standing is HoldStanding.POSTED:
            return Contradiction("an aborted leg stands posted")
        hold.standing = HoldStanding.VOIDED
        return Ended()

    def _look_up(self, order: HoldOrder) -> HoldStanding:
        hold = self._holds.get(order.hold_id)
        if hold is None:
            is_buried = (order.hold_id, order.abort_hash) in self._tombstones
            return HoldStanding.VOIDED if is_buried else HoldStanding.ABSENT
        return hold.standing if hold.order == order else HoldStanding.OTHER

"""What a case of the suite works with: orders, questions that know what "no answer yet" means, and expectations."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar
from uuid import uuid4

from kernel.ids import new_uuid7
from kernel.money import Money
from settlement.conformance.subject import Subject
from settlement.domain.escrow import Decision, HoldOrder, Leg, LegTerms, Secrets, fresh_secrets
from settlement.islands.port import (
    Ended,
    EndOrder,
    EndOutcome,
    Held,
    HoldStanding,
    Island,
    PrepareOutcome,
    SignedHold,
    Unknown,
)

AMOUNT_MINOR = 100
_POLL_SECONDS = 0.05

Outcome = TypeVar("Outcome")


class CaseFailed(Exception):
    """The adapter broke the case's rule; the text says how."""


@dataclass(frozen=True, slots=True)
class Case:
    """`rule` is the promise in one sentence. `run` raises CaseFailed, or NotOffered from the subject."""

    name: str
    rule: str
    run: Callable[[Stage], None]


@dataclass(frozen=True, slots=True)
class Order:
    """A hold order with its secrets and its end orders."""

    leg: Leg
    hold: HoldOrder
    secrets: Secrets

    @property
    def post(self) -> EndOrder:
        return self.end(Decision.COMMIT, self.secrets.commit)

    @property
    def void(self) -> EndOrder:
        return self.end(Decision.ABORT, self.secrets.abort)

    def end(self, decision: Decision, secret: bytes) -> EndOrder:
        return EndOrder(self.hold, self.leg.end_id(decision, secret), secret)


@dataclass(slots=True)
class Stage:
    """What a case works with: the subject, and helpers that know what "no answer yet" means."""

    subject: Subject
    made: list[Order] = field(default_factory=list)
    before: tuple[int, int] = (0, 0)

    @property
    def island(self) -> Island:
        return self.subject.island

    # --- making

    def order(self, amount_minor: int = AMOUNT_MINOR) -> Order:
        subject = self.subject
        found = fresh_secrets(secrets.token_bytes)
        amount = Money(amount_minor, subject.currency)
        terms = LegTerms(subject.ledger, subject.payer, subject.payee, subject.debit, subject.credit, amount)
        leg = Leg(new_uuid7(), 0, terms)
        made = Order(leg, HoldOrder(leg.hold_id, terms, uuid4(), found.commit_hash, found.abort_hash), found)
        self.made.append(made)
        return made

    def other_terms(self, order: Order, amount_minor: int) -> HoldOrder:
        amount = Money(amount_minor, self.subject.currency)
        return replace(order.hold, terms=replace(order.hold.terms, amount=amount))

    def signed(self, order: Order) -> SignedHold:
        return SignedHold(order.hold, self.subject.authorise(order.hold))

    # --- asking until there is an answer

    def prepare(self, *orders: Order, island: Island | None = None) -> list[PrepareOutcome]:
        holds = [self.signed(order) for order in orders]
        return self.answered(lambda: (island or self.island).prepare(holds))

    def hold(self, order: Order) -> None:
        outcome = self.prepare(order)[0]
        self.expect(outcome == Held(), f"a good hold was answered {outcome}")

    def fulfil(self, *orders: Order, island: Island | None = None) -> list[EndOutcome]:
        return self.answered(lambda: (island or self.island).fulfil([order.post for order in orders]))

    def cancel(self, *orders: Order, island: Island | None = None) -> list[EndOutcome]:
        return self.answered(lambda: (island or self.island).cancel([order.void for order in orders]))

    def answered(self, ask: Callable[[], Sequence[Outcome]]) -> list[Outcome]:
        """Ask until no answer is `Unknown`, or patience is over."""
        until = time.monotonic() + self.subject.patience_seconds
        while True:
            answers = list(ask())
            if not any(isinstance(answer, Unknown) for answer in answers) or time.monotonic() >= until:
                return answers
            self.subject.finalise()
            time.sleep(_POLL_SECONDS)

    def never(self, ask: Callable[[], Sequence[object]], wrong: type, why: str) -> None:
        """Ask a few times: no answer is of this kind, now or later."""
        for _ in range(3):
            for answer in ask():
                self.expect(not isinstance(answer, wrong), f"{why}: {answer}")
            self.subject.finalise()

    def standing(self, order: HoldOrder) -> HoldStanding:
        until = time.monotonic() + self.subject.patience_seconds
        while True:
            found = self.island.look_up([order])[0]
            if found is not HoldStanding.UNKNOWN or time.monotonic() >= until:
                return found
            self.subject.finalise()
            time.sleep(_POLL_SECONDS)

    # --- expecting

    def expect(self, is_kept: bool, otherwise: str) -> None:
        if not is_kept:
            raise CaseFailed(otherwise)

    def expect_standing(self, order: Order | HoldOrder, wanted: HoldStanding) -> None:
        found = self.standing(order.hold if isinstance(order, Order) else order)
        self.expect(found is wanted, f"it stands {found.value}, not {wanted.value}")

    def expect_ended(self, outcomes: Sequence[object]) -> None:
        for outcome in outcomes:
            self.expect(isinstance(outcome, Ended), f"a good end was answered {outcome}")

    def expect_moved(self, *, debit: int, credit: int) -> None:
        """What is available, against the start of the case."""
        now = self._available()
        moved = (now[0] - self.before[0], now[1] - self.before[1])
        self.expect(
            moved == (debit, credit), f"available: payer {moved[0]:+}, payee {moved[1]:+}, not {debit:+} and {credit:+}"
        )

    def _available(self) -> tuple[int, int]:
        return self.subject.available(self.subject.debit), self.subject.available(self.subject.credit)

    # --- around a case

    def open(self) -> None:
        self.before = self._available()

    def close(self) -> None:
        """Void all that is not posted, as the engine does after an abort, then count the money (I2, I6)."""
        standings = {order.hold.hold_id: self.standing(order.hold) for order in self.made}
        rest = [order for order in self.made if standings[order.hold.hold_id] is not HoldStanding.POSTED]
        if rest:
            self.expect_ended(self.cancel(*rest))
        posted = sum(
            order.hold.terms.amount.amount_minor
            for order in self.made
            if standings[order.hold.hold_id] is HoldStanding.POSTED
        )
        self.expect_moved(debit=-posted, credit=posted)

"""Requests to pay, purely: what a request asks for, which payment answers it, and what becomes of it.

Paid exactly once (I7). A request that can be paid too often names the id of each of its payments beforehand: payment
`n` is `derive_uuid7(request, "payment-n")`. A ledger books an id at most once, so of two payers who approve at the same
time, at whichever intermediaries, the ledger books one and refuses the other before money moves. Nobody has to reserve
anything, and no intermediary has to be trusted. Only a request that asks for any number of payments without a total
has no such slots: it cannot be paid too often.

What nobody can prevent is a payment that somebody sends under another id with the request's reference, by his own
will. It is on the payee's statement, found there, recorded as a surplus, shown, and refundable; it never pays such a
request, or one that is paid by it could be paid once more.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from kernel.ids import AccountNumber, ParticipantId, derive_uuid7
from kernel.money import AMOUNT_MINOR_MAX

RequestStateName = Literal["open", "part-paid", "paid", "declined", "cancelled", "expired"]
OPEN_STATES: frozenset[RequestStateName] = frozenset({"open", "part-paid"})
PAYMENTS_MAX = 1_000
"""Payments of one request for a total: each is looked for on the ledger by its id."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a request asks for, in minor units. Exactly one of: `amount_minor` (the total), or an open amount, which
    `amount_min_minor` and `amount_max_minor` may bound. `is_many`: in as many payments as it takes."""

    amount_minor: int | None
    amount_min_minor: int | None
    amount_max_minor: int | None
    is_many: bool

    @property
    def has_slots(self) -> bool:
        """Whether its payments' ids are set beforehand, so that it cannot be paid too often."""
        return self.amount_minor is not None or not self.is_many


@dataclass(frozen=True, slots=True)
class Request:
    """A request as its payee's institution keeps it."""

    id: UUID
    wallet_id: UUID
    account: AccountNumber
    """Whom the payment credits."""
    currency: str
    terms: Terms
    payer_account: AccountNumber | None
    """Who alone is asked; None = whoever is shown the request."""
    payer_institution: ParticipantId | None
    payee_name: str
    description: str
    payee_reference: str
    document: str
    """The request as this institution signed it."""
    state: RequestStateName
    paid_minor: int
    payments: int
    surplus_minor: int
    created_at: datetime
    expires_at: datetime
    ended_at: datetime | None

    @property
    def remaining_minor(self) -> int | None:
        """What a request for a total still asks for; None = an open amount."""
        return None if self.terms.amount_minor is None else self.terms.amount_minor - self.paid_minor

    @property
    def next_payment(self) -> UUID | None:
        """The id that the next payment must have; None = any."""
        return payment_id(self.id, self.payments) if self.terms.has_slots else None

    def state_at(self, now: datetime) -> RequestStateName:
        """The state as time alone changes it."""
        return "expired" if self.state in OPEN_STATES and now >= self.expires_at else self.state

    def asks_the_same_as(self, other: Request) -> bool:
        """Whether both were made by one and the same order."""
        return _order(self) == _order(other)


def payment_id(request_id: UUID, number: int) -> UUID:
    """The id of a request's payment number 0, 1, 2, ..."""
    return derive_uuid7(request_id, f"payment-{number}")


def contradiction(terms: Terms) -> str | None:
    """Why such terms cannot be asked for; None if they can."""
    low, high, total = terms.amount_min_minor, terms.amount_max_minor, terms.amount_minor
    if any(value is not None and not 0 < value <= AMOUNT_MINOR_MAX for value in (low, high, total)):
        return "an amount must be positive"
    if total is not None and high is not None:
        return "a request for an amount has no maximum besides it"
    if total is not None and low is not None and not (terms.is_many and low <= total):
        return "a least amount of a part belongs to a request in many payments, and is no more than the total"
    if low is not None and high is not None and low > high:
        return "the least amount is more than the greatest"
    return None


def amount_refused(terms: Terms, amount_minor: int, *, paid_minor: int) -> str | None:
    """Why one payment of this amount does not answer the request; None if it does."""
    low, high, total = terms.amount_min_minor, terms.amount_max_minor, terms.amount_minor
    if amount_minor <= 0:
        return "the amount must be positive"
    if total is None:
        if low is not None and amount_minor < low:
            return f"at least {low} minor units are asked for"
        if high is not None and amount_minor > high:
            return f"at most {high} minor units are asked for"
        return None
    remaining = total - paid_minor
    if not terms.is_many:
        return None if amount_minor == total else f"exactly {total} minor units are asked for"
    if amount_minor > remaining:
        return f"only {remaining} minor units remain to be paid"
    if low is not None and amount_minor < min(low, remaining):
        return f"a part is at least {min(low, remaining)} minor units"
    return None


@dataclass(frozen=True, slots=True)
class Received:
    """A booked transfer that credits a request's account with the request's id as its reference."""

    transfer_id: UUID
    seq: int
    payer_account: AccountNumber | None
    amount_minor: int
    booked_at: datetime


def receive(request: Request, received: Received) -> tuple[Request, bool]:
    """The request after a payment, and whether it is a surplus: money that the request did not ask for.

    What answers it has the id of its next payment, where it has such. A payment booked before the request ended pays
    it, whenever it is noticed; one booked afterwards is a surplus.
    """
    is_answer = not request.terms.has_slots or received.transfer_id == request.next_payment
    is_late = request.ended_at is not None and received.booked_at >= request.ended_at
    is_late = is_late or received.booked_at >= request.expires_at
    is_refused = amount_refused(request.terms, received.amount_minor, paid_minor=request.paid_minor) is not None
    if request.state == "paid" or not is_answer or is_late or is_refused:
        return replace(request, surplus_minor=request.surplus_minor + received.amount_minor), True
    after = replace(request, paid_minor=request.paid_minor + received.amount_minor, payments=request.payments + 1)
    if not request.terms.is_many or after.remaining_minor == 0:
        return replace(after, state="paid", ended_at=received.booked_at), False
    return replace(after, state="part-paid" if request.state in OPEN_STATES else request.state), False


def end(request: Request, state: RequestStateName, now: datetime) -> Request:
    """The request declined, cancelled or expired; one that has ended stays as it is."""
    if request.state not in OPEN_STATES:
        return request
    return replace(request, state=state, ended_at=min(now, request.expires_at))


def _order(request: Request) -> tuple[object, ...]:
    return (
        request.id,
        request.wallet_id,
        request.currency,
        request.terms,
        request.payer_account,
        request.payer_institution,
        request.payee_name,
        request.description,
        request.payee_reference,
        request.expires_at,
    )

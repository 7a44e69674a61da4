"""The port to the institution's core-banking system, which keeps the customers' deposits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal, Protocol
from uuid import UUID


class PostingOutcome(StrEnum):
    BOOKED = "booked"
    REFUSED = "refused"


class PostingConflict(Exception):
    """The id belongs to another posting with other content: a bug in the caller, nothing was posted."""


@dataclass(frozen=True, slots=True)
class Posting:
    """A line of the bank's statement: booked, amount in minor units, direction as seen from the deposit."""

    id: UUID
    customer_id: UUID
    direction: Literal["debit", "credit"]
    amount_minor: int
    booked_at: datetime


class CoreBanking(Protocol):
    """Amounts in minor units of the home ledger's currency.

    Idempotent by id: the first definite answer to an id stands for ever, a refusal too. So whoever repeats a call,
    however late, gets what the first caller got, and a debit refused once can never happen afterwards.
    Raises: PostingConflict; any other exception means that the outcome is unknown.
    """

    def debit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        """Takes from the customer's deposit. Refused when it is too small or there is none."""
        ...

    def credit_deposit(self, posting_id: UUID, customer_id: UUID, amount_minor: int) -> PostingOutcome:
        """Pays into the customer's deposit."""
        ...

    def look_up(self, posting_id: UUID) -> PostingOutcome | None:
        """What became of an id; None if it never arrived."""
        ...

    def statement(
        self, *, since: datetime, until: datetime, after: tuple[datetime, UUID] | None, limit: int
    ) -> Sequence[Posting]:
        """Booked postings of exchanges in [since, until), in order of time and id, from the one after `after` on; at
        most `limit`. A repeated line is a second booking."""
        ...

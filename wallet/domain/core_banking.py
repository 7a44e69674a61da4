"""The port to the institution's core-banking system, which keeps the customers' deposits."""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol
from uuid import UUID


class PostingOutcome(StrEnum):
    BOOKED = "booked"
    REFUSED = "refused"


class PostingConflict(Exception):
    """The id belongs to another posting with other content: a bug in the caller, nothing was posted."""


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

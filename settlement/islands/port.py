"""The port to an island: any ledger that can hold conditionally, post and void by secret, and be asked.

Every call is in bulk, answers one outcome an order in order, and is idempotent by the ids in the orders. Adapters never
raise for a lost or unclear answer: that is the outcome `Unknown`, which decides nothing and is asked again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol
from uuid import UUID

from kernel.ids import AccountNumber
from settlement.domain.escrow import HoldOrder


@dataclass(frozen=True, slots=True)
class Held:
    """The hold stands with exactly the ordered terms."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The hold is posted (of a fulfil) or voided, or can never be placed (of a cancel), by us or by somebody else."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A definite no. Of a `prepare`: the settlement aborts."""

    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Unknown:
    """No usable answer: it may or may not have happened. Ask again."""

    why: str


@dataclass(frozen=True, slots=True)
class Contradiction:
    """The island ended the hold the other way, which takes the undecided secret: I5 is broken. Page a person."""

    why: str


PrepareOutcome = Held | Refused | Unknown
EndOutcome = Ended | Unknown | Contradiction


@dataclass(frozen=True, slots=True)
class SignedHold:
    """A hold order with the payer institution's signed authorisation of it."""

    order: HoldOrder
    authorisation: str


@dataclass(frozen=True, slots=True)
class EndOrder:
    """End a hold by the decided secret. `end_id` is the id of the post or void."""

    order: HoldOrder
    end_id: UUID
    secret: bytes

    def __repr__(self) -> str:
        return f"EndOrder(hold_id={self.order.hold_id}, end_id={self.end_id})"


class HoldStanding(StrEnum):
    ABSENT = "absent"
    HELD = "held"
    POSTED = "posted"
    VOIDED = "voided"
    OTHER = "other"
    """A transfer or hold with this id stands, but not with the ordered terms."""
    UNKNOWN = "unknown"


class Island(Protocol):
    @property
    def name(self) -> str: ...

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        """Place holds. `Held` only if the hold now stands with exactly the ordered terms, hashes included."""
        ...

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        """Post holds with the commit secret."""
        ...

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        """Void holds with the abort secret; of an unknown hold this leaves a tombstone that keeps it out for ever."""
        ...

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        """Where each hold stands now."""
        ...

    def statement(self, account: AccountNumber) -> list[Any]:
        """The account's lines, oldest first, in the island's own form (native: ledger.contract.StatementLine)."""
        ...

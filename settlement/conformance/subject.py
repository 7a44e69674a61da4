"""What an adapter brings to the conformance suite: an island with a funded payer and a payee, and how to disturb it.

The first group of methods must be there. Each of the second group offers a disturbance; one that is not offered makes
the cases that need it "not run", with its reason in the report, never "passed".
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from settlement.domain.escrow import HoldOrder
from settlement.islands.authorisers import AuthorisationOutcome
from settlement.islands.port import Island


class NotOffered(Exception):
    """The subject cannot do this; the text says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """A posted leg in an account's statement: `amount_minor` is negative where the account was debited."""

    hold_id: UUID | None
    amount_minor: int


class Subject:
    """Base class. One subject serves many cases, one after another."""

    ledger: str
    currency: Currency
    payer: ParticipantId
    payee: ParticipantId
    debit: AccountNumber
    credit: AccountNumber
    patience_seconds: float = 10.0
    """How long an answer may stay `Unknown` before a case fails: longer than the chain needs for finality."""
    expiry_seconds: int = 3_600
    """Of the holds that the cases about expiry place."""

    # --- must be there

    @property
    def island(self) -> Island:
        """The adapter under test."""
        raise NotImplementedError

    def authorise(self, order: HoldOrder) -> str:
        """The payer's authorisation of this order, as its institution would give it."""
        raise NotImplementedError

    def available(self, account: AccountNumber) -> int:
        """What the account could spend now, in minor units: what is held of it is not available. Read from the ledger
        or chain itself, not through the adapter."""
        raise NotImplementedError

    def lines(self, account: AccountNumber) -> Sequence[Line]:
        """The posted legs of `island.statement(account)`, oldest first."""
        raise NotImplementedError

    # --- may be there

    def check(self, order: HoldOrder, authorisation: str) -> AuthorisationOutcome:
        """The reading of an authorisation before anything is held: does it say exactly this order? The engine relies on
        it (settlement.islands.authorisers); `prepare` may believe what passed it."""
        raise NotOffered("the adapter does not show its check of authorisations")

    def reopened(self) -> Island:
        """A fresh adapter over the same ledger that remembers nothing, as after a crash."""
        raise NotOffered("the adapter cannot be opened anew")

    def unreachable(self) -> Island:
        """An adapter whose ledger does not answer."""
        raise NotOffered("the adapter cannot be pointed at nothing")

    def losing_answers(self) -> AbstractContextManager[None]:
        """Within the block the next request that changes something is done and its answer is lost."""
        raise NotOffered("its transport cannot lose answers")

    def losing_requests(self) -> AbstractContextManager[None]:
        """Within the block the next request that changes something is lost."""
        raise NotOffered("its transport cannot lose requests")

    def duplicating(self) -> AbstractContextManager[None]:
        """Within the block every request that changes something arrives twice."""
        raise NotOffered("its transport cannot duplicate requests")

    def delaying(self) -> AbstractContextManager[None]:
        """Within the block requests that change something are kept, and their sender has no answer. At its end they
        arrive, the last one first."""
        raise NotOffered("its transport cannot reorder requests")

    def pass_time(self, seconds: int) -> None:
        """The ledger's clock goes on."""
        raise NotOffered("the ledger's clock cannot be moved")

    def place_as_payer(self, order: HoldOrder, *, expires_in_seconds: int | None = None) -> None:
        """The payer places a hold of these terms by itself, not through the adapter; with an expiry if one is given.
        Returns when it stands."""
        raise NotOffered("the payer cannot place holds by itself")

    def post_as_payee(self, order: HoldOrder, secret: bytes) -> None:
        """The payee posts by itself with the published secret. Returns when it is booked."""
        raise NotOffered("the payee cannot post by itself")

    def reorganising(self) -> AbstractContextManager[None]:
        """What is mined within the block is undone at its end, by a reorganisation within the configured finality."""
        raise NotOffered("the ledger does not reorganise")

    def finalise(self) -> None:
        """Time goes by: chains make the blocks that their finality needs, payers send what they have signed."""

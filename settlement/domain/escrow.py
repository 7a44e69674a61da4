"""Decision escrow: the pure part of the atomic transfer engine. n legs on n islands, all posted or none (I5).

The protocol (architecture.md section 4); the numbers recur at each block of settlement.usecases.settle:

1. persist the settlement with two fresh secrets, commit and abort, and their hashes;
2. place every leg as a hold under both hashes;
3. all held: write COMMIT in the decision log, one durable row, fenced: this is finality. Anything else: write ABORT.
   No row after a crash means abort (presumed abort);
4. publish only the decided secret: post (or void) every hold with it;
5. recovery re-reads the log and repeats 4.

No clock decides anything. Unknown outcomes decide nothing either: they are retried. Why nothing splits: a hold is
posted only with the commit secret and voided only with the abort secret; of the two, at most one ever leaves the
database, after its decision, and the log holds at most one decision a settlement.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from uuid import UUID

from kernel.ids import AccountNumber, ParticipantId, derive_uuid7
from kernel.money import Money

SECRET_BYTES = 32


class Decision(StrEnum):
    COMMIT = "commit"
    ABORT = "abort"


class LegState(StrEnum):
    """What is known of one leg. HELD and REFUSED are definite answers; PENDING is everything else."""

    PENDING = "pending"
    HELD = "held"
    REFUSED = "refused"
    POSTED = "posted"
    VOIDED = "voided"
    NETTED = "netted"
    """Paid as part of the net legs of the netting settlement that stands for this one; never held by itself."""


class SettlementState(StrEnum):
    RECEIVED = "received"
    """Stored; nothing was asked of anybody yet."""
    PREPARED = "prepared"
    """Secrets made, legs being authorised and held; undecided."""
    COMMITTED = "committed"
    """Final: COMMIT is in the log. Legs are being posted."""
    ABORTED = "aborted"
    """ABORT is in the log. Holds are being voided."""
    SETTLED = "settled"
    """Every leg is posted."""
    CANCELLED = "cancelled"
    """Every hold is voided, or can never be placed."""


IN_DOUBT = (SettlementState.PREPARED, SettlementState.COMMITTED, SettlementState.ABORTED)
"""States in which somebody's money may be reserved."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """Both pre-images. Never logged: the repr says nothing."""

    commit: bytes
    abort: bytes

    @property
    def commit_hash(self) -> bytes:
        return hashlib.sha256(self.commit).digest()

    @property
    def abort_hash(self) -> bytes:
        return hashlib.sha256(self.abort).digest()

    def __repr__(self) -> str:
        return "Secrets(********)"


def fresh_secrets(entropy: Callable[[int], bytes]) -> Secrets:
    """Two independent 32-byte secrets from a cryptographic source. Raises ValueError if the source repeats itself."""
    found = Secrets(entropy(SECRET_BYTES), entropy(SECRET_BYTES))
    if len(found.commit) != SECRET_BYTES or len(found.abort) != SECRET_BYTES or found.commit == found.abort:
        raise ValueError("the entropy source does not give fresh bytes")
    return found


@dataclass(frozen=True, slots=True)
class LegTerms:
    """One leg: `payer` moves `amount` from `debit` to `credit` on `ledger`."""

    ledger: str
    payer: ParticipantId
    payee: ParticipantId
    debit: AccountNumber
    credit: AccountNumber
    amount: Money


@lru_cache(maxsize=32_768)  # asked for some ten times a leg while its settlement is open
def _hold_id(settlement: UUID, number: int) -> UUID:
    return derive_uuid7(settlement, f"leg-{number}/hold")


@dataclass(frozen=True, slots=True)
class Leg:
    """A leg and what is known of it. `number` counts from 0 within its settlement."""

    settlement: UUID
    number: int
    terms: LegTerms
    state: LegState = LegState.PENDING

    @property
    def hold_id(self) -> UUID:
        return _hold_id(self.settlement, self.number)

    def in_state(self, state: LegState) -> Leg:
        """The same leg, with what is known of it now."""
        return Leg(self.settlement, self.number, self.terms, state)

    def end_id(self, decision: Decision, secret: bytes) -> UUID:
        """Of the post or void: the same in every retry, and unguessable until the secret is out.

        Were it derived from the settlement's id alone, a party could book a tombstone under it before the hold exists,
        and our own void would then be taken for a repetition of that.
        """
        return derive_uuid7(self.settlement, f"leg-{self.number}/{decision.value}/{secret.hex()}")


@dataclass(frozen=True, slots=True)
class HoldOrder:
    """A conditional hold as it is to stand on its island. `reference` is the payment's UETR."""

    hold_id: UUID
    terms: LegTerms
    reference: UUID
    commit_hash: bytes
    abort_hash: bytes


@dataclass(frozen=True, slots=True)
class DecisionRecord:
    """A row of the decision log. Of a COMMIT, `decided_at` is the finality time."""

    settlement: UUID
    decision: Decision
    decided_at: datetime
    epoch: int
    reason: str | None
    """An AbortReason; None of a COMMIT."""
    detail: str = ""


def decide(legs: Sequence[LegState]) -> Decision | None:
    """Step 3: COMMIT if every leg is held, ABORT if any is definitely refused, None while an answer is unknown.

    Raises ValueError for legs that are ended already, or none: asking would be a bug of the caller.
    """
    if not legs or LegState.POSTED in legs or LegState.VOIDED in legs:
        raise ValueError("only undecided legs are decided on")
    if LegState.REFUSED in legs:
        return Decision.ABORT
    return Decision.COMMIT if legs.count(LegState.HELD) == len(legs) else None


def state_after(decision: Decision, legs: Sequence[LegState]) -> SettlementState:
    """Step 4: where a decided settlement stands, given its legs."""
    if decision is Decision.COMMIT:
        is_done = all(state is LegState.POSTED for state in legs)
        return SettlementState.SETTLED if is_done else SettlementState.COMMITTED
    is_done = all(state is LegState.VOIDED for state in legs)
    return SettlementState.CANCELLED if is_done else SettlementState.ABORTED

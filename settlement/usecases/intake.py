"""What every instruction passes on its way in, whatever brought it: checks that refuse it or close a gate before it.

A check sees the settlements of one batch before they are stored, in the transaction that stores them, so what it
records (a decision of compliance, a used quota) stands or falls with the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa

from settlement.domain.instructions import Instruction
from settlement.store.batches import NewSettlement
from settlement.store.gates import Gate


@dataclass(frozen=True, slots=True)
class Fault:
    """One line's refusal: `index` counts instructions from 1."""

    refusal: str
    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class Candidate:
    """An instruction as it came and the settlement to be stored of it. `index` counts from 1."""

    index: int
    instruction: Instruction
    settlement: NewSettlement


class IntakeCheck(Protocol):
    def __call__(
        self, connection: sa.Connection, candidates: Sequence[Candidate], *, now: datetime
    ) -> Sequence[Fault | Gate]:
        """Faults refuse the batch; gates hold their settlement back. May write beside what is stored."""
        ...

"""What a run sees and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

from kernel.ids import ParticipantId

Position = tuple[ParticipantId, str]
"""(participant, ISO 4217 code): one account's money."""


@dataclass(frozen=True, slots=True)
class Flow:
    """`payer` pays `payee` so many minor units of `currency`."""

    payer: ParticipantId
    payee: ParticipantId
    currency: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Queued:
    """A queued instruction: all its flows settle or none (I5). `priority`: 0 before 1; the queue is sorted by it."""

    id: UUID
    flows: tuple[Flow, ...]
    priority: int = 0


class LimitKind(StrEnum):
    BILATERAL = "bilateral"
    """What a participant is willing to pay one other, net of what that one pays it."""
    MULTILATERAL = "multilateral"
    """What it is willing to pay, net, to all those together for whom it has set no bilateral limit."""
    CAP = "cap"
    """What it is willing to pay, net, to everybody together."""


@dataclass(frozen=True, slots=True)
class Room:
    """What a limit still allows: its amount less what was paid net today. Negative when that is more."""

    kind: LimitKind
    participant: ParticipantId
    currency: str
    counterparty: ParticipantId | None
    """Of a bilateral limit; None of the others."""
    room_minor: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One moment. `queue` is in order, the first first; a position that is missing has nothing."""

    queue: tuple[Queued, ...]
    balances: Mapping[Position, int]
    """Available minor units, never negative."""
    rooms: tuple[Room, ...] = ()


class Stage(StrEnum):
    """Which step of a run took an instruction."""

    GROSS = "gross"
    """Its turn came and its payers had the money."""
    OFFSET = "offset"
    """Two institutions' instructions paid for each other, in queue order."""
    GRIDLOCK = "gridlock"
    """Many institutions' instructions paid for each other, in queue order (Bech and Soramaki)."""
    OVERTAKING = "overtaking"
    """As OFFSET, alone or together; it passed one of the same priority to somebody else, which has to wait."""
    OPTIMISED = "optimised"
    """Chosen for the most value; queue order was ignored."""


@dataclass(frozen=True, slots=True)
class Taken:
    id: UUID
    stage: Stage


@dataclass(frozen=True, slots=True)
class Outcome:
    """`taken` in the order in which they were found; `left` in queue order; balances as if all taken had settled."""

    taken: tuple[Taken, ...]
    left: tuple[UUID, ...]
    balances: Mapping[Position, int]
    rooms: tuple[Room, ...]


class NeedKind(StrEnum):
    LIQUIDITY = "liquidity"
    BILATERAL = "bilateral"
    MULTILATERAL = "multilateral"
    CAP = "cap"


@dataclass(frozen=True, slots=True)
class Need:
    """`participant` lacks so much money, or so much room under a limit."""

    kind: NeedKind
    participant: ParticipantId
    currency: str
    amount_minor: int
    counterparty: ParticipantId | None = None

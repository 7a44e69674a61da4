"""The life of a break: who may do what to it next, and what it takes to close it.

open -> assigned -> proposed -> approved -> closed; nothing is closed without a booked adjustment, an explanation, the
late side's arrival or a match. Every step is an event with the officer's signed decision; nothing is edited. An
adjustment takes two officers: its maker proposes, another approves (the database refuses one person and one key twice).
The table below is repeated by CHECKs and a trigger (migration 0009). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from kernel import ids, strict_json
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from settlement.domain.refusals import SettlementRefusal as R

DECISION_TYPE = "jiaozi-reconciliation-decision+jws"
REASON_LENGTH_MIN = 10
REASON_LENGTH_MAX = 500
DECISION_BYTES_MAX = 16 * 1024
REMATCHED_BREAKS_MAX = 20


class BreakState(StrEnum):
    OPEN = "open"
    ASSIGNED = "assigned"
    PROPOSED = "proposed"
    """A repair waits for another officer."""
    APPROVED = "approved"
    """A repair's instruction is with the engine."""
    CLOSED = "closed"


class EventKind(StrEnum):
    OPENED = "opened"
    ASSIGNED = "assigned"
    RELEASED = "released"
    PROPOSED = "proposed"
    REJECTED = "rejected"
    APPROVED = "approved"
    BOOKED = "booked"
    FAILED = "failed"
    """The instruction was cancelled: nothing was booked."""
    EXPLAINED = "explained"
    LATE_SIDE = "late-side"
    """A later run has both sides, or the line's own side has replaced or undone it."""
    REMATCHED = "rematched"
    REOPENED = "reopened"

    @property
    def state(self) -> BreakState:
        return _STATE[self]


_STATE = {
    EventKind.OPENED: BreakState.OPEN,
    EventKind.ASSIGNED: BreakState.ASSIGNED,
    EventKind.RELEASED: BreakState.OPEN,
    EventKind.PROPOSED: BreakState.PROPOSED,
    EventKind.REJECTED: BreakState.OPEN,
    EventKind.APPROVED: BreakState.APPROVED,
    EventKind.BOOKED: BreakState.CLOSED,
    EventKind.FAILED: BreakState.OPEN,
    EventKind.EXPLAINED: BreakState.CLOSED,
    EventKind.LATE_SIDE: BreakState.CLOSED,
    EventKind.REMATCHED: BreakState.CLOSED,
    EventKind.REOPENED: BreakState.OPEN,
}
_WORKED_ON = frozenset({BreakState.OPEN, BreakState.ASSIGNED})
ALLOWED_FROM: dict[EventKind, frozenset[BreakState]] = {
    EventKind.ASSIGNED: _WORKED_ON,
    EventKind.RELEASED: frozenset({BreakState.ASSIGNED}),
    EventKind.PROPOSED: _WORKED_ON,
    EventKind.REJECTED: frozenset({BreakState.PROPOSED}),
    EventKind.APPROVED: frozenset({BreakState.PROPOSED}),
    EventKind.BOOKED: frozenset({BreakState.APPROVED}),
    EventKind.FAILED: frozenset({BreakState.APPROVED}),
    EventKind.EXPLAINED: _WORKED_ON,
    EventKind.LATE_SIDE: _WORKED_ON,
    EventKind.REMATCHED: _WORKED_ON,
    EventKind.REOPENED: frozenset({BreakState.CLOSED}),
}
"""From which states a kind of event may follow. OPENED follows nothing."""


class DecisionKind(StrEnum):
    """What an officer may sign."""

    ASSIGN = "assign"
    RELEASE = "release"
    EXPLAIN = "explain"
    PROPOSE = "propose"
    APPROVE = "approve"
    REJECT = "reject"
    REMATCH = "rematch"
    REOPEN = "reopen"
    UNMATCH = "unmatch"


EVENT_OF: dict[DecisionKind, EventKind] = {
    DecisionKind.ASSIGN: EventKind.ASSIGNED,
    DecisionKind.RELEASE: EventKind.RELEASED,
    DecisionKind.EXPLAIN: EventKind.EXPLAINED,
    DecisionKind.PROPOSE: EventKind.PROPOSED,
    DecisionKind.APPROVE: EventKind.APPROVED,
    DecisionKind.REJECT: EventKind.REJECTED,
    DecisionKind.REMATCH: EventKind.REMATCHED,
    DecisionKind.REOPEN: EventKind.REOPENED,
    DecisionKind.UNMATCH: EventKind.OPENED,
}
_NEEDS_REASON = frozenset(
    {
        DecisionKind.EXPLAIN,
        DecisionKind.PROPOSE,
        DecisionKind.REJECT,
        DecisionKind.REMATCH,
        DecisionKind.REOPEN,
        DecisionKind.UNMATCH,
    }
)


class RepairKind(StrEnum):
    CLAIM = "claim"
    """A claim of one party on another, booked in the bridge's own books, to be paid elsewhere."""
    INSTRUCTION = "instruction"
    """A payment through the engine, on the ledger of the currency."""


@dataclass(frozen=True, slots=True)
class Officer:
    """A person who may decide on breaks of a participant (of all, if the participant is the bridge)."""

    name: str
    participant: ParticipantId


@dataclass(frozen=True, slots=True)
class Repair:
    """An adjustment: `payer` owes or pays `payee`. Amounts are minor units."""

    kind: RepairKind
    payer: ParticipantId
    payee: ParticipantId
    amount_minor: int
    currency: str


@dataclass(frozen=True, slots=True)
class DecisionDocument:
    """What an officer signs. `subject` is the break, or the run of a match to be undone; `sequence` the number of the
    break's last event that the officer has seen (0 of a run)."""

    decision: UUID
    kind: DecisionKind
    subject: UUID
    sequence: int
    reason: str = ""
    assignee: str | None = None
    repair: Repair | None = None
    """Of a proposal."""
    proposal: UUID | None = None
    """Of an approval or rejection: the proposal's decision."""
    breaks: tuple[UUID, ...] = ()
    """Of a rematch: further breaks whose lines belong to it."""
    positions: tuple[int, int] | None = None
    """Of an undone match: its first line on either side."""

    def to_json(self) -> dict[str, Any]:
        repair = self.repair
        return {
            "decision": ids.show("dec", self.decision),
            "kind": self.kind.value,
            "subject": ids.show("rec" if self.kind is DecisionKind.UNMATCH else "brk", self.subject),
            "sequence": self.sequence,
            "reason": self.reason,
            "assignee": self.assignee,
            "repair": None
            if repair is None
            else {
                "kind": repair.kind.value,
                "payer": repair.payer,
                "payee": repair.payee,
                "amount_minor": str(repair.amount_minor),
                "currency": repair.currency,
            },
            "proposal": None if self.proposal is None else ids.show("dec", self.proposal),
            "breaks": [ids.show("brk", item) for item in self.breaks],
            "positions": None if self.positions is None else list(self.positions),
        }


def sign_decision(document: DecisionDocument, *, key: PrivateKey) -> str:
    return jws.sign(jws.canonical_json(document.to_json()), key, typ=DECISION_TYPE)


def parse_decision(payload: bytes) -> DecisionDocument:
    """Raises ValueError for anything but the canonical form of one document."""
    try:
        value = strict_json.loads(payload)
        kind = DecisionKind(value["kind"])
        repair = value["repair"]
        document = DecisionDocument(
            decision=ids.parse("dec", value["decision"]),
            kind=kind,
            subject=ids.parse("rec" if kind is DecisionKind.UNMATCH else "brk", value["subject"]),
            sequence=int(value["sequence"]),
            reason=str(value["reason"]),
            assignee=None if value["assignee"] is None else str(value["assignee"]),
            repair=None
            if repair is None
            else Repair(
                RepairKind(repair["kind"]),
                ids.parse_participant(repair["payer"]),
                ids.parse_participant(repair["payee"]),
                int(repair["amount_minor"]),
                str(repair["currency"]),
            ),
            proposal=None if value["proposal"] is None else ids.parse("dec", value["proposal"]),
            breaks=tuple(ids.parse("brk", item) for item in value["breaks"]),
            positions=None if value["positions"] is None else (int(value["positions"][0]), int(value["positions"][1])),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ProblemError) as error:
        raise ValueError(f"not a decision: {type(error).__name__}") from None
    if jws.canonical_json(document.to_json()) != payload:
        raise ValueError("the decision is not spelt in its canonical form")
    return document


@dataclass(frozen=True, slots=True)
class Standing:
    """A break as it stands: the state after its last event, and who proposed, if somebody did."""

    state: BreakState
    sequence: int
    last: EventKind
    maker: str | None = None
    maker_key: str | None = None
    proposal: UUID | None = None


def decide(standing: Standing, document: DecisionDocument, officer: Officer, key: str) -> EventKind | R:
    """The event that a decision makes of a break, or why it does not. `key` is the thumbprint of the officer's key."""
    event = EVENT_OF[document.kind]
    if document.kind is DecisionKind.UNMATCH:
        return R.DECISION_INVALID
    if document.sequence != standing.sequence:
        return R.BREAK_HAS_MOVED_ON
    if standing.state not in ALLOWED_FROM[event]:
        return R.BREAK_STATE_WRONG
    if event is EventKind.REOPENED and standing.last is EventKind.BOOKED:
        return R.BREAK_STATE_WRONG
    if not is_complete(document):
        return R.DECISION_INVALID
    if event in (EventKind.APPROVED, EventKind.REJECTED) and document.proposal != standing.proposal:
        return R.BREAK_HAS_MOVED_ON
    # Four eyes: another person and another key. (A maker may withdraw the own proposal.)
    if event is EventKind.APPROVED and (officer.name == standing.maker or key == standing.maker_key):
        return R.FOUR_EYES
    return event


def is_complete(document: DecisionDocument) -> bool:
    """Has what its kind needs, and nothing else."""
    reason = document.reason.strip()
    if len(document.reason) > REASON_LENGTH_MAX or not document.reason.isprintable():
        return False
    if document.kind in _NEEDS_REASON and len(reason) < REASON_LENGTH_MIN:
        return False
    repair = document.repair
    if repair is not None and (repair.payer == repair.payee or not 0 < repair.amount_minor < 10**18):
        return False
    has = (
        document.assignee is not None,
        repair is not None,
        document.proposal is not None,
        document.positions is not None,
    )
    wanted = (
        document.kind is DecisionKind.ASSIGN,
        document.kind is DecisionKind.PROPOSE,
        document.kind in (DecisionKind.APPROVE, DecisionKind.REJECT),
        document.kind is DecisionKind.UNMATCH,
    )
    few = len(document.breaks) <= (REMATCHED_BREAKS_MAX if document.kind is DecisionKind.REMATCH else 0)
    return has == wanted and few and len(set(document.breaks)) == len(document.breaks)


@dataclass(frozen=True, slots=True)
class Event:
    """One step of a break's history."""

    sequence: int
    kind: EventKind
    actor: str
    """An officer's name; `bridge` for what follows from data."""
    at: datetime
    reason: str
    assignee: str | None = None
    decision: UUID | None = None
    token: str | None = None
    """The officer's signed decision."""
    run: UUID | None = None
    repair: UUID | None = None

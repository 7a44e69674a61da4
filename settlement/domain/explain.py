"""Why a settlement has not ended, what it waits for, and what will resolve it: an operator's answer, in plain words.

Pure: the facts come from the log as one reading of it. Sentences name parties, ledgers and legs, never a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kernel.ids import ParticipantId
from settlement.domain.escrow import Decision, LegState, SettlementState

PERSON_MARK = "A PERSON"
"""How the engine's own words begin when it halted for a contradiction (I5)."""
WAITS_SHOWN_MAX = 20
"""A netting settlement has hundreds of legs; nobody reads them all."""


@dataclass(frozen=True, slots=True)
class LegFacts:
    number: int
    ledger: str
    payer: ParticipantId
    state: LegState
    is_signed: bool
    """The payer's institution has authorised the leg."""


@dataclass(frozen=True, slots=True)
class GateFacts:
    kind: str
    reason: str
    not_before: datetime | None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """The lease. A settlement moves only while an engine renews it."""

    epoch: int
    holder: str
    renewed_at: datetime


@dataclass(frozen=True, slots=True)
class Facts:
    """One reading of the log. `waits_for` is what the engine wrote last, `reason` that of an ABORT."""

    state: SettlementState
    legs: Sequence[LegFacts]
    gates: Sequence[GateFacts] = ()
    is_started: bool = True
    waits_for: str = ""
    reason: str | None = None
    detail: str = ""
    decided_at: datetime | None = None
    prepared_at: datetime | None = None
    epoch: int | None = None
    """Of the engine that prepared it."""
    abort_requested_by: str | None = None
    engine: EngineFacts | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    why: str
    waits_for: tuple[str, ...]
    resolution: str
    needs_person: bool = False


def explain(
    facts: Facts, *, now: datetime, undecided_max: timedelta, engine_silent_after: timedelta
) -> Explanation | None:
    """None of a settlement that has ended. `undecided_max` is when the engine gives an undecided one up;
    an engine that has not renewed its lease for `engine_silent_after` counts as gone. At most WAITS_SHOWN_MAX things
    that it waits for are named, the most urgent first."""
    found = _explained(facts, now=now, undecided_max=undecided_max, engine_silent_after=engine_silent_after)
    if found is None or len(found.waits_for) <= WAITS_SHOWN_MAX:
        return found
    more = f"{len(found.waits_for) - WAITS_SHOWN_MAX:,} more of the kind"
    return replace(found, waits_for=(*found.waits_for[:WAITS_SHOWN_MAX], more))


def _explained(
    facts: Facts, *, now: datetime, undecided_max: timedelta, engine_silent_after: timedelta
) -> Explanation | None:
    silent = _silence(facts.engine, now, engine_silent_after)
    match facts.state:
        case SettlementState.SETTLED | SettlementState.CANCELLED:
            return None
        case SettlementState.RECEIVED:
            found = _received(facts)
        case SettlementState.PREPARED:
            found = _prepared(facts, undecided_max)
        case SettlementState.COMMITTED | SettlementState.ABORTED:
            found = _decided(facts)
    if facts.waits_for.startswith(PERSON_MARK):
        return Explanation(
            found.why,
            (facts.waits_for, *found.waits_for),
            "Call the ledger's operator: a leg stands against its decision (I5). The engine has halted and decides "
            "nothing more until a person has found out how, and starts it again.",
            needs_person=True,
        )
    if silent is not None:
        resolution = (
            "Start the settlement service: any engine that takes the lease recovers from the log alone, publishes "
            "what is decided and aborts what an earlier engine left undecided."
        )
        return Explanation(found.why, (silent, *found.waits_for), resolution, needs_person=True)
    return found


def _received(facts: Facts) -> Explanation:
    why = "Received and not begun: nobody was asked for anything and no money is reserved."
    if facts.abort_requested_by is not None:
        waits = f"the engine to write the ABORT that {facts.abort_requested_by} asked for"
        return Explanation(why, (waits,), "The engine's next round aborts it; no leg was ever held.")
    if facts.gates:
        waits_for = tuple(_gate(gate) for gate in facts.gates)
        by_itself = [gate.not_before for gate in facts.gates if gate.not_before is not None]
        if len(by_itself) == len(facts.gates):
            resolution = f"Its gates may open by themselves from {_shown(max(by_itself))}; then the engine takes it."
        else:
            kinds = " and ".join(sorted({gate.kind for gate in facts.gates if gate.not_before is None}))
            resolution = (
                f"When {kinds} lets it pass, the engine takes it by itself; or the operator gives it up (abort)."
            )
        return Explanation(why, waits_for, resolution)
    if not facts.is_started:
        return Explanation(why, ("its batch to be started",), "POST /v1/batches/{id}/run starts its batch.")
    return Explanation(
        why,
        ("its turn: an earlier wave, or a payer that does not answer now",),
        "The engine takes it by priority and order of submission once the payers before it answer.",
    )


def _prepared(facts: Facts, undecided_max: timedelta) -> Explanation:
    held = [leg for leg in facts.legs if leg.state is LegState.HELD]
    unsigned = [leg for leg in facts.legs if not leg.is_signed and leg.state is LegState.PENDING]
    unheld = [leg for leg in facts.legs if leg.is_signed and leg.state is LegState.PENDING]
    refused = [leg for leg in facts.legs if leg.state is LegState.REFUSED]
    money = f"{len(held)} of {len(facts.legs)} legs are held" if held else "no leg is known to be held"
    why = f"Undecided: {money}. Nothing is final; whatever happens now, all legs post or none does."
    waits_for = [f"{leg.payer} to sign leg {leg.number} on {leg.ledger}" for leg in unsigned]
    waits_for += [f"ledger {leg.ledger} to hold leg {leg.number}" for leg in unheld if not unsigned]
    if facts.waits_for:
        waits_for.append(facts.waits_for)
    if facts.abort_requested_by is not None:
        waits = f"the engine to write the ABORT that {facts.abort_requested_by} asked for"
        return Explanation(why, (waits,), "The engine's next round aborts it, unless COMMIT was written before.")
    if facts.engine is not None and facts.epoch is not None and facts.epoch < facts.engine.epoch:
        waits = f"the engine of epoch {facts.engine.epoch} to recover: epoch {facts.epoch} ended before it decided"
        return Explanation(why, (waits,), "Recovery writes ABORT (no decision means abort) and voids every hold.")
    if refused:
        numbers = ", ".join(str(leg.number) for leg in refused)
        return Explanation(
            why, (f"the ABORT of this round: leg {numbers} was refused",), "The engine's next round aborts it."
        )
    if not waits_for:
        return Explanation(why, ("the decision of this round",), "Every leg is held: the next round commits it.")
    until = "" if facts.prepared_at is None else f" at {_shown(facts.prepared_at + undecided_max)}"
    resolution = (
        "The engine asks again by itself: when all have answered it commits, at the first refusal it aborts. "
        f"Without an answer it gives up{until}; the operator may give it up before (abort)."
    )
    return Explanation(why, tuple(waits_for), resolution)


def _decided(facts: Facts) -> Explanation:
    decision = Decision.COMMIT if facts.state is SettlementState.COMMITTED else Decision.ABORT
    ended, verb = (LegState.POSTED, "post") if decision is Decision.COMMIT else (LegState.VOIDED, "void")
    missing = [leg for leg in facts.legs if leg.state is not ended]
    done = f"{len(facts.legs) - len(missing)} of {len(facts.legs)} legs are {ended.value}"
    at = "" if facts.decided_at is None else f" since {_shown(facts.decided_at)}"
    if decision is Decision.COMMIT:
        why = f"Final{at}: COMMIT is in the decision log. {done}; nothing can undo it."
        anybody = "With the published secret anybody may post them, the payees' banks too."
    else:
        reason = f" ({facts.reason}{': ' + facts.detail if facts.detail else ''})" if facts.reason else ""
        why = f"Aborted{at}{reason}: ABORT is in the decision log. {done}; no leg can post any more."
        anybody = "Until then the money of a held leg stays reserved; no leg of it can post."
    waits_for = [f"ledger {leg.ledger} to {verb} leg {leg.number}" for leg in missing]
    if facts.waits_for:
        waits_for.append(facts.waits_for)
    ledgers = ", ".join(sorted({leg.ledger for leg in missing})) or "the ledgers"
    resolution = f"The engine repeats it until {ledgers} answers, after any crash too. {anybody}"
    return Explanation(why, tuple(waits_for), resolution)


def _gate(gate: GateFacts) -> str:
    when = "" if gate.not_before is None else f" (not before {_shown(gate.not_before)})"
    return f"the {gate.kind} gate: {gate.reason}{when}"


def _silence(engine: EngineFacts | None, now: datetime, after: timedelta) -> str | None:
    if engine is None:
        return "an engine: none has ever taken the lease"
    silent = now - engine.renewed_at
    if silent < after:
        return None
    return f"an engine: {engine.holder} (epoch {engine.epoch}) has not renewed its lease for {_seconds(silent)}"


def _seconds(span: timedelta) -> str:
    return f"{int(span.total_seconds()):,} s"


def _shown(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")

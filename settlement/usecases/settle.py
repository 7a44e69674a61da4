"""The atomic transfer engine: decision escrow over a wave of settlements at once.

Its steps are those of settlement.domain.escrow, by number. Whatever raises in `tick` (the database away, a commit of
unknown outcome, a lease lost) ends this engine's epoch: `start` takes a new one and recovers from the log alone. So a
crash and an error are one case, and memory is never believed after either.
"""

from __future__ import annotations

import logging
import secrets as entropy_source
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

from kernel.clock import Clock
from kernel.errors import InvariantBroken
from settlement.domain.escrow import Decision, Leg, LegState, Secrets, decide, fresh_secrets
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import AuthorisationOutcome, Authorised, Authoriser, leg_order
from settlement.islands.booked import Booked
from settlement.islands.port import (
    Contradiction,
    Ended,
    EndOrder,
    EndOutcome,
    Held,
    Island,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)
from settlement.store.decision_log import Decided, Deposed, LegUpdate, Settlement, Verdict

log = logging.getLogger("jiaozi.settlement")

WAVE_SETTLEMENTS = 250
"""Settlements persisted, held and decided together: bulk calls of 500 legs, a decision every fraction of a second."""
OPEN_SETTLEMENTS_MAX = 2_000
"""Undecided settlements at once; above it no new wave starts, so a lost island reserves a bounded amount of money."""
WAITING_PER_PAYER_MAX = 200
"""Settlements open at once that wait for one payer to sign; above it no wave takes more of that payer's, so that one
silent institution cannot fill OPEN_SETTLEMENTS_MAX. A wave may overshoot it once."""
ANSWER_WAIT_SECONDS = 1.0
"""How long a round waits for the calls it made. A call that takes longer goes on beside the rounds, its answer is used
when it is there, and its place is not asked again before: no party holds up the publishing of decided secrets."""
UNFINISHED_MAX = 10_000
"""Decided settlements in memory at once after a start; the rest follow when these are done."""
UNDECIDED_MAX = timedelta(minutes=10)
"""How long a settlement may wait for a party that does not answer. Then it is aborted, which is always safe before a
decision: otherwise one silent institution could fill the bridge with waiting settlements."""
BACKOFF_FIRST = timedelta(milliseconds=100)
BACKOFF_MAX = timedelta(seconds=5)

Bearer = TypeVar("Bearer", "_Open", Decided)
Outcome = TypeVar("Outcome")
Key = TypeVar("Key")


class Log(Protocol):
    """What the engine asks of its log; `settlement.store.decision_log.DecisionLog` says what each promises."""

    def take_lease(self, *, holder: str, now: datetime) -> int: ...
    def renew_lease(self, *, epoch: int, now: datetime) -> None: ...
    def received(self, *, limit: int, without_payers: Collection[str] = ...) -> list[UUID]: ...
    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]: ...
    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None: ...
    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None: ...
    def decide(self, verdicts: Sequence[Verdict], *, epoch: int, now: datetime) -> None: ...
    def abort_requests(self) -> Collection[UUID]: ...
    def undecided_of_others(self, *, epoch: int) -> list[UUID]: ...
    def unfinished(self, ids: Sequence[UUID] | None = None, *, limit: int = ...) -> list[Decided]: ...
    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> Mapping[UUID, object]: ...


@dataclass(slots=True)
class _Open:
    """An undecided settlement of this epoch."""

    settlement: Settlement
    opened_at: datetime
    authorisations: dict[int, str] = field(default_factory=dict)
    refusal: Verdict | None = None
    waits_for: str = ""


@dataclass(slots=True)
class _Backoff:
    failures: int = 0
    due: datetime | None = None


@dataclass(slots=True)
class _Call:
    """A bulk call to one place."""

    legs: tuple[tuple[UUID, int], ...]
    future: Future[Sequence[Any]]
    is_awaited: bool = True
    """In the round that made it; later rounds only look."""


class Engine:
    """One epoch after another of the protocol. Not thread-safe: one thread calls `start` and then `tick`."""

    def __init__(
        self,
        *,
        log: Log,
        islands: Mapping[str, Island],
        authoriser: Authoriser,
        clock: Clock,
        holder: str,
        executor: Executor | None = None,
        institution_executor: Executor | None = None,
        answer_wait_seconds: float = ANSWER_WAIT_SECONDS,
        wave_settlements: int = WAVE_SETTLEMENTS,
        entropy: Callable[[int], bytes] = entropy_source.token_bytes,
    ) -> None:
        """`executor` lets calls to different islands run at once, and none hold up a round; None runs them in order.

        `institution_executor`, by default the same, is that of the payers' institutions: apart, so that silent ones do
        not take the threads that publish. A round waits three times `answer_wait_seconds` for others at most.
        """
        self._log = log
        self._islands = islands
        self._authoriser = authoriser
        self._clock = clock
        self._holder = holder
        self._executors = {"ledger": executor, "institution": institution_executor or executor}
        self._answer_wait_seconds = answer_wait_seconds
        self._under_way: dict[str, _Call] = {}
        self._wave_settlements = wave_settlements
        self._entropy = entropy
        self._epoch = 0
        self._is_more_unfinished = False
        self._open: dict[UUID, _Open] = {}
        self._decided: dict[UUID, Decided] = {}
        self._waits: dict[UUID, str] = {}
        self._shown: dict[UUID, str] = {}
        self._backoffs: defaultdict[str, _Backoff] = defaultdict(_Backoff)

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def holder(self) -> str:
        """Its name in the lease."""
        return self._holder

    # --- 5. recovery

    def start(self) -> None:
        """Take the lease, then recover: abort what no engine decided, and publish every decision again."""
        self._open.clear()
        self._decided.clear()
        self._waits.clear()
        self._shown.clear()
        self._backoffs.clear()
        self._epoch = self._log.take_lease(holder=self._holder, now=self._clock())
        # 5. No row means abort, and ABORT is written before its secret can be read (see DecisionLog.unfinished).
        undecided = self._log.undecided_of_others(epoch=self._epoch)
        given_up = self._log.abort_requests() if undecided else ()
        detail = "the engine that prepared it ended before it decided"
        for start in range(0, len(undecided), 1_000):
            chunk = undecided[start : start + 1_000]
            verdicts = [
                _given_up(key) if key in given_up else Verdict(key, Decision.ABORT, AbortReason.PRESUMED, detail)
                for key in chunk
            ]
            self._log.decide(verdicts, epoch=self._epoch, now=self._clock())
        self._load_unfinished()
        if undecided or self._decided:
            log.warning(
                "epoch %d: %d undecided settlements aborted, %d decided ones to finish",
                self._epoch,
                len(undecided),
                len(self._decided),
            )

    def _load_unfinished(self) -> None:
        found = self._log.unfinished(limit=UNFINISHED_MAX)
        self._decided = {decided.settlement.id: decided for decided in found}
        self._is_more_unfinished = len(found) == UNFINISHED_MAX

    # --- one round

    def tick(self) -> bool:
        """Do what can be done now; True if something moved. Raises whatever the log raises: then call `start` again."""
        if self._is_more_unfinished and not self._decided:
            self._load_unfinished()
        moved = self._publish()
        moved = self._take_wave() or moved
        self._note_given_up()
        moved = self._authorise() or moved
        moved = self._hold() or moved
        moved = self._decide() or moved
        self._show_waits()
        return moved

    def next_due(self) -> datetime | None:
        """When a party that did not answer is to be asked again; None if nothing waits."""
        due = [backoff.due for backoff in self._backoffs.values() if backoff.due is not None]
        return min(due) if due and (self._open or self._decided) else None

    def is_idle(self) -> bool:
        """Nothing undecided, nothing to publish (a received settlement may still wait in the log)."""
        return not self._open and not self._decided

    # --- 1. persist

    def _take_wave(self) -> bool:
        room = min(self._wave_settlements, OPEN_SETTLEMENTS_MAX - len(self._open))
        if room <= 0:
            return False
        received = self._log.received(limit=room, without_payers=self._slow_payers())
        if not received:
            return False
        # 1. Two fresh secrets each, stored before anybody hears of the settlement.
        made = {key: fresh_secrets(self._entropy) for key in received}
        for settlement in self._log.persist(made, epoch=self._epoch, now=self._clock()):
            self._open[settlement.id] = _Open(settlement, self._clock())
        return True

    def _note_given_up(self) -> None:
        """What the operator has given up is asked of nobody any more; `_decide` writes its ABORT in this round."""
        if self._open:
            for key in self._log.abort_requests():
                item = self._open.get(key)
                if item is not None and item.refusal is None:
                    item.refusal = _given_up(key)

    def _slow_payers(self) -> set[str]:
        """Payers that do not answer now, or for whose signature many settlements wait already."""
        now, waiting = self._clock(), Counter[str]()
        for item in self._open.values():
            unsigned = [leg for leg in item.settlement.legs if leg.number not in item.authorisations]
            waiting.update({str(leg.terms.payer) for leg in unsigned})
        slow = {payer for payer, count in waiting.items() if count >= WAITING_PER_PAYER_MAX}
        for name, backoff in self._backoffs.items():
            kind, _, payer = name.partition(" ")
            if kind == "institution" and backoff.due is not None and backoff.due > now:
                slow.add(payer)
        return slow

    # --- 2. place every leg as a hold

    def _authorise(self) -> bool:
        """2a. Every payer's institution signs the terms. Until all have, nothing is held and nobody's money waits."""
        asked: defaultdict[str, list[tuple[_Open, Leg]]] = defaultdict(list)
        for item in self._open.values():
            if item.refusal is None:
                for leg in item.settlement.legs:
                    if leg.number not in item.authorisations:
                        asked[leg.terms.payer].append((item, leg))
        updates: list[LegUpdate] = []
        moved = False
        for payer, legs, answers in self._ask(asked, self._authorise_at, "institution"):
            for (item, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Authorised(token):
                        item.authorisations[leg.number] = token
                        moved = True
                        updates.append(LegUpdate(leg.settlement, leg.number, leg.state, "", token))
                    case Refused(code, detail):
                        reason = _reason(code, AbortReason.AUTHORISATION_REFUSED)
                        self._refuse(item, leg, reason, f"{payer}: {detail or code}", updates)
                        moved = True
                    case Unknown(why):
                        item.waits_for = f"{payer} to sign its leg: {why}"
        self._log.record_legs(updates, epoch=self._epoch, now=self._clock())
        return moved

    def _authorise_at(self, payer: str, legs: Sequence[tuple[_Open, Leg]]) -> Sequence[AuthorisationOutcome]:
        orders = [leg_order(item.settlement.hold_orders, leg.number) for item, leg in legs]
        return self._authoriser.authorise(legs[0][1].terms.payer, orders)

    def _hold(self) -> bool:
        """2b. Every leg as a hold under both hashes, on all islands at once."""
        asked: defaultdict[str, list[tuple[_Open, Leg]]] = defaultdict(list)
        for item in self._open.values():
            if item.refusal is None and len(item.authorisations) == len(item.settlement.legs):
                for leg in item.settlement.legs:
                    if leg.state is LegState.PENDING:
                        asked[leg.terms.ledger].append((item, leg))
        updates: list[LegUpdate] = []
        moved = False
        for ledger, legs, answers in self._ask(asked, self._prepare_at, "ledger"):
            for (item, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Held():
                        _set_leg(item, leg.number, LegState.HELD)
                        updates.append(LegUpdate(leg.settlement, leg.number, LegState.HELD))
                        moved = True
                    case Refused(code, detail):
                        text = f"{ledger}: {code}{': ' + detail if detail else ''}"
                        self._refuse(item, leg, _reason(code, AbortReason.LEG_REFUSED), text, updates)
                        moved = True
                    case Unknown(why):
                        item.waits_for = f"ledger {ledger} to answer for leg {leg.number}: {why}"
        self._log.record_legs(updates, epoch=self._epoch, now=self._clock())
        return moved

    def _prepare_at(self, ledger: str, legs: Sequence[tuple[_Open, Leg]]) -> Sequence[PrepareOutcome]:
        holds = [SignedHold(item.settlement.hold_order(leg), item.authorisations[leg.number]) for item, leg in legs]
        island = self._islands.get(ledger)
        return [Unknown("no such ledger is configured")] * len(legs) if island is None else island.prepare(holds)

    def _refuse(self, item: _Open, leg: Leg, reason: AbortReason, detail: str, updates: list[LegUpdate]) -> None:
        """A definite no of one leg. The first one is the settlement's reason."""
        _set_leg(item, leg.number, LegState.REFUSED)
        updates.append(LegUpdate(leg.settlement, leg.number, LegState.REFUSED, detail))
        if item.refusal is None:
            item.refusal = Verdict(item.settlement.id, Decision.ABORT, reason, f"leg {leg.number}: {detail}")

    # --- 3. decide

    def _decide(self) -> bool:
        """3. COMMIT where every leg is held, ABORT where one was refused: one durable, fenced transaction."""
        verdicts: list[Verdict] = []
        for key, item in self._open.items():
            is_held = decide([leg.state for leg in item.settlement.legs]) is Decision.COMMIT
            if item.refusal is None and not is_held and self._clock() - item.opened_at > UNDECIDED_MAX:
                waited = f"given up after waiting for {item.waits_for or 'an answer'}"
                item.refusal = Verdict(key, Decision.ABORT, AbortReason.NO_ANSWER, waited)
            if item.refusal is not None:
                verdicts.append(item.refusal)
            elif is_held:
                verdicts.append(Verdict(key, Decision.COMMIT))
        if not verdicts:
            return False
        self._log.decide(verdicts, epoch=self._epoch, now=self._clock())
        # The secrets are read from the log, after the decision is durable; until here this process could not say them
        # to anybody: `persist` returned hashes only.
        keys = [verdict.settlement for verdict in verdicts]
        for decided in self._log.unfinished(keys):
            self._decided[decided.settlement.id] = decided
        for key in keys:
            del self._open[key]
        return True

    # --- 4. publish

    def _publish(self) -> bool:
        """4. The decided secret, and only that: post or void every hold with it. Anybody else may do the same."""
        asked: defaultdict[tuple[str, Decision], list[tuple[Decided, Leg]]] = defaultdict(list)
        for decided in self._decided.values():
            for leg in decided.settlement.legs:
                if leg.state not in (LegState.POSTED, LegState.VOIDED):
                    asked[leg.terms.ledger, decided.decision].append((decided, leg))
        ends: dict[UUID, tuple[Decision, dict[int, datetime]]] = {}
        now = self._clock()
        contradictions: list[str] = []
        for (ledger, decision), legs, answers in self._ask(asked, self._end_at, "ledger"):
            for (_, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Ended():
                        ended_at = (answer.booked_at if isinstance(answer, Booked) else None) or now
                        ends.setdefault(leg.settlement, (decision, {}))[1][leg.number] = ended_at
                    case Unknown(why):
                        self._waits[leg.settlement] = f"ledger {ledger} to {_verb(decision)} leg {leg.number}: {why}"
                    case Contradiction(why):
                        self._waits[leg.settlement] = f"A PERSON: I5: leg {leg.number} on {ledger}: {why}"
                        contradictions.append(f"settlement {leg.settlement}, leg {leg.number} on {ledger}: {why}")
        self._log.record_ends(ends, epoch=self._epoch, now=self._clock())
        for key, (decision, ended) in ends.items():
            self._note_ends(key, decision, ended)
        if contradictions:
            self._show_waits()
            raise InvariantBroken("I5", "; ".join(contradictions[:5]))
        return bool(ends)

    def _end_at(self, place: tuple[str, Decision], legs: Sequence[tuple[Decided, Leg]]) -> Sequence[EndOutcome]:
        ledger, decision = place
        orders = [
            EndOrder(decided.settlement.hold_order(leg), leg.end_id(decision, decided.secret), decided.secret)
            for decided, leg in legs
        ]
        island = self._islands.get(ledger)
        if island is None:
            return [Unknown("no such ledger is configured")] * len(legs)
        return island.fulfil(orders) if decision is Decision.COMMIT else island.cancel(orders)

    def _note_ends(self, key: UUID, decision: Decision, numbers: Collection[int]) -> None:
        state = LegState.POSTED if decision is Decision.COMMIT else LegState.VOIDED
        decided = self._decided[key]
        legs = tuple(replace(leg, state=state) if leg.number in numbers else leg for leg in decided.settlement.legs)
        if all(leg.state is state for leg in legs):
            del self._decided[key]
            self._waits.pop(key, None)
        else:
            self._decided[key] = replace(decided, settlement=replace(decided.settlement, legs=legs))

    # --- asking others

    def _ask(
        self,
        asked: Mapping[Key, list[tuple[Bearer, Leg]]],
        call: Callable[[Key, Sequence[tuple[Bearer, Leg]]], Sequence[Outcome]],
        kind: str,
    ) -> list[tuple[Key, list[tuple[Bearer, Leg]], Sequence[Outcome | Unknown]]]:
        """Each place's bulk call, those that are due, at once if there is an executor. Silence backs a place off.

        Bounded by `answer_wait_seconds`: what is not answered by then is Unknown, and the call goes on.
        """
        executor, now = self._executors[kind], self._clock()
        if executor is None:
            due = [(place, legs) for place, legs in asked.items() if self._is_due(f"{kind} {place}", now)]
            answered = [(place, legs, _guarded(call, place, legs)) for place, legs in due]
        else:
            for place, legs in asked.items():
                name = f"{kind} {place}"
                if name not in self._under_way and self._is_due(name, now):
                    numbers = tuple((leg.settlement, leg.number) for _, leg in legs)
                    self._under_way[name] = _Call(numbers, executor.submit(_guarded, call, place, legs))
            answered = self._collect(asked, kind)
        for place, _, answers in answered:
            name = f"{kind} {place}"
            backoff = self._backoffs[name]
            # One leg without an answer must not slow the others of its ledger: only silence as a whole backs off.
            if all(isinstance(answer, Unknown) for answer in answers):
                wait_time = min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(backoff.failures, 10))
                backoff.failures += 1
                backoff.due = self._clock() + wait_time
            else:
                backoff.failures, backoff.due = 0, None
        return answered

    def _is_due(self, name: str, now: datetime) -> bool:
        due = self._backoffs[name].due
        return due is None or due <= now

    def _collect(
        self, asked: Mapping[Key, list[tuple[Bearer, Leg]]], kind: str
    ) -> list[tuple[Key, list[tuple[Bearer, Leg]], Sequence[Any]]]:
        """The answers of the calls under way to these places, for the legs that are still asked for.

        A call may be of an earlier round, even of an earlier epoch: what it says of a leg is as true as it was then,
        and a leg that was decided or ended meanwhile is not asked for any more.
        """
        calls = {place: found for place in asked if (found := self._under_way.get(f"{kind} {place}")) is not None}
        wait([found.future for found in calls.values() if found.is_awaited], timeout=self._answer_wait_seconds)
        answered: list[tuple[Key, list[tuple[Bearer, Leg]], Sequence[Any]]] = []
        for place, found in calls.items():
            by_leg: dict[tuple[UUID, int], Any] = {}
            if found.future.done():
                del self._under_way[f"{kind} {place}"]
                by_leg = dict(zip(found.legs, found.future.result(), strict=True))
            else:
                found.is_awaited = False
                by_leg = dict.fromkeys(found.legs, Unknown("no answer yet"))
            legs = [(bearer, leg) for bearer, leg in asked[place] if (leg.settlement, leg.number) in by_leg]
            if legs:
                answered.append((place, legs, [by_leg[leg.settlement, leg.number] for _, leg in legs]))
        return answered

    def _show_waits(self) -> None:
        for key, item in self._open.items():
            if item.waits_for:
                self._waits[key] = item.waits_for
                item.waits_for = ""
        changed = {key: text for key, text in self._waits.items() if self._shown.get(key) != text}
        self._waits.clear()
        self._shown = {key: text for key, text in self._shown.items() if key in self._open or key in self._decided}
        self._log.record_waits(changed, epoch=self._epoch, now=self._clock())
        self._shown.update(changed)


def _guarded(
    call: Callable[[Key, Sequence[tuple[Bearer, Leg]]], Sequence[Outcome]],
    place: Key,
    legs: Sequence[tuple[Bearer, Leg]],
) -> Sequence[Outcome | Unknown]:
    """The call, with whatever one place makes it raise as that place's silence: no party ends everybody's epoch."""
    try:
        answers = call(place, legs)
    except (InvariantBroken, Deposed):
        raise
    except Exception as error:
        log.warning("the call of %s failed", place, exc_info=True)
        return [Unknown(f"the call failed: {type(error).__name__}")] * len(legs)
    if len(answers) != len(legs):
        return [Unknown("another number of answers than was asked for")] * len(legs)
    return answers


def _set_leg(item: _Open, number: int, state: LegState) -> None:
    legs = tuple(replace(leg, state=state) if leg.number == number else leg for leg in item.settlement.legs)
    item.settlement = replace(item.settlement, legs=legs)


def _reason(code: str, default: AbortReason) -> AbortReason:
    try:
        return AbortReason(code)
    except ValueError:
        return default


def _given_up(settlement: UUID) -> Verdict:
    return Verdict(settlement, Decision.ABORT, AbortReason.OPERATOR, "given up by the operator")


def _verb(decision: Decision) -> str:
    return "post" if decision is Decision.COMMIT else "void"

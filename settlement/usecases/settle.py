"""The atomic transfer engine: decision escrow over a wave of settlements at once.

Its steps are those of settlement.domain.escrow, by number. Whatever raises in `tick` (the database away, a commit of
unknown outcome, a lease lost) ends this engine's epoch: `start` takes a new one and recovers from the log alone. So a
crash and an error are one case, and memory is never believed after either.
"""

from __future__ import annotations

import logging
import secrets as entropy_source
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
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
WAITING_PER_PAYER_MAX = 400
"""Settlements open at once that wait for one payer to sign; above it no wave takes more of that payer's, so that one
silent institution cannot fill OPEN_SETTLEMENTS_MAX. A wave may overshoot it once."""
ANSWER_WAIT_SECONDS = 1.0
"""After this long a call counts as not answered yet. It goes on beside the rounds, its answer is used when it is there,
and its place is not asked again before: no party holds up the publishing of decided secrets."""
LOOK_AGAIN_SECONDS = 0.5
LOOK_SHARE = 0.05
"""While payers are passed over and calls are under way, the queue is looked through for others' settlements no more
often than this, and for no larger share of the time, if the last look found fewer than there was room for: each look
reads every settlement that waits."""
GIVEN_UP_SECONDS = 0.1
"""How often the log is asked for what the operator has given up, when rounds overlap."""
ROUND_WAIT_SECONDS = 0.2
"""A round that can do nothing waits as long at most for the next answer: new work is not noticed meanwhile."""
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
    def received(self, *, limit: int, now: datetime, without_payers: Collection[str] = ...) -> list[UUID]: ...
    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]: ...
    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None: ...
    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None: ...
    def decide(
        self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = ..., *, epoch: int, now: datetime
    ) -> None: ...
    def published(self, ids: Sequence[UUID]) -> Mapping[UUID, tuple[Decision, bytes]]: ...
    def abort_requests(self) -> Collection[UUID]: ...
    def undecided_of_others(self, *, epoch: int) -> list[UUID]: ...
    def unfinished(self, *, limit: int = ...) -> list[Decided]: ...
    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> Mapping[UUID, object]: ...


@dataclass(slots=True)
class _Open:
    """An undecided settlement of this epoch."""

    settlement: Settlement
    opened_at: datetime
    unheld: int
    """Legs without a hold that is known."""
    authorisations: dict[int, str] = field(default_factory=dict)
    news: dict[int, LegUpdate] = field(default_factory=dict)
    """Of its legs, by number: what the log has not been told yet. It is told with the decision, or as soon as the
    settlement has to wait for somebody: an engine that dies before has decided nothing, and its successor voids every
    leg, whatever the log knew of it."""
    refusal: Verdict | None = None
    waits_for: str = ""

    @property
    def is_signed(self) -> bool:
        return len(self.authorisations) == len(self.settlement.legs)

    def note(self, update: LegUpdate) -> None:
        before = self.news.get(update.number)
        if before is not None and update.authorisation is None:
            update = replace(update, authorisation=before.authorisation)
        self.news[update.number] = update


@dataclass(slots=True)
class _Backoff:
    failures: int = 0
    due: datetime | None = None


@dataclass(slots=True)
class _Call:
    """A bulk call to one place."""

    place: object
    legs: tuple[tuple[UUID, int], ...]
    future: Future[Sequence[Any]]
    began: float
    """By the monotonic clock, in seconds."""
    is_late: bool = False
    """It was counted as a silence of its place."""


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
        log_executor: Executor | None = None,
        answer_wait_seconds: float = ANSWER_WAIT_SECONDS,
        wave_settlements: int = WAVE_SETTLEMENTS,
        entropy: Callable[[int], bytes] = entropy_source.token_bytes,
    ) -> None:
        """`executor` lets calls to different islands run at once, and none hold up a round; None runs them in order.

        `institution_executor`, by default the same, is that of the payers' institutions: apart, so that silent ones do
        not take the threads that publish. With an executor settlements overlap: while some are signed, others are held,
        published, and written to the log; a call is late after `answer_wait_seconds`. `log_executor`, of three threads:
        what is written beside the rounds, one write of a kind at a time.
        """
        self._log = log
        self._islands = islands
        self._authoriser = authoriser
        self._clock = clock
        self._holder = holder
        self._executors = {"ledger": executor, "institution": institution_executor or executor}
        self._log_executor = log_executor
        self._writes: dict[str, Future[Any]] = {}
        """What is being written: "take" the next wave, "decide", "record" ends."""
        self._ends: dict[UUID, tuple[Decision, dict[int, datetime]]] = {}
        """Posted or voided, and not given to the log yet."""
        self._answer_wait_seconds = answer_wait_seconds
        self._under_way: dict[str, _Call] = {}
        self._asked: set[str] = set()
        """Places that this round has a question for."""
        self._asked_without: set[str] = set()
        """Payers that the last look at the queue passed over."""
        self._passed_over: set[str] = set()
        """Payers without whose settlements the queue had fewer than there was room for, when it was last looked at."""
        self._look_again_at = 0.0
        self._ask_given_up_at = 0.0
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
        # A write of the last epoch may still be under way: the lease waits for it, or it finds itself deposed.
        self._writes.clear()
        self._ends.clear()
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
        self._asked.clear()
        if self._is_more_unfinished and not (self._decided or self._ends or self._writes):
            self._load_unfinished()
        moved = self._publish()
        moved = self._take_wave() or moved
        self._note_given_up()
        moved = self._authorise() or moved
        moved = self._hold() or moved
        moved = self._decide() or moved
        self._show_waits()
        return moved or self._is_answered()

    def next_due(self) -> datetime | None:
        """When a party that did not answer is to be asked again; None if nothing waits."""
        due = [backoff.due for backoff in self._backoffs.values() if backoff.due is not None]
        return min(due) if due and (self._open or self._decided) else None

    def is_idle(self) -> bool:
        """Nothing undecided, nothing to publish (a received settlement may still wait in the log)."""
        return not (self._open or self._decided or self._ends or self._writes)

    # --- writing to the log

    def _beside(self, kind: str, write: Callable[[], Outcome]) -> Outcome | None:
        """What `write` returns: at once, or with an executor in a later round that asks for the same kind; None until
        then. Raises what it raises, which ends the epoch as ever."""
        if self._log_executor is None:
            return write()
        future = self._writes.get(kind)
        if future is None:
            self._writes[kind] = self._log_executor.submit(write)
            return None
        if not future.done():
            return None
        del self._writes[kind]
        result: Outcome = future.result()
        return result

    # --- 1. persist

    def _take_wave(self) -> bool:
        room, slow = 0, set[str]()
        if "take" not in self._writes:
            room = min(self._wave_settlements, OPEN_SETTLEMENTS_MAX - len(self._open))
            slow = self._slow_payers()
            is_in_vain = slow == self._passed_over and time.monotonic() < self._look_again_at
            if room <= 0 or (slow and self._under_way and is_in_vain):
                return False
            self._asked_without = slow
        epoch = self._epoch
        taken = self._beside("take", lambda: self._persist_next(room, slow, epoch=epoch))
        if taken is None:
            return False
        looked_seconds, is_all_there_was, settlements = taken
        if self._asked_without:
            self._passed_over = self._asked_without if is_all_there_was else set()
            self._look_again_at = time.monotonic() + max(LOOK_AGAIN_SECONDS, looked_seconds / LOOK_SHARE)
        now = self._clock()
        for settlement in settlements:
            self._open[settlement.id] = _Open(settlement, now, len(settlement.legs))
        return bool(settlements)

    def _persist_next(self, room: int, slow: Collection[str], *, epoch: int) -> tuple[float, bool, list[Settlement]]:
        """How long the look at the queue took, whether it had fewer than there is room for, and what was taken."""
        began = time.monotonic()
        received = self._log.received(limit=room, now=self._clock(), without_payers=slow)
        looked = time.monotonic() - began
        # 1. Two fresh secrets each, stored before anybody hears of the settlement.
        made = {key: fresh_secrets(self._entropy) for key in received}
        taken = self._log.persist(made, epoch=epoch, now=self._clock()) if made else []
        return looked, len(received) < room, taken

    def _note_given_up(self) -> None:
        """What the operator has given up is asked of nobody any more; `_decide` writes its ABORT in this round. The log
        is asked now and then: a round that overlaps others may take a few milliseconds."""
        if self._open and (self._log_executor is None or time.monotonic() >= self._ask_given_up_at):
            self._ask_given_up_at = time.monotonic() + GIVEN_UP_SECONDS
            for key in self._log.abort_requests():
                item = self._open.get(key)
                if item is not None and item.refusal is None:
                    item.refusal = _given_up(key)

    def _slow_payers(self) -> set[str]:
        """Payers that do not answer now, or for whose signature many settlements wait already."""
        now, waiting = self._clock(), Counter[str]()
        for item in self._open.values():
            if not item.is_signed:
                unsigned = [leg for leg in item.settlement.legs if leg.number not in item.authorisations]
                waiting.update({str(leg.terms.payer) for leg in unsigned})
        slow = {payer for payer, count in waiting.items() if count >= WAITING_PER_PAYER_MAX}
        silent = [name for name, backoff in self._backoffs.items() if backoff.due is not None and backoff.due > now]
        silent += [name for name, call in self._under_way.items() if call.is_late]
        for name in silent:
            kind, _, payer = name.partition(" ")
            if kind == "institution":
                slow.add(payer)
        return slow

    # --- 2. place every leg as a hold

    def _authorise(self) -> bool:
        """2a. Every payer's institution signs the terms. Until all have, nothing is held and nobody's money waits."""
        asked: defaultdict[str, list[tuple[_Open, Leg]]] = defaultdict(list)
        busy = self._busy("institution")
        for item in self._open.values():
            if item.refusal is None and not item.is_signed:
                for leg in item.settlement.legs:
                    if leg.number not in item.authorisations and not self._is_busy(leg.terms.payer, busy):
                        asked[leg.terms.payer].append((item, leg))
        moved = False
        for payer, legs, answers in self._ask(asked, self._authorise_at, "institution"):
            for (item, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Authorised(token):
                        item.authorisations[leg.number] = token
                        moved = True
                        item.note(LegUpdate(leg.settlement, leg.number, leg.state, "", token))
                    case Refused(code, detail):
                        reason = _reason(code, AbortReason.AUTHORISATION_REFUSED)
                        self._refuse(item, leg, reason, f"{payer}: {detail or code}")
                        moved = True
                    case Unknown(why):
                        item.waits_for = f"{payer} to sign its leg: {why}"
        return moved

    def _authorise_at(self, payer: str, legs: Sequence[tuple[_Open, Leg]]) -> Sequence[AuthorisationOutcome]:
        orders = [leg_order(item.settlement.hold_orders, leg.number) for item, leg in legs]
        return self._authoriser.authorise(legs[0][1].terms.payer, orders)

    def _hold(self) -> bool:
        """2b. Every leg as a hold under both hashes, on all islands at once."""
        asked: defaultdict[str, list[tuple[_Open, Leg]]] = defaultdict(list)
        busy = self._busy("ledger")
        for item in self._open.values():
            if item.unheld and item.refusal is None and item.is_signed:
                for leg in item.settlement.legs:
                    if leg.state is LegState.PENDING and not self._is_busy(leg.terms.ledger, busy):
                        asked[leg.terms.ledger].append((item, leg))
        moved = False
        for ledger, legs, answers in self._ask(asked, self._prepare_at, "ledger"):
            for (item, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Held():
                        _set_leg(item, leg.number, LegState.HELD)
                        item.unheld -= 1
                        item.note(LegUpdate(leg.settlement, leg.number, LegState.HELD))
                        moved = True
                    case Refused(code, detail):
                        text = f"{ledger}: {code}{': ' + detail if detail else ''}"
                        self._refuse(item, leg, _reason(code, AbortReason.LEG_REFUSED), text)
                        moved = True
                    case Unknown(why):
                        item.waits_for = f"ledger {ledger} to answer for leg {leg.number}: {why}"
        return moved

    def _prepare_at(self, ledger: str, legs: Sequence[tuple[_Open, Leg]]) -> Sequence[PrepareOutcome]:
        holds = [SignedHold(item.settlement.hold_order(leg), item.authorisations[leg.number]) for item, leg in legs]
        island = self._islands.get(ledger)
        return [Unknown("no such ledger is configured")] * len(legs) if island is None else island.prepare(holds)

    def _refuse(self, item: _Open, leg: Leg, reason: AbortReason, detail: str) -> None:
        """A definite no of one leg. The first one is the settlement's reason."""
        _set_leg(item, leg.number, LegState.REFUSED)
        item.note(LegUpdate(leg.settlement, leg.number, LegState.REFUSED, detail))
        if item.refusal is None:
            item.refusal = Verdict(item.settlement.id, Decision.ABORT, reason, f"leg {leg.number}: {detail}")

    # --- 3. decide

    def _decide(self) -> bool:
        """3. COMMIT where every leg is held, ABORT where one was refused: one durable, fenced transaction."""
        verdicts = [] if "decide" in self._writes else self._verdicts()
        if not verdicts and "decide" not in self._writes:
            return False
        news = [update for verdict in verdicts for update in self._open[verdict.settlement].news.values()]
        epoch = self._epoch
        published = self._beside("decide", lambda: self._write_decisions(verdicts, news, epoch=epoch))
        if published is None:
            return False
        for key, (decision, secret) in published.items():
            self._decided[key] = Decided(self._open.pop(key).settlement, decision, secret)
        return True

    def _verdicts(self) -> list[Verdict]:
        verdicts: list[Verdict] = []
        now = self._clock()
        for key, item in self._open.items():
            is_held = item.is_signed and decide([leg.state for leg in item.settlement.legs]) is Decision.COMMIT
            if item.refusal is None and not is_held and now - item.opened_at > UNDECIDED_MAX:
                waited = f"given up after waiting for {item.waits_for or 'an answer'}"
                item.refusal = Verdict(key, Decision.ABORT, AbortReason.NO_ANSWER, waited)
            if item.refusal is not None:
                verdicts.append(item.refusal)
            elif is_held:
                verdicts.append(Verdict(key, Decision.COMMIT))
        return verdicts

    def _write_decisions(
        self, verdicts: Sequence[Verdict], news: Sequence[LegUpdate], *, epoch: int
    ) -> Mapping[UUID, tuple[Decision, bytes]]:
        self._log.decide(verdicts, news, epoch=epoch, now=self._clock())
        # The secrets are read from the log, after the decision is durable; until here this process could not say them
        # to anybody: `persist` returned hashes only.
        return self._log.published([verdict.settlement for verdict in verdicts])

    # --- 4. publish

    def _publish(self) -> bool:
        """4. The decided secret, and only that: post or void every hold with it. Anybody else may do the same."""
        asked: defaultdict[tuple[str, Decision], list[tuple[Decided, Leg]]] = defaultdict(list)
        busy = self._busy("ledger")
        for decided in self._decided.values():
            for leg in decided.settlement.legs:
                place = leg.terms.ledger, decided.decision
                if leg.state not in (LegState.POSTED, LegState.VOIDED) and not self._is_busy(place, busy):
                    asked[place].append((decided, leg))
        ends = self._ends
        ended_now: dict[UUID, tuple[Decision, set[int]]] = {}
        now = self._clock()
        contradictions: list[str] = []
        for (ledger, decision), legs, answers in self._ask(asked, self._end_at, "ledger"):
            for (_, leg), answer in zip(legs, answers, strict=True):
                match answer:
                    case Ended():
                        ended_at = (answer.booked_at if isinstance(answer, Booked) else None) or now
                        ends.setdefault(leg.settlement, (decision, {}))[1][leg.number] = ended_at
                        ended_now.setdefault(leg.settlement, (decision, set()))[1].add(leg.number)
                    case Unknown(why):
                        self._waits[leg.settlement] = f"ledger {ledger} to {_verb(decision)} leg {leg.number}: {why}"
                    case Contradiction(why):
                        self._waits[leg.settlement] = f"A PERSON: I5: leg {leg.number} on {ledger}: {why}"
                        contradictions.append(f"settlement {leg.settlement}, leg {leg.number} on {ledger}: {why}")
        for key, (decision, numbers) in ended_now.items():
            self._note_ends(key, decision, numbers)
        if contradictions:
            self._log.record_ends(ends, epoch=self._epoch, now=self._clock())
            self._show_waits()
            raise InvariantBroken("I5", "; ".join(contradictions[:5]))
        return self._record_ends() or bool(ended_now)

    def _record_ends(self) -> bool:
        """To the log, beside the rounds. If this engine dies before, its successor posts what is posted: it repeats."""
        epoch, ends = self._epoch, {}
        if "record" not in self._writes:
            if not self._ends:
                return False
            ends, self._ends = self._ends, {}
        return self._beside("record", lambda: self._log.record_ends(ends, epoch=epoch, now=self._clock())) is not None

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
        legs = [leg.in_state(state) if leg.number in numbers else leg for leg in decided.settlement.legs]
        if all(leg.state is state for leg in legs):
            del self._decided[key]
            self._waits.pop(key, None)
        else:
            self._decided[key] = replace(decided, settlement=decided.settlement.with_legs(legs))

    # --- asking others

    def _ask(
        self,
        asked: Mapping[Key, list[tuple[Bearer, Leg]]],
        call: Callable[[Key, Sequence[tuple[Bearer, Leg]]], Sequence[Outcome]],
        kind: str,
    ) -> list[tuple[Key, list[tuple[Bearer, Leg]], Sequence[Outcome | Unknown]]]:
        """Each place's bulk call, those that are due. Silence backs a place off.

        With an executor calls are begun here and answered in a later round; what is not answered within
        `answer_wait_seconds` is Unknown, and the call goes on.
        """
        executor, now = self._executors[kind], self._clock()
        if executor is None:
            due = [(place, legs) for place, legs in asked.items() if self._is_due(f"{kind} {place}", now)]
            answered = [(place, legs, _guarded(call, place, legs)) for place, legs in due]
        else:
            for place, legs in asked.items():
                name = f"{kind} {place}"
                self._asked.add(name)
                if name not in self._under_way and self._is_due(name, now):
                    numbers = tuple((leg.settlement, leg.number) for _, leg in legs)
                    future = executor.submit(_guarded, call, place, legs)
                    self._under_way[name] = _Call(place, numbers, future, time.monotonic())
            answered = self._collect(asked, kind)
        for place, _, answers in answered:
            name = f"{kind} {place}"
            backoff = self._backoffs[name]
            call_under_way = self._under_way.get(name)
            if call_under_way is not None:  # it is silent, and once: however many rounds have found it so
                if call_under_way.is_late:
                    continue
                call_under_way.is_late = True
            # One leg without an answer must not slow the others of its ledger: only silence as a whole backs off.
            if all(isinstance(answer, Unknown) for answer in answers):
                wait_time = min(BACKOFF_MAX, BACKOFF_FIRST * 2 ** min(backoff.failures, 10))
                backoff.failures += 1
                backoff.due = self._clock() + wait_time
            else:
                backoff.failures, backoff.due = 0, None
        return answered

    def _busy(self, kind: str) -> Mapping[object, str]:
        """Places whose call has no answer yet and is not late, with their names: nothing is to be done about them."""
        return {
            call.place: name
            for name, call in self._under_way.items()
            if name.startswith(kind) and not call.future.done() and not self._is_late(call)
        }

    def _is_busy(self, place: object, busy: Mapping[object, str]) -> bool:
        """And if so, that this round has a question for it."""
        name = busy.get(place)
        if name is None:
            return False
        self._asked.add(name)
        return True

    def _is_late(self, call: _Call) -> bool:
        return time.monotonic() - call.began >= self._answer_wait_seconds

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
        answered: list[tuple[Key, list[tuple[Bearer, Leg]], Sequence[Any]]] = []
        for place, found in calls.items():
            by_leg: dict[tuple[UUID, int], Any] = {}
            if found.future.done():
                del self._under_way[f"{kind} {place}"]
                by_leg = dict(zip(found.legs, found.future.result(), strict=True))
            elif self._is_late(found):
                # For those too that came since and wait behind it.
                later = [(leg.settlement, leg.number) for _, leg in asked[place]]
                by_leg = dict.fromkeys(later, Unknown("no answer yet"))
            legs = [(bearer, leg) for bearer, leg in asked[place] if (leg.settlement, leg.number) in by_leg]
            if legs:
                answered.append((place, legs, [by_leg[leg.settlement, leg.number] for _, leg in legs]))
        return answered

    def _is_answered(self) -> bool:
        """Wait for the next answer that this round has a question for. What is not asked for any more is let go: every
        leg without an end is asked for in each round, so the call was about what was decided meanwhile."""
        for name in [name for name in self._under_way if name not in self._asked]:
            if self._under_way[name].future.done():
                del self._under_way[name]
        calls = [found.future for name, found in self._under_way.items() if name in self._asked]
        calls += self._writes.values()
        seconds = min(ROUND_WAIT_SECONDS, self._answer_wait_seconds)
        return bool(calls and wait(calls, seconds, FIRST_COMPLETED).done)

    def _show_waits(self) -> None:
        news: list[LegUpdate] = []
        for key, item in self._open.items():
            if item.waits_for:
                self._waits[key] = item.waits_for
                item.waits_for = ""
                news += item.news.values()
                item.news.clear()
        self._log.record_legs(news, epoch=self._epoch, now=self._clock())
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
    legs = [leg.in_state(state) if leg.number == number else leg for leg in item.settlement.legs]
    item.settlement = item.settlement.with_legs(legs)


def _reason(code: str, default: AbortReason) -> AbortReason:
    try:
        return AbortReason(code)
    except ValueError:
        return default


def _given_up(settlement: UUID) -> Verdict:
    return Verdict(settlement, Decision.ABORT, AbortReason.OPERATOR, "given up by the operator")


def _verb(decision: Decision) -> str:
    return "post" if decision is Decision.COMMIT else "void"

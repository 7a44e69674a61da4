"""A world in which the real engine runs by a plan of faults: virtual clock, network, log and islands, in one thread.

The engine (`settlement.usecases.settle.Engine`) is the product's own. Around it every durable write and every send is
a *step*, counted from 0. A plan says at which steps what goes wrong, so a run is repeated exactly by its scenario and
plan. After the plan all faults end, and the world must come to rest.

What is checked, at each step and at rest:

- split: no settlement ever has a posted and a voided leg, and no leg ends without, or against, a durable decision (I5);
- secret: only the decided secret is ever sent, and only after its decision is durable;
- fence: no engine writes after another took the lease;
- lost: a durable decision is never another later;
- rest: every settlement ends as decided, on the islands as in the log, and nothing stays reserved, not even when a
  message of long ago arrives at the very end;
- conserved: on each island balances add up to what was issued (I2), none below zero with holds counted (I3).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from kernel.clock import ManualClock
from kernel.database import OutcomeUnknown
from kernel.errors import InvariantBroken
from kernel.ids import AccountNumber, ParticipantId
from settlement.domain.escrow import Decision, HoldOrder, LegTerms, Secrets, SettlementState
from settlement.islands.authorisers import AuthorisationOutcome, Authorised, LegOrder
from settlement.islands.fake import FakeIsland
from settlement.islands.port import (
    EndOrder,
    EndOutcome,
    HoldStanding,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)
from settlement.simulation.memory_log import MemoryLog
from settlement.store.decision_log import Decided, Deposed, LegUpdate, Settlement, Verdict
from settlement.usecases.settle import Engine

Answer = TypeVar("Answer")

START = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)
STEPS_MAX = 2_000
ROUNDS_MAX = 120
_PAUSE = timedelta(seconds=6)
"""More than the engine's longest backoff."""
_PARTITION_STEPS = 6
_DELAY_STEPS = 3


class Fault(StrEnum):
    """What may go wrong at one step. Of a write, of a send, or of both."""

    CRASH_BEFORE = "crash-before"
    CRASH_AFTER = "crash-after"
    UNKNOWN_WRITTEN = "outcome-unknown-written"
    """COMMIT was sent and the connection died; it is durable."""
    UNKNOWN_LOST = "outcome-unknown-lost"
    FAILED = "failed"
    """The database says no; nothing is written."""
    DEPOSED_BEFORE = "deposed-before"
    """The engine stops for long; another takes the lease and runs a few rounds; then this one goes on."""
    DEPOSED_LONG = "deposed-long"
    """The same, and the other runs until it has nothing left to do."""
    GIVEN_UP = "given-up"
    """The operator aborts every settlement."""
    LATE_CLOCK = "late-clock"
    """The clock jumps past the time after which an undecided settlement is given up."""
    LOSE_REQUEST = "lose-request"
    LOSE_ANSWER = "lose-answer"
    DUPLICATE = "duplicate"
    ECHO = "echo"
    """The request arrives, and once more at the very end."""
    DELAY = "delay"
    """The request arrives some steps later, behind others."""
    LATE = "late"
    """The request arrives when everything is over."""
    PARTITION = "partition"
    """The island cannot be reached for some steps."""
    REFUSE = "refuse"
    """A definite no to a hold or a signature."""
    WATCHTOWER = "watchtower"
    """Somebody else ends the other legs with the published secret first."""
    RIVAL = "rival"
    """Another engine takes the lease while this one stands still; both are alive, and SWITCH lets the other go on."""
    SWITCH = "switch"


_ANYWHERE = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.DEPOSED_BEFORE, Fault.DEPOSED_LONG)
_OF_MESSAGES = (
    Fault.LOSE_REQUEST,
    Fault.LOSE_ANSWER,
    Fault.DUPLICATE,
    Fault.ECHO,
    Fault.DELAY,
    Fault.LATE,
    Fault.PARTITION,
)
_OF_WRITES = (
    *_ANYWHERE,
    Fault.UNKNOWN_WRITTEN,
    Fault.UNKNOWN_LOST,
    Fault.FAILED,
    Fault.GIVEN_UP,
    Fault.LATE_CLOCK,
)
FAULTS_AT: Mapping[str, tuple[Fault, ...]] = {
    "log": _OF_WRITES,
    "prepare": (*_ANYWHERE, *_OF_MESSAGES, Fault.REFUSE),
    "fulfil": (*_ANYWHERE, *_OF_MESSAGES, Fault.WATCHTOWER),
    "cancel": (*_ANYWHERE, *_OF_MESSAGES, Fault.WATCHTOWER),
    "authorise": (*_ANYWHERE, Fault.LOSE_REQUEST, Fault.PARTITION, Fault.REFUSE),
}
"""By the first word of a step's label; RIVAL or SWITCH comes to each."""

Plan = Mapping[int, Fault]


def faults_at(label: str, has_rival: bool) -> tuple[Fault, ...]:
    """What may go wrong at a step, while there is a rival or not."""
    return (*FAULTS_AT[label.partition(" ")[0]], Fault.SWITCH if has_rival else Fault.RIVAL)


@dataclass(frozen=True, slots=True)
class Scene:
    """A settlement to be made."""

    id: UUID
    uetr: UUID
    legs: tuple[LegTerms, ...]


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is to be settled, and by what means. `refusing` institutions sign nothing of these UETRs."""

    name: str
    scenes: tuple[Scene, ...]
    balances: Mapping[str, Mapping[int, int]]
    """By ledger and account."""
    refusing: frozenset[UUID] = frozenset()


class Broken(BaseException):
    """A promise does not hold in this run. `kind` is one of the module's list.

    Not an Exception: the engine takes what a party makes it raise for that party's silence.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Died(BaseException):
    """One engine's process ends here. Not an Exception: nothing may catch it and go on."""

    def __init__(self, engine: int) -> None:
        super().__init__(engine)
        self.engine = engine


class DatabaseAway(Exception):
    """The database refused or was not there: the transaction is not written."""


@dataclass(frozen=True, slots=True)
class Parts:
    """The product's own parts; a test plants others to see that the simulation finds what is wrong with them."""

    engine: type[Engine] = Engine
    log: type[MemoryLog] = MemoryLog
    island: type[FakeIsland] = FakeIsland


@dataclass(slots=True)
class _Late:
    due: int
    deliver: Callable[[], object]


@dataclass(slots=True)
class Ran:
    """What one run did."""

    labels: list[str]
    """Of every step, in order."""
    rivalled: list[bool]
    """Whether there was a rival at the step."""
    injected: dict[int, Fault]
    outcomes: dict[UUID, Decision]
    epochs: int


ChooseFault = Callable[[int, str, bool], Fault | None]
"""The fault of a step, by its number, its label and whether there is a rival."""


class _Rival:
    """A second engine, alive beside the first: a thread of its own, of which only one runs at any time."""

    def __init__(self, run: Callable[[], None]) -> None:
        # Locks that are taken from the start: to release one is to give its owner the turn.
        self._turn_main, self._turn_rival = threading.Lock(), threading.Lock()
        self._turn_main.acquire()
        self._turn_rival.acquire()
        self._thread = threading.Thread(target=self._run, args=(run,), daemon=True)
        self.is_alive = True
        self.is_killed = False
        self.error: BaseException | None = None
        self._thread.start()

    def _run(self, run: Callable[[], None]) -> None:
        self._turn_rival.acquire()
        try:
            run()
        except BaseException as error:
            self.error = error
        self.is_alive = False
        self._turn_main.release()

    def hand_over(self) -> None:
        """From whichever is running to the other; returns when the turn comes back."""
        if threading.current_thread() is self._thread:
            self._turn_main.release()
            self._turn_rival.acquire()
        else:
            self._turn_rival.release()
            self._turn_main.acquire()
            if not self.is_alive:
                self._thread.join()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread


class World:
    def __init__(self, scenario: Scenario, choose: ChooseFault, parts: Parts = Parts()) -> None:
        self.scenario = scenario
        self.clock = ManualClock(START)
        self.log = parts.log()
        self.islands = {
            name: parts.island(name, balances=dict(accounts)) for name, accounts in scenario.balances.items()
        }
        self.labels: list[str] = []
        self.rivalled: list[bool] = []
        self._rival: _Rival | None = None
        self.injected: dict[int, Fault] = {}
        self._choose = choose
        self._parts = parts
        self._late: list[_Late] = []
        self._down: dict[str, int] = {}
        self._refused: set[UUID] = set(scenario.refusing)
        self._durable: dict[UUID, Decision] = {}
        self._engines = 0
        self._entropy = 0
        self._is_calm = False
        self._legs: dict[UUID, list[tuple[FakeIsland, UUID]]] = {}
        self._scene_of_hold: dict[UUID, UUID] = {}
        for scene in scenario.scenes:
            self.log.store(scene.id, scene.uetr, scene.legs)
            for leg in self.log.rows[scene.id].legs:
                hold = leg.hold_id
                self._legs.setdefault(scene.id, []).append((self.islands[leg.terms.ledger], hold))
                self._scene_of_hold[hold] = scene.id

    # --- the run

    def run(self) -> Ran:
        """Engines one after another, faults by the plan, then calm. Raises: Broken."""
        try:
            engine = self._start()
            for _ in range(ROUNDS_MAX):
                engine, is_resting = self._round(engine)
                if self._rival is not None and (engine is None or is_resting):
                    self._switch()
                elif is_resting and self._is_over():
                    break
                elif is_resting:
                    self._pass_time()
            self._rest()
        finally:
            self._end_rival()
        outcomes = {key: record.decision for key, record in self.log.records.items()}
        return Ran(self.labels, self.rivalled, self.injected, outcomes, self.log.epoch)

    def _round(self, engine: Engine | None) -> tuple[Engine | None, bool]:
        """One round of the living engine, or the start of the next: (the engine, whether nothing moved)."""
        try:
            if engine is None:
                return self._start(), False
            moved = engine.tick()
        except Died:
            return None, False
        except Deposed:
            return None, False  # its process stands by; the next engine is another one
        except (OutcomeUnknown, DatabaseAway):
            return self._restart(engine), False
        except InvariantBroken as error:
            raise Broken("split", f"the engine halted: {error}") from error
        return engine, not moved

    def _start(self) -> Engine | None:
        self._engines += 1
        number = self._engines
        return self._restart(
            self._parts.engine(
                log=_Log(self, number),
                islands={name: _Channel(self, number, name, island) for name, island in self.islands.items()},
                authoriser=_Institutions(self, number),
                clock=self.clock,
                holder=f"engine {number}",
                entropy=self._bytes,
            )
        )

    def _restart(self, engine: Engine | None) -> Engine | None:
        if engine is None:
            return None
        for _ in range(ROUNDS_MAX):
            try:
                engine.start()
                return engine
            except (Died, Deposed):
                return None
            except (OutcomeUnknown, DatabaseAway):
                continue
        raise Broken("rest", "no engine comes up")

    def _depose(self, rounds: int) -> None:
        """While one engine stands still, another takes the lease and runs some rounds; its process ends then."""
        other = self._start()
        for _ in range(rounds):
            if other is None:
                return
            other, is_resting = self._round(other)
            if is_resting:
                return

    def _begin_rival(self) -> None:
        """Begun at a step of the living engine, which stands still until the turn comes back."""

        def run() -> None:
            engine = self._start()
            for _ in range(ROUNDS_MAX):
                engine, is_resting = self._round(engine)
                if engine is None or (is_resting and self._is_over()):
                    return
                if is_resting:
                    self._pass_time()

        self._rival = _Rival(run)
        self._switch()

    def _switch(self) -> None:
        rival = self._rival
        if rival is None:
            return
        rival.hand_over()
        if rival.is_current:
            return
        if not rival.is_alive:
            self._rival = None
            if rival.error is not None and not rival.is_killed:
                raise rival.error

    def _end_rival(self) -> None:
        if self._rival is not None:
            self._rival.is_killed = True  # it dies at the step where it stands
            while self._rival is not None:
                self._switch()

    def _pass_time(self) -> None:
        self.clock.advance(_PAUSE)
        self._deliver_due(forced=True)

    def _is_over(self) -> bool:
        return all(row.ended_at is not None for row in self.log.rows.values())

    def _rest(self) -> None:
        self._end_rival()
        self._is_calm = True
        self._down.clear()
        engine: Engine | None = None
        for _ in range(ROUNDS_MAX):
            engine, is_resting = self._round(engine)
            if is_resting and self._is_over():
                break
            if is_resting:
                self._pass_time()
        self._check_rest()
        while self._late:
            self._late.pop(0).deliver()
        self._check_rest()

    def _check_rest(self) -> None:
        for scene in self.scenario.scenes:
            row, record = self.log.rows[scene.id], self.log.records.get(scene.id)
            if record is None or row.state not in (SettlementState.SETTLED, SettlementState.CANCELLED):
                raise Broken("rest", f"settlement {scene.id} is still {row.state.value}")
            standings = {island.standing(hold) for island, hold in self._legs[scene.id]}
            is_commit = record.decision is Decision.COMMIT
            if self._durable.get(scene.id) is not record.decision:
                raise Broken("lost", f"settlement {scene.id}: the decision that was durable is another now")
            if is_commit and standings != {HoldStanding.POSTED}:
                raise Broken("split", f"settlement {scene.id} is committed and stands {sorted(standings)}")
            if not is_commit and standings & {HoldStanding.POSTED, HoldStanding.HELD}:
                kind = "split" if HoldStanding.POSTED in standings else "rest"
                raise Broken(kind, f"settlement {scene.id} is aborted and stands {sorted(standings)}")
        for island in self.islands.values():
            try:
                island.check()
            except InvariantBroken as error:
                raise Broken("conserved", str(error)) from error

    # --- steps

    def step(self, label: str) -> Fault | None:
        number = len(self.labels)
        if number >= STEPS_MAX:
            raise Broken("rest", "the run does not end")
        if self._rival is not None and self._rival.is_killed and self._rival.is_current:
            raise Died(0)
        self.labels.append(label)
        self.rivalled.append(self._rival is not None)
        if self._late:
            self._deliver_due()
        if self._is_calm:
            return None
        fault = self._choose(number, label, self._rival is not None)
        if fault is None:
            return None
        self.injected[number] = fault
        if fault is Fault.RIVAL:
            self._begin_rival()
        elif fault is Fault.SWITCH:
            self._switch()
        else:
            return fault
        return None

    def write(self, engine: int, name: str, epoch: int, call: Callable[[], Answer]) -> Answer:
        """A durable write of an engine. `epoch` 0 is that of no engine yet."""
        fault = self.step(f"log {name}")
        match fault:
            case None:
                return self._written(epoch, call)
            case Fault.CRASH_BEFORE:
                raise Died(engine)
            case Fault.CRASH_AFTER:
                self._written(epoch, call)
                raise Died(engine)
            case Fault.UNKNOWN_WRITTEN:
                self._written(epoch, call)
                raise OutcomeUnknown("the connection died during COMMIT")
            case Fault.UNKNOWN_LOST:
                raise OutcomeUnknown("the connection died during COMMIT")
            case Fault.FAILED:
                raise DatabaseAway
            case Fault.DEPOSED_BEFORE:
                self._depose(rounds=1)
            case Fault.DEPOSED_LONG:
                self._depose(rounds=ROUNDS_MAX)
            case Fault.GIVEN_UP:
                for scene in self.scenario.scenes:
                    self.log.request_abort(scene.id)
            case Fault.LATE_CLOCK:
                self.clock.advance(timedelta(minutes=11))
            case _:
                raise ValueError(f"{fault.value} is no fault of a write")
        return self._written(epoch, call)

    def _written(self, epoch: int, call: Callable[[], Answer]) -> Answer:
        is_stale = epoch not in (0, self.log.epoch)
        answer = call()
        if is_stale:
            raise Broken("fence", f"epoch {epoch} wrote while the lease has {self.log.epoch}")
        for key, record in self.log.records.items():
            if self._durable.setdefault(key, record.decision) is not record.decision:
                raise Broken("lost", f"settlement {key}: a second decision")
        return answer

    def send(
        self,
        engine: int,
        operation: str,
        ledger: str,
        orders: Sequence[Any],
        deliver: Callable[[], list[Any]],
        stolen: Callable[[], object] | None = None,
    ) -> list[Any]:
        """A request to an island, as the network and the fault of this step treat it."""
        fault = self.step(f"{operation} {ledger}")
        lost: list[Any] = [Unknown("no answer")] * len(orders)
        if fault in (Fault.CRASH_BEFORE, Fault.DEPOSED_BEFORE, Fault.DEPOSED_LONG):
            if fault is Fault.CRASH_BEFORE:
                raise Died(engine)
            self._depose(rounds=1 if fault is Fault.DEPOSED_BEFORE else ROUNDS_MAX)
            return deliver()
        if fault is Fault.PARTITION:
            self._down[ledger] = len(self.labels) + _PARTITION_STEPS
        if self._down.get(ledger, 0) >= len(self.labels):
            return lost
        match fault:
            case None:
                return deliver()
            case Fault.LOSE_REQUEST:
                return lost
            case Fault.DELAY:
                self._late.append(_Late(len(self.labels) + _DELAY_STEPS, deliver))
                return lost
            case Fault.LATE:
                self._late.append(_Late(STEPS_MAX, deliver))
                return lost
            case Fault.REFUSE:
                for order in orders:
                    self.islands[ledger].faults.refuse_holds.add(order.order.hold_id)
            case Fault.DUPLICATE:
                deliver()
            case Fault.ECHO:
                self._late.append(_Late(STEPS_MAX, deliver))
            case Fault.WATCHTOWER if stolen is not None:
                stolen()
        answer = deliver()
        if fault is Fault.CRASH_AFTER:
            raise Died(engine)
        return lost if fault is Fault.LOSE_ANSWER else answer

    def sign(self, engine: int, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        fault = self.step(f"authorise {payer}")
        silent: list[AuthorisationOutcome] = [Unknown(f"{payer} did not answer")] * len(orders)
        match fault:
            case Fault.CRASH_BEFORE | Fault.CRASH_AFTER:
                raise Died(engine)
            case Fault.DEPOSED_BEFORE:
                self._depose(rounds=1)
            case Fault.DEPOSED_LONG:
                self._depose(rounds=ROUNDS_MAX)
            case Fault.PARTITION:
                self._down[payer] = len(self.labels) + _PARTITION_STEPS
            case Fault.LOSE_REQUEST:
                return silent
            case Fault.REFUSE:
                self._refused.update(order.hold.reference for order in orders)
        if self._down.get(payer, 0) >= len(self.labels):
            return silent
        return [
            Refused("authorisation-refused", "settlement-not-found")
            if order.hold.reference in self._refused
            else Authorised("signed")
            for order in orders
        ]

    def end(self, operation: str, island: FakeIsland, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        """Post or void at an island, whoever asked; what it was asked with is checked against the durable decision."""
        is_post = operation == "fulfil"
        for order in orders:
            key = self._scene_of_hold[order.order.hold_id]
            decision = self._durable.get(key)
            digest = hashlib.sha256(order.secret).digest()
            wanted = order.order.commit_hash if decision is Decision.COMMIT else order.order.abort_hash
            if decision is None or (decision is Decision.COMMIT) != is_post or digest != wanted:
                decided = "no decision" if decision is None else decision.value
                raise Broken("secret", f"settlement {key}: a secret to {operation} is out with {decided} in the log")
        answers = island.fulfil(orders) if is_post else island.cancel(orders)
        for order in orders:
            self._check_split(self._scene_of_hold[order.order.hold_id])
        return answers

    def _check_split(self, key: UUID) -> None:
        standings = {island.standing(hold) for island, hold in self._legs[key]}
        if HoldStanding.POSTED in standings and HoldStanding.VOIDED in standings:
            raise Broken("split", f"settlement {key} has a posted and a voided leg")
        if HoldStanding.POSTED in standings and self._durable.get(key) is not Decision.COMMIT:
            raise Broken("split", f"settlement {key} has a posted leg without a durable COMMIT")
        if HoldStanding.VOIDED in standings and self._durable.get(key) is not Decision.ABORT:
            raise Broken("split", f"settlement {key} has a voided leg without a durable ABORT")

    def end_by_anybody(self, operation: str, orders: Sequence[EndOrder]) -> None:
        """The secret is out: another party ends every leg of these settlements with it, before the engine does."""
        for order in orders:
            key = self._scene_of_hold[order.order.hold_id]
            decision = self._durable.get(key)
            for leg in self.log.rows[key].legs:
                hold = HoldOrder(
                    leg.hold_id, leg.terms, order.order.reference, order.order.commit_hash, order.order.abort_hash
                )
                if decision is not None:
                    stolen = EndOrder(hold, leg.end_id(decision, order.secret), order.secret)
                    self.end(operation, self.islands[leg.terms.ledger], [stolen])

    def _deliver_due(self, *, forced: bool = False) -> None:
        now = len(self.labels)
        for late in [item for item in self._late if item.due <= now or (forced and item.due < STEPS_MAX)]:
            self._late.remove(late)
            late.deliver()

    def _bytes(self, count: int) -> bytes:
        self._entropy += 1
        return self._entropy.to_bytes(count, "big")


class _Log:
    """The log as one engine sees it. Reads pass; writes are steps, if there is something to write."""

    def __init__(self, world: World, engine: int) -> None:
        self._world, self._engine, self._log = world, engine, world.log

    def take_lease(self, *, holder: str, now: datetime) -> int:
        return self._world.write(self._engine, "take_lease", 0, lambda: self._log.take_lease(holder=holder, now=now))

    def renew_lease(self, *, epoch: int, now: datetime) -> None:
        self._world.write(self._engine, "renew_lease", epoch, lambda: self._log.renew_lease(epoch=epoch, now=now))

    def received(self, *, limit: int, now: datetime, without_payers: Collection[str] = ()) -> list[UUID]:
        return self._log.received(limit=limit, now=now, without_payers=without_payers)

    def persist(self, secrets: Mapping[UUID, Secrets], *, epoch: int, now: datetime) -> list[Settlement]:
        return self._world.write(
            self._engine, "persist", epoch, lambda: self._log.persist(secrets, epoch=epoch, now=now)
        )

    def record_legs(self, updates: Sequence[LegUpdate], *, epoch: int, now: datetime) -> None:
        if updates:
            self._world.write(
                self._engine, "record_legs", epoch, lambda: self._log.record_legs(updates, epoch=epoch, now=now)
            )

    def record_waits(self, waits: Mapping[UUID, str], *, epoch: int, now: datetime) -> None:
        if waits:
            self._world.write(
                self._engine, "record_waits", epoch, lambda: self._log.record_waits(waits, epoch=epoch, now=now)
            )

    def decide(self, verdicts: Sequence[Verdict], legs: Sequence[LegUpdate] = (), *, epoch: int, now: datetime) -> None:
        if verdicts:
            self._world.write(
                self._engine, "decide", epoch, lambda: self._log.decide(verdicts, legs, epoch=epoch, now=now)
            )

    def abort_requests(self) -> Collection[UUID]:
        return self._log.abort_requests()

    def undecided_of_others(self, *, epoch: int) -> list[UUID]:
        return self._log.undecided_of_others(epoch=epoch)

    def published(self, ids: Sequence[UUID]) -> Mapping[UUID, tuple[Decision, bytes]]:
        return self._log.published(ids)

    def unfinished(self, *, limit: int = 10_000) -> list[Decided]:
        return self._log.unfinished(limit=limit)

    def record_ends(
        self, ends: Mapping[UUID, tuple[Decision, Mapping[int, datetime]]], *, epoch: int, now: datetime
    ) -> Mapping[UUID, object]:
        if not ends:
            return {}
        return self._world.write(
            self._engine, "record_ends", epoch, lambda: self._log.record_ends(ends, epoch=epoch, now=now)
        )


class _Channel:
    """An island as one engine reaches it."""

    def __init__(self, world: World, engine: int, name: str, island: FakeIsland) -> None:
        self._world, self._engine, self._name, self._island = world, engine, name, island

    @property
    def name(self) -> str:
        return self._name

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        return self._world.send(self._engine, "prepare", self._name, holds, lambda: self._island.prepare(holds))

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end("fulfil", orders)

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._end("cancel", orders)

    def _end(self, operation: str, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self._world.send(
            self._engine,
            operation,
            self._name,
            orders,
            lambda: self._world.end(operation, self._island, orders),
            lambda: self._world.end_by_anybody(operation, orders),
        )

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        return self._island.look_up(orders)

    def statement(self, account: AccountNumber) -> list[Any]:
        return self._island.statement(account)


class _Institutions:
    def __init__(self, world: World, engine: int) -> None:
        self._world, self._engine = world, engine

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        return self._world.sign(self._engine, payer, orders)

"""Goal: no settlement is ever split (I5), whatever dies, is lost, late or doubled; and all end when all are back.

Method: the real engine over the real decision log (PostgreSQL), and two fake islands with the ledger's semantics. Every
durable write and every send of the protocol is a crash point, before and after; the points are counted by a first run,
so that a new step is tested without a new test. After each crash a fresh engine recovers from the log alone.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database, OutcomeUnknown
from kernel.errors import InvariantBroken
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.escrow import Decision, LegState, LegTerms, SettlementState
from settlement.domain.refusals import AbortReason
from settlement.islands.authorisers import AuthorisationOutcome, FakeAuthoriser, LegOrder
from settlement.islands.booked import Booked
from settlement.islands.fake import FakeIsland, IslandCrashed
from settlement.islands.native import hold_terms
from settlement.islands.port import EndOrder, HoldStanding, Refused, SignedHold
from settlement.store import batches, gates
from settlement.store.decision_log import DecisionLog, Deposed
from settlement.usecases.settle import OPEN_SETTLEMENTS_MAX, WAITING_PER_PAYER_MAX, Engine
from settlement.usecases.statements import batch_entries
from wallet.domain.records import SettlementOrder
from wallet.domain.settlements import LedgerLeg, Vault, decide_leg

BANK_A, BANK_B = ParticipantId("AAAACNBJ"), ParticipantId("BBBBAEAD")
CNY, AED = Currency.of("CNY"), Currency.of("AED")
A_CNY, B_CNY, A_AED, B_AED = (AccountNumber(number) for number in (11, 12, 21, 22))
START = 1_000_000


@dataclass
class World:
    """Two islands, their institutions, and the log; engines come and go."""

    database: Database
    clock: ManualClock
    cny: FakeIsland
    aed: FakeIsland
    authoriser: FakeAuthoriser
    log: DecisionLog
    uetrs: dict[UUID, UUID] = field(default_factory=dict)

    def submit(self, amounts: Sequence[tuple[int, int]], *, payer: ParticipantId = BANK_A) -> list[UUID]:
        """PvP settlements of (CNY from A, AED from B); returns their ids. `payer` signs for A's account."""
        made = []
        for position, (cny, aed) in enumerate(amounts, start=1):
            key, uetr = new_uuid7(), uuid4()
            self.uetrs[key] = uetr
            legs = (
                LegTerms("cny", payer, BANK_B, A_CNY, B_CNY, Money(cny, CNY)),
                LegTerms("aed", BANK_B, BANK_A, B_AED, A_AED, Money(aed, AED)),
            )
            made.append(
                batches.NewSettlement(
                    key, position, f"i{position}", f"e{position}", uetr, BANK_A, BANK_B,
                    self.clock().date(), "NORM", None, None, None, legs,
                )
            )  # fmt: skip
        now = self.clock()
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            batch = new_uuid7()
            batches.insert_batch(
                connection,
                batch=batch,
                submitter=BANK_A,
                message_id=str(batch),
                batch_format="csv",
                content_sha256=bytes(32),
                received_at=now,
                started_at=now,
                settlements=made,
            )
        return [item.id for item in made]

    def give_up(self, settlement: UUID) -> bool:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return batches.request_abort(connection, settlement, by=ParticipantId("BRDGAEAD"), now=self.clock())

    def engine(self, *, crash: CrashPoints | None = None, **options: Any) -> Engine:
        watch = crash or CrashPoints()
        return Engine(
            log=watch.over("log", self.log, LOG_WRITES),
            islands={
                "cny": watch.over("cny", self.cny, ISLAND_CALLS),
                "aed": watch.over("aed", self.aed, ISLAND_CALLS),
            },
            authoriser=watch.over("authoriser", self.authoriser, ("authorise",)),
            clock=self.clock,
            holder="test",
            **options,
        )

    def run(self, engine: Engine, *, rounds: int = 60) -> None:
        """Until nothing is left, or the rounds are used up. Time passes between rounds, so that backoffs end."""
        for _ in range(rounds):
            moved = engine.tick()
            if not moved and engine.is_idle():
                return
            if not moved:
                self.clock.advance(timedelta(seconds=6))

    def start_and_run(self, engine: Engine) -> None:
        engine.start()
        self.run(engine)

    def recover(self) -> Engine:
        engine = self.engine()
        self.start_and_run(engine)
        return engine

    def state(self, settlement: UUID) -> batches.SettlementRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            row = batches.find_settlement(connection, settlement)
        assert row is not None
        return row

    def standings(self, settlement: UUID) -> tuple[HoldStanding, HoldStanding]:
        legs = self.state(settlement).legs
        return self.cny.standing(legs[0].leg.hold_id), self.aed.standing(legs[1].leg.hold_id)

    def check_ended(self, settlement: UUID) -> Decision:
        """I5, I2, I3, and the log agrees with both islands. Returns how it ended."""
        self.cny.check()
        self.aed.check()
        row, standings = self.state(settlement), self.standings(settlement)
        assert row.decision is not None
        if row.decision is Decision.COMMIT:
            assert standings == (HoldStanding.POSTED, HoldStanding.POSTED)
            assert row.state is SettlementState.SETTLED
        else:
            assert HoldStanding.POSTED not in standings
            assert HoldStanding.HELD not in standings
            assert row.state is SettlementState.CANCELLED
        return row.decision

    def check_nothing_reserved(self) -> None:
        assert (self.cny.available(A_CNY), self.aed.available(B_AED)) == (
            self.cny.balance(A_CNY),
            self.aed.balance(B_AED),
        )


LOG_WRITES = ("take_lease", "persist", "record_legs", "decide", "record_ends", "record_waits")
ISLAND_CALLS = ("prepare", "fulfil", "cancel")


class CrashPoints:
    """Counts every durable write and send; dies before or after the chosen one."""

    def __init__(self, die_at: int | None = None) -> None:
        self.die_at = die_at
        self.points: list[str] = []

    def over(self, name: str, target: Any, methods: Sequence[str]) -> Any:
        return _Watched(self, name, target, frozenset(methods))

    def pass_point(self, label: str) -> None:
        self.points.append(label)
        if self.die_at is not None and len(self.points) - 1 == self.die_at:
            raise IslandCrashed(label)


class _Watched:
    def __init__(self, watch: CrashPoints, name: str, target: Any, methods: frozenset[str]) -> None:
        self._watch, self._name, self._target, self._methods = watch, name, target, methods

    def __getattr__(self, method: str) -> Any:
        found = getattr(self._target, method)
        if method not in self._methods:
            return found

        def watched(*arguments: Any, **options: Any) -> Any:
            self._watch.pass_point(f"before {self._name}.{method}")
            answer = found(*arguments, **options)
            self._watch.pass_point(f"after {self._name}.{method}")
            return answer

        return watched


@pytest.fixture
def new_world(fresh_database: Callable[[str], str]) -> Iterator[Callable[[], World]]:
    """As many worlds as a test likes over one database: settlements of different worlds do not meet."""
    database = Database(fresh_database("settlement"), application_name="test", pool_size=4)
    key = PrivateKey.generate()

    def make() -> World:
        clock = ManualClock(datetime(2026, 11, 23, 8, 0, tzinfo=UTC))
        return World(
            database,
            clock,
            FakeIsland("cny", balances={A_CNY: START, B_CNY: START}),
            FakeIsland("aed", balances={A_AED: START, B_AED: START}),
            FakeAuthoriser(key, clock=clock),
            DecisionLog(database),
        )

    yield make
    database.close()


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    return new_world()


def arrange_commit(world: World) -> list[UUID]:
    return world.submit([(100, 51)])


def arrange_first_leg_refused(world: World) -> list[UUID]:
    return world.submit([(START + 1, 51)])


def arrange_second_leg_refused(world: World) -> list[UUID]:
    return world.submit([(100, START + 1)])


def arrange_authorisation_refused(world: World) -> list[UUID]:
    made = world.submit([(100, 51)])
    world.authoriser.refuse.add(world.uetrs[made[0]])
    return made


@pytest.mark.parametrize(
    "wish",
    [
        arrange_commit,
        pytest.param(arrange_first_leg_refused, marks=pytest.mark.extended),
        pytest.param(arrange_second_leg_refused, marks=pytest.mark.extended),
        pytest.param(arrange_authorisation_refused, marks=pytest.mark.extended),
    ],
)
def test_i5_no_crash_point_of_the_protocol_splits_a_settlement(
    new_world: Callable[[], World], wish: Callable[[World], list[UUID]]
) -> None:
    counting, world = CrashPoints(), new_world()
    (whole,) = wish(world)
    engine = world.engine(crash=counting)
    engine.start()
    world.run(engine)
    expected = world.check_ended(whole)
    assert expected is (Decision.COMMIT if wish is arrange_commit else Decision.ABORT)
    ends = "fulfil" if wish is arrange_commit else "cancel"
    assert {f"before cny.{ends}", f"after aed.{ends}", "before log.decide", "after log.decide"} <= set(counting.points)

    decided_at = counting.points.index("after log.decide")
    for point in range(len(counting.points)):
        world = new_world()
        (settlement,) = wish(world)
        engine = world.engine(crash=CrashPoints(point))
        with pytest.raises(IslandCrashed):
            world.start_and_run(engine)
        world.recover()
        ended = world.check_ended(settlement)
        world.check_nothing_reserved()
        # Once COMMIT is durable nothing undoes it; before, a crash may only abort (or, if nothing was begun, commit).
        if point >= decided_at:
            assert ended is expected, counting.points[point]
        if expected is Decision.ABORT:
            assert ended is Decision.ABORT, counting.points[point]


@pytest.mark.parametrize("steps", [(9, 4), pytest.param((3, 2), marks=pytest.mark.extended)])
@pytest.mark.parametrize("wish", [arrange_commit, arrange_second_leg_refused])
def test_i5_a_crash_during_recovery_recovers_too(
    new_world: Callable[[], World], wish: Callable[[World], list[UUID]], steps: tuple[int, int]
) -> None:
    """At each ninth point of the run and each fourth of the recovery, and in `make test EXTENDED=1` at more of them."""
    for first in range(0, 40, steps[0]):
        for second in range(0, 12, steps[1]):
            world = new_world()
            (settlement,) = wish(world)
            for point in (first, second):
                engine = world.engine(crash=CrashPoints(point))
                try:
                    engine.start()
                    world.run(engine)
                except IslandCrashed:
                    continue
            world.recover()
            world.check_ended(settlement)
            world.check_nothing_reserved()


FAULTS = [(fault, call) for fault in ("lose_request", "lose_answer") for call in ("prepare", "fulfil", "cancel")]


@pytest.mark.parametrize(("fault", "call"), FAULTS)
@pytest.mark.parametrize("at", ["cny", pytest.param("aed", marks=pytest.mark.extended)])
@pytest.mark.parametrize("wish", [arrange_commit, arrange_second_leg_refused])
def test_lost_requests_and_answers_delay_and_decide_nothing(
    world: World, fault: str, call: str, at: str, wish: Callable[[World], list[UUID]]
) -> None:
    (settlement,) = wish(world)
    getattr(getattr(world, at).faults, fault).add(call)
    world.recover()
    assert world.check_ended(settlement) is (Decision.COMMIT if wish is arrange_commit else Decision.ABORT)
    world.check_nothing_reserved()


def test_every_message_twice_books_once(world: World) -> None:
    world.cny.faults.duplicate = world.aed.faults.duplicate = True
    (settlement,) = world.submit([(100, 51)])
    world.recover()
    assert world.check_ended(settlement) is Decision.COMMIT
    assert (world.cny.balance(B_CNY), world.aed.balance(A_AED)) == (START + 100, START + 51)


def test_a_void_that_overtakes_its_hold_leaves_a_tombstone_and_the_late_hold_is_refused(world: World) -> None:
    (settlement,) = world.submit([(100, START + 1)])
    world.cny.faults.delayed = True  # the hold on CNY is under way while AED refuses
    engine = world.engine()
    engine.start()
    engine.tick()
    world.clock.advance(timedelta(seconds=6))
    engine.tick()  # the void is queued behind the hold
    assert world.state(settlement).state is SettlementState.ABORTED
    assert world.cny.deliver(reverse=True) >= 2  # the void arrives first, then the hold
    assert world.standings(settlement)[0] is HoldStanding.ABSENT
    world.cny.faults.delayed = False
    world.clock.advance(timedelta(seconds=6))
    world.run(engine)
    assert world.check_ended(settlement) is Decision.ABORT
    world.check_nothing_reserved()


def test_an_island_that_is_down_keeps_settlements_pending_and_visible_and_never_aborts_them(world: World) -> None:
    settlements = world.submit([(100, 51), (200, 102)])
    world.aed.faults.down = True
    engine = world.engine()
    engine.start()
    world.run(engine, rounds=30)
    for settlement in settlements:
        row = world.state(settlement)
        assert (row.state, row.decision) == (SettlementState.PREPARED, None)
        assert "ledger aed" in row.waits_for
    world.aed.faults.down = False
    world.run(engine)
    assert [world.check_ended(settlement) for settlement in settlements] == [Decision.COMMIT] * 2


def test_an_institution_that_does_not_answer_reserves_nobodys_money(world: World) -> None:
    (settlement,) = world.submit([(100, 51)])
    world.authoriser.unreachable.add(BANK_B)
    engine = world.engine()
    engine.start()
    world.run(engine, rounds=10)
    assert world.standings(settlement) == (HoldStanding.ABSENT, HoldStanding.ABSENT)
    assert BANK_B in world.state(settlement).waits_for
    world.authoriser.unreachable.clear()
    world.run(engine)
    assert world.check_ended(settlement) is Decision.COMMIT


def test_one_refused_settlement_stops_no_other(world: World) -> None:
    settlements = world.submit([(100, 51), (START * 9, 1), (300, START * 9), (400, 204)])
    world.recover()
    C, A = Decision.COMMIT, Decision.ABORT
    assert [world.check_ended(settlement) for settlement in settlements] == [C, A, A, C]
    assert world.cny.balance(B_CNY) == START + 500
    reasons = [world.state(settlement).reason for settlement in settlements]
    assert reasons == [None, "leg-refused", "leg-refused", None]
    assert "insufficient-funds" in world.state(settlements[1]).detail


@pytest.mark.parametrize("overlaps", [False, True])
@pytest.mark.parametrize("moment", range(1, 12))
def test_a_deposed_engine_decides_and_writes_nothing(world: World, moment: int, overlaps: bool) -> None:
    """Two engines alive: the first is stopped before its n-th write or send, deposed by the second, then goes on."""
    (settlement,) = world.submit([(100, 51)])
    fence = _Interrupt(at=moment, act=lambda: world.recover())
    with ThreadPoolExecutor(4) as calls, ThreadPoolExecutor(3) as writes:
        first = Engine(
            log=fence.over(world.log),
            islands={"cny": fence.over(world.cny), "aed": fence.over(world.aed)},
            authoriser=fence.over(world.authoriser),
            clock=world.clock,
            holder="first",
            executor=calls if overlaps else None,
            log_executor=writes if overlaps else None,
        )
        first.start()
        try:
            world.run(first)
        except Deposed:
            assert fence.acted
    world.recover()
    world.check_ended(settlement)
    world.check_nothing_reserved()
    with pytest.raises(Deposed):
        world.log.renew_lease(epoch=first.epoch, now=world.clock())


@pytest.mark.parametrize("write", ["persist", "decide", "published", "record_ends"])
def test_a_write_beside_the_rounds_that_fails_ends_the_epoch(world: World, write: str) -> None:
    """Once before and once after it was done: the round that asks for it raises, and the next epoch recovers."""
    ids = world.submit([(100, 51), (200, 102), (10**9, 3)])
    real, left = getattr(world.log, write), [False, True]

    def fail(*args: Any, **kwargs: Any) -> Any:
        if not left:
            return real(*args, **kwargs)
        if left.pop(0):
            real(*args, **kwargs)
        raise OSError("the database is away")

    setattr(world.log, write, fail)
    with ThreadPoolExecutor(4) as calls, ThreadPoolExecutor(3) as writes:
        engine = world.engine(executor=calls, log_executor=writes)
        deadline = time.monotonic() + 20
        is_started = False
        while not (is_started and engine.is_idle() and all(world.state(key).decision for key in ids)):
            assert time.monotonic() < deadline
            try:
                if is_started:
                    engine.tick()
                else:
                    engine.start()
                    is_started = True
            except OSError:
                is_started = False
    assert len(left) < 2, "it was never written"
    for key in ids:
        world.check_ended(key)
    world.check_nothing_reserved()


class _Interrupt:
    """Runs `act` once, before the n-th write or send."""

    def __init__(self, *, at: int, act: Callable[[], object]) -> None:
        self._at, self._act, self._count, self.acted = at, act, 0, False

    def over(self, target: Any) -> Any:
        interrupt = self

        class Interrupted:
            def __getattr__(self, method: str) -> Any:
                found = getattr(target, method)
                if method not in (*LOG_WRITES[1:], *ISLAND_CALLS, "authorise"):
                    return found

                def call(*arguments: Any, **options: Any) -> Any:
                    interrupt._count += 1
                    if interrupt._count == interrupt._at:
                        interrupt.acted = True
                        interrupt._act()
                    return found(*arguments, **options)

                return call

        return Interrupted()


@pytest.mark.parametrize("is_written", [True, False])
def test_a_decision_of_unknown_outcome_is_read_back_and_never_guessed(world: World, is_written: bool) -> None:
    (settlement,) = world.submit([(100, 51)])
    engine = world.engine()
    real, log = world.log.decide, engine._log
    failures = iter([True])

    def decide(*given: Any, **options: Any) -> None:
        if next(failures, False):
            if is_written:
                real(*given, **options)
            raise OutcomeUnknown("the connection died during COMMIT")
        real(*given, **options)

    log.__dict__["decide"] = decide  # the watched log's own attribute comes before its target's
    engine.start()
    with pytest.raises(OutcomeUnknown):
        world.run(engine)
    engine.start()
    world.run(engine)
    assert world.check_ended(settlement) is (Decision.COMMIT if is_written else Decision.ABORT)


def test_a_recovered_undecided_settlement_is_aborted_before_its_secret_is_read(world: World) -> None:
    point = _point_of(world, "before log.decide")
    (settlement,) = world.submit([(100, 51)])
    dying = world.engine(crash=CrashPoints(point))
    with pytest.raises(IslandCrashed):
        world.start_and_run(dying)
    watch = CrashPoints()
    engine = world.engine(crash=watch)
    engine.start()
    world.run(engine)
    assert world.check_ended(settlement) is Decision.ABORT
    assert world.state(settlement).reason == "presumed-abort"
    assert watch.points.index("after log.decide") < watch.points.index("before cny.cancel")


def _point_of(world: World, label: str) -> int:
    """Where a crash point lies, found by a rehearsal: call it before the settlement in question is submitted."""
    world.submit([(1, 1)])
    counting = CrashPoints()
    rehearsal = world.engine(crash=counting)
    rehearsal.start()
    world.run(rehearsal)
    return counting.points.index(label)


def test_the_undecided_secret_is_erased_with_the_decision_and_the_decided_one_alone_is_sent(world: World) -> None:
    settlements = world.submit([(100, 51), (START * 9, 1)])
    sent: list[EndOrder] = []
    real_fulfil, real_cancel = world.cny.fulfil, world.cny.cancel
    world.cny.fulfil = lambda orders: sent.extend(orders) or real_fulfil(orders)  # type: ignore[method-assign, func-returns-value]
    world.cny.cancel = lambda orders: sent.extend(orders) or real_cancel(orders)  # type: ignore[method-assign, func-returns-value]
    world.recover()
    with world.database.raw(isolation="READ COMMITTED") as connection:
        found = connection.execute("SELECT settlement_id, commit_secret, abort_secret FROM secret").fetchall()
        rows = {row[0]: (row[1], row[2]) for row in found}
    committed, aborted = (rows[settlement] for settlement in settlements)
    assert committed[0] is not None and committed[1] is None
    assert aborted[0] is None and aborted[1] is not None
    assert {order.secret for order in sent} == {committed[0], aborted[1]}
    for order in sent:
        assert order.secret.hex() not in repr(order)


def test_a_hold_of_other_terms_under_the_legs_id_is_never_counted_as_held(world: World) -> None:
    """Attack: the payer, who knows the hold's id, places it first under hashes of its own."""
    (settlement,) = world.submit([(100, 51)])
    real = world.cny.prepare

    def attack(holds: Sequence[SignedHold]) -> Any:
        world.cny.prepare = real  # type: ignore[method-assign]
        evil = [replace(item, order=replace(item.order, commit_hash=secrets.token_bytes(32))) for item in holds]
        real(evil)
        return real(holds)

    world.cny.prepare = attack  # type: ignore[method-assign]
    world.recover()
    row = world.state(settlement)
    assert (row.decision, row.reason) == (Decision.ABORT, "hold-differs")
    assert world.standings(settlement)[1] is not HoldStanding.POSTED
    world.aed.check()


def test_an_operator_gives_up_an_undecided_settlement_and_cannot_undo_a_decided_one(world: World) -> None:
    (stuck,) = world.submit([(100, 51)])
    world.aed.faults.down = True
    engine = world.engine()
    engine.start()
    world.run(engine, rounds=3)
    assert world.standings(stuck)[0] is HoldStanding.HELD
    assert world.give_up(stuck)
    world.run(engine, rounds=3)
    assert world.state(stuck).reason == "operator"
    assert world.standings(stuck)[0] is HoldStanding.VOIDED
    world.aed.faults.down = False
    world.run(engine)
    assert world.check_ended(stuck) is Decision.ABORT
    (done,) = world.submit([(100, 51)])
    world.run(engine)
    assert not world.give_up(done)
    world.run(engine)
    assert world.check_ended(done) is Decision.COMMIT


@pytest.mark.parametrize("is_gated", [False, True])
def test_what_the_operator_gave_up_is_aborted_by_whatever_engine_comes_next(world: World, is_gated: bool) -> None:
    """The wish is in the database: no restart loses it, and no closed gate keeps it from its end."""
    (received,) = world.submit([(100, 51)])
    if is_gated:
        with world.database.transaction(isolation="READ COMMITTED") as connection:
            gates.close(connection, [gates.Gate(received, gates.GateKind.LIQUIDITY, "queued")], now=world.clock())
        world.recover()
        assert world.state(received).state is SettlementState.RECEIVED
    assert world.give_up(received)
    assert world.give_up(received)
    world.recover()
    assert world.check_ended(received) is Decision.ABORT
    row = world.state(received)
    assert (row.reason, row.abort_requested_by) == ("operator", "BRDGAEAD")
    assert world.standings(received) == (HoldStanding.ABSENT, HoldStanding.ABSENT)
    # Prepared by an engine that died before it read the wish: the next one gives the operator's reason.
    point = _point_of(world, "before log.decide")
    (prepared,) = world.submit([(100, 51)])
    with pytest.raises(IslandCrashed):
        world.start_and_run(world.engine(crash=CrashPoints(point)))
    assert world.give_up(prepared)
    world.recover()
    assert (world.check_ended(prepared), world.state(prepared).reason) == (Decision.ABORT, "operator")
    assert not world.give_up(prepared)
    world.check_nothing_reserved()


def test_a_leg_ended_against_its_decision_halts_the_engine(world: World) -> None:
    """I5 broken from outside (a ledger restored from an old backup, say) is not passed over."""
    point = _point_of(world, "before cny.fulfil")
    (settlement,) = world.submit([(100, 51)])
    engine = world.engine(crash=CrashPoints(point))
    with pytest.raises(IslandCrashed):
        world.start_and_run(engine)
    leg = world.state(settlement).legs[0].leg
    world.cny._holds[leg.hold_id].standing = HoldStanding.VOIDED
    engine = world.engine()
    engine.start()
    with pytest.raises(InvariantBroken, match="I5"):
        world.run(engine)
    assert "A PERSON" in world.state(settlement).waits_for


def test_a_thousand_settlements_in_waves_conserve_money(world: World) -> None:
    settlements = world.submit([(1 + index % 7, 1 + index % 5) for index in range(1_000)])
    world.recover()
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        batch = world.state(settlements[0]).batch
        row = batches.find(connection, batch)
    assert row is not None
    assert row.counts[SettlementState.SETTLED] == 1_000
    world.cny.check()
    world.aed.check()
    assert world.cny.balance(B_CNY) == START + sum(1 + index % 7 for index in range(1_000))


def test_a_party_that_never_answers_is_given_up_and_nothing_is_split(world: World) -> None:
    (settlement,) = world.submit([(100, 51)])
    world.aed.faults.down = True
    engine = world.engine()
    engine.start()
    world.run(engine, rounds=20)
    assert world.state(settlement).decision is None
    world.clock.advance(timedelta(minutes=11))
    world.run(engine, rounds=5)
    row = world.state(settlement)
    assert (row.decision, row.reason) == (Decision.ABORT, "no-answer")
    assert "ledger aed" in (row.detail or "")
    world.aed.faults.down = False
    world.run(engine)
    assert world.check_ended(settlement) is Decision.ABORT
    world.check_nothing_reserved()


def test_open_settlements_are_bounded_while_an_island_is_down(world: World) -> None:
    world.submit([(1, 1)] * 120)
    world.aed.faults.down = True
    engine = world.engine(wave_settlements=50)
    engine.start()
    world.run(engine, rounds=5)
    assert len(engine._open) <= OPEN_SETTLEMENTS_MAX
    assert len(engine._open) == 120


# --- the counter leg


class DeskAuthoriser:
    """Bank A signs as its wallet service decides, for an order of at least `aed_min` against `cny`; B signs all."""

    def __init__(self, world: World, *, cny: int, aed_min: int) -> None:
        self._world, self._cny, self._aed_min = world, cny, aed_min

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        answers = self._world.authoriser.authorise(payer, orders)
        if payer == BANK_B:
            return answers
        return [self._judge(order, answer) for order, answer in zip(orders, answers, strict=True)]

    def _judge(self, order: LegOrder, answer: AuthorisationOutcome) -> AuthorisationOutcome:
        now = self._world.clock()
        until, uetr = now + timedelta(hours=1), str(order.hold.reference)
        ordered = SettlementOrder(uetr, "cny", "CNY", self._cny, "AED", self._aed_min, B_CNY, until, now)
        leg, *others = (LedgerLeg(hold.terms.ledger, hold_terms(hold)) for hold in (order.hold, *order.others))
        vaults = {"cny": Vault(A_CNY, "CNY"), "aed": Vault(A_AED, "AED")}
        refusal = decide_leg(leg, others=others, order=ordered, vaults=vaults, now=now)
        return answer if refusal is None else Refused("authorisation-refused", refusal.value)


def test_a_pair_that_brings_the_payer_less_than_it_ordered_holds_nothing(world: World) -> None:
    """Attack: the counterparty submits the instruction itself, with one fil against the whole pay leg."""
    robbed, honest, generous = world.submit([(100_000, 1), (100_000, 50_000), (100_000, 50_001)])
    engine = world.engine()
    engine._authoriser = DeskAuthoriser(world, cny=100_000, aed_min=50_000)
    world.start_and_run(engine)
    assert [world.check_ended(key) for key in (robbed, honest, generous)] == [
        Decision.ABORT,
        Decision.COMMIT,
        Decision.COMMIT,
    ]
    row = world.state(robbed)
    assert row.reason == AbortReason.AUTHORISATION_REFUSED
    assert "counter-leg-mismatch" in row.detail
    assert HoldStanding.HELD not in world.standings(robbed)
    assert world.aed.balance(A_AED) == START + 50_000 + 50_001
    assert world.cny.balance(A_CNY) == START - 200_000
    world.check_nothing_reserved()


# --- parties that misbehave


@pytest.mark.parametrize("is_concurrent", [False, True])
@pytest.mark.parametrize("fault", ["raises", "answers too few"])
def test_an_institution_whose_call_raises_or_answers_nonsense_ends_nobodys_epoch(
    world: World, fault: str, is_concurrent: bool
) -> None:
    """Attack: an answer that makes our own client raise; the settlements of the others go on."""
    evil = ParticipantId("EVILCNBJ")
    (stuck,), (other,) = world.submit([(7, 3)], payer=evil), world.submit([(100, 51)])
    real = world.authoriser.authorise

    def authorise(payer: ParticipantId, orders: Any) -> Any:
        if payer != evil:
            return real(payer, orders)
        if fault == "raises":
            raise RuntimeError("a decoding error, say")
        return []

    world.authoriser.authorise = authorise  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as executor:
        engine = world.engine(executor=executor if is_concurrent else None)
        engine.start()
        epoch = engine.epoch
        world.run(engine, rounds=8)
        assert world.check_ended(other) is Decision.COMMIT
        assert engine.epoch == epoch
        assert (world.state(stuck).decision, evil in world.state(stuck).waits_for) == (None, True)
        world.authoriser.authorise = real  # type: ignore[method-assign]
        for _ in range(20):
            world.clock.advance(timedelta(seconds=6))
            engine.tick()
    assert world.check_ended(stuck) is Decision.COMMIT


def test_an_institution_that_hangs_holds_up_no_round_is_not_asked_twice_and_its_late_answer_counts(
    world: World,
) -> None:
    slow = ParticipantId("SLOWCNBJ")
    (late,), (other,) = world.submit([(7, 3)], payer=slow), world.submit([(100, 51)])
    real, release, asked = world.authoriser.authorise, threading.Event(), []

    def authorise(payer: ParticipantId, orders: Any) -> Any:
        if payer == slow:
            asked.append(payer)
            release.wait(30)
        return real(payer, orders)

    world.authoriser.authorise = authorise  # type: ignore[method-assign]
    with ThreadPoolExecutor(2) as ledgers, ThreadPoolExecutor(4) as institutions:
        engine = world.engine(executor=ledgers, institution_executor=institutions, answer_wait_seconds=0.2)
        engine.start()
        try:
            for _ in range(10):
                began = time.monotonic()
                engine.tick()
                assert time.monotonic() - began < 3
                world.clock.advance(timedelta(seconds=6))
            assert world.check_ended(other) is Decision.COMMIT
            assert asked == [slow]
            assert "no answer yet" in world.state(late).waits_for
        finally:
            release.set()
        deadline = time.monotonic() + 20
        while world.state(late).decision is None and time.monotonic() < deadline:
            engine.tick()
            world.clock.advance(timedelta(seconds=6))
        world.run(engine)
        assert asked == [slow]
        assert world.check_ended(late) is Decision.COMMIT


def test_an_answer_that_nobody_wants_any_more_ends_no_pause(world: World) -> None:
    """One leg is refused, so ABORT is written while the other ledger has not answered; then nothing is left to do."""
    (settlement,) = world.submit([(10**9, 3)])
    real, release = world.aed.prepare, threading.Event()

    def hang(holds: Any) -> Any:
        release.wait(30)
        return real(holds)

    world.aed.prepare = hang  # type: ignore[method-assign]
    with ThreadPoolExecutor(4) as calls:
        engine = world.engine(executor=calls)
        engine.start()
        deadline = time.monotonic() + 20
        try:
            while not engine.is_idle() or world.state(settlement).decision is None:
                assert time.monotonic() < deadline
                engine.tick()
            assert set(engine._under_way) == {"ledger aed"}
            assert not engine.tick()
        finally:
            release.set()
        while engine._under_way:
            assert time.monotonic() < deadline
            assert not engine.tick()
        assert not any(engine.tick() for _ in range(3))
    assert world.check_ended(settlement) is Decision.ABORT


def test_what_waits_behind_a_hung_call_says_so_and_is_stored(world: World) -> None:
    (first,) = world.submit([(100, 51)])
    release, real = threading.Event(), world.aed.prepare

    def hang(holds: Any) -> Any:
        release.wait(30)
        return real(holds)

    world.aed.prepare = hang  # type: ignore[method-assign]
    with ThreadPoolExecutor(6) as calls:
        engine = world.engine(executor=calls, answer_wait_seconds=0.1)
        engine.start()
        try:
            deadline = time.monotonic() + 20
            while "no answer yet" not in world.state(first).waits_for:
                assert time.monotonic() < deadline
                engine.tick()
            (later,) = world.submit([(100, 51)])
            while [row.leg.state for row in world.state(later).legs] != [LegState.HELD, LegState.PENDING]:
                assert time.monotonic() < deadline
                engine.tick()
            assert "no answer yet" in world.state(later).waits_for
            failures = max(backoff.failures for backoff in engine._backoffs.values())
            assert failures == 1, "one silence, however many rounds have found it so"
        finally:
            release.set()
        while not (engine.is_idle() and world.state(later).decision is not None):
            assert time.monotonic() < deadline
            world.clock.advance(timedelta(seconds=6))
            engine.tick()
    assert world.check_ended(first) is Decision.COMMIT and world.check_ended(later) is Decision.COMMIT


def test_a_silent_payer_fills_its_own_bound_and_others_settle(world: World) -> None:
    """Attack: one institution submits thousands of settlements and then signs nothing."""
    silent = ParticipantId("SILNCNBJ")
    world.submit([(1, 1)] * (WAITING_PER_PAYER_MAX * 3), payer=silent)
    world.authoriser.unreachable.add(silent)
    engine = world.engine(wave_settlements=50)
    engine.start()
    for _ in range(20):
        engine.tick()
        world.clock.advance(timedelta(seconds=6))
    assert WAITING_PER_PAYER_MAX <= len(engine._open) < WAITING_PER_PAYER_MAX + 50
    (honest,) = world.submit([(100, 51)])
    world.run(engine, rounds=5)
    assert world.check_ended(honest) is Decision.COMMIT


def test_a_posted_leg_has_the_ledgers_booking_time_and_its_day_is_the_value_date(world: World) -> None:
    """Around midnight (UTC) the decision may be of the day before; the two sides would differ by a day."""
    (settlement,) = world.submit([(100, 51)])
    world.clock.advance(datetime(2026, 11, 23, 23, 59, 59, 900_000, tzinfo=UTC) - world.clock())
    booked_at = datetime(2026, 11, 24, 0, 0, 0, 100_000, tzinfo=UTC)
    real = world.cny.fulfil
    world.cny.fulfil = lambda orders: [Booked(booked_at) for _ in real(orders)]  # type: ignore[method-assign]
    engine = world.engine()
    world.start_and_run(engine)
    row = world.state(settlement)
    assert row.decided_at is not None and row.decided_at.day == 23
    assert row.legs[0].ended_at == booked_at
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        legs = batches.posted_legs(connection, row.batch, participant=BANK_A, currency="CNY")
    (entry,) = batch_entries(legs, BANK_A)
    assert (entry.booked_at, entry.value_date) == (booked_at, booked_at.date())

"""Goal: a settlement of n legs on n islands is all or none (I5): PvPvP over three, a netted cycle of many legs.

Method: `store_settlement` in a caller's own transaction, the real engine over the real decision log (PostgreSQL), fake
islands with the ledger's semantics. Every leg is refused in turn; every write and send is a crash point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.domain.escrow import Decision, LegTerms, SettlementState
from settlement.domain.instructions import Priority
from settlement.domain.multileg import LEGS_MAX, find_fault
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland, IslandCrashed
from settlement.islands.port import HoldStanding, Refused
from settlement.store import batches, gates
from settlement.store.decision_log import DecisionLog
from settlement.usecases.intake import Candidate, Fault
from settlement.usecases.multileg import NewMultileg, Stored, store_settlement
from settlement.usecases.settle import Engine
from tests.recovery.test_settlement_engine import ISLAND_CALLS, LOG_WRITES, CrashPoints

CURRENCIES = ("CNY", "AED", "USD")
BANKS = tuple(ParticipantId(f"{letter * 4}CNBJ") for letter in "ABCDE")
FUNDS = 1_000
A, B, C, D, E = range(5)
CNY, AED, USD = range(3)


def account(bank: int, currency: int) -> AccountNumber:
    return AccountNumber(10 * (currency + 1) + bank)


def leg(payer: int, payee: int, currency: int, amount: int) -> LegTerms:
    money = Money(amount, Currency.of(CURRENCIES[currency]))
    debit, credit = account(payer, currency), account(payee, currency)
    return LegTerms(CURRENCIES[currency].lower(), BANKS[payer], BANKS[payee], debit, credit, money)


PVPVP = (leg(A, B, CNY, 100), leg(B, C, USD, 14), leg(C, A, AED, 51))
CYCLE = (
    leg(A, B, CNY, 30),
    leg(A, C, CNY, 5),
    leg(B, C, AED, 20),
    leg(C, D, AED, 10),
    leg(D, E, CNY, 7),
    leg(E, A, AED, 9),
)
"""Net legs of five banks in two currencies; A pays two of them, on one ledger."""


@dataclass
class World:
    database: Database
    clock: ManualClock
    islands: dict[str, FakeIsland]
    authoriser: FakeAuthoriser
    log: DecisionLog

    def store(self, legs: Sequence[LegTerms], *, is_regretted: bool = False, **options: Any) -> Stored:
        uetr, submitter = options.pop("uetr", None) or uuid4(), options.pop("submitter", BANKS[A])
        new = NewMultileg(uetr, tuple(legs), self.clock().date(), Priority.HIGH)
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            stored = store_settlement(connection, new, submitter=submitter, now=self.clock(), **options)
            if is_regretted:
                connection.rollback()
            return stored

    def engine(self, crash: CrashPoints | None = None) -> Engine:
        watch = crash or CrashPoints()
        return Engine(
            log=watch.over("log", self.log, LOG_WRITES),
            islands={name: watch.over(name, island, ISLAND_CALLS) for name, island in self.islands.items()},
            authoriser=watch.over("authoriser", self.authoriser, ("authorise",)),
            clock=self.clock,
            holder="test",
        )

    def settle(self, crash: CrashPoints | None = None) -> None:
        engine = self.engine(crash)
        engine.start()
        for _ in range(40):
            moved = engine.tick()
            if not moved and engine.is_idle():
                return
            if not moved:
                self.clock.advance(timedelta(seconds=6))

    def row(self, key: UUID) -> batches.SettlementRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            found = batches.find_settlement(connection, key)
        assert found is not None
        return found

    def check_ended(self, key: UUID) -> Decision:
        """I5, I2, I3: all legs posted or none stands, the log agrees, nothing stays reserved."""
        row = self.row(key)
        standings = {self.islands[found.leg.terms.ledger].standing(found.leg.hold_id) for found in row.legs}
        for island in self.islands.values():
            island.check()
        assert row.decision is not None
        if row.decision is Decision.COMMIT:
            assert (standings, row.state) == ({HoldStanding.POSTED}, SettlementState.SETTLED)
        else:
            assert not standings & {HoldStanding.POSTED, HoldStanding.HELD}
            assert row.state is SettlementState.CANCELLED
        return row.decision

    def balances(self) -> dict[tuple[int, int], int]:
        return {
            (bank, currency): self.islands[name.lower()].balance(account(bank, currency)) - FUNDS
            for currency, name in enumerate(CURRENCIES)
            for bank in range(len(BANKS))
        }


@pytest.fixture
def new_world(fresh_database: Callable[[str], str]) -> Iterator[Callable[[], World]]:
    database = Database(fresh_database("settlement"), application_name="test", pool_size=3)
    key = PrivateKey.generate()

    def make() -> World:
        clock = ManualClock(datetime(2026, 11, 23, 8, 0, tzinfo=UTC))
        islands = {
            name.lower(): FakeIsland(
                name.lower(), balances={account(bank, currency): FUNDS for bank in range(len(BANKS))}
            )
            for currency, name in enumerate(CURRENCIES)
        }
        return World(database, clock, islands, FakeAuthoriser(key, clock=clock), DecisionLog(database))

    yield make
    database.close()


@pytest.fixture
def world(new_world: Callable[[], World]) -> World:
    return new_world()


def net(legs: Sequence[LegTerms]) -> dict[tuple[int, int], int]:
    moved: dict[tuple[int, int], int] = {}
    for item in legs:
        currency = CURRENCIES.index(item.amount.currency.code)
        for bank, sign in ((BANKS.index(item.payer), -1), (BANKS.index(item.payee), 1)):
            moved[bank, currency] = moved.get((bank, currency), 0) + sign * item.amount.amount_minor
    return moved


@pytest.mark.parametrize("legs", [PVPVP, CYCLE], ids=["pvpvp", "cycle"])
def test_all_legs_post_together(world: World, legs: Sequence[LegTerms]) -> None:
    stored = world.store(legs)
    world.settle()
    assert world.check_ended(stored.row.id) is Decision.COMMIT
    assert {place: moved for place, moved in world.balances().items() if moved} == net(legs)


@pytest.mark.parametrize("how", ["refused", "short", "unsigned"])
@pytest.mark.parametrize(
    ("legs", "number"),
    [
        *(pytest.param(PVPVP, number, id=f"pvpvp-{number}") for number in range(len(PVPVP))),
        *(
            pytest.param(CYCLE, number, id=f"cycle-{number}", marks=pytest.mark.extended)
            for number in range(len(CYCLE))
        ),
    ],
)
def test_i5_a_refusal_of_any_leg_posts_none(world: World, legs: Sequence[LegTerms], number: int, how: str) -> None:
    given = list(legs)
    if how == "short":
        given[number] = replace(legs[number], amount=Money(FUNDS + 1, legs[number].amount.currency))
    stored = world.store(given)
    wanted = stored.row.legs[number].leg
    if how == "refused":
        world.islands[wanted.terms.ledger].faults.refuse_holds.add(wanted.hold_id)
    if how == "unsigned":
        real = world.authoriser.authorise

        def authorise(payer: ParticipantId, orders: Any) -> Any:
            return [
                Refused("authorisation-refused", "settlement-not-found")
                if order.hold.hold_id == wanted.hold_id
                else answer
                for order, answer in zip(orders, real(payer, orders), strict=True)
            ]

        world.authoriser.authorise = authorise  # type: ignore[method-assign]
    world.settle()
    assert world.check_ended(stored.row.id) is Decision.ABORT
    assert f"leg {number}" in world.row(stored.row.id).detail
    assert not any(world.balances().values())


@pytest.mark.parametrize(
    "is_short", [pytest.param(False, id="commit"), pytest.param(True, id="abort", marks=pytest.mark.extended)]
)
@pytest.mark.parametrize(
    "legs", [pytest.param(PVPVP, id="pvpvp"), pytest.param(CYCLE, id="cycle", marks=pytest.mark.extended)]
)
@pytest.mark.extended
def test_i5_no_crash_point_splits_n_legs(
    new_world: Callable[[], World], legs: Sequence[LegTerms], is_short: bool
) -> None:
    def begin() -> tuple[World, UUID]:
        world = new_world()
        stored = world.store(legs)
        if is_short:
            last = stored.row.legs[-1].leg
            world.islands[last.terms.ledger].faults.refuse_holds.add(last.hold_id)
        return world, stored.row.id

    counting = CrashPoints()
    world, key = begin()
    world.settle(counting)
    expected = world.check_ended(key)
    assert expected is (Decision.ABORT if is_short else Decision.COMMIT)
    decided_at = counting.points.index("after log.decide")
    for point in range(len(counting.points)):
        world, key = begin()
        with pytest.raises(IslandCrashed):
            world.settle(CrashPoints(point))
        world.settle()
        ended = world.check_ended(key)
        if point >= decided_at or is_short:
            assert ended is expected, counting.points[point]


def test_a_settlement_of_the_most_legs_settles(world: World) -> None:
    legs = [leg(payer, payee, currency, 1) for currency in (CNY, AED) for payer in range(5) for payee in range(5)
            if payer != payee]  # fmt: skip
    stored = world.store(legs[:LEGS_MAX])
    world.settle()
    assert world.check_ended(stored.row.id) is Decision.COMMIT


# --- storing


def test_stored_again_it_is_the_same_and_with_other_content_refused(world: World) -> None:
    uetr = uuid4()
    first = world.store(PVPVP, uetr=uetr)
    again = world.store(PVPVP, uetr=uetr)
    assert (first.is_new, again.is_new, again.row.id) == (True, False, first.row.id)
    with pytest.raises(ProblemError, match="batch-id-reused"):
        world.store(CYCLE, uetr=uetr)
    with pytest.raises(ProblemError, match="uetr-already-used"):
        world.store(PVPVP, uetr=uetr, submitter=BANKS[B])


def test_it_stands_or_falls_with_the_callers_transaction(world: World) -> None:
    uetr = uuid4()
    assert world.store(PVPVP, uetr=uetr, is_regretted=True).is_new
    assert world.store(PVPVP, uetr=uetr).is_new


def test_gates_of_checks_and_callers_hold_it_back_and_faults_refuse_it(world: World) -> None:
    def gate(connection: Any, candidates: Sequence[Candidate], *, now: datetime) -> list[Any]:
        (candidate,) = candidates
        assert {item.payer for item in candidate.settlement.legs} == {BANKS[A], BANKS[B], BANKS[C]}
        # The first leg against the one that pays its payer.
        assert (candidate.instruction.debtor, candidate.instruction.counter_amount) == (BANKS[A], PVPVP[2].amount)
        return [gates.Gate(candidate.settlement.id, gates.GateKind.COMPLIANCE, "screened by hand")]

    stored = world.store(PVPVP, checks=[gate])
    world.settle()
    assert world.row(stored.row.id).state is SettlementState.RECEIVED
    queued = world.store(CYCLE, closed=[(gates.GateKind.LIQUIDITY, "in the queue")])
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        for row, kind in ((stored.row, gates.GateKind.COMPLIANCE), (queued.row, gates.GateKind.LIQUIDITY)):
            assert [item.kind for item in gates.closed(connection, [row.id])[row.id]] == [kind]
        gates.open_gates(connection, gates.GateKind.LIQUIDITY, [queued.row.id], by="test", now=world.clock())
    world.settle()
    assert world.check_ended(queued.row.id) is Decision.COMMIT
    assert world.row(stored.row.id).state is SettlementState.RECEIVED

    def refuse(connection: Any, candidates: Sequence[Candidate], *, now: datetime) -> list[Any]:
        return [Fault("screened", 1, "the payee is listed")]

    with pytest.raises(ProblemError, match="batch-invalid"):
        world.store(PVPVP, checks=[refuse])


@pytest.mark.parametrize(
    ("legs", "reason"),
    [
        ([PVPVP[0]], "2 to 32 legs"),
        ([leg(A, B, CNY, number + 1) for number in range(LEGS_MAX + 1)], "2 to 32 legs"),
        ([PVPVP[0], leg(A, A, AED, 1)], "leg 1: payer and payee"),
        ([PVPVP[0], leg(B, A, AED, 0)], "leg 1: the amount"),
        ([PVPVP[0], leg(B, A, AED, 10**18)], "leg 1: the amount"),
        ([PVPVP[0], leg(A, B, CNY, 5)], "leg 1: .* twice"),
        ([PVPVP[0], replace(leg(C, A, CNY, 1), debit=account(B, CNY))], "leg 1: an account on cny"),
    ],
)  # fmt: skip
def test_what_cannot_be_the_legs_of_one_settlement_is_refused(
    world: World, legs: Sequence[LegTerms], reason: str
) -> None:
    assert find_fault(PVPVP) is None and find_fault(CYCLE) is None
    with pytest.raises(ProblemError, match=f"legs-invalid: .*{reason}"):
        world.store(legs)

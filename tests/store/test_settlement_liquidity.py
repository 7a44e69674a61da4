"""Goal: what a run settles is settled as one netting settlement, all of it or nothing (I5), and never twice.
Method: the real desk, engine and log over PostgreSQL; fake islands with the ledger's rules; faults in between, and the
database's own rules tried by plain SQL.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from settlement.domain.calendars import Calendar, CalendarSet, MissedCutOff, PaymentKind
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.liquidity.model import LimitKind, Room
from settlement.islands.fake import IslandCrashed
from settlement.store import batches, gates
from settlement.store import liquidity as store
from settlement.store import tables as t
from settlement.store.calendars import PlanRow, insert_plans
from settlement.usecases import liquidity
from settlement.usecases.calendars import CalendarRules, open_due_gates
from settlement.usecases.liquidity import (
    APPROVAL_TYP,
    UNPOSTED_MAX,
    LimitChange,
    RunRequest,
    SettleAs,
    advance,
    approve,
    preview,
    queue_batch,
    release,
    set_limit,
    start,
    why,
)
from tests.liquidity_world import BRIDGE, CURRENCIES, A, B, C, LiquidityWorld, Pay

RING: list[list[Pay]] = [
    [(A, B, "CNY", 1_000), (B, A, "AED", 500)],
    [(B, C, "CNY", 1_000), (C, B, "HKD", 1_100)],
    [(C, A, "CNY", 990), (A, C, "HKD", 1_100)],
]
"""A pays B, B pays C, C pays A in CNY, each against another currency; almost everything cancels out."""
FUNDS = {(A, "CNY"): 10, (B, "AED"): 500, (A, "HKD"): 1_100, (B, "HKD"): 0}


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[LiquidityWorld]:
    found = LiquidityWorld.make(fresh_database("settlement"), FUNDS)
    yield found
    found.check()
    found.database.close()


def refusal(error: pytest.ExceptionInfo[ProblemError]) -> str:
    return error.value.refusal.value


# --- the main line


def test_a_ring_that_nobody_could_begin_settles_netted_with_one_finality(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.RECEIVED}
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    assert (row.state, row.taken_count, row.queue_count) == ("previewed", 3, 3)
    # CNY: A -10, C +10; AED: B -500, A +500; HKD: C 0, B +1100, A -1100. Three net payments instead of six.
    assert {(n["payer"], n["payee"], n["currency"], n["amount_minor"]) for n in row.summary["net"]} == {
        (A, C, "CNY", "10"), (B, A, "AED", "500"), (A, B, "HKD", "1100"),
    }  # fmt: skip
    assert world.balance(A, "AED") == 0  # a preview moves nothing
    started = start(world.desk, row.id, by=BRIDGE)
    assert start(world.desk, row.id, by=BRIDGE) == started
    world.settle()
    netting = world.row(started.netting_id or UUID(int=0))
    assert netting.state is SettlementState.SETTLED and len(netting.legs) == 3
    for key in ring:
        found = world.row(key)
        assert found.state is SettlementState.SETTLED and found.decision is Decision.COMMIT
        assert (found.decided_at, found.ended_at) == (netting.decided_at, netting.decided_at)
        assert {leg.leg.state for leg in found.legs} == {LegState.NETTED}
    assert (world.balance(A, "CNY"), world.balance(C, "CNY"), world.balance(B, "CNY")) == (0, 10, 0)
    assert (world.balance(A, "AED"), world.balance(B, "HKD"), world.balance(A, "HKD")) == (500, 1_100, 0)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        done = store.find_run(connection, row.id)
        assert store.queue_page(connection, after=None, limit=10, party=None) == []
    assert done is not None and (done.state, done.reason) == ("settled", "")


def test_money_that_is_gone_aborts_the_run_says_so_and_everything_is_queued_again(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    (other,) = world.submit([[(A, B, "HKD", 1)]], is_queued=False)
    world.settle()  # A has 1,099 HKD left: the previewed net payment of 1,100 cannot be held any more
    assert world.state(other) is SettlementState.SETTLED
    started = start(world.desk, row.id, by=BRIDGE)
    world.settle()
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        done = store.find_run(connection, row.id)
        assert [item.id for item in store.read_queue(connection, limit=9)] == ring
    assert done is not None and done.state == "aborted" and "insufficient-funds" in done.reason
    assert world.state(started.netting_id or UUID(int=0)) is SettlementState.CANCELLED
    assert {world.state(key) for key in ring} == {SettlementState.RECEIVED}
    answer = why(world.desk, ring[0], may_overtake=False)
    assert [(need.participant, need.currency, need.amount_minor) for need in answer.needs] == [(A, "HKD", 1)]


def test_with_exactly_the_amount_that_why_names_it_settles_and_with_one_less_it_does_not(
    fresh_database: Callable[[str], str],
) -> None:
    for change, expected in ((0, SettlementState.SETTLED), (-1, SettlementState.RECEIVED)):
        poor = LiquidityWorld.make(fresh_database("settlement"), {})
        poor.submit(RING)
        (asked, *_) = [item.id for item in _queue(poor)]
        needs = why(poor.desk, asked, may_overtake=False).needs
        assert len(needs) > 1
        balances = {(need.participant, need.currency): need.amount_minor for need in needs}
        first = min(balances)
        balances[first] += change
        world = LiquidityWorld.make(fresh_database("settlement"), balances)
        ring = world.submit(RING)
        row = preview(world.desk, RunRequest(), by=BRIDGE)
        if row.taken_count:
            start(world.desk, row.id, by=BRIDGE)
            world.settle()
        assert world.state(ring[0]) is expected
        world.check()
        world.database.close()
        poor.database.close()


def _queue(world: LiquidityWorld) -> list[store.QueueRow]:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        return store.queue_page(connection, after=None, limit=100, party=None)


@pytest.mark.parametrize("refuses", [A, B])
def test_an_institution_that_does_not_sign_its_net_leg_aborts_all(world: LiquidityWorld, refuses: str) -> None:
    ring = world.submit(RING)
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    started = start(world.desk, row.id, by=BRIDGE)
    world.authoriser.refuse.add(world.row(started.netting_id or UUID(int=0)).uetr)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.RECEIVED}
    again = preview(world.desk, RunRequest(), by=BRIDGE)
    assert again.taken_count == 3
    start(world.desk, again.id, by=BRIDGE)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.SETTLED}


# --- crashes


@pytest.mark.parametrize("step", ["persisted", "held", "decided"])
def test_i5_a_crash_leaves_netting_and_instructions_agreed(world: LiquidityWorld, step: str) -> None:
    ring = world.submit(RING)
    row = start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    engine = world.engine()
    engine.start()
    original = {"persisted": world.log.abort_requests, "held": world.log.decide, "decided": world.log.published}[step]

    def die(*_: object, **__: object) -> None:
        raise IslandCrashed

    setattr(world.log, original.__name__, die)
    with pytest.raises(IslandCrashed):
        any(engine.tick() is None for _ in range(10))
    setattr(world.log, original.__name__, original)
    netting = row.netting_id or UUID(int=0)
    expected = SettlementState.SETTLED if step == "decided" else SettlementState.RECEIVED
    if step == "decided":  # final though no leg is posted yet: the decision carries them all
        assert {world.state(key) for key in ring} == {SettlementState.SETTLED}
        assert world.state(netting) is SettlementState.COMMITTED
    world.settle()
    assert {world.state(key) for key in ring} == {expected}
    assert world.state(netting) is (SettlementState.SETTLED if step == "decided" else SettlementState.CANCELLED)


# --- what the database keeps by itself


def test_i5_the_database_refuses_half_a_netting(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    row = start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    netting = row.netting_id
    engine = world.database.engine

    def attempt(*statements: str, **values: object) -> None:
        with pytest.raises(sa.exc.DBAPIError):
            everything(statements, values)

    def everything(statements: Sequence[str], values: dict[str, object]) -> None:
        with engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), values)

    commit = "INSERT INTO decision VALUES (:key, 'commit', 1, now(), NULL, '')"
    prepared = (
        "UPDATE settlement SET state = 'committed', epoch = 1, commit_hash = sha256('a'), abort_hash = sha256('b')"
        " WHERE id = :netting"
    )
    settled = "UPDATE settlement SET state = 'settled' WHERE netted_by = :netting"
    # The netting alone; one instruction alone; all without decisions; all but one; an abort that keeps them.
    attempt(commit.replace(":key", ":netting"), prepared, netting=netting)
    attempt(commit, "UPDATE settlement SET state = 'settled' WHERE id = :key", key=ring[0])
    attempt(settled, netting=netting)
    attempt(commit.replace(":key", ":netting"), prepared, f"{settled} AND id <> :key", netting=netting, key=ring[0])
    attempt(prepared.replace("committed", "aborted"), netting=netting)
    # An instruction with a netting is not prepared by itself, nor taken over by a settlement that does not net.
    attempt(
        "UPDATE settlement SET state = 'prepared', epoch = 1, commit_hash = sha256('a'), abort_hash = sha256('b')"
        " WHERE id = :key",
        key=ring[0],
    )
    attempt("UPDATE settlement SET netted_by = :other WHERE id = :key", key=ring[0], other=ring[1])
    # A net payment that is not what the instructions add up to does not commit.
    whole = (
        commit.replace(":key", ":netting"),
        "INSERT INTO decision SELECT id, 'commit', 1, now(), NULL, '' FROM settlement WHERE netted_by = :netting",
        settled,
        prepared,
    )
    attempt("UPDATE leg SET amount_minor = amount_minor + 1 WHERE settlement_id = :netting", *whole, netting=netting)
    everything(whole, {"netting": netting})
    attempt("UPDATE settlement SET netted_by = NULL WHERE id = :key", key=ring[0])


def test_the_engine_and_withdrawals_leave_a_netted_instruction_alone(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        batches.request_abort(connection, ring[0], by=BRIDGE, now=world.clock())
        gates.open_gates(connection, gates.GateKind.LIQUIDITY, ring, by="test", now=world.clock())
    assert not set(world.log.received(limit=10, now=world.clock())) & set(ring)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.SETTLED}


# --- staleness, refusals, releases


def test_a_preview_that_is_no_longer_true_is_refused_whole(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    first, second = (preview(world.desk, RunRequest(), by=BRIDGE) for _ in range(2))
    start(world.desk, first.id, by=BRIDGE)
    with pytest.raises(ProblemError) as stale:
        start(world.desk, second.id, by=BRIDGE)
    assert refusal(stale) == "liquidity-run-under-way"
    with pytest.raises(ProblemError) as begun:
        release(world.desk, ring[0], by=A, is_operator=False)
    assert refusal(begun) == "liquidity-not-received"
    world.settle()
    with pytest.raises(ProblemError) as gone:
        start(world.desk, second.id, by=BRIDGE)
    assert refusal(gone) == "liquidity-run-stale"
    with pytest.raises(ProblemError) as unknown:
        start(world.desk, uuid4(), by=BRIDGE)
    assert refusal(unknown) == "liquidity-run-not-found"


def test_nothing_to_settle_and_nothing_to_pay_are_refused(world: LiquidityWorld) -> None:
    with pytest.raises(ProblemError) as empty:
        start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    assert refusal(empty) == "liquidity-run-empty"
    world.submit([[(A, B, "CNY", 5)], [(B, A, "CNY", 5)]])
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    assert row.taken_count == 2 and row.summary["net"] == []
    with pytest.raises(ProblemError) as nothing:
        start(world.desk, row.id, by=BRIDGE)
    assert refusal(nothing) == "liquidity-run-empty" and "net to nothing" in str(nothing.value)


def test_released_by_its_debtor_an_instruction_settles_by_itself(world: LiquidityWorld) -> None:
    (key,) = world.submit([[(A, B, "CNY", 10)]])
    for stranger, expected in ((C, "settlement-not-found"), (B, "liquidity-not-queued")):
        with pytest.raises(ProblemError) as refused:
            release(world.desk, key, by=stranger, is_operator=False)
        assert refusal(refused) == expected
    release(world.desk, key, by=A, is_operator=False)
    world.settle()
    assert world.state(key) is SettlementState.SETTLED
    with pytest.raises(ProblemError) as again:
        release(world.desk, key, by=A, is_operator=False)
    assert refusal(again) == "liquidity-not-received"


def test_a_batch_can_be_queued_while_it_has_not_begun(world: LiquidityWorld) -> None:
    keys = world.submit(RING, is_queued=False)
    batch = world.row(keys[0]).batch
    assert [queue_batch(world.desk, batch, by=A, is_operator=False) for _ in range(2)] == [3, 0]
    world.settle()
    assert {world.state(key) for key in keys} == {SettlementState.RECEIVED}
    with pytest.raises(ProblemError) as stranger:
        queue_batch(world.desk, batch, by=C, is_operator=False)
    assert refusal(stranger) == "batch-not-found"


def test_what_waits_for_something_else_is_not_in_a_run_and_why_says_so(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.close(connection, [gates.Gate(ring[0], gates.GateKind.COMPLIANCE, "a screen")], now=world.clock())
    assert preview(world.desk, RunRequest(), by=BRIDGE).queue_count == 2
    assert "compliance: a screen" in why(world.desk, ring[0], may_overtake=True).sentence


def test_a_ledger_that_does_not_answer_stops_a_preview(world: LiquidityWorld) -> None:
    world.submit(RING)
    world.islands["hkd"].faults.down = True
    with pytest.raises(ProblemError) as unknown:
        preview(world.desk, RunRequest(), by=BRIDGE)
    assert refusal(unknown) == "liquidity-positions-unknown"
    world.islands["hkd"].faults.down = False


# --- order and priorities


def test_priorities_come_first(world: LiquidityWorld) -> None:
    low, high = world.submit([[(A, B, "CNY", 6)], [(A, C, "CNY", 6)]], priorities=["NORM", "URGT"])
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        first, second = store.run_items(connection, row.id, after=0, limit=9)
    assert (first.settlement, first.stage) == (high, "gross")
    assert (second.settlement, second.stage) == (low, None)
    assert second.needs == [
        {"kind": "liquidity", "participant": A, "currency": "CNY", "amount_minor": "2", "counterparty": None}
    ]


# --- gross runs


def test_a_gross_run_goes_round_by_round_on_what_earlier_rounds_brought(world: LiquidityWorld) -> None:
    keys = world.submit([[(A, B, "CNY", 10)], [(B, C, "CNY", 10)], [(C, A, "CNY", 10)], [(C, A, "CNY", 10)]])
    row = preview(world.desk, RunRequest(method="strict", settle_as="gross"), by=BRIDGE)
    assert row.taken_count == 3
    start(world.desk, row.id, by=BRIDGE)
    engine = world.engine()
    engine.start()
    for _ in range(6):
        world.settle(engine)
        with world.database.transaction(isolation="READ COMMITTED") as connection:
            advance(connection, world.clock())
    assert [world.state(key).value for key in keys] == ["settled", "settled", "settled", "received"]
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        done = store.find_run(connection, row.id)
    assert done is not None and done.state == "settled"


def test_a_gross_round_that_fails_keeps_what_counted_on_it_queued(world: LiquidityWorld) -> None:
    keys = world.submit([[(A, B, "CNY", 10)], [(B, C, "CNY", 10)]])
    row = preview(world.desk, RunRequest(method="strict", settle_as="gross"), by=BRIDGE)
    world.authoriser.refuse.add(world.row(keys[0]).uetr)
    start(world.desk, row.id, by=BRIDGE)
    world.settle()
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert advance(connection, world.clock()) == 1
        done = store.find_run(connection, row.id)
    assert done is not None and done.state == "aborted" and "stays queued" in done.reason
    assert [world.state(key).value for key in keys] == ["cancelled", "received"]


def test_a_gross_run_that_is_held_back_ends_only_when_the_rest_of_its_round_is_decided(world: LiquidityWorld) -> None:
    held, other = world.submit([[(A, B, "CNY", 10)], [(B, A, "AED", 5)]])
    run = start(world.desk, preview(world.desk, RunRequest(settle_as="gross"), by=BRIDGE).id, by=BRIDGE).id
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.close(connection, [gates.Gate(held, gates.GateKind.CALENDAR, "until Monday")], now=world.clock())
    world.authoriser.unreachable.add(B)
    engine = world.engine()
    engine.start()
    for _ in range(3):
        engine.tick()
    assert world.state(other) is SettlementState.PREPARED
    assert _advanced(world, run)[0] == 0  # limits would not count it yet
    world.authoriser.unreachable.clear()
    world.clock.advance(timedelta(seconds=10))
    world.settle(engine)
    moved, row = _advanced(world, run)
    assert (moved, row.state) == (1, "aborted") and "until Monday" in row.reason


def _decide_only(world: LiquidityWorld) -> None:
    """What was received is decided, and no ledger hears of it: the engine dies there."""
    engine, original = world.engine(), world.log.published
    engine.start()

    def die(*_: object, **__: object) -> None:
        raise IslandCrashed

    world.log.published = die  # type: ignore[method-assign, assignment]
    with pytest.raises(IslandCrashed):
        any(engine.tick() is None for _ in range(10))
    world.log.published = original  # type: ignore[method-assign]


def _advanced(world: LiquidityWorld, run: UUID) -> tuple[int, store.RunRow]:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        moved = advance(connection, world.clock())
        row = store.find_run(connection, run)
    assert row is not None
    return moved, row


def test_a_ledger_that_stays_away_ends_a_gross_run_in_time_and_another_can_start(world: LiquidityWorld) -> None:
    first, second = world.submit([[(A, B, "CNY", 10)], [(B, C, "CNY", 10)]])
    run = start(world.desk, preview(world.desk, RunRequest(settle_as="gross"), by=BRIDGE).id, by=BRIDGE).id
    _decide_only(world)
    assert world.state(first) is SettlementState.COMMITTED
    world.clock.advance(UNPOSTED_MAX - timedelta(microseconds=1))
    assert _advanced(world, run)[0] == 0
    world.clock.advance(timedelta(microseconds=1))
    moved, row = _advanced(world, run)
    assert (moved, row.state) == (1, "aborted") and "has not posted it yet" in row.reason
    assert (world.state(first), world.state(second)) == (SettlementState.COMMITTED, SettlementState.RECEIVED)
    (other,) = world.submit([[(B, A, "AED", 5)]])
    again = preview(world.desk, RunRequest(), by=BRIDGE)
    assert start(world.desk, again.id, by=BRIDGE).state == "running"
    world.settle()
    assert {world.state(key) for key in (first, other)} == {SettlementState.SETTLED}


def test_the_last_round_of_a_gross_run_ends_it_when_it_is_decided(world: LiquidityWorld) -> None:
    (key,) = world.submit([[(A, B, "CNY", 10)]])
    run = start(world.desk, preview(world.desk, RunRequest(settle_as="gross"), by=BRIDGE).id, by=BRIDGE).id
    assert _advanced(world, run)[0] == 0  # undecided
    _decide_only(world)
    moved, row = _advanced(world, run)
    assert (moved, row.state, world.state(key)) == (1, "settled", SettlementState.COMMITTED)
    world.settle()


def test_an_abort_ends_a_gross_run_before_every_hold_is_back(world: LiquidityWorld) -> None:
    first, second = world.submit([[(A, B, "CNY", 10)], [(B, C, "CNY", 10)]])
    run = start(world.desk, preview(world.desk, RunRequest(settle_as="gross"), by=BRIDGE).id, by=BRIDGE).id
    world.authoriser.refuse.add(world.row(first).uetr)
    _decide_only(world)
    assert world.state(first) is SettlementState.ABORTED
    moved, row = _advanced(world, run)
    assert (moved, row.state) == (1, "aborted") and "stays queued" in row.reason
    world.settle()
    assert (world.state(first), world.state(second)) == (SettlementState.CANCELLED, SettlementState.RECEIVED)


# --- limits


def test_limits_are_dated_and_within_the_operators_cap(world: LiquidityWorld) -> None:
    today = world.clock().date()

    def put(kind: LimitKind, amount: int | None, *, by: str = A, days: int = 0, towards: str | None = None) -> bool:
        change = LimitChange(kind, A, "CNY", towards, amount, today + timedelta(days=days))  # type: ignore[arg-type]
        return set_limit(world.desk, change, by=by, is_operator=by == BRIDGE)[1]  # type: ignore[arg-type]

    assert put(LimitKind.CAP, 100, by=BRIDGE)
    assert put(LimitKind.BILATERAL, 100, towards=B) and not put(LimitKind.BILATERAL, 100, towards=B)
    with pytest.raises(ProblemError) as above:
        put(LimitKind.MULTILATERAL, 101)
    assert refusal(above) == "liquidity-limit-above-cap"
    with pytest.raises(sa.exc.IntegrityError), world.database.engine.begin() as connection:
        connection.execute(
            sa.text(
                "INSERT INTO liquidity_limit VALUES"
                " (:id, :who, 'CNY', 'multilateral', NULL, 101, :today, false, :who, now())"
            ),
            {"id": uuid4(), "who": A, "today": today},
        )
    for kind, towards, by, days in (
        (LimitKind.BILATERAL, None, A, 0),
        (LimitKind.CAP, B, A, 0),
        (LimitKind.BILATERAL, A, A, 0),
        (LimitKind.BILATERAL, "ZZZZCNBJ", A, 0),
        (LimitKind.MULTILATERAL, None, BRIDGE, 0),
        (LimitKind.CAP, None, A, -1),
    ):
        with pytest.raises(ProblemError) as invalid:
            put(kind, 1, towards=towards, by=by, days=days)
        assert refusal(invalid) == "liquidity-limit-invalid"


def test_a_limit_counts_what_was_paid_today_netted_or_not(world: LiquidityWorld) -> None:
    today = world.clock().date()
    change = LimitChange(LimitKind.CAP, A, "CNY", None, 8, today)
    set_limit(world.desk, change, by=A, is_operator=False)
    (paid,) = world.submit([[(A, B, "CNY", 5)]])
    start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    world.settle()
    assert world.state(paid) is SettlementState.SETTLED
    over, within = world.submit([[(A, B, "CNY", 4)], [(A, C, "CNY", 3)]])
    row = preview(world.desk, RunRequest(), by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        items = {item.settlement: item for item in store.run_items(connection, row.id, after=0, limit=9)}
    assert items[within].stage is None and items[over].needs[0]["kind"] == "cap"
    assert items[over].needs[0]["amount_minor"] == "1"
    world.clock.advance(timedelta(days=1))
    assert preview(world.desk, RunRequest(), by=BRIDGE).taken_count == 1


# --- one run at a time


def test_a_limits_day_is_that_of_finality_and_ends_at_midnight_utc(world: LiquidityWorld) -> None:
    _limit_of_a(world, 8)
    now = world.clock()
    midnight = datetime(now.year, now.month, now.day, tzinfo=UTC) + timedelta(days=1)
    world.clock.advance(midnight - timedelta(seconds=1) - now)
    start(world.desk, _preview_of(world, [[(A, B, "CNY", 5)]]), by=BRIDGE)
    world.clock.advance(timedelta(seconds=1))  # queued and started before midnight, decided after it
    world.settle()
    (over,) = world.submit([[(A, C, "CNY", 4)]])
    assert preview(world.desk, RunRequest(), by=BRIDGE).taken_count == 0
    world.clock.advance(timedelta(days=1) - timedelta(microseconds=1))
    assert preview(world.desk, RunRequest(), by=BRIDGE).taken_count == 0
    world.clock.advance(timedelta(microseconds=1))
    start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    world.settle()
    assert world.state(over) is SettlementState.SETTLED


def test_two_runs_one_after_another_do_not_pass_a_limit(world: LiquidityWorld) -> None:
    _limit_of_a(world, 8)
    (first,) = world.submit([[(A, B, "CNY", 5)]])
    one = preview(world.desk, RunRequest(), by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.close(connection, [gates.Gate(first, gates.GateKind.COMPLIANCE, "out of the way")], now=world.clock())
    (second,) = world.submit([[(A, B, "CNY", 5)]])
    two = preview(world.desk, RunRequest(), by=BRIDGE)  # each alone is within the limit
    _open_compliance(world, first)
    start(world.desk, one.id, by=BRIDGE)
    with pytest.raises(ProblemError) as under_way:
        start(world.desk, two.id, by=BRIDGE)
    assert refusal(under_way) == "liquidity-run-under-way"
    world.settle()
    with pytest.raises(ProblemError) as passed:
        start(world.desk, two.id, by=BRIDGE)
    assert refusal(passed) == "liquidity-run-stale" and "cap limit" in str(passed.value)
    # The database by itself: it adds up what is final today and what the run takes.
    with pytest.raises(sa.exc.IntegrityError, match="cap limit"), world.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE liquidity_run SET state = 'running', started_at = :now, started_by = 'x' WHERE id = :id"),
            {"id": two.id, "now": world.clock()},
        )
    assert (world.state(first), world.state(second)) == (SettlementState.SETTLED, SettlementState.RECEIVED)


def test_of_two_starts_at_once_one_is_refused_and_the_database_agrees(world: LiquidityWorld) -> None:
    _limit_of_a(world, 8)
    (first,) = world.submit([[(A, B, "CNY", 5)]])
    one = preview(world.desk, RunRequest(), by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.close(connection, [gates.Gate(first, gates.GateKind.COMPLIANCE, "out of the way")], now=world.clock())
    (second,) = world.submit([[(A, C, "CNY", 5)]])
    two = preview(world.desk, RunRequest(), by=BRIDGE)
    _open_compliance(world, first)
    together = threading.Barrier(2)

    def attempt(run: UUID) -> str:
        together.wait(10)
        try:
            return start(world.desk, run, by=BRIDGE).state
        except ProblemError as error:
            return error.refusal.value

    with ThreadPoolExecutor(2) as pool:
        answers = sorted(pool.map(attempt, (one.id, two.id)))
    assert answers == ["liquidity-run-under-way", "running"]
    with world.database.engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE liquidity_run DISABLE TRIGGER USER"))
    second_too = sa.text(
        "UPDATE liquidity_run SET state = 'running', started_at = now(), started_by = 'x', netting_id = :other"
        " WHERE state = 'previewed'"
    )
    with (
        pytest.raises(sa.exc.IntegrityError, match="liquidity_run_one_at_a_time"),
        world.database.engine.begin() as connection,
    ):
        connection.execute(second_too, {"other": second})
    world.settle()
    assert sorted(world.state(key).value for key in (first, second)) == ["received", "settled"]


@pytest.mark.parametrize("settle_as", ["net", "gross"])
def test_a_limit_that_is_set_while_a_run_starts_makes_it_stale(
    world: LiquidityWorld, monkeypatch: pytest.MonkeyPatch, settle_as: SettleAs
) -> None:
    _limit_of_a(world, 8)
    (key,) = world.submit([[(A, B, "CNY", 5)]])
    row = preview(world.desk, RunRequest(settle_as=settle_as), by=BRIDGE)
    read = liquidity._rooms

    def read_then_lowered(connection: sa.Connection, now: datetime) -> tuple[Room, ...]:
        found = read(connection, now)
        _limit_of_a(world, 4)
        return found

    monkeypatch.setattr(liquidity, "_rooms", read_then_lowered)
    with pytest.raises(ProblemError) as passed:
        start(world.desk, row.id, by=BRIDGE)
    assert refusal(passed) == "liquidity-run-stale" and "set meanwhile" in str(passed.value)
    assert world.state(key) is SettlementState.RECEIVED
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert [item.id for item in store.read_queue(connection, limit=9)] == [key]
        found = store.find_run(connection, row.id)
    assert found is not None and found.state == "previewed"


def test_the_database_counts_what_was_received_today_and_nothing_of_others(world: LiquidityWorld) -> None:
    """A's cap is on what it pays net: what it received today makes room again, what B paid C does not."""
    _limit_of_a(world, 8)
    start(world.desk, _preview_of(world, [[(A, B, "CNY", 8)]]), by=BRIDGE)
    world.settle()
    start(world.desk, _preview_of(world, [[(B, A, "CNY", 3)], [(B, C, "CNY", 5)]]), by=BRIDGE)
    world.settle()
    begin = sa.text(
        "UPDATE liquidity_run SET state = 'running', started_at = :now, started_by = 'x', settle_as = 'gross'"
        " WHERE id = :id"
    )
    within, over = _preview_of(world, [[(A, C, "CNY", 3)]]), _preview_of(world, [[(A, C, "CNY", 1)]])
    with world.database.engine.begin() as connection:  # its preview left one out
        connection.execute(sa.text("UPDATE liquidity_run_item SET stage = 'gross' WHERE run_id = :id"), {"id": over})
    with pytest.raises(sa.exc.IntegrityError, match="cap limit"), world.database.engine.begin() as connection:
        connection.execute(begin, {"id": over, "now": world.clock()})
    with world.database.engine.begin() as connection:
        connection.execute(begin, {"id": within, "now": world.clock()})


def _preview_of(world: LiquidityWorld, payments: Sequence[Sequence[Pay]]) -> UUID:
    world.submit(payments)
    return preview(world.desk, RunRequest(), by=BRIDGE).id


def _limit_of_a(world: LiquidityWorld, amount_minor: int) -> None:
    change = LimitChange(LimitKind.CAP, A, "CNY", None, amount_minor, world.clock().date())
    set_limit(world.desk, change, by=A, is_operator=False)


def _open_compliance(world: LiquidityWorld, settlement: UUID) -> None:
    with world.database.engine.begin() as connection:
        connection.execute(
            sa.text("DELETE FROM gate WHERE settlement_id = :id AND kind = 'compliance'"), {"id": settlement}
        )


# --- hours


def test_a_run_outside_its_ledgers_hours_is_refused_and_says_when(world: LiquidityWorld) -> None:
    desk = replace(world.desk, calendars=open_from_to(world, "08:00", "17:00"))
    ring = world.submit(RING)
    row = preview(desk, RunRequest(), by=BRIDGE)
    world.clock.advance(timedelta(hours=14))  # 18:00Z
    with pytest.raises(ProblemError) as shut:
        start(desk, row.id, by=BRIDGE)
    assert refusal(shut) == "liquidity-run-out-of-hours"
    assert "AED, CNY, HKD are not open together now; next from 2026-06-16 08:00Z" in str(shut.value)
    world.clock.advance(timedelta(hours=14))  # 08:00Z
    start(desk, row.id, by=BRIDGE)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.SETTLED}


def test_a_netting_that_was_held_up_past_its_window_ends_and_its_instructions_are_queued(
    world: LiquidityWorld,
) -> None:
    rules = open_from_to(world, "03:00", "17:00")
    desk = replace(world.desk, calendars=rules)
    ring = world.submit(RING)
    row = start(desk, preview(desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    world.clock.advance(timedelta(hours=13))  # nobody ran the engine until 17:00:00Z
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert open_due_gates(connection, rules, now=world.clock()) == 1
        done = store.find_run(connection, row.id)
    assert done is not None and done.state == "aborted" and "window closed at" in done.reason
    assert world.state(row.netting_id or UUID(int=0)) is SettlementState.CANCELLED
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.RECEIVED}
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert [item.id for item in store.read_queue(connection, limit=9)] == ring


def test_an_instruction_past_its_own_window_is_in_no_run_and_the_database_agrees(
    world: LiquidityWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = open_from_to(world, "00:00", "24:00")
    desk = replace(world.desk, calendars=rules)
    (key,) = world.submit([[(A, B, "CNY", 5)]])
    now = world.clock()
    plan = PlanRow(
        key, PaymentKind.BANK, MissedCutOff.ROLL, ("CNY",), now.date(), now.date(), now - timedelta(hours=2),
        now + timedelta(hours=1), bytes(32), False,
    )  # fmt: skip
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        insert_plans(connection, [plan], now=now)
    row = preview(desk, RunRequest(), by=BRIDGE)
    world.clock.advance(timedelta(hours=1))
    with pytest.raises(ProblemError) as late:
        start(desk, row.id, by=BRIDGE)
    assert refusal(late) == "liquidity-run-out-of-hours" and ids.show("stl", key) in str(late.value)
    with pytest.raises(ProblemError) as without:  # a service that was started again without calendars
        start(world.desk, row.id, by=BRIDGE)
    assert str(without.value) == str(late.value)
    monkeypatch.setattr(liquidity, "_check_windows", lambda *_, **__: None)  # as if the plan had changed meanwhile
    with pytest.raises(ProblemError) as changed:
        start(world.desk, row.id, by=BRIDGE)
    assert refusal(changed) == "liquidity-run-out-of-hours" and "not within its window" in str(changed.value)
    with pytest.raises(sa.exc.DBAPIError, match="outside the window"), world.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE liquidity_run SET state = 'running', started_at = :now, started_by = 'x' WHERE id = :id"),
            {"id": row.id, "now": world.clock()},
        )


def open_from_to(world: LiquidityWorld, opens: str, closes: str) -> CalendarRules:
    days = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
    calendars = {
        currency: Calendar.model_validate(
            {
                "currency": currency, "title": currency, "time_zone": "UTC", "home_countries": ["CN"],
                "covers_from": date(2026, 1, 1), "covers_to": date(2026, 12, 31), "source": "this test",
                "working_days": [], "days_off": [], "early_closes": [],
                "hours": [
                    {
                        "valid_from": date(2026, 1, 1), "days": days, "opens": opens, "closes": closes,
                        "customer_cut_off": closes, "bank_cut_off": closes, "source": "this test",
                    }
                ],
            }
        )
        for currency in CURRENCIES
    }  # fmt: skip
    return CalendarRules(CalendarSet(calendars, "00" * 32))


def test_a_gross_run_that_the_calendar_holds_back_ends_and_another_can_start(world: LiquidityWorld) -> None:
    first, second = world.submit([[(A, B, "CNY", 10)], [(B, C, "CNY", 10)]])
    row = start(world.desk, preview(world.desk, RunRequest(settle_as="gross"), by=BRIDGE).id, by=BRIDGE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.close(connection, [gates.Gate(first, gates.GateKind.CALENDAR, "until Monday")], now=world.clock())
        assert advance(connection, world.clock()) == 1
        done = store.find_run(connection, row.id)
    assert done is not None and done.state == "aborted" and "until Monday" in done.reason
    assert world.state(second) is SettlementState.RECEIVED


# --- what a participant is told


def test_no_amount_tried_tells_a_participant_what_another_has(world: LiquidityWorld) -> None:
    """B has 500 AED. A asks for amounts around it, alone and behind one another: every answer is the same."""
    keys = world.submit([[(B, A, "AED", amount)] for amount in (1, 499, 500, 501, 10**15)])
    (paying,) = world.submit([[(A, B, "CNY", 11), (B, A, "AED", 600)]])
    told = {why(world.desk, key, may_overtake=False, viewer=A).sentence for key in keys}
    assert told == {f"Nothing is lacking on the side of {A}; whether the others can pay is not shown."}
    own = why(world.desk, paying, may_overtake=False, viewer=A)
    assert [(need.participant, need.currency, need.amount_minor) for need in own.needs] == [(A, "CNY", 1)]
    world.islands["aed"].faults.down = True  # its own side needs no other's account
    assert why(world.desk, paying, may_overtake=False, viewer=C).needs == ()
    world.islands["aed"].faults.down = False


# --- runs that break the queue's order


def token(world: LiquidityWorld, row: store.RunRow, officer: PrivateKey, **changes: str) -> str:
    claims = {"run": ids.show("lqr", row.id), "taken_sha256": row.taken_sha256.hex()} | changes
    return jws.sign(jws.canonical_json(claims), officer, typ=APPROVAL_TYP)


def test_an_optimising_run_passes_the_queue_and_needs_two_officers(world: LiquidityWorld) -> None:
    pytest.importorskip("ortools", reason="the optional solver is not installed")
    blocked, *small = world.submit([[(A, B, "CNY", 11)], [(A, B, "CNY", 4)], [(A, B, "CNY", 6)]])
    row = preview(world.desk, RunRequest(method="optimise", seconds=5), by=BRIDGE)
    assert row.taken_count == 2 and row.summary["is_proven"]
    with pytest.raises(ProblemError) as alone:
        start(world.desk, row.id, by=BRIDGE)
    assert refusal(alone) == "liquidity-approvals-missing"
    an, bo = world.officers.values()
    for bad in (
        token(world, row, PrivateKey.generate()),
        token(world, row, an, taken_sha256="0" * 64),
        token(world, row, an, run=ids.show("lqr", uuid4())),
        "x.y.z",
    ):
        with pytest.raises(ProblemError) as invalid:
            approve(world.desk, row.id, bad)
        assert refusal(invalid) == "liquidity-approval-invalid"
    assert approve(world.desk, row.id, token(world, row, an)).approved_by == ("an",)
    assert approve(world.desk, row.id, token(world, row, an)).approved_by == ("an",)
    with pytest.raises(sa.exc.IntegrityError), world.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE liquidity_run SET state = 'running', started_at = now(), started_by = 'x' WHERE id = :id"),
            {"id": row.id},
        )
    with pytest.raises(ProblemError):
        start(world.desk, row.id, by=BRIDGE)
    approve(world.desk, row.id, token(world, row, bo))
    start(world.desk, row.id, by=BRIDGE)
    world.settle()
    assert world.state(blocked) is SettlementState.RECEIVED
    assert {world.state(key) for key in small} == {SettlementState.SETTLED}
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        tampered = connection.execute(sa.select(t.decision.c.decision)).scalars().all()
    assert set(tampered) == {"commit"}


def test_overtaking_needs_officers_unless_the_scheme_allows_it(world: LiquidityWorld) -> None:
    large, small = world.submit([[(A, B, "CNY", 11)], [(A, C, "CNY", 4)]])
    row = preview(world.desk, RunRequest(method="overtaking"), by=BRIDGE)
    assert row.needs_approval and row.summary["stages"] == {"overtaking": 1}
    with pytest.raises(ProblemError) as alone:
        start(world.desk, row.id, by=BRIDGE)
    assert refusal(alone) == "liquidity-approvals-missing"
    free = replace(world.desk, may_overtake=True)
    start(free, preview(free, RunRequest(method="overtaking"), by=BRIDGE).id, by=BRIDGE)
    world.settle()
    assert (world.state(small), world.state(large)) == (SettlementState.SETTLED, SettlementState.RECEIVED)

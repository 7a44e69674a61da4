"""Goal: what a run settles is settled as one netting settlement, all of it or nothing (I5), and never twice.
Method: the real desk, engine and log over PostgreSQL; fake islands with the ledger's rules; faults in between, and the
database's own rules tried by plain SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from kernel import ids
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.errors import ProblemError
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.liquidity.model import LimitKind
from settlement.islands.fake import IslandCrashed
from settlement.store import batches, gates
from settlement.store import liquidity as store
from settlement.store import tables as t
from settlement.usecases.liquidity import (
    APPROVAL_TYP,
    LimitChange,
    RunRequest,
    advance,
    approve,
    preview,
    queue_batch,
    release,
    set_limit,
    start,
    why,
)
from tests.liquidity_world import BRIDGE, A, B, C, LiquidityWorld, Pay

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
    original = {"persisted": world.log.record_legs, "held": world.log.decide, "decided": world.log.unfinished}[step]

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
    assert not set(world.log.received(limit=10)) & set(ring)
    world.settle()
    assert {world.state(key) for key in ring} == {SettlementState.SETTLED}


# --- staleness, refusals, releases


def test_a_preview_that_is_no_longer_true_is_refused_whole(world: LiquidityWorld) -> None:
    ring = world.submit(RING)
    first, second = (preview(world.desk, RunRequest(), by=BRIDGE) for _ in range(2))
    start(world.desk, first.id, by=BRIDGE)
    with pytest.raises(ProblemError) as stale:
        start(world.desk, second.id, by=BRIDGE)
    assert refusal(stale) == "liquidity-run-stale"
    with pytest.raises(ProblemError) as begun:
        release(world.desk, ring[0], by=A, is_operator=False)
    assert refusal(begun) == "liquidity-not-received"
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

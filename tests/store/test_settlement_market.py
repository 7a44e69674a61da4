"""Goal: no quote is used beyond its size, whoever races; a lock is consumed, released or renewed with its settlement.

Method: the real PostgreSQL under the service's own role, the real engine on fake islands, a clock that the tests move;
then plain SQL that tries what the code never does.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from kernel.money import Money
from settlement.domain.compliance import ListScreen, Policy, ScreeningList
from settlement.domain.escrow import SettlementState
from settlement.domain.instructions import Instruction, Priority
from settlement.domain.market import QUOTES_OF_A_PAIR_KEPT
from settlement.domain.refusals import SettlementRefusal as R
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.iso20022.pacs009 import write_pacs009
from settlement.store import batches, gates
from settlement.store import compliance as compliance_store
from settlement.store import market as store
from settlement.store.batches import find_settlement
from settlement.store.decision_log import DecisionLog
from settlement.usecases import liquidity
from settlement.usecases.compliance import Compliance, ComplianceCheck, NewScreening, find_barred, screen_anew
from settlement.usecases.liquidity import Desk, RunRequest, SettleAs
from settlement.usecases.market import (
    BATCH_LOCK_TIME,
    ExecutionOrder,
    Market,
    end_expired_locks,
    execute,
    make_order,
    post_quote,
    preview,
    return_released,
    withdraw_quote,
)
from settlement.usecases.settle import Engine
from settlement.usecases.submit import Submission, submit_batch
from tests.market_world import (
    AED,
    BRIDGE,
    CNY,
    INSTITUTIONS,
    P1,
    P2,
    P3,
    PAYEE,
    PAYER,
    START,
    Quotes,
    account,
    directory,
    islands,
    new_keys,
    new_uetr,
)
from tests.roles import as_service, dsn

LOCK = timedelta(seconds=60)


@dataclass
class World:
    market: Market
    quotes: Quotes
    clock: ManualClock
    islands: dict[str, FakeIsland]
    authoriser: FakeAuthoriser
    engine: Engine
    owner_dsn: str

    def post(self, provider: ParticipantId, pair: str, **changes: Any) -> UUID:
        row, _ = post_quote(self.market, self.quotes.token(provider, pair, **changes), provider=provider)
        return row.standing.terms.quote

    def sell(self, amount: int, *, buy: str = "AED", gate: bool = False, **changes: Any) -> UUID:
        """CNY of the payer for the payee; the settlement."""
        return self.execute(amount, None, buy=buy, gate=gate, **changes)

    def execute(
        self, given: int | None, received: int | None, *, buy: str = "AED", gate: bool = False, **changes: Any
    ) -> UUID:
        checks = [*changes.pop("checks", ()), *([_close] if gate else [])]
        request = self.request(given, received, buy=buy, **changes)
        outcome = execute(
            self.market,
            request,
            is_started=True,
            checks=checks,
            render=lambda _, row: {"key": str(row.execution.settlement)},
        )
        return UUID(outcome.body["key"])

    def request(
        self,
        given: int | None,
        received: int | None,
        *,
        buy: str = "AED",
        least: int | None = None,
        most: int | None = None,
        on_expiry: str = "abort",
        uetr: UUID | None = None,
        submitter: ParticipantId = PAYER,
        content: bytes = b"",
        limit_rate: str | None = None,
    ) -> ExecutionOrder:
        order = make_order(
            self.market,
            payer=PAYER,
            payee=PAYEE,
            sell="CNY",
            buy=buy,
            given_minor=given,
            received_minor=received,
            least_received_minor=least,
            most_given_minor=most,
            limit_rate=limit_rate,
        )
        uetr = uetr or new_uetr()
        return ExecutionOrder(
            order,
            uetr,
            self.clock().date(),
            Priority.NORMAL,
            on_expiry,
            submitter,
            False,
            str(uetr),
            "/v1/executions",
            content or uetr.bytes,
        )

    def run(self) -> None:
        for _ in range(20):
            if not self.engine.tick() and self.engine.is_idle():
                return

    def used(self, quote: UUID) -> tuple[int, int]:
        with self.market.database.transaction(isolation="READ COMMITTED") as connection:
            row = store.find_quote(connection, quote)
        assert row is not None
        return row.standing.bid_used_minor, row.standing.offer_used_minor

    def state(self, settlement: UUID) -> SettlementState:
        with self.market.database.transaction(isolation="READ COMMITTED") as connection:
            row = find_settlement(connection, settlement)
        assert row is not None
        return row.state

    def fills(self, settlement: UUID) -> list[store.FillRow]:
        with self.market.database.transaction(isolation="READ COMMITTED") as connection:
            return store.fills(connection, settlement)

    def open_gate(self, settlement: UUID) -> None:
        with self.market.database.transaction(isolation="READ COMMITTED") as connection:
            gates.open_gates(connection, gates.GateKind.LIQUIDITY, [settlement], by="test", now=self.clock())

    def moved(self, participant: ParticipantId) -> tuple[int, int, int]:
        """CNY, USD and AED since the start."""
        found = [
            self.islands[f"{code.lower()}-ledger"].balance(account(participant, code)) - START
            for code in ("CNY", "USD", "AED")
        ]
        return found[0], found[1], found[2]


def _close(connection: object, candidates: Any, *, now: datetime) -> list[gates.Gate]:
    return [gates.Gate(item.settlement.id, gates.GateKind.LIQUIDITY, "the queue") for item in candidates]


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[World]:
    url = fresh_database("settlement")
    clock = ManualClock(datetime.now(UTC))
    keys = new_keys()
    database = Database(as_service(url, "settlement"), application_name="test", pool_size=12)
    fakes, authoriser = islands(), FakeAuthoriser(PrivateKey.generate(), clock=clock)
    engine = Engine(log=DecisionLog(database), islands=fakes, authoriser=authoriser, clock=clock, holder="test")
    engine.start()
    market = Market(database, directory(keys, []), BRIDGE, clock, LOCK)
    yield World(market, Quotes(keys, clock), clock, fakes, authoriser, engine, dsn(url))
    database.close()
    for island in fakes.values():
        island.check()


def refusal_of(call: Callable[[], object]) -> R:
    with pytest.raises(ProblemError) as refused:
        call()
    assert isinstance(refused.value.refusal, R)
    return refused.value.refusal


# --- quotes


def test_a_quote_is_posted_amended_and_withdrawn_by_its_provider_alone(world: World) -> None:
    token = world.quotes.token(P1, "CNY/AED", bid="0.50", offer="0.52")
    row, is_new = post_quote(world.market, token, provider=P1)
    assert is_new
    assert post_quote(world.market, token, provider=P1) == (row, False)
    quote = row.standing.terms.quote
    other = world.quotes.token(P1, "CNY/AED", bid="0.49", quote=quote)
    assert refusal_of(lambda: post_quote(world.market, other, provider=P1)) is R.FX_QUOTE_SUPERSEDED
    stolen = world.quotes.token(P2, "CNY/AED", bid="0.1", quote=quote, revision=2)
    assert refusal_of(lambda: post_quote(world.market, stolen, provider=P2)) is R.FX_QUOTE_NOT_FOUND
    assert refusal_of(lambda: withdraw_quote(world.market, quote, provider=P2)) is R.FX_QUOTE_NOT_FOUND
    world.post(P1, "CNY/AED", bid="0.49", quote=quote, revision=2)
    withdrawn = withdraw_quote(world.market, quote, provider=P1)
    assert (withdrawn.standing.terms.revision, withdrawn.standing.withdrawn_at) == (2, world.clock())
    late = world.quotes.token(P1, "CNY/AED", bid="0.49", quote=quote, revision=3)
    assert refusal_of(lambda: post_quote(world.market, late, provider=P1)) is R.FX_QUOTE_WITHDRAWN
    assert refusal_of(lambda: world.sell(100)) is R.FX_NO_ROUTE


def test_a_quote_that_is_not_the_providers_own_text_for_this_bridge_is_refused(world: World) -> None:
    document = world.quotes.document(P1, "CNY/AED", bid="0.50")
    forged = world.quotes.sign(document, by=P2)
    elsewhere = world.quotes.sign(document.model_copy(update={"bridge": PAYEE}))
    unsigned = ".".join(world.quotes.sign(document).split(".")[:2]) + ".AAAA"
    for token in (forged, elsewhere, unsigned, "a.b.c" * 10):
        assert refusal_of(lambda token=token: post_quote(world.market, token, provider=P1)) is R.FX_QUOTE_INVALID  # type: ignore[misc]
    assert refusal_of(lambda: world.post(P1, "CNY/JPY", bid="20")) is R.CURRENCY_NOT_SERVED
    old = world.clock() - timedelta(minutes=2)
    assert refusal_of(lambda: world.post(P1, "CNY/AED", bid="0.5", issued_at=old)) is R.FX_QUOTE_STALE


def test_an_amended_price_loses_its_place_in_time_and_a_smaller_size_does_not(world: World) -> None:
    first, second = (world.post(provider, "CNY/AED", bid="0.50", size=100) for provider in (P1, P2))
    world.post(P1, "CNY/AED", bid="0.50", size=90, quote=first, revision=2)
    assert [fill.quote for fill in world.fills(world.sell(10))] == [first]
    world.post(P1, "CNY/AED", bid="0.51", size=90, quote=first, revision=3)
    world.post(P1, "CNY/AED", bid="0.50", size=90, quote=first, revision=4)
    assert [fill.quote for fill in world.fills(world.sell(10))] == [second]


def test_two_providers_cannot_fill_a_pair_so_that_nobody_else_quotes_it(world: World) -> None:
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO fx_quote (id, provider, base, counter, revision, bid, bid_size_minor, offer_size_minor,"
            " fee_ppm, priority, issued_at, valid_until, posted_at) SELECT gen_random_uuid(),"
            " CASE WHEN n %% 2 = 0 THEN %s ELSE %s END, 'CNY', 'AED', 1, '0.1', 1, 0, 0, n, %s, %s, %s"
            " FROM generate_series(1, 198) AS n",
            [P1, P2, world.clock(), world.clock() + timedelta(minutes=9), world.clock()],
        )
    for _ in range(QUOTES_OF_A_PAIR_KEPT):
        mine = world.post(P3, "CNY/AED", bid="0.50")
    assert refusal_of(lambda: world.post(P3, "CNY/AED", bid="0.50")) is R.FX_TOO_MANY_QUOTES
    assert refusal_of(lambda: world.post(P1, "CNY/AED", bid="0.50")) is R.FX_TOO_MANY_QUOTES
    world.post(P3, "AED/USD", bid="0.27")  # another pair
    withdraw_quote(world.market, mine, provider=P3)
    world.post(P3, "CNY/AED", bid="0.50")


def test_quotes_expire(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50", seconds=10)
    world.clock.advance(timedelta(seconds=10))
    assert refusal_of(lambda: world.sell(100)) is R.FX_NO_ROUTE


# --- executions


def test_pvpvp_through_a_bridge_currency_settles_whole_and_consumes_its_quotes(world: World) -> None:
    first = world.post(P1, "USD/CNY", offer="7.10")
    second = world.post(P2, "USD/AED", bid="3.67", fee_ppm=100)
    settlement = world.sell(71_000)
    assert (world.used(first), world.used(second)) == ((0, 10_000), (10_000, 0))
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED
    assert [fill.state for fill in world.fills(settlement)] == ["consumed", "consumed"]
    # 71000 / 7.10 = 10000; 10000 * 3.67 * 0.9999 = 36696.33
    assert world.moved(PAYER) == (-71_000, 0, 0)
    assert world.moved(P1) == (71_000, -10_000, 0)
    assert world.moved(P2) == (0, 10_000, -36_696)
    assert world.moved(PAYEE) == (0, 0, 36_696)
    assert (world.used(first), world.used(second)) == ((0, 10_000), (10_000, 0))
    with world.market.database.transaction(isolation="READ COMMITTED") as connection:
        left = store.remainders(connection, provider=None)
    assert [(provider, currency, str(amount)) for provider, currency, amount in left] == [
        (P1, "USD", "0"),
        (P2, "AED", "33/100"),
    ]


@pytest.mark.parametrize("failing", [P1, P2])
def test_an_aborted_settlement_moves_nothing_and_gives_every_quote_back(world: World, failing: ParticipantId) -> None:
    quotes = [world.post(P1, "USD/CNY", offer="7.10"), world.post(P2, "USD/AED", bid="3.67")]
    code = "USD" if failing == P1 else "AED"
    ledger = f"{code.lower()}-ledger"
    # The provider cannot pay what it has quoted.
    balances = {account(participant, code): START for participant in INSTITUTIONS} | {account(failing, code): 0}
    world.islands[ledger] = FakeIsland(ledger, balances=balances)
    settlement = world.sell(71_000)
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED
    assert [fill.state for fill in world.fills(settlement)] == ["released", "released"]
    assert [world.used(quote) for quote in quotes] == [(0, 10_000), (10_000, 0)]
    assert return_released(world.market) == 2
    assert [world.used(quote) for quote in quotes] == [(0, 0), (0, 0)]
    assert return_released(world.market) == 0
    assert world.moved(PAYER) == world.moved(PAYEE) == (0, 0, 0)


def test_an_execution_splits_by_price_and_buys_exactly(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50", size=10_000)
    world.post(P2, "CNY/AED", bid="0.51", size=10_000)
    settlement = world.execute(None, 7_600)
    # 10000 at 0.51 buy 5100, the missing 2500 cost 5000 at 0.50.
    assert [(f.provider, f.given_minor, f.received_minor) for f in world.fills(settlement)] == [
        (P2, 10_000, 5_100),
        (P1, 5_000, 2_500),
    ]
    world.run()
    assert (world.moved(PAYER), world.moved(PAYEE)) == ((-15_000, 0, 0), (0, 0, 7_600))


def test_the_customers_limit_is_never_passed(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    assert refusal_of(lambda: world.sell(10_000, least=5_001)) is R.FX_LIMIT_NOT_MET
    assert refusal_of(lambda: world.execute(None, 5_000, most=9_999)) is R.FX_LIMIT_NOT_MET
    world.sell(10_000, least=5_000)


def test_one_uetr_is_one_execution(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50")
    uetr = new_uetr()
    settlement = world.sell(10_000, uetr=uetr)
    assert world.sell(10_000, uetr=uetr) == settlement
    request = world.request(10_001, None, uetr=uetr, content=b"other")
    again = ExecutionOrder(**{name: getattr(request, name) for name in request.__slots__} | {"idempotency_key": "k2"})
    call: Callable[[], object] = lambda: execute(  # noqa: E731
        world.market, again, is_started=True, checks=[], render=lambda *_: {}
    )
    assert refusal_of(call) is R.UETR_ALREADY_USED
    assert world.used(quote) == (10_000, 0)


def test_only_the_payer_sells_its_money(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    assert refusal_of(lambda: world.sell(100, submitter=PAYEE)) is R.SUBMITTER_NOT_PARTY


def test_no_quote_is_used_beyond_its_size_by_executions_at_once(world: World) -> None:
    """24 threads want 300 each of 3 quotes of 1000: exactly 10 can have it."""
    quotes = [world.post(provider, "CNY/AED", bid="0.50", size=1_000) for provider in (P1, P2, P3)]
    done: list[UUID] = []
    refused: list[R] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for _ in range(3):
            try:
                done.append(world.sell(300))
            except ProblemError as error:
                refused.append(error.refusal)  # type: ignore[arg-type]

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 10
    assert set(refused) == {R.FX_NO_ROUTE} and len(refused) == 14
    assert [world.used(quote) for quote in quotes] == [(1_000, 0)] * 3
    world.run()
    assert world.moved(PAYEE) == (0, 0, sum(fill.received_minor for key in done for fill in world.fills(key)))


def test_a_quote_that_expires_while_an_execution_waits_for_the_market_is_not_used(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", seconds=10)
    refused: list[object] = []

    def work() -> None:
        try:
            world.sell(100)
        except ProblemError as error:
            refused.append(error.refusal)

    with psycopg.connect(world.owner_dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [store._MARKET_LOCK])
        thread = threading.Thread(target=work)
        thread.start()
        _until_waiting(world)
        world.clock.advance(timedelta(seconds=10))
    thread.join(60)
    assert refused == [R.FX_NO_ROUTE]
    assert world.used(quote) == (0, 0)


def test_a_quote_that_expires_while_a_lock_is_ended_is_not_taken_anew(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50", seconds=30)
    settlement = world.sell(100, gate=True, on_expiry="requote")
    world.clock.advance(LOCK)
    late = world.post(P2, "CNY/AED", bid="0.50", seconds=10)
    with psycopg.connect(world.owner_dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [store._MARKET_LOCK])
        thread = threading.Thread(target=end_expired_locks, args=(world.market,))
        thread.start()
        _until_waiting(world)
        world.clock.advance(timedelta(seconds=10))
    thread.join(60)
    assert world.used(late) == (0, 0)
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED


def _until_waiting(world: World) -> None:
    """Somebody waits for an advisory lock."""
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        for _ in range(1_000):
            if connection.execute("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted").fetchone():
                return
            time.sleep(0.01)
    raise AssertionError("nobody waits for the market")


def test_any_limit_rate_is_kept_or_refused_and_never_a_fault(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    request = world.request(None, 5_000, limit_rate="0." + "0" * 30 + "1")

    def run(request: ExecutionOrder) -> dict[str, Any]:
        outcome = execute(
            world.market,
            request,
            is_started=True,
            checks=(),
            render=lambda _, row: {"most": str(row.execution.most_given_minor)},
        )
        return outcome.body

    assert run(request) == {"most": str(2**63 - 1)}
    assert refusal_of(lambda: run(world.request(None, 5_000, limit_rate="9" * 40))) is R.FX_LIMIT_NOT_MET


def test_quotes_change_during_executions_and_nothing_is_overused(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", size=2_000)
    stop = threading.Event()
    refused: list[object] = []
    amended = 0

    def amend() -> None:
        nonlocal amended
        while not stop.is_set():
            size = 2_000 if amended % 2 else 1_500
            try:
                world.post(P1, "CNY/AED", bid="0.50", size=size, quote=quote, revision=amended + 2)
                amended += 1
            except ProblemError as error:
                refused.append(error.refusal)
                return

    def work() -> None:
        for _ in range(10):
            try:
                world.sell(100)
            except ProblemError as error:
                refused.append(error.refusal)

    threads = [threading.Thread(target=work) for _ in range(3)]
    provider = threading.Thread(target=amend)
    for thread in (provider, *threads):
        thread.start()
    for thread in threads:
        thread.join(60)
    stop.set()
    provider.join(10)
    assert amended > 0
    assert set(refused) <= {R.FX_QUOTE_SIZE_USED, R.FX_NO_ROUTE, R.FX_MARKET_MOVED}
    bid_used, _ = world.used(quote)
    with psycopg.connect(world.owner_dsn) as connection:
        (locked,) = connection.execute("SELECT sum(base_minor) FROM fx_fill").fetchone() or (0,)
        (size,) = connection.execute("SELECT bid_size_minor FROM fx_quote").fetchone() or (0,)
    assert bid_used == locked <= size


# --- locks that expire


def test_a_lock_that_expires_before_the_engine_takes_it_aborts_the_settlement(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50")
    settlement = world.sell(10_000, gate=True)
    world.clock.advance(LOCK - timedelta(microseconds=1))
    assert end_expired_locks(world.market) == 0
    world.clock.advance(timedelta(microseconds=1))
    assert end_expired_locks(world.market) == 1
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED
    assert return_released(world.market) == 1
    assert world.used(quote) == (0, 0)
    assert end_expired_locks(world.market) == 0


def test_a_lock_that_expires_is_quoted_anew_within_the_limit(world: World) -> None:
    old = world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = world.sell(10_000, gate=True, least=5_000, on_expiry="requote")
    world.clock.advance(LOCK)
    split = [world.post(P2, "CNY/AED", bid="0.51", size=4_000), world.post(P3, "CNY/AED", bid="0.50")]
    assert end_expired_locks(world.market) == 1
    states = [(fill.attempt, fill.provider, fill.given_minor, fill.state) for fill in world.fills(settlement)]
    assert states == [(1, P1, 10_000, "released"), (2, P2, 4_000, "reserved"), (2, P3, 6_000, "reserved")]
    assert [world.used(quote) for quote in (old, *split)] == [(0, 0), (4_000, 0), (6_000, 0)]
    world.open_gate(settlement)
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED
    assert world.moved(PAYEE) == (0, 0, 5_040)
    with world.market.database.transaction(isolation="READ COMMITTED") as connection:
        assert [attempt for attempt, _, _ in store.reports(connection, settlement)] == [1, 2]


def test_a_lock_that_expires_is_given_up_when_the_market_is_worse_than_the_limit(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = world.sell(10_000, gate=True, least=5_200, on_expiry="requote")
    world.clock.advance(LOCK)
    worse = world.post(P2, "CNY/AED", bid="0.5199")
    assert end_expired_locks(world.market) == 1
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED
    assert [(fill.attempt, fill.state) for fill in world.fills(settlement)] == [(1, "released")]
    assert world.used(worse) == (0, 0)
    assert world.moved(PAYER) == (0, 0, 0)


def test_an_expired_lock_of_a_settlement_under_way_is_given_up(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    world.authoriser.unreachable.add(P1)
    settlement = world.sell(10_000, on_expiry="requote")
    world.engine.tick()
    assert world.state(settlement) is SettlementState.PREPARED
    world.clock.advance(LOCK)
    assert end_expired_locks(world.market) == 1
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED


def test_the_engine_takes_nothing_whose_lock_is_over(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    settlement = world.sell(10_000)
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute("UPDATE fx_execution SET lock_expires_at = now() - interval '1 second'")
    world.run()
    assert world.state(settlement) is SettlementState.RECEIVED


def test_withdrawal_leaves_what_is_locked(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50")
    settlement = world.sell(10_000)
    withdraw_quote(world.market, quote, provider=P1)
    assert refusal_of(lambda: world.sell(1)) is R.FX_NO_ROUTE
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED


def test_a_preview_locks_nothing_and_says_what_an_execution_would_be(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50")
    found, _, _ = preview(world.market, world.request(10_000, None).order)
    assert found.best is not None and found.best.received_minor == 5_000
    assert world.used(quote) == (0, 0)


# --- the database alone


def _insert_fill(connection: psycopg.Connection, settlement: UUID, quote: UUID, number: int, base_minor: int) -> None:
    connection.execute(
        "INSERT INTO fx_fill (settlement_id, attempt, number, hop, quote_id, revision, side, provider, source,"
        " given_minor, target, received_minor, base_minor, price, fee_ppm, fee_minor, rounding_minor, state)"
        " VALUES (%s, 1, %s, 0, %s, 1, 'bid', %s, 'CNY', %s, 'AED', 1, %s, '1', 0, '0', '0', 'reserved')",
        [settlement, number, quote, P1, base_minor, base_minor],
    )


def test_the_database_refuses_a_use_beyond_the_size_whoever_writes_it(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", size=1_000)
    settlement = world.sell(900)
    service = as_service(world.owner_dsn.replace("postgresql://", "postgresql+psycopg://"), "settlement")
    with psycopg.connect(dsn(service), autocommit=True) as connection:
        _insert_fill(connection, settlement, quote, 10, 100)
        with pytest.raises(psycopg.errors.CheckViolation, match="fx_quote_bid_not_overused"):
            _insert_fill(connection, settlement, quote, 11, 1)
        for change in (
            "UPDATE fx_fill SET base_minor = 1",
            "UPDATE fx_fill SET state = 'consumed'",
            "UPDATE fx_fill SET is_returned = true",
            "UPDATE fx_quote SET bid_size_minor = 999",
            "UPDATE fx_execution SET least_received_minor = 451",
            "UPDATE fx_execution SET received_minor = 451",  # fx_execution_conserved: the legs pay 450
            "UPDATE fx_execution SET attempt = 2",  # of which there are no fills
            "DELETE FROM fx_fill",
            "DELETE FROM leg",
            "UPDATE fx_quote_revision SET token = ''",
            "UPDATE fx_execution_report SET report = '{}'",
        ):
            with pytest.raises(
                (
                    psycopg.errors.RestrictViolation,
                    psycopg.errors.CheckViolation,
                    psycopg.errors.InsufficientPrivilege,
                )
            ):
                connection.execute(change)


@pytest.mark.parametrize(
    "change",
    [
        "provider = 'PRV2USNY'", "revision = 2", "fee_ppm = 1", "source = 'USD'", "target = 'USD'", "side = 'offer'",
        "base_minor = 99",
    ],
)  # fmt: skip
def test_the_database_refuses_a_use_of_a_quote_that_is_not_what_was_signed(world: World, change: str) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", size=1_000)
    settlement = world.sell(900)
    column, _, value = change.partition(" = ")
    given = {
        "provider": f"'{P1}'", "revision": "1", "fee_ppm": "0", "source": "'CNY'", "target": "'AED'",
        "side": "'bid'", "base_minor": "100",
    } | {column: value}  # fmt: skip
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.CheckViolation, match="fx_fill_as_quoted"):
            connection.execute(
                f"INSERT INTO fx_fill ({', '.join(given)}, settlement_id, attempt, number, hop, quote_id, given_minor,"
                f" received_minor, price, fee_minor, rounding_minor, state) VALUES ({', '.join(given.values())},"
                " %s, 1, 10, 0, %s, 100, 50, '1/2', '0', '0', 'reserved')",
                [settlement, quote],
            )
        withdraw_quote(world.market, quote, provider=P1)
        with pytest.raises(psycopg.errors.CheckViolation, match="fx_fill_as_quoted"):
            _insert_fill(connection, settlement, quote, 10, 100)


def test_the_database_locks_nothing_for_a_settlement_that_is_decided(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", size=1_000)
    settlement = world.sell(900)
    world.run()
    decided = pytest.raises(psycopg.errors.RestrictViolation, match="is decided")
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection, decided:
        _insert_fill(connection, settlement, quote, 10, 100)
    assert world.used(quote) == (900, 0)


def test_the_database_ends_a_lock_once_and_removes_no_leg_that_was_taken(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    settlement = world.sell(900)
    world.run()
    service = as_service(world.owner_dsn.replace("postgresql://", "postgresql+psycopg://"), "settlement")
    with psycopg.connect(dsn(service), autocommit=True) as connection:
        for change in (
            "UPDATE fx_fill SET state = 'released'",
            "UPDATE fx_fill SET state = 'reserved'",
            "SELECT fx_remove_legs(settlement_id) FROM fx_execution",
        ):
            with pytest.raises(psycopg.errors.RestrictViolation):
                connection.execute(change)
    assert [fill.state for fill in world.fills(settlement)] == ["consumed"]


# --- compliance of who is quoted anew


def _screened(world: World, *listed: tuple[ParticipantId, str]) -> tuple[World, ComplianceCheck]:
    """The same world with a list: (BIC, action)."""
    entries = [
        {"id": f"E{number}", "kind": "bic", "values": [party], "action": action}
        for number, (party, action) in enumerate(listed)
    ]
    found = ScreeningList.model_validate(
        {"name": "providers", "version": "1", "valid_from": date(2020, 1, 1), "source": "this test", "entries": entries}
    )
    policy = Policy.model_validate({"name": "test", "version": "1", "valid_from": date(2020, 1, 1), "source": "test"})
    compliance = Compliance(policy, (ListScreen([found]),), None, lambda *_: None)
    market = replace(
        world.market,
        screen_anew=partial(screen_anew, compliance=compliance),
        find_barred=lambda now: find_barred(compliance, INSTITUTIONS, now=now),
    )
    return replace(world, market=market), ComplianceCheck(compliance)


def _decisions(world: World, settlement: UUID) -> list[tuple[str, dict[str, str] | None]]:
    with world.market.database.transaction(isolation="READ COMMITTED") as connection:
        rows = compliance_store.decisions_of(connection, [settlement])[settlement]
    return [(row.verdict, None if row.institutions is None else dict(row.institutions)) for row in rows]


@pytest.mark.parametrize("action", ["refuse", "review"])
def test_a_listed_provider_with_the_best_price_stops_nobodys_payment(world: World, action: str) -> None:
    screened, check = _screened(world, (P2, action))
    listed = world.post(P2, "CNY/AED", bid="0.60")
    world.post(P1, "CNY/AED", bid="0.50")
    found, quotes, _ = preview(screened.market, world.request(10_000, None).order)
    assert found.best is not None and found.best.received_minor == 5_000
    assert {quote.terms.provider for quote in quotes} == {P1}
    settlement = screened.sell(10_000, checks=(check,))
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED
    assert world.used(listed) == (0, 0) and world.moved(PAYEE) == (0, 0, 5_000)
    assert _decisions(world, settlement) == [("pass", {PAYER: "pass", PAYEE: "pass", P1: "pass"})]


@pytest.mark.parametrize("action", ["refuse", "review"])
def test_a_provider_that_compliance_does_not_pass_is_not_brought_in_when_quoted_anew(world: World, action: str) -> None:
    screened, check = _screened(world, (P2, action))
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = screened.sell(10_000, gate=True, least=5_000, on_expiry="requote", checks=(check,))
    world.clock.advance(LOCK)
    best = world.post(P2, "CNY/AED", bid="0.519")
    second = world.post(P3, "CNY/AED", bid="0.51")
    assert end_expired_locks(screened.market) == 1
    assert [(fill.attempt, fill.provider, fill.state) for fill in world.fills(settlement)] == [
        (1, P1, "released"), (2, P3, "reserved"),
    ]  # fmt: skip
    assert (world.used(best), world.used(second)) == ((0, 0), (10_000, 0))
    assert _decisions(world, settlement) == [
        ("pass", {PAYER: "pass", PAYEE: "pass", P1: "pass"}), ("pass", {P2: action}), ("pass", {P3: "pass"}),
    ]  # fmt: skip
    world.open_gate(settlement)
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED
    assert world.moved(P2) == (0, 0, 0)


def test_when_nobody_else_quotes_it_is_given_up_and_the_screening_stays_recorded(world: World) -> None:
    screened, check = _screened(world, (P2, "refuse"))
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = screened.sell(10_000, gate=True, least=5_000, on_expiry="requote", checks=(check,))
    world.clock.advance(LOCK)
    world.post(P2, "CNY/AED", bid="0.519")
    end_expired_locks(screened.market)
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED
    assert _decisions(world, settlement)[1:] == [("pass", {P2: "refuse"})]


def test_the_database_lets_no_unscreened_provider_in_whoever_quotes_anew(world: World) -> None:
    _, check = _screened(world)
    old = world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = world.sell(10_000, gate=True, least=5_000, on_expiry="requote", checks=(check,))
    world.clock.advance(LOCK)
    world.post(P2, "CNY/AED", bid="0.519")
    everybody = replace(world.market, screen_anew=lambda *_, **__: NewScreening(frozenset()))  # it records nothing
    assert end_expired_locks(everybody) == 1
    assert [(fill.attempt, fill.provider, fill.state) for fill in world.fills(settlement)] == [(1, P1, "reserved")]
    world.run()  # what the database refuses is given up, not tried for ever
    assert world.state(settlement) is SettlementState.CANCELLED
    assert return_released(world.market) == 1 and world.used(old) == (0, 0)


@pytest.mark.parametrize(
    ("is_p1_there", "expected"), [(False, SettlementState.CANCELLED), (True, SettlementState.SETTLED)]
)
def test_without_a_policy_only_who_was_screened_is_quoted_anew(
    world: World, is_p1_there: bool, expected: SettlementState
) -> None:
    """The service was started again without its policy: the trigger would refuse anybody new, each half second."""
    _, check = _screened(world)
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = world.sell(10_000, gate=True, least=5_000, on_expiry="requote", checks=(check,))
    world.clock.advance(LOCK)
    world.post(P2, "CNY/AED", bid="0.519")
    if is_p1_there:
        world.post(P1, "CNY/AED", bid="0.51")
    assert end_expired_locks(world.market) == 1
    world.open_gate(settlement)
    world.run()
    assert world.state(settlement) is expected
    assert {fill.provider for fill in world.fills(settlement)} == {P1}


def test_an_expired_lock_that_cannot_be_ended_keeps_no_later_one_from_it(world: World) -> None:
    world.post(P1, "CNY/AED", bid="0.50")
    stuck, later = world.sell(1_000, gate=True), world.sell(1_000, gate=True)
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'planted'; END $$"
        )
        connection.execute(
            "CREATE TRIGGER planted BEFORE UPDATE ON settlement FOR EACH ROW"
            f" WHEN (OLD.id = '{stuck}') EXECUTE FUNCTION refuse()"
        )
    world.clock.advance(LOCK)
    assert end_expired_locks(world.market, limit=1) == 1
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute("DROP TRIGGER planted ON settlement")
    world.run()
    assert (world.state(stuck), world.state(later)) == (SettlementState.RECEIVED, SettlementState.CANCELLED)
    assert end_expired_locks(world.market) == 1


def test_an_execution_that_a_netting_stands_for_is_neither_quoted_anew_nor_changed(world: World) -> None:
    """The netting's legs are what its instructions add up to: another price meanwhile would undo the decision of all.
    The netting is planted past the database's own rules; nothing else is."""
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    netted = world.sell(10_000, gate=True, least=5_000, on_expiry="requote")
    netting = world.sell(900, gate=True)
    world.clock.advance(LOCK)
    world.post(P2, "CNY/AED", bid="0.51")
    before = [(fill.attempt, fill.provider, fill.state) for fill in world.fills(netted)]
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE settlement SET netted_by = %s WHERE id = %s", [netting, netted])
        connection.execute("SET session_replication_role = origin")
        with pytest.raises(psycopg.errors.RestrictViolation):
            connection.execute("SELECT fx_remove_legs(%s)", [netted])
    assert end_expired_locks(world.market) == 1  # of the other one alone
    assert [(fill.attempt, fill.provider, fill.state) for fill in world.fills(netted)] == before
    with world.market.database.transaction(isolation="READ COMMITTED") as connection:
        assert store.lock_settlement(connection, netted) is None


def test_a_run_over_an_execution_that_was_quoted_anew_since_its_preview_is_stale(world: World) -> None:
    """Its legs are others now: what was previewed is not what would be booked, which is no fault of anybody's."""
    world.post(P1, "CNY/AED", bid="0.52", seconds=30)
    settlement = world.sell(10_000, gate=True, on_expiry="requote")
    desk = Desk(world.market.database, world.market.directory, world.islands, BRIDGE, {}, world.clock)
    kinds: tuple[SettleAs, ...] = ("net", "gross")
    old = [liquidity.preview(desk, RunRequest(settle_as=kind), by=BRIDGE) for kind in kinds]
    assert [row.taken_count for row in old] == [1, 1]
    world.clock.advance(LOCK)
    world.post(P2, "CNY/AED", bid="0.51")
    assert end_expired_locks(world.market) == 1
    for row in old:
        assert refusal_of(partial(liquidity.start, desk, row.id, by=BRIDGE)) is R.LIQUIDITY_RUN_STALE
    again = liquidity.preview(desk, RunRequest(), by=BRIDGE)
    liquidity.start(desk, again.id, by=BRIDGE)
    world.run()
    assert world.state(settlement) is SettlementState.SETTLED
    assert world.moved(PAYEE) == (0, 0, 5_100)


def test_a_run_takes_no_execution_whose_lock_is_over(world: World) -> None:
    """As the engine takes none: the provider has promised no more."""
    world.post(P1, "CNY/AED", bid="0.52")
    world.sell(10_000, gate=True)
    desk = Desk(world.market.database, world.market.directory, world.islands, BRIDGE, {}, world.clock)
    before = liquidity.preview(desk, RunRequest(), by=BRIDGE)
    assert before.taken_count == 1
    with psycopg.connect(world.owner_dsn, autocommit=True) as connection:
        connection.execute("UPDATE fx_execution SET lock_expires_at = now() - interval '1 second'")
    assert refusal_of(lambda: liquidity.start(desk, before.id, by=BRIDGE)) is R.LIQUIDITY_RUN_STALE
    assert liquidity.preview(desk, RunRequest(), by=BRIDGE).queue_count == 0


# --- batches


def test_a_creditors_quote_is_a_price_for_now_and_no_forward(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50")
    today = world.clock().date()
    with pytest.raises(ProblemError) as refused:
        submit(world, value_date=today + timedelta(days=2))
    assert [item["refusal"] for item in refused.value.extra["problems"]] == ["quote-not-found"]
    assert world.used(quote) == (0, 0)
    submit(world, value_date=today + timedelta(days=1))
    assert world.used(quote) == (10_000, 0)


def test_a_batch_that_waits_keeps_its_price_for_a_day_and_no_longer(world: World) -> None:
    """Else its debtor had the price to take or to leave: it may queue its own batch, and recall it."""
    quote = world.post(P1, "CNY/AED", bid="0.50")
    settlement = submit(world, value_date=world.clock().date(), gate=True)
    world.clock.advance(BATCH_LOCK_TIME - timedelta(microseconds=1))
    assert end_expired_locks(world.market) == 0
    world.clock.advance(timedelta(microseconds=1))
    assert end_expired_locks(world.market) == 1
    world.run()
    assert world.state(settlement) is SettlementState.CANCELLED
    assert return_released(world.market) == 1 and world.used(quote) == (0, 0)


def test_a_quote_that_expires_while_a_batch_waits_for_the_market_prices_nothing(world: World) -> None:
    quote = world.post(P1, "CNY/AED", bid="0.50", seconds=10)
    refused: list[object] = []

    def work() -> None:
        try:
            submit(world, value_date=world.clock().date())
        except ProblemError as error:
            refused.append(error.refusal)

    with psycopg.connect(world.owner_dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [store._MARKET_LOCK])
        thread = threading.Thread(target=work)
        thread.start()
        _until_waiting(world)
        world.clock.advance(timedelta(seconds=10))
    thread.join(60)
    assert refused == [R.BATCH_INVALID] and world.used(quote) == (0, 0)


def submit(world: World, *, value_date: date, gate: bool = False) -> UUID:
    """The payer pays P1 CNY 100.00 against AED, at P1's price."""
    line = Instruction("I1", "E1", new_uetr(), PAYER, P1, Money(10_000, CNY), AED, None, value_date)
    content = write_pacs009([line], message_id=new_uetr().hex, created_at=world.clock())
    outcome = submit_batch(
        Submission(content, "pacs.009", PAYER, False, new_uetr().hex, "/v1/batches"),
        database=world.market.database,
        directory=world.market.directory,
        clock=world.clock,
        bridge=BRIDGE,
        run_on_submit=True,
        checks=[_close] if gate else (),
        market=world.market,
        render=lambda row: {"batch": str(row.id)},
    )
    with world.market.database.transaction(isolation="READ COMMITTED") as connection:
        (row,) = batches.settlements_page(connection, UUID(outcome.body["batch"]), after=0, limit=9)
    return row.id

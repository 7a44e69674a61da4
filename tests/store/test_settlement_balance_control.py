"""Goal: the control sees in whole balances what no answer about a single leg shows, and alarms for nothing else.

Method: real settlements on fake islands over PostgreSQL; the island's books are then spoilt behind its own answers; an
escrow that answers with what the test says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from kernel.client import ProblemResponse, ServiceUnreachable
from ledger.contract import LOOK_UPS_MAX
from settlement.domain.escrow import SettlementState
from settlement.islands.balances import EscrowTotals, ShowsEscrow, ShowsTotals, Totals
from settlement.islands.chainmaker.island import ChainMakerIsland
from settlement.islands.evm.island import EvmIsland
from settlement.islands.fake import FakeIsland
from settlement.islands.native import NativeIsland
from settlement.usecases import balance_control
from settlement.usecases.control import Control, ControlWatch
from settlement.usecases.liquidity import RunRequest, preview, start
from tests.liquidity_world import BRIDGE, A, B, C, LiquidityWorld, account


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[LiquidityWorld]:
    found = LiquidityWorld.make(fresh_database("settlement"), {(A, "CNY"): 1_000, (B, "AED"): 500})
    yield found
    found.database.close()


def control_of(world: LiquidityWorld, **islands: Any) -> Control:
    return Control(database=world.database, islands=world.islands | islands, bridge=BRIDGE, clock=world.clock)


def settle(world: LiquidityWorld) -> None:
    for flows in ([(A, B, "CNY", 700), (B, A, "AED", 300)], [(B, C, "CNY", 200)]):
        (key,) = world.submit([flows], is_queued=False)
        world.settle()
        assert world.state(key) is SettlementState.SETTLED


def prepared(world: LiquidityWorld) -> None:
    """Held on one island and not decided: the other does not answer."""
    world.submit([[(A, B, "CNY", 100), (B, A, "AED", 50)]], is_queued=False)
    engine = world.engine()
    engine.start()
    world.islands["aed"].faults.down = True
    for _ in range(10):
        engine.tick()
    world.islands["aed"].faults.down = False


def test_balances_that_cover_the_legs_raise_no_alarm_whatever_others_pay(world: LiquidityWorld) -> None:
    control = control_of(world)
    settle(world)
    assert control.compare_balances() == ()  # the legs are not counted yet
    assert control.run().alarms == () and control.compare_balances() == ()
    prepared(world)
    assert control.compare_balances() == ()
    world.islands["aed"].faults.down = True
    assert control.compare_balances() == ()
    world.islands["aed"].faults.down = False


def test_what_was_netted_counts_once_by_the_legs_that_paid_it(world: LiquidityWorld) -> None:
    """A netted instruction moved nothing by itself: it is neither missing on an island nor counted twice."""
    control = control_of(world)
    pair = world.submit([[(A, B, "CNY", 900)], [(B, A, "CNY", 650)]])
    start(world.desk, preview(world.desk, RunRequest(), by=BRIDGE).id, by=BRIDGE)
    world.settle()
    assert {world.state(key) for key in pair} == {SettlementState.SETTLED}
    found = control.run()
    assert (found.settlements, found.legs, found.alarms, found.is_whole) == (3, 3, (), True)
    sums = {(item.participant, item.bridge_minor, item.island_minor) for item in control.report().balances}
    assert sums == {(A, -250, -250), (B, 250, 250)}
    assert control.compare_balances() == ()
    world.islands["cny"]._lines.clear()  # what only whole balances show: the net leg's money is gone
    assert len(control.compare_balances()) == 2


def test_posted_money_that_is_gone_is_one_alarm_and_stays_one(world: LiquidityWorld) -> None:
    control = control_of(world)
    settle(world)
    control.run()
    lines = world.islands["cny"]._lines  # its answers about the holds stay as they were
    lost = lines.pop()
    assert control.run().alarms == ()
    assert len(control.compare_balances()) == 2  # debited less, and credited less
    assert control.compare_balances() == ()
    told = sorted(alarm.sentence for alarm in control.report().alarms)
    assert any("200 minor units of CNY are to be credited on acc_" in text and "there are 0" in text for text in told)
    lines.append(lost)
    assert control.compare_balances() == ()


def test_a_hold_without_its_money_is_an_alarm(world: LiquidityWorld) -> None:
    control = control_of(world)
    prepared(world)
    island = world.islands["cny"]
    kept = dict(island._holds)
    island._holds.clear()
    (alarm,) = control.compare_balances()
    assert [found.id for found in control.report().alarms] == [alarm]
    island._holds.update(kept)
    world.clock.advance(timedelta(seconds=1))


class Escrow(FakeIsland):
    """A chain: its accounts count nothing, its escrow does."""

    totals_of = None  # type: ignore[assignment]
    shown: EscrowTotals | None = None

    def escrow_totals(self) -> EscrowTotals | None:
        return self.shown


@pytest.mark.parametrize(
    ("shown", "alarms"),
    [
        (EscrowTotals(100, 100), 0), (EscrowTotals(170, 150), 0), (None, 0), (EscrowTotals(99, 99), 1),
        (EscrowTotals(100, 140), 1), (EscrowTotals(10, 20), 2),
    ],
)  # fmt: skip
def test_an_escrow_has_and_counts_what_is_held(world: LiquidityWorld, shown: EscrowTotals | None, alarms: int) -> None:
    prepared(world)
    chain = Escrow("cny", balances={int(account(bank, "CNY")): 0 for bank in (A, B, C)})
    chain.shown = shown
    control = control_of(world, cny=chain)
    found = control.compare_balances()
    assert len(found) == alarms
    told = control.report().alarms  # everybody's money in one place: for the bridge's eyes only
    assert {(alarm.participant, alarm.account) for alarm in told} == {(BRIDGE, "cny")} or not found
    assert control.compare_balances() == ()


def test_an_escrow_that_moved_between_two_readings_is_no_alarm(world: LiquidityWorld) -> None:
    prepared(world)
    answers = [EscrowTotals(100, 140), EscrowTotals(140, 140)]

    class Moving(Escrow):
        def escrow_totals(self) -> EscrowTotals | None:
            return answers.pop(0)

    chain = Moving("cny", balances={int(account(bank, "CNY")): 0 for bank in (A, B, C)})
    assert control_of(world, cny=chain).compare_balances() == () and answers == []


def test_a_chainmaker_escrow_is_read_in_one_block() -> None:
    """A block between the two questions ends one hold and begins another of the same amount: the counts are equal."""
    heights = iter([7, 8, 8, 8])
    island = object.__new__(ChainMakerIsland)
    island._node = SimpleNamespace(height=lambda: next(heights))  # type: ignore[assignment]
    island._terms = SimpleNamespace(escrow_address="0x1", unit=1)  # type: ignore[assignment]
    balances = iter([[0], [50]])
    island._escrow_held = lambda: 50  # type: ignore[method-assign]
    island._ask_token = lambda calls: next(balances)  # type: ignore[method-assign]
    assert island.escrow_totals() == EscrowTotals(50, 50)


def test_of_many_accounts_each_is_compared_in_its_turn(world: LiquidityWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    control = control_of(world)
    settle(world)
    control.run()
    world.islands["cny"]._lines.clear()  # two accounts of AED come first, then three that lack four sums
    monkeypatch.setattr(balance_control, "ACCOUNTS_MAX", 2)
    none, some, others, again = (len(control.compare_balances()) for _ in range(4))
    assert none == again == 0 and some > 0 < others and some + others == 4
    world.islands["aed"]._lines.clear()
    assert sum(len(control.compare_balances()) for _ in range(3)) == 2


class Unreachable:
    """A ledger's client that reaches it once. It has every second account."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked = error, 0

    def look_up_accounts(self, numbers: Sequence[int]) -> list[Any]:
        self.asked += 1
        if self.asked > 1:
            raise self.error
        shown = SimpleNamespace(
            available_minor=1, debits_pending_minor=2, debits_posted_minor=3, credits_posted_minor=4
        )
        return [shown, None] * (len(numbers) // 2)


def test_a_ledger_that_cannot_be_reached_is_not_asked_about_every_account() -> None:
    numbers = [account(A, "CNY")] * (3 * LOOK_UPS_MAX)
    refused = ProblemResponse(status=401, refusal="", transient=False, detail="", request_id="")
    for error in (ServiceUnreachable("no answer"), refused):
        for name, shown in (("available_of", 1), ("totals_of", Totals(2, 3, 4))):
            client = Unreachable(error)
            answers = getattr(NativeIsland("cny", client), name)(numbers)  # type: ignore[arg-type]
            assert answers == [shown, None] * (LOOK_UPS_MAX // 2) + [None] * (2 * LOOK_UPS_MAX)
            assert client.asked == 2


def test_every_kind_of_island_shows_one_of_both() -> None:
    for kind, shows in ((NativeIsland, ShowsTotals), (EvmIsland, ShowsEscrow), (ChainMakerIsland, ShowsEscrow)):
        wanted = [name for name in dir(shows) if not name.startswith("_")]
        assert wanted and all(callable(getattr(kind, name)) for name in wanted)


def test_the_watch_compares_at_a_period_of_its_own() -> None:
    class Counted:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def run(self) -> Any:
            self.calls.append("legs")
            raise RuntimeError

        def compare_balances(self) -> Sequence[Any]:
            self.calls.append("balances")
            watch._stopped.set()
            return ()

    counted = Counted()
    watch = ControlWatch(counted, every_seconds=0.01, balances_every_seconds=0.05)  # type: ignore[arg-type]
    watch._watch()
    assert counted.calls[-1] == "balances" and counted.calls.count("balances") == 1

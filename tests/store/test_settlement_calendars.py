"""Goal: a settlement is carried out within hours that all its ledgers share, whatever holds it up and whenever.

Method: the real intake, database and engine over fake ledgers, and a clock that is turned by hand; then the database
alone, by plain SQL, for what it must refuse whatever program writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from kernel.clock import ManualClock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.money import Money
from settlement.api.oversight import _check_returns
from settlement.calendar_files import load_calendars
from settlement.domain.calendars import DayRule, MissedCutOff
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.refusals import AbortReason
from settlement.settings import ClearOutEntry
from settlement.store import batches, gates, reports, tables
from settlement.store import calendars as store
from settlement.store.gates import GateKind
from settlement.usecases.calendars import CalendarCheck, CalendarRules, open_due_gates
from settlement.usecases.clear_out import ClearOuts
from tests.oversight_world import BANK_A, BANK_B, BRIDGE, CNY, USD, OversightWorld

# CNY and AED overlap from 04:00Z (08:00 in Dubai) to 09:15Z (17:15 in Shanghai), on Fridays to 08:00Z.
MONDAY, FRIDAY = date(2026, 11, 23), date(2026, 11, 27)
RULES = CalendarRules(load_calendars())


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def new_world(fresh_database: Callable[[str], str]) -> Iterator[Callable[..., OversightWorld]]:
    database = Database(fresh_database("settlement"), application_name="test", pool_size=6)

    def make(moment: str, rules: CalendarRules = RULES, **more: Any) -> OversightWorld:
        return OversightWorld(
            database,
            ManualClock(at(moment)),
            checks=(*more.get("checks", ()), CalendarCheck(rules)),
            passes=(lambda connection, now: open_due_gates(connection, rules, now=now),),
        )

    yield make
    database.close()


def plan_of(world: OversightWorld, settlement: UUID) -> tuple[store.PlanRow, list[store.PlanEvent]]:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.find_plan(connection, settlement)
        events = store.events(connection, settlement, limit=100)
    assert found is not None
    return found, events


def refusals(problem: pytest.ExceptionInfo[ProblemError]) -> list[str]:
    return [item["refusal"] for item in problem.value.extra["problems"]]


# --- the gate


def test_within_hours_nothing_waits(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T05:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    assert world.closed([key]) == {}
    world.run()
    assert world.row(key).state is SettlementState.SETTLED


def test_before_its_window_a_settlement_waits_and_says_until_when(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T03:59:59")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    (gate,) = world.closed([key])[key]
    assert (gate.kind, gate.not_before) == (GateKind.CALENDAR, at("2026-11-23T04:00:00"))
    assert "2026-11-23 04:00Z" in gate.reason
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    world.at(at("2026-11-23T03:59:59.999999"))
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    world.at(at("2026-11-23T04:00:00"))
    world.run()
    row = world.row(key)
    assert (row.state, row.decided_at) == (SettlementState.SETTLED, at("2026-11-23T04:00:00"))
    found, events = plan_of(world, key)
    assert [event.event for event in events] == ["opened"]
    assert found.calendars_sha256.hex() == RULES.calendars.sha256


def test_a_future_value_date_waits_over_the_weekend(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-27T05:00:00")
    (key,) = world.submit(world.instruction(value_date=date(2026, 11, 28)))  # a Saturday: Monday, by the rule
    for moment in ("2026-11-27T07:00:00", "2026-11-28T05:00:00", "2026-11-30T03:59:00"):
        world.at(at(moment))
        world.run()
        assert world.row(key).state is SettlementState.RECEIVED
    world.at(at("2026-11-30T04:00:30"))
    world.run()
    assert world.row(key).state is SettlementState.SETTLED


def test_impossible_dates_refuse_the_batch_each_with_its_reason(new_world: Callable[..., OversightWorld]) -> None:
    strict = CalendarRules(RULES.calendars, DayRule.NONE, MissedCutOff.REFUSE)
    world = new_world("2026-11-23T09:15:00", strict)
    with pytest.raises(ProblemError) as problem:
        world.submit(
            world.instruction(value_date=MONDAY),  # at 17:15 in Shanghai the door is shut
            world.instruction(value_date=date(2026, 11, 20)),
            world.instruction(value_date=date(2026, 11, 28)),
            world.instruction(value_date=date(2028, 1, 3)),
            world.instruction(value_date=date(2026, 11, 24)),
        )
    assert refusals(problem) == [
        "cut-off-missed",
        "value-date-past",
        "value-date-not-business-day",
        "value-date-too-far",
    ]
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(tables.settlement)).scalar_one() == 0


@pytest.mark.parametrize("missed", list(MissedCutOff))
def test_what_is_held_up_past_its_window_rolls_or_ends(
    new_world: Callable[..., OversightWorld], missed: MissedCutOff
) -> None:
    rules = CalendarRules(RULES.calendars, DayRule.FOLLOWING, missed)
    world = new_world("2026-11-26T05:00:00", rules)
    (key,) = world.submit(world.instruction(value_date=date(2026, 11, 26)))
    # Nothing runs in time, as if the service were down; it comes back in the night.
    world.at(at("2026-11-26T22:00:00"))
    world.run()
    row = world.row(key)
    found, events = plan_of(world, key)
    if missed is MissedCutOff.ROLL:
        assert row.state is SettlementState.RECEIVED
        assert (found.value_date, found.asked_value_date) == (FRIDAY, date(2026, 11, 26))
        world.at(at("2026-11-27T04:00:00"))
        world.run()
        assert world.row(key).state is SettlementState.SETTLED
        assert [event.event for event in plan_of(world, key)[1]] == ["rolled", "opened"]
        return
    assert (row.state, row.decision, row.reason) == (SettlementState.CANCELLED, Decision.ABORT, AbortReason.CALENDAR)
    assert "2026-11-26" in row.detail
    assert {found.leg.state for found in row.legs} == {LegState.REFUSED}
    assert [event.event for event in events] == ["refused"]
    world.islands["cny"].check()


def test_a_gate_that_was_open_closes_again_when_another_held_the_settlement_past_its_window(
    new_world: Callable[..., OversightWorld],
) -> None:
    world = new_world("2026-11-23T05:00:00", checks=(CloseLiquidity(),))
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    world.run()
    assert [gate.kind for gate in world.closed([key])[key]] == [GateKind.LIQUIDITY]
    world.at(at("2026-11-23T20:00:00"))
    world.run()
    assert [gate.kind for gate in world.closed([key])[key]] == [GateKind.CALENDAR, GateKind.LIQUIDITY]
    open_gate(world, key, GateKind.LIQUIDITY)
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED  # liquidity came at midnight in Dubai
    world.at(at("2026-11-24T04:30:00"))
    world.run()
    assert world.row(key).decided_at == at("2026-11-24T04:30:00")


def test_two_services_at_once_move_each_settlement_once(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T01:00:00")
    keys = world.submit(*(world.instruction(value_date=MONDAY) for _ in range(6)))
    now = at("2026-11-23T05:00:00")
    with (
        world.database.transaction(isolation="READ COMMITTED") as first,
        world.database.transaction(isolation="READ COMMITTED") as second,
    ):
        assert open_due_gates(first, RULES, now=now) == 6
        assert open_due_gates(second, RULES, now=now) == 0
    assert world.closed(keys) == {}


def test_a_gate_that_closes_after_the_engine_has_looked_keeps_the_settlement(
    new_world: Callable[..., OversightWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world("2026-11-23T05:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    looked = world.log.received

    def close_meanwhile(**arguments: Any) -> list[UUID]:
        found = looked(**arguments)
        if found and not world.closed([key]):
            with world.database.transaction(isolation="READ COMMITTED") as connection:
                gates.close(connection, [gates.Gate(key, GateKind.LIQUIDITY, "meanwhile")], now=world.clock())
        return found

    monkeypatch.setattr(world.log, "received", close_meanwhile)
    world.engine.tick()
    assert world.row(key).state is SettlementState.RECEIVED
    open_gate(world, key, GateKind.LIQUIDITY)
    monkeypatch.undo()
    world.run()
    assert world.row(key).state is SettlementState.SETTLED


# --- the database by itself


@pytest.mark.parametrize("moment", ["2026-11-23T03:59:59", "2026-11-23T09:15:00"])
def test_the_database_opens_no_calendar_gate_out_of_hours(
    new_world: Callable[..., OversightWorld], moment: str
) -> None:
    world = new_world("2026-11-23T03:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    world.at(at(moment))
    with pytest.raises(sa.exc.DBAPIError, match="hours:"):
        open_gate(world, key, GateKind.CALENDAR)


def test_an_engine_that_is_back_before_the_calendar_takes_nothing_out_of_hours(
    new_world: Callable[..., OversightWorld],
) -> None:
    """The service was down when the window closed: whoever wakes first then, no money moves before the next one."""
    world = new_world("2026-11-23T09:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    assert world.closed([key]) == {}
    world.at(at("2026-11-23T09:15:00"))  # the very moment at which the window is over
    for _ in range(5):
        world.engine.tick()
    assert world.row(key).state is SettlementState.RECEIVED
    with pytest.raises(sa.exc.DBAPIError, match="the window of settlement"), world.database.engine.begin() as plain:
        plain.execute(
            sa.text(
                "UPDATE settlement SET state = 'prepared', epoch = 1, prepared_at = :now,"
                " commit_hash = sha256('a'), abort_hash = sha256('b') WHERE id = :id"
            ),
            {"id": key, "now": world.clock()},
        )
    world.run()
    found, events = plan_of(world, key)
    assert [event.event for event in events] == ["rolled"] and found.value_date == date(2026, 11, 24)
    world.at(at("2026-11-24T04:00:00"))
    world.run()
    assert world.row(key).state is SettlementState.SETTLED


def test_a_report_is_of_the_day_for_which_it_was_carried_out(new_world: Callable[..., OversightWorld]) -> None:
    """Asked for Saturday, carried out for Monday: on Saturday no ledger moved anything."""
    world = new_world("2026-11-27T05:00:00")
    saturday, monday = date(2026, 11, 28), date(2026, 11, 30)
    world.submit(world.instruction(value_date=saturday))
    world.at(at("2026-11-30T04:00:00"))
    world.run()

    def report(day: date) -> list[tuple[date, int]]:
        with world.database.transaction(isolation="READ COMMITTED") as connection:
            rows = reports.settlement_report(
                connection,
                batch=None,
                participant=BANK_A,
                currency="CNY",
                value_date_from=day,
                value_date_to=day,
                after=None,
                limit=10,
            )
        return [(row.value_date, row.paid_minor) for row in rows]

    assert (report(saturday), report(monday)) == ([], [(monday, 10_000)])


def test_what_is_given_up_after_its_window_is_still_ended(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T09:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    world.at(at("2026-11-23T10:00:00"))
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        batches.request_abort(connection, key, by=BRIDGE, now=world.clock())
    for _ in range(9):
        world.engine.tick()
    assert world.row(key).state is SettlementState.CANCELLED


def test_the_database_lets_nobody_prepare_past_a_closed_gate(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T03:00:00")
    (key,) = world.submit(world.instruction(value_date=MONDAY))
    change = sa.text(
        "UPDATE settlement SET state = 'prepared', epoch = 1, commit_hash = :a, abort_hash = :b WHERE id = :k"
    )
    with (
        pytest.raises(sa.exc.DBAPIError, match="a gate of settlement"),
        world.database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.execute(change, {"a": bytes(32), "b": b"1" * 32, "k": key})


# --- clear-out


CLEAR_OUT = {"CNY": ClearOutEntry(currency="CNY", returns_to=BANK_A, against="AED")}


def test_the_clear_out_returns_what_foreigners_hold_once(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T05:00:00")
    world.submit(*(world.instruction(value_date=MONDAY, amount=Money(amount, CNY)) for amount in (70_000, 30_000)))
    world.run()
    desk = ClearOuts(RULES, CLEAR_OUT)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        report = desk.report(connection, "CNY", now=world.clock())
        row = desk.propose(connection, "CNY", by=BRIDGE, now=world.clock())
        other = desk.propose(connection, "CNY", by=BRIDGE, now=world.clock())
    assert [(item.position.participant, item.uncleared_minor) for item in report.items] == [(BANK_B, 100_000)]
    assert report.due_at == at("2026-11-23T09:15:00")
    assert [(line.participant, line.returns_to, line.amount_minor) for line in row.lines] == [(BANK_B, BANK_A, 100_000)]
    world.run()
    assert world.islands["cny"].balance(12) == 10**12 + 100_000  # a proposal moves nothing

    def approve(found: store.ClearOutRow) -> store.ClearOutRow:
        return desk.approve(found, by=BRIDGE, database=world.database, directory=world.directory, clock=world.clock,
                            checks=world.checks)  # fmt: skip

    approved = approve(row)
    assert (approved.approved_by, approved.batch is None) == (BRIDGE, False)
    assert approve(row).batch == approved.batch
    with pytest.raises(ProblemError) as stale:  # the second proposal is over the same balance
        approve(other)
    assert stale.value.refusal == "clear-out-stale"
    world.run()
    assert world.islands["cny"].balance(12) == 10**12
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert [item.uncleared_minor for item in desk.report(connection, "CNY", now=world.clock()).items] == [0]
        assert desk.propose(connection, "CNY", by=BRIDGE, now=world.clock()).lines == ()


@pytest.mark.parametrize("trick", ["a later day", "a queue", "officers"])
def test_no_payment_that_only_waits_keeps_a_balance_from_being_returned(
    new_world: Callable[..., OversightWorld], trick: str
) -> None:
    """Else its holder submits one each evening, recalls it each morning, and returns nothing for ever."""
    world = new_world("2026-11-23T05:00:00")
    world.submit(world.instruction(value_date=MONDAY, amount=Money(70_000, CNY)))
    world.run()
    back = world.instruction(
        value_date=MONDAY if trick != "a later day" else date(2027, 6, 1),
        amount=Money(70_000, CNY),
        debtor=BANK_B,
        creditor=BANK_A,
    )
    (key,) = world.submit(back)
    desk = ClearOuts(RULES, CLEAR_OUT)
    kinds = {"a queue": GateKind.LIQUIDITY, "officers": GateKind.COMPLIANCE}
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        if trick in kinds:
            # Free to go within its hours, it is as good as returned.
            assert [item.uncleared_minor for item in desk.report(connection, "CNY", now=world.clock()).items] == [0]
            gates.close(connection, [gates.Gate(key, kinds[trick], "waits")], now=world.clock())
        report = desk.report(connection, "CNY", now=world.clock())
    assert [item.uncleared_minor for item in report.items] == [70_000]


def test_a_return_that_waits_is_not_proposed_again(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T05:00:00")
    world.submit(world.instruction(value_date=MONDAY, amount=Money(70_000, CNY)))
    world.run()
    desk = ClearOuts(RULES, CLEAR_OUT)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        row = desk.propose(connection, "CNY", by=BRIDGE, now=world.clock())
    checks = (*world.checks, CloseLiquidity())
    desk.approve(row, by=BRIDGE, database=world.database, directory=world.directory, clock=world.clock, checks=checks)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert desk.propose(connection, "CNY", by=BRIDGE, now=world.clock()).lines == ()


def test_a_clear_out_returns_to_no_foreigner() -> None:
    _check_returns(CLEAR_OUT.values(), RULES)
    abroad = ClearOutEntry(currency="CNY", returns_to=BANK_B, against="AED")
    with pytest.raises(ValueError, match="BBBBAEAD, which is foreign there"):
        _check_returns([abroad], RULES)


def test_an_approval_that_died_after_its_batch_finds_the_batch(
    new_world: Callable[..., OversightWorld], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = new_world("2026-11-23T05:00:00")
    world.submit(world.instruction(value_date=MONDAY))
    world.run()
    desk = ClearOuts(RULES, CLEAR_OUT)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        row = desk.propose(connection, "CNY", by=BRIDGE, now=world.clock())
    arguments = {"by": BRIDGE, "database": world.database, "directory": world.directory, "clock": world.clock,
                 "checks": world.checks}  # fmt: skip

    def die(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patched:
        patched.setattr(store, "approve_clear_out", die)
        with pytest.raises(RuntimeError, match="killed"):
            desk.approve(row, **arguments)
    world.pass_time(timedelta(minutes=1))
    approved = desk.approve(row, **arguments)
    world.run()
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        count = connection.execute(sa.select(sa.func.count()).select_from(tables.batch)).scalar_one()
    assert (approved.batch is None, count) == (False, 2)
    assert world.islands["cny"].balance(12) == 10**12


def test_a_currency_without_a_rule_has_no_clear_out(new_world: Callable[..., OversightWorld]) -> None:
    world = new_world("2026-11-23T05:00:00")
    with world.database.transaction(isolation="READ COMMITTED") as connection, pytest.raises(ProblemError) as found:
        ClearOuts(RULES, CLEAR_OUT).report(connection, USD.code, now=world.clock())
    assert found.value.refusal == "clear-out-not-found"


class CloseLiquidity:
    def __call__(self, connection: sa.Connection, candidates: Any, *, now: datetime) -> list[gates.Gate]:
        return [gates.Gate(item.settlement.id, GateKind.LIQUIDITY, "queued") for item in candidates]


def open_gate(world: OversightWorld, key: UUID, kind: GateKind) -> None:
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        gates.open_gates(connection, kind, [key], by="test", now=world.clock())

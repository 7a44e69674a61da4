"""Goal: what compliance holds stays held until two officers let it go, what it refuses ends whole, and no interleaving
of payments takes a resident beyond his quota.

Method: the real intake, database and engine over fake ledgers; threads for the races; plain SQL for what the database
must refuse by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.clock import ManualClock
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.money import Money
from settlement.calendar_files import load_calendars
from settlement.compliance_files import DEMONSTRATION, load_policy
from settlement.domain.compliance import (
    ComplianceData,
    ListScreen,
    PartyKind,
    QuotaDirection,
    Screen,
    Screening,
    Subject,
    Verdict,
)
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.refusals import AbortReason
from settlement.store import batches, gates, tables
from settlement.store import compliance as store
from settlement.store import compliance_tables as c
from settlement.store.gates import GateKind
from settlement.usecases.calendars import CalendarCheck, CalendarRules, open_due_gates
from settlement.usecases.compliance import (
    Compliance,
    ComplianceCheck,
    Officer,
    ResidentHasher,
    decide_case,
    end_refused,
    quota_left,
)
from settlement.usecases.keeper import Keeper
from tests.oversight_world import CNY, OversightWorld

TODAY = date(2026, 11, 23)
POLICY, LISTS = load_policy(DEMONSTRATION)
PERSON = ComplianceData(
    debtor_kind=PartyKind.PERSON, debtor_name="Wang Xiaoming", debtor_country="CN",
    debtor_resident_id="11010519491231002X", creditor_kind=PartyKind.ORGANISATION, creditor_name="Gulf School",
    creditor_country="AE", purpose="STDY",
)  # fmt: skip
LISTED = replace(PERSON, debtor_name="Zzyzx Smuggling Works")
UNSURE = replace(PERSON, debtor_name="Ivo Qwertz")
LI, CHEN = Officer("li.na", "thumbprint-of-li"), Officer("chen.wei", "thumbprint-of-chen")


class World(OversightWorld):
    def compliance(self) -> Compliance:
        return Compliance(POLICY, (ListScreen(LISTS),), ResidentHasher(b"k" * 32), self.find_rate)

    def pay(self, yuan: str, data: ComplianceData = PERSON, **changes: Any) -> UUID:
        amount = Money.parse_major(yuan, CNY)
        (key,) = self.submit(self.instruction(value_date=self.clock().date(), amount=amount, data=data, **changes))
        return key

    def used(self, data: ComplianceData = PERSON, *, year: int | None = None) -> Fraction:
        """US cents used of the purchase quota."""
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            found = quota_left(connection, self.compliance(), country="CN", resident_id=data.debtor_resident_id,
                               year=year, now=self.clock())  # fmt: skip
        return next(item.used_minor for item in found if item.direction is QuotaDirection.PURCHASE)

    def decide(self, key: UUID, verdict: Any, officer: Officer, reason: str = "passport seen") -> store.CaseRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return decide_case(connection, key, verdict=verdict, officer=officer, reason=reason,
                               version=self.compliance().version, now=self.clock())  # fmt: skip

    def decisions(self, key: UUID) -> list[store.DecisionRow]:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return store.decisions_of(connection, [key])[key]


@pytest.fixture
def database(fresh_database: Callable[[str], str]) -> Iterator[Database]:
    found = Database(fresh_database("settlement"), application_name="test", pool_size=10)
    yield found
    found.close()


def make(database: Database, *, screens: Sequence[Screen] | None = None, moment: str = "2026-11-23T05:00:00") -> World:
    world = World(database, ManualClock(datetime.fromisoformat(moment).replace(tzinfo=UTC)), passes=(end_refused,))
    compliance = world.compliance()
    if screens is not None:
        compliance = replace(compliance, screens=tuple(screens))
    world.checks = (ComplianceCheck(compliance),)
    return world


@pytest.fixture
def world(database: Database) -> World:
    return make(database)


def refusals(problem: pytest.ExceptionInfo[ProblemError]) -> list[str]:
    return [item["refusal"] for item in problem.value.extra["problems"]]


# --- pass, review, refuse


def test_a_pass_goes_on_and_is_recorded_with_its_versions(world: World) -> None:
    key = world.pay("710.00")
    world.run()
    assert world.row(key).state is SettlementState.SETTLED
    (decision,) = world.decisions(key)
    assert (decision.verdict, decision.decided_by, decision.decided_at) == ("pass", "lists", world.clock())
    assert decision.versions == f"{POLICY.name} {POLICY.version}; {LISTS[0].name} {LISTS[0].version}"


def test_a_review_waits_for_two_different_officers(world: World) -> None:
    key = world.pay("710.00", UNSURE)
    (gate,) = world.closed([key])[key]
    assert (gate.kind, gate.reason) == (GateKind.COMPLIANCE, "compliance: two officers have to approve")
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    assert world.decide(key, "approve", LI).state == "review"
    assert world.decide(key, "approve", LI).state == "review"  # once more is not a second pair of eyes
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    assert world.decide(key, "approve", CHEN).state == "approved"
    world.run()
    assert world.row(key).state is SettlementState.SETTLED
    verdicts = [(row.verdict, row.decided_by, row.is_officer) for row in world.decisions(key)]
    assert verdicts == [("review", "lists", False), ("approve", "li.na", True), ("approve", "chen.wei", True)]


@pytest.mark.parametrize("officer", [Officer("li.na", "another key of hers"), Officer("li.na.2", "thumbprint-of-li")])
def test_one_person_with_two_names_or_two_keys_is_one_officer(world: World, officer: Officer) -> None:
    key = world.pay("710.00", UNSURE)
    world.decide(key, "approve", LI)
    with pytest.raises(ProblemError) as problem:
        world.decide(key, "approve", officer, reason="I am somebody else")
    assert problem.value.refusal == "officer-decided"
    assert world.closed([key])


def test_one_rejection_ends_the_settlement_without_a_secret_ever_made(world: World) -> None:
    key = world.pay("710.00", UNSURE)
    world.decide(key, "approve", LI)
    assert world.decide(key, "reject", CHEN, "no answer from the bank").state == "rejected"
    check_ended_unprepared(world, key)
    for verdict, officer in (("approve", Officer("zhao", "z")), ("reject", Officer("zhao", "z"))):
        with pytest.raises(ProblemError) as problem:
            world.decide(key, verdict, officer)
        assert problem.value.refusal == "compliance-case-closed"
    with pytest.raises(ProblemError) as changed:
        world.decide(key, "approve", CHEN)
    assert changed.value.refusal == "officer-decided"
    assert world.used() == 0  # the quota came back


def test_what_a_screen_refuses_ends_by_itself(world: World) -> None:
    key = world.pay("710.00", LISTED)
    (gate,) = world.closed([key])[key]
    assert gate.reason == "compliance: refused"  # and not whose name stood on which list
    with pytest.raises(ProblemError) as problem:
        world.decide(key, "approve", LI)
    assert problem.value.refusal == "compliance-case-closed"
    check_ended_unprepared(world, key)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert store.open_cases(connection, after=None, limit=10) == []
    assert "D-1" in world.decisions(key)[0].reason


def check_ended_unprepared(world: World, key: UUID) -> None:
    world.run()
    row = world.row(key)
    assert (row.state, row.decision, row.reason) == (SettlementState.CANCELLED, Decision.ABORT, AbortReason.COMPLIANCE)
    assert (row.epoch, row.prepared_at) == (None, None)
    assert {found.leg.state for found in row.legs} == {LegState.REFUSED}
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        of_it = sa.select(tables.secret).where(tables.secret.c.settlement_id == key)
        assert connection.execute(of_it).all() == []
    for island in world.islands.values():
        island.check()
    again = replace_engine(world)
    assert again.is_idle()  # a new engine finds nothing to recover
    assert world.row(key) == row


def replace_engine(world: World) -> Any:
    world.engine.start()
    world.engine.tick()
    return world.engine


def test_two_rejections_and_an_approval_at_once_end_it_once(world: World) -> None:
    key = world.pay("710.00", UNSURE)
    officers = [Officer(f"officer-{number}", f"key-{number}") for number in range(6)]
    answers: list[str] = []

    def say(officer: Officer, verdict: str) -> None:
        try:
            answers.append(world.decide(key, verdict, officer).state)
        except ProblemError as error:
            answers.append(error.refusal.value)

    threads = [
        threading.Thread(target=say, args=(officer, "reject" if number % 2 else "approve"))
        for number, officer in enumerate(officers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    world.run()
    row = world.row(key)
    given = [found.verdict for found in world.decisions(key)]
    assert len(answers) == 6
    if row.state is SettlementState.SETTLED:
        assert given.count("approve") == 2
        assert "reject" not in given
    else:
        assert row.state is SettlementState.CANCELLED
        assert given.count("reject") == 1


class Broken:
    name = "broken"

    def screen(self, subjects: Sequence[Subject], *, on: date) -> list[Screening]:
        raise RuntimeError("out of order")


class Mute(Broken):
    name = "mute"

    def screen(self, subjects: Sequence[Subject], *, on: date) -> list[Screening]:
        return [Screening(Verdict.PASS)] * (len(subjects) - 1)


@pytest.mark.parametrize("screen", [Broken(), Mute()])
def test_a_screen_that_fails_passes_nobody(database: Database, screen: Screen) -> None:
    world = make(database, screens=[ListScreen(LISTS), screen])
    key = world.pay("710.00")
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    assert world.decisions(key)[0].verdict == "review"


def test_bad_data_refuses_the_batch_whole_and_leaves_nothing_behind(world: World) -> None:
    good = world.instruction(value_date=TODAY, data=PERSON)
    no_purpose = world.instruction(value_date=TODAY, data=replace(PERSON, purpose=""))
    with pytest.raises(ProblemError) as problem:
        world.submit(good, no_purpose)
    assert refusals(problem) == ["purpose-required"]
    assert world.used() == 0
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        for table in (c.compliance_decision, c.quota_use, c.quota_year):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0


def test_an_operators_abort_ends_a_case_too(world: World) -> None:
    key = world.pay("710.00", UNSURE)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        assert batches.request_abort(connection, key, by=world.row(key).debtor, now=world.clock())
    world.run()
    assert world.row(key).state is SettlementState.CANCELLED
    world.run()
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        case = store.find_case(connection, key)
    assert case is not None
    assert case.state == "lapsed"
    assert world.used() == 0


def test_a_case_that_is_approved_at_night_waits_for_the_morning(database: Database) -> None:
    world = make(database)
    rules = CalendarRules(load_calendars())
    world.checks = (*world.checks, CalendarCheck(rules))
    passes = (end_refused, lambda connection, now: open_due_gates(connection, rules, now=now))
    world.keeper = Keeper(passes, database=database, clock=world.clock, moved=lambda: None)
    key = world.pay("710.00", UNSURE)
    world.clock.advance(timedelta(hours=12))
    for officer in (LI, CHEN):
        world.decide(key, "approve", officer)
    world.run()
    assert world.row(key).state is SettlementState.RECEIVED
    world.at(datetime(2026, 11, 24, 4, 0, tzinfo=UTC))
    world.run()
    assert world.row(key).decided_at == world.clock()


# --- quota


def test_the_quota_is_used_up_to_the_cent_and_no_further(world: World) -> None:
    world.pay("355000.00")  # 50,000 USD at 7.1
    assert world.used() == 5_000_000
    with pytest.raises(ProblemError) as problem:
        world.pay("0.02")
    assert refusals(problem) == ["quota-exceeded"]
    world.pay("0.02", replace(PERSON, debtor_resident_id="110105194912310038"))  # somebody else
    world.pay("355000.00", replace(PERSON, debtor_country="HK"))
    world.run()
    assert world.used() == 5_000_000


def test_within_one_batch_the_lines_count_together(world: World) -> None:
    half = [world.instruction(value_date=TODAY, amount=Money(17_750_001, CNY), data=PERSON) for _ in range(2)]
    with pytest.raises(ProblemError) as problem:
        world.submit(*half)
    assert [item["index"] for item in problem.value.extra["problems"]] == [2]
    assert world.used() == 0


def test_an_aborted_settlement_gives_its_quota_back_once(world: World) -> None:
    key = world.pay("71000.00")
    reserved = world.used()
    assert reserved == 1_000_000
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        batches.request_abort(connection, key, by=world.row(key).debtor, now=world.clock())
    world.run()
    assert world.row(key).state is SettlementState.CANCELLED
    for _ in range(3):
        world.run()
    assert world.used() == 0
    settled = world.pay("71000.00")
    world.run()
    assert world.row(settled).state is SettlementState.SETTLED
    assert world.used() == 1_000_000


def test_the_new_year_begins_in_shanghai(database: Database) -> None:
    world = make(database, moment="2026-12-31T15:59:00")
    world.pay("355000.00")
    assert world.used() == 5_000_000
    world.clock.advance(timedelta(minutes=1))
    assert world.used() == 0
    world.pay("355000.00")


def test_what_does_not_settle_is_given_back_to_the_year_it_was_counted_in(database: Database) -> None:
    world = make(database, moment="2026-12-31T15:59:59")
    old = world.pay("71000.00")
    world.clock.advance(timedelta(seconds=1))
    new = world.pay("142000.00")
    assert (world.used(year=2026), world.used()) == (1_000_000, 2_000_000)
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        batches.request_abort(connection, old, by=world.row(old).debtor, now=world.clock())
    world.run()
    assert (world.row(old).state, world.row(new).state) == (SettlementState.CANCELLED, SettlementState.SETTLED)
    assert (world.used(year=2026), world.used()) == (0, 2_000_000)


def test_no_race_takes_a_resident_beyond_the_quota(world: World) -> None:
    answers: list[str] = []

    def pay() -> None:
        try:
            world.pay("71000.00")  # a fifth of the quota
            answers.append("taken")
        except ProblemError as error:
            answers.append(error.extra["problems"][0]["refusal"])

    threads = [threading.Thread(target=pay) for _ in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == ["quota-exceeded"] * 4 + ["taken"] * 5
    assert world.used() == 5_000_000


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fen=st.lists(st.integers(2, 12_000_000), min_size=1, max_size=8), person=st.integers(0, 10**9))
def test_the_sum_is_exact_whatever_the_amounts(world: World, fen: list[int], person: int) -> None:
    data = replace(PERSON, debtor_resident_id=f"P{person}")
    before, sum_minor = world.used(data), Fraction(0)
    refused: list[tuple[list[str], bool]] = []
    for amount in fen:
        counted = Fraction(amount) * Fraction(10, 71)
        try:
            world.pay(f"{amount // 100}.{amount % 100:02d}", data)
            sum_minor += counted
        except ProblemError as error:
            refused.append((refusals_of(error), before + sum_minor + counted > 5_000_000))
    assert world.used(data) == before + sum_minor <= 5_000_000
    assert all(found == (["quota-exceeded"], True) for found in refused)


def refusals_of(error: ProblemError) -> list[str]:
    return [item["refusal"] for item in error.extra["problems"]]


def test_the_quota_table_knows_no_name_and_no_number(world: World) -> None:
    world.pay("71000.00")
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        for table in (c.quota_year, c.quota_use, c.compliance_decision):
            text = str(connection.execute(sa.text(f"SELECT row_to_json(t)::text FROM {table.name} t")).all())
            assert "Wang" not in text
            assert "11010519491231002" not in text


# --- the database by itself


@pytest.mark.parametrize("approvals", [0, 1])
def test_the_database_opens_no_compliance_gate_before_two_approvals(world: World, approvals: int) -> None:
    key = world.pay("710.00", UNSURE)
    for officer in (LI, CHEN)[:approvals]:
        world.decide(key, "approve", officer)
    with (
        pytest.raises(sa.exc.DBAPIError, match="four eyes"),
        world.database.transaction(isolation="READ COMMITTED") as connection,
    ):
        gates.open_gates(connection, GateKind.COMPLIANCE, [key], by="somebody", now=world.clock())


SAY = (
    "INSERT INTO compliance_decision SELECT gen_random_uuid(), settlement_id, 'approve', 'li', {}, now(), {}"
    " FROM quota_use"
)


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("UPDATE quota_year SET used_numerator = used_denominator * limit_minor + 1", "quota_year_within_limit"),
        ("UPDATE quota_year SET used_numerator = -1", "quota_year_fraction"),
        ("UPDATE quota_year SET resident = 'Wang Xiaoming'", "quota_year_resident_hashed"),
        ("UPDATE quota_use SET state = 'released'", "quota_use_ended"),
        (SAY.format("false, NULL, '', ''", "'{}'"), "compliance_decision_verdict"),
        (SAY.format("true, NULL, '', 'x'", "NULL"), "compliance_decision_signed"),
        (SAY.format("true, 'key', '', ''", "NULL"), "compliance_decision_has_reason"),
        (SAY.format("true, 'key', '', 'x'", "'{}'"), "compliance_decision_institutions"),
    ],
)
def test_the_database_refuses_what_the_rules_forbid(world: World, change: str, constraint: str) -> None:
    world.pay("71000.00")
    with (
        pytest.raises(sa.exc.IntegrityError, match=constraint),
        world.database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.execute(sa.text(change))


def test_an_officer_speaks_once_by_name_and_once_by_key(world: World) -> None:
    key = world.pay("710.00", UNSURE)
    world.decide(key, "approve", LI)
    for name, thumbprint in (("li.na", "other"), ("other", "thumbprint-of-li")):
        row = store.DecisionRow(UUID(int=len(name)), key, "approve", name, True, thumbprint, "", "x", world.clock())
        with (
            pytest.raises(sa.exc.IntegrityError, match="_once"),
            world.database.transaction(isolation="READ COMMITTED") as connection,
        ):
            store.insert_decisions(connection, [row])

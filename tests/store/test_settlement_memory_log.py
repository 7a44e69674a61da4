"""Goal: the simulation's log in memory promises what the real one does; what holds over the one holds over the other.

Method: a Hypothesis state machine does the same to both, with engines of the present and of past epochs, and compares
every answer, every refusal and, at the end, every row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.escrow import Decision, LegState, LegTerms, Secrets, SettlementState
from settlement.domain.refusals import AbortReason
from settlement.simulation.memory_log import MemoryLog
from settlement.store import batches, gates, tables
from settlement.store.decision_log import DecisionLog, LegUpdate, Verdict

BANKS = [ParticipantId(code) for code in ("AAAACNBJ", "BBBBAEAD", "CCCCUSNY")]
CNY = Currency.of("CNY")
COUNT = 4
NOW = datetime(2026, 1, 5, 8, 0, tzinfo=UTC)

places = st.integers(0, COUNT - 1)
some = st.lists(places, max_size=COUNT, unique=True)
ages = st.sampled_from([0, 0, 0, 1])
"""How many epochs ago the writing engine took the lease."""


class SameAnswers(RuleBasedStateMachine):
    database: ClassVar[Database]

    @initialize(free=st.lists(st.booleans(), min_size=COUNT, max_size=COUNT), ranks=st.permutations(range(COUNT)))
    def store(self, free: list[bool], ranks: list[int]) -> None:
        self.real, self.memory, self.now = DecisionLog(self.database), MemoryLog(), NOW
        self.ids: list[UUID] = []
        self.seen = 0
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            # Rows of earlier examples stay (a decision is for ever): they are made to be out of every query's sight.
            connection.execute(tables.lease.update().values(epoch=0))
            connection.execute(
                tables.settlement.update()
                .where(tables.settlement.c.state.not_in(["settled", "cancelled"]))
                .values(state="cancelled", epoch=1, commit_hash=b"c" * 32, abort_hash=b"a" * 32)
            )
            for number in range(COUNT):
                key = new_uuid7()
                self.ids.append(key)
                legs = [_leg(number + step) for step in range(2 + number % 2)]
                priority = ("URGT", "HIGH", "NORM")[ranks[number] % 3]
                made = batches.NewSettlement(
                    key, 1, f"i{number}", f"e{number}", uuid4(), legs[0].payer, legs[0].payee, NOW.date(), priority,
                    None, None, None, tuple(legs),
                )  # fmt: skip
                batch = new_uuid7()
                batches.insert_batch(
                    connection, batch=batch, submitter=BANKS[0], message_id=str(batch), batch_format="csv",
                    content_sha256=bytes(32), received_at=NOW, started_at=NOW, settlements=[made],
                )  # fmt: skip
                if not free[number]:
                    gates.close(connection, [gates.Gate(key, gates.GateKind.CALENDAR, "closed")], now=NOW)
                rank = batches.PRIORITY_RANK[priority]
                self.memory.store(key, made.uetr, legs, priority=rank, is_free=free[number])
        self.take_lease()

    @rule()
    def take_lease(self) -> None:
        self.both("take_lease", holder="x", now=self.now)

    @rule(age=ages)
    def renew(self, age: int) -> None:
        self.both("renew_lease", **self.as_of(age))

    @rule(limit=st.integers(1, COUNT), slow=st.lists(st.sampled_from(BANKS), max_size=2))
    def received(self, limit: int, slow: list[ParticipantId]) -> None:
        self.both("received", limit=limit, without_payers=slow)

    @rule(which=some, age=ages)
    def persist(self, which: list[int], age: int) -> None:
        made = {}
        for place in which:
            self.seen += 1
            fresh = hashlib.sha256(f"{self.ids[place]}/{self.seen}".encode()).digest()
            made[self.ids[place]] = Secrets(fresh, fresh[::-1])
        self.both("persist", made, **self.as_of(age))

    @rule(
        which=st.lists(places, max_size=2, unique=True),
        number=st.integers(0, 1),
        state=st.sampled_from([LegState.PENDING, LegState.HELD, LegState.REFUSED]),
        token=st.sampled_from([None, "t1", "t2"]),
        age=ages,
    )
    def record_legs(self, which: list[int], number: int, state: LegState, token: str | None, age: int) -> None:
        updates = [LegUpdate(self.ids[place], number, state, "", token) for place in which]
        self.both("record_legs", updates, **self.as_of(age))

    @rule(which=some, age=ages)
    def record_waits(self, which: list[int], age: int) -> None:
        self.both("record_waits", {self.ids[place]: f"wait {place}" * 40 for place in which}, **self.as_of(age))

    @rule(which=some, decision=st.sampled_from(Decision), age=ages)
    def decide(self, which: list[int], decision: Decision, age: int) -> None:
        reason = AbortReason.OPERATOR if decision is Decision.ABORT else None
        verdicts = [Verdict(self.ids[place], decision, reason) for place in which]
        self.both("decide", verdicts, **self.as_of(age))

    @rule(place=places)
    def give_up(self, place: int) -> None:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            noted = batches.request_abort(connection, self.ids[place], by=BANKS[0], now=self.now)
        assert self.memory.request_abort(self.ids[place]) == noted

    @rule(age=st.integers(-1, 1), which=st.none() | some, limit=st.integers(1, COUNT))
    def read(self, age: int, which: list[int] | None, limit: int) -> None:
        self.both("undecided_of_others", epoch=self.memory.epoch - age)
        self.both("abort_requests")
        self.both("decisions", self.ids)
        ids = None if which is None else [self.ids[place] for place in which]
        self.both("unfinished", ids, limit=limit)

    @rule(place=places, numbers=st.lists(st.integers(0, 1), min_size=1, unique=True), is_wrong=st.booleans(), age=ages)
    def record_ends(self, place: int, numbers: list[int], is_wrong: bool, age: int) -> None:
        key = self.ids[place]
        record, row = self.memory.records.get(key), self.memory.rows[key]
        is_fresh = all(row.legs[number].state not in (LegState.POSTED, LegState.VOIDED) for number in numbers)
        decision = Decision.COMMIT if record is None else record.decision
        if is_wrong and is_fresh and record is not None:
            decision = Decision.ABORT if decision is Decision.COMMIT else Decision.COMMIT
        if record is None and not is_fresh:
            return
        self.both("record_ends", {key: (decision, dict.fromkeys(numbers, self.now))}, **self.as_of(age))

    def as_of(self, age: int) -> dict[str, Any]:
        self.now += timedelta(seconds=1)
        return {"epoch": max(0, self.memory.epoch - age), "now": self.now}

    def both(self, name: str, *arguments: Any, **options: Any) -> None:
        found = [_outcome(getattr(log, name), arguments, options) for log in (self.real, self.memory)]
        self.is_same = found[0] == found[1]
        assert self.is_same, f"{name} {options}: the real log says {found[0]}, the one in memory {found[1]}"

    def teardown(self) -> None:
        if not getattr(self, "is_same", False):
            return  # it failed before: the rows are what they are
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            for key in self.ids:
                row, ours = batches.find_settlement(connection, key), self.memory.rows[key]
                assert row is not None
                secret = connection.execute(
                    sa.select(tables.secret).where(tables.secret.c.settlement_id == key)
                ).one_or_none()
                assert (row.state, row.waits_for, row.ended_at, row.epoch or 0) == (
                    ours.state, ours.waits_for, ours.ended_at, ours.epoch,
                )  # fmt: skip
                assert tuple(found.leg for found in row.legs) == ours.legs
                assert [found.leg.number for found in row.legs if found.is_signed] == sorted(ours.authorised)
                assert (row.abort_requested_by is not None) == ours.is_given_up
                if ours.state is SettlementState.RECEIVED:
                    assert secret is None
                else:
                    assert secret is not None
                    assert (secret.commit_secret, secret.abort_secret) == (ours.commit_secret, ours.abort_secret)


def _leg(number: int) -> LegTerms:
    payer, payee = BANKS[number % 3], BANKS[(number + 1) % 3]
    return LegTerms("cny", payer, payee, AccountNumber(11), AccountNumber(12), Money(1 + number, CNY))


def _outcome(call: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> object:
    """What it returned; of a failure, whether another engine has the lease or the write was refused as wrong."""
    try:
        found = call(*arguments, **options)
    except Exception as error:
        return "deposed" if type(error).__name__ == "Deposed" else "refused"
    return list(found) if isinstance(found, list) else found


@pytest.fixture
def database(fresh_database: Callable[[str], str]) -> Iterator[Database]:
    found = Database(fresh_database("settlement"), application_name="test", pool_size=2)
    yield found
    found.close()


def test_the_log_in_memory_answers_as_the_real_one(database: Database) -> None:
    SameAnswers.database = database
    run_state_machine_as_test(
        SameAnswers,
        settings=settings(
            max_examples=15,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],  # each step asks a database: shrinking would take minutes
        ),
    )

"""Closings of a real ledger: every day at its last block, on order at the newest, each with proofs for every account.

Goal: the signed root's total is the circulation at exactly that block, whatever is booked meanwhile, across restarts
and days without a ledger; nothing is closed twice; nothing that does not add up is signed.
Method: a sequencer on a real database with a clock that tests move; the process that makes the tree is the real one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise

import numpy as np
import psycopg
import pytest

from kernel.clock import from_micros
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import new_uuid7
from kernel.transparency.sum_tree import closing_key
from ledger.balance_proofs import (
    ClosingStatement,
    contradiction,
    open_statement,
    sign_statement,
    verify_balance_proof,
)
from ledger.domain.blocks import OpenedAccount
from ledger.log.keys import LogKeys
from ledger.store import closings as store
from ledger.store import leases, queries
from ledger.usecases.closings import ClosingFailed, Closings
from ledger.usecases.keyring import Caller
from ledger.verifier.closings import audit_closing
from tests.roles import as_service, dsn
from tests.sequencer_world import Item, SequencerWorld

KEYS = LogKeys("ledger.example/test-cny", PrivateKey.generate(), b"m" * 32)
OPERATOR = Caller("operator", 0, 0, True)
BANK = Caller("bank", 1, 1, False)
STRANGER = Caller("other", 2, 1, False)
DAY = timedelta(days=1)


class World(SequencerWorld):
    closings: Closings

    def begin_closings(self) -> Closings:
        sequencer, database = self.running[-1]
        self.closings = Closings(
            sequencer,
            database,
            database_url=as_service(self.url),
            state=sequencer.read(lambda state: state).result(10),
            keys=KEYS,
            answer_seconds_max=30,
        )
        self.closings.start()
        return self.closings

    def statements(self, at_least: int) -> list[ClosingStatement]:
        """In order, once there are so many."""
        deadline = time.monotonic() + 30
        while len(found := self.closings.newest(cursor=None, limit=50).items) < at_least:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} closings instead of {at_least}")
            time.sleep(0.05)
        return [open_statement(view.statement, log_key=KEYS.verifier_key) for view in reversed(found)]

    def order_closing(self) -> ClosingStatement:
        view = self.closings.order(caller=OPERATOR)
        return open_statement(view.statement, log_key=KEYS.verifier_key)

    def proved(self, closing: int, account: int) -> int:
        proof = self.closings.balance_proof(closing, account, caller=BANK)
        return verify_balance_proof(proof, log_key=KEYS.verifier_key, account=account).balance_minor

    def tables(self) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(dsn(self.url), autocommit=True)


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[World]:
    made = World(fresh_database("ledger"))
    made.begin_closings()
    yield made
    made.closings.stop()
    made.close()


def test_an_ordered_closing_proves_every_balance_holds_included(world: World) -> None:
    one, two, three = world.vault(1_000), world.vault(500), world.vault()
    hold = new_uuid7()
    assert (
        world.names(
            Item("payment", one, two, 30),
            Item("hold", two, three, 200, id=hold, expires_at=world.clock() + DAY),
            Item("hold", one, three, 70, expires_at=world.clock() + DAY),
            Item("post", amount=150, hold=hold),
        )
        == ["booked"] * 4
    )
    said = world.order_closing()
    assert (said.accounts, said.leaves, said.kind) == (3, 6, "order")
    assert said.root_total_minor == said.circulation_minor == said.vaults_minor == 1_500
    assert [world.proved(1, account) for account in (one, two, three)] == [970, 380, 150]
    head = world.sequencer.head
    assert head is not None
    assert (said.block, said.block_hash, said.seq) == (head.number, head.hash, 6)
    assert world.closings.order(caller=OPERATOR).closing == 1  # nothing was booked since
    world.submit(Item("payment", one, two, 1))
    later = world.order_closing()
    assert (later.closing, later.previous) == (2, said.digest)
    assert contradiction(said, later) is None
    assert [world.proved(1, one), world.proved(2, one)] == [970, 969]


def test_a_ledger_with_no_holders_closes_over_nothing(world: World) -> None:
    said = world.order_closing()
    assert (said.accounts, said.leaves, said.root_total_minor) == (0, 0, 0)


def test_each_day_is_closed_at_its_last_block_whatever_comes_after(world: World) -> None:
    one, two = world.vault(1_000), world.vault(0)
    world.submit(Item("payment", one, two, 100))
    last = world.sequencer.head
    assert last is not None
    assert world.statements(0) == []
    world.clock.advance(DAY)  # noon of the next day in the scheme's zone
    for _ in range(5):
        world.submit(Item("payment", two, one, 7))
    three = world.vault(50)
    [said] = world.statements(1)
    assert (said.kind, said.day, said.block, said.block_hash) == ("day", date(2026, 11, 23), last.number, last.hash)
    assert (said.accounts, said.circulation_minor) == (2, 1_000)
    assert [world.proved(1, one), world.proved(1, two)] == [900, 100]
    with pytest.raises(ProblemError, match="account-not-found"):
        world.proved(1, three)  # opened after the close
    world.clock.advance(3 * DAY)  # the days in between have no block, and no closing
    world.submit(Item("payment", one, two, 1))
    assert [(item.closing, item.day) for item in world.statements(2)] == [
        (1, date(2026, 11, 23)),
        (2, date(2026, 11, 24)),
    ]


def test_days_that_ended_without_closings_are_closed_at_the_next_start(world: World) -> None:
    one, two = world.vault(1_000), world.vault(0)
    world.closings.stop()
    balances = {}
    for day in range(3):
        world.submit(Item("payment", one, two, 10), Item("payment", two, one, 1))
        balances[date(2026, 11, 23) + day * DAY] = world.balance(one)
        world.clock.advance(DAY)
    world.submit(Item("payment", one, two, 500))
    world.restart(graceful=False)
    world.begin_closings()
    found = world.statements(3)
    assert {item.day: world.proved(item.closing, one) for item in found} == balances
    assert len(world.statements(3)) == 3
    for earlier, later in pairwise(found):
        assert contradiction(earlier, later) is None
        assert later.previous == earlier.digest


def test_balances_are_those_of_one_block_while_transfers_go_on(world: World) -> None:
    accounts = [world.vault(10_000) for _ in range(6)]
    stop = threading.Event()

    def pay() -> None:
        numbers = np.random.default_rng(1)
        while not stop.is_set():
            debit, credit = numbers.choice(accounts, 2, replace=False).tolist()
            world.submit(*(Item("payment", debit, credit, int(numbers.integers(1, 50))) for _ in range(20)))

    thread = threading.Thread(target=pay)
    thread.start()
    try:
        said = [world.order_closing() for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    for statement in said:
        assert sum(world.proved(statement.closing, account) for account in accounts) == 60_000
        with world.tables() as connection:  # the auditor's way: add up the journal through that seq
            for account in accounts:
                row = connection.execute(
                    "SELECT sum(CASE WHEN credit_account = %(a)s THEN amount_minor ELSE -amount_minor END)"
                    " FROM transfer WHERE seq <= %(s)s AND %(a)s IN (debit_account, credit_account)",
                    {"a": account, "s": statement.seq},
                ).fetchone()
                assert row == (world.proved(statement.closing, account),)


def test_the_auditor_finds_the_same_root_from_the_journal(world: World) -> None:
    one, two = world.vault(1_000), world.vault(200)
    world.submit(Item("payment", one, two, 5))
    said = world.order_closing()
    replayed = np.array([995, 205], np.int64)
    facts = {
        "key": closing_key(KEYS.master, 1),
        "block": said.block,
        "block_hash": said.block_hash,
        "seq": said.seq,
        "totals": {"issued": 1_200, "redeemed": 0, "vaults": 1_200, "wallets": 0},
    }
    assert audit_closing(said.text, balances=replayed, **facts) == []
    assert audit_closing(said.text, balances=np.array([996, 204], np.int64), **facts) != []
    assert audit_closing(said.text, balances=replayed[:1], **facts) != []


def test_only_the_accounts_participant_and_operators_get_a_proof(world: World) -> None:
    account = world.vault(10)
    world.order_closing()
    for caller in (BANK, OPERATOR):
        assert world.closings.balance_proof(1, account, caller=caller).balance_minor == 10
    for caller, closing, number in ((STRANGER, 1, account), (BANK, 1, 1), (BANK, 1, 99), (BANK, 9, account)):
        with pytest.raises(ProblemError, match="not-found"):
            world.closings.balance_proof(closing, number, caller=caller)
    with pytest.raises(ProblemError, match="not-permitted"):
        world.closings.order(caller=BANK)


def test_a_tree_of_many_pages_proves_its_first_last_and_middle_account(world: World) -> None:
    first = world.vault(10**6)
    count = 3_000
    opened = [world.vault() for _ in range(3)]
    bulk = [OpenedAccount(0, new_uuid7().bytes, 1, 1, "none", None) for _ in range(count)]
    made = world.sequencer.open_accounts(bulk).result(20)
    numbers = [account.number for account in made if account is not None]
    world.submit(*(Item("payment", first, number, position + 1) for position, number in enumerate(numbers[:1000])))
    said = world.order_closing()
    assert said.accounts == count + 4
    assert world.proved(1, numbers[0]) == 1
    assert world.proved(1, numbers[999]) == 1000
    assert world.proved(1, numbers[-1]) == world.proved(1, opened[0]) == 0
    assert world.proved(1, first) == 10**6 - 500_500


def test_a_balance_changed_behind_the_journal_is_never_signed(world: World) -> None:
    account = world.vault(100)
    other = world.vault(100)
    world.sequencer.read(lambda state: state.credits_posted.__setitem__(account, 99)).result(10)
    with pytest.raises(ProblemError, match="service-unavailable"):
        world.closings.order(caller=OPERATOR)
    world.sequencer.read(lambda state: state.credits_posted.__setitem__(account, 100)).result(10)
    with pytest.raises(ProblemError):  # closings have stopped: a person must look
        world.closings.order(caller=OPERATOR)
    assert "I2" in str(world.closings.failure)
    assert world.balance(other) == 100
    assert world.closings.newest(cursor=None, limit=5).items == []


def test_two_ledger_processes_make_one_closing(world: World) -> None:
    """A standby that took over and the deposed one, both at work on the same day."""
    world.vault(100)
    first = world.closings
    rival_database = Database(as_service(world.url), application_name="rival")
    rival = Closings(
        world.sequencer,
        rival_database,
        database_url=as_service(world.url),
        state=world.sequencer.read(lambda state: state).result(10),
        keys=KEYS,
        answer_seconds_max=30,
    )
    rival.start()
    world.clock.advance(DAY)
    world.vault(1)
    assert len(world.statements(1)) == 1
    time.sleep(1.5)
    assert len(world.statements(1)) == 1
    for item in (first, rival):
        assert (
            verify_balance_proof(
                item.balance_proof(1, 2, caller=BANK), log_key=KEYS.verifier_key, balance_minor=100
            ).statement.closing
            == 1
        )
    rival.stop()
    rival_database.close()


@pytest.mark.parametrize("cut", ["no-signature", "killed", "taken-over"])
def test_a_closing_that_is_cut_off_leaves_nothing(world: World, monkeypatch: pytest.MonkeyPatch, cut: str) -> None:
    """After its pages are written and before it commits: no row is seen, and the next closing has the number."""
    world.vault(100)

    def fail(statement: ClosingStatement, *, name: str, key: PrivateKey) -> str:
        process = world.closings._process
        if cut == "no-signature" or process is None:
            raise ClosingFailed("no signature today")
        if cut == "taken-over":  # as of a ledger that was stopped here, its pages written and locked
            with psycopg.connect(dsn(as_service(world.url))) as rival:
                leases.prepare(rival)
                leases.end_other_writers(rival, own=world.sequencer._lease.session_name)
            return sign_statement(statement, name=name, key=key)
        process.kill()
        process.wait()
        return sign_statement(statement, name=name, key=key)

    with monkeypatch.context() as patch:
        patch.setattr("ledger.usecases.closings.sign_statement", fail)
        with pytest.raises(ProblemError, match="service-unavailable"):
            world.closings.order(caller=OPERATOR)
    with world.tables() as connection:
        assert connection.execute("SELECT count(*) FROM closing_page").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM closing").fetchone() == (0,)
    assert world.order_closing().closing == 1
    assert world.proved(1, 2) == 100


def test_stopping_does_not_wait_for_a_closing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.vault(100)
    reached, go_on = threading.Event(), threading.Event()

    def slow(statement: ClosingStatement, *, name: str, key: PrivateKey) -> str:
        reached.set()
        go_on.wait(20)
        return sign_statement(statement, name=name, key=key)

    monkeypatch.setattr("ledger.usecases.closings.sign_statement", slow)
    world.clock.advance(DAY)
    world.vault(1)
    assert reached.wait(20)
    stopping = threading.Thread(target=world.closings.stop)
    stopping.start()
    time.sleep(0.2)
    go_on.set()
    stopping.join(10)
    assert not stopping.is_alive()
    monkeypatch.undo()
    world.begin_closings()
    assert [item.closing for item in world.statements(1)] == [1]


def test_the_last_block_before_a_moment_is_found_by_halving(world: World) -> None:
    for _ in range(6):
        world.vault()
        world.clock.advance(timedelta(hours=1))
    head = world.sequencer.head
    assert head is not None
    with world.running[-1][1].transaction(isolation="READ COMMITTED") as connection:
        headers = [queries.find_block(connection, number) for number in range(1, head.number + 1)]
        booked = {header.number: from_micros(header.booked_at) for header in headers if header is not None}
        for moment in {
            booked[number] + timedelta(minutes=1) for number in booked if booked[number] < booked[len(booked)]
        }:
            expected = max(number for number, at in booked.items() if at < moment)
            assert store.last_block_before(connection, moment, low=1, high=len(booked)) == expected

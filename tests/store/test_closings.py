"""Closings of a real ledger: every day at its last block, on order at the newest, each with proofs for every account.

Goal: the signed root's total is the circulation at exactly that block, whatever is booked meanwhile, across restarts
and days without a ledger; nothing is closed twice; nothing that does not add up is signed.
Method: a sequencer on a real database with a clock that tests move; the process that makes the tree is the real one.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, new_uuid7, show_account
from kernel.transparency import sum_tree
from kernel.transparency.notes import Note, sign_text
from kernel.transparency.sum_tree import Node, closing_key
from ledger.__main__ import app
from ledger.balance_proofs import (
    ClosingStatement,
    contradiction,
    open_statement,
    sign_statement,
    verify_balance_proof,
)
from ledger.domain.blocks import BlockHeader, OpenedAccount
from ledger.export import export_journal
from ledger.export.log import NO_SALTS, DatabaseLog, LogSalts
from ledger.log.keys import LogKeys
from ledger.log.leaves import MasterSalts, block_commitment
from ledger.log.sealer import Sealer
from ledger.store import closings as store
from ledger.store import leases, queries
from ledger.usecases.closings import ClosingFailed, Closings
from ledger.usecases.keyring import Caller
from ledger.verifier import Known, verify_database, verify_export
from ledger.verifier.closings import audit_closing
from tests.cheating_closings import Leaf, unchecked_leaf, unchecked_parent
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


def commitment_of(header: BlockHeader) -> bytes:
    return block_commitment(KEYS.master, header.number, header.hash)


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
    assert (said.block, said.block_commitment, said.seq) == (head.number, commitment_of(head), 6)
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
    assert (said.kind, said.day, said.block) == ("day", date(2026, 11, 23), last.number)
    assert said.block_commitment == commitment_of(last)
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


@pytest.mark.extended
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


@pytest.mark.extended
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
    facts: dict[str, Any] = {
        "key": closing_key(KEYS.master, 1),
        "block": said.block,
        "commitment": said.block_commitment,
        "seq": said.seq,
        "totals": {"issued": 1_200, "redeemed": 0, "vaults": 1_200, "wallets": 0, "offline": 0},
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


@pytest.mark.extended
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


@pytest.mark.parametrize(
    "cut", ["killed", *(pytest.param(cut, marks=pytest.mark.extended) for cut in ("no-signature", "taken-over"))]
)
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


@pytest.mark.extended
def test_a_process_that_hangs_is_killed_and_the_closing_made_anew(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vault(100)

    def hang(statement: ClosingStatement, *, name: str, key: PrivateKey) -> str:
        process = world.closings._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        return sign_statement(statement, name=name, key=key)

    with monkeypatch.context() as patch:
        patch.setattr("ledger.usecases.closings.sign_statement", hang)
        patch.setattr("ledger.usecases.closings.PROCESS_SECONDS_MAX", 5.0)
        with pytest.raises(ProblemError, match="service-unavailable"):
            world.closings.order(caller=OPERATOR)
    assert world.order_closing().closing == 1


@pytest.mark.extended
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


# --- the auditor's command --------------------------------------------------------------------------------------------


def exported(world: World, directory: Path, *, salts: LogSalts | None = None, segment_transfers: int = 10**6) -> Path:
    """With the log sealed up to the newest block."""
    given = salts if salts is not None else MasterSalts(KEYS.master)
    sequencer, database = world.running[-1]
    sealer = Sealer(database, KEYS, ledger="test-cny", currency="CNY", holder=sequencer.holder, clock=world.clock)
    sealer.open()
    while sealer.catch_up():
        pass
    sealer.seal()
    sealer.close()
    with psycopg.connect(dsn(world.url), autocommit=True, options="-c timezone=UTC") as connection:
        export_journal(connection, directory, log=DatabaseLog(connection, given), segment_transfers=segment_transfers)
    return directory


def verify_command(directory: Path, key: LogKeys = KEYS) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `jiaozi-ledger verify --export`, as typed."""
    done = CliRunner().invoke(app, ["verify", "--export", str(directory), "--log-key", str(key.verifier_key), "--json"])
    return done.exit_code, json.loads(done.stdout)


def said_of(report: dict[str, Any]) -> list[tuple[str, int | None, str]]:
    return [(item["rule"], item["block"], item["message"]) for item in report["findings"]]


def rewrite(world: World, number: int, *, leaves: bytes | None = None, note: str | None = None) -> None:
    """As the ledger itself could: it owns the tables and the key."""
    with world.tables() as connection:
        if note is not None:
            assert (
                connection.execute("UPDATE closing SET statement = %s WHERE number = %s", (note, number)).rowcount == 1
            )
        if leaves is not None:
            changed = connection.execute("UPDATE closing_page SET leaves = %s WHERE closing = %s", (leaves, number))
            assert changed.rowcount == 1


def leaves_of(world: World, number: int) -> np.ndarray[Any, Any]:
    with world.tables() as connection:
        row = connection.execute("SELECT leaves FROM closing_page WHERE closing = %s", (number,)).fetchone()
    assert row is not None
    data = row[0]
    assert isinstance(data, bytes)
    return np.frombuffer(data, sum_tree.LEAF).copy()


def resign(said: ClosingStatement, **changed: object) -> str:
    """Whatever the ledger likes to say, with its good signature."""
    document = said.model_dump(mode="json") | changed
    text = jws.canonical_json(document).decode() + "\n"
    return str(Note(text, (sign_text(text, name=KEYS.origin, key=KEYS.signing),)))


def root_over(leaves: np.ndarray[Any, Any], number: int) -> Node:
    """Of any leaves, negative ones too: sums are hashed modulo 2^64."""
    salts = sum_tree.salts(closing_key(KEYS.master, number), leaves)
    level = [
        unchecked_leaf(Leaf(int(row["account"]), int(row["share"]), signed(int(row["sum"])), salts[16 * at :][:16]))
        for at, row in enumerate(leaves)
    ]
    while len(level) > 1:
        pairs = [unchecked_parent(*level[at : at + 2]) for at in range(0, len(level) - 1, 2)]
        level = pairs + level[len(level) & ~1 :]
    return level[0]


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


@pytest.fixture(scope="module")
def closed_once(fresh_databases: Callable[[str], str]) -> Iterator[tuple[World, ClosingStatement]]:
    """Five accounts of 100, 200, ..., 500, closed once; the journal goes on after it."""
    world = World(fresh_databases("ledger"))
    world.begin_closings()
    accounts = [world.vault(100 * place) for place in range(1, 6)]
    said = world.order_closing()
    world.submit(Item("payment", accounts[4], accounts[0], 50))
    yield world, said
    world.closings.stop()
    world.close()


@pytest.fixture
def closed(closed_once: tuple[World, ClosingStatement]) -> Iterator[tuple[World, ClosingStatement]]:
    """For a test to rewrite; afterwards the closing is the honest one again."""
    world, _ = closed_once
    with world.tables() as connection:
        row = connection.execute("SELECT statement FROM closing WHERE number = 1").fetchone()
    assert row is not None
    leaves = leaves_of(world, 1).tobytes()
    yield closed_once
    rewrite(world, 1, leaves=leaves, note=str(row[0]))


@pytest.mark.extended
def test_verify_recomputes_every_closing_from_its_own_balances(world: World, tmp_path: Path) -> None:
    one, two = world.vault(1_000), world.vault(500)
    hold = new_uuid7()
    world.submit(Item("hold", one, two, 70, id=hold, expires_at=world.clock() + 3 * DAY))
    world.order_closing()
    for _ in range(2):
        world.submit(*(Item("payment", two, one, 3) for _ in range(40)))
        world.clock.advance(DAY)
    world.submit(Item("post", amount=70, hold=hold))
    world.statements(3)
    world.order_closing()
    directories = [
        exported(world, tmp_path / "whole"),
        exported(world, tmp_path / "parts", segment_transfers=30),
    ]
    world.submit(Item("payment", two, one, 1))
    exported(world, tmp_path / "parts", segment_transfers=30)  # a later run goes on
    for directory in directories:
        status, report = verify_command(directory)
        assert (status, report["findings"]) == (0, [])
        assert report["proved"]["closings"] == report["proved"]["signatures of closings"] == 4
        assert report["proved"]["balances in closings"] == 8
        assert not [sentence for sentence in report["unproved"] if "closing" in sentence]
    assert verify_database(world.url, salts=MasterSalts(KEYS.master)).proved["closings"] == 4
    together = verify_export(tmp_path / "parts", known=Known(log_key=KEYS.verifier_key), processes=2)
    assert (together.findings, together.proved["closings"]) == ([], 4)


@pytest.mark.extended
def test_a_closing_that_came_after_its_blocks_were_exported_is_audited_all_the_same(
    world: World, tmp_path: Path
) -> None:
    one, two = world.vault(1_000), world.vault(500)
    exported(world, tmp_path / "export")
    world.order_closing()
    world.submit(Item("payment", one, two, 1))
    exported(world, tmp_path / "export")
    status, report = verify_command(tmp_path / "export")
    assert (status, report["findings"], report["proved"]["closings"]) == (0, [], 1)


CHEATS = {
    "omitted": "account 4 ({name}) is left out: it had 300",
    "understated": "account 3 ({name}) counts for 195: it had 200 (1 more accounts are wrong)",
    "negative": "account 3 ({name}) has a negative part, and counts for -100 in all: it had 200",
    "stranger": "it counts account 1000000000, which there is not",
}


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_ledger_that_cheats_in_a_closing_is_named_with_the_account(
    closed: tuple[World, ClosingStatement], tmp_path: Path, cheat: str
) -> None:
    """Under the right total and with its own good signature: no member of the statement gives it away."""
    world, said = closed
    leaves = leaves_of(world, 1)
    victim = leaves["account"] == (4 if cheat == "omitted" else 3)
    accomplice = np.flatnonzero(leaves["account"] == 6)[0]
    if cheat == "omitted":  # its leaves become the accomplice's
        leaves["account"][victim] = 6
    elif cheat == "understated":
        largest = np.flatnonzero(victim)[np.argmax(leaves["sum"][victim])]
        leaves["sum"][largest] -= 5
        leaves["sum"][accomplice] += 5
    elif cheat == "negative":
        leaves["sum"][victim] = [2**64 - 100, 0]
        leaves["sum"][accomplice] += 300
    else:
        leaves["account"][victim] = 10**9
    root = root_over(leaves, 1)
    assert root.sum == said.root_total_minor
    rewrite(world, 1, leaves=leaves.tobytes(), note=resign(said, root=root.hash.hex()))
    status, report = verify_command(exported(world, tmp_path / "export"))
    assert status == 1
    found = said_of(report)
    named = show_account(AccountNumber(4 if cheat == "omitted" else 3))
    assert found[0][:2] == ("closing", said.block)
    assert found[0][2].startswith("closing 1: " + CHEATS[cheat].format(name=named))
    assert all(rule == "closing" for rule, *_ in found)
    assert any("root is " in message for *_, message in found)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"accounts": 4, "leaves": 8}, "accounts is 5 by replay"),
        ({"root": "ab" * 32}, "root is "),
        ({"root_total_minor": "1499"}, "root_total_minor is 1500 by replay"),
        ({"issued_minor": "1600"}, "issued_minor is 1500 by replay"),
        ({"seq": 4}, "seq is 5 by replay"),
        ({"block_commitment": "cd" * 32}, "block_commitment is "),
        ({"booked_at": "2026-11-23T04:00:01.000000Z"}, "booked_at is "),
        ({"day": "2026-11-22"}, "day is 2026-11-23 by replay"),
        ({"ledger": "other"}, "ledger is test-cny by replay"),
        ({"kind": "month"}, "it is of kind 'month'"),
        ({"kind": "day"}, "is not the last of 2026-11-23"),
        ({"previous": "ef" * 32}, "previous is not the hash"),
        ({"closing": 7}, "its statement is of closing 7"),
        ({"block": 99}, "block 99, which it names, is not there"),
        ({"note": "all is well"}, "note is no member"),
    ],
)
def test_every_member_of_a_statement_is_held_against_the_replay(
    closed: tuple[World, ClosingStatement], tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    world, said = closed
    rewrite(world, 1, note=resign(said, **changed))
    status, report = verify_command(exported(world, tmp_path / "export"))
    assert status == 1
    found = said_of(report)
    assert {rule for rule, *_ in found} == {"closing"}
    assert any(text.startswith(f"closing 1: {message}") or message in text for *_, text in found), found


def test_kept_leaves_that_are_not_those_under_the_root_are_found(
    closed: tuple[World, ClosingStatement], tmp_path: Path
) -> None:
    world, said = closed
    honest = leaves_of(world, 1)
    rewrite(world, 1, leaves=honest[::-1].tobytes())
    _, report = verify_command(exported(world, tmp_path / "order"))
    assert said_of(report) == [
        (
            "closing",
            said.block,
            "closing 1: the leaves that are kept are not those under its root: no proof can be made from them",
        )
    ]
    rewrite(world, 1, leaves=honest[:-1].tobytes())
    _, report = verify_command(exported(world, tmp_path / "fewer"))
    assert "has 1 leaves instead of 2" in said_of(report)[0][2]


@pytest.mark.extended
def test_a_closing_that_was_dropped_or_signed_by_another_is_found(world: World, tmp_path: Path) -> None:
    one, two = world.vault(1_000), world.vault(500)
    for _ in range(3):
        world.submit(Item("payment", one, two, 1))
        world.clock.advance(DAY)
    world.submit(Item("payment", one, two, 1))
    said = world.statements(3)
    other = LogKeys(KEYS.origin, PrivateKey.generate(), KEYS.master)
    _, report = verify_command(exported(world, tmp_path / "whole"), other)
    unsigned = [message for rule, _, message in said_of(report) if rule == "closing"]
    assert [message.partition(":")[0] for message in unsigned] == ["closing 1", "closing 2", "closing 3"]
    with world.tables() as connection:
        connection.execute("DELETE FROM closing WHERE number = 2")
    status, report = verify_command(exported(world, tmp_path / "export"))
    assert status == 1
    messages = [message for *_, message in said_of(report)]
    assert messages == [
        "closing 3: closing 2 comes next, and is not there",
        f"closing 3: {said[1].day} comes before it, and was not closed",
    ]


def test_without_the_closings_keys_it_is_said_what_was_not_proved(
    closed: tuple[World, ClosingStatement], tmp_path: Path
) -> None:
    world, said = closed
    status, report = verify_command(exported(world, tmp_path / "export", salts=NO_SALTS))
    assert status == 0
    assert "closings" not in report["proved"]
    assert any("closings' roots" in sentence for sentence in report["unproved"])
    rewrite(world, 1, note=resign(said, accounts=4, leaves=8))
    status, _ = verify_command(exported(world, tmp_path / "again", salts=NO_SALTS))
    assert status == 1

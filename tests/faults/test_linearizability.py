"""R13. Goal: whoever asks whatever at the same time, with kills in between, is answered as if one order existed.

Method: real clients record what they asked and were told, and when; two independent judges (`tests.faults.history`)
look for the order: a search that knows nothing of the journal, and a check of the order that the journal claims. Both
are first shown histories with planted faults, and must find them.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psycopg
import pytest

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import AccountKind, AccountOpening, TransferItem, TransferOutcome
from tests.faults.history import BOOKED, REFUSED, UNKNOWN, Accounts, Operation, follow_log, search
from tests.faults.processes import ForkedLedger, wait_until_serving
from tests.ledger_world import LedgerWorld, make_world

BANK = "BKCHCNBJ"
INFINITY = float("inf")

# --- the judges are judged --------------------------------------------------------------------------------------------

START = Accounts(((1, 100), (2, 0)))


def op(number: int, kind: str, began: float, ended: float, result: object, **more: int) -> Operation:
    return Operation(number, kind, began, ended, result, **more)


def judged(operations: Sequence[Operation], start: Accounts = START) -> tuple[bool, bool]:
    """What the search and the log's check say of a history; the log is what the answers claim."""
    log = {item.seq: item.id for item in operations if item.seq}
    return search(operations, start) is not None, follow_log(operations, start, log) == []


def pay(number: int, began: float, ended: float, result: object, amount: int, seq: int = 0) -> Operation:
    return op(number, "transfer", began, ended, result, debit=1, credit=2, amount=amount, seq=seq)


WRONG = {
    "stale read": [pay(1, 0, 1, BOOKED, 60, 1), op(2, "read", 2, 3, (100, 0), debit=1)],
    "read of the future": [op(2, "read", 0, 1, (40, 0), debit=1), pay(1, 2, 3, BOOKED, 60, 1)],
    "reads go back": [
        pay(1, 0, 9, BOOKED, 60, 1),
        op(2, "read", 1, 2, (40, 0), debit=1),
        op(3, "read", 3, 4, (100, 0), debit=1),
    ],
    "lost": [pay(1, 0, 1, BOOKED, 60, 1), pay(2, 2, 3, BOOKED, 60, 2)],
    "doubled": [pay(1, 0, 1, BOOKED, 30, 1), op(2, "read", 2, 3, (40, 0), debit=1)],
    "refused without reason": [pay(1, 0, 1, REFUSED, 60)],
    "double spend by two at once": [pay(1, 0, 5, BOOKED, 60, 1), pay(2, 0, 5, BOOKED, 60, 2)],
    "money from nowhere": [op(1, "read", 0, 1, (101, 0), debit=1)],
    "half a transfer": [
        pay(1, 0, 9, BOOKED, 60, 1),
        op(2, "read", 1, 2, (0, 0), debit=2),
        op(3, "read", 3, 4, (40, 0), debit=1),
        op(4, "read", 5, 6, (0, 0), debit=2),
    ],
    "hold ended twice": [
        op(1, "hold", 0, 1, BOOKED, debit=1, credit=2, amount=50, seq=1),
        op(2, "post", 2, 5, BOOKED, hold=1, seq=2),
        op(3, "void", 2, 5, BOOKED, hold=1, seq=3),
    ],
    "held money spent": [
        op(1, "hold", 0, 1, BOOKED, debit=1, credit=2, amount=50, seq=1),
        pay(2, 2, 3, BOOKED, 60, 2),
    ],
}
RIGHT = {
    "overlapping read sees either": [pay(1, 0, 9, BOOKED, 60, 1), op(2, "read", 1, 2, (100, 0), debit=1)],
    "overlapping read sees the other": [pay(1, 0, 9, BOOKED, 60, 1), op(2, "read", 1, 2, (40, 0), debit=1)],
    "one of two at once is refused": [pay(1, 0, 5, BOOKED, 60, 1), pay(2, 0, 5, REFUSED, 60)],
    "unanswered and done": [pay(1, 0, INFINITY, UNKNOWN, 60, 1), op(2, "read", 2, 3, (40, 0), debit=1)],
    "unanswered and done late": [
        pay(1, 0, INFINITY, UNKNOWN, 60, 1),
        op(2, "read", 2, 3, (100, 0), debit=1),
        op(3, "read", 4, 5, (40, 0), debit=1),
    ],
    "unanswered and never done": [pay(1, 0, INFINITY, UNKNOWN, 60), op(2, "read", 2, 3, (100, 0), debit=1)],
    "hold voided, then spent": [
        op(1, "hold", 0, 1, BOOKED, debit=1, credit=2, amount=50, seq=1),
        op(2, "read", 2, 3, (100, 50), debit=1),
        op(3, "void", 4, 5, BOOKED, hold=1, seq=2),
        pay(4, 6, 7, BOOKED, 100, 3),
        op(5, "post", 8, 9, REFUSED, hold=1),
    ],
}


@pytest.mark.parametrize("name", WRONG)
def test_judges_refuse_a_wrong_history(name: str) -> None:
    assert judged(WRONG[name]) == (False, False)


@pytest.mark.parametrize("name", RIGHT)
def test_judges_accept_a_right_history(name: str) -> None:
    assert judged(RIGHT[name]) == (True, True)


def test_log_that_contradicts_time_or_answers_is_refused() -> None:
    first, second = pay(1, 0, 1, BOOKED, 10, 1), pay(2, 2, 3, BOOKED, 10, 2)
    assert follow_log([first, second], START, {1: 1, 2: 2}) == []
    swapped = [replace(first, seq=2), replace(second, seq=1)]
    assert "ended before" in follow_log(swapped, START, {1: 2, 2: 1})[0]
    assert "is at 2" in follow_log([first, second], START, {2: 1, 3: 2})[0]
    assert "is at None" in follow_log([first, second], START, {1: 1})[0]
    assert "nobody asked" in follow_log([first], START, {1: 1, 2: 2})[0]
    assert "was refused" in follow_log([replace(first, result=REFUSED)], START, {1: 1})[0]


def simulated(random: Random, count: int, *, width: float) -> list[Operation]:
    """A right history: each operation happens in one moment of its time. `width` 0: one after the other."""
    state, seq, made = Accounts(((1, 50), (2, 50), (3, 0))), 0, []
    for number in range(1, count + 1):
        kind = random.choice(["transfer", "transfer", "read", "hold", "post", "void"])
        debit, credit = random.sample([1, 2, 3], 2)
        item = Operation(
            number,
            kind,
            number - random.uniform(0, width),
            number + random.uniform(0, width) + 0.1,
            None,
            debit,
            credit,
            random.randint(1, 60),
            random.randint(1, number),
        )
        if kind == "read":
            made.append(replace(item, result=state.read(debit)))
            continue
        after = state.after(item)
        seq += after is not None
        made.append(replace(item, result=REFUSED if after is None else BOOKED, seq=seq if after is not None else 0))
        state = after or state
    return made


SIMULATED = Accounts(((1, 50), (2, 50), (3, 0)))


@pytest.mark.parametrize("seed", range(40))
def test_judges_accept_what_happened_and_refuse_any_other_answer(seed: int) -> None:
    random = Random(seed)
    overlapping = simulated(random, 30, width=2.5)
    assert judged(overlapping, SIMULATED) == (True, True)
    alone = simulated(random, 25, width=0.0)
    assert judged(alone, SIMULATED) == (True, True)
    # One after the other there is only one order: another answer anywhere is wrong.
    for position in random.sample(range(len(alone)), 5):
        item = alone[position]
        if item.kind == "read":
            seen: Any = item.result
            other: Any = replace(item, result=(seen[0] + random.choice([-1, 1]), seen[1]))
        else:
            other = replace(item, result=REFUSED if item.result == BOOKED else BOOKED, seq=0)
        altered = [*alone[:position], other, *alone[position + 1 :]]
        if other.result == BOOKED:
            altered = [replace(each, seq=seq) for seq, each in _numbered(altered)]
        assert judged(altered, SIMULATED) == (False, False), item
    # With overlaps another answer may be right too; but what the log explains, the search must find.
    item = overlapping[random.randrange(30)]
    if item.kind == "read":
        altered = [replace(each, result=(each.result[0] + 1, 0)) if each is item else each for each in overlapping]  # type: ignore[index]
        by_search, by_log = judged(altered, SIMULATED)
        assert by_search or not by_log


def _numbered(operations: list[Operation]) -> list[tuple[int, Operation]]:
    counter = itertools.count(1)
    return [(next(counter) if item.result == BOOKED else 0, item) for item in operations]


# --- the ledger is judged ---------------------------------------------------------------------------------------------

CLIENTS = 4
ROUNDS = int(os.environ.get("JIAOZI_ROUNDS", "3"))
OPERATIONS = 6
"""Of each client in a round. A round has accounts of its own: linearizability is local, and its search stays short."""
BALANCE = 100
GIVE_UP = 0.04


class Recorder(threading.Thread):
    """One client: picks operations on the round's accounts, repeats each until it is answered, and notes all."""

    def __init__(self, world: LedgerWorld, rounds: list[list[int]], gate: threading.Barrier, seed: int) -> None:
        super().__init__(daemon=True)
        self.world, self.rounds, self.gate, self.random = world, rounds, gate, Random(seed)
        self.operations: list[tuple[int, Operation, UUID | None]] = []
        self.holds: list[tuple[int, int, UUID]] = []
        """Round, operation and transfer id of each that was booked."""
        self.others: list[Recorder] = []
        self.error: BaseException | None = None
        self._client = LedgerClient(world.url, signer=RequestSigner(world.participants[BANK]), timeout_seconds=5.0)

    def run(self) -> None:
        try:
            for number, accounts in enumerate(self.rounds):
                self.gate.wait(60)
                for _ in range(OPERATIONS):
                    self.operate(number, accounts)
        except BaseException as error:
            self.error = error
            self.gate.abort()

    def operate(self, number: int, accounts: list[int]) -> None:
        debit, credit = self.random.sample(accounts, 2)
        known = [(hold, own) for client in self.others for round_, hold, own in list(client.holds) if round_ == number]
        kind = self.random.choices(["read", "transfer", "hold", "end"], [3, 4, 2, 3])[0]
        own = ids.new_uuid7()
        item = Operation(own.int, kind, time.monotonic(), INFINITY, UNKNOWN, debit, credit)
        if kind == "read":
            self.note(number, self.answered(replace(item, result=None), lambda: self.read(debit), patient=False), None)
            return
        if kind == "end":
            if not known:
                return
            kind = self.random.choice(["post", "void"])
            hold, transfer = self.random.choice(known)
            item = replace(item, kind=kind, hold=hold, debit=0, credit=0)
            terms = self.world.terms(kind, None, None, None, hold=transfer, id=own)
        else:
            amount = self.random.randint(20, 80)
            item = replace(item, amount=amount)
            more: dict[str, object] = {"expires_at": system_clock() + timedelta(hours=1)} if kind == "hold" else {}
            terms = self.world.terms("hold" if kind == "hold" else "payment", debit, credit, amount, id=own, **more)
        patient = self.random.random() > GIVE_UP
        done = self.answered(item, lambda: self.submit(TransferItem(terms=terms)), patient=patient)
        if done.kind == "hold" and done.result == BOOKED:
            self.holds.append((number, done.id, own))
        self.note(number, done, own)

    def note(self, number: int, item: Operation, transfer: UUID | None) -> None:
        self.operations.append((number, item, transfer))

    def answered(self, item: Operation, ask: Any, *, patient: bool) -> Operation:
        """The operation with its answer. An impatient client, or a read, is left without one after the first loss."""
        while True:
            try:
                result, seq = ask()
                return replace(item, ended=time.monotonic(), result=result, seq=seq)
            except ServiceUnreachable:
                pass
            except ProblemResponse as problem:
                if problem.status < 500:
                    raise
            if not patient:
                return item
            time.sleep(0.01)

    def read(self, account: int) -> tuple[tuple[int, int], int]:
        view = self._client.get_account(account)
        return (view.balance_minor, view.debits_pending_minor), 0

    def submit(self, item: TransferItem) -> tuple[str, int]:
        result = self._client.submit([item])[0]
        if result.outcome is TransferOutcome.REFUSED:
            return REFUSED, 0
        assert result.seq is not None
        return BOOKED, result.seq


@pytest.mark.campaign
@pytest.mark.extended
def test_histories_recorded_through_kills_are_linearizable(server_dir: Path, tmp_path: Path) -> None:
    server = EmbeddedPostgres(server_dir)
    server.start()
    server.ensure_database("ledger")
    world = make_world(server.url("ledger"), tmp_path)
    ledger = ForkedLedger(world, tmp_path / "ledger.log")
    random = Random(int(os.environ.get("JIAOZI_SEED", "11")))
    try:
        ledger.start()
        wait_until_serving(world)
        rounds, first_seq = prepare(world)
        gate = threading.Barrier(CLIENTS)
        clients = [Recorder(world, rounds, gate, seed) for seed in range(CLIENTS)]
        for client in clients:
            client.others = clients
            client.start()
        kills = 0
        while any(client.is_alive() for client in clients):
            time.sleep(random.uniform(0.1, 0.5))
            if random.random() < 0.6:
                ledger.kill()
                ledger.start()
            else:
                cut_backends(server)
            kills += 1
            wait_until_serving(world)
        for client in clients:
            assert client.error is None, client.error
        judge(server, rounds, clients, first_seq, kills)
    finally:
        ledger.close()


def prepare(world: LedgerWorld) -> tuple[list[list[int]], int]:
    """Fresh, funded accounts for every round."""
    world.register(BANK)
    funding = world.open_vault(BANK)
    world.issue(funding, 10**9)
    openings = [AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT) for _ in range(3 * ROUNDS)]
    with world.client(BANK) as client:
        accounts = [int(result.account or 0) for result in client.open_accounts(openings)]
        booked = client.submit(
            [TransferItem(terms=world.terms("payment", funding, account, BALANCE)) for account in accounts]
        )
    return [accounts[at : at + 3] for at in range(0, len(accounts), 3)], max(result.seq or 0 for result in booked)


def cut_backends(server: EmbeddedPostgres) -> None:
    with suppress(psycopg.OperationalError), psycopg.connect(server.conninfo("ledger"), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'jiaozi-ledger%'"
        )


def judge(
    server: EmbeddedPostgres, rounds: list[list[int]], clients: list[Recorder], first_seq: int, kills: int
) -> None:
    answered = overlaps = 0
    with psycopg.connect(server.conninfo("ledger")) as connection:
        for number, accounts in enumerate(rounds):
            history = [item for client in clients for round_, item, _ in client.operations if round_ == number]
            rows = connection.execute(
                "SELECT seq, id FROM transfer WHERE (debit_account = ANY(%s) OR credit_account = ANY(%s)) AND seq > %s",
                (accounts, accounts, first_seq),
            ).fetchall()
            log = {seq: transfer.int for seq, transfer in rows}
            start = Accounts(tuple((account, BALANCE) for account in accounts))
            assert follow_log(history, start, log) == [], f"round {number}"
            assert search(history, start) is not None, f"round {number}: no order explains what the clients were told"
            answered += sum(item.result not in (UNKNOWN, None) for item in history)
            overlaps += sum(
                a.began < b.began < a.ended for a, b in itertools.permutations(history, 2) if a.ended < INFINITY
            )
    assert answered > ROUNDS * CLIENTS, "too few answers to judge"
    assert overlaps > ROUNDS, "the clients hardly met"
    print(f"\n{answered} answered operations of {CLIENTS} clients, {overlaps} overlaps, {kills} faults: linearizable")

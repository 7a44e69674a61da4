"""Blocks that overlap: the next is decided while one commits, and nobody is told or shown what is not durable."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from uuid import UUID

import psycopg
import pytest

from ledger.engine.followers import CommittedBlock
from ledger.engine.sequencer import BatchOutcome, SequencerUnavailable
from ledger.store import journal as journal_module
from ledger.store.journal import Block, DuplicateId, Journal
from tests.sequencer_world import Item, SequencerWorld, batch_of, names_of


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[SequencerWorld]:
    world = SequencerWorld(fresh_database("ledger"))
    yield world
    world.close()


class Gate:
    """Holds every block's transaction until it is opened; may then fail it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.arrived = threading.Semaphore(0)
        self.release = threading.Semaphore(0)
        self.errors: list[Exception | None] = []
        original = Journal.append

        def append(journal: Journal, block: Block) -> None:
            self.arrived.release()
            if not self.release.acquire(timeout=20):
                raise TimeoutError("the gate stayed shut")
            error = self.errors.pop(0) if self.errors else None
            if error is not None:
                raise error
            original(journal, block)

        patch.setattr(journal_module.Journal, "append", append)

    def open(self, times: int = 100) -> None:
        self.release.release(times)

    def wait(self) -> None:
        if not self.arrived.acquire(timeout=20):
            raise TimeoutError("no block came")


def decided(world: SequencerWorld, count: int) -> None:
    """Wait until so many blocks are in the state and not known to be durable."""
    deadline = time.monotonic() + 20
    while len(world.sequencer._ahead) != count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(world.sequencer._ahead)} blocks are ahead, not {count}")
        time.sleep(0.002)


def test_nobody_sees_a_block_before_it_is_durable(world: SequencerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    payer, payee = world.vault(1_000), world.vault()
    gate = Gate(monkeypatch)
    sequencer = world.sequencer
    seq = sequencer.account_now(payer).seq
    first = sequencer.submit(batch_of(Item("payment", payer, payee, 100)))
    gate.wait()
    second = sequencer.submit(batch_of(Item("payment", payer, payee, 30), Item("payment", payee, payer, 120)))
    decided(world, 2)  # the second spends what only the first brings
    assert (sequencer.account_now(payer).balance, sequencer.account_now(payee).balance) == (1_000, 0)
    assert (sequencer.account_now(payer).seq, sequencer.account_now(payer).spent_day) == (seq, 0)
    assert not first.done()
    assert not second.done()
    gate.open(1)
    first.result(20)
    gate.wait()
    assert sequencer.account_now(payer).balance == 900
    assert sequencer.account_now(payee).balance == 100
    assert sequencer.account_now(payer).seq == seq + 1
    assert not second.done()
    gate.open()
    second.result(20)
    assert sequencer.account_now(payer).balance == 990
    assert sequencer.account_now(payer).spent_day == 130
    before = world.picture()
    world.restart(graceful=False)
    assert world.picture() == before
    assert world.findings() == []


@pytest.mark.parametrize("fault", ["duplicate", "storage"])
def test_a_block_that_fails_takes_the_one_on_top_of_it_back(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The second batch was decided with the first one's money: without it, it must be refused."""
    payer, middle, payee = world.vault(100), world.vault(), world.vault()
    known = Item("payment", payer, middle, 1)
    assert world.names(known) == ["booked"]
    gate = Gate(monkeypatch)
    storage = psycopg.OperationalError("no space left on device")
    gate.errors = [DuplicateId("transfer_pkey")] if fault == "duplicate" else [storage] * 2
    first = world.sequencer.submit(
        batch_of(known, Item("payment", payer, middle, 50))
        if fault == "duplicate"
        else batch_of(Item("payment", payer, middle, 50))
    )
    gate.wait()
    second = world.sequencer.submit(batch_of(Item("payment", middle, payee, 40)))
    decided(world, 2)
    gate.open()
    if fault == "duplicate":
        assert names_of(first.result(20)) == ["already", "booked"]
        assert names_of(second.result(20)) == ["booked"]
        assert world.balance(payee) == 40
    else:
        with pytest.raises(SequencerUnavailable):
            first.result(20)
        with pytest.raises(SequencerUnavailable):  # storage rests for a second
            second.result(20)
        time.sleep(1.1)
        assert names_of(world.submit(Item("payment", middle, payee, 40))) == ["insufficient-funds"]
        assert world.balance(payee) == 0
    before = world.picture()
    world.restart(graceful=False)
    assert world.picture() == before
    assert world.findings() == []


def test_a_refusal_waits_for_the_block_before_it(world: SequencerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry of what is being committed looks refused, for the money is gone: it was booked."""
    payer, payee = world.vault(100), world.vault()
    gate = Gate(monkeypatch)
    item = Item("payment", payer, payee, 80)
    first = world.sequencer.submit(batch_of(item))
    gate.wait()
    again = world.sequencer.submit(batch_of(item, Item("payment", payer, payee, 10)))
    poor = world.sequencer.submit(batch_of(Item("payment", payer, payee, 90), Item("payment", payer, payee, 5)))
    time.sleep(0.05)
    gate.open()
    assert names_of(first.result(20)) == ["booked"]
    assert names_of(again.result(20)) == ["already", "booked"]
    assert names_of(poor.result(20)) == ["insufficient-funds", "booked"]
    assert world.balance(payee) == 95
    assert world.findings() == []


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.extended) for seed in range(2, 6))])
def test_any_mixture_of_faults_books_each_id_once(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Random batches from three threads, retried until answered, over commits that are slow, lost, or refused."""
    choice = random.Random(seed)
    accounts = [world.vault(500), world.vault(500, "daily"), world.vault(), world.vault(60)]
    told: list[CommittedBlock] = []
    world.sequencer._followers.append(told.append)
    original = Journal.append

    def append(journal: Journal, block: Block) -> None:
        time.sleep(choice.choice([0, 0, 0.003]))
        fate = choice.random()
        if fate < 0.08:
            raise psycopg.OperationalError("refused")  # nothing was written
        original(journal, block)
        if fate > 0.92:
            journal._connection.close()  # written, and the answer lost
            raise psycopg.OperationalError("cut")

    monkeypatch.setattr(Journal, "append", append)
    monkeypatch.setattr("ledger.engine.sequencer.STORAGE_REST_SECONDS", 0.01)
    answers: dict[UUID, set[str]] = {}
    lock = threading.Lock()

    def client(number: int) -> None:
        mine = random.Random(seed * 100 + number)
        sent: list[Item] = []
        for _ in range(25):
            items = []
            for _ in range(mine.randrange(1, 6)):
                if sent and mine.random() < 0.25:
                    items.append(mine.choice(sent))
                else:
                    debit, credit = mine.sample(accounts, 2)
                    items.append(Item("payment", debit, credit, mine.choice([1, 5, 40, 300])))
            if len({item.id for item in items}) < len(items):
                continue
            sent.extend(item for item in items if item not in sent)
            for item, name in zip(items, answered(items), strict=True):
                with lock:
                    answers.setdefault(item.id, set()).add(name)

    def answered(items: list[Item]) -> list[str]:
        for _ in range(200):
            try:
                future: Future[BatchOutcome] = world.sequencer.submit(batch_of(*items))
                return names_of(future.result(20))
            except SequencerUnavailable:
                time.sleep(0.01)
        raise TimeoutError("never answered")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    monkeypatch.undo()
    assert world.sequencer.failure is None
    with psycopg.connect(world.url.replace("+psycopg", "")) as connection:
        rows = connection.execute("SELECT id, seq FROM transfer ORDER BY seq").fetchall()
    found = {row[0] for row in rows}
    assert [row[1] for row in rows] == list(range(1, len(rows) + 1))
    for transfer, names in answers.items():
        assert (transfer in found) == bool(names & {"booked", "already"}), names
        assert "id-already-used" not in names
    assert [int(seq) for block in told for seq in block.transfers["seq"]] == list(
        range(len(rows) - sum(len(block.transfers) for block in told) + 1, len(rows) + 1)
    )
    before = world.picture()
    world.restart(graceful=False)
    assert world.picture() == before
    assert world.findings() == []

"""Goal: a restart knows everything that the process before it knew, whatever snapshots were written when; time rolls
days and ends holds, whatever the clock does.

Method: real sequencers on real PostgreSQL with a clock that the test moves; many random operations with snapshots
forced every few blocks; a process is left behind without a farewell, and the next one's state is compared whole.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from random import Random
from typing import Any

import psycopg
import pytest

from ledger.engine import sequencer as sequencer_module
from ledger.engine import snapshots as snapshots_module
from ledger.store.journal import Journal, Snapshot
from tests.sequencer_world import Item, SequencerWorld


@pytest.fixture
def world(fresh_database: Callable[[str], str]) -> Iterator[SequencerWorld]:
    world = SequencerWorld(fresh_database("ledger"))
    yield world
    world.close()


@pytest.mark.parametrize(
    ("snapshot_blocks", "seed"),
    [
        (3, 2),
        (10**6, 4),
        *(pytest.param(*each, marks=pytest.mark.extended) for each in ((1, 1), (7, 3))),
    ],
)
def test_state_after_any_restart_is_the_state_before(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch, snapshot_blocks: int, seed: int
) -> None:
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BLOCKS", snapshot_blocks)
    random = Random(seed)
    vaults = [world.vault(10_000), world.vault(5_000), world.vault(), world.vault(2_000, rule_class="daily")]
    holds: list[tuple[Item, bytes, bytes]] = []

    def some_item() -> Item:
        debit, credit = random.sample(vaults, 2)
        amount = random.randint(1, 60)
        choice = random.random()
        if choice < 0.4 or (choice > 0.6 and not holds):
            return Item(random.choice(["payment", "refund"]), debit, credit, amount, linked=random.random() < 0.1)
        if choice < 0.6:
            commit, abort = random.randbytes(32), random.randbytes(32)
            if random.random() < 0.5:
                expires_at = world.clock() + timedelta(seconds=random.randint(1, 90_000))
                item = Item("hold", debit, credit, amount, expires_at=expires_at)
            else:
                hashes = (hashlib.sha256(commit).digest(), hashlib.sha256(abort).digest())
                item = Item("hold", debit, credit, amount, commit_hash=hashes[0], abort_hash=hashes[1])
            holds.append((item, commit, abort))
            return item
        hold, commit, abort = random.choice(holds)
        if random.random() < 0.1:
            return Item("void", hold=Item("void").id)  # a tombstone
        if hold.commit_hash is None:
            return Item(random.choice(["post", "void"]), hold=hold.id)
        is_post = random.random() < 0.5
        return Item("post" if is_post else "void", hold=hold.id, secret=commit if is_post else abort)

    for round_number in range(6):
        for _ in range(6):
            items = [some_item() for _ in range(random.randint(1, 12))]
            world.submit(*items)
            if random.random() < 0.3:
                world.clock.advance(timedelta(hours=random.randint(0, 20)))
        before = world.picture()
        world.restart(graceful=round_number % 3 == 2)
        after = world.picture()
        assert after == before, f"round {round_number}"
    assert world.findings() == []
    names = {name for name in before if before[name]}
    assert {"holds", "spent_year"} <= names, "the test must have something to lose"


def test_hold_that_spans_snapshots_and_restarts_is_posted_once(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    hold = Item("hold", payer, payee, 100, expires_at=world.clock() + timedelta(days=3))
    assert world.names(hold) == ["booked"]
    world.restart(graceful=True)
    assert world.names(Item("payment", payer, payee, 901)) == ["insufficient-funds"]
    world.restart(graceful=True)
    post = Item("post", hold=hold.id)
    assert world.names(post) == ["booked"]
    world.restart(graceful=False)
    assert world.names(post, Item("post", hold=hold.id)) == ["already", "hold-already-posted"]
    world.restart(graceful=True)
    assert world.names(Item("void", hold=hold.id)) == ["hold-already-posted"]
    assert (world.balance(payer), world.balance(payee)) == (900, 100)
    assert world.findings() == []


@pytest.mark.parametrize("graceful", [True, False])
def test_tombstone_that_only_the_journal_knows_keeps_a_late_hold_out(world: SequencerWorld, graceful: bool) -> None:
    payer, payee = world.vault(1_000), world.vault()
    commit, abort = b"c" * 32, b"a" * 32
    hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
    late = Item("hold", payer, payee, 100, **hashes)  # type: ignore[arg-type]
    plain = Item("hold", payer, payee, 100, expires_at=world.clock() + timedelta(days=3))
    assert world.names(Item("void", hold=late.id, secret=abort)) == ["booked"]
    assert world.names(Item("void", hold=plain.id)) == ["booked"]
    world.restart(graceful=graceful)
    assert world.names(late) == ["hold-already-voided"]
    assert world.names(plain) == ["hold-already-voided"]
    assert world.names(Item("void", hold=late.id, secret=abort)) == ["hold-already-voided"]
    assert world.balance(payer) == 1_000
    assert world.findings() == []


@pytest.mark.parametrize("restart", [False, True])
def test_due_holds_expire_by_themselves(world: SequencerWorld, restart: bool) -> None:
    payer, payee = world.vault(1_000), world.vault()
    soon = Item("hold", payer, payee, 300, expires_at=world.clock() + timedelta(minutes=1))
    later = Item("hold", payer, payee, 200, expires_at=world.clock() + timedelta(minutes=9))
    assert world.names(soon, later) == ["booked"] * 2
    if restart:
        world.restart(graceful=False)
    time.sleep(0.05)
    assert len(world.picture()["holds"]) == 2, "not before its time"
    world.clock.advance(timedelta(minutes=2))
    _until(lambda: len(world.picture()["holds"]) == 1)
    assert world.names(Item("post", hold=soon.id)) == ["hold-expired"]
    assert world.names(Item("payment", payer, payee, 800)) == ["booked"]
    assert world.names(Item("post", hold=later.id)) == ["booked"]
    assert world.findings() == []


def test_due_holds_expire_though_the_queue_is_never_empty(
    world: SequencerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    payer, payee = world.vault(1_000), world.vault(1_000)
    hold = Item("hold", payer, payee, 300, expires_at=world.clock() + timedelta(minutes=1))
    assert world.names(hold) == ["booked"]

    def never_idle(self: sequencer_module.Sequencer) -> object:
        with suppress(queue.Empty):
            return self._queue.get(timeout=0.002)
        return sequencer_module._Read(lambda state: None, Future())

    monkeypatch.setattr(sequencer_module.Sequencer, "_next", never_idle)
    world.clock.advance(timedelta(minutes=2))
    _until(lambda: not world.picture()["holds"])
    assert world.findings() == []


def test_expiry_that_storage_refused_is_tried_again(world: SequencerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequencer_module, "STORAGE_ATTEMPTS_MAX", 1)
    monkeypatch.setattr(sequencer_module, "STORAGE_REST_SECONDS", 0.0)
    monkeypatch.setattr(sequencer_module, "EXPIRY_RETRY_MICROS", 1_000)
    payer, payee = world.vault(1_000), world.vault()
    hold = Item("hold", payer, payee, 300, expires_at=world.clock() + timedelta(minutes=1))
    assert world.names(hold) == ["booked"]
    refused: list[int] = []

    def full(journal: Journal, cursor: Any, header: Any) -> None:
        refused.append(header.number)
        raise psycopg.errors.DiskFull("could not extend file")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_insert_header", full)
        world.clock.advance(timedelta(minutes=2))
        _until(lambda: bool(refused))
    world.clock.advance(timedelta(seconds=2))
    _until(lambda: not world.picture()["holds"])
    assert world.findings() == []


def test_hold_that_is_due_but_not_yet_expired_cannot_be_posted(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    hold = Item("hold", payer, payee, 300, expires_at=world.clock() + timedelta(minutes=1))
    assert world.names(hold) == ["booked"]
    world.clock.advance(timedelta(minutes=2))
    assert world.names(Item("post", hold=hold.id)) == ["hold-expired"]


def test_hold_expires_though_the_clock_went_back_just_then(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000), world.vault()
    hold = Item("hold", payer, payee, 300, expires_at=world.clock() + timedelta(minutes=1))
    assert world.names(hold) == ["booked"]
    world.clock.advance(timedelta(minutes=-5))
    assert world.names(Item("payment", payer, payee, 1)) == ["booked"]
    world.clock.advance(timedelta(minutes=7))
    _until(lambda: not world.picture()["holds"])
    assert world.findings() == []


# --- days ------------------------------------------------------------------------------------------------------------


def test_day_cap_starts_anew_at_local_midnight(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000, rule_class="daily"), world.vault()
    assert world.names(Item("payment", payer, payee, 100), Item("payment", payer, payee, 1)) == [
        "booked",
        "day-limit-exceeded",
    ]
    world.clock.advance(timedelta(hours=11, minutes=59))  # 23:59 in Shanghai
    assert world.names(Item("payment", payer, payee, 1)) == ["day-limit-exceeded"]
    world.clock.advance(timedelta(minutes=1))
    assert world.names(Item("payment", payer, payee, 100)) == ["booked"]
    world.clock.advance(timedelta(days=1))
    assert world.names(Item("payment", payer, payee, 51)) == ["year-limit-exceeded"]
    assert world.names(Item("payment", payer, payee, 50)) == ["booked"]
    assert world.findings() == []


def test_what_was_spent_yesterday_is_not_spent_today_after_snapshots_and_restarts(world: SequencerWorld) -> None:
    payer, payee, other = world.vault(1_000, rule_class="daily"), world.vault(), world.vault(50)
    assert world.names(Item("payment", payer, payee, 100)) == ["booked"]
    world.restart(graceful=True)
    world.clock.advance(timedelta(days=1))
    assert world.names(Item("payment", other, payee, 1)) == ["booked"]  # begins the new day; the payer sleeps
    world.restart(graceful=True)
    assert world.names(Item("payment", payer, payee, 100)) == ["booked"]
    assert world.findings() == []


def test_clock_set_back_over_midnight_gives_no_second_day(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000, rule_class="daily"), world.vault()
    assert world.names(Item("payment", payer, payee, 100)) == ["booked"]
    world.clock.advance(timedelta(hours=12, seconds=1))
    assert world.names(Item("payment", payer, payee, 101)) == ["day-limit-exceeded"]  # books nothing, begins the day
    world.clock.advance(timedelta(seconds=-10))
    assert world.names(Item("payment", payer, payee, 100)) == ["booked"]
    assert world.names(Item("payment", payer, payee, 1)) == ["day-limit-exceeded"]
    assert world.findings() == []


def test_hold_voided_on_another_day_gives_nothing_back_to_this_one(world: SequencerWorld) -> None:
    payer, payee = world.vault(1_000, rule_class="daily"), world.vault()
    hold = Item("hold", payer, payee, 60, expires_at=world.clock() + timedelta(days=3))
    assert world.names(hold) == ["booked"]
    world.restart(graceful=True)
    world.clock.advance(timedelta(days=1))
    assert world.names(Item("payment", payer, payee, 90), Item("void", hold=hold.id)) == ["booked"] * 2
    assert world.names(Item("payment", payer, payee, 11)) == ["day-limit-exceeded"]
    assert world.names(Item("payment", payer, payee, 10)) == ["booked"]
    world.restart(graceful=False)
    assert world.names(Item("payment", payer, payee, 1)) == ["day-limit-exceeded"]
    assert world.findings() == []


def _until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not fact():
        if time.monotonic() > deadline:
            raise AssertionError("did not happen")
        time.sleep(0.02)


def test_blocks_are_booked_while_a_snapshot_is_written(world: SequencerWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot of many accounts takes long: nobody waits for it, and what it says is the state it was begun with."""
    payer, payee = world.vault(1_000), world.vault()
    monkeypatch.setattr(snapshots_module, "SNAPSHOT_BLOCKS", 1)
    begun, go_on = threading.Event(), threading.Event()
    write = Journal.write_snapshot

    def slowly(journal: Journal, snapshot: Snapshot) -> None:
        begun.set()
        assert go_on.wait(10)
        write(journal, snapshot)

    monkeypatch.setattr(Journal, "write_snapshot", slowly)
    assert world.names(Item("payment", payer, payee, 1)) == ["booked"]
    assert begun.wait(10)
    assert world.names(*(Item("payment", payer, payee, 1) for _ in range(5))) == ["booked"] * 5
    assert world.names(Item("payment", payee, payer, 3)) == ["booked"]
    assert world.sequencer.is_writing_snapshot
    go_on.set()
    before = world.picture()
    world.restart(graceful=False)
    assert world.picture() == before
    assert world.balance(payee) == 3
    assert world.findings() == []

"""B4, B5 and B6: a ledger that has grown. Its past is booked by the real engine, without HTTP in between.

A journal of 50,000,000 transfers among 10,000,000 accounts is made once (`grow`); then B1 runs on it through HTTP (B4),
while accounts are asked for their last 50 lines (B5); and a ledger is killed with a million transfers since its last
snapshot, and timed until it serves again (B6).
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import psycopg

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from ledger.client import LedgerClient
from ledger.domain.blocks import OpenedAccount
from ledger.domain.records import Batch
from ledger.domain.vocabulary import ACCOUNT_KIND_CODE, AccountKind
from ledger.engine.sequencer import BLOCK_TRANSFERS_MAX, BatchOutcome, Sequencer
from ledger.store.history import History
from tests.bench import bulk
from tests.bench.scene import BANK, Scene, ledger_process, service_process
from tests.ledger_world import LedgerWorld

ISSUED = 10**14
OPENINGS = 50_000
IN_FLIGHT = 4
HISTORY_LINES = 50
GROWTH_POINTS = 50
READ_PAUSE_SECONDS = 0.01

Progress = Callable[[str, int, int], None]
"""(what, done, of)"""


def grow(world: LedgerWorld, url: str, *, accounts: int, transfers: int, progress: Progress) -> tuple[int, int]:
    """Open accounts, fund each, and book transfers between random ones, on a ledger that is not running.
    Returns the first account's number and the number of seconds it took."""
    began = time.monotonic()
    database = Database(url, application_name="jiaozi-bench")
    history = History(database)
    sequencer = Sequencer(
        database, node="bench", clock=system_clock, followers=[lambda block: history.follow(block.transfers)]
    )
    sequencer.start()
    history.start()
    try:
        participant = sequencer.read(lambda state: state.participant_by_code[BANK].number).result()
        first = sequencer.read(lambda state: state.size).result()
        for start in range(0, accounts, OPENINGS):
            size = min(OPENINGS, accounts - start)
            vault = ACCOUNT_KIND_CODE[AccountKind.VAULT]
            openings = [OpenedAccount(0, ids.new_uuid7().bytes, vault, participant, "none", None) for _ in range(size)]
            sequencer.open_accounts(openings).result()
            progress("accounts", start + size, accounts)
        rng = np.random.default_rng(11)
        waiting: list[Future[BatchOutcome]] = []
        done = 0
        for records in _past(rng, first, accounts, transfers):
            bulk.stamp(records)
            waiting.append(sequencer.submit(Batch.of_institution(records, submitter=participant)))
            if len(waiting) >= IN_FLIGHT:
                done += _booked(waiting.pop(0))
                progress("transfers", done, transfers)
        for future in waiting:
            done += _booked(future)
        progress("transfers", done, transfers)
    finally:
        sequencer.stop()
        history.stop()
        database.close()
    return first, round(time.monotonic() - began)


def _past(rng: np.random.Generator, first: int, accounts: int, transfers: int) -> Any:
    """The bank's first account funds every other; then each pays some other."""
    funded = 0
    for start in range(0, transfers, BLOCK_TRANSFERS_MAX):
        size = min(BLOCK_TRANSFERS_MAX, transfers - start)
        if funded < accounts:
            size = min(size, accounts - funded)
            payees = np.arange(first + funded, first + funded + size)
            funded += size
            yield bulk.records(np.full(size, first - 1), payees, np.full(size, 10**6))
        else:
            debit = rng.integers(first, first + accounts, size)
            credit = first + (debit - first + rng.integers(1, accounts, size)) % accounts
            yield bulk.records(debit, credit, rng.integers(1, 100, size))


def _booked(future: Future[BatchOutcome]) -> int:
    codes = future.result().codes
    if codes.any():
        raise RuntimeError(f"the past was refused: {np.unique(codes)}")
    return len(codes)


def run_growth(stage: Scene, *, accounts: int, transfers: int, measured: int, progress: Progress) -> dict[str, Any]:
    """B4 and B5: B1's load on the grown ledger, once alone and once with a reader of histories beside it."""
    name = "bench_b4"
    with ledger_process(stage, name) as (world, _):
        funding = world.open_vault(BANK)
        world.issue(funding, ISSUED)
    curve: list[tuple[float, int]] = []

    def watched(what: str, done: int, total: int) -> None:
        progress(what, done, total)
        if what == "transfers" and (not curve or done - curve[-1][1] >= transfers // GROWTH_POINTS):
            curve.append((time.monotonic(), done))

    first, seconds = grow(world, stage.server.url(name), accounts=accounts, transfers=transfers, progress=watched)
    numbers = np.arange(first, first + accounts)
    with restarted(stage, world) as (process, start_seconds):
        with world.client(BANK) as client:  # the past was booked without the log: it is sealed first
            head = client.block()
            bulk.sealed(world, head.first_seq + head.transfer_count - 1, seconds_max=900)
        idle_mb = process.memory_info().rss / 2**20
        found = bulk.drive(stage, world, process, numbers, transfers=measured, hot=False)
        with _reader(world, numbers) as latencies:
            beside = bulk.drive(stage, world, process, numbers, transfers=measured, hot=False)
    return {
        **found,
        "growth": [
            {"journal": done, "per_second": (done - before) / (at - started)}
            for (started, before), (at, done) in pairwise(curve)
        ],
        "accounts": accounts,
        "journal_before": transfers,
        "made_in_seconds": seconds,
        "start_seconds": start_seconds,
        "ledger_rss_mb_started": idle_mb,
        "mb_per_million_accounts": idle_mb / accounts * 1e6,
        "with_reader_per_second": beside["per_second"],
        "history_reads": len(latencies),
        "history_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "history_p99_ms": float(np.percentile(latencies, 99) * 1e3),
    }


@contextmanager
def restarted(stage: Scene, world: LedgerWorld) -> Iterator[tuple[psutil.Process, float]]:
    """The ledger's process again, and how long it took until it served."""
    settings = {
        "port": str(world.settings.port),
        "database_url": str(world.settings.database_url),
        "data_dir": str(world.settings.data_dir),
        "genesis_path": str(world.settings.genesis_path),
    }
    began = time.monotonic()
    log = stage.directory / f"{world.ledger}-again.log"
    with service_process("ledger", "JIAOZI_LEDGER_", settings, world.url, log, start_seconds_max=600) as process:
        yield process, time.monotonic() - began


@contextmanager
def _reader(world: LedgerWorld, accounts: npt.NDArray[np.int64]) -> Iterator[list[float]]:
    """A process that asks for the last 50 lines of random accounts; the list is filled when the block ends."""
    parent, child = multiprocessing.Pipe()
    key_path = world.settings.genesis_path.parent / f"{world.ledger}.pem"  # type: ignore[union-attr]
    worker = multiprocessing.get_context("spawn").Process(target=_read, args=(world.url, key_path, accounts, child))
    worker.start()
    child.close()  # if the reader fails, the next line does too
    found: list[float] = []
    parent.recv()  # it is reading
    try:
        yield found
    finally:
        parent.send(None)
        found.extend(parent.recv())
        worker.join()


def _read(url: str, key_path: Path, accounts: npt.NDArray[np.int64], line: Connection) -> None:
    rng = np.random.default_rng(5)
    latencies: list[float] = []
    with LedgerClient(url, signer=RequestSigner(PrivateKey.load(key_path)), timeout_seconds=30) as client:
        client.statement(int(accounts[0]), limit=HISTORY_LINES, newest_first=True)
        line.send(None)
        while not line.poll():
            account = int(rng.choice(accounts))
            began = time.perf_counter()
            client.statement(account, limit=HISTORY_LINES, newest_first=True)
            latencies.append(time.perf_counter() - began)
            time.sleep(READ_PAUSE_SECONDS)
    line.send(latencies)


def run_recovery(stage: Scene, *, transfers: int) -> dict[str, Any]:
    """B6: SIGKILL with so many transfers since the last snapshot; seconds until the ledger answers again."""
    name = "bench_b6"
    with ledger_process(stage, name) as (world, _):
        funding = world.open_vault(BANK)
        world.issue(funding, ISSUED)
    accounts = 100_000
    first, _ = grow(world, stage.server.url(name), accounts=accounts, transfers=accounts, progress=lambda *_: None)
    numbers = np.arange(first, first + accounts)
    with psycopg.connect(stage.server.conninfo(name)) as connection:
        before = _since_snapshot(connection)
    with restarted(stage, world) as (process, _):
        bulk.drive(stage, world, process, numbers, transfers=transfers, hot=False)
        with psycopg.connect(stage.server.conninfo(name)) as connection:
            since = _since_snapshot(connection)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with restarted(stage, world) as (_, seconds), world.client(BANK) as client:
        supply = client.supply()
    return {"seconds": seconds, "since_snapshot": since, "before": before, "conserved": supply.identity_holds}


def _since_snapshot(connection: psycopg.Connection[Any]) -> int:
    query = "SELECT (SELECT first_seq + transfer_count - 1 FROM block ORDER BY number DESC LIMIT 1) - seq FROM snapshot"
    row = connection.execute(query).fetchone()
    return int(row[0]) if row is not None else 0

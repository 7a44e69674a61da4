"""B1 and B2: transfers between an institution's own accounts, from a client in a process of its own.

Batches of 8192 fixed records, 100,000 accounts, class limits enforced, idempotent ids, every transfer indexed by id
and by account. The clock runs from the first request sent to the last answer received; fsync is on.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import numpy.typing as npt
import psutil
import psycopg

from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.client import LedgerClient
from ledger.domain.records import RESULT, SUBMISSION
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from tests.bench.scene import BANK, Scene, ledger_process, open_vaults
from tests.ledger_world import LedgerWorld

BATCH = 8192
ACCOUNTS = 100_000
CONNECTIONS = 2
LOADS = (1, 2, 3, 4, 6, 8)
SEAL_SECONDS_MAX = 30.0


def run_bulk(stage: Scene, *, name: str, transfers: int, hot: bool, with_load_curve: bool = False) -> dict[str, Any]:
    """Returns throughput, latencies of a batch, memory, and whether money was conserved."""
    with ledger_process(stage, name) as (world, process), world.client(BANK) as client:
        accounts = open_vaults(client, ACCOUNTS)
        funding = int(accounts[0])
        world.issue(funding, 10**12)
        for start in range(1, len(accounts), BATCH):
            part = accounts[start : start + BATCH]
            _check(
                client.submit_binary(records(np.full(len(part), funding), part, np.full(len(part), 10**6)).tobytes())
            )
        found = drive(stage, world, process, accounts, transfers=transfers, hot=hot)
        found["checkpoint_lag_ms"], found["checkpoint"] = sealed(world, found["journal_seq"])
        # After the row: the curve's last point leaves history and log behind, which would then run beside the row.
        curve = [
            {"connections": number}
            | drive(stage, world, process, accounts, transfers=transfers // 4, hot=hot, connections=number)
            for number in (LOADS if with_load_curve else ())
        ]
        return found | ({"load_curve": curve} if curve else {})


def drive(
    stage: Scene,
    world: LedgerWorld,
    process: psutil.Process,
    accounts: npt.NDArray[np.int64],
    *,
    transfers: int,
    hot: bool,
    connections: int = CONNECTIONS,
) -> dict[str, Any]:
    """The load on a ledger whose accounts are funded. Every acknowledged id is looked for in the journal afterwards."""
    key_path = stage.directory / f"{world.ledger}.pem"
    key_path.unlink(missing_ok=True)  # another run's
    world.participants[BANK].save(key_path)
    before = process.cpu_times()
    parent, child = multiprocessing.Pipe()
    worker = multiprocessing.get_context("spawn").Process(
        target=_client, args=(world.url, key_path, accounts, transfers // BATCH, hot, connections, child)
    )
    worker.start()
    child.close()  # if the load fails, the next line does too
    seconds, latencies, booked, load_cpu, acknowledged = parent.recv()
    worker.join()
    after = process.cpu_times()
    with world.client(BANK) as client:
        supply, head = client.supply(), client.block()
    return {
        "transfers": booked,
        "per_second": booked / seconds,
        "batch_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "batch_p99_ms": float(np.percentile(latencies, 99) * 1e3),
        "ledger_cpu_us": (after.user + after.system - before.user - before.system) / booked * 1e6,
        "client_cpu_us": load_cpu / booked * 1e6,
        "ledger_rss_mb": process.memory_info().rss / 2**20,
        "conserved": supply.identity_holds,
        "found_once": _found_once(world, acknowledged),
        "journal_seq": head.first_seq + head.transfer_count - 1,
    }


def sealed(world: LedgerWorld, seq: int, *, seconds_max: float = SEAL_SECONDS_MAX) -> tuple[float, str]:
    """How long after the last answer the transparency log has sealed it, and that checkpoint."""
    began = time.perf_counter()
    while True:
        answer = httpx.get(f"{world.url}/checkpoint")
        if answer.status_code == 200 and int(answer.text.split("\n")[1]) >= seq:
            return (time.perf_counter() - began) * 1e3, answer.text
        if time.perf_counter() - began > seconds_max:
            raise TimeoutError(f"seq {seq} is not sealed: {answer.text[:200]}")
        time.sleep(0.02)


def _found_once(world: LedgerWorld, acknowledged: npt.NDArray[np.uint64]) -> bool:
    """Every acknowledged id is in the journal exactly once, read from PostgreSQL behind the ledger's back."""
    url = str(world.settings.database_url).replace("+psycopg", "")
    wanted = {high.to_bytes(8, "big") + low.to_bytes(8, "big") for high, low in acknowledged.tolist()}
    least, most = UUID(bytes=min(wanted)), UUID(bytes=max(wanted))
    found = 0
    with psycopg.connect(url) as connection, connection.cursor(name="ids", binary=True) as cursor:
        cursor.itersize = 100_000
        cursor.execute("SELECT uuid_send(id) FROM transfer WHERE id BETWEEN %s AND %s", (least, most))
        for (each,) in cursor:
            found += bytes(each) in wanted
    return found == len(wanted) == len(acknowledged)


def _client(
    url: str,
    key_path: Path,
    accounts: npt.NDArray[np.int64],
    batches: int,
    hot: bool,
    connections: int,
    answer: Connection,
) -> None:
    """The load: a thread for each connection, each sending batch after batch and checking every result."""
    key = PrivateKey.load(key_path)
    rng = np.random.default_rng(7)
    work = [_random_batch(rng, accounts, hot) for _ in range(batches)]
    latencies: list[float] = []
    booked: list[npt.NDArray[np.uint64]] = []
    lock = threading.Lock()

    def send() -> None:
        with LedgerClient(url, signer=RequestSigner(key), timeout_seconds=120) as client:
            while True:
                with lock:
                    if not work:
                        return
                    records = work.pop()
                stamp(records)
                began = time.perf_counter()
                codes = np.frombuffer(client.submit_binary(records.tobytes()), RESULT)["code"]
                latencies.append(time.perf_counter() - began)
                mine = records[codes == 0]
                booked.append(np.stack([mine["id_high"], mine["id_low"]], axis=1).astype(np.uint64))

    threads = [threading.Thread(target=send) for _ in range(connections)]
    used, began = time.process_time(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, used = time.perf_counter() - began, time.process_time() - used
    acknowledged = np.concatenate(booked)
    answer.send((seconds, latencies, len(acknowledged), used, acknowledged))


def _random_batch(rng: np.random.Generator, accounts: npt.NDArray[np.int64], hot: bool) -> npt.NDArray[Any]:
    debit = accounts[rng.integers(1, len(accounts), BATCH)]
    credit = accounts[rng.integers(1, len(accounts), BATCH)]
    clash = debit == credit
    credit[clash] = accounts[0]
    if hot:
        credit[:] = accounts[0]
    return records(debit, credit, rng.integers(1, 100, BATCH))


def records(
    debit: npt.NDArray[np.int64], credit: npt.NDArray[np.int64], amount: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    records = np.zeros(len(debit), SUBMISSION)
    records["debit"], records["credit"], records["amount"] = debit, credit, amount
    records["kind"] = KIND_CODE[TransferKind.PAYMENT]
    stamp(records)
    return records


def stamp(records: npt.NDArray[Any]) -> None:
    """Time-ordered ids (UUIDv7) of this millisecond, increasing within the batch."""
    size = len(records)
    millis = np.uint64(time.time_ns() // 1_000_000)
    sequence = np.arange(size, dtype=np.uint64) & np.uint64(0xFFF)
    millis_each = millis + (np.arange(size, dtype=np.uint64) >> np.uint64(12))
    records["id_high"] = (millis_each << np.uint64(16)) | np.uint64(0x7000) | sequence
    random = np.random.default_rng().integers(0, 2**62, size, dtype=np.uint64)
    records["id_low"] = np.uint64(2**63) | random


def _check(answer: bytes) -> None:
    codes = np.frombuffer(answer, RESULT)["code"]
    if (codes != 0).any():
        raise RuntimeError(f"set-up refused: {np.unique(codes)}")

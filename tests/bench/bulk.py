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

import numpy as np
import numpy.typing as npt

from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.client import LedgerClient
from ledger.domain.records import RESULT, SUBMISSION
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from tests.bench.scene import BANK, Scene, ledger_process, open_vaults

BATCH = 8192
ACCOUNTS = 100_000
CONNECTIONS = 3


def run_bulk(stage: Scene, *, name: str, transfers: int, hot: bool) -> dict[str, Any]:
    """Returns throughput, latencies of a batch, memory, and whether money was conserved."""
    with ledger_process(stage, name) as (world, process), world.client(BANK) as client:
        accounts = open_vaults(client, ACCOUNTS)
        funding = int(accounts[0])
        world.issue(funding, 10**12)
        for start in range(1, len(accounts), BATCH):
            part = accounts[start : start + BATCH]
            _check(
                client.submit_binary(_records(np.full(len(part), funding), part, np.full(len(part), 10**6)).tobytes())
            )
        key_path = stage.directory / f"{name}.pem"
        world.participants[BANK].save(key_path)
        parent, child = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(
            target=_client, args=(world.url, key_path, accounts, transfers // BATCH, hot, child)
        )
        worker.start()
        seconds, latencies, booked = parent.recv()
        worker.join()
        supply = client.supply()
        rss = process.memory_info().rss
        head = client.block()
    return {
        "transfers": booked,
        "per_second": booked / seconds,
        "batch_p50_ms": float(np.percentile(latencies, 50) * 1e3),
        "batch_p99_ms": float(np.percentile(latencies, 99) * 1e3),
        "ledger_rss_mb": rss / 2**20,
        "conserved": supply.identity_holds and supply.circulation_minor == 10**12,
        "journal_seq": head.first_seq + head.transfer_count - 1,
    }


def _client(
    url: str, key_path: Path, accounts: npt.NDArray[np.int64], batches: int, hot: bool, answer: Connection
) -> None:
    """The load: CONNECTIONS threads, each sending batch after batch and checking every result."""
    key = PrivateKey.load(key_path)
    rng = np.random.default_rng(7)
    work = [_random_batch(rng, accounts, hot) for _ in range(batches)]
    latencies: list[float] = []
    booked = [0] * CONNECTIONS
    lock = threading.Lock()

    def send(number: int) -> None:
        with LedgerClient(url, signer=RequestSigner(key), timeout_seconds=120) as client:
            while True:
                with lock:
                    if not work:
                        return
                    records = work.pop()
                _stamp(records)
                began = time.perf_counter()
                codes = np.frombuffer(client.submit_binary(records.tobytes()), RESULT)["code"]
                latencies.append(time.perf_counter() - began)
                booked[number] += int((codes == 0).sum())

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CONNECTIONS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answer.send((time.perf_counter() - began, latencies, sum(booked)))


def _random_batch(rng: np.random.Generator, accounts: npt.NDArray[np.int64], hot: bool) -> npt.NDArray[Any]:
    debit = accounts[rng.integers(1, len(accounts), BATCH)]
    credit = accounts[rng.integers(1, len(accounts), BATCH)]
    clash = debit == credit
    credit[clash] = accounts[0]
    if hot:
        credit[:] = accounts[0]
    return _records(debit, credit, rng.integers(1, 100, BATCH))


def _records(
    debit: npt.NDArray[np.int64], credit: npt.NDArray[np.int64], amount: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    records = np.zeros(len(debit), SUBMISSION)
    records["debit"], records["credit"], records["amount"] = debit, credit, amount
    records["kind"] = KIND_CODE[TransferKind.PAYMENT]
    _stamp(records)
    return records


def _stamp(records: npt.NDArray[Any]) -> None:
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

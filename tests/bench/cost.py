"""What one transfer costs in bytes: rows, indexes, WAL, history, log, evidence. The figures of docs/scaling.md.

python -m tests.bench.cost [TRANSFERS]

Bulk: the sequencer alone writes the journal; then the history is built from it, then the log, each on its own, so that
the WAL of each is known exactly. Signed: holders' instructions over HTTP, everything running. A CHECKPOINT comes
before each stage, so full page images are in the figures as they are in a long run.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import psycopg

from kernel import ids, migrate
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from ledger.client import LedgerClient
from ledger.contract import AccountKind, AccountOpening, TransferItem
from ledger.domain.records import SUBMISSION, Batch
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from ledger.store.history import RUN_TRANSFERS, History
from tests.bench.scene import BANK, Scene, ledger_process, scene, service_process
from tests.ledger_world import LedgerWorld, make_world
from tests.roles import as_service
from tests.sequencer_world import SequencerWorld

BATCH = 8192
ACCOUNTS = 50_000
SIGNED = 20_000
SIGNED_BATCH = 500
TABLES = (
    "transfer",
    "evidence",
    "history_page",
    "history_mark",
    "history_run",
    "log_tile",
    "log_checkpoint",
    "block",
    "balance_page",
)


class Meter:
    """WAL written and relations' sizes of one database."""

    def __init__(self, stage: Scene, name: str) -> None:
        self._connection = psycopg.connect(stage.server.conninfo(name), autocommit=True)

    @contextmanager
    def wal(self, costs: dict[str, float], what: str, count: int) -> Iterator[None]:
        """Adds the bytes of WAL a transfer of the block to `costs`."""
        self._connection.execute("CHECKPOINT")
        before = self._one("SELECT pg_current_wal_lsn()")
        yield
        written = self._one("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), %s)", before)
        costs[f"wal {what}"] = round(float(str(written)) / count, 1)

    def sizes(self, costs: dict[str, float], count: int) -> None:
        """Bytes of disk a transfer: tables (with what is stored out of line) and indexes."""
        for table in TABLES:
            whole, indexes = (
                int(str(self._one(f"SELECT {function}(%s)", table)))
                for function in ("pg_total_relation_size", "pg_indexes_size")
            )
            if whole > 8192 * 4:
                costs[f"{table} rows"] = round((whole - indexes) / count, 1)
                costs[f"{table} indexes"] = round(indexes / count, 1)

    def number(self, query: str) -> int:
        return int(str(self._one(query)))

    def _one(self, query: str, *parameters: object) -> object:
        row = self._connection.execute(query, parameters).fetchone()
        return row[0] if row is not None else 0


def bulk(stage: Scene, transfers: int) -> dict[str, float]:
    stage.server.ensure_database("bulk")
    url = stage.server.url("bulk")
    migrate.upgrade("ledger", url)
    costs: dict[str, float] = {}
    meter = Meter(stage, "bulk")
    world = SequencerWorld(url)
    accounts = np.array([world.vault(10**9), *_vaults(world)], np.int64)
    funding = Batch.of_institution(_records(np.full(len(accounts) - 1, accounts[0]), accounts[1:], 10_000), submitter=1)
    for start in range(0, len(funding), BATCH):
        part = Batch.of_institution(funding.records[start : start + BATCH], submitter=1)
        _all_booked(world.sequencer.submit(part).result(60).codes)
    numbers = np.random.default_rng(1)
    process, began = psutil.Process(), time.perf_counter()
    cpu = process.cpu_times()
    with meter.wal(costs, "journal", transfers):
        waiting = []
        for _ in range(transfers // BATCH):
            debit = numbers.choice(accounts, BATCH)
            credit = np.where((other := numbers.choice(accounts, BATCH)) == debit, np.roll(debit, 1), other)
            keep = credit != debit
            batch = Batch.of_institution(_records(debit[keep], credit[keep], 1), submitter=1)
            waiting.append(world.sequencer.submit(batch))
            if len(waiting) > 4:
                _all_booked(waiting.pop(0).result(60).codes)
        for future in waiting:
            _all_booked(future.result(60).codes)
    costs["core us sequencer and client"] = round((sum(process.cpu_times()[:2]) - sum(cpu[:2])) * 1e6 / transfers, 2)
    costs["wall us"] = round((time.perf_counter() - began) * 1e6 / transfers, 2)
    world.close()
    count = meter.number("SELECT count(*) FROM transfer")

    database = Database(as_service(url), application_name="cost")
    history = History(database)
    runs = count // RUN_TRANSFERS
    cpu = process.cpu_times()
    with meter.wal(costs, "history", max(runs, 1) * RUN_TRANSFERS):
        history.start()
        while meter.number("SELECT count(*) FROM history_run") < runs:
            time.sleep(0.1)
    costs["core us history"] = round(
        (sum(process.cpu_times()[:2]) - sum(cpu[:2])) * 1e6 / (max(runs, 1) * RUN_TRANSFERS), 2
    )
    history.stop()
    database.close()

    made = make_world(url, stage.directory, ledger="test-cny")
    settings = {
        "port": str(made.settings.port),
        "database_url": str(made.settings.database_url),
        "data_dir": str(stage.directory),
    }
    with (
        meter.wal(costs, "log", count),
        service_process("ledger", "JIAOZI_LEDGER_", settings, made.url, stage.directory / "cost.log"),
    ):
        while meter.number("SELECT coalesce(max(size), 0) FROM log_checkpoint") < count:
            time.sleep(0.1)
    meter.sizes(costs, count)
    return costs


def signed(stage: Scene) -> dict[str, float]:
    """Wallets' payments, each with its holder's instruction (Ed25519), `SIGNED_BATCH` a request."""
    costs: dict[str, float] = {}
    with ledger_process(stage, "signed") as (world, process), world.client(BANK) as client:
        keys = [PrivateKey.generate() for _ in range(100)]
        wallets = _wallets(client, keys)
        vault = world.open_vault(BANK)
        world.issue(vault, 10**9)
        for wallet in wallets:
            client.transfer(world.terms("exchange-in", vault, wallet, 10**6))
        items = [_payment(world, wallets, keys, number) for number in range(SIGNED)]
        meter = Meter(stage, "signed")
        cpu = _cpu_of(process)
        with meter.wal(costs, "everything", SIGNED):
            for start in range(0, SIGNED, SIGNED_BATCH):
                results = client.submit(items[start : start + SIGNED_BATCH])
                _all_booked(np.array([0 if result.refusal is None else 1 for result in results]))
            while meter.number("SELECT coalesce(max(size), 0) FROM log_checkpoint") < SIGNED:
                time.sleep(0.1)
        costs["core us ledger and its processes"] = round((_cpu_of(process) - cpu) * 1e6 / SIGNED, 1)
        costs["instruction"] = meter.number("SELECT avg(octet_length(body))::int FROM evidence WHERE kind = 1")
        meter.sizes(costs, meter.number("SELECT count(*) FROM transfer"))
    return costs


def _cpu_of(process: psutil.Process) -> float:
    return sum(sum(item.cpu_times()[:2]) for item in [process, *process.children(recursive=True)])


def _vaults(world: SequencerWorld) -> list[int]:
    from ledger.domain.blocks import OpenedAccount

    made: list[int] = []
    while len(made) < ACCOUNTS:
        part = [OpenedAccount(0, ids.new_uuid7().bytes, 1, 1, "none", None) for _ in range(4096)]
        made += [account.number for account in world.sequencer.open_accounts(part).result(60) if account is not None]
    return made


def _wallets(client: LedgerClient, keys: list[PrivateKey]) -> list[int]:
    openings = [
        AccountOpening(
            opening=ids.new_uuid7(), kind=AccountKind.WALLET, rule_class="none", holder_key=key.public.to_jwk()
        )
        for key in keys
    ]
    return [int(result.account) for result in client.open_accounts(openings) if result.account is not None]


def _payment(world: LedgerWorld, wallets: list[int], keys: list[PrivateKey], number: int) -> TransferItem:
    payer = number % len(wallets)
    terms = world.terms("payment", wallets[payer], wallets[(payer + 7) % len(wallets)], 1)
    return TransferItem(instruction=world.instruction(terms, keys[payer], minutes=60))


def _records(debit: np.ndarray, credit: np.ndarray, amount: int) -> np.ndarray:
    records = np.zeros(len(debit), SUBMISSION)
    high = (int(time.time() * 1000) << 16 | 0x7000) + np.arange(len(debit), dtype=np.uint64) % 4096
    records["id_high"] = high
    records["id_low"] = np.frombuffer(os.urandom(8 * len(debit)), np.uint64) >> np.uint64(2) | np.uint64(1 << 63)
    records["debit"], records["credit"], records["amount"] = debit, credit, amount
    records["kind"] = KIND_CODE[TransferKind.PAYMENT]
    return records


def _all_booked(codes: np.ndarray) -> None:
    if codes.any():
        raise RuntimeError(f"{int((codes != 0).sum())} transfers were not booked")


def main() -> None:
    transfers = int(sys.argv[1]) if len(sys.argv) > 1 else 2 * RUN_TRANSFERS
    with scene() as stage:  # signed first: the server's WAL is one, and the bulk's tables are vacuumed afterwards
        measures: dict[str, Callable[[], dict[str, float]]] = {
            "signed": lambda: signed(stage),
            "bulk": lambda: bulk(stage, transfers),
        }
        for name, measure in measures.items():
            costs = measure()
            sys.stdout.write(json.dumps({"cost of": name, "unit": "bytes a transfer", **costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""A ledger with its transparency log, and witnesses, for tests: real processes, keys given beforehand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psycopg
from psycopg import sql

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.postgres import EmbeddedPostgres
from kernel.server import make_server
from kernel.transparency.checkpoints import open_checkpoint
from kernel.transparency.notes import KeyKind, VerifierKey
from kernel.transparency.tiles import tile_path
from kernel.transparency.witness import Witness, WitnessStore
from kernel.transparency.witness import create as create_witness
from ledger.contract import TransferItem, TransferResult
from ledger.domain.records import RESULT, SUBMISSION
from ledger.domain.vocabulary import KIND_CODE, TransferKind
from tests.conftest import _administer, _drop, _fresh_name, _template
from tests.ledger_world import LedgerWorld, free_port, make_world, serving
from tests.roles import dsn

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"
SEAL_SECONDS = 0.05


@dataclass
class RunningWitness:
    url: str
    key: VerifierKey
    witness: Witness


@contextmanager
def running_witness(
    directory: Path, logs: list[VerifierKey], name: str = "witness.bank.example"
) -> Iterator[RunningWitness]:
    witness = Witness(
        name=name, key=PrivateKey.generate(), logs=logs, store=WitnessStore(directory / name), clock=system_clock
    )
    port = free_port()
    server = make_server(create_witness(witness), port=port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield RunningWitness(f"http://127.0.0.1:{port}", witness.verifier_key, witness)
    finally:
        server.should_exit = True
        thread.join(20)


def given_log_key(directory: Path, ledger: str = "test-cny") -> VerifierKey:
    """The log's key, provisioned before the ledger's first start: so witnesses can be told."""
    key = PrivateKey.generate()
    key.save(directory / f"log-{ledger}.pem")
    return VerifierKey(ledger, KeyKind.ED25519, key.public)


def write_witnesses(path: Path, *witnesses: RunningWitness) -> Path:
    path.write_text(json.dumps([{"url": item.url, "vkey": str(item.key)} for item in witnesses]))
    return path


@dataclass
class Scene:
    world: LedgerWorld
    log_key: VerifierKey
    witnesses: list[RunningWitness]
    database_url: str
    payer: int
    payee: int
    wallet: int
    holder: PrivateKey

    def pay(self, count: int = 1, amount: int = 3) -> list[TransferResult]:
        terms = [self.world.terms("payment", self.payer, self.payee, amount) for _ in range(count)]
        with self.world.client(BANK) as client:
            return client.submit([TransferItem(terms=item) for item in terms])

    def pay_binary(self, count: int) -> int:
        """Up to 8,192 payments in one binary batch; the last one's seq."""
        records = np.zeros(count, SUBMISSION)
        for row in records:
            own = ids.new_uuid7()
            row["id_high"], row["id_low"] = own.int >> 64, own.int & (2**64 - 1)
        records["debit"], records["credit"], records["amount"] = self.payer, self.payee, 1
        records["kind"] = KIND_CODE[TransferKind.PAYMENT]
        with self.world.client(BANK) as client:
            results = np.frombuffer(client.submit_binary(records.tobytes()), RESULT)
        if results["code"].any():
            raise RuntimeError("a payment was refused")
        return int(results["seq"].max())

    def await_sealed(self, seq: int, *, cosignatures: int = 0) -> str:
        """The newest checkpoint, once it covers `seq`."""
        keys = [item.key for item in self.witnesses]
        deadline = time.monotonic() + 20
        with self.world.anonymous() as client:
            while True:
                try:
                    note = client.checkpoint()
                    opened = open_checkpoint(note, log_key=self.log_key, witnesses=keys)
                    if opened.checkpoint.size >= seq and len(opened.cosigned) >= cosignatures:
                        return note
                except ProblemResponse as problem:
                    if problem.refusal != "not-sealed":
                        raise
                assert time.monotonic() < deadline, "not sealed"
                time.sleep(0.02)

    def receipt(self, result: TransferResult, *, quorum: int = 0) -> bytes:
        assert result.seq is not None
        assert result.id is not None
        self.await_sealed(result.seq, cosignatures=quorum)
        with self.world.client(BANK) as client:
            return client.receipt(result.id, quorum=quorum)

    def owner(self) -> psycopg.Connection[Any]:
        """The tables' owner, whom no grant binds."""
        return psycopg.connect(dsn(self.database_url), autocommit=True)


@contextmanager
def scene_on(database_url: str, directory: Path, *, witnesses: int = 0) -> Iterator[Scene]:
    log_key = given_log_key(directory)
    running = [running_witness(directory, [log_key], f"w{number}.example") for number in range(witnesses)]
    found = [item.__enter__() for item in running]
    settings: dict[str, object] = {"log_seal_seconds": SEAL_SECONDS}
    if found:
        settings["log_witnesses_path"] = write_witnesses(directory / "witnesses.json", *found)
    world = make_world(database_url, directory, **settings)
    try:
        with serving(world):
            world.register(BANK)
            world.register(OTHER)
            payer, payee, holder = world.open_vault(BANK), world.open_vault(OTHER), PrivateKey.generate()
            wallet = world.open_wallet(BANK, holder)
            world.issue(payer, 10**9)
            yield Scene(world, log_key, found, database_url, payer, payee, wallet, holder)
    finally:
        for item in running:
            item.__exit__(None, None, None)


@contextmanager
def module_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A fresh ledger's database for a whole module, as `fresh_database` makes one for a test."""
    name = _fresh_name()
    template = _template(postgres, "ledger")
    _administer(postgres, sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"), name, template)
    yield postgres.url(name)
    _drop(postgres, name)


def read_over_http(url: str) -> Callable[[int, int, int], bytes]:
    def read(level: int, index: int, width: int) -> bytes:
        response = httpx.get(f"{url}/tile/{tile_path(level, index, width)}")
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/octet-stream"
        assert "immutable" in response.headers["cache-control"]
        return response.content

    return read

"""R1. Goal: whatever is killed and whenever, an acknowledged transfer is in the journal exactly once, a refused one is
not, every balance is the replay, and the ledger comes back by itself.

Method: the ledger as real processes on its own PostgreSQL, under load from two clients that repeat with the same ids
after every lost answer. A seeded killer sends SIGKILL to the ledger, to a PostgreSQL backend or to the postmaster, at a
random moment after work has got through again; now and then it only cuts the sequencer's connection. At the end
the clients' notes are held against the journal, the API, the SQL view, a recovery and the independent verifier.
The processes are forked from one that has done its imports, so that a restart costs what recovery costs.

JIAOZI_KILLS=1000 JIAOZI_SEED=7 pytest -m slow tests/recovery/test_ledger_kill.py   # a campaign
"""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import TransferItem, TransferOutcome
from ledger.engine.recovery import recover
from ledger.store.journal import Journal
from ledger.verifier import verify_database
from tests.ledger_world import LedgerWorld, make_world

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"
BACK_SECONDS_MAX = 30.0
KILLS = 50

FORKER = """
import os, signal, sys
import alembic.ddl.postgresql, kernel.migrate, kernel.server, ledger.api.app, ledger.settings, uvicorn.lifespan.on
import uvicorn.loops.auto, uvicorn.protocols.http.auto, uvicorn.protocols.websockets.auto
import ledger.engine.sequencer as sequencer
from ledger.__main__ import main
sequencer.SNAPSHOT_BLOCKS = 25  # so that the short run has many snapshots, written and interrupted
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in sys.stdin:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = ["jiaozi-ledger", "serve"]
        main()
        os._exit(0)
    print(pid, flush=True)
"""


class Ledger:
    """The ledger's process, forked anew after each kill."""

    def __init__(self, world: LedgerWorld, log: Path) -> None:
        settings = world.settings
        self._environment = os.environ | {
            "JIAOZI_LEDGER_PORT": str(settings.port),
            "JIAOZI_LEDGER_DATABASE_URL": str(settings.database_url),
            "JIAOZI_LEDGER_GENESIS_PATH": str(settings.genesis_path),
            "OPENBLAS_NUM_THREADS": "1",
        }
        self._log = log.open("ab")
        self._forker = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self.pid = 0

    def start_cold(self) -> subprocess.Popen[bytes]:
        """Without the forker: as an operator starts it."""
        command = [sys.executable, "-m", "ledger", "serve"]
        return subprocess.Popen(command, env=self._environment, stdout=self._log, stderr=self._log)

    def start(self) -> None:
        assert self._forker.stdin is not None
        assert self._forker.stdout is not None
        self._forker.stdin.write("fork\n")
        self._forker.stdin.flush()
        self.pid = int(self._forker.stdout.readline())

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self._wait(10)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        self._wait(30)

    @property
    def is_running(self) -> bool:
        return bool(psutil.pid_exists(self.pid))

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self.is_running:
            if time.monotonic() > deadline:
                raise RuntimeError("the ledger's process does not end")
            time.sleep(0.005)

    def close(self) -> None:
        if self.pid:
            self.kill()
        self._forker.kill()
        self._forker.wait()
        self._log.close()


class Notes:
    """What the clients were told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.booked: dict[UUID, int] = {}
        self.refused: set[UUID] = set()
        self.counts: Counter[str] = Counter()
        self.answers = 0
        self.errors: list[str] = []

    def take(self, wanted: list[UUID], results: list[Any], attempts: int) -> None:
        with self._lock:
            for transfer, result in zip(wanted, results, strict=True):
                self.counts[str(result.outcome.value)] += 1
                if result.outcome is TransferOutcome.REFUSED:
                    self.counts[f"refused: {result.refusal}"] += 1
                    self.refused.add(transfer)
                else:
                    assert result.seq is not None
                    self.booked[transfer] = result.seq
            self.counts["requests"] += 1
            self.counts["answers lost and asked again"] += attempts - 1
            self.answers += 1


class Client(threading.Thread):
    """Submits batches without pause; repeats a batch with the same ids until it is answered."""

    def __init__(self, world: LedgerWorld, notes: Notes, participant: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.world, self.notes, self.stop_event = world, notes, stop
        self.ledger = LedgerClient(
            world.url, signer=RequestSigner(world.participants[participant]), timeout_seconds=20.0
        )

    def run(self) -> None:
        try:
            while not self.stop_event.is_set():
                self.work()
        except BaseException as error:
            self.notes.errors.append(f"{type(self).__name__}: {type(error).__name__}: {error}")
            raise
        finally:
            self.ledger.close()

    def work(self) -> None:
        raise NotImplementedError

    def submit(self, items: list[TransferItem], wanted: list[UUID]) -> list[Any]:
        attempts = 0
        while True:
            attempts += 1
            try:
                results = self.ledger.submit(items)
            except ServiceUnreachable:
                time.sleep(0.02)
                continue
            except ProblemResponse as problem:
                if problem.status < 500:
                    raise
                self.notes.counts[f"problem {problem.refusal or problem.status}"] += 1
                time.sleep(0.02)
                continue
            self.notes.take(wanted, results, attempts)
            return results


class BulkClient(Client):
    """Plain transfers of an institution's vault in bulk, some in linked chains, some beyond what a vault has."""

    def __init__(self, *arguments: Any, debit: int, credits: list[int], poor: int, seed: int) -> None:
        super().__init__(*arguments)
        self.debit, self.credits, self.poor, self.random = debit, credits, poor, Random(seed)

    def work(self) -> None:
        terms = []
        for _ in range(self.random.randint(50, 300)):
            debit = self.poor if self.random.random() < 0.05 else self.debit
            credit = self.random.choice([account for account in self.credits if account != debit])
            terms.append(self.world.terms("payment", debit, credit, self.random.randint(1, 900)))
        items = [TransferItem(terms=item, linked=place % 10 == 0) for place, item in enumerate(terms)]
        items[-1] = TransferItem(terms=terms[-1])
        self.submit(items, [item.id for item in terms])


class HoldClient(Client):
    """Signed payments of a wallet; holds that are posted, voided, or left to expire; voids that overtake their hold."""

    def __init__(self, *arguments: Any, wallet: int, key: PrivateKey, payee: int, seed: int) -> None:
        super().__init__(*arguments)
        self.wallet, self.key, self.payee, self.random = wallet, key, payee, Random(seed)

    def work(self) -> None:
        items: list[TransferItem] = []
        wanted: list[UUID] = []
        ends: list[TransferItem] = []
        end_ids: list[UUID] = []

        def sign(kind: str, **more: object) -> UUID:
            terms = self.world.terms(kind, self.wallet, self.payee, self.random.randint(1, 50), **more)
            items.append(TransferItem(instruction=self.world.instruction(terms, self.key, minutes=30)))
            wanted.append(terms.id)
            return terms.id

        def end(kind: str, **more: object) -> None:
            terms = self.world.terms(kind, None, None, None, **more)
            ends.append(TransferItem(terms=terms))
            end_ids.append(terms.id)

        for _ in range(6):
            sign("payment")
        for _ in range(3):
            seconds = self.random.choice([0.4, 3600.0])
            hold = sign("hold", expires_at=system_clock() + timedelta(seconds=seconds))
            if seconds > 1:
                end(self.random.choice(["post", "void"]), hold=hold)
        for _ in range(3):
            commit, abort = self.random.randbytes(32), self.random.randbytes(32)
            hashes = {"commit_hash": hashlib.sha256(commit).digest(), "abort_hash": hashlib.sha256(abort).digest()}
            hold = sign("hold", **hashes)
            is_post = self.random.random() < 0.6
            end("post" if is_post else "void", hold=hold, secret=commit if is_post else abort)
        end("void", hold=ids.new_uuid7())  # a tombstone
        self.submit(items, wanted)
        self.submit(ends, end_ids)


class Killer:
    def __init__(self, server: EmbeddedPostgres, ledger: Ledger, notes: Notes, seed: int) -> None:
        self.server, self.ledger, self.notes, self.random = server, ledger, notes, Random(seed)
        self.counts: Counter[str] = Counter()
        self.back: dict[str, list[float]] = defaultdict(list)
        self._faults = {
            "ledger": self._kill_ledger,
            "backend": self._kill_backend,
            "postmaster": self._kill_postmaster,
            "cut": self._cut_connection,
        }

    def wait_for_work(self, since: float, what: str) -> None:
        """Until two more requests were answered, so that every kill meets a ledger at work."""
        seen = self.notes.answers
        for more in (1, 2):
            while self.notes.answers < seen + more:
                if self.notes.errors:
                    raise AssertionError(self.notes.errors)
                if not self.ledger.is_running:
                    raise AssertionError(f"the ledger ended by itself after: {what}")
                if time.monotonic() - since > BACK_SECONDS_MAX:
                    raise AssertionError(f"the ledger did not come back after: {what}")
                time.sleep(0.002)
            if more == 1:
                self.back[what].append(time.monotonic() - since)

    def run(self, kills: int) -> None:
        while sum(self.counts[name] for name in ("ledger", "backend", "postmaster")) < kills:
            time.sleep(self.random.uniform(0, 0.12))
            what = self.random.choices(["ledger", "backend", "postmaster", "cut"], [56, 28, 12, 16])[0]
            began = time.monotonic()
            if not self._faults[what]():
                continue
            self.counts[what] += 1
            self.wait_for_work(began, what)

    def _kill_ledger(self) -> bool:
        self.ledger.kill()
        self.ledger.start()
        return True

    def _kill_backend(self) -> bool:
        """SIGKILL of one backend: PostgreSQL ends all the others and recovers."""
        pid = self._sequencer_backend(self.random.random() < 0.8)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return True

    def _kill_postmaster(self) -> bool:
        self.server.kill()
        time.sleep(self.random.uniform(0, 0.1))
        self.server.start()
        return True

    def _cut_connection(self) -> bool:
        """Only the sequencer's connection, politely."""
        try:
            with psycopg.connect(self.server.conninfo("ledger"), autocommit=True, connect_timeout=5) as connection:
                pid = self._sequencer_backend(True)
                return pid is not None and bool(connection.execute("SELECT pg_terminate_backend(%s)", [pid]).rowcount)
        except psycopg.OperationalError:
            return False

    def _sequencer_backend(self, is_writer: bool) -> int | None:
        """A backend of the ledger: the sequencer's (the eldest) or a pooled one."""
        try:
            with psycopg.connect(self.server.conninfo("ledger"), connect_timeout=5) as connection:
                rows = connection.execute(
                    "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'jiaozi-ledger%'"
                    " ORDER BY backend_start, pid"
                ).fetchall()
        except psycopg.OperationalError:
            return None
        return int((rows[0] if is_writer else self.random.choice(rows))[0]) if rows else None


def wait_until_serving(world: LedgerWorld) -> float:
    began = time.monotonic()
    with world.anonymous() as client:
        while True:
            try:
                client.ledger()
                return time.monotonic() - began
            except (ServiceUnreachable, ProblemResponse):
                if time.monotonic() - began > BACK_SECONDS_MAX:
                    raise
                time.sleep(0.01)


def campaign(server_dir: Path, directory: Path, *, kills: int, seed: int) -> None:
    server = EmbeddedPostgres(server_dir)
    server.start()
    server.ensure_database("ledger")
    migrate.upgrade("ledger", server.url("ledger"))
    world = make_world(server.url("ledger"), directory)
    ledger = Ledger(world, directory / "ledger.log")
    try:
        ledger.start()
        wait_until_serving(world)
        world.register(BANK)
        world.register(OTHER)
        vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
        poor, key = world.open_vault(BANK), PrivateKey.generate()
        wallet = world.open_wallet(BANK, key)
        world.issue(vault, 10**12)
        with world.client(BANK) as client:
            client.transfer(world.terms("exchange-in", vault, wallet, 10**9))

        notes, stop = Notes(), threading.Event()
        clients = [
            BulkClient(world, notes, BANK, stop, debit=vault, credits=[vault, payee, poor], poor=poor, seed=seed),
            HoldClient(world, notes, OTHER, stop, wallet=wallet, key=key, payee=payee, seed=seed),
        ]
        killer = Killer(server, ledger, notes, seed)
        for thread in clients:
            thread.start()
        began = time.monotonic()
        try:
            killer.run(kills)
        finally:
            took = time.monotonic() - began
            stop.set()
            for thread in clients:
                thread.join(60)
        assert not notes.errors
        assert not any(thread.is_alive() for thread in clients), "a client got no answer"
        time.sleep(1.5)  # the last holds expire
        check(server, world, notes, [vault, payee, poor, wallet])
        ledger.kill()
        cold = ledger.start_cold()
        cold_start = wait_until_serving(world)
        cold.send_signal(signal.SIGTERM)
        assert cold.wait(30) == 0
        assert verify_database(server.url("ledger")).findings == []  # with the snapshot written on the way out

        print(f"\n{kills} SIGKILLs in {took:.1f} s, seed {seed}: {dict(killer.counts)}; {dict(notes.counts)}")
        for what, seconds in sorted(killer.back.items()):
            print(f"back after {what}: median {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")
        print(f"cold start: {cold_start:.2f} s with {len(notes.booked)} transfers acknowledged")
    except BaseException:
        print((directory / "ledger.log").read_text(errors="replace")[-6000:])
        raise
    finally:
        ledger.close()


def check(server: EmbeddedPostgres, world: LedgerWorld, notes: Notes, accounts: list[int]) -> None:
    with psycopg.connect(server.conninfo("ledger")) as connection:
        rows = connection.execute(
            "SELECT id, seq, kind, debit_account, credit_account, amount_minor FROM transfer ORDER BY seq"
        ).fetchall()
        view = {
            account: int(credits - debits)
            for account, debits, credits in connection.execute(
                "SELECT account, debits_posted, credits_posted FROM account_balance_now"
            )
        }
    seqs: dict[UUID, list[int]] = defaultdict(list)
    replay: Counter[int] = Counter()
    for transfer, seq, kind, debit, credit, amount in rows:
        seqs[transfer].append(seq)
        if kind not in (7, 9, 10, 12):
            replay[debit] -= amount
            replay[credit] += amount
    assert [row[1] for row in rows] == list(range(1, len(rows) + 1))
    for transfer, seq in notes.booked.items():
        assert seqs[transfer] == [seq], f"{transfer} was acknowledged at seq {seq} and is at {seqs[transfer]}"
    assert not [transfer for transfer in notes.refused if transfer in seqs], "a refused transfer was booked"
    assert {account: balance for account, balance in view.items() if balance} == {
        account: balance for account, balance in replay.items() if balance
    }
    with world.operator() as client:
        for account in accounts:
            assert client.get_account(account).balance_minor == replay[account]
        assert client.supply().identity_holds
    database = Database(server.url("ledger"), application_name="test")
    with database.raw(isolation="READ COMMITTED") as connection_of_journal:
        state, _ = recover(Journal(connection_of_journal))
    database.close()
    assert state.broken_invariant() is None
    assert {account: state.balance(account) for account in accounts} == {
        account: replay[account] for account in accounts
    }
    report = verify_database(server.url("ledger"))
    assert report.findings == []
    assert report.head_seq == len(rows)


@pytest.mark.timeout(180)
def test_fifty_kills_lose_nothing_and_double_nothing(server_dir: Path, tmp_path: Path) -> None:
    campaign(server_dir, tmp_path, kills=KILLS, seed=20261123)


@pytest.mark.slow
@pytest.mark.timeout(24 * 3600)
def test_kill_campaign(server_dir: Path, tmp_path: Path) -> None:
    kills, seed = int(os.environ.get("JIAOZI_KILLS", "500")), int(os.environ.get("JIAOZI_SEED", "1"))
    campaign(server_dir, tmp_path, kills=kills, seed=seed)

"""R1 and R13's campaign: a ledger under full bulk load is killed again and again; nothing is lost, nothing is doubled.

Method: the ledger as real processes on a PostgreSQL of its own. Three kinds of clients keep it busy: bulk batches of
thousands of transfers, JSON batches with linked chains and refusals, and holders' signed payments, holds, posts,
voids and expiries; all repeat with the same ids after a lost answer. A seeded killer sends SIGKILL to the ledger, to a
PostgreSQL backend, to the postmaster or to ledger and postmaster together, always while work is in flight; now and
then it only cuts the sequencer's connection. After each recovery the clients rest for a moment and the journal's new
rows are held against what the clients were told; at the end so are the API, the SQL views, a recovery and the
independent verifier.

    python -m tests.faults.campaign --seconds 600 --seed 7          # = make torture-ledger SECONDS=600 SEED=7
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import psycopg

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.postgres import EmbeddedPostgres
from ledger.contract import AccountKind, AccountOpening
from ledger.engine.recovery import recover
from ledger.store.journal import Journal
from ledger.verifier import verify_database
from tests.faults.load import ACKNOWLEDGED, BinaryClient, BulkClient, HoldClient, Notes
from tests.faults.processes import (
    BACK_SECONDS_MAX,
    ForkedLedger,
    LedgerProcess,
    wait_for,
    wait_until_serving,
)
from tests.ledger_world import LedgerWorld, make_world

BANK, OTHER = "BKCHCNBJ", "ICBKCNBJ"
VAULTS = 200
FUNDING = 1_000
"""Of each vault of the bulk clients: small, so that some transfers are refused."""
REST_SECONDS_MAX = 60.0
NOT_POSTED = (7, 9, 10, 12)
"""Kinds that move no posted balance: hold, void, expire, tombstone."""
COLUMNS = ("id_high", "id_low", "seq", "kind", "debit", "credit", "amount")
ROW = np.dtype(list(zip(COLUMNS, (">u8", ">u8", ">i8", ">i2", ">i8", ">i8", ">i8"), strict=True)))


class Killer:
    """Hurts the ledger at seeded random moments, and waits each time until work gets through again."""

    def __init__(self, server: EmbeddedPostgres, ledger: ForkedLedger, notes: Notes, seed: int) -> None:
        self.server, self.ledger, self.notes, self.random = server, ledger, notes, Random(seed)
        self.counts: Counter[str] = Counter()
        self.back: dict[str, list[float]] = defaultdict(list)
        self._faults = {
            "ledger": self._kill_ledger,
            "backend": self._kill_backend,
            "postmaster": self._kill_postmaster,
            "both": self._kill_both,
            "cut": self._cut_connection,
        }

    @property
    def kills(self) -> int:
        return sum(self.counts.values()) - self.counts["cut"]

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

    def strike(self) -> None:
        """One fault. Raises AssertionError if the ledger does not come back."""
        while True:
            time.sleep(self.random.uniform(0, 0.12))
            what = self.random.choices(list(self._faults), [50, 25, 10, 5, 16])[0]
            began = time.monotonic()
            if self._faults[what]():
                self.counts[what] += 1
                self.wait_for_work(began, what)
                return

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

    def _kill_both(self) -> bool:
        """As a power cut: the ledger and its database in the same moment."""
        os.kill(self.ledger.pid, signal.SIGKILL)
        self.server.kill()
        self.server.start()
        self.ledger.kill()
        self.ledger.start()
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


class Replay:
    """What the journal says, read row after row: balances, and every acknowledged id where it was acknowledged."""

    def __init__(self, server: EmbeddedPostgres, notes: Notes) -> None:
        self._server, self._notes = server, notes
        self.seq = 0
        self.balances: npt.NDArray[np.int64] = np.zeros(1024, np.int64)
        self.acknowledged = 0
        self._ids: list[npt.NDArray[Any]] = []

    def follow(self) -> None:
        """Read on from where the last call ended, with the clients at rest. Raises AssertionError."""
        rows = self._rows()
        assert rows["seq"].tolist() == list(range(self.seq + 1, self.seq + 1 + len(rows))), "seq is not dense"
        moved = rows[~np.isin(rows["kind"], NOT_POSTED)]
        for side, sign in (("debit", -1), ("credit", 1)):
            np.add.at(self.balances, moved[side].astype(np.int64), sign * moved["amount"].astype(np.int64))
        found, self._notes.acknowledged = self._notes.acknowledged, []
        told = np.concatenate(found) if found else np.zeros(0, ACKNOWLEDGED)
        self.acknowledged += len(told)
        first = self.seq + 1
        assert len(np.unique(told["seq"])) == len(told), "one seq was acknowledged for two ids"
        assert bool(((told["seq"] >= first) & (told["seq"] < first + len(rows))).all()), (
            "an acknowledged seq is missing"
        )
        there = rows[told["seq"] - first]
        for name in ("id_high", "id_low"):
            assert (there[name] == told[name]).all(), "an acknowledged id is not at its seq"
        self.seq += len(rows)
        self._ids.append(_packed(rows))
        self._check_refused(rows)
        with psycopg.connect(self._server.conninfo("ledger")) as connection:
            view = {
                account: int(credits - debits)
                for account, debits, credits in connection.execute(
                    "SELECT account, debits_posted, credits_posted FROM account_balance_now"
                )
            }
        mine = {int(account): int(self.balances[account]) for account in np.flatnonzero(self.balances)}
        assert {account: balance for account, balance in view.items() if balance} == mine

    def _check_refused(self, rows: npt.NDArray[Any]) -> None:
        """What was refused for good is nowhere. Ids are unique in the whole journal by its primary key; checked here
        too, because an index could be damaged."""
        refused, self._notes.refused_bulk = self._notes.refused_bulk, []
        if refused:
            wanted = _packed(np.concatenate(refused))
            assert not np.isin(wanted, _packed(rows)).any(), "a refused transfer was booked"

    def finish(self) -> None:
        every = np.concatenate(self._ids)
        assert len(np.unique(every)) == len(every) == self.seq, "an id is in the journal twice"

    def _rows(self) -> npt.NDArray[Any]:
        columns = "id, seq, kind, debit_account, credit_account, amount_minor"
        statement = f"COPY (SELECT {columns} FROM transfer WHERE seq > {self.seq}) TO STDOUT (FORMAT BINARY)"
        with (
            psycopg.connect(self._server.conninfo("ledger")) as connection,
            connection.cursor() as cursor,
            cursor.copy(statement.encode()) as copy,
        ):
            body = b"".join(copy)
        framed: list[Any] = [("fields", ">i2")]
        for names in (("id_high", "id_low"), *((name,) for name in COLUMNS[2:])):
            framed.append((f"{names[0]}_length", ">i4"))
            framed.extend((name, ROW[name]) for name in names)
        raw = np.frombuffer(body[19:-2], np.dtype(framed))
        rows = np.zeros(len(raw), ROW.newbyteorder("="))
        for name in COLUMNS:
            rows[name] = raw[name]
        return np.sort(rows, order="seq")


def _packed(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Ids as one comparable value each."""
    packed = np.zeros(len(rows), np.dtype([("high", ">u8"), ("low", ">u8")]))
    packed["high"], packed["low"] = rows["id_high"], rows["id_low"]
    return packed.view("S16").reshape(-1) if len(rows) else np.zeros(0, "S16")


class Campaign:
    """A ledger with its database, its clients and its killer, below `server_dir` and `directory`."""

    def __init__(self, server_dir: Path, directory: Path, *, seed: int) -> None:
        self.server = EmbeddedPostgres(server_dir)
        self.directory, self.seed = directory, seed
        self.notes, self._stop = Notes(), threading.Event()

    def run(self, *, kills: int | None = None, seconds: float | None = None, batch: int = 2048) -> str:
        """Until so many kills, or so long. Returns the summary; raises AssertionError at the first wrong thing."""
        self.server.start()
        self.server.ensure_database("ledger")
        world = make_world(self.server.url("ledger"), self.directory)
        ledger = ForkedLedger(world, self.directory / "ledger.log")
        try:
            ledger.start()
            wait_until_serving(world)
            clients = self._clients(world, batch)
            killer = Killer(self.server, ledger, self.notes, self.seed)
            replay = Replay(self.server, self.notes)
            began = told_at = time.monotonic()
            for client in clients:
                client.start()
            try:
                while (kills is None or killer.kills < kills) and (
                    seconds is None or time.monotonic() - began < seconds
                ):
                    killer.strike()
                    self._at_rest(len(clients), replay.follow)
                    if time.monotonic() - told_at > 15:
                        told_at = time.monotonic()
                        self._tell(f"{told_at - began:4.0f} s: {killer.kills} kills, {replay.seq:,} booked, 0 lost")
            finally:
                took = time.monotonic() - began
                self._stop.set()
                self.notes.go.set()
                for client in clients:
                    client.join(REST_SECONDS_MAX)
            assert not self.notes.errors, self.notes.errors
            assert not any(client.is_alive() for client in clients), "a client got no answer"
            time.sleep(1.5)  # the last holds expire
            replay.follow()
            replay.finish()
            assert killer.kills > 0 and replay.seq > batch, "nothing was killed, or nothing booked"
            self._check_at_the_end(world, replay)
            ledger.kill()
            cold = self._cold_start(world)
            return self._summary(killer, replay, took, cold)
        except BaseException:
            self._tell((self.directory / "ledger.log").read_text(errors="replace")[-6000:])
            raise
        finally:
            ledger.close()

    def _clients(self, world: LedgerWorld, batch: int) -> list[Any]:
        world.register(BANK)
        world.register(OTHER)
        vault, payee = world.open_vault(BANK), world.open_vault(OTHER)
        poor, key = world.open_vault(BANK), PrivateKey.generate()
        wallet = world.open_wallet(BANK, key)
        world.issue(vault, 10**12)
        self.accounts = [vault, payee, poor, wallet]
        with world.client(BANK) as client:
            client.transfer(world.terms("exchange-in", vault, wallet, 10**9))
            openings = [AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT) for _ in range(VAULTS)]
            vaults = [int(result.account or 0) for result in client.open_accounts(openings)]
            for number in vaults:
                client.transfer(world.terms("payment", vault, number, FUNDING))
        shared = (world, self.notes)
        return [
            BinaryClient(*shared, BANK, self._stop, vaults=vaults, size=batch, seed=self.seed),
            BinaryClient(*shared, BANK, self._stop, vaults=vaults, size=batch, seed=self.seed + 1),
            BulkClient(*shared, BANK, self._stop, debit=vault, credits=[vault, payee, poor], poor=poor, seed=self.seed),
            HoldClient(*shared, OTHER, self._stop, wallet=wallet, key=key, payee=payee, seed=self.seed),
        ]

    def _at_rest(self, clients: int, check: Any) -> None:
        """Run a check while no request is in flight."""
        self.notes.go.clear()
        try:

            def rests() -> bool:
                assert not self.notes.errors, self.notes.errors
                return self.notes.at_rest == clients

            wait_for(rests, REST_SECONDS_MAX, "the clients did not come to rest")
            check()
        finally:
            self.notes.go.set()

    def _check_at_the_end(self, world: LedgerWorld, replay: Replay) -> None:
        """The clients' other notes, the API, a recovery and the verifier: all of them say the same as the replay."""
        with psycopg.connect(self.server.conninfo("ledger")) as connection:
            seqs = {
                row[0]: row[1]
                for row in connection.execute(
                    "SELECT id, seq FROM transfer WHERE id = ANY(%s)",
                    ([*self.notes.booked, *self.notes.refused],),
                )
            }
        for transfer, seq in self.notes.booked.items():
            assert seqs.get(transfer) == seq, f"{transfer} was acknowledged at seq {seq} and is at {seqs.get(transfer)}"
        assert not [transfer for transfer in self.notes.refused if transfer in seqs], "a refused transfer was booked"
        with world.operator() as client:
            for account in self.accounts:
                assert client.get_account(account).balance_minor == replay.balances[account]
            assert client.supply().identity_holds
        database = Database(self.server.url("ledger"), application_name="test")
        with database.raw(isolation="READ COMMITTED") as connection:
            state, _ = recover(Journal(connection))
        database.close()
        assert state.broken_invariant() is None
        assert [state.balance(account) for account in range(1, state.size)] == [
            int(replay.balances[account]) for account in range(1, state.size)
        ]
        report = verify_database(self.server.url("ledger"))
        assert report.findings == []
        assert report.head_seq == replay.seq

    def _cold_start(self, world: LedgerWorld) -> float:
        """As an operator starts it; then a clean stop, which writes a snapshot, and the verifier again."""
        with LedgerProcess(world, self.directory / "ledger.log") as cold:
            took = wait_until_serving(world)
            cold.signal(signal.SIGTERM)
            assert cold.ended(30) == 0
        return took

    def _summary(self, killer: Killer, replay: Replay, took: float, cold: float) -> str:
        every = [seconds for found in killer.back.values() for seconds in found]
        acknowledged = replay.acknowledged + len(self.notes.booked)
        lines = [
            f"{killer.kills} SIGKILLs in {took:.0f} s, seed {self.seed}: {dict(killer.counts)}",
            f"acknowledged {acknowledged:,}, lost 0, doubled 0; booked {replay.seq:,} ({replay.seq / took:,.0f}/s)",
            f"recovery: median {statistics.median(every):.2f} s, longest {max(every):.2f} s; cold start {cold:.2f} s",
        ]
        for what, found in sorted(killer.back.items()):
            lines.append(f"  after {what}: median {statistics.median(found):.2f} s, longest {max(found):.2f} s")
        lines.append(f"  {dict(self.notes.counts)}")
        return "\n".join(lines)

    @staticmethod
    def _tell(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a ledger under load, again and again.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--batch", type=int, default=4096, help="transfers of a bulk batch")
    arguments = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="jiaozi-torture-"))
    place.chmod(0o755)  # PostgreSQL's own user enters it
    (place / "files").mkdir()
    campaign = Campaign(place / "server", place / "files", seed=arguments.seed)
    sys.stdout.write(f"seed {arguments.seed}, {arguments.seconds:.0f} s\n")
    try:
        sys.stdout.write(campaign.run(seconds=arguments.seconds, batch=arguments.batch) + "\n")
    finally:
        campaign.server.stop(mode="immediate")
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()

"""The sealer's process, `python -m ledger.log.process`: hashing that the ledger's own process has no time for.

It reads its task and then blocks from standard input, says on standard output how it fares (one JSON object a line, at
least each second while it works, so that one that hangs is noticed), and ends when the input ends, after a last
checkpoint. It may be killed at any moment: what is committed is true, the rest is made anew from the journal.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from kernel.clock import system_clock
from kernel.crypto.keys import KeyRefused
from kernel.database import Database, OutcomeUnknown, TransactionAborted
from ledger.engine.followers import CommittedBlock
from ledger.log import keys
from ledger.log.feed import EXIT_REFUSED, LogTask, read_frame, unpack_block
from ledger.log.keys import LogKeyRefused
from ledger.log.sealer import LogBroken, Sealed, Sealer
from ledger.store.journal import Deposed

if TYPE_CHECKING:
    from ledger.log.witnesses import WitnessPusher

QUEUE_BLOCKS_MAX = 8
BEAT_SECONDS = 1.0
"""How often the ledger is told that the sealer's own thread still works (`feed.HUNG_SECONDS_MAX`)."""
IDLE_SECONDS = 1.0
"""How often the journal is looked at when nothing is handed over: a block may have been dropped."""
RETRY_SECONDS_FIRST = 0.1
RETRY_SECONDS_MAX = 2.0
LAST_ATTEMPTS_MAX = 3
"""When the input has ended and the database does not answer either."""
POOL_SIZE = 4

log = logging.getLogger("jiaozi.ledger.log")


class Process:
    def __init__(self, task: LogTask, blocks: IO[bytes], answers: IO[str]) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._block = 0
        self._failure: str | None = None
        self._refusals: dict[str, str] = {}
        self._beats, self._beat_at = 0, -BEAT_SECONDS
        self._seal_seconds = task.seal_seconds
        self._database = Database(
            task.database_url, application_name=f"jiaozi-log {task.holder[:40]}", pool_size=POOL_SIZE
        )
        self._sealer = Sealer(
            self._database,
            keys.load(task.origin, Path(task.key_path), Path(task.salt_path)),
            ledger=task.ledger,
            currency=task.currency,
            holder=task.holder,
            clock=system_clock,
        )
        self._pushers = _pushers(self._database, task, self._witness_status) if task.witnesses else []
        self._blocks: queue.Queue[CommittedBlock | None] = queue.Queue(QUEUE_BLOCKS_MAX)
        self._input_ended = threading.Event()
        threading.Thread(target=self._read, args=(blocks,), name="blocks", daemon=True).start()

    def run(self) -> int:
        """Until the input ends. Returns the exit status."""
        for pusher in self._pushers:
            pusher.start()
        pause, attempts = RETRY_SECONDS_FIRST, 0
        while True:
            self._beat()
            try:
                self._sealed(self._sealer.open())
                pause = RETRY_SECONDS_FIRST
                self._work()
                self._sealer.close()
                return 0
            except (LogBroken, Deposed) as error:
                return self._refuse(str(error))
            except (psycopg.Error, SQLAlchemyError, OutcomeUnknown, TransactionAborted) as error:
                log.warning("the log waits for the database: %s", str(error).splitlines()[0] if str(error) else error)
                if self._input_ended.is_set():
                    attempts += 1
                    if attempts >= LAST_ATTEMPTS_MAX:
                        return 0
                time.sleep(pause)
                pause = min(2 * pause, RETRY_SECONDS_MAX)

    def _work(self) -> None:
        next_seal = 0.0
        self._catch_up()
        while True:
            self._beat()
            if self._sealer.has_unsealed and time.monotonic() >= next_seal:
                next_seal = time.monotonic() + self._seal_seconds
                self._sealed(self._sealer.seal())
            wait = max(0.0, next_seal - time.monotonic()) if self._sealer.has_unsealed else IDLE_SECONDS
            try:
                block = self._blocks.get(timeout=wait) if wait else self._blocks.get_nowait()
            except queue.Empty:
                if not self._sealer.has_unsealed:
                    self._catch_up()
                continue
            if block is None:
                self._blocks.put(None)  # stays the last one: after a database error the end is met again
                self._catch_up()
                self._sealed(self._sealer.seal())
                return
            if not self._sealer.take(block):
                self._catch_up()

    def _catch_up(self) -> None:
        began = time.monotonic()
        while self._sealer.catch_up():
            self._beat()
            if time.monotonic() - began >= self._seal_seconds:
                began = time.monotonic()
                self._sealed(self._sealer.seal())

    def _read(self, blocks: IO[bytes]) -> None:
        try:
            while (payload := read_frame(blocks)) is not None:
                self._blocks.put(unpack_block(payload))
        finally:
            self._input_ended.set()
            self._blocks.put(None)

    # --- how it fares

    def _beat(self) -> None:
        """From the thread that seals, between two of its steps: another thread would beat for a dead one too."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_SECONDS:
            self._beat_at, self._beats = now, self._beats + 1
            self._tell()

    def _sealed(self, sealed: Sealed | None) -> None:
        if sealed is None:
            return
        self._block = sealed.block
        self._tell()
        for pusher in self._pushers:
            pusher.offer(sealed)

    def _refuse(self, reason: str) -> int:
        self._failure = f"the log is no longer sealed: {reason}"
        log.critical("%s", self._failure)
        self._tell()
        return EXIT_REFUSED

    def _witness_status(self, witness: str, refusal: str | None) -> None:
        if refusal is not None:
            self._refusals[witness] = refusal
        else:
            self._refusals.pop(witness, None)
        self._tell()

    def _tell(self) -> None:
        with self._lock:
            failure = self._failure or next(iter(self._refusals.values()), None)
            status = {"block": self._block, "failure": failure, "beats": self._beats}
            self._answers.write(json.dumps(status) + "\n")
            self._answers.flush()


def _pushers(database: Database, task: LogTask, tell: Callable[[str, str | None], None]) -> list[WitnessPusher]:
    from kernel.transparency.notes import VerifierKey
    from ledger.log.witnesses import WitnessPusher  # an HTTP client: only a log with witnesses pays for its import

    return [WitnessPusher(database, url=url, key=VerifierKey.parse(vkey), tell=tell) for url, vkey in task.witnesses]


def main() -> int:
    # Ended by the end of its input, after the ledger's last block: a signal to the whole group must not come first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    first = read_frame(sys.stdin.buffer)
    if first is None:
        return 0
    try:
        process = Process(LogTask(**json.loads(first)), sys.stdin.buffer, sys.stdout)
    except (KeyRefused, LogKeyRefused) as error:
        sys.stdout.write(json.dumps({"block": 0, "failure": str(error)}) + "\n")
        return EXIT_REFUSED
    try:
        return process.run()
    except BrokenPipeError:  # the ledger has gone
        return 0


if __name__ == "__main__":
    sys.exit(main())

"""The ledger's side of the sealer's process: starts it, hands it each committed block, knows how it fares.

Nothing here can hold the ledger up. A block that finds the queue full, or the process dead, is dropped: the sealer sees
the gap and reads the journal. Frames on the pipe are a length (4 bytes, big-endian) and a payload; the first is the
`LogTask` as JSON, so that no URL with a password stands in arguments or environment; each other one a packed block.
"""

from __future__ import annotations

import fcntl
import json
import logging
import queue
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any

import numpy as np

from ledger.domain.blocks import BlockHeader, Evidence
from ledger.domain.records import JOURNAL
from ledger.engine.followers import CommittedBlock

QUEUE_BLOCKS_MAX = 32
"""Up to 25 MB of blocks that wait for the pipe; a sealer further behind reads the journal."""
PIPE_BYTES = 1024 * 1024
FRAME_BYTES_MAX = 64 * 1024 * 1024
RESTART_SECONDS = 1.0
ALIVE_SECONDS = 1.0
"""How often an idle ledger looks whether the sealer's process still lives."""
RESTARTS_BEFORE_FAILURE = 5
HUNG_SECONDS_MAX = 90.0
"""A sealer's process whose own thread has not moved for so long hangs, though it lives: it is killed and started
again. Longer than anything that it waits for: a server in crash recovery (60 s), a statement (30 s)."""
STOP_SECONDS_MAX = 5.0
"""For the last checkpoint on the way out: a standby waits so long at most."""
EXIT_REFUSED = 3
"""The sealer's exit status when it must not be started again."""
_DIGESTS = ("transfers_digest", "evidence_digest", "directives_digest", "accounts_digest", "previous_hash")
_INTEGER_FIELDS = tuple(name for name in BlockHeader.__slots__ if name not in _DIGESTS)
_INTEGERS = struct.Struct(f">{len(_INTEGER_FIELDS)}q")
_ITEM = struct.Struct(">q16sBI")

log = logging.getLogger("jiaozi.ledger.log")


@dataclass(frozen=True, slots=True)
class LogTask:
    """What the sealer's process is told."""

    database_url: str
    origin: str
    key_path: str
    salt_path: str
    ledger: str
    currency: str
    holder: str
    seal_seconds: float
    witnesses: Sequence[tuple[str, str]]
    """URL and vkey of each."""


class LogFeed:
    """Thread-safe. `follow` may be called before `start`."""

    def __init__(self) -> None:
        self._queue: queue.Queue[CommittedBlock | None] = queue.Queue(QUEUE_BLOCKS_MAX)
        self._task: LogTask | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = threading.Event()
        self._pump = threading.Thread(target=self._run, name="log feed", daemon=True)
        self._watch = threading.Thread(target=self._watch_over, name="log watch", daemon=True)
        self._heard_at = 0.0
        self._restarts = 0
        self.failure: str | None = None
        """Why the log does not go on, or which witness has refused it."""
        self._sealed_block = 0
        self.dropped = 0
        """Blocks that the sealer had to read from the journal."""

    def start(self, task: LogTask) -> None:
        self._task = task
        self._pump.start()
        self._watch.start()

    def follow(self, block: CommittedBlock) -> None:
        """A `Follower`: takes no time, raises nothing."""
        try:
            self._queue.put_nowait(block)
        except queue.Full:
            self.dropped += 1

    @property
    def pid(self) -> int | None:
        """Of the sealer's process, while it lives."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def close(self) -> None:
        """After the ledger's last block: wait for the last checkpoint, then end the process."""
        if self._task is None:
            return
        deadline = time.monotonic() + STOP_SECONDS_MAX
        self._stopping.set()
        if self._pump.is_alive():
            with suppress(queue.Full):  # a sealer that takes nothing any more leaves it to the next start
                self._queue.put(None, timeout=STOP_SECONDS_MAX)
            self._pump.join(max(0.0, deadline - time.monotonic()))
        process = self._process
        if process is None:
            return
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log.warning("the sealer was stopped before its last checkpoint; the next start makes it")
            process.kill()
            process.wait()

    def _watch_over(self) -> None:
        """A process that hangs is made one that has died, which the pump starts again. In a thread of its own, for the
        pump itself waits when a process takes nothing from its pipe."""
        while not self._stopping.wait(ALIVE_SECONDS):
            process, silent = self._process, time.monotonic() - self._heard_at
            if process is not None and process.poll() is None and silent > HUNG_SECONDS_MAX:
                log.warning("the log's sealer has said nothing for %d s: it is killed", silent)
                process.kill()
                self._heard_at = time.monotonic()

    # --- the pump

    def _run(self) -> None:
        while True:
            try:
                process = self._spawn()
            except OSError as error:
                self.failure = f"the log's sealer cannot be started: {error}"
                log.critical("%s", self.failure)
                return
            if process.stdin is None:
                raise RuntimeError("the sealer has no pipe")
            ended = self._feed(process, process.stdin)
            with suppress(OSError):
                process.stdin.close()
            if ended:
                return
            if process.wait() == EXIT_REFUSED:
                self.failure = self.failure or "the log's sealer has stopped"
                log.critical("the log is no longer sealed: %s", self.failure)
                return
            log.warning("the log's sealer ended with status %s; it is started again", process.returncode)
            self._restarts += 1
            if self._restarts >= RESTARTS_BEFORE_FAILURE:
                self.failure = "the log's sealer does not stay alive"
            if self._stopping.wait(RESTART_SECONDS):
                return

    def _feed(self, process: subprocess.Popen[bytes], pipe: IO[bytes]) -> bool:
        """Hand over blocks until the service ends (True) or the process has died (False)."""
        try:
            while True:
                try:
                    block = self._queue.get(timeout=ALIVE_SECONDS)
                except queue.Empty:
                    if process.poll() is None:
                        continue
                    return self._stopping.is_set()
                if block is None:
                    return True
                write_frame(pipe, *pack_block(block))
        except OSError:
            return self._stopping.is_set()

    def _spawn(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", "ledger.log.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._heard_at = time.monotonic()
        self._process = process
        if process.stdin is None or process.stdout is None or self._task is None:
            raise RuntimeError("the sealer has no pipe")
        with suppress(OSError, AttributeError):  # a whole block in the pipe at once, where the system can
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        listener = threading.Thread(target=self._listen, args=(process.stdout,), name="log status", daemon=True)
        listener.start()
        try:
            write_frame(process.stdin, json.dumps(asdict(self._task)).encode())
        except OSError as error:
            log.warning("the log's sealer did not start: %s", error)
        return process

    def _listen(self, pipe: IO[bytes]) -> None:
        """Status lines of the sealer's process."""
        beats: int | None = None
        with pipe:
            for line in pipe:
                status: dict[str, Any] = json.loads(line)
                if status.get("beats") != beats:  # other lines come from its threads that talk to witnesses
                    beats, self._heard_at = status.get("beats"), time.monotonic()
                self.failure = status["failure"]
                if status["block"] > self._sealed_block:
                    self._sealed_block = status["block"]
                    self._restarts = 0


# --- frames ----------------------------------------------------------------------------------------------------------


def write_frame(pipe: IO[bytes], *parts: bytes) -> None:
    pipe.write(struct.pack(">I", sum(len(part) for part in parts)))
    for part in parts:
        pipe.write(part)
    pipe.flush()


def read_frame(pipe: IO[bytes]) -> bytes | None:
    """None at the end of the stream, also where it ends inside a frame. Raises ValueError for an absurd length."""
    head = pipe.read(4)
    if len(head) < 4:
        return None
    (length,) = struct.unpack(">I", head)
    if length > FRAME_BYTES_MAX:
        raise ValueError("a frame is too long")
    payload = pipe.read(length)
    return payload if len(payload) == length else None


def pack_block(block: CommittedBlock) -> tuple[bytes, bytes, bytes]:
    """Header (integers of 8 bytes, then 5 digests of 32), records, evidence items (seq, id, kind, length, body)."""
    header = block.header
    integers = _INTEGERS.pack(*(getattr(header, name) for name in _INTEGER_FIELDS))
    digests = b"".join(getattr(header, name) for name in _DIGESTS)
    items = b"".join(
        _ITEM.pack(item.seq, item.transfer_id, item.kind, len(item.body)) + item.body for item in block.evidence
    )
    return integers + digests, block.transfers.tobytes(), items


def unpack_block(payload: bytes) -> CommittedBlock:
    integers = _INTEGERS.unpack_from(payload)
    offset = _INTEGERS.size
    values: dict[str, Any] = dict(zip(_INTEGER_FIELDS, integers, strict=True))
    for name in _DIGESTS:
        values[name] = payload[offset : offset + 32]
        offset += 32
    header = BlockHeader(**values)
    transfers = np.frombuffer(payload, JOURNAL, header.transfer_count, offset)
    offset += transfers.nbytes
    evidence: list[Evidence] = []
    while offset < len(payload):
        seq, transfer_id, kind, length = _ITEM.unpack_from(payload, offset)
        offset += _ITEM.size
        evidence.append(Evidence(seq, transfer_id, kind, payload[offset : offset + length]))
        offset += length
    return CommittedBlock(header, transfers, evidence)

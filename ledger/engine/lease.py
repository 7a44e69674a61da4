"""One writer among several ledgers on one database: taken, renewed, lost, released; and how far the clocks differ.

Safety does not rest here: every block's transaction compares the lease's epoch and fails for a deposed writer
(`ledger.store.journal`). This decides who tries, and when:

1. The holder renews the lease every RENEW_SECONDS, idle or busy, in a thread and on a connection of its own.
2. A standby looks every LOOK_SECONDS. It takes over when the lease was released by a clean stop; when the holder was a
   process of this very machine that is no more; or when it has itself seen the lease unchanged for `seconds`, by a
   clock that nobody can set. The database's clock has no say: a step of it would depose a writer that is heard.
3. Before it does, it ends all sessions of the old writer, so that a transaction of a stopped process blocks nobody.
4. A holder that was stopped and goes on finds another's name in the row: it has lost. Until it has looked, it
   neither writes (the fence) nor answers reads from memory (`confirm`): what it remembers may be history.

Each renewal brings the database's time. The sequencer books by its own clock only while both agree (`clock_error`).
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from uuid import uuid4

import psycopg
from sqlalchemy.exc import SQLAlchemyError

from kernel.database import CheckedConnection, Database, OutcomeUnknown
from kernel.postgres import EmbeddedPostgresError
from ledger.store import leases

LEASE_SECONDS = 5.0
"""Seen unchanged for so long, it goes to whoever waits. The bar is a takeover within 10 s, recovery included."""
RENEW_SECONDS = 1.0
LOOK_SECONDS = 0.25
CERTAIN_SHARE = 0.8
"""Of `seconds`, counted from before the renewal was sent: so long nobody else can have taken the lease, even if the
two machines' clocks run at somewhat different speeds."""
CONFIRM_SECONDS_MAX = 2.0
_TROUBLE = (psycopg.Error, SQLAlchemyError, OutcomeUnknown)

log = logging.getLogger("jiaozi.ledger.lease")


class Lease:
    """Thread-safe. `take` starts the thread; `lost` is called in it, once, if another becomes the holder."""

    def __init__(
        self,
        database: Database,
        *,
        node: str,
        lost: Callable[[str], None],
        seconds: float = LEASE_SECONDS,
        revive: Callable[[], object] | None = None,
    ) -> None:
        self._database = database
        self._lost = lost
        self._seconds = seconds
        self._revive = revive
        token = str(uuid4())
        self.holder = f"{node} {token} {_process_mark()}"
        """Unique to one process's time as the writer."""
        self.session_name = f"{leases.WRITER} {token}"
        """The application name that a session that writes blocks must have."""
        self.standing_by: Future[str] = Future()
        """The holder's name, once it is known that this one must wait."""
        self._taken: Future[int] = Future()
        self._stopping = threading.Event()
        self._release = False
        self._changed = threading.Condition()
        self._hurry = False
        self._certain_until = 0.0
        self._times = (0, 0.0)
        """The database's time in microseconds, and this machine's when it was read."""
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def take(self) -> Future[int]:
        """Ask for the lease; the future is its epoch, when it is this process's turn. Cancelled by `stop`."""
        self._thread.start()
        return self._taken

    def stop(self, *, release: bool) -> None:
        """End the thread. `release`: everything is written, another may begin at once."""
        self._release = release
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def confirm(self) -> bool:
        """Was this the holder at some moment since the call began? Mostly known without asking the database."""
        if _now() < self._certain_until:
            return True
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._stopping.is_set() or _now() < self._certain_until, CONFIRM_SECONDS_MAX)
            return _now() < self._certain_until

    def clock_error(self, now: int) -> int:
        """How far a clock's `now` is ahead of the database's, in microseconds."""
        database_time, read_at = self._times
        return now - database_time - int((_now() - read_at) * 1e6)

    # --- the thread

    def _run(self) -> None:
        watch = _Watch()
        pause = LOOK_SECONDS
        while not self._stopping.is_set():
            try:
                with self._database.raw(isolation="READ COMMITTED") as connection:
                    leases.prepare(connection)
                    self._work(connection, watch)
                    return
            except _TROUBLE as error:
                log.info("the lease waits for the database: %s", (str(error).splitlines() or [type(error).__name__])[0])
            self._sleep(pause)
            if not self._taken.done():  # as the writer, the sequencer revives it
                self._try_to_revive()
        self._taken.cancel()

    def _try_to_revive(self) -> None:
        if self._revive is not None:
            try:
                self._revive()
            except (EmbeddedPostgresError, OSError, subprocess.SubprocessError) as error:  # not yet; we come back
                log.warning("the embedded server does not start: %s", error)

    def _work(self, connection: CheckedConnection, watch: _Watch) -> None:
        """Until stopped or lost. Raises what the connection raises; then it is called again with another."""
        while not self._taken.done():
            if self._stopping.is_set():
                self._taken.cancel()
                return
            epoch = self._try_to_take(connection, watch)
            if epoch is not None and self._renew(connection):
                self._taken.set_result(epoch)
                break
            self._sleep(LOOK_SECONDS)
        while not self._stopping.is_set():
            if not self._renew(connection):
                self._certain_until = 0.0
                held = leases.look(connection)
                name = _name_of(held.holder) if held is not None else ""
                self._lost(f"the lease went to {name or 'another ledger'}")
                return
            self._sleep(RENEW_SECONDS)
        if self._release:
            leases.release(connection, holder=self.holder)

    def _try_to_take(self, connection: CheckedConnection, watch: _Watch) -> int | None:
        held = leases.look(connection)
        # Its own name: it took the lease, and the answer was lost.
        if held is not None and held.holder not in (leases.NOBODY, self.holder):
            if not (watch.unchanged_for(held) >= self._seconds or _is_dead(held.holder)):
                if not self.standing_by.done():
                    log.info("standing by: %s is the writer", _name_of(held.holder))
                    self.standing_by.set_result(_name_of(held.holder))
                return None
            log.warning("taking over from %s", _name_of(held.holder))
        leases.end_other_writers(connection, own=self.session_name)
        try:
            return leases.take(connection, holder=self.holder, before=held)
        except psycopg.errors.LockNotAvailable:
            return None

    def _renew(self, connection: CheckedConnection) -> bool:
        began = _now()
        database_time = leases.renew(connection, holder=self.holder)
        if database_time is None:
            return False
        with self._changed:
            self._times = (database_time, (began + _now()) / 2)
            self._certain_until = began + self._seconds * CERTAIN_SHARE
            self._hurry = False
            self._changed.notify_all()
        return True

    def _sleep(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping.is_set() or self._hurry, seconds)


class _Watch:
    """How long the lease has been seen unchanged, by this machine's clock."""

    def __init__(self) -> None:
        self._seen: tuple[object, ...] | None = None
        self._since = 0.0

    def unchanged_for(self, held: leases.Held) -> float:
        seen = (held.holder, held.renewed_at)
        if seen != self._seen:
            self._seen, self._since = seen, _now()
        return _now() - self._since


def _now() -> float:
    """Seconds that also run while the machine sleeps, and that nobody can set."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


def _name_of(holder: str) -> str:
    return holder.partition(" ")[0]


def _machine() -> str:
    """This boot of this machine, and the process namespace: within it, a process is known by pid and start. "" if it
    cannot be told (not Linux)."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:16]
    except OSError:
        return ""


def _process_mark() -> str:
    machine, pid = _machine(), os.getpid()
    found = _process(pid) if machine else None
    return f"{machine}:{pid}:{found[1]}" if found is not None else "?"


def _is_dead(holder: str) -> bool:
    """Is it certain that the holder's process is no more? Only a process of this machine can be known to be."""
    machine, _, process = holder.rpartition(" ")[2].partition(":")
    pid, _, started = process.partition(":")
    if not machine or machine != _machine() or not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)  # only asks; a hidden /proc (hidepid) does not answer
    except ProcessLookupError:
        return True
    except OSError:
        return False
    found = _process(int(pid))
    return found is not None and (found[0] in "ZX" or found[1] != started)


def _process(pid: int) -> tuple[str, str] | None:
    """State and start of a process (proc_pid_stat(5), 3 and 22; ticks since boot, which no clock's setting moves)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return None

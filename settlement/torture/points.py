"""Where the protocol can be hurt: each process under test stops at its points until the switchboard lets it go on.

A point's name says the step and the moment: `decide:commit` (all statements done, COMMIT not sent), `decide:sent`
(COMMIT sent, its answer not read), `prepare@cny-ledger:before`. The n-th time that a name is reached counts from 1
since the switchboard was armed. On the wire: one line each way, the point's name, then `go` or `split` (report the
moment inside a COMMIT too, which costs an extra step).
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

LINE_BYTES_MAX = 512
GATE = "received:before"
"""Where an engine waits while the switchboard's gate is closed: it takes no new settlements meanwhile."""
HALTED = "engine:halted"
"""The engine has found an invariant broken and stops for good."""
GATE_SECONDS_MAX = 30.0


class Reporter:
    """The process's side. Thread-safe: each thread has a connection of its own. Without a switchboard it ends."""

    def __init__(self, path: Path | str, name: str) -> None:
        """`name` is this process's, one word."""
        self._path = str(path)
        self._name = name
        self._local = threading.local()

    def reached(self, point: str) -> str:
        """Report, wait, and return the switchboard's word."""
        try:
            file = self._connection()
            file.sendall(f"{self._name} {os.getpid()} {point}\n".encode())
            answer = file.recv(LINE_BYTES_MAX)
        except OSError:
            answer = b""
        if not answer:
            os._exit(3)  # the campaign is over: nobody would end this process otherwise
        return answer.decode().strip()

    def _connection(self) -> socket.socket:
        found: socket.socket | None = getattr(self._local, "connection", None)
        if found is None:
            found = socket.socket(socket.AF_UNIX)
            found.connect(self._path)
            self._local.connection = found
        return found


@dataclass(frozen=True, slots=True)
class Hit:
    """A point that somebody has reached: `engine` is the process's name, "" for a message on its way."""

    engine: str
    pid: int
    point: str
    nth: int


Strike = Callable[[Hit], str | None]
"""Does the harm; of a message it returns what becomes of it (see `proxy`)."""


@dataclass
class Plan:
    """Harm to be done once: at the nth time that the point is reached, by that engine if it names one."""

    point: str
    nth: int
    strike: Strike
    engine: str | None = None
    is_taken: bool = False
    """Somebody has reached the point; the harm is being done."""
    hit: threading.Event = field(default_factory=threading.Event)
    """Set when the harm is done."""


class Switchboard:
    """Listens until closed; knows what was reached since `arm`, in order."""

    def __init__(self, path: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(64)
        self.path = path
        self._lock = threading.Lock()
        self._plans: list[Plan] = []
        self._counts: Counter[tuple[str, str]] = Counter()
        self.trace: list[Hit] = []
        self.gate = threading.Event()
        self.gate.set()
        threading.Thread(target=self._accept, name="torture-switchboard", daemon=True).start()

    def arm(self, *plans: Plan) -> None:
        """Forget what was reached, and wait for these."""
        with self._lock:
            self._plans = list(plans)
            self._counts.clear()
            self.trace = []

    def disarm(self) -> list[Hit]:
        """No more harm; what was reached since `arm`."""
        with self._lock:
            self._plans = []
            return list(self.trace)

    def seen(self, engine: str, word: str) -> bool:
        """Has this engine reached a point whose name has the word, since `arm`?"""
        with self._lock:
            return any(hit.engine == engine and word in hit.point for hit in self.trace)

    def number_of(self, engine: str, point: str) -> int:
        """How often this engine has reached the point since `arm`."""
        with self._lock:
            return self._counts[engine, point]

    def reached(self, engine: str, pid: int, point: str) -> str | None:
        """What the strike says, if there is one. Messages are reported by their proxy with `engine` ""."""
        with self._lock:
            self._counts[engine, point] += 1
            hit = Hit(engine, pid, point, self._counts[engine, point])
            self.trace.append(hit)
            found = next(
                (
                    plan
                    for plan in self._plans
                    if plan.point == point
                    and plan.nth == hit.nth
                    and plan.engine in (None, engine)
                    and not plan.hit.is_set()
                ),
                None,
            )
            if found is not None:
                self._plans.remove(found)
                found.is_taken = True
        if found is None:
            return None
        try:
            return found.strike(hit)
        finally:
            found.hit.set()

    def wants_inside(self, engine: str, point: str) -> bool:
        """Does a plan wait for the moment inside this COMMIT?"""
        inside = point.removesuffix(":commit") + ":sent"
        with self._lock:
            return any(plan.point == inside and plan.engine in (None, engine) for plan in self._plans)

    def close(self) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                engine, pid, point = line.decode().split()
                if point == GATE:
                    self.gate.wait(GATE_SECONDS_MAX)
                inside = point.endswith(":commit") and self.wants_inside(engine, point)
                self.reached(engine, int(pid), point)
                connection.sendall(b"split\n" if inside else b"go\n")

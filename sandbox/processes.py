"""The services as separate operating-system processes: started, awaited, stopped, killed, and found again.

A process is known by its pid file (pid and start time, so that a pid that went to another program is not believed) and,
should the starter have died before it wrote that file, by a mark in its environment. Nothing that is not marked as this
sandbox's is ever signalled.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from sandbox.topology import Home

MARK = "JIAOZI_SANDBOX_OF"
"""Environment variable of every process we start: the sandbox's directory."""
START_SECONDS_MAX = 60.0
"""Nine interpreters load on perhaps one slow core; a start takes two seconds on an idle machine."""
STOP_SECONDS_MAX = 15.0
"""A service finishes what is in flight within 10 s (kernel.limits.SHUTDOWN_SECONDS_MAX)."""
KILL_SECONDS_MAX = 5.0
STOP_ROUNDS_MAX = 10
"""A second round is rare, a third has not been seen: nobody is left who could start processes."""
LOG_TAIL_LINES = 15
_POLL_SECONDS = 0.05


class ServiceFailed(RuntimeError):
    """A service did not start, or died; the message carries the end of its log."""


class SandboxBusy(RuntimeError):
    """Another `jiaozi` command is at work in this directory."""


@dataclass(frozen=True, slots=True)
class Service:
    """One process: `python -m module command` with settings in its environment."""

    name: str
    module: str
    url: str
    settings: Mapping[str, str]
    log_file: Path
    pid_file: Path
    command: str = "serve"


@contextmanager
def locked(home: Home) -> Iterator[None]:
    """One command at a time changes a sandbox. The kernel lets go when the holder dies, however it dies.

    Raises: SandboxBusy.
    """
    descriptor = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise SandboxBusy(
                f"another jiaozi command (pid {holder}) is at work on {home.path}: wait for it, or use another --dir"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


class Processes:
    """The running services of one sandbox."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        """Those this process started: they must be reaped."""

    # --- find

    def find(self, service: Service) -> psutil.Process | None:
        """The live process of a service, whoever started it."""
        return self._read_pid_file(service.pid_file)

    def pids(self) -> dict[str, int]:
        """Service name -> pid, of all that live."""
        found = {path.stem: self._read_pid_file(path) for path in sorted(self._home.run.glob("*.pid"))}
        return {name: process.pid for name, process in found.items() if process is not None}

    def _read_pid_file(self, path: Path) -> psutil.Process | None:
        try:
            pid, started = path.read_text(encoding="ascii").split()
            process = psutil.Process(int(pid))
            # The start time is kept as text, exactly as it was read: the same number or another process.
            return process if str(process.create_time()) == started and self._is_alive(process) else None
        except (OSError, ValueError, psutil.Error):
            return None

    def _is_alive(self, process: psutil.Process) -> bool:
        child = self._children.get(process.pid)
        if child is not None and child.poll() is not None:
            return False
        try:
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def _marked(self) -> list[psutil.Process]:
        """Every live process that carries this sandbox's mark, pid file or not."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == str(self._home.path) and self._is_alive(process):
                    found.append(process)
        return found

    # --- start

    def start(self, service: Service) -> bool:
        """Start a service unless it runs already. False if it did. Does not wait: see `await_healthy`."""
        if self.find(service) is not None:
            return False
        # Settings of the caller's shell must not leak into the services.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JIAOZI_")}
        environment |= {**service.settings, MARK: str(self._home.path), "PYTHONUNBUFFERED": "1"}
        with service.log_file.open("ab") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", service.module, service.command],
                cwd=self._home.path,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for the starter, who stops them in order
            )
        self._children[child.pid] = child
        with suppress(psutil.Error):
            service.pid_file.write_text(f"{child.pid} {psutil.Process(child.pid).create_time()}\n", encoding="ascii")
        return True

    def await_healthy(self, services: Sequence[Service], *, seconds_max: float = START_SECONDS_MAX) -> None:
        """Return when all answer /healthz. Raises: ServiceFailed when one dies or the time is over."""
        deadline = time.monotonic() + seconds_max
        waiting = list(services)
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while waiting:
                for service in list(waiting):
                    if self.find(service) is None:
                        raise ServiceFailed(f"{service.name} died while starting.\n{log_tail(service.log_file)}")
                    with suppress(httpx.HTTPError):
                        if client.get(f"{service.url}/healthz").is_success:
                            waiting.remove(service)
                if waiting and time.monotonic() > deadline:
                    late = waiting[0]
                    raise ServiceFailed(
                        f"{late.name} did not answer within {seconds_max:.0f} s.\n{log_tail(late.log_file)}"
                    )
                if waiting:
                    time.sleep(_POLL_SECONDS)

    # --- end

    def kill(self, service: Service) -> int | None:
        """SIGKILL, as a power cut would: nothing is flushed, nobody is told. Returns the pid that was killed."""
        process = self.find(service)
        if process is None:
            return None
        with suppress(psutil.NoSuchProcess):
            process.kill()
        self._wait([process], KILL_SECONDS_MAX)
        service.pid_file.unlink(missing_ok=True)
        return int(process.pid)

    @contextmanager
    def held_still(self, service: Service) -> Iterator[None]:
        """SIGSTOP to a service's process, SIGCONT at the end if it still lives: what it would do waits meanwhile."""
        process = self.find(service)
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            if process is not None:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def stop_all(self) -> list[int]:
        """SIGTERM to every process of this sandbox, SIGKILL to those that do not go. Returns the pids stopped.

        Looks again until it finds none: a service that was told to stop while it was starting may have brought forth
        a process of its own (a ledger has two) after the list was made, and dies without waiting for it.

        Raises: ServiceFailed.
        """
        stopped: set[int] = set()
        for _ in range(STOP_ROUNDS_MAX):
            processes = self._living()
            if not processes:
                for path in self._home.run.glob("*.pid"):
                    path.unlink(missing_ok=True)
                return sorted(stopped)
            stopped.update(process.pid for process in processes)
            self._stop(processes)
        raise ServiceFailed(f"new processes of {self._home.path} keep appearing: who starts them?")

    def _living(self) -> list[psutil.Process]:
        """Every live process of this sandbox, by its mark or by its pid file."""
        by_pid = {process.pid: process for process in self._marked()}
        for path in self._home.run.glob("*.pid"):
            process = self._read_pid_file(path)
            if process is not None:
                by_pid.setdefault(process.pid, process)
        return list(by_pid.values())

    def _stop(self, processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.terminate()
        for process in self._wait(processes, STOP_SECONDS_MAX):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        left = self._wait(processes, KILL_SECONDS_MAX)
        if left:
            raise ServiceFailed(f"process {left[0].pid} could not be stopped")

    def _wait(self, processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
        """Those still alive after `seconds`."""
        deadline = time.monotonic() + seconds
        left = [process for process in processes if self._is_alive(process)]
        while left and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
            left = [process for process in left if self._is_alive(process)]
        return left


def log_tail(path: Path, lines: int = LOG_TAIL_LINES) -> str:
    try:
        found = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
    except OSError:
        found = []
    return "\n".join([f"The end of {path}:", *(found or ["(empty)"])])

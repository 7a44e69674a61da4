"""`jiaozi` end to end: the demo, and the scheme's life around it.

Goal: the main job holds on real processes; `up` mends, `down` leaves no process behind whoever died, `reset` no file.
Method: the command itself, in processes of its own, on a sandbox that this file's tests share and each brings up.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from sandbox.processes import MARK
from sandbox.scheme import Scheme
from sandbox.topology import BRIDGE_SERVICE, Home, free_ports, service_names

# Half a minute on an idle machine; the other tests' processes share its cores.
pytestmark = [pytest.mark.extended, pytest.mark.xdist_group("sandbox"), pytest.mark.timeout(300)]
COMMAND_SECONDS_MAX = 240
COMMAND = [sys.executable, "-m", "sandbox"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    # Not pytest's directory: as root, PostgreSQL runs as another user, who cannot enter that.
    directory = Path("/tmp" if os.geteuid() == 0 else tmp_path_factory.mktemp("sandbox"))
    home = Home((directory / f"jiaozi-sandbox-test-{os.getpid()}").resolve())
    home.prepare()
    # Ports that no other sandbox on this machine would choose.
    home.write_state({**home.read_state(), "ports": free_ports(service_names())})
    yield home
    if home.path.exists():
        jiaozi("reset", home, "--yes")


def jiaozi(command: str, home: Home, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, command, "--dir", str(home.path), *options],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )


def processes_of(home: Home) -> list[int]:
    """Every live process of a sandbox: by the mark, and the database server by its cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            is_marked = process.environ().get(MARK) == str(home.path)
            is_server = str(home.path / "postgres") in " ".join(process.cmdline())
            if (is_marked or is_server) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_demo_holds_from_issue_to_proof_through_two_crashes(home: Home) -> None:
    done = jiaozi("demo", home, "--instructions", "400", "--keep")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checks held" in done.stdout
    assert "✗" not in done.stdout
    assert done.stdout.count("SIGKILL") == 2
    assert len(list(home.files.iterdir())) >= 6
    for key in home.keys.iterdir():
        assert key.stat().st_mode & 0o077 == 0


def test_up_mends_what_died_and_leaves_the_rest_alone(home: Home) -> None:
    assert jiaozi("up", home).returncode == 0
    scheme = Scheme(home)
    before = scheme.processes.pids()
    assert set(before) == set(service_names())
    os.kill(before[BRIDGE_SERVICE], signal.SIGKILL)
    done = jiaozi("up", home)
    assert done.returncode == 0, done.stderr
    after = scheme.processes.pids()
    assert {name for name in after if after[name] != before[name]} == {BRIDGE_SERVICE}
    assert "up already" in jiaozi("up", home).stdout
    assert jiaozi("status", home).returncode == 0


def test_docs_of_every_service_are_served(home: Home) -> None:
    assert jiaozi("up", home).returncode == 0
    for service in Scheme(home).services:
        answer = httpx.get(f"{service.url}/docs", trust_env=False)
        assert answer.status_code == 200
        assert "cdn" not in answer.text


def test_down_leaves_no_process_behind(home: Home) -> None:
    assert jiaozi("up", home).returncode == 0
    assert len(processes_of(home)) > len(service_names())
    done = jiaozi("down", home)
    assert done.returncode == 0, done.stderr
    assert processes_of(home) == []
    assert "Nothing was running" in jiaozi("down", home).stdout
    assert jiaozi("status", home).returncode == 1


def test_down_cleans_up_after_a_starter_that_was_killed(home: Home) -> None:
    starter = subprocess.Popen([*COMMAND, "up", "--dir", str(home.path)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(Scheme(home).processes.pids()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    starter.send_signal(signal.SIGSTOP)
    busy = jiaozi("down", home)
    assert busy.returncode == 1
    assert "another jiaozi command" in busy.stderr
    starter.kill()
    starter.wait()
    assert processes_of(home) != []
    assert jiaozi("down", home).returncode == 0
    assert processes_of(home) == []


def test_reset_says_what_it_removes_and_removes_it(home: Home) -> None:
    asked = subprocess.run(
        [*COMMAND, "reset", "--dir", str(home.path)], input="n\n", capture_output=True, text=True, check=False
    )
    assert asked.returncode == 1
    assert "postgres" in asked.stdout
    assert home.is_sandbox()
    assert jiaozi("reset", home, "--yes").returncode == 0
    assert not home.path.exists()

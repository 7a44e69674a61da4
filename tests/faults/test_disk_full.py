"""R5. Goal: a full disk refuses writes with a clear, transient problem; reads go on; when there is room again the
ledger goes on by itself, and nothing that was acknowledged is missing.

Method: a real PostgreSQL on a small file system of its own (tmpfs, which needs root), filled up by a file beside it:
once the tables' volume, with the write-ahead log elsewhere, and once the volume of both, where PostgreSQL panics.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from kernel.client import ProblemResponse
from kernel.postgres import EmbeddedPostgres, EmbeddedPostgresError
from ledger.verifier import verify_database
from tests.faults.campaign import BANK, Replay
from tests.faults.load import BinaryClient, Notes
from tests.faults.processes import LedgerProcess, cannot, wait_for
from tests.ledger_world import LedgerWorld, make_world

VOLUME_MB = 400
ROOM_BYTES = 6 << 20
"""Left free when the test fills the volume: some batches still fit."""


class Volume:
    """A small file system with a PostgreSQL on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._ballast = directory / "ballast"
        self.server = EmbeddedPostgres(directory / "postgres", settings={"shared_buffers": "32MB"})

    def fill(self) -> None:
        free = os.statvfs(self.directory)
        with self._ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - ROOM_BYTES)

    def free(self) -> None:
        self._ballast.unlink()

    def move_wal(self, elsewhere: Path) -> None:
        """The write-ahead log on another disk, as it should be."""
        self.server.stop()
        wal = self.server.cluster_dir / "pg_wal"
        subprocess.run(["cp", "-a", str(wal), str(elsewhere / "pg_wal")], check=True)
        subprocess.run(["rm", "-r", str(wal)], check=True)
        wal.symlink_to(elsewhere / "pg_wal")
        self.server.start()


@pytest.fixture
def volume(server_dir: Path) -> Iterator[Volume]:
    place = server_dir / "volume"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={VOLUME_MB}m,mode=0755", "jiaozi-test", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        cannot(f"a small file system cannot be mounted here (needs root): {mounted.stderr.strip()}")
    made = Volume(place)
    try:
        made.server.start()
        made.server.ensure_database("ledger")
        yield made
    finally:
        with suppress(FileNotFoundError):
            made.free()
        made.server.stop(mode="immediate")
        subprocess.run(["umount", "-l", str(place)], check=True)


def load_of(world: LedgerWorld) -> BinaryClient:
    world.register(BANK)
    vaults = [world.open_vault(BANK) for _ in range(4)]
    world.issue(vaults[0], 10**9)
    load = BinaryClient(world, Notes(), BANK, threading.Event(), vaults=vaults, size=2000, seed=9)
    load.turn_to(world, timeout_seconds=3.0)
    load.start()
    return load


def until_refused(load: BinaryClient) -> None:
    wait_for(lambda: load.notes.counts["problem service-unavailable"] > 0, 60, "the disk did not fill up")


def check(volume: Volume, load: BinaryClient) -> None:
    """With room again: work gets through, and everything acknowledged before, during and after is there once."""
    seen = load.notes.answers
    wait_for(lambda: load.notes.answers >= seen + 3, 40, "the ledger did not resume")
    load.stop_event.set()
    load.join(30)
    assert not load.notes.errors
    replay = Replay(volume.server, load.notes)
    replay.follow()
    replay.finish()
    assert replay.acknowledged == load.notes.counts["booked in bulk"] > 0
    report = verify_database(volume.server.url("ledger"))
    assert (report.findings, report.head_seq) == ([], replay.seq)


@pytest.mark.extended
def test_full_data_disk_refuses_writes_answers_reads_and_resumes(
    volume: Volume, server_dir: Path, tmp_path: Path
) -> None:
    volume.move_wal(server_dir)
    world = make_world(volume.server.url("ledger"), tmp_path)
    with LedgerProcess(world, tmp_path / "ledger.log") as ledger:
        ledger.await_health(200)
        load = load_of(world)
        wait_for(lambda: load.notes.answers >= 2, 20, "no work got through")
        volume.fill()
        until_refused(load)
        began, booked, refusals = time.monotonic(), [], set()
        while time.monotonic() - began < 6.5:  # longer than the lease: it is renewed all the same
            with world.anonymous() as client:
                booked.append(client.supply().as_of_seq)
                assert client.block().number > 0
            with world.client(BANK) as client:
                try:
                    client.transfer(world.terms("payment", load.vaults[0].item(), load.vaults[1].item(), 1))
                except ProblemResponse as problem:
                    refusals.add((problem.status, problem.transient))
            time.sleep(0.2)
        assert booked == sorted(booked)
        assert refusals == {(503, True)}
        assert httpx.get(f"{world.url}/healthz", trust_env=False).status_code == 200, "it needs room, not a restart"
        volume.free()
        check(volume, load)
        assert "Traceback" not in (tmp_path / "ledger.log").read_text()


@pytest.mark.extended
def test_full_wal_disk_stops_the_database_and_loses_nothing(volume: Volume, tmp_path: Path) -> None:
    world = make_world(volume.server.url("ledger"), tmp_path)
    with LedgerProcess(world, tmp_path / "ledger.log") as ledger:
        ledger.await_health(200)
        load = load_of(world)
        wait_for(lambda: load.notes.answers >= 2, 20, "no work got through")
        volume.fill()
        wait_for(lambda: not volume.server.is_running(), 60, "the disk did not fill up")
        with world.client(BANK) as client, pytest.raises(ProblemResponse) as refused:
            client.transfer(world.terms("payment", load.vaults[0].item(), load.vaults[1].item(), 1))
        assert (refused.value.status, refused.value.transient) == (503, True)
        volume.free()
        restart(volume.server)
        check(volume, load)
        assert ledger.await_health(200) == "ok"


def restart(server: EmbeddedPostgres) -> None:
    """As a supervisor does, until it stays up."""

    def start() -> bool:
        with suppress(EmbeddedPostgresError):
            server.start()
        return server.is_running()

    wait_for(start, 30, "PostgreSQL did not come back")

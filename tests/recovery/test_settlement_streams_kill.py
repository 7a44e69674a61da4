"""Goal: a stream survives SIGKILL at any moment and needs a bounded memory, whatever the size of its file.

Method: a process of its own reads and books a stream over a real database and is killed at moments that a seed chooses,
again and again, until it is done; the outcome is counted and added up. For memory, a process of its own does a whole
file, and tells its peak.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa

from settlement.usecases import streams
from tests.bench.messages import make_file, minor_of, receive
from tests.messages_world import World

MEGABYTES_MAX = 300
_SPAWN = multiprocessing.get_context("spawn")


def work(url: str, files: str, stream: str, lines: int) -> None:
    streams.STAGE_LINES = streams.BATCH_LINES = lines
    world = World(url, Path(files))
    streams.work_on(world.context, UUID(stream))
    world.close()


def totals(world: World) -> tuple[int, int, int]:
    """Settlements, different UETRs, and what all first legs add up to."""
    amounts = "SELECT sum(amount_minor) FROM leg WHERE currency = 'CNY'"
    query = f"SELECT count(*), count(DISTINCT uetr), ({amounts}) FROM settlement"
    with world.database.transaction(isolation="READ COMMITTED") as connection:
        count, uetrs, amount = connection.execute(sa.text(query)).one()
    return count, uetrs, int(amount or 0)


@pytest.mark.medium
def test_killed_again_and_again_the_file_is_booked_once(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    file = tmp_path / "file.xml"
    make_file(file, 6_000)
    world = World(fresh_database("settlement"), tmp_path)
    stream = receive(world, file)
    seed = 20261102
    moments = random.Random(seed)
    kills = 0
    deadline = time.monotonic() + 50
    while world.row(stream).ended_at is None and time.monotonic() < deadline:
        before = world.row(stream)
        process = _SPAWN.Process(target=work, args=(world.url, str(tmp_path), str(stream), 200))
        process.start()
        if kills < 8:
            # Once it has begun to write: then at any moment of its next steps.
            while process.is_alive() and (now := world.row(stream)) == before and now.ended_at is None:
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.08))
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
        process.join(60)
    row = world.row(stream)
    assert kills >= 5, f"seed {seed}: only {kills} kills"
    assert (row.state, row.booked_count, row.refused_count) == ("done", 6_000, 0)
    assert totals(world) == (6_000, 6_000, sum(minor_of(number) for number in range(1, 6_001)))
    assert world.counts()["stream_staged"] == 0
    world.close()


def peak_of(url: str, files: str, file: str) -> str:
    world = World(url, Path(files))
    stream = receive(world, Path(file))
    streams.work_on(world.context, stream)
    row = world.row(stream)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return json.dumps({"state": row.state, "booked": row.booked_count, "reason": row.reason, "peak_mb": peak_mb})


def streamed(url: str, directory: Path, instructions: int) -> dict[str, Any]:
    file = directory / "file.xml"
    with _SPAWN.Pool(1) as pool:
        pool.apply(make_file, (file, instructions))
    with _SPAWN.Pool(1) as pool:
        found: dict[str, Any] = json.loads(pool.apply(peak_of, (url, str(directory), str(file))))
    return found


@pytest.mark.medium
def test_twenty_thousand_instructions_take_bounded_memory(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    found = streamed(fresh_database("settlement"), tmp_path, 20_000)
    assert (found["state"], found["booked"]) == ("done", 20_000), found
    assert found["peak_mb"] < MEGABYTES_MAX


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux alone")
def test_a_million_instructions_take_no_more_memory(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    found = streamed(fresh_database("settlement"), tmp_path, 1_000_000)
    assert (found["state"], found["booked"]) == ("done", 1_000_000), found
    assert found["peak_mb"] < MEGABYTES_MAX

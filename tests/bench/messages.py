"""S3: a pacs.009 of 100,000 instructions, from the first byte handed over to the last settlement stored.

One process does all of it (what the service's threads do for a stream): takes the file part by part, syncs each to the
disk, checks the file's digest, reads and validates every instruction against the schema, stages, finds duplicates,
quotes, and stores settlements and legs in PostgreSQL with fsync on. Its peak memory is its own; the file is made by
another process. What was stored is counted and added up afterwards.

python -m tests.bench.messages [INSTRUCTIONS]
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import resource
import sys
import time
from contextlib import ExitStack
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psutil
import psycopg
from rich.console import Console

from kernel import migrate
from kernel.money import Money
from settlement.domain.instructions import Instruction
from settlement.domain.streams import PART_BYTES_MAX
from settlement.iso20022.pacs009 import stream_pacs009
from settlement.usecases.streams import put_part, work_on
from tests.bench.scene import Scene, machine, scene
from tests.messages_world import AED, BANK_A, BANK_B, CNY, World


def run_messages(stage: Scene, *, name: str = "bench_s3", instructions: int = 100_000) -> dict[str, Any]:
    """Figures of one run: seconds in all and by phase, instructions/s, peak memory in MB of the process that did it."""
    directory = stage.directory / name
    directory.mkdir(mode=0o755, exist_ok=True)
    file = directory / "pacs009.xml"
    _apart(make_file, file, instructions)
    stage.forget(name)
    stage.server.ensure_database(name)
    url = stage.server.url(name)
    migrate.upgrade("settlement", url, service_url=url)
    found: dict[str, Any] = json.loads(_apart(_stream_in, url, directory, file))
    with psycopg.connect(stage.server.conninfo(name)) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT uetr) FROM settlement").fetchone()
        legs = connection.execute("SELECT count(*), sum(amount_minor) FROM leg WHERE currency = 'CNY'").fetchone()
    amounts = sum(minor_of(number) for number in range(1, instructions + 1))
    if row != (instructions, instructions) or legs is None or (legs[0], int(legs[1])) != (instructions, amounts):
        raise RuntimeError(f"stored {row} settlements, {legs} legs of {instructions:,}")
    stage.forget(name)
    return {
        "instructions": instructions,
        "bytes": file.stat().st_size,
        "per_second": instructions / found["seconds"],
        **found,
    }


def minor_of(number: int) -> int:
    return 10_000 + number


def make_file(file: Path, instructions: int) -> None:
    items = [
        Instruction(
            f"I{number}",
            f"E2E-{number}",
            uuid4(),
            BANK_A,
            BANK_B,
            Money(minor_of(number), CNY),
            AED,
            None,
            date(2026, 11, 2),
        )
        for number in range(1, instructions + 1)
    ]
    with file.open("wb") as target:
        stream_pacs009(items, target, message_id=uuid4().hex, created_at=datetime.now(UTC))


def _stream_in(url: str, directory: Path, file: Path) -> str:
    world = World(url, directory)
    gc.collect()
    gc.freeze()  # as kernel.server does once a service has started
    process = psutil.Process()
    before_mb = process.memory_info().rss / 2**20
    began = time.perf_counter()
    stream = receive(world, file)
    received = time.perf_counter()
    work_on(world.context, stream)
    ended = time.perf_counter()
    row = world.row(stream)
    world.close()
    if (row.state, row.refused_count) != ("done", 0):
        raise RuntimeError(f"the stream is {row.state}: {row.refusal} {row.reason}; {row.refused_count} lines refused")
    return json.dumps(
        {
            "seconds": ended - began,
            "receive_seconds": received - began,
            "read_and_book_seconds": ended - received,
            "cpu_seconds": sum(process.cpu_times()[:2]),
            "rss_before_mb": before_mb,
            "rss_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
    )


def receive(world: World, file: Path) -> UUID:
    with file.open("rb") as source:
        digest = hashlib.file_digest(source, "sha256")
    row = world.open_digest(digest.digest(), file.stat().st_size)
    with file.open("rb") as source:
        offset = 0
        while part := source.read(PART_BYTES_MAX):
            put_part(world.context, row.id, offset=offset, content=part)
            offset += len(part)
    return row.id


def _apart(work: Any, *arguments: Any) -> Any:
    """The work's result, done in a fresh process, so that its memory is its own."""
    with ExitStack() as stack:
        pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(1))
        return pool.apply(work, arguments)


def main() -> None:
    instructions = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    console = Console(width=160)
    with scene() as stage:
        console.print(machine(), stage.durability())
        console.print(run_messages(stage, instructions=instructions))


if __name__ == "__main__":
    main()

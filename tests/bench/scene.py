"""What every benchmark needs: an embedded PostgreSQL with fsync on, real service processes, keys, and the machine."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import psycopg
from psycopg import sql

from kernel import ids, migrate
from kernel.postgres import EmbeddedPostgres, installation_dir
from ledger.client import LedgerClient
from ledger.contract import AccountKind, AccountOpening
from tests.ledger_world import LedgerWorld, make_world

BANK = "BENCHCNB"


@dataclass(frozen=True)
class Scene:
    directory: Path
    server: EmbeddedPostgres

    def pgbench(self, *, clients: int, seconds: int, scale: int = 10) -> float:
        """PostgreSQL's own TPC-B-like benchmark on this very server: transactions a second."""
        self.server.ensure_database("pgbench")
        program = str(installation_dir() / "bin" / "pgbench")
        base = ["-h", str(self.server.socket_dir), "-U", "jiaozi", "pgbench"]
        environment = {**os.environ, "LD_LIBRARY_PATH": str(installation_dir() / "lib")}
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "check": True, "env": environment}
        subprocess.run([program, "-i", "-q", "-s", str(scale), *base], **quiet)  # type: ignore[call-overload]
        run = subprocess.run(  # type: ignore[call-overload]
            [program, "-c", str(clients), "-j", "2", "-T", str(seconds), "-n", *base], **quiet, text=True
        )
        line = next(line for line in run.stdout.splitlines() if line.startswith("tps ="))
        return float(line.split()[2])

    def forget(self, database: str) -> None:
        """Drop what a row has booked: the next one begins with an empty disk cache and a quiet autovacuum."""
        with psycopg.connect(self.server.conninfo("postgres"), autocommit=True) as connection:
            for name in (database, f"{database}_wallet"):
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))
            connection.execute("CHECKPOINT")

    def durability(self) -> dict[str, str]:
        names = (
            "server_version",
            "fsync",
            "synchronous_commit",
            "full_page_writes",
            "wal_compression",
            "shared_buffers",
            "max_wal_size",
        )
        with psycopg.connect(self.server.conninfo("postgres")) as connection:
            return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in names}  # type: ignore[index]


@contextmanager
def scene() -> Iterator[Scene]:
    directory = Path(tempfile.mkdtemp(prefix="jiaozi-bench-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory / "postgres")
    try:
        server.start()
        yield Scene(directory, server)
    finally:
        server.stop("immediate")
        shutil.rmtree(directory, ignore_errors=True)


def machine() -> dict[str, object]:
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


@contextmanager
def service_process(
    module: str, prefix: str, settings: dict[str, str], url: str, log: Path, *, start_seconds_max: float = 60
) -> Iterator[psutil.Process]:
    """One service as its own process, until the block ends."""
    environment = {**os.environ, **{f"{prefix}{name.upper()}": value for name, value in settings.items()}}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, "serve"], env=environment, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + start_seconds_max
        while True:
            try:
                httpx.get(f"{url}/healthz", timeout=1).raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{module} did not start:\n{log.read_text()[-2000:]}") from None
                time.sleep(0.05)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


@contextmanager
def ledger_process(stage: Scene, name: str) -> Iterator[tuple[LedgerWorld, psutil.Process]]:
    """A ledger process with one registered intermediary."""
    stage.server.ensure_database(name)
    migrate.upgrade("ledger", stage.server.url(name))
    world = make_world(stage.server.url(name), stage.directory, ledger=name.replace("_", "-"))
    settings = {
        "port": str(world.settings.port),
        "database_url": str(world.settings.database_url),
        "data_dir": str(world.settings.data_dir),
        "genesis_path": str(world.settings.genesis_path),
    }
    log = stage.directory / f"{name}.log"
    with service_process("ledger", "JIAOZI_LEDGER_", settings, world.url, log) as process:
        world.register(BANK)
        yield world, process


def open_vaults(client: LedgerClient, count: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Account numbers of `count` new vaults."""
    numbers: list[int] = []
    while len(numbers) < count:
        size = min(4_000, count - len(numbers))
        openings = [AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT) for _ in range(size)]
        numbers.extend(result.account for result in client.open_accounts(openings) if result.account is not None)
    return np.array(numbers, np.int64)


def row(name: str, value: float, unit: str, ratios: dict[str, float], **more: object) -> None:
    """A row's result: one JSON object on its own line."""
    document = {"row": name, "value": round(value, 1), "unit": unit, "ratios": ratios, **more}
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()

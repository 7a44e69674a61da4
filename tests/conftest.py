"""Fixtures over one real PostgreSQL for the whole test session, with the product's own durability settings.

Its files are in memory where the machine has a file system for that (a database is made in 30 ms instead of a second).
What a test can tell about durability is the same: a killed server finds there what it wrote, and no test cuts the
power. Servers that tests of faults kill and fill are on the disk like the product's (`server_dir`).

The first process of a session (pytest-xdist's controller, or pytest itself) chooses the server's directory and stops
the server at the end; every worker calls `start()` and so shares it. A killed session leaves its server; the next
one stops it.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
import typer.main
import typer.testing
from psycopg import sql

from kernel import migrate
from kernel.postgres import EmbeddedPostgres, service_role
from tests import roles

SHARED_DIR = "JIAOZI_TEST_POSTGRES_DIR"
_PREFIX = "jiaozi-test-"
_MEMORY = Path("/dev/shm")
_MEMORY_BYTES_MIN = 2 * 1024**3
_ON_DISK = ("faults", "recovery")
_SHARED_SETTINGS = {"max_wal_size": "256MB", "shared_buffers": "128MB"}
"""Hundreds of small databases, whose log would otherwise fill the memory between two checkpoints."""
_DROPPED_TOGETHER = 12
"""A database whose last connection was closed a moment ago takes a tenth of a second to drop, a while later none."""
_LONG_FILES = (
    "test_settlement_simulation.py",
    "test_sandbox_demo.py",
    "test_transparency_thirdparty.py",
    "test_settlement_torture.py",
    "test_settlement_evm.py",
    "test_settlement_islands.py",
    "test_models.py",
    "test_settlement_real_legs.py",
    "test_wallet_sagas_kill.py",
    "test_wallet_schemathesis.py",
    "test_transparency_log.py",
    "test_standby.py",
    "test_closings.py",
    "test_tamper_campaign.py",
    "test_wallet_two_institutions.py",
    "test_ledger_core.py",
    "test_settlement_engine.py",
    "test_ledger_kill.py",
    "test_disk_full.py",
    "test_embedded_postgres.py",
    "test_wallet_bulk.py",
    "test_verifier.py",
    "test_export.py",
    "test_settlement_kill.py",
    "test_linearizability.py",
    "test_clock.py",
    "test_lease.py",
    "test_wallet_offline.py",
    "test_transparency_witness.py",
    "test_wallet_programs_api.py",
    "test_tutorial.py",
    "test_wallet_hardware.py",
    "test_wallet_offline_cli.py",
    "test_wallet_tenants.py",
    "test_wallet_cli.py",
    "test_wallet_api.py",
    "test_settlement_api.py",
    "test_wallet_tenants_kill.py",
    "test_wallet_commit_cut.py",
)
"""They begin first: a file is one worker's, and a long one that began last would be waited for."""
_numbers = count(1)
_to_drop: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    # A plain `httpx.get` reads all authorities that are trusted, 25 ms of a core each time; the tests speak no TLS.
    transports: Any = httpx._transports.default
    transports.create_ssl_context = functools.cache(transports.create_ssl_context)
    # A command line builds all its commands each time, a fifth of a second of a core for the wallet's.
    main: Any = typer.main
    testing: Any = typer.testing
    main.get_command = testing._get_command = functools.cache(typer.main.get_command)
    if not _is_controller(config):
        return
    for home in (Path(tempfile.gettempdir()), _MEMORY):
        for leftover in home.glob(f"{_PREFIX}*"):
            pid = leftover.name.removeprefix(_PREFIX).partition("-")[0]
            if pid.isdecimal() and not psutil.pid_exists(int(pid)):
                _remove(leftover)
    os.environ[SHARED_DIR] = str(_reachable_directory("shared", _memory()))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _is_controller(config) and SHARED_DIR in os.environ:
        _remove(Path(os.environ.pop(SHARED_DIR)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(_LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))  # stable: files stay whole


def pytest_collection_finish() -> None:
    """What collection made stays to the end: the collector need not go through all of it again and again."""
    gc.collect()
    gc.freeze()


def pytest_runtest_setup() -> None:
    """py-evm raises the limit for the whole process when a test imports it; nested JSON would then end the process."""
    sys.setrecursionlimit(3_000)


@pytest.fixture(scope="session")
def postgres() -> EmbeddedPostgres:
    """The session's shared server, running. Do not stop or kill it: tests of faults start their own in `server_dir`."""
    server = EmbeddedPostgres(Path(os.environ[SHARED_DIR]), settings=_SHARED_SETTINGS)
    server.start()
    return server


@pytest.fixture
def database_url(postgres: EmbeddedPostgres) -> Iterator[str]:
    """The URL of a fresh, empty database."""
    name = _fresh_name()
    postgres.ensure_database(name)
    yield postgres.url(name)
    _drop(postgres, name)


@pytest.fixture
def fresh_database(postgres: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """`fresh_database("ledger")` -> the owner's URL of a new database with that service's tables; as many as a test
    likes. A service is given `tests.roles.as_service` of it."""
    with _databases(postgres) as make:
        yield make


@pytest.fixture(scope="module")
def fresh_databases(postgres: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    """The same for services that a file's tests share."""
    with _databases(postgres) as make:
        yield make


@contextmanager
def _databases(postgres: EmbeddedPostgres) -> Iterator[Callable[[str], str]]:
    made: list[str] = []

    def make(service: str) -> str:
        template = _template(postgres, service)
        name = _fresh_name()
        _administer(postgres, sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"), name, template)
        roles.CLONES[name] = service
        if service == "wallet":  # the institution of connections that name none, as nearly all tests' own do
            _administer(postgres, sql.SQL("ALTER DATABASE {} SET jiaozi.tenant = 'BKCHCNBJ'"), name)
        made.append(name)
        return postgres.url(name)

    yield make
    for name in made:
        _drop(postgres, name)


@pytest.fixture
def server_dir(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory for a server of the test's own, which the test may kill; whatever runs there is stopped afterwards.

    On the disk for tests of faults: there a commit takes its time, and a kill comes in the middle of it.
    Not `tmp_path`: as root, PostgreSQL runs as another user, who cannot enter pytest's private directories.
    """
    directory = _reachable_directory("own", None if request.path.parent.name in _ON_DISK else _memory())
    yield directory
    _remove(directory)


@functools.cache
def _template(postgres: EmbeddedPostgres, service: str) -> str:
    """One migrated database a service and session, made by the worker that comes first; the others clone it."""
    name = f"template_{service}"
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [name])  # until this connection closes
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is None:
            growing = f"{name}_new"
            _administer(postgres, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), growing)
            postgres.ensure_database(growing)
            role = service_role(service)
            postgres.ensure_role(role)
            migrate.upgrade(service, postgres.url(growing), service_url=postgres.url(growing, role=role))
            _administer(postgres, sql.SQL("ALTER DATABASE {} RENAME TO {}"), growing, name)
    return name


def _administer(postgres: EmbeddedPostgres, statement: sql.SQL, *names: str) -> None:
    _administration(postgres.conninfo("postgres")).execute(statement.format(*map(sql.Identifier, names)))


@functools.cache
def _administration(conninfo: str) -> psycopg.Connection[Any]:
    """One for the whole session: each connection starts a process, which takes longer than many statements."""
    return psycopg.connect(conninfo, autocommit=True)


def _drop(postgres: EmbeddedPostgres, name: str) -> None:
    """Later, with some others; those of the session's end go with the server."""
    _to_drop.append(name)
    if len(_to_drop) >= _DROPPED_TOGETHER:
        for database in _to_drop:
            _administer(postgres, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), database)
        _to_drop.clear()


def _fresh_name() -> str:
    return f"test_{os.getpid()}_{next(_numbers)}"


def _memory() -> Path | None:
    """Where files are in memory, and enough of it is free; a container may have next to nothing there."""
    if os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free >= _MEMORY_BYTES_MIN:
        return _MEMORY
    return None


def _reachable_directory(purpose: str, home: Path | None = None) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{purpose}-", dir=home))
    directory.chmod(0o755)
    return directory


def _remove(directory: Path) -> None:
    EmbeddedPostgres(directory).stop(mode="immediate")
    shutil.rmtree(directory, ignore_errors=True)


def _is_controller(config: Any) -> bool:
    return not hasattr(config, "workerinput")

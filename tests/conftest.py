"""Fixtures over one real PostgreSQL for the whole test session, with the product's own durability settings.

The first process of a session (pytest-xdist's controller, or pytest itself) chooses the server's directory and stops
the server at the end; every worker calls `start()` and so shares it. A killed session leaves its server; the next
one stops it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg import sql

from kernel import migrate
from kernel.postgres import EmbeddedPostgres, service_role

SHARED_DIR = "JIAOZI_TEST_POSTGRES_DIR"
_PREFIX = "jiaozi-test-"
_numbers = count(1)


def pytest_configure(config: pytest.Config) -> None:
    if not _is_controller(config):
        return
    for leftover in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = leftover.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            _remove(leftover)
    os.environ[SHARED_DIR] = str(_reachable_directory("shared"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if _is_controller(config) and SHARED_DIR in os.environ:
        _remove(Path(os.environ.pop(SHARED_DIR)))


@pytest.fixture(scope="session")
def postgres() -> EmbeddedPostgres:
    """The session's shared server, running. Do not stop or kill it: tests of faults start their own in `server_dir`."""
    server = EmbeddedPostgres(Path(os.environ[SHARED_DIR]))
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
    made: list[str] = []

    def make(service: str) -> str:
        template = _template(postgres, service)
        name = _fresh_name()
        _administer(postgres, sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy"), name, template)
        made.append(name)
        return postgres.url(name)

    yield make
    for name in made:
        _drop(postgres, name)


@pytest.fixture
def server_dir() -> Iterator[Path]:
    """A directory for a server of the test's own, which the test may kill; whatever runs there is stopped afterwards.

    Not `tmp_path`: as root, PostgreSQL runs as another user, who cannot enter pytest's private directories.
    """
    directory = _reachable_directory("own")
    yield directory
    _remove(directory)


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
    with psycopg.connect(postgres.conninfo("postgres"), autocommit=True) as connection:
        connection.execute(statement.format(*map(sql.Identifier, names)))


def _drop(postgres: EmbeddedPostgres, name: str) -> None:
    _administer(postgres, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)"), name)


def _fresh_name() -> str:
    return f"test_{os.getpid()}_{next(_numbers)}"


def _reachable_directory(purpose: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-{purpose}-"))
    directory.chmod(0o755)
    return directory


def _remove(directory: Path) -> None:
    EmbeddedPostgres(directory).stop(mode="immediate")
    shutil.rmtree(directory, ignore_errors=True)


def _is_controller(config: Any) -> bool:
    return not hasattr(config, "workerinput")

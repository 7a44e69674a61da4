"""Schema migrations: Alembic, one history a service (`migrations/<service>/versions`), no ini file.

`upgrade` runs all that is missing in one transaction, under an advisory lock, so that processes that start together
migrate once and a failed migration leaves nothing. Hence no `CREATE INDEX CONCURRENTLY` in a migration.
`python -m kernel.migrate <service> "<what changes>"` writes an empty migration to fill in.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, MetaData, NullPool, create_engine, text

from kernel.database import parse_url

SERVICES = ("ledger", "wallet", "settlement")
LOCK_KEY = 0x4A49_414F_5A49
"""`JIAOZI` in ASCII: the advisory lock of migrations in a service's database."""
LOCK_WAIT_MAX = "5min"
"""For another process's migration, or for a table that a long reader holds."""


def upgrade(service: str, url: str) -> None:
    """Bring a service's database to the newest migration. Safe to call at once from several processes.

    Raises: ValueError for an unknown service; sqlalchemy.exc.DBAPIError (then nothing was changed).
    """
    config = _config(service)
    engine = _engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_MAX}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def is_current(service: str, url: str) -> bool:
    """Is the database at the newest migration of this program? (At an unknown, newer one it is not.)"""
    with _engine(url).connect() as connection:
        return _revision(connection) == head(service)


def head(service: str) -> str | None:
    """The newest migration's id; None if the service has none yet. Raises if the history has two ends."""
    return ScriptDirectory.from_config(_config(service)).get_current_head()


def differences(url: str, tables: MetaData) -> list[Any]:
    """How the database differs from the declared tables, in Alembic's terms; a test holds this to be empty."""
    with _engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, tables))


def new_migration(service: str, message: str) -> Path:
    """Write an empty migration after the newest one, numbered from 0001. Returns its file."""
    config = _config(service)
    scripts = ScriptDirectory.from_config(config)
    number = f"{sum(1 for _ in scripts.walk_revisions()) + 1:04d}"
    made = scripts.generate_revision(number, message, head=scripts.get_current_head() or "base")
    if made is None:
        raise FileNotFoundError("Alembic wrote no file")
    return Path(made.path)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _engine(url: str) -> Engine:
    return create_engine(parse_url(url), poolclass=NullPool, use_native_hstore=False)


def _config(service: str) -> Config:
    if service not in SERVICES:
        raise ValueError(f"{service!r} is not a service: {', '.join(SERVICES)}")
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package migrations is not installed")
    folder = Path(spec.submodule_search_locations[0]).resolve()
    config = Config()
    for option, value in {
        "script_location": str(folder),
        "version_locations": str(folder / service / "versions"),
        "path_separator": "newline",  # the one character that no sane path holds
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    return config


if __name__ == "__main__":
    sys.stdout.write(f"{new_migration(sys.argv[1], sys.argv[2])}\n")

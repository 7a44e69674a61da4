"""Schema migrations: Alembic, one history a service (`migrations/<service>/versions`), no ini file.

`upgrade` runs all that is missing in one transaction, under an advisory lock, so that processes that start together
migrate once and a failed migration leaves nothing. Hence no `CREATE INDEX CONCURRENTLY` in a migration.

Migrations run as the tables' owner. The service runs under another role, and after every upgrade, in the same
transaction, that role may do with each table what `migrations/<service>/grants.toml` says, and nothing else: with a
journal's tables INSERT and SELECT (I4). A table that the list does not name is closed to the service.

`python -m kernel.migrate <service> "<what changes>"` writes an empty migration to fill in.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import tomllib
from collections.abc import Mapping
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
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
"""All that a service can be granted: never TRUNCATE, TRIGGER or REFERENCES, and on the schema nothing but its use."""


def upgrade(service: str, url: str, *, service_url: str | None = None) -> None:
    """Bring a service's database to the newest migration. Safe to call at once from several processes.

    `url` is the owner's. `service_url` is the one that the service will connect with: if it names another role, that
    role is granted what `grants_of` says (a service that connects as the owner is bound by its code alone).
    Raises: ValueError for an unknown service, or for a role that grants cannot bind; sqlalchemy.exc.DBAPIError. Then
    nothing was changed.
    """
    config = _config(service)
    engine = _engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_WAIT_MAX}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK_KEY})
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        role = parse_url(service_url).username if service_url is not None else None
        if role is not None and role != connection.execute(text("SELECT current_user")).scalar_one():
            _grant(connection, service, role)


def grants_of(service: str) -> Mapping[str, str]:
    """What the service's role may do with each table or view: name -> privileges, from `grants.toml`."""
    path = _folder() / service / "grants.toml"
    grants: dict[str, str] = tomllib.loads(path.read_text(encoding="utf-8"))
    for table, privileges in grants.items():
        if not set(privileges.split(", ")) <= set(PRIVILEGES):
            raise ValueError(f"{path.name}: {table}: {privileges!r} is not a list of {', '.join(PRIVILEGES)}")
    return grants


def excess(service: str, url: str) -> list[str]:
    """What the URL's role may do beyond its grants ("UPDATE on transfer"). Empty: the database keeps the rules too."""
    forbidden = (*PRIVILEGES, "TRUNCATE", "TRIGGER")
    found = []
    with _engine(url).connect() as connection:
        for table, privileges in grants_of(service).items():
            for privilege in forbidden:
                if (
                    privilege not in privileges.split(", ")
                    and connection.execute(
                        text("SELECT has_table_privilege(to_regclass(:table), :privilege)"),
                        {"table": f"public.{table}", "privilege": privilege},
                    ).scalar_one()
                ):
                    found.append(f"{privilege} on {table}")
    return found


def _grant(connection: Connection, service: str, role: str) -> None:
    """Take everything in this database from the role and from PUBLIC, then give what the list says."""
    _check_role(connection, role)
    quote = connection.dialect.identifier_preparer.quote_identifier
    own = quote(role)
    database = quote(connection.execute(text("SELECT current_database()")).scalar_one())
    statements = [
        f"REVOKE ALL ON DATABASE {database} FROM PUBLIC, {own}",
        f"GRANT CONNECT, TEMPORARY ON DATABASE {database} TO {own}",
        f"REVOKE ALL ON SCHEMA public FROM PUBLIC, {own}",
        f"GRANT USAGE ON SCHEMA public TO {own}",
        f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, {own}",
    ]
    found = set(
        connection.execute(
            text(
                "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r','p','v')"
            )
        ).scalars()
    )
    for table, privileges in grants_of(service).items():
        if table in found:
            statements.append(f"GRANT {privileges} ON TABLE {quote(table)} TO {own}")
    for statement in statements:
        connection.exec_driver_sql(statement)


def _check_role(connection: Connection, role: str) -> None:
    """Raises ValueError for a role that does not exist, or that can do things whatever it is granted."""
    row = connection.execute(
        text(
            "SELECT rolsuper OR rolcreaterole, pg_has_role(rolname, current_user, 'MEMBER') FROM pg_roles"
            " WHERE rolname = :role"
        ),
        {"role": role},
    ).one_or_none()
    if row is None:
        raise ValueError(f"the service's role {role} does not exist: CREATE ROLE {role} LOGIN, with its credentials")
    if any(row):
        raise ValueError(f"the service's role {role} is a superuser, makes roles, or may act as the tables' owner")


def is_current(service: str, url: str) -> bool:
    """Is the database at the newest migration of this program? (At an unknown, newer one it is not.)"""
    with _engine(url).connect() as connection:
        return _revision(connection) == head(service)


def head(service: str) -> str | None:
    """The newest migration's id; None if the service has none yet. Raises if the history has two ends."""
    return ScriptDirectory.from_config(_config(service)).get_current_head()


def fingerprint() -> str:
    """SHA-256 over all services' migrations. Until a release they may be edited, not only added to: data made under
    another fingerprint may lack what the program expects, though the newest migration's id be the same."""
    digest = hashlib.sha256()
    for service in SERVICES:
        for path in sorted((_folder() / service / "versions").glob("[0-9]*.py")):
            digest.update(f"{service}/{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


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
    folder = _folder()
    config = Config()
    for option, value in {
        "script_location": str(folder),
        "version_locations": str(folder / service / "versions"),
        "path_separator": "newline",  # the one character that no sane path holds
    }.items():
        config.set_main_option(option, value.replace("%", "%%"))
    return config


def _folder() -> Path:
    spec = importlib.util.find_spec("migrations")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the package migrations is not installed")
    return Path(spec.submodule_search_locations[0]).resolve()


if __name__ == "__main__":
    sys.stdout.write(f"{new_migration(sys.argv[1], sys.argv[2])}\n")

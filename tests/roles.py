"""The service's own database role, for tests: what runs as a service runs under it, what tampers is the owner."""

from __future__ import annotations

from contextlib import suppress

import psycopg
from psycopg import sql
from sqlalchemy import make_url

from kernel import migrate
from kernel.database import parse_url
from kernel.postgres import service_role

CLONES: dict[str, str] = {}
"""Databases that this process has cloned from a service's template, whose role is there and may what it may."""


def dsn(url: str) -> str:
    """libpq's form of a SQLAlchemy URL."""
    return url.replace("postgresql+psycopg://", "postgresql://")


def with_user(url: str, user: str) -> str:
    return make_url(url).set(username=user).render_as_string(hide_password=False)


def as_service(url: str, service: str = "ledger") -> str:
    """The URL that the service is given for the database whose owner's URL this is. Its role is one for all the
    databases of a test server; clones of a template have its grants already, another database is migrated here."""
    role = service_role(service)
    given = parse_url(url)
    if given.username == role:
        return url
    if given.database is not None and CLONES.get(given.database) == service:
        return with_user(url, role)
    with psycopg.connect(dsn(url), autocommit=True) as connection:
        if connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role]).fetchone() is None:
            # Another worker may make it meanwhile.
            with suppress(psycopg.errors.DuplicateObject, psycopg.errors.UniqueViolation):
                connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(role)))
        question = "SELECT has_table_privilege(%s, to_regclass('alembic_version'), 'SELECT')"
        row = connection.execute(question, [role]).fetchone()
    if row != (True,):
        migrate.upgrade(service, url, service_url=with_user(url, role))
    return with_user(url, role)

"""A fresh database on every node of a Citus cluster, for tests that are given its coordinator."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql
from sqlalchemy import make_url

CITUS_URL = "JIAOZI_TEST_CITUS_URL"
SKIPPED = f"skipped: set {CITUS_URL} to a database of a Citus coordinator with workers (a superuser's URL)"


def citus_url() -> str | None:
    return os.environ.get(CITUS_URL)


@contextmanager
def citus_database(coordinator: str, name: str) -> Iterator[str]:
    """The URL of a new database on the coordinator, its workers known to it; dropped on all nodes at the end."""
    url = make_url(coordinator)

    def dsn(host: str, port: int, database: str) -> str:
        there = url.set(drivername="postgresql", host=host, port=port, database=database)
        return there.render_as_string(hide_password=False)

    home = (str(url.host), int(url.port or 5432))
    with psycopg.connect(dsn(*home, str(url.database)), autocommit=True) as connection:
        rows = connection.execute("SELECT nodename, nodeport FROM pg_dist_node WHERE groupid <> 0").fetchall()
    workers = [(str(host), int(port)) for host, port in rows]
    nodes = [home, *workers]

    def on_every_node(statement: str) -> None:
        for node in nodes:
            with psycopg.connect(dsn(*node, "postgres"), autocommit=True) as connection:
                # each node is told by itself: the cluster of this database does not exist yet
                connection.execute("SET citus.enable_create_database_propagation = off")
                connection.execute(sql.SQL(statement).format(sql.Identifier(name)))  # type: ignore[arg-type]

    on_every_node("CREATE DATABASE {}")
    try:
        for node in nodes:
            with psycopg.connect(dsn(*node, name), autocommit=True) as connection:
                connection.execute("CREATE EXTENSION citus")
        with psycopg.connect(dsn(*home, name), autocommit=True) as connection:
            connection.execute("SELECT citus_set_coordinator_host(%s, %s)", home)
            for worker in workers:
                connection.execute("SELECT citus_add_node(%s, %s)", worker)
        yield url.set(database=name, drivername="postgresql+psycopg").render_as_string(hide_password=False)
    finally:
        on_every_node("DROP DATABASE IF EXISTS {} WITH (FORCE)")

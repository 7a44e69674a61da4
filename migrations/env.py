"""Alembic's entry for all three histories. `kernel.migrate` chooses the history and hands over an open transaction."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection


def run() -> None:
    connection = context.config.attributes.get("connection")
    if not isinstance(connection, Connection):
        raise RuntimeError("migrations run through kernel.migrate.upgrade(service, url), which locks and commits")
    context.configure(connection=connection)
    with context.begin_transaction():  # joins the caller's transaction
        context.run_migrations()


run()

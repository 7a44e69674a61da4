"""Row security by tenant (decision 18): a connection's setting says whose rows it sees and writes.

A table has the column `tenant text NOT NULL DEFAULT current_setting('jiaozi.tenant')`, `CHECK (tenant <> '')`, keys
that end with it, and what `protect` adds: for migrations that make a table of a service with tenants.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

SETTING = "jiaozi.tenant"
COLUMN = "tenant"
CURRENT = f"current_setting('{SETTING}')"
"""The tenant of a connection, in SQL; an error without one."""
SHOWN = f"(tenant = current_setting('{SETTING}'::text))"
"""The policy's condition as the database shows it, both of what is seen and of what is written."""


def protect(connection: sa.Connection, tables: Iterable[str]) -> None:
    """Rows of other tenants are neither seen nor written, by the tables' owner neither."""
    for table in tables:
        for statement in (
            f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY',
            f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY',
            f'CREATE POLICY tenant ON "{table}" USING (tenant = {CURRENT}) WITH CHECK (tenant = {CURRENT})',
        ):
            connection.exec_driver_sql(statement)


def release(connection: sa.Connection, tables: Iterable[str]) -> None:
    """The reverse of `protect`."""
    for table in tables:
        for statement in (
            f'DROP POLICY tenant ON "{table}"',
            f'ALTER TABLE "{table}" NO FORCE ROW LEVEL SECURITY',
            f'ALTER TABLE "{table}" DISABLE ROW LEVEL SECURITY',
        ):
            connection.exec_driver_sql(statement)

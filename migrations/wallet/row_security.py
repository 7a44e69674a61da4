"""Row security by tenant (decision 18), for migrations of the wallet service.

A migration that makes a table writes the column `tenant text NOT NULL DEFAULT current_setting('jiaozi.tenant')`, its
CHECK and keys that end with it, and then calls `protect`. A test refuses a table without.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

TENANT = "current_setting('jiaozi.tenant')"


def protect(connection: sa.Connection, tables: Iterable[str]) -> None:
    """Rows of other tenants are neither seen nor written, by the tables' owner neither."""
    for table in tables:
        for statement in (
            f'ALTER TABLE "{table}" ENABLE ROW LEVEL SECURITY',
            f'ALTER TABLE "{table}" FORCE ROW LEVEL SECURITY',
            f'CREATE POLICY tenant ON "{table}" USING (tenant = {TENANT}) WITH CHECK (tenant = {TENANT})',
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

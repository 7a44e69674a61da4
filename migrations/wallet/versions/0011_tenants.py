"""Tenants: every row belongs to an institution, and row security keeps institutions apart.

All tables, by what the database says of them: the column, then each key anew with the column at its end.
Rows that are there already become those of the institution in the setting `jiaozi.tenant` of the owner's connection
(`jiaozi-wallet migrate` sets it); without it the migration stops at the first table that has rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from kernel.row_security import CURRENT, protect, release

revision = "0011"
down_revision = "0010"

_TABLES = """
SELECT relname FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> 'alembic_version' ORDER BY relname
"""
_CONSTRAINTS = """
SELECT r.relname, c.conname, pg_get_constraintdef(c.oid)
FROM pg_constraint c JOIN pg_class r ON r.oid = c.conrelid
WHERE c.connamespace = 'public'::regnamespace AND c.contype IN ('f', 'p', 'u') AND r.relname <> 'alembic_version'
ORDER BY c.contype, r.relname, c.conname
"""
_INDEXES = """
SELECT c.relname, pg_get_indexdef(i.indexrelid)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'public'::regnamespace AND i.indisunique AND c.relname NOT LIKE 'alembic%%'
AND NOT EXISTS (SELECT 1 FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.contype IN ('p', 'u'))
ORDER BY c.relname
"""


def upgrade() -> None:
    connection = op.get_bind()
    tables = list(connection.exec_driver_sql(_TABLES).scalars())
    for table in tables:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ADD COLUMN tenant text')
        if connection.exec_driver_sql(f'SELECT EXISTS (SELECT FROM "{table}")').scalar_one():
            connection.exec_driver_sql(f'UPDATE "{table}" SET tenant = {CURRENT}')
        for statement in (
            f'ALTER TABLE "{table}" ALTER COLUMN tenant SET NOT NULL, ALTER COLUMN tenant SET DEFAULT {CURRENT},'
            f" ADD CONSTRAINT \"{table}_tenant_ck\" CHECK (tenant <> '')",
        ):
            connection.exec_driver_sql(statement)
    _rebuild(connection, before=")", after=", tenant)")
    protect(connection, tables)


def downgrade() -> None:
    """Refused by the keys where two institutions use one id."""
    connection = op.get_bind()
    tables = list(connection.exec_driver_sql(_TABLES).scalars())
    release(connection, tables)
    _rebuild(connection, before=", tenant)", after=")")
    for table in tables:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" DROP COLUMN tenant')


def _rebuild(connection: sa.Connection, *, before: str, after: str) -> None:
    """Every key anew, its lists of columns ended otherwise. Foreign keys go first and come last."""
    constraints = connection.exec_driver_sql(_CONSTRAINTS).all()
    for table, name, _ in constraints:  # foreign keys are the first: f < p < u
        connection.exec_driver_sql(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"')
    for table, name, definition in sorted(constraints, key=lambda item: item[2].startswith("FOREIGN")):
        changed = definition.replace(before, after)
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" {changed}')
    for name, definition in connection.exec_driver_sql(_INDEXES).all():
        changed = definition.replace(before, after, 1)  # the list of columns is the first in brackets
        connection.exec_driver_sql(f'DROP INDEX "{name}"')
        connection.exec_driver_sql(changed)

"""Institutions that share a database (decision 18): each sees its own rows and no others, by the database's own rule.

Every table has a column `tenant` with the institution's code. The code of this service never names it: connections
carry the code as the setting `jiaozi.tenant`, new rows take it as the column's default, and row security shows and
takes no row of another. A connection without the setting can read and write nothing.

Every key ends with the column, foreign keys too: checks of keys do not ask row security, so without it an id that
another institution uses would be refused (which tells that it is used), and a row could refer to another institution's.
With it an institution has ids of its own, as if the database were its own. It stands last because the planner, which
knows `tenant = ...` of every statement, takes an index that begins with it for a way to everything (measured: the scan
of a partial index that fills with dead entries, in the place of a look-up by id).
"""

from __future__ import annotations

import sqlalchemy as sa

from kernel.database import parse_url
from kernel.ids import ParticipantId
from kernel.row_security import COLUMN, CURRENT, SETTING, SHOWN

SHARED = frozenset({"alembic_version"})
"""Tables without tenants."""


def tenant_url(url: str, tenant: ParticipantId) -> str:
    """The URL of a database, for connections of one institution. Set as the connection begins, so that no RESET or
    DISCARD takes it away; a pooler between must keep the option `options`."""
    parsed = parse_url(url)
    options = parsed.query.get("options", ())
    given = (options,) if isinstance(options, str) else options
    # No space after -c: SQLAlchemy writes one as a plus, which libpq, given the same URL, does not read.
    joined = " ".join((*given, f"-c{SETTING}={tenant}"))
    return parsed.update_query_dict({"options": joined}).render_as_string(hide_password=False)


def isolated(declared: sa.MetaData) -> sa.MetaData:
    """The tables as they are in the database: those declared, with the tenant's column, and it in each key."""
    found = sa.MetaData()
    for table in declared.tables.values():
        items: list[sa.schema.SchemaItem] = [
            sa.Column(column.name, column.type, nullable=column.nullable, autoincrement=False)
            for column in table.columns
        ]
        items.append(sa.Column(COLUMN, sa.Text, nullable=False, server_default=sa.text(CURRENT)))
        items.append(sa.CheckConstraint(f"{COLUMN} <> ''", name=f"{table.name}_tenant_ck"))
        items += [_isolated_constraint(constraint) for constraint in table.constraints]
        items += [_isolated_index(index) for index in table.indexes]
        sa.Table(table.name, found, *items)
    return found


def _isolated_constraint(constraint: sa.Constraint) -> sa.Constraint:
    name = None if constraint.name is None else str(constraint.name)
    if isinstance(constraint, sa.PrimaryKeyConstraint):
        return sa.PrimaryKeyConstraint(*(column.name for column in constraint), COLUMN, name=name)
    if isinstance(constraint, sa.UniqueConstraint):
        return sa.UniqueConstraint(*(column.name for column in constraint), COLUMN, name=name)
    if isinstance(constraint, sa.ForeignKeyConstraint):
        parent = constraint.referred_table
        columns = [*constraint.column_keys, COLUMN]
        targets = [f"{parent.name}.{column}" for column in (*(key.column.name for key in constraint.elements), COLUMN)]
        return sa.ForeignKeyConstraint(columns, targets, name=name, ondelete=constraint.ondelete)
    if isinstance(constraint, sa.CheckConstraint):
        return sa.CheckConstraint(constraint.sqltext, name=name)
    raise TypeError(f"{name}: a constraint of another kind")


def _isolated_index(index: sa.Index) -> sa.Index:
    names = [column.name for column in index.columns]
    where = index.dialect_options["postgresql"]["where"]
    last = (COLUMN,) if index.unique else ()
    return sa.Index(index.name, *names, *last, unique=index.unique, postgresql_where=where)


def unbound(connection: sa.Connection, tenant: ParticipantId) -> list[str]:
    """Why row security does not bind this connection's role, table by table. Empty: it does."""
    role = connection.exec_driver_sql(
        "SELECT current_user, rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user"
    ).one()
    reasons = [
        f"the role {role[0]} {what}, and row security does not bind such a role"
        for holds, what in ((role[1], "is a superuser"), (role[2], "has BYPASSRLS"))
        if holds
    ]
    given = connection.exec_driver_sql(f"SELECT current_setting('{SETTING}', true)").scalar_one()
    if given != tenant:
        reasons.append(f"{SETTING} is {given!r} in a connection of {tenant}: does a pooler drop its options?")
    tables = connection.exec_driver_sql(
        "SELECT c.relname, c.relkind, c.relrowsecurity AND c.relforcerowsecurity, pg_has_role(c.relowner, 'MEMBER'),"
        " ARRAY(SELECT concat_ws(' ', p.permissive, p.cmd, p.qual, p.with_check) FROM pg_policies p"
        " WHERE p.schemaname = 'public' AND p.tablename = c.relname)"
        " FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v', 'm', 'f')"
        " ORDER BY c.relname"
    ).all()
    policies = [f"PERMISSIVE ALL {SHOWN} {SHOWN}"]
    for name, kind, is_forced, is_owned, found in tables:
        if name in SHARED:
            continue
        if kind not in ("r", "p"):
            reasons.append(f"{name} is no table, and row security does not bind what reads through it")
        elif not is_forced or found != policies:
            reasons.append(f"{name} is not under the row security of migration 0011")
        elif is_owned and not role[1]:
            reasons.append(f"the role {role[0]} may act as the owner of {name}, and take its row security away")
    return reasons

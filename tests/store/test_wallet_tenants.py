"""Goal: the database itself keeps institutions apart, whatever statement the service's role sends.

Method: rows of two institutions, written by the role over all tables; then raw SQL under one of them for the other's,
over every table that the catalogue knows, so that a table that a later migration adds without row security fails here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from kernel import ids, migrate
from kernel.database import Database
from kernel.postgres import service_role
from tests.roles import as_service, dsn
from tests.tenants_world import A, B, two_tenants, unset_default
from wallet.store.schema import metadata
from wallet.store.tenancy import SHARED, tenant_url, unbound

TENANTS = [ids.parse_participant(code) for code in (A, B)]


@pytest.fixture(scope="module")
def owner_url(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a database with rows of both in most tables, and in all others of A's, with triggers aside."""
    with two_tenants(fresh_databases, tmp_path_factory.mktemp("tenants")) as world:
        for tenant in (A, B):
            world.furnish(tenant)
        url = world.owner_url
    with psycopg.connect(dsn(url), autocommit=True) as owner:
        owner.execute("SET session_replication_role = replica")
        for name in tables(owner):
            fill(owner, name)
    return url


@contextmanager
def as_tenant(owner_url: str, tenant: str | None) -> Iterator[psycopg.Connection]:
    url = as_service(owner_url, "wallet")
    with psycopg.connect(dsn(url if tenant is None else tenant_url(url, ids.parse_participant(tenant)))) as connection:
        connection.autocommit = True
        yield connection


def tables(connection: psycopg.Connection) -> list[str]:
    found = connection.execute(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')"
        " ORDER BY relname"
    )
    return [str(name) for (name,) in found if name not in SHARED]


def count(connection: psycopg.Connection, table: str, where: str = "true") -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE ").format(sql.Identifier(table)) + sql.SQL(where)  # type: ignore[arg-type]
    row = connection.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def fill(owner: psycopg.Connection, table: str) -> None:
    """A row of A's in a table that has none: whatever its CHECKs say, they are another test's."""
    if count(owner, table, f"tenant = '{A}'"):
        return
    columns = owner.execute(
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attnotnull AND attname <> 'tenant'",
        [table],
    ).fetchall()
    made = {
        "uuid": f"'{ids.new_uuid7()}'",
        "bytea": "decode(repeat('61', 32), 'hex')",
        "jsonb": "'{}'",
        "boolean": "false",
        "timestamp with time zone": "now()",
        "date": "current_date",
        "text[]": "'{}'",
    }
    values = {str(name): made.get(str(kind), "'1'") for name, kind in columns}
    for (check,) in owner.execute(
        "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'", [table]
    ).fetchall():
        owner.execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT {}").format(sql.Identifier(table), sql.Identifier(check)))
    statement = sql.SQL("INSERT INTO {} (tenant, {}) VALUES ({}, {})").format(
        sql.Identifier(table),
        sql.SQL(", ").join(map(sql.Identifier, values)),
        sql.Literal(A),
        sql.SQL(", ").join(sql.SQL(value) for value in values.values()),  # type: ignore[arg-type]
    )
    owner.execute(statement)


def test_nobody_sees_anothers_row_in_any_table(owner_url: str) -> None:
    with psycopg.connect(dsn(owner_url), autocommit=True) as owner:
        names = tables(owner)
        rows = {(name, tenant): count(owner, name, f"tenant = '{tenant}'") for name in names for tenant in (A, B)}
    assert {name for name in names if not rows[name, A]} == set()
    for tenant in (A, B):
        with as_tenant(owner_url, tenant) as connection:
            assert connection.execute("SELECT current_user").fetchone() == (service_role("wallet"),)
            for name in names:
                assert count(connection, name) == rows[name, tenant], name
                assert count(connection, name, f"tenant <> '{tenant}'") == 0, name


def test_nobody_writes_anothers_row_in_any_table(owner_url: str) -> None:
    grants = migrate.grants_of("wallet")
    with as_tenant(owner_url, B) as connection:
        for name in tables(connection):
            table = sql.Identifier(name)
            # a row for A; a row of one's own made A's; A's row changed, taken away or copied
            why_not = (
                "row-level security" if "INSERT" in grants[name] else "permission denied"
            )  # triggers alone write it
            with pytest.raises(errors.InsufficientPrivilege, match=why_not):
                connection.execute(
                    sql.SQL("INSERT INTO {0} SELECT (jsonb_populate_record(null::{0}, %s)).*").format(table),
                    [json.dumps({"tenant": A})],
                )
            if "UPDATE" in grants[name]:
                assert (
                    connection.execute(
                        sql.SQL("UPDATE {} SET tenant = tenant WHERE tenant = %s").format(table), [A]
                    ).rowcount
                    == 0
                )
                if count(connection, name):
                    with pytest.raises(errors.InsufficientPrivilege, match="row-level security"):
                        connection.execute(sql.SQL("UPDATE {} SET tenant = %s").format(table), [A])
            if "DELETE" in grants[name]:
                assert connection.execute(sql.SQL("DELETE FROM {} WHERE tenant = %s").format(table), [A]).rowcount == 0


def test_without_an_institution_every_statement_is_refused(owner_url: str) -> None:
    with as_tenant(owner_url, None) as connection:
        for name in tables(connection):
            with pytest.raises(errors.UndefinedObject, match=r"jiaozi\.tenant"):
                count(connection, name)
        with pytest.raises(errors.UndefinedObject, match=r"jiaozi\.tenant"):
            connection.execute("INSERT INTO institution_account (ledger, opening_id) VALUES ('x', gen_random_uuid())")
        connection.execute("SET jiaozi.tenant = ''")
        with pytest.raises(errors.CheckViolation):
            connection.execute("INSERT INTO institution_account (ledger, opening_id) VALUES ('x', gen_random_uuid())")


def test_a_row_refers_to_its_own_institutions_rows_alone(owner_url: str) -> None:
    """Checks of foreign keys do not ask row security: so the keys themselves have the institution in them."""
    with psycopg.connect(dsn(owner_url), autocommit=True) as owner:
        keys = owner.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)"
            " FROM pg_constraint WHERE contype = 'f' AND connamespace = 'public'::regnamespace"
        ).fetchall()
        row = owner.execute("SELECT id FROM customer WHERE tenant = %s LIMIT 1", [A]).fetchone()
    assert len(keys) > 40
    for table, name, definition in keys:
        assert definition.count(", tenant)") == 2, (table, name, definition)
    assert row is not None
    with as_tenant(owner_url, B) as connection, pytest.raises(errors.ForeignKeyViolation):
        connection.execute(
            "INSERT INTO corporate_customer (customer_id, legal_data, created_at) VALUES (%s, 'x', now())", [row[0]]
        )


def test_every_key_ends_with_the_institution(owner_url: str) -> None:
    with psycopg.connect(dsn(owner_url), autocommit=True) as owner:
        found = owner.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
            " AND indexdef LIKE 'CREATE UNIQUE%'"
        ).fetchall()
    assert {name for name, definition in found if ", tenant)" not in definition} == set()


def test_an_event_is_not_lost_because_another_has_one_of_its_id(owner_url: str) -> None:
    with psycopg.connect(dsn(owner_url), autocommit=True) as owner:
        row = owner.execute("SELECT id FROM event WHERE tenant = %s AND type = 'wallet.opened'", [A]).fetchone()
    assert row is not None
    with as_tenant(owner_url, B) as connection:
        added = connection.execute(
            "INSERT INTO event (id, type, subject, created_at, data) VALUES (%s, 'x', 'x', now(), '{}')"
            " ON CONFLICT DO NOTHING",
            [row[0]],
        )
        assert added.rowcount == 1


def test_the_setting_outlives_whatever_a_pool_resets(owner_url: str) -> None:
    with as_tenant(owner_url, A) as connection:
        before = count(connection, "wallet")
        for statement in (b"RESET ALL", b"DISCARD ALL", b"BEGIN", b"SET LOCAL jiaozi.tenant = 'X'", b"ROLLBACK"):
            connection.execute(statement)
        assert count(connection, "wallet") == before > 0


def test_a_service_knows_whether_row_security_binds_it(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("wallet")
    unset_default(url)

    def reasons(of: str, tenant: Any = TENANTS[0]) -> list[str]:
        database = Database(of, application_name="test", pool_size=2)
        try:
            with database.transaction(isolation="READ COMMITTED") as connection:
                return unbound(connection, tenant)
        finally:
            database.close()

    own = tenant_url(as_service(url, "wallet"), TENANTS[0])
    assert reasons(own) == []
    assert len(reasons(own, TENANTS[1])) == 1
    assert "is None in a connection" in reasons(as_service(url, "wallet"))[0]
    assert "is a superuser" in reasons(tenant_url(url, TENANTS[0]))[0]
    with psycopg.connect(dsn(url), autocommit=True) as owner:
        for change, back, table in (
            ("ALTER TABLE notice NO FORCE ROW LEVEL SECURITY", "ALTER TABLE notice FORCE ROW LEVEL SECURITY", "notice"),
            ("ALTER TABLE purse DISABLE ROW LEVEL SECURITY", "ALTER TABLE purse ENABLE ROW LEVEL SECURITY", "purse"),
            ("CREATE POLICY wide ON wallet USING (true)", "DROP POLICY wide ON wallet", "wallet"),
            ("CREATE TABLE later (id int)", "DROP TABLE later", "later"),
            ("CREATE VIEW glance AS SELECT * FROM wallet", "DROP VIEW glance", "glance"),
        ):
            owner.execute(change.encode())
            assert [reason.split()[0] for reason in reasons(own)] == [table], change
            owner.execute(back.encode())
        owner.execute("CREATE ROLE half LOGIN")
        try:
            owner.execute("ALTER TABLE notice OWNER TO half")
            owner.execute(sql.SQL("GRANT half TO {}").format(sql.Identifier(service_role("wallet"))))
            assert "may act as the owner of notice" in reasons(own)[0]
        finally:
            owner.execute("ALTER TABLE notice OWNER TO CURRENT_USER")
            owner.execute("DROP ROLE half")
    assert reasons(own) == []


def test_rows_from_before_become_the_one_institutions(database_url: str) -> None:
    """The migration itself, with rows in the tables: refused without a name, then theirs whose name is given; and the
    way back and forth again."""
    from alembic import command
    from sqlalchemy import create_engine

    from kernel.database import parse_url

    def to(revision: str, url: str) -> None:
        config = migrate._config("wallet")
        engine = create_engine(parse_url(url))
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            (command.upgrade if revision != "0010-" else command.downgrade)(config, revision.rstrip("-"))
        engine.dispose()

    to("0010", database_url)
    with psycopg.connect(dsn(database_url), autocommit=True) as owner:
        owner.execute("INSERT INTO institution_account (ledger, opening_id) VALUES ('cny', gen_random_uuid())")
    with pytest.raises(Exception, match=r"jiaozi\.tenant"):
        to("head", database_url)
    own = tenant_url(database_url, TENANTS[0])
    for revision in ("head", "0010-", "head"):
        to(revision, own)
    with psycopg.connect(dsn(own), autocommit=True) as owner:
        assert owner.execute("SELECT tenant FROM institution_account").fetchall() == [(A,)]
    assert migrate.differences(own, metadata) == []

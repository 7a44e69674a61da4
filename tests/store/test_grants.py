"""I4. Goal: the database itself refuses what the service must never do: its role can add to the journal and read it.

Method: connect as the service's role and try every statement that would change what is written, or the tables; hold
the list of grants against the tables that the migrations make; run a ledger under the role.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import errors, sql

from kernel import migrate
from kernel.database import resolve_url
from kernel.postgres import EmbeddedPostgres, service_role
from tests.ledger_world import running_ledger
from tests.roles import as_service, dsn, with_user

JOURNAL = ("account", "block", "directive", "evidence", "hold_event", "hold_tombstone", "transfer")
LOG = (
    "closing",
    "closing_page",
    "log_acknowledgement",
    "log_checkpoint",
    "log_cosignature",
    "log_identity",
    "log_incident",
    "log_tile",
)
UNMASK = ("unmask_approval", "unmask_case", "unmask_disclosure")
PRIVACY = ("customer_erasure", "privacy_checkpoint", "privacy_entry", *UNMASK)
PROGRAMS = ("program_template", "program_statement", "program_decision")
PURSES = ("purse_spend", "purse_part", "purse_proof")
CONTROLS = ("card_revocation", "payment_control_change", "payment_signatory")
FAMILIES = ("card_counter", "child_credit", "corporate_customer", "family_member", *CONTROLS)
MARKET = ("fx_execution_report", "fx_quote_revision")
NETTING = ("netting", "netting_leg")
OTHERS = ("interest_segment", "leg_authorisation", "notice", *NETTING, "sandbox_posting", "webhook_replay")
OVERSIGHT = ("calendar_event", "clear_out", "clear_out_approval", "clear_out_line", "compliance_decision")
RECONCILIATION = (
    "control_point",
    "reconciliation_approval",
    "reconciliation_booking",
    "reconciliation_break",
    "reconciliation_event",
    "reconciliation_finding",
    "reconciliation_mapping",
    "reconciliation_match",
    "reconciliation_pairs",
    "reconciliation_repair",
    "reconciliation_run",
    "reconciliation_source",
    "reconciliation_unmatch",
)
LIQUIDITY = ("liquidity_approval", "liquidity_limit", "liquidity_run_item")
RELAY = ("relay_alarm", "relay_checkpoint", "relay_header")
MESSAGES = ("recall", "recall_item", "stream_batch", "stream_part", "stream_refusal")
FOR_EVER = {
    "ledger": (*JOURNAL, *LOG, "mandate_approval"),
    "settlement": (*OVERSIGHT, *LIQUIDITY, *MARKET, *MESSAGES, "decision", *RECONCILIATION, *RELAY, "statement_file"),
    "wallet": (*PRIVACY, *PROGRAMS, *PURSES, *FAMILIES, *OTHERS),
}
CHANGES = (
    "UPDATE {0} SET {1} = {1}",
    "DELETE FROM {0}",
    "TRUNCATE {0}",
    "ALTER TABLE {0} ADD COLUMN more int",
    "ALTER TABLE {0} DISABLE TRIGGER ALL",
    "DROP TABLE {0}",
    "CREATE TRIGGER t BEFORE INSERT ON {0} EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE r AS ON INSERT TO {0} DO INSTEAD NOTHING",
    "COPY {0} FROM PROGRAM 'true'",
    "SELECT * FROM {0} FOR UPDATE",
    "MERGE INTO {0} a USING {0} b ON true WHEN MATCHED THEN DELETE",
)


def relations(connection: psycopg.Connection) -> dict[str, str]:
    """Table or view -> its first column."""
    rows = connection.execute(
        "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = 1"
        " WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v')"
    )
    return {str(name): str(column) for name, column in rows}


@pytest.fixture
def service(fresh_database: Callable[[str], str]) -> Iterator[psycopg.Connection]:
    with psycopg.connect(dsn(as_service(fresh_database("ledger"))), autocommit=True) as connection:
        yield connection


@pytest.mark.parametrize("name", migrate.SERVICES)
def test_every_table_is_in_the_list_of_grants(fresh_database: Callable[[str], str], name: str) -> None:
    with psycopg.connect(dsn(fresh_database(name))) as connection:
        found = relations(connection)
    assert set(migrate.grants_of(name)) == set(found)


@pytest.mark.parametrize("name", migrate.SERVICES)
def test_whatever_is_only_added_to_is_in_the_list(name: str) -> None:
    """A table that is taken off it, by a grant or from the list, is a decision that shows in a review."""
    assert {table for table, grants in migrate.grants_of(name).items() if grants == "SELECT, INSERT"} == set(
        FOR_EVER[name]
    )


@pytest.mark.parametrize("name", migrate.SERVICES)
def test_what_is_written_once_can_be_added_to_and_read_and_nothing_else(
    fresh_database: Callable[[str], str], name: str
) -> None:
    with psycopg.connect(dsn(as_service(fresh_database(name), name)), autocommit=True) as connection:
        found = relations(connection)
        assert connection.execute("SELECT current_user").fetchone() == (service_role(name),)
        for table in FOR_EVER[name]:
            assert migrate.grants_of(name)[table] == "SELECT, INSERT"
            connection.execute(sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table)))
            for change in CHANGES:
                with pytest.raises(errors.InsufficientPrivilege):
                    connection.execute(sql.SQL(change).format(sql.Identifier(table), sql.Identifier(found[table])))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (id int)",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE SCHEMA other",
        "CREATE ROLE friend SUPERUSER",
        "CREATE EXTENSION IF NOT EXISTS pg_trgm",
        "SET session_replication_role = replica",
        "SET ROLE jiaozi",
        "ALTER SYSTEM SET fsync = off",
        "ALTER ROLE CURRENT_USER SUPERUSER",
        "GRANT UPDATE ON transfer TO PUBLIC; UPDATE transfer SET seq = seq",
        "ALTER TABLE lease OWNER TO CURRENT_USER",
        "DELETE FROM lease",
        "UPDATE alembic_version SET version_num = '9999'",
        "SELECT pg_read_file('postgresql.conf')",
        "BEGIN; LOCK TABLE transfer IN ACCESS EXCLUSIVE MODE",
    ],
)
def test_the_service_cannot_widen_what_it_may_do(service: psycopg.Connection, statement: str) -> None:
    with pytest.raises(errors.InsufficientPrivilege):
        service.execute(statement.encode())


@pytest.mark.extended
def test_a_ledger_works_under_the_role_and_verifies(fresh_database: Callable[[str], str], tmp_path: Path) -> None:
    url = fresh_database("ledger")
    with running_ledger(url, tmp_path, log_enabled=True) as world:
        assert migrate.excess("ledger", str(world.settings.database_url)) == []
        world.register("BKCHCNBJ")
        vault, other = world.open_vault("BKCHCNBJ"), world.open_vault("BKCHCNBJ")
        world.issue(vault, 1_000)
        with world.client("BKCHCNBJ") as client:
            client.transfer(world.terms("payment", vault, other, 10))
            assert client.get_account(other).balance_minor == 10
    assert "UPDATE on transfer" in migrate.excess("ledger", url)
    done = subprocess.run(
        [sys.executable, "-m", "ledger", "verify", "--database-url", str(world.settings.database_url)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grants_are_applied_again_after_every_upgrade(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("ledger")
    own = as_service(url)
    with psycopg.connect(dsn(url), autocommit=True) as owner, psycopg.connect(dsn(own), autocommit=True) as service:
        owner.execute("GRANT UPDATE ON transfer TO PUBLIC")
        owner.execute(f"GRANT ALL ON block TO {service_role('ledger')}")
        owner.execute(f"REVOKE INSERT ON evidence FROM {service_role('ledger')}")
        service.execute("UPDATE transfer SET seq = seq")
        assert set(migrate.excess("ledger", own)) >= {"UPDATE on transfer", "DELETE on block", "TRUNCATE on block"}
        migrate.upgrade("ledger", url, service_url=own)
        assert migrate.excess("ledger", own) == []
        with pytest.raises(errors.InsufficientPrivilege):
            service.execute("UPDATE transfer SET seq = seq")
        service.execute("INSERT INTO evidence SELECT * FROM evidence")


def test_a_role_that_grants_cannot_bind_is_refused(fresh_database: Callable[[str], str]) -> None:
    url = fresh_database("ledger")
    with psycopg.connect(dsn(url), autocommit=True) as owner:
        owner.execute("DROP ROLE IF EXISTS mighty")
        owner.execute("CREATE ROLE mighty LOGIN SUPERUSER")
        try:
            with pytest.raises(ValueError, match="superuser"):
                migrate.upgrade("ledger", url, service_url=with_user(url, "mighty"))
        finally:
            owner.execute("DROP ROLE mighty")
    with pytest.raises(ValueError, match="does not exist"):
        migrate.upgrade("ledger", url, service_url=with_user(url, "nobody_of_that_name"))
    migrate.upgrade("ledger", url, service_url=url)  # one role for both: nothing to grant


@pytest.mark.extended
def test_the_embedded_server_gives_each_service_a_role_and_a_database_of_its_own(server_dir: Path) -> None:
    url, server = resolve_url(None, server_dir, "ledger")
    assert server is not None
    try:
        migrate.upgrade("ledger", server.url("ledger"), service_url=url)
        wallet, _ = resolve_url(None, server_dir, "wallet")
        migrate.upgrade("wallet", server.url("wallet"), service_url=wallet)
        with psycopg.connect(dsn(url)) as connection:
            assert connection.execute("SELECT current_user").fetchone() == ("jiaozi_ledger",)
        with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
            psycopg.connect(dsn(with_user(server.url("wallet"), "jiaozi_ledger")))
        with psycopg.connect(server.conninfo("postgres"), autocommit=True) as owner:
            owner.execute("ALTER ROLE jiaozi_ledger SUPERUSER NOLOGIN")
            server.ensure_role("jiaozi_ledger")
            assert owner.execute(
                "SELECT rolsuper, rolcanlogin FROM pg_roles WHERE rolname = 'jiaozi_ledger'"
            ).fetchone() == (False, True)
    finally:
        server.stop()


@pytest.mark.parametrize("name", ["", "Ledger", 'a"', "jiaozi", "a;b", "a" * 64])
def test_a_bad_role_name_is_refused(server_dir: Path, name: str) -> None:
    with pytest.raises(ValueError, match="role"):
        EmbeddedPostgres(server_dir).ensure_role(name)

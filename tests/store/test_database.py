"""Goal: a commit's outcome is never guessed, isolation is what was asked for, retries are bounded, migrations run once.

Method: real faults on a real server: backends terminated while COMMIT waits, replication waits cancelled, write skew.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from kernel import migrate
from kernel.database import (
    SERIALIZATION_FAILURE,
    Database,
    Isolation,
    OutcomeUnknown,
    TransactionAborted,
    resolve_url,
    sqlstate,
)
from kernel.postgres import EmbeddedPostgres


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url, application_name="test", pool_size=4)
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(text("CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL)"))
    yield database
    database.close()


def transact(database: Database, *works: Callable[[Connection], object]) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        for work in works:
            work(connection)


def raw_insert(database: Database, *, pipeline: bool = False, repeat_and_hide_the_error: bool = False) -> None:
    """Inserts row 1 through `raw()` and commits."""
    with database.raw(isolation="READ COMMITTED") as raw, raw.pipeline() if pipeline else nullcontext():
        raw.execute("INSERT INTO note VALUES (1, '')")
        if repeat_and_hide_the_error:
            with pytest.raises(psycopg.errors.UniqueViolation):
                raw.execute("INSERT INTO note VALUES (1, '')")
        raw.commit()


def add(connection: Connection, number: int, body: str = "") -> None:
    connection.execute(text("INSERT INTO note VALUES (:id, :body)"), {"id": number, "body": body})


def ids(database: Database) -> list[int]:
    with database.transaction(isolation="READ COMMITTED") as connection:
        return list(connection.execute(text("SELECT id FROM note ORDER BY id")).scalars())


# --- transactions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_a_transaction_runs_at_the_isolation_that_was_asked_for(database: Database, isolation: Isolation) -> None:
    with database.transaction(isolation=isolation) as connection:
        assert connection.execute(text("SHOW transaction_isolation")).scalar_one().upper() == isolation
    with database.raw(isolation=isolation) as raw:
        row = raw.execute("SHOW transaction_isolation").fetchone()
        assert row is not None
        assert row[0].upper() == isolation


def test_isolation_does_not_leak_to_the_next_user_of_a_pooled_connection(database_url: str) -> None:
    database = Database(database_url, application_name="test", pool_size=1)
    for isolation in ("SERIALIZABLE", "READ COMMITTED"):
        with database.transaction(isolation=isolation) as connection:
            assert connection.execute(text("SHOW transaction_isolation")).scalar_one().upper() == isolation
    database.close()


def test_an_exception_rolls_everything_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        transact(database, lambda connection: add(connection, 1), lambda _: 1 // 0)
    assert ids(database) == []


def test_a_swallowed_sql_error_is_not_a_successful_commit(database: Database) -> None:
    """PostgreSQL answers such a COMMIT with ROLLBACK and no error: both doors must say so."""

    def insert_twice_and_hide_it(connection: Connection) -> None:
        add(connection, 1)
        with pytest.raises(IntegrityError):
            add(connection, 1)

    with pytest.raises(TransactionAborted):
        transact(database, insert_twice_and_hide_it)
    with pytest.raises(TransactionAborted):
        raw_insert(database, repeat_and_hide_the_error=True)
    assert ids(database) == []


def test_raw_copies_rows_and_commits_when_told(database: Database) -> None:
    with database.raw(isolation="READ COMMITTED") as raw:
        assert not raw.autocommit
        with raw.cursor() as cursor, cursor.copy("COPY note FROM STDIN") as copy:
            copy.write_row((1, "one"))
        assert ids(database) == []
        raw.commit()
        assert ids(database) == [1]


def test_commit_in_a_pipeline_is_refused(database: Database) -> None:
    with pytest.raises(TransactionAborted, match="pipeline"):
        raw_insert(database, pipeline=True)
    assert ids(database) == []


def test_a_statement_over_the_time_bound_is_cancelled(database_url: str) -> None:
    database = Database(database_url, application_name="test", statement_timeout_ms=50)
    with pytest.raises(OperationalError) as caught, database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    assert sqlstate(caught.value) == "57014"
    database.close()


def test_sessions_speak_utc_and_carry_their_name(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert connection.execute(text("SHOW timezone")).scalar_one() == "UTC"
        assert connection.execute(text("SHOW application_name")).scalar_one() == "test"


# --- unknown outcomes -------------------------------------------------------------------------------------------------


def slow_commit(connection: Connection) -> None:
    """A deferred trigger that makes COMMIT itself last: the window in which a backend can die during COMMIT."""
    connection.execute(text("CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                            "PERFORM pg_sleep(30); RETURN NULL; END $$"))  # fmt: skip
    connection.execute(text("CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON note DEFERRABLE INITIALLY DEFERRED "
                            "FOR EACH ROW EXECUTE FUNCTION wait()"))  # fmt: skip


def signal_when(database: Database, function: str, condition: str) -> threading.Thread:
    """Calls `function(pid)` on the backend of the service `test` that comes to meet `condition`."""

    def wait_and_signal() -> None:
        query = f"SELECT {function}(pid) FROM pg_stat_activity WHERE application_name = 'test' AND {condition}"
        conninfo = database.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(conninfo, autocommit=True) as connection:
            deadline = time.monotonic() + 20
            while not connection.execute(query).fetchall() and time.monotonic() < deadline:
                time.sleep(0.01)

    thread = threading.Thread(target=wait_and_signal)
    thread.start()
    return thread


@pytest.mark.parametrize("door", ["transaction", "raw", "run"])
def test_a_backend_that_dies_during_commit_leaves_the_outcome_unknown(database: Database, door: str) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        slow_commit(connection)
    calls = 0

    def insert(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        add(connection, 1)

    killer = signal_when(database, "pg_terminate_backend", "query = 'COMMIT' AND state = 'active'")
    doors: dict[str, Callable[[], None]] = {
        "run": lambda: database.run(insert, isolation="READ COMMITTED"),
        "transaction": lambda: transact(database, insert),
        "raw": lambda: raw_insert(database),
    }
    with pytest.raises(OutcomeUnknown):
        doors[door]()
    killer.join()
    assert calls == (door != "raw")  # an unknown outcome is never retried
    assert ids(database) == []  # the caller reads back, over a fresh connection: here it was not written


def test_a_connection_that_dies_before_commit_is_an_ordinary_error(database: Database) -> None:
    suicide = text("SELECT pg_terminate_backend(pg_backend_pid())")
    with pytest.raises(OperationalError):
        transact(database, lambda connection: add(connection, 1), lambda connection: connection.execute(suicide))
    assert ids(database) == []


def test_a_refusal_at_commit_is_known_not_unknown(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(text("CREATE TABLE late (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(IntegrityError), database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(text("INSERT INTO late VALUES (1), (1)"))


def test_a_cancelled_wait_for_the_synchronous_standby_is_unknown_not_success(server_dir: Path) -> None:
    with EmbeddedPostgres(server_dir, settings={"shared_buffers": "16MB"}) as server:
        server.ensure_database("ledger")
        database = Database(server.url("ledger"), application_name="test")
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(text("CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL)"))
        with psycopg.connect(server.conninfo("ledger"), autocommit=True) as admin:
            admin.execute("ALTER SYSTEM SET synchronous_standby_names = 'a_standby_that_never_comes'")
            admin.execute("SELECT pg_reload_conf()")
            while admin.execute("SHOW synchronous_standby_names").fetchone() == ("",):
                time.sleep(0.01)
        time.sleep(1.0)  # the checkpointer tells the backends that waiting is on
        canceller = signal_when(database, "pg_cancel_backend", "wait_event = 'SyncRep'")
        with pytest.raises(OutcomeUnknown), database.transaction(isolation="READ COMMITTED") as connection:
            add(connection, 1)
        canceller.join()
        assert ids(database) == [1]  # written here: retrying blindly would have doubled it
        database.close()


@pytest.mark.extended
def test_the_pool_serves_again_after_the_postmaster_was_killed(server_dir: Path) -> None:
    with EmbeddedPostgres(server_dir, settings={"shared_buffers": "16MB"}) as server:
        database = Database(server.url("postgres"), application_name="test", pool_size=1)
        with database.transaction(isolation="READ COMMITTED") as connection:
            connection.execute(text("CREATE TABLE note (id int PRIMARY KEY, body text NOT NULL)"))
            add(connection, 1)
        server.kill()
        server.start()
        assert ids(database) == [1]
        database.close()


# --- retries ----------------------------------------------------------------------------------------------------------


def test_write_skew_is_retried_until_both_transactions_are_in(database: Database) -> None:
    """Each writes how many rows it saw: read together both see none; a serial order, made by a retry, gives 0 and 1."""
    calls: list[int] = []
    together = threading.Barrier(2, timeout=10)
    met = threading.local()

    def append(connection: Connection) -> int:
        seen: int = connection.execute(text("SELECT count(*) FROM note")).scalar_one()
        calls.append(seen)
        if not getattr(met, "once", False):
            met.once = True
            together.wait()
        add(connection, threading.get_ident() % 1_000_000_007)
        return seen

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(database.run, append, isolation="SERIALIZABLE") for _ in range(2)]
        assert sorted(one.result() for one in both) == [0, 1]
    assert calls[:2] == [0, 0]
    assert calls[-1] == 1 and set(calls[2:-1]) <= {0}  # as many retries as it takes
    assert len(ids(database)) == 2


def test_retries_are_bounded_and_the_last_failure_is_told(database: Database) -> None:
    calls = 0

    def always_fail(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        connection.execute(text(f"DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '{SERIALIZATION_FAILURE}'; END $$"))

    with pytest.raises(DBAPIError) as caught:
        database.run(always_fail, isolation="SERIALIZABLE", attempts=3)
    assert calls == 3
    assert sqlstate(caught.value) == SERIALIZATION_FAILURE


def test_other_errors_are_not_retried(database: Database) -> None:
    calls = 0

    def break_a_rule(connection: Connection) -> None:
        nonlocal calls
        calls += 1
        add(connection, 1)
        add(connection, 1)

    with pytest.raises(IntegrityError):
        database.run(break_a_rule, isolation="SERIALIZABLE")
    assert calls == 1


# --- addresses --------------------------------------------------------------------------------------------------------


def test_a_given_url_is_used_as_it_is_and_other_databases_are_refused() -> None:
    url = "postgresql://somebody@example.invalid/ledger"
    assert resolve_url(url, None, "ledger") == (url, None)
    with pytest.raises(ValueError, match="postgresql://"):
        resolve_url("sqlite:///x", None, "ledger")


def test_without_a_url_an_embedded_server_is_started_with_the_services_database(server_dir: Path) -> None:
    url, server = resolve_url(None, server_dir / "ledger", "ledger")
    assert server is not None
    try:
        database = Database(url, application_name="test")
        with database.transaction(isolation="READ COMMITTED") as connection:
            assert connection.execute(text("SELECT current_database()")).scalar_one() == "ledger"
        database.close()
        again, _ = resolve_url(None, server_dir / "ledger", "ledger")
        assert again == url
    finally:
        server.stop()


# --- migrations -------------------------------------------------------------------------------------------------------


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A history of one migration, in a place whose path holds the characters that configuration files trip over."""
    package = tmp_path / "a b%c;d:e" / "migrations"
    versions = package / "ledger" / "versions"
    versions.mkdir(parents=True)
    original = Path(migrate.__file__).parents[1] / "migrations"
    for name in ("__init__.py", "env.py", "script.py.mako"):
        (package / name).write_text((original / name).read_text())
    (versions / "0001_first.py").write_text(
        '"""First."""\nimport time\nfrom alembic import op\nrevision = "0001"\ndown_revision = None\n'
        'def upgrade():\n    op.execute("CREATE TABLE first (id int)")\n    time.sleep(0.2)\n'
    )
    spec = importlib.util.find_spec("migrations")
    assert spec is not None
    # Restored afterwards: it is the imported package's own, if somebody has imported it.
    monkeypatch.setattr(spec, "submodule_search_locations", [str(package)])
    monkeypatch.setattr("kernel.migrate.importlib.util.find_spec", lambda name: spec)
    return versions


def test_processes_that_start_together_migrate_once(history: Path, database_url: str) -> None:
    assert migrate.head("ledger") == "0001"
    assert not migrate.is_current("ledger", database_url)
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(migrate.upgrade, "ledger", database_url) for _ in range(2)]:
            done.result()
    assert migrate.is_current("ledger", database_url)


def test_a_failed_migration_leaves_nothing(history: Path, database_url: str) -> None:
    made = migrate.new_migration("ledger", "second")
    assert made.parent == history
    assert made.name.startswith("0002")
    with pytest.raises(NotImplementedError):
        migrate.upgrade("ledger", database_url)
    database = Database(database_url, application_name="test")
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert connection.execute(text("SELECT to_regclass('first')")).scalar_one() is None
    database.close()


@pytest.mark.parametrize("service", migrate.SERVICES)
def test_every_services_history_has_one_end_and_runs(service: str, fresh_database: Callable[[str], str]) -> None:
    first, second = fresh_database(service), fresh_database(service)
    assert first != second
    assert migrate.is_current(service, first)
    migrate.upgrade(service, first)  # again: nothing to do


def test_an_unknown_service_is_refused(database_url: str) -> None:
    with pytest.raises(ValueError, match="not a service"):
        migrate.upgrade("treasury", database_url)


# --- sessions of hot paths -------------------------------------------------------------------------------------------


def test_session_keeps_what_it_commits_and_nothing_else(database: Database) -> None:
    with database.session() as session:
        session.execute("INSERT INTO note VALUES (1, '')")
        session.commit()
        session.execute("INSERT INTO note VALUES (2, '')")

    def fail() -> None:
        with database.session() as session:
            session.execute("INSERT INTO note VALUES (3, '')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ids(database) == [1]


def test_lazy_session_commits_each_statement_and_does_not_wait_for_the_disk(database: Database) -> None:
    with database.session(is_lazy=True) as session:
        assert session.execute("SHOW synchronous_commit").fetchone() == ("off",)
        session.execute("INSERT INTO note VALUES (1, '')")
        assert ids(database) == [1]
    with database.session() as session:
        assert session.execute("SHOW synchronous_commit").fetchone() == ("on",)
        assert session.execute("SHOW transaction_isolation").fetchone() == ("read committed",)


def test_session_is_used_again_and_a_broken_one_is_not(database: Database) -> None:
    def process(session: psycopg.Connection[tuple[object, ...]]) -> int:
        return session.info.backend_pid

    with database.session() as session:
        first = process(session)
    with database.session() as session:
        assert process(session) == first
        with pytest.raises(psycopg.OperationalError):
            session.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    with database.session() as session:
        assert process(session) != first
        session.execute("SELECT 1")


def test_session_that_died_while_it_rested_is_replaced(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with database.session() as session:
        first = session.info.backend_pid
    with database.raw(isolation="READ COMMITTED") as raw:
        raw.execute("SELECT pg_terminate_backend(%s)", (first,))
    monkeypatch.setattr("kernel.database.SESSION_RESTS_SECONDS", 0.0)
    with database.session() as session:
        assert session.info.backend_pid != first
        session.execute("SELECT 1")


def test_sessions_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernel.database.POOL_WAIT_SECONDS_MAX", 0.05)
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(database.session())
        with pytest.raises(PoolTimeout), database.session():
            pass


def test_work_in_a_session_is_done_again_after_a_deadlock(database: Database) -> None:
    tries = 0

    def work(session: psycopg.Connection[tuple[object, ...]]) -> str:
        nonlocal tries
        tries += 1
        session.execute("INSERT INTO note VALUES (%s, '')", (tries,))
        if tries < 3:
            raise psycopg.errors.DeadlockDetected("as if")
        return "done"

    assert database.run_session(work) == "done"
    assert ids(database) == [3]

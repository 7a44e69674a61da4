"""PostgreSQL for every service: SQLAlchemy Core over psycopg 3, explicit isolation, and commits that never lie.

A COMMIT has three outcomes here. It returns: the transaction is durable. It raises a database error: nothing was
written. It raises `OutcomeUnknown`: nobody can tell, and the caller reads back by its deterministic ids, never guesses.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import psycopg
from psycopg import IsolationLevel, errors, pq
from psycopg.errors import Diagnostic
from psycopg.rows import TupleRow
from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from kernel.postgres import EmbeddedPostgres, default_data_dir, service_role

Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]
Result = TypeVar("Result")
MeaningOf = Callable[[psycopg.Error], Exception | None]
"""What an error of the server means to a service; None: nothing but what it says."""

POOL_SIZE = 10
"""Connections a service keeps at most; an embedded server has 200 for all of them."""
POOL_WAIT_SECONDS_MAX = 10.0
"""How long a request waits for a free connection before it is told that the service cannot answer now."""
STATEMENT_TIMEOUT_MS = 30_000
"""No statement of a request may run longer. It does not bound a wait for synchronous replication."""
CONNECT_SECONDS_MAX = 10
START_SECONDS_MAX = 60.0
"""A server in crash recovery answers "starting up"; a service that starts beside it waits so long."""
SESSION_RESTS_SECONDS = 1.0
"""A session idle for longer is asked whether it still lives before it is used."""
RETRY_ATTEMPTS_MAX = 10
RETRY_PAUSE_SECONDS = 0.005
RETRY_PAUSE_SECONDS_MAX = 0.5

SERIALIZATION_FAILURE = "40001"
DEADLOCK_DETECTED = "40P01"
_RETRIABLE = frozenset({SERIALIZATION_FAILURE, DEADLOCK_DETECTED})


class OutcomeUnknown(Exception):
    """COMMIT was sent and its outcome is not known (or not as durable as asked): read back, never guess."""


class AskOutside(Exception):
    """Raised by a session's work that needs an answer from afar: nobody's locks may wait for that. The transaction is
    rolled back and its connection given back, then `ask` is called, then the work is begun again."""

    def __init__(self, ask: Callable[[], object]) -> None:
        super().__init__("to be asked outside of the transaction")
        self.ask = ask


class TransactionAborted(Exception):
    """COMMIT was asked for after an SQL error that was caught and forgotten. Nothing was written: the caller's bug.

    PostgreSQL answers such a COMMIT with a ROLLBACK and no error, so without this check it would look like success.
    """


class CheckedConnection(psycopg.Connection[TupleRow]):
    """A psycopg connection whose `commit()` keeps the promise of the module. SQLAlchemy's pool uses it too.

    `with connection.transaction():` as the outermost block and pipelines send COMMIT on another way: not for money.
    """

    _replication_wait_cancelled: bool = False

    def commit(self) -> None:
        """Raises OutcomeUnknown, TransactionAborted, or a psycopg.Error if the server said that nothing was written."""
        if self.pgconn.pipeline_status != pq.PipelineStatus.OFF:
            raise TransactionAborted("commit() inside a pipeline would not wait for its outcome")
        status = self.info.transaction_status
        if status == pq.TransactionStatus.INERROR:
            self.rollback()
            raise TransactionAborted("an SQL error in this transaction was caught and forgotten; nothing was written")
        self._replication_wait_cancelled = False
        try:
            super().commit()
        except psycopg.Error as error:
            if self.closed and status != pq.TransactionStatus.IDLE:
                raise OutcomeUnknown("the connection died during COMMIT") from error
            raise
        if self._replication_wait_cancelled:
            raise OutcomeUnknown("COMMIT is durable here, but its wait for the synchronous standby was cancelled")

    def watch_notices(self) -> None:
        """The server reports a cancelled replication wait as success with a WARNING: see it."""
        self.add_notice_handler(self._on_notice)

    def _on_notice(self, diagnostic: Diagnostic) -> None:
        # The function's name is not translated; the English text is for servers that speak PostgreSQL but hide it.
        if diagnostic.source_function == "SyncRepWaitForLSN" or "wait for synchronous replication" in (
            diagnostic.message_primary or ""
        ):
            self._replication_wait_cancelled = True


class Database:
    """A service's connection pool. Times in the sessions are UTC. Broken connections are replaced when next taken."""

    def __init__(
        self,
        url: str,
        *,
        application_name: str,
        pool_size: int = POOL_SIZE,
        statement_timeout_ms: int = STATEMENT_TIMEOUT_MS,
        idle_transaction_timeout_ms: int | None = None,
        meaning_of: MeaningOf | None = None,
    ) -> None:
        """`idle_transaction_timeout_ms`: the server ends a session that says nothing for so long inside a transaction,
        so that a process that stands still (SIGSTOP, a paused machine) keeps nothing locked; None: it waits for ever.
        `meaning_of`: asked about every error of the server that leaves a transaction; what it makes of it is raised
        instead, after the rollback.
        """
        parsed = parse_url(url)
        self._meaning_of = meaning_of
        options = [parsed.query.get("options"), f"-c statement_timeout={statement_timeout_ms}", "-c timezone=UTC"]
        if idle_transaction_timeout_ms is not None:
            options.append(f"-c idle_in_transaction_session_timeout={idle_transaction_timeout_ms}")
        self.engine: Engine = create_engine(
            parsed,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=POOL_WAIT_SECONDS_MAX,
            pool_pre_ping=True,
            pool_use_lifo=True,
            use_native_hstore=False,
            connect_args={
                "application_name": application_name,
                "connect_timeout": CONNECT_SECONDS_MAX,
                "options": " ".join(str(option) for option in options if option),
            },
        )
        event.listen(self.engine, "do_connect", _connect_checked)
        self._sessions: dict[bool, list[tuple[CheckedConnection, float]]] = {False: [], True: []}
        self._sessions_free = threading.BoundedSemaphore(pool_size)

    @contextmanager
    def transaction(self, *, isolation: Isolation) -> Iterator[Connection]:
        """One transaction: committed at the block's end, rolled back if it raises.

        Raises: OutcomeUnknown, TransactionAborted; sqlalchemy.exc.DBAPIError for what the server refuses.
        """
        try:
            with self.engine.connect() as connection:
                connection.execution_options(isolation_level=isolation)
                with connection.begin():
                    yield connection
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.Error):
                self._say_meaning(error.orig)
            raise

    def _say_meaning(self, error: psycopg.Error) -> None:
        meaning = None if self._meaning_of is None else self._meaning_of(error)
        if meaning is not None:
            raise meaning from error

    def run(
        self, work: Callable[[Connection], Result], *, isolation: Isolation, attempts: int = RETRY_ATTEMPTS_MAX
    ) -> Result:
        """`work` in a transaction, begun again after a serialization failure or deadlock, `attempts` times at most.

        So `work` must have no effect but on the database. The last failure is raised as it is; OutcomeUnknown is never
        retried.
        """
        if attempts < 1:
            raise ValueError("attempts must be at least 1")
        attempt = 1
        while True:
            try:
                with self.transaction(isolation=isolation) as connection:
                    return work(connection)
            except DBAPIError as error:
                if attempt == attempts or not is_retriable(error):
                    raise
            _pause(attempt)
            attempt += 1

    @contextmanager
    def raw(self, *, isolation: Isolation) -> Iterator[CheckedConnection]:
        """A psycopg connection for COPY: outside the pool, autocommit off, the caller's for as long as he likes.

        Commit each transaction with `commit()`. At the block's end what is open is committed, after an exception rolled
        back (psycopg's rule); then the connection is closed.
        """
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()
        if not isinstance(connection, CheckedConnection):
            raise TypeError("the pool made a connection of another kind")
        connection.isolation_level = IsolationLevel[isolation.replace(" ", "_")]
        with connection:
            yield connection

    @contextmanager
    def session(self, *, is_lazy: bool = False) -> Iterator[CheckedConnection]:
        """A psycopg connection for a hot path, READ COMMITTED; without the pool's ping before and SQLAlchemy between.

        What is not committed by `commit()` at the block's end is rolled back. With `is_lazy` each statement commits by
        itself and does not wait for the disk (synchronous_commit = off): what it writes is seen at once, is never half
        there, and may be lost if the database server crashes within the next second. So it is for what is found again
        or may be forgotten; the caller says why.
        Raises: sqlalchemy.exc.TimeoutError if all are in use for POOL_WAIT_SECONDS_MAX; psycopg.Error.
        """
        if not self._sessions_free.acquire(timeout=POOL_WAIT_SECONDS_MAX):
            raise PoolTimeout("all sessions are in use")
        try:
            connection = self._rested(is_lazy) or self._open_session(is_lazy)
            try:
                yield connection
            except psycopg.Error as error:
                self._say_meaning(error)
                raise
            finally:
                self._give_back(connection, is_lazy)
        finally:
            self._sessions_free.release()

    def run_session(self, work: Callable[[CheckedConnection], Result], *, attempts: int = RETRY_ATTEMPTS_MAX) -> Result:
        """`run` over a session, READ COMMITTED: `work`, then COMMIT, as often as a deadlock undoes it or `work` asks
        for something outside (`AskOutside`)."""
        attempt = 1
        while True:
            try:
                with self.session() as connection:
                    result = work(connection)
                    connection.commit()
                    return result
            except (errors.SerializationFailure, errors.DeadlockDetected):
                if attempt == attempts:
                    raise
                _pause(attempt)
            except AskOutside as wanted:
                if attempt == attempts:
                    raise
                wanted.ask()
            attempt += 1

    def _rested(self, is_lazy: bool) -> CheckedConnection | None:
        """A session that lies idle and lives. One that has rested for long is asked first, as the pool does."""
        while self._sessions[is_lazy]:
            connection, since = self._sessions[is_lazy].pop()
            if time.monotonic() - since < SESSION_RESTS_SECONDS:
                return connection
            try:
                connection.execute("SELECT 1")
                connection.rollback()
                return connection
            except psycopg.Error:
                connection.close()
        return None

    def _open_session(self, is_lazy: bool) -> CheckedConnection:
        pooled = self.engine.raw_connection()
        connection = pooled.driver_connection
        pooled.detach()
        if not isinstance(connection, CheckedConnection):
            raise TypeError("the pool made a connection of another kind")
        connection.autocommit = is_lazy
        connection.isolation_level = IsolationLevel.READ_COMMITTED
        if is_lazy:
            connection.execute("SET synchronous_commit = off")
        return connection

    def _give_back(self, connection: CheckedConnection, is_lazy: bool) -> None:
        try:
            if connection.info.transaction_status != pq.TransactionStatus.IDLE:
                connection.rollback()
        except psycopg.Error:
            connection.close()
        if not connection.closed:
            self._sessions[is_lazy].append((connection, time.monotonic()))

    def close(self) -> None:
        """Close the pool's idle connections. The object can be used again."""
        for rested in self._sessions.values():
            while rested:
                rested.pop()[0].close()
        self.engine.dispose()


def resolve_url(database_url: str | None, data_dir: Path | None, service: str) -> tuple[str, EmbeddedPostgres | None]:
    """The URL of a service's database: the one given, or one on an embedded server that is now running.

    On the embedded server it names the service's own role, which can do what the migrations grant and nothing else; a
    migration runs as the owner, `server.url(service)`. The embedded server is the caller's to stop, or to leave running
    for the next start. A server given by URL is waited for while it starts up or recovers, START_SECONDS_MAX at most.
    Raises: ValueError on a URL of another kind of database; EmbeddedPostgresError.
    """
    if database_url is not None:
        _wait_until_it_answers(parse_url(database_url))
        return database_url, None
    server = EmbeddedPostgres(data_dir if data_dir is not None else default_data_dir(service))
    server.start()
    server.ensure_database(service)
    server.ensure_role(service_role(service))
    return server.url(service, role=service_role(service)), server


def _wait_until_it_answers(url: URL) -> None:
    engine = create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": CONNECT_SECONDS_MAX})
    deadline = time.monotonic() + START_SECONDS_MAX
    while True:
        try:
            engine.connect().close()
            return
        except OperationalError as error:
            is_starting = any(sign in str(error.orig) for sign in ("starting up", "in recovery", "shutting down"))
            if not is_starting or time.monotonic() > deadline:
                return  # whoever connects next tells it better
        time.sleep(0.2)


def _pause(attempt: int) -> None:
    # Full jitter: two transactions that met once must not meet again in step.
    pause = min(RETRY_PAUSE_SECONDS_MAX, RETRY_PAUSE_SECONDS * 2**attempt)
    time.sleep(random.uniform(0, pause))  # noqa: S311 - spreads load, guards nothing


def parse_url(url: str) -> URL:
    """A PostgreSQL URL, with psycopg 3 as its driver. Raises ValueError for any other database."""
    parsed = make_url(url)
    if parsed.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise ValueError(f"a database URL begins with postgresql://, not with {parsed.drivername}://")
    return parsed.set(drivername="postgresql+psycopg")


def sqlstate(error: DBAPIError) -> str | None:
    """The server's five-character error code, if a server said it."""
    return error.orig.sqlstate if isinstance(error.orig, psycopg.Error) else None


def is_retriable(error: DBAPIError) -> bool:
    """A serialization failure or a deadlock: the transaction wrote nothing and may be begun anew."""
    return sqlstate(error) in _RETRIABLE


def is_duplicate_key(error: psycopg.Error) -> bool:
    """Whether a unique constraint refused a row. A COPY into a distributed table of Citus hands the worker's error on
    as an internal one (XX000), with the worker's words."""
    if isinstance(error, psycopg.errors.UniqueViolation):
        return True
    is_internal = isinstance(error, psycopg.errors.InternalError_)
    return is_internal and "duplicate key value violates unique constraint" in (error.diag.message_primary or "")


def _connect_checked(
    dialect: Any, record: Any, arguments: list[Any], parameters: dict[str, Any]
) -> psycopg.Connection[Any]:
    """SQLAlchemy's hook `do_connect`."""
    connection = CheckedConnection.connect(*arguments, **parameters)
    connection.watch_notices()
    return connection

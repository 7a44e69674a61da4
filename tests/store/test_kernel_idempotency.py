"""Goal: a key's work is done once, whatever races; a nonce is taken once.

Method: real PostgreSQL; two transactions held open against each other, then a crowd of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from kernel import idempotency
from kernel.crypto import nonces
from kernel.database import Database
from kernel.errors import ProblemError, RequestRefusal
from kernel.idempotency import Outcome

PRINT = idempotency.fingerprint("POST", "/v1/x", b"{}")


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    metadata = sa.MetaData()
    idempotency.idempotency_table(metadata)
    nonces.nonce_table(metadata)
    sa.Table("effect", metadata, sa.Column("number", sa.Integer))
    database = Database(database_url, application_name="test", pool_size=10)
    metadata.create_all(database.engine)
    yield database
    database.close()


def pay(connection: sa.Connection, key: str = "k", print_: bytes = PRINT, client: str = "bank") -> Outcome:
    def work() -> tuple[int, dict[str, object]]:
        connection.execute(sa.text("INSERT INTO effect VALUES (1)"))
        return 201, {"id": "trf_1", "note": "元", "none": None}

    return idempotency.run_once(connection, client=client, key=key, fingerprint=print_, work=work)


def effects(database: Database) -> int:
    with database.transaction(isolation="READ COMMITTED") as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM effect")).scalar_one())


def refusal(database: Database, **arguments: object) -> object:
    with pytest.raises(ProblemError) as caught, database.transaction(isolation="READ COMMITTED") as connection:
        pay(connection, **arguments)  # type: ignore[arg-type]
    return caught.value.refusal


def test_second_request_gets_the_stored_answer(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        first = pay(connection)
    with database.transaction(isolation="READ COMMITTED") as connection:
        second = pay(connection)
    assert (first.replayed, second.replayed, effects(database)) == (False, True, 1)
    assert (first.status, first.body) == (second.status, second.body)
    assert second.headers == {"Idempotency-Replayed": "true"} and first.headers == {}


def test_key_with_another_request_is_refused(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        pay(connection)
    other = idempotency.fingerprint("POST", "/v1/x", b'{"a":1}')
    assert refusal(database, print_=other) is RequestRefusal.IDEMPOTENCY_KEY_REUSED
    assert effects(database) == 1


def test_keys_of_two_clients_are_two_keys(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert not pay(connection, client="a", key="bk").replayed
        assert not pay(connection, client="ab", key="k").replayed
    assert effects(database) == 2


def test_second_request_is_told_that_the_first_is_in_progress(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        pay(connection)
        assert refusal(database) is RequestRefusal.IDEMPOTENCY_IN_PROGRESS
        with database.transaction(isolation="READ COMMITTED") as other:
            assert not pay(other, key="another").replayed
    assert effects(database) == 2


def test_work_that_fails_leaves_nothing_and_may_be_done_again(database: Database) -> None:
    def crash() -> None:
        with database.transaction(isolation="READ COMMITTED") as connection:
            pay(connection)
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert effects(database) == 0
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert not pay(connection).replayed
    assert effects(database) == 1


def test_crowd_with_one_key_does_the_work_once(database: Database) -> None:
    barrier = threading.Barrier(8)

    def attempt(_: int) -> str:
        barrier.wait()
        while True:
            try:
                with database.transaction(isolation="READ COMMITTED") as connection:
                    return "replayed" if pay(connection).replayed else "done"
            except ProblemError as error:
                if error.refusal is not RequestRefusal.IDEMPOTENCY_IN_PROGRESS:
                    raise

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attempt, range(8)))
    assert sorted(results) == ["done"] + ["replayed"] * 7
    assert effects(database) == 1


def test_old_answers_are_purged(database: Database) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        pay(connection)
        assert idempotency.purge(connection, before=datetime(2020, 1, 1, tzinfo=UTC)) == 0
        assert idempotency.purge(connection, before=datetime(2100, 1, 1, tzinfo=UTC)) == 1


def test_fingerprint_tells_method_path_and_body_apart() -> None:
    parts = [("POST", "/a", b"bc"), ("POST", "/ab", b"c"), ("PUT", "/a", b"bc"), ("POST", "/a", b"bd")]
    assert len({idempotency.fingerprint(*part) for part in parts}) == 4


def test_nonce_is_taken_once_by_a_crowd_and_forgotten_when_expired(database: Database) -> None:
    now = datetime.now(UTC)
    store = nonces.PostgresNonceStore(
        lambda: database.session(is_lazy=True), clock=lambda: now + timedelta(hours=1), purge_every=9
    )
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda _: store.take("key", "nonce", now + timedelta(minutes=5)), range(8)))
    assert taken.count(True) == 1
    assert store.take("other key", "nonce", now)
    assert store.take("key", "nonce", now + timedelta(minutes=5))  # the ninth call purged what had expired

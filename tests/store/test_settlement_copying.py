"""Goal: what COPY stores is what was given, whatever the texts hold; a broken rule is the error that an INSERT raises.

Method: rows of every kind of value through both ways into real tables, compared.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.database import Database
from settlement.store.copying import copy_rows

metadata = sa.MetaData()
table = sa.Table(
    "copied",
    metadata,
    sa.Column("number", sa.BigInteger, primary_key=True),
    sa.Column("text", sa.Text),
    sa.Column("bytes", sa.LargeBinary),
    sa.Column("flag", sa.Boolean),
    sa.Column("day", sa.Date),
    sa.Column("moment", sa.DateTime(timezone=True)),
    sa.Column("id", sa.Uuid),
)


@pytest.fixture(scope="module")
def database(fresh_databases: Callable[[str], str]) -> Database:
    made = Database(fresh_databases("settlement"), application_name="test-copying", pool_size=2)
    metadata.create_all(made.engine)
    return made


texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=20)
rows = st.lists(
    st.fixed_dictionaries(
        {
            "number": st.integers(-(2**63), 2**63 - 1),
            "text": st.none() | texts | st.sampled_from(["\\N", "\\.", "\t", "a\\tb", "\r\n", ""]),
            "bytes": st.none() | st.binary(max_size=20),
            "flag": st.none() | st.booleans(),
            "day": st.none() | st.dates(),
            "moment": st.none() | st.datetimes(timezones=st.just(UTC)),
            "id": st.none() | st.uuids(),
        }
    ),
    max_size=5,
    unique_by=lambda row: row["number"],
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows)
def test_rows_come_back_equal(database: Database, given_rows: list[dict[str, object]]) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(table.delete())
        copy_rows(connection, table, given_rows)
        found = [dict(row._mapping) for row in connection.execute(sa.select(table).order_by(table.c.number))]
    assert found == sorted(given_rows, key=lambda row: row["number"])  # type: ignore[arg-type,return-value]


def test_a_broken_key_is_an_integrity_error_and_leaves_nothing(database: Database) -> None:
    row = {"number": 1, "text": "x", "bytes": b"", "flag": True, "day": date(2026, 1, 1)}
    more = row | {"moment": datetime(2026, 1, 1, tzinfo=UTC), "id": UUID(int=1)}
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(table.delete())
    with pytest.raises(sa.exc.IntegrityError), database.transaction(isolation="READ COMMITTED") as connection:
        copy_rows(connection, table, [more, more])
    with database.transaction(isolation="READ COMMITTED") as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0


def test_an_unknown_kind_of_value_is_refused(database: Database) -> None:
    with pytest.raises((TypeError, sa.exc.DBAPIError)), database.transaction(isolation="READ COMMITTED") as connection:
        copy_rows(connection, table, [{"number": 1.5}])

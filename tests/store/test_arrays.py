"""Goal: an array that is sent as one text arrives as the values that were given, whatever the texts hold.

Method: arrays of every kind of value through a real server and back, compared; a thousand ids found among others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.arrays import array_text, is_one_of, rows_of
from kernel.clock import from_micros
from kernel.database import Database

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12) | st.sampled_from(
    ["", "NULL", "null", "{}", "{a,b}", '"', "\\", '\\"', " a ", "a,b", "\n", "a\tb", "'", "\\x00", "e=mc²"]
)
MOMENTS = st.integers(-(10**15), 10**16).map(from_micros)


@pytest.fixture(scope="module")
def database(fresh_databases: Callable[[str], str]) -> Database:
    return Database(fresh_databases("settlement"), application_name="test-arrays", pool_size=1)


@given(
    st.lists(
        st.tuples(
            st.none() | st.uuids(),
            st.none() | TEXTS,
            st.none() | st.binary(max_size=40),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | MOMENTS,
        ),
        max_size=6,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_rows_arrive_as_they_were_given(database: Database, rows: list[tuple[Any, ...]]) -> None:
    columns: dict[str, tuple[sa.types.TypeEngine[Any], list[Any]]] = {
        "id": (sa.Uuid(), [row[0] for row in rows]),
        "text": (sa.Text(), [row[1] for row in rows]),
        "bytes": (sa.LargeBinary(), [row[2] for row in rows]),
        "number": (sa.BigInteger(), [row[3] for row in rows]),
        "moment": (sa.DateTime(timezone=True), [row[4] for row in rows]),
    }
    with database.transaction(isolation="READ COMMITTED") as connection:
        found = connection.execute(sa.select(*rows_of(**columns).c)).all()
    assert [tuple(row) for row in found] == rows


@given(st.lists(st.uuids(), max_size=5), st.uuids())
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_one_of_many_ids(database: Database, ids: list[UUID], other: UUID) -> None:
    with database.transaction(isolation="READ COMMITTED") as connection:
        for wanted in (*ids, other):
            asked = sa.select(is_one_of(sa.literal(wanted, sa.Uuid()), ids))
            assert connection.execute(asked).scalar_one() == (wanted in ids)


def test_what_no_array_is_made_of_is_refused() -> None:
    with pytest.raises(TypeError, match="float"):
        array_text([1.5])
    with pytest.raises(TypeError, match="bool"):
        array_text([True])

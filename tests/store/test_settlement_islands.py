"""Goal: what was final on a chain stays so over restarts, in the code and in the database.

Method: a real PostgreSQL under the service's own role; the constraint and the trigger are asked alone, past the code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from uuid import UUID, uuid4

import psycopg
import pytest
import sqlalchemy as sa

from kernel import ids
from kernel.clock import system_clock
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.domain.escrow import HoldOrder, LegTerms
from settlement.store import tables as t
from settlement.store.islands import IslandMemory
from settlement.store.islands_tables import island_block
from tests.roles import as_service, dsn

LOW, HIGH = "0x" + "11" * 32, "0x" + "AB" * 32


@pytest.fixture
def url(fresh_database: Callable[[str], str]) -> str:
    return fresh_database("settlement")


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    made = Database(as_service(url, "settlement"), application_name="test", pool_size=2)
    yield made
    made.close()


def test_the_last_final_block_is_remembered_and_never_goes_back(database: Database) -> None:
    memory = IslandMemory(database, system_clock)
    assert memory.last("chain") is None
    memory.remember("chain", 7, HIGH)
    assert IslandMemory(database, system_clock).last("chain") == (7, HIGH.lower())
    for number in (7, 6, 0):
        memory.remember("chain", number, LOW)
    assert memory.last("chain") == (7, HIGH.lower())
    memory.remember("chain", 8, LOW)
    assert memory.last("chain") == (8, LOW)
    assert memory.last("another") is None


@pytest.mark.parametrize(
    "change",
    ["number = 6", f"hash = '{'0x' + '22' * 32}'", "ledger = 'other'", "number = 9, hash = 'x'", "number = -1"],
)
def test_the_database_alone_refuses_to_go_back(database: Database, url: str, change: str) -> None:
    IslandMemory(database, system_clock).remember("chain", 7, LOW)
    with psycopg.connect(dsn(url)) as connection, pytest.raises(psycopg.Error, match=r"island_block|final"):
        connection.execute(f"UPDATE island_block SET {change}")


def test_the_service_cannot_forget_a_final_block(database: Database) -> None:
    IslandMemory(database, system_clock).remember("chain", 7, LOW)
    with (
        pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
        database.transaction(isolation="READ COMMITTED") as connection,
    ):
        connection.execute(island_block.delete())


def order_of(reference: UUID, *, amount: int = 5) -> HoldOrder:
    parties = (ParticipantId("AAAACNBJ"), ParticipantId("BBBBAEAD"))
    terms = LegTerms("chain", *parties, AccountNumber(1), AccountNumber(2), Money(amount, Currency.of("CNY")))
    return HoldOrder(ids.new_uuid7(), terms, reference, bytes(32), bytes(32))


def test_a_legs_stored_authorisation_is_found_by_its_terms(database: Database) -> None:
    """What a fresh process sends again when a held lock was reorganised away."""
    reference, batch, settlement, now = uuid4(), ids.new_uuid7(), ids.new_uuid7(), system_clock()
    parties = {"debtor": "AAAACNBJ", "creditor": "BBBBAEAD"}
    leg = {"settlement_id": settlement, "payer": "AAAACNBJ", "payee": "BBBBAEAD", "currency": "CNY", "state": "held"}
    with database.transaction(isolation="READ COMMITTED") as connection:
        connection.execute(
            t.batch.insert().values(
                id=batch,
                submitter="AAAACNBJ",
                message_id="M",
                format="csv",
                content_sha256=bytes(32),
                settlement_count=1,
                received_at=now,
            )
        )
        connection.execute(
            t.settlement.insert().values(
                id=settlement,
                batch_id=batch,
                position=1,
                instruction_id="I",
                end_to_end_id="E",
                uetr=reference,
                value_date=now.date(),
                priority=2,
                state="received",
                **parties,
            )
        )
        rows = [("chain", 1, 2, 5, "0xab"), ("ledger", 3, 4, 5, "token")]
        for number, (ledger, debit, credit, amount, authorisation) in enumerate(rows):
            values = {"ledger": ledger, "debit": debit, "credit": credit, "amount_minor": amount}
            connection.execute(t.leg.insert().values(number=number, authorisation=authorisation, **values, **leg))
    memory = IslandMemory(database, system_clock)
    assert memory.authorisation(order_of(reference)) == "0xab"
    assert memory.authorisation(order_of(reference, amount=6)) is None
    assert memory.authorisation(order_of(uuid4())) is None

"""Goal: whoever locks settlements in another order cannot end the engine's epoch, with which all that is prepared ends.

Method: a real deadlock: another session holds the second settlement and asks for the first while `persist` holds the
first and waits for the second. The server gives `persist` up, and it is begun anew.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import psycopg

from kernel.database import Database
from settlement.domain.escrow import fresh_secrets
from settlement.store.decision_log import DecisionLog

BATCH = "00000000-0000-7000-8000-0000000000b1"
KEYS = [UUID(f"00000000-0000-7000-8000-00000000000{number}") for number in (1, 2)]
NOW = datetime(2026, 11, 23, 8, tzinfo=UTC)


def test_a_write_that_the_server_gave_up_to_break_a_deadlock_is_begun_anew(
    fresh_database: Callable[[str], str],
) -> None:
    url = fresh_database("settlement")
    database = Database(url, application_name="test")
    log = DecisionLog(database)
    epoch = log.take_lease(holder="here", now=NOW)
    entropy = iter(bytes([number]) * 32 for number in range(1, 9))
    secrets = {key: fresh_secrets(lambda _: next(entropy)) for key in KEYS}
    found: list[UUID] = []
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql"), autocommit=True) as setup:
        setup.execute("INSERT INTO batch VALUES (%s, 'BRDGAEAD', 'm', 'csv', %s, 2, now(), now())", [BATCH, bytes(32)])
        for position, key in enumerate(KEYS, start=1):
            setup.execute(
                "INSERT INTO settlement (id, batch_id, position, instruction_id, end_to_end_id, uetr, debtor, creditor,"
                " value_date, priority, state) VALUES (%s, %s, %s, 'i', 'e', %s, 'A', 'B', now(), 2, 'received')",
                [key, BATCH, position, key],
            )
    with psycopg.connect(url.replace("postgresql+psycopg", "postgresql")) as other:
        other.execute("SET deadlock_timeout = '1min'")  # so that the engine's session is the one given up
        other.execute("SELECT 1 FROM settlement WHERE id = %s FOR UPDATE", [KEYS[1]])
        writer = threading.Thread(
            target=lambda: found.extend(item.id for item in log.persist(secrets, epoch=epoch, now=NOW))
        )
        writer.start()
        while not other.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'").fetchall():
            time.sleep(0.01)
            other.execute("SELECT pg_stat_clear_snapshot()")
        other.execute("SELECT 1 FROM settlement WHERE id = %s FOR UPDATE", [KEYS[0]])
        other.rollback()
        writer.join(20)
    assert sorted(found) == KEYS
    database.close()

"""R9. Goal: SIGKILL of the settlement service at any moment, over two real ledgers: every pair both posted or neither.

Method: the world of `jiaozi-settlement torture`, and batches large enough for several waves while a seeded killer ends
the service at random moments, not at the protocol's points (those are `test_settlement_torture.py`), and starts it
again. At the end nobody is asked but the ledgers, and the decision log is compared with them.

JIAOZI_KILLS=100 JIAOZI_SEED=7 pytest tests/recovery/test_settlement_kill.py   # a campaign
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from uuid import UUID, uuid4

import pytest

from kernel.money import Money
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.pacs009 import write_pacs009
from settlement.store import batches
from settlement.torture.checks import Checker, Sent, SentLeg
from settlement.torture.world import World, patiently, temporary_place

KILLS = int(os.environ.get("JIAOZI_KILLS", "3"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
BATCH = 120
WAVE = "25"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setenv("JIAOZI_SETTLEMENT_WAVE_SETTLEMENTS", WAVE)
    with temporary_place() as place, World(place) as found:
        yield found


@pytest.mark.medium
@pytest.mark.campaign
@pytest.mark.timeout(120 + 30 * KILLS)
def test_i5_sigkill_of_the_settlement_service_splits_nothing(world: World) -> None:
    random, checker = Random(SEED), Checker(world)
    sent: list[Sent] = []
    ids: list[UUID] = []
    kills_in_work = 0
    for number in range(KILLS + 1):
        world.start_engine()
        lines, content = _batch(world, number)
        sent += lines
        checker.expect(lines)
        client = world.client()
        ids.append(patiently(lambda: client.submit_batch(content, file_format="pacs.009")).batch)  # noqa: B023
        if number < KILLS:
            time.sleep(random.uniform(0.0, 0.8))
            kills_in_work += not patiently(lambda: client.batch(ids[-1])).is_finished  # noqa: B023
            world.kill_engine(world.engines[0])
    for batch in ids:
        client.wait_for_batch(batch, timeout_seconds=60)
    assert not list(client.in_doubt())

    with world.database.transaction(isolation="READ COMMITTED") as connection:
        rows = [row for batch in ids for row in batches.settlements_page(connection, batch, after=0, limit=1_000)]
    findings = checker.check(sent, rows)
    checker.close()
    assert findings.violations == []
    assert findings.splits == 0
    assert findings.committed + findings.aborted == BATCH * (KILLS + 1)
    assert findings.committed >= BATCH  # the last run was not killed
    assert kills_in_work >= KILLS // 2, "the killer came too late to test anything: seed or batch size"
    print(f"\n{KILLS} kills, {kills_in_work} in mid-batch: {findings.committed} committed, {findings.aborted} aborted")


def _batch(world: World, number: int) -> tuple[list[Sent], bytes]:
    """CNY from the first bank against AED from the second."""
    cny, aed = world.ledgers.values()
    sent: list[Sent] = []
    instructions: list[Instruction] = []
    for line in range(BATCH):
        uetr, amounts = uuid4(), (1_000 + line, 500 + line)
        instructions.append(
            Instruction(
                f"I{number}-{line}", f"E{number}-{line}", uetr, cny.home_bank, aed.home_bank,
                Money(amounts[0], cny.currency), aed.currency, Money(amounts[1], aed.currency),
                datetime.now(UTC).date(), Priority.NORMAL,
            )
        )  # fmt: skip
        legs = (
            SentLeg(cny.name, cny.home_bank, aed.home_bank, amounts[0]),
            SentLeg(aed.name, aed.home_bank, cny.home_bank, amounts[1]),
        )
        sent.append(Sent(uetr, legs))
    return sent, write_pacs009(instructions, message_id=f"M{number}", created_at=datetime.now(UTC))

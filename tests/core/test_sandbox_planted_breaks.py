"""The demo's careless counterparty.

Goal: what `plant` announces is exactly what reconciliation finds, so that the demo's check means something.
Method: statements of several sizes with equal and different amounts, the product's own reconciliation, no services.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from kernel.ids import new_uuid7
from kernel.money import Currency, Money
from sandbox.reconcile import plant
from settlement.domain.reconciliation import reconcile
from settlement.domain.statements import Direction, Statement, StatementEntry, booked_net_minor, reference_of
from settlement.iso20022.camt053 import read_camt053
from settlement.usecases.statements import camt053_bytes

CNY = Currency.of("CNY")
NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)


def statement(amounts: list[int]) -> Statement:
    entries = tuple(
        StatementEntry(
            reference=reference_of(new_uuid7()),
            end_to_end_id=None,
            uetr=uuid4(),
            amount=Money(amount, CNY),
            direction=Direction.DEBIT,
            booked_at=NOW,
            value_date=NOW.date(),
        )
        for amount in amounts
    )
    return Statement("S-1", 1, "acc_1", CNY, NOW, NOW, NOW, 0, booked_net_minor(entries), entries)


@pytest.mark.parametrize(
    "amounts",
    [[100, 200, 300, 400], [500] * 9, list(range(1_000, 1_400)), [100, 9_100] * 20],
    ids=["four lines", "equal amounts", "many lines", "amounts as far apart as the error"],
)
def test_reconciliation_finds_exactly_what_was_planted(amounts: list[int]) -> None:
    ours = statement(amounts)
    known_as: dict[UUID | None, str] = {entry.uetr: reference_of(new_uuid7()) for entry in ours.entries}
    planted = plant(ours, known_as)
    copy = read_camt053(io.BytesIO(camt053_bytes(planted.statement))).statement
    assert copy is not None
    assert len(copy.entries) == len(ours.entries) + 1
    record = [
        StatementEntry(
            known_as[entry.uetr], "INV-1", entry.uetr, entry.amount, entry.direction, entry.booked_at, entry.value_date
        )
        for entry in ours.entries
    ]
    found = reconcile(record, copy.entries, as_of=NOW.date())
    assert {(item.type.value, item.our_references, item.their_references) for item in found.breaks} == planted.breaks
    assert len(found.breaks) == 4
    assert len(found.matched) == len(amounts) - 2

"""Gates: what keeps a received settlement from the engine, each with its reason (compliance, calendar, liquidity).

A gate is closed in the transaction that stores the settlement and opened once, by whoever closed it; the engine takes
a settlement when none of its gates is closed (`DecisionLog.received`). So a crash leaves a gate closed and a reason to
read, never a settlement that went on unchecked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa

from settlement.store import tables as t


class GateKind(StrEnum):
    COMPLIANCE = "compliance"
    CALENDAR = "calendar"
    LIQUIDITY = "liquidity"


@dataclass(frozen=True, slots=True)
class Gate:
    """`not_before` is when the gate may open by itself, where that is known."""

    settlement: UUID
    kind: GateKind
    reason: str
    not_before: datetime | None = None


def close(connection: sa.Connection, gates: Sequence[Gate], *, now: datetime) -> None:
    if gates:
        connection.execute(
            t.gate.insert(),
            [
                {
                    "settlement_id": gate.settlement,
                    "kind": gate.kind.value,
                    "reason": gate.reason[:500],
                    "not_before": gate.not_before,
                    "closed_at": now,
                }
                for gate in gates
            ],
        )


def open_gates(
    connection: sa.Connection, kind: GateKind, settlements: Sequence[UUID], *, by: str, now: datetime
) -> int:
    """Open one kind of gate of these settlements; how many were closed until now."""
    if not settlements:
        return 0
    where = (t.gate.c.settlement_id.in_(settlements)) & (t.gate.c.kind == kind.value) & t.gate.c.opened_at.is_(None)
    return connection.execute(t.gate.update().where(where).values(opened_at=now, opened_by=by)).rowcount


def closed(connection: sa.Connection, settlements: Sequence[UUID]) -> dict[UUID, list[Gate]]:
    """The gates that keep these settlements waiting."""
    rows = connection.execute(
        sa.select(t.gate)
        .where(t.gate.c.settlement_id.in_(settlements), t.gate.c.opened_at.is_(None))
        .order_by(t.gate.c.settlement_id, t.gate.c.kind)
    )
    found: dict[UUID, list[Gate]] = {}
    for row in rows:
        gate = Gate(row.settlement_id, GateKind(row.kind), row.reason, row.not_before)
        found.setdefault(row.settlement_id, []).append(gate)
    return found

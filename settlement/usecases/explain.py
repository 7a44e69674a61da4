"""Explains settlements from the log: reads the facts in one transaction, and lets the domain find the words."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from settlement.domain.explain import EngineFacts, Explanation, Facts, GateFacts, LegFacts, explain
from settlement.store import batches, gates
from settlement.store.decision_log import find_lease
from settlement.usecases.settle import UNDECIDED_MAX

Explained = tuple[batches.SettlementRow, Explanation | None, list[gates.Gate]]


def explain_rows(
    connection: sa.Connection, rows: Sequence[batches.SettlementRow], *, now: datetime, engine_silent_after: timedelta
) -> list[Explained]:
    """Each with its explanation (None if it has ended) and closed gates."""
    closed: dict[UUID, list[gates.Gate]] = gates.closed(connection, [row.id for row in rows]) if rows else {}
    lease = find_lease(connection)
    engine = None if lease is None else EngineFacts(*lease)
    explained: list[Explained] = []
    for row in rows:
        facts = _facts(row, closed.get(row.id, []), engine)
        answer = explain(facts, now=now, undecided_max=UNDECIDED_MAX, engine_silent_after=engine_silent_after)
        explained.append((row, answer, closed.get(row.id, [])))
    return explained


def _facts(row: batches.SettlementRow, closed: Sequence[gates.Gate], engine: EngineFacts | None) -> Facts:
    return Facts(
        state=row.state,
        legs=[
            LegFacts(
                found.leg.number,
                found.leg.terms.ledger,
                found.leg.terms.payer,
                found.leg.state,
                found.is_signed,
            )
            for found in row.legs
        ],
        gates=[GateFacts(gate.kind.value, gate.reason, gate.not_before) for gate in closed],
        is_started=row.is_started,
        waits_for=row.waits_for,
        reason=row.reason,
        detail=row.detail,
        decided_at=row.decided_at,
        prepared_at=row.prepared_at,
        epoch=row.epoch,
        abort_requested_by=row.abort_requested_by,
        engine=engine,
    )

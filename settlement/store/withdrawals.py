"""Ending a received settlement without ever preparing it: no secrets, no holds, nobody asked.

I5: the ABORT row is written like any other and is for ever, so a commit can never be decided; and there is no secret
that could post anything. The engine takes only what is `received`, under the same row lock, so one of the two has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa

from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.refusals import AbortReason
from settlement.store import tables as t
from settlement.store.liquidity import follow_decisions

NO_EPOCH = 0
"""Decisions of no engine; epochs count from 1."""
DETAIL_LENGTH_MAX = 300


def withdraw(
    connection: sa.Connection, details: Mapping[UUID, str], *, reason: AbortReason, now: datetime
) -> set[UUID]:
    """Cancel those that are still received; returns them. The others stay as they are: the engine has them, as a
    settlement of their own or as part of a netting settlement.

    Each is decided ABORT at `now`, with its reason and detail, in the caller's transaction; what a netting settlement
    stands for goes back to the queue with it.
    """
    taken = list(
        connection.execute(
            sa.select(t.settlement.c.id)
            .where(t.settlement.c.id.in_(list(details)), t.settlement.c.state == SettlementState.RECEIVED.value)
            .where(t.settlement.c.netted_by.is_(None))  # a netting settlement under way decides for it
            .order_by(t.settlement.c.id)
            .with_for_update()
        ).scalars()
    )
    if not taken:
        return set()
    connection.execute(
        t.decision.insert(),
        [
            {
                "settlement_id": key,
                "decision": Decision.ABORT.value,
                "epoch": NO_EPOCH,
                "decided_at": now,
                "reason": reason.value,
                "detail": details[key][:DETAIL_LENGTH_MAX],
            }
            for key in taken
        ],
    )
    connection.execute(
        t.leg.update()
        .where(t.leg.c.settlement_id.in_(taken))
        .values(decision=Decision.ABORT.value, state=LegState.REFUSED.value, detail=reason.value, ended_at=now)
    )
    connection.execute(
        t.settlement.update()
        .where(t.settlement.c.id.in_(taken))
        .values(state=SettlementState.CANCELLED.value, ended_at=now, waits_for="")
    )
    follow_decisions(connection, dict.fromkeys(taken, Decision.ABORT), epoch=NO_EPOCH, now=now)
    return set(taken)

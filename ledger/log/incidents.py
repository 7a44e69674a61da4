"""Incidents: a witness refused a checkpoint, for it has seen another history of this log.

One incident lasts from the first refusal until that witness cosigns a later block. While it is open and nobody has
acknowledged it, the ledger's health says so. An operator's acknowledgement, with a reason that is kept for ever and
shown to everybody, lets the health be good again although the witness still refuses; after a new cosignature a new
refusal is a new incident. What to do before one is acknowledged: docs/transparency.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ledger.log.tables import log_acknowledgement, log_cosignature, log_incident


@dataclass(frozen=True, slots=True)
class Incident:
    witness: str
    """Its vkey."""
    block: int
    """Of the first checkpoint that it refused."""
    size: int
    detail: str
    noticed_at: datetime
    is_open: bool
    """The witness has cosigned nothing since."""
    operator: str | None
    """Thumbprint of who acknowledged it."""
    reason: str | None
    acknowledged_at: datetime | None


def list_incidents(connection: sa.Connection, *, before: tuple[int, str] | None, limit: int) -> list[Incident]:
    """The newest first, from below (block, witness)."""
    query = _INCIDENTS.order_by(log_incident.c.block.desc(), log_incident.c.witness.desc()).limit(limit)
    if before is not None:
        query = query.where(sa.tuple_(log_incident.c.block, log_incident.c.witness) < sa.tuple_(*before))
    return [Incident(**row._mapping) for row in connection.execute(query)]


def find_incident(connection: sa.Connection, witness: str, block: int) -> Incident | None:
    query = _INCIDENTS.where(log_incident.c.witness == witness, log_incident.c.block == block)
    return _incident(connection.execute(query).first())


def open_incident(connection: sa.Connection, witness: str) -> Incident | None:
    """The one of a witness that goes on, if there is one."""
    query = _INCIDENTS.where(log_incident.c.witness == witness).order_by(log_incident.c.block.desc()).limit(1)
    found = _incident(connection.execute(query).first())
    return found if found is not None and found.is_open else None


def note_refusal(
    connection: sa.Connection, witness: str, *, block: int, size: int, detail: str, now: datetime
) -> Incident | None:
    """Write a refusal down, unless it belongs to an incident that is open. Returns the incident that it belongs to."""
    found = open_incident(connection, witness)
    if found is not None:
        return found
    row = {"witness": witness, "block": block, "size": size, "detail": detail, "noticed_at": now}
    connection.execute(insert(log_incident).values(**row).on_conflict_do_nothing())
    return find_incident(connection, witness, block)


def acknowledge(
    connection: sa.Connection, witness: str, block: int, *, operator: str, reason: str, now: datetime
) -> Incident | None:
    """The incident as acknowledged, by this call or by one before; None if there is no such incident."""
    if find_incident(connection, witness, block) is None:
        return None
    row = {"witness": witness, "block": block, "operator": operator, "reason": reason, "acknowledged_at": now}
    connection.execute(insert(log_acknowledgement).values(**row).on_conflict_do_nothing())
    return find_incident(connection, witness, block)


_COSIGNED_SINCE = (
    sa.exists()
    .where(log_cosignature.c.witness == log_incident.c.witness, log_cosignature.c.block > log_incident.c.block)
    .correlate(log_incident)
)
_INCIDENTS = sa.select(
    log_incident,
    (~_COSIGNED_SINCE).label("is_open"),
    log_acknowledgement.c.operator,
    log_acknowledgement.c.reason,
    log_acknowledgement.c.acknowledged_at,
).select_from(
    log_incident.outerjoin(
        log_acknowledgement,
        sa.and_(
            log_acknowledgement.c.witness == log_incident.c.witness,
            log_acknowledgement.c.block == log_incident.c.block,
        ),
    )
)


def _incident(row: Any) -> Incident | None:
    return Incident(**row._mapping) if row is not None else None

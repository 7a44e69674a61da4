"""The maker-checker queue: proposals and approvals as signed. What was carried out is in the journal's directives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from ledger.store.tables import directive, mandate, mandate_approval


@dataclass(frozen=True, slots=True)
class MandateRow:
    id: UUID
    proposal: str
    proposal_sha256: bytes
    maker: str
    status: str
    refusal: str | None
    directive: int | None
    proposed_at: datetime
    valid_until: datetime


def insert_mandate(connection: sa.Connection, row: MandateRow) -> bool:
    """True if it is new; an id that exists is left as it is."""
    statement = insert(mandate).values(
        id=row.id,
        proposal=row.proposal,
        proposal_sha256=row.proposal_sha256,
        maker=row.maker,
        status=row.status,
        proposed_at=row.proposed_at,
        valid_until=row.valid_until,
    )
    return connection.execute(statement.on_conflict_do_nothing().returning(mandate.c.id)).first() is not None


def find_mandate(connection: sa.Connection, mandate_id: UUID, *, lock: bool = False) -> MandateRow | None:
    query = sa.select(mandate).where(mandate.c.id == mandate_id)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return MandateRow(*row) if row is not None else None


def list_mandates(connection: sa.Connection, *, status: str | None, after: UUID | None, limit: int) -> list[MandateRow]:
    """In id order, which is the makers' time order."""
    query = sa.select(mandate).order_by(mandate.c.id).limit(limit)
    if status is not None:
        query = query.where(mandate.c.status == status)
    if after is not None:
        query = query.where(mandate.c.id > after)
    return [MandateRow(*row) for row in connection.execute(query)]


def insert_approval(
    connection: sa.Connection, mandate_id: UUID, *, operator: str, approval: str, approved_at: datetime
) -> bool:
    """False if this operator has approved it already (I8: one operator counts once)."""
    statement = insert(mandate_approval).values(
        mandate=mandate_id, operator=operator, approval=approval, approved_at=approved_at
    )
    inserted = statement.on_conflict_do_nothing().returning(mandate_approval.c.operator)
    return connection.execute(inserted).first() is not None


def approvals(connection: sa.Connection, mandate_id: UUID) -> Sequence[tuple[str, str]]:
    """(operator's thumbprint, approval as signed), in order of arrival."""
    rows = connection.execute(
        sa.select(mandate_approval.c.operator, mandate_approval.c.approval)
        .where(mandate_approval.c.mandate == mandate_id)
        .order_by(mandate_approval.c.approved_at, mandate_approval.c.operator)
    )
    return [(row.operator, row.approval) for row in rows]


def finish_mandate(
    connection: sa.Connection, mandate_id: UUID, *, status: str, directive_number: int | None, refusal: str | None
) -> None:
    """Of two at once, what was carried out stands."""
    unfinished = mandate.update().where(mandate.c.id == mandate_id, mandate.c.status != "executed")
    connection.execute(unfinished.values(status=status, directive=directive_number, refusal=refusal))


def directive_of(connection: sa.Connection, mandate_id: UUID) -> int | None:
    """The journal's word on whether a mandate was carried out."""
    found = connection.execute(sa.select(directive.c.number).where(directive.c.mandate_id == mandate_id)).scalar()
    return int(found) if found is not None else None

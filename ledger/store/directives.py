"""Directives of the journal, one at a time."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import sqlalchemy as sa

from ledger.store.tables import directive


class DirectiveRow(NamedTuple):
    number: int
    kind: str
    body: bytes
    booked_at: datetime


def find_directive(connection: sa.Connection, order: UUID) -> DirectiveRow | None:
    """What a mandate, or an account change's derived id, has done; None = nothing."""
    table = directive.c
    query = sa.select(table.number, table.kind, table.body, table.booked_at).where(table.mandate_id == order)
    row = connection.execute(query).one_or_none()
    return DirectiveRow(*row) if row is not None else None

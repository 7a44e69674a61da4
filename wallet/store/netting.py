"""What the institution has signed in netting settlements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.store import netting_tables as nt
from wallet.store.tables import leg_authorisation, settlement_instruction


@dataclass(frozen=True, slots=True)
class NettingLeg:
    hold_id: UUID
    netting_id: str
    ledger: str
    token: str


@dataclass(frozen=True, slots=True)
class Netting:
    id: str
    terms: Mapping[str, object]
    abort_hash: bytes
    created_at: datetime


def find(connection: sa.Connection, ids: Collection[str]) -> dict[str, tuple[Netting, dict[UUID, NettingLeg]]]:
    """By id, each with its signed legs by hold."""
    rows = connection.execute(sa.select(nt.netting).where(nt.netting.c.id.in_(sorted(ids)))).mappings().all()
    found = {
        row["id"]: (Netting(**(dict(row) | {"abort_hash": bytes(row["abort_hash"])})), dict[UUID, NettingLeg]())
        for row in rows
    }
    legs = connection.execute(sa.select(nt.netting_leg).where(nt.netting_leg.c.netting_id.in_(sorted(found))))
    for row in legs.mappings():
        found[row["netting_id"]][1][row["hold_id"]] = NettingLeg(**row)
    return found


def claims(connection: sa.Connection, order_ids: Collection[str]) -> dict[str, str]:
    """Which netting each of these orders was signed for in, if in one."""
    ids = sa.bindparam(None, list(order_ids), sa.ARRAY(sa.Text))
    query = sa.select(nt.netting_order).where(nt.netting_order.c.instruction_id == sa.func.any(ids))
    return {row.instruction_id: row.netting_id for row in connection.execute(query)}


def lock_orders(connection: sa.Connection, order_ids: Collection[str]) -> None:
    ids = sa.bindparam(None, list(order_ids), sa.ARRAY(sa.Text))
    connection.execute(
        sa.select(settlement_instruction.c.id)
        .where(settlement_instruction.c.id == sa.func.any(ids))
        .order_by(settlement_instruction.c.id)
        .with_for_update()
    )


def signed_alone(connection: sa.Connection, order_ids: Collection[str]) -> set[str]:
    ids = sa.bindparam(None, list(order_ids), sa.ARRAY(sa.Text))
    query = sa.select(leg_authorisation.c.instruction_id).where(leg_authorisation.c.instruction_id == sa.func.any(ids))
    return set(connection.execute(query).scalars())


def free_orders(connection: sa.Connection, netting_ids: Collection[str]) -> None:
    """The orders of nettings that are void can be signed for again."""
    connection.execute(nt.netting_order.delete().where(nt.netting_order.c.netting_id.in_(sorted(netting_ids))))


def insert_netting(
    connection: sa.Connection, netting: Netting, legs: Sequence[NettingLeg], order_ids: Collection[str]
) -> bool:
    """False if the netting is there already: read it back."""
    added = connection.execute(
        insert(nt.netting).on_conflict_do_nothing().values(asdict(netting)).returning(nt.netting.c.id)
    ).scalar()
    if added is None:
        return False
    connection.execute(nt.netting_leg.insert(), [asdict(leg) for leg in sorted(legs, key=lambda leg: leg.hold_id)])
    connection.execute(
        nt.netting_order.insert(),
        [{"instruction_id": key, "netting_id": netting.id} for key in sorted(order_ids)],
    )
    return True

"""Settlement orders and the leg authorisations given under them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.records import OrderedPayment, OrderedReceipt, SettlementOrder, SignedLeg
from wallet.store.tables import leg_authorisation, settlement_instruction


def insert_orders(connection: sa.Connection, rows: Sequence[SettlementOrder]) -> None:
    """Those whose id is taken are left out: read back with `find_orders`."""
    if rows:
        ordered = sorted(rows, key=lambda row: row.id)
        connection.execute(insert(settlement_instruction).on_conflict_do_nothing(), [asdict(row) for row in ordered])


def find_orders(connection: sa.Connection, order_ids: Collection[str]) -> dict[str, SettlementOrder]:
    ids = sa.bindparam(None, list(order_ids), sa.ARRAY(sa.Text))
    query = sa.select(settlement_instruction).where(settlement_instruction.c.id == sa.func.any(ids))
    return {row["id"]: _order(row) for row in connection.execute(query).mappings()}


def _order(row: sa.RowMapping) -> SettlementOrder:
    further = {
        "further_payments": tuple(OrderedPayment(**item) for item in row["further_payments"]),
        "further_receipts": tuple(OrderedReceipt(**item) for item in row["further_receipts"]),
    }
    return SettlementOrder(**(dict(row) | further))


def insert_legs(connection: sa.Connection, rows: Sequence[SignedLeg]) -> None:
    """Those whose order or hold is taken are left out: read back with `find_legs`."""
    if rows:
        ordered = sorted(rows, key=lambda row: (row.instruction_id, row.ledger, row.credit_account))
        connection.execute(insert(leg_authorisation).on_conflict_do_nothing(), [asdict(row) for row in ordered])


def find_legs(connection: sa.Connection, order_ids: Collection[str]) -> dict[str, dict[UUID, SignedLeg]]:
    """What is signed under each of these orders, by hold."""
    ids = sa.bindparam(None, list(order_ids), sa.ARRAY(sa.Text))
    query = sa.select(leg_authorisation).where(leg_authorisation.c.instruction_id == sa.func.any(ids))
    found: dict[str, dict[UUID, SignedLeg]] = {}
    for row in connection.execute(query).mappings():
        found.setdefault(row["instruction_id"], {})[row["hold_id"]] = SignedLeg(**row)
    return found

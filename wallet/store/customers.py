"""Customers, as encrypted as they came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.records import Customer
from wallet.domain.rules import Evidence
from wallet.store.tables import customer

_COLUMN_BY_EVIDENCE = {
    Evidence.PHONE: customer.c.phone_verified,
    Evidence.ID: customer.c.id_verified,
    Evidence.IN_PERSON: customer.c.seen_in_person,
    Evidence.BANK_ACCOUNT: customer.c.bank_account_verified,
}


def insert_customer(connection: sa.Connection, row: Customer) -> bool:
    """False if the id is taken."""
    values: dict[str, Any] = {
        "id": row.id,
        "wrapped_key": row.wrapped_key,
        "personal_data": row.personal_data,
        "created_at": row.created_at,
    }
    values |= {column.name: evidence in row.evidence for evidence, column in _COLUMN_BY_EVIDENCE.items()}
    statement = insert(customer).values(values).on_conflict_do_nothing().returning(customer.c.id)
    return connection.execute(statement).first() is not None


def save_evidence(connection: sa.Connection, customer_id: UUID, evidence: frozenset[Evidence]) -> None:
    values = {column.name: item in evidence for item, column in _COLUMN_BY_EVIDENCE.items()}
    connection.execute(sa.update(customer).where(customer.c.id == customer_id).values(values))


def find_customer(
    connection: sa.Connection, customer_id: UUID, *, lock: Literal["none", "evidence", "change"] = "none"
) -> Customer | None:
    """`evidence`: what was verified stays so until the transaction's end. `change`: and nobody else relies on it
    meanwhile. Before a wallet's lock, never after."""
    query = sa.select(customer).where(customer.c.id == customer_id)
    if lock != "none":
        query = query.with_for_update(read=lock == "evidence", key_share=lock == "change")
    row = connection.execute(query).mappings().first()
    return None if row is None else _customer(row)


def find_customers(connection: sa.Connection, customer_ids: Sequence[UUID]) -> list[Customer]:
    """Those that there are, in no order."""
    query = sa.select(customer).where(customer.c.id.in_(customer_ids))
    return [_customer(row) for row in connection.execute(query).mappings()]


def _customer(row: Mapping[Any, Any]) -> Customer:
    return Customer(
        id=row["id"],
        evidence=frozenset(evidence for evidence, column in _COLUMN_BY_EVIDENCE.items() if row[column.name]),
        wrapped_key=row["wrapped_key"],
        personal_data=row["personal_data"],
        created_at=row["created_at"],
    )

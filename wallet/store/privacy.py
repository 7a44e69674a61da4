"""Erasure, unmask orders and the privacy log, as rows."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.contract.privacy import ErasureReason
from wallet.domain.privacy import Approval, Case, Erasure, Officer
from wallet.store.families_tables import wallet_alias
from wallet.store.privacy_tables import (
    customer_erasure,
    privacy_checkpoint,
    privacy_entry,
    unmask_approval,
    unmask_case,
    unmask_disclosure,
)
from wallet.store.tables import customer, wallet

_LOCK = "jiaozi-privacy"


def lock(connection: sa.Connection) -> None:
    """One writer at a time of orders, approvals, disclosures and the log, to the transaction's end."""
    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(_LOCK, 0))))


# --- erasure ---------------------------------------------------------------------------------------------------------


def find_erasure(
    connection: sa.Connection, *, customer_id: UUID | None = None, id: UUID | None = None
) -> Erasure | None:
    column, value = (customer_erasure.c.id, id) if id is not None else (customer_erasure.c.customer_id, customer_id)
    row = connection.execute(sa.select(customer_erasure).where(column == value)).mappings().first()
    if row is None:
        return None
    reason = ErasureReason(row["reason"])
    return Erasure(row["id"], row["customer_id"], reason, row["erased_by"], row["erased_at"])


def has_living_wallet(connection: sa.Connection, customer_id: UUID) -> bool:
    query = sa.select(wallet.c.id).where(
        wallet.c.customer_id == customer_id, wallet.c.state.not_in(["closed", "refused"])
    )
    return connection.execute(query.limit(1)).first() is not None


def has_open_case(connection: sa.Connection, customer_id: UUID, *, now: datetime) -> bool:
    query = (
        sa.select(unmask_case.c.id)
        .outerjoin(unmask_disclosure, unmask_disclosure.c.case_id == unmask_case.c.id)
        .where(
            unmask_case.c.customer_id == customer_id,
            unmask_case.c.valid_until > now,
            unmask_disclosure.c.case_id.is_(None),
        )
    )
    return connection.execute(query.limit(1)).first() is not None


def erase(connection: sa.Connection, row: Erasure) -> None:
    """Overwrite key and data, let every alias of the customer's wallets point to nothing, leave the tombstone."""
    connection.execute(
        sa.update(customer).where(customer.c.id == row.customer_id).values(wrapped_key=b"", personal_data=b"")
    )
    theirs = wallet_alias.c.wallet_id.in_(sa.select(wallet.c.id).where(wallet.c.customer_id == row.customer_id))
    ended = {"is_default": False, "code_hash": None, "code_until": None}
    connection.execute(
        sa.update(wallet_alias)
        .where(theirs, wallet_alias.c.state.in_(["pending", "verified"]))
        .values(state="removed", ended_at=row.erased_at, **ended)
    )
    for (alias_id,) in connection.execute(sa.select(wallet_alias.c.id).where(theirs)).all():
        connection.execute(
            sa.update(wallet_alias).where(wallet_alias.c.id == alias_id).values(alias_hash=secrets.token_bytes(32))
        )
    connection.execute(
        sa.insert(customer_erasure).values(
            customer_id=row.customer_id,
            id=row.id,
            reason=row.reason.value,
            erased_by=row.erased_by,
            erased_at=row.erased_at,
        )
    )


# --- unmask ----------------------------------------------------------------------------------------------------------


def insert_case(connection: sa.Connection, case: Case) -> None:
    connection.execute(
        sa.insert(unmask_case).values(
            id=case.id,
            token=case.token,
            wallet_id=case.wallet_id,
            customer_id=case.customer_id,
            officer=case.officer.thumbprint,
            officer_name=case.officer.name,
            officer_key=case.officer.key,
            valid_until=case.valid_until,
            created_at=case.created_at,
        )
    )


def insert_approval(connection: sa.Connection, case: Case, approval: Approval) -> None:
    connection.execute(
        sa.insert(unmask_approval).values(
            case_id=case.id,
            officer=approval.officer.thumbprint,
            requested_by=case.officer.thumbprint,
            officer_name=approval.officer.name,
            officer_key=approval.officer.key,
            token=approval.token,
            created_at=approval.created_at,
        )
    )


def find_case(connection: sa.Connection, case_id: UUID) -> Case | None:
    found = _cases(connection, unmask_case.c.id == case_id, limit=1)
    return found[0] if found else None


def list_cases(connection: sa.Connection, *, after: UUID | None, limit: int) -> list[Case]:
    return _cases(connection, sa.true() if after is None else unmask_case.c.id > after, limit=limit)


def _cases(connection: sa.Connection, where: sa.ColumnElement[bool], *, limit: int) -> list[Case]:
    query = (
        sa.select(unmask_case, unmask_disclosure.c.entry_index)
        .outerjoin(unmask_disclosure, unmask_disclosure.c.case_id == unmask_case.c.id)
        .where(where)
        .order_by(unmask_case.c.id)
        .limit(limit)
    )
    rows = connection.execute(query).mappings().all()
    approvals: dict[UUID, list[Approval]] = {row["id"]: [] for row in rows}
    given = (
        sa.select(unmask_approval)
        .where(unmask_approval.c.case_id.in_(list(approvals)))
        .order_by(unmask_approval.c.created_at, unmask_approval.c.officer)
    )
    for row in connection.execute(given).mappings():
        approvals[row["case_id"]].append(Approval(_officer(row), row["token"], row["created_at"]))
    return [
        Case(
            id=row["id"],
            token=row["token"],
            wallet_id=row["wallet_id"],
            customer_id=row["customer_id"],
            officer=_officer(row),
            valid_until=row["valid_until"],
            created_at=row["created_at"],
            approvals=tuple(approvals[row["id"]]),
            entry_index=row["entry_index"],
        )
        for row in rows
    ]


def _officer(row: Any) -> Officer:
    return Officer(row["officer"], row["officer_name"], row["officer_key"])


def insert_disclosure(
    connection: sa.Connection,
    case: Case,
    *,
    approvers: tuple[str, str],
    entry_index: int,
    salt: bytes,
    entry: str,
    disclosed_at: datetime,
) -> None:
    connection.execute(
        sa.insert(unmask_disclosure).values(
            case_id=case.id,
            first_approver=approvers[0],
            second_approver=approvers[1],
            entry_index=entry_index,
            salt=salt,
            entry=entry,
            disclosed_at=disclosed_at,
        )
    )


def list_disclosures(
    connection: sa.Connection, *, wallet_id: UUID | None, after: int, limit: int
) -> list[tuple[int, bytes, str]]:
    """(index, salt, entry) in the log's order."""
    query = (
        sa.select(unmask_disclosure.c.entry_index, unmask_disclosure.c.salt, unmask_disclosure.c.entry)
        .where(unmask_disclosure.c.entry_index > after)
        .order_by(unmask_disclosure.c.entry_index)
        .limit(limit)
    )
    if wallet_id is not None:
        of_customer = sa.select(wallet.c.customer_id).where(wallet.c.id == wallet_id).scalar_subquery()
        query = query.join(unmask_case, unmask_case.c.id == unmask_disclosure.c.case_id).where(
            unmask_case.c.customer_id == of_customer
        )
    return [(int(index), bytes(salt), str(entry)) for index, salt, entry in connection.execute(query)]


# --- the log ---------------------------------------------------------------------------------------------------------


def commitments(connection: sa.Connection, *, start: int = 0, limit: int | None = None) -> list[bytes]:
    """In order of their index."""
    query = (
        sa.select(privacy_entry.c.commitment)
        .where(privacy_entry.c.index >= start)
        .order_by(privacy_entry.c.index)
        .limit(limit)
    )
    return [bytes(value) for value in connection.execute(query).scalars()]


def last_note(connection: sa.Connection) -> tuple[int, str] | None:
    """(size, signed note) of the newest checkpoint; None before the first entry."""
    query = sa.select(privacy_checkpoint.c.size, privacy_checkpoint.c.note).order_by(privacy_checkpoint.c.size.desc())
    row = connection.execute(query.limit(1)).first()
    return None if row is None else (int(row[0]), str(row[1]))


def append(connection: sa.Connection, *, index: int, commitment: bytes, note: str) -> None:
    """Under `lock`; another writer's entry at this index would be refused by the primary key."""
    connection.execute(insert(privacy_entry).values(index=index, commitment=commitment))
    connection.execute(insert(privacy_checkpoint).values(size=index + 1, last_index=index, note=note))


def wallets_of(connection: sa.Connection, customer_id: UUID) -> Sequence[UUID]:
    query = sa.select(wallet.c.id).where(wallet.c.customer_id == customer_id).order_by(wallet.c.id)
    return connection.execute(query).scalars().all()

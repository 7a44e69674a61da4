"""Changes of wallets, devices, evidence, notices. Whoever writes here holds the wallet's lock (`lock_wallet`)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import show_account
from wallet.domain.events import EventType
from wallet.domain.lifecycle import Change, Device, DeviceStateName, Notice
from wallet.domain.limits import Caps
from wallet.domain.rules import Evidence
from wallet.store import events
from wallet.store.lifecycle_tables import customer_evidence_change, notice, wallet_change, wallet_device
from wallet.store.programs_tables import program
from wallet.store.requests_tables import redemption, refund, refund_original
from wallet.store.tables import exchange_in, payment, wallet

_OPEN_STATES = ("pending", "waiting")


# --- changes ---------------------------------------------------------------------------------------------------------


def insert_change(connection: sa.Connection, row: Change) -> None:
    connection.execute(sa.insert(wallet_change).values(asdict(row)))


def find_change(connection: sa.Connection, change_id: UUID) -> Change | None:
    row = connection.execute(sa.select(wallet_change).where(wallet_change.c.id == change_id)).mappings().first()
    return None if row is None else Change(**row)


def open_changes(connection: sa.Connection, wallet_id: UUID) -> list[Change]:
    """Pending and waiting ones."""
    query = sa.select(wallet_change).where(
        wallet_change.c.wallet_id == wallet_id, wallet_change.c.state.in_(_OPEN_STATES)
    )
    return [Change(**row) for row in connection.execute(query.order_by(wallet_change.c.created_at)).mappings()]


def find_objected(connection: sa.Connection, wallet_id: UUID, objection_id: UUID) -> Change | None:
    """The recovery that this objection ended."""
    query = sa.select(wallet_change).where(
        wallet_change.c.wallet_id == wallet_id,
        wallet_change.c.kind == "recover",
        wallet_change.c.state == "objected",
        wallet_change.c.progress["objection"].astext == str(objection_id),
    )
    row = connection.execute(query).mappings().first()
    return None if row is None else Change(**row)


def update_change(connection: sa.Connection, change_id: UUID, **values: Any) -> bool:
    """Only of an open change: what has ended stays as it ended. False if it has."""
    statement = (
        sa.update(wallet_change)
        .where(wallet_change.c.id == change_id, wallet_change.c.state.in_(_OPEN_STATES))
        .values(values)
    )
    return connection.execute(statement).rowcount == 1


def changes_due(connection: sa.Connection, *, now: datetime, created_before: datetime, limit: int) -> list[Change]:
    """What can be gone on with: ones of some age, and those with a time whose time has come. The longest due first."""
    query = (
        sa.select(wallet_change)
        .where(
            wallet_change.c.state.in_(_OPEN_STATES),
            sa.func.coalesce(wallet_change.c.due_at <= now, wallet_change.c.created_at <= created_before),
        )
        .order_by(sa.func.coalesce(wallet_change.c.due_at, wallet_change.c.created_at))
        .limit(limit)
    )
    return [Change(**row) for row in connection.execute(query).mappings()]


def list_changes(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Change]:
    """Newest first."""
    query = sa.select(wallet_change).where(wallet_change.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(wallet_change.c.created_at, wallet_change.c.id) < sa.tuple_(*before))
    query = query.order_by(wallet_change.c.created_at.desc(), wallet_change.c.id.desc()).limit(limit)
    return [Change(**row) for row in connection.execute(query).mappings()]


# --- the wallet's own row --------------------------------------------------------------------------------------------


def update_wallet(connection: sa.Connection, wallet_id: UUID, **values: Any) -> None:
    connection.execute(sa.update(wallet).where(wallet.c.id == wallet_id).values(values))


def save_own_caps(connection: sa.Connection, wallet_id: UUID, own: Caps) -> None:
    update_wallet(connection, wallet_id, **asdict(own))


def wallet_ids_of(connection: sa.Connection, customer_id: UUID) -> list[UUID]:
    query = sa.select(wallet.c.id).where(wallet.c.customer_id == customer_id).order_by(wallet.c.id)
    return list(connection.execute(query).scalars())


def has_unfinished_money(connection: sa.Connection, wallet_id: UUID) -> bool:
    """Whether a payment, an exchange, a deposit credit, a payer's code or a refund of the wallet is on its way."""
    payments = sa.exists().where(
        payment.c.wallet_id == wallet_id,
        sa.or_(
            payment.c.state == "initiated",
            sa.and_(
                payment.c.kind == "exchange-out", payment.c.state == "final", payment.c.deposit_credited_at.is_(None)
            ),
        ),
    )
    exchanges = sa.exists().where(
        exchange_in.c.wallet_id == wallet_id, exchange_in.c.state.in_(("initiated", "debited", "compensating"))
    )
    codes = sa.exists().where(redemption.c.wallet_id == wallet_id, redemption.c.state == "initiated")
    refunds = sa.exists().where(
        refund.c.original_id == refund_original.c.transfer_id,
        refund_original.c.wallet_id == wallet_id,
        refund.c.state == "reserved",
    )
    return bool(connection.execute(sa.select(sa.or_(payments, exchanges, codes, refunds))).scalar_one())


def has_unfinished_program(connection: sa.Connection, wallet_id: UUID, account: int | None) -> bool:
    """Whether a program that holds money, or may, pays from the wallet or to its account.

    Who was promised vouchers is not kept by them: what he does not spend goes back to who gave them.
    """
    concerns = [program.c.wallet_id == wallet_id]
    if account is not None:
        party = [{"role": "payee", "account": show_account(account)}]
        concerns.append(program.c.terms["parties"].contains(party))
    query = sa.select(
        sa.exists().where(
            program.c.wake_at.is_not(None),  # as every unfinished one has (`not_forgotten`); it has an index
            program.c.state.in_(("funding", "active", "refusing")),
            sa.or_(*concerns),
        )
    )
    return bool(connection.execute(query).scalar_one())


def exchanged_in_beyond(connection: sa.Connection, wallet_id: UUID, *, seq: int) -> int:
    """Minor units that are on their way into the wallet, or arrived after the ledger's `seq`."""
    query = sa.select(sa.func.coalesce(sa.func.sum(exchange_in.c.amount_minor), 0)).where(
        exchange_in.c.wallet_id == wallet_id,
        sa.or_(
            exchange_in.c.state.in_(("initiated", "debited", "compensating")),
            sa.and_(exchange_in.c.state == "final", sa.or_(exchange_in.c.seq.is_(None), exchange_in.c.seq > seq)),
        ),
    )
    return int(connection.execute(query).scalar_one())


# --- devices ---------------------------------------------------------------------------------------------------------


def insert_device(connection: sa.Connection, row: Device) -> bool:
    """False if the key is known. Only one that the same wallet was refused may be tried again."""
    statement = insert(wallet_device).values(asdict(row))
    statement = statement.on_conflict_do_update(
        constraint="wallet_device_pk",
        set_={"state": row.state, "added_at": row.added_at, "ended_at": row.ended_at},
        where=sa.and_(wallet_device.c.wallet_id == row.wallet_id, wallet_device.c.state == "refused"),
    )
    return connection.execute(statement.returning(wallet_device.c.thumbprint)).first() is not None


def devices_of(connection: sa.Connection, wallet_id: UUID) -> list[Device]:
    query = (
        sa.select(wallet_device)
        .where(wallet_device.c.wallet_id == wallet_id)
        .order_by(wallet_device.c.added_at, wallet_device.c.thumbprint)
    )
    return [Device(**row) for row in connection.execute(query).mappings()]


def set_devices(
    connection: sa.Connection,
    wallet_id: UUID,
    thumbprints: Collection[str],
    state: DeviceStateName,
    *,
    ended_at: datetime | None,
) -> None:
    """New state of some devices; then the wallet's row, which payments read, is brought to the active ones."""
    connection.execute(
        sa.update(wallet_device)
        .where(wallet_device.c.wallet_id == wallet_id, wallet_device.c.thumbprint.in_(list(thumbprints)))
        .values(state=state, ended_at=ended_at)
    )
    active = [device for device in devices_of(connection, wallet_id) if device.state == "active"]
    if active:  # a closed wallet keeps its last device's name
        first, *others = active
        update_wallet(
            connection,
            wallet_id,
            device_key=dict(first.key),
            device_thumbprint=first.thumbprint,
            other_device_keys={device.thumbprint: dict(device.key) for device in others} or sa.null(),
        )


# --- evidence --------------------------------------------------------------------------------------------------------


def insert_evidence_change(
    connection: sa.Connection,
    change_id: UUID,
    customer_id: UUID,
    *,
    added: Collection[Evidence],
    withdrawn: Collection[Evidence],
    now: datetime,
) -> None:
    connection.execute(
        sa.insert(customer_evidence_change).values(
            id=change_id,
            customer_id=customer_id,
            added=sorted(added),
            withdrawn=sorted(withdrawn),
            created_at=now,
            is_enforced=False,
        )
    )


def find_evidence_change(
    connection: sa.Connection, change_id: UUID
) -> tuple[UUID, frozenset[Evidence], frozenset[Evidence]] | None:
    """(customer, added, withdrawn)"""
    query = sa.select(customer_evidence_change).where(customer_evidence_change.c.id == change_id)
    row = connection.execute(query).first()
    if row is None:
        return None
    return row.customer_id, frozenset(map(Evidence, row.added)), frozenset(map(Evidence, row.withdrawn))


def evidence_changes_unenforced(connection: sa.Connection, *, limit: int) -> list[tuple[UUID, UUID]]:
    """(change, customer), the oldest first."""
    query = (
        sa.select(customer_evidence_change.c.id, customer_evidence_change.c.customer_id)
        .where(sa.not_(customer_evidence_change.c.is_enforced))
        .order_by(customer_evidence_change.c.created_at)
        .limit(limit)
    )
    return [(row.id, row.customer_id) for row in connection.execute(query)]


def mark_enforced(connection: sa.Connection, change_id: UUID) -> None:
    connection.execute(
        sa.update(customer_evidence_change).where(customer_evidence_change.c.id == change_id).values(is_enforced=True)
    )


# --- notices ---------------------------------------------------------------------------------------------------------


def insert_notice(connection: sa.Connection, row: Notice) -> None:
    connection.execute(sa.insert(notice).values(asdict(row)))
    subject, data = f"wlt_{row.wallet_id}", {"kind": row.kind}
    events.emit(connection, EventType.WALLET_CHANGED, subject, at=row.at, wallet_id=row.wallet_id, data=data)


def list_notices(
    connection: sa.Connection, *, wallet_id: UUID, before: tuple[datetime, UUID] | None, limit: int
) -> list[Notice]:
    """Newest first."""
    query = sa.select(notice).where(notice.c.wallet_id == wallet_id)
    if before is not None:
        query = query.where(sa.tuple_(notice.c.at, notice.c.id) < sa.tuple_(*before))
    found = connection.execute(query.order_by(notice.c.at.desc(), notice.c.id.desc()).limit(limit)).mappings()
    return [Notice(**row) for row in found]

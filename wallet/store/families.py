"""Families and corporate owners. What a payment asks of them on its way is in `wallet.store.own_rules`."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from kernel.ids import AccountNumber
from wallet.domain.families import Child, ChildCaps, ChildState, ChildUsage
from wallet.store.families_tables import child_credit, child_wallet, corporate_customer, family_member
from wallet.store.own_rules import child_of
from wallet.store.tables import payment, wallet


def join_family(connection: sa.Connection, wallet_id: UUID, role: str) -> str:
    """The wallet's role: the one given, unless it has one already. A role never changes: the service may not update the
    row (nor, therefore, lock it), and whoever counts a parent's children has locked its wallet."""
    connection.execute(insert(family_member).values(wallet_id=wallet_id, role=role).on_conflict_do_nothing())
    query = sa.select(family_member.c.role).where(family_member.c.wallet_id == wallet_id)
    found: str = connection.execute(query).scalar_one()
    return found


def insert_child(
    connection: sa.Connection, child: Child, *, label: str, sealed_key: bytes | None, created_at: datetime
) -> None:
    connection.execute(
        sa.insert(child_wallet).values(
            wallet_id=child.wallet_id,
            role="child",
            parent_id=child.parent_id,
            parent_role="parent",
            label=label,
            parent_account=child.parent_account,
            merchant_account=child.merchant,
            sealed_key=sealed_key,
            created_at=created_at,
            state=child.state,
            version=child.version,
            **_caps(child.caps),
            **_usage(child.usage),
        )
    )


def find_child(connection: sa.Connection, child_id: UUID) -> Child | None:
    row = connection.execute(sa.select(child_wallet).where(child_wallet.c.wallet_id == child_id)).mappings().first()
    return None if row is None else child_of(row)


def lock_child(connection: sa.Connection, child_id: UUID) -> Child | None:
    """The wallet's row must be locked first."""
    query = sa.select(child_wallet).where(child_wallet.c.wallet_id == child_id).with_for_update()
    row = connection.execute(query).mappings().first()
    return None if row is None else child_of(row)


def label_and_key(connection: sa.Connection, child_id: UUID) -> tuple[str, bytes | None]:
    row = connection.execute(
        sa.select(child_wallet.c.label, child_wallet.c.sealed_key).where(child_wallet.c.wallet_id == child_id)
    ).one()
    return row.label, row.sealed_key


def list_children(connection: sa.Connection, parent_id: UUID) -> list[Child]:
    """In order of id; a family is bounded."""
    query = sa.select(child_wallet).where(child_wallet.c.parent_id == parent_id).order_by(child_wallet.c.wallet_id)
    return [child_of(row) for row in connection.execute(query).mappings()]


def labels(connection: sa.Connection, parent_id: UUID) -> dict[UUID, str]:
    query = sa.select(child_wallet.c.wallet_id, child_wallet.c.label).where(child_wallet.c.parent_id == parent_id)
    return {row.wallet_id: row.label for row in connection.execute(query)}


def count_not_closed(connection: sa.Connection, parent_id: UUID) -> int:
    """Children that are neither closed by their parent nor closed as wallets."""
    query = (
        sa.select(sa.func.count())
        .select_from(child_wallet.join(wallet, wallet.c.id == child_wallet.c.wallet_id))
        .where(
            child_wallet.c.parent_id == parent_id,
            child_wallet.c.state != "closed",
            wallet.c.state.not_in(("closed", "refused")),
        )
    )
    return int(connection.execute(query).scalar_one())


def note_account(connection: sa.Connection, wallet_id: UUID, account: AccountNumber) -> None:
    """In the transaction that opens the wallet: no payment may meet a child without its rules."""
    connection.execute(sa.update(child_wallet).where(child_wallet.c.wallet_id == wallet_id).values(account=account))


def save_caps(connection: sa.Connection, child: Child, caps: ChildCaps, usage: ChildUsage) -> None:
    connection.execute(
        sa.update(child_wallet)
        .where(child_wallet.c.wallet_id == child.wallet_id)
        .values(
            version=child.version + 1,
            **_caps(caps),
            **_usage(usage),
        )
    )


def incoming_minor(connection: sa.Connection, child_id: UUID, *, after: int) -> int:
    """As `wallet.store.own_rules.incoming_minor`."""
    is_new = sa.or_(payment.c.state == "initiated", sa.and_(payment.c.state == "final", payment.c.seq > after))
    query = (
        sa.select(sa.func.coalesce(sa.func.sum(payment.c.amount_minor), 0))
        .select_from(child_credit.join(payment, payment.c.id == child_credit.c.payment_id))
        .where(child_credit.c.wallet_id == child_id, is_new)
    )
    return int(connection.execute(query).scalar_one())


def end(connection: sa.Connection, child: Child, state: ChildState, *, ended_at: datetime) -> None:
    """Revoked or closed: the sealed key is destroyed, and with it what the merchant could do."""
    connection.execute(
        sa.update(child_wallet)
        .where(child_wallet.c.wallet_id == child.wallet_id)
        .values(
            state=state,
            sealed_key=None,
            ended_at=ended_at,
            version=child.version + 1,
        )
    )


def insert_corporate(connection: sa.Connection, customer_id: UUID, *, legal_data: bytes, created_at: datetime) -> None:
    values = {"customer_id": customer_id, "legal_data": legal_data, "created_at": created_at}
    connection.execute(insert(corporate_customer).values(values).on_conflict_do_nothing())


def find_corporate(connection: sa.Connection, customer_id: UUID) -> bytes | None:
    found: bytes | None = connection.execute(
        sa.select(corporate_customer.c.legal_data).where(corporate_customer.c.customer_id == customer_id)
    ).scalar_one_or_none()
    return found


def _caps(caps: ChildCaps) -> dict[str, int | None]:
    return {
        "balance_max_minor": caps.balance_max_minor,
        "single_max_minor": caps.single_max_minor,
        "day_max_minor": caps.day_max_minor,
        "total_max_minor": caps.total_max_minor,
    }


def _usage(usage: ChildUsage) -> dict[str, object]:
    return {
        "used_on": usage.day,
        "used_day_minor": usage.day_minor,
        "used_total_minor": usage.total_minor,
        "day_floor_minor": usage.day_floor_minor,
        "total_floor_minor": usage.total_floor_minor,
    }

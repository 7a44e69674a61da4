"""Hardware wallets, off the way of a payment (that is in `wallet.store.own_rules`)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.domain.cards import Card, CardRecord
from wallet.store.families_tables import hardware_card


def insert_card(connection: sa.Connection, card: Card, *, created_at: datetime) -> None:
    """Nothing if the key is a card's already."""
    values = {
        "thumbprint": card.thumbprint,
        "wallet_id": card.wallet_id,
        "account": card.account,
        "counter_last": card.counter_last,
        "pin_free_single_max_minor": card.pin_free_single_max_minor,
        "pin_free_total_max_minor": card.pin_free_total_max_minor,
        "pin_free_minor": card.pin_free_minor,
        "state": card.state,
        "created_at": created_at,
    }
    connection.execute(insert(hardware_card).values(values).on_conflict_do_nothing())


def cards_of(connection: sa.Connection, wallet_id: UUID) -> list[CardRecord]:
    """In order of key; a wallet has few."""
    query = sa.select(hardware_card).where(hardware_card.c.wallet_id == wallet_id)
    return [
        CardRecord(
            card=Card(
                thumbprint=row["thumbprint"],
                wallet_id=row["wallet_id"],
                account=row["account"],
                counter_last=row["counter_last"],
                pin_free_single_max_minor=row["pin_free_single_max_minor"],
                pin_free_total_max_minor=row["pin_free_total_max_minor"],
                pin_free_minor=row["pin_free_minor"],
                state=row["state"],
            ),
            suspended_why=row["suspended_why"],
            suspended_at=row["suspended_at"],
            evidence=tuple(token for token in (row["evidence_first"], row["evidence_second"]) if token),
        )
        for row in connection.execute(query.order_by(hardware_card.c.thumbprint)).mappings()
    ]


def suspend_reported(connection: sa.Connection, thumbprint: str, *, suspended_at: datetime) -> None:
    connection.execute(
        sa.update(hardware_card)
        .where(hardware_card.c.thumbprint == thumbprint, hardware_card.c.state == "active")
        .values(state="suspended", suspended_why="reported", suspended_at=suspended_at)
    )

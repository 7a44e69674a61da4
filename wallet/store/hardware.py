"""Hardware wallets, off the way of a payment (that is in `wallet.store.own_rules`)."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from wallet.contract.cards import CardAttestation, CardRevocations
from wallet.domain.cards import Card, CardRecord
from wallet.store.families_tables import card_revocation, hardware_card


def insert_card(
    connection: sa.Connection, card: Card, attested: CardAttestation, *, token: str, created_at: datetime
) -> None:
    """Nothing if the key, or the issuer's serial, is a card's already."""
    values = {
        "thumbprint": card.thumbprint,
        "wallet_id": card.wallet_id,
        "account": card.account,
        "counter_last": card.counter_last,
        "pin_free_single_max_minor": card.pin_free_single_max_minor,
        "pin_free_total_max_minor": card.pin_free_total_max_minor,
        "pin_free_minor": card.pin_free_minor,
        "state": card.state,
        "expires_at": card.expires_at,
        "issuer": attested.issuer,
        "serial": attested.serial,
        "model": attested.model,
        "attested_single_max_minor": attested.pin_free_single_max_minor,
        "attested_total_max_minor": attested.pin_free_total_max_minor,
        "attestation": token,
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
                expires_at=row["expires_at"],
            ),
            suspended_why=row["suspended_why"],
            suspended_at=row["suspended_at"],
            evidence=tuple(token for token in (row["evidence_first"], row["evidence_second"]) if token),
        )
        for row in connection.execute(query.order_by(hardware_card.c.thumbprint)).mappings()
    ]


def is_revoked(connection: sa.Connection, issuer: str, serial: str) -> bool:
    query = sa.select(card_revocation.c.number).where(
        card_revocation.c.issuer == issuer, card_revocation.c.serial == serial
    )
    return connection.execute(query).first() is not None


def insert_revocations(connection: sa.Connection, listed: CardRevocations, *, revoked_at: datetime) -> None:
    rows = [
        {"issuer": listed.issuer, "serial": serial, "number": listed.number, "revoked_at": revoked_at}
        for serial in sorted(set(listed.serials))
    ]
    if rows:
        connection.execute(insert(card_revocation).values(rows).on_conflict_do_nothing())


def wallets_of_serials(connection: sa.Connection, listed: CardRevocations) -> list[UUID]:
    """Of the cards to suspend, in order."""
    query = sa.select(hardware_card.c.wallet_id).where(_is_active_of(listed)).distinct()
    return sorted(connection.execute(query).scalars())


def suspend_revoked(connection: sa.Connection, listed: CardRevocations, *, suspended_at: datetime) -> int:
    """Their wallets' rows must be locked."""
    values = {"state": "suspended", "suspended_why": "revoked", "suspended_at": suspended_at}
    return connection.execute(sa.update(hardware_card).where(_is_active_of(listed)).values(values)).rowcount


def _is_active_of(listed: CardRevocations) -> sa.ColumnElement[bool]:
    return sa.and_(
        hardware_card.c.issuer == listed.issuer,
        hardware_card.c.serial.in_(listed.serials),
        hardware_card.c.state == "active",
    )


def suspend_reported(connection: sa.Connection, thumbprint: str, *, suspended_at: datetime) -> None:
    connection.execute(
        sa.update(hardware_card)
        .where(hardware_card.c.thumbprint == thumbprint, hardware_card.c.state == "active")
        .values(state="suspended", suspended_why="reported", suspended_at=suspended_at)
    )

"""Requests for settlements of n legs."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from pydantic import UUID4, BeforeValidator, Field, WithJsonSchema

from ledger.contract import Amount, CurrencyCode, Model, ParticipantRef
from settlement.domain.instructions import Priority
from settlement.domain.multileg import LEGS_MAX, LEGS_MIN


def _day(value: object) -> date:
    """A calendar date as text alone: a number would be read as seconds since 1970."""
    if isinstance(value, date):
        return value
    if not isinstance(value, str) or len(value) != len("2026-01-31"):
        raise ValueError("a date is YYYY-MM-DD")
    return date.fromisoformat(value)


Day = Annotated[date, BeforeValidator(_day), WithJsonSchema({"type": "string", "format": "date"})]


class LegRequest(Model):
    """`payer` pays `payee` on `ledger`, from and to their own accounts there."""

    ledger: Annotated[str, Field(min_length=1, max_length=64)]
    payer: ParticipantRef
    payee: ParticipantRef
    amount_minor: Amount
    currency: CurrencyCode


class SettlementRequest(Model):
    """All legs or none. The first leg's payer is the debtor, its payee the creditor."""

    uetr: Annotated[UUID4, Field(examples=["8f0a6d1e-3b7c-4f52-9a51-0c6c8f0e7a11"])]
    """A UUID of version 4; a payment is settled once."""
    legs: Annotated[list[LegRequest], Field(min_length=LEGS_MIN, max_length=LEGS_MAX)]
    value_date: Day
    priority: Priority = Priority.NORMAL

"""Dated limits: which is in force on a day, and what it leaves.

A participant sets its own; the operator sets a cap for each participant and currency, and no limit of the participant
may be above it. Should the cap fall later, the smaller of both counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID

from kernel.ids import ParticipantId
from settlement.domain.liquidity.model import LimitKind, Room


@dataclass(frozen=True, slots=True)
class Limit:
    """What may be paid net in a day, from `valid_from` on. No amount = lifted."""

    id: UUID
    kind: LimitKind
    participant: ParticipantId
    currency: str
    counterparty: ParticipantId | None
    amount_minor: int | None
    valid_from: date
    is_operator: bool
    """Set by the operator: a cap that the participant's own limits cannot pass."""
    set_by: ParticipantId
    set_at: datetime

    @property
    def name(self) -> tuple[ParticipantId, str, LimitKind, ParticipantId | None, bool]:
        return (self.participant, self.currency, self.kind, self.counterparty, self.is_operator)


def in_force(limits: Iterable[Limit], *, on: date) -> list[Limit]:
    """Of each limit the row with the latest date that has come, then the latest set; lifted ones are left out."""
    latest: dict[tuple[ParticipantId, str, LimitKind, ParticipantId | None, bool], Limit] = {}
    for limit in sorted(limits, key=lambda limit: (limit.valid_from, limit.set_at, limit.id)):
        if limit.valid_from <= on:
            latest[limit.name] = limit
    return [limit for limit in latest.values() if limit.amount_minor is not None]


def operator_cap(limits: Iterable[Limit], participant: ParticipantId, currency: str, *, on: date) -> int | None:
    found = [
        limit.amount_minor
        for limit in in_force(limits, on=on)
        if limit.is_operator and (limit.participant, limit.currency) == (participant, currency)
    ]
    return found[0] if found else None


def rooms(
    limits: Iterable[Limit],
    *,
    on: date,
    paid: Mapping[tuple[ParticipantId, ParticipantId, str], int],
) -> tuple[Room, ...]:
    """What the limits in force leave. `paid`: what the first paid the second gross that day, by currency."""
    found = in_force(limits, on=on)
    amounts: dict[tuple[ParticipantId, str, LimitKind, ParticipantId | None], int] = {}
    for limit in found:
        key = (limit.participant, limit.currency, limit.kind, limit.counterparty)
        amount = limit.amount_minor or 0
        amounts[key] = min(amounts.get(key, amount), amount)
    has_own = {(who, currency, other) for who, currency, kind, other in amounts if kind is LimitKind.BILATERAL}
    made: list[Room] = []
    for (who, currency, kind, counterparty), amount in sorted(amounts.items(), key=lambda item: str(item[0])):
        used = 0
        for (payer, payee, paid_currency), moved in paid.items():
            if paid_currency != currency or who not in (payer, payee):
                continue
            other = payee if payer == who else payer
            counts = kind is LimitKind.CAP or (
                other == counterparty if kind is LimitKind.BILATERAL else (who, currency, other) not in has_own
            )
            if counts:
                used += moved if payer == who else -moved
        made.append(Room(kind, who, currency, counterparty, amount - used))
    return tuple(made)

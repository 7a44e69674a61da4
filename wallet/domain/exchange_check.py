"""Reconciliation of exchanges between three books: the bank's deposits, this service's exchanges, the ledger's vault.

Each exchange says which legs must be there, may be there (it is on its way) or must not be there; legs are known by id,
so nothing is matched by guess. What differs is a typed break, with its age and what to do next. Pure: amounts in minor
units, directions as the book itself has them (a deposit is debited when money comes in, the vault is debited then too).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal
from uuid import UUID

from wallet.domain.records import ExchangeIn, Payment

Side = Literal["bank", "ledger"]
Direction = Literal["debit", "credit"]
Need = Literal["must", "may", "must-not"]

STUCK_AFTER = timedelta(minutes=15)
"""An exchange in doubt ends within minutes of both systems being there; longer is worth a person's look."""


class BreakKind(StrEnum):
    """What can be wrong, worst first."""

    TWICE = "twice"
    UNEXPECTED = "unexpected"
    """Booked, though the exchange was refused or given back."""
    UNKNOWN = "unknown"
    """Booked, and no exchange here is behind it."""
    DIRECTION = "direction"
    AMOUNT_DIFFERS = "amount-differs"
    MISSING_IN_LEDGER = "missing-in-ledger"
    MISSING_IN_BANK = "missing-in-bank"
    STUCK_IN_DOUBT = "stuck-in-doubt"


_NEXT_STEP: dict[tuple[BreakKind, Side | None], str] = {
    (BreakKind.TWICE, "bank"): "have core banking reverse all but one of the postings",
    (BreakKind.TWICE, "ledger"): "stop: the ledger books an id once (I7); verify the ledger's journal",
    (BreakKind.UNEXPECTED, "bank"): "have core banking reverse the posting; the exchange did not happen",
    (BreakKind.UNEXPECTED, "ledger"): "stop exchanges: the holder has currency and deposit; recover the currency",
    (BreakKind.UNKNOWN, "bank"): "ask core banking who made the posting; reverse it if nobody can say",
    (BreakKind.UNKNOWN, "ledger"): "look for the exchange in a backup of this service; the ledger's line stands",
    (BreakKind.DIRECTION, "bank"): "have core banking reverse the posting and make it the other way round",
    (BreakKind.DIRECTION, "ledger"): "compare the transfer's receipt with the exchange; the ledger's line stands",
    (BreakKind.AMOUNT_DIFFERS, "bank"): "have core banking correct the posting to the exchange's amount",
    (BreakKind.AMOUNT_DIFFERS, "ledger"): "compare the transfer's receipt with the exchange; the ledger's line stands",
    (BreakKind.MISSING_IN_LEDGER, "ledger"): "give the deposit back: the currency was never booked",
    (BreakKind.MISSING_IN_BANK, "bank"): "post it at core banking under the same id",
    (BreakKind.STUCK_IN_DOUBT, None): "see that core banking and the ledger answer; recovery then ends it by itself",
}


@dataclass(frozen=True, slots=True)
class Leg:
    side: Side
    id: UUID
    direction: Direction
    need: Need


@dataclass(frozen=True, slots=True)
class Exchange:
    """`id` of the exchange in, or of the transfer out."""

    id: UUID
    direction: Literal["in", "out"]
    wallet_id: UUID
    amount_minor: int
    state: str
    is_finished: bool
    created_at: datetime
    legs: Sequence[Leg]


@dataclass(frozen=True, slots=True)
class Entry:
    """A booked line in one of the two other books."""

    side: Side
    id: UUID
    direction: Direction
    amount_minor: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Break:
    kind: BreakKind
    side: Side | None
    exchange: UUID | None
    entry: UUID | None
    wallet_id: UUID | None
    expected_minor: int | None
    found_minor: int | None
    since: datetime
    age: timedelta
    next_step: str


def of_exchange_in(row: ExchangeIn) -> Exchange:
    debit: Need = "may" if row.state == "initiated" else "must-not" if row.state == "refused" else "must"
    back: Need = {"compensated": "must", "compensating": "may"}.get(row.state, "must-not")  # type: ignore[assignment]
    booked: Need = "must" if row.state == "final" else "may" if row.state == "debited" else "must-not"
    if row.state == "compensating":
        booked = "may"  # asked once more before the deposit is credited back
    return Exchange(
        row.id,
        "in",
        row.wallet_id,
        row.amount_minor,
        row.state,
        row.state in ("final", "refused", "compensated"),
        row.created_at,
        (
            Leg("bank", row.deposit_debit_id, "debit", debit),
            Leg("bank", row.deposit_credit_back_id, "credit", back),
            Leg("ledger", row.transfer_id, "debit", booked),
        ),
    )


def of_exchange_out(row: Payment) -> Exchange:
    is_credited = row.deposit_credited_at is not None
    booked: Need = "must" if row.state == "final" else "may" if row.state == "initiated" else "must-not"
    credit: Need = "must" if is_credited else "may" if row.state == "final" else "must-not"
    return Exchange(
        row.id,
        "out",
        row.wallet_id,
        row.amount_minor,
        row.state if row.state != "final" or is_credited else "to-be-credited",
        row.state == "refused" or is_credited,
        row.created_at,
        (Leg("ledger", row.id, "credit", booked), Leg("bank", row.deposit_credit_id, "credit", credit)),
    )


def check(exchanges: Iterable[Exchange], entries: Iterable[Entry], *, now: datetime) -> list[Break]:
    """Every break, worst kind first and the oldest of a kind first.

    `entries` holds every booked line of the exchanges' legs, and those that belong to no exchange known here.
    """
    by_id: dict[tuple[Side, UUID], list[Entry]] = {}
    for entry in entries:
        by_id.setdefault((entry.side, entry.id), []).append(entry)
    found = []
    for exchange in exchanges:
        for leg in exchange.legs:
            found += _check_leg(exchange, leg, by_id.pop((leg.side, leg.id), []), now)
        if not exchange.is_finished and now - exchange.created_at >= STUCK_AFTER:
            found.append(_break(BreakKind.STUCK_IN_DOUBT, now, exchange, None, None))
    for unmatched in by_id.values():
        found += [_break(BreakKind.UNKNOWN, now, None, None, entry) for entry in unmatched]
    order = list(BreakKind)
    return sorted(found, key=lambda item: (order.index(item.kind), item.since, str(item.exchange or item.entry)))


def _check_leg(exchange: Exchange, leg: Leg, booked: list[Entry], now: datetime) -> list[Break]:
    if not booked:
        if leg.need != "must":
            return []
        kind = BreakKind.MISSING_IN_BANK if leg.side == "bank" else BreakKind.MISSING_IN_LEDGER
        return [_break(kind, now, exchange, leg, None)]
    first = booked[0]
    found = []
    if len(booked) > 1:
        found.append(_break(BreakKind.TWICE, now, exchange, leg, booked[-1]))
    if leg.need == "must-not":
        found.append(_break(BreakKind.UNEXPECTED, now, exchange, leg, first))
    if first.direction != leg.direction:
        found.append(_break(BreakKind.DIRECTION, now, exchange, leg, first))
    if first.amount_minor != exchange.amount_minor:
        found.append(_break(BreakKind.AMOUNT_DIFFERS, now, exchange, leg, first))
    return found


def _break(kind: BreakKind, now: datetime, exchange: Exchange | None, leg: Leg | None, entry: Entry | None) -> Break:
    side = leg.side if leg is not None else entry.side if entry is not None else None
    since = entry.at if entry is not None else exchange.created_at if exchange is not None else now
    return Break(
        kind=kind,
        side=side,
        exchange=None if exchange is None else exchange.id,
        entry=leg.id if leg is not None else entry.id if entry is not None else None,
        wallet_id=None if exchange is None else exchange.wallet_id,
        expected_minor=None if exchange is None else exchange.amount_minor,
        found_minor=None if entry is None else entry.amount_minor,
        since=since,
        age=now - since,
        next_step=_NEXT_STEP[kind, side],
    )

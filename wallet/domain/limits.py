"""Class limits (I9), decided purely: caps, what was spent, and how day and year roll over in the scheme's time zone.

The ledger decides the same independently (its rule classes are made from the same packs): I9 is enforced twice, and
both say no with the same refusals. What counts as spent here: payments. Refunds and exchanges do not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime
from zoneinfo import ZoneInfo

from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import TransferRefusal


@dataclass(frozen=True, slots=True)
class Caps:
    """In minor units; None = no cap."""

    balance_max_minor: int | None = None
    single_max_minor: int | None = None
    day_max_minor: int | None = None
    year_max_minor: int | None = None


NO_CAPS = Caps()


@dataclass(frozen=True, slots=True)
class Usage:
    """What one wallet has spent (booked or on its way) on `day` and in `day`'s calendar year, in minor units."""

    day: date
    day_minor: int = 0
    year_minor: int = 0


def scheme_day(moment: datetime, time_zone: ZoneInfo) -> date:
    """The calendar day on which `moment` (aware) falls for the scheme."""
    if moment.tzinfo is None:
        raise ValueError("an aware time is needed")
    return moment.astimezone(time_zone).date()


def usage_on(usage: Usage, today: date) -> Usage:
    """The usage as it stands today: a new day or year starts from nothing.

    A clock that has gone back grants no second allowance: then the later day's usage stands.
    """
    if today <= usage.day:
        return usage
    return Usage(day=today, day_minor=0, year_minor=usage.year_minor if today.year == usage.day.year else 0)


def decide_payment(amount_minor: int, *, caps: Caps, usage: Usage, today: date) -> Usage | TransferRefusal:
    """The usage with this payment counted, or the first refusal in order of precedence.

    Refuses: single-limit-exceeded, day-limit-exceeded, year-limit-exceeded, amount-overflow.
    """
    now = usage_on(usage, today)
    day_minor, year_minor = now.day_minor + amount_minor, now.year_minor + amount_minor
    if _exceeds(amount_minor, caps.single_max_minor):
        return TransferRefusal.SINGLE_LIMIT_EXCEEDED
    if _exceeds(day_minor, caps.day_max_minor):
        return TransferRefusal.DAY_LIMIT_EXCEEDED
    if _exceeds(year_minor, caps.year_max_minor):
        return TransferRefusal.YEAR_LIMIT_EXCEEDED
    if year_minor > AMOUNT_MINOR_MAX:
        return TransferRefusal.AMOUNT_OVERFLOW
    return Usage(now.day, day_minor, year_minor)


def release(usage: Usage, amount_minor: int, *, counted_on: date) -> Usage:
    """The usage after a payment counted on `counted_on` turned out refused."""
    same_year = counted_on.year == usage.day.year
    return replace(
        usage,
        day_minor=usage.day_minor - amount_minor if counted_on == usage.day else usage.day_minor,
        year_minor=usage.year_minor - amount_minor if same_year else usage.year_minor,
    )


def force(usage: Usage, amount_minor: int, *, today: date) -> Usage:
    """The usage with a payment that is booked, whatever the caps say: what was taken for refused and is not."""
    now = usage_on(usage, today)
    return replace(now, day_minor=now.day_minor + amount_minor, year_minor=now.year_minor + amount_minor)


def decide_credit(amount_minor: int, *, balance_minor: int, caps: Caps) -> TransferRefusal | None:
    """Whether a wallet with this balance may receive the amount. Refuses: balance-limit-exceeded."""
    if _exceeds(balance_minor + amount_minor, caps.balance_max_minor):
        return TransferRefusal.BALANCE_LIMIT_EXCEEDED
    return None


def lowest(first: Caps, *others: Caps) -> Caps:
    """The stricter of several caps, member by member: operator and holder may lower the class's, never raise it."""

    def stricter(*caps: int | None) -> int | None:
        given = [cap for cap in caps if cap is not None]
        return min(given) if given else None

    every = (first, *others)
    return Caps(
        balance_max_minor=stricter(*(caps.balance_max_minor for caps in every)),
        single_max_minor=stricter(*(caps.single_max_minor for caps in every)),
        day_max_minor=stricter(*(caps.day_max_minor for caps in every)),
        year_max_minor=stricter(*(caps.year_max_minor for caps in every)),
    )


def is_raised(before: Caps, after: Caps) -> bool:
    """Whether any of the four is higher afterwards, or gone."""
    return any(earlier is not None and (later is None or later > earlier) for earlier, later in _pairs(before, after))


def is_above(own: Caps, of_class: Caps) -> bool:
    """Whether any cap of the holder's own is above the class's: it would say more than it could keep."""
    return any(cap is not None and mine is not None and mine > cap for mine, cap in _pairs(own, of_class))


def _pairs(first: Caps, second: Caps) -> list[tuple[int | None, int | None]]:
    return [
        (first.balance_max_minor, second.balance_max_minor),
        (first.single_max_minor, second.single_max_minor),
        (first.day_max_minor, second.day_max_minor),
        (first.year_max_minor, second.year_max_minor),
    ]


def left(cap_minor: int | None, used_minor: int) -> int | None:
    """What remains under a cap; None = no cap; never below zero (a cap may be lowered below what is used)."""
    return None if cap_minor is None else max(cap_minor - used_minor, 0)


def _exceeds(value: int, cap: int | None) -> bool:
    return cap is not None and value > cap

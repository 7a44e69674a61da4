"""Interest on wallets, exact to the last fraction until it is settled.

One day's interest is balance * rate / (10^6 * days of the year), on the balance at the end of that scheme day. All
is counted in integers of *units*: `UNITS_PER_MINOR` of them are one minor unit, and both day counts divide them. So
accruals add up without any rounding; the one rounding is half-even to minor units, when a period is settled, and what
it took or gave is kept as the remainder: credited * UNITS_PER_MINOR + remainder = accrued, always.

A period ends on the 20th of a quarter's last month (the pack says which day), or the day before a closure is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from fractions import Fraction
from typing import TypeVar

from wallet.domain.rules import DayCount, RulePack, WalletClass, in_force

DAYS_COMMON = 26_280
"""The least common multiple of 360 and 365."""
UNITS_PER_MINOR = DAYS_COMMON * 1_000_000
QUARTER_MONTHS = (3, 6, 9, 12)
ONE_DAY = timedelta(days=1)
YEARS_LOOKED_AHEAD = 2
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Segment:
    """Days in a row, both ends included, with one closing balance, class and rate."""

    first_on: date
    last_on: date
    wallet_class: WalletClass
    balance_minor: int
    rate_ppm: int
    day_count: DayCount
    pack: str

    @property
    def days(self) -> int:
        return (self.last_on - self.first_on).days + 1

    @property
    def units(self) -> int:
        return self.balance_minor * self.rate_ppm * self.days * (DAYS_COMMON // self.day_count.days_of_year)


@dataclass(frozen=True, slots=True)
class Accrual:
    """What a wallet has earned from `first_on` to `last_on`, both included."""

    first_on: date
    last_on: date
    segments: Sequence[Segment]

    @property
    def units(self) -> int:
        return sum(segment.units for segment in self.segments)

    @property
    def credited_minor(self) -> int:
        return rounded(self.units)

    @property
    def remainder_units(self) -> int:
        """What rounding took from the holder (positive) or gave him (negative)."""
        return self.units - self.credited_minor * UNITS_PER_MINOR


def rounded(units: int) -> int:
    """Minor units, half-even."""
    return round(Fraction(units, UNITS_PER_MINOR))


def show_units(units: int) -> str:
    """The exact amount in minor units as a fraction in lowest terms, `n` or `n/d`."""
    return str(Fraction(units, UNITS_PER_MINOR))


def accrue(
    *,
    first_on: date,
    last_on: date,
    balances: Mapping[date, int],
    opening_minor: int,
    classes: Mapping[date, WalletClass],
    opened_in: WalletClass,
    packs: Sequence[RulePack],
) -> Accrual:
    """The interest of a period. `balances`: closing balances in minor units of the days that had bookings; before the
    first, `opening_minor`. `classes`: the class at the end of each day that changed it; before the first, `opened_in`.

    Nothing is earned in a class, or under a pack, without interest.
    """
    segments = []
    starts = {first_on} | {day for day in (*balances, *classes, *(p.in_force_from for p in packs)) if day > first_on}
    ordered = sorted(day for day in starts if day <= last_on)
    for day, after in zip(ordered, [*ordered[1:], last_on + ONE_DAY], strict=True):
        balance = _as_of(balances, day, opening_minor)
        wallet_class = _as_of(classes, day, opened_in)
        pack = in_force(packs, day)
        if pack is None or pack.interest is None or not pack.bears_interest(wallet_class) or balance <= 0:
            continue
        rules = pack.interest
        segments.append(
            Segment(day, after - ONE_DAY, wallet_class, balance, rules.rate_ppm_per_year, rules.day_count, pack.name)
        )
    return Accrual(first_on, last_on, segments)


def settlement_days(packs: Sequence[RulePack], *, after: date) -> Iterator[tuple[date, date]]:
    """(settled on, credited on) of the quarters that end after a day, in order; those of the next two years."""
    for year in range(after.year, after.year + YEARS_LOOKED_AHEAD + 1):
        for month in QUARTER_MONTHS:
            for pack in packs:
                if pack.interest is None:
                    continue
                settled_on = date(year, month, pack.interest.settled_on_day)
                if settled_on > after and in_force(packs, settled_on) is pack:
                    yield settled_on, date(year, month, pack.interest.credited_on_day)


def _as_of(steps: Mapping[date, Value], day: date, before: Value) -> Value:
    """The value of the newest step up to a day."""
    newest = max((step for step in steps if step <= day), default=None)
    return before if newest is None else steps[newest]

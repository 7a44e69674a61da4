"""Money: integers of minor units and an ISO 4217 currency; never a float, never a sign.

Direction is debit or credit, so an amount is never negative. Rounding happens in named places only (`allocate`,
`settlement.domain.fx`), each of which says who keeps the remainder.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import iso4217

AMOUNT_MINOR_MAX = 2**63 - 1
"""Matches PostgreSQL `bigint` and the CHECKs on every amount column."""

_MAJOR = re.compile(r"(?P<units>0|[1-9][0-9]*)(?:\.(?P<fraction>[0-9]+))?", re.ASCII)
_MINOR = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


class CurrencyMismatch(ValueError):
    """Two amounts of different currencies met in one sum: a bug in the caller."""


@dataclass(frozen=True, slots=True, order=True)
class Currency:
    """An ISO 4217 currency. `exponent` is its number of minor-unit digits (2 for CNY, 0 for JPY, 3 for KWD)."""

    code: str
    exponent: int

    @staticmethod
    @cache
    def of(code: str) -> Currency:
        """The currency of an ISO 4217 alphabetic code. Raises ValueError if the standard has no such money."""
        try:
            entry = iso4217.Currency(code)
        except ValueError:
            raise ValueError(f"{code!r} is not an ISO 4217 currency code") from None
        if entry.exponent is None:
            raise ValueError(f"{code} has no minor unit in ISO 4217, so it cannot be booked")
        return Currency(entry.code, entry.exponent)

    def __str__(self) -> str:
        return self.code


@dataclass(frozen=True, slots=True)
class Money:
    """A non-negative amount in minor units (fen for CNY). Direction is debit/credit, never sign."""

    amount_minor: int
    currency: Currency

    def __post_init__(self) -> None:
        if type(self.amount_minor) is not int:  # refuses bool and float
            raise TypeError("amount_minor must be int")
        if not 0 <= self.amount_minor <= AMOUNT_MINOR_MAX:
            raise ValueError("amount_minor out of range")

    @staticmethod
    def parse_major(text: str, currency: Currency) -> Money:
        """`"12.50"` CNY -> 1250 fen. ASCII digits and one point only; more digits than the currency has are refused."""
        match = _MAJOR.fullmatch(text)
        if match is None or len(text) > 40:
            raise ValueError(f"{text[:40]!r} is not an amount: digits and at most one decimal point")
        fraction = match["fraction"] or ""
        if len(fraction) > currency.exponent:
            raise ValueError(f"{currency.code} has {currency.exponent} decimal digits, {text!r} has {len(fraction)}")
        return Money(int(match["units"] + fraction.ljust(currency.exponent, "0")), currency)

    def format_major(self, *, grouping: bool = True) -> str:
        """`1234.50` (or `1,234.50`) without the currency code: for people and for ISO 20022 amounts."""
        return format_minor(self.amount_minor, self.currency, grouping=grouping)

    def __str__(self) -> str:
        return f"{self.currency.code} {self.format_major()}"

    def __add__(self, other: Money) -> Money:
        if self.currency != other.currency:
            raise CurrencyMismatch(f"{self.currency} + {other.currency}")
        return Money(self.amount_minor + other.amount_minor, self.currency)


def format_minor(amount_minor: int, currency: Currency, *, grouping: bool = True) -> str:
    """Major units of a signed count of minor units, for statements and tables (`-0.05`)."""
    sign = "-" if amount_minor < 0 else ""
    units, fraction = divmod(abs(amount_minor), 10**currency.exponent)
    head = f"{units:,}" if grouping else str(units)
    return f"{sign}{head}.{fraction:0{currency.exponent}d}" if currency.exponent else f"{sign}{head}"


def parse_minor(text: str) -> int:
    """A wire amount: a string of ASCII digits without leading zeros, within `AMOUNT_MINOR_MAX`."""
    if _MINOR.fullmatch(text) is None or int(text) > AMOUNT_MINOR_MAX:
        raise ValueError("an amount is a string of up to 19 digits, without sign, point or leading zeros")
    return int(text)


def allocate(amount_minor: int, weights: Sequence[int]) -> list[int]:
    """Split an amount by integer weights so that the parts add up to it exactly.

    Rule: largest remainder, ties to the earlier part. Raises ValueError on negative weights or a zero sum.
    """
    total = sum(weights)
    if total <= 0 or min(weights) < 0 or amount_minor < 0:
        raise ValueError("weights must be non-negative with a positive sum")
    parts = [amount_minor * weight // total for weight in weights]
    remainders = [amount_minor * weight % total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-remainders[index], index))
    for index in by_remainder[: amount_minor - sum(parts)]:
        parts[index] += 1
    return parts

"""Foreign exchange at fixed, quoted rates: exact arithmetic, one named rounding, a stated remainder.

A rate `base/counter` says how many major units of the counter currency one major unit of the base currency buys. Rates
are read from decimal text into fractions; a float never occurs.

Rounding rule: *towards the liquidity provider*. The exact counter amount is rounded down to a minor unit when the
provider (or nobody in particular) pays it, and up when the provider receives it, so the provider never loses by
rounding; what it gains is the remainder, stated with every quote in fractions of a minor unit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

from kernel.ids import ParticipantId
from kernel.money import AMOUNT_MINOR_MAX, Currency, Money
from settlement.domain.refusals import SettlementRefusal

RATE_TEXT_MAX = 40
_RATE = re.compile(r"(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Rate:
    """`value` major units of `counter` for one of `base`, from `valid_from` (inclusive) to `valid_until`."""

    base: Currency
    counter: Currency
    value: Fraction
    provider: ParticipantId
    valid_from: datetime
    valid_until: datetime

    def inverse(self) -> Rate:
        """The same price seen from the other currency: exact, since it is a fraction."""
        return Rate(self.counter, self.base, 1 / self.value, self.provider, self.valid_from, self.valid_until)


@dataclass(frozen=True, slots=True)
class Quote:
    """A counter amount locked at a rate. exact amount = `counter.amount_minor` + `remainder_minor`."""

    rate: Rate
    amount: Money
    counter: Money
    remainder_minor: Fraction
    """Exact minus rounded, in minor units of the counter currency: positive = rounded down, negative = rounded up."""


def parse_rate(text: str) -> Fraction:
    """`0.5123` exactly. Raises ValueError for anything but a positive decimal without sign or exponent."""
    if len(text) > RATE_TEXT_MAX or _RATE.fullmatch(text) is None:
        raise ValueError(f"{text[:RATE_TEXT_MAX]!r} is not a rate: decimal digits with at most one point")
    value = Fraction(text)
    if value == 0:
        raise ValueError("a rate is greater than zero")
    return value


def find_rate(
    rates: Sequence[Rate], *, base: Currency, counter: Currency | None, at: datetime
) -> Rate | SettlementRefusal:
    """The first valid rate from `base` to `counter`; one stated the other way round is inverted.

    Without a counter currency the base must have rates to exactly one.
    Refuses: quote-not-found, counter-currency-ambiguous.
    """
    valid = [rate for rate in rates if rate.valid_from <= at < rate.valid_until]
    seen = [rate for rate in valid if rate.base == base] + [rate.inverse() for rate in valid if rate.counter == base]
    if counter is None:
        counters = {rate.counter for rate in seen}
        if len(counters) > 1:
            return SettlementRefusal.COUNTER_CURRENCY_AMBIGUOUS
    else:
        seen = [rate for rate in seen if rate.counter == counter]
    return seen[0] if seen else SettlementRefusal.QUOTE_NOT_FOUND


def quote(amount: Money, rate: Rate, *, receiver: ParticipantId | None) -> Quote | SettlementRefusal:
    """What `receiver` (the first leg's debtor) gets for `amount` at `rate`. Refuses: counter-amount-out-of-range."""
    # The exact amount is numerator / denominator: integers, since fractions reduce at every step.
    numerator = amount.amount_minor * rate.value.numerator * 10**rate.counter.exponent
    denominator = rate.value.denominator * 10**rate.base.exponent
    down, rest = divmod(numerator, denominator)
    counter_minor = down + 1 if receiver == rate.provider and rest else down
    if not 0 < counter_minor <= AMOUNT_MINOR_MAX:
        return SettlementRefusal.COUNTER_AMOUNT_OUT_OF_RANGE
    remainder_minor = Fraction(numerator - counter_minor * denominator, denominator)
    return Quote(rate, amount, Money(counter_minor, rate.counter), remainder_minor)


def show_fraction(value: Fraction) -> str:
    """`5123/10000`: exact, for records. Whole numbers without the bar."""
    return str(value)

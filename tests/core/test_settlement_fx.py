"""Goal: quotes are exact, rounded once, by a named rule, and the remainder is stated to the last fraction.

Method: tables worked out by hand, and properties over random rates and amounts against plain fractions.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.domain.fx import Quote, Rate, find_rate, parse_rate, quote
from settlement.domain.refusals import SettlementRefusal

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
PROVIDER, OTHER = ParticipantId("PRVDAEAD"), ParticipantId("OTHRCNBJ")


def rate(base: str, counter: str, value: str, *, start: datetime = NOW, hours: int = 1) -> Rate:
    end = start + timedelta(hours=hours)
    return Rate(Currency.of(base), Currency.of(counter), parse_rate(value), PROVIDER, start, end)


ROUNDING = """
# base counter rate      amount  receiver counter  remainder
  CNY  AED     0.5123    10000   other    5123     0
  CNY  AED     0.5123    10001   other    5123     5123/10000
  CNY  AED     0.5123    10001   provider 5124     -4877/10000
  CNY  AED     0.5123    10000   provider 5123     0
  CNY  JPY     21.5      100     other    21       1/2
  CNY  JPY     21.5      100     provider 22       -1/2
  JPY  CNY     0.0465    1       other    4        13/20
  CNY  KWD     0.0425    1       other    0        refused
  CNY  KWD     0.0425    1       provider 1        -23/40
  CNY  KWD     0.0425    10000   other    4250     0
"""


@pytest.mark.parametrize("line", [line for line in ROUNDING.splitlines() if line.strip() and "#" not in line])
def test_rounding_is_towards_the_liquidity_provider(line: str) -> None:
    base, counter, value, amount, receiver, expected, remainder = line.split()
    found = quote(
        Money(int(amount), Currency.of(base)),
        rate(base, counter, value),
        receiver=PROVIDER if receiver == "provider" else OTHER,
    )
    if remainder == "refused":
        assert found is SettlementRefusal.COUNTER_AMOUNT_OUT_OF_RANGE
        return
    assert isinstance(found, Quote)
    assert (found.counter, found.remainder_minor) == (Money(int(expected), Currency.of(counter)), Fraction(remainder))


@given(
    amount=st.integers(1, 10**15),
    numerator=st.integers(1, 10**8),
    decimals=st.integers(0, 8),
    receiver=st.sampled_from([PROVIDER, OTHER]),
)
def test_the_provider_never_loses_and_the_remainder_is_exact(
    amount: int, numerator: int, decimals: int, receiver: ParticipantId
) -> None:
    value = Fraction(numerator, 10**decimals)
    price = Rate(Currency.of("CNY"), Currency.of("AED"), value, PROVIDER, NOW, NOW + timedelta(hours=1))
    found = quote(Money(amount, Currency.of("CNY")), price, receiver=receiver)
    if isinstance(found, SettlementRefusal):
        assert amount * value < 1 or amount * value > 2**63 - 2
        return
    assert found.counter.amount_minor + found.remainder_minor == amount * value
    assert abs(found.remainder_minor) < 1
    assert found.remainder_minor <= 0 if receiver == PROVIDER else found.remainder_minor >= 0


@pytest.mark.parametrize(
    "text", ["", "0", "0.0", "-1", "+1", "1e3", ".5", "5.", "01", "1,5", "NaN", "١", "1" * 41, "0.5 ", "1/2"]
)
def test_a_rate_that_is_no_positive_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        parse_rate(text)


def test_an_inverse_rate_is_exact_both_ways() -> None:
    price = rate("CNY", "AED", "0.5123")
    found = find_rate([price], base=Currency.of("AED"), counter=Currency.of("CNY"), at=NOW)
    assert isinstance(found, Rate)
    assert found.value * price.value == 1


def test_a_rate_is_valid_from_its_start_and_not_at_its_end() -> None:
    price, cny, aed = rate("CNY", "AED", "0.5"), Currency.of("CNY"), Currency.of("AED")
    found = [
        find_rate([price], base=cny, counter=aed, at=at)
        for at in (NOW - timedelta(microseconds=1), NOW, NOW + timedelta(hours=1))
    ]
    assert found == [SettlementRefusal.QUOTE_NOT_FOUND, price, SettlementRefusal.QUOTE_NOT_FOUND]


def test_without_a_counter_currency_the_only_quoted_one_is_taken_and_two_are_refused() -> None:
    one, two, cny = rate("CNY", "AED", "0.5"), rate("CNY", "JPY", "21"), Currency.of("CNY")
    assert find_rate([one], base=cny, counter=None, at=NOW) == one
    assert find_rate([one, two], base=cny, counter=None, at=NOW) is SettlementRefusal.COUNTER_CURRENCY_AMBIGUOUS

"""Goal: interest is exact, rounded once, and what rounding takes or gives is known to the last unit.
Method: worked examples counted by hand; Hypothesis against a day-by-day reference in fractions.
"""

from __future__ import annotations

from datetime import date, timedelta
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wallet.domain.interest import (
    DAYS_COMMON,
    UNITS_PER_MINOR,
    Accrual,
    accrue,
    rounded,
    settlement_days,
    show_units,
)
from wallet.domain.rules import DayCount, RulePack, WalletClass, in_force
from wallet.rulepack_files import load_rule_pack

PACK = load_rule_pack("ecny-2026-01")
OLD = load_rule_pack("ecny-2021-06")
ONE = timedelta(days=1)


def raised(pack: RulePack, *, name: str, since: date, rate: int, day_count: DayCount) -> RulePack:
    assert pack.interest is not None
    rules = pack.interest.model_copy(update={"rate_ppm_per_year": rate, "day_count": day_count})
    return pack.model_copy(update={"name": name, "in_force_from": since, "interest": rules})


def one(balance: int, *, first: date, last: date, wallet_class: WalletClass = WalletClass.II) -> Accrual:
    return accrue(
        first_on=first,
        last_on=last,
        balances={},
        opening_minor=balance,
        classes={},
        opened_in=wallet_class,
        packs=[OLD, PACK],
    )


def test_every_day_count_divides_a_unit() -> None:
    assert all(DAYS_COMMON % day_count.days_of_year == 0 for day_count in DayCount)


def test_365_days_on_ten_thousand_yuan_are_five_yuan_exactly() -> None:
    year = one(10_000_00, first=date(2026, 1, 1), last=date(2026, 12, 31))
    assert (year.credited_minor, year.remainder_units) == (500, 0)
    assert len(year.segments) == 1
    assert year.segments[0].days == 365


def test_one_day_is_a_fraction_and_is_not_rounded_before_it_is_settled() -> None:
    day = one(73_00, first=date(2026, 6, 1), last=date(2026, 6, 1))
    assert show_units(day.units) == "1/100"  # 7300 * 0.0005 / 365 fen
    assert (day.credited_minor, day.remainder_units) == (0, UNITS_PER_MINOR // 100)
    hundred = one(73_00, first=date(2026, 6, 1), last=date(2026, 9, 8))
    assert (hundred.segments[0].days, hundred.credited_minor, hundred.remainder_units) == (100, 1, 0)


@pytest.mark.parametrize(("halves", "minor"), [(1, 0), (3, 2), (5, 2), (7, 4), (0, 0), (2, 1)])
def test_halves_go_to_the_even_fen(halves: int, minor: int) -> None:
    assert rounded(halves * UNITS_PER_MINOR // 2) == minor
    assert rounded(halves * UNITS_PER_MINOR // 2 + 1) == (halves + 1) // 2


def test_class_four_and_the_time_before_the_pack_earn_nothing() -> None:
    assert one(10_000_00, first=date(2026, 1, 1), last=date(2026, 3, 20), wallet_class=WalletClass.IV).units == 0
    across = one(10_000_00, first=date(2025, 12, 21), last=date(2026, 3, 20))
    assert [(s.first_on, s.last_on) for s in across.segments] == [(date(2026, 1, 1), date(2026, 3, 20))]


def test_quarters_end_on_the_20th_and_are_credited_on_the_21st() -> None:
    days = list(settlement_days([OLD, PACK], after=date(2025, 11, 1)))
    assert days[:4] == [(date(2026, month, 20), date(2026, month, 21)) for month in (3, 6, 9, 12)]
    assert list(settlement_days([OLD], after=date(2026, 1, 1))) == []
    assert next(settlement_days([PACK], after=date(2026, 6, 20)))[0] == date(2026, 9, 20)


BALANCES = st.integers(0, 2**63 - 1) | st.integers(0, 10_000)
DAYS = st.integers(0, 120)


@given(
    opening=BALANCES,
    balances=st.dictionaries(DAYS, BALANCES, max_size=12),
    classes=st.dictionaries(DAYS, st.sampled_from(WalletClass), max_size=4),
    opened_in=st.sampled_from(WalletClass),
    rate=st.integers(0, 1_000_000),
    day_count=st.sampled_from(DayCount),
    change=DAYS,
    cuts=st.sets(DAYS, max_size=4),
)
def test_credits_and_remainders_are_the_exact_accrual_however_the_days_are_cut(
    opening: int,
    balances: dict[int, int],
    classes: dict[int, WalletClass],
    opened_in: WalletClass,
    rate: int,
    day_count: DayCount,
    change: int,
    cuts: set[int],
) -> None:
    first = date(2026, 3, 1)

    def at(day: int) -> date:
        return first + timedelta(days=day)

    other = raised(PACK, name="other", since=at(change), rate=rate, day_count=day_count)
    packs = [OLD, PACK, other]
    by_day = {at(day): balance for day, balance in balances.items()}
    class_by_day = {at(day): wallet_class for day, wallet_class in classes.items()}

    exact = Fraction(0)
    balance, wallet_class, closing = opening, opened_in, {first - ONE: opening}
    for offset in range(121):
        day = at(offset)
        balance, wallet_class = by_day.get(day, balance), class_by_day.get(day, wallet_class)
        closing[day] = balance
        pack = in_force(packs, day)
        if pack is not None and pack.interest is not None and wallet_class is not WalletClass.IV:
            year = 360 if pack.interest.day_count is DayCount.ACTUAL_360 else 365
            exact += Fraction(balance * pack.interest.rate_ppm_per_year, 1_000_000 * year)

    ends = sorted({at(cut) for cut in cuts} | {at(120)})
    parts = []
    begin = first
    for end in ends:
        parts.append(
            accrue(
                first_on=begin,
                last_on=end,
                balances={day: minor for day, minor in by_day.items() if begin <= day <= end},
                opening_minor=closing[begin - ONE],
                classes=class_by_day,
                opened_in=opened_in,
                packs=packs,
            )
        )
        begin = end + ONE
    assert sum(part.units for part in parts) == exact * UNITS_PER_MINOR
    credited = sum(part.credited_minor for part in parts)
    remainder = sum(part.remainder_units for part in parts)
    assert credited + Fraction(remainder, UNITS_PER_MINOR) == exact
    assert all(abs(part.remainder_units) * 2 <= UNITS_PER_MINOR for part in parts)

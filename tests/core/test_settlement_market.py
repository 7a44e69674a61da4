"""Goal: the market's search is the best there is, exact, conserved to the minor unit, within every size and limit.

Method: tables worked out by hand; then random small books against a brute force that tries every split of an amount.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from itertools import pairwise, product
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.ids import ParticipantId
from kernel.money import Currency
from settlement.domain.market import (
    FEE_PPM_MAX,
    FILLS_OF_A_HOP_MAX,
    LIFETIME_MAX,
    QUOTES_OF_A_PAIR_KEPT,
    QUOTES_OF_A_PAIR_MAX,
    QUOTES_OF_A_PROVIDER_MAX,
    STALE_AFTER,
    Edge,
    Found,
    QuoteTerms,
    Route,
    Side,
    StandingQuote,
    Wish,
    book,
    edges_of,
    fixed_edges,
    judge_quote,
    keeps_priority,
    plan_legs,
    search,
    search_with_fallback,
    with_limit_rate,
)
from settlement.domain.refusals import SettlementRefusal as R

NOW = datetime(2026, 11, 23, 8, 0, tzinfo=UTC)
CNY, USD, AED, JPY = (Currency.of(code) for code in ("CNY", "USD", "AED", "JPY"))
PAYER, PAYEE = ParticipantId("PAYRCNBJ"), ParticipantId("PAYEAEAD")
P1, P2, P3 = (ParticipantId(f"PRV{number}USNY") for number in (1, 2, 3))


def quote(
    number: int,
    pair: tuple[Currency, Currency],
    *,
    bid: str | Fraction | None = None,
    offer: str | Fraction | None = None,
    size: int = 1_000_000,
    fee: int = 0,
    provider: ParticipantId = P1,
) -> StandingQuote:
    terms = QuoteTerms(
        UUID(int=number),
        1,
        provider,
        *pair,
        None if bid is None else Fraction(bid),
        0 if bid is None else size,
        None if offer is None else Fraction(offer),
        0 if offer is None else size,
        fee,
        NOW,
        NOW + timedelta(minutes=5),
    )
    return StandingQuote(terms, number)


def edges(*quotes: StandingQuote) -> list[Edge]:
    return [edge for found in quotes for edge in edges_of(found)]


def sell(amount: int, *quotes: StandingQuote, source: Currency = CNY, target: Currency = AED) -> Found:
    return search(Wish(source, target, amount, None), edges(*quotes), without=(PAYER, PAYEE))


def buy(amount: int, *quotes: StandingQuote, source: Currency = CNY, target: Currency = AED) -> Found:
    return search(Wish(source, target, None, amount), edges(*quotes), without=(PAYER, PAYEE))


def best(found: Found) -> Route:
    assert found.best is not None, [item.why_not for item in found.considered]
    return found.best


# --- worked out by hand


def test_a_bid_is_hit_and_an_offer_lifted_with_the_fee_taken_from_what_is_received() -> None:
    hit = best(sell(10_001, quote(1, (CNY, AED), bid="0.5", fee=1_000)))
    # 10001 * 0.5 = 5000.5, less 0.1 % = 4995.4995: rounded down, the rest stays with the provider.
    (fill,) = hit.fills
    assert (fill.received_minor, fill.fee_minor) == (4_995, Fraction("5.0005"))
    assert fill.rounding_minor == Fraction("0.4995")
    assert fill.base_minor == 10_001
    # The same price from an offer of AED/CNY at 2: AED is the base now, and what is used of it is gross, rounded up.
    (fill,) = best(sell(10_001, quote(1, (AED, CNY), offer="2", fee=1_000))).fills
    assert (fill.received_minor, fill.base_minor, fill.edge.side) == (4_995, 5_001, Side.OFFER)


def test_an_exact_amount_is_bought_with_the_least_that_buys_it() -> None:
    (fill,) = best(buy(4_995, quote(1, (CNY, AED), bid="0.5", fee=1_000))).fills
    assert (fill.given_minor, fill.received_minor) == (10_000, 4_995)  # 10000 * 0.4995 = 4995 exactly
    assert fill.rounding_minor == 0


def test_price_goes_before_time_and_time_before_nothing() -> None:
    books = [
        quote(1, (CNY, AED), bid="0.50", size=100, provider=P1),
        quote(2, (CNY, AED), bid="0.51", size=100, provider=P2),
        quote(3, (CNY, AED), bid="0.51", size=100, provider=P3),
    ]
    route = best(sell(250, *books))
    assert [(fill.edge.provider, fill.given_minor) for fill in route.fills] == [(P2, 100), (P3, 100), (P1, 50)]


def test_the_price_that_counts_is_the_one_after_the_fee() -> None:
    route = best(sell(100, quote(1, (CNY, AED), bid="0.52", fee=50_000), quote(2, (CNY, AED), bid="0.50", provider=P2)))
    assert route.fills[0].edge.provider == P2


def test_a_bridge_currency_is_taken_when_it_delivers_more_and_all_costs_are_shown() -> None:
    found = sell(
        1_000_000,
        quote(1, (CNY, AED), bid="0.50", offer="0.52"),
        quote(2, (USD, CNY), bid="7.00", offer="7.10", provider=P2),
        quote(3, (USD, AED), bid="3.67", offer="3.68", provider=P3, fee=100),
    )
    assert [item.path for item in found.considered] == [(CNY, USD, AED), (CNY, AED)]
    route = best(found)
    first, second = route.hops
    assert first.received_minor == 140_845 == second.given_minor  # 1000000 / 7.10
    assert second.received_minor == 516_849  # 140845 * 3.67 * 0.9999
    for hop in route.hops:
        assert hop.mid is not None and hop.spread_minor is not None
        costs = hop.spread_minor + hop.fee_minor + hop.rounding_minor
        assert hop.given_minor * hop.mid == hop.received_minor + costs
    # Against the most favourable mid, halfway in units of what is received: here that of the bridge.
    assert found.best_mid == (1 / Fraction("7.10") + 1 / Fraction("7.00")) / 2 * Fraction("3.675")
    assert route.cost_minor(found.best_mid) == 1_000_000 * found.best_mid - 516_849


def test_a_way_that_cannot_do_it_whole_says_why() -> None:
    found = sell(101, quote(1, (CNY, AED), bid="0.5", size=100), quote(2, (CNY, USD), bid="0.14"))
    assert found.best is None
    (direct,) = [item for item in found.considered if len(item.path) == 2]
    assert "CNY 0.01 to be sold is left over" in direct.why_not


def test_payer_and_payee_are_no_providers_of_their_own_payment() -> None:
    found = sell(100, quote(1, (CNY, AED), bid="9", provider=PAYER), quote(2, (CNY, AED), bid="8", provider=PAYEE))
    assert found.best is None


def test_a_limit_is_kept_to_the_minor_unit() -> None:
    book_of_one = quote(1, (CNY, AED), bid="0.5")
    for least, is_met in ((5_000, True), (5_001, False)):
        wish = Wish(CNY, AED, 10_000, None, least_received_minor=least)
        assert (search(wish, edges(book_of_one)).best is not None) is is_met
    for most, is_met in ((10_000, True), (9_999, False)):
        wish = Wish(CNY, AED, None, 5_000, most_given_minor=most)
        assert (search(wish, edges(book_of_one)).best is not None) is is_met
    wish = with_limit_rate(Wish(CNY, AED, 10_001, None), Fraction("0.5"))
    assert wish.least_received_minor == 5_001  # 5000.5 may not be rounded down against the customer
    assert with_limit_rate(Wish(CNY, JPY, 10_000, None), Fraction("20.5")).least_received_minor == 2_050
    assert with_limit_rate(Wish(CNY, AED, None, 5_001), Fraction("0.5")).most_given_minor == 10_002


def test_fixed_rates_are_used_only_where_live_quotes_do_not_do_and_then_last() -> None:
    fixed = fixed_edges(CNY, AED, Fraction("0.9"), P3, priority=0)
    live = edges(quote(1, (CNY, AED), bid="0.5", size=100))
    enough = search_with_fallback(Wish(CNY, AED, 100, None), live, fixed)
    assert (best(enough).received_minor, enough.is_fallback) == (50, False)
    short = search_with_fallback(Wish(CNY, AED, 200, None), live, fixed)
    assert [(fill.edge.provider, fill.given_minor) for fill in best(short).fills] == [(P1, 100), (P3, 100)]
    assert short.is_fallback
    assert best(search_with_fallback(Wish(AED, CNY, 90, None), [], fixed)).received_minor == 100


def test_fills_of_a_hop_are_bounded() -> None:
    many = [quote(number, (CNY, AED), bid="0.5", size=10) for number in range(1, FILLS_OF_A_HOP_MAX + 2)]
    assert len(best(sell(10 * FILLS_OF_A_HOP_MAX, *many)).fills) == FILLS_OF_A_HOP_MAX
    found = sell(10 * FILLS_OF_A_HOP_MAX + 1, *many)
    assert found.best is None and "8 quotes a pair" in found.considered[0].why_not


@pytest.mark.parametrize("is_sale", [True, False])
def test_tiny_quotes_at_the_top_of_the_book_do_not_close_the_market(is_sale: bool) -> None:
    """Eight quotes of 2 minor units cost nobody anything: what stands behind them is still reached."""
    tiny = [quote(n, (CNY, AED), bid="0.6", size=2, provider=P2) for n in range(1, FILLS_OF_A_HOP_MAX + 2)]
    large = quote(99, (CNY, AED), bid="0.5", provider=P1)
    route = best((sell if is_sale else buy)(5_000, *tiny, large))
    assert len(route.fills) == FILLS_OF_A_HOP_MAX
    assert [fill.edge.quote for fill in route.fills[:-1]] == [UUID(int=n) for n in range(1, FILLS_OF_A_HOP_MAX)]
    assert route.fills[-1].edge.quote == UUID(int=99)
    fixed = fixed_edges(CNY, AED, Fraction("0.5"), P3, priority=0)
    wish = Wish(CNY, AED, 5_000, None) if is_sale else Wish(CNY, AED, None, 5_000)
    found = search_with_fallback(wish, edges(*tiny), fixed)
    assert found.is_fallback and best(found).fills[-1].edge.provider == P3


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=9, max_size=14), amount=st.integers(1, 80))
def test_what_any_eight_quotes_of_a_pair_can_do_is_done(sizes: list[int], amount: int) -> None:
    books = [quote(n, (CNY, AED), bid=Fraction(200 - n, 100), size=size) for n, size in enumerate(sizes, start=1)]
    is_possible = sum(sorted(sizes, reverse=True)[:FILLS_OF_A_HOP_MAX]) >= amount
    found = sell(amount, *books).best
    assert (found is not None) is is_possible
    assert found is None or (len(found.fills) <= FILLS_OF_A_HOP_MAX and found.given_minor == amount)


def test_a_limit_rate_of_any_size_is_a_limit_that_can_be_kept() -> None:
    tiny, huge = Fraction("0." + "0" * 30 + "1"), Fraction("9" * 40)
    wish = with_limit_rate(Wish(CNY, AED, None, 5_000), tiny)
    assert wish.most_given_minor == 2**63 - 1
    assert search(wish, edges(quote(1, (CNY, AED), bid="0.5"))).best is not None
    assert (
        search(with_limit_rate(Wish(CNY, AED, None, 5_000), huge), edges(quote(1, (CNY, AED), bid="0.5"))).best is None
    )
    assert (
        search(with_limit_rate(Wish(CNY, AED, 5_000, None), huge), edges(quote(1, (CNY, AED), bid="0.5"))).best is None
    )


def test_a_provider_of_both_hops_keeps_the_bridge_currency_and_legs_are_few() -> None:
    route = best(
        sell(
            1_000,
            quote(1, (CNY, USD), bid="0.2", provider=P1),
            quote(2, (USD, AED), bid="3", size=150, provider=P1),
            quote(3, (USD, AED), bid="2", provider=P2),
        )
    )
    legs = plan_legs(route, payer=PAYER, payee=PAYEE)
    assert [(leg.payer, leg.payee, str(leg.amount)) for leg in legs] == [
        (PAYER, P1, "CNY 10.00"),
        (P1, P2, "USD 0.50"),
        (P1, PAYEE, "AED 4.50"),
        (P2, PAYEE, "AED 1.00"),
    ]


def test_the_book_shows_both_directions_in_priority() -> None:
    found = book(
        CNY,
        AED,
        [
            quote(1, (CNY, AED), bid="0.50", offer="0.52"),
            quote(2, (AED, CNY), bid="1.90", offer="1.96", size=51, provider=P2),
            quote(3, (CNY, AED), bid="0.50", size=7, provider=P3),
        ],
    )
    assert [level.quote.terms.quote.int for level in found.bids] == [2, 1, 3]  # 1 / 1.96 = 0.5102
    assert [level.quote.terms.quote.int for level in found.offers] == [1, 2]
    assert [level.size_minor for level in found.bids] == [99, 1_000_000, 7]  # 51 / 0.5102, whole ones
    assert found.mid == (1 / Fraction("1.96") + Fraction("0.52")) / 2


# --- judging quotes


GOOD = quote(1, (CNY, AED), bid="0.50", offer="0.52").terms


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({}, None),
        ({"counter": CNY}, R.FX_QUOTE_INVALID),
        ({"bid": None}, R.FX_QUOTE_INVALID),
        ({"bid": None, "bid_size_minor": 0}, None),
        ({"bid": None, "bid_size_minor": 0, "offer": None, "offer_size_minor": 0}, R.FX_QUOTE_INVALID),
        ({"offer_size_minor": 0}, R.FX_QUOTE_INVALID),
        ({"bid": Fraction("0.53")}, R.FX_QUOTE_INVALID),
        ({"bid": Fraction("0.52")}, None),
        ({"bid": Fraction("0.40")}, R.FX_QUOTE_INVALID),
        ({"bid": Fraction("1e10"), "offer": Fraction("1e10")}, R.FX_QUOTE_INVALID),
        ({"bid_size_minor": 10**16}, R.FX_QUOTE_INVALID),
        ({"fee_ppm": FEE_PPM_MAX + 1}, R.FX_QUOTE_INVALID),
        ({"valid_until": NOW + LIFETIME_MAX}, None),
        ({"valid_until": NOW + LIFETIME_MAX + timedelta(microseconds=1)}, R.FX_QUOTE_INVALID),
        ({"valid_until": NOW}, R.FX_QUOTE_INVALID),
        ({"issued_at": NOW - STALE_AFTER}, None),
        ({"issued_at": NOW - STALE_AFTER - timedelta(microseconds=1)}, R.FX_QUOTE_STALE),
        ({"issued_at": NOW + timedelta(seconds=6)}, R.FX_QUOTE_STALE),
        ({"issued_at": NOW - timedelta(seconds=20), "valid_until": NOW - timedelta(seconds=1)}, R.FX_QUOTE_STALE),
    ],
)
def test_a_quote_keeps_its_bounds(changes: dict[str, object], refusal: R | None) -> None:
    found = judge_quote(replace(GOOD, **changes), None, now=NOW, live_of_provider=0, live_of_pair=0, own_of_pair=0)  # type: ignore[arg-type]
    assert (found and found[0]) == refusal


@pytest.mark.parametrize(
    ("of_provider", "of_pair", "own", "is_refused"),
    [
        (QUOTES_OF_A_PROVIDER_MAX, 0, 0, True),
        (QUOTES_OF_A_PROVIDER_MAX - 1, 0, 0, False),
        (50, QUOTES_OF_A_PAIR_MAX, QUOTES_OF_A_PAIR_KEPT, True),
        (50, QUOTES_OF_A_PAIR_MAX - 1, QUOTES_OF_A_PAIR_KEPT, False),
        (50, QUOTES_OF_A_PAIR_MAX, QUOTES_OF_A_PAIR_KEPT - 1, False),  # a full pair keeps nobody out of it
    ],
)
def test_quotes_are_bounded_in_number(of_provider: int, of_pair: int, own: int, is_refused: bool) -> None:
    found = judge_quote(GOOD, None, now=NOW, live_of_provider=of_provider, live_of_pair=of_pair, own_of_pair=own)
    assert (found is not None and found[0] is R.FX_TOO_MANY_QUOTES) is is_refused


@pytest.mark.parametrize(
    ("changes", "known", "refusal"),
    [
        ({"revision": 2}, {}, None),
        ({"revision": 1}, {}, R.FX_QUOTE_SUPERSEDED),
        ({"revision": 2, "provider": P2}, {}, R.FX_QUOTE_NOT_FOUND),
        ({"revision": 2, "base": USD}, {}, R.FX_QUOTE_INVALID),
        ({"revision": 2}, {"withdrawn_at": NOW}, R.FX_QUOTE_WITHDRAWN),
        ({"revision": 2, "bid_size_minor": 9}, {"bid_used_minor": 10}, R.FX_QUOTE_SIZE_USED),
        ({"revision": 2, "bid_size_minor": 10}, {"bid_used_minor": 10}, None),
        ({"revision": 2, "offer": None, "offer_size_minor": 0}, {"offer_used_minor": 1}, R.FX_QUOTE_SIZE_USED),
    ],
)
def test_an_amendment_is_the_providers_newer_and_never_below_what_is_used(
    changes: dict[str, object], known: dict[str, object], refusal: R | None
) -> None:
    standing = replace(StandingQuote(GOOD, 1), **known)  # type: ignore[arg-type]
    found = judge_quote(replace(GOOD, **changes), standing, now=NOW, live_of_provider=0, live_of_pair=0, own_of_pair=0)  # type: ignore[arg-type]
    assert (found and found[0]) == refusal


def test_only_an_amendment_that_gives_nothing_more_keeps_its_place() -> None:
    later = NOW + timedelta(minutes=9)
    assert keeps_priority(GOOD, replace(GOOD, valid_until=later, bid_size_minor=1))
    for change in ({"bid": Fraction("0.51")}, {"bid_size_minor": 2_000_000}, {"fee_ppm": 1}):
        assert not keeps_priority(GOOD, replace(GOOD, **change))


# --- against brute force


PRICES = st.sampled_from([Fraction(text) for text in ("0.3", "0.5", "0.61", "1", "1.7", "2.5")])
PAIRS = [(CNY, AED), (AED, CNY), (CNY, USD), (USD, CNY), (USD, AED), (AED, USD), (JPY, AED), (CNY, JPY)]


@st.composite
def small_quotes(draw: st.DrawFn) -> list[StandingQuote]:
    made = []
    for number in range(1, draw(st.integers(1, 5)) + 1):
        price, is_bid = draw(PRICES), draw(st.booleans())
        made.append(
            quote(
                number,
                draw(st.sampled_from(PAIRS)),
                bid=price if is_bid else None,
                offer=None if is_bid else price,
                size=draw(st.integers(1, 9)),
                fee=draw(st.sampled_from([0, 0, 10_000, 50_000])),
                provider=draw(st.sampled_from([P1, P2, P3])),
            )
        )
    return made


def way_of(found: StandingQuote, source: Currency, target: Currency) -> tuple[Fraction, int] | None:
    """(all-in rate in minor units, most that can be given), by the definitions alone."""
    terms = found.terms
    unit = Fraction(10**terms.counter.exponent, 10**terms.base.exponent)
    less = 1 - Fraction(terms.fee_ppm, 1_000_000)
    if (terms.base, terms.counter) == (source, target) and terms.bid is not None:
        return terms.bid * unit * less, terms.bid_size_minor
    if (terms.base, terms.counter) == (target, source) and terms.offer is not None:
        gross = 1 / (terms.offer * unit)
        given = 0
        while (given + 1) * gross <= terms.offer_size_minor:
            given += 1
        return gross * less, given
    return None


def brute_force(amount: int, is_sale: bool, quotes: list[StandingQuote], path: tuple[Currency, ...]) -> int | None:
    """The other amount, by trying every split of every hop: the best exact value, older quotes first."""
    hops = list(pairwise(path))
    for source, target in hops if is_sale else reversed(hops):
        ways = [way for found in quotes if (way := way_of(found, source, target)) is not None]
        if is_sale:
            choices = product(*(range(min(amount, most) + 1) for _, most in ways))
        else:
            choices = product(*(range(min(amount, int(most * rate)) + 1) for rate, most in ways))
        whole = [split for split in choices if sum(split) == amount]
        if not whole or not ways:
            return None
        if is_sale:
            split = max(whole, key=lambda parts: (sum(p * way[0] for p, way in zip(parts, ways, strict=True)), parts))
            amount = sum(int(part * rate) for part, (rate, _) in zip(split, ways, strict=True))
        else:
            split = max(whole, key=lambda parts: (-sum(p / way[0] for p, way in zip(parts, ways, strict=True)), parts))
            amount = sum(-int(-part // rate) for part, (rate, _) in zip(split, ways, strict=True))
        if amount == 0:
            return None
    return amount


@settings(max_examples=60, deadline=None)
@given(quotes=small_quotes(), amount=st.integers(1, 9), is_sale=st.booleans())
def test_the_best_is_what_brute_force_finds(quotes: list[StandingQuote], amount: int, is_sale: bool) -> None:
    found = sell(amount, *quotes) if is_sale else buy(amount, *quotes)
    results: dict[tuple[Currency, ...], int | None] = {
        path: brute_force(amount, is_sale, quotes, path) for path in ((CNY, AED), (CNY, USD, AED), (CNY, JPY, AED))
    }
    possible = [result for result in results.values() if result is not None]
    if not possible:
        assert found.best is None
        return
    route = best(found)
    assert (route.received_minor if is_sale else route.given_minor) == (max if is_sale else min)(possible)
    assert (route.given_minor if is_sale else route.received_minor) == amount
    for item in found.considered:
        expected = results[item.path]
        shown = None if item.route is None else item.route.received_minor if is_sale else item.route.given_minor
        assert shown == expected


@settings(max_examples=60, deadline=None)
@given(quotes=small_quotes(), amount=st.integers(1, 9))
def test_rounding_fill_by_fill_costs_less_than_one_unit_a_further_fill(
    quotes: list[StandingQuote], amount: int
) -> None:
    ways = [way for item in quotes if (way := way_of(item, CNY, AED)) is not None]
    splits = product(*(range(min(amount, most) + 1) for _, most in ways))
    delivered = [
        sum(int(part * rate) for part, (rate, _) in zip(split, ways, strict=True))
        for split in splits
        if sum(split) == amount
    ]
    direct = next(item.route for item in sell(amount, *quotes).considered if len(item.path) == 2)
    if direct is None:
        assert not delivered or max(delivered) < len(ways)
    else:
        assert direct.received_minor > max(delivered) - len(direct.fills)


@settings(max_examples=60, deadline=None)
@given(
    quotes=st.lists(small_quotes(), min_size=1, max_size=3),
    wishes=st.lists(
        st.tuples(st.integers(1, 12), st.booleans(), st.sampled_from([(CNY, AED), (AED, CNY)])), max_size=6
    ),
)
def test_money_is_conserved_no_provider_loses_and_no_size_is_exceeded(
    quotes: list[list[StandingQuote]], wishes: list[tuple[int, bool, tuple[Currency, Currency]]]
) -> None:
    standing = [
        replace(found, terms=replace(found.terms, quote=UUID(int=number)), priority=number)
        for number, found in enumerate((item for some in quotes for item in some), start=1)
    ]
    used: dict[tuple[UUID, Side], int] = {}
    for amount, is_sale, (source, target) in wishes:
        wish = Wish(source, target, amount if is_sale else None, None if is_sale else amount)
        found = search(wish, edges(*standing))
        if found.best is None:
            continue
        route = found.best
        for fill in route.fills:
            assert fill.rounding_minor >= 0  # never worse for the provider than its quote
            assert fill.rounding_minor < (1 if is_sale else max(Fraction(1), fill.edge.rate))
            assert fill.edge.quote is not None
            key = (fill.edge.quote, fill.edge.side)
            used[key] = used.get(key, 0) + fill.base_minor
        net: dict[tuple[ParticipantId, Currency], int] = {}
        for leg in plan_legs(route, payer=PAYER, payee=PAYEE):
            assert leg.payer != leg.payee and leg.amount.amount_minor > 0
            for party, change in ((leg.payer, -leg.amount.amount_minor), (leg.payee, leg.amount.amount_minor)):
                key_of = (party, leg.amount.currency)
                net[key_of] = net.get(key_of, 0) + change
        expected: dict[tuple[ParticipantId, Currency], int] = {
            (PAYER, source): -route.given_minor,
            (PAYEE, target): route.received_minor,
        }
        for fill in route.fills:
            for currency, change in ((fill.edge.source, fill.given_minor), (fill.edge.target, -fill.received_minor)):
                key_of = (fill.edge.provider, currency)
                expected[key_of] = expected.get(key_of, 0) + change
        assert {key: value for key, value in net.items() if value} == {
            key: value for key, value in expected.items() if value
        }
        standing = [
            replace(
                item,
                bid_used_minor=used.get((item.terms.quote, Side.BID), 0),
                offer_used_minor=used.get((item.terms.quote, Side.OFFER), 0),
            )
            for item in standing
        ]
    for item in standing:
        assert item.bid_used_minor <= item.terms.bid_size_minor
        assert item.offer_used_minor <= item.terms.offer_size_minor


@settings(max_examples=60, deadline=None)
@given(amount=st.integers(1, 10**9), bid=st.integers(1, 10**6), spread=st.integers(0, 10**4), fee=st.integers(0, 500))
def test_there_and_back_through_one_provider_never_gains(amount: int, bid: int, spread: int, fee: int) -> None:
    two_sided = quote(
        1, (CNY, AED), bid=Fraction(bid, 10**5), offer=Fraction(bid + spread, 10**5), size=10**15, fee=fee
    )
    there = sell(amount, two_sided).best
    if there is None:
        return
    back = sell(there.received_minor, two_sided, source=AED, target=CNY).best
    assert back is None or back.received_minor <= amount


def test_the_same_book_in_any_order_gives_the_same_answer() -> None:
    quotes = [quote(n, (CNY, AED), bid="0.5", size=10, provider=(P1, P2, P3)[n % 3]) for n in range(1, 7)]
    assert best(sell(45, *quotes)) == best(sell(45, *reversed(quotes)))

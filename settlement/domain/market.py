"""The FX market: firm two-sided quotes of competing providers, and the search for the best execution. Pure.

Rules, by name:

*Price.* A quote `base/counter` has a bid (the provider buys base) and an offer (it sells base), in major units of the
counter currency for one of base, and a fee in parts per million of what the customer is to receive. What a side is
worth is its all-in rate: the price less the fee.

*Price-time priority.* Sides of one pair are used in the order of their all-in rate, the older first among equals. A
route is one pair, or two joined by a bridge currency; a payment takes one route and as many quotes of it as it needs,
8 a pair at most: where the first 8 do not do, the smallest makes way for the next.

*Best.* Of the routes that can do the whole amount: the one that delivers most (of an amount to be sold) or asks least
(for an amount to be bought); among equals fewer hops, fewer fills, the alphabet.

*Rounding: towards-provider, fill by fill.* What a provider pays is rounded down to a minor unit, what it receives for a
stated amount is rounded up. So no fill is worse for a provider than its quote, every currency's whole minor units
are conserved from leg to leg (what leaves one hop is what enters the next), and what rounding leaves is a fraction that
stays with the fill's provider and is accounted to it (`Fill.rounding_minor`).

Everything is integers of minor units and fractions. The same quotes and the same wish give the same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from uuid import UUID

from kernel.ids import ParticipantId
from kernel.money import AMOUNT_MINOR_MAX, Currency, Money
from settlement.domain.refusals import SettlementRefusal

ROUNDING_RULE = "towards-provider"
PPM = 1_000_000
FEE_PPM_MAX = 50_000
"""5 %: more is no fee but a mistake."""
SPREAD_MAX = Fraction(1, 10)
"""Of a quote's own mid. Wider than any pair of two convertible currencies; a slipped digit is wider still."""
LIFETIME_MIN, LIFETIME_MAX = timedelta(seconds=1), timedelta(hours=1)
STALE_AFTER = timedelta(seconds=30)
"""A quote older than this when it arrives was held up: its price may be yesterday's."""
CLOCK_AHEAD_MAX = timedelta(seconds=5)
QUOTES_OF_A_PROVIDER_MAX = 100
QUOTES_OF_A_PAIR_MAX = 200
"""Live ones: what one search has to look at is bounded."""
QUOTES_OF_A_PAIR_KEPT = 10
"""So many of a pair each provider may have however full it is: else two providers could keep all others out of it."""
SIZE_MINOR_MAX = 10**15
PRICE_MIN, PRICE_MAX = Fraction(1, 10**9), Fraction(10**9)
FILLS_OF_A_HOP_MAX = 8
"""Two hops of 8 fills make at most 8 + 15 + 8 = 31 legs; a settlement has 32 at most."""
BRIDGES_MAX = 12
"""Bridge currencies that one search considers."""


class Side(StrEnum):
    """Seen by the provider, as the field has it."""

    BID = "bid"
    OFFER = "offer"


@dataclass(frozen=True, slots=True)
class QuoteTerms:
    """What a provider signs. Sizes are in minor units of the base currency; a side without a price has size 0."""

    quote: UUID
    revision: int
    provider: ParticipantId
    base: Currency
    counter: Currency
    bid: Fraction | None
    bid_size_minor: int
    offer: Fraction | None
    offer_size_minor: int
    fee_ppm: int
    issued_at: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class StandingQuote:
    """A quote in the book. `priority` grows with time; what is used is reserved for settlements or consumed by them."""

    terms: QuoteTerms
    priority: int
    bid_used_minor: int = 0
    offer_used_minor: int = 0
    withdrawn_at: datetime | None = None

    def is_live(self, now: datetime) -> bool:
        return self.withdrawn_at is None and now < self.terms.valid_until

    def after(self, fill: Fill) -> StandingQuote:
        """The quote with what a fill uses of it."""
        if fill.edge.side is Side.BID:
            return replace(self, bid_used_minor=self.bid_used_minor + fill.base_minor)
        return replace(self, offer_used_minor=self.offer_used_minor + fill.base_minor)


def judge_quote(
    terms: QuoteTerms,
    known: StandingQuote | None,
    *,
    now: datetime,
    live_of_provider: int,
    live_of_pair: int,
    own_of_pair: int,
) -> tuple[SettlementRefusal, str] | None:
    """Why a new or amended quote is refused, or None. `known` is the quote with this id as it stands.

    The counts leave the quote itself out; `own_of_pair` is the provider's part of `live_of_pair`. Refuses:
    quote-invalid, quote-stale, quote-of-another, quote-superseded, quote-withdrawn, quote-size-used, too-many-quotes.
    """
    fault = _fault_of(terms)
    if fault is not None:
        return SettlementRefusal.FX_QUOTE_INVALID, fault
    if terms.issued_at < now - STALE_AFTER or terms.issued_at > now + CLOCK_AHEAD_MAX or terms.valid_until <= now:
        return SettlementRefusal.FX_QUOTE_STALE, "it was signed too long ago, or in the future, or has expired"
    if known is not None:
        if known.terms.provider != terms.provider:
            return SettlementRefusal.FX_QUOTE_NOT_FOUND, "no quote of this provider has this id"
        if (known.terms.base, known.terms.counter) != (terms.base, terms.counter):
            return (
                SettlementRefusal.FX_QUOTE_INVALID,
                "an amendment keeps the pair: withdraw the quote and post another",
            )
        if terms.revision <= known.terms.revision:
            why = f"revision {known.terms.revision} stands; an amendment has a higher one"
            return SettlementRefusal.FX_QUOTE_SUPERSEDED, why
        if known.withdrawn_at is not None:
            return SettlementRefusal.FX_QUOTE_WITHDRAWN, "post a quote with a new id"
        if terms.bid_size_minor < known.bid_used_minor or terms.offer_size_minor < known.offer_used_minor:
            used = f"bid {known.bid_used_minor}, offer {known.offer_used_minor}"
            return SettlementRefusal.FX_QUOTE_SIZE_USED, f"locked or consumed already: {used}"
    if live_of_provider >= QUOTES_OF_A_PROVIDER_MAX:
        return SettlementRefusal.FX_TOO_MANY_QUOTES, f"a provider has {QUOTES_OF_A_PROVIDER_MAX} live quotes at most"
    if live_of_pair >= QUOTES_OF_A_PAIR_MAX and own_of_pair >= QUOTES_OF_A_PAIR_KEPT:
        return SettlementRefusal.FX_TOO_MANY_QUOTES, f"a pair has {QUOTES_OF_A_PAIR_MAX} live quotes at most"
    return None


def _fault_of(terms: QuoteTerms) -> str | None:
    if terms.base == terms.counter:
        return "base and counter currency are the same"
    if terms.bid is None and terms.offer is None:
        return "neither bid nor offer"
    for side, price, size in (
        (Side.BID, terms.bid, terms.bid_size_minor),
        (Side.OFFER, terms.offer, terms.offer_size_minor),
    ):
        if (price is None) != (size == 0):
            return f"{side.value}: a price and a size above zero, or neither"
        if price is not None and not PRICE_MIN <= price <= PRICE_MAX:
            return f"{side.value}: a price is between 10^-9 and 10^9"
        if not 0 <= size <= SIZE_MINOR_MAX:
            return f"{side.value}: a size is at most {SIZE_MINOR_MAX} minor units"
    if terms.bid is not None and terms.offer is not None:
        if terms.bid > terms.offer:
            return "the bid is above the offer"
        if (terms.offer - terms.bid) * 2 > SPREAD_MAX * (terms.offer + terms.bid):
            return f"the spread is wider than {SPREAD_MAX} of the mid"
    if not 0 <= terms.fee_ppm <= FEE_PPM_MAX:
        return f"a fee is 0 to {FEE_PPM_MAX} parts per million"
    if not LIFETIME_MIN <= terms.valid_until - terms.issued_at <= LIFETIME_MAX:
        return f"a quote lives {LIFETIME_MIN.total_seconds():.0f} s to {LIFETIME_MAX.total_seconds():.0f} s"
    return None


def keeps_priority(old: QuoteTerms, new: QuoteTerms) -> bool:
    """An amendment that gives others nothing to lose keeps its place in time: same prices and fee, no larger size."""
    return (
        (old.bid, old.offer, old.fee_ppm) == (new.bid, new.offer, new.fee_ppm)
        and new.bid_size_minor <= old.bid_size_minor
        and new.offer_size_minor <= old.offer_size_minor
    )


# --- one side of a quote, as a way from one currency to another


@dataclass(frozen=True, slots=True)
class Edge:
    """A side of a quote seen by the customer: gives `source`, gets `target`. Prices are minor units for minor units."""

    quote: UUID | None
    """None: a fixed rate of the bridge's file, the fallback."""
    revision: int
    provider: ParticipantId
    side: Side
    source: Currency
    target: Currency
    price: Fraction
    """Of `target` for one of `source`, before the fee."""
    fee_ppm: int
    capacity_minor: int
    """Of `source` that the side can still take."""
    priority: int

    @property
    def rate(self) -> Fraction:
        """All-in: the price less the fee."""
        return self.price * (PPM - self.fee_ppm) / PPM

    def base_minor(self, given_minor: int) -> int:
        """What giving so much uses up of the side's size; of an offer rounded up, so that a size is never exceeded."""
        return given_minor if self.side is Side.BID else ceil(given_minor * self.price)


def edges_of(quote: StandingQuote) -> list[Edge]:
    """The sides of a quote that still have something to give."""
    terms = quote.terms
    scale = Fraction(10**terms.counter.exponent, 10**terms.base.exponent)
    found = []
    left = terms.bid_size_minor - quote.bid_used_minor
    if terms.bid is not None and left > 0:
        found.append(_edge(quote, Side.BID, terms.base, terms.counter, terms.bid * scale, left))
    left = terms.offer_size_minor - quote.offer_used_minor
    if terms.offer is not None and left > 0:
        price = 1 / (terms.offer * scale)
        capacity = min(floor(left / price), AMOUNT_MINOR_MAX)
        if capacity > 0:
            found.append(_edge(quote, Side.OFFER, terms.counter, terms.base, price, capacity))
    return found


def _edge(quote: StandingQuote, side: Side, source: Currency, target: Currency, price: Fraction, capacity: int) -> Edge:
    terms = quote.terms
    return Edge(
        terms.quote,
        terms.revision,
        terms.provider,
        side,
        source,
        target,
        price,
        terms.fee_ppm,
        capacity,
        quote.priority,
    )


def fixed_edges(
    base: Currency, counter: Currency, value: Fraction, provider: ParticipantId, *, priority: int
) -> list[Edge]:
    """A fixed rate as two sides without a bound on size: used last, and only where live quotes do not do."""
    price = value * Fraction(10**counter.exponent, 10**base.exponent)
    bound = SIZE_MINOR_MAX
    return [
        Edge(None, 0, provider, Side.BID, base, counter, price, 0, bound, priority),
        Edge(None, 0, provider, Side.OFFER, counter, base, 1 / price, 0, bound, priority),
    ]


def rank(edge: Edge) -> tuple[bool, Fraction, int, int]:
    """Price-time priority; fixed rates after every live quote, whatever their price."""
    return (edge.quote is None, -edge.rate, edge.priority, 0 if edge.quote is None else edge.quote.int)


# --- fills, hops, routes


@dataclass(frozen=True, slots=True)
class Fill:
    """A use of one side: the customer's side gives `given_minor` of source, the provider pays `received_minor`."""

    edge: Edge
    given_minor: int
    received_minor: int

    @property
    def base_minor(self) -> int:
        return self.edge.base_minor(self.given_minor)

    @property
    def fee_minor(self) -> Fraction:
        """In minor units of the target currency."""
        return self.given_minor * self.edge.price * self.edge.fee_ppm / PPM

    @property
    def rounding_minor(self) -> Fraction:
        """What rounding leaves with the provider, in minor units of the target currency; never below zero.

        Below 1 of an amount sold. Of an amount bought the given amount was rounded up: below what 1 given is worth.
        """
        return self.given_minor * self.edge.rate - self.received_minor


@dataclass(frozen=True, slots=True)
class Hop:
    source: Currency
    target: Currency
    fills: tuple[Fill, ...]
    mid: Fraction | None
    """Halfway between the best bid and the best offer of all live quotes, before fees, in units of what is received
    (the other way round it is another number: the mean of 1/x is not 1/mean). None if one side has none."""

    @property
    def given_minor(self) -> int:
        return sum(fill.given_minor for fill in self.fills)

    @property
    def received_minor(self) -> int:
        return sum(fill.received_minor for fill in self.fills)

    @property
    def fee_minor(self) -> Fraction:
        return sum((fill.fee_minor for fill in self.fills), Fraction(0))

    @property
    def rounding_minor(self) -> Fraction:
        return sum((fill.rounding_minor for fill in self.fills), Fraction(0))

    @property
    def spread_minor(self) -> Fraction | None:
        """Against the mid. given * mid = received + spread + fee + rounding, exactly. Below zero in a crossed book."""
        if self.mid is None:
            return None
        return self.given_minor * self.mid - sum(fill.given_minor * fill.edge.price for fill in self.fills)


@dataclass(frozen=True, slots=True)
class Route:
    hops: tuple[Hop, ...]

    @property
    def path(self) -> tuple[Currency, ...]:
        return (self.hops[0].source, *(hop.target for hop in self.hops))

    @property
    def given_minor(self) -> int:
        return self.hops[0].given_minor

    @property
    def received_minor(self) -> int:
        return self.hops[-1].received_minor

    @property
    def fills(self) -> tuple[Fill, ...]:
        return tuple(fill for hop in self.hops for fill in hop.fills)

    @property
    def all_in(self) -> Fraction:
        """Minor units received for one given."""
        return Fraction(self.received_minor, self.given_minor)

    @property
    def mid(self) -> Fraction | None:
        """Of the whole way: the product of the hops' mids."""
        found = Fraction(1)
        for hop in self.hops:
            if hop.mid is None:
                return None
            found *= hop.mid
        return found

    def cost_minor(self, mid: Fraction) -> Fraction:
        """All costs together, in minor units of what is received, against a mid of the whole way."""
        return self.given_minor * mid - self.received_minor


@dataclass(frozen=True, slots=True)
class Wish:
    """Sell exactly `given_minor` for as much as there is, or buy exactly `received_minor` for as little as there is.

    Exactly one of the two is set. `least_received_minor` and `most_given_minor` are the customer's limits; an execution
    beyond one of them does not happen.
    """

    sell: Currency
    buy: Currency
    given_minor: int | None
    received_minor: int | None
    least_received_minor: int | None = None
    most_given_minor: int | None = None
    path: tuple[Currency, ...] | None = None
    """Only this way, if set."""

    def allows(self, route: Route) -> bool:
        return (self.least_received_minor is None or route.received_minor >= self.least_received_minor) and (
            self.most_given_minor is None or route.given_minor <= self.most_given_minor
        )


def with_limit_rate(wish: Wish, rate: Fraction) -> Wish:
    """The wish with a limit of its all-in rate (major units bought for one sold) as a limit of the other amount.

    `received >= given * rate` in whole minor units, so the limit is the same to the minor unit. Whatever the rate, no
    limit is above the largest amount there is: it would limit nothing, and no column could keep it.
    """
    minor = rate * Fraction(10**wish.buy.exponent, 10**wish.sell.exponent)
    if wish.given_minor is not None:
        least = ceil(wish.given_minor * minor)
        return replace(wish, least_received_minor=max(least, wish.least_received_minor or 0))
    most = min(floor((wish.received_minor or 0) / minor), AMOUNT_MINOR_MAX)
    return replace(wish, most_given_minor=most if wish.most_given_minor is None else min(most, wish.most_given_minor))


@dataclass(frozen=True, slots=True)
class Considered:
    """A way from currency to currency, with its route or why there is none."""

    path: tuple[Currency, ...]
    route: Route | None
    why_not: str


@dataclass(frozen=True, slots=True)
class Found:
    """Every way that was considered, the best first. `best` keeps the customer's limits, or is None."""

    wish: Wish
    considered: tuple[Considered, ...]
    best: Route | None
    best_mid: Fraction | None
    """The most favourable mid for the customer over all ways: what costs are shown against."""
    is_fallback: bool = False
    """Live quotes did not do: a fixed rate was used."""


@dataclass(frozen=True, slots=True)
class Level:
    """One quote's side in a book. `size_minor` is what is left of it, in the book's base currency."""

    quote: StandingQuote
    edge: Edge
    size_minor: int


@dataclass(frozen=True, slots=True)
class Book:
    bids: tuple[Level, ...]
    offers: tuple[Level, ...]
    mid: Fraction | None
    """Minor units of counter for one of base, before fees."""


def book(base: Currency, counter: Currency, quotes: Iterable[StandingQuote]) -> Book:
    """The live quotes of a pair in price-time priority; those of counter/base are turned round."""
    bids: list[Level] = []
    offers: list[Level] = []
    for quote in quotes:
        for edge in edges_of(quote):
            if (edge.source, edge.target) == (base, counter):
                bids.append(Level(quote, edge, edge.capacity_minor))
            elif (edge.source, edge.target) == (counter, base):
                offers.append(Level(quote, edge, floor(edge.capacity_minor * edge.price)))
    for side in (bids, offers):
        side.sort(key=lambda level: rank(level.edge))
    best = (max((level.edge.price for level in side), default=None) for side in (bids, offers))
    bid, back = best
    return Book(tuple(bids), tuple(offers), None if bid is None or back is None else (bid + 1 / back) / 2)


def search(wish: Wish, edges: Iterable[Edge], *, without: Collection[ParticipantId] = ()) -> Found:
    """The best execution of a wish; see the module's rules. `without` are no providers for it: payer and payee."""
    by_pair: defaultdict[tuple[Currency, Currency], list[Edge]] = defaultdict(list)
    best_price: dict[tuple[Currency, Currency], Fraction] = {}
    for edge in edges:
        pair = (edge.source, edge.target)
        if edge.quote is not None:
            best_price[pair] = max(best_price.get(pair, edge.price), edge.price)
        if edge.provider not in without:
            by_pair[pair].append(edge)
    for found in by_pair.values():
        found.sort(key=rank)

    def mid(source: Currency, target: Currency) -> Fraction | None:
        there, back = best_price.get((source, target)), best_price.get((target, source))
        return None if there is None or back is None else (there + 1 / back) / 2

    considered: list[Considered] = []
    for path in _paths(wish, by_pair):
        pairs = list(pairwise(path))
        ways = [by_pair.get(pair, []) for pair in pairs]
        filled = _sell(wish.given_minor, ways) if wish.given_minor is not None else _buy(wish.received_minor or 0, ways)
        if isinstance(filled, str):
            considered.append(Considered(path, None, filled))
            continue
        hops = [Hop(*pair, fills, mid(*pair)) for pair, fills in zip(pairs, filled, strict=True)]
        considered.append(Considered(path, Route(tuple(hops)), ""))
    considered.sort(key=_order)
    routes = [item.route for item in considered if item.route is not None]
    mids = [product for item in considered if (product := _path_mid(item.path, mid)) is not None]
    best = next((route for route in routes if wish.allows(route)), None)
    return Found(wish, tuple(considered), best, max(mids) if mids else None)


def search_with_fallback(
    wish: Wish, live: Sequence[Edge], fixed: Sequence[Edge], *, without: Collection[ParticipantId] = ()
) -> Found:
    """Live quotes alone, if they can do the whole of it by any way; else fixed rates fill what they leave."""
    found = search(wish, live, without=without)
    if any(item.route is not None for item in found.considered) or not fixed:
        return found
    return replace(search(wish, [*live, *fixed], without=without), is_fallback=True)


def _paths(wish: Wish, by_pair: dict[tuple[Currency, Currency], list[Edge]]) -> list[tuple[Currency, ...]]:
    if wish.path is not None:
        return [wish.path]
    firsts = {target for source, target in by_pair if source == wish.sell}
    lasts = {source for source, target in by_pair if target == wish.buy}
    bridges = sorted((firsts & lasts) - {wish.sell, wish.buy})[:BRIDGES_MAX]
    return [(wish.sell, wish.buy), *((wish.sell, bridge, wish.buy) for bridge in bridges)]


def _path_mid(path: tuple[Currency, ...], mid: Callable[[Currency, Currency], Fraction | None]) -> Fraction | None:
    product = Fraction(1)
    for source, target in pairwise(path):
        found = mid(source, target)
        if found is None:
            return None
        product *= found
    return product


def _order(item: Considered) -> tuple[object, ...]:
    codes = tuple(currency.code for currency in item.path)
    if item.route is None:
        return (1, 0, 0, len(item.path), 0, codes)
    route = item.route
    # Of a wish one of the two is the same for all routes, so one key serves both kinds.
    return (0, -route.received_minor, route.given_minor, len(item.path), len(route.fills), codes)


def _sell(given_minor: int, ways: Sequence[Sequence[Edge]]) -> list[tuple[Fill, ...]] | str:
    hops: list[tuple[Fill, ...]] = []
    amount = given_minor
    for edges in ways:
        fills: list[Fill] = []
        left = amount
        for edge in _enough(edges, amount, lambda edge: edge.capacity_minor):
            given = min(left, edge.capacity_minor)
            fills.append(Fill(edge, given, floor(given * edge.rate)))
            left -= given
        if left:
            return _short(left, edges, "to be sold")
        amount = sum(fill.received_minor for fill in fills)
        if not 0 < amount <= AMOUNT_MINOR_MAX:
            return "the amount is less than a minor unit, or too large"
        hops.append(tuple(fills))
    return hops


def _buy(received_minor: int, ways: Sequence[Sequence[Edge]]) -> list[tuple[Fill, ...]] | str:
    hops: list[tuple[Fill, ...]] = []
    amount = received_minor
    for edges in reversed(ways):
        fills: list[Fill] = []
        left = amount
        for edge in _enough(edges, amount, lambda edge: floor(edge.capacity_minor * edge.rate)):
            received = min(left, floor(edge.capacity_minor * edge.rate))
            fills.append(Fill(edge, ceil(received / edge.rate), received))
            left -= received
        if left:
            return _short(left, edges, "to be bought")
        amount = sum(fill.given_minor for fill in fills)
        if not 0 < amount <= AMOUNT_MINOR_MAX:
            return "the amount is too large"
        hops.append(tuple(fills))
    hops.reverse()
    return hops


def _enough(edges: Sequence[Edge], amount: int, size_of: Callable[[Edge], int]) -> list[Edge]:
    """The first that do the amount together, FILLS_OF_A_HOP_MAX at most. Where so many do not, the smallest of them
    makes way for the next: a handful of tiny quotes at the top of a book must not close the market behind them."""
    chosen: list[tuple[int, Edge]] = []
    left = amount
    for edge in edges:
        size = size_of(edge)
        if left <= 0:
            break
        if size == 0:
            continue
        chosen.append((size, edge))
        left -= size
        if len(chosen) > FILLS_OF_A_HOP_MAX:
            # Of equals the last: it has the worst price.
            smallest = min(reversed(range(len(chosen))), key=lambda place: chosen[place][0])
            left += chosen.pop(smallest)[0]
    return [edge for _, edge in chosen]


def _short(left: int, edges: Sequence[Edge], what: str) -> str:
    if not edges:
        return "nobody quotes this pair"
    currency = edges[0].source if what == "to be sold" else edges[0].target
    beyond = f"; {FILLS_OF_A_HOP_MAX} quotes a pair are used at most" if len(edges) > FILLS_OF_A_HOP_MAX else ""
    return f"the quotes lack size: {Money(min(left, AMOUNT_MINOR_MAX), currency)} {what} is left over{beyond}"


# --- legs


@dataclass(frozen=True, slots=True)
class PlannedLeg:
    payer: ParticipantId
    payee: ParticipantId
    amount: Money


def plan_legs(route: Route, *, payer: ParticipantId, payee: ParticipantId) -> tuple[PlannedLeg, ...]:
    """Who pays whom: payer to the first hop's providers, those to the second's, the last to the payee.

    Conserved to the minor unit: in every currency what providers get on the way in is what the others give on the way
    out. A provider of both hops keeps what it owes itself; nobody pays himself; one leg a (currency, payer, payee).
    """
    sums: defaultdict[tuple[Currency, ParticipantId, ParticipantId], int] = defaultdict(int)
    for fill in route.hops[0].fills:
        sums[route.hops[0].source, payer, fill.edge.provider] += fill.given_minor
    for first, second in pairwise(route.hops):
        gives: defaultdict[ParticipantId, int] = defaultdict(int)
        gets: defaultdict[ParticipantId, int] = defaultdict(int)
        for fill in first.fills:
            gives[fill.edge.provider] += fill.received_minor
        for fill in second.fills:
            gets[fill.edge.provider] += fill.given_minor
        for provider in gives:
            own = min(gives[provider], gets.get(provider, 0))
            gives[provider] -= own
            if own:
                gets[provider] -= own
        receivers = list(gets)
        for provider, amount in gives.items():
            while amount:
                taker = next(found for found in receivers if gets[found])
                part = min(amount, gets[taker])
                sums[first.target, provider, taker] += part
                gets[taker] -= part
                amount -= part
    for fill in route.hops[-1].fills:
        sums[route.hops[-1].target, fill.edge.provider, payee] += fill.received_minor
    return tuple(
        PlannedLeg(giver, taker, Money(amount, currency))
        for (currency, giver, taker), amount in sums.items()
        if amount > 0
    )


def floor(value: Fraction) -> int:
    return value.numerator // value.denominator


def ceil(value: Fraction) -> int:
    return -(-value.numerator // value.denominator)

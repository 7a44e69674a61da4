"""Best-execution evidence: a search as people and programs read it, costs and reasons included."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from kernel.money import Currency, Money
from settlement.contract.market import FillView, HopView, LiveQuoteView, SearchView, WayView, major
from settlement.domain.market import (
    ROUNDING_RULE,
    Considered,
    Fill,
    Found,
    Hop,
    Route,
    StandingQuote,
    floor,
)


def search_view(found: Found, quotes: Sequence[StandingQuote], *, at: datetime) -> SearchView:
    """`quotes` are the live ones that the search saw."""
    wish = found.wish
    paths = [item.path for item in found.considered]
    on_a_way = {frozenset(pair) for path in paths for pair in pairwise(path)}
    return SearchView(
        at=at,
        sell=wish.sell.code,
        buy=wish.buy.code,
        given_minor=wish.given_minor,
        received_minor=wish.received_minor,
        least_received_minor=wish.least_received_minor,
        most_given_minor=wish.most_given_minor,
        rounding_rule=ROUNDING_RULE,
        uses_fixed_rate=found.is_fallback,
        best_mid=None if found.best_mid is None else major(found.best_mid, source=wish.sell, target=wish.buy),
        chosen=None if found.best is None else [currency.code for currency in found.best.path],
        why=why(found),
        ways=[_way(item, found) for item in found.considered],
        live_quotes=[
            _live(quote) for quote in quotes if frozenset((quote.terms.base, quote.terms.counter)) in on_a_way
        ],
    )


def why(found: Found) -> str:
    """One sentence: what was chosen and by what it is better than the next, or why nothing was."""
    routes = [item.route for item in found.considered if item.route is not None]
    if not routes:
        reasons = "; ".join(f"{_name(item.path)}: {item.why_not}" for item in found.considered[:5])
        return f"no way can do the whole amount ({reasons})"
    first = routes[0]
    fixed = " Live quotes could not do it: the bridge's fixed rates fill what they leave." if found.is_fallback else ""
    if found.best is None:
        return f"the best, {_name(first.path)}, {_deal(first)}: worse than the customer's limit.{fixed}"
    if len(routes) == 1:
        return f"{_name(first.path)} is the only way that can do the whole amount; it {_deal(first)}.{fixed}"
    second = routes[1]
    if found.wish.given_minor is not None:
        more = first.received_minor - second.received_minor
        by = f"{Money(more, found.wish.buy)} more than"
    else:
        more = second.given_minor - first.given_minor
        by = f"{Money(more, found.wish.sell)} less than"
    if more == 0:
        by = "the same with no more hops and fills than"
    return f"{_name(first.path)} {_deal(first)}, {by} the next best, {_name(second.path)}.{fixed}"


def _deal(route: Route) -> str:
    sold, bought = Money(route.given_minor, route.path[0]), Money(route.received_minor, route.path[-1])
    return f"gives {bought} for {sold}"


def _name(path: Sequence[Currency]) -> str:
    return "-".join(currency.code for currency in path)


def _way(item: Considered, found: Found) -> WayView:
    route = item.route
    path = [currency.code for currency in item.path]
    if route is None:
        return WayView(
            path=path,
            is_possible=False,
            why_not=item.why_not,
            is_within_limits=False,
            given_minor=None,
            received_minor=None,
            all_in_rate=None,
            cost_minor=None,
            cost_ppm=None,
            hops=[],
        )
    cost = None if found.best_mid is None else route.cost_minor(found.best_mid)
    return WayView(
        path=path,
        is_possible=True,
        why_not="",
        is_within_limits=found.wish.allows(route),
        given_minor=route.given_minor,
        received_minor=route.received_minor,
        all_in_rate=major(route.all_in, source=route.path[0], target=route.path[-1]),
        cost_minor=None if cost is None else str(cost),
        cost_ppm=None
        if cost is None or found.best_mid is None
        else floor(cost * 1_000_000 / (route.given_minor * found.best_mid)),
        hops=[_hop(hop) for hop in route.hops],
    )


def _hop(hop: Hop) -> HopView:
    return HopView(
        source=hop.source.code,
        target=hop.target.code,
        given_minor=hop.given_minor,
        received_minor=hop.received_minor,
        mid=None if hop.mid is None else major(hop.mid, source=hop.source, target=hop.target),
        spread_minor=None if hop.spread_minor is None else str(hop.spread_minor),
        fee_minor=str(hop.fee_minor),
        rounding_minor=str(hop.rounding_minor),
        fills=[_fill(fill) for fill in hop.fills],
    )


def _fill(fill: Fill) -> FillView:
    edge = fill.edge
    return FillView(
        quote=edge.quote,
        revision=edge.revision,
        provider=edge.provider,
        side=edge.side,
        price=major(edge.price, source=edge.source, target=edge.target),
        given_minor=fill.given_minor,
        received_minor=fill.received_minor,
        fee_ppm=edge.fee_ppm,
        fee_minor=str(fill.fee_minor),
        rounding_minor=str(fill.rounding_minor),
    )


def _live(quote: StandingQuote) -> LiveQuoteView:
    terms = quote.terms
    return LiveQuoteView(
        quote=terms.quote,
        revision=terms.revision,
        provider=terms.provider,
        base=terms.base.code,
        counter=terms.counter.code,
        bid=None if terms.bid is None else str(terms.bid),
        bid_left_minor=terms.bid_size_minor - quote.bid_used_minor,
        offer=None if terms.offer is None else str(terms.offer),
        offer_left_minor=terms.offer_size_minor - quote.offer_used_minor,
        fee_ppm=terms.fee_ppm,
        valid_until=terms.valid_until,
    )

"""`jiaozi-settlement fx`: quote, see the book, preview, execute, read the evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Annotated, NoReturn
from uuid import UUID, uuid4

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from rich.table import Table

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import KeyRefused, PrivateKey
from kernel.ids import new_uuid7
from kernel.money import Currency, Money, format_minor
from settlement.cli.options import DEFAULT_URL, ClientKey, Json, Url, connect, console, fail, parse_ref
from settlement.contract.market import (
    QUOTE_PREFIX,
    ExecutionRequest,
    ExecutionSummary,
    ExecutionView,
    FirmQuoteView,
    LevelView,
    OnExpiry,
    QuoteDocument,
    RemainderView,
    SearchView,
    WayView,
    Wish,
    show_quote_id,
    sign_quote,
)
from settlement.domain.instructions import Priority

app = typer.Typer(
    no_args_is_help=True,
    help="The FX market: firm quotes of competing providers, best execution, its evidence. Amounts are in major units "
    "(100.00), prices in major units of the counter currency for one of base.",
)

Pair = Annotated[str, typer.Argument(help="base/counter, e.g. USD/CNY.")]
Price = Annotated[str | None, typer.Option(help="Decimal text, e.g. 7.0812.")]
Payer = Annotated[str, typer.Option(help="Who sells, in the shape of a BIC.")]
Payee = Annotated[str, typer.Option(help="Who receives; the payer itself for a conversion of its own.")]
Sell = Annotated[str, typer.Option(help="The currency that the payer gives, e.g. CNY.")]
Buy = Annotated[str, typer.Option(help="The currency that the payee receives, e.g. AED.")]
Give = Annotated[str | None, typer.Option(help="Sell exactly so much (or name --receive).")]
Receive = Annotated[str | None, typer.Option(help="Buy exactly so much (or name --give).")]
Least = Annotated[str | None, typer.Option(help="Limit: receive at least so much.")]
Most = Annotated[str | None, typer.Option(help="Limit: give at most so much.")]
LimitRate = Annotated[str | None, typer.Option(help="Limit: receive at least so much for one given, all costs in.")]


@app.command()
def quote(
    pair: Pair,
    client_key: ClientKey,
    provider: Annotated[str, typer.Option(help="The quoting institution, whose key signs.")],
    bridge: Annotated[str, typer.Option(help="The bridge's own code: the quote is for it alone.")],
    bid: Price = None,
    bid_size: Annotated[str, typer.Option(help="Base currency that the bid takes.")] = "0",
    offer: Price = None,
    offer_size: Annotated[str, typer.Option(help="Base currency that the offer gives.")] = "0",
    fee_ppm: Annotated[int, typer.Option(help="Parts per million of what the customer is to receive.")] = 0,
    seconds: Annotated[int, typer.Option(help="How long the quote is firm.", min=1, max=3_600)] = 60,
    amend: Annotated[str | None, typer.Option(help="fxq_...: replace this quote's terms.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Sign and post a firm quote, one-sided or two-sided; with --amend the next revision of one."""
    base, _, counter = pair.partition("/")
    with connect(url, client_key) as client:
        try:
            known = None if amend is None else client.fx_quote(parse_ref(QUOTE_PREFIX, amend))
            now = datetime.now(UTC)
            document = QuoteDocument(
                bridge=bridge,
                provider=provider,
                quote=new_uuid7() if known is None else known.quote,
                revision=1 if known is None else known.revision + 1,
                base=base,
                counter=counter,
                bid=bid,
                bid_size_minor=_minor(bid_size, base),
                offer=offer,
                offer_size_minor=_minor(offer_size, base),
                fee_ppm=fee_ppm,
                issued_at=now,
                valid_until=now + timedelta(seconds=seconds),
            )
            view = client.post_fx_quote(sign_quote(document, key=PrivateKey.load(client_key)))
        except (ProblemResponse, ServiceUnreachable, KeyRefused, ValueError) as error:
            _fail(error)
    _show(view) if as_json else console.print(_quotes_table([view]))


@app.command()
def withdraw(
    quote: Annotated[str, typer.Argument(help="fxq_...")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Take a quote out of the book. What is locked for settlements stays locked: quotes are firm."""
    with connect(url, client_key) as client:
        try:
            view = client.withdraw_fx_quote(parse_ref(QUOTE_PREFIX, quote))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    _show(view) if as_json else console.print(_quotes_table([view]))


@app.command()
def quotes(
    client_key: ClientKey,
    live: Annotated[bool, typer.Option("--live", help="Only those that can be used now.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """The signer's own quotes, with what is used of each."""
    with connect(url, client_key) as client:
        try:
            found = list(client.fx_quotes(live=live))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        typer.echo(TypeAdapter(list[FirmQuoteView]).dump_json(found, indent=2).decode())
    else:
        console.print(_quotes_table(found) if found else "No quotes.")


@app.command()
def book(pair: Pair, client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """A pair's live quotes in price-time priority, whichever way round they were quoted."""
    base, _, counter = pair.partition("/")
    with connect(url, client_key) as client:
        try:
            view = client.order_book(base, counter)
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        return _show(view)
    table = Table("side", "provider", "price", "fee ppm", "all-in", f"size {base}", "until", title=f"{base}/{counter}")
    levels: list[tuple[str, LevelView]] = [("offer", level) for level in reversed(view.offers)]
    levels += [("bid", level) for level in view.bids]
    for side, level in levels:
        size = format_minor(level.size_minor, Currency.of(base))
        price, all_in, until = _decimal(level.price), _decimal(level.all_in), f"{level.valid_until:%H:%M:%S}"
        table.add_row(side, level.provider, price, str(level.fee_ppm), all_in, size, until)
    console.print(table if levels else f"Nobody quotes {base}/{counter} now.")


@app.command()
def preview(
    payer: Payer,
    payee: Payee,
    sell: Sell,
    buy: Buy,
    client_key: ClientKey,
    give: Give = None,
    receive: Receive = None,
    least: Least = None,
    most: Most = None,
    limit_rate: LimitRate = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """What an execution would be now: every way considered with its costs, and which is best and why. Locks nothing."""
    with connect(url, client_key) as client:
        try:
            wish = Wish(
                payer=payer,
                payee=payee,
                sell=sell,
                buy=buy,
                given_minor=_optional(give, sell),
                received_minor=_optional(receive, buy),
                least_received_minor=_optional(least, buy),
                most_given_minor=_optional(most, sell),
                limit_rate=limit_rate,
            )
            view = client.preview_execution(wish)
        except (ProblemResponse, ServiceUnreachable, ValueError) as error:
            _fail(error)
    _show(view) if as_json else _print_search(view)


@app.command()
def execute(
    payer: Payer,
    payee: Payee,
    sell: Sell,
    buy: Buy,
    client_key: ClientKey,
    give: Give = None,
    receive: Receive = None,
    least: Least = None,
    most: Most = None,
    limit_rate: LimitRate = None,
    value_date: Annotated[str | None, typer.Option(help="YYYY-MM-DD; by default today in UTC.")] = None,
    requote: Annotated[
        bool, typer.Option("--requote", help="If the lock expires: search again within the limits, not give up.")
    ] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Lock, but ask nobody before POST /v1/batches/{batch}/run.")
    ] = False,
    uetr: Annotated[
        str | None, typer.Option(help="A UUID of version 4; the same one again is the same payment.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Sell or buy at the best execution: quotes are locked and one settlement of all legs is made, or nothing is."""
    with connect(url, client_key) as client:
        try:
            request = ExecutionRequest(
                payer=payer,
                payee=payee,
                sell=sell,
                buy=buy,
                given_minor=_optional(give, sell),
                received_minor=_optional(receive, buy),
                least_received_minor=_optional(least, buy),
                most_given_minor=_optional(most, sell),
                limit_rate=limit_rate,
                uetr=uuid4() if uetr is None else UUID(uetr),
                value_date=datetime.now(UTC).date() if value_date is None else value_date,
                priority=Priority.NORMAL,
                start=not hold,
                on_expiry=OnExpiry.REQUOTE if requote else OnExpiry.ABORT,
            )
            view = client.execute(request)
        except (ProblemResponse, ServiceUnreachable, ValueError) as error:
            _fail(error)
    _show(view) if as_json else _print_execution(view)


@app.command()
def report(
    settlement: Annotated[str, typer.Argument(help="stl_...")],
    client_key: ClientKey,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Best-execution evidence: which quotes were live, the ways considered, the choice, the costs, each lock's end."""
    with connect(url, client_key) as client:
        try:
            view = client.execution(parse_ref("stl", settlement))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        return _show(view)
    for search in view.searches:
        _print_search(search)
    _print_execution(view)


@app.command()
def executions(
    client_key: ClientKey,
    locked: Annotated[bool, typer.Option("--locked", help="Only those that are not decided.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Executions that the signer pays, receives or provides for."""
    with connect(url, client_key) as client:
        try:
            found = list(client.executions(locked=locked))
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        typer.echo(TypeAdapter(list[ExecutionSummary]).dump_json(found, indent=2).decode())
        return
    table = Table("settlement", "batch", "payer", "payee", "gives", "receives", "state", "locked until")
    for item in found:
        names = ids.show("stl", item.settlement), ids.show("bat", item.batch)
        amounts = _major(item.given_minor, item.sell), _major(item.received_minor, item.buy)
        until = f"{item.lock_expires_at:%H:%M:%S}" if item.is_locked else ""
        table.add_row(*names, item.payer, item.payee, *amounts, item.settlement_state.value, until)
    console.print(table if found else "No executions.")


@app.command()
def remainders(client_key: ClientKey, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """What rounding has left with each provider in all that was settled, exact to the fraction."""
    with connect(url, client_key) as client:
        try:
            found = client.fx_remainders()
        except (ProblemResponse, ServiceUnreachable) as error:
            fail(error)
    if as_json:
        typer.echo(TypeAdapter(list[RemainderView]).dump_json(found, indent=2).decode())
        return
    table = Table("provider", "currency", "minor units")
    for item in found:
        table.add_row(item.provider, item.currency, item.remainder_minor)
    console.print(table if found else "Rounding has left nothing yet.")


# --- showing


def _print_search(view: SearchView) -> None:
    table = Table("way", "gives", "receives", "all-in rate", "cost", "spread, fee, rounding by hop", title=view.why)
    for way in view.ways:
        path = "-".join(way.path)
        if not way.is_possible or way.given_minor is None or way.received_minor is None:
            table.add_row(path, "", "", "", "", way.why_not)
            continue
        cost = "" if way.cost_ppm is None else f"{way.cost_ppm:,} ppm"
        given, received = _major(way.given_minor, view.sell), _major(way.received_minor, view.buy)
        limit = "" if way.is_within_limits else " (beyond the limit)"
        table.add_row(path, given, received + limit, _decimal(way.all_in_rate or "0"), cost, _costs(way))
    console.print(table)


def _costs(way: WayView) -> str:
    lines = []
    for hop in way.hops:
        parts = [hop.spread_minor, hop.fee_minor, hop.rounding_minor]
        exponent = Currency.of(hop.target).exponent
        shown = ["?" if part is None else _decimal(str(Fraction(part) / 10**exponent)) for part in parts]
        lines.append(f"{hop.target} {', '.join(shown)}")
    return "; ".join(lines)


def _print_execution(view: ExecutionView) -> None:
    shown = ids.show("stl", view.settlement)
    given, received = _major(view.given_minor, view.sell), _major(view.received_minor, view.buy)
    console.print(f"{shown}: {given} for {received}, {view.settlement_state.value}")
    table = Table("attempt", "provider", "gives", "receives", "quote", "lock")
    for fill in view.fills:
        quote_id = "fixed rate" if fill.quote is None else f"{show_quote_id(fill.quote)} rev. {fill.revision}"
        amounts = _major(fill.given_minor, fill.source), _major(fill.received_minor, fill.target)
        table.add_row(str(fill.attempt), fill.provider, *amounts, quote_id, fill.state)
    console.print(table)


def _quotes_table(found: list[FirmQuoteView]) -> Table:
    table = Table("quote", "pair", "bid", "used / size", "offer", "used / size", "fee ppm", "until", "live")
    for view in found:
        base = Currency.of(view.base)
        bid_used, bid_size = format_minor(view.bid_used_minor, base), format_minor(view.bid_size_minor, base)
        offer_used, offer_size = format_minor(view.offer_used_minor, base), format_minor(view.offer_size_minor, base)
        table.add_row(
            f"{show_quote_id(view.quote)} rev. {view.revision}",
            f"{view.base}/{view.counter}",
            "" if view.bid is None else _decimal(view.bid),
            "" if view.bid is None else f"{bid_used} / {bid_size}",
            "" if view.offer is None else _decimal(view.offer),
            "" if view.offer is None else f"{offer_used} / {offer_size}",
            str(view.fee_ppm),
            f"{view.valid_until:%H:%M:%S}",
            "yes" if view.is_live else "withdrawn" if view.withdrawn_at else "no",
        )
    return table


def _major(amount_minor: int, code: str) -> str:
    return str(Money(amount_minor, Currency.of(code)))


def _decimal(text: str) -> str:
    """An exact fraction for people: six decimals, rounded down."""
    value = Fraction(text) * 1_000_000
    units, rest = divmod(abs(value.numerator) // value.denominator, 1_000_000)
    return f"{'-' if value < 0 else ''}{units}.{rest:06d}"


def _minor(text: str, code: str) -> int:
    return Money.parse_major(text, Currency.of(code)).amount_minor


def _optional(text: str | None, code: str) -> int | None:
    return None if text is None else _minor(text, code)


def _show(view: BaseModel) -> None:
    typer.echo(view.model_dump_json(indent=2))


def _fail(error: Exception) -> NoReturn:
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = "/".join(str(part) for part in first["loc"])
        fail(ValueError(f"{place}: {first['msg']}" if place else first["msg"]))
    fail(error)

"""The FX market: quotes come in, wishes are searched, executions are locked to their settlements in one transaction.

An execution is one transaction: search, lock the quotes used, store one settlement of all the legs (payer -> providers
-> payee), lock what it uses of each quote, keep the evidence. The engine then posts all legs or none (I5). COMMIT
consumes the locks and ABORT releases them, in the decision's own transaction (migration 0005).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any, Protocol
from uuid import UUID

import sqlalchemy as sa

from kernel import idempotency
from kernel.clock import Clock
from kernel.crypto import jws
from kernel.crypto.keys import PublicKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from kernel.money import Currency, Money
from settlement.contract.market import InvalidQuote, QuoteDocument, read_quote
from settlement.domain.compliance import Subject
from settlement.domain.escrow import LegTerms, SettlementState
from settlement.domain.fx import Quote, Rate, parse_rate, show_fraction
from settlement.domain.instructions import Instruction, Priority
from settlement.domain.market import (
    SIZE_MINOR_MAX,
    Edge,
    Found,
    QuoteTerms,
    Route,
    StandingQuote,
    Wish,
    edges_of,
    fixed_edges,
    judge_quote,
    keeps_priority,
    plan_legs,
    search,
    search_with_fallback,
    with_limit_rate,
)
from settlement.domain.refusals import SettlementRefusal
from settlement.settings import Directory
from settlement.store import batches, tables
from settlement.store import market as store
from settlement.usecases.compliance import NewScreening, keep_to_screened
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.kept_twice import database_refusals
from settlement.usecases.market_evidence import search_view, why
from settlement.usecases.multileg import NewMultileg, store_settlement

log = logging.getLogger("jiaozi.settlement.market")

SEARCHES_MAX = 5
"""Of one execution, when quotes change between the search and their locks."""
REQUOTES_MAX = 20
"""Then an execution that still waits is given up."""
EXPIRED_PAGES_MAX = 10
"""Pages of expired locks that one round looks at, on past those that could not be ended."""
BATCH_LOCK_TIME = timedelta(days=1)
"""How long a batch's instruction keeps its price while it waits, in a queue or for its hours."""
BATCH_DAYS_AHEAD_MAX = 1
"""Of the value date, from today in UTC: tomorrow is somebody's today. A quote is a price for now, and no forward."""
SCREENINGS_MAX = 4
"""Of one execution that is quoted anew: each may bring in other providers, who are screened in their turn."""


class ScreenAnew(Protocol):
    def __call__(self, connection: sa.Connection, subject: Subject, *, now: datetime) -> NewScreening:
        """Who of these new legs may not be in them, and what is to be recorded of it."""
        ...


@dataclass(frozen=True, slots=True)
class Market:
    """What the market needs of the service."""

    database: Database
    directory: Directory
    bridge: ParticipantId
    clock: Clock
    lock_time: timedelta
    """How long a quote is locked for a settlement that the engine has not taken."""
    screen_anew: ScreenAnew | None = None
    """Who of new legs may not be in them; None without compliance: then who was not screened, if the others were."""
    find_barred: Callable[[datetime], Collection[str]] = lambda _: ()
    """Whose quotes nobody takes, since compliance would stop a payment with them in its legs."""


# --- quotes


def post_quote(market: Market, token: str, *, provider: ParticipantId) -> tuple[store.QuoteRow, bool]:
    """A quote or an amendment of one stands in the book when this returns; whether it is new, too.

    Idempotent by (quote, revision, content). Raises: ProblemError(fx-quote-*, fx-too-many-quotes,
    currency-not-served, account-missing).
    """
    document, terms = _read(market, token, provider)
    now = market.clock()
    try:
        with market.database.transaction(isolation="READ COMMITTED") as connection:
            return _post(connection, token, document, terms, now=now)
    except sa.exc.IntegrityError:
        # Another request with this id was first. Now its row is there to be compared with.
        with market.database.transaction(isolation="READ COMMITTED") as connection:
            return _post(connection, token, document, terms, now=now)


def _read(market: Market, token: str, provider: ParticipantId) -> tuple[QuoteDocument, QuoteTerms]:
    entry = market.directory.institutions.get(provider)
    if entry is None:
        raise ProblemError(SettlementRefusal.FX_QUOTE_INVALID, "only a registered institution quotes")
    try:
        document = read_quote(token, PublicKey.from_jwk(entry.key))
        currencies = Currency.of(document.base), Currency.of(document.counter)
        bid = None if document.bid is None else parse_rate(document.bid)
        offer = None if document.offer is None else parse_rate(document.offer)
    except InvalidQuote as error:
        raise ProblemError(SettlementRefusal.FX_QUOTE_INVALID, str(error)) from None
    except ValueError as error:
        raise ProblemError(SettlementRefusal.FX_QUOTE_INVALID, str(error)) from None
    if document.bridge != market.bridge or document.provider != provider:
        detail = f"it is {document.provider}'s for {document.bridge}, not {provider}'s for {market.bridge}"
        raise ProblemError(SettlementRefusal.FX_QUOTE_INVALID, detail)
    for currency in currencies:
        _check_account(market, provider, currency)
    return document, QuoteTerms(
        document.quote,
        document.revision,
        provider,
        *currencies,
        bid,
        document.bid_size_minor,
        offer,
        document.offer_size_minor,
        document.fee_ppm,
        document.issued_at,
        document.valid_until,
    )


def _post(
    connection: sa.Connection, token: str, document: QuoteDocument, terms: QuoteTerms, *, now: datetime
) -> tuple[store.QuoteRow, bool]:
    store.lock_provider(connection, terms.provider)
    known = store.find_quote(connection, terms.quote, lock=True)
    if known is not None and known.standing.terms.provider == terms.provider:
        signed = store.signed_quote(connection, terms.quote, terms.revision)
        # Not the token: an ECDSA signature of the same text is another one each time.
        if signed is not None and jws.peek_payload(signed) == jws.peek_payload(token):
            return known, False
    of_provider, of_pair, of_both = store.count_live(connection, terms, now=now)
    standing = None if known is None else known.standing
    refused = judge_quote(
        terms, standing, now=now, live_of_provider=of_provider, live_of_pair=of_pair, own_of_pair=of_both
    )
    if refused is not None:
        raise ProblemError(*refused)
    store.save_quote(
        connection,
        terms,
        token=token,
        bid=document.bid,
        offer=document.offer,
        keep_priority=standing is not None and keeps_priority(standing.terms, terms),
        is_new=known is None,
        now=now,
    )
    saved = store.find_quote(connection, terms.quote)
    if saved is None:
        raise RuntimeError("the quote just stored is not there")
    return saved, True


def withdraw_quote(market: Market, quote: UUID, *, provider: ParticipantId) -> store.QuoteRow:
    """Nothing more is taken of it. What is locked stays locked: quotes are firm. Raises: fx-quote-not-found."""
    with market.database.transaction(isolation="READ COMMITTED") as connection:
        known = store.find_quote(connection, quote, lock=True)
        if known is None or known.standing.terms.provider != provider:
            raise ProblemError(SettlementRefusal.FX_QUOTE_NOT_FOUND)
        store.withdraw_quote(connection, quote, now=market.clock())
        return store.find_quote(connection, quote) or known


# --- searching


@dataclass(frozen=True, slots=True)
class Order:
    """A wish with its parties."""

    payer: ParticipantId
    payee: ParticipantId
    wish: Wish


def make_order(
    market: Market,
    *,
    payer: ParticipantId,
    payee: ParticipantId,
    sell: str,
    buy: str,
    given_minor: int | None,
    received_minor: int | None,
    least_received_minor: int | None,
    most_given_minor: int | None,
    limit_rate: str | None,
) -> Order:
    """Raises: ProblemError(participant-unknown, currency-not-served, account-missing, fx-order-invalid)."""
    for party in (payer, payee):
        if party not in market.directory.institutions:
            raise ProblemError(SettlementRefusal.PARTICIPANT_UNKNOWN, f"{party} is not registered with this bridge")
    try:
        wish = Wish(
            Currency.of(sell), Currency.of(buy), given_minor, received_minor, least_received_minor, most_given_minor
        )
    except ValueError as error:
        raise ProblemError(SettlementRefusal.CURRENCY_NOT_SERVED, str(error)) from None
    _check_account(market, payer, wish.sell)
    _check_account(market, payee, wish.buy)
    amount = given_minor if given_minor is not None else received_minor
    if wish.sell == wish.buy or amount is None or not 0 < amount <= SIZE_MINOR_MAX:
        detail = f"two currencies, and 1 to {SIZE_MINOR_MAX} minor units of one of them"
        raise ProblemError(SettlementRefusal.FX_ORDER_INVALID, detail)
    if limit_rate is not None:
        try:
            wish = with_limit_rate(wish, parse_rate(limit_rate))
        except ValueError as error:
            raise ProblemError(SettlementRefusal.FX_ORDER_INVALID, str(error)) from None
    return Order(payer, payee, wish)


def _check_account(market: Market, participant: ParticipantId, currency: Currency) -> None:
    if currency not in market.directory.ledger_of_currency:
        raise ProblemError(SettlementRefusal.CURRENCY_NOT_SERVED, currency.code)
    if market.directory.account(participant, currency) is None:
        raise ProblemError(SettlementRefusal.ACCOUNT_MISSING, f"{participant} in {currency}")


def look(
    connection: sa.Connection, market: Market, order: Order, *, now: datetime, without: Collection[str] = ()
) -> tuple[Found, list[StandingQuote]]:
    """The search over what is live now, of everybody but `without`, and those quotes. Nothing is locked."""
    quotes = [
        quote
        for quote in store.live_quotes(connection, (order.wish.sell, order.wish.buy), now=now)
        if quote.terms.provider not in without
        and _can_pay(market.directory, quote.terms.provider, quote.terms.base, quote.terms.counter)
    ]
    live = [edge for quote in quotes for edge in edges_of(quote)]
    fixed: list[Edge] = []
    for place, rate in enumerate(market.directory.rates):
        if (
            rate.valid_from <= now < rate.valid_until
            and rate.provider not in without
            and _can_pay(market.directory, rate.provider, rate.base, rate.counter)
        ):
            fixed += fixed_edges(rate.base, rate.counter, rate.value, rate.provider, priority=place)
    return search_with_fallback(order.wish, live, fixed, without=(order.payer, order.payee)), quotes


def _can_pay(directory: Directory, provider: ParticipantId, *currencies: Currency) -> bool:
    """It has an account on the ledger of each currency (the directory may have changed since it quoted)."""
    return all(
        currency in directory.ledger_of_currency and directory.account(provider, currency) is not None
        for currency in currencies
    )


def preview(market: Market, order: Order) -> tuple[Found, list[StandingQuote], datetime]:
    """What an execution would be now. Nothing is locked, so the real one may differ."""
    now = market.clock()
    return_released(market)
    with market.database.transaction(isolation="READ COMMITTED") as connection:
        found, quotes = look(connection, market, order, now=now, without=market.find_barred(now))
    return found, quotes, now


# --- executing


@dataclass(frozen=True, slots=True)
class ExecutionOrder:
    """A client's request. `content` is its body, byte for byte."""

    order: Order
    uetr: UUID
    value_date: date
    priority: Priority
    on_expiry: str
    submitter: ParticipantId
    is_operator: bool
    idempotency_key: str
    path: str
    content: bytes


def execute(
    market: Market,
    request: ExecutionOrder,
    *,
    is_started: bool,
    checks: Sequence[IntakeCheck],
    render: Callable[[sa.Connection, store.ExecutionRow], dict[str, Any]],
) -> idempotency.Outcome:
    """Search, lock, store: one settlement in state received with its quotes locked, or a problem and nothing.

    Idempotent by (submitter, Idempotency-Key), and by UETR and content. Wake the worker afterwards.
    Raises: ProblemError(submitter-not-party, fx-no-route, fx-limit-not-met, fx-market-moved, uetr-already-used,
    legs-invalid, batch-invalid, idempotency-key-*).
    """
    if not request.is_operator and request.submitter != request.order.payer:
        detail = f"{request.submitter} is not the payer; nobody sells another's money"
        raise ProblemError(SettlementRefusal.SUBMITTER_NOT_PARTY, detail)
    print_ = idempotency.fingerprint("POST", request.path, request.content)
    digest = hashlib.sha256(request.content).digest()

    def work() -> tuple[int, dict[str, Any]]:
        store.lock_market(connection)
        now = market.clock()  # after the wait for the market: a quote that expired meanwhile is not used
        known = store.find_execution(connection, uetr=request.uetr)
        if known is not None:
            if (known.execution.submitter, known.execution.request_sha256) != (request.submitter, digest):
                raise ProblemError(
                    SettlementRefusal.UETR_ALREADY_USED, f"UETR {request.uetr} belongs to another execution"
                )
            return 200, render(connection, known)
        store.return_released(connection)
        barred = market.find_barred(now)
        found, quotes, route = _find_and_lock(connection, market, request.order, now=now, without=barred)
        legs = _terms(market.directory, request.order, route)
        wish = request.order.wish
        stored = store_settlement(
            connection,
            NewMultileg(
                request.uetr,
                legs,
                request.value_date,
                request.priority,
                rate=_rate(route),
                rate_provider=_only_provider(route),
            ),
            submitter=request.submitter,
            now=now,
            origin="route",
            is_started=is_started,
            checks=checks,
        )
        if not stored.is_new:
            raise ProblemError(SettlementRefusal.UETR_ALREADY_USED, f"UETR {request.uetr} is a settlement already")
        key = stored.row.id
        store.insert_execution(
            connection,
            store.NewExecution(
                key,
                request.uetr,
                request.submitter,
                digest,
                request.order.payer,
                request.order.payee,
                wish.sell,
                wish.buy,
                wish.given_minor is not None,
                route.given_minor,
                route.received_minor,
                wish.least_received_minor,
                wish.most_given_minor,
                request.on_expiry,
                now + market.lock_time,
            ),
            now=now,
        )
        _lock(connection, key, 1, found, quotes, route, now=now)
        made = store.find_execution(connection, settlement=key)
        if made is None:
            raise RuntimeError("the execution just stored is not there")
        return 201, render(connection, made)

    with database_refusals(), market.database.transaction(isolation="READ COMMITTED") as connection:
        return idempotency.run_once(
            connection,
            client=request.submitter,
            key=request.idempotency_key,
            fingerprint=print_,
            work=work,
            table=tables.idempotency,
            clock=market.clock,
        )


def _find_and_lock(
    connection: sa.Connection, market: Market, order: Order, *, now: datetime, without: Collection[str] = ()
) -> tuple[Found, list[StandingQuote], Route]:
    """The best route, with its quotes' rows locked and just as the search saw them."""
    for _ in range(SEARCHES_MAX):
        found, quotes = look(connection, market, order, now=now, without=without)
        if found.best is None:
            is_any = any(item.route is not None for item in found.considered)
            refusal = SettlementRefusal.FX_LIMIT_NOT_MET if is_any else SettlementRefusal.FX_NO_ROUTE
            raise ProblemError(refusal, why(found)[:500])
        used = {fill.edge.quote for fill in found.best.fills if fill.edge.quote is not None}
        seen = {quote.terms.quote: quote for quote in quotes}
        if all(seen[key] == quote for key, quote in store.lock_quotes(connection, used).items()):
            return found, quotes, found.best
    raise ProblemError(SettlementRefusal.FX_MARKET_MOVED, f"quotes changed during each of {SEARCHES_MAX} searches")


def _lock(
    connection: sa.Connection,
    settlement: UUID,
    attempt: int,
    found: Found,
    quotes: Sequence[StandingQuote],
    route: Route,
    *,
    now: datetime,
) -> None:
    store.insert_fills(connection, settlement, attempt, [hop.fills for hop in route.hops])
    report = search_view(found, quotes, at=now).model_dump(mode="json")
    store.insert_report(connection, settlement, attempt, report, now=now)


def _terms(directory: Directory, order: Order, route: Route) -> tuple[LegTerms, ...]:
    legs = []
    for leg in plan_legs(route, payer=order.payer, payee=order.payee):
        currency = leg.amount.currency
        debit, credit = directory.account(leg.payer, currency), directory.account(leg.payee, currency)
        if debit is None or credit is None:
            missing = leg.payer if debit is None else leg.payee
            raise ProblemError(SettlementRefusal.ACCOUNT_MISSING, f"{missing} in {currency}")
        ledger = directory.ledger_of_currency[currency]
        legs.append(LegTerms(ledger, leg.payer, leg.payee, debit, credit, leg.amount))
    return tuple(legs)


def _rate(route: Route) -> str:
    sell, buy = route.path[0], route.path[-1]
    return show_fraction(route.all_in * Fraction(10**sell.exponent, 10**buy.exponent))


def _only_provider(route: Route) -> ParticipantId | None:
    providers = {fill.edge.provider for fill in route.fills}
    return providers.pop() if len(providers) == 1 else None


# --- batches


class CreditorPrices:
    """Prices of a batch's instructions without a counter amount: the creditor's own live quotes, if they do it whole.

    Such an instruction is a trade of its two parties with each other, so nobody else's quote is used. What is used is
    locked: the batch was accepted at this price, for value now, and for a day at most. Without these bounds its debtor
    would have the creditor's price to take or leave for as long as it likes. For one transaction, under the market's
    lock as soon as there is a live quote at all.
    """

    def __init__(self, market: Market, connection: sa.Connection, *, now: datetime) -> None:
        self._market = market
        self._connection = connection
        self._now = now
        self._is_quoted: bool | None = None
        self._quotes: dict[ParticipantId, dict[UUID, StandingQuote]] = {}
        self._plans: dict[UUID, tuple[Found, Route, list[StandingQuote]]] = {}

    def price(self, instruction: Instruction) -> Quote | None:
        """What the debtor gets for the amount; None if the creditor's quotes do not do it."""
        creditor, sell = instruction.creditor, instruction.amount.currency
        if (instruction.value_date - self._now.date()).days > BATCH_DAYS_AHEAD_MAX:
            return None
        quotes = self._of(creditor)
        live = [edge for quote in quotes.values() for edge in edges_of(quote) if edge.source == sell]
        targets = {edge.target for edge in live}
        buy = instruction.counter_currency or (targets.pop() if len(targets) == 1 else None)
        if buy is None or not live:
            return None
        seen = list(quotes.values())
        found = search(Wish(sell, buy, instruction.amount.amount_minor, None, path=(sell, buy)), live)
        route = found.best
        if route is None:
            return None
        for fill in route.fills:
            if fill.edge.quote is not None:
                quotes[fill.edge.quote] = quotes[fill.edge.quote].after(fill)
        self._plans[instruction.uetr] = (found, route, seen)
        value = route.all_in * Fraction(10**sell.exponent, 10**buy.exponent)
        rate = Rate(sell, buy, value, creditor, self._now, self._now)
        (hop,) = route.hops
        return Quote(rate, instruction.amount, Money(route.received_minor, buy), hop.rounding_minor)

    def lock(self, settlements: Sequence[batches.NewSettlement], *, submitter: ParticipantId) -> None:
        """Lock what the stored settlements use. Their parties: the debtor sells and is paid, the creditor provides."""
        for item in settlements:
            plan = self._plans.get(item.uetr)
            if plan is None:
                continue
            found, route, seen = plan
            store.insert_execution(
                self._connection,
                store.NewExecution(
                    item.id,
                    item.uetr,
                    submitter,
                    hashlib.sha256(item.uetr.bytes).digest(),
                    item.debtor,
                    item.debtor,
                    route.path[0],
                    route.path[-1],
                    True,
                    route.given_minor,
                    route.received_minor,
                    None,
                    None,
                    "abort",
                    self._now + BATCH_LOCK_TIME,
                ),
                now=self._now,
            )
            _lock(self._connection, item.id, 1, found, seen, route, now=self._now)

    def _of(self, provider: ParticipantId) -> dict[UUID, StandingQuote]:
        if self._is_quoted is None:
            self._is_quoted = store.has_live_quotes(self._connection, now=self._now)
            if self._is_quoted:
                store.lock_market(self._connection)
                self._now = self._market.clock()  # after the wait: a quote that expired meanwhile is not used
                store.return_released(self._connection)
        if not self._is_quoted:
            return {}
        if provider not in self._quotes:
            quotes = store.lock_live_quotes(self._connection, provider, now=self._now)
            self._quotes[provider] = {quote.terms.quote: quote for quote in quotes}
        return self._quotes[provider]


# --- locks that end


def return_released(market: Market) -> int:
    """What aborted settlements had locked goes back to its quotes; how many fills."""
    with market.database.transaction(isolation="READ COMMITTED") as connection:
        if not store.has_released(connection):
            return 0
        store.lock_market(connection)
        return store.return_released(connection)


def end_expired_locks(market: Market, *, limit: int = 100) -> int:
    """Executions that the engine has not decided before their lock expired: quoted anew or given up, as they say.

    One that the engine has taken is given up: its legs are being signed and cannot change. So is one whose new legs
    the database refuses. How many were dealt with.
    """
    now, done = market.clock(), 0
    after: tuple[datetime, UUID] | None = None
    for _ in range(EXPIRED_PAGES_MAX):
        with market.database.transaction(isolation="READ COMMITTED") as connection:
            page = store.expired_locks(connection, now=now, limit=limit, after=after)
        ended = sum(_is_lock_ended(market, key) for _, key in page)
        done += ended
        if ended == len(page):
            break  # what is behind a full page is first in the next round; what failed would be so again and again
        after = page[-1]
    return done


def _is_lock_ended(market: Market, settlement: UUID) -> bool:
    try:
        try:
            _end_lock(market, settlement, may_requote=True)
        except sa.exc.IntegrityError:
            # A rule of the database's own refuses the new legs, and would refuse them again.
            log.exception("settlement %s cannot be quoted anew: it is given up", settlement)
            _end_lock(market, settlement, may_requote=False)
    except sa.exc.DBAPIError:
        # One that cannot be dealt with must not keep the others from it; the next round tries again.
        log.exception("the expired lock of settlement %s was not ended", settlement)
        return False
    return True


def _end_lock(market: Market, settlement: UUID, *, may_requote: bool) -> None:
    with market.database.transaction(isolation="READ COMMITTED") as connection:
        store.lock_market(connection)
        _end_locked(connection, market, settlement, now=market.clock(), may_requote=may_requote)


def _end_locked(
    connection: sa.Connection, market: Market, settlement: UUID, *, now: datetime, may_requote: bool
) -> None:
    state = store.lock_settlement(connection, settlement)
    row = store.find_execution(connection, settlement=settlement)
    # Asked again under the lock: another service may have dealt with it.
    if row is None or not store.expired_locks(connection, now=now, limit=1, settlement=settlement):
        return
    if (
        may_requote
        and state is SettlementState.RECEIVED
        and row.execution.on_expiry == "requote"
        and row.attempt <= REQUOTES_MAX
        and _requote(connection, market, row, now=now)
    ):
        return
    batches.request_abort(connection, settlement, by=market.bridge, now=now)


def _requote(connection: sa.Connection, market: Market, row: store.ExecutionRow, *, now: datetime) -> bool:
    """New fills and legs within the customer's limits, along the same currencies: what was checked of calendars and of
    the ledgers' liquidity at intake stays true. A provider that compliance does not pass is left out. False if there
    are none; what was screened stays recorded."""
    without: set[str] = set()
    for _ in range(SCREENINGS_MAX):
        stopped = _requoted(connection, market, row, without, now=now)
        if stopped is None:
            return False
        if not stopped:
            return True
        without |= stopped
    return False


def _requoted(
    connection: sa.Connection, market: Market, row: store.ExecutionRow, without: Collection[str], *, now: datetime
) -> frozenset[str] | None:
    """One attempt, without these providers: nobody = it is done; else who must not be in it; None = there is no way."""
    execution = row.execution
    old = store.fills(connection, execution.settlement)
    held = [fill for fill in old if fill.attempt == row.attempt]
    hops = sorted({(fill.hop, fill.source, fill.target) for fill in held})
    path = (execution.sell, *(Currency.of(target) for _, _, target in hops))
    screen = market.screen_anew or keep_to_screened
    with connection.begin_nested() as undo:
        store.lock_quotes(connection, {fill.quote for fill in held if fill.quote is not None})
        store.release_fills(connection, execution.settlement)
        wish = Wish(
            execution.sell,
            execution.buy,
            execution.given_minor if execution.is_sale else None,
            None if execution.is_sale else execution.received_minor,
            execution.least_received_minor,
            execution.most_given_minor,
        )
        order = Order(execution.payer, execution.payee, replace(wish, path=path))
        try:
            found, quotes, route = _find_and_lock(connection, market, order, now=now, without=without)
            legs = _terms(market.directory, order, route)
        except ProblemError:
            undo.rollback()
            return None
        subject = Subject(
            execution.settlement, execution.uetr, execution.payer, execution.payee, legs, now.date(), None
        )
        screened = screen(connection, subject, now=now)
        if screened.stopped:
            undo.rollback()
        else:
            attempt = row.attempt + 1
            store.replace_legs(
                connection,
                execution.settlement,
                legs,
                attempt=attempt,
                given_minor=route.given_minor,
                received_minor=route.received_minor,
                rate=_rate(route),
                rate_provider=_only_provider(route),
                lock_expires_at=now + market.lock_time,
            )
            _lock(connection, execution.settlement, attempt, found, quotes, route, now=now)
    screened.record(connection)  # not within what was undone
    return screened.stopped

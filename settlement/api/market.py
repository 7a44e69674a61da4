"""The FX market's operations: quotes, the order book, preview, execution, evidence."""

from __future__ import annotations

from datetime import datetime
from fractions import Fraction
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import IdempotencyKey, problems, strict_router
from kernel.ids import ParticipantId
from kernel.money import Currency
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from settlement.api.auth import SIGNED, Caller, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.contract import STATUS_BY_REFUSAL
from settlement.contract.market import (
    QUOTE_PREFIX,
    ExecutionRequest,
    ExecutionSummary,
    ExecutionView,
    FirmQuoteView,
    LevelView,
    LockedFillView,
    OnExpiry,
    OrderBookView,
    QuotePost,
    RemainderView,
    SearchView,
    Wish,
    major,
    show_quote_id,
)
from settlement.domain.market import Level, Side, StandingQuote, book
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import market as store
from settlement.usecases import market as usecases
from settlement.usecases.market import ExecutionOrder, Order
from settlement.usecases.market_evidence import search_view

router = strict_router(tags=["fx market"])


def _ref(prefix: str) -> Any:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


QuotePath = Annotated[str, _ref(QUOTE_PREFIX)]
SettlementPath = Annotated[str, _ref("stl")]
CurrencyPath = Annotated[str, Path(json_schema_extra={"pattern": "^[A-Z]{3}$", "examples": ["CNY"]})]


def _responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


# --- quotes


@router.post(
    "/v1/fx-quotes",
    operation_id="post_fx_quote",
    status_code=201,
    summary="Post a firm, signed quote, or amend one by a higher revision",
    responses=_responses(
        R.CURRENCY_NOT_SERVED,
        R.ACCOUNT_MISSING,
        R.FX_QUOTE_INVALID,
        R.FX_QUOTE_STALE,
        R.FX_QUOTE_NOT_FOUND,
        R.FX_QUOTE_SUPERSEDED,
        R.FX_QUOTE_WITHDRAWN,
        R.FX_QUOTE_SIZE_USED,
        R.FX_TOO_MANY_QUOTES,
    )
    | {200: {"model": FirmQuoteView, "description": "This revision was accepted before."}},
)
def post_quote(body: QuotePost, response: Response, service: Services, caller: Signed) -> FirmQuoteView:
    row, is_new = usecases.post_quote(service.market, body.token, provider=caller.participant)
    response.status_code = 201 if is_new else 200
    return _quote_view(service, row)


@router.get(
    "/v1/fx-quotes",
    operation_id="list_fx_quotes",
    summary="A provider's own quotes; the bridge's operator sees all",
    responses=_responses(),
)
def list_quotes(
    service: Services,
    caller: Signed,
    live: bool = False,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[FirmQuoteView]:
    filters = {"live": live}
    after = (
        None
        if cursor is None
        else parse_ref(QUOTE_PREFIX, str(decode(cursor, filters, shape=(str,))[0]), R.FX_QUOTE_NOT_FOUND)
    )
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.quotes_page(
            connection,
            provider=None if caller.is_operator else caller.participant,
            after=after,
            limit=limit + 1,
            live_at=service.clock() if live else None,
        )
    more = encode([show_quote_id(found[limit - 1].standing.terms.quote)], filters) if len(found) > limit else None
    return Page(items=[_quote_view(service, row) for row in found[:limit]], next_cursor=more)


@router.get(
    "/v1/fx-quotes/{quote}",
    operation_id="get_fx_quote",
    summary="A quote as it stands, with what is used of it",
    responses=_responses(R.FX_QUOTE_NOT_FOUND),
)
def get_quote(quote: QuotePath, service: Services, caller: Signed) -> FirmQuoteView:
    key = parse_ref(QUOTE_PREFIX, quote, R.FX_QUOTE_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_quote(connection, key)
    if row is None or not caller.may_see(row.standing.terms.provider):
        not_found(R.FX_QUOTE_NOT_FOUND)
    return _quote_view(service, row)


@router.delete(
    "/v1/fx-quotes/{quote}",
    operation_id="withdraw_fx_quote",
    summary="Withdraw a quote: nothing more is taken of it; what is locked stays locked",
    responses=_responses(R.FX_QUOTE_NOT_FOUND),
)
def withdraw_quote(quote: QuotePath, service: Services, caller: Signed) -> FirmQuoteView:
    key = parse_ref(QUOTE_PREFIX, quote, R.FX_QUOTE_NOT_FOUND)
    return _quote_view(service, usecases.withdraw_quote(service.market, key, provider=caller.participant))


@router.get(
    "/v1/order-books/{base}/{counter}",
    operation_id="get_order_book",
    summary="A pair's live quotes in price-time priority, with what is left of each",
    responses=_responses(R.CURRENCY_NOT_SERVED),
)
def get_order_book(base: CurrencyPath, counter: CurrencyPath, service: Services, caller: Signed) -> OrderBookView:
    try:
        pair = Currency.of(base), Currency.of(counter)
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, str(error)) from None
    now = service.clock()
    usecases.return_released(service.market)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        return _book_view(*pair, store.live_quotes(connection, pair, now=now), at=now)


# --- executions


@router.post(
    "/v1/executions/preview",
    operation_id="preview_execution",
    summary="What an execution would be now: the ways considered, each with its costs, and which is best and why",
    responses=_responses(R.PARTICIPANT_UNKNOWN, R.CURRENCY_NOT_SERVED, R.ACCOUNT_MISSING, R.FX_ORDER_INVALID),
)
def preview_execution(body: Wish, service: Services, caller: Signed) -> SearchView:
    caller.require(body.payer, body.payee)
    found, quotes, at = usecases.preview(service.market, _order(service, body))
    return search_view(found, quotes, at=at)


@router.post(
    "/v1/executions",
    operation_id="execute",
    status_code=201,
    response_model=ExecutionView,
    summary="Sell or buy at the best execution, its quotes locked: one settlement of all legs, or nothing",
    responses=_responses(
        R.PARTICIPANT_UNKNOWN,
        R.SUBMITTER_NOT_PARTY,
        R.CURRENCY_NOT_SERVED,
        R.ACCOUNT_MISSING,
        R.FX_ORDER_INVALID,
        R.FX_NO_ROUTE,
        R.FX_LIMIT_NOT_MET,
        R.FX_MARKET_MOVED,
        R.LEGS_INVALID,
        R.UETR_ALREADY_USED,
        R.BATCH_ID_REUSED,
        R.BATCH_INVALID,
        RequestRefusal.IDEMPOTENCY_KEY_REUSED,
        RequestRefusal.IDEMPOTENCY_IN_PROGRESS,
    )
    | {200: {"model": ExecutionView, "description": "The execution was accepted before."}},
)
async def execute(
    body: ExecutionRequest, request: Request, key: IdempotencyKey, service: Services, caller: Signed
) -> Response:
    return await run_in_threadpool(_execute, service, caller, body, await request.body(), key, request.url.path)


def _execute(service: Service, caller: Caller, body: ExecutionRequest, content: bytes, key: str, path: str) -> Response:
    order = ExecutionOrder(
        _order(service, body),
        body.uetr,
        body.value_date,
        body.priority,
        body.on_expiry.value,
        caller.participant,
        caller.is_operator,
        key,
        path,
        content,
    )
    outcome = usecases.execute(
        service.market,
        order,
        is_started=service.run_on_submit and body.start,
        checks=service.intake_checks,
        render=lambda connection, row: _execution_view(connection, row, viewer=None).model_dump(mode="json"),
    )
    service.worker.wake()
    return JSONResponse(outcome.body, status_code=outcome.status, headers=outcome.headers)


@router.get(
    "/v1/executions",
    operation_id="list_executions",
    summary="Executions that the caller pays, receives or provides for, in the order of time",
    responses=_responses(),
)
def list_executions(
    service: Services,
    caller: Signed,
    locked: bool = False,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ExecutionSummary]:
    filters = {"locked": locked}
    after = (
        None
        if cursor is None
        else parse_ref("stl", str(decode(cursor, filters, shape=(str,))[0]), R.FX_EXECUTION_NOT_FOUND)
    )
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.executions_page(
            connection,
            party=None if caller.is_operator else caller.participant,
            after=after,
            limit=limit + 1,
            is_locked=locked,
        )
    more = encode([f"stl_{found[limit - 1].execution.settlement}"], filters) if len(found) > limit else None
    return Page(items=[ExecutionSummary(**_summary(row)) for row in found[:limit]], next_cursor=more)


@router.get(
    "/v1/executions/{settlement}",
    operation_id="get_execution",
    summary="An execution's report: the live quotes, the ways considered, the choice, the costs, each lock's end",
    responses=_responses(R.FX_EXECUTION_NOT_FOUND),
)
def get_execution(settlement: SettlementPath, service: Services, caller: Signed) -> ExecutionView:
    key = parse_ref("stl", settlement, R.FX_EXECUTION_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = store.find_execution(connection, settlement=key)
        if row is None:
            not_found(R.FX_EXECUTION_NOT_FOUND)
        execution = row.execution
        if caller.may_see(execution.submitter, execution.payer, execution.payee):
            return _execution_view(connection, row, viewer=None)
        view = _execution_view(connection, row, viewer=caller.participant)
    if not view.fills:
        not_found(R.FX_EXECUTION_NOT_FOUND)
    return view


@router.get(
    "/v1/fx-remainders",
    operation_id="list_fx_remainders",
    summary="What rounding has left with each provider, by currency; an institution sees its own",
    responses=_responses(),
)
def list_remainders(service: Services, caller: Signed) -> list[RemainderView]:
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = store.remainders(connection, provider=None if caller.is_operator else caller.participant)
    return [
        RemainderView(provider=provider, currency=currency, remainder_minor=str(remainder))
        for provider, currency, remainder in found
    ]


# --- views


def _order(service: Service, body: Wish) -> Order:
    return usecases.make_order(
        service.market,
        payer=body.payer,
        payee=body.payee,
        sell=body.sell,
        buy=body.buy,
        given_minor=body.given_minor,
        received_minor=body.received_minor,
        least_received_minor=body.least_received_minor,
        most_given_minor=body.most_given_minor,
        limit_rate=body.limit_rate,
    )


def _quote_view(service: Service, row: store.QuoteRow) -> FirmQuoteView:
    quote, terms = row.standing, row.standing.terms
    return FirmQuoteView(
        quote=terms.quote,
        revision=terms.revision,
        provider=terms.provider,
        base=terms.base.code,
        counter=terms.counter.code,
        bid=None if terms.bid is None else str(terms.bid),
        bid_size_minor=terms.bid_size_minor,
        bid_used_minor=quote.bid_used_minor,
        offer=None if terms.offer is None else str(terms.offer),
        offer_size_minor=terms.offer_size_minor,
        offer_used_minor=quote.offer_used_minor,
        fee_ppm=terms.fee_ppm,
        issued_at=terms.issued_at,
        valid_until=terms.valid_until,
        posted_at=row.posted_at,
        withdrawn_at=quote.withdrawn_at,
        is_live=quote.is_live(service.clock()),
    )


def _book_view(base: Currency, counter: Currency, quotes: list[StandingQuote], *, at: datetime) -> OrderBookView:
    found = book(base, counter, quotes)

    def level(side: Side, entry: Level) -> LevelView:
        edge, terms = entry.edge, entry.quote.terms
        price, all_in = (edge.price, edge.rate) if side is Side.BID else (1 / edge.price, 1 / edge.rate)
        return LevelView(
            quote=terms.quote,
            revision=terms.revision,
            provider=terms.provider,
            price=major(price, source=base, target=counter),
            fee_ppm=edge.fee_ppm,
            all_in=major(all_in, source=base, target=counter),
            size_minor=entry.size_minor,
            valid_until=terms.valid_until,
        )

    return OrderBookView(
        base=base.code,
        counter=counter.code,
        at=at,
        bids=[level(Side.BID, entry) for entry in found.bids],
        offers=[level(Side.OFFER, entry) for entry in found.offers],
        mid=None if found.mid is None else major(found.mid, source=base, target=counter),
    )


def _execution_view(
    connection: sa.Connection, row: store.ExecutionRow, *, viewer: ParticipantId | None
) -> ExecutionView:
    """`viewer` is a provider, who sees its own fills alone; None sees all."""
    execution = row.execution
    searches = (
        []
        if viewer is not None
        else [SearchView.model_validate(report) for _, _, report in store.reports(connection, execution.settlement)]
    )
    return ExecutionView(
        **_summary(row),
        fills=[
            _fill_view(fill)
            for fill in store.fills(connection, execution.settlement)
            if viewer is None or fill.provider == viewer
        ],
        searches=searches,
    )


def _summary(row: store.ExecutionRow) -> dict[str, Any]:
    execution = row.execution
    return {
        "settlement": execution.settlement,
        "batch": row.batch,
        "uetr": execution.uetr,
        "payer": execution.payer,
        "payee": execution.payee,
        "sell": execution.sell.code,
        "buy": execution.buy.code,
        "given_minor": execution.given_minor,
        "received_minor": execution.received_minor,
        "least_received_minor": execution.least_received_minor,
        "most_given_minor": execution.most_given_minor,
        "on_expiry": OnExpiry(execution.on_expiry),
        "attempt": row.attempt,
        "settlement_state": row.settlement_state,
        "is_locked": row.is_locked,
        "lock_expires_at": execution.lock_expires_at,
        "created_at": row.created_at,
    }


def _fill_view(fill: store.FillRow) -> LockedFillView:
    source, target = Currency.of(fill.source), Currency.of(fill.target)
    return LockedFillView(
        quote=fill.quote,
        revision=fill.revision,
        provider=fill.provider,
        side=fill.side,
        price=major(Fraction(fill.price), source=source, target=target),
        given_minor=fill.given_minor,
        received_minor=fill.received_minor,
        fee_ppm=fill.fee_ppm,
        fee_minor=fill.fee_minor,
        rounding_minor=fill.rounding_minor,
        attempt=fill.attempt,
        hop=fill.hop,
        source=fill.source,
        target=fill.target,
        base_minor=fill.base_minor,
        state=fill.state,
    )

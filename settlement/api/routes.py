"""The settlement service's operations: each parses, calls one use case or query, and renders."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kernel import ids
from kernel.errors import ProblemError, RequestRefusal
from kernel.http import IdempotencyKey, problems, strict_router
from kernel.idempotency import Outcome
from kernel.money import Currency, Money, parse_minor
from kernel.pagination import PAGE_ITEMS_DEFAULT, Page, PageCursor, PageLimit, decode, encode
from ledger.contract import CurrencyCode, ParticipantRef
from settlement.api.auth import SIGNED, Caller, Operator, Signed
from settlement.api.service import Service, Services, not_found, parse_ref
from settlement.api.views import (
    batch_view,
    explanation_view,
    in_doubt_view,
    rate_view,
    settlement_view,
    statement_file_view,
)
from settlement.contract import (
    BATCH_INSTRUCTIONS_MAX,
    STATUS_BY_REFUSAL,
    BatchView,
    InDoubtView,
    QuoteView,
    RateView,
    SettlementView,
    StatementFileView,
    StatementRequest,
)
from settlement.domain.escrow import SettlementState
from settlement.domain.fx import find_rate, quote, show_fraction
from settlement.domain.refusals import SettlementRefusal as R
from settlement.store import batches, reports
from settlement.usecases.explain import explain_rows
from settlement.usecases.statements import write_batch_statement
from settlement.usecases.submit import BatchFormat, Submission, submit_batch

router = strict_router()


def _ref(prefix: str) -> Any:
    """An id in a path, as the document shows it. One that is none names nothing, so it is 404, not 422."""
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return Path(json_schema_extra={"pattern": ids.pattern(prefix), "examples": [example]})


BatchPath = Annotated[str, _ref("bat")]
SettlementPath = Annotated[str, _ref("stl")]
StatementPath = Annotated[str, _ref("stf")]
XML = "application/xml"
CSV = "text/csv"


def _responses(*refusals: R | RequestRefusal) -> dict[int | str, dict[str, Any]]:
    return problems(*SIGNED, *refusals, statuses=STATUS_BY_REFUSAL)


# --- batches and settlements


@router.post(
    "/v1/batches",
    tags=["batches"],
    operation_id="submit_batch",
    status_code=201,
    response_model=BatchView,
    summary="Submit PvP instructions: a pacs.009 or pacs.008 file of any version served, or CSV; whole or not at all",
    responses=_responses(
        R.BATCH_INVALID,
        R.UETR_ALREADY_USED,
        R.BATCH_ID_REUSED,
        RequestRefusal.IDEMPOTENCY_KEY_REUSED,
        RequestRefusal.IDEMPOTENCY_IN_PROGRESS,
    )
    | {200: {"model": BatchView, "description": "The batch was accepted before."}},
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {XML: {"schema": {"type": "string"}}, CSV: {"schema": {"type": "string"}}},
        }
    },
)
async def submit(request: Request, key: IdempotencyKey, service: Services, caller: Signed) -> Response:
    is_csv = request.headers.get("content-type", "").partition(";")[0].strip().lower() == CSV
    outcome = await run_in_threadpool(
        _submit, service, caller, await request.body(), "csv" if is_csv else "pacs.009", key, request.url.path
    )
    return _json(outcome)


def _submit(
    service: Service, caller: Caller, content: bytes, batch_format: BatchFormat, key: str, path: str
) -> Outcome:
    outcome = submit_batch(
        Submission(content, batch_format, caller.participant, caller.is_operator, key, path),
        database=service.database,
        directory=service.directory,
        clock=service.clock,
        bridge=service.streams.bridge,
        run_on_submit=service.run_on_submit,
        checks=service.intake_checks,
        market=service.market,
        render=lambda row: batch_view(row).model_dump(mode="json"),
    )
    service.worker.wake()
    return outcome


def _json(outcome: Outcome) -> Response:
    return JSONResponse(outcome.body, status_code=outcome.status, headers=outcome.headers)


@router.get(
    "/v1/batches/{batch}",
    tags=["batches"],
    operation_id="get_batch",
    summary="A batch, with its settlements counted by state",
    responses=_responses(R.BATCH_NOT_FOUND),
)
def get_batch(batch: BatchPath, service: Services, caller: Signed) -> BatchView:
    return batch_view(_batch(service, caller, batch))


@router.post(
    "/v1/batches/{batch}/run",
    tags=["batches"],
    operation_id="run_batch",
    summary="Let the engine settle a batch; harmless if it does already",
    responses=_responses(R.BATCH_NOT_FOUND),
)
def run_batch(batch: BatchPath, service: Services, caller: Signed) -> BatchView:
    row = _batch(service, caller, batch)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        batches.start(connection, row.id, now=service.clock())
        started = batches.find(connection, row.id) or row
    service.worker.wake()
    return batch_view(started)


@router.get(
    "/v1/batches/{batch}/settlements",
    tags=["batches"],
    operation_id="list_settlements",
    summary="A batch's settlements in the order of its file",
    responses=_responses(R.BATCH_NOT_FOUND),
)
def list_settlements(
    batch: BatchPath,
    service: Services,
    caller: Signed,
    state: Annotated[list[SettlementState] | None, Query()] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[SettlementView]:
    row = _batch(service, caller, batch)
    filters = {"batch": batch, "state": ",".join(sorted(state or ())) or None}
    after = 0 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    if not 0 <= after <= BATCH_INSTRUCTIONS_MAX:  # a forged one: a batch has no such position
        reason = "the cursor is damaged: pass next_cursor unchanged"
        errors = [{"pointer": "/query/cursor", "message": reason}]
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, reason, errors=errors)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        found = batches.settlements_page(connection, row.id, after=after, limit=limit + 1, states=state or ())
    more = encode([found[limit - 1].position], filters) if len(found) > limit else None
    return Page(items=[settlement_view(item) for item in found[:limit]], next_cursor=more)


@router.get(
    "/v1/settlements/{settlement}",
    tags=["settlements"],
    operation_id="get_settlement",
    summary="A settlement: legs, decision, finality time, reason; and, until it has ended, what will resolve it",
    responses=_responses(R.SETTLEMENT_NOT_FOUND),
)
def get_settlement(settlement: SettlementPath, service: Services, caller: Signed) -> SettlementView:
    row = _settlement(service, caller, settlement)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        _, explanation, closed = explain_rows(
            connection, [row], now=service.clock(), engine_silent_after=service.engine_silent_after
        )[0]
    shown = None if explanation is None else explanation_view(explanation, closed)
    return settlement_view(row, shown, viewer=None if caller.is_operator else caller.participant)


@router.post(
    "/v1/settlements/{settlement}/abort",
    tags=["settlements"],
    operation_id="abort_settlement",
    status_code=202,
    summary="Give an undecided settlement up; the engine writes ABORT unless a decision came first",
    responses=_responses(R.SETTLEMENT_NOT_FOUND, R.SETTLEMENT_DECIDED),
)
def abort_settlement(settlement: SettlementPath, service: Services, caller: Operator) -> SettlementView:
    row = _settlement(service, caller, settlement)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        is_noted = batches.request_abort(connection, row.id, by=caller.participant, now=service.clock())
    row = _settlement(service, caller, settlement)
    if not is_noted:
        raise ProblemError(R.SETTLEMENT_DECIDED, f"it was decided: {row.decision and row.decision.value}")
    service.worker.wake()
    return settlement_view(row)


@router.get(
    "/v1/in-doubt",
    tags=["settlements"],
    operation_id="list_in_doubt",
    summary="Settlements in which money may be reserved: why, what each waits for, what will resolve it; oldest first",
    responses=_responses(),
)
def list_in_doubt(
    service: Services,
    caller: Signed,
    received: Annotated[bool, Query(description="Also those that wait to begin, before closed gates too.")] = False,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[InDoubtView]:
    party = None if caller.is_operator else caller.participant
    filters = {"received": str(received)}
    after = (
        None
        if cursor is None
        else parse_ref("stl", str(decode(cursor, filters, shape=(str,))[0]), R.SETTLEMENT_NOT_FOUND)
    )
    now = service.clock()
    with service.database.transaction(isolation="REPEATABLE READ") as connection:
        found = batches.in_doubt(connection, after=after, limit=limit + 1, party=party, with_received=received)
        explained = explain_rows(connection, found[:limit], now=now, engine_silent_after=service.engine_silent_after)
    more = encode([f"stl_{found[limit - 1].id}"], filters) if len(found) > limit else None
    items = [
        in_doubt_view(row, explanation_view(explanation, closed), now=now)
        for row, explanation, closed in explained
        if explanation is not None
    ]
    return Page(items=items, next_cursor=more)


# --- prices


@router.get("/v1/rates", tags=["quotes"], operation_id="list_rates", summary="The fixed rates, with their validity")
def list_rates(service: Services) -> list[RateView]:
    return [rate_view(rate) for rate in service.directory.rates]


@router.get(
    "/v1/quotes",
    tags=["quotes"],
    operation_id="get_quote",
    summary="What an amount buys now; nothing is locked until a batch is accepted",
    responses=problems(R.QUOTE_NOT_FOUND, R.COUNTER_AMOUNT_OUT_OF_RANGE, statuses=STATUS_BY_REFUSAL),
)
def get_quote(
    service: Services,
    base: CurrencyCode,
    counter: CurrencyCode,
    amount_minor: Annotated[str, Query(pattern="^[1-9][0-9]{0,17}$", examples=["123450"])],
    receiver: ParticipantRef | None = None,
) -> QuoteView:
    try:
        amount, against = Money(parse_minor(amount_minor), Currency.of(base)), Currency.of(counter)
    except ValueError as error:
        raise ProblemError(R.QUOTE_NOT_FOUND, str(error)) from None
    rate = find_rate(service.directory.rates, base=amount.currency, counter=against, at=service.clock())
    if isinstance(rate, R):
        raise ProblemError(rate)
    found = quote(amount, rate, receiver=receiver)
    if isinstance(found, R):
        raise ProblemError(found)
    return QuoteView(
        amount_minor=amount.amount_minor,
        base=base,
        counter_amount_minor=found.counter.amount_minor,
        counter=counter,
        rate=show_fraction(rate.value),
        provider=rate.provider,
        remainder_minor=show_fraction(found.remainder_minor),
    )


# --- statements


@router.post(
    "/v1/statements",
    tags=["statements"],
    operation_id="write_statement",
    status_code=201,
    summary="Write a camt.053.001.08 of what a batch moved on a participant's account",
    responses=_responses(R.CURRENCY_NOT_SERVED, R.BATCH_NOT_FOUND, R.ACCOUNT_NOT_IN_BATCH),
)
def write_statement(body: StatementRequest, service: Services, caller: Signed) -> StatementFileView:
    caller.require(body.participant)
    row = write_batch_statement(
        body.batch,
        participant=body.participant,
        currency=_currency(body.currency),
        database=service.database,
        files_directory=service.files_directory,
        clock=service.clock,
    )
    return statement_file_view(row)


@router.get(
    "/v1/statements/{statement}",
    tags=["statements"],
    operation_id="get_statement",
    summary="A statement file",
    response_class=Response,
    responses=_responses(R.STATEMENT_NOT_FOUND)
    | {200: {"content": {XML: {"schema": {"type": "string"}}}, "description": "camt.053.001.08"}},
)
def get_statement(statement: StatementPath, service: Services, caller: Signed) -> Response:
    key = parse_ref("stf", statement, R.STATEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = reports.find_statement_file(connection, key)
    if row is None or not caller.may_see(row.participant):
        not_found(R.STATEMENT_NOT_FOUND)
    path = service.files_directory / row.file_name
    if not path.is_file():
        raise ProblemError(R.STATEMENT_NOT_FOUND, "the file is gone: write the statement again")
    return Response(path.read_bytes(), media_type=XML)


# --- lookups shared by routes


def _batch(service: Service, caller: Caller, text: str) -> batches.BatchRow:
    """A batch is its submitter's; to others it does not exist, so that ids tell nothing."""
    key = parse_ref("bat", text, R.BATCH_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find(connection, key)
    if row is None or not caller.may_see(row.submitter):
        not_found(R.BATCH_NOT_FOUND)
    return row


def _settlement(service: Service, caller: Caller, text: str) -> batches.SettlementRow:
    key = parse_ref("stl", text, R.SETTLEMENT_NOT_FOUND)
    with service.database.transaction(isolation="READ COMMITTED") as connection:
        row = batches.find_settlement(connection, key)
    if row is None or not caller.may_see(*row.parties):
        not_found(R.SETTLEMENT_NOT_FOUND)
    return row


def _currency(code: str) -> Currency:
    try:
        return Currency.of(code)
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, str(error)) from None

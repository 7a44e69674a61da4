"""POST /v1/settlements: one settlement of n legs."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from kernel.errors import ProblemError, RequestRefusal
from kernel.http import IdempotencyKey, problems, strict_router
from kernel.money import Currency, Money
from settlement.api.auth import SIGNED, Caller, Signed
from settlement.api.service import Service, Services
from settlement.api.views import settlement_view
from settlement.contract import STATUS_BY_REFUSAL, SettlementView
from settlement.contract.multileg import LegRequest, SettlementRequest
from settlement.domain.refusals import SettlementRefusal as R
from settlement.usecases.multileg import MultilegSubmission, NewLeg, submit_settlement

router = strict_router(tags=["settlements"])


@router.post(
    "/v1/settlements",
    operation_id="submit_settlement",
    status_code=201,
    response_model=SettlementView,
    summary="Submit one settlement of 2 to 32 legs on any ledgers: all of them post, or none does",
    responses=problems(
        *SIGNED,
        R.PARTICIPANT_UNKNOWN,
        R.SUBMITTER_NOT_PARTY,
        R.CURRENCY_NOT_SERVED,
        R.ACCOUNT_MISSING,
        R.LEGS_INVALID,
        R.UETR_ALREADY_USED,
        R.BATCH_ID_REUSED,
        R.BATCH_INVALID,
        RequestRefusal.IDEMPOTENCY_KEY_REUSED,
        RequestRefusal.IDEMPOTENCY_IN_PROGRESS,
        statuses=STATUS_BY_REFUSAL,
    )
    | {200: {"model": SettlementView, "description": "The settlement was accepted before."}},
)
async def create(
    body: SettlementRequest, request: Request, key: IdempotencyKey, service: Services, caller: Signed
) -> Response:
    return await run_in_threadpool(_submit, service, caller, body, await request.body(), key, request.url.path)


def _submit(service: Service, caller: Caller, body: SettlementRequest, content: bytes, key: str, path: str) -> Response:
    submission = MultilegSubmission(
        body.uetr,
        tuple(_leg(number, leg) for number, leg in enumerate(body.legs)),
        body.value_date,
        body.priority,
        caller.participant,
        caller.is_operator,
        key,
        path,
        content,
    )
    outcome = submit_settlement(
        submission,
        database=service.database,
        directory=service.directory,
        clock=service.clock,
        run_on_submit=service.run_on_submit,
        checks=service.intake_checks,
        render=_render,
    )
    service.worker.wake()
    return JSONResponse(outcome.body, status_code=outcome.status, headers=outcome.headers)


def _render(row: Any) -> dict[str, Any]:
    return settlement_view(row).model_dump(mode="json")


def _leg(number: int, leg: LegRequest) -> NewLeg:
    try:
        money = Money(leg.amount_minor, Currency.of(leg.currency))
    except ValueError as error:
        raise ProblemError(R.CURRENCY_NOT_SERVED, f"leg {number}: {error}") from None
    return NewLeg(leg.ledger, leg.payer, leg.payee, money)

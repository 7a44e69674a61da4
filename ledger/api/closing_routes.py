"""Closings and balance proofs: anybody reads the statements, a participant fetches its accounts' proofs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path

from kernel import ids
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit
from ledger.api.auth import required_caller
from ledger.api.service import Service, service_of
from ledger.balance_proofs import BalanceProof
from ledger.contract import STATUS_BY_REFUSAL, ClosingView
from ledger.domain.vocabulary import LedgerRefusal
from ledger.usecases.keyring import Caller

router = strict_router()
Signed = Annotated[Caller, Depends(required_caller)]
Running = Annotated[Service, Depends(service_of)]
ClosingNumber = Annotated[int, Path(ge=1, lt=2**53)]
_SIGNATURE = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
)


def _refusals(*refusals: Refusal) -> dict[int | str, dict[str, Any]]:
    return problems(*refusals, statuses=STATUS_BY_REFUSAL)


@router.post(
    "/v1/closings",
    operation_id="order_closing",
    summary="Close at the newest block",
    tags=["closings"],
    status_code=201,
    responses=_refusals(*_SIGNATURE, RequestRefusal.NOT_PERMITTED, LedgerRefusal.OUTCOME_UNKNOWN),
)
def order_closing(caller: Signed, service: Running) -> ClosingView:
    """A closing beside those of each day's end, for operators. The last one again if nothing was booked since."""
    return service.closings.order(caller=caller)


@router.get(
    "/v1/closings",
    operation_id="list_closings",
    summary="Signed closing statements, newest first",
    tags=["closings"],
    responses=_refusals(RequestRefusal.VALIDATION_FAILED),
)
def list_closings(
    service: Running, cursor: PageCursor = None, limit: PageLimit = PAGE_ITEMS_DEFAULT
) -> Page[ClosingView]:
    """Keep them: two different statements for one closing convict the ledger."""
    return service.closings.newest(cursor=cursor, limit=limit)


@router.get(
    "/v1/closings/{closing}",
    operation_id="get_closing",
    summary="A signed closing statement",
    tags=["closings"],
    responses=_refusals(LedgerRefusal.CLOSING_NOT_FOUND),
)
def get_closing(closing: ClosingNumber, service: Running) -> ClosingView:
    return service.closings.view(closing)


@router.get(
    "/v1/closings/{closing}/balance-proofs/{account}",
    operation_id="get_balance_proof",
    summary="Proof that an account's balance is in a closing",
    tags=["closings"],
    responses=_refusals(*_SIGNATURE, LedgerRefusal.CLOSING_NOT_FOUND, LedgerRefusal.ACCOUNT_NOT_FOUND),
)
def get_balance_proof(
    closing: ClosingNumber, account: Annotated[str, Path(max_length=32)], caller: Signed, service: Running
) -> BalanceProof:
    """For the account's participant, who hands it to the holder, and for operators. Verifies offline."""
    try:
        number = ids.parse_account(account)
    except ValueError as error:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, str(error)) from None
    return service.closings.balance_proof(closing, number, caller=caller)

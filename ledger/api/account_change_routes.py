"""Changes of accounts: class, holder's keys, suspension, closure."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Path

from kernel import ids
from kernel.errors import ProblemError, Refusal, RequestRefusal
from kernel.http import problems, strict_router
from ledger.api.auth import optional_caller, required_caller
from ledger.api.service import Service, service_of
from ledger.contract import STATUS_BY_REFUSAL, AccountChangeRequest, AccountChangeView
from ledger.domain.vocabulary import LedgerRefusal, TransferRefusal
from ledger.usecases.keyring import Caller

router = strict_router()
Signed = Annotated[Caller, Depends(required_caller)]
MaybeSigned = Annotated[Caller | None, Depends(optional_caller)]
Running = Annotated[Service, Depends(service_of)]
_SIGNATURE = (
    RequestRefusal.SIGNATURE_MISSING,
    RequestRefusal.SIGNATURE_INVALID,
    RequestRefusal.SIGNATURE_STALE,
    RequestRefusal.SIGNATURE_REPLAYED,
)


def _refusals(*refusals: Refusal) -> dict[int | str, dict[str, Any]]:
    return problems(*refusals, statuses=STATUS_BY_REFUSAL)


@router.post(
    "/v1/account-changes",
    operation_id="change_account",
    tags=["accounts"],
    summary="Change an account's class, holder keys or standing",
    status_code=201,
    responses=_refusals(
        *_SIGNATURE,
        RequestRefusal.NOT_PERMITTED,
        LedgerRefusal.INSTRUCTION_INVALID,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        LedgerRefusal.WRONG_LEDGER,
        LedgerRefusal.ID_FROM_FUTURE,
        LedgerRefusal.UNKNOWN_SIGNER,
        LedgerRefusal.ACCOUNT_NOT_FOUND,
        LedgerRefusal.CLASS_UNKNOWN,
        TransferRefusal.KIND_NOT_ALLOWED,
        LedgerRefusal.HOLDER_KEY_MISMATCH,
        LedgerRefusal.KEY_IN_USE,
        LedgerRefusal.CHANGE_EXISTS,
        LedgerRefusal.CONSENT_MISSING,
        LedgerRefusal.CONSENT_INVALID,
        LedgerRefusal.HOLDER_KEY_UNKNOWN,
        LedgerRefusal.HOLDER_KEYS_EXCEEDED,
        LedgerRefusal.HOLDER_KEY_LAST,
        LedgerRefusal.KEY_NOT_ANNOUNCED,
        LedgerRefusal.KEY_RECOVERY_PENDING,
        LedgerRefusal.ACCOUNT_NOT_EMPTY,
        TransferRefusal.ACCOUNT_CLOSED,
        TransferRefusal.DEBIT_ACCOUNT_FROZEN,
        LedgerRefusal.OUTCOME_UNKNOWN,
    ),
)
def change_account(body: AccountChangeRequest, caller: MaybeSigned, service: Running) -> AccountChangeView:
    """`change` is the change as its account's participant signed it (typ `jiaozi-account-change+jws`), in a request
    signed by the same participant; `consent` is a holder's signature over the same bytes (typ
    `jiaozi-account-consent+jws`), where a change of keys needs it. `object-to-key` is the holder's alone: consent,
    without `change`, carried by anybody. The same request again is answered with what it did the first time."""
    return service.account_changes.submit(body, caller=caller)


@router.get(
    "/v1/account-changes/{change}",
    operation_id="get_account_change",
    tags=["accounts"],
    summary="An account change",
    responses=_refusals(*_SIGNATURE, LedgerRefusal.CHANGE_NOT_FOUND),
)
def get_account_change(
    change: Annotated[str, Path(max_length=64)], caller: Signed, service: Running
) -> AccountChangeView:
    """For the account's participant and for operators."""
    try:
        change_id = ids.parse("chg", change)
    except ValueError as error:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, str(error)) from None
    return service.account_changes.view(change_id, caller=caller)

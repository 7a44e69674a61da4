"""Erasure, unmask, and the privacy log. Orders and approvals are officers' signed statements; the log is anybody's."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Path, Query, Request, Response

from kernel.crypto.keys import PublicKey
from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from wallet.api.auth import SIGNED, Compliance, Examiner
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import CustomerRef, WalletRef, WalletRefusal
from wallet.contract.privacy import (
    ApprovalView,
    DisclosureView,
    ErasureRequest,
    ErasureView,
    LogEntriesView,
    LogKeyView,
    LogProofView,
    LogSize,
    UnmaskApprovalRequest,
    UnmaskEvidence,
    UnmaskOrder,
    UnmaskOrderRequest,
    UnmaskRef,
    UnmaskView,
    sha256_of,
)
from wallet.domain.privacy import Case, Erasure, Officer, state_of
from wallet.settings import RegisteredClient
from wallet.usecases import listings, privacy
from wallet.usecases.context import Context
from wallet.usecases.privacy import PrivacyLog

router = strict_router(tags=["privacy"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
CustomerPath = Annotated[CustomerRef, Path()]
UnmaskPath = Annotated[UnmaskRef, Path(alias="request")]


def _privacy_log(request: Request) -> PrivacyLog:
    found: PrivacyLog = request.app.state.privacy_log
    return found


Log = Annotated[PrivacyLog, Depends(_privacy_log)]


# --- erasure ---------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/customers/{customer}/erasure",
    operation_id="erase_customer",
    status_code=201,
    summary="Destroy the key under which the customer's personal data rests; there is no way back",
    responses=problems(
        *SIGNED,
        _R.CUSTOMER_NOT_FOUND,
        _R.ERASURE_EXISTS,
        _R.CUSTOMER_ERASED,
        _R.CUSTOMER_HAS_WALLETS,
        _R.UNMASK_OPEN,
        statuses=STATUSES,
    ),
)
def erase_customer(customer: CustomerPath, body: ErasureRequest, context: Services, client: Compliance) -> ErasureView:
    row = privacy.erase_customer(context, body.erasure, customer, reason=body.reason, erased_by=client.name)
    return _erasure_view(row)


@router.get(
    "/v1/customers/{customer}/erasure",
    operation_id="get_erasure",
    summary="When and why the customer's personal data was erased",
    responses=problems(*SIGNED, _R.ERASURE_NOT_FOUND, statuses=STATUSES),
)
def get_erasure(customer: CustomerPath, context: Services, client: Compliance) -> ErasureView:
    return _erasure_view(privacy.find_erasure(context, customer))


def _erasure_view(row: Erasure) -> ErasureView:
    return ErasureView(erasure=row.id, customer=row.customer_id, reason=row.reason, erased_at=row.erased_at)


# --- unmask ----------------------------------------------------------------------------------------------------------


@router.post(
    "/v1/unmask-requests",
    operation_id="order_unmask",
    status_code=201,
    summary="An officer's signed order: case, legal basis, whose data, which of it, until when",
    responses=problems(
        *SIGNED,
        _R.UNMASK_STATEMENT_INVALID,
        _R.UNMASK_EXISTS,
        _R.UNMASK_EXPIRED,
        _R.WALLET_NOT_FOUND,
        _R.NOT_OUR_WALLET,
        _R.CUSTOMER_ERASED,
        statuses=STATUSES,
    ),
)
def order_unmask(body: UnmaskOrderRequest, context: Services, client: Compliance) -> UnmaskView:
    return _shown(context, privacy.order(context, body.order, officer=_officer(client)))


@router.get(
    "/v1/unmask-requests",
    operation_id="list_unmask_requests",
    summary="Unmask orders in order of id, ended ones included; never what was shown",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_unmask_requests(
    context: Services, client: Compliance, limit: PageLimit = PAGE_ITEMS_DEFAULT, cursor: PageCursor = None
) -> Page[UnmaskView]:
    filters = {"list": "unmask-requests"}
    after = None if cursor is None else listings.position_of_id(decode(cursor, filters, shape=(str,)))
    rows = privacy.list_cases(context, after=after, limit=limit)
    return Page[UnmaskView](
        items=[_shown(context, row) for row in rows],
        next_cursor=encode([str(rows[-1].id)], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/unmask-requests/{request}",
    operation_id="get_unmask_request",
    summary="An unmask order, its approvals, and what became of it; never what was shown",
    responses=problems(*SIGNED, _R.UNMASK_NOT_FOUND, statuses=STATUSES),
)
def get_unmask_request(request_id: UnmaskPath, context: Services, client: Compliance) -> UnmaskView:
    case, asked = privacy.find_case(context, request_id)
    return _view(context, case, asked)


@router.post(
    "/v1/unmask-requests/{request}/approvals",
    operation_id="approve_unmask",
    status_code=201,
    summary="Another officer's signed approval of this very order",
    responses=problems(
        *SIGNED,
        _R.UNMASK_NOT_FOUND,
        _R.UNMASK_STATEMENT_INVALID,
        _R.UNMASK_OWN_ORDER,
        _R.UNMASK_APPROVED_BEFORE,
        _R.UNMASK_ANSWERED,
        _R.UNMASK_EXPIRED,
        statuses=STATUSES,
    ),
)
def approve_unmask(
    request_id: UnmaskPath, body: UnmaskApprovalRequest, context: Services, client: Compliance
) -> UnmaskView:
    return _shown(context, privacy.approve(context, request_id, body.approval, officer=_officer(client)))


@router.post(
    "/v1/unmask-requests/{request}/disclosure",
    operation_id="disclose_unmasked",
    summary="What the order names, once, to the officer who gave it; the privacy log has its entry before",
    responses=problems(
        *SIGNED,
        _R.UNMASK_NOT_FOUND,
        _R.UNMASK_NOT_YOURS,
        _R.UNMASK_ANSWERED,
        _R.UNMASK_EXPIRED,
        _R.UNMASK_NOT_APPROVED,
        _R.CUSTOMER_ERASED,
        _UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def disclose_unmasked(request_id: UnmaskPath, context: Services, log: Log, client: Compliance) -> DisclosureView:
    done = privacy.disclose(context, log, request_id, officer=_officer(client))
    return DisclosureView(
        request=done.case.id, values=done.values, entry_index=done.entry_index, checkpoint=done.checkpoint
    )


@router.get(
    "/v1/unmask-evidence",
    operation_id="list_unmask_evidence",
    summary="For the data subject's auditor: each unmask's entry with its salt and the proof that the log has it",
    responses=problems(*SIGNED, _UNAVAILABLE, statuses=STATUSES),
)
def list_unmask_evidence(
    context: Services,
    log: Log,
    client: Examiner,
    wallet: Annotated[WalletRef | None, Query(description="Of this wallet's holder alone.")] = None,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[UnmaskEvidence]:
    filters = {"list": "unmask-evidence", "wallet": wallet}
    after = -1 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    found = privacy.evidence(context, log, wallet_id=wallet, after=after, limit=limit)
    return Page[UnmaskEvidence](
        items=found, next_cursor=encode([found[-1].index], filters) if len(found) == limit else None
    )


def _officer(client: RegisteredClient) -> Officer:
    return Officer(PublicKey.from_jwk(client.key).thumbprint, client.name, dict(client.key))


def _shown(context: Context, case: Case) -> UnmaskView:
    return _view(context, case, privacy.order_of(context, case))


def _view(context: Context, case: Case, asked: UnmaskOrder) -> UnmaskView:
    return UnmaskView(
        request=case.id,
        state=state_of(case, now=context.clock()),
        order=case.token,
        order_sha256=sha256_of(case.token),
        case_number=asked.case_number,
        legal_basis=asked.legal_basis,
        subject=asked.subject,
        fields=asked.fields,
        requested_by=case.officer.name,
        approvals=[ApprovalView(officer=item.officer.name, approved_at=item.created_at) for item in case.approvals],
        valid_until=case.valid_until,
        created_at=case.created_at,
        entry_index=case.entry_index,
    )


# --- the log ---------------------------------------------------------------------------------------------------------


@router.get(
    "/v1/privacy-log/key",
    operation_id="get_privacy_log_key",
    summary="The privacy log's verifier key",
    responses=problems(statuses=STATUSES),
)
def get_privacy_log_key(log: Log) -> LogKeyView:
    return LogKeyView(key=str(log.verifier_key))


@router.get(
    "/v1/privacy-log/checkpoint",
    operation_id="get_privacy_log_checkpoint",
    summary="The privacy log's newest checkpoint: a signed note (C2SP tlog-checkpoint)",
    response_class=Response,
    responses={
        200: {"description": "The note.", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(_UNAVAILABLE, statuses=STATUSES),
    },
)
def get_privacy_log_checkpoint(context: Services, log: Log) -> Response:
    return Response(privacy.checkpoint(context, log), media_type="text/plain")


@router.get(
    "/v1/privacy-log/entries",
    operation_id="list_privacy_log_entries",
    summary="Commitments, one an unmask, in the log's order",
    responses=problems(statuses=STATUSES),
)
def list_privacy_log_entries(
    context: Services, start: Annotated[LogSize, Query()] = 0, limit: PageLimit = PAGE_ITEMS_DEFAULT
) -> LogEntriesView:
    found, size = privacy.entries(context, start=start, limit=limit)
    return LogEntriesView(start=start, commitments=[item.hex() for item in found], size=size)


@router.get(
    "/v1/privacy-log/proof",
    operation_id="get_privacy_log_proof",
    summary="That the log has entry `index`, or that it begins with what it was at `old_size`",
    responses=problems(_UNAVAILABLE, statuses=STATUSES),
)
def get_privacy_log_proof(
    context: Services,
    log: Log,
    index: Annotated[LogSize | None, Query()] = None,
    old_size: Annotated[LogSize | None, Query()] = None,
    size: Annotated[LogSize | None, Query(description="The tree's size; the newest unless given.")] = None,
) -> LogProofView:
    proof = privacy.prove(context, log, index=index, old_size=old_size, size=size)
    return LogProofView(size=proof.size, root=proof.root.hex(), hashes=[item.hex() for item in proof.hashes])

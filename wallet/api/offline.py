"""Offline purses. Fundings and syncs need no request signature: what they carry is signed by holders and devices."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from ledger.contract import LedgerRefusal, TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRefusal
from wallet.contract.offline import (
    EscrowView,
    FundingRef,
    ProofView,
    PurseFundingRequest,
    PurseFundingView,
    PurseRef,
    PurseRequest,
    PurseState,
    PurseSyncRequest,
    PurseSyncResponse,
    PurseSyncResult,
    PurseView,
    RevocationsView,
)
from wallet.domain.offline.records import FundingRow, PurseRow
from wallet.usecases import offline
from wallet.usecases.context import Context
from wallet.usecases.offline import Synced

router = strict_router(tags=["offline"])
_R = WalletRefusal
PursePath = Annotated[PurseRef, Path()]


@router.post(
    "/v1/purses",
    operation_id="create_purse",
    status_code=201,
    summary="Issue an offline purse: a signed certificate for a device's key",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.DEVICE_KEY_REFUSED,
        _R.DEVICE_KEY_IN_USE,
        _R.PURSE_EXISTS,
        _R.PURSES_TOO_MANY,
        LedgerRefusal.ID_FROM_FUTURE,
        TransferRefusal.KIND_NOT_ALLOWED,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_purse(body: PurseRequest, context: Services, client: Channel) -> PurseView:
    row = offline.issue_purse(context, body.purse, wallet_id=body.wallet, device_key=body.device_key)
    return _purse_view(context, row)


@router.get(
    "/v1/purses/{purse}",
    operation_id="get_purse",
    summary="A purse as the service knows it",
    responses=problems(*SIGNED, _R.PURSE_NOT_FOUND, RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def get_purse(purse: PursePath, context: Services, client: Reader) -> PurseView:
    return _purse_view(context, offline.find_purse(context, purse))


@router.post(
    "/v1/purses/{purse}/loss",
    operation_id="report_purse_lost",
    summary="Report the device lost: it is revoked now; the rest comes back after expiry and grace",
    responses=problems(*SIGNED, _R.PURSE_NOT_FOUND, RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def report_purse_lost(purse: PursePath, context: Services, client: Channel) -> PurseView:
    return _purse_view(context, offline.report_lost(context, purse))


@router.get(
    "/v1/purses/{purse}/double-spend-proof",
    operation_id="get_double_spend_proof",
    summary="The two payments, signed by this purse's device, that exclude each other",
    responses=problems(*SIGNED, _R.PURSE_NOT_FOUND, _R.PURSE_HAS_NO_PROOF, statuses=STATUSES),
)
def get_double_spend_proof(purse: PursePath, context: Services, client: Reader) -> ProofView:
    return ProofView(purse=purse, proof=offline.proof_against(context, purse))


@router.post(
    "/v1/purse-fundings",
    operation_id="create_purse_funding",
    status_code=201,
    summary="Load a purse: carry the holder's signed purse-fund into the escrow, answer the device's message",
    responses=problems(
        LedgerRefusal.INSTRUCTION_INVALID,
        LedgerRefusal.INSTRUCTION_EXPIRED,
        LedgerRefusal.WRONG_LEDGER,
        LedgerRefusal.WRONG_CURRENCY,
        LedgerRefusal.ID_FROM_FUTURE,
        LedgerRefusal.OUTCOME_UNKNOWN,
        _R.NOT_OUR_WALLET,
        _R.NOT_OUR_ESCROW,
        _R.PURSE_NOT_FOUND,
        _R.PURSE_NOT_ACTIVE,
        _R.PURSE_LIMIT_EXCEEDED,
        _R.WALLET_CLOSING,
        TransferRefusal.AMOUNT_INVALID,
        TransferRefusal.ID_ALREADY_USED,
        TransferRefusal.DEBIT_ACCOUNT_UNKNOWN,
        TransferRefusal.CREDIT_ACCOUNT_UNKNOWN,
        TransferRefusal.KIND_NOT_ALLOWED,
        TransferRefusal.NOT_AUTHORISED,
        TransferRefusal.ACCOUNT_CLOSED,
        TransferRefusal.DEBIT_ACCOUNT_SUSPENDED,
        TransferRefusal.DEBIT_ACCOUNT_FROZEN,
        TransferRefusal.CREDIT_ACCOUNT_FROZEN,
        TransferRefusal.SINGLE_LIMIT_EXCEEDED,
        TransferRefusal.DAY_LIMIT_EXCEEDED,
        TransferRefusal.YEAR_LIMIT_EXCEEDED,
        TransferRefusal.INSUFFICIENT_FUNDS,
        TransferRefusal.AMOUNT_OVERFLOW,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_purse_funding(body: PurseFundingRequest, context: Services) -> PurseFundingView:
    return _funding_view(offline.fund(context, body.instruction))


@router.get(
    "/v1/purse-fundings/{funding}",
    operation_id="get_purse_funding",
    summary="A funding, with its message for the device if the ledger has booked it",
    responses=problems(*SIGNED, _R.FUNDING_NOT_FOUND, statuses=STATUSES),
)
def get_purse_funding(funding: Annotated[FundingRef, Path()], context: Services, client: Reader) -> PurseFundingView:
    return _funding_view(offline.find_funding(context, funding))


@router.post(
    "/v1/purse-syncs",
    operation_id="sync_purses",
    summary="Hand in offline payments, by whoever holds them, in any order, any number of times; a result each",
    responses=problems(RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def sync_purses(body: PurseSyncRequest, context: Services) -> PurseSyncResponse:
    return PurseSyncResponse(results=[_result(item) for item in offline.sync(context, body.messages)])


@router.get(
    "/v1/purse-revocations",
    operation_id="get_purse_revocations",
    summary="The signed list of purses whose payments no device takes; for anybody to carry",
    responses=problems(RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def get_purse_revocations(context: Services) -> RevocationsView:
    return RevocationsView(revocations=offline.revocations(context))


@router.get(
    "/v1/purse-escrow",
    operation_id="get_purse_escrow",
    summary="The escrow on the ledger against what the books owe",
    responses=problems(*SIGNED, RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def get_purse_escrow(context: Services, client: Reader) -> EscrowView:
    report = offline.escrow_report(context)
    return EscrowView(
        account=report.account,
        currency=context.ledgers.home.currency,
        escrow_minor=report.escrow_minor,
        claims_minor=report.claims_minor,
        unspent_minor=report.unspent_minor,
        payouts_minor=report.payouts_minor,
        recoveries_minor=report.recoveries_minor,
        losses_minor=report.losses_minor,
    )


def _purse_view(context: Context, row: PurseRow) -> PurseView:
    state = PurseState(row.revoked_for) if row.revoked_for is not None else PurseState.ACTIVE
    if state is PurseState.ACTIVE and row.not_after <= context.clock():
        state = PurseState.EXPIRED
    if row.closed_at is not None and state is not PurseState.DOUBLE_SPEND:
        state = PurseState.SETTLED
    return PurseView(
        purse=row.id,
        wallet=row.wallet_id,
        account=row.account,
        escrow=offline.escrow_account(context),
        currency=context.ledgers.home.currency,
        state=state,
        certificate=row.certificate,
        balance_max_minor=row.balance_max_minor,
        known_balance_minor=offline.left_minor(context, row.id),
        loss_minor=row.loss_minor,
        recovered_minor=row.recovered_minor,
        not_after=row.not_after,
        settled_from=row.closes_at,
        created_at=row.created_at,
    )


def _funding_view(row: FundingRow) -> PurseFundingView:
    return PurseFundingView(
        funding=row.id,
        purse=row.purse_id,
        amount_minor=row.amount_minor,
        state=row.state,
        message=row.message,
        seq=row.seq,
        booked_at=row.booked_at,
        refusal=row.refusal,
        detail=row.detail,
    )


def _result(item: Synced) -> PurseSyncResult:
    if item.refused is not None:
        refusal = item.refused.refusal
        return PurseSyncResult(
            payment=item.payment,
            refusal=refusal.value,
            transient=refusal.transient,
            detail=item.refused.detail or refusal.title,
        )
    booked, payout = item.booked, item.payout
    return PurseSyncResult(
        payment=item.payment,
        credited_minor=booked.credited_minor if booked else None,
        short_minor=booked.short_minor if booked else None,
        is_paid_out=booked.is_paid_out if booked else None,
        transfer=payout.id if payout else None,
        booked_at=payout.booked_at if payout else None,
        payout_refusal=payout.refusal if payout else None,
    )

"""Refunds, receipts, balance proofs: what happens after a payment."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query, Response

from kernel.errors import RequestRefusal
from kernel.http import problems, strict_router
from ledger.contract import LedgerRefusal, TransferRef
from wallet.api.auth import SIGNED, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.money import INSTRUCTED
from wallet.api.views import payment_view
from wallet.contract import PaymentRef, PaymentView, WalletRef, WalletRefusal
from wallet.contract.requests import RefundOrder, RefundState, RefundsView, RefundView
from wallet.usecases import receipts, refunds

router = strict_router(tags=["money"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
_ORIGIN = (_R.INSTITUTION_UNKNOWN, _R.REQUEST_DOCUMENT_INVALID)
"""A purchase with another institution's voucher: that one says whose money it was."""
WITNESSES_MAX = 16
_DOCUMENT: dict[int | str, dict[str, Any]] = {
    200: {"description": "The ledger's document.", "content": {"application/json": {"schema": {"type": "object"}}}}
}


@router.post(
    "/v1/refunds",
    operation_id="create_refund",
    status_code=201,
    summary="Give back a payment received, whole or in part, never more than it in sum",
    responses=problems(
        *INSTRUCTED,
        _R.ORIGINAL_NOT_FOUND,
        _R.REFUND_MISMATCH,
        _R.REFUND_EXISTS,
        _R.REFUND_EXCEEDS_ORIGINAL,
        *_ORIGIN,
        statuses=STATUSES,
    ),
)
def create_refund(body: RefundOrder, context: Services) -> PaymentView:
    return payment_view(refunds.refund(context, body.instruction))


@router.get(
    "/v1/payments/{payment}/refunds",
    operation_id="list_refunds",
    summary="What has been given back of a payment, for either side of it",
    responses=problems(*SIGNED, _R.PAYMENT_NOT_FOUND, *_ORIGIN, _UNAVAILABLE, statuses=STATUSES),
)
def list_refunds(payment: Annotated[PaymentRef, Path()], context: Services, client: Reader) -> RefundsView:
    found = refunds.find_refunds(context, payment)
    original = found.original
    return RefundsView(
        payment=original.transfer_id,
        debit=found.debit,
        credit=original.account,
        amount_minor=original.amount_minor,
        currency=original.currency,
        booked_at=original.booked_at,
        refunded_minor=original.refunded_minor,
        refundable_minor=original.refundable_minor,
        refund_to=original.payer_account,
        refunds=[
            RefundView(
                refund=row.id,
                amount_minor=row.amount_minor,
                state=RefundState(row.state),
                seq=row.seq,
                booked_at=row.booked_at,
            )
            for row in found.refunds
        ],
        is_complete=found.is_complete,
    )


@router.get(
    "/v1/wallets/{wallet}/receipts/{transfer}",
    operation_id="get_wallet_receipt",
    summary="The ledger's receipt of a line of the wallet's history; verifies offline",
    response_class=Response,
    responses={
        **_DOCUMENT,
        **problems(
            *SIGNED,
            _R.WALLET_NOT_FOUND,
            _R.WALLET_NOT_OPEN,
            _R.TRANSFER_NOT_OF_WALLET,
            LedgerRefusal.NOT_SEALED,
            _UNAVAILABLE,
            statuses=STATUSES,
        ),
    },
)
def get_wallet_receipt(
    wallet: Annotated[WalletRef, Path()],
    transfer: Annotated[TransferRef, Path()],
    context: Services,
    client: Reader,
    quorum: Annotated[
        int, Query(ge=0, le=WITNESSES_MAX, description="So many witnesses must have cosigned its checkpoint.")
    ] = 0,
) -> Response:
    document = receipts.receipt(context, wallet, transfer, quorum=quorum)
    return Response(document, media_type="application/json")


@router.get(
    "/v1/wallets/{wallet}/balance-proof",
    operation_id="get_wallet_balance_proof",
    summary="The ledger's proof of the wallet's balance in a closing; verifies offline",
    response_class=Response,
    responses={
        **_DOCUMENT,
        **problems(
            *SIGNED,
            _R.WALLET_NOT_FOUND,
            _R.WALLET_NOT_OPEN,
            LedgerRefusal.CLOSING_NOT_FOUND,
            _UNAVAILABLE,
            statuses=STATUSES,
        ),
    },
)
def get_wallet_balance_proof(
    wallet: Annotated[WalletRef, Path()],
    context: Services,
    client: Reader,
    closing: Annotated[int | None, Query(ge=1, lt=2**53, description="Its number; the newest by default.")] = None,
) -> Response:
    return Response(receipts.balance_proof(context, wallet, closing=closing), media_type="application/json")

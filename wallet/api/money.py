"""Payments, refunds and exchanges. What a holder has signed needs no second signature on the request."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Path, Request
from starlette.types import Scope

from kernel.errors import ProblemError, RequestRefusal
from kernel.http import problems, strict_router
from ledger.contract import TOKEN_LENGTH_MAX, TOKEN_LENGTH_MIN, LedgerRefusal, TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.api.views import exchange_view, payment_result, payment_view, write_payment
from wallet.contract import (
    ExchangeInRequest,
    ExchangeRef,
    ExchangeView,
    PaymentBatchRequest,
    PaymentBatchResponse,
    PaymentRef,
    PaymentRequest,
    PaymentView,
    WalletRefusal,
)
from wallet.usecases import exchange, listings, pay
from wallet.usecases.carrier import Carrier

router = strict_router(tags=["money"])
_R = WalletRefusal

INSTRUCTED = (
    LedgerRefusal.INSTRUCTION_INVALID,
    LedgerRefusal.INSTRUCTION_EXPIRED,
    LedgerRefusal.WRONG_LEDGER,
    LedgerRefusal.WRONG_CURRENCY,
    LedgerRefusal.ID_FROM_FUTURE,
    LedgerRefusal.OUTCOME_UNKNOWN,
    WalletRefusal.NOT_OUR_WALLET,
    TransferRefusal.AMOUNT_INVALID,
    TransferRefusal.ACCOUNTS_MUST_DIFFER,
    TransferRefusal.ID_ALREADY_USED,
    TransferRefusal.DEBIT_ACCOUNT_UNKNOWN,
    TransferRefusal.CREDIT_ACCOUNT_UNKNOWN,
    TransferRefusal.KIND_NOT_ALLOWED,
    TransferRefusal.NOT_AUTHORISED,
    TransferRefusal.DEBIT_ACCOUNT_FROZEN,
    TransferRefusal.CREDIT_ACCOUNT_FROZEN,
    TransferRefusal.SINGLE_LIMIT_EXCEEDED,
    TransferRefusal.DAY_LIMIT_EXCEEDED,
    TransferRefusal.YEAR_LIMIT_EXCEEDED,
    TransferRefusal.INSUFFICIENT_FUNDS,
    TransferRefusal.BALANCE_LIMIT_EXCEEDED,
    TransferRefusal.AMOUNT_OVERFLOW,
    WalletRefusal.CHILD_CLOSED,
    WalletRefusal.CHILD_LIMIT_EXCEEDED,
    WalletRefusal.PUSH_REVOKED,
    WalletRefusal.PAYEE_NOT_ALLOWED,
    WalletRefusal.CARD_SUSPENDED,
    WalletRefusal.CARD_CLONED,
    WalletRefusal.CARD_EXPIRED,
    WalletRefusal.COUNTER_NOT_HIGHER,
    WalletRefusal.PIN_NEEDED,
    WalletRefusal.SIGNATORY_UNKNOWN,
    WalletRefusal.APPROVAL_NEEDED,
    WalletRefusal.APPROVED_ANOTHER,
    WalletRefusal.CHECKER_IS_MAKER,
    RequestRefusal.SERVICE_UNAVAILABLE,
)
"""What can become of a holder's instruction: this service's answers and the ledger's."""


@router.post(
    "/v1/payments",
    operation_id="create_payment",
    status_code=201,
    summary="Carry a payment or refund that the holder has signed",
    responses=problems(*INSTRUCTED, statuses=STATUSES),
)
async def create_payment(body: PaymentRequest, request: Request) -> PaymentView:
    carrier: Carrier = request.app.state.carrier
    return payment_view(pay.final(await carrier.carry(body.instruction)))


async def create_payment_directly(scope: Scope, body: bytes) -> tuple[int, bytes] | None:
    """The same operation for the common body, which one expression reads: no other member, no escape."""
    match = _PAYMENT_REQUEST.fullmatch(body)
    if match is None:
        return None
    carrier: Carrier = scope["app"].state.carrier
    return 201, write_payment(pay.final(await carrier.carry(match[1].decode("ascii"))))


_PAYMENT_REQUEST = re.compile(
    rb'[ \t\r\n]*\{[ \t\r\n]*"instruction"[ \t\r\n]*:[ \t\r\n]*"([A-Za-z0-9_.-]{%d,%d})"[ \t\r\n]*\}[ \t\r\n]*'
    % (TOKEN_LENGTH_MIN, TOKEN_LENGTH_MAX)
)


@router.post(
    "/v1/payment-batches",
    operation_id="create_payment_batch",
    summary="Carry many payments and refunds; a result an item, in order",
    responses=problems(RequestRefusal.SERVICE_UNAVAILABLE, statuses=STATUSES),
)
def create_payment_batch(body: PaymentBatchRequest, context: Services) -> PaymentBatchResponse:
    return PaymentBatchResponse(results=[payment_result(item) for item in pay.pay(context, body.instructions)])


@router.get(
    "/v1/payments/{payment}",
    operation_id="get_payment",
    summary="A payment, refund or exchange out",
    responses=problems(*SIGNED, _R.PAYMENT_NOT_FOUND, statuses=STATUSES),
)
def get_payment(payment: Annotated[PaymentRef, Path()], context: Services, client: Reader) -> PaymentView:
    return payment_view(listings.find_payment(context, payment))


@router.post(
    "/v1/exchanges-out",
    operation_id="create_exchange_out",
    status_code=201,
    summary="Currency for deposit: carry the holder's instruction and credit the bank deposit",
    responses=problems(*INSTRUCTED, _R.NOT_OUR_VAULT, statuses=STATUSES),
)
def create_exchange_out(body: PaymentRequest, context: Services) -> PaymentView:
    return payment_view(exchange.exchange_out(context, body.instruction))


@router.post(
    "/v1/exchanges-in",
    operation_id="create_exchange_in",
    status_code=201,
    summary="Deposit for currency; an unfinished state says that recovery goes on with it",
    responses=problems(
        *SIGNED,
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.EXCHANGE_EXISTS,
        _R.DEPOSIT_INSUFFICIENT,
        _R.CHILD_IS_FUNDED_BY_PAYMENTS,
        LedgerRefusal.WRONG_CURRENCY,
        TransferRefusal.AMOUNT_INVALID,
        TransferRefusal.DEBIT_ACCOUNT_FROZEN,
        TransferRefusal.CREDIT_ACCOUNT_FROZEN,
        TransferRefusal.INSUFFICIENT_FUNDS,
        TransferRefusal.BALANCE_LIMIT_EXCEEDED,
        RequestRefusal.SERVICE_UNAVAILABLE,
        statuses=STATUSES,
    ),
)
def create_exchange_in(body: ExchangeInRequest, context: Services, client: Channel) -> ExchangeView:
    row = exchange.exchange_in(
        context, body.exchange, wallet_id=body.wallet, amount_minor=body.amount_minor, currency=body.currency
    )
    refusal = exchange.refusal_of_exchange(row)
    if refusal is not None:
        raise ProblemError(refusal, row.detail or "", exchange_state=row.state)
    return exchange_view(row)


@router.get(
    "/v1/exchanges-in/{exchange}",
    operation_id="get_exchange_in",
    summary="How far an exchange of deposit for currency has come",
    responses=problems(*SIGNED, _R.EXCHANGE_NOT_FOUND, statuses=STATUSES),
)
def get_exchange_in(
    exchange_id: Annotated[ExchangeRef, Path(alias="exchange")], context: Services, client: Reader
) -> ExchangeView:
    return exchange_view(exchange.find_exchange(context, exchange_id))

"""Sandbox only: the bank deposits behind the core-banking double. Mounted when `settings.sandbox` is true."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Request

from kernel.errors import ProblemError
from kernel.http import problems, strict_router
from ledger.contract import TransferRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import CustomerRef, DepositRequest, DepositView, WalletRefusal
from wallet.contract.families import SentCode, SentCodesView
from wallet.domain.core_banking import PostingConflict
from wallet.store.sandbox_core_banking import SandboxCoreBanking
from wallet.usecases.aliases import SandboxCodeSender

router = strict_router(tags=["sandbox"])


@router.post(
    "/v1/simulate/deposits",
    operation_id="simulate_deposit",
    status_code=201,
    summary="Pay into a customer's bank deposit, from nowhere",
    responses=problems(*SIGNED, TransferRefusal.AMOUNT_INVALID, WalletRefusal.POSTING_EXISTS, statuses=STATUSES),
)
def simulate_deposit(request: Request, body: DepositRequest, context: Services, client: Channel) -> DepositView:
    bank: SandboxCoreBanking = request.app.state.sandbox_bank
    if body.amount_minor == 0:
        raise ProblemError(TransferRefusal.AMOUNT_INVALID)
    try:
        bank.pay_in(body.posting, body.customer, body.amount_minor)
    except PostingConflict:
        raise ProblemError(WalletRefusal.POSTING_EXISTS) from None
    return DepositView(customer=body.customer, balance_minor=bank.balance(body.customer))


@router.get(
    "/v1/simulate/deposits/{customer}",
    operation_id="get_simulated_deposit",
    summary="A customer's bank deposit",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def get_simulated_deposit(
    request: Request, customer: Annotated[CustomerRef, Path()], context: Services, client: Reader
) -> DepositView:
    bank: SandboxCoreBanking = request.app.state.sandbox_bank
    return DepositView(customer=customer, balance_minor=bank.balance(customer))


@router.get(
    "/v1/simulate/codes",
    operation_id="list_simulated_codes",
    summary="The newest one-time codes: what telephones and mailboxes would show",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_simulated_codes(request: Request, context: Services, client: Channel) -> SentCodesView:
    sender: SandboxCodeSender = request.app.state.codes
    return SentCodesView(
        codes=[SentCode(kind=sent.kind, to=sent.to, code=sent.code, sent_at=sent.sent_at) for sent in sender.sent()]
    )

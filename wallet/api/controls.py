"""Dual control of corporate wallets. What two persons, or a checker, have signed needs no second signature."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.http import problems, strict_router
from wallet.api.auth import SIGNED, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.controls import (
    ApprovalRequest,
    ApprovalsView,
    ControlRequest,
    ControlView,
    Signatory,
    WithdrawalRequest,
)
from wallet.usecases import controls
from wallet.usecases.controls import KnownControl, Signed

router = strict_router(tags=["dual control"])
_R = WalletRefusal
WalletPath = Annotated[WalletRef, Path()]


@router.post(
    "/v1/wallets/{wallet}/payment-control",
    operation_id="set_payment_control",
    status_code=201,
    summary="What one signature alone may pay for a corporate wallet, and who signs; signed by two persons",
    responses=problems(
        _R.WALLET_NOT_FOUND,
        _R.WALLET_NOT_OPEN,
        _R.OWNER_NOT_CORPORATE,
        _R.CONTROL_INVALID,
        _R.CONTROL_CHANGED,
        statuses=STATUSES,
    ),
)
def set_payment_control(wallet: WalletPath, body: ControlRequest, context: Services) -> ControlView:
    return _view(controls.set_control(context, wallet, (body.signatures[0], body.signatures[1])))


@router.get(
    "/v1/wallets/{wallet}/payment-control",
    operation_id="get_payment_control",
    summary="A corporate wallet's rules of dual control, and what was carried today on one signature",
    responses=problems(*SIGNED, _R.CONTROL_NOT_FOUND, statuses=STATUSES),
)
def get_payment_control(wallet: WalletPath, context: Services, client: Reader) -> ControlView:
    return _view(controls.find_control(context, wallet))


@router.post(
    "/v1/wallets/{wallet}/payment-approvals",
    operation_id="approve_payments",
    status_code=201,
    summary="A checker approves instructions by their digests; the maker hands them in afterwards",
    responses=problems(_R.CONTROL_NOT_FOUND, _R.APPROVAL_INVALID, _R.APPROVAL_USED, statuses=STATUSES),
)
def approve_payments(wallet: WalletPath, body: ApprovalRequest, context: Services) -> ApprovalsView:
    return _approvals(controls.approve(context, wallet, body.approval))


@router.post(
    "/v1/wallets/{wallet}/approval-withdrawals",
    operation_id="withdraw_approvals",
    status_code=201,
    summary="A checker takes back approvals that were not used yet",
    responses=problems(_R.CONTROL_NOT_FOUND, _R.APPROVAL_INVALID, _R.APPROVAL_USED, statuses=STATUSES),
)
def withdraw_approvals(wallet: WalletPath, body: WithdrawalRequest, context: Services) -> ApprovalsView:
    return _approvals(controls.withdraw(context, wallet, body.withdrawal))


def _approvals(signed: Signed) -> ApprovalsView:
    return ApprovalsView(wallet=signed.wallet_id, checker=signed.person, payments=signed.payments)


def _view(known: KnownControl) -> ControlView:
    control = known.control
    return ControlView(
        wallet=control.wallet_id,
        version=control.version,
        is_in_force=control.is_in_force,
        alone_max_minor=control.alone_max_minor,
        alone_day_max_minor=control.alone_day_max_minor,
        alone_today_minor=control.alone_minor,
        signatories=[Signatory.model_validate({"person": item.person, "key": item.key}) for item in known.signatories],
        changed_at=control.changed_at,
    )

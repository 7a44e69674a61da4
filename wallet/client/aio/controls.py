"""Asynchronous twin of `wallet.client.controls`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel.client import AsyncServiceClient
from kernel.crypto.keys import PrivateKey
from wallet.client.controls import _path
from wallet.contract.controls import (
    ApprovalRequest,
    ApprovalsView,
    ApprovalWithdrawal,
    ControlRequest,
    ControlView,
    PaymentApproval,
    WithdrawalRequest,
    approved_payment,
    sign_approval,
    sign_withdrawal,
)


class AsyncControlMethods:
    """Mixed into `WalletClient`."""

    _http: AsyncServiceClient
    _post: Callable[[str, BaseModel], Awaitable[Any]]

    async def set_payment_control(self, wallet: UUID, signatures: Sequence[str]) -> ControlView:
        """`signatures`: of two persons on one document (`payment_control`, `wallet.contract.controls.sign_control`)."""
        body = ControlRequest(signatures=list(signatures))
        return ControlView.model_validate(await self._post(_path(wallet, "payment-control"), body))

    async def payment_control(self, wallet: UUID) -> ControlView:
        return ControlView.model_validate(await self._http.get(_path(wallet, "payment-control")))

    async def approve_payments(
        self, wallet: UUID, instructions: Mapping[UUID, str], *, key: PrivateKey, valid_until: datetime
    ) -> ApprovalsView:
        """The checker signs for these instructions (by their payments' ids) after having read them."""
        approval = PaymentApproval(
            wallet=wallet,
            payments=[approved_payment(payment, token) for payment, token in instructions.items()],
            valid_until=valid_until,
        )
        body = ApprovalRequest(approval=sign_approval(approval, key))
        return ApprovalsView.model_validate(await self._post(_path(wallet, "payment-approvals"), body))

    async def withdraw_approvals(self, wallet: UUID, payments: Sequence[UUID], *, key: PrivateKey) -> ApprovalsView:
        withdrawal = ApprovalWithdrawal(wallet=wallet, payments=list(payments))
        body = WithdrawalRequest(withdrawal=sign_withdrawal(withdrawal, key))
        return ApprovalsView.model_validate(await self._post(_path(wallet, "approval-withdrawals"), body))

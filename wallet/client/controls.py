"""The client's part for dual control of corporate wallets: documents are signed here, keys stay with their persons."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import ServiceClient
from kernel.crypto.keys import PrivateKey, PublicKey
from wallet.contract.controls import (
    ApprovalRequest,
    ApprovalsView,
    ApprovalWithdrawal,
    ControlRequest,
    ControlView,
    PaymentApproval,
    PaymentControl,
    WithdrawalRequest,
    approved_payment,
    sign_approval,
    sign_withdrawal,
)


class ControlMethods:
    """Mixed into `WalletClient`."""

    _http: ServiceClient
    _post: Callable[[str, BaseModel], Any]

    def set_payment_control(self, wallet: UUID, signatures: Sequence[str]) -> ControlView:
        """`signatures`: of two persons on one document (`payment_control`, `wallet.contract.controls.sign_control`)."""
        body = ControlRequest(signatures=list(signatures))
        return ControlView.model_validate(self._post(_path(wallet, "payment-control"), body))

    def payment_control(self, wallet: UUID) -> ControlView:
        return ControlView.model_validate(self._http.get(_path(wallet, "payment-control")))

    def approve_payments(
        self, wallet: UUID, instructions: Mapping[UUID, str], *, key: PrivateKey, valid_until: datetime
    ) -> ApprovalsView:
        """The checker signs for these instructions (by their payments' ids) after having read them."""
        approval = PaymentApproval(
            wallet=wallet,
            payments=[approved_payment(payment, token) for payment, token in instructions.items()],
            valid_until=valid_until,
        )
        body = ApprovalRequest(approval=sign_approval(approval, key))
        return ApprovalsView.model_validate(self._post(_path(wallet, "payment-approvals"), body))

    def withdraw_approvals(self, wallet: UUID, payments: Sequence[UUID], *, key: PrivateKey) -> ApprovalsView:
        withdrawal = ApprovalWithdrawal(wallet=wallet, payments=list(payments))
        body = WithdrawalRequest(withdrawal=sign_withdrawal(withdrawal, key))
        return ApprovalsView.model_validate(self._post(_path(wallet, "approval-withdrawals"), body))


def payment_control(
    wallet: UUID,
    signatories: Sequence[tuple[str, PublicKey]],
    *,
    alone_max_minor: int,
    alone_day_max_minor: int,
    version: int,
    valid_until: datetime,
    is_in_force: bool = True,
) -> PaymentControl:
    """The document that two persons sign. `signatories`: (person, key)."""
    return PaymentControl.model_validate(
        {
            "wallet": wallet,
            "version": version,
            "is_in_force": is_in_force,
            "alone_max_minor": alone_max_minor,
            "alone_day_max_minor": alone_day_max_minor,
            "signatories": [{"person": person, "key": key.to_jwk()} for person, key in signatories],
            "valid_until": valid_until,
        }
    )


def _path(wallet: UUID, what: str) -> str:
    return f"/v1/wallets/{ids.show('wlt', wallet)}/{what}"

"""Models of dual control: who signs for a corporate wallet, what one signature alone may pay, signed approvals.

Every document is a compact JWS over canonical JSON (RFC 8785) with every member, signed by a signatory's key.
"""

from __future__ import annotations

import hashlib
from typing import Annotated
from uuid import UUID

from pydantic import Field

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from ledger.contract import Amount, Hash32, Jwk, Model, Moment, Token, TransferRef
from wallet.contract import WalletRef

CONTROL_TYP = "jiaozi-payment-control+jws"
APPROVAL_TYP = "jiaozi-payment-approval+jws"
WITHDRAWAL_TYP = "jiaozi-approval-withdrawal+jws"
SIGNATORIES_MAX = 16
APPROVED_TOGETHER_MAX = 1_000
"""Payments of one approval: a payroll of 10,000 lines takes ten."""

Person = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$", examples=["treasurer"])]
"""The company's own mark for a person; no name."""


class Signatory(Model):
    """A person's key. One that is a device of the wallet can sign payments; any can approve and change the rules."""

    person: Person
    key: Jwk


class PaymentControl(Model):
    """The payload (typ `jiaozi-payment-control+jws`): the rules of a corporate wallet from now on.

    Two persons sign it: of those it names if the wallet had no rules, of those it had if they change.
    """

    wallet: WalletRef
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    """One more than that of the rules it replaces; 1 at first."""
    is_in_force: bool
    """False: one signature is enough again."""
    alone_max_minor: Amount
    """What one signature alone may pay at once."""
    alone_day_max_minor: Amount
    """And in a scheme day, in all: a payment in pieces, a payroll, a standing payment are no way around."""
    signatories: Annotated[list[Signatory], Field(min_length=2, max_length=SIGNATORIES_MAX)]
    valid_until: Moment
    """Of the signatures, not of the rules."""


class ControlRequest(Model):
    signatures: Annotated[list[Token], Field(min_length=2, max_length=2)]
    """The same `PaymentControl`, signed by two persons."""


class ControlView(Model):
    wallet: WalletRef
    version: int
    is_in_force: bool
    alone_max_minor: Amount
    alone_day_max_minor: Amount
    alone_today_minor: Amount
    """Carried today on one signature."""
    signatories: list[Signatory]
    changed_at: Moment


class ApprovedPayment(Model):
    payment: TransferRef
    digest: Hash32
    """`instruction_digest` of what the maker signs."""


class PaymentApproval(Model):
    """The payload (typ `jiaozi-payment-approval+jws`) that a checker signs. It holds for these instructions alone."""

    wallet: WalletRef
    payments: Annotated[list[ApprovedPayment], Field(min_length=1, max_length=APPROVED_TOGETHER_MAX)]
    valid_until: Moment
    """The payments must be handed in before."""


class ApprovalRequest(Model):
    approval: Token


class ApprovalWithdrawal(Model):
    """The payload (typ `jiaozi-approval-withdrawal+jws`) by which the checker takes back what was not used yet."""

    wallet: WalletRef
    payments: Annotated[list[TransferRef], Field(min_length=1, max_length=APPROVED_TOGETHER_MAX)]


class WithdrawalRequest(Model):
    withdrawal: Token


class ApprovalsView(Model):
    wallet: WalletRef
    checker: Person
    payments: list[TransferRef]


def instruction_digest(token: str) -> bytes:
    """SHA-256 of what an instruction says, whoever signs it. Raises: jws.InvalidJws."""
    return hashlib.sha256(jws.peek_payload(token)).digest()


def sign_control(control: PaymentControl, key: PrivateKey) -> str:
    return _sign(control, key, CONTROL_TYP)


def sign_approval(approval: PaymentApproval, key: PrivateKey) -> str:
    return _sign(approval, key, APPROVAL_TYP)


def sign_withdrawal(withdrawal: ApprovalWithdrawal, key: PrivateKey) -> str:
    return _sign(withdrawal, key, WITHDRAWAL_TYP)


def approved_payment(payment: UUID, token: str) -> ApprovedPayment:
    return ApprovedPayment.model_validate({"payment": payment, "digest": instruction_digest(token)})


def _sign(document: Model, key: PrivateKey, typ: str) -> str:
    return jws.sign(jws.canonical_json(document.model_dump(mode="json", exclude_none=True)), key, typ=typ)

"""Payment requests, QR codes, refunds and receipts: models of the API, and the documents institutions sign.

Requests wear `req_`. A request's id is also the `reference` of every payment that answers it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import Field, model_validator

from ledger.contract import (
    AccountRef,
    Amount,
    CurrencyCode,
    Model,
    Moment,
    ParticipantRef,
    Token,
    TransferRef,
)
from wallet.contract import LedgerName, WalletRef, id_type
from wallet.domain.shown_text import SHOWN_TEXT

REQUEST_TYP = "jiaozi-payment-request+jws"
"""A payment request, signed by the payee's institution."""
DECLINE_TYP = "jiaozi-request-decline+jws"
"""A payer's refusal of a request addressed to him, signed by his institution."""
ACCEPTANCE_TYP = "jiaozi-code-acceptance+jws"
"""What the payer's institution has booked for a payer's code, signed by it."""
REQUEST_LIFE_DAYS_MAX = 366
"""A request stays open no longer: each is looked for on the ledger while it is."""
QR_SCALE_MAX = 32
"""Pixels a module: the largest code is then under 3,000 pixels wide."""

RequestRef = Annotated[UUID, *id_type("req")]
PayeeName = Annotated[str, Field(min_length=1, max_length=70, pattern=SHOWN_TEXT, examples=["Teahouse at the bridge"])]
"""As the payee wants to be shown; ISO 20022 Max70Text."""
Description = Annotated[str, Field(max_length=140, pattern=SHOWN_TEXT, examples=["Two pots of longjing"])]
PayeeReference = Annotated[str, Field(max_length=35, pattern=SHOWN_TEXT, examples=["ORDER-2041"])]
"""The payee's own reference; ISO 20022 Max35Text."""


class RequestDocument(Model):
    """What the payee's institution signs (JWS, typ `jiaozi-payment-request+jws`, canonical JSON).

    The reader finds the institution's key in its ledger's list of participants. If `amount_minor` is given or
    `payments` is `one`, the id of payment n (0, 1, 2, ...) is the UUIDv7 that `wallet.domain.requests.payment_id`
    derives from `request`: so it books once, whoever sends it (I7).
    """

    format: Literal["jiaozi-payment-request/v1"] = "jiaozi-payment-request/v1"
    request: RequestRef
    ledger: LedgerName
    institution: ParticipantRef
    account: AccountRef
    """Whom the payment credits."""
    payee_name: PayeeName
    currency: CurrencyCode
    amount_minor: Amount | None = None
    amount_min_minor: Amount | None = None
    amount_max_minor: Amount | None = None
    payments: Literal["one", "many"] = "one"
    payer: AccountRef | None = None
    payer_institution: ParticipantRef | None = None
    description: Description = ""
    payee_reference: PayeeReference = ""
    created_at: Moment
    expires_at: Moment


class PaymentRequestOrder(Model):
    """A payee asks for money. `amount_minor` is the total; without it the payer chooses, between the bounds if given.

    `payments` many: in parts until the total is paid, or, without a total, any number until the request ends. `payer`
    names who alone is asked; then `payer_institution` tells which institution his wallet is at, if not this one.
    """

    request: RequestRef
    wallet: WalletRef
    payee_name: PayeeName
    currency: CurrencyCode
    amount_minor: Amount | None = None
    amount_min_minor: Amount | None = None
    amount_max_minor: Amount | None = None
    payments: Literal["one", "many"] = "one"
    payer: AccountRef | None = None
    payer_institution: ParticipantRef | None = None
    description: Description = ""
    payee_reference: PayeeReference = ""
    expires_at: Moment


class RequestState(StrEnum):
    OPEN = "open"
    PART_PAID = "part-paid"
    PAID = "paid"
    DECLINED = "declined"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class RequestOffer(Model):
    """What anybody who knows the request's id may read: the signed document, and how far it has come."""

    document: Token
    state: RequestState
    remaining_minor: Amount | None
    """Of a total; null = the amount is open."""
    next_payment: TransferRef | None
    """The id that the next payment must have; null = any."""


class PaymentRequestView(Model):
    """The payee's view."""

    request: RequestRef
    wallet: WalletRef
    account: AccountRef
    state: RequestState
    currency: CurrencyCode
    amount_minor: Amount | None
    amount_min_minor: Amount | None
    amount_max_minor: Amount | None
    payments: Literal["one", "many"]
    paid_minor: Amount
    remaining_minor: Amount | None
    surplus_minor: Amount
    """Money that came with the request's reference and that it did not ask for: refund it."""
    payer: AccountRef | None
    payer_institution: ParticipantRef | None
    payee_name: str
    description: str
    payee_reference: str
    document: Token
    created_at: Moment
    expires_at: Moment
    ended_at: Moment | None


class RequestPaymentView(Model):
    """A payment that came for a request."""

    payment: TransferRef
    request: RequestRef
    payer: AccountRef | None
    """Whom a refund credits."""
    amount_minor: Amount
    is_surplus: bool
    seq: int
    booked_at: Moment


class IncomingRequestOrder(Model):
    """Show a request to a wallet: by the id and institution of its code or link, or by its document as it was sent."""

    request: RequestRef | None = None
    institution: ParticipantRef | None = None
    document: Token | None = None

    @model_validator(mode="after")
    def _names_or_carries(self) -> Self:
        is_named = self.request is not None and self.institution is not None
        is_bare = self.request is None and self.institution is None
        if not (is_named if self.document is None else is_bare):
            raise ValueError("give request and institution, or the document alone")
        return self


class IncomingState(StrEnum):
    OPEN = "open"
    PAID = "paid"
    """This wallet has paid it, or a part of it."""
    DECLINED = "declined"
    ENDED = "ended"
    """It was cancelled, has expired, or somebody else has paid it."""


class IncomingRequestView(Model):
    """The payer's view: everything in `asked` is signed by the payee's institution."""

    wallet: WalletRef
    state: IncomingState
    asked: RequestDocument
    remaining_minor: Amount | None
    next_payment: TransferRef | None
    """What to sign: a payment with this id (null = any) to `asked.account`, its `reference` the request's id, valid
    no longer than `asked.expires_at`."""
    paid_minor: Amount
    """By this wallet."""
    payment: TransferRef | None
    """This wallet's last payment for it."""
    needs_approval: bool
    """A merchant has scanned this payer's code for more than the code allows by itself."""
    received_at: Moment


class ApprovalOrder(Model):
    instruction: Token
    """An ordinary signed payment that answers the request."""


class RequestDelivery(Model):
    document: Token
    """A `RequestDocument` that names its payer, signed by the payee's institution."""


class DeclineDocument(Model):
    """What the payer's institution signs (typ `jiaozi-request-decline+jws`)."""

    format: Literal["jiaozi-request-decline/v1"] = "jiaozi-request-decline/v1"
    request: RequestRef
    institution: ParticipantRef
    payer: AccountRef
    declined_at: Moment


class DeclineOrder(Model):
    decline: Token
    """A `DeclineDocument`."""


# --- QR codes --------------------------------------------------------------------------------------------------------

CodeText = Annotated[str, Field(min_length=1, max_length=512)]


class ReadCodeOrder(Model):
    code: CodeText


class CodeView(Model):
    """What a code says. `is_signed`: the institution that the ledger knows by this code has signed it."""

    kind: Literal["payee-static", "payee-dynamic", "payer"]
    institution: ParticipantRef
    account: AccountRef
    currency: CurrencyCode | None
    amount_minor: Amount | None
    """Asked for by a payee; the cap of a payer's code."""
    name: str | None
    city: str | None
    request: RequestRef | None
    reference: str | None
    valid_until: Moment | None
    is_signed: bool
    is_expired: bool


class RedemptionOrder(Model):
    """A merchant's wallet has scanned a payer's code, to pay `request` with it."""

    code: CodeText


class RedemptionState(StrEnum):
    PAID = "paid"
    NEEDS_APPROVAL = "needs-approval"
    """More than the code or the institution allows without asking: the payer has the request before him now."""


class RedemptionView(Model):
    state: RedemptionState
    request: RequestRef
    payment: TransferRef | None
    seq: int | None
    booked_at: Moment | None


class AcceptanceDocument(Model):
    """What the payer's institution signs when it has booked a code (typ `jiaozi-code-acceptance+jws`)."""

    format: Literal["jiaozi-code-acceptance/v1"] = "jiaozi-code-acceptance/v1"
    request: RequestRef
    institution: ParticipantRef
    payment: TransferRef
    payer: AccountRef
    """Whom a refund credits: the code's holder, though the institution's vault stands in between."""
    amount_minor: Amount
    seq: int
    booked_at: Moment


class CodeRedemption(Model):
    """One institution to another: pay this request of ours with that code of your holder's."""

    code: CodeText
    document: Token
    """The request, as the payee's institution signed it."""


class CodeRedemptionAnswer(Model):
    state: RedemptionState
    acceptance: Token | None
    """An `AcceptanceDocument`, if it is paid."""


# --- refunds ---------------------------------------------------------------------------------------------------------


class RefundOrder(Model):
    instruction: Token
    """A signed instruction of kind refund whose `reference` is the original payment's id."""


class RefundState(StrEnum):
    RESERVED = "reserved"
    """The ledger's answer is not known yet. Repeat the request: it cannot refund twice."""
    FINAL = "final"
    RELEASED = "released"
    """Not booked; its amount may be refunded again."""


class RefundView(Model):
    refund: TransferRef
    amount_minor: Amount
    state: RefundState
    seq: int | None
    booked_at: Moment | None


class RefundsView(Model):
    """What has been given back of a payment, for either side of it."""

    payment: TransferRef
    debit: AccountRef
    credit: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    booked_at: Moment
    refunded_minor: Amount
    """With what is on its way, on the payee's side."""
    refundable_minor: Amount
    refund_to: AccountRef
    """The only account that refunds credit."""
    refunds: list[RefundView]
    is_complete: bool
    """False: the account had more lines since than were looked through, so there may be more refunds."""

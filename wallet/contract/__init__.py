"""What clients may know of the wallet service: request and response models, refusals and their statuses.

Customers wear `cus_`, wallets `wlt_`, exchanges of deposit for currency `exc_`, transfers `trf_` (a payment is known by
its transfer's id). All ids are UUIDv7 made by the client and make each write idempotent: the same request again
answers the same, another request with that id is refused. Amounts are strings of digits in minor units.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from kernel import ids
from kernel.errors import Refusal
from ledger.contract import (
    AccountRef,
    AccountStatus,
    Amount,
    CurrencyCode,
    Jwk,
    Model,
    Moment,
    ParticipantRef,
    Reference,
    SignedAmount,
    StatementLine,
    Token,
    TransferRef,
    TransferTerms,
)
from wallet.domain.rules import Evidence, WalletClass

BATCH_ITEMS_MAX = 1_000
"""Items in one bulk request: one ledger batch, one page of results."""
OTHER_LEGS_MAX = 15
"""Legs of one settlement besides the one to be signed; a PvP has one."""


class WalletRefusal(Refusal):
    """Ways in which the wallet service refuses on its own account, in order of precedence.

    A transfer's refusals (limits, funds, signatures) are the ledger's (`TransferRefusal`, `LedgerRefusal`), whichever
    of the two services noticed first.
    """

    CUSTOMER_NOT_FOUND = "customer-not-found", True, "There is no such customer."
    CUSTOMER_EXISTS = "customer-exists", False, "Another customer has this id."
    WALLET_NOT_FOUND = "wallet-not-found", True, "There is no such wallet here."
    WALLET_EXISTS = "wallet-exists", False, "Another wallet has this id."
    DEVICE_KEY_REFUSED = "device-key-refused", False, "The device key is not an acceptable public key."
    DEVICE_KEY_IN_USE = "device-key-in-use", False, "The device key belongs to another wallet."
    EVIDENCE_INSUFFICIENT = "evidence-insufficient", True, "The customer's evidence does not open this class."
    WALLET_NOT_OPEN = "wallet-not-open", True, "The wallet's account is not open yet."
    WALLET_OPENING_REFUSED = "wallet-opening-refused", False, "The ledger refused to open the wallet's account."
    NOT_OUR_WALLET = "not-our-wallet", True, "The debit account is no wallet of this institution."
    NOT_OUR_VAULT = "not-our-vault", False, "The account is not this institution's vault on that ledger."
    PAYMENT_NOT_FOUND = "payment-not-found", True, "There is no such payment here."
    EXCHANGE_NOT_FOUND = "exchange-not-found", True, "There is no such exchange."
    EXCHANGE_EXISTS = "exchange-exists", False, "Another exchange has this id."
    DEPOSIT_INSUFFICIENT = "deposit-insufficient", False, "The bank deposit is too small; retry under a new id."
    LEDGER_UNKNOWN = "ledger-unknown", False, "This institution is not on that ledger."
    SETTLEMENT_EXISTS = "settlement-exists", False, "Another settlement instruction has this id."
    SETTLEMENT_NOT_FOUND = "settlement-not-found", True, "The institution has ordered no such settlement."
    SETTLEMENT_EXPIRED = "settlement-expired", False, "The institution's order is past its expiry."
    LEG_TERMS_MISMATCH = "leg-terms-mismatch", False, "The terms are not what the institution ordered."
    COUNTER_LEG_MISMATCH = "counter-leg-mismatch", False, "The other legs do not bring what the institution ordered."
    LEG_ALREADY_AUTHORISED = "leg-already-authorised", False, "The leg was authorised with other terms."
    POSTING_EXISTS = "posting-exists", False, "Another posting has this id."


STATUS_BY_WALLET_REFUSAL: Mapping[Refusal, int] = {
    **dict.fromkeys(WalletRefusal, 422),
    WalletRefusal.CUSTOMER_NOT_FOUND: 404,
    WalletRefusal.CUSTOMER_EXISTS: 409,
    WalletRefusal.WALLET_NOT_FOUND: 404,
    WalletRefusal.WALLET_EXISTS: 409,
    WalletRefusal.DEVICE_KEY_IN_USE: 409,
    WalletRefusal.WALLET_NOT_OPEN: 409,
    WalletRefusal.NOT_OUR_WALLET: 404,
    WalletRefusal.PAYMENT_NOT_FOUND: 404,
    WalletRefusal.EXCHANGE_NOT_FOUND: 404,
    WalletRefusal.EXCHANGE_EXISTS: 409,
    WalletRefusal.LEDGER_UNKNOWN: 404,
    WalletRefusal.SETTLEMENT_EXISTS: 409,
    WalletRefusal.SETTLEMENT_NOT_FOUND: 404,
    WalletRefusal.LEG_ALREADY_AUTHORISED: 409,
    WalletRefusal.POSTING_EXISTS: 409,
}
"""Total, and a test holds it so."""


def id_type(prefix: str) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    def validate(value: object) -> UUID:
        if isinstance(value, UUID):
            return value
        if not isinstance(value, str):
            raise ValueError("expected a string")
        return ids.parse(prefix, value)

    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return (
        BeforeValidator(validate),
        PlainSerializer(lambda value: ids.show(prefix, value), return_type=str),
        WithJsonSchema({"type": "string", "examples": [example]}),
    )


CustomerRef = Annotated[UUID, *id_type("cus")]
WalletRef = Annotated[UUID, *id_type("wlt")]
ExchangeRef = Annotated[UUID, *id_type("exc")]
PostingRef = Annotated[UUID, *id_type("dep")]
PaymentRef = Annotated[UUID, *id_type("trf")]
SettlementId = Annotated[
    str,
    Field(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$",
        examples=["6f9b2801-6f1e-4c3a-9d55-f5a72f6f9b28"],
    ),
]
"""The UETR of a cross-border payment, in lower case: the reference of each of its legs. Source: RFC 9562 section 4."""
LedgerName = Annotated[str, Field(min_length=1, max_length=64)]


# --- customers and wallets -------------------------------------------------------------------------------------------


class CustomerRequest(Model):
    customer: CustomerRef
    name: Annotated[str, Field(max_length=140)] = ""
    phone: Annotated[str, Field(pattern=r"^(\+[0-9]{6,15})?$")] = ""
    evidence: list[Evidence]
    """What has been verified; decides the highest class."""


class CustomerView(Model):
    customer: CustomerRef
    name: str
    phone: str
    evidence: list[Evidence]
    highest_class: WalletClass | None
    created_at: Moment


class WalletRequest(Model):
    wallet: WalletRef
    customer: CustomerRef
    wallet_class: WalletClass
    device_key: Jwk


class WalletState(StrEnum):
    OPENING = "opening"
    OPEN = "open"
    REFUSED = "refused"


class LimitView(Model):
    """A cap in minor units; null = none. `assumed`: no published source gives the value."""

    max_minor: Amount | None
    left_minor: Amount | None
    """What remains: of the balance, for one payment, today, this year."""
    assumed: bool


class LimitsView(Model):
    rule_pack: str
    demonstration: bool
    balance: LimitView
    single: LimitView
    daily: LimitView
    annual: LimitView


class BalanceView(Model):
    """As the ledger has it at `as_of_seq`."""

    balance_minor: SignedAmount
    available_minor: SignedAmount
    """Balance less what holds reserve."""
    spent_today_minor: Amount
    spent_this_year_minor: Amount
    status: AccountStatus
    as_of_seq: int
    as_of: Moment


class WalletView(Model):
    wallet: WalletRef
    customer: CustomerRef
    state: WalletState
    wallet_class: WalletClass
    currency: CurrencyCode
    account: AccountRef | None
    device_thumbprint: str
    refusal: str | None
    created_at: Moment
    opened_at: Moment | None
    balance: BalanceView | None
    """Null in listings and while the account is not open."""
    limits: LimitsView | None


class HistoryPage(Model):
    """Booked lines of the wallet's account, in the order asked for."""

    wallet: WalletRef
    currency: CurrencyCode
    items: list[StatementLine]
    next_cursor: str | None


# --- money -----------------------------------------------------------------------------------------------------------


class PaymentRequest(Model):
    instruction: Token
    """`ledger.contract.SignedInstruction` of kind payment or refund, signed by the paying wallet's device key."""


class PaymentBatchRequest(Model):
    instructions: Annotated[list[Token], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class PaymentState(StrEnum):
    INITIATED = "initiated"
    """Recorded; the ledger's answer is not known yet. Repeat the request: it cannot pay twice."""
    FINAL = "final"
    REFUSED = "refused"


class PaymentView(Model):
    payment: TransferRef
    wallet: WalletRef
    kind: Literal["payment", "refund", "exchange-out"]
    state: PaymentState
    debit: AccountRef
    credit: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    reference: Reference | None
    seq: int | None
    booked_at: Moment | None
    """Finality: the time of booking in the ledger."""
    refusal: str | None
    transient: bool | None
    detail: str | None
    deposit_credited_at: Moment | None
    """Of an exchange-out: when the bank deposit was credited."""
    created_at: Moment


class PaymentResult(Model):
    """One item of a batch: `payment` is null only if the instruction could not be read at all."""

    payment: TransferRef | None
    state: PaymentState
    seq: int | None = None
    booked_at: Moment | None = None
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class PaymentBatchResponse(Model):
    results: list[PaymentResult]


class ExchangeInRequest(Model):
    exchange: ExchangeRef
    wallet: WalletRef
    amount_minor: Amount
    currency: CurrencyCode


class ExchangeState(StrEnum):
    INITIATED = "initiated"
    DEBITED = "debited"
    """The deposit is debited; the currency is on its way."""
    COMPENSATING = "compensating"
    """The ledger refused; the deposit is being credited back."""
    FINAL = "final"
    REFUSED = "refused"
    """Refused before the deposit was touched."""
    COMPENSATED = "compensated"


class ExchangeView(Model):
    exchange: ExchangeRef
    wallet: WalletRef
    transfer: TransferRef
    amount_minor: Amount
    currency: CurrencyCode
    state: ExchangeState
    refusal: str | None
    detail: str | None
    seq: int | None
    booked_at: Moment | None
    created_at: Moment


# --- cross-border ----------------------------------------------------------------------------------------------------


class SettlementOrder(Model):
    """The bank's own record of what it sent to the bridge: the most that a leg authorisation may sign away."""

    instruction_id: SettlementId
    ledger: LedgerName
    """The ledger on which this bank pays."""
    pay_currency: CurrencyCode
    pay_amount_minor: Amount
    credit_account: AccountRef
    """Whom it pays there."""
    receive_currency: CurrencyCode
    receive_amount_minor_min: Amount
    valid_until: Moment


class SettlementOrdersRequest(Model):
    instructions: Annotated[list[SettlementOrder], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class SettlementOrderResult(Model):
    instruction_id: SettlementId
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class SettlementOrdersResponse(Model):
    results: list[SettlementOrderResult]


class SettlementLeg(Model):
    """A leg of a settlement that somebody else signs."""

    ledger: LedgerName
    terms: TransferTerms


class LegAuthorisation(Model):
    """`ledger` and `terms` are the leg to be signed; `other_legs` are all the others of its settlement.

    The institution signs only if those bring what it ordered to receive, under the same two hashes.
    """

    instruction_id: SettlementId
    ledger: LedgerName
    terms: TransferTerms
    other_legs: Annotated[list[SettlementLeg], Field(min_length=1, max_length=OTHER_LEGS_MAX)]


class LegAuthorisationsRequest(Model):
    legs: Annotated[list[LegAuthorisation], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]


class LegAuthorisationResult(Model):
    """`token`: the institution's signed instruction to hold exactly these terms; or a refusal."""

    instruction_id: SettlementId
    token: Token | None = None
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class LegAuthorisationsResponse(Model):
    results: list[LegAuthorisationResult]


# --- the institution and the sandbox ---------------------------------------------------------------------------------


class LedgerMembership(Model):
    ledger: LedgerName
    currency: CurrencyCode
    vault: AccountRef


class InstitutionView(Model):
    participant: ParticipantRef
    key: Jwk
    rule_pack: str
    ledgers: list[LedgerMembership]
    """The home ledger first."""


class DepositRequest(Model):
    """Sandbox only: pays money into a customer's bank deposit from nowhere."""

    posting: PostingRef
    customer: CustomerRef
    amount_minor: Amount


class DepositView(Model):
    customer: CustomerRef
    balance_minor: Amount

"""What clients may know of the wallet service: request and response models, refusals and their statuses.

Customers wear `cus_`, wallets `wlt_`, exchanges of deposit for currency `exc_`, transfers `trf_` (a payment is known by
its transfer's id). All ids are UUIDv7 made by the client and make each write idempotent: the same request again
answers the same, another request with that id is refused. Amounts are strings of digits in minor units.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, model_validator

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
from wallet.domain.shown_text import SHOWN_TEXT

BATCH_ITEMS_MAX = 1_000
"""Items in one bulk request: one ledger batch, one page of results."""
OTHER_LEGS_MAX = 31
"""Legs of one settlement besides the one to be signed; a PvP has one."""
NET_LEGS_MAX = 499
"""Legs of one netting settlement besides the one to be signed."""
NETTED_MAX = 10_000
"""Orders of the institution in one netting settlement."""
NETTINGS_MAX = 20


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
    BULK_FILE_UNREADABLE = "bulk-file-unreadable", False, "The file is not a payroll in the documented form."
    BULK_FILE_NOT_FOUND = "bulk-file-not-found", True, "There is no such bulk file here."
    BULK_FILE_EXISTS = "bulk-file-exists", False, "Another bulk file has this id."
    BULK_FILE_REPEATED = "bulk-file-repeated", False, "The wallet has sent a file with this content before."
    BULK_FILE_CLOSED = "bulk-file-closed", False, "The bulk file takes this no more in its present state."
    BULK_LINE_MISMATCH = "bulk-line-mismatch", False, "The instruction is not that of the file's line."
    BULK_TOTALS_MISMATCH = "bulk-totals-mismatch", True, "Lines or their sum are not what the file announced."
    SCHEDULE_NOT_FOUND = "schedule-not-found", True, "There is no such schedule, or no such payment in it."
    SCHEDULE_EXISTS = "schedule-exists", False, "Another schedule has this id."
    SCHEDULE_ENDED = "schedule-ended", False, "The schedule has ended or was cancelled."
    SCHEDULE_DATES_REFUSED = "schedule-dates-refused", False, "These dates cannot be scheduled."
    SCHEDULE_INSTRUCTION_MISMATCH = (
        "schedule-instruction-mismatch",
        False,
        "The signed instruction does not fit the payment it is for.",
    )
    SCHEDULE_TOO_LONG = "schedule-too-long", True, "Too many signed instructions would wait in one schedule."
    SCHEDULE_EXECUTING = "schedule-executing", True, "The payment is being executed and cannot be cancelled now."
    CALENDAR_UNKNOWN = "calendar-unknown", False, "There is no such business calendar."
    ENDPOINT_NOT_FOUND = "endpoint-not-found", True, "The client has no such webhook endpoint."
    ENDPOINT_EXISTS = "endpoint-exists", False, "Another webhook endpoint has this id."
    ENDPOINT_REFUSED = "endpoint-refused", False, "The address cannot be a webhook endpoint."
    ENDPOINTS_TOO_MANY = "endpoints-too-many", False, "The client has as many webhook endpoints as it may."
    REPLAY_EXISTS = "replay-exists", False, "Another replay has this id."
    PARENT_IS_CHILD = "parent-is-child", False, "A child wallet cannot have children: families have one level."
    CHILD_NOT_FOUND = "child-not-found", True, "The wallet has no such child."
    CHILD_EXISTS = "child-exists", False, "Another child wallet has this id."
    CHILD_CAPS_TOO_HIGH = "child-caps-too-high", False, "A child's cap is above its parent's class."
    CHILD_CLASS_TOO_STRONG = "child-class-too-strong", False, "A child's class is no stronger than its parent's."
    CHILDREN_TOO_MANY = "children-too-many", True, "The wallet has as many children as it may have."
    CHILD_CHANGED = "child-changed", True, "The child was changed meanwhile: read it and try again."
    CHILD_CLOSED = "child-closed", False, "The child wallet is closed."
    CHILD_NOT_EMPTY = "child-not-empty", True, "The child wallet still holds money: pool it first."
    CHILDREN_NOT_CLOSED = "children-not-closed", True, "The wallet has children that are not closed."
    PURSE_NOT_SETTLED = "purse-not-settled", True, "The wallet has an offline purse that is not settled yet."
    PROGRAM_NOT_FINISHED = "program-not-finished", True, "The wallet pays or is paid by a program that is not finished."
    CHILD_LIMIT_EXCEEDED = "child-limit-exceeded", True, "The payment would exceed the child's cap in total (I9)."
    CHILD_IS_FUNDED_BY_PAYMENTS = "child-is-funded-by-payments", False, "A child gets its money from payments."
    PUSH_REVOKED = "push-revoked", False, "The parent has revoked what it had pushed to the merchant."
    PAYEE_NOT_ALLOWED = "payee-not-allowed", False, "This child wallet pays its merchant and its parent, nobody else."
    CHARGE_NOT_AUTHORISED = "charge-not-authorised", False, "The secret is not the one given to the merchant."
    NOT_A_POOLING = "not-a-pooling", False, "A pooling pays from a child wallet to its parent."
    CARD_NOT_FOUND = "card-not-found", True, "The wallet is no hardware wallet."
    CARD_EXISTS = "card-exists", False, "The wallet is a hardware wallet with other limits."
    CARD_SUSPENDED = "card-suspended", False, "The hardware wallet is suspended."
    CARD_CLONED = "card-cloned", False, "Two instructions carry one counter: the card is suspended, with the proof."
    COUNTER_NOT_HIGHER = "counter-not-higher", False, "The card's counter is not higher than the last one seen."
    PIN_NEEDED = "pin-needed", False, "The payment is above what the card may pay without its PIN."
    CORPORATE_DATA_INVALID = "corporate-data-invalid", False, "The identifier's check characters do not match."
    ALIAS_INVALID = "alias-invalid", False, "This is no telephone number in E.164 and no e-mail address."
    ALIAS_NOT_FOUND = "alias-not-found", True, "No wallet has this alias."
    ALIAS_EXISTS = "alias-exists", False, "Another alias has this id."
    ALIAS_CODE_WRONG = "alias-code-wrong", False, "The code is not the one that was sent."
    ALIAS_CODE_SPENT = "alias-code-spent", False, "The code has expired or was tried too often: ask for another."
    ALIAS_CODES_TOO_MANY = "alias-codes-too-many", True, "Too many codes were asked for; wait."
    ALIAS_LOOKUPS_TOO_MANY = "alias-lookups-too-many", True, "The wallet has looked up too many aliases this hour."
    WALLET_SUSPENDED = "wallet-suspended", True, "The wallet is suspended; its reasons are shown with it."
    WALLET_CLOSING = "wallet-closing", True, "The wallet is being closed: only its pay-out moves money."
    WALLET_CLOSED = "wallet-closed", False, "The wallet is closed."
    WALLET_NOT_SUSPENDED = "wallet-not-suspended", True, "The wallet is not suspended for this reason."
    CHANGE_EXISTS = "wallet-change-exists", False, "Another change has this id."
    CHANGE_NOT_FOUND = "wallet-change-not-found", True, "There is no such change here."
    CHANGE_IN_PROGRESS = "change-in-progress", True, "Another change of the wallet is not finished yet."
    CAP_ABOVE_CLASS = "cap-above-class", False, "A holder's own cap is at most the class's."
    HOLDER_ORDER_MISSING = "holder-order-missing", False, "The change needs the signature of an active device."
    HOLDER_ORDER_INVALID = "holder-order-invalid", False, "The document is no active device's, or of another change."
    HOLDER_ORDER_EXPIRED = "holder-order-expired", False, "The holder's order has expired, or is valid for too long."
    DEVICE_UNKNOWN = "device-unknown", False, "The key is none of the wallet's active devices."
    DEVICES_TOO_MANY = "devices-too-many", True, "The wallet has as many devices as it may have."
    DEVICE_IS_LAST = "device-is-last", True, "The last device is not removed: replace it."
    NOTHING_ANNOUNCED = "nothing-announced", True, "No key of the wallet is announced."
    MONEY_ON_ITS_WAY = "money-on-its-way", True, "Payments or exchanges of the wallet are not finished yet."
    PAYOUT_MISMATCH = "payout-mismatch", False, "The instruction does not pay out the whole balance of the wallet."
    REQUEST_NOT_FOUND = "request-not-found", True, "There is no such payment request here."
    REQUEST_EXISTS = "request-exists", False, "Another payment request has this id."
    REQUEST_TERMS_INVALID = "request-terms-invalid", False, "These terms cannot be asked for."
    REQUEST_DOCUMENT_INVALID = "request-document-invalid", False, "The document is not signed by its institution."
    INSTITUTION_UNKNOWN = "institution-unknown", True, "This institution is not in the directory."
    REQUEST_NOT_FOR_WALLET = "request-not-for-wallet", False, "The request is addressed to another account."
    REQUEST_ENDED = "request-ended", False, "The request was declined or cancelled, or has expired."
    REQUEST_ALREADY_PAID = "request-already-paid", False, "The request is paid; nothing more was booked (I7)."
    REQUEST_PAYMENT_UNDER_WAY = "request-payment-under-way", True, "Another payment of the request is on its way."
    REQUEST_TERMS_MISMATCH = "request-terms-mismatch", False, "The instruction does not answer the request."
    CODE_INVALID = "code-invalid", False, "The text is no code of this scheme, or cannot become one."
    CODE_SIGNATURE_INVALID = "code-signature-invalid", False, "The code is not signed by whom it names."
    CODE_EXPIRED = "code-expired", False, "The code is past its expiry: show a new one."
    CODE_ALREADY_REDEEMED = "code-already-redeemed", False, "The code was redeemed for another request (I7)."
    ORIGINAL_NOT_FOUND = "original-not-found", True, "The wallet has received no such payment."
    REFUND_MISMATCH = "refund-mismatch", False, "The refund does not go back where the payment came from."
    REFUND_EXISTS = "refund-exists", False, "Another refund has this id."
    REFUND_EXCEEDS_ORIGINAL = "refund-exceeds-original", True, "The refunds would exceed the payment (I7)."
    TRANSFER_NOT_OF_WALLET = "transfer-not-of-wallet", True, "The wallet has no such booked line."
    TEMPLATE_NOT_FOUND = "template-not-found", True, "There is no such program template."
    TEMPLATE_NOT_IN_FORCE = "template-not-in-force", True, "The template is not in force today."
    PROGRAM_NOT_FOUND = "program-not-found", True, "There is no such program here."
    PROGRAM_EXISTS = "program-exists", False, "Another program has this id."
    PROGRAM_INVALID = "program-invalid", False, "The template, its parameters or the parties do not fit together."
    PROGRAM_STATE_MISMATCH = "program-state-mismatch", True, "The program takes this no more, or not yet."
    PROGRAM_TERMS_MISMATCH = "program-terms-mismatch", False, "What was signed is not the program's terms."
    PROGRAM_NOT_ACCEPTED = "program-not-accepted", True, "A party that must accept the terms has not done so yet."
    STATEMENT_INVALID = "statement-invalid", False, "The statement is not signed by the party that it names."
    STATEMENT_EXISTS = "statement-exists", False, "Another statement has this id."
    STATEMENT_NOT_ALLOWED = "statement-not-allowed", False, "The template lets this role say no such thing."
    VOUCHER_NOT_FOUND = "voucher-not-found", True, "There is no such voucher here."
    VOUCHER_EXISTS = "voucher-exists", False, "Another voucher has this id."
    VOUCHER_NOT_SPENDABLE = "voucher-not-spendable", False, "The voucher is not funded, is used up or has expired."
    VOUCHER_TOO_SMALL = "voucher-too-small", True, "The voucher has less left than the purchase costs."
    SPEND_INVALID = "spend-invalid", False, "The purchase is not signed by the voucher's recipient."
    SPEND_NOT_FOUND = "spend-not-found", True, "There is no such purchase here."
    SPEND_EXISTS = "spend-exists", False, "Another purchase has this id."
    MERCHANT_NOT_FOUND = "merchant-not-found", True, "The account is no registered merchant."
    MERCHANT_NOT_FITTING = "merchant-not-fitting", True, "The program may not be spent at this merchant."
    MERCHANT_STATEMENT_INVALID = "merchant-statement-invalid", False, "No institution has signed this of its merchant."

    PURSE_NOT_FOUND = "purse-not-found", True, "There is no such purse here."
    PURSE_EXISTS = "purse-exists", False, "Another purse has this id."
    PURSE_NOT_ACTIVE = "purse-not-active", False, "The purse is lost, expired, settled or caught double spending."
    PURSES_TOO_MANY = "purses-too-many", True, "The wallet has an active purse, or too many that are not settled."
    PURSE_LIMIT_EXCEEDED = "purse-limit-exceeded", True, "The purse would hold more than its cap."
    PURSE_HAS_NO_PROOF = "purse-has-no-proof", True, "The purse's device was not caught double spending."
    FUNDING_NOT_FOUND = "funding-not-found", True, "There is no such funding here."
    NOT_OUR_ESCROW = "not-our-escrow", False, "A funding credits the institution's offline escrow."

    CUSTOMER_ERASED = "customer-erased", False, "The customer's personal data was erased."
    CUSTOMER_HAS_WALLETS = "customer-has-wallets", True, "The customer has a wallet that is not closed."
    ERASURE_EXISTS = "erasure-exists", False, "Another erasure has this id."
    ERASURE_NOT_FOUND = "erasure-not-found", True, "The customer is not erased."
    UNMASK_NOT_FOUND = "unmask-not-found", True, "There is no such unmask order here."
    UNMASK_EXISTS = "unmask-exists", False, "Another unmask order has this id."
    UNMASK_OPEN = "unmask-open", True, "An unmask order concerns the customer and is not at its end."
    UNMASK_STATEMENT_INVALID = "unmask-statement-invalid", False, "The statement is not signed by this officer."
    UNMASK_OWN_ORDER = "unmask-own-order", False, "An officer does not approve his own order."
    UNMASK_APPROVED_BEFORE = "unmask-approved-before", False, "An officer of this name has approved with another key."
    UNMASK_EXPIRED = "unmask-expired", False, "The unmask order has expired, or would be valid for too long."
    UNMASK_NOT_APPROVED = "unmask-not-approved", True, "Two other officers have not approved the order yet."
    UNMASK_NOT_YOURS = "unmask-not-yours", False, "Only the officer who gave the order is answered."
    UNMASK_ANSWERED = "unmask-answered", False, "The order was answered; it is answered once."
    OWNER_NOT_CORPORATE = "owner-not-corporate", False, "Only the wallet of a legal entity has dual control."
    CONTROL_INVALID = "control-invalid", False, "The rules are not signed by two persons who may, or make no sense."
    CONTROL_CHANGED = "control-changed", True, "The rules are of another version; read them again."
    CONTROL_NOT_FOUND = "control-not-found", True, "The wallet has no dual control."
    SIGNATORY_UNKNOWN = "signatory-unknown", False, "The key that signed is none of the wallet's signatories'."
    APPROVAL_INVALID = "approval-invalid", False, "The document is not signed by a signatory, or has expired."
    APPROVAL_USED = "approval-used", False, "The payment was made under its approval."
    APPROVAL_NEEDED = "approval-needed", True, "Above what one signature alone may pay: another person must approve."
    APPROVED_ANOTHER = "approved-another", False, "The approval is of another instruction under this id."
    CARD_NOT_ATTESTED = "card-not-attested", False, "No registered card issuer vouches for this key with these caps."
    CARD_REVOKED = "card-revoked", False, "The card's issuer has revoked it."
    CARD_EXPIRED = "card-expired", False, "The card has expired."
    CHECKER_IS_MAKER = "checker-is-maker", False, "Nobody approves what he has signed himself."


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
    WalletRefusal.BULK_FILE_NOT_FOUND: 404,
    WalletRefusal.BULK_FILE_EXISTS: 409,
    WalletRefusal.BULK_FILE_REPEATED: 409,
    WalletRefusal.BULK_FILE_CLOSED: 409,
    WalletRefusal.SCHEDULE_NOT_FOUND: 404,
    WalletRefusal.SCHEDULE_EXISTS: 409,
    WalletRefusal.SCHEDULE_ENDED: 409,
    WalletRefusal.SCHEDULE_EXECUTING: 409,
    WalletRefusal.CALENDAR_UNKNOWN: 404,
    WalletRefusal.ENDPOINT_NOT_FOUND: 404,
    WalletRefusal.ENDPOINT_EXISTS: 409,
    WalletRefusal.ENDPOINTS_TOO_MANY: 409,
    WalletRefusal.REPLAY_EXISTS: 409,
    WalletRefusal.CHILD_NOT_FOUND: 404,
    WalletRefusal.CHILD_EXISTS: 409,
    WalletRefusal.CHILDREN_TOO_MANY: 409,
    WalletRefusal.CHILD_CHANGED: 409,
    WalletRefusal.CHILD_CLOSED: 409,
    WalletRefusal.CHILD_NOT_EMPTY: 409,
    WalletRefusal.CHILDREN_NOT_CLOSED: 409,
    WalletRefusal.PURSE_NOT_SETTLED: 409,
    WalletRefusal.PROGRAM_NOT_FINISHED: 409,
    WalletRefusal.PUSH_REVOKED: 409,
    WalletRefusal.CHARGE_NOT_AUTHORISED: 403,
    WalletRefusal.CARD_NOT_FOUND: 404,
    WalletRefusal.CARD_EXISTS: 409,
    WalletRefusal.CARD_SUSPENDED: 409,
    WalletRefusal.CARD_CLONED: 409,
    WalletRefusal.COUNTER_NOT_HIGHER: 409,
    WalletRefusal.ALIAS_NOT_FOUND: 404,
    WalletRefusal.ALIAS_EXISTS: 409,
    WalletRefusal.ALIAS_CODE_SPENT: 409,
    WalletRefusal.ALIAS_CODES_TOO_MANY: 429,
    WalletRefusal.ALIAS_LOOKUPS_TOO_MANY: 429,
    WalletRefusal.WALLET_SUSPENDED: 409,
    WalletRefusal.WALLET_CLOSING: 409,
    WalletRefusal.WALLET_CLOSED: 409,
    WalletRefusal.WALLET_NOT_SUSPENDED: 409,
    WalletRefusal.CHANGE_EXISTS: 409,
    WalletRefusal.CHANGE_NOT_FOUND: 404,
    WalletRefusal.CHANGE_IN_PROGRESS: 409,
    WalletRefusal.HOLDER_ORDER_MISSING: 403,
    WalletRefusal.HOLDER_ORDER_INVALID: 403,
    WalletRefusal.HOLDER_ORDER_EXPIRED: 403,
    WalletRefusal.DEVICE_UNKNOWN: 404,
    WalletRefusal.DEVICES_TOO_MANY: 409,
    WalletRefusal.DEVICE_IS_LAST: 409,
    WalletRefusal.NOTHING_ANNOUNCED: 409,
    WalletRefusal.MONEY_ON_ITS_WAY: 409,
    WalletRefusal.REQUEST_NOT_FOUND: 404,
    WalletRefusal.REQUEST_EXISTS: 409,
    WalletRefusal.INSTITUTION_UNKNOWN: 404,
    WalletRefusal.REQUEST_ENDED: 409,
    WalletRefusal.REQUEST_ALREADY_PAID: 409,
    WalletRefusal.REQUEST_PAYMENT_UNDER_WAY: 409,
    WalletRefusal.CODE_ALREADY_REDEEMED: 409,
    WalletRefusal.ORIGINAL_NOT_FOUND: 404,
    WalletRefusal.REFUND_EXISTS: 409,
    WalletRefusal.TRANSFER_NOT_OF_WALLET: 404,
    WalletRefusal.TEMPLATE_NOT_FOUND: 404,
    WalletRefusal.PROGRAM_NOT_FOUND: 404,
    WalletRefusal.PROGRAM_EXISTS: 409,
    WalletRefusal.PROGRAM_STATE_MISMATCH: 409,
    WalletRefusal.PROGRAM_NOT_ACCEPTED: 409,
    WalletRefusal.STATEMENT_INVALID: 403,
    WalletRefusal.STATEMENT_EXISTS: 409,
    WalletRefusal.STATEMENT_NOT_ALLOWED: 403,
    WalletRefusal.VOUCHER_NOT_FOUND: 404,
    WalletRefusal.VOUCHER_EXISTS: 409,
    WalletRefusal.VOUCHER_NOT_SPENDABLE: 409,
    WalletRefusal.SPEND_INVALID: 403,
    WalletRefusal.OWNER_NOT_CORPORATE: 409,
    WalletRefusal.CONTROL_INVALID: 403,
    WalletRefusal.CONTROL_CHANGED: 409,
    WalletRefusal.CONTROL_NOT_FOUND: 404,
    WalletRefusal.SIGNATORY_UNKNOWN: 403,
    WalletRefusal.APPROVAL_INVALID: 403,
    WalletRefusal.APPROVAL_USED: 409,
    WalletRefusal.APPROVAL_NEEDED: 409,
    WalletRefusal.CHECKER_IS_MAKER: 403,
    WalletRefusal.CARD_NOT_ATTESTED: 403,
    WalletRefusal.CARD_REVOKED: 409,
    WalletRefusal.CARD_EXPIRED: 409,
    WalletRefusal.SPEND_NOT_FOUND: 404,
    WalletRefusal.SPEND_EXISTS: 409,
    WalletRefusal.MERCHANT_NOT_FOUND: 404,
    WalletRefusal.PURSE_NOT_FOUND: 404,
    WalletRefusal.PURSE_EXISTS: 409,
    WalletRefusal.PURSE_NOT_ACTIVE: 409,
    WalletRefusal.PURSES_TOO_MANY: 409,
    WalletRefusal.PURSE_HAS_NO_PROOF: 404,
    WalletRefusal.FUNDING_NOT_FOUND: 404,
    WalletRefusal.CUSTOMER_ERASED: 410,
    WalletRefusal.CUSTOMER_HAS_WALLETS: 409,
    WalletRefusal.ERASURE_EXISTS: 409,
    WalletRefusal.ERASURE_NOT_FOUND: 404,
    WalletRefusal.UNMASK_NOT_FOUND: 404,
    WalletRefusal.UNMASK_EXISTS: 409,
    WalletRefusal.UNMASK_OPEN: 409,
    WalletRefusal.UNMASK_STATEMENT_INVALID: 403,
    WalletRefusal.UNMASK_OWN_ORDER: 403,
    WalletRefusal.UNMASK_APPROVED_BEFORE: 409,
    WalletRefusal.UNMASK_EXPIRED: 409,
    WalletRefusal.UNMASK_NOT_APPROVED: 409,
    WalletRefusal.UNMASK_NOT_YOURS: 403,
    WalletRefusal.UNMASK_ANSWERED: 409,
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
        WithJsonSchema({"type": "string", "pattern": ids.pattern(prefix), "examples": [example]}),
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
    name: Annotated[str, Field(max_length=140, pattern=SHOWN_TEXT)] = ""
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
    SUSPENDED = "suspended"
    """Credited, not debited, until no reason is left."""
    CLOSING = "closing"
    """Only the pay-out of the whole balance moves money."""
    CLOSED = "closed"


class LimitView(Model):
    """A cap in minor units; null = none. `assumed`: no published source gives the class's value."""

    max_minor: Amount | None
    """In force: the stricter of the two below, and of a class that the wallet is on its way to."""
    class_max_minor: Amount | None
    holder_max_minor: Amount | None
    """The holder's own."""
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
    """Of the first device."""
    changing_to: WalletClass | None
    """The class that the wallet is on its way to."""
    suspended_for: list[str]
    """Why it is suspended: loss, evidence, institution."""
    refusal: str | None
    created_at: Moment
    opened_at: Moment | None
    closed_at: Moment | None
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


class OrderedPayment(Model):
    ledger: LedgerName
    currency: CurrencyCode
    amount_minor: Amount
    credit_account: AccountRef


class OrderedReceipt(Model):
    """All legs that pay the bank this currency bring at least so much together."""

    currency: CurrencyCode
    amount_minor_min: Amount


class SettlementOrder(Model):
    """The bank's own record of what it sent to the bridge: the most that a leg authorisation may sign away.

    A settlement of more legs than two (a route, a netted cycle) is ordered with all payments and receipts of the bank.
    """

    instruction_id: SettlementId
    ledger: LedgerName
    """The ledger on which this bank pays."""
    pay_currency: CurrencyCode
    pay_amount_minor: Amount
    credit_account: AccountRef
    """Whom it pays there."""
    receive_currency: CurrencyCode | None = None
    """None of a bank that pays its net positions in a cycle and receives nothing in it."""
    receive_amount_minor_min: Amount | None = None
    valid_until: Moment
    further_payments: Annotated[list[OrderedPayment], Field(max_length=OTHER_LEGS_MAX)] = Field(default_factory=list)
    further_receipts: Annotated[list[OrderedReceipt], Field(max_length=OTHER_LEGS_MAX)] = Field(default_factory=list)


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


class CurrencyAmount(Model):
    currency: CurrencyCode
    amount_minor: Amount


class NettedInstruction(Model):
    """One of the institution's own orders in a netting settlement: what it pays and gets, each currency once."""

    instruction_id: SettlementId
    paid: Annotated[list[CurrencyAmount], Field(max_length=OTHER_LEGS_MAX)]
    received: Annotated[list[CurrencyAmount], Field(max_length=OTHER_LEGS_MAX)]

    @model_validator(mode="after")
    def _names_a_currency_once(self) -> Self:
        for amounts in (self.paid, self.received):
            if len({item.currency for item in amounts}) != len(amounts):
                raise ValueError("a currency is named twice")
        return self


class NettingList(Model):
    """What a netting settlement (`instruction_id` is its UETR) nets of the institution's orders."""

    instruction_id: SettlementId
    netted: Annotated[list[NettedInstruction], Field(min_length=1, max_length=NETTED_MAX)]


class LegAuthorisation(Model):
    """`ledger` and `terms` are the leg to be signed; `other_legs` are all the others of its settlement.

    The institution signs only if those bring what it ordered to receive, under the same two hashes.
    """

    instruction_id: SettlementId
    ledger: LedgerName
    terms: TransferTerms
    other_legs: Annotated[list[SettlementLeg], Field(max_length=NET_LEGS_MAX)]
    """Of a netting settlement: all others that pay the institution or that it pays."""


class LegAuthorisationsRequest(Model):
    """Legs of settlements, and of netting settlements with the list of what each nets."""

    legs: Annotated[list[LegAuthorisation], Field(min_length=1, max_length=BATCH_ITEMS_MAX)]
    nettings: Annotated[list[NettingList], Field(max_length=NETTINGS_MAX)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_the_other_legs_it_needs(self) -> Self:
        nettings = {item.instruction_id for item in self.nettings}
        if len(nettings) != len(self.nettings):
            raise ValueError("a netting settlement is listed twice")
        for leg in self.legs:
            if leg.instruction_id not in nettings and not 1 <= len(leg.other_legs) <= OTHER_LEGS_MAX:
                raise ValueError(f"a leg is signed against 1 to {OTHER_LEGS_MAX} others, or with a netting list")
        return self


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

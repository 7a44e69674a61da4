"""Parent and child wallets, corporate owners, hardware wallets, aliases: requests and responses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from kernel.crypto.keys import from_base64url
from ledger.contract import AccountRef, Amount, CurrencyCode, Jwk, Model, Moment, SignedAmount, Token, TransferRef
from wallet.contract import CustomerRef, PaymentResult, WalletRef, WalletState, id_type
from wallet.domain.rules import WalletClass
from wallet.domain.shown_text import SHOWN_TEXT

AliasRef = Annotated[UUID, *id_type("als")]
CHILDREN_MAX = 50
"""Children of one wallet, closed ones included: a family is one page."""
MERCHANT_SECRET_BYTES = 32


def _secret(text: str) -> str:
    if len(from_base64url(text)) != MERCHANT_SECRET_BYTES:
        raise ValueError(f"expected {MERCHANT_SECRET_BYTES} bytes in base64url")
    return text


def _sealed(text: str) -> str:
    if len(from_base64url(text)) != 12 + 32 + 16:
        raise ValueError("expected a nonce, 32 bytes and a tag, in base64url")
    return text


MerchantSecret = Annotated[str, Field(min_length=43, max_length=43), AfterValidator(_secret)]
"""What the parent hands to the merchant, and nobody else: without it the sealed key signs nothing."""
SealedKey = Annotated[str, Field(min_length=80, max_length=80), AfterValidator(_sealed)]
"""The child's Ed25519 seed under the merchant's secret: see `wallet.client.families.seal_child_key`."""


# --- families --------------------------------------------------------------------------------------------------------


class ChildCapsBody(Model):
    """In minor units, on top of the class's; null = only the class's. `total` is of all payments ever made."""

    balance_max_minor: Amount | None = None
    single_max_minor: Amount | None = None
    day_max_minor: Amount | None = None
    total_max_minor: Amount | None = None


class PushBody(Model):
    """What is pushed to a merchant: it may charge the child, for itself alone, up to `caps.total_max_minor`."""

    merchant: AccountRef
    sealed_key: SealedKey


class ChildRequest(Model):
    child: WalletRef
    customer: CustomerRef
    """Whose wallet it is: the parent's own customer, or another."""
    wallet_class: WalletClass
    device_key: Jwk
    label: Annotated[str, Field(max_length=40)] = ""
    caps: ChildCapsBody = ChildCapsBody()
    push: PushBody | None = None
    """Needs `caps.total_max_minor`."""


class ChildState(StrEnum):
    OPEN = "open"
    REVOKED = "revoked"
    """It pays back to its parent, nobody else."""
    CLOSED = "closed"


class ChildView(Model):
    child: WalletRef
    parent: WalletRef
    label: str
    state: ChildState
    wallet_state: WalletState
    wallet_class: WalletClass
    currency: CurrencyCode
    account: AccountRef | None
    merchant: AccountRef | None
    caps: ChildCapsBody
    spent_today_minor: Amount
    spent_total_minor: Amount
    balance_minor: SignedAmount | None
    """As the ledger has it; null while the account is not open."""
    version: int
    """Give it back with a change: a change of what has changed meanwhile is refused."""


class FamilyView(Model):
    parent: WalletRef
    children: list[ChildView]


class ChildCapsRequest(Model):
    caps: ChildCapsBody
    version: int


class PoolingRequest(Model):
    """Instructions of children to pay their parent, each signed with the child's key."""

    instructions: Annotated[list[Token], Field(min_length=1, max_length=CHILDREN_MAX)]


class PoolingResponse(Model):
    results: list[PaymentResult]


class ChargeRequest(Model):
    """A merchant charges a child that was pushed to it. The secret is the authority."""

    charge: TransferRef
    child: WalletRef
    amount_minor: Amount
    currency: CurrencyCode
    secret: MerchantSecret


# --- corporate owners ------------------------------------------------------------------------------------------------


class CorporateRequest(Model):
    """At least one identifier; both are checked by their check characters."""

    legal_name: Annotated[str, Field(min_length=1, max_length=140, pattern=SHOWN_TEXT)]
    lei: Annotated[str, Field(pattern=r"^([A-Z0-9]{18}[0-9]{2})?$")] = ""
    """ISO 17442."""
    social_credit_code: Annotated[str, Field(pattern=r"^([0-9A-Z]{18})?$")] = ""
    """GB 32100-2015."""


class CorporateView(Model):
    customer: CustomerRef
    owner_type: Literal["corporate"] = "corporate"
    legal_name: str
    lei: str
    social_credit_code: str


# --- hardware wallets ------------------------------------------------------------------------------------------------


class CardRequest(Model):
    """The wallet's device key is inside a secure element, which keeps these caps too."""

    key: Jwk
    """One of the wallet's device keys."""
    attestation: Annotated[list[Token], Field(min_length=2, max_length=2)]
    """The factory's certificate and the card's attestation (`wallet.contract.cards`)."""
    pin_free_single_max_minor: Amount
    pin_free_total_max_minor: Amount


class CardView(Model):
    wallet: WalletRef
    thumbprint: str
    state: Literal["active", "suspended"]
    suspended_why: Literal["reported", "cloned", "revoked"] | None
    suspended_at: Moment | None
    expires_at: Moment
    counter_last: int
    pin_free_single_max_minor: Amount
    pin_free_total_max_minor: Amount
    pin_free_minor: Amount
    """Carried without PIN since the last payment with it."""
    evidence: list[Token]
    """Of a clone: two instructions under one counter, both signed by the card's key."""


class CardsView(Model):
    wallet: WalletRef
    cards: list[CardView]


# --- aliases ---------------------------------------------------------------------------------------------------------


class AliasKind(StrEnum):
    PHONE = "phone"
    EMAIL = "email"


AliasText = Annotated[str, Field(min_length=3, max_length=254)]


class AliasRequest(Model):
    """Asks for a code to be sent to the alias."""

    alias_id: AliasRef
    kind: AliasKind
    alias: AliasText
    wallet: WalletRef


class AliasState(StrEnum):
    PENDING = "pending"
    VERIFIED = "verified"
    REFUSED = "refused"
    """The code expired or was tried too often."""
    REMOVED = "removed"


class AliasView(Model):
    """Never the alias itself: the service does not know it any more."""

    alias_id: AliasRef
    kind: AliasKind
    wallet: WalletRef
    currency: CurrencyCode
    state: AliasState
    is_default: bool
    tries_left: int
    code_until: Moment | None


class AliasesView(Model):
    wallet: WalletRef
    aliases: list[AliasView]


class AliasCodeRequest(Model):
    code: Annotated[str, Field(pattern=r"^[0-9]{6}$")]


class AliasLookupRequest(Model):
    """On behalf of a paying wallet, which is counted: aliases cannot be tried by the thousand."""

    payer: WalletRef
    kind: AliasKind
    alias: AliasText
    currency: CurrencyCode


class AliasLookupView(Model):
    """Confirmation of payee: show the masked name, and pay only if the payer knows it."""

    account: AccountRef
    masked_name: str


class SentCode(Model):
    kind: AliasKind
    to: str
    code: str
    sent_at: Moment


class SentCodesView(Model):
    """Sandbox only: what a telephone or a mailbox would show."""

    codes: list[SentCode]

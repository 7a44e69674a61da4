"""Models of offline purses. Messages are deterministic CBOR (docs/offline.md), here in base64url."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema

from kernel.crypto.keys import from_base64url, to_base64url
from ledger.contract import (
    AccountRef,
    Amount,
    CurrencyCode,
    Hash32,
    Jwk,
    Model,
    Moment,
    SignedAmount,
    Token,
    TransferRef,
)
from wallet.contract import WalletRef, id_type
from wallet.domain.offline.limits import MESSAGE_BYTES_MAX as MESSAGE_BYTES_MAX

SYNCED_TOGETHER_MAX = 100
"""Messages of one sync: all that a purse keeps of one direction."""
_CHARACTERS_MAX = (MESSAGE_BYTES_MAX * 4 + 2) // 3

PurseRef = Annotated[UUID, *id_type("pur")]
FundingRef = Annotated[UUID, *id_type("trf")]


def _bytes(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str) or not 0 < len(value) <= _CHARACTERS_MAX:
        raise ValueError(f"expected base64url of at most {MESSAGE_BYTES_MAX} bytes")
    return from_base64url(value)


def _version7(value: UUID) -> UUID:
    if value.version != 7:
        raise ValueError("the id must be a UUIDv7")
    return value


OfflineMessage = Annotated[
    bytes,
    PlainValidator(_bytes),
    PlainSerializer(to_base64url, return_type=str),
    WithJsonSchema({"type": "string", "maxLength": _CHARACTERS_MAX, "pattern": "^[A-Za-z0-9_-]+$"}),
]


class PurseRequest(Model):
    purse: Annotated[PurseRef, AfterValidator(_version7)]
    wallet: WalletRef
    device_key: Jwk
    """Of the purse's element; no other purse has it."""


class PurseState(StrEnum):
    ACTIVE = "active"
    EXPIRED = "expired"
    """Pays nobody any more; what it has paid can be synced until it is settled."""
    LOST = "lost"
    """Reported; on the revocation list."""
    DOUBLE_SPEND = "double-spend"
    """Caught; on the revocation list; the proof can be fetched."""
    SETTLED = "settled"
    """The rest went back to the wallet."""


class PurseView(Model):
    purse: PurseRef
    wallet: WalletRef
    account: AccountRef
    escrow: AccountRef
    """What a purse-fund credits."""
    currency: CurrencyCode
    state: PurseState
    certificate: OfflineMessage
    balance_max_minor: Amount
    known_balance_minor: Amount
    """Payments that nobody has synced yet are not in it."""
    loss_minor: Amount
    """Paid by the institution for this device's double spending."""
    recovered_minor: Amount
    not_after: Moment
    settled_from: Moment
    """Payments by this purse must be synced before."""
    created_at: Moment


class PurseFundingRequest(Model):
    instruction: Token
    """`SignedInstruction` of kind purse-fund to the escrow, the purse's UUID as reference, signed by the wallet."""


class PurseFundingView(Model):
    funding: TransferRef
    purse: PurseRef
    amount_minor: Amount
    state: str
    message: OfflineMessage | None
    """For the device: loads the purse, once."""
    seq: int | None
    booked_at: Moment | None
    refusal: str | None
    detail: str | None


class PurseSyncRequest(Model):
    messages: Annotated[list[OfflineMessage], Field(min_length=1, max_length=SYNCED_TOGETHER_MAX)]
    """Transfers, by payer or payee or anybody, in any order."""


class PurseSyncResult(Model):
    """What became of one transfer's payment: booked, once and for ever, or refused."""

    payment: Hash32 | None
    """The spend's hash; null if the message could not be read."""
    credited_minor: Amount | None = None
    """amount = credited + short."""
    short_minor: Amount | None = None
    """Not paid: a double spender's payments beyond his cap."""
    is_paid_out: bool | None = None
    """To the payee's wallet; false: it is in his purse."""
    transfer: TransferRef | None = None
    """Of the payout."""
    booked_at: Moment | None = None
    """Finality of the payout; null: it is on its way."""
    payout_refusal: str | None = None
    """Why the payee's wallet cannot take it now; the money waits in the escrow."""
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class PurseSyncResponse(Model):
    results: list[PurseSyncResult]


class RevocationsView(Model):
    revocations: OfflineMessage
    """The signed list, for devices."""


class ProofView(Model):
    purse: PurseRef
    proof: OfflineMessage
    """`jiaozi-wallet verify-double-spend` checks it with the institution's public key alone."""


class EscrowView(Model):
    """While nothing is under way, escrow = claims = unspent + payouts + recoveries - losses."""

    account: AccountRef
    currency: CurrencyCode
    escrow_minor: SignedAmount
    """On the ledger."""
    claims_minor: SignedAmount
    unspent_minor: Amount
    """In purses, as far as is known."""
    payouts_minor: Amount
    recoveries_minor: Amount
    losses_minor: Amount
    """The last three: recorded, not booked by the ledger yet."""

"""The FX market on the wire: quotes as providers sign them, the order book, wishes, best-execution evidence.

Quotes wear `fxq_`. Prices in requests are decimal text, in answers exact fractions; both are major units of the counter
currency for one of base. Fractions of minor units (`fee_minor`, `rounding_minor`, ...) are exact.
"""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Self
from uuid import UUID

from pydantic import UUID4, Field, ValidationError, model_validator

from kernel import ids, strict_json
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.errors import ProblemError
from kernel.money import Currency
from ledger.contract import Amount, CurrencyCode, Model, Moment, ParticipantRef, Token
from settlement.contract import BatchRef, SettlementRef, SettlementState, _parsed, _schema, _shown
from settlement.contract.multileg import Day
from settlement.domain.instructions import Priority
from settlement.domain.market import Side

QUOTE_TYP = "jiaozi-fx-quote+jws"
QUOTE_BYTES_MAX = 4_096
QUOTE_PREFIX = "fxq"

QuoteRef = Annotated[UUID, _parsed(QUOTE_PREFIX), _shown(QUOTE_PREFIX), _schema(QUOTE_PREFIX)]
PriceText = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})(\.[0-9]{1,12})?$", examples=["0.5123"])]
FractionText = Annotated[str, Field(pattern=r"^-?[0-9]+(/[0-9]+)?$", examples=["5123/10000"])]
Path = list[CurrencyCode]


class OnExpiry(StrEnum):
    ABORT = "abort"
    REQUOTE = "requote"


class QuoteDocument(Model):
    """What a provider signs: firm until `valid_until`, up to its sizes (minor units of base). A side is a price with a
    size, or neither. An amendment has the same `quote` and a higher `revision`."""

    bridge: ParticipantRef
    """The one bridge it is for."""
    provider: ParticipantRef
    quote: QuoteRef
    revision: Annotated[int, Field(ge=1, le=1_000_000_000)] = 1
    base: CurrencyCode
    counter: CurrencyCode
    bid: PriceText | None = None
    bid_size_minor: Amount = 0
    offer: PriceText | None = None
    offer_size_minor: Amount = 0
    fee_ppm: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Parts per million of what the customer is to receive, kept by the provider."""
    issued_at: Moment
    valid_until: Moment


class InvalidQuote(ValueError):
    """The token is no quote of that provider's key."""


def sign_quote(document: QuoteDocument, *, key: PrivateKey) -> str:
    return jws.sign(_canonical(document), key, typ=QUOTE_TYP)


def read_quote(token: str, key: PublicKey) -> QuoteDocument:
    """Raises: InvalidQuote for a signature, type or text that is not exactly what `sign_quote` makes."""
    try:
        payload = jws.verify(token, key, typ=QUOTE_TYP, bytes_max=QUOTE_BYTES_MAX)
        document = QuoteDocument.model_validate(strict_json.loads(payload))
        if _canonical(document) != payload:
            raise InvalidQuote("the payload must be the canonical JSON of the document, every member named")
    except jws.InvalidJws as error:
        raise InvalidQuote(error.reason) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = "/".join(str(part)[:64] for part in first["loc"])
        raise InvalidQuote(f"{place or 'the payload'}: {first['msg']}") from None
    except ProblemError as error:
        raise InvalidQuote(str(error)) from None
    return document


def _canonical(document: QuoteDocument) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json"))


class QuotePost(Model):
    token: Token
    """A `QuoteDocument`, signed by the provider's registered key with typ `jiaozi-fx-quote+jws`."""


class FirmQuoteView(Model):
    quote: QuoteRef
    revision: int
    provider: ParticipantRef
    base: CurrencyCode
    counter: CurrencyCode
    bid: FractionText | None
    bid_size_minor: Amount
    bid_used_minor: Amount
    """Locked for settlements or consumed by them."""
    offer: FractionText | None
    offer_size_minor: Amount
    offer_used_minor: Amount
    fee_ppm: int
    issued_at: Moment
    valid_until: Moment
    posted_at: Moment
    withdrawn_at: Moment | None
    is_live: bool


class LevelView(Model):
    """One quote's side in the book."""

    quote: QuoteRef
    revision: int
    provider: ParticipantRef
    price: FractionText
    fee_ppm: int
    all_in: FractionText
    """The price after the fee: of a bid less, of an offer more."""
    size_minor: Amount
    """Of base, what is left."""
    valid_until: Moment


class OrderBookView(Model):
    """A pair's live quotes in price-time priority; quotes of counter/base are shown the other way round."""

    base: CurrencyCode
    counter: CurrencyCode
    at: Moment
    bids: list[LevelView]
    offers: list[LevelView]
    mid: FractionText | None
    """Half of the best bid and the best offer before fees; None if one side is empty."""


class Wish(Model):
    """Sell exactly `given_minor`, or buy exactly `received_minor`: one of the two. Never beyond the limits named."""

    payer: ParticipantRef
    payee: ParticipantRef
    """May be the payer: a conversion of its own."""
    sell: CurrencyCode
    buy: CurrencyCode
    given_minor: Amount | None = None
    received_minor: Amount | None = None
    least_received_minor: Amount | None = None
    most_given_minor: Amount | None = None
    limit_rate: PriceText | None = None
    """All-in: major units bought for one sold, at least."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.given_minor is None) == (self.received_minor is None):
            raise ValueError("name given_minor or received_minor, one of the two")
        return self


class ExecutionRequest(Wish):
    uetr: Annotated[UUID4, Field(examples=["8f0a6d1e-3b7c-4f52-9a51-0c6c8f0e7a11"])]
    """A UUID of version 4; a payment is executed once."""
    value_date: Day
    priority: Priority = Priority.NORMAL
    start: bool = True
    """False: nobody is asked for anything before POST /v1/batches/{batch}/run, so that every party's desk can read its
    legs and order them first. The lock's time runs."""
    on_expiry: OnExpiry = OnExpiry.ABORT
    """If the lock expires before the engine has taken the settlement: give it up, or search again within the limits."""


class FillView(Model):
    """A use of one side of a quote; `quote` is None for the bridge's fixed rate."""

    quote: QuoteRef | None
    revision: int
    provider: ParticipantRef
    side: Side
    price: FractionText
    """Major units of what is received for one given, before the fee."""
    given_minor: Amount
    received_minor: Amount
    fee_ppm: int
    fee_minor: FractionText
    rounding_minor: FractionText
    """What rounding leaves with the provider; accounted to it."""


class HopView(Model):
    """given * mid = received + spread + fee + rounding, exactly; the costs are minor units of `target`."""

    source: CurrencyCode
    target: CurrencyCode
    given_minor: Amount
    received_minor: Amount
    mid: FractionText | None
    """Major units of target for one of source."""
    spread_minor: FractionText | None
    fee_minor: FractionText
    rounding_minor: FractionText
    fills: list[FillView]


class WayView(Model):
    """A way that was considered, with its costs or why it is none."""

    path: Path
    is_possible: bool
    why_not: str
    is_within_limits: bool
    given_minor: Amount | None
    received_minor: Amount | None
    all_in_rate: FractionText | None
    """Major units received for one given."""
    cost_minor: FractionText | None
    """Against the best mid of all ways, in minor units of what is received; below zero: better than the mid."""
    cost_ppm: int | None
    """The same in parts per million, rounded down."""
    hops: list[HopView]


class LiveQuoteView(Model):
    """A quote as the search saw it."""

    quote: QuoteRef
    revision: int
    provider: ParticipantRef
    base: CurrencyCode
    counter: CurrencyCode
    bid: FractionText | None
    bid_left_minor: Amount
    offer: FractionText | None
    offer_left_minor: Amount
    fee_ppm: int
    valid_until: Moment


class SearchView(Model):
    """Best-execution evidence: which quotes were live, which ways there were, which was the best and why."""

    at: Moment
    sell: CurrencyCode
    buy: CurrencyCode
    given_minor: Amount | None
    received_minor: Amount | None
    least_received_minor: Amount | None
    most_given_minor: Amount | None
    rounding_rule: str
    uses_fixed_rate: bool
    """Live quotes could not do the whole amount by any way: the bridge's fixed rates filled the rest."""
    best_mid: FractionText | None
    chosen: Path | None
    why: str
    ways: list[WayView]
    """The best first."""
    live_quotes: list[LiveQuoteView]


class LockedFillView(FillView):
    attempt: int
    hop: int
    source: CurrencyCode
    target: CurrencyCode
    base_minor: Amount
    """What it uses of the quote's size."""
    state: str
    """reserved, consumed (the settlement committed) or released (it aborted, or was quoted anew)."""


class ExecutionSummary(Model):
    settlement: SettlementRef
    batch: BatchRef
    """The settlement's batch of one, to be run if it was not started."""
    uetr: UUID
    payer: ParticipantRef
    payee: ParticipantRef
    sell: CurrencyCode
    buy: CurrencyCode
    given_minor: Amount
    received_minor: Amount
    least_received_minor: Amount | None
    most_given_minor: Amount | None
    on_expiry: OnExpiry
    attempt: int
    """1, and one more for each time it was quoted anew."""
    settlement_state: SettlementState
    is_locked: bool
    """Its quotes are locked: it is not decided."""
    lock_expires_at: Moment
    """None: the quotes are locked until the settlement is decided (a batch's instruction)."""
    created_at: Moment


class ExecutionView(ExecutionSummary):
    fills: list[LockedFillView]
    """Of every attempt; a provider sees its own."""
    searches: list[SearchView]
    """The evidence of every attempt; a provider does not see it."""


class RemainderView(Model):
    """What rounding has left with a provider in all that was settled: exact, in minor units."""

    provider: ParticipantRef
    currency: CurrencyCode
    remainder_minor: FractionText


def show_quote_id(quote: UUID) -> str:
    return ids.show(QUOTE_PREFIX, quote)


def major(value: Fraction, *, source: Currency, target: Currency) -> str:
    """Minor units of `target` for one of `source`, as major units, exactly."""
    return str(value * Fraction(10**source.exponent, 10**target.exponent))

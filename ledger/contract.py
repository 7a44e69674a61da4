"""What other services may know of the ledger: request and response models, signed documents, refusals.

Amounts are strings of digits in minor units. Accounts wear `acc_` and check digits, transfers and holds `trf_`,
mandates `mdt_`, account openings `opn_`. Times are RFC 3339 UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import msgspec
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from kernel import ids, money, strict_json
from kernel.clock import from_micros
from kernel.crypto import jws
from kernel.crypto.keys import KeyRefused, PrivateKey, PublicKey, SigningKey
from kernel.errors import ProblemError, Refusal
from kernel.ids import AccountNumber, ParticipantId
from ledger.domain.blocks import BlockHeader
from ledger.domain.vocabulary import AccountKind as AccountKind
from ledger.domain.vocabulary import AccountStatus as AccountStatus
from ledger.domain.vocabulary import LedgerRefusal as LedgerRefusal
from ledger.domain.vocabulary import ParticipantRole as ParticipantRole
from ledger.domain.vocabulary import TransferKind as TransferKind
from ledger.domain.vocabulary import TransferRefusal as TransferRefusal

BATCH_TRANSFERS_MAX = 8192
"""Transfers in one request and in one block: big enough to amortise an fsync, small enough to bound latency."""
OPENINGS_MAX = 4096
ACCOUNT_CHECKS_MAX = 1_000
"""Accounts of one check: a page, within the bound on an ordinary body."""
LOOK_UPS_MAX = 1_000
"""Holds or accounts in one look-up."""
_MOMENTS_CACHED_MAX = 4096
INSTRUCTION_TYP = "jiaozi-instruction+jws"
MANDATE_TYP = "jiaozi-mandate+jws"
APPROVAL_TYP = "jiaozi-approval+jws"
CHANGE_TYP = "jiaozi-account-change+jws"
CONSENT_TYP = "jiaozi-account-consent+jws"
HOLDER_KEYS_MAX = 5
"""Keys of one wallet: one a device."""
KEY_RECOVERY_SECONDS = 86_400
"""Of a genesis that does not say otherwise: a day for the holder to hear of it and object."""
BINARY_MEDIA_TYPE = "application/vnd.jiaozi.transfers"
"""The fixed binary record of a bulk submission: see `ledger.domain.records`."""


STATUS_BY_REFUSAL: Mapping[Refusal, int] = {
    **dict.fromkeys(TransferRefusal, 422),
    **dict.fromkeys(LedgerRefusal, 422),
    TransferRefusal.ID_ALREADY_USED: 409,
    TransferRefusal.NOT_AUTHORISED: 403,
    TransferRefusal.HOLD_NOT_FOUND: 404,
    TransferRefusal.HOLD_ALREADY_POSTED: 409,
    TransferRefusal.HOLD_ALREADY_VOIDED: 409,
    TransferRefusal.HOLD_EXPIRED: 409,
    LedgerRefusal.INSTRUCTION_INVALID: 401,
    LedgerRefusal.INSTRUCTION_EXPIRED: 401,
    LedgerRefusal.WRONG_LEDGER: 401,
    LedgerRefusal.ACCOUNT_NOT_FOUND: 404,
    LedgerRefusal.TRANSFER_NOT_FOUND: 404,
    LedgerRefusal.BLOCK_NOT_FOUND: 404,
    LedgerRefusal.CLOSING_NOT_FOUND: 404,
    LedgerRefusal.MANDATE_NOT_FOUND: 404,
    LedgerRefusal.MANDATE_EXISTS: 409,
    LedgerRefusal.MANDATE_EXECUTED: 409,
    LedgerRefusal.APPROVER_IS_MAKER: 403,
    LedgerRefusal.ALREADY_APPROVED: 409,
    LedgerRefusal.APPROVALS_MISSING: 409,
    LedgerRefusal.UNKNOWN_SIGNER: 401,
    LedgerRefusal.PARTICIPANT_UNKNOWN: 404,
    LedgerRefusal.PARTICIPANT_EXISTS: 409,
    LedgerRefusal.ROLE_NOT_ALLOWED: 403,
    LedgerRefusal.KEY_IN_USE: 409,
    LedgerRefusal.OUTCOME_UNKNOWN: 503,
    LedgerRefusal.NOT_SEALED: 503,
    LedgerRefusal.CHECKPOINT_NOT_FOUND: 404,
    LedgerRefusal.INCIDENT_NOT_FOUND: 404,
    LedgerRefusal.INCIDENT_ACKNOWLEDGED: 409,
    LedgerRefusal.TILE_NOT_FOUND: 404,
    LedgerRefusal.CHANGE_NOT_FOUND: 404,
    LedgerRefusal.CHANGE_EXISTS: 409,
    LedgerRefusal.CONSENT_MISSING: 403,
    LedgerRefusal.CONSENT_INVALID: 403,
    LedgerRefusal.KEY_NOT_ANNOUNCED: 409,
    LedgerRefusal.KEY_RECOVERY_PENDING: 409,
    LedgerRefusal.ACCOUNT_NOT_EMPTY: 409,
}
"""One table for single and bulk endpoints; a test holds it total."""


# --- wire types ------------------------------------------------------------------------------------------------------


def _parsed_by(parse: Any) -> BeforeValidator:
    def validate(value: Any) -> Any:
        return parse(value) if isinstance(value, str) else value

    return BeforeValidator(validate)


def _parse_prefixed(prefix: str) -> BeforeValidator:
    return BeforeValidator(lambda value: value if isinstance(value, UUID) else ids.parse(prefix, _text(value)))


def _show_prefixed(prefix: str) -> PlainSerializer:
    return PlainSerializer(lambda value: ids.show(prefix, value), return_type=str)


def _prefixed_schema(prefix: str) -> WithJsonSchema:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return WithJsonSchema({"type": "string", "pattern": ids.pattern(prefix), "examples": [example]})


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("expected a string")
    return value


def _reference(value: Any) -> UUID:
    text = value if isinstance(value, UUID) else _text(value)
    parsed = UUID(str(text))
    if str(parsed) != str(text) or parsed.int == 0:
        raise ValueError("expected a lower-case UUID that is not nil")
    return parsed


def _amount(value: Any) -> int:
    if type(value) is int:
        if not 0 <= value <= money.AMOUNT_MINOR_MAX:
            raise ValueError("amount out of range")
        return value
    return money.parse_minor(_text(value))


def _account(value: Any) -> int:
    if type(value) is int:
        if not 0 < value <= ids.ACCOUNT_NUMBER_MAX:
            raise ValueError("account number out of range")
        return value
    return ids.parse_account(_text(value))


_HEX32 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _hex32(value: Any) -> bytes:
    if isinstance(value, bytes) and len(value) == 32:
        return value
    if _HEX32.fullmatch(_text(value)) is None:
        raise ValueError("expected 64 lower-case hexadecimal digits")
    return bytes.fromhex(value)


TransferRef = Annotated[UUID, _parse_prefixed("trf"), _show_prefixed("trf"), _prefixed_schema("trf")]
HoldRef = Annotated[UUID, _parse_prefixed("trf"), _show_prefixed("trf"), _prefixed_schema("trf")]
"""A hold is known by the id of the transfer that placed it."""
MandateRef = Annotated[UUID, _parse_prefixed("mdt"), _show_prefixed("mdt"), _prefixed_schema("mdt")]
ChangeRef = Annotated[UUID, _parse_prefixed("chg"), _show_prefixed("chg"), _prefixed_schema("chg")]
OpeningRef = Annotated[UUID, _parse_prefixed("opn"), _show_prefixed("opn"), _prefixed_schema("opn")]
AccountRef = Annotated[
    AccountNumber,
    BeforeValidator(_account),
    PlainSerializer(ids.show_account, return_type=str),
    WithJsonSchema({"type": "string", "pattern": ids.ACCOUNT_PATTERN, "examples": [ids.show_account(17)]}),
]
Amount = Annotated[
    int,
    BeforeValidator(_amount),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$", "examples": ["123450"]}),
]
SignedAmount = Annotated[int, PlainSerializer(str, return_type=str), WithJsonSchema({"type": "string"})]
Hash32 = Annotated[
    bytes,
    BeforeValidator(_hex32),
    PlainSerializer(lambda value: value.hex(), return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
]
Reference = Annotated[UUID, BeforeValidator(_reference), WithJsonSchema({"type": "string", "format": "uuid"})]
ParticipantRef = Annotated[
    ParticipantId,
    _parsed_by(ids.parse_participant),
    WithJsonSchema({"type": "string", "pattern": ids.PARTICIPANT_PATTERN, "examples": ["BKCHCNBJ"]}),
]


@lru_cache(maxsize=_MOMENTS_CACHED_MAX)
def show_moment(value: datetime) -> str:
    """RFC 3339 in UTC with microseconds. Cached: what is booked together has one time."""
    return value.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _moment(value: Any) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(_text(value))
    if moment.tzinfo is None:
        raise ValueError("a time needs its zone: end it in Z")
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    PlainSerializer(show_moment, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-23T08:00:00.000000Z"]}),
]
CurrencyCode = Annotated[str, Field(pattern="^[A-Z]{3}$", examples=["CNY"])]
TOKEN_LENGTH_MIN, TOKEN_LENGTH_MAX = 20, 16_384
Token = Annotated[
    str,
    Field(min_length=TOKEN_LENGTH_MIN, max_length=TOKEN_LENGTH_MAX, description="A compact JWS (RFC 7515)."),
]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- transfers -------------------------------------------------------------------------------------------------------


class TransferTerms(Model):
    """One transfer as it will be booked. The same members, signed, are the payload of an instruction.

    A hold carries either `expires_at` (plain) or both hashes (conditional; then `expires_at` is an optional far
    deadline). A post or void names `hold` and takes its accounts from it: `debit` and `credit` are then left out;
    `amount_minor` of a post may be smaller than a plain hold's, the rest returns.
    """

    id: TransferRef
    kind: TransferKind
    debit: AccountRef | None = None
    credit: AccountRef | None = None
    amount_minor: Amount | None = None
    currency: CurrencyCode
    reference: Reference | None = None
    hold: HoldRef | None = None
    expires_at: Moment | None = None
    commit_hash: Hash32 | None = None
    abort_hash: Hash32 | None = None
    secret: Hash32 | None = None

    @model_validator(mode="after")
    def _has_the_members_of_its_kind(self) -> Self:
        if self.id.version != 7:
            raise ValueError("the id must be a UUIDv7")
        given = {name for name in _TERMS_OPTIONAL if getattr(self, name) is not None}
        if self.kind in (TransferKind.POST, TransferKind.VOID):
            needed, allowed = {"hold"}, {"hold", "secret", "amount_minor"}
        elif self.kind is TransferKind.HOLD:
            needed = {"debit", "credit", "amount_minor"}
            allowed = needed | {"expires_at", "commit_hash", "abort_hash"}
        else:
            needed = allowed = {"debit", "credit", "amount_minor"}
        for problem, names in (("needs", needed - given), ("does not take", given - allowed)):
            if names:
                raise ValueError(f"{self.kind.value} {problem} {', '.join(sorted(names))}")
        return self


_TERMS_OPTIONAL = ("debit", "credit", "amount_minor", "hold", "expires_at", "commit_hash", "abort_hash", "secret")


class SignedInstruction(Model):
    """The payload that a holder (or a payer institution) signs: the terms, the ledger they are for, an expiry."""

    ledger: str
    terms: TransferTerms
    valid_until: Moment


class TransferItem(Model):
    """Exactly one of: `instruction` (signed by the debit account's owner, carried by anybody) or `terms`
    (the institution's own account, authorised by the request's signature; or a post/void by its secret)."""

    instruction: Token | None = None
    terms: TransferTerms | None = None
    linked: bool = False
    """Chained to the next item: the chain is booked whole or not at all."""

    @model_validator(mode="after")
    def _is_signed_or_plain(self) -> Self:
        if (self.instruction is None) == (self.terms is None):
            raise ValueError("give either instruction or terms")
        return self


class TransferBatchRequest(Model):
    transfers: Annotated[list[TransferItem], Field(min_length=1, max_length=BATCH_TRANSFERS_MAX)]


class TransferOutcome(StrEnum):
    BOOKED = "booked"
    ALREADY_BOOKED = "already-booked"
    """The same transfer was booked before: a retry's answer."""
    REFUSED = "refused"


class TransferResult(Model):
    id: TransferRef | None = None
    """Absent where the instruction could not be read."""
    outcome: TransferOutcome
    seq: int | None = None
    booked_at: Moment | None = None
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class TransferBatchResponse(Model):
    results: list[TransferResult]


class SignedItem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A `TransferItem` that carries an instruction, read and written quickly."""

    instruction: str
    linked: bool = False
    terms: None = None


class TransferAnswer(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A `TransferResult` as it travels, written and read quickly."""

    outcome: str
    id: str | None = None
    seq: int | None = None
    booked_at: str | None = None
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class EndTerms(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A post or void of a whole conditional hold by its secret, as it travels. Members in the order of the models."""

    id: str
    kind: str
    currency: str
    reference: str | None = None
    hold: str = ""
    secret: str = ""


class _EndItem(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    terms: EndTerms


class _EndItems(msgspec.Struct, forbid_unknown_fields=True):
    transfers: list[_EndItem]


class ReadEnd(msgspec.Struct, frozen=True, gc=False):
    """A `TransferItem` with the post or void of a whole hold by its secret, read quickly: ids as numbers, 0 = none."""

    id_number: int
    id_shown: str
    kind: TransferKind
    currency: str
    reference_number: int
    hold_number: int
    secret: bytes
    instruction: None = None
    linked: bool = False

    @property
    def terms(self) -> TransferTerms:
        return TransferTerms.model_construct(
            id=UUID(int=self.id_number),
            kind=self.kind,
            currency=self.currency,
            reference=UUID(int=self.reference_number) if self.reference_number else None,
            hold=UUID(int=self.hold_number),
            secret=self.secret,
        )


class _SignedItems(msgspec.Struct, forbid_unknown_fields=True):
    transfers: list[SignedItem]


class _Answers(msgspec.Struct):
    results: list[TransferAnswer]


_SIGNED_ITEMS = msgspec.json.Decoder(_SignedItems)
_END_ITEMS = msgspec.json.Decoder(_EndItems)
_END_KINDS = {kind.value: kind for kind in (TransferKind.POST, TransferKind.VOID)}
_PLAIN_ID = re.compile(r"trf_[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
_REFERENCE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_CURRENCY = re.compile(r"[A-Z]{3}", re.ASCII)
_ANSWERS = msgspec.json.Decoder(_Answers)
_encode = msgspec.json.Encoder().encode


def read_signed_items(body: bytes) -> list[SignedItem] | None:
    """The items of a `TransferBatchRequest` in which every item carries an instruction, spelt without white space.

    None: it is spelt otherwise, or is no such request; then the model and strict JSON have the word. That the items
    encode back to the same bytes is the proof that nothing is there twice or beside what is known.
    """
    try:
        read = _SIGNED_ITEMS.decode(body)
    except ValueError:
        return None
    items = read.transfers
    if not 0 < len(items) <= BATCH_TRANSFERS_MAX or b"\\" in body or _encode(read) != body:
        return None
    if any(not TOKEN_LENGTH_MIN <= len(item.instruction) <= TOKEN_LENGTH_MAX for item in items):
        return None
    return items


def read_end_items(body: bytes) -> list[ReadEnd] | None:
    """The items of a `TransferBatchRequest` in which each is the post or void of a whole hold by its secret, spelt
    without white space. None and the proof: as `read_signed_items`."""
    try:
        read = _END_ITEMS.decode(body)
        items = read.transfers
        if not 0 < len(items) <= BATCH_TRANSFERS_MAX or b"\\" in body or _encode(read) != body:
            return None
        return [_read_end(item.terms) for item in items]
    except (ValueError, KeyError):
        return None


def _read_end(end: EndTerms) -> ReadEnd:
    """Raises ValueError or KeyError for whatever the model would refuse, or might read otherwise."""
    if not (_PLAIN_ID.fullmatch(end.id) and _PLAIN_ID.fullmatch(end.hold) and _CURRENCY.fullmatch(end.currency)):
        raise ValueError("not a plain end of a hold")
    return ReadEnd(
        _id_number(end.id),
        end.id,
        _END_KINDS[end.kind],
        end.currency,
        _reference_number(end.reference),
        _id_number(end.hold),
        _hex32(end.secret),
    )


def _id_number(shown: str) -> int:
    """Of an id with a prefix of three letters that has been matched."""
    return int(shown[4:].replace("-", ""), 16)


def _reference_number(text: str | None) -> int:
    """0 for none. Raises ValueError for whatever `_reference` does."""
    if text is None:
        return 0
    number = int(text.replace("-", ""), 16) if _REFERENCE.fullmatch(text) is not None else 0
    if number == 0:
        raise ValueError("expected a lower-case UUID that is not nil")
    return number


def write_end_items(ends: Sequence[EndTerms]) -> bytes:
    """The body of a request for `read_end_items`."""
    return _encode(_EndItems([_EndItem(end) for end in ends]))


def write_signed_items(tokens: Sequence[str]) -> bytes:
    """The body of a request for `read_signed_items`."""
    return _encode(_SignedItems([SignedItem(token) for token in tokens]))


def write_answers(answers: list[TransferAnswer]) -> bytes:
    """The body of a `TransferBatchResponse`."""
    return _encode(_Answers(answers))


def read_answers(body: bytes) -> list[TransferAnswer]:
    """Raises: ValueError for anything else."""
    return _ANSWERS.decode(body).results


class TransferView(Model):
    """A booked transfer."""

    id: TransferRef
    seq: int
    kind: TransferKind
    debit: AccountRef | None
    debit_kind: AccountKind | None
    """Whether a holder has paid, or an institution from its vault (with a voucher, for another): it says no more of who
    that is."""
    credit: AccountRef | None
    amount_minor: Amount
    currency: CurrencyCode
    hold: HoldRef | None
    reference: Reference | None
    booked_at: Moment
    submitter: ParticipantRef | None


class HoldStatus(StrEnum):
    HELD = "held"
    POSTED = "posted"
    VOIDED = "voided"
    EXPIRED = "expired"
    TOMBSTONED = "tombstoned"


class HoldView(Model):
    hold: HoldRef
    status: HoldStatus
    debit: AccountRef | None
    credit: AccountRef | None
    amount_minor: Amount
    currency: CurrencyCode
    commit_hash: Hash32 | None
    abort_hash: Hash32 | None
    expires_at: Moment | None
    ended_by: TransferRef | None
    secret: Hash32 | None
    """The secret that ended it: once one leg is posted, anybody can post the others."""


class HoldLookUpRequest(Model):
    holds: Annotated[list[HoldRef], Field(min_length=1, max_length=LOOK_UPS_MAX)]


class HoldLookUpResponse(Model):
    """`holds[i]` is `holds[i]` of the request, null if there is none that the caller may see."""

    holds: list[HoldView | None]


class HoldAnswer(msgspec.Struct, frozen=True, gc=False):
    """A `HoldView` as it travels, written and read quickly."""

    hold: str
    status: str
    debit: str | None
    credit: str | None
    amount_minor: str
    currency: str
    commit_hash: str | None
    abort_hash: str | None
    expires_at: str | None
    ended_by: str | None
    secret: str | None


class _HoldAnswers(msgspec.Struct):
    holds: list[HoldAnswer | None]


class _HoldsAsked(msgspec.Struct, forbid_unknown_fields=True):
    holds: list[str]


_HOLD_ANSWERS = msgspec.json.Decoder(_HoldAnswers)
_HOLDS_ASKED = msgspec.json.Decoder(_HoldsAsked)


def read_hold_look_up(body: bytes) -> list[UUID] | None:
    """The ids of a `HoldLookUpRequest` spelt without white space. None and the proof: as `read_signed_items`."""
    try:
        read = _HOLDS_ASKED.decode(body)
    except ValueError:
        return None
    if not 0 < len(read.holds) <= LOOK_UPS_MAX or b"\\" in body or _encode(read) != body:
        return None
    if any(_PLAIN_ID.fullmatch(hold) is None for hold in read.holds):
        return None
    return [UUID(int=_id_number(hold)) for hold in read.holds]


def write_hold_look_up(holds: Sequence[UUID]) -> bytes:
    """The body of a request for `read_hold_look_up`."""
    return _encode(_HoldsAsked([ids.show("trf", hold) for hold in holds]))


def write_hold_answers(answers: list[HoldAnswer | None]) -> bytes:
    """The body of a `HoldLookUpResponse`."""
    return _encode(_HoldAnswers(answers))


def read_hold_answers(body: bytes) -> list[HoldAnswer | None]:
    """Raises: ValueError for anything else."""
    return _HOLD_ANSWERS.decode(body).holds


# --- accounts --------------------------------------------------------------------------------------------------------

Jwk = Annotated[
    dict[str, str],
    Field(
        description="A public key as JWK: OKP/Ed25519 or EC/P-256.",
        examples=[{"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}],
    ),
]


def _valid_jwk(value: dict[str, str]) -> dict[str, str]:
    try:
        PublicKey.from_jwk(value)
    except KeyRefused as error:
        raise ValueError(f"not a public key: {error}") from None
    return value


PublicJwk = Annotated[Jwk, AfterValidator(_valid_jwk)]
"""A key that is checked as soon as it is read: of participants and operators, where one bad key would hurt all."""


class AccountOpening(Model):
    """Opens one account. `opening` is client-made and makes the request idempotent."""

    opening: OpeningRef
    kind: Literal[AccountKind.VAULT, AccountKind.WALLET, AccountKind.OFFLINE]
    rule_class: Annotated[str, Field(max_length=32)] = "none"
    holder_key: Jwk | None = None
    """Wallets only: the key whose signature the ledger will ask for (I8)."""

    @model_validator(mode="after")
    def _names_a_wallets_class(self) -> Self:
        if self.kind is AccountKind.WALLET and "rule_class" not in self.model_fields_set:
            raise ValueError("a wallet's opening names its rule class")
        return self


class AccountOpeningRequest(Model):
    openings: Annotated[list[AccountOpening], Field(min_length=1, max_length=OPENINGS_MAX)]


class AccountCheckRequest(Model):
    accounts: Annotated[list[AccountRef], Field(min_length=1, max_length=ACCOUNT_CHECKS_MAX)]


class AccountCheckResponse(Model):
    """`exists[i]`: whether `accounts[i]` of the request is an account. Nothing else is said of others' accounts."""

    exists: list[bool]


class AccountOpeningResult(Model):
    opening: OpeningRef
    account: AccountRef | None = None
    refusal: str | None = None
    transient: bool | None = None
    detail: str | None = None


class AccountOpeningResponse(Model):
    results: list[AccountOpeningResult]


class AnnouncedKeyView(Model):
    """A key that will be the holder's only one unless a current key objects: see `replace-holder-key`."""

    key: str
    """RFC 7638 thumbprint."""
    announced_at: Moment
    effective_at: Moment
    """From when on it may replace the lost keys without their consent."""


class AccountView(Model):
    """An account and its balance at `as_of_seq`. available = credits - debits - debits_pending (not for issuance)."""

    account: AccountRef
    kind: AccountKind
    participant: ParticipantRef | None
    status: AccountStatus
    rule_class: str
    currency: CurrencyCode
    balance_minor: SignedAmount
    available_minor: SignedAmount
    debits_posted_minor: Amount
    credits_posted_minor: Amount
    debits_pending_minor: Amount
    credits_pending_minor: Amount
    spent_today_minor: Amount
    spent_this_year_minor: Amount
    balance_max_minor: Amount | None = None
    """The account's own cap; null where there is none. Its class's is in the rule class."""
    holder_key: str | None
    """RFC 7638 thumbprint of the holder's key; of the oldest, where there are several."""
    holder_keys: list[str] = []
    """Thumbprints of all of the holder's keys, the oldest first."""
    announced_key: AnnouncedKeyView | None = None
    as_of_seq: int
    as_of: Moment


class AccountLookUpRequest(Model):
    accounts: Annotated[list[AccountRef], Field(min_length=1, max_length=LOOK_UPS_MAX)]


class AccountLookUpResponse(Model):
    """`accounts[i]` is `accounts[i]` of the request, null if there is none that the caller may see."""

    accounts: list[AccountView | None]


class StatementLine(Model):
    """One booked transfer from an account's point of view; holds and their ends appear with amount and kind."""

    seq: int
    transfer: TransferRef
    kind: TransferKind
    direction: Literal["debit", "credit"]
    amount_minor: Amount
    """What it moved in the posted balance: 0 for a hold, void or expiry."""
    counterparty: AccountRef | None
    reference: Reference | None
    booked_at: Moment
    balance_minor: SignedAmount
    """The posted balance after this line."""


class StatementResponse(Model):
    account: AccountRef
    currency: CurrencyCode
    opening_balance_minor: SignedAmount
    closing_balance_minor: SignedAmount
    """Balance before the first and after the last line of this page."""
    lines: list[StatementLine]
    next_cursor: str | None


class Booking(Model):
    """One booked transfer that debits or credits an account of the participant who asks."""

    seq: int
    transfer: TransferRef
    kind: TransferKind
    debit: AccountRef | None
    credit: AccountRef | None
    amount_minor: Amount
    """What it moved in the posted balances: 0 for a hold, void or expiry."""
    reference: Reference | None
    booked_at: Moment


class BookingsResponse(Model):
    bookings: list[Booking]
    """In order of seq."""
    through_seq: int
    """Everything up to here has been told: pass it as `after_seq` next. It may move on without a booking."""


# --- account changes -------------------------------------------------------------------------------------------------


class SetAccountClass(Model):
    """Upgrade or downgrade. A balance above the new class's cap may stay; nothing further is credited (I9)."""

    change: Literal["set-rule-class"] = "set-rule-class"
    account: AccountRef
    rule_class: Annotated[str, Field(min_length=1, max_length=32)]


class SetBalanceCap(Model):
    """What a wallet may hold at most, beside its class's cap: a child's allowance. The stricter of both holds for every
    credit but a legal order's, whoever sends it; what is held above it may stay. The same version, or one below that
    in force, changes nothing."""

    change: Literal["set-balance-cap"] = "set-balance-cap"
    account: AccountRef
    version: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)]
    balance_max_minor: Amount | None = None
    """Null: none of its own any more."""


class HolderKeyChange(Model):
    """Of a wallet's keys. Adding and removing need a current holder key's consent. `replace-holder-key` makes `key`
    the only one: with consent at once; without it, if `key` was announced at least `key_recovery_seconds` before (see
    the ledger) and no current key has objected since. A later announcement takes the place of an earlier one."""

    change: Literal["add-holder-key", "remove-holder-key", "replace-holder-key", "announce-holder-key"]
    account: AccountRef
    key: PublicJwk


class AccountStanding(Model):
    """`object-to-key` ends an announcement and is the holder's alone: consent without the participant's signature.
    `suspend` refuses debits and takes credits until `resume`. `close` is for ever, and needs balance and holds of 0."""

    change: Literal["object-to-key", "suspend", "resume", "close"]
    account: AccountRef


AccountChange = Annotated[
    SetAccountClass | SetBalanceCap | HolderKeyChange | AccountStanding, Field(discriminator="change")
]


class AccountChangeDocument(Model):
    """What the account's participant signs (typ `jiaozi-account-change+jws`) and, where consent is needed, one of the
    holder's current keys too (typ `jiaozi-account-consent+jws`): the very same canonical JSON. `id` is the client's."""

    id: ChangeRef
    ledger: Annotated[str, Field(max_length=64)]
    change: AccountChange
    valid_until: Moment

    @model_validator(mode="after")
    def _has_a_clients_id(self) -> Self:
        if self.id.version != 7:
            raise ValueError("the id must be a UUIDv7")
        return self


class AccountChangeRequest(Model):
    """`change`: signed by the participant; absent for `object-to-key` alone. `consent`: signed by a holder's key."""

    change: Token | None = None
    consent: Token | None = None

    @model_validator(mode="after")
    def _is_signed(self) -> Self:
        if self.change is None and self.consent is None:
            raise ValueError("give change, consent or both")
        return self


class AccountChangeView(Model):
    """A change that is in the journal. The same request again is answered with the same view."""

    id: ChangeRef
    change: AccountChange
    has_consent: bool
    directive: int
    """Number of the journal's directive that carries the signatures."""
    booked_at: Moment


# --- mandates --------------------------------------------------------------------------------------------------------


class IssueAction(Model):
    action: Literal["issue"] = "issue"
    transfer: TransferRef
    vault: AccountRef
    amount_minor: Amount
    currency: CurrencyCode


class RedeemAction(Model):
    action: Literal["redeem"] = "redeem"
    transfer: TransferRef
    vault: AccountRef
    amount_minor: Amount
    currency: CurrencyCode


class RegisterParticipantAction(Model):
    action: Literal["register-participant"] = "register-participant"
    participant: ParticipantRef
    name: Annotated[str, Field(min_length=1, max_length=140)]
    role: ParticipantRole
    key: PublicJwk
    quota_minor: Amount


class RotateParticipantKeyAction(Model):
    action: Literal["rotate-participant-key"] = "rotate-participant-key"
    participant: ParticipantRef
    key: PublicJwk


class SetQuotaAction(Model):
    action: Literal["set-quota"] = "set-quota"
    participant: ParticipantRef
    quota_minor: Amount


class FreezeAction(Model):
    action: Literal["freeze", "unfreeze"]
    account: AccountRef
    case: Annotated[str, Field(min_length=1, max_length=140)]
    """The legal order's case number."""


class AdjustmentAction(Model):
    """A legal order moves money without the holder's signature (I8's only other door)."""

    action: Literal["adjustment"] = "adjustment"
    transfer: TransferRef
    debit: AccountRef
    credit: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    case: Annotated[str, Field(min_length=1, max_length=140)]


class RuleClass(Model):
    """Caps of a class in minor units; null = none. Day and year roll over in the ledger's time zone."""

    name: Annotated[str, Field(min_length=1, max_length=32)]
    balance_max_minor: Amount | None = None
    single_max_minor: Amount | None = None
    day_max_minor: Amount | None = None
    year_max_minor: Amount | None = None


class SetRuleClassAction(Model):
    action: Literal["set-rule-class"] = "set-rule-class"
    rule_class: RuleClass


Action = Annotated[
    IssueAction
    | RedeemAction
    | RegisterParticipantAction
    | RotateParticipantKeyAction
    | SetQuotaAction
    | FreezeAction
    | AdjustmentAction
    | SetRuleClassAction,
    Field(discriminator="action"),
]


class Proposal(Model):
    """What a maker signs (typ `jiaozi-mandate+jws`) and operators approve. It acts once, when M have approved."""

    ledger: str
    mandate: MandateRef
    action: Action
    reason: Annotated[str, Field(max_length=280)] = ""
    valid_until: Moment


class Approval(Model):
    """What an operator signs (typ `jiaozi-approval+jws`): the hash binds it to the proposal's exact text."""

    ledger: str
    mandate: MandateRef
    proposal_sha256: Hash32


class ProposalRequest(Model):
    proposal: Token


class ApprovalRequest(Model):
    approval: Token


class MandateStatus(StrEnum):
    PROPOSED = "proposed"
    EXECUTED = "executed"
    REFUSED = "refused"


class MandateView(Model):
    mandate: MandateRef
    status: MandateStatus
    action: Action
    reason: str
    maker: str
    """Thumbprint of the maker's key."""
    approvers: list[str]
    approvals_needed: int
    proposal_sha256: Hash32
    valid_until: Moment
    directive: int | None = None
    """Number of the journal's directive that carries proposal and approvals, once executed."""
    refusal: str | None = None


# --- the ledger itself -----------------------------------------------------------------------------------------------


class OperatorView(Model):
    name: str
    key: Jwk
    thumbprint: str


class ParticipantView(Model):
    participant: ParticipantRef
    name: str
    role: ParticipantRole
    key: Jwk
    quota_minor: Amount
    outstanding_minor: SignedAmount
    """Issued to it less redeemed by it."""


class LedgerView(Model):
    ledger: str
    currency: CurrencyCode
    time_zone: str
    operators: list[OperatorView]
    approvals_needed: int
    rule_classes: list[RuleClass]
    key_recovery_seconds: int
    issuance_account: AccountRef
    head_block: int
    head_seq: int
    log_key: str | None = None
    """The public key (vkey) of its transparency log; get it from more than one place before you believe it."""


class LogWitnessView(Model):
    name: str
    vkey: str


class LogView(Model):
    """The transparency log: what a reader needs to check its checkpoints (C2SP signed-note verifier keys)."""

    origin: str
    vkey: str
    size: int
    """Of the newest checkpoint."""
    witnesses: list[LogWitnessView]
    failure: str | None
    """Why it is no longer sealed, or which witness has refused it."""


class IncidentView(Model):
    """A witness refused a checkpoint: it has seen another history of this log than the ledger shows it."""

    witness: str
    """Its vkey."""
    block: int
    """Of the first checkpoint that it refused."""
    size: int
    detail: str
    noticed_at: Moment
    is_open: bool
    """The witness has cosigned no later block since."""
    operator: str | None
    """Thumbprint of the operator who acknowledged it; until then an open incident fails the ledger's health."""
    reason: str | None
    """What the operator found out and did."""
    acknowledged_at: Moment | None


class IncidentAcknowledgement(Model):
    witness: Annotated[str, Field(min_length=1, max_length=512)]
    block: Annotated[int, Field(ge=0, lt=2**63)]
    reason: Annotated[str, Field(min_length=1, max_length=1000)]
    """For everybody to read, for ever: what was found out and done."""


class CheckpointView(Model):
    size: int
    root: Hash32
    block: int
    """The last block whose transfers are in the tree."""
    block_commitment: Hash32
    """Of its hash, salted: it binds the ledger to the block and tells nobody what is in it (docs/transparency.md)."""
    sealed_at: Moment
    note: str
    """The signed note, with cosignatures."""


class InclusionProofView(Model):
    leaf_index: int
    leaf_hash: Hash32
    tree_size: int
    proof: list[Hash32]


class ConsistencyProofView(Model):
    old_size: int
    new_size: int
    proof: list[Hash32]


class SupplyView(Model):
    """I2: issued - redeemed = vaults + wallets + offline, held money included, at `as_of_seq`."""

    currency: CurrencyCode
    issued_minor: Amount
    redeemed_minor: Amount
    circulation_minor: SignedAmount
    vaults_minor: SignedAmount
    wallets_minor: SignedAmount
    offline_minor: SignedAmount
    """In the escrow accounts behind offline purses."""
    held_minor: Amount
    """Part of vaults and wallets that is reserved by holds."""
    identity_holds: bool
    as_of_block: int
    as_of_seq: int
    as_of: Moment


class BlockView(Model):
    """A block's header; `hash` = SHA-256 of its other members, `previous_hash` chains it. `issued` to `held` are totals
    in minor units after the block. What may be absent is shown to operators alone: digests and hashes have no salt, and
    the totals of two blocks tell what was moved between them. The public has the salted commitment of a block in the
    checkpoint that names it."""

    number: int
    booked_at: Moment
    first_seq: int
    transfer_count: int
    previous_hash: Hash32 | None = None
    hash: Hash32 | None = None
    epoch: int | None = None
    transfers_digest: Hash32 | None = None
    evidence_digest: Hash32 | None = None
    first_directive: int | None = None
    directive_count: int | None = None
    directives_digest: Hash32 | None = None
    first_account: AccountNumber | None = None
    account_count: int | None = None
    issued: Amount | None = None
    redeemed: Amount | None = None
    vaults: SignedAmount | None = None
    wallets: SignedAmount | None = None
    offline: SignedAmount | None = None
    held: Amount | None = None
    accounts_digest: Hash32 | None = None

    @staticmethod
    def of(header: BlockHeader, *, is_whole: bool) -> BlockView:
        """`is_whole`: with the members that only operators see."""
        members = {
            name: getattr(header, name)
            for name, member in BlockView.model_fields.items()
            if name != "booked_at" and (is_whole or member.is_required())
        }
        return BlockView(booked_at=from_micros(header.booked_at), **members)


class ClosingView(Model):
    """A closing, whose `statement` is the signed note that holders' balance proofs lead to (docs/balance-proofs.md)."""

    closing: int
    kind: Literal["day", "order"]
    day: date
    """The scheme's local day of the block."""
    block: int
    statement: str


# --- signed documents ------------------------------------------------------------------------------------------------


def sign_instruction(terms: TransferTerms, *, ledger: str, valid_until: datetime, key: SigningKey) -> str:
    """A compact JWS by which the debit account's owner authorises exactly these terms on exactly this ledger."""
    return jws.sign(spell_instruction(terms, ledger=ledger, valid_until=valid_until), key, typ=INSTRUCTION_TYP)


def spell_instruction(terms: TransferTerms, *, ledger: str, valid_until: datetime) -> bytes:
    """The payload of an instruction: canonical JSON (RFC 8785)."""
    if terms.kind is TransferKind.HOLD and terms.expires_at is None and terms.commit_hash and terms.abort_hash:
        hold = _HoldInstruction(ledger, _spelt_hold(terms), show_moment(valid_until))
        payload = _encode(hold)
        if b"\\" not in payload:  # an escape has more than one spelling: left to the canonical writer
            return payload
    return _canonical(SignedInstruction(ledger=ledger, terms=terms, valid_until=valid_until))


def spell_hold_terms(
    *,
    hold: UUID,
    debit: int,
    credit: int,
    amount_minor: int,
    currency: str,
    reference: UUID | None,
    commit_hash: bytes,
    abort_hash: bytes,
) -> bytes:
    """The terms of a conditional hold without a deadline, letter by letter as they stand in an instruction of it."""
    return _encode(
        _HoldTerms(
            abort_hash.hex(),
            str(amount_minor),
            commit_hash.hex(),
            ids.show_account(credit),
            currency,
            ids.show_account(debit),
            ids.show("trf", hold),
            TransferKind.HOLD.value,
            str(reference) if reference is not None else None,
        )
    )


def is_instruction_of(payload: bytes, *, ledger: str, terms: bytes) -> bool:
    """Whether an instruction's payload is letter by letter that of these terms (`spell_hold_terms`) on this ledger,
    until whatever time. False says nothing: it may be spelt otherwise, and is then read."""
    start = b'{"ledger":' + _encode(ledger) + b',"terms":' + terms + b',"valid_until":"'
    if not (payload.startswith(start) and payload.endswith(b'"}') and b"\\" not in payload):
        return False
    try:
        _moment_of(payload[len(start) : -2].decode("ascii"))
    except ValueError:
        return False
    return True


def _spelt_hold(terms: TransferTerms) -> _HoldTerms:
    if not (terms.debit and terms.credit and terms.amount_minor is not None and terms.commit_hash and terms.abort_hash):
        raise ValueError("a conditional hold has accounts, an amount and both hashes")
    return _HoldTerms(
        terms.abort_hash.hex(),
        str(terms.amount_minor),
        terms.commit_hash.hex(),
        ids.show_account(terms.credit),
        terms.currency,
        ids.show_account(terms.debit),
        ids.show("trf", terms.id),
        TransferKind.HOLD.value,
        str(terms.reference) if terms.reference is not None else None,
    )


def sign_proposal(proposal: Proposal, *, key: PrivateKey) -> str:
    return jws.sign(_canonical(proposal), key, typ=MANDATE_TYP)


def sign_approval(approval: Approval, *, key: PrivateKey) -> str:
    return jws.sign(_canonical(approval), key, typ=APPROVAL_TYP)


def sign_account_change(document: AccountChangeDocument, *, key: SigningKey) -> str:
    """The participant's signature."""
    return jws.sign(_canonical(document), key, typ=CHANGE_TYP)


def sign_account_consent(document: AccountChangeDocument, *, key: PrivateKey) -> str:
    """The holder's, over the same text."""
    return jws.sign(_canonical(document), key, typ=CONSENT_TYP)


def countersign_account_change(consent: str, *, key: SigningKey) -> str:
    """The participant's signature over exactly what a consent says. Read it first: `read_account_change`."""
    return jws.sign(jws.peek_payload(consent), key, typ=CHANGE_TYP)


def read_account_change(token: str) -> AccountChangeDocument:
    """What a change or a consent says, its signature unchecked. Raises: InvalidInstruction."""
    try:
        payload = jws.read(token).payload
        document = AccountChangeDocument.model_validate(strict_json.loads(payload, wire=True))
        if jws.canonical_json(strict_json.loads(payload)) != payload:
            raise InvalidInstruction("the payload must be canonical JSON, so that everybody reads the same")
    except jws.InvalidJws as error:
        raise InvalidInstruction(error.reason) from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = "/".join(str(part)[:64] for part in first["loc"])
        raise InvalidInstruction(f"{place}: {first['msg'][:200]}") from None
    except ProblemError as error:
        raise InvalidInstruction(f"the payload is no account change: {type(error).__name__}") from None
    return document


def _canonical(document: Model) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True, exclude_defaults=False))


# --- instructions, read ----------------------------------------------------------------------------------------------


class InvalidInstruction(ValueError):
    """The token is no signed instruction; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Instruction(msgspec.Struct, frozen=True, gc=False):
    """What a signed instruction says. Whether the debit account's owner has signed it is for `jws.check` to find."""

    unverified: jws.Unverified
    ledger: str
    id_number: int
    """The UUIDv7 as a number of 128 bits."""
    id_shown: str
    """The same with its prefix."""
    kind: TransferKind
    debit: AccountNumber | None
    credit: AccountNumber | None
    amount_minor: int | None
    currency: str
    reference_number: int
    """A UUID as a number; 0 = none."""
    valid_until: datetime
    commit_hash: bytes | None = None
    abort_hash: bytes | None = None
    """Of a conditional hold."""
    stated: TransferTerms | None = None
    """All terms as a model, if they were read as one: whatever is no plain transfer and no conditional hold without a
    deadline, or is not spelt canonically."""

    @property
    def id(self) -> UUID:
        return UUID(int=self.id_number)

    @property
    def terms(self) -> TransferTerms | None:
        """All terms, where they are not plain (a hold, a post, a void) or not spelt canonically."""
        if self.stated is not None or self.commit_hash is None:
            return self.stated
        return TransferTerms.model_construct(
            id=self.id,
            kind=self.kind,
            debit=self.debit,
            credit=self.credit,
            amount_minor=self.amount_minor,
            currency=self.currency,
            reference=UUID(int=self.reference_number) if self.reference_number else None,
            commit_hash=self.commit_hash,
            abort_hash=self.abort_hash,
        )

    @property
    def is_canonical(self) -> bool:
        """Whether the payload is canonical JSON, so that everybody reads the same."""
        payload = self.unverified.payload
        return payload == jws.canonical_json(strict_json.loads(payload))


class _QuickInstruction(Instruction, frozen=True, gc=False):
    """One of which the reading has shown that."""

    @property
    def is_canonical(self) -> bool:
        return True


def read_instruction(token: str) -> Instruction:
    """What the token asks for, its signature unchecked. Raises: InvalidInstruction.

    Two readers give one answer: a quick one takes plain transfers and conditional holds without a deadline in canonical
    JSON and nothing else; the models above with strict JSON have the last word on whatever it does not take.
    """
    try:
        unverified = jws.read(token)
    except jws.InvalidJws as error:
        raise InvalidInstruction(error.reason) from None
    try:
        return _read_hold(unverified) if b'"abort_hash"' in unverified.payload else _read_plain(unverified)
    except ValueError:
        return _read_any(unverified)


def _read_any(unverified: jws.Unverified) -> Instruction:
    try:
        document = SignedInstruction.model_validate(strict_json.loads(unverified.payload, wire=True))
    except (ValidationError, ProblemError) as error:
        raise InvalidInstruction(f"the payload is not an instruction: {type(error).__name__}") from None
    terms = document.terms
    return Instruction(
        unverified=unverified,
        ledger=document.ledger,
        id_number=terms.id.int,
        id_shown=ids.show("trf", terms.id),
        kind=terms.kind,
        debit=terms.debit,
        credit=terms.credit,
        amount_minor=terms.amount_minor,
        currency=terms.currency,
        reference_number=terms.reference.int if terms.reference is not None else 0,
        valid_until=document.valid_until,
        commit_hash=terms.commit_hash,
        abort_hash=terms.abort_hash,
        stated=terms,
    )


class _PlainTerms(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Members in the order of canonical JSON."""

    amount_minor: str
    credit: str
    currency: str
    debit: str
    id: str
    kind: str
    reference: str | None = None


class _PlainInstruction(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ledger: str
    terms: _PlainTerms
    valid_until: str


class _HoldTerms(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """Members in the order of canonical JSON."""

    abort_hash: str
    amount_minor: str
    commit_hash: str
    credit: str
    currency: str
    debit: str
    id: str
    kind: str
    reference: str | None = None


class _HoldInstruction(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    ledger: str
    terms: _HoldTerms
    valid_until: str


_PLAIN = msgspec.json.Decoder(_PlainInstruction)
_HOLD = msgspec.json.Decoder(_HoldInstruction)
_PLAIN_KINDS = {
    kind.value: kind for kind in TransferKind if kind not in (TransferKind.HOLD, TransferKind.POST, TransferKind.VOID)
}
_ACCOUNTS_CACHED_MAX = 100_000
_account_number = lru_cache(maxsize=_ACCOUNTS_CACHED_MAX)(ids.parse_account)
_moment_of = lru_cache(maxsize=_MOMENTS_CACHED_MAX)(_moment)


def _read_plain(unverified: jws.Unverified) -> Instruction:
    """Raises ValueError for whatever is not a plain transfer in canonical JSON.

    That the members encode back to the same bytes is the proof: sorted, no member twice, nothing that is not here, no
    white space. Escapes are left to the other reader, as two encoders may choose different ones.
    """
    payload = unverified.payload
    read = _PLAIN.decode(payload)
    if b"\\" in payload or _encode(read) != payload:
        raise ValueError("not canonical")
    terms = read.terms
    kind = _PLAIN_KINDS.get(terms.kind)
    if kind is None or _PLAIN_ID.fullmatch(terms.id) is None or _CURRENCY.fullmatch(terms.currency) is None:
        raise ValueError("not a plain transfer")
    return _QuickInstruction(
        unverified,
        read.ledger,
        _id_number(terms.id),
        terms.id,
        kind,
        _account_number(terms.debit),
        _account_number(terms.credit),
        money.parse_minor(terms.amount_minor),
        terms.currency,
        _reference_number(terms.reference),
        _moment_of(read.valid_until),
    )


def _read_hold(unverified: jws.Unverified) -> Instruction:
    """The same for a conditional hold without a deadline: what a settlement's leg is."""
    payload = unverified.payload
    read = _HOLD.decode(payload)
    if b"\\" in payload or _encode(read) != payload:
        raise ValueError("not canonical")
    hold = read.terms
    if hold.kind != TransferKind.HOLD.value or not (
        _PLAIN_ID.fullmatch(hold.id) and _CURRENCY.fullmatch(hold.currency)
    ):
        raise ValueError("not a plain hold")
    return _QuickInstruction(
        unverified,
        read.ledger,
        _id_number(hold.id),
        hold.id,
        TransferKind.HOLD,
        _account_number(hold.debit),
        _account_number(hold.credit),
        money.parse_minor(hold.amount_minor),
        hold.currency,
        _reference_number(hold.reference),
        _moment_of(read.valid_until),
        _hex32(hold.commit_hash),
        _hex32(hold.abort_hash),
    )


# --- genesis ---------------------------------------------------------------------------------------------------------


class GenesisOperator(Model):
    name: Annotated[str, Field(min_length=1, max_length=140)]
    key: PublicJwk


class Genesis(Model):
    """The first directive of a journal: which currency, and who may order what. A JSON file at first start."""

    ledger: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9.-]{1,62}$")]
    currency: CurrencyCode
    time_zone: Annotated[str, Field(max_length=64)]
    operators: Annotated[list[GenesisOperator], Field(min_length=1, max_length=32)]
    approvals_needed: Annotated[int, Field(ge=1, le=32)]
    rule_classes: Annotated[list[RuleClass], Field(max_length=250)] = []
    key_recovery_seconds: Annotated[int, Field(ge=0, le=365 * 86_400)] = KEY_RECOVERY_SECONDS
    """How long a holder's key must have been announced before it replaces lost ones without their consent."""

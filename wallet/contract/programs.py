"""Programs: what clients send and see, and what the parties sign.

Programs wear `prg_`, statements `stm_`, vouchers `vch_`, purchases with a voucher `spd_`. What the payer signs is one
hold a part (`ledger.contract.SignedInstruction`), each with the program's `reference`: the first 122 bits of the
SHA-256 of the terms' canonical JSON, as a UUIDv8. What every party signs, the payer's agreement among it, is a
`ProgramStatement` that names the whole hash. So no template, parameter or party can be exchanged behind a signature.
"""

from __future__ import annotations

import hashlib
from datetime import date
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from ledger.contract import (
    AccountRef,
    Amount,
    CurrencyCode,
    Hash32,
    Jwk,
    Model,
    Moment,
    ParticipantRef,
    PublicJwk,
    Reference,
    Token,
    TransferKind,
    TransferRef,
    TransferTerms,
)
from wallet.contract import id_type
from wallet.domain.program_templates import HOLDS_MAX, INSTALMENTS_MAX, VOUCHERS_MAX
from wallet.domain.programs import COUNT_MAX, LIST_MAX, MerchantCategory, MerchantPlace, Name
from wallet.domain.shown_text import SHOWN_TEXT

STATEMENT_TYP = "jiaozi-program-statement+jws"
SPEND_TYP = "jiaozi-voucher-spend+jws"
MERCHANT_TYP = "jiaozi-merchant+jws"
ORIGIN_TYP = "jiaozi-purchase-origin+jws"
SUPPOSED_MAX = 256
"""Statements that a preview supposes."""

ProgramRef = Annotated[UUID, *id_type("prg")]
StatementRef = Annotated[UUID, *id_type("stm")]
VoucherRef = Annotated[UUID, *id_type("vch")]
SpendRef = Annotated[UUID, *id_type("spd")]
TemplateName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,39}$", examples=["prepaid-drip"])]
TemplateVersion = Annotated[int, Field(ge=1, le=9_999)]
ParameterValue = (
    Annotated[str, Field(min_length=1, max_length=140, pattern=SHOWN_TEXT)]
    | Annotated[int, Field(ge=0, le=1_000_000)]
    | Annotated[list[Annotated[str, Field(max_length=40)]], Field(min_length=1, max_length=LIST_MAX)]
)


# --- templates -------------------------------------------------------------------------------------------------------


class TemplateView(Model):
    name: TemplateName
    version: TemplateVersion
    title: str
    kind: Literal["release", "voucher"]
    in_force: bool
    in_force_from: date
    sha256: Hash32
    """Of the canonical JSON of `template`."""
    template: dict[str, Any]
    signature: Token
    """This institution's JWS (typ `jiaozi-program-template+jws`) over name, version, date and hash."""


class TemplateList(Model):
    items: list[TemplateView]


# --- terms -----------------------------------------------------------------------------------------------------------


class Party(Model):
    """Who acts in a role. `key` signs his statements; a wallet of this institution may also use its present device."""

    role: Name
    key: PublicJwk
    account: AccountRef | None = None


class VoucherRequest(Model):
    voucher: VoucherRef
    recipient: PublicJwk
    """The key that spends it."""
    account: AccountRef
    """The recipient's, for change."""
    value_minor: Amount


class ProgramRequest(Model):
    """Terms to be made: a template, its parameters, the parties, and the amounts (or the vouchers)."""

    program: ProgramRef
    template: TemplateName
    version: TemplateVersion
    parameters: Annotated[dict[Name, ParameterValue], Field(max_length=32)]
    parties: Annotated[list[Party], Field(min_length=1, max_length=16)]
    amounts_minor: Annotated[list[Amount], Field(max_length=INSTALMENTS_MAX, default_factory=list)]
    vouchers: Annotated[list[VoucherRequest], Field(max_length=VOUCHERS_MAX, default_factory=list)]


class ProgramHold(Model):
    """One part: a conditional hold. `voucher` of a voucher's; else `number` is the instalment's."""

    hold: TransferRef
    number: Annotated[int, Field(ge=1, le=HOLDS_MAX)]
    credit: AccountRef
    amount_minor: Amount
    commit_hash: Hash32
    abort_hash: Hash32
    voucher: VoucherRef | None = None


class ProgramTerms(Model):
    """All that the parties agree on. Its canonical JSON's SHA-256 is what they sign."""

    program: ProgramRef
    ledger: str
    currency: CurrencyCode
    template: TemplateName
    version: TemplateVersion
    template_sha256: Hash32
    parameters: dict[Name, ParameterValue]
    parties: list[Party]
    vouchers: list[VoucherRequest]
    deadline: Moment
    expires_at: Moment
    """Of every hold: when the ledger itself returns what is left."""
    holds: list[ProgramHold]


def terms_sha256(terms: ProgramTerms) -> bytes:
    return hashlib.sha256(jws.canonical_json(terms.model_dump(mode="json", exclude_none=True))).digest()


def reference_of(sha256: bytes) -> UUID:
    """The UUIDv8 (RFC 9562 section 5.8) that every hold of the program carries: 122 bits of the terms' hash."""
    value = int.from_bytes(sha256[:16], "big")
    return UUID(int=value & ~(0xF << 76) & ~(0x3 << 62) | 8 << 76 | 2 << 62)


def hold_terms(terms: ProgramTerms) -> list[TransferTerms]:
    """Exactly what the payer signs, part by part. All at once: each names the hash of the whole terms."""
    payer = next(party.account for party in terms.parties if party.role == "payer")
    reference = reference_of(terms_sha256(terms))
    return [
        TransferTerms(
            id=hold.hold,
            kind=TransferKind.HOLD,
            debit=payer,
            credit=AccountNumber(hold.credit),
            amount_minor=hold.amount_minor,
            currency=terms.currency,
            reference=reference,
            expires_at=terms.expires_at,
            commit_hash=hold.commit_hash,
            abort_hash=hold.abort_hash,
        )
        for hold in terms.holds
    ]


# --- what parties sign -----------------------------------------------------------------------------------------------


class ProgramStatement(Model):
    """The payload of a statement (typ `jiaozi-program-statement+jws`): a party says that something is so.

    `event` is one of the template's for this role, `accept` (of a role that must accept), or `agree` (the payer's, with
    the funding). `ordinal` numbers what is repeated: the first delivery, the second.
    """

    statement: StatementRef
    program: ProgramRef
    terms_sha256: Hash32
    role: Name
    event: Name
    ordinal: Annotated[int, Field(ge=1, le=COUNT_MAX)] = 1


class VoucherSpend(Model):
    """The payload of a purchase (typ `jiaozi-voucher-spend+jws`), signed by the voucher's recipient."""

    spend: SpendRef
    voucher: VoucherRef
    merchant: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    reference: Reference | None = None
    """The merchant's own, for his books."""
    valid_until: Moment


class MerchantStatement(Model):
    """The payload (typ `jiaozi-merchant+jws`) by which another institution vouches for a merchant of its own."""

    participant: ParticipantRef
    account: AccountRef
    name: Annotated[str, Field(max_length=140, pattern=SHOWN_TEXT)]
    category: MerchantCategory
    place: MerchantPlace
    valid_until: Moment


class PurchaseOrigin(Model):
    """The payload (typ `jiaozi-purchase-origin+jws`) by which a voucher's institution says whose money a purchase was.

    On the ledger its vault stands in between, and a refund to that would be the institution's own money.
    """

    institution: ParticipantRef
    payment: TransferRef
    """The transfer that paid the merchant."""
    merchant: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    refund_account: AccountRef
    """Of the voucher's issuer: whom a refund credits."""


def sign_statement(statement: ProgramStatement, key: PrivateKey) -> str:
    return jws.sign(_canonical(statement), key, typ=STATEMENT_TYP)


def sign_spend(spend: VoucherSpend, key: PrivateKey) -> str:
    return jws.sign(_canonical(spend), key, typ=SPEND_TYP)


def sign_merchant(statement: MerchantStatement, key: PrivateKey) -> str:
    return jws.sign(_canonical(statement), key, typ=MERCHANT_TYP)


def _canonical(document: Model) -> bytes:
    return jws.canonical_json(document.model_dump(mode="json", exclude_none=True))


# --- requests and views ----------------------------------------------------------------------------------------------


class FundRequest(Model):
    program: ProgramRef
    agreement: Token
    """The payer's `ProgramStatement` with event `agree`."""
    instructions: Annotated[list[Token], Field(min_length=1, max_length=HOLDS_MAX)]
    """The payer's signed holds, one for each of the terms', in their order."""


class StatementRequest(Model):
    statement: Token


class SecretRequest(Model):
    """The counterpart's secret: knowing it is the authority, at the ledger as here."""

    secret: Hash32


class ProgramState(StrEnum):
    PROPOSED = "proposed"
    """Terms are made; nothing is reserved."""
    FUNDING = "funding"
    """The payer has signed; the ledger's answer is not known yet."""
    ACTIVE = "active"
    FINISHED = "finished"
    """Every part is released or returned."""
    REFUSING = "refusing"
    """The ledger refused the holds; late copies of them are being kept out."""
    REFUSED = "refused"


class HoldState(StrEnum):
    PROPOSED = "proposed"
    HELD = "held"
    RELEASING = "releasing"
    """Decided; the decided secret is shown here, so that anybody can post the hold at the ledger."""
    RETURNING = "returning"
    RELEASED = "released"
    RETURNED = "returned"


class VerdictView(Model):
    """A condition, node by node, as it stands now."""

    holds: bool
    because: str
    parts: list[VerdictView] = Field(default_factory=list)


class ProgramHoldView(Model):
    hold: TransferRef
    number: int
    credit: AccountRef
    amount_minor: Amount
    voucher: VoucherRef | None
    state: HoldState
    because: str | None
    """Why it was decided as it was."""
    decided_at: Moment | None
    ended_at: Moment | None
    secret: Hash32 | None
    """The decided secret, once there is a decision."""
    why_not_yet: str | None
    release: VerdictView | None
    returns: VerdictView | None


class StatementView(Model):
    statement: StatementRef
    role: Name
    event: Name
    ordinal: int
    taken_at: Moment
    token: Token


class TriggerView(Model):
    """Who may say what, and what was said."""

    event: Name
    title: str
    by: list[Name]


class ProgramView(Model):
    program: ProgramRef
    state: ProgramState
    template: TemplateName
    version: TemplateVersion
    terms: ProgramTerms
    terms_sha256: Hash32
    reference: Reference
    triggers: list[TriggerView]
    awaited: list[Name]
    """Roles that have yet to accept before the program can be funded."""
    funded_minor: Amount
    held_minor: Amount
    released_minor: Amount
    returned_minor: Amount
    """released + returned + held = funded, once the program is active."""
    funded_at: Moment | None
    holds: list[ProgramHoldView]
    statements: list[StatementView]
    refusal: str | None
    detail: str | None
    created_at: Moment


class ProgramSummary(Model):
    program: ProgramRef
    state: ProgramState
    template: TemplateName
    version: TemplateVersion
    payer: AccountRef
    funded_minor: Amount
    held_minor: Amount
    released_minor: Amount
    returned_minor: Amount
    deadline: Moment
    created_at: Moment


class SupposedStatement(Model):
    role: Name
    event: Name
    ordinal: Annotated[int, Field(ge=1, le=COUNT_MAX)] = 1
    at: Moment


class PreviewRequest(Model):
    """What happens if these statements are made, and no others."""

    program: ProgramRequest
    funded_at: Moment | None = None
    """Now, unless given."""
    statements: Annotated[list[SupposedStatement], Field(max_length=SUPPOSED_MAX, default_factory=list)]
    secret_shown: bool = False


class PreviewStep(Model):
    number: int
    amount_minor: Amount
    outcome: Literal["release", "return"]
    at: Moment
    because: str


class PartyForecast(Model):
    """`worst_minor` and `best_minor`: what the party is given, or is left, over all that the others may say."""

    role: Name
    worst_minor: Amount
    best_minor: Amount
    meaning: str


class PreviewView(Model):
    funded_minor: Amount
    deadline: Moment
    reserved_until: Moment
    """At the latest: the holds' own expiry in the ledger."""
    schedule: list[PreviewStep]
    parties: list[PartyForecast]
    exhaustive: bool
    """Every combination of statements was tried."""


# --- vouchers and merchants ------------------------------------------------------------------------------------------


class VoucherView(Model):
    voucher: VoucherRef
    program: ProgramRef
    issuer: AccountRef
    account: AccountRef
    value_minor: Amount
    left_minor: Amount
    spent_minor: Amount
    change_minor: Amount
    """Of what was used, what went back as change."""
    step_minor: Amount | None
    expires_at: Moment
    state: ProgramState


class SpendRequest(Model):
    spend: Token


class SpendState(StrEnum):
    INITIATED = "initiated"
    FINAL = "final"
    REFUSED = "refused"


class SpendView(Model):
    spend: SpendRef
    voucher: VoucherRef
    merchant: AccountRef
    amount_minor: Amount
    change_minor: Amount
    change_to: Literal["issuer", "recipient"]
    payment: TransferRef
    """The transfer that paid the merchant."""
    state: SpendState
    seq: int | None
    booked_at: Moment | None
    refusal: str | None
    detail: str | None
    created_at: Moment


class MerchantRequest(Model):
    account: AccountRef
    name: Annotated[str, Field(max_length=140, pattern=SHOWN_TEXT)]
    category: MerchantCategory
    place: MerchantPlace


class PurchaseOriginView(Model):
    origin: Token
    """A `PurchaseOrigin`, signed by the voucher's institution."""


class MerchantStatementRequest(Model):
    statement: Token


class MerchantView(Model):
    account: AccountRef
    name: str
    category: MerchantCategory
    place: MerchantPlace
    participant: ParticipantRef
    valid_until: Moment | None
    """Of another institution's statement."""
    statement: Token | None
    key: Jwk | None
    """The key that signed it."""

"""What clients may know of the settlement service: request and response models, refusals and their statuses.

Batches wear `bat_`, settlements `stl_`, statement files `stf_`, reconciliations `rec_`. Amounts are strings of digits
in minor units, rates exact fractions ("5123/10000"), times RFC 3339 UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Annotated
from uuid import UUID

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from kernel import ids
from kernel.errors import Refusal
from ledger.contract import (
    AccountRef,
    Amount,
    CurrencyCode,
    Model,
    Moment,
    ParticipantRef,
    SignedAmount,
    TransferRef,
)
from settlement.domain.escrow import Decision, LegState, SettlementState
from settlement.domain.refusals import AbortReason, SettlementRefusal

__all__ = [
    "BATCH_BYTES_MAX",
    "BATCH_INSTRUCTIONS_MAX",
    "STATUS_BY_REFUSAL",
    "AbortReason",
    "BatchView",
    "BreakView",
    "Decision",
    "InDoubtView",
    "LegState",
    "LegView",
    "QuoteView",
    "RateView",
    "ReconciliationView",
    "SettlementRefusal",
    "SettlementState",
    "SettlementView",
    "StatementFileView",
    "StatementRequest",
]

BATCH_BYTES_MAX = 32 * 1024 * 1024
"""20,000 instructions of pacs.009 at up to 1,600 bytes: what one request may carry."""
BATCH_INSTRUCTIONS_MAX = 20_000
STATEMENT_BYTES_MAX = 64 * 1024 * 1024

STATUS_BY_REFUSAL: Mapping[Refusal, int] = {
    SettlementRefusal.BATCH_INVALID: 422,
    SettlementRefusal.PARTICIPANT_UNKNOWN: 422,
    SettlementRefusal.SUBMITTER_NOT_PARTY: 403,
    SettlementRefusal.CURRENCY_NOT_SERVED: 422,
    SettlementRefusal.ACCOUNT_MISSING: 422,
    SettlementRefusal.QUOTE_NOT_FOUND: 422,
    SettlementRefusal.COUNTER_CURRENCY_AMBIGUOUS: 422,
    SettlementRefusal.COUNTER_AMOUNT_OUT_OF_RANGE: 422,
    SettlementRefusal.UETR_ALREADY_USED: 409,
    SettlementRefusal.BATCH_ID_REUSED: 409,
    SettlementRefusal.BATCH_NOT_FOUND: 404,
    SettlementRefusal.SETTLEMENT_NOT_FOUND: 404,
    SettlementRefusal.SETTLEMENT_DECIDED: 409,
    SettlementRefusal.ACCOUNT_NOT_IN_BATCH: 422,
    SettlementRefusal.STATEMENT_NOT_FOUND: 404,
    SettlementRefusal.STATEMENT_INVALID: 422,
    SettlementRefusal.STATEMENT_OF_ANOTHER_ACCOUNT: 422,
    SettlementRefusal.RECONCILIATION_NOT_FOUND: 404,
}
"""Held total by a test."""


def _parsed(prefix: str) -> BeforeValidator:
    return BeforeValidator(lambda value: ids.parse(prefix, value) if isinstance(value, str) else value)


def _shown(prefix: str) -> PlainSerializer:
    return PlainSerializer(lambda value: ids.show(prefix, value), return_type=str)


def _schema(prefix: str) -> WithJsonSchema:
    example = f"{prefix}_0198c7b2-6f1e-7c3a-9d55-f5a72f6f9b28"
    return WithJsonSchema({"type": "string", "pattern": ids.pattern(prefix), "examples": [example]})


BatchRef = Annotated[UUID, _parsed("bat"), _shown("bat"), _schema("bat")]
SettlementRef = Annotated[UUID, _parsed("stl"), _shown("stl"), _schema("stl")]
StatementFileRef = Annotated[UUID, _parsed("stf"), _shown("stf"), _schema("stf")]
ReconciliationRef = Annotated[UUID, _parsed("rec"), _shown("rec"), _schema("rec")]
RateText = Annotated[str, Field(pattern=r"^[0-9]+(/[0-9]+)?$", examples=["5123/10000"])]


class BatchView(Model):
    batch: BatchRef
    submitter: ParticipantRef
    message_id: str
    format: str
    content_sha256: str
    received_at: Moment
    started_at: Moment | None
    settlement_count: int
    counts: dict[SettlementState, int]
    """Settlements by state; every state is named."""
    is_finished: bool
    """Every settlement is settled or cancelled."""


class LegView(Model):
    number: int
    ledger: str
    payer: ParticipantRef
    payee: ParticipantRef
    debit: AccountRef
    credit: AccountRef
    amount_minor: Amount
    currency: CurrencyCode
    state: LegState
    hold: TransferRef
    detail: str
    ended_at: Moment | None


class SettlementView(Model):
    settlement: SettlementRef
    batch: BatchRef
    instruction_id: str
    end_to_end_id: str
    uetr: UUID
    debtor: ParticipantRef
    creditor: ParticipantRef
    value_date: date
    state: SettlementState
    rate: RateText | None
    """None if the parties agreed the counter amount themselves."""
    rate_provider: ParticipantRef | None
    remainder_minor: str | None
    """Exact counter amount minus the rounded one, in minor units, as a fraction: what rounding left with whom."""
    legs: list[LegView]
    decision: Decision | None
    finality_at: Moment | None
    """When COMMIT became durable: nothing can reverse the settlement after this."""
    decided_at: Moment | None
    reason: AbortReason | None
    detail: str
    waits_for: str
    ended_at: Moment | None


class InDoubtView(Model):
    """A settlement in which money may be reserved: why, and what it waits for."""

    settlement: SettlementRef
    batch: BatchRef
    uetr: UUID
    state: SettlementState
    decision: Decision | None
    waits_for: str
    since: Moment
    age_seconds: int
    legs: dict[str, LegState]
    """By `number ledger`."""


class RateView(Model):
    base: CurrencyCode
    counter: CurrencyCode
    rate: RateText
    provider: ParticipantRef
    valid_from: Moment
    valid_until: Moment


class QuoteView(Model):
    amount_minor: Amount
    base: CurrencyCode
    counter_amount_minor: Amount
    counter: CurrencyCode
    rate: RateText
    provider: ParticipantRef
    remainder_minor: str


class StatementRequest(Model):
    batch: BatchRef
    participant: ParticipantRef
    currency: CurrencyCode


class StatementFileView(Model):
    statement: StatementFileRef
    batch: BatchRef
    participant: ParticipantRef
    currency: CurrencyCode
    sequence_number: int
    entry_count: int
    file_name: str
    sha256: str
    created_at: Moment


class BreakView(Model):
    number: int
    type: str
    side: str | None
    our_references: list[str]
    their_references: list[str]
    our_amount_minor: Amount | None
    their_amount_minor: Amount | None
    difference_minor: SignedAmount | None
    """Theirs minus ours."""
    age_days: int
    bucket: str
    sentence: str


class ReconciliationView(Model):
    reconciliation: ReconciliationRef
    batch: BatchRef
    participant: ParticipantRef
    currency: CurrencyCode
    file_sha256: str
    as_of: date
    lines_ours: int
    lines_theirs: int
    matched: int
    breaks: list[BreakView]
    run_by: ParticipantRef
    created_at: Moment

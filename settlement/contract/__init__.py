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
    "ClosedGateView",
    "Decision",
    "ExplanationView",
    "InDoubtView",
    "LegState",
    "LegView",
    "QuoteView",
    "RateView",
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
    SettlementRefusal.RECALLED: 409,
    SettlementRefusal.BATCH_ID_REUSED: 409,
    SettlementRefusal.BATCH_NOT_FOUND: 404,
    SettlementRefusal.SETTLEMENT_NOT_FOUND: 404,
    SettlementRefusal.SETTLEMENT_DECIDED: 409,
    SettlementRefusal.ACCOUNT_NOT_IN_BATCH: 422,
    SettlementRefusal.STATEMENT_NOT_FOUND: 404,
    SettlementRefusal.STATEMENT_INVALID: 422,
    SettlementRefusal.STATEMENT_OF_ANOTHER_ACCOUNT: 422,
    SettlementRefusal.RECONCILIATION_NOT_FOUND: 404,
    SettlementRefusal.LEGS_INVALID: 422,
    SettlementRefusal.CALENDARS_OFF: 404,
    SettlementRefusal.CALENDAR_UNKNOWN: 422,
    SettlementRefusal.CALENDAR_NOT_COVERED: 422,
    SettlementRefusal.VALUE_DATE_PAST: 422,
    SettlementRefusal.VALUE_DATE_TOO_FAR: 422,
    SettlementRefusal.VALUE_DATE_NOT_BUSINESS_DAY: 422,
    SettlementRefusal.CUT_OFF_MISSED: 422,
    SettlementRefusal.NO_JOINT_BUSINESS_DAY: 422,
    SettlementRefusal.CLEAR_OUT_NOT_FOUND: 404,
    SettlementRefusal.CLEAR_OUT_STALE: 409,
    SettlementRefusal.BALANCE_UNAVAILABLE: 503,
    SettlementRefusal.COMPLIANCE_OFF: 404,
    SettlementRefusal.COMPLIANCE_DATA_INVALID: 422,
    SettlementRefusal.COMPLIANCE_DATA_MISSING: 422,
    SettlementRefusal.LEI_INVALID: 422,
    SettlementRefusal.LEI_REQUIRED: 422,
    SettlementRefusal.PURPOSE_REQUIRED: 422,
    SettlementRefusal.PURPOSE_NOT_ALLOWED: 422,
    SettlementRefusal.QUOTA_EXCEEDED: 422,
    SettlementRefusal.QUOTA_RATE_MISSING: 422,
    SettlementRefusal.COMPLIANCE_CASE_NOT_FOUND: 404,
    SettlementRefusal.COMPLIANCE_CASE_CLOSED: 409,
    SettlementRefusal.OFFICER_DECIDED: 409,
    SettlementRefusal.FX_QUOTE_INVALID: 422,
    SettlementRefusal.FX_QUOTE_STALE: 422,
    SettlementRefusal.FX_QUOTE_NOT_FOUND: 404,
    SettlementRefusal.FX_QUOTE_SUPERSEDED: 409,
    SettlementRefusal.FX_QUOTE_WITHDRAWN: 409,
    SettlementRefusal.FX_QUOTE_SIZE_USED: 409,
    SettlementRefusal.FX_TOO_MANY_QUOTES: 409,
    SettlementRefusal.FX_ORDER_INVALID: 422,
    SettlementRefusal.FX_NO_ROUTE: 422,
    SettlementRefusal.FX_LIMIT_NOT_MET: 422,
    SettlementRefusal.FX_MARKET_MOVED: 409,
    SettlementRefusal.FX_EXECUTION_NOT_FOUND: 404,
    SettlementRefusal.LIQUIDITY_NOT_QUEUED: 404,
    SettlementRefusal.LIQUIDITY_NOT_RECEIVED: 409,
    SettlementRefusal.LIQUIDITY_LIMIT_INVALID: 422,
    SettlementRefusal.LIQUIDITY_LIMIT_ABOVE_CAP: 422,
    SettlementRefusal.LIQUIDITY_POSITIONS_UNKNOWN: 503,
    SettlementRefusal.LIQUIDITY_SOLVER_MISSING: 422,
    SettlementRefusal.LIQUIDITY_RUN_NOT_FOUND: 404,
    SettlementRefusal.LIQUIDITY_RUN_EMPTY: 409,
    SettlementRefusal.LIQUIDITY_RUN_STALE: 409,
    SettlementRefusal.LIQUIDITY_RUN_UNDER_WAY: 409,
    SettlementRefusal.LIQUIDITY_RUN_OUT_OF_HOURS: 409,
    SettlementRefusal.LIQUIDITY_RUN_STARTED: 409,
    SettlementRefusal.LIQUIDITY_APPROVAL_INVALID: 422,
    SettlementRefusal.LIQUIDITY_APPROVALS_MISSING: 409,
    SettlementRefusal.MAPPING_INVALID: 422,
    SettlementRefusal.MAPPING_NOT_FOUND: 404,
    SettlementRefusal.SOURCE_NOT_FOUND: 404,
    SettlementRefusal.SOURCE_OF_ANOTHER_RELATION: 422,
    SettlementRefusal.RECONCILIATION_ID_REUSED: 409,
    SettlementRefusal.RULES_INVALID: 422,
    SettlementRefusal.BREAK_NOT_FOUND: 404,
    SettlementRefusal.MATCH_NOT_FOUND: 404,
    SettlementRefusal.OFFICER_UNKNOWN: 403,
    SettlementRefusal.DECISION_INVALID: 422,
    SettlementRefusal.DECISION_ID_REUSED: 409,
    SettlementRefusal.BREAK_HAS_MOVED_ON: 409,
    SettlementRefusal.BREAK_STATE_WRONG: 409,
    SettlementRefusal.FOUR_EYES: 403,
    SettlementRefusal.REPAIR_NOT_POSSIBLE: 422,
    SettlementRefusal.LINES_DO_NOT_BALANCE: 422,
    SettlementRefusal.STREAM_NOT_FOUND: 404,
    SettlementRefusal.STREAM_TOO_LARGE: 422,
    SettlementRefusal.TOO_MANY_STREAMS: 429,
    SettlementRefusal.STREAM_DIFFERS: 409,
    SettlementRefusal.STREAM_NOT_OPEN: 409,
    SettlementRefusal.STREAM_PART_MISPLACED: 409,
    SettlementRefusal.STREAM_PART_DIFFERS: 409,
    SettlementRefusal.RECALL_INVALID: 422,
    SettlementRefusal.RECALL_ID_REUSED: 409,
    SettlementRefusal.RECALL_NOT_FOUND: 404,
    SettlementRefusal.MESSAGE_VERSION_UNKNOWN: 422,
    SettlementRefusal.DAY_NOT_OVER: 409,
    SettlementRefusal.RELAY_OFF: 404,
    SettlementRefusal.NOTHING_TO_PROVE: 409,
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


class ClosedGateView(Model):
    """What keeps a received settlement from the engine."""

    kind: str
    reason: str
    not_before: Moment | None
    """When it may open by itself, where that is known."""


class ExplanationView(Model):
    """An operator's answer about a settlement that has not ended."""

    why: str
    """Why it stands where it stands, and whether money is reserved."""
    waits_for: list[str]
    """Each thing that is missing."""
    resolution: str
    """What will resolve it, and what a person can do."""
    needs_person: bool
    gates: list[ClosedGateView]


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
    explanation: ExplanationView | None = None
    """Of one settlement asked for by its id, if it has not ended; None in lists."""


class InDoubtView(Model):
    """A settlement that has not ended: why, what it waits for, and what will resolve it."""

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
    explanation: ExplanationView


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

"""Reconciliation on the wire: mappings, sources, runs, breaks with their histories, decisions, reports, the control.

Sources wear `src_`, reconciliations `rec_`, breaks `brk_`, officers' decisions `dec_`.
"""

from __future__ import annotations

from datetime import date, time
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from ledger.contract import Amount, CurrencyCode, Model, Moment, ParticipantRef, SignedAmount
from settlement.contract import BatchRef, ReconciliationRef, SettlementRef, _parsed, _schema, _shown
from settlement.domain.reconciliation import JOURNAL, AgeBucket, BreakType, MatchRule, Severity, Side, View
from settlement.domain.reconciliation.lifecycle import BreakState, DecisionKind, EventKind, RepairKind
from settlement.domain.reconciliation.mapping import COLUMNS, SKIPPED_LINES_MAX, DateFormat, Sign

SOURCE_BYTES_MAX = 64 * 1024 * 1024
"""A million lines of CSV or a quarter of that of camt.053; larger ones come by period."""

SourceRef = Annotated[UUID, _parsed("src"), _shown("src"), _schema("src")]
BreakRef = Annotated[UUID, _parsed("brk"), _shown("brk"), _schema("brk")]
DecisionRef = Annotated[UUID, _parsed("dec"), _shown("dec"), _schema("dec")]


def _is_not_the_record(name: str) -> str:
    if name == JOURNAL:
        raise ValueError(f"{JOURNAL} is the bridge's own record, not a counterparty")
    return name


Counterparty = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        examples=["BBBBAEAD"],
        json_schema_extra={"not": {"const": JOURNAL}},
    ),
    AfterValidator(_is_not_the_record),
]
"""Who sends the statements: a BIC, or any name that the participant gives it but that of the bridge's record."""
Word = Annotated[str, Field(min_length=1, max_length=64)]
Words = Annotated[list[Word], Field(min_length=1, max_length=16)]
Column = Annotated[str, Field(min_length=1, max_length=64)]


class TableMappingBody(Model):
    """How a counterparty's table is read. `columns`: what -> header."""

    columns: Annotated[dict[Annotated[str, Field(max_length=32)], Column], Field(max_length=len(COLUMNS))]
    sign: Sign = Sign.DIRECTION
    credit_words: Words = Field(default_factory=lambda: ["CRDT"])
    debit_words: Words = Field(default_factory=lambda: ["DBIT"])
    booked_words: Words = Field(default_factory=lambda: ["BOOK"])
    pending_words: Words = Field(default_factory=lambda: ["PDNG"])
    delimiter: Literal[",", ";", "\t", "|"] = ","
    encoding: Literal["utf-8", "windows-1252", "gb18030"] = "utf-8"
    decimal: Literal[".", ","] = "."
    grouping: Literal["", ",", ".", " ", "'"] = ""
    is_minor: bool = False
    date_format: DateFormat = DateFormat.ISO
    zone: Annotated[str, Field(max_length=64)] = "UTC"
    currency: CurrencyCode | None = None
    skip_lines: Annotated[int, Field(ge=0, le=SKIPPED_LINES_MAX)] = 0
    """Before the header."""


class MappingRequest(Model):
    participant: ParticipantRef
    counterparty: Counterparty
    mapping: TableMappingBody


class MappingView(Model):
    participant: ParticipantRef
    counterparty: str
    version: int
    mapping: TableMappingBody
    sha256: str
    created_by: str
    created_at: Moment


class SourceView(Model):
    source: SourceRef
    participant: ParticipantRef
    counterparty: str
    format: str
    mapping_version: int
    """0 = read as it is."""
    sha256: str
    byte_count: int
    line_count: int
    account: str | None
    currency: str | None
    statement_id: str | None
    sequence_number: int | None
    message: str | None
    """The version that a camt file is of."""
    is_schema_validated: bool | None
    """False of a version whose schema this service does not have; None of a table."""
    created_by: str
    created_at: Moment


class RulesBody(Model):
    """What may pass; the default lets nothing pass."""

    amount_minor_max: Annotated[int, Field(ge=0, le=10**12)] = 0
    value_days_max: Annotated[int, Field(ge=0, le=10)] = 0
    zone: Annotated[str, Field(max_length=64)] = "UTC"
    cut_off: time | None = None
    fee_minor_max: Annotated[int, Field(ge=0, le=10**12)] = 0
    fee_bps_max: Annotated[int, Field(ge=0, le=1_000)] = 0
    subset_lines_max: Annotated[int, Field(ge=0, le=6)] = 0
    days_off: Annotated[tuple[date, ...], Field(max_length=4_000)] = ()
    """Closed beside Saturdays and Sundays. With a cut-off and neither list given: those of the currency's calendar, if
    the bridge has calendars."""
    working_days: Annotated[tuple[date, ...], Field(max_length=4_000)] = ()
    """Saturdays and Sundays that are worked."""


class ReconciliationRequest(Model):
    """`reconciliation` is the caller's: the same id and content again is the same run. Without `our_source` our side is
    the bridge's record: of the batch, or of what was posted between `booked_from` and `booked_to`."""

    reconciliation: ReconciliationRef
    participant: ParticipantRef
    counterparty: Counterparty
    currency: CurrencyCode
    their_source: SourceRef
    our_source: SourceRef | None = None
    batch: BatchRef | None = None
    booked_from: Moment | None = None
    booked_to: Moment | None = None
    view: View = View.SAME_ACCOUNT
    rules: RulesBody = RulesBody()
    as_of: date | None = None


class BreakView(Model):
    id: BreakRef
    reconciliation: ReconciliationRef | None
    """The run that found it first; None of a break that the control found."""
    participant: ParticipantRef
    counterparty: str
    currency: str
    account: str
    type: BreakType
    side: Side | None
    also: list[BreakType]
    our_references: list[str]
    their_references: list[str]
    our_amount_minor: Amount | None
    their_amount_minor: Amount | None
    difference_minor: SignedAmount | None
    """Theirs minus ours."""
    gross_minor: dict[str, str]
    """By currency, never netted."""
    oldest: date
    age_days: int
    bucket: AgeBucket
    severity: Severity
    sentence: str
    state: BreakState
    sequence: int
    """Number of its last event: what a decision names as seen."""
    assignee: str | None
    created_at: Moment


class EventView(Model):
    sequence: int
    kind: EventKind
    actor: str
    at: Moment
    reason: str
    assignee: str | None
    decision: DecisionRef | None
    reconciliation: ReconciliationRef | None
    token: str | None
    """What the officer signed."""


class RepairView(Model):
    proposal: DecisionRef
    kind: RepairKind
    payer: ParticipantRef
    payee: ParticipantRef
    amount_minor: Amount
    currency: str
    maker: str
    checker: str | None
    settlement: SettlementRef | None
    proposed_at: Moment
    approved_at: Moment | None
    booked_at: Moment | None


class BreakDetailView(Model):
    found: BreakView
    history: list[EventView]
    repairs: list[RepairView]


class ReconciliationView(Model):
    reconciliation: ReconciliationRef
    batch: BatchRef | None
    participant: ParticipantRef
    counterparty: str
    currency: str
    account: str
    view: View
    our_source: SourceRef
    their_source: SourceRef
    their_sha256: str
    rules: RulesBody
    as_of: date
    lines_ours: int
    lines_theirs: int
    carried_ours: int
    carried_theirs: int
    matched: int
    break_count: int
    closed_count: int
    """Older breaks that this run has closed."""
    breaks: list[BreakView]
    """The first 500, in the order of the report; all by /v1/reconciliations/{id}/breaks."""
    result_sha256: str
    run_by: str
    created_at: Moment


class MatchView(Model):
    rule: MatchRule
    our_positions: list[int]
    their_positions: list[int]
    """From 0 in each source; beyond its last line: carried lines."""
    is_undone: bool
    difference_minor: SignedAmount


class DecisionRequest(Model):
    token: Annotated[str, Field(min_length=16, max_length=16 * 1024)]
    """A JWS by an officer's key over the decision; see docs/reconciliation.md."""


class ReportView(Model):
    batch: BatchRef
    participant: ParticipantRef
    currency: str
    value_date: date
    paid_legs: int
    paid_minor: str
    received_legs: int
    received_minor: str
    net_minor: str


class ControlBalanceView(Model):
    ledger: str
    account: str
    participant: ParticipantRef
    currency: str
    bridge_minor: str
    """What the bridge's posted legs add up to."""
    island_minor: str
    """What the island says of the same legs."""
    legs: int


class ControlView(Model):
    is_good: bool
    """No alarm is open."""
    alarms: list[BreakView]
    settlements_checked: int
    legs_checked: int
    checked_at: Moment | None
    balances: list[ControlBalanceView]


__all__ = [
    "SOURCE_BYTES_MAX",
    "BreakDetailView",
    "BreakRef",
    "BreakView",
    "ControlView",
    "DecisionKind",
    "DecisionRequest",
    "EventView",
    "MappingRequest",
    "MappingView",
    "MatchView",
    "ReconciliationRequest",
    "ReconciliationView",
    "RepairView",
    "ReportView",
    "RulesBody",
    "SourceRef",
    "SourceView",
    "TableMappingBody",
]

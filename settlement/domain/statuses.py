"""What a settlement's state and reason are called in ISO 20022: the status of a pacs.002 and the answer of a camt.029.

Codes are of the external code sets ExternalPaymentTransactionStatus1Code, ExternalStatusReason1Code and
ExternalPaymentCancellationRejection1Code. Tests hold the tables total. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from uuid import UUID

from settlement.domain.escrow import SettlementState
from settlement.domain.instructions import InstructionRefusal
from settlement.domain.refusals import AbortReason, SettlementRefusal

TEXT_LENGTH_MAX = 105
"""Max105Text: one line of additional information."""
TEXT_LINES_MAX = 3

NARRATIVE = "NARR"
"""The reason is in the text beside: no code of the set says it."""


class TransactionStatus(StrEnum):
    PENDING = "PDNG"
    """Taken in; nothing was asked of anybody yet."""
    IN_PROCESS = "ACSP"
    """Legs are being held or, once committed, posted."""
    COMPLETED = "ACSC"
    """Every leg is posted."""
    REJECTED = "RJCT"
    """It will never settle."""


STATUS_BY_STATE: dict[SettlementState, TransactionStatus] = {
    SettlementState.RECEIVED: TransactionStatus.PENDING,
    SettlementState.PREPARED: TransactionStatus.IN_PROCESS,
    SettlementState.COMMITTED: TransactionStatus.IN_PROCESS,
    SettlementState.SETTLED: TransactionStatus.COMPLETED,
    SettlementState.ABORTED: TransactionStatus.REJECTED,
    SettlementState.CANCELLED: TransactionStatus.REJECTED,
}

CODE_BY_ABORT: dict[AbortReason, str] = {
    AbortReason.AUTHORISATION_REFUSED: "AG01",
    AbortReason.AUTHORISATION_DIFFERS: "DS04",
    AbortReason.LEG_REFUSED: "ED05",
    AbortReason.HOLD_DIFFERS: "ED05",
    AbortReason.PRESUMED: "ED05",
    AbortReason.OPERATOR: "DS02",
    AbortReason.NO_ANSWER: "AB06",
    AbortReason.COMPLIANCE: "RR04",
    AbortReason.CALENDAR: "TM01",
}
"""TransactionForbidden, OrderRejected, SettlementFailed (thrice), OrderCancelled, TimeoutInstructedAgent,
RegulatoryReason, InvalidCutOffTime."""

CODE_BY_LEDGER_REFUSAL = {"insufficient-funds": "AM04", "account-frozen": "AC06", "account-closed": "AC04"}
"""A ledger's refusal of a leg is named in the settlement's detail: InsufficientFunds, BlockedAccount, ClosedAccount."""

CODE_BY_INSTRUCTION_REFUSAL: dict[InstructionRefusal, str] = {
    InstructionRefusal.FILE_TOO_LARGE: "FF01",
    InstructionRefusal.ENCODING_NOT_UTF8: "FF01",
    InstructionRefusal.DOCTYPE_FORBIDDEN: "FF01",
    InstructionRefusal.NOT_XML: "FF01",
    InstructionRefusal.WRONG_NAMESPACE: "FF01",
    InstructionRefusal.SCHEMA_INVALID: "FF01",
    InstructionRefusal.PART_TOO_LARGE: "FF01",
    InstructionRefusal.APPLICATION_HEADER_INVALID: "FF01",
    InstructionRefusal.SETTLEMENT_METHOD_UNSUPPORTED: "AG03",
    InstructionRefusal.NUL_CHARACTER: "FF01",
    InstructionRefusal.CSV_MALFORMED: "FF01",
    InstructionRefusal.CSV_COLUMN_DUPLICATE: "FF01",
    InstructionRefusal.CSV_COLUMN_UNKNOWN: "FF01",
    InstructionRefusal.CSV_COLUMN_MISSING: "FF01",
    InstructionRefusal.NO_INSTRUCTIONS: "FF01",
    InstructionRefusal.TOO_MANY_INSTRUCTIONS: "AM18",
    InstructionRefusal.FIELD_TOO_LONG: "FF01",
    InstructionRefusal.FORMULA_TEXT: "FF01",
    InstructionRefusal.FIELD_MISSING: NARRATIVE,
    InstructionRefusal.REFERENCE_INVALID: NARRATIVE,
    InstructionRefusal.UETR_INVALID: NARRATIVE,
    InstructionRefusal.PARTICIPANT_INVALID: "RC01",
    InstructionRefusal.LEI_INVALID: NARRATIVE,
    InstructionRefusal.CHARACTER_NOT_ALLOWED: NARRATIVE,
    InstructionRefusal.CUSTOMER_DATA_INVALID: NARRATIVE,
    InstructionRefusal.CHARGE_BEARER_INVALID: NARRATIVE,
    InstructionRefusal.AGENT_UNSUPPORTED: "AGNT",
    InstructionRefusal.PARTICIPANTS_MUST_DIFFER: "AG01",
    InstructionRefusal.CURRENCY_UNKNOWN: "AM11",
    InstructionRefusal.AMOUNT_INVALID: "AM12",
    InstructionRefusal.AMOUNT_TOO_MANY_DECIMALS: "AM12",
    InstructionRefusal.AMOUNT_ZERO: "AM01",
    InstructionRefusal.AMOUNT_TOO_LARGE: "AM02",
    InstructionRefusal.COUNTER_TERMS_INVALID: NARRATIVE,
    InstructionRefusal.COUNTER_CURRENCY_SAME: "AM03",
    InstructionRefusal.VALUE_DATE_INVALID: "DT01",
    InstructionRefusal.PRIORITY_UNKNOWN: NARRATIVE,
    InstructionRefusal.DUPLICATE_INSTRUCTION_ID: "AM05",
    InstructionRefusal.DUPLICATE_UETR: "AM05",
    InstructionRefusal.MESSAGE_ID_REUSED: "DU01",
    InstructionRefusal.NUMBER_OF_TRANSACTIONS_MISMATCH: "AM18",
    InstructionRefusal.CONTROL_SUM_MISMATCH: "AM10",
    InstructionRefusal.TOTAL_AMOUNT_MISMATCH: "AM10",
}
"""InvalidFileFormat, TransactionNotSupported, InvalidNumberOfTransactions, BankIdentifierIncorrect, IncorrectAgent,
TransactionForbidden, InvalidTransactionCurrency, InvalidAmount, ZeroAmount, NotAllowedAmount, NotAllowedCurrency,
InvalidDate, Duplication, DuplicateMessageID, InvalidControlSum; the rest are narrative."""

CODE_BY_REFUSAL: dict[str, str] = {refusal.value: code for refusal, code in CODE_BY_INSTRUCTION_REFUSAL.items()} | {
    SettlementRefusal.PARTICIPANT_UNKNOWN.value: "RC01",
    SettlementRefusal.SUBMITTER_NOT_PARTY.value: "AG01",
    SettlementRefusal.CURRENCY_NOT_SERVED.value: "AM03",
    SettlementRefusal.ACCOUNT_MISSING.value: "AC01",
    SettlementRefusal.COUNTER_AMOUNT_OUT_OF_RANGE.value: "AM02",
    SettlementRefusal.UETR_ALREADY_USED.value: "AM05",
    SettlementRefusal.RECALLED.value: "DS02",
    SettlementRefusal.VALUE_DATE_PAST.value: "DT01",
    SettlementRefusal.VALUE_DATE_TOO_FAR.value: "DT04",
    SettlementRefusal.VALUE_DATE_NOT_BUSINESS_DAY.value: "DT01",
    SettlementRefusal.CUT_OFF_MISSED.value: "TM01",
}
"""Of a line refused at intake, by the refusal's code; what is not named here is narrative (`code_of_refusal`)."""


@dataclass(frozen=True, slots=True)
class PaymentStatus:
    """One instruction's status. Ids are the sender's own; None where the line had none that could be read."""

    status: TransactionStatus
    instruction_id: str | None
    end_to_end_id: str | None
    uetr: UUID | None
    reason: str | None = None
    """Of a rejected one: a code of at most four characters."""
    texts: tuple[str, ...] = ()
    settled_on: date | None = None
    """The day (UTC) on which the last leg was posted."""


@dataclass(frozen=True, slots=True)
class StatusReport:
    """A pacs.002, or one page of it."""

    message_id: str
    created_at: datetime
    original_message_id: str
    original_message: str
    """Name and version of the original; of a CSV file "csv"."""
    original_count: int | None
    counts: dict[TransactionStatus, int]
    """Of the whole original, not of the page."""
    items: tuple[PaymentStatus, ...]
    group_reason: str | None = None
    """Of a file that was refused whole: then the group's status is RJCT."""
    group_texts: tuple[str, ...] = ()


class CancellationStatus(StrEnum):
    """Source: CancellationIndividualStatus1Code."""

    ACCEPTED = "ACCR"
    REJECTED = "RJCR"
    PENDING = "PDCR"


class Confirmation(StrEnum):
    """The answer to a recall as a whole. Source: ExternalInvestigationExecutionConfirmation1Code."""

    CANCELLED = "CNCL"
    PARTLY = "PECR"
    PENDING = "PDCR"
    REJECTED = "RJCR"


NO_ORIGINAL = "NOOR"
"""NoOriginalTransactionReceived."""
AGENT_DECISION = "AGNT"
"""The agent cannot give it back: the set has no code for settlement finality, which the text beside names."""


def cancellation_of(state: SettlementState, *, was_open: bool) -> CancellationStatus:
    """Where a recall of a settlement in this state stands."""
    match state:
        case SettlementState.COMMITTED | SettlementState.SETTLED:
            return CancellationStatus.REJECTED
        case SettlementState.CANCELLED | SettlementState.ABORTED:
            return CancellationStatus.ACCEPTED
        case SettlementState.RECEIVED | SettlementState.PREPARED:
            return CancellationStatus.PENDING if was_open else CancellationStatus.REJECTED


def confirmation_of(items: list[CancellationStatus]) -> Confirmation:
    """Pending while one is; else what all have in common, or partly."""
    if CancellationStatus.PENDING in items:
        return Confirmation.PENDING
    if all(item is CancellationStatus.ACCEPTED for item in items):
        return Confirmation.CANCELLED
    return Confirmation.PARTLY if CancellationStatus.ACCEPTED in items else Confirmation.REJECTED


def code_of_refusal(refusal: str) -> str:
    """The reason code of a line that was refused at intake."""
    return CODE_BY_REFUSAL.get(refusal, NARRATIVE)


def code_of_abort(reason: AbortReason, detail: str) -> str:
    """The reason code of an aborted settlement; a ledger's own refusal is looked for in the detail."""
    if reason is AbortReason.LEG_REFUSED:
        for refusal, code in CODE_BY_LEDGER_REFUSAL.items():
            if refusal in detail:
                return code
    return CODE_BY_ABORT[reason]


_OUTSIDE_X = re.compile(r"[^0-9a-zA-Z/\-?:().,'+ ]")


def texts_of(text: str) -> tuple[str, ...]:
    """A sentence as lines of additional information: FIN X characters, 105 a line, three lines at most."""
    plain = " ".join(_OUTSIDE_X.sub(" ", text).split())
    lines = [plain[start : start + TEXT_LENGTH_MAX].strip() for start in range(0, len(plain), TEXT_LENGTH_MAX)]
    return tuple(line for line in lines[:TEXT_LINES_MAX] if line)

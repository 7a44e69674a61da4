"""Every way the settlement service says no, and every reason for which a settlement is aborted."""

from __future__ import annotations

from enum import StrEnum

from kernel.errors import Refusal


class SettlementRefusal(Refusal):
    """Refusals of requests, in order of precedence: the batch as a file, its lines, its ids, then what is looked up."""

    BATCH_INVALID = "batch-invalid", False, "The batch was refused whole; `problems` names each fault."
    PARTICIPANT_UNKNOWN = "participant-unknown", True, "A participant is not registered with this bridge."
    SUBMITTER_NOT_PARTY = "submitter-not-party", False, "Only the debtor, the creditor or the bridge may submit this."
    CURRENCY_NOT_SERVED = "currency-not-served", True, "No ledger of this bridge has the currency."
    ACCOUNT_MISSING = "account-missing", True, "A participant has no account on the ledger of a leg's currency."
    QUOTE_NOT_FOUND = "quote-not-found", True, "No rate is quoted for this pair of currencies now."
    COUNTER_CURRENCY_AMBIGUOUS = "counter-currency-ambiguous", False, "Name the counter currency: several are quoted."
    COUNTER_AMOUNT_OUT_OF_RANGE = "counter-amount-out-of-range", False, "The counter amount is nothing or too large."
    UETR_ALREADY_USED = "uetr-already-used", False, "Another batch has this UETR; a payment is settled once."
    RECALLED = "recalled", False, "The payment was recalled before it was booked."
    BATCH_ID_REUSED = "batch-id-reused", False, "The message id was used with other content."
    BATCH_NOT_FOUND = "batch-not-found", True, "There is no such batch."
    SETTLEMENT_NOT_FOUND = "settlement-not-found", True, "There is no such settlement."
    SETTLEMENT_DECIDED = "settlement-decided", False, "The settlement is decided; a decision is for ever (I5)."
    ACCOUNT_NOT_IN_BATCH = (
        "account-not-in-batch",
        False,
        "The batch has no posted leg of this participant and currency.",
    )
    STATEMENT_NOT_FOUND = "statement-not-found", True, "There is no such statement."
    STATEMENT_INVALID = "statement-invalid", False, "The statement file was refused; `problems` names each fault."
    STATEMENT_OF_ANOTHER_ACCOUNT = (
        "statement-of-another-account",
        False,
        "The statement is not of the participant's account in this currency.",
    )
    RECONCILIATION_NOT_FOUND = "reconciliation-not-found", True, "There is no such reconciliation."
    LEGS_INVALID = "legs-invalid", False, "These cannot be the legs of one settlement; the detail says why."
    CALENDARS_OFF = "calendars-off", False, "This bridge has no calendars: it settles at all hours."
    CALENDAR_UNKNOWN = "calendar-unknown", False, "The bridge has no calendar of a currency."
    CALENDAR_NOT_COVERED = "calendar-not-covered", True, "A calendar's days off are not known for that date yet."
    VALUE_DATE_PAST = "value-date-past", False, "The value date is over."
    VALUE_DATE_TOO_FAR = "value-date-too-far", True, "The value date is further away than this service plans."
    VALUE_DATE_NOT_BUSINESS_DAY = (
        "value-date-not-business-day",
        False,
        "The value date is no business day of every ledger.",
    )
    CUT_OFF_MISSED = "cut-off-missed", False, "The value date's cut-off is over."
    NO_JOINT_BUSINESS_DAY = "no-joint-business-day", False, "The ledgers share no business day."
    CLEAR_OUT_NOT_FOUND = "clear-out-not-found", True, "There is no such clear-out."
    CLEAR_OUT_STALE = (
        "clear-out-stale",
        False,
        "The clear-out is approved already, or its balances have changed; make a new one.",
    )
    BALANCE_UNAVAILABLE = (
        "balance-unavailable",
        True,
        "A ledger did not show the balances that a clear-out starts from.",
    )
    COMPLIANCE_OFF = "compliance-off", False, "This bridge has no compliance policy."
    COMPLIANCE_DATA_INVALID = (
        "compliance-data-invalid",
        False,
        "A field about the ultimate parties is not in its standard's shape.",
    )
    COMPLIANCE_DATA_MISSING = (
        "compliance-data-missing",
        False,
        "The policy needs a field about the ultimate parties that is absent.",
    )
    LEI_INVALID = "lei-invalid", False, "The check digits of an LEI (ISO 17442) are wrong."
    LEI_REQUIRED = "lei-required", False, "An organisation's payment of this amount needs its LEI."
    PURPOSE_REQUIRED = "purpose-required", False, "Payments in this currency need a purpose code."
    PURPOSE_NOT_ALLOWED = "purpose-not-allowed", False, "The purpose code is not allowed in this currency."
    QUOTA_EXCEEDED = "quota-exceeded", True, "The payment is more than what is left of the resident's annual quota."
    QUOTA_RATE_MISSING = "quota-rate-missing", True, "No rate says what the payment counts towards the quota."
    COMPLIANCE_CASE_NOT_FOUND = "compliance-case-not-found", True, "There is no such compliance case."
    COMPLIANCE_CASE_CLOSED = "compliance-case-closed", False, "The compliance case is closed."
    OFFICER_DECIDED = "officer-decided", False, "This officer has given another verdict already; a verdict stays."
    FX_QUOTE_INVALID = "fx-quote-invalid", False, "The quote cannot stand in the market; the detail says why."
    FX_QUOTE_STALE = "fx-quote-stale", False, "The quote was signed too long ago, or has expired: sign a fresh one."
    FX_QUOTE_NOT_FOUND = "fx-quote-not-found", True, "There is no such quote of this provider."
    FX_QUOTE_SUPERSEDED = "fx-quote-superseded", False, "The same or a later revision of this quote stands already."
    FX_QUOTE_WITHDRAWN = "fx-quote-withdrawn", False, "The quote was withdrawn; a new one has a new id."
    FX_QUOTE_SIZE_USED = "fx-quote-size-used", False, "Quotes are firm: a size cannot fall below what is used of it."
    FX_TOO_MANY_QUOTES = "fx-too-many-quotes", True, "The provider or the pair has as many live quotes as it may have."
    FX_ORDER_INVALID = "fx-order-invalid", False, "The market cannot do this; the detail says why."
    FX_NO_ROUTE = "fx-no-route", True, "No way through the market can do the whole amount now."
    FX_LIMIT_NOT_MET = "fx-limit-not-met", True, "The best execution now is worse than the customer's limit."
    FX_MARKET_MOVED = "fx-market-moved", True, "Quotes changed faster than they could be locked; repeat the request."
    FX_EXECUTION_NOT_FOUND = "fx-execution-not-found", True, "There is no such execution."
    LIQUIDITY_NOT_QUEUED = "liquidity-not-queued", True, "The settlement is not in the queue."
    LIQUIDITY_NOT_RECEIVED = "liquidity-not-received", False, "The settlement has begun, or a run has it."
    LIQUIDITY_LIMIT_INVALID = "liquidity-limit-invalid", False, "There cannot be such a limit; the detail says why."
    LIQUIDITY_LIMIT_ABOVE_CAP = "liquidity-limit-above-cap", False, "The limit is above the operator's cap."
    LIQUIDITY_POSITIONS_UNKNOWN = (
        "liquidity-positions-unknown",
        True,
        "A ledger did not show what the participants have; a run starts from that.",
    )
    LIQUIDITY_SOLVER_MISSING = (
        "liquidity-solver-missing",
        False,
        "The service was installed without the solver that optimising runs need.",
    )
    LIQUIDITY_RUN_NOT_FOUND = "liquidity-run-not-found", True, "There is no such run."
    LIQUIDITY_RUN_EMPTY = "liquidity-run-empty", False, "The run has nothing to settle, or nothing that moves money."
    LIQUIDITY_RUN_STALE = (
        "liquidity-run-stale",
        False,
        "What the preview chose is not queued any more, or limits leave less than then; preview again.",
    )
    LIQUIDITY_RUN_UNDER_WAY = (
        "liquidity-run-under-way",
        True,
        "Another run is under way: limits are counted when it is decided.",
    )
    LIQUIDITY_RUN_OUT_OF_HOURS = (
        "liquidity-run-out-of-hours",
        True,
        "The ledgers of the run are not open together now; the detail says when.",
    )
    LIQUIDITY_RUN_STARTED = "liquidity-run-started", False, "The run was started before."
    LIQUIDITY_APPROVAL_INVALID = "liquidity-approval-invalid", False, "The approval is not one; the detail says why."
    LIQUIDITY_APPROVALS_MISSING = (
        "liquidity-approvals-missing",
        True,
        "A run that breaks the queue's order needs two persons' approvals.",
    )
    MAPPING_INVALID = "mapping-invalid", False, "The mapping could not be read in one way only."
    MAPPING_NOT_FOUND = "mapping-not-found", True, "No such version of a mapping is kept for this counterparty."
    SOURCE_NOT_FOUND = "source-not-found", True, "There is no such source."
    SOURCE_OF_ANOTHER_RELATION = (
        "source-of-another-relation",
        False,
        "The sources are not of the relation to be reconciled.",
    )
    RECONCILIATION_ID_REUSED = "reconciliation-id-reused", False, "The id was used for another reconciliation."
    RULES_INVALID = "rules-invalid", False, "A tolerance or a time zone is out of bounds."
    BREAK_NOT_FOUND = "break-not-found", True, "There is no such break."
    MATCH_NOT_FOUND = "match-not-found", False, "The run has no such match, or it was undone before."
    OFFICER_UNKNOWN = "officer-unknown", True, "The decision is not signed by an officer registered for this."
    DECISION_INVALID = "decision-invalid", False, "The decision is not complete, or not what its kind takes."
    DECISION_ID_REUSED = "decision-id-reused", False, "The decision's id was used for another decision."
    BREAK_HAS_MOVED_ON = "break-has-moved-on", False, "Something happened to the break since; look, then decide anew."
    BREAK_STATE_WRONG = "break-state-wrong", False, "The break's state does not allow this decision."
    FOUR_EYES = "four-eyes", False, "Another officer must approve what one has proposed."
    REPAIR_NOT_POSSIBLE = "repair-not-possible", False, "The adjustment cannot be booked as proposed."
    LINES_DO_NOT_BALANCE = "lines-do-not-balance", False, "The lines of both sides do not add up to the same."
    STREAM_NOT_FOUND = "stream-not-found", True, "There is no such stream."
    STREAM_TOO_LARGE = "stream-too-large", False, "The file is empty or larger than a stream may be."
    TOO_MANY_STREAMS = "too-many-streams", True, "The submitter has as many unfinished streams as it may have."
    STREAM_DIFFERS = "stream-differs", False, "The file is not the one that was announced under its digest."
    STREAM_NOT_OPEN = "stream-not-open", False, "The stream takes no parts any more and cannot be withdrawn."
    STREAM_PART_MISPLACED = "stream-part-misplaced", True, "Parts come in order: the detail says from where to go on."
    STREAM_PART_DIFFERS = "stream-part-differs", False, "Other bytes are stored at this place of the file."
    RECALL_INVALID = "recall-invalid", False, "The recall was refused; the detail says why."
    RECALL_ID_REUSED = "recall-id-reused", False, "The assignment id was used with other content."
    RECALL_NOT_FOUND = "recall-not-found", True, "There is no such recall."
    MESSAGE_VERSION_UNKNOWN = "message-version-unknown", False, "This service does not write this version."
    DAY_NOT_OVER = "day-not-over", True, "The day's last settlements may still be posted: ask again later."
    RELAY_OFF = "relay-off", False, "This service keeps no headers of islands, so it proves nothing."
    NOTHING_TO_PROVE = "nothing-to-prove", True, "The settlement holds nothing on any island, by itself, so far."


class AbortReason(StrEnum):
    """Why a settlement was aborted; recorded with the decision."""

    AUTHORISATION_REFUSED = "authorisation-refused"
    """A payer's institution did not sign its leg."""
    AUTHORISATION_DIFFERS = "authorisation-differs"
    """What the institution signed is not what it was asked to sign."""
    LEG_REFUSED = "leg-refused"
    """A ledger refused a leg's hold."""
    HOLD_DIFFERS = "hold-differs"
    """A hold with the leg's id stands on the ledger with other terms than ours: it must not be counted as held."""
    PRESUMED = "presumed-abort"
    """The engine that prepared it ended before it decided."""
    OPERATOR = "operator"
    """The bridge's operator ended it before a decision."""
    NO_ANSWER = "no-answer"
    """An institution or a ledger did not answer for so long that the money of the others should not wait."""
    COMPLIANCE = "compliance-refused"
    """A screen or an officer ended it while it was received: nobody was asked for anything."""
    CALENDAR = "cut-off-missed"
    """It was held up past its value date, and is not to be rolled to another."""

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

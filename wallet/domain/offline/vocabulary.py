"""Every way in which a purse, or the service at sync, refuses an offline message; in order of precedence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from kernel.errors import Refusal


class PurseRefusal(Refusal):
    """`transient`: may the identical message be taken later (after a sync, a correction of the clock, more funds)?"""

    MESSAGE_INVALID = "message-invalid", False, "This is no offline message, or a damaged one."
    CERTIFICATE_INVALID = "certificate-invalid", False, "A certificate is not signed by the institution."
    CERTIFICATE_EXPIRED = "certificate-expired", False, "A certificate is not valid at this time; sync."
    DEVICE_REVOKED = "device-revoked", False, "A device in this payment is on the institution's revocation list."
    SIGNATURE_INVALID = "purse-signature-invalid", False, "A signature does not verify under its certificate's key."
    CHAIN_BROKEN = "chain-broken", False, "The evidence does not lead from a funding to the payer."
    CAP_EXCEEDED = "purse-cap-exceeded", False, "The amount is above a cap of a certificate."
    HOPS_EXCEEDED = "hops-exceeded", False, "The money has passed through as many purses as it may; sync."
    COUNTER_EXHAUSTED = "counter-exhausted", False, "The purse has made all its payments; get a new certificate."
    DOUBLE_SPEND = "double-spend", False, "A device has signed two payments that exclude each other."
    NOT_FOR_THIS_PURSE = "not-for-this-purse", False, "The message is for another purse."
    INVOICE_UNKNOWN = "invoice-unknown", False, "The payment answers no open invoice of this purse."
    INVOICE_EXPIRED = "invoice-expired", False, "The invoice is too old, or from the future; ask for another one."
    AMOUNT_MISMATCH = "amount-mismatch", False, "The payment is not the amount of the invoice."
    FUNDS_INSUFFICIENT = "purse-funds-insufficient", True, "The purse does not hold that much that can be spent now."
    PURSE_FULL = "purse-full", True, "The purse would hold more than its cap."
    TOO_MUCH_UNSYNCED = "too-much-unsynced", True, "The purse keeps too many messages; sync first."
    PURSE_UNKNOWN = "purse-unknown", False, "No purse of this institution has such a certificate."
    PURSE_HELD = (
        "purse-held",
        True,
        "The device was caught double spending: the rest of its purse is held for what it owes until it is settled.",
    )
    PURSE_CLOSED = "purse-closed", False, "The payer's purse was settled after its expiry and grace; too late."


@dataclass(frozen=True, slots=True)
class Refused:
    refusal: PurseRefusal
    detail: str = ""


class Disposition(IntEnum):
    """Where the payee wants the money."""

    PURSE = 0
    """In the purse: it can be spent onward, offline."""
    ACCOUNT = 1
    """In the wallet's account: it ends here, and whoever syncs first, payer or payee, makes it arrive."""

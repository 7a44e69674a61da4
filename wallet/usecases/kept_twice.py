"""What it means to a client when the database refuses what the service had allowed.

The money rules of this service are kept twice: by its code, and by CHECKs, unique indexes and triggers which share
nothing with that code (docs/invariants.md). Every transaction of the service passes through here when it fails
(`kernel.database.Database`, `meaning_of`), so the second means says no as clearly as the first, on every path: nothing
is written, the client is told the same refusal, a background pass goes on with the next item.

 - A rule that a request can run into: `KeptByDatabase`, with the refusal that the code would have given.
 - What must hold whatever anybody asks: `InvariantBroken`. No client can do anything about it; a person is paged.
 - An id that another request has taken since it was looked up: `KeptByDatabase`, transient: repeated, it is found.
 - Anything else is a fault of this program, and stays what it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import psycopg
from psycopg.errors import IntegrityError, NumericValueOutOfRange, UniqueViolation

from kernel.errors import InvariantBroken, ProblemError, Refusal, RequestRefusal
from ledger.contract import TransferRefusal
from wallet.contract import WalletRefusal

log = logging.getLogger("jiaozi.wallet.kept-twice")

_CAP_PASSED = "the database counts more than the wallet's own cap"
_W = WalletRefusal

REFUSALS: Mapping[str, tuple[Refusal, str]] = {
    # Triggers of migrations 0003, 0007, 0013, 0014: they name themselves as constraints.
    "program_hold_as_signed_i8": (_W.PROGRAM_TERMS_MISMATCH, "an instruction is not the hold of the terms"),
    "payment_approved_i8": (_W.APPROVAL_NEEDED, "it is above what one signature may pay"),
    "payment_alone_day_i9": (_W.APPROVAL_NEEDED, "one signature has paid all that it may in a day"),
    "pays_by_payments_i8": (TransferRefusal.KIND_NOT_ALLOWED, "a wallet with rules of its own pays by payments alone"),
    "spent_forward_i9": (TransferRefusal.DAY_LIMIT_EXCEEDED, "a day that is over has no allowance left"),
    "spent_dated_i9": (TransferRefusal.DAY_LIMIT_EXCEEDED, "it is counted on another day than it was sent"),
    "spent_single_i9": (TransferRefusal.SINGLE_LIMIT_EXCEEDED, _CAP_PASSED),
    "spent_day_i9": (TransferRefusal.DAY_LIMIT_EXCEEDED, _CAP_PASSED),
    "spent_year_i9": (TransferRefusal.YEAR_LIMIT_EXCEEDED, _CAP_PASSED),
    "spent_total_i9": (_W.CHILD_LIMIT_EXCEEDED, _CAP_PASSED),
    "purse_payout_held_i3": (_W.PURSE_NOT_ACTIVE, "the rest of a double spender's purse is held"),
    "order_signed_once": (_W.LEG_ALREADY_AUTHORISED, "the order is signed for already"),
    # CHECKs.
    "payment_accounts_differ_i1_ck": (TransferRefusal.ACCOUNTS_MUST_DIFFER, ""),
    "refund_original_accounts_differ_i1_ck": (_W.REFUND_MISMATCH, "the payment was from this account to itself"),
    "refund_original_refunded_at_most_i7_ck": (_W.REFUND_EXCEEDS_ORIGINAL, ""),
    "redemption_amount_within_cap_i8_ck": (_W.REQUEST_TERMS_MISMATCH, "the amount is above the code's cap"),
    "child_wallet_day_i9_ck": (TransferRefusal.DAY_LIMIT_EXCEEDED, _CAP_PASSED),
    "child_wallet_total_i9_ck": (_W.CHILD_LIMIT_EXCEEDED, _CAP_PASSED),
    "wallet_own_caps_i9_ck": (RequestRefusal.VALIDATION_FAILED, "a cap is no less than zero"),
    "hardware_card_attested_i9_ck": (_W.CARD_NOT_ATTESTED, "its issuer attests lower caps"),
    "hardware_card_pin_free_i9_ck": (_W.PIN_NEEDED, "the card has paid all that it may without its PIN"),
    "payment_approval_two_persons_i8_ck": (_W.CHECKER_IS_MAKER, ""),
    "payment_control_change_two_persons_i8_ck": (_W.CONTROL_INVALID, "two persons sign"),
    "unmask_approval_not_his_own_ck": (_W.UNMASK_OWN_ORDER, ""),
    "unmask_disclosure_two_approvers_ck": (_W.UNMASK_NOT_APPROVED, ""),
    "sandbox_deposit_not_overdrawn_ck": (_W.DEPOSIT_INSUFFICIENT, ""),
    # Unique, and not for an id that a repetition would find.
    "redemption_payment_i7": (_W.REQUEST_ALREADY_PAID, "by another code, or one is on its way"),
    "bulk_line_payment_i7": (TransferRefusal.ID_ALREADY_USED, ""),
    "schedule_payment_payment_i7": (TransferRefusal.ID_ALREADY_USED, ""),
    "card_counter_payment_id_uq": (TransferRefusal.ID_ALREADY_USED, ""),
    "purse_active": (_W.PURSES_TOO_MANY, ""),
    "purse_device_thumbprint_uq": (_W.DEVICE_KEY_IN_USE, ""),
    "wallet_device_thumbprint_uq": (_W.DEVICE_KEY_IN_USE, ""),
    "wallet_change_one_of_a_kind": (_W.CHANGE_IN_PROGRESS, ""),
    "unmask_approval_name_uq": (_W.UNMASK_APPROVED_BEFORE, ""),
}
"""By the constraint's name: what the service's own rule would have said."""

BROKEN: Mapping[str, str] = {
    "program_begins_proposed_i9": "I9",
    "payment_counted_i9_ck": "I9",
    "payment_counted_kind_i9_ck": "I9",
    "program_counted_i9_ck": "I9",
    "redemption_counted_i9_ck": "I9",
    "wallet_usage_i9_ck": "I9",
    "spent_day_minor_ck": "I9",
    "program_conserved_i6_ck": "I6",
    "program_is_its_parts_i3": "I3",
    "program_hold_ends_once_i6_ck": "I6",
    "program_hold_stays_i6": "I6",
    "program_hold_spent_i6_ck": "I6",
    "program_hold_signed_i8_ck": "I8",
    "schedule_payment_cancelled_is_forgotten_i8_ck": "I8",
    # Written of what the ledger has booked already: to refuse it would undo nothing.
    "payment_request_paid_at_most_i7_ck": "I7",
    "payment_request_paid_once_i7_ck": "I7",
    "program_voucher_not_overspent_ck": "I7",
    "purse_payout_event_i7": "I7",
    "purse_loss_is_bounded_ck": "I3",
    "purse_recovered_is_lost_ck": "I3",
    "purse_spend_parts_within_amount_ck": "I3",
    "purse_source_backed_within_amount_ck": "I2",
    "purse_source_covered_once_ck": "I2",
}
"""By the constraint's name: the invariant that the service's own books would break."""


class KeptByDatabase(ProblemError):
    """A refusal of the database's; nothing of the transaction was written."""

    def __init__(self, refusal: Refusal, detail: str, *, constraint: str, table: str, is_taken: bool) -> None:
        super().__init__(refusal, detail)
        self.constraint = constraint
        self.table = table
        self.is_taken = is_taken
        """A row with this key is there already: it may be this very request's."""


def meaning_of(error: psycopg.Error) -> Exception | None:
    """For `Database`: what is raised instead of the server's error; None: the error itself."""
    if isinstance(error, NumericValueOutOfRange):
        return KeptByDatabase(TransferRefusal.AMOUNT_OVERFLOW, "", constraint="", table="", is_taken=False)
    if not isinstance(error, IntegrityError):
        return None
    constraint, table = error.diag.constraint_name or "", error.diag.table_name or ""
    is_taken = isinstance(error, UniqueViolation)
    if constraint in BROKEN:
        return InvariantBroken(BROKEN[constraint], f"{constraint}: {error.diag.message_primary}")
    known = REFUSALS.get(constraint)
    if known is not None:
        log.warning("the database alone has refused: %s", constraint)
        return KeptByDatabase(*known, constraint=constraint, table=table, is_taken=is_taken)
    if is_taken:
        log.info("taken by another request meanwhile: %s", constraint)
        detail = "another request has written the same meanwhile; repeat this one with the same ids"
        unavailable = RequestRefusal.SERVICE_UNAVAILABLE
        return KeptByDatabase(unavailable, detail, constraint=constraint, table=table, is_taken=True)
    return None

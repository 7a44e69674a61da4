"""The ledger's words: account and transfer kinds, roles, and every way a transfer can be refused.

Each enum's position is its code in the journal, so members are only ever appended (a test pins the order).
"""

from __future__ import annotations

from enum import StrEnum

from kernel.errors import Refusal


class AccountKind(StrEnum):
    ISSUANCE = "issuance"
    """The central bank's own side of every issue and redemption: its debit balance is the circulation."""
    VAULT = "vault"
    """A participant's own currency; debited on the participant's signature."""
    WALLET = "wallet"
    """A holder's currency: a direct claim on the central bank, debited only on the holder's signature (I8)."""
    OFFLINE = "offline"
    """A participant's escrow behind the offline purses of its holders: what purses hold is held here meanwhile."""


class AccountStatus(StrEnum):
    ACTIVE = "active"
    FROZEN = "frozen"
    """By a legal order: neither debited nor credited."""
    SUSPENDED = "suspended"
    """By its participant, while a holder's devices are lost: credited, not debited."""
    CLOSED = "closed"
    """For ever: nothing books on it."""


class TransferKind(StrEnum):
    ISSUE = "issue"
    REDEEM = "redeem"
    EXCHANGE_IN = "exchange-in"
    EXCHANGE_OUT = "exchange-out"
    PAYMENT = "payment"
    REFUND = "refund"
    INTEREST = "interest"
    HOLD = "hold"
    POST = "post"
    VOID = "void"
    EXPIRE = "expire"
    ADJUSTMENT = "adjustment"
    TOMBSTONE = "tombstone"
    """The void of a hold that never arrived: it moves nothing and keeps a late hold of that id out."""
    PURSE_FUND = "purse-fund"
    """From a wallet into its institution's escrow, signed by the holder: what an offline purse is loaded with."""
    PURSE_REDEEM = "purse-redeem"
    """From the escrow to whoever was paid offline, by the institution whose purse it was."""
    PURSE_LOSS = "purse-loss"
    """Between an institution's vault and its escrow: a double spend made good, an expired purse's rest taken back."""


class ParticipantRole(StrEnum):
    INTERMEDIARY = "intermediary"
    """Distributes the currency: may be issued to, within its quota, and opens wallets."""
    FOREIGN = "foreign"
    """Holds the currency to settle across borders; is not issued to and opens no wallets."""
    BRIDGE = "bridge"
    """A settlement operator: submits what others have signed, owns no account."""


class TransferRefusal(Refusal):
    """Every way in which the ledger refuses a transfer, in order of precedence (first match wins)."""

    AMOUNT_INVALID = "amount-invalid", False, "The amount must be a positive integer of minor units within bounds."
    ACCOUNTS_MUST_DIFFER = "accounts-must-differ", False, "The debit and the credit account are the same."
    ID_ALREADY_USED = "id-already-used", False, "The id belongs to another transfer with other content (I7)."
    DEBIT_ACCOUNT_UNKNOWN = "debit-account-unknown", True, "There is no such debit account."
    CREDIT_ACCOUNT_UNKNOWN = "credit-account-unknown", True, "There is no such credit account."
    KIND_NOT_ALLOWED = "kind-not-allowed", False, "This kind of transfer does not join accounts of these kinds."
    NOT_AUTHORISED = "not-authorised", False, "The debit account's owner has not authorised this transfer (I8)."
    HOLD_NOT_FOUND = "hold-not-found", True, "There is no hold with this id."
    HOLD_ALREADY_POSTED = "hold-already-posted", False, "The hold has ended: it was posted (I6)."
    HOLD_ALREADY_VOIDED = "hold-already-voided", False, "The hold has ended: it was voided (I6)."
    HOLD_EXPIRED = "hold-expired", False, "The hold has ended: it expired (I6)."
    HOLD_SECRET_WRONG = "hold-secret-wrong", False, "The secret is not the pre-image of the hold's hash."
    HOLD_AMOUNT_EXCEEDED = "hold-amount-exceeded", False, "A post may not exceed its hold (conditional: posts whole)."
    HOLD_TERMS_INVALID = "hold-terms-invalid", False, "A hold needs either a future expiry or both hashes."
    ACCOUNT_CLOSED = "account-closed", False, "The account is closed: nothing books on it any more."
    DEBIT_ACCOUNT_SUSPENDED = "debit-account-suspended", True, "The debit account is suspended by its institution."
    DEBIT_ACCOUNT_FROZEN = "debit-account-frozen", True, "The debit account is frozen by a legal order."
    CREDIT_ACCOUNT_FROZEN = "credit-account-frozen", True, "The credit account is frozen by a legal order."
    QUOTA_EXCEEDED = "quota-exceeded", True, "The issue would exceed the intermediary's quota."
    SINGLE_LIMIT_EXCEEDED = "single-limit-exceeded", False, "The amount exceeds the class's cap for one payment (I9)."
    DAY_LIMIT_EXCEEDED = "day-limit-exceeded", True, "The payment would exceed the class's cap for the day (I9)."
    YEAR_LIMIT_EXCEEDED = "year-limit-exceeded", True, "The payment would exceed the class's cap for the year (I9)."
    INSUFFICIENT_FUNDS = "insufficient-funds", True, "The debit account's available balance is too small (I3)."
    BALANCE_LIMIT_EXCEEDED = "balance-limit-exceeded", True, "The payee's class may not hold that much (I9)."
    AMOUNT_OVERFLOW = "amount-overflow", False, "A running total would leave the range of 63 bits."
    LINKED_TRANSFER_REFUSED = "linked-transfer-refused", True, "Another transfer of the linked chain was refused."
    LINKED_CHAIN_OPEN = "linked-chain-open", False, "The batch ends inside a linked chain."


class LedgerRefusal(Refusal):
    """Ways in which the ledger refuses anything but a transfer, in order of precedence."""

    INSTRUCTION_INVALID = "instruction-invalid", False, "The signed instruction does not verify or has another form."
    INSTRUCTION_EXPIRED = "instruction-expired", False, "The signed instruction is past its expiry."
    WRONG_LEDGER = "wrong-ledger", False, "The document was signed for another ledger."
    WRONG_CURRENCY = "wrong-currency", False, "This ledger has another currency."
    ID_FROM_FUTURE = "id-from-future", False, "The id's time is in the future: correct the client's clock."
    ACCOUNT_NOT_FOUND = "account-not-found", True, "There is no such account."
    TRANSFER_NOT_FOUND = "transfer-not-found", True, "There is no such transfer."
    BLOCK_NOT_FOUND = "block-not-found", True, "There is no such block yet."
    CLOSING_NOT_FOUND = "closing-not-found", True, "There is no such closing yet."
    MANDATE_NOT_FOUND = "mandate-not-found", True, "There is no such mandate."
    MANDATE_EXISTS = "mandate-exists", False, "Another proposal has this mandate's id."
    MANDATE_EXPIRED = "mandate-expired", False, "The mandate was not executed in time."
    MANDATE_EXECUTED = "mandate-executed", False, "The mandate was executed already; a mandate acts once."
    MANDATE_REFUSED = "mandate-refused", False, "The mandate's action was refused when it was executed."
    APPROVAL_MISMATCH = "approval-mismatch", False, "The approval is for another proposal text."
    APPROVER_IS_MAKER = "approver-is-maker", False, "Whoever made a proposal cannot approve it."
    ALREADY_APPROVED = "already-approved", False, "This operator has approved already; approvals count once."
    APPROVALS_MISSING = "approvals-missing", True, "Too few operators have approved."
    UNKNOWN_SIGNER = "unknown-signer", False, "The signing key belongs to no operator or participant."
    PARTICIPANT_UNKNOWN = "participant-unknown", True, "There is no such participant."
    PARTICIPANT_EXISTS = "participant-exists", False, "The participant is registered already."
    CLASS_UNKNOWN = "class-unknown", True, "The ledger has no such rule class."
    ROLE_NOT_ALLOWED = "role-not-allowed", False, "The participant's role does not allow this."
    HOLDER_KEY_MISMATCH = "holder-key-mismatch", False, "A wallet needs its holder's valid key; a vault takes none."
    KEY_IN_USE = "key-in-use", False, "The key is registered already."
    OUTCOME_UNKNOWN = "outcome-unknown", True, "The journal could not confirm the outcome; retry with the same ids."
    NOT_SEALED = "not-sealed", True, "The log has no such checkpoint yet; ask again in a second."
    CHECKPOINT_NOT_FOUND = "checkpoint-not-found", False, "The log has no checkpoint of this size."
    INCIDENT_NOT_FOUND = "incident-not-found", False, "The log has no such incident."
    INCIDENT_ACKNOWLEDGED = "incident-acknowledged", False, "The incident was acknowledged with another reason."
    TILE_NOT_FOUND = "tile-not-found", True, "The log has no such tile, or not yet so wide."
    CHANGE_NOT_FOUND = "change-not-found", True, "There is no such account change."
    CHANGE_EXISTS = "change-exists", False, "Another account change has this id."
    CONSENT_MISSING = "consent-missing", False, "The change needs the consent of a current holder key."
    CONSENT_INVALID = "consent-invalid", False, "The consent is not a current holder key's over the same change."
    HOLDER_KEY_UNKNOWN = "holder-key-unknown", False, "The key is none of the account's holder keys."
    HOLDER_KEYS_EXCEEDED = "holder-keys-exceeded", False, "An account has at most five holder keys."
    HOLDER_KEY_LAST = "holder-key-last", False, "The last holder key is not removed; replace it."
    KEY_NOT_ANNOUNCED = "key-not-announced", False, "No announcement of this key stands: announce it, or get consent."
    KEY_RECOVERY_PENDING = "key-recovery-pending", True, "The announced key's waiting time has not passed."
    ACCOUNT_NOT_EMPTY = "account-not-empty", True, "Only an account without balance and open holds is closed."


ACCOUNT_KINDS = tuple(AccountKind)
TRANSFER_KINDS = tuple(TransferKind)
TRANSFER_REFUSALS = tuple(TransferRefusal)
KIND_CODE = {kind: code for code, kind in enumerate(TRANSFER_KINDS)}
ACCOUNT_KIND_CODE = {kind: code for code, kind in enumerate(ACCOUNT_KINDS)}

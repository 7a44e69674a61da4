"""Changes of one account that its participant orders: class, balance cap, holder's keys, suspension, closure. `check`
asks, `apply` does, as with directives.

Who may order what (I8):

| change | participant's signature | consent of a current holder key |
|---|---|---|
| set-rule-class, set-balance-cap, suspend, resume, close, announce-holder-key | yes | no |
| add-holder-key, remove-holder-key | yes | yes |
| replace-holder-key | yes | yes; or the key was announced long enough before, and nobody objected |
| object-to-key | no | yes: the holder's own door, whoever carries it |

A change is the JSON object of `ledger.contract.AccountChange`, already validated for shape; signatures are verified by
who calls, and held to keys of the moment here, by version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kernel.ids import parse_account
from kernel.money import parse_minor
from ledger.domain.keys import key_bytes
from ledger.domain.state import (
    CLOSED,
    FROZEN,
    HOLDER_KEY_BYTES,
    HOLDER_KEYS_MAX,
    ISSUANCE_ACCOUNT,
    NO_CAP,
    SUSPENDED,
    AnnouncedKey,
    BalanceCap,
    LedgerState,
)
from ledger.domain.vocabulary import ACCOUNT_KIND_CODE, AccountKind, LedgerRefusal, TransferRefusal

KIND = "account-change"
OBJECTION = "object-to-key"
_KEY_CHANGES = ("add-holder-key", "remove-holder-key", "replace-holder-key", "announce-holder-key")
_CONSENTED = ("add-holder-key", "remove-holder-key", OBJECTION)
_WALLET = ACCOUNT_KIND_CODE[AccountKind.WALLET]


@dataclass(frozen=True, slots=True)
class Signatures:
    """Whose signatures over a change have been verified, and with which versions of their keys."""

    participant: tuple[int, int] | None
    """Its number, and its key's version; None: it has not signed."""
    consent: int | None
    """Version of the holder's key; None: there is no consent."""


def check(
    state: LedgerState, change: Mapping[str, Any], signed: Signatures, *, valid_until: int, booked_at: int
) -> LedgerRefusal | TransferRefusal | None:
    """Would the change be refused at `booked_at`? Times in microseconds since 1970."""
    account, kind = parse_account(change["account"]), change["change"]
    if valid_until < booked_at:
        return LedgerRefusal.INSTRUCTION_EXPIRED
    if not state.exists(account) or account == ISSUANCE_ACCOUNT:
        return LedgerRefusal.ACCOUNT_NOT_FOUND
    if signed.participant is not None:
        number, version = signed.participant
        if int(state.participant[account]) != number:
            return LedgerRefusal.ACCOUNT_NOT_FOUND
        if int(state.participant_key_version[number]) != version:
            return LedgerRefusal.UNKNOWN_SIGNER
    if (signed.participant is None) != (kind == OBJECTION):
        return LedgerRefusal.INSTRUCTION_INVALID
    standing = int(state.standing[account])
    if standing & CLOSED:
        return TransferRefusal.ACCOUNT_CLOSED
    if signed.consent is not None and not state.has_key_version(account, signed.consent):
        return LedgerRefusal.CONSENT_INVALID
    if kind in (*_KEY_CHANGES, OBJECTION) and state.kind[account] != _WALLET:
        return LedgerRefusal.HOLDER_KEY_MISMATCH
    if kind == "set-balance-cap" and state.kind[account] != _WALLET:
        return TransferRefusal.KIND_NOT_ALLOWED
    if kind in _CONSENTED and signed.consent is None:
        return LedgerRefusal.CONSENT_MISSING
    if kind in _KEY_CHANGES:
        return _check_key(state, account, change, has_consent=signed.consent is not None, booked_at=booked_at)
    if kind == OBJECTION and account not in state.announced:
        return LedgerRefusal.KEY_NOT_ANNOUNCED
    if kind == "set-rule-class" and change["rule_class"] not in state.class_by_name:
        return LedgerRefusal.CLASS_UNKNOWN
    if kind == "close":
        if standing & FROZEN:  # a legal order stands until operators lift it
            return TransferRefusal.DEBIT_ACCOUNT_FROZEN
        if state.balance(account) or state.debits_pending[account] or state.credits_pending[account]:
            return LedgerRefusal.ACCOUNT_NOT_EMPTY
    return None


def _check_key(
    state: LedgerState, account: int, change: Mapping[str, Any], *, has_consent: bool, booked_at: int
) -> LedgerRefusal | None:
    key, kind = key_bytes(change["key"]), change["change"]
    keys = state.holder_keys(account)
    is_known = _version_of(state, account, key) is not None
    if kind == "remove-holder-key":
        if not is_known:
            return LedgerRefusal.HOLDER_KEY_UNKNOWN
        return LedgerRefusal.HOLDER_KEY_LAST if len(keys) == 1 else None
    if is_known:
        return LedgerRefusal.KEY_IN_USE
    if kind == "add-holder-key" and len(keys) >= HOLDER_KEYS_MAX:
        return LedgerRefusal.HOLDER_KEYS_EXCEEDED
    if kind == "replace-holder-key" and not has_consent:
        announced = state.announced.get(account)
        if announced is None or announced.key != key:
            return LedgerRefusal.KEY_NOT_ANNOUNCED
        if booked_at < effective_at(state, announced):
            return LedgerRefusal.KEY_RECOVERY_PENDING
    return None


def effective_at(state: LedgerState, announced: AnnouncedKey) -> int:
    """From when on an announced key may replace lost ones, in microseconds."""
    return announced.announced_at + state.key_recovery_seconds * 1_000_000


def apply(state: LedgerState, change: Mapping[str, Any], *, directive: int, booked_at: int) -> None:
    """Apply a change that the journal has as `directive`, whose number is the version of a key that it brings."""
    account = parse_account(change["account"])
    match change["change"]:
        case "set-rule-class":
            state.rule_class[account] = state.class_by_name[change["rule_class"]]
        case "set-balance-cap":
            cap = change.get("balance_max_minor")
            state.set_balance_cap(account, BalanceCap(change["version"], NO_CAP if cap is None else parse_minor(cap)))
        case "add-holder-key":
            state.add_key(account, key_bytes(change["key"]), version=directive)
        case "remove-holder-key":
            state.remove_key(account, _version_of(state, account, key_bytes(change["key"])) or 0)
        case "replace-holder-key":
            state.replace_keys(account, key_bytes(change["key"]), version=directive)
            state.announced.pop(account, None)
        case "announce-holder-key":
            state.announced[account] = AnnouncedKey(key_bytes(change["key"]), booked_at)
        case "object-to-key":
            state.announced.pop(account, None)
        case "suspend" | "resume":
            state.set_standing(account, SUSPENDED, change["change"] == "suspend")
        case "close":
            state.set_standing(account, CLOSED, True)
            state.announced.pop(account, None)
        case unknown:
            raise ValueError(f"unknown account change {unknown!r}: written by a newer version?")


def _version_of(state: LedgerState, account: int, key: bytes) -> int | None:
    padded = key.ljust(HOLDER_KEY_BYTES, b"\0")
    return next((version for version, known in state.holder_keys(account) if known == padded), None)

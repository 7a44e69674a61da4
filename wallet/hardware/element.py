"""An emulated secure element, decided purely: what an IC card's chip remembers, and what it says to each command.

The chip holds a key that no command gives out. Every payment that it signs carries the next value of a counter which
only grows (`wallet.domain.cards`: the counter is in the payment's id, so tier 1 sees an ordinary instruction). Up to
two caps it pays without PIN: one payment's, and what is paid since the PIN was last given. The PIN has five tries;
a try is spent before the PIN is compared. The chip has no clock: it believes the terminal's, within
`INSTRUCTION_LIFE_MAX`.

`wallet.hardware.card` keeps `Memory` over power cuts: nothing leaves the chip before what it did is remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from kernel.crypto import jws
from kernel.errors import Refusal
from kernel.ids import AccountNumber
from kernel.money import AMOUNT_MINOR_MAX
from ledger.contract import TransferKind, TransferTerms, show_moment
from wallet.domain.cards import COUNTER_MAX, Stamp, stamped_id

PIN_TRIES_MAX = 5
PIN_DIGITS_MIN, PIN_DIGITS_MAX = 4, 12
INSTRUCTION_LIFE_MAX = timedelta(minutes=10)
"""A terminal cannot have a payment signed that somebody could book tomorrow."""


class CardRefusal(Refusal):
    """Ways in which the chip says no, in order of precedence."""

    PIN_BLOCKED = "pin-blocked", False, "The PIN was wrong too often: the card pays no more."
    PIN_WRONG = "pin-wrong", False, "The PIN is wrong."
    PIN_MALFORMED = "pin-malformed", False, "A PIN has 4 to 12 digits."
    NOT_BOUND = "card-not-bound", True, "The card does not know its account yet."
    ALREADY_BOUND = "card-already-bound", False, "The card has another account."
    AMOUNT_INVALID = "amount-invalid", False, "The amount must be above zero and within 63 bits."
    TIME_INVALID = "time-invalid", False, "The terminal's times are not acceptable."
    PIN_NEEDED = "pin-needed", True, "The payment is above what the card pays without PIN."
    COUNTER_SPENT = "counter-spent", False, "The counter is at its end: the card is worn out."


@dataclass(frozen=True, slots=True)
class Memory:
    """What the chip remembers over power cuts; the key apart."""

    account: AccountNumber | None
    counter: int
    """Of the last instruction signed."""
    pin_salt: bytes
    pin_hash: bytes
    pin_tries_left: int
    pin_free_single_max_minor: int
    pin_free_total_max_minor: int
    pin_free_minor: int
    """Signed without PIN since it was last given."""
    last_request: bytes
    """Of the last instruction: a terminal that asks again gets the same."""
    last_token: str


@dataclass(frozen=True, slots=True)
class Presented:
    """What a terminal shows the card."""

    ledger: str
    credit: AccountNumber
    amount_minor: int
    currency: str
    at: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class ToSign:
    """What is to be signed, and the memory that must be kept before it leaves the chip."""

    terms: TransferTerms
    memory: Memory


def is_pin(text: str) -> bool:
    return text.isascii() and text.isdigit() and PIN_DIGITS_MIN <= len(text) <= PIN_DIGITS_MAX


def spend_try(memory: Memory) -> Memory | CardRefusal:
    """Before a PIN is compared. Refuses: pin-blocked."""
    if memory.pin_tries_left == 0:
        return CardRefusal.PIN_BLOCKED
    return replace(memory, pin_tries_left=memory.pin_tries_left - 1)


def pin_was_right(memory: Memory) -> Memory:
    return replace(memory, pin_tries_left=PIN_TRIES_MAX)


def bind(memory: Memory, account: AccountNumber) -> Memory | CardRefusal:
    """Tell the card its account, once. Refuses: card-already-bound."""
    if memory.account not in (None, account):
        return CardRefusal.ALREADY_BOUND
    return replace(memory, account=account)


def decide_signature(memory: Memory, presented: Presented, *, with_pin: bool) -> ToSign | str | CardRefusal:
    """The terms to sign; or the token signed before, if the terminal asks again for what was asked last.

    Refuses: pin-blocked, card-not-bound, amount-invalid, time-invalid, pin-needed, counter-spent.
    """
    if memory.pin_tries_left == 0:
        return CardRefusal.PIN_BLOCKED
    if memory.account is None:
        return CardRefusal.NOT_BOUND
    if not 0 < presented.amount_minor <= AMOUNT_MINOR_MAX or presented.credit == memory.account:
        return CardRefusal.AMOUNT_INVALID
    life = presented.valid_until - presented.at
    if not timedelta(0) < life <= INSTRUCTION_LIFE_MAX or presented.at < datetime(2020, 1, 1, tzinfo=UTC):
        return CardRefusal.TIME_INVALID
    request = _content(memory.account, presented)
    if request == memory.last_request:
        return memory.last_token
    pin_free_minor = 0 if with_pin else memory.pin_free_minor + presented.amount_minor
    if not with_pin and (
        presented.amount_minor > memory.pin_free_single_max_minor or pin_free_minor > memory.pin_free_total_max_minor
    ):
        return CardRefusal.PIN_NEEDED
    if memory.counter >= COUNTER_MAX:
        return CardRefusal.COUNTER_SPENT
    stamp = Stamp(counter=memory.counter + 1, with_pin=with_pin)
    terms = TransferTerms(
        id=stamped_id(int(presented.at.timestamp() * 1000), stamp, request),
        kind=TransferKind.PAYMENT,
        debit=memory.account,
        credit=presented.credit,
        amount_minor=presented.amount_minor,
        currency=presented.currency,
    )
    kept = replace(memory, counter=stamp.counter, pin_free_minor=pin_free_minor, last_request=request, last_token="")
    return ToSign(terms, kept)


def signed(memory: Memory, token: str) -> Memory:
    """With the token, to be kept before it leaves."""
    return replace(memory, last_token=token)


def _content(account: AccountNumber, presented: Presented) -> bytes:
    """Without the PIN: after a power cut a terminal asks again, and must not get a second payment."""
    return jws.canonical_json(
        {
            "account": str(account),
            "amount_minor": str(presented.amount_minor),
            "at": show_moment(presented.at),
            "credit": str(presented.credit),
            "currency": presented.currency,
            "ledger": presented.ledger,
            "valid_until": show_moment(presented.valid_until),
        }
    )

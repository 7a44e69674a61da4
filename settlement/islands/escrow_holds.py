"""What the escrow contract says of a hold, and what follows from it: the same on every chain that runs the contract.

How a chain is read and what is sent to it is its adapter's; when an answer is final is, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from eth_utils.address import to_checksum_address

from settlement.domain.escrow import HoldOrder
from settlement.islands.booked import Booked
from settlement.islands.port import Contradiction, Ended, EndOrder, EndOutcome, HoldStanding, Unknown

Outcome = TypeVar("Outcome")

_ABSENT, _HELD, _VOIDED = 0, 1, 3
"""Of `Standing` in escrow.sol; 2 is posted."""


@dataclass(frozen=True, slots=True)
class SeenHold:
    """A hold in a block's state, as `lookUp` answers it."""

    payee: str
    deadline: int
    ended_at: int
    """Seconds since 1970; 0 = not ended."""
    standing: int
    token: str
    amount: int
    commit_hash: bytes
    abort_hash: bytes
    is_buried: bool


def standing_of(order: HoldOrder, seen: SeenHold | None, *, payee: str | None, token: str, unit: int) -> HoldStanding:
    """Where the ordered hold stands. `payee` and `token` are the addresses it is to have, `unit` how many of the
    token's smallest units a minor unit is."""
    if seen is None:
        return HoldStanding.ABSENT
    if seen.standing == _ABSENT or seen.abort_hash != order.abort_hash:
        if seen.is_buried:
            return HoldStanding.VOIDED
        return HoldStanding.ABSENT if seen.standing == _ABSENT else HoldStanding.OTHER
    if seen.standing == _VOIDED:  # under our abort hash, so ours can never be placed, whatever else its terms were
        return HoldStanding.VOIDED
    is_ours = (
        to_checksum_address(seen.payee) == payee
        and to_checksum_address(seen.token) == token
        and seen.amount == order.terms.amount.amount_minor * unit
        and seen.commit_hash == order.commit_hash
        and seen.deadline == 0
    )
    if not is_ours:
        return HoldStanding.OTHER
    return HoldStanding.HELD if seen.standing == _HELD else HoldStanding.POSTED


def ended_as(standing: HoldStanding, seen: SeenHold | None, function: str) -> EndOutcome | None:
    """The outcome of "commit" or "abort" if the end is there, or never can be; None if it is still to come."""
    moment = datetime.fromtimestamp(seen.ended_at, UTC) if seen is not None and seen.ended_at else None
    if function == "commit":
        match standing:
            case HoldStanding.POSTED:
                return Booked(moment)
            case HoldStanding.VOIDED:
                return Contradiction("a committed leg stands voided")
            case HoldStanding.OTHER:
                return Contradiction("a committed leg stands with other terms")
            case _:
                return None
    match standing:
        case HoldStanding.VOIDED:
            return Booked(moment) if moment is not None else Ended()
        case HoldStanding.POSTED:
            return Contradiction("an aborted leg stands posted")
        case _:
            return None


def known_ends(orders: Sequence[EndOrder], function: str, has_address: Callable[[HoldOrder], bool]) -> dict[int, Any]:
    """By place, the outcomes that no chain has to be asked for."""
    outcomes: dict[int, EndOutcome] = {}
    for place, end in enumerate(orders):
        wanted = end.order.commit_hash if function == "commit" else end.order.abort_hash
        if not has_address(end.order):
            # Without an address no lock was ever sent: `prepare` refuses it.
            outcomes[place] = Ended() if function == "abort" else Unknown("the payer has no address on the chain")
        elif hashlib.sha256(end.secret).digest() != wanted:
            outcomes[place] = Unknown("the secret is not this hold's: it is shown to nobody")
    return outcomes


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call waits for the chain, and how often it looks."""

    wait_seconds: float
    poll_seconds: float
    monotonic: Callable[[], float]
    sleep: Callable[[float], None]
    no_answer: tuple[type[Exception], ...]
    """What an adapter raises where nothing can be had of its node now: that ends the waiting."""

    def rounds(
        self,
        places: Iterable[int],
        work: Callable[[Sequence[int]], dict[int, Outcome]],
        outcomes: dict[int, Outcome | Any],
    ) -> None:
        """Rounds until nothing is unknown or the time is over."""
        until = self.monotonic() + self.wait_seconds
        waiting = list(places)
        while waiting:
            try:
                answers: dict[int, Any] = dict(work(waiting))
                is_over = self.monotonic() >= until
            except self.no_answer as error:
                answers, is_over = dict.fromkeys(waiting, Unknown(str(error)[:200])), True
            outcomes |= answers
            waiting = [place for place in waiting if isinstance(answers[place], Unknown)]
            if is_over:
                return
            if waiting:
                self.sleep(self.poll_seconds)

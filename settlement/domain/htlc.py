"""The hash-time-lock variant: two islands that trust no common decision log, and what it takes not to lose there.

The initiator knows a secret. It locks on island A until T1; the follower, seeing that final, locks on island B under
the same hash until T2 < T1; the initiator claims on B, which shows the secret; the follower claims on A with it. Here
clocks decide: whoever is too slow, or whose island is, loses its own side. Decision escrow (settlement.domain.escrow)
has no such gap; this is for islands whose operators would share no log.

The rule, enforced before anything is locked:

    T1 - T2 > reaction + finality(A) + finality(B) + skew(A) + skew(B)

The initiator's claim may be booked on B at the very last moment before T2, as B's clock shows it. The follower then has
to see it (finality of B), act (reaction) and be final on A (finality of A) before T1, as A's clock shows it; either
clock may be off by its skew. And the initiator claims only while its claim can be final before T2 on B's clock.

What remains whatever the gap (`residual_risks`): a follower that is away longer than the rule allows for, a finality
worse than assumed, and the initiator's free option: until T2 it may claim or not, as the rate has moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

LOCK_SECONDS_MAX = 30 * 86_400
"""No money is locked for longer by one swap."""


@dataclass(frozen=True, slots=True)
class IslandClock:
    """Upper bounds, in seconds: until a transaction is final, and how far the island's clock may be from true time."""

    finality_seconds: int
    skew_seconds: int

    def __post_init__(self) -> None:
        if self.finality_seconds < 0 or self.skew_seconds < 0:
            raise ValueError("bounds are not negative")


class TimeLockRefusal(StrEnum):
    """Why locks are not placed, in order of precedence."""

    REACTION_MISSING = "reaction-missing"
    """A party that needs no time to react does not exist."""
    GAP_TOO_SMALL = "gap-too-small"
    """T1 - T2 is not above reaction + both finalities + both skews."""
    TOO_LATE_TO_CLAIM = "too-late-to-claim"
    """Before T2 there is no time for the follower's lock to be final and the initiator's claim after it."""
    TOO_LONG = "too-long"
    """Money would be locked for longer than this service plans."""


@dataclass(frozen=True, slots=True)
class TimeLocks:
    """Deadlines in UNIX seconds: `t1` of the initiator's lock on A, `t2` of the follower's on B."""

    a: IslandClock
    b: IslandClock
    reaction_seconds: int
    t1: int
    t2: int

    @property
    def gap_min(self) -> int:
        """T1 - T2 must be above this."""
        return gap_min(self.a, self.b, self.reaction_seconds)

    @property
    def claim_until(self) -> int:
        """On B's clock: a claim sent later might not be final before T2, and would give the secret away for nothing."""
        return self.t2 - self.b.finality_seconds - self.b.skew_seconds

    def check(self, *, now: int) -> TimeLockRefusal | None:
        """May this be begun at `now` (true time, UNIX seconds)?"""
        if self.reaction_seconds < 1:
            return TimeLockRefusal.REACTION_MISSING
        if self.t1 - self.t2 <= self.gap_min:
            return TimeLockRefusal.GAP_TOO_SMALL
        begun = now + self.a.finality_seconds + self.reaction_seconds + self.b.finality_seconds
        if begun + self.reaction_seconds > self.claim_until - self.b.skew_seconds:
            return TimeLockRefusal.TOO_LATE_TO_CLAIM
        if self.t1 - now > LOCK_SECONDS_MAX:
            return TimeLockRefusal.TOO_LONG
        return None

    def may_follow(self, *, now_a: int, now_b: int) -> bool:
        """The follower's own look, by the islands' clocks, before it locks on B: is there still time for everything?"""
        is_claimable = now_b + self.b.finality_seconds + self.reaction_seconds <= self.claim_until
        slowest_claim = self.t2 - now_b  # how long the initiator may still wait
        is_gap_kept = self.t1 - now_a > slowest_claim + self.gap_min - self.a.skew_seconds - self.b.skew_seconds
        return is_claimable and self.t1 - self.t2 > self.gap_min and is_gap_kept


def gap_min(a: IslandClock, b: IslandClock, reaction_seconds: int) -> int:
    return reaction_seconds + a.finality_seconds + b.finality_seconds + a.skew_seconds + b.skew_seconds


def plan(a: IslandClock, b: IslandClock, *, reaction_seconds: int, now: int) -> TimeLocks | TimeLockRefusal:
    """The shortest locks that keep the rule, with one more reaction time as slack for each party."""
    claim_until = now + a.finality_seconds + b.finality_seconds + 3 * reaction_seconds + a.skew_seconds + b.skew_seconds
    t2 = claim_until + b.finality_seconds + b.skew_seconds
    locks = TimeLocks(a, b, reaction_seconds, t2 + gap_min(a, b, reaction_seconds) + reaction_seconds, t2)
    return locks.check(now=now) or locks


@dataclass(frozen=True, slots=True)
class Risk:
    """A way to lose that the rule does not exclude."""

    who: str
    when: str
    loses: str


def residual_risks(locks: TimeLocks) -> tuple[Risk, ...]:
    """What both parties accept when they use this variant, with this swap's own figures."""
    slack = locks.t1 - locks.t2 - locks.gap_min + locks.reaction_seconds
    bounds = f"{locks.a.finality_seconds} s on A or {locks.b.finality_seconds} s on B"
    return (
        Risk("follower", f"it does not act for {slack} s after the secret is final on B", "its lock, and is not paid"),
        Risk("either", f"finality takes longer than {bounds}, or a final block is undone", "its lock, and is not paid"),
        Risk("either", "an island's clock is off by more than its bound", "its lock, and is not paid"),
        Risk(
            "follower",
            f"the rate moves while the initiator may still choose (until {locks.claim_until} on B's clock)",
            "what the choice is worth: the initiator claims or lets it lapse",
        ),
        Risk("both", f"the other one stops: money stays locked until {locks.t2} (B) and {locks.t1} (A)", "time"),
    )


class LockState(StrEnum):
    """Of one lock, in final blocks."""

    ABSENT = "absent"
    HELD = "held"
    CLAIMED = "claimed"
    RETURNED = "returned"
    OTHER = "other"
    """A lock with this id stands with other terms."""


class Role(StrEnum):
    INITIATOR = "initiator"
    FOLLOWER = "follower"


class Step(StrEnum):
    WAIT = "wait"
    LOCK = "lock"
    CLAIM = "claim"
    TAKE_BACK = "take back"
    DONE = "done"
    LOST = "lost"
    """The own lock was claimed and the other side returned: the residual risk has come true."""


@dataclass(frozen=True, slots=True)
class View:
    """What a party sees: both locks in final blocks, both islands' clocks, and whether the secret is known to it."""

    a: LockState
    b: LockState
    now_a: int
    now_b: int
    is_secret_known: bool


def next_step(role: Role, locks: TimeLocks, view: View) -> Step:
    """What the party does now, on its own side's island for LOCK and TAKE_BACK, on the other's for CLAIM."""
    return _initiator(locks, view) if role is Role.INITIATOR else _follower(locks, view)


def _initiator(locks: TimeLocks, view: View) -> Step:
    match view.a, view.b:
        case LockState.ABSENT, LockState.ABSENT:
            return Step.LOCK if locks.check(now=view.now_a) is None else Step.DONE
        case LockState.CLAIMED, LockState.CLAIMED:
            return Step.DONE
        case LockState.CLAIMED, _ if view.b is LockState.HELD and view.now_b <= locks.claim_until:
            return Step.CLAIM
        case LockState.CLAIMED, _:
            return Step.LOST
        case LockState.RETURNED, _:
            return Step.DONE
        case LockState.HELD, LockState.HELD if view.now_b <= locks.claim_until:
            return Step.CLAIM
        case LockState.HELD, _ if view.now_a >= locks.t1:
            return Step.TAKE_BACK
        case _:
            return Step.WAIT


def _follower(locks: TimeLocks, view: View) -> Step:
    match view.a, view.b:
        case LockState.HELD, LockState.ABSENT:
            if locks.may_follow(now_a=view.now_a, now_b=view.now_b):
                return Step.LOCK
            return Step.DONE
        case _, LockState.ABSENT | LockState.OTHER:
            return Step.DONE if view.a in (LockState.RETURNED, LockState.OTHER) else Step.WAIT
        case LockState.CLAIMED, LockState.CLAIMED:
            return Step.DONE
        case LockState.HELD, _ if view.is_secret_known and view.now_a < locks.t1:
            return Step.CLAIM
        case _, LockState.HELD if view.now_b >= locks.t2:
            return Step.TAKE_BACK
        case _, LockState.RETURNED:
            return Step.DONE
        case LockState.RETURNED, LockState.CLAIMED:
            return Step.LOST
        case _:
            return Step.WAIT

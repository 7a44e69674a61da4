"""Goal: the hash-time-lock variant loses nobody's money while its bounds hold, and says what is lost when they do not.

Method: the parties' decisions run in a model of two islands, every delay and clock at its bounds, against the worst
other party: with the rule nobody loses, with equal deadlines somebody does. Then both parties run on two EVM chains in
process, with the contract's own clock.
"""

from __future__ import annotations

import hashlib
import itertools
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from uuid import uuid4

import pytest
from eth_account.signers.local import LocalAccount

from settlement.domain.htlc import (
    IslandClock,
    LockState,
    Role,
    Step,
    TimeLockRefusal,
    TimeLocks,
    View,
    next_step,
    plan,
    residual_risks,
)
from settlement.islands.evm.contracts import ESCROW, TOKEN
from settlement.islands.evm.finality import ChainView, FinalBlocksInMemory
from settlement.islands.evm.rpc import Node
from settlement.islands.evm.sender import GasPolicy, Sender
from settlement.islands.htlc import ChainSide, HtlcParty, LockTerms, Swap
from tests.evm.chain import Chain

A, B = IslandClock(finality_seconds=3, skew_seconds=2), IslandClock(finality_seconds=4, skew_seconds=1)
REACTION = 2
NOW = 1_000


def planned() -> TimeLocks:
    found = plan(A, B, reaction_seconds=REACTION, now=NOW)
    assert isinstance(found, TimeLocks)
    return found


def test_a_plan_keeps_the_rule_and_one_second_less_does_not() -> None:
    locks = planned()
    assert locks.gap_min == REACTION + 3 + 4 + 2 + 1
    assert locks.t1 - locks.t2 > locks.gap_min
    assert locks.check(now=NOW) is None
    tight = replace(locks, t1=locks.t2 + locks.gap_min + 1)
    assert tight.check(now=NOW) is None
    assert replace(locks, t1=locks.t2 + locks.gap_min).check(now=NOW) is TimeLockRefusal.GAP_TOO_SMALL
    assert replace(locks, t1=locks.t2).check(now=NOW) is TimeLockRefusal.GAP_TOO_SMALL
    assert replace(locks, reaction_seconds=0).check(now=NOW) is TimeLockRefusal.REACTION_MISSING
    assert locks.check(now=locks.t2 - 5) is TimeLockRefusal.TOO_LATE_TO_CLAIM
    assert plan(A, IslandClock(20 * 86_400, 0), reaction_seconds=1, now=NOW) is TimeLockRefusal.TOO_LONG


def test_the_residual_risk_is_said_with_the_swaps_own_figures() -> None:
    locks = planned()
    risks = residual_risks(locks)
    slack = locks.t1 - locks.t2 - locks.gap_min + REACTION
    assert any(risk.who == "follower" and f"{slack} s" in risk.when for risk in risks)
    assert any(str(locks.claim_until) in risk.when for risk in risks)


# --- the model


@dataclass
class Model:
    """Two islands in whole seconds. What is sent is booked at once by the island's clock, and seen when it is final."""

    locks: TimeLocks
    delay_a: int
    delay_b: int
    skew_a: int
    skew_b: int
    now: int = NOW
    history: dict[str, list[tuple[int, LockState]]] = field(
        default_factory=lambda: {"a": [(0, LockState.ABSENT)], "b": [(0, LockState.ABSENT)]}
    )

    def clock(self, island: str) -> int:
        return self.now + (self.skew_a if island == "a" else self.skew_b)

    def booked(self, island: str) -> LockState:
        return self.history[island][-1][1]

    def final(self, island: str) -> LockState:
        delay = self.delay_a if island == "a" else self.delay_b
        return [state for at, state in self.history[island] if at + delay <= self.now or at == 0][-1]

    def do(self, island: str, step: Step) -> None:
        deadline = self.locks.t1 if island == "a" else self.locks.t2
        is_before = self.clock(island) < deadline
        match step, self.booked(island):
            case Step.LOCK, LockState.ABSENT if is_before:
                self.history[island].append((self.now, LockState.HELD))
            case Step.CLAIM, LockState.HELD if is_before:
                self.history[island].append((self.now, LockState.CLAIMED))
            case Step.TAKE_BACK, LockState.HELD if not is_before:
                self.history[island].append((self.now, LockState.RETURNED))
            case _:
                pass

    def view(self, role: Role) -> View:
        is_known = role is Role.INITIATOR or self.final("b") is LockState.CLAIMED
        return View(self.final("a"), self.final("b"), self.clock("a"), self.clock("b"), is_known)

    def act(self, role: Role) -> None:
        step = next_step(role, self.locks, self.view(role))
        own, other = ("a", "b") if role is Role.INITIATOR else ("b", "a")
        self.do(other if step is Step.CLAIM else own, step)


def bounds() -> Iterator[tuple[int, int, int, int, int]]:
    yield from itertools.product((0, 3), (0, 4), (-2, 0, 2), (-1, 0, 1), (0, 1))


def play(locks: TimeLocks, case: tuple[int, int, int, int, int], *, claims_at: int | None) -> Model:
    """Both act every REACTION seconds, at this phase; a wicked initiator claims at B's clock `claims_at` instead."""
    delay_a, delay_b, skew_a, skew_b, phase = case
    model = Model(locks, delay_a, delay_b, skew_a, skew_b)
    while model.now < locks.t1 + 20:
        if claims_at is not None:
            if model.booked("a") is LockState.ABSENT:
                model.do("a", Step.LOCK)
            if model.clock("b") == claims_at:
                model.do("b", Step.CLAIM)
            model.do("a", Step.TAKE_BACK)  # the instant that it may
        elif (model.now + phase) % REACTION == 0:
            model.act(Role.INITIATOR)
        if (model.now + phase) % REACTION == 0:
            model.act(Role.FOLLOWER)
        model.now += 1
    return model


def test_two_honest_parties_swap_whatever_the_delays_and_clocks() -> None:
    for case in bounds():
        model = play(planned(), case, claims_at=None)
        assert (model.booked("a"), model.booked("b")) == (LockState.CLAIMED, LockState.CLAIMED), case


def test_an_honest_follower_never_loses_to_an_initiator_that_claims_at_the_last_moment() -> None:
    locks = planned()
    splits = 0
    for case in bounds():
        for claims_at in range(locks.t2 - 6, locks.t2 + 2):
            model = play(locks, case, claims_at=claims_at)
            splits += (model.booked("a"), model.booked("b")) == (LockState.RETURNED, LockState.CLAIMED)
    assert splits == 0


def test_with_equal_deadlines_the_same_follower_loses() -> None:
    """The rule is what helps: without it the same play splits."""

    class Equal(TimeLocks):
        def may_follow(self, *, now_a: int, now_b: int) -> bool:
            return now_b < self.t2

    locks = planned()
    equal = Equal(locks.a, locks.b, locks.reaction_seconds, locks.t2, locks.t2)
    cases = [(case, at) for case in bounds() for at in range(locks.t2 - 6, locks.t2 + 2)]
    played = [play(equal, case, claims_at=at) for case, at in cases]
    splits = [it for it in played if (it.booked("a"), it.booked("b")) == (LockState.RETURNED, LockState.CLAIMED)]
    assert splits


def test_a_follower_that_sleeps_too_long_loses_and_is_told() -> None:
    locks = planned()
    view = View(LockState.RETURNED, LockState.CLAIMED, locks.t1 + 1, locks.t1 + 1, True)
    assert next_step(Role.FOLLOWER, locks, view) is Step.LOST


def test_an_initiator_too_late_to_claim_keeps_its_secret() -> None:
    locks = planned()
    view = View(LockState.HELD, LockState.HELD, locks.claim_until, locks.claim_until, True)
    assert next_step(Role.INITIATOR, locks, view) is Step.CLAIM
    assert next_step(Role.INITIATOR, locks, replace(view, now_b=locks.claim_until + 1)) is Step.WAIT
    assert next_step(Role.INITIATOR, locks, replace(view, now_a=locks.t1, now_b=locks.t1)) is Step.TAKE_BACK


@pytest.mark.parametrize("change", ["amount", "late", "gap"])
def test_a_follower_locks_nothing_on_what_was_not_agreed(change: str) -> None:
    locks = planned()
    view = View(LockState.HELD, LockState.ABSENT, NOW + 4, NOW + 4, False)
    assert next_step(Role.FOLLOWER, locks, view) is Step.LOCK
    if change == "amount":
        view = replace(view, a=LockState.OTHER)
    elif change == "late":
        view = replace(view, now_a=locks.t2 - 3, now_b=locks.t2 - 3)
    else:
        locks = replace(locks, t1=locks.t2 + locks.gap_min)
    assert next_step(Role.FOLLOWER, locks, view) is Step.DONE


# --- two chains


class Side:
    """A chain with a token, an escrow, and the two parties' accounts on it."""

    def __init__(self, name: str, chain_id: int, confirmations: int) -> None:
        self.name, self.confirmations = name, confirmations
        self.chain = Chain(chain_id=chain_id)
        self.initiator, self.follower = self.chain.account(), self.chain.account()
        self.escrow = self.chain.deploy(ESCROW)
        self.token = self.chain.deploy(TOKEN, [name, name, 2])
        self.payer = self.initiator if name == "A" else self.follower
        payee = self.follower if name == "A" else self.initiator
        self.chain.send(self.chain.issuer, self.token, TOKEN.call("mint", self.payer.address, 500))
        self.chain.send(self.payer, self.token, TOKEN.call("approve", self.escrow, 500))
        self.terms = LockTerms(self.escrow, self.token, self.payer.address, payee.address, 120)

    def access(self, account: LocalAccount) -> ChainSide:
        node = Node("http://chain.invalid", transport=self.chain.transport())
        view = ChainView(
            self.name,
            [node],
            chain_id=self.chain.chain_id,
            confirmations=self.confirmations,
            memory=FinalBlocksInMemory(),
        )
        return ChainSide(node, view, Sender(node, account, chain_id=self.chain.chain_id, gas=GasPolicy()))

    def balances(self) -> tuple[int, int, int]:
        found = []
        for who in (self.initiator.address, self.follower.address, self.escrow):
            data = self.chain.call(self.token, TOKEN.call("balanceOf", who))
            found.append(int(TOKEN.result("balanceOf", data)[0]))
        return found[0], found[1], found[2]

    def now(self) -> int:
        return int(self.chain.rpc("eth_getBlockByNumber", ["latest", False])["timestamp"], 16)


@dataclass
class World:
    a: Side
    b: Side
    swap: Swap
    secret: bytes

    def initiator(self) -> HtlcParty:
        a, b = self.a.access(self.a.initiator), self.b.access(self.b.initiator)
        return HtlcParty(Role.INITIATOR, self.swap, a=a, b=b, secret=self.secret)

    def follower(self) -> HtlcParty:
        return HtlcParty(Role.FOLLOWER, self.swap, a=self.a.access(self.a.follower), b=self.b.access(self.b.follower))

    def mine(self, seconds: int = 0) -> None:
        self.a.chain.mine(1, seconds=seconds)
        self.b.chain.mine(1, seconds=seconds)


@pytest.fixture
def world() -> World:
    a, b = Side("A", 71, 2), Side("B", 72, 2)
    clock = IslandClock(finality_seconds=60, skew_seconds=30)
    locks = plan(clock, clock, reaction_seconds=60, now=max(a.now(), b.now()))
    assert isinstance(locks, TimeLocks)
    secret = secrets.token_bytes(32)
    return World(a, b, Swap(uuid4(), hashlib.sha256(secret).digest(), a.terms, b.terms, locks), secret)


def test_two_chains_swap_and_a_party_that_crashes_goes_on(world: World) -> None:
    steps: list[tuple[Step, Step]] = []
    for _ in range(20):
        steps.append(
            (world.initiator().advance(), world.follower().advance())
        )  # each time a new party: nothing is kept
        world.mine()
        if steps[-1] == (Step.DONE, Step.DONE):
            break
    assert steps[-1] == (Step.DONE, Step.DONE)
    assert world.a.balances() == (380, 120, 0)
    assert world.b.balances() == (120, 380, 0)
    assert world.follower().look().is_secret_known


def test_without_a_follower_the_initiator_gets_its_money_back(world: World) -> None:
    initiator = world.initiator()
    assert initiator.advance() is Step.LOCK
    world.mine()
    assert initiator.advance() is Step.WAIT
    world.mine(seconds=world.swap.locks.t1)
    assert initiator.advance() is Step.TAKE_BACK
    world.mine()
    assert initiator.advance() is Step.DONE
    assert world.a.balances() == (500, 0, 0)


def test_an_initiator_that_never_claims_costs_the_follower_only_time(world: World) -> None:
    initiator, follower = world.initiator(), world.follower()
    initiator.advance()
    world.mine()
    assert follower.advance() is Step.LOCK
    world.mine(seconds=world.swap.locks.t1)
    assert follower.advance() is Step.TAKE_BACK
    assert initiator.advance() is Step.TAKE_BACK
    world.mine()
    assert (world.a.balances(), world.b.balances()) == ((500, 0, 0), (0, 500, 0))


def test_the_follower_is_given_no_secret_and_the_initiator_the_right_one(world: World) -> None:
    a, b = world.a.access(world.a.initiator), world.b.access(world.b.initiator)
    with pytest.raises(ValueError, match="not the hash's"):
        HtlcParty(Role.INITIATOR, world.swap, a=a, b=b, secret=bytes(32))
    with pytest.raises(ValueError, match="learns it"):
        HtlcParty(Role.FOLLOWER, world.swap, a=a, b=b, secret=world.secret)

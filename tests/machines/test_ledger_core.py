"""Goal: the ledger's state machine decides exactly what the documented rules say, and its invariants hold (I1-I9).

Method: random small worlds near their limits and random blocks, each decided by the state machine and by the
reference model, compared item by item and total by total; a state machine with one rule an operation and one invariant
a number; the same traffic cut into other blocks; the journal replayed into a fresh state.
JIAOZI_HYPOTHESIS_EXAMPLES=20000 turns it into a campaign.
"""

from __future__ import annotations

import copy
import os
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ledger.domain import decide as decide_module
from ledger.domain.state import COLUMNS
from ledger.domain.vocabulary import AccountKind, TransferRefusal
from ledger.domain.vocabulary import TransferKind as Kind
from tests.machines import core_world as world
from tests.machines.core_world import HASHES, HOUR, ISSUANCE, NEW_YEAR, SECOND, SECRETS, UNCAPPED, Twin
from tests.machines.reference_model import BOOKED, DUPLICATE, Item

EXAMPLES = int(os.environ.get("JIAOZI_HYPOTHESIS_EXAMPLES", "0"))
PAUSES = (0, 1, SECOND, HOUR, 9 * HOUR, 16 * HOUR, 30 * HOUR)


def profile(examples: int) -> settings:
    return settings(
        max_examples=EXAMPLES or examples, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
    )


class Paths:
    """Counts how each block was decided: items in the vectorised part and items in the ordered part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ordered: list[int] = []
        run = decide_module._Ordered.run

        def counting(ordered: Any, positions: Any) -> None:
            positions = list(positions)
            self.ordered.append(len(positions))
            run(ordered, positions)

        monkeypatch.setattr(decide_module._Ordered, "run", counting)


# --- (a) item by item against the reference model


@pytest.mark.campaign
@profile(40)
@given(random=st.randoms(use_true_random=False), sizes=st.lists(st.integers(1, 60), min_size=1, max_size=3))
def test_mixed_blocks_are_decided_as_the_reference_model_decides_them(random: Random, sizes: list[int]) -> None:
    twin = world.small_world(random)
    for size in sizes:
        decision = twin.run(world.traffic(random, twin, size), at=twin.now + random.choice(PAUSES))
        event(f"booked {len(decision.journal) * 4 // size}/4 of a block")


@pytest.mark.campaign
@profile(20)
@given(random=st.randoms(use_true_random=False), size=st.integers(1, 60))
def test_plain_blocks_are_decided_as_the_reference_model_decides_them(random: Random, size: int) -> None:
    twin = world.small_world(random)
    for _ in range(2):
        decision = twin.run(world.traffic(random, twin, size, only_plain=True), at=twin.now + random.choice(PAUSES))
        event(f"vectorised part: {'some' if len(decision.effects.amount) else 'none'}")
        event(f"ordered part: {'some' if decision.effects.running else 'none'}")


def test_seeded_plain_blocks_are_decided_vectorised_in_order_and_in_part_each(monkeypatch: pytest.MonkeyPatch) -> None:
    paths, seen = Paths(monkeypatch), Counter[str]()
    for seed in range(300):
        random = Random(seed)
        twin = world.small_world(random)
        paths.ordered.clear()
        decision = twin.run(world.traffic(random, twin, 40, only_plain=True))
        in_order = sum(paths.ordered)
        assert in_order < 40 or not len(decision.effects.amount)
        vectorised = bool(len(decision.effects.amount))
        seen[f"{'vectorised ' * vectorised}{'ordered' * bool(in_order)}"] += 1
        seen["refused in order"] += bool(in_order and len(decision.effects.running) and (decision.codes > 0).any())
    assert min(seen["vectorised ordered"], seen["vectorised "], seen["ordered"]) >= 15, seen
    assert seen["refused in order"] >= 60, seen


@pytest.mark.extended
def test_seeded_mixed_blocks_meet_every_outcome_that_a_client_can_cause() -> None:
    """The generator is only as good as what it reaches: every refusal, booking and repeat."""
    seen: Counter[str] = Counter()
    for seed in range(200):
        random = Random(seed)
        twin = world.small_world(random)
        for _ in range(2):
            seen.update(world.outcomes(twin.run(world.traffic(random, twin, 60), at=twin.now + random.choice(PAUSES))))
    missing = {BOOKED, DUPLICATE, *map(str, TransferRefusal)} - set(seen)
    assert not missing, missing


def test_an_empty_block_changes_nothing() -> None:
    twin = Twin()
    decision = twin.run([])
    assert len(decision.codes) == len(decision.journal) == 0


# --- (c) the same traffic in other blocks


@pytest.mark.campaign
@profile(30)
@given(
    random=st.randoms(use_true_random=False), size=st.integers(2, 60), only_plain=st.booleans(), cut=st.integers(1, 59)
)
def test_where_a_block_is_cut_changes_no_outcome(random: Random, size: int, only_plain: bool, cut: int) -> None:
    whole = world.small_world(random)
    items = world.traffic(random, whole, size, only_plain=only_plain)
    items[-1] = replace(items[-1], linked=False)
    cuts = [position for position in range(1, size) if not items[position - 1].linked]
    cut = min(cuts, key=lambda position: abs(position - cut), default=0)
    parts = copy.deepcopy(whole)
    one = world.apply(whole.state, items, at=whole.now, known=whole.known)
    first = world.apply(parts.state, items[:cut], at=whole.now, known=parts.known)
    second = world.apply(parts.state, items[cut:], at=whole.now, known=parts.known)
    assert world.outcomes(one) == world.outcomes(first) + world.outcomes(second)
    assert one.seqs.tolist() == first.seqs.tolist() + second.seqs.tolist()
    assert one.journal.tobytes() == first.journal.tobytes() + second.journal.tobytes()
    assert world.totals_of(whole.state) == world.totals_of(parts.state)


# --- (b) a state machine


class LedgerMachine(RuleBasedStateMachine):
    """Every rule decides one block with the twin, which compares; the invariants are those of the architecture."""

    @initialize(caps=st.sampled_from([20, 60, 10**6]))
    def open(self, caps: int) -> None:
        self.twin = Twin()
        self.frozen: set[int] = set()
        self.held_when_capped: dict[int, int] = {}
        self.ends: Counter[int] = Counter()
        self.blocks: list[tuple[list[Item], int]] = []
        self.openings: list[tuple[AccountKind, int, world.Caps]] = []
        for kind, participant in (("vault", 1), ("vault", 2), ("wallet", 1), ("wallet", 1), ("wallet", 2)):
            limits = UNCAPPED if kind == "vault" else (caps, caps // 2, caps, 2 * caps)
            self.openings.append((AccountKind(kind), participant, limits))
            self.twin.open_account(*self.openings[-1])
        self.journal: list[tuple[Any, ...]] = []
        self.wallets = [n for n, a in self.twin.model.accounts.items() if a["kind"] == "wallet"]
        for vault in (2, 3):
            self.block(Item(self.twin.next_id(), Kind.ISSUE, ISSUANCE, vault, 200, authority="mandate"))
        for wallet in self.wallets:
            owner = self.twin.model.accounts[wallet]["participant"]
            item = Item(self.twin.next_id(), Kind.EXCHANGE_IN, 1 + owner, wallet, min(caps, 15), submitter=owner)
            self.block(item)

    def block(self, *items: Item) -> list[str]:
        decision = self.twin.run(list(items))
        self.blocks.append((list(items), self.twin.now))
        self.journal += world.journal_rows(decision)
        self.ends.update(items[position].hold for position in decision.hold_ends)
        return world.outcomes(decision)

    @rule(vault=st.sampled_from([2, 3]), amount=st.integers(1, 80))
    def issue(self, vault: int, amount: int) -> None:
        outstanding = self.twin.model.participants[vault - 1]["outstanding"]
        got = self.block(Item(self.twin.next_id(), Kind.ISSUE, ISSUANCE, vault, amount, authority="mandate"))
        assert got == ["credit-account-frozen" if vault in self.frozen else BOOKED]
        now = self.twin.model.participants[vault - 1]["outstanding"]
        assert now == outstanding + amount * (got == [BOOKED])

    @rule(vault=st.sampled_from([2, 3]), amount=st.integers(1, 300))
    def redeem(self, vault: int, amount: int) -> None:
        self.block(Item(self.twin.next_id(), Kind.REDEEM, vault, ISSUANCE, amount, authority="mandate"))

    @rule(seed=st.integers(0, 2**32), size=st.integers(1, 12))
    def payments(self, seed: int, size: int) -> None:
        self.block(*world.traffic(Random(seed), self.twin, size, only_plain=True))

    @rule(payer=st.integers(4, 6), payee=st.integers(4, 6), amount=st.integers(1, 20), forged=st.booleans())
    def payment(self, payer: int, payee: int, amount: int, forged: bool) -> None:
        version = 2 if forged else 1
        item = Item(self.twin.next_id(), Kind.PAYMENT, payer, payee, amount, authority="owner", key_version=version)
        assert not (self.block(item) == [BOOKED] and forged), "I8"

    @rule(payer=st.integers(4, 6), payee=st.integers(2, 6), amount=st.integers(1, 15), ttl=st.integers(0, 40))
    def hold(self, payer: int, payee: int, amount: int, ttl: int) -> None:
        plain = ttl > 20
        commit, abort = (None, None) if plain else (HASHES[0], HASHES[2])
        due = self.twin.now + ttl * HOUR if plain else 0
        number = self.twin.next_id()
        item = Item(number, Kind.HOLD, payer, payee, amount, expires_at=due, authority="owner", key_version=1)
        self.block(replace(item, commit=commit, abort=abort))

    @rule(
        which=st.integers(0, 30),
        part=st.integers(0, 15),
        kind=st.sampled_from([Kind.POST, Kind.VOID]),
        right=st.booleans(),
    )
    def end(self, which: int, part: int, kind: Kind, right: bool) -> None:
        hold = self.some_hold(which)
        terms = self.twin.model.holds.get(hold, {"to": 2, "terms": (None, None, 0)})
        submitter = self.twin.model.accounts[terms["to"]]["participant"]
        item = Item(self.twin.next_id(), kind, amount=part if kind is Kind.POST else 0, hold=hold)
        if terms["terms"][0] is None:
            item = replace(item, submitter=submitter if right else 3 - submitter)
        else:
            item = replace(item, authority="secret", secret=SECRETS[2 * ((kind is Kind.VOID) == right)])
        assert right or hold not in self.twin.model.holds or self.block(item) != [BOOKED], "I8"
        if right:
            self.block(item)

    @rule(which=st.integers(0, 30))
    def expire(self, which: int) -> None:
        self.block(Item(self.twin.next_id(), Kind.EXPIRE, hold=self.some_hold(which), authority="engine"))

    def some_hold(self, which: int) -> int:
        holds = [number for number, row in self.twin.model.rows.items() if row[2] is Kind.HOLD] + [999]
        return holds[-1 - which % len(holds)]

    @rule(seed=st.integers(0, 2**32), size=st.integers(2, 6))
    def chain(self, seed: int, size: int) -> None:
        items = [replace(item, linked=True) for item in world.traffic(Random(seed), self.twin, size)]
        items[-1] = replace(items[-1], linked=False)
        got = self.block(*items)
        assert all(o in (BOOKED, DUPLICATE) for o in got) or BOOKED not in got, "a linked chain is all or nothing"

    @rule(account=st.integers(2, 6))
    def freeze_or_release(self, account: int) -> None:
        self.frozen ^= {account}
        self.twin.freeze(account, account in self.frozen)

    @rule(account=st.integers(4, 6), cap=st.none() | st.integers(0, 60), version=st.integers(1, 6))
    def cap_balance(self, account: int, cap: int | None, version: int) -> None:
        """A version that comes late is no change: the model and the ledger say so each by itself."""
        self.twin.cap(account, cap, version=version)
        model = self.twin.model.accounts[account]
        assert self.twin.state.balance_max(account) == model["caps"][0]
        self.held_when_capped[account] = self.holding(account)

    def holding(self, account: int) -> int:
        return int(self.twin.state.balance(account) + self.twin.state.credits_pending[account])

    @rule(hours=st.sampled_from([1, 8, 16, 30, 24 * 366]))
    def time_passes(self, hours: int) -> None:
        self.twin.now += hours * HOUR

    @rule(which=st.integers(0, 200))
    def retry(self, which: int) -> None:
        """The same item again, whoever sends it and whenever, books nothing."""
        items, _ = self.blocks[which % len(self.blocks)]
        booked = [i for i in items if i.id in self.twin.model.rows and self.twin.model._is_repeat(i)]
        again = [replace(item, linked=False) for item in booked]
        assert set(self.block(*again)) <= {DUPLICATE}, "I7"

    @rule()
    def replay(self) -> None:
        """The journal's own rows, decided again in a fresh state, give the same state bit for bit."""
        fresh = world.new_state()
        world.add_account(fresh, AccountKind.ISSUANCE, 0, UNCAPPED)
        for opening in self.openings:
            world.add_account(fresh, *opening)
        submitted = {item.id: item for items, _ in self.blocks for item in items if item.id in self.twin.model.rows}
        by_time: dict[int, list[Item]] = {}
        for _, number, kind, debit, credit, amount, hold, reference, submitter, booked_at in self.journal:
            commit, abort, expires_at = self.twin.model.terms.get(number, (None, None, 0))
            kind = Kind.VOID if kind is Kind.TOMBSTONE else kind
            by_time.setdefault(booked_at, []).append(
                replace(
                    self.evidence(submitted, number, kind, hold), debit=debit, credit=credit, amount=amount,
                    reference=reference, submitter=submitter, commit=commit, abort=abort, expires_at=expires_at,
                )
            )  # fmt: skip
        rows: list[tuple[Any, ...]] = []
        for booked_at, items in by_time.items():
            rows += world.journal_rows(world.apply(fresh, items, at=booked_at, known={}))
        assert rows == self.journal
        fresh.roll_to(self.twin.state.booked_at)
        fresh.booked_at = self.twin.state.booked_at  # blocks that booked nothing are not in the journal
        assert world.totals_of(fresh) == world.totals_of(self.twin.state)

    def evidence(self, submitted: dict[int, Item], number: int, kind: Kind, hold: int) -> Item:
        """What the journal keeps beside a transfer: its authority, the secret shown."""
        all_items = (item for items, _ in self.blocks for item in items)
        candidates = [item for item in all_items if (item.id, item.kind, item.hold) == (number, kind, hold)]
        proven = [i for i in candidates if i.authority != "owner" or i.key_version == 1]
        return replace(proven[0], linked=False)

    # --- what must always hold

    @invariant()
    def I1_every_row_debits_one_account_and_credits_another(self) -> None:
        for _, _, kind, debit, credit, amount, *_ in self.journal:
            assert kind is Kind.TOMBSTONE or (debit != credit and amount > 0)
        totals = self.twin.state
        assert totals.debits_posted.sum() == totals.credits_posted.sum()

    @invariant()
    def I2_circulation_is_what_the_holders_have(self) -> None:
        state = self.twin.state
        assert state.circulation() == sum(state.balance(account) for account in range(2, state.size))
        assert state.circulation() == sum(p.outstanding for p in state.participants if p is not None)

    @invariant()
    def I3_no_holder_is_overdrawn(self) -> None:
        assert all(self.twin.state.available(account) >= 0 for account in range(2, self.twin.state.size))

    @invariant()
    def I4_the_journal_is_dense_and_in_time_order(self) -> None:
        assert [row[0] for row in self.journal] == list(range(1, len(self.journal) + 1))
        times = [row[-1] for row in self.journal]
        assert times == sorted(times)

    @invariant()
    def I5_the_legs_of_a_chain_are_all_booked_or_none(self) -> None:
        for items, _ in self.blocks[-1:]:
            if len(items) > 1 and all(item.linked for item in items[:-1]):
                booked = {item.id in self.twin.model.rows for item in items}
                assert booked != {True, False} or self.repeats_an_old_id(items)

    def repeats_an_old_id(self, items: list[Item]) -> bool:
        earlier = {item.id for others, _ in self.blocks[:-1] for item in others}
        return any(item.id in earlier for item in items)

    @invariant()
    def I6_every_hold_ends_at_most_once(self) -> None:
        state = self.twin.state
        assert all(count == 1 for count in self.ends.values())
        assert not set(state.holds) & set(state.ended_holds)
        pending = sum(hold.amount for hold in state.holds.values())
        assert state.debits_pending.sum() == state.credits_pending.sum() == pending

    @invariant()
    def I7_every_id_is_booked_at_most_once(self) -> None:
        assert len({row[1] for row in self.journal}) == len(self.journal)

    @invariant()
    def I8_no_wallet_is_debited_by_its_institution(self) -> None:
        vouched = {
            (item.id, item.debit)
            for items, _ in self.blocks
            for item in items
            if item.authority in ("owner", "mandate")
        }
        moved = (row for row in self.journal if row[2] not in (Kind.POST, Kind.VOID, Kind.EXPIRE, Kind.TOMBSTONE))
        for _, number, _, debit, *_ in moved:
            assert debit not in self.wallets or (number, debit) in vouched

    @invariant()
    def I9_no_class_limit_is_exceeded(self) -> None:
        state = self.twin.state
        has_orders = any(row[2] is Kind.ADJUSTMENT for row in self.journal)  # a legal order may pass the balance cap
        for account in self.wallets:
            balance_max, _, day_max, year_max = self.twin.model.accounts[account]["caps"]
            assert state.spent_day[account] <= day_max and state.spent_year[account] <= year_max
            stays = self.held_when_capped.get(account, 0)
            assert has_orders or self.holding(account) <= max(balance_max, stays)


@pytest.mark.campaign
def test_ledger_machine() -> None:
    run_state_machine_as_test(LedgerMachine, settings=settings(profile(15), stateful_step_count=40))


def test_new_year_is_the_schemes_own() -> None:
    """The machine's clock passes 16:00 UTC of 31 December, which is midnight in Shanghai."""
    state = world.new_state()
    assert state.local_date(NEW_YEAR - 1)[1] == 2026 and state.local_date(NEW_YEAR)[1] == 2027
    assert len(COLUMNS) == 6

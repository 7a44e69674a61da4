"""Goal: every way to be refused, the order in which they win over each other, and every rule about holds and chains.

Method: *ladders*. A ladder starts with a transfer that breaks every rule at once; each row mends the rule that the row
before was refused for, so the outcomes must climb the refusals in their order of precedence until the transfer is
booked. Every row is decided alone, by the vectorised and by the ordered path, and held to the reference model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernel.errors import InvariantBroken
from ledger.domain.decide import decide
from ledger.domain.vocabulary import AccountKind, TransferRefusal
from ledger.domain.vocabulary import TransferKind as Kind
from tests.machines import core_world as world
from tests.machines.core_world import HASHES, HOUR, ISSUANCE, NEW_YEAR, SECRETS, UNCAPPED, Twin
from tests.machines.reference_model import BOOKED, DUPLICATE, LARGEST, Item

VAULT_A, VAULT_B, VAULT_F, ALICE, ANN, BOB, CAPPED = range(2, 9)
"""ALICE, ANN and CAPPED belong to participant 1, BOB to 2. CAPPED: holds 200, pays 50 at once, 80 a day, 120 a year."""


@pytest.fixture
def twin() -> Twin:
    twin = Twin()
    for kind, participant, caps in (
        ("vault", 1, UNCAPPED), ("vault", 2, UNCAPPED), ("vault", 3, UNCAPPED), ("wallet", 1, UNCAPPED),
        ("wallet", 1, UNCAPPED), ("wallet", 2, UNCAPPED), ("wallet", 1, (200, 50, 80, 120)),
    ):  # fmt: skip
        twin.open_account(AccountKind(kind), participant, caps)
    for account, amount in ((VAULT_A, 1000), (VAULT_B, 1000), (ALICE, 100), (BOB, 100), (CAPPED, 150)):
        twin.fund(account, amount)
    return twin


def pay(twin: Twin, debit: int = ALICE, credit: int = BOB, amount: int = 10, **change: Any) -> Item:
    item = Item(twin.next_id(), Kind.PAYMENT, debit, credit, amount, authority="owner", key_version=1)
    return replace(item, **change)


def plain_hold(twin: Twin, **change: Any) -> Item:
    return replace(pay(twin, kind=Kind.HOLD, expires_at=twin.now + HOUR), **change)


def locked_hold(twin: Twin, **change: Any) -> Item:
    """Posts with secret 0, voids with secret 2."""
    return replace(pay(twin, kind=Kind.HOLD, commit=HASHES[0], abort=HASHES[2]), **change)


def end(twin: Twin, kind: Kind, hold: Item, **change: Any) -> Item:
    """As the payee's participant (BOB's: 2) may."""
    return replace(Item(twin.next_id(), kind, hold=hold.id, submitter=2), **change)


def reveal(twin: Twin, kind: Kind, hold: Item, secret: int | None, **change: Any) -> Item:
    shown = None if secret is None else SECRETS[secret]
    sender = 1 if kind is Kind.VOID else 0  # a post is anybody's; who voids must be known, or tombstones would pile up
    return end(twin, kind, hold, authority="secret", submitter=sender, secret=shown, **change)


def one(twin: Twin, *items: Item) -> list[str]:
    return world.outcomes(twin.run(list(items)))


def climb(twin: Twin, broken: dict[str, Any], mends: list[tuple[str, dict[str, Any]]], *, ordered: bool) -> None:
    """Decides `broken`, then mends it step by step; each step names the outcome before its mend."""
    item = Item(twin.next_id(), **broken)
    reached = []
    for outcome, mend in mends:
        beside = [Item(twin.next_id(), None, 1, 2, 1)] if ordered else []
        got = one(twin, item, *beside)[0]
        assert got == outcome, item
        reached.append(outcome)
        item = replace(item, **mend)
    order = [str(refusal) for refusal in TransferRefusal]
    places = [order.index(outcome) for outcome in reached if outcome in order]
    assert places == sorted(places), "the ladder itself is not in order of precedence"


both_paths = pytest.mark.parametrize("ordered", [False, True], ids=["vectorised", "ordered"])


# --- ladders


@both_paths
def test_ladder_of_a_payment(twin: Twin, ordered: bool) -> None:
    full = twin.open_account(AccountKind.WALLET, 2, (15, LARGEST, LARGEST, LARGEST))
    used = pay(twin, amount=1)
    assert one(twin, used) == [BOOKED]
    twin.freeze(CAPPED)
    twin.freeze(full)
    broken = {"kind": Kind.ISSUE, "debit": 99, "credit": 99, "amount": -1, "authority": "mandate"}
    fresh = twin.next_id()
    climb(
        twin,
        broken,
        [
            ("amount-invalid", {"amount": 0}),
            ("amount-invalid", {"amount": 151}),
            ("accounts-must-differ", {"credit": -7, "id": used.id}),
            ("id-already-used", {"id": fresh}),
            ("debit-account-unknown", {"debit": 0}),
            ("debit-account-unknown", {"debit": -1}),
            ("debit-account-unknown", {"debit": -(2**63)}),
            ("debit-account-unknown", {"debit": 2**63 - 1}),
            ("debit-account-unknown", {"debit": twin.state.size}),
            ("debit-account-unknown", {"debit": CAPPED}),
            ("credit-account-unknown", {"credit": 2**40}),
            ("credit-account-unknown", {"credit": full}),
            ("kind-not-allowed", {"kind": None}),
            ("kind-not-allowed", {"kind": Kind.TOMBSTONE}),
            ("kind-not-allowed", {"kind": Kind.PAYMENT}),
            ("not-authorised", {"authority": "owner", "key_version": 2}),
            ("not-authorised", {"key_version": 0}),
            ("not-authorised", {"key_version": 1}),
        ],
        ordered=ordered,
    )
    item = pay(twin, CAPPED, full, 151)
    assert one(twin, item) == ["debit-account-frozen"]
    twin.freeze(CAPPED, False)
    assert one(twin, item) == ["credit-account-frozen"]
    twin.freeze(full, False)
    climb(
        twin,
        {name: value for name, value in vars(item).items() if name != "id"},
        [
            ("single-limit-exceeded", {"amount": 50}),
            ("balance-limit-exceeded", {"amount": 16}),
            ("balance-limit-exceeded", {"amount": 15}),
            (BOOKED, {}),
            (DUPLICATE, {}),
        ],
        ordered=ordered,
    )


@both_paths
def test_ladder_of_day_year_funds_and_balance(twin: Twin, ordered: bool) -> None:
    """CAPPED has 150: after 80 on one day and 40 on the next it may pay no more this year."""
    full = twin.open_account(AccountKind.WALLET, 2, (0, LARGEST, LARGEST, LARGEST))
    beside = [Item(twin.next_id(), None, 1, 2, 1)] if ordered else []
    assert one(twin, pay(twin, CAPPED, BOB, 50), pay(twin, CAPPED, BOB, 30), *beside)[:2] == [BOOKED, BOOKED]
    assert one(twin, pay(twin, CAPPED, full, 51), *beside)[0] == "single-limit-exceeded"
    assert one(twin, pay(twin, CAPPED, full, 50), *beside)[0] == "day-limit-exceeded"
    twin.now += 24 * HOUR  # 31 December in Shanghai
    assert one(twin, pay(twin, CAPPED, full, 41), *beside)[0] == "year-limit-exceeded"
    assert one(twin, pay(twin, CAPPED, BOB, 40), *beside)[0] == BOOKED
    assert one(twin, pay(twin, CAPPED, full, 1), *beside)[0] == "year-limit-exceeded"
    twin.now = NEW_YEAR
    assert one(twin, pay(twin, CAPPED, full, 31), *beside)[0] == "insufficient-funds"
    assert one(twin, pay(twin, CAPPED, full, 30), *beside)[0] == "balance-limit-exceeded"
    assert one(twin, pay(twin, CAPPED, BOB, 30), *beside)[0] == BOOKED


def test_ladder_of_an_issue(twin: Twin) -> None:
    twin.set_quota(3, 10)
    twin.freeze(VAULT_F)
    issue = Item(twin.next_id(), Kind.ISSUE, ISSUANCE, ALICE, 11, submitter=3)
    assert one(twin, issue) == ["kind-not-allowed"]
    assert one(twin, issue := replace(issue, credit=VAULT_F)) == ["not-authorised"]
    assert one(twin, issue := replace(issue, authority="mandate")) == ["credit-account-frozen"]
    twin.freeze(VAULT_F, False)
    assert one(twin, issue) == ["quota-exceeded"]
    assert one(twin, replace(issue, amount=10)) == [BOOKED]
    assert one(twin, replace(issue, id=twin.next_id(), amount=1)) == ["quota-exceeded"]
    redeem = Item(twin.next_id(), Kind.REDEEM, VAULT_F, ISSUANCE, 4, authority="mandate")
    assert one(twin, redeem, replace(issue, id=twin.next_id(), amount=4)) == [BOOKED, BOOKED]


def test_ladder_of_a_hold(twin: Twin) -> None:
    """Its own refusals stand between authority and freezes; the entombed id wins over bad terms."""
    twin.freeze(ALICE)
    hold = plain_hold(twin, expires_at=twin.now, key_version=2)
    assert one(twin, end(twin, Kind.VOID, hold)) == [BOOKED]
    assert one(twin, hold) == ["not-authorised"]
    assert one(twin, hold := replace(hold, key_version=1)) == ["hold-already-voided"]
    assert one(twin, hold := replace(hold, id=twin.next_id())) == ["hold-terms-invalid"]
    assert one(twin, hold := replace(hold, expires_at=twin.now + 1)) == ["debit-account-frozen"]
    twin.freeze(ALICE, False)
    assert one(twin, hold) == [BOOKED]


@pytest.mark.parametrize(
    "terms",
    [
        {"expires_at": 0},
        {"expires_at": -1},
        {"commit": HASHES[0]},
        {"abort": HASHES[0]},
        {"commit": HASHES[0], "abort": HASHES[0]},
        {"commit": HASHES[0], "abort": HASHES[1], "expires_at": 1},
        {"commit": HASHES[0], "abort": HASHES[1], "expires_at": -1},
    ],
)
def test_a_hold_needs_a_future_expiry_or_two_different_hashes(twin: Twin, terms: dict[str, Any]) -> None:
    assert one(twin, plain_hold(twin, **terms)) == ["hold-terms-invalid"]


def test_ladder_of_a_post_of_a_conditional_hold(twin: Twin) -> None:
    hold = locked_hold(twin, expires_at=twin.now + HOUR)
    post = reveal(twin, Kind.POST, hold, None, amount=11)
    assert one(twin, post) == ["hold-not-found"]
    assert one(twin, hold) == [BOOKED]
    assert one(twin, post) == ["not-authorised"]
    assert one(twin, post := replace(post, secret=SECRETS[2])) == ["hold-secret-wrong"]
    assert one(twin, post := replace(post, secret=SECRETS[0])) == ["hold-amount-exceeded"]
    assert one(twin, post := replace(post, amount=9)) == ["hold-amount-exceeded"]
    assert one(twin, replace(post, amount=10)) == [BOOKED]
    assert one(twin, reveal(twin, Kind.VOID, hold, 2)) == ["hold-already-posted"]


def test_a_due_hold_is_expired_for_a_post_whatever_secret_is_shown(twin: Twin) -> None:
    hold = locked_hold(twin, expires_at=twin.now + HOUR)
    assert one(twin, hold) == [BOOKED]
    twin.now += HOUR
    assert one(twin, reveal(twin, Kind.POST, hold, 1)) == ["hold-expired"]
    assert one(twin, reveal(twin, Kind.POST, hold, 0)) == ["hold-expired"]
    assert one(twin, reveal(twin, Kind.VOID, hold, 2)) == [BOOKED]


def move(twin: Twin, kind: Kind, debit: int, credit: int, amount: int) -> Item:
    """Between vaults, by their participants; `issue` by mandate."""
    authority = "mandate" if kind is Kind.ISSUE else "institution"
    due = twin.now + HOUR if kind is Kind.HOLD else 0
    return Item(twin.next_id(), kind, debit, credit, amount, 0, 0, due, authority=authority, submitter=debit - 1)


def test_a_running_total_never_leaves_63_bits(twin: Twin) -> None:
    """Vault A receives 5/8 of the range, passes it on, and cannot receive as much again: its credits only grow."""
    unit = 2**60
    assert one(twin, move(twin, Kind.ISSUE, ISSUANCE, VAULT_A, 5 * unit)) == [BOOKED]
    assert one(twin, move(twin, Kind.REFUND, VAULT_A, VAULT_B, 5 * unit)) == [BOOKED]
    assert one(twin, move(twin, Kind.REFUND, VAULT_B, VAULT_A, 3 * unit)) == ["amount-overflow"]
    assert one(twin, move(twin, Kind.HOLD, VAULT_B, VAULT_A, 3 * unit)) == ["amount-overflow"]
    assert one(twin, move(twin, Kind.ISSUE, ISSUANCE, VAULT_F, 3 * unit)) == ["amount-overflow"]
    assert one(twin, move(twin, Kind.ISSUE, ISSUANCE, VAULT_F, 2 * unit)) == [BOOKED]


def test_posting_every_open_hold_never_overflows(twin: Twin) -> None:
    """Attack: each hold alone fits beside what was posted, both together would wrap the payee's credits."""
    unit = 2**60
    assert one(twin, move(twin, Kind.ISSUE, ISSUANCE, VAULT_B, 7 * unit)) == [BOOKED]
    assert one(twin, move(twin, Kind.REFUND, VAULT_B, VAULT_A, 5 * unit)) == [BOOKED]
    assert one(twin, move(twin, Kind.REFUND, VAULT_A, VAULT_F, 5 * unit)) == [BOOKED]
    holds = [move(twin, Kind.HOLD, payer, VAULT_A, 2 * unit) for payer in (VAULT_B, VAULT_F)]
    assert one(twin, *holds) == [BOOKED, "amount-overflow"]
    assert one(twin, move(twin, Kind.REFUND, VAULT_F, VAULT_A, unit)) == ["amount-overflow"]
    assert one(twin, end(twin, Kind.POST, holds[0], submitter=1)) == [BOOKED]


@pytest.mark.parametrize("amount", [2**49, 2**49 + 1, 2**62, 2**63 - 1])
@both_paths
def test_large_amounts_are_refused_for_want_of_funds(twin: Twin, amount: int, ordered: bool) -> None:
    beside = [Item(twin.next_id(), None, 1, 2, 1)] if ordered else []
    assert one(twin, pay(twin, amount=amount), pay(twin, amount=1), *beside)[:2] == ["insufficient-funds", BOOKED]


def test_sums_of_a_huge_batch_never_wrap() -> None:
    """Attack: 2**15 payments of 2**49 add up to 2**64, which is 0 in 64 bits: an empty wallet could pay them all."""
    state = world.new_state()
    for kind, participant in (("issuance", 0), ("vault", 1), ("vault", 2)):
        world.add_account(state, AccountKind(kind), participant, UNCAPPED)
    size = 2**15
    batch = world.to_batch([Item(1, Kind.PAYMENT, 2, 3, 2**49, submitter=1)])
    batch = replace(
        batch,
        records=np.repeat(batch.records, size),
        authority=np.repeat(batch.authority, size),
        submitter=np.repeat(batch.submitter, size),
        key_version=np.repeat(batch.key_version, size),
    )
    batch.records["id_low"] = np.arange(1, size + 1)
    state.roll_to(NEW_YEAR)
    decision = decide(state, batch, booked_at=NEW_YEAR)
    assert len(decision.journal) == 0, "money from nothing (I2, I3)"


# --- kinds and authority (I8)

KINDS = """
# kind          debit     credit    authority    submitter key | outcome
  issue         ISSUANCE  VAULT_A   mandate      0         0   | booked
  issue         ISSUANCE  VAULT_A   institution  1         0   | not-authorised
  issue         ISSUANCE  VAULT_A   owner        0         0   | not-authorised
  issue         ISSUANCE  VAULT_A   engine       0         0   | not-authorised
  issue         ISSUANCE  ALICE     mandate      0         0   | kind-not-allowed
  issue         VAULT_A   VAULT_B   mandate      0         0   | kind-not-allowed
  redeem        VAULT_A   ISSUANCE  mandate      0         0   | booked
  redeem        VAULT_A   ISSUANCE  institution  1         0   | not-authorised
  redeem        ALICE     ISSUANCE  mandate      0         0   | kind-not-allowed
  exchange-in   VAULT_A   ALICE     institution  1         0   | booked
  exchange-in   VAULT_A   BOB       institution  1         0   | kind-not-allowed
  exchange-in   VAULT_A   ALICE     institution  2         0   | not-authorised
  exchange-in   ALICE     VAULT_A   owner        0         1   | kind-not-allowed
  exchange-out  ALICE     VAULT_A   owner        1         1   | booked
  exchange-out  ALICE     VAULT_B   owner        1         1   | kind-not-allowed
  exchange-out  ALICE     VAULT_A   institution  1         0   | not-authorised
  payment       ALICE     BOB       owner        0         1   | booked
  payment       ALICE     BOB       institution  1         1   | not-authorised
  payment       ALICE     BOB       mandate      0         1   | not-authorised
  payment       ALICE     BOB       secret       0         1   | not-authorised
  payment       ALICE     BOB       engine       0         1   | not-authorised
  payment       ALICE     BOB       owner        0         0   | not-authorised
  payment       ALICE     BOB       owner        0         2   | not-authorised
  payment       ALICE     ISSUANCE  owner        0         1   | kind-not-allowed
  payment       ISSUANCE  ALICE     mandate      0         0   | kind-not-allowed
  payment       VAULT_A   BOB       institution  1         0   | booked
  payment       VAULT_A   BOB       institution  2         0   | not-authorised
  payment       VAULT_A   BOB       institution  0         0   | not-authorised
  payment       VAULT_A   BOB       owner        2         1   | booked
  payment       VAULT_A   BOB       owner        1         2   | not-authorised
  refund        BOB       ALICE     owner        0         1   | booked
  refund        BOB       ALICE     institution  2         0   | not-authorised
  interest      VAULT_A   BOB       institution  1         0   | booked
  interest      ALICE     BOB       owner        0         1   | kind-not-allowed
  adjustment    ALICE     BOB       mandate      0         0   | booked
  adjustment    ALICE     BOB       owner        0         1   | not-authorised
  adjustment    VAULT_A   BOB       institution  1         0   | not-authorised
  adjustment    ISSUANCE  BOB       mandate      0         0   | kind-not-allowed
  tombstone     ALICE     BOB       owner        0         1   | kind-not-allowed
"""
ROWS = [line.replace("|", " ").split() for line in KINDS.strip().splitlines()[1:]]


@both_paths
@pytest.mark.parametrize("row", ROWS, ids=["-".join(row) for row in ROWS])
def test_kinds_and_authorities(twin: Twin, row: list[str], ordered: bool) -> None:
    kind, debit, credit, authority, submitter, key_version, outcome = row
    numbers = globals()
    item = Item(
        twin.next_id(), Kind(kind), numbers[debit], numbers[credit], 5,
        authority=authority, submitter=int(submitter), key_version=int(key_version),
    )  # fmt: skip
    beside = [Item(twin.next_id(), None, 1, 2, 1)] if ordered else []
    assert one(twin, item, *beside)[0] == outcome


def test_a_rotated_key_no_longer_debits(twin: Twin) -> None:
    twin.state.key_version[ALICE] = twin.model.accounts[ALICE]["key_version"] = 2
    participant = twin.state.participants[1]
    assert participant is not None
    twin.state.rotate_participant_key(participant, b"{}")
    twin.model.participants[1]["key_version"] = 2
    vault = pay(twin, VAULT_A)
    assert one(twin, pay(twin), pay(twin, key_version=2), vault, pay(twin, VAULT_A, key_version=2)) == [
        "not-authorised", BOOKED, "not-authorised", BOOKED
    ]  # fmt: skip


def test_a_legal_order_reaches_frozen_accounts_and_passes_the_balance_cap_but_not_the_funds(twin: Twin) -> None:
    twin.freeze(ALICE)
    twin.freeze(CAPPED)
    order = Item(twin.next_id(), Kind.ADJUSTMENT, ALICE, CAPPED, 101, authority="mandate")
    assert one(twin, order) == ["insufficient-funds"]
    assert one(twin, replace(order, amount=100)) == [BOOKED]


# --- holds (I6)


def test_a_plain_hold_is_posted_in_part_by_the_payees_participant_only(twin: Twin) -> None:
    hold = plain_hold(twin, amount=60)
    assert one(twin, hold, pay(twin, amount=41)) == [BOOKED, "insufficient-funds"]
    post = end(twin, Kind.POST, hold, amount=61)
    assert one(twin, replace(post, submitter=1)) == ["not-authorised"]
    assert one(twin, replace(post, authority="owner", key_version=1)) == ["not-authorised"]
    assert one(twin, replace(post, authority="engine")) == ["not-authorised"]
    assert one(twin, post) == ["hold-amount-exceeded"]
    assert one(twin, replace(post, amount=-1)) == ["amount-invalid"]
    assert one(twin, replace(post, amount=20)) == [BOOKED]
    assert (twin.state.available(ALICE), twin.state.balance(BOB)) == (80, 120)
    assert one(twin, end(twin, Kind.POST, hold), end(twin, Kind.VOID, hold)) == ["hold-already-posted"] * 2


def test_a_hold_is_voided_once_and_whole(twin: Twin) -> None:
    hold = plain_hold(twin)
    void = end(twin, Kind.VOID, hold)
    assert one(twin, hold, replace(void, submitter=1), replace(void, amount=9)) == [
        BOOKED, "not-authorised", "hold-amount-exceeded"
    ]  # fmt: skip
    assert one(twin, void, end(twin, Kind.VOID, hold), end(twin, Kind.POST, hold)) == [
        BOOKED, "hold-already-voided", "hold-already-voided"
    ]  # fmt: skip


def test_only_the_engine_expires_and_only_when_due(twin: Twin) -> None:
    hold, never = plain_hold(twin), locked_hold(twin)
    expire = end(twin, Kind.EXPIRE, hold, authority="engine", submitter=0)
    assert one(twin, expire) == ["hold-not-found"]
    assert one(twin, hold, never, expire) == [BOOKED, BOOKED, "not-authorised"]
    twin.now = hold.expires_at - 1
    assert one(twin, expire) == ["not-authorised"]
    twin.now += 1
    assert one(twin, replace(expire, authority="institution", submitter=2)) == ["not-authorised"]
    assert one(twin, end(twin, Kind.POST, hold)) == ["hold-expired"]
    assert one(twin, expire, replace(expire, id=twin.next_id())) == [BOOKED, "hold-expired"]
    twin.now += 10**6 * HOUR
    assert one(twin, replace(expire, id=twin.next_id(), hold=never.id)) == ["not-authorised"]


def test_ends_ignore_freezes_and_caps(twin: Twin) -> None:
    holds = [plain_hold(twin, debit=CAPPED, amount=20) for _ in range(3)]
    assert one(twin, *holds) == [BOOKED] * 3
    twin.freeze(CAPPED)
    twin.freeze(BOB)
    assert one(twin, end(twin, Kind.POST, holds[0]), end(twin, Kind.VOID, holds[1])) == [BOOKED] * 2
    twin.now += HOUR
    assert one(twin, end(twin, Kind.EXPIRE, holds[2], authority="engine", submitter=0)) == [BOOKED]


def test_what_a_void_gives_back_counts_on_the_same_day_and_in_the_same_year_only(twin: Twin) -> None:
    """Holds of 40 at 15:59 UTC, a minute before midnight in Shanghai; day cap 80, year cap 120."""
    twin.now = NEW_YEAR - 24 * HOUR - 60_000_000
    first, second = plain_hold(twin, debit=CAPPED, amount=40), plain_hold(twin, debit=CAPPED, amount=40)
    assert one(twin, first, second, pay(twin, CAPPED, amount=1)) == [BOOKED, BOOKED, "day-limit-exceeded"]
    assert one(twin, end(twin, Kind.VOID, first), pay(twin, CAPPED, amount=40)) == [BOOKED, BOOKED]
    twin.now += 60_000_000  # 31 December: 80 of the year are spent, none of the day
    assert one(twin, end(twin, Kind.VOID, second)) == [BOOKED]
    assert (twin.state.spent_day[CAPPED], twin.state.spent_year[CAPPED]) == (0, 40)
    third = plain_hold(twin, debit=CAPPED, amount=50, expires_at=twin.now + 99 * HOUR)
    assert one(twin, third) == [BOOKED]
    twin.now = NEW_YEAR - 1
    assert one(twin) == [] and twin.state.spent_year[CAPPED] == 90
    twin.now = NEW_YEAR
    assert one(twin, end(twin, Kind.VOID, third)) == [BOOKED]
    assert (twin.state.spent_day[CAPPED], twin.state.spent_year[CAPPED]) == (0, 0)


def test_a_post_in_part_gives_back_the_rest_of_the_caps(twin: Twin) -> None:
    hold = plain_hold(twin, debit=CAPPED, amount=50)
    assert one(twin, hold, end(twin, Kind.POST, hold, amount=20)) == [BOOKED, BOOKED]
    assert twin.state.spent_day[CAPPED] == twin.state.spent_year[CAPPED] == 20


# --- tombstones


def test_a_void_that_overtakes_its_hold_keeps_it_out(twin: Twin) -> None:
    locked, plain = locked_hold(twin), plain_hold(twin)
    void = reveal(twin, Kind.VOID, locked, 2)
    assert one(twin, void, end(twin, Kind.VOID, plain)) == [BOOKED, BOOKED]
    assert one(twin, void, replace(void, id=twin.next_id())) == [DUPLICATE, "hold-already-voided"]
    assert one(twin, locked, plain) == ["hold-already-voided"] * 2
    assert one(twin, reveal(twin, Kind.POST, locked, 0)) == ["hold-not-found"]


def test_a_strangers_tombstone_does_not_block_the_true_hold(twin: Twin) -> None:
    locked, plain = locked_hold(twin), plain_hold(twin)
    strange = [
        reveal(twin, Kind.VOID, locked, 1),
        reveal(twin, Kind.VOID, plain, 1),
        end(twin, Kind.VOID, locked, submitter=2),
        end(twin, Kind.VOID, plain, submitter=1),
    ]
    assert one(twin, *strange, locked, plain) == [BOOKED] * 6
    assert one(twin, reveal(twin, Kind.POST, locked, 0), end(twin, Kind.POST, plain)) == [BOOKED] * 2


def test_nobody_without_a_secret_or_a_name_leaves_a_tombstone(twin: Twin) -> None:
    for authority in ("secret", "owner", "engine", "mandate"):
        assert one(twin, end(twin, Kind.VOID, plain_hold(twin), authority=authority)) == ["hold-not-found"]
    unknown = replace(reveal(twin, Kind.VOID, locked_hold(twin), 2), submitter=0)
    assert one(twin, unknown) == ["hold-not-found"]


# --- linked chains


def linked(*items: Item, is_open: bool = False) -> list[Item]:
    return [replace(item, linked=True) for item in items[:-1]] + [replace(items[-1], linked=is_open)]


def test_a_chain_with_a_hold_and_its_post_is_all_or_nothing(twin: Twin) -> None:
    hold = locked_hold(twin)
    chain = [hold, reveal(twin, Kind.POST, hold, 0), pay(twin, BOB, ALICE, 110)]
    assert one(twin, *linked(*chain[:2], replace(chain[2], amount=111))) == [
        "linked-transfer-refused", "linked-transfer-refused", "insufficient-funds"
    ]  # fmt: skip
    assert one(twin, *linked(*chain)) == [BOOKED] * 3


def test_a_refused_chain_takes_back_every_effect(twin: Twin) -> None:
    """One link of each kind that leaves a trace, then a refusal; `Twin` compares every total with the model."""
    old, open_ = plain_hold(twin), plain_hold(twin, debit=CAPPED)
    assert one(twin, old, open_) == [BOOKED] * 2
    hold = locked_hold(twin)
    chain = [
        Item(twin.next_id(), Kind.ISSUE, ISSUANCE, VAULT_A, 7, authority="mandate"),
        Item(twin.next_id(), Kind.REDEEM, VAULT_B, ISSUANCE, 9, authority="mandate"),
        pay(twin, CAPPED, BOB, 5),
        hold,
        end(twin, Kind.POST, old, amount=3),
        end(twin, Kind.VOID, open_),
        reveal(twin, Kind.VOID, plain_hold(twin), 3),
    ]
    before = world.totals_of(twin.state)
    bad = pay(twin, amount=10**6)
    after = [pay(twin), end(twin, Kind.POST, old, amount=4), replace(hold, reference=3)]
    got = one(twin, *linked(*chain, bad))
    assert got == ["linked-transfer-refused"] * len(chain) + ["insufficient-funds"]
    assert world.totals_of(twin.state) == before
    assert one(twin, *linked(*chain, bad), *after)[-3:] == [BOOKED] * 3, "a refused link's id is free"


def test_an_open_chain_at_the_end_is_refused_whole(twin: Twin) -> None:
    items = [pay(twin), *linked(pay(twin), pay(twin, amount=10**6), pay(twin), is_open=True)]
    assert one(twin, *items) == [BOOKED] + ["linked-chain-open"] * 3
    assert one(twin, replace(pay(twin), linked=True)) == ["linked-chain-open"]


def test_links_after_the_refused_one_are_not_decided(twin: Twin) -> None:
    items = linked(pay(twin), pay(twin, amount=101), pay(twin, amount=0), pay(twin))
    assert one(twin, *items, pay(twin)) == [
        "linked-transfer-refused", "insufficient-funds", "linked-transfer-refused", "linked-transfer-refused", BOOKED
    ]  # fmt: skip


def test_a_refused_chain_answers_no_link_with_a_booking(twin: Twin) -> None:
    """A repeat inside a refused chain is refused with it: no seq, whether first booked in this block or before."""
    old, new = pay(twin), pay(twin)
    assert one(twin, old) == [BOOKED]
    decision = twin.run([new, *linked(old, new, pay(twin, amount=10**6))])
    assert decision.seqs.tolist()[1:] == [0, 0, 0] and not decision.known


# --- repeated ids (I7)


def test_the_same_transfer_twice_in_a_batch_is_booked_once_under_one_seq(twin: Twin) -> None:
    item = pay(twin)
    decision = twin.run([item, item, replace(item, amount=11), replace(item, credit=ANN), replace(item, reference=1)])
    assert world.outcomes(decision) == [BOOKED, DUPLICATE] + ["id-already-used"] * 3
    assert decision.seqs[1] == decision.seqs[0] and decision.seqs.tolist()[2:] == [0] * 3


def test_a_repeat_from_the_journal_is_answered_with_its_seq(twin: Twin) -> None:
    item, hold = pay(twin), locked_hold(twin)
    first = twin.run([item, hold]).seqs.tolist()
    decision = twin.run([item, hold, replace(item, kind=Kind.REFUND), replace(hold, abort=HASHES[3])])
    assert world.outcomes(decision) == [DUPLICATE, DUPLICATE, "id-already-used", "id-already-used"]
    assert decision.seqs.tolist() == [*first, 0, 0] and set(decision.known) == {0, 1}


def test_a_repeat_needs_no_authority_and_no_funds(twin: Twin) -> None:
    item = pay(twin, amount=100)
    assert one(twin, item) == [BOOKED]
    twin.freeze(ALICE)
    assert one(twin, replace(item, key_version=9, authority="institution", submitter=3)) == [DUPLICATE]


def test_a_refused_id_is_decided_anew(twin: Twin) -> None:
    item = pay(twin, amount=101)
    assert one(twin, item, pay(twin, BOB, ALICE, 1), item) == ["insufficient-funds", BOOKED, BOOKED]


@pytest.mark.parametrize("change", [{"amount": 10}, {"debit": 7}, {"expires_at": 5}], ids=str)
@pytest.mark.parametrize("is_one_block", [True, False], ids=["one-block", "two-blocks"])
def test_a_repeated_end_is_the_same_in_one_block_and_in_two(
    twin: Twin, change: dict[str, Any], is_one_block: bool
) -> None:
    """An end takes accounts and amount from its hold: 0 and the whole amount say the same."""
    hold = plain_hold(twin)
    post = end(twin, Kind.POST, hold)
    blocks = [[hold, post, replace(post, **change)]] if is_one_block else [[hold, post], [replace(post, **change)]]
    assert [one(twin, *items) for items in blocks][-1][-1] == DUPLICATE


def test_terms_that_a_payment_does_not_have_are_not_its_content(twin: Twin) -> None:
    item = pay(twin, expires_at=5)
    assert one(twin, item) == [BOOKED]
    assert one(twin, item) == [DUPLICATE]


def test_an_increasing_and_a_shuffled_batch_find_the_same_repeats(twin: Twin) -> None:
    items = [pay(twin, amount=1) for _ in range(9)]
    assert one(twin, *items[::-1], items[4]) == [BOOKED] * 9 + [DUPLICATE]


# --- time


def test_time_never_runs_backwards(twin: Twin) -> None:
    twin.state.roll_to(twin.state.booked_at)
    with pytest.raises(InvariantBroken, match="I4"):
        twin.state.roll_to(twin.state.booked_at - 1)


def test_a_clock_that_steps_back_over_midnight_does_not_give_the_day_back(twin: Twin) -> None:
    """Attack on I9: an attempt after midnight that books nothing, then the clock is corrected to before midnight."""
    twin.now = NEW_YEAR - 1
    assert one(twin, pay(twin, CAPPED, amount=50), pay(twin, CAPPED, amount=30)) == [BOOKED, BOOKED]
    twin.state.roll_to(NEW_YEAR)
    try:
        twin.state.roll_to(NEW_YEAR - 1)
    except InvariantBroken:
        return
    assert twin.state.spent_day[CAPPED] == 80

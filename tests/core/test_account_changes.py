"""Goal: who may change what of an account, when, in which order refusals win, and what a change does to later payments.

Method: *ladders* as in `test_decide_table`: a change that breaks every rule is mended one rule a row and must climb the
refusals until it is carried out; then what is booked on the changed account, by the vectorised and by
the ordered path, held to the reference model where it knows the case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from kernel.crypto.keys import PrivateKey, Suite
from kernel.ids import show_account
from ledger.domain import account_changes
from ledger.domain.account_changes import Signatures
from ledger.domain.keys import key_bytes
from ledger.domain.state import HOLDER_KEYS_MAX, RuleCaps
from ledger.domain.vocabulary import AccountKind
from ledger.domain.vocabulary import TransferKind as Kind
from ledger.usecases.keyring import decode_holder_key
from tests.machines.core_world import HOUR, UNCAPPED, Twin, outcomes
from tests.machines.reference_model import BOOKED, Item

VAULT, VAULT_B, ALICE, BOB, ESCROW, ESCROW_B = range(2, 8)
DAY = 24 * HOUR
KEYS = [PrivateKey.generate().public.to_jwk() for _ in range(8)]
BY_BANK = Signatures(participant=(1, 1), consent=None)
BY_BOTH = Signatures(participant=(1, 1), consent=1)
BY_HOLDER = Signatures(participant=None, consent=1)


@dataclass
class World:
    """Alice's wallet, Bob's at another bank, vaults and escrow accounts of both banks."""

    twin: Twin
    directive: int = 100

    def ask(self, what: str, signed: Signatures, account: int = ALICE, *, late: int = 0, **more: Any) -> str:
        """Carry a change out `late` microseconds from now, if nothing is against it."""
        change = {"change": what, "account": show_account(account), **more}
        now = self.twin.now + late
        refusal = account_changes.check(self.twin.state, change, signed, valid_until=now + 1, booked_at=now)
        if refusal is not None:
            return refusal.value
        self.directive += 1
        account_changes.apply(self.twin.state, change, directive=self.directive, booked_at=now)
        return "done"

    def book(self, kind: Kind, debit: int, credit: int, amount: int = 1, **more: Any) -> str:
        """The outcome, which both paths agree about."""
        item = Item(self.twin.next_id(), kind, debit, credit, amount, **more)
        return outcomes(self.twin.run([item]))[0]

    def pays(self, version: int, amount: int = 1) -> str:
        """Alice pays Bob with her key of this version."""
        model = self.twin.model.accounts[ALICE]
        versions = [number for number, _ in self.twin.state.holder_keys(ALICE)]
        model["key_version"], model["more_versions"] = versions[0], versions[1:]
        return self.book(Kind.PAYMENT, ALICE, BOB, amount, authority="owner", key_version=version)


@pytest.fixture
def world() -> World:
    twin = Twin()
    twin.state.key_recovery_seconds = 86_400
    for kind, participant in (("vault", 1), ("vault", 2), ("wallet", 1), ("wallet", 2), ("offline", 1), ("offline", 2)):
        twin.open_account(AccountKind(kind), participant, UNCAPPED)
    for account, amount in ((VAULT, 1000), (VAULT_B, 1000), (ALICE, 100), (BOB, 100)):
        twin.fund(account, amount)
    for account in (ALICE, BOB):
        twin.state.replace_keys(account, key_bytes(KEYS[0]), version=1)
    return World(twin)


def test_ladder_of_a_change(world: World) -> None:
    state = world.twin.state
    change: dict[str, Any] = {"change": "add-holder-key", "account": show_account(99), "key": KEYS[0]}
    now = world.twin.now

    def asked(signed: Signatures, *, valid_until: int = now, **mend: Any) -> str:
        change.update(mend)
        refusal = account_changes.check(state, change, signed, valid_until=valid_until, booked_at=now)
        return refusal.value if refusal is not None else "done"

    state.set_standing(ALICE, 4, True)
    foreign, rotated = Signatures((2, 1), 9), Signatures((1, 2), 9)
    assert asked(foreign, valid_until=now - 1) == "instruction-expired"
    assert asked(foreign) == "account-not-found"
    assert asked(foreign, account=show_account(1)) == "account-not-found", "nobody changes the issuance account"
    assert asked(foreign, account=show_account(ALICE)) == "account-not-found", "another bank's account"
    assert asked(rotated) == "unknown-signer"
    assert asked(Signatures(None, 9)) == "instruction-invalid", "the participant signs too"
    assert asked(Signatures((1, 1), 9)) == "account-closed"
    state.set_standing(ALICE, 4, False)
    assert asked(Signatures((1, 1), 9)) == "consent-invalid"
    assert asked(Signatures((1, 1), 0)) == "consent-invalid"
    assert asked(BY_BANK) == "consent-missing"
    assert asked(BY_BOTH) == "key-in-use"
    assert asked(BY_BOTH, key=KEYS[1]) == "done"
    assert asked(BY_BANK, account=show_account(VAULT)) == "holder-key-mismatch"
    assert asked(BY_BANK, account=show_account(ESCROW)) == "holder-key-mismatch"


def test_a_second_device_pays_until_it_is_removed_and_its_version_never_returns(world: World) -> None:
    assert world.ask("add-holder-key", BY_BANK, key=KEYS[1]) == "consent-missing"
    assert world.ask("add-holder-key", BY_BOTH, key=KEYS[1]) == "done"
    assert (world.pays(1), world.pays(101), world.pays(102)) == (BOOKED, BOOKED, "not-authorised")
    assert world.ask("remove-holder-key", BY_BOTH, key=KEYS[2]) == "holder-key-unknown"
    by_second = Signatures((1, 1), 101)
    assert world.ask("remove-holder-key", by_second, key=KEYS[0]) == "done", "the new device removes the old one"
    assert (world.pays(1), world.pays(101)) == ("not-authorised", BOOKED)
    assert world.ask("add-holder-key", BY_BOTH, key=KEYS[2]) == "consent-invalid", "the removed key consents no more"
    assert world.ask("remove-holder-key", by_second, key=KEYS[1]) == "holder-key-last"
    assert world.ask("add-holder-key", by_second, key=KEYS[0]) == "done", "the same key again is another version"
    assert (world.pays(1), world.pays(102), world.pays(103)) == ("not-authorised", "not-authorised", BOOKED)


def test_an_account_has_at_most_five_keys_of_either_suite(world: World) -> None:
    p256 = PrivateKey.generate(Suite.ECDSA_P256_SHA256).public
    keys = [p256.to_jwk(), *KEYS[1:HOLDER_KEYS_MAX]]
    answers = [world.ask("add-holder-key", BY_BOTH, key=key) for key in keys]
    assert answers == ["done"] * (HOLDER_KEYS_MAX - 1) + ["holder-keys-exceeded"]
    kept = [decode_holder_key(key).to_jwk() for _, key in world.twin.state.holder_keys(ALICE)]
    assert kept == [KEYS[0], *keys[:-1]]
    assert [world.pays(version) for version in (1, 101, 102, 103, 104)] == [BOOKED] * 5
    assert world.ask("remove-holder-key", BY_BOTH, key=KEYS[2]) == "done"
    assert world.ask("add-holder-key", BY_BOTH, key=KEYS[6]) == "done", "the place is free again"
    assert world.pays(103) == "not-authorised"


def test_many_wallets_with_several_devices_keep_their_own_keys(world: World) -> None:
    """The table of further keys grows; a row is one account's."""
    twin = world.twin
    for number in range(40):
        wallet = twin.open_account(AccountKind.WALLET, 1, UNCAPPED)
        for key in range(1, 1 + number % HOLDER_KEYS_MAX):
            twin.state.add_key(wallet, bytes([1, wallet, key]), version=1000 * wallet + key)
        versions = [version for version, _ in twin.state.holder_keys(wallet)]
        assert versions == [1, *(1000 * wallet + key for key in range(1, 1 + number % HOLDER_KEYS_MAX))]
        assert not twin.state.has_key_version(wallet, 1000 * (wallet - 1) + 1)
        assert not twin.state.has_key_version(wallet, 0)


def test_a_key_replaced_with_consent_is_the_only_one_at_once(world: World) -> None:
    assert world.ask("add-holder-key", BY_BOTH, key=KEYS[1]) == "done"
    assert world.ask("announce-holder-key", BY_BANK, key=KEYS[2]) == "done"
    assert world.ask("replace-holder-key", BY_BOTH, key=KEYS[3]) == "done"
    assert [world.pays(version) for version in (1, 101, 103)] == ["not-authorised", "not-authorised", BOOKED]
    assert world.twin.state.announced == {}
    assert world.ask("replace-holder-key", BY_BANK, key=KEYS[2], late=9 * DAY) == "key-not-announced"


def test_lost_devices_are_replaced_after_a_day_unless_a_current_key_objects(world: World) -> None:
    new = KEYS[1]
    assert world.ask("replace-holder-key", BY_BANK, key=new) == "key-not-announced"
    assert world.ask("announce-holder-key", BY_BANK, key=KEYS[0]) == "key-in-use"
    assert world.ask("announce-holder-key", BY_BANK, key=new) == "done"
    assert world.ask("suspend", BY_BANK) == "done"
    world.twin.suspend(ALICE)
    assert world.pays(1) == "debit-account-suspended"
    assert world.ask("replace-holder-key", BY_BANK, late=DAY - 1, key=new) == "key-recovery-pending"
    assert world.ask("replace-holder-key", BY_BANK, late=DAY, key=KEYS[2]) == "key-not-announced", "another key"
    assert world.ask("object-to-key", Signatures((1, 1), 1)) == "instruction-invalid", "it is the holder's own"
    assert world.ask("object-to-key", Signatures(None, None)) == "consent-missing"
    assert world.ask("object-to-key", BY_HOLDER) == "done"
    assert world.ask("object-to-key", BY_HOLDER) == "key-not-announced"
    assert world.ask("replace-holder-key", BY_BANK, late=DAY, key=new) == "key-not-announced"
    assert world.ask("announce-holder-key", BY_BANK, key=new) == "done"
    assert world.ask("announce-holder-key", BY_BANK, late=HOUR, key=new) == "done", "the day begins anew"
    assert world.ask("replace-holder-key", BY_BANK, late=DAY, key=new) == "key-recovery-pending"
    assert world.ask("replace-holder-key", BY_BANK, late=DAY + HOUR, key=new) == "done"
    assert world.ask("resume", BY_BANK) == "done"
    world.twin.suspend(ALICE, False)
    assert (world.pays(1), world.pays(world.directive - 1)) == ("not-authorised", BOOKED)


def test_a_suspended_account_is_credited_not_debited_and_its_holds_end(world: World) -> None:
    twin = world.twin
    hold = Item(twin.next_id(), Kind.HOLD, ALICE, BOB, 5, expires_at=twin.now + HOUR, authority="owner", key_version=1)
    assert outcomes(twin.run([hold])) == [BOOKED]
    assert world.ask("suspend", BY_BANK) == "done"
    twin.suspend(ALICE)
    assert world.pays(1) == "debit-account-suspended"
    assert world.book(Kind.EXCHANGE_IN, VAULT, ALICE, submitter=1) == BOOKED
    post = Item(twin.next_id(), Kind.POST, hold=hold.id, submitter=2)
    assert outcomes(twin.run([post])) == [BOOKED], "a settlement is not stopped half way (I5)"
    order = Item(twin.next_id(), Kind.ADJUSTMENT, ALICE, BOB, 1, authority="mandate")
    assert outcomes(twin.run([order])) == [BOOKED], "a legal order reaches it"
    twin.freeze(ALICE)
    assert world.pays(1) == "debit-account-suspended"
    assert world.ask("close", BY_BANK) == "debit-account-frozen", "no way around a legal order"


@pytest.mark.parametrize("ordered", [False, True], ids=["vectorised", "ordered"])
def test_nothing_books_on_a_closed_account(world: World, ordered: bool) -> None:
    twin = world.twin
    assert world.ask("close", BY_BANK) == "account-not-empty"
    assert world.book(Kind.EXCHANGE_OUT, ALICE, VAULT, 100, authority="owner", key_version=1) == BOOKED
    hold = Item(twin.next_id(), Kind.HOLD, BOB, ALICE, 5, expires_at=twin.now + HOUR, authority="owner", key_version=1)
    assert outcomes(twin.run([hold])) == [BOOKED]
    assert world.ask("close", BY_BANK) == "account-not-empty", "a hold is open"
    assert outcomes(twin.run([Item(twin.next_id(), Kind.VOID, hold=hold.id, submitter=1)])) == [BOOKED]
    assert world.ask("close", BY_BANK) == "done"
    twin.close(ALICE)
    rows = [
        Item(twin.next_id(), Kind.PAYMENT, ALICE, BOB, 1, authority="owner", key_version=1),
        Item(twin.next_id(), Kind.PAYMENT, BOB, ALICE, 1, authority="owner", key_version=1),
        Item(twin.next_id(), Kind.EXCHANGE_IN, VAULT, ALICE, 1, submitter=1),
    ]
    if ordered:
        rows += [
            Item(twin.next_id(), Kind.ADJUSTMENT, BOB, ALICE, 1, authority="mandate"),
            Item(twin.next_id(), Kind.HOLD, BOB, ALICE, 1, expires_at=9**20 // 2, authority="owner", key_version=1),
        ]
    assert set(outcomes(twin.run(rows))) == {"account-closed"}
    for what in ("resume", "close", "set-rule-class"):
        assert world.ask(what, BY_BANK, rule_class="none") == "account-closed", "there is no reopening"


def test_a_class_of_smaller_caps_lets_stay_what_is_there_and_nothing_come(world: World) -> None:
    """I9 after a downgrade; the upgrade opens it again."""
    twin = world.twin
    twin.state.set_class(RuleCaps("small", 60, 20, 30, 1000))
    before = twin.state.classes[int(twin.state.rule_class[ALICE])].name
    assert world.ask("set-rule-class", BY_BANK, rule_class="tiny") == "class-unknown"
    assert world.pays(1, 25) == BOOKED
    assert world.ask("set-rule-class", BY_BANK, rule_class="small") == "done"
    twin.model.accounts[ALICE]["caps"] = (60, 20, 30, 1000)
    assert (twin.state.balance(ALICE), world.book(Kind.EXCHANGE_IN, VAULT, ALICE, submitter=1)) == (
        75, "balance-limit-exceeded"
    )  # fmt: skip
    assert world.pays(1, 21) == "single-limit-exceeded"
    assert world.pays(1, 6) == "day-limit-exceeded", "what was spent today counts"
    assert world.pays(1, 5) == BOOKED
    assert world.ask("set-rule-class", BY_BANK, rule_class=before) == "done"
    twin.model.accounts[ALICE]["caps"] = UNCAPPED
    assert world.pays(1, 50) == BOOKED
    assert world.book(Kind.EXCHANGE_IN, VAULT, ALICE, 500, submitter=1) == BOOKED


def test_a_cap_of_its_own_bounds_what_a_wallet_holds(world: World) -> None:
    """I9, by both paths; of a wallet alone, and what was there before stays."""
    twin = world.twin

    def cap(version: int, value: str | None) -> None:
        more = {} if value is None else {"balance_max_minor": value}
        assert world.ask("set-balance-cap", BY_BANK, version=version, **more) == "done"
        model = twin.model.accounts[ALICE]
        model["caps"] = (twin.state.balance_max(ALICE), *model["caps"][1:])

    def comes(amount: int) -> str:
        return world.book(Kind.EXCHANGE_IN, VAULT, ALICE, amount, submitter=1)

    cap(2, "120")
    assert (comes(21), comes(20), comes(1)) == ("balance-limit-exceeded", BOOKED, "balance-limit-exceeded")
    for_ever = {"authority": "owner", "key_version": 1, "commit": bytes(32), "abort": b"\x01" * 32}
    assert world.book(Kind.HOLD, BOB, ALICE, 1, **for_ever) == "hold-terms-invalid", "it would fill the cap for ever"
    cap(1, None)  # late
    assert comes(1) == "balance-limit-exceeded"
    cap(3, "50")
    assert (twin.state.balance(ALICE), world.pays(1, 70), comes(1)) == (120, BOOKED, "balance-limit-exceeded")
    cap(4, None)
    assert comes(500) == BOOKED
    assert world.ask("set-balance-cap", BY_HOLDER, version=5) == "instruction-invalid"
    assert world.ask("set-balance-cap", Signatures((2, 1), None), version=5) == "account-not-found"
    for account in (VAULT, ESCROW):
        assert world.ask("set-balance-cap", BY_BANK, account, version=1) == "kind-not-allowed"
    twin.state.set_class(RuleCaps("small", 60))
    assert world.ask("set-rule-class", BY_BANK, rule_class="small") == "done"
    cap(5, "1000")
    assert twin.state.balance_max(ALICE) == 60, "the stricter of both"


PURSES = """
# kind          debit  credit  by           | outcome
  purse-fund    ALICE  ESCROW  owner 1      | booked
  purse-fund    ALICE  ESCROW  institution 1| not-authorised
  purse-fund    ALICE  ESCROW_B owner 1     | kind-not-allowed
  purse-fund    VAULT  ESCROW  institution 1| kind-not-allowed
  purse-redeem  ESCROW ALICE   institution 1| booked
  purse-redeem  ESCROW BOB     institution 1| booked
  purse-redeem  ESCROW BOB     institution 2| not-authorised
  purse-redeem  ESCROW VAULT   institution 1| kind-not-allowed
  purse-redeem  VAULT  ALICE   institution 1| kind-not-allowed
  purse-loss    ESCROW VAULT   institution 1| booked
  purse-loss    VAULT  ESCROW  institution 1| booked
  purse-loss    VAULT  ESCROW_B institution 1| kind-not-allowed
  purse-loss    ESCROW ALICE   institution 1| kind-not-allowed
  payment       ESCROW BOB     institution 1| kind-not-allowed
  payment       ALICE  ESCROW  owner 1      | kind-not-allowed
  hold          ALICE  ESCROW  owner 1      | kind-not-allowed
  adjustment    ESCROW BOB     mandate 0    | kind-not-allowed
  exchange-out  ALICE  ESCROW  owner 1      | kind-not-allowed
  issue         VAULT  ESCROW  mandate 0    | kind-not-allowed
"""


@pytest.mark.parametrize("row", [line for line in PURSES.splitlines() if "|" in line and "#" not in line])
def test_who_moves_the_escrow_behind_purses(world: World, row: str) -> None:
    left, outcome = row.split("|")
    kind, debit, credit, authority, number = left.split()
    assert world.book(Kind.PURSE_LOSS, VAULT, ESCROW, 10, submitter=1) == BOOKED
    own = {"submitter": int(number)} if authority == "institution" else {"key_version": int(number)}
    places = globals()
    assert world.book(Kind(kind), places[debit], places[credit], authority=authority, **own) == outcome.strip()
    totals = world.twin.state.totals
    assert totals.offline == world.twin.state.balance(ESCROW)
    assert totals.vaults + totals.wallets + totals.offline == totals.issued - totals.redeemed, "I2"


def test_loading_a_purse_counts_towards_the_caps(world: World) -> None:
    """I9: else a day's cap would end at the purse."""
    twin = world.twin
    capped = twin.open_account(AccountKind.WALLET, 1, (200, 50, 80, 120))
    twin.fund(capped, 150)
    load = {"authority": "owner", "key_version": 1}
    assert world.book(Kind.PURSE_FUND, capped, ESCROW, 51, **load) == "single-limit-exceeded"
    assert world.book(Kind.PURSE_FUND, capped, ESCROW, 50, **load) == BOOKED
    assert world.book(Kind.PAYMENT, capped, BOB, 31, **load) == "day-limit-exceeded"
    assert world.book(Kind.PAYMENT, capped, BOB, 30, **load) == BOOKED
    assert world.book(Kind.PURSE_REDEEM, ESCROW, capped, 51, submitter=1) == "insufficient-funds"
    assert world.book(Kind.PURSE_REDEEM, ESCROW, capped, 50, submitter=1) == BOOKED

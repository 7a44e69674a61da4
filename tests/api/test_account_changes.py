"""Account changes over HTTP: classes, several devices, lost devices, suspension, closure, and escrow behind purses.

Goal: what a bank and its customer do with a wallet works with the product's own client, each signature is asked for, a
retry changes nothing, a restart forgets nothing, and the independent verifier finds the journal whole.
Method: one real ledger on real PostgreSQL for the module, real signatures; `key_recovery_seconds` is 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel import ids
from kernel.client import ProblemResponse
from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, Suite
from ledger.client import LedgerClient
from ledger.contract import (
    CHANGE_TYP,
    AccountKind,
    AccountOpening,
    AccountStatus,
    FreezeAction,
    ParticipantRole,
    RotateParticipantKeyAction,
    TransferItem,
    countersign_account_change,
    sign_account_change,
    sign_account_consent,
)
from ledger.verifier import verify_database
from tests.ledger_world import KEY_RECOVERY_SECONDS, LedgerWorld, make_world, serving

BANK, OTHER, ABROAD = "BKCHCNBJ", "ICBKCNBJ", "DEUTDEFF"


@pytest.fixture(scope="module")
def database(fresh_databases: Callable[[str], str]) -> str:
    return fresh_databases("ledger")


@pytest.fixture(scope="module")
def world(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerWorld]:
    world = make_world(database, tmp_path_factory.mktemp("ledger"), log_enabled=False)
    with serving(world):
        world.register(BANK)
        world.register(OTHER)
        world.register(ABROAD, role=ParticipantRole.FOREIGN)
        yield world


@pytest.fixture
def bank(world: LedgerWorld) -> Iterator[LedgerClient]:
    with world.client(BANK) as client:
        yield client


class Wallet:
    """One wallet at BANK with money, and its holder's key."""

    def __init__(self, world: LedgerWorld, amount: int = 1_000, rule_class: str = "none") -> None:
        self.world, self.key = world, PrivateKey.generate()
        self.vault = world.open_vault(BANK)
        self.number = world.open_wallet(BANK, self.key, rule_class)
        if amount:
            world.issue(self.vault, amount)
            with world.client(BANK) as client:
                client.transfer(world.terms("exchange-in", self.vault, self.number, amount))

    def pay(self, key: PrivateKey, amount: int = 1, kind: str = "exchange-out", credit: int | None = None) -> str:
        """The outcome: `booked` or the refusal."""
        terms = self.world.terms(kind, self.number, credit or self.vault, amount)
        with self.world.anonymous() as client:
            result = client.submit_instruction(self.world.instruction(terms, key))
        return result.refusal or result.outcome.value

    def ask(self, what: str, consent: PrivateKey | None = None, **members: Any) -> str:
        """`done` or the refusal."""
        try:
            self.world.change(BANK, what, self.number, consent=consent, **members)
        except ProblemResponse as problem:
            return problem.refusal or ""
        return "done"


def refusal_of(call: Callable[..., object], *arguments: Any, **named: Any) -> str:
    with pytest.raises(ProblemResponse) as caught:
        call(*arguments, **named)
    return caught.value.refusal or ""


def jwk(key: PrivateKey) -> dict[str, str]:
    return key.public.to_jwk()


def test_a_wallet_has_several_devices_and_each_signs_for_itself(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet, phone, stranger = Wallet(world), PrivateKey.generate(Suite.ECDSA_P256_SHA256), PrivateKey.generate()
    assert wallet.pay(phone) == "instruction-invalid"
    assert wallet.ask("add-holder-key", key=jwk(phone)) == "consent-missing"
    assert wallet.ask("add-holder-key", stranger, key=jwk(phone)) == "consent-invalid"
    assert wallet.ask("add-holder-key", wallet.key, key=jwk(phone)) == "done"
    assert [wallet.pay(key) for key in (wallet.key, phone, stranger)] == ["booked", "booked", "instruction-invalid"]
    view = bank.get_account(wallet.number)
    assert view.holder_keys == [wallet.key.thumbprint, phone.thumbprint]
    assert view.holder_key == wallet.key.thumbprint
    assert wallet.ask("remove-holder-key", phone, key=jwk(wallet.key)) == "done"
    assert [wallet.pay(key) for key in (wallet.key, phone)] == ["instruction-invalid", "booked"]
    assert bank.get_account(wallet.number).holder_keys == [phone.thumbprint]
    assert wallet.ask("remove-holder-key", phone, key=jwk(phone)) == "holder-key-last"


def test_hundreds_of_payments_of_both_devices_book_in_one_request(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet, phone = Wallet(world), PrivateKey.generate()
    wallet.ask("add-holder-key", wallet.key, key=jwk(phone))
    items = [
        TransferItem(
            instruction=world.instruction(
                world.terms("exchange-out", wallet.number, wallet.vault, 1), (wallet.key, phone)[number % 2]
            )
        )
        for number in range(300)
    ]
    assert {result.outcome.value for result in bank.submit(items)} == {"booked"}


def test_the_same_request_again_changes_nothing_and_another_under_its_id_is_refused(
    world: LedgerWorld, bank: LedgerClient
) -> None:
    wallet = Wallet(world)
    document = world.change_document("suspend", wallet.number)
    token = sign_account_change(document, key=world.participants[BANK])
    first = bank.change_account(token)
    wallet.ask("resume")
    assert bank.change_account(token) == first == bank.get_account_change(document.id)
    assert bank.get_account(wallet.number).status is AccountStatus.ACTIVE, "it acts once"
    other = document.model_copy(update={"change": world.change_document("close", wallet.number).change})
    assert refusal_of(bank.change_account, sign_account_change(other, key=world.participants[BANK])) == "change-exists"
    assert refusal_of(bank.get_account_change, ids.new_uuid7()) == "change-not-found"
    with world.client(OTHER) as stranger:
        assert refusal_of(stranger.get_account_change, document.id) == "change-not-found"
    with world.operator() as operator:
        assert operator.get_account_change(document.id) == first


def test_only_the_accounts_own_participant_changes_it(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet, mine, theirs = Wallet(world), world.participants[BANK], world.participants[OTHER]
    document = world.change_document("suspend", wallet.number)
    by_bank = sign_account_change(document, key=mine)
    with world.client(OTHER) as stranger, world.anonymous() as nobody, world.operator() as operator:
        assert refusal_of(nobody.change_account, by_bank) == "signature-missing"
        assert refusal_of(stranger.change_account, by_bank) == "not-permitted", "who signed it sends it"
        assert refusal_of(stranger.change_account, sign_account_change(document, key=theirs)) == "account-not-found"
        by_operator = sign_account_change(document, key=world.operators[0])
        assert refusal_of(operator.change_account, by_operator) == "unknown-signer"
    assert refusal_of(bank.change_account, sign_account_change(document, key=PrivateKey.generate())) == "unknown-signer"
    assert refusal_of(bank.change_account, None, consent=sign_account_consent(document, key=wallet.key)) == (
        "instruction-invalid"
    )
    issuance = world.change_document("suspend", 1)
    assert refusal_of(bank.change_account, sign_account_change(issuance, key=mine)) == "account-not-found"
    elsewhere = document.model_copy(update={"ledger": "other-cny"})
    assert refusal_of(bank.change_account, sign_account_change(elsewhere, key=mine)) == "wrong-ledger"
    late = world.change_document("suspend", wallet.number, minutes=-1)
    assert refusal_of(bank.change_account, sign_account_change(late, key=mine)) == "instruction-expired"
    future = document.model_copy(update={"id": ids.uuid7_at(int((time.time() + 3600) * 1000))})
    assert refusal_of(bank.change_account, sign_account_change(future, key=mine)) == "id-from-future"
    loose = jws.sign(jws.peek_payload(by_bank).replace(b":", b": ", 1), mine, typ=CHANGE_TYP)
    assert refusal_of(bank.change_account, loose) == "instruction-invalid", "not canonical"
    assert refusal_of(bank.change_account, sign_account_consent(document, key=mine)) == "instruction-invalid"
    assert bank.get_account(wallet.number).status is AccountStatus.ACTIVE


def test_consent_is_over_the_very_same_change(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet, phone, thief = Wallet(world), PrivateKey.generate(), PrivateKey.generate()
    asked = world.change_document("add-holder-key", wallet.number, key=jwk(phone))
    forged = world.change_document("add-holder-key", wallet.number, key=jwk(thief))
    consent = sign_account_consent(asked, key=wallet.key)
    mine = world.participants[BANK]
    assert refusal_of(bank.change_account, sign_account_change(forged, key=mine), consent=consent) == "consent-invalid"
    assert bank.change_account(countersign_account_change(consent, key=mine), consent=consent).has_consent


def test_lost_devices_are_replaced_after_the_delay_and_an_objection_stops_it(
    world: LedgerWorld, bank: LedgerClient
) -> None:
    wallet, new = Wallet(world), PrivateKey.generate()
    assert wallet.ask("replace-holder-key", key=jwk(new)) == "key-not-announced"
    assert (wallet.ask("suspend"), wallet.ask("announce-holder-key", key=jwk(new))) == ("done", "done")
    view = bank.get_account(wallet.number)
    assert view.status is AccountStatus.SUSPENDED
    assert view.announced_key is not None and view.announced_key.key == new.thumbprint
    assert (view.announced_key.effective_at - view.announced_key.announced_at).seconds == KEY_RECOVERY_SECONDS
    assert bank.ledger().key_recovery_seconds == KEY_RECOVERY_SECONDS
    assert wallet.pay(wallet.key) == "debit-account-suspended"
    assert bank.transfer(world.terms("exchange-in", wallet.vault, wallet.number, 0 + 1)).refusal in (
        None, "insufficient-funds"
    )  # fmt: skip
    assert wallet.ask("replace-holder-key", key=jwk(new)) == "key-recovery-pending"
    objection = sign_account_consent(world.change_document("object-to-key", wallet.number), key=wallet.key)
    with world.anonymous() as holder:
        assert refusal_of(holder.change_account, None, consent=sign_account_consent(
            world.change_document("object-to-key", wallet.number), key=new
        )) == "consent-invalid"  # fmt: skip
        assert holder.change_account(None, consent=objection).directive > 0
    assert bank.get_account(wallet.number).announced_key is None
    time.sleep(KEY_RECOVERY_SECONDS)
    assert wallet.ask("replace-holder-key", key=jwk(new)) == "key-not-announced"
    assert wallet.ask("announce-holder-key", key=jwk(new)) == "done"
    time.sleep(KEY_RECOVERY_SECONDS + 0.05)
    assert wallet.ask("replace-holder-key", key=jwk(new)) == "done"
    assert wallet.ask("resume") == "done"
    assert (wallet.pay(wallet.key), wallet.pay(new)) == ("instruction-invalid", "booked")


def test_a_closed_account_books_nothing_more(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet = Wallet(world, 5)
    assert wallet.ask("close") == "account-not-empty"
    assert wallet.pay(wallet.key, 5) == "booked"
    assert wallet.ask("close") == "done"
    assert wallet.pay(wallet.key) == "account-closed"
    assert bank.transfer(world.terms("exchange-in", wallet.vault, wallet.number, 1)).refusal == "account-closed"
    assert wallet.ask("resume") == "account-closed"
    assert bank.get_account(wallet.number).status is AccountStatus.CLOSED


def test_an_upgraded_wallet_may_more_and_a_downgraded_one_keeps_what_it_has(
    world: LedgerWorld, bank: LedgerClient
) -> None:
    wallet = Wallet(world, 60_000, "small")
    assert wallet.pay(wallet.key, 50_001, "payment") == "single-limit-exceeded"
    assert wallet.ask("set-rule-class", rule_class="giant") == "class-unknown"
    assert wallet.ask("set-rule-class", rule_class="none") == "done"
    assert wallet.pay(wallet.key, 50_001, "payment") == "booked"
    world.issue(wallet.vault, 200_000)
    assert bank.transfer(world.terms("exchange-in", wallet.vault, wallet.number, 200_000)).refusal is None
    assert wallet.ask("set-rule-class", rule_class="small") == "done"
    assert bank.get_account(wallet.number).balance_minor > 100_000
    assert bank.transfer(world.terms("exchange-in", wallet.vault, wallet.number, 1)).refusal == "balance-limit-exceeded"
    assert wallet.pay(wallet.key, 30_000, "payment") == "day-limit-exceeded"


def test_a_cap_of_its_own_binds_every_credit_whoever_sends_it(world: LedgerWorld, bank: LedgerClient) -> None:
    child, parent, stranger = Wallet(world, 300), Wallet(world, 1_000), PrivateKey.generate()
    with world.client(OTHER) as other:
        vault, elsewhere = world.open_vault(OTHER), world.open_wallet(OTHER, stranger)
        world.issue(vault, 2_000)
        other.transfer(world.terms("exchange-in", vault, elsewhere, 1_000))
        assert child.ask("set-balance-cap", version=1, balance_max_minor="500") == "done"
        assert bank.get_account(child.number).balance_max_minor == 500
        paid = world.terms("payment", elsewhere, child.number, 201)
        assert other.submit_instruction(world.instruction(paid, stranger)).refusal == "balance-limit-exceeded"
        assert other.transfer(world.terms("payment", vault, child.number, 201)).refusal == "balance-limit-exceeded"
        assert parent.pay(parent.key, 201, "payment", child.number) == "balance-limit-exceeded"
        assert parent.pay(parent.key, 200, "payment", child.number) == "booked"
        assert parent.pay(parent.key, 1, "payment", child.number) == "balance-limit-exceeded"
        assert child.pay(child.key, 1) == "booked"
        # A version that comes late undoes nothing; nor does the same one again.
        assert child.ask("set-balance-cap", version=3, balance_max_minor="499") == "done"
        for version in (1, 2, 3):
            assert child.ask("set-balance-cap", version=version) == "done"
        assert bank.get_account(child.number).balance_max_minor == 499
        assert parent.pay(parent.key, 1, "payment", child.number) == "balance-limit-exceeded"
        assert child.ask("set-balance-cap", version=4, balance_max_minor="100") == "done"  # what is there stays
        assert child.pay(child.key, 1) == "booked"
        assert child.ask("set-balance-cap", version=5) == "done"
        assert bank.get_account(child.number).balance_max_minor is None
        assert parent.pay(parent.key, 500, "payment", child.number) == "booked"
    for participant, account, refusal in (
        (BANK, child.vault, "kind-not-allowed"),
        (OTHER, child.number, "account-not-found"),
    ):
        document = world.change_document("set-balance-cap", account, version=9)
        with world.client(participant) as client:
            token = sign_account_change(document, key=world.participants[participant])
            assert refusal_of(client.change_account, token) == refusal


def test_a_legal_order_is_not_evaded_by_closing(world: LedgerWorld) -> None:
    wallet = Wallet(world, 0)
    freeze = FreezeAction(action="freeze", account=ids.AccountNumber(wallet.number), case="2026-9")
    world.mandate(freeze)
    assert wallet.ask("close") == "debit-account-frozen"
    world.mandate(freeze.model_copy(update={"action": "unfreeze"}))
    assert wallet.ask("close") == "done"


def test_money_of_purses_lies_in_escrow_and_in_the_supply(world: LedgerWorld, bank: LedgerClient) -> None:
    wallet = Wallet(world)
    opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.OFFLINE)
    escrow = bank.open_accounts([opening])[0].account
    with world.client(ABROAD) as abroad:
        assert abroad.open_accounts([opening.model_copy(update={"opening": ids.new_uuid7()})])[0].refusal == (
            "role-not-allowed"
        )
    assert escrow is not None
    before = bank.supply()
    assert wallet.pay(wallet.key, 300, "purse-fund", escrow) == "booked"
    assert bank.transfer(world.terms("purse-fund", wallet.number, escrow, 1)).refusal == "not-authorised"
    assert bank.transfer(world.terms("purse-redeem", escrow, wallet.number, 120)).refusal is None
    with world.client(OTHER) as other:
        assert other.transfer(world.terms("purse-redeem", escrow, wallet.number, 1)).refusal == "not-authorised"
    assert bank.transfer(world.terms("purse-loss", escrow, wallet.vault, 50)).refusal is None
    assert bank.transfer(world.terms("purse-loss", wallet.vault, escrow, 20)).refusal is None
    supply = bank.supply()
    assert supply.offline_minor - before.offline_minor == 150 == bank.get_account(escrow).balance_minor
    assert supply.identity_holds
    assert supply.circulation_minor == supply.vaults_minor + supply.wallets_minor + supply.offline_minor


def test_a_restart_forgets_nothing_and_the_verifier_finds_the_journal_whole(
    fresh_database: Callable[[str], str], tmp_path: Path
) -> None:
    url = fresh_database("ledger")
    world = make_world(url, tmp_path)
    phone, third, rotated = PrivateKey.generate(), PrivateKey.generate(), PrivateKey.generate()
    with serving(world):
        world.register(BANK)
        wallet, closed, small = Wallet(world), Wallet(world, 0), Wallet(world, 500)
        wallet.ask("add-holder-key", wallet.key, key=jwk(phone))
        wallet.ask("add-holder-key", phone, key=jwk(third))
        wallet.ask("remove-holder-key", third, key=jwk(wallet.key))
        wallet.ask("announce-holder-key", key=jwk(PrivateKey.generate()))
        closed.ask("close")
        small.ask("set-rule-class", rule_class="small")
        small.ask("suspend")
        world.mandate(RotateParticipantKeyAction(participant=ids.ParticipantId(BANK), key=jwk(rotated)))
        world.participants[BANK] = rotated
        small.ask("set-rule-class", rule_class="none")
        small.ask("set-balance-cap", version=2, balance_max_minor="600")
        small.ask("set-balance-cap", version=1)
        world.issue(small.vault, 500)
        with world.client(BANK) as bank:
            before = [bank.get_account(number) for number in (wallet.number, closed.number, small.number)]
    with serving(world), world.client(BANK) as bank:
        assert [bank.get_account(item.account) for item in before] == before
        assert [wallet.pay(key) for key in (wallet.key, phone, third)] == ["instruction-invalid", "booked", "booked"]
        assert small.pay(small.key) == "debit-account-suspended"
        assert closed.ask("resume") == "account-closed"
        assert before[0].announced_key is not None and before[2].rule_class == "none"
        assert before[2].balance_max_minor == 600
        filled = [bank.transfer(world.terms("exchange-in", small.vault, small.number, amount)) for amount in (101, 100)]
        assert [item.refusal for item in filled] == ["balance-limit-exceeded", None]
    report = verify_database(url)
    assert report.findings == []
    assert (report.proved["account changes"], report.proved["consents of holders"]) == (10, 3)


def test_the_modules_journal_verifies(database: str, world: LedgerWorld) -> None:
    """Everything above: keys, objections, delays, closed accounts, purses."""
    report = verify_database(database)
    assert report.findings == []
    assert report.proved["account changes"] >= 16
    assert report.supply.offline > 0

"""Goal: the service carries what a card signs once and in order, and finds a clone by its counter, with the proof.
Method: real cards (the emulated element) against the use cases on a real PostgreSQL and a fake ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from shutil import copytree

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from kernel.crypto import jws
from kernel.crypto.keys import PrivateKey, PublicKey
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.ids import AccountNumber
from ledger.contract import INSTRUCTION_TYP, read_instruction
from tests.card_world import ISSUER, ROOT, attest
from tests.wallet_bank import ALL_EVIDENCE, Bank, Holder
from wallet.domain.cards import read_stamp
from wallet.domain.rules import WalletClass
from wallet.hardware.card import Card, FolderDisk
from wallet.hardware.element import CardRefusal, Presented
from wallet.hardware.issuer import CARD_LIFE, FACTORY_LIFE, CardIssuer
from wallet.usecases.hardware import find_card, list_cards, register_card, report_card, take_revocations
from wallet.usecases.pay import pay, pay_one
from wallet.usecases.wallets import open_wallet, register_customer

PIN = "135790"


@pytest.fixture
def bank(fresh_database: Callable[[str], str]) -> Iterator[Bank]:
    database = Database(fresh_database("wallet"), application_name="test")
    yield Bank(database)
    database.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "card"


class Issued:
    """A card with its wallet, and a terminal that presents payments to it."""

    def __init__(self, bank: Bank, folder: Path, *, funds: int = 10_000) -> None:
        self.bank = bank
        self.card = Card.make(
            FolderDisk.make(folder), pin=PIN, pin_free_single_max_minor=100, pin_free_total_max_minor=250
        )
        customer = register_customer(bank.context, bank.new_id(), name="", phone="", evidence=ALL_EVIDENCE)
        self.wallet = open_wallet(
            bank.context,
            bank.new_id(),
            customer_id=customer.customer.id,
            wallet_class=WalletClass.IV,
            device_key=self.card.public_key.to_jwk(),
        )
        assert self.wallet.account is not None
        self.card.bind(self.wallet.account)
        self.serial = f"CW-{bank.new_id()}"
        self.attestation = attest(self.card.public_key, single=100, total=250, now=bank.clock(), serial=self.serial)
        self.registered = register_card(
            bank.context,
            self.wallet.id,
            key=self.card.public_key.to_jwk(),
            attestation=self.attestation,
            pin_free_single_max_minor=100,
            pin_free_total_max_minor=250,
        )
        bank.ledger.fund(self.wallet.account, funds)

    def sign(self, credit: int, amount: int, *, card: Card | None = None) -> str:
        self.bank.clock.advance(timedelta(seconds=1))
        now = self.bank.clock()
        token = (card or self.card).sign(
            Presented("cny", AccountNumber(credit), amount, "CNY", now, now + timedelta(minutes=5))
        )
        assert not isinstance(token, CardRefusal), token
        return token

    @property
    def record(self) -> object:
        return find_card(self.bank.context, self.wallet.id, self.card.public_key.thumbprint)


def said(bank: Bank, token: str) -> str:
    try:
        return pay_one(bank.context, token).state
    except ProblemError as error:
        return error.refusal.value


def test_card_pays_while_the_phone_is_off_and_repeating_it_pays_once(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    tokens = [issued.sign(shop.account, 50) for _ in range(3)]
    assert [said(bank, token) for token in tokens] == ["final"] * 3
    assert [said(bank, token) for token in tokens] == ["final"] * 3
    assert bank.balance(shop) == 150
    assert find_card(bank.context, issued.wallet.id, issued.card.public_key.thumbprint).card.counter_last == 3


def test_lower_counter_that_was_never_seen_is_refused(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    first, second = issued.sign(shop.account, 50), issued.sign(shop.account, 60)
    assert said(bank, second) == "final"
    assert said(bank, first) == "counter-not-higher"
    assert bank.balance(shop) == 60
    assert list_cards(bank.context, issued.wallet.id)[0].card.state == "active"


def test_cloned_card_is_named_with_the_proof_and_suspended(bank: Bank, folder: Path, tmp_path: Path) -> None:
    issued, shop, thief = Issued(bank, folder), bank.holder(), bank.holder()
    copytree(folder, tmp_path / "clone")
    (tmp_path / "clone").chmod(0o700)
    with Card(FolderDisk(tmp_path / "clone")) as clone:
        honest = issued.sign(shop.account, 50)
        stolen = issued.sign(thief.account, 90, card=clone)
    assert read_stamp(read_instruction(honest).id).counter == read_stamp(read_instruction(stolen).id).counter == 1
    assert said(bank, honest) == "final"
    assert said(bank, stolen) == "card-cloned"
    assert bank.balance(thief) == 0
    record = list_cards(bank.context, issued.wallet.id)[0]
    assert (record.card.state, record.suspended_why) == ("suspended", "cloned")
    assert record.evidence == (honest, stolen)
    stamps = set()
    for token in record.evidence:  # anybody can check it
        jws.verify(token, issued.card.public_key, typ=INSTRUCTION_TYP)
        stamps.add(read_stamp(read_instruction(token).id).counter)
    assert len(stamps) == 1
    assert said(bank, issued.sign(shop.account, 1)) == "card-suspended"
    assert said(bank, honest) == "final"  # what was final stays so


def test_clone_in_one_batch_is_found_too(bank: Bank, folder: Path, tmp_path: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    copytree(folder, tmp_path / "clone")
    (tmp_path / "clone").chmod(0o700)
    with Card(FolderDisk(tmp_path / "clone")) as clone:
        tokens = [issued.sign(shop.account, 50), issued.sign(shop.account, 51, card=clone)]
    outcomes = pay(bank.context, tokens)
    assert [getattr(item, "state", None) or item.refusal for item in outcomes] == ["final", "card-cloned"]
    assert list_cards(bank.context, issued.wallet.id)[0].card.state == "suspended"


def test_forger_cannot_have_a_card_suspended(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    honest = issued.sign(shop.account, 50)
    assert said(bank, honest) == "final"
    payer = Holder(issued.wallet, PrivateKey.generate())
    same_counter = read_instruction(honest).id.int ^ 1
    header, _, signature = honest.split(".")
    for key in (payer.key, bank.holder().key):
        forged = bank.instruction(
            payer, shop.account, 1, id=type(read_instruction(honest).id)(int=same_counter), key=key
        )
        assert said(bank, forged) == "instruction-invalid"
        assert said(bank, f"{header}.{forged.split('.')[1]}.{signature}") == "instruction-invalid"
    assert list_cards(bank.context, issued.wallet.id)[0].card.state == "active"


def test_service_keeps_the_pin_free_caps_too(bank: Bank, folder: Path) -> None:
    """A card that was tampered with signs above its caps; the service knows them as well."""
    issued, shop = Issued(bank, folder), bank.holder()
    with bank.database.engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE hardware_card SET pin_free_single_max_minor = 40, pin_free_total_max_minor = 70")
        )
    assert said(bank, issued.sign(shop.account, 41)) == "pin-needed"
    assert said(bank, issued.sign(shop.account, 40)) == "final"
    assert said(bank, issued.sign(shop.account, 31)) == "pin-needed"
    assert issued.card.give_pin(PIN) is None
    assert said(bank, issued.sign(shop.account, 5_000)) == "final"
    assert said(bank, issued.sign(shop.account, 40)) == "final"


def test_counters_hold_under_concurrency(bank: Bank, folder: Path) -> None:
    """The same twelve instructions from four terminals at once: each pays at most once, in no order twice."""
    issued, shop = Issued(bank, folder), bank.holder()
    tokens = []
    for _ in range(12):
        # Each with the PIN: if those with it came too late, the others would be over the PIN-free total.
        assert issued.card.give_pin(PIN) is None
        tokens.append(issued.sign(shop.account, 100))
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda token: said(bank, token), tokens * 4))
    assert set(answers) <= {"final", "counter-not-higher"}
    paid = {token for token, answer in zip(tokens * 4, answers, strict=True) if answer == "final"}
    assert bank.balance(shop) == 100 * len(paid)
    assert tokens[-1] in paid
    assert list_cards(bank.context, issued.wallet.id)[0].card.counter_last == 12


def test_reported_card_pays_no_more(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    thumbprint = issued.card.public_key.thumbprint
    for _ in range(2):
        assert report_card(bank.context, issued.wallet.id, thumbprint).suspended_why == "reported"
    assert said(bank, issued.sign(shop.account, 1)) == "card-suspended"
    with pytest.raises(ProblemError, match="card-not-found"):
        report_card(bank.context, shop.wallet.id, thumbprint)


def test_registering_is_idempotent_and_only_for_the_wallets_own_key(bank: Bank, folder: Path) -> None:
    issued = Issued(bank, folder)

    def register(key: PrivateKey | Card, single: int, chain: Sequence[str] | None = None) -> str:
        public = key.public_key if isinstance(key, Card) else key.public
        try:
            return register_card(
                bank.context,
                issued.wallet.id,
                key=public.to_jwk(),
                attestation=issued.attestation if chain is None else chain,
                pin_free_single_max_minor=single,
                pin_free_total_max_minor=250,
            ).card.state
        except ProblemError as error:
            return error.refusal.value

    assert register(issued.card, 100) == "active"
    assert register(issued.card, 99) == "card-exists"
    stranger, now = PrivateKey.generate(), bank.clock()
    chain = attest(stranger.public, single=100, total=250, now=now)
    assert register(stranger, 100, chain) == "device-key-refused"


def test_only_what_a_registered_issuer_vouches_for_is_a_card(bank: Bank, folder: Path) -> None:
    issued, now = Issued(bank, folder), bank.clock()
    key = issued.card.public_key

    def register(chain: Sequence[str], *, of: PublicKey = key, single: int = 100) -> str:
        try:
            return register_card(
                bank.context,
                issued.wallet.id,
                key=of.to_jwk(),
                attestation=chain,
                pin_free_single_max_minor=single,
                pin_free_total_max_minor=250,
            ).card.state
        except ProblemError as error:
            return error.refusal.value

    good = issued.attestation
    assert register(good) == "active"
    assert register(good[:1]) == register([good[1], good[0]]) == register([*good, good[1]]) == "card-not-attested"
    assert register(good, of=PrivateKey.generate().public) == "card-not-attested"
    assert register(good, single=101) == "card-not-attested"
    values = {"serial": "X-1", "pin_free_single_max_minor": 100, "pin_free_total_max_minor": 250}
    for other in (CardIssuer("elsewhere", ROOT, now=now), CardIssuer(ISSUER, PrivateKey.generate(), now=now)):
        assert register(other.attest(key, **values)) == "card-not-attested"
    ours, forged = CardIssuer(ISSUER, ROOT, now=now), CardIssuer(ISSUER, PrivateKey.generate(), now=now)
    assert register([ours.attest(key, **values)[0], forged.attest(key, **values)[1]]) == "card-not-attested"
    assert register(ours.attest(key, **values, not_after=now)) == "card-expired"
    old = CardIssuer(ISSUER, ROOT, now=now - FACTORY_LIFE - timedelta(seconds=1))
    assert register(old.attest(key, **values)) == "card-not-attested"


def test_a_revoked_card_is_suspended_and_never_registered(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    issuer = CardIssuer(ISSUER, ROOT, now=bank.clock())
    assert said(bank, issued.sign(shop.account, 10)) == "final"
    forged = CardIssuer(ISSUER, PrivateKey.generate(), now=bank.clock()).revoke(1, [issued.serial])
    with pytest.raises(ProblemError, match="card-not-attested"):
        take_revocations(bank.context, forged)
    assert take_revocations(bank.context, issuer.revoke(1, [issued.serial, "X-2"]))[1] == 1
    assert take_revocations(bank.context, issuer.revoke(2, ["X-2"]))[1] == 0
    assert find_card(bank.context, issued.wallet.id, issued.card.public_key.thumbprint).suspended_why == "revoked"
    assert said(bank, issued.sign(shop.account, 10)) == "card-suspended"
    holder = bank.holder(WalletClass.IV)
    chain = attest(holder.key.public, single=1, total=1, now=bank.clock(), serial="X-2")
    with pytest.raises(ProblemError, match="card-revoked"):
        register_card(
            bank.context,
            holder.wallet.id,
            key=holder.key.public.to_jwk(),
            attestation=chain,
            pin_free_single_max_minor=1,
            pin_free_total_max_minor=1,
        )


def test_an_expired_card_pays_nothing(bank: Bank, folder: Path) -> None:
    issued, shop = Issued(bank, folder), bank.holder()
    bank.clock.advance(CARD_LIFE)
    assert said(bank, issued.sign(shop.account, 10)) == "card-expired"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE hardware_card SET pin_free_minor = 251", "hardware_card_pin_free_i9_ck"),
        ("UPDATE hardware_card SET counter_last = -1", "hardware_card_counter_ck"),
        ("UPDATE hardware_card SET attested_single_max_minor = 99", "hardware_card_attested_i9_ck"),
        ("UPDATE hardware_card SET state = 'suspended'", "hardware_card_suspended_says_why_ck"),
        (
            "UPDATE hardware_card SET state = 'suspended', suspended_why = 'cloned', suspended_at = now()",
            "hardware_card_clone_is_proved_ck",
        ),
        (
            "INSERT INTO card_counter SELECT thumbprint, counter, gen_random_uuid(), 'other' FROM card_counter",
            "card_counter_pk",
        ),
    ],
)
def test_table_refuses_what_the_core_refuses(bank: Bank, folder: Path, statement: str, constraint: str) -> None:
    issued = Issued(bank, folder)
    assert said(bank, issued.sign(bank.holder().account, 1)) == "final"
    with pytest.raises(IntegrityError, match=constraint), bank.database.engine.begin() as connection:
        connection.execute(sa.text(statement))

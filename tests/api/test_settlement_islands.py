"""Goal: every island behind the port keeps the same promises: what is proved with the fake holds for the ledger.

Method: one conformance suite, run against the in-memory fake and against the native adapter over a real ledger on a
real socket. Attacks that need a ledger's own API (a payer that places its leg first) run against the real one only.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from kernel import ids, migrate
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import TransferItem, TransferKind, TransferOutcome, TransferTerms, sign_instruction
from settlement.domain.escrow import Decision, HoldOrder, Leg, LegTerms, Secrets, fresh_secrets
from settlement.islands.authorisers import check_authorisation
from settlement.islands.fake import FakeIsland
from settlement.islands.native import NativeIsland, hold_terms
from settlement.islands.port import (
    Ended,
    EndOrder,
    Held,
    HoldStanding,
    Island,
    Refused,
    SignedHold,
    Unknown,
)
from tests.ledger_world import LedgerWorld, running_ledger

CNY = Currency.of("CNY")
PAYER, PAYEE, BRIDGE = (ParticipantId(code) for code in ("BKCHCNBJ", "ICBKCNBJ", "BRDGAEAD"))
FUNDS = 1_000_000


@dataclass
class Shore:
    """An island with a funded payer and a payee."""

    island: Island
    ledger: str
    debit: AccountNumber
    credit: AccountNumber
    key: PrivateKey
    world: LedgerWorld | None = None

    def leg(self, amount: int = 100) -> tuple[Leg, HoldOrder, Secrets]:
        found = fresh_secrets(secrets.token_bytes)
        terms = LegTerms(self.ledger, PAYER, PAYEE, self.debit, self.credit, Money(amount, CNY))
        leg = Leg(ids.new_uuid7(), 0, terms)
        return leg, HoldOrder(leg.hold_id, terms, uuid4(), found.commit_hash, found.abort_hash), found

    def signed(self, order: HoldOrder) -> SignedHold:
        valid_until = system_clock() + timedelta(hours=1)
        token = sign_instruction(hold_terms(order), ledger=self.ledger, valid_until=valid_until, key=self.key)
        return SignedHold(order, token)

    def end(self, leg: Leg, order: HoldOrder, decision: Decision, secret: bytes) -> EndOrder:
        return EndOrder(order, leg.end_id(decision, secret), secret)

    def post(self, leg: Leg, order: HoldOrder, found: Secrets) -> object:
        return self.island.fulfil([self.end(leg, order, Decision.COMMIT, found.commit)])[0]

    def void(self, leg: Leg, order: HoldOrder, found: Secrets) -> object:
        return self.island.cancel([self.end(leg, order, Decision.ABORT, found.abort)])[0]

    def standing(self, order: HoldOrder) -> HoldStanding:
        return self.island.look_up([order])[0]


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shore]:
    postgres: EmbeddedPostgres = request.getfixturevalue("postgres")
    name = f"islands_{secrets.token_hex(4)}"
    postgres.ensure_database(name)
    migrate.upgrade("ledger", postgres.url(name))
    directory: Path = tmp_path_factory.mktemp("ledger")
    with running_ledger(postgres.url(name), directory) as world:
        world.register(PAYER)
        world.register(PAYEE)
        world.register(BRIDGE, role="bridge")
        debit, credit = world.open_vault(PAYER), world.open_vault(PAYEE)
        world.issue(debit, FUNDS)
        with world.client(BRIDGE) as client:
            yield Shore(
                NativeIsland(world.ledger, client),
                world.ledger,
                AccountNumber(debit),
                AccountNumber(credit),
                world.participants[PAYER],
                world,
            )


@pytest.fixture(params=["fake", "native"])
def shore(request: pytest.FixtureRequest) -> Shore:
    if request.param == "native":
        found: Shore = request.getfixturevalue("real")
        return found
    island = FakeIsland("test-cny", balances={11: FUNDS, 12: 0})
    return Shore(island, "test-cny", AccountNumber(11), AccountNumber(12), PrivateKey.generate())


def test_a_hold_is_placed_once_and_posted_once_with_the_commit_secret(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert shore.standing(order) is HoldStanding.ABSENT
    assert shore.island.prepare([shore.signed(order)] * 2) == [Held(), Held()]
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    assert shore.standing(order) is HoldStanding.HELD
    assert all(isinstance(shore.post(leg, order, found), Ended) for _ in range(2))
    assert shore.standing(order) is HoldStanding.POSTED


def test_a_hold_is_voided_with_the_abort_secret_and_stays_so(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    assert all(isinstance(shore.void(leg, order, found), Ended) for _ in range(2))
    assert shore.standing(order) is HoldStanding.VOIDED
    assert isinstance(shore.island.prepare([shore.signed(order)])[0], Refused)


def test_a_void_before_its_hold_leaves_a_tombstone(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert isinstance(shore.void(leg, order, found), Ended)
    assert isinstance(shore.island.prepare([shore.signed(order)])[0], Refused)
    assert shore.standing(order) is HoldStanding.VOIDED
    assert isinstance(shore.void(leg, order, found), Ended)


@pytest.mark.parametrize("decision", Decision)
def test_the_wrong_secret_ends_nothing(shore: Shore, decision: Decision) -> None:
    leg, order, found = shore.leg()
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    wrong = found.abort if decision is Decision.COMMIT else found.commit
    end = shore.end(leg, order, decision, wrong)
    _ = shore.island.fulfil([end]) if decision is Decision.COMMIT else shore.island.cancel([end])
    assert shore.standing(order) is HoldStanding.HELD
    shore.void(leg, order, found)


def test_one_refused_hold_refuses_no_other(shore: Shore) -> None:
    good, poor, other = shore.leg(), shore.leg(FUNDS * 2), shore.leg()
    outcomes = shore.island.prepare([shore.signed(order) for _, order, _ in (good, poor, other)])
    assert (outcomes[0], outcomes[2]) == (Held(), Held())
    assert isinstance(outcomes[1], Refused)
    assert outcomes[1].code == "insufficient-funds"
    for leg, order, found in (good, poor, other):
        assert isinstance(shore.void(leg, order, found), Ended)


def test_a_post_of_a_hold_that_never_came_is_no_answer(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert isinstance(shore.post(leg, order, found), Unknown)
    shore.void(leg, order, found)


def test_other_terms_under_the_id_are_seen(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    assert shore.standing(replace(order, commit_hash=bytes(32))) is HoldStanding.OTHER
    shore.void(leg, order, found)


# --- against the real ledger only


def test_a_hold_that_the_payer_placed_first_under_its_own_hashes_is_never_held(real: Shore) -> None:
    """Attack: same id, accounts and amount, so the ledger may answer `already-booked`; the secret is the payer's."""
    assert real.world is not None
    leg, order, found = real.leg()
    evil = replace(order, commit_hash=secrets.token_bytes(32), abort_hash=secrets.token_bytes(32))
    with real.world.client(PAYER) as payer:
        assert payer.submit([TransferItem(terms=hold_terms(evil))])[0].outcome is TransferOutcome.BOOKED
    outcome = real.island.prepare([real.signed(order)])[0]
    assert isinstance(outcome, Refused)
    assert outcome.code in ("hold-differs", "id-already-used")
    assert isinstance(real.void(leg, order, found), Ended)  # ours can never be placed; nothing is left in doubt


def test_an_end_posted_by_somebody_else_counts(real: Shore) -> None:
    assert real.world is not None
    leg, order, found = real.leg()
    assert real.island.prepare([real.signed(order)]) == [Held()]
    by_payee = TransferTerms(
        id=ids.new_uuid7(), kind=TransferKind.POST, hold=order.hold_id, currency="CNY", secret=found.commit
    )
    with real.world.client(PAYEE) as payee:
        assert payee.transfer(by_payee).outcome is TransferOutcome.BOOKED
    assert isinstance(real.post(leg, order, found), Ended)


def test_an_end_id_that_somebody_took_does_not_stop_the_post(real: Shore) -> None:
    """Attack: a party that saw the published secret books another transfer under the id of our post."""
    assert real.world is not None
    leg, order, found = real.leg()
    assert real.island.prepare([real.signed(order)]) == [Held()]
    taken = real.world.terms("payment", real.debit, real.credit, 1, id=leg.end_id(Decision.COMMIT, found.commit))
    with real.world.client(PAYER) as payer:
        assert payer.transfer(taken).outcome is TransferOutcome.BOOKED
    assert isinstance(real.post(leg, order, found), Ended)
    assert real.standing(order) is HoldStanding.POSTED


def test_another_institutions_signature_holds_nothing(real: Shore) -> None:
    leg, order, found = real.leg()
    forged = replace(real, key=PrivateKey.generate()).signed(order)
    assert isinstance(real.island.prepare([forged])[0], Refused)
    assert real.standing(order) is HoldStanding.ABSENT
    real.void(leg, order, found)


def test_a_bad_item_among_many_stops_only_itself(real: Shore) -> None:
    good, bad = real.leg(), real.leg()
    broken = SignedHold(bad[1], "x" * 40)
    outcomes = real.island.prepare([real.signed(good[1]), broken])
    assert outcomes[0] == Held()
    assert isinstance(outcomes[1], Refused)
    real.void(*good)


@pytest.mark.parametrize("change", ["amount", "credit", "commit", "abort", "ledger", "reference"])
def test_an_authorisation_of_other_terms_is_refused(real: Shore, change: str) -> None:
    _, order, _ = real.leg()
    terms = order.terms
    others = {
        "amount": replace(order, terms=replace(terms, amount=Money(99, CNY))),
        "credit": replace(order, terms=replace(terms, credit=AccountNumber(999))),
        "commit": replace(order, commit_hash=bytes(32)),
        "abort": replace(order, abort_hash=bytes(32)),
        "reference": replace(order, reference=uuid4()),
    }
    signer = replace(real, ledger="other") if change == "ledger" else real
    token = signer.signed(others.get(change, order)).authorisation
    answer = check_authorisation(order, token)
    assert isinstance(answer, Refused)
    assert answer.code == "authorisation-differs"


def test_a_ledger_that_is_away_is_unknown_and_never_a_refusal() -> None:
    found = fresh_secrets(secrets.token_bytes)
    terms = LegTerms("away", PAYER, PAYEE, AccountNumber(11), AccountNumber(12), Money(1, CNY))
    leg = Leg(ids.new_uuid7(), 0, terms)
    order = HoldOrder(leg.hold_id, terms, uuid4(), found.commit_hash, found.abort_hash)
    with LedgerClient("http://127.0.0.1:9", timeout_seconds=1) as client:
        island = NativeIsland("away", client)
        assert isinstance(island.prepare([SignedHold(order, "x" * 40)])[0], Unknown)
        end = EndOrder(order, ids.new_uuid7(), found.commit)
        assert isinstance(island.fulfil([end])[0], Unknown)
        assert island.look_up([order]) == [HoldStanding.UNKNOWN]

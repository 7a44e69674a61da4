"""Goal: every island behind the port keeps the same promises, so what is proved with the fake holds for all of them.

Method: the conformance suite (`settlement.conformance`), run against the in-memory fake, the native adapter over a real
ledger on a real socket, and the EVM adapter over a chain in process and over anvil, with blocks final at once and after
three. Attacks that need a ledger's own API run against that ledger alone. That the suite finds a broken adapter is
shown with adapters that break one promise each.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import pytest

from kernel import ids
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber
from kernel.money import Currency, Money
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import TransferItem, TransferKind, TransferOutcome, TransferTerms
from settlement.conformance import CASES, Case, Result, Subject, run_case
from settlement.conformance.example import FakeSubject
from settlement.domain.escrow import Decision, HoldOrder, Leg, LegTerms, Secrets, fresh_secrets
from settlement.islands.authorisers import check_authorisation
from settlement.islands.native import NativeIsland, hold_terms
from settlement.islands.port import (
    Ended,
    EndOrder,
    EndOutcome,
    Held,
    HoldStanding,
    Island,
    PrepareOutcome,
    Refused,
    SignedHold,
    Unknown,
)
from tests.islands_world import PAYEE, PAYER, NativeSubject, evm_in_process, evm_on_anvil, native
from tests.ledger_world import LedgerWorld

CNY = Currency.of("CNY")
NOT_RUN: dict[str, set[str]] = {
    "fake": {"expiring-hold", "expired-hold", "reorganised-hold", "reorganised-post", "escrow-totals"},
    "native": {"no-expiry", "reorganised-hold", "reorganised-post", "escrow-totals"},
    "py-evm": {"reorganised-hold", "reorganised-post"},
    "py-evm-3": set(),
    "anvil": {"reorganised-hold", "reorganised-post"},
    "anvil-3": set(),
}
"""What each subject does not offer; everything else must pass. A ledger whose blocks are final at once undoes none."""
MEDIUM = ("py-evm-3", "anvil")


@pytest.fixture(scope="module")
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NativeSubject]:
    postgres: EmbeddedPostgres = request.getfixturevalue("postgres")
    with native(postgres, tmp_path_factory.mktemp("ledger")) as subject:
        yield subject


@pytest.fixture(
    scope="module",
    params=[
        "fake",
        "native",
        pytest.param("py-evm", marks=pytest.mark.extended),
        pytest.param("anvil-3", marks=pytest.mark.extended),
        *(pytest.param(it, marks=pytest.mark.medium) for it in MEDIUM),
    ],
)
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Subject]]:
    name: str = request.param
    confirmations = 3 if name.endswith("-3") else 1
    match name.removesuffix("-3"):
        case "fake":
            yield name, FakeSubject()
        case "native":
            yield name, request.getfixturevalue("real")
        case "py-evm":
            with evm_in_process(tmp_path_factory.mktemp("evm"), confirmations=confirmations) as found:
                yield name, found
        case _:
            with evm_on_anvil(tmp_path_factory.mktemp("evm"), confirmations=confirmations) as found:
                yield name, found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_conformance(subject: tuple[str, Subject], case: Case) -> None:
    name, found = subject
    verdict = run_case(found, case)
    wanted = Result.NOT_RUN if case.name in NOT_RUN[name] else Result.PASSED
    assert verdict.result is wanted, f"{case.rule}: {verdict.detail}"


# --- the suite finds what is broken


class _Passing:
    """An island that passes everything on; its children break one promise each."""

    def __init__(self, inner: Island) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        return self.inner.prepare(holds)

    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self.inner.fulfil(orders)

    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return self.inner.cancel(orders)

    def look_up(self, orders: Sequence[HoldOrder]) -> list[HoldStanding]:
        return self.inner.look_up(orders)

    def statement(self, account: AccountNumber) -> list[object]:
        return self.inner.statement(account)


class _SilenceIsRefusal(_Passing):
    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        answers = super().prepare(holds)
        return [Refused("timeout") if isinstance(answer, Unknown) else answer for answer in answers]


class _SilenceIsDone(_Passing):
    def fulfil(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        return [Ended() for _ in super().fulfil(orders)]


class _NoTombstone(_Passing):
    def cancel(self, orders: Sequence[EndOrder]) -> list[EndOutcome]:
        standings = self.look_up([order.order for order in orders])
        known = [order for order, found in zip(orders, standings, strict=True) if found is not HoldStanding.ABSENT]
        answers = dict(zip([order.order.hold_id for order in known], super().cancel(known), strict=True))
        return [answers.get(order.order.hold_id, Ended()) for order in orders]


class _AnswersInAnyOrder(_Passing):
    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        return sorted(super().prepare(holds), key=repr)


class _BelievesTheId(_Passing):
    def prepare(self, holds: Sequence[SignedHold]) -> list[PrepareOutcome]:
        answers = super().prepare(holds)
        return [Held() if isinstance(it, Refused) and it.code == "hold-differs" else it for it in answers]


@pytest.mark.parametrize(
    ("broken", "caught_by"),
    [
        (_SilenceIsRefusal, {"lost-answer", "lost-request", "away", "reorder"}),
        (_SilenceIsDone, {"post-before-hold", "wrong-secret-post", "post-after-void"}),
        (_NoTombstone, {"void-before-hold"}),
        (_AnswersInAnyOrder, {"hold-many"}),
        (_BelievesTheId, {"hold-after-post", "hold-after-void", "id-reuse", "front-run-by-the-payer"}),
    ],
)
def test_an_adapter_that_breaks_a_promise_is_found(broken: type[_Passing], caught_by: set[str]) -> None:
    class Broken(FakeSubject):
        patience_seconds = 0.05

        @property
        def island(self) -> Island:
            return broken(super().island)

        def unreachable(self) -> Island:
            return broken(super().unreachable())

    failed = {case.name for case in CASES if run_case(Broken(), case).result is Result.FAILED}
    assert caught_by <= failed


# --- against the real ledger only


@dataclass
class Shore:
    """The real ledger, with orders to break it by."""

    subject: NativeSubject
    key: PrivateKey
    ledger: str

    @property
    def world(self) -> LedgerWorld:
        return self.subject.world

    @property
    def island(self) -> Island:
        return self.subject.island

    @property
    def debit(self) -> AccountNumber:
        return self.subject.debit

    @property
    def credit(self) -> AccountNumber:
        return self.subject.credit

    def leg(self, amount: int = 100) -> tuple[Leg, HoldOrder, Secrets]:
        found = fresh_secrets(secrets.token_bytes)
        terms = LegTerms(self.subject.ledger, PAYER, PAYEE, self.debit, self.credit, Money(amount, CNY))
        leg = Leg(ids.new_uuid7(), 0, terms)
        return leg, HoldOrder(leg.hold_id, terms, uuid4(), found.commit_hash, found.abort_hash), found

    def signed(self, order: HoldOrder) -> SignedHold:
        return SignedHold(order, self.subject.signed_by(self.key, order, ledger=self.ledger))

    def end(self, leg: Leg, order: HoldOrder, decision: Decision, secret: bytes) -> EndOrder:
        return EndOrder(order, leg.end_id(decision, secret), secret)

    def post(self, leg: Leg, order: HoldOrder, found: Secrets) -> object:
        return self.island.fulfil([self.end(leg, order, Decision.COMMIT, found.commit)])[0]

    def void(self, leg: Leg, order: HoldOrder, found: Secrets) -> object:
        return self.island.cancel([self.end(leg, order, Decision.ABORT, found.abort)])[0]

    def standing(self, order: HoldOrder) -> HoldStanding:
        return self.island.look_up([order])[0]


@pytest.fixture
def shore(real: NativeSubject) -> Shore:
    return Shore(real, real.world.participants[PAYER], real.ledger)


def test_a_hold_that_the_payer_placed_first_under_its_own_hashes_is_never_held(shore: Shore) -> None:
    """Attack: same id, accounts and amount, so the ledger may answer `already-booked`; the secret is the payer's."""
    leg, order, found = shore.leg()
    evil = replace(order, commit_hash=secrets.token_bytes(32), abort_hash=secrets.token_bytes(32))
    with shore.world.client(PAYER) as payer:
        assert payer.submit([TransferItem(terms=hold_terms(evil))])[0].outcome is TransferOutcome.BOOKED
    outcome = shore.island.prepare([shore.signed(order)])[0]
    assert isinstance(outcome, Refused)
    assert outcome.code in ("hold-differs", "id-already-used")
    assert isinstance(shore.void(leg, order, found), Ended)  # ours can never be placed; nothing is left in doubt


def test_an_end_posted_by_somebody_else_counts(shore: Shore) -> None:
    leg, order, found = shore.leg()
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    by_payee = TransferTerms(
        id=ids.new_uuid7(), kind=TransferKind.POST, hold=order.hold_id, currency="CNY", secret=found.commit
    )
    with shore.world.client(PAYEE) as payee:
        assert payee.transfer(by_payee).outcome is TransferOutcome.BOOKED
    assert isinstance(shore.post(leg, order, found), Ended)


def test_an_end_id_that_somebody_took_does_not_stop_the_post(shore: Shore) -> None:
    """Attack: a party that saw the published secret books another transfer under the id of our post."""
    leg, order, found = shore.leg()
    assert shore.island.prepare([shore.signed(order)]) == [Held()]
    taken = shore.world.terms("payment", shore.debit, shore.credit, 1, id=leg.end_id(Decision.COMMIT, found.commit))
    with shore.world.client(PAYER) as payer:
        assert payer.transfer(taken).outcome is TransferOutcome.BOOKED
    assert isinstance(shore.post(leg, order, found), Ended)
    assert shore.standing(order) is HoldStanding.POSTED


def test_another_institutions_signature_holds_nothing(shore: Shore) -> None:
    leg, order, found = shore.leg()
    forged = replace(shore, key=PrivateKey.generate()).signed(order)
    assert isinstance(shore.island.prepare([forged])[0], Refused)
    assert shore.standing(order) is HoldStanding.ABSENT
    shore.void(leg, order, found)


def test_a_bad_item_among_many_stops_only_itself(shore: Shore) -> None:
    good, bad = shore.leg(), shore.leg()
    broken = SignedHold(bad[1], "x" * 40)
    outcomes = shore.island.prepare([shore.signed(good[1]), broken])
    assert outcomes[0] == Held()
    assert isinstance(outcomes[1], Refused)
    shore.void(*good)


@pytest.mark.parametrize("change", ["amount", "credit", "commit", "abort", "ledger", "reference"])
def test_an_authorisation_of_other_terms_is_refused(shore: Shore, change: str) -> None:
    _, order, _ = shore.leg()
    terms = order.terms
    others = {
        "amount": replace(order, terms=replace(terms, amount=Money(99, CNY))),
        "credit": replace(order, terms=replace(terms, credit=AccountNumber(999))),
        "commit": replace(order, commit_hash=bytes(32)),
        "abort": replace(order, abort_hash=bytes(32)),
        "reference": replace(order, reference=uuid4()),
    }
    signer = replace(shore, ledger="other") if change == "ledger" else shore
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

"""Goal: PvPvP and a netted cycle on three real ledgers, each leg signed as the payers' banks decide: all legs or none.

Method: three ledgers on real sockets with real databases, the native adapter, the real engine over the real decision
log. Each bank signs by its wallet service's own decision, for the order its desk gave. Each leg lacks funds in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from ledger.contract import sign_instruction
from settlement.domain.escrow import Decision, HoldOrder, LegTerms, SettlementState
from settlement.islands.authorisers import AuthorisationOutcome, LegOrder, check_authorisation
from settlement.islands.native import NativeIsland, hold_terms
from settlement.islands.port import HoldStanding, Refused
from settlement.store import batches
from settlement.store.decision_log import DecisionLog
from settlement.usecases.multileg import NewMultileg, store_settlement
from settlement.usecases.settle import Engine
from tests.ledger_world import LedgerWorld, running_ledger
from wallet.domain.records import OrderedPayment, OrderedReceipt, SettlementOrder
from wallet.domain.settlements import LedgerLeg, Vault, decide_leg

BRIDGE = ParticipantId("BRDGAEAD")
BANKS = tuple(ParticipantId(code) for code in ("AAAACNBJ", "BBBBUSNY", "CCCCAEAD"))
A, B, C = range(3)
CURRENCIES = ("CNY", "USD", "AED")
FUNDS = 100_000

Drawn = tuple[int, int, str, int]
PVPVP: list[Drawn] = [(A, B, "CNY", 10_000), (B, C, "USD", 1_400), (C, A, "AED", 5_123)]
CYCLE: list[Drawn] = [(A, B, "CNY", 900), (A, C, "CNY", 100), (B, C, "AED", 70), (B, A, "AED", 40), (C, A, "USD", 25)]
"""A pays two banks on one ledger; B pays two; every bank is paid, C and A in two currencies."""


class Desks:
    """Each payer's bank: it signs what its desk ordered, as `decide_leg` says, with its own key."""

    def __init__(self, keys: Mapping[str, PrivateKey], vaults: Mapping[ParticipantId, Mapping[str, Vault]]) -> None:
        self._keys, self._vaults = keys, vaults
        self.orders: dict[tuple[ParticipantId, UUID], SettlementOrder] = {}

    def order(self, uetr: UUID, legs: Sequence[LegTerms]) -> None:
        until = system_clock() + timedelta(hours=1)
        for bank in BANKS:
            paid = [
                OrderedPayment(leg.ledger, leg.amount.currency.code, leg.amount.amount_minor, leg.credit)
                for leg in legs
                if leg.payer == bank
            ]
            sums: dict[str, int] = {}
            for leg in legs:
                if leg.payee == bank:
                    code = leg.amount.currency.code
                    sums[code] = sums.get(code, 0) + leg.amount.amount_minor
            received = [OrderedReceipt(code, minimum) for code, minimum in sums.items()]
            if paid:
                first, least = paid[0], received[0]
                self.orders[bank, uetr] = SettlementOrder(
                    str(uetr), first.ledger, first.currency, first.amount_minor, least.currency, least.amount_minor_min,
                    first.credit_account, until, system_clock(), tuple(paid[1:]), tuple(received[1:]),
                )  # fmt: skip

    def authorise(self, payer: ParticipantId, orders: Sequence[LegOrder]) -> list[AuthorisationOutcome]:
        return [self._judge(payer, order) for order in orders]

    def _judge(self, payer: ParticipantId, order: LegOrder) -> AuthorisationOutcome:
        leg, *others = (LedgerLeg(hold.terms.ledger, hold_terms(hold)) for hold in (order.hold, *order.others))
        ordered, now = self.orders.get((payer, order.hold.reference)), system_clock()
        refusal = decide_leg(leg, others=others, order=ordered, vaults=self._vaults[payer], now=now)
        if refusal is not None or ordered is None:
            return Refused("authorisation-refused", str(refusal))
        token = sign_instruction(leg.terms, ledger=leg.ledger, valid_until=ordered.valid_until, key=self._keys[payer])
        return check_authorisation(order.hold, token)


@dataclass
class World:
    database: Database
    ledgers: Mapping[str, LedgerWorld]
    islands: Mapping[str, NativeIsland]
    vaults: Mapping[ParticipantId, Mapping[str, Vault]]
    desks: Desks

    def legs(self, drawn: Sequence[Drawn]) -> list[LegTerms]:
        made = []
        for payer, payee, code, amount in drawn:
            ledger, money = code.lower(), Money(amount, Currency.of(code))
            debit, credit = (self.vaults[BANKS[bank]][ledger].account for bank in (payer, payee))
            made.append(LegTerms(ledger, BANKS[payer], BANKS[payee], debit, credit, money))
        return made

    def settle(self, legs: Sequence[LegTerms]) -> batches.SettlementRow:
        uetr, now = uuid4(), system_clock()
        self.desks.order(uetr, legs)
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            new = NewMultileg(uetr, tuple(legs), now.date())
            stored = store_settlement(connection, new, submitter=BANKS[A], now=now)
        log = DecisionLog(self.database)
        engine = Engine(log=log, islands=self.islands, authoriser=self.desks, clock=system_clock, holder="test")
        engine.start()
        for _ in range(20):
            if not engine.tick() and engine.is_idle():
                break
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            row = batches.find_settlement(connection, stored.row.id)
        assert row is not None
        return row

    def standings(self, row: batches.SettlementRow) -> set[HoldStanding]:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            found = connection.exec_driver_sql(
                "SELECT commit_hash, abort_hash FROM settlement WHERE id = %(id)s", {"id": row.id}
            ).one()
        return {
            self.islands[item.leg.terms.ledger].look_up(
                [HoldOrder(item.leg.hold_id, item.leg.terms, row.uetr, bytes(found[0]), bytes(found[1]))]
            )[0]
            for item in row.legs
        }

    def balances(self) -> dict[tuple[int, str], tuple[int, int]]:
        """(posted, available) by bank and currency."""
        found = {}
        for number, bank in enumerate(BANKS):
            for code in CURRENCIES:
                world = self.ledgers[code.lower()]
                with world.client(bank) as client:
                    view = client.get_account(self.vaults[bank][code.lower()].account)
                found[number, code] = (view.balance_minor, view.available_minor)
        return found


pytestmark = pytest.mark.medium
"""Three real ledgers take a quarter of a minute to start; the same cases over PostgreSQL are in `make test`."""


@pytest.fixture(scope="module")
def world(fresh_databases: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    keys = {bank: PrivateKey.generate() for bank in (*BANKS, BRIDGE)}
    with ExitStack() as stack:
        ledgers: dict[str, LedgerWorld] = {}
        vaults: dict[ParticipantId, dict[str, Vault]] = {bank: {} for bank in BANKS}
        islands: dict[str, NativeIsland] = {}
        for code in CURRENCIES:
            name = code.lower()
            directory: Path = tmp_path_factory.mktemp(name)
            made = stack.enter_context(running_ledger(fresh_databases("ledger"), directory, ledger=name, currency=code))
            made.register(BRIDGE, role="bridge", key=keys[BRIDGE])
            for bank in BANKS:
                made.register(bank, key=keys[bank])
                account = AccountNumber(made.open_vault(bank))
                made.issue(account, FUNDS)
                vaults[bank][name] = Vault(account, code)
            ledgers[name] = made
            islands[name] = NativeIsland(name, stack.enter_context(made.client(BRIDGE)))
        database = Database(fresh_databases("settlement"), application_name="test", pool_size=3)
        stack.callback(database.close)
        yield World(database, ledgers, islands, vaults, Desks(keys, vaults))


CASES = [("pvpvp", PVPVP), ("cycle", CYCLE)]


@pytest.mark.parametrize("drawn", [drawn for _, drawn in CASES], ids=[name for name, _ in CASES])
def test_i5_all_legs_post_on_three_real_ledgers(world: World, drawn: list[Drawn]) -> None:
    before = world.balances()
    row = world.settle(world.legs(drawn))
    assert (row.decision, row.state, row.detail) == (Decision.COMMIT, SettlementState.SETTLED, "")
    assert world.standings(row) == {HoldStanding.POSTED}
    moved = {(bank, code): 0 for bank in range(3) for code in CURRENCIES}
    for payer, payee, code, amount in drawn:
        moved[payer, code] -= amount
        moved[payee, code] += amount
    after = world.balances()
    assert {place: after[place][0] - before[place][0] for place in after} == moved
    assert all(posted == available for posted, available in after.values())


@pytest.mark.parametrize(
    ("drawn", "number"),
    [(drawn, number) for _, drawn in CASES for number in range(len(drawn))],
    ids=[f"{name}-{number}" for name, drawn in CASES for number in range(len(drawn))],
)
def test_i5_a_leg_without_funds_posts_none_on_three_real_ledgers(world: World, drawn: list[Drawn], number: int) -> None:
    before = world.balances()
    payer, payee, code, _ = drawn[number]
    row = world.settle(world.legs([*drawn[:number], (payer, payee, code, FUNDS * 10), *drawn[number + 1 :]]))
    assert (row.decision, row.state, row.reason) == (Decision.ABORT, SettlementState.CANCELLED, "leg-refused")
    assert "insufficient-funds" in row.detail and f"leg {number}" in row.detail
    assert not world.standings(row) & {HoldStanding.POSTED, HoldStanding.HELD}
    assert world.balances() == before


def test_a_bank_whose_desk_ordered_otherwise_signs_nothing_and_no_leg_is_held(world: World) -> None:
    """Attack: the bridge, or a counterparty, settles a cycle that brings one bank less than it ordered."""
    before, legs = world.balances(), world.legs(CYCLE)
    poorer = [*legs[:-1], replace(legs[-1], amount=Money(1, legs[-1].amount.currency))]
    real = world.desks.order
    world.desks.order = lambda uetr, _: real(uetr, legs)  # type: ignore[method-assign]
    try:
        row = world.settle(poorer)
    finally:
        world.desks.order = real  # type: ignore[method-assign]
    assert (row.decision, row.reason) == (Decision.ABORT, "authorisation-refused")
    assert "mismatch" in row.detail
    assert world.balances() == before

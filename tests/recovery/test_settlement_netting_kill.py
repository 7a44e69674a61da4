"""R10. Goal: SIGKILL of the settlement service around a netting run, over real ledgers and real wallet services: all
net legs post or none does, and every instruction is settled once or is back in the queue (I5).

Method: the sandbox's own processes (two ledgers, four banks' wallet services, the bridge). Banks order their
instructions at their own desks; a run is previewed, the bridge is killed before the start, and at seeded moments after
it. What became of it is read from both ledgers' statements, not from the bridge.

JIAOZI_KILLS=50 JIAOZI_SEED=7 pytest tests/recovery/test_settlement_netting_kill.py -m medium   # a campaign
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from uuid import UUID, uuid4

import pytest
from rich.console import Console

from kernel.clock import system_clock
from kernel.ids import new_uuid7
from kernel.money import Currency, Money
from ledger.contract import IssueAction
from sandbox.cross_border import CrossBorder
from sandbox.report import Report
from sandbox.scheme import Scheme, remove
from sandbox.seed import carry_out
from sandbox.topology import BRIDGE, BRIDGE_SERVICE, INSTITUTIONS, Home, central_bank, free_ports, service_names
from settlement.client import SettlementClient
from settlement.contract import SettlementState, SettlementView
from settlement.contract.liquidity import RunView
from settlement.domain.instructions import Instruction, Priority
from settlement.iso20022.pacs009 import write_pacs009
from settlement.torture.world import patiently

KILLS = int(os.environ.get("JIAOZI_KILLS", "3"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
CNY, AED = Currency.of("CNY"), Currency.of("AED")
EACH = 6
"""Instructions of each bank in one batch."""
FUNDS_MINOR = 50_000_00

pytestmark = [
    pytest.mark.medium,
    pytest.mark.campaign,
    pytest.mark.xdist_group("sandbox"),
    pytest.mark.timeout(240 + 30 * KILLS),
]


class QueueScheme(Scheme):
    """Normal instructions wait for a run."""

    def _settings(self, name: str) -> dict[str, str]:
        more = {"JIAOZI_SETTLEMENT_QUEUED_PRIORITIES": "NORM"} if name == BRIDGE_SERVICE else {}
        return super()._settings(name) | more


class World:
    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.banks = CrossBorder(
            scheme, Report(Console(file=io.StringIO())), scheme.vaults(), instructions=0, clock=system_clock
        )
        self.sent: list[SettlementView] = []
        self._fund()
        self.start = self.banks._balances()

    def _fund(self) -> None:
        for item in INSTITUTIONS:
            bank = central_bank(item.home)
            vault = self.banks.vaults[item.participant][bank.ledger]
            action = IssueAction(
                transfer=new_uuid7(), vault=vault, amount_minor=FUNDS_MINOR, currency=bank.currency.code
            )
            with self.scheme.ledger_client(bank.ledger, self.scheme.keys.operator(bank, 0)) as client:
                carry_out(client, self.scheme.keys, bank, action, clock=system_clock)

    def bridge(self) -> SettlementClient:
        return self.scheme.bridge_client(self.scheme.keys.institution(BRIDGE))

    def submit(self, number: int, random: Random) -> None:
        """A ring of the four banks, CNY against AED and AED against CNY: together they owe each other little."""
        first, second, third, fourth = (item.participant for item in INSTITUTIONS)
        lines = []
        for place in range(EACH):
            for debtor, creditor in ((first, third), (third, second), (second, fourth), (fourth, first)):
                pays, gets = (CNY, AED) if debtor in (first, second) else (AED, CNY)
                amount, counter = random.randrange(100_00, 900_00), random.randrange(50_00, 800_00)
                name = f"{number}-{place}-{debtor[:4]}"
                lines.append(
                    Instruction(
                        f"I{name}", f"E{name}", uuid4(), debtor, creditor, Money(amount, pays), gets,
                        Money(counter, gets), system_clock().date(), Priority.NORMAL,
                    )
                )  # fmt: skip
        content = write_pacs009(lines, message_id=f"M{number}", created_at=system_clock())
        with self.bridge() as client:
            batch = client.submit_batch(content, file_format="pacs.009").batch
            client.run_batch(batch)
            settlements = list(client.settlements(batch))
        ordered, refused = self.banks._order(settlements)
        assert (ordered, refused) == (2 * len(lines), 0)
        self.sent += settlements

    def kill(self) -> None:
        assert self.scheme.processes.kill(self.scheme.service(BRIDGE_SERVICE)) is not None
        self.scheme.restart(BRIDGE_SERVICE)

    def started(self, run: UUID) -> RunView:
        """Start it (again): a start that a kill has cut off either stands or did not happen."""
        with self.bridge() as client:
            patiently(lambda: client.start_run(run))
            return client.wait_for_run(run, timeout_seconds=60)

    def check(self, runs: Sequence[RunView]) -> Counter[SettlementState]:
        with self.bridge() as client:
            _until_nothing_is_in_doubt(client)
            now = {item.settlement: client.settlement(item.settlement) for item in self.sent}
            nettings = [client.settlement(run.netting) for run in runs if run.netting is not None]
            queued = {item.settlement for item in client.queue()}
        # The ledgers' word: of each netting settlement every leg is posted, or none.
        posted = self._posted_legs()
        for netting in nettings:
            expected = Counter((leg.currency, leg.amount_minor) for leg in netting.legs)
            assert posted[netting.uetr] == (expected if netting.state is SettlementState.SETTLED else Counter())
        assert set(posted) <= {netting.uetr for netting in nettings}  # no instruction was paid by itself
        states = Counter(item.state for item in now.values())
        assert set(states) <= {SettlementState.SETTLED, SettlementState.RECEIVED}
        assert {key for key, item in now.items() if item.state is SettlementState.RECEIVED} == queued
        # Every bank has moved by exactly what its settled instructions say, each once.
        moved = {bank: Counter(balances) for bank, balances in self.start.items()}
        for item in now.values():
            for leg in item.legs if item.state is SettlementState.SETTLED else ():
                moved[leg.payer][leg.currency] -= leg.amount_minor
                moved[leg.payee][leg.currency] += leg.amount_minor
        assert self.banks._balances() == {bank: dict(found) for bank, found in moved.items()}
        return states

    def _posted_legs(self) -> defaultdict[UUID, Counter[tuple[str, int]]]:
        found: defaultdict[UUID, Counter[tuple[str, int]]] = defaultdict(Counter)
        for code, bank in (("CNY", central_bank("cn-ecny")), ("AED", central_bank("ae-daed"))):
            with self.scheme.ledger_client(bank.ledger, self.scheme.keys.operator(bank, 2)) as client:
                for accounts in self.banks.vaults.values():
                    for line in client.statement_lines(accounts[bank.ledger]):
                        if line.kind.value == "post" and line.direction == "debit" and line.reference is not None:
                            found[line.reference][code, line.amount_minor] += 1
        return found


def _until_nothing_is_in_doubt(client: SettlementClient) -> None:
    deadline = time.monotonic() + 60
    while list(client.in_doubt()):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    # Not pytest's directory: as root, PostgreSQL runs as another user, who cannot enter that.
    directory = Path("/tmp" if os.geteuid() == 0 else tmp_path_factory.mktemp("sandbox"))
    home = Home((directory / f"jiaozi-netting-test-{os.getpid()}").resolve())
    home.prepare()
    home.write_state({**home.read_state(), "ports": free_ports(service_names())})
    scheme = QueueScheme(home)
    try:
        scheme.up()
        yield World(scheme)
    finally:
        scheme.down()
        remove(home)


def test_i5_sigkill_around_a_netting_run_posts_all_of_it_or_nothing(world: World) -> None:
    random = Random(SEED)
    runs: list[RunView] = []
    for number in range(KILLS + 1):
        world.submit(number, random)
        with world.bridge() as client:
            view = client.preview_run()
        assert view.taken_count > 0
        if number == 0:
            world.kill()  # between the preview, which officers may have approved, and the start
        else:
            with world.bridge() as client:
                client.start_run(view.run)
            time.sleep(random.uniform(0.0, 0.12))
            world.kill()
        runs.append(world.started(view.run))
        assert runs[-1].state in ("settled", "aborted")
    while (last := runs[-1]).state == "aborted":  # its instructions are queued: they settle in the next run
        with world.bridge() as client:
            again = client.preview_run()
        assert again.taken_count >= last.taken_count
        runs.append(world.started(again.run))
    states = world.check(runs)
    assert states[SettlementState.SETTLED] > 0
    ends = Counter(run.state for run in runs)
    print(f"\n{KILLS + 1} kills: runs {dict(ends)}, instructions { ({state.value: n for state, n in states.items()}) }")

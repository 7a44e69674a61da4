"""A bridge for tests of calendars and compliance: a real database, the real intake and engine, a clock to turn.

`OversightWorld.submit` takes instructions through the door that every batch takes (`submit_batch`, as pacs.009 or, for
customers, pacs.008); ledgers and institutions are the fakes that the product ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID, uuid4

from kernel import ids
from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency, Money
from settlement.domain.compliance import ComplianceData
from settlement.domain.fx import Rate, find_rate
from settlement.domain.instructions import Instruction
from settlement.islands.authorisers import FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.iso20022.pacs008 import write_pacs008
from settlement.iso20022.pacs009 import write_pacs009
from settlement.settings import Directory, InstitutionEntry, LedgerEntry, RateEntry
from settlement.store import batches, gates
from settlement.store.decision_log import DecisionLog
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.keeper import Keeper, Pass
from settlement.usecases.settle import Engine
from settlement.usecases.submit import Submission, submit_batch

BRIDGE, BANK_A, BANK_B, BANK_C = (ParticipantId(code) for code in ("BRDGAEAD", "AAAACNBJ", "BBBBAEAD", "CCCCUS33"))
CNY, AED, USD = (Currency.of(code) for code in ("CNY", "AED", "USD"))
ACCOUNTS = {BANK_A: (11, 21, 31), BANK_B: (12, 22, 32), BANK_C: (13, 23, 33)}
START = 10**12


def make_directory() -> Directory:
    codes, nowhere = ("CNY", "AED", "USD"), "http://127.0.0.1:1"
    ledgers = [LedgerEntry(ledger=code.lower(), url=nowhere, currency=code) for code in codes]
    institutions = [
        InstitutionEntry(
            participant=participant,
            authorisation_url=nowhere,
            key=PrivateKey.generate().public.to_jwk(),
            accounts={code: AccountNumber(number) for code, number in zip(codes, numbers, strict=True)},
        )
        for participant, numbers in ACCOUNTS.items()
    ]
    rates = [
        RateEntry(base="CNY", counter="AED", rate="0.5123", provider=BANK_B),
        RateEntry(base="USD", counter="CNY", rate="7.1", provider=BANK_C),
        RateEntry(base="USD", counter="AED", rate="3.6725", provider=BANK_C),
    ]
    return Directory(ledgers, institutions, rates)


@dataclass
class OversightWorld:
    database: Database
    clock: ManualClock
    checks: tuple[IntakeCheck, ...] = ()
    passes: tuple[Pass, ...] = ()
    directory: Directory = field(default_factory=make_directory)

    def __post_init__(self) -> None:
        self.islands = {
            name: FakeIsland(name, balances={numbers[place]: START for numbers in ACCOUNTS.values()})
            for place, name in enumerate(("cny", "aed", "usd"))
        }
        self.authoriser = FakeAuthoriser(PrivateKey.generate(), clock=self.clock)
        self.log = DecisionLog(self.database)
        self.engine = Engine(
            log=self.log, islands=self.islands, authoriser=self.authoriser, clock=self.clock, holder="test"
        )
        self.engine.start()
        self.keeper = Keeper(self.passes, database=self.database, clock=self.clock, moved=lambda: None)

    def find_rate(self, base: Currency, counter: Currency) -> Fraction | None:
        found = find_rate(self.directory.rates, base=base, counter=counter, at=self.clock())
        return found.value if isinstance(found, Rate) else None

    def instruction(
        self, *, value_date: date, amount: Money | None = None, data: ComplianceData | None = None, **changes: Any
    ) -> Instruction:
        """BANK_A pays 100.00 CNY to BANK_B, by default, against AED."""
        number = uuid4().hex[:12]
        made = Instruction(
            f"I{number}", f"E{number}", uuid4(), BANK_A, BANK_B, amount or Money(10_000, CNY), AED, None, value_date,
            compliance=data,
        )  # fmt: skip
        return replace(made, **changes)

    def submit(self, *instructions: Instruction) -> list[UUID]:
        """The settlements' ids, in order. Raises ProblemError as the service would answer."""
        write = write_pacs009 if instructions[0].compliance is None else write_pacs008
        content = write(instructions, message_id=uuid4().hex, created_at=self.clock())
        submission = Submission(content, "pacs.009", BRIDGE, True, uuid4().hex, "/v1/batches")
        outcome = submit_batch(
            submission,
            database=self.database,
            directory=self.directory,
            clock=self.clock,
            bridge=BRIDGE,
            run_on_submit=True,
            checks=self.checks,
            render=lambda row: {"batch": ids.show("bat", row.id)},
        )
        batch = ids.parse("bat", outcome.body["batch"])
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            rows = batches.settlements_page(connection, batch, after=0, limit=len(instructions))
        return [row.id for row in rows]

    def run(self, rounds: int = 12) -> None:
        """What the service's threads do, until nothing moves."""
        for _ in range(rounds):
            moved = self.keeper.round()
            if not self.engine.tick() and not moved and self.engine.is_idle():
                return

    def at(self, moment: datetime) -> None:
        """Turn the clock to `moment`."""
        self.clock.advance(moment - self.clock())

    def pass_time(self, step: timedelta) -> None:
        self.clock.advance(step)

    def row(self, settlement: UUID) -> batches.SettlementRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            found = batches.find_settlement(connection, settlement)
        assert found is not None
        return found

    def closed(self, settlements: Sequence[UUID]) -> dict[UUID, list[gates.Gate]]:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            return gates.closed(connection, settlements)

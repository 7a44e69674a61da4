"""A queue for the liquidity tests: the real desk, log and engine over PostgreSQL, and fake islands with real rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID, uuid4

from kernel import ids
from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId, new_uuid7
from kernel.money import Currency, Money
from settlement.domain.escrow import LegTerms, SettlementState
from settlement.islands.authorisers import Authoriser, FakeAuthoriser
from settlement.islands.fake import FakeIsland
from settlement.settings import Directory, InstitutionEntry, LedgerEntry
from settlement.store import batches, gates
from settlement.store.decision_log import DecisionLog
from settlement.usecases.liquidity import Desk
from settlement.usecases.netting_authoriser import NettingAuthoriser
from settlement.usecases.settle import Engine

BRIDGE = ParticipantId("BRDGAEAD")
BANKS = A, B, C = tuple(ParticipantId(code) for code in ("AAAACNBJ", "BBBBAEAD", "CCCCHKHH"))
CURRENCIES = ("CNY", "AED", "HKD")
NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
Pay = tuple[ParticipantId, ParticipantId, str, int]


def account(bank: ParticipantId, currency: str) -> AccountNumber:
    return AccountNumber(10 * (1 + CURRENCIES.index(currency)) + BANKS.index(bank))


@dataclass
class LiquidityWorld:
    database: Database
    clock: ManualClock
    islands: dict[str, FakeIsland]
    authoriser: FakeAuthoriser
    desk: Desk
    log: DecisionLog
    officers: dict[str, PrivateKey]

    @classmethod
    def make(cls, url: str, balances: dict[tuple[ParticipantId, str], int]) -> LiquidityWorld:
        clock = ManualClock(NOON)
        database = Database(url, application_name="test")
        key = PrivateKey.generate()
        institutions = [
            InstitutionEntry.model_validate(
                {
                    "participant": bank,
                    "authorisation_url": "http://127.0.0.1:1",
                    "key": PrivateKey.generate().public.to_jwk(),
                    "accounts": {currency: ids.show_account(account(bank, currency)) for currency in CURRENCIES},
                }
            )
            for bank in BANKS
        ]
        ledgers = [LedgerEntry(ledger=name.lower(), url="http://127.0.0.1:1", currency=name) for name in CURRENCIES]
        islands = {
            currency.lower(): FakeIsland(
                currency.lower(),
                balances={int(account(bank, currency)): balances.get((bank, currency), 0) for bank in BANKS},
            )
            for currency in CURRENCIES
        }
        officers = {name: PrivateKey.generate() for name in ("an", "bo")}
        desk = Desk(
            database,
            Directory(ledgers, institutions, []),
            islands,
            BRIDGE,
            {key.public.thumbprint: (name, key.public) for name, key in officers.items()},
            clock,
        )
        return cls(database, clock, islands, FakeAuthoriser(key, clock=clock), desk, DecisionLog(database), officers)

    def submit(
        self, payments: Sequence[Sequence[Pay]], *, is_queued: bool = True, priorities: Sequence[str] = ()
    ) -> list[UUID]:
        """A batch: each item the flows of one settlement. Returns settlement ids."""
        now = self.clock()
        made = []
        for position, flows in enumerate(payments, start=1):
            legs = tuple(
                LegTerms(
                    currency.lower(),
                    payer,
                    payee,
                    account(payer, currency),
                    account(payee, currency),
                    Money(amount, Currency.of(currency)),
                )
                for payer, payee, currency, amount in flows
            )
            priority = priorities[position - 1] if priorities else "NORM"
            made.append(
                batches.NewSettlement(
                    new_uuid7(), position, f"i{position}", f"e{position}", uuid4(), legs[0].payer, legs[0].payee,
                    now.date(), priority, None, None, None, legs,
                )
            )  # fmt: skip
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            batches.insert_batch(
                connection,
                batch=new_uuid7(),
                submitter=A,
                message_id=uuid4().hex,
                batch_format="csv",
                content_sha256=bytes(32),
                received_at=now,
                started_at=now,
                settlements=made,
            )
            if is_queued:
                kind = gates.GateKind.LIQUIDITY
                gates.close(connection, [gates.Gate(item.id, kind, "queued") for item in made], now=now)
        return [item.id for item in made]

    def engine(self, authoriser: Authoriser | None = None) -> Engine:
        return Engine(
            log=self.log,
            islands=self.islands,
            authoriser=NettingAuthoriser(authoriser or self.authoriser, self.database),
            clock=self.clock,
            holder="test",
        )

    def settle(self, engine: Engine | None = None) -> None:
        found = engine or self.engine()
        if engine is None:
            found.start()
        for _ in range(50):
            if not found.tick() and found.is_idle():
                return
        raise AssertionError("the engine does not come to rest")

    def state(self, settlement: UUID) -> SettlementState:
        return self.row(settlement).state

    def row(self, settlement: UUID) -> batches.SettlementRow:
        with self.database.transaction(isolation="READ COMMITTED") as connection:
            row = batches.find_settlement(connection, settlement)
        assert row is not None
        return row

    def balance(self, bank: ParticipantId, currency: str) -> int:
        return self.islands[currency.lower()].balance(account(bank, currency))

    def check(self) -> None:
        for island in self.islands.values():
            island.check()

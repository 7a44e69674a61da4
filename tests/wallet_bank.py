"""A bank for the wallet tests: its use-case context over a fresh database and a `FakeLedger`, and a few shorthands."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import make_url

from kernel import ids
from kernel.clock import ManualClock
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from tests.card_world import ISSUER, ROOT
from tests.fakes import FakeLedger
from tests.roles import as_service
from wallet.domain.records import Wallet
from wallet.domain.rules import Evidence, WalletClass, ledger_rule_classes
from wallet.personal_data import PersonalDataVault
from wallet.rulepack_files import load_rule_pack
from wallet.store.sandbox_core_banking import SandboxCoreBanking
from wallet.usecases.context import Context, LedgerAccess, Ledgers
from wallet.usecases.kept_twice import meaning_of
from wallet.usecases.wallets import open_wallet, register_customer

NOON = datetime(2026, 6, 15, 4, 0, tzinfo=UTC)
"""Noon in Shanghai."""
ALL_EVIDENCE = frozenset(Evidence)
VAULT_FUNDS = 10_000_000_00


def service_database(owner: Database) -> Database:
    """The same database under the wallet service's role; closed with the owner's."""
    url = owner.engine.url
    plain = url.difference_update_query(["options"]).render_as_string(hide_password=False)
    named = make_url(as_service(plain, "wallet"))
    pool: Any = owner.engine.pool
    service = Database(
        named.set(query=url.query).render_as_string(hide_password=False),
        application_name="test-service",
        pool_size=pool.size(),
        meaning_of=meaning_of,
    )
    close_owner = owner.close

    def close() -> None:
        service.close()
        close_owner()

    owner.close = close  # type: ignore[method-assign]
    return service


@dataclass
class Holder:
    wallet: Wallet
    key: PrivateKey

    @property
    def account(self) -> AccountNumber:
        assert self.wallet.account is not None
        return self.wallet.account


class Bank:
    """Its use cases run under the service's own role, so that a missing grant fails a test; `database` is the owner's,
    for what a test reads or tampers with by itself. Closing that closes both."""

    def __init__(self, database: Database, *, pack: str = "ecny-2021-06") -> None:
        self.clock = ManualClock(NOON)
        self.pack = load_rule_pack(pack)
        self.ledger = FakeLedger(clock=self.clock, rule_classes=ledger_rule_classes(self.pack))
        self.abroad = FakeLedger(clock=self.clock, name="aed", currency="AED")
        self.database = database
        service = service_database(database)
        self.core_banking = SandboxCoreBanking(service, clock=self.clock)
        ledgers = Ledgers(
            [LedgerAccess("cny", "CNY", self.ledger), LedgerAccess("aed", "AED", self.abroad)], database=service
        )
        self.context = Context(
            database=service,
            ledgers=ledgers,
            pack=self.pack,
            participant=ids.parse_participant("BKCHCNBJ"),
            key=PrivateKey.generate(),
            clock=self.clock,
            core_banking=self.core_banking,
            personal_data=PersonalDataVault(bytes(32)),
            time_zone=ZoneInfo("Asia/Shanghai"),
            card_issuers={ISSUER: ROOT.public},
        )
        self.vault = ledgers.vault(ledgers.home)
        self.vault_abroad = ledgers.vault(ledgers.all()[1])
        self.ledger.fund(self.vault, VAULT_FUNDS)
        self._numbers = itertools.count(1)

    def holder(self, wallet_class: WalletClass = WalletClass.II, *, funds: int = 0, suite: str = "ed25519") -> Holder:
        """A new customer with an open wallet; `funds` come from nowhere."""
        customer = register_customer(self.context, self.new_id(), name="", phone="", evidence=ALL_EVIDENCE)
        key = PrivateKey.generate(suite)
        wallet = open_wallet(
            self.context,
            self.new_id(),
            customer_id=customer.customer.id,
            wallet_class=wallet_class,
            device_key=key.public.to_jwk(),
        )
        holder = Holder(wallet, key)
        self.ledger.fund(holder.account, funds)
        return holder

    def new_id(self) -> UUID:
        return ids.uuid7_at(int(self.clock().timestamp() * 1000) + next(self._numbers))

    def instruction(
        self,
        payer: Holder,
        credit: int,
        amount_minor: int,
        *,
        kind: TransferKind = TransferKind.PAYMENT,
        id: UUID | None = None,
        key: PrivateKey | None = None,
        ledger: str = "cny",
        currency: str = "CNY",
        valid_for: timedelta = timedelta(minutes=10),
        reference: UUID | None = None,
    ) -> str:
        terms = TransferTerms(
            id=id or self.new_id(),
            kind=kind,
            debit=payer.account,
            credit=AccountNumber(credit),
            amount_minor=amount_minor,
            currency=currency,
            reference=reference,
        )
        return sign_instruction(terms, ledger=ledger, valid_until=self.clock() + valid_for, key=key or payer.key)

    def balance(self, holder: Holder) -> int:
        return self.ledger.accounts[holder.account].balance

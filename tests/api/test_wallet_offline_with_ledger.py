"""Goal: offline money and payers' codes against the real ledger: the escrow is what its supply statement calls offline
at every step, and the ledger alone refuses a second code for a request.
Method: both services with their own PostgreSQL, the ledger behind a real socket; purses' devices in memory.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Barrier
from uuid import UUID

import pytest
import sqlalchemy as sa

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from ledger.client import LedgerClient
from ledger.contract import IssueAction, TransferKind
from tests.api.test_wallet_with_ledger import Scheme, order_by_operators, scheme
from tests.purse_world import Purse
from wallet.client import WalletClient
from wallet.domain.offline import element
from wallet.domain.offline.element import Device, PurseState
from wallet.domain.offline.vocabulary import Disposition
from wallet.domain.payer_holds import make_payer_code
from wallet.domain.rules import Evidence, WalletClass

__all__ = ["scheme"]
ISSUED = 10_000_000


@dataclass
class Town:
    """A bank with money, its customers' wallets, and the ledger's own word on everything."""

    scheme: Scheme
    client: WalletClient
    bank: LedgerClient
    vault: ids.AccountNumber
    customer: UUID

    def wallet(self, *, funds: int = 0) -> tuple[UUID, ids.AccountNumber, PrivateKey]:
        key = PrivateKey.generate()
        view = self.client.open_wallet(customer=self.customer, wallet_class=WalletClass.II, device_key=key.public)
        assert view.account is not None
        if funds:
            self.client.simulate_deposit(customer=self.customer, amount_minor=funds)
            self.client.exchange_in(wallet=view.wallet, amount_minor=funds, currency="CNY")
        return view.wallet, view.account, key

    def purse(self, wallet: UUID) -> tuple[Purse, ids.AccountNumber]:
        key = PrivateKey.generate("ecdsa-p256-sha256")
        view = self.client.create_purse(wallet=wallet, device_key=key.public)
        state = element.new_purse(view.certificate, self.scheme.keys["bank"].public, Device(key.public, key.sign))
        assert isinstance(state, PurseState)
        return Purse(view.purse, key, state), view.escrow

    def balance(self, account: ids.AccountNumber) -> int:
        return self.bank.get_account(account).balance_minor


def town_of(scheme: Scheme) -> Town:
    client = scheme.wallet("channel")
    bank = LedgerClient(scheme.ledger_url, signer=RequestSigner(scheme.keys["bank"]))
    vault = client.institution().ledgers[0].vault
    issue = IssueAction(transfer=ids.new_uuid7(), vault=vault, amount_minor=ISSUED, currency="CNY")
    order_by_operators(bank, scheme.operators, issue)
    customer = client.create_customer(evidence=list(Evidence)).customer
    return Town(scheme, client, bank, vault, customer)


def seconds() -> int:
    return int(system_clock().timestamp())


def test_escrow_is_what_the_ledger_calls_offline_at_every_step(scheme: Scheme) -> None:
    town = town_of(scheme)
    desk, anybody = (
        scheme.wallet("operator"),
        WalletClient("http://wallet.test", transport=scheme.wallet_http._transport),
    )
    payer_wallet, payer_account, payer_key = town.wallet(funds=50_000)
    (one_wallet, one_account, _), (two_wallet, two_account, _) = town.wallet(), town.wallet()
    (payer, escrow), (one, _), (two, _) = (town.purse(wallet) for wallet in (payer_wallet, one_wallet, two_wallet))

    def offline_is(expected: int) -> None:
        supply, books = town.bank.supply(), desk.purse_escrow()
        assert supply.identity_holds
        assert supply.offline_minor == town.balance(escrow) == books.escrow_minor == books.claims_minor == expected
        assert supply.circulation_minor == ISSUED == supply.vaults_minor + supply.wallets_minor + expected

    offline_is(0)
    funding = anybody.fund_purse(
        key=payer_key,
        ledger="cny",
        debit=payer_account,
        escrow=escrow,
        purse=payer.id,
        amount_minor=30_000,
        currency="CNY",
        valid_until=system_clock() + timedelta(minutes=5),
    )
    assert funding.message is not None
    offline_is(30_000)
    assert town.balance(payer_account) == 20_000
    payer.step(element.load(payer.state, funding.message))

    # Between devices nothing moves on the ledger, until somebody syncs: then once, whoever brings it how often.
    hacked = replace(payer)
    transfer = payer.pays(one, 12_000, seconds(), Disposition.ACCOUNT)
    offline_is(30_000)
    first, again = anybody.sync_purses([transfer, transfer])
    assert first == again
    assert (first.credited_minor, first.is_paid_out) == (12_000, True)
    assert town.balance(one_account) == 12_000
    offline_is(18_000)

    # The copied device pays another with the same money: he is paid, by what the purse has left; the device is named.
    vault_before, copy = town.balance(town.vault), replace(hacked)
    conflicting = hacked.pays(two, 12_000, seconds(), Disposition.ACCOUNT)
    (second,) = anybody.sync_purses([conflicting])
    assert (second.credited_minor, second.short_minor) == (12_000, 0)
    assert (town.balance(two_account), town.balance(town.vault)) == (12_000, vault_before)
    offline_is(6_000)
    assert desk.double_spend_proof(payer.id)

    # The rest is held: the device takes nothing home.
    (held,) = anybody.sync_purses([payer.redeem(18_000, seconds())])
    assert (held.credited_minor, held.refusal) == (None, "purse-held")
    offline_is(6_000)

    # And once more the same money: the rest first, then the institution bears it.
    third = copy.pay(two.ask(12_000, seconds(), Disposition.ACCOUNT), seconds())  # his device would refuse it
    (borne,) = anybody.sync_purses([third])
    assert (borne.credited_minor, borne.short_minor) == (12_000, 0)
    assert (town.balance(two_account), town.balance(town.vault)) == (24_000, vault_before - 6_000)
    offline_is(0)
    lines = town.bank.statement(escrow).lines
    kinds = Counter((line.kind, line.direction, line.amount_minor) for line in lines)
    assert kinds[TransferKind.PURSE_FUND, "credit", 30_000] == 1
    assert kinds[TransferKind.PURSE_LOSS, "credit", 6_000] == 1
    assert kinds[TransferKind.PURSE_REDEEM, "debit", 12_000] == 3
    assert sum(line.amount_minor if line.direction == "credit" else -line.amount_minor for line in lines) == 0
    assert town.balance(payer_account) == 20_000


@pytest.mark.extended
def test_two_codes_at_once_debit_one_payer_and_without_the_index_the_ledger_sees_to_it(scheme: Scheme) -> None:
    town = town_of(scheme)
    shop_wallet, shop, _ = town.wallet()
    payers = [town.wallet(funds=10_000) for _ in range(2)]
    institution = town.client.institution()

    def code(payer: tuple[UUID, ids.AccountNumber, PrivateKey]) -> str:
        return make_payer_code(
            key=payer[2],
            institution=institution.participant,
            vault=town.vault,
            ledger="cny",
            currency="CNY",
            account=payer[1],
            cap_minor=5_000,
            valid_until=system_clock().replace(microsecond=0) + timedelta(seconds=90),
            hold=ids.new_uuid7(),
        )

    def race(codes: list[str]) -> list[str]:
        request = town.client.request_payment(
            wallet=shop_wallet,
            currency="CNY",
            amount_minor=1_500,
            payee_name="Shop",
            expires_at=system_clock() + timedelta(minutes=10),
        )
        start = Barrier(len(codes))

        def scan(text: str) -> str:
            start.wait()
            try:
                return town.client.redeem_payer_code(request.request, text).state.value
            except ProblemResponse as error:
                return error.refusal

        with ThreadPoolExecutor(len(codes)) as pool:
            return sorted(pool.map(scan, codes))

    for number in range(1, 5):
        if number == 3:
            database: Database = scheme.wallet_http.app.state.context.database  # type: ignore[attr-defined]
            with database.engine.begin() as connection:
                connection.execute(sa.text("DROP INDEX redemption_payment_i7"))
        assert race([code(payer) for payer in payers]) == ["paid", "request-already-paid"]
        assert town.balance(shop) == number * 1_500
        assert sum(town.balance(payer[1]) for payer in payers) == 20_000 - number * 1_500
    assert town.bank.supply().held_minor == 0
    assert town.bank.supply().identity_holds

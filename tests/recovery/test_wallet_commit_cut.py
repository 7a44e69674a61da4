"""Goal: a connection to the wallet service's own database that is cut around COMMIT (it is lost, or only its answer)
leaves nothing in doubt: the customer asks again, the service recovers, and a payment, an exchange, a purse's loading
and an offline sync are settled once.

Method: the wallet service behind a proxy that cuts its connection to PostgreSQL at the n-th COMMIT of a request, for
one n after another; a real ledger; both sides' books are compared afterwards. JIAOZI_KILLS cuts of each kind and saga,
at the seed's COMMITs; with 0 at every one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Literal
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy import make_url

from kernel import ids
from kernel.client import ProblemResponse
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from kernel.postgres import EmbeddedPostgres
from ledger.contract import TransferKind
from tests.api.test_wallet_offline_with_ledger import Town, seconds, town_of
from tests.api.test_wallet_with_ledger import running_scheme
from tests.faults.proxy import COMMITTED, Link, Proxy
from tests.roles import as_service
from wallet.contract import PaymentState
from wallet.domain.offline import element
from wallet.domain.offline.vocabulary import Disposition
from wallet.usecases.recover import recover

KILLS = int(os.environ.get("JIAOZI_KILLS", "1"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
FUNDS, AMOUNT = 50_000, 7_00
ATTEMPTS_MAX = 3
NOT_KNOWN = {"outcome-unknown", "service-unavailable"}
Side = Literal["COMMIT", "its answer"]


@dataclass
class Cutter:
    """Cuts the connection on which the n-th COMMIT from now on is asked for, or has been done and not been told."""

    side: Side = "COMMIT"
    at: int = 0
    """0: never."""
    seen: int = 0
    cuts: int = 0

    def aim(self, side: Side, at: int) -> None:
        self.side, self.at, self.seen, self.cuts = side, at, 0, 0

    def from_client(self, link: Link, chunk: bytes) -> str:
        return self._pass("COMMIT", b"COMMIT\x00" in chunk)

    def from_server(self, link: Link, chunk: bytes) -> str:
        return self._pass("its answer", COMMITTED in chunk)

    def _pass(self, side: Side, is_commit: bool) -> str:
        if not is_commit or side != self.side:
            return "pass"
        self.seen += 1
        if self.seen != self.at:
            return "pass"
        self.cuts += 1
        return "cut"


@dataclass
class Saga:
    """`do` may be repeated and says whether it has ended; `check` looks at both sides."""

    do: Callable[[], bool]
    check: Callable[[], None]


@pytest.fixture
def cutter() -> Cutter:
    return Cutter()


@pytest.fixture
def town(
    fresh_database: Callable[[str], str], postgres: EmbeddedPostgres, tmp_path: Path, cutter: Cutter
) -> Iterator[Town]:
    url = make_url(as_service(fresh_database("wallet"), "wallet"))
    proxy = Proxy(str(postgres.socket_dir / ".s.PGSQL.5432"))
    proxy.from_client, proxy.from_server = cutter.from_client, cutter.from_server
    behind = proxy.url(str(url.database), str(url.username))
    try:
        with running_scheme(fresh_database, tmp_path, wallet_database=behind, worker_seconds=3600) as scheme:
            town = town_of(scheme)
            town.client._http._retries_max = 0  # what is answered is looked at; who asks again is the test
            yield town
    finally:
        proxy.close()


def payment(town: Town) -> Saga:
    _, account, key = town.wallet(funds=FUNDS)
    _, payee, _ = town.wallet()
    token = _signed(town, TransferKind.PAYMENT, account, payee, key)

    def check() -> None:
        assert (town.balance(account), town.balance(payee)) == (FUNDS - AMOUNT, AMOUNT)

    return Saga(lambda: town.client.submit_payment(token).state is PaymentState.FINAL, check)


def exchange_in(town: Town) -> Saga:
    wallet, account, _ = town.wallet()
    exchange, before = ids.new_uuid7(), _deposit(town)
    town.client.simulate_deposit(customer=town.customer, amount_minor=AMOUNT)

    def do() -> bool:
        view = town.client.exchange_in(wallet=wallet, amount_minor=AMOUNT, currency="CNY", exchange=exchange)
        return view.state.value == "final"

    def check() -> None:
        assert (_deposit(town), town.balance(account)) == (before, AMOUNT)

    return Saga(do, check)


def exchange_out(town: Town) -> Saga:
    _, account, key = town.wallet(funds=FUNDS)
    before = _deposit(town)
    token = _signed(town, TransferKind.EXCHANGE_OUT, account, town.vault, key)

    def check() -> None:
        assert (_deposit(town), town.balance(account)) == (before + AMOUNT, FUNDS - AMOUNT)

    return Saga(lambda: town.client.exchange_out(token).deposit_credited_at is not None, check)


def offline_load(town: Town) -> Saga:
    wallet, account, key = town.wallet(funds=FUNDS)
    purse, escrow = town.purse(wallet)
    funding, until, before = ids.new_uuid7(), system_clock() + timedelta(minutes=5), town.balance(escrow)

    def do() -> bool:
        view = town.client.fund_purse(
            key=key,
            ledger="cny",
            debit=account,
            escrow=escrow,
            purse=purse.id,
            amount_minor=AMOUNT,
            currency="CNY",
            valid_until=until,
            funding=funding,
        )
        return view.message is not None

    def check() -> None:
        assert (town.balance(account), town.balance(escrow)) == (FUNDS - AMOUNT, before + AMOUNT)
        assert town.scheme.wallet("operator").purse_escrow().claims_minor == before + AMOUNT

    return Saga(do, check)


def offline_sync(town: Town) -> Saga:
    (wallet, account, key), (payee_wallet, payee_account, _) = town.wallet(funds=FUNDS), town.wallet()
    (payer, escrow), (payee, _) = town.purse(wallet), town.purse(payee_wallet)
    funding = town.client.fund_purse(
        key=key,
        ledger="cny",
        debit=account,
        escrow=escrow,
        purse=payer.id,
        amount_minor=AMOUNT,
        currency="CNY",
        valid_until=system_clock() + timedelta(minutes=5),
    )
    assert funding.message is not None
    payer.step(element.load(payer.state, funding.message))
    transfer = payer.pays(payee, AMOUNT, seconds(), Disposition.ACCOUNT)
    before = town.balance(escrow)

    def do() -> bool:
        [synced] = town.client.sync_purses([transfer])
        assert synced.credited_minor in (None, AMOUNT)
        return bool(synced.is_paid_out)

    def check() -> None:
        assert (town.balance(payee_account), town.balance(escrow)) == (AMOUNT, before - AMOUNT)
        assert town.scheme.wallet("operator").purse_escrow().claims_minor == town.balance(escrow)

    return Saga(do, check)


SAGAS = (
    payment,
    *(
        pytest.param(each, marks=pytest.mark.extended)
        for each in (exchange_in, exchange_out, offline_load, offline_sync)
    ),
)


@pytest.mark.campaign
@pytest.mark.parametrize("begin", SAGAS)
def test_connection_cut_around_commit_settles_once(town: Town, cutter: Cutter, begin: Callable[[Town], Saga]) -> None:
    for _ in range(2):  # the first one also asks what is then remembered
        whole = begin(town)
        cutter.aim("COMMIT", 0)
        assert whole.do()
        commits = cutter.seen
        whole.check()
    chosen = range(1, commits + 1)
    if KILLS:
        chosen = sorted(Random(SEED).sample(chosen, min(KILLS, commits)))  # type: ignore[assignment]
    sides: tuple[Side, ...] = ("COMMIT", "its answer")
    for at in chosen:
        for side in sides:
            saga = begin(town)
            cutter.aim(side, at)
            was_final = _ask(saga)
            assert cutter.cuts == 1, f"{side} {at}: not reached"
            for _ in range(ATTEMPTS_MAX):
                if was_final:
                    break
                # An attempt whose outcome is not known keeps its claim for a while; a service that starts keeps none.
                recover(town.scheme.wallet_http.app.state.context, at_start=True)  # type: ignore[attr-defined]
                was_final = _ask(saga)
            assert was_final, f"{side} {at}: not settled"
            saga.check()
            with suppress(ProblemResponse):
                assert saga.do()
            saga.check()
    _agree(town)


def _ask(saga: Saga) -> bool:
    """Whether it has ended. What is not known is said to be so: no fault, no refusal."""
    try:
        return saga.do()
    except ProblemResponse as error:
        if error.refusal not in NOT_KNOWN:
            raise
        return False


def _agree(town: Town) -> None:
    today = system_clock().astimezone(ZoneInfo("Asia/Shanghai")).date()
    checked = town.scheme.wallet("operator").check_exchanges(today)
    assert checked.exchanges > 0
    assert checked.breaks == []
    supply = town.bank.supply()
    assert supply.identity_holds


def _deposit(town: Town) -> int:
    return town.client.simulated_deposit(town.customer).balance_minor


def _signed(town: Town, kind: TransferKind, debit: int, credit: int, key: PrivateKey) -> str:
    return town.client.instruct(
        kind,
        key=key,
        ledger="cny",
        debit=debit,
        credit=credit,
        amount_minor=AMOUNT,
        currency="CNY",
        valid_until=system_clock() + timedelta(minutes=5),
    )

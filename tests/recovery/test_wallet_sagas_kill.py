"""Goal: SIGKILL of the wallet service between any two writes of a saga leaves nothing half done for good: each
exchange, redemption, refund, closure and interest credit is settled once on both sides, and all books agree afterwards.

Method: a real ledger, a real PostgreSQL under the service's own role, the service as a process of its own
(`tests.planted_wallet`). Each saga runs once without a kill, which counts its writes; then once a write, killed right
after it, started again, and asked for again. At the end only the ledger, core banking and the wallet are asked. The
short version kills after some of the writes, the slow one after each.

JIAOZI_KILLS=4 JIAOZI_SEED=7 pytest tests/recovery/test_wallet_sagas_kill.py
pytest -m slow tests/recovery/test_wallet_sagas_kill.py -s
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferKind
from tests.planted_wallet import PlantedWallet
from tests.roles import as_service
from tests.wallet_processes import Opened, running_world
from wallet.client import WalletClient
from wallet.contract import PaymentState
from wallet.domain.interest import settlement_days
from wallet.domain.rules import WalletClass
from wallet.rulepack_files import load_rule_pack

PACK = "ecny-2026-01"
ISSUED = 10_000_000_00
DEPOSIT, FUNDS, AMOUNT = 5_000_00, 2_000_00, 700_00
KILLS = int(os.environ.get("JIAOZI_KILLS", "1"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
ZONE = ZoneInfo("Asia/Shanghai")
NOT_KNOWN = {"outcome-unknown", "service-unavailable", "internal-error", "money-on-its-way", "change-in-progress"}
SECONDS_MAX = 30.0
Answer = TypeVar("Answer")


@dataclass
class Subject:
    """One saga's own customer and wallet. `do` may be repeated, and says whether the saga has ended."""

    world: PlantedWallet
    wallet: Opened
    deposit_minor: int
    others: list[Opened] = field(default_factory=list)
    do: Callable[[WalletClient], bool] = lambda client: True
    check: Callable[[WalletClient], None] = lambda client: None

    @property
    def customer(self) -> UUID:
        return self.wallet.view.customer

    def deposit(self, client: WalletClient) -> int:
        return client.simulated_deposit(self.customer).balance_minor


@pytest.fixture
def world(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[PlantedWallet]:
    settings = {"DATABASE_URL": as_service(fresh_database("wallet"), "wallet"), "RECOVERY_SECONDS": "0.3"}
    with running_world(PlantedWallet, fresh_database, tmp_path, settings=settings, pack=PACK) as running:
        running.issue(ISSUED)
        yield running


# --- the sagas -------------------------------------------------------------------------------------------------------


def exchange_in(world: PlantedWallet) -> Subject:
    """Deposit for currency."""
    exchange = ids.new_uuid7()
    subject = Subject(world, opened(world, deposit=DEPOSIT), DEPOSIT)

    def do(client: WalletClient) -> bool:
        view = client.exchange_in(
            wallet=subject.wallet.view.wallet, amount_minor=AMOUNT, currency="CNY", exchange=exchange
        )
        assert view.state.value in ("initiated", "debited", "final")
        return view.state.value == "final"

    def check(client: WalletClient) -> None:
        assert (subject.deposit(client), world.balance(subject.wallet)) == (DEPOSIT - AMOUNT, AMOUNT)
        assert kinds(client, subject.wallet) == [TransferKind.EXCHANGE_IN]

    subject.do, subject.check = do, check
    return subject


def exchange_out(world: PlantedWallet) -> Subject:
    """Currency for deposit."""
    subject = Subject(world, opened(world, deposit=DEPOSIT, funds=FUNDS), DEPOSIT)
    with world.client() as client:
        home = client.institution().ledgers[0]
        token = signed(client, subject.wallet, TransferKind.EXCHANGE_OUT, credit=home.vault, amount_minor=AMOUNT)

    def do(client: WalletClient) -> bool:
        return client.exchange_out(token).deposit_credited_at is not None

    def check(client: WalletClient) -> None:
        assert (subject.deposit(client), world.balance(subject.wallet)) == (
            DEPOSIT - FUNDS + AMOUNT,
            FUNDS - AMOUNT,
        )
        assert kinds(client, subject.wallet) == [TransferKind.EXCHANGE_IN, TransferKind.EXCHANGE_OUT]

    subject.do, subject.check = do, check
    return subject


def refund(world: PlantedWallet) -> Subject:
    """A merchant gives a part back; not a fen more can be given back than was left."""
    payer = opened(world, deposit=DEPOSIT, funds=FUNDS)
    merchant = opened(world)
    subject = Subject(world, payer, DEPOSIT, [merchant])
    with world.client() as client:
        paid = client.submit_payment(
            signed(client, payer, TransferKind.PAYMENT, credit=merchant.account, amount_minor=AMOUNT)
        )
        token = signed(
            client, merchant, TransferKind.REFUND, credit=payer.account, amount_minor=200_00, reference=paid.payment
        )

    def do(client: WalletClient) -> bool:
        return client.submit_refund(token).state is PaymentState.FINAL

    def check(client: WalletClient) -> None:
        view = client.refunds(paid.payment)
        assert (view.refunded_minor, view.refundable_minor) == (200_00, AMOUNT - 200_00)
        assert (world.balance(payer), world.balance(merchant)) == (FUNDS - AMOUNT + 200_00, AMOUNT - 200_00)
        too_much = signed(
            client,
            merchant,
            TransferKind.REFUND,
            credit=payer.account,
            amount_minor=AMOUNT - 200_00 + 1,
            reference=paid.payment,
        )
        with pytest.raises(ProblemResponse, match="refund"):
            client.submit_refund(too_much)

    subject.do, subject.check = do, check
    return subject


def code_redemption(world: PlantedWallet) -> Subject:
    """A merchant's request is paid by the code that the payer shows."""
    payer = opened(world, deposit=DEPOSIT, funds=FUNDS)
    merchant = opened(world)
    subject = Subject(world, payer, DEPOSIT, [merchant])
    with world.client() as client:
        request = client.request_payment(
            wallet=merchant.view.wallet, amount_minor=AMOUNT, currency="CNY", payee_name="Shop"
        ).request
        code = client.payer_code(
            client.institution(),
            key=payer.key,
            account=payer.account,
            cap_minor=AMOUNT,
            valid_until=system_clock() + timedelta(minutes=4),
        )

    def do(client: WalletClient) -> bool:
        return client.redeem_payer_code(request, code).state.value == "paid"

    def check(client: WalletClient) -> None:
        view = client.get_payment_request(request)
        assert (view.state.value, view.paid_minor, view.surplus_minor) == ("paid", AMOUNT, 0)
        assert (world.balance(payer), world.balance(merchant)) == (FUNDS - AMOUNT, AMOUNT)
        assert len(kinds(client, merchant)) == 1

    subject.do, subject.check = do, check
    return subject


def closure(world: PlantedWallet) -> Subject:
    """A wallet is closed and what is in it paid out to the deposit."""
    subject = Subject(world, opened(world, deposit=DEPOSIT, funds=FUNDS), DEPOSIT)
    wallet, change = subject.wallet, ids.new_uuid7()
    with world.client() as client:
        vault = client.institution().ledgers[0].vault
        token = signed(client, wallet, TransferKind.EXCHANGE_OUT, credit=vault, amount_minor=FUNDS)

    def do(client: WalletClient) -> bool:
        view = client.close_wallet(wallet=wallet.view.wallet, change=change, instruction=token)
        return view.state.value == "done" and subject.deposit(client) == DEPOSIT

    def check(client: WalletClient) -> None:
        assert (subject.deposit(client), world.balance(wallet)) == (DEPOSIT, 0)
        assert client.get_wallet(wallet.view.wallet).state.value == "closed"
        with world.ledger() as ledger:
            assert ledger.get_account(wallet.account).status.value == "closed"
        assert kinds(client, wallet) == [TransferKind.EXCHANGE_IN, TransferKind.EXCHANGE_OUT]

    subject.do, subject.check = do, check
    return subject


def credited(world: PlantedWallet, *, kill_after: int, quarter: int = 0) -> list[str]:
    """A quarter's interest on a new wallet, by a service whose clock is past the day of crediting. What it wrote, up to
    the kill; 0 = no kill.

    It works from its start on: the recovery pass settles and credits by itself.
    """
    wallet = opened(world, deposit=FUNDS, funds=FUNDS)
    late = past_crediting(quarter)
    ahead = late - system_clock()
    world.kill_service()
    world.plant(kill_after)
    world.start(ahead=ahead)
    written: list[str] = []
    if kill_after:
        world.wait_until_dead(SECONDS_MAX)
        written = world.writes()
        world.start(ahead=ahead)
    else:
        world.wait_until_healthy()
    signer = RequestSigner(PrivateKey.load(world.directory / "operator.pem"), clock=lambda: system_clock() + ahead)
    with WalletClient(world.wallet_url, signer=signer) as desk:
        insist(desk.run_interest, until=lambda ran: ran.is_finished)
        rows = [row for row in desk.interest_settlements(wallet.view.wallet) if row.credited_minor]
        lines = [line for line in desk.history(wallet.view.wallet) if line.kind is TransferKind.INTEREST]
        assert {row.state.value for row in rows} == {"credited"}
        assert sorted((line.transfer, line.amount_minor) for line in lines) == sorted(
            (row.transfer, row.credited_minor) for row in rows
        )
        assert world.balance(wallet) == FUNDS + sum(row.credited_minor for row in rows)
        for total in desk.interest_totals():
            assert Fraction(total.exact_minor) == total.credited_minor + Fraction(total.remainder_minor)
    world.kill_service()
    written = written or world.writes()
    world.start()
    return written


def past_crediting(quarter: int) -> datetime:
    """An hour into the day after a quarter's crediting, in the scheme's time zone; 0 = the quarter that ends next. Each
    quarter is settled once, so each kill has its own."""
    today = system_clock().astimezone(ZONE).date()
    days = settlement_days([load_rule_pack(PACK)], after=today)
    day = [credited_on for _, credited_on in days][quarter]
    return datetime.combine(day + timedelta(days=1), datetime.min.time(), tzinfo=ZONE) + timedelta(hours=1)


SAGAS = {work.__name__: work for work in (exchange_in, exchange_out, refund, code_redemption, closure)}


# --- killing ---------------------------------------------------------------------------------------------------------


def count_writes(world: PlantedWallet, saga: Callable[[PlantedWallet], Subject]) -> list[str]:
    """Without a kill: what the saga writes, by where."""
    subject = saga(world)
    world.plant(0)
    with world.client() as client:
        insist(lambda: subject.do(client), until=lambda ended: ended)
    writes = world.writes()
    finish(world, subject)
    return writes


def kill_after(world: PlantedWallet, saga: Callable[[PlantedWallet], Subject], write: int) -> None:
    subject = saga(world)
    world.plant(write)
    with world.client() as client, suppress(ServiceUnreachable):
        client._http._retries_max = 0  # nobody will answer
        insist(lambda: subject.do(client), until=lambda ended: ended, unless=ServiceUnreachable)
    world.wait_until_dead()
    world.writes()
    world.start()
    finish(world, subject)


def finish(world: PlantedWallet, subject: Subject) -> None:
    """Ask again until it has ended; then look at both sides, and ask once more: nothing changes."""
    with world.client() as client:
        insist(lambda: subject.do(client), until=lambda ended: ended)
        subject.check(client)
        with suppress(ProblemResponse):  # a closed wallet says so
            assert subject.do(client)
        subject.check(client)


def agree(world: PlantedWallet) -> None:
    """The ledger's identity holds, no fen came or went, and no book knows of an exchange that another does not."""
    today = system_clock().astimezone(ZONE).date()
    with world.client("operator") as desk, world.ledger() as ledger:
        checked = desk.check_exchanges(today)
        assert checked.breaks == []
        assert checked.exchanges > 0
        vault = ledger.get_account(desk.institution().ledgers[0].vault).balance_minor
        supply = ledger.supply()
    assert supply.identity_holds
    assert supply.circulation_minor == ISSUED
    assert vault + sum(map(world.balance, world.opened)) == ISSUED


@pytest.mark.extended
def test_killed_within_every_saga_each_is_settled_once(world: PlantedWallet) -> None:
    """JIAOZI_KILLS kills of each saga, after the seed's writes; the enumeration is the slow test."""
    random = Random(SEED)
    for saga in SAGAS.values():
        writes = range(1, len(count_writes(world, saga)) + 1)
        for write in random.sample(writes, min(KILLS, len(writes))):
            kill_after(world, saga, write)
    agree(world)
    assert len(credited(world, kill_after=2)) == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SAGAS)
def test_killed_between_any_two_writes(world: PlantedWallet, name: str) -> None:
    saga = SAGAS[name]
    writes = count_writes(world, saga)
    assert len(writes) >= 3
    sys.stdout.write(f"\n{name}: {len(writes)} writes\n" + "".join(f"  {line}\n" for line in writes))
    for write in range(1, len(writes) + 1):
        kill_after(world, saga, write)
        agree(world)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_interest_killed_between_any_two_writes_is_credited_once(world: PlantedWallet) -> None:
    writes = credited(world, kill_after=0)
    sys.stdout.write(f"\ninterest: {len(writes)} writes\n" + "".join(f"  {line}\n" for line in writes))
    until = next(number for number, line in enumerate(writes, 1) if "interest:" in line and "POST" in line) + 1
    for write in range(1, until + 1):
        assert len(credited(world, kill_after=write, quarter=write)) == write


# --- helpers ---------------------------------------------------------------------------------------------------------


def opened(world: PlantedWallet, *, deposit: int = 0, funds: int = 0) -> Opened:
    """A customer with a deposit, part of which may be in the wallet already."""
    wallet = world.open(WalletClass.I)
    with world.client() as client:
        if deposit:
            client.simulate_deposit(customer=wallet.view.customer, amount_minor=deposit)
        if funds:
            view = client.exchange_in(wallet=wallet.view.wallet, amount_minor=funds, currency="CNY")
            assert view.state.value == "final"
    return wallet


def signed(
    client: WalletClient,
    wallet: Opened,
    kind: TransferKind,
    *,
    credit: int,
    amount_minor: int,
    reference: UUID | None = None,
) -> str:
    home = client.institution().ledgers[0]
    return client.instruct(
        kind,
        key=wallet.key,
        ledger=home.ledger,
        debit=wallet.account,
        credit=credit,
        amount_minor=amount_minor,
        currency="CNY",
        reference=reference,
        valid_until=system_clock() + timedelta(minutes=30),
    )


def kinds(client: WalletClient, wallet: Opened) -> list[TransferKind]:
    return [line.kind for line in client.history(wallet.view.wallet)]


def insist(
    work: Callable[[], Answer], *, until: Callable[[Answer], bool], unless: type[Exception] | None = None
) -> Answer:
    """Repeat until it is answered as wished. Raises: ProblemResponse for an answer that is final; `unless`."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        last: object
        try:
            said = work()
            if until(said):
                return said
            last = said
        except ServiceUnreachable as error:
            if unless is ServiceUnreachable:
                raise
            last = error
        except ProblemResponse as error:
            if error.refusal not in NOT_KNOWN:
                raise
            last = error
        assert time.monotonic() < deadline, f"not within {SECONDS_MAX} s: {last}"
        time.sleep(0.05)

"""Goal: a service that serves two institutions is killed while the customers of both pay: nothing is lost, nothing is
booked twice, and nothing of one is shown to the other.

Method: a real ledger and one wallet process over one database, as `docs/tenants.md` has it; SIGKILL at random moments
while threads of both institutions submit payments (to their own and to each other's) and exchanges, and repeat what
was not answered; then the ledger's books, both institutions' own records and the database's rows are compared.
JIAOZI_KILLS kills, at the seed's moments.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from uuid import UUID

import psycopg
import pytest

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.crypto.keys import PrivateKey
from ledger.contract import ParticipantRole, RegisterParticipantAction, TransferKind
from tests.roles import as_service, dsn
from tests.tenants_world import A, B, unset_default
from tests.wallet_processes import Opened, WalletWorld, running_world
from wallet.client import WalletClient
from wallet.domain.rules import WalletClass
from wallet.settings import InstitutionSettings

KILLS = int(os.environ.get("JIAOZI_KILLS", "1"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
DATABASE = "JIAOZI_WALLET_DATABASE_URL"
PAYERS, FUNDS, AMOUNT, EXCHANGED = 2, 1_000_00, 1_00, 50_00
SECONDS_MAX = 30.0
NOT_KNOWN = {"outcome-unknown", "service-unavailable"}


@dataclass
class TwoInstitutions(WalletWorld):
    """`WalletWorld` whose service has a second institution; `of` is one of them, as a world of its own."""

    owner_url: str = ""
    second_key: PrivateKey = field(default_factory=PrivateKey.generate)

    def start(self) -> None:
        if not self.owner_url:
            self._prepare()
        super().start()

    def of(self, tenant: str) -> WalletWorld:
        key = self.bank_key if tenant == A else self.second_key
        return WalletWorld(
            self.directory / tenant,
            self.ledger_url,
            f"{self.wallet_url}/t/{tenant}",
            self.operators,
            key,
            self.directory / tenant / "channel.pem",
            self.environment,
        )

    def _prepare(self) -> None:
        with self.ledger() as ledger:
            action = RegisterParticipantAction(
                participant=ids.parse_participant(B),
                name=B,
                role=ParticipantRole.INTERMEDIARY,
                key=self.second_key.public.to_jwk(),
                quota_minor=10**15,
            )
            self.mandate(ledger, action)
        (self.directory / "ledgers.json").write_text(
            json.dumps([{"ledger": "cny", "url": self.ledger_url, "currency": "CNY"}])
        )
        listed = []
        for tenant, key in ((A, self.bank_key), (B, self.second_key)):
            home = self.directory / tenant
            home.mkdir()
            key.save(home / "bank.pem")
            channel = PrivateKey.generate()
            channel.save(home / "channel.pem")
            clients = [{"name": "channel", "key": channel.public.to_jwk(), "role": "channel"}]
            (home / "clients.json").write_text(json.dumps(clients))
            paths = {"signing_key_path": f"{tenant}/bank.pem", "clients_path": f"{tenant}/clients.json"}
            pack = self.environment["JIAOZI_WALLET_RULE_PACK"]
            listed.append({"participant": tenant, "ledgers_path": "ledgers.json", "rule_pack": pack, **paths})
        (self.directory / "tenants.json").write_text(json.dumps(listed))
        self.owner_url = self.environment[DATABASE]
        unset_default(self.owner_url)
        own = {f"JIAOZI_WALLET_{name.upper()}" for name in InstitutionSettings.model_fields}
        self.environment = {name: value for name, value in self.environment.items() if name not in own}
        self.environment |= {
            DATABASE: as_service(self.owner_url, "wallet"),
            "JIAOZI_WALLET_TENANTS_PATH": str(self.directory / "tenants.json"),
            "JIAOZI_WALLET_DATA_DIR": str(self.directory / "data"),
        }


@dataclass
class Institution:
    name: str
    world: WalletWorld
    payers: list[Opened]
    payees: list[Opened]
    vault: int
    submitted: dict[UUID, tuple[Opened, int, str]] = field(default_factory=dict)
    """Payment -> payer, payee's account, instruction."""
    answered: set[UUID] = field(default_factory=set)
    exchanges: dict[UUID, Opened] = field(default_factory=dict)


@pytest.fixture
def services(fresh_database: Callable[[str], str], tmp_path: Path) -> Iterator[TwoInstitutions]:
    with running_world(TwoInstitutions, fresh_database, tmp_path) as running:
        yield running


def institution(services: TwoInstitutions, name: str) -> Institution:
    world = services.of(name)
    world.issue(10**9)
    payers = [world.open(WalletClass.I, deposit_minor=FUNDS) for _ in range(PAYERS)]
    payees = [world.open(WalletClass.I) for _ in range(2)]
    with world.client() as client:
        for payer in payers:
            client.simulate_deposit(customer=payer.view.customer, amount_minor=FUNDS)
        return Institution(name, world, payers, payees, client.institution().ledgers[0].vault)


@pytest.mark.campaign
@pytest.mark.extended
def test_two_institutions_pay_while_their_service_is_killed(services: TwoInstitutions) -> None:
    both = [institution(services, name) for name in (A, B)]
    accounts = [payee.account for one in both for payee in one.payees]
    stop = threading.Event()
    errors: list[str] = []
    threads = [
        threading.Thread(target=_pay, args=(one, payer, accounts, stop, errors)) for one in both for payer in one.payers
    ]
    for thread in threads:
        thread.start()
    random = Random(SEED)
    for _ in range(max(KILLS, 1)):
        seen = {one.name: len(one.answered) for one in both}
        _wait(lambda seen=seen: all(len(one.answered) > seen[one.name] + 3 for one in both))  # type: ignore[misc]
        time.sleep(random.uniform(0, 0.1))
        services.kill()
        services.start()
    seen = {one.name: len(one.answered) for one in both}
    _wait(lambda: all(len(one.answered) > seen[one.name] + 3 for one in both))
    stop.set()
    for thread in threads:
        thread.join(SECONDS_MAX)
        assert not thread.is_alive()
    assert errors == []
    _booked_once(both)
    _shown_to_nobody_else(both)
    _rows_apart(services, both)


def _pay(one: Institution, payer: Opened, accounts: list[int], stop: threading.Event, errors: list[str]) -> None:
    """A payment (every eighth time an exchange), repeated until it is final."""
    random = Random(payer.account)
    try:
        with one.world.client() as client:
            client._http._retries_max = 0
            for number in range(10_000):
                if stop.is_set():
                    return
                id = ids.new_uuid7()
                if number % 8 == 7 and len(one.exchanges) < 10:
                    one.exchanges[id] = payer
                    _insist(lambda id=id: _exchange(client, payer, id))  # type: ignore[misc]
                    continue
                payee = random.choice(accounts)
                token = client.instruct(
                    TransferKind.PAYMENT,
                    key=payer.key,
                    ledger="cny",
                    debit=payer.account,
                    credit=payee,
                    amount_minor=AMOUNT,
                    currency="CNY",
                    transfer=id,
                )
                one.submitted[id] = (payer, payee, token)
                _insist(lambda token=token: client.submit_payment(token).state.value == "final")  # type: ignore[misc]
                one.answered.add(id)
    except Exception as error:
        errors.append(f"{one.name}: {error!r}")


def _exchange(client: WalletClient, payer: Opened, exchange: UUID) -> bool:
    view = client.exchange_in(wallet=payer.view.wallet, amount_minor=EXCHANGED, currency="CNY", exchange=exchange)
    return view.state.value == "final"


def _insist(work: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        try:
            if work():
                return
        except ServiceUnreachable:
            pass
        except ProblemResponse as error:
            if error.refusal not in NOT_KNOWN:
                raise
        time.sleep(0.05)
    raise TimeoutError("not settled")


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS_MAX
    while not until():
        assert time.monotonic() < deadline, "they do not pay"
        time.sleep(0.02)


def _told(client: WalletClient) -> str:
    """All of the feed of events."""
    page = client.events(limit=1000)
    text = page.model_dump_json()
    while page.has_more:
        page = client.events(limit=1000, after=page.next)
        text += page.model_dump_json()
    return text


def _booked_once(both: list[Institution]) -> None:
    paid = Counter[int]()
    for one in both:
        assert set(one.submitted) == one.answered
        for payer, credited, _ in one.submitted.values():
            paid[payer.account] -= AMOUNT
            paid[credited] += AMOUNT
        for payer in one.exchanges.values():
            paid[payer.account] += EXCHANGED
    for one in both:
        for payer in one.payers:
            assert one.world.balance(payer) == FUNDS + paid[payer.account]
        for payee in one.payees:
            assert one.world.balance(payee) == paid[payee.account]
        with one.world.client() as client, one.world.ledger() as ledger:
            for payer in one.payers:
                exchanged = EXCHANGED * sum(owner is payer for owner in one.exchanges.values())
                assert client.simulated_deposit(payer.view.customer).balance_minor == FUNDS - exchanged
            assert ledger.get_account(one.vault).balance_minor == 10**9 - sum(
                FUNDS for _ in one.payers
            ) - EXCHANGED * len(one.exchanges)
            assert ledger.supply().identity_holds


def _shown_to_nobody_else(both: list[Institution]) -> None:
    """Each sees what it has carried, all of it, and of the other's not even that it exists."""
    for one, other in (both, both[::-1]):
        with one.world.client() as client:
            listed = {item.payment for payer in one.payers for item in client.payments(payer.view.wallet)}
            assert listed == set(one.submitted)
            wallets = {item.wallet for item in client.wallets()}
            assert wallets == {opened.view.wallet for opened in (*one.payers, *one.payees)}
            told = _told(client)
            for opened in (*other.payers, *other.payees):
                assert str(opened.view.wallet) not in told
            client._http._retries_max = 0
            payment, (payer, _, token) = next(iter(other.submitted.items()))
            exchange = next(iter(other.exchanges), None)
            asked: list[tuple[str, Callable[[], object]]] = [
                ("payment-not-found", lambda payment=payment: client.get_payment(payment)),  # type: ignore[misc]
                ("wallet-not-found", lambda payer=payer: client.get_wallet(payer.view.wallet)),  # type: ignore[misc]
                ("not-our-wallet", lambda token=token: client.submit_payment(token)),  # type: ignore[misc]
            ]
            for refusal, ask in asked:
                with pytest.raises(ProblemResponse) as caught:
                    ask()
                assert caught.value.refusal == refusal
            if exchange is not None:
                with pytest.raises(ProblemResponse):
                    client.exchange_in(
                        wallet=payer.view.wallet, amount_minor=EXCHANGED, currency="CNY", exchange=exchange
                    )


def _rows_apart(services: TwoInstitutions, both: list[Institution]) -> None:
    with psycopg.connect(dsn(services.owner_url)) as owner:
        rows = owner.execute("SELECT tenant, id, state FROM payment").fetchall()
        exchanges = owner.execute("SELECT tenant, id, state FROM exchange_in").fetchall()
    for one in both:
        assert {id: state for tenant, id, state in rows if tenant == one.name} == dict.fromkeys(one.submitted, "final")
        mine = {id: state for tenant, id, state in exchanges if tenant == one.name}
        assert set(one.exchanges) <= set(mine)
        assert set(mine.values()) == {"final"}
        assert len(mine) == len(one.exchanges) + len(one.payers)

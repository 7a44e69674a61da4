"""Goal: SIGKILL of the wallet service at any moment loses no trigger and pays nothing twice: each confirmed delivery is
released once, every purchase with a voucher paid once, every stopped program returned, in the ledger's own books.

Method: a real ledger, the wallet service as a real process that a seeded killer ends with SIGKILL and starts again,
clients that repeat their signed statements and purchases until they are answered.

JIAOZI_KILLS=50 JIAOZI_SEED=7 pytest tests/recovery/test_wallet_programs_kill.py   # a campaign
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import cast

import pytest
from fastapi import FastAPI

from kernel import ids
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.keys import PrivateKey
from tests.api.test_wallet_programs_api import World, drip
from tests.api.test_wallet_with_ledger import Scheme
from tests.api.test_wallet_with_ledger import scheme as scheme
from tests.ledger_world import free_port
from wallet.client import WalletClient
from wallet.client.programs import program_request, statement_token
from wallet.contract.programs import FundRequest, VoucherRequest, VoucherSpend, sign_spend
from wallet.domain.rules import WalletClass

KILLS = int(os.environ.get("JIAOZI_KILLS", "2"))
SEED = int(os.environ.get("JIAOZI_SEED", "20261123"))
PROGRAMS, INSTALMENTS, PURCHASES = 3, 5, 6


class Process:
    """The wallet service beside the one that set the scene up: the same database, keys and ledger."""

    def __init__(self, scheme: Scheme, directory: Path) -> None:
        context = cast("FastAPI", scheme.wallet_http.app).state.context
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = directory / "wallet.log"
        self._environment = os.environ | {
            "JIAOZI_WALLET_DATABASE_URL": context.database.engine.url.render_as_string(hide_password=False),
            "JIAOZI_WALLET_DATA_DIR": str(directory / "data"),
            "JIAOZI_WALLET_PARTICIPANT": "BKCHCNBJ",
            "JIAOZI_WALLET_SIGNING_KEY_PATH": str(directory / "bank.pem"),
            "JIAOZI_WALLET_CLIENTS_PATH": str(directory / "clients.json"),
            "JIAOZI_WALLET_LEDGERS_PATH": str(directory / "ledgers.json"),
            "JIAOZI_WALLET_PORT": str(self.port),
            "JIAOZI_WALLET_PUBLIC_URL": self.url,
            "JIAOZI_WALLET_RECOVERY_SECONDS": "0.5",
            "JIAOZI_WALLET_DATABASE_POOL_SIZE": "6",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "wallet", "serve"], env=self._environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 60
        with WalletClient(self.url) as client:
            while time.monotonic() < deadline:
                try:
                    client.program_templates()
                    return
                except ServiceUnreachable:
                    time.sleep(0.1)
        raise AssertionError(f"the service did not start:\n{self._log.read_text()[-2000:]}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def process(scheme: Scheme, tmp_path: Path) -> Iterator[Process]:
    running = Process(scheme, tmp_path)
    yield running
    running.kill()


def insist(work: Callable[[], object], *, seconds: float = 120) -> None:
    """Repeat one signed thing until it is answered. Raises: ProblemResponse for an answer that is final."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            work()
            return
        except ServiceUnreachable:
            pass
        except ProblemResponse as error:
            if error.refusal not in ("outcome-unknown", "service-unavailable", "internal-error"):
                raise
        assert time.monotonic() < deadline, "nobody answered"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_killed_at_any_moment_nothing_is_lost_or_doubled(scheme: Scheme, process: Process) -> None:
    world, random = World(scheme), Random(SEED)
    courier = PrivateKey.generate()
    payer, payee = world.person(WalletClass.I, funds=100_000), world.person(WalletClass.I)
    issuer, worker, shop = world.person(WalletClass.I, funds=50_000), world.person(), world.person()
    scheme.wallet("operator").register_merchant(shop.account, name="Shop", category="5411", place="330106")
    views = [world.client.create_program(drip(payer, payee, courier, [100] * INSTALMENTS)) for _ in range(PROGRAMS)]
    for view in views:
        world.client.say(view.terms, role="payee", event="accept", key=payee.key)
    voucher = VoucherRequest(
        voucher=ids.new_uuid7(), recipient=worker.key.public.to_jwk(), account=worker.account, value_minor=6_000
    )
    deadline = (system_clock() + timedelta(days=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    campaign = world.client.create_program(
        program_request(
            template="voucher-multi",
            version=1,
            parameters={"deadline": deadline, "categories": ["5411"], "places": ["33"], "step": "100"},
            parties=[issuer.party("payer")],
            vouchers=[voucher],
        )
    )
    world.client.fund_program(campaign.terms, key=issuer.key)

    process.start()
    client = WalletClient(process.url, timeout_seconds=5)

    def deliver(number: int) -> None:
        """Fund one program, confirm all its deliveries but one, then stop it."""
        view = views[number]
        agreement = statement_token(view.terms, role="payer", event="agree", key=payer.key)
        holds = client.sign_program_holds(view.terms, key=payer.key, valid_until=system_clock() + timedelta(hours=1))
        body = {"program": view.program, "agreement": agreement, "instructions": holds}
        insist(lambda: client.submit_funding(FundRequest.model_validate(body)))
        said = [("courier", "delivered", n, courier) for n in range(1, INSTALMENTS)]
        for role, event, ordinal, key in (*said, ("payer", "stop", 1, payer.key)):
            token = statement_token(view.terms, role=role, event=event, key=key, ordinal=ordinal)
            insist(lambda token=token: client.submit_statement(token))

    def buy(number: int) -> None:
        order = VoucherSpend(
            spend=ids.new_uuid7(),
            voucher=voucher.voucher,
            merchant=shop.account,
            amount_minor=100 + number,
            currency="CNY",
            valid_until=system_clock() + timedelta(hours=1),
        )
        token = sign_spend(order, worker.key)
        insist(lambda: client.submit_spend(token))

    is_done = threading.Event()

    def killer() -> None:
        for _ in range(KILLS):
            if is_done.wait(random.uniform(0.1, 1.5)):
                return
            process.kill()
            process.start()

    killing = threading.Thread(target=killer)
    killing.start()
    try:
        with ThreadPoolExecutor(6) as pool:
            work = [pool.submit(deliver, number) for number in range(PROGRAMS)]
            work += [pool.submit(buy, number) for number in range(PURCHASES)]
            for item in work:
                item.result()
    finally:
        is_done.set()
        killing.join()

    # What was decided and not carried out when the process died, the pass carries out.
    until = time.monotonic() + 60
    while time.monotonic() < until:
        states = [world.client.get_program(view.program).state.value for view in views]
        if states == ["finished"] * PROGRAMS:
            break
        time.sleep(0.5)
    released = PROGRAMS * (INSTALMENTS - 1) * 100
    for view in views:
        found = world.client.get_program(view.program)
        assert (found.state.value, found.released_minor, found.returned_minor) == (
            "finished",
            (INSTALMENTS - 1) * 100,
            100,
        )
    assert world.balance(payee) == (released, released)
    assert world.balance(payer) == (100_000 - released, 100_000 - released)
    spent = sum(100 + number for number in range(PURCHASES))
    assert world.balance(shop) == (spent, spent)
    shown = world.client.get_program(campaign.program)
    assert shown.held_minor + shown.released_minor + shown.returned_minor == 6_000
    assert shown.released_minor == spent
    assert world.bank.supply().identity_holds

"""Islands for the conformance suite: the real ledger behind the native adapter, and EVM chains in process and on anvil.

`subjects()` names them; `opened(name, ...)` opens one. Anvil is another project's node (npm, `npm ci --prefix
tests/thirdparty`): where it is missing its tests are skipped, and with JIAOZI_NO_SKIP=1 they fail.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from kernel import ids, migrate
from kernel.client import ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from kernel.postgres import EmbeddedPostgres
from ledger.client import LedgerClient
from ledger.contract import (
    EndTerms,
    TransferAnswer,
    TransferItem,
    TransferKind,
    TransferOutcome,
    TransferTerms,
    sign_instruction,
)
from settlement.conformance.evm import EvmSubject
from settlement.conformance.subject import Line, NotOffered, Subject
from settlement.domain.escrow import HoldOrder
from settlement.islands.authorisers import AuthorisationOutcome, check_authorisation
from settlement.islands.evm.sender import GasPolicy
from settlement.islands.native import NativeIsland, hold_terms
from settlement.islands.port import Island
from tests.evm.chain import Chain
from tests.ledger_world import LedgerWorld, free_port, running_ledger

Answers = TypeVar("Answers")
THIRDPARTY = Path(__file__).resolve().parent / "thirdparty"
PAYER, PAYEE, BRIDGE = (ParticipantId(code) for code in ("BKCHCNBJ", "ICBKCNBJ", "BRDGAEAD"))
FUNDS_MINOR = 1_000_000
ANVIL_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
"""Of the first account of anvil's published test mnemonic."""


class FaultyLedger(LedgerClient):
    """The client with faults on order where it submits."""

    lose_answers = lose_requests = duplicate = delay = False
    kept: list[Callable[[], object]]

    def submit_signed(self, tokens: Sequence[str], *, expires_at: datetime | None = None) -> list[TransferAnswer]:
        send = super().submit_signed
        return self._disturbed(lambda: send(tokens, expires_at=expires_at))

    def submit_ends(self, ends: Sequence[EndTerms]) -> list[TransferAnswer]:
        send = super().submit_ends
        return self._disturbed(lambda: send(ends))

    def _disturbed(self, send: Callable[[], Answers]) -> Answers:
        if self.delay:
            self.kept.append(send)
            raise ServiceUnreachable("kept back")
        if self.lose_requests:
            raise ServiceUnreachable("lost on its way")
        if self.duplicate:
            send()
        results = send()
        if self.lose_answers:
            raise ServiceUnreachable("its answer was lost")
        return results

    def deliver_reversed(self) -> None:
        kept, self.kept = self.kept, []
        for send in reversed(kept):
            send()


class NativeSubject(Subject):
    currency = Currency.of("CNY")
    payer, payee = PAYER, PAYEE
    expiry_seconds = 1

    def __init__(self, world: LedgerWorld) -> None:
        self.world = world
        self.ledger = world.ledger
        self.debit, self.credit = (AccountNumber(world.open_vault(code)) for code in (PAYER, PAYEE))
        world.issue(self.debit, FUNDS_MINOR)
        self.client = FaultyLedger(world.url, signer=RequestSigner(world.participants[BRIDGE]))
        self.client.kept = []
        self._owners = {self.debit: world.client(PAYER), self.credit: world.client(PAYEE)}
        self._island = NativeIsland(self.ledger, self.client)

    def close(self) -> None:
        for client in (self.client, *self._owners.values()):
            client.close()

    @property
    def island(self) -> Island:
        return self._island

    def authorise(self, order: HoldOrder) -> str:
        return self.signed_by(self.world.participants[PAYER], order)

    def signed_by(self, key: PrivateKey, order: HoldOrder, *, ledger: str = "") -> str:
        valid_until = system_clock() + timedelta(hours=1)
        return sign_instruction(hold_terms(order), ledger=ledger or self.ledger, valid_until=valid_until, key=key)

    def available(self, account: AccountNumber) -> int:
        return self._owners[account].get_account(account).available_minor

    def lines(self, account: AccountNumber) -> Sequence[Line]:
        found: list[Line] = []
        client = self._owners[account]  # the bridge has no account: statements are their owners'
        for line in NativeIsland(self.ledger, client).statement(account):
            if line.kind is TransferKind.POST:
                sign = -1 if line.direction == "debit" else 1
                found.append(Line(client.get_transfer(line.transfer).hold, sign * line.amount_minor))
        return found

    def check(self, order: HoldOrder, authorisation: str) -> AuthorisationOutcome:
        return check_authorisation(order, authorisation)

    def reopened(self) -> Island:
        return NativeIsland(self.ledger, self.client)

    def unreachable(self) -> Island:
        return NativeIsland(self.ledger, LedgerClient("http://127.0.0.1:9", timeout_seconds=0.2))

    @contextmanager
    def losing_answers(self) -> Iterator[None]:
        self.client.lose_answers = True
        yield
        self.client.lose_answers = False

    @contextmanager
    def losing_requests(self) -> Iterator[None]:
        self.client.lose_requests = True
        yield
        self.client.lose_requests = False

    @contextmanager
    def duplicating(self) -> Iterator[None]:
        self.client.duplicate = True
        yield
        self.client.duplicate = False

    @contextmanager
    def delaying(self) -> Iterator[None]:
        self.client.delay = True
        yield
        self.client.delay = False
        self.client.deliver_reversed()

    def pass_time(self, seconds: int) -> None:
        if seconds > 5:
            raise NotOffered("the running ledger's clock is the machine's")
        time.sleep(seconds)

    def place_as_payer(self, order: HoldOrder, *, expires_in_seconds: int | None = None) -> None:
        terms = hold_terms(order)
        if expires_in_seconds is not None:
            expires_at = system_clock() + timedelta(seconds=expires_in_seconds)
            terms = terms.model_copy(update={"expires_at": expires_at})
        outcome = self._owners[self.debit].submit([TransferItem(terms=terms)])[0]
        if outcome.outcome is not TransferOutcome.BOOKED:
            raise RuntimeError(f"the payer's hold was not booked: {outcome}")

    def post_as_payee(self, order: HoldOrder, secret: bytes) -> None:
        terms = TransferTerms(
            id=ids.new_uuid7(),
            kind=TransferKind.POST,
            hold=order.hold_id,
            currency=self.currency.code,
            secret=secret,
        )
        outcome = self._owners[self.credit].transfer(terms)
        if outcome.outcome is not TransferOutcome.BOOKED:
            raise RuntimeError(f"the payee's post was not booked: {outcome}")


@contextmanager
def native(postgres: EmbeddedPostgres, directory: Path) -> Iterator[NativeSubject]:
    name = f"islands_{secrets.token_hex(4)}"
    postgres.ensure_database(name)
    migrate.upgrade("ledger", postgres.url(name))
    with running_ledger(postgres.url(name), directory) as world:
        world.register(PAYER)
        world.register(PAYEE)
        world.register(BRIDGE, role="bridge")
        subject = NativeSubject(world)
        try:
            yield subject
        finally:
            subject.close()


@contextmanager
def evm_in_process(directory: Path, *, confirmations: int = 1) -> Iterator[EvmSubject]:
    chain = Chain()
    subject = EvmSubject(
        "http://py-evm.invalid",
        chain.issuer,
        directory,
        confirmations=confirmations,
        gas=GasPolicy(),
        transport=chain.transport(),
        wait_seconds=0.2,
        resend_seconds=0.1,
    )
    subject.patience_seconds = 5.0
    try:
        yield subject
    finally:
        subject.close()


def need_anvil() -> Path:
    """The binary; skips (or fails) where it is missing."""
    found = sorted((THIRDPARTY / "node_modules" / "@foundry-rs").glob("anvil-*/bin/anvil"))
    if found:
        return found[0]
    missing = "anvil is missing (npm ci --prefix tests/thirdparty)"
    if os.environ.get("JIAOZI_NO_SKIP") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def anvil(*flags: str) -> Iterator[str]:
    """A node on a loopback port of its own; its URL."""
    binary, port = need_anvil(), free_port()
    command = [str(binary), "--host", "127.0.0.1", "--port", str(port), "--chain-id", "61338", "--silent", *flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 20
        while True:
            try:
                body = {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []}
                httpx.post(url, json=body, timeout=1.0, trust_env=False)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("anvil did not start") from None
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def anvil_account() -> LocalAccount:
    account: LocalAccount = Account.from_key(ANVIL_KEY)
    return account


@contextmanager
def evm_on_anvil(directory: Path, *, confirmations: int = 1) -> Iterator[EvmSubject]:
    with anvil() as url:
        subject = EvmSubject(
            url,
            anvil_account(),
            directory,
            confirmations=confirmations,
            gas=GasPolicy(),
            wait_seconds=0.3,
            resend_seconds=0.1,
        )
        subject.patience_seconds = 5.0
        try:
            yield subject
        finally:
            subject.close()

"""A real ledger for tests: keys, genesis, a server on a loopback port in a thread of its own, clients that sign.

with running_ledger(fresh_database("ledger"), tmp_path) as world:
    world.register("BKCHCNBJ", role="intermediary", quota_minor=10**12)
    vault = world.open_vault("BKCHCNBJ")
    world.issue(vault, 1_000_00)
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path

from kernel import ids
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import ParticipantId
from kernel.server import make_server
from ledger.client import LedgerClient
from ledger.contract import (
    AccountChangeDocument,
    AccountChangeView,
    AccountKind,
    AccountOpening,
    Action,
    Approval,
    IssueAction,
    MandateView,
    ParticipantRole,
    Proposal,
    RegisterParticipantAction,
    TransferKind,
    TransferTerms,
    sign_account_change,
    sign_account_consent,
    sign_approval,
    sign_instruction,
    sign_proposal,
)
from ledger.settings import LedgerSettings
from tests.roles import as_service

RULE_CLASSES = [
    {
        "name": "small",
        "balance_max_minor": "100000",
        "single_max_minor": "50000",
        "day_max_minor": "80000",
        "year_max_minor": "500000",
    }
]


_PORTS_FIRST, _PORTS_EACH, _WORKERS = 12_000, 2_000, 10
_numbers = count(37 * os.getpid())


def free_port() -> int:
    """A port of this worker's own that nobody has now, and that nobody is given before the test listens on it: it is
    below those that the system chooses, for connections or for port 0, and the next call gives the next one."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for _ in range(_PORTS_EACH):
        port = _PORTS_FIRST + _PORTS_EACH * worker + next(_numbers) % _PORTS_EACH
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no port is free")


KEY_RECOVERY_SECONDS = 2


@dataclass
class LedgerWorld:
    url: str
    ledger: str
    currency: str
    operators: list[PrivateKey]
    settings: LedgerSettings
    participants: dict[str, PrivateKey] = field(default_factory=dict)

    def anonymous(self) -> LedgerClient:
        return LedgerClient(self.url)

    def client(self, participant: str) -> LedgerClient:
        return LedgerClient(self.url, signer=RequestSigner(self.participants[participant]))

    def operator(self, number: int = 0) -> LedgerClient:
        return LedgerClient(self.url, signer=RequestSigner(self.operators[number]))

    def proposal(self, action: Action) -> Proposal:
        valid_until = system_clock() + timedelta(hours=1)
        return Proposal(ledger=self.ledger, mandate=ids.new_uuid7(), action=action, valid_until=valid_until)

    def approve(self, view: MandateView, operator: int) -> MandateView:
        approval = Approval(ledger=self.ledger, mandate=view.mandate, proposal_sha256=view.proposal_sha256)
        with self.anonymous() as client:
            return client.approve(view.mandate, sign_approval(approval, key=self.operators[operator]))

    def mandate(self, action: Action) -> MandateView:
        """Proposed by operator 0, approved by 1 and 2, executed."""
        with self.operator() as client:
            view = client.propose(sign_proposal(self.proposal(action), key=self.operators[0]))
            self.approve(view, 1)
            self.approve(view, 2)
            return client.execute(view.mandate)

    def register(
        self, participant: str, *, role: str = "intermediary", quota_minor: int = 10**15, key: PrivateKey | None = None
    ) -> None:
        own = key or PrivateKey.generate()
        self.mandate(
            RegisterParticipantAction(
                participant=ParticipantId(participant),
                name=participant,
                role=ParticipantRole(role),
                key=own.public.to_jwk(),
                quota_minor=quota_minor,
            )
        )
        self.participants[participant] = own

    def open_vault(self, participant: str, rule_class: str = "none") -> int:
        opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT, rule_class=rule_class)
        with self.client(participant) as client:
            result = client.open_accounts([opening])[0]
        return _opened(result.account)

    def open_wallet(self, participant: str, key: PrivateKey, rule_class: str = "none") -> int:
        opening = AccountOpening(
            opening=ids.new_uuid7(), kind=AccountKind.WALLET, rule_class=rule_class, holder_key=key.public.to_jwk()
        )
        with self.client(participant) as client:
            result = client.open_accounts([opening])[0]
        return _opened(result.account)

    def issue(self, vault: int, amount_minor: int) -> MandateView:
        return self.mandate(
            IssueAction(
                transfer=ids.new_uuid7(),
                vault=ids.AccountNumber(vault),
                amount_minor=amount_minor,
                currency=self.currency,
            )
        )

    def terms(
        self, kind: str, debit: int | None, credit: int | None, amount: int | None, **more: object
    ) -> TransferTerms:
        members: dict[str, object] = {
            "id": ids.new_uuid7(),
            "kind": TransferKind(kind),
            "debit": debit,
            "credit": credit,
            "amount_minor": amount,
            "currency": self.currency,
        }
        return TransferTerms.model_validate(members | more)

    def change_document(self, what: str, account: int, *, minutes: int = 5, **members: object) -> AccountChangeDocument:
        return AccountChangeDocument.model_validate(
            {
                "id": ids.new_uuid7(),
                "ledger": self.ledger,
                "change": {"change": what, "account": account, **members},
                "valid_until": system_clock() + timedelta(minutes=minutes),
            }
        )

    def change(
        self, participant: str, what: str, account: int, *, consent: PrivateKey | None = None, **members: object
    ) -> AccountChangeView:
        """Signed by the participant, and with the consent of a holder's key."""
        document = self.change_document(what, account, minutes=5, **members)
        token = sign_account_change(document, key=self.participants[participant])
        with self.client(participant) as client:
            given = sign_account_consent(document, key=consent) if consent is not None else None
            return client.change_account(token, consent=given)

    def instruction(self, terms: TransferTerms, key: PrivateKey, *, ledger: str | None = None, minutes: int = 5) -> str:
        valid_until = system_clock() + timedelta(minutes=minutes)
        return sign_instruction(terms, ledger=ledger or self.ledger, valid_until=valid_until, key=key)


def _opened(account: int | None) -> int:
    if account is None:
        raise RuntimeError("the account was not opened")
    return account


def write_genesis(path: Path, *, ledger: str, currency: str, operators: list[PrivateKey]) -> None:
    names = ("governor", "treasurer", "auditor")
    document = {
        "ledger": ledger,
        "currency": currency,
        "time_zone": "Asia/Shanghai",
        "approvals_needed": 2,
        "operators": [{"name": name, "key": key.public.to_jwk()} for name, key in zip(names, operators, strict=True)],
        "rule_classes": RULE_CLASSES,
        "key_recovery_seconds": KEY_RECOVERY_SECONDS,
    }
    path.write_text(json.dumps(document))


def make_world(
    database_url: str, directory: Path, *, ledger: str = "test-cny", currency: str = "CNY", **settings: object
) -> LedgerWorld:
    """Keys, genesis file and settings; nothing runs yet. The ledger is given the database under its own role."""
    operators = [PrivateKey.generate() for _ in range(3)]
    genesis = directory / f"genesis-{ledger}.json"
    write_genesis(genesis, ledger=ledger, currency=currency, operators=operators)
    port = free_port()
    url = as_service(database_url)
    settings = {"data_dir": directory, **settings}  # for the keys of its log
    made = LedgerSettings.load(port=port, database_url=url, genesis_path=genesis, **settings)
    return LedgerWorld(f"http://127.0.0.1:{port}", ledger, currency, operators, made)


@contextmanager
def serving(world: LedgerWorld) -> Iterator[LedgerWorld]:
    """The world's ledger, served in a thread until the block ends (and stopped properly)."""
    from ledger.api.app import create

    server = make_server(create(world.settings), port=world.settings.port, log_level="warning")
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the ledger did not start")
        time.sleep(0.01)
    try:
        yield world
    finally:
        server.should_exit = True
        thread.join(30)


@contextmanager
def running_ledger(
    database_url: str, directory: Path, *, log_enabled: bool = False, **arguments: object
) -> Iterator[LedgerWorld]:
    """Without the transparency log, receipts and closings unless asked: its process takes longer to start than most
    tests last."""
    with serving(make_world(database_url, directory, log_enabled=log_enabled, **arguments)) as world:  # type: ignore[arg-type]
        yield world

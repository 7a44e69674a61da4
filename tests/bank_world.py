"""One bank for tests: a real ledger and the bank's wallet service, each behind a loopback socket of its own.

with running_bank(fresh_database, tmp_path) as world:
    client = world.client()                       # signed by the bank's app ("channel"), or client("operator") ...
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.server import make_server
from tests import ledger_world
from tests.ledger_world import LedgerWorld, free_port, running_ledger
from tests.roles import as_service
from wallet.api.app import create
from wallet.client import WalletClient
from wallet.domain.rules import ledger_rule_classes
from wallet.rulepack_files import load_rule_pack
from wallet.settings import ClientRole, WalletSettings

PACK = "ecny-2021-06"
ROLES = tuple(role.value for role in ClientRole)


@dataclass(frozen=True)
class BankWorld:
    url: str
    ledger: LedgerWorld
    keys: dict[str, PrivateKey]
    home: Path
    """Holds `<role>.pem` for each of ROLES, and the bank's own key."""

    def client(self, role: str = "channel") -> WalletClient:
        return WalletClient(self.url, signer=RequestSigner(self.keys[role]))


@contextmanager
def running_bank(
    fresh_database: Callable[[str], str], directory: Path, *, participant: str = "BKCHCNBJ", issued_minor: int = 10**9
) -> Iterator[BankWorld]:
    """The bank is an intermediary with `issued_minor` in its vault; its service is in the sandbox's mode."""
    home = directory / participant
    home.mkdir()
    keys = {role: PrivateKey.generate() for role in ROLES}
    for role, key in keys.items():
        key.save(home / f"{role}.pem")
    registered = [{"name": role, "key": key.public.to_jwk(), "role": role} for role, key in keys.items()]
    (home / "clients.json").write_text(json.dumps(registered))
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with _pack_classes(), running_ledger(fresh_database("ledger"), directory, log_enabled=True) as ledger:
        ledger.register(participant)
        ledger.participants[participant].save(home / "bank.pem")
        settings = WalletSettings(
            public_url=url,
            database_url=as_service(fresh_database("wallet"), "wallet"),
            data_dir=home,
            participant=participant,
            signing_key_path=home / "bank.pem",
            clients_path=home / "clients.json",
            ledger_url=ledger.url,
            rule_pack=PACK,
            sandbox=True,
        )
        server = make_server(create(settings), port=port, log_level="warning")
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        deadline = time.monotonic() + 60
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the wallet service did not start")
            time.sleep(0.01)
        try:
            world = BankWorld(url, ledger, keys, home)
            with world.client() as client:
                ledger.issue(client.institution().ledgers[0].vault, issued_minor)
            yield world
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def _pack_classes() -> Iterator[None]:
    """The ledger's genesis has the classes of the bank's rule pack."""
    before = ledger_world.RULE_CLASSES
    classes = ledger_rule_classes(load_rule_pack(PACK))
    ledger_world.RULE_CLASSES = [item.model_dump(mode="json", exclude_none=True) for item in classes]
    try:
        yield
    finally:
        ledger_world.RULE_CLASSES = before

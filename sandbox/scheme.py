"""The whole scheme on this machine: brought up, looked at, taken down. For the `jiaozi` command, the demo and tests.

Bringing up, each part only where it is not there already:
1. the embedded PostgreSQL server, and in it one migrated database a service;
2. the two ledgers (genesis at first start) and the four wallet services;
3. every institution registered at both ledgers by mandate, with a vault at each;
4. the bridge, which is told these vaults.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from alembic.util import CommandError

from kernel import migrate
from kernel.clock import Clock, system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.ids import AccountNumber, ParticipantId
from kernel.postgres import service_role
from ledger.client import LedgerClient
from sandbox import bridge, seed, witnesses
from sandbox.processes import Processes, Service
from sandbox.topology import (
    BRIDGE_SERVICE,
    CENTRAL_BANKS,
    INSTITUTIONS,
    WITNESSES,
    CentralBank,
    DirectoryRefused,
    Home,
    Institution,
    central_bank,
    choose_ports,
    has_database,
    ledger_service,
    service_names,
)
from settlement.client import SettlementClient
from wallet.client import WalletClient

Tell = Callable[[str], None]
"""Is told, in a few words, what is being done now."""
WALLET_POOL_SIZE = 8
"""Seven services share one server with 200 connections."""


def _silent(_: str) -> None:
    pass


class Scheme:
    def __init__(self, home: Home, *, port_first: int | None = None, clock: Clock = system_clock) -> None:
        self.home = home
        self.keys = seed.Keys(home)
        self.processes = Processes(home)
        self._port_first = port_first
        self._clock = clock
        self._ports: dict[str, int] = self._known_ports()

    # --- look

    @property
    def services(self) -> list[Service]:
        """In the order in which they are started."""
        return [self.service(name) for name in service_names()] if self._ports else []

    def service(self, name: str) -> Service:
        kind = name.partition("-")[0]
        return Service(
            name=name,
            module="wallet" if kind == "witness" else kind,
            command="witness" if kind == "witness" else "serve",
            url=self.url(name),
            settings=self._settings(name),
            log_file=self.home.logs / f"{name}.log",
            pid_file=self.home.run / f"{name}.pid",
        )

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name]}"

    def database_url(self, name: str) -> str:
        """A service's own, under its own role: no service can enter another's, nor change its tables."""
        database = name.replace("-", "_")
        return self.home.postgres.url(database, role=service_role(database))

    def is_up(self) -> bool:
        """Does every process live? (Whether they answer is `await_healthy`'s question.)"""
        return bool(self._ports) and all(self.processes.find(service) is not None for service in self.services)

    def _known_ports(self) -> dict[str, int]:
        found = self.home.read_state().get("ports")
        if not isinstance(found, dict) or set(found) != set(service_names()):
            return {}
        return {str(name): int(port) for name, port in found.items()}

    # --- clients

    def ledger_client(self, ledger: str, key: PrivateKey | None = None) -> LedgerClient:
        signer = RequestSigner(key) if key is not None else None
        return LedgerClient(self.url(ledger_service(ledger)), signer=signer)

    def wallet_client(self, institution: Institution, key: PrivateKey | None = None) -> WalletClient:
        signer = RequestSigner(key) if key is not None else None
        return WalletClient(self.url(institution.service), signer=signer)

    def bridge_client(self, key: PrivateKey, *, timeout_seconds: float = 30.0) -> SettlementClient:
        return SettlementClient(self.url(BRIDGE_SERVICE), signer=RequestSigner(key), timeout_seconds=timeout_seconds)

    # --- up and down

    def up(self, tell: Tell = _silent) -> bool:
        """Bring up whatever is not running; False if nothing was missing. The caller holds the sandbox's lock.

        Raises: DirectoryRefused, ServiceFailed, EmbeddedPostgresError, ProblemResponse, ServiceUnreachable.
        """
        self.home.prepare()
        if self.is_up():
            self.processes.await_healthy(self.services)
            return False
        self.home.check_version()
        self._assign_ports()
        # 1.
        tell("PostgreSQL: starting the embedded server")
        server = self.home.postgres
        server.start()
        for name in filter(has_database, service_names()):
            database = name.replace("-", "_")
            server.ensure_database(database)
            server.ensure_role(service_role(database))
            kind = name.partition("-")[0]
            if not migrate.is_current(kind, server.url(database)):
                tell(f"PostgreSQL: making the tables of {name}")
                self._migrate(kind, server.url(database), self.database_url(name))
        # 2.
        tell("ledgers and wallet services: starting")
        self._write_files()
        first = [service for service in self.services if service.name != BRIDGE_SERVICE]
        for service in first:
            self.processes.start(service)
        self.processes.await_healthy(first)
        # 3.
        for bank in CENTRAL_BANKS:
            tell(f"{bank.ledger}: registering participants by mandate")
            with self.ledger_client(bank.ledger, self.keys.operator(bank, 0)) as client:
                seed.register_participants(client, self.keys, bank, clock=self._clock)
        # 4.
        tell("bridge: starting")
        bridge.write_files(self.home, self.keys, self.vaults(), urls=self._urls())
        self.processes.start(self.service(BRIDGE_SERVICE))
        self.processes.await_healthy(self.services)
        return True

    @staticmethod
    def _migrate(kind: str, url: str, service_url: str) -> None:
        try:
            migrate.upgrade(kind, url, service_url=service_url)
        except CommandError as error:
            raise DirectoryRefused(
                f"the data were made by another version of this program ({error}): `jiaozi reset` removes them"
            ) from error

    def down(self) -> list[int]:
        """Stop every process of this sandbox, the database server last. Returns the pids of the services stopped."""
        stopped = self.processes.stop_all()
        self.home.postgres.stop()
        return stopped

    def restart(self, name: str) -> None:
        """Start a service that was killed, and wait until it answers."""
        self.processes.start(self.service(name))
        self.processes.await_healthy([self.service(name)])

    def vaults(self) -> dict[ParticipantId, dict[str, AccountNumber]]:
        """Each institution's account on each ledger, opened at the first question."""
        found: dict[ParticipantId, dict[str, AccountNumber]] = {}
        for institution in INSTITUTIONS:
            with self.wallet_client(institution) as client:
                memberships = client.institution().ledgers
            found[institution.participant] = {item.ledger: item.vault for item in memberships}
        return found

    # --- settings

    def _assign_ports(self) -> None:
        running = self.processes.pids()
        in_use = frozenset(port for name, port in self._ports.items() if name in running)
        if running and self._port_first is not None:
            raise DirectoryRefused("some services are running on their ports: `jiaozi down` first")
        self._ports = choose_ports(service_names(), known=self._ports, first=self._port_first, in_use=in_use)
        if running and not (in_use and in_use <= frozenset(self._ports.values())):
            self.processes.stop_all()  # half of a scheme whose other ports were taken meanwhile
        self.home.write_state({**self.home.read_state(), "ports": self._ports})

    def _urls(self) -> dict[str, str]:
        return {name: self.url(name) for name in service_names()}

    def _write_files(self) -> None:
        ledger_urls = {bank.ledger: self.url(ledger_service(bank.ledger)) for bank in CENTRAL_BANKS}
        for bank in CENTRAL_BANKS:
            seed.write_genesis(self.home, self.keys, bank)
        witnesses.write_files(self.home, self._urls())
        for item in INSTITUTIONS:
            seed.write_wallet_clients(self.home, self.keys, item.participant)
            seed.write_wallet_ledgers(self.home, item.participant, ledger_urls, item.home)

    def _settings(self, name: str) -> dict[str, str]:
        if name == BRIDGE_SERVICE:
            return bridge.settings(
                self.home, self.keys, url=self.url(name), port=self._ports[name], database_url=self.database_url(name)
            )
        for bank in CENTRAL_BANKS:
            if name == ledger_service(bank.ledger):
                return self._ledger_settings(bank)
        for item in WITNESSES:
            if name == item.witness:
                return witnesses.settings(self.home, item, port=self._ports[name])
        institution = next(item for item in INSTITUTIONS if item.service == name)
        return self._wallet_settings(institution)

    def _ledger_settings(self, bank: CentralBank) -> dict[str, str]:
        name = ledger_service(bank.ledger)
        values = {
            "PORT": self._ports[name],
            "PUBLIC_URL": self.url(name),
            "DATABASE_URL": self.database_url(name),
            "DATA_DIR": witnesses.ledger_data(self.home, bank.ledger),
            "LOG_WITNESSES_PATH": witnesses.witnesses_path(self.home),
            "GENESIS_PATH": self.home.config / f"genesis-{bank.ledger}.json",
            "NODE": f"{bank.ledger}-1",
        }
        return {f"JIAOZI_LEDGER_{key}": str(value) for key, value in values.items()}

    def _wallet_settings(self, item: Institution) -> dict[str, str]:
        values = {
            "PORT": self._ports[item.service],
            "PUBLIC_URL": self.url(item.service),
            "DATABASE_URL": self.database_url(item.service),
            "DATABASE_POOL_SIZE": WALLET_POOL_SIZE,
            "DATA_DIR": self.home.path / "data" / item.service,
            "PARTICIPANT": item.participant,
            "SIGNING_KEY_PATH": self.keys.path(item.participant),
            "LEDGERS_PATH": self.home.config / f"ledgers-{item.participant}.json",
            "CLIENTS_PATH": self.home.config / f"clients-{item.participant}.json",
            "RULE_PACK": central_bank(item.home).rule_pack,
            "SANDBOX": "true",
        }
        return {f"JIAOZI_WALLET_{key}": str(value) for key, value in values.items()}


def removable(home: Home) -> list[Path]:
    """What `remove` takes away, for people to read first. Raises DirectoryRefused if it is no sandbox."""
    if not home.path.exists():
        return []
    if not home.is_sandbox():
        raise DirectoryRefused(f"{home.path} is no sandbox (it has no {home.state_file.name}): nothing is removed")
    return sorted(path for path in home.path.iterdir() if path != home.lock_file)


def remove(home: Home) -> None:
    """Remove a stopped sandbox's data. The state file goes last, so that a removal cut short can be repeated."""
    for path in sorted(removable(home), key=lambda path: path == home.state_file):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    home.lock_file.unlink(missing_ok=True)
    if not os.listdir(home.path):
        home.path.rmdir()

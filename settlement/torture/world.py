"""A whole scheme in one directory, of real processes, each of which can be hurt and mended.

Two or three ledgers (`jiaozi-ledger serve`), each on a PostgreSQL server of its own behind an HTTP proxy; institutions
that sign; the settlement service, in up to two processes, on a PostgreSQL server of its own. Accounts are funded by
real issuance: proposed by one operator of the ledger, approved by two.

    with World(directory, currencies=("CNY", "AED")) as world:
        world.start_engine()
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self, TypeVar

import psutil
import psycopg

from kernel import ids, migrate
from kernel.client import ProblemResponse, ServiceUnreachable
from kernel.clock import system_clock
from kernel.crypto.http_signatures import RequestSigner
from kernel.crypto.keys import PrivateKey
from kernel.database import Database
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from kernel.postgres import EmbeddedPostgres, service_role
from ledger.client import LedgerClient
from ledger.contract import (
    AccountKind,
    AccountOpening,
    Action,
    Approval,
    IssueAction,
    ParticipantRole,
    Proposal,
    RegisterParticipantAction,
    sign_approval,
    sign_proposal,
)
from settlement.client import SettlementClient
from settlement.torture import planted
from settlement.torture.forker import GUARD
from settlement.torture.institutions import Institution
from settlement.torture.points import Switchboard
from settlement.torture.proxy import Proxy, http_upstream

BRIDGE = ParticipantId("BRDGAEAD")
HOME_BANK = MappingProxyType(
    {"CNY": ParticipantId("AAAACNBJ"), "AED": ParticipantId("BBBBAEAD"), "THB": ParticipantId("CCCCTHBK")}
)
"""Currency -> the bank that has its money there."""
RATES = MappingProxyType({("CNY", "AED"): "0.5123", ("AED", "THB"): "8.9", ("CNY", "THB"): "4.6"})
FUNDS_MINOR = 10**12
"""Issued on each ledger, to its home bank."""
BEYOND_FUNDS_MINOR = 10**14
"""Nobody has as much: a leg of this amount is refused by its ledger."""
STANDBY_SECONDS = 2.0
"""A second service takes over from one that was silent for so long."""
CALL_SECONDS = 0.6
"""The service gives a call up after so long."""
LEDGER_LEASE_SECONDS = 2
START_SECONDS_MAX = 60.0
BACK_SECONDS_MAX = 45.0
ENGINE = "engine"
MEMORY = Path("/dev/shm")  # noqa: S108 - what is made in it is a fresh directory
MEMORY_BYTES_MIN = 4 * 2**30
_POSTGRES = MappingProxyType({"shared_buffers": "32MB", "max_wal_size": "512MB", "max_connections": "80"})
"""Durability stays as the service has it; only sizes differ."""
_IMPORTS = (
    "ledger.__main__",
    "ledger.api.app",
    "settlement.torture.planted",
    "alembic.ddl.postgresql",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)
_RULE_CLASSES = [
    {
        "name": "small",
        "balance_max_minor": "100000",
        "single_max_minor": "50000",
        "day_max_minor": "80000",
        "year_max_minor": "500000",
    }
]
Result = TypeVar("Result")


class WorldFailed(RuntimeError):
    """The scheme did not come up, or did not come back; the message has the end of the log that says why."""


@dataclass
class Process:
    """A forked service. `name` is unique to its life."""

    name: str
    pid: int
    url: str
    log: Path

    @property
    def is_alive(self) -> bool:
        try:
            return psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    def kill(self) -> None:
        """SIGKILL, and until it is gone."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        until(lambda: not psutil.pid_exists(self.pid), 10, f"{self.name} does not end")

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)


@dataclass
class Server:
    """A PostgreSQL server. `stop` is SIGSTOP of all its processes."""

    postgres: EmbeddedPostgres
    database: str
    _stopped: list[psutil.Process] = field(default_factory=list)

    def kill(self) -> None:
        self.postgres.kill()

    def start(self) -> None:
        self.postgres.start()

    def stop(self) -> None:
        pid = self.postgres.postmaster_pid()
        if pid is None:
            return
        with suppress(psutil.NoSuchProcess):
            postmaster = psutil.Process(pid)
            self._stopped = [postmaster, *postmaster.children()]
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.suspend()

    def go_on(self) -> None:
        for process in self._stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
        self._stopped = []

    def cut(self) -> None:
        """End every session of the service, as a broken network does."""
        with (
            suppress(psycopg.OperationalError),
            psycopg.connect(self.postgres.conninfo("postgres"), autocommit=True) as connection,
        ):
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s",
                [service_role(self.database)],
            )


@dataclass
class Ledger:
    """One island: its process, server, proxy, operators, and each bank's account."""

    name: str
    currency: Currency
    port: int
    server: Server
    proxy: Proxy
    operators: list[PrivateKey]
    environment: dict[str, str]
    log: Path
    accounts: dict[ParticipantId, AccountNumber] = field(default_factory=dict)
    process: Process | None = None

    @property
    def home_bank(self) -> ParticipantId:
        return HOME_BANK[self.currency.code]


class World:
    """Everything is up after `__enter__`, the settlement service excepted; everything is gone after `__exit__`."""

    def __init__(
        self, directory: Path, *, currencies: Sequence[str] = ("CNY", "AED"), service: str = planted.__name__
    ) -> None:
        """`directory` is empty, and PostgreSQL's user can enter it. `service` is the module run as the service."""
        self.directory = directory
        self.currencies = tuple(currencies)
        self.keys = {name: PrivateKey.generate() for name in (BRIDGE, *(HOME_BANK[code] for code in currencies))}
        self.switchboard = Switchboard(directory / "points")
        self.service = service
        """What the next `start_engine` runs."""
        self._stack = ExitStack()
        self._fork_lock = threading.Lock()
        self._ledger_clients: dict[tuple[str, ParticipantId], LedgerClient] = {}
        self._clients: dict[str, SettlementClient] = {}
        self._starts = 0
        self._engine_ports = (free_port(), free_port())
        self.engine_server = self._server(ENGINE, "settlement")
        self.ledgers: dict[str, Ledger] = {}
        for code in currencies:
            self._add_ledger(code)
        self.institutions = {
            HOME_BANK[code]: Institution(HOME_BANK[code], self.keys[HOME_BANK[code]], self._on_message)
            for code in currencies
        }
        self.banks = tuple(self.institutions)
        self.engines: list[Process] = []
        """Living ones; the first is the one under test."""

    # --- up and down

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        for server in self.servers:
            server.go_on()
        self._stack.close()
        for server in self.servers:
            server.postgres.stop("immediate")
        self.switchboard.close()

    @property
    def proxies(self) -> list[Proxy]:
        places = [ledger.proxy for ledger in self.ledgers.values()]
        return places + [institution.proxy for institution in self.institutions.values()]

    @property
    def servers(self) -> list[Server]:
        return [self.engine_server, *(ledger.server for ledger in self.ledgers.values())]

    def _up(self) -> None:
        self._forker = self._start_forker()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(self._prepare_server, self.servers))
            list(pool.map(self._bring_up_ledger, self.ledgers.values()))
        self.database = Database(
            self.engine_server.postgres.url("settlement"), application_name="jiaozi-torture", pool_size=4
        )
        self._stack.callback(self.database.close)
        self._write_files()

    def _server(self, name: str, database: str) -> Server:
        place = self.directory / f"postgres-{name}"
        return Server(EmbeddedPostgres(place, settings=_POSTGRES), database)

    def _prepare_server(self, server: Server) -> None:
        server.start()
        server.postgres.ensure_database(server.database)
        server.postgres.ensure_role(service_role(server.database))
        url = server.postgres.url(server.database)
        service_url = server.postgres.url(server.database, role=service_role(server.database))
        with _MIGRATING:  # Alembic keeps its context in module variables
            migrate.upgrade(server.database, url, service_url=service_url)

    def _start_forker(self) -> subprocess.Popen[str]:
        guarded = [part for server in self.servers for part in (GUARD, str(server.postgres.data_dir))]
        with (self.directory / "forker.log").open("ab") as log:
            forker = subprocess.Popen(
                [sys.executable, "-m", "settlement.torture.forker", *_IMPORTS, self.service, *guarded],
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

        def end() -> None:
            if forker.stdin is not None:
                forker.stdin.close()  # it ends what it forked, then the servers
            forker.wait(30)
            if forker.stdout is not None:
                forker.stdout.close()

        self._stack.callback(end)
        return forker

    def _fork(self, module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        order = {"module": module, "arguments": arguments, "environment": environment, "log": str(log)}
        with self._fork_lock:
            if self._forker.stdin is None or self._forker.stdout is None:
                raise WorldFailed("the forker has no pipes")
            self._forker.stdin.write(json.dumps(order) + "\n")
            self._forker.stdin.flush()
            answer = self._forker.stdout.readline()
        if not answer:
            raise WorldFailed(f"the forker ended: {_tail(self.directory / 'forker.log')}")
        return int(answer)

    def _on_message(self, point: str) -> str | None:
        return self.switchboard.reached("", 0, point)

    # --- ledgers

    def _add_ledger(self, code: str) -> None:
        name, port = f"{code.lower()}-ledger", free_port()
        server = self._server(name, "ledger")
        proxy = Proxy(name, http_upstream("127.0.0.1", port), self._on_message)
        genesis, data = self.directory / f"genesis-{name}.json", self.directory / f"data-{name}"
        operators = [PrivateKey.generate() for _ in range(3)]
        genesis.write_text(json.dumps(_genesis(name, code, operators)))
        data.mkdir()
        settings = {
            "PORT": port,
            "PUBLIC_URL": proxy.url,
            "DATABASE_URL": server.postgres.url("ledger", role=service_role("ledger")),
            "DATA_DIR": data,
            "GENESIS_PATH": genesis,
            "NODE": name,
            "LEASE_SECONDS": LEDGER_LEASE_SECONDS,
        }
        environment = {f"JIAOZI_LEDGER_{key}": str(value) for key, value in settings.items()}
        self.ledgers[name] = Ledger(
            name, Currency.of(code), port, server, proxy, operators, environment, self.directory / f"{name}.log"
        )

    def start_ledger(self, ledger: Ledger) -> None:
        self._starts += 1
        pid = self._fork("ledger.__main__", ["serve"], ledger.environment, ledger.log)
        ledger.process = Process(f"{ledger.name}/{self._starts}", pid, ledger.proxy.url, ledger.log)

    def await_ledger(self, ledger: Ledger) -> None:
        """Until it answers a question that needs its state."""

        def answers() -> bool:
            if ledger.process is None or not ledger.process.is_alive:
                raise WorldFailed(f"{ledger.name} ended: {_tail(ledger.log)}")
            with suppress(ServiceUnreachable, ProblemResponse), LedgerClient(ledger.proxy.url) as client:
                client.supply()
                return True
            return False

        until(answers, START_SECONDS_MAX, f"{ledger.name} does not answer")

    def ledger_client(self, ledger: Ledger, who: ParticipantId = BRIDGE) -> LedgerClient:
        """Kept: to make one costs more than a call."""
        key = (ledger.proxy.url, who)
        if key not in self._ledger_clients:
            client = LedgerClient(ledger.proxy.url, signer=RequestSigner(self.keys[who]), timeout_seconds=10)
            self._stack.callback(client.close)
            self._ledger_clients[key] = client
        return self._ledger_clients[key]

    def _bring_up_ledger(self, ledger: Ledger) -> None:
        self.start_ledger(ledger)
        self.await_ledger(ledger)
        self._mandate(ledger, _registration(BRIDGE, ParticipantRole("bridge"), self.keys[BRIDGE]))
        for bank in self.banks:
            role = ParticipantRole("intermediary" if bank == ledger.home_bank else "foreign")
            self._mandate(ledger, _registration(bank, role, self.keys[bank]))
            opening = AccountOpening(opening=ids.new_uuid7(), kind=AccountKind.VAULT, rule_class="none")
            account = self.ledger_client(ledger, bank).open_accounts([opening])[0].account
            if account is None:
                raise WorldFailed(f"{ledger.name} opened no account for {bank}")
            ledger.accounts[bank] = account
        issue = IssueAction(
            transfer=ids.new_uuid7(),
            vault=ledger.accounts[ledger.home_bank],
            amount_minor=FUNDS_MINOR,
            currency=ledger.currency.code,
        )
        self._mandate(ledger, issue)

    def _mandate(self, ledger: Ledger, action: Action) -> None:
        """Proposed by operator 0, approved by 1 and 2, executed."""
        proposal = Proposal(
            ledger=ledger.name,
            mandate=ids.new_uuid7(),
            action=action,
            valid_until=system_clock() + timedelta(hours=1),
        )
        first = ledger.operators[0]
        with LedgerClient(ledger.proxy.url, signer=RequestSigner(first)) as client:
            view = client.propose(sign_proposal(proposal, key=first))
            approval = Approval(ledger=ledger.name, mandate=view.mandate, proposal_sha256=view.proposal_sha256)
            for operator in ledger.operators[1:]:
                client.approve(view.mandate, sign_approval(approval, key=operator))
            client.execute(view.mandate)

    # --- the service

    def _write_files(self) -> None:
        files: dict[str, object] = {
            "ledgers": [
                {"ledger": ledger.name, "url": ledger.proxy.url, "currency": ledger.currency.code}
                for ledger in self.ledgers.values()
            ],
            "institutions": [
                {
                    "participant": bank,
                    "authorisation_url": self.institutions[bank].proxy.url,
                    "key": self.keys[bank].public.to_jwk(),
                    "accounts": {
                        ledger.currency.code: ids.show_account(ledger.accounts[bank])
                        for ledger in self.ledgers.values()
                    },
                }
                for bank in self.banks
            ],
            "rates": [
                {"base": base, "counter": counter, "rate": rate, "provider": HOME_BANK[counter]}
                for (base, counter), rate in RATES.items()
                if base in self.currencies and counter in self.currencies
            ],
        }
        for name, content in files.items():
            (self.directory / f"{name}.json").write_text(json.dumps(content))
        self.keys[BRIDGE].save(self.directory / "bridge.pem")

    def _engine_environment(self, name: str, port: int) -> dict[str, str]:
        settings = {
            "PORT": port,
            "PUBLIC_URL": f"http://127.0.0.1:{port}",
            "DATABASE_URL": self.engine_server.postgres.url("settlement", role=service_role("settlement")),
            "DATABASE_POOL_SIZE": 5,
            "DATA_DIR": self.directory / "data-settlement",
            "PARTICIPANT": BRIDGE,
            "SIGNING_KEY_PATH": self.directory / "bridge.pem",
            "LEDGERS_PATH": self.directory / "ledgers.json",
            "INSTITUTIONS_PATH": self.directory / "institutions.json",
            "RATES_PATH": self.directory / "rates.json",
            "STANDBY_SECONDS": STANDBY_SECONDS,
            "CALL_TIMEOUT_SECONDS": CALL_SECONDS,
        }
        marks = {planted.SOCKET: str(self.switchboard.path), planted.NAME: name}
        return {f"JIAOZI_SETTLEMENT_{key}": str(value) for key, value in settings.items()} | marks

    def start_engine(self) -> Process:
        """One more process of the service, on a free one of the two addresses. It takes the lease when it starts."""
        used = {process.url for process in self.engines}
        port = next(port for port in self._engine_ports if f"http://127.0.0.1:{port}" not in used)
        self._starts += 1
        name, log = f"e{self._starts}", self.directory / "settlement.log"
        pid = self._fork(self.service, ["serve"], self._engine_environment(name, port), log)
        process = Process(name, pid, f"http://127.0.0.1:{port}", log)
        self.engines.append(process)
        return process

    def kill_engine(self, process: Process) -> None:
        process.kill()
        self.engines.remove(process)

    def await_engine(self, process: Process) -> None:
        port = int(process.url.rpartition(":")[2])

        def listens() -> bool:
            if not process.is_alive:
                raise WorldFailed(f"the settlement service ended: {_tail(process.log)}")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        until(listens, START_SECONDS_MAX, "the settlement service does not listen")

    def repair(self) -> None:
        """After a case that failed: whatever was hurt is up again, and the service is a new process."""
        for server in self.servers:
            server.go_on()
            server.start()
        for engine in list(self.engines):
            self.kill_engine(engine)
        for proxy in self.proxies:
            proxy.forget()
            proxy.heal()
        for ledger in self.ledgers.values():
            if ledger.process is not None:
                ledger.process.go_on()
            if ledger.process is None or not ledger.process.is_alive:
                self.start_ledger(ledger)
            self.await_ledger(ledger)
        self.await_engine(self.start_engine())

    def client(self) -> SettlementClient:
        """Of the service under test, as the bridge's operator. Kept, too."""
        url = self.engines[0].url
        if url not in self._clients:
            client = SettlementClient(url, signer=RequestSigner(self.keys[BRIDGE]), timeout_seconds=10)
            self._stack.callback(client.close)
            self._clients[url] = client
        return self._clients[url]


_MIGRATING = threading.Lock()


@contextmanager
def temporary_place(directory: Path | None = None, *, keep: bool = False) -> Iterator[Path]:
    """A fresh directory for a world, in memory if there is room (what is killed here is processes, not the power)."""
    home = directory or (MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN else None)
    place = Path(tempfile.mkdtemp(prefix="jiaozi-torture-", dir=home))
    place.chmod(0o755)  # root's PostgreSQL servers run as another user, who must enter
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def patiently(ask: Callable[[], Result], seconds: float = BACK_SECONDS_MAX) -> Result:
    """The answer, asked again while the service is not there. Raises what it says last."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except (ServiceUnreachable, ProblemResponse) as error:
            is_final = isinstance(error, ProblemResponse) and error.status < 500 and not error.transient
            if is_final or time.monotonic() > deadline:
                raise
        time.sleep(0.03)


def until(found: Callable[[], bool], seconds: float, what: str, *, every_seconds: float = 0.004) -> None:
    """Raises WorldFailed with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while not found():
        if time.monotonic() > deadline:
            raise WorldFailed(f"{what} within {seconds:.0f} s")
        time.sleep(every_seconds)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _registration(participant: ParticipantId, role: ParticipantRole, key: PrivateKey) -> RegisterParticipantAction:
    return RegisterParticipantAction(
        participant=participant, name=participant, role=role, key=key.public.to_jwk(), quota_minor=10**15
    )


def _genesis(ledger: str, currency: str, operators: Sequence[PrivateKey]) -> dict[str, object]:
    names = ("governor", "treasurer", "auditor")
    return {
        "ledger": ledger,
        "currency": currency,
        "time_zone": "Asia/Shanghai",
        "approvals_needed": 2,
        "operators": [{"name": name, "key": key.public.to_jwk()} for name, key in zip(names, operators, strict=True)],
        "rule_classes": _RULE_CLASSES,
        "key_recovery_seconds": 3_600,
    }


def _tail(path: Path, lines: int = 15) -> str:
    with suppress(OSError):
        return "\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    return "(no log)"

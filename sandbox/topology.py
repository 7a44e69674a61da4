"""Who takes part in the sandbox's scheme, and where everything of it lies on this machine.

Two central banks, two intermediaries of each, one bridge between them: seven services, each a process with a database
of its own. Every code has a location that ends in 0, which ISO 9362 keeps for test and training: no real bank has one.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernel import migrate
from kernel.ids import ParticipantId
from kernel.money import Currency
from kernel.postgres import EmbeddedPostgres, default_data_dir

DIRECTORY_VARIABLE = "JIAOZI_SANDBOX_DIR"
SCHEMA = "schema"
"""In the state file: `kernel.migrate.fingerprint` of the program that made the databases."""
PORT_PREFERRED = {"ledger": 8100, "wallet": 8200, "settlement": 8300, "witness": 8400}
"""Of the first service of each kind, the next follow: what the services' own commands take for default."""


@dataclass(frozen=True, slots=True)
class CentralBank:
    ledger: str
    title: str
    currency: Currency
    time_zone: str
    rule_pack: str
    operators: tuple[str, str, str] = ("governor", "treasurer", "auditor")
    approvals_needed: int = 2


@dataclass(frozen=True, slots=True)
class Institution:
    """An intermediary at home, a foreign participant at the other ledger."""

    participant: ParticipantId
    name: str
    home: str
    """The ledger at which it is an intermediary."""

    @property
    def service(self) -> str:
        return f"wallet-{self.participant.lower()}"

    @property
    def witness(self) -> str:
        """The witness that it runs, if it runs one (see WITNESSES)."""
        return f"witness-{self.participant.lower()}"


CENTRAL_BANKS = (
    CentralBank("cn-ecny", "Sandbox Central Bank of CNY", Currency.of("CNY"), "Asia/Shanghai", "ecny-2026-01"),
    CentralBank("ae-daed", "Sandbox Central Bank of AED", Currency.of("AED"), "Asia/Dubai", "demo-aed"),
)
INSTITUTIONS = (
    Institution(ParticipantId("FSBKCNB0"), "First Sandbox Bank", "cn-ecny"),
    Institution(ParticipantId("SSBKCNS0"), "Second Sandbox Bank", "cn-ecny"),
    Institution(ParticipantId("TSBKAEA0"), "Third Sandbox Bank", "ae-daed"),
    Institution(ParticipantId("QSBKAED0"), "Fourth Sandbox Bank", "ae-daed"),
)
WITNESSES = (INSTITUTIONS[0], INSTITUTIONS[2])
"""Who watches both ledgers' transparency logs: a bank of each currency."""
BRIDGE = ParticipantId("JZBRZZZ0")
BRIDGE_NAME = "Sandbox Bridge"
BRIDGE_SERVICE = "settlement"


def ledger_service(ledger: str) -> str:
    return f"ledger-{ledger}"


def service_names() -> list[str]:
    """In the order in which they are started."""
    ledgers = [ledger_service(bank.ledger) for bank in CENTRAL_BANKS]
    wallets = [institution.service for institution in INSTITUTIONS]
    return [*ledgers, *wallets, *(institution.witness for institution in WITNESSES), BRIDGE_SERVICE]


def has_database(name: str) -> bool:
    """A witness keeps files."""
    return not name.startswith("witness-")


def central_bank(ledger: str) -> CentralBank:
    return next(bank for bank in CENTRAL_BANKS if bank.ledger == ledger)


# --- the directory ----------------------------------------------------------------------------------------------------


class DirectoryRefused(ValueError):
    """The directory cannot be a sandbox's; the message says why."""


@dataclass(frozen=True, slots=True)
class Home:
    """One directory holds all of a sandbox: keys, settings files, databases, logs, and what the demo writes."""

    path: Path

    @staticmethod
    def at(directory: Path | None) -> Home:
        """The directory given, or JIAOZI_SANDBOX_DIR, or the user's data directory."""
        configured = os.environ.get(DIRECTORY_VARIABLE)
        chosen = directory or (Path(configured) if configured else default_data_dir("sandbox"))
        return Home(chosen.expanduser().resolve())

    @property
    def keys(self) -> Path:
        return self.path / "keys"

    @property
    def config(self) -> Path:
        return self.path / "config"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def files(self) -> Path:
        """What the demo writes for people to look at."""
        return self.path / "files"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.path / "sandbox.lock"

    @property
    def postgres(self) -> EmbeddedPostgres:
        return EmbeddedPostgres(self.path / "postgres")

    def is_sandbox(self) -> bool:
        """Was this directory made by `prepare`? Nothing else is ever removed."""
        return self.state_file.is_file()

    def claim(self) -> None:
        """Make the directory itself. Raises DirectoryRefused for one that holds other things, and leaves it alone."""
        if self.path.is_dir() and not self.is_sandbox() and set(os.listdir(self.path)) - {self.lock_file.name}:
            raise DirectoryRefused(f"{self.path} is not empty and no sandbox: give another directory with --dir")
        make_directory(self.path)

    def prepare(self) -> None:
        """Make what belongs into it. Raises DirectoryRefused as `claim` does."""
        self.claim()
        for folder in (self.config, self.logs, self.run, self.files):
            folder.mkdir(exist_ok=True)
        self.keys.mkdir(mode=0o700, exist_ok=True)
        if not self.is_sandbox():
            self.write_state({SCHEMA: migrate.fingerprint()})

    def check_version(self) -> None:
        """Raises DirectoryRefused if the data were made by a program with other tables."""
        if self.read_state().get(SCHEMA) != migrate.fingerprint():
            raise DirectoryRefused(
                f"{self.path} has data of another version of this program: `jiaozi reset` removes them, another --dir"
                " leaves them alone"
            )

    def read_state(self) -> dict[str, object]:
        """What is remembered between commands. Raises DirectoryRefused if the file is damaged."""
        try:
            state = json.loads(self.state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise DirectoryRefused(f"{self.state_file} is damaged ({error}): `jiaozi reset` starts anew") from None
        if not isinstance(state, dict):
            raise DirectoryRefused(f"{self.state_file} is damaged: `jiaozi reset` starts anew")
        return state

    def write_state(self, state: Mapping[str, object]) -> None:
        write_whole(self.state_file, json.dumps(state, indent=2) + "\n")


def make_directory(directory: Path) -> None:
    """Like `mkdir -p`. As root, what it makes can be entered by PostgreSQL's user, whatever the umask."""
    if directory.is_dir():
        return
    make_directory(directory.parent)
    with suppress(FileExistsError):
        directory.mkdir()
        if os.geteuid() == 0:
            directory.chmod(0o755)


def write_whole(path: Path, text: str) -> None:
    """A reader, or a crash, finds the old file or the new one, never half of one."""
    growing = path.with_name(f".{path.name}.new")
    growing.write_text(text, encoding="utf-8")
    growing.replace(path)


# --- ports ------------------------------------------------------------------------------------------------------------


class PortTaken(ValueError):
    """Another program listens on a port that was asked for."""


def choose_ports(
    names: Sequence[str], *, known: Mapping[str, int], first: int | None, in_use: frozenset[int]
) -> dict[str, int]:
    """A loopback port for each service.

    `first` fixes them from there on. Otherwise those `known` from last time, or the preferred ones, or any free ones.
    `in_use` are ports of our own running services, which are not free and yet ours. Raises: PortTaken.
    """
    if first is not None:
        fixed = {name: first + number for number, name in enumerate(names)}
        for port in fixed.values():
            if port not in in_use and not _is_free(port):
                raise PortTaken(f"port {port} on 127.0.0.1 is taken: give another --port, or none")
        return fixed
    for choice in (known, _preferred_ports(names)):
        if set(choice) == set(names) and all(port in in_use or _is_free(port) for port in choice.values()):
            return dict(choice)
    return free_ports(names)


def _preferred_ports(names: Sequence[str]) -> dict[str, int]:
    following = dict(PORT_PREFERRED)
    ports: dict[str, int] = {}
    for name in names:
        kind = name.partition("-")[0]
        ports[name] = following[kind]
        following[kind] += 1
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free, as for uvicorn
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(names: Sequence[str]) -> dict[str, int]:
    """A port for each name that nobody listens on now."""
    probes = [socket.socket() for _ in names]
    try:
        for probe in probes:  # all bound at once, so that no port is given twice
            probe.bind(("127.0.0.1", 0))
        return {name: int(probe.getsockname()[1]) for name, probe in zip(names, probes, strict=True)}
    finally:
        for probe in probes:
            probe.close()

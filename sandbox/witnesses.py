"""The witnesses of the sandbox's ledgers: the first bank of each currency runs one, and each watches both logs.

Keys are made here before the first start, so that ledgers and witnesses can be told of each other: the log's public key
to the witness, the witness's address and public key to the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from kernel.crypto.keys import PrivateKey
from kernel.transparency.notes import KeyKind, VerifierKey
from sandbox.topology import CENTRAL_BANKS, WITNESSES, Home, Institution, ledger_service, make_directory, write_whole


def ledger_data(home: Home, ledger: str) -> Path:
    """Where a ledger keeps its log's keys."""
    return home.path / "data" / ledger_service(ledger)


def log_salts(home: Home, ledger: str) -> Path:
    """The secret of a ledger's leaves: what an auditor's export needs to check the log's roots."""
    return ledger_data(home, ledger) / f"log-{ledger}.salt"


def log_key(home: Home, ledger: str) -> VerifierKey:
    """The public key of a ledger's log."""
    key = _key(ledger_data(home, ledger) / f"log-{ledger}.pem")
    return VerifierKey(ledger, KeyKind.ED25519, key.public)


def witness_key(home: Home, institution: Institution) -> VerifierKey:
    return VerifierKey(_name(institution), KeyKind.COSIGNATURE_V1, _key(_key_path(home, institution)).public)


def write_files(home: Home, urls: Mapping[str, str]) -> None:
    """The two lists: which logs the witnesses watch, which witnesses the ledgers ask. `urls`: service -> address."""
    logs = [{"vkey": str(log_key(home, bank.ledger))} for bank in CENTRAL_BANKS]
    witnesses = [{"url": urls[item.witness], "vkey": str(witness_key(home, item))} for item in WITNESSES]
    write_whole(logs_path(home), json.dumps(logs, indent=2) + "\n")
    write_whole(witnesses_path(home), json.dumps(witnesses, indent=2) + "\n")


def settings(home: Home, institution: Institution, *, port: int) -> dict[str, str]:
    values = {
        "PORT": port,
        "NAME": _name(institution),
        "KEY_PATH": _key_path(home, institution),
        "DATA_DIR": home.path / "data" / institution.witness,
        "LOGS_PATH": logs_path(home),
    }
    return {f"JIAOZI_WITNESS_{key}": str(value) for key, value in values.items()}


def logs_path(home: Home) -> Path:
    return home.config / "witnessed-logs.json"


def witnesses_path(home: Home) -> Path:
    return home.config / "witnesses.json"


def _name(institution: Institution) -> str:
    return f"{institution.participant.lower()}.sandbox.example"


def _key_path(home: Home, institution: Institution) -> Path:
    return home.keys / f"{institution.witness}.pem"


def _key(path: Path) -> PrivateKey:
    """Made at the first question."""
    make_directory(path.parent)
    if not path.exists():
        PrivateKey.generate().save(path)
    return PrivateKey.load(path)

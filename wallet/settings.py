"""Settings of the wallet service: environment variables `JIAOZI_WALLET_*`, files for everything secret or listed."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, TypeAdapter
from pydantic_settings import SettingsConfigDict

from kernel import strict_json
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import ParticipantId
from kernel.postgres import default_data_dir
from kernel.settings import ServiceSettings
from ledger.contract import AccountRef, CurrencyCode, Jwk, Model, ParticipantRef
from wallet.contract import LedgerName
from wallet.contract.cards import IssuerName
from wallet.domain.reserves import OperatorKind

SERVICE = "wallet"


class ProcessSettings(ServiceSettings):
    """What one process has once, however many institutions it serves."""

    model_config = SettingsConfigDict(env_prefix="JIAOZI_WALLET_")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8200
    public_url: str = "http://127.0.0.1:8200"
    """The origin that clients sign (RFC 9421 @target-uri), whatever Host header arrives."""
    database_url: str | None = None
    """A PostgreSQL URL of the service's own role; unset = an embedded server in `data_dir`."""
    migration_url: str | None = None
    """The same database as the tables' owner, for `jiaozi-wallet migrate` alone; unset = `database_url`."""
    data_dir: Path = Field(default_factory=lambda: default_data_dir(SERVICE))
    """Of the embedded server and the data key."""
    database_pool_size: Annotated[int, Field(ge=2, le=100)] = 16
    """Shared out evenly among institutions."""
    sandbox: bool = False
    """Mounts /v1/simulate/*: deposits from nowhere."""
    recovery_seconds: Annotated[float, Field(ge=0.2, le=3600)] = 5.0
    """How often unfinished sagas are looked for."""
    worker_seconds: Annotated[float, Field(ge=0.05, le=3600)] = 0.5
    """How often payrolls, schedules, programs and webhooks are looked after when there was nothing to do."""
    ledger_timeout_seconds: Annotated[float, Field(ge=0.1, le=120)] = 30.0
    log_level: str = "info"


class InstitutionSettings(BaseModel):
    """What each institution has for itself."""

    participant: ParticipantRef
    """This institution's code in the shape of a BIC."""
    signing_key_path: Path
    """The institution's private key: signs requests to ledgers and leg authorisations. A PKCS#8 PEM file of mode 0600,
    or a .json file that names a key in a hardware security module (kernel.crypto.pkcs11)."""
    data_key_path: Path | None = None
    """The key that wraps customers' data keys; unset = `data_dir/customer-data.key`. Made at first start, mode 0600."""
    ledger_url: str = "http://127.0.0.1:8100"
    """The home ledger, if `ledgers_path` is unset."""
    ledgers_path: Path | None = None
    """A JSON file: [{"ledger", "url", "currency", "vault"?}], the home ledger first."""
    rule_pack: str = "ecny-2021-06"
    pending_rule_pack: str | None = None
    """The pack that takes its place on the day it comes into force."""
    rule_authority_path: Path | None = None
    """The rule-pack authority's public JWK: packs not signed by it are not loaded. Unset = the demonstration's."""
    operator_kind: OperatorKind = OperatorKind.BANK
    """A bank's wallet balances count in its reserve base; another operator keeps a margin (pack 2026-01)."""
    clients_path: Path
    """A JSON file: [{"name", "key": JWK, "role": one of `ClientRole`}]: who may call this API."""
    peers_path: Path | None = None
    """A JSON file: [{"participant", "url"}]: other institutions' wallet services, for payment requests and codes."""
    pin_free_max_minor: Annotated[int, Field(ge=0, lt=2**63)] = 100_000
    """The most that a payer's code pays without asking its holder again, in minor units."""
    program_templates_path: Path | None = None
    """A directory of this institution's own program templates, each with its publisher's signature beside it."""
    program_publishers_path: Path | None = None
    """A JSON file: [JWK], the public keys of those publishers."""
    card_issuers_path: Path | None = None
    """A JSON file: [{"issuer": name, "key": JWK}], the root keys of the card issuers that are trusted."""
    webhook_key_path: Path | None = None
    """The Ed25519 key that signs webhooks; unset = `data_dir/webhook.key`. Made at first start, mode 0600."""
    privacy_log_key_path: Path | None = None
    """The Ed25519 key of the privacy log; unset = `data_dir/privacy-log.key`. Made at first start, mode 0600."""


class WalletSettings(InstitutionSettings, ProcessSettings):
    """A service of one institution, or one of several in a process (`wallet.tenant_settings`)."""


class ClientRole(StrEnum):
    CHANNEL = "channel"
    """The bank's own apps and branches: customers, wallets, exchanges, reads."""
    BRIDGE = "bridge"
    """The settlement operator: asks for leg authorisations, nothing else."""
    OPERATOR = "operator"
    """The bank's desk: orders settlements, and reads; names only masked."""
    COMPLIANCE = "compliance"
    """A compliance officer, each with a key of his own: unmask orders and approvals, erasure; no other reads."""
    AUDITOR = "auditor"
    """Examines for data subjects what was unmasked: the privacy log's entries with their salts, never the data."""


class RegisteredClient(Model):
    name: Annotated[str, Field(min_length=1, max_length=80)]
    key: Jwk
    role: ClientRole


class LedgerEntry(Model):
    ledger: LedgerName
    url: str
    currency: CurrencyCode
    vault: AccountRef | None = None
    """Our account there; unset = opened at first need and remembered."""


class CardIssuerEntry(Model):
    issuer: IssuerName
    key: Jwk


class PeerEntry(Model):
    participant: ParticipantRef
    url: str


def read_peers(path: Path) -> dict[ParticipantId, str]:
    """URLs by participant. Raises: OSError, ValueError."""
    entries = TypeAdapter(list[PeerEntry]).validate_python(read_json(path))
    found = {entry.participant: entry.url for entry in entries}
    if len(found) != len(entries):
        raise ValueError(f"{path}: each participant once")
    return found


def read_card_issuers(path: Path | None) -> dict[str, PublicKey]:
    """Root keys by issuer. Raises: OSError, ValueError."""
    if path is None:
        return {}
    entries = TypeAdapter(list[CardIssuerEntry]).validate_python(read_json(path))
    found = {entry.issuer: PublicKey.from_jwk(entry.key) for entry in entries}
    if len(found) != len(entries):
        raise ValueError(f"{path}: each issuer once")
    return found


def read_clients(path: Path) -> dict[str, RegisteredClient]:
    """Clients by the thumbprint of their key. Raises: OSError, ValueError naming what is wrong."""
    clients = TypeAdapter(list[RegisteredClient]).validate_python(read_json(path))
    found = {PublicKey.from_jwk(client.key).thumbprint: client for client in clients}
    if len(found) != len(clients):
        raise ValueError(f"{path}: two clients have the same key")
    return found


def read_publishers(path: Path | None) -> list[PublicKey]:
    """Keys of those who sign program templates. Raises: OSError, ValueError."""
    if path is None:
        return []
    return [PublicKey.from_jwk(key) for key in TypeAdapter(list[Jwk]).validate_python(read_json(path))]


def read_ledgers(path: Path) -> list[LedgerEntry]:
    """Raises: OSError, ValueError."""
    entries = TypeAdapter(list[LedgerEntry]).validate_python(read_json(path))
    if not entries or len({entry.ledger for entry in entries}) != len(entries):
        raise ValueError(f"{path}: at least one ledger, each once")
    return entries


def read_json(path: Path) -> object:
    """Raises: OSError, ValueError."""
    try:
        return strict_json.loads(path.read_bytes())
    except ProblemError as error:
        raise ValueError(f"{path}: {error}") from None

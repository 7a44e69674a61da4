"""Settings of the settlement service: variables `JIAOZI_SETTLEMENT_*`, and files for what is secret or listed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter
from pydantic_settings import SettingsConfigDict

from kernel import strict_json
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from kernel.postgres import default_data_dir
from kernel.settings import ServiceSettings
from ledger.contract import AccountRef, CurrencyCode, Jwk, Model, Moment, ParticipantRef
from settlement.domain.fx import Rate, parse_rate

SERVICE = "settlement"


class SettlementSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JIAOZI_SETTLEMENT_")

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8300
    public_url: str = "http://127.0.0.1:8300"
    """The origin that clients sign (RFC 9421 @target-uri), whatever Host header arrives."""
    database_url: str | None = None
    """A PostgreSQL URL of the service's own role; unset = an embedded server in `data_dir`."""
    migration_url: str | None = None
    """The same database as the tables' owner, for `jiaozi-settlement migrate` alone; unset = `database_url`."""
    data_dir: Path = Field(default_factory=lambda: default_data_dir(SERVICE))
    database_pool_size: Annotated[int, Field(ge=2, le=100)] = 12
    participant: ParticipantRef
    """The bridge's own code."""
    signing_key_path: Path
    """The bridge's private key (PKCS#8 PEM, mode 0600): registered at the ledgers with the role bridge."""
    ledgers_path: Path
    """A JSON file: [{"ledger", "url", "currency"}]."""
    institutions_path: Path
    """A JSON file: [{"participant", "authorisation_url", "key": JWK, "accounts": {"CNY": "acc_..."}}]."""
    rates_path: Path
    """A JSON file: [{"base", "counter", "rate": "0.5123", "provider", "valid_from"?, "valid_until"?}]."""
    files_dir: Path | None = None
    """Where statement files are written; unset = `data_dir/files`."""
    run_on_submit: bool = True
    """Settle a batch as soon as it is accepted; otherwise on POST /v1/batches/{id}/run."""
    wave_settlements: Annotated[int, Field(ge=1, le=1_000)] = 250
    standby_seconds: Annotated[float, Field(ge=1, le=3_600)] = 10.0
    """A deposed engine takes the lease back when it was not renewed for this long."""
    call_timeout_seconds: Annotated[float, Field(ge=0.1, le=120)] = 15.0
    """How long one call to a ledger or an institution may take before its outcome counts as unknown."""
    log_level: str = "info"

    @property
    def files_directory(self) -> Path:
        return self.files_dir if self.files_dir is not None else self.data_dir / "files"


class LedgerEntry(Model):
    ledger: Annotated[str, Field(min_length=1, max_length=64)]
    url: str
    currency: CurrencyCode


class InstitutionEntry(Model):
    participant: ParticipantRef
    authorisation_url: str
    """The institution's wallet service: the origin of POST /v1/leg-authorisations."""
    key: Jwk
    """Its requests to us are signed by this key."""
    accounts: dict[CurrencyCode, AccountRef]
    """Its account on the ledger of each currency."""


class RateEntry(Model):
    base: CurrencyCode
    counter: CurrencyCode
    rate: str
    provider: ParticipantRef
    valid_from: Moment = datetime(2000, 1, 1, tzinfo=UTC)
    valid_until: Moment = datetime(9999, 1, 1, tzinfo=UTC)


class Directory:
    """Who and what this bridge serves; read once at start."""

    def __init__(
        self, ledgers: list[LedgerEntry], institutions: list[InstitutionEntry], rates: list[RateEntry]
    ) -> None:
        """Raises ValueError for duplicates, unknown currencies and rates that are no positive decimals."""
        self.ledgers = {entry.ledger: entry for entry in ledgers}
        self.ledger_of_currency = {Currency.of(entry.currency): entry.ledger for entry in ledgers}
        self.institutions: dict[ParticipantId, InstitutionEntry] = {entry.participant: entry for entry in institutions}
        if not ledgers or len(self.ledgers) != len(ledgers) or len(self.ledger_of_currency) != len(ledgers):
            raise ValueError("at least one ledger, each name and each currency once")
        if len(self.institutions) != len(institutions):
            raise ValueError("two institutions have one participant code")
        self.keys = {
            PublicKey.from_jwk(entry.key).thumbprint: (entry.participant, PublicKey.from_jwk(entry.key))
            for entry in institutions
        }
        if len(self.keys) != len(institutions):
            raise ValueError("two institutions have one key")
        self.rates = [
            Rate(
                Currency.of(entry.base),
                Currency.of(entry.counter),
                parse_rate(entry.rate),
                entry.provider,
                entry.valid_from,
                entry.valid_until,
            )
            for entry in rates
        ]
        if any(rate.base == rate.counter for rate in self.rates):
            raise ValueError("a rate joins two different currencies")

    def account(self, participant: ParticipantId, currency: Currency) -> AccountNumber | None:
        entry = self.institutions.get(participant)
        return None if entry is None else entry.accounts.get(currency.code)


def read_directory(settings: SettlementSettings) -> Directory:
    """Raises: OSError, ValueError naming the file and what is wrong in it."""
    try:
        return Directory(
            TypeAdapter(list[LedgerEntry]).validate_python(_json_of(settings.ledgers_path)),
            TypeAdapter(list[InstitutionEntry]).validate_python(_json_of(settings.institutions_path)),
            TypeAdapter(list[RateEntry]).validate_python(_json_of(settings.rates_path)),
        )
    except ProblemError as error:
        raise ValueError(f"a file of the settlement service's directory: {error}") from None


def _json_of(path: Path) -> object:
    try:
        return strict_json.loads(path.read_bytes())
    except ProblemError as error:
        raise ValueError(f"{path}: {error}") from None

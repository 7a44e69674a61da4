"""Settings of the settlement service: variables `JIAOZI_SETTLEMENT_*`, and files for what is secret or listed."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, model_validator
from pydantic_settings import SettingsConfigDict

from kernel import strict_json
from kernel.crypto.keys import PublicKey
from kernel.errors import ProblemError
from kernel.ids import AccountNumber, ParticipantId
from kernel.money import Currency
from kernel.postgres import default_data_dir
from kernel.settings import ServiceSettings
from ledger.contract import AccountRef, CurrencyCode, Jwk, Model, Moment, ParticipantRef
from settlement.domain.calendars import DayRule, MissedCutOff
from settlement.domain.fx import Rate, parse_rate
from settlement.islands.chainmaker.entry import ChainMakerEntry
from settlement.islands.evm.entry import EvmEntry

SERVICE = "settlement"
PACKAGED = "packaged"
"""In a path's place: the data that comes with the program."""


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
    """The bridge's private key, registered at the ledgers with the role bridge. A PKCS#8 PEM file of mode 0600, or a
    .json file that names a key in a hardware security module (kernel.crypto.pkcs11)."""
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
    fx_lock_seconds: Annotated[float, Field(ge=1, le=3_600)] = 60.0
    """How long firm quotes are locked for an execution that the engine has not taken (a closed gate, a queue)."""
    calendars_path: Path | None = None
    """A directory of calendars (docs/calendars.md), or `packaged` for those of this program; unset = no calendars."""
    calendars_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """What the digest of the directory's SHA256SUMS has to be; unset = any."""
    calendars_rule: DayRule = DayRule.FOLLOWING
    """What becomes of a value date that is no business day of every ledger."""
    calendars_missed_cut_off: MissedCutOff = MissedCutOff.ROLL
    """What becomes of a settlement that comes, or is held up, past its day."""
    clear_out_path: Path | None = None
    """A JSON file: [{"currency", "returns_to", "against"}]: foreign balances to be returned by the day's end."""
    compliance_path: Path | None = None
    """A policy file (docs/compliance.md); unset = nothing is screened."""
    compliance_hash_key_path: Path | None = None
    """64 hexadecimal digits or more, mode 0600: the key under which residents are counted."""
    officers_path: Path | None = None
    """A JSON file: [{"officer", "key": JWK}]: who decides compliance cases."""
    screening_url: str | None = None
    """A screening service to ask as well; no answer is a review."""
    screening_timeout_seconds: Annotated[float, Field(ge=0.1, le=30)] = 5.0
    queued_priorities: Annotated[str, Field(pattern="^(URGT|HIGH|NORM)(,(URGT|HIGH|NORM)){0,2}$")] | None = None
    """Instructions of these priorities (`NORM`, or `HIGH,NORM`) wait in the queue for a run (docs/liquidity.md)."""
    queue_overtaking: bool = False
    """The scheme lets instructions overtake others of their priority to other institutions: without officers then."""
    control_seconds: Annotated[float, Field(ge=0.1, le=3_600)] = 5.0
    """How long the continuous control pauses when everything that ended is checked (docs/reconciliation.md)."""
    control_balances_seconds: Annotated[float, Field(ge=0.1, le=86_400)] = 60.0
    """How often the control compares whole balances (docs/reconciliation.md)."""
    control_in_doubt_minutes: Annotated[float, Field(ge=0.01, le=10_080)] = 15.0
    """A settlement in doubt for longer than this is an alarm."""
    relay_path: Path | None = None
    """What of each island is believed beforehand (docs/relay.md); unset = no headers are kept and nothing is proved."""
    relay_seconds: Annotated[float, Field(ge=0.1, le=3_600)] = 5.0
    """How long the relay pauses between two looks at every island."""
    log_level: str = "info"

    @property
    def files_directory(self) -> Path:
        return self.files_dir if self.files_dir is not None else self.data_dir / "files"


class LedgerEntry(Model):
    ledger: Annotated[str, Field(min_length=1, max_length=64)]
    url: str
    currency: CurrencyCode
    kind: Literal["native", "evm", "chainmaker"] = "native"
    evm: EvmEntry | None = None
    """Of an EVM chain (docs/islands.md)."""
    chainmaker: ChainMakerEntry | None = None
    """Of a ChainMaker chain (docs/chainmaker.md)."""

    @model_validator(mode="after")
    def _check_kind(self) -> LedgerEntry:
        if (self.kind == "evm") != (self.evm is not None):
            raise ValueError("`evm` is there if, and only if, the kind is evm")
        if (self.kind == "chainmaker") != (self.chainmaker is not None):
            raise ValueError("`chainmaker` is there if, and only if, the kind is chainmaker")
        return self


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


class ClearOutEntry(Model):
    currency: CurrencyCode
    returns_to: ParticipantRef
    """Who takes the currency back: an institution of its home country."""
    against: CurrencyCode
    """What it pays for it."""


class OfficerEntry(Model):
    officer: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9._-]{1,39}$")]
    key: Jwk


def read_clear_out(settings: SettlementSettings) -> list[ClearOutEntry]:
    """Raises: OSError, ValueError naming the file."""
    if settings.clear_out_path is None:
        return []
    entries = TypeAdapter(list[ClearOutEntry]).validate_python(_json_of(settings.clear_out_path))
    if len({entry.currency for entry in entries}) != len(entries) or any(e.currency == e.against for e in entries):
        raise ValueError(f"{settings.clear_out_path}: each currency once, against another one")
    return entries


def read_officers(settings: SettlementSettings) -> list[OfficerEntry]:
    """Each name and each key once, so that two officers are two. Raises: OSError, ValueError naming the file."""
    if settings.officers_path is None:
        return []
    entries = TypeAdapter(list[OfficerEntry]).validate_python(_json_of(settings.officers_path))
    names = {entry.officer for entry in entries}
    keys = {PublicKey.from_jwk(entry.key).thumbprint for entry in entries}
    if len(names) != len(entries) or len(keys) != len(entries):
        raise ValueError(f"{settings.officers_path}: two officers have one name or one key")
    return entries


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

"""The log of one running ledger: its keys, its witnesses, and the process that seals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.dialects.postgresql import insert

from kernel import strict_json
from kernel.clock import Clock
from kernel.crypto.keys import KeyRefused
from kernel.database import Database
from kernel.errors import ProblemError
from kernel.postgres import default_data_dir
from kernel.transparency.checkpoints import witness_keys
from kernel.transparency.notes import NoteRefused, VerifierKey
from ledger.log import keys as key_files
from ledger.log import queries
from ledger.log.feed import LogFeed, LogTask
from ledger.log.keys import LogKeyRefused, LogKeys
from ledger.log.queries import Identity
from ledger.log.tables import log_identity
from ledger.settings import LedgerSettings

WITNESSES_MAX = 16


@dataclass(frozen=True, slots=True)
class Witness:
    url: str
    key: VerifierKey


@dataclass(frozen=True, slots=True)
class TransparencyLog:
    keys: LogKeys
    witnesses: tuple[Witness, ...]
    feed: LogFeed

    @property
    def failure(self) -> str | None:
        return self.feed.failure


def key_paths(settings: LedgerSettings, ledger: str) -> tuple[Path, Path]:
    """Where the signing key and the salts' master are."""
    directory = settings.data_dir or default_data_dir("ledger")
    key_path = settings.log_key_path or directory / f"log-{ledger}.pem"
    salt_path = settings.log_salt_path or directory / f"log-{ledger}.salt"
    return key_path.absolute(), salt_path.absolute()


def load_keys(settings: LedgerSettings, database: Database, *, ledger: str, clock: Clock) -> LogKeys:
    """The log's keys, made and written down if the log is empty. Raises LogKeyRefused with what to do, OSError."""
    key_path, salt_path = key_paths(settings, ledger)
    with database.transaction(isolation="READ COMMITTED") as connection:
        found = queries.find_identity(connection)
    if found is None:
        key_files.make_missing(key_path, salt_path)
        wanted = key_files.load(settings.log_origin or ledger, key_path, salt_path).identity
        with database.transaction(isolation="READ COMMITTED") as connection:
            row = {"id": 1, **_columns(wanted), "created_at": clock()}
            connection.execute(insert(log_identity).values(**row).on_conflict_do_nothing())
            found = queries.find_identity(connection) or wanted
    if settings.log_origin is not None and settings.log_origin != found.origin:
        raise LogKeyRefused(f"the log's origin is {found.origin} for ever: JIAOZI_LEDGER_LOG_ORIGIN names another")
    try:
        keys = key_files.load(found.origin, key_path, salt_path)
    except (KeyRefused, LogKeyRefused) as error:
        raise LogKeyRefused(
            f"the log {found.origin} is not empty, and goes on only with its own keys: {error}."
            " Restore the file, or set JIAOZI_LEDGER_LOG_KEY_PATH and JIAOZI_LEDGER_LOG_SALT_PATH"
        ) from None
    key_files.check(keys, found)
    return keys


def _columns(identity: Identity) -> dict[str, Any]:
    return {"origin": identity.origin, "vkey": identity.vkey, "salt_check": identity.salt_check}


class _WitnessEntry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    url: str = Field(pattern=r"^https?://[^\s]+$", max_length=1024)
    vkey: str = Field(max_length=512)


def load_witnesses(path: Path | None) -> tuple[Witness, ...]:
    """From a JSON list of {"url", "vkey"}. Raises LogKeyRefused with what is wrong in it."""
    if path is None:
        return ()
    try:
        found: Any = strict_json.loads(path.read_bytes())
        if not isinstance(found, list) or len(found) > WITNESSES_MAX:
            raise NoteRefused(f"expected a list of at most {WITNESSES_MAX} witnesses")
        entries = [_WitnessEntry.model_validate(item) for item in found]
        keys = witness_keys(entry.vkey for entry in entries)
    except OSError as error:
        raise LogKeyRefused(f"cannot read the witnesses file {path}: {error.strerror}") from None
    except ProblemError as error:
        raise LogKeyRefused(f"the witnesses file {path}: {error.detail}") from None
    except ValidationError as error:
        raise LogKeyRefused(f"the witnesses file {path}: {error.errors()[0]['msg']}") from None
    except NoteRefused as error:
        raise LogKeyRefused(f"the witnesses file {path}: {error}") from None
    return tuple(Witness(entry.url, key) for entry, key in zip(entries, keys, strict=True))


def start_log(
    settings: LedgerSettings,
    database: Database,
    feed: LogFeed,
    *,
    database_url: str,
    ledger: str,
    currency: str,
    holder: str,
    clock: Clock,
) -> TransparencyLog:
    """Raises LogKeyRefused, KeyRefused, OSError. `holder`: the name in the lease under which the ledger writes."""
    witnesses = load_witnesses(settings.log_witnesses_path)
    keys = load_keys(settings, database, ledger=ledger, clock=clock)
    key_path, salt_path = key_paths(settings, ledger)
    feed.start(
        LogTask(
            database_url=database_url,
            origin=keys.origin,
            key_path=str(key_path),
            salt_path=str(salt_path),
            ledger=ledger,
            currency=currency,
            holder=holder,
            seal_seconds=settings.log_seal_seconds,
            witnesses=[(witness.url, str(witness.key)) for witness in witnesses],
        )
    )
    return TransparencyLog(keys, witnesses, feed)

"""Several institutions in one process and one database (decision 18), as a file lists them.

`JIAOZI_WALLET_TENANTS_PATH` is a JSON file: a list of objects, each with the settings that an institution has for
itself (`InstitutionSettings`, by their names in small letters), and `public_url`, the address that its clients sign if
it is not `<the service's public URL>/t/<participant>`. Paths are relative to the file. `data_dir` of an institution is
`<the service's>/tenants/<participant>`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from kernel.crypto.pkcs11 import load_signing_key
from kernel.ids import ParticipantId
from kernel.settings import InvalidSettings, MisspeltSetting
from wallet.settings import InstitutionSettings, ProcessSettings, WalletSettings, read_clients, read_json

TENANTS_MAX = 25
"""A process has so many database connections, and each institution needs some."""
POOL_PER_TENANT_MIN = 4
"""A payment on its way, the recovery pass, the workers, and a request."""
_ITS_OWN = ("signing_key_path", "data_key_path", "webhook_key_path", "privacy_log_key_path", "clients_path")


class TenantEntry(InstitutionSettings):
    model_config = ConfigDict(extra="forbid", frozen=True)

    public_url: Annotated[str, Field(min_length=1, max_length=300)] | None = None


class TenantsSettings(ProcessSettings):
    tenants_path: Path
    """A JSON file: the institutions and what each has for itself."""

    @classmethod
    def check_environment(cls, environment: Mapping[str, str]) -> None:
        for name in sorted(environment):
            if name.upper().removeprefix(cls._prefix()).lower() in InstitutionSettings.model_fields:
                raise MisspeltSetting(f"{name} is each institution's own: write it in the file of tenants")
        super().check_environment(environment)

    def institutions(self) -> list[WalletSettings]:
        """Each institution's settings, `database_pool_size` being its share.

        Raises: OSError, InvalidSettings if the file is not as above, or two institutions have the same code, address
        or file of a key.
        """
        try:
            entries = TypeAdapter(list[TenantEntry]).validate_python(read_json(self.tenants_path))
        except ValidationError as error:
            lines = [
                f"{'/'.join(map(str, item['loc']))}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            ]
            raise InvalidSettings(f"{self.tenants_path}: {'; '.join(lines)}") from None
        except ValueError as error:
            raise InvalidSettings(str(error)) from None
        if not 1 <= len(entries) <= TENANTS_MAX:
            raise InvalidSettings(f"{self.tenants_path}: 1 to {TENANTS_MAX} institutions")
        share = self.database_pool_size // len(entries)
        if share < POOL_PER_TENANT_MIN:
            raise InvalidSettings(
                f"JIAOZI_WALLET_DATABASE_POOL_SIZE: {len(entries)} institutions need"
                f" {len(entries) * POOL_PER_TENANT_MIN} connections at least"
            )
        found = [self._institution(entry, share) for entry in entries]
        self._check_apart(found)
        return found

    def describe(self) -> dict[str, str]:
        shown = super().describe()
        for one in self.institutions():
            fields = one.describe()
            own = {f"JIAOZI_WALLET_{name.upper()}" for name in TenantEntry.model_fields}
            shown |= {f"{one.participant}.{name}": value for name, value in fields.items() if name in own}
        return shown

    def _institution(self, entry: TenantEntry, share: int) -> WalletSettings:
        """Every field is given, so that nothing comes from the environment."""
        folder = self.tenants_path.parent
        own = entry.model_dump()
        own |= {name: folder / value for name, value in own.items() if isinstance(value, Path)}
        own["public_url"] = entry.public_url or f"{self.public_url.rstrip('/')}/t/{entry.participant}"
        own["data_dir"] = self.data_dir / "tenants" / entry.participant
        own["database_pool_size"] = share
        return WalletSettings(**{**self.model_dump(exclude={"tenants_path"}), **own})

    def _check_apart(self, institutions: list[WalletSettings]) -> None:
        if len({one.participant for one in institutions}) != len(institutions):
            raise InvalidSettings(f"{self.tenants_path}: each institution once")
        _refuse_shared("public_url", ((one.participant, one.public_url.rstrip("/")) for one in institutions))
        paths = ((one.participant, getattr(one, name)) for one in institutions for name in _ITS_OWN)
        _refuse_shared("file", ((participant, str(path.resolve())) for participant, path in paths if path))


def check_keys(institutions: Sequence[WalletSettings]) -> None:
    """The key that signs a request says whose client it is, so it is one institution's; and each signs with its own.

    Raises: OSError, ValueError.
    """
    clients = ((one.participant, key) for one in institutions for key in read_clients(one.clients_path))
    _refuse_shared("client's key", clients)
    own = ((one.participant, load_signing_key(one.signing_key_path).public.thumbprint) for one in institutions)
    _refuse_shared("signing key", own)


def _refuse_shared(what: str, owned: Iterable[tuple[ParticipantId, str]]) -> None:
    owners: dict[str, ParticipantId] = {}
    for participant, value in owned:
        owner = owners.setdefault(value, participant)
        if owner != participant:
            raise InvalidSettings(f"{owner} and {participant} have the same {what}")


def load_settings() -> WalletSettings | TenantsSettings:
    """From the environment: of one institution, or of those in the file that JIAOZI_WALLET_TENANTS_PATH names.

    Raises: InvalidSettings.
    """
    if os.environ.get("JIAOZI_WALLET_TENANTS_PATH"):
        return TenantsSettings.load()
    return WalletSettings.load()


def load_institution(participant: str | None) -> WalletSettings:
    """The settings of one institution, for a command that looks into its part of the database.

    Raises: OSError, InvalidSettings if several are served and none is named, or another.
    """
    settings = load_settings()
    found = [settings] if isinstance(settings, WalletSettings) else settings.institutions()
    if participant is not None:
        found = [one for one in found if one.participant == participant]
    if len(found) != 1:
        raise InvalidSettings("name the institution, one of those that this service serves")
    return found[0]

"""Settings from the environment: frozen, bounded, misspelt names refused, secrets only as paths to files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import SecretBytes, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

_SECRET_WORDS = ("password", "secret", "token", "private")


class InvalidSettings(ValueError):
    """A setting is missing or out of its bounds; the message names the environment variables, never their values."""


class MisspeltSetting(InvalidSettings):
    """The environment has a variable with the service's prefix that is no setting."""


class ServiceSettings(BaseSettings):
    """Base of the services' settings. A service declares its prefix and its fields:

        class LedgerSettings(ServiceSettings):
            model_config = SettingsConfigDict(env_prefix="JIAOZI_LEDGER_")
            database_url: str

    Build it once, with `load()`, and pass it down.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", case_sensitive=False, env_ignore_empty=True)

    @classmethod
    def load(cls, **values: Any) -> Self:
        """From the environment, after checking every variable that begins with the prefix; `values` override it.

        Raises: MisspeltSetting (names the nearest setting), InvalidSettings (names each variable).
        """
        cls.check_environment(os.environ)
        try:
            return cls(**values)
        except ValidationError as error:
            lines = [
                f"{cls._prefix()}{'_'.join(str(part) for part in item['loc']).upper()}: {item['msg']}"
                for item in error.errors(include_url=False, include_input=False)
            ]
            raise InvalidSettings("; ".join(lines)) from None

    @classmethod
    def check_environment(cls, environment: Mapping[str, str]) -> None:
        """Raises MisspeltSetting for a variable with our prefix that is no field."""
        prefix = cls._prefix()
        known = {prefix + name.upper() for name in cls.model_fields}
        for name in sorted(environment):
            if cls._is_ours(name) and name.upper() not in known:
                nearest = difflib.get_close_matches(name.upper(), sorted(known), n=1, cutoff=0.0)
                hint = f"; did you mean {nearest[0]}?" if nearest else ""
                raise MisspeltSetting(f"{name} is not a setting{hint}")

    def describe(self) -> dict[str, str]:
        """Environment variable -> effective value, for the `config` command; secrets and passwords in URLs masked."""
        return {
            self._prefix() + name.upper(): _shown(name, getattr(self, name)) for name in sorted(type(self).model_fields)
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.describe().items())})"

    __str__ = __repr__

    @classmethod
    def _prefix(cls) -> str:
        prefix = str(cls.model_config.get("env_prefix", "")).upper()
        if not prefix:
            raise TypeError(f"{cls.__name__} must set env_prefix")
        return prefix

    @classmethod
    def _is_ours(cls, name: str) -> bool:
        return name.upper().startswith(cls._prefix())


def _shown(name: str, value: Any) -> str:
    if isinstance(value, SecretStr | SecretBytes):
        return "********"
    is_path = name.endswith(("_path", "_file", "_directory"))
    if not is_path and any(word in name for word in _SECRET_WORDS):
        return "********"
    text = str(value)
    if "://" in text:
        parts = urlsplit(text)
        if parts.password is not None:
            account, _, host = parts.netloc.rpartition("@")
            return urlunsplit(parts._replace(netloc=f"{account.partition(':')[0]}:********@{host}"))
    return text

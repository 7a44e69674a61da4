"""Settings of a ledger, from JIAOZI_LEDGER_* (see `jiaozi-ledger config`)."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from kernel.settings import ServiceSettings


class LedgerSettings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="JIAOZI_LEDGER_")

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8100, ge=1, le=65_535)
    public_url: str | None = Field(
        default=None, description="Origin that clients sign for (RFC 9421); http://host:port if unset."
    )
    database_url: str | None = Field(
        default=None, description="postgresql://..., the service's own role; embedded PostgreSQL if unset."
    )
    migration_url: str | None = Field(
        default=None, description="The same database as the tables' owner, for `migrate` alone; database_url if unset."
    )
    data_dir: Path | None = Field(default=None, description="Where the embedded PostgreSQL keeps its cluster.")
    genesis_path: Path | None = Field(default=None, description="Genesis file (JSON), read when the journal is empty.")
    node: str = Field(default="ledger-1", min_length=1, max_length=64, description="This process's name in the lease.")
    lease_seconds: float = Field(
        default=5.0, ge=2, le=300, description="A writer silent for so long loses the lease to a standby."
    )
    verifier_threads: int = Field(default=2, ge=1, le=64, description="Threads that check holders' signatures.")
    answer_seconds_max: float = Field(default=30.0, ge=1, le=300, description="Then a request learns: outcome unknown.")
    log_enabled: bool = Field(default=True, description="Whether transfers are sealed in the transparency log.")
    log_origin: str | None = Field(
        default=None, min_length=1, max_length=255, description="The log's name for ever; the ledger's name if unset."
    )
    log_key_path: Path | None = Field(
        default=None, description="Ed25519 key (PEM, mode 0600) that signs checkpoints; in data_dir if unset."
    )
    log_salt_path: Path | None = Field(
        default=None, description="Master key of the leaves' salts (hex, mode 0600); in data_dir if unset."
    )
    log_seal_seconds: float = Field(default=1.0, ge=0.02, le=60, description="Time between checkpoints under traffic.")
    log_witnesses_path: Path | None = Field(
        default=None, description='JSON: [{"url": ..., "vkey": ...}, ...] of the witnesses that cosign; none if unset.'
    )

    @property
    def origin(self) -> str:
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

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
    database_url: str | None = Field(default=None, description="postgresql://...; embedded PostgreSQL if unset.")
    data_dir: Path | None = Field(default=None, description="Where the embedded PostgreSQL keeps its cluster.")
    genesis_path: Path | None = Field(default=None, description="Genesis file (JSON), read when the journal is empty.")
    node: str = Field(default="ledger-1", min_length=1, max_length=64, description="This process's name in the lease.")
    verifier_threads: int = Field(default=2, ge=1, le=64, description="Threads that check holders' signatures.")
    answer_seconds_max: float = Field(default=30.0, ge=1, le=300, description="Then a request learns: outcome unknown.")

    @property
    def origin(self) -> str:
        return (self.public_url or f"http://{self.host}:{self.port}").rstrip("/")

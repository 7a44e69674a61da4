"""Write the three OpenAPI documents from the code, or check that the committed ones are up to date.

python -m sandbox.openapi            writes openapi/*.v1.yaml
python -m sandbox.openapi --check    exits 1 and names what differs
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI

OPENAPI_DIR = Path(__file__).resolve().parent.parent / "openapi"


def _ledger() -> FastAPI:
    from ledger.api.app import create
    from ledger.settings import LedgerSettings

    return create(LedgerSettings.model_construct())


def _wallet() -> FastAPI:
    from wallet.api.app import create
    from wallet.settings import WalletSettings

    return create(WalletSettings.model_construct())


def _settlement() -> FastAPI:
    from settlement.api.app import create
    from settlement.settings import SettlementSettings

    return create(SettlementSettings.model_construct())


APPS: dict[str, Callable[[], FastAPI]] = {"ledger": _ledger, "wallet": _wallet, "settlement": _settlement}


def document(service: str) -> str:
    """The service's OpenAPI 3.1 document as YAML, the same from run to run."""
    content: dict[str, Any] = APPS[service]().openapi()
    return yaml.safe_dump(content, sort_keys=True, allow_unicode=True, width=110)


def path_of(service: str) -> Path:
    return OPENAPI_DIR / f"{service}.v1.yaml"


def outdated() -> list[str]:
    """Services whose committed document is not what the code says."""
    return [
        service
        for service in APPS
        if not path_of(service).exists() or path_of(service).read_text(encoding="utf-8") != document(service)
    ]


def main() -> None:
    if "--check" in sys.argv[1:]:
        wrong = outdated()
        if wrong:
            sys.stderr.write(f"openapi/ is out of date for: {', '.join(wrong)}; run `make openapi` and commit\n")
            raise SystemExit(1)
        return
    for service in APPS:
        path_of(service).write_text(document(service), encoding="utf-8")


if __name__ == "__main__":
    main()

"""An emulated card issuer for tests, whom banks here trust."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from kernel import ids
from kernel.crypto.keys import PrivateKey, PublicKey
from wallet.hardware.issuer import CardIssuer

ISSUER = "chip-works"
ROOT = PrivateKey.generate()


def issuers_file(folder: Path) -> Path:
    path = folder / "card-issuers.json"
    path.write_text(json.dumps([{"issuer": ISSUER, "key": ROOT.public.to_jwk()}]))
    return path


def attest(key: PublicKey, *, single: int, total: int, now: datetime, serial: str | None = None) -> Sequence[str]:
    return CardIssuer(ISSUER, ROOT, now=now).attest(
        key,
        serial=serial or f"CW-{ids.new_uuid7()}",
        pin_free_single_max_minor=single,
        pin_free_total_max_minor=total,
    )

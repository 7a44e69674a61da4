"""Reads rule packs from the files beside this module."""

from __future__ import annotations

import tomllib
from pathlib import Path

from wallet.domain.rules import RulePack

_DIRECTORY = Path(__file__).parent / "rulepacks"


def rule_pack_names() -> list[str]:
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


def load_rule_pack(name: str) -> RulePack:
    """The validated pack. Raises: LookupError for an unknown name, ValueError for a pack that is not well-formed."""
    if name not in rule_pack_names():
        raise LookupError(f"there is no rule pack {name!r}; known: {', '.join(rule_pack_names())}")
    pack = RulePack.model_validate(tomllib.loads((_DIRECTORY / f"{name}.toml").read_text(encoding="utf-8")))
    if pack.name != name:
        raise ValueError(f"the file {name}.toml holds the pack {pack.name}")
    return pack

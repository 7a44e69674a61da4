"""Reads business calendars from the files beside this module."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from wallet.domain.calendars import BusinessCalendar

_DIRECTORY = Path(__file__).parent / "calendars"


def calendar_names() -> list[str]:
    return sorted(path.stem for path in _DIRECTORY.glob("*.toml"))


@cache
def load_calendar(name: str) -> BusinessCalendar:
    """The validated calendar. Raises: LookupError for an unknown name, ValueError for one that is not well-formed."""
    if name not in calendar_names():
        raise LookupError(f"there is no calendar {name!r}; known: {', '.join(calendar_names())}")
    found = BusinessCalendar.model_validate(tomllib.loads((_DIRECTORY / f"{name}.toml").read_text(encoding="utf-8")))
    if found.name != name:
        raise ValueError(f"the file {name}.toml holds the calendar {found.name}")
    return found

"""Calendars in files: `CUR.toml` for each currency, and `SHA256SUMS` beside them, which pins every byte.

A file that is not pinned, or differs from its pin, is not loaded: a calendar decides when money moves, and a slip of an
editor is to be noticed at start. The digest of SHA256SUMS stands for the whole set; it is recorded with what was
planned by it, and a setting may demand one. Calendars are the operator's own data, so nobody else signs them
(docs/decisions/0022).
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path

from pydantic import ValidationError

from settlement.domain.calendars import Calendar, CalendarSet

DIRECTORY = Path(__file__).parent / "calendars"
SUMS = "SHA256SUMS"
CALENDAR_BYTES_MAX = 256 * 1024
CALENDARS_MAX = 64
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Z]{3}\.toml)", re.ASCII)


class CalendarInvalid(ValueError):
    """The message has one line a fault, each naming the file and the place in it."""


def load_calendars(directory: Path = DIRECTORY, *, sha256: str | None = None) -> CalendarSet:
    """Every calendar of a directory, each as it was pinned; `sha256` is what the set's digest must be, if given.

    Raises: CalendarInvalid.
    """
    sums = _read(directory / SUMS)
    digest = hashlib.sha256(sums).hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise CalendarInvalid(f"{SUMS}: the set's digest is {digest}, the settings demand {sha256}")
    pins = _pins(sums)
    present = {path.name for path in directory.glob("*.toml")}
    if present != set(pins):
        odd = ", ".join(sorted(present ^ set(pins)))
        raise CalendarInvalid(f"{SUMS}: pinned and present differ: {odd}; `jiaozi-settlement calendar pin` writes it")
    calendars: dict[str, Calendar] = {}
    for name, pinned in sorted(pins.items()):
        data = _read(directory / name)
        if hashlib.sha256(data).hexdigest() != pinned:
            raise CalendarInvalid(f"{name}: changed after it was pinned in {SUMS}")
        calendars[name.removesuffix(".toml")] = _parse(name, data)
    return CalendarSet(calendars, digest)


def pin_calendars(directory: Path) -> str:
    """Check every calendar and write SHA256SUMS; returns the set's digest. Raises: CalendarInvalid, OSError."""
    lines = []
    for path in sorted(directory.glob("*.toml")):
        data = _read(path)
        _parse(path.name, data)
        lines.append(f"{hashlib.sha256(data).hexdigest()}  {path.name}\n")
    _pins("".join(lines).encode())
    (directory / SUMS).write_text("".join(lines), encoding="ascii")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pins(sums: bytes) -> dict[str, str]:
    try:
        lines = sums.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise CalendarInvalid(f"{SUMS}: not ASCII") from None
    pins: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in pins:
            raise CalendarInvalid(f"{SUMS}:{number}: not `<sha256>  CUR.toml`, or a file named twice")
        pins[match[2]] = match[1]
    if not 0 < len(pins) <= CALENDARS_MAX:
        raise CalendarInvalid(f"{SUMS}: names {len(pins)} calendars; 1 to {CALENDARS_MAX} are taken")
    return pins


def _parse(name: str, data: bytes) -> Calendar:
    try:
        calendar = Calendar.model_validate(tomllib.loads(data.decode("utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalendarInvalid(f"{name}: no TOML: {error}") from None
    except ValidationError as error:
        raise CalendarInvalid("\n".join(_faults(name, error))) from None
    if name != f"{calendar.currency}.toml":
        raise CalendarInvalid(f"{name}: currency: holds {calendar.currency}; name the file after it")
    return calendar


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(CALENDAR_BYTES_MAX + 1)
    except OSError as error:
        raise CalendarInvalid(f"{path.name}: cannot be read: {error.strerror}") from None
    if len(data) > CALENDAR_BYTES_MAX:
        raise CalendarInvalid(f"{path.name}: larger than {CALENDAR_BYTES_MAX} bytes")
    return data


def _faults(name: str, error: ValidationError) -> list[str]:
    faults = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        place = ".".join(str(part) for part in item["loc"])
        faults.append(f"{name}: {place + ': ' if place else ''}{item['msg'].removeprefix('Value error, ')}")
    return faults

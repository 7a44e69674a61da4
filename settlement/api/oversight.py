"""Calendars and compliance, built once at start: what checks what comes in, and what is done later."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from fractions import Fraction

import sqlalchemy as sa

from kernel.clock import Clock
from kernel.crypto.keys import PublicKey
from kernel.money import Currency
from settlement.calendar_files import DIRECTORY, load_calendars
from settlement.compliance_files import load_hash_key, load_policy
from settlement.domain.compliance import FindRate, ListScreen, Screen
from settlement.domain.fx import Rate, find_rate
from settlement.settings import (
    PACKAGED,
    ClearOutEntry,
    Directory,
    SettlementSettings,
    read_clear_out,
    read_officers,
)
from settlement.usecases.calendars import CalendarCheck, CalendarRules, only_today, open_due_gates
from settlement.usecases.compliance import Compliance, ComplianceCheck, ResidentHasher, end_refused
from settlement.usecases.intake import IntakeCheck
from settlement.usecases.keeper import Pass
from settlement.usecases.screening_http import HttpScreen


@dataclass(frozen=True, slots=True)
class Oversight:
    calendars: CalendarRules | None
    clear_out: Mapping[str, ClearOutEntry]
    """By currency."""
    compliance: Compliance | None
    officers: Mapping[str, tuple[str, PublicKey]]
    """By key thumbprint."""
    checks: tuple[IntakeCheck, ...]
    passes: tuple[Pass, ...]
    close: Callable[[], None]


def build_oversight(settings: SettlementSettings, directory: Directory, clock: Clock) -> Oversight:
    """Raises: ValueError naming the file and what is wrong in it; OSError."""
    rules = _calendars(settings)
    screens: list[Screen] = []
    compliance = _compliance(settings, directory, clock, screens)
    checks: list[IntakeCheck] = []
    passes: list[Pass] = []
    if compliance is not None:
        checks.append(ComplianceCheck(compliance))
        passes.append(end_refused)
    if rules is None:
        checks.append(only_today)
    else:
        checks.append(CalendarCheck(rules))
        passes.append(_due(rules))

    def close() -> None:
        for screen in screens:
            if isinstance(screen, HttpScreen):
                screen.close()

    clear_out = {entry.currency: entry for entry in read_clear_out(settings)}
    if rules is not None:
        _check_returns(clear_out.values(), rules)
    return Oversight(
        calendars=rules,
        clear_out=clear_out,
        compliance=compliance,
        officers={
            PublicKey.from_jwk(entry.key).thumbprint: (entry.officer, PublicKey.from_jwk(entry.key))
            for entry in read_officers(settings)
        },
        checks=tuple(checks),
        passes=tuple(passes),
        close=close,
    )


def _check_returns(entries: Iterable[ClearOutEntry], rules: CalendarRules) -> None:
    """A balance that is returned abroad is not returned. Raises: ValueError."""
    for entry in entries:
        calendar = rules.calendars.calendars.get(entry.currency)
        if calendar is not None and entry.returns_to[4:6] not in calendar.home_countries:
            raise ValueError(f"the clear-out of {entry.currency} returns to {entry.returns_to}, which is foreign there")


def _due(rules: CalendarRules) -> Pass:
    def due(connection: sa.Connection, now: datetime) -> int:
        return open_due_gates(connection, rules, now=now)

    return due


def _calendars(settings: SettlementSettings) -> CalendarRules | None:
    path = settings.calendars_path
    if path is None:
        return None
    directory = DIRECTORY if str(path) == PACKAGED else path
    calendars = load_calendars(directory, sha256=settings.calendars_sha256)
    return CalendarRules(calendars, settings.calendars_rule, settings.calendars_missed_cut_off)


def _compliance(
    settings: SettlementSettings, directory: Directory, clock: Clock, screens: list[Screen]
) -> Compliance | None:
    if settings.compliance_path is None:
        return None
    policy, lists = load_policy(settings.compliance_path)
    if policy.valid_from > clock().date():
        raise ValueError(f"the compliance policy {policy.name} is in force from {policy.valid_from} only")
    if policy.quota and settings.compliance_hash_key_path is None:
        raise ValueError("the compliance policy has a quota: set JIAOZI_SETTLEMENT_COMPLIANCE_HASH_KEY_PATH")
    key_path = settings.compliance_hash_key_path
    hasher = None if key_path is None else ResidentHasher(load_hash_key(key_path))
    screens.append(ListScreen(lists))
    if settings.screening_url is not None:
        screens.append(HttpScreen(settings.screening_url, timeout_seconds=settings.screening_timeout_seconds))
    return Compliance(policy, tuple(screens), hasher, _rates(directory, clock))


def _rates(directory: Directory, clock: Clock) -> FindRate:
    def find(base: Currency, counter: Currency) -> Fraction | None:
        found = find_rate(directory.rates, base=base, counter=counter, at=clock())
        return found.value if isinstance(found, Rate) else None

    return find

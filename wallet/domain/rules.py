"""Rule packs: the dated sets of wallet classes, what evidence opens each class, and its caps.

A pack is data (`wallet/rulepacks/*.toml`), read by `wallet.rulepack_files` and validated here. Caps are written in
major units as a person reads them; a value that no source publishes is marked `assumed`, and the mark is shown
wherever the limit is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from datetime import date
from enum import StrEnum
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kernel.money import Currency, Money
from ledger.contract import RuleClass
from wallet.domain.limits import Caps


class WalletClass(StrEnum):
    """Strength of identity, strongest first."""

    I = "I"  # noqa: E741 - the scheme's own name
    II = "II"
    III = "III"
    IV = "IV"


class Evidence(StrEnum):
    """What the institution has verified of a customer."""

    IN_PERSON = "in-person"
    ID = "id"
    PHONE = "phone"
    BANK_ACCOUNT = "bank-account"


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cap(_Data):
    """`max` in major units of the pack's currency, or "none"."""

    max: Annotated[str, Field(pattern=r"^(none|(0|[1-9][0-9]*)(\.[0-9]+)?)$", max_length=20)]
    assumed: bool = False


class ClassRules(_Data):
    evidence: frozenset[Evidence]
    balance: Cap
    single: Cap
    daily: Cap
    annual: Cap


class DayCount(StrEnum):
    """How a rate a year becomes one a day. A closed list: `wallet.domain.interest` counts in their common divisor."""

    ACTUAL_360 = "actual/360"
    ACTUAL_365 = "actual/365"

    @property
    def days_of_year(self) -> int:
        return 360 if self is DayCount.ACTUAL_360 else 365


class InterestRules(_Data):
    """Interest is exact until it is settled, and rounded then, once, to whole minor units."""

    rate_ppm_per_year: Annotated[int, Field(ge=0, le=1_000_000)]
    classes: frozenset[WalletClass]
    day_count: DayCount
    rounding: Literal["half-even"]
    assumed: bool = False
    """Day count and rounding are published by no source."""
    settled_on_day: Annotated[int, Field(ge=1, le=28)]
    """Of the quarter's last month; that day's closing balance still earns."""
    credited_on_day: Annotated[int, Field(ge=1, le=28)]
    """Of the same month."""

    @model_validator(mode="after")
    def _is_credited_afterwards(self) -> Self:
        if self.credited_on_day <= self.settled_on_day:
            raise ValueError("interest is credited after the day on which it is settled")
        return self


class LiabilityRules(_Data):
    deposit_like: bool
    insured: bool
    bank_balances_in_reserve_base: bool
    non_bank_margin_percent: Annotated[int, Field(ge=0, le=100)]


class RulePack(_Data):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{3,28}$")]
    title: Annotated[str, Field(min_length=1, max_length=80)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    in_force_from: date
    time_zone: str
    demonstration: bool
    source: Annotated[str, Field(min_length=1)]
    evidence_assumed: bool
    classes: Mapping[WalletClass, ClassRules]
    interest: InterestRules | None = None
    liability: LiabilityRules | None = None

    @field_validator("time_zone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"there is no time zone {name!r}") from None
        return name

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if set(self.classes) != set(WalletClass):
            raise ValueError("a pack has the classes I, II, III and IV")
        for wallet_class in WalletClass:
            self.caps(wallet_class)  # every amount has the currency's digits
        ordered = [self.classes[wallet_class].evidence for wallet_class in WalletClass]
        if any(not weaker < stronger for stronger, weaker in itertools.pairwise(ordered)):
            raise ValueError("a stronger class needs all the evidence of the next weaker one, and more")
        return self

    def caps(self, wallet_class: WalletClass) -> Caps:
        rules = self.classes[wallet_class]
        return Caps(
            balance_max_minor=self._minor(rules.balance),
            single_max_minor=self._minor(rules.single),
            day_max_minor=self._minor(rules.daily),
            year_max_minor=self._minor(rules.annual),
        )

    def bears_interest(self, wallet_class: WalletClass) -> bool:
        return self.interest is not None and wallet_class in self.interest.classes

    def highest_class(self, evidence: frozenset[Evidence]) -> WalletClass | None:
        """The strongest class that this evidence opens; None if it opens none."""
        return next((name for name in WalletClass if self.classes[name].evidence <= evidence), None)

    def allows(self, wallet_class: WalletClass, evidence: frozenset[Evidence]) -> bool:
        return self.classes[wallet_class].evidence <= evidence

    def _minor(self, cap: Cap) -> int | None:
        if cap.max == "none":
            return None
        return Money.parse_major(cap.max, Currency.of(self.currency)).amount_minor


CapName = Literal["balance", "single", "daily", "annual"]


def in_force(packs: Sequence[RulePack], day: date) -> RulePack | None:
    """The pack that is in force on a day: the newest of those that have come into force by then."""
    return max((pack for pack in packs if pack.in_force_from <= day), key=lambda pack: pack.in_force_from, default=None)


def rule_class_name(pack: RulePack, wallet_class: WalletClass) -> str:
    """The name under which the ledger knows a class: `ecny-2021-06/II`."""
    return f"{pack.name}/{wallet_class.value}"


def ledger_rule_classes(pack: RulePack) -> list[RuleClass]:
    """The pack's classes for a ledger's genesis or mandates, so that I9 is enforced there too."""
    found = []
    for wallet_class in WalletClass:
        caps = pack.caps(wallet_class)
        found.append(
            RuleClass(
                name=rule_class_name(pack, wallet_class),
                balance_max_minor=caps.balance_max_minor,
                single_max_minor=caps.single_max_minor,
                day_max_minor=caps.day_max_minor,
                year_max_minor=caps.year_max_minor,
            )
        )
    return found

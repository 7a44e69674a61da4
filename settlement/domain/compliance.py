"""The compliance port's pure part: what an instruction says of its ultimate parties, and the rules over it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, datetime
from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Literal, Protocol, Self
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, model_validator

from kernel.money import Currency, Money
from settlement.domain.escrow import LegTerms
from settlement.domain.refusals import SettlementRefusal

NAME_LENGTH_MAX = 140
"""Max140Text, ISO 20022 PartyIdentification/Name."""
IDENTIFIER_LENGTH_MAX = 35
"""Max35Text, ISO 20022 GenericPersonIdentification/Identification."""
LIST_ENTRIES_MAX = 200_000
"""A large consolidated sanctions list has some tens of thousands of entries."""

_COUNTRY = re.compile(r"[A-Z]{2}", re.ASCII)
_LEI = re.compile(r"[A-Z0-9]{18}[0-9]{2}", re.ASCII)
_PURPOSE = re.compile(r"[A-Z0-9]{1,4}", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9 ./-]{0,33}[A-Za-z0-9])?", re.ASCII)


class PartyKind(StrEnum):
    UNKNOWN = ""
    PERSON = "person"
    """A natural person: ISO 20022 Party38Choice/PrvtId."""
    ORGANISATION = "organisation"
    """ISO 20022 Party38Choice/OrgId."""


@dataclass(frozen=True, slots=True)
class ComplianceData:
    """The ultimate debtor and creditor and what the payment is for; "" where the message says nothing.

    pacs.008: `debtor_name` is Dbtr/Nm (UltmtDbtr/Nm if there is one), `debtor_country` its CtryOfRes or PstlAdr/Ctry,
    `debtor_resident_id` its Id/PrvtId/Othr/Id, `debtor_lei` its Id/OrgId/LEI, `purpose` Purp/Cd. Nothing is checked
    here but the shape, by `find_fault`.
    """

    debtor_kind: PartyKind = PartyKind.UNKNOWN
    debtor_name: str = ""
    debtor_country: str = ""
    """ISO 3166-1 alpha-2, of residence."""
    debtor_resident_id: str = ""
    """An identity document's number, unique within the country. Never stored as it is (docs/compliance.md)."""
    debtor_lei: str = ""
    """ISO 17442."""
    creditor_kind: PartyKind = PartyKind.UNKNOWN
    creditor_name: str = ""
    creditor_country: str = ""
    creditor_lei: str = ""
    purpose: str = ""
    """ISO 20022 ExternalPurpose1Code, e.g. GDDS."""

    def __repr__(self) -> str:
        """Which fields are there and never what they say: this is personal data, and reprs end up in logs."""
        return f"ComplianceData({', '.join(field.name for field in fields(self) if getattr(self, field.name))})"


def find_fault(data: ComplianceData) -> str | None:
    """The first field that is not in its standard's shape, as a sentence without its value, or None."""
    for name in ("debtor_name", "creditor_name"):
        if len(getattr(data, name)) > NAME_LENGTH_MAX:
            return f"{name} is longer than {NAME_LENGTH_MAX} characters (Max140Text)"
    shapes = (
        ("debtor_country", _COUNTRY, "a country is two letters of ISO 3166-1"),
        ("creditor_country", _COUNTRY, "a country is two letters of ISO 3166-1"),
        ("debtor_lei", _LEI, "an LEI is 18 letters or digits and two check digits"),
        ("creditor_lei", _LEI, "an LEI is 18 letters or digits and two check digits"),
        ("purpose", _PURPOSE, "a purpose is 1 to 4 capital letters or digits (ExternalPurpose1Code)"),
        ("debtor_resident_id", _IDENTIFIER, "an identity number is 1 to 35 letters, digits, spaces and ./-"),
    )
    for name, shape, sentence in shapes:
        value = getattr(data, name)
        if value and shape.fullmatch(value) is None:
            return f"{name}: {sentence}"
    return None


# --- screening


class Verdict(StrEnum):
    """From the mildest to the strongest; of several screens the strongest counts."""

    PASS = "pass"  # noqa: S105
    REVIEW = "review"
    """Two officers decide; the settlement waits."""
    REFUSE = "refuse"
    """The settlement ends."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is screened: one settlement before it is stored."""

    settlement: UUID
    uetr: UUID
    debtor: str
    """BIC of the institution."""
    creditor: str
    legs: tuple[LegTerms, ...]
    value_date: date
    data: ComplianceData | None
    """None for a payment between institutions on their own account."""

    @property
    def institutions(self) -> tuple[str, ...]:
        """Everybody who pays or is paid in it: debtor, creditor, providers, bridge agents; sorted."""
        of_legs = {party for leg in self.legs for party in (leg.payer, leg.payee)}
        return tuple(sorted(of_legs | {self.debtor, self.creditor}))


@dataclass(frozen=True, slots=True)
class Screening:
    """One screen's answer. `version` names the list and its version; the reason quotes no name that was screened."""

    verdict: Verdict
    reason: str = ""
    version: str = ""
    institutions: Mapping[str, Verdict] | None = None
    """Of each institution by itself, an ultimate party's verdict with its institution's; None: the screen judges the
    payment as a whole, and its verdict is everybody's."""


class Screen(Protocol):
    """The port. `screen` answers each subject in order, is bounded in time, and never raises: an answer that could not
    be had is REVIEW, never PASS."""

    @property
    def name(self) -> str: ...

    def screen(self, subjects: Sequence[Subject], *, on: date) -> list[Screening]: ...


_STRENGTH = {verdict: rank for rank, verdict in enumerate(Verdict)}


def combine(answers: Sequence[Screening]) -> Screening:
    """The strongest verdict, every reason of that strength, and all versions consulted. No screens at all: PASS."""
    if not answers:
        return Screening(Verdict.PASS, "no screens are configured")
    strongest = max((answer.verdict for answer in answers), key=_STRENGTH.__getitem__)
    reasons = [answer.reason for answer in answers if answer.verdict is strongest and answer.reason]
    versions = [answer.version for answer in answers if answer.version]
    return Screening(strongest, "; ".join(reasons), ", ".join(versions))


def verdicts_by_institution(subject: Subject, answers: Sequence[Screening]) -> dict[str, Verdict]:
    """The strongest verdict on each institution of the payment."""
    found = {}
    for party in subject.institutions:
        of_party = [
            answer.verdict if answer.institutions is None else answer.institutions.get(party, Verdict.PASS)
            for answer in answers
        ]
        found[party] = max(of_party, key=_STRENGTH.__getitem__, default=Verdict.PASS)
    return found


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ListedKind(StrEnum):
    NAME = "name"
    BIC = "bic"
    LEI = "lei"
    COUNTRY = "country"


class ListEntry(_Data):
    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9./-]{1,40}$")]
    """The entry's number in its list: reasons name it, and not what it says."""
    kind: ListedKind
    values: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=NAME_LENGTH_MAX)], ...], Field(min_length=1)]
    """Names with their aliases; codes."""
    action: Literal["review", "refuse"]

    @model_validator(mode="after")
    def _has_something_to_match(self) -> Self:
        shapes = {
            ListedKind.BIC: r"[A-Z0-9]{4}[A-Z]{2}[A-Z0-9]{2}(?:[A-Z0-9]{3})?",
            ListedKind.LEI: _LEI.pattern,
            ListedKind.COUNTRY: _COUNTRY.pattern,
        }
        for value in self.values:
            if self.kind is ListedKind.NAME:
                if not name_tokens(value):
                    raise ValueError(f"entry {self.id}: a name without a letter or digit")
            elif re.fullmatch(shapes[self.kind], value, re.ASCII) is None:
                raise ValueError(f"entry {self.id}: {value[:20]!r} has not the shape of a {self.kind.value}")
        return self


class ScreeningList(_Data):
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,40}$")]
    version: Annotated[str, Field(min_length=1, max_length=40)]
    valid_from: date
    source: Annotated[str, Field(min_length=1)]
    entries: Annotated[tuple[ListEntry, ...], Field(max_length=LIST_ENTRIES_MAX)]

    @model_validator(mode="after")
    def _ids_are_unique(self) -> Self:
        if len({entry.id for entry in self.entries}) != len(self.entries):
            raise ValueError("two entries have one id")
        return self


def name_tokens(text: str) -> tuple[str, ...]:
    """A name as it is compared: compatibility forms and accents folded, lower case, words sorted.

    "Müller, Änne" and "anne MULLER" are one name. Letters of other scripts stay what they are; nothing is
    transliterated, and nothing is matched by likeness: a misspelt name is another name. What nobody sees is left out: a
    soft hyphen or a joiner of no width within a word would make two of it.
    """
    folded = unicodedata.normalize("NFKD", text).casefold()
    plain = "".join(
        letter for letter in folded if not unicodedata.combining(letter) and unicodedata.category(letter) != "Cf"
    )
    return tuple(sorted(re.findall(r"[^\W_]+", plain)))


class ListScreen:
    """Dated lists, matched exactly: a BIC (or its first eight characters), an LEI, a country, a name word by word.

    A name that holds all words of a listed name of two words or more, and others besides, is a review whatever the
    entry's action. Countries are those of the parties and of their institutions' BICs.
    """

    def __init__(self, lists: Sequence[ScreeningList]) -> None:
        self._lists = sorted(lists, key=lambda found: (found.name, found.valid_from))
        if len({(found.name, found.valid_from) for found in lists}) != len(lists):
            raise ValueError("two versions of one list are valid from the same day")
        self._indexes = {(found.name, found.valid_from): _Index(found) for found in lists}

    @property
    def name(self) -> str:
        return "lists"

    def screen(self, subjects: Sequence[Subject], *, on: date) -> list[Screening]:
        in_force = {found.name: found for found in self._lists if found.valid_from <= on}
        indexes = [self._indexes[found.name, found.valid_from] for found in in_force.values()]
        versions = ", ".join(f"{found.name} {found.version}" for found in in_force.values())
        return [self._one(subject, indexes, versions) for subject in subjects]

    def _one(self, subject: Subject, indexes: Sequence[_Index], versions: str) -> Screening:
        hits = [hit for index in indexes for hit in index.hits(subject)]
        found = combine([hit for _, hit in hits]) if hits else Screening(Verdict.PASS)
        institutions = {
            party: combine([hit for of, hit in hits if of == party]).verdict for party in {of for of, _ in hits}
        }
        return Screening(found.verdict, found.reason, versions, institutions)


class _Index:
    def __init__(self, found: ScreeningList) -> None:
        self._list = found
        self._codes: dict[tuple[ListedKind, str], ListEntry] = {}
        self._names: dict[tuple[str, ...], ListEntry] = {}
        self._by_word: dict[str, list[tuple[frozenset[str], ListEntry]]] = {}
        for entry in found.entries:
            for value in entry.values:
                if entry.kind is not ListedKind.NAME:
                    self._codes.setdefault((entry.kind, value), entry)
                    continue
                tokens = name_tokens(value)
                self._names.setdefault(tokens, entry)
                if len(tokens) > 1:
                    self._by_word.setdefault(tokens[0], []).append((frozenset(tokens), entry))

    def hits(self, subject: Subject) -> Iterator[tuple[str, Screening]]:
        """With the institution that each concerns, by itself or by the ultimate party on its side."""
        data = subject.data or ComplianceData()
        for side, bic, country, lei, name in (
            ("debtor", subject.debtor, data.debtor_country, data.debtor_lei, data.debtor_name),
            ("creditor", subject.creditor, data.creditor_country, data.creditor_lei, data.creditor_name),
        ):
            for kind, value, what in (
                (ListedKind.BIC, bic, "institution"),
                (ListedKind.BIC, bic[:8] if len(bic) > 8 else "", "institution"),
                (ListedKind.COUNTRY, bic[4:6], "institution's country"),
                (ListedKind.COUNTRY, country, "country"),
                (ListedKind.LEI, lei, "LEI"),
            ):
                entry = self._codes.get((kind, value))
                if entry is not None:
                    yield bic, self._hit(f"{side}'s {what}", entry, Verdict(entry.action))
            if name:
                yield from ((bic, hit) for hit in self._name_hits(side, name))
        for party in subject.institutions:
            if party in (subject.debtor, subject.creditor):
                continue
            for kind, value in ((ListedKind.BIC, party), (ListedKind.BIC, party[:8]), (ListedKind.COUNTRY, party[4:6])):
                entry = self._codes.get((kind, value))
                if entry is not None:
                    yield party, self._hit("another party's institution", entry, Verdict(entry.action))

    def _name_hits(self, side: str, name: str) -> Iterator[Screening]:
        tokens = name_tokens(name)
        exact = self._names.get(tokens)
        if exact is not None:
            yield self._hit(f"{side}'s name", exact, Verdict(exact.action))
        words = set(tokens)
        for word in sorted(words):
            for wanted, entry in self._by_word.get(word, ()):
                if wanted < words and entry is not exact:
                    yield self._hit(f"{side}'s name contains the one", entry, Verdict.REVIEW)

    def _hit(self, what: str, entry: ListEntry, verdict: Verdict) -> Screening:
        listed = f"{self._list.name} {self._list.version}"
        return Screening(verdict, f"{what} of entry {entry.id} of {listed}", listed)


# --- LEI


def is_lei(text: str) -> bool:
    """ISO 17442: 18 letters or digits and two check digits such that the whole is 1 modulo 97 (ISO 7064 MOD 97-10)."""
    return _LEI.fullmatch(text) is not None and int("".join(str(int(letter, 36)) for letter in text)) % 97 == 1


# --- policy


class PurposeRule(_Data):
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    required: bool = False
    allowed: tuple[Annotated[str, Field(pattern=r"^[A-Z0-9]{1,4}$")], ...] = ()
    """Empty: any code of the external list's shape."""


class LeiRule(_Data):
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    required_from: str
    """Major units: an organisation's payment of this amount or more names its LEI."""

    @model_validator(mode="after")
    def _is_an_amount(self) -> Self:
        Money.parse_major(self.required_from, Currency.of(self.currency))
        return self

    @property
    def required_from_minor(self) -> int:
        return Money.parse_major(self.required_from, Currency.of(self.currency)).amount_minor


class QuotaDirection(StrEnum):
    PURCHASE = "purchase"
    """Home money is paid, foreign money received."""
    SALE = "sale"
    """Foreign money is paid, home money received."""


class QuotaRule(_Data):
    """What a natural person who resides in `country` may exchange in a calendar year, each direction on its own."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,40}$")]
    country: Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
    home_currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    counted_in: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
    limit: str
    """Major units of `counted_in`."""
    time_zone: str
    """In which the year begins."""
    directions: Annotated[frozenset[QuotaDirection], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        Currency.of(self.home_currency)
        Money.parse_major(self.limit, Currency.of(self.counted_in))
        try:
            ZoneInfo(self.time_zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{self.time_zone!r} is no time zone of the tz database") from None
        return self

    @property
    def limit_minor(self) -> int:
        return Money.parse_major(self.limit, Currency.of(self.counted_in)).amount_minor

    def year(self, at: datetime) -> int:
        return at.astimezone(ZoneInfo(self.time_zone)).year


class Policy(_Data):
    """The dated rules of a bridge. Its lists are files beside it."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9-]{2,40}$")]
    version: Annotated[str, Field(min_length=1, max_length=40)]
    valid_from: date
    source: Annotated[str, Field(min_length=1)]
    assumed: str = ""
    lists: tuple[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,60}\.toml$")], ...] = ()
    purpose: tuple[PurposeRule, ...] = ()
    lei: tuple[LeiRule, ...] = ()
    quota: tuple[QuotaRule, ...] = ()

    @model_validator(mode="after")
    def _names_each_once(self) -> Self:
        for what, keys in (
            ("purpose", [rule.currency for rule in self.purpose]),
            ("lei", [rule.currency for rule in self.lei]),
            ("quota", [rule.name for rule in self.quota]),
        ):
            if len(keys) != len(set(keys)):
                raise ValueError(f"two rules of [[{what}]] have one key")
        return self


Refused = tuple[SettlementRefusal, str]


def check_data(policy: Policy, subject: Subject) -> Refused | None:
    """The first rule that the ultimate parties' data break; None also for a payment that has no such parties.

    Refuses: compliance-data-invalid, lei-invalid, compliance-data-missing, purpose-required, purpose-not-allowed,
    lei-required. Amounts are those of the first leg, which the debtor pays.
    """
    data = subject.data
    if data is None:
        return None
    if (fault := find_fault(data)) is not None:
        return SettlementRefusal.COMPLIANCE_DATA_INVALID, fault
    for side, lei in (("debtor", data.debtor_lei), ("creditor", data.creditor_lei)):
        if lei and not is_lei(lei):
            return SettlementRefusal.LEI_INVALID, f"the {side}'s LEI"
    currencies = [leg.amount.currency.code for leg in subject.legs]
    for rule in policy.purpose:
        if rule.currency not in currencies:
            continue
        if not data.purpose:
            if rule.required:
                return SettlementRefusal.PURPOSE_REQUIRED, f"{rule.currency} needs a purpose code"
        elif rule.allowed and data.purpose not in rule.allowed:
            return SettlementRefusal.PURPOSE_NOT_ALLOWED, f"{data.purpose} in {rule.currency}"
    paid = subject.legs[0].amount
    lei_rule = next((rule for rule in policy.lei if rule.currency == paid.currency.code), None)
    is_counted = any(rule.home_currency in currencies for rule in policy.quota)
    if data.debtor_kind is PartyKind.UNKNOWN and (lei_rule is not None or is_counted):
        # Who does not say what he is might be either: neither rule is to be escaped by silence.
        return SettlementRefusal.COMPLIANCE_DATA_MISSING, "whether the debtor is a person or an organisation"
    if data.debtor_kind is PartyKind.PERSON and is_counted and not data.debtor_country:
        return SettlementRefusal.COMPLIANCE_DATA_MISSING, "the debtor's country of residence"
    is_nameless = data.debtor_kind is PartyKind.ORGANISATION and not data.debtor_lei
    if lei_rule is not None and is_nameless and paid.amount_minor >= lei_rule.required_from_minor:
        return SettlementRefusal.LEI_REQUIRED, f"from {paid.currency} {lei_rule.required_from} on"
    return None


# --- quota


@dataclass(frozen=True, slots=True)
class QuotaClaim:
    """What one settlement counts towards one resident's year. `counted_minor` is exact, in minor units, a fraction."""

    rule: QuotaRule
    direction: QuotaDirection
    year: int
    counted_minor: Fraction


FindRate = Callable[[Currency, Currency], Fraction | None]
"""Major units of the second currency for one of the first, at the time of the settlement's quote; None if unknown."""


def quota_claim(policy: Policy, subject: Subject, *, at: datetime, find_rate: FindRate) -> QuotaClaim | Refused | None:
    """What a settlement counts, or None. Counted when it comes in, in the year of the rule's own time zone.

    A leg in the counting currency counts as it is; otherwise the debtor's amount at the rate valid now, unrounded.
    Refuses: compliance-data-missing, quota-rate-missing.
    """
    data = subject.data
    if data is None or data.debtor_kind is not PartyKind.PERSON or len(subject.legs) != 2:
        return None
    paid, received = subject.legs[0].amount, subject.legs[1].amount
    for rule in policy.quota:
        home = Currency.of(rule.home_currency)
        if data.debtor_country != rule.country or (paid.currency == home) == (received.currency == home):
            continue
        direction = QuotaDirection.PURCHASE if paid.currency == home else QuotaDirection.SALE
        if direction not in rule.directions:
            continue
        if not data.debtor_resident_id:
            return SettlementRefusal.COMPLIANCE_DATA_MISSING, f"the resident's identity number, for {rule.name}"
        counted = _counted(paid, received, Currency.of(rule.counted_in), find_rate)
        if counted is None:
            return SettlementRefusal.QUOTA_RATE_MISSING, f"neither leg has a rate to {rule.counted_in}"
        return QuotaClaim(rule, direction, rule.year(at), counted)
    return None


def decide_quota(claim: QuotaClaim, *, used_minor: Fraction) -> Refused | None:
    """Refuses: quota-exceeded, with what is left, rounded down to a minor unit for people."""
    limit = claim.rule.limit_minor
    if used_minor + claim.counted_minor <= limit:
        return None
    left = max(0, int(limit - used_minor))
    shown = Money(left, Currency.of(claim.rule.counted_in))
    return SettlementRefusal.QUOTA_EXCEEDED, f"{claim.rule.name} {claim.direction.value} {claim.year}: {shown} is left"


def normalise_resident_id(text: str) -> str:
    """One document, one number, however it is spaced or cased."""
    return re.sub(r"[ ./-]", "", text).upper()


def _counted(paid: Money, received: Money, unit: Currency, find_rate: FindRate) -> Fraction | None:
    for amount in (paid, received):
        if amount.currency == unit:
            return Fraction(amount.amount_minor)
    for amount in (paid, received):
        rate = find_rate(amount.currency, unit)
        if rate is not None:
            return amount.amount_minor * rate * Fraction(10**unit.exponent, 10**amount.currency.exponent)
    return None

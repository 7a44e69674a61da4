"""The condition language of programs: a closed set of declarative nodes, and a pure evaluator that says why not yet.

A condition is data: one operator a table, combined by all, any and not. There are no loops, no arithmetic, no calls and
no names but the template's own parameters, so an evaluation always ends, reads each node once, and gives the same
answer for the same facts. Every operator:

    time     not_before, not_after     a day or moment; days are calendar days of the scheme's time zone
    scene    merchant_category         ISO 18245 code or range ("5411", "5811-5814")
             place                     GB/T 2260 code or its prefix ("33" = the province, "330106" = the district)
             account                   a list of accounts
    amount   amount_at_most
    role     signed                    an event said by n of m named roles
    count    count                     k different deliveries (or "instalment": as many as the instalment's number)
             quiet                     nobody has said an event for so many days
    secret   secret_shown              the counterpart's secret is known

Scene operators speak of a merchant and are allowed only where there is one. Source of the lists: ISO 18245:2023
(merchant category codes), GB/T 2260-2007 (codes of administrative divisions).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from kernel.ids import show_account
from ledger.contract import AccountRef, Amount

DEPTH_MAX = 6
"""Nesting of a condition: a person can still read it."""
NODES_MAX = 64
"""Operators in one condition."""
BRANCHES_MAX = 16
LIST_MAX = 1_000
"""Accounts, categories or places in one list."""
DAYS_MAX = 3_660
"""Ten years."""
COUNT_MAX = 1_000

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
Category = Annotated[str, Field(pattern=r"^[0-9]{4}(-[0-9]{4})?$")]
Place = Annotated[str, Field(pattern=r"^[0-9]{2}([0-9]{2}([0-9]{2})?)?$")]
MerchantCategory = Annotated[str, Field(pattern=r"^[0-9]{4}$", examples=["5411"])]
MerchantPlace = Annotated[str, Field(pattern=r"^[0-9]{6}$", examples=["330106"])]


class Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


# --- the nodes -------------------------------------------------------------------------------------------------------


class DaysAfter(Data):
    """The beginning of the calendar day `days` after the day on which the program was funded."""

    days: Annotated[int, Field(ge=0, le=DAYS_MAX)]
    after: Literal["funded"]


When = DaysAfter | Annotated[str, Field(max_length=32, pattern=r"^[0-9]{4}-")]


class SignedBy(Data):
    """`signers` different roles of `by` have said `event`."""

    event: Name
    by: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)]
    signers: Annotated[int, Field(ge=1, le=16)] = 1

    @model_validator(mode="after")
    def _enough_roles(self) -> SignedBy:
        if len(set(self.by)) != len(self.by) or self.signers > len(self.by):
            raise ValueError("name each role once, and at least as many as must sign")
        return self


class Counted(SignedBy):
    """As many different ordinals of `event` (first delivery, second ...), each said by `signers` roles."""

    at_least: Annotated[int, Field(ge=1, le=COUNT_MAX)] | Literal["instalment"]


class QuietFor(Data):
    """`event` has not been said for `days` calendar days, counted from the last time or from the funding."""

    event: Name
    days: Annotated[int, Field(ge=1, le=DAYS_MAX)]


class All(Data):
    all: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=BRANCHES_MAX)]


class Any_(Data):
    any: Annotated[tuple[Condition, ...], Field(min_length=1, max_length=BRANCHES_MAX)]


class Not(Data):
    not_: Annotated[Condition, Field(alias="not")]


class NotBefore(Data):
    not_before: When


class NotAfter(Data):
    not_after: When


class MerchantCategoryIn(Data):
    merchant_category: Annotated[tuple[Category, ...], Field(min_length=1, max_length=LIST_MAX)]


class PlaceIn(Data):
    place: Annotated[tuple[Place, ...], Field(min_length=1, max_length=LIST_MAX)]


class AccountIn(Data):
    account: Annotated[tuple[AccountRef, ...], Field(min_length=1, max_length=LIST_MAX)]


class AmountAtMost(Data):
    amount_at_most: Amount


class Signed(Data):
    signed: SignedBy


class Count(Data):
    count: Counted


class Quiet(Data):
    quiet: QuietFor


class SecretShown(Data):
    secret_shown: Literal[True]


Condition = (
    All
    | Any_
    | Not
    | NotBefore
    | NotAfter
    | MerchantCategoryIn
    | PlaceIn
    | AccountIn
    | AmountAtMost
    | Signed
    | Count
    | Quiet
    | SecretShown
)
SCENE = (MerchantCategoryIn, PlaceIn, AccountIn)
SAID = (Signed, Count, Quiet, SecretShown)
_LEAVES: Mapping[str, type[Data]] = {
    "not_before": NotBefore,
    "not_after": NotAfter,
    "merchant_category": MerchantCategoryIn,
    "place": PlaceIn,
    "account": AccountIn,
    "amount_at_most": AmountAtMost,
    "signed": Signed,
    "count": Count,
    "quiet": Quiet,
    "secret_shown": SecretShown,
}
_OPERATORS = {"all", "any", "not", *_LEAVES}
for _model in (All, Any_, Not):
    _model.model_rebuild()
_READ: TypeAdapter[Condition] = TypeAdapter(Condition)


class ProgramInvalid(ValueError):
    """A template, its parameters or parties are not acceptable; the message says what to change."""


def read_condition(raw: Any) -> Condition:
    """A condition from TOML or JSON, every parameter already filled in. Raises: ProgramInvalid.

    Depth and size are bounded before anything recursive reads it.
    """
    nodes = 0
    waiting: list[tuple[Any, int]] = [(raw, 1)]
    while waiting:
        node, depth = waiting.pop()
        if not isinstance(node, Mapping) or len(node) != 1 or next(iter(node)) not in _OPERATORS:
            raise ProgramInvalid(f"a condition is a table with one of {', '.join(sorted(_OPERATORS))}")
        nodes += 1
        if depth > DEPTH_MAX or nodes > NODES_MAX:
            raise ProgramInvalid(f"a condition has at most {DEPTH_MAX} levels and {NODES_MAX} operators")
        operator, value = next(iter(node.items()))
        if operator in ("all", "any"):
            if not isinstance(value, (list, tuple)):
                raise ProgramInvalid(f"{operator} takes a list of conditions")
            waiting.extend((part, depth + 1) for part in value)
        elif operator == "not":
            waiting.append((value, depth + 1))
        elif operator in ("not_before", "not_after") and isinstance(value, str) and _parse_time(value) is None:
            raise ProgramInvalid(f"{operator}: expected a date (2026-07-01) or a moment (2026-07-01T00:00:00Z)")
        if operator in _LEAVES:
            try:
                _LEAVES[operator].model_validate(node)
            except ValueError as error:
                raise ProgramInvalid(f"{operator} is not well-formed: {_first_line(error)}") from None
    try:
        return _READ.validate_python(raw)
    except ValueError as error:
        raise ProgramInvalid(f"a condition is not well-formed: {_first_line(error)}") from None


def nodes_of(condition: Condition) -> Iterator[Condition]:
    """The condition and everything below it."""
    yield condition
    if isinstance(condition, All):
        for part in condition.all:
            yield from nodes_of(part)
    elif isinstance(condition, Any_):
        for part in condition.any:
            yield from nodes_of(part)
    elif isinstance(condition, Not):
        yield from nodes_of(condition.not_)


# --- facts and verdicts ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Said:
    """A signed statement that has been taken: who said what, about which delivery, when it was taken."""

    role: str
    event: str
    ordinal: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Scene:
    """The merchant that is to be paid, as the registry has it. `category` is an ISO 18245 code."""

    account: int
    category: str | None
    place: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that a condition can see. `amount_minor` is the instalment's or the purchase's, in minor units."""

    now: datetime
    time_zone: ZoneInfo
    funded_at: datetime
    amount_minor: int
    instalment: int = 1
    said: Sequence[Said] = ()
    scene: Scene | None = None
    is_secret_shown: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a condition holds, in words, and when time alone may next change that (None = never)."""

    holds: bool
    because: str
    changes_at: datetime | None = None
    parts: tuple[Verdict, ...] = field(default=())

    def why_not(self) -> str:
        """One line: the leaves that are in the way. Empty if the condition holds."""
        if self.holds:
            return ""
        open_parts = [part for part in self.parts if not part.holds]
        return "; ".join(part.why_not() or part.because for part in open_parts) if open_parts else self.because


def evaluate(condition: Condition, facts: Facts) -> Verdict:
    """Total and deterministic: every condition that `read_condition` takes has a verdict for any facts."""
    match condition:
        case All():
            parts = tuple(evaluate(part, facts) for part in condition.all)
            return _joined(all(part.holds for part in parts), "all of these", parts)
        case Any_():
            parts = tuple(evaluate(part, facts) for part in condition.any)
            return _joined(any(part.holds for part in parts), "any of these", parts)
        case Not():
            part = evaluate(condition.not_, facts)
            return Verdict(not part.holds, f"not so: {part.because}", part.changes_at)
        case NotBefore():
            start = begins_at(condition.not_before, facts)
            return _timed(facts.now >= start, f"from {_show(start, facts)}", start, facts)
        case NotAfter():
            end = ends_at(condition.not_after, facts)
            return _timed(facts.now < end, f"before {_show(end, facts)}", end, facts)
        case MerchantCategoryIn():
            category = facts.scene.category if facts.scene else None
            holds = category is not None and any(_in_range(category, item) for item in condition.merchant_category)
            wanted = _few(condition.merchant_category)
            return Verdict(holds, f"merchant category {category or 'unknown'}, wanted {wanted}")
        case PlaceIn():
            place = facts.scene.place if facts.scene else None
            holds = place is not None and any(place.startswith(prefix) for prefix in condition.place)
            return Verdict(holds, f"merchant's place {place or 'unknown'}, wanted {_few(condition.place)}")
        case AccountIn():
            account = facts.scene.account if facts.scene else None
            wanted = _few([show_account(item) for item in condition.account])
            shown = "unknown" if account is None else show_account(account)
            return Verdict(account in condition.account, f"merchant {shown}, wanted {wanted}")
        case AmountAtMost():
            most = condition.amount_at_most
            return Verdict(facts.amount_minor <= most, f"amount {facts.amount_minor}, at most {most} minor units")
        case Signed():
            return _signed(condition.signed, facts)
        case Count():
            return _counted(condition.count, facts)
        case Quiet():
            return _quiet(condition.quiet, facts)
        case SecretShown():
            return Verdict(facts.is_secret_shown, "the counterpart's secret is shown")


def begins_at(when: DaysAfter | str, facts: Facts) -> datetime:
    """The moment from which `not_before = when` holds: a day begins at midnight of the scheme's zone."""
    found = _moment(when, facts)
    return found if isinstance(found, datetime) else _midnight(found, facts.time_zone)


def beginning(text: str, time_zone: ZoneInfo) -> datetime:
    """The moment that a day or moment names. Raises: ProgramInvalid."""
    found = _parse_time(text)
    if found is None:
        raise ProgramInvalid(f"{text!r} is no time")
    return found if isinstance(found, datetime) else _midnight(found, time_zone)


def ends_at(when: DaysAfter | str, facts: Facts) -> datetime:
    """The moment from which `not_after = when` no longer holds: a day is included whole."""
    found = _moment(when, facts)
    return found if isinstance(found, datetime) else _midnight(found + timedelta(days=1), facts.time_zone)


# --- helpers ---------------------------------------------------------------------------------------------------------


def _joined(holds: bool, word: str, parts: tuple[Verdict, ...]) -> Verdict:
    changes = [part.changes_at for part in parts if part.changes_at is not None]
    return Verdict(holds, word, min(changes, default=None), parts)


def _timed(holds: bool, because: str, flips_at: datetime, facts: Facts) -> Verdict:
    return Verdict(holds, because, flips_at if flips_at > facts.now else None)


def _signers(event: str, by: Sequence[str], facts: Facts) -> dict[int, set[str]]:
    """Ordinal -> the roles that said the event about it. A role counts once, however often it speaks."""
    found: dict[int, set[str]] = {}
    for said in facts.said:
        if said.event == event and said.role in by:
            found.setdefault(said.ordinal, set()).add(said.role)
    return found


def _signed(wanted: SignedBy, facts: Facts) -> Verdict:
    roles: set[str] = set().union(*_signers(wanted.event, wanted.by, facts).values())
    because = f"{wanted.event!r} signed by {len(roles)} of the {wanted.signers} needed ({', '.join(wanted.by)})"
    return Verdict(len(roles) >= wanted.signers, because)


def _counted(wanted: Counted, facts: Facts) -> Verdict:
    target = facts.instalment if wanted.at_least == "instalment" else wanted.at_least
    complete = sum(len(roles) >= wanted.signers for roles in _signers(wanted.event, wanted.by, facts).values())
    because = f"{wanted.event!r} confirmed {complete} of {target} times by {wanted.signers} of {', '.join(wanted.by)}"
    return Verdict(complete >= target, because)


def _quiet(wanted: QuietFor, facts: Facts) -> Verdict:
    last = max((said.at for said in facts.said if said.event == wanted.event), default=facts.funded_at)
    since = max(last, facts.funded_at).astimezone(facts.time_zone).date()
    start = _midnight(since + timedelta(days=wanted.days), facts.time_zone)
    because = f"no {wanted.event!r} until {_show(start, facts)}"
    return _timed(facts.now >= start, because, start, facts)


def _in_range(category: str, item: str) -> bool:
    low, _, high = item.partition("-")
    return low <= category <= (high or low)


def _few(items: Sequence[str]) -> str:
    shown = ", ".join(items[:4])
    return shown if len(items) <= 4 else f"{shown} and {len(items) - 4} more"


def _show(moment: datetime, facts: Facts) -> str:
    return moment.astimezone(facts.time_zone).isoformat(timespec="minutes")


_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_YEARS = range(2000, 2200)


def _parse_time(text: str) -> date | datetime | None:
    """Years are bounded so that no zone's arithmetic can overflow."""
    try:
        if _DAY.fullmatch(text):
            day = date.fromisoformat(text)
            return day if day.year in _YEARS else None
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None or moment.year not in _YEARS:
            return None
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _moment(when: DaysAfter | str, facts: Facts) -> date | datetime:
    if isinstance(when, DaysAfter):
        return facts.funded_at.astimezone(facts.time_zone).date() + timedelta(days=when.days)
    found = _parse_time(when)
    if found is None:
        raise ProgramInvalid(f"{when!r} is no time")  # read_condition has looked already
    return found


def _midnight(day: date, time_zone: ZoneInfo) -> datetime:
    return datetime.combine(day, time.min, time_zone).astimezone(UTC)


def _first_line(error: ValueError) -> str:
    return " ".join(str(error).split())[:240]

"""Program templates, and what a template makes of its parameters: a plan that decides each hold, purely.

A template is data (`wallet/program_templates/*.toml`): its roles, its events and who may say each, its parameters, and
two conditions: when an instalment is released to the payee, and when it returns to the payer. Whatever is undecided at
the deadline returns. A hold's own expiry in the ledger lies `grace_hours` behind the deadline: if this service is gone
for good, the ledger returns the money by itself.

`replay` decides a hold as a function of the statements and the time alone. It walks through every moment at which
something could change, in order, so the outcome does not depend on when somebody looked: a service that was down over
a release date and the deadline behind it still releases.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, model_validator

from kernel import ids
from kernel.crypto import jws
from kernel.money import AMOUNT_MINOR_MAX, parse_minor
from wallet.domain.programs import (
    COUNT_MAX,
    DAYS_MAX,
    LIST_MAX,
    SAID,
    SCENE,
    AccountIn,
    AmountAtMost,
    Condition,
    Count,
    Data,
    Facts,
    Name,
    NotAfter,
    NotBefore,
    ProgramInvalid,
    Quiet,
    Said,
    Scene,
    SecretShown,
    Signed,
    Verdict,
    beginning,
    evaluate,
    nodes_of,
    read_condition,
)

INSTALMENTS_MAX = 120
"""Ten years of months."""
HOLDS_MAX = 1_000
"""Holds of one program: one linked chain, well inside one ledger batch."""
STAMPS_MAX = 64
"""Holds of one voucher."""
VOUCHERS_MAX = 500
GRACE_HOURS_MAX = 24 * 31
LIFE_DAYS_MAX = DAYS_MAX
"""How far ahead a program's deadline may lie."""
AGREE, ACCEPT = "agree", "accept"
"""Events of every program: the payer has agreed to the terms, another party accepts them."""
PREVIEW_ROLES_EVENTS_MAX = 8
"""Pairs of (role, event) of which a preview tries every subset: 256."""


# --- the template ----------------------------------------------------------------------------------------------------

_Title = Annotated[str, Field(min_length=1, max_length=240)]


class Role(Data):
    title: _Title
    account: bool = False
    """Whether the party is named with an account."""
    optional: bool = False
    """Whether a program may do without it: then nobody speaks for it."""


class Parameter(Data):
    type: Literal["day", "moment", "days", "count", "amount", "text", "categories", "places", "accounts", "hash"]
    title: _Title


class Event(Data):
    """A statement that a party may sign; nobody but these roles may, and no other statement is taken."""

    by: Annotated[tuple[Name, ...], Field(min_length=1, max_length=16)]
    title: _Title


class Instalments(Data):
    min: Annotated[int, Field(ge=1, le=INSTALMENTS_MAX)] = 1
    max: Annotated[int, Field(ge=1, le=INSTALMENTS_MAX)] = 1


class VoucherRules(Data):
    use: Literal["single", "multi"]
    change_to: Literal["issuer", "recipient"]
    """Who is given what a purchase leaves of the holds that it uses."""


Raw = dict[str, Any]


class Template(Data):
    """Validated; `release`, `return` and `merchant` are conditions in which "$name" stands for a parameter."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{2,39}$")]
    version: Annotated[int, Field(ge=1, le=9_999)]
    title: _Title
    summary: Annotated[str, Field(max_length=1_000)]
    kind: Literal["release", "voucher"]
    in_force_from: date
    in_force_until: date | None = None
    """The first day on which no new program may use it."""
    lock: Literal["service", "counterpart"] = "service"
    """Whose secret posts the hold: this service's, or one whose hash the payee gives (delivery versus payment)."""
    deadline: Annotated[str, Field(pattern=r"^\$[a-z][a-z0-9_]*$")] = "$deadline"
    grace_hours: Annotated[int, Field(ge=0, le=GRACE_HOURS_MAX)] = 72
    accepts: Annotated[tuple[Name, ...], Field(max_length=16)] = ()
    """Roles that must accept the terms before the program can be funded."""
    instalments: Instalments = Instalments()
    roles: Annotated[dict[Name, Role], Field(min_length=1, max_length=16)]
    parameters: Annotated[dict[Name, Parameter], Field(max_length=32)]
    events: Annotated[dict[Name, Event], Field(max_length=32, default_factory=dict)]
    release: Raw | None = None
    return_: Annotated[Raw | None, Field(alias="return")] = None
    merchant: Raw | None = None
    """What the registry must say of whoever is paid: of the payee, or of the shop where a voucher is spent."""
    voucher: VoucherRules | None = None

    @model_validator(mode="after")
    def _is_coherent(self) -> Self:
        needed = {"payer"} if self.kind == "voucher" else {"payer", "payee"}
        if not needed <= set(self.roles) or not all(self.roles[role].account for role in needed):
            raise ValueError(f"roles {', '.join(sorted(needed))} are needed, with accounts")
        if any(self.roles[role].optional for role in (*needed, *self.accepts) if role in self.roles):
            raise ValueError("payer, payee and who must accept are not optional")
        said_by = {role for event in self.events.values() for role in event.by}
        if unknown := (said_by | set(self.accepts)) - set(self.roles):
            raise ValueError(f"no such role: {', '.join(sorted(unknown))}")
        if {AGREE, ACCEPT} & set(self.events):
            raise ValueError(f"{AGREE} and {ACCEPT} are events of every program")
        if "payer" in self.accepts:
            raise ValueError("the payer agrees by funding")
        deadline = self.parameters.get(self.deadline[1:])
        if deadline is None or deadline.type != "moment":
            raise ValueError("the deadline is a parameter of type moment")
        if (self.kind == "voucher") != (self.voucher is not None) or (self.kind == "release") != (
            self.release is not None
        ):
            raise ValueError("a release template has [release], a voucher template has [voucher]")
        if self.kind == "voucher" and (self.return_ is not None or self.lock != "service" or self.grace_hours):
            raise ValueError(
                "an unspent voucher returns at its deadline, by the ledger's own expiry: no [return], no grace"
            )
        if self.kind == "release" and self.grace_hours < 1:
            raise ValueError("what is released at the last moment needs at least an hour of grace to be posted")
        if self.voucher is not None and self.voucher.use == "multi":
            step = self.parameters.get("step")
            if step is None or step.type != "amount":
                raise ValueError("a voucher for several purchases needs the parameter step of type amount")
        hashes = [name for name, parameter in self.parameters.items() if parameter.type == "hash"]
        if hashes != (["secret_hash"] if self.lock == "counterpart" else []):
            raise ValueError("exactly a counterpart's lock needs the parameter secret_hash of type hash")
        self._check_conditions()
        return self

    def _check_conditions(self) -> None:
        samples = {name: _SAMPLES[parameter.type] for name, parameter in self.parameters.items()}
        for name, raw, is_scene in (
            ("release", self.release, False),
            ("return", self.return_, False),
            ("merchant", self.merchant, True),
        ):
            if raw is None:
                continue
            condition = read_condition(_fill(raw, samples))
            for node in nodes_of(condition):
                if isinstance(node, SCENE) != is_scene and isinstance(node, (*SCENE, *SAID)):
                    raise ValueError(f"[{name}] {'speaks of the merchant alone' if is_scene else 'has no merchant'}")
                if isinstance(node, (NotBefore, NotAfter, AmountAtMost)) and is_scene:
                    raise ValueError(f"[{name}] speaks of the merchant alone")
                if isinstance(node, SecretShown) and self.lock != "counterpart":
                    raise ValueError(f"[{name}] without a counterpart's lock there is no secret to show")
                for event, by in _mentions(node):
                    known = self.events.get(event)
                    if known is None or not set(by) <= set(known.by):
                        raise ValueError(f"[{name}] {event} is no event that {', '.join(by) or 'anybody'} may say")
        if self.lock == "counterpart" and self.release != {"secret_shown": True}:
            # Whoever has the secret posts at the ledger, whatever a condition says: the template must not pretend.
            raise ValueError("with a counterpart's lock the release is exactly { secret_shown = true }")

    @property
    def sha256(self) -> bytes:
        """Of its canonical JSON: what a program's terms name, so that no other template can take its place."""
        return hashlib.sha256(jws.canonical_json(self.plain())).digest()

    def plain(self) -> Raw:
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def is_in_force(self, day: date) -> bool:
        return self.in_force_from <= day and (self.in_force_until is None or day < self.in_force_until)

    def may_say(self, role: str, event: str) -> bool:
        if event == ACCEPT:
            return role in self.accepts
        return event in self.events and role in self.events[event].by


def _mentions(node: Condition) -> list[tuple[str, tuple[str, ...]]]:
    match node:
        case Signed():
            return [(node.signed.event, node.signed.by)]
        case Count():
            return [(node.count.event, node.count.by)]
        case Quiet():
            return [(node.quiet.event, ())]
        case _:
            return []


_SAMPLES: Mapping[str, Any] = {
    "day": "2026-01-01",
    "moment": "2026-01-01T00:00:00Z",
    "days": 1,
    "count": 1,
    "amount": "1",
    "text": "text",
    "categories": ["5411"],
    "places": ["33"],
    "accounts": [ids.show_account(17)],
    "hash": "00" * 32,
}
"""One acceptable value a type, to check a template's conditions before anybody fills them in."""


# --- parameters ------------------------------------------------------------------------------------------------------

Value = str | int | list[str]


def check_parameters(template: Template, given: Mapping[str, Value]) -> None:
    """Exactly the template's, each of its type. Raises: ProgramInvalid naming what to change."""
    if unknown := sorted(set(given) - set(template.parameters)):
        raise ProgramInvalid(f"the template has no parameter {', '.join(unknown)}")
    if missing := sorted(set(template.parameters) - set(given)):
        raise ProgramInvalid(f"give the parameter {', '.join(missing)}")
    for name, value in given.items():
        kind = template.parameters[name].type
        if not _fits(kind, value):
            raise ProgramInvalid(f"the parameter {name} is no {kind}: {_HINTS[kind]}")


_HINTS = {
    "day": "write 2026-07-01",
    "moment": "write 2026-07-01T00:00:00Z",
    "days": f"a whole number up to {DAYS_MAX}",
    "count": f"a whole number from 1 to {COUNT_MAX}",
    "amount": "digits of minor units, more than 0",
    "text": "up to 140 characters",
    "categories": "a list of ISO 18245 codes",
    "places": "a list of GB/T 2260 codes or prefixes",
    "accounts": "a list of acc_...",
    "hash": "64 hexadecimal digits",
}


def _fits(kind: str, value: Value) -> bool:
    match kind, value:
        case ("days", int()):
            return 0 <= value <= DAYS_MAX
        case ("count", int()):
            return 1 <= value <= COUNT_MAX
        case ("text", str()):
            return 0 < len(value) <= 140
        case ("amount", str()):
            try:
                return 0 < parse_minor(value) <= AMOUNT_MINOR_MAX
            except ValueError:
                return False
        case ("hash", str()):
            return len(value) == 64 and set(value) <= set("0123456789abcdef")
        case ("day" | "moment", str()):
            return (len(value) == 10) == (kind == "day") and _is_read({"not_before": value})
        case ("categories" | "places" | "accounts", list()):
            operator = {"categories": "merchant_category", "places": "place", "accounts": "account"}[kind]
            return 0 < len(value) <= LIST_MAX and _is_read({operator: value})
    return False


def _is_read(raw: Raw) -> bool:
    try:
        read_condition(raw)
    except ProgramInvalid:
        return False
    return True


def _fill(raw: Any, values: Mapping[str, Any]) -> Any:
    """The condition with each "$name" replaced, whole strings only: a parameter can never become an operator."""
    if isinstance(raw, str) and raw.startswith("$"):
        if raw[1:] not in values:
            raise ProgramInvalid(f"the template has no parameter {raw[1:]}")
        return values[raw[1:]]
    if isinstance(raw, Mapping):
        return {key: _fill(value, values) for key, value in raw.items()}
    if isinstance(raw, (list, tuple)):
        return [_fill(value, values) for value in raw]
    return raw


# --- the plan --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """A template with its parameters filled in."""

    template: Template
    release: Condition | None
    return_: Condition | None
    merchant: Condition | None
    deadline: datetime
    """What is undecided then returns."""
    expires_at: datetime
    """Of the holds: the ledger's own backstop."""
    step_minor: int | None


def plan_of(template: Template, parameters: Mapping[str, Value], *, time_zone: ZoneInfo) -> Plan:
    """Raises: ProgramInvalid."""
    check_parameters(template, parameters)
    deadline = beginning(str(parameters[template.deadline[1:]]), time_zone)
    step = parameters.get("step") if template.voucher is not None and template.voucher.use == "multi" else None

    def filled(raw: Raw | None) -> Condition | None:
        return None if raw is None else read_condition(_fill(raw, parameters))

    return Plan(
        template=template,
        release=filled(template.release),
        return_=filled(template.return_),
        merchant=filled(template.merchant),
        deadline=deadline,
        expires_at=deadline + timedelta(hours=template.grace_hours),
        step_minor=None if step is None else parse_minor(str(step)),
    )


def stamps_of(plan: Plan, value_minor: int) -> list[int]:
    """The amounts of a voucher's holds. Raises: ProgramInvalid if the step does not fit the value."""
    if plan.step_minor is None:
        return [value_minor]
    stamps, rest = divmod(value_minor, plan.step_minor)
    if rest or not 0 < stamps <= STAMPS_MAX:
        raise ProgramInvalid(f"a voucher's value is 1 to {STAMPS_MAX} times the step of {plan.step_minor}")
    return [plan.step_minor] * stamps


def stamps_for(free: Sequence[tuple[int, int]], amount_minor: int) -> tuple[list[int], int] | None:
    """Which of the free holds (number, amount; all of one voucher, so of one amount) pay a purchase, and the change.

    The lowest numbers first. None: they do not suffice.
    """
    taken, total = [], 0
    for number, amount in sorted(free):
        if total >= amount_minor:
            break
        taken.append(number)
        total += amount
    return (taken, total - amount_minor) if total >= amount_minor else None


def ordinal_max(plan: Plan, parts: int) -> int:
    """The highest ordinal that a statement may have: as many as can matter, so that nobody can fill the program."""
    counted = [
        node.count.at_least
        for condition in (plan.release, plan.return_)
        if condition is not None
        for node in nodes_of(condition)
        if isinstance(node, Count) and isinstance(node.count.at_least, int)
    ]
    return max([parts, *counted])


Outcome = Literal["release", "return"]


@dataclass(frozen=True, slots=True)
class Decided:
    """What becomes of one hold. `outcome` None: nothing yet, `release` and `return_` say why; `next_at` is when time
    alone may change it, at the latest the deadline."""

    outcome: Outcome | None
    at: datetime
    because: str
    release: Verdict | None
    return_: Verdict | None
    next_at: datetime | None


def replay(
    plan: Plan,
    *,
    amount_minor: int,
    instalment: int,
    funded_at: datetime,
    since: datetime,
    until: datetime,
    said: Sequence[Said],
    time_zone: ZoneInfo,
    is_secret_shown: bool = False,
) -> Decided:
    """Decide a hold that was undecided at `since`, through every moment up to `until` at which something could change.

    At one moment a release comes before a return: what was earned is paid. Bounded by the statements and by the number
    of times in the conditions.
    """
    spoken = sorted({item.at for item in said if since < item.at <= until})
    at = since
    while True:
        facts = Facts(
            now=at,
            time_zone=time_zone,
            funded_at=funded_at,
            amount_minor=amount_minor,
            instalment=instalment,
            said=[item for item in said if item.at <= at],
            is_secret_shown=is_secret_shown,
        )
        decided = _decide_at(plan, facts)
        if decided.outcome is not None:
            return decided
        later = [moment for moment in (decided.next_at, *spoken) if moment is not None and at < moment]
        following = min(later, default=None)
        if following is None or following > until:
            return decided
        at = following


def _decide_at(plan: Plan, facts: Facts) -> Decided:
    release = None if plan.release is None else evaluate(plan.release, facts)
    back = None if plan.return_ is None else evaluate(plan.return_, facts)
    changes = [verdict.changes_at for verdict in (release, back) if verdict is not None]
    next_at = min(
        [moment for moment in (*changes, plan.deadline) if moment is not None and moment > facts.now], default=None
    )
    if facts.now >= plan.deadline:
        return Decided("return", facts.now, "the deadline has passed", release, back, None)
    if release is not None and release.holds:
        return Decided("release", facts.now, _because(release), release, back, None)
    if back is not None and back.holds:
        return Decided("return", facts.now, _because(back), release, back, None)
    return Decided(None, facts.now, "" if release is None else release.why_not(), release, back, next_at)


def _because(verdict: Verdict) -> str:
    """The leaves that made it so."""
    true_parts = [part for part in verdict.parts if part.holds]
    return "; ".join(_because(part) for part in true_parts) if true_parts else verdict.because


def fits_merchant(plan: Plan, scene: Scene, *, amount_minor: int, now: datetime, time_zone: ZoneInfo) -> Verdict:
    """Whether this merchant may be paid under the program."""
    if plan.merchant is None:
        return Verdict(True, "any merchant")
    return evaluate(plan.merchant, Facts(now, time_zone, now, amount_minor, scene=scene))


def speaks_of_merchants(plan: Plan) -> bool:
    """Whether the merchant must be in the registry: its category or place matters, not only its account."""
    return plan.merchant is not None and any(
        isinstance(node, SCENE) and not isinstance(node, AccountIn) for node in nodes_of(plan.merchant)
    )


# --- what happens if -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One hold's end in a preview."""

    number: int
    amount_minor: int
    outcome: Outcome
    at: datetime
    because: str


@dataclass(frozen=True, slots=True)
class Range:
    """The least and the most that the payee may be given, over everything that the others may say or leave unsaid."""

    released_min_minor: int
    released_max_minor: int
    is_exhaustive: bool
    """Every combination of statements was tried; false: there are too many, and the bounds are 0 and everything."""


def preview(
    plan: Plan,
    amounts: Sequence[int],
    *,
    funded_at: datetime,
    said: Sequence[Said],
    time_zone: ZoneInfo,
    is_secret_shown: bool = False,
) -> list[Step]:
    """The schedule if exactly these statements are made: each hold's end, in order of time."""
    steps = []
    for number, amount in enumerate(amounts, start=1):
        decided = replay(
            plan,
            amount_minor=amount,
            instalment=number,
            funded_at=funded_at,
            since=funded_at,
            until=plan.deadline,
            said=said,
            time_zone=time_zone,
            is_secret_shown=is_secret_shown,
        )
        steps.append(Step(number, amount, decided.outcome or "return", decided.at, decided.because))
    return sorted(steps, key=lambda step: (step.at, step.number))


def worst_cases(plan: Plan, amounts: Sequence[int], *, funded_at: datetime, time_zone: ZoneInfo) -> Range:
    """Try every subset of (role, event): each is said about all instalments at once, at the start, or never."""
    if plan.template.kind == "voucher":
        return Range(0, sum(amounts), True)
    pairs = [(role, event) for event, rule in plan.template.events.items() for role in rule.by]
    if len(pairs) > PREVIEW_ROLES_EVENTS_MAX:
        return Range(0, sum(amounts), False)
    released = []
    for subset in _subsets(pairs):
        said = [Said(role, event, n, funded_at) for role, event in subset for n in range(1, len(amounts) + 1)]
        for is_shown in (False, True) if plan.template.lock == "counterpart" else (False,):
            steps = preview(
                plan, amounts, funded_at=funded_at, said=said, time_zone=time_zone, is_secret_shown=is_shown
            )
            released.append(sum(step.amount_minor for step in steps if step.outcome == "release"))
    return Range(min(released), max(released), True)


def _subsets(pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[tuple[str, str], ...]]:
    return itertools.chain.from_iterable(itertools.combinations(pairs, size) for size in range(len(pairs) + 1))

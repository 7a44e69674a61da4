"""Reconciliation: our lines of an account against the counterparty's, every difference a typed break.

Recipe (each line ends in exactly one match or one break):
1. Duplicates within a side: a reference that occurs again, or the same payment (UETR, or else end-to-end id)
   booked again in the
   same direction and amount more often than the other side has it. The line that the other side knows survives.
2. Exact matching, in passes by UETR, by end-to-end id, by reference. A pair that differs is one break, named after
   the first
   difference in the order currency, direction, amount, status, value date; the others are listed in `also`.
3. Lines that share an id with several candidates and fit none of them: one `ambiguous` break for the group.
4. Composite matching of what is left, on currency, amount, direction and value date, where there is exactly one
   candidate on either
   side. Ids that contradict each other rule a candidate out: two payments of one amount on one day are two payments.
5. What remains is missing on the other side.

Signs: a line's value is positive for a credit of the account as *we* see it. `difference_minor` of a break is
theirs minus ours, so it
is what our books lack to agree with theirs. Gross value is added up without sign and never netted.
Pure and linear in the number of lines (sorting apart). Amounts are minor units of the break's currency.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import StrEnum

from kernel.money import Currency, Money, format_minor
from settlement.domain.statements import (
    NOT_PROVIDED,
    Direction,
    Statement,
    StatementEntry,
    booked_net_minor,
    summarise,
)


class BreakType(StrEnum):
    """Every way in which two sets of books disagree. Members up to VALUE_DATE are in order of precedence within a
    pair."""

    CURRENCY = "currency"
    DIRECTION = "direction"
    AMOUNT = "amount"
    STATUS = "status"
    VALUE_DATE = "value-date"
    DUPLICATE = "duplicate"
    AMBIGUOUS = "ambiguous"
    MISSING_AT_COUNTERPARTY = "missing-at-counterparty"
    MISSING_IN_OURS = "missing-in-ours"
    SEQUENCE_GAP = "sequence-gap"
    OPENING_NOT_PREVIOUS_CLOSING = "opening-not-previous-closing"
    CLOSING_NOT_OPENING_PLUS_ENTRIES = "closing-not-opening-plus-entries"
    ENTRY_COUNT = "entry-count"


class Side(StrEnum):
    """Whose line."""

    OURS = "ours"
    THEIRS = "theirs"


class View(StrEnum):
    """What the counterparty's statement shows."""

    SAME_ACCOUNT = "same-account"
    """A copy of the statement of the same account: their credit is our credit."""
    MIRROR = "mirror"
    """Their own account of the same relation (nostro against vostro): their debit is our credit."""


class MatchRule(StrEnum):
    """What a match rests on, strongest first."""

    UETR = "uetr"
    END_TO_END_ID = "end-to-end-id"
    REFERENCE = "reference"
    COMPOSITE = "composite"


class AgeBucket(StrEnum):
    DAYS_0_1 = "0-1"
    DAYS_2_5 = "2-5"
    DAYS_6_30 = "6-30"
    DAYS_OVER_30 = ">30"


@dataclass(frozen=True, slots=True)
class Match:
    """Two lines that agree in every compared field."""

    ours: StatementEntry
    theirs: StatementEntry
    rule: MatchRule

    @property
    def is_certain(self) -> bool:
        """Rests on an id; a composite match is a suggestion that a person may undo."""
        return self.rule is not MatchRule.COMPOSITE


@dataclass(frozen=True, slots=True)
class Break:
    """One disagreement."""

    type: BreakType
    our_references: tuple[str, ...]
    their_references: tuple[str, ...]
    ours: Money | None
    """Our amount; None where we have no line, or several."""
    theirs: Money | None
    difference_minor: int | None
    """Theirs minus ours, signed; None if the currencies differ or there is nothing to subtract."""
    gross_minor: tuple[tuple[Currency, int], ...]
    """The value in question, without sign; one item a currency. (An int: a sum may exceed what one `Money` holds.)"""
    age_days: int
    bucket: AgeBucket
    sentence: str
    """For a person: what differs, and by how much."""
    side: Side | None = None
    """Whose books hold the duplicate; None for other types."""
    also: tuple[BreakType, ...] = ()
    """Further differences of the same pair, of lower precedence."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts and gross values of one reconciliation."""

    lines_ours: int
    lines_theirs: int
    matched: int
    matched_by_rule: Mapping[MatchRule, int]
    breaks_by_type: Mapping[BreakType, int]
    breaks_by_bucket: Mapping[AgeBucket, int]
    gross_minor_by_currency: Mapping[str, int]
    """Value of all breaks by ISO 4217 code, in minor units, never netted."""


@dataclass(frozen=True, slots=True)
class ReconciliationResult:
    """Matches in the order of our lines; breaks by type, then value date, then reference."""

    matched: tuple[Match, ...]
    breaks: tuple[Break, ...]
    totals: Totals


@dataclass(slots=True)
class _Line:
    """An entry at its place; `direction` and `signed_minor` are as seen from our side."""

    position: int
    entry: StatementEntry
    direction: Direction
    signed_minor: int
    end_to_end_id: str | None
    terms: tuple[Hashable, ...]
    """Every compared field: two lines with equal terms agree."""
    is_done: bool = False


def reconcile(
    ours: Sequence[StatementEntry],
    theirs: Sequence[StatementEntry],
    *,
    as_of: date,
    view: View = View.SAME_ACCOUNT,
) -> ReconciliationResult:
    """Match the lines of one account and period. `as_of` is the day that ages are counted to.

    Refuses nothing: any two sets of lines have a result. See the module's docstring for the recipe.
    """
    run = _Run(
        [_line(position, entry, mirrored=False) for position, entry in enumerate(ours)],
        [_line(position, entry, mirrored=view is View.MIRROR) for position, entry in enumerate(theirs)],
        as_of=as_of,
    )
    run.find_duplicates()  # 1
    run.match_by(MatchRule.UETR, lambda line: line.entry.uetr)  # 2
    run.match_by(MatchRule.END_TO_END_ID, lambda line: line.end_to_end_id)
    run.match_by(MatchRule.REFERENCE, lambda line: line.entry.reference)
    run.find_ambiguous(lambda line: line.entry.uetr, _any)  # 3
    run.find_ambiguous(lambda line: line.end_to_end_id, _not_two_uetrs)
    run.match_composite()  # 4
    run.find_missing()  # 5
    return run.result()


def reconcile_statements(
    ours: Statement,
    theirs: Statement,
    *,
    as_of: date,
    previous_theirs: Statement | None = None,
    view: View = View.SAME_ACCOUNT,
) -> ReconciliationResult:
    """`reconcile` for the lines, and the breaks within the counterparty's statement itself."""
    lines = reconcile(ours.entries, theirs.entries, as_of=as_of, view=view)
    found = check_statement(theirs, previous=previous_theirs, as_of=as_of)
    return _result(lines.matched, (*lines.breaks, *found), len(ours.entries), len(theirs.entries))


def check_statement(statement: Statement, *, as_of: date, previous: Statement | None = None) -> tuple[Break, ...]:
    """Does the statement add up, and does it follow from the one before? Statement-level breaks, at most one a type."""
    age_days = max(0, (as_of - statement.to_at.date()).days)
    currency = statement.currency
    name = f"Statement {statement.statement_id}"

    def found(kind: BreakType, difference_minor: int | None, sentence: str) -> Break:
        gross = ((currency, abs(difference_minor)),) if difference_minor else ()
        references = (statement.statement_id,)
        bucket = age_bucket(age_days)
        return Break(kind, (), references, None, None, difference_minor, gross, age_days, bucket, f"{name} {sentence}")

    breaks: list[Break] = []
    if previous is not None and statement.sequence_number != previous.sequence_number + 1:
        sentence = f"has number {statement.sequence_number}; the one before has {previous.sequence_number}."
        breaks.append(found(BreakType.SEQUENCE_GAP, None, sentence))
    if previous is not None and statement.opening_minor != previous.closing_minor:
        sentence = (
            f"opens with {_show(statement.opening_minor, currency)}, "
            f"the one before closed with {_show(previous.closing_minor, currency)}."
        )
        difference = statement.opening_minor - previous.closing_minor
        breaks.append(found(BreakType.OPENING_NOT_PREVIOUS_CLOSING, difference, sentence))
    expected = statement.opening_minor + booked_net_minor(statement.entries)
    if statement.closing_minor != expected:
        sentence = (
            f"closes with {_show(statement.closing_minor, currency)}, its lines lead to {_show(expected, currency)}."
        )
        breaks.append(found(BreakType.CLOSING_NOT_OPENING_PLUS_ENTRIES, statement.closing_minor - expected, sentence))
    if statement.summary is not None:
        declared, actual = statement.summary, summarise(statement.entries)
        pairs = (
            ("entries", declared.entry_count, actual.entry_count),
            ("credits", declared.credit_count, actual.credit_count),
            ("debits", declared.debit_count, actual.debit_count),
            ("minor units of entries", declared.entry_sum_minor, actual.entry_sum_minor),
            ("minor units of credits", declared.credit_sum_minor, actual.credit_sum_minor),
            ("minor units of debits", declared.debit_sum_minor, actual.debit_sum_minor),
        )
        wrong = [
            f"{says} {what} but holds {holds}" for what, says, holds in pairs if says is not None and says != holds
        ]
        if wrong:
            breaks.append(found(BreakType.ENTRY_COUNT, None, f"declares {'; '.join(wrong)}."))
    return tuple(breaks)


def age_bucket(age_days: int) -> AgeBucket:
    """0-1, 2-5, 6-30, more than 30 days."""
    if age_days <= 1:
        return AgeBucket.DAYS_0_1
    if age_days <= 5:
        return AgeBucket.DAYS_2_5
    return AgeBucket.DAYS_6_30 if age_days <= 30 else AgeBucket.DAYS_OVER_30


class _Run:
    """The state of one reconciliation: which lines are still open."""

    def __init__(self, ours: list[_Line], theirs: list[_Line], *, as_of: date) -> None:
        self._ours = ours
        self._theirs = theirs
        self._as_of = as_of
        self._matches: list[tuple[int, Match]] = []
        self._breaks: list[Break] = []

    def find_duplicates(self) -> None:
        known_ours = Counter(_repeat_key(line) for line in self._ours)
        known_theirs = Counter(_repeat_key(line) for line in self._theirs)
        for side, lines, others, known in (
            (Side.OURS, self._ours, self._theirs, known_theirs),
            (Side.THEIRS, self._theirs, self._ours, known_ours),
        ):
            terms_there = {_full_key(line) for line in others}
            references_there = {line.entry.reference for line in others}

            # The line that the other side knows survives; among equals the first.
            def rank(
                line: _Line,
                terms_there: set[Hashable] = terms_there,
                references_there: set[str] = references_there,
            ) -> tuple[bool, bool, int]:
                return (
                    _full_key(line) not in terms_there,
                    line.entry.reference not in references_there,
                    line.position,
                )

            for group in _groups(lines, lambda line: line.entry.reference):
                for surplus in sorted(group, key=rank)[1:]:
                    self._duplicate(side, surplus)
            for group in _groups(lines, _repeat_key):
                allowed = max(1, known[_repeat_key(group[0])])
                for surplus in sorted(group, key=rank)[allowed:]:
                    self._duplicate(side, surplus)

    def match_by(self, rule: MatchRule, key: Callable[[_Line], Hashable | None]) -> None:
        theirs_by_key = _index(self._theirs, key)
        if not theirs_by_key:
            return
        for value, ours in _index(self._ours, key).items():
            theirs = theirs_by_key.get(value)
            if theirs is None:
                continue
            if len(ours) == 1 and len(theirs) == 1:
                if rule is not MatchRule.END_TO_END_ID or not _uetrs_differ(ours[0], theirs[0]):
                    self._pair(ours[0], theirs[0], rule)
                continue
            self._match_group(ours, theirs, rule)

    def _match_group(self, ours: list[_Line], theirs: list[_Line], rule: MatchRule) -> None:
        """Several lines share an id (a payment and its return do): pair those that agree, then a single pair left
        over."""
        for exact in (_same_line_key, lambda line: (line.entry.uetr, line.terms)):
            waiting: dict[Hashable, list[_Line]] = defaultdict(list)
            for line in reversed(theirs):
                if not line.is_done:
                    waiting[exact(line)].append(line)
            for line in ours:
                candidates = waiting.get(exact(line))
                if not line.is_done and candidates:
                    self._pair(line, candidates.pop(), rule)
        if rule is MatchRule.END_TO_END_ID:
            # A line without UETR may belong to one with: settle it only if nothing else could.
            self._pair_last(ours, theirs, rule, lambda line: line.terms)
        self._pair_last(ours, theirs, rule, lambda line: line.direction)
        self._pair_last(ours, theirs, rule, lambda line: None)

    def _pair_last(
        self, ours: list[_Line], theirs: list[_Line], rule: MatchRule, key: Callable[[_Line], Hashable]
    ) -> None:
        """Pair the open lines of a group where exactly one on either side has a key and no id speaks against it."""
        left: dict[Hashable, tuple[list[_Line], list[_Line]]] = {}
        for side, lines in enumerate((ours, theirs)):
            for line in lines:
                if not line.is_done:
                    left.setdefault(key(line), ([], []))[side].append(line)
        for a, b in left.values():
            if len(a) == 1 and len(b) == 1 and not (rule is MatchRule.END_TO_END_ID and _uetrs_differ(a[0], b[0])):
                self._pair(a[0], b[0], rule)

    def find_ambiguous(
        self, key: Callable[[_Line], Hashable | None], fits: Callable[[_Profile, _Profile], bool]
    ) -> None:
        theirs_by_key = _index(self._theirs, key)
        for value, ours in _index(self._ours, key).items():
            self._ambiguous(*_candidates(ours, theirs_by_key.get(value, []), fits))

    def match_composite(self) -> None:
        theirs_by_key = _index(self._theirs, _composite_key)
        for value, ours in _index(self._ours, _composite_key).items():
            a, b = _candidates(ours, theirs_by_key.get(value, []), _may_be_same)
            if not a or not b:
                continue
            # Counted by which ids a line has, so that a thousand equal amounts on one day cost a thousand steps.
            count_a = Counter(_profile(line) for line in a)
            count_b = Counter(_profile(line) for line in b)
            single_a = {_profile(line): line for line in a}
            pairs: list[tuple[_Line, _Line]] = []
            for line in b:
                fitting = [p for p in count_a if _may_be_same(p, _profile(line))]
                if sum(count_a[p] for p in fitting) != 1:
                    continue
                partner = single_a[fitting[0]]
                if sum(n for p, n in count_b.items() if _may_be_same(_profile(partner), p)) == 1:
                    pairs.append((partner, line))
            for partner, line in pairs:
                self._pair(partner, line, MatchRule.COMPOSITE)
            self._ambiguous([x for x in a if not x.is_done], [x for x in b if not x.is_done])

    def find_missing(self) -> None:
        for kind, lines, where in (
            (BreakType.MISSING_AT_COUNTERPARTY, self._ours, "the counterparty's statement does not have it"),
            (BreakType.MISSING_IN_OURS, self._theirs, "we do not have it"),
        ):
            for line in lines:
                if not line.is_done:
                    is_ours = kind is BreakType.MISSING_AT_COUNTERPARTY
                    difference = -line.signed_minor if is_ours else line.signed_minor
                    sentence = f"{_describe(line)}: {where}."
                    self._break(kind, [line] if is_ours else [], [] if is_ours else [line], difference, sentence)

    def result(self) -> ReconciliationResult:
        self._matches.sort(key=lambda item: item[0])
        matches = tuple(match for _, match in self._matches)
        return _result(matches, self._breaks, len(self._ours), len(self._theirs))

    def _pair(self, ours: _Line, theirs: _Line, rule: MatchRule) -> None:
        differences = _differences(ours, theirs)
        if not differences:
            ours.is_done = theirs.is_done = True
            self._matches.append((ours.position, Match(ours.entry, theirs.entry, rule)))
            return
        kind = differences[0]
        a, b = ours.entry, theirs.entry
        difference = None if kind is BreakType.CURRENCY else theirs.signed_minor - ours.signed_minor
        texts = {
            BreakType.CURRENCY: f"the currency is {a.amount.currency} with us and {b.amount.currency} with them",
            BreakType.DIRECTION: f"it is a {_word(ours.direction)} with us and a {_word(theirs.direction)} with them",
            BreakType.AMOUNT: f"the amount is {a.amount} with us and {b.amount} with them",
            BreakType.STATUS: f"the status is {a.status.value} with us and {b.status.value} with them",
            BreakType.VALUE_DATE: f"the value date is {a.value_date} with us and {b.value_date} with them",
        }
        sentence = f"{_describe(ours)}: {', '.join(texts[item] for item in differences)}."
        self._break(kind, [ours], [theirs], difference, sentence, also=tuple(differences[1:]))

    def _duplicate(self, side: Side, line: _Line) -> None:
        if line.is_done:
            return
        if side is Side.OURS:
            sentence = f"{_describe(line)}: we have it more than once."
            self._break(BreakType.DUPLICATE, [line], [], -line.signed_minor, sentence, side=side)
        else:
            sentence = f"{_describe(line)}: the counterparty's statement has it more than once."
            self._break(BreakType.DUPLICATE, [], [line], line.signed_minor, sentence, side=side)

    def _ambiguous(self, ours: list[_Line], theirs: list[_Line]) -> None:
        if not ours or not theirs:
            return
        codes = {line.entry.amount.currency for line in (*ours, *theirs)}
        difference = None
        if len(codes) == 1:
            difference = sum(line.signed_minor for line in theirs) - sum(line.signed_minor for line in ours)
        sentence = (
            f"{_describe(ours[0])}: {len(ours)} of our lines and {len(theirs)} of theirs could belong together; "
            "nothing says which."
        )
        self._break(BreakType.AMBIGUOUS, ours, theirs, difference, sentence)

    def _break(
        self,
        kind: BreakType,
        ours: list[_Line],
        theirs: list[_Line],
        difference_minor: int | None,
        sentence: str,
        *,
        side: Side | None = None,
        also: tuple[BreakType, ...] = (),
    ) -> None:
        lines = [*ours, *theirs]
        for line in lines:
            line.is_done = True
        age_days = max(0, *((self._as_of - line.entry.value_date).days for line in lines))
        self._breaks.append(
            Break(
                kind,
                tuple(line.entry.reference for line in ours),
                tuple(line.entry.reference for line in theirs),
                ours[0].entry.amount if len(ours) == 1 else None,
                theirs[0].entry.amount if len(theirs) == 1 else None,
                difference_minor,
                _gross(kind, ours, theirs, difference_minor),
                age_days,
                age_bucket(age_days),
                sentence,
                side,
                also,
            )
        )


def _line(position: int, entry: StatementEntry, *, mirrored: bool) -> _Line:
    direction = entry.direction.opposite if mirrored else entry.direction
    end_to_end_id = None if entry.end_to_end_id in (None, "", NOT_PROVIDED) else entry.end_to_end_id
    signed_minor = entry.amount.amount_minor if direction is Direction.CREDIT else -entry.amount.amount_minor
    terms = (entry.amount.currency.code, direction, entry.amount.amount_minor, entry.status, entry.value_date)
    return _Line(position, entry, direction, signed_minor, end_to_end_id, terms)


def _index(lines: list[_Line], key: Callable[[_Line], Hashable | None]) -> dict[Hashable, list[_Line]]:
    """Open lines by key, in their order; lines without the key are left out."""
    found: dict[Hashable, list[_Line]] = {}
    for line in lines:
        if not line.is_done:
            value = key(line)
            if value is not None:
                found.setdefault(value, []).append(line)
    return found


def _groups(lines: list[_Line], key: Callable[[_Line], Hashable | None]) -> list[list[_Line]]:
    return [group for group in _index(lines, key).values() if len(group) > 1]


def _repeat_key(line: _Line) -> Hashable | None:
    """One payment booked twice under two references has the same id, direction and amount."""
    identity = line.entry.uetr or line.end_to_end_id
    return None if identity is None else (identity, *line.terms[:3])


def _full_key(line: _Line) -> Hashable:
    return (line.entry.uetr, line.end_to_end_id, line.terms)


def _same_line_key(line: _Line) -> Hashable:
    return (line.entry.reference, line.entry.uetr, line.terms)


def _composite_key(line: _Line) -> Hashable:
    return (*line.terms[:3], line.entry.value_date)


def _uetrs_differ(a: _Line, b: _Line) -> bool:
    return a.entry.uetr is not None and b.entry.uetr is not None and a.entry.uetr != b.entry.uetr


_Profile = tuple[bool, bool]


def _profile(line: _Line) -> _Profile:
    """Which ids the line has: UETR, end-to-end id."""
    return (line.entry.uetr is not None, line.end_to_end_id is not None)


def _may_be_same(a: _Profile, b: _Profile) -> bool:
    """Open lines with no kind of id in common. (Had they one in common, equal ids would have met before this.)"""
    return not (a[0] and b[0]) and not (a[1] and b[1])


def _any(a: _Profile, b: _Profile) -> bool:
    return True


def _not_two_uetrs(a: _Profile, b: _Profile) -> bool:
    """Open lines with one end-to-end id that both have a UETR have different ones: two payments."""
    return not (a[0] and b[0])


def _candidates(
    ours: list[_Line], theirs: list[_Line], fits: Callable[[_Profile, _Profile], bool]
) -> tuple[list[_Line], list[_Line]]:
    """Lines of either side that have at least one candidate on the other."""
    profiles_ours = {_profile(line) for line in ours}
    profiles_theirs = {_profile(line) for line in theirs}
    a = [line for line in ours if any(fits(_profile(line), other) for other in profiles_theirs)]
    b = [line for line in theirs if any(fits(other, _profile(line)) for other in profiles_ours)]
    return a, b


def _differences(ours: _Line, theirs: _Line) -> list[BreakType]:
    """What differs in a pair, in order of precedence. Amounts of two currencies are not compared."""
    a, b = ours.entry, theirs.entry
    found: list[BreakType] = []
    if a.amount.currency != b.amount.currency:
        found.append(BreakType.CURRENCY)
    if ours.direction is not theirs.direction:
        found.append(BreakType.DIRECTION)
    if BreakType.CURRENCY not in found and a.amount.amount_minor != b.amount.amount_minor:
        found.append(BreakType.AMOUNT)
    if a.status is not b.status:
        found.append(BreakType.STATUS)
    if a.value_date != b.value_date:
        found.append(BreakType.VALUE_DATE)
    return found


def _gross(
    kind: BreakType, ours: list[_Line], theirs: list[_Line], difference_minor: int | None
) -> tuple[tuple[Currency, int], ...]:
    """The value in question. A wrong date or status puts the whole amount in question, a wrong amount the
    difference."""
    if kind in (BreakType.AMOUNT, BreakType.DIRECTION) and difference_minor:
        return ((ours[0].entry.amount.currency, abs(difference_minor)),)
    by_currency: dict[Currency, int] = {}
    for lines in (ours, theirs):
        sums: dict[Currency, int] = defaultdict(int)
        for line in lines:
            sums[line.entry.amount.currency] += line.entry.amount.amount_minor
        for currency, amount_minor in sums.items():
            by_currency[currency] = max(by_currency.get(currency, 0), amount_minor)
    return tuple(sorted(by_currency.items()))


def _result(
    matched: Sequence[Match], breaks: Sequence[Break], lines_ours: int, lines_theirs: int
) -> ReconciliationResult:
    rank = {kind: number for number, kind in enumerate(BreakType)}
    ordered = tuple(
        sorted(breaks, key=lambda x: (rank[x.type], -x.age_days, x.our_references, x.their_references, x.sentence))
    )
    gross: dict[str, int] = defaultdict(int)
    for found in ordered:
        for currency, amount_minor in found.gross_minor:
            gross[currency.code] += amount_minor
    totals = Totals(
        lines_ours,
        lines_theirs,
        len(matched),
        {rule: n for rule in MatchRule if (n := sum(1 for match in matched if match.rule is rule))},
        {kind: n for kind in BreakType if (n := sum(1 for found in ordered if found.type is kind))},
        {bucket: n for bucket in AgeBucket if (n := sum(1 for found in ordered if found.bucket is bucket))},
        dict(sorted(gross.items())),
    )
    return ReconciliationResult(tuple(matched), ordered, totals)


def _show(signed_minor: int, currency: Currency) -> str:
    return f"{currency.code} {format_minor(signed_minor, currency)}"


def _word(direction: Direction) -> str:
    return "credit" if direction is Direction.CREDIT else "debit"


def _describe(line: _Line) -> str:
    entry = line.entry
    return (
        f"{_word(line.direction).capitalize()} of {entry.amount}, value {entry.value_date}, reference {entry.reference}"
    )

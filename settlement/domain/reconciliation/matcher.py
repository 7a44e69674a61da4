"""Reconciliation line by line: the specification. `columnar` gives the same result for millions of lines.

Recipe (each line ends in exactly one match or one break):
1. Lines of an account that is not reconciled: `unknown-account`.
2. Within a side: a booking and what undoes it, of one payment and amount and not on the other side, cancel each other
   (`reversed`), if a reversal says that it is one or the other side has the payment too (it was booked again). Then
   duplicates: a line that occurs again, with its reference and direction, and with its amount and no id
   that contradicts it or with an id of it; or the same payment (UETR, or else end-to-end id) booked again in the same
   direction and amount more often than the other side has it. Not so if all lines of a payment add up to the one of
   the other side. The line that the other side knows survives;
   but a booked line before a pending one, which it replaces (`replaced`).
3. Matching by id, in passes by UETR, by end-to-end id, by reference. A pair that differs by more than the rules let
   pass is one break, named after the first difference in the order of `BreakType`; the others are listed in `also`.
   One line against several smaller ones of its id: their sum agrees, or it is `split-incomplete`.
4. Groups: lines of one group reference (a bulk booking) against the other side's line or lines of it, or against the
   line whose end-to-end id or reference it is. Their sums agree, or it is `split-incomplete`.
5. A line that undoes a line already paired, with the same id and amount in the other direction: `reversed`.
   Their debit under an id of a payment already paired,
   of no more than the agreed fee: `fee`.
6. Lines that share an id with several candidates and fit none of them: one `ambiguous` break for the group.
7. Composite matching of what is left, on currency, amount, direction and value date, where there is exactly one
   candidate on either side; then the same within the tolerances. Ids that contradict each other rule a candidate out:
   two payments of one amount on one day are two payments.
8. If the rules say so: the one set of few lines that adds up to a line of the other side.
9. What remains is missing on the other side; a line that says of itself that it is a reversal, `reversed`.

Pure, and linear in the number of lines apart from sorting and step 8, which is bounded.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import combinations

from kernel.money import Currency
from settlement.domain.reconciliation.checks import check_statement
from settlement.domain.reconciliation.model import (
    ONE_SIDED,
    SUBSET_CANDIDATES_MAX,
    AgeBucket,
    Break,
    BreakType,
    Elsewhere,
    Match,
    MatchRule,
    ReconciliationResult,
    Rules,
    Side,
    Totals,
    View,
    age_bucket,
)
from settlement.domain.statements import Direction, EntryStatus, Statement, StatementEntry, is_id

_EXACT = Rules()
_SUBSET_STEPS_MAX = 500_000
"""Subsets tried in one run; the search ends there, the same way every time."""
_NEAR_CANDIDATES_MAX = 64
"""With more lines than this within tolerance nothing says which belongs to which."""
Key = Callable[["_Line"], Hashable | None]


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
    rules: Rules = _EXACT,
    accounts: Collection[str] | None = None,
) -> ReconciliationResult:
    """Match the lines of one relation and period. `as_of` is the day that ages are counted to.

    `accounts` are those reconciled, for lines that name theirs; None = not checked.
    Refuses nothing: any two sets of lines have a result. See the module's docstring for the recipe.
    """
    return reconcile_rest(
        list(enumerate(ours)), list(enumerate(theirs)), as_of=as_of, view=view, rules=rules, accounts=accounts
    )


def reconcile_rest(
    ours: Sequence[tuple[int, StatementEntry]],
    theirs: Sequence[tuple[int, StatementEntry]],
    *,
    as_of: date,
    view: View,
    rules: Rules,
    accounts: Collection[str] | None,
    elsewhere: Elsewhere | None = None,
) -> ReconciliationResult:
    """`reconcile` for lines at given positions of larger files, whose other lines are dealt with (`elsewhere`)."""
    run = _Run(
        [_line(position, entry, mirrored=False) for position, entry in ours],
        [_line(position, entry, mirrored=view is View.MIRROR) for position, entry in theirs],
        as_of=as_of,
        rules=rules,
        elsewhere=elsewhere or Elsewhere(),
    )
    if accounts is not None:
        run.find_unknown_accounts(frozenset(accounts))  # 1
    run.find_undone()  # 2
    run.find_duplicates()
    run.match_by(MatchRule.UETR, lambda line: line.entry.uetr)  # 3
    run.match_by(MatchRule.END_TO_END_ID, lambda line: line.end_to_end_id)
    run.match_by(MatchRule.REFERENCE, lambda line: line.entry.reference)
    run.match_groups()  # 4
    run.find_reversed()  # 5
    run.find_fees()
    run.find_ambiguous(lambda line: line.entry.uetr, _any)  # 6
    run.find_ambiguous(lambda line: line.end_to_end_id, _not_two_uetrs)
    run.match_composite()  # 7
    if not rules.is_exact:
        run.match_within_tolerance()
    if rules.subset_lines_max > 1:
        run.match_subsets()  # 8
    run.find_missing()  # 9
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
    return summed(lines.matched, (*lines.breaks, *found), len(ours.entries), len(theirs.entries))


class _Run:
    """The state of one reconciliation: which lines are still open."""

    def __init__(
        self, ours: list[_Line], theirs: list[_Line], *, as_of: date, rules: Rules, elsewhere: Elsewhere
    ) -> None:
        self._ours = ours
        self._theirs = theirs
        self._as_of = as_of
        self._rules = rules
        self._elsewhere = elsewhere
        self._matches: list[Match] = []
        self._breaks: list[Break] = []
        self._paired: dict[Side, list[_Line]] = {Side.OURS: [], Side.THEIRS: []}

    def find_unknown_accounts(self, accounts: frozenset[str]) -> None:
        for side, lines in ((Side.OURS, self._ours), (Side.THEIRS, self._theirs)):
            for line in lines:
                if line.entry.account is not None and line.entry.account not in accounts:
                    sentence = f"{_describe(line)}: of account {line.entry.account[:64]}, which is not reconciled here."
                    self._one_sided(BreakType.UNKNOWN_ACCOUNT, side, line, sentence)

    def find_undone(self) -> None:
        """Bookings that one side has made and undone by itself: nothing of them is left to agree on."""
        known_ours = Counter(_repeat_key(line) for line in self._ours if not line.is_done)
        known_theirs = Counter(_repeat_key(line) for line in self._theirs if not line.is_done)
        for side, lines, others, known, elsewhere in (
            (Side.OURS, self._ours, self._theirs, known_theirs, self._elsewhere.theirs),
            (Side.THEIRS, self._theirs, self._ours, known_ours, self._elsewhere.ours),
        ):
            payments_there = {_two_way_key(line) for line in others if not line.is_done}
            rank = _ranking(others, elsewhere)

            # A line that says that it undoes another goes first, one that the other side knows last.
            def order(line: _Line, rank: Callable[[_Line], _Rank] = rank) -> tuple[bool, bool, bool, int]:
                _, is_unlike, is_unknown, position = rank(line)
                return (not line.entry.is_reversal, not is_unlike, not is_unknown, position)

            for group in _groups(lines, _booking_key):
                is_marked = any(line.entry.is_reversal for line in group)
                if not is_marked and _two_way_key(group[0]) not in payments_there:
                    continue
                ways = [[line for line in group if line.direction is direction] for direction in Direction]
                count = min(len(way) - known[_repeat_key(way[0])] if way else 0 for way in ways)
                if count > 0:
                    for pair in zip(*(sorted(way, key=order)[:count] for way in ways), strict=True):
                        self._match_alone(side, pair, MatchRule.REVERSED)

    def find_duplicates(self) -> None:
        known_ours = Counter(_repeat_key(line) for line in self._ours if not line.is_done)
        known_theirs = Counter(_repeat_key(line) for line in self._theirs if not line.is_done)
        for side, lines, others, known, elsewhere in (
            (Side.OURS, self._ours, self._theirs, known_theirs, self._elsewhere.theirs),
            (Side.THEIRS, self._theirs, self._ours, known_ours, self._elsewhere.ours),
        ):
            rank = _ranking(others, elsewhere)
            booked = {_repeat_key(line) for line in lines if line.entry.status is EntryStatus.BOOKED} - {None}
            wholes, sums = _wholes_of_payments(others), _sums_of_payments(lines)
            in_parts = {key for key, whole in wholes.items() if sums.get(key) == whole}
            for group in _groups(lines, lambda line: (line.entry.reference, *line.terms[:2])):
                first: list[_Line] = []
                for line in sorted(group, key=rank):
                    kept = [other for other in first if self._is_again(side, line, other)]
                    if _payment_key(line) in in_parts or not kept:
                        first.append(line)
                    else:
                        self._again(side, line, booked, kept)
            for group in _groups(lines, _repeat_key):
                if _payment_key(group[0]) in in_parts:
                    continue
                allowed = max(1, known[_repeat_key(group[0])])
                for surplus in sorted(group, key=rank)[allowed:]:
                    self._again(side, surplus, booked)

    def _is_again(self, side: Side, line: _Line, other: _Line) -> bool:
        """Whether two lines of one reference, currency and direction are one booking twice: banks give one reference to
        the payments of a bulk too, and to a payment and its fee."""
        if _ids_differ(line, other) or self._may_be_fee(side, line, other):
            return False
        return _amount(line) == _amount(other) or bool(set(_identities(line)) & set(_identities(other)))

    def _may_be_fee(self, side: Side, line: _Line, paid: _Line) -> bool:
        """Whether a debit of theirs is no more than the fee agreed for a payment."""
        is_debit = side is Side.THEIRS and line.direction is Direction.DEBIT
        return is_debit and 0 < _amount(line) <= self._rules.fee_max_minor(_amount(paid)) and line is not paid

    def match_by(self, rule: MatchRule, key: Key) -> None:
        theirs_by_key = _index(self._theirs, key)
        if not theirs_by_key:
            return
        for value, ours in _index(self._ours, key).items():
            theirs = theirs_by_key.get(value)
            if theirs is None:
                continue
            if len(ours) == 1 and len(theirs) == 1:
                if not self._are_two(ours[0], theirs[0], rule):
                    self._pair(ours[0], theirs[0], rule)
                continue
            self._match_several(ours, theirs, rule)

    def _match_several(self, ours: list[_Line], theirs: list[_Line], rule: MatchRule) -> None:
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
        self._match_parts(ours, theirs, rule)
        if not self._is_reversal_left(ours, theirs):
            self._pair_last(ours, theirs, rule, lambda line: None)

    def _match_parts(self, ours: list[_Line], theirs: list[_Line], rule: MatchRule) -> None:
        """One line against several of its id, each smaller than it: paid, or booked, in parts."""
        a, b = ([line for line in lines if not line.is_done] for lines in (ours, theirs))
        if min(len(a), len(b)) != 1 or len(a) == len(b):
            return
        (whole,), parts = (a, b) if len(a) == 1 else (b, a)
        if rule is MatchRule.END_TO_END_ID and any(_uetrs_differ(whole, part) for part in parts):
            return
        alike = (whole.terms[:2], whole.entry.status)
        if all((part.terms[:2], part.entry.status) == alike and _amount(part) < _amount(whole) for part in parts):
            self._match_group(a, b)

    def _is_reversal_left(self, ours: list[_Line], theirs: list[_Line]) -> bool:
        """Whether what is left of the lines of one id undoes one of them: that is no wrong direction."""
        paired = {_reversal_key(line) for line in (*ours, *theirs) if line.is_done}
        return any(_undone_key(line) in paired for line in (*ours, *theirs) if not line.is_done)

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
            if len(a) == 1 and len(b) == 1 and not self._are_two(a[0], b[0], rule):
                self._pair(a[0], b[0], rule)

    @staticmethod
    def _are_two(a: _Line, b: _Line, rule: MatchRule) -> bool:
        """Lines of one id that are not one booking: of two payments, or a payment and what says that it undoes it."""
        if rule is MatchRule.END_TO_END_ID and _uetrs_differ(a, b):
            return True
        return a.entry.is_reversal is not b.entry.is_reversal and a.direction is not b.direction

    def match_groups(self) -> None:
        ours, theirs = _index(self._ours, _group_key), _index(self._theirs, _group_key)
        if not ours and not theirs:
            return
        wholes_ours = self._wholes(self._ours, theirs, ours)
        wholes_theirs = self._wholes(self._theirs, ours, theirs)
        for value in dict.fromkeys((*ours, *theirs)):
            a = [x for x in ours.get(value) or wholes_ours.get(value) or [] if not x.is_done]
            b = [x for x in theirs.get(value) or wholes_theirs.get(value) or [] if not x.is_done]
            if a and b:
                self._match_group(a, b)

    def _wholes(
        self, lines: list[_Line], there: Mapping[Hashable, list[_Line]], here: Mapping[Hashable, list[_Line]]
    ) -> dict[Hashable, list[_Line]]:
        """Lines without a group reference whose own id is a group's on the other side, by that group."""
        found: dict[Hashable, list[_Line]] = {}
        for line in lines:
            if line.is_done or line.entry.group_reference is not None:
                continue
            for text in (line.end_to_end_id, line.entry.reference):
                value = None if text is None else (text, line.entry.amount.currency.code)
                if value is not None and value in there and value not in here:
                    found.setdefault(value, []).append(line)
                    break
        return found

    def _match_group(self, ours: list[_Line], theirs: list[_Line]) -> None:
        difference = _sum(theirs) - _sum(ours)
        sentence = (
            f"{_describe(ours[0])}: {_count(ours, 'line')} of ours {_verb(ours)} up to {_show_sum(ours)}, "
            f"{_count(theirs, 'line')} of theirs to {_show_sum(theirs)}"
        )
        if abs(difference) > self._rules.amount_minor_max:
            self._break(BreakType.SPLIT_INCOMPLETE, ours, theirs, difference, f"{sentence}.")
        elif not all(self._rules.value_dates_agree(a.entry, b.entry) for a in ours for b in theirs):
            self._break(BreakType.VALUE_DATE, ours, theirs, difference, f"{sentence}; their value dates differ.")
        else:
            self._match(ours, theirs, MatchRule.GROUP, difference)

    def find_reversed(self) -> None:
        for side, lines in ((Side.OURS, self._ours), (Side.THEIRS, self._theirs)):
            undone = {key for line in self._paired[side] for key in _reversal_keys(line)}
            for line in lines:
                if not line.is_done and any(key in undone for key in _undone_keys(line)):
                    whose = "we have" if side is Side.OURS else "the counterparty has"
                    lacks = "they do not" if side is Side.OURS else "we do not"
                    sentence = f"{_describe(line)}: {whose} reversed this payment, {lacks}."
                    self._one_sided(BreakType.REVERSED, side, line, sentence)

    def find_fees(self) -> None:
        """Fees that they book beside a payment, under an id of it."""
        paid: dict[tuple[str, Hashable], _Line] = {}
        for line in self._paired[Side.THEIRS]:
            for identity in _identities(line):
                paid.setdefault((identity[0], (identity[1], line.terms[0])), line)
        for line in self._theirs:
            if line.is_done or line.entry.is_reversal:
                continue
            for name, value in _identities(line):
                whole = paid.get((name, (value, line.terms[0])))
                if whole is not None and self._may_be_fee(Side.THEIRS, line, whole):
                    sentence = f"{_describe(line)}: booked beside the payment, which is within the agreed fee."
                    self._one_sided(BreakType.FEE, Side.THEIRS, line, sentence, names_side=False)
                    break

    def find_ambiguous(self, key: Key, fits: Callable[[_Profile, _Profile], bool]) -> None:
        theirs_by_key = _index(self._theirs, key)
        for value, ours in _index(self._ours, key).items():
            theirs = theirs_by_key.get(value, [])
            # What says of itself that it undoes a booking is no candidate for one.
            a, b = (_not_undoing(lines, others) for lines, others in ((ours, theirs), (theirs, ours)))
            self._ambiguous(*_candidates(a, b, fits))

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

    def match_within_tolerance(self) -> None:
        """Pairs of lines that each have the other as their only candidate within the tolerances."""
        theirs = _by_amount(self._theirs)
        ours = _by_amount(self._ours)
        for value, lines in ours.items():
            others = theirs.get(value, [])
            candidates = [self._near(line, others) for line in lines]
            for line, found in zip(lines, candidates, strict=True):
                if len(found) != 1 or line.is_done or found[0].is_done:
                    continue
                if len(self._near(found[0], lines, is_ours=False)) == 1:
                    self._match([line], [found[0]], MatchRule.COMPOSITE_TOLERANCE, _sum(found) - line.signed_minor)

    def _near(self, line: _Line, others: list[_Line], *, is_ours: bool = True) -> list[_Line]:
        """Open lines of the other side (sorted by amount) that may be this one within the tolerances."""
        amount, tolerance = line.entry.amount.amount_minor, self._rules.amount_minor_max
        first = bisect_left(others, amount - tolerance, key=_amount)
        last = bisect_right(others, amount + tolerance, key=_amount)
        if last - first > _NEAR_CANDIDATES_MAX:
            return []
        return [
            other
            for other in others[first:last]
            if not other.is_done
            and _may_be_same(_profile(line), _profile(other))
            and line.entry.status is other.entry.status
            and self._rules.value_dates_agree(*((line.entry, other.entry) if is_ours else (other.entry, line.entry)))
        ]

    def match_subsets(self) -> None:
        steps = _SUBSET_STEPS_MAX
        for wholes, parts, is_ours in ((self._ours, self._theirs, True), (self._theirs, self._ours, False)):
            by_terms: dict[Hashable, list[_Line]] = defaultdict(list)
            for line in parts:
                if not line.is_done:
                    by_terms[line.terms[:2]].append(line)
            for whole in wholes:
                if whole.is_done:
                    continue
                candidates = [
                    part
                    for part in by_terms[whole.terms[:2]]
                    if not part.is_done
                    and part.entry.amount.amount_minor < whole.entry.amount.amount_minor
                    and _may_be_same(_profile(whole), _profile(part))
                    and part.entry.status is whole.entry.status
                    and self._rules.value_dates_agree(
                        *((whole.entry, part.entry) if is_ours else (part.entry, whole.entry))
                    )
                ]
                if len(candidates) > SUBSET_CANDIDATES_MAX:
                    continue
                found: list[tuple[_Line, ...]] = []
                for size in range(2, min(self._rules.subset_lines_max, len(candidates)) + 1):
                    for chosen in combinations(candidates, size):
                        steps -= 1
                        if steps <= 0:
                            return
                        if _sum(chosen) == whole.signed_minor:
                            found.append(chosen)
                            if len(found) > 1:
                                break
                    if len(found) > 1:
                        break
                if len(found) == 1:
                    ours, theirs = ([whole], list(found[0])) if is_ours else (list(found[0]), [whole])
                    self._match(ours, theirs, MatchRule.SUBSET, 0)

    def find_missing(self) -> None:
        for kind, side, lines, where in (
            (BreakType.MISSING_THERE, Side.OURS, self._ours, "the counterparty's statement does not have it"),
            (BreakType.MISSING_HERE, Side.THEIRS, self._theirs, "we do not have it"),
        ):
            for line in lines:
                if line.is_done:
                    continue
                if line.entry.is_reversal:
                    sentence = f"{_describe(line)}: it is marked as a reversal, and {where}."
                    self._one_sided(BreakType.REVERSED, side, line, sentence)
                else:
                    self._one_sided(kind, side, line, f"{_describe(line)}: {where}.", names_side=False)

    def result(self) -> ReconciliationResult:
        return summed(self._matches, self._breaks, len(self._ours), len(self._theirs))

    def _pair(self, ours: _Line, theirs: _Line, rule: MatchRule) -> None:
        differences = self._differences(ours, theirs)
        if not differences:
            self._match([ours], [theirs], rule, theirs.signed_minor - ours.signed_minor)
            return
        kind = differences[0]
        a, b = ours.entry, theirs.entry
        difference = None if kind is BreakType.CURRENCY else theirs.signed_minor - ours.signed_minor
        amounts = f"the amount is {a.amount} with us and {b.amount} with them"
        texts = {
            BreakType.CURRENCY: f"the currency is {a.amount.currency} with us and {b.amount.currency} with them",
            BreakType.DIRECTION: f"it is a {_word(ours.direction)} with us and a {_word(theirs.direction)} with them",
            BreakType.FX_RATE: f"{amounts}, both converted from {a.instructed}",
            BreakType.FEE: f"{amounts}, which is within the agreed fee",
            BreakType.AMOUNT: amounts,
            BreakType.STATUS: f"the status is {a.status.value} with us and {b.status.value} with them",
            BreakType.VALUE_DATE: f"the value date is {a.value_date} with us and {b.value_date} with them",
        }
        sentence = f"{_describe(ours)}: {', '.join(texts[item] for item in differences)}."
        self._break(kind, [ours], [theirs], difference, sentence, also=tuple(differences[1:]))

    def _differences(self, ours: _Line, theirs: _Line) -> list[BreakType]:
        """What differs in a pair beyond the rules, in order of precedence. Amounts of two currencies are not
        compared."""
        a, b = ours.entry, theirs.entry
        found: list[BreakType] = []
        if a.amount.currency != b.amount.currency:
            found.append(BreakType.CURRENCY)
        if ours.direction is not theirs.direction:
            found.append(BreakType.DIRECTION)
        apart = b.amount.amount_minor - a.amount.amount_minor
        if BreakType.CURRENCY not in found and abs(apart) > self._rules.amount_minor_max:
            found.append(self._amount_type(ours, theirs))
        if a.status is not b.status:
            found.append(BreakType.STATUS)
        if not self._rules.value_dates_agree(a, b):
            found.append(BreakType.VALUE_DATE)
        return found

    def _amount_type(self, ours: _Line, theirs: _Line) -> BreakType:
        a, b = ours.entry, theirs.entry
        if a.instructed is not None and a.instructed == b.instructed and a.instructed.currency != a.amount.currency:
            return BreakType.FX_RATE
        lost = ours.signed_minor - theirs.signed_minor
        if ours.direction is theirs.direction and 0 < lost <= self._rules.fee_max_minor(a.amount.amount_minor):
            return BreakType.FEE
        return BreakType.AMOUNT

    def _again(self, side: Side, line: _Line, booked: set[Hashable], kept: Sequence[_Line] = ()) -> None:
        """A line of a payment that others of its side (`kept`) stand for already; `booked` by `_repeat_key`."""
        if line.is_done:
            return
        is_booked = _repeat_key(line) in booked or any(other.entry.status is EntryStatus.BOOKED for other in kept)
        if is_booked and line.entry.status is EntryStatus.PENDING:
            self._match_alone(side, [line], MatchRule.REPLACED)
            return
        whose = (
            "we have it more than once" if side is Side.OURS else "the counterparty's statement has it more than once"
        )
        self._one_sided(BreakType.DUPLICATE, side, line, f"{_describe(line)}: {whose}.")

    def _one_sided(self, kind: BreakType, side: Side, line: _Line, sentence: str, *, names_side: bool = True) -> None:
        is_ours = side is Side.OURS
        difference = -line.signed_minor if is_ours else line.signed_minor
        self._break(
            kind,
            [line] if is_ours else [],
            [] if is_ours else [line],
            difference,
            sentence,
            side=side if names_side else None,
        )

    def _ambiguous(self, ours: list[_Line], theirs: list[_Line]) -> None:
        if not ours or not theirs:
            return
        codes = {line.entry.amount.currency for line in (*ours, *theirs)}
        difference = _sum(theirs) - _sum(ours) if len(codes) == 1 else None
        sentence = (
            f"{_describe(ours[0])}: {len(ours)} of our lines and {len(theirs)} of theirs could belong together; "
            "nothing says which."
        )
        self._break(BreakType.AMBIGUOUS, ours, theirs, difference, sentence)

    def _match_alone(self, side: Side, lines: Sequence[_Line], rule: MatchRule) -> None:
        self._match(*((lines, []) if side is Side.OURS else ([], lines)), rule, 0)

    def _match(self, ours: Sequence[_Line], theirs: Sequence[_Line], rule: MatchRule, difference_minor: int) -> None:
        self._done(ours, theirs)
        self._matches.append(
            Match(
                tuple(line.entry for line in ours),
                tuple(line.entry for line in theirs),
                rule,
                tuple(line.position for line in ours),
                tuple(line.position for line in theirs),
                difference_minor,
            )
        )

    def _done(self, ours: Sequence[_Line], theirs: Sequence[_Line]) -> None:
        for line in (*ours, *theirs):
            line.is_done = True
        if ours and theirs:
            self._paired[Side.OURS] += ours
            self._paired[Side.THEIRS] += theirs

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
        self._done(ours, theirs)
        oldest = min(line.entry.value_date for line in (*ours, *theirs))
        age_days = max(0, (self._as_of - oldest).days)
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
                tuple(line.position for line in ours),
                tuple(line.position for line in theirs),
                oldest,
            )
        )


def summed(
    matched: Sequence[Match], breaks: Sequence[Break], lines_ours: int, lines_theirs: int
) -> ReconciliationResult:
    """A result in its order, with its totals."""
    rank = {kind: number for number, kind in enumerate(BreakType)}
    ordered = tuple(
        sorted(breaks, key=lambda x: (rank[x.type], -x.age_days, x.our_references, x.their_references, x.sentence))
    )
    in_order = tuple(sorted(matched, key=lambda x: (x.our_positions, x.their_positions)))
    gross: dict[str, int] = defaultdict(int)
    for found in ordered:
        for currency, amount_minor in found.gross_minor:
            gross[currency.code] += amount_minor
    by_rule = Counter(match.rule for match in in_order)
    by_type = Counter(found.type for found in ordered)
    by_bucket = Counter(found.bucket for found in ordered)
    totals = Totals(
        lines_ours,
        lines_theirs,
        sum(match.rule not in ONE_SIDED for match in in_order),
        {rule: by_rule[rule] for rule in MatchRule if by_rule[rule]},
        {kind: by_type[kind] for kind in BreakType if by_type[kind]},
        {bucket: by_bucket[bucket] for bucket in AgeBucket if by_bucket[bucket]},
        dict(sorted(gross.items())),
    )
    return ReconciliationResult(in_order, ordered, totals)


def _line(position: int, entry: StatementEntry, *, mirrored: bool) -> _Line:
    direction = entry.direction.opposite if mirrored else entry.direction
    end_to_end_id = entry.end_to_end_id if is_id(entry.end_to_end_id) else None
    signed_minor = entry.amount.amount_minor if direction is Direction.CREDIT else -entry.amount.amount_minor
    terms = (entry.amount.currency.code, direction, entry.amount.amount_minor, entry.status, entry.value_date)
    return _Line(position, entry, direction, signed_minor, end_to_end_id, terms)


def _index(lines: list[_Line], key: Key) -> dict[Hashable, list[_Line]]:
    """Open lines by key, in their order; lines without the key are left out."""
    found: dict[Hashable, list[_Line]] = {}
    for line in lines:
        if not line.is_done:
            value = key(line)
            if value is not None:
                found.setdefault(value, []).append(line)
    return found


def _groups(lines: list[_Line], key: Key) -> list[list[_Line]]:
    return [group for group in _index(lines, key).values() if len(group) > 1]


def _by_amount(lines: list[_Line]) -> dict[Hashable, list[_Line]]:
    """Open lines by currency and direction, sorted by amount."""
    found: dict[Hashable, list[_Line]] = defaultdict(list)
    for line in lines:
        if not line.is_done:
            found[line.terms[:2]].append(line)
    return {key: sorted(group, key=_amount) for key, group in found.items()}


def _amount(line: _Line) -> int:
    return line.entry.amount.amount_minor


def _repeat_key(line: _Line) -> Hashable | None:
    """One payment booked twice under two references has the same id, direction and amount."""
    identity = line.entry.uetr or line.end_to_end_id
    return None if identity is None else (identity, *line.terms[:3])


def _booking_key(line: _Line) -> Hashable | None:
    """A booking of a payment's amount, in whichever direction."""
    identity = line.entry.uetr or line.end_to_end_id
    is_booked = line.entry.status is EntryStatus.BOOKED
    return (identity, line.terms[0], line.terms[2]) if is_booked and identity is not None else None


def _two_way_key(line: _Line) -> Hashable:
    """A payment in its currency, whatever its direction."""
    return (line.entry.uetr or line.end_to_end_id, line.terms[0])


_Rank = tuple[bool, bool, bool, int]


def _ranking(others: list[_Line], elsewhere: frozenset[str]) -> Callable[[_Line], _Rank]:
    """Which of several lines of a payment survives: a booked one, one that the other side knows, the first."""
    terms_there = {_full_key(line) for line in others}
    references_there = {line.entry.reference for line in others} | elsewhere

    def rank(line: _Line) -> _Rank:
        return (
            line.entry.status is not EntryStatus.BOOKED,
            _full_key(line) not in terms_there,
            line.entry.reference not in references_there,
            line.position,
        )

    return rank


def _payment_key(line: _Line) -> Hashable | None:
    """A payment in its currency and direction."""
    identity = line.entry.uetr or line.end_to_end_id
    return None if identity is None else (identity, *line.terms[:2])


def _sums_of_payments(lines: list[_Line]) -> dict[Hashable, int]:
    found: dict[Hashable, int] = defaultdict(int)
    for line in lines:
        key = None if line.is_done else _payment_key(line)
        if key is not None:
            found[key] += _amount(line)
    return found


def _wholes_of_payments(lines: list[_Line]) -> dict[Hashable, int]:
    """The amounts of payments that are one line."""
    return {key: _amount(group[0]) for key, group in _index(lines, _payment_key).items() if len(group) == 1}


def _full_key(line: _Line) -> Hashable:
    return (line.entry.uetr, line.end_to_end_id, line.terms)


def _same_line_key(line: _Line) -> Hashable:
    return (line.entry.reference, line.entry.uetr, line.terms)


def _composite_key(line: _Line) -> Hashable:
    return (*line.terms[:3], line.entry.value_date)


def _group_key(line: _Line) -> Hashable | None:
    group = line.entry.group_reference
    return None if group is None else (group, line.entry.amount.currency.code)


def _reversal_key(line: _Line) -> Hashable:
    return line.terms[:3]


def _undone_key(line: _Line) -> Hashable:
    """The `_reversal_key` of the line that this one undoes."""
    return (line.terms[0], line.direction.opposite, line.terms[2])


def _reversal_keys(line: _Line) -> list[Hashable]:
    return [(*identity, _reversal_key(line)) for identity in _identities(line)]


def _undone_keys(line: _Line) -> list[Hashable]:
    return [(*identity, _undone_key(line)) for identity in _identities(line)]


def _identities(line: _Line) -> list[tuple[str, Hashable]]:
    found: list[tuple[str, Hashable]] = []
    if line.entry.uetr is not None:
        found.append(("uetr", line.entry.uetr))
    if line.end_to_end_id is not None:
        found.append(("end-to-end-id", line.end_to_end_id))
    return found


def _uetrs_differ(a: _Line, b: _Line) -> bool:
    return a.entry.uetr is not None and b.entry.uetr is not None and a.entry.uetr != b.entry.uetr


def _ids_differ(a: _Line, b: _Line) -> bool:
    ends = a.end_to_end_id is not None and b.end_to_end_id is not None and a.end_to_end_id != b.end_to_end_id
    return ends or _uetrs_differ(a, b)


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


def _not_undoing(lines: list[_Line], others: list[_Line]) -> list[_Line]:
    directions = {line.direction for line in others}
    return [line for line in lines if not line.entry.is_reversal or line.direction in directions]


def _candidates(
    ours: list[_Line], theirs: list[_Line], fits: Callable[[_Profile, _Profile], bool]
) -> tuple[list[_Line], list[_Line]]:
    """Lines of either side that have at least one candidate on the other."""
    profiles_ours = {_profile(line) for line in ours}
    profiles_theirs = {_profile(line) for line in theirs}
    a = [line for line in ours if any(fits(_profile(line), other) for other in profiles_theirs)]
    b = [line for line in theirs if any(fits(other, _profile(line)) for other in profiles_ours)]
    return a, b


def _gross(
    kind: BreakType, ours: list[_Line], theirs: list[_Line], difference_minor: int | None
) -> tuple[tuple[Currency, int], ...]:
    """The value in question. A wrong date or status puts the whole amount in question, a wrong amount the
    difference."""
    if kind in _BY_DIFFERENCE and difference_minor:
        return (((ours or theirs)[0].entry.amount.currency, abs(difference_minor)),)
    by_currency: dict[Currency, int] = {}
    for lines in (ours, theirs):
        sums: dict[Currency, int] = defaultdict(int)
        for line in lines:
            sums[line.entry.amount.currency] += line.entry.amount.amount_minor
        for currency, amount_minor in sums.items():
            by_currency[currency] = max(by_currency.get(currency, 0), amount_minor)
    return tuple(sorted(by_currency.items()))


_BY_DIFFERENCE = frozenset(
    {BreakType.AMOUNT, BreakType.DIRECTION, BreakType.FEE, BreakType.FX_RATE, BreakType.SPLIT_INCOMPLETE}
)


def _sum(lines: Sequence[_Line]) -> int:
    return sum(line.signed_minor for line in lines)


def _show_sum(lines: Sequence[_Line]) -> str:
    currency = lines[0].entry.amount.currency
    gross = abs(_sum(lines))
    units, fraction = divmod(gross, 10**currency.exponent)
    return f"{currency.code} {units:,}" + (f".{fraction:0{currency.exponent}d}" if currency.exponent else "")


def _count(lines: Sequence[_Line], noun: str) -> str:
    return f"{len(lines)} {noun}" if len(lines) == 1 else f"{len(lines)} {noun}s"


def _verb(lines: Sequence[_Line]) -> str:
    return "adds" if len(lines) == 1 else "add"


def _word(direction: Direction) -> str:
    return "credit" if direction is Direction.CREDIT else "debit"


def _describe(line: _Line) -> str:
    entry = line.entry
    return (
        f"{_word(line.direction).capitalize()} of {entry.amount}, value {entry.value_date}, reference {entry.reference}"
    )

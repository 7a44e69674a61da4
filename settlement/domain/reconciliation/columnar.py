"""The same reconciliation for millions of lines: exact pairs by columns, the rest by the specification (`matcher`).

A pair is *clean* when the specification must match it whatever the other lines are: it shares an id that occurs once on
either side, every compared field is equal, and none of its other ids occurs in a third line. Taking such a pair away
changes nothing for the others, with one exception that is handed on (`Elsewhere`): of two copies of a line, the one
whose reference the other side knows survives. That both ways give the same result is shown by a Hypothesis test.

Ids are compared as 128-bit numbers (UETR) or by position in one dictionary of both sides; no key is hashed away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.matcher import reconcile_rest
from settlement.domain.reconciliation.model import (
    Elsewhere,
    MatchRule,
    ReconciliationResult,
    Rules,
    Totals,
    View,
)
from settlement.domain.statements import NOT_PROVIDED

Positions = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]
_EXACT = Rules()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of one rule, in the order of our lines; each pair agrees in every compared field."""

    rule: MatchRule
    ours: Positions
    theirs: Positions


@dataclass(frozen=True, slots=True)
class BulkResult:
    """`pairs` and `rest.matched` together are the matches; `rest.breaks` are all breaks."""

    pairs: tuple[Pairs, ...]
    rest: ReconciliationResult
    totals: Totals


def reconcile_tables(
    ours: LineTable,
    theirs: LineTable,
    *,
    as_of: date,
    view: View = View.SAME_ACCOUNT,
    rules: Rules = _EXACT,
    accounts: Collection[str] | None = None,
) -> BulkResult:
    """`matcher.reconcile` for columns: the same matches and the same breaks."""
    pairs = _clean_pairs(ours, theirs, view=view, accounts=accounts)
    our_rest, their_rest = np.ones(len(ours), bool), np.ones(len(theirs), bool)
    for found in pairs:
        our_rest[found.ours] = False
        their_rest[found.theirs] = False
    rest = reconcile_rest(
        _numbered(ours, our_rest),
        _numbered(theirs, their_rest),
        as_of=as_of,
        view=view,
        rules=rules,
        accounts=accounts,
        elsewhere=Elsewhere(
            ours=_shared_references(theirs, their_rest, ours, ~our_rest),
            theirs=_shared_references(ours, our_rest, theirs, ~their_rest),
        ),
    )
    by_rule = Counter(rest.totals.matched_by_rule)
    for found in pairs:
        by_rule[found.rule] += len(found.ours)
    totals = Totals(
        lines_ours=len(ours),
        lines_theirs=len(theirs),
        matched=sum(by_rule.values()),
        matched_by_rule={rule: by_rule[rule] for rule in MatchRule if by_rule[rule]},
        breaks_by_type=rest.totals.breaks_by_type,
        breaks_by_bucket=rest.totals.breaks_by_bucket,
        gross_minor_by_currency=rest.totals.gross_minor_by_currency,
    )
    return BulkResult(pairs, rest, totals)


@dataclass(slots=True)
class _Ids:
    """One kind of id of both sides as numbers; -1 = none. `count_*` is how often each number occurs on a side."""

    ours: Positions
    theirs: Positions
    count_ours: Positions
    count_theirs: Positions
    place_theirs: Positions
    """Where an id that occurs once on their side is."""

    def once_here_absent_there(self, numbers: Positions, *, is_ours: bool) -> Mask:
        """Of lines without the id: true."""
        here, there = (self.count_ours, self.count_theirs) if is_ours else (self.count_theirs, self.count_ours)
        found: Mask = (numbers < 0) | ((here[numbers] == 1) & (there[numbers] == 0))
        return found


def _clean_pairs(
    ours: LineTable, theirs: LineTable, *, view: View, accounts: Collection[str] | None
) -> tuple[Pairs, ...]:
    if not len(ours) or not len(theirs):
        return ()
    # Arrow's dictionaries run without the interpreter's lock: the kinds of ids beside each other.
    with ThreadPoolExecutor(3) as pool:
        uetrs, ends, references = pool.map(
            lambda name: _ids(_keys(ours, name), _keys(theirs, name)), ("uetr", "end_to_end_id", "reference")
        )
    terms = _Terms(ours, theirs, view)
    known_ours, known_theirs = _of_accounts(ours, accounts), _of_accounts(theirs, accounts)
    once_ours = references.count_ours[references.ours] == 1
    once_theirs = references.count_theirs[references.theirs] == 1
    taken = np.zeros(len(ours), bool)
    found: list[Pairs] = []

    def take(rule: MatchRule, ids: _Ids, others: tuple[_Ids, ...]) -> None:
        usable = ~taken & (ids.ours >= 0) & once_ours & known_ours
        usable &= (ids.count_ours[ids.ours] == 1) & (ids.count_theirs[ids.ours] == 1)
        a = np.flatnonzero(usable)
        b = ids.place_theirs[ids.ours[a]]
        is_clean = terms.are_equal(a, b) & once_theirs[b] & known_theirs[b]
        for other in others:
            # The pair's other ids are its own: shared with each other, or with nobody.
            x, y = other.ours[a], other.theirs[b]
            is_shared = (x >= 0) & (x == y) & (other.count_ours[x] == 1) & (other.count_theirs[x] == 1)
            if rule is not MatchRule.UETR:
                is_shared[:] = False  # an id that both have would have joined them before
            is_own = other.once_here_absent_there(x, is_ours=True) & other.once_here_absent_there(y, is_ours=False)
            is_clean &= is_shared | is_own
        if rule is MatchRule.END_TO_END_ID:
            is_clean &= (uetrs.ours[a] < 0) | (uetrs.theirs[b] < 0)
        a, b = a[is_clean], b[is_clean]
        taken[a] = True
        if len(a):
            found.append(Pairs(rule, a, b))

    take(MatchRule.UETR, uetrs, (ends,))
    take(MatchRule.END_TO_END_ID, ends, (uetrs,))
    take(MatchRule.REFERENCE, references, (uetrs, ends))
    return tuple(found)


class _Terms:
    """The compared fields of both sides, as numbers."""

    def __init__(self, ours: LineTable, theirs: LineTable, view: View) -> None:
        codes = _encoded(ours.strings("currency"), theirs.strings("currency"))
        self._ours = [codes[: len(ours)], *(ours.numbers(name) for name in _COMPARED)]
        self._theirs = [codes[len(ours) :], *(theirs.numbers(name) for name in _COMPARED)]
        if view is View.MIRROR:
            self._theirs[1] = 1 - self._theirs[1]

    def are_equal(self, ours: Positions, theirs: Positions) -> Mask:
        equal = np.ones(len(ours), bool)
        for a, b in zip(self._ours, self._theirs, strict=True):
            equal &= a[ours] == b[theirs]
        return equal


_COMPARED = ("is_credit", "amount_minor", "is_booked", "value_date")


def _keys(lines: LineTable, name: str) -> pa.StringArray:
    keys = lines.strings(name)
    if name != "end_to_end_id" or keys.null_count == len(keys):
        return keys
    is_none = pc.or_kleene(pc.equal(keys, ""), pc.equal(keys, NOT_PROVIDED))
    return pc.if_else(is_none, pa.scalar(None, pa.string()), keys) if pc.any(is_none).as_py() else keys


def _ids(ours: pa.StringArray, theirs: pa.StringArray) -> _Ids:
    numbers = _encoded(ours, theirs)
    a, b = numbers[: len(ours)], numbers[len(ours) :]
    size = int(numbers.max(initial=-1)) + 2  # the last place stands for "none" (-1) and is never asked of
    count_a, count_b = np.bincount(a[a >= 0], minlength=size), np.bincount(b[b >= 0], minlength=size)
    place = np.zeros(size, np.int64)
    has_id = np.flatnonzero(b >= 0)
    place[b[has_id]] = has_id
    return _Ids(a, b, count_a, count_b, place)


def _encoded(ours: pa.StringArray, theirs: pa.StringArray) -> Positions:
    """Equal texts as equal numbers, over both sides; -1 = null."""
    if ours.null_count == len(ours) and theirs.null_count == len(theirs):
        return np.full(len(ours) + len(theirs), -1, np.int64)
    # Two chunks with one dictionary: the texts are not copied together, whose offsets could overflow.
    encoded = pc.dictionary_encode(pa.chunked_array([ours, theirs]))
    parts = [chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    return np.concatenate(parts).astype(np.int64)


def _of_accounts(lines: LineTable, accounts: Collection[str] | None) -> Mask:
    named = lines.strings("account")
    if accounts is None or named.null_count == len(named):
        return np.ones(len(lines), bool)
    is_known = pc.or_kleene(pc.is_null(named), pc.is_in(named, value_set=pa.array(sorted(accounts), pa.string())))
    found: Mask = pc.fill_null(is_known, fill_value=True).to_numpy(zero_copy_only=False)
    return found


def _numbered(lines: LineTable, mask: Mask) -> list[tuple[int, Any]]:
    places = np.flatnonzero(mask)
    return list(zip(places.tolist(), lines.entries(places), strict=True))


def _shared_references(asked: LineTable, rest: Mask, other: LineTable, done: Mask) -> frozenset[str]:
    """References of open lines of `asked` that dealt-with lines of `other` have."""
    wanted = asked.strings("reference").filter(pa.array(rest))
    if not len(wanted) or not done.any():
        return frozenset()
    references = other.strings("reference")
    hits = pc.and_(pc.is_in(references, value_set=wanted.unique()), pa.array(done))
    return frozenset(references.filter(hits).to_pylist())

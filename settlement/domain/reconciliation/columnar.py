"""The same reconciliation for millions of lines: exact pairs by columns, the rest by the specification (`matcher`).

A pair is *clean* when the specification must match it whatever the other lines are: it shares an id that occurs once on
either side, every compared field is equal, and none of its other ids occurs in a third line. Taking such a pair away
changes nothing for the others, with one exception that is handed on (`Elsewhere`): of two copies of a line, the one
whose reference the other side knows survives. That both ways give the same result is shown by a Hypothesis test.

Lines with one id find each other by sorted hashes (`keys`), and a pair's texts are compared: no key is hashed away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from settlement.domain.reconciliation.keys import ALONE, BLOCK_LINES, CROWDED, NONE, Mask, Mates, Positions, find_mates
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.reconciliation.matcher import reconcile_rest
from settlement.domain.reconciliation.model import (
    ONE_SIDED,
    Elsewhere,
    MatchRule,
    ReconciliationResult,
    Rules,
    Totals,
    View,
)
from settlement.domain.statements import NO_IDS

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
        matched=sum(count for rule, count in by_rule.items() if rule not in ONE_SIDED),
        matched_by_rule={rule: by_rule[rule] for rule in MatchRule if by_rule[rule]},
        breaks_by_type=rest.totals.breaks_by_type,
        breaks_by_bucket=rest.totals.breaks_by_bucket,
        gross_minor_by_currency=rest.totals.gross_minor_by_currency,
    )
    return BulkResult(pairs, rest, totals)


def _clean_pairs(
    ours: LineTable, theirs: LineTable, *, view: View, accounts: Collection[str] | None
) -> tuple[Pairs, ...]:
    if not len(ours) or not len(theirs):
        return ()
    terms = _Terms(ours, theirs, view)
    # Hashing, sorting and comparing run without the interpreter's lock: side by side.
    with ThreadPoolExecutor(2) as pool:
        uetrs = find_mates(ids_of(ours, "uetr"), ids_of(theirs, "uetr"))
        ends, references = pool.map(
            lambda name: find_mates(ids_of(ours, name), ids_of(theirs, name), likely=uetrs.ours),
            ("end_to_end_id", "reference"),
        )
        usable_ours = (references.ours != CROWDED) & _of_accounts(ours, accounts)
        usable_theirs = (references.theirs != CROWDED) & _of_accounts(theirs, accounts)
        found: list[Pairs] = []
        for rule, ids, others in (
            (MatchRule.UETR, uetrs, (ends,)),
            (MatchRule.END_TO_END_ID, ends, (uetrs,)),
            (MatchRule.REFERENCE, references, (uetrs, ends)),
        ):
            a = np.flatnonzero(usable_ours & (ids.ours >= 0))
            a = a[usable_theirs[ids.ours[a]]]
            if not len(a):
                continue
            check = partial(_are_clean, rule, ids, others, uetrs, terms)
            a = a[np.concatenate(list(pool.map(check, _blocks(a))))]
            usable_ours[a] = False
            if len(a):
                found.append(Pairs(rule, a, ids.ours[a]))
    return tuple(found)


def _blocks(lines: Positions) -> Iterator[Positions]:
    return (lines[start : start + BLOCK_LINES] for start in range(0, len(lines), BLOCK_LINES))


def _are_clean(
    rule: MatchRule, ids: Mates, others: tuple[Mates, ...], uetrs: Mates, terms: _Terms, a: Positions
) -> Mask:
    """Of these lines of ours, each with a mate by `ids`: which pairs the specification must match."""
    b = ids.ours[a]
    is_clean = terms.are_equal(a, b) & ids.are_equal(a, b)
    for other in others:
        # The pair's other ids are its own: shared with each other, or with nobody.
        x, y = other.ours[a], other.theirs[b]
        is_own = ((x == NONE) | (x == ALONE)) & ((y == NONE) | (y == ALONE))
        if rule is MatchRule.UETR:  # otherwise an id that both have would have joined them before
            shared = np.flatnonzero(x == b)
            is_own[shared] = other.are_equal(a[shared], b[shared])
        is_clean &= is_own
    if rule is MatchRule.END_TO_END_ID:
        is_clean &= (uetrs.ours[a] == NONE) | (uetrs.theirs[b] == NONE)
    return is_clean


class _Terms:
    """The compared fields of both sides, as numbers."""

    def __init__(self, ours: LineTable, theirs: LineTable, view: View) -> None:
        self._ours, self._theirs = ([lines.numbers(name) for name in _COMPARED] for lines in (ours, theirs))
        if view is View.MIRROR:
            self._theirs[0] = ~self._theirs[0]
        codes = _codes(ours.strings("currency"), theirs.strings("currency"))
        if codes is not None:
            self._ours.append(codes[0])
            self._theirs.append(codes[1])

    def are_equal(self, ours: Positions, theirs: Positions) -> Mask:
        equal = np.ones(len(ours), bool)
        for a, b in zip(self._ours, self._theirs, strict=True):
            equal &= a[ours] == b[theirs]
        return equal


_COMPARED = ("is_credit", "amount_minor", "is_booked", "value_date")


def ids_of(lines: LineTable, name: str) -> pa.StringArray:
    """A column of ids, null where there is none."""
    keys = lines.strings(name)
    if name != "end_to_end_id" or keys.null_count == len(keys):
        return keys
    is_none = pc.is_in(pc.ascii_upper(keys), value_set=pa.array(sorted(NO_IDS), pa.string()))
    return pc.if_else(is_none, pa.scalar(None, pa.string()), keys) if pc.any(is_none).as_py() else keys


def _codes(ours: pa.StringArray, theirs: pa.StringArray) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Equal texts as equal numbers; None if all of them are equal."""
    distinct = pa.chunked_array([ours.unique(), theirs.unique()]).unique()
    if len(distinct) == 1:
        return None
    a, b = (pc.index_in(side, value_set=distinct).to_numpy(zero_copy_only=False) for side in (ours, theirs))
    return a, b


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

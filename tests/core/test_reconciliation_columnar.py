"""Goal: reconciliation by columns is reconciliation by lines: same matches, same breaks, whatever the lines.

Method: Hypothesis draws lines with few values for every field, so that ids collide, contradict, repeat and cross; the
specification (`reconcile`) is the oracle. Another draw is mostly clean with planted faults, where the columns work.
"""

from __future__ import annotations

import os
import random
import uuid
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.money import Currency, Money
from settlement.domain.reconciliation import MatchRule, Rules, View, keys, reconcile
from settlement.domain.reconciliation.columnar import BulkResult, reconcile_tables
from settlement.domain.reconciliation.lines import LineTable
from settlement.domain.statements import Direction, EntryStatus, StatementEntry

CNY, AED = Currency.of("CNY"), Currency.of("AED")
DAY = date(2026, 11, 2)
AS_OF = date(2026, 11, 9)
UETRS = [uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62 | number) for number in range(1, 5)]

LINE = st.builds(
    StatementEntry,
    reference=st.sampled_from(["a", "b", "c", "d"]),
    end_to_end_id=st.sampled_from([None, "", "E1", "E2", "E3", "NotProvided", "NONREF"]),
    uetr=st.sampled_from([None, *UETRS]),
    amount=st.sampled_from([Money(1, CNY), Money(2, CNY), Money(3, CNY), Money(1, AED)]),
    direction=st.sampled_from(Direction),
    booked_at=st.sampled_from([datetime(2026, 11, 2, 9, tzinfo=UTC), datetime(2026, 11, 2, 23, tzinfo=UTC)]),
    value_date=st.sampled_from([DAY, DAY + timedelta(days=1)]),
    status=st.sampled_from([EntryStatus.BOOKED, EntryStatus.BOOKED, EntryStatus.PENDING]),
    group_reference=st.sampled_from([None, None, "E1", "G1"]),
    account=st.sampled_from([None, None, "here", "elsewhere"]),
    instructed=st.sampled_from([None, Money(5, AED)]),
    is_reversal=st.sampled_from([False, False, True]),
)
RULES = st.sampled_from(
    [
        Rules(),
        Rules(amount_minor_max=1, value_days_max=1),
        Rules(zone="Asia/Shanghai", cut_off=time(16)),
        Rules(fee_minor_max=1, subset_lines_max=3),
    ]
)


def everything(found: BulkResult) -> tuple[Any, ...]:
    matches = [(m.our_positions, m.their_positions, m.rule, m.difference_minor) for m in found.rest.matched]
    for pairs in found.pairs:
        both = zip(pairs.ours.tolist(), pairs.theirs.tolist(), strict=True)
        matches += [((a,), (b,), pairs.rule, 0) for a, b in both]
    return sorted(matches), found.rest.breaks, found.totals


@pytest.mark.campaign
@settings(max_examples=int(os.environ.get("JIAOZI_HYPOTHESIS_EXAMPLES", "40")), deadline=None)
@given(
    st.lists(LINE, max_size=9),
    st.lists(LINE, max_size=9),
    st.sampled_from(View),
    RULES,
    st.sampled_from([None, ["here"]]),
)
def test_columns_decide_as_lines_do_in_any_muddle(
    ours: list[StatementEntry], theirs: list[StatementEntry], view: View, rules: Rules, accounts: list[str] | None
) -> None:
    wanted = reconcile(ours, theirs, as_of=AS_OF, view=view, rules=rules, accounts=accounts)
    found = reconcile_tables(
        LineTable.of_entries(ours),
        LineTable.of_entries(theirs),
        as_of=AS_OF,
        view=view,
        rules=rules,
        accounts=accounts,
    )
    by_lines = [(m.our_positions, m.their_positions, m.rule, m.difference_minor) for m in wanted.matched]
    assert everything(found) == (sorted(by_lines), wanted.breaks, wanted.totals)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.randoms(use_true_random=False), st.sampled_from(View))
def test_mostly_clean_files_are_paired_by_columns(count: int, chance: random.Random, view: View) -> None:
    ours = [clean(number) for number in range(count)]
    theirs = [replace(line, reference=f"T{line.reference}") for line in ours]
    for faults in (ours, theirs):
        place = chance.randrange(count)
        faults[place] = chance.choice(
            [
                replace(faults[place], amount=Money(7, CNY)),
                replace(faults[place], uetr=faults[place - 1].uetr),
                replace(faults[place], reference=faults[place - 1].reference),
                replace(faults[place], end_to_end_id="E0"),
                replace(faults[place], uetr=None),
                replace(faults[place], uetr=None, end_to_end_id=None),
            ]
        )
    theirs += chance.sample(ours, k=1)
    chance.shuffle(theirs)
    if view is View.MIRROR:
        theirs = [replace(line, direction=line.direction.opposite) for line in theirs]
    wanted = reconcile(ours, theirs, as_of=AS_OF, view=view)
    found = reconcile_tables(LineTable.of_entries(ours), LineTable.of_entries(theirs), as_of=AS_OF, view=view)
    by_lines = [(m.our_positions, m.their_positions, m.rule, m.difference_minor) for m in wanted.matched]
    assert everything(found) == (sorted(by_lines), wanted.breaks, wanted.totals)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=9), st.lists(st.integers(0, 12), max_size=9), st.integers(1, 4)
)
def test_ids_whose_hashes_collide_change_nothing(here: list[int], there: list[int], hashes: int) -> None:
    ours, theirs = ([clean(number) for number in numbers] for numbers in (here, there))
    wanted = reconcile(ours, theirs, as_of=AS_OF)
    honest = keys._hashes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "_hashes", lambda texts: honest(texts) % hashes)
        found = reconcile_tables(LineTable.of_entries(ours), LineTable.of_entries(theirs), as_of=AS_OF)
    by_lines = [(m.our_positions, m.their_positions, m.rule, m.difference_minor) for m in wanted.matched]
    assert everything(found) == (sorted(by_lines), wanted.breaks, wanted.totals)


TEXTS = st.lists(st.one_of(st.none(), st.text("ab\u00e9", max_size=20)), max_size=12)


@settings(max_examples=100, deadline=None)
@given(TEXTS, TEXTS, st.integers(0, 3), st.one_of(st.none(), st.permutations(range(-6, 12))))
def test_mates_are_the_only_two_lines_of_an_id(
    here: list[str | None], there: list[str | None], cut: int, places: list[int] | None
) -> None:
    # A slice of a column, whose texts do not begin where its buffer does.
    ours, theirs = (pa.array([*(["x"] * cut), *texts], pa.string()).slice(cut) for texts in (here, there))
    # Wherever it is told to look first.
    likely = (
        None if places is None else np.array([at if at < len(there) else -1 for at in places[: len(here)]], np.int64)
    )
    found = keys.find_mates(ours, theirs, likely=likely)
    for texts, others, mates in ((here, there, found.ours), (there, here, found.theirs)):
        wanted = []
        for text in texts:
            if text is None:
                wanted.append(keys.NONE)
            elif texts.count(text) == 1 and others.count(text) <= 1:
                wanted.append(others.index(text) if text in others else keys.ALONE)
            else:
                wanted.append(keys.CROWDED)
        assert mates.tolist() == wanted
    paired = [number for number, mate in enumerate(found.ours.tolist()) if mate >= 0]
    assert found.are_equal(found.theirs[found.ours[paired]], found.ours[paired]).all()


def test_clean_lines_never_reach_the_specification() -> None:
    for rule, changes in (
        (MatchRule.UETR, {}),
        (MatchRule.END_TO_END_ID, {"uetr": None}),
        (MatchRule.REFERENCE, {"uetr": None, "end_to_end_id": "NOTPROVIDED"}),
    ):
        ours = [replace(clean(number), **changes) for number in range(500)]  # type: ignore[arg-type]
        found = reconcile_tables(LineTable.of_entries(ours), LineTable.of_entries(ours[::-1]), as_of=AS_OF)
        assert [(pairs.rule, len(pairs.ours)) for pairs in found.pairs] == [(rule, 500)]
        assert found.rest.matched == () and found.rest.breaks == ()


@given(st.lists(LINE, max_size=5))
def test_a_table_of_lines_gives_the_lines_back(lines: list[StatementEntry]) -> None:
    assert LineTable.of_entries(lines).entries() == lines
    assert LineTable.of_entries(lines).entries([len(lines) - 1] if lines else []) == lines[-1:]


def clean(number: int) -> StatementEntry:
    return StatementEntry(
        f"R{number}",
        f"E{number}",
        uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
        Money(1_000 + number % 7, CNY),
        Direction.CREDIT if number % 2 else Direction.DEBIT,
        datetime(2026, 11, 2, 9, tzinfo=UTC),
        DAY,
    )

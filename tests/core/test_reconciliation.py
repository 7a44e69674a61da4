"""Goal: whatever differs between two sets of lines is found once, under its own name; what agrees is matched.

Method: a table of planted breaks, a Hypothesis test that plants breaks of random types at random places and
demands exactly
those, conservation (each line is in one match or one break), and a large run for its time.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel.money import Currency, Money
from settlement.domain.reconciliation import (
    AgeBucket,
    BreakType,
    MatchRule,
    ReconciliationResult,
    Side,
    View,
    age_bucket,
    check_statement,
    reconcile,
    reconcile_statements,
)
from settlement.domain.reconciliation.model import ONE_SIDED
from settlement.domain.statements import Direction, EntryStatus, Statement, StatementEntry, reference_of

CNY, AED = Currency.of("CNY"), Currency.of("AED")
DAY = date(2026, 11, 2)
AS_OF = date(2026, 11, 5)
B = BreakType
Lines = list[StatementEntry]


def entry(number: int, **changes: object) -> StatementEntry:
    made = StatementEntry(
        reference_of(uuid.UUID(int=number)),
        f"E{number}",
        uuid.UUID(int=number << 80 | 4 << 76 | 2 << 62),
        Money(1_000 + number % 7, CNY),
        Direction.CREDIT if number % 2 else Direction.DEBIT,
        datetime(2026, 11, 2, 9, tzinfo=UTC),
        DAY,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def lines(count: int = 10) -> Lines:
    return [entry(number) for number in range(1, count + 1)]


def kinds(result: ReconciliationResult) -> list[BreakType]:
    return [found.type for found in result.breaks]


def changed(items: Lines, index: int, **changes: object) -> Lines:
    return [replace(item, **changes) if at == index else item for at, item in enumerate(items)]  # type: ignore[arg-type]


def assert_conserved(result: ReconciliationResult, ours: Lines, theirs: Lines) -> None:
    """Each line is in exactly one match or one break."""
    seen_ours = Counter(line.reference for match in result.matched for line in match.ours)
    seen_theirs = Counter(line.reference for match in result.matched for line in match.theirs)
    for found in result.breaks:
        seen_ours.update(found.our_references)
        seen_theirs.update(found.their_references)
    assert seen_ours == Counter(item.reference for item in ours)
    assert seen_theirs == Counter(item.reference for item in theirs)


BASE = lines()


@pytest.mark.parametrize(
    ("ours", "theirs", "kind", "difference", "gross"),
    [
        (BASE, BASE[1:], B.MISSING_THERE, -1001, {"CNY": 1001}),
        (BASE[1:], BASE, B.MISSING_HERE, 1001, {"CNY": 1001}),
        (BASE, changed(BASE, 0, amount=Money(1_101, CNY)), B.AMOUNT, 100, {"CNY": 100}),
        (BASE, changed(BASE, 1, amount=Money(1_102, CNY)), B.AMOUNT, -100, {"CNY": 100}),
        (BASE, changed(BASE, 0, amount=Money(1_001, AED)), B.CURRENCY, None, {"AED": 1001, "CNY": 1001}),
        (BASE, changed(BASE, 0, direction=Direction.DEBIT), B.DIRECTION, -2002, {"CNY": 2002}),
        (BASE, changed(BASE, 0, value_date=date(2026, 11, 3)), B.VALUE_DATE, 0, {"CNY": 1001}),
        (BASE, changed(BASE, 0, status=EntryStatus.PENDING), B.STATUS, 0, {"CNY": 1001}),
        (BASE, [*BASE, BASE[0]], B.DUPLICATE, 1001, {"CNY": 1001}),
        ([BASE[0], *BASE], BASE, B.DUPLICATE, -1001, {"CNY": 1001}),
        (BASE, [*BASE, replace(BASE[0], reference="other")], B.DUPLICATE, 1001, {"CNY": 1001}),
        (BASE, [replace(BASE[0], amount=Money(9, CNY)), *BASE], B.DUPLICATE, 9, {"CNY": 9}),
    ],
)
def test_planted_break_is_found_once_under_its_name(
    ours: Lines, theirs: Lines, kind: BreakType, difference: int | None, gross: dict[str, int]
) -> None:
    result = reconcile(ours, theirs, as_of=AS_OF)
    assert kinds(result) == [kind]
    assert result.breaks[0].difference_minor == difference
    assert result.totals.gross_minor_by_currency == gross
    assert (result.breaks[0].age_days, result.breaks[0].bucket) == (3, AgeBucket.DAYS_2_5)
    assert_conserved(result, ours, theirs)


def test_equal_sides_match_whole_in_either_view() -> None:
    mirrored = [replace(item, direction=item.direction.opposite) for item in BASE]
    for theirs, view in ((BASE, View.SAME_ACCOUNT), (mirrored, View.MIRROR)):
        result = reconcile(BASE, theirs[::-1], as_of=AS_OF, view=view)
        assert result.breaks == ()
        assert [match.ours[0] for match in result.matched] == BASE
        assert result.totals.matched_by_rule == {MatchRule.UETR: 10}
    assert kinds(reconcile(BASE, mirrored, as_of=AS_OF)) == [B.DIRECTION] * 10


def test_mirror_break_is_signed_as_we_see_it() -> None:
    theirs = [replace(item, direction=item.direction.opposite) for item in changed(BASE, 0, amount=Money(1_101, CNY))]
    assert reconcile(BASE, theirs, as_of=AS_OF, view=View.MIRROR).breaks[0].difference_minor == 100


def test_one_pair_with_several_differences_is_one_break() -> None:
    theirs = changed(BASE, 0, amount=Money(5, CNY), value_date=date(2026, 11, 3), status=EntryStatus.PENDING)
    (found,) = reconcile(BASE, theirs, as_of=AS_OF).breaks
    assert (found.type, found.also) == (B.AMOUNT, (B.STATUS, B.VALUE_DATE))
    assert "CNY 10.01" in found.sentence
    assert "CNY 0.05" in found.sentence


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"uetr": None}, MatchRule.END_TO_END_ID),
        ({"uetr": None, "end_to_end_id": None}, MatchRule.REFERENCE),
        ({"uetr": None, "end_to_end_id": "NOTPROVIDED"}, MatchRule.REFERENCE),
        ({"uetr": None, "end_to_end_id": None, "reference": "x"}, MatchRule.COMPOSITE),
    ],
)
def test_the_strongest_id_that_both_have_decides(change: dict[str, object], rule: MatchRule) -> None:
    item = entry(1)
    result = reconcile([item], [replace(item, **change)], as_of=AS_OF)  # type: ignore[arg-type]
    assert [match.rule for match in result.matched] == [rule]
    assert result.matched[0].is_certain == (rule is not MatchRule.COMPOSITE)


def test_composite_never_joins_lines_whose_ids_contradict() -> None:
    ours, theirs = entry(1), entry(8)  # same amount, another payment
    theirs = replace(theirs, direction=ours.direction)
    assert kinds(reconcile([ours], [theirs], as_of=AS_OF)) == [B.MISSING_THERE, B.MISSING_HERE]


def test_two_candidates_without_ids_are_ambiguous_and_named_once() -> None:
    bare = {"uetr": None, "end_to_end_id": None}
    ours = [entry(1, **bare), entry(1, **bare, reference="b")]
    theirs = [entry(1, **bare, reference="c")]
    result = reconcile(ours, theirs, as_of=AS_OF)
    assert kinds(result) == [B.AMBIGUOUS]
    assert (len(result.breaks[0].our_references), len(result.breaks[0].their_references)) == (2, 1)
    assert_conserved(result, ours, theirs)


def test_shared_id_that_fits_nothing_is_ambiguous() -> None:
    ours = [entry(1, reference="a", amount=Money(10, CNY)), entry(1, reference="b", amount=Money(20, CNY))]
    theirs = [entry(1, reference="c", amount=Money(15, CNY))]
    assert kinds(reconcile(ours, theirs, as_of=AS_OF)) == [B.AMBIGUOUS]


def test_return_under_the_same_uetr_is_not_a_duplicate() -> None:
    back = entry(1, reference="back", direction=Direction.DEBIT)
    assert reconcile([entry(1), back], [back, entry(1)], as_of=AS_OF).breaks == ()
    (found,) = reconcile([entry(1), back], [entry(1)], as_of=AS_OF).breaks
    assert (found.type, found.side, found.our_references) == (B.REVERSED, Side.OURS, ("back",))


def test_one_end_to_end_id_for_many_payments_on_both_sides_matches() -> None:
    rent = [entry(number, uetr=None, end_to_end_id="RENT", amount=Money(500, CNY)) for number in (1, 3, 5)]
    assert reconcile(rent, rent[::-1], as_of=AS_OF).breaks == ()
    assert kinds(reconcile(rent, rent[:2], as_of=AS_OF)) == [B.DUPLICATE]


def rules_and_breaks(ours: Lines, theirs: Lines) -> list[tuple[object, ...]]:
    """Each match as its rule and references, each break as its type and references."""
    result = reconcile(ours, theirs, as_of=AS_OF)
    assert_conserved(result, ours, theirs)
    assert result.totals.matched == sum(match.rule not in ONE_SIDED for match in result.matched)
    return [
        *((x.rule, [y.reference for y in x.ours], [y.reference for y in x.theirs]) for x in result.matched),
        *((x.type, list(x.our_references), list(x.their_references)) for x in result.breaks),
    ]


OURS = entry(1, reference="ours")
BOOKED, PENDING = entry(1, reference="book"), entry(1, reference="pend", status=EntryStatus.PENDING)
NO_ID = {"uetr": None, "end_to_end_id": None, "reference": "one"}


def test_a_booked_line_replaces_the_pending_one_of_its_payment() -> None:
    matched = (MatchRule.UETR, ["ours"], ["book"])
    replaced = (MatchRule.REPLACED, [], ["pend"])
    for theirs in ([PENDING, BOOKED], [BOOKED, PENDING], [PENDING, PENDING, BOOKED]):
        assert rules_and_breaks([OURS], theirs) == [*[replaced] * (len(theirs) - 1), matched]
    # A pending line of ours does not bring theirs back: they have booked it.
    still = replace(OURS, status=EntryStatus.PENDING)
    assert rules_and_breaks([still], [PENDING, BOOKED]) == [replaced, (B.STATUS, ["ours"], ["book"])]
    assert rules_and_breaks([], [PENDING, BOOKED]) == [replaced, (B.MISSING_HERE, [], ["book"])]
    # Under the servicer's reference alone, and with another amount under the reference and an id of the payment.
    bare = [replace(line, **NO_ID) for line in (OURS, PENDING, BOOKED)]  # type: ignore[arg-type]
    assert rules_and_breaks(bare[:1], bare[1:]) == [
        (MatchRule.REPLACED, [], ["one"]),
        (MatchRule.REFERENCE, ["one"], ["one"]),
    ]
    estimate = replace(PENDING, reference="book", amount=Money(1_101, CNY))
    assert rules_and_breaks([OURS], [estimate, BOOKED]) == [(MatchRule.REPLACED, [], ["book"]), matched]
    # On our side as on theirs.
    assert rules_and_breaks([PENDING, OURS], [BOOKED]) == [(MatchRule.REPLACED, ["pend"], []), matched]


def test_what_is_booked_twice_or_two_payments_are_replaced_by_nothing() -> None:
    again = replace(BOOKED, reference="again")
    assert (B.DUPLICATE, [], ["again"]) in rules_and_breaks([OURS], [BOOKED, again])
    twice = [PENDING, replace(PENDING, reference="pend2")]
    assert [x[0] for x in rules_and_breaks([OURS], twice)] == [B.STATUS, B.DUPLICATE]
    other = entry(2, reference="pend", amount=BOOKED.amount, direction=BOOKED.direction, status=EntryStatus.PENDING)
    assert [x[0] for x in rules_and_breaks([OURS], [BOOKED, other])] == [MatchRule.UETR, B.MISSING_HERE]
    dearer = replace(PENDING, amount=Money(1_101, CNY))
    assert MatchRule.REPLACED not in [x[0] for x in rules_and_breaks([OURS], [BOOKED, dearer])]


def test_a_payment_that_was_reversed_and_booked_again_is_one_match() -> None:
    undone = replace(BOOKED, reference="undo", direction=Direction.DEBIT)
    again = replace(BOOKED, reference="again")
    for marked in (False, True):
        theirs = [BOOKED, replace(undone, is_reversal=marked), again]
        assert rules_and_breaks([OURS], theirs) == [
            (MatchRule.REVERSED, [], ["book", "undo"]),
            (MatchRule.UETR, ["ours"], ["again"]),
        ]
    # The booking that we have stays: here the first.
    later = replace(again, value_date=date(2026, 11, 3))
    assert rules_and_breaks([OURS], [BOOKED, undone, later]) == [
        (MatchRule.REVERSED, [], ["again", "undo"]),
        (MatchRule.UETR, ["ours"], ["book"]),
    ]
    # Booked wrongly, reversed, and booked as it should be.
    wrong = [replace(line, amount=Money(1_100, CNY)) for line in (BOOKED, undone)]
    assert [x[0] for x in rules_and_breaks([OURS], [*wrong, again])] == [MatchRule.REVERSED, MatchRule.UETR]
    # Ours, undone by us.
    ours = [OURS, replace(undone, reference="undo"), replace(OURS, reference="ours2")]
    assert [x[0] for x in rules_and_breaks(ours, [BOOKED])] == [MatchRule.REVERSED, MatchRule.UETR]
    # A statement later only the reversal, which says so, and what was booked again are left.
    assert rules_and_breaks([], [replace(undone, is_reversal=True), again]) == [
        (MatchRule.REVERSED, [], ["again", "undo"])
    ]


def test_a_reversal_that_is_not_made_good_stays_a_break() -> None:
    undone = replace(BOOKED, reference="undo", direction=Direction.DEBIT)
    assert rules_and_breaks([OURS], [BOOKED, undone]) == [
        (MatchRule.UETR, ["ours"], ["book"]),
        (B.REVERSED, [], ["undo"]),
    ]
    # A payment and its return, which we have too, or which nobody calls a reversal and we know nothing of.
    both = [OURS, replace(undone, reference="back")]
    assert [x[0] for x in rules_and_breaks(both, [BOOKED, undone])] == [MatchRule.UETR, MatchRule.UETR]
    assert [x[0] for x in rules_and_breaks([], [BOOKED, undone])] == [B.MISSING_HERE, B.MISSING_HERE]
    other = replace(undone, amount=Money(1_100, CNY))
    assert MatchRule.REVERSED not in [x[0] for x in rules_and_breaks([OURS], [BOOKED, other, BOOKED])]


def test_gross_value_is_never_netted() -> None:
    theirs = changed(changed(BASE, 0, amount=Money(1_101, CNY)), 2, amount=Money(903, CNY))
    result = reconcile(BASE, theirs, as_of=AS_OF)
    assert sum(found.difference_minor or 0 for found in result.breaks) == 0
    assert result.totals.gross_minor_by_currency == {"CNY": 200}


@pytest.mark.parametrize(
    ("days", "bucket"), [(0, "0-1"), (1, "0-1"), (2, "2-5"), (5, "2-5"), (6, "6-30"), (30, "6-30"), (31, ">30")]
)
def test_age_buckets(days: int, bucket: str) -> None:
    assert age_bucket(days) == bucket
    assert reconcile([entry(1)], [], as_of=DAY + timedelta(days=days)).breaks[0].bucket == bucket


def test_value_date_in_the_future_has_no_age() -> None:
    assert reconcile([entry(1)], [], as_of=date(2026, 1, 1)).breaks[0].age_days == 0


def test_amounts_near_the_bound_do_not_overflow() -> None:
    bare = {"uetr": None, "end_to_end_id": None, "amount": Money(2**63 - 1, CNY)}
    ours = [entry(1, **bare, reference=f"a{number}") for number in range(3)]
    theirs = [entry(1, **bare, reference=f"b{number}") for number in range(3)]
    result = reconcile(ours, theirs, as_of=AS_OF)
    assert result.totals.gross_minor_by_currency == {"CNY": 3 * (2**63 - 1)}


def statement(number: int, opening: int, items: Lines) -> Statement:
    at = datetime(2026, 11, 2, tzinfo=UTC)
    empty = Statement(f"S{number}", number, "acc_1", CNY, at, at, at, opening, 0, ())
    return empty.with_entries(items)


def test_statement_level_breaks() -> None:
    first = statement(1, 0, BASE)
    good = statement(2, first.closing_minor, lines(2))
    assert check_statement(good, previous=first, as_of=AS_OF) == ()
    for wrong, kind in (
        (statement(3, first.closing_minor, []), B.SEQUENCE_GAP),
        (statement(2, first.closing_minor + 1, []), B.OPENING_NOT_PREVIOUS_CLOSING),
        (replace(good, closing_minor=good.closing_minor - 1), B.CLOSING_NOT_OPENING_PLUS_ENTRIES),
    ):
        assert [found.type for found in check_statement(wrong, previous=first, as_of=AS_OF)] == [kind]
        result = reconcile_statements(wrong, wrong, as_of=AS_OF, previous_theirs=first)
        assert kinds(result) == [kind]


def test_pending_line_is_in_no_booked_balance() -> None:
    pending = entry(1, status=EntryStatus.PENDING)
    assert statement(1, 7, [pending]).closing_minor == 7


CHANGES = {
    B.AMOUNT: lambda item: replace(item, amount=Money(item.amount.amount_minor + 7, CNY)),
    B.CURRENCY: lambda item: replace(item, amount=Money(item.amount.amount_minor, AED)),
    B.DIRECTION: lambda item: replace(item, direction=item.direction.opposite),
    B.VALUE_DATE: lambda item: replace(item, value_date=item.value_date + timedelta(days=1)),
    B.STATUS: lambda item: replace(item, status=EntryStatus.PENDING),
}
PLANTED = [*CHANGES, B.MISSING_THERE, B.MISSING_HERE, B.DUPLICATE]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from([None, None, *PLANTED]), max_size=40),
    st.sampled_from(["all ids", "no uetr", "reference only"]),
    st.sampled_from(View),
    st.randoms(use_true_random=False),
)
def test_exactly_the_planted_breaks_are_found(
    plan: list[BreakType | None], ids: str, view: View, chance: random.Random
) -> None:
    ours: Lines = []
    theirs: Lines = []
    expected: set[tuple[BreakType, Side | None, str]] = set()
    for number, kind in enumerate(plan, start=1):
        item = entry(number)
        if ids != "all ids":
            item = replace(item, uetr=None)
        if ids == "reference only":
            # Without ids in common only distinct amounts keep two missing lines apart.
            item = replace(item, end_to_end_id="NOTPROVIDED", amount=Money(1_000 * number, CNY))
        side = None
        if kind is not B.MISSING_HERE:
            ours.append(item)
        if kind is not B.MISSING_THERE:
            theirs.append(CHANGES[kind](item) if kind in CHANGES else item)
        if kind is B.DUPLICATE:
            side = chance.choice(list(Side))
            (ours if side is Side.OURS else theirs).append(item)
        if kind is not None:
            expected.add((kind, side, item.reference))
    chance.shuffle(ours)
    chance.shuffle(theirs)
    if view is View.MIRROR:
        theirs = [replace(item, direction=item.direction.opposite) for item in theirs]
    result = reconcile(ours, theirs, as_of=AS_OF, view=view)
    found = [(x.type, x.side, (x.our_references or x.their_references)[0]) for x in result.breaks]
    assert sorted(found, key=str) == sorted(expected, key=str)
    assert_conserved(result, ours, theirs)
    again = reconcile(ours, theirs, as_of=AS_OF, view=view)
    assert again == result


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_line_is_accounted_for_once_even_in_a_muddle(data: st.DataObject) -> None:
    """Few values for every field, so that ids collide, contradict and repeat."""
    line = st.builds(
        entry,
        st.integers(1, 3),
        reference=st.sampled_from("abc"),
        uetr=st.sampled_from([None, entry(1).uetr, entry(2).uetr]),
        end_to_end_id=st.sampled_from([None, "E1", "E2", "NOTPROVIDED"]),
        amount=st.sampled_from([Money(1, CNY), Money(2, CNY), Money(1, AED)]),
        direction=st.sampled_from(Direction),
    )
    ours, theirs = data.draw(st.lists(line, max_size=8)), data.draw(st.lists(line, max_size=8))
    result = reconcile(ours, theirs, as_of=AS_OF)
    assert_conserved(result, ours, theirs)
    for match in result.matched:
        if match.rule in ONE_SIDED:
            continue
        ours_sum, theirs_sum = (sum(line.amount.amount_minor for line in lines) for lines in (match.ours, match.theirs))
        assert ours_sum == theirs_sum  # one payment may be booked in parts
        assert len({(line.direction, line.amount.currency) for line in (*match.ours, *match.theirs)}) == 1
    assert reconcile(ours, ours, as_of=AS_OF).totals.breaks_by_type.keys() <= {B.DUPLICATE}


@pytest.mark.extended
def test_many_lines_take_linear_time_even_when_all_look_alike() -> None:
    ours = lines(5_000)
    alike = [replace(item, direction=Direction.CREDIT, amount=Money(1, CNY)) for item in lines(10_000)]
    started = time.perf_counter()
    assert reconcile(ours, ours, as_of=AS_OF).breaks == ()
    assert len(reconcile(alike[:5_000], alike[5_000:], as_of=AS_OF).breaks) == 10_000
    assert time.perf_counter() - started < 30  # takes about 1 s; a quadratic step would take minutes

"""One reconciliation from its inputs to its result and the result's digest: what the service stores is what `evidence
verify` computes again from the same inputs.

Inputs: both sources' lines; which of theirs belong to the run; the lines of earlier breaks that are carried, so that a
late side finds them; the rules. Positions count a source's lines from 0; carried lines follow after its last.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.compute as pc  # type: ignore[import-untyped]

from kernel.money import Currency
from settlement.domain.reconciliation.checks import Finder, check_succession
from settlement.domain.reconciliation.columnar import Pairs, ids_of, reconcile_tables
from settlement.domain.reconciliation.lines import LineTable, entry_of_json, entry_to_json
from settlement.domain.reconciliation.model import ONE_SIDED, Break, BreakType, Match, MatchRule, Rules, Totals, View
from settlement.domain.statements import StatementEntry

AUTO_CLOSED = frozenset(
    {
        BreakType.MISSING_HERE,
        BreakType.MISSING_THERE,
        BreakType.AMOUNT,
        BreakType.FEE,
        BreakType.FX_RATE,
        BreakType.CURRENCY,
        BreakType.DIRECTION,
        BreakType.STATUS,
        BreakType.VALUE_DATE,
        BreakType.SPLIT_INCOMPLETE,
        BreakType.AMBIGUOUS,
        BreakType.REVERSED,
    }
)
"""Breaks that end when every line of ours in them (or else of theirs) is matched in a later run."""


@dataclass(frozen=True, slots=True)
class Previous:
    """The statement before theirs, for the check of succession."""

    sequence_number: int | None
    closing_minor: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of their lines belong to the run, and what else was known. All that the result rests on beside the files
    and the rules."""

    booked_from: datetime | None = None
    booked_to: datetime | None = None
    """Exclusive."""
    is_of_batch: bool = False
    """Their lines that name a payment of ours belong to the run whenever they say that they were booked."""
    excluded_uetrs: tuple[str, ...] = ()
    """Payments of other batches."""
    accounts: tuple[str, ...] = ()
    previous: Previous | None = None
    carried_ours: tuple[StatementEntry, ...] = ()
    carried_theirs: tuple[StatementEntry, ...] = ()

    def mask(self, theirs: LineTable, ours: LineTable, zone: ZoneInfo) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of their lines are compared.

        Most statements say the day of a booking and no time: such a line (00:00 UTC) counts from the beginning of that
        day in the counterparty's zone. Where a run begins within a day, such a line of that day may belong to it or to
        what was before: it does if it names a payment of ours, or, in a run of a batch, if it names none at all.
        """
        booked_at = theirs.numbers("booked_at")
        keep = np.ones(len(theirs), bool)
        is_day = booked_at % _DAY_MICROS == 0
        if self.booked_from is not None:
            in_time = booked_at >= _micros(self.booked_from)
            if self.is_of_batch or not in_time.all():
                is_first_day = is_day & (booked_at >= _micros_of_day(self.booked_from.astimezone(zone).date()))
                is_ours, is_nobodys = _named(theirs, ours)
                may_be = is_ours | is_nobodys & is_first_day if self.is_of_batch else is_ours & is_first_day
                in_time |= may_be
            keep &= in_time
        if self.booked_to is not None:
            end = self.booked_to.astimezone(zone)
            days = end.date() if end.time() == time() else end.date() + timedelta(days=1)
            keep &= np.where(is_day, booked_at < _micros_of_day(days), booked_at < _micros(self.booked_to))
        if self.excluded_uetrs:
            others = pa.array(self.excluded_uetrs, pa.string())
            keep &= ~pc.is_in(theirs.strings("uetr"), value_set=others).to_numpy(zero_copy_only=False)
        return keep


_DAY_MICROS = 86_400_000_000
_EPOCH = date(1970, 1, 1)


def _micros(at: datetime) -> int:
    return int((at - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1))


def _micros_of_day(day: date) -> int:
    return (day - _EPOCH).days * _DAY_MICROS


def _named(theirs: LineTable, ours: LineTable) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of each line of theirs: whether it has an id of a line of ours, and whether it has no id at all."""
    is_ours, is_nobodys, no_uetr = np.zeros(len(theirs), bool), np.ones(len(theirs), bool), np.ones(len(theirs), bool)
    for name in ("uetr", "end_to_end_id"):
        ids, known = (ids_of(lines, name) for lines in (theirs, ours))
        is_nobodys &= ids.is_null().to_numpy(zero_copy_only=False)
        if known.null_count < len(known):
            found = pc.is_in(ids, value_set=known.drop_null().unique()).to_numpy(zero_copy_only=False)
            is_ours |= found & no_uetr  # an end-to-end id may be a payer's for many payments
        if name == "uetr":
            no_uetr = is_nobodys.copy()
    return is_ours, is_nobodys


@dataclass(frozen=True, slots=True)
class StatementPapers:
    """What a camt statement says beside its lines, and the breaks within it."""

    statement_id: str
    sequence_number: int | None
    opening_minor: int
    currency: Currency
    day: date
    findings: tuple[Break, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result in the sources' positions. `lines_*` and `matched` leave out the carried lines."""

    pairs: tuple[Pairs, ...]
    matches: tuple[Match, ...]
    breaks: tuple[Break, ...]
    """Of this run: breaks of carried lines alone are open already."""
    totals: Totals
    lines_ours: int
    lines_theirs: int
    matched: int
    digest: bytes
    matched_ours: frozenset[str] = field(default_factory=frozenset)
    """Of the references that were asked about, those of matched lines."""
    matched_theirs: frozenset[str] = field(default_factory=frozenset)


def run_session(
    ours: LineTable,
    theirs: LineTable,
    *,
    selection: Selection,
    rules: Rules,
    view: View,
    as_of: date,
    papers: StatementPapers | None = None,
    asked_ours: Collection[str] = (),
    asked_theirs: Collection[str] = (),
) -> Outcome:
    """Reconcile. `asked_*` are references of older breaks: are their lines matched now?"""
    kept = np.flatnonzero(selection.mask(theirs, ours, ZoneInfo(rules.zone)))
    chosen = theirs if len(kept) == len(theirs) else LineTable(theirs.table.take(pa.array(kept)).combine_chunks())
    our_count, their_count = len(ours), len(theirs)
    places = np.concatenate([kept, their_count + np.arange(len(selection.carried_theirs))]).astype(np.int64)
    result = reconcile_tables(
        _with(ours, selection.carried_ours),
        _with(chosen, selection.carried_theirs),
        as_of=as_of,
        view=view,
        rules=rules,
        accounts=selection.accounts or None,
    )
    pairs = tuple(Pairs(found.rule, found.ours, places[found.theirs]) for found in result.pairs)
    matches = tuple(
        replace(found, their_positions=tuple(int(places[at]) for at in found.their_positions))
        for found in result.rest.matched
    )
    breaks = [
        replace(found, their_positions=tuple(int(places[at]) for at in found.their_positions))
        for found in result.rest.breaks
    ]
    new = [
        found
        for found in breaks
        if any(at < our_count for at in found.our_positions) or any(at < their_count for at in found.their_positions)
    ]
    if papers is not None:
        new += papers.findings
        if selection.previous is not None:
            new += check_succession(
                Finder(papers.statement_id, papers.currency, papers.day, as_of),
                sequence=(selection.previous.sequence_number, papers.sequence_number),
                closing_minor=selection.previous.closing_minor,
                opening_minor=papers.opening_minor,
            )
    carried = sum(int(((x.ours >= our_count) | (x.theirs >= their_count)).sum()) for x in pairs) + sum(
        1
        for x in matches
        if x.rule not in ONE_SIDED and (max(x.our_positions) >= our_count or max(x.their_positions) >= their_count)
    )
    done_ours = _matched(our_count + len(selection.carried_ours), pairs, matches, is_ours=True)
    done_theirs = _matched(their_count + len(selection.carried_theirs), pairs, matches, is_ours=False)
    return Outcome(
        pairs=pairs,
        matches=matches,
        breaks=tuple(new),
        totals=result.totals,
        lines_ours=our_count,
        lines_theirs=len(kept),
        matched=result.totals.matched - carried,
        digest=digest_of(pairs, matches, new),
        matched_ours=_asked(ours, selection.carried_ours, done_ours, asked_ours),
        matched_theirs=_asked(theirs, selection.carried_theirs, done_theirs, asked_theirs),
    )


def digest_of(pairs: Sequence[Pairs], matches: Sequence[Match], breaks: Sequence[Break]) -> bytes:
    """SHA-256 over the whole result: pairs as packed positions, the rest as JSON."""
    digest = hashlib.sha256()
    for found in pairs:
        packed = pack_pairs(found.ours, found.theirs)
        digest.update(f"{found.rule.value} {len(packed)}\n".encode() + packed)
    digest.update(_json([match_document(found) for found in matches]) + b"\n")
    digest.update(_json([break_document(found) for found in breaks]))
    return digest.digest()


def pack_pairs(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> bytes:
    return ours.astype("<i4").tobytes() + theirs.astype("<i4").tobytes()


def unpack_pairs(rule: MatchRule, packed: bytes) -> Pairs:
    """Raises ValueError for bytes that are no whole number of pairs."""
    if len(packed) % 8:
        raise ValueError("pairs are of eight bytes")
    both = np.frombuffer(packed, "<i4").astype(np.int64)
    half = len(both) // 2
    return Pairs(rule, both[:half], both[half:])


def match_document(match: Match) -> dict[str, Any]:
    return {
        "rule": match.rule.value,
        "our_positions": list(match.our_positions),
        "their_positions": list(match.their_positions),
        "our_references": [line.reference for line in match.ours],
        "their_references": [line.reference for line in match.theirs],
        "difference_minor": str(match.difference_minor),
    }


def break_document(found: Break) -> dict[str, Any]:
    return {
        "type": found.type.value,
        "side": None if found.side is None else found.side.value,
        "also": [kind.value for kind in found.also],
        "our_references": list(found.our_references),
        "their_references": list(found.their_references),
        "our_positions": list(found.our_positions),
        "their_positions": list(found.their_positions),
        "our_amount_minor": None if found.ours is None else str(found.ours.amount_minor),
        "their_amount_minor": None if found.theirs is None else str(found.theirs.amount_minor),
        "difference_minor": None if found.difference_minor is None else str(found.difference_minor),
        "gross": {currency.code: str(amount) for currency, amount in found.gross_minor},
        "oldest": None if found.oldest is None else found.oldest.isoformat(),
        "sentence": found.sentence,
    }


def rules_to_json(rules: Rules) -> dict[str, Any]:
    return {
        "amount_minor_max": rules.amount_minor_max,
        "value_days_max": rules.value_days_max,
        "zone": rules.zone,
        "cut_off": None if rules.cut_off is None else rules.cut_off.isoformat(),
        "fee_minor_max": rules.fee_minor_max,
        "fee_bps_max": rules.fee_bps_max,
        "subset_lines_max": rules.subset_lines_max,
        "days_off": [day.isoformat() for day in sorted(rules.days_off)],
        "working_days": [day.isoformat() for day in sorted(rules.working_days)],
    }


def rules_of_json(value: Mapping[str, Any]) -> Rules:
    """Raises ValueError, TypeError."""
    cut_off = value.get("cut_off")
    days = {name: frozenset(map(date.fromisoformat, value.get(name, ()))) for name in ("days_off", "working_days")}
    return Rules(**(dict(value) | {"cut_off": None if cut_off is None else time.fromisoformat(cut_off)} | days))


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _with(lines: LineTable, carried: Iterable[StatementEntry]) -> LineTable:
    more = LineTable.of_entries(carried)
    return lines if not len(more) else LineTable(pa.concat_tables([lines.table, more.table]).combine_chunks())


def _matched(
    count: int, pairs: Sequence[Pairs], matches: Sequence[Match], *, is_ours: bool
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    found = np.zeros(count, bool)
    for item in pairs:
        found[item.ours if is_ours else item.theirs] = True
    for match in matches:
        found[list(match.our_positions if is_ours else match.their_positions)] = True
    return found


def _asked(
    lines: LineTable,
    carried: Sequence[StatementEntry],
    done: np.ndarray[Any, np.dtype[np.bool_]],
    asked: Collection[str],
) -> frozenset[str]:
    """References all of whose lines are matched."""
    if not asked:
        return frozenset()
    references = lines.strings("reference")
    hits = np.flatnonzero(
        pc.is_in(references, value_set=pa.array(sorted(asked), pa.string())).to_numpy(zero_copy_only=False)
    )
    is_done: dict[str, bool] = {}
    for at, reference in zip(hits.tolist(), references.take(pa.array(hits)).to_pylist(), strict=True):
        is_done[reference] = is_done.get(reference, True) and bool(done[at])
    for number, entry in enumerate(carried, start=len(lines)):
        if entry.reference in asked:
            is_done[entry.reference] = is_done.get(entry.reference, True) and bool(done[number])
    return frozenset(reference for reference, whole in is_done.items() if whole)


def references_of(lines: LineTable, wanted: Collection[str]) -> frozenset[str]:
    """Which of these references the lines have."""
    if not wanted or not len(lines):
        return frozenset()
    references = lines.strings("reference")
    return frozenset(
        references.filter(pc.is_in(references, value_set=pa.array(sorted(wanted), pa.string()))).to_pylist()
    )


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """As it is kept beside a run, and in its evidence."""
    previous = selection.previous
    moments = {"booked_from": selection.booked_from, "booked_to": selection.booked_to}
    return {
        **{name: None if at is None else at.astimezone(UTC).isoformat() for name, at in moments.items()},
        "is_of_batch": selection.is_of_batch,
        "excluded_uetrs": list(selection.excluded_uetrs),
        "accounts": list(selection.accounts),
        "previous": None
        if previous is None
        else {"sequence_number": previous.sequence_number, "closing_minor": str(previous.closing_minor)},
        "carried_ours": [entry_to_json(line) for line in selection.carried_ours],
        "carried_theirs": [entry_to_json(line) for line in selection.carried_theirs],
    }


def selection_of_json(value: Mapping[str, Any]) -> Selection:
    """Raises ValueError, TypeError, KeyError."""
    moments = [None if value[name] is None else datetime.fromisoformat(value[name]) for name in _MOMENTS]
    previous = value["previous"]
    return Selection(
        booked_from=moments[0],
        booked_to=moments[1],
        is_of_batch=bool(value["is_of_batch"]),
        excluded_uetrs=tuple(value["excluded_uetrs"]),
        accounts=tuple(value["accounts"]),
        previous=None
        if previous is None
        else Previous(_count(previous["sequence_number"]), int(previous["closing_minor"])),
        carried_ours=tuple(entry_of_json(line) for line in value["carried_ours"]),
        carried_theirs=tuple(entry_of_json(line) for line in value["carried_theirs"]),
    )


def _count(value: Any) -> int | None:
    return None if value is None else int(value)


_MOMENTS = ("booked_from", "booked_to")

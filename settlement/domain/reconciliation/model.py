"""What reconciliation speaks of: breaks and their types, matches, the rules of a relation, severity and age.

Signs: a line's value is positive for a credit of the account as *we* see it. `difference_minor` of a break is theirs
minus ours, so it is what our books lack to agree with theirs. Gross value is added up without sign and never netted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from kernel.money import Currency, Money
from settlement.domain.statements import StatementEntry

SUBSET_LINES_MAX = 6
SUBSET_CANDIDATES_MAX = 16
"""A whole is sought among so many lines at most: 14,892 subsets of up to 6."""
TOLERANCE_DAYS_MAX = 10
CLOSED_DAYS_MAX = 62
"""In a row: twice what a calendar may have (settlement.domain.calendars)."""
RULE_DAYS_MAX = 4_000
"""A calendar of ten years, whatever its weekend."""
_SATURDAY = 5


class BreakType(StrEnum):
    """Every way in which two sets of books disagree. Members up to VALUE_DATE are in order of precedence within a
    pair; the rest in the order of the report."""

    CURRENCY = "currency"
    DIRECTION = "direction"
    FX_RATE = "fx-rate"
    """Both have the payment and its instructed amount; converted at different rates."""
    FEE = "fee"
    """They credited less, or debited more, by no more than the fee that was agreed with them."""
    AMOUNT = "amount"
    STATUS = "status"
    VALUE_DATE = "value-date"
    DUPLICATE = "duplicate"
    """`side` says in whose books."""
    REVERSED = "reversed"
    """A line in the other direction undoes a matched one; the other side does not have it."""
    SPLIT_INCOMPLETE = "split-incomplete"
    """Parts and whole share a group reference and do not add up."""
    AMBIGUOUS = "ambiguous"
    UNKNOWN_ACCOUNT = "unknown-account"
    MISSING_THERE = "missing-there"
    """We have it, the counterparty does not."""
    MISSING_HERE = "missing-here"
    """The counterparty has it, we do not."""
    SEQUENCE_GAP = "sequence-gap"
    OPENING_NOT_PREVIOUS_CLOSING = "opening-not-previous-closing"
    CLOSING_NOT_OPENING_PLUS_ENTRIES = "closing-not-opening-plus-entries"
    ENTRY_COUNT = "entry-count"
    REORGED_EVENT = "reorged-event"
    """An island no longer has a leg as it had reported it."""
    ESCROW_STUCK = "escrow-stuck"
    """Money is reserved on an island though nothing is in doubt, or for longer than it may be."""
    MOVEMENT = "movement"
    """Nostro and vostro disagree: what the bridge's legs add up to is not what the island's account moved by."""


JOURNAL = "journal"
"""The counterparty of the bridge's own record as a source. Nobody hands in a file under this name."""


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
    GROUP = "group"
    """Several lines of one group reference, or of one id, add up to the other side's."""
    COMPOSITE = "composite"
    """Amount, currency, direction and value date, with one candidate on either side."""
    COMPOSITE_TOLERANCE = "composite-tolerance"
    """The same within the relation's tolerances."""
    SUBSET = "subset"
    """The only set of lines that adds up."""
    MANUAL = "manual"
    """An officer's decision."""
    REVERSED = "reversed"
    """A booking and its reversal on one side: they cancel each other, and the other side has neither."""
    REPLACED = "replaced"
    """A pending line whose payment the same side has booked since."""


ONE_SIDED = frozenset({MatchRule.REVERSED, MatchRule.REPLACED})
"""Settle lines of one side among themselves; they are no agreement of two books, and not counted as one."""
CERTAIN = ONE_SIDED | frozenset(
    {MatchRule.UETR, MatchRule.END_TO_END_ID, MatchRule.REFERENCE, MatchRule.GROUP, MatchRule.MANUAL}
)
"""Rest on an id or a decision; the others are suggestions that a person may undo."""


class AgeBucket(StrEnum):
    DAYS_0_1 = "0-1"
    DAYS_2_5 = "2-5"
    DAYS_6_30 = "6-30"
    DAYS_OVER_30 = ">30"


class Severity(StrEnum):
    """By amount or by age, whichever is worse."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"


_SEVERITY = (
    (Severity.CRITICAL, 100_000, AgeBucket.DAYS_OVER_30),
    (Severity.HIGH, 10_000, AgeBucket.DAYS_6_30),
    (Severity.MEDIUM, 1_000, AgeBucket.DAYS_2_5),
)
"""From this gross value in major units on, or in this bucket."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What two parties have agreed to let pass. The default lets nothing pass.

    Raises ValueError for a number out of bounds or an unknown time zone.
    """

    amount_minor_max: int = 0
    """Two amounts of one payment may differ by so much."""
    value_days_max: int = 0
    """Two value dates of one payment may be so many calendar days apart."""
    zone: str = "UTC"
    """The counterparty's time zone (IANA)."""
    cut_off: time | None = None
    """In that zone: what is booked from this time on may carry the next day's value date; what would carry a day's on
    which the counterparty is closed, that of the next on which it is not."""
    days_off: frozenset[date] = frozenset()
    """Closed beside Saturdays and Sundays."""
    working_days: frozenset[date] = frozenset()
    """Saturdays and Sundays that are worked."""
    fee_minor_max: int = 0
    fee_bps_max: int = 0
    """A shortfall up to the greater of the two is a fee, not a wrong amount. It remains a break."""
    subset_lines_max: int = 0
    """How many lines without an id may add up to one; 0 = no search."""

    def __post_init__(self) -> None:
        bounds = (
            (self.amount_minor_max, 10**12),
            (self.value_days_max, TOLERANCE_DAYS_MAX),
            (self.fee_minor_max, 10**12),
            (self.fee_bps_max, 1_000),
            (self.subset_lines_max, SUBSET_LINES_MAX),
            (len(self.days_off), RULE_DAYS_MAX),
            (len(self.working_days), RULE_DAYS_MAX),
        )
        if any(type(value) is not int or not 0 <= value <= highest for value, highest in bounds):
            raise ValueError("a tolerance is out of bounds")
        try:
            ZoneInfo(self.zone)
        except (KeyError, ValueError, OSError):
            raise ValueError(f"{self.zone[:40]!r} is not a time zone") from None

    @property
    def is_exact(self) -> bool:
        return self.amount_minor_max == 0 and self.value_days_max == 0 and self.cut_off is None

    def value_dates_agree(self, ours: StatementEntry, theirs: StatementEntry) -> bool:
        """Equal, within the window, or the same booking seen across the cut-off."""
        if ours.value_date == theirs.value_date:
            return True
        if abs((ours.value_date - theirs.value_date).days) <= self.value_days_max:
            return True
        if self.cut_off is None:
            return False
        day = self.local_value_date(ours.booked_at)
        return theirs.value_date in (day, self.next_open(day))

    def next_open(self, day: date) -> date:
        """That day, or the next on which the counterparty is not closed."""
        for _ in range(CLOSED_DAYS_MAX):
            if day in self.working_days or (day.weekday() < _SATURDAY and day not in self.days_off):
                break
            day += timedelta(days=1)
        return day

    def local_value_date(self, booked_at: datetime) -> date:
        """The counterparty's value date of a booking: its local day, or the next from the cut-off on."""
        local = booked_at.astimezone(ZoneInfo(self.zone))
        is_late = self.cut_off is not None and local.time() >= self.cut_off
        return local.date() + timedelta(days=1) if is_late else local.date()

    def fee_max_minor(self, amount_minor: int) -> int:
        return max(self.fee_minor_max, amount_minor * self.fee_bps_max // 10_000)


@dataclass(frozen=True, slots=True)
class Match:
    """Lines that agree within the rules; of a rule in `ONE_SIDED`, lines of one side. Positions count each side's lines
    from 0."""

    ours: tuple[StatementEntry, ...]
    theirs: tuple[StatementEntry, ...]
    rule: MatchRule
    our_positions: tuple[int, ...]
    their_positions: tuple[int, ...]
    difference_minor: int = 0
    """Theirs minus ours, within tolerance."""

    @property
    def is_certain(self) -> bool:
        return self.rule in CERTAIN


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
    """Whose books hold the duplicate or the reversal; None for other types."""
    also: tuple[BreakType, ...] = ()
    """Further differences of the same pair, of lower precedence."""
    our_positions: tuple[int, ...] = ()
    their_positions: tuple[int, ...] = ()
    oldest: date | None = None
    """The earliest value date, from which its age counts."""

    @property
    def severity(self) -> Severity:
        return severity(self.gross_minor, self.bucket)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts and gross values of one reconciliation."""

    lines_ours: int
    lines_theirs: int
    matched: int
    """Matches of both sides; of a match of several lines, one."""
    matched_by_rule: Mapping[MatchRule, int]
    breaks_by_type: Mapping[BreakType, int]
    breaks_by_bucket: Mapping[AgeBucket, int]
    gross_minor_by_currency: Mapping[str, int]
    """Value of all breaks by ISO 4217 code, in minor units, never netted."""


@dataclass(frozen=True, slots=True)
class ReconciliationResult:
    """Matches in the order of our lines; breaks by type, then age, then reference."""

    matched: tuple[Match, ...]
    breaks: tuple[Break, ...]
    totals: Totals


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """References of lines that are dealt with already, so that a part of a reconciliation decides as the whole would:
    of two copies of a line, the one whose reference the other side knows survives."""

    ours: frozenset[str] = field(default_factory=frozenset)
    theirs: frozenset[str] = field(default_factory=frozenset)


def age_bucket(age_days: int) -> AgeBucket:
    """0-1, 2-5, 6-30, more than 30 days."""
    if age_days <= 1:
        return AgeBucket.DAYS_0_1
    if age_days <= 5:
        return AgeBucket.DAYS_2_5
    return AgeBucket.DAYS_6_30 if age_days <= 30 else AgeBucket.DAYS_OVER_30


def severity(gross_minor: tuple[tuple[Currency, int], ...], bucket: AgeBucket) -> Severity:
    """The worst that the gross value of any currency, or the age, makes of it."""
    buckets = list(AgeBucket)
    for level, major_min, bucket_min in _SEVERITY:
        is_large = any(amount >= major_min * 10**currency.exponent for currency, amount in gross_minor)
        if is_large or buckets.index(bucket) >= buckets.index(bucket_min):
            return level
    return Severity.LOW

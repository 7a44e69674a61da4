"""A statement in several pages, put together: each page once, in order, the last one marked, or it is refused.

Pages come as parts of one message or in messages of their own. A page is known by its statement's id and its number
(StmtPgntn, or else the message's MsgPgntn), so the same page sent twice counts once. Optional in the messages' schemas,
and so not asked for: a sequence number (ElctrncSeqNb), the period (FrToDt: its place is taken by the days of the
opening and the closing balance), the time of creation, and an opening balance where there is the previous closing one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from kernel.ids import ParticipantId
from kernel.money import Currency
from settlement.domain.statements import (
    Statement,
    StatementEntry,
    StatementRefusal,
    StatementSummary,
    booked_net_minor,
    summarise,
)

PAGES_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Page:
    """What one Stmt, Rpt or Ntfctn says. Balances: signed minor units, and the moment that they are of."""

    number: int
    is_last: bool
    statement_id: str
    sequence_number: int | None
    account: str
    currency: Currency
    created_at: datetime | None
    period: tuple[datetime, datetime] | None
    opening: tuple[int, datetime] | None
    closing: tuple[int, datetime] | None
    has_balances: bool
    """False of a notification: it goes from zero to the net of its entries."""
    servicer: ParticipantId | None
    summary: StatementSummary | None
    entries: tuple[StatementEntry, ...]


class PagesRefused(Exception):
    def __init__(self, refusal: StatementRefusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal
        self.reason = reason


def chosen(pages: Sequence[Page], account: str | None) -> list[Page]:
    """The pages of one account: all, if there is no other. Raises PagesRefused."""
    accounts = sorted({page.account for page in pages})
    if len(accounts) == 1:
        return list(pages)
    found = [page for page in pages if page.account == account]
    if not found:
        reason = f"say which account is meant: {', '.join(accounts[:20])}"
        raise PagesRefused(StatementRefusal.TOO_MANY_STATEMENTS, reason)
    return found


def join(pages: Sequence[Page]) -> Statement:
    """The statement of these pages, in whatever order they came. Several notifications, which follow on nothing, are
    one list of entries. Raises PagesRefused."""
    if all(not page.has_balances for page in pages):
        by_name: dict[str, list[Page]] = {}
        for page in pages:
            by_name.setdefault(page.statement_id, []).append(page)
        return _together([_join(found) for found in by_name.values()])
    return _join(pages)


def _together(found: Sequence[Statement]) -> Statement:
    first = found[0]
    if len(found) == 1:
        return first
    if len({(item.account, item.currency) for item in found}) > 1:
        raise PagesRefused(StatementRefusal.TOO_MANY_STATEMENTS, "the notifications are in several currencies")
    entries = tuple(entry for item in found for entry in item.entries)
    return replace(
        first,
        sequence_number=None,
        from_at=min(item.from_at for item in found),
        to_at=max(item.to_at for item in found),
        closing_minor=booked_net_minor(entries),
        entries=entries,
        summary=None,
    )


def _join(pages: Sequence[Page]) -> Statement:
    by_number: dict[int, Page] = {}
    for page in pages:
        known = by_number.setdefault(page.number, page)
        if _name(known) != _name(page):
            raise PagesRefused(StatementRefusal.TOO_MANY_STATEMENTS, "send one statement at a time, with all its pages")
        if known != page:
            raise PagesRefused(StatementRefusal.PAGES_INCOMPLETE, f"page {page.number} came twice, and differs")
    ordered = [by_number[number] for number in sorted(by_number)]
    first, last = ordered[0], ordered[-1]
    if any(_name(page) != _name(first) for page in ordered):
        raise PagesRefused(StatementRefusal.TOO_MANY_STATEMENTS, "send one statement at a time, with all its pages")
    if [page.number for page in ordered] != list(range(1, len(ordered) + 1)):
        have = ", ".join(str(page.number) for page in ordered[:20])
        raise PagesRefused(StatementRefusal.PAGES_INCOMPLETE, f"of the pages from 1 on there are: {have}")
    if not last.is_last or any(page.is_last for page in ordered[:-1]):
        marked = [page.number for page in ordered if page.is_last]
        which = f"page {marked[0]} is marked as the last" if marked else "none is marked as the last"
        raise PagesRefused(StatementRefusal.PAGES_INCOMPLETE, f"there are {len(ordered)} pages and {which}")
    entries = tuple(entry for page in ordered for entry in page.entries)
    opening, closing = _balances(first, last, entries)
    from_at, to_at = _period(ordered)
    return Statement(
        statement_id=first.statement_id,
        sequence_number=first.sequence_number,
        account=first.account,
        currency=first.currency,
        created_at=last.created_at or to_at,
        from_at=from_at,
        to_at=to_at,
        opening_minor=opening,
        closing_minor=closing,
        entries=entries,
        servicer=first.servicer,
        summary=_summary(ordered),
    )


def _name(page: Page) -> tuple[str, int | None, str, Currency]:
    return (page.statement_id, page.sequence_number, page.account, page.currency)


def _balances(first: Page, last: Page, entries: Sequence[StatementEntry]) -> tuple[int, int]:
    if not first.has_balances:
        return 0, booked_net_minor(entries)
    if first.opening is None:
        raise PagesRefused(StatementRefusal.FIELD_MISSING, "the booked balance OPBD (or PRCD)")
    if last.closing is None:
        raise PagesRefused(StatementRefusal.FIELD_MISSING, "the booked balance CLBD")
    return first.opening[0], last.closing[0]


def _period(pages: Sequence[Page]) -> tuple[datetime, datetime]:
    """As declared, by any page; else from the opening balance's day to the closing one's, or by the entries."""
    declared = [page.period for page in pages if page.period is not None]
    if declared:
        return min(period[0] for period in declared), max(period[1] for period in declared)
    opening, closing = pages[0].opening, pages[-1].closing
    if opening is not None and closing is not None:
        return min(opening[1], closing[1]), closing[1]
    booked = [entry.booked_at for page in pages for entry in page.entries]
    created = [page.created_at for page in pages if page.created_at is not None]
    if not booked and not created:
        raise PagesRefused(StatementRefusal.FIELD_MISSING, "FrToDt, where nothing else tells the period")
    return min([*booked, *created]), max([*booked, *created])


def _summary(pages: Sequence[Page]) -> StatementSummary | None:
    """Declared totals are a page's, or at the end the whole statement's; pages that add up have nothing more to say."""
    if len(pages) == 1:
        return pages[0].summary
    of_pages = [page for page in pages if page.summary is not None and not _fits(page.summary, page.entries)]
    return of_pages[-1].summary if of_pages else None


def _fits(declared: StatementSummary, entries: Sequence[StatementEntry]) -> bool:
    actual = summarise(entries)
    pairs = (
        (declared.entry_count, actual.entry_count),
        (declared.entry_sum_minor, actual.entry_sum_minor),
        (declared.credit_count, actual.credit_count),
        (declared.credit_sum_minor, actual.credit_sum_minor),
        (declared.debit_count, actual.debit_count),
        (declared.debit_sum_minor, actual.debit_sum_minor),
    )
    return all(says is None or says == holds for says, holds in pairs)

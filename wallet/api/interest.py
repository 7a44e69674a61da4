"""Interest for holders and for the desk; reserve balances; the check of exchanges."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import Path, Query
from pydantic import AfterValidator

from kernel.errors import ProblemError, RequestRefusal
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from wallet.api.auth import SIGNED, Operator, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRef, WalletRefusal, WalletState
from wallet.contract.interest import (
    EXCHANGE_BREAKS_MAX,
    ExchangeBreak,
    ExchangeCheckView,
    InterestDays,
    InterestPreview,
    InterestRunView,
    InterestSettlementState,
    InterestSettlementView,
    InterestTotal,
    InterestTotals,
    InterestView,
    ReserveBalance,
    ReservePage,
)
from wallet.domain.exchange_check import Break
from wallet.domain.interest import Segment, show_units
from wallet.store.interest import Settlement, Total
from wallet.usecases import exchange_check, interest, listings, reserves
from wallet.usecases.interest import Outlook

router = strict_router(tags=["interest"])
_R = WalletRefusal
_UNAVAILABLE = RequestRefusal.SERVICE_UNAVAILABLE
WalletPath = Annotated[WalletRef, Path()]
_YEARS = range(2000, 9000)


def _within_reach(day: date) -> date:
    """So that the day after it, in any zone, is a day too."""
    if day.year not in _YEARS:
        raise ValueError(f"the year is from {_YEARS[0]} to {_YEARS[-1]}")
    return day


Day = Annotated[date, AfterValidator(_within_reach), Path()]
PAGES_OF_WALLETS_MAX = 100
"""Wallets of one page that asks the ledger about each."""
WalletsLimit = Annotated[int, Query(ge=1, le=PAGES_OF_WALLETS_MAX, description="Wallets on a page at most.")]


@router.get(
    "/v1/wallets/{wallet}/interest",
    operation_id="get_interest",
    summary="Interest accrued to yesterday and not settled yet, exact, with the days behind it",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, _UNAVAILABLE, statuses=STATUSES),
)
def get_interest(wallet: WalletPath, context: Services, client: Reader) -> InterestView:
    return _view(wallet, interest.outlook(context, wallet))


@router.get(
    "/v1/wallets/{wallet}/interest-settlements",
    operation_id="list_interest_settlements",
    summary="A wallet's interest as it was settled and credited, newest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_interest_settlements(
    wallet: WalletPath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[InterestSettlementView]:
    filters = {"list": "interest-settlements", "wallet": wallet}
    before = None if cursor is None else _day_of(decode(cursor, filters, shape=(str,))[0])
    rows = interest.history(context, wallet, before=before, limit=limit)
    return Page[InterestSettlementView](
        items=[_settlement_view(row, days) for row, days in rows],
        next_cursor=encode([rows[-1][0].last_on.isoformat()], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/interest-previews",
    operation_id="list_interest_previews",
    summary="What has accrued on each wallet to yesterday; nothing is written",
    responses=problems(*SIGNED, _UNAVAILABLE, statuses=STATUSES),
)
def list_interest_previews(
    context: Services, client: Operator, limit: WalletsLimit = PAGES_OF_WALLETS_MAX, cursor: PageCursor = None
) -> Page[InterestPreview]:
    filters = {"list": "interest-previews"}
    after = None if cursor is None else listings.position_of_id(decode(cursor, filters, shape=(str,)))
    rows = interest.preview(context, after=after, limit=limit)
    return Page[InterestPreview](
        items=[
            InterestPreview(
                wallet=row.id,
                wallet_class=row.wallet_class,
                state=WalletState(row.state),
                first_on=accrual and accrual.first_on,
                last_on=accrual and accrual.last_on,
                exact_minor=show_units(accrual.units if accrual else 0),
                accrued_minor=accrual.credited_minor if accrual else 0,
            )
            for row, accrual in rows
        ],
        next_cursor=encode([str(rows[-1][0].id)], filters) if len(rows) == limit else None,
    )


@router.post(
    "/v1/interest-runs",
    operation_id="run_interest",
    summary="Settle and credit what is due now, a bounded piece; the service does so by itself every few seconds",
    responses=problems(*SIGNED, _UNAVAILABLE, statuses=STATUSES),
)
def run_interest(context: Services, client: Operator) -> InterestRunView:
    done = interest.run(context)
    return InterestRunView(
        settled_on=done.settled_on, settled=done.settled, credited=done.credited, is_finished=done.is_finished
    )


@router.get(
    "/v1/interest-totals",
    operation_id="list_interest_totals",
    summary="The remainder account: accrued, credited and what rounding left, a line a settlement day, newest first",
    responses=problems(*SIGNED, statuses=STATUSES),
)
def list_interest_totals(context: Services, client: Operator, limit: PageLimit = PAGE_ITEMS_DEFAULT) -> InterestTotals:
    return InterestTotals(items=[_total(row) for row in interest.remainder_account(context, limit=limit)])


@router.get(
    "/v1/reserve-balances/{day}",
    operation_id="list_reserve_balances",
    summary="Closing balances of a day, wallet by wallet, and what the pack in force asks of their operator",
    responses=problems(*SIGNED, _UNAVAILABLE, statuses=STATUSES),
)
def list_reserve_balances(
    day: Day,
    context: Services,
    client: Operator,
    limit: WalletsLimit = PAGES_OF_WALLETS_MAX,
    cursor: PageCursor = None,
) -> ReservePage:
    filters = {"list": "reserve-balances", "day": day.isoformat()}
    after = None if cursor is None else listings.position_of_id(decode(cursor, filters, shape=(str,)))
    page = reserves.balances_of(context, day, after=after, limit=limit)
    return ReservePage(
        day=day,
        participant=context.participant,
        operator_kind=context.operator_kind,
        rule_pack=page.pack.name,
        currency=page.pack.currency,
        in_reserve_base=page.liability is not None and page.liability.bank_balances_in_reserve_base,
        margin_percent=0 if page.liability is None else page.liability.non_bank_margin_percent,
        escrow_minor=page.escrow_minor,
        items=[
            ReserveBalance(wallet=wallet, wallet_class=wallet_class, balance_minor=balance)
            for wallet, wallet_class, balance in page.items
        ],
        next_cursor=None if page.last is None else encode([str(page.last)], filters),
    )


@router.get(
    "/v1/exchange-checks/{day}",
    operation_id="check_exchanges",
    summary="A day's exchanges against the bank's postings and the ledger's vault: every break, with its next step",
    responses=problems(*SIGNED, _UNAVAILABLE, statuses=STATUSES),
)
def check_exchanges(day: Day, context: Services, client: Operator) -> ExchangeCheckView:
    checked = exchange_check.check_day(context, day)
    return ExchangeCheckView(
        day=checked.day,
        exchanges=checked.exchanges,
        bank_postings=checked.bank_postings,
        vault_lines=checked.vault_lines,
        break_count=len(checked.breaks),
        breaks=[_break(item) for item in checked.breaks[:EXCHANGE_BREAKS_MAX]],
    )


# --- views -----------------------------------------------------------------------------------------------------------


def _view(wallet: WalletRef, known: Outlook) -> InterestView:
    accrual, rules = known.accrual, known.pack.interest
    is_borne = rules is not None and known.pack.bears_interest(known.wallet_class)
    return InterestView(
        wallet=wallet,
        wallet_class=known.wallet_class,
        rule_pack=known.pack.name,
        rate_ppm_per_year=rules.rate_ppm_per_year if rules is not None and is_borne else 0,
        rate_assumed=rules is not None and rules.assumed,
        first_on=accrual and accrual.first_on,
        last_on=accrual and accrual.last_on,
        exact_minor=show_units(accrual.units if accrual else 0),
        accrued_minor=accrual.credited_minor if accrual else 0,
        next_settled_on=known.next_settlement and known.next_settlement[0],
        next_credited_on=known.next_settlement and known.next_settlement[1],
        days=[_days(segment) for segment in accrual.segments] if accrual else [],
    )


def _settlement_view(row: Settlement, days: list[Segment]) -> InterestSettlementView:
    return InterestSettlementView(
        first_on=row.first_on,
        last_on=row.last_on,
        kind=row.kind,
        exact_minor=show_units(row.accrued_units),
        credited_minor=row.credited_minor,
        remainder_minor=show_units(row.remainder_units),
        credit_on=row.credit_on,
        state=InterestSettlementState(row.state),
        transfer=row.transfer_id,
        refusal=row.refusal,
        seq=row.seq,
        booked_at=row.booked_at,
        days=[_days(segment) for segment in days],
    )


def _days(segment: Segment) -> InterestDays:
    return InterestDays(
        first_on=segment.first_on,
        last_on=segment.last_on,
        days=segment.days,
        wallet_class=segment.wallet_class,
        balance_minor=segment.balance_minor,
        rate_ppm_per_year=segment.rate_ppm,
        day_count=segment.day_count,
        rule_pack=segment.pack,
        exact_minor=show_units(segment.units),
    )


def _total(row: Total) -> InterestTotal:
    return InterestTotal(
        last_on=row.last_on,
        settlements=row.settlements,
        exact_minor=show_units(row.accrued_units),
        credited_minor=row.credited_minor,
        remainder_minor=show_units(row.remainder_units),
        due=row.due,
        due_minor=row.due_minor,
    )


def _break(item: Break) -> ExchangeBreak:
    return ExchangeBreak(
        kind=item.kind,
        side=item.side,
        exchange=item.exchange,
        entry=item.entry,
        wallet=item.wallet_id,
        expected_minor=item.expected_minor,
        found_minor=item.found_minor,
        since=item.since,
        age_seconds=int(item.age.total_seconds()),
        next_step=item.next_step,
    )


def _day_of(text: int | str) -> date:
    try:
        return date.fromisoformat(str(text))
    except ValueError:
        raise ProblemError(RequestRefusal.VALIDATION_FAILED, "the cursor is damaged") from None

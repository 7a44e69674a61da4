"""Scheduled and standing payments: dates to sign for, create, prolong, look, cancel."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from kernel.clock import to_micros
from kernel.http import problems, strict_router
from kernel.limits import PAGE_ITEMS_DEFAULT
from kernel.pagination import Page, PageCursor, PageLimit, decode, encode
from ledger.contract import LedgerRefusal
from wallet.api.auth import SIGNED, Channel, Reader
from wallet.api.dependencies import STATUSES, Services
from wallet.contract import WalletRef, WalletRefusal
from wallet.contract.schedules import (
    NUMBER_MAX,
    ScheduleDatesRequest,
    ScheduleDatesView,
    ScheduleDateView,
    ScheduledPaymentState,
    ScheduledPaymentView,
    ScheduleMoreRequest,
    ScheduleRef,
    ScheduleRequest,
    ScheduleView,
)
from wallet.store.schedules import Schedule, ScheduledPayment
from wallet.usecases import listings, schedules

router = strict_router(tags=["schedules"])
_R = WalletRefusal
SchedulePath = Annotated[ScheduleRef, Path()]
_ADDED = (
    _R.SCHEDULE_EXISTS,
    _R.SCHEDULE_ENDED,
    _R.SCHEDULE_TOO_LONG,
    _R.SCHEDULE_DATES_REFUSED,
    _R.SCHEDULE_INSTRUCTION_MISMATCH,
    _R.CALENDAR_UNKNOWN,
)


@router.post(
    "/v1/schedule-dates",
    operation_id="list_schedule_dates",
    summary="The days on which a recurrence falls due, for the holder to sign for; nothing is kept",
    responses=problems(*SIGNED, _R.CALENDAR_UNKNOWN, _R.SCHEDULE_DATES_REFUSED, statuses=STATUSES),
)
def list_schedule_dates(body: ScheduleDatesRequest, context: Services, client: Reader) -> ScheduleDatesView:
    days = schedules.dates(body.recurrence, body.calendar, first=body.first, count=body.count)
    return ScheduleDatesView(
        dates=[
            ScheduleDateView(
                number=day.number,
                nominal_on=day.nominal_on,
                due_on=day.due_on,
                provisional=day.is_provisional,
                not_before=day.not_before,
                give_up_at=day.give_up_at,
                sign_until=day.sign_until,
            )
            for day in days
        ]
    )


@router.post(
    "/v1/schedules",
    operation_id="create_schedule",
    status_code=201,
    summary="Keep payments that the holder has signed in advance, and make each on its day",
    responses=problems(
        *SIGNED, LedgerRefusal.ID_FROM_FUTURE, _R.WALLET_NOT_FOUND, _R.WALLET_NOT_OPEN, *_ADDED, statuses=STATUSES
    ),
)
def create_schedule(body: ScheduleRequest, context: Services, client: Channel) -> ScheduleView:
    row = schedules.create_schedule(
        context,
        body.schedule,
        wallet_id=body.wallet,
        recurrence=body.recurrence,
        calendar=body.calendar,
        instructions=body.instructions,
    )
    return _view(row)


@router.post(
    "/v1/schedules/{schedule}/payments",
    operation_id="prolong_schedule",
    summary="Add signed payments to a schedule",
    responses=problems(*SIGNED, _R.SCHEDULE_NOT_FOUND, *_ADDED, statuses=STATUSES),
)
def prolong_schedule(
    schedule: SchedulePath, body: ScheduleMoreRequest, context: Services, client: Channel
) -> ScheduleView:
    return _view(schedules.prolong(context, schedule, first=body.first, instructions=body.instructions))


@router.post(
    "/v1/schedules/{schedule}/cancellation",
    operation_id="cancel_schedule",
    summary="Cancel all payments that wait; one being executed runs out",
    responses=problems(*SIGNED, _R.SCHEDULE_NOT_FOUND, statuses=STATUSES),
)
def cancel_schedule(schedule: SchedulePath, context: Services, client: Channel) -> ScheduleView:
    return _view(schedules.cancel(context, schedule))


@router.post(
    "/v1/schedules/{schedule}/payments/{number}/cancellation",
    operation_id="cancel_scheduled_payment",
    summary="Cancel one payment before it is made",
    responses=problems(*SIGNED, _R.SCHEDULE_NOT_FOUND, _R.SCHEDULE_EXECUTING, _R.SCHEDULE_ENDED, statuses=STATUSES),
)
def cancel_scheduled_payment(
    schedule: SchedulePath, number: Annotated[int, Path(ge=0, lt=NUMBER_MAX)], context: Services, client: Channel
) -> ScheduleView:
    return _view(schedules.cancel(context, schedule, number=number))


@router.get(
    "/v1/schedules/{schedule}",
    operation_id="get_schedule",
    summary="A schedule",
    responses=problems(*SIGNED, _R.SCHEDULE_NOT_FOUND, statuses=STATUSES),
)
def get_schedule(schedule: SchedulePath, context: Services, client: Reader) -> ScheduleView:
    return _view(schedules.find_schedule(context, schedule))


@router.get(
    "/v1/schedules/{schedule}/payments",
    operation_id="list_scheduled_payments",
    summary="A schedule's payments in order, each with its outcome",
    responses=problems(*SIGNED, _R.SCHEDULE_NOT_FOUND, statuses=STATUSES),
)
def list_scheduled_payments(
    schedule: SchedulePath,
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ScheduledPaymentView]:
    filters = {"list": "scheduled-payments", "schedule": schedule}
    after = -1 if cursor is None else int(decode(cursor, filters, shape=(int,))[0])
    rows = schedules.payments_of(context, schedule, after=after, limit=limit)
    return Page[ScheduledPaymentView](
        items=[_payment_view(row) for row in rows],
        next_cursor=encode([rows[-1].number], filters) if len(rows) == limit else None,
    )


@router.get(
    "/v1/wallets/{wallet}/schedules",
    operation_id="list_schedules",
    summary="A wallet's schedules, newest first",
    responses=problems(*SIGNED, _R.WALLET_NOT_FOUND, statuses=STATUSES),
)
def list_schedules(
    wallet: Annotated[WalletRef, Path()],
    context: Services,
    client: Reader,
    limit: PageLimit = PAGE_ITEMS_DEFAULT,
    cursor: PageCursor = None,
) -> Page[ScheduleView]:
    filters = {"list": "schedules", "wallet": wallet}
    before = None if cursor is None else listings.position_of_moment(decode(cursor, filters, shape=(int, str)))
    rows = schedules.list_schedules(context, wallet, before=before, limit=limit)
    return Page[ScheduleView](
        items=[_view(row) for row in rows],
        next_cursor=(
            encode([to_micros(rows[-1].created_at), str(rows[-1].id)], filters) if len(rows) == limit else None
        ),
    )


def _view(row: Schedule) -> ScheduleView:
    return ScheduleView(
        schedule=row.id,
        wallet=row.wallet_id,
        recurrence=row.recurrence,
        calendar=row.calendar,
        cancelled=row.is_cancelled,
        created_at=row.created_at,
    )


def _payment_view(row: ScheduledPayment) -> ScheduledPaymentView:
    is_open = row.state in ("waiting", "executing")
    return ScheduledPaymentView(
        number=row.number,
        payment=row.payment_id,
        credit=row.credit_account,
        amount_minor=row.amount_minor,
        due_on=row.due_on,
        provisional=row.is_provisional,
        state=ScheduledPaymentState(row.state),
        attempts=row.attempts,
        next_try_at=row.next_try_at if is_open else None,
        refusal=row.refusal,
        detail=row.detail,
        seq=row.seq,
        booked_at=row.booked_at,
    )

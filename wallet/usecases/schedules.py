"""Scheduled and standing payments: signed in advance by the holder, kept, and made on their day.

The holder signs every single payment (I8): what waits here is an instruction that the ledger will check, good for one
transfer, whose id follows from schedule and number (I7). The day is this service's promise: the ledger knows nothing of
it. A cancelled payment's signature is destroyed. One pass makes what is due:

  1. one transaction claims due payments: from now on they are `executing`, so nobody can cancel them;
  2. `pay` carries them;
  3. one transaction records each outcome, unless a newer attempt has begun.

A death between 1 and 3 leaves them `executing`: the next pass carries the same instructions again. What is refused only
for now (too little money) is tried again until the day ends (`domain.schedules.next_try`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from kernel.errors import ProblemError, RequestRefusal
from kernel.ids import is_from_future, show
from ledger.contract import InvalidInstruction, LedgerRefusal, TransferKind, read_instruction
from wallet.calendar_files import calendar_names, load_calendar
from wallet.contract import WalletRefusal
from wallet.domain.calendars import BusinessCalendar, Recurrence
from wallet.domain.events import EventType
from wallet.domain.limits import scheme_day
from wallet.domain.records import Payment
from wallet.domain.schedules import (
    NUMBER_MAX,
    VALID_AFTER_MAX,
    WAITING_MAX,
    PaymentDay,
    next_try,
    payment_day,
    schedule_transfer_id,
)
from wallet.store import events, payments, schedules
from wallet.store.schedules import Schedule, ScheduledPayment
from wallet.usecases.context import Context
from wallet.usecases.pay import Outcome, pay
from wallet.usecases.wallets import find_wallet

EXECUTED_TOGETHER_MAX = 200
CLAIM = timedelta(seconds=60)
UNKNOWN_PAUSE = timedelta(seconds=5)
MISSED = "not-executed-in-time"
"""The service did not get to it on its day; nothing was sent."""
_MOVED_AT_ONCE_MAX = 5_000
_UNKNOWN = frozenset({RequestRefusal.SERVICE_UNAVAILABLE.value, LedgerRefusal.OUTCOME_UNKNOWN.value})


def calendar_of(name: str) -> BusinessCalendar:
    """Raises: ProblemError(calendar-unknown)."""
    try:
        return load_calendar(name)
    except LookupError:
        raise ProblemError(WalletRefusal.CALENDAR_UNKNOWN, f"known: {', '.join(calendar_names())}") from None


def dates(recurrence: Recurrence, calendar: str, *, first: int, count: int) -> list[PaymentDay]:
    """When payments would be made, to be shown and signed. Raises: ProblemError(calendar-unknown,
    schedule-dates-refused)."""
    found = calendar_of(calendar)
    last = min(first + count, 1 if recurrence.frequency == "once" else NUMBER_MAX)
    return [_day(recurrence, number, found) for number in range(first, last)]


def _day(recurrence: Recurrence, number: int, calendar: BusinessCalendar) -> PaymentDay:
    try:
        return payment_day(recurrence, number, calendar)
    except ValueError as error:
        raise ProblemError(WalletRefusal.SCHEDULE_DATES_REFUSED, str(error)) from None


def create_schedule(
    context: Context,
    schedule_id: UUID,
    *,
    wallet_id: UUID,
    recurrence: Recurrence,
    calendar: str,
    instructions: Sequence[str],
) -> Schedule:
    """With its first payments. Idempotent by id.

    Raises: ProblemError(wallet-not-found, wallet-not-open, calendar-unknown, id-from-future, schedule-exists, and as
    `prolong`).
    """
    wallet = find_wallet(context, wallet_id)
    if wallet.account is None:
        raise ProblemError(WalletRefusal.WALLET_NOT_OPEN)
    calendar_of(calendar)
    now = context.clock()
    if is_from_future(schedule_id, now=now):  # its payments' ids are made from it
        raise ProblemError(LedgerRefusal.ID_FROM_FUTURE)
    row = Schedule(schedule_id, wallet_id, wallet.account, recurrence, calendar, False, now)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        schedules.insert_schedule(connection, row)
        known = _locked(connection, schedule_id)
        asked = (wallet_id, recurrence, calendar)
        if (known.wallet_id, known.recurrence, known.calendar) != asked:
            raise ProblemError(WalletRefusal.SCHEDULE_EXISTS)
        _add(connection, context, known, 0, instructions)
    return known


def prolong(context: Context, schedule_id: UUID, *, first: int, instructions: Sequence[str]) -> Schedule:
    """More payments, from number `first` on. Those that are there already must be the same.

    Raises: ProblemError(schedule-not-found, schedule-ended, schedule-exists, schedule-too-long,
    schedule-dates-refused, schedule-instruction-mismatch).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = _locked(connection, schedule_id)
        _add(connection, context, known, first, instructions)
    return known


def _add(connection: sa.Connection, context: Context, known: Schedule, first: int, instructions: Sequence[str]) -> None:
    there = {row.number: row for row in schedules.payments_of(connection, known.id)}
    now, calendar = context.clock(), calendar_of(known.calendar)
    today = scheme_day(now, context.time_zone)
    new = []
    for number, token in enumerate(instructions, first):
        day = _day(known.recurrence, number, calendar)
        row = _signed(context, known, day, token)
        before = there.get(number)
        if before is not None:
            if (before.credit_account, before.amount_minor) != (row.credit_account, row.amount_minor):
                raise ProblemError(WalletRefusal.SCHEDULE_EXISTS, f"payment {number} was signed with other terms")
            continue
        if known.is_cancelled:
            raise ProblemError(WalletRefusal.SCHEDULE_ENDED, "the schedule was cancelled")
        if day.due_on < today:
            raise ProblemError(WalletRefusal.SCHEDULE_DATES_REFUSED, f"payment {number} would be due on {day.due_on}")
        new.append(row)
    if any(row.number not in there and row.number != len(there) + index for index, row in enumerate(new)):
        raise ProblemError(WalletRefusal.SCHEDULE_DATES_REFUSED, f"the next payment is number {len(there)}")
    waiting = sum(row.state in ("waiting", "executing") for row in there.values()) + len(new)
    if waiting > WAITING_MAX or len(there) + len(new) > NUMBER_MAX:
        detail = f"{waiting} would wait, {WAITING_MAX} may; prolong it when some have been made"
        raise ProblemError(WalletRefusal.SCHEDULE_TOO_LONG, detail)
    schedules.insert_payments(connection, new)


def _signed(context: Context, known: Schedule, day: PaymentDay, token: str) -> ScheduledPayment:
    """The payment, if its instruction is what the holder must sign for it (the signature itself: `pay`, I8)."""
    home = context.ledgers.home
    mismatch = WalletRefusal.SCHEDULE_INSTRUCTION_MISMATCH
    try:
        read = read_instruction(token)
    except InvalidInstruction as error:
        raise ProblemError(mismatch, f"payment {day.number}: {error.reason}") from None
    wanted = (schedule_transfer_id(known.id, day.number), TransferKind.PAYMENT, known.debit_account)
    if (read.id, read.kind, read.debit) != wanted or not read.amount_minor or read.credit is None:
        detail = f"payment {day.number}: it must be a payment from the schedule's wallet under the payment's own id"
        raise ProblemError(mismatch, detail)
    if (read.ledger, read.currency) != (home.name, home.currency) or read.credit == read.debit:
        raise ProblemError(mismatch, f"payment {day.number}: it pays {home.currency} on {home.name}, not to oneself")
    if not day.give_up_at <= read.valid_until <= day.give_up_at + VALID_AFTER_MAX:
        detail = (
            f"payment {day.number}: valid_until must be {day.give_up_at.isoformat()} (the end of {day.due_on})"
            f" or up to {VALID_AFTER_MAX.days} days later"
        )
        raise ProblemError(mismatch, detail)
    return ScheduledPayment(
        schedule_id=known.id,
        number=day.number,
        payment_id=read.id,
        credit_account=read.credit,
        amount_minor=read.amount_minor,
        instruction=token,
        valid_until=read.valid_until,
        due_on=day.due_on,
        is_provisional=day.is_provisional,
        not_before=day.not_before,
        give_up_at=day.give_up_at,
        state="waiting",
        attempts=0,
        next_try_at=day.not_before,
        refusal=None,
        detail=None,
        seq=None,
        booked_at=None,
    )


def cancel(context: Context, schedule_id: UUID, *, number: int | None = None) -> Schedule:
    """One payment before it is made, or all that wait and the schedule. May be repeated.

    Raises: ProblemError(schedule-not-found, schedule-executing, schedule-ended).
    """
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        known = _locked(connection, schedule_id)
        if number is None:
            schedules.cancel_waiting(connection, schedule_id)
            schedules.mark_cancelled(connection, schedule_id)
        else:
            row = schedules.lock_payment(connection, schedule_id, number)
            if row is None:
                raise ProblemError(WalletRefusal.SCHEDULE_NOT_FOUND, f"it has no payment {number}")
            if row.state == "executing":
                raise ProblemError(WalletRefusal.SCHEDULE_EXECUTING)
            if row.state in ("executed", "refused"):
                raise ProblemError(WalletRefusal.SCHEDULE_ENDED, f"the payment is {row.state}")
            schedules.cancel_waiting(connection, schedule_id, number)
    return find_schedule(context, known.id)


def find_schedule(context: Context, schedule_id: UUID) -> Schedule:
    """Raises: ProblemError(schedule-not-found)."""
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        row = schedules.find_schedule(connection, schedule_id)
    if row is None:
        raise ProblemError(WalletRefusal.SCHEDULE_NOT_FOUND)
    return row


def payments_of(context: Context, schedule_id: UUID, *, after: int, limit: int) -> list[ScheduledPayment]:
    """In order. Raises: ProblemError(schedule-not-found)."""
    find_schedule(context, schedule_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return schedules.payments_of(connection, schedule_id, after=after, limit=limit)


def list_schedules(
    context: Context, wallet_id: UUID, *, before: tuple[datetime, UUID] | None, limit: int
) -> list[Schedule]:
    """Newest first. Raises: ProblemError(wallet-not-found)."""
    find_wallet(context, wallet_id)
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        return schedules.list_schedules(connection, wallet_id=wallet_id, before=before, limit=limit)


def _locked(connection: sa.Connection, schedule_id: UUID) -> Schedule:
    row = schedules.find_schedule(connection, schedule_id, lock=True)
    if row is None:
        raise ProblemError(WalletRefusal.SCHEDULE_NOT_FOUND)
    return row


# --- the pass --------------------------------------------------------------------------------------------------------


def execute_due(context: Context, *, at_start: bool = False) -> int:
    """Make what is due; how many payments were concluded."""
    now = context.clock()
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        if at_start:
            schedules.release_claims(connection, now=now)
            _move_provisional(connection, context)
        claimed = schedules.claim_due(connection, now=now, claimed_until=now + CLAIM, limit=EXECUTED_TOGETHER_MAX)
        # What was not even recorded as a payment before its day was over has not been sent, and is not any more.
        late = [
            row for row in claimed if now >= row.give_up_at and not payments.find_payment(connection, row.payment_id)
        ]
    missed = {row.payment_id for row in late}
    to_make = [row for row in claimed if row.payment_id not in missed and row.instruction is not None]
    outcomes = pay(context, [row.instruction for row in to_make if row.instruction is not None]) if to_make else []
    concluded = 0
    with context.database.transaction(isolation="READ COMMITTED") as connection:
        for row in sorted(late, key=_key):
            detail = f"the service did not get to it on {row.due_on}"
            concluded += _end(connection, context, row, state="refused", refusal=MISSED, detail=detail)
        for row, outcome in sorted(zip(to_make, outcomes, strict=True), key=lambda pair: _key(pair[0])):
            concluded += _record(connection, context, row, outcome)
    return concluded


def _key(row: ScheduledPayment) -> tuple[UUID, int]:
    return row.schedule_id, row.number


def _record(connection: sa.Connection, context: Context, row: ScheduledPayment, outcome: Outcome) -> int:
    now = context.clock()
    if isinstance(outcome, Payment):
        if outcome.state == "final":
            return _end(
                connection,
                context,
                row,
                state="executed",
                refusal=None,
                detail=None,
                seq=outcome.seq,
                booked_at=outcome.booked_at,
            )
        is_unknown = outcome.state == "initiated"
        code, is_transient, detail = outcome.refusal or "", bool(outcome.is_transient), outcome.detail or ""
    else:
        is_unknown = False
        code, is_transient = outcome.refusal.value, outcome.refusal.transient
        detail = outcome.detail or outcome.refusal.title
    if is_unknown or code in _UNKNOWN:
        schedules.conclude(connection, row, next_try_at=max(now + UNKNOWN_PAUSE, row.not_before))
        return 0
    again = next_try(now, attempts=row.attempts + 1, give_up_at=row.give_up_at) if is_transient else None
    if again is not None:
        schedules.conclude(connection, row, state="waiting", next_try_at=again, refusal=code, detail=detail[:500])
        return 0
    return _end(connection, context, row, state="refused", refusal=code, detail=detail[:500])


def _end(connection: sa.Connection, context: Context, row: ScheduledPayment, **values: object) -> int:
    if not schedules.conclude(connection, row, **values):
        return 0
    known = schedules.find_schedule(connection, row.schedule_id)
    is_executed = values["state"] == "executed"
    events.emit(
        connection,
        EventType.SCHEDULE_EXECUTED if is_executed else EventType.SCHEDULE_REFUSED,
        show("sch", row.schedule_id),
        at=context.clock(),
        wallet_id=known.wallet_id if known is not None else None,
        data={"number": row.number, "payment": show("trf", row.payment_id), "refusal": values["refusal"]},
        once=row.payment_id,
    )
    return 1


def _move_provisional(connection: sa.Connection, context: Context) -> None:
    """Days that a newer calendar file has settled or moved, as far as the holder's signatures reach."""
    today = scheme_day(context.clock(), context.time_zone)
    for row in schedules.provisional(connection, limit=_MOVED_AT_ONCE_MAX):
        known = schedules.find_schedule(connection, row.schedule_id)
        if known is None or row.attempts:
            continue
        day = _day(known.recurrence, row.number, calendar_of(known.calendar))
        if day.due_on == row.due_on and day.is_provisional:
            continue
        if day.due_on != row.due_on and (day.give_up_at > row.valid_until or day.due_on < today):
            continue
        schedules.move(
            connection,
            row,
            due_on=day.due_on,
            is_provisional=day.is_provisional,
            not_before=day.not_before,
            give_up_at=day.give_up_at,
            next_try_at=day.not_before,
        )

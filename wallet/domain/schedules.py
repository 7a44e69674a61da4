"""Scheduled and standing payments: which day, until when, and when to try again. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

from kernel.ids import derive_uuid7
from wallet.domain.calendars import BusinessCalendar, Recurrence

WAITING_MAX = 60
"""Signed instructions that may wait in one schedule: five years of months, two months of days."""
NUMBER_MAX = 10_000
"""Payments of one schedule in all its life."""
VALID_AFTER_MAX = timedelta(days=31)
"""How long past its day a signature may stand: what waits here must not be good for ever if it gets lost."""
VALID_AFTER = timedelta(days=14)
"""What a client should sign beyond a provisional day: longer than any run of days off, so that it can be moved."""
RETRY_FIRST = timedelta(minutes=15)
RETRY_MAX = timedelta(hours=2)
ATTEMPTS_MAX = 16
"""15 and 30 minutes, an hour, then every two hours: 14 attempts fill a day."""


@dataclass(frozen=True, slots=True)
class PaymentDay:
    """One payment of a schedule, in time."""

    number: int
    nominal_on: date
    due_on: date
    is_provisional: bool
    """A later calendar may move `due_on`."""
    not_before: datetime
    """Midnight at the beginning of `due_on`, in the calendar's time zone."""
    give_up_at: datetime
    """Midnight at its end: the instruction must be valid until then."""

    @property
    def sign_until(self) -> datetime:
        """What the instruction's `valid_until` should be."""
        return self.give_up_at + (VALID_AFTER if self.is_provisional else timedelta())


def payment_day(recurrence: Recurrence, number: int, calendar: BusinessCalendar) -> PaymentDay:
    """Raises: ValueError for a number that the recurrence does not have, or a date out of reach."""
    try:
        due_on = recurrence.due(number, calendar)
        not_before, give_up_at = day_bounds(due_on, ZoneInfo(calendar.time_zone))
        return PaymentDay(
            number=number,
            nominal_on=recurrence.nominal(number, calendar),
            due_on=due_on,
            is_provisional=recurrence.is_provisional(number, calendar),
            not_before=not_before,
            give_up_at=give_up_at,
        )
    except OverflowError:
        raise ValueError(f"payment {number} is too far away") from None


def day_bounds(day: date, zone: ZoneInfo) -> tuple[datetime, datetime]:
    """The first instant of a calendar day and the first of the next, in UTC."""
    first, last = (datetime.combine(moment, time(), zone) for moment in (day, day + timedelta(days=1)))
    return first.astimezone(UTC), last.astimezone(UTC)


def schedule_transfer_id(schedule_id: UUID, number: int) -> UUID:
    """The id of a payment's transfer: one for ever, so that it is made at most once (I7)."""
    return derive_uuid7(schedule_id, f"schedule/{number}")


def next_try(now: datetime, *, attempts: int, give_up_at: datetime) -> datetime | None:
    """When to try again after `attempts` that were refused for now; None = not any more."""
    if attempts >= ATTEMPTS_MAX:
        return None
    at = now + min(RETRY_FIRST * 2 ** (attempts - 1), RETRY_MAX)
    return at if at < give_up_at else None

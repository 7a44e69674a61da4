"""Models of scheduled and standing payments."""

from __future__ import annotations

from datetime import date
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from pydantic import Field

from ledger.contract import AccountRef, Amount, Model, Moment, Token
from wallet.contract import PaymentRef, WalletRef, id_type
from wallet.domain.calendars import BusinessDayRule as BusinessDayRule
from wallet.domain.calendars import Frequency as Frequency
from wallet.domain.calendars import Recurrence as Recurrence
from wallet.domain.schedules import NUMBER_MAX as NUMBER_MAX
from wallet.domain.schedules import WAITING_MAX as WAITING_MAX
from wallet.domain.schedules import schedule_transfer_id as schedule_transfer_id

ScheduleRef = Annotated[UUID, *id_type("sch")]
CalendarName = Annotated[str, Field(pattern="^[a-z0-9-]{2,28}$", examples=["cn"])]
Instructions = Annotated[list[Token], Field(min_length=1, max_length=WAITING_MAX)]


class ScheduleDatesRequest(Model):
    recurrence: Recurrence
    calendar: CalendarName = "cn"
    first: Annotated[int, Field(ge=0, lt=NUMBER_MAX)] = 0
    count: Annotated[int, Field(ge=1, le=WAITING_MAX)] = 12


class ScheduleDateView(Model):
    number: int
    nominal_on: date
    due_on: date
    """After the business-day rule."""
    provisional: bool
    """The calendar does not cover it yet: a later one may move it."""
    not_before: Moment
    give_up_at: Moment
    sign_until: Moment
    """What to sign as the instruction's valid_until."""


class ScheduleDatesView(Model):
    dates: list[ScheduleDateView]


class ScheduleRequest(Model):
    schedule: ScheduleRef
    wallet: WalletRef
    recurrence: Recurrence
    calendar: CalendarName = "cn"
    instructions: Instructions
    """One a payment, from number 0 on: a payment under the id `schedule_transfer_id(schedule, number)`."""


class ScheduleMoreRequest(Model):
    first: Annotated[int, Field(ge=0, lt=NUMBER_MAX)]
    instructions: Instructions


class ScheduledPaymentState(StrEnum):
    WAITING = "waiting"
    """For its day, or to be tried again on it: then `refusal` says why it was refused last."""
    EXECUTING = "executing"
    EXECUTED = "executed"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class ScheduledPaymentView(Model):
    number: int
    payment: PaymentRef
    credit: AccountRef
    amount_minor: Amount
    due_on: date
    provisional: bool
    state: ScheduledPaymentState
    attempts: int
    next_try_at: Moment | None
    refusal: str | None
    detail: str | None
    seq: int | None
    booked_at: Moment | None


class ScheduleView(Model):
    schedule: ScheduleRef
    wallet: WalletRef
    recurrence: Recurrence
    calendar: str
    cancelled: bool
    created_at: Moment

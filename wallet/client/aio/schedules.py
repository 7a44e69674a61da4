"""Asynchronous twin of `wallet.client.schedules`, made by `python -m sandbox.async_client`: change that one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from kernel import ids
from kernel.client import AsyncServiceClient
from kernel.crypto.keys import PrivateKey
from ledger.contract import TransferKind, TransferTerms, sign_instruction
from wallet.client.schedules import _path
from wallet.contract.schedules import (
    Recurrence,
    ScheduleDatesRequest,
    ScheduleDatesView,
    ScheduleDateView,
    ScheduledPaymentView,
    ScheduleMoreRequest,
    ScheduleRequest,
    ScheduleView,
    schedule_transfer_id,
)


class AsyncScheduleMethods:
    """What `WalletClient` can do with schedules. All of it may be repeated."""

    _http: AsyncServiceClient
    _post: Callable[[str, BaseModel], Awaitable[Any]]
    _items: Callable[[str, dict[str, Any]], AsyncIterator[Any]]

    async def schedule_dates(
        self, recurrence: Recurrence, *, calendar: str = "cn", first: int = 0, count: int = 12
    ) -> list[ScheduleDateView]:
        """The days of payments `first`, `first` + 1, ...; fewer than `count` if the recurrence ends."""
        body = ScheduleDatesRequest(recurrence=recurrence, calendar=calendar, first=first, count=count)
        return ScheduleDatesView.model_validate(await self._post("/v1/schedule-dates", body)).dates

    def sign_schedule(
        self,
        dates: list[ScheduleDateView],
        *,
        schedule: UUID,
        key: PrivateKey,
        ledger: str,
        debit: int,
        credit: int,
        amount_minor: int,
        currency: str,
    ) -> list[str]:
        """One instruction a date, signed by the holder's device; nothing is sent."""
        return [
            sign_instruction(
                TransferTerms(
                    id=schedule_transfer_id(schedule, day.number),
                    kind=TransferKind.PAYMENT,
                    debit=ids.AccountNumber(debit),
                    credit=ids.AccountNumber(credit),
                    amount_minor=amount_minor,
                    currency=currency,
                ),
                ledger=ledger,
                valid_until=day.sign_until,
                key=key,
            )
            for day in dates
        ]

    async def create_schedule(
        self,
        *,
        schedule: UUID,
        wallet: UUID,
        recurrence: Recurrence,
        instructions: list[str],
        calendar: str = "cn",
    ) -> ScheduleView:
        body = ScheduleRequest(
            schedule=schedule, wallet=wallet, recurrence=recurrence, calendar=calendar, instructions=instructions
        )
        return ScheduleView.model_validate(await self._post("/v1/schedules", body))

    async def prolong_schedule(self, schedule: UUID, *, first: int, instructions: list[str]) -> ScheduleView:
        body = ScheduleMoreRequest(first=first, instructions=instructions)
        return ScheduleView.model_validate(await self._post(f"{_path(schedule)}/payments", body))

    async def cancel_schedule(self, schedule: UUID) -> ScheduleView:
        return ScheduleView.model_validate(
            await self._http.post(f"{_path(schedule)}/cancellation", {}, idempotent=True)
        )

    async def cancel_scheduled_payment(self, schedule: UUID, number: int) -> ScheduleView:
        path = f"{_path(schedule)}/payments/{number}/cancellation"
        return ScheduleView.model_validate(await self._http.post(path, {}, idempotent=True))

    async def get_schedule(self, schedule: UUID) -> ScheduleView:
        return ScheduleView.model_validate(await self._http.get(_path(schedule)))

    def scheduled_payments(self, schedule: UUID) -> AsyncIterator[ScheduledPaymentView]:
        """Every payment with its outcome, in order."""
        items = self._items(f"{_path(schedule)}/payments", {"limit": 1000})
        return (ScheduledPaymentView.model_validate(item) async for item in items)

    def schedules(self, wallet: UUID) -> AsyncIterator[ScheduleView]:
        """A wallet's, newest first."""
        items = self._items(f"/v1/wallets/{ids.show('wlt', wallet)}/schedules", {"limit": 1000})
        return (ScheduleView.model_validate(item) async for item in items)

"""The client's side of the calendars."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from uuid import UUID

from kernel import ids
from kernel.client import ServiceClient
from settlement.contract.calendars import (
    CLEAR_OUT_PREFIX,
    CalendarsView,
    ClearOutView,
    DayRule,
    MissedCutOff,
    OverlapView,
    PaymentKind,
    SessionView,
    SettlementPlanView,
    UnclearedReport,
    WhenView,
)


class CalendarsMixin:
    _http: ServiceClient

    def calendars(self) -> CalendarsView:
        return CalendarsView.model_validate(self._http.get("/v1/calendars"))

    def hours(self, currency: str, *, first: date | None = None, days: int = 7) -> list[SessionView]:
        query = {"currency": currency, "first": _text(first), "days": days}
        return [SessionView.model_validate(item) for item in self._http.get("/v1/calendars/hours", query=query)]

    def overlap(self, currencies: Sequence[str], *, first: date | None = None, days: int = 7) -> list[OverlapView]:
        query = {"currencies": ",".join(currencies), "first": _text(first), "days": days}
        return [OverlapView.model_validate(item) for item in self._http.get("/v1/calendars/overlap", query=query)]

    def when(
        self,
        currencies: Sequence[str],
        *,
        at: datetime | None = None,
        value_date: date | None = None,
        kind: PaymentKind = PaymentKind.BANK,
        lag_days: int = 0,
        rule: DayRule | None = None,
        missed_cut_off: MissedCutOff | None = None,
    ) -> WhenView:
        """Refuses: calendars-off, calendar-*, value-date-*, cut-off-missed, no-joint-business-day."""
        query = {
            "currencies": ",".join(currencies),
            "at": None if at is None else at.isoformat().replace("+00:00", "Z"),
            "value_date": _text(value_date),
            "kind": kind.value,
            "lag_days": lag_days,
            "rule": None if rule is None else rule.value,
            "missed_cut_off": None if missed_cut_off is None else missed_cut_off.value,
        }
        return WhenView.model_validate(self._http.get("/v1/calendars/when", query=query))

    def settlement_plan(self, settlement: UUID) -> SettlementPlanView:
        return SettlementPlanView.model_validate(
            self._http.get(f"/v1/settlements/{ids.show('stl', settlement)}/calendar")
        )

    def uncleared(self, currency: str) -> UnclearedReport:
        """The bridge's operator only, as all of the clear-out."""
        return UnclearedReport.model_validate(self._http.get("/v1/uncleared", query={"currency": currency}))

    def propose_clear_out(self, currency: str) -> ClearOutView:
        return ClearOutView.model_validate(self._http.post("/v1/clear-outs", {"currency": currency}, idempotent=True))

    def clear_out(self, clear_out: UUID) -> ClearOutView:
        return ClearOutView.model_validate(self._http.get(f"/v1/clear-outs/{ids.show(CLEAR_OUT_PREFIX, clear_out)}"))

    def approve_clear_out(self, clear_out: UUID) -> ClearOutView:
        """Refuses: clear-out-stale, batch-invalid."""
        path = f"/v1/clear-outs/{ids.show(CLEAR_OUT_PREFIX, clear_out)}/approve"
        return ClearOutView.model_validate(self._http.post(path, {}, idempotent=True))


def _text(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
